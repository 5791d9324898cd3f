"""`application/vnd.amazon.eventstream`: an incremental parser and a writer of its binary frames.

A frame is: total length u32, headers length u32, CRC-32 of these 8 bytes, headers, payload, CRC-32 of all
before it; big endian. A header is: name length u8, name, value type u8, value. Source: AWS, "Amazon
Transcribe: event stream encoding" and the smithy specification "Amazon Event Stream".
"""

import struct
from collections.abc import Mapping
from typing import Final
from zlib import crc32

from msgspec import Struct

from breakwater_gateway.worker.wire.neutral import EVENT_BYTES_MAX

HEADERS_BYTES_MAX: Final = 128 * 1024
"""The specification's bound on the headers of one frame."""

_PRELUDE: Final = struct.Struct(">III")
_CRC: Final = struct.Struct(">I")
_LENGTHS: Final = struct.Struct(">II")
_FRAME_BYTES_MIN: Final = 16
_STRING: Final = 7
_CACHE_MAX: Final = 64
_CACHED_BYTES_MAX: Final = 1024

HeaderValue = str | bytes | int | bool


class Frame(Struct, frozen=True, gc=False):
    headers: Mapping[str, HeaderValue]
    """Not to be changed: frames with the same header bytes share it."""
    payload: bytes

    def text(self, name: str) -> str:
        """A header's string; empty where there is none."""
        value = self.headers.get(name)
        return value if isinstance(value, str) else ""


class FrameParser:
    """Feed it chunks as they come; it holds at most one unfinished frame of `limit` bytes.

    `error` says what was wrong with the first bad frame, and is empty until then: the frames before it were
    given out, nothing after it is. A length is believed only after its checksum was.
    """

    __slots__ = ("_cache", "_held", "_limit", "_need", "error")

    def __init__(self, limit: int = EVENT_BYTES_MAX) -> None:
        self._limit = limit
        self._held = bytearray()
        self._need = _PRELUDE.size
        """Bytes held before anything more can be said."""
        self._cache: dict[bytes, dict[str, HeaderValue]] = {}
        self.error = ""

    @property
    def pending(self) -> bool:
        """The stream, if it ended here, would end within a frame."""
        return bool(self._held)

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that `data` completes."""
        frames: list[Frame] = []
        if self.error:
            return frames
        if self._held:
            self._held += data
            if len(self._held) < self._need:
                return frames
            data = bytes(self._held)
            self._held.clear()
        at = 0
        size = len(data)
        while size - at >= _PRELUDE.size:
            total, headers_size, checksum = _PRELUDE.unpack_from(data, at)
            self.error = self._fault(data, at, total, headers_size, checksum)
            if self.error:
                return frames
            if size - at < total:
                self._need = total
                self._held += data[at:]
                return frames
            end = at + total
            body_at = at + _PRELUDE.size + headers_size
            if crc32(data[at : end - 4]) != _CRC.unpack_from(data, end - 4)[0]:
                self.error = "a frame of the stream fails its checksum"
                return frames
            headers = self._headers(data[at + _PRELUDE.size : body_at])
            if headers is None:
                self.error = "a frame of the stream has headers of no known form"
                return frames
            frames.append(Frame(headers, data[body_at : end - 4]))
            at = end
        self._need = _PRELUDE.size
        self._held += data[at:]
        return frames

    def _fault(self, data: bytes, at: int, total: int, headers_size: int, checksum: int) -> str:
        if crc32(data[at : at + 8]) != checksum:
            return "the provider's answer is not the event stream that its API promises"
        if total > self._limit:
            return f"a frame of the stream exceeds {self._limit} bytes"
        if total < _FRAME_BYTES_MIN or headers_size > min(
            total - _FRAME_BYTES_MIN, HEADERS_BYTES_MAX
        ):
            return "a frame of the stream has impossible lengths"
        return ""

    def _headers(self, data: bytes) -> dict[str, HeaderValue] | None:
        known = self._cache.get(data)
        if known is None:
            known = parse_headers(data)
            small = len(data) <= _CACHED_BYTES_MAX and len(self._cache) < _CACHE_MAX
            if known is not None and small:
                self._cache[data] = known
        return known


_FIXED: Final = {2: ">b", 3: ">h", 4: ">i", 5: ">q", 8: ">q"}
"""Value types that are integers: byte, short, integer, long, and a timestamp in milliseconds."""


def parse_headers(data: bytes) -> dict[str, HeaderValue] | None:
    """A frame's header block; None when it is malformed. A UUID is its 16 bytes."""
    headers: dict[str, HeaderValue] = {}
    at = 0
    try:
        while at < len(data):
            name_size = data[at]
            at += 1
            name = data[at : at + name_size].decode()
            at += name_size
            kind = data[at]
            at += 1
            value: HeaderValue
            if kind in {0, 1}:
                value = kind == 0
                size = 0
            elif kind in _FIXED:
                value = int(struct.unpack_from(_FIXED[kind], data, at)[0])
                size = struct.calcsize(_FIXED[kind])
            elif kind in {6, _STRING}:
                (size,) = struct.unpack_from(">H", data, at)
                at += 2
                chunk = data[at : at + size]
                value = chunk.decode() if kind == _STRING else chunk
            elif kind == 9:
                size = 16
                value = data[at : at + size]
            else:
                return None
            at += size
            if at > len(data) or not name:
                return None
            headers[name] = value
    except (IndexError, struct.error, UnicodeDecodeError):
        return None
    return headers


def encode_frame(headers: Mapping[str, str], payload: bytes) -> bytes:
    """One frame with string headers. Raises ValueError for a name or value longer than the form can say."""
    block = bytearray()
    for name, value in headers.items():
        key, said = name.encode(), value.encode()
        if not 0 < len(key) < 256 or len(said) > 0x7FFF:
            raise ValueError(f"the header {name!r} does not fit")
        block += bytes((len(key),)) + key + bytes((_STRING,)) + struct.pack(">H", len(said)) + said
    if len(block) > HEADERS_BYTES_MAX:
        raise ValueError("the headers do not fit")
    lengths = _LENGTHS.pack(_FRAME_BYTES_MIN + len(block) + len(payload), len(block))
    frame = lengths + _CRC.pack(crc32(lengths)) + bytes(block) + payload
    return frame + _CRC.pack(crc32(frame))


def encode_event(name: str, payload: bytes) -> bytes:
    """An event of a Bedrock stream, its headers in the order the service sends them."""
    return encode_frame(
        {":event-type": name, ":content-type": "application/json", ":message-type": "event"},
        payload,
    )


def encode_exception(name: str, payload: bytes) -> bytes:
    """A modelled exception within a Bedrock stream, e.g. `throttlingException`."""
    return encode_frame(
        {
            ":exception-type": name,
            ":content-type": "application/json",
            ":message-type": "exception",
        },
        payload,
    )
