"""How each API frames a stream over HTTP, given the JSON lines that come over the bus.

| api | event | seam | whole end | broken end |
|---|---|---|---|---|
| `chat` | `data: …` | comment | totals as a comment, `data: [DONE]` | comment, `data: {"error":…}` |
| `messages` | `event: <type>` and `data: …` | comment | comment | comment, `event: error` |
| `responses` | `event: <type>` and `data: …` | comment | comment | comment, `event: error` |
| `generate` | `data: …`, or elements of one JSON array | nothing | nothing, or `]` | an error object, then `]` |

Sources: OpenAI API reference, "Streaming"; Anthropic, "Streaming messages"; Gemini API, `alt=sse`. Pure.
"""

import re
from collections.abc import Mapping
from typing import Final, Protocol

import msgspec

from breakwater_gateway.edge import openai_api as openai
from breakwater_gateway.runtime.answers import error_body
from breakwater_protocol import failures as f
from breakwater_protocol import headers as h

_TYPE: Final = re.compile(rb'"type"\s*:\s*"([A-Za-z0-9_.]{1,100})"')


class Framing(Protocol):
    content_type: str

    def events(self, data: bytes) -> bytes:
        """The lines of one message."""
        ...

    def seam(self, deployment: str) -> bytes:
        """Before the first event of a deployment that goes on where another broke off."""
        ...

    def end(self, bus: Mapping[str, str]) -> bytes:
        """What closes the stream, from the headers of the last message."""
        ...


class ChatEvents:
    content_type = "text/event-stream; charset=utf-8"

    def events(self, data: bytes) -> bytes:
        return openai.sse_events(data)

    def seam(self, deployment: str) -> bytes:
        return openai.sse_seam(deployment)

    def end(self, bus: Mapping[str, str]) -> bytes:
        return openai.sse_end(bus)


class NamedEvents:
    """Events whose SSE name is the `type` of their object."""

    content_type = "text/event-stream; charset=utf-8"

    def __init__(self, api: str) -> None:
        self._api = api

    def events(self, data: bytes) -> bytes:
        return b"".join(_named(line) for line in data.split(b"\n"))

    def seam(self, deployment: str) -> bytes:
        return openai.sse_seam(deployment)

    def end(self, bus: Mapping[str, str]) -> bytes:
        comment = openai.sse_totals(bus)
        if bus.get(h.END) == "ok":
            return comment
        failure = openai.cut_failure(bus.get(h.PARTIAL, ""))
        if self._api == "responses":
            body = msgspec.json.encode(
                {
                    "type": "error",
                    "code": f.spec(failure).code,
                    "message": failure.message,
                    "param": None,
                }
            )
        else:
            body = error_body(failure, self._api, bus.get(h.REQUEST_ID, ""))
        return comment + b"event: error\ndata: " + body + b"\n\n"


def _named(line: bytes) -> bytes:
    # The first `type` of an event object is its own: both APIs write it first.
    match = _TYPE.search(line)
    if match is None:
        return b"data: %b\n\n" % line
    return b"event: %b\ndata: %b\n\n" % (match[1], line)


class GeminiEvents:
    content_type = "text/event-stream"

    def events(self, data: bytes) -> bytes:
        return openai.sse_events(data)

    def seam(self, deployment: str) -> bytes:
        del deployment  # for the same reason as the totals
        return b""

    def end(self, bus: Mapping[str, str]) -> bytes:
        # Google's SDK reads every line as JSON, comments too: the totals stay on the bus.
        if bus.get(h.END) == "ok":
            return b""
        failure = openai.cut_failure(bus.get(h.PARTIAL, ""))
        return b"data: " + error_body(failure, "generate") + b"\n\n"


class GeminiArray:
    """Without `alt=sse` a Gemini stream is one JSON array, element by element."""

    content_type = "application/json; charset=utf-8"

    def __init__(self) -> None:
        self._open = False

    def events(self, data: bytes) -> bytes:
        first = b"," if self._open else b"["
        self._open = True
        return first + data.replace(b"\n", b",\r\n") + b"\r\n"

    def seam(self, deployment: str) -> bytes:
        del deployment  # an array of answers has no place for it
        return b""

    def end(self, bus: Mapping[str, str]) -> bytes:
        closing = b"]" if self._open else b"[]"
        if bus.get(h.END) == "ok":
            return closing
        failure = openai.cut_failure(bus.get(h.PARTIAL, ""))
        return self.events(error_body(failure, "generate")) + b"]"


def framing(api: str, *, sse: bool = True) -> Framing:
    """A fresh one per stream."""
    match api:
        case "messages" | "responses":
            return NamedEvents(api)
        case "generate":
            return GeminiEvents() if sse else GeminiArray()
        case _:
            return _CHAT


_CHAT: Final = ChatEvents()
