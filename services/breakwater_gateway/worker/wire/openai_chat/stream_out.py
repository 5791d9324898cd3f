"""Chat streams for callers, written as chunks. Source and extras: see `stream`."""

from breakwater_gateway.runtime.answers import error_body
from breakwater_gateway.worker.wire.neutral import (
    Began,
    Broke,
    DialectName,
    Done,
    Extra,
    Finished,
    Grew,
    Image,
    Native,
    Part,
    PartBegan,
    PartEnded,
    Refusal,
    StreamEvent,
    Text,
    Thinking,
    ToolCall,
    UsageKnown,
)
from breakwater_gateway.worker.wire.openai_chat.answer import (
    finish_word,
    wire_call,
    wire_image,
)
from breakwater_gateway.worker.wire.openai_chat.fields import (
    decode_fields,
    encode,
    text_or,
)
from breakwater_gateway.worker.wire.openai_chat.messages import (
    Json,
    thinking_block,
)
from breakwater_gateway.worker.wire.openai_chat.usage import wire_usage
from breakwater_protocol.chat import Usage


class StreamEncoder:
    """Writes chunks for a caller of this dialect. The edge frames them, and ends with `[DONE]`.

    `model`: the name the caller asked for, "" shows the provider's; `source`: the dialect of the events,
    whose extras are written only when it is this one; `usage_wanted`: end with a chunk of usage.
    """

    __slots__ = (
        "_began",
        "_calls",
        "_created",
        "_head",
        "_kinds",
        "_model",
        "_own",
        "_roles",
        "_top",
        "_usage",
        "_usage_extra",
        "_usage_wanted",
    )

    def __init__(
        self,
        *,
        model: str = "",
        source: DialectName = "openai",
        usage_wanted: bool = True,
        created: int = 0,
    ) -> None:
        self._model = model
        self._own = source == "openai"
        self._usage_wanted = usage_wanted
        self._created = created
        self._began = False
        self._head = b""
        self._top: Json = {}
        self._roles: set[int] = set()
        self._kinds: dict[tuple[int, int], Part] = {}
        self._calls: dict[tuple[int, int], int] = {}
        self._usage: Usage | None = None
        self._usage_extra: Extra = {}

    def goes_on_from(self, source: DialectName) -> None:
        self._own = source == "openai"

    def feed(self, events: list[StreamEvent]) -> list[bytes]:
        out: list[bytes] = []
        for event in events:
            match event:
                case Grew():
                    self._grew(event, out)
                case PartBegan():
                    self._part(event, out)
                case PartEnded():
                    self._kinds.pop((event.candidate, event.index), None)
                case Began():
                    self._begin(event)
                case Finished():
                    self._finish(event, out)
                case UsageKnown():
                    self._usage = event.usage
                    self._usage_extra = event.extra if self._own else {}
                case Broke():
                    out.append(error_body(event.failure))
                case Done():
                    self._done(out)
        return out

    def _begin(self, event: Began) -> None:
        self._began = True
        top: Json = {
            "id": event.id or "chatcmpl-0",
            "object": "chat.completion.chunk",
            "created": event.created or self._created,
            "model": self._model or event.model,
        }
        if self._own:
            for name, raw in event.extra.items():
                top.setdefault(name, raw)
        self._top = top
        self._head = encode(top)[:-1]

    def _chunk(
        self,
        out: list[bytes],
        candidate: int,
        delta: bytes,
        *,
        finish: bytes = b"null",
        logprobs: bytes = b"null",
        choice: bytes = b"",
        news: Extra | None = None,
    ) -> None:
        if not self._began:
            self._begin(Began())
        if news:
            self._top = {**self._top, **news}
            self._head = encode(self._top)[:-1]
        out.append(
            b'%b,"choices":[{"index":%d,"delta":%b,"logprobs":%b,"finish_reason":%b%b}]}'
            % (self._head, candidate, delta, logprobs, finish, choice)
        )

    def _role(self, candidate: int, out: list[bytes]) -> None:
        self._roles.add(candidate)
        self._chunk(out, candidate, b'{"role":"assistant","content":""}')

    def _part(self, event: PartBegan, out: list[bytes]) -> None:
        part, candidate = event.part, event.candidate
        if candidate not in self._roles:
            self._role(candidate, out)
        self._kinds[candidate, event.index] = part
        match part:
            case Text():
                if part.text:
                    self._chunk(out, candidate, encode({"content": part.text}))
            case Refusal():
                if part.text:
                    self._chunk(out, candidate, encode({"refusal": part.text}))
            case Thinking():
                if part.text or part.signature or part.redacted:
                    self._thought(part, part.text, part.signature, candidate, b"", b"null", out)
            case ToolCall():
                number = self._calls[candidate, event.index] = sum(
                    1 for owner, _ in self._calls if owner == candidate
                )
                call = {"index": number, **wire_call(part, own=self._own, number=number)}
                self._chunk(out, candidate, encode({"tool_calls": [call]}))
            case Image():
                self._chunk(out, candidate, encode({"images": [wire_image(part)]}))
            case Native():
                if self._own:
                    self._chunk(out, candidate, b'{"content":[%b]}' % bytes(part.raw))
            case _:
                # Nothing else stands in an assistant's chat message.
                return

    def _grew(self, event: Grew, out: list[bytes]) -> None:
        candidate = event.candidate
        part = self._kinds.get((candidate, event.index))
        logprobs = b"null" if event.logprobs is None or not self._own else bytes(event.logprobs)
        delta, choice = b"", b""
        if event.extra and self._own:
            delta, choice, _ = _spread(event.extra)
        match part:
            case Text():
                said = b'"content":' + encode(event.text) if event.text else b""
            case ToolCall():
                number = self._calls[candidate, event.index]
                said = (
                    b'"tool_calls":[{"index":%d,"function":{"arguments":%b}}]'
                    % (number, encode(event.text))
                    if event.text
                    else b""
                )
            case Thinking():
                field = text_or(event.extra.get("field")) if self._own else ""
                self._thought(
                    part, event.text, event.signature, candidate, delta, logprobs, out, field=field
                )
                return
            case Refusal():
                said = b'"refusal":' + encode(event.text) if event.text else b""
            case _:
                said = b""
        if not said and not delta and not choice and logprobs == b"null":
            return
        inner = said + (b"," if said and delta else b"") + delta
        self._chunk(out, candidate, b"{" + inner + b"}", logprobs=logprobs, choice=choice)

    def _thought(
        self,
        part: Thinking,
        text: str,
        signature: str,
        candidate: int,
        delta: bytes,
        logprobs: bytes,
        out: list[bytes],
        *,
        field: str = "",
    ) -> None:
        fields: Json = {}
        if text and field != "reasoning_details":
            fields[field or "reasoning_content"] = text
        if not self._own and (signature or part.redacted):
            block = Thinking(text="", signature=signature, redacted=part.redacted)
            fields["thinking_blocks"] = [thinking_block(block)]
        inner = encode(fields)[1:-1] + (b"," if fields and delta else b"") + delta
        if inner:
            self._chunk(out, candidate, b"{" + inner + b"}", logprobs=logprobs)

    def _finish(self, event: Finished, out: list[bytes]) -> None:
        if event.candidate not in self._roles:
            self._role(event.candidate, out)
        delta, choice, news = (
            _spread(event.extra) if event.extra and self._own else (b"", b"", None)
        )
        # A function call of the old kind went out as a tool call.
        native = "" if event.native == "function_call" else event.native
        word = finish_word(event.finish, native, own=self._own)
        self._chunk(
            out,
            event.candidate,
            b"{" + delta + b"}",
            finish=encode(word),
            choice=choice,
            news=news,
        )

    def _done(self, out: list[bytes]) -> None:
        if self._usage is None or not self._usage_wanted:
            return
        if not self._began:
            self._begin(Began())
        extra = dict(self._usage_extra)
        usage = extra.pop("usage", None)
        tail: Json = {"choices": [], "usage": usage or wire_usage(self._usage)}
        out.append(encode({**self._top, **extra, **tail}))


def _spread(extra: Extra) -> tuple[bytes, bytes, Extra | None]:
    """Members to add to a delta (`…`) and to a choice (`,…`), and fields of the chunk itself."""
    rest = dict(extra)
    delta = rest.pop("delta", None)
    chunk = rest.pop("chunk", None)
    rest.pop("field", None)
    return (
        b"" if delta is None else bytes(delta)[1:-1],
        b"," + encode(rest)[1:-1] if rest else b"",
        None if chunk is None else decode_fields(chunk),
    )
