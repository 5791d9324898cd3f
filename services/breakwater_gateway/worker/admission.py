"""Who waits for a place at a target, for how long, and who is told at once that waiting is useless.

A bounded queue, ordered by priority and then by age. What cannot be served in time is refused when it
comes, not when it has grown old: the wait is foreseen from the pace at which places have been given, less
what those above will take. A higher priority takes the place of the newest of the lowest when the queue is
full. It exists only while somebody waits, so that a target with room pays nothing for it.

A value that is told the time, in seconds; items are opaque.
"""

from collections import deque
from collections.abc import Mapping
from typing import Final, Generic, TypeVar

from breakwater_protocol.commands import Priority

T = TypeVar("T")

ORDER: Final[tuple[Priority, ...]] = ("critical", "interactive", "batch")
AGE_S: Final[Mapping[Priority, float]] = {"critical": 10.0, "interactive": 2.0, "batch": 2.0}
"""How long one may wait here at most; its own deadline may be nearer."""
SIZE: Final = 512
"""Of the whole queue."""
RETRY_MIN_S: Final = 1.0
RETRY_MAX_S: Final = 30.0
_SURE: Final = 0.5
"""The share of its age limit that a wait may be foreseen to take: those above may yet grow in number."""
_BLIND_ROUNDS: Final = 4
"""Of critical work, before anything is known of the pace: it may wait the longest."""
_BUCKET_S: Final = 0.25
_NEWS: Final = 0.3


class Admission(Generic[T]):
    __slots__ = ("_counts", "_lines", "_rates", "_since", "_size", "waiting")

    def __init__(self, now: float, *, size: int = SIZE) -> None:
        self._lines: dict[Priority, deque[tuple[T, float, float]]] = {p: deque() for p in ORDER}
        """By priority, the oldest first: item, when it came, until when it may wait."""
        self._size = size
        self._since = now
        self._counts: dict[Priority, int] = dict.fromkeys(ORDER, 0)
        self._rates: dict[Priority, float] | None = None
        """Places a second that each priority was given; None until a first bucket is full."""
        self.waiting = 0

    def offer(
        self, item: T, priority: Priority, *, now: float, deadline: float, places: int
    ) -> tuple[float | None, T | None]:
        """(None, …): it waits; (seconds, …): it is refused, and may come again then. The second: who gave up a
        place for it.

        `deadline`: when nobody has a use for it any more; `places`: how many are served at once.
        """
        self._roll(now)
        patience = min(AGE_S[priority], deadline - now)
        if patience <= 0 or self._foreseen(priority, places) > patience * (
            1.0 if priority == "critical" else _SURE
        ):
            return self._retry_after(), None
        ousted: T | None = None
        if self.waiting >= self._size:
            ousted = self._oust(priority)
            if ousted is None:
                return self._retry_after(), None
        self._lines[priority].append((item, now, now + patience))
        self.waiting += 1
        return None, ousted

    def take(self, now: float) -> T | None:
        """The next to be served: call `expired` before. None: nobody waits."""
        for priority in ORDER:
            line = self._lines[priority]
            if line:
                self._roll(now)
                self._counts[priority] += 1
                self.waiting -= 1
                return line.popleft()[0]
        return None

    def expired(self, now: float) -> list[T]:
        """Those who have waited too long, taken out."""
        found: list[T] = []
        for line in self._lines.values():
            # Patience differs by deadline within a line, so the oldest need not be the first to go.
            if any(until <= now for _, _, until in line):
                found += [item for item, _, until in line if until <= now]
                kept = [entry for entry in line if entry[2] > now]
                line.clear()
                line.extend(kept)
        self.waiting -= len(found)
        return found

    def oldest(self) -> float:
        """When the one that has waited longest came; infinite when nobody waits."""
        return min((line[0][1] for line in self._lines.values() if line), default=float("inf"))

    def next_expiry(self) -> float:
        """When `expired` next has something to say; infinite when nobody waits."""
        return min(
            (until for line in self._lines.values() for _, _, until in line), default=float("inf")
        )

    def remove(self, item: T) -> bool:
        """It has no use for its place any more."""
        for line in self._lines.values():
            for entry in line:
                if entry[0] is item:
                    line.remove(entry)
                    self.waiting -= 1
                    return True
        return False

    def retry_after_s(self, now: float) -> float:
        self._roll(now)
        return self._retry_after()

    # ------------------------------------------------------------ the pace

    def _roll(self, now: float) -> None:
        past = now - self._since
        if past < _BUCKET_S:
            return
        rates = {p: count / past for p, count in self._counts.items()}
        if self._rates is not None and past < 8 * _BUCKET_S:
            old = self._rates
            rates = {p: old[p] + (rate - old[p]) * _NEWS for p, rate in rates.items()}
        self._rates = rates
        self._counts = dict.fromkeys(ORDER, 0)
        self._since = now

    def _foreseen(self, priority: Priority, places: int) -> float:
        """Seconds until one more of this priority would be served."""
        ahead = 1
        above = 0.0
        for each in ORDER:
            ahead += len(self._lines[each])
            if each == priority:
                break
            above += self._rates[each] if self._rates is not None else 0.0
        pace = 0.0 if self._rates is None else sum(self._rates.values())
        if pace > 0:
            return ahead / (pace - above) if pace > above else float("inf")
        # Nothing is known of the pace: as many may wait as are served at once, about one call's time.
        rounds = _BLIND_ROUNDS if priority == "critical" else 1
        return 0.0 if ahead <= rounds * places else float("inf")

    def _retry_after(self) -> float:
        pace = sum(self._rates.values()) if self._rates is not None else 0.0
        wait_s = self.waiting / pace if pace > 0 else RETRY_MIN_S
        return min(RETRY_MAX_S, max(RETRY_MIN_S, wait_s))

    def _oust(self, priority: Priority) -> T | None:
        """The newest of the lowest priority below this one."""
        for each in reversed(ORDER):
            if each == priority:
                return None
            line = self._lines[each]
            if line:
                self.waiting -= 1
                return line.pop()[0]
        return None
