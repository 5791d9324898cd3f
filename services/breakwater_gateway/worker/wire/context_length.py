"""What a provider says of a prompt that does not fit: how many tokens it takes, and how many there are.

No provider has a field for it; each has a sentence. Those here are recorded or from public issues.
"""

import re
from typing import Final

_N: Final = r"([0-9]{1,12})"

_NEEDED_OF_LIMIT: Final = (
    # Anthropic.
    re.compile(rf"prompt is too long: {_N} tokens > {_N} maximum"),
    # Gemini.
    re.compile(
        rf"input token count \(?{_N}\)? exceeds the maximum number of tokens allowed \(?{_N}"
    ),
    # Mistral.
    re.compile(rf"[Pp]rompt contains {_N} tokens\b.{{0,80}}?too large for model with {_N} maximum"),
    # vLLM from 0.16: what there is for the prompt is what the output leaves.
    re.compile(rf"You passed {_N} input tokens\b.{{0,200}}?maximum input length of {_N} tokens"),
    # llama.cpp.
    re.compile(rf"request \({_N} tokens\) exceeds the available context size \({_N} tokens"),
)
_LIMIT_OF_NEEDED: Final = (
    # OpenAI, DeepSeek, OpenRouter, vLLM before 0.16.
    re.compile(
        rf"maximum context length is {_N} tokens\. However,"
        rf" (?:your messages resulted in|you requested)(?: about)? {_N} tokens"
    ),
    # xAI.
    re.compile(rf"maximum prompt length is {_N} but the request contains {_N} tokens"),
)
# Anthropic, where the output is what does not fit.
_WITH_OUTPUT: Final = re.compile(rf"exceed context limit: {_N} \+ {_N} > {_N}")
# Text Generation Inference.
_GIVEN: Final = re.compile(
    rf"must be <= {_N}\. Given: {_N} `inputs` tokens and {_N} `max_new_tokens`"
)
# Cohere.
_OVER: Final = re.compile(
    rf"limit exceeded by {_N} tokens\b.{{0,200}}?limit for this model is {_N} tokens", re.DOTALL
)


def figures(message: str) -> tuple[int | None, int | None]:
    """Tokens needed and tokens there are; None for what is not told. Needed is always more than there is."""
    needed, limit = _read(message)
    if needed is None or limit is None or not 0 < limit < needed:
        return None, None
    return needed, limit


def _read(message: str) -> tuple[int | None, int | None]:
    for pattern in _NEEDED_OF_LIMIT:
        if found := pattern.search(message):
            return int(found[1]), int(found[2])
    for pattern in _LIMIT_OF_NEEDED:
        if found := pattern.search(message):
            return int(found[2]), int(found[1])
    if found := _WITH_OUTPUT.search(message):
        return int(found[1]) + int(found[2]), int(found[3])
    if found := _GIVEN.search(message):
        return int(found[2]) + int(found[3]), int(found[1])
    if found := _OVER.search(message):
        return int(found[1]) + int(found[2]), int(found[2])
    return None, None
