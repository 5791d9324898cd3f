"""One HTTP/1.1 connection (RFC 9112) on httptools: callbacks fill the answer, nothing else runs.

A connection serves one answer at a time. It goes back to its pool as soon as the message is complete
(whether or not it has been read), and only if nothing about it is in doubt: the request was written
whole, both sides keep alive, and not one byte came beyond the end.
"""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, cast

import httptools

from breakwater_gateway.worker.http.answer import (
    HIGH_WATER_BYTES,
    PIECES_MAX,
    RawHeaders,
    WireAnswer,
)
from breakwater_gateway.worker.http.errors import (
    CutAnswer,
    HttpFailure,
    MalformedHttp,
    ReadFailed,
)

if TYPE_CHECKING:
    from breakwater_gateway.worker.http.pool import Pool
    from breakwater_gateway.worker.http.prepared import Field, Prepared

HEAD_BYTES_MAX: Final = 64 * 1024
"""Of status lines and headers of an answer, interim ones included; and of its trailers."""
SILENT_BYTES_MAX: Final = 64 * 1024
"""Received in a row without any body coming of it: chunk extensions and the like."""
INTERIM_MAX: Final = 16
"""1xx responses before the final one."""
STALE_WITHIN_S: Final = 1.0
"""A few round trips: a connection that was already closed answers a request with a reset."""
JOIN_BELOW: Final = 64 * 1024
"""Bodies shorter than this are sent in one piece with the head: a copy is cheaper than a second write."""


class Http1Connection(asyncio.Protocol):
    """Also the carrier of its answers, and what the parser calls back."""

    __slots__ = (
        "answer",
        "bodiless",
        "chunked",
        "closed",
        "dirty",
        "done",
        "head_bytes",
        "header_bytes",
        "headers",
        "holds",
        "idle_since",
        "interim",
        "keep",
        "length",
        "loop",
        "parser",
        "paused",
        "pool",
        "pooled",
        "silent",
        "started_at",
        "transport",
        "uses",
    )

    def __init__(self, pool: "Pool") -> None:
        self.pool = pool
        self.loop = asyncio.get_running_loop()
        self.transport: asyncio.Transport
        self.parser = httptools.HttpResponseParser(self)
        self.answer: WireAnswer | None = None
        self.pooled = False
        """Counted by the pool, which must then hear of its end."""
        self.holds = 0
        """1 while it is somebody's, 0 while it is idle."""
        self.uses = 0
        self.started_at = 0.0
        self.idle_since = 0.0
        self.closed = False
        self.paused = False
        self._fresh()

    def _fresh(self) -> None:
        """State of one message."""
        self.headers: RawHeaders = []
        self.head_bytes = 0
        self.header_bytes = 0
        self.silent = 0
        self.interim = 0
        self.chunked = False
        self.length = False
        self.done = False
        self.keep = False
        self.dirty = False

    # ------------------------------------------------------------------ requests

    def start(self, prepared: "Prepared", body: bytes, fields: "Sequence[Field]") -> WireAnswer:
        """Sends a request. The connection is the caller's, taken from the pool."""
        extra = b"".join([b"%b: %b\r\n" % field for field in fields]) if fields else b""
        self._fresh()
        self.bodiless = prepared.method == "HEAD"
        self.uses += 1
        self.started_at = self.loop.time()
        answer = WireAnswer(self)
        if self.closed:
            answer.finish(CutAnswer("head", "the connection ended before the request"))
            return answer
        self.answer = answer
        size = len(body)
        if size > JOIN_BELOW:
            self.transport.write(b"%b%bcontent-length: %d\r\n\r\n" % (prepared.head, extra, size))
            self.transport.write(body)
        elif size or prepared.sends_length:
            self.transport.write(
                b"%b%bcontent-length: %d\r\n\r\n%b" % (prepared.head, extra, size, body)
            )
        else:
            self.transport.write(b"%b%b\r\n" % (prepared.head, extra))
        return answer

    @property
    def available(self) -> bool:
        return not self.closed

    def release(self) -> None:
        """Gives back an untouched connection."""
        if not self.closed:
            self._give()

    def stop(self) -> None:
        """Closes it; an answer under way fails."""
        self._end(ReadFailed("the connection was closed by us"))

    # ------------------------------------------------------------------ carrier of the answer

    def consumed(self, answer: WireAnswer, count: int) -> None:  # noqa: ARG002 - the carrier's shape
        answer.held_back = False
        if self.paused and not self.closed:
            self.paused = False
            self.transport.resume_reading()

    def abandon(self, answer: WireAnswer) -> None:
        if answer is self.answer:
            self.answer = None
            self._drop()

    # ------------------------------------------------------------------ asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        answer = self.answer
        if answer is None:
            # Nothing was asked, so whatever this is must never pass for the next answer.
            self._drop()
            return
        before = answer.size
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError as error:
            if not self.done:
                self._end(_told(error))
                return
            self.dirty = True
        except httptools.HttpParserUpgrade:
            self._end(MalformedHttp("the answer switches protocols"))
            return
        if self.done:
            self._complete(answer)
            return
        if not answer.head_done:
            self.head_bytes += len(data)
            if self.head_bytes > HEAD_BYTES_MAX:
                self._end(MalformedHttp(f"the answer's head exceeds {HEAD_BYTES_MAX} bytes"))
            return
        if answer.size == before:
            self.silent += len(data)
            if self.silent > SILENT_BYTES_MAX:
                self._end(MalformedHttp("the answer's chunks are nothing but extensions"))
                return
        else:
            self.silent = 0
            if answer.size >= HIGH_WATER_BYTES or len(answer.pieces) >= PIECES_MAX:
                answer.held_back = True
                if not self.paused:
                    self.paused = True
                    self.transport.pause_reading()
        answer.wake()

    def eof_received(self) -> None:
        self._lost(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost(exc)
        # The parser holds our bound methods: without this each connection is garbage in a cycle.
        del self.parser

    # ------------------------------------------------------------------ httptools

    def on_message_begin(self) -> None:
        if self.done:
            self.dirty = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.done:
            return
        self.header_bytes += len(name) + len(value)
        if self.header_bytes > HEAD_BYTES_MAX:
            raise MalformedHttp(f"the answer's headers exceed {HEAD_BYTES_MAX} bytes")
        answer = self.answer
        if answer is None or answer.head_done:
            return  # a trailer: nobody reads them
        self.headers.append((name, value))
        size = len(name)
        if size == 14:
            self.length = self.length or name.lower() == b"content-length"
        elif size == 17:
            self.chunked = self.chunked or (
                name.lower() == b"transfer-encoding" and b"chunked" in value.lower()
            )

    def on_headers_complete(self) -> None:
        answer = self.answer
        if self.done or answer is None:
            return
        status = self.parser.get_status_code()
        if status < 200:
            self.interim += 1
            if status == 101 or status < 100:
                raise MalformedHttp(f"an answer of status {status} to a plain request")
            if self.interim > INTERIM_MAX:
                raise MalformedHttp("too many interim answers")
            return
        answer.status = status
        answer.raw_headers = self.headers
        answer.head_done = True
        self.keep = self.parser.should_keep_alive()
        if not self.keep:
            answer.http_version = self.parser.get_http_version()
        if self.bodiless or status in {204, 304}:
            # The parser does not know what was asked, and would wait for the body that the headers
            # describe. Whatever else comes cannot be told from one, so the connection ends here.
            self.done = True
            self.dirty = self.bodiless or self.length or self.chunked

    def on_body(self, body: bytes) -> None:
        answer = self.answer
        if answer is not None and not self.done:
            answer.pieces.append(body)
            answer.size += len(body)

    def on_message_complete(self) -> None:
        answer = self.answer
        if answer is not None and answer.head_done:
            self.done = True
        else:
            self.headers = []
            self.length = self.chunked = False

    # ------------------------------------------------------------------ ends

    def _complete(self, answer: WireAnswer) -> None:
        self.answer = None
        answer.finish()
        transport = self.transport
        if (
            self.keep
            and not self.dirty
            and not self.closed
            and transport.get_write_buffer_size() == 0
        ):
            if self.paused:
                self.paused = False
                transport.resume_reading()
            self._give()
        else:
            self._drop()

    def _give(self) -> None:
        self.holds = 0
        self.pool.give(self)

    def _end(self, failure: HttpFailure) -> None:
        answer, self.answer = self.answer, None
        self._drop()
        if answer is not None:
            answer.finish(failure)

    def _lost(self, exc: Exception | None) -> None:
        answer = self.answer
        if answer is None:
            self._drop()
        elif not answer.head_done:
            # Only what fails at once is a connection that was closed already: a provider that took
            # the request and died over it later may have done, and billed, the work.
            answer.unprocessed = (
                self.uses > 1
                and self.head_bytes == 0
                and self.loop.time() - self.started_at < STALE_WITHIN_S
            )
            self._end(
                CutAnswer("head", f"the connection ended before the answer's head{_why(exc)}")
            )
        elif self.chunked:
            self._end(
                CutAnswer("chunked", f"the connection ended within a chunked body{_why(exc)}")
            )
        elif self.length:
            self._end(CutAnswer("length", f"the connection ended before content-length{_why(exc)}"))
        elif exc is not None:
            self._end(CutAnswer("close", f"the connection failed before its end{_why(exc)}"))
        else:
            self.answer = None
            answer.finish()
            self._drop()

    def _drop(self) -> None:
        if not self.closed:
            self.closed = True
            self.transport.abort()
            if self.pooled:
                self.pool.discard(self)


def _why(exc: Exception | None) -> str:
    return "" if exc is None else f" ({type(exc).__name__}: {exc})"


def _told(error: httptools.HttpParserError) -> HttpFailure:
    """Callbacks' own failures come wrapped."""
    if isinstance(error.__context__, HttpFailure):
        return error.__context__
    return MalformedHttp(f"the answer is not HTTP/1.1: {error}")
