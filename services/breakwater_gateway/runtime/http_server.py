"""An HTTP/1.1 server on httptools: bounded, callback-driven, no task per request."""

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

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


class Responder(Protocol):
    """One answer. Either `respond`, or `start`, any number of `write`, and `end` or `abort`."""

    on_close: Callable[[], None] | None
    """Set by the application: called once if the client goes away before the answer has ended."""

    @property
    def closed(self) -> bool: ...

    @property
    def congested(self) -> bool:
        """The client reads more slowly than we write: the transport's buffer is over its mark."""
        ...

    def respond(self, status: int, headers: Headers, body: bytes = b"") -> None: ...
    def start(self, status: int, headers: Headers) -> None:
        """Begins a chunked answer; the head goes out with the first `write`."""
        ...

    def write(self, data: bytes) -> None: ...
    def end(self) -> None: ...
    def abort(self) -> None:
        """Cuts the connection: the client must see that the answer is not whole."""
        ...


Application = Callable[[HttpRequest, Responder], None]
