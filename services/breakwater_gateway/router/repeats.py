"""Repeats: bodies that were answered from memory before, and what was read of them then.

What a body says depends on its bytes alone, and which question it is on those and on whose it is. So a body
that comes again costs one look-up instead of being decoded, spelled canonically and hashed. Bodies are told
apart by all of their bytes, and questions by everything that their key is made of: nothing is ever another's.
"""

from typing import Final

from breakwater_gateway.cache.key import Key, NotCached
from breakwater_protocol.chat import Asked

BODY_MAX: Final = 64 * 1024
"""A larger body is read each time."""
BYTES_MAX: Final = 8 * 1024 * 1024
QUESTIONS_MAX: Final = 64
"""That one body is known to be: by tenant, scope, API, model and namespace."""
_OVERHEAD: Final = 1_024

Place = tuple[str, ...]
"""Whose question a body is: all that its key's head is made of."""


class Repeat:
    """One body. `keys` is filled by whoever makes keys."""

    __slots__ = ("_among", "asked", "keys", "size")

    def __init__(self, asked: Asked, size: int, among: "Repeats") -> None:
        self.asked = asked
        self.keys: dict[Place, Key | NotCached] = {}
        self.size = size
        """Bytes that count against the bound."""
        self._among: Repeats | None = among
        """None: it was let go, and is known to requests in flight alone."""

    def keep(self, place: Place, key: Key | NotCached) -> None:
        size = _size_of_key(place, key)
        if len(self.keys) >= QUESTIONS_MAX:
            size -= sum(_size_of_key(*each) for each in self.keys.items())
            self.keys.clear()
        self.keys[place] = key
        self.size += size
        if self._among is not None:
            self._among.grown(size)

    def let_go(self) -> None:
        self._among = None


class Repeats:
    __slots__ = ("_bytes", "_known")

    def __init__(self) -> None:
        self._known: dict[tuple[str, bytes], Repeat] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._known)

    def find(self, api: str, body: bytes) -> Repeat | None:
        if len(body) > BODY_MAX:
            return None
        return self._known.get((api, body))

    def keep(self, api: str, body: bytes, asked: Asked) -> None:
        """`asked`: what decoding that body as a request of that API has given."""
        if len(body) > BODY_MAX or (api, body) in self._known:
            return
        # Twice: what was decoded of it holds most of it again.
        size = 2 * len(body) + _OVERHEAD
        self._known[api, body] = Repeat(asked, size, self)
        self.grown(size)

    def grown(self, size: int) -> None:
        """One of them is so much larger, or new."""
        self._bytes += size
        if self._bytes > BYTES_MAX:
            # The older half goes: no bookkeeping while requests repeat.
            for old in list(self._known)[: (len(self._known) + 1) // 2]:
                gone = self._known.pop(old)
                gone.let_go()
                self._bytes -= gone.size

    def forget(self) -> None:
        for each in self._known.values():
            each.let_go()
        self._known.clear()
        self._bytes = 0


def _size_of_key(place: Place, key: Key | NotCached) -> int:
    text = len(key.text) if isinstance(key, Key) else 0
    return _OVERHEAD + sum(map(len, place)) + text
