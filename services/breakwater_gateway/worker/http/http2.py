"""One HTTP/2 connection (RFC 9113) on the h2 package, shared by many answers.

h2 keeps the protocol; here are its bounds, the flow of bodies in both directions, and how a stream's
end becomes an answer's. What a reader leaves unread holds back its own stream only: each stream's window
is small, the connection's is the sum of all.
"""

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final, NamedTuple, cast

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings

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
    from collections.abc import Sequence

    from breakwater_gateway.worker.http.pool import Pool
    from breakwater_gateway.worker.http.prepared import Field, Prepared

HEAD_BYTES_MAX: Final = 64 * 1024
STREAMS_MAX: Final = 128
"""We open at most this many at once, fewer where the server says so (RFC 9113, 6.5.2 advises >= 100)."""
WINDOW_BYTES: Final = HIGH_WATER_BYTES
WRITE_BUFFER_MAX: Final = 1024 * 1024
"""Replies to the server's own frames (PING, SETTINGS) it may leave unread."""
INTERIM_MAX: Final = 16
FRAME_BYTES_MAX: Final = 16_384
"""We allow no longer ones (RFC 9113, 4.2: the default)."""
PING_AFTER_S: Final = 15.0
"""Of silence with streams open; the same again without an answer, and the connection is dead."""
STALE_WITHIN_S: Final = 1.0


class GoAway(NamedTuple):
    last_stream: int
    code: int


class GoAways:
    """Takes GOAWAY frames out of what a server sends: a pure machine.

    To h2 a GOAWAY ends the connection at once, while the RFC (6.8) lets the streams that the server has
    begun run to their end, and servers count on that: nginx says goodbye after every 1,000 requests.
    """

    __slots__ = ("_held", "_passing")

    def __init__(self) -> None:
        self._held = b""
        self._passing = 0
        """Bytes left of a frame that is none of ours."""

    def feed(self, data: bytes) -> tuple[bytes, list[GoAway]]:
        """What is left for h2, and the GOAWAYs found. Raises MalformedHttp for a frame too long."""
        if len(data) <= self._passing:
            self._passing -= len(data)
            return data, []
        data = self._held + data
        self._held = b""
        found: list[GoAway] = []
        kept: list[bytes] = []
        begin, at = 0, self._passing
        while len(data) - at >= 9:
            length = int.from_bytes(data[at : at + 3], "big")
            if length > FRAME_BYTES_MAX:
                # h2 would say so only once it holds all of it, up to 16 MiB.
                raise MalformedHttp(f"a frame of {length} bytes from the server")
            if data[at + 3] != 7 or length < 8:
                at += 9 + length
                continue
            if len(data) - at < 9 + length:
                break
            last = int.from_bytes(data[at + 9 : at + 13], "big") & 0x7FFFFFFF
            found.append(GoAway(last, int.from_bytes(data[at + 13 : at + 17], "big")))
            kept.append(data[begin:at])
            at += 9 + length
            begin = at
        self._passing = max(0, at - len(data))
        end = min(at, len(data))
        self._held = data[end:]
        if not kept:
            return data[:end], found
        kept.append(data[begin:end])
        return b"".join(kept), found


class _Stream:
    """One request and the carrier of its answer."""

    __slots__ = ("answer", "body", "connection", "id", "interim", "started_at", "unread")

    def __init__(self, connection: "Http2Connection", id_: int, body: bytes) -> None:
        self.connection = connection
        self.id = id_
        self.body: memoryview | None = memoryview(body) if body else None
        """What the server's windows have not let us send yet."""
        self.unread = 0
        """Flow-controlled bytes received and not yet acknowledged, padding included."""
        self.interim = 0
        self.started_at = connection.loop.time()
        self.answer = WireAnswer(self)
        self.answer.http_version = "2"
        self.answer.held_back = True

    def consumed(self, answer: WireAnswer, count: int) -> None:  # noqa: ARG002 - the carrier's shape
        self.connection.acknowledge(self)

    def abandon(self, answer: WireAnswer) -> None:  # noqa: ARG002 - the carrier's shape
        self.connection.cancel(self)


class Http2Connection(asyncio.Protocol):
    __slots__ = (
        "closed",
        "draining",
        "goaways",
        "heard_at",
        "holds",
        "idle_since",
        "loop",
        "machine",
        "pinged_at",
        "pool",
        "pooled",
        "streams",
        "transport",
    )

    def __init__(self, pool: "Pool") -> None:
        self.pool = pool
        self.pooled = False
        """Counted by the pool, which must then hear of its end."""
        self.loop = asyncio.get_running_loop()
        self.transport: asyncio.Transport
        self.closed = False
        self.draining = False
        """The server (or the numbering) allows no new streams here."""
        self.holds = 0
        """Streams under way and reservations for one."""
        self.streams: dict[int, _Stream] = {}
        self.heard_at = self.idle_since = self.loop.time()
        self.pinged_at: float | None = None
        self.goaways = GoAways()
        self.machine = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=True, header_encoding=None)
        )

    # ------------------------------------------------------------------ requests

    @property
    def available(self) -> bool:
        return (
            not self.closed
            and not self.draining
            and self.holds < min(STREAMS_MAX, self.machine.remote_settings.max_concurrent_streams)
        )

    def start(self, prepared: "Prepared", body: bytes, fields: "Sequence[Field]") -> WireAnswer:
        """Sends a request on a stream that the caller has reserved."""
        machine = self.machine
        try:
            id_ = machine.get_next_available_stream_id()
        except h2.exceptions.NoAvailableStreamIDError:
            id_ = 0
        stream = _Stream(self, id_, body)
        if self.closed or self.draining or id_ == 0:
            self.draining = True
            stream.answer.unprocessed = True
            stream.answer.finish(ReadFailed("the connection takes no more requests"))
            self._give()
            return stream.answer
        headers = [*prepared.h2_fields, *fields]
        if body or prepared.sends_length:
            headers.append((b"content-length", b"%d" % len(body)))
        try:
            machine.send_headers(id_, headers, end_stream=not body)
        except h2.exceptions.ProtocolError as error:
            # The server has lowered its number of streams since this one was reserved.
            stream.answer.unprocessed = True
            stream.answer.finish(ReadFailed(f"no stream could be opened: {error}"))
            self._give()
            return stream.answer
        self.streams[id_] = stream
        self._pump(stream)
        self._flush()
        return stream.answer

    def release(self) -> None:
        """Gives back a reservation that was not used."""
        if not self.closed:
            self._give()

    def stop(self) -> None:
        """Closes it; answers under way fail."""
        self._end(ReadFailed("the connection was closed by us"))

    def sweep(self, now: float, *, idle_s: float) -> float | None:
        """Closes it if idle for too long, asks for a sign of life after silence; when to look again."""
        if self.closed:
            return None
        if self.holds == 0:
            if now - self.idle_since >= idle_s:
                self.stop()
                return None
            return self.idle_since + idle_s
        if self.pinged_at is not None and now - self.pinged_at >= PING_AFTER_S:
            self._end(
                CutAnswer("stream", f"the server has been silent since a ping, {PING_AFTER_S:g} s")
            )
            return None
        if self.pinged_at is None and now - self.heard_at >= PING_AFTER_S:
            self.pinged_at = now
            self.machine.ping(b"alive?\0\0")
            self._flush()
        return now + PING_AFTER_S

    # ------------------------------------------------------------------ streams

    def acknowledge(self, stream: _Stream) -> None:
        """Grants the window for what was received so far."""
        if stream.unread and not self.closed:
            unread, stream.unread = stream.unread, 0
            self.machine.acknowledge_received_data(unread, stream.id)
            self._flush()

    def cancel(self, stream: _Stream) -> None:
        """Nobody reads the rest."""
        if self._over(stream, reset=True):
            self._flush()
            self._give()

    def _finish(self, stream: _Stream, failure: HttpFailure | None, *, reset: bool) -> None:
        """`reset`: the stream is not over for the server, which must be told."""
        if self._over(stream, reset=reset):
            stream.answer.finish(failure)
            self._give()

    def _over(self, stream: _Stream, *, reset: bool) -> bool:
        if self.closed or self.streams.pop(stream.id, None) is None:
            return False
        stream.body = None
        if stream.unread:
            # What is left counts against the connection's window only from now on.
            self.machine.acknowledge_received_data(stream.unread, stream.id)
            stream.unread = 0
        if reset:
            with contextlib.suppress(h2.exceptions.ProtocolError):  # it closed by itself
                self.machine.reset_stream(stream.id, h2.errors.ErrorCodes.CANCEL)
        return True

    def _give(self) -> None:
        self.holds -= 1
        if self.holds == 0:
            self.idle_since = self.loop.time()
        self.pool.give(self)
        if self.draining and self.holds == 0 and not self.closed:
            self.stop()

    def _pump(self, stream: _Stream) -> None:
        """Sends what the windows allow of a body."""
        machine = self.machine
        while (body := stream.body) is not None:
            size = min(
                machine.local_flow_control_window(stream.id),
                machine.max_outbound_frame_size,
                len(body),
            )
            if size <= 0:
                return
            whole = size == len(body)
            machine.send_data(stream.id, bytes(body[:size]), end_stream=whole)
            stream.body = None if whole else body[size:]

    def _flush(self) -> None:
        if not self.closed and (data := self.machine.data_to_send()):
            self.transport.write(data)

    # ------------------------------------------------------------------ asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        codes = h2.settings.SettingCodes
        machine = self.machine
        machine.local_settings = h2.settings.Settings(
            client=True,
            initial_values={
                codes.ENABLE_PUSH: 0,
                codes.INITIAL_WINDOW_SIZE: WINDOW_BYTES,
                codes.MAX_HEADER_LIST_SIZE: HEAD_BYTES_MAX,
            },
        )
        machine.initiate_connection()
        machine.increment_flow_control_window(STREAMS_MAX * WINDOW_BYTES - 65_535)
        self._flush()

    def data_received(self, data: bytes) -> None:
        if self.closed:
            return
        self.heard_at = self.loop.time()
        self.pinged_at = None
        try:
            data, goaways = self.goaways.feed(data)
            for event in self.machine.receive_data(data):
                self._on_event(event)
            for goaway in goaways:
                self._on_goaway(goaway)
        except MalformedHttp as error:
            self._end(error)
            return
        except h2.exceptions.ProtocolError as error:
            self._end(MalformedHttp(f"the server breaks HTTP/2: {type(error).__name__} {error}"))
            return
        self._flush()
        if not self.closed and self.transport.get_write_buffer_size() > self._write_bound():
            self._end(MalformedHttp("the server asks for replies and does not read them"))

    def eof_received(self) -> None:
        self._lost(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost(exc)

    # ------------------------------------------------------------------ events

    def _on_event(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.DataReceived():
                self._on_data(event)
            case h2.events.ResponseReceived():
                stream = self._stream(event.stream_id)
                if stream is not None:
                    self._on_head(stream, event)
            case h2.events.StreamEnded():
                stream = self._stream(event.stream_id)
                if stream is not None:
                    self._finish(stream, None, reset=stream.body is not None)
            case h2.events.StreamReset():
                stream = self._stream(event.stream_id)
                if stream is not None:
                    self._on_reset(stream, event)
            case h2.events.InformationalResponseReceived():
                stream = self._stream(event.stream_id)
                if stream is not None:
                    stream.interim += 1
                    if stream.interim > INTERIM_MAX:
                        self._finish(stream, MalformedHttp("too many interim answers"), reset=True)
            case h2.events.WindowUpdated() | h2.events.RemoteSettingsChanged():
                if isinstance(event, h2.events.WindowUpdated) and event.stream_id:
                    stream = self._stream(event.stream_id)
                    if stream is not None:
                        self._pump(stream)
                    return
                for stream in tuple(self.streams.values()):
                    self._pump(stream)
                self.pool.serve(self)
            case _:
                pass  # acknowledgements, priorities and trailers: nothing depends on them

    def _stream(self, id_: int | None) -> _Stream | None:
        return None if id_ is None else self.streams.get(id_)

    def _on_head(self, stream: _Stream, event: h2.events.ResponseReceived) -> None:
        answer = stream.answer
        raw: RawHeaders = [(bytes(name), bytes(value)) for name, value in event.headers]
        status = next((value for name, value in raw if name == b":status"), b"")
        if len(status) != 3 or not status.isdigit():
            self._finish(stream, MalformedHttp("an answer without a status"), reset=True)
            return
        answer.status = int(status)
        answer.raw_headers = [field for field in raw if not field[0].startswith(b":")]
        answer.head_done = True
        answer.wake()

    def _on_data(self, event: h2.events.DataReceived) -> None:
        stream = self._stream(event.stream_id)
        if stream is None:
            # Cancelled by us while this was under way.
            if event.stream_id is not None and event.flow_controlled_length:
                self.machine.acknowledge_received_data(
                    event.flow_controlled_length, event.stream_id
                )
            return
        stream.unread += event.flow_controlled_length
        answer = stream.answer
        if event.data:
            answer.pieces.append(event.data)
            answer.size += len(event.data)
            if len(answer.pieces) > PIECES_MAX:
                answer.pieces[:] = [b"".join(answer.pieces)]
            answer.wake()
        elif not answer.pieces:
            self.acknowledge(stream)

    def _on_reset(self, stream: _Stream, event: h2.events.StreamReset) -> None:
        code = event.error_code
        answer = stream.answer
        answer.unprocessed = code == h2.errors.ErrorCodes.REFUSED_STREAM and not answer.head_done
        name = code.name if isinstance(code, h2.errors.ErrorCodes) else str(code)
        failure = CutAnswer(
            "stream" if answer.head_done else "head", f"the server reset the stream: {name}"
        )
        self._finish(stream, failure, reset=False)

    def _on_goaway(self, goaway: GoAway) -> None:
        self.draining = True
        for stream in tuple(self.streams.values()):
            if stream.id > goaway.last_stream:
                stream.answer.unprocessed = not stream.answer.head_done
                self._finish(
                    stream,
                    CutAnswer("head", "the server said goodbye before this request"),
                    reset=True,
                )
        if goaway.code != h2.errors.ErrorCodes.NO_ERROR:
            self._end(CutAnswer("stream", f"the server gave up the connection, code {goaway.code}"))
        elif self.holds == 0:
            self.stop()

    # ------------------------------------------------------------------ ends

    def _write_bound(self) -> int:
        """Bodies that we send may wait in the transport, as far as the server granted window."""
        return WRITE_BUFFER_MAX + self.machine.outbound_flow_control_window

    def _lost(self, exc: Exception | None) -> None:
        why = "" if exc is None else f" ({type(exc).__name__}: {exc})"
        now = self.loop.time()
        for stream in self.streams.values():
            # As for HTTP/1.1: a connection kept from earlier that fails at once, having said nothing.
            stream.answer.unprocessed = (
                stream.id > 1
                and self.heard_at < stream.started_at
                and now - stream.started_at < STALE_WITHIN_S
            )
        self._end(CutAnswer("stream", f"the connection ended before the answer{why}"))

    def _end(self, failure: HttpFailure) -> None:
        if self.closed:
            return
        self.closed = True
        self.transport.abort()
        streams, self.streams = self.streams, {}
        for stream in streams.values():
            answer = stream.answer
            if isinstance(failure, CutAnswer) and not answer.head_done:
                answer.finish(CutAnswer("head", str(failure)))
            else:
                answer.finish(failure)
        if self.pooled:
            self.pool.discard(self)
