"""Errors of Ollama: a sentence in `error`, beside a status that says most.

Source: github.com/ollama/ollama, docs/api.md ("Errors"), server/routes.go; recorded traffic.
"""

import re
from collections.abc import Mapping
from typing import Final

from msgspec import Raw

from breakwater_gateway.worker.provider_limits import parse_retry_after
from breakwater_gateway.worker.wire import objects as o
from breakwater_gateway.worker.wire.refused import failure_of
from breakwater_protocol import failures as f

TEXT_MAX: Final = 1000
"""Characters of a provider's message that are kept."""

_Kind = type[f.Failure]

_BY_STATUS: Final[dict[int, _Kind]] = {
    400: f.InvalidRequest,
    401: f.KeyRejected,
    402: f.QuotaExhausted,
    403: f.KeyForbidden,
    404: f.ModelNotFound,
    413: f.RequestOverLimit,
    422: f.InvalidRequest,
    429: f.RateLimited,
    503: f.Overloaded,
    529: f.Overloaded,
}

_CONTEXT: Final = re.compile(
    # Recorded of the cloud; server/routes.go of embeddings and, with `truncate` off, of chat.
    r"^(?:prompt too long; exceeded max context length"
    r"|(?:the )?input (?:length )?exceeds (?:the )?(?:maximum )?context length"
    r"|the prompt is too long)",
    re.IGNORECASE,
)
# server/routes.go: the words of an `error` that ends a stream, which has no status.
_NO_MODEL: Final = re.compile(
    r"^model '[^']{1,300}' not found|^model \"[^\"]{1,300}\" not found", re.IGNORECASE
)
# The cloud's 429 for a used-up week or session, of which waiting within a request is useless:
# continuedev/continue#11444, NousResearch/hermes-agent#68832.
_USED_UP: Final = re.compile(
    r"^you(?:'ve| \([^)]{0,300}\) have| have) reached your [a-z| ]{0,40}usage limit", re.IGNORECASE
)
_BUSY: Final = re.compile(r"^server busy, please try again", re.IGNORECASE)
# server/routes.go, harmony's and the tools' parsers: what the model wrote as a call is none.
_TOOL: Final = re.compile(r"^error parsing tool call\b", re.IGNORECASE)


def classify(status: int, headers: Mapping[str, str], body: bytes, *, now: float) -> f.Failure:
    """An error answer as one of the closed union: status first, then the sentence."""
    message, code = _read(body)
    chosen = _choose(status, message)
    said = (message or o.unsaid(status, body))[:TEXT_MAX]
    code = code[:200]
    wait = parse_retry_after(headers, now) if status in {429, 503} or status >= 500 else None
    return failure_of(chosen, said, status, code, wait=wait)


def _choose(status: int, message: str) -> _Kind:
    chosen = _BY_STATUS.get(status)
    if chosen is None:
        chosen = f.InvalidRequest if 400 <= status < 500 else f.ServerError
    if chosen is f.RateLimited and _USED_UP.search(message):
        return f.QuotaExhausted
    if chosen in {f.InvalidRequest, f.ServerError}:
        for pattern, kind in (
            (_CONTEXT, f.ContextLength),
            (_NO_MODEL, f.ModelNotFound),
            (_BUSY, f.Overloaded),
            (_TOOL, f.MalformedToolCall),
        ):
            if pattern.search(message):
                return kind
    return chosen


def _read(body: bytes) -> tuple[str, str]:
    """Message and type: `error` is a string, or OpenAI's object on the compatible paths."""
    given = o.fields_or_empty(Raw(body))
    error = given.get("error")
    if error is None:
        return o.text_or_empty(given.get("message")), ""
    if o.is_text(error):
        return o.text_or_empty(error), ""
    inner = o.fields_or_empty(error)
    return o.text_or_empty(inner.get("message")), o.text_or_empty(
        inner.get("code")
    ) or o.text_or_empty(inner.get("type"))
