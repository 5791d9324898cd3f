"""Answers on the bus: the headers and bodies of the contract, made in one place.

Errors carry the error object of the caller's dialect; amounts are printed from integers.
"""

from collections.abc import Mapping
from typing import Final

import msgspec
from msgspec import Struct

from breakwater_protocol import failures as f
from breakwater_protocol import headers as h

_encode = msgspec.json.encode

RETRY_AFTER_MAX_S: Final = 60
"""SDKs that will try again give up on longer waits, or sit through them; the message says the true time."""
_YEAR_S: Final = 366 * 86_400


def usd(nano: int | None) -> str:
    """Nano-USD as decimal dollars, exactly; `unknown` for a model without a price."""
    if nano is None:
        return "unknown"
    sign, nano = ("-", -nano) if nano < 0 else ("", nano)
    whole, rest = divmod(nano, 1_000_000_000)
    return f"{sign}{whole}.{rest:09d}"


class _ErrorObject(Struct, frozen=True):
    message: str
    type: str
    param: str | None
    code: str


class _ErrorBody(Struct, frozen=True):
    error: _ErrorObject


class _AnthropicError(Struct, frozen=True):
    type: str
    message: str


class _AnthropicBody(Struct, frozen=True, tag_field="type", tag="error"):
    error: _AnthropicError
    request_id: str | None = None


class _GoogleInfo(Struct, frozen=True):
    """`google.rpc.ErrorInfo`: the reason in a machine's words, and facts."""

    reason: str
    domain: str
    metadata: Mapping[str, str]
    type: str = msgspec.field(name="@type", default="type.googleapis.com/google.rpc.ErrorInfo")


class _GoogleError(Struct, frozen=True, omit_defaults=True):
    code: int
    message: str
    status: str
    details: tuple[_GoogleInfo, ...] = ()


class _GoogleBody(Struct, frozen=True):
    error: _GoogleError


_DOMAIN: Final = "breakwater"

# Anthropic API, "Errors"; Google API design guide, "Error model".
_ANTHROPIC_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
_GOOGLE_STATUS: Final = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    413: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


def error_body(
    failure: f.Failure,
    api: str = "chat",
    request_id: str = "",
    *,
    reason: str = "",
    facts: Mapping[str, str] | None = None,
) -> bytes:
    """The error object of the caller's dialect. `reason` and `facts`: for `generate`, whose errors have a
    place for them."""
    spec = f.spec(failure)
    message = failure.message or spec.code.replace("_", " ")
    if api == "messages":
        type_ = _ANTHROPIC_TYPES.get(spec.status, "api_error")
        return _encode(
            _AnthropicBody(_AnthropicError(type_, message), request_id=request_id or None)
        )
    if api == "generate":
        status = _GOOGLE_STATUS.get(spec.status, "INTERNAL")
        info = (_GoogleInfo(reason.upper(), _DOMAIN, facts),) if facts else ()
        return _encode(_GoogleBody(_GoogleError(spec.status, message, status, info)))
    param = failure.param if isinstance(failure, f.InvalidRequest) else None
    if isinstance(failure, f.UnknownModel):
        param = "model"
    return _encode(_ErrorBody(_ErrorObject(message, spec.type, param, spec.code)))


def error_headers(
    failure: f.Failure, extra: Mapping[str, str] | None = None, *, retried: bool = False
) -> dict[str, str]:
    """Of an error reply on NATS; HTTP uses all but the two service headers.

    `retried`: we have tried again already. A client that did so too would multiply our calls by its own, so it
    is asked to only where the failure says when.
    """
    spec = f.spec(failure)
    wait = f.retry_after_s(failure)
    may_retry = spec.client_may_retry and (wait is not None or not retried)
    line = (failure.message or spec.code).replace("\r", " ").replace("\n", " ")[:300]
    headers = {
        h.SERVICE_ERROR_CODE: str(spec.status),
        h.SERVICE_ERROR: line.encode("ascii", "replace").decode("ascii"),
        h.SHOULD_RETRY: "true" if may_retry else "false",
    }
    if wait is None and may_retry and spec.status in {429, 503}:
        wait = 1.0
    if wait is not None:
        # Where nobody is to try again on its own it is for people and schedulers: then the true time.
        most = RETRY_AFTER_MAX_S if may_retry else _YEAR_S
        headers[h.RETRY_AFTER] = str(max(1, -int(-min(most, wait) // 1)))
    if extra:
        headers.update(extra)
    return headers
