"""One process of actors: its bus, its configuration, its supervisor."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import anyio
from anyio.abc import TaskGroup
from msgspec import Struct

from breakwater_gateway.cli.config_files import Beside
from breakwater_gateway.config.codec import (
    Stored,
    decode_stored,
    encode_stored,
    load_stored,
)
from breakwater_gateway.config.load import load_text
from breakwater_gateway.config.model import Config
from breakwater_gateway.config.yaml_tree import TEXT_MAX
from breakwater_gateway.edge.actor import Edge, Listen
from breakwater_gateway.health.actor import Health
from breakwater_gateway.ledger.actor import Ledger
from breakwater_gateway.router.actor import Router
from breakwater_gateway.runtime.actor import Actor, Context
from breakwater_gateway.runtime.bus import Bus, BusError, Message
from breakwater_gateway.runtime.local_first import LocalFirst
from breakwater_gateway.runtime.logs import configure_logging, get_log
from breakwater_gateway.runtime.metrics import Registry, render
from breakwater_gateway.runtime.nats_bus import connect_nats
from breakwater_gateway.runtime.service import (
    BUCKET,
    HISTORY,
    KEY,
    ConfigHolder,
    OnChange,
    publish_config,
    watch_file,
)
from breakwater_gateway.runtime.slot import ActorSpec
from breakwater_gateway.runtime.streams import ensure_streams, events_stream
from breakwater_gateway.runtime.supervisor import Supervisor
from breakwater_gateway.worker.actor import Worker
from breakwater_gateway.worker.http_client import FastClient
from breakwater_protocol.subjects import Subjects

if TYPE_CHECKING:
    pass

GATHER_S: Final = 0.25
"""How long `/metrics` waits for the other processes of its group."""
PROCESS: Final = "process"
"""Header of a metrics reply: whose they are."""
SNAPSHOTS_MAX: Final = 1024
CONFIG_WAIT_S: Final = 10.0


class CannotStart(Exception):
    """One sentence that names what is in the way and the mend."""


Form = Literal["json", "console"]


class Process(Struct, frozen=True):
    kinds: tuple[str, ...]
    nats: str
    name: str = "breakwater"
    config_path: str = ""
    config: Stored | None = None
    """Published at start; None: what the bucket holds is waited for."""
    listen: Listen = Listen()
    simulator_port: int = 0
    pools: tuple[str, ...] = ()
    capacity: int | None = None
    bus_only: bool = False
    creds: str = ""
    group: str = "default"
    """Processes whose metrics are one: `--processes N` runs several behind one port."""
    peers: int = 0
    """How many other processes of the group there are."""
    drain_s: float = 60.0
    data: str = ""
    """Where routers keep the journals of what they hold of budgets; empty: nowhere."""
    log: Form | None = None
    """None: as the configuration says."""


def read_config(path: str) -> tuple[Stored, Config]:
    """Raises `CannotStart` for a file that is not there, `ConfigError` for one with mistakes."""
    try:
        with Path(path).open("rb") as file:
            text = file.read(TEXT_MAX + 1)
    except OSError as error:
        raise CannotStart(f"cannot read the configuration {path}: {error.strerror}") from None
    return _read(path, text)


def _read(path: str, text: bytes) -> tuple[Stored, Config]:
    beside, name = Beside(path), Path(path).name
    config = load_text(text, source=name, environment=os.environ, read_file=beside)
    return Stored(source=name, text=text.decode("utf-8"), files=beside.read), config


def refuse_open(config: Config, listen: Listen) -> None:
    """Raises `CannotStart` when everybody who reaches the edge could spend the provider keys."""
    if config.auth.mode == "open" and not listen.loopback and not listen.allow_open:
        raise CannotStart(
            f"auth is open, so everybody who reaches {listen.host} could spend your keys: listen on "
            "127.0.0.1, set `auth: {mode: keys}` in the configuration, or say --allow-open if "
            "something in front asks for keys"
        )


async def publish_once(nats: str, stored: Stored) -> None:
    """Make it the cluster's configuration. Raises `BusError`."""
    bus = await connect_nats(nats, name=f"config/{os.getpid()}", role="config")
    try:
        await ensure_streams(bus, events_stream("bw.v1"), where=nats)
        await publish_config(bus, Subjects(), encode_stored(stored))
    finally:
        await bus.close()


def decode_config(data: bytes) -> Config:
    return load_stored(decode_stored(data), os.environ)


async def serve(process: Process, *, on_ready: Callable[[], Awaitable[None]] | None = None) -> int:
    """Run until SIGTERM; the exit code. Raises `CannotStart`, `BusError`, `StartRefused`."""
    return await _Serving(process).run(on_ready)


class _Serving:
    """The parts of one process, held together: whichever bus is the live one serves them all."""

    def __init__(self, process: Process) -> None:
        known = load_stored(process.config, os.environ) if process.config else None
        telemetry = (known or Config(models={})).telemetry
        configure_logging(process.log or telemetry.log, telemetry.level)
        self.process = process
        self.subjects = Subjects()
        self.metrics = Registry(process=process.name)
        self.log = get_log(process=process.name)
        self.supervisor: Supervisor | None = None
        self.bus: Bus | None = None
        self.snapshots: dict[str, bytes] = {}
        self.group: TaskGroup | None = None
        self.named: set[str] = set()
        """Files that the configuration names and that are watched."""

    async def run(self, on_ready: Callable[[], Awaitable[None]] | None) -> int:
        process = self.process
        bus = await self.connect()
        data, revision = await _first_config(bus, process)
        if "edge" in process.kinds:
            refuse_open(decode_config(data), process.listen)
        holder = ConfigHolder(
            data, decode_config, log=self.log, metrics=self.metrics, revision=revision
        )
        self.supervisor = Supervisor(
            bus,
            self.subjects,
            [
                ActorSpec(kind, factory)
                for kind, factory in self.factories().items()
                if kind in process.kinds
            ],
            holder,
            metrics=self.metrics,
            log=self.log,
            connect=self.connect,
            drain_s=process.drain_s,
        )
        async with anyio.create_task_group() as group:
            if process.config_path and process.config is not None:
                self.watch(group, process.config_path, process.config.text, self.publish_file)
                self.watch_named(group, process.config)
            if on_ready is not None:
                group.start_soon(self.when_ready, on_ready)
            code = await self.supervisor.run()
            group.cancel_scope.cancel()
        return code

    async def connect(self) -> Bus:
        process = self.process
        bus: Bus = await connect_nats(
            process.nats,
            name=process.name,
            role=process.kinds[0] if len(process.kinds) == 1 else "process",
            creds=Path(process.creds) if process.creds else None,
            on_closed=self.on_closed,
            log=self.log,
            echo=process.bus_only,
        )
        try:
            await ensure_streams(bus, events_stream(self.subjects.root), where=process.nats)
            if not process.bus_only:
                bus = LocalFirst(bus, self.subjects, log=self.log, echo=False)
            await bus.subscribe(self.subjects.metrics.at(process.group), self.on_metrics_asked)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await bus.close()
            raise
        self.bus = bus
        return bus

    def on_closed(self, reason: str) -> None:
        if self.supervisor is not None:
            self.supervisor.bus_closed(reason)

    def ready(self) -> dict[str, str]:
        if self.supervisor is None:
            return {"process": "starting"}
        return self.supervisor.ready()

    async def when_ready(self, then: Callable[[], Awaitable[None]]) -> None:
        while self.ready():  # noqa: ASYNC110 - computed from parts, there is no event to wait for
            await asyncio.sleep(0.01)
        await then()

    async def publish_file(self, text: bytes) -> None:
        """A saved change becomes a revision. Raises `ConfigError` when it has mistakes."""
        # In a thread: ten thousand models take a second to read.
        stored, _ = await asyncio.to_thread(_read, self.process.config_path, text)
        if self.bus is not None:
            await publish_config(self.bus, self.subjects, encode_stored(stored))
        if self.group is not None:
            self.watch_named(self.group, stored)

    def watch(self, group: TaskGroup, path: str, known: str, on_change: OnChange) -> None:
        group.start_soon(
            partial(watch_file, Path(path), on_change, log=self.log, known=known.encode())
        )

    def watch_named(self, group: TaskGroup, stored: Stored) -> None:
        """A change to a file that the configuration names is a change to the configuration."""
        self.group = group
        for name in stored.files.keys() - self.named:
            self.named.add(name)
            path = str(Path(self.process.config_path).parent / name)
            self.watch(group, path, stored.files[name], partial(self.publish_named, name))

    async def publish_named(self, name: str, data: bytes) -> None:
        """Raises as `publish_file` does; nothing happens when the configuration names it no longer."""
        del data  # it is read again with everything else
        text = await asyncio.to_thread(Path(self.process.config_path).read_bytes)
        stored, _ = await asyncio.to_thread(_read, self.process.config_path, text)
        if name in stored.files:
            await self.publish_file(text)

    def on_metrics_asked(self, message: Message) -> None:
        if message.reply and self.bus is not None:
            self.bus.publish(
                message.reply, self.metrics.snapshot(), headers={PROCESS: self.process.name}
            )

    async def metrics_text(self) -> bytes:
        """This process's metrics, with those of the others that serve behind the same port.

        A process that is slow to answer is shown as it was last: a sum that shrinks would look like a
        restart to whoever scrapes it.
        """
        self.snapshots[self.process.name] = self.metrics.snapshot()
        if self.process.peers and self.bus is not None:
            await self._gather(self.bus)
        return await asyncio.to_thread(render, list(self.snapshots.values()))

    async def _gather(self, bus: Bus) -> None:
        heard: set[str] = set()
        enough = asyncio.Event()

        def hear(message: Message) -> None:
            name = message.headers.get(PROCESS, "")
            if message.data and (name in self.snapshots or len(self.snapshots) < SNAPSHOTS_MAX):
                heard.add(name)
                self.snapshots[name] = message.data
            if len(heard) > self.process.peers:
                enough.set()

        inbox = bus.open_inbox(hear)
        try:
            bus.publish(self.subjects.metrics.at(self.process.group), reply=inbox.subject)
            async with asyncio.timeout(GATHER_S):
                await enough.wait()
        except (TimeoutError, BusError) as error:
            self.log.debug("metrics_incomplete", heard=len(heard), error=repr(error))
        finally:
            inbox.close()

    def factories(self) -> dict[str, Callable[[Context], Actor]]:
        """By kind, in the order in which they start: who is depended on, first."""
        process = self.process

        def edge(context: Context) -> Actor:
            return Edge(
                context,
                listen=process.listen,
                readiness=self.ready,
                metrics_text=self.metrics_text,
            )

        def worker(context: Context) -> Actor:
            return Worker(
                context, client=FastClient(), pools=process.pools, capacity=process.capacity
            )

        def router(context: Context) -> Actor:
            journals = Path(process.data) / "leases" if process.data else None
            return Router(context, journals=journals)

        def simulator(context: Context) -> Actor:
            from breakwater_gateway.simulator.actor import Simulator

            return Simulator(context, process.listen.host, process.simulator_port)

        def cache(context: Context) -> Actor:
            # Imported where it runs: numpy takes its time. One thread of BLAS, set before it is loaded:
            # more of them gain nothing on a row of 10,000 vectors and take the cores of who else is here.
            os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
            from breakwater_gateway.cache.actor import Cache

            return Cache(context)

        def exporter(context: Context) -> Actor:
            # Imported where it runs: who exports nothing needs no second HTTP client.
            from breakwater_gateway.exporter.actor import Exporter

            return Exporter(context)

        return {
            "simulator": simulator,
            "health": Health,
            "cache": cache,
            "ledger": Ledger,
            "exporter": exporter,
            "worker": worker,
            "router": router,
            "edge": edge,
        }


async def _first_config(bus: Bus, process: Process) -> tuple[bytes, int]:
    if process.config is not None:
        data = encode_stored(process.config)
        return data, await publish_config(bus, Subjects(), data)
    store = await bus.store(BUCKET, history=HISTORY)
    deadline = asyncio.get_running_loop().time() + CONFIG_WAIT_S
    while True:
        entry = await store.get(KEY)
        if entry is not None and entry.value is not None:
            return entry.value, entry.revision
        if asyncio.get_running_loop().time() >= deadline:
            await bus.close()
            raise CannotStart(
                f"no configuration was given and {process.nats} holds none: pass --config FILE"
            )
        await asyncio.sleep(0.25)
