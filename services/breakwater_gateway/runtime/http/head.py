"""A request's head: its names folded, its target, and what it says of its length. Told, not read."""

from collections.abc import Iterable, Mapping
from typing import Final
from urllib.parse import unquote_to_bytes

import httptools


class Refused(Exception):
    """The request is turned away: its status, and what is wrong with it in a sentence."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


_NAMES: Final = {
    spelling.encode(): name
    for name in [
        "accept",
        "accept-encoding",
        "accept-language",
        "api-key",
        "authorization",
        "connection",
        "content-length",
        "content-type",
        "cookie",
        "expect",
        "host",
        "origin",
        "referer",
        "traceparent",
        "transfer-encoding",
        "user-agent",
        "x-api-key",
        "x-request-id",
        "x-stainless-arch",
        "x-stainless-async",
        "x-stainless-lang",
        "x-stainless-os",
        "x-stainless-package-version",
        "x-stainless-raw-response",
        "x-stainless-read-timeout",
        "x-stainless-retry-count",
        "x-stainless-runtime",
        "x-stainless-runtime-version",
    ]
    for spelling in (name, name.title())
}
"""Usual names in their usual spellings, to spare most of the folding."""


def fold(pairs: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Lower-case names; what is repeated is joined by `, `."""
    headers: dict[str, str] = {}
    for name, value in pairs:
        key = _NAMES.get(name) or name.decode("latin-1").lower()
        if key in headers:
            headers[key] += ", " + value.decode("latin-1")
        else:
            headers[key] = value.decode("latin-1")
    return headers


def target(url: bytes) -> tuple[str, str]:
    """Path and query from origin-form, absolute-form or `*` (RFC 9112, 3.2). Raises `Refused`."""
    if not url.startswith(b"/") and url != b"*":
        try:
            parsed = httptools.parse_url(url)
        except httptools.HttpParserInvalidURLError:
            raise Refused(400, "The request's target is not a URL.") from None
        if parsed.host is None:
            raise Refused(400, "The request's target is not a URL.")
        url = (parsed.path or b"/") + (b"?" + parsed.query if parsed.query else b"")
    raw, _, rest = url.partition(b"?")
    rest, _, _ = rest.partition(b"#")
    if b"%" in raw:
        raw = unquote_to_bytes(raw)
    try:
        path, query = raw.decode(), rest.decode()
    except UnicodeDecodeError:
        raise Refused(400, "The request's path is not UTF-8.") from None
    if not path.isprintable() and any(c < " " or c == "\x7f" for c in path):
        raise Refused(400, "The request's path holds control characters.")
    return path, query


def check_host(headers: Mapping[str, str], *, old: bool) -> None:
    """Raises `Refused` unless there is one; `old`: an HTTP/1.0 client, which needs none."""
    host = headers.get("host")
    if (host is None and not old) or (host is not None and "," in host):
        raise Refused(400, "The request must have one Host header.")


def has_body(headers: Mapping[str, str], *, old: bool, body_bytes: int) -> bool:
    """Whether one follows. Raises `Refused` on a length that is ambiguous or above `body_bytes`."""
    if "transfer-encoding" in headers:
        if "content-length" in headers or old:
            raise Refused(
                400, "The request's length is ambiguous: Transfer-Encoding must stand alone."
            )
        if headers["transfer-encoding"].strip().lower() != "chunked":
            raise Refused(501, "Of transfer codings, only chunked is known.")
        return True
    if "content-length" in headers:
        # The parser has checked that it is a number.
        if int(headers["content-length"]) > body_bytes:
            raise body_too_large(body_bytes)
        return True
    return False


def body_too_large(body_bytes: int) -> Refused:
    return Refused(413, f"The request's body is larger than {body_bytes} bytes.")


def head_too_large(head_bytes: int, headers: int) -> Refused:
    return Refused(
        431, f"The request's head is larger than {head_bytes} bytes or {headers} headers."
    )
