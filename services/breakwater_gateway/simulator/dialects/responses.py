"""OpenAI's Responses API from the provider's side: answers and streams of typed, numbered events.

Source: OpenAI API reference, "Responses" and "Streaming events"; recorded streams. There is no `[DONE]`.
"""

from collections.abc import Iterator
from typing import ClassVar, Final

from breakwater_gateway.simulator.content import counts
from breakwater_gateway.simulator.dialects.dialect import Ask, Place, encode, sse
from breakwater_gateway.simulator.dialects.openai import OpenAI, Padding, call_id
from breakwater_gateway.simulator.dialects.openai_errors import OpenAIError, word
from breakwater_gateway.simulator.dialects.responses_request import read_response
from breakwater_gateway.simulator.refusals import Problem
from breakwater_gateway.simulator.script import Script
from breakwater_gateway.simulator.turns import (
    HEX,
    Choice,
    Event,
    Json,
    Sampling,
    Turn,
    batches,
    token,
)

_ECHOED: Final[dict[str, Json]] = {
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "reasoning": {"effort": None, "summary": None},
    "safety_identifier": None,
    "service_tier": "auto",
    "store": True,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}, "verbosity": "medium"},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": 1.0,
    "truncation": "disabled",
    "user": None,
}
"""What an answer repeats of its request, and the defaults."""


class Responses(OpenAI):
    name: ClassVar[str] = "responses"
    broken: ClassVar[bytes] = (
        b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","delta":\n\n'
    )

    def read(self, ask: Ask) -> Turn:
        return read_response(ask)

    def answer(
        self, turn: Turn, choices: list[Choice], script: Script, sampling: Sampling
    ) -> bytes:
        return encode(_ended(turn, choices, script, sampling))

    def events(
        self, turn: Turn, choices: list[Choice], script: Script, sampling: Sampling
    ) -> Iterator[Event]:
        return _events(turn, choices, script, sampling)

    def error(self, problem: Problem) -> OpenAIError:
        error = word(problem)
        if problem.kind == "model_not_found":
            # 404 on the other endpoints.
            error.status = 400
            error.param = "model"
            if problem.message is None:
                error.message = f"The requested model '{problem.model}' does not exist."
        elif problem.kind == "context_length" and problem.message is None:
            error.param = "input"
            error.message = (
                "Your input exceeds the context window of this model. Please adjust your input and try"
                " again."
            )
        return error

    def break_off(self, problem: Problem, place: Place) -> bytes:
        """An `error` event, then `response.failed`, under status 200."""
        error = self.error(problem)
        code = error.code or error.type
        shown = {"type": error.type, "code": code, "message": error.message, "param": None}
        first = {"type": "error", "error": shown, "sequence_number": place.sent}
        response = {
            **_begun(place.turn, place.sampling),
            "status": "failed",
            "error": {"code": code, "message": error.message},
        }
        failed = {
            "type": "response.failed",
            "response": response,
            "sequence_number": place.sent + 1,
        }
        return sse(encode(first), "error") + sse(encode(failed), "response.failed")


def _begun(turn: Turn, sampling: Sampling) -> dict[str, Json]:
    """The response as it is before anything was written."""
    asked = turn.echo if isinstance(turn.echo, dict) else {}
    echoed = {name: asked.get(name, default) for name, default in _ECHOED.items()}
    return {
        "id": f"resp_{sampling.token(1, 48, HEX)}",
        "object": "response",
        "created_at": sampling.created,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "model": turn.model,
        "output": [],
        **echoed,
        "usage": None,
    }


def _ended(
    turn: Turn, choices: list[Choice], script: Script, sampling: Sampling
) -> dict[str, Json]:
    choice = choices[0]
    reasons = {"length": "max_output_tokens", "content_filter": "content_filter"}
    reason = reasons.get(choice.finish)
    response = {
        **_begun(turn, sampling),
        "status": "incomplete" if reason else "completed",
        "incomplete_details": {"reason": reason} if reason else None,
        "output": _items(choice, sampling),
    }
    if script.usage != "missing":
        response["usage"] = _usage(turn, choices, script)
    return response


def _usage(turn: Turn, choices: list[Choice], script: Script) -> dict[str, Json]:
    """Input includes cached tokens, output includes reasoning."""
    used = counts(turn, choices, script)
    return {
        "input_tokens": used.prompt,
        "input_tokens_details": {"cached_tokens": used.cached},
        "output_tokens": used.completion,
        "output_tokens_details": {"reasoning_tokens": used.reasoning},
        "total_tokens": used.prompt + used.completion,
    }


def _items(choice: Choice, sampling: Sampling) -> list[dict[str, Json]]:
    """The output: thoughts, text, calls."""
    status = "completed" if choice.finish in {"stop", "tool_calls"} else "incomplete"
    items: list[dict[str, Json]] = []
    if choice.thinking:
        summary = {"type": "summary_text", "text": "".join(choice.thinking)}
        items.append({"id": _id("rs", sampling, 2), "type": "reasoning", "summary": [summary]})
    if choice.pieces or not choice.calls:
        items.append(
            {
                "id": _id("msg", sampling, 3),
                "type": "message",
                "status": status,
                "content": [_text_part(choice.text)],
                "role": "assistant",
            }
        )
    items += [
        {
            "id": f"fc_{token(call.chance ^ 5, 48, HEX)}",
            "type": "function_call",
            "status": status,
            "arguments": call.arguments,
            "call_id": call_id(call),
            "name": call.name,
        }
        for call in choice.calls
    ]
    return items


def _id(prefix: str, sampling: Sampling, salt: int) -> str:
    return f"{prefix}_{sampling.token(salt, 48, HEX)}"


def _text_part(text: str) -> dict[str, Json]:
    return {"type": "output_text", "annotations": [], "logprobs": [], "text": text}


def _events(
    turn: Turn, choices: list[Choice], script: Script, sampling: Sampling
) -> Iterator[Event]:
    """Every event has the next number; `event:` repeats its type."""
    for number, (event, tokens, head) in enumerate(_said(turn, choices, script, sampling)):
        data = sse(encode({**event, "sequence_number": number}), event["type"])
        last = event["type"] in {"response.completed", "response.incomplete"}
        yield Event(data, tokens, head=head, last=last)


_Said = tuple[dict[str, Json], int, bool]
"""An event without its number, its tokens, and whether it opens the stream."""


def _said(turn: Turn, choices: list[Choice], script: Script, sampling: Sampling) -> Iterator[_Said]:
    choice = choices[0]
    begun = _begun(turn, sampling)
    yield {"type": "response.created", "response": begun}, 0, True
    yield {"type": "response.in_progress", "response": begun}, 0, True
    pad = Padding(sampling.chance) if script.obfuscation else None
    pieces = [choice.thinking] if choice.thinking else []
    if choice.pieces or not choice.calls:
        pieces.append(choice.pieces)
    pieces += [call.pieces for call in choice.calls]
    for i, (item, parts) in enumerate(zip(_items(choice, sampling), pieces, strict=True)):
        yield from _say_item(item, i, parts, script.chunk_tokens, pad, head=i == 0)
    ended = _ended(turn, choices, script, sampling)
    yield {"type": f"response.{ended['status']}", "response": ended}, 0, False


def _say_item(
    item: dict[str, Json],
    index: int,
    pieces: tuple[str, ...],
    step: int,
    pad: Padding | None,
    *,
    head: bool,
) -> Iterator[_Said]:
    place: dict[str, Json] = {"output_index": index}
    within: dict[str, Json] = {"item_id": item["id"], "output_index": index}
    text = "".join(pieces)
    opened: dict[str, Json]
    opening: list[dict[str, Json]]
    closing: list[dict[str, Json]]
    match item["type"]:
        case "function_call":
            opened = {**item, "status": "in_progress", "arguments": ""}
            kind, opening = "response.function_call_arguments", []
            closing = [{"type": f"{kind}.done", **within, "arguments": text}]
        case "reasoning":
            opened = {**item, "summary": []}
            within["summary_index"] = 0
            kind, part = "response.reasoning_summary_text", "response.reasoning_summary_part"
            empty = {"type": "summary_text", "text": ""}
            opening = [{"type": f"{part}.added", **within, "part": empty}]
            closing = [
                {"type": f"{kind}.done", **within, "text": text},
                {"type": f"{part}.done", **within, "part": {**empty, "text": text}},
            ]
        case _:
            opened = {**item, "status": "in_progress", "content": []}
            within["content_index"] = 0
            kind, part = "response.output_text", "response.content_part"
            opening = [{"type": f"{part}.added", **within, "part": _text_part("")}]
            closing = [
                {"type": f"{kind}.done", **within, "text": text, "logprobs": []},
                {"type": f"{part}.done", **within, "part": _text_part(text)},
            ]
            within = {**within, "logprobs": []}
    yield {"type": "response.output_item.added", **place, "item": opened}, 0, head
    for event in opening:
        yield event, 0, head
    for delta, tokens in batches(pieces, step):
        padding = {"obfuscation": pad.text()} if pad is not None else {}
        yield {"type": f"{kind}.delta", **within, "delta": delta, **padding}, tokens, False
    for event in closing:
        yield event, 0, False
    yield {"type": "response.output_item.done", **place, "item": item}, 0, False
