"""How many calls one target is given at once: a limit that finds itself, told of every answer and refusal.

- A 429 says that what is in flight is too much: the limit becomes 0.7 of it, once for all the calls that
  were under way by then (they ran into the same wall). Answers raise it again by about one per round of
  the limit, and only while it is what holds calls back. Additive increase, multiplicative decrease: Jacobson,
  "Congestion Avoidance and Control" (1988); the factor is CUBIC's (RFC 9438).
- A first token that takes twice as long as it used to says that calls wait inside the provider: the limit
  moves towards limit x long / short. The gradient of Netflix's concurrency-limits (`Gradient2Limit`), whose
  tolerance of 2 and halving at most per step are kept; token counts vary, so only averages are compared.
- A minute without a refusal forgets the cut: what a provider bore then says little about now.

A value that is told the time, in seconds; nothing here counts what is in flight.
"""

from typing import Final

CUT: Final = 0.7
FORGET_S: Final = 60.0
TOLERANCE: Final = 2.0
SMOOTHING: Final = 0.2
_SHORT: Final = 0.1
"""Weight of a new first token in the average of the moment (about 10 answers) …"""
_LONG: Final = 1 / 600
"""… and in that of the past (Netflix's window)."""
_WARM: Final = 20
"""Answers before anything is concluded from their latency."""
_NONE: Final = float("inf")


class Limiter:
    __slots__ = (
        "_answers",
        "_ceiling",
        "_cut_at",
        "_long",
        "_short",
        "_since_step",
        "_slow",
        "limit",
    )

    def __init__(self, ceiling: int | None = None) -> None:
        """`ceiling`: what the configuration allows at most; the limit begins there."""
        self._ceiling = _NONE if ceiling is None else float(ceiling)
        self.limit = self._ceiling
        self._cut_at = -_NONE
        self._answers = 0
        self._since_step = 0
        self._slow = False
        """The last step found the target slower than it used to be."""
        self._short = self._long = 0.0

    @property
    def idle(self) -> bool:
        """There is no limit, and no reason for one."""
        return self.limit == _NONE

    @property
    def is_cut(self) -> bool:
        """It is below what the configuration allows."""
        return self.limit < self._ceiling

    def ceiling(self, ceiling: int | None) -> None:
        """The configuration changed."""
        was, self._ceiling = self._ceiling, _NONE if ceiling is None else float(ceiling)
        self.limit = self._ceiling if self.limit >= was else min(self.limit, self._ceiling)

    def admits(self, in_flight: int) -> bool:
        return in_flight + 1 <= self.limit

    def throttled(self, *, in_flight: int, sent_at: float, now: float) -> None:
        """429. `in_flight`: calls at the target, this one among them; `sent_at`: when it was made."""
        if sent_at < self._cut_at:
            return
        self.limit = max(1.0, min(self.limit, max(1, in_flight)) * CUT)
        self._cut_at = now
        self._since_step = 0

    def answered(self, *, in_flight: int, first_token_s: float | None, now: float) -> None:
        """A whole answer. `first_token_s` is None where there was no stream to take it from."""
        if self.limit < self._ceiling and now - self._cut_at >= FORGET_S:
            self.limit = self._ceiling
        if first_token_s is not None:
            self._told(first_token_s)
        if in_flight >= self.limit - 1 and self.limit < self._ceiling and not self._slow:
            self.limit = min(self._ceiling, self.limit + 1 / self.limit)
        if self._answers < _WARM or self.limit == _NONE:
            return
        self._since_step += 1
        if self._since_step >= self.limit:
            self._step(in_flight, now)

    def _told(self, first_token_s: float) -> None:
        self._answers += 1
        if self._answers <= _WARM:
            # Plain means until there is something to compare.
            self._long += (first_token_s - self._long) / self._answers
            self._short = self._long
            return
        self._short += (first_token_s - self._short) * _SHORT
        self._long += (first_token_s - self._long) * _LONG

    def _step(self, in_flight: int, now: float) -> None:
        """Once per round of the limit: has the target become slow under what it is given?"""
        self._since_step = 0
        gradient = TOLERANCE * self._long / self._short if self._short > 0 else 1.0
        self._slow = gradient < 1 and 2 * in_flight >= self.limit
        if not self._slow:
            return  # as fast as ever, or slow for other reasons than our calls
        gradient = max(0.5, gradient)
        self.limit = max(1.0, self.limit * (1 - SMOOTHING + SMOOTHING * gradient))
        self._cut_at = now
