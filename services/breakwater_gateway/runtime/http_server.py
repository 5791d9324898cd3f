"""An HTTP/1.1 server on httptools: bounded, callback-driven, no task per request.

Source of the wire rules: RFC 9110 (semantics) and RFC 9112 (HTTP/1.1 framing). A client that closes its
sending half is taken to be gone: callers of language models do so only when they give up.
"""

import asyncio
import errno
import math
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from email.utils import formatdate
from http import HTTPStatus
from typing import Final, NoReturn, Protocol, cast
from urllib.parse import unquote_to_bytes

import httptools
import msgspec
from msgspec import Struct

from breakwater_gateway.runtime.telemetry import Log

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


class AddressInUse(Exception):
    """Another program listens on the address."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(
            f"{host}:{port} is in use by another program: stop it, or choose another port"
        )
        self.host = host
        self.port = port


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


class HttpServer:
    """Serves `app` on one address. `app` must not block; it answers at once or later, through the responder."""

    def __init__(
        self,
        app: Application,
        *,
        log: Log,
        limits: HttpLimits | None = None,
        refuse: Refuse | None = None,
    ) -> None:
        self.app = app
        self.log = log
        self.limits = limits = limits or HttpLimits()
        self.refuse = refuse or refuse_as_json
        self.draining = False
        self.port = 0
        self.now = 0.0
        """The loop's time at the last tick: deadlines need no better."""
        shortest = min(
            limits.head_s, limits.body_s, limits.idle_s, limits.write_stall_s, limits.linger_s
        )
        self.tick_s = min(max(shortest / 4, 0.01), 1.0)
        self._connections: set[_Connection] = set()
        self._busy = 0
        self._server: asyncio.Server | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._changed: asyncio.Event | None = None
        self._date_second = 0
        self._date = ""

    @property
    def connections(self) -> int:
        return len(self._connections)

    @property
    def busy(self) -> int:
        """Connections with a request that is arriving, waiting or being answered."""
        return self._busy

    async def start(self, host: str, port: int, *, reuse_port: bool = False) -> None:
        """Listens; `port` 0 takes a free one, then found in `.port`. Raises `AddressInUse`, `OSError`."""
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(
                self.connection, host, port, backlog=1024, reuse_port=reuse_port or None
            )
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise AddressInUse(host, port) from error
            raise
        self.port = self._server.sockets[0].getsockname()[1]

    def connection(self) -> asyncio.Protocol:
        """The protocol of a new connection."""
        return _Connection(self)

    async def drain(self, timeout_s: float) -> int:
        """Takes no new connections, finishes what is in hand, closes the rest.

        Requests that still arrive on open connections are served, with `connection: close`. Returns the
        number of connections that had to be cut because `timeout_s` passed.
        """
        if self._server is not None:
            # Connections that the kernel has accepted are taken first: closing would reset them.
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            self._server.close()
        self.draining = True
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        await self._until(lambda: not self._busy, deadline)
        cut = self._busy
        for connection in tuple(self._connections):
            connection.leave()
        await self._until(lambda: not self._connections, deadline)
        cut += sum(connection.unsent() > 0 for connection in self._connections)
        await self.close()
        return cut

    async def close(self) -> None:
        """Stops at once, and cuts what is in hand."""
        self.draining = True
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in tuple(self._connections):
            connection.abort()
        # The transports report their end in the loop's next turns.
        for _ in range(3):
            await asyncio.sleep(0)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def _until(self, done: Callable[[], bool], deadline: float) -> None:
        self._changed = changed = asyncio.Event()
        try:
            async with asyncio.timeout_at(deadline):
                while not done():
                    changed.clear()
                    await changed.wait()
        except TimeoutError:
            return
        finally:
            self._changed = None

    def tick(self, now: float) -> None:
        """Acts on every deadline passed by `now`: one timer serves all connections."""
        self.now = now
        for connection in tuple(self._connections):
            if connection.deadline <= now:
                connection.expire()

    def date_line(self) -> str:
        """`date: …`, made once a second."""
        second = int(time.time())
        if second != self._date_second:
            self._date_second = second
            self._date = f"date: {formatdate(second, usegmt=True)}\r\n"
        return self._date

    def opened(self, connection: "_Connection") -> None:
        self._connections.add(connection)
        if self._timer is None:
            self._wait()

    def closed(self, connection: "_Connection") -> None:
        self._connections.discard(connection)
        if self._changed is not None:
            self._changed.set()

    def busier(self) -> None:
        self._busy += 1

    def quieter(self) -> None:
        self._busy -= 1
        if self._changed is not None:
            self._changed.set()

    def _wait(self) -> None:
        loop = asyncio.get_running_loop()
        self.now = loop.time()
        self._timer = loop.call_later(self.tick_s, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self.tick(asyncio.get_running_loop().time())
        if self._connections:
            self._wait()


def refuse_as_json(status: int, message: str, responder: Responder) -> None:
    """The default refusal: OpenAI's error object."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    error = {"message": message, "type": kind, "param": None, "code": None}
    body = msgspec.json.encode({"error": error})
    responder.respond(status, [("content-type", "application/json")], body)


_FRESH, _STARTED, _STREAMING, _ENDED, _GONE = range(5)
_OPEN: Final = (_STARTED, _STREAMING)
_OWN_HEADERS: Final = frozenset({"content-length", "transfer-encoding", "connection", "date"})
_STATUS_LINES: Final = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n" for status in HTTPStatus
}
_BODILESS: Final = frozenset({204, 304})
_UNSAFE: Final = str.maketrans("\r\n\0", "   ")
_JOIN_BYTES: Final = 16 * 1024
"""Below it, copying head and body together is cheaper than a vectored write."""
_NAMES: Final = {
    spelling.encode(): name
    for name in [
        "accept",
        "accept-encoding",
        "accept-language",
        "api-key",
        "authorization",
        "connection",
        "content-length",
        "content-type",
        "cookie",
        "expect",
        "host",
        "origin",
        "referer",
        "traceparent",
        "transfer-encoding",
        "user-agent",
        "x-api-key",
        "x-request-id",
        "x-stainless-arch",
        "x-stainless-async",
        "x-stainless-lang",
        "x-stainless-os",
        "x-stainless-package-version",
        "x-stainless-raw-response",
        "x-stainless-read-timeout",
        "x-stainless-retry-count",
        "x-stainless-runtime",
        "x-stainless-runtime-version",
    ]
    for spelling in (name, name.title())
}
"""Usual names in their usual spellings, to spare most of the folding."""
_RESET: Final = struct.pack("ii", 1, 0)


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

    def __init__(
        self, connection: "_Connection", *, keep: bool, head_only: bool, old: bool
    ) -> None:
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
        date = self._connection.server.date_line()
        return f"{line}{date}{text}{framing}\r\n".encode("latin-1", "replace")


class _Message(Struct):
    """A complete request in its place in the connection's line."""

    request: HttpRequest
    keep: bool
    old: bool


class _Refusal(Struct, frozen=True):
    status: int
    message: str
    head_only: bool


class _Stop(Exception):
    """Leaves the parser from inside a callback; why is noted on the connection."""


class _Connection(asyncio.Protocol):
    """One client: parser's callbacks in, exchanges out, in order.

    `deadline` means what the state says: end of head, body or idle time; of a stalled write; of lingering.
    """

    __slots__ = (
        "_active",
        "_body",
        "_body_bytes",
        "_busy",
        "_deaf",
        "_discarded",
        "_fed",
        "_headers",
        "_keep",
        "_leaving",
        "_lingering",
        "_method",
        "_old",
        "_pairs",
        "_parser",
        "_path",
        "_paused",
        "_peer",
        "_pumping",
        "_query",
        "_read",
        "_reading",
        "_rejection",
        "_slack",
        "_spliced",
        "_stage",
        "_transport",
        "_upgrade",
        "_url",
        "_waiting",
        "congested",
        "deadline",
        "server",
    )

    _transport: asyncio.Transport

    def __init__(self, server: HttpServer) -> None:
        self.server = server
        self.congested = False
        self.deadline = math.inf
        self._parser: httptools.HttpRequestParser | None = None
        self._peer = ""
        self._active: Exchange | None = None
        self._waiting: deque[_Message | _Refusal] = deque()
        self._pumping = False
        self._busy = False
        self._paused = False
        self._leaving = False
        """The transport is closing, or is to be cut."""
        self._lingering = False
        self._deaf = False
        """No further request is taken from this client; what it sends is thrown away."""
        self._discarded = 0
        self._rejection: _Refusal | None = None
        # The message that the parser is in.
        self._reading = False
        self._spliced = False
        self._url = b""
        self._headers: dict[str, str] = {}
        self._pairs: list[tuple[bytes, bytes]] = []
        self._read = 0
        """Size of the read at hand."""
        self._fed = 0
        """Bytes read since the message began, without the read in which it did; that one is `_slack`."""
        self._slack = 0
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._stage = 0
        self._upgrade = False
        self._keep = False
        self._old = False
        self._method = ""
        self._path = ""
        self._query = ""

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports have the interface without the base class.
        self._transport = transport = cast("asyncio.Transport", transport)
        server = self.server
        peer = transport.get_extra_info("peername")
        self._peer = peer[0] if isinstance(peer, tuple) else ""
        limit = server.limits.connections
        over = server.connections - limit
        server.opened(self)
        if over >= 0:
            server.log.warning("http_connections_exhausted", limit=limit, peer=self._peer)
            if over > min(limit, 1024):
                self._leaving = True
                transport.abort()
            else:
                self._reject(503, "The server has no connection to spare; try again shortly.")
            return
        self._parser = httptools.HttpRequestParser(self)
        self._await(server.limits.head_s)

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            self._discard(len(data))
            return
        self._read = size = len(data)
        self._fed += size
        self._feed(data)
        if self._reading and not self._deaf:
            self._check_overhead()

    def eof_received(self) -> None:
        self._lose()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._leaving = self._deaf = True
        self._parser = None
        self._waiting.clear()
        self._body.clear()
        self.deadline = math.inf
        self.server.closed(self)
        self._lose()
        self._reading = False
        self._settle()

    def pause_writing(self) -> None:
        self.congested = True
        if self._active is not None:
            self._await(self.server.limits.write_stall_s)

    def resume_writing(self) -> None:
        self.congested = False
        if self._active is not None:
            self.deadline = math.inf
            if self._active.on_writable is not None:
                self._guard(self._active.on_writable, "on_writable")

    # What the server and the exchanges call.

    def expire(self) -> None:
        """The deadline has passed."""
        self.deadline = math.inf
        if self._leaving or self._lingering or (self._active is not None and self.congested):
            self._transport.abort()
        elif self._active is not None or self._waiting:
            return
        elif self._reading:
            self._reject(408, "The request did not arrive in time.")
        elif self.unsent():
            self.abort()
        else:
            self.leave()

    def leave(self) -> None:
        """Closes an idle connection after its last bytes, cuts a busy one."""
        self._leaving = self._deaf = True
        if self._active is None:
            self._await(self.server.limits.write_stall_s)
            self._transport.close()
        else:
            self._transport.abort()

    def unsent(self) -> int:
        return self._transport.get_write_buffer_size()

    def abort(self) -> None:
        self._leaving = self._deaf = True
        self._transport.abort()

    def may_stay(self) -> bool:
        """Whether the connection outlives the answer that begins now."""
        if self._waiting:
            return True
        return not self._deaf and not self.server.draining

    def write(self, data: bytes, body: bytes = b"") -> None:
        if self._leaving:
            return
        transport = self._transport
        if (
            self.congested
            and transport.get_write_buffer_size() > self.server.limits.write_buffer_bytes
        ):
            self.server.log.warning("http_client_too_slow", peer=self._peer)
            self._leaving = True
            transport.abort()
        elif not body:
            transport.write(data)
        elif len(body) <= _JOIN_BYTES:
            transport.write(data + body)
        else:
            transport.writelines((data, body))

    def answered(self, *, keep: bool) -> None:
        """The active exchange has ended in order."""
        self._active = None
        if self._leaving:
            self._settle()
        elif not keep:
            self._finish()
        elif self._waiting:
            self._pump()
        else:
            limits = self.server.limits
            if not self._reading:
                self._await(limits.idle_s)
                self._settle()
            else:
                self._await(limits.body_s if self._stage else limits.head_s)

    def cut(self, *, reset: bool) -> None:
        self._active = None
        self._leaving = self._deaf = True
        self._waiting.clear()
        if reset:
            sock = self._transport.get_extra_info("socket")
            if sock is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self._transport.abort()
        else:
            self._await(self.server.limits.write_stall_s)
            self._transport.close()
        self._reading = False
        self._settle()

    # What the parser calls, in this order.

    def on_message_begin(self) -> None:
        if self._spliced:
            return
        if self._deaf:
            raise _Stop
        self._reading = True
        self._stage = 0
        self._url = b""
        self._pairs = []
        self._fed = 0
        self._slack = self._read
        self._body_bytes = 0
        self._upgrade = False
        if not self._busy:
            self._busy = True
            self.server.busier()
        if self._active is None:
            self._await(self.server.limits.head_s)

    def on_url(self, url: bytes) -> None:
        if self._spliced:
            return
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        pairs = self._pairs
        pairs.append((name, value))
        if len(pairs) > self.server.limits.headers:
            self._refuse_head()

    def on_headers_complete(self) -> None:
        self._stage = 1
        if self._spliced:
            return
        parser = self._parser
        assert parser is not None  # noqa: S101 - it is calling
        headers: dict[str, str] = {}
        for name, value in self._pairs:
            key = _NAMES.get(name) or name.decode("latin-1").lower()
            if key in headers:
                headers[key] += ", " + value.decode("latin-1")
            else:
                headers[key] = value.decode("latin-1")
        self._headers = headers
        limit = self.server.limits.head_bytes
        # Counted exactly only if the bytes read so far could exceed the bound at all.
        if (
            self._fed + self._slack > limit
            and len(self._url) + sum(len(name) + len(value) for name, value in self._pairs) > limit
        ):
            self._refuse_head()
        self._keep = parser.should_keep_alive()
        self._old = parser.get_http_version() != "1.1"
        self._method = parser.get_method().decode("latin-1")
        self._locate()
        host = headers.get("host")
        if (host is None and not self._old) or (host is not None and "," in host):
            self._stop(400, "The request must have one Host header.")
        if "transfer-encoding" in headers:
            self._check_coding()
        elif "content-length" in headers:
            # The parser has checked that it is a number.
            if int(headers["content-length"]) > self.server.limits.body_bytes:
                self._refuse_body()
            if self._active is None:
                self._await(self.server.limits.body_s)
        if parser.should_upgrade():
            if self._method == "CONNECT":
                self._stop(501, "This server is not a proxy.")
            self._upgrade = True
        if "expect" in headers:
            self._expect(headers["expect"])

    def on_body(self, data: bytes) -> None:
        self._body_bytes += len(data)
        if self._body_bytes > self.server.limits.body_bytes:
            self._refuse_body()
        self._body.append(data)

    def on_message_complete(self) -> None:
        if self._upgrade:
            # The parser takes what follows for another protocol; `_decline_upgrade` goes on.
            return
        self._reading = self._spliced = False
        pieces = self._body
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self._body = []
        request = HttpRequest(
            self._method, self._path, self._query, self._headers, body, self._peer
        )
        self._headers = {}
        message = _Message(request, self._keep, self._old)
        if not self._keep:
            self._deaf = True
        if self._active is None and not self._waiting:
            self._dispatch(message)
            return
        self._waiting.append(message)
        if len(self._waiting) >= self.server.limits.pipelined:
            self._deaf = True
            message.keep = False
        elif not self._paused and len(self._waiting) >= 4:
            self._paused = True
            self._transport.pause_reading()

    # Reading.

    def _feed(self, data: bytes) -> None:
        parser = self._parser
        if parser is None:
            return
        try:
            parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._decline_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            self._on_parser_error(error)

    def _on_parser_error(self, error: httptools.HttpParserError) -> None:
        rejection, self._rejection = self._rejection, None
        if rejection is not None:
            self._reject(rejection.status, rejection.message)
        elif self._deaf:
            # Something after the last request that this connection takes.
            self._discarded += 1
        elif isinstance(error, httptools.HttpParserCallbackError):
            self.server.log.error("http_parser_callback_failed", error=repr(error.__context__))
            self._reject(500, "The server failed on this request.")
        else:
            self._reject(400, f"The request is not HTTP/1.1: {error}.")

    def _decline_upgrade(self, rest: bytes) -> None:
        """Answers in HTTP/1.1, as RFC 9110, 7.8 allows; Java's client offers h2c on requests with a body.

        The parser stops at an upgrade without reading the body, so a new one is told only the framing.
        """
        headers = self._headers
        self._upgrade = False
        self._parser = parser = httptools.HttpRequestParser(self)
        self._spliced = True
        self._stage = 0
        framing = b"content-length: %d" % int(headers.get("content-length", "0"))
        if "transfer-encoding" in headers:
            framing = b"transfer-encoding: chunked"
        parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n\r\n" % framing)
        if rest:
            self._feed(rest)

    def _check_overhead(self) -> None:
        """Bounds what the parser does not hand over: an unfinished head, chunk extensions, trailers."""
        limits = self.server.limits
        if not self._stage:
            if self._fed > limits.head_bytes:
                self._reject(431, _head_message(limits))
        elif self._fed - self._body_bytes > 2 * limits.head_bytes + 16 * self._body_bytes:
            self._reject(400, "The chunks are smaller than what frames them.")

    def _locate(self) -> None:
        """`_path` and `_query` from origin-form, absolute-form or `*` (RFC 9112, 3.2)."""
        url = self._url
        if not url.startswith(b"/") and url != b"*":
            try:
                parsed = httptools.parse_url(url)
            except httptools.HttpParserInvalidURLError:
                self._stop(400, "The request's target is not a URL.")
            if parsed.host is None:
                self._stop(400, "The request's target is not a URL.")
            url = (parsed.path or b"/") + (b"?" + parsed.query if parsed.query else b"")
        path, _, query = url.partition(b"?")
        query, _, _ = query.partition(b"#")
        if b"%" in path:
            path = unquote_to_bytes(path)
        try:
            self._path = path.decode()
            self._query = query.decode()
        except UnicodeDecodeError:
            self._stop(400, "The request's path is not UTF-8.")
        if not self._path.isprintable() and any(c < " " or c == "\x7f" for c in self._path):
            self._stop(400, "The request's path holds control characters.")

    def _check_coding(self) -> None:
        headers = self._headers
        if "content-length" in headers or self._old:
            self._stop(
                400, "The request's length is ambiguous: Transfer-Encoding must stand alone."
            )
        if headers["transfer-encoding"].strip().lower() != "chunked":
            self._stop(501, "Of transfer codings, only chunked is known.")
        if self._active is None:
            self._await(self.server.limits.body_s)

    def _expect(self, value: str) -> None:
        if value.strip().lower() != "100-continue":
            self._stop(417, "Of expectations, only 100-continue is known.")
        # Behind another answer it has to wait; the client sends its body anyway after a while.
        if not self._old and self._active is None and not self._waiting:
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _refuse_head(self) -> None:
        self._stop(431, _head_message(self.server.limits))

    def _refuse_body(self) -> None:
        self._stop(413, f"The request's body is larger than {self.server.limits.body_bytes} bytes.")

    def _stop(self, status: int, message: str) -> NoReturn:
        self._rejection = _Refusal(status, message, head_only=False)
        raise _Stop

    def _discard(self, size: int) -> None:
        self._discarded += size
        if self._discarded <= self.server.limits.linger_bytes:
            return
        if self._lingering:
            self._leaving = True
            self._transport.abort()
        elif not self._paused:
            self._paused = True
            self._transport.pause_reading()

    # Answering.

    def _reject(self, status: int, message: str) -> None:
        """Queues the last answer of this connection."""
        head_only = self._stage == 1 and self._method == "HEAD"
        self._deaf = True
        self._discarded += 1
        self._reading = False
        self._body = []
        if not self._busy:
            self._busy = True
            self.server.busier()
        self._waiting.append(_Refusal(status, message, head_only))
        self._pump()

    def _pump(self) -> None:
        if self._pumping:
            return
        self._pumping = True
        while self._waiting and self._active is None and not self._leaving:
            self._dispatch(self._waiting.popleft())
        self._pumping = False
        if self._paused and not self._waiting and not self._leaving and not self._lingering:
            self._paused = False
            self._transport.resume_reading()

    def _dispatch(self, item: _Message | _Refusal) -> None:
        self.deadline = math.inf
        server = self.server
        if isinstance(item, _Refusal):
            server.log.info(
                "http_request_refused", status=item.status, reason=item.message, peer=self._peer
            )
            exchange = Exchange(self, keep=False, head_only=item.head_only, old=False)
            self._active = exchange
            self._refuse(item.status, item.message, exchange)
            return
        request = item.request
        exchange = Exchange(self, keep=item.keep, head_only=request.method == "HEAD", old=item.old)
        self._active = exchange
        try:
            server.app(request, exchange)
        except Exception:  # a defect in one answer must not end the others
            server.log.exception(
                "http_application_failed", method=request.method, path=request.path
            )
            if not exchange.begun:
                self._refuse(500, "The server failed on this request.", exchange)
            else:
                exchange.abort()

    def _refuse(self, status: int, message: str, exchange: Exchange) -> None:
        try:
            self.server.refuse(status, message, exchange)
        except Exception:  # as above
            self.server.log.exception("http_refusal_failed", status=status)
            if not exchange.begun:
                refuse_as_json(status, message, exchange)
            else:
                exchange.abort()

    def _finish(self) -> None:
        """The last answer is written: close, but let the client read it even if it is still sending."""
        self._waiting.clear()
        unread = self._discarded or self._reading
        self._deaf = True
        self._reading = False
        if not unread or not self._transport.can_write_eof():
            self._leaving = True
            self._await(self.server.limits.write_stall_s)
            self._transport.close()
        else:
            self._lingering = True
            self._discarded = 0
            self._await(self.server.limits.linger_s)
            if self._paused:
                self._paused = False
                self._transport.resume_reading()
            self._transport.write_eof()
        self._settle()

    def _lose(self) -> None:
        """The client has gone: tell the application, once."""
        exchange, self._active = self._active, None
        self._waiting.clear()
        self._deaf = True
        if exchange is not None:
            owed = exchange.gone()
            if owed is not None:
                self._guard(owed, "on_close")

    def _guard(self, callback: Callable[[], None], name: str) -> None:
        try:
            callback()
        except Exception:  # as in `_dispatch`
            self.server.log.exception("http_callback_failed", callback=name)

    def _settle(self) -> None:
        if self._busy and self._active is None and not self._waiting and not self._reading:
            self._busy = False
            self.server.quieter()

    def _await(self, seconds: float) -> None:
        # One tick more, since `now` is up to a tick old: never early.
        self.deadline = self.server.now + seconds + self.server.tick_s


def _head_message(limits: HttpLimits) -> str:
    return (
        f"The request's head is larger than {limits.head_bytes} bytes or {limits.headers} headers."
    )
