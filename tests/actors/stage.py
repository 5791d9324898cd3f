"""A whole gateway in one loop and in virtual time: real actors on the memory bus, a provider driven by hand.

async with stage(config) as gateway:
    caller = gateway.ask(model="m")
    call = await gateway.provider.next_call()
    call.reply(200, ANSWER)
    reply = await caller.reply()
"""

import asyncio
import json
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
from anyio.abc import TaskGroup

from breakwater_gateway.cache.actor import Cache
from breakwater_gateway.cache.embed.embedder import Embedder
from breakwater_gateway.config import codec
from breakwater_gateway.config.model import (
    BreakerPolicy,
    Config,
    Deployment,
    KeyRef,
    Limits,
    Model,
    Price,
    RetryPolicy,
    StrategyName,
    Timeouts,
)
from breakwater_gateway.exporter.actor import Exporter
from breakwater_gateway.health.actor import Health
from breakwater_gateway.ledger.actor import Ledger
from breakwater_gateway.router.actor import Router
from breakwater_gateway.runtime.actor import Actor, Context
from breakwater_gateway.runtime.bus import Message, Stored
from breakwater_gateway.runtime.clock import Clock
from breakwater_gateway.runtime.memory_bus import KeptLog, MemoryBus, MemoryHub
from breakwater_gateway.runtime.metrics import Registry
from breakwater_gateway.runtime.service import ConfigHolder, publish_config
from breakwater_gateway.runtime.slot import ActorSpec
from breakwater_gateway.runtime.supervisor import Supervisor
from breakwater_gateway.runtime.telemetry import Log
from breakwater_gateway.worker.actor import Worker
from breakwater_gateway.worker.http.answer import Answer
from breakwater_gateway.worker.http_client import (
    ConnectFailed,
    CutAnswer,
    Headers,
    OriginStats,
    Prepared,
)
from breakwater_protocol.events import AttemptFinished, BreakerChanged, RequestFinished
from breakwater_protocol.subjects import Subjects

SUBJECTS = Subjects()

ANSWER = json.dumps(
    {
        "id": "c1",
        "object": "chat.completion",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 1},
    }
).encode()


def delta(content: str = "", finish: str | None = None) -> bytes:
    """One event of a stream, as the provider sends it."""
    body = {"choices": [{"index": 0, "delta": {"content": content}, "finish_reason": finish}]}
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def config(
    *ids: str,
    strategy: StrategyName = "simple-shuffle",
    timeouts: Timeouts | None = None,
    retry: RetryPolicy | None = None,
    breaker: BreakerPolicy | None = None,
    limits: Limits | None = None,
    api_keys: tuple[KeyRef, ...] = (),
    price: Price | None = None,
    max_in_flight: int | None = None,
) -> Config:
    """One model `m`; its deployments are tried in the order given."""
    deployments = tuple(
        Deployment(
            id=id_,
            provider="p",
            model=f"{id_}-model",
            wire="openai",
            base_url=f"http://{id_}",
            order=order,
            api_keys=api_keys,
            price=price,
            max_in_flight=max_in_flight,
        )
        for order, id_ in enumerate(ids)
    )
    model = Model(
        "m",
        deployments,
        strategy=strategy,
        timeouts=timeouts or Timeouts(),
        retry=retry or RetryPolicy(),
        breaker=breaker or BreakerPolicy(),
    )
    return Config({"m": model}, limits=limits or Limits())


class FakeAnswer(Answer):
    """What a provider has sent so far."""

    __slots__ = ("_arrived", "_pieces", "closed")

    def __init__(self) -> None:
        super().__init__()
        self._pieces: deque[bytes | Exception | None] = deque()
        self._arrived = asyncio.Event()
        self.closed = asyncio.Event()

    def push(self, piece: bytes | Exception | None) -> None:
        self._pieces.append(piece)
        self._arrived.set()

    @property
    def ended(self) -> bool:
        return bool(self._pieces) and self._pieces[0] is None

    def close(self) -> None:
        self.closed.set()

    async def _raw_chunk(self) -> bytes | None:
        while not self._pieces:
            self._arrived.clear()
            await self._arrived.wait()
        if self._pieces[0] is None:
            return None
        piece = self._pieces.popleft()
        if isinstance(piece, Exception):
            raise piece
        return piece


class Call:
    """One call as the provider sees it."""

    def __init__(self, deployment: str, headers: dict[str, str], body: bytes) -> None:
        self.deployment = deployment
        self.headers = headers
        self.body: dict[str, Any] = json.loads(body)
        self.answer = FakeAnswer()
        self.head: asyncio.Future[FakeAnswer] = asyncio.get_running_loop().create_future()
        self.aborted = asyncio.Event()

    def reply(self, status: int, body: bytes = b"{}", **headers: str) -> None:
        self.start(status, **headers)
        self.answer.push(body)
        self.answer.push(None)

    def start(self, status: int = 200, **headers: str) -> None:
        self.answer.status = status
        self.answer.raw_headers = [
            (name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()
        ]
        self.head.set_result(self.answer)

    def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.answer.push(piece)

    def end(self) -> None:
        self.answer.push(None)

    def cut(self) -> None:
        self.answer.push(CutAnswer("chunked", "gone"))

    def refuse(self) -> None:
        self.head.set_exception(ConnectFailed("tcp", "refused"))


class _Prepared(Prepared):
    def __init__(self, url: str, headers: dict[str, str]) -> None:
        self.url = url
        self.given = headers


class Provider:
    """An `HttpClient` whose other end is the test."""

    def __init__(self) -> None:
        self.calls: asyncio.Queue[Call] = asyncio.Queue()
        self.seen: list[str] = []

    def prepare(
        self, method: str, url: str, headers: Headers = (), *, http2: bool = True
    ) -> Prepared:
        return _Prepared(url, dict(headers))

    async def send(
        self,
        prepared: Prepared,
        body: bytes = b"",
        *,
        headers: Headers = (),
        connect_timeout_s: float = 5.0,
        pool_timeout_s: float = 5.0,
    ) -> Answer:
        assert isinstance(prepared, _Prepared)
        call = Call(prepared.url.split("/")[2], prepared.given, body)
        self.seen.append(call.deployment)
        self.calls.put_nowait(call)
        try:
            return await call.head
        except asyncio.CancelledError:
            call.aborted.set()
            raise

    def stats(self) -> list[OriginStats]:
        return []

    async def close(self) -> None:
        return

    async def next_call(self) -> Call:
        async with asyncio.timeout(60):
            return await self.calls.get()


class Caller:
    """Somebody who asked and hears what comes back."""

    def __init__(self) -> None:
        self.heard: asyncio.Queue[Message] = asyncio.Queue()
        self.all: list[Message] = []

    def hear(self, message: Message) -> None:
        self.all.append(message)
        self.heard.put_nowait(message)

    async def reply(self) -> Message:
        async with asyncio.timeout(300):
            return await self.heard.get()

    async def error(self) -> dict[str, Any]:
        message = await self.reply()
        assert "Nats-Service-Error-Code" in message.headers, message
        found: dict[str, Any] = json.loads(message.data)["error"]
        found["status"] = int(message.headers["Nats-Service-Error-Code"])
        return found


class Wall:
    """Unix time, which passes with the loop's, and which a test may move on."""

    def __init__(self) -> None:
        self._added = time.time() - asyncio.get_running_loop().time()

    def __call__(self) -> float:
        return asyncio.get_running_loop().time() + self._added

    def add(self, seconds: float) -> None:
        self._added += seconds


class Gateway:
    def __init__(self, tasks: TaskGroup, settings: Config) -> None:
        self.tasks = tasks
        self.settings = settings
        self.hub = MemoryHub(choose=lambda _: 0)
        self.bus = MemoryBus("caller", self.hub)
        self.provider = Provider()
        self.metrics = Registry()
        self.requests: list[RequestFinished] = []
        self.attempts: list[AttemptFinished] = []
        self.breakers: list[BreakerChanged] = []
        self.supervisors: dict[str, Supervisor] = {}
        self.buses: dict[str, MemoryBus] = {}
        self._actors: dict[str, Actor] = {}
        self.scopes: dict[str, anyio.CancelScope] = {}
        self._requests = 0
        self.journals: Path | None = None
        """Where routers keep what they hold of budgets."""
        self.wall = Wall()
        self.embedder: Embedder | None = None
        """Of the actor `cache`."""
        self.collector: httpx.AsyncBaseTransport | None = None
        """Of the actor `exporter`; `environment` too."""
        self.environment: dict[str, str] = {}

    async def listen(self) -> None:
        s = SUBJECTS
        await self.bus.subscribe(
            s.request.any(), lambda m: self.requests.append(s.request.decode(m.data))
        )
        await self.bus.subscribe(
            s.attempt.any(), lambda m: self.attempts.append(s.attempt.decode(m.data))
        )
        await self.bus.subscribe(
            s.health.any(), lambda m: self.breakers.append(s.health.decode(m.data))
        )

    async def keep_events(self) -> KeptLog:
        """The stream `EVT`, which the server fills from what is published."""
        log = self.hub.kept_log("EVT", -1)

        def keep(message: Message) -> None:
            seq = log.messages[-1].seq + 1 if log.messages else 1
            log.messages.append(Stored(message.subject, seq, message.data, self.wall()))

        await self.bus.subscribe(SUBJECTS.events, keep)
        return log

    async def add(self, name: str) -> None:
        """A process with one actor: `health`, `router`, `worker`, `worker-2`, …"""
        kind = name.split("-", maxsplit=1)[0]
        bus = self.buses[name] = MemoryBus(name, self.hub)
        data = codec.encode(self.settings)
        await publish_config(bus, SUBJECTS, data)
        holder = ConfigHolder(data, codec.decode, log=_LOG, metrics=self.metrics)

        def factory(context: Context) -> Actor:
            actor = self._actors[name] = make(context)
            return actor

        def make(context: Context) -> Actor:
            match kind:
                case "worker":
                    return Worker(
                        context,
                        client=self.provider,
                        environment={"KEY_A": "sk-a-secret", "KEY_B": "sk-b-secret"},
                    )
                case "router":
                    return Router(context, journals=self.journals)
                case "cache":
                    assert self.embedder is not None
                    return Cache(context, embedder=self.embedder)
                case "ledger":
                    return Ledger(context, environment={})
                case "exporter":
                    return Exporter(context, environment=self.environment, transport=self.collector)
                case _:
                    return Health(context)

        supervisor = self.supervisors[name] = Supervisor(
            bus,
            SUBJECTS,
            [ActorSpec(kind, factory, id=name)],
            holder,
            metrics=self.metrics,
            log=_LOG,
            clock=Clock(seed=1, wall=self.wall),
            signals=False,
        )
        scope = self.scopes[name] = anyio.CancelScope()

        async def live() -> None:
            with scope:
                await supervisor.run()

        self.tasks.start_soon(live)
        async with asyncio.timeout(10):
            while supervisor.ready():  # noqa: ASYNC110 - computed from parts, there is no event
                await asyncio.sleep(0.01)

    def actor(self, name: str) -> Actor:
        return self._actors[name]

    def kill(self, name: str) -> None:
        """As `kill -9` does: nothing is said, the subscriptions are gone with the connection."""
        bus = self.buses.pop(name)
        for member in list(bus.members):
            self.hub.remove(member)
        bus.cut = True

    def holds(self, name: str) -> bool:
        """The worker of that name has attempts in hand."""
        return self._actors[name].load().in_flight > 0

    def ask(
        self,
        *,
        api: str = "chat",
        tenant: str = "t",
        headers: dict[str, str] | None = None,
        **body: object,
    ) -> Caller:
        caller = Caller()
        inbox = self.bus.open_inbox(caller.hear)
        if api == "chat":
            body.setdefault("messages", [{"role": "user", "content": "hello"}])
        self._requests += 1
        self.bus.publish(
            f"bw.v1.{api}.{tenant}",
            json.dumps({"model": "m", **body}).encode(),
            reply=inbox.subject,
            headers={"breakwater-assigned-id": f"r{self._requests}", **(headers or {})},
        )
        return caller


class _Log:
    """Says nothing, but an exception nobody expected fails the test."""

    def _quiet(self, event: str, **facts: object) -> None:
        assert event not in {"task_failed", "handler_failed", "actor_failed"}, (event, facts)

    debug = info = warning = error = exception = _quiet


_LOG = _Log()


def quiet_log() -> Log:
    return _LOG


@asynccontextmanager
async def stage(
    settings: Config, *, workers: int = 1, actors: tuple[str, ...] = ()
) -> AsyncIterator[Gateway]:
    """A process for each of `actors`; by default health, so many workers and a router."""
    async with anyio.create_task_group() as tasks:
        gateway = Gateway(tasks, settings)
        await gateway.listen()
        fleet = ["worker", *(f"worker-{number}" for number in range(2, workers + 1))]
        for name in actors or ("health", *fleet, "router"):
            await gateway.add(name)
        yield gateway
        assert gateway.hub.guard.failures == 0
        for scope in gateway.scopes.values():
            scope.cancel()
        tasks.cancel_scope.cancel()
