"""Embeddings: `:embedContent` and `:batchEmbedContents`, and Vertex's `:predict`.

A request whose contents are more than one text each (several parts, media, or tasks that differ) keeps its
own `requests` in `extra`; `inputs` are then the texts of it. Source: Gemini API reference, "Embeddings";
Vertex AI reference, "Text embeddings API".
"""

from typing import Final

import msgspec
from msgspec import Raw, Struct

from breakwater_gateway.worker.wire import neutral as n
from breakwater_gateway.worker.wire.bad_request import BadRequest
from breakwater_gateway.worker.wire.gemini import answer as a
from breakwater_gateway.worker.wire.gemini import fields as g
from breakwater_gateway.worker.wire.gemini.errors import classify
from breakwater_gateway.worker.wire.gemini.request import method
from breakwater_gateway.worker.wire.gemini.translate import model_path
from breakwater_protocol import failures as f
from breakwater_protocol.chat import Usage

INPUTS_MAX: Final = 100_000

# ---------------------------------------------------------------- requests


def decode_embeddings_request(body: bytes, *, path: str = "") -> n.Embeddings:
    """A body of any of the three methods, told by its fields. Raises BadRequest."""
    given = g.Taken(body)
    asked = method(path)
    batch = "requests" in given.given
    model = asked.model if asked is not None else ""
    if batch or "instances" in given.given:
        # Not the API's, but where a body without its URL says it.
        named = given.take("model", g.TEXT)
        model = model or (named or "").removeprefix("models/")
    if "instances" in given.given:
        return _decode_predict(given, model)
    raws = given.items("requests") if batch else [Raw(body)]
    if not raws:
        raise BadRequest("requests: at least one is needed.", "requests")
    if len(raws) > INPUTS_MAX:
        raise BadRequest(f"requests: at most {INPUTS_MAX}.", "requests")
    inputs: list[str | list[int]] = []
    wishes: list[tuple[str, int | None]] = []
    simple = True
    for at, raw in enumerate(raws):
        one = g.Taken(raw, f"requests[{at}]" if batch else "")
        named = one.take("model", g.TEXT)
        model = model or (named or "").removeprefix("models/")
        content = one.sub("content")
        if content is None:
            raise BadRequest(f"The field {one.path('content')} is missing.", one.path("content"))
        text, only = _texts(content)
        inputs.append(text)
        wishes.append(
            (one.take("taskType", g.TEXT) or "", one.take("outputDimensionality", g.WHOLE))
        )
        simple = simple and only and not one.given
    if not model:
        raise BadRequest("The model is missing: it is named in the URL.", "model")
    extra: n.Extra = given.given if batch else {}
    if not simple or len(set(wishes)) > 1:
        extra["requests"] = Raw(g.encode(raws))
    task, dimensions = wishes[0]
    return n.Embeddings(
        dialect="gemini",
        model=model,
        inputs=inputs,
        dimensions=dimensions,
        task=task,
        extra=extra,
    )


def _texts(content: g.Taken) -> tuple[str, bool]:
    """The texts of a content, and whether it is one text and nothing else."""
    content.take("role", g.TEXT)
    texts: list[str] = []
    parts = content.items("parts")
    for at, raw in enumerate(parts):
        part = g.Taken(raw, f"{content.path('parts')}[{at}]")
        text = part.take("text", g.TEXT)
        if text is not None and not part.given:
            texts.append(text)
    return "\n".join(texts), len(texts) == len(parts) == 1 and not content.given


def _decode_predict(given: g.Taken, model: str) -> n.Embeddings:
    if not model:
        raise BadRequest("The model is missing: it is named in the URL.", "model")
    raws = given.items("instances")
    if not raws:
        raise BadRequest("instances: at least one is needed.", "instances")
    inputs: list[str | list[int]] = []
    tasks: set[str] = set()
    simple = True
    for at, raw in enumerate(raws):
        one = g.Taken(raw, f"instances[{at}]")
        text = one.take("content", g.TEXT)
        if text is None:
            raise BadRequest(f"The field {one.path('content')} is missing.", one.path("content"))
        inputs.append(text)
        tasks.add(one.take("taskType", g.TEXT) or "")
        simple = simple and not one.given
    parameters = given.sub("parameters") or g.Taken(b"{}", "parameters")
    dimensions = parameters.take("outputDimensionality", g.WHOLE)
    extra = given.given
    for name, raw in parameters.given.items():
        extra[f"parameters.{name}"] = raw
    if not simple or len(tasks) > 1:
        extra["instances"] = Raw(g.encode(raws))
    return n.Embeddings(
        dialect="gemini",
        model=model,
        inputs=inputs,
        dimensions=dimensions,
        task=next(iter(tasks)) if len(tasks) == 1 else "",
        extra=extra,
    )


def encode_embeddings(request: n.Embeddings, target: n.Target) -> n.Call:
    """The call to make: `:batchEmbedContents`, or `:predict` at a target of quirk `vertex`.

    Raises BadRequest for inputs of token ids, which this API has no way to take.
    """
    dropped = g.Dropped()
    native = request.dialect == "gemini"
    texts: list[str] = []
    for item in request.inputs:
        if not isinstance(item, str):
            raise BadRequest("This model embeds texts, not lists of token ids.", "input")
        texts.append(item)
    if request.user:
        dropped.add("user")
    if not native:
        dropped.native(request.extra)
    vertex = bool(target.quirks.get("vertex"))
    body = _predict(request, texts) if vertex else _batch(request, texts, target.model)
    if native:
        kept = {"instances"} if vertex else {"requests"}
        for name, raw in request.extra.items():
            if name in kept and name == "requests":
                body[name] = [_renamed(one, target.model) for one in g.ITEMS.decode(raw)]
            elif name in kept:
                body[name] = raw
            elif name.startswith("parameters.") and vertex:
                parameters = body.setdefault("parameters", {})
                if isinstance(parameters, dict):
                    parameters[name.partition(".")[2]] = raw
            else:
                dropped.add(name)
    verb = "predict" if vertex else "batchEmbedContents"
    return n.Call(path=model_path(target, verb), body=g.encode(body), dropped=tuple(dropped.names))


def _batch(request: n.Embeddings, texts: list[str], model: str) -> g.Body:
    wish: g.Body = {"model": _full(model)}
    if request.task:
        wish["taskType"] = request.task
    if request.dimensions is not None:
        wish["outputDimensionality"] = request.dimensions
    return {"requests": [wish | {"content": {"parts": [{"text": text}]}} for text in texts]}


def _full(model: str) -> str:
    return model if model.startswith(("models/", "tunedModels/")) else f"models/{model}"


def _renamed(one: Raw, model: str) -> g.Body:
    return {**g.fields(one), "model": _full(model)}


def _predict(request: n.Embeddings, texts: list[str]) -> g.Body:
    task: g.Body = {"task_type": request.task} if request.task else {}
    body: g.Body = {"instances": [{"content": text} | task for text in texts]}
    if request.dimensions is not None:
        body["parameters"] = {"outputDimensionality": request.dimensions}
    return body


# ---------------------------------------------------------------- answers


class _Values(Struct):
    values: list[float] | None = None


class _Statistics(Struct):
    token_count: float = 0


class _Embedding(Struct):
    values: list[float] | None = None
    statistics: _Statistics | None = None


class _Prediction(Struct):
    embeddings: _Embedding | None = None


class _Answer(Struct):
    embedding: _Values | None = None
    embeddings: list[_Values] | None = None
    predictions: list[_Prediction] | None = None


_answer: Final = msgspec.json.Decoder(_Answer).decode
_READ: Final = frozenset(_Answer.__struct_fields__)


def decode_embeddings(body: bytes) -> n.EmbeddingsAnswer | f.Failure:
    """The provider's 200, of any of the three methods, or the failure that it is."""
    try:
        given = g.fields(body)
        if bytes(given.get("error", Raw(b"null"))) != b"null":
            return classify(200, {}, body, now=0.0)
        found = _answer(body)
    except g.UNREADABLE:
        return f.MalformedAnswer(a.not_json(body), provider_status=200)
    vectors: list[list[float] | None] = [one.values for one in found.embeddings or ()]
    if found.embedding is not None:
        vectors.append(found.embedding.values)
    vectors.extend(
        one.embeddings.values if one.embeddings else None for one in found.predictions or ()
    )
    if not vectors or not all(vectors):
        return f.MalformedAnswer("the provider's answer has no embeddings", provider_status=200)
    told = given.get("usageMetadata")
    return n.EmbeddingsAnswer(
        model="",
        vectors=[vector for vector in vectors if vector],
        usage=_predicted(found.predictions) if told is None else a.read_usage(told),
        extra={name: raw for name, raw in given.items() if name not in _READ},
    )


def _predicted(predictions: list[_Prediction] | None) -> Usage | None:
    counts = [
        one.embeddings.statistics.token_count
        for one in predictions or ()
        if one.embeddings and one.embeddings.statistics
    ]
    return Usage(input=int(sum(counts))) if counts else None


def encode_embeddings_answer(answer: n.EmbeddingsAnswer, *, model: str, path: str = "") -> bytes:  # noqa: ARG001 - this API does not tell the model
    """An answer for the method that `path` names: one embedding, a batch, or Vertex's predictions."""
    asked = method(path)
    verb = "batchEmbedContents" if asked is None else asked.verb
    used = None if answer.usage is None else answer.usage.input
    if verb == "predict":
        # One count is known for all: it is told on the first.
        statistics = [
            {"token_count": (used or 0) if at == 0 else 0, "truncated": False}
            for at in range(len(answer.vectors))
        ]
        predictions = [
            {"embeddings": {"values": vector, "statistics": told}}
            for vector, told in zip(answer.vectors, statistics, strict=True)
        ]
        return g.encode({"predictions": predictions})
    body: g.Body = {}
    if verb == "embedContent":
        body["embedding"] = {"values": answer.vectors[0] if answer.vectors else []}
    else:
        body["embeddings"] = [{"values": vector} for vector in answer.vectors]
    if used is not None:
        body["usageMetadata"] = {"promptTokenCount": used}
    told = answer.extra.get("usageMetadata")
    if told is not None:
        body["usageMetadata"] = told
    return g.encode(body)
