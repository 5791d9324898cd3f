"""Clock: the one place where actors read time and draw chance.

`now` is the loop's monotonic time in seconds, for deadlines and timers; `wall` is Unix time, for facts
that are published. Under a virtual-time event loop `now` is virtual.
"""

import asyncio
import random
import time
from collections.abc import Callable


class Clock:
    def __init__(self, *, seed: int | None = None, wall: Callable[[], float] | None = None) -> None:
        self._loop = loop = asyncio.get_running_loop()
        # uvloop's own time stands still within one turn and counts whole milliseconds; it has the same
        # origin as the system's monotonic clock, which tells what a step of ours really took.
        self._now = time.monotonic if type(loop).__module__.startswith("uvloop") else loop.time
        self._wall = wall or time.time
        self._random = random.Random(seed)  # noqa: S311 - jitter and choice, not secrets

    def now(self) -> float:
        return self._now()

    def wall(self) -> float:
        return self._wall()

    def draw(self) -> float:
        """Uniform in [0, 1)."""
        return self._random.random()

    def new_id(self, prefix: str) -> str:
        """Unique for all practical purposes: 96 random bits in hex after the prefix."""
        return f"{prefix}{self._random.getrandbits(96):024x}"

    def call_at(self, when: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        return self._loop.call_at(when, callback)
