"""Whole answers of generateContent, in both directions, and the usage arithmetic.

What the vocabulary has no word for stays in `extra` under its own name: of the answer (`usageMetadata`,
`createTime`, `promptFeedback`), of a candidate (`groundingMetadata`, `safetyRatings`, `content` without its
parts, …). Log probabilities are brought to OpenAI's shape. Source: Gemini API reference,
"GenerateContentResponse"; Vertex AI reference, "GenerateContentResponse".
"""

import re
from datetime import UTC, datetime
from typing import Final

import msgspec
from msgspec import Raw, Struct

from breakwater_gateway.worker.wire import neutral as n
from breakwater_gateway.worker.wire.gemini import parts as p
from breakwater_gateway.worker.wire.gemini.errors import classify
from breakwater_gateway.worker.wire.gemini.fields import (
    UNREADABLE,
    Body,
    Dropped,
    encode,
    fields,
    text_or,
)
from breakwater_protocol import failures as f
from breakwater_protocol.chat import Usage

CANDIDATES_MAX: Final = 256
MESSAGE_MAX: Final = 1000

# ---------------------------------------------------------------- usage


class _Usage(Struct, rename="camel"):
    prompt_token_count: int | None = None
    candidates_token_count: int | None = None
    thoughts_token_count: int | None = None
    tool_use_prompt_token_count: int | None = None
    cached_content_token_count: int | None = None
    total_token_count: int | None = None


_usage: Final = msgspec.json.Decoder(_Usage, strict=False).decode


def read_usage(raw: Raw | bytes) -> Usage | None:
    """`usageMetadata` as `chat.Usage`; None where it holds no counts.

    The total is prompt + tool-use prompt + candidates + thoughts: candidates do not hold the thoughts, and
    the prompt holds what was cached.
    """
    try:
        u = _usage(raw)
    except UNREADABLE:
        return None
    prompt, written = u.prompt_token_count, u.candidates_token_count
    thought, cached = u.thoughts_token_count or 0, u.cached_content_token_count or 0
    if prompt is None and written is None and u.total_token_count is None:
        return None
    taken = max(0, prompt or 0) + max(0, u.tool_use_prompt_token_count or 0)
    thought = max(0, thought)
    return Usage(
        input=taken,
        output=max(0, written or 0) + thought,
        cache_read=min(max(0, cached), taken),
        reasoning=thought,
    )


def usage(raw: Raw | bytes) -> Usage:
    """`usageMetadata` as `chat.Usage`; zeros for what is none."""
    return read_usage(raw) or Usage()


def encode_usage(used: Usage) -> Body:
    written: Body = {
        "promptTokenCount": used.input,
        "candidatesTokenCount": used.output - used.reasoning,
        "totalTokenCount": used.input + used.output,
    }
    if used.reasoning:
        written["thoughtsTokenCount"] = used.reasoning
    if used.cache_read:
        written["cachedContentTokenCount"] = used.cache_read
    return written


# ---------------------------------------------------------------- finish reasons

_FINISHES: Final[dict[str, n.Finish]] = {
    "FINISH_REASON_UNSPECIFIED": "",
    "STOP": "stop",
    "CONTINUATION": "stop",
    "MAX_TOKENS": "length",
    "SAFETY": "content_filter",
    "RECITATION": "content_filter",
    "LANGUAGE": "content_filter",
    "BLOCKLIST": "content_filter",
    "PROHIBITED_CONTENT": "content_filter",
    "SPII": "content_filter",
    "MODEL_ARMOR": "content_filter",
    "IMAGE_SAFETY": "content_filter",
    "IMAGE_PROHIBITED_CONTENT": "content_filter",
    "IMAGE_RECITATION": "content_filter",
}
"""All others, known and to come, are `error`."""

_MALFORMED_CALLS: Final = frozenset(
    {"MALFORMED_FUNCTION_CALL", "UNEXPECTED_TOOL_CALL", "TOO_MANY_TOOL_CALLS"}
)

_OTHER_REASONS: Final = frozenset(
    {
        *("OTHER", "MISSING_THOUGHT_SIGNATURE", "MALFORMED_RESPONSE", "IMAGE_OTHER", "NO_IMAGE"),
        *("ESCALATION", "PUP_LIMITED_DISABLED", *_MALFORMED_CALLS),
    }
)


def is_native(native: str) -> bool:
    """A finish reason of this API, not of another's."""
    return native in _FINISHES or native in _OTHER_REASONS


# By number, as `$alt=json;enum-encoding=int` has them on Vertex: google/cloud/aiplatform/v1/content.proto.
_BY_NUMBER: Final = (
    *("FINISH_REASON_UNSPECIFIED", "STOP", "MAX_TOKENS", "SAFETY", "RECITATION", "OTHER"),
    *("BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "MALFORMED_FUNCTION_CALL", "MODEL_ARMOR"),
    *("IMAGE_SAFETY", "IMAGE_PROHIBITED_CONTENT", "IMAGE_RECITATION", "IMAGE_OTHER"),
    *("UNEXPECTED_TOOL_CALL", "NO_IMAGE"),
)
_BLOCKS_BY_NUMBER: Final = (
    *("BLOCKED_REASON_UNSPECIFIED", "SAFETY", "OTHER", "BLOCKLIST", "PROHIBITED_CONTENT"),
    *("MODEL_ARMOR", "IMAGE_SAFETY", "JAILBREAK"),
)


def reason(raw: Raw | None) -> str:
    """A finish reason's name."""
    return _enumerated(raw, _BY_NUMBER)


def _enumerated(raw: Raw | None, names: tuple[str, ...]) -> str:
    if raw is None:
        return ""
    data = bytes(raw)
    if data[:1] == b'"':
        return text_or(raw)
    if data.isdigit() and len(data) < 4:
        number = int(data)
        return names[number] if number < len(names) else data.decode()
    return ""


def finish(native: str, *, calls: bool) -> n.Finish:
    """STOP is said of answers with calls too, so `tool_calls` is derived."""
    found = _FINISHES.get(native, "error") if native else ""
    return "tool_calls" if found == "stop" and calls else found


def refused(native: str, message: str, *, said: bool) -> f.Failure | None:
    """The failure that a finish reason is; None where the answer stands. `said`: it has parts."""
    if native in _MALFORMED_CALLS:
        # The finish message quotes what the model wrote.
        return f.MalformedToolCall(_told(native, ""), 200, native)
    if said:
        return None
    found = _FINISHES.get(native, "error") if native else ""
    if found == "content_filter":
        return f.ContentFiltered(_told(native, message), 200, native)
    if found != "error":
        return None
    if native == "MISSING_THOUGHT_SIGNATURE":
        return f.InvalidRequest(_told(native, message), 200, native)
    if native == "MALFORMED_RESPONSE":
        return f.MalformedAnswer(_told(native, ""), 200, native)
    return f.ServerError(_told(native, ""), 200, native)


def _told(native: str, message: str) -> str:
    line = message.partition("\n")[0].strip()[:200]
    return f"the model stopped with {native}" + (f": {line}" if line else "")


def blocked(raw: Raw | None) -> f.ContentFiltered | None:
    """The failure that a `promptFeedback` tells."""
    if raw is None:
        return None
    try:
        given = fields(raw)
    except UNREADABLE:
        return None
    why = _enumerated(given.get("blockReason"), _BLOCKS_BY_NUMBER)
    if not why or why == "BLOCKED_REASON_UNSPECIFIED":
        return None
    told = text_or(given.get("blockReasonMessage")).strip()[:MESSAGE_MAX]
    message = f"the prompt was blocked: {why}" + (f": {told}" if told else "")
    return f.ContentFiltered(message, 200, why)


# ---------------------------------------------------------------- decoding


_raws: Final = msgspec.json.Decoder(list[Raw]).decode
_part_list: Final = msgspec.json.Decoder(list[dict[str, Raw]]).decode
_NULL: Final = b"null"


def decode_answer(body: bytes, *, status: int = 200) -> n.Answer | f.Failure:
    """The provider's 200 as an answer, or the failure that it is."""
    try:
        given = fields(body)
        if bytes(given.get("error", Raw(_NULL))) != _NULL:
            return classify(status, {}, body, now=0.0)
        raws = given.pop("candidates", None)
        candidates = [] if raws is None or bytes(raws) == _NULL else _raws(raws)
        if not candidates:
            return blocked(given.get("promptFeedback")) or f.MalformedAnswer(
                "the provider's answer has no candidates", provider_status=status
            )
        return _answer(given, candidates[:CANDIDATES_MAX])
    except (*UNREADABLE, p.NotAPart):
        return f.MalformedAnswer(not_json(body), provider_status=status)


def not_json(body: bytes) -> str:
    start = body.lstrip()[:15].lower()
    if start.startswith((b"<!doctype", b"<html")):
        return "the provider answered with an HTML page instead of JSON"
    if not start:
        return "the provider answered with an empty body"
    return "the provider's answer is not the JSON that its API promises"


def _answer(given: dict[str, Raw], raws: list[Raw]) -> n.Answer | f.Failure:
    answer_id = text_or(given.pop("responseId", None))
    seed = answer_id or text_or(given.get("createTime"))
    found = [_decode_candidate(raw, at, seed) for at, raw in enumerate(raws)]
    failure = next((failure for _, failure in found if failure is not None), None)
    if failure is not None and not any(candidate.parts for candidate, other in found if not other):
        return failure
    told = given.get("usageMetadata")
    return n.Answer(
        dialect="gemini",
        id=answer_id,
        model=text_or(given.pop("modelVersion", None)),
        created=created(given.get("createTime")),
        candidates=[candidate for candidate, _ in found],
        usage=None if told is None else read_usage(told),
        service_tier=_tier(told),
        extra=given,
    )


def _decode_candidate(raw: Raw, at: int, seed: str) -> tuple[n.Candidate, f.Failure | None]:
    """A candidate, and the failure that it would be if it were the only one."""
    extra = fields(raw)
    content = extra.pop("content", None)
    finish_reason = extra.pop("finishReason", None)
    parts: list[n.Part] = []
    if content is None or bytes(content) == _NULL:
        # No content at all, which is not the same as an empty one.
        extra["content"] = Raw(_NULL)
    else:
        held = fields(content)
        listed = held.pop("parts", None)
        if listed is not None and bytes(listed) != _NULL:
            parts = decode_parts(_part_list(listed), seed, at)
        if len(held) != 1 or bytes(held.get("role", Raw(_NULL))) != b'"model"':
            extra["content"] = Raw(encode(held))
    native = reason(finish_reason)
    if finish_reason is not None and bytes(finish_reason)[:1] != b'"':
        extra["finishReason"] = finish_reason
    calls = any(isinstance(part, n.ToolCall) for part in parts)
    told = extra.get("logprobsResult")
    found = n.Candidate(
        parts=parts,
        # A whole answer is finished, whether or not it says how.
        finish=finish(native, calls=calls) or ("tool_calls" if calls else "stop"),
        native=native,
        logprobs=None if told is None else openai_logprobs(told),
        extra=extra,
    )
    return found, refused(native, text_or(extra.get("finishMessage")), said=bool(parts))


def decode_parts(
    given: list[dict[str, Raw]], seed: str, candidate: int, start: int = 0
) -> list[n.Part]:
    """Raises NotAPart. `start` is the number of parts that came before in the same candidate."""
    return [
        p.part(
            fields_,
            p.mint(seed, candidate, start + at, "call") if "functionCall" in fields_ else "",
        )
        for at, fields_ in enumerate(given)
    ]


class _Tier(Struct, rename="camel"):
    service_tier: str = ""


_tier_of: Final = msgspec.json.Decoder(_Tier).decode


def _tier(raw: Raw | None) -> str:
    try:
        return "" if raw is None else _tier_of(raw).service_tier
    except UNREADABLE:
        return ""


_RFC_3339: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}")


def created(raw: Raw | None) -> int:
    """Unix seconds of `createTime`, an RFC 3339 time in UTC; 0 for what is none."""
    found = _RFC_3339.match(text_or(raw))
    if found is None:
        return 0
    try:
        return int(datetime.fromisoformat(found[0]).replace(tzinfo=UTC).timestamp())
    except (ValueError, OverflowError):
        return 0


# ---------------------------------------------------------------- log probabilities


class _Token(Struct, rename="camel"):
    token: str = ""
    log_probability: float = 0.0


class _TopTokens(Struct, rename="camel"):
    candidates: list[_Token] = []


class _Logprobs(Struct, rename="camel"):
    chosen_candidates: list[_Token] = []
    top_candidates: list[_TopTokens] = []


class _OpenAiTop(Struct):
    token: str
    logprob: float
    bytes: list[int] | None = None


class _OpenAiToken(Struct):
    token: str
    logprob: float
    bytes: list[int] | None = None
    top_logprobs: list[_OpenAiTop] = []


class _OpenAiLogprobs(Struct):
    content: list[_OpenAiToken] | None = None


_logprobs: Final = msgspec.json.Decoder(_Logprobs).decode
_openai_logprobs: Final = msgspec.json.Decoder(_OpenAiLogprobs).decode


def openai_logprobs(raw: Raw) -> Raw | None:
    """A `logprobsResult` in the shape of OpenAI's `logprobs`; None for what is none."""
    try:
        given = _logprobs(raw)
    except UNREADABLE:
        return None
    tops = given.top_candidates
    content = [
        _OpenAiToken(
            token=chosen.token,
            logprob=chosen.log_probability,
            bytes=list(chosen.token.encode("utf-8", "replace")),
            top_logprobs=[
                _OpenAiTop(
                    top.token, top.log_probability, list(top.token.encode("utf-8", "replace"))
                )
                for top in (tops[at].candidates if at < len(tops) else ())
            ],
        )
        for at, chosen in enumerate(given.chosen_candidates)
    ]
    return Raw(encode(_OpenAiLogprobs(content=content)))


def gemini_logprobs(raw: Raw) -> Body | None:
    """OpenAI's `logprobs` as a `logprobsResult`; None for what is none."""
    try:
        content = _openai_logprobs(raw).content
    except UNREADABLE:
        return None
    if not content:
        return None
    written: Body = {
        "chosenCandidates": [
            {"token": told.token, "logProbability": told.logprob} for told in content
        ]
    }
    if any(told.top_logprobs for told in content):
        written["topCandidates"] = [
            {
                "candidates": [
                    {"token": top.token, "logProbability": top.logprob} for top in told.top_logprobs
                ]
            }
            for told in content
        ]
    return written


# ---------------------------------------------------------------- encoding

REASONS: Final = {
    "stop": "STOP",
    "tool_calls": "STOP",
    "length": "MAX_TOKENS",
    "content_filter": "SAFETY",
    "error": "OTHER",
    "": "",
}


def encode_answer(answer: n.Answer, *, model: str) -> bytes:
    """A generateContent answer. What another provider said and this API has no word for is left out."""
    native = answer.dialect == "gemini"
    body: Body = {
        "candidates": [
            _encode_candidate(candidate, at, native=native)
            for at, candidate in enumerate(answer.candidates)
        ]
    }
    if answer.usage is not None:
        body["usageMetadata"] = encode_usage(answer.usage)
    if model:
        body["modelVersion"] = model
    if answer.id:
        body["responseId"] = answer.id
    if native:
        body |= answer.extra
    return encode(body)


def _encode_candidate(candidate: n.Candidate, at: int, *, native: bool) -> Body:
    content: Body = {"role": "model"}
    extra = dict(candidate.extra) if native else {}
    told = extra.pop("content", None)
    if told is not None:
        content = {} if bytes(told) == _NULL else dict(fields(told))
    parts = encode_parts(candidate.parts, native=native)
    if parts:
        content["parts"] = parts
    written: Body = {"content": content} if told is None or bytes(told) != _NULL else {}
    named = (candidate.native if native else "") or REASONS[candidate.finish]
    if native and not candidate.native:
        named = ""
    if named:
        written["finishReason"] = named
    if not native:
        written["index"] = at
        if candidate.logprobs is not None:
            result = gemini_logprobs(candidate.logprobs)
            if result is not None:
                written["logprobsResult"] = result
    return written | extra


def encode_parts(parts: list[n.Part], *, native: bool) -> list[object]:
    lost = Dropped()
    found = (p.encode_part(part, lost, native=native) for part in parts)
    return [written for written in found if written is not None]
