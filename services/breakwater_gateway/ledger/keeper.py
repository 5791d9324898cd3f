"""Where snapshots are kept: in the bucket `bw_ledger`, in pieces that fit into messages.

The pieces of a partition have two places in turn; the head, written last, says in which of them a whole
snapshot is.
"""

from typing import Final

import msgspec
from msgspec import Struct

from breakwater_gateway.ledger.book import Book
from breakwater_gateway.ledger.snapshot import BadSnapshot, decode_snapshot
from breakwater_gateway.runtime.bus import Store
from breakwater_protocol.ledger import partition_token

LEDGER_BUCKET: Final = "bw_ledger"
PIECE_BYTES: Final = 2 * 1024 * 1024


class Head(Struct, frozen=True):
    seq: int
    """Of the last record in the snapshot."""
    place: int
    pieces: int


_HEAD: Final = msgspec.json.Decoder(Head)


async def read_head(store: Store, partition: int) -> Head | None:
    entry = await store.get(f"{partition_token(partition)}.head")
    if entry is None or entry.value is None:
        return None
    try:
        return _HEAD.decode(entry.value)
    except msgspec.MsgspecError as error:
        raise BadSnapshot(f"the head of partition {partition}: {error}") from None


async def save_snapshot(store: Store, partition: int, data: bytes, *, seq: int) -> None:
    token = partition_token(partition)
    last = await read_head(store, partition)
    place = 0 if last is None else 1 - last.place
    pieces = [data[at : at + PIECE_BYTES] for at in range(0, len(data), PIECE_BYTES)]
    for number, piece in enumerate(pieces):
        await store.put(f"{token}.{place}.{number}", piece)
    head = Head(seq=seq, place=place, pieces=len(pieces))
    await store.put(f"{token}.head", msgspec.json.encode(head))


async def load_snapshot(store: Store, partition: int) -> tuple[Book, int] | None:
    """The book, and the sequence of the last record in it. Raises `BadSnapshot`."""
    head = await read_head(store, partition)
    if head is None:
        return None
    pieces = []
    for number in range(head.pieces):
        entry = await store.get(f"{partition_token(partition)}.{head.place}.{number}")
        if entry is None or entry.value is None:
            raise BadSnapshot(f"piece {number} of partition {partition} is not there")
        pieces.append(entry.value)
    return decode_snapshot(b"".join(pieces), partition=partition)
