"""Embeddings by InvokeModel: Titan's, Nova's and Cohere's bodies.

Source: Amazon Bedrock user guide, "Amazon Titan Text Embeddings", "Cohere Embed"; Amazon Nova user guide,
"Embeddings request and response schema"; recorded traffic.
"""

from typing import Final

from breakwater_gateway.simulator.dialects.bedrock_errors import BedrockError, invalid
from breakwater_gateway.simulator.dialects.dialect import encode
from breakwater_gateway.simulator.script import Script
from breakwater_gateway.simulator.turns import HEX, Embedding, Json, count_tokens, token
from breakwater_gateway.simulator.vectors import vector

COHERE_TEXTS_MAX: Final = 96

_KNOWN: Final = {
    "titan": frozenset({"inputText", "dimensions", "normalize", "embeddingTypes"}),
    "cohere": frozenset(
        {
            *("texts", "images", "inputs", "input_type", "truncate", "embedding_types"),
            *("output_dimension", "max_tokens"),
        }
    ),
    "nova": frozenset({"schemaVersion", "taskType", "singleEmbeddingParams"}),
}
_SIGNS: Final = {"texts": "cohere", "taskType": "nova"}
"""What tells the family by the body, where the model's name does not."""
_TASKS: Final = ("search_document", "search_query", "classification", "clustering", "image")


def _malformed(at: str, what: str) -> BedrockError:
    return invalid(
        f"Malformed input request: {at}: {what}, please reformat your input and try again."
    )


def read_embeddings(raw: dict[str, Json], model: str, script: Script) -> Embedding:
    """Checks a request as the model does. Raises `BedrockError`."""
    family = next((name for name in _KNOWN if name in model.lower()), "")
    family = family or next((name for sign, name in _SIGNS.items() if sign in raw), "titan")
    for name in raw:
        if name not in _KNOWN[family]:
            raise _malformed("#", f"extraneous key [{name[:100]}] is not permitted")
    match family:
        case "cohere":
            return _read_cohere(raw, model, script)
        case "nova":
            return _read_nova(raw, model, script)
        case _:
            return _read_titan(raw, model, script)


def _read_titan(raw: dict[str, Json], model: str, script: Script) -> Embedding:
    first = "embed-text-v1" in model or "embed-g1" in model
    if first and "dimensions" in raw:
        raise _malformed("#", "extraneous key [dimensions] is not permitted")
    natural = script.embedding_dimensions or (1536 if first else 1024)
    size = _size(raw, "dimensions", "#/dimensions", (natural, 1024, 512, 256))
    return _embedding(model, [_text(raw, "inputText", "#")], size or natural, "titan")


def _read_nova(raw: dict[str, Json], model: str, script: Script) -> Embedding:
    if raw.get("taskType") != "SINGLE_EMBEDDING":
        raise _malformed("#/taskType", f"{_shown(raw.get('taskType'))} is not a valid enum value")
    params = raw.get("singleEmbeddingParams")
    if not isinstance(params, dict):
        raise _malformed("#", "required key [singleEmbeddingParams] not found")
    where = "#/singleEmbeddingParams"
    for name in ("embeddingPurpose", "text"):
        if name not in params:
            raise _malformed(where, f"required key [{name}] not found")
    text = params["text"]
    if not isinstance(text, dict) or text.get("truncationMode") not in ("START", "END", "NONE"):
        raise _malformed(f"{where}/text", "required key [truncationMode] not found")
    natural = script.embedding_dimensions or 3072
    allowed = (natural, 3072, 1024, 384, 256)
    size = _size(params, "embeddingDimension", f"{where}/embeddingDimension", allowed)
    return _embedding(model, [_text(text, "value", f"{where}/text")], size or natural, "nova")


def _read_cohere(raw: dict[str, Json], model: str, script: Script) -> Embedding:
    texts = raw.get("texts")
    if texts is None:
        raise _malformed("#", "required key [texts] not found")
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise _malformed("#/texts", "expected type: JSONArray of String")
    if not 1 <= len(texts) <= COHERE_TEXTS_MAX:
        rule = "minimum item count: 1" if not texts else f"maximum item count: {COHERE_TEXTS_MAX}"
        raise _malformed("#/texts", f"expected {rule}, found: {len(texts)}")
    if "input_type" not in raw:
        raise _malformed("#", "required key [input_type] not found")
    if raw["input_type"] not in _TASKS:
        raise _malformed("#/input_type", f"{_shown(raw['input_type'])} is not a valid enum value")
    newest = "embed-v4" in model
    if not newest and "output_dimension" in raw:
        raise _malformed("#", "extraneous key [output_dimension] is not permitted")
    kinds = raw.get("embedding_types")
    if kinds is not None and (not isinstance(kinds, list) or set(map(str, kinds)) - {"float"}):
        raise _malformed("#/embedding_types", "only [float] is simulated")
    natural = script.embedding_dimensions or (1536 if newest else 1024)
    size = _size(raw, "output_dimension", "#/output_dimension", (natural, 1536, 1024, 512, 256))
    # Version 4 answers by type even when it was asked for none (recorded).
    framing = "cohere_by_type" if kinds or newest else "cohere"
    return _embedding(model, texts, size or natural, framing)


def _embedding(model: str, texts: list[str], dimensions: int, framing: str) -> Embedding:
    return Embedding(
        model=model,
        inputs=tuple(texts),
        dimensions=dimensions,
        prompt_tokens=sum(count_tokens(text) for text in texts),
        framing=framing,
    )


def _text(raw: dict[str, Json], name: str, where: str) -> str:
    text = raw.get(name)
    if text is None:
        raise _malformed(where, f"required key [{name}] not found")
    if not isinstance(text, str):
        raise _malformed(f"{where}/{name}", "expected type: String")
    if not text:
        raise _malformed(f"{where}/{name}", "expected minLength: 1, actual: 0")
    return text


def _size(raw: dict[str, Json], name: str, where: str, allowed: tuple[int, ...]) -> int | None:
    size = raw.get(name)
    if size is None:
        return None
    if type(size) is not int or size not in allowed:
        raise _malformed(where, f"{_shown(size)} is not a valid enum value")
    return size


def _shown(value: Json) -> str:
    return encode(value)[:100].decode("utf-8", "replace")


def embeddings(asked: Embedding, script: Script, *, seed: int) -> bytes:
    """The answer's body. Of the tokens only Titan's tells."""
    found = [vector(text, asked.dimensions, seed, as_base64=False) for text in asked.inputs]
    if asked.framing == "nova":
        return encode(
            {"embeddings": [{"embeddingType": "TEXT", "embedding": one} for one in found]}
        )
    if asked.framing == "titan":
        used = script.prompt_tokens if script.prompt_tokens is not None else asked.prompt_tokens
        answer: dict[str, Json] = {"embedding": found[0], "embeddingsByType": {"float": found[0]}}
        if script.usage != "missing":
            answer["inputTextTokenCount"] = used
        return encode(answer)
    by_type = asked.framing == "cohere_by_type"
    return encode(
        {
            "id": token(seed ^ asked.prompt_tokens, 32, HEX),
            "texts": [text.lower() for text in asked.inputs],
            "embeddings": {"float": found} if by_type else found,
            "response_type": "embeddings_by_type" if by_type else "embeddings_floats",
        }
    )
