"""Google's dialect: generateContent of the Gemini API and of Vertex, in both directions.

What callers ask (`decode_request`) and what a provider is asked (`encode_request`), whole answers, streams
in both framings, embeddings, token counts and failures. Quirks of a target: see `translate`.
"""

from breakwater_gateway.worker.wire.gemini.answer import decode_answer, encode_answer, usage
from breakwater_gateway.worker.wire.gemini.embeddings import (
    decode_embeddings,
    decode_embeddings_request,
    encode_embeddings,
    encode_embeddings_answer,
)
from breakwater_gateway.worker.wire.gemini.errors import classify, encode_error
from breakwater_gateway.worker.wire.gemini.fields import canonical
from breakwater_gateway.worker.wire.gemini.request import Method, decode_request, method
from breakwater_gateway.worker.wire.gemini.stream import StreamDecoder
from breakwater_gateway.worker.wire.gemini.stream_encoder import StreamEncoder
from breakwater_gateway.worker.wire.gemini.tokens import (
    decode_count_tokens,
    encode_count_tokens,
    encode_count_tokens_answer,
)
from breakwater_gateway.worker.wire.gemini.translate import encode_request

__all__ = [
    "Method",
    "StreamDecoder",
    "StreamEncoder",
    "canonical",
    "classify",
    "decode_answer",
    "decode_count_tokens",
    "decode_embeddings",
    "decode_embeddings_request",
    "decode_request",
    "encode_answer",
    "encode_count_tokens",
    "encode_count_tokens_answer",
    "encode_embeddings",
    "encode_embeddings_answer",
    "encode_error",
    "encode_request",
    "method",
    "usage",
]
