"""Ollama's own API from the provider's side: a line of JSON a chunk, and no ids.

Source: Ollama API documentation, "Generate a chat completion", "Generate embeddings", "List local models";
recorded answers and streams. It streams unless told not to.
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import ClassVar, Final

import msgspec

from breakwater_gateway.simulator.content import counts
from breakwater_gateway.simulator.dialects.chat_request import read_chat_like
from breakwater_gateway.simulator.dialects.dialect import (
    JSON,
    Ask,
    Dialect,
    Headers,
    encode,
)
from breakwater_gateway.simulator.refusals import ApiError, Problem
from breakwater_gateway.simulator.script import Rate, Script
from breakwater_gateway.simulator.turns import (
    Choice,
    Embedding,
    Event,
    Json,
    Sampling,
    ToolUse,
    Turn,
    batches,
    count_tokens,
)
from breakwater_gateway.simulator.vectors import vector

NDJSON: Final = ("content-type", "application/x-ndjson")
DIMENSIONS: Final = 768
_LOAD_NS: Final = 10_649_928
_TOKEN_NS: Final = 20_480_000
"""What evaluating one token takes; as on a small machine."""


class OllamaError(ApiError):
    def object(self) -> Json:
        return {"error": self.message}


class Ollama(Dialect):
    name: ClassVar[str] = "ollama"
    keep_alive: ClassVar[bytes] = b""
    broken: ClassVar[bytes] = b'{"model":"broken","message":{"role":\n'

    def read(self, ask: Ask) -> Turn:
        raw = ask.raw
        options = raw.get("options") or {}
        if not isinstance(options, dict):
            raise self.invalid("json: cannot unmarshal into Go struct field ChatRequest.options")
        messages = raw.get("messages")
        for message in messages if isinstance(messages, list) else ():
            content = message.get("content") if isinstance(message, dict) else None
            if content is not None and not isinstance(content, str):
                raise self.invalid(
                    "json: cannot unmarshal array into Go struct field ChatRequest.messages of type string"
                )
            calls = message.get("tool_calls") if isinstance(message, dict) else None
            if calls is not None and not isinstance(calls, list):
                raise self.invalid(
                    "json: cannot unmarshal into Go struct field ChatRequest.messages.tool_calls of type"
                    " []api.ToolCall"
                )
            for call in calls or ():
                function = call.get("function") if isinstance(call, dict) else None
                if isinstance(function, dict) and not isinstance(function.get("arguments"), dict):
                    raise self.invalid(
                        "json: cannot unmarshal string into Go struct field"
                        " ChatRequest.messages.tool_calls.function.arguments of type"
                        " api.ToolCallFunctionArguments"
                    )
        limit = options.get("num_predict")
        return read_chat_like(
            ask,
            self.invalid,
            forced=False,
            # Below one it means: without end.
            tokens_max=limit if isinstance(limit, int) and limit > 0 else None,
            stop=options.get("stop"),
            schema=_schema(raw.get("format")),
            stream_by_default=True,
        )

    def stream_type(self, turn: Turn) -> tuple[str, str]:
        return NDJSON if turn.stream else JSON

    def answer(
        self, turn: Turn, choices: list[Choice], script: Script, sampling: Sampling
    ) -> bytes:
        choice = choices[0]
        message: dict[str, Json] = {"role": "assistant", "content": choice.text}
        if choice.thinking:
            message["thinking"] = "".join(choice.thinking)
        if choice.calls:
            message["tool_calls"] = [_call(call, i) for i, call in enumerate(choice.calls)]
        return encode({**_line(turn, sampling, 0, message), **_end(turn, choices, script)})

    def events(
        self, turn: Turn, choices: list[Choice], script: Script, sampling: Sampling
    ) -> Iterator[Event]:
        choice, step = choices[0], script.chunk_tokens
        said: list[tuple[dict[str, Json], int]] = [
            ({"role": "assistant", "content": "", "thinking": text}, tokens)
            for text, tokens in batches(choice.thinking, step)
        ]
        said += [
            ({"role": "assistant", "content": text}, tokens)
            for text, tokens in batches(choice.pieces, step)
        ]
        said += [
            (
                {"role": "assistant", "content": "", "tool_calls": [_call(call, i)]},
                len(call.pieces),
            )
            for i, call in enumerate(choice.calls)
        ]
        for i, (message, tokens) in enumerate(said):
            line = {**_line(turn, sampling, i, message), "done": False}
            yield Event(encode(line) + b"\n", tokens)
        end = _line(turn, sampling, len(said), {"role": "assistant", "content": ""})
        yield Event(encode({**end, **_end(turn, choices, script)}) + b"\n", last=True)

    def read_embeddings(self, ask: Ask) -> Embedding:
        given = ask.raw.get("input")
        texts = [given] if isinstance(given, str) else given
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise self.invalid("invalid input type")
        wanted = ask.raw.get("dimensions")
        size = ask.script.embedding_dimensions or DIMENSIONS
        if wanted is not None and (type(wanted) is not int or not 1 <= wanted <= 16_384):
            raise self.invalid("invalid dimensions")
        prompt = sum(count_tokens(text) for text in texts)
        return Embedding(ask.model, tuple(texts), wanted or size, prompt)

    def embeddings(self, asked: Embedding, script: Script, *, seed: int) -> bytes:
        used = script.prompt_tokens if script.prompt_tokens is not None else asked.prompt_tokens
        answer: dict[str, Json] = {
            "model": asked.model,
            "embeddings": [
                vector(text, asked.dimensions, seed, as_base64=False) for text in asked.inputs
            ],
            "total_duration": _LOAD_NS + used * _TOKEN_NS,
            "load_duration": _LOAD_NS,
            "prompt_eval_count": used,
        }
        if script.usage == "missing":
            del answer["prompt_eval_count"]
        return encode(answer)

    def models(self, names: tuple[str, ...]) -> bytes:
        return encode(
            {
                "models": [
                    {
                        "name": name,
                        "model": name,
                        "modified_at": "2025-05-17T15:10:26.937464025Z",
                        "size": 4_661_224_676,
                        "digest": "0" * 64,
                        "details": {
                            "parent_model": "",
                            "format": "gguf",
                            "family": "llama",
                            "families": ["llama"],
                            "parameter_size": "8.0B",
                            "quantization_level": "Q4_K_M",
                        },
                    }
                    for name in names
                ]
            }
        )

    def error(self, problem: Problem) -> OllamaError:
        error = _word(problem)
        if problem.message is not None:
            error.message = problem.message
        return error

    def stream_error(self, problem: Problem) -> bytes:
        return self.error(problem).body() + b"\n"

    def headers(self, identity: int) -> Headers:  # noqa: ARG002
        return ()

    def rate_headers(self, rates: tuple[Rate, ...], *, wall: float) -> Headers:  # noqa: ARG002
        return ()


def _word(problem: Problem) -> OllamaError:
    match problem.kind:
        case "rate_limited":
            return OllamaError(429, "too many concurrent requests")
        case "quota_exhausted":
            return OllamaError(402, "you have reached your weekly usage limit")
        case "request_over_limit":
            return OllamaError(413, "request body too large")
        case "context_length":
            over = problem.requested - problem.bound
            return OllamaError(
                400, f"prompt too long; exceeded max context length by {over} tokens"
            )
        case "content_filter" | "invalid_request":
            return OllamaError(400, "invalid options: simulated")
        case "authentication" | "no_key":
            return OllamaError(401, "unauthorized")
        case "permission":
            return OllamaError(403, "this model requires a subscription")
        case "model_not_found":
            return OllamaError(404, f"model '{problem.model}' not found")
        case "overloaded":
            return OllamaError(
                503, "server busy, please try again. maximum pending requests exceeded"
            )
        case "server_error" | "error_in_200":
            status = 200 if problem.kind == "error_in_200" else 500
            return OllamaError(
                status, "an error was encountered while running the model: CUDA error"
            )
        case "bad_json":
            return OllamaError(400, "unexpected EOF")
        case "unknown_url":
            return OllamaError(404, "404 page not found")
        case "wrong_method":
            return OllamaError(405, "405 method not allowed")


def _line(turn: Turn, sampling: Sampling, i: int, message: Json) -> dict[str, Json]:
    begun = datetime.fromtimestamp(sampling.created + i * _TOKEN_NS / 1e9, UTC)
    stamp = begun.strftime("%Y-%m-%dT%H:%M:%S.%f") + "928Z"
    return {"model": turn.model, "created_at": stamp, "message": message}


def _end(turn: Turn, choices: list[Choice], script: Script) -> dict[str, Json]:
    used = counts(turn, choices, script)
    end: dict[str, Json] = {
        "done": True,
        "done_reason": "length" if choices[0].finish == "length" else "stop",
        "total_duration": _LOAD_NS + (used.prompt + used.completion) * _TOKEN_NS,
        "load_duration": _LOAD_NS,
        "prompt_eval_count": used.prompt,
        "prompt_eval_duration": used.prompt * _TOKEN_NS // 10,
        "eval_count": used.completion,
        "eval_duration": used.completion * _TOKEN_NS,
    }
    if script.usage == "missing":
        del end["prompt_eval_count"], end["eval_count"]
    return end


def _call(call: ToolUse, index: int) -> dict[str, Json]:
    """Whole, its arguments an object (or, spoilt, what the model wrote)."""
    try:
        arguments = msgspec.json.decode(call.arguments)
    except msgspec.DecodeError:
        arguments = call.arguments
    function: dict[str, Json] = {"name": call.name, "arguments": arguments}
    return {"function": {"index": index, **function} if index else function}


def _schema(given: Json) -> Json:
    if given == "json":
        return {"type": "object", "properties": {"answer": {"type": "string"}}}
    return given if isinstance(given, dict) else None
