"""What the books say to somebody who asks: lines and leases as they are now, without changing anything."""

from typing import Final

from breakwater_gateway.ledger.book import Book, BookLine, Lease, amount_of
from breakwater_gateway.ledger.lending import resets_in_s
from breakwater_gateway.ledger.snapshot import state_hash
from breakwater_protocol.ledger import Books, BudgetLine, LeaseLine, Query

LINES_MAX: Final = 5_000
LEASES_MAX: Final = 5_000


def read_books(
    book: Book, query: Query, *, partition: int, seq: int, t_ms: int, ages_s: dict[str, float]
) -> Books:
    """`ages_s`: by lease, the seconds since its last report."""
    t_ms = max(t_ms, book.t_ms)
    lines: list[BudgetLine] = []
    leases: list[LeaseLine] = []
    more = False
    for line in book.lines.values():
        if matches(query.account, line.account):
            if len(lines) == LINES_MAX:
                more = True
                break
            lines.append(_line(book, line, t_ms))
    if query.leases:
        for lease in book.leases.values():
            if lease.state not in ("open", "expired"):
                continue
            if any(matches(query.account, line.account) for line, _ in lease.debits):
                if len(leases) == LEASES_MAX:
                    more = True
                    break
                leases.append(_lease(lease, ages_s.get(lease.id, -1)))
    return Books(
        partition=partition,
        seq=seq,
        writer=book.writer,
        lines=tuple(lines),
        leases=tuple(leases),
        safe=book.safe,
        hash=state_hash(book) if query.hash else "",
        more=more,
    )


def matches(pattern: str, account: str) -> bool:
    """Empty: every account; a `*` at the end stands for the rest of the name."""
    if pattern.endswith("*"):
        return account.startswith(pattern[:-1])
    return not pattern or account == pattern


def _line(book: Book, line: BookLine, t_ms: int) -> BudgetLine:
    span, committed, held = book.peek(line, t_ms)
    if line.rolling:
        crossed = line.crossed
    else:
        bucket = line.buckets.get(span.key)
        crossed = bucket.crossed if bucket is not None else ()
    return BudgetLine(
        account=line.account,
        unit=line.unit,
        period=line.spec,
        key=span.key,
        limit=line.hard,
        committed=committed,
        held=held,
        available=line.hard - committed - held,
        generation=line.generation,
        soft=line.soft,
        crossed=crossed,
        resets_in_s=resets_in_s(line, span, min(1, line.hard), t_ms),
        override=line.override is not None,
    )


def _lease(lease: Lease, age_s: float) -> LeaseLine:
    return LeaseLine(
        lease=lease.id,
        state="expired" if lease.state == "expired" else "open",
        amount=amount_of(lease.amount),
        spent=amount_of(lease.spent),
        in_flight_max=amount_of(
            (
                max(0, lease.peak[0] - lease.spent[0]),
                max(0, lease.peak[1] - lease.spent[1]),
                max(0, lease.peak[2] - lease.spent[2]),
            )
        ),
        lines=tuple(f"{line.account} {line.unit} {bucket.key}" for line, bucket in lease.debits),
        reported_s_ago=age_s,
    )


def disagreements(book: Book, lease: str, spent: tuple[int, int, int], *, final: bool) -> str:
    """What a holder claims that the books cannot have right; empty when they agree."""
    known = book.leases.get(lease)
    if known is None:
        if any(spent) and not book.is_stale(lease):
            return f"{lease} claims to have spent {spent}, but was never granted"
        return ""
    if final and any(told < booked for told, booked in zip(spent, known.spent, strict=True)):
        return f"{lease} ends with {spent}, but has reported {known.spent}"
    return ""
