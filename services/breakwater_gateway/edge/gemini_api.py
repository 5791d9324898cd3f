"""Gemini's HTTP surface: the model and the method are in the path, so they join the body for the bus.

Source: Gemini API reference, "generateContent" and "streamGenerateContent". Pure.
"""

import re
from typing import Final

import msgspec
from msgspec import Struct

from breakwater_protocol import failures as f

PATH: Final = re.compile(
    r"/(?:v1|v1beta|v1alpha)/models/(?P<model>[^:]+):(?P<method>generateContent|streamGenerateContent)"
)


class Asked(Struct, frozen=True):
    """`body` with `model` and `stream` as its first fields; `sse` as the stream is to be framed."""

    body: bytes
    sse: bool


def read_path(path: str, query: str, body: bytes) -> Asked | f.InvalidRequest:
    match = PATH.fullmatch(path)
    if match is None:
        return f.InvalidRequest(f"there is no {path[:200]} here")
    rest = body.strip()
    if not rest.startswith(b"{") or not rest.endswith(b"}"):
        return f.InvalidRequest("the body is not a JSON object")
    streamed = match["method"] == "streamGenerateContent"
    head = b'{"model":%b,"stream":%b' % (
        msgspec.json.encode(match["model"]),
        b"true" if streamed else b"false",
    )
    inner = rest[1:].lstrip()
    joined = head + (b"" if inner == b"}" else b",") + inner
    return Asked(joined, sse="alt=sse" in query.split("&"))
