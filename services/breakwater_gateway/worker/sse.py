"""An incremental parser of `text/event-stream` (WHATWG HTML, section 9.2.6), on bytes.

Nothing is decoded but the event's name, so a character cut between two chunks needs no care. Line ends
are made LF first; whole `data: …` events of one chunk then cost a split and a slice each, and only what
a chunk left unfinished goes through the line machine. `id` and `retry` serve reconnection, which a
provider's answer does not have: they are ignored.
"""

from typing import Final

from msgspec import Struct

_BOM: Final = b"\xef\xbb\xbf"


class Event(Struct, frozen=True, gc=False):
    event: str
    """The `event` field; `message` where the stream named none."""
    data: bytes
    """The `data` lines joined by LF."""


class EventTooLarge(Exception):
    """A line, or the data of one event, exceeds the limit. The parser is of no use afterwards."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"an event of the stream exceeds {limit} bytes")
        self.limit = limit


class SseParser:
    """Feed it chunks as they come; it holds at most one unfinished event of `limit` bytes."""

    __slots__ = (
        "_data",
        "_event",
        "_has_data",
        "_limit",
        "_line",
        "_open",
        "_skip_lf",
        "_start",
    )

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._start: bytes | None = b""
        """What came so far of a possible byte order mark; None once that is decided."""
        self._skip_lf = False
        self._open = False
        """Some field or part of a line of an event not yet dispatched is held."""
        self._line = bytearray()
        self._data = bytearray()
        self._has_data = False
        self._event = b""

    @property
    def pending(self) -> bool:
        """The stream, if it ended here, would end within an event."""
        return self._open or bool(self._start)

    def feed(self, data: bytes) -> list[Event]:
        """Events that `data` completes. Raises EventTooLarge."""
        if self._start is not None:
            data = self._begin(data)
        if self._skip_lf and data:
            self._skip_lf = False
            if data[0] == 0x0A:
                data = data[1:]
        if b"\r" in data:
            # A CR ends the line at once; the LF that may follow it in the next chunk is dropped there.
            self._skip_lf = data[-1] == 0x0D
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        events: list[Event] = []
        if self._open:
            end = data.find(b"\n\n")
            if end < 0:
                self._feed_lines(data, events)
                return events
            self._feed_lines(data[: end + 2], events)
            data = data[end + 2 :]
        if len(data) > self._limit:
            self._feed_lines(data, events)
            return events
        if data.find(b"\n") == len(data) - 2 and data[:6] == b"data: " and data[-1] == 0x0A:
            events.append(Event("message", data[6:-2]))
            return events
        blocks = data.split(b"\n\n")
        tail = blocks.pop()
        for block in blocks:
            if block.startswith(b"data: ") and b"\n" not in block:
                events.append(Event("message", block[6:]))
            else:
                self._feed_lines(block + b"\n\n", events)
        if tail:
            self._feed_lines(tail, events)
        return events

    def finish(self) -> list[Event]:
        """The event that the stream's end cut short, if one was begun with data: at most one.

        The standard discards it; whether a tail such as `data: [DONE]` without its blank line counts is
        for the caller to say, and `pending`, asked before, tells that there was one.
        """
        events: list[Event] = []
        if self._start:
            start, self._start = self._start, None
            self._feed_lines(start, events)
        self._feed_lines(b"\n\n", events)
        return events

    def _begin(self, data: bytes) -> bytes:
        data = (self._start or b"") + data
        if len(data) < 3 and _BOM.startswith(data):
            self._start = data
            return b""
        self._start = None
        return data.removeprefix(_BOM)

    def _feed_lines(self, data: bytes, events: list[Event]) -> None:
        """The line machine. `data` has LF line ends only."""
        limit = self._limit
        lines = data.split(b"\n")
        held = self._line
        if held:
            held += lines[0]
            if len(held) > limit:
                raise EventTooLarge(limit)
            if len(lines) == 1:
                return
            lines[0] = bytes(held)
            held.clear()
        last = lines.pop()
        for line in lines:
            if not line:
                self._dispatch(events)
                continue
            if len(line) > limit:
                raise EventTooLarge(limit)
            self._open = True
            name, _, value = line.partition(b":")
            if name == b"data":
                self._data += value[1:] if value[:1] == b" " else value
                self._data += b"\n"
                self._has_data = True
                if len(self._data) > limit:
                    raise EventTooLarge(limit)
            elif name == b"event":
                self._event = value[1:] if value[:1] == b" " else value
        if last:
            if len(last) > limit:
                raise EventTooLarge(limit)
            held += last
            self._open = True

    def _dispatch(self, events: list[Event]) -> None:
        if self._has_data:
            name = self._event.decode("utf-8", "replace") if self._event else "message"
            events.append(Event(name, bytes(self._data[:-1])))
            self._data.clear()
            self._has_data = False
        self._event = b""
        self._open = False
