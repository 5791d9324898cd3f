"""Whole answers of Cohere's v2 chat to the neutral vocabulary, with usage and finish reasons.

Source: Cohere API reference, "Chat (v2)".
"""

from typing import Final

import msgspec
from msgspec import Raw, Struct

from breakwater_gateway.worker.wire import neutral as n
from breakwater_gateway.worker.wire import objects as o
from breakwater_gateway.worker.wire.bad_request import BadRequest
from breakwater_gateway.worker.wire.cohere.errors import classify, failure
from breakwater_gateway.worker.wire.cohere.messages import assistant_parts
from breakwater_protocol import failures as f
from breakwater_protocol.chat import Usage

FINISH: Final[dict[str, n.Finish]] = {
    "COMPLETE": "stop",
    "STOP_SEQUENCE": "stop",
    "TOOL_CALL": "tool_calls",
    "MAX_TOKENS": "length",
    "ERROR_LIMIT": "length",
    "ERROR_TOXIC": "content_filter",
}


def finish_of(reason: str) -> n.Finish:
    """Reasons that are not known yet count as an ordinary stop; `native` keeps the word."""
    return FINISH.get(reason, "stop" if reason else "")


def broken(reason: str, message: str, error_type: str, status: int) -> f.Failure | None:
    """The failure that a finish reason reports under HTTP 200."""
    if reason == "TIMEOUT":
        return f.ServerError(message or "the model took too long", status, reason)
    if reason == "ERROR" or error_type:
        said = message or "the model's answer ended in an error"
        return failure(status, error_type or reason, said, None)
    return None


class _Tokens(Struct):
    input_tokens: float | None = None
    output_tokens: float | None = None
    reasoning_tokens: float | None = None


class WireUsage(Struct):
    tokens: _Tokens | None = None
    billed_units: _Tokens | None = None
    cached_tokens: float | None = None

    def normal(self) -> Usage | None:
        """What the model read and wrote, the template's tokens included; `billed_units` where only they came.

        `input_tokens` holds the cached and the images', `output_tokens` the reasoning ones. The API
        counts in doubles.
        """
        counted = self.tokens or self.billed_units
        if counted is None:
            return None
        given, output = _count(counted.input_tokens), _count(counted.output_tokens)
        return Usage(
            input=given,
            output=output,
            cache_read=min(_count(self.cached_tokens), given),
            reasoning=min(_count(counted.reasoning_tokens), output),
        )


_usage: Final = msgspec.json.Decoder(WireUsage).decode


def _count(value: float | None) -> int:
    return max(0, int(value or 0))


def read_usage(raw: bytes | Raw | None) -> Usage | None:
    """None for what is no usage object, and for an empty one."""
    if raw is None or bytes(raw) == o.NULL:
        return None
    try:
        return _usage(raw).normal()
    except (*o.UNREADABLE, OverflowError, ValueError):
        return None


def usage(raw: bytes | Raw) -> Usage:
    """A `usage` object (or v1's `meta`), normalised; zeros for what is not one."""
    return read_usage(raw) or Usage()


def decode_answer(body: bytes, *, status: int = 200) -> n.Answer | f.Failure:
    """The answer, or the failure that `body` is under whatever status.

    The API does not name the model. `extra` keeps `usage` as it came: what is billed differs from it.
    """
    if status >= 400:
        return classify(status, {}, body, now=0.0)
    try:
        given = o.Fields(body)
    except BadRequest:
        return f.MalformedAnswer(o.not_json(body), provider_status=status)
    if not given.has("message") or o.is_text(given.left["message"]):
        if given.has("message") or given.has("error"):
            return classify(status, {}, body, now=0.0)
        return f.MalformedAnswer("the provider's answer has no message", provider_status=status)
    try:
        return _answer(given, status)
    except BadRequest as wrong:
        return f.MalformedAnswer(
            f"the provider's answer is not of its API's shape: {wrong.message}",
            provider_status=status,
        )


def _answer(given: o.Fields, status: int) -> n.Answer | f.Failure:
    reason = given.text("finish_reason") or ""
    error_type = given.text("error_type") or ""
    failed = broken(reason, given.text("error") or "", error_type, status)
    if failed is not None:
        return failed
    message = given.need("message", given.child("message"))
    parts, _ = assistant_parts(message)
    role = message.left.pop("role", None)
    if role is not None and bytes(role) != b'"assistant"':
        message.left["role"] = role
    answer_id = given.text("id") or ""
    extra = dict(given.left)
    native: n.Extra = dict(message.left)
    if "logprobs" in extra:
        # Of another shape than what others call logprobs.
        native["logprobs"] = extra.pop("logprobs")
    return n.Answer(
        dialect="cohere",
        id=answer_id,
        candidates=[
            n.Candidate(parts=parts, finish=finish_of(reason), native=reason, extra=native)
        ],
        usage=read_usage(extra.get("usage")),
        extra=extra,
    )
