"""Streams of the Responses API, read.

What only this API has rides on `Grew.extra`, for the encoder of the same dialect: `item` and `part` (the
other fields of an item or content part, once it is whole), `annotation`, `summary` (a further part of the
reasoning summary begins), `raw_text` (the text is the reasoning itself, not its summary), `event` (any
other event of an item). `Began.extra` and `Finished.extra` hold the response's other fields.

Source: OpenAI API reference, "Streaming events".
"""

from typing import Final

import msgspec
from msgspec import Raw, Struct

from breakwater_gateway.worker.sse import EventTooLarge, SseParser
from breakwater_gateway.worker.wire import neutral as n
from breakwater_gateway.worker.wire.bad_request import BadRequest
from breakwater_gateway.worker.wire.openai_chat.fields import (
    UNREADABLE,
    encode,
    is_null,
    text_or,
    without_nulls,
)
from breakwater_gateway.worker.wire.responses.answer import (
    created_of,
    failure_of,
    finish_of,
    state_of,
    usage,
)
from breakwater_gateway.worker.wire.responses.errors import of_error
from breakwater_gateway.worker.wire.responses.items import (
    SEPARATOR,
    TRUE,
    alone,
    item_rest,
    list_of,
    object_of,
    parts_of_item,
    parts_of_output,
    with_layout,
)
from breakwater_protocol import failures as f

OPEN_MAX: Final = 4096
"""Items and content parts open at once."""


_ABSENT: Final = Raw(b"null")


class _Event(Struct):
    """Any event: the fields that some of them have."""

    type: str = ""
    output_index: int | None = None
    content_index: int | None = None
    summary_index: int | None = None
    delta: str | None = None
    text: str | None = None
    arguments: str | None = None
    refusal: str | None = None
    logprobs: Raw = _ABSENT
    item: Raw = _ABSENT
    part: Raw = _ABSENT
    annotation: Raw = _ABSENT
    response: Raw = _ABSENT
    error: Raw = _ABSENT


class _Typed(Struct):
    type: str = ""
    output_index: int | None = None


_event: Final = msgspec.json.Decoder(_Event).decode
_typed: Final = msgspec.json.Decoder(_Typed).decode

_RAW_TEXT: Final[n.Extra] = {"raw_text": TRUE}
_SUMMARY: Final[n.Extra] = {"summary": TRUE}

_DELTAS: Final = frozenset(
    {
        "response.function_call_arguments.delta",
        "response.reasoning_summary_text.delta",
        "response.refusal.delta",
    }
)

_NOT_LOGPROBS: Final = frozenset({b"[]", b"null"})

_MESSAGE, _CALL, _REASONING, _OTHER = range(4)

_TERMINAL: Final = frozenset(
    {"response.completed", "response.incomplete", "response.failed", "response.cancelled"}
)
_OPENING: Final = frozenset({"response.created", "response.queued", "response.in_progress"})

_BEGAN: Final = ("id", "model", "object", "status", "output", "usage", "error")
_ENDED: Final = ("id", "model", "object", "status", "output", "error", "created_at")


class _Open:
    """An item under way."""

    __slots__ = ("contents", "ended", "id", "index", "kind", "layout", "said")

    def __init__(self, kind: int, index: int, layout: n.Layout, given: str = "") -> None:
        self.kind = kind
        self.id = given
        self.index = index
        """Of its part; of a message's last part, -1 while it has none."""
        self.layout = layout
        """For the first part of a message."""
        self.contents: dict[int, int] = {}
        """Content index to part index, of a message."""
        self.said: set[int] = set()
        """Parts that text or arguments came for."""
        self.ended = -1
        """The last part of a message that has ended: all before have too.

        A part that is whole stays open until the next begins, for what the end of the item may add.
        """


class StreamDecoder:
    """Reads one stream of the Responses API."""

    __slots__ = ("_began", "_called", "_items", "_last", "_next", "_over", "_sse")

    def __init__(self) -> None:
        self._sse = SseParser(n.EVENT_BYTES_MAX)
        self._items: dict[int, _Open] = {}
        self._last = 0
        self._next = 0
        self._began = self._called = self._over = False

    def feed(self, data: bytes) -> list[n.StreamEvent]:
        out: list[n.StreamEvent] = []
        if self._over:
            return out
        try:
            events = self._sse.feed(data)
        except EventTooLarge as large:
            self._break(f.MalformedAnswer(f"in the provider's answer {large}", 200), out)
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
        for event in self._sse.finish():
            try:
                _typed(event.data)
            except UNREADABLE:
                continue  # cut within the event
            self._read(event.data, out)
        if not self._over:
            self._close_all(out)
            self._over = True
        return out

    # ---- events

    def _read(self, data: bytes, out: list[n.StreamEvent]) -> None:
        if not data or data == b"[DONE]":
            return
        try:
            if not data.isascii():
                data.decode()
            event = _event(data)
        except (*UNREADABLE, UnicodeDecodeError):
            self._read_unknown(data, out)
            return
        kind = event.type
        if kind == "response.output_text.delta":
            self._grow(event, event.delta, data, out, event.logprobs)
        elif kind in _DELTAS:
            self._grow(event, event.delta, data, out)
        elif kind == "response.reasoning_text.delta":
            self._grow(event, event.delta, data, out, extra=_RAW_TEXT)
        elif kind in _OPENING:
            self._begin(event.response, out)
        elif kind in _TERMINAL:
            self._finish(event.response, kind, out)
        elif kind == "error" or (not kind and not is_null(event.error)):
            error = Raw(data) if is_null(event.error) else event.error
            self._break(of_error(error), out)
        else:
            self._begin(None, out)
            self._item_event(event, data, out)

    def _read_unknown(self, data: bytes, out: list[n.StreamEvent]) -> None:
        """An event whose fields are not of the types we know; that of another item may be ours to pass on."""
        try:
            event = _typed(data)
            data.decode()
        except (*UNREADABLE, UnicodeDecodeError):
            message = "the provider's stream holds an event that is not the JSON its API promises"
            self._break(f.MalformedAnswer(message, 200), out)
            return
        if event.type in _OPENING or event.type in _TERMINAL or event.type == "error":
            fields = object_of(Raw(data))
            response = fields.get("response")
            if event.type in _TERMINAL and response is not None:
                self._finish(response, event.type, out)
            elif event.type in _OPENING:
                self._begin(response, out)
            else:
                self._break(of_error(fields.get("error") or Raw(data)), out)
            return
        self._begin(None, out)
        self._other(_Event(type=event.type, output_index=event.output_index), data, out)

    def _item_event(self, event: _Event, data: bytes, out: list[n.StreamEvent]) -> None:
        match event.type:
            case "response.output_item.added":
                self._add_item(event, out)
            case "response.output_item.done":
                self._end_item(event, out)
            case "response.content_part.added":
                self._add_content(event, out)
            case "response.content_part.done":
                self._end_content(event, out)
            case "response.output_text.done" | "response.reasoning_text.done":
                extra = _RAW_TEXT if event.type == "response.reasoning_text.done" else {}
                self._complete(event, event.text, data, out, extra)
            case "response.reasoning_summary_text.done":
                self._complete(event, event.text, data, out)
            case "response.function_call_arguments.done":
                self._complete(event, event.arguments, data, out)
            case "response.refusal.done":
                self._complete(event, event.refusal, data, out)
            case "response.reasoning_summary_part.added":
                item = self._item(event)
                if item is not None and item.kind == _REASONING and event.summary_index:
                    out.append(n.Grew(item.index, SEPARATOR, extra=_SUMMARY))
            case "response.reasoning_summary_part.done":
                pass
            case "response.output_text.annotation.added":
                part = self._part(event, out)
                if part is not None:
                    out.append(n.Grew(part, extra={"annotation": event.annotation}))
            case _:
                self._other(event, data, out)

    def _other(self, event: _Event, data: bytes, out: list[n.StreamEvent]) -> None:
        item = self._items.get(-1 if event.output_index is None else event.output_index)
        if item is not None and item.kind == _OTHER:
            fields = object_of(Raw(data))
            fields.pop("sequence_number", None)
            fields.pop("obfuscation", None)
            out.append(n.Grew(item.index, extra={"event": Raw(encode(fields))}))

    def _item(self, event: _Event) -> _Open | None:
        return self._items.get(self._last if event.output_index is None else event.output_index)

    # ---- the response

    def _begin(self, response: Raw | None, out: list[n.StreamEvent]) -> None:
        if self._began:
            return
        self._began = True
        fields = object_of(response)
        created, exact = created_of(fields.get("created_at"))
        extra = {name: raw for name, raw in fields.items() if name not in _BEGAN}
        if exact:
            del extra["created_at"]
        out.append(
            n.Began(
                id=text_or(fields.get("id")),
                model=text_or(fields.get("model")),
                created=created,
                extra=extra,
            )
        )

    def _finish(self, response: Raw | None, kind: str, out: list[n.StreamEvent]) -> None:
        self._begin(response, out)
        fields = object_of(response)
        if self._items:
            self._end_from(list_of(fields.get("output")), out)
        self._close_all(out)
        used = fields.get("usage")
        counted = None if used is None or is_null(used) else n.UsageKnown(usage(used))
        failure = failure_of(fields)
        if failure is None and kind == "response.failed":
            failure = of_error(fields.get("error"))
        if failure is not None:
            if counted is not None:
                out.append(counted)
            self._break(failure, out)
            return
        if self._next == 0:
            self._whole(fields.get("output"), out)
        state = kind.removeprefix("response.")
        if text_or(fields.get("status")) in {"", "in_progress"}:
            # Some hosts leave the state of the beginning.
            fields["status"] = Raw(encode(state))
        finish, native = finish_of(fields, called=self._called)
        extra = {name: raw for name, raw in fields.items() if name not in _ENDED}
        if text_or(fields["status"]) != state_of(finish):
            extra["status"] = fields["status"]
        out.append(n.Finished(finish, native, extra=extra))
        if counted is not None:
            out.append(counted)
        out.append(n.Done())
        self._over = True

    def _end_from(self, output: list[Raw], out: list[n.StreamEvent]) -> None:
        """Items whose end was not streamed end as the whole response has them."""
        for at, item in list(self._items.items()):
            raw = output[at] if 0 <= at < len(output) else None
            if raw is not None and item.id and text_or(object_of(raw).get("id")) == item.id:
                self._end_item(_Event(output_index=at, item=raw), out)

    def _whole(self, output: Raw | None, out: list[n.StreamEvent]) -> None:
        """Items that the last event holds and that were never streamed."""
        for part in parts_of_output(list_of(output)):
            index = self._next
            self._next += 1
            match part:
                case n.Text() | n.Refusal():
                    out.append(n.PartBegan(index, msgspec.structs.replace(part, text="")))
                    out.append(n.Grew(index, part.text))
                case n.Thinking():
                    bare = msgspec.structs.replace(part, text="", signature="", redacted="")
                    out.append(n.PartBegan(index, bare))
                    out.append(n.Grew(index, part.text, part.signature or part.redacted))
                case n.ToolCall():
                    self._called = True
                    out.append(n.PartBegan(index, msgspec.structs.replace(part, arguments="")))
                    out.append(n.Grew(index, part.arguments))
                case _:
                    out.append(n.PartBegan(index, part))
            if "item" in part.layout:
                out.append(n.Grew(index, extra={"item": part.layout["item"]}))
            out.append(n.PartEnded(index))

    def _break(self, failure: f.Failure, out: list[n.StreamEvent]) -> None:
        self._begin(None, out)
        self._close_all(out)
        out.append(n.Broke(failure))
        self._over = True

    def _close_all(self, out: list[n.StreamEvent]) -> None:
        for item in self._items.values():
            self._close(item, out)
        self._items.clear()

    def _close(self, item: _Open, out: list[n.StreamEvent]) -> None:
        if item.kind != _MESSAGE or item.index > item.ended:
            out.append(n.PartEnded(item.index))

    # ---- items

    def _add_item(self, event: _Event, out: list[n.StreamEvent]) -> None:
        if is_null(event.item):
            return
        at = len(self._items) if event.output_index is None else event.output_index
        known = self._items.pop(at, None)
        if known is not None:
            self._close(known, out)
        if len(self._items) >= OPEN_MAX:
            self._break(
                f.MalformedAnswer("the provider's stream opens items without end", 200), out
            )
            return
        self._last = at
        self._items[at] = self._opened(event.item, out)

    def _opened(self, raw: Raw, out: list[n.StreamEvent]) -> _Open:
        fields = object_of(raw)
        kind, given = text_or(fields.get("type")), text_or(fields.get("id"))
        if kind == "message":
            fields.pop("content", None)
            if text_or(fields.get("role")) == "assistant":
                del fields["role"]
            return _Open(_MESSAGE, -1, {"item": item_rest(fields)}, given)
        index = self._next
        self._next += 1
        part: n.Part = alone(raw)
        known = _OTHER
        if kind in {"function_call", "reasoning"}:
            if kind == "function_call":
                fields.setdefault("arguments", Raw(b'""'))
            try:
                part = parts_of_item(Raw(encode(without_nulls(fields))), "item", answer=True)[0]
            except BadRequest:
                part = alone(raw)
        if isinstance(part, n.ToolCall):
            self._called = True
            known = _CALL
            # What it holds already comes again, as fragments or at the end.
            part = msgspec.structs.replace(part, arguments="")
        elif isinstance(part, n.Thinking):
            known = _REASONING
            part = msgspec.structs.replace(part, text="", signature="", redacted="")
        out.append(n.PartBegan(index, part))
        return _Open(known, index, {}, given)

    def _end_item(self, event: _Event, out: list[n.StreamEvent]) -> None:
        if is_null(event.item):
            return
        at = self._last if event.output_index is None else event.output_index
        item = self._items.get(at)
        if item is None:
            # Never added: some hosts only say that it is done.
            self._add_item(event, out)
            item = self._items.get(at)
            if item is None:
                return
        del self._items[at]
        if item.kind == _MESSAGE:
            self._end_message(item, event.item, out)
            return
        if item.kind == _CALL:
            fields = object_of(event.item)
            arguments = text_or(fields.pop("arguments", None))
            if arguments and not item.said:
                out.append(n.Grew(item.index, arguments))
            for name in ("type", "call_id", "name"):
                fields.pop(name, None)
            out.append(n.Grew(item.index, extra={"item": item_rest(fields)}))
        elif item.kind == _REASONING:
            self._end_reasoning(item, event.item, out)
        else:
            out.append(n.Grew(item.index, extra={"item": event.item}))
        out.append(n.PartEnded(item.index))

    def _end_reasoning(self, item: _Open, raw: Raw, out: list[n.StreamEvent]) -> None:
        try:
            part = parts_of_item(raw, "item", answer=True)[0]
        except BadRequest:
            return
        if isinstance(part, n.Thinking):
            text = "" if item.said else part.text
            extra = {"item": part.layout["item"]}
            out.append(n.Grew(item.index, text, part.signature or part.redacted, extra=extra))

    def _end_message(self, item: _Open, raw: Raw, out: list[n.StreamEvent]) -> None:
        try:
            parts = parts_of_item(raw, "item", answer=True)
        except BadRequest:
            parts = []
        # By number, not by index: vLLM counts the contents of all items.
        for part in parts[len(item.contents) :]:
            # Never streamed: only its end tells the message's content.
            self._whole_content(item, max(item.contents, default=-1) + 1, part, out)
        rest = parts[0].layout.get("item") if parts else None
        if item.index > item.ended:
            if rest is not None:
                out.append(n.Grew(item.index, extra={"item": rest}))
            out.append(n.PartEnded(item.index))

    def _whole_content(self, item: _Open, at: int, part: n.Part, out: list[n.StreamEvent]) -> None:
        text = part.text if isinstance(part, n.Text | n.Refusal) else ""
        if isinstance(part, n.Text | n.Refusal):
            part = msgspec.structs.replace(part, text="")
        layout = {name: raw for name, raw in part.layout.items() if name != "item"}
        index = self._open_content(item, at, msgspec.structs.replace(part, layout=layout), out)
        if text:
            out.append(n.Grew(index, text))

    # ---- content of messages

    def _open_content(self, item: _Open, at: int, part: n.Part, out: list[n.StreamEvent]) -> int:
        index = self._next
        self._next += 1
        if item.layout:
            part = with_layout(part, item.layout)
            item.layout = {}
        if item.index > item.ended:
            # Contents of a message come one after another.
            out.append(n.PartEnded(item.index))
            item.ended = item.index
        item.contents[at] = item.index = index
        out.append(n.PartBegan(index, part))
        return index

    def _add_content(self, event: _Event, out: list[n.StreamEvent]) -> None:
        item = self._item(event)
        at = event.content_index or 0
        if item is None or item.kind != _MESSAGE or at in item.contents:
            return
        if len(item.contents) >= OPEN_MAX:
            return
        part: n.Part = n.Text(text="")
        kind = text_or(object_of(event.part).get("type"))
        if kind == "refusal":
            part = n.Refusal(text="")
        elif kind not in {"output_text", "text", ""}:
            part = n.Native(dialect="responses", raw=event.part)
        self._open_content(item, at, part, out)

    def _end_content(self, event: _Event, out: list[n.StreamEvent]) -> None:
        item = self._item(event)
        index = item.contents.get(event.content_index or 0) if item is not None else None
        if item is None or index is None or index <= item.ended:
            return
        fields = object_of(event.part)
        for name in ("type", "text", "refusal"):
            fields.pop(name, None)
        if fields:
            out.append(n.Grew(index, extra={"part": Raw(encode(fields))}))

    def _part(self, event: _Event, out: list[n.StreamEvent]) -> int | None:
        """The part that the event is about; a message's is opened where nobody did."""
        item = self._item(event)
        if item is None:
            if not event.type.startswith(("response.output_text.", "response.refusal.")):
                return None
            at = 0 if event.output_index is None else event.output_index
            if len(self._items) >= OPEN_MAX:
                return None
            item = self._items[at] = _Open(_MESSAGE, -1, {})
            self._last = at
        if item.kind != _MESSAGE:
            return item.index
        content = event.content_index or 0
        index = item.contents.get(content)
        if index is None and len(item.contents) < OPEN_MAX:
            refused = event.type.startswith("response.refusal.")
            part = n.Refusal(text="") if refused else n.Text(text="")
            index = self._open_content(item, content, part, out)
        return index if index is None or index > item.ended else None

    def _grow(
        self,
        event: _Event,
        text: str | None,
        data: bytes,
        out: list[n.StreamEvent],
        logprobs: Raw | None = None,
        extra: n.Extra | None = None,
    ) -> None:
        item = self._items.get(event.output_index or 0)
        index = None
        if item is not None:
            index = item.index
            if item.kind == _MESSAGE and item.contents.get(event.content_index or 0) != index:
                index = None  # it goes to another part than the open one
        if index is None or item is None or event.output_index is None:
            self._begin(None, out)
            index = self._part(event, out)
            item = self._item(event)
            if index is None or item is None:
                return
        if item.kind == _OTHER:
            self._other(event, data, out)
            return
        item.said.add(index)
        if logprobs is not None and bytes(logprobs) not in _NOT_LOGPROBS:
            said = Raw(b'{"content":' + bytes(logprobs) + b"}")
            out.append(n.Grew(index, text or "", logprobs=said))
        elif text:
            out.append(n.Grew(index, text, extra=extra) if extra else n.Grew(index, text))

    def _complete(
        self,
        event: _Event,
        text: str | None,
        data: bytes,
        out: list[n.StreamEvent],
        extra: n.Extra | None = None,
    ) -> None:
        """The whole text of a part: news only where no fragment of it came."""
        index = self._part(event, out)
        item = self._item(event)
        if index is None or item is None or index in item.said:
            return
        self._grow(event, text, data, out, None, extra)
