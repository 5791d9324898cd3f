"""Which NATS a command reaches, and how: the options and the connection, once for every command that operates on one."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from breakwater_gateway.cli import output

if TYPE_CHECKING:
    from breakwater_gateway.runtime.nats_bus import NatsBus
    from breakwater_gateway.runtime.telemetry import Log

nats: Final = click.option(
    "--nats",
    "nats_url",
    envvar="NATS_URL",
    metavar="URL",
    default="nats://127.0.0.1:4222",
    show_default=True,
)
creds: Final = click.option(
    "--creds", envvar="NATS_CREDS", metavar="FILE", help="NATS credentials."
)
root: Final = click.option(
    "--root", default="bw.v1", show_default=True, help="Root of all subjects."
)


def quiet() -> "Log":
    """For a command's connection: what goes wrong is the command's to say, in one sentence of its own."""
    from breakwater_gateway.runtime.logs import configure_logging, get_log

    configure_logging("console", "error")
    return get_log()


@asynccontextmanager
async def bus(
    nats_url: str, creds: str | None, *, name: str, role: str = "cli"
) -> "AsyncIterator[NatsBus]":
    """A command's own connection. Raises `BusUnreachable`."""
    from breakwater_gateway.runtime.nats_bus import connect_nats

    connected = await connect_nats(
        nats_url, name=name, role=role, creds=Path(creds) if creds else None, log=quiet()
    )
    try:
        yield connected
    finally:
        await connected.close()


def run(
    work: "Callable[[NatsBus], Awaitable[int]]",
    nats_url: str,
    creds: str | None,
    *,
    name: str,
    without: str,
    as_json: bool,
) -> None:
    """Ends with what `work` ends with. `without`: what it means where a stream or bucket is not there."""
    from breakwater_gateway.runtime.bus import BusError
    from breakwater_gateway.runtime.streams import JetStreamError

    async def go() -> int:
        try:
            async with bus(nats_url, creds, name=name, role=name) as connected:
                return await work(connected)
        except JetStreamError as error:
            output.fail(f"{error}; {without}", code=output.FAILED, as_json=as_json)
        except BusError as error:
            output.fail(str(error), code=output.UNREACHABLE, as_json=as_json)

    output.run(go, as_json=as_json)
