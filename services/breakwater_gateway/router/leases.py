"""What a holder has of the books: leases on paths, reservations against them, and who waits for more.

Amounts are vectors in the order of `UNITS`, in whole nano-USD, tokens and requests. A lease's room is what
was lent less what calls have cost and what calls in flight may cost at most.
"""

from typing import Final, Literal

from msgspec import Struct

from breakwater_protocol.ledger import Amount, Line, Unit

UNITS: Final[tuple[Unit, ...]] = ("nano_usd", "tokens", "requests")
Need = tuple[int, int, int]
"""So much of each unit."""
NOTHING: Final[Need] = (0, 0, 0)


def amount(need: Need) -> Amount:
    return Amount(*need)


def need_of(given: Amount) -> Need:
    return (given.nano_usd, given.tokens, given.requests)


class Lease:
    """A part of a path's limits that this holder may spend without asking."""

    __slots__ = ("calls", "ends_at", "held", "id", "lent", "path", "periods", "spent", "taken_at")

    def __init__(self, id_: str, path: "Path", lent: Need, *, ends_at: float, now: float) -> None:
        self.id = id_
        self.path = path
        self.lent = lent
        self.spent: list[int] = [0, 0, 0]
        """What settled calls have cost; only grows."""
        self.held: list[int] = [0, 0, 0]
        """Reserved for calls in flight, at their maximum."""
        self.calls = 0
        """In flight."""
        self.ends_at = ends_at
        """Monotonic: the period is over then, and with it what may be reserved."""
        self.taken_at = now
        """When something was reserved last."""
        self.periods: tuple[str, ...] = ()

    def fits(self, need: Need, now: float) -> bool:
        if now >= self.ends_at:
            return False
        lent, spent, held = self.lent, self.spent, self.held
        for unit in self.path.units:  # noqa: SIM110 - a generator costs more than the sums
            if lent[unit] - spent[unit] - held[unit] < need[unit]:
                return False
        return True

    def room(self, unit: int) -> int:
        return self.lent[unit] - self.spent[unit] - self.held[unit]


class Asking:
    """A lease that was asked for and not granted yet. Asked again, it is the same lease."""

    __slots__ = ("id", "min", "sent_at", "tries", "want")

    def __init__(self, id_: str, min_: Need, want: Need, now: float) -> None:
        self.id = id_
        self.min = min_
        self.want = want
        self.sent_at = now
        self.tries = 0


class Spent(Struct, frozen=True):
    """A writer said that a path has no more: known for a while, so that it is not asked each time."""

    refusal: "Refusal"
    unit: int
    least: int
    """Of that unit: so much is not there, nor is more."""
    until: float


class Path:
    """The lines of one partition that some requests debit together."""

    __slots__ = (
        *("asking", "draining", "leases", "lines", "near", "need", "partition", "rate"),
        *("rate_at", "remaining", "retry_at", "spent", "units", "waiting"),
    )

    def __init__(self, partition: int, lines: tuple[Line, ...]) -> None:
        self.lines = lines
        self.partition = partition
        limited = {line.unit for line in lines}
        self.units = tuple(i for i, unit in enumerate(UNITS) if unit in limited)
        self.leases: list[Lease] = []
        """Open ones, the oldest first."""
        self.draining: dict[Lease, None] = {}
        """Nothing more is reserved from these; the last call to settle closes them."""
        self.asking: Asking | None = None
        self.waiting: dict[int, Ticket] = {}
        """In the order in which they came."""
        self.need: Need = NOTHING
        """Of the last request."""
        self.near = False
        """The limit is near: nothing is lent or kept ahead of need."""
        self.spent: Spent | None = None
        self.retry_at = 0.0
        self.rate: list[float] = [0.0, 0.0, 0.0]
        """Reserved a second, decayed. For the size of leases only."""
        self.rate_at = 0.0
        self.remaining: list[tuple[int, int]] = []
        """Available and limit of each line, as of the last grant."""

    def pick(self, need: Need, now: float) -> Lease | None:
        for lease in self.leases:
            if lease.fits(need, now):
                return lease
        return None

    def restrict(self, need: Need) -> Need:
        """Only the units that something on the path limits."""
        units = self.units
        return (
            need[0] if 0 in units else 0,
            need[1] if 1 in units else 0,
            need[2] if 2 in units else 0,
        )


class Closed(Struct, frozen=True):
    """A lease that was closed, until a writer has that in its log."""

    spent: Need
    lease: Lease | None = None
    """None: nothing was ever reserved from it here."""


class Reservation:
    """What one attempt may cost at most, taken from a lease of each of its paths. Settled exactly once."""

    __slots__ = ("leases", "need", "settled")

    def __init__(self, leases: tuple[Lease, ...], need: Need) -> None:
        self.leases = leases
        self.need = need
        self.settled = False


class Ticket:
    """An attempt that waits for what it needs."""

    __slots__ = ("need", "number", "paths", "until")

    def __init__(self, number: int, paths: tuple[Path, ...], need: Need, until: float) -> None:
        self.number = number
        self.paths = paths
        self.need = need
        self.until = until
        """Monotonic: refused then as contended."""


class Refusal(Struct, frozen=True):
    """Why an attempt may not be made. `exhausted`: not before the period ends; `contended`: the rest is held by
    calls in flight; `unreachable`: no writer of the books answers; `refused`: it will not lend at all."""

    reason: Literal["exhausted", "contended", "unreachable", "refused"]
    account: str = ""
    unit: Unit = "nano_usd"
    period: str = ""
    limit: int = 0
    remaining: int = 0
    resets_in_s: float = -1
    message: str = ""


class Kept(Struct, frozen=True, array_like=True):
    """One line of the journal: where a lease stands. The last line of each lease counts."""

    lease: str
    partition: int
    spent: Need = NOTHING
    held: Need = NOTHING
    over: bool = False
    """A writer has the final report: nothing is left to say."""
