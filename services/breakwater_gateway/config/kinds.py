"""What a value of the configuration may be: each kind reads a node and describes itself as JSON Schema.

Both come from one place, so the loader and the published schema cannot drift apart. A scalar is read by
what its key expects, never by what YAML 1.1 would guess: `region: no` is the text "no", `10` is a
number for `weight` and an error for a duration.

`read` answers None after reporting what was wrong. A collection answers what of it could be read, so
that one mistake does not hide the next; nothing is built of it once anything was reported.
"""

import re
from collections.abc import Mapping as AbstractMapping
from typing import Any, Final, Generic, Protocol, TypeVar

from msgspec import Struct

from breakwater_gateway.config.problems import Path, Report, shown
from breakwater_gateway.config.yaml_tree import Mapping, Node, Scalar, Sequence

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

JsonSchema = dict[str, Any]

NAME_PATTERN: Final = r"[!-~](?:[ -~]*[!-~])?"
"""Printable ASCII without spaces around it: a name goes into headers as it is."""

AS_TEXT: Final = ["string", "number", "boolean"]
"""What JSON sees of an unquoted `123` or `no` where text is expected."""

_FILE_PATTERN: Final = r"[^\x00-\x1f\x7f]{1,1024}"


class Kind(Protocol[T_co]):
    def read(self, node: Node, path: Path, report: Report) -> T_co | None: ...

    def schema(self) -> JsonSchema: ...


class Text(Struct, frozen=True):
    """Printable ASCII of at most `max_length` characters, and of `pattern` if there is one."""

    expected: str
    pattern: str = NAME_PATTERN
    max_length: int = 512
    worded: bool = False
    """The pattern takes no number and no `true`: what is unquoted is text for JSON too."""
    words: tuple[str, ...] = ()
    """Of which one was probably meant; what stands after a colon is a name."""

    def read(self, node: Node, path: Path, report: Report) -> str | None:
        text = read_text(node, self.expected, path, report)
        if text is None:
            return None
        if len(text) > self.max_length:
            message = f"expected {self.expected}, at most {self.max_length} characters"
            report.add(path, node.line, node.column, f"{message}; this has {len(text)}")
            return None
        if not re.fullmatch(self.pattern, text):
            found = shown(text)
            word, colon, name = text.partition(":")
            close = report.nearest(word, self.words) if self.words else ""
            if close not in {"", word}:
                found += f"; did you mean {shown(close + colon + name)}?"
            unexpected(node, self.expected, found, path, report)
            return None
        return text

    def schema(self) -> JsonSchema:
        type_ = "string" if self.worded else AS_TEXT
        return {"type": type_, "pattern": f"^(?:{self.pattern})$", "maxLength": self.max_length}


class Prose(Struct, frozen=True):
    """Text of a person's own, in any script, of at most `max_length` characters."""

    expected: str
    max_length: int

    def read(self, node: Node, path: Path, report: Report) -> str | None:
        text = read_text(node, self.expected, path, report)
        if text is None:
            return None
        if not text.strip():
            unexpected(node, self.expected, "nothing", path, report)
            return None
        if len(text) > self.max_length:
            message = f"expected {self.expected}, at most {self.max_length:_} characters"
            report.add(path, node.line, node.column, f"{message}; this has {len(text):_}")
            return None
        return text

    def schema(self) -> JsonSchema:
        return {"type": AS_TEXT, "minLength": 1, "maxLength": self.max_length}


class FileName(Struct, frozen=True):
    """The name of a file, as it was written, and where."""

    name: str
    line: int
    column: int


class InFile(Struct, Generic[T], frozen=True):
    """A value that stands here, or in a file of its own that is named here."""

    item: Kind[T]
    expected: str

    def read(self, node: Node, path: Path, report: Report) -> T | FileName | None:
        if not isinstance(node, Scalar):
            return self.item.read(node, path, report)
        text = read_text(node, self.expected, path, report)
        if text is None:
            return None
        if not re.fullmatch(_FILE_PATTERN, text):
            unexpected(node, self.expected, shown(text), path, report)
            return None
        return FileName(text, node.line, node.column)

    def schema(self) -> JsonSchema:
        name = {"type": AS_TEXT, "pattern": f"^{_FILE_PATTERN}$"}
        return {"anyOf": [name, self.item.schema()]}


class Switch(Struct, frozen=True):
    """`true` or `false`; YAML 1.1's `yes` and `on` are refused, since half of all tools read text."""

    def read(self, node: Node, path: Path, report: Report) -> bool | None:
        text = read_text(node, "true or false", path, report)
        if text is None:
            return None
        if text in {"true", "True", "TRUE"}:
            return True
        if text in {"false", "False", "FALSE"}:
            return False
        unexpected(node, "true or false", shown(text), path, report)
        return None

    def schema(self) -> JsonSchema:
        return {"enum": [True, False, "true", "True", "TRUE", "false", "False", "FALSE"]}


class StaysOff(Struct, frozen=True):
    """A switch that only `false` is served of; `later` says what `true` would turn on."""

    later: AbstractMapping[str, str]

    def read(self, node: Node, path: Path, report: Report) -> bool | None:
        value = Switch().read(node, path, report)
        if value:
            report.add(path, node.line, node.column, refusal(self.later["true"], "false"))
            return None
        return value

    def schema(self) -> JsonSchema:
        return {"enum": [False, "false", "False", "FALSE"]}


class Choice(Struct, frozen=True):
    """One of a few words; `later` are words of the contract that this version does not serve."""

    values: tuple[str, ...]
    later: AbstractMapping[str, str] = {}

    def read(self, node: Node, path: Path, report: Report) -> str | None:
        expected = f"one of {', '.join(self.values)}" if len(self.values) > 1 else self.values[0]
        text = read_text(node, expected, path, report)
        if text is None or text in self.values:
            return text
        if text in self.later:
            report.add(path, node.line, node.column, refusal(self.later[text], expected))
            return None
        close = report.nearest(text, self.values)
        unexpected(
            node,
            expected,
            shown(text) + (f'; did you mean "{close}"?' if close else ""),
            path,
            report,
        )
        return None

    def schema(self) -> JsonSchema:
        return {"enum": list(self.values)}


class ListOf(Struct, Generic[T], frozen=True):
    item: Kind[T]
    expected: str
    minimum: int
    maximum: int

    def read(self, node: Node, path: Path, report: Report) -> tuple[T | None, ...] | None:
        if not isinstance(node, Sequence):
            unexpected(node, self.expected, what(node), path, report)
            return None
        count = len(node.items)
        if not self.minimum <= count <= self.maximum:
            limits = f"{self.minimum:_} to {self.maximum:_} of them"
            message = f"expected {self.expected}, {limits}; these are {count}"
            report.add(path, node.line, node.column, message)
            return None
        return tuple(
            self.item.read(item, (*path, index), report) for index, item in enumerate(node.items)
        )

    def schema(self) -> JsonSchema:
        return {
            "type": "array",
            "items": self.item.schema(),
            "minItems": self.minimum,
            "maxItems": self.maximum,
        }


class OneOrMore(Struct, frozen=True):
    """A text, or a list of them; a tuple either way."""

    item: Text
    expected: str
    maximum: int

    def read(self, node: Node, path: Path, report: Report) -> tuple[str, ...] | None:
        if not isinstance(node, Sequence):
            one = self.item.read(node, path, report)
            return None if one is None else (one,)
        several = ListOf[str](self.item, f"a list of {self.expected}", 1, self.maximum)
        found = several.read(node, path, report)
        if found is None or any(each is None for each in found):
            return None
        return tuple(each for each in found if each is not None)

    def schema(self) -> JsonSchema:
        one = self.item.schema()
        several = {"type": "array", "items": one, "minItems": 1, "maxItems": self.maximum}
        return {"anyOf": [one, several]}


class MapOf(Struct, Generic[T], frozen=True):
    """Names of the user's own, each with a value."""

    item: Kind[T]
    expected: str
    name: Text
    minimum: int
    maximum: int

    def read(self, node: Node, path: Path, report: Report) -> dict[str, "Named[T]"] | None:
        if not isinstance(node, Mapping):
            unexpected(node, self.expected, what(node), path, report)
            return None
        count = len(node.entries)
        if not self.minimum <= count <= self.maximum:
            limits = f"{self.minimum:_} to {self.maximum:_} of them"
            message = f"expected {self.expected}, {limits}; these are {count}"
            report.add(path, node.line, node.column, message)
            return None
        found: dict[str, Named[T]] = {}
        for key, value_node in node.entries:
            here = (*path, key.text)
            # A name is text however it is written: only an empty key has nothing to read.
            quoted = Scalar(key.text, key.line, key.column, plain=False)
            name = self.name.read(quoted, here, report)
            value = self.item.read(value_node, here, report)
            if name is not None and value is not None:
                found[name] = Named(value, key.line, key.column)
        return found

    def schema(self) -> JsonSchema:
        return {
            "type": "object",
            "minProperties": self.minimum,
            "maxProperties": self.maximum,
            "propertyNames": self.name.schema(),
            "additionalProperties": self.item.schema(),
        }


class Named(Struct, Generic[T], frozen=True):
    """A value of a `MapOf`, with the place of its name."""

    value: T
    line: int
    column: int


def refusal(what: str, instead: str) -> str:
    message = f"{what} is not served by this version"
    return f"{message}; expected {instead}" if instead else f"{message}; remove it"


def read_text(node: Node, expected: str, path: Path, report: Report) -> str | None:
    if isinstance(node, Scalar) and not node.is_null:
        return node.text
    unexpected(node, expected, what(node), path, report)
    return None


def what(node: Node) -> str:
    match node:
        case Scalar():
            return "nothing" if node.is_null else shown(node.text)
        case Mapping():
            return "a mapping"
        case Sequence():
            return "a list"


def unexpected(node: Node, expected: str, got: str, path: Path, report: Report) -> None:
    report.add(path, node.line, node.column, f"expected {expected}, not {got}")
