"""Which requests are let in when capacity runs short: `batch` gives way first, `critical` last.

Each priority may fill a share of the capacity; the rest is kept for those above it, so that a burst of
batch work never costs a critical request its place. Refusals carry an honest wait: how long, at the rate
at which requests have been ending, until there is room again. A value that is told the time.

Priorities that shed by share of capacity are Envoy's resource priorities and the load shedding of
"Handling Overload" in Google's SRE book (criticality). The shares are ours.
"""

from collections.abc import Mapping
from typing import Final

from breakwater_protocol import failures as f
from breakwater_protocol.commands import Priority

SHARES: Final[Mapping[Priority, int]] = {"batch": 80, "interactive": 95, "critical": 100}
"""Percent of the capacity that may be in use when a request of this priority comes in."""

RETRY_MIN_S: Final = 1.0
RETRY_MAX_S: Final = 30.0
_BUCKET_S: Final = 0.5
"""Over which ends are counted; …"""
_NEWS: Final = 0.5
"""… and how much the last bucket counts against all before it."""


def bound(priority: Priority, capacity: int) -> int:
    """Requests in flight from which on one more of this priority is refused; 1 at least."""
    return max(1, -(-capacity * SHARES[priority] // 100))


class Shedding:
    """The bounds of one capacity, and the pace at which it frees itself.

    `refusal` costs one comparison while there is room for everybody.
    """

    __slots__ = ("_bounds", "_ended", "_idle", "_lowest", "_rate", "_since", "capacity")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._bounds = {priority: bound(priority, capacity) for priority in SHARES}
        self._lowest = min(self._bounds.values())
        self._ended = 0
        self._since = 0.0
        self._rate: float | None = None
        self._idle = True
        """Nothing was in flight: the time until the next end is no pace."""

    def ended(self, now: float) -> None:
        """A request is over, however it ended."""
        if self._idle:
            self._idle = False
            self._ended, self._since, self._rate = 0, now, None
            return
        self._ended += 1
        past = now - self._since
        if past >= _BUCKET_S:
            rate = self._ended / past
            # Of calls as long as this, what was measured before says nothing.
            old = rate if self._rate is None or past > 4 * _BUCKET_S else self._rate
            self._rate = old + (rate - old) * _NEWS
            self._ended = 0
            self._since = now

    def refusal(self, priority: Priority, in_flight: int) -> f.Overloaded | None:
        """None: let it in."""
        if in_flight < self._lowest:
            if not in_flight:
                self._idle = True
            return None
        if in_flight < self._bounds[priority]:
            return None
        message = (
            "the gateway is at capacity"
            if priority == "critical"
            else f"the gateway is near its capacity and sheds {priority} requests"
        )
        return f.Overloaded(message, retry_after_s=self._wait_s(priority, in_flight))

    def _wait_s(self, priority: Priority, in_flight: int) -> float:
        over = in_flight - self._bounds[priority] + 1
        if not self._rate:
            return RETRY_MIN_S
        return min(RETRY_MAX_S, max(RETRY_MIN_S, over / self._rate))
