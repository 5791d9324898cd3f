"""JSON Schemas: a value that fits one, and what OpenAI's strict mode would object to."""

import math
from typing import Final

import msgspec

from breakwater_gateway.simulator.script import mix
from breakwater_gateway.simulator.turns import Json
from breakwater_gateway.simulator.words import WORDS

_encode = msgspec.json.encode


def fit(schema: Json, *, chance: int) -> Json:
    """A value that a JSON Schema accepts: the subset that structured outputs allow (no `pattern`).

    A schema without a finite value, or not a schema at all, gives something anyway.
    """
    return _Fitter(schema).fit(schema, chance, 0)


VALUES_MAX: Final = 10_000
"""Values made for one schema, beyond which everything is null: recursion that is required has no end."""
DEPTH_MAX: Final = 40
DEPTH_ENOUGH: Final = 6
"""From here on the shortest way out is taken: recursive schemas must end."""


class _Fitter:
    def __init__(self, root: Json) -> None:
        self._root = root
        self._left = VALUES_MAX

    def fit(self, schema: Json, chance: int, depth: int) -> Json:
        self._left -= 1
        if not isinstance(schema, dict) or self._left < 0 or depth > DEPTH_MAX:
            return None
        if "$ref" in schema:
            return self.fit(_resolve(schema["$ref"], self._root), chance, depth + 1)
        if "const" in schema:
            return schema["const"]
        if isinstance(schema.get("enum"), list) and schema["enum"]:
            return schema["enum"][chance % len(schema["enum"])]
        for key in ("anyOf", "oneOf"):
            options = schema.get(key)
            if isinstance(options, list) and options:
                return self.fit(_option(options, chance, depth), mix(chance), depth + 1)
        if isinstance(schema.get("allOf"), list):
            return self.fit(self._merged(schema["allOf"]), chance, depth + 1)
        kind = schema.get("type")
        if isinstance(kind, list):
            kind = "null" if "null" in kind and depth > DEPTH_ENOUGH else _one_of(kind, chance)
        if kind == "object" or "properties" in schema:
            return self._object(schema, chance, depth)
        if kind == "array":
            return self._array(schema, chance, depth)
        if kind in ("integer", "number"):
            return _fit_number(schema, chance=chance, whole=kind == "integer")
        if kind == "boolean":
            return chance % 2 == 1
        if kind == "null":
            return None
        return _fit_string(schema, chance=chance)

    def _object(self, schema: dict[str, Json], chance: int, depth: int) -> dict[str, Json]:
        properties = schema.get("properties")
        if not isinstance(properties, dict):
            return {}
        required = _list(schema.get("required"))
        names = [n for n in properties if depth <= DEPTH_ENOUGH or n in required]
        return {
            name: self.fit(properties[name], mix(chance ^ i), depth + 1)
            for i, name in enumerate(names)
        }

    def _array(self, schema: dict[str, Json], chance: int, depth: int) -> list[Json]:
        low = _number(schema.get("minItems"), 0)
        high = _number(schema.get("maxItems"), math.inf)
        count = max(low, min(high, 2 if depth <= DEPTH_ENOUGH else 0))
        items = schema.get("items", {"type": "string"})
        return [
            self.fit(items, mix(chance ^ i), depth + 1) for i in range(int(max(0, min(count, 64))))
        ]

    def _merged(self, parts: list[Json]) -> dict[str, Json]:
        """One schema for all of them, as far as objects go."""
        merged: dict[str, Json] = {}
        properties: dict[str, Json] = {}
        required: list[Json] = []
        for part in parts:
            referred = isinstance(part, dict) and "$ref" in part
            whole = _resolve(part["$ref"], self._root) if referred else part
            if not isinstance(whole, dict):
                continue
            merged.update(whole)
            if isinstance(whole.get("properties"), dict):
                properties.update(whole["properties"])
            required += _list(whole.get("required"))
        if properties:
            merged |= {"properties": properties, "required": required}
        return merged


def _option(options: list[Json], chance: int, depth: int) -> Json:
    if depth <= DEPTH_ENOUGH:
        return _one_of(options, chance)
    simple = [o for o in options if isinstance(o, dict) and o.get("type") == "null"]
    return simple[0] if simple else min(options, key=lambda option: len(_encode(option)))


def _one_of(options: list[Json], chance: int) -> Json:
    return options[chance % len(options)] if options else None


def _list(value: Json) -> list[Json]:
    return value if isinstance(value, list) else []


def _fit_number(schema: dict[str, Json], *, chance: int, whole: bool) -> float:
    step = _number(schema.get("multipleOf"), 1 if whole else 0)
    low = _number(schema.get("minimum"), -math.inf)
    high = _number(schema.get("maximum"), math.inf)
    nudge = step or 1e-3
    low = max(low, _number(schema.get("exclusiveMinimum"), -math.inf) + nudge)
    high = min(high, _number(schema.get("exclusiveMaximum"), math.inf) - nudge)
    low = low if low > -math.inf else min(0.0, high)
    value = min(low + chance % 100, high)
    if not whole and not step:
        return value
    # The first multiple from `low`, or the last before `high`.
    value = math.ceil(value / step) * step
    if value > high:
        value = math.floor(high / step) * step
    return int(value) if whole else value


_FORMATS: Final = {
    "date-time": "2025-01-02T03:04:05Z",
    "date": "2025-01-02",
    "time": "03:04:05Z",
    "duration": "PT5M",
    "email": "someone@example.com",
    "hostname": "example.com",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "uuid": "6f1b6e3e-7c9b-4c6e-9a55-0d9f3d2f9b10",
    "uri": "https://example.com/",
}


def _fit_string(schema: dict[str, Json], *, chance: int) -> str:
    known = _FORMATS.get(schema["format"]) if isinstance(schema.get("format"), str) else None
    if known is not None:
        return known
    low = int(min(_number(schema.get("minLength"), 0), 100_000))
    high = _number(schema.get("maxLength"), math.inf)
    text = " ".join(WORDS[(chance + i) % len(WORDS)] for i in range(2))
    text = text if len(text) >= low else text.ljust(low, "x")
    return text[: int(high)] if high < len(text) else text


def _number(value: Json, default: float) -> float:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else default


def _resolve(reference: Json, root: Json) -> Json:
    if not isinstance(reference, str) or not reference.startswith("#"):
        return {}
    found = root
    for part in reference[1:].split("/")[1:]:
        found = (
            found.get(part.replace("~1", "/").replace("~0", "~"), {})
            if isinstance(found, dict)
            else {}
        )
    return found


def strictness(schema: Json, at: str = "()", depth: int = 0) -> str:
    """What OpenAI's strict mode would object to in a schema; empty when nothing."""
    if not isinstance(schema, dict) or depth > 32:
        return "" if isinstance(schema, dict) else f"In context={at}, schema must be an object."
    properties = schema.get("properties")
    if schema.get("type") == "object" or properties is not None:
        if schema.get("additionalProperties") is not False:
            return f"In context={at}, 'additionalProperties' is required to be supplied and to be false."
        names = list(properties) if isinstance(properties, dict) else []
        required = schema.get("required")
        missing = [n for n in names if not isinstance(required, list) or n not in required]
        if missing:
            return (
                f"In context={at}, 'required' is required to be supplied and to be an array including"
                f" every key in properties. Missing '{missing[0]}'."
            )
    inner: list[tuple[str, Json]] = []
    for group in ("properties", "$defs", "definitions"):
        members = schema.get(group)
        if isinstance(members, dict):
            inner += [(f"('{group}', '{name}')", member) for name, member in members.items()]
    if isinstance(schema.get("items"), dict):
        inner.append(("('items',)", schema["items"]))
    if isinstance(schema.get("anyOf"), list):
        inner += [(f"('anyOf', '{i}')", member) for i, member in enumerate(schema["anyOf"])]
    for where, member in inner:
        fault = strictness(member, where, depth + 1)
        if fault:
            return fault
    return ""
