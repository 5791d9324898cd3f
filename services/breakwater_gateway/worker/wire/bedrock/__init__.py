"""Amazon Bedrock's dialect: Converse and ConverseStream, signed with Signature Version 4.

`sigv4` signs a call, `eventstream` reads and writes frames, `invoke` unwraps InvokeModel's stream.
"""

from breakwater_gateway.worker.wire.bedrock.answer import decode_answer
from breakwater_gateway.worker.wire.bedrock.embeddings import decode_embeddings, encode_embeddings
from breakwater_gateway.worker.wire.bedrock.errors import classify
from breakwater_gateway.worker.wire.bedrock.request import PATHS, decode_request, encode_request
from breakwater_gateway.worker.wire.bedrock.stream import StreamDecoder
from breakwater_gateway.worker.wire.bedrock.usage import usage

__all__ = [
    "PATHS",
    "StreamDecoder",
    "classify",
    "decode_answer",
    "decode_embeddings",
    "decode_request",
    "encode_embeddings",
    "encode_request",
    "usage",
]
