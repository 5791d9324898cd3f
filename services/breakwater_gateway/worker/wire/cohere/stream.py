"""Streams of Cohere's v2 chat to the neutral vocabulary.

Server-sent events, each with its `type`: message-start, then content-start/-delta/-end,
tool-plan-delta, tool-call-start/-delta/-end and citation-start/-end by turns, message-end and `[DONE]`.
`content` and `tool_calls` are objects, their index is the event's. Source: Cohere API reference, "Chat with
streaming (v2)"; recorded traffic.
"""

from collections.abc import Callable
from typing import Final

import msgspec
from msgspec import Raw, Struct

from breakwater_gateway.worker.sse import EventTooLarge, SseParser
from breakwater_gateway.worker.wire import neutral as n
from breakwater_gateway.worker.wire import objects as o
from breakwater_gateway.worker.wire.cohere.answer import broken, finish_of, read_usage
from breakwater_gateway.worker.wire.cohere.errors import classify
from breakwater_gateway.worker.wire.cohere.messages import plan
from breakwater_protocol import failures as f

# A field of any JSON or none: msgspec reads `Raw | None` as null only.
_NULL: Final = Raw(o.NULL)


class _Content(Struct):
    type: str | None = None
    text: str | None = None
    thinking: str | None = None


class _Function(Struct):
    name: str | None = None
    arguments: str | None = None


class _Call(Struct):
    id: str | None = None
    function: _Function | None = None


class _Message(Struct):
    # At the start of the message these are empty lists.
    content: _Content | list[Raw] | None = None
    tool_calls: _Call | list[Raw] | None = None
    tool_plan: str | None = None
    citations: Raw = _NULL


class _Delta(Struct):
    message: _Message | None = None


class _Event(Struct):
    type: str | None = None
    index: int = 0
    id: str | None = None
    delta: _Delta | None = None
    logprobs: Raw = _NULL


class _End(Struct):
    delta: dict[str, Raw] = {}


_event: Final = msgspec.json.Decoder(_Event).decode
_end: Final = msgspec.json.Decoder(_End).decode

_EMPTY: Final = _Message()
_CONTENT: Final = _Content()
_CALL: Final = _Call()
_FUNCTION: Final = _Function()


class StreamDecoder:
    """Reads one stream. See `neutral.StreamDecoder`."""

    __slots__ = ("_began", "_citations", "_finished", "_next", "_open", "_over", "_sse", "_take")

    def __init__(self) -> None:
        self._sse = SseParser(n.EVENT_BYTES_MAX)
        self._open: dict[tuple[str, int], tuple[int, str]] = {}
        """(content, call or plan; the provider's index) -> our index, and what the part is."""
        self._next = 0
        self._began = False
        self._finished = False
        self._over = False
        self._citations: list[Raw] = []
        """Those that came when no part was open to hold them."""
        self._take: dict[str, Callable[[_Event, list[n.StreamEvent]], None]] = {
            "message-start": self._start,
            "content-start": self._content,
            "content-delta": self._content,
            "content-end": self._content_end,
            "tool-plan-delta": self._plan,
            "tool-call-start": self._call_start,
            "tool-call-delta": self._call,
            "tool-call-end": self._call_end,
            "citation-start": self._cite,
        }

    def feed(self, data: bytes) -> list[n.StreamEvent]:
        out: list[n.StreamEvent] = []
        if self._over:
            return out
        try:
            events = self._sse.feed(data)
        except EventTooLarge as wrong:
            self._break(f.MalformedAnswer(str(wrong), provider_status=200), out)
            return out
        for event in events:
            self._read(event.data, out)
            if self._over:
                break
        return out

    def end(self) -> list[n.StreamEvent]:
        out: list[n.StreamEvent] = []
        if self._over:
            return out
        # An error object, or a stream's last event, may lack the blank line.
        for event in self._sse.finish():
            self._read(event.data, out, tail=True)
        if not self._over:
            self._close_all(out)
            self._over = True
            if self._finished:
                out.append(n.Done())
        return out

    def _read(self, data: bytes, out: list[n.StreamEvent], *, tail: bool = False) -> None:
        if data == b"[DONE]":
            if self._finished:
                self._over = True
                out.append(n.Done())
            return
        try:
            event = _event(data)
            take = self._take.get(event.type or "")
            if take is not None:
                if not self._finished:
                    take(event, out)
            elif event.type == "message-end":
                self._finish(_end(data).delta, out)
            elif event.type is None and data.strip():
                self._break(classify(200, {}, data, now=0.0), out)
        except o.UNREADABLE:
            if tail or not data.strip():
                return  # half an event: the stream was cut, and has no end
            self._break(self._unreadable(data), out)

    @staticmethod
    def _unreadable(data: bytes) -> f.Failure:
        try:
            said = o.fields_of(data)
        except o.UNREADABLE:
            said = {}
        if "message" in said and "type" not in said:
            return classify(200, {}, data, now=0.0)
        return f.MalformedAnswer(
            "the provider's stream holds an event that is not the JSON its API promises",
            provider_status=200,
        )

    def _begin(self, out: list[n.StreamEvent], answer_id: str = "") -> None:
        if not self._began:
            self._began = True
            out.append(n.Began(id=answer_id))

    def _start(self, event: _Event, out: list[n.StreamEvent]) -> None:
        self._begin(out, event.id or "")

    # -- parts

    def _part(self, key: tuple[str, int], kind: str, part: n.Part, out: list[n.StreamEvent]) -> int:
        """The index of the part under `key`, opened when it is not open as that kind."""
        held = self._open.get(key)
        if held is not None:
            if held[1] == kind:
                return held[0]
            self._close(key, out)
        self._begin(out)
        if key[0] != "plan":
            self._close(("plan", 0), out)
        index = self._next
        self._next += 1
        self._open[key] = (index, kind)
        out.append(n.PartBegan(index, part))
        return index

    def _close(self, key: tuple[str, int], out: list[n.StreamEvent]) -> None:
        held = self._open.pop(key, None)
        if held is not None:
            out.append(n.PartEnded(held[0]))

    def _close_all(self, out: list[n.StreamEvent]) -> None:
        for key in list(self._open):
            self._close(key, out)

    def _content(self, event: _Event, out: list[n.StreamEvent]) -> None:
        content = _message(event).content
        if not isinstance(content, _Content):
            content = _CONTENT
        key = ("content", event.index)
        if content.thinking is not None or content.type == "thinking":
            index = self._part(key, "thinking", n.Thinking(), out)
            said = content.thinking
        elif content.text is not None or content.type == "text":
            index = self._part(key, "text", n.Text(text=""), out)
            said = content.text
        else:
            return
        if bytes(event.logprobs) != o.NULL:
            out.append(n.Grew(index, text=said or "", extra={"logprobs": event.logprobs}))
        elif said:
            out.append(n.Grew(index, text=said))

    def _content_end(self, event: _Event, out: list[n.StreamEvent]) -> None:
        self._close(("content", event.index), out)

    def _plan(self, event: _Event, out: list[n.StreamEvent]) -> None:
        said = _message(event).tool_plan
        if said:
            index = self._part(("plan", 0), "plan", plan(""), out)
            out.append(n.Grew(index, text=said))

    def _call_start(self, event: _Event, out: list[n.StreamEvent]) -> None:
        call = _message(event).tool_calls
        if not isinstance(call, _Call):
            call = _CALL
        function = call.function or _FUNCTION
        key = ("call", event.index)
        self._close(key, out)
        part = n.ToolCall(id=call.id or "", name=function.name or "", arguments="")
        index = self._part(key, "call", part, out)
        if function.arguments:
            out.append(n.Grew(index, text=function.arguments))

    def _call(self, event: _Event, out: list[n.StreamEvent]) -> None:
        call = _message(event).tool_calls
        function = call.function if isinstance(call, _Call) else None
        if function is not None and function.arguments:
            part = n.ToolCall(id="", name="", arguments="")
            index = self._part(("call", event.index), "call", part, out)
            out.append(n.Grew(index, text=function.arguments))

    def _call_end(self, event: _Event, out: list[n.StreamEvent]) -> None:
        self._close(("call", event.index), out)

    def _cite(self, event: _Event, out: list[n.StreamEvent]) -> None:
        citation = _message(event).citations
        if bytes(citation) == o.NULL:
            return
        open_texts = [index for index, kind in self._open.values() if kind == "text"]
        if open_texts:
            out.append(n.Grew(open_texts[-1], extra={"citations": citation}))
        else:
            self._citations.append(citation)

    # -- the end

    def _finish(self, delta: dict[str, Raw], out: list[n.StreamEvent]) -> None:
        if self._finished:
            return
        self._begin(out)
        self._close_all(out)
        reason = _text(delta.pop("finish_reason", None))
        failure = broken(reason, _text(delta.get("error")), _text(delta.get("error_type")), 200)
        counted = delta.pop("usage", None)
        used = read_usage(counted)
        if failure is None:
            self._finished = True
            if self._citations:
                delta["citations"] = Raw(o.encode(self._citations))
            out.append(n.Finished(finish_of(reason) or "stop", native=reason, extra=delta))
        if used is not None and counted is not None:
            out.append(n.UsageKnown(used, extra={"usage": counted}))
        if failure is not None:
            self._break(failure, out)

    def _break(self, failure: f.Failure, out: list[n.StreamEvent]) -> None:
        self._begin(out)
        self._close_all(out)
        self._over = True
        out.append(n.Broke(failure))


def _message(event: _Event) -> _Message:
    return event.delta.message or _EMPTY if event.delta is not None else _EMPTY


def _text(raw: Raw | None) -> str:
    return "" if raw is None or bytes(raw) == o.NULL else o.text_of(raw)
