"""Streams of Ollama's native API to the neutral vocabulary: JSON objects, one a line.

Each has a fragment of `message`; the last has `done: true`, the reason and the counts. Calls come whole. An
`error` may come instead of a line. Source: github.com/ollama/ollama, docs/api.md ("Generate a chat
completion").
"""

from typing import Final, Literal

import msgspec
from msgspec import Raw, Struct

from breakwater_gateway.worker.wire import neutral as n
from breakwater_gateway.worker.wire import objects as o
from breakwater_gateway.worker.wire.bad_request import BadRequest
from breakwater_gateway.worker.wire.ndjson import LineParser
from breakwater_gateway.worker.wire.ollama.answer import (
    finish_of,
    logprobs_of,
    read_usage,
    unix_of,
)
from breakwater_gateway.worker.wire.ollama.errors import classify
from breakwater_gateway.worker.wire.ollama.request import tool_call
from breakwater_protocol import failures as f

_NULL: Final = Raw(o.NULL)


class _Message(Struct):
    content: str | None = None
    thinking: str | None = None
    tool_calls: list[Raw] | None = None


class _Line(Struct):
    message: _Message | None = None
    done: bool | None = None
    model: str | None = None
    created_at: str | None = None
    # A field of any JSON or none: msgspec reads `Raw | None` as null only.
    error: Raw = _NULL
    logprobs: Raw = _NULL


_line: Final = msgspec.json.Decoder(_Line).decode

_OF_EVERY_LINE: Final = frozenset(
    {"message", "done", "done_reason", "model", "created_at", "logprobs"}
)


class StreamDecoder:
    """Reads one stream. See `neutral.StreamDecoder`."""

    __slots__ = ("_began", "_calls", "_kind", "_lines", "_next", "_over", "_stamp")

    def __init__(self) -> None:
        self._lines = LineParser(n.EVENT_BYTES_MAX)
        self._began = False
        self._kind: Literal["", "text", "thinking"] = ""
        """Of the part that is open, the one before `_next`."""
        self._next = 0
        self._calls = 0
        self._stamp = ""
        self._over = False

    def feed(self, data: bytes) -> list[n.StreamEvent]:
        out: list[n.StreamEvent] = []
        if self._over:
            return out
        for line in self._lines.feed(data):
            self._read(line, out)
            if self._over:
                return out
        if self._lines.too_long:
            said = f"a line of the stream exceeds {n.EVENT_BYTES_MAX} bytes"
            self._break(f.MalformedAnswer(said, provider_status=200), out)
        return out

    def end(self) -> list[n.StreamEvent]:
        out: list[n.StreamEvent] = []
        if self._over:
            return out
        line = self._lines.finish()
        if line:
            # The last line may lack its end; half a line is a cut.
            self._read(line, out, tail=True)
        if not self._over:
            self._close(out)
            self._over = True
        return out

    def _read(self, data: bytes, out: list[n.StreamEvent], *, tail: bool = False) -> None:
        try:
            line = _line(data)
            if bytes(line.error) != o.NULL:
                self._break(classify(200, {}, data, now=0.0), out)
                return
            if not self._began:
                self._begin(line, out)
            if line.message is not None:
                self._grow(line.message, line.logprobs, out)
            if line.done:
                self._finish(data, out)
        except (*o.UNREADABLE, BadRequest):
            if not tail:
                said = "the provider's stream holds a line that is not the JSON its API promises"
                self._break(f.MalformedAnswer(said, provider_status=200), out)

    def _begin(self, line: _Line, out: list[n.StreamEvent]) -> None:
        self._began = True
        self._stamp = line.created_at or ""
        out.append(n.Began(model=line.model or "", created=unix_of(self._stamp)))

    def _grow(self, said: _Message, tokens: Raw, out: list[n.StreamEvent]) -> None:
        if said.thinking:
            self._say("thinking", said.thinking, None, out)
        if said.content:
            logprobs = None if bytes(tokens) == o.NULL else logprobs_of(tokens)
            self._say("text", said.content, logprobs, out)
        for raw in said.tool_calls or ():
            call = tool_call(raw, "tool_calls", self._calls, self._stamp)
            self._calls += 1
            self._close(out)
            index = self._next
            self._next += 1
            whole = n.ToolCall(id=call.id, name=call.name, arguments="", extra=call.extra)
            out.append(n.PartBegan(index, whole))
            out.append(n.Grew(index, text=call.arguments))
            out.append(n.PartEnded(index))

    def _say(
        self,
        kind: Literal["text", "thinking"],
        text: str,
        logprobs: Raw | None,
        out: list[n.StreamEvent],
    ) -> None:
        if self._kind != kind:
            self._close(out)
            self._kind = kind
            part = n.Text(text="") if kind == "text" else n.Thinking()
            out.append(n.PartBegan(self._next, part))
            self._next += 1
        out.append(n.Grew(self._next - 1, text=text, logprobs=logprobs))

    def _close(self, out: list[n.StreamEvent]) -> None:
        if self._kind:
            self._kind = ""
            out.append(n.PartEnded(self._next - 1))

    def _finish(self, data: bytes, out: list[n.StreamEvent]) -> None:
        given = o.fields_of(data)
        raw = given.get("done_reason", _NULL)
        reason = o.text_of(raw) if o.is_text(raw) else ""
        extra = {name: raw for name, raw in given.items() if name not in _OF_EVERY_LINE}
        self._close(out)
        finish = finish_of(reason, called=self._calls > 0)
        out.append(n.Finished(finish, native=reason, extra=extra))
        used = read_usage(data)
        if used is not None:
            out.append(n.UsageKnown(used))
        self._over = True
        out.append(n.Done())

    def _break(self, failure: f.Failure, out: list[n.StreamEvent]) -> None:
        if not self._began:
            self._began = True
            out.append(n.Began())
        self._close(out)
        self._over = True
        out.append(n.Broke(failure))
