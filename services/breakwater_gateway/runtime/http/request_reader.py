"""The requests of one connection, read by httptools and bounded: in heads, bodies and what frames them."""

from typing import Protocol

import httptools

from breakwater_gateway.runtime.http.application import HttpLimits, HttpRequest
from breakwater_gateway.runtime.http.head import (
    Refused,
    body_too_large,
    check_host,
    fold,
    has_body,
    head_too_large,
    target,
)
from breakwater_gateway.runtime.telemetry import Log


class Client(Protocol):
    """Whom the requests come from, and who takes them in order."""

    peer: str
    deaf: bool
    """No further request is taken from this client; what it sends is thrown away."""

    def begins(self) -> None:
        """A request begins to arrive."""
        ...

    def sends_body(self) -> None:
        """Its head is whole, and a body follows."""
        ...

    def asks_to_go_on(self) -> None:
        """It waits for `100 Continue` before it sends the body; never from an `old` client."""
        ...

    def takes(self, request: HttpRequest, *, keep: bool, old: bool) -> None:
        """A request is whole. `keep`: the client would stay; `old`: it speaks HTTP/1.0."""
        ...

    def discard(self, size: int) -> None:
        """So many bytes came that belong to no request."""
        ...


class _Deaf(Exception):
    """Leaves the parser: the client is not heard any more."""


class RequestReader:
    """Is fed what the client sends. After a refusal nothing more may be fed."""

    __slots__ = (
        "_body",
        "_body_bytes",
        "_client",
        "_fed",
        "_headers",
        "_keep",
        "_limits",
        "_log",
        "_method",
        "_old",
        "_pairs",
        "_parser",
        "_path",
        "_query",
        "_read",
        "_slack",
        "_spliced",
        "_upgrade",
        "_url",
        "arriving",
        "in_body",
    )

    def __init__(self, client: Client, limits: HttpLimits, log: Log) -> None:
        self.arriving = False
        """A request has begun and is not whole."""
        self.in_body = False
        """The head of the last request that began is whole."""
        self._client = client
        self._limits = limits
        self._log = log
        self._parser: httptools.HttpRequestParser | None = httptools.HttpRequestParser(self)
        self._spliced = False
        self._url = b""
        self._headers: dict[str, str] = {}
        self._pairs: list[tuple[bytes, bytes]] = []
        self._read = 0
        """Size of the read at hand."""
        self._fed = 0
        """Bytes read since the request began, without the read in which it did; that one is `_slack`."""
        self._slack = 0
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._upgrade = False
        self._keep = False
        self._old = False
        self._method = ""
        self._path = ""
        self._query = ""

    @property
    def wants_no_body(self) -> bool:
        """What is arriving is a HEAD: a refusal of it has no body either."""
        return self.in_body and self._method == "HEAD"

    def feed(self, data: bytes) -> Refused | None:
        """Why the client is turned away, if it is."""
        self._read = size = len(data)
        self._fed += size
        refused = self._parse(data)
        if refused is None and self.arriving and not self._client.deaf:
            return self._check_overhead()
        return refused

    def drop(self) -> None:
        """Forget the request that is arriving."""
        self.arriving = False
        self._body = []

    def close(self) -> None:
        """Nothing more is fed; the parser lets go of this."""
        self.drop()
        self._parser = None

    # What the parser calls, in this order.

    def on_message_begin(self) -> None:
        if self._spliced:
            return
        if self._client.deaf:
            raise _Deaf
        self.arriving = True
        self.in_body = False
        self._url = b""
        self._pairs = []
        self._fed = 0
        self._slack = self._read
        self._body_bytes = 0
        self._upgrade = False
        self._client.begins()

    def on_url(self, url: bytes) -> None:
        if self._spliced:
            return
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        pairs = self._pairs
        pairs.append((name, value))
        if len(pairs) > self._limits.headers:
            raise self._head_too_large()

    def on_headers_complete(self) -> None:
        self.in_body = True
        if self._spliced:
            return
        parser, limits = self._parser, self._limits
        assert parser is not None  # noqa: S101 - it is calling
        self._headers = headers = fold(self._pairs)
        limit = limits.head_bytes
        # Counted exactly only if the bytes read so far could exceed the bound at all.
        if (
            self._fed + self._slack > limit
            and len(self._url) + sum(len(name) + len(value) for name, value in self._pairs) > limit
        ):
            raise self._head_too_large()
        self._keep = parser.should_keep_alive()
        self._old = old = parser.get_http_version() != "1.1"
        self._method = parser.get_method().decode("latin-1")
        self._path, self._query = target(self._url)
        check_host(headers, old=old)
        if has_body(headers, old=old, body_bytes=limits.body_bytes):
            self._client.sends_body()
        if parser.should_upgrade():
            if self._method == "CONNECT":
                raise Refused(501, "This server is not a proxy.")
            self._upgrade = True
        if "expect" in headers:
            if headers["expect"].strip().lower() != "100-continue":
                raise Refused(417, "Of expectations, only 100-continue is known.")
            if not old:
                self._client.asks_to_go_on()

    def on_body(self, data: bytes) -> None:
        self._body_bytes += len(data)
        if self._body_bytes > self._limits.body_bytes:
            raise body_too_large(self._limits.body_bytes)
        self._body.append(data)

    def on_message_complete(self) -> None:
        if self._upgrade:
            # The parser takes what follows for another protocol; `_decline_upgrade` goes on.
            return
        self.arriving = self._spliced = False
        pieces = self._body
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self._body = []
        client, headers, self._headers = self._client, self._headers, {}
        request = HttpRequest(self._method, self._path, self._query, headers, body, client.peer)
        client.takes(request, keep=self._keep, old=self._old)

    # What the parser finds wrong.

    def _parse(self, data: bytes) -> Refused | None:
        parser = self._parser
        if parser is None:
            return None
        try:
            parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            return self._decline_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            return self._refused(error)
        return None

    def _refused(self, error: httptools.HttpParserError) -> Refused | None:
        cause = error.__context__
        if isinstance(cause, Refused):
            return cause
        if self._client.deaf:
            # Something after the last request that this connection takes.
            self._client.discard(1)
            return None
        if isinstance(error, httptools.HttpParserCallbackError):
            self._log.error("http_parser_callback_failed", error=repr(cause))
            return Refused(500, "The server failed on this request.")
        return Refused(400, f"The request is not HTTP/1.1: {error}.")

    def _decline_upgrade(self, rest: bytes) -> Refused | None:
        """Answers in HTTP/1.1, as RFC 9110, 7.8 allows; Java's client offers h2c on requests with a body.

        The parser stops at an upgrade without reading the body, so a new one is told only the framing.
        """
        headers = self._headers
        self._upgrade = False
        self._parser = parser = httptools.HttpRequestParser(self)
        self._spliced = True
        self.in_body = False
        framing = b"content-length: %d" % int(headers.get("content-length", "0"))
        if "transfer-encoding" in headers:
            framing = b"transfer-encoding: chunked"
        parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n\r\n" % framing)
        return self._parse(rest) if rest else None

    def _check_overhead(self) -> Refused | None:
        """Bounds what the parser does not hand over: an unfinished head, chunk extensions, trailers."""
        limit = self._limits.head_bytes
        if not self.in_body:
            if self._fed > limit:
                return self._head_too_large()
        elif self._fed - self._body_bytes > 2 * limit + 16 * self._body_bytes:
            return Refused(400, "The chunks are smaller than what frames them.")
        return None

    def _head_too_large(self) -> Refused:
        return head_too_large(self._limits.head_bytes, self._limits.headers)
