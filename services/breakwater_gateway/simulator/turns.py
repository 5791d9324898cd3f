"""What every dialect meets in: a request as far as its answer depends on it, and the answer itself."""

from collections.abc import Iterator
from typing import Any

from msgspec import Struct

from breakwater_gateway.simulator.script import mix

Json = Any
"""A decoded JSON value, checked by hand so that the wording of errors is the service's own."""


class Tool(Struct, frozen=True):
    name: str
    schema: Json


class Turn(Struct, frozen=True):
    """A chat request, as far as the answer depends on it."""

    model: str
    stream: bool
    include_usage: bool
    choices: int
    tokens_max: int | None
    stop: tuple[str, ...]
    prompt_tokens: int
    last_text: str
    """Of the last user message."""
    tools: tuple[Tool, ...]
    forced: bool
    """A tool must be called."""
    answered: bool
    """The last message is a tool's result."""
    schema: Json
    """Of the structured answer; None for text."""
    one_call: bool = False
    """The caller wants no parallel tool calls."""
    echo: Json = None
    """What the answer repeats of the request, where the API does."""
    framing: str = ""
    """How the stream is framed, where the API has several ways."""


class ToolUse(Struct, frozen=True):
    """A tool that the answer calls."""

    name: str
    pieces: tuple[str, ...]
    """Of the arguments' JSON text, which a script may have spoilt."""
    chance: int
    """64 bits, of which each dialect makes an id of its own form."""

    @property
    def arguments(self) -> str:
        return "".join(self.pieces)


class Choice(Struct, frozen=True):
    """One answer, in token-sized pieces: thoughts, then text or tool calls."""

    pieces: tuple[str, ...]
    finish: str
    """`stop`, `length`, `tool_calls` or `content_filter`."""
    calls: tuple[ToolUse, ...] = ()
    thinking: tuple[str, ...] = ()
    stopped_by: str = ""
    """The stop sequence that ended it."""
    blocked: bool = False
    """The prompt itself was refused, by an API that says so in an answer."""
    malformed: bool = False
    """The model failed to write a tool call."""

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def written(self) -> int:
        """Tokens of the text and the calls."""
        return len(self.pieces) + sum(len(call.pieces) for call in self.calls)


class Embedding(Struct, frozen=True):
    """A request for embeddings, checked."""

    model: str
    inputs: tuple[str, ...]
    dimensions: int
    prompt_tokens: int
    encodings: tuple[str, ...] = ("float",)
    """`float`, `base64`, or Cohere's integer kinds."""
    framing: str = ""
    """Of the answer, where the API has several ways."""


class Counts(Struct, frozen=True):
    """Tokens used. `prompt` includes `cached` and `cache_written`, `completion` includes `reasoning`."""

    prompt: int
    completion: int
    cached: int = 0
    cache_written: int = 0
    reasoning: int = 0


class Sampling(Struct, frozen=True):
    """What tells one answer from another: 64 bits of the request under the seed, and the wall clock."""

    chance: int
    created: int

    def token(self, salt: int, length: int, alphabet: str) -> str:
        return token(self.chance ^ salt, length, alphabet)


class Event(Struct, frozen=True):
    """One event of a stream, framed, and the content tokens in it."""

    data: bytes
    tokens: int = 0
    head: bool = False
    """It opens the stream: no interruption that counts tokens comes before it."""
    last: bool = False
    """It tells the end: a stream without it is not known to be whole."""


BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
HEX = "0123456789abcdef"


def token(chance: int, length: int, alphabet: str) -> str:
    """An id's random part: the same from the same 64 bits."""
    found: list[str] = []
    while len(found) < length:
        chance = mix(chance)
        left = chance
        # Ten characters use up 60 of the 64 bits of a base of 62.
        for _ in range(min(10, length - len(found))):
            left, at = divmod(left, len(alphabet))
            found.append(alphabet[at])
    return "".join(found)


def count_tokens(text: str) -> int:
    """About four characters a token, as English has it; at least one for a text."""
    return (len(text) + 3) // 4


def batches(pieces: tuple[str, ...], size: int) -> Iterator[tuple[str, int]]:
    """Texts of `size` tokens each, and how many they really are."""
    for at in range(0, len(pieces), size):
        part = pieces[at : at + size]
        yield (part[0] if len(part) == 1 else "".join(part)), len(part)
