"""`breakwater up` and `breakwater run`."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from breakwater_gateway.cli.process import Form

import click

EXIT_CANNOT_START: Final = 2
KINDS: Final = ("edge", "router", "worker", "health", "ledger", "cache", "exporter", "simulator")

_config = click.option(
    "--config", "config_path", metavar="FILE", help="The breakwater.yaml to serve."
)
_host = click.option("--host", default="127.0.0.1", show_default=True, help="Where HTTP listens.")
_port = click.option(
    "--port", default=4100, show_default=True, type=click.IntRange(0, 65535), help="HTTP port."
)
_bus_only = click.option(
    "--bus-only", is_flag=True, help="Send every message over NATS, also within this process."
)
_allow_open = click.option(
    "--allow-open", is_flag=True, help="Serve without keys on an address others can reach."
)
_log = click.option("--log", type=click.Choice(["json", "console"]), help="Form of the log lines.")
_drain = click.option(
    "--drain-timeout",
    default=60.0,
    show_default=True,
    type=click.FloatRange(0, 3600),
    help="Seconds.",
)
_pool = click.option(
    "--pool", "pools", multiple=True, help="A pool that the worker serves; repeatable."
)
_capacity = click.option(
    "--capacity", type=click.IntRange(1), help="Attempts that the worker makes at once."
)


@click.command(help="Start everything on this machine: NATS, every actor and the HTTP edge.")
@_config
@_host
@_port
@click.option("--nats", "nats_url", metavar="URL", help="Use this NATS instead of an embedded one.")
@click.option(
    "--nats-port",
    default=4222,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="Embedded NATS.",
)
@click.option(
    "--data",
    "data_dir",
    default="breakwater-data",
    show_default=True,
    metavar="DIR",
    help="Where the embedded NATS and the routers' journals are kept.",
)
@click.option(
    "--processes",
    default=1,
    show_default=True,
    type=click.IntRange(1, 256),
    help="Processes of edge, router and worker.",
)
@_bus_only
@_allow_open
@_log
@_drain
def up(
    config_path: str | None,
    host: str,
    port: int,
    nats_url: str | None,
    nats_port: int,
    data_dir: str,
    processes: int,
    bus_only: bool,
    allow_open: bool,
    log: "Form | None",
    drain_timeout: float,
) -> None:
    from breakwater_gateway.cli.up import Up, run_up

    plan = Up(
        config_path=config_path or "",
        host=host,
        port=port,
        nats=nats_url or "",
        nats_port=nats_port,
        data=Path(data_dir),
        processes=processes,
        bus_only=bus_only,
        allow_open=allow_open,
        log=log,
        drain_s=drain_timeout,
    )
    _go(lambda: run_up(plan))


@click.command(
    help="Run just these actors against a NATS server: edge, router, worker, health, ledger,"
    " cache, exporter, simulator."
)
@click.argument("actors", nargs=-1, required=True, type=click.Choice(KINDS))
@click.option(
    "--nats",
    "nats_url",
    metavar="URL",
    envvar="NATS_URL",
    default="nats://127.0.0.1:4222",
    show_default=True,
)
@click.option("--creds", envvar="NATS_CREDS", metavar="FILE", help="NATS credentials.")
@_config
@_host
@_port
@_pool
@_capacity
@_bus_only
@_allow_open
@_log
@_drain
@click.option(
    "--data",
    "data_dir",
    envvar="BREAKWATER_DATA",
    default="",
    metavar="DIR",
    help="Where routers keep the journals of what they hold of budgets; default: nowhere.",
)
@click.option("--simulator-port", default=4199, show_default=True, type=click.IntRange(0, 65535))
@click.option("--reuse-port", is_flag=True, help="Share the HTTP port with other processes.")
@click.option("--group", default="", help="Processes whose metrics are shown together.")
@click.option("--die-with-parent", is_flag=True, hidden=True)
@click.option("--peers", default=0, type=click.IntRange(0), help="Other processes of the group.")
def run(
    actors: tuple[str, ...],
    nats_url: str,
    creds: str | None,
    config_path: str | None,
    host: str,
    port: int,
    pools: tuple[str, ...],
    capacity: int | None,
    bus_only: bool,
    allow_open: bool,
    log: "Form | None",
    drain_timeout: float,
    data_dir: str,
    simulator_port: int,
    reuse_port: bool,
    group: str,
    die_with_parent: bool,
    peers: int,
) -> None:
    from breakwater_gateway.cli.process import Process, read_config, serve
    from breakwater_gateway.edge.actor import Listen

    if die_with_parent:
        _die_with_parent()

    async def go() -> int:
        stored = None
        if config_path:
            stored, _ = read_config(config_path)
        if "edge" in actors and not reuse_port:
            check_port(host, port)
        process = Process(
            kinds=tuple(dict.fromkeys(actors)),
            nats=nats_url,
            name=f"{'-'.join(dict.fromkeys(actors))}/{socket.gethostname()}-{os.getpid()}",
            config_path=config_path or "",
            config=stored,
            listen=Listen(host, port, reuse_port, allow_open),
            simulator_port=simulator_port,
            pools=pools,
            capacity=capacity,
            bus_only=bus_only,
            creds=creds or "",
            group=group or f"p{os.getpid()}-{socket.gethostname()}",
            peers=peers,
            drain_s=drain_timeout,
            data=data_dir,
            log=log,
        )
        return await serve(process)

    _go(go)


def check_port(host: str, port: int, *, option: str = "--port") -> None:
    """Raises `CannotStart` when the address is taken, before anything is started."""
    from breakwater_gateway.cli.process import CannotStart

    if not port:
        return
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise CannotStart(
                f"cannot listen on {host}:{port} ({error.strerror}): stop what uses it, "
                f"or choose another with {option}"
            ) from None


def _die_with_parent() -> None:
    """SIGTERM to ourselves when whoever started us is gone, however it went (Linux: prctl(2))."""
    if sys.platform != "linux":
        return
    import ctypes

    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM, 0, 0, 0)


def _go(main: Callable[[], Coroutine[None, None, int]]) -> None:
    """Run it on uvloop; what cannot start says so in one sentence and exits with 2."""
    import uvloop

    from breakwater_gateway.cli.process import CannotStart
    from breakwater_gateway.config.problems import ConfigError
    from breakwater_gateway.runtime.bus import BusError
    from breakwater_gateway.runtime.supervisor import StartRefused

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            code = runner.run(main())
    except (CannotStart, ConfigError, BusError, StartRefused) as error:
        click.echo(f"breakwater: {error}", err=True)
        sys.exit(EXIT_CANNOT_START)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(code)
