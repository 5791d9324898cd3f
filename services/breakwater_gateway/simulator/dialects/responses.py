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
    ToolUse,
    Turn,
    batches,
    token,
)

_ECHOED: Final = {
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
        items = [_item(what, i, sampling) for i, what in enumerate(_parts(choices[0]))]
        return encode(_response(turn, choices, items, script, sampling))

    def events(
        self, turn: Turn, choices: list[Choice], script: Script, sampling: Sampling
    ) -> Iterator[Event]:
        return _Stream(turn, choices, script, sampling).events()

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


def _parts(choice: Choice) -> list[ToolUse | str]:
    """What becomes an output item each: thoughts, text, calls."""
    parts: list[ToolUse | str] = ["thinking"] if choice.thinking else []
    if choice.pieces or not choice.calls:
        parts.append(choice.text)
    return [*parts, *choice.calls]


def _item(what: ToolUse | str, index: int, sampling: Sampling) -> dict[str, Json]:
    raise NotImplementedError
