"""Errors of Cohere: status, and `error_type` where the API names one.

A body is `{"id", "message"}`, now and then with `error_type`. Source: Cohere documentation, "Errors";
recorded traffic; public issues.
"""

import re
from collections.abc import Mapping
from typing import Final

from breakwater_gateway.worker.provider_limits import parse_retry_after
from breakwater_gateway.worker.wire import objects as o
from breakwater_gateway.worker.wire.refused import failure_of
from breakwater_protocol import failures as f

TEXT_MAX: Final = 1000
"""Characters of a provider's message that are kept."""

_Kind = type[f.Failure]

_BY_TYPE: Final[dict[str, _Kind]] = {
    "TOO_MANY_TOKENS": f.ContextLength,
    "INVALID_TOOL_GENERATION": f.MalformedToolCall,
}

_BY_STATUS: Final[dict[int, _Kind]] = {
    400: f.InvalidRequest,
    401: f.KeyRejected,
    402: f.QuotaExhausted,
    403: f.KeyForbidden,
    404: f.ModelNotFound,
    413: f.RequestOverLimit,
    422: f.InvalidRequest,
    429: f.RateLimited,
    498: f.ContentFiltered,  # "Invalid Token" in the page's words: blocklisted or unsafe content
    499: f.ServerError,
    501: f.InvalidRequest,
    503: f.Overloaded,
}

_CONTEXT: Final = re.compile(
    # Older messages name no `error_type`; "Errors" quotes the sentence.
    r"^too many tokens:",
    re.IGNORECASE,
)
_MONTH: Final = re.compile(
    # A trial key's monthly calls are used up, under the same 429 as its minute's ("Errors").
    r"^You are using a Trial key, which is limited to [0-9]+ API calls / month",
    re.IGNORECASE,
)
_NO_MODEL: Final = re.compile(
    r"^(?:invalid model id\b|model '[^']{1,200}' (?:not found|was removed))", re.IGNORECASE
)


def classify(status: int, headers: Mapping[str, str], body: bytes, *, now: float) -> f.Failure:
    """An error answer as one of the closed union: `error_type` first, then status and, once, the sentence."""
    message, code = read(body)
    return failure(
        status,
        code,
        message or (o.unsaid(status, body)),
        parse_retry_after(headers, now) if status in {429, 503} or status >= 500 else None,
    )


def failure(status: int, code: str, message: str, wait: float | None) -> f.Failure:
    chosen = _choose(status, code, message)
    return failure_of(chosen, message[:TEXT_MAX], status, code[:200], wait=wait)


def _choose(status: int, code: str, message: str) -> _Kind:
    by_type = _BY_TYPE.get(code)
    if by_type is not None:
        return by_type
    chosen = _BY_STATUS.get(status)
    if chosen is None:
        chosen = f.InvalidRequest if 400 <= status < 500 else f.ServerError
    if chosen is f.InvalidRequest and _CONTEXT.search(message):
        return f.ContextLength
    if chosen is f.InvalidRequest and _NO_MODEL.search(message):
        return f.ModelNotFound
    if chosen is f.RateLimited and _MONTH.search(message):
        return f.QuotaExhausted
    return chosen


def read(body: bytes) -> tuple[str, str]:
    """Message and `error_type` of an error's body."""
    try:
        given = o.fields_of(body)
    except o.UNREADABLE:
        return "", ""
    message = (
        o.text_or_empty(given.get("message"))
        or o.text_or_empty(given.get("error"))
        or o.text_or_empty(given.get("data"))
    )
    return message, o.text_or_empty(given.get("error_type"))
