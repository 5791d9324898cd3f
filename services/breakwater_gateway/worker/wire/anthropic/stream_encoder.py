"""Neutral events to this API's events, one JSON object each; `type` is the SSE event's name.

The API has one block open at a time and tells stop reason and usage together at the end; other providers
interleave parts and finish before they count. So a part that begins closes the text before it, waits
behind an unfinished tool call, and the end is held back until the stream is done.
"""

from typing import Final

from msgspec import Raw, Struct

from breakwater_gateway.worker.wire import neutral as n
from breakwater_gateway.worker.wire.anthropic import blocks as b
from breakwater_gateway.worker.wire.anthropic.answer import message_id
from breakwater_gateway.worker.wire.anthropic.errors import encode_stream_error
from breakwater_protocol import failures as f
from breakwater_protocol.chat import Usage


class _TextDelta(Struct, tag="text_delta", gc=False):
    text: str


class _InputDelta(Struct, tag="input_json_delta", gc=False):
    partial_json: str


class _ThinkingDelta(Struct, tag="thinking_delta", gc=False):
    thinking: str


class _SignatureDelta(Struct, tag="signature_delta", gc=False):
    signature: str


class _CompactionDelta(Struct, tag="compaction_delta", gc=False):
    content: str


class _BlockDelta(Struct, tag="content_block_delta"):
    index: int
    delta: _TextDelta | _InputDelta | _ThinkingDelta | _SignatureDelta | _CompactionDelta | Raw


class _BlockStop(Struct, tag="content_block_stop", gc=False):
    index: int


class _Part(Struct):
    """A part of the source, from its beginning to its end."""

    part: n.Part
    kind: str
    """`text`, `thinking` or `input`: what its growth is called; empty for parts that are left out."""
    block: int = -1
    """Index of its block while that is open."""
    ended: bool = False
    waiting: list[n.Grew] | None = None
    """Growth that came while another block was open."""


_GREW_BYTES: Final = 128
"""What an event that waits takes besides its text."""

_EVENT_LEVEL: Final = frozenset({"usage", "context_management"})
"""Fields of `message_delta` that stand beside its `delta`."""


class StreamEncoder:
    """One answer as this API streams it.

    `model` is what the caller is told; `source` is the dialect that the events were decoded from: native
    fields are written back only where it is this one.
    """

    __slots__ = (
        "_blocks",
        "_called",
        "_finished",
        "_held",
        "_native",
        "_open",
        "_over",
        "_parts",
        "_queue",
        "_refused",
        "_usage",
        "model",
    )

    def __init__(self, *, model: str, source: n.DialectName) -> None:
        self.model = model
        self._native = source == "anthropic"
        self._parts: dict[int, _Part] = {}
        self._queue: list[_Part] = []
        """Parts that wait for the open tool call to end."""
        self._open: _Part | None = None
        self._blocks = 0
        self._held = 0
        self._called = self._refused = self._over = False
        self._finished: n.Finished | None = None
        self._usage: Usage | None = None

    def goes_on_from(self, source: n.DialectName) -> None:
        self._native = source == "anthropic"

    def feed(self, events: list[n.StreamEvent]) -> list[bytes]:
        out: list[bytes] = []
        for event in events:
            if self._over:
                break
            self._write(event, out)
            if self._held > n.EVENT_BYTES_MAX:
                self._over = True
                said = (
                    "too much of the provider's answer stands behind a tool call that does not end"
                )
                out.append(encode_stream_error(f.MalformedAnswer(said)))
        return out

    def _write(self, event: n.StreamEvent, out: list[bytes]) -> None:
        match event:
            case n.Grew():
                if event.candidate == 0 and (part := self._parts.get(event.index)) is not None:
                    self._grow(part, event, out)
            case n.PartBegan():
                if event.candidate == 0:
                    self._begin(event, out)
            case n.PartEnded():
                if (
                    event.candidate == 0
                    and (part := self._parts.pop(event.index, None)) is not None
                ):
                    self._end(part, out)
            case n.Began():
                out.append(self._message_start(event))
            case n.Finished():
                if event.candidate == 0 and self._finished is None:
                    self._finished = event
            case n.UsageKnown(usage=usage):
                self._usage = usage
            case n.Broke(failure=failure):
                self._over = True
                out.append(encode_stream_error(failure))
            case n.Done():
                self._over = True
                self._done(out)

    def _message_start(self, began: n.Began) -> bytes:
        message: dict[str, object] = {
            "id": began.id if self._native else message_id(began.id),
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
        }
        if self._native:
            message |= began.extra
        # Others count at the end; `message_delta` overrides these.
        message.setdefault("usage", {"input_tokens": 0, "output_tokens": 0})
        return _line({"type": "message_start", "message": message})

    # ---- parts

    def _begin(self, event: n.PartBegan, out: list[bytes]) -> None:
        part = _Part(event.part, _growth(event.part))
        self._parts[event.index] = part
        self._called = self._called or isinstance(event.part, n.ToolCall)
        self._refused = self._refused or isinstance(event.part, n.Refusal)
        if not part.kind and not isinstance(event.part, n.Native):
            return
        if not self._native and part.kind != "input" and not _text(event.part):
            return  # opened by its first text: an empty block, echoed, would be refused
        if self._open is not None and self._open.kind == "input":
            part.waiting = []
            self._queue.append(part)
            return
        self._close(out)
        self._open_block(part, out)

    def _open_block(self, part: _Part, out: list[bytes]) -> None:
        given = part.part
        written = self._start_of(given)
        if written is None:
            return
        part.block = self._blocks
        self._blocks += 1
        self._open = part
        start = {"type": "content_block_start", "index": part.block, "content_block": written}
        out.append(_line(start))
        if part.kind and (text := _text(given)):
            out.append(_line(_BlockDelta(part.block, _delta_of(part.kind, text))))
        elif isinstance(given, n.Native):
            deltas = _native(given.raw)[1]
            out.extend(_line(_BlockDelta(part.block, delta)) for delta in deltas)
        if self._native and isinstance(given, n.Thinking) and given.signature:
            out.append(_line(_BlockDelta(part.block, _SignatureDelta(given.signature))))

    def _start_of(self, part: n.Part) -> object:
        """The block as it begins: empty, its text and input yet to come."""
        written: dict[str, object]
        match part:
            case n.Text() | n.Refusal():
                written = {"type": "text", "text": ""}
            case n.Thinking(redacted=data) if data:
                if not self._native:
                    return None
                written = {"type": "redacted_thinking", "data": data}
            case n.Thinking():
                written = {"type": "thinking", "thinking": "", "signature": ""}
            case n.ToolCall():
                call_id = part.id or f"toolu_{self._blocks}"
                written = {"type": "tool_use", "id": call_id, "name": part.name, "input": {}}
            case n.Native(dialect="anthropic", raw=raw):
                return _native(raw)[0]
            case _:
                return None
        return written | part.extra | part.layout if self._native else written

    def _grow(self, part: _Part, grew: n.Grew, out: list[bytes]) -> None:
        if part.waiting is not None:
            self._held += len(grew.text) + _GREW_BYTES
            part.waiting.append(grew)
            return
        if part is not self._open:
            shown = grew.text or (self._native and (grew.signature or grew.extra))
            if part.kind not in {"text", "thinking"} or not shown:
                return
            # Not opened yet, or closed when another part began: what comes now is a block of its own.
            if part.block >= 0:
                part.part = n.Thinking() if part.kind == "thinking" else n.Text(text="")
            if self._open is not None and self._open.kind == "input":
                part.waiting = [grew]
                self._held += len(grew.text) + _GREW_BYTES
                self._queue.append(part)
                return
            self._close(out)
            self._open_block(part, out)
        if part is self._open:
            self._delta(part, grew, out)

    def _delta(self, part: _Part, grew: n.Grew, out: list[bytes]) -> None:
        if grew.text:
            out.append(_line(_BlockDelta(part.block, _delta_of(part.kind, grew.text))))
        if self._native:
            if grew.signature:
                out.append(_line(_BlockDelta(part.block, _SignatureDelta(grew.signature))))
            if "delta" in grew.extra:
                out.append(_line(_BlockDelta(part.block, grew.extra["delta"])))

    def _end(self, part: _Part, out: list[bytes]) -> None:
        part.ended = True
        if part is not self._open:
            return
        self._close(out)
        self._drain(out)

    def _close(self, out: list[bytes]) -> None:
        if self._open is not None:
            out.append(_line(_BlockStop(self._open.block)))
            self._open = None

    def _drain(self, out: list[bytes], *, all_of_it: bool = False) -> None:
        """Parts that waited, in their order, until one of them is a tool call that goes on."""
        while self._queue and self._open is None:
            part = self._queue.pop(0)
            waited, part.waiting = part.waiting or [], None
            self._held -= sum(len(grew.text) + _GREW_BYTES for grew in waited)
            self._open_block(part, out)
            if self._open is None:
                continue
            for grew in waited:
                self._delta(part, grew, out)
            if part.ended or all_of_it or (self._queue and part.kind != "input"):
                self._close(out)

    # ---- the end

    def _done(self, out: list[bytes]) -> None:
        self._close(out)
        self._drain(out, all_of_it=True)
        finished = self._finished or n.Finished("")
        if finished.finish == "error" and not self._native:
            # This API has no such stop reason, and a failed answer must not end like a good one.
            said = "the provider ended its answer with an error"
            out.append(encode_stream_error(f.ServerError(said)))
            return
        delta: dict[str, object]
        event: dict[str, object] = {"type": "message_delta"}
        if self._native:
            delta = {
                "stop_reason": finished.native or None,
                "stop_sequence": finished.stop_sequence or None,
            }
            for name, raw in finished.extra.items():
                (event if name in _EVENT_LEVEL else delta)[name] = raw
        else:
            reason, sequence = b.stop_reason(
                finished.finish,
                stop_sequence=finished.stop_sequence,
                called=self._called,
                refused=self._refused,
            )
            delta = {"stop_reason": reason, "stop_sequence": sequence}
        event["delta"] = delta
        event.setdefault("usage", b.written_usage(self._usage))
        out.extend((_line(event), _MESSAGE_STOP))


_MESSAGE_STOP: Final = b'{"type":"message_stop"}'


def _line(event: object) -> bytes:
    """Without line ends: native fields keep the provider's white space, and an event is one line."""
    data = b.encode(event)
    if b"\n" in data or b"\r" in data:
        return data.replace(b"\n", b" ").replace(b"\r", b" ")
    return data


def _growth(part: n.Part) -> str:
    match part:
        case n.Text() | n.Refusal():
            return "text"
        case n.Thinking():
            return "thinking"
        case n.ToolCall():
            return "input"
        case _:
            return ""


def _text(part: n.Part) -> str:
    """What a part says already where it begins."""
    match part:
        case n.Text(text=text) | n.Refusal(text=text) | n.Thinking(text=text):
            return text
        case n.ToolCall(arguments=arguments):
            return arguments
        case _:
            return ""


def _delta_of(kind: str, text: str) -> _TextDelta | _InputDelta | _ThinkingDelta:
    if kind == "text":
        return _TextDelta(text)
    return _InputDelta(text) if kind == "input" else _ThinkingDelta(text)


def _native(raw: Raw) -> tuple[object, list[_InputDelta | _CompactionDelta]]:
    """A native block as the provider began it, and the deltas that made it whole.

    The input of the provider's own tools and the text of a compaction come after the start.
    """
    try:
        given = b.fields(raw)
        tool_input, content = bytes(given.get("input", b"")), bytes(given.get("content", b""))
        if tool_input[:1] == b"{" and tool_input != b"{}":
            deltas: list[_InputDelta | _CompactionDelta] = [_InputDelta(tool_input.decode())]
            return given | {"input": Raw(b"{}")}, deltas
        if bytes(given.get("type", b"")) == b'"compaction"' and content[:1] == b'"':
            return given | {"content": Raw(b.NULL)}, [_CompactionDelta(b.text_of(content))]
    except b.UNREADABLE:
        pass
    return raw, []
