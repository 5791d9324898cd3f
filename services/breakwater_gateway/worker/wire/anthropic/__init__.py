"""Anthropic's Messages API, which callers speak and providers speak: Anthropic, and Claude on Vertex and Bedrock.

`decode_request` and `encode_answer` / `StreamEncoder` / `encode_error` face callers; `encode_request`,
`decode_answer`, `StreamDecoder` and `classify` face providers.
"""

from breakwater_gateway.worker.wire.anthropic.answer import (
    decode_answer,
    decode_count_tokens,
    encode_answer,
    encode_count_tokens_answer,
)
from breakwater_gateway.worker.wire.anthropic.blocks import usage
from breakwater_gateway.worker.wire.anthropic.errors import (
    classify,
    encode_error,
    encode_stream_error,
)
from breakwater_gateway.worker.wire.anthropic.request import decode_request
from breakwater_gateway.worker.wire.anthropic.stream import StreamDecoder
from breakwater_gateway.worker.wire.anthropic.stream_encoder import StreamEncoder
from breakwater_gateway.worker.wire.anthropic.translate import (
    PATHS,
    encode_count_tokens,
    encode_request,
)

__all__ = [
    "PATHS",
    "StreamDecoder",
    "StreamEncoder",
    "classify",
    "decode_answer",
    "decode_count_tokens",
    "decode_request",
    "encode_answer",
    "encode_count_tokens",
    "encode_count_tokens_answer",
    "encode_error",
    "encode_request",
    "encode_stream_error",
    "usage",
]
