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
import secrets
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self, Unpack

import msgspec
from msgspec import Raw

from breakwater_protocol import headers as h
from breakwater_protocol.answers import (
    AnswerInfo,
    AnswerTimeout,
    BreakwaterError,
    Completion,
    ConnectionLost,
    Embeddings,
    MalformedReply,
    StreamFrames,
    StreamStalled,
    chunks_of,
    completion_of,
    embeddings_of,
    error_of,
    info_of,
    models_of,
    nobody,
)
from breakwater_protocol.chat import Chunk, ModelEntry
from breakwater_protocol.subjects import Subject, Subjects

if TYPE_CHECKING:
    pass

from breakwater_protocol.connection import (
    DEFAULT_URL,
    Ask,
    Connection,
    Reply,
    ServerInfo,
    no_gateway,
)
from breakwater_protocol.inboxes import NO_HEADERS, Heard, Inbox
from breakwater_protocol.options import (
    OPTION_NAMES,
    ChatOptions,
    EmbedOptions,
    header_value,
    headers_of,
    positive,
)

_ANSWER_MARGIN_S: Final = 5.0
"""How long after the gateway's own deadline its answer may still be on the way."""


class ChatStream:
    """A streamed answer: iterate it once for its chunks, then read `info`.

    Nothing is sent before the first chunk is asked for. An answer that the gateway had to cut ends
    normally and says why in `info.partial`. Raises what the module's docstring lists.
    """

    def __init__(self, connection: Connection, ask: Ask, *, stall_timeout_s: float) -> None:
        self._connection = connection
        self._ask = ask
        self._stall_timeout_s = stall_timeout_s
        self._inbox: Inbox | None = None
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
                    raise no_gateway(self._ask.subject)
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
        self._stall_timeout_s = positive(stall_timeout_s, "stall_timeout_s")
        self._answer_timeout_s = positive(answer_timeout_s, "answer_timeout_s")
        self._connection = Connection(
            url,
            name=name,
            creds=creds,
            subjects=self.subjects,
            connect_timeout_s=positive(connect_timeout_s, "connect_timeout_s"),
            buffer_messages=int(positive(buffer_messages, "buffer_messages")),
            buffer_bytes=int(positive(buffer_bytes, "buffer_bytes")),
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
        headers: Mapping[str, str] = NO_HEADERS,
        timeout_s: float = 5.0,
    ) -> Reply:
        """One reply to a message on any subject. Raises `NoGateway` and `AnswerTimeout`."""
        return await self._connection.exchange(
            Ask(
                subject=subject,
                request="",
                body=data,
                headers=dict(headers),
                first_message_s=positive(timeout_s, "timeout_s"),
            )
        )

    def listen(self, subject: str, *, waiting_max: int = 4096) -> AsyncGenerator[Heard, None]:
        """Messages of a subject or wildcard, from the moment of the first `anext`. Close it when done.

        Raises `ValueError` for what is no subject, `NotPermitted` and `ConnectionLost`. A reader that lets more than `waiting_max` wait loses the oldest and is told how many.
        """
        return self._connection.listen(
            subject, waiting_max=int(positive(waiting_max, "waiting_max"))
        )

    async def server(self) -> ServerInfo:
        """The NATS server this client talks to, and one round trip to it. Raises `ConnectionLost`."""
        return await self._connection.server()

    def _prepare(
        self, subject: Subject[Raw], body: dict[str, object] | None, options: dict[str, object]
    ) -> Ask:
        headers = headers_of(options)
        if self._key:
            headers[h.KEY] = header_value(self._key, "key")
        request = headers.get(h.REQUEST_ID, "")
        if not request:
            request = headers[h.ASSIGNED_ID] = f"req-{secrets.token_urlsafe(18)}"
        self.subjects.cancel.at(request)  # an id that could not be cancelled is refused here
        streams = body is not None and "stream" in body
        first_message_s = self._stall_timeout_s if streams else self._answer_timeout_s
        if "stall_timeout_s" in options:
            first_message_s = positive(options["stall_timeout_s"], "stall_timeout_s")
        if "timeout_s" in options:
            first_message_s = positive(options["timeout_s"], "timeout_s") + _ANSWER_MARGIN_S
        if body is not None:
            extra = options.get("extra_body", {})
            if not isinstance(extra, Mapping):
                raise TypeError("extra_body must be a mapping of further fields of the body")
            body |= {name: value for name, value in options.items() if name not in OPTION_NAMES}
            body |= extra
        return Ask(
            subject=subject.at(self.tenant),
            request=request,
            body=b"" if body is None else msgspec.json.encode(body),
            headers=headers,
            first_message_s=first_message_s,
        )

    async def _answer(self, ask: Ask) -> tuple[Reply, AnswerInfo]:
        reply = await self._connection.exchange(ask)
        info = info_of(ask.request, reply.headers, partial=reply.headers.get(h.PARTIAL, ""))
        if h.SERVICE_ERROR_CODE in reply.headers:
            raise error_of(reply.data, reply.headers, info)
        return reply, info
