"""The time that the books go by: no later than either clock says, and never earlier than it was.

A period ends only when the writer's own clock and the log's server agree that it is over; a clock that
jumps ahead ends nothing early, one that jumps back opens nothing again.
"""

from typing import Final

DISAGREE_S: Final = 5.0
"""Clocks further apart than this are worth an alert."""


class AgreedTime:
    """`now` is monotonic time in seconds, `wall` Unix time by the own clock."""

    def __init__(self) -> None:
        self._server_at = 0.0
        self._observed_at: float | None = None

    def observe(self, server_at: float, *, now: float) -> None:
        """At `now` the server's clock showed `server_at`."""
        self._server_at, self._observed_at = server_at, now

    def t_ms(self, *, wall: float, now: float) -> int:
        """Unix milliseconds; the book makes them never fall."""
        return max(0, int(min(wall, self._server(wall, now)) * 1000))

    def disagreement_s(self, *, wall: float, now: float) -> float:
        """How far the own clock is ahead of the server's; less than zero: behind it."""
        return wall - self._server(wall, now)

    def _server(self, wall: float, now: float) -> float:
        if self._observed_at is None:
            return wall
        return self._server_at + (now - self._observed_at)
