"""Embeddings by InvokeModel: each family has a body of its own, and Amazon's take one text a call.

Sources: Amazon Bedrock user guide, "Amazon Titan Embeddings G1 - Text", "Cohere Embed models"; Amazon Nova
user guide, "Multimodal embeddings schema"; recorded traffic.
"""

from typing import Final
from urllib.parse import quote

import msgspec
from msgspec import Raw, Struct

from breakwater_gateway.worker.wire import neutral as n
from breakwater_gateway.worker.wire import objects as o
from breakwater_gateway.worker.wire.bad_request import BadRequest
from breakwater_gateway.worker.wire.bedrock.errors import classify
from breakwater_protocol import failures as f
from breakwater_protocol.chat import Usage

PATH: Final = "/model/{model}/invoke"

TASK_DEFAULT: Final = "search_document"
"""Cohere's `input_type`, which it requires, where the caller named no task."""


def encode_embeddings(request: n.Embeddings, target: n.Target) -> n.Call:
    """The call to make, not yet signed. Raises BadRequest for what the model cannot take.

    The quirk `family` (`titan`, `cohere` or `nova`) tells what an application profile's ARN hides.
    """
    dropped = o.Dropped()
    model = target.model.lower()
    family = str(target.quirks.get("family", "")) or next(
        (name for name in ("titan", "cohere", "nova") if name in model), ""
    )
    texts = texts_only(request)
    dropped.given(user=request.user)
    if request.dialect != "bedrock":
        dropped.fields(request.extra)
    body: o.Body
    if family == "cohere":
        body = {"texts": texts, "input_type": request.task or TASK_DEFAULT}
        body["embedding_types"] = ["float"]
        if "embed-v4" in model:
            o.put(body, "output_dimension", request.dimensions)
        else:
            dropped.given(dimensions=request.dimensions)
    elif family == "titan":
        body = {"inputText": _one(texts)}
        if "embed-text-v1" in model or "embed-g1" in model:
            dropped.given(dimensions=request.dimensions)
        else:
            o.put(body, "dimensions", request.dimensions)
        dropped.given(task=request.task)
    elif family == "nova":
        params: o.Body = {
            "embeddingPurpose": request.task or "GENERIC_INDEX",
            "text": {"truncationMode": "NONE", "value": _one(texts)},
        }
        o.put(params, "embeddingDimension", request.dimensions)
        body = {"taskType": "SINGLE_EMBEDDING", "singleEmbeddingParams": params}
    else:
        raise BadRequest("This model's embeddings have no known form.", "model")
    if request.dialect == "bedrock":
        body |= request.extra
    path = PATH.format(model=quote(target.model, safe=""))
    return n.Call(path=path, body=o.encode(body), dropped=dropped.names)


def texts_only(request: n.Embeddings) -> list[str]:
    texts = [text for text in request.inputs if isinstance(text, str)]
    if len(texts) < len(request.inputs):
        raise BadRequest("This model's embeddings are of texts, not of token ids.", "input")
    return texts


def _one(texts: list[str]) -> str:
    if len(texts) != 1:
        raise BadRequest("This model embeds one text a request.", "input")
    return texts[0]


class _Vector(Struct):
    embedding: list[float]


class _Answer(Struct):
    embedding: list[float] | None = None
    inputTextTokenCount: int | None = None  # noqa: N815 - the API's spelling
    embeddings: Raw = Raw(o.NULL)


_answer: Final = msgspec.json.Decoder(_Answer).decode
_vectors: Final = msgspec.json.Decoder(list[list[float]]).decode
_objects: Final = msgspec.json.Decoder(list[_Vector]).decode

_KNOWN: Final = frozenset(
    {"embedding", "embeddings", "embeddingsByType", "inputTextTokenCount", "texts"}
)


def decode_embeddings(body: bytes, *, status: int = 200) -> n.EmbeddingsAnswer | f.Failure:
    """The vectors. Only Titan counts tokens in the body; the header `x-amzn-bedrock-input-token-count` does for all."""
    if status >= 400:
        return classify(status, {}, body, now=0.0)
    try:
        answer = _answer(body)
        others = o.fields_of(body)
        vectors = _read(answer)
    except o.UNREADABLE:
        return f.MalformedAnswer(o.not_json(body), provider_status=status)
    if not vectors:
        if "message" in others or "__type" in others:
            return classify(status, {}, body, now=0.0)
        return f.MalformedAnswer("the provider's answer has no embeddings", provider_status=status)
    counted = answer.inputTextTokenCount
    return n.EmbeddingsAnswer(
        model="",
        vectors=vectors,
        usage=None if counted is None else Usage(input=max(0, counted)),
        extra={name: raw for name, raw in others.items() if name not in _KNOWN},
    )


def _read(answer: _Answer) -> list[list[float]]:
    if answer.embedding is not None:
        return [answer.embedding]
    raw = answer.embeddings
    if bytes(raw) == o.NULL:
        return []
    if bytes(raw)[:1] == b"{":
        by_type = o.fields_of(raw)
        return _vectors(by_type["float"]) if "float" in by_type else []
    try:
        return _vectors(raw)
    except msgspec.ValidationError:
        return [one.embedding for one in _objects(raw)]
