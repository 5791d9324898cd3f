"""Request ids that callers give: the same id twice runs once, and never stands for two bodies.

Whoever repeats a request that it lost sends it again under its id, and is given the answer that was made, or
the rest of the one that is being made. Ids that the gateway or its client made up are not among these.
"""

import hashlib
from collections import OrderedDict
from typing import Final

from breakwater_gateway.cache.key import Key
from breakwater_protocol import failures as f
from breakwater_protocol import headers as h

KEPT_S: Final = 600.0
"""How long an id stands for its body, and its answer is kept."""
IDS_MAX: Final = 20_000
MARK: Final = "#"
"""Between an id and the number of a repetition in flight; no caller's id has it."""

Who = tuple[str, str, str]
"""Tenant, virtual key and user: whose id it is."""


class Ids:
    """Remembers which body each id stands for. `now` is monotonic seconds."""

    def __init__(self) -> None:
        self._bodies: OrderedDict[tuple[Who, str], tuple[bytes, float]] = OrderedDict()

    def stands_for(self, who: Who, id_: str, body: bytes, now: float) -> bool:
        """False when the id stands for another body already; else it stands for this one from now on."""
        place, digest = (who, id_), digest_of(body)
        known = self._bodies.get(place)
        if known is not None and now < known[1] and known[0] != digest:
            return False
        self._bodies[place] = (digest, now + KEPT_S)
        self._bodies.move_to_end(place)
        while len(self._bodies) > IDS_MAX:
            self._bodies.popitem(last=False)
        return True


def key_of(who: Who, id_: str, body: bytes) -> Key:
    """Under which the answer to this id is shared and kept. The body is in it: whatever is remembered or
    forgotten elsewhere, no answer to another body is ever given."""
    of = hashlib.blake2b(place_of(who, id_).encode(), digest_size=32)
    of.update(body)
    digest = of.hexdigest()
    return Key(digest=digest, partition=digest, temperature=0.0, tools=True, text="", once=True)


def another_body() -> f.InvalidRequest:
    return f.InvalidRequest(
        "this request id stands for another body: give each request an id of its own",
        param=h.REQUEST_ID,
    )


def shown(request_id: str) -> str:
    """The id as the caller gave it."""
    return request_id.partition(MARK)[0]


def place_of(who: Who, id_: str) -> str:
    """64 hexadecimal digits for an id of somebody."""
    of = hashlib.blake2b(b"bw-once", digest_size=32)
    for part in (*who, id_):
        raw = part.encode("utf-8", "surrogatepass")
        of.update(len(raw).to_bytes(4, "big") + raw)
    return of.hexdigest()


def digest_of(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=16).digest()
