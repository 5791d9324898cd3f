"""The gate before one target: how many calls it is given at once, and who waits for a place.

It joins the limit that finds itself (`limiter.py`) with the queue in front of it (`admission.py`). Targets
that nothing is known to limit have no gate at all. A value that is told the time.
"""

from typing import Generic, Protocol, TypeVar

from breakwater_gateway.worker.admission import RETRY_MIN_S, SIZE, Admission
from breakwater_gateway.worker.limiter import Limiter
from breakwater_protocol.commands import Priority

T = TypeVar("T")

_NEVER = float("inf")


class Timer(Protocol):
    def cancel(self) -> None: ...


class Gate(Generic[T]):
    __slots__ = ("_queue", "_size", "limiter", "timer")

    def __init__(self, ceiling: int | None, *, size: int = SIZE) -> None:
        self.limiter = Limiter(ceiling)
        self._size = size
        self._queue: Admission[T] | None = None
        self.timer: Timer | None = None
        """The shell's, for `next_expiry`."""

    @property
    def waiting(self) -> int:
        return 0 if self._queue is None else self._queue.waiting

    @property
    def limit(self) -> int:
        """Whole calls; 0 when there is no limit now."""
        return 0 if self.limiter.limit == _NEVER else int(self.limiter.limit)

    @property
    def is_cut(self) -> bool:
        """It lets in fewer than the configuration allows."""
        return self.limiter.is_cut

    def admits(self, in_flight: int) -> bool:
        """At once: there is a place, and nobody waits for it."""
        return self._queue is None and self.limiter.admits(in_flight)

    def offer(
        self, item: T, priority: Priority, *, now: float, deadline: float
    ) -> tuple[float | None, T | None]:
        """As `Admission.offer`."""
        queue = self._queue
        if queue is None:
            queue = self._queue = Admission(now, size=self._size)
        verdict = queue.offer(item, priority, now=now, deadline=deadline, places=max(1, self.limit))
        self._tidy()
        return verdict

    def take(self, in_flight: int, now: float) -> T | None:
        """The next to go, if there is a place for it."""
        if self._queue is None or not self.limiter.admits(in_flight):
            return None
        item = self._queue.take(now)
        self._tidy()
        return item

    def expired(self, now: float) -> list[T]:
        if self._queue is None:
            return []
        found = self._queue.expired(now)
        self._tidy()
        return found

    def remove(self, item: T) -> None:
        if self._queue is not None:
            self._queue.remove(item)
            self._tidy()

    def oldest(self) -> float:
        return _NEVER if self._queue is None else self._queue.oldest()

    def next_expiry(self) -> float:
        return _NEVER if self._queue is None else self._queue.next_expiry()

    def retry_after_s(self, now: float) -> float:
        return RETRY_MIN_S if self._queue is None else self._queue.retry_after_s(now)

    def _tidy(self) -> None:
        if self._queue is not None and not self._queue.waiting:
            self._queue = None
