"""Embeddings of Ollama's native API. Source: github.com/ollama/ollama, docs/api.md ("Generate embeddings")."""

from typing import Final

import msgspec
from msgspec import Raw, Struct

from breakwater_gateway.worker.wire import neutral as n
from breakwater_gateway.worker.wire import objects as o
from breakwater_gateway.worker.wire.bad_request import BadRequest
from breakwater_gateway.worker.wire.ollama.answer import read_usage
from breakwater_gateway.worker.wire.ollama.errors import classify
from breakwater_gateway.worker.wire.ollama.request import PATHS
from breakwater_protocol import failures as f

ONE_INPUT: Final = "input"
"""The `extra` field that keeps an input which was one string, not a list."""


def decode_embeddings_request(body: bytes, *, path: str = "") -> n.Embeddings:  # noqa: ARG001 - all dialects take `path`
    """A body of `POST /api/embed`. Raises BadRequest."""
    given = o.Fields(body)
    model = given.need("model", given.text("model"))
    raw = given.need(ONE_INPUT, given.left.get(ONE_INPUT))
    inputs: list[str]
    if o.is_text(raw):
        inputs = [given.text(ONE_INPUT) or ""]
        given.left[ONE_INPUT] = raw
    else:
        inputs = given.texts(ONE_INPUT) or []
    dimensions = given.whole("dimensions")
    return n.Embeddings(
        dialect="ollama", model=model, inputs=[*inputs], dimensions=dimensions, extra=given.left
    )


def encode_embeddings(request: n.Embeddings, target: n.Target) -> n.Call:
    """The call to make. Raises BadRequest for lists of token ids, which the API does not take."""
    texts = [text for text in request.inputs if isinstance(text, str)]
    if len(texts) < len(request.inputs):
        raise BadRequest("This model's embeddings are of texts, not of token ids.", "input")
    dropped = o.Dropped()
    body: o.Body = {"model": target.model, "input": texts}
    o.put(body, "dimensions", request.dimensions)
    if request.dialect == "ollama":
        body |= request.extra
    else:
        dropped.given(user=request.user, task=request.task)
        dropped.fields(request.extra)
    return n.Call(path=PATHS["embeddings"], body=o.encode(body), dropped=dropped.names)


class _Answer(Struct):
    model: str | None = None
    embeddings: list[list[float]] | None = None
    embedding: list[float] | None = None
    """Of the older `/api/embeddings`."""
    error: Raw = Raw(o.NULL)


_answer: Final = msgspec.json.Decoder(_Answer).decode

_KNOWN: Final = frozenset({"model", "embeddings", "embedding", "prompt_eval_count"})


def decode_embeddings(body: bytes, *, status: int = 200) -> n.EmbeddingsAnswer | f.Failure:
    if status >= 400:
        return classify(status, {}, body, now=0.0)
    try:
        answer = _answer(body)
        others = o.fields_of(body)
    except o.UNREADABLE:
        return f.MalformedAnswer(o.not_json(body), provider_status=status)
    if bytes(answer.error) != o.NULL:
        return classify(status, {}, body, now=0.0)
    vectors = answer.embeddings or ([answer.embedding] if answer.embedding else [])
    if not vectors:
        return f.MalformedAnswer("the provider's answer has no embeddings", provider_status=status)
    return n.EmbeddingsAnswer(
        model=answer.model or "",
        vectors=vectors,
        usage=read_usage(body),
        extra={name: raw for name, raw in others.items() if name not in _KNOWN},
    )
