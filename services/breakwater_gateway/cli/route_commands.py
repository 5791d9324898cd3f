"""`breakwater route explain`: who would answer a request now, who would not, and why.

Exit codes: 0 fine, 1 the request would be refused, 2 the question itself, 3 a configuration with mistakes,
4 no NATS.
"""

import asyncio
import os
import random
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import msgspec

from breakwater_gateway.cli import output

if TYPE_CHECKING:
    from breakwater_gateway.config.model import Config
    from breakwater_gateway.router.explain import Explanation
    from breakwater_gateway.router.targets import Targets

LISTEN_S: Final = 1.2
"""Workers beat twice a second: whoever is there has been heard by then."""
NATS_URL: Final = "nats://127.0.0.1:4222"
"""Where `breakwater up` has its own."""
_APIS: Final = ("chat", "embeddings", "messages", "responses", "generate")

Look = Callable[[str, bool], Coroutine[None, None, "tuple[Config, Targets]"]]
"""A NATS URL -> the live configuration and the views, after listening for `LISTEN_S`; what goes wrong is
told as JSON if the second says so, and ends the command."""

OFFLINE: Final = (
    "offline: every breaker counts as closed, every pool as served, and nothing was measured;"
    " ask a live gateway with --nats URL"
)
LIVE: Final = f"live: listened for {LISTEN_S:g} s; pauses that single routers keep are not seen"


def route_commands(look: Look) -> click.Group:
    """The group `route`. `look` is what talks to NATS, only called for `--nats`."""

    @click.group(help="Say where requests go.")
    def route() -> None:
        """The group itself does nothing."""

    @route.command(help="Who would answer the request in REQUEST (a JSON file, or -), and why.")
    @click.argument("request", type=click.Path())
    @click.option("--config", "file", type=click.Path(), metavar="FILE", help="A configuration.")
    @click.option(
        "--nats",
        "nats_url",
        metavar="URL",
        help=f"A live gateway's NATS; default: {NATS_URL}.",
    )
    @click.option(
        "--header",
        "headers",
        metavar="NAME=VALUE",
        multiple=True,
        help="A header of the request, such as breakwater-property-tier=free.",
    )
    @click.option(
        "--api", type=click.Choice(_APIS), default="chat", show_default=True, help="Whose body."
    )
    @click.option("--json", "as_json", is_flag=True, help="Answer as JSON.")
    def explain(
        request: str,
        file: str | None,
        nats_url: str | None,
        headers: tuple[str, ...],
        api: str,
        as_json: bool,
    ) -> None:
        if file is not None and nats_url is not None:
            raise click.UsageError("name a configuration, --config FILE, or a gateway, --nats URL")
        if file is None and nats_url is None:
            nats_url = NATS_URL
        body = _body(request)
        given = _headers(headers)
        if nats_url is not None:
            config, targets = asyncio.run(look(nats_url, as_json))
        else:
            config, targets = _offline(str(file), as_json=as_json)
        _explain(
            body, given, api, config, targets, note=LIVE if nats_url else OFFLINE, as_json=as_json
        )

    return route


def _body(path: str) -> bytes:
    from breakwater_gateway.config.model import Limits

    limit = Limits().body_bytes + 1
    if path == "-":
        return sys.stdin.buffer.read(limit)
    try:
        with Path(path).open("rb") as file:
            return file.read(limit)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise click.UsageError(f"cannot read the request {path!r}: {reason}") from None


def _headers(given: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not equals or not name.strip():
            raise click.UsageError(f"expected --header NAME=VALUE, not {each[:80]!r}")
        found[name.strip().lower()] = value.strip()
    return found


def _offline(file: str, *, as_json: bool) -> "tuple[Config, Targets]":
    from breakwater_gateway.cli.config_commands import read_config_file
    from breakwater_gateway.cli.config_files import Beside
    from breakwater_gateway.config.load import ConfigError, load_text
    from breakwater_gateway.router.explain import assume_workers
    from breakwater_gateway.router.targets import Targets

    try:
        config = load_text(
            read_config_file(file),
            source=file,
            environment=os.environ,
            read_file=Beside(file),
        )
    except ConfigError as error:
        output.fail(str(error), code=output.CONFIG, as_json=as_json)
    targets = Targets(config)
    assume_workers(targets, config, now=time.monotonic())
    return config, targets


def _explain(
    body: bytes,
    headers: dict[str, str],
    api: str,
    config: "Config",
    targets: "Targets",
    *,
    note: str,
    as_json: bool,
) -> None:
    from breakwater_gateway.router.explain import Explanation, explain
    from breakwater_protocol import failures as f

    found = explain(
        body,
        headers,
        api=api,
        config=config,
        targets=targets,
        now=time.monotonic(),
        now_wall=time.time(),
        draw=random.random,
    )
    if not isinstance(found, Explanation):
        output.fail(
            found.message,
            code=output.FAILED,
            as_json=as_json,
            facts={"kind": f.kind(found), "status": f.spec(found).status},
        )
    if as_json:
        output.say_json({**msgspec.to_builtins(found), "views": note})
        return
    output.note(note)
    _print(found)


def _print(found: "Explanation") -> None:
    from breakwater_gateway.config.budgets import usd_text

    asked = found.asked if found.asked == found.model else f"{found.asked} -> {found.model}"
    output.say(f"model     {asked}")
    for way in found.routes:
        output.say(f"route     {way}")
    by = f" ({found.score}, smaller is better)" if found.score else ""
    output.say(f"strategy  {found.strategy}{by}")
    if found.input_tokens:
        output.say(f"tokens    {found.input_tokens} in, {found.output_tokens} out, estimated")
    if found.drawn:
        output.say("order     drawn: another request may see another one")
    rows = [
        [
            str(place),
            each.deployment,
            "-" if each.score is None else f"{each.score:.6g}",
            str(each.order),
            str(each.weight),
            each.region or "-",
            f"{each.breaker}, one probe" if each.probe else each.breaker,
            str(each.in_flight),
        ]
        for place, each in enumerate(found.kept, 1)
    ]
    columns = ("", "deployment", "score", "order", "weight", "region", "breaker", "in flight")
    if rows:
        output.table(columns, rows)
    else:
        output.say("nobody    can be called now")
    for each in found.kept:
        if each.keys:
            output.say(f"keys      {each.deployment}: only {', '.join(each.keys)}")
    for out in found.dropped:
        wait = "" if out.wait_s is None else f", {out.wait_s:.1f} s left"
        if out.needs_nano_usd is not None:
            wait = f", up to {usd_text(out.needs_nano_usd)} USD a call"
        output.say(f"left out  {out.deployment}: {out.reason.replace('_', ' ')}{wait}")
