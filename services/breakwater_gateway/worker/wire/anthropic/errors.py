"""Error objects: a provider's answer to a failure, and a failure to the caller's error object.

Sources: Anthropic API documentation, "Errors" and "Rate limits"; `error.details.error_code` as the official
SDK 2.12 lists it; Google Cloud, "Error handling" (`google.rpc.Code`), for Claude on Vertex.
"""

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Final

import msgspec
from msgspec import Raw, Struct

from breakwater_gateway.worker.provider_limits import RETRY_AFTER_MAX_S, parse_retry_after
from breakwater_gateway.worker.wire.anthropic import blocks as b
from breakwater_gateway.worker.wire.refused import failure_of
from breakwater_protocol import failures as f

_MESSAGE_MAX: Final = 1000

# ---- a provider's answer to a failure


class _Details(Struct):
    error_code: str | None = None


class _Error(Struct):
    type: str | None = None
    message: str | None = None
    details: Raw = b.ABSENT
    status: str | None = None
    """Google's word; its `code` is the HTTP status again."""
    code: str | int | None = None


class _Body(Struct):
    error: _Error | str | None = None
    message: str | None = None


_body: Final = msgspec.json.Decoder(_Body | list[_Body]).decode
_details: Final = msgspec.json.Decoder(_Details).decode

_BY_CODE: Final[dict[str, type[f.Failure]]] = {
    "enforced_spend_limit_reached": f.QuotaExhausted,
    "contract_spend_limit_reached": f.QuotaExhausted,
    "linked_organization_spend_limit_reached": f.QuotaExhausted,
    "linked_organization_billing_unavailable": f.QuotaExhausted,
    "ramp_limit_exceeded": f.RateLimited,
    "request_body_too_large_after_decoding": f.PayloadTooLarge,
    "request_body_timeout": f.ServerError,
    "compaction_unavailable": f.Overloaded,
    "organization_on_hold": f.KeyForbidden,
    "organization_not_enrolled_in_beta": f.KeyForbidden,
    "claude_code_key_creator_not_member": f.KeyForbidden,
    "cmek_key_disabled": f.KeyForbidden,
    "cmek_key_network_blocked": f.KeyForbidden,
    "file_expired": f.InvalidRequest,
    "thread_not_found": f.InvalidRequest,
}

_BY_TYPE: Final[dict[str, type[f.Failure]]] = {
    "authentication_error": f.KeyRejected,
    "billing_error": f.QuotaExhausted,
    "permission_error": f.KeyForbidden,
    "not_found_error": f.ModelNotFound,
    "request_too_large": f.PayloadTooLarge,
    "rate_limit_error": f.RateLimited,
    "timeout_error": f.ServerError,
    "conflict_error": f.ServerError,
    "api_error": f.ServerError,
    "overloaded_error": f.Overloaded,
    # google.rpc.Code, of Vertex before Claude was reached.
    "UNAUTHENTICATED": f.KeyRejected,
    "PERMISSION_DENIED": f.KeyForbidden,
    "NOT_FOUND": f.ModelNotFound,
    "RESOURCE_EXHAUSTED": f.RateLimited,
    "UNAVAILABLE": f.Overloaded,
    "DEADLINE_EXCEEDED": f.ServerError,
    "INTERNAL": f.ServerError,
}

_BY_STATUS: Final[dict[int, type[f.Failure]]] = {
    400: f.InvalidRequest,
    401: f.KeyRejected,
    402: f.QuotaExhausted,
    403: f.KeyForbidden,
    404: f.ModelNotFound,
    408: f.ServerError,
    409: f.ServerError,
    413: f.PayloadTooLarge,
    429: f.RateLimited,
    503: f.Overloaded,
    529: f.Overloaded,
}

_SAID: Final = re.compile(
    r"(?P<context>prompt is too long: \d+ tokens"
    r"|input length and `?max_tokens`? exceed context limit)"
    r"|(?P<quota>Your credit balance is too low"
    r"|You have reached your specified (?:workspace )?API usage limits)"
    r"|(?P<filter>Output blocked by content filtering policy)"
    r"|(?P<disabled>This organization has been disabled)"
    r"|(?P<file>File not found)",
    re.IGNORECASE,
)
"""What Anthropic says without a code of its own under `invalid_request_error` and `not_found_error`.

Recorded, or quoted in anthropics/claude-code#66314, #71669 and langchain-ai/langchainjs#1929.
"""

_BY_WORDS: Final[dict[str, type[f.Failure]]] = {
    "context": f.ContextLength,
    "quota": f.QuotaExhausted,
    "filter": f.ContentFiltered,
    "disabled": f.KeyForbidden,
    "file": f.InvalidRequest,
}


def classify(status: int, headers: Mapping[str, str], body: bytes, *, now: float) -> f.Failure:
    """An error answer, or an error inside an answer of status 200, as one of the closed union.

    The machine code first, then the type, then the status; words only where the type is too broad. `now`
    is Unix time. The provider's message is kept, bounded, but for key failures: those could quote the key.
    """
    error, plain = _read(body)
    code = _code(error)
    kind = error.type or error.status or ""
    text = error.message or plain or f"the provider answered with status {status}"
    chosen = _BY_CODE.get(code) or _by_words(kind, status, text)
    chosen = chosen or _BY_TYPE.get(kind) or _BY_STATUS.get(status)
    if chosen is None:
        refused = kind in {"invalid_request_error", "INVALID_ARGUMENT"} or 400 <= status < 500
        chosen = f.InvalidRequest if refused else f.ServerError
    # Successful answers carry the same headers: only a refusal's wait is meant.
    wait = _wait(headers, now) if status in {408, 429} or status >= 500 else None
    return failure_of(chosen, text[:_MESSAGE_MAX], status, code or kind, wait=wait)


def _read(body: bytes) -> tuple[_Error, str]:
    """The error object, and the text that stands for it where there is none."""
    try:
        parsed = _body(body)
    except b.UNREADABLE:
        return _Error(), not_json(body)
    if isinstance(parsed, list):
        # Vertex wraps the error of a stream that it did not begin.
        parsed = parsed[0] if parsed else _Body()
    if isinstance(parsed.error, _Error):
        return parsed.error, parsed.message or ""
    return _Error(), parsed.error or parsed.message or ""


def _code(error: _Error) -> str:
    if error.details is not b.ABSENT:
        try:
            code = _details(error.details).error_code
        except b.UNREADABLE:
            code = None
        if code:
            return code[:200]
    return error.code[:200] if isinstance(error.code, str) else ""


_BROAD: Final = frozenset(
    {"invalid_request_error", "not_found_error", "INVALID_ARGUMENT", "FAILED_PRECONDITION", ""}
)


def _by_words(kind: str, status: int, text: str) -> type[f.Failure] | None:
    if kind not in _BROAD or status >= 500:
        return None
    found = _SAID.match(text)
    return _BY_WORDS[found.lastgroup] if found is not None and found.lastgroup else None


def not_json(body: bytes) -> str:
    start = body[:200].lstrip()[:15].lower()
    if start.startswith((b"<!doctype", b"<html")):
        return "the provider answered with an HTML page instead of JSON"
    if not start:
        return "the provider answered with an empty body"
    return "the provider's answer is not the JSON that its API promises"


_RESET: Final = re.compile(r"anthropic-ratelimit-(?P<limit>[a-z-]{1,64})-reset")


def _wait(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds: Retry-After, else the longest reset among the limits that are exhausted."""
    asked = parse_retry_after(headers, now)
    if asked is not None:
        return asked
    waits = []
    for name, value in headers.items():
        found = _RESET.fullmatch(name)
        if found is None or len(value) > 64:
            continue
        remaining = headers.get(f"anthropic-ratelimit-{found['limit']}-remaining", "")
        at = _rfc3339(value) if remaining.strip() == "0" else None
        if at is not None:
            waits.append(min(max(0.0, at - now), RETRY_AFTER_MAX_S))
    return max(waits, default=None)


def _rfc3339(text: str) -> float | None:
    try:
        at = datetime.fromisoformat(text.strip())
        return at.timestamp() if at.tzinfo is not None else None
    except (ValueError, OverflowError):
        return None


# ---- a failure to the caller's error object

_TYPE_BY_CODE: Final[dict[f.Code, str]] = {
    "invalid_request": "invalid_request_error",
    "context_length_exceeded": "invalid_request_error",
    "content_filter": "invalid_request_error",
    "max_cost_exceeded": "invalid_request_error",
    "authentication": "authentication_error",
    "permission": "permission_error",
    "model_not_found": "not_found_error",
    "payload_too_large": "request_too_large",
    "rate_limited": "rate_limit_error",
    "budget_contended": "rate_limit_error",
    "budget_exhausted": "rate_limit_error",
    "malformed_tool_call": "api_error",
    "bad_gateway": "api_error",
    "not_cached": "timeout_error",
    "overloaded": "overloaded_error",
    "no_deployment_available": "overloaded_error",
    "timeout": "timeout_error",
}


def encode_error(failure: f.Failure, request_id: str) -> bytes:
    """The body of an error answer; its status is `failures.spec(failure).status`.

    Our own code travels where this API puts machine codes, in `error.details.error_code`.
    """
    code = f.spec(failure).code
    message = failure.message or code.replace("_", " ")
    return b.encode(
        {
            "type": "error",
            "error": {
                "type": _TYPE_BY_CODE[code],
                "message": message,
                "details": {"error_code": code},
            },
            "request_id": request_id or None,
        }
    )


def encode_stream_error(failure: f.Failure, request_id: str = "") -> bytes:
    """The object of the `error` event that ends a stream which cannot go on."""
    return encode_error(failure, request_id)
