"""The options that say which NATS a command reaches, written once for every command that operates on one."""

from typing import TYPE_CHECKING, Final

import click

if TYPE_CHECKING:
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
