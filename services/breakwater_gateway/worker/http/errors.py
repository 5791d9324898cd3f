"""What can go wrong between us and a provider's socket, told apart by what a caller may do about it."""

from typing import Literal

ConnectKind = Literal["dns", "tcp", "tls", "proxy", "timeout"]


class HttpFailure(Exception):
    """A call over HTTP failed below the level of HTTP's own status codes."""


class ConnectFailed(HttpFailure):
    """No connection came to be, so nothing of the request was sent."""

    def __init__(self, kind: ConnectKind, message: str, *, late_s: float = 0.0) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind: ConnectKind = kind
        self.late_s = late_s
        """How long after its time a timeout came: much, and it was our own loop that stood still."""
        self.message = message


class PoolTimeout(HttpFailure):
    """Every connection to the origin stayed in use, so nothing of the request was sent."""


class ReadFailed(HttpFailure):
    """The connection failed, or was closed by us, before the answer was whole."""


class CutAnswer(ReadFailed):
    """The other side ended the connection (or stream) early.

    `expected`: what was still owed: the `head`, the rest of a `length` (declared), the end of a
    `chunked` body, of an HTTP/2 `stream` or of a compressed `coding`; or a close-delimited body ended
    by an error (`close`).
    """

    def __init__(
        self,
        expected: Literal["head", "length", "chunked", "close", "stream", "coding"],
        message: str,
    ) -> None:
        super().__init__(message)
        self.expected = expected


class MalformedHttp(HttpFailure):
    """What came is not HTTP as we can trust it."""


class AnswerTooLarge(HttpFailure):
    """The answer exceeds the bound it was to be read with; the connection is gone."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"the answer exceeds {limit} bytes")
        self.limit = limit
