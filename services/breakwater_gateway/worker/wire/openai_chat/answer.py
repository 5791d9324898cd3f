"""Whole chat answers in both directions.

Source: OpenAI API reference, "The chat completion object".
Extras of an answer: `Answer.extra` holds top-level fields and the provider's own `usage`;
`Candidate.extra` those of the choice and, as one object under `message`, those of its message.
"""

import msgspec
from msgspec import Raw

from breakwater_gateway.worker.wire.bad_request import BadRequest
from breakwater_gateway.worker.wire.neutral import (
    Answer,
    Candidate,
    Extra,
    Finish,
    Image,
    Native,
    Part,
    Refusal,
    Text,
    Thinking,
    ToolCall,
)
from breakwater_gateway.worker.wire.openai_chat.errors import classify, not_json
from breakwater_gateway.worker.wire.openai_chat.fields import (
    ITEMS,
    UNREADABLE,
    Taken,
    decode_fields,
    encode,
    is_null,
    is_text,
    is_utf8,
    minting,
    text_or,
    whole_or,
)
from breakwater_gateway.worker.wire.openai_chat.messages import (
    Json,
    is_call,
    read_content,
    read_thinking,
    read_tool_calls,
    thinking_block,
)
from breakwater_gateway.worker.wire.openai_chat.quirks import DEFAULT, Quirks
from breakwater_gateway.worker.wire.openai_chat.usage import read_usage, wire_usage
from breakwater_protocol import failures as f

FINISH: dict[str, Finish] = {
    "stop": "stop",
    "eos": "stop",  # Together
    "end_turn": "stop",
    "stop_sequence": "stop",
    "length": "length",
    "max_tokens": "length",
    "model_length": "length",  # Mistral
    "tool_calls": "tool_calls",
    "tool_use": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
    "sensitive": "content_filter",  # Z.ai
    "safety": "content_filter",
    "refusal": "content_filter",
    "error": "error",
    "network_error": "error",  # Z.ai
    "insufficient_system_resource": "error",  # DeepSeek
}
_OWN_WORDS = frozenset({"stop", "length", "tool_calls", "content_filter", "function_call"})


def finish_of(native: str, *, called: bool) -> Finish:
    """The neutral reason. `called`: the candidate calls tools, which some hosts end with `stop` or nothing."""
    finish = FINISH.get(native, "stop")
    return "tool_calls" if called and finish == "stop" else finish


def finish_word(finish: Finish, native: str, *, own: bool) -> str | None:
    """OpenAI's word for it; the host's own where it is one of OpenAI's."""
    if own and native in _OWN_WORDS:
        return native
    return finish or None


# ---------------------------------------------------------------- reading


def decode_answer(
    body: bytes, *, status: int = 200, quirks: Quirks = DEFAULT
) -> Answer | f.Failure:
    """A host's answer, or the failure that it is or hides. Never raises."""
    if status >= 400:
        return classify(status, {}, body, now=0)
    try:
        fields = decode_fields(body if is_utf8(body) else b"")
    except UNREADABLE:
        return f.MalformedAnswer(not_json(body), provider_status=status)
    error = fields.pop("error", None)
    if (error is not None and not is_null(error)) or text_or(fields.get("object")) == "error":
        return classify(status, {}, body, now=0)
    ident = text_or(fields.get("id"))
    model = text_or(fields.get("model"))
    created = whole_or(fields.get("created"))
    mint = minting(ident, model, created)
    raw_usage = fields.get("usage")
    try:
        choices = ITEMS.decode(fields.pop("choices", Raw(b"[]")))
        candidates = [_candidate(raw, number, mint) for number, raw in enumerate(choices)]
    except (*UNREADABLE, BadRequest):
        return f.MalformedAnswer(
            "the provider's answer has not the shape its API promises", provider_status=status
        )
    except _Failed as failed:
        return classify(status, {}, failed.body, now=0)
    if not candidates:
        return f.MalformedAnswer("the provider's answer has no choices", provider_status=status)
    fields.pop("object", None)
    answer = Answer(
        dialect=quirks.dialect,
        id=ident,
        model=model,
        created=created,
        candidates=candidates,
        usage=None
        if raw_usage is None or is_null(raw_usage)
        else read_usage(raw_usage, thoughts_beside=quirks.thoughts_beside),
        service_tier=text_or(fields.get("service_tier")),
        extra=fields,
    )
    for name in ("id", "model", "created"):
        fields.pop(name, None)
    if answer.service_tier:
        del fields["service_tier"]
    return answer


class _Failed(Exception):
    """A choice that carries an error in place of an answer (OpenRouter)."""

    def __init__(self, error: Raw) -> None:
        super().__init__()
        self.body = b'{"error":' + bytes(error) + b"}"


def _candidate(raw: Raw, number: int, mint: str) -> Candidate:
    choice = Taken(raw, f"choices[{number}]")
    error = choice.raw("error")
    if error is not None:
        raise _Failed(error)
    message = choice.raw("message")
    parts: list[Part] = []
    rest: Extra = {}
    if message is not None:
        taken = Taken(message, "message")
        taken.fields.pop("role", None)
        field = reasoning_field(taken.fields)
        parts = read_thinking(taken)
        if field is not None:
            parts = [_marked(part, field) for part in parts]
        content = taken.raw("content")
        if content is not None:
            if bytes(content) == b'""':
                taken.fields["content"] = content
            else:
                parts += read_content(content, "message.content")
        refusal = taken.fields.get("refusal")
        if refusal is not None and is_text(refusal) and (text := text_or(refusal)):
            del taken.fields["refusal"]
            parts.append(Refusal(text=text))
        none_called = taken.fields.get("tool_calls")
        parts += read_tool_calls(taken, mint=mint, candidate=number)
        if none_called is not None and bytes(none_called) == b"[]":
            taken.fields["tool_calls"] = none_called
        rest = taken.fields
    choice.fields.pop("index", None)
    native = text_or(choice.fields.pop("finish_reason", None))
    extra = choice.fields
    logprobs = choice.raw("logprobs")
    if rest:
        extra["message"] = Raw(encode(rest))
    called = any(isinstance(part, ToolCall) for part in parts)
    return Candidate(
        parts=parts,
        finish=finish_of(native, called=called),
        native=native,
        logprobs=logprobs,
        extra=extra,
    )


def reasoning_field(fields: dict[str, Raw]) -> Raw | None:
    """Which field the reasoning came in, where it is not the usual one, so that it is shown there again."""
    for name in ("reasoning_content", "reasoning"):
        raw = fields.get(name)
        if raw is not None and is_text(raw) and bytes(raw) != b'""':
            return Raw(b'"reasoning"') if name == "reasoning" else None
    return Raw(b'"reasoning_details"') if "reasoning_details" in fields else None


def _marked(part: Part, field: Raw) -> Part:
    return (
        msgspec.structs.replace(part, extra={**part.extra, "field": field})
        if isinstance(part, Thinking)
        else part
    )


# ---------------------------------------------------------------- writing


def encode_answer(answer: Answer, *, model: str = "") -> bytes:
    """The body for a caller of this dialect. `model`: the name it asked for; "" shows the provider's."""
    own = answer.dialect == "openai"
    out: Json = {
        "id": answer.id or "chatcmpl-0",
        "object": "chat.completion",
        "created": answer.created,
        "model": model or answer.model,
        "choices": [
            _choice(candidate, number, own=own)
            for number, candidate in enumerate(answer.candidates)
        ],
    }
    if answer.service_tier and own:
        out["service_tier"] = answer.service_tier
    if own:
        for name, raw in answer.extra.items():
            out.setdefault(name, raw)
    if "usage" not in out and answer.usage is not None:
        out["usage"] = wire_usage(answer.usage)
    return encode(out)


def _choice(candidate: Candidate, number: int, *, own: bool) -> Json:
    message = _message(candidate, own=own)
    extra = dict(candidate.extra) if own else {}
    rest = extra.pop("message", None)
    if rest is not None:
        for name, raw in decode_fields(rest).items():
            if message.get(name) is None:
                message[name] = raw
    out: Json = {
        "index": number,
        "message": message,
        "logprobs": candidate.logprobs if own else None,
        "finish_reason": finish_word(candidate.finish, candidate.native, own=own),
    }
    for name, raw in extra.items():
        if out.get(name) is None:
            out[name] = raw
    return out


def _message(candidate: Candidate, *, own: bool) -> Json:
    texts: list[str] = []
    listed: list[object] = []
    thoughts: list[Thinking] = []
    refusals: list[str] = []
    images: list[Json] = []
    calls: list[object] = []
    legacy: ToolCall | None = None
    for part in candidate.parts:
        match part:
            case Text():
                texts.append(part.text)
            case Thinking():
                thoughts.append(part)
            case Refusal():
                refusals.append(part.text)
            case ToolCall():
                if own and not part.id and candidate.native == "function_call":
                    legacy = part
                else:
                    calls.append(wire_call(part, own=own, number=len(calls)))
            case Image():
                images.append(wire_image(part))
            case Native():
                if own and is_call(part.raw):
                    calls.append(part.raw)
                elif own:
                    listed.append(part.raw)
            case _:
                # Nothing else stands in an assistant's chat message.
                continue
    out: Json = {
        "role": "assistant",
        "content": "".join(texts) if texts else None,
        "refusal": "".join(refusals) if refusals else None,
    }
    if thoughts:
        text = "".join(part.text for part in thoughts)
        field = text_or(thoughts[0].extra.get("field")) if own else ""
        if own:
            out.update({k: raw for k, raw in thoughts[0].extra.items() if k != "field"})
        if text and field != "reasoning_details":
            out[field or "reasoning_content"] = text
        if not own and any(part.signature or part.redacted for part in thoughts):
            out["thinking_blocks"] = [thinking_block(part) for part in thoughts]
    if calls:
        out["tool_calls"] = calls
    if legacy is not None:
        out["function_call"] = {"name": legacy.name, "arguments": legacy.arguments}
    if images:
        out["images"] = images
    if listed:
        out["content"] = [*({"type": "text", "text": text} for text in texts), *listed]
    return out


def wire_call(part: ToolCall, *, own: bool, number: int) -> Json:
    function: Json = {"name": part.name, "arguments": part.arguments}
    out: Json = {"id": part.id or f"call_{number}", "type": "function", "function": function}
    if part.signature:
        out["extra_content"] = {"google": {"thought_signature": part.signature}}
    if own:
        for name, raw in part.extra.items():
            if name == "function":
                function.update(decode_fields(raw))
            else:
                out.setdefault(name, raw)
    return out


def wire_image(part: Image) -> Json:
    """An image the model made, as OpenRouter shows it."""
    url = f"data:{part.media_type};base64,{part.data}" if part.data else part.url
    return {"type": "image_url", "image_url": {"url": url}}
