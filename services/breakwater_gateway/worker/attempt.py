"""One attempt's time: connect and first token, idle, pace, total, as one deadline that moves.

A value that is told what happened and when. `wake_at` is the earliest moment at which something can
have expired; the shell keeps one timer and re-arms it lazily, so a chunk costs one assignment. The pace is
looked at once a window, so that a chunk costs it nothing.
"""

from typing import Final

from breakwater_protocol import failures as f

_NEVER: Final = float("inf")


class AttemptClock:
    """`first_token_s` is infinite for calls that are not streamed, unless their caller sets it: their first
    byte is their last."""

    __slots__ = (
        "_first_deadline",
        "_idle_s",
        "_last",
        "_least",
        "_said",
        "_spoke",
        "_total_deadline",
        "_window_ends",
        "_window_s",
        "began",
        "first",
    )

    def __init__(
        self,
        *,
        now: float,
        first_token_s: float,
        idle_s: float,
        total_s: float,
        min_rate: float = 0.0,
        rate_window_s: float = 10.0,
    ) -> None:
        """`min_rate`: characters a second, over each window after the first token; 0 asks for none."""
        self.began = now
        self.first: float | None = None
        """When the first token came."""
        self._first_deadline = now + first_token_s
        self._idle_s = idle_s
        self._total_deadline = now + total_s
        self._last: float = _NEVER
        self._spoke = False
        self._window_s = rate_window_s
        self._least = min_rate * rate_window_s
        """Characters that a window must bring."""
        self._window_ends = _NEVER
        self._said = 0
        """Characters at the beginning of the window."""

    def heard(self, now: float) -> None:
        """Bytes of the answer arrived."""
        self._last = now

    def spoke(self, now: float) -> None:
        """The first token arrived."""
        if not self._spoke:
            self._spoke = True
            self.first = now
            if self._least > 0:
                self._window_ends = now + self._window_s
        self._last = now

    def wake_at(self) -> float:
        return min(self._total_deadline, self._other_deadline(), self._window_ends)

    def expired(self, now: float, said: int = 0) -> f.Failure | None:
        """What ran out, the total first: a request out of time has no use for another try.

        `said`: characters of the answer so far.
        """
        if now >= self._total_deadline:
            return f.TotalTimeout("the deadline of the request passed")
        if now < self._other_deadline():
            return self._slow(now, said) if now >= self._window_ends else None
        if not self._spoke:
            return f.FirstTokenTimeout("the provider sent no first token in time")
        return f.IdleTimeout("the provider stopped in the middle of its answer")

    def _slow(self, now: float, said: int) -> f.Failure | None:
        if said - self._said < self._least:
            return f.SlowStream("the provider sent its answer more slowly than timeouts.min_rate")
        self._said = said
        self._window_ends = now + self._window_s
        return None

    def first_token_ms(self) -> float | None:
        return None if self.first is None else (self.first - self.began) * 1000

    def _other_deadline(self) -> float:
        if self._spoke:
            return self._last + self._idle_s
        return self._first_deadline
