"""Streams of the Responses API, written.

The order that clients rely on: `response.created`, `response.in_progress`; for each item
`output_item.added`, its parts (`content_part.added`, deltas, the whole text, `content_part.done`),
`output_item.done`; and one of `response.completed`, `.incomplete`, `.failed` at the end. Every event has a
`sequence_number`, one more than the last.

Source: OpenAI API reference, "Streaming events".
"""

from typing import Final, Literal

from msgspec import Raw, Struct

from breakwater_gateway.worker.wire import neutral as n
from breakwater_gateway.worker.wire.openai_chat.fields import encode, text_or
from breakwater_gateway.worker.wire.responses.answer import (
    chat_logprobs,
    incomplete,
    response_id,
    skeleton,
    state_of,
    written_usage,
)
from breakwater_gateway.worker.wire.responses.errors import failed_error
from breakwater_gateway.worker.wire.responses.items import (
    SEPARATOR,
    list_of,
    minted,
    object_of,
    signed,
)
from breakwater_protocol import failures as f
from breakwater_protocol.chat import Usage

_Object = dict[str, object]


class _Delta(Struct, tag_field="type", tag="response.output_text.delta"):
    item_id: str
    output_index: int
    content_index: int
    delta: str
    logprobs: list[Raw]
    sequence_number: int


class _RefusalDelta(Struct, tag_field="type", tag="response.refusal.delta"):
    item_id: str
    output_index: int
    content_index: int
    delta: str
    sequence_number: int


class _ReasoningDelta(Struct, tag_field="type", tag="response.reasoning_text.delta"):
    item_id: str
    output_index: int
    content_index: int
    delta: str
    sequence_number: int


class _SummaryDelta(Struct, tag_field="type", tag="response.reasoning_summary_text.delta"):
    item_id: str
    output_index: int
    summary_index: int
    delta: str
    sequence_number: int


class _ArgumentsDelta(Struct, tag_field="type", tag="response.function_call_arguments.delta"):
    item_id: str
    output_index: int
    delta: str
    sequence_number: int


class _Entry:
    """An output item under way. A message takes further parts until it is sealed."""

    __slots__ = ("contents", "fields", "id", "index", "open_parts", "rest", "sealed", "whole")

    def __init__(self, index: int, fields: _Object) -> None:
        self.index = index
        self.fields = fields
        self.id = _id_of(fields)
        self.contents: list[object] = []
        self.open_parts = 0
        self.rest: _Object | None = None
        self.sealed = False
        self.whole: object = None
        """The item once it is done."""


class _Part:
    __slots__ = (
        "annotations",
        "content_index",
        "entry",
        "kind",
        "logprobs",
        "part",
        "raw_text",
        "rest",
        "signature",
        "summaries",
        "text",
    )

    def __init__(self, part: n.Part, kind: Literal["text", "call", "thinking", "native"]) -> None:
        self.part = part
        self.kind = kind
        self.entry: _Entry | None = None
        """None until there is something to say."""
        self.content_index = 0
        self.text: list[str] = []
        self.raw_text: list[str] = []
        """Of thinking: the reasoning itself, where `text` is its summary."""
        self.summaries: list[str] = []
        self.signature: list[str] = []
        self.logprobs: list[Raw] = []
        self.annotations: list[Raw] = []
        self.rest: _Object | None = None
        """The other fields of the whole content part or item, from our own dialect."""


def _id_of(fields: _Object) -> str:
    given = fields.get("id")
    return text_or(given) if isinstance(given, Raw) else str(given or "")


_NO_LOGPROBS: Final[list[Raw]] = []


class StreamEncoder:
    """One answer as this API streams it: objects whose `type` is the event's name.

    `model` is what the caller is told; `source` is the dialect that the events were decoded from: native
    fields are written back only where it is this one. `created`: Unix seconds, where the events do not say.
    Of several candidates the first is written: this API has no `n`.
    """

    __slots__ = (
        "_began",
        "_entries",
        "_finished",
        "_head",
        "_id",
        "_message",
        "_minted",
        "_native",
        "_over",
        "_parts",
        "_sequence",
        "_usage",
        "created",
        "model",
    )

    def __init__(
        self, *, model: str, source: n.DialectName = "responses", created: int = 0
    ) -> None:
        self.model = model
        self.created = created
        self._native = source == "responses"
        self._began = self._over = False
        self._id = ""
        self._head: _Object = {}
        self._sequence = 0
        self._minted = 0
        self._entries: list[_Entry] = []
        self._message: _Entry | None = None
        """The message that takes the next text."""
        self._parts: dict[int, _Part] = {}
        self._finished: n.Finished | None = None
        self._usage: Usage | None = None

    def goes_on_from(self, source: n.DialectName) -> None:
        self._native = source == "responses"

    def feed(self, events: list[n.StreamEvent]) -> list[bytes]:
        out: list[bytes] = []
        for event in events:
            if self._over:
                break
            match event:
                case n.Grew():
                    part = self._parts.get(event.index) if event.candidate == 0 else None
                    if part is not None:
                        self._grow(part, event, out)
                case n.Began():
                    self._begin(event, out)
                case n.PartBegan(candidate=0):
                    self._begin(None, out)
                    self._open(event, out)
                case n.PartEnded(candidate=0):
                    ended = self._parts.pop(event.index, None)
                    if ended is not None:
                        self._end(ended, out)
                case n.Finished(candidate=0):
                    self._finished = event
                case n.UsageKnown():
                    self._usage = event.usage
                case n.Broke():
                    self._fail(event.failure, out)
                case n.Done():
                    self._complete(out)
                case _:
                    pass
        return out

    # ---- the response

    def _say(self, out: list[bytes], kind: str, **fields: object) -> None:
        out.append(encode({"type": kind, "sequence_number": self._next(), **fields}))

    def _next(self) -> int:
        self._sequence += 1
        return self._sequence - 1

    def _mint(self, prefix: str) -> str:
        self._minted += 1
        return minted(prefix, self._id, self._minted)

    def _begin(self, event: n.Began | None, out: list[bytes]) -> None:
        if self._began:
            return
        self._began = True
        event = event or n.Began()
        self._id = event.id if self._native and event.id else response_id(event.id)
        self._head = {"id": self._id, "object": "response"}
        self._head["created_at"] = event.created or self.created
        if self._native and event.extra:
            self._head |= event.extra
        else:
            self._head |= skeleton()
        self._head["model"] = self.model or event.model
        self._head["status"] = "in_progress"
        self._head["output"] = []
        self._say(out, "response.created", response=self._head)
        self._say(out, "response.in_progress", response=self._head)

    def _complete(self, out: list[bytes]) -> None:
        self._begin(None, out)
        finished = self._finished or n.Finished("stop")
        state = state_of(finished.finish or "stop")
        if state == "failed" and not (self._native and finished.native == "cancelled"):
            self._fail(f.ServerError("the provider stopped with an error"), out)
            return
        self._close_all(out, "incomplete" if state == "incomplete" else "completed")
        response = self._head | {"status": state, "output": self._output()}
        reason = incomplete(finished.finish)
        if reason:
            response["incomplete_details"] = reason
        if self._usage is not None:
            response["usage"] = written_usage(self._usage)
        if self._native:
            response |= finished.extra
        self._say(out, f"response.{state}", response=response)
        self._over = True

    def _fail(self, failure: f.Failure, out: list[bytes]) -> None:
        """The failure as the last event; items that are not whole are left out of the response."""
        self._begin(None, out)
        response = self._head | {"status": "failed", "error": failed_error(failure)}
        response["output"] = self._output()
        response["usage"] = written_usage(self._usage) if self._usage else None
        self._say(out, "response.failed", response=response)
        self._over = True

    def _output(self) -> list[object]:
        return [entry.whole for entry in self._entries if entry.whole is not None]

    def _close_all(self, out: list[bytes], state: str) -> None:
        for part in self._parts.values():
            self._end(part, out)
        self._parts.clear()
        self._seal(out, state)

    # ---- items

    def _add(self, fields: _Object, out: list[bytes], **shown: object) -> _Entry:
        entry = _Entry(len(self._entries), fields)
        self._entries.append(entry)
        self._say(
            out,
            "response.output_item.added",
            output_index=entry.index,
            item=fields | shown,
        )
        return entry

    def _done(self, entry: _Entry, item: object, out: list[bytes]) -> None:
        entry.whole = item
        self._say(out, "response.output_item.done", output_index=entry.index, item=item)

    def _seal(self, out: list[bytes], state: str = "completed") -> None:
        """No more parts for the open message: it is done once those it has are."""
        entry, self._message = self._message, None
        if entry is not None:
            entry.sealed = True
            if entry.open_parts == 0:
                self._end_message(entry, out, state)

    def _end_message(self, entry: _Entry, out: list[bytes], state: str = "completed") -> None:
        item = entry.rest if entry.rest is not None else entry.fields | {"status": state}
        item = {"role": "assistant"} | item
        self._done(entry, item | {"content": entry.contents}, out)

    # ---- parts

    def _open(self, event: n.PartBegan, out: list[bytes]) -> None:
        part = event.part
        match part:
            case n.Text() | n.Refusal():
                made = _Part(part, "text")
                if self._native:
                    self._open_content(made, out)
                self._parts[event.index] = made
                if part.text:
                    self._grow(made, n.Grew(event.index, part.text), out)
            case n.ToolCall():
                self._seal(out)
                made = self._parts[event.index] = _Part(part, "call")
                made.entry = self._add(self._call(part), out, arguments="")
                if part.arguments:
                    self._grow(made, n.Grew(event.index, part.arguments), out)
            case n.Thinking():
                made = self._parts[event.index] = _Part(part, "thinking")
                if self._native:
                    self._open_thinking(made, out)
                if part.text:
                    self._grow(made, n.Grew(event.index, part.text), out)
            case n.Native(dialect="responses"):
                made = self._parts[event.index] = _Part(part, "native")
                if "alone" not in part.layout:
                    self._open_content(made, out)
                    return
                self._seal(out)
                made.entry = self._add(dict(object_of(part.raw)), out)
            case n.Image(data=data) if data:
                self._seal(out)
                fields: _Object = {"id": self._mint("ig"), "type": "image_generation_call"}
                entry = self._add(fields | {"status": "in_progress", "result": None}, out)
                self._done(entry, fields | {"status": "completed", "result": data}, out)
            case _:
                pass  # nothing that this API could say

    def _open_content(self, made: _Part, out: list[bytes]) -> None:
        layout = made.part.layout if self._native else {}
        if "item" in layout:
            self._seal(out)
        entry = self._message
        if entry is None:
            fields: _Object = dict(object_of(layout.get("item")))
            fields.setdefault("id", self._mint("msg"))
            fields |= {"type": "message", "status": "in_progress", "role": "assistant"}
            entry = self._message = self._add(fields, out, content=[])
        made.entry = entry
        made.content_index = len(entry.contents)
        entry.contents.append(None)
        entry.open_parts += 1
        self._say(
            out,
            "response.content_part.added",
            item_id=entry.id,
            output_index=entry.index,
            content_index=made.content_index,
            part=self._content(made, ""),
        )

    def _content(self, made: _Part, text: str) -> object:
        part = made.part
        if isinstance(part, n.Native):
            return part.raw
        if isinstance(part, n.Refusal):
            return {"type": "refusal", "refusal": text} | (made.rest or {})
        written: _Object = {"type": "output_text", "text": text}
        if made.rest is not None:
            return written | made.rest
        return written | {"annotations": made.annotations, "logprobs": made.logprobs}

    def _call(self, part: n.ToolCall) -> _Object:
        fields: _Object = dict(object_of(part.layout.get("item"))) if self._native else {}
        fields.setdefault("id", self._mint("fc"))
        return fields | {
            "type": "function_call",
            "status": "in_progress",
            "call_id": part.id,
            "name": part.name,
            **signed(part.signature),
        }

    def _open_thinking(self, made: _Part, out: list[bytes]) -> None:
        self._seal(out)
        part = made.part
        fields: _Object = {}
        if self._native and isinstance(part, n.Thinking):
            fields |= object_of(part.layout.get("item"))
            if part.id:
                fields["id"] = part.id
        fields.setdefault("id", self._mint("rs"))
        fields |= {"type": "reasoning", "summary": []}
        made.entry = self._add(fields, out)

    # ---- growth

    def _grow(self, made: _Part, event: n.Grew, out: list[bytes]) -> None:
        text = event.text
        if made.entry is None:
            if not text:
                return
            if made.kind == "text":
                self._open_content(made, out)
            else:
                self._open_thinking(made, out)
        entry = made.entry
        assert entry is not None  # noqa: S101 - opened above
        if made.kind == "text":
            self._grow_text(made, entry, event, out)
        elif made.kind == "call":
            made.signature.append(event.signature)
            if text:
                made.text.append(text)
                out.append(encode(_ArgumentsDelta(entry.id, entry.index, text, self._next())))
        elif made.kind == "thinking":
            self._grow_thinking(made, entry, event, out)
        if event.extra and self._native:
            self._native_growth(made, entry, event.extra, out)

    def _grow_text(self, made: _Part, entry: _Entry, event: n.Grew, out: list[bytes]) -> None:
        said = _NO_LOGPROBS
        if event.logprobs is not None:
            said = chat_logprobs(event.logprobs)
            made.logprobs.extend(said)
        text = event.text
        if not text and not said:
            return
        made.text.append(text)
        at = made.content_index
        if isinstance(made.part, n.Refusal):
            out.append(encode(_RefusalDelta(entry.id, entry.index, at, text, self._next())))
        else:
            out.append(encode(_Delta(entry.id, entry.index, at, text, said, self._next())))

    def _grow_thinking(self, made: _Part, entry: _Entry, event: n.Grew, out: list[bytes]) -> None:
        text = event.text
        if event.signature:
            made.signature.append(event.signature)
        if self._native and "summary" in event.extra and text == SEPARATOR:
            self._end_summary(made, entry, out)
            self._begin_summary(made, entry, out)
            return
        if not text:
            return
        if self._native and "raw_text" in event.extra:
            if not made.raw_text:
                self._reasoning_part(made, entry, "added", out)
            made.raw_text.append(text)
            out.append(encode(_ReasoningDelta(entry.id, entry.index, 0, text, self._next())))
            return
        if not made.text and not made.summaries:
            self._begin_summary(made, entry, out)
        made.text.append(text)
        at = len(made.summaries)
        out.append(encode(_SummaryDelta(entry.id, entry.index, at, text, self._next())))

    def _native_growth(self, made: _Part, entry: _Entry, extra: n.Extra, out: list[bytes]) -> None:
        if "annotation" in extra:
            self._say(
                out,
                "response.output_text.annotation.added",
                item_id=entry.id,
                output_index=entry.index,
                content_index=made.content_index,
                annotation_index=len(made.annotations),
                annotation=extra["annotation"],
            )
            made.annotations.append(extra["annotation"])
        if "event" in extra:
            fields: _Object = dict(object_of(extra["event"]))
            fields |= {"sequence_number": self._next(), "output_index": entry.index}
            out.append(encode(fields))
        if "part" in extra:
            made.rest = dict(object_of(extra["part"]))
        if "item" in extra:
            if made.kind == "text" or (made.kind == "native" and "alone" not in made.part.layout):
                entry.rest = dict(object_of(extra["item"]))
            else:
                made.rest = dict(object_of(extra["item"]))

    def _begin_summary(self, made: _Part, entry: _Entry, out: list[bytes]) -> None:
        self._summary(made, entry, "response.reasoning_summary_part.added", out, part=_summary(""))

    def _summary(
        self, made: _Part, entry: _Entry, kind: str, out: list[bytes], **fields: object
    ) -> None:
        self._say(
            out,
            kind,
            item_id=entry.id,
            output_index=entry.index,
            summary_index=len(made.summaries),
            **fields,
        )

    def _end_summary(self, made: _Part, entry: _Entry, out: list[bytes]) -> None:
        text = "".join(made.text)
        self._summary(made, entry, "response.reasoning_summary_text.done", out, text=text)
        kind = "response.reasoning_summary_part.done"
        self._summary(made, entry, kind, out, part=_summary(text))
        made.summaries.append(text)
        made.text.clear()

    def _reasoning_part(self, made: _Part, entry: _Entry, what: str, out: list[bytes]) -> None:
        self._say(
            out,
            f"response.content_part.{what}",
            item_id=entry.id,
            output_index=entry.index,
            content_index=0,
            part={"type": "reasoning_text", "text": "".join(made.raw_text)},
        )

    # ---- ends

    def _end(self, made: _Part, out: list[bytes]) -> None:
        entry = made.entry
        if entry is None:
            return
        match made.kind:
            case "text":
                self._end_content(made, entry, out)
            case "native" if "alone" not in made.part.layout:
                self._end_content(made, entry, out)
            case "call":
                self._end_call(made, entry, out)
            case "thinking":
                self._end_thinking(made, entry, out)
            case _:
                self._done(entry, made.rest or entry.fields, out)

    def _end_content(self, made: _Part, entry: _Entry, out: list[bytes]) -> None:
        text = "".join(made.text)
        at: _Object = {
            "item_id": entry.id,
            "output_index": entry.index,
            "content_index": made.content_index,
        }
        if isinstance(made.part, n.Refusal):
            self._say(out, "response.refusal.done", **at, refusal=text)
        elif isinstance(made.part, n.Text):
            said = made.logprobs
            if not said and made.rest is not None:
                given = made.rest.get("logprobs")
                said = list_of(given) if isinstance(given, Raw) else said
            self._say(out, "response.output_text.done", **at, text=text, logprobs=said)
        content = self._content(made, text)
        self._say(out, "response.content_part.done", **at, part=content)
        if made.logprobs and isinstance(content, dict):
            # Some providers repeat them in the whole item alone.
            content = content | {"logprobs": made.logprobs}
        entry.contents[made.content_index] = content
        entry.open_parts -= 1
        if entry.rest is not None and self._message is entry:
            self._seal(out)
        elif entry.sealed and entry.open_parts == 0:
            self._end_message(entry, out)

    def _end_call(self, made: _Part, entry: _Entry, out: list[bytes]) -> None:
        arguments = "".join(made.text)
        self._say(
            out,
            "response.function_call_arguments.done",
            item_id=entry.id,
            output_index=entry.index,
            arguments=arguments,
        )
        item = entry.fields | {"status": "completed"} | signed("".join(made.signature))
        if made.rest is not None:
            item |= made.rest
        self._done(entry, item | {"arguments": arguments}, out)

    def _end_thinking(self, made: _Part, entry: _Entry, out: list[bytes]) -> None:
        if made.text or (self._native and made.summaries):
            self._end_summary(made, entry, out)
        if made.raw_text:
            self._say(
                out,
                "response.reasoning_text.done",
                item_id=entry.id,
                output_index=entry.index,
                content_index=0,
                text="".join(made.raw_text),
            )
            self._reasoning_part(made, entry, "done", out)
        item = entry.fields | {"summary": [_summary(text) for text in made.summaries]}
        if made.raw_text:
            item["content"] = [{"type": "reasoning_text", "text": "".join(made.raw_text)}]
        if made.rest is not None:
            item = {"id": entry.id, "type": "reasoning", **made.rest}
        if self._native and made.signature:
            item["encrypted_content"] = "".join(made.signature)
        self._done(entry, item, out)


def _summary(text: str) -> dict[str, str]:
    return {"type": "summary_text", "text": text}
