"""A provider's event stream to neutral events.

`message_start`, for each block `content_block_start`, deltas and `content_block_stop`, then `message_delta`
with the stop reason and the usage so far, `message_stop`; `ping` and `error` anywhere, the latter also
first. Blocks that only this API has are held until they are whole, since a `Native` part is whole.

Source: Anthropic documentation, "Streaming messages".
"""

from typing import Final

import msgspec
from msgspec import Raw, Struct

from breakwater_gateway.worker.sse import EventTooLarge, SseParser
from breakwater_gateway.worker.wire import neutral as n
from breakwater_gateway.worker.wire.anthropic import blocks as b
from breakwater_gateway.worker.wire.anthropic.answer import part_of_answer
from breakwater_gateway.worker.wire.anthropic.errors import classify, not_json
from breakwater_protocol import failures as f

OPEN_MAX: Final = 256
"""Blocks that may be open at a time; the API opens one."""


class _Delta(Struct, gc=False):
    type: str = ""
    text: str | None = None
    partial_json: str | None = None
    thinking: str | None = None
    signature: str | None = None
    stop_reason: str | None = None
    stop_sequence: str | None = None


class _Event(Struct):
    type: str = ""
    index: int = 0
    delta: _Delta | None = None
    content_block: Raw = b.ABSENT
    message: dict[str, Raw] | None = None
    usage: Raw = b.ABSENT
    error: Raw = b.ABSENT


class _RawDelta(Struct):
    delta: Raw


_event: Final = msgspec.json.Decoder(_Event).decode
_raw_delta: Final = msgspec.json.Decoder(_RawDelta).decode

_IN_START: Final = frozenset(
    {"type", "role", "id", "model", "content", "stop_reason", "stop_sequence"}
)
_IN_DELTA: Final = frozenset({"stop_reason", "stop_sequence"})
_IN_DELTA_EVENT: Final = frozenset({"type", "delta"})


class _Block(Struct):
    """An open block. `at` is the index of its part."""

    at: int
    call: bool = False
    wrote: bool = False
    """A fragment of the call's arguments has come."""
    given: str = ""
    """Arguments that stood in the block's start."""
    held: dict[str, Raw] | None = None
    """A native block so far."""
    pieces: dict[str, list[str]] | None = None
    """What the deltas of a native block add to its fields."""
    size: int = 0


class StreamDecoder:
    """Bytes of one answer of `stream: true` in, neutral events out. Never raises on what comes."""

    __slots__ = ("_began", "_blocks", "_finished", "_over", "_parser", "_parts", "_usage")

    def __init__(self) -> None:
        self._parser = SseParser(n.EVENT_BYTES_MAX)
        self._blocks: dict[int, _Block] = {}
        self._parts = 0
        self._began = self._finished = self._over = False
        self._usage = b.WireUsage()

    def feed(self, data: bytes) -> list[n.StreamEvent]:
        out: list[n.StreamEvent] = []
        if self._over:
            return out
        try:
            events = self._parser.feed(data)
        except EventTooLarge:
            self._break(
                f.MalformedAnswer("an event of the provider's stream is too large", 200), out
            )
            return out
        for event in events:
            self._read(event.data, out)
            if self._over:
                break
        return out

    def event(self, data: bytes) -> list[n.StreamEvent]:
        """One event's JSON, for hosts that frame it otherwise (Bedrock's event stream)."""
        out: list[n.StreamEvent] = []
        if not self._over:
            self._read(data, out)
        return out

    def end(self) -> list[n.StreamEvent]:
        out: list[n.StreamEvent] = []
        if self._over:
            return out
        for event in self._parser.finish():
            # The end of a stream may lack its blank line; what does not parse was cut.
            if event.data.endswith(b"}"):
                self._read(event.data, out)
        if not self._over:
            self._over = True
            self._close_all(out, whole=False)
        return out

    # ---- one event

    def _read(self, data: bytes, out: list[n.StreamEvent]) -> None:
        try:
            if not data.isascii():
                data.decode()
            self._understand(_event(data), data, out)
        except b.UNREADABLE:
            self._unreadable(data, out)

    def _understand(self, event: _Event, data: bytes, out: list[n.StreamEvent]) -> None:
        kind = event.type
        if kind == "content_block_delta":
            self._delta(event, data, out)
        elif kind == "content_block_start":
            if event.content_block is not b.ABSENT:
                self._start(event.index, event.content_block, out)
        elif kind == "content_block_stop":
            block = self._blocks.pop(event.index, None)
            if block is not None:
                self._stop(block, out, whole=True)
        elif kind == "message_start":
            self._begin(event.message or {}, out)
        elif kind == "message_delta":
            self._message_delta(event, data, out)
        elif kind == "message_stop":
            self._ensure_begun(out)
            self._close_all(out, whole=True)
            out.append(n.Done())
            self._over = True
        elif kind == "error" or bytes(event.error) not in {b"", b.NULL}:
            self._break(classify(200, {}, data, now=0.0), out)

    def _unreadable(self, data: bytes, out: list[n.StreamEvent]) -> None:
        if not data.strip() or data == b"[DONE]":
            return
        if b'"error"' in data:
            self._break(classify(200, {}, data, now=0.0), out)
            return
        said = not_json(data)
        self._break(f.MalformedAnswer(said, provider_status=200), out)

    def _break(self, failure: f.Failure, out: list[n.StreamEvent]) -> None:
        self._close_all(out, whole=False)
        out.append(n.Broke(failure))
        self._over = True

    def _begin(self, message: dict[str, Raw], out: list[n.StreamEvent]) -> None:
        if self._began:
            return
        self._began = True
        given = dict(message)
        try:
            message_id, model = b.string(given, "id", ""), b.string(given, "model", "")
        except b.NotOfThisShape:
            message_id = model = ""
        extra = {name: value for name, value in message.items() if name not in _IN_START}
        out.append(n.Began(id=message_id, model=model, extra=extra))
        if "usage" in extra:
            self._count(extra["usage"], out)

    def _ensure_begun(self, out: list[n.StreamEvent]) -> None:
        if not self._began:
            self._begin({}, out)

    def _count(self, raw: Raw, out: list[n.StreamEvent]) -> None:
        try:
            given = b.wire_usage(raw)
        except b.UNREADABLE:
            return
        self._usage = given.overriding(self._usage)
        out.append(n.UsageKnown(self._usage.normal()))

    # ---- blocks

    def _start(self, index: int, raw: Raw, out: list[n.StreamEvent]) -> None:
        self._ensure_begun(out)
        earlier = self._blocks.pop(index, None)
        if earlier is not None:
            self._stop(earlier, out, whole=True)
        if len(self._blocks) >= OPEN_MAX:
            failure = f.MalformedAnswer("the provider opens blocks and closes none", 200)
            self._break(failure, out)
            return
        part = part_of_answer(raw)
        block = _Block(at=self._parts)
        self._parts += 1
        self._blocks[index] = block
        text = ""
        if isinstance(part, n.Native | n.ToolResult):
            try:
                block.held = b.fields(raw)
            except b.UNREADABLE:
                block.held = {}
            block.pieces = {}
            block.size = len(bytes(raw))
            return
        if isinstance(part, n.ToolCall):
            block.call = True
            block.given = "" if part.arguments.strip() in {"{}", "null", '""'} else part.arguments
            part = msgspec.structs.replace(part, arguments="")
        elif isinstance(part, n.Text | n.Thinking) and part.text:
            text = part.text
            part = msgspec.structs.replace(part, text="")
        out.append(n.PartBegan(index=block.at, part=part))
        if text:
            out.append(n.Grew(index=block.at, text=text))

    def _delta(self, event: _Event, data: bytes, out: list[n.StreamEvent]) -> None:
        delta = event.delta
        if delta is None:
            return
        block = self._blocks.get(event.index)
        if block is None:
            block = self._open_unasked(event.index, delta, out)
            if block is None:
                return
        if block.held is not None:
            self._hold(block, data, out)
            return
        kind = delta.type
        if kind == "text_delta":
            text = delta.text
        elif kind == "input_json_delta":
            text = delta.partial_json
            block.wrote = block.wrote or bool(text)
        elif kind == "thinking_delta":
            text = delta.thinking
        elif kind == "signature_delta":
            if delta.signature:
                out.append(n.Grew(index=block.at, signature=delta.signature))
            return
        else:
            # Citations, and what is yet to come.
            extra = {"delta": _raw_delta(data).delta}
            out.append(n.Grew(index=block.at, extra=extra))
            return
        if text:
            out.append(n.Grew(index=block.at, text=text))

    def _open_unasked(self, index: int, delta: _Delta, out: list[n.StreamEvent]) -> _Block | None:
        """Hosts that follow the API loosely begin a text with its first delta."""
        start = {
            "text_delta": b'{"type":"text","text":""}',
            "thinking_delta": b'{"type":"thinking","thinking":"","signature":""}',
        }.get(delta.type)
        if start is None:
            return None
        self._start(index, Raw(start), out)
        return self._blocks.get(index)

    def _hold(self, block: _Block, data: bytes, out: list[n.StreamEvent]) -> None:
        """Each text of a delta grows the native block's field of the same name."""
        assert block.pieces is not None  # noqa: S101 - set together with `held`
        block.size += len(data)
        if block.size > n.EVENT_BYTES_MAX:
            self._break(
                f.MalformedAnswer("a block of the provider's stream is too large", 200), out
            )
            return
        for name, raw in b.fields(_raw_delta(data).delta).items():
            if name == "type" or bytes(raw)[:1] != b'"':
                continue
            target = "input" if name == "partial_json" else name
            block.pieces.setdefault(target, []).append(b.text_of(raw))

    def _stop(self, block: _Block, out: list[n.StreamEvent], *, whole: bool) -> None:
        if block.held is not None:
            out.append(n.PartBegan(index=block.at, part=_held(block.held, block.pieces or {})))
        elif block.call and whole and not block.wrote:
            # `arguments` are JSON text, and of a tool without parameters no fragment comes.
            out.append(n.Grew(index=block.at, text=block.given or "{}"))
        out.append(n.PartEnded(index=block.at))

    def _close_all(self, out: list[n.StreamEvent], *, whole: bool) -> None:
        for block in self._blocks.values():
            self._stop(block, out, whole=whole)
        self._blocks.clear()

    # ---- the end

    def _message_delta(self, event: _Event, data: bytes, out: list[n.StreamEvent]) -> None:
        self._ensure_begun(out)
        delta = event.delta
        stopped = delta is not None and bool(delta.stop_reason) and not self._finished
        if stopped:
            self._close_all(out, whole=True)
        if event.usage is not b.ABSENT:
            self._count(event.usage, out)
        if delta is None or not stopped:
            return
        self._finished = True
        given = b.fields(data)
        extra = {name: raw for name, raw in given.items() if name not in _IN_DELTA_EVENT}
        inner = b.fields(given["delta"])
        extra |= {name: raw for name, raw in inner.items() if name not in _IN_DELTA}
        native = delta.stop_reason or ""
        out.append(
            n.Finished(
                finish=b.FINISH.get(native, "stop"),
                native=native,
                stop_sequence=delta.stop_sequence or "",
                extra=extra,
            )
        )


def _held(held: dict[str, Raw], pieces: dict[str, list[str]]) -> n.Native:
    """A native block and what its deltas added to it."""
    for name, texts in pieces.items():
        grown = "".join(texts)
        if not grown:
            continue
        if name == "input":
            held[name] = b.as_input(grown)
        elif name not in held or bytes(held[name])[:1] in {b'"', b"n"}:
            held[name] = Raw(b.encode(_text(held.get(name)) + grown))
    return n.Native(dialect="anthropic", raw=Raw(b.encode(held)))


def _text(raw: Raw | None) -> str:
    return b.text_of(raw) if raw is not None and bytes(raw)[:1] == b'"' else ""
