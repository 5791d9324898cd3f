"""OpenAI's chat completions, embeddings and models from the provider's side.

Source: OpenAI API reference (chat completions, embeddings, models) and recorded streams.
"""

from collections.abc import Iterator
from itertools import zip_longest
from typing import ClassVar, Final

from breakwater_gateway.simulator.content import counts, is_reasoning
from breakwater_gateway.simulator.dialects.dialect import (
    Ask,
    Dialect,
    Door,
    Headers,
    Route,
    bearer,
    encode,
)
from breakwater_gateway.simulator.dialects.openai_embeddings import embeddings, read_embeddings
from breakwater_gateway.simulator.dialects.openai_errors import OpenAIError, word
from breakwater_gateway.simulator.dialects.openai_request import model_of, read_chat
from breakwater_gateway.simulator.refusals import Problem
from breakwater_gateway.simulator.script import Script, mix
from breakwater_gateway.simulator.turns import (
    Choice,
    Embedding,
    Event,
    Json,
    Sampling,
    ToolUse,
    Turn,
    batches,
)

FINGERPRINT: Final = "fp_simulator0"
DONE: Final = b"data: [DONE]\n\n"


class OpenAI(Dialect):
    name: ClassVar[str] = "openai"

    def key(self, door: Door) -> str:
        scheme = door.headers.get("authorization", "").partition(" ")[0].lower()
        return (
            bearer(door.headers) if scheme == "bearer" else door.headers.get("api-key", "").strip()
        )

    def model(self, raw: dict[str, Json], route: Route) -> str:
        return route.model or model_of(raw)

    def read(self, ask: Ask) -> Turn:
        raw = {**ask.raw, "model": ask.model}
        return read_chat(raw, reasoning=is_reasoning(ask.model, ask.script))

    def read_embeddings(self, ask: Ask) -> Embedding:
        return read_embeddings(ask.raw, ask.model, ask.script)

    def answer(
        self, turn: Turn, choices: list[Choice], script: Script, sampling: Sampling
    ) -> bytes:
        return encode(completion(turn, choices, script, sampling))

    def events(
        self, turn: Turn, choices: list[Choice], script: Script, sampling: Sampling
    ) -> Iterator[Event]:
        return events(turn, choices, script, sampling)

    def embeddings(self, asked: Embedding, script: Script, *, seed: int) -> bytes:
        return embeddings(asked, script, seed=seed)

    def error(self, problem: Problem) -> OpenAIError:
        return word(problem)

    def headers(self, identity: int) -> Headers:
        return (
            *super().headers(identity),
            ("openai-organization", "org-simulator"),
            ("openai-version", "2020-10-01"),
        )


def answer_id(sampling: Sampling) -> str:
    chance = sampling.chance
    return f"chatcmpl-{mix(chance ^ 1):016x}{mix(chance ^ 2) & 0xFFFFFF:06x}"


def call_id(call: ToolUse) -> str:
    return f"call_{mix(call.chance ^ 3):016x}{mix(call.chance ^ 4) & 0xFFFFFFFF:08x}"


def usage_of(turn: Turn, choices: list[Choice], script: Script) -> dict[str, Json]:
    """Prompt tokens include cached ones, completion tokens include reasoning: total is their sum."""
    used = counts(turn, choices, script)
    return {
        "prompt_tokens": used.prompt,
        "completion_tokens": used.completion,
        "total_tokens": used.prompt + used.completion,
        "prompt_tokens_details": {"cached_tokens": used.cached, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": used.reasoning,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def completion(
    turn: Turn, choices: list[Choice], script: Script, sampling: Sampling
) -> dict[str, Json]:
    """An answer that is not streamed."""
    answer: dict[str, Json] = {
        "id": answer_id(sampling),
        "object": "chat.completion",
        "created": sampling.created,
        "model": turn.model,
        "choices": [
            {
                "index": i,
                "message": _message(choice),
                "logprobs": None,
                "finish_reason": choice.finish,
            }
            for i, choice in enumerate(choices)
        ],
        "usage": usage_of(turn, choices, script),
        "service_tier": "default",
        "system_fingerprint": FINGERPRINT,
    }
    if script.usage == "missing":
        del answer["usage"]
    return answer


def _message(choice: Choice) -> dict[str, Json]:
    message: dict[str, Json] = {"role": "assistant", "content": choice.text}
    if choice.calls:
        message["content"] = None
        message["tool_calls"] = [
            {
                "id": call_id(call),
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in choice.calls
        ]
    return {**message, "refusal": None, "annotations": []}


def events(
    turn: Turn,
    choices: list[Choice],
    script: Script,
    sampling: Sampling,
    *,
    fields: bytes = b"",
    final: bytes = b"",
) -> Iterator[Event]:
    """The stream of an answer: role, pieces, finish, usage, `[DONE]`.

    `fields` are a relative's own of each choice, `final` of the chunk that has the usage; they begin with a
    comma.
    """
    head = (
        f'data: {{"id":"{answer_id(sampling)}","object":"chat.completion.chunk",'
        f'"created":{sampling.created},"model":{encode(turn.model).decode()},"service_tier":"default",'
        f'"system_fingerprint":"{FINGERPRINT}","choices":['
    ).encode()
    tail = b',"usage":null' if turn.include_usage else b""
    pad = Padding(sampling.chance) if script.obfuscation else None

    def chunk(i: int, delta: bytes, finish: bytes = b"null") -> bytes:
        padding = pad.next() if pad is not None else b""
        return b'%b{"index":%d,"delta":%b,"logprobs":null,"finish_reason":%b%b}]%b%b}\n\n' % (
            head,
            i,
            delta,
            finish,
            fields,
            tail,
            padding,
        )

    for i, choice in enumerate(choices):
        yield Event(chunk(i, _first_delta(choice)), head=True)
    for deltas in zip_longest(*(_deltas(choice, script.chunk_tokens) for choice in choices)):
        for i, delta in enumerate(deltas):
            if delta is not None:
                yield Event(chunk(i, delta[0]), delta[1])
    for i, choice in enumerate(choices):
        yield Event(chunk(i, b"{}", encode(choice.finish)))
    if turn.include_usage and script.usage != "missing":
        usage = encode(usage_of(turn, choices, script))
        yield Event(b'%b],"usage":%b%b}\n\n' % (head, usage, final))
    yield Event(DONE, last=True)


def _first_delta(choice: Choice) -> bytes:
    if not choice.calls:
        return b'{"role":"assistant","content":"","refusal":null}'
    call = encode(_opened(choice.calls[0], 0))
    return b'{"role":"assistant","content":null,"tool_calls":[%b],"refusal":null}' % call


def _opened(call: ToolUse, index: int) -> dict[str, Json]:
    return {
        "index": index,
        "id": call_id(call),
        "type": "function",
        "function": {"name": call.name, "arguments": ""},
    }


def _deltas(choice: Choice, step: int) -> Iterator[tuple[bytes, int]]:
    """The deltas after the first one, and the tokens in each."""
    for text, tokens in batches(choice.pieces, step):
        yield b'{"content":%b}' % encode(text), tokens
    for i, call in enumerate(choice.calls):
        if i:
            yield b'{"tool_calls":[%b]}' % encode(_opened(call, i)), 0
        for text, tokens in batches(call.pieces, step):
            yield (
                b'{"tool_calls":[{"index":%d,"function":{"arguments":%b}}]}' % (i, encode(text)),
                tokens,
            )


class Padding:
    """`obfuscation`: characters of a random number, so that sizes tell nothing."""

    def __init__(self, chance: int) -> None:
        self._chance = chance

    def next(self) -> bytes:
        return b',"obfuscation":"%b"' % self.text().encode()

    def text(self) -> str:
        self._chance = mix(self._chance)
        return f"{self._chance:016x}"[: self._chance % 16]
