"""Chat streams of the family's hosts, read.

Source: OpenAI API reference, "The chat completion chunk object"; the hosts' ways are from recorded traffic:
roles on every delta, whole tool calls, missing indices, a finish that is said twice, usage beside choices or
on a chunk of its own, lists as content, comments, no `[DONE]`.

Extras of events: `Began.extra` holds the first chunk's top-level fields; `Grew.extra` and `Finished.extra`
those of the choice and, as one object each, those of its `delta` and, where they differ from the beginning's,
of its `chunk`; a thought's `field` names the one it came in, if not `reasoning_content`;
`UsageKnown.extra` the provider's `usage` and what else its chunk says. Random padding (`obfuscation`,
Mistral's `p`) is left out. A stream that fails before its first chunk is `Broke` alone.
"""

from typing import Final

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from breakwater_gateway.worker.sse import EventTooLarge, SseParser
from breakwater_gateway.worker.wire.bad_request import BadRequest
from breakwater_gateway.worker.wire.neutral import (
    EVENT_BYTES_MAX,
    Began,
    Broke,
    Done,
    Extra,
    Finished,
    Grew,
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
    finish_of,
    reasoning_field,
)
from breakwater_gateway.worker.wire.openai_chat.errors import classify
from breakwater_gateway.worker.wire.openai_chat.fields import (
    TEXT,
    UNREADABLE,
    decode_fields,
    decode_list,
    encode,
    is_null,
    is_text,
    is_utf8,
    minted,
    minting,
    text_or,
    whole_or,
)
from breakwater_gateway.worker.wire.openai_chat.messages import (
    read_content,
    read_details,
    signature_of,
)
from breakwater_gateway.worker.wire.openai_chat.quirks import DEFAULT, Quirks
from breakwater_gateway.worker.wire.openai_chat.usage import read_usage
from breakwater_protocol import failures as f

CHOICES_MAX: Final = 128
"""OpenAI's own bound on `n`."""

INDEX_MAX: Final = 2**31
"""Of a choice; hosts count them from 0."""

CALLS_MAX: Final = 1024
"""Tool calls of one candidate."""


class _Choice(Struct, gc=False):
    index: int = 0
    delta: dict[str, Raw] | None = None
    finish_reason: str | None = None
    logprobs: Raw | UnsetType = UNSET
    content_filter_results: Raw | UnsetType = UNSET
    error: Raw | UnsetType = UNSET


class _Chunk(Struct, gc=False):
    choices: list[_Choice] | None = None
    usage: Raw | UnsetType = UNSET
    error: Raw | UnsetType = UNSET
    x_groq: Raw | UnsetType = UNSET


class _Function(Struct, gc=False):
    name: str | None = None
    arguments: str | dict[str, Raw] | None = None


class _Fragment(Struct, gc=False):
    """A piece of a tool call."""

    index: int | None = None
    id: str | None = None
    function: _Function | None = None
    extra_content: Raw | UnsetType = UNSET


class _Groq(Struct):
    usage: Raw | None = None


_decode_chunk: Final = msgspec.json.Decoder(_Chunk).decode
_decode_fragments: Final = msgspec.json.Decoder(list[_Fragment]).decode
_decode_groq: Final = msgspec.json.Decoder(_Groq).decode
_decode_text: Final = TEXT.decode

_NOT_NEWS: Final = frozenset({"choices", "usage", "object", "obfuscation", "p", "error"})
"""Top-level fields that are read, constant or padding."""
_NOT_OF_CHOICE: Final = frozenset(
    {
        *("index", "delta", "finish_reason", "logprobs", "error"),
        # Perplexity's whole text so far, Together's text a second time.
        *("message", "text"),
    }
)


class _Call:
    __slots__ = ("id", "part", "pieces")

    def __init__(self, ident: str, part: int) -> None:
        self.id = ident
        self.part = part
        self.pieces: list[str] | None = []


class _Candidate:
    """What is open of one candidate."""

    __slots__ = (
        "called",
        "calls",
        "finished",
        "last",
        "number",
        "open",
        "open_kind",
        "parts",
        "waiting",
    )

    def __init__(self, number: int) -> None:
        self.number = number
        self.parts = 0
        self.open = -1
        """Index of the open part that is no tool call; -1 for none."""
        self.open_kind: type[Part] | None = None
        self.calls: dict[int, _Call] = {}
        """Tool calls that have not ended, by the host's index."""
        self.called = 0
        self.last: int | None = None
        self.finished = False
        self.waiting: Extra = {}
        """Fields of deltas that came before anything was open."""


class StreamDecoder:
    """Reads a host's stream. Holds one unfinished event and, of unfinished tool calls, the arguments so far."""

    __slots__ = (
        "_began",
        "_candidates",
        "_id",
        "_known",
        "_late",
        "_over",
        "_parser",
        "_prelude",
        "_quirks",
        "_top",
    )

    def __init__(self, quirks: Quirks = DEFAULT, *, event_bytes_max: int = EVENT_BYTES_MAX) -> None:
        self._quirks = quirks
        self._parser = SseParser(event_bytes_max)
        self._candidates: dict[int, _Candidate] = {}
        self._began = False
        self._over = False
        self._id = ""
        self._known: UsageKnown | None = None
        self._late: Extra = {}
        self._prelude: Extra = {}
        self._top: Extra = {}

    def feed(self, data: bytes) -> list[StreamEvent]:
        if self._over:
            return []
        out: list[StreamEvent] = []
        try:
            events = self._parser.feed(data)
        except EventTooLarge as error:
            return self._break(out, f.MalformedAnswer(str(error), provider_status=200))
        for event in events:
            self._event(event.data, out)
            if self._over:
                break
        return out

    def end(self) -> list[StreamEvent]:
        if self._over:
            return []
        out: list[StreamEvent] = []
        for event in self._parser.finish():
            # A last event without its blank line counts if it is whole.
            if event.data.strip() == b"[DONE]" or _is_json(event.data):
                self._event(event.data, out)
        if self._over:
            return out
        self._over = True
        if self._candidates and all(item.finished for item in self._candidates.values()):
            # Some hosts send no [DONE]; that every candidate finished says the same.
            out.append(Done())
        else:
            for candidate in self._candidates.values():
                self._close_all(candidate, out)
        return out

    # ------------------------------------------------------------ events

    def _event(self, data: bytes, out: list[StreamEvent]) -> None:
        if b"\n" in data:
            # Extras travel on as they are, one line an event; in JSON a newline is only white space.
            data = data.replace(b"\n", b" ")
        if not data.isascii() and not is_utf8(data):
            self._malformed(out)
            return
        try:
            chunk = _decode_chunk(data)
        except UNREADABLE:
            self._other(data, out)
            return
        if chunk.error is not UNSET and not is_null(chunk.error):
            self._break(out, classify(200, {}, data, now=0))
            return
        choices = chunk.choices
        if not choices and b'"error"' in data and text_or(_fields(data).get("object")) == "error":
            # Mistral, and vLLM of old: the event itself is the error object.
            self._break(out, classify(200, {}, data, now=0))
            return
        if not self._began and not self._begin(data, bool(choices), chunk, out):
            return
        if choices:
            for choice in choices:
                delta = choice.delta
                candidate = self._candidates.get(choice.index)
                if (
                    candidate is not None
                    and candidate.open_kind is Text
                    and choice.finish_reason is None
                    and delta is not None
                    and (len(delta) == 1 or (len(delta) == 2 and "role" in delta))
                    and (content := delta.get("content")) is not None
                    and choice.content_filter_results is UNSET
                    and (choice.logprobs is UNSET or bytes(choice.logprobs) == b"null")
                    and bytes(content)[:1] == b'"'
                ):
                    # Nearly every chunk of nearly every stream.
                    try:
                        text = _decode_text(content)
                    except UNREADABLE:
                        self._malformed(out)
                        return
                    if text:
                        out.append(Grew(candidate.open, text, candidate=candidate.number))
                    continue
                self._choice(choice, candidate, data, out)
                if self._over:
                    return
        usage = chunk.usage
        if usage is not UNSET and bytes(usage) != b"null":
            self._usage(usage, data, out)
        elif chunk.x_groq is not UNSET:
            self._groq(chunk.x_groq, out)
        elif not choices:
            # A word aside (OpenAI's moderation): it goes with the next event that can carry it.
            self._late.update(self._changed(_fields(data)))

    def _other(self, data: bytes, out: list[StreamEvent]) -> None:
        """What is no chunk: the end mark, padding, or nonsense."""
        said = data.strip()
        if said == b"[DONE]":
            self._over = True
            for candidate in self._candidates.values():
                if not candidate.finished:
                    # Snowflake never names a reason.
                    self._finish(candidate, "", {}, out)
            if self._late and self._known is not None:
                # Said after the usage, which is the last event that can carry it.
                extra = {**self._known.extra, **self._news({})}
                out.append(UsageKnown(self._known.usage, extra))
            out.append(Done())
        elif said:
            fields = _fields(said)
            error = fields.get("error")
            if error is not None and not is_null(error):
                self._break(out, classify(200, {}, said, now=0))
            else:
                self._malformed(out)

    def _malformed(self, out: list[StreamEvent]) -> None:
        self._break(
            out,
            f.MalformedAnswer(
                "the provider's stream holds an event that is not the JSON its API promises",
                provider_status=200,
            ),
        )

    def _break(self, out: list[StreamEvent], failure: f.Failure) -> list[StreamEvent]:
        self._over = True
        for candidate in self._candidates.values():
            self._close_all(candidate, out)
        out.append(Broke(failure))
        return out

    def _begin(self, data: bytes, has_choices: bool, chunk: _Chunk, out: list[StreamEvent]) -> bool:
        fields = _fields(data)
        rest = {name: raw for name, raw in fields.items() if name not in _NOT_NEWS}
        ident = text_or(rest.pop("id", None))
        model = text_or(rest.pop("model", None))
        created = whole_or(rest.pop("created", None))
        if not has_choices and not ident and chunk.usage is UNSET:
            # Azure says first what its filters think of the prompt, in a chunk without a name.
            self._prelude.update(rest)
            return False
        self._began = True
        self._id = minting(ident, model, created)
        self._top = rest
        out.append(Began(ident, model, created, {**self._prelude, **rest}))
        return True

    def _choice(
        self, choice: _Choice, candidate: _Candidate | None, data: bytes, out: list[StreamEvent]
    ) -> None:
        if choice.error is not UNSET and not is_null(choice.error):
            self._break(out, classify(200, {}, b'{"error":' + bytes(choice.error) + b"}", now=0))
            return
        if candidate is None:
            if len(self._candidates) >= CHOICES_MAX or not 0 <= choice.index < INDEX_MAX:
                self._malformed(out)
                return
            candidate = self._candidates[choice.index] = _Candidate(choice.index)
        if candidate.finished:
            # OpenRouter says the finish again beside the usage.
            return
        delta = choice.delta
        if delta:
            try:
                self._delta(delta, choice, candidate, out)
            except (*UNREADABLE, BadRequest):
                self._malformed(out)
                return
        if choice.finish_reason:
            last = self._last_words(data, candidate, filtered=not delta)
            self._finish(candidate, choice.finish_reason, last, out)

    def _last_words(self, data: bytes, candidate: _Candidate, *, filtered: bool) -> Extra:
        """What the finishing chunk says beside its delta. `filtered`: what Azure's filters say, too."""
        fields = _fields(data)
        extra: Extra = {}
        try:
            for raw in decode_list(fields.get("choices", Raw(b"[]"))):
                choice = decode_fields(raw)
                if whole_or(choice.get("index")) == candidate.number:
                    extra = {
                        name: value
                        for name, value in choice.items()
                        if name not in _NOT_OF_CHOICE and bytes(value) != b"null"
                    }
        except UNREADABLE:
            return {}
        if not filtered:
            extra.pop("content_filter_results", None)
        news = self._news(fields)
        if news:
            extra["chunk"] = Raw(encode(news))
        return extra

    def _news(self, fields: dict[str, Raw]) -> Extra:
        """Top-level fields that the stream's beginning did not have so. Each is told once."""
        top = self._top
        late, self._late = self._late, {}
        news = {
            **late,
            **self._changed(fields),
        }
        if news:
            self._top = {**top, **news}
        return news

    def _changed(self, fields: dict[str, Raw]) -> Extra:
        top = self._top
        return {
            name: raw
            for name, raw in fields.items()
            if name not in _NOT_NEWS
            and name not in {"id", "model", "created"}
            and bytes(raw) != b"null"
            and (name not in top or bytes(top[name]) != bytes(raw))
        }

    # ------------------------------------------------------------ deltas

    def _delta(
        self, delta: dict[str, Raw], choice: _Choice, candidate: _Candidate, out: list[StreamEvent]
    ) -> None:
        delta.pop("role", None)
        extra: Extra = {}
        if choice.content_filter_results is not UNSET and not is_null(
            choice.content_filter_results
        ):
            extra["content_filter_results"] = choice.content_filter_results
        logprobs = choice.logprobs
        said = None if logprobs is UNSET or is_null(logprobs) else logprobs
        content = delta.pop("content", None)
        if delta and (
            "reasoning_details" in delta or "reasoning_content" in delta or "reasoning" in delta
        ):
            self._reasoning(delta, candidate, out)
        if content is not None and not is_null(content):
            if is_text(content):
                text = _decode_text(content)
                if text:
                    index = self._open(Text, Text(text=""), candidate, out)
                    out.append(
                        Grew(index, text, logprobs=said, extra=extra, candidate=candidate.number)
                    )
                    said, extra = None, {}
            else:
                self._listed(content, candidate, out)
        if not delta and not extra and said is None:
            return
        refusal = delta.get("refusal")
        if refusal is not None and is_text(refusal) and (text := text_or(refusal)):
            del delta["refusal"]
            index = self._open(Refusal, Refusal(text=""), candidate, out)
            out.append(Grew(index, text, logprobs=said, candidate=candidate.number))
            said = None
        fragments = delta.get("tool_calls")
        if fragments is not None and not is_null(fragments):
            del delta["tool_calls"]
            self._fragments(fragments, candidate, out)
        legacy = delta.get("function_call")
        if legacy is not None and bytes(legacy)[:1] == b"{" and bytes(legacy) != b"{}":
            del delta["function_call"]
            self._fragments(Raw(b'[{"index":0,"function":' + bytes(legacy) + b"}]"), candidate, out)
        rest = {
            name: raw for name, raw in delta.items() if bytes(raw) not in {b"null", b'""', b"[]"}
        }
        if rest:
            extra["delta"] = Raw(encode(rest))
        if extra or said is not None:
            self._aside(extra, said, candidate, out)

    def _aside(
        self,
        extra: Extra,
        logprobs: Raw | None,
        candidate: _Candidate,
        out: list[StreamEvent],
    ) -> None:
        """Fields beside the content go with what is open; before anything is, they wait for it."""
        index = candidate.open
        if index < 0 and candidate.calls:
            index = next(reversed(candidate.calls.values())).part
        if index < 0 and (logprobs is not None or not candidate.waiting.keys().isdisjoint(extra)):
            index = self._open(Text, Text(text=""), candidate, out)
        if index < 0:
            candidate.waiting.update(extra)
        else:
            out.append(Grew(index, logprobs=logprobs, extra=extra, candidate=candidate.number))

    def _reasoning(
        self, delta: dict[str, Raw], candidate: _Candidate, out: list[StreamEvent]
    ) -> None:
        field = reasoning_field(delta)
        details = delta.pop("reasoning_details", None)
        text = ""
        for name in ("reasoning_content", "reasoning"):
            raw = delta.get(name)
            if raw is not None and is_text(raw):
                if not text:
                    text = text_or(raw)
                    del delta[name]
                elif text_or(raw) == text:
                    del delta[name]
        signature = ""
        extra: Extra = {}
        if details is not None and bytes(details) not in {b"null", b"[]"}:
            told, signature, _ = read_details(details)
            text = text or told
            extra = {"delta": Raw(b'{"reasoning_details":' + bytes(details) + b"}")}
        if not text and not extra:
            return
        if not text and not signature and candidate.open >= 0:
            # An encrypted afterthought: it opens nothing of its own.
            out.append(Grew(candidate.open, extra=extra, candidate=candidate.number))
            return
        if field is not None:
            extra["field"] = field
        index = self._open(Thinking, Thinking(), candidate, out)
        out.append(Grew(index, text, signature, extra=extra, candidate=candidate.number))

    def _listed(self, content: Raw, candidate: _Candidate, out: list[StreamEvent]) -> None:
        """Mistral's content while it thinks: a list of parts."""
        for part in read_content(content, "delta.content"):
            match part:
                case Text():
                    index = self._open(Text, Text(text=""), candidate, out)
                    if part.text:
                        out.append(Grew(index, part.text, candidate=candidate.number))
                case Thinking():
                    index = self._open(Thinking, Thinking(), candidate, out)
                    if part.text or part.signature:
                        out.append(
                            Grew(index, part.text, part.signature, candidate=candidate.number)
                        )
                case _:
                    self._open(type(part), part, candidate, out, anew=True)

    def _fragments(self, raw: Raw, candidate: _Candidate, out: list[StreamEvent]) -> None:
        for fragment in _decode_fragments(raw):
            function = fragment.function or _Function()
            call = self._call_of(fragment, function, candidate, out)
            if call is None:
                continue
            given = function.arguments
            if given:
                text = given if isinstance(given, str) else encode(given).decode()
                if call.pieces is not None:
                    call.pieces.append(text)
                out.append(Grew(call.part, text, candidate=candidate.number))

    def _call_of(
        self,
        fragment: _Fragment,
        function: _Function,
        candidate: _Candidate,
        out: list[StreamEvent],
    ) -> _Call | None:
        """The call that a fragment belongs to, begun if it is new; None for a fragment of nothing."""
        index, ident = fragment.index, fragment.id or ""
        calls = candidate.calls
        if index is None:
            if not ident and not function.name and candidate.last is not None:
                index = candidate.last
            else:
                index = -1 - candidate.called
        known = calls.get(index)
        if known is not None and not (ident and known.id and ident != known.id):
            return known
        if not function.name and not ident:
            return None
        if candidate.called >= CALLS_MAX:
            raise BadRequest("too many tool calls")
        if known is not None:
            # Another call under the same index.
            self._end_call(index, candidate, out)
        for other, call in list(calls.items()):
            # One that is whole cannot grow any more; others may still be written in turns.
            if call.pieces and _is_json("".join(call.pieces).encode("utf-8", "surrogatepass")):
                self._end_call(other, candidate, out)
        self._close(candidate, out)
        signature = "" if fragment.extra_content is UNSET else signature_of(fragment.extra_content)
        part = ToolCall(
            id=ident or minted(self._id, candidate.number, candidate.called),
            name=function.name or "",
            arguments="",
            signature=signature,
        )
        call = calls[index] = _Call(ident, candidate.parts)
        out.append(PartBegan(candidate.parts, part, candidate.number))
        candidate.parts += 1
        candidate.called += 1
        candidate.last = index
        self._flush(call.part, candidate, out)
        return call

    # ------------------------------------------------------------ parts

    def _open(
        self,
        kind: type[Part],
        part: Part,
        candidate: _Candidate,
        out: list[StreamEvent],
        *,
        anew: bool = False,
    ) -> int:
        if candidate.open_kind is kind and not anew:
            return candidate.open
        self._close_all(candidate, out)
        index = candidate.open = candidate.parts
        candidate.open_kind = kind
        candidate.parts += 1
        out.append(PartBegan(index, part, candidate.number))
        self._flush(index, candidate, out)
        return index

    def _flush(self, index: int, candidate: _Candidate, out: list[StreamEvent]) -> None:
        if candidate.waiting:
            out.append(Grew(index, extra=candidate.waiting, candidate=candidate.number))
            candidate.waiting = {}

    def _close(self, candidate: _Candidate, out: list[StreamEvent]) -> None:
        if candidate.open >= 0:
            out.append(PartEnded(candidate.open, candidate.number))
            candidate.open = -1
            candidate.open_kind = None

    def _end_call(self, index: int, candidate: _Candidate, out: list[StreamEvent]) -> None:
        out.append(PartEnded(candidate.calls.pop(index).part, candidate.number))

    def _close_all(self, candidate: _Candidate, out: list[StreamEvent]) -> None:
        self._close(candidate, out)
        for index in list(candidate.calls):
            self._end_call(index, candidate, out)

    def _finish(
        self, candidate: _Candidate, native: str, extra: Extra, out: list[StreamEvent]
    ) -> None:
        if candidate.finished:
            return
        candidate.finished = True
        self._close_all(candidate, out)
        out.append(
            Finished(
                finish_of(native, called=candidate.called > 0),
                native,
                candidate=candidate.number,
                extra={**candidate.waiting, **extra},
            )
        )

    # ------------------------------------------------------------ usage

    def _usage(self, raw: Raw, data: bytes, out: list[StreamEvent]) -> None:
        usage = read_usage(raw, thoughts_beside=self._quirks.thoughts_beside)
        if usage is None:
            return
        self._known = UsageKnown(usage, {"usage": raw, **self._news(_fields(data))})
        out.append(self._known)

    def _groq(self, raw: Raw, out: list[StreamEvent]) -> None:
        """Groq shows usage in an object of its own unless it is asked for."""
        try:
            inner = _decode_groq(raw).usage
        except UNREADABLE:
            return
        if inner is not None and (usage := read_usage(inner)) is not None:
            out.append(UsageKnown(usage, {"usage": inner}))


def _fields(data: bytes) -> dict[str, Raw]:
    try:
        return decode_fields(data)
    except UNREADABLE:
        return {}


def _is_json(data: bytes) -> bool:
    try:
        decode_raw(data)
    except UNREADABLE:
        return False
    return True


decode_raw: Final = msgspec.json.Decoder(Raw).decode
