"""Clock: the one place where actors read time and draw chance.

`now` is the loop's monotonic time in seconds, for deadlines and timers; `wall` is Unix time, for facts
that are published. Under a virtual-time event loop both are virtual.
"""

import asyncio
import random
import time
from collections.abc import Callable


class Clock:
    def __init__(self, *, seed: int | None = None, wall: Callable[[], float] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._wall = wall or time.time
        self._random = random.Random(seed)  # noqa: S311 - jitter and choice, not secrets

    def now(self) -> float:
        return self._loop.time()

    def wall(self) -> float:
        return self._wall()

    def draw(self) -> float:
        """Uniform in [0, 1)."""
        return self._random.random()

    def call_at(self, when: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        return self._loop.call_at(when, callback)
