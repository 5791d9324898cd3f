"""The ledger's actors in virtual time: group commit, takeover, fencing, expiry, clocks, rollback, events."""

import asyncio

import msgspec
import pytest
from tests.actors.ledger_stage import (
    LINE,
    SUBJECTS,
    TOKEN,
    books,
    lease,
    ledger_stage,
    operate,
    report,
    say,
)
from tests.virtual_time import START, VirtualTimeLoop

from breakwater_gateway.config.model import Budget
from breakwater_gateway.ledger.actor import AUDIT_S
from breakwater_gateway.ledger.lending import EXPIRES_S
from breakwater_gateway.ledger.writer import SNAPSHOT_S
from breakwater_gateway.runtime.bus import (
    AskTimeout,
    BusError,
    EventLog,
    Message,
    NoResponders,
    Stored,
)
from breakwater_protocol.ledger import (
    Amount,
    Done,
    Exhausted,
    Granted,
    LeaseAsk,
    LeaseReply,
    Limit,
    Line,
    Record,
    Refused,
    Release,
    Reported,
    Resume,
    SetLimit,
    partition_token,
)

pytestmark = pytest.mark.anyio

MIDNIGHT = 1_795_046_400.0
"""2026-11-19, UTC."""


def before(instant: float) -> float:
    """The zero of a stage that begins a minute before it."""
    return instant - 60.0 - START


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return ("asyncio", {"loop_factory": VirtualTimeLoop})


async def test_what_is_lent_is_in_the_log_before_it_is_answered() -> None:
    async with ledger_stage("a") as stage:
        reply = await lease(stage.bus, "r/1/1")
        assert isinstance(reply, Granted)
        assert reply.amount.tokens == 10
        stored = stage.log.messages[-1]
        assert stored.seq == reply.seq
        record = msgspec.json.decode(stored.data, type=Record)
        assert [type(op).__name__ for op in record.ops] == [
            "OpenLine", "SetLineLimit", "Grant", "Lead",
        ]  # fmt: skip
        assert await report(stage.bus, "r/1/1", 7, final=True) == Reported(reply.seq + 1)
        found = await books(stage.bus, hash=True)
        assert [(line.committed, line.held) for line in found.lines] == [(7, 0)]
        assert found.hash


async def test_asks_that_come_together_share_a_record() -> None:
    async with ledger_stage("a") as stage:
        line = Line("org:acme", "tokens", "day@UTC", Limit(10_000))
        replies = await asyncio.gather(
            *(lease(stage.bus, f"r{n}/1/1", line, least=10) for n in range(200))
        )
        lent = [reply.amount.tokens for reply in replies if isinstance(reply, Granted)]
        assert len(lent) == 200
        assert len(stage.log.messages) <= 3
        found = await books(stage.bus, account="org:acme", leases=True)
        assert found.lines[0].held == sum(lent)
        assert len(found.leases) == 200


async def test_a_standby_takes_over_with_the_same_books() -> None:
    async with ledger_stage("a", "b") as stage:
        first = await lease(stage.bus, "r/1/1")
        await report(stage.bus, "r/1/1", 4)
        before = await books(stage.bus)
        await stage.instances["a"].kill()
        again = await lease(stage.bus, "r/1/1")
        assert isinstance(first, Granted)
        assert isinstance(again, Granted)
        assert again.amount == first.amount
        after = await books(stage.bus)
        assert after.lines[0].committed == before.lines[0].committed == 4
        assert after.lines[0].held == before.lines[0].held
        assert (before.writer, after.writer) == ("a", "b")


async def test_a_writer_that_was_cut_off_is_refused_and_answers_nothing() -> None:
    async with ledger_stage("a", "b") as stage:
        a = stage.instances["a"]
        granted = await lease(stage.bus, "r/1/1")
        answers: list[str] = []
        answer = a.ledger.answer
        a.memory.cut_off()
        # It believes in its lease for as long as a test wants it to.
        a.ledger._leadership._lease._until = float("inf")
        while (await books(stage.bus)).writer != "b":  # noqa: ASYNC110 - asked, not told
            await asyncio.sleep(0.1)
        written = len(stage.log.messages)
        a.ledger.answer = lambda reply, data: answers.append(reply) or answer(reply, data)  # type: ignore[func-returns-value, method-assign]
        a.memory.mend()
        a.ledger._leadership._leading = True
        a.ledger._writers[int(TOKEN[1:])].leading = True
        a.ledger._leadership._lease._until = float("inf")
        heard = a.ledger._hears(a.ledger._writers[int(TOKEN[1:])], SUBJECTS.lease)
        ask = LeaseAsk("r/1/2", (LINE,), Amount(tokens=5), Amount(tokens=5))
        heard(Message("x", msgspec.json.encode(ask), reply="nobody"))
        await asyncio.sleep(5)
        assert answers == []
        assert len(stage.log.messages) == written
        assert not a.ledger._leadership._leading
        assert isinstance(granted, Granted)
        assert isinstance(await lease(stage.bus, "r/1/2"), Granted)
        assert (await books(stage.bus)).writer == "b"


class Doubtful(EventLog):
    """A log whose next append is not confirmed."""

    def __init__(self, inner: EventLog, *, stores: bool) -> None:
        self.inner = inner
        self.stores = stores
        self.armed = True

    async def append(
        self, subject: str, data: bytes, *, expected: int, timeout_s: float = 2.0
    ) -> int:
        if self.armed:
            self.armed = False
            if self.stores:
                await self.inner.append(subject, data, expected=expected)
            raise AskTimeout("no answer")
        return await self.inner.append(subject, data, expected=expected, timeout_s=timeout_s)

    async def last(self, subject: str) -> Stored | None:
        return await self.inner.last(subject)

    async def read(self, pattern: str, *, after: int, limit: int = 256) -> list[Stored]:
        return await self.inner.read(pattern, after=after, limit=limit)

    async def trim(self, subject: str, *, keep: int) -> None:
        await self.inner.trim(subject, keep=keep)


@pytest.mark.parametrize("stores", [True, False])
async def test_an_append_without_an_answer_is_looked_up_in_the_log(stores: bool) -> None:
    async with ledger_stage("a") as stage:
        ledger = stage.instances["a"].ledger
        await lease(stage.bus, "r/1/1")
        ledger.event_log = Doubtful(ledger.event_log, stores=stores)
        reply = await lease(stage.bus, "r/1/2")
        assert isinstance(reply, Granted)
        followed = [name for name, _ in stage.instances["a"].logged.events].count("lead_lost")
        assert followed == (0 if stores else 1)
        held = (await books(stage.bus)).lines[0].held
        assert held == 20


class Unhurried(Doubtful):
    """A log that has the next append at once, and confirms it when it is let."""

    def __init__(self, inner: EventLog) -> None:
        super().__init__(inner, stores=True)
        self.stored, self.let = asyncio.Event(), asyncio.Event()

    async def append(
        self, subject: str, data: bytes, *, expected: int, timeout_s: float = 2.0
    ) -> int:
        seq = await self.inner.append(subject, data, expected=expected, timeout_s=timeout_s)
        if self.armed:
            self.armed = False
            self.stored.set()
            await self.let.wait()
        return seq


async def test_a_standby_that_was_made_the_leader_while_it_read_on_folds_nothing_of_its_own() -> (
    None
):
    async with ledger_stage("a") as stage:
        await lease(stage.bus, "r/1/1")
        ledger = stage.instances["a"].ledger
        writer = next(each for each in ledger._writers if each.book.lines)
        ledger.event_log = log = Unhurried(ledger.event_log)
        asking = asyncio.create_task(lease(stage.bus, "r/1/2"))
        await log.stored.wait()
        await writer.follow()
        log.let.set()
        assert isinstance(await asking, Granted)
        assert writer.broken == ""
        assert stage.alerts == []
        assert (await books(stage.bus)).lines[0].held == 20


async def test_a_lease_that_nobody_reports_counts_as_spent_whole() -> None:
    async with ledger_stage("a") as stage:
        await lease(stage.bus, "r/1/1")
        await lease(stage.bus, "r/1/2")
        for _ in range(20):
            await asyncio.sleep(1)
            await report(stage.bus, "r/1/2", 1)
        line = (await books(stage.bus)).lines[0]
        assert (line.committed, line.held) == (10 + 1, 9)
        assert await report(stage.bus, "r/1/1", 3) == Reported(
            stage.log.messages[-1].seq, ("r/1/1",)
        )
        await report(stage.bus, "r/1/1", 3, final=True)
        assert (await books(stage.bus)).lines[0].committed == 3 + 1


async def test_after_a_takeover_holders_have_the_whole_time_to_report_again() -> None:
    async with ledger_stage("a", "b") as stage:
        await lease(stage.bus, "r/1/1")
        await asyncio.sleep(EXPIRES_S - 3)
        await stage.instances["a"].kill()
        await asyncio.sleep(EXPIRES_S - 3)
        assert (await books(stage.bus)).lines[0].held == 10
        await asyncio.sleep(6)
        assert (await books(stage.bus)).lines[0].held == 0


async def test_soft_and_hard_events_are_told_once_over_three_restarts() -> None:
    async with ledger_stage("a") as stage:
        line = Line("user:acme/alice", "tokens", "day@UTC", Limit(10, (500_000, 800_000)))
        await lease(stage.bus, "r/1/1", line)
        await report(stage.bus, "r/1/1", 9)
        assert isinstance(await lease(stage.bus, "r/1/2", line), Exhausted)
        for name in ("b", "c", "d"):
            await asyncio.sleep(3)
            for instance in list(stage.instances.values()):
                await instance.kill()
            await stage.add(name)
            await asyncio.sleep(3)
            await report(stage.bus, "r/1/1", 10)
            assert isinstance(await lease(stage.bus, "r/1/3", line), Exhausted)
        assert stage.kinds("soft", "hard") == ["soft", "soft", "hard"]


async def test_a_writer_that_dies_before_telling_is_told_for_by_the_next() -> None:
    async with ledger_stage("a", "b") as stage:
        a = stage.instances["a"]
        line = Line("user:acme/alice", "tokens", "day@UTC", Limit(10))
        await lease(stage.bus, "r/1/1", line)

        async def never(*_args: object, **_facts: object) -> bool:
            raise BusError("not now")

        a.memory.publish_once = never  # type: ignore[method-assign]
        await report(stage.bus, "r/1/1", 9)
        await asyncio.sleep(2)
        assert stage.kinds("soft") == []
        await a.kill()
        await books(stage.bus)
        await asyncio.sleep(1)
        assert stage.kinds("soft") == ["soft"]


async def test_a_soft_crossing_and_a_breach_are_alerts_too() -> None:
    async with ledger_stage("a") as stage:
        line = Line("user:acme/alice", "tokens", "day@UTC", Limit(10))
        await lease(stage.bus, "r/1/1", line)
        await report(stage.bus, "r/1/1", 9)
        await report(stage.bus, "r/1/1", 12, final=True)
        await asyncio.sleep(1)
        assert sorted(alert.kind for alert in stage.alerts) == ["estimator_breach", "soft_limit"]
        assert "user:acme/alice" in stage.alerts[0].message
        assert stage.kinds("breach") == ["breach"]


async def test_grants_and_settlements_are_told_once_a_second_and_line() -> None:
    async with ledger_stage("a") as stage:
        for n in range(1, 30):
            await lease(stage.bus, f"r/1/{n}")
        await asyncio.sleep(1.5)
        assert stage.kinds() == ["grant"]
        assert stage.events[0].held == 290
        await report(stage.bus, "r/1/1", 5)
        await asyncio.sleep(1.5)
        assert stage.kinds() == ["grant", "settled"]


# --- Clocks -------------------------------------------------------------------------------------


async def until_observed(ledger: object) -> None:
    await asyncio.sleep(1.5)
    assert ledger._observed_at  # type: ignore[attr-defined]


async def test_a_clock_that_jumps_ahead_ends_no_period_and_raises_an_alert() -> None:
    async with ledger_stage("a") as stage:
        a = stage.instances["a"]
        await lease(stage.bus, "r/1/1")
        await until_observed(a.ledger)
        a.skew_s = 86_400
        reply = await lease(stage.bus, "r/1/2")
        assert isinstance(reply, Granted)
        assert reply.lines[0].period == "d:2026-11-18@UTC"
        await asyncio.sleep(2)
        assert [alert.kind for alert in stage.alerts] == ["ledger_clock"]
        assert "reset" not in stage.kinds()


async def test_a_clock_that_jumps_back_opens_no_period_again() -> None:
    async with ledger_stage("a", zero=before(MIDNIGHT)) as stage:
        a = stage.instances["a"]
        await lease(stage.bus, "r/1/1")
        await until_observed(a.ledger)
        await asyncio.sleep(120)
        first = await lease(stage.bus, "r/1/2")
        a.skew_s = -86_400
        stage.hub.wall = lambda: stage.wall() - 86_400
        second = await lease(stage.bus, "r/1/3")
        for reply in (first, second):
            assert isinstance(reply, Granted)
            assert reply.lines[0].period == "d:2026-11-19@UTC"


async def test_a_period_ends_when_both_clocks_say_so_and_is_announced() -> None:
    async with ledger_stage("a", zero=before(MIDNIGHT - 3600)) as stage:
        line = Line("user:acme/alice", "tokens", "day@Europe/Berlin", Limit(10))
        await lease(stage.bus, "r/1/1", line)
        await report(stage.bus, "r/1/1", 10, final=True)
        refused = await lease(stage.bus, "r/1/2", line)
        assert isinstance(refused, Exhausted)
        await asyncio.sleep(refused.resets_in_s - 1)
        assert isinstance(await lease(stage.bus, "r/1/3", line), Exhausted)
        assert "reset" not in stage.kinds()
        await asyncio.sleep(3)
        assert "reset" in stage.kinds()
        reply = await lease(stage.bus, "r/1/4", line)
        assert isinstance(reply, Granted)
        assert reply.lines[0].period == "d:2026-11-19@Europe/Berlin"


# --- The log --------------------------------------------------------------------------------------


async def test_a_log_that_was_rolled_back_lends_nothing_until_an_operator_resumes_it() -> None:
    async with ledger_stage("a") as stage:
        await lease(stage.bus, "r/1/1")
        lost = await lease(stage.bus, "r/1/2")
        assert isinstance(lost, Granted)
        await stage.instances["a"].kill()
        stage.log.messages.pop()
        await stage.add("b")
        refused = await lease(stage.bus, "r/1/3", seen_seq=lost.seq + 1)
        assert isinstance(refused, Refused)
        assert refused.reason == "safe_mode"
        assert [alert.kind for alert in stage.alerts] == ["ledger_rollback"]
        reply = await report(stage.bus, "r/1/2", 5, seen_seq=lost.seq + 1)
        assert isinstance(reply, Reported)
        assert reply.claim == ("r/1/2",)
        assert (await books(stage.bus)).safe
        done = await operate(stage.bus, Resume("op", "compared"))
        assert isinstance(done, Done)
        assert isinstance(await lease(stage.bus, "r/1/3", seen_seq=lost.seq + 1), Granted)


async def test_books_come_back_from_a_snapshot_when_the_log_s_beginning_is_gone() -> None:
    async with ledger_stage("a") as stage:
        await lease(stage.bus, "r/1/1")
        await report(stage.bus, "r/1/1", 6, final=True)
        await asyncio.sleep(SNAPSHOT_S + 2)
        await lease(stage.bus, "r/1/2")
        await stage.instances["a"].kill()
        del stage.log.messages[:2]
        await stage.add("b")
        line = (await books(stage.bus)).lines[0]
        assert (line.committed, line.held) == (6, 10)


async def test_a_log_that_ends_before_the_snapshot_was_rolled_back() -> None:
    async with ledger_stage("a") as stage:
        await lease(stage.bus, "r/1/1")
        await report(stage.bus, "r/1/1", 6, final=True)
        await asyncio.sleep(SNAPSHOT_S + 2)
        await stage.instances["a"].kill()
        stage.log.messages.pop()
        await stage.add("b")
        refused = await lease(stage.bus, "r/1/2")
        assert isinstance(refused, Refused)
        assert refused.reason == "safe_mode"
        assert (await books(stage.bus)).lines[0].committed == 6
        assert [alert.kind for alert in stage.alerts] == ["ledger_rollback"]
        assert isinstance(await operate(stage.bus, Resume("op")), Done)
        assert isinstance(await lease(stage.bus, "r/1/2"), Granted)
        await asyncio.sleep(1)
        await stage.instances["b"].kill()
        await stage.add("c")
        line = (await books(stage.bus)).lines[0]
        assert (line.committed, line.held) == (6, 10)
        assert isinstance(await lease(stage.bus, "r/1/3"), Granted)


async def test_a_log_with_a_hole_is_not_led_and_raises_an_alert() -> None:
    async with ledger_stage("a") as stage:
        for n in range(1, 4):
            await lease(stage.bus, f"r/1/{n}")
        await stage.instances["a"].kill()
        del stage.log.messages[1]
        await stage.add("b")
        await asyncio.sleep(5)
        assert [alert.kind for alert in stage.alerts] == ["ledger_broken"]
        with pytest.raises(TimeoutError):
            await say(stage.bus, SUBJECTS.books.at(TOKEN), b"{}", LeaseReply, patience_s=5)


async def test_an_audit_finds_books_that_are_not_what_the_log_says() -> None:
    async with ledger_stage("a") as stage:
        await lease(stage.bus, "r/1/1")
        await asyncio.sleep(AUDIT_S + 10)
        assert stage.alerts == []
        writer = stage.instances["a"].ledger._writers[int(TOKEN[1:])]
        line = next(iter(writer.book.lines.values()))
        next(iter(line.buckets.values())).committed += 1
        await asyncio.sleep(AUDIT_S + 10)
        assert [alert.kind for alert in stage.alerts] == ["audit"]


async def test_a_claim_that_the_books_cannot_have_right_raises_an_alert() -> None:
    async with ledger_stage("a") as stage:
        await lease(stage.bus, "r/1/1")
        await report(stage.bus, "r/9/1", 5)
        await asyncio.sleep(0.1)
        assert [alert.kind for alert in stage.alerts] == ["audit"]


# --- Operators and strangers ----------------------------------------------------------------------


async def test_an_operator_sets_limits_and_releases_leases() -> None:
    async with ledger_stage("a") as stage:
        await lease(stage.bus, "r/1/1")
        await report(stage.bus, "r/1/1", 2, in_flight=3)
        assert isinstance(await operate(stage.bus, Release("r/1/1", "op", "gone")), Done)
        line = (await books(stage.bus)).lines[0]
        assert (line.committed, line.held) == (5, 0)
        change = SetLimit("user:acme/alice", "tokens", "day@UTC", 5, "op")
        assert isinstance(await operate(stage.bus, change), Done)
        refused = await lease(stage.bus, "r/1/2", least=1)
        assert isinstance(refused, Exhausted)
        assert (await books(stage.bus)).lines[0].override


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b"[]", b"\xff\xfe", b'{"lease": 1}', b'{"lease":"r/1/1","path":[],"min":{},"want":{}}',
     b"x" * 300_000],
)  # fmt: skip
async def test_garbage_is_refused_and_leaves_the_log_alone(data: bytes) -> None:
    async with ledger_stage("a") as stage:
        reply = await say(stage.bus, SUBJECTS.lease.at(TOKEN), data, LeaseReply)
        assert isinstance(reply, Refused)
        assert reply.message
        assert not stage.log.messages


async def test_an_account_is_refused_in_another_partition() -> None:
    async with ledger_stage("a") as stage:
        other = partition_token((int(TOKEN[1:]) + 1) % 16)
        ask = msgspec.json.encode(
            {
                "lease": "r/1/1",
                "path": [msgspec.to_builtins(LINE)],
                "min": {"tokens": 1},
                "want": {},
            }
        )
        reply = await say(stage.bus, SUBJECTS.lease.at(other), ask, LeaseReply)
        assert isinstance(reply, Refused)
        assert reply.reason == "wrong_partition"


async def test_a_drained_ledger_hands_over_at_once() -> None:
    async with ledger_stage("a", "b") as stage:
        await lease(stage.bus, "r/1/1")
        now = asyncio.get_running_loop().time()
        await stage.instances["a"].ledger.drain()
        stage.instances["a"].scope.cancel()
        assert isinstance(await lease(stage.bus, "r/1/2"), Granted)
        assert asyncio.get_running_loop().time() - now < 1.5


async def test_without_a_ledger_nobody_answers_at_once() -> None:
    async with ledger_stage() as stage:
        with pytest.raises(NoResponders):
            await stage.bus.ask(SUBJECTS.lease.at(TOKEN), b"{}", timeout_s=5)


BUDGET = Budget(
    scope="user", id="*", unit="tokens", hard=10, per="day", webhook="http://127.0.0.1:9/hook"
)


async def test_a_webhook_is_called_for_a_crossing_and_delays_nobody() -> None:
    async with ledger_stage() as stage:
        instance = await stage.add("a", BUDGET)
        called: list[str] = []

        async def post(address: str, body: bytes, _where: object) -> bool:
            called.append(f"{address} {msgspec.json.decode(body)['account']}")
            return len(called) == 3

        instance.ledger._hooks._post = post  # type: ignore[method-assign, assignment]
        line = Line("user:acme/alice", "tokens", "day@UTC", Limit(10))
        await lease(stage.bus, "r/1/1", line)
        await report(stage.bus, "r/1/1", 9)
        await asyncio.sleep(60)
        assert called == ["http://127.0.0.1:9/hook user:acme/alice"] * 3
