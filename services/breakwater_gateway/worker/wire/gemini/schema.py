"""Schemas between JSON Schema and the OpenAPI subset of Google's `Schema` message.

`Schema` names its types in capitals, says `nullable` where JSON Schema lists `null`, counts in strings
(they are 64-bit) and knows no references. Source: Gemini API reference, "Schema"; Vertex AI reference,
"Schema"; OpenAPI 3.0.3, section 4.7.24.
"""

from typing import Any, Final

import msgspec
from msgspec import Raw

from breakwater_gateway.worker.wire.gemini.fields import UNREADABLE

DEPTH_MAX: Final = 64
NODES_MAX: Final = 20_000
"""Bound on what references may unfold to."""

_Node = dict[str, Any]

# The numbers of the enumeration `Type`, which some clients send.
_TYPES: Final = {
    1: "string",
    2: "number",
    3: "integer",
    4: "boolean",
    5: "array",
    6: "object",
    7: "null",
}
_COUNTS: Final = frozenset(
    {"minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"}
)
_SPELLED: Final = {
    "any_of": "anyOf",
    "property_ordering": "propertyOrdering",
    "min_items": "minItems",
    "max_items": "maxItems",
    "min_length": "minLength",
    "max_length": "maxLength",
    "min_properties": "minProperties",
    "max_properties": "maxProperties",
    "prefix_items": "prefixItems",
    "additional_properties": "additionalProperties",
    "defs": "$defs",
    "ref": "$ref",
}


class _TooMuch(Exception):
    """A schema is nested too deeply, or unfolds to too much."""


def json_schema(raw: Raw) -> Raw:
    """Google's `Schema` as JSON Schema. What is no such schema is returned as it came."""
    try:
        given = msgspec.json.decode(raw)
        if not isinstance(given, dict):
            return raw
        return Raw(msgspec.json.encode(_to_json(given, DEPTH_MAX)))
    except (*UNREADABLE, _TooMuch):
        return raw


def _to_json(given: _Node, depth: int) -> _Node:
    if depth == 0:
        raise _TooMuch
    found: _Node = {}
    for spelled, value in given.items():
        name = _SPELLED.get(spelled, spelled)
        if name == "type":
            kind = _TYPES.get(value) if isinstance(value, int) else value
            if isinstance(kind, str):
                kind = kind.lower()
            if kind not in (None, "type_unspecified"):
                found["type"] = kind
        elif name in {"properties", "$defs"} and isinstance(value, dict):
            found[name] = {key: _child_to_json(child, depth) for key, child in value.items()}
        elif name in {"items", "additionalProperties"}:
            found[name] = _child_to_json(value, depth)
        elif name in {"anyOf", "prefixItems"} and isinstance(value, list):
            found[name] = [_child_to_json(child, depth) for child in value]
        elif name in _COUNTS and isinstance(value, str) and value.isascii() and value.isdigit():
            found[name] = int(value[:18])
        elif name == "example":
            found["examples"] = [value]
        elif name not in {"nullable", "propertyOrdering"}:
            found[name] = value
    if given.get("nullable") is True:
        _admit_null(found)
    return found


def _child_to_json(child: Any, depth: int) -> Any:  # noqa: ANN401 - JSON
    return _to_json(child, depth - 1) if isinstance(child, dict) else child


def _admit_null(node: _Node) -> None:
    kind = node.get("type")
    if isinstance(kind, str) and kind != "null":
        node["type"] = [kind, "null"]
        if isinstance(node.get("enum"), list) and None not in node["enum"]:
            node["enum"] = [*node["enum"], None]
    elif isinstance(node.get("anyOf"), list):
        node["anyOf"] = [*node["anyOf"], {"type": "null"}]


# ---------------------------------------------------------------- the other way

_KEPT: Final = frozenset(
    {
        *("title", "description", "default", "minimum", "maximum", "pattern", "propertyOrdering"),
        *_COUNTS,
    }
)
_FORMATS: Final = {
    "string": {"date-time", "enum"},
    "number": {"float", "double"},
    "integer": {"int32", "int64"},
}
_QUIET: Final = frozenset({"$schema", "$id", "$comment", "$defs", "definitions", "examples"})
"""Keywords that constrain nothing."""


def openapi(raw: Raw) -> tuple[Raw, tuple[str, ...]]:
    """JSON Schema in Google's subset, and the keywords that it cannot hold.

    References are unfolded; one that leads back into itself ends in an object of any shape. A schema that
    is none, or that unfolds to more than `NODES_MAX` nodes, is returned as it came.
    """
    try:
        given = msgspec.json.decode(raw)
        if not isinstance(given, dict):
            return raw, ()
        writer = _OpenApi(given)
        return Raw(msgspec.json.encode(writer.node(given, DEPTH_MAX, ()))), tuple(writer.lost)
    except (*UNREADABLE, _TooMuch):
        return raw, ()


class _OpenApi:
    def __init__(self, root: _Node) -> None:
        self._root = root
        self._nodes = 0
        self.lost: dict[str, None] = {}

    def node(self, given: Any, depth: int, seen: tuple[str, ...]) -> _Node:  # noqa: ANN401 - JSON
        self._nodes += 1
        if depth == 0 or self._nodes > NODES_MAX:
            raise _TooMuch
        if not isinstance(given, dict):
            # `true`: anything. `false` cannot be said.
            if given is False:
                self.lost["false"] = None
            return {}
        ref = given.get("$ref")
        if isinstance(ref, str):
            return self._reference(ref, given, depth, seen)
        given = self._merged(given)
        found: _Node = {}
        kinds, null = _kinds(given)
        if len(kinds) == 1:
            found["type"] = kinds[0].upper()
        elif len(kinds) > 1:
            found["anyOf"] = [{"type": kind.upper()} for kind in kinds]
        # `required` is checked against the properties, so these come first.
        for name in sorted(given, key=lambda name: name != "properties"):
            self._keyword(name, given[name], found, depth, seen, kinds[0] if kinds else "")
        for name in ("anyOf", "oneOf"):
            null = self._choices(given, name, found, depth, seen) or null
        if null:
            found["nullable"] = True
        return found

    def _keyword(
        self,
        name: str,
        value: Any,  # noqa: ANN401 - JSON
        found: _Node,
        depth: int,
        seen: tuple[str, ...],
        kind: str,
    ) -> None:
        if name in {"type", "anyOf", "oneOf", "nullable"} or name in _QUIET:
            return
        if name == "properties" and isinstance(value, dict):
            properties = {key: self.node(child, depth - 1, seen) for key, child in value.items()}
            if properties:
                # An OBJECT with an empty `properties` is refused; one without is any object.
                found["properties"] = properties
                found.setdefault("type", "OBJECT")
        elif name == "items":
            found["items"] = self.node(value, depth - 1, seen)
            found.setdefault("type", "ARRAY")
        elif name == "prefixItems" and isinstance(value, list) and value:
            found.setdefault("items", self.node(value[0], depth - 1, seen))
            self.lost[name] = None
        elif name == "required" and isinstance(value, list):
            known = found.get("properties", {})
            names = [item for item in value if isinstance(item, str) and item in known]
            if names:
                found["required"] = names
        elif name in {"enum", "const"}:
            self._enumeration(value if isinstance(value, list) else [value], found)
        elif name == "format" and isinstance(value, str):
            if value in _FORMATS.get(kind, ()):
                found["format"] = value
            else:
                self.lost["format"] = None
        elif name in _KEPT:
            if name != "default" or value is not None:
                found[name] = value
        elif name == "exclusiveMinimum" and isinstance(value, int) and kind == "integer":
            found["minimum"] = value + 1
        elif name == "exclusiveMaximum" and isinstance(value, int) and kind == "integer":
            found["maximum"] = value - 1
        elif name != "additionalProperties" or value not in (False, True):
            self.lost[name] = None

    def _enumeration(self, values: list[Any], found: _Node) -> None:
        """Only strings can be enumerated."""
        texts = [value for value in values if isinstance(value, str)]
        if None in values:
            found["nullable"] = True
        if texts and len(texts) == sum(value is not None for value in values):
            found["type"] = "STRING"
            found["enum"] = texts
        elif any(value is not None for value in values):
            self.lost["enum"] = None

    def _choices(
        self, given: _Node, name: str, found: _Node, depth: int, seen: tuple[str, ...]
    ) -> bool:
        """True: null is one of them."""
        choices = given.get(name)
        if not isinstance(choices, list):
            return False
        others = [c for c in choices if not (isinstance(c, dict) and c.get("type") == "null")]
        nodes = [self.node(choice, depth - 1, seen) for choice in others]
        if len(nodes) == 1:
            for key, value in nodes[0].items():
                found.setdefault(key, value)
        elif nodes:
            found["anyOf"] = nodes
        return len(others) < len(choices)

    def _reference(self, ref: str, given: _Node, depth: int, seen: tuple[str, ...]) -> _Node:
        target: Any = self._root
        if ref in seen or not ref.startswith("#"):
            self.lost["$ref"] = None
            return {"type": "OBJECT"}
        for step in ref[1:].split("/")[1:]:
            name = step.replace("~1", "/").replace("~0", "~")
            target = target.get(name) if isinstance(target, dict) else None
        if not isinstance(target, dict):
            self.lost["$ref"] = None
            return {"type": "OBJECT"}
        beside = {key: value for key, value in given.items() if key != "$ref"}
        return self.node({**target, **beside}, depth - 1, (*seen, ref))

    def _merged(self, given: _Node) -> _Node:
        """`allOf` of one, or of plain objects, folded into the schema around it."""
        parts = given.get("allOf")
        if not isinstance(parts, list):
            return given
        merged = {key: value for key, value in given.items() if key != "allOf"}
        for part in parts:
            if not isinstance(part, dict):
                continue
            for key, value in part.items():
                held = merged.get(key)
                if key == "properties" and isinstance(held, dict) and isinstance(value, dict):
                    merged[key] = {**value, **held}
                elif key == "required" and isinstance(held, list) and isinstance(value, list):
                    merged[key] = held + [name for name in value if name not in held]
                elif key in merged and held != value:
                    self.lost["allOf"] = None
                else:
                    merged[key] = value
        if isinstance(merged.get("$ref"), str):
            # One level: the reference of a merged part is looked up where it stands.
            ref = merged.pop("$ref")
            name = ref.rpartition("/")[2]
            defs = self._root.get("$defs") or self._root.get("definitions")
            target = defs.get(name) if isinstance(defs, dict) else None
            if isinstance(target, dict) and "$ref" not in target and "allOf" not in target:
                return {**target, **merged}
            self.lost["$ref"] = None
        return merged


def _kinds(given: _Node) -> tuple[list[str], bool]:
    """The types a node may have, and whether null is among them."""
    kind = given.get("type")
    kinds = [item for item in (kind if isinstance(kind, list) else [kind]) if isinstance(item, str)]
    known = [item.lower() for item in kinds if item.lower() in _TYPES.values()]
    null = "null" in known and len(known) > 1
    return [item for item in known if item != "null" or not null], null or (
        given.get("nullable") is True
    )
