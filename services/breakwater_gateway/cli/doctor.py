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
from collections.abc import AsyncIterator, Awaitable, Callable
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
    yield python_version(sys.version_info[:3])
    for finding in (*dependencies(), server_binary_found(), *await asyncio.to_thread(configuration, config_path)):
        yield finding
    beats: dict[tuple[str, str], Heartbeat] | None = None
    async for finding in _guarded(client, client.connect, "nats"):
        yield finding
        break
    else:
        try:
            for check in (_server, _jetstream):
                for finding in await check(client):
                    yield finding
            beats = await heartbeats(client, HEARD_S)
            for finding in actors(list(beats.values())):
                yield finding
        finally:
            await client.aclose()
    kinds = {kind for kind, _ in beats} if beats is not None else set()
    yield await _edge(http_url, expected="edge" in kinds)
