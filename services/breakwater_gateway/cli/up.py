"""`breakwater up`: an embedded NATS, every actor, and where to send a first request."""

import asyncio
import os
import signal
import socket
import sys
import uuid
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import anyio
import click
import httpx
from msgspec import Struct

from breakwater_gateway import __version__
from breakwater_gateway.cli.process import (
    Form,
    Process,
    publish_once,
    read_config,
    refuse_open,
    serve,
)
from breakwater_gateway.cli.serve_commands import check_port
from breakwater_gateway.config.codec import Stored, stored_defaults
from breakwater_gateway.config.defaults import default_config, with_keys
from breakwater_gateway.config.model import Config
from breakwater_gateway.config.unresolved import missing_keys, silent_traces
from breakwater_gateway.edge.actor import Listen
from breakwater_gateway.runtime.embedded import (
    EmbeddedServer,
    ServerNotStarted,
    start_nats_server,
)
from breakwater_gateway.runtime.logs import configure_logging, get_log

SHARED: Final = ("health", "ledger", "cache", "exporter")
"""One of each serves all processes."""
RESTART_S: Final = 1.0
LEAVE_S: Final = 5.0
POLL_S: Final = 0.05

Announce = Callable[[], Awaitable[None]]


class Up(Struct, frozen=True):
    config_path: str
    host: str
    port: int
    nats: str
    nats_port: int
    data: Path
    processes: int
    bus_only: bool
    allow_open: bool
    log: Form | None
    drain_s: float


async def run_up(plan: Up) -> int:
    """The exit code. Everything that can be refused is refused before anything is started."""
    port = plan.port or _free_port()
    simulator_port = _free_port()
    stored, config = _configuration(plan, simulator_port)
    listen = Listen(plan.host, port, allow_open=plan.allow_open)
    refuse_open(config, listen)
    check_port(plan.host, port)
    configure_logging(plan.log or config.telemetry.log, config.telemetry.level)
    async with AsyncExitStack() as stack:
        url = plan.nats
        if not url:
            server = OwnNats(await start_nats_server(plan.data, plan.nats_port))
            stack.push_async_callback(server.stop)
            url = server.url
        shared = ("simulator", *SHARED) if config.simulator else SHARED
        process = Process(
            kinds=(*shared, "worker", "router", "edge"),
            nats=url,
            name=f"up/{os.getpid()}",
            config_path=plan.config_path,
            config=stored,
            listen=listen,
            simulator_port=simulator_port,
            bus_only=plan.bus_only,
            drain_s=plan.drain_s,
            data=str(plan.data),
            log=plan.log,
        )

        async def announce() -> None:
            click.echo(_banner(plan, config, url, port))
            sys.stdout.flush()

        if plan.processes == 1:
            return await serve(process, on_ready=announce)
        return await _serve_many(plan, process, announce)


async def _serve_many(plan: Up, process: Process, announce: Announce) -> int:
    """N children of edge, router and worker behind one port, and one of everything else.

    This process only keeps them alive: what it knows it tells the bucket first.
    """
    if process.config is not None:
        await publish_once(process.nats, process.config)
    group = uuid.uuid4().hex[:12]
    common = [
        *("--nats", process.nats, "--drain-timeout", str(plan.drain_s), "--die-with-parent"),
        *("--group", group, "--peers", str(plan.processes), "--data", process.data),
        *(["--log", plan.log] if plan.log else []),
    ]
    serving = [
        *("edge", "router", "worker", "--host", plan.host, "--port", str(process.listen.port)),
        *("--reuse-port", *(["--bus-only"] if plan.bus_only else [])),
        *(["--allow-open"] if plan.allow_open else []),
    ]
    single = [
        *(kind for kind in process.kinds if kind in {"simulator", *SHARED}),
        *("--simulator-port", str(process.simulator_port)),
        *(["--config", plan.config_path] if plan.config_path else []),
    ]
    children = Children(
        [[*arguments, *common] for arguments in (single, *[serving] * plan.processes)]
    )
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_when_served, plan.host, process.listen.port, announce)
        await children.run_until_signal(plan.drain_s)
        tasks.cancel_scope.cancel()
    return 0


class OwnNats:
    """The embedded server, started again on its port and over its data when it dies."""

    def __init__(self, server: EmbeddedServer) -> None:
        self.url = server.url
        self._server = server
        self._keeper = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        self._keeper.cancel()
        await asyncio.wait([self._keeper])
        await self._server.stop()

    async def _keep(self) -> None:
        log = get_log(part="up")
        while True:
            code = await self._server.wait()
            log.error("nats_server_ended", code=code, last=self._server.last_log_lines())
            while not self._server.running:
                try:
                    self._server = await start_nats_server(
                        self._server.data_dir, self._server.port, host=self._server.host
                    )
                except (ServerNotStarted, OSError) as error:
                    log.error("nats_server_not_started", error=str(error))
                    await asyncio.sleep(RESTART_S)


class Children:
    """`breakwater run …` processes, kept alive until a signal, then drained together."""

    def __init__(self, commands: list[list[str]]) -> None:
        self._commands = commands
        self._running: dict[int, asyncio.subprocess.Process] = {}
        self._leaving = asyncio.Event()

    async def run_until_signal(self, drain_s: float) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        try:
            async with anyio.create_task_group() as tasks:
                for index, arguments in enumerate(self._commands):
                    tasks.start_soon(self._keep, index, arguments)
                await self._leaving.wait()
                with anyio.move_on_after(drain_s + LEAVE_S):
                    for child in list(self._running.values()):
                        await child.wait()
                tasks.cancel_scope.cancel()
        finally:
            for child in self._running.values():
                if child.returncode is None:
                    child.kill()

    def _on_signal(self) -> None:
        """The first signal drains; each further one is passed on, and cuts the drain short."""
        self._leaving.set()
        for child in self._running.values():
            if child.returncode is None:
                child.send_signal(signal.SIGTERM)

    async def _keep(self, index: int, arguments: list[str]) -> None:
        while not self._leaving.is_set():
            # A session of its own: Ctrl-C is for us to pass on, once.
            child = self._running[index] = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "breakwater_gateway",
                "run",
                *arguments,
                start_new_session=True,
            )
            code = await child.wait()
            if not self._leaving.is_set():
                get_log(part="up").error("process_ended", index=index, pid=child.pid, code=code)
                await asyncio.sleep(RESTART_S)


async def _when_served(host: str, port: int, then: Announce) -> None:
    """Once `/readyz` says so on the shared port."""
    url = f"http://{host if ':' not in host else f'[{host}]'}:{port}/readyz"
    async with httpx.AsyncClient(trust_env=False) as client:
        while True:
            try:
                if (await client.get(url)).status_code == 200:
                    break
            except httpx.HTTPError:
                pass  # not listening yet
            await asyncio.sleep(POLL_S)
    await then()


def _configuration(plan: Up, simulator_port: int) -> tuple[Stored, Config]:
    if plan.config_path:
        return read_config(plan.config_path)
    config = default_config(os.environ, simulator_url=f"http://127.0.0.1:{simulator_port}")
    return stored_defaults(config), config


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _banner(plan: Up, config: Config, nats: str, port: int) -> str:
    """Where to send a first request, and what serves it."""
    base = f"http://{plan.host}:{port}"
    names = [name for name in config.models if not name.endswith("*")]
    patterns = [name for name in config.models if name.endswith("*")]
    model = names[0] if names else patterns[0].replace("*", "MODEL")
    if config.simulator:
        serves = (
            "the built-in simulator: no provider key is in the environment (set OPENAI_API_KEY or "
            "another provider's variable, or pass --config FILE, for real models)"
        )
    elif plan.config_path:
        serves = plan.config_path
    else:
        found = ", ".join(provider.id for provider in with_keys(os.environ))
        serves = f"the providers whose keys the environment has: {found}"
    lines = [
        f"Breakwater {__version__} serves {serves}.",
        f"Models: {', '.join([*names, *patterns][:12])}",
        "",
        "NATS    " + nats,
        f"        nats req bw.v1.chat.default --server {nats} \\",
        "          " + _shell_body(model),
        "HTTP    " + base + "/v1",
        f"        curl {base}/v1/chat/completions -H 'content-type: application/json' \\",
        "          -d " + _shell_body(model),
        "Python  from openai import OpenAI",
        f'        client = OpenAI(base_url="{base}/v1", api_key="any")',
        f'        client.chat.completions.create(model="{model}",',
        '            messages=[{"role": "user", "content": "Hello"}])',
        "",
    ]
    lines += [f"Warning: {missing}" for missing in missing_keys(config, os.environ)]
    if silent := silent_traces(config, os.environ):
        lines.append(f"Traces are not exported: {silent}.")
    lines.append("Ready. Ctrl-C drains and stops.")
    return "\n".join(lines)


def _shell_body(model: str) -> str:
    return f"""'{{"model":"{model}","messages":[{{"role":"user","content":"Hello"}}]}}'"""
