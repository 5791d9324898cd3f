"""Streams of generateContent as a provider sends them.

A chunk is an answer with the parts that are new; usage is cumulative; calls come whole. A stream is
server-sent events, or without `alt=sse` one JSON array; it ends with the body, once every candidate has told
a finish reason, and older models repeat that on every chunk. So the finish is held until the body ends.
Source: Gemini API reference, "streamGenerateContent"; recorded streams of both hosts.
"""

import re
from typing import Final

import msgspec
from msgspec import Raw, Struct

from breakwater_gateway.worker.sse import EventTooLarge, SseParser
from breakwater_gateway.worker.wire import neutral as n
from breakwater_gateway.worker.wire.gemini import answer as a
from breakwater_gateway.worker.wire.gemini import parts as p
from breakwater_gateway.worker.wire.gemini.errors import classify
from breakwater_gateway.worker.wire.gemini.fields import (
    UNREADABLE,
    encode,
    fields,
    text_or,
)
from breakwater_protocol import failures as f

CANDIDATES_MAX: Final = 256

_NULL: Final = b"null"
_SPACE: Final = b" \t\r\n"

# ---------------------------------------------------------------- framing


class _NotThisShape(Exception):
    """The body is in neither of the two framings."""


class _Objects:
    """Cuts a JSON array, or a sequence of objects, into its objects, wherever the chunks are cut.

    Only braces and strings are looked at; whether an object is JSON is found when it is decoded.
    """

    __slots__ = ("_depth", "_held", "_in_string", "_pos", "_start", "ended")

    # Possessive, so that a chunk cannot make them go back. `_PLAIN` passes whole strings over.
    _PLAIN: Final = re.compile(rb'(?:[^"{}]++|"(?:[^"\\]++|\\.)*+")*+', re.DOTALL)
    _STRING: Final = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
    _BETWEEN: Final = re.compile(rb"[ \t\r\n,\[]*+")

    def __init__(self) -> None:
        self._held = bytearray()
        self._pos = 0
        """What is before it is looked at."""
        self._start = 0
        self._depth = 0
        self._in_string = False
        self.ended = False
        """The array is closed."""

    @property
    def pending(self) -> bool:
        return self._depth > 0

    def feed(self, data: bytes) -> list[bytes]:
        """Raises EventTooLarge, _NotThisShape."""
        held = self._held
        held += data
        found: list[bytes] = []
        pos, size = self._pos, len(held)
        while pos < size:
            if self._depth == 0:
                pos = _end(self._BETWEEN, held, pos)
                if pos == size:
                    break
                if held[pos] == 0x5D:
                    self.ended = True
                    pos += 1
                elif held[pos] == 0x7B and not self.ended:
                    self._start, self._depth = pos, 1
                    pos += 1
                else:
                    raise _NotThisShape
                continue
            if self._in_string:
                pos = _end(self._STRING, held, pos)
                if pos == size or held[pos] != 0x22:
                    # The end, or a backslash whose other half is to come.
                    break
                self._in_string = False
                pos += 1
                continue
            pos = _end(self._PLAIN, held, pos)
            if pos == size:
                break
            byte = held[pos]
            pos += 1
            if byte == 0x22:
                self._in_string = True
            elif byte == 0x7B:
                self._depth += 1
            else:
                self._depth -= 1
                if self._depth == 0:
                    found.append(bytes(held[self._start : pos]))
        keep = self._start if self._depth else pos
        del held[:keep]
        self._start -= keep if self._depth else self._start
        self._pos = pos - keep
        if len(held) > n.EVENT_BYTES_MAX:
            raise EventTooLarge(n.EVENT_BYTES_MAX)
        return found


def _end(pattern: re.Pattern[bytes], held: bytearray, pos: int) -> int:
    found = pattern.match(held, pos)
    return pos if found is None else found.end()


# ---------------------------------------------------------------- decoding


class _Candidate:
    """What is known of a candidate while it is streamed."""

    __slots__ = ("called", "extra", "index", "kind", "native", "parts")

    def __init__(self, index: int) -> None:
        self.index = index
        self.parts = 0
        """Parts begun."""
        self.kind: type[n.Text | n.Thinking] | None = None
        """Of the open part, the last begun."""
        self.native = ""
        self.called = False
        self.extra: n.Extra = {}
        """Candidate fields, the last of each name."""


class _Content(Struct):
    parts: list[dict[str, Raw]] | None = None


class _TextPart(Struct, forbid_unknown_fields=True, gc=False):
    text: str
    thought: bool = False


class _TextContent(Struct, forbid_unknown_fields=True):
    parts: list[_TextPart]
    role: str = ""


class _TextCandidate(Struct, forbid_unknown_fields=True):
    content: _TextContent
    index: int = 0


class _TextChunk(Struct, forbid_unknown_fields=True, rename="camel"):
    """A chunk of nothing but text, or nothing but thoughts."""

    candidates: list[_TextCandidate]
    usage_metadata: Raw = Raw()
    model_version: Raw = Raw()
    response_id: Raw = Raw()
    create_time: Raw = Raw()


_text_chunk: Final = msgspec.json.Decoder(_TextChunk).decode


_candidates: Final = msgspec.json.Decoder(list[dict[str, Raw]]).decode
_content: Final = msgspec.json.Decoder(_Content).decode
_whole: Final = msgspec.json.Decoder(int).decode


class StreamDecoder:
    """Reads one stream, of either framing. See `neutral.StreamDecoder`.

    Fields of a part go to `Grew.extra`, or to the part's; of a candidate, and `usageMetadata`, to
    `Finished.extra`; of a chunk to `Began.extra`.
    """

    __slots__ = (
        "_began",
        "_candidates",
        "_over",
        "_parser",
        "_seed",
        "_start",
        "_usage",
    )

    def __init__(self) -> None:
        self._parser: SseParser | _Objects | None = None
        self._start = b""
        self._began = False
        self._over = False
        """Nothing more is told: the stream broke or ended."""
        self._seed = ""
        self._usage = b""
        self._candidates: dict[int, _Candidate] = {}

    def feed(self, data: bytes) -> list[n.StreamEvent]:
        events: list[n.StreamEvent] = []
        if self._over:
            return events
        try:
            if self._parser is None:
                data = self._choose(data)
            parser = self._parser
            if isinstance(parser, SseParser):
                for event in parser.feed(data):
                    if self._over:
                        break
                    self._chunk(event.data, events)
            elif parser is not None:
                for item in parser.feed(data):
                    if self._over:
                        break
                    self._chunk(item, events)
        except EventTooLarge:
            limit = n.EVENT_BYTES_MAX
            self._break(
                _malformed(f"a chunk of the provider's stream exceeds {limit} bytes"), events
            )
        except _NotThisShape:
            self._break(_malformed(a.not_json(data)), events)
        return events

    def end(self) -> list[n.StreamEvent]:
        events: list[n.StreamEvent] = []
        if self._over:
            return events
        parser, cut = self._parser, False
        if isinstance(parser, SseParser):
            # Some hosts leave out the blank line after the last event; half an event is no JSON.
            for event in parser.finish():
                cut = not _is_whole(event.data)
                if not cut:
                    self._chunk(event.data, events)
        elif parser is not None:
            cut = parser.pending
        if not self._over and not cut:
            self._finish(events)
        self._over = True
        return events

    def _choose(self, data: bytes) -> bytes:
        """The framing, told by the first byte that is no white space."""
        data = self._start + data
        body = data.removeprefix(b"\xef\xbb\xbf").lstrip(_SPACE)
        if not body or b"\xef\xbb\xbf".startswith(data):
            self._start = data[:16]
            return b""
        self._start = b""
        if body[0] in b"[{":
            self._parser = _Objects()
        elif body[0] == 0x3C:
            raise _NotThisShape
        else:
            self._parser = SseParser(n.EVENT_BYTES_MAX)
        return body

    def _break(self, failure: f.Failure, events: list[n.StreamEvent]) -> None:
        events.append(n.Broke(failure))
        self._over = True

    # ---- chunks

    def _chunk(self, data: bytes, events: list[n.StreamEvent]) -> None:
        if self._began:
            try:
                chunk = _text_chunk(data)
            except UNREADABLE:
                # Any other chunk.
                chunk = None
            if chunk is not None and self._more_text(chunk, events):
                return
        if data == b"[DONE]" or not data.strip():
            return
        try:
            given = fields(data)
            if _is_set(given.get("error")):
                self._break(classify(200, {}, data, now=0.0), events)
                return
            if not self._began:
                self._begin(given, events)
            raws = given.get("candidates")
            if raws is not None and bytes(raws) != _NULL:
                for at, candidate in enumerate(_candidates(raws)):
                    self._candidate(candidate, at, events)
            if "promptFeedback" in given:
                self._feedback(given["promptFeedback"], events)
            told = given.get("usageMetadata")
            if told is not None and not self._over:
                self._use(bytes(told), events)
        except (*UNREADABLE, p.NotAPart):
            self._break(_malformed(_NOT_JSON), events)

    def _more_text(self, chunk: "_TextChunk", events: list[n.StreamEvent]) -> bool:
        """The commonest chunk, more of the open part, without a detour. False: it is another one."""
        if len(chunk.candidates) != 1:
            return False
        given = chunk.candidates[0]
        candidate = self._candidates.get(given.index)
        if candidate is None or candidate.kind is None:
            return False
        thinking = candidate.kind is n.Thinking
        for part in given.content.parts:
            if part.thought is not thinking:
                return False
        index = candidate.parts - 1
        events.extend(
            n.Grew(index, part.text, candidate=given.index)
            for part in given.content.parts
            if part.text
        )
        told = bytes(chunk.usage_metadata)
        if told:
            self._use(told, events)
        return True

    def _use(self, told: bytes, events: list[n.StreamEvent]) -> None:
        if told == self._usage:
            return
        self._usage = told
        used = a.read_usage(told)
        if used is not None:
            events.append(n.UsageKnown(used))

    def _begin(self, given: dict[str, Raw], events: list[n.StreamEvent]) -> None:
        self._began = True
        answer_id = text_or(given.get("responseId"))
        self._seed = answer_id or text_or(given.get("createTime"))
        events.append(
            n.Began(
                id=answer_id,
                model=text_or(given.get("modelVersion")),
                created=a.created(given["createTime"]) if "createTime" in given else 0,
                extra={name: raw for name, raw in given.items() if name not in _READ},
            )
        )

    def _feedback(self, raw: Raw, events: list[n.StreamEvent]) -> None:
        failure = a.blocked(raw)
        if failure is None:
            return
        if not any(candidate.parts for candidate in self._candidates.values()):
            self._break(failure, events)
            return
        for candidate in self._candidates.values():
            candidate.native = candidate.native or "PROHIBITED_CONTENT"
            candidate.extra["promptFeedback"] = raw

    def _candidate(self, given: dict[str, Raw], at: int, events: list[n.StreamEvent]) -> None:
        raw_index = given.pop("index", None)
        index = at if raw_index is None else _whole(raw_index)
        candidate = self._candidates.get(index)
        if candidate is None:
            if not 0 <= index < CANDIDATES_MAX:
                raise _Unreadable
            candidate = self._candidates[index] = _Candidate(index)
        content = given.pop("content", None)
        if content is not None and bytes(content) != _NULL:
            parts = _content(content).parts
            if parts:
                before = len(events)
                for part in parts:
                    self._part(candidate, part, events)
                if "logprobsResult" in given and _add_logprobs(
                    events, before, given["logprobsResult"]
                ):
                    del given["logprobsResult"]
        if given:
            finish_reason = given.pop("finishReason", None)
            if finish_reason is not None:
                candidate.native = a.reason(finish_reason) or candidate.native
                if bytes(finish_reason)[:1] != b'"':
                    candidate.extra["finishReason"] = finish_reason
            if given:
                candidate.extra.update(given)

    def _part(
        self, candidate: _Candidate, given: dict[str, Raw], events: list[n.StreamEvent]
    ) -> None:
        which = candidate.index
        call_id = ""
        if "functionCall" in given:
            call_id = p.mint(self._seed, which, candidate.parts, "call")
        part = p.part(given, call_id)
        kind = type(part)
        if isinstance(part, n.Text | n.Thinking):
            text = part.text
            signature = part.signature if isinstance(part, n.Thinking) else ""
            if not text and not signature and not part.extra:
                return
            if not text and kind is n.Text and candidate.kind is not n.Text:
                # A bare signature. No part of its own, which other dialects would show as an empty text.
                self._whole_part(
                    candidate,
                    n.Native(dialect="gemini", raw=Raw(encode({"text": "", **part.extra}))),
                    events,
                )
                return
            if candidate.kind is not kind:
                self._close(candidate, events)
                opened: n.Part = n.Text(text="") if kind is n.Text else n.Thinking()
                events.append(n.PartBegan(candidate.parts, opened, which))
                candidate.parts += 1
                candidate.kind = n.Text if kind is n.Text else n.Thinking
            index = candidate.parts - 1
            events.append(n.Grew(index, text, signature, None, part.extra, which))
            return
        self._whole_part(candidate, part, events)

    def _whole_part(self, candidate: _Candidate, part: n.Part, events: list[n.StreamEvent]) -> None:
        which = candidate.index
        self._close(candidate, events)
        index = candidate.parts
        candidate.parts += 1
        if isinstance(part, n.ToolCall):
            candidate.called = True
            began = msgspec.structs.replace(part, arguments="")
            events.append(n.PartBegan(index, began, which))
            events.append(n.Grew(index, part.arguments, candidate=which))
        else:
            events.append(n.PartBegan(index, part, which))
        events.append(n.PartEnded(index, which))

    def _close(self, candidate: _Candidate, events: list[n.StreamEvent]) -> None:
        if candidate.kind is not None:
            candidate.kind = None
            events.append(n.PartEnded(candidate.parts - 1, candidate.index))

    # ---- the end

    def _finish(self, events: list[n.StreamEvent]) -> None:
        candidates = self._candidates.values()
        said = any(candidate.parts for candidate in candidates)
        for candidate in candidates:
            told = text_or(candidate.extra.get("finishMessage"))
            failure = a.refused(candidate.native, told, said=said)
            if failure is not None:
                self._break(failure, events)
                return
        if self._usage:
            first = self._candidates.get(0)
            if first is not None:
                first.extra["usageMetadata"] = Raw(self._usage)
        for candidate in candidates:
            if not candidate.native:
                continue
            self._close(candidate, events)
            finish = a.finish(candidate.native, calls=candidate.called) or "stop"
            events.append(
                n.Finished(finish, candidate.native, "", candidate.index, candidate.extra)
            )
        if candidates and all(candidate.native for candidate in candidates):
            events.append(n.Done())


_READ: Final = frozenset(
    {"candidates", "usageMetadata", "modelVersion", "responseId", "promptFeedback"}
)
_NOT_JSON: Final = "the provider's stream is not the JSON that its API promises"
_Unreadable: Final = msgspec.DecodeError


def _malformed(message: str) -> f.MalformedAnswer:
    return f.MalformedAnswer(message, provider_status=200)


def _is_whole(data: bytes) -> bool:
    try:
        fields(data)
    except UNREADABLE:
        return False
    return True


def _is_set(raw: Raw | None) -> bool:
    return raw is not None and bytes(raw) != _NULL


def _add_logprobs(events: list[n.StreamEvent], start: int, raw: Raw) -> bool:
    """The log probabilities of a chunk, on its first piece; False where it has none."""
    for at in range(start, len(events)):
        event = events[at]
        if isinstance(event, n.Grew):
            told = a.openai_logprobs(raw)
            extra = {**event.extra, "logprobsResult": raw}
            events[at] = msgspec.structs.replace(event, logprobs=told, extra=extra)
            return True
    return False
