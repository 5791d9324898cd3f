"""Our neutral vocabulary for chat and embeddings: OpenAI's wire shape, typed and bounded.

Sources: OpenAI API reference, "Create chat completion" and "Create embeddings". Decoding a request
keeps what the gateway decides on; whatever else the body holds travels on untouched.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

Model = Annotated[str, Meta(min_length=1, max_length=512)]
PositiveInt = Annotated[int, Meta(ge=1, le=100_000_000)]

Role = Literal["system", "developer", "user", "assistant", "tool", "function"]


class Message(Struct, frozen=True):
    """One turn. `content` and `tool_calls` stay as the bytes they came in."""

    role: Role
    content: Raw | UnsetType = UNSET
    tool_calls: Raw | UnsetType = UNSET


class StreamOptions(Struct, frozen=True):
    include_usage: bool | None = None


class ChatRequest(Struct, frozen=True):
    """What the gateway reads of an OpenAI chat-completions body."""

    model: Model
    messages: Annotated[list[Message], Meta(min_length=1, max_length=100_000)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: PositiveInt | None = None
    max_completion_tokens: PositiveInt | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    stop: str | Annotated[list[str], Meta(max_length=64)] | None = None
    seed: int | None = None
    tools: Annotated[list[Raw], Meta(max_length=10_000)] | None = None
    user: str | None = None


class NativeRequest(Struct, frozen=True):
    """What routing reads of a body in another dialect than OpenAI's chat; the worker reads the rest."""

    model: Model
    stream: bool | None = None


class EmbeddingsRequest(Struct, frozen=True):
    """What the gateway reads of an OpenAI embeddings body. `input` is text, texts, tokens or lists of them."""

    model: Model
    input: (
        Annotated[str, Meta(min_length=1)]
        | Annotated[
            list[str | int | Annotated[list[int], Meta(min_length=1)]],
            Meta(min_length=1, max_length=100_000),
        ]
    )
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: PositiveInt | None = None
    user: str | None = None


Asked = ChatRequest | EmbeddingsRequest | NativeRequest
"""What was decoded of a caller's body."""


class Usage(Struct, frozen=True, omit_defaults=True):
    """Tokens of one call, normalised: `input` holds `cache_read` and `cache_write`, `output` holds `reasoning`."""

    input: int = 0
    output: int = 0
    cache_read: int = 0
    cache_write: int = 0
    reasoning: int = 0


class FunctionDelta(Struct, omit_defaults=True):
    name: str | None = None
    arguments: str | None = None


class ToolCallDelta(Struct, omit_defaults=True):
    index: int = 0
    id: str | None = None
    type: str | None = None
    function: FunctionDelta | None = None


class Delta(Struct, omit_defaults=True):
    role: str | None = None
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChunkChoice(Struct, omit_defaults=True):
    index: int = 0
    delta: Delta = msgspec.field(default_factory=Delta)
    finish_reason: str | None = None


class Chunk(Struct, omit_defaults=True):
    """One `chat.completion.chunk`, as far as clients of ours read it; `usage` only on the last."""

    id: str = ""
    object: str = "chat.completion.chunk"
    created: int = 0
    model: str = ""
    choices: list[ChunkChoice] = msgspec.field(default_factory=list)
    usage: Raw | UnsetType = UNSET


class ModelEntry(Struct, frozen=True):
    id: str
    object: str = "model"
    created: int = 0
    owned_by: str = "breakwater"


class ModelList(Struct, frozen=True):
    data: list[ModelEntry]
    object: str = "list"
