"""Embeddings of Cohere's v2 API. Source: Cohere API reference, "Embed (v2)"."""

from typing import Final

import msgspec
from msgspec import Raw, Struct

from breakwater_gateway.worker.wire import neutral as n
from breakwater_gateway.worker.wire import objects as o
from breakwater_gateway.worker.wire.bad_request import BadRequest
from breakwater_gateway.worker.wire.cohere.answer import read_usage
from breakwater_gateway.worker.wire.cohere.errors import classify
from breakwater_gateway.worker.wire.cohere.request import PATHS
from breakwater_protocol import failures as f

TASK_DEFAULT: Final = "search_document"
"""`input_type`, which the API requires, where the caller named no task."""

_FLOATS: Final = Raw(b'["float"]')


def decode_embeddings_request(body: bytes, *, path: str = "") -> n.Embeddings:  # noqa: ARG001 - all dialects take `path`
    """A body of `POST /v2/embed`. Raises BadRequest; `inputs` and images are not read, and stay native."""
    given = o.Fields(body)
    model = given.need("model", given.text("model"))
    texts = given.texts("texts") or []
    request = n.Embeddings(
        dialect="cohere",
        model=model,
        inputs=[*texts],
        dimensions=given.whole("output_dimension"),
        task=given.text("input_type") or "",
    )
    return msgspec.structs.replace(request, extra=given.left)


def encode_embeddings(request: n.Embeddings, target: n.Target) -> n.Call:
    """The call to make. Raises BadRequest for lists of token ids, which the API does not take."""
    texts = [text for text in request.inputs if isinstance(text, str)]
    if len(texts) < len(request.inputs):
        raise BadRequest("This model's embeddings are of texts, not of token ids.", "input")
    dropped = o.Dropped()
    body: o.Body = {"model": target.model, "texts": texts}
    o.put(body, "output_dimension", request.dimensions)
    if request.dialect == "cohere":
        o.put(body, "input_type", request.task)
        body |= request.extra
    else:
        body |= {"input_type": request.task or TASK_DEFAULT, "embedding_types": _FLOATS}
        dropped.given(user=request.user)
        dropped.fields(request.extra)
    return n.Call(path=PATHS["embeddings"], body=o.encode(body), dropped=dropped.names)


class _Answer(Struct):
    embeddings: Raw = Raw(o.NULL)
    meta: Raw = Raw(o.NULL)


_answer: Final = msgspec.json.Decoder(_Answer).decode
_vectors: Final = msgspec.json.Decoder(list[list[float]]).decode


def decode_embeddings(body: bytes, *, status: int = 200) -> n.EmbeddingsAnswer | f.Failure:
    """The vectors, also of a v1 answer, whose `embeddings` are a list where no type was asked for."""
    if status >= 400:
        return classify(status, {}, body, now=0.0)
    try:
        answer = _answer(body)
        others = o.fields_of(body)
        vectors = _read(answer.embeddings)
    except o.UNREADABLE:
        return f.MalformedAnswer(o.not_json(body), provider_status=status)
    if not vectors:
        if "message" in others:
            return classify(status, {}, body, now=0.0)
        return f.MalformedAnswer("the provider's answer has no embeddings", provider_status=status)
    others.pop("embeddings", None)
    others.pop("texts", None)
    return n.EmbeddingsAnswer(
        model="", vectors=vectors, usage=read_usage(answer.meta), extra=others
    )


def _read(raw: Raw) -> list[list[float]]:
    if bytes(raw) == o.NULL:
        return []
    if bytes(raw)[:1] == b"{":
        by_type = o.fields_of(raw)
        return _vectors(by_type["float"]) if "float" in by_type else []
    return _vectors(raw)
