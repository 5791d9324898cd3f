"""One answer of the HTTP server: its head, its framing, and the order in which it may be told."""

from collections.abc import Callable
from http import HTTPStatus
from typing import Final, Protocol

from breakwater_gateway.runtime.http.application import Headers

_FRESH, _STARTED, _STREAMING, _ENDED, _GONE = range(5)
_OPEN: Final = (_STARTED, _STREAMING)
_OWN_HEADERS: Final = frozenset({"content-length", "transfer-encoding", "connection", "date"})
_STATUS_LINES: Final = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n" for status in HTTPStatus
}
_BODILESS: Final = frozenset({204, 304})
_UNSAFE: Final = str.maketrans("\r\n\0", "   ")


class Line(Protocol):
    """The connection that the answer goes out on."""

    congested: bool

    def may_stay(self) -> bool:
        """Whether the connection outlives the answer that begins now."""
        ...

    def date_line(self) -> str: ...
    def write(self, data: bytes, body: bytes = b"") -> None: ...
    def answered(self, *, keep: bool) -> None:
        """The answer has ended in order."""
        ...

    def cut(self, *, reset: bool) -> None: ...


class Exchange:
    """One request's answer on its connection: the server's `Responder`."""

    __slots__ = (
        "_chunked",
        "_connection",
        "_head",
        "_head_only",
        "_keep",
        "_old",
        "_state",
        "on_close",
        "on_writable",
    )

    def __init__(self, connection: Line, *, keep: bool, head_only: bool, old: bool) -> None:
        self._connection = connection
        self._keep = keep
        self._head_only = head_only
        self._old = old
        """An HTTP/1.0 client: knows no chunks, and wants to be told that the connection stays."""
        self._state = _FRESH
        self._chunked = False
        self._head = b""
        self.on_close: Callable[[], None] | None = None
        self.on_writable: Callable[[], None] | None = None

    @property
    def closed(self) -> bool:
        return self._state >= _ENDED

    @property
    def congested(self) -> bool:
        return self._connection.congested

    @property
    def begun(self) -> bool:
        return self._state != _FRESH

    def respond(self, status: int, headers: Headers, body: bytes = b"") -> None:
        if self._state != _FRESH:
            self._misused("respond")
            return
        self._keep = self._keep and self._connection.may_stay()
        framing: str = "" if status in _BODILESS else f"content-length: {len(body)}\r\n"
        head = self._encode_head(status, headers, framing)
        self._state = _ENDED
        if self._head_only or status in _BODILESS:
            self._connection.write(head)
        else:
            self._connection.write(head, body)
        self._connection.answered(keep=self._keep)

    def start(self, status: int, headers: Headers) -> None:
        if self._state != _FRESH:
            self._misused("start")
            return
        framing = ""
        if status in _BODILESS:
            self._head_only = True
        elif self._old:
            self._keep = False
        else:
            self._chunked = True
            framing = "transfer-encoding: chunked\r\n"
        self._keep = self._keep and self._connection.may_stay()
        self._head = self._encode_head(status, headers, framing)
        self._state = _STARTED

    def write(self, data: bytes) -> None:
        state = self._state
        if state not in _OPEN:
            self._misused("write")
            return
        if self._head_only:
            data = b""
        elif self._chunked and data:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        if state == _STARTED:
            data = self._head + data
            self._head = b""
            self._state = _STREAMING
        if data:
            self._connection.write(data)

    def end(self) -> None:
        state = self._state
        if state not in _OPEN:
            self._misused("end")
            return
        last = b"0\r\n\r\n" if self._chunked and not self._head_only else b""
        if state == _STARTED:
            last = self._head + last
            self._head = b""
        self._state = _ENDED
        if last:
            self._connection.write(last)
        self._connection.answered(keep=self._keep)

    def abort(self) -> None:
        """Sends what was written, then closes before the end; where closing *is* the end, resets."""
        if self._state >= _ENDED:
            return
        unframed = self._state == _STREAMING and not self._chunked
        self._state = _ENDED
        self._connection.cut(reset=unframed)

    def reset(self) -> None:
        """A TCP reset at once; what is not yet sent is lost."""
        if self._state >= _ENDED:
            return
        self._state = _ENDED
        self._connection.cut(reset=True)

    def gone(self) -> Callable[[], None] | None:
        """The client has left: the callback that is owed to the application, if any."""
        if self._state >= _ENDED:
            return None
        self._state = _GONE
        owed, self.on_close, self.on_writable = self.on_close, None, None
        return owed

    def _misused(self, call: str) -> None:
        if self._state == _GONE:
            return
        state = ("fresh", "started", "streaming", "ended")[self._state]
        raise RuntimeError(f"{call}() on an answer that is {state}")

    def _encode_head(self, status: int, headers: Headers, framing: str) -> bytes:
        lines = [f"{n}: {v}\r\n" for n, v in headers if n.lower() not in _OWN_HEADERS]
        text = "".join(lines)
        # Each line has one CR and one LF, at its end: any more came in with a value.
        if text.count("\n") != len(lines) or text.count("\r") != len(lines) or "\0" in text:
            text = "".join([f"{line[:-2].translate(_UNSAFE)}\r\n" for line in lines])
        if not self._keep:
            framing += "connection: close\r\n"
        elif self._old:
            framing += "connection: keep-alive\r\n"
        line = _STATUS_LINES.get(status) or f"HTTP/1.1 {status:03d} \r\n"
        date = self._connection.date_line()
        return f"{line}{date}{text}{framing}\r\n".encode("latin-1", "replace")
