"""Whole answers of Ollama's native API to the neutral vocabulary, with usage and finish reasons.

Source: github.com/ollama/ollama, docs/api.md ("Generate a chat completion"), api/types.go.
"""

import re
from datetime import UTC, datetime
from typing import Final

import msgspec
from msgspec import Raw, Struct

from breakwater_gateway.worker.wire import neutral as n
from breakwater_gateway.worker.wire import objects as o
from breakwater_gateway.worker.wire.bad_request import BadRequest
from breakwater_gateway.worker.wire.ollama.errors import classify
from breakwater_gateway.worker.wire.ollama.request import message_parts
from breakwater_protocol import failures as f
from breakwater_protocol.chat import Usage


class WireUsage(Struct):
    prompt_eval_count: int | None = None
    eval_count: int | None = None

    def normal(self) -> Usage | None:
        """The prompt's count is absent where all of it was in the cache. Thinking is within `eval_count`."""
        if self.prompt_eval_count is None and self.eval_count is None:
            return None
        return Usage(input=max(0, self.prompt_eval_count or 0), output=max(0, self.eval_count or 0))


_usage: Final = msgspec.json.Decoder(WireUsage).decode


def read_usage(raw: bytes | Raw) -> Usage | None:
    """None for an object without counts, and for what is none."""
    try:
        return _usage(raw).normal()
    except o.UNREADABLE:
        return None


def usage(raw: bytes | Raw) -> Usage:
    """The counts of an answer's object, or of a stream's last; zeros where there are none."""
    return read_usage(raw) or Usage()


def finish_of(reason: str, *, called: bool) -> n.Finish:
    """`stop` also ends an answer that calls tools."""
    if reason == "length":
        return "length"
    return "tool_calls" if called else "stop"


_TIME: Final = re.compile(
    r"(?P<date>[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.[0-9]{1,12})?(?P<zone>Z|[+-][0-9]{2}:[0-9]{2})"
)


def unix_of(stamp: str) -> int:
    """RFC 3339 with nanoseconds and any zone to Unix seconds; 0 for anything else."""
    found = _TIME.fullmatch(stamp)
    if found is None:
        return 0
    try:
        at = datetime.fromisoformat(found["date"] + found["zone"].replace("Z", "+00:00"))
        return int(at.astimezone(UTC).timestamp())
    except (ValueError, OverflowError):
        return 0


def decode_answer(body: bytes, *, status: int = 200) -> n.Answer | f.Failure:
    """The answer, or the failure that `body` is under whatever status. Durations stay in `extra`."""
    if status >= 400:
        return classify(status, {}, body, now=0.0)
    try:
        given = o.Fields(body)
        if given.has("error"):
            return classify(status, {}, body, now=0.0)
        if not given.has("message"):
            return f.MalformedAnswer("the provider's answer has no message", provider_status=status)
        return _answer(given, read_usage(body))
    except BadRequest as wrong:
        said = wrong.message if wrong.param else o.not_json(body)
        return f.MalformedAnswer(said, provider_status=status)


def _answer(given: o.Fields, used: Usage | None) -> n.Answer:
    message = given.need("message", given.child("message"))
    stamp = _stamp(given)
    parts = message_parts(message, mint=stamp)
    role = message.left.pop("role", None)
    if role is not None and bytes(role) != b'"assistant"':
        message.left["role"] = role
    model = given.text("model") or ""
    reason = given.text("done_reason") or ""
    called = any(isinstance(part, n.ToolCall) for part in parts)
    native: n.Extra = dict(message.left)
    tokens = given.raw("logprobs")
    return n.Answer(
        dialect="ollama",
        model=model,
        created=unix_of(stamp),
        candidates=[
            n.Candidate(
                parts=[part for part in parts if not _says_nothing(part)],
                finish=finish_of(reason, called=called),
                native=reason,
                logprobs=logprobs_of(tokens),
                extra=native,
            )
        ],
        usage=used,
        extra=given.left,
    )


def _stamp(given: o.Fields) -> str:
    """`created_at`, which stays in `extra` too, for its nanoseconds."""
    raw = given.left.get("created_at")
    stamp = given.text("created_at") or ""
    if raw is not None:
        given.left["created_at"] = raw
    return stamp


def _says_nothing(part: n.Part) -> bool:
    """`content` is empty, not absent, where the answer is calls or thinking only."""
    return isinstance(part, n.Text | n.Thinking) and not part.text


def logprobs_of(tokens: Raw | None) -> Raw | None:
    """The list, as OpenAI's object has it: its items are of the same shape."""
    return None if tokens is None else Raw(b'{"content":' + bytes(tokens) + b"}")
