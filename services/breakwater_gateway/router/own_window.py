"""What this router saw itself, for the time when nobody tells it: a small breaker for each deployment.

Health decides for everybody while it is there. When it is silent a router still must not send each request
into a wall: failures in a row, or a bad share of a window, close a deployment to this router's own requests
for a jittered time, which doubles while it goes on failing. A deployment that never failed costs nothing.
Times are Unix seconds, as those of what is published; `draw` is uniform in [0, 1).
"""

from typing import Final

from breakwater_gateway.config.model import BreakerPolicy
from breakwater_gateway.health.window import Window

DOUBLINGS_MAX: Final = 10
KEPT_MAX: Final = 4_096


class _Own:
    __slots__ = ("doublings", "in_a_row", "until", "window")

    def __init__(self, window_s: float) -> None:
        self.window = Window(window_s)
        self.in_a_row = 0
        self.doublings = 0
        self.until = 0.0


class OwnWindows:
    def __init__(self) -> None:
        self._own: dict[str, _Own] = {}

    def __contains__(self, target: str) -> bool:
        """It has failed lately, so its successes are of interest."""
        return target in self._own

    def succeeded(self, target: str, now: float) -> None:
        own = self._own.get(target)
        if own is None:
            return
        own.window.record(now)
        own.in_a_row = 0
        if not own.window.counts(now).failures:
            del self._own[target]

    def failed(self, target: str, policy: BreakerPolicy, now: float, draw: float) -> None:
        own = self._own.get(target)
        if own is None:
            if len(self._own) >= KEPT_MAX:
                self._own.clear()
            own = self._own[target] = _Own(policy.window_s)
        own.window.record(now, failed=True)
        own.in_a_row += 1
        if now < own.until:
            return  # of a call from before it was left alone
        counts = own.window.counts(now)
        many = counts.calls >= policy.min_requests
        if own.in_a_row >= policy.consecutive or (
            many and counts.failures >= policy.failure_rate * counts.calls
        ):
            longest = min(policy.open_cap_s, policy.open_s * 2.0**own.doublings)
            own.until = now + (0.5 + 0.5 * draw) * longest
            own.doublings = min(own.doublings + 1, DOUBLINGS_MAX)

    def open_until(self, target: str, now: float) -> float:
        """Until when it is left alone; 0: it may be called."""
        own = self._own.get(target)
        return own.until if own is not None and now < own.until else 0.0

    def retain(self, known: set[str]) -> None:
        self._own = {target: own for target, own in self._own.items() if target in known}
