"""Failures of the Responses API: error answers, failed responses, error events.

Source: OpenAI API reference, "The response object" (`error.code`) and "Streaming events" (`error`).
"""

from collections.abc import Mapping
from typing import Final

from msgspec import Raw

from breakwater_gateway.worker.wire.openai_chat import errors as family
from breakwater_gateway.worker.wire.openai_chat.fields import encode, text_or
from breakwater_gateway.worker.wire.responses.items import object_of
from breakwater_protocol import failures as f

_Kind = type[f.Failure]

_FAILED: Final[dict[str, _Kind]] = {
    "bio_policy": f.ContentFiltered,
    "cyber_policy": f.ContentFiltered,
    "misalignment_policy_violation": f.ContentFiltered,
    "image_content_policy_violation": f.ContentFiltered,
    "server_is_overloaded": f.Overloaded,
    "slow_down": f.Overloaded,
    "vector_store_timeout": f.ServerError,
    "invalid_prompt": f.InvalidRequest,
    "data_residency_mismatch": f.InvalidRequest,
    "failed_to_download_image": f.InvalidRequest,
    "image_file_not_found": f.InvalidRequest,
    "image_file_too_large": f.InvalidRequest,
    "image_parse_error": f.InvalidRequest,
    "image_too_large": f.InvalidRequest,
    "image_too_small": f.InvalidRequest,
    "invalid_base64_image": f.InvalidRequest,
    "invalid_image": f.InvalidRequest,
    "invalid_image_format": f.InvalidRequest,
    "invalid_image_mode": f.InvalidRequest,
    "invalid_image_url": f.InvalidRequest,
    "empty_image_file": f.InvalidRequest,
    "unsupported_image_media_type": f.InvalidRequest,
}
"""Codes that only a failed response has."""

_WRITTEN: Final[dict[_Kind, str]] = {
    f.RateLimited: "rate_limit_exceeded",
    f.RequestOverLimit: "rate_limit_exceeded",
    f.QuotaExhausted: "insufficient_quota",
    f.BudgetExhausted: "insufficient_quota",
    f.BudgetContended: "rate_limit_exceeded",
    f.ContextLength: "context_length_exceeded",
    f.ContentFiltered: "content_filter",
    f.InvalidRequest: "invalid_prompt",
    f.Overloaded: "server_is_overloaded",
    f.WorkerBusy: "server_is_overloaded",
    f.NoDeployment: "server_is_overloaded",
}
"""Codes that clients of a failed response act on; `server_error` for the rest."""


def classify(status: int, headers: Mapping[str, str], body: bytes, *, now: float) -> f.Failure:
    """An error answer. `now`: Unix time, for waits given as a date. As OpenAI's chat, but for its code table."""
    error = object_of(object_of(Raw(body)).get("error"))
    kind = _FAILED.get(text_or(error.get("code")))
    if kind is None or status >= 500:
        return family.classify(status, headers, body, now=now)
    return _made(kind, error, status)


def of_error(error: Raw | None) -> f.Failure:
    """The `error` object of a failed response or of an `error` event, under HTTP 200."""
    fields = object_of(error)
    kind = _FAILED.get(text_or(fields.get("code"))) or _FAILED.get(text_or(fields.get("type")))
    if kind is not None:
        return _made(kind, fields, 200)
    if not fields:
        return f.ServerError("the provider failed to answer and did not say why", 200)
    return family.classify(200, {}, encode({"error": fields}), now=0.0)


def _made(kind: _Kind, error: dict[str, Raw], status: int) -> f.Failure:
    message = text_or(error.get("message"))[: family.TEXT_MAX]
    code = text_or(error.get("code"))[:200]
    param = text_or(error.get("param"))[:200] or None
    if kind is f.InvalidRequest:
        return f.InvalidRequest(message, status, code, param)
    return kind(message, status, code)


def failed_error(failure: f.Failure) -> dict[str, str]:
    """`response.error` of the `response.failed` event that tells a caller of `failure`."""
    code = _WRITTEN.get(type(failure), "server_error")
    return {"code": code, "message": failure.message or f.kind(failure).replace("_", " ")}
