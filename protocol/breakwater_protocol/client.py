"""The Python client: OpenAI-shaped asks over NATS, answers as typed values.

    async with Client("nats://127.0.0.1:4222") as client:
        async for chunk in client.chat(model="main-model", messages=[...]):
            ...

One wildcard inbox a connection is demultiplexed to bounded queues. The messages of a stream are
numbered, and a gap is an error, never a silent splice. Whoever stops reading early (`break`,
cancellation, an error, `aclose`) has the request cancelled at the gateway.

Everything raised here is a `BreakwaterError` of `answers.py`, except for arguments that no gateway would take
(`TypeError`, `ValueError`) and use out of order (`RuntimeError`).

The only dependency besides msgspec is nats-py, imported when a connection is made.
"""

import asyncio
import logging
import math
import re
import secrets
from collections import deque
from collections.abc import AsyncGenerator, Coroutine, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Literal, Self, TypedDict, Unpack

import msgspec
from msgspec import Raw, Struct

from breakwater_protocol import headers as h
from breakwater_protocol.answers import (
    AnswerInfo,
    AnswerTimeout,
    BreakwaterError,
    Completion,
    ConnectionLost,
    Embeddings,
    MalformedReply,
    NoGateway,
    NotPermitted,
    ReaderTooSlow,
    StreamFrames,
    StreamStalled,
    TooLarge,
    Unreachable,
    chunks_of,
    completion_of,
    embeddings_of,
    error_of,
    info_of,
    models_of,
    nobody,
)
from breakwater_protocol.chat import Chunk, ModelEntry
from breakwater_protocol.commands import Cancel
from breakwater_protocol.subjects import Subject, Subjects

if TYPE_CHECKING:
    from nats.aio.client import Client as Nats
    from nats.aio.msg import Msg

DEFAULT_URL: Final = "nats://127.0.0.1:4222"

_log = logging.getLogger(__name__)


class CallOptions(TypedDict, total=False):
    """What every call may say to the gateway; it travels as headers, never in the body."""

    user: str
    """Whose budget: the header. OpenAI's body field of that name goes through `extra_body`."""
    org: str
    feature: str
    properties: Mapping[str, str]
    timeout_s: float
    """The gateway's deadline for the whole request."""
    ttft_timeout_s: float
    stall_timeout_s: float
    """This client's own: how long it waits for the next message."""
    priority: Literal["critical", "interactive", "batch"]
    request_id: str
    """The same id twice runs once; made at random when absent."""
    cache: Literal["on", "off", "refresh", "only"]
    cache_ttl_s: float
    cache_namespace: str
    cache_threshold: float
    cache_feedback: str
    """`<cache id>=wrong`, `=stale` or `=good`, of an earlier answer: the first two have this one asked anew."""
    ladder: str
    max_cost: Decimal | str
    """USD that all calls for this request may cost together; a `Decimal` or its text: floats are not exact."""
    traceparent: str
    tracestate: str


class ChatOptions(CallOptions, total=False):
    """The parameters of OpenAI's chat completions; what is not listed goes through `extra_body`."""

    temperature: float
    top_p: float
    max_tokens: int
    max_completion_tokens: int
    n: int
    stop: str | Sequence[str]
    seed: int
    tools: Sequence[Mapping[str, object]]
    tool_choice: str | Mapping[str, object]
    parallel_tool_calls: bool
    response_format: Mapping[str, object]
    reasoning_effort: str
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[str, float]
    logprobs: bool
    top_logprobs: int
    stream_options: Mapping[str, object]
    metadata: Mapping[str, str]
    extra_body: Mapping[str, object]


class EmbedOptions(CallOptions, total=False):
    """The parameters of OpenAI's embeddings; what is not listed goes through `extra_body`."""

    dimensions: int
    encoding_format: Literal["float", "base64"]
    extra_body: Mapping[str, object]


class Heard(Struct, frozen=True):
    """A message of a subscription. `missed`: how many were dropped before it as too many waited."""

    subject: str
    data: bytes
    headers: Mapping[str, str]
    missed: int = 0


class Reply(Struct, frozen=True):
    data: bytes
    headers: Mapping[str, str]


class ServerInfo(Struct, frozen=True):
    url: str
    version: str
    max_payload: int
    """Bytes."""
    rtt_s: float


_NO_HEADERS: Final[Mapping[str, str]] = {}
_HEADROOM: Final = 16 * 1024
"""Bytes under `max_payload` that headers and framing get: the server closes the connection of
whoever exceeds it, so this side never comes near."""
_ANSWER_MARGIN_S: Final = 5.0
"""How long after the gateway's own deadline its answer may still be on the way."""
_RTT_MAX_S: Final = 2.0
_LATE_S: Final = 0.1
"""A timer that fires later than this tells of a blocked event loop on this side …"""
_GRACE_S: Final = 1.0
"""… which then gets this long to take in what is already in its socket."""
_VIOLATION: Final = re.compile(r'permissions violation for (publish|subscription) to "([^"]*)"')
_USD: Final = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})?")
_PROPERTY: Final = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]{1,128}")


class _Ask(Struct, frozen=True):
    subject: str
    request: str
    """The id to cancel; empty for asks that need no cancelling."""
    body: bytes
    headers: dict[str, str]
    first_message_s: float


class _Inbox:
    """The messages of one request, bounded, for one reader. Late ones are dropped by the client."""

    __slots__ = (
        "_bytes",
        "_bytes_max",
        "_error",
        "_loop",
        "_messages",
        "_messages_max",
        "_waiter",
        "asked",
        "reply",
        "request",
    )

    def __init__(
        self, reply: str, *, asked: str, request: str, messages_max: int, bytes_max: int
    ) -> None:
        self.reply = reply
        self.asked = asked
        """The subject that was asked."""
        self.request = request
        """The id to cancel; empty for asks that need no cancelling."""
        self._loop = asyncio.get_running_loop()
        self._messages: deque[tuple[bytes, Mapping[str, str]]] = deque()
        self._messages_max = messages_max
        self._bytes = 0
        self._bytes_max = bytes_max
        self._error: BreakwaterError | None = None
        self._waiter: asyncio.Future[None] | None = None

    def put(self, data: bytes, headers: Mapping[str, str]) -> None:
        if self._error is not None:
            return
        # A single message is always taken: the server's max_payload bounds it.
        if self._messages and (
            len(self._messages) >= self._messages_max or self._bytes + len(data) > self._bytes_max
        ):
            self.fail(
                ReaderTooSlow(
                    f"{len(self._messages)} messages of {self._bytes} bytes wait to be read;"
                    " read faster, or raise buffer_messages and buffer_bytes"
                )
            )
            return
        self._messages.append((data, headers))
        self._bytes += len(data)
        self._wake()

    def fail(self, error: BreakwaterError) -> None:
        """The reader gets what came before, then this."""
        if self._error is None:
            self._error = error
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def get(self, *, due: float) -> tuple[bytes, Mapping[str, str]]:
        """The next message, in order. Raises what `fail` was given, and `TimeoutError` at `due`."""
        grace = True
        while not self._messages:
            if self._error is not None:
                raise self._error
            self._waiter = self._loop.create_future()
            timer = self._loop.call_at(due, self._wake)
            try:
                await self._waiter
            finally:
                timer.cancel()
                self._waiter = None
            late = self._loop.time() - due
            if self._messages or self._error is not None or late < 0:
                continue
            if not grace or late < _LATE_S:
                raise TimeoutError
            grace = False
            due = self._loop.time() + _GRACE_S
        data, headers = self._messages.popleft()
        self._bytes -= len(data)
        return data, headers


class _Listener:
    """The messages of one subscription; of too many, the last."""

    def __init__(self, subject: str, waiting_max: int) -> None:
        self.subject = subject
        self._waiting: deque[Heard] = deque(maxlen=waiting_max)
        self._missed = 0
        self._error: BreakwaterError | None = None
        self._arrived = asyncio.Event()

    async def take(self, message: "Msg") -> None:
        if len(self._waiting) == self._waiting.maxlen:
            self._missed += 1
        self._waiting.append(Heard(message.subject, message.data, message.headers or _NO_HEADERS))
        self._arrived.set()

    def fail(self, error: BreakwaterError) -> None:
        self._error = error
        self._arrived.set()

    async def next(self) -> Heard:
        while not self._waiting:
            if self._error is not None:
                raise self._error
            self._arrived.clear()
            await self._arrived.wait()
        heard = self._waiting.popleft()
        if self._missed:
            heard, self._missed = msgspec.structs.replace(heard, missed=self._missed), 0
        return heard


class _Connection:
    """The connection and its one wildcard inbox. Everything that touches nats-py is here."""

    def __init__(
        self,
        url: str,
        *,
        name: str,
        creds: str | Path | None,
        subjects: Subjects,
        connect_timeout_s: float,
        buffer_messages: int,
        buffer_bytes: int,
    ) -> None:
        self._url = url
        self._name = name
        self._creds = creds
        self._cancelling = subjects.cancel
        self._connect_timeout_s = connect_timeout_s
        self._buffer_messages = buffer_messages
        self._buffer_bytes = buffer_bytes
        self._nats: Nats | None = None
        self._prefix = ""
        self._opened = 0
        self._inboxes: dict[str, _Inbox] = {}
        self._listeners: set[_Listener] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._pings: set[asyncio.Future[float]] = set()
        self._suspicion: asyncio.Task[None] | None = None
        self._failures: asyncio.Queue[Exception] | None = None

    async def connect(self) -> None:
        if self._nats is not None:
            raise RuntimeError("this client is connected already")
        servers = [part.strip() for part in self._url.split(",") if part.strip()]
        if not servers:
            raise Unreachable("the NATS URL is empty; give one such as " + DEFAULT_URL)
        if self._creds is not None and not await asyncio.to_thread(Path(self._creds).is_file):
            raise Unreachable(f"there is no credentials file at {self._creds}")
        try:
            from nats import errors
            from nats.aio.client import Client as NatsClient
        except ImportError as error:
            raise Unreachable("the client needs nats-py: pip install nats-py") from error

        nats = NatsClient()
        self._failures = asyncio.Queue()
        # With max_reconnect_attempts=-1 nats-py retries for ever, the first connection too: the
        # first round of failures is therefore counted here.
        connecting = asyncio.ensure_future(
            nats.connect(
                servers,
                name=self._name,
                error_cb=self._on_error,
                closed_cb=self._on_closed,
                max_reconnect_attempts=-1,
                reconnect_time_wait=0.25,  # type: ignore[arg-type] # seconds, annotated as int
                connect_timeout=self._connect_timeout_s,  # type: ignore[arg-type] # likewise
                ping_interval=10,
                max_outstanding_pings=2,
                user_credentials=None if self._creds is None else str(self._creds),
            )
        )
        failure: Exception | None
        try:
            failure = await self._first_round(connecting, self._failures, len(servers))
        except ImportError as missing:
            raise Unreachable(
                "credentials files need nkeys: pip install 'nats-py[nkeys]'"
            ) from missing
        except (errors.Error, OSError, ValueError) as failed:
            failure = failed
        finally:
            self._failures = None
            if not connecting.done():
                connecting.cancel()
                await asyncio.gather(connecting, return_exceptions=True)
        if failure is not None:
            if nats.options:  # else it failed over its arguments, and cannot be closed
                await nats.close()
            if "authorization" in str(failure).lower():
                raise _denied(f"NATS at {self._url} refuses these credentials") from failure
            why = str(failure) or "no answer in time"
            raise Unreachable(f"no NATS server at {self._url}: {why}") from failure
        self._nats = nats
        # Clients have a prefix of their own, so that a server's permissions can name it.
        self._prefix = f"_INBOX_client.{secrets.token_hex(8)}."
        await nats.subscribe(self._prefix + "*", cb=self._on_message)

    async def _first_round(
        self, connecting: asyncio.Future[None], failures: asyncio.Queue[Exception], servers: int
    ) -> Exception | None:
        """None once connected; else the last failure when each server has failed once."""
        last: Exception = TimeoutError()
        try:
            async with asyncio.timeout(self._connect_timeout_s * servers):
                for _ in range(servers):
                    failing = asyncio.ensure_future(failures.get())
                    try:
                        await asyncio.wait(
                            (connecting, failing), return_when=asyncio.FIRST_COMPLETED
                        )
                        if connecting.done():
                            connecting.result()
                            return None
                        last = failing.result()
                    finally:
                        failing.cancel()
        except TimeoutError:
            return last
        return last

    async def close(self) -> None:
        nats, self._nats = self._nats, None
        if nats is None:
            return
        for inbox in tuple(self._inboxes.values()):
            inbox.fail(ConnectionLost("this client was closed"))
            self._forsake(nats, inbox)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=2.0)
        # Writes what is pending, the cancellations among it, before it disconnects.
        await nats.close()
        for ping in self._pings:
            ping.cancel()

    def _live(self) -> "Nats":
        if self._nats is None:
            raise RuntimeError("not connected: use `async with Client(...) as client:`")
        if self._nats.is_closed:
            raise ConnectionLost(f"the connection to {self._url} is closed")
        return self._nats

    def open(self, ask: _Ask) -> _Inbox:
        self._live()
        self._opened += 1
        inbox = _Inbox(
            f"{self._prefix}{self._opened:x}",
            asked=ask.subject,
            request=ask.request,
            messages_max=self._buffer_messages,
            bytes_max=self._buffer_bytes,
        )
        self._inboxes[inbox.reply] = inbox
        return inbox

    async def send(self, ask: _Ask, inbox: _Inbox) -> None:
        """Raises `TooLarge` and `ConnectionLost`; nothing was sent then, and the inbox is shut."""
        from nats import errors

        nats = self._live()
        limit = nats.max_payload - _HEADROOM
        size = len(ask.body) + sum(
            len(name) + len(value.encode()) + 4 for name, value in ask.headers.items()
        )
        if size > limit:
            self.shut(inbox)
            raise TooLarge(
                status=413,
                code="payload_too_large",
                type="invalid_request_error",
                message=f"the request has {size} bytes and this NATS server takes {limit};"
                " send less, or raise max_payload in the server's configuration",
                should_retry=False,
            )
        try:
            # A copy: nats-py keeps and may change what it is given.
            await nats.publish(ask.subject, ask.body, reply=inbox.reply, headers=dict(ask.headers))
        except errors.OutboundBufferLimitError as error:
            self.shut(inbox)
            raise ConnectionLost(
                f"NATS at {self._url} is gone and the outgoing buffer is full"
            ) from error
        except errors.Error as error:
            self.shut(inbox)
            raise ConnectionLost(f"the request could not be sent: {error}") from error

    async def exchange(self, ask: _Ask) -> Reply:
        inbox = self.open(ask)
        try:
            await self.send(ask, inbox)
            due = asyncio.get_running_loop().time() + ask.first_message_s
            data, headers = await inbox.get(due=due)
            self.shut(inbox)
        except TimeoutError:
            self.suspect()
            raise AnswerTimeout(
                f"no answer on {ask.subject} within {ask.first_message_s:g} s"
            ) from None
        finally:
            self.abandon(inbox)
        if nobody(data, headers):
            raise _no_gateway(ask.subject)
        return Reply(data, headers)

    def shut(self, inbox: _Inbox) -> None:
        """Nobody waits for more, and there is nothing to cancel."""
        self._inboxes.pop(inbox.reply, None)

    def abandon(self, inbox: _Inbox) -> None:
        """Cancels the request unless the inbox was shut before."""
        if self._nats is not None:
            self._forsake(self._nats, inbox)

    def _forsake(self, nats: "Nats", inbox: _Inbox) -> None:
        # In a task of the connection's own, which outlives a cancelled caller.
        if self._inboxes.pop(inbox.reply, None) and inbox.request and not nats.is_closed:
            self._spawn(self._cancel(nats, inbox.request))

    async def _cancel(self, nats: "Nats", request: str) -> None:
        from nats import errors

        body = self._cancelling.encode(Cancel(request=request))
        try:
            await nats.publish(self._cancelling.at(request), body)
        except errors.Error as error:
            _log.warning("request %s could not be cancelled: %s", request, error)

    def suspect(self) -> None:
        """After silence: is the connection a zombie, alive to the eye and deaf?"""
        if self._nats is not None and (self._suspicion is None or self._suspicion.done()):
            self._suspicion = self._spawn(self._prove(self._nats))

    async def _prove(self, nats: "Nats") -> None:
        try:
            await self._round_trip(nats)
        except ConnectionLost as lost:
            _log.warning("%s; reconnecting", lost)

    async def _round_trip(self, nats: "Nats") -> float:
        """Seconds to the server and back. Raises `ConnectionLost`, and reconnects, when it is mute."""
        from nats import errors

        # nats-py must not time out by itself: a PONG after that ends its read loop, and with it the
        # connection's hearing. So the wait is ours, and a missed PONG always ends in a new connection.
        ping = asyncio.ensure_future(nats.rtt(timeout=3600))
        self._pings.add(ping)
        ping.add_done_callback(self._pinged)
        await asyncio.wait({ping}, timeout=_RTT_MAX_S)
        if not ping.done():
            await nats.force_reconnect()
            ping.cancel()
            raise ConnectionLost(f"NATS at {self._url} did not answer within {_RTT_MAX_S:g} s")
        try:
            return ping.result()
        except errors.Error as error:
            raise ConnectionLost(f"NATS at {self._url} does not answer: {error}") from error

    def _pinged(self, ping: asyncio.Future[float]) -> None:
        self._pings.discard(ping)
        if not ping.cancelled():
            ping.exception()

    def _spawn(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def listen(self, subject: str, *, waiting_max: int) -> AsyncGenerator[Heard, None]:
        from nats import errors

        nats = self._live()
        listener = _Listener(subject, waiting_max)
        try:
            subscription = await nats.subscribe(subject, cb=listener.take)
        except errors.BadSubjectError as error:
            raise ValueError(f"not a subject to listen to: {subject[:80]!r}") from error
        except errors.Error as error:
            raise ConnectionLost(f"cannot listen to {subject}: {error}") from error
        self._listeners.add(listener)
        try:
            while True:
                yield await listener.next()
        finally:
            self._listeners.discard(listener)
            if not nats.is_closed:
                await subscription.unsubscribe()

    async def server(self) -> ServerInfo:
        nats = self._live()
        rtt_s = await self._round_trip(nats)
        at = nats.connected_url
        version = nats.connected_server_version
        return ServerInfo(
            url=self._url if at is None else f"{at.scheme}://{at.hostname}:{at.port}",
            version=f"{version.major}.{version.minor}.{version.patch}",
            max_payload=nats.max_payload,
            rtt_s=rtt_s,
        )

    # nats-py's callbacks. They must not raise: an exception in them leaves a connection that looks
    # alive and hears nothing.

    async def _on_message(self, message: "Msg") -> None:
        inbox = self._inboxes.get(message.subject)
        if inbox is not None:
            inbox.put(message.data, message.headers or _NO_HEADERS)

    async def _on_error(self, error: Exception) -> None:
        if self._failures is not None:
            self._failures.put_nowait(error)
            return
        _log.warning("NATS: %s", error)
        denied = _VIOLATION.search(str(error).lower())
        if denied is None:
            return
        for inbox in tuple(self._inboxes.values()):
            # nats-py hands the server's words on in lower case.
            if inbox.asked.lower() == denied[2] or self._prefix + "*" == denied[2]:
                inbox.fail(_denied(f"NATS does not permit this: {error}"))
        for listener in self._listeners:
            if listener.subject.lower() == denied[2]:
                listener.fail(_denied(f"NATS does not permit this: {error}"))

    async def _on_closed(self) -> None:
        for inbox in tuple(self._inboxes.values()):
            inbox.fail(ConnectionLost(f"the connection to {self._url} was closed"))
        for listener in self._listeners:
            listener.fail(ConnectionLost(f"the connection to {self._url} was closed"))


class ChatStream:
    """A streamed answer: iterate it once for its chunks, then read `info`.

    Nothing is sent before the first chunk is asked for. An answer that the gateway had to cut ends
    normally and says why in `info.partial`. Raises what the module's docstring lists.
    """

    def __init__(self, connection: _Connection, ask: _Ask, *, stall_timeout_s: float) -> None:
        self._connection = connection
        self._ask = ask
        self._stall_timeout_s = stall_timeout_s
        self._inbox: _Inbox | None = None
        self._started = False
        self._said: dict[str, str] = {}
        self._partial = ""

    @property
    def request_id(self) -> str:
        return self._ask.request

    @property
    def info(self) -> AnswerInfo:
        """What is known so far; complete once the iteration has ended."""
        return info_of(self._ask.request, self._said, partial=self._partial)

    def __aiter__(self) -> AsyncGenerator[Chunk, None]:
        if self._started:
            raise RuntimeError("a streamed answer can be read once")
        self._started = True
        return self._read()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Cancels the request unless it has ended. Safe to call again."""
        self._started = True
        self._leave()

    async def _read(self) -> AsyncGenerator[Chunk, None]:
        frames = StreamFrames()
        loop = asyncio.get_running_loop()
        inbox = self._inbox = self._connection.open(self._ask)
        first = True
        try:
            await self._connection.send(self._ask, inbox)
            due = loop.time() + self._ask.first_message_s
            while self._inbox is inbox:
                try:
                    data, headers = await inbox.get(due=due)
                except TimeoutError:
                    self._connection.suspect()
                    raise self._late(first=first) from None
                if nobody(data, headers):
                    self._settle()
                    raise _no_gateway(self._ask.subject)
                verdict = frames.take(headers)
                if verdict == "ignore":
                    continue
                first = False
                self._said.update(headers)
                if verdict == "end":
                    self._end(data, headers)
                for chunk in chunks_of(data) if data else ():
                    yield chunk
                if verdict == "end":
                    return
                due = loop.time() + self._stall_timeout_s
        finally:
            self._leave()

    def _late(self, *, first: bool) -> BreakwaterError:
        if first:
            return AnswerTimeout(
                f"nothing of the answer to {self._ask.request} came within {self._ask.first_message_s:g} s"
            )
        return StreamStalled(
            f"the answer to {self._ask.request} stalled for {self._stall_timeout_s:g} s"
        )

    def _end(self, data: bytes, headers: Mapping[str, str]) -> None:
        self._settle()
        how = headers.get(h.END, "error")
        if how == "error" or h.SERVICE_ERROR_CODE in headers:
            raise error_of(data, headers, self.info)
        if how == "partial":
            self._partial = headers.get(h.PARTIAL) or "unspecified"
        elif how != "ok":
            raise MalformedReply(f"a stream cannot end with {how[:80]!r}")

    def _settle(self) -> None:
        """The gateway has finished with this request: there is nothing to cancel."""
        if self._inbox is not None:
            self._connection.shut(self._inbox)
            self._inbox = None

    def _leave(self) -> None:
        inbox, self._inbox = self._inbox, None
        if inbox is not None:
            inbox.fail(ConnectionLost("the answer was closed while it was being read"))
            self._connection.abandon(inbox)


class Client:
    """A connection to one tenant's gateway. `url` may name several servers, joined by commas.

    `stall_timeout_s` bounds the wait for a stream's first and each further message,
    `answer_timeout_s` that for a whole answer; a call with a `timeout_s` waits that long, and a
    little, for its first message. `creds` is the path of a NATS credentials file.
    `key` is a virtual key (`bw-…`), shown with every call. `buffer_messages` and `buffer_bytes` bound what waits for a slow reader, each stream for itself.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        tenant: str = "default",
        creds: str | Path | None = None,
        root: str = "bw.v1",
        *,
        name: str = "client",
        key: str = "",
        connect_timeout_s: float = 2.0,
        stall_timeout_s: float = 75.0,
        answer_timeout_s: float = 300.0,
        buffer_messages: int = 4096,
        buffer_bytes: int = 32 * 1024 * 1024,
    ) -> None:
        self.url = url
        self.tenant = tenant
        self.subjects = Subjects(root)
        self._key = key
        self._stall_timeout_s = _positive(stall_timeout_s, "stall_timeout_s")
        self._answer_timeout_s = _positive(answer_timeout_s, "answer_timeout_s")
        self._connection = _Connection(
            url,
            name=name,
            creds=creds,
            subjects=self.subjects,
            connect_timeout_s=_positive(connect_timeout_s, "connect_timeout_s"),
            buffer_messages=int(_positive(buffer_messages, "buffer_messages")),
            buffer_bytes=int(_positive(buffer_bytes, "buffer_bytes")),
        )

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def connect(self) -> None:
        """Raises `Unreachable`, and `NotPermitted` when NATS refuses the credentials."""
        await self._connection.connect()

    async def aclose(self) -> None:
        """Cancels what is in flight, tells the server, disconnects. Safe to call again."""
        await self._connection.close()

    def chat(
        self,
        *,
        model: str,
        messages: Sequence[Mapping[str, object]],
        **options: Unpack[ChatOptions],
    ) -> ChatStream:
        """A streamed chat completion."""
        body: dict[str, object] = {"model": model, "messages": messages, "stream": True}
        ask = self._prepare(self.subjects.chat, body, dict(options))
        stall_s = options.get("stall_timeout_s", self._stall_timeout_s)
        return ChatStream(self._connection, ask, stall_timeout_s=stall_s)

    async def complete(
        self,
        *,
        model: str,
        messages: Sequence[Mapping[str, object]],
        **options: Unpack[ChatOptions],
    ) -> Completion:
        """A chat completion in one reply."""
        body: dict[str, object] = {"model": model, "messages": messages}
        reply, info = await self._answer(self._prepare(self.subjects.chat, body, dict(options)))
        return completion_of(reply.data, info)

    async def embed(
        self,
        *,
        model: str,
        input: str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]],  # noqa: A002 - OpenAI's name
        **options: Unpack[EmbedOptions],
    ) -> Embeddings:
        body: dict[str, object] = {"model": model, "input": input}
        ask = self._prepare(self.subjects.embeddings, body, dict(options))
        reply, info = await self._answer(ask)
        return embeddings_of(reply.data, info)

    async def models(self) -> tuple[ModelEntry, ...]:
        """The logical models this tenant may ask for."""
        reply, _ = await self._answer(self._prepare(self.subjects.models, None, {}))
        return models_of(reply.data)

    async def ask(
        self,
        subject: str,
        data: bytes = b"",
        *,
        headers: Mapping[str, str] = _NO_HEADERS,
        timeout_s: float = 5.0,
    ) -> Reply:
        """One reply to a message on any subject. Raises `NoGateway` and `AnswerTimeout`."""
        return await self._connection.exchange(
            _Ask(
                subject=subject,
                request="",
                body=data,
                headers=dict(headers),
                first_message_s=_positive(timeout_s, "timeout_s"),
            )
        )

    def listen(self, subject: str, *, waiting_max: int = 4096) -> AsyncGenerator[Heard, None]:
        """Messages of a subject or wildcard, from the moment of the first `anext`. Close it when done.

        Raises `ValueError` for what is no subject, `NotPermitted` and `ConnectionLost`. A reader that lets more than `waiting_max` wait loses the oldest and is told how many.
        """
        return self._connection.listen(
            subject, waiting_max=int(_positive(waiting_max, "waiting_max"))
        )

    async def server(self) -> ServerInfo:
        """The NATS server this client talks to, and one round trip to it. Raises `ConnectionLost`."""
        return await self._connection.server()

    def _prepare(
        self, subject: Subject[Raw], body: dict[str, object] | None, options: dict[str, object]
    ) -> _Ask:
        headers = _option_headers(options)
        if self._key:
            headers[h.KEY] = _header_value(self._key, "key")
        request = headers.get(h.REQUEST_ID, "")
        if not request:
            request = headers[h.ASSIGNED_ID] = f"req-{secrets.token_urlsafe(18)}"
        self.subjects.cancel.at(request)  # an id that could not be cancelled is refused here
        streams = body is not None and "stream" in body
        first_message_s = self._stall_timeout_s if streams else self._answer_timeout_s
        if "stall_timeout_s" in options:
            first_message_s = _positive(options["stall_timeout_s"], "stall_timeout_s")
        if "timeout_s" in options:
            first_message_s = _positive(options["timeout_s"], "timeout_s") + _ANSWER_MARGIN_S
        if body is not None:
            extra = options.get("extra_body", {})
            if not isinstance(extra, Mapping):
                raise TypeError("extra_body must be a mapping of further fields of the body")
            body |= {name: value for name, value in options.items() if name not in _OPTION_NAMES}
            body |= extra
        return _Ask(
            subject=subject.at(self.tenant),
            request=request,
            body=b"" if body is None else msgspec.json.encode(body),
            headers=headers,
            first_message_s=first_message_s,
        )

    async def _answer(self, ask: _Ask) -> tuple[Reply, AnswerInfo]:
        reply = await self._connection.exchange(ask)
        info = info_of(ask.request, reply.headers, partial=reply.headers.get(h.PARTIAL, ""))
        if h.SERVICE_ERROR_CODE in reply.headers:
            raise error_of(reply.data, reply.headers, info)
        return reply, info


_OPTION_NAMES: Final = frozenset(CallOptions.__annotations__) | {"extra_body"}

_TEXT_HEADERS: Final[Mapping[str, str]] = {
    "user": h.USER,
    "org": h.ORG,
    "feature": h.FEATURE,
    "priority": h.PRIORITY,
    "request_id": h.REQUEST_ID,
    "cache": h.CACHE,
    "cache_namespace": h.CACHE_NAMESPACE,
    "cache_feedback": h.CACHE_FEEDBACK,
    "ladder": h.LADDER,
    "traceparent": h.TRACEPARENT,
    "tracestate": h.TRACESTATE,
}
_DURATION_HEADERS: Final[Mapping[str, str]] = {
    "timeout_s": h.TIMEOUT,
    "ttft_timeout_s": h.TTFT_TIMEOUT,
    "cache_ttl_s": h.CACHE_TTL,
}


def _option_headers(options: Mapping[str, object]) -> dict[str, str]:
    found: dict[str, str] = {}
    for option, header in _TEXT_HEADERS.items():
        if option in options:
            found[header] = _header_value(options[option], option)
    for option, header in _DURATION_HEADERS.items():
        if option in options:
            found[header] = f"{max(1, round(_positive(options[option], option) * 1000))}ms"
    if "cache_threshold" in options:
        found[h.CACHE_THRESHOLD] = repr(_positive(options["cache_threshold"], "cache_threshold"))
    if "max_cost" in options:
        found[h.MAX_COST] = _usd(options["max_cost"])
    properties = options.get("properties", {})
    if not isinstance(properties, Mapping):
        raise TypeError("properties must be a mapping of names to texts")
    for name, value in properties.items():
        key = str(name).lower()
        if not _PROPERTY.fullmatch(key):
            raise ValueError(f"{str(name)[:80]!r} cannot be the name of a property")
        found[h.PROPERTY_PREFIX + key] = _header_value(value, f"property {key}")
    return found


def _header_value(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a text, not {type(value).__name__}")
    if not value or not value.isprintable() or value != value.strip():
        raise ValueError(f"{name} must be printable, not empty, without spaces around it")
    return value


def _usd(value: object) -> str:
    if not isinstance(value, Decimal | str):
        raise TypeError(f"max_cost must be a Decimal or a text, not {type(value).__name__}")
    text = f"{value:f}" if isinstance(value, Decimal) else value
    if not _USD.fullmatch(text):
        raise ValueError(f"max_cost must be USD such as 0.05, to the nano-USD, not {text[:80]!r}")
    return text


def _positive(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, not {type(value).__name__}")
    if not math.isfinite(value) or value <= 0:
        raise ValueError(f"{name} must be greater than 0, not {value}")
    return float(value)


def _no_gateway(subject: str) -> NoGateway:
    return NoGateway(f"nobody serves {subject}; start a gateway with `breakwater up`")


def _denied(message: str) -> NotPermitted:
    return NotPermitted(
        status=403,
        code="permission",
        type="permission_error",
        message=message,
        should_retry=False,
    )
