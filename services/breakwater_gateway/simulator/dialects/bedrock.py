"""Amazon Bedrock's Converse and ConverseStream from the provider's side.

A stream is binary frames, whose payloads are padded under the key `p`. Source: Amazon Bedrock API reference,
"Converse", "ConverseStream"; recorded streams.
"""

from collections.abc import Iterator
from typing import ClassVar, Final

import msgspec

from breakwater_gateway.simulator.content import counts
from breakwater_gateway.simulator.dialects.bedrock_errors import BedrockError, word
from breakwater_gateway.simulator.dialects.bedrock_request import (
    check_signature,
    key_of,
    read_converse,
)
from breakwater_gateway.simulator.dialects.dialect import Ask, Dialect, Door, Headers, encode
from breakwater_gateway.simulator.refusals import Problem
from breakwater_gateway.simulator.script import Rate, RetryForm, Script, mix
from breakwater_gateway.simulator.turns import (
    BASE62,
    HEX,
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
from breakwater_gateway.worker.wire.bedrock.eventstream import encode_event, encode_exception

EVENTSTREAM: Final = ("content-type", "application/vnd.amazon.eventstream")
_LATENCY_MS: Final = 321
_ALPHABET: Final = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
_STOPS: Final = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "content_filtered",
}


class Bedrock(Dialect):
    name: ClassVar[str] = "bedrock"
    keep_alive: ClassVar[bytes] = b""
    broken: ClassVar[bytes] = encode_event("contentBlockDelta", b'{"contentBlockIndex":0,"delta":')
    blocks_in_answer: ClassVar[bool] = True

    def key(self, door: Door) -> str:
        return key_of(door)

    def inspect(self, door: Door) -> None:
        check_signature(door)

    def read(self, ask: Ask) -> Turn:
        return read_converse(ask)

    def stream_type(self, turn: Turn) -> tuple[str, str]:  # noqa: ARG002
        return EVENTSTREAM

    def answer(
        self,
        turn: Turn,
        choices: list[Choice],
        script: Script,
        sampling: Sampling,  # noqa: ARG002
    ) -> bytes:
        choice = choices[0]
        answer: dict[str, Json] = {
            "metrics": {"latencyMs": _LATENCY_MS},
            "output": {"message": {"content": _blocks(choice), "role": "assistant"}},
            "stopReason": _stop(choice),
            "usage": _usage(counts(turn, choices, script)),
        }
        if script.usage == "missing":
            del answer["usage"]
        return encode(answer)

    def events(
        self, turn: Turn, choices: list[Choice], script: Script, sampling: Sampling
    ) -> Iterator[Event]:
        """A text block has no start event of its own; only tools do."""
        choice = choices[0]
        pad = _Padding(sampling.chance)
        yield Event(pad.event("messageStart", {"role": "assistant"}), head=True)
        step = script.chunk_tokens
        blocks: list[tuple[dict[str, Json] | None, Iterator[tuple[Json, int]]]] = []
        if choice.thinking:
            blocks.append((None, _thoughts(choice, step)))
        if choice.pieces:
            blocks.append((None, (({"text": t}, n) for t, n in batches(choice.pieces, step))))
        blocks += [({"toolUse": _named(call)}, _inputs(call, step)) for call in choice.calls]
        for i, (start, deltas) in enumerate(blocks):
            at = {"contentBlockIndex": i}
            if start is not None:
                yield Event(pad.event("contentBlockStart", {**at, "start": start}))
            for delta, tokens in deltas:
                yield Event(pad.event("contentBlockDelta", {**at, "delta": delta}), tokens)
            yield Event(pad.event("contentBlockStop", at))
        yield Event(pad.event("messageStop", {"stopReason": _stop(choice)}))
        metadata: dict[str, Json] = {"metrics": {"latencyMs": _LATENCY_MS}}
        if script.usage != "missing":
            metadata["usage"] = _usage(counts(turn, choices, script))
        yield Event(pad.event("metadata", metadata), last=True)

    def error(self, problem: Problem) -> BedrockError:
        return word(problem)

    def stream_error(self, problem: Problem) -> bytes:
        """A modelled exception, in a frame of its own."""
        error = self.error(problem)
        name = error.name[:1].lower() + error.name[1:]
        return encode_exception(name, error.body())

    def headers(self, identity: int) -> Headers:
        hexes = token(identity, 32, HEX)
        parts = (hexes[:8], hexes[8:12], hexes[12:16], hexes[16:20], hexes[20:])
        return (("x-amzn-requestid", "-".join(parts)),)

    def rate_headers(self, rates: tuple[Rate, ...], *, wall: float) -> Headers:  # noqa: ARG002
        return ()

    def wait_headers(self, wait_s: float, form: RetryForm, *, wall: float) -> Headers:  # noqa: ARG002
        return ()


class _Padding:
    """`p`: so many letters of the alphabet that sizes tell nothing."""

    def __init__(self, chance: int) -> None:
        self._chance = chance

    def event(self, name: str, payload: dict[str, Json]) -> bytes:
        self._chance = mix(self._chance)
        padded = {**payload, "p": _ALPHABET[: self._chance % len(_ALPHABET) + 1]}
        return encode_event(name, msgspec.json.encode(padded, order="sorted"))


def _usage(used: Counts) -> dict[str, Json]:
    """`inputTokens` excludes the cache's tokens; the total is the sum of all."""
    return {
        "inputTokens": used.prompt - used.cached - used.cache_written,
        "outputTokens": used.completion,
        "totalTokens": used.prompt + used.completion,
        **(
            {
                "cacheReadInputTokens": used.cached,
                "cacheWriteInputTokens": used.cache_written,
            }
            if used.cached or used.cache_written
            else {}
        ),
    }


def _stop(choice: Choice) -> str:
    if choice.malformed:
        return "malformed_tool_use"
    if choice.blocked:
        return "guardrail_intervened"
    return "stop_sequence" if choice.stopped_by else _STOPS[choice.finish]


def _blocks(choice: Choice) -> list[dict[str, Json]]:
    blocks: list[dict[str, Json]] = []
    if choice.thinking:
        text = "".join(choice.thinking)
        reasoning = {"text": text, "signature": _signature(text)}
        blocks.append({"reasoningContent": {"reasoningText": reasoning}})
    if choice.pieces:
        blocks.append({"text": choice.text})
    return [*blocks, *({"toolUse": {**_named(c), "input": _input(c)}} for c in choice.calls)]


def _named(call: ToolUse) -> dict[str, Json]:
    return {"name": call.name, "toolUseId": f"tooluse_{token(call.chance ^ 3, 22, BASE62)}"}


def _input(call: ToolUse) -> Json:
    """An object; what a script has spoilt is a string, as the model wrote it."""
    try:
        return msgspec.json.decode(call.arguments)
    except msgspec.DecodeError:
        return call.arguments


def _inputs(call: ToolUse, step: int) -> Iterator[tuple[Json, int]]:
    for text, tokens in batches(call.pieces, step):
        yield {"toolUse": {"input": text}}, tokens


def _thoughts(choice: Choice, step: int) -> Iterator[tuple[Json, int]]:
    for text, tokens in batches(choice.thinking, step):
        yield {"reasoningContent": {"text": text}}, tokens
    yield {"reasoningContent": {"signature": _signature("".join(choice.thinking))}}, 0


def _signature(text: str) -> str:
    return "Eq" + token(mix(len(text)), 62, BASE62)
