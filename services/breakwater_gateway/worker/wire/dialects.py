"""Which dialect a host speaks and which one a caller speaks: the registry of what stands in this folder.

Dialects are imported when the first attempt needs them: a gateway that only ever meets one pays for one.
"""

import importlib
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from types import ModuleType
from typing import Any, Final

from msgspec import Struct

from breakwater_gateway.config.model import Wire
from breakwater_gateway.worker.wire import neutral
from breakwater_gateway.worker.wire.bad_request import BadRequest
from breakwater_protocol import failures as f

EncodeRequest = Callable[[neutral.Request, neutral.Target], neutral.Call]
DecodeAnswer = Callable[[bytes], neutral.Answer | f.Failure]
EncodeEmbeddings = Callable[[neutral.Embeddings, neutral.Target], neutral.Call]
DecodeEmbeddings = Callable[[bytes], neutral.EmbeddingsAnswer | f.Failure]

_MODULES: Final[Mapping[Wire, tuple[str, neutral.DialectName]]] = {
    "openai": ("openai_chat", "openai"),
    "azure": ("openai_chat", "openai"),
    "mistral": ("openai_chat", "openai"),
    "responses": ("responses", "responses"),
    "anthropic": ("anthropic", "anthropic"),
    "gemini": ("gemini", "gemini"),
    "vertex": ("gemini", "gemini"),
    "bedrock": ("bedrock", "bedrock"),
    "cohere": ("cohere", "cohere"),
    "ollama": ("ollama", "ollama"),
}

CALLERS: Final[Mapping[str, neutral.DialectName]] = {
    "chat": "openai",
    "messages": "anthropic",
    "responses": "responses",
    "generate": "gemini",
}
"""The dialect of a caller's API."""


class ProviderDialect(Struct, frozen=True):
    """The provider's side: requests out, answers in."""

    name: neutral.DialectName
    encode_request: EncodeRequest
    decode_answer: DecodeAnswer
    stream_decoder: Callable[[], neutral.StreamDecoder]
    classify: Callable[..., f.Failure]
    encode_embeddings: EncodeEmbeddings | None = None
    decode_embeddings: DecodeEmbeddings | None = None


class CallerDialect(Struct, frozen=True):
    """The caller's side: requests in, answers out."""

    name: neutral.DialectName
    decode_request: Callable[[bytes], neutral.Request]
    encode_answer: Callable[[neutral.Answer, str], bytes]
    """The answer, and the model as the caller named it."""
    stream_encoder: Callable[[neutral.Request, neutral.DialectName, str], neutral.StreamEncoder]
    """For a request, the provider's dialect and the model as the caller named it."""
    refusal: Callable[[neutral.Request], BadRequest | None]
    """What would change the question if another dialect left it out."""


def provider_dialect(wire: Wire, provider: str) -> ProviderDialect:
    """`provider` matters to the OpenAI family, whose members differ by facts."""
    return _provider(wire, provider if _MODULES[wire][0] == "openai_chat" else "")


@lru_cache(maxsize=512)
def _provider(wire: Wire, provider: str) -> ProviderDialect:
    folder, name = _MODULES[wire]
    module = _module(folder)
    decode_answer: DecodeAnswer = module.decode_answer
    stream_decoder: Callable[[], neutral.StreamDecoder] = module.StreamDecoder
    if folder == "openai_chat":
        quirks = module.by_provider("azure" if wire == "azure" else provider)
        decode_answer = partial(module.decode_answer, quirks=quirks)
        stream_decoder = partial(module.StreamDecoder, quirks)
    return ProviderDialect(
        name=name,
        encode_request=module.encode_request,
        decode_answer=decode_answer,
        stream_decoder=stream_decoder,
        classify=module.classify,
        encode_embeddings=getattr(module, "encode_embeddings", None),
        decode_embeddings=getattr(module, "decode_embeddings", None),
    )


@lru_cache(maxsize=8)
def caller_dialect(api: str) -> CallerDialect:
    name = CALLERS[api]
    module = _module("openai_chat" if name == "openai" else name)

    def encode_answer(answer: neutral.Answer, model: str) -> bytes:
        encoded: bytes = module.encode_answer(answer, model=model)
        return encoded

    def stream_encoder(
        request: neutral.Request, source: neutral.DialectName, model: str
    ) -> neutral.StreamEncoder:
        facts: dict[str, Any] = {"model": model}
        match name:
            case "openai":
                facts.update(source=source, usage_wanted=request.usage_wanted)
            case "anthropic" | "responses":
                facts.update(source=source)
            case _:
                pass
        encoder: neutral.StreamEncoder = module.StreamEncoder(**facts)
        return encoder

    refusal = getattr(module, "refusal", _no_refusal)
    return CallerDialect(name, module.decode_request, encode_answer, stream_encoder, refusal)


def _no_refusal(request: neutral.Request) -> BadRequest | None:
    del request
    return None


def _module(folder: str) -> ModuleType:
    return importlib.import_module(f"breakwater_gateway.worker.wire.{folder}")
