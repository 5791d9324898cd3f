"""Gemini's HTTP surface: the model and the method are in the path, so they join the body for the bus.

Embeddings become OpenAI's on the way in and Gemini's again on the way out, since that is what the bus
carries. Source: Gemini API reference, "generateContent", "streamGenerateContent", "embedContent". Pure.
"""

import re
from collections.abc import Callable
from typing import Final

import msgspec
from msgspec import Struct

from breakwater_gateway.worker.wire import gemini, neutral, openai_chat
from breakwater_gateway.worker.wire.bad_request import BadRequest
from breakwater_protocol import failures as f

PATH: Final = re.compile(r"/(?:v1|v1beta|v1alpha)/(?:models|tunedModels)/.+:[A-Za-z]+\Z")
_GENERATE: Final = frozenset({"generateContent", "streamGenerateContent"})
_EMBED: Final = frozenset({"embedContent", "batchEmbedContents"})


class Asked(Struct, frozen=True):
    """`api` and `body` as the bus has them; `sse` as a stream is to be framed."""

    api: str
    body: bytes
    sse: bool = True
    back: Callable[[bytes], bytes] | None = None
    """Turns a whole answer on the bus into Gemini's."""


def read(path: str, query: str, body: bytes) -> Asked | f.InvalidRequest:
    found = gemini.method(path)
    if found is None or found.verb not in _GENERATE | _EMBED:
        verb = path.rpartition(":")[2][:60]
        return f.InvalidRequest(
            f"{verb} is not served: try generateContent, streamGenerateContent, embedContent "
            "or batchEmbedContents"
        )
    if found.verb in _EMBED:
        return _embeddings(path, found.model, body)
    rest = body.strip()
    if not rest.startswith(b"{") or not rest.endswith(b"}"):
        return f.InvalidRequest("the body is not a JSON object")
    streamed = found.verb == "streamGenerateContent"
    # Last, so that they win over fields of the same name in the body.
    ours = b'"model":%b,"stream":%b}' % (
        msgspec.json.encode(found.model),
        b"true" if streamed else b"false",
    )
    inner = rest[:-1].rstrip()
    joined = inner + (b"" if inner == b"{" else b",") + ours
    return Asked("generate", joined, sse="alt=sse" in query.split("&"))


def _embeddings(path: str, model: str, body: bytes) -> Asked | f.InvalidRequest:
    try:
        request = gemini.decode_embeddings_request(body, path=path)
    except BadRequest as error:
        return f.InvalidRequest(error.message, param=error.param)
    call = openai_chat.encode_embeddings(request, neutral.Target(model))

    def back(answer: bytes) -> bytes:
        decoded = openai_chat.decode_embeddings(answer)
        if not isinstance(decoded, neutral.EmbeddingsAnswer):
            raise TypeError("the gateway's own embeddings answer is not one")
        return gemini.encode_embeddings_answer(decoded, model=model, path=path)

    return Asked("embeddings", call.body, back=back)
