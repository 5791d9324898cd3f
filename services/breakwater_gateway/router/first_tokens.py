"""How long targets take to their first token: what a hedge waits before it makes a second call.

The last `KEPT` of each target, in seconds. Dean and Barroso, "The tail at scale", 2013: a second call after the
95th percentile costs a twentieth more calls and cuts the tail.
"""

from collections import deque
from collections.abc import Collection
from math import ceil
from typing import Final

KEPT: Final = 128
KNOWN_MIN: Final = 20
"""With fewer than these a 95th percentile is a guess, and nothing is hedged."""


class FirstTokens:
    def __init__(self) -> None:
        self._seen: dict[str, deque[float]] = {}

    def add(self, target: str, seconds: float) -> None:
        seen = self._seen.get(target)
        if seen is None:
            seen = self._seen[target] = deque(maxlen=KEPT)
        seen.append(seconds)

    def p95(self, target: str) -> float | None:
        """None: not known yet."""
        seen = self._seen.get(target)
        if seen is None or len(seen) < KNOWN_MIN:
            return None
        return sorted(seen)[ceil(len(seen) * 0.95) - 1]

    def retain(self, known: Collection[str]) -> None:
        self._seen = {target: seen for target, seen in self._seen.items() if target in known}
