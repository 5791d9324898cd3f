"""What a caller has of its stream so far, kept so that another deployment can go on where it stopped.

Fed with the copies of a worker's messages; bounded: a stream that outgrows the bound cannot be gone on
with any more, and what was kept of it is let go.
"""

from collections.abc import Mapping

from breakwater_protocol import headers as h


class Copies:
    __slots__ = ("_limit", "_lines", "_size", "messages", "whole")

    def __init__(self, limit: int) -> None:
        """`limit`: bytes kept at most."""
        self._limit = limit
        self._lines: list[bytes] = []
        self._size = 0
        self.messages = 0
        """How many messages the caller has: the number that the next one bears."""
        self.whole = True
        """Nothing of the stream is missing here."""

    def take(self, data: bytes, headers: Mapping[str, str]) -> None:
        if h.END in headers or not data:
            return
        self.messages += 1
        self._size += len(data)
        if self._size > self._limit:
            self.whole = False
            self._lines.clear()
        if self.whole:
            self._lines.append(data)

    @property
    def size(self) -> int:
        """Bytes that the caller has, of which the text is a part."""
        return self._size

    @property
    def begun(self) -> bool:
        return self.messages > 0

    def lines(self) -> bytes:
        """All of it, in the caller's dialect, joined by line ends."""
        return b"\n".join(self._lines)
