"""Sections of the configuration: mappings with known keys, and what of them was read where."""

from collections.abc import Mapping as AbstractMapping
from typing import Any, Generic, cast

from msgspec import Struct

from breakwater_gateway.config.kinds import JsonSchema, Kind, T, refusal, unexpected, what
from breakwater_gateway.config.problems import Path, Report
from breakwater_gateway.config.yaml_tree import Mapping, Node, Scalar


class Key(Struct, Generic[T], frozen=True):
    """One key of a section."""

    name: str
    kind: Kind[T]
    help: str
    required: bool = False


class Block(Struct, frozen=True):
    """A section as it was read: what it holds and where."""

    values: dict[str, object]
    marks: dict[str, tuple[int, int]]
    """Of each key that is there, its value readable or not."""
    line: int
    column: int

    def get(self, key: Key[T]) -> T | None:
        return cast("T | None", self.values.get(key.name))

    def has(self, key: Key[Any]) -> bool:
        return key.name in self.marks

    def mark(self, key: Key[Any] | None = None) -> tuple[int, int]:
        """Where the key's value stands; the section itself when it has no such key."""
        here = (self.line, self.column)
        return here if key is None else self.marks.get(key.name, here)


class Section(Struct, frozen=True):
    """A mapping with known keys; `later` are keys of the contract that this version does not serve."""

    title: str
    keys: tuple[Key[Any], ...]
    later: AbstractMapping[str, str] = {}

    def read(self, node: Node, path: Path, report: Report) -> Block | None:
        if not isinstance(node, Mapping):
            names = ", ".join(key.name for key in self.keys)
            unexpected(node, f"the keys of {self.title} ({names})", what(node), path, report)
            return None
        kinds = {key.name: key for key in self.keys}
        values: dict[str, object] = {}
        marks: dict[str, tuple[int, int]] = {}
        mistyped: set[str] = set()
        for name, child in node.entries:
            here = (*path, name.text)
            key = kinds.get(name.text)
            if key is None:
                mistyped.add(self._unknown(name, here, report))
                continue
            value = key.kind.read(child, here, report)
            marks[key.name] = (child.line, child.column)
            if value is not None:
                values[key.name] = value
        for key in self.keys:
            if key.required and key.name not in marks and key.name not in mistyped:
                message = f'"{key.name}" is missing: {key.help}'
                report.add(path, node.line, node.column, message)
        return Block(values, marks, node.line, node.column)

    def _unknown(self, name: Scalar, path: Path, report: Report) -> str:
        """Reports an unknown key; answers the key that was probably meant, or nothing."""
        close = ""
        if name.text in self.later:
            message = refusal(self.later[name.text], "")
        elif close := report.nearest(name.text, [key.name for key in self.keys]):
            message = f'unknown key; did you mean "{close}"?'
        else:
            message = f"unknown key; {self.title} has {', '.join(key.name for key in self.keys)}"
        report.add(path, name.line, name.column, message)
        return close

    def schema(self) -> JsonSchema:
        return {
            "type": "object",
            "properties": {
                key.name: {**key.kind.schema(), "description": key.help} for key in self.keys
            },
            "required": [key.name for key in self.keys if key.required],
            "additionalProperties": False,
        }
