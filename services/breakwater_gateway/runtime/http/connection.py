"""One client's connection: requests in, answers out, in the same order; what is slow, late or gone is cut."""

import asyncio
import math
import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol, cast

from msgspec import Struct

from breakwater_gateway.runtime.http.answer import Exchange
from breakwater_gateway.runtime.http.application import (
    Application,
    HttpLimits,
    HttpRequest,
    Refuse,
    refuse_as_json,
)
from breakwater_gateway.runtime.http.head import Refused
from breakwater_gateway.runtime.http.request_reader import RequestReader
from breakwater_gateway.runtime.telemetry import Log

_JOIN_BYTES: Final = 16 * 1024
"""Below it, copying head and body together is cheaper than a vectored write."""
_RESET: Final = struct.pack("ii", 1, 0)


class Server(Protocol):
    """What all connections share."""

    app: Application
    log: Log
    limits: HttpLimits
    refuse: Refuse
    draining: bool
    now: float
    """The loop's time at the last tick: deadlines need no better."""
    tick_s: float

    @property
    def connections(self) -> int: ...
    def date_line(self) -> str: ...
    def opened(self, connection: "Connection") -> None: ...
    def closed(self, connection: "Connection") -> None: ...
    def busier(self) -> None: ...
    def quieter(self) -> None: ...


class _Message(Struct):
    """A complete request in its place in the connection's line."""

    request: HttpRequest
    keep: bool
    old: bool


class _Refusal(Struct, frozen=True):
    status: int
    message: str
    head_only: bool


class Connection(asyncio.Protocol):
    """One client: what its reader says in, exchanges out, in order.

    `deadline` means what the state says: end of head, body or idle time; of a stalled write; of lingering.
    """

    __slots__ = (
        "_active",
        "_busy",
        "_discarded",
        "_leaving",
        "_lingering",
        "_paused",
        "_pumping",
        "_reader",
        "_server",
        "_transport",
        "_waiting",
        "congested",
        "deadline",
        "deaf",
        "peer",
    )

    _transport: asyncio.Transport

    def __init__(self, server: Server) -> None:
        self._server = server
        self.congested = False
        self.deadline = math.inf
        self.peer = ""
        self.deaf = False
        self._reader = RequestReader(self, server.limits, server.log)
        self._active: Exchange | None = None
        self._waiting: deque[_Message | _Refusal] = deque()
        self._pumping = False
        self._busy = False
        self._paused = False
        self._leaving = False
        """The transport is closing, or is to be cut."""
        self._lingering = False
        self._discarded = 0

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports have the interface without the base class.
        self._transport = transport = cast("asyncio.Transport", transport)
        server = self._server
        peer = transport.get_extra_info("peername")
        self.peer = peer[0] if isinstance(peer, tuple) else ""
        limit = server.limits.connections
        over = server.connections - limit
        server.opened(self)
        if over >= 0:
            server.log.warning("http_connections_exhausted", limit=limit, peer=self.peer)
            if over > min(limit, 1024):
                self._leaving = self.deaf = True
                transport.abort()
            else:
                self._turn_away(
                    Refused(503, "The server has no connection to spare; try again shortly.")
                )
            return
        self._await(server.limits.head_s)

    def data_received(self, data: bytes) -> None:
        if self.deaf:
            self.discard(len(data))
            return
        refused = self._reader.feed(data)
        if refused is not None:
            self._turn_away(refused)

    def eof_received(self) -> None:
        self._lose()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._leaving = self.deaf = True
        self._waiting.clear()
        self.deadline = math.inf
        self._server.closed(self)
        self._lose()
        self._reader.close()
        self._settle()

    def pause_writing(self) -> None:
        self.congested = True
        if self._active is not None:
            self._await(self._server.limits.write_stall_s)

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
        elif self._reader.arriving:
            self._turn_away(Refused(408, "The request did not arrive in time."))
        elif self.unsent():
            self.abort()
        else:
            self.leave()

    def leave(self) -> None:
        """Closes an idle connection after its last bytes, cuts a busy one."""
        self._leaving = self.deaf = True
        if self._active is None:
            self._await(self._server.limits.write_stall_s)
            self._transport.close()
        else:
            self._transport.abort()

    def unsent(self) -> int:
        return self._transport.get_write_buffer_size()

    def abort(self) -> None:
        self._leaving = self.deaf = True
        self._transport.abort()

    def date_line(self) -> str:
        return self._server.date_line()

    def may_stay(self) -> bool:
        if self._waiting:
            return True
        return not self.deaf and not self._server.draining

    def write(self, data: bytes, body: bytes = b"") -> None:
        if self._leaving:
            return
        transport = self._transport
        if (
            self.congested
            and transport.get_write_buffer_size() > self._server.limits.write_buffer_bytes
        ):
            self._server.log.warning("http_client_too_slow", peer=self.peer)
            self._leaving = True
            transport.abort()
        elif not body:
            transport.write(data)
        elif len(body) <= _JOIN_BYTES:
            transport.write(data + body)
        else:
            transport.writelines((data, body))

    def answered(self, *, keep: bool) -> None:
        self._active = None
        if self._leaving:
            self._settle()
        elif not keep:
            self._finish()
        elif self._waiting:
            self._pump()
        else:
            limits = self._server.limits
            if not self._reader.arriving:
                self._await(limits.idle_s)
                self._settle()
            else:
                self._await(limits.body_s if self._reader.in_body else limits.head_s)

    def cut(self, *, reset: bool) -> None:
        self._active = None
        self._leaving = self.deaf = True
        self._waiting.clear()
        if reset:
            sock = self._transport.get_extra_info("socket")
            if sock is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self._transport.abort()
        else:
            self._await(self._server.limits.write_stall_s)
            self._transport.close()
        self._reader.drop()
        self._settle()

    # What the reader says.

    def begins(self) -> None:
        if not self._busy:
            self._busy = True
            self._server.busier()
        if self._active is None:
            self._await(self._server.limits.head_s)

    def sends_body(self) -> None:
        if self._active is None:
            self._await(self._server.limits.body_s)

    def asks_to_go_on(self) -> None:
        # Behind another answer it has to wait; the client sends its body anyway after a while.
        if self._active is None and not self._waiting:
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def takes(self, request: HttpRequest, *, keep: bool, old: bool) -> None:
        message = _Message(request, keep, old)
        if not keep:
            self.deaf = True
        if self._active is None and not self._waiting:
            self._dispatch(message)
            return
        self._waiting.append(message)
        if len(self._waiting) >= self._server.limits.pipelined:
            self.deaf = True
            message.keep = False
        elif not self._paused and len(self._waiting) >= 4:
            self._paused = True
            self._transport.pause_reading()

    def discard(self, size: int) -> None:
        self._discarded += size
        if self._discarded <= self._server.limits.linger_bytes:
            return
        if self._lingering:
            self._leaving = True
            self._transport.abort()
        elif not self._paused:
            self._paused = True
            self._transport.pause_reading()

    # Answering.

    def _turn_away(self, refused: Refused) -> None:
        """Queues the last answer of this connection."""
        head_only = self._reader.wants_no_body
        self.deaf = True
        self._discarded += 1
        self._reader.drop()
        if not self._busy:
            self._busy = True
            self._server.busier()
        self._waiting.append(_Refusal(refused.status, refused.message, head_only))
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
        server = self._server
        if isinstance(item, _Refusal):
            server.log.info(
                "http_request_refused", status=item.status, reason=item.message, peer=self.peer
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
            self._server.refuse(status, message, exchange)
        except Exception:  # as above
            self._server.log.exception("http_refusal_failed", status=status)
            if not exchange.begun:
                refuse_as_json(status, message, exchange)
            else:
                exchange.abort()

    def _finish(self) -> None:
        """The last answer is written: close, but let the client read it even if it is still sending."""
        self._waiting.clear()
        unread = self._discarded or self._reader.arriving
        self.deaf = True
        self._reader.drop()
        if not unread or not self._transport.can_write_eof():
            self._leaving = True
            self._await(self._server.limits.write_stall_s)
            self._transport.close()
        else:
            self._lingering = True
            self._discarded = 0
            self._await(self._server.limits.linger_s)
            if self._paused:
                self._paused = False
                self._transport.resume_reading()
            self._transport.write_eof()
        self._settle()

    def _lose(self) -> None:
        """The client has gone: tell the application, once."""
        exchange, self._active = self._active, None
        self._waiting.clear()
        self.deaf = True
        if exchange is not None:
            owed = exchange.gone()
            if owed is not None:
                self._guard(owed, "on_close")

    def _guard(self, callback: Callable[[], None], name: str) -> None:
        try:
            callback()
        except Exception:  # as in `_dispatch`
            self._server.log.exception("http_callback_failed", callback=name)

    def _settle(self) -> None:
        if self._busy and self._active is None and not self._waiting and not self._reader.arriving:
            self._busy = False
            self._server.quieter()

    def _await(self, seconds: float) -> None:
        # One tick more, since `now` is up to a tick old: never early.
        self.deadline = self._server.now + seconds + self._server.tick_s
