"""The budget book of one partition: a fold of its log, in whole numbers, without a clock.

`begin` tells the book the time, `do` enters one operation, and the state after them is the same whoever
does it: the writer that decides an operation enters it before it is in the log, and throws the book away
when the log does not take it; everyone else folds the records that the log has.

What an operation enters depends on no order: reports are cumulative and only ever raise what is known, an
expired lease counts as spent whole, and the holder's final report (or, until that comes, an operator's
release) says what it really was.
"""

import heapq
from typing import Final, Literal

from msgspec import Struct

from breakwater_gateway.ledger.period import Period, Span, parse_period
from breakwater_protocol.events import BudgetChanged, BudgetKind
from breakwater_protocol.ledger import (
    MILLION,
    Adjust,
    Amount,
    Close,
    Exhaust,
    Expire,
    Grant,
    Lead,
    Op,
    OpenLine,
    Override,
    Record,
    Safe,
    SetLineLimit,
    Spend,
    Unit,
)

CLOSED_KEPT_MS: Final = 600_000
"""A closed lease is known for so long: whoever says something about it later is told to forget it."""
CLOSED_KEPT_MAX: Final = 50_000
EXPIRED_KEPT_MS: Final = 7 * 86_400_000
"""So long a holder may come back and say what an expired lease really spent."""
EXPIRED_KEPT_MAX: Final = 50_000
FLOORS_KEPT_MS: Final = 7 * 86_400_000
ROLLS_MAX: Final = 256
"""Periods ended by one record at most, so that a midnight of many accounts delays nobody for long."""

UNITS: Final[dict[Unit, int]] = {"nano_usd": 0, "tokens": 1, "requests": 2}
Units = tuple[int, int, int]
"""An amount of each unit, in the order of `UNITS`."""
ZERO: Final[Units] = (0, 0, 0)

LeaseState = Literal["open", "expired", "released", "closed"]


class LogBroken(Exception):
    """A record does not follow on the last one: the log is not whole."""


class Bucket(Struct):
    """One period of a line."""

    key: str
    slot: int = 0
    committed: int = 0
    held: int = 0
    counts: bool = True
    """It is the present period, or a part of the present window."""
    refs: int = 0
    """Leases that may still change it."""
    crossed: tuple[int, ...] = ()
    exhausted: bool = False


class BookLine(Struct):
    """One limit of an account and what counts against it now."""

    number: int
    account: str
    unit: Unit
    spec: str
    period: Period
    span: Span
    at: int
    """Index of the unit."""
    rule: int | None = None
    """The hard limit that holders know; None: only an operator has named this line."""
    override: int | None = None
    soft: tuple[int, ...] = ()
    revision: int = -1
    generation: int = 0
    committed: int = 0
    held: int = 0
    due_ms: int | None = None
    """When this line wants to be looked at."""
    buckets: dict[str, Bucket] = {}
    holders: dict[str, int] = {}
    """Open leases by holder."""
    crossed: tuple[int, ...] = ()
    """Of a rolling window, until it is below the threshold again; calendar periods have their own."""
    exhausted: bool = False

    @property
    def hard(self) -> int:
        if self.override is not None:
            return self.override
        return self.rule or 0

    @property
    def rolling(self) -> bool:
        return self.period.kind == "rolling"


class Lease(Struct):
    id: str
    holder: str
    amount: Units
    debits: tuple[tuple[BookLine, Bucket], ...]
    spent: Units = ZERO
    """As reported: only ever grows."""
    peak: Units = ZERO
    """The largest sum of spent and in flight ever reported: what a release charges."""
    state: LeaseState = "open"
    since_ms: int = 0
    """When it entered this state."""
    committed: Units = ZERO
    held: Units = ZERO
    breached: bool = False


class Book:
    def __init__(self) -> None:
        self.n = 0
        self.t_ms = 0
        self.writer = ""
        self.lines: dict[int, BookLine] = {}
        self.index: dict[tuple[str, str, str], BookLine] = {}
        """By account, unit and period."""
        self.next_line = 0
        self.leases: dict[str, Lease] = {}
        self.closed: dict[str, int] = {}
        """Leases that are over, and since when, oldest first."""
        self.expired: dict[str, int] = {}
        self.floors: dict[str, tuple[int, int, int]] = {}
        """By holder, the last lease that was forgotten (incarnation, number), and when it spoke last."""
        self.safe = False
        self.safe_seq = 0
        """The largest sequence that a holder had seen when an operator said that it is all right."""
        self.events: list[BudgetChanged] = []
        """Since they were last taken: all but grants and settlements."""
        self.touched: dict[int, BudgetKind] = {}
        """Lines that grants and settlements changed."""
        self.changed = False
        """`begin` ended a period, or forgot something: that has to be in the log too."""
        self.due: list[tuple[int, int]] = []
        """When which lines want to be looked at: a heap."""

    # --- The fold -----------------------------------------------------------------------------

    def fold(self, record: Record) -> None:
        """Raises `LogBroken` if it is not the next record."""
        if record.n != self.n + 1:
            raise LogBroken(f"record {record.n} follows record {self.n}")
        if record.t_ms < self.t_ms:
            raise LogBroken(f"record {record.n} is older than the one before it")
        self.begin(record.t_ms)
        for op in record.ops:
            self.do(op)
        self.n = record.n

    def begin(self, t_ms: int) -> None:
        """It is `t_ms` now, which is never less than before."""
        self.t_ms = max(self.t_ms, t_ms)
        self.changed = False
        rolls = 0
        while rolls < ROLLS_MAX and self.due and self.due[0][0] <= self.t_ms:
            due_ms, number = heapq.heappop(self.due)
            line = self.lines.get(number)
            if line is not None and line.due_ms == due_ms:
                line.due_ms = None
                self._roll(line)
                self._arm(line)
                rolls += 1
        self._forget()

    def wake_at_ms(self) -> int | None:
        """When an empty record is worth writing, for a period that ends then."""
        return self.due[0][0] if self.due else None

    def do(self, op: Op) -> None:
        match op:
            case Grant():
                self._grant(op)
            case Spend():
                self._spend(op)
            case Close():
                self._close(op)
            case Expire():
                self._expire(op)
            case OpenLine():
                self._open(op)
            case SetLineLimit():
                line = self.lines[op.line]
                line.rule, line.soft, line.revision = op.hard, op.soft, op.revision
                self._regenerate(line)
            case Override():
                line = self.lines[op.line]
                line.override = op.hard
                self._regenerate(line)
            case Adjust():
                line = self.lines[op.line]
                bucket = self._bucket(line, self._current(line).key)
                self._add(line, bucket, op.delta, 0)
                self.touched[line.number] = "settled"
                self._arm(line)
            case Exhaust():
                self._exhaust(self.lines[op.line])
            case Safe():
                self.safe = op.on
                self.safe_seq = max(self.safe_seq, op.seen_seq)
            case Lead():
                self.writer = op.writer

    def take_events(self) -> list[BudgetChanged]:
        found, self.events = self.events, []
        return found

    # --- Lines --------------------------------------------------------------------------------

    def peek(self, line: BookLine, t_ms: int) -> tuple[Span, int, int]:
        """Period, committed and held as they are at `t_ms`; changes nothing, since no record would say so."""
        span = line.span
        if span.ends_ms is None or t_ms < span.ends_ms:
            return span, line.committed, line.held
        span = line.period.span(t_ms)
        if not line.rolling:
            return span, 0, 0
        buckets = [
            bucket
            for bucket in line.buckets.values()
            if span.slot - bucket.slot <= line.period.slots
        ]
        return span, sum(b.committed for b in buckets), sum(b.held for b in buckets)

    def _current(self, line: BookLine) -> Span:
        """The line's present period; it is rolled into it if need be."""
        if line.span.ends_ms is not None and self.t_ms >= line.span.ends_ms:
            self._roll(line)
        return line.span

    def _roll(self, line: BookLine) -> None:
        """Leave the period that ended."""
        before = line.buckets.get(line.span.key)
        line.span = span = line.period.span(self.t_ms)
        self.changed = True
        for key in list(line.buckets):
            bucket = line.buckets[key]
            if bucket.counts and not _counts(line, bucket):
                bucket.counts = False
                line.committed -= bucket.committed
                line.held -= bucket.held
            if not bucket.counts and not bucket.refs:
                del line.buckets[key]
        if not line.rolling:
            if before is not None and before.key != span.key:
                self._tell("reset", line, span.key, 0, 0)
            return
        line.crossed = tuple(each for each in line.crossed if _over(line, line.committed, each))
        if line.exhausted and line.committed + line.held < line.hard:
            line.exhausted = False
            self._tell("reset", line, span.key, line.committed, line.held)

    def _open(self, op: OpenLine) -> None:
        if op.number != self.next_line:
            raise LogBroken(f"line {op.number} is opened where {self.next_line} is next")
        period = parse_period(op.period)
        line = BookLine(
            number=op.number,
            account=op.account,
            unit=op.unit,
            spec=op.period,
            period=period,
            span=period.span(self.t_ms),
            at=UNITS[op.unit],
            buckets={},
            holders={},
        )
        self.next_line += 1
        self.lines[line.number] = line
        self.index[op.account, op.unit, op.period] = line

    def _regenerate(self, line: BookLine) -> None:
        """Another limit: crossings count anew."""
        self._current(line)
        line.generation += 1
        line.crossed, line.exhausted = (), False
        for bucket in line.buckets.values():
            bucket.crossed, bucket.exhausted = (), False
        present = line.buckets.get(line.span.key)
        if present is not None or line.rolling:
            self._soft(line, present)

    def _arm(self, line: BookLine) -> None:
        """Look at the line when its period ends, or when a rolling window has nothing left in it."""
        if line.due_ms is not None:
            return
        if not line.buckets:
            if line.override is None and line.span.ends_ms is not None:
                # Nobody used it in this period, nor owes it anything: the next ask opens it again.
                self.lines.pop(line.number, None)
                self.index.pop((line.account, line.unit, line.spec), None)
            return
        if line.rolling:
            newest = max(bucket.slot for bucket in line.buckets.values())
            due_ms = max(line.period.leaves_ms(newest), self.t_ms + 1)
        elif line.span.ends_ms is None:
            return
        else:
            due_ms = line.span.ends_ms
        line.due_ms = due_ms
        heapq.heappush(self.due, (due_ms, line.number))

    def _bucket(self, line: BookLine, key: str) -> Bucket:
        bucket = line.buckets.get(key)
        if bucket is None:
            slot = int(key.rpartition(":")[2]) if line.rolling else 0
            bucket = line.buckets[key] = Bucket(key, slot)
            bucket.counts = _counts(line, bucket)
        return bucket

    def _add(self, line: BookLine, bucket: Bucket, committed: int, held: int) -> None:
        bucket.committed += committed
        bucket.held += held
        if bucket.counts:
            line.committed += committed
            line.held += held
        if committed:
            self._soft(line, bucket)

    def _soft(self, line: BookLine, bucket: Bucket | None) -> None:
        """One event a threshold, period and generation."""
        if line.rolling:
            committed, crossed, key = line.committed, line.crossed, line.span.key
            held = line.held
        elif bucket is None:
            return
        else:
            committed, crossed, key = bucket.committed, bucket.crossed, bucket.key
            held = bucket.held
        for threshold in line.soft:
            if threshold not in crossed and _over(line, committed, threshold):
                crossed = (*crossed, threshold)
                self._tell("soft", line, key, committed, held, threshold=threshold)
        if line.rolling:
            line.crossed = crossed
        elif bucket is not None:
            bucket.crossed = crossed

    def is_exhausted(self, line: BookLine, key: str) -> bool:
        """Its refusal in that period was told already."""
        if line.rolling:
            return line.exhausted
        bucket = line.buckets.get(key)
        return bucket is not None and bucket.exhausted

    def _exhaust(self, line: BookLine) -> None:
        span = self._current(line)
        bucket = self._bucket(line, span.key)
        if self.is_exhausted(line, span.key):
            return
        if line.rolling:
            line.exhausted = True
        else:
            bucket.exhausted = True
        self._tell("hard", line, span.key, line.committed, line.held)
        self._arm(line)

    def _tell(
        self,
        kind: BudgetKind,
        line: BookLine,
        key: str,
        committed: int,
        held: int,
        *,
        threshold: int = 0,
        lease: str = "",
    ) -> None:
        self.events.append(
            BudgetChanged(
                kind=kind,
                account=line.account,
                unit=line.unit,
                period=key,
                limit=line.hard,
                committed=committed,
                held=held,
                generation=line.generation,
                at=self.t_ms / 1000,
                threshold=threshold,
                lease=lease,
            )
        )

    # --- Leases -------------------------------------------------------------------------------

    def _grant(self, op: Grant) -> None:
        if op.lease in self.leases:
            raise LogBroken(f"lease {op.lease} is granted twice")
        debits = []
        for number, key in zip(op.lines, op.periods, strict=True):
            line = self.lines[number]
            self._current(line)
            bucket = self._bucket(line, key)
            bucket.refs += 1
            debits.append((line, bucket))
        lease = Lease(
            op.lease, holder_of(op.lease)[0], units(op.amount), tuple(debits), since_ms=self.t_ms
        )
        self.leases[op.lease] = lease
        for line, _ in debits:
            line.holders[lease.holder] = line.holders.get(lease.holder, 0) + 1
            if line.rolling and not op.adopted:
                line.exhausted = False
            self._arm(line)
        self._charge(lease, "grant")

    def _spend(self, op: Spend) -> None:
        lease = self.leases[op.lease]
        spent, in_flight = units(op.spent), units(op.in_flight)
        if lease.state != "closed":
            lease.peak = _most(lease.peak, _sum(spent, in_flight))
        lease.spent = _most(lease.spent, spent)
        self._charge(lease, "settled")

    def _close(self, op: Close) -> None:
        lease = self.leases.get(op.lease)
        if lease is None:
            # Never granted: a tombstone, so that the ask that comes late finds it.
            lease = Lease(op.lease, holder_of(op.lease)[0], ZERO, ())
            self.leases[op.lease] = lease
        if op.by:
            if lease.state in ("open", "expired"):
                self._enter(lease, "released")
        else:
            lease.spent = _most(lease.spent, units(op.spent))
            if lease.state != "closed":
                self._enter(lease, "closed")
                lease.peak = ZERO
        self._charge(lease, "settled")

    def _expire(self, op: Expire) -> None:
        lease = self.leases[op.lease]
        if lease.state == "open":
            self._enter(lease, "expired")
            self._charge(lease, "settled")

    def _enter(self, lease: Lease, state: LeaseState) -> None:
        if lease.state == "open":
            for line, _ in lease.debits:
                left = line.holders.get(lease.holder, 0) - 1
                if left > 0:
                    line.holders[lease.holder] = left
                else:
                    line.holders.pop(lease.holder, None)
        self.expired.pop(lease.id, None)
        self.closed.pop(lease.id, None)
        lease.state, lease.since_ms = state, self.t_ms
        (self.expired if state == "expired" else self.closed)[lease.id] = self.t_ms

    def _charge(self, lease: Lease, kind: BudgetKind) -> None:
        """Bring the buckets to what the lease's state says."""
        committed, held = charge_of(lease)
        more = _difference(committed, lease.committed)
        wider = _difference(held, lease.held)
        lease.committed, lease.held = committed, held
        for line, bucket in lease.debits:
            at = line.at
            if more[at] or wider[at]:
                self._add(line, bucket, more[at], wider[at])
                self.touched[line.number] = kind
            if not lease.breached and lease.spent[at] > lease.amount[at]:
                lease.breached = True
                self._tell(
                    "breach", line, bucket.key, bucket.committed, bucket.held, lease=lease.id
                )

    def _forget(self) -> None:
        """Leases that were over long ago, and holders not heard of for longer."""
        for kept, longest_ms, most in (
            (self.closed, CLOSED_KEPT_MS, CLOSED_KEPT_MAX),
            (self.expired, EXPIRED_KEPT_MS, EXPIRED_KEPT_MAX),
        ):
            while kept:
                id_ = next(iter(kept))
                if len(kept) <= most and self.t_ms - kept[id_] < longest_ms:
                    break
                del kept[id_]
                self.changed = True
                self._drop(self.leases.pop(id_))
        while self.floors:
            holder = next(iter(self.floors))
            if self.t_ms - self.floors[holder][2] < FLOORS_KEPT_MS:
                break
            del self.floors[holder]
            self.changed = True

    def _drop(self, lease: Lease) -> None:
        for line, bucket in lease.debits:
            bucket.refs -= 1
            if not bucket.refs and not bucket.counts:
                line.buckets.pop(bucket.key, None)
        holder, incarnation, number = holder_of(lease.id)
        last = self.floors.pop(holder, (0, 0, 0))
        self.floors[holder] = (*max(last[:2], (incarnation, number)), self.t_ms)

    def is_stale(self, lease: str) -> bool:
        """Older than leases that were forgotten: it was one of them, or never will be one."""
        holder, incarnation, number = holder_of(lease)
        floor = self.floors.get(holder)
        return floor is not None and (incarnation, number) <= floor[:2]


def holder_of(lease: str) -> tuple[str, int, int]:
    """Holder, incarnation and number in a lease's id. Raises `ValueError`."""
    holder, incarnation, number = lease.rsplit("/", 2)
    if not (holder and incarnation.isdecimal() and number.isdecimal()):
        raise ValueError(f"not the id of a lease: {lease[:80]!r}")
    return holder, int(incarnation), int(number)


def charge_of(lease: Lease) -> tuple[Units, Units]:
    """What it has committed and what it holds."""
    match lease.state:
        case "open":
            held = _most(_difference(lease.amount, lease.spent), ZERO)
            return lease.spent, held
        case "expired":
            return _most(lease.amount, lease.spent), ZERO
        case "released":
            return _most(lease.peak, lease.spent), ZERO
        case "closed":
            return lease.spent, ZERO


def units(amount: Amount) -> Units:
    return amount.nano_usd, amount.tokens, amount.requests


def amount_of(of: Units) -> Amount:
    return Amount(*of)


def _sum(a: Units, b: Units) -> Units:
    return a[0] + b[0], a[1] + b[1], a[2] + b[2]


def _difference(a: Units, b: Units) -> Units:
    return a[0] - b[0], a[1] - b[1], a[2] - b[2]


def _most(a: Units, b: Units) -> Units:
    return max(a[0], b[0]), max(a[1], b[1]), max(a[2], b[2])


def _counts(line: BookLine, bucket: Bucket) -> bool:
    if line.rolling:
        # One step more than the window: what was spent late in a step counts a whole window too.
        return line.span.slot - bucket.slot <= line.period.slots
    return bucket.key == line.span.key


def _over(line: BookLine, committed: int, threshold: int) -> bool:
    return committed > 0 and committed * MILLION >= line.hard * threshold
