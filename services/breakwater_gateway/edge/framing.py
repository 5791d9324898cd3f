"""How each API frames a stream over HTTP, given the JSON lines that come over the bus.

| api | event | seam | whole end | broken end |
|---|---|---|---|---|
| `chat` | `data: …` | comment | totals as a comment, `data: [DONE]` | comment, `data: {"error":…}` |
| `messages` | `event: <type>` and `data: …` | comment | comment | comment, `event: error` |
| `responses` | `event: <type>` and `data: …` | comment | comment | comment, `event: error` |
| `generate` | `data: …`, or elements of one JSON array | field `breakwaterSeam` | nothing, or `]` | an error object, then `]` |

Google's SDK reads every line as JSON, comments too. So Gemini's streams say within their objects what others
say in comments: the seam in the first object after it, and the totals of a broken stream as `ErrorInfo` in
its error, with `breakwater-partial` among them. Clients of protobuf's JSON pass over fields that they do not
know. The totals of a whole stream have no place there and stay on the bus.

Sources: OpenAI API reference, "Streaming"; Anthropic, "Streaming messages"; Gemini API, `alt=sse`; AIP-193;
protobuf guide, "ProtoJSON Format". Pure.
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


SEAM: Final = b"breakwaterSeam"
"""Of a Gemini stream: in the first object of whoever goes on, the id of its deployment."""


class Framing(Protocol):
    content_type: str

    def events(self, data: bytes, seam: str = "") -> bytes:
        """The lines of one message. `seam`: the deployment that from here on goes on where another broke
        off."""
        ...

    def end(self, bus: Mapping[str, str]) -> bytes:
        """What closes the stream, from the headers of the last message."""
        ...


class ChatEvents:
    content_type = "text/event-stream; charset=utf-8"

    def events(self, data: bytes, seam: str = "") -> bytes:
        return _comment(seam) + openai.sse_events(data)

    def end(self, bus: Mapping[str, str]) -> bytes:
        return openai.sse_end(bus)


class NamedEvents:
    """Events whose SSE name is the `type` of their object."""

    content_type = "text/event-stream; charset=utf-8"

    def __init__(self, api: str) -> None:
        self._api = api

    def events(self, data: bytes, seam: str = "") -> bytes:
        return _comment(seam) + b"".join(_named(line) for line in data.split(b"\n"))

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


def _comment(seam: str) -> bytes:
    return openai.sse_seam(seam) if seam else b""


def _named(line: bytes) -> bytes:
    # The first `type` of an event object is its own: both APIs write it first.
    match = _TYPE.search(line)
    if match is None:
        return b"data: %b\n\n" % line
    return b"event: %b\ndata: %b\n\n" % (match[1], line)


class GeminiEvents:
    content_type = "text/event-stream"

    def events(self, data: bytes, seam: str = "") -> bytes:
        return openai.sse_events(_seamed(data, seam) if seam else data)

    def end(self, bus: Mapping[str, str]) -> bytes:
        return b"" if bus.get(h.END) == "ok" else b"data: " + _broken(bus) + b"\n\n"


class GeminiArray:
    """Without `alt=sse` a Gemini stream is one JSON array, element by element."""

    content_type = "application/json; charset=utf-8"

    def __init__(self) -> None:
        self._open = False

    def events(self, data: bytes, seam: str = "") -> bytes:
        first = b"," if self._open else b"["
        self._open = True
        if seam:
            data = _seamed(data, seam)
        return first + data.replace(b"\n", b",\r\n") + b"\r\n"

    def end(self, bus: Mapping[str, str]) -> bytes:
        if bus.get(h.END) == "ok":
            return b"]" if self._open else b"[]"
        return self.events(_broken(bus)) + b"]"


def _seamed(data: bytes, deployment: str) -> bytes:
    """The objects of one message, the first with the seam as a field of its own."""
    first, end, rest = data.partition(b"\n")
    if not first.startswith(b"{"):
        return data
    fields = first[1:].lstrip()
    comma = b"" if fields == b"}" else b","
    return b'{"%b":%b%b%b%b%b' % (SEAM, msgspec.json.encode(deployment), comma, fields, end, rest)


def _broken(bus: Mapping[str, str]) -> bytes:
    """The error object that ends a broken stream."""
    reason = bus.get(h.PARTIAL, "")
    return error_body(
        openai.cut_failure(reason), "generate", reason=reason, facts=dict(openai.totals(bus))
    )


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
