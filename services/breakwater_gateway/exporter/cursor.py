"""How far the stream of events is exported, as the bucket keeps it."""

from typing import Final

import msgspec
from msgspec import Struct

STREAM: Final = "EVT"
BUCKET: Final = "bw_export"
KEY: Final = "traces"


class Cursor(Struct, frozen=True):
    after: int
    """Reading goes on behind this sequence: calls whose request has not ended are read again."""
    done: int
    """What events up to this one made was sent."""


_DECODER: Final = msgspec.json.Decoder(Cursor)


def decode(data: bytes) -> Cursor:
    """Raises `msgspec.MsgspecError`."""
    return _DECODER.decode(data)


def encode(cursor: Cursor) -> bytes:
    return msgspec.json.encode(cursor)
