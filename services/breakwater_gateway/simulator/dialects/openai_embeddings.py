"""OpenAI's embeddings, which Azure and Mistral speak too."""

from typing import Final

from breakwater_gateway.simulator.dialects.dialect import INPUTS_MAX, encode
from breakwater_gateway.simulator.dialects.openai_errors import OpenAIError
from breakwater_gateway.simulator.dialects.openai_request import integer, missing
from breakwater_gateway.simulator.script import Script
from breakwater_gateway.simulator.turns import Embedding, Json, count_tokens
from breakwater_gateway.simulator.vectors import vector

DIMENSIONS: Final = {"text-embedding-3-large": 3072}
DIMENSIONS_DEFAULT: Final = 1536

_REFERENCE: Final = (
    "Please check the API reference: https://platform.openai.com/docs/api-reference."
)


def read_embeddings(raw: dict[str, Json], model: str, script: Script) -> Embedding:
    """Checks a request for embeddings as the service does. Raises `OpenAIError`."""
    given = raw.get("input")
    if given is None:
        missing("input")
    inputs = given if isinstance(given, list) else [given]
    if isinstance(given, list) and given and all(type(token) is int for token in given):
        inputs = [given]
    if not inputs or len(inputs) > INPUTS_MAX or not all(_embeddable(item) for item in inputs):
        raise OpenAIError(400, f"'$.input' is invalid. {_REFERENCE}")
    encoding = raw.get("encoding_format")
    if encoding not in {None, "float", "base64"}:
        raise OpenAIError(400, f"'$.encoding_format' is invalid. {_REFERENCE}")
    natural = script.embedding_dimensions or DIMENSIONS.get(model, DIMENSIONS_DEFAULT)
    wanted = integer(raw, "dimensions", 1)
    if wanted is not None and wanted > natural:
        raise OpenAIError(
            400,
            f"Invalid value for 'dimensions' = {wanted}. Must be less than or equal to {natural}.",
            param="dimensions",
        )
    return Embedding(
        model=model,
        inputs=tuple(
            item if isinstance(item, str) else " ".join(map(str, item)) for item in inputs
        ),
        dimensions=wanted or natural,
        prompt_tokens=sum(
            count_tokens(item) if isinstance(item, str) else len(item) for item in inputs
        ),
        encodings=(encoding or "float",),
    )


def _embeddable(item: Json) -> bool:
    if isinstance(item, str):
        return item != ""
    return isinstance(item, list) and bool(item) and all(type(token) is int for token in item)


def embeddings(asked: Embedding, script: Script, *, seed: int) -> bytes:
    """The answer's body. Texts that share words have vectors that point the same way."""
    packed = asked.encodings == ("base64",)
    data = [
        {
            "object": "embedding",
            "index": i,
            "embedding": vector(text, asked.dimensions, seed, as_base64=packed),
        }
        for i, text in enumerate(asked.inputs)
    ]
    used = script.prompt_tokens if script.prompt_tokens is not None else asked.prompt_tokens
    answer: dict[str, Json] = {
        "object": "list",
        "data": data,
        "model": asked.model,
        "usage": {"prompt_tokens": used, "total_tokens": used},
    }
    if script.usage == "missing":
        del answer["usage"]
    return encode(answer)
