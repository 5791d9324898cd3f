"""Operators' limits, told to the routers: in the bucket `bw_limits`, one entry a line of the books.

The log is what counts; this copies what it says. Whoever takes over compares all of it.
"""

from hashlib import blake2b
from typing import Final

import msgspec

from breakwater_gateway.ledger.book import Book
from breakwater_gateway.runtime.bus import Entry, Store
from breakwater_protocol.ledger import OperatorLimit, Unit, partition_token

Place = tuple[str, Unit, str]
"""Account, unit and period of a line."""

_ENCODER: Final = msgspec.json.Encoder()


def limit_key(partition: int, place: Place) -> str:
    """Names may be longer than a key: their digest stands for them."""
    digest = blake2b(msgspec.json.encode(place), digest_size=16).hexdigest()
    return f"{partition_token(partition)}.{digest}"


async def tell_limit(store: Store, partition: int, book: Book, place: Place) -> None:
    """As the book has it now. Raises `BusError`."""
    line = book.index.get(place)
    key = limit_key(partition, place)
    if line is None or line.override is None:
        await store.delete(key)
    else:
        await store.put(key, _value(place, line.override))


async def tell_limits(store: Store, partition: int, book: Book) -> None:
    """All of a partition's: what is missing or wrong is put right. Raises `BusError`."""
    wanted: dict[str, bytes] = {}
    for line in list(book.lines.values()):
        if line.override is not None:
            place = (line.account, line.unit, line.spec)
            wanted[limit_key(partition, place)] = _value(place, line.override)
    found: dict[str, bytes | None] = {}

    def see(entry: Entry) -> None:
        found[entry.key] = entry.value

    await store.load(partition_token(partition), see)
    for key, value in wanted.items():
        if found.get(key) != value:
            await store.put(key, value)
    for key in found.keys() - wanted.keys():
        await store.delete(key)


def _value(place: Place, hard: int) -> bytes:
    return _ENCODER.encode(OperatorLimit(*place, hard))
