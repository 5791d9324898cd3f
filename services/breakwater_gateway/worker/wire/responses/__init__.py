"""OpenAI's Responses API (`POST /v1/responses`), spoken by callers and by providers.

What keeps state at the provider (`previous_response_id`, `conversation`, `background`, prompt templates)
stays with providers of this dialect: `refusal` says why a request must not go to another.
"""

from breakwater_gateway.worker.wire.responses.answer import decode_answer, encode_answer, usage
from breakwater_gateway.worker.wire.responses.errors import classify
from breakwater_gateway.worker.wire.responses.request import (
    PATHS,
    decode_request,
    encode_request,
    refusal,
)
from breakwater_gateway.worker.wire.responses.stream import StreamDecoder
from breakwater_gateway.worker.wire.responses.stream_encoder import StreamEncoder

__all__ = [
    "PATHS",
    "StreamDecoder",
    "StreamEncoder",
    "classify",
    "decode_answer",
    "decode_request",
    "encode_answer",
    "encode_request",
    "refusal",
    "usage",
]
