"""The ledger's actors under an adversary: cut off, killed, woken and deceived at any moment, over many seeds.

Two instances share one log; what is asked may be lost, repeated and answered late; an append's answer may be
lost whether it was stored or not; and a deposed writer may believe in its lease. Whatever happens, no more is
lent than the limit, nothing is lent twice, and what was answered is in the log. That these tests can fail is
shown by mistakes made in the writer on purpose.
"""

import asyncio
import random
from collections.abc import Callable

import msgspec
import pytest
from tests.actors.ledger_stage import SUBJECTS, TOKEN, Instance, Stage, books, ledger_stage
from tests.virtual_time import VirtualTimeLoop

from breakwater_gateway.ledger import writer as writing
from breakwater_gateway.ledger.book import Book, LogBroken
from breakwater_gateway.ledger.snapshot import state_hash
from breakwater_gateway.ledger.writer import Writer
from breakwater_gateway.runtime.bus import AskTimeout, EventLog, NoResponders, Stored
from breakwater_protocol.ledger import (
    Amount,
    Grant,
    Granted,
    LeaseAsk,
    LeaseReply,
    LeaseReport,
    Limit,
    Line,
    Record,
    Reports,
)

pytestmark = pytest.mark.anyio

HARD = 60
LINE = Line("user:acme/alice", "tokens", "month@UTC", Limit(HARD))
SEEDS = 40
STEPS = 25


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return ("asyncio", {"loop_factory": VirtualTimeLoop})


class Deceitful(EventLog):
    """A log some of whose answers are lost, with what they answered or without."""

    def __init__(self, inner: EventLog, rng: random.Random) -> None:
        self.inner = inner
        self.rng = rng
        self.honest = False

    async def append(
        self, subject: str, data: bytes, *, expected: int, timeout_s: float = 2.0
    ) -> int:
        await asyncio.sleep(self.rng.choice((0.0, 0.001, 0.05)))
        fate = 1.0 if self.honest else self.rng.random()
        if fate < 0.08:
            raise AskTimeout("lost on the way there")
        seq = await self.inner.append(subject, data, expected=expected, timeout_s=timeout_s)
        if fate < 0.16:
            raise AskTimeout("lost on the way back")
        return seq

    async def last(self, subject: str) -> Stored | None:
        if not self.honest and self.rng.random() < 0.1:
            raise AskTimeout("no answer")
        return await self.inner.last(subject)

    async def read(self, pattern: str, *, after: int, limit: int = 256) -> list[Stored]:
        return await self.inner.read(pattern, after=after, limit=limit)

    async def trim(self, subject: str, *, keep: int) -> None:
        await self.inner.trim(subject, keep=keep)


class Life:
    """One seed's run."""

    def __init__(self, stage: Stage, seed: int) -> None:
        self.stage = stage
        self.rng = random.Random(seed)
        self.granted: dict[str, Granted] = {}
        self.spent: dict[str, int] = {}
        self.over: set[str] = set()
        self.next = 0
        self.instances = 0
        self.asking: set[asyncio.Task[None]] = set()

    async def add(self) -> None:
        self.instances += 1
        instance = await self.stage.add(f"i{self.instances}")
        instance.ledger.event_log = Deceitful(instance.ledger.event_log, self.rng)

    def live(self) -> list[Instance]:
        return [each for each in self.stage.instances.values() if not each.scope.cancel_called]

    def step(self) -> None:
        match self.rng.choice(
            ("ask", "ask", "ask", "report", "report", "cut", "mend", "believe", "pause")
        ):
            case "ask":
                again = self.rng.random() < 0.3 and self.next
                if not again:
                    self.next += 1
                number = self.rng.randint(1, self.next) if again else self.next
                self.spawn(self.ask(f"r/1/{number}"))
            case "report":
                self.spawn(self.report())
            case "cut":
                instance = self.rng.choice(self.live())
                instance.memory.cut_off()
                if self.rng.random() < 0.5:
                    self.believe(instance)
            case "mend":
                for instance in self.live():
                    if instance.memory.cut:
                        instance.memory.mend()
            case "pause":
                self.spawn(self.pause())
            case "believe":
                self.believe(self.rng.choice(self.live()))

    async def pause(self) -> None:
        """Whoever leads stands still until another leads, and wakes among asks."""
        instance = next((each for each in self.live() if each.ledger.leads()), None)
        if instance is None or instance.memory.cut:
            return
        instance.memory.cut_off()
        lease = instance.ledger._leadership._lease
        lease._until = float("inf")
        await asyncio.sleep(self.rng.choice((3.5, 5)))
        if not instance.scope.cancel_called:
            instance.memory.mend()
            for _ in range(3):
                self.next += 1
                self.spawn(self.ask(f"r/1/{self.next}"))

    def believe(self, instance: Instance) -> None:
        """It takes itself for the leader for some time yet, as after a pause."""
        lease = instance.ledger._leadership._lease
        lease._until = asyncio.get_running_loop().time() + self.rng.choice((1, 5, 8))

    def spawn(self, work: object) -> None:
        task = asyncio.ensure_future(work)  # type: ignore[call-overload]
        self.asking.add(task)
        task.add_done_callback(self.asking.discard)

    async def ask(self, lease: str) -> None:
        ask = LeaseAsk(lease, (LINE,), Amount(tokens=self.rng.randint(1, 6)), Amount(tokens=6))
        for _ in range(self.rng.choice((1, 1, 2))):
            reply = await self.say(SUBJECTS.lease.at(TOKEN), ask, LeaseReply)
            if isinstance(reply, Granted):
                known = self.granted.setdefault(lease, reply)
                assert known.amount == reply.amount, "one lease, two amounts"

    async def report(self) -> None:
        going = sorted(set(self.granted) - self.over)
        if not going:
            return
        lease = self.rng.choice(going)
        amount = self.granted[lease].amount.tokens
        self.spent[lease] = self.rng.randint(self.spent.get(lease, 0), amount)
        final = self.rng.random() < 0.3
        if final:
            self.over.add(lease)
        report = LeaseReport(lease, Amount(tokens=self.spent[lease]), final=final)
        await self.say(SUBJECTS.report.at(TOKEN), Reports((report,)), object)

    async def say(self, subject: str, message: object, reply: object) -> object:
        try:
            answer = await self.stage.bus.ask(subject, msgspec.json.encode(message), timeout_s=1.0)
        except (NoResponders, AskTimeout):
            return None
        return msgspec.json.decode(answer.data, type=reply)

    def check(self) -> None:
        """What was answered is in the log, once; and the log never lends more than the limit."""
        book, lent = Book(), {}
        for stored in self.stage.log.messages:
            record = msgspec.json.decode(stored.data, type=Record)
            book.fold(record)
            for op in record.ops:
                if isinstance(op, Grant):
                    assert op.lease not in lent, "lent twice"
                    lent[op.lease] = op.amount
            for line in book.lines.values():
                assert line.committed + line.held <= HARD, "more than the limit"
        for id_, reply in self.granted.items():
            assert lent.get(id_) == reply.amount, "answered, and not in the log"

    async def rest(self) -> None:
        """All is well again: somebody leads, and its book is what the log says."""
        for instance in self.live():
            log = instance.ledger.event_log
            assert isinstance(log, Deceitful)
            log.honest = True
            if instance.memory.cut:
                instance.memory.mend()
        await asyncio.sleep(8)
        found = await books(self.stage.bus, hash=True)
        book = Book()
        for stored in self.stage.log.messages:
            if stored.seq <= found.seq:
                book.fold(msgspec.json.decode(stored.data, type=Record))
        assert state_hash(book) == found.hash


async def live(seed: int) -> None:
    async with ledger_stage() as stage:
        life = Life(stage, seed)
        await life.add()
        await life.add()
        for _ in range(STEPS):
            life.step()
            await asyncio.sleep(life.rng.choice((0.0, 0.002, 0.05, 0.7, 2.0)))
            if life.rng.random() < 0.05:
                await life.rng.choice(life.live()).kill()
                await life.add()
            life.check()
        while life.asking:
            await asyncio.wait(set(life.asking))
        life.check()
        await life.rest()
        life.check()


@pytest.mark.parametrize("seed", range(SEEDS))
async def test_whatever_happens_the_log_and_the_answers_agree(seed: int) -> None:
    await live(seed)


# --- Mistakes made on purpose ---------------------------------------------------------------------


def answers_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer leaves before its record is in the log."""
    append = Writer._append

    async def lying(self: Writer, record: Record) -> int:
        for op in record.ops:
            if isinstance(op, Grant):
                self._shell.answer(
                    inbox_of[op.lease],
                    msgspec.json.encode(self.book_reply(op)),  # type: ignore[attr-defined]
                )
        return await append(self, record)

    inbox_of: dict[str, str] = {}
    ask = Writer.ask

    def noting(self: Writer, asked: writing.Asked) -> None:
        if isinstance(asked.message, LeaseAsk):
            inbox_of[asked.message.lease] = asked.reply
        ask(self, asked)

    def book_reply(_self: Writer, op: Grant) -> Granted:
        return Granted(op.lease, op.amount, 0, (), 15.0)

    monkeypatch.setattr(Writer, "ask", noting)
    monkeypatch.setattr(Writer, "book_reply", book_reply, raising=False)
    monkeypatch.setattr(Writer, "_append", lying)


def writes_unfenced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the log's end is, it appends."""
    append = Deceitful.append

    async def unfenced(
        self: Deceitful, subject: str, data: bytes, *, expected: int, timeout_s: float = 2.0
    ) -> int:
        last = await self.inner.last(subject)
        expected = last.seq if last is not None else 0
        return await append(self, subject, data, expected=expected, timeout_s=timeout_s)

    monkeypatch.setattr(Deceitful, "append", unfenced)


def believes_in_what_was_not_confirmed(monkeypatch: pytest.MonkeyPatch) -> None:
    """An append without an answer counts as done."""

    async def hopeful(self: Writer, _id: str) -> int:
        return self.seq + 1

    monkeypatch.setattr(Writer, "_landed", hopeful)


def goes_on_with_a_dirty_book(monkeypatch: pytest.MonkeyPatch) -> None:
    """It steps down, and keeps the decisions that the log has not."""

    def keep(self: Writer) -> None:
        self.leading = False
        self._queue.clear()

    monkeypatch.setattr(Writer, "step_down", keep)


@pytest.mark.parametrize(
    "mistake",
    [
        answers_first,
        writes_unfenced,
        believes_in_what_was_not_confirmed,
        goes_on_with_a_dirty_book,
    ],
)
async def test_a_mistake_in_the_writer_is_caught(
    mistake: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    mistake(monkeypatch)
    for seed in range(3 * SEEDS):
        try:
            await live(seed)
        except Exception as error:
            if not any(isinstance(each, CAUGHT) for each in leaves(error)):
                raise
            return
    pytest.fail("nobody noticed")


CAUGHT = (AssertionError, TimeoutError, LogBroken)


def leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for each in error.exceptions for leaf in leaves(each)]
    return [error]
