"""Cohere's API, version 2, from the provider's side.

Source: Cohere API reference, "Chat (v2)", "Embed (v2)", "Errors"; recorded answers and streams.
"""

import base64
import struct
from collections.abc import Iterator
from typing import ClassVar, Final

from msgspec.structs import replace

from breakwater_gateway.simulator.content import counts
from breakwater_gateway.simulator.dialects.chat_request import read_chat_like
from breakwater_gateway.simulator.dialects.dialect import Ask, Dialect, Headers, encode, sse
from breakwater_gateway.simulator.refusals import ApiError, Problem
from breakwater_gateway.simulator.script import Rate, Script
from breakwater_gateway.simulator.turns import (
    HEX,
    Choice,
    Counts,
    Embedding,
    Event,
    Json,
    Sampling,
    ToolUse,
    Turn,
    batches,
    count_tokens,
    token,
)
from breakwater_gateway.simulator.vectors import vector

DIMENSIONS: Final = 1536
INPUTS_MAX: Final = 96
DONE: Final = b"data: [DONE]\n\n"
_PLAN: Final = ("I", " will", " use", " a", " tool.")
_FINISHES: Final = {
    "stop": "COMPLETE",
    "length": "MAX_TOKENS",
    "tool_calls": "TOOL_CALL",
    "content_filter": "ERROR",
}
_KINDS: Final = ("float", "int8", "uint8", "base64")
_KNOWN: Final = frozenset(
    {
        *("model", "messages", "stream", "tools", "strict_tools", "documents", "citation_options"),
        *("response_format", "safety_mode", "max_tokens", "stop_sequences", "temperature", "seed"),
        *("frequency_penalty", "presence_penalty", "k", "p", "logprobs", "tool_choice", "thinking"),
        *("priority", "raw_prompting"),
    }
)


class CohereError(ApiError):
    def __init__(self, status: int, message: str, *, error_type: str = "") -> None:
        super().__init__(status, message)
        self.error_type = error_type

    def object(self) -> Json:
        named = {"error_type": self.error_type} if self.error_type else {}
        return {**named, "id": _uuid(len(self.message)), "message": self.message}


class Cohere(Dialect):
    name: ClassVar[str] = "cohere"
    broken: ClassVar[bytes] = (
        b'event: content-delta\ndata: {"type":"content-delta","index":0,"delta":\n\n'
    )

    def read(self, ask: Ask) -> Turn:
        raw = ask.raw
        for name in raw:
            if name not in _KNOWN:
                raise CohereError(
                    422, f"unknown field: parameter '{name[:200]}' is not a valid field"
                )
        for name, most in (("p", 0.99), ("frequency_penalty", 1), ("presence_penalty", 1)):
            value = raw.get(name)
            if value is not None and not (isinstance(value, int | float) and 0 <= value <= most):
                raise self.invalid(
                    f"invalid request: {name} must be between 0 and {most} inclusive."
                )
        choice = raw.get("tool_choice")
        if choice is not None and choice not in ("REQUIRED", "NONE"):
            raise self.invalid("invalid request: tool_choice must be one of REQUIRED, NONE.")
        turn = read_chat_like(
            ask,
            self.invalid,
            forced=choice == "REQUIRED",
            tokens_max=raw.get("max_tokens"),
            stop=raw.get("stop_sequences"),
            schema=_schema(raw.get("response_format")),
        )
        return replace(turn, tools=()) if choice == "NONE" else turn

    def answer(
        self, turn: Turn, choices: list[Choice], script: Script, sampling: Sampling
    ) -> bytes:
        choice = choices[0]
        content: list[Json] = []
        if choice.thinking:
            content.append({"type": "thinking", "thinking": "".join(choice.thinking)})
        if choice.pieces:
            content.append({"type": "text", "text": choice.text})
        message: dict[str, Json] = {"role": "assistant"}
        if content:
            message["content"] = content
        if choice.calls:
            message["tool_plan"] = "".join(_PLAN)
            message["tool_calls"] = [
                {
                    "id": _call_id(call),
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in choice.calls
            ]
        answer = {
            "id": _uuid(sampling.chance),
            "message": message,
            **self._end(turn, choices, script),
        }
        return encode(answer)

    def events(
        self, turn: Turn, choices: list[Choice], script: Script, sampling: Sampling
    ) -> Iterator[Event]:
        choice, step = choices[0], script.chunk_tokens
        opening = {"role": "assistant", "content": [], "tool_plan": "", "tool_calls": []}
        yield _event(
            "message-start",
            {
                "id": _uuid(sampling.chance),
                "type": "message-start",
                "delta": {"message": {**opening, "citations": []}},
            },
            head=True,
        )
        blocks = [("thinking", choice.thinking), ("text", choice.pieces)]
        for i, (kind, pieces) in enumerate(block for block in blocks if block[1]):
            yield _content("content-start", i, {"type": kind, kind: ""})
            for text, tokens in batches(pieces, step):
                yield _content("content-delta", i, {kind: text}, tokens)
            yield _event("content-end", {"type": "content-end", "index": i})
        for word in _PLAN if choice.calls else ():
            plan = {"message": {"tool_plan": word}}
            yield _event("tool-plan-delta", {"type": "tool-plan-delta", "delta": plan})
        for i, call in enumerate(choice.calls):
            yield from _call_events(call, i, step)
        end = {"type": "message-end", "delta": self._end(turn, choices, script)}
        yield _event("message-end", end)
        yield Event(DONE, last=True)

    def _end(self, turn: Turn, choices: list[Choice], script: Script) -> dict[str, Json]:
        choice = choices[0]
        end: dict[str, Json] = {"finish_reason": _finish(choice)}
        if choice.malformed:
            end["error_type"] = "INVALID_TOOL_GENERATION"
            end["error"] = "the model failed to generate a valid tool call"
        if script.usage != "missing":
            end["usage"] = _usage(counts(turn, choices, script), turn)
        return end

    def read_embeddings(self, ask: Ask) -> Embedding:
        raw = ask.raw
        texts = raw.get("texts")
        if texts is None and isinstance(raw.get("inputs"), list):
            texts = [_input_text(item) for item in raw["inputs"]]
        if not isinstance(texts, list) or not texts:
            raise self.invalid("invalid request: one of texts, images or inputs must be provided.")
        if len(texts) > INPUTS_MAX:
            raise self.invalid(f"invalid request: the maximum number of texts is {INPUTS_MAX}.")
        if not all(isinstance(text, str) for text in texts):
            raise self.invalid(
                "invalid type: parameter texts is of type array but should be of type string."
            )
        if raw.get("input_type") is None:
            raise self.invalid(
                "invalid request: valid input_type must be provided with the provided model."
            )
        kinds = raw.get("embedding_types") or ["float"]
        if not isinstance(kinds, list) or not all(kind in _KINDS for kind in kinds):
            raise self.invalid(
                "invalid request: embedding_types must be float, int8, uint8 or base64."
            )
        natural = ask.script.embedding_dimensions or DIMENSIONS
        wanted = raw.get("output_dimension") or natural
        if type(wanted) is not int or wanted not in {256, 512, 1024, 1536, natural}:
            raise self.invalid("invalid request: output_dimension must be 256, 512, 1024 or 1536.")
        prompt = sum(count_tokens(text) for text in texts)
        return Embedding(ask.model, tuple(texts), wanted, prompt, encodings=tuple(kinds))

    def embeddings(self, asked: Embedding, script: Script, *, seed: int) -> bytes:
        floats = [_floats(text, asked, seed) for text in asked.inputs]
        used = script.prompt_tokens if script.prompt_tokens is not None else asked.prompt_tokens
        answer: dict[str, Json] = {
            "embeddings": {kind: [_as(kind, one) for one in floats] for kind in asked.encodings},
            "id": _uuid(used),
            "meta": {
                "api_version": {"version": "2"},
                "billed_units": {"image_tokens": 0, "input_tokens": used},
            },
            "response_type": "embeddings_by_type",
            "texts": asked.inputs,
        }
        if script.usage == "missing":
            del answer["meta"]
        return encode(answer)

    def error(self, problem: Problem) -> CohereError:
        error = _word(problem)
        if problem.message is not None:
            error.message = problem.message
        return error

    def stream_error(self, problem: Problem) -> bytes:
        """An end of the message that says so, under status 200."""
        error = self.error(problem)
        delta = {"finish_reason": "ERROR", "error": error.message}
        return sse(encode({"type": "message-end", "delta": delta}), "message-end") + DONE

    def headers(self, identity: int) -> Headers:
        return (("x-debug-trace-id", token(identity, 32, HEX)),)

    def rate_headers(self, rates: tuple[Rate, ...], *, wall: float) -> Headers:  # noqa: ARG002
        """As for trial keys."""
        return tuple(
            header
            for rate in rates
            if rate.name == "requests"
            for header in (
                ("x-trial-endpoint-call-limit", str(rate.limit)),
                ("x-trial-endpoint-call-remaining", str(rate.remaining)),
            )
        )


def _word(problem: Problem) -> CohereError:
    match problem.kind:
        case "rate_limited":
            return CohereError(
                429,
                "You are using a Trial key, which is limited to"
                f" {problem.bound} API calls / minute. You can continue to use the Trial key for free or"
                " upgrade to a Production key with higher rate limits at"
                " 'https://dashboard.cohere.com/api-keys'.",
            )
        case "quota_exhausted":
            return CohereError(
                402,
                "Please add or update your payment method at https://dashboard.cohere.com/billing",
            )
        case "request_over_limit":
            return CohereError(413, "request body is too large")
        case "context_length":
            return CohereError(
                400,
                f"too many tokens: size limit exceeded by {problem.requested - problem.bound} tokens. Try"
                f" using shorter or fewer inputs. The limit for this model is {problem.bound} tokens.",
                error_type="TOO_MANY_TOKENS",
            )
        case "content_filter":
            return CohereError(498, "the prompt was blocked by the content filter")
        case "invalid_request":
            return CohereError(400, "invalid request: message must be at least 1 token long.")
        case "authentication":
            return CohereError(
                401,
                f"Incorrect API key provided: {'*' * min(len(problem.key), 11)}. You can find your API key"
                " at https://dashboard.cohere.com/api-keys.",
            )
        case "no_key":
            return CohereError(401, "no api key supplied")
        case "permission":
            return CohereError(403, "you do not have permission to use this resource")
        case "model_not_found":
            return CohereError(
                404,
                f"model '{problem.model}' not found, make sure the correct model ID was used and that you"
                " have access to the model.",
            )
        case "overloaded":
            return CohereError(503, "service unavailable, please try again later")
        case "server_error" | "error_in_200":
            status = 200 if problem.kind == "error_in_200" else 500
            return CohereError(status, "internal server error, this has been reported to our team")
        case "bad_json":
            return CohereError(400, "invalid json syntax: unexpected end of JSON input")
        case "unknown_url" | "wrong_method":
            return CohereError(404, f"{problem.method} {problem.path} not found")


def _usage(used: Counts, turn: Turn) -> dict[str, Json]:
    """`tokens` is what was processed, `billed_units` what is paid: not the hidden prompts around it."""
    billed = min(used.prompt, count_tokens(turn.last_text))
    tokens: dict[str, Json] = {"input_tokens": used.prompt, "output_tokens": used.completion}
    if used.reasoning:
        tokens["reasoning_tokens"] = used.reasoning
    return {
        "billed_units": {"input_tokens": billed, "output_tokens": used.completion},
        "tokens": tokens,
        "cached_tokens": used.cached,
    }


def _finish(choice: Choice) -> str:
    if choice.malformed:
        return "ERROR"
    return "STOP_SEQUENCE" if choice.stopped_by else _FINISHES[choice.finish]


def _call_events(call: ToolUse, index: int, step: int) -> Iterator[Event]:
    """Here `tool_calls` is an object; the index is the event's."""
    opened = {
        "id": _call_id(call),
        "type": "function",
        "function": {"name": call.name, "arguments": ""},
    }
    yield _calls("tool-call-start", index, opened)
    for text, tokens in batches(call.pieces, step):
        yield _calls("tool-call-delta", index, {"function": {"arguments": text}}, tokens)
    yield _event("tool-call-end", {"type": "tool-call-end", "index": index})


def _calls(name: str, index: int, call: Json, tokens: int = 0) -> Event:
    delta = {"message": {"tool_calls": call}}
    return _event(name, {"type": name, "index": index, "delta": delta}, tokens)


def _content(name: str, index: int, content: Json, tokens: int = 0) -> Event:
    delta = {"message": {"content": content}}
    return _event(name, {"type": name, "index": index, "delta": delta}, tokens)


def _event(name: str, fields: Json, tokens: int = 0, *, head: bool = False) -> Event:
    return Event(sse(encode(fields), name), tokens, head=head)


def _call_id(call: ToolUse) -> str:
    return f"{call.name}_{token(call.chance ^ 3, 12, 'abcdefghijklmnopqrstuvwxyz0123456789')}"


def _uuid(chance: int) -> str:
    hexes = token(chance ^ 9, 32, HEX)
    return f"{hexes[:8]}-{hexes[8:12]}-4{hexes[13:16]}-a{hexes[17:20]}-{hexes[20:]}"


def _schema(given: Json) -> Json:
    if not isinstance(given, dict) or given.get("type") != "json_object":
        return None
    schema = given.get("json_schema") or given.get("schema")
    return schema or {"type": "object", "properties": {"answer": {"type": "string"}}}


def _input_text(item: Json) -> Json:
    """The text of one of `inputs`; None for what is none."""
    content = item.get("content") if isinstance(item, dict) else None
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        return None
    texts = [part.get("text", "") for part in content]
    return " ".join(texts) if all(isinstance(text, str) for text in texts) else None


def _floats(text: str, asked: Embedding, seed: int) -> list[float]:
    found = vector(text, asked.dimensions, seed, as_base64=False)
    assert isinstance(found, list)  # noqa: S101 - it was asked for as floats
    return found


def _as(kind: str, floats: list[float]) -> Json:
    match kind:
        case "int8":
            return [max(-128, min(127, round(x * 127))) for x in floats]
        case "uint8":
            return [max(0, min(255, round(x * 127) + 128)) for x in floats]
        case "base64":
            return base64.b64encode(struct.pack(f"<{len(floats)}f", *floats)).decode()
        case _:
            return floats
