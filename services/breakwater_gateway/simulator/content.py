"""What a simulated model says: text, thoughts, tool calls, structured answers; and what it is billed for.

Everything here is a function of its arguments: the same seed and request give the same answer.
"""

import re
from typing import Final

import msgspec

from breakwater_gateway.simulator.schemas import fit
from breakwater_gateway.simulator.script import Script, mix
from breakwater_gateway.simulator.turns import Choice, Counts, Tool, ToolUse, Turn
from breakwater_gateway.simulator.words import lorem, split_tokens

REASONING_TOKENS: Final = 64
"""Of a model that reasons and does not show it."""

_REASONING: Final = re.compile(r"(?:.*/)?(?:o[1-9]|gpt-5)(?!.*chat)")
_encode = msgspec.json.encode


def compose(
    turn: Turn, script: Script, *, chance: int, seed: int, malformed: bool = False
) -> list[Choice]:
    """The answers to a turn. `malformed`: a tool is called with arguments that do not parse."""
    return [
        _compose_one(
            turn, script, chance=mix(chance ^ i) if i else chance, seed=seed, malformed=malformed
        )
        for i in range(turn.choices)
    ]


def _compose_one(turn: Turn, script: Script, *, chance: int, seed: int, malformed: bool) -> Choice:
    thinking = split_tokens(script.thinking) if script.thinking is not None else ()
    tools = _tools_to_call(turn, script, malformed=malformed)
    if tools:
        return _call(tools, turn, script, thinking, chance=chance, malformed=malformed)
    if script.text is not None:
        pieces = split_tokens(script.text)
    elif turn.schema is not None:
        pieces = _chop(_encode(fit(turn.schema, chance=chance)).decode())
    elif script.mode == "echo":
        pieces = split_tokens(turn.last_text)
    else:
        pieces = lorem(script.tokens, chance=chance, seed=seed)
    pieces, stopped_by = _stop_at(pieces, turn.stop) if turn.stop else (pieces, "")
    pieces, cut = _limit(pieces, turn.tokens_max)
    return Choice(
        pieces,
        "length" if cut else "stop",
        thinking=thinking,
        stopped_by="" if cut else stopped_by,
    )


def _call(
    tools: tuple[Tool, ...],
    turn: Turn,
    script: Script,
    thinking: tuple[str, ...],
    *,
    chance: int,
    malformed: bool,
) -> Choice:
    calls: list[ToolUse] = []
    left = turn.tokens_max
    finish = "tool_calls"
    for i, tool in enumerate(tools):
        own = mix(chance ^ (i << 8)) if i else chance
        arguments = script.tool_arguments
        if arguments is None:
            arguments = _encode(fit(tool.schema, chance=own)).decode()
        if malformed:
            arguments = _spoil(arguments)
        pieces, cut = _limit(_chop(arguments), left)
        calls.append(ToolUse(tool.name, pieces, own))
        if cut:
            finish = "length"
            break
        left = None if left is None else left - len(pieces)
    return Choice((), finish, tuple(calls), thinking, malformed=malformed)


def _spoil(arguments: str) -> str:
    if len(arguments) <= 8:
        return '{"city": "Pa'
    return arguments.rstrip("}] \n")[:-1] + '", '


def _tools_to_call(turn: Turn, script: Script, *, malformed: bool) -> tuple[Tool, ...]:
    if malformed:
        return turn.tools[:1] or (Tool("get_weather", {"type": "object"}),)
    if not turn.tools or script.tool_calls == "never":
        return ()
    if not turn.forced and (script.tool_calls != "always" or turn.answered):
        return ()
    count = 1 if turn.one_call else script.parallel_calls
    return tuple(turn.tools[i % len(turn.tools)] for i in range(count))


def _chop(text: str) -> tuple[str, ...]:
    return tuple(text[i : i + 4] for i in range(0, len(text), 4))


def _limit(pieces: tuple[str, ...], tokens_max: int | None) -> tuple[tuple[str, ...], bool]:
    if tokens_max is None or len(pieces) <= tokens_max:
        return pieces, False
    return pieces[:tokens_max], True


def _stop_at(pieces: tuple[str, ...], stops: tuple[str, ...]) -> tuple[tuple[str, ...], str]:
    """The pieces before the first stop sequence, and which that was."""
    text = "".join(pieces)
    ends = [(at, stop) for at, stop in ((text.find(stop), stop) for stop in stops) if at >= 0]
    if not ends:
        return pieces, ""
    at, stop = min(ends)
    return split_tokens(text[:at]), stop


def is_reasoning(model: str, script: Script) -> bool:
    """Whether it is one of OpenAI's reasoning models, unless the script says."""
    if script.reasoning is not None:
        return script.reasoning
    return _REASONING.match(model) is not None


def counts(turn: Turn, choices: list[Choice], script: Script) -> Counts:
    """What the answers cost, as the script says or as they are."""
    reasoning = script.reasoning_tokens
    if reasoning is None:
        shown = sum(len(choice.thinking) for choice in choices)
        hidden = REASONING_TOKENS if is_reasoning(turn.model, script) else 0
        reasoning = shown or hidden
    written = sum(choice.written for choice in choices)
    prompt = script.prompt_tokens if script.prompt_tokens is not None else turn.prompt_tokens
    completion = (
        script.completion_tokens if script.completion_tokens is not None else written + reasoning
    )
    cached = min(script.cached_tokens, prompt)
    return Counts(
        prompt=prompt,
        completion=completion,
        cached=cached,
        cache_written=min(script.cache_write_tokens, prompt - cached),
        reasoning=min(reasoning, completion),
    )
