"""Health on the memory bus, in virtual time: one leader decides, everybody follows."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import TaskGroup
from tests.virtual_time import START, VirtualTimeLoop

from breakwater_gateway.config.model import BreakerPolicy, Config, Deployment, Model
from breakwater_gateway.health.actor import HEALTH_BUCKET, Health
from breakwater_gateway.runtime.actor import Context
from breakwater_gateway.runtime.bus import Message
from breakwater_gateway.runtime.clock import Clock
from breakwater_gateway.runtime.leading import LEASE_S, RENEW_S
from breakwater_gateway.runtime.memory_bus import MemoryBus, MemoryHub
from breakwater_gateway.runtime.metrics import Registry
from breakwater_protocol.commands import ProbeClaim
from breakwater_protocol.events import AttemptFinished, BreakerChanged, Evidence
from breakwater_protocol.subjects import Subjects, encode_token
from breakwater_protocol.views import BreakerBoard

pytestmark = pytest.mark.anyio

SUBJECTS = Subjects()
WALL = 1_700_000_000.0
FAILOVER_S = LEASE_S + 2 * RENEW_S
A, B = "openai/gpt-4.1", "b"


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return ("asyncio", {"loop_factory": VirtualTimeLoop})


def config(*targets: str, policy: BreakerPolicy | None = None) -> Config:
    deployments = tuple(
        Deployment(id=t, provider="p", model="m", wire="openai", base_url="http://localhost")
        for t in targets
    )
    return Config({"m": Model("m", deployments, breaker=policy or BreakerPolicy())})


class NoLog:
    """Keeps the names of events."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def _note(self, event: str, **facts: object) -> None:
        self.events.append(event)

    debug = info = warning = error = exception = _note


class Cluster:
    """Some instances of health on one hub, and a listener that is never cut off."""

    def __init__(self, tasks: TaskGroup) -> None:
        self.hub = MemoryHub()
        self.tasks = tasks
        self.listener = MemoryBus("listener", self.hub)
        self.messages: list[Message] = []
        self.board = BreakerBoard()
        self.heard = anyio.Event()
        self.logs: dict[str, NoLog] = {}
        self.buses: dict[str, MemoryBus] = {}
        self.metrics: dict[str, Registry] = {}

    def claim(self, *, epoch: int, target: str = A) -> None:
        claim = SUBJECTS.probe.encode(ProbeClaim("router"))
        self.listener.publish(SUBJECTS.probe.at(target, str(epoch)), claim)

    async def listen(self) -> None:
        await self.listener.subscribe(SUBJECTS.health.any(), self._hear)

    def _hear(self, message: Message) -> None:
        self.messages.append(message)
        self.board.fold(SUBJECTS.health.decode(message.data))
        self.heard.set()

    @property
    def changes(self) -> list[BreakerChanged]:
        return [SUBJECTS.health.decode(message.data) for message in self.messages]

    @property
    def story(self) -> list[tuple[str, int]]:
        return [(change.state, change.epoch) for change in self.changes]

    async def start(self, name: str, config_: Config, *, clock: Clock | None = None) -> Health:
        self.logs[name] = NoLog()
        self.buses[name] = MemoryBus(name, self.hub)
        self.metrics[name] = Registry()
        health = Health(
            Context(
                id=name,
                bus=self.buses[name],
                subjects=SUBJECTS,
                clock=clock or Clock(seed=1, wall=wall),
                log=self.logs[name],
                metrics=self.metrics[name],
                config=config_,
            )
        )
        await health.start(self.tasks)
        return health

    def leaders(self) -> list[str]:
        found = []
        for name, log in self.logs.items():
            turns = [e for e in log.events if e in {"lead_taken", "lead_lost"}]
            if turns and turns[-1] == "lead_taken":
                found.append(name)
        return found

    async def attempts(self, story: str, target: str = A, *, epoch: int = 0) -> None:
        """`s` a success, `f` a failure, `r` a 429, `c` cancelled, `x` failed in a stall of the worker's."""
        outcomes = {
            "s": ("ok", False, False),
            "f": ("server_error", True, False),
            "r": ("rate_limited", False, False),
            "c": ("cancelled", False, False),
            "x": ("first_token_timeout", True, True),
        }
        for letter in story:
            outcome, against, stalled = outcomes[letter]
            self.listener.publish(
                SUBJECTS.attempt.at(target, outcome),
                attempt(outcome, target, epoch=epoch, against=against, stalled=stalled),
            )
        await self.settled()

    async def settled(self) -> None:
        """Everything that can happen without time passing has happened."""
        for _ in range(20):
            await anyio.lowlevel.checkpoint()

    async def until(self, state: str, target: str = A) -> None:
        with anyio.fail_after(1_000.0):
            while not (last := self.board.last(target)) or last.state != state:
                self.heard = anyio.Event()
                await self.heard.wait()

    async def kept(self, target: str = A) -> BreakerChanged | None:
        store = await self.listener.store(HEALTH_BUCKET)
        entry = await store.get(encode_token(target))
        return SUBJECTS.health.decode(entry.value) if entry and entry.value else None


def wall() -> float:
    return WALL + anyio.current_time() - START


def attempt(
    outcome: str,
    target: str = A,
    *,
    epoch: int = 0,
    against: bool = False,
    stalled: bool = False,
) -> bytes:
    return SUBJECTS.attempt.encode(
        AttemptFinished(
            request="r",
            attempt=1,
            tenant="t",
            model="m",
            deployment=target,
            target=target,
            provider="p",
            worker="w",
            outcome=outcome,
            at=wall(),
            epoch=epoch,
            against_target=against,
            in_stall=stalled,
        )
    )


def opened(target: str, *, epoch: int, for_s: float) -> BreakerChanged:
    return BreakerChanged(
        target=target,
        state="open",
        cause="operator",
        evidence=Evidence(),
        until=wall() + for_s,
        epoch=epoch,
        previous="closed",
        at=wall(),
    )


@asynccontextmanager
async def cluster() -> AsyncIterator[Cluster]:
    async with anyio.create_task_group() as tasks:
        made = Cluster(tasks)
        await made.listen()
        yield made
        tasks.cancel_scope.cancel()


async def test_failures_in_a_row_open_the_breaker_for_all_to_hear() -> None:
    async with cluster() as c:
        await c.start("h1", config(A, B))
        await c.attempts("fffff")
        (message,) = c.messages
        (change,) = c.changes
        assert message.subject == SUBJECTS.health.at(A, "open")
        assert (change.target, change.state, change.cause) == (A, "open", "consecutive")
        assert (change.previous, change.epoch, change.evidence.failures) == ("closed", 1, 5)
        assert 2.5 <= change.until - change.at <= 5.0
        assert message.headers["ce-type"] == "breakwater.breaker.changed"
        assert message.headers["ce-source"] == "health/h1"
        assert message.headers["Nats-Msg-Id"] == message.headers["ce-id"]
        assert message.headers["ce-id"].isascii()
        assert await c.kept() == change
        assert c.board.state(B, wall()) == "closed"


async def test_what_is_not_the_targets_fault_opens_nothing() -> None:
    async with cluster() as c:
        await c.start("h1", config(A))
        await c.attempts("r" * 20 + "c" * 20 + "x" * 20)
        assert c.messages == []


async def test_an_open_breaker_asks_for_probes_and_three_successes_close_it() -> None:
    async with cluster() as c:
        await c.start("h1", config(A))
        await c.attempts("fffff")
        await c.until("half_open")
        assert wall() == pytest.approx(c.changes[0].until, abs=0.02)
        for epoch in (2, 3, 4):
            await c.attempts("s", epoch=epoch)
        assert c.story == [
            ("open", 1),
            ("half_open", 2),
            ("half_open", 3),
            ("half_open", 4),
            ("closed", 5),
        ]
        assert await c.kept() == c.changes[-1]


async def test_a_failed_probe_opens_it_for_longer() -> None:
    async with cluster() as c:
        await c.start("h1", config(A))
        await c.attempts("fffff")
        for epoch, longest in ((2, 10), (4, 20), (6, 40)):
            await c.until("half_open")
            await c.attempts("f", epoch=epoch)
            change = c.changes[-1]
            assert (change.state, change.cause) == ("open", "probe_failed")
            assert longest / 2 <= change.until - change.at <= longest


async def test_results_of_calls_from_before_it_opened_say_nothing_now() -> None:
    async with cluster() as c:
        await c.start("h1", config(A))
        await c.attempts("fffff")
        await c.until("half_open")
        await c.attempts("sssfff", epoch=0)
        await c.attempts("sssfff", epoch=1)
        assert c.story == [("open", 1), ("half_open", 2)]


async def test_a_probe_that_never_reports_makes_room_for_another() -> None:
    async with cluster() as c:
        await c.start("h1", config(A))
        await c.attempts("fffff")
        await c.until("half_open")
        await anyio.sleep(200.0)
        assert c.story[-1] == ("half_open", 2)  # nobody came by
        c.claim(epoch=2)
        await anyio.sleep(64.0)
        c.claim(epoch=2)  # in vain
        assert c.story[-1] == ("half_open", 2)
        await anyio.sleep(2.0)
        assert c.story[-1] == ("half_open", 3)
        assert c.changes[-1].cause == "probe_expired"
        await c.attempts("f", epoch=2)
        assert c.story[-1] == ("half_open", 3)


async def test_an_hours_wait_is_woken_to_the_second() -> None:
    hour = BreakerPolicy(open_s=3_600.0, open_cap_s=3_600.0)
    async with cluster() as c:
        await c.start("h1", config(A, policy=hour))
        await c.attempts("fffff")
        first = c.changes[0]
        await anyio.sleep(first.until - wall() + 0.001)
        assert first.until - first.at >= 1_800.0
        assert [change.state for change in c.changes] == ["open", "half_open"]


async def test_one_timer_serves_all_breakers() -> None:
    names = [f"d{i}" for i in range(50)]

    class Counting(Clock):
        def __init__(self) -> None:
            super().__init__(seed=2, wall=wall)
            self.handles: list[asyncio.TimerHandle] = []

        def call_at(self, when: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
            self.handles.append(super().call_at(when, callback))
            return self.handles[-1]

    async with cluster() as c:
        clock = Counting()
        await c.start("h1", config(*names), clock=clock)
        for name in names:
            await c.attempts("fffff", name)
        live = [handle for handle in clock.handles if not handle.cancelled()]
        assert len(live) == 1
        for name in names:
            await c.until("half_open", name)


async def test_only_one_of_several_instances_speaks() -> None:
    async with cluster() as c:
        for name in ("h1", "h2", "h3"):
            await c.start(name, config(A))
        await c.attempts("fffff")
        await c.until("half_open")
        assert c.story == [("open", 1), ("half_open", 2)]
        assert c.leaders() == ["h1"]


async def test_a_standby_takes_over_with_state_epoch_and_what_is_left_of_an_opening() -> None:
    slow = BreakerPolicy(open_s=60.0)
    async with cluster() as c:
        await c.start("h1", config(A, policy=slow))
        await c.start("h2", config(A, policy=slow))
        await c.attempts("fffff")
        c.buses["h1"].cut_off()
        await anyio.sleep(FAILOVER_S)
        assert c.leaders() == ["h2"]
        await c.until("half_open")
        assert wall() == pytest.approx(c.changes[0].until, abs=0.02)
        assert c.story == [("open", 1), ("half_open", 2)]
        await c.attempts("s", epoch=2)
        assert c.story[-1] == ("half_open", 3)


async def test_a_standby_counts_what_it_heard_while_nobody_led() -> None:
    async with cluster() as c:
        await c.start("h1", config(A))
        await c.start("h2", config(A))
        c.buses["h1"].cut_off()
        await c.attempts("fffff")
        assert c.story == []
        await anyio.sleep(FAILOVER_S)
        assert c.story == [("open", 1)]


async def test_a_change_that_was_heard_but_not_kept_is_kept_by_the_successor() -> None:
    async with cluster() as c:
        await c.start("h1", config(A))
        await c.start("h2", config(A))
        await c.settled()
        c.buses["h1"].cut_off()
        last_words = opened(A, epoch=7, for_s=60.0)
        c.listener.publish(SUBJECTS.health.at(A, "open"), SUBJECTS.health.encode(last_words))
        await anyio.sleep(FAILOVER_S)
        assert await c.kept() == last_words
        await c.until("half_open")
        assert c.story == [("open", 7), ("half_open", 8)]


async def test_an_actor_restarted_under_its_own_name_leads_on_at_once() -> None:
    async with cluster() as c:
        await c.start("h1", config(A))
        c.buses["h1"].cut_off()
        await c.start("h1", config(A))
        assert c.leaders() == ["h1"]


async def test_a_value_deleted_by_somebody_else_is_kept_again_with_the_next_change() -> None:
    async with cluster() as c:
        await c.start("h1", config(A))
        await c.attempts("fffff")
        await (await c.listener.store(HEALTH_BUCKET)).delete(encode_token(A))
        await c.until("half_open")
        await c.settled()
        assert await c.kept() == c.changes[-1]


async def test_a_newcomer_with_nobody_left_goes_on_from_what_was_kept() -> None:
    async with cluster() as c:
        await c.start("h1", config(A, B))
        await c.attempts("fffff")
        await anyio.sleep(0.1)
        c.buses["h1"].cut_off()
        await anyio.sleep(FAILOVER_S)
        late = await c.start("h2", config(A, B))
        assert late.load().view_hash == c.board.hash()
        await c.until("half_open")
        assert c.story == [("open", 1), ("half_open", 2)]
        assert wall() >= c.changes[0].until


async def test_an_opening_that_ended_while_nobody_led_is_probed_at_once() -> None:
    async with cluster() as c:
        await c.start("h1", config(A))
        await c.attempts("fffff")
        await anyio.sleep(0.1)
        c.buses["h1"].cut_off()
        await anyio.sleep(30.0)
        await c.start("h2", config(A))
        await anyio.sleep(0.001)
        assert c.story == [("open", 1), ("half_open", 2)]


async def test_a_leader_cut_off_stops_deciding_before_another_begins() -> None:
    async with cluster() as c:
        await c.start("h1", config(A))
        await c.start("h2", config(A))
        await c.attempts("fffff")
        c.buses["h1"].cut_off()
        await anyio.sleep(LEASE_S)
        assert "h1" not in c.leaders()
        await c.until("half_open")
        await c.attempts("s", epoch=2)
        c.buses["h1"].mend()
        await anyio.sleep(5.0)
        await c.attempts("s", epoch=3)
        await c.attempts("s", epoch=4)
        assert [epoch for _, epoch in c.story] == [1, 2, 3, 4, 5]
        assert c.leaders() == ["h2"]


async def test_a_short_cut_costs_neither_lease_nor_what_was_to_be_kept() -> None:
    async with cluster() as c:
        await c.start("h1", config(A))
        await c.start("h2", config(A))
        await c.attempts("fffff")
        c.buses["h1"].cut_off()
        await anyio.sleep(0.3)
        c.buses["h1"].mend()
        await c.until("half_open")
        await anyio.sleep(1.0)
        assert c.leaders() == ["h1"]
        assert await c.kept() == c.changes[-1]
        assert c.logs["h2"].events == []


async def test_draining_hands_over_without_waiting_for_the_lease_to_run_out() -> None:
    async with cluster() as c:
        first = await c.start("h1", config(A))
        await c.start("h2", config(A))
        await c.attempts("fffff")
        await first.drain()
        await anyio.sleep(RENEW_S + 0.01)
        assert c.leaders() == ["h2"]
        assert await c.kept() == c.changes[0]
        await c.until("half_open")
        assert c.story == [("open", 1), ("half_open", 2)]


async def test_all_who_heard_the_same_show_the_same_hash() -> None:
    async with cluster() as c:
        leader = await c.start("h1", config(A, B))
        standby = await c.start("h2", config(A, B))
        await c.attempts("fffff")
        await c.attempts("fffff", B)
        await c.until("half_open")
        assert leader.load().view_hash == standby.load().view_hash == c.board.hash()


async def test_an_owner_whose_memory_was_lost_goes_on_above_what_routers_saw() -> None:
    async with cluster() as c:
        await c.start("h1", config(A))
        await c.attempts("f", epoch=41)
        assert c.story == [("closed", 42)]
        await c.attempts("fffff", epoch=42)
        assert c.story[-1] == ("open", 43)


async def test_targets_that_leave_the_configuration_are_forgotten_everywhere() -> None:
    async with cluster() as c:
        health = await c.start("h1", config(A, B))
        await c.attempts("fffff")
        await c.attempts("fffff", B)
        await anyio.sleep(0.1)
        assert await c.kept() is not None
        health.on_config(config(B), 2)
        await anyio.sleep(0.1)
        assert await c.kept() is None
        assert await c.kept(B) is not None
        await c.attempts("fffff" * 3)
        await anyio.sleep(10.0)
        assert [change.target for change in c.changes].count(A) == 1


async def test_a_new_target_is_covered_and_a_new_policy_obeyed_from_then_on() -> None:
    async with cluster() as c:
        health = await c.start("h1", config(A))
        health.on_config(config(A, B, policy=BreakerPolicy(consecutive=2)), 2)
        await c.attempts("ff")
        await c.attempts("ff", B)
        assert [(change.target, change.state) for change in c.changes] == [(A, "open"), (B, "open")]


async def test_keys_that_are_not_ours_and_values_that_do_not_decode_hurt_nothing() -> None:
    async with cluster() as c:
        store = await c.listener.store(HEALTH_BUCKET)
        await store.put("not.a-token", b"{}")
        await store.put("gone", b"{}")
        await store.put(encode_token(A), b"\xff not json")
        strange = opened(A, epoch=9, for_s=100.0)
        await store.put(encode_token(B), SUBJECTS.health.encode(strange))
        health = await c.start("h1", config(A, B))
        assert health.load().view_hash == BreakerBoard().hash()
        await c.attempts("fffff")
        await c.attempts("fffff", B)
        await anyio.sleep(0.1)
        assert [await c.kept(A), await c.kept(B)] == c.changes
        assert "gone" not in await store.keys()


async def test_hostile_events_and_unknown_targets_hurt_nothing() -> None:
    async with cluster() as c:
        await c.start("h1", config(A))
        for data in (b"", b"{}", b"[" * 100_000, b"\xff", b"null", b'{"target":1}'):
            c.listener.publish(SUBJECTS.attempt.at(A, "ok"), data)
        await c.attempts("fffff", "somebody-elses")
        await c.attempts("fffff")
        assert c.story == [("open", 1)]
        assert c.hub.guard.failures == 0


async def test_transitions_are_counted_and_the_state_shown() -> None:
    async with cluster() as c:
        await c.start("h1", config(A))
        await c.attempts("fffff")
        await c.until("half_open")
        metrics, labels = c.metrics["h1"], {"deployment": A}
        shown = {
            state: metrics.gauge("breakwater_breaker_state", state=state, **labels).value
            for state in ("closed", "open", "half_open")
        }
        assert shown == {"closed": 0, "open": 0, "half_open": 1}
        entered = metrics.counter("breakwater_breaker_transitions_total", state="open", **labels)
        assert entered.value == 1


async def test_virtual_time_jumps_to_the_next_timer() -> None:
    before = anyio.current_time()
    order = []

    async def sleeper(seconds: float) -> None:
        await anyio.sleep(seconds)
        order.append(seconds)

    async with anyio.create_task_group() as tasks:
        for seconds in (3_600.0, 0.5, 86_400.0):
            tasks.start_soon(sleeper, seconds)
    assert order == [0.5, 3_600.0, 86_400.0]
    assert anyio.current_time() == pytest.approx(before + 86_400.0)
