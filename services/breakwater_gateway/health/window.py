"""A sliding window of call outcomes: counts in time slots, constant work a call.

`now` is monotonic seconds. A clock that steps back is held at the latest time seen; a jump ahead empties
whatever it passed.
"""

from typing import Final, NamedTuple

SLOTS: Final = 10


class Counts(NamedTuple):
    calls: int = 0
    failures: int = 0
    slow: int = 0


class Window:
    """Counts over the last `window_s` seconds, to a slot's precision (`window_s / slots`).

    The slot that is filling counts as a whole one, so the window holds between `window_s` minus a slot
    and `window_s`.
    """

    __slots__ = ("_calls", "_failures", "_now", "_slot_s", "_slots", "_slow", "_sums")

    def __init__(self, window_s: float = 30.0, slots: int = SLOTS) -> None:
        if not (window_s > 0 and slots > 0):
            raise ValueError("a window needs a positive length and at least one slot")
        self._slots = slots
        self._slot_s = window_s / slots
        self._now: int | None = None
        self._calls = [0] * slots
        self._failures = [0] * slots
        self._slow = [0] * slots
        self._sums = Counts()

    def record(self, now: float, *, failed: bool = False, slow: bool = False) -> None:
        slot = self._advance(now)
        self._calls[slot] += 1
        self._failures[slot] += failed
        self._slow[slot] += slow
        calls, failures, slows = self._sums
        self._sums = Counts(calls + 1, failures + failed, slows + slow)

    def counts(self, now: float) -> Counts:
        self._advance(now)
        return self._sums

    def clear(self) -> None:
        self._calls = [0] * self._slots
        self._failures = [0] * self._slots
        self._slow = [0] * self._slots
        self._sums = Counts()

    def _advance(self, now: float) -> int:
        """Index of the current slot, after emptying those that time has passed."""
        slot = int(now // self._slot_s)
        if self._now is None:
            self._now = slot
        elif slot - self._now >= self._slots:
            self.clear()
            self._now = slot
        else:
            while self._now < slot:
                self._now += 1
                self._drop(self._now % self._slots)
        return self._now % self._slots

    def _drop(self, slot: int) -> None:
        calls, failures, slow = self._sums
        self._sums = Counts(
            calls - self._calls[slot], failures - self._failures[slot], slow - self._slow[slot]
        )
        self._calls[slot] = self._failures[slot] = self._slow[slot] = 0
