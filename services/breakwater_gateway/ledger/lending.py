"""What a writer decides: leases out of the book, and what reports and operators change in it.

A `Teller` serves the messages of one append: each decision enters its operations into the book at once,
and all of them become one record. Nothing it answers may leave before that record is in the log.

Refusals have an order, so that the same ask is always refused for the same reason:
malformed, unknown zone, wrong partition · a lease that is known is answered as before, or `stale_lease`
when it is over · `safe_mode` · `full` · `exhausted`, by the first line of the path whose limit less what
is spent is too little · `contended`, by the first line that waits for calls in flight.
"""

from typing import Final

from msgspec.structs import replace

from breakwater_gateway.ledger.book import (
    UNITS,
    Book,
    BookLine,
    Lease,
    Units,
    amount_of,
    holder_of,
    units,
)
from breakwater_gateway.ledger.checks import NAME_MAX, bad_ask, bad_line, bad_report, is_key_of
from breakwater_gateway.ledger.period import Span, parse_period
from breakwater_protocol.ledger import (
    AMOUNT_MAX,
    Adjust,
    Amount,
    Close,
    CommandReply,
    Contended,
    Correct,
    Done,
    Exhaust,
    Exhausted,
    Expire,
    Grant,
    Granted,
    LeaseAsk,
    LeaseReply,
    LeaseReport,
    Limit,
    Line,
    LineState,
    Op,
    OpenLine,
    Override,
    Record,
    Refused,
    Release,
    Reported,
    ReportReply,
    Reports,
    Resume,
    Safe,
    SetLimit,
    SetLineLimit,
    Spend,
)

EXPIRES_S: Final = 15.0
"""A lease without a report for so long counts as spent whole; holders report every second."""
RETRY_MS: Final = 50
LINES_MAX: Final = 500_000
LEASES_MAX: Final = 500_000
WHY_MAX: Final = 500
LEFT_DIVISOR: Final = 20
"""One lease takes 5 % of what is left, shared among the holders, at most …"""
HARD_DIVISOR: Final = 50
"""… and 2 % of the limit. So near the limit every lease is one request."""


class Teller:
    """Serves what one record will say. `number` is the partition's."""

    def __init__(self, book: Book, number: int, t_ms: int) -> None:
        self._book = book
        self._number = number
        self.ops: list[Op] = []
        self._before_ms = book.t_ms
        book.begin(t_ms)

    def record(self, id_: str) -> Record | None:
        """Everything that was decided; None: nothing that changes the books, not even the time."""
        book = self._book
        if not self.ops and not book.changed:
            book.t_ms = self._before_ms
            return None
        book.n += 1
        return Record(n=book.n, id=id_, t_ms=book.t_ms, ops=tuple(self.ops))

    def enter(self, op: Op) -> None:
        self._book.do(op)
        self.ops.append(op)

    # --- Leases -------------------------------------------------------------------------------

    def ask(self, ask: LeaseAsk) -> LeaseReply:
        """Its `seq` is filled in when the record has one."""
        fault = bad_ask(ask)
        if fault is not None:
            return fault
        book = self._book
        lines: list[BookLine] = []
        for asked in ask.path:
            known = book.index.get((asked.account, asked.unit, asked.period))
            new = known if known is not None else self._new_line(asked)
            if isinstance(new, Refused):
                return new
            lines.append(new)
        if len({(line.account, line.unit, line.spec) for line in lines}) < len(lines):
            return Refused("malformed", "a line stands twice on the path of a lease")
        lease = book.leases.get(ask.lease)
        if lease is not None:
            return self._again(lease)
        if book.is_stale(ask.lease):
            return Refused("stale_lease", f"lease {ask.lease} is over")
        if book.safe:
            return _SAFE
        if len(book.leases) >= LEASES_MAX or len(book.lines) + len(lines) > LINES_MAX:
            return Refused("full", "the books are full: fewer accounts, or longer leases")
        for found, asked in zip(lines, ask.path, strict=True):
            self._learn(found, asked.limit)
        return self._lend(ask, lines)

    def _lend(self, ask: LeaseAsk, lines: list[BookLine]) -> LeaseReply:
        book, least, amount = self._book, units(ask.min), list(units(ask.want))
        holder = holder_of(ask.lease)[0]
        spans: list[Span] = []
        contended: Contended | None = None
        limited = set()
        for line in lines:
            span, committed, held = book.peek(line, book.t_ms)
            spans.append(span)
            at = line.at
            limited.add(at)
            need = least[at]
            if need > line.hard - committed:
                return self._exhausted(line, span, committed, need)
            available = line.hard - committed - held
            if need > available:
                if contended is None:
                    contended = Contended(line.account, line.unit, span.key, RETRY_MS)
                continue
            sharers = len(line.holders) + (holder not in line.holders)
            share = min(available // LEFT_DIVISOR // sharers, line.hard // HARD_DIVISOR)
            amount[at] = max(need, min(amount[at], share))
        if contended is not None:
            return contended
        lent = tuple(each if at in limited else 0 for at, each in enumerate(amount))
        for place, line in enumerate(lines):
            lines[place] = self._entered(line)
        self.enter(
            Grant(
                lease=ask.lease,
                lines=tuple(line.number for line in lines),
                periods=tuple(span.key for span in spans),
                amount=Amount(*lent),
            )
        )
        return self._granted(book.leases[ask.lease])

    def _exhausted(self, line: BookLine, span: Span, committed: int, need: int) -> Exhausted:
        book = self._book
        line = self._entered(line)
        if not book.is_exhausted(line, span.key):
            self.enter(Exhaust(line.number))
        return Exhausted(
            account=line.account,
            unit=line.unit,
            period=span.key,
            limit=line.hard,
            remaining=max(0, line.hard - committed),
            resets_in_s=resets_in_s(line, span, need, book.t_ms),
        )

    def _again(self, lease: Lease) -> LeaseReply:
        if lease.state in ("closed", "released"):
            return Refused("stale_lease", f"lease {lease.id} is {lease.state}")
        return self._granted(lease)

    def _granted(self, lease: Lease) -> Granted:
        book, lines = self._book, []
        for line, bucket in lease.debits:
            span, committed, held = book.peek(line, book.t_ms)
            lines.append(
                LineState(
                    period=bucket.key,
                    available=line.hard - committed - held,
                    limit=line.hard,
                    ends_in_s=_left_s(span.ends_ms, book.t_ms) if span.key == bucket.key else 0.0,
                    generation=line.generation,
                )
            )
        return Granted(
            lease=lease.id,
            amount=amount_of(lease.amount),
            seq=0,
            lines=tuple(lines),
            expires_s=EXPIRES_S,
            state="expired" if lease.state == "expired" else "open",
        )

    def _new_line(self, asked: Line) -> BookLine | Refused:
        """A line that is not in the book yet; it enters it with the first thing that happens to it."""
        fault = bad_line(asked.account, asked.period, self._number)
        if fault is not None:
            return fault
        period = parse_period(asked.period)
        return BookLine(
            number=-1,
            account=asked.account,
            unit=asked.unit,
            spec=asked.period,
            period=period,
            span=period.span(self._book.t_ms),
            at=UNITS[asked.unit],
        )

    def _learn(self, line: BookLine, limit: Limit) -> None:
        """The later of two limits holds."""
        if limit.revision <= line.revision or (
            line.rule == limit.hard and line.soft == limit.soft and line.number >= 0
        ):
            return
        if line.number < 0:
            line.rule, line.soft, line.revision = limit.hard, limit.soft, limit.revision
        else:
            self.enter(SetLineLimit(line.number, limit.hard, limit.soft, limit.revision))

    def _entered(self, line: BookLine) -> BookLine:
        """The same line in the book."""
        if line.number >= 0:
            return line
        number = self._book.next_line
        self.enter(OpenLine(number, line.account, line.unit, line.spec))
        if line.rule is not None:
            self.enter(SetLineLimit(number, line.rule, line.soft, line.revision))
        return self._book.lines[number]

    # --- Reports ------------------------------------------------------------------------------

    def report(self, reports: Reports) -> Reported | Refused:
        expired, unknown, claim = [], [], []
        for report in reports.reports:
            fault = bad_report(report)
            if fault is not None:
                return fault
        book = self._book
        for report in reports.reports:
            lease = book.leases.get(report.lease)
            if lease is None:
                if book.safe and not book.is_stale(report.lease):
                    if report.claim is None or not self._adopt(report):
                        claim.append(report.lease)
                        continue
                    lease = book.leases[report.lease]
                elif report.final and report.cum_spent == _NOTHING:
                    if not book.is_stale(report.lease):
                        self.enter(Close(report.lease, _NOTHING))
                    continue
                else:
                    unknown.append(report.lease)
                    continue
            self._report_one(lease, report)
            if lease.state == "expired":
                expired.append(lease.id)
            elif lease.state == "released" and not report.final:
                unknown.append(lease.id)
        return Reported(0, tuple(expired), tuple(unknown), tuple(claim))

    def _report_one(self, lease: Lease, report: LeaseReport) -> None:
        spent = units(report.cum_spent)
        if report.final:
            if lease.state != "closed" or _grows(lease.spent, spent):
                self.enter(Close(lease.id, report.cum_spent))
            return
        if lease.state == "closed":
            return
        in_flight = units(report.in_flight_max)
        peak = (spent[0] + in_flight[0], spent[1] + in_flight[1], spent[2] + in_flight[2])
        if _grows(lease.spent, spent) or _grows(lease.peak, peak):
            self.enter(Spend(lease.id, report.cum_spent, report.in_flight_max))

    def _adopt(self, report: LeaseReport) -> bool:
        """Enter a lease that the log has lost, from what its holder knows of it."""
        claim = report.claim
        if claim is None or len(claim.path) != len(claim.periods):
            return False
        lines = []
        for asked, key in zip(claim.path, claim.periods, strict=True):
            known = self._book.index.get((asked.account, asked.unit, asked.period))
            found = known if known is not None else self._new_line(asked)
            if isinstance(found, Refused) or not is_key_of(found, key):
                return False
            self._learn(found, asked.limit)
            lines.append(self._entered(found))
        self.enter(
            Grant(
                lease=report.lease,
                lines=tuple(line.number for line in lines),
                periods=claim.periods,
                amount=claim.amount,
                adopted=True,
            )
        )
        return True

    def expire(self, lease: str) -> None:
        known = self._book.leases.get(lease)
        if known is not None and known.state == "open":
            self.enter(Expire(lease))

    def rolled_back(self, seen_seq: int) -> None:
        """A holder has seen what the log does not have: lend nothing until an operator has looked."""
        if not self._book.safe:
            self.enter(Safe(seen_seq))

    # --- Operators ----------------------------------------------------------------------------

    def operate(self, change: SetLimit | Release | Correct | Resume) -> Done | Refused:
        if not change.by or len(change.by) > NAME_MAX or len(change.why) > WHY_MAX:
            return Refused("malformed", f"say who it is; a reason has {WHY_MAX} characters at most")
        match change:
            case SetLimit():
                return self._set_limit(change)
            case Release():
                lease = self._book.leases.get(change.lease)
                if lease is None or lease.state in ("closed", "released"):
                    return Refused("unknown", f"no lease {change.lease[:200]} is open or expired")
                self.enter(Close(lease.id, _NOTHING, change.by, change.why))
            case Correct():
                line = self._book.index.get((change.account, change.unit, change.period))
                if line is None:
                    return Refused("unknown", f"the books have no such line of {change.account}")
                if abs(change.delta) > AMOUNT_MAX:
                    return Refused("malformed", f"a correction is {AMOUNT_MAX} at most")
                _, committed, _ = self._book.peek(line, self._book.t_ms)
                if committed + change.delta < 0:
                    return Refused("malformed", f"only {committed} is committed there")
                self.enter(Adjust(line.number, change.delta, change.by, change.why))
            case Resume():
                if not self._book.safe:
                    return Refused("unknown", "this partition is not in safe mode")
                self.enter(Safe(self._book.safe_seq, False, change.by, change.why))
        return Done(0)

    def _set_limit(self, change: SetLimit) -> Done | Refused:
        fault = bad_line(change.account, change.period, self._number)
        if fault is not None:
            return fault
        if change.hard is not None and not 0 <= change.hard <= AMOUNT_MAX:
            return Refused("malformed", f"a limit is 0 to {AMOUNT_MAX}")
        line = self._book.index.get((change.account, change.unit, change.period))
        if line is None:
            if change.hard is None:
                return Refused("unknown", f"the books have no such line of {change.account}")
            number = self._book.next_line
            self.enter(OpenLine(number, change.account, change.unit, change.period))
            line = self._book.lines[number]
        self.enter(Override(line.number, change.hard, change.by, change.why))
        return Done(0)


Reply = LeaseReply | ReportReply | CommandReply

_NOTHING: Final = Amount()
_SAFE: Final = Refused(
    "safe_mode",
    "the ledger's log was rolled back; an operator compares `breakwater budget show --leases` and resumes",
)


def with_seq(reply: Reply, seq: int) -> Reply:
    """The reply, now that everything it rests on is in the log up to `seq`."""
    match reply:
        case Granted() | Exhausted() | Contended() | Reported() | Done():
            return replace(reply, seq=seq)
        case _:
            return reply


def resets_in_s(line: BookLine, span: Span, need: int, t_ms: int) -> float:
    """Until `need` may be there again; -1: never."""
    if need > line.hard:
        return -1
    if not line.rolling:
        return _left_s(span.ends_ms, t_ms)
    counting = sorted(
        (b.slot, b.committed)
        for b in line.buckets.values()
        if span.slot - b.slot <= line.period.slots
    )
    committed = sum(each for _, each in counting)
    for slot, each in counting:
        committed -= each
        if need <= line.hard - committed:
            return _left_s(line.period.leaves_ms(slot), t_ms)
    return -1


def _left_s(until_ms: int | None, t_ms: int) -> float:
    return -1 if until_ms is None else max(0, until_ms - t_ms) / 1000


def _grows(known: Units, told: Units) -> bool:
    return told[0] > known[0] or told[1] > known[1] or told[2] > known[2]
