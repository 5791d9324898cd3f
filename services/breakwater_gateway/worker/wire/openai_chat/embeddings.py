"""Embeddings in both directions. Source: OpenAI API reference, "Create embeddings".

Vectors travel as floats or as base64 of little-endian float32, which the official SDK asks for by default.
"""

import base64
import binascii
import struct
from operator import itemgetter
from typing import Final, Literal

import msgspec
from msgspec import Raw, Struct

from breakwater_gateway.worker.wire.bad_request import BadRequest
from breakwater_gateway.worker.wire.neutral import Call, Embeddings, EmbeddingsAnswer, Target
from breakwater_gateway.worker.wire.openai_chat import quirks as q
from breakwater_gateway.worker.wire.openai_chat.errors import classify, not_json
from breakwater_gateway.worker.wire.openai_chat.fields import (
    ITEMS,
    TEXT,
    UNREADABLE,
    WHOLE,
    Taken,
    decode_fields,
    encode,
    is_null,
    is_text,
    is_utf8,
    text_or,
)
from breakwater_gateway.worker.wire.openai_chat.messages import Json
from breakwater_gateway.worker.wire.openai_chat.request import OWN
from breakwater_gateway.worker.wire.openai_chat.usage import read_usage
from breakwater_protocol import failures as f

_inputs: Final = msgspec.json.Decoder(list[str | int | list[int]])


def decode_embeddings_request(body: bytes, *, path: str = "") -> Embeddings:
    """A caller's body. Azure names the model in `path`. Raises BadRequest."""
    if not is_utf8(body):
        raise BadRequest("The body is not UTF-8.")
    taken = Taken(body)
    model = taken.take("model", TEXT) or ""
    if not model:
        found = path.partition("/openai/deployments/")[2].partition("/")[0]
        if not found:
            raise BadRequest("Missing required parameter: 'model'.", "model")
        model = found
    raw = taken.raw("input")
    if raw is None:
        raise BadRequest("Missing required parameter: 'input'.", "input")
    encoding = taken.take("encoding_format", TEXT) or "float"
    if encoding not in {"float", "base64"}:
        raise BadRequest(
            f"Invalid value for 'encoding_format': {encoding[:40]!r}.", "encoding_format"
        )
    return Embeddings(
        dialect="openai",
        model=model,
        inputs=_read_inputs(raw),
        dimensions=taken.take("dimensions", WHOLE),
        encoding="base64" if encoding == "base64" else "float",
        user=taken.take("user", TEXT) or "",
        extra=taken.rest(),
    )


def _read_inputs(raw: Raw) -> list[str | list[int]]:
    """One text, texts, the tokens of one text, or lists of tokens."""
    try:
        if is_text(raw):
            return [TEXT.decode(raw)]
        items = _inputs.decode(raw)
    except UNREADABLE:
        raise BadRequest(
            "Invalid type for 'input': expected a string, or an array of strings or of tokens.",
            "input",
        ) from None
    if not items:
        raise BadRequest("Invalid 'input': empty array.", "input")
    if all(isinstance(item, int) for item in items):
        return [[item for item in items if isinstance(item, int)]]
    return [[item] if isinstance(item, int) else item for item in items]


def encode_embeddings(request: Embeddings, target: Target) -> Call:
    """The call that asks a host of this family. Vectors are always asked for as floats."""
    quirks = q.of(target)
    native = request.dialect in OWN
    dropped: list[str] = []
    out: Json = {}
    if quirks.azure_path != "deployments":
        out["model"] = target.model
    out["input"] = request.inputs
    if request.dimensions is not None:
        out[quirks.rename.get("dimensions", "dimensions")] = request.dimensions
    if request.user:
        if "user" in quirks.drop or quirks.only:
            dropped.append("user")
        else:
            out["user"] = request.user
    if request.task:
        dropped.append("task")
    for name, raw in request.extra.items():
        if native:
            out.setdefault(name, raw)
        else:
            dropped.append(name)
    path = "/embeddings"
    if quirks.azure_path == "deployments":
        path = f"/openai/deployments/{q.quoted(target.model)}{path}"
    if quirks.api_version:
        path = f"{path}?api-version={q.quoted(quirks.api_version)}"
    return Call(path=path, body=encode(out), dropped=tuple(dropped))


class _Item(Struct):
    embedding: str | list[float]
    index: int | None = None


_item: Final = msgspec.json.Decoder(_Item)


def decode_embeddings(body: bytes, *, status: int = 200) -> EmbeddingsAnswer | f.Failure:
    """A host's vectors, in the order of the inputs, or the failure that the body is or hides."""
    if status >= 400:
        return classify(status, {}, body, now=0)
    try:
        fields = decode_fields(body if is_utf8(body) else b"")
    except UNREADABLE:
        return f.MalformedAnswer(not_json(body), provider_status=status)
    error = fields.pop("error", None)
    if error is not None and not is_null(error):
        return classify(status, {}, body, now=0)
    try:
        items = [_item.decode(raw) for raw in ITEMS.decode(fields.pop("data", Raw(b"[]")))]
        vectors = [_floats(item.embedding) for item in items]
    except (*UNREADABLE, binascii.Error, struct.error, ValueError):
        return f.MalformedAnswer(
            "the provider's answer has not the shape its API promises", provider_status=status
        )
    if not vectors:
        return f.MalformedAnswer("the provider's answer has no embeddings", provider_status=status)
    order = [number if item.index is None else item.index for number, item in enumerate(items)]
    if order != sorted(order):
        vectors = [
            vector for _, vector in sorted(zip(order, vectors, strict=True), key=itemgetter(0))
        ]
    fields.pop("object", None)
    usage = fields.get("usage")
    return EmbeddingsAnswer(
        model=text_or(fields.pop("model", None)),
        vectors=vectors,
        usage=None if usage is None or is_null(usage) else read_usage(usage),
        extra=fields,
    )


def _floats(vector: str | list[float]) -> list[float]:
    if isinstance(vector, str):
        packed = base64.b64decode(vector, validate=True)
        return list(struct.unpack(f"<{len(packed) // 4}f", packed))
    return vector


def encode_embeddings_answer(
    answer: EmbeddingsAnswer,
    *,
    model: str = "",
    encoding: Literal["float", "base64"] = "float",
    own: bool = False,
) -> bytes:
    """The body for a caller of this dialect. `own`: the answer's extras are this dialect's."""
    data: list[Json] = []
    for number, vector in enumerate(answer.vectors):
        shown: object = vector
        if encoding == "base64":
            shown = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode("ascii")
        data.append({"object": "embedding", "index": number, "embedding": shown})
    out: Json = {"object": "list", "data": data, "model": model or answer.model}
    if own:
        for name, raw in answer.extra.items():
            out.setdefault(name, raw)
    if "usage" not in out and answer.usage is not None:
        out["usage"] = {"prompt_tokens": answer.usage.input, "total_tokens": answer.usage.input}
    return encode(out)
