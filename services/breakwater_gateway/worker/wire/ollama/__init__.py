"""Ollama's native dialect: `/api/chat`, its NDJSON streams, and `/api/embed`."""

from breakwater_gateway.worker.wire.ollama.answer import decode_answer, usage
from breakwater_gateway.worker.wire.ollama.embeddings import (
    decode_embeddings,
    decode_embeddings_request,
    encode_embeddings,
)
from breakwater_gateway.worker.wire.ollama.errors import classify
from breakwater_gateway.worker.wire.ollama.request import PATHS, decode_request, encode_request
from breakwater_gateway.worker.wire.ollama.stream import StreamDecoder

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
