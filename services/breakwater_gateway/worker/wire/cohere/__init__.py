"""Cohere's dialect: chat (v2), its streams, and embeddings."""

from breakwater_gateway.worker.wire.cohere.answer import decode_answer, usage
from breakwater_gateway.worker.wire.cohere.embeddings import (
    decode_embeddings,
    decode_embeddings_request,
    encode_embeddings,
)
from breakwater_gateway.worker.wire.cohere.errors import classify
from breakwater_gateway.worker.wire.cohere.request import PATHS, decode_request, encode_request
from breakwater_gateway.worker.wire.cohere.stream import StreamDecoder

__all__ = [
    "PATHS",
    "StreamDecoder",
    "classify",
    "decode_answer",
    "decode_embeddings",
    "decode_embeddings_request",
    "decode_request",
    "encode_embeddings",
    "encode_request",
    "usage",
]
