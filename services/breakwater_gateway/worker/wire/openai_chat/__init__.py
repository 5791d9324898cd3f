"""Chat completions as OpenAI made them and some two hundred hosts speak them, to and from the neutral vocabulary.

Azure and Mistral are members with quirks of their own. What a host does differently is data: `quirks`.
`wire/openai.py` beside this package passes bodies through untouched where both ends speak this dialect.
"""

from breakwater_gateway.worker.wire.openai_chat.answer import decode_answer, encode_answer
from breakwater_gateway.worker.wire.openai_chat.embeddings import (
    decode_embeddings,
    decode_embeddings_request,
    encode_embeddings,
    encode_embeddings_answer,
)
from breakwater_gateway.worker.wire.openai_chat.errors import classify
from breakwater_gateway.worker.wire.openai_chat.quirks import QUIRKS, Quirks, by_provider
from breakwater_gateway.worker.wire.openai_chat.request import decode_request, encode_request
from breakwater_gateway.worker.wire.openai_chat.stream import StreamDecoder
from breakwater_gateway.worker.wire.openai_chat.stream_out import StreamEncoder
from breakwater_gateway.worker.wire.openai_chat.usage import usage

__all__ = [
    "QUIRKS",
    "Quirks",
    "StreamDecoder",
    "StreamEncoder",
    "by_provider",
    "classify",
    "decode_answer",
    "decode_embeddings",
    "decode_embeddings_request",
    "decode_request",
    "encode_answer",
    "encode_embeddings",
    "encode_embeddings_answer",
    "encode_request",
    "usage",
]
