"""Anthropic's Messages API from the provider's side, and Claude behind Vertex's paths.

Source: Anthropic API documentation, "Messages", "Streaming messages", "Rate limits"; recorded streams.
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import ClassVar, Final

import msgspec
from msgspec.structs import replace

from breakwater_gateway.simulator.content import counts
from breakwater_gateway.simulator.dialects.anthropic_errors import AnthropicError, word
from breakwater_gateway.simulator.dialects.anthropic_request import read_message
from breakwater_gateway.simulator.dialects.dialect import (
    Ask,
    Dialect,
    Door,
    Headers,
    Route,
    bearer,
    encode,
    sse,
)
from breakwater_gateway.simulator.refusals import Problem
from breakwater_gateway.simulator.script import Rate, RetryForm, Script, mix
from breakwater_gateway.simulator.turns import (
    BASE62,
    Choice,
    Counts,
    Event,
    Json,
    Sampling,
    ToolUse,
    Turn,
    batches,
    token,
)

PING: Final = b'event: ping\ndata: {"type": "ping"}\n\n'
_STOPS: Final = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
}


class Anthropic(Dialect):
    name: ClassVar[str] = "anthropic"
    keep_alive: ClassVar[bytes] = PING
    broken: ClassVar[bytes] = (
        b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":\n\n'
    )
    blocks_in_answer: ClassVar[bool] = True

    def key(self, door: Door) -> str:
        return door.headers.get("x-api-key", "").strip() or bearer(door.headers)

    def inspect(self, door: Door) -> None:
        if "anthropic-version" not in door.headers:
            raise AnthropicError(400, "anthropic-version: header is required")

    def model(self, raw: dict[str, Json], route: Route) -> str:
        model = raw.get("model")
        if model is None and not route.model:
            raise AnthropicError(400, "model: Field required")
        if route.model:
            return route.model
        if not isinstance(model, str):
            raise AnthropicError(400, "model: Input should be a valid string")
        return model

    def read(self, ask: Ask) -> Turn:
        return read_message(ask, counting=ask.route.endpoint == "count_tokens")

    def answer(
        self, turn: Turn, choices: list[Choice], script: Script, sampling: Sampling
    ) -> bytes:
        choice = choices[0]
        message = {
            **_message(turn, sampling),
            "content": _blocks(choice),
            **_stop(choice),
            "usage": usage_of(counts(turn, choices, script)),
        }
        if script.usage == "missing":
            del message["usage"]
        return encode(message)

    def events(
        self, turn: Turn, choices: list[Choice], script: Script, sampling: Sampling
    ) -> Iterator[Event]:
        choice = choices[0]
        used = usage_of(counts(turn, choices, script))
        begun = {**_message(turn, sampling), "content": [], "stop_reason": None}
        begun["stop_sequence"] = None
        if script.usage != "missing":
            begun["usage"] = {**used, "output_tokens": min(1, used["output_tokens"])}
        yield _event({"type": "message_start", "message": begun}, head=True)
        opened = False
        for index, block in enumerate(_block_events(choice, script.chunk_tokens)):
            for event, tokens in block:
                yield _event({**event, "index": index}, tokens, head=not opened)
                if not opened:
                    opened = True
                    yield Event(PING, head=True)
        delta: dict[str, Json] = {"type": "message_delta", "delta": _stop(choice)}
        if script.usage != "missing":
            delta["usage"] = used
        yield _event(delta)
        yield _event({"type": "message_stop"}, last=True)

    def counted(self, turn: Turn, script: Script) -> bytes:
        tokens = turn.prompt_tokens if script.prompt_tokens is None else script.prompt_tokens
        return encode({"input_tokens": tokens})

    def error(self, problem: Problem) -> AnthropicError:
        return word(problem)

    def stream_error(self, problem: Problem) -> bytes:
        return sse(self.error(problem).body(), "error")

    def headers(self, identity: int) -> Headers:
        return (
            ("request-id", f"req_011{token(identity, 21, BASE62)}"),
            ("anthropic-organization-id", "org-simulator"),
        )

    def rate_headers(self, rates: tuple[Rate, ...], *, wall: float) -> Headers:
        found: list[tuple[str, str]] = []
        for rate in rates:
            names = ("requests",) if rate.name == "requests" else ("tokens", "input-tokens")
            reset = datetime.fromtimestamp(wall + rate.reset_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            for name in names:
                found += [
                    (f"anthropic-ratelimit-{name}-limit", str(rate.limit)),
                    (f"anthropic-ratelimit-{name}-remaining", str(rate.remaining)),
                    (f"anthropic-ratelimit-{name}-reset", reset),
                ]
        return tuple(found)

    def wait_headers(self, wait_s: float, form: RetryForm, *, wall: float) -> Headers:
        # There is no `retry-after-ms` here.
        plain: RetryForm = "seconds" if form in {"ms", "both"} else form
        return super().wait_headers(wait_s, plain, wall=wall)


class VertexClaude(Anthropic):
    """`publishers/anthropic/models/M:rawPredict` and `:streamRawPredict`: the model is in the path."""

    name: ClassVar[str] = "vertex_claude"

    def key(self, door: Door) -> str:
        return bearer(door.headers)

    def inspect(self, door: Door) -> None:
        """The version is in the body."""

    def read(self, ask: Ask) -> Turn:
        if "model" in ask.raw:
            raise AnthropicError(400, "model: Extra inputs are not permitted")
        if not isinstance(ask.raw.get("anthropic_version"), str):
            raise AnthropicError(400, "anthropic_version: Field required")
        return replace(super().read(ask), stream=ask.route.action == "streamRawPredict")


def usage_of(used: Counts) -> dict[str, Json]:
    """`input_tokens` excludes what was read from the cache and written to it; output includes thoughts."""
    return {
        "input_tokens": used.prompt - used.cached - used.cache_written,
        "cache_creation_input_tokens": used.cache_written,
        "cache_read_input_tokens": used.cached,
        "cache_creation": {
            "ephemeral_5m_input_tokens": used.cache_written,
            "ephemeral_1h_input_tokens": 0,
        },
        "output_tokens": used.completion,
        **(
            {"output_tokens_details": {"thinking_tokens": used.reasoning}} if used.reasoning else {}
        ),
        "service_tier": "standard",
    }


def _message(turn: Turn, sampling: Sampling) -> dict[str, Json]:
    return {
        "model": turn.model,
        "id": f"msg_01{sampling.token(1, 22, BASE62)}",
        "type": "message",
        "role": "assistant",
    }


def _stop(choice: Choice) -> dict[str, Json]:
    if choice.stopped_by:
        return {"stop_reason": "stop_sequence", "stop_sequence": choice.stopped_by}
    return {"stop_reason": _STOPS[choice.finish], "stop_sequence": None}


def _blocks(choice: Choice) -> list[dict[str, Json]]:
    blocks: list[dict[str, Json]] = []
    if choice.thinking:
        text = "".join(choice.thinking)
        blocks.append({"type": "thinking", "thinking": text, "signature": _signature(text)})
    if choice.pieces:
        blocks.append({"type": "text", "text": choice.text})
    return [*blocks, *({**_opened(call), "input": _input(call)} for call in choice.calls)]


def _opened(call: ToolUse) -> dict[str, Json]:
    name = f"toolu_01{token(call.chance ^ 3, 22, BASE62)}"
    return {"type": "tool_use", "id": name, "name": call.name, "input": {}}


def _input(call: ToolUse) -> Json:
    """An object; what a script has spoilt is a string, as the model wrote it."""
    try:
        return msgspec.json.decode(call.arguments)
    except msgspec.DecodeError:
        return call.arguments


def _signature(text: str) -> str:
    return "Eq" + token(mix(len(text)), 62, BASE62)


_Block = Iterator[tuple[dict[str, Json], int]]


def _block_events(choice: Choice, step: int) -> Iterator[_Block]:
    """The events of each block, without its index."""
    if choice.thinking:
        yield _thinking_block(choice, step)
    if choice.pieces:
        yield _delta_block({"type": "text", "text": ""}, "text_delta", "text", choice.pieces, step)
    for call in choice.calls:
        # The first fragment is empty, as recorded.
        pieces = batches(call.pieces, step)
        yield _call_block(_opened(call), pieces)


def _thinking_block(choice: Choice, step: int) -> _Block:
    block = {"type": "thinking", "thinking": "", "signature": ""}
    *most, end = _delta_block(block, "thinking_delta", "thinking", choice.thinking, step)
    yield from most
    signature = {"type": "signature_delta", "signature": _signature("".join(choice.thinking))}
    yield {"type": "content_block_delta", "delta": signature}, 0
    yield end


def _delta_block(
    block: dict[str, Json], kind: str, field: str, pieces: tuple[str, ...], step: int
) -> _Block:
    yield {"type": "content_block_start", "content_block": block}, 0
    for text, tokens in batches(pieces, step):
        yield {"type": "content_block_delta", "delta": {"type": kind, field: text}}, tokens
    yield {"type": "content_block_stop"}, 0


def _call_block(block: dict[str, Json], pieces: Iterator[tuple[str, int]]) -> _Block:
    yield {"type": "content_block_start", "content_block": block}, 0
    for text, tokens in (("", 0), *pieces):
        delta = {"type": "input_json_delta", "partial_json": text}
        yield {"type": "content_block_delta", "delta": delta}, tokens
    yield {"type": "content_block_stop"}, 0


def _event(
    fields: dict[str, Json], tokens: int = 0, *, head: bool = False, last: bool = False
) -> Event:
    return Event(sse(encode(fields), fields["type"]), tokens, head=head, last=last)
