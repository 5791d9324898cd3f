"""The throttle of one deployment: a release for each key of its pool, and one queue before them all.

Providers limit keys, so a 429 pauses the key that met it. The others go on; only when none may be used is the
deployment throttled, and whoever would go there waits in one queue, out of which each key lets go at its own
pace: so the first one goes when the key that is free first is. A key whose pause is over while nobody waits
is tried by a request that passes by, one at a time, as the queue would have it.

With one key, or none, it is that key's `Release` and nothing else. A value without a clock.
"""

from collections.abc import Iterable
from typing import Final

from breakwater_gateway.router.release import UNTRIED_MAX, Rank, Release, Waiting

UNTRIED_LEAST: Final = 4
"""Of a key of a large pool, before anything is known of it."""


class Throttle:
    __slots__ = ("_waiting", "keys")

    def __init__(self, keys: int = 1) -> None:
        self._waiting = Waiting()
        self.keys: list[Release] = []
        self.resize(keys)

    def resize(self, keys: int) -> None:
        """The configuration changed: what is known of keys that stay is kept, by their place in the pool."""
        keys = max(1, keys)
        del self.keys[keys:]
        self.keys += [Release(self._waiting) for _ in range(keys - len(self.keys))]
        for release in self.keys:
            release.untried_max = max(UNTRIED_LEAST, UNTRIED_MAX // keys)

    # ------------------------------------------------------------ what is known

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def firsts(self) -> list[str]:
        """Of each priority the request that has waited longest."""
        return self._waiting.firsts()

    def key(self, key: int) -> Release:
        return self.keys[key % len(self.keys)]

    def admits(self, now: float) -> bool:
        """A request that has not waited may go at once, with whichever key its turn is."""
        for release in self.keys:  # noqa: SIM110 - once a request, and a generator costs more than the loop
            if not release.admits(now):
                return False
        return True

    def usable(self, among: Iterable[int], now: float) -> tuple[int, ...]:
        """Keys of these that a request which has not waited may use now."""
        if len(self.keys) == 1:
            return (0,) if self.keys[0].admits(now) else ()
        if self.waiting:
            return tuple(key for key in among if self.key(key).admits(now))
        return tuple(key for key in among if self.key(key).admits(now) or self.key(key).is_due(now))

    def until(self, among: Iterable[int], now: float) -> float:
        """The earliest moment at which somebody who waits may go, as far as it can be told."""
        return min((self.key(key).until(now) for key in among), default=now)

    # ------------------------------------------------------------ what happened

    def sent(self, key: int, request: str, now: float, *, turn: bool) -> None:
        """A call of this request went out; `turn`: it had waited, and `due` let it go."""
        release = self.key(key)
        if not turn and len(self.keys) > 1 and release.phase != "open":
            release.turn(now)  # it passed by, and is the one that tries the key
        release.sent(request, now)

    def pause(self, key: int | None, wait_s: float | None, now: float) -> None:
        """Another router's call was refused, with this key; None: whichever it was, for all of them."""
        for release in self.keys if key is None else (self.key(key),):
            release.pause(wait_s, now)

    # ------------------------------------------------------------ who waits

    def join(self, request: str, rank: Rank) -> None:
        self._waiting.join(request, rank)

    def leave(self, request: str) -> None:
        self._waiting.leave(request)

    def due(self, among: Iterable[int], now: float) -> tuple[str, int] | None:
        """The next that may go now, and with which of these keys; it waits no longer. Ask until None."""
        for key in among:
            request = self.key(key).due(now)
            if request is not None:
                return request, key
        return None

    def wake_at(self, among: Iterable[int], now: float) -> float | None:
        """When `due` should be asked again though nothing happens; None: nobody waits."""
        times = [at for key in among if (at := self.key(key).wake_at(now)) is not None]
        return min(times, default=None)
