"""Real exchanges to replay, where they are at hand: a folder beside the repository, never a part of it.

`BREAKWATER_SHARED` names the folder; its `recordings/<provider>.jsonl.xz` hold one exchange a line.
"""

import base64
import binascii
import lzma
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
import pytest
from msgspec import Raw, Struct

SHARED: Final = Path(
    os.environ.get("BREAKWATER_SHARED", Path(__file__).parents[2].parent / "shared")
)
RECORDINGS: Final = SHARED / "recordings"

needs_recordings = pytest.mark.skipif(
    not RECORDINGS.is_dir(),
    reason="no recordings: set BREAKWATER_SHARED to the folder that holds recordings/",
)
"""Marks tests that replay recordings."""


class _Side(Struct):
    headers: dict[str, str] = {}
    body_kind: str = "none"
    body: Raw = Raw(b"null")
    method: str = ""
    url: str = ""
    status: int = 0


class _Line(Struct):
    id: str
    provider: str
    api: str
    stream: bool
    request: _Side
    response: _Side


class Row(Struct, frozen=True):
    """One exchange. Bodies are the bytes that were on the wire; header names are in lower case."""

    id: str
    provider: str
    """Of the file's name."""
    api: str
    stream: bool
    method: str
    url: str
    request_headers: dict[str, str]
    request_body: bytes
    status: int
    headers: dict[str, str]
    body: bytes


_line: Final = msgspec.json.Decoder(_Line).decode


def rows(provider_glob: str, api: str | None = None, stream: bool | None = None) -> Iterator[Row]:
    """Exchanges of the files `<provider_glob>.jsonl.xz`, of one API and with or without a stream."""
    for path in sorted(RECORDINGS.glob(f"{provider_glob}.jsonl.xz")):
        with lzma.open(path) as lines:
            for text in lines:
                line = _line(text)
                if (api is None or line.api == api) and stream in {None, line.stream}:
                    yield _row(path.name.partition(".")[0], line)


def _row(provider: str, line: _Line) -> Row:
    return Row(
        id=line.id,
        provider=provider,
        api=line.api,
        stream=line.stream,
        method=line.request.method,
        url=line.request.url,
        request_headers={k.lower(): v for k, v in line.request.headers.items()},
        request_body=_bytes(line.request),
        status=line.response.status,
        headers={k.lower(): v for k, v in line.response.headers.items()},
        body=_bytes(line.response),
    )


def _bytes(side: _Side) -> bytes:
    if side.body_kind == "json":
        return bytes(side.body)
    if side.body_kind == "none":
        return b""
    text = msgspec.json.decode(side.body, type=str)
    if side.body_kind == "b64":
        return base64.b64decode(text)
    return _recorders_base64(text) or text.encode()


def _recorders_base64(text: str) -> bytes | None:
    """Some recorders keep every body as base64, without saying so."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return data if data.lstrip().startswith((b"{", b"[", b"event:", b"data:", b":")) else None
