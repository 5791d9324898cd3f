"""Health over a real server: the lease, the bucket and the events hold where time is real."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Protocol

import anyio
import pytest

from breakwater_gateway.config.model import BreakerPolicy, Config, Deployment, Model
from breakwater_gateway.health.actor import HEALTH_BUCKET, Health
from breakwater_gateway.runtime.actor import Context
from breakwater_gateway.runtime.bus import Bus, BusError, Message
from breakwater_gateway.runtime.clock import Clock
from breakwater_gateway.runtime.metrics import Registry
from breakwater_gateway.runtime.nats_bus import connect_nats
from breakwater_gateway.runtime.telemetry import get_log
from breakwater_protocol.events import AttemptFinished, BreakerChanged
from breakwater_protocol.subjects import Subjects, encode_token
from breakwater_protocol.views import BreakerBoard

pytestmark = [pytest.mark.anyio, pytest.mark.nats]

SUBJECTS = Subjects()
TARGET = "openai/gpt-4.1"
DEPLOYMENT = Deployment(
    id=TARGET, provider="p", model="m", wire="openai", base_url="http://localhost"
)
PATIENCE_S = 20.0


class Server(Protocol):
    url: str

    def kill(self) -> None: ...
    def start(self) -> None: ...
    def lose_data(self) -> None: ...


def config(open_s: float) -> Config:
    return Config({"m": Model("m", (DEPLOYMENT,), breaker=BreakerPolicy(open_s=open_s))})


class Listener:
    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.changes: list[BreakerChanged] = []
        self.board = BreakerBoard()
        self._more = asyncio.Event()

    def hear(self, message: Message) -> None:
        changed = SUBJECTS.health.decode(message.data)
        self.changes.append(changed)
        self.board.fold(changed)
        self._more.set()

    async def until(self, state: str, epoch: int) -> BreakerChanged:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                for change in self.changes:
                    if (change.state, change.epoch) == (state, epoch):
                        return change
                self._more.clear()
                await self._more.wait()

    def attempt(self, outcome: str, *, epoch: int = 0) -> None:
        event = AttemptFinished(
            request="r",
            attempt=1,
            tenant="t",
            model="m",
            deployment=TARGET,
            target=TARGET,
            provider="p",
            worker="w",
            outcome=outcome,
            at=0.0,
            epoch=epoch,
            against_target=outcome != "ok",
        )
        self.bus.publish(SUBJECTS.attempt.at(TARGET, outcome), SUBJECTS.attempt.encode(event))

    async def until_kept(self, epoch: int) -> None:
        """The bucket is written right after the event; nothing tells when, so ask."""
        store = await self.bus.store(HEALTH_BUCKET)
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    async with asyncio.timeout(0.5):
                        entry = await store.get(encode_token(TARGET))
                except (BusError, TimeoutError):
                    entry = None  # the connection is coming back
                if entry and entry.value and SUBJECTS.health.decode(entry.value).epoch == epoch:
                    return
                await asyncio.sleep(0.01)


@asynccontextmanager
async def listening(url: str) -> AsyncIterator[Listener]:
    bus = await connect_nats(url, name="listener", role="test")
    try:
        listener = Listener(bus)
        await bus.subscribe(SUBJECTS.health.any(), listener.hear)
        await bus.flush()
        yield listener
    finally:
        await bus.close()


@asynccontextmanager
async def running(url: str, name: str, config_: Config) -> AsyncIterator[Health]:
    bus = await connect_nats(url, name=f"health/{name}", role="health")
    context = Context(
        id=name,
        bus=bus,
        subjects=SUBJECTS,
        clock=Clock(seed=1),
        log=get_log(),
        metrics=Registry(),
        config=config_,
    )
    health = Health(context)
    try:
        async with anyio.create_task_group() as tasks:
            await health.start(tasks)
            await bus.flush()
            yield health
            await health.stop()
            tasks.cancel_scope.cancel()
    finally:
        await bus.close()


async def test_a_breaker_opens_is_probed_and_closes(nats_server: Callable[..., Server]) -> None:
    url = nats_server().url
    async with listening(url) as listener, running(url, "h1", config(0.2)):
        for _ in range(5):
            listener.attempt("server_error")
        await listener.until("open", 1)
        for epoch in (2, 3, 4):
            await listener.until("half_open", epoch)
            listener.attempt("ok", epoch=epoch)
        await listener.until("closed", 5)
        await listener.until_kept(5)


async def test_a_drained_leader_is_succeeded_by_one_that_goes_on(
    nats_server: Callable[..., Server],
) -> None:
    url = nats_server().url
    async with AsyncExitStack() as stack:
        listener = await stack.enter_async_context(listening(url))
        first = await stack.enter_async_context(running(url, "h1", config(2.0)))
        second = await stack.enter_async_context(running(url, "h2", config(2.0)))
        for _ in range(5):
            listener.attempt("server_error")
        opened = await listener.until("open", 1)
        await first.drain()
        await listener.until("half_open", 2)
        assert first.context.clock.wall() >= opened.until
        listener.attempt("ok", epoch=2)
        await listener.until("half_open", 3)
        assert second.load().view_hash == listener.board.hash()
        assert [change.epoch for change in listener.changes] == [1, 2, 3]


@pytest.mark.parametrize("data_lost", [False, True], ids=["data kept", "data lost"])
async def test_a_killed_server_comes_back_and_the_breaker_goes_on(
    nats_server: Callable[..., Server], *, data_lost: bool
) -> None:
    server = nats_server()
    async with listening(server.url) as listener, running(server.url, "h1", config(1.0)):
        for _ in range(5):
            listener.attempt("server_error")
        await listener.until("open", 1)
        await listener.until_kept(1)
        server.kill()
        if data_lost:
            server.lose_data()
        server.start()
        # A listener that is still reconnecting may miss the event; the bucket is what heals it.
        await listener.until_kept(2)


async def test_a_newcomer_after_everyone_died_goes_on_from_the_bucket(
    nats_server: Callable[..., Server],
) -> None:
    url = nats_server().url
    async with listening(url) as listener:
        async with running(url, "h1", config(0.5)):
            for _ in range(5):
                listener.attempt("server_error")
            await listener.until_kept(1)
        async with running(url, "h2", config(0.5)):
            await listener.until("half_open", 2)
