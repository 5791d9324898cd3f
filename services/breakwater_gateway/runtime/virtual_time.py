"""An asyncio event loop in virtual time: when nothing is ready, the clock jumps to the next timer.

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner: ...

An hour of waiting takes no time, and every run has the same order of events. Threads and real sockets do
not hold the clock back: keep both out of it.
"""

import asyncio
import selectors
from typing import Final

START: Final = 1_000.0
"""Not zero, so that nobody takes the loop's time for a duration."""

DEADLOCK_S: Final = 10.0
"""Real seconds without a timer or a ready callback after which the test is said to hang."""


class Deadlock(RuntimeError):
    """Nothing is scheduled and nothing woke the loop: the test waits for what nobody will do."""


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """`loop.time()` begins at `START` and moves only by jumps to the next timer, or by `advance`."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now

    def advance(self, seconds: float) -> None:
        """Move the clock without running anything: a stall of the event loop."""
        if seconds < 0:
            raise ValueError("time does not run backwards")
        self._jumping.now += seconds


class _JumpingSelector(selectors.DefaultSelector):
    """Looks without waiting; where the loop would have waited, time has passed instead."""

    def __init__(self) -> None:
        super().__init__()
        self.now = START

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or (timeout is not None and timeout <= 0):
            return ready
        if timeout is not None:
            self.now += timeout
            return ready
        ready = super().select(DEADLOCK_S)
        if not ready:
            raise Deadlock("nothing is scheduled and nothing is ready")
        return ready
