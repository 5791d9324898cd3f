"""The answers that one router keeps in memory: bounded in bytes, each for its time.

What has to go when room is needed is the least worth of a few looked at: what it saved by being there (its
cost, times how often it was asked for) over the bytes it takes, where every eviction raises the bar for what
has not been asked for since (greedy dual). Times are Unix seconds, since entries come from other machines.
"""

from collections.abc import Callable
from typing import Final

from breakwater_gateway.cache.entry import Entry
from breakwater_gateway.cache.replay import Template, template
from breakwater_protocol import headers as h

OVERHEAD: Final = 2_048
"""Bytes that an entry takes besides its payload."""
LOOKED_AT: Final = 8
EXACT_ID: Final = "e"
"""First letter of `breakwater-cache-id` where the request was the same to the byte; its key follows."""
_FREE: Final = 1_000
"""Nano-USD that an answer without a known cost counts as: being quick is worth something too."""


class Held:
    """An entry in memory."""

    __slots__ = (
        "entry",
        "facts",
        "fresh_until",
        "hits",
        "kept_until",
        "place",
        "size",
        "templates",
        "worth",
    )

    def __init__(self, entry: Entry, place: int) -> None:
        self.entry = entry
        self.facts = {h.CACHE_ID: EXACT_ID + entry.digest}
        """What every answer out of it says in its headers."""
        if entry.deployment:
            self.facts[h.DEPLOYMENT] = entry.deployment
        if entry.dropped:
            self.facts[h.DROPPED_PARAMS] = entry.dropped
        self.fresh_until = entry.stored_at + entry.fresh_s
        self.kept_until = entry.stored_at + entry.kept_s
        self.hits = 0
        self.place = place
        # Thrice: templates, two at most, are cut from copies.
        self.size = OVERHEAD + 3 * len(entry.payload) + len(entry.usage_line)
        self.templates: dict[tuple[bool, bool], Template] = {}
        self.worth = 0.0

    def template(self, *, stream: bool, usage: bool) -> Template:
        """Raises `CannotReplay`."""
        form = (stream, usage)
        found = self.templates.get(form)
        if found is None:
            if len(self.templates) > 1:
                self.templates.clear()
            found = self.templates[form] = template(self.entry, stream=stream, usage=usage)
        return found


class Exact:
    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.bytes = 0
        self.evicted = 0
        self.hits = 0
        self.misses = 0
        self.stores = 0
        self._held: dict[str, Held] = {}
        self._order: list[str] = []
        """Digests in no order, to look at any of them."""
        self._bar = 0.0
        self._chance = 1

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, digest: str) -> bool:
        return digest in self._held

    def peek(self, digest: str) -> Held | None:
        """Whether or not it may still be given; counts as no hit."""
        return self._held.get(digest)

    def get(self, digest: str, now: float) -> Held | None:
        """Fresh or not; gone when it is not even kept any more."""
        held = self._held.get(digest)
        if held is None:
            self.misses += 1
            return None
        if now >= held.kept_until:
            self.forget(digest)
            self.misses += 1
            return None
        self.hits += 1
        held.hits += 1
        held.worth = self._worth(held)
        return held

    def put(self, entry: Entry) -> Held | None:
        """None when it is larger than the whole."""
        self.forget(entry.digest)
        held = Held(entry, len(self._order))
        if held.size > self.bytes_max:
            return None
        while self.bytes + held.size > self.bytes_max:
            self._evict()
        self.stores += 1
        held.place = len(self._order)
        held.worth = self._worth(held)
        self._held[entry.digest] = held
        self._order.append(entry.digest)
        self.bytes += held.size
        return held

    def forget(self, digest: str) -> bool:
        held = self._held.pop(digest, None)
        if held is None:
            return False
        self.bytes -= held.size
        last = self._order.pop()
        if last != digest:
            self._order[held.place] = last
            self._held[last].place = held.place
        return True

    def forget_all(self, which: Callable[[Entry], bool]) -> list[str]:
        """Those that it says; their digests."""
        gone = [digest for digest, held in self._held.items() if which(held.entry)]
        for digest in gone:
            self.forget(digest)
        return gone

    def resize(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        while self.bytes > bytes_max:
            self._evict()

    def _worth(self, held: Held) -> float:
        cost = held.entry.cost_nano_usd or _FREE
        return self._bar + (1 + held.hits) * cost / held.size

    def _evict(self) -> None:
        count = len(self._order)
        best = ""
        for _ in range(min(LOOKED_AT, count)):
            # A linear congruence: which few are looked at need not be unpredictable.
            self._chance = (self._chance * 1_103_515_245 + 12_345) & 0x7FFFFFFF
            digest = self._order[(self._chance >> 8) % count]
            if not best or self._held[digest].worth < self._held[best].worth:
                best = digest
        self._bar = self._held[best].worth
        self.forget(best)
        self.evicted += 1
