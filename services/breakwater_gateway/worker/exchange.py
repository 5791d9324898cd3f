"""One attempt's translation: the caller's body in, the provider's call out, and the answer back.

An exchange hides whether the two speak the same dialect. If they do, bytes pass as they came and are only
read; if not, they are decoded to the neutral vocabulary and encoded again. Either way the worker sends
`call`, feeds what arrives, and passes on the lines it is given.
"""

from collections.abc import Mapping
from typing import Final, Protocol

import msgspec
from msgspec import Raw, Struct

from breakwater_gateway.config.model import Wire
from breakwater_gateway.worker.continuation import Joint, SoFar, asked_again, so_far
from breakwater_gateway.worker.sse import EventTooLarge, SseParser
from breakwater_gateway.worker.wire import neutral, openai, openai_chat, tool_calls
from breakwater_gateway.worker.wire.bad_request import BadRequest
from breakwater_gateway.worker.wire.dialects import (
    CALLERS,
    CallerDialect,
    ProviderDialect,
    caller_dialect,
    provider_dialect,
)
from breakwater_gateway.worker.wire.openai_chat.quirks import DEFAULT, QUIRKS, by_provider
from breakwater_protocol import failures as f
from breakwater_protocol.chat import Usage


class Whole(Struct, frozen=True):
    """A whole answer in the caller's dialect."""

    body: bytes
    usage: Usage | None
    repaired: bool = False
    """A tool call in it is not as the model wrote it."""
    filtered: bool = False
    """The provider's safety system broke it off."""


class Read(Struct):
    """What one piece of a stream came to: lines for the caller, and whether it is over."""

    lines: list[bytes]
    failure: f.Failure | None = None
    ended: bool = False


class Exchange(Protocol):
    call: neutral.Call
    usage: Usage | None
    spoke: bool
    """Something of the answer itself was among the lines: a role or a ping alone is not it."""

    @property
    def said(self) -> int:
        """Characters of the answer so far, more or less: bytes, where nothing had to be decoded."""
        ...

    @property
    def pieces(self) -> int:
        """In how many pieces they came: a provider sends a token at least in each."""
        ...

    @property
    def whole(self) -> bool:
        """The provider said that the answer is complete."""
        ...

    @property
    def filtered(self) -> bool:
        """The provider's safety system broke the stream off."""
        ...

    def answer(self, body: bytes) -> Whole | f.Failure: ...
    def feed(self, data: bytes) -> Read: ...
    def end(self) -> Read: ...


class NativeChat:
    """OpenAI's chat to a host that speaks it: the hot path, chunk for chunk as they came."""

    def __init__(self, call: neutral.Call, *, usage_wanted: bool, limit: int) -> None:
        self.call = call
        self.usage: Usage | None = None
        self.spoke = False
        self._parser = SseParser(limit)
        self._reader = openai.ChatStream(usage_wanted=usage_wanted)
        self._prelude: list[bytes] = []
        self._calls = tool_calls.Arguments()
        self._is_judged = False

    @property
    def whole(self) -> bool:
        return self._reader.whole

    @property
    def filtered(self) -> bool:
        return self._reader.finish == "content_filter"

    @property
    def said(self) -> int:
        return self._reader.said

    @property
    def pieces(self) -> int:
        return self._reader.pieces

    def answer(self, body: bytes) -> Whole | f.Failure:
        answer = openai.decode_answer(body, api="chat")
        if not isinstance(answer, openai.Answer):
            return answer
        if b'"tool_calls"' in body and answer.finish not in tool_calls.CUT_OFF:
            mended = tool_calls.mend_openai(answer.body)
            if isinstance(mended, f.MalformedToolCall):
                return mended
            if mended is not None:
                return Whole(mended, answer.usage, repaired=True)
        return Whole(answer.body, answer.usage, filtered=answer.finish == "content_filter")

    def feed(self, data: bytes) -> Read:
        try:
            events = self._parser.feed(data)
        except EventTooLarge:
            return Read([], _too_large())
        lines: list[bytes] = []
        reader = self._reader
        for event in events:
            step = reader.feed(event.data)
            if not isinstance(step, openai.Step):
                return self._read(lines, step)
            if b'"tool_calls"' in event.data:
                self._calls.add_openai(event.data)
            if reader.finish and (failure := self._judged()) is not None:
                return self._read(lines, failure)
            if step.kind == "content":
                lines.append(step.data)
            elif step.kind == "prelude":
                self._prelude.append(step.data)
            elif step.kind == "done":
                return self._read(lines, ended=True)
        return self._read(lines)

    def _judged(self) -> f.Failure | None:
        """Once the provider has finished: a call that nobody could make must not look like one."""
        if self._is_judged or self._reader.finish in tool_calls.CUT_OFF:
            return None
        self._is_judged = True
        return self._calls.judge()

    def end(self) -> Read:
        # What is not terminated by an empty line is no event: the standard drops it, and so do we,
        # unless a host forgot the last line end of an otherwise whole stream.
        if self._reader.whole:
            return Read([], ended=True)
        lines = []
        for event in self._parser.finish():
            step = self._reader.feed(event.data)
            if isinstance(step, openai.Step) and step.kind == "content":
                lines.append(step.data)
        return self._read(lines, ended=True)

    def _read(
        self, lines: list[bytes], failure: f.Failure | None = None, *, ended: bool = False
    ) -> Read:
        self.usage = self._reader.usage
        if lines and not self.spoke:
            self.spoke = True
            lines = self._prelude + lines
            self._prelude = []
        return Read(lines, failure, ended)


class NativeEmbeddings:
    """OpenAI's embeddings to a host that speaks them."""

    def __init__(self, call: neutral.Call, *, encoding: str | None) -> None:
        self.call = call
        self.usage: Usage | None = None
        self.spoke = False
        self.said = self.pieces = 0
        self.whole = True
        self.filtered = False
        self._encoding = encoding

    def answer(self, body: bytes) -> Whole | f.Failure:
        answer = openai.decode_answer(body, api="embeddings", encoding=self._encoding)
        if not isinstance(answer, openai.Answer):
            return answer
        return Whole(answer.body, answer.usage)

    def feed(self, data: bytes) -> Read:
        del data
        return Read([], f.MalformedAnswer("embeddings are not streamed"))

    def end(self) -> Read:
        return Read([], ended=True)


class Translated:
    """Two dialects: through the neutral vocabulary, both ways."""

    def __init__(
        self,
        call: neutral.Call,
        *,
        provider: ProviderDialect,
        caller: CallerDialect,
        model: str,
        request: neutral.Request,
        now: int = 0,
    ) -> None:
        """`now`: Unix seconds, for providers that do not say when they answered."""
        self.call = call
        self._now = now
        self.usage: Usage | None = None
        self.spoke = False
        self.said = self.pieces = 0
        self.whole = False
        self.filtered = False
        self._provider = provider
        self._caller = caller
        self._model = model
        self._decoder = provider.stream_decoder()
        self._encoder = caller.stream_encoder(request, provider.name, model)
        self._held: list[neutral.StreamEvent] = []
        self._done = False
        self._calls = tool_calls.Arguments()

    def answer(self, body: bytes) -> Whole | f.Failure:
        answer = self._provider.decode_answer(body)
        if not isinstance(answer, neutral.Answer):
            return answer
        mended = tool_calls.mend(answer)
        if isinstance(mended, f.MalformedToolCall):
            return mended
        self.usage = answer.usage
        told = mended.answer
        if not told.created:
            told = msgspec.structs.replace(told, created=self._now)
        body = self._caller.encode_answer(told, self._model)
        return Whole(body, answer.usage, mended.repaired, _is_filtered(answer))

    def feed(self, data: bytes) -> Read:
        return self._events(self._decoder.feed(data))

    def end(self) -> Read:
        events = self._decoder.end()
        if not self._done and self._finished(events):
            # Some hosts close the connection after the finish instead of saying the last word.
            events.append(neutral.Done())
        read = self._events(events)
        read.ended = True
        return read

    def _calls_of(self, event: neutral.StreamEvent) -> f.Failure | None:
        """A call that nobody could make, once its candidate finishes as if it were one."""
        match event:
            case neutral.PartBegan(
                index=index, candidate=candidate, part=neutral.ToolCall() as call
            ):
                self._calls.begin((candidate, index), call.name, call.arguments)
            case neutral.Grew(index=index, candidate=candidate, text=text):
                self._calls.grow((candidate, index), text)
            case neutral.Finished(finish=finish) if finish not in tool_calls.CUT_OFF:
                return self._calls.judge()
            case _:
                pass
        return None

    def _finished(self, events: list[neutral.StreamEvent]) -> bool:
        last_words = neutral.Finished | neutral.Done | neutral.Broke
        said = [event for event in events if isinstance(event, last_words)]
        if any(not isinstance(event, neutral.Finished) for event in said):
            return False
        return self.whole or bool(said)

    def _events(self, events: list[neutral.StreamEvent]) -> Read:
        failure: f.Failure | None = None
        ready: list[neutral.StreamEvent] = []
        for event in events:
            if isinstance(event, neutral.Broke):
                failure = event.failure
                break
            failure = self._calls_of(event)
            if failure is not None:
                break
            if isinstance(event, neutral.UsageKnown):
                self.usage = event.usage
            elif isinstance(event, neutral.Began) and not event.created:
                event = msgspec.structs.replace(event, created=self._now)  # noqa: PLW2901
            elif isinstance(event, neutral.Finished):
                self.whole = True
                self.filtered = self.filtered or event.finish == "content_filter"
            ready.append(event)
            self.spoke = self.spoke or says_something(event)
            if (size := _size(event)) > 0:
                self.said += size
                self.pieces += 1
        if not self.spoke:
            self._held += ready
            return Read([], failure)
        if self._held:
            ready = self._held + ready
            self._held = []
        self._done = self._done or any(isinstance(event, neutral.Done) for event in ready)
        return Read(self._encoder.feed(ready), failure, self._done)


class Continued(Translated):
    """The rest of a stream that another deployment began."""

    def __init__(
        self,
        call: neutral.Call,
        *,
        provider: ProviderDialect,
        caller: CallerDialect,
        model: str,
        request: neutral.Request,
        said: SoFar,
    ) -> None:
        super().__init__(call, provider=provider, caller=caller, model=model, request=request)
        # Read as its own dialect's, what was said keeps its ids, and the rest goes on under them.
        self._encoder = caller.stream_encoder(request, caller.name, model)
        self._encoder.feed(said.events)
        self._encoder.goes_on_from(provider.name)
        self._joint = Joint(said)

    def _events(self, events: list[neutral.StreamEvent]) -> Read:
        return super()._events(self._joint.onward(events))


class NativeStream:
    """One dialect on both sides, other than OpenAI's chat: events as they came, read on the way."""

    def __init__(
        self,
        call: neutral.Call,
        *,
        dialect: ProviderDialect,
        caller: CallerDialect,
        model: str,
        limit: int,
    ) -> None:
        self.call = call
        self._caller = caller
        self._model = model
        self.usage: Usage | None = None
        self.spoke = False
        self.said = self.pieces = 0
        self.whole = False
        self.filtered = False
        self._dialect = dialect
        self._parser = SseParser(limit)
        self._decoder = dialect.stream_decoder()
        self._held: list[bytes] = []
        self._done = False

    def answer(self, body: bytes) -> Whole | f.Failure:
        answer = self._dialect.decode_answer(body)
        if not isinstance(answer, neutral.Answer):
            return answer
        mended = tool_calls.mend(answer)
        if isinstance(mended, f.MalformedToolCall):
            return mended
        self.usage = answer.usage
        if mended.repaired:
            body = self._caller.encode_answer(mended.answer, self._model)
        return Whole(body, answer.usage, mended.repaired, _is_filtered(answer))

    def feed(self, data: bytes) -> Read:
        try:
            lines = [_one_line(event.data) for event in self._parser.feed(data) if event.data]
        except EventTooLarge:
            return Read([], _too_large())
        return self._read(lines, self._decoder.feed(data))

    def end(self) -> Read:
        read = self._read([], self._decoder.end())
        read.ended = True
        last = _LAST_WORDS.get(self._dialect.name)
        if last is not None and self.whole and not self._done and read.failure is None:
            # The provider closed the connection after the finish instead of saying it.
            read.lines.append(last)
        return read

    def _read(self, lines: list[bytes], events: list[neutral.StreamEvent]) -> Read:
        failure: f.Failure | None = None
        for event in events:
            if isinstance(event, neutral.Broke):
                failure = event.failure
            elif isinstance(event, neutral.UsageKnown):
                self.usage = event.usage
            elif isinstance(event, neutral.Finished):
                self.whole = True
                self.filtered = self.filtered or event.finish == "content_filter"
            self.spoke = self.spoke or says_something(event)
            if (size := _size(event)) > 0:
                self.said += size
                self.pieces += 1
        if failure is not None:
            # The provider's own error event is not passed on: ours says the same, with the totals.
            return Read(lines[:-1] if self.spoke else [], failure)
        lines = [line for line in lines if line != b"[DONE]"]
        if not self.spoke:
            self._held += lines
            return Read([])
        if self._held:
            lines = self._held + lines
            self._held = []
        # As for the other exchanges the last word is the end: a host may leave the connection open.
        self._done = any(isinstance(event, neutral.Done) for event in events)
        return Read(lines, ended=self._done)


class TranslatedEmbeddings:
    """OpenAI's embeddings to a host of another dialect."""

    def __init__(
        self, call: neutral.Call, *, provider: ProviderDialect, request: neutral.Embeddings
    ) -> None:
        self.call = call
        self.usage: Usage | None = None
        self.spoke = False
        self.said = self.pieces = 0
        self.whole = True
        self.filtered = False
        self._provider = provider
        self._request = request

    def answer(self, body: bytes) -> Whole | f.Failure:
        if self._provider.decode_embeddings is None:
            return f.InvalidRequest("this provider has no embeddings")
        answer = self._provider.decode_embeddings(body)
        if not isinstance(answer, neutral.EmbeddingsAnswer):
            return answer
        body = openai_chat.encode_embeddings_answer(answer, encoding=self._request.encoding)
        return Whole(body, answer.usage)

    def feed(self, data: bytes) -> Read:
        del data
        return Read([], f.MalformedAnswer("embeddings are not streamed"))

    def end(self) -> Read:
        return Read([], ended=True)


class Asked(Struct, frozen=True):
    """What the caller wants of which host."""

    api: str
    stream: bool
    usage_wanted: bool
    body: Raw
    model: str
    """As the caller named it: what answers carry."""
    wire: Wire
    provider: str
    provider_model: str
    quirks: Mapping[str, object]
    limit: int
    """Bytes of one event of a stream."""
    refuse_dropped: bool = False
    """Refuse what the provider cannot express, instead of reporting it as dropped."""
    now: int = 0
    """Unix seconds."""
    continues: bytes = b""
    """What the caller has of the answer already: lines of its dialect."""


class _EmbeddingsAsked(Struct):
    encoding_format: str | None = None


_embeddings_asked = msgspec.json.Decoder(_EmbeddingsAsked)
_fields = msgspec.json.Decoder(dict[str, Raw])
_OWN_WIRE: Final[Mapping[str, Wire]] = {
    "openai": "openai",
    "anthropic": "anthropic",
    "responses": "responses",
    "gemini": "gemini",
}
"""A caller's dialect -> the wire whose decoder reads what was written in it."""
_LAST_WORDS: Final[Mapping[str, bytes]] = {"anthropic": b'{"type":"message_stop"}'}
"""Of dialects whose streams say more after their finish: without it callers take them for broken off."""
_HOT: Final = frozenset({"openai"})
"""Hosts that take OpenAI's bodies as callers write them; Azure and Mistral differ in fields."""


def open_exchange(asked: Asked) -> Exchange | f.Failure:
    """The exchange for one attempt, or why this body cannot be asked of this host."""
    try:
        if asked.api == "embeddings":
            return _embeddings(asked)
        if asked.continues:
            return _continued(asked)
        if asked.api == "chat" and asked.wire in _HOT and _as_it_came(asked):
            body = openai.encode_request(
                asked.body, model=asked.provider_model, api="chat", stream=asked.stream
            )
            call = neutral.Call(openai.PATHS["chat"], body)
            return NativeChat(call, usage_wanted=asked.usage_wanted, limit=asked.limit)
        return _dialects(asked)
    except openai.TooManyFields as error:
        return f.InvalidRequest(str(error))
    except BadRequest as error:
        return f.InvalidRequest(str(error)[:500], param=error.param)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return f.InvalidRequest("the body is not a JSON object of the API's shape")


def _as_it_came(asked: Asked) -> bool:
    """The host takes OpenAI's chat as callers write it: nothing is known to set it apart.

    OpenAI itself does too, but for `max_tokens`, which its reasoning models refuse under that name.
    """
    if len(asked.quirks) > 1:
        return False
    known = by_provider(asked.provider)
    if known is DEFAULT:
        return True
    return known is QUIRKS["openai"] and b'"max_tokens"' not in bytes(asked.body)


def _dialects(asked: Asked) -> Exchange | f.Failure:
    provider = provider_dialect(asked.wire, asked.provider)
    caller = caller_dialect(asked.api)
    request = caller.decode_request(bytes(asked.body))
    request = msgspec.structs.replace(request, stream=asked.stream)
    if caller.name != provider.name and (refused := caller.refusal(request)) is not None:
        raise refused
    target = neutral.Target(asked.provider_model, asked.quirks)
    call = provider.encode_request(request, target)
    if call.dropped and asked.refuse_dropped:
        names = ", ".join(call.dropped[:20])
        return f.InvalidRequest(f"this model's provider cannot be asked for: {names}")
    if CALLERS[asked.api] == provider.name and provider.name not in {"openai", "gemini"}:
        return NativeStream(
            call, dialect=provider, caller=caller, model=asked.model, limit=asked.limit
        )
    return Translated(
        call,
        provider=provider,
        caller=caller,
        model=asked.model,
        request=request,
        now=asked.now,
    )


def _continued(asked: Asked) -> Exchange | f.Failure:
    caller = caller_dialect(asked.api)
    own = provider_dialect(_OWN_WIRE[caller.name], "")
    said = so_far(asked.continues, own.stream_decoder())
    if said is None:
        return f.StreamCut("what was said so far is not a text that another model could go on with")
    provider = provider_dialect(asked.wire, asked.provider)
    request = caller.decode_request(bytes(asked.body))
    if request.format is not None and request.format.kind != "text":
        return f.StreamCut(
            "an answer of a given structure is not one that another model could go on with"
        )
    request = msgspec.structs.replace(asked_again(request, said), stream=True)
    if caller.name != provider.name and (refused := caller.refusal(request)) is not None:
        raise refused
    call = provider.encode_request(request, neutral.Target(asked.provider_model, asked.quirks))
    return Continued(
        call, provider=provider, caller=caller, model=asked.model, request=request, said=said
    )


def _embeddings(asked: Asked) -> Exchange | f.Failure:
    encoding = _embeddings_asked.decode(asked.body).encoding_format
    if asked.wire in _HOT:
        body = openai.encode_request(
            asked.body, model=asked.provider_model, api="embeddings", stream=False
        )
        return NativeEmbeddings(neutral.Call(openai.PATHS["embeddings"], body), encoding=encoding)
    provider = provider_dialect(asked.wire, asked.provider)
    if provider.encode_embeddings is None:
        return f.InvalidRequest(f"the {asked.wire} dialect has no embeddings")
    request = openai_chat.decode_embeddings_request(bytes(asked.body))
    target = neutral.Target(asked.provider_model, asked.quirks)
    call = provider.encode_embeddings(request, target)
    return TranslatedEmbeddings(call, provider=provider, request=request)


def says_something(event: neutral.StreamEvent) -> bool:
    """The first of these is the first token: until then a failure costs the caller nothing."""
    match event:
        case neutral.Grew():
            return True
        case neutral.PartBegan(part=part):
            return not isinstance(part, neutral.Text | neutral.Thinking | neutral.Refusal)
        case neutral.Finished():
            return True
        case _:
            return False


def _is_filtered(answer: neutral.Answer) -> bool:
    return any(candidate.finish == "content_filter" for candidate in answer.candidates)


def _size(event: neutral.StreamEvent) -> int:
    """Characters that an event adds to the answer."""
    match event:
        case neutral.Grew(text=text):
            return len(text)
        case neutral.PartBegan(part=neutral.ToolCall() as call):
            return len(call.name) + len(call.arguments)
        case neutral.PartBegan(
            part=neutral.Text() | neutral.Thinking() | neutral.Refusal() as part
        ):
            return len(part.text)
        case _:
            return 0


def _one_line(data: bytes) -> bytes:
    # Events travel one a line; a line end in JSON is only ever white space.
    if b"\n" in data or b"\r" in data:
        return data.replace(b"\r", b" ").replace(b"\n", b" ")
    return data


def _too_large() -> f.Failure:
    return f.MalformedAnswer("the provider sent an event larger than the gateway accepts")
