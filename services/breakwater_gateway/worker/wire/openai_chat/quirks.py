"""What sets each host of the chat-completions family apart, as data.

`QUIRKS[provider]` holds a host's facts; `of(target)` adds those of the deployment itself. An encoder reads
nothing else about a host. Sources: the hosts' API references and recorded traffic.
"""

from collections.abc import Mapping
from typing import Final, Literal
from urllib.parse import quote

import msgspec
from msgspec import Struct

from breakwater_gateway.worker.wire.neutral import DialectName, Target

DROP_EVERYWHERE_BUT_OPENAI: Final = frozenset(
    {"store", "prediction", "verbosity", "prompt_cache_retention", "moderation"}
)


class Quirks(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    dialect: DialectName = "openai"
    """Whose fields the host's extras are. Mistral has its own, which no OpenAI client can read."""
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    developer_role: bool = False
    """Without it, developer turns are sent as system turns."""
    reasoning: Literal["effort", "object", "thinking", "none"] = "effort"
    """How to ask for reasoning: `reasoning_effort`, `reasoning: {…}`, or `thinking: {type}` beside an effort."""
    reasoning_field: Literal["reasoning_content", "reasoning", "parts", "details", ""] = (
        "reasoning_content"
    )
    """Where earlier reasoning goes back in: a field of the message, parts of its content, only the
    `reasoning_details` that it came with, or nowhere."""
    thoughts_beside: bool = False
    """Usage counts reasoning beside the completion; the total holds both."""
    rename: Mapping[str, str] = {}
    """Our name of a top-level parameter -> the host's."""
    drop: frozenset[str] = frozenset()
    """Top-level parameters that the host refuses, by OpenAI's name; taken out and reported."""
    only: frozenset[str] = frozenset()
    """When set, the host refuses every top-level parameter but these."""
    top_k: bool = False
    """`top_k`, which OpenAI does not have."""
    stream_options: bool = True
    """Without it the host refuses them; it shows usage unasked."""
    tool_choice_required: str = "required"
    allowed_tools: bool = False
    """`tool_choice: {type: allowed_tools}`."""
    json_schema: bool = True
    """Without it, a schema is asked for as any JSON."""
    document_url: Literal["document_url", "file_url", "file_data", ""] = ""
    """How a document is given by its URL."""
    video_url: bool = False
    tool_images: bool = False
    """Images may stand in tool results; elsewhere they follow as a user turn."""
    text_lists: bool = True
    """Content of system, assistant and tool turns may be a list of parts."""
    short_ids: bool = False
    """Tool call ids are nine letters or digits."""
    signatures: bool = False
    """Tool calls carry Gemini's thought signature in `extra_content`."""
    thinking_blocks: bool = False
    """Assistant turns may carry `thinking_blocks`, as LiteLLM's do."""
    key_header: Literal["authorization", "api-key"] = "authorization"
    """`authorization` with `Bearer `, or the bare key in `api-key`."""
    azure_path: Literal["", "deployments", "models", "v1"] = ""
    """Azure: `/openai/deployments/{model}` under the resource, or a base URL that ends in `/models` or `/v1`."""
    api_version: str = ""
    """Azure's `api-version` query parameter."""


DEFAULT: Final = Quirks()

_OPENAI: Final = Quirks(
    max_tokens_field="max_completion_tokens",  # reasoning models refuse max_tokens
    developer_role=True,
    reasoning_field="",
    allowed_tools=True,
    drop=frozenset({"top_k", "min_p", "repetition_penalty"}),
)
_OBJECT: Final = Quirks(
    developer_role=True,
    reasoning="object",
    reasoning_field="reasoning",
    top_k=True,
    document_url="file_data",
    video_url=True,
    tool_images=True,
)

_MISTRAL_ONLY: Final = frozenset(
    {
        *(
            "model",
            "messages",
            "stream",
            "max_tokens",
            "temperature",
            "top_p",
            "stop",
            "random_seed",
        ),
        *(
            "n",
            "tools",
            "tool_choice",
            "parallel_tool_calls",
            "response_format",
            "presence_penalty",
        ),
        *("frequency_penalty", "prediction", "prompt_mode", "safe_prompt", "reasoning_effort"),
        *("metadata", "prompt_cache_key", "guardrails", "min_tokens"),
    }
)

QUIRKS: Final[Mapping[str, Quirks]] = {
    "openai": _OPENAI,
    "azure": msgspec.structs.replace(_OPENAI, key_header="api-key"),
    "groq": Quirks(
        reasoning_field="reasoning",
        # console.groq.com/docs/openai, "Currently unsupported OpenAI features".
        drop=frozenset({"logprobs", "logit_bias", "top_logprobs"} | DROP_EVERYWHERE_BUT_OPENAI),
        max_tokens_field="max_completion_tokens",
    ),
    "deepseek": Quirks(
        reasoning="thinking",
        json_schema=False,
        text_lists=False,
        drop=frozenset({"n", "logit_bias", "seed"}) | DROP_EVERYWHERE_BUT_OPENAI,
    ),
    "xai": Quirks(thoughts_beside=True, max_tokens_field="max_completion_tokens"),
    "openrouter": msgspec.structs.replace(_OBJECT, max_tokens_field="max_tokens"),
    "vercel": msgspec.structs.replace(_OBJECT, document_url="", video_url=False),
    "mistral": Quirks(
        dialect="mistral",
        reasoning_field="parts",
        rename={"seed": "random_seed"},
        only=_MISTRAL_ONLY,
        stream_options=False,
        tool_choice_required="any",
        document_url="document_url",
        short_ids=True,
    ),
    "together": Quirks(top_k=True, video_url=True),
    "cerebras": Quirks(
        reasoning_field="reasoning",
        max_tokens_field="max_completion_tokens",
        # inference-docs.cerebras.ai, "OpenAI compatibility".
        drop=frozenset({"frequency_penalty", "logit_bias", "presence_penalty"}),
    ),
    "huggingface": Quirks(),
    "perplexity": Quirks(
        document_url="file_url",
        top_k=True,
        drop=frozenset({"n", "seed", "logit_bias", "logprobs", "top_logprobs"}),
    ),
    "zai": Quirks(
        reasoning="thinking", video_url=True, drop=frozenset({"n", "logit_bias", "seed"})
    ),
    "ollama": Quirks(
        developer_role=True,
        reasoning_field="reasoning",
        # github.com/ollama/ollama/blob/main/docs/api/openai-compatibility, "Supported request fields".
        drop=frozenset({"n", "logit_bias"}),
    ),
    "local-openai-compat": Quirks(top_k=True, video_url=True),
    "other-compat": Quirks(top_k=True),
    "ai21": Quirks(reasoning="none", stream_options=False),
    "snowflake": Quirks(
        reasoning="object",
        reasoning_field="details",
        max_tokens_field="max_completion_tokens",
    ),
    "heroku": Quirks(),
    "bedrock-mantle": Quirks(max_tokens_field="max_completion_tokens", developer_role=True),
    "gemini": Quirks(
        thoughts_beside=True,
        signatures=True,
        drop=frozenset({"logit_bias", "user"}) | DROP_EVERYWHERE_BUT_OPENAI,
    ),
}
"""By provider id of the catalogue; what is not here behaves as `DEFAULT`."""

_ALIASES: Final = {
    "togetherai": "together",
    "google": "gemini",
    "zhipuai": "zai",
    "azure-openai": "azure",
    "vllm": "local-openai-compat",
    "lmstudio": "local-openai-compat",
    "llamacpp": "local-openai-compat",
}

_NAMES: Final = frozenset(Quirks.__struct_fields__)


def quoted(text: str) -> str:
    """As one segment of a path, or one value of a query."""
    return quote(text, safe="")


def by_provider(provider: str) -> Quirks:
    return QUIRKS.get(_ALIASES.get(provider, provider), DEFAULT)


def of(target: Target) -> Quirks:
    """A deployment's quirks: `provider` names the host, any field of `Quirks` overrides it.

    Raises `msgspec.ValidationError` when an override is not of its field's type.
    """
    given = target.quirks
    if not given:
        return DEFAULT
    base = by_provider(str(given.get("provider", "")))
    changes = {name: value for name, value in given.items() if name in _NAMES}
    if not changes:
        return base
    kept = {name: getattr(base, name) for name in _NAMES}
    return msgspec.convert({**kept, **changes}, Quirks)
