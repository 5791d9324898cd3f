"""Header blocks as NATS has them on the wire (its ADR-4): the version line, a line a field, an empty line.

Every message of the request path has some, so both ways take one look at the block as a whole, and remember the
names that they have checked. What is out of the ordinary is left to whoever looks closer.
"""

from collections.abc import Mapping
from typing import Final

from breakwater_gateway.runtime.bus import BusError, headers_size

_FIRST: Final = b"NATS/1.0\r\n"
_LAST: Final = b"\r\n\r\n"
_KNOWN_MAX: Final = 1_024

_known: set[str] = set()
"""Names that were checked before."""


def _check(headers: Mapping[str, str]) -> None:
    headers_size(headers)
    if len(_known) > _KNOWN_MAX:
        _known.clear()
    _known.update(headers)


def write_headers(headers: Mapping[str, str]) -> bytes:
    """Raises `BusError` on what cannot be sent as a header."""
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    ends = len(headers)
    plain = lines.isascii() and "\0" not in lines
    if not (
        plain and lines.count("\n") == lines.count("\r") == ends and _known.issuperset(headers)
    ):
        _check(headers)
    return f"NATS/1.0\r\n{lines}\r\n".encode()


def read_headers(block: bytes) -> dict[str, str] | None:
    """The fields of an ordinary block in printable ASCII. None: a status of the server's, or another spelling
    than ours; nats-py has to see to it."""
    if not (block.startswith(_FIRST) and block.endswith(_LAST)):
        return None
    try:
        lines = block[len(_FIRST) : -len(_LAST)].decode("ascii").split("\r\n")
        found = dict([line.split(": ", 1) for line in lines])
        if not _known.issuperset(found):
            _check(found)
    except (ValueError, BusError):
        return None
    values = "".join(found.values())
    if not values.isprintable():
        return None
    # Space around a value is no part of it.
    if " " in values and any(value != value.strip() for value in found.values()):
        return None
    return found
