"""Amazon Bedrock from its own side: Converse, ConverseStream, and embeddings by InvokeModel.

Source: Amazon Bedrock API reference, "Converse", "ConverseStream", "InvokeModel"; recorded answers, whose
keys are in alphabetical order.
"""

from collections.abc import Iterator
from string import ascii_letters, digits
from typing import ClassVar, Final
from uuid import UUID

import msgspec

from breakwater_gateway.simulator.content import counts
from breakwater_gateway.simulator.dialects import bedrock_embeddings
from breakwater_gateway.simulator.dialects.bedrock_errors import BedrockError, word
from breakwater_gateway.simulator.dialects.bedrock_request import read_converse
from breakwater_gateway.simulator.dialects.bedrock_signature import caller, check
from breakwater_gateway.simulator.dialects.dialect import Ask, Dialect, Door, Headers
from breakwater_gateway.simulator.refusals import Problem
from breakwater_gateway.simulator.script import Rate, RetryForm, Script, mix
from breakwater_gateway.simulator.turns import (
    BASE62,
    Choice,
    Counts,
    Embedding,
    Event,
    Json,
    Sampling,
    ToolUse,
    Turn,
    batches,
    token,
)
from breakwater_gateway.worker.wire.bedrock.eventstream import encode_event, encode_exception

EVENT_STREAM: Final = ("content-type", "application/vnd.amazon.eventstream")
BLOCKED: Final = "Sorry, the model cannot answer this question."
"""A guardrail's answer in place of the model's; its owner words it."""

_ALPHABET: Final = ascii_letters + digits
"""Padding is always its beginning (recorded)."""
_STOPS: Final = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "content_filtered",
}
_encode: Final = msgspec.json.Encoder(order="sorted").encode
_BROKEN: Final = encode_event("contentBlockDelta", b'{"contentBlockIndex":0,"delta":{"text":')


class Bedrock(Dialect):
    name: ClassVar[str] = "bedrock"
    keep_alive: ClassVar[bytes] = b""
    broken: ClassVar[bytes] = _BROKEN
    blocks_in_answer: ClassVar[bool] = True

    def key(self, door: Door) -> str:
        return caller(door.headers)

    def inspect(self, door: Door) -> None:
        check(door.headers)

    def read(self, ask: Ask) -> Turn:
        return read_converse(ask)

    def read_embeddings(self, ask: Ask) -> Embedding:
        return bedrock_embeddings.read_embeddings(ask.raw, ask.model, ask.script)

    def stream_type(self, turn: Turn) -> tuple[str, str]:  # noqa: ARG002 - it has one framing
        return EVENT_STREAM

    def answer(
        self, turn: Turn, choices: list[Choice], script: Script, sampling: Sampling
    ) -> bytes:
        choice = choices[0]
        answer: dict[str, Json] = {
            "metrics": _metrics(sampling),
            "output": {"message": {"content": _blocks(choice), "role": "assistant"}},
            "stopReason": _stop(choice),
        }
        if script.usage != "missing":
            answer["usage"] = usage_of(counts(turn, choices, script))
        return _encode(answer)

    def events(
        self, turn: Turn, choices: list[Choice], script: Script, sampling: Sampling
    ) -> Iterator[Event]:
        choice = choices[0]
        frames = _Frames(sampling)
        yield frames.event("messageStart", {"role": "assistant"}, head=True)
        for index, block in enumerate(_block_events(choice, script.chunk_tokens)):
            for name, fields, tokens in block:
                yield frames.event(name, {"contentBlockIndex": index, **fields}, tokens)
        yield frames.event("messageStop", {"stopReason": _stop(choice)}, last=True)
        metadata: dict[str, Json] = {"metrics": _metrics(sampling)}
        if script.usage != "missing":
            metadata["usage"] = usage_of(counts(turn, choices, script))
        yield frames.event("metadata", metadata)

    def embeddings(self, asked: Embedding, script: Script, *, seed: int) -> bytes:
        return bedrock_embeddings.embeddings(asked, script, seed=seed)

    def error(self, problem: Problem) -> BedrockError:
        return word(problem)

    def stream_error(self, problem: Problem) -> bytes:
        error = self.error(problem)
        return encode_exception(error.name[0].lower() + error.name[1:], error.body())

    def headers(self, identity: int) -> Headers:
        both = (identity << 64) | mix(identity)
        return (("x-amzn-requestid", str(UUID(int=both, version=4))),)

    def rate_headers(self, rates: tuple[Rate, ...], *, wall: float) -> Headers:  # noqa: ARG002 - there are none
        return ()

    def wait_headers(self, wait_s: float, form: RetryForm, *, wall: float) -> Headers:  # noqa: ARG002 - it never tells
        return ()


class _Frames:
    """Frames of one stream, each padded by a length of its own."""

    __slots__ = ("_chance",)

    def __init__(self, sampling: Sampling) -> None:
        self._chance = sampling.chance

    def event(
        self,
        name: str,
        fields: dict[str, Json],
        tokens: int = 0,
        *,
        head: bool = False,
        last: bool = False,
    ) -> Event:
        self._chance = mix(self._chance)
        padding = _ALPHABET[: 2 + self._chance % (len(_ALPHABET) - 1)]
        data = encode_event(name, _encode({**fields, "p": padding}))
        return Event(data, tokens, head=head, last=last)


def usage_of(used: Counts) -> dict[str, Json]:
    """`inputTokens` has nothing of the cache, `totalTokens` has all; reasoning is output, and not told apart."""
    usage: dict[str, Json] = {
        "inputTokens": used.prompt - used.cached - used.cache_written,
        "outputTokens": used.completion,
        "serverToolUsage": {},
        "totalTokens": used.prompt + used.completion,
    }
    if used.cached or used.cache_written:
        # Each under two names, as recorded.
        for stem, tokens in (("cacheRead", used.cached), ("cacheWrite", used.cache_written)):
            usage[f"{stem}InputTokenCount"] = usage[f"{stem}InputTokens"] = tokens
    return usage


def _metrics(sampling: Sampling) -> dict[str, Json]:
    return {"latencyMs": 200 + sampling.chance % 2000}


def _stop(choice: Choice) -> str:
    if choice.blocked:
        return "guardrail_intervened"
    if choice.malformed:
        return "malformed_tool_use"
    return "stop_sequence" if choice.stopped_by else _STOPS[choice.finish]


def _blocks(choice: Choice) -> list[dict[str, Json]]:
    blocks: list[dict[str, Json]] = []
    if choice.thinking:
        text = "".join(choice.thinking)
        shown = {"text": text, "signature": _signature(text)}
        blocks.append({"reasoningContent": {"reasoningText": shown}})
    if choice.blocked:
        blocks.append({"text": BLOCKED})
    if choice.pieces:
        blocks.append({"text": choice.text})
    calls = ({"toolUse": {**_opened(call), "input": _input(call)}} for call in choice.calls)
    return [*blocks, *calls]


def _opened(call: ToolUse) -> dict[str, Json]:
    return {"toolUseId": f"tooluse_{token(call.chance ^ 5, 22, BASE62)}", "name": call.name}


def _input(call: ToolUse) -> Json:
    """An object; what a script has spoilt is a string, as the model wrote it."""
    try:
        return msgspec.json.decode(call.arguments)
    except (msgspec.DecodeError, RecursionError):
        return call.arguments


def _signature(text: str) -> str:
    return "Es" + token(mix(len(text)), 62, BASE62)


_Block = Iterator[tuple[str, dict[str, Json], int]]


def _block_events(choice: Choice, step: int) -> Iterator[_Block]:
    """The events of each block, without its index: name, fields and tokens."""
    if choice.thinking:
        yield _thinking_block(choice.thinking, step)
    if choice.blocked:
        yield _text_block((BLOCKED,), step)
    if choice.pieces:
        yield _text_block(choice.pieces, step)
    for call in choice.calls:
        yield _call_block(call, step)


def _thinking_block(pieces: tuple[str, ...], step: int) -> _Block:
    for text, tokens in batches(pieces, step):
        yield _delta({"reasoningContent": {"text": text}}, tokens)
    yield _delta({"reasoningContent": {"signature": _signature("".join(pieces))}})
    yield "contentBlockStop", {}, 0


def _text_block(pieces: tuple[str, ...], step: int) -> _Block:
    """No event opens it."""
    for text, tokens in batches(pieces, step):
        yield _delta({"text": text}, tokens)
    yield "contentBlockStop", {}, 0


def _call_block(call: ToolUse, step: int) -> _Block:
    yield "contentBlockStart", {"start": {"toolUse": _opened(call)}}, 0
    # The first fragment is empty, as recorded.
    for text, tokens in (("", 0), *batches(call.pieces, step)):
        yield _delta({"toolUse": {"input": text}}, tokens)
    yield "contentBlockStop", {}, 0


def _delta(delta: dict[str, Json], tokens: int = 0) -> tuple[str, dict[str, Json], int]:
    return "contentBlockDelta", {"delta": delta}, tokens
