"""Tool calls as callers must be able to use them: arguments that are a JSON object.

A model that writes anything else has failed, whatever status its provider sent. Arguments cut off by the
token limit are not judged: their finish says so. Empty ones stand for no arguments, as many hosts send.
"""

from collections.abc import Iterable

import msgspec
from msgspec import Raw, Struct, structs

from breakwater_gateway.worker.wire import neutral
from breakwater_gateway.worker.wire.repair import fault, is_object, repaired
from breakwater_protocol import failures as f

CUT_OFF = frozenset({"length", "error"})
WRITTEN_MAX = 8_192
"""Characters of spoilt arguments that are told."""

_Calls = list[dict[str, Raw]] | None


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
    return not arguments.strip() or is_object(arguments)


def malformed(name: str, arguments: str) -> f.MalformedToolCall:
    return f.MalformedToolCall(
        f"the model called the tool {name[:100] or 'of no name'} with arguments that are no JSON object",
        tool=name[:256],
        fault=fault(arguments),
        written=arguments[:WRITTEN_MAX],
    )


class Mended(Struct, frozen=True):
    """A whole answer whose calls can be made. `repaired`: not all of them as the model wrote them."""

    answer: neutral.Answer
    repaired: bool = False


def mend(answer: neutral.Answer) -> Mended | f.MalformedToolCall:
    """Repairs what has a single reading; the first call that has none is a failure."""
    changed = False
    candidates: list[neutral.Candidate] = []
    for candidate in answer.candidates:
        parts: list[neutral.Part] = []
        for part in candidate.parts:
            if isinstance(part, neutral.ToolCall) and candidate.finish not in CUT_OFF:
                right = _right(part.arguments)
                if right is None:
                    return malformed(part.name, part.arguments)
                if right != part.arguments:
                    changed = True
                    part = structs.replace(part, arguments=right)  # noqa: PLW2901
            parts.append(part)
        candidates.append(structs.replace(candidate, parts=parts))
    return (
        Mended(structs.replace(answer, candidates=candidates), True) if changed else Mended(answer)
    )


def _right(arguments: str) -> str | None:
    return arguments if usable(arguments) else repaired(arguments)


def mend_openai(body: bytes) -> bytes | f.MalformedToolCall | None:
    """The same of OpenAI's own body, for answers that pass as they came. None: nothing is wrong with it."""
    changes: dict[tuple[int, int], str] = {}
    for place, name, arguments in _fragments(body):
        right = _right(arguments)
        if right is None:
            return malformed(name, arguments)
        if right != arguments:
            changes[place] = right
    if not changes:
        return None
    tree = msgspec.json.decode(body, type=dict[str, Raw])
    choices = msgspec.json.decode(tree["choices"], type=list[dict[str, Raw]])
    for choice in choices:
        index = msgspec.json.decode(choice.get("index", Raw(b"0")), type=int)
        message = msgspec.json.decode(choice.get("message", Raw(b"{}")), type=dict[str, Raw])
        calls = msgspec.json.decode(message.get("tool_calls", Raw(b"null")), type=_Calls)
        for number, call in enumerate(calls or ()):
            if (index, number) in changes:
                function = msgspec.json.decode(call["function"], type=dict[str, Raw])
                function["arguments"] = Raw(msgspec.json.encode(changes[index, number]))
                call["function"] = Raw(msgspec.json.encode(function))
        if calls:
            message["tool_calls"] = Raw(msgspec.json.encode(calls))
            choice["message"] = Raw(msgspec.json.encode(message))
    tree["choices"] = Raw(msgspec.json.encode(choices))
    return msgspec.json.encode(tree)


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
            arguments = "".join(pieces)
            if not usable(arguments):
                return malformed(name, arguments)
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
