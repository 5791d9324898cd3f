"""The options that say which NATS a command reaches, written once for every command that operates on one."""

from typing import Final

import click

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
