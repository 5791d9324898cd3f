"""How late the event loop runs: a timer ten times a second that looks at the clock.

A stalled loop makes every timer due at once, so calls "time out" whose answers wait unread in a
socket. `stalled_between` tells such a timeout from a provider's.
"""

import asyncio
from collections import deque
from typing import Final

INTERVAL_S: Final = 0.1
STALL_S: Final = 0.25
"""Lateness from which on the loop counts as stalled: several first-token jitters of a good provider."""
RECENT: Final = 10
"""Readings that `lag_s` looks back on: one second."""
STALLS_MAX: Final = 256


class LagProbe:
    """Starts with `start`, ends with `stop`; both may be called again."""

    def __init__(self, *, interval_s: float = INTERVAL_S, stall_s: float = STALL_S) -> None:
        self._interval_s = interval_s
        self._stall_s = stall_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._stalls: deque[tuple[float, float]] = deque(maxlen=STALLS_MAX)

    def start(self) -> None:
        """On the running loop."""
        self.stop()
        self._loop = asyncio.get_running_loop()
        self._arm(self._loop)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @property
    def lag_s(self) -> float:
        """The worst lateness of the last second, a stall that has not ended its timers included."""
        return max(max(self._recent, default=0.0), self._overdue())

    def stalled_between(self, begun: float, ended: float) -> bool:
        """Whether the loop stalled at some time from `begun` to `ended`, in the loop's time.

        Asked by a timer that ran before the probe's own, right after a stall, it says so too.
        """
        if self._overdue() >= self._stall_s and self._due <= ended:
            return True
        return any(begun <= until and since <= ended for since, until in reversed(self._stalls))

    def _overdue(self) -> float:
        if self._loop is None or self._timer is None:
            return 0.0
        return max(0.0, self._loop.time() - self._due)

    def _arm(self, loop: asyncio.AbstractEventLoop) -> None:
        self._due = loop.time() + self._interval_s
        self._timer = loop.call_at(self._due, self._tick, loop)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        late = max(0.0, now - self._due)
        self._recent.append(late)
        if late >= self._stall_s:
            self._stalls.append((self._due, now))
        self._arm(loop)
