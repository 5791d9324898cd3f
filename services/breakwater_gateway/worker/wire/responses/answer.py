"""Whole answers: the response object.

Source: OpenAI API reference, "The response object".
"""

from collections.abc import Iterable
from typing import Final

import msgspec
from msgspec import Raw, Struct

from breakwater_gateway.worker.wire import neutral as n
from breakwater_gateway.worker.wire.openai_chat.errors import not_json
from breakwater_gateway.worker.wire.openai_chat.fields import (
    UNREADABLE,
    decode_fields,
    decode_list,
    encode,
    is_null,
    text_or,
    whole_or,
)
from breakwater_gateway.worker.wire.responses.errors import classify, failed_error, of_error
from breakwater_gateway.worker.wire.responses.items import (
    FIELDS_MAX,
    list_of,
    minted,
    object_of,
    parts_of_output,
    reasoning_item,
    signed,
)
from breakwater_protocol import failures as f
from breakwater_protocol.chat import Usage

# ---------------------------------------------------------------- usage


class _InputDetails(Struct):
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None


class _OutputDetails(Struct):
    reasoning_tokens: int | None = None


class _WireUsage(Struct):
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_tokens_details: _InputDetails | None = None
    output_tokens_details: _OutputDetails | None = None


_usage: Final = msgspec.json.Decoder(_WireUsage).decode


def usage(raw: bytes | Raw) -> Usage:
    """A `usage` object, normalised; zeros for what is not one.

    `input_tokens` holds the cached and the written ones, `output_tokens` the reasoning ones. Azure reports
    more cached tokens than input tokens on some records.
    """
    try:
        wire = _usage(raw)
    except UNREADABLE:
        return Usage()
    given, made = _count(wire.input_tokens), _count(wire.output_tokens)
    details, thought = wire.input_tokens_details, wire.output_tokens_details
    read = min(_count(details.cached_tokens), given) if details else 0
    wrote = min(_count(details.cache_write_tokens), given - read) if details else 0
    return Usage(
        input=given,
        output=made,
        cache_read=read,
        cache_write=wrote,
        reasoning=min(_count(thought.reasoning_tokens), made) if thought else 0,
    )


def _count(value: int | None) -> int:
    return max(0, value or 0)


def written_usage(used: Usage) -> dict[str, object]:
    return {
        "input_tokens": used.input,
        "input_tokens_details": {
            "cached_tokens": used.cache_read,
            "cache_write_tokens": used.cache_write,
        },
        "output_tokens": used.output,
        "output_tokens_details": {"reasoning_tokens": used.reasoning},
        "total_tokens": used.input + used.output,
    }


# ---------------------------------------------------------------- decode

TIERS: Final = frozenset({"auto", "default", "flex", "priority", "scale"})
"""Values of `service_tier` here; other providers have others."""

_NEUTRAL: Final = ("id", "model", "output", "status", "object")


def decode_answer(body: bytes, *, status: int = 200) -> n.Answer | f.Failure:
    """A response, or the failure that it holds. `usage` is kept native too, in `extra`."""
    if status >= 400:
        return classify(status, {}, body, now=0.0)
    try:
        if not body.isascii():
            body.decode()
        fields = decode_fields(body)
    except (*UNREADABLE, UnicodeDecodeError):
        return f.MalformedAnswer(not_json(body), provider_status=status)
    failure = failure_of(fields)
    if failure is not None:
        return failure
    try:
        output = decode_list(fields.get("output", b""))
    except UNREADABLE:
        output = None
    if output is None or len(fields) > FIELDS_MAX:
        return f.MalformedAnswer("the provider's answer has no output", provider_status=status)
    parts = parts_of_output(output)
    state = text_or(fields.get("status"))
    finish, native = finish_of(fields, called=called(parts))
    used = fields.get("usage")
    counted = usage(used) if used is not None and not is_null(used) else None
    extra = {name: raw for name, raw in fields.items() if name not in _NEUTRAL}
    if text_or(fields.get("object"), "response") != "response":
        extra["object"] = fields["object"]
    created, exact = created_of(fields.get("created_at"))
    if exact:
        extra.pop("created_at", None)
    if state != state_of(finish):
        extra["status"] = fields.get("status", Raw(b"null"))
    candidate = n.Candidate(parts=parts, finish=finish, native=native, logprobs=_logprobs(parts))
    return n.Answer(
        dialect="responses",
        id=text_or(fields.get("id")),
        model=text_or(fields.get("model")),
        created=created,
        candidates=[candidate],
        usage=counted,
        service_tier=text_or(fields.get("service_tier")),
        extra=extra,
    )


def failure_of(fields: dict[str, Raw]) -> f.Failure | None:
    """The failure in a response object, or in a body that is an error under HTTP 200."""
    error = fields.get("error")
    state = text_or(fields.get("status"))
    if state == "failed" or (not is_null(error) and state not in {"completed", "incomplete"}):
        return of_error(error)
    return None


def created_of(raw: Raw | None) -> tuple[int, bool]:
    """Unix seconds, and whether they are all that was said."""
    created = whole_or(raw)
    return created, raw is not None and bytes(raw) == str(created).encode()


def called(parts: Iterable[n.Part]) -> bool:
    return any(isinstance(part, n.ToolCall) for part in parts)


_INCOMPLETE: Final[dict[str, n.Finish]] = {
    "max_output_tokens": "length",
    "max_tokens": "length",
    "max_prompt_tokens": "length",
    "content_filter": "content_filter",
}

_OPEN: Final = frozenset({"queued", "in_progress"})


def finish_of(fields: dict[str, Raw], *, called: bool) -> tuple[n.Finish, str]:
    """The neutral reason, and the native one: why it is incomplete, else its status."""
    state = text_or(fields.get("status"))
    if state == "incomplete":
        reason = text_or(object_of(fields.get("incomplete_details")).get("reason"))
        return _INCOMPLETE.get(reason, "stop"), reason or state
    if state == "cancelled":
        return "error", state
    if state in _OPEN:
        return "", state
    return "tool_calls" if called else "stop", state


def state_of(finish: n.Finish) -> str:
    """`status` of a response that finished so."""
    if finish in {"length", "content_filter"}:
        return "incomplete"
    return {"error": "failed", "": "in_progress"}.get(finish, "completed")


def _logprobs(parts: Iterable[n.Part]) -> Raw | None:
    """Of all texts, in chat's shape, which is the neutral one."""
    said: list[Raw] = []
    for part in parts:
        if isinstance(part, n.Text) and "logprobs" in part.extra:
            said.extend(list_of(part.extra["logprobs"]))
    return Raw(encode({"content": said})) if said else None


# ---------------------------------------------------------------- encode


def encode_answer(answer: n.Answer, *, model: str) -> bytes:
    """A response: the provider's own again, or another dialect's first candidate as one."""
    candidate = answer.candidates[0] if answer.candidates else n.Candidate()
    native = answer.dialect == "responses"
    identity = answer.id if native else response_id(answer.id)
    state = state_of(candidate.finish)
    response: dict[str, object] = {"id": identity, "object": "response"}
    response["created_at"] = answer.created
    response["status"] = state
    if not native or not answer.extra:
        # Also of its own dialect where nothing but what it says was kept: an answer told again from a stream.
        response |= skeleton()
        response["incomplete_details"] = incomplete(candidate.finish)
        if state == "failed":
            response["error"] = failed_error(f.ServerError("the provider stopped with an error"))
        if answer.service_tier in TIERS:
            response["service_tier"] = answer.service_tier
        response["usage"] = written_usage(answer.usage) if answer.usage else None
    if model or not native:
        response["model"] = model
    response["output"] = Output(identity, native=native).items(candidate)
    if native:
        response |= answer.extra
    return encode(response)


def skeleton() -> dict[str, object]:
    """What the SDKs' types require of a response beside what it says."""
    return {
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "max_output_tokens": None,
        "metadata": {},
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "store": False,
        "temperature": None,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": None,
        "truncation": "disabled",
        "usage": None,
    }


def incomplete(finish: n.Finish) -> dict[str, str] | None:
    reason = {"length": "max_output_tokens", "content_filter": "content_filter"}.get(finish)
    return {"reason": reason} if reason else None


def response_id(given: str) -> str:
    return given if given.startswith("resp_") else f"resp_{given or '0'}"


class Output:
    """Parts as output items. `seed`: the response's id, for the ids of items that have none."""

    def __init__(self, seed: str, *, native: bool) -> None:
        self._seed = seed
        self._native = native
        self._count = 0

    def mint(self, prefix: str) -> str:
        self._count += 1
        return minted(prefix, self._seed, self._count)

    def items(self, candidate: n.Candidate) -> list[object]:
        items: list[object] = []
        open_content: list[object] | None = None
        logprobs = None if self._native else chat_logprobs(candidate.logprobs)
        state = "incomplete" if candidate.finish in {"length", "content_filter"} else "completed"
        for part in candidate.parts:
            content = self.content(part, logprobs)
            if content is None:
                item = self.item(part, state)
                if item is not None:
                    items.append(item)
                    open_content = None
                continue
            logprobs = None
            if open_content is not None and "item" not in part.layout:
                open_content.append(content)
                continue
            open_content = [] if "empty" in part.layout else [content]
            message = self.message(part.layout, state)
            message["content"] = open_content
            if "plain" in part.layout and isinstance(part, n.Text):
                message["content"] = part.text
            items.append(message)
        return items

    def message(self, layout: n.Layout, state: str) -> dict[str, object]:
        if self._native and "item" in layout:
            rest: dict[str, object] = dict(object_of(layout["item"]))
            rest.setdefault("role", "assistant")
            return rest
        return {"id": self.mint("msg"), "type": "message", "status": state, "role": "assistant"}

    def content(self, part: n.Part, logprobs: list[Raw] | None = None) -> object:
        """A content part of a message; None for what is no content."""
        match part:
            case n.Text(text="") if not self._native:
                return None
            case n.Text(text=text) if not self._native:
                return {
                    "type": "output_text",
                    "text": text,
                    "annotations": [],
                    "logprobs": logprobs or [],
                }
            case n.Text(text=text):
                kind = part.layout.get("type", "output_text")
                written: dict[str, object] = {"type": kind, "text": text}
                return written | object_of(part.layout.get("part")) | part.extra
            case n.Refusal(text=text):
                written = {"type": "refusal", "refusal": text}
                return written | object_of(part.layout.get("part"))
            case n.Native(dialect="responses", raw=raw) if "alone" not in part.layout:
                return raw
            case _:
                return None

    def item(self, part: n.Part, state: str) -> object:
        """The item that `part` is by itself; None for what this API cannot say."""
        match part:
            case n.ToolCall():
                call = {
                    "type": "function_call",
                    "call_id": part.id,
                    "name": part.name,
                    "arguments": part.arguments,
                }
                if self._native and "item" in part.layout:
                    return call | object_of(part.layout["item"])
                return {"id": self.mint("fc"), "status": state} | call | signed(part.signature)
            case n.Thinking() if self._native:
                return reasoning_item(part)
            case n.Thinking(text=text) if text:
                summary = [{"type": "summary_text", "text": text}]
                return {"id": self.mint("rs"), "type": "reasoning", "summary": summary}
            case n.Native(dialect="responses", raw=raw):
                return raw
            case n.Image(data=data) if data:
                return {
                    "id": self.mint("ig"),
                    "type": "image_generation_call",
                    "status": "completed",
                    "result": data,
                }
            case _:
                return None


def chat_logprobs(raw: Raw | None) -> list[Raw]:
    """Of chat's shape, as this API lists them."""
    return list_of(object_of(raw).get("content"))
