"""YAML text as a bounded tree of nodes with their lines, scalars left as they were written.

Built from libyaml's events, not by PyYAML's composer: no tag is ever resolved (so `no`, `1:30` and
`010` keep their letters until the key that they belong to says what it expects), the nesting cannot
exhaust the stack, and every alias is paid for before it is expanded.
"""

import re
from typing import Final

import yaml
from msgspec import Struct, field

from breakwater_gateway.config.problems import Path, Report, shown

TEXT_MAX: Final = 1024 * 1024
"""Bytes of a file."""
NODES_MAX: Final = 300_000
"""Nodes of a tree with its aliases expanded: 10,000 models of five deployments, with room."""
DEPTH_MAX: Final = 32

# YAML 1.2, section 5.1: what a stream may contain (tab, line breaks, printable characters).
_UNPRINTABLE: Final = re.compile(
    "[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]"
)
_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_NULLS: Final = frozenset(("", "~", "null", "Null", "NULL"))
_TAB: Final = "a tab may not indent; use spaces"


class Scalar(Struct):
    text: str
    line: int
    column: int
    plain: bool
    """Written without quotes."""

    @property
    def is_null(self) -> bool:
        return self.plain and self.text in _NULLS


class Sequence(Struct):
    items: list["Node"]
    line: int
    column: int
    size: int = 1
    """Nodes in it, itself included, aliases expanded."""


class Mapping(Struct):
    entries: list[tuple[Scalar, "Node"]]
    line: int
    column: int
    size: int = 1


Node = Scalar | Sequence | Mapping


def parse(text: str | bytes, report: Report) -> Node | None:
    """The one document of `text`; None when it cannot be read at all. Mistakes go to `report`."""
    decoded = _decode(text, report)
    if decoded is None:
        return None
    builder = _Builder(report)
    try:
        for event in yaml.parse(decoded, Loader=_LOADER):
            if not builder.take(event):
                return None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line, mark.column) if mark else (0, 0)
        report.add((), line + 1, column + 1, _syntax_message(error, decoded, line, column))
        return None
    except yaml.YAMLError as error:
        report.add((), 1, 1, f"not valid YAML: {getattr(error, 'reason', 'unreadable')}")
        return None
    if builder.root is None:
        report.add((), 1, 1, 'the file is empty; expected at least "models"')
    return builder.root


def _decode(text: str | bytes, report: Report) -> str | None:
    try:
        raw = text.encode("utf-8") if isinstance(text, str) else text
    except UnicodeEncodeError as error:
        line, column = _position(text if isinstance(text, str) else "", error.start)
        report.add((), line, column, "not valid UTF-8")
        return None
    if len(raw) > TEXT_MAX:
        report.add((), 1, 1, f"a configuration may have {TEXT_MAX} bytes, this has {len(raw)}")
        return None
    try:
        decoded = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, column = _position(raw[: error.start].decode("utf-8", "replace"), None)
        report.add((), line, column, "not valid UTF-8; save the file as UTF-8")
        return None
    odd = _UNPRINTABLE.search(decoded)
    if odd is not None:
        line, column = _position(decoded, odd.start())
        report.add((), line, column, f"a control character (U+{ord(odd.group()):04X}); remove it")
        return None
    return decoded


def _position(text: str, offset: int | None) -> tuple[int, int]:
    before = text[:offset]
    return before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1


def _syntax_message(error: yaml.MarkedYAMLError, text: str, line: int, column: int) -> str:
    lines = text.splitlines()
    here = lines[line] if line < len(lines) else ""
    problem = error.problem or "unreadable"
    if "tab character" in problem or here[column : column + 1] == "\t":
        return _TAB
    if "\t" in here[: len(here) - len(here.lstrip())]:
        return _TAB
    if "cannot start any token" in problem:
        return f"a value may not start with {here[column : column + 1]!r}; put it in quotes"
    if "mapping values are not allowed" in problem:
        return 'a ":" too many: check the indentation, or put the value in quotes'
    if "did not find expected key" in problem:
        return "expected a key here; check the indentation and the brackets"
    if "could not find expected ':'" in problem:
        return 'expected "key: value"; the ":" is missing'
    if "unexpected end of stream" in problem or "quoted scalar" in (error.context or ""):
        return f"a quote is not closed or holds a bad escape ({problem})"
    return f"not valid YAML: {problem}" + (f" {error.context}" if error.context else "")


class _Open(Struct):
    """A collection that is being read."""

    node: Sequence | Mapping
    anchor: str | None
    key: Scalar | None = None
    """Of a mapping: the key that waits for its value."""
    seen: dict[str, int] = field(default_factory=dict)
    """Of a mapping: the line of each key."""
    skip: bool = False
    """The key was refused (not a scalar, or twice): its value is read and dropped."""


class _Builder:
    def __init__(self, report: Report) -> None:
        self.root: Node | None = None
        self._report = report
        self._stack: list[_Open] = []
        self._anchors: dict[str, Node] = {}
        self._nodes = 0
        self._documents = 0

    def take(self, event: yaml.Event) -> bool:
        """False when the rest is not worth reading."""
        mark = event.start_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        if isinstance(event, yaml.DocumentStartEvent):
            self._documents += 1
            if self._documents > 1:
                return self._refuse(line, column, "a second document; a file holds exactly one")
        elif isinstance(event, yaml.AliasEvent):
            target = self._anchors.get(event.anchor or "")
            if target is None:
                return self._refuse(
                    line,
                    column,
                    f"no anchor {shown(event.anchor or '')} is complete before this alias",
                )
            self._nodes += _size(target)
            if self._nodes > NODES_MAX:
                return self._refuse(
                    line, column, f"aliases expand to more than {NODES_MAX} values; write less"
                )
            self._place(target, None)
        elif isinstance(event, (yaml.ScalarEvent, yaml.CollectionStartEvent)):
            return self._begin(event, line, column)
        elif isinstance(event, yaml.CollectionEndEvent):
            done = self._stack.pop()
            if isinstance(done.node, Mapping):
                self._merge(done.node)
            self._place(done.node, done.anchor)
        return True

    def _begin(
        self, event: "yaml.ScalarEvent | yaml.CollectionStartEvent", line: int, column: int
    ) -> bool:
        self._nodes += 1
        if self._nodes > NODES_MAX:
            return self._refuse(line, column, f"more than {NODES_MAX} values")
        if event.tag is not None:
            self._report.add(
                (), line, column, f"the tag {shown(event.tag)}; tags have no place here, remove it"
            )
        if isinstance(event, yaml.ScalarEvent):
            plain = not event.style and event.tag is None
            self._place(Scalar(event.value, line, column, plain), event.anchor)
            return True
        if len(self._stack) >= DEPTH_MAX:
            return self._refuse(line, column, f"nested more than {DEPTH_MAX} deep")
        if self._stack and not event.flow_style:
            # A block under a key belongs to the key's line, where a reader looks for it.
            key = self._stack[-1].key
            line, column = (key.line, key.column) if key else (line, column)
        node: Sequence | Mapping
        if isinstance(event, yaml.MappingStartEvent):
            node = Mapping([], line, column)
        else:
            node = Sequence([], line, column)
        self._stack.append(_Open(node, event.anchor))
        return True

    def _place(self, node: Node, anchor: str | None) -> None:
        if anchor is not None:
            self._anchors[anchor] = node
        if not self._stack:
            self.root = node
            return
        parent = self._stack[-1]
        if isinstance(parent.node, Sequence):
            parent.node.items.append(node)
            parent.node.size += _size(node)
        elif parent.skip:
            parent.skip = False
            parent.key = None
        elif parent.key is None:
            parent.key = self._as_key(parent, node)
        else:
            parent.node.entries.append((parent.key, node))
            parent.node.size += 1 + _size(node)
            parent.key = None

    def _as_key(self, parent: _Open, node: Node) -> Scalar | None:
        if not isinstance(node, Scalar):
            self._report.add((), node.line, node.column, "a key must be text, not a collection")
            parent.skip = True
            return None
        first = parent.seen.get(node.text)
        if first is not None:
            self._report.add(
                (*self._path(self._stack[:-1]), node.text),
                node.line,
                node.column,
                f"the same key twice; the first is on line {first}",
            )
            parent.skip = True
            return None
        parent.seen[node.text] = node.line
        return node

    def _path(self, stack: list[_Open]) -> Path:
        steps: list[str | int] = []
        for each in stack:
            if isinstance(each.node, Sequence):
                steps.append(len(each.node.items))
            elif each.key is not None:
                steps.append(each.key.text)
        return tuple(steps)

    def _merge(self, node: Mapping) -> None:
        """YAML 1.1's merge key: `<<: *defaults` adds the keys that the mapping does not have."""
        merged = [(key, value) for key, value in node.entries if key.plain and key.text == "<<"]
        if not merged:
            return
        own = {key.text for key, _ in node.entries}
        node.entries = [
            entry for entry in node.entries if not (entry[0].plain and entry[0].text == "<<")
        ]
        for key, value in merged:
            for source in value.items if isinstance(value, Sequence) else [value]:
                if not isinstance(source, Mapping):
                    self._report.add(
                        (*self._path(self._stack), "<<"),
                        key.line,
                        key.column,
                        "only a mapping can be merged",
                    )
                    continue
                for entry in source.entries:
                    if entry[0].text not in own:
                        own.add(entry[0].text)
                        node.entries.append(entry)

    def _refuse(self, line: int, column: int, message: str) -> bool:
        self._report.add((), line, column, message)
        return False


def _size(node: Node) -> int:
    return 1 if isinstance(node, Scalar) else node.size
