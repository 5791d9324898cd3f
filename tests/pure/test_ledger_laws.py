"""The ledger's laws, over random lives of holders: lost, repeated and late messages, deaths, days, restarts.

The holders here are the simplest ones that keep the protocol: they spend from a lease what they reserved,
report what they spent, and say a last word when nothing is in flight. What really was spent at providers is
counted beside the books, which have to cover it at every step.
"""

from collections import defaultdict

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    multiple,
    precondition,
    rule,
)
from tests.pure.ledger_desk import START_MS, tokens

from breakwater_gateway.ledger.book import Book
from breakwater_gateway.ledger.lending import Teller, with_seq
from breakwater_gateway.ledger.snapshot import decode_snapshot, encode_snapshot, state_hash
from breakwater_protocol.ledger import (
    Granted,
    LeaseAsk,
    LeaseReport,
    Limit,
    Line,
    Record,
    Reports,
    SetLimit,
    account_named,
    partition,
)

HARD = {"user:acme/a": 12, "user:acme/b": 12, "org:acme": 16}
PERIODS = {"user:acme/a": "day@UTC", "user:acme/b": "day@Europe/Berlin", "org:acme": "week@UTC"}
NUMBER = partition(account_named("org:acme"))


def path(user: str) -> tuple[Line, ...]:
    return tuple(
        Line(name, "tokens", PERIODS[name], Limit(HARD[name], (500_000, 800_000), 1))
        for name in (user, "org:acme")
    )


class Held:
    """A lease as its holder knows it."""

    def __init__(self, granted: Granted, names: tuple[str, ...]) -> None:
        self.id = granted.lease
        self.amount = granted.amount.tokens
        self.buckets = tuple(
            (name, line.period) for name, line in zip(names, granted.lines, strict=True)
        )
        self.spent = 0
        self.in_flight = 0
        self.dead = False

    @property
    def left(self) -> int:
        return self.amount - self.spent - self.in_flight


class Ledger(RuleBasedStateMachine):
    leases = Bundle("leases")
    messages = Bundle("messages")

    def __init__(self) -> None:
        super().__init__()
        self.book = Book()
        self.t_ms = START_MS
        self.log: list[bytes] = []
        self.held: dict[str, Held] = {}
        self.next = 0
        self.truth: dict[tuple[str, str], int] = defaultdict(int)
        """Spent at providers, and in flight at its maximum for dead holders, by account and period."""
        self.soft: list[tuple[str, str, int, int]] = []

    def write(self, teller: Teller) -> int:
        record = teller.record(str(len(self.log)))
        if record is not None:
            self.log.append(msgspec.json.encode(record))
        for event in self.book.take_events():
            if event.kind == "soft":
                self.soft.append((event.account, event.period, event.threshold, event.generation))
        return len(self.log)

    def teller(self) -> Teller:
        return Teller(self.book, NUMBER, self.t_ms)

    # What holders do.

    @rule(
        target=messages,
        user=st.sampled_from(["user:acme/a", "user:acme/b"]),
        holder=st.integers(1, 3),
        least=st.integers(1, 8),
        want=st.integers(1, 40),
    )
    def ask(self, user: str, holder: int, least: int, want: int) -> object:
        self.next += 1
        return LeaseAsk(f"r{holder}/1/{self.next}", path(user), tokens(least), tokens(want))

    @rule(target=leases, message=messages)
    def deliver(self, message: object) -> object:
        """Once, or again; whether the answer arrives is the holder's luck, so each grant is installed once."""
        teller = self.teller()
        if isinstance(message, Reports):
            teller.report(message)
            self.write(teller)
            return multiple()
        assert isinstance(message, LeaseAsk)
        reply = with_seq(teller.ask(message), self.write(teller))
        if not isinstance(reply, Granted) or reply.lease in self.held:
            return multiple()
        found = Held(reply, tuple(line.account for line in message.path))
        self.held[reply.lease] = found
        return found

    @rule(lease=leases, count=st.integers(1, 8))
    def dispatch(self, lease: Held, count: int) -> None:
        if not lease.dead and lease.left >= count:
            lease.in_flight += count

    @rule(lease=leases, cost=st.integers(0, 40))
    def finish(self, lease: Held, cost: int) -> None:
        """All that is in flight ends, for no more than was reserved."""
        if lease.dead:
            return
        cost = min(cost, lease.in_flight)
        for bucket in lease.buckets:
            self.truth[bucket] += cost
        lease.spent += cost
        lease.in_flight = 0

    @rule(lease=leases, cost=st.integers(0, 4))
    def spend_and_report(self, lease: Held, cost: int) -> None:
        """A call from beginning to end, and its report at once."""
        self.dispatch(lease, cost)
        self.finish(lease, cost)
        if not lease.dead:
            teller = self.teller()
            report = LeaseReport(lease.id, tokens(lease.spent), tokens(lease.in_flight))
            teller.report(Reports((report,)))
            self.write(teller)

    @rule(target=messages, lease=leases)
    def report(self, lease: Held) -> object:
        if lease.dead:
            return multiple()
        report = LeaseReport(lease.id, tokens(lease.spent), tokens(lease.in_flight))
        return Reports((report,))

    @rule(target=messages, lease=leases)
    def close(self, lease: Held) -> object:
        if lease.dead or lease.in_flight:
            return multiple()
        lease.dead = True
        return Reports((LeaseReport(lease.id, tokens(lease.spent), final=True),))

    @rule(lease=leases, journal=st.booleans(), target=messages)
    def die(self, lease: Held, journal: bool) -> object:
        """What was in flight is billed; a journal that survives says the last word."""
        if lease.dead:
            return multiple()
        for bucket in lease.buckets:
            self.truth[bucket] += lease.in_flight
        lease.spent += lease.in_flight
        lease.in_flight, lease.dead = 0, True
        if not journal:
            return multiple()
        return Reports((LeaseReport(lease.id, tokens(lease.spent), final=True),))

    # What the writer does.

    @rule(lease=leases)
    def expire(self, lease: Held) -> None:
        teller = self.teller()
        teller.expire(lease.id)
        self.write(teller)

    @rule(hours=st.sampled_from([0.01, 1, 7, 24, 24 * 7]))
    def pass_time(self, hours: float) -> None:
        self.t_ms += round(hours * 3_600_000)
        self.write(self.teller())

    @rule(back_s=st.integers(1, 100_000))
    def the_clock_is_put_back(self, back_s: int) -> None:
        self.t_ms -= back_s * 1000
        self.write(self.teller())

    @rule(hard=st.sampled_from([16, 20, None]))
    def an_operator_sets_the_limit(self, hard: int | None) -> None:
        teller = self.teller()
        teller.operate(SetLimit("org:acme", "tokens", "week@UTC", hard, by="op"))
        self.write(teller)

    @rule()
    def restart_from_the_log(self) -> None:
        book = self.replayed()
        assert state_hash(book) == state_hash(self.book)
        self.book = book

    @rule()
    def restart_from_a_snapshot(self) -> None:
        data = encode_snapshot(self.book, partition=NUMBER, seq=len(self.log))
        book, seq = decode_snapshot(data, partition=NUMBER)
        assert seq == len(self.log)
        assert state_hash(book) == state_hash(self.book)
        self.book = book

    def replayed(self) -> Book:
        book = Book()
        for data in self.log:
            book.fold(msgspec.json.decode(data, type=Record))
        book.take_events()
        return book

    # The laws.

    @invariant()
    def what_was_and_may_be_spent_is_within_the_limit(self) -> None:
        """B1, B12: true spend, calls in flight at their maximum, and all that live leases may spend."""
        exposure = defaultdict(int, self.truth)
        for lease in self.held.values():
            if not lease.dead:
                for bucket in lease.buckets:
                    exposure[bucket] += lease.amount - lease.spent
        for (account, _), total in exposure.items():
            assert total <= max(HARD[account], 20 if account == "org:acme" else 0)

    @invariant()
    def the_books_cover_the_truth(self) -> None:
        """B3, B10: never less than was spent, in the period of the reservation."""
        for (account, key), spent in self.truth.items():
            found = self.book.index.get((account, "tokens", PERIODS[account]))
            bucket = found.buckets.get(key) if found is not None else None
            if bucket is not None:
                assert bucket.committed + bucket.held >= spent

    @invariant()
    def nothing_is_charged_that_was_not_spent(self) -> None:
        """B3, B4: no report counts twice; what is over costs what it cost, unless its end is unknown."""
        for lease in self.held.values():
            known = self.book.leases.get(lease.id)
            if known is not None:
                assert known.spent[1] <= lease.spent
                if known.state == "closed":
                    assert known.committed[1] == lease.spent

    @invariant()
    def every_sum_is_the_sum_of_its_parts(self) -> None:
        """B2, B11: buckets are what their leases say, lines what their buckets say."""
        held: dict[tuple[int, str], int] = defaultdict(int)
        for lease in self.book.leases.values():
            for line, bucket in lease.debits:
                held[line.number, bucket.key] += lease.held[line.at]
        for line in self.book.lines.values():
            for bucket in line.buckets.values():
                assert bucket.held == held[line.number, bucket.key]
                assert bucket.committed >= 0
            counting = [bucket for bucket in line.buckets.values() if bucket.counts]
            assert line.committed == sum(bucket.committed for bucket in counting)
            assert line.held == sum(bucket.held for bucket in counting)

    @invariant()
    def a_soft_crossing_is_told_once(self) -> None:
        """B8."""
        assert len(self.soft) == len(set(self.soft))

    @precondition(lambda self: len(self.log) % 7 == 6)
    @invariant()
    def the_state_is_the_fold_of_the_log(self) -> None:
        """B7."""
        assert state_hash(self.replayed()) == state_hash(self.book)


Ledger.TestCase.settings = settings(max_examples=300, stateful_step_count=80, deadline=None)
TestLedger = Ledger.TestCase
