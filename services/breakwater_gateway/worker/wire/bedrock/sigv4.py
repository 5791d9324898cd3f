"""AWS Signature Version 4, for requests whose body's hash is known: pure, given the time.

Source: AWS General Reference, "Signing AWS API requests" (create a signed request), and its test suite.
"""

import hashlib
import hmac
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final
from urllib.parse import quote

from msgspec import Struct

ALGORITHM: Final = "AWS4-HMAC-SHA256"
SERVICE: Final = "bedrock"
"""The signing name of `bedrock-runtime` too."""

_UNRESERVED: Final = "-_.~"
_SPACES: Final = re.compile(r" {2,}")
_REGION: Final = re.compile(
    r"^bedrock(?:-[a-z-]{1,40})?\.(?P<region>[a-z]{2}(?:-[a-z]{1,20}){1,3}-[0-9]{1,2})\."
)


class Credentials(Struct, frozen=True):
    access_key: str
    secret_key: str
    session_token: str = ""

    def __repr__(self) -> str:
        return f"Credentials(access_key={self.access_key!r}, …)"


def body_hash(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def region_of(host: str) -> str:
    """The region that a Bedrock endpoint's name tells; empty for any other host."""
    found = _REGION.match(host.lower())
    return found["region"] if found else ""


def sign(
    credentials: Credentials,
    *,
    method: str,
    path: str,
    headers: Iterable[tuple[str, str]],
    body_sha256: str,
    region: str,
    now: float,
    query: str = "",
    service: str = SERVICE,
) -> tuple[tuple[str, str], ...]:
    """The headers to add: `x-amz-date`, `x-amz-security-token` where there is one, `authorization`.

    `path` and `query` are as sent, escapes and all; `headers` are all that must not change on the way, the
    `host` among them (intermediaries may add others). `now` is Unix time; AWS allows five minutes of skew.
    """
    stamp = datetime.fromtimestamp(now, UTC).strftime("%Y%m%dT%H%M%SZ")
    added = [("x-amz-date", stamp)]
    if credentials.session_token:
        added.append(("x-amz-security-token", credentials.session_token))
    names, canonical = _canonical_headers((*headers, *added))
    request = "\n".join(
        (
            method.upper(),
            _canonical_path(path),
            _canonical_query(query),
            canonical,
            names,
            body_sha256,
        )
    )
    scope = f"{stamp[:8]}/{region}/{service}/aws4_request"
    to_sign = "\n".join((ALGORITHM, stamp, scope, body_hash(request.encode())))
    key = signing_key(credentials.secret_key, day=stamp[:8], region=region, service=service)
    signature = hmac.new(key, to_sign.encode(), hashlib.sha256).hexdigest()
    authorization = (
        f"{ALGORITHM} Credential={credentials.access_key}/{scope}, "
        f"SignedHeaders={names}, Signature={signature}"
    )
    return (*added, ("authorization", authorization))


def signing_key(secret_key: str, *, day: str, region: str, service: str = SERVICE) -> bytes:
    """The key of one day (`YYYYMMDD`), region and service."""
    key = f"AWS4{secret_key}".encode()
    for step in (day, region, service, "aws4_request"):
        key = hmac.digest(key, step.encode(), "sha256")
    return key


def _canonical_path(path: str) -> str:
    """Every service but S3 escapes the path once more: `%3A` of a model's id becomes `%253A`."""
    segments: list[str] = []
    for segment in path.split("/"):
        if segment == "..":
            if segments:
                segments.pop()
        elif segment not in {"", "."}:
            segments.append(segment)
    trailing = "/" if segments and path.endswith("/") else ""
    return quote("/" + "/".join(segments) + trailing, safe="/" + _UNRESERVED)


def _canonical_query(query: str) -> str:
    """Pairs by name, then value. They are escaped as sent."""
    if not query:
        return ""
    pairs = [pair.partition("=") for pair in query.split("&") if pair]
    return "&".join(f"{name}={value}" for name, _, value in sorted(pairs))


def _canonical_headers(headers: Iterable[tuple[str, str]]) -> tuple[str, str]:
    """The signed names, and the lines, by name; a header sent twice is one line."""
    values: dict[str, list[str]] = {}
    for name, value in headers:
        values.setdefault(name.lower().strip(), []).append(_SPACES.sub(" ", value.strip()))
    lines = "".join(f"{name}:{','.join(values[name])}\n" for name in sorted(values))
    return ";".join(sorted(values)), lines
