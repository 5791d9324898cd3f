"""Recordings: a folder of `<provider>.jsonl.xz` or `<provider>.jsonl`, one exchange a line.

A line is `{id, provider, api, stream, request, response}`; a side has `headers`, `body_kind` (`json`, `text`,
`b64` or `none`), `body`, and `method` and `url` or `status`.
"""

import base64
import binascii
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Raw, Struct


class _Side(Struct):
    headers: dict[str, str | list[str]] | None = None
    body_kind: str = "none"
    body: Raw = Raw(b"null")
    method: str = ""
    url: str = ""
    status: int = 0


class _Line(Struct):
    id: str
    api: str
    request: _Side
    response: _Side
    provider: str = ""
    stream: bool = False


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

    @property
    def path(self) -> str:
        """The URL without its query."""
        return self.url.partition("?")[0]


class Unreadable(ValueError):
    """A line that is no recording."""


SUFFIXES: Final = (".jsonl.xz", ".jsonl")

_line: Final = msgspec.json.Decoder(_Line).decode


def files(folder: Path) -> list[Path]:
    """The recordings of a folder, the largest first."""
    found = [path for suffix in SUFFIXES for path in folder.glob(f"*{suffix}")]
    return sorted(found, key=lambda path: (-path.stat().st_size, path.name))


def provider_of(path: Path) -> str:
    return path.name.partition(".jsonl")[0]


def lines(path: Path) -> Iterator[bytes]:
    """The lines of a file that hold something."""
    with lzma.open(path) if path.suffix == ".xz" else path.open("rb") as opened:
        for line in opened:
            if line.strip():
                yield line


def read(line: bytes, provider: str) -> Row:
    """One recording. Raises Unreadable."""
    try:
        found = _line(line)
        return Row(
            id=found.id,
            provider=provider,
            api=found.api,
            stream=found.stream,
            method=found.request.method,
            url=found.request.url,
            request_headers=_headers(found.request),
            request_body=_bytes(found.request),
            status=found.response.status,
            headers=_headers(found.response),
            body=_bytes(found.response),
        )
    except (msgspec.MsgspecError, UnicodeError, binascii.Error, RecursionError) as error:
        raise Unreadable(str(error)) from None


def rows(path: Path) -> Iterator[Row]:
    """All recordings of a file. Raises Unreadable."""
    provider = provider_of(path)
    for line in lines(path):
        yield read(line, provider)


def _headers(side: _Side) -> dict[str, str]:
    return {
        name.lower(): value if isinstance(value, str) else ", ".join(value)
        for name, value in (side.headers or {}).items()
    }


def _bytes(side: _Side) -> bytes:
    if side.body_kind == "none" or bytes(side.body) == b"null":
        return b""
    if side.body_kind == "json":
        return bytes(side.body)
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
