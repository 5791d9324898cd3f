"""InvokeModel's stream, whose events are the model's own: for models that are spoken to natively.

Each frame is a `chunk` of `{"bytes": base64 of JSON}`. Source: Amazon Bedrock API reference,
"InvokeModelWithResponseStream".
"""

import base64
import binascii
from typing import Final

import msgspec
from msgspec import Struct

from breakwater_gateway.worker.wire import neutral as n
from breakwater_gateway.worker.wire import objects as o
from breakwater_gateway.worker.wire.bedrock.errors import failure, from_frame
from breakwater_gateway.worker.wire.bedrock.eventstream import FrameParser
from breakwater_protocol import failures as f


class _Chunk(Struct):
    bytes: str


_chunk: Final = msgspec.json.Decoder(_Chunk).decode


class ChunkReader:
    """Takes the frames off. `failure` is what broke the stream, and nothing is given out after it."""

    __slots__ = ("_frames", "failure")

    def __init__(self) -> None:
        self._frames = FrameParser(n.EVENT_BYTES_MAX)
        self.failure: f.Failure | None = None

    @property
    def pending(self) -> bool:
        """The stream, if it ended here, would end within a frame."""
        return self._frames.pending

    def feed(self, data: bytes) -> list[bytes]:
        """The JSON of each event that `data` completes."""
        events: list[bytes] = []
        if self.failure is not None:
            return events
        for frame in self._frames.feed(data):
            kind = frame.text(":message-type")
            if kind == "exception":
                self.failure = from_frame(frame.text(":exception-type"), frame.payload)
                return events
            if kind == "error":
                message = frame.text(":error-message") or "the provider broke the stream off"
                self.failure = failure(200, frame.text(":error-code"), message, None)
                return events
            if frame.text(":event-type") != "chunk":
                continue
            try:
                events.append(base64.b64decode(_chunk(frame.payload).bytes, validate=True))
            except (*o.UNREADABLE, binascii.Error, ValueError):
                self.failure = f.MalformedAnswer(
                    "the provider's stream holds an event that is not the JSON its API promises",
                    provider_status=200,
                )
                return events
        if self._frames.error:
            self.failure = f.MalformedAnswer(self._frames.error, provider_status=200)
        return events
