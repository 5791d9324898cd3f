"""Who leads, on the memory bus and in virtual time."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
from tests.actors.leading_stage import KEY, Candidate, Harbour, held_by
from tests.virtual_time import VirtualTimeLoop

from breakwater_gateway.runtime.bus import AskTimeout, BusClosed
from breakwater_gateway.runtime.clock import Clock
from breakwater_gateway.runtime.leading import (
    CALL_S,
    LEASE_BUCKET,
    LEASE_S,
    MARGIN_S,
    RENEW_S,
    Lease,
)
from breakwater_gateway.runtime.memory_bus import MemoryBus, MemoryHub

pytestmark = pytest.mark.anyio

FAILOVER_S = LEASE_S + RENEW_S + 0.01


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return ("asyncio", {"loop_factory": VirtualTimeLoop})


class Stage(Harbour):
    def __init__(self, tasks: anyio.abc.TaskGroup) -> None:
        super().__init__(tasks)
        self.hub = MemoryHub()

    async def start(self, name: str) -> Candidate:
        return await self.add(name, MemoryBus(name, self.hub))

    def bus(self, name: str) -> MemoryBus:
        bus = self.candidates[name].bus
        assert isinstance(bus, MemoryBus)
        return bus


class SlowBus(MemoryBus):
    delay_s = 0.0

    async def reach(self, timeout_s: float = 5.0) -> None:
        await asyncio.sleep(self.delay_s)
        await super().reach(timeout_s)


@asynccontextmanager
async def stage(*names: str) -> AsyncIterator[Stage]:
    async with anyio.create_task_group() as tasks:
        here = Stage(tasks)
        for name in names:
            await here.start(name)
        yield here
        for candidate in here.candidates.values():
            await candidate.leadership.close()
        tasks.cancel_scope.cancel()


async def test_the_first_leads_for_as_long_as_it_lives_and_the_others_wait() -> None:
    async with stage("a", "b", "c") as here:
        await anyio.sleep(3600)
        assert here.story == ["a reads", "a leads"]
        assert here.leaders() == ["a"]
        assert await held_by(MemoryBus("x", here.hub)) == b"a"


async def test_who_is_cut_off_leads_no_more_before_another_begins() -> None:
    async with stage("a", "b") as here:
        here.bus("a").cut_off()
        await anyio.sleep(LEASE_S - MARGIN_S)
        assert here.leaders() == []
        await anyio.sleep(FAILOVER_S)
        assert here.leaders() == ["b"]
        here.bus("a").mend()
        await anyio.sleep(10)
        assert here.leaders() == ["b"]
        # It follows though the bus is gone; what needs the bus to end waits for it.
        assert here.story == ["a reads", "a leads", "a follows", "b reads", "b leads", "a leaves"]


async def test_a_cut_shorter_than_the_lease_costs_nothing() -> None:
    async with stage("a", "b") as here:
        await anyio.sleep(RENEW_S - 0.01)
        here.bus("a").cut_off()
        await anyio.sleep(1.0)
        assert here.leaders() == ["a"]
        here.bus("a").mend()
        await anyio.sleep(10)
        assert here.story == ["a reads", "a leads"]


async def test_who_stood_still_for_too_long_does_not_lead_at_the_moment_it_wakes() -> None:
    async with stage("a") as here:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        first = here.candidates["a"]
        loop.advance(LEASE_S)
        assert not first.leads()
        assert first.leadership.stands
        await here.told("a leads", times=2)
        assert here.story[2:] == ["a follows", "a leaves", "a reads", "a leads"]
        assert first.generations[0] < first.generations[1]


async def test_reading_up_for_longer_than_a_lease_lives_does_not_cost_it() -> None:
    async with stage() as here:
        slow = here.candidate("a", MemoryBus("a", here.hub))
        slow.reads_s = slow.begins_s = 5 * LEASE_S
        await slow.leadership.start(here.tasks)
        await here.start("b")
        assert here.story == ["a reads", "a leads"]
        assert slow.leads()


async def test_reading_up_ends_when_the_lease_is_lost_meanwhile() -> None:
    async with stage() as here:
        slow = here.candidate("a", MemoryBus("a", here.hub))
        slow.reads_s = 60.0
        here.tasks.start_soon(slow.leadership.start, here.tasks)
        await here.told("a reads")
        here.bus("a").cut_off()
        await here.start("b")
        await here.told("b leads")
        assert here.story[:3] == ["a reads", "a follows", "a follows"]
        await anyio.sleep(120)
        assert "a leads" not in here.story


async def test_who_lost_it_while_it_began_is_told_once_more_at_the_end() -> None:
    async with stage() as here:
        slow = here.candidate("a", MemoryBus("a", here.hub))
        slow.begins_s = 60.0
        here.tasks.start_soon(slow.leadership.start, here.tasks)
        await here.told("a reads")
        await anyio.sleep(1)
        here.bus("a").cut_off()
        await here.told("a follows")
        here.bus("a").mend()
        await here.told("a reads", times=2, patience_s=120)
        # Nothing is taken over again before what had begun has ended.
        assert here.story[1:] == ["a follows", "a leads", "a follows", "a leaves", "a reads"]


async def test_what_cannot_be_read_is_tried_again() -> None:
    async with stage() as here:
        candidate = here.candidate("a", MemoryBus("a", here.hub))
        candidate.fails = [AskTimeout("no answer"), TimeoutError()]
        await candidate.leadership.start(here.tasks)
        assert not candidate.leads()
        await here.told("a leads")
        assert here.story.count("a reads") == 3
        assert here.leaders() == ["a"]


@pytest.mark.parametrize("error", [BusClosed("for good"), ZeroDivisionError("a bug")])
async def test_what_is_no_fault_of_the_store_ends_the_campaign(error: Exception) -> None:
    async def campaign() -> None:
        async with stage("a", "b") as here:
            here.candidates["b"].fails = [error]
            here.candidates["a"].leadership.retire()
            await here.candidates["a"].leadership.resign("drained")
            await anyio.sleep(60)

    with pytest.raises(ExceptionGroup) as caught:
        await campaign()
    assert caught.value.exceptions == (error,)


async def test_draining_keeps_the_lead_until_it_is_handed_over_at_once() -> None:
    async with stage("a", "b") as here:
        first = here.candidates["a"].leadership
        first.retire()
        await anyio.sleep(10 * LEASE_S)
        assert here.leaders() == ["a"]
        await first.resign("drained")
        assert await held_by(here.bus("b")) is None
        await anyio.sleep(RENEW_S + 0.01)
        assert here.leaders() == ["b"]
        await here.candidates["b"].leadership.close()
        await anyio.sleep(60)
        assert here.leaders() == []  # who has retired stands for it no more
        assert here.story[:4] == ["a reads", "a leads", "a follows", "a leaves"]


async def test_who_drains_while_it_reads_up_does_not_lead() -> None:
    async with stage() as here:
        slow = here.candidate("a", MemoryBus("a", here.hub))
        slow.reads_s = 5.0
        here.tasks.start_soon(slow.leadership.start, here.tasks)
        await here.told("a reads")
        slow.leadership.retire()
        await slow.leadership.resign("drained")
        await anyio.sleep(60)
        assert "a leads" not in here.story
        assert await held_by(slow.bus) is None


async def test_an_owner_that_finds_itself_fenced_out_takes_over_anew() -> None:
    async with stage("a", "b") as here:
        here.candidates["a"].leadership.lose("another has written")
        assert here.leaders() == []
        await anyio.sleep(RENEW_S + 0.01)
        assert here.leaders() == ["a"]
        assert here.story[2:] == ["a follows", "a leaves", "a reads", "a leads"]


async def test_a_renewal_that_landed_without_an_answer_is_still_ours() -> None:
    hub = MemoryHub()
    bus = MemoryBus("a", hub)
    lease = Lease(bus, Clock(), KEY, "a", ttl_s=LEASE_S)
    assert await lease.hold()
    first = lease.generation
    # As the server has it after an update whose answer was lost.
    store = await bus.store(LEASE_BUCKET)
    entry = await store.get(KEY)
    assert entry is not None
    await store.update(KEY, b"a", revision=entry.revision, ttl_s=LEASE_S)
    assert await lease.hold()
    assert lease.generation == first


async def test_a_renewal_confirmed_after_the_lease_had_lapsed_begins_another_lead() -> None:
    """Whoever looked meanwhile saw nobody lead, and has begun nothing."""

    bus = SlowBus("a", MemoryHub())
    lease = Lease(bus, Clock(), KEY, "a", ttl_s=LEASE_S)
    assert await lease.hold()
    first = lease.generation
    bus.delay_s = 2 * MARGIN_S / 4
    await asyncio.sleep(LEASE_S - MARGIN_S - bus.delay_s / 2)
    assert lease.held()
    assert await lease.hold(), "the server took it in time"
    assert lease.generation > first


async def test_who_gives_a_lease_back_too_late_leaves_the_next_one_s_alone() -> None:
    hub = MemoryHub()
    bus = SlowBus("a", hub)
    lease = Lease(bus, Clock(), KEY, "a", ttl_s=LEASE_S)
    assert await lease.hold()
    await asyncio.sleep(LEASE_S - 2 * MARGIN_S)
    bus.delay_s = 1.0
    giving = asyncio.create_task(lease.release())
    await asyncio.sleep(3 * MARGIN_S)
    following = MemoryBus("b", hub)
    assert await Lease(following, Clock(), KEY, "b", ttl_s=LEASE_S).hold()
    await giving
    assert await held_by(following) == b"b"


async def test_a_renewal_that_came_after_all_and_ended_another_s_lease_gives_no_lead() -> None:
    """As where a server has lost its data, counts anew, and gave the other one the revision that it names."""
    hub = MemoryHub()
    mine, other = MemoryBus("a", hub), MemoryBus("b", hub)
    lease = Lease(mine, Clock(), KEY, "a", ttl_s=LEASE_S)
    assert await lease.hold()
    mine.cut_off()
    await asyncio.sleep(LEASE_S)
    following = Lease(other, Clock(), KEY, "b", ttl_s=LEASE_S)
    assert await following.hold()
    store = await other.store(LEASE_BUCKET)
    entry = await store.get(KEY)
    assert entry is not None
    await store.update(KEY, b"a", revision=entry.revision, ttl_s=LEASE_S)
    mine.mend()
    assert following.held(), "it cannot know yet"
    assert not await lease.hold()
    assert not await following.hold()
    await asyncio.sleep(LEASE_S)
    assert await lease.hold()


async def test_a_lease_is_asked_for_in_time_to_ask_once_more() -> None:
    bus = MemoryBus("a", MemoryHub())
    lease = Lease(bus, Clock(), KEY, "a", ttl_s=LEASE_S)
    loop = asyncio.get_running_loop()
    for held, patience_s in ((False, CALL_S), (True, 0.5)):
        if held:
            bus.mend()
            assert await lease.hold()
        bus.cut_off()
        began = loop.time()
        with pytest.raises(TimeoutError):
            await lease.hold()
        assert loop.time() - began == pytest.approx(patience_s)


@pytest.mark.parametrize("seed", range(40))
async def test_never_two_and_in_the_end_one(seed: int) -> None:
    """Connections come and go, owners find themselves fenced out: no two lead at any instant."""
    rng = random.Random(seed)
    names = ("a", "b", "c")
    async with stage(*names) as here:
        took = here.candidates["a"].generations
        for candidate in here.candidates.values():
            candidate.generations = took
            candidate.reads_s = rng.choice((0.0, 0.3, 4.0))
        here.bus("a").cut_off()
        cut = {"a"}
        for _ in range(60):
            name = rng.choice(names)
            what = rng.choice(("cut", "mend", "lose", "wait", "wait"))
            if what == "cut" and name not in cut:
                here.bus(name).cut_off()
                cut.add(name)
            elif what == "mend" and name in cut:
                here.bus(name).mend()
                cut.discard(name)
            elif what == "lose":
                here.candidates[name].leadership.lose("fenced")
            for _ in range(rng.randrange(1, 200)):
                await anyio.sleep(0.01)
                assert len(here.leaders()) <= 1
        for name in cut:
            here.bus(name).mend()
        await anyio.sleep(30)
        assert len(here.leaders()) == 1
        assert took == sorted(took)
        assert len(set(took)) > 1
