"""What an application behind the HTTP server is given, and what it answers with."""

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import msgspec
from msgspec import Struct

Headers = Iterable[tuple[str, str]]


class HttpRequest(Struct, frozen=True):
    method: str
    path: str
    """Percent-decoded."""
    query: str
    headers: Mapping[str, str]
    """Lower-case names; repeated ones joined by `, `."""
    body: bytes
    peer: str = ""
    """The client's address, without its port; empty for sockets that have none."""


class Responder(Protocol):
    """One answer. Either `respond`, or `start`, any number of `write`, and `end` or `abort`.

    What is sent after the client has gone is dropped; a second answer raises `RuntimeError`.
    `content-length`, `transfer-encoding`, `connection` and `date` are the server's own: given ones are
    ignored. CR, LF and NUL in a header become spaces.
    """

    on_close: Callable[[], None] | None
    """Set by the application: called once if the client goes away before the answer has ended."""

    on_writable: Callable[[], None] | None
    """Set by the application: called each time `congested` turns false again."""

    @property
    def closed(self) -> bool:
        """Nothing more can be sent: the answer has ended or the client has gone."""
        ...

    @property
    def congested(self) -> bool:
        """The client reads more slowly than we write: the transport's buffer is over its mark."""
        ...

    def respond(self, status: int, headers: Headers, body: bytes = b"") -> None: ...
    def start(self, status: int, headers: Headers) -> None:
        """Begins a chunked answer; the head goes out with the first `write` (which may be empty)."""
        ...

    def write(self, data: bytes) -> None: ...
    def end(self) -> None: ...
    def abort(self) -> None:
        """Cuts the connection: the client must see that the answer is not whole."""
        ...


Application = Callable[[HttpRequest, Responder], None]

Refuse = Callable[[int, str, Responder], None]
"""Answers, in the application's dialect, what the server turns away by itself: (status, message, responder).

Statuses: 400 malformed, 408 too slow, 413 body and 431 head too large, 417 expectation, 500 the application
raised, 501 transfer coding, 503 too many connections. The connection closes after it, except for a 500.
"""


class HttpLimits(Struct, frozen=True):
    """Bounds on what comes from outside: bytes, counts, and seconds (held to within one tick, below)."""

    head_bytes: int = 64 * 1024
    """Of names and values together; an unfinished head may overshoot by one read of the socket."""
    headers: int = 100
    body_bytes: int = 8 * 1024 * 1024 - 65536
    connections: int = 10_000
    pipelined: int = 64
    """Requests waiting on one connection; the last one accepted is answered with `connection: close`."""
    write_buffer_bytes: int = 8 * 1024 * 1024
    """Unsent bytes of one connection beyond which the next write cuts it."""
    head_s: float = 10.0
    body_s: float = 60.0
    idle_s: float = 75.0
    write_stall_s: float = 60.0
    """How long a client may refuse to read while bytes wait for it."""
    linger_bytes: int = 16 * 1024 * 1024
    linger_s: float = 5.0
    """What is still read, and thrown away, after a refusal, so that the client can read the answer first."""


def refuse_as_json(status: int, message: str, responder: Responder) -> None:
    """The default refusal: OpenAI's error object."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    error = {"message": message, "type": kind, "param": None, "code": None}
    body = msgspec.json.encode({"error": error})
    responder.respond(status, [("content-type", "application/json")], body)
