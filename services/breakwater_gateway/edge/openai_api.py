"""OpenAI's HTTP surface over our bus: which request goes to which subject, and answers back as HTTP.

Pure: bytes and headers in, bytes and headers out. Framing of streams: one `data:` event a JSON line, the
totals on a comment line, then `data: [DONE]`; a stream that broke off ends with an error event and
without `[DONE]`, so that no client takes it for whole. Source: OpenAI API reference, "Streaming".
"""

from collections.abc import Mapping
from typing import Final

import msgspec
from msgspec import Struct

from breakwater_gateway.runtime.answers import error_body, error_headers
from breakwater_protocol import failures as f
from breakwater_protocol import headers as h

JSON: Final = ("content-type", "application/json")

STREAM_HEADERS: Final = (
    ("cache-control", "no-cache"),
    # nginx and its kin would otherwise hold chunks back.
    ("x-accel-buffering", "no"),
)

_OURS: Final = "breakwater-"
_FRAMING: Final = frozenset({h.SEQ, h.END, h.ATTEMPT})
_PASSED: Final = frozenset({h.RETRY_AFTER, h.SHOULD_RETRY})
_HINT_MARGIN_S: Final = 0.5


def bus_headers(
    http: Mapping[str, str], body: bytes = b"", *, longest_s: float = 600.0
) -> dict[str, str]:
    """What of an HTTP request's headers goes on the bus.

    `longest_s`: a client's patience beyond it says nothing, since no model is configured to take as long.
    """
    found = {name: value for name, value in http.items() if name.startswith(_OURS)}
    for name in (h.TRACEPARENT, h.TRACESTATE, *h.NATIVE):
        if name in http:
            found[name] = http[name]
    # The official SDKs say how long they bear silence. Of an answer in one piece that is its deadline,
    # with a margin, so that they report their own timeout; of a stream it says nothing about its length.
    hint = http.get("x-stainless-read-timeout", "")
    if (
        h.TIMEOUT not in found
        and hint.isascii()
        and hint.replace(".", "", 1).isdigit()
        and b'"stream"' not in body
    ):
        seconds = float(hint)
        if 0 < seconds < longest_s:
            found[h.TIMEOUT] = f"{seconds + _HINT_MARGIN_S:.3f}s"
    return found


def http_headers(bus: Mapping[str, str]) -> list[tuple[str, str]]:
    """What of an answer's headers on the bus goes to an HTTP client."""
    found = [
        (name, value)
        for name, value in bus.items()
        if (name.startswith(_OURS) and name not in _FRAMING) or name in _PASSED
    ]
    request_id = bus.get(h.REQUEST_ID)
    if request_id:
        found.append(("x-request-id", request_id))
        found.append(("request-id", request_id))
    return found


def status_of(bus: Mapping[str, str]) -> int:
    """The HTTP status of a reply; 200 unless it is an error reply."""
    code = bus.get(h.SERVICE_ERROR_CODE)
    if code is None:
        return 200
    return int(code) if code.isdigit() and 400 <= int(code) <= 599 else 502


def error_answer(
    failure: f.Failure, extra: Mapping[str, str] | None = None, *, api: str = "chat"
) -> tuple[int, list[tuple[str, str]], bytes]:
    """Status, headers and body of a failure, as clients of that API expect it."""
    headers = error_headers(failure, extra)
    body = error_body(failure, api, headers.get(h.REQUEST_ID, ""))
    return f.spec(failure).status, [JSON, *http_headers(headers)], body


class _Said(Struct):
    message: str = ""
    code: str = ""


class _Body(Struct):
    error: _Said


_error = msgspec.json.Decoder(_Body)


def translated_error(body: bytes, status: int, api: str) -> bytes:
    """OpenAI's error object, which the bus carries for this call, as clients of `api` read it."""
    try:
        said = _error.decode(body).error
    except msgspec.MsgspecError:
        said = _Said("the gateway's answer could not be read")
    kind = next((k for k, spec in f.SPEC.items() if spec.status == status), f.Internal)
    return error_body(kind(said.message), api)


def sse_events(data: bytes) -> bytes:
    """The lines of one message, each as an event."""
    if b"\n" in data:
        return b"data: " + data.replace(b"\n", b"\n\ndata: ") + b"\n\n"
    return b"data: %b\n\n" % data


def sse_end(bus: Mapping[str, str]) -> bytes:
    """The end of a stream: totals as a comment, then either `[DONE]` or the error that cut it."""
    comment = sse_totals(bus)
    if bus.get(h.END) == "ok":
        return comment + b"data: [DONE]\n\n"
    return comment + b"data: " + error_body(cut_failure(bus.get(h.PARTIAL, ""))) + b"\n\n"


def sse_totals(bus: Mapping[str, str]) -> bytes:
    """A comment line: clients skip it, people and tools can read it."""
    said = " ".join(f"{name}={value}" for name, value in totals(bus))
    return f": {said}\n\n".encode()


def totals(bus: Mapping[str, str]) -> list[tuple[str, str]]:
    """What the last message of a stream says of it, and is no part of the protocol between actors."""
    return [
        (name, value)
        for name, value in bus.items()
        if name.startswith(_OURS) and name not in _FRAMING
    ]


def sse_seam(deployment: str) -> bytes:
    """A comment line where another deployment goes on with the answer."""
    return f": {h.SEAM}={deployment}\n\n".encode()


def cut_failure(reason: str) -> f.Failure:
    """Why an answer is partial, as a failure that a client can read."""
    said = "the answer above is partial: "
    match reason:
        case "idle_timeout":
            return f.IdleTimeout(
                said + "the model stopped sending; raise timeouts.idle or ask again"
            )
        case "slow_stream":
            return f.SlowStream(
                said + "the model sent too slowly; lower timeouts.min_rate or ask again"
            )
        case "total_timeout":
            return f.TotalTimeout(
                said + "the deadline passed; raise timeouts.total or breakwater-timeout"
            )
        case "malformed_tool_call":
            return f.MalformedToolCall(
                said + "the model called a tool with arguments that are no JSON object; ask again"
            )
        case "worker_lost":
            return f.StreamCut(said + "the worker that was streaming it is gone; ask again")
        case _:
            return f.StreamCut(said + f"the stream broke off ({reason or 'unknown'}); ask again")
