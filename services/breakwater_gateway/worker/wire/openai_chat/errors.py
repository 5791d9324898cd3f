"""Errors of the chat-completions family: status, machine codes and, where a host has none, its sentence.

One reader for every host, since an error body carries no sender: OpenAI's object, xAI's and Ollama's
string, Mistral's `detail`, vLLM's flat object, Gemini's array. Codes decide first; a sentence decides only
for hosts that send no code for the case, each through one anchored pattern with its source.
"""

import re
from collections.abc import Mapping
from typing import Final

from msgspec import Raw, Struct

from breakwater_gateway.worker.provider_limits import parse_retry_after
from breakwater_gateway.worker.wire.openai_chat.fields import (
    UNREADABLE,
    decode_fields,
    decode_list,
    is_null,
    is_text,
    text_or,
    whole_or,
)
from breakwater_gateway.worker.wire.refused import failure_of
from breakwater_protocol import failures as f

TEXT_MAX: Final = 1000
"""Characters of a provider's message that are kept."""

_MATCHED_MAX: Final = 4000
"""Characters of a message that sentences are looked for in."""

_RESET_MAX_S: Final = 31 * 86400.0

_Kind = type[f.Failure]

_BY_CODE: Final[dict[str, _Kind]] = {
    "context_length_exceeded": f.ContextLength,
    "exceed_context_size_error": f.ContextLength,  # llama.cpp
    "too_many_prompt_tokens": f.ContextLength,  # Perplexity
    "content_filter": f.ContentFiltered,
    "content_policy_violation": f.ContentFiltered,
    "invalid_prompt": f.ContentFiltered,  # OpenAI: flagged as against its usage policy
    "ResponsibleAIPolicyViolation": f.ContentFiltered,  # Azure
    "data_inspection_failed": f.ContentFiltered,  # Alibaba
    "insufficient_quota": f.QuotaExhausted,
    "billing_hard_limit_reached": f.QuotaExhausted,
    "exceeded_current_quota_error": f.QuotaExhausted,  # Moonshot
    "Arrearage": f.QuotaExhausted,  # Alibaba
    "1113": f.QuotaExhausted,  # Z.ai: "insufficient balance"
    "rate_limit_exceeded": f.RateLimited,
    "RateLimitReached": f.RateLimited,  # Azure
    "rate_limited": f.RateLimited,  # Mistral
    "rate_limit_reached_error": f.RateLimited,  # Moonshot
    "RESOURCE_EXHAUSTED": f.RateLimited,  # Gemini
    "invalid_api_key": f.KeyRejected,
    "authentication_error": f.KeyRejected,
    "invalid_authentication_error": f.KeyRejected,  # Moonshot
    "UNAUTHENTICATED": f.KeyRejected,
    "permission_denied": f.KeyForbidden,
    "permission_denied_error": f.KeyForbidden,  # Moonshot
    "model_not_found": f.ModelNotFound,
    "model_not_available": f.ModelNotFound,  # Together
    "model_not_supported": f.ModelNotFound,  # Hugging Face
    "invalid_model": f.ModelNotFound,  # Mistral, Perplexity
    "DeploymentNotFound": f.ModelNotFound,  # Azure
    "unknown_model": f.ModelNotFound,  # Azure, GitHub Models
    "1211": f.ModelNotFound,  # Z.ai: "model does not exist"
    "request_too_large": f.RequestOverLimit,
    "server_error": f.ServerError,
    "internal_server_error": f.ServerError,
    "overloaded": f.Overloaded,
    "overloaded_error": f.Overloaded,
    "service_unavailable": f.Overloaded,
    "engine_overloaded_error": f.Overloaded,  # Moonshot
    "service_tier_capacity_exceeded": f.Overloaded,  # Mistral
    "UNAVAILABLE": f.Overloaded,
    "tool_use_failed": f.MalformedToolCall,  # Groq
}

_BY_STATUS: Final[dict[int, _Kind]] = {
    400: f.InvalidRequest,
    401: f.KeyRejected,
    402: f.QuotaExhausted,
    403: f.KeyForbidden,
    404: f.ModelNotFound,
    408: f.ServerError,
    409: f.ServerError,
    413: f.RequestOverLimit,
    422: f.InvalidRequest,
    429: f.RateLimited,
    498: f.ContentFiltered,
    503: f.Overloaded,
    529: f.Overloaded,
}


def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(text, re.IGNORECASE)


_SENTENCES: Final[tuple[tuple[frozenset[int], re.Pattern[str], _Kind], ...]] = (
    # DeepSeek (recorded), OpenRouter (recorded), vLLM before 0.16.
    (
        frozenset({400, 422}),
        _pattern(r"^This (?:model|endpoint)'s maximum context length is [0-9]+ tokens"),
        f.ContextLength,
    ),
    # vLLM from 0.16.
    (
        frozenset({400}),
        _pattern(r"^You passed [0-9]+ input tokens .*maximum input length of [0-9]+ tokens"),
        f.ContextLength,
    ),
    # Ollama's cloud (recorded).
    (
        frozenset({400}),
        _pattern(r"^prompt too long; exceeded max context length by [0-9]+ tokens"),
        f.ContextLength,
    ),
    # xAI (public issues).
    (
        frozenset({400}),
        _pattern(r"^This model's maximum prompt length is [0-9]+ but the request contains"),
        f.ContextLength,
    ),
    # Mistral (public issues).
    (
        frozenset({400, 422}),
        _pattern(r"^Prompt contains [0-9]+ tokens.*maximum context length"),
        f.ContextLength,
    ),
    # Text Generation Inference, at Hugging Face and Together.
    (
        frozenset({400, 422}),
        _pattern(
            r"^(?:Input validation error: )?`inputs` (?:tokens \+ `max_new_tokens` )?must (?:be <=|have less than)"
        ),
        f.ContextLength,
    ),
    # xAI gives a gRPC sentence for a code (recorded; public issues).
    (frozenset({400, 401}), _pattern(r"^Incorrect API key provided"), f.KeyRejected),
    (
        frozenset({403, 429}),
        _pattern(r"^Your (?:newly created )?team .*\b(?:credits|spending limit)\b"),
        f.QuotaExhausted,
    ),
    (frozenset({403}), _pattern(r"^Content violates usage guidelines"), f.ContentFiltered),
    # DeepSeek, "Error codes" and public issues.
    (frozenset({400}), _pattern(r"^Model Not Exist"), f.ModelNotFound),
    (frozenset({400}), _pattern(r"^Content Exists Risk"), f.ContentFiltered),
    # OpenRouter: the day's free requests are used up.
    (
        frozenset({429}),
        _pattern(r"^Rate limit exceeded: free-models-per-day"),
        f.QuotaExhausted,
    ),
    (frozenset({400}), _pattern(r"^\S{1,200} is not a valid model ID"), f.ModelNotFound),
    # Mistral: capacity of the tier, not of the key.
    (frozenset({429, 503}), _pattern(r"^Service tier capacity exceeded"), f.Overloaded),
    # Voyage (recorded).
    (
        frozenset({400}),
        _pattern(r"^Model \S{1,200} is not supported\. Supported models are"),
        f.ModelNotFound,
    ),
)

# OpenAI and Groq say with one code that the minute is used up and that no minute will ever do.
_LIMIT: Final = re.compile(r"\bLimit ([0-9]{1,15}),(?: Used [0-9]{1,15},)? Requested ([0-9]{1,15})")
_AGAIN: Final = re.compile(
    r"\btry again in ((?:[0-9]{1,9}(?:\.[0-9]{1,9})?(?:ms|s|m|h)){1,4})", re.IGNORECASE
)


class _Said(Struct):
    """What an error body says, whatever its shape."""

    message: str = ""
    code: str = ""
    type: str = ""
    param: str | None = None
    status: int = 0
    metadata: Raw | None = None


def classify(status: int, headers: Mapping[str, str], body: bytes, *, now: float) -> f.Failure:
    """An error answer as one of the closed union: machine code first, then a host's sentence, then status.

    `now` is Unix time, for waits given as a date. Under a status of 200 the status that the error object
    itself names counts. The message is the provider's own, bounded, except where it could quote a key.
    """
    said = _read(body)
    seen_status = status
    if status < 400 and 400 <= said.status <= 599:
        status = said.status
    message = (said.message or f"the provider answered with status {status}")[:TEXT_MAX]
    chosen = _choose(status, said)
    code = (said.code or said.type)[:200]
    wait = _wait(chosen, status, headers, said, now)
    return failure_of(chosen, message, seen_status, code, wait=wait, param=said.param)


def _choose(status: int, said: _Said) -> _Kind:
    by_code = _BY_CODE.get(said.code) or _BY_CODE.get(said.type)
    if by_code in {f.RateLimited, f.RequestOverLimit} or (by_code is None and status == 429):
        figures = _LIMIT.search(said.message)
        if status == 413 or (figures and int(figures[2]) > int(figures[1])):
            return f.RequestOverLimit
    if by_code in {None, f.RateLimited, f.ServerError, f.KeyRejected}:
        for statuses, pattern, kind in _SENTENCES:
            if status in statuses and pattern.search(said.message):
                return kind
        if status == 403 and _moderated(said):
            return f.ContentFiltered
    if by_code is f.ServerError and status in {503, 529}:
        # The type only says whose fault it is; the status says that it is a matter of capacity.
        return f.Overloaded
    if by_code is not None:
        return by_code
    return _BY_STATUS.get(status) or (f.InvalidRequest if 400 <= status < 500 else f.ServerError)


def _moderated(said: _Said) -> bool:
    """OpenRouter, "Errors": a flagged input has `metadata.reasons`."""
    return b'"reasons"' in bytes(said.metadata or b"") and "reasons" in _fields(said.metadata)


def _wait(
    chosen: _Kind, status: int, headers: Mapping[str, str], said: _Said, now: float
) -> float | None:
    if chosen not in {f.RateLimited, f.QuotaExhausted, f.Overloaded, f.ServerError}:
        return None
    if chosen is not f.QuotaExhausted or status in {429, 503, 529} or status >= 500:
        wait = parse_retry_after(headers, now)
        if wait is not None:
            return wait
    # OpenRouter puts the limiting host's headers into the body; the reset is Unix milliseconds.
    inner = _fields(_fields(said.metadata).get("headers"))
    reset = whole_or(inner.get("X-RateLimit-Reset")) or _number(
        text_or(inner.get("X-RateLimit-Reset"))
    )
    if reset and now > 0:
        return min(max(0.0, reset / 1000 - now), _RESET_MAX_S)
    again = _AGAIN.search(said.message)
    if again and chosen is f.RateLimited:
        return parse_retry_after({"x-ratelimit-reset-message": again[1].lower()}, now)
    return None


def _number(text: str) -> int:
    return int(text) if len(text) <= 18 and text.isascii() and text.isdigit() else 0


def _read(body: bytes) -> _Said:
    try:
        fields = decode_fields(body)
    except UNREADABLE:
        try:
            # Gemini's OpenAI endpoint sends an array of one.
            fields = decode_fields(decode_list(body)[0])
        except (*UNREADABLE, IndexError):
            return _Said(message=not_json(body))
    error = fields.get("error")
    if not is_null(error) and error is not None:
        if is_text(error):
            return _said(fields, text_or(error))
        inner = _fields(error)
        if inner:
            return _said(inner, text_or(inner.get("message")))
    return _said(fields, text_or(fields.get("message")) or _detail(fields.get("detail")))


def _said(fields: dict[str, Raw], message: str) -> _Said:
    code = _scalar(fields.get("code"))
    status = _number(code) or whole_or(fields.get("status_code")) or whole_or(fields.get("status"))
    param = fields.get("param")
    metadata = fields.get("metadata")
    return _Said(
        message=message[:_MATCHED_MAX],
        code=code,
        type=text_or(fields.get("type")) or text_or(fields.get("status")),
        param=text_or(param)[:200] if param is not None and is_text(param) else None,
        status=status,
        metadata=metadata,
    )


def _scalar(raw: Raw | None) -> str:
    if raw is None or is_null(raw):
        return ""
    return text_or(raw) if is_text(raw) else bytes(raw)[:40].decode("ascii", "replace")


def _detail(raw: Raw | None) -> str:
    """FastAPI's `detail`: a string, or a list of what is wrong with which field."""
    if raw is None:
        return ""
    if is_text(raw):
        return text_or(raw)
    try:
        return "; ".join(text_or(_fields(item).get("msg")) for item in decode_list(raw)[:8])
    except UNREADABLE:
        return ""


def _fields(raw: Raw | None) -> dict[str, Raw]:
    if raw is None:
        return {}
    try:
        return decode_fields(raw)
    except UNREADABLE:
        return {}


def not_json(body: bytes) -> str:
    """What to say of a body that should have been JSON."""
    start = body.lstrip()[:15].lower()
    if start.startswith((b"<!doctype", b"<html")):
        return "the provider answered with an HTML page instead of JSON"
    if not start:
        return "the provider answered with an empty body"
    return "the provider's answer is not the JSON that its API promises"
