"""What happened to an account, out of the log; and what requests cost, by any of their properties."""

from collections.abc import Iterable
from typing import Final

from msgspec import Struct

from breakwater_gateway.ledger.reading import matches
from breakwater_protocol.events import RequestFinished
from breakwater_protocol.ledger import (
    Account,
    Adjust,
    Amount,
    Close,
    Exhaust,
    Expire,
    Grant,
    Lead,
    OpenLine,
    Override,
    Record,
    Safe,
    SetLineLimit,
    Spend,
    Unit,
)

KEYS: Final = ("user", "org", "feature", "tenant", "model", "deployment", "api", "rung", "outcome")
PROPERTY: Final = "property."


class Happened(Struct, frozen=True, omit_defaults=True):
    """One operation on one line of an account."""

    at: float
    """Unix seconds."""
    what: str
    """`limit`, `override`, `grant`, `spend`, `close`, `release`, `expire`, `adjust`, `hard`."""
    account: str
    unit: Unit
    period: str
    value: int | None = None
    """The limit, the amount lent, what is spent so far, or the correction."""
    lease: str = ""
    by: str = ""
    why: str = ""


class _Line(Struct, frozen=True):
    account: str
    unit: Unit
    period: str


class History:
    """Told the log's records in order, it says what of them is about the account (or `user:*`).

    Leases and lines that were opened before the first record it is told are not known to it.
    """

    def __init__(self, account: str) -> None:
        self._account = account
        self._lines: dict[int, _Line] = {}
        self._leases: dict[str, tuple[tuple[int, str], ...]] = {}

    def known(self, number: int, account: str, unit: Unit, period: str) -> None:
        """A line from before the first record."""
        self._lines[number] = _Line(account, unit, period)

    def tell(self, record: Record) -> list[Happened]:
        found: list[Happened] = []
        at = record.t_ms / 1000

        def note(
            what: str,
            number: int,
            *,
            period: str = "",
            value: int | None = None,
            lease: str = "",
            by: str = "",
            why: str = "",
        ) -> None:
            line = self._lines.get(number)
            if line is not None and matches(self._account, line.account):
                period = period or line.period
                found.append(
                    Happened(at, what, line.account, line.unit, period, value, lease, by, why)
                )

        def note_lease(what: str, lease: str, spent: Amount | None, by: str, why: str) -> None:
            for number, period in self._leases.get(lease, ()):
                line = self._lines.get(number)
                value = None
                if spent is not None and line is not None:
                    value = getattr(spent, line.unit)
                note(what, number, period=period, value=value, lease=lease, by=by, why=why)

        for op in record.ops:
            match op:
                case OpenLine():
                    self._lines[op.number] = _Line(op.account, op.unit, op.period)
                case SetLineLimit():
                    note("limit", op.line, value=op.hard)
                case Override():
                    note("override", op.line, value=op.hard, by=op.by, why=op.why)
                case Grant():
                    self._leases[op.lease] = tuple(zip(op.lines, op.periods, strict=True))
                    note_lease("grant", op.lease, op.amount, "", "")
                case Spend():
                    note_lease("spend", op.lease, op.spent, "", "")
                case Close():
                    what = "release" if op.by else "close"
                    note_lease(what, op.lease, None if op.by else op.spent, op.by, op.why)
                    if not op.by:
                        self._leases.pop(op.lease, None)
                case Expire():
                    note_lease("expire", op.lease, None, "", "")
                case Adjust():
                    note("adjust", op.line, value=op.delta, by=op.by, why=op.why)
                case Exhaust():
                    note("hard", op.line)
                case Safe() | Lead():
                    pass
        return found


class Cost(Struct, omit_defaults=True):
    """Of all requests with one value of a property."""

    value: str
    requests: int = 0
    nano_usd: int = 0
    unpriced: int = 0
    """Requests whose cost nobody knows; it is not in `nano_usd`."""
    input_tokens: int = 0
    output_tokens: int = 0
    unmetered: int = 0
    """Requests whose tokens nobody knows."""


class Costs:
    """Requests summed up by a property of theirs."""

    def __init__(self, by: str, account: Account | None = None) -> None:
        """`by`: one of `KEYS`, or `property.NAME`. Raises `ValueError` for anything else, and for an
        account that requests do not name."""
        if by not in KEYS and not (by.startswith(PROPERTY) and len(by) > len(PROPERTY)):
            raise ValueError(f"requests have {', '.join(KEYS)} and property.NAME, not {by!r}")
        if account is not None and account.scope not in ("user", "org", "feature", "global"):
            raise ValueError(f"requests do not say which {account.scope} they are charged to")
        self._by = by
        self._account = account
        self._found: dict[str, Cost] = {}

    def tell(self, event: RequestFinished) -> None:
        if not self._concerns(event):
            return
        if self._by.startswith(PROPERTY):
            value = event.properties.get(self._by.removeprefix(PROPERTY), "")
        else:
            value = str(getattr(event, self._by))
        cost = self._found.setdefault(value, Cost(value))
        cost.requests += 1
        if event.cost_nano_usd is None:
            cost.unpriced += 1
        else:
            cost.nano_usd += event.cost_nano_usd
        if event.usage is None:
            cost.unmetered += 1
        else:
            cost.input_tokens += event.usage.input
            cost.output_tokens += event.usage.output

    def found(self) -> Iterable[Cost]:
        """The dearest first."""
        return sorted(self._found.values(), key=lambda cost: (-cost.nano_usd, cost.value))

    def _concerns(self, event: RequestFinished) -> bool:
        account = self._account
        if account is None or account.scope == "global":
            return True
        if account.scope == "user":
            return event.user == account.id and event.org == account.org
        return getattr(event, account.scope) == account.id  # type: ignore[no-any-return]
