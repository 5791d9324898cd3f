"""Tool calls as callers must be able to use them: arguments that are a JSON object.

A model that writes anything else has failed, whatever status its provider sent. Arguments cut off by the
token limit are not judged: their finish says so. Empty ones stand for no arguments, as many hosts send.
"""

from collections.abc import Iterable

import msgspec
from msgspec import Struct

from breakwater_gateway.worker.wire import neutral
from breakwater_protocol import failures as f

_object = msgspec.json.Decoder(dict[str, msgspec.Raw])
CUT_OFF = frozenset({"length", "error"})


class _Function(Struct):
    name: str | None = None
    arguments: str | None = None


class _Call(Struct):
    index: int = 0
    function: _Function | None = None


class _Said(Struct):
    tool_calls: list[_Call] | None = None


class _Choice(Struct):
    index: int = 0
    message: _Said | None = None
    delta: _Said | None = None


class _Body(Struct):
    choices: list[_Choice] | None = None


_body = msgspec.json.Decoder(_Body, strict=False)


def usable(arguments: str) -> bool:
    if not arguments.strip():
        return True
    try:
        _object.decode(arguments)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return False
    return True


def malformed(name: str) -> f.MalformedToolCall:
    return f.MalformedToolCall(
        f"the model called the tool {name[:100] or 'of no name'} with arguments that are no JSON object"
    )


def of_answer(answer: neutral.Answer) -> f.MalformedToolCall | None:
    """The first call in a whole answer that nobody could make."""
    for candidate in answer.candidates:
        if candidate.finish in CUT_OFF:
            continue
        for part in candidate.parts:
            if isinstance(part, neutral.ToolCall) and not usable(part.arguments):
                return malformed(part.name)
    return None


def of_openai_answer(body: bytes) -> f.MalformedToolCall | None:
    """The same of OpenAI's own body, for answers that pass as they came."""
    for _, name, arguments in _fragments(body):
        if not usable(arguments):
            return malformed(name)
    return None


class Arguments:
    """Collects the fragments of a stream's calls, to judge them when their candidate finishes."""

    __slots__ = ("_calls",)

    def __init__(self) -> None:
        self._calls: dict[tuple[int, int], tuple[str, list[str]]] = {}

    def begin(self, place: tuple[int, int], name: str, arguments: str) -> None:
        self._calls[place] = (name, [arguments])

    def grow(self, place: tuple[int, int], text: str) -> None:
        call = self._calls.get(place)
        if call is not None:
            call[1].append(text)

    def add_openai(self, data: bytes) -> None:
        """One chunk that speaks of tool calls. What cannot be read is judged elsewhere."""
        for place, name, arguments in _fragments(data):
            if place in self._calls:
                self.grow(place, arguments)
            else:
                self.begin(place, name, arguments)

    def judge(self) -> f.MalformedToolCall | None:
        for name, pieces in self._calls.values():
            if not usable("".join(pieces)):
                return malformed(name)
        return None


def _fragments(data: bytes) -> Iterable[tuple[tuple[int, int], str, str]]:
    try:
        body = _body.decode(data)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return
    for choice in body.choices or ():
        said = choice.message or choice.delta
        for position, call in enumerate((said.tool_calls if said else None) or ()):
            if call.function is not None:
                # A whole message numbers its calls by their place, a chunk by `index`.
                number = call.index if choice.delta is not None else position
                function = call.function
                yield (choice.index, number), function.name or "", function.arguments or ""
