"""A request's head, rendered once: what a deployment's calls have in common."""

import base64
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

import httpx

if TYPE_CHECKING:
    from breakwater_gateway.worker.http.pool import Pool

Headers = Iterable[tuple[str, str]]
Field = tuple[bytes, bytes]
"""A header as it is sent: its name lower-case, checked."""

_TOKEN: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
# Framing is ours: a header that speaks of it could make the other side see two requests.
_OURS: Final = frozenset(
    {b"content-length", b"transfer-encoding", b"connection", b"host", b"upgrade", b"te", b"trailer"}
)


class Target:
    """Where a request goes, taken apart."""

    __slots__ = ("authority", "host", "path", "port", "scheme", "url", "userinfo")

    def __init__(self, url: str | httpx.URL) -> None:
        """Raises ValueError unless it is an absolute http or https URL."""
        try:
            self.url = parsed = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise ValueError(f"not a URL: {error}") from error
        if parsed.scheme not in {"http", "https"} or not parsed.host:
            raise ValueError("an absolute http or https URL is needed")
        self.scheme = parsed.scheme
        self.host = parsed.raw_host.decode("ascii").strip("[]")
        self.port = parsed.port or (443 if self.scheme == "https" else 80)
        self.authority = parsed.netloc
        self.path = parsed.raw_path or b"/"
        self.userinfo = parsed.userinfo


def rendered_header(name: str, value: str) -> Field:
    """Raises ValueError where the header could not be sent safely; the value is not repeated."""
    raw_name = name.encode("latin-1", "replace").lower()
    if not _TOKEN.fullmatch(raw_name):
        raise ValueError(f"not a header name: {name[:64]!r}")
    if raw_name in _OURS:
        raise ValueError(f"the header {name} is set by the client itself")
    try:
        raw_value = value.strip(" \t").encode("latin-1")
    except UnicodeEncodeError:
        raise ValueError(f"the value of {name} has characters outside latin-1") from None
    if _CONTROL.search(raw_value):
        raise ValueError(f"the value of {name} has control characters")
    return raw_name, raw_value


class Prepared:
    """One method, URL and set of headers, ready to be sent any number of times by its client."""

    __slots__ = (
        "fields",
        "h2_fields",
        "head",
        "method",
        "pool",
        "sends_length",
        "target",
    )

    def __init__(
        self,
        *,
        method: str,
        target: Target,
        headers: Headers,
        pool: "Pool | None",
        absolute: bool = False,
        proxy_header: bytes = b"",
    ) -> None:
        """`absolute`: the request line names the whole URL, as proxies want it (RFC 9112, 3.2.2);
        `proxy_header`: a line for the proxy alone.

        Raises ValueError if the method or a header is not fit to be sent.
        """
        self.target = target
        self.method = method
        self.pool = pool
        raw_method = method.encode("ascii", "replace")
        if not _TOKEN.fullmatch(raw_method) or raw_method == b"CONNECT":
            raise ValueError(f"not a method: {method[:64]!r}")
        self.sends_length = method not in {"GET", "HEAD", "OPTIONS", "TRACE", "DELETE"}
        """Even an empty body is announced (RFC 9110, 8.6)."""
        fields = [rendered_header(name, value) for name, value in headers]
        names = {name for name, _ in fields}
        if b"accept-encoding" not in names:
            fields.append((b"accept-encoding", b"identity"))
        if target.userinfo and b"authorization" not in names:
            user, _, password = target.userinfo.partition(b":")
            token = base64.b64encode(b"%b:%b" % (unquoted(user), unquoted(password)))
            fields.append((b"authorization", b"Basic " + token))
        self.fields = fields
        """Without host and framing."""
        self.h2_fields: list[Field] = [
            (b":method", raw_method),
            (b":scheme", target.scheme.encode("ascii")),
            (b":authority", target.authority),
            (b":path", target.path),
            *fields,
        ]
        full = b"http://" + target.authority + target.path if absolute else target.path
        self.head = b"%b %b HTTP/1.1\r\nhost: %b\r\n%b" % (
            raw_method,
            full,
            target.authority,
            b"".join([proxy_header, *(b"%b: %b\r\n" % field for field in fields)]),
        )


def unquoted(data: bytes) -> bytes:
    """Percent-decoded."""
    from urllib.parse import unquote_to_bytes

    return unquote_to_bytes(data)
