"""Errors of Bedrock: the exception's name in a header or the frame, and for validation its sentence.

A body is only `{"message": …}`; the type is in `x-amzn-errortype` (`Name:http://…`), in `__type`
(`com.amazon…#Name`) or in a frame's `:exception-type`. Nothing names a time to wait. Source: Amazon
Bedrock API reference, "Converse", "ConverseStream" (Errors), and "Common Error Types".
"""

import re
from collections.abc import Mapping
from typing import Final

from breakwater_gateway.worker.provider_limits import parse_retry_after
from breakwater_gateway.worker.wire import objects as o
from breakwater_gateway.worker.wire.refused import failure_of
from breakwater_protocol import failures as f

ERROR_TYPE: Final = "x-amzn-errortype"

TEXT_MAX: Final = 1000
"""Characters of a provider's message that are kept."""

_Kind = type[f.Failure]

_BY_NAME: Final[dict[str, _Kind]] = {
    "AccessDenied": f.KeyForbidden,
    "NotAuthorized": f.KeyForbidden,
    "OptInRequired": f.KeyForbidden,
    "UnrecognizedClient": f.KeyRejected,
    "ExpiredToken": f.KeyRejected,
    "InvalidClientTokenId": f.KeyRejected,
    "InvalidSignature": f.KeyRejected,
    "SignatureDoesNotMatch": f.KeyRejected,
    "IncompleteSignature": f.KeyRejected,
    "MissingAuthenticationToken": f.KeyRejected,
    "RequestExpired": f.KeyRejected,
    "Throttling": f.RateLimited,
    "TooManyRequests": f.RateLimited,
    "ServiceQuotaExceeded": f.QuotaExhausted,
    "ResourceNotFound": f.ModelNotFound,
    "ModelNotReady": f.Overloaded,
    "ServiceUnavailable": f.Overloaded,
    "ModelTimeout": f.ServerError,
    "ModelError": f.ServerError,
    "ModelStreamError": f.ServerError,
    "InternalServer": f.ServerError,
    "InternalFailure": f.ServerError,
    "Validation": f.InvalidRequest,
    "RequestEntityTooLarge": f.RequestOverLimit,
}
"""By the exception's name, without `Exception` or `Error` at its end and with its first letter large."""

_BY_STATUS: Final[dict[int, _Kind]] = {
    400: f.InvalidRequest,
    401: f.KeyRejected,
    403: f.KeyForbidden,
    404: f.ModelNotFound,
    408: f.ServerError,
    413: f.RequestOverLimit,
    424: f.ServerError,
    429: f.RateLimited,
    503: f.Overloaded,
}

_CONTEXT: Final = re.compile(
    # Converse passes on each family's own sentence after a lead of its own (recorded).
    r"^(?:The model returned the following errors: )?(?:"
    # Amazon Nova (recorded).
    r"Input Tokens Exceeded\b"
    # Any family: "Troubleshooting Amazon Bedrock API error codes".
    r"|Input is too long for requested model"
    # Anthropic.
    r"|prompt is too long\b"
    r"|input length and `max_tokens` exceed context limit"
    # Meta, Mistral, OpenAI's open models: vLLM's sentence.
    r"|This model's maximum context length is [0-9]+"
    # Titan.
    r"|(?:400 Bad Request: )?Too many input tokens\b"
    # Cohere.
    r"|too many tokens:"
    r")",
    re.IGNORECASE,
)
_NO_MODEL: Final = re.compile(
    # Recorded, and "Troubleshooting Amazon Bedrock API error codes".
    r"^(?:The provided model identifier is invalid"
    r"|Could not resolve the foundation model"
    r"|Invocation of model ID \S+ with on-demand throughput)",
    re.IGNORECASE,
)
_FILTERED: Final = re.compile(
    # Anthropic on Bedrock, reported in public issues.
    r"^(?:The model returned the following errors: )?Output blocked by content filtering policy",
    re.IGNORECASE,
)
# "Quotas for Amazon Bedrock": tokens a day beside tokens a minute.
_A_DAY: Final = re.compile(r"^Too many (?:tokens|requests) per day\b", re.IGNORECASE)
_BAD_KEY: Final = re.compile(
    # A bearer key, or a token, where the header that names the exception was lost on the way.
    r"^(?:The security token included in the request is (?:invalid|expired)"
    r"|The request signature we calculated does not match"
    r"|Invalid API Key format)",
    re.IGNORECASE,
)


def classify(status: int, headers: Mapping[str, str], body: bytes, *, now: float) -> f.Failure:
    """An error answer as one of the closed union: the exception's name first, then status and sentence."""
    message, named, code = _read(body)
    name = headers.get(ERROR_TYPE, "").partition(":")[0].strip() or named or code
    return failure(status, name, message or o.unsaid(status, body), parse_retry_after(headers, now))


def from_frame(name: str, payload: bytes) -> f.Failure:
    """An exception that came as a frame of a stream, under HTTP 200."""
    message, _, _ = _read(payload)
    return failure(200, name, message or f"the provider broke the stream off: {name[:100]}", None)


def failure(status: int, name: str, message: str, wait: float | None) -> f.Failure:
    chosen = _choose(status, name, message)
    return failure_of(chosen, message[:TEXT_MAX], status, name[:200], wait=wait)


def _choose(status: int, name: str, message: str) -> _Kind:
    stem = name[:1].upper() + name[1:].removesuffix("Exception")
    chosen = _BY_NAME.get(stem) or _BY_NAME.get(stem.removesuffix("Error"))
    if chosen is None:
        unnamed = f.InvalidRequest if 400 <= status < 500 else f.ServerError
        chosen = _BY_STATUS.get(status, unnamed)
        if chosen is f.KeyForbidden and _BAD_KEY.search(message):
            return f.KeyRejected
    if chosen is f.InvalidRequest:
        for pattern, kind in (
            (_CONTEXT, f.ContextLength),
            (_NO_MODEL, f.ModelNotFound),
            (_FILTERED, f.ContentFiltered),
        ):
            if pattern.search(message):
                return kind
    if chosen is f.RateLimited and _A_DAY.search(message):
        return f.QuotaExhausted
    return chosen


def _read(body: bytes) -> tuple[str, str, str]:
    """Message, the type's name and the code that a body names."""
    try:
        given = o.fields_of(body)
    except o.UNREADABLE:
        return "", "", ""
    if "Output" in given:
        # What the front end of AWS says of a path that it does not know, under HTTP 200.
        given = o.fields_or_empty(given["Output"]) or given
    message = o.text_or_empty(given.get("message")) or o.text_or_empty(given.get("Message"))
    return (
        message,
        o.text_or_empty(given.get("__type")).rpartition("#")[2],
        o.text_or_empty(given.get("code")),
    )
