"""Streams of Converse to the neutral vocabulary.

Order: messageStart, then of each block an optional contentBlockStart (only tool calls have one),
contentBlockDelta*, contentBlockStop; messageStop; metadata. Payloads carry `p`, padding against guesses
from their length. Source: Amazon Bedrock API reference, "ConverseStream" (ConverseStreamOutput).
"""

from typing import Final

import msgspec
from msgspec import Raw, Struct, UnsetType

from breakwater_gateway.worker.wire import neutral as n
from breakwater_gateway.worker.wire import objects as o
from breakwater_gateway.worker.wire.bedrock.blocks import native
from breakwater_gateway.worker.wire.bedrock.errors import failure, from_frame
from breakwater_gateway.worker.wire.bedrock.eventstream import Frame, FrameParser
from breakwater_gateway.worker.wire.bedrock.usage import broken, finish_of, read_usage
from breakwater_protocol import failures as f

_UNSET: Final = msgspec.UNSET


class _Fragment(Struct):
    input: str = ""


class _Reasoned(Struct):
    text: str | None = None
    signature: str | None = None
    redactedContent: str | None = None  # noqa: N815 - the API's spelling, here and below


class _Delta(Struct):
    text: str | None = None
    toolUse: _Fragment | None = None  # noqa: N815
    reasoningContent: _Reasoned | None = None  # noqa: N815
    citation: Raw | UnsetType = _UNSET
    toolResult: Raw | UnsetType = _UNSET  # noqa: N815


class _BlockDelta(Struct):
    delta: _Delta
    contentBlockIndex: int = 0  # noqa: N815


class _Called(Struct):
    toolUseId: str = ""  # noqa: N815
    name: str = ""
    type: str = ""


class _Start(Struct):
    toolUse: _Called | None = None  # noqa: N815


class _BlockStart(Struct):
    start: Raw = Raw(b"{}")
    contentBlockIndex: int = 0  # noqa: N815


class _BlockStop(Struct):
    contentBlockIndex: int = 0  # noqa: N815


class _RawDelta(Struct):
    delta: Raw = Raw(b"{}")


_delta: Final = msgspec.json.Decoder(_BlockDelta).decode
_raw_delta: Final = msgspec.json.Decoder(_RawDelta).decode
_start: Final = msgspec.json.Decoder(_BlockStart).decode
_started: Final = msgspec.json.Decoder(_Start).decode
_stop: Final = msgspec.json.Decoder(_BlockStop).decode

_PADDING: Final = "p"
_CALL_OF_TOOL: Final = frozenset({"toolUseId", "name"})


class _Open:
    """A block under way. `index` is its part's, of the neutral stream."""

    __slots__ = ("index", "kind")

    def __init__(self, kind: str, index: int) -> None:
        self.kind = kind
        self.index = index


class _Gathered:
    """A block that only this API has, gathered until it is whole. `start` is its first event's object."""

    __slots__ = ("deltas", "fragments", "size", "start")

    def __init__(self, start: dict[str, Raw]) -> None:
        self.start = start
        self.fragments: list[str] = []
        self.deltas: list[Raw] = []
        self.size = 0

    def raw(self) -> Raw:
        """The block as a whole answer would have had it."""
        name = next(iter(self.start), "")
        if name not in {"toolUse", "toolResult"}:
            return Raw(o.encode(self.start | {"deltas": self.deltas}))
        inner: o.Body = dict(o.fields_of(self.start[name]))
        if name == "toolUse":
            inner["input"] = o.as_object("".join(self.fragments))
        else:
            inner["content"] = self.deltas
        return Raw(o.encode({name: inner}))


class StreamDecoder:
    """Reads one stream. See `neutral.StreamDecoder`."""

    __slots__ = ("_began", "_blocks", "_failure", "_finished", "_frames", "_next", "_over")

    def __init__(self) -> None:
        self._frames = FrameParser(n.EVENT_BYTES_MAX)
        self._blocks: dict[int, _Open | _Gathered] = {}
        """By the provider's index."""
        self._next = 0
        self._began = False
        self._finished = False
        self._failure: f.Failure | None = None
        """What the stop reason reported; told after the usage, which follows it."""
        self._over = False

    def feed(self, data: bytes) -> list[n.StreamEvent]:
        out: list[n.StreamEvent] = []
        if self._over:
            return out
        for frame in self._frames.feed(data):
            self._take(frame, out)
            if self._over:
                return out
        if self._frames.error:
            self._break(f.MalformedAnswer(self._frames.error, provider_status=200), out)
        return out

    def end(self) -> list[n.StreamEvent]:
        out: list[n.StreamEvent] = []
        if self._over:
            return out
        self._close_all(out)
        self._over = True
        if self._failure is not None:
            out.append(n.Broke(self._failure))
        elif self._finished and not self._frames.pending:
            # The metadata was left out: the message itself is whole.
            out.append(n.Done())
        return out

    def _take(self, frame: Frame, out: list[n.StreamEvent]) -> None:
        kind = frame.text(":message-type")
        if kind == "exception":
            self._break(from_frame(frame.text(":exception-type"), frame.payload), out)
            return
        if kind == "error":
            message = frame.text(":error-message") or "the provider broke the stream off"
            self._break(failure(200, frame.text(":error-code"), message, None), out)
            return
        event = frame.text(":event-type")
        if event.startswith("contentBlock") and (self._finished or self._failure is not None):
            return
        try:
            if event == "contentBlockDelta":
                self._grow(frame.payload, out)
            elif event == "contentBlockStart":
                self._open(frame.payload, out)
            elif event == "contentBlockStop":
                self._close(_stop(frame.payload).contentBlockIndex, out)
            elif event == "messageStop":
                self._finish(o.fields_of(frame.payload), out)
            elif event == "metadata":
                self._account(o.fields_of(frame.payload), out)
            elif event == "messageStart":
                self._begin(out, o.fields_of(frame.payload))
        except o.UNREADABLE:
            self._break(
                f.MalformedAnswer(
                    "the provider's stream holds an event that is not the JSON its API promises",
                    provider_status=200,
                ),
                out,
            )

    def _begin(self, out: list[n.StreamEvent], payload: dict[str, Raw] | None = None) -> None:
        if not self._began:
            self._began = True
            known = {"role", _PADDING}
            extra = {k: v for k, v in (payload or {}).items() if k not in known}
            out.append(n.Began(extra=extra))

    # -- blocks

    def _open(self, payload: bytes, out: list[n.StreamEvent]) -> None:
        event = _start(payload)
        self._begin(out)
        self._close(event.contentBlockIndex, out)
        called = _started(event.start).toolUse
        if called is None or called.type == "server_tool_use":
            given = o.fields_of(event.start)
            if given:
                for value in given.values():
                    o.fields_of(value)
                self._blocks[event.contentBlockIndex] = _Gathered(given)
            return
        inner = o.fields_of(o.fields_of(event.start)["toolUse"])
        extra = {k: v for k, v in inner.items() if k not in _CALL_OF_TOOL}
        part = n.ToolCall(id=called.toolUseId, name=called.name, arguments="", extra=extra)
        self._add(event.contentBlockIndex, "tool", part, out)

    def _add(self, at: int, kind: str, part: n.Part, out: list[n.StreamEvent]) -> _Open:
        self._close(at, out)
        block = _Open(kind, self._next)
        self._next += 1
        self._blocks[at] = block
        out.append(n.PartBegan(block.index, part))
        return block

    def _grow(self, payload: bytes, out: list[n.StreamEvent]) -> None:
        event = _delta(payload)
        delta = event.delta
        at = event.contentBlockIndex
        block = self._blocks.get(at)
        if isinstance(block, _Gathered):
            self._gather(block, delta, payload, out)
            return
        if delta.text is not None:
            if block is None or block.kind != "text":
                self._begin(out)
                block = self._add(at, "text", n.Text(text=""), out)
            if delta.text:
                out.append(n.Grew(block.index, text=delta.text))
        elif delta.toolUse is not None:
            if block is None or block.kind != "tool":
                self._begin(out)
                block = self._add(at, "tool", n.ToolCall(id="", name="", arguments=""), out)
            if delta.toolUse.input:
                out.append(n.Grew(block.index, text=delta.toolUse.input))
        elif delta.reasoningContent is not None:
            self._reason(at, block, delta.reasoningContent, out)
        elif delta.citation is not _UNSET:
            if block is None or block.kind != "text":
                self._begin(out)
                block = self._add(at, "text", n.Text(text=""), out)
            out.append(n.Grew(block.index, extra={"citation": delta.citation}))
        else:
            given = o.fields_of(_raw_delta(payload).delta)
            if given:
                self._begin(out)
                self._close(at, out)
                gathered = self._blocks[at] = _Gathered({})
                self._gather(gathered, delta, payload, out)

    def _reason(
        self, at: int, block: _Open | None, said: _Reasoned, out: list[n.StreamEvent]
    ) -> None:
        if said.redactedContent is not None:
            self._begin(out)
            # What is redacted comes whole: each is a block of its own.
            self._add(at, "redacted", n.Thinking(redacted=said.redactedContent), out)
            return
        if block is None or block.kind != "thinking":
            self._begin(out)
            block = self._add(at, "thinking", n.Thinking(), out)
        if said.text or said.signature:
            out.append(n.Grew(block.index, text=said.text or "", signature=said.signature or ""))

    def _gather(
        self, block: _Gathered, delta: _Delta, payload: bytes, out: list[n.StreamEvent]
    ) -> None:
        block.size += len(payload)
        if block.size > n.EVENT_BYTES_MAX:
            self._break(
                f.MalformedAnswer(
                    f"a block of the stream exceeds {n.EVENT_BYTES_MAX} bytes", provider_status=200
                ),
                out,
            )
        elif delta.toolUse is not None:
            block.fragments.append(delta.toolUse.input)
        elif delta.toolResult is not _UNSET:
            block.deltas.extend(o.items_of(delta.toolResult))
        else:
            block.deltas.append(_raw_delta(payload).delta)

    def _close(self, at: int, out: list[n.StreamEvent]) -> None:
        block = self._blocks.pop(at, None)
        if isinstance(block, _Open):
            out.append(n.PartEnded(block.index))
        elif block is not None:
            out.append(n.PartBegan(self._next, native(block.raw())))
            out.append(n.PartEnded(self._next))
            self._next += 1

    def _close_all(self, out: list[n.StreamEvent]) -> None:
        for at in list(self._blocks):
            self._close(at, out)

    # -- the end

    def _finish(self, payload: dict[str, Raw], out: list[n.StreamEvent]) -> None:
        if self._finished or self._failure is not None:
            return
        self._begin(out)
        self._close_all(out)
        raw = payload.pop("stopReason", None)
        reason = o.text_of(raw) if raw is not None else ""
        payload.pop(_PADDING, None)
        self._failure = broken(reason, 200)
        if self._failure is None:
            self._finished = True
            out.append(n.Finished(finish_of(reason) or "stop", native=reason, extra=payload))

    def _account(self, payload: dict[str, Raw], out: list[n.StreamEvent]) -> None:
        self._begin(out)
        payload.pop(_PADDING, None)
        used = read_usage(payload.get("usage"))
        if used is not None:
            out.append(n.UsageKnown(used, extra=payload))
        if self._failure is not None:
            self._break(self._failure, out)
        elif self._finished:
            self._over = True
            out.append(n.Done())

    def _break(self, failure: f.Failure, out: list[n.StreamEvent]) -> None:
        self._begin(out)
        self._close_all(out)
        self._over = True
        out.append(n.Broke(failure))
