import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import ClassVar

import anyio
import anyio.lowlevel
import msgspec
import pytest
from anyio.abc import TaskGroup
from tests.virtual_time import VirtualTimeLoop

from breakwater_gateway.config.model import Config
from breakwater_gateway.runtime.actor import Actor, Context, Load
from breakwater_gateway.runtime.bus import (
    Bus,
    BusClosed,
    BusUnreachable,
    Entry,
    Message,
    NoResponders,
)
from breakwater_gateway.runtime.clock import Clock
from breakwater_gateway.runtime.memory_bus import MemoryBus, MemoryHub
from breakwater_gateway.runtime.service import ConfigHolder
from breakwater_gateway.runtime.slot import BACKOFF_CAP_S, ActorSpec, restart_delay_s
from breakwater_gateway.runtime.supervisor import StartRefused, Supervisor
from breakwater_gateway.runtime.telemetry import Registry, get_log
from breakwater_protocol.events import Heartbeat
from breakwater_protocol.subjects import Subjects

pytestmark = pytest.mark.anyio
SUBJECTS = Subjects()


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}


class Part(Actor):
    """An actor that serves `bw.v1.work.<name>` and does as it is told."""

    kind: ClassVar[str] = "part"

    def __init__(self, context: Context, stage: "Stage", name: str) -> None:
        super().__init__(context)
        self.stage = stage
        self.name = name
        self.broken = anyio.Event()
        self.error: Exception = RuntimeError("broken on purpose")
        self.drain_s = 0.0
        self.load_error: Exception | None = None
        self.seen: list[int] = []

    async def start(self, tasks: TaskGroup) -> None:
        self.stage.story.append(f"start {self.name}")
        if (error := self.stage.start_errors.get(self.name)) is not None:
            raise error
        bus = self.context.bus
        await bus.subscribe(f"bw.v1.work.{self.name}", self.answer, queue="q")
        store = await bus.store("b")
        await store.watch(self.see)
        bus.on_reconnect(lambda: self.stage.story.append(f"reconnect {self.name}"))
        tasks.start_soon(self.work)
        self.stage.parts[self.name] = self

    async def work(self) -> None:
        await self.broken.wait()
        raise self.error

    def answer(self, message: Message) -> None:
        self.context.bus.publish(message.reply, str(id(self)).encode())

    def see(self, entry: Entry) -> None:
        self.seen.append(entry.revision)

    async def drain(self) -> None:
        self.draining = True
        self.stage.story.append(f"drain {self.name}")
        await anyio.sleep(self.drain_s)
        self.stage.story.append(f"drained {self.name}")

    async def stop(self) -> None:
        self.stage.story.append(f"stop {self.name}")

    def load(self) -> Load:
        if self.load_error is not None:
            raise self.load_error
        return Load(capacity=8, in_flight=3, pools=("eu",), view_hash="v1")


class Stage:
    """A supervisor of parts on a memory bus, and what happened to them."""

    def __init__(self, *names: str, drain_s: float = 60.0) -> None:
        self.story: list[str] = []
        self.parts: dict[str, Part] = {}
        self.start_errors: dict[str, Exception] = {}
        self.beats: list[tuple[float, Heartbeat]] = []
        self.hub = MemoryHub()
        self.bus = MemoryBus("process", self.hub)
        self.observer = MemoryBus("observer", self.hub)
        self.metrics = Registry()
        self.log = get_log()
        self.config = ConfigHolder(
            b"", lambda _: Config(models={}), log=self.log, metrics=self.metrics
        )
        self.connects: list[Bus | Exception] = []
        self.code: int | None = None
        connect: Callable[[], Awaitable[Bus]] = self.connect
        self.supervisor = Supervisor(
            self.bus,
            SUBJECTS,
            [ActorSpec(name, self.factory(name), id=f"{name}-1") for name in names],
            self.config,
            metrics=self.metrics,
            log=self.log,
            connect=connect,
            clock=Clock(seed=7),
            signals=False,
            drain_s=drain_s,
        )

    def factory(self, name: str) -> Callable[[Context], Actor]:
        return lambda context: Part(context, self, name)

    async def connect(self) -> Bus:
        self.story.append("connect")
        found = self.connects.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    def hear(self, message: Message) -> None:
        beat = SUBJECTS.heartbeat.decode(message.data)
        assert message.subject == f"bw.v1.hb.{beat.actor}.{beat.id}"
        self.beats.append((asyncio.get_running_loop().time(), beat))

    async def ask(self, name: str) -> bytes:
        return (await self.observer.ask(f"bw.v1.work.{name}", timeout_s=1.0)).data

    async def run(self) -> None:
        self.code = await self.supervisor.run()


@asynccontextmanager
async def running(stage: Stage) -> AsyncIterator[Stage]:
    await stage.observer.subscribe(SUBJECTS.heartbeat.any(), stage.hear)
    async with anyio.create_task_group() as group:
        group.start_soon(stage.run)
        await anyio.sleep(0.1)
        yield stage
        if not stage.supervisor.draining:
            stage.supervisor.drain()


async def test_actors_start_in_order_and_serve() -> None:
    async with running(Stage("health", "worker", "router")) as stage:
        assert stage.story == ["start health", "start worker", "start router"]
        assert stage.supervisor.ready() == {}
        assert await stage.ask("worker")
    assert stage.code == 0


async def test_heartbeats_come_twice_a_second_and_say_how_an_actor_is() -> None:
    async with running(Stage("worker")) as stage:
        await anyio.sleep(10)
    times = [at for at, beat in stage.beats if not beat.draining]
    assert len(times) == pytest.approx(21, abs=1)
    beat = stage.beats[5][1]
    assert (beat.actor, beat.id, beat.capacity, beat.in_flight) == ("worker", "worker-1", 8, 3)
    assert (beat.pools, beat.view_hash) == (["eu"], "v1")
    assert beat.uptime_s == pytest.approx(2, abs=0.6)
    assert beat.version


async def test_a_crashing_actor_comes_back_and_leaves_its_neighbours_alone() -> None:
    async with running(Stage("health", "worker", "router")) as stage:
        before = {name: await stage.ask(name) for name in stage.parts}
        broken = stage.parts["worker"]
        broken.broken.set()
        await anyio.sleep(0.001)
        assert "failed (RuntimeError)" in stage.supervisor.ready()["worker"]
        with pytest.raises(NoResponders):
            await stage.ask("worker")
        await anyio.sleep(1)
        after = {name: await stage.ask(name) for name in stage.parts}
        assert stage.supervisor.ready() == {}
    assert after["health"] == before["health"]
    assert after["router"] == before["router"]
    assert stage.parts["worker"] is not broken
    assert stage.story[3:6] == ["stop worker", "start worker", "drain router"] or stage.story[
        3:5
    ] == ["stop worker", "start worker"]


async def test_nothing_of_an_ended_life_stays_on_the_bus() -> None:
    async with running(Stage("worker")) as stage:
        old = stage.parts["worker"]
        for _ in range(3):
            stage.parts["worker"].broken.set()
            await anyio.sleep(3)
        answers = {await stage.ask("worker") for _ in range(50)}
        assert answers == {str(id(stage.parts["worker"])).encode()}
        store = await stage.observer.store("b")
        await store.put("k", b"v")
        await anyio.sleep(0.1)
        stage.bus.cut_off()
        stage.bus.mend()
        await anyio.sleep(0.1)
        assert old.seen == []
        assert stage.parts["worker"].seen
        assert stage.story.count("reconnect worker") == 1


async def test_an_actor_that_cannot_start_is_tried_again_while_others_serve() -> None:
    stage = Stage("health", "worker")
    stage.start_errors["health"] = RuntimeError("no stream yet")
    async with running(stage):
        assert await stage.ask("worker")
        assert list(stage.supervisor.ready()) == ["health"]
        del stage.start_errors["health"]
        await anyio.sleep(BACKOFF_CAP_S)
        assert stage.supervisor.ready() == {}
        assert stage.story.count("start health") >= 2
        assert "stop health" in stage.story


async def test_what_the_machine_refuses_at_first_start_refuses_the_whole_start() -> None:
    stage = Stage("health", "edge", "worker")
    stage.start_errors["edge"] = OSError(98, "Address already in use")
    with pytest.raises(StartRefused, match=r"edge cannot start: .*Address already in use"):
        await stage.supervisor.run()
    assert stage.story == ["start health", "start edge", "stop edge", "stop health"]
    assert not stage.bus.connected


async def test_a_machine_that_refuses_later_is_asked_again() -> None:
    async with running(Stage("edge")) as stage:
        stage.start_errors["edge"] = OSError(98, "Address already in use")
        stage.parts["edge"].broken.set()
        await anyio.sleep(5)
        del stage.start_errors["edge"]
        await anyio.sleep(BACKOFF_CAP_S)
        assert stage.supervisor.ready() == {}


async def test_every_actor_is_a_micro_service_with_what_it_serves() -> None:
    async with running(Stage("router", "worker")) as stage:
        await stage.ask("worker")
        stats = await stage.observer.ask("$SRV.STATS.breakwater-worker.worker-1", timeout_s=1)
        found = msgspec.json.decode(stats.data)
        assert found["name"] == "breakwater-worker"
        (endpoint,) = found["endpoints"]
        assert (endpoint["name"], endpoint["subject"]) == ("work", "bw.v1.work.worker")
        assert (endpoint["num_requests"], endpoint["queue_group"]) == (1, "q")
        pings = []
        await stage.observer.subscribe("pings", lambda message: pings.append(message.data))
        stage.observer.publish("$SRV.PING", reply="pings")
        await anyio.sleep(0.1)
        assert len(pings) == 2


async def test_a_failing_load_report_restarts_only_that_actor() -> None:
    async with running(Stage("router", "worker")) as stage:
        stage.parts["worker"].load_error = ValueError("bad sum")
        await anyio.sleep(2)
        assert stage.story[2:4] == ["stop worker", "start worker"]
        assert stage.supervisor.ready() == {}


async def test_the_gauge_of_live_actors_and_the_count_of_restarts_follow() -> None:
    async with running(Stage("worker")) as stage:
        up = stage.metrics.gauge("breakwater_actor_up", actor="worker")
        assert up.value == 1
        stage.parts["worker"].broken.set()
        await anyio.lowlevel.checkpoint()
        await anyio.sleep(0.001)
        assert up.value == 0
        await anyio.sleep(1)
        assert up.value == 1
        restarts = stage.metrics.counter("breakwater_actor_restarts_total", actor="worker")
        assert restarts.value == 1
    assert up.value == 0


async def test_a_bus_closed_for_good_ends_all_actors_and_a_fresh_one_starts_them() -> None:
    async with running(Stage("router", "worker")) as stage:
        stage.connects = [
            BusUnreachable("no server at nats://127.0.0.1:4222"),
            RuntimeError("a bug in connecting"),
            MemoryBus("process", stage.hub),
        ]
        before = await stage.ask("worker")
        await stage.bus.close()
        await anyio.sleep(5)
        assert stage.story.count("connect") == 3
        assert await stage.ask("worker") != before
        assert stage.supervisor.ready() == {}
        assert stage.story[2:4] in (["stop router", "stop worker"], ["stop worker", "stop router"])
    assert stage.code == 0


async def test_a_machine_that_refuses_on_a_fresh_bus_is_asked_again() -> None:
    async with running(Stage("edge")) as stage:
        stage.connects = [MemoryBus("process", stage.hub)]
        stage.start_errors["edge"] = OSError(98, "Address already in use")
        await stage.bus.close()
        await anyio.sleep(5)
        del stage.start_errors["edge"]
        await anyio.sleep(BACKOFF_CAP_S)
        assert stage.supervisor.ready() == {}


async def test_an_actor_that_meets_the_closed_bus_ends_the_session_at_once() -> None:
    async with running(Stage("router", "worker")) as stage:
        stage.connects = [MemoryBus("process", stage.hub)]
        part = stage.parts["worker"]
        part.error = BusClosed("gone")
        part.broken.set()
        await anyio.sleep(1)
        assert stage.story.count("start router") == 2
        assert stage.supervisor.ready() == {}


async def test_a_bus_that_says_it_is_closed_need_not_be_found_out() -> None:
    async with running(Stage("worker")) as stage:
        stage.connects = [MemoryBus("process", stage.hub)]
        stage.supervisor.bus_closed("maximum payload violation")
        await anyio.sleep(0.001)
        assert "stop worker" in stage.story
        assert stage.supervisor.ready()["bus"] == "not connected"


async def test_the_wish_to_leave_ends_the_wait_for_a_bus() -> None:
    async with running(Stage("worker")) as stage:
        stage.connects = [BusUnreachable("gone")] * 1000
        await stage.bus.close()
        await anyio.sleep(60)
    assert stage.code == 0


async def test_each_wave_says_in_a_heartbeat_at_once_that_it_leaves() -> None:
    """A worker that is still needed by its process's router must not look as if it had left."""
    async with running(Stage("edge", "worker")) as stage:
        for part in stage.parts.values():
            part.drain_s = 5
        stage.beats.clear()
        begun = asyncio.get_running_loop().time()
        stage.supervisor.drain()
        await anyio.sleep(0.01)
        assert {(at, beat.actor, beat.draining) for at, beat in stage.beats} == {
            (begun, "edge", True),
            (begun, "worker", False),
        }
        assert stage.supervisor.ready()["process"] == "draining"
        await anyio.sleep(5.5)
        assert (begun + 5, "worker", True) in {
            (at, beat.actor, beat.draining) for at, beat in stage.beats
        }
    # And they go on until the end.
    assert stage.beats[-1][0] == pytest.approx(begun + 10, abs=0.6)


async def test_who_takes_requests_leaves_before_those_it_depends_on() -> None:
    async with running(Stage("health", "worker", "router", "edge")) as stage:
        for part in stage.parts.values():
            part.drain_s = 2
        stage.story.clear()
    drains = [line for line in stage.story if line.startswith("drain")]
    assert drains == [
        f"{word} {name}"
        for name in ("edge", "router", "worker", "health")
        for word in ("drain", "drained")
    ]
    assert sorted(stage.story[8:]) == ["stop edge", "stop health", "stop router", "stop worker"]
    assert stage.code == 0
    assert not stage.bus.connected


async def test_a_slow_wave_leaves_time_for_the_next_ones() -> None:
    stage = Stage("edge", "router", "worker", drain_s=60.0)
    loop = asyncio.get_running_loop()
    async with running(stage):
        stage.parts["edge"].drain_s = 1_000
        stage.parts["worker"].drain_s = 5
        begun = loop.time()
    assert loop.time() == pytest.approx(begun + 60, abs=0.1)
    assert "drained worker" in stage.story
    assert "drained edge" not in stage.story
    assert stage.story[-1].startswith("stop")
    assert stage.code == 0


async def test_a_second_signal_stops_at_once() -> None:
    loop = asyncio.get_running_loop()
    async with running(Stage("edge", "worker")) as stage:
        stage.parts["edge"].drain_s = 1_000
        begun = loop.time()
        stage.supervisor.drain()
        await anyio.sleep(3)
        stage.supervisor.drain()
    assert loop.time() == pytest.approx(begun + 3, abs=0.1)
    assert "stop edge" in stage.story
    assert stage.code == 0


async def test_a_failing_drain_holds_nobody_up() -> None:
    loop = asyncio.get_running_loop()
    async with running(Stage("edge", "worker")) as stage:

        async def refuse() -> None:
            raise RuntimeError("cannot drain")

        stage.parts["edge"].drain = refuse  # type: ignore[method-assign]
        begun = loop.time()
    assert loop.time() == pytest.approx(begun, abs=0.1)
    assert "drained worker" in stage.story


async def test_an_actor_that_dies_while_draining_is_neither_waited_for_nor_restarted() -> None:
    loop = asyncio.get_running_loop()
    async with running(Stage("edge", "worker")) as stage:
        stage.parts["edge"].drain_s = 1_000
        begun = loop.time()
        stage.supervisor.drain()
        await anyio.sleep(1)
        stage.parts["edge"].broken.set()
    assert loop.time() == pytest.approx(begun + 1, abs=0.1)
    assert stage.story.count("start edge") == 1


async def test_backoff_grows_with_failures_in_a_row_and_is_forgotten_after_a_healthy_minute() -> (
    None
):
    async with running(Stage("worker")) as stage:
        slot = stage.supervisor._slots[0]
        for expected in (1, 2, 3):
            stage.parts["worker"].broken.set()
            await anyio.sleep(10)
            assert slot.failures == expected
        await anyio.sleep(60)
        stage.parts["worker"].broken.set()
        await anyio.sleep(10)
        assert slot.failures == 1


def test_a_restart_waits_a_drawn_part_of_a_doubling_and_capped_time() -> None:
    table = [(1, 0.25), (2, 0.5), (3, 1.0), (7, 16.0), (8, 30.0), (10_000, 30.0)]
    assert [restart_delay_s(n, draw=1.0) for n, _ in table] == [top for _, top in table]
    draw = random.Random(1).random()
    assert restart_delay_s(3, draw=draw) == draw * 1.0
    assert restart_delay_s(3, draw=0.0) == 0.0
