"""Usage of the chat-completions family in all the spellings its hosts have, brought to one arithmetic.

`prompt_tokens` holds the cached and cache-written ones everywhere. `completion_tokens` holds the
reasoning ones, except at hosts that count them beside (xAI, Gemini's OpenAI endpoint): there
`total_tokens` tells. Sources: OpenAI API reference, "The chat completion object"; docs.x.ai, "Reasoning";
DeepSeek, "Context caching"; OpenRouter, "Usage accounting"; recorded traffic of every host named.
"""

from typing import Final

import msgspec
from msgspec import Raw, Struct

from breakwater_gateway.worker.wire.openai_chat.fields import UNREADABLE
from breakwater_protocol.chat import Usage

TOKENS_MAX: Final = 2**40
"""More than any call; a host's nonsense must stay an integer that travels."""


class _PromptDetails(Struct):
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None


class _CompletionDetails(Struct):
    reasoning_tokens: int | None = None


class WireUsage(Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None
    prompt_cache_hit_tokens: int | None = None
    """DeepSeek."""
    cached_tokens: int | None = None
    """Together, Moonshot."""
    num_cached_tokens: int | None = None
    """Mistral."""
    cache_creation_input_tokens: int | None = None
    """Vercel."""

    def normal(self, *, thoughts_beside: bool = False) -> Usage:
        """As `chat.Usage` counts. `thoughts_beside`: what the total has over prompt and completion was thought."""
        prompt = _tokens(self.prompt_tokens)
        completion = _tokens(self.completion_tokens)
        total = _tokens(self.total_tokens)
        given, spent = self.prompt_tokens_details, self.completion_tokens_details
        cached = (
            (given and given.cached_tokens)
            or self.prompt_cache_hit_tokens
            or self.cached_tokens
            or self.num_cached_tokens
            or 0
        )
        written = (given and given.cache_write_tokens) or self.cache_creation_input_tokens or 0
        thought = _tokens(spent.reasoning_tokens if spent else None)
        if thought and total == prompt + completion + thought:
            completion += thought
        elif thoughts_beside and total > prompt + completion:
            thought = max(thought, total - prompt - completion)
            completion = total - prompt
        # Azure reports more cached tokens than prompt tokens on some records.
        cached = min(max(0, cached), prompt)
        return Usage(
            input=prompt,
            output=completion,
            cache_read=cached,
            cache_write=min(max(0, written), prompt - cached),
            reasoning=min(thought, completion),
        )


def _tokens(count: int | None) -> int:
    return min(max(0, count or 0), TOKENS_MAX)


_usage: Final = msgspec.json.Decoder(WireUsage, strict=False)


def read_usage(raw: Raw | bytes, *, thoughts_beside: bool = False) -> Usage | None:
    """None for what is no usage object."""
    try:
        return _usage.decode(raw).normal(thoughts_beside=thoughts_beside)
    except UNREADABLE:
        return None


def usage(raw: Raw | bytes, *, thoughts_beside: bool = False) -> Usage:
    """A usage object as `chat.Usage`; zeros for what is none."""
    return read_usage(raw, thoughts_beside=thoughts_beside) or Usage()


def wire_usage(usage: Usage) -> dict[str, object]:
    """OpenAI's usage object, for answers of other dialects."""
    given: dict[str, int] = {"cached_tokens": usage.cache_read}
    if usage.cache_write:
        given["cache_write_tokens"] = usage.cache_write
    return {
        "prompt_tokens": usage.input,
        "completion_tokens": usage.output,
        "total_tokens": usage.input + usage.output,
        "prompt_tokens_details": given,
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
    }
