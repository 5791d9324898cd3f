"""The last ones of something, bounded in number and in bytes: the oldest go."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Final, Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")

OVERHEAD: Final = 512
"""Bytes that each one takes besides what it holds: objects, and its place."""


class Recent(Generic[K, V]):
    __slots__ = ("_kept", "_most", "_size", "bytes", "bytes_max")

    def __init__(self, most: int, bytes_max: int, size: Callable[[K, V], int]) -> None:
        """`size`: bytes of what one of them holds."""
        self.bytes = 0
        self.bytes_max = bytes_max
        self._most = most
        self._size = size
        self._kept: OrderedDict[K, tuple[V, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, key: K) -> bool:
        return key in self._kept

    def put(self, key: K, value: V) -> None:
        self.pop(key)
        size = OVERHEAD + self._size(key, value)
        self._kept[key] = (value, size)
        self.bytes += size
        while self._kept and (len(self._kept) > self._most or self.bytes > self.bytes_max):
            _, (_, gone) = self._kept.popitem(last=False)
            self.bytes -= gone

    def get(self, key: K) -> V | None:
        found = self._kept.get(key)
        return None if found is None else found[0]

    def use(self, key: K) -> V | None:
        """As `get`, and it counts as new."""
        found = self._kept.get(key)
        if found is None:
            return None
        self._kept.move_to_end(key)
        return found[0]

    def pop(self, key: K) -> V | None:
        found = self._kept.pop(key, None)
        if found is None:
            return None
        self.bytes -= found[1]
        return found[0]

    def forget(self, which: Callable[[K, V], bool]) -> None:
        """Those that it says."""
        for key in [key for key, (value, _) in self._kept.items() if which(key, value)]:
            self.pop(key)
