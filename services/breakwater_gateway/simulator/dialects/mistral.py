"""Mistral's chat completions from the provider's side: OpenAI's shape with manners of its own.

Source: Mistral API reference, "Chat", "Reasoning"; recorded answers and streams; public error bodies.
"""

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import ClassVar, Final

from msgspec.structs import replace

from breakwater_gateway.simulator.content import counts
from breakwater_gateway.simulator.dialects.chat_request import read_chat_like
from breakwater_gateway.simulator.dialects.dialect import (
    Ask,
    Dialect,
    Headers,
    encode,
    sse,
)
from breakwater_gateway.simulator.dialects.openai_embeddings import embeddings, read_embeddings
from breakwater_gateway.simulator.dialects.openai_errors import OpenAIError
from breakwater_gateway.simulator.refusals import ApiError, Problem
from breakwater_gateway.simulator.script import Rate, Script, mix
from breakwater_gateway.simulator.turns import (
    BASE62,
    HEX,
    Choice,
    Embedding,
    Event,
    Json,
    Sampling,
    ToolUse,
    Turn,
    batches,
    token,
)

DONE: Final = b"data: [DONE]\n\n"
DIMENSIONS: Final = 1024
_ALPHABET: Final = "abcdefghijklmnopqrstuvwxyz0123456789"
_FINISHES: Final = {"content_filter": "error"}
_KNOWN: Final = frozenset(
    {
        *(
            "model",
            "messages",
            "temperature",
            "top_p",
            "max_tokens",
            "stream",
            "stop",
            "random_seed",
        ),
        *("metadata", "response_format", "tools", "tool_choice", "presence_penalty", "n"),
        *("frequency_penalty", "prediction", "parallel_tool_calls", "prompt_mode", "safe_prompt"),
        *("guardrails", "reasoning_effort", "service_tier", "prompt_cache_key"),
    }
)


class MistralError(ApiError):
    """`message` may be an object. A refused key has another body altogether."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type_: str = "",
        code: str | None = None,
        detail: Json = None,
    ) -> None:
        super().__init__(status, message)
        self.type = type_ or "invalid_request_error"
        self.code = code
        self.detail = detail

    def object(self) -> Json:
        if self.status in {401, 403}:
            return {"detail": self.message}
        return {
            "object": "error",
            "message": self.message if self.detail is None else {"detail": self.detail},
            "type": self.type,
            "param": None,
            "code": self.code,
        }


class Mistral(Dialect):
    name: ClassVar[str] = "mistral"

    def read(self, ask: Ask) -> Turn:
        raw = ask.raw
        unknown = [name for name in raw if name not in _KNOWN]
        if unknown:
            detail = [
                {
                    "type": "extra_forbidden",
                    "loc": ["body", name[:200]],
                    "msg": "Extra inputs are not permitted",
                    "input": None,
                }
                for name in unknown[:10]
            ]
            raise MistralError(422, "Extra inputs are not permitted", detail=detail)
        choice = raw.get("tool_choice")
        turn = read_chat_like(
            ask,
            self.invalid,
            forced=choice in {"any", "required"} if isinstance(choice, str) else choice is not None,
            tokens_max=raw.get("max_tokens"),
            stop=raw.get("stop"),
            schema=_schema(raw.get("response_format")),
        )
        _check_order(raw["messages"])
        tools = turn.tools
        if isinstance(choice, dict):
            named = choice.get("function")
            name = named.get("name") if isinstance(named, dict) else None
            tools = tuple(tool for tool in tools if tool.name == name)
            if not tools:
                raise self.invalid(f"Tool choice {str(name)[:100]} is not among the tools")
        elif choice == "none":
            tools = ()
        count = 1 if raw.get("n") is None else raw["n"]
        if type(count) is not int or not 1 <= count <= 128:
            raise self.invalid("n must be between 1 and 128")
        return replace(
            turn, tools=tools, choices=count, one_call=raw.get("parallel_tool_calls") is False
        )

    def answer(
        self, turn: Turn, choices: list[Choice], script: Script, sampling: Sampling
    ) -> bytes:
        answer: dict[str, Json] = {
            "id": sampling.token(1, 32, HEX),
            "created": sampling.created,
            "model": turn.model,
            "usage": _usage(turn, choices, script),
            "object": "chat.completion",
            "choices": [
                {"index": i, "finish_reason": _finish(choice), "message": _message(choice)}
                for i, choice in enumerate(choices)
            ],
        }
        if script.usage == "missing":
            del answer["usage"]
        return encode(answer)

    def events(
        self, turn: Turn, choices: list[Choice], script: Script, sampling: Sampling
    ) -> Iterator[Event]:
        """Thoughts are lists, tool calls come whole, and usage rides on the last chunk unasked."""
        pad = sampling.chance

        def chunk(i: int, delta: Json, finish: str | None = None, usage: Json = None) -> bytes:
            nonlocal pad
            pad = mix(pad)
            fields: dict[str, Json] = {
                "id": sampling.token(1, 32, HEX),
                "object": "chat.completion.chunk",
                "created": sampling.created,
                "model": turn.model,
                "choices": [{"index": i, "delta": delta, "finish_reason": finish}],
            }
            if usage is not None:
                fields["usage"] = usage
            return sse(encode({**fields, "p": _ALPHABET[: pad % len(_ALPHABET) + 1]}))

        for i, _ in enumerate(choices):
            yield Event(chunk(i, {"role": "assistant", "content": ""}), head=True)
        for i, choice in enumerate(choices):
            for text, tokens in batches(choice.thinking, script.chunk_tokens):
                yield Event(chunk(i, {"content": [_thought(text)]}), tokens)
            for text, tokens in batches(choice.pieces, script.chunk_tokens):
                yield Event(chunk(i, {"content": text}), tokens)
            last: dict[str, Json] = {"content": ""}
            if choice.calls:
                last = {"tool_calls": [_call(call) for call in choice.calls]}
            ended = i + 1 == len(choices) and script.usage != "missing"
            usage = _usage(turn, choices, script) if ended else None
            written = sum(len(call.pieces) for call in choice.calls)
            yield Event(chunk(i, last, _finish(choice), usage), written)
        yield Event(DONE, last=True)

    def read_embeddings(self, ask: Ask) -> Embedding:
        script = ask.script
        if script.embedding_dimensions is None:
            script = replace(script, embedding_dimensions=DIMENSIONS)
        try:
            return read_embeddings(ask.raw, ask.model, script)
        except OpenAIError as error:
            raise self.invalid(error.message) from error

    def embeddings(self, asked: Embedding, script: Script, *, seed: int) -> bytes:
        return embeddings(asked, script, seed=seed)

    def error(self, problem: Problem) -> MistralError:
        error = _word(problem)
        if problem.message is not None:
            error.message = problem.message
        return error

    def headers(self, identity: int) -> Headers:
        return (("mistral-correlation-id", token(identity, 32, HEX)),)

    def rate_headers(self, rates: tuple[Rate, ...], *, wall: float) -> Headers:  # noqa: ARG002
        names = {"requests": "req", "tokens": "tokens"}
        return tuple(
            header
            for rate in rates
            for header in (
                (f"x-ratelimit-limit-{names[rate.name]}-minute", str(rate.limit)),
                (f"x-ratelimit-remaining-{names[rate.name]}-minute", str(rate.remaining)),
            )
        )


def _word(problem: Problem) -> MistralError:
    match problem.kind:
        case "rate_limited":
            return MistralError(429, "Rate limit exceeded", type_="rate_limited", code="1300")
        case "quota_exhausted":
            return MistralError(402, "You have exceeded your monthly usage limit.", code="1402")
        case "request_over_limit":
            return MistralError(413, "Request Entity Too Large")
        case "context_length":
            return MistralError(
                400,
                f"Prompt contains {problem.requested} tokens, too large for model with {problem.bound}"
                " maximum context length",
                code="3051",
            )
        case "content_filter":
            return MistralError(400, "Invalid request: the content was refused", code="3000")
        case "invalid_request":
            return MistralError(400, "Invalid request", code="3000")
        case "authentication" | "no_key":
            return MistralError(401, "Invalid API Key" if problem.key else "Unauthorized")
        case "permission":
            return MistralError(403, "You do not have access to this resource")
        case "model_not_found":
            return MistralError(
                400, f"Invalid model: {problem.model}", type_="invalid_model", code="1500"
            )
        case "overloaded":
            return MistralError(503, "Service tier capacity exceeded for this model.", code="3505")
        case "server_error" | "error_in_200":
            status = 200 if problem.kind == "error_in_200" else 500
            return MistralError(
                status, "Internal server error", type_="internal_server_error", code="1000"
            )
        case "bad_json":
            return MistralError(422, "JSON decode error", type_="invalid_request_error")
        case "unknown_url":
            return MistralError(404, "no Route matched with those values")
        case "wrong_method":
            return MistralError(405, "Method Not Allowed")


def _usage(turn: Turn, choices: list[Choice], script: Script) -> dict[str, Json]:
    used = counts(turn, choices, script)
    return {
        "prompt_tokens": used.prompt,
        "total_tokens": used.prompt + used.completion,
        "completion_tokens": used.completion,
        "prompt_tokens_details": {"cached_tokens": used.cached},
    }


def _finish(choice: Choice) -> str:
    return _FINISHES.get(choice.finish, choice.finish)


def _message(choice: Choice) -> dict[str, Json]:
    content: Json = choice.text
    if choice.thinking:
        thought = {**_thought("".join(choice.thinking)), "closed": True}
        content = [thought, *([{"type": "text", "text": choice.text}] if choice.pieces else [])]
    calls = [_call(call) for call in choice.calls] or None
    return {"role": "assistant", "tool_calls": calls, "content": content}


def _thought(text: str) -> dict[str, Json]:
    return {"type": "thinking", "thinking": [{"type": "text", "text": text}]}


def _call(call: ToolUse) -> dict[str, Json]:
    """Without a type, without an index, with an id of nine characters."""
    return {
        "id": token(call.chance ^ 3, 9, BASE62),
        "function": {"name": call.name, "arguments": call.arguments},
    }


def _check_order(messages: list[Json]) -> None:
    for message in messages:
        calls = message.get("tool_calls") or []
        if not isinstance(calls, list):
            raise MistralError(422, "Input should be a valid list")
        for call in calls:
            _check_id(call.get("id") if isinstance(call, dict) else None)
        if message["role"] == "tool":
            _check_id(message.get("tool_call_id"))
    last = messages[-1]
    if last["role"] == "assistant" and not last.get("prefix"):
        raise MistralError(
            400,
            "Expected last role User or Tool (or Assistant with prefix True) for serving but got assistant",
            type_="invalid_request_message_order",
            code="3230",
        )
    for before, message in pairwise(messages):
        if message["role"] == "tool" and not (before["role"] == "tool" or before.get("tool_calls")):
            raise MistralError(
                400,
                f"Unexpected role 'tool' after role '{before['role']}'",
                type_="invalid_request_message_order",
                code="3230",
            )


def _check_id(given: Json) -> None:
    if not isinstance(given, str) or not re.fullmatch(r"[a-zA-Z0-9]{9}", given):
        raise MistralError(
            400,
            f"Tool call id was {str(given)[:100]} but must be a-z, A-Z, 0-9, with a length of 9.",
            type_="invalid_function_call",
            code="3280",
        )


def _schema(given: Json) -> Json:
    if not isinstance(given, dict):
        return None
    if given.get("type") == "json_object":
        return {"type": "object", "properties": {"answer": {"type": "string"}}}
    described = given.get("json_schema")
    return described.get("schema") if isinstance(described, dict) else None
