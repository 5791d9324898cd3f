"""Failures of Google's APIs, `google.rpc.Status` in JSON, both ways.

The canonical status and the typed details tell nearly all: `ErrorInfo.reason` names the cause,
`QuotaFailure` the exhausted limit, `RetryInfo` the wait; there is no Retry-After header. Three things the
API says in its message only: see `_MESSAGES`. Source: google/rpc/error_details.proto; AIP-193; Gemini API
documentation, "Troubleshooting guide"; Vertex AI documentation, "API errors".
"""

import re
from collections.abc import Mapping
from typing import Final

import msgspec
from msgspec import Raw, Struct

from breakwater_gateway.worker.provider_limits import RETRY_AFTER_MAX_S, parse_retry_after
from breakwater_gateway.worker.wire.gemini.fields import UNREADABLE, encode
from breakwater_gateway.worker.wire.refused import failure_of
from breakwater_protocol import failures as f

MESSAGE_MAX: Final = 1000
DETAILS_MAX: Final = 64


class _Violation(Struct, rename="camel"):
    quota_id: str = ""
    quota_metric: str = ""
    quota_value: str | int | None = None


class _FieldViolation(Struct):
    field: str = ""


class _Detail(Struct, rename="camel"):
    type: str = msgspec.field(name="@type", default="")
    reason: str = ""
    retry_delay: str = ""
    violations: list[_Violation] = []
    field_violations: list[_FieldViolation] = []


class _Status(Struct):
    code: int | str | None = None
    message: str | None = None
    status: str | None = None
    details: list[Raw] | None = None


class _Body(Struct):
    error: _Status | str | None = None


_body: Final = msgspec.json.Decoder(_Body | list[_Body]).decode
_detail: Final = msgspec.json.Decoder(_Detail).decode

_BY_REASON: Final[dict[str, type[f.Failure]]] = {
    "API_KEY_INVALID": f.KeyRejected,
    "API_KEY_EXPIRED": f.KeyRejected,
    "CREDENTIALS_MISSING": f.KeyRejected,
    "ACCESS_TOKEN_EXPIRED": f.KeyRejected,
    "ACCESS_TOKEN_TYPE_UNSUPPORTED": f.KeyRejected,
    "ACCESS_TOKEN_SCOPE_INSUFFICIENT": f.KeyForbidden,
    "ACCOUNT_STATE_INVALID": f.KeyRejected,
    "SESSION_COOKIE_INVALID": f.KeyRejected,
    "API_KEY_SERVICE_BLOCKED": f.KeyForbidden,
    "API_KEY_HTTP_REFERRER_BLOCKED": f.KeyForbidden,
    "API_KEY_IP_ADDRESS_BLOCKED": f.KeyForbidden,
    "API_KEY_ANDROID_APP_BLOCKED": f.KeyForbidden,
    "API_KEY_IOS_APP_BLOCKED": f.KeyForbidden,
    "SERVICE_DISABLED": f.KeyForbidden,
    "CONSUMER_INVALID": f.KeyForbidden,
    "CONSUMER_SUSPENDED": f.KeyForbidden,
    "IAM_PERMISSION_DENIED": f.KeyForbidden,
    "USER_PROJECT_DENIED": f.KeyForbidden,
    "LOCATION_POLICY_VIOLATED": f.KeyForbidden,
    "SECURITY_POLICY_VIOLATED": f.KeyForbidden,
    "BILLING_DISABLED": f.QuotaExhausted,
    "MODEL_CAPACITY_EXHAUSTED": f.Overloaded,
}
"""Source: google/api/error_reason.proto; the last, recorded by users under 429 and 503."""

_BY_STATUS: Final[dict[str, type[f.Failure]]] = {
    "INVALID_ARGUMENT": f.InvalidRequest,
    "OUT_OF_RANGE": f.InvalidRequest,
    "ALREADY_EXISTS": f.InvalidRequest,
    "UNIMPLEMENTED": f.InvalidRequest,
    # The location, or the tier of the account, is not served: nothing of the request is wrong.
    "FAILED_PRECONDITION": f.KeyForbidden,
    "UNAUTHENTICATED": f.KeyRejected,
    "PERMISSION_DENIED": f.KeyForbidden,
    "NOT_FOUND": f.ModelNotFound,
    "RESOURCE_EXHAUSTED": f.RateLimited,
    "UNAVAILABLE": f.Overloaded,
    "INTERNAL": f.ServerError,
    "UNKNOWN": f.ServerError,
    "DATA_LOSS": f.ServerError,
    "ABORTED": f.ServerError,
    "CANCELLED": f.ServerError,
    "DEADLINE_EXCEEDED": f.ServerError,
}
_BY_CODE: Final[dict[int, type[f.Failure]]] = {
    400: f.InvalidRequest,
    401: f.KeyRejected,
    402: f.QuotaExhausted,
    403: f.KeyForbidden,
    404: f.ModelNotFound,
    408: f.ServerError,
    409: f.ServerError,
    413: f.PayloadTooLarge,
    429: f.RateLimited,
    499: f.ServerError,
    503: f.Overloaded,
    529: f.Overloaded,
}

# Said under INVALID_ARGUMENT or RESOURCE_EXHAUSTED with no reason beside. Sources: recorded answers and
# public issues of the Gemini API ("The input token count (N) exceeds the maximum number of tokens allowed
# (M)"; on Vertex "Unable to submit request because the input token count is N but model only supports up
# to M"; "Request payload size exceeds the limit: N bytes"); the AI Studio billing documentation (prepaid
# credits, spending caps).
_MESSAGES: Final = re.compile(
    r"""
    (?P<context>(?:Unable\ to\ submit\ request\ because\ )?[Tt]he\ input\ token\ count\ (?:
        \([0-9]+\)\ exceeds | is\ [0-9]+\ but\ (?:the\ )?model\ only\ supports | exceeds\ the\ maximum))
    | (?P<payload>Request\ payload\ size\ exceeds)
    | (?P<credit>Your\ (?:prepayment\ credits\ are\ depleted
        | (?:project|billing\ account)\ has\ exceeded\ its\ (?:monthly\ )?spending\ cap))
    """,
    re.VERBOSE,
)
_BY_MESSAGE: Final[dict[str, type[f.Failure]]] = {
    "context": f.ContextLength,
    "payload": f.PayloadTooLarge,
    "credit": f.QuotaExhausted,
}

# `GenerateRequestsPerDayPerProjectPerModel-FreeTier`: waiting for the next day is no retry.
_LONG_QUOTA: Final = re.compile(r"Per(?:Day|Week|Month|Year)(?![a-z])|_per_(?:day|week|month)")
_DURATION: Final = re.compile(r"(?P<seconds>[0-9]{1,12}(?:\.[0-9]{1,9})?)s")


def classify(status: int, headers: Mapping[str, str], body: bytes, *, now: float) -> f.Failure:
    """An error answer, or an error inside a 200, as one of the closed union.

    `now` is Unix time, for a Retry-After given as a date. The message is the provider's own, bounded, save
    where it could quote a key.
    """
    error = _read(body)
    code = _number(error.code)
    # Inside a stream the body alone tells the status.
    shown = code if status < 400 and code is not None and 400 <= code < 600 else status
    details = _details(error)
    reason = next((detail.reason for detail in details if detail.reason), "")
    canonical = error.status or ""
    message = (error.message or f"the provider answered with status {shown}")[:MESSAGE_MAX]
    seen = reason or canonical
    chosen = _chosen(shown, canonical, reason, message, details)
    # A RetryInfo beside a daily quota counts to the next minute, not to the next day.
    wait = None if chosen is f.QuotaExhausted else _wait(details, headers, now)
    return failure_of(chosen, message, shown, seen, wait=wait, param=_field(details))


def _chosen(
    shown: int, canonical: str, reason: str, message: str, details: list[_Detail]
) -> type[f.Failure]:
    by_reason = _BY_REASON.get(reason)
    if by_reason is not None:
        return by_reason
    by_status = _BY_STATUS.get(canonical) or _BY_CODE.get(shown)
    if by_status is f.RateLimited and _is_long(details):
        return f.QuotaExhausted
    if by_status in {f.InvalidRequest, f.RateLimited}:
        found = _MESSAGES.match(message)
        if found is not None and found.lastgroup is not None:
            return _BY_MESSAGE[found.lastgroup]
    if by_status is not None:
        return by_status
    return f.InvalidRequest if 400 <= shown < 500 else f.ServerError


def _read(body: bytes) -> _Status:
    """The error, also of a body that wraps it in a list, as streams without `alt=sse` do."""
    try:
        given = _body(body)
    except UNREADABLE:
        return _Status()
    first = given if isinstance(given, _Body) else (given[0] if given else _Body())
    if isinstance(first.error, str):
        return _Status(message=first.error)
    return first.error or _Status()


def _number(code: int | str | None) -> int | None:
    if isinstance(code, str):
        return int(code) if code.isascii() and code.isdigit() and len(code) < 6 else None
    return code


def _details(error: _Status) -> list[_Detail]:
    found: list[_Detail] = []
    for raw in (error.details or ())[:DETAILS_MAX]:
        try:
            found.append(_detail(raw))
        except UNREADABLE:
            # A kind of detail with the same names for other things: it tells us nothing.
            continue
    return found


def _is_long(details: list[_Detail]) -> bool:
    """A limit of a day or more is exhausted, or one that is zero."""
    return any(
        _LONG_QUOTA.search(violation.quota_id) or violation.quota_value in {"0", 0}
        for detail in details
        for violation in detail.violations
    )


def _field(details: list[_Detail]) -> str | None:
    for detail in details:
        for violation in detail.field_violations:
            if violation.field:
                return violation.field[:200]
    return None


def _wait(details: list[_Detail], headers: Mapping[str, str], now: float) -> float | None:
    for detail in details:
        found = _DURATION.fullmatch(detail.retry_delay)
        if found is not None:
            return min(float(found["seconds"]), RETRY_AFTER_MAX_S)
    return parse_retry_after(headers, now)


# ---------------------------------------------------------------- to callers

_CANONICAL: Final[dict[int, str]] = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ABORTED",
    413: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    502: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}

_TYPE: Final = "type.googleapis.com/google.rpc."
DOMAIN: Final = "breakwater"


def encode_error(failure: f.Failure) -> bytes:
    """A failure as Google's APIs tell it; the HTTP status is `failures.spec(failure).status`.

    `ErrorInfo.reason` is the contract's code in capitals, `RetryInfo` the wait.
    """
    spec = f.spec(failure)
    details: list[dict[str, object]] = [
        {"@type": _TYPE + "ErrorInfo", "reason": spec.code.upper(), "domain": DOMAIN}
    ]
    if isinstance(failure, f.InvalidRequest) and failure.param:
        violation = {"field": failure.param, "description": failure.message}
        details.append({"@type": _TYPE + "BadRequest", "fieldViolations": [violation]})
    wait = f.retry_after_s(failure)
    if wait is not None:
        # At most nine digits after the point: google.protobuf.Duration.
        delay = f"{max(0.0, wait):.3f}".rstrip("0").rstrip(".") + "s"
        details.append({"@type": _TYPE + "RetryInfo", "retryDelay": delay})
    return encode(
        {
            "error": {
                "code": spec.status,
                "message": failure.message or spec.code.replace("_", " "),
                "status": _CANONICAL.get(spec.status, "UNKNOWN"),
                "details": details,
            }
        }
    )
