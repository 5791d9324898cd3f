"""Whole answers, and token counts. Source: Anthropic API reference, "Create a Message", "Count tokens"."""

from typing import Final

import msgspec
from msgspec import Raw, Struct

from breakwater_gateway.worker.wire import neutral as n
from breakwater_gateway.worker.wire.anthropic import blocks as b
from breakwater_gateway.worker.wire.anthropic.errors import classify, not_json
from breakwater_protocol import failures as f


class _Message(Struct):
    type: str = ""
    id: str | None = None
    model: str | None = None
    content: list[Raw] | None = None
    stop_reason: str | None = None
    stop_sequence: str | None = None
    usage: b.WireUsage | None = None
    error: Raw = b.ABSENT


class _Tier(Struct):
    service_tier: str | None = None


_message: Final = msgspec.json.Decoder(_Message).decode
_tier: Final = msgspec.json.Decoder(_Tier).decode

_NEUTRAL: Final = frozenset(
    {"type", "role", "id", "model", "content", "stop_reason", "stop_sequence"}
)


def decode_answer(body: bytes, *, status: int = 200) -> n.Answer | f.Failure:
    """A message, or the failure that its body holds. `usage` is kept native too, in `extra`."""
    try:
        if not body.isascii():
            body.decode()
        message = _message(body)
        extra = b.fields(body)
    except b.UNREADABLE:
        if status >= 400 or body.lstrip()[:1] == b"[":
            return classify(status, {}, body, now=0.0)
        return f.MalformedAnswer(not_json(body), provider_status=status)
    if message.type == "error" or bytes(message.error) not in {b"", b.NULL} or status >= 400:
        return classify(status, {}, body, now=0.0)
    if message.content is None or len(extra) > b.FIELDS_MAX:
        return f.MalformedAnswer("the provider's answer has no content", provider_status=status)
    native = message.stop_reason or ""
    candidate = n.Candidate(
        parts=[part_of_answer(raw) for raw in message.content],
        finish=b.FINISH.get(native, "stop" if native else ""),
        native=native,
        stop_sequence=message.stop_sequence or "",
    )
    tier = None
    if "usage" in extra and message.usage is not None:
        tier = _tier_of(extra["usage"])
    return n.Answer(
        dialect="anthropic",
        id=message.id or "",
        model=message.model or "",
        candidates=[candidate],
        usage=message.usage.normal() if message.usage else None,
        service_tier=tier or "",
        extra={name: value for name, value in extra.items() if name not in _NEUTRAL},
    )


def _tier_of(usage: Raw) -> str | None:
    try:
        return _tier(usage).service_tier
    except b.UNREADABLE:
        return None


def part_of_answer(raw: Raw) -> n.Part:
    """As `blocks.part`; a block that is not as we know it stays native rather than spoil the answer."""
    try:
        return b.part(raw)
    except (b.NotOfThisShape, RecursionError):
        return n.Native(dialect="anthropic", raw=raw)


def encode_answer(answer: n.Answer, *, model: str) -> bytes:
    """A message: the provider's own again, or another dialect's first candidate as one."""
    candidate = answer.candidates[0] if answer.candidates else n.Candidate()
    native = answer.dialect == "anthropic"
    content = [
        written
        for at, part in enumerate(candidate.parts)
        if (written := _own_block(part) if native else _block(part, at)) is not None
    ]
    reason: str | None
    if native:
        reason, sequence = candidate.native or None, candidate.stop_sequence or None
    else:
        reason, sequence = b.stop_reason(
            candidate.finish,
            stop_sequence=candidate.stop_sequence,
            called=any(isinstance(part, n.ToolCall) for part in candidate.parts),
            refused=any(isinstance(part, n.Refusal) for part in candidate.parts),
        )
    message: dict[str, object] = {
        "id": answer.id if native else message_id(answer.id),
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        "stop_reason": reason,
        "stop_sequence": sequence,
    }
    if native:
        message |= answer.extra
    if not native or answer.usage is not None:
        message.setdefault("usage", b.written_usage(answer.usage))
    return b.encode(message)


def _own_block(part: n.Part) -> object:
    written = b.block(part)
    return written | part.extra | part.layout if isinstance(written, dict) else written


def _block(part: n.Part, at: int) -> object:
    """A block of an answer that says what another dialect's part says; None where none does."""
    match part:
        case n.Text(text=text) | n.Refusal(text=text):
            return {"type": "text", "text": text} if text else None
        case n.Thinking(text=text):
            # Another provider's proof is none here; without one the block is left out when echoed.
            return {"type": "thinking", "thinking": text, "signature": ""} if text else None
        case n.ToolCall():
            arguments = b.as_input(part.arguments)
            call_id = part.id or f"toolu_{at}"
            return {"type": "tool_use", "id": call_id, "name": part.name, "input": arguments}
        case _:
            return None


def message_id(given: str) -> str:
    """An id that looks like this API's."""
    return given if given.startswith("msg_") else f"msg_{given or '0'}"


# ---- token counts


class _Count(Struct):
    input_tokens: int


_count: Final = msgspec.json.Decoder(_Count).decode


def decode_count_tokens(body: bytes, *, status: int = 200) -> int | f.Failure:
    """The answer of `POST /v1/messages/count_tokens`."""
    if status >= 400:
        return classify(status, {}, body, now=0.0)
    try:
        return max(0, _count(body).input_tokens)
    except b.UNREADABLE:
        return f.MalformedAnswer(not_json(body), provider_status=status)


def encode_count_tokens_answer(input_tokens: int) -> bytes:
    return b.encode({"input_tokens": input_tokens})
