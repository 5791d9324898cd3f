"""JSON Schemas: a value that fits one, and what OpenAI's strict mode would object to."""

import math
from typing import Final

import msgspec

from breakwater_gateway.simulator.script import mix
from breakwater_gateway.simulator.turns import Json
from breakwater_gateway.simulator.words import WORDS

_encode = msgspec.json.encode


def fit(schema: Json, *, chance: int, root: Json = None, depth: int = 0) -> Json:
    """A value that a JSON Schema accepts: the subset that structured outputs allow (no `pattern`)."""
    if not isinstance(schema, dict):
        return None
    root = schema if root is None else root
    if "$ref" in schema:
        return (
            None
            if depth > 40
            else fit(_resolve(schema["$ref"], root), chance=chance, root=root, depth=depth + 1)
        )
    if "const" in schema:
        return schema["const"]
    if isinstance(schema.get("enum"), list) and schema["enum"]:
        return schema["enum"][chance % len(schema["enum"])]
    for key in ("anyOf", "oneOf"):
        options = schema.get(key)
        if isinstance(options, list) and options:
            # The shallowest way out, once it gets deep: recursive schemas must end.
            simple = [o for o in options if isinstance(o, dict) and o.get("type") == "null"]
            chosen = simple[0] if simple and depth > 6 else options[chance % len(options)]
            if depth > 6 and not simple:
                chosen = min(options, key=lambda o: len(_encode(o)))
            return fit(chosen, chance=mix(chance), root=root, depth=depth + 1)
    if isinstance(schema.get("allOf"), list):
        merged: dict[str, Json] = {}
        for part in schema["allOf"]:
            whole = (
                _resolve(part["$ref"], root) if isinstance(part, dict) and "$ref" in part else part
            )
            if isinstance(whole, dict):
                merged = {
                    **merged,
                    **whole,
                    "properties": {**merged.get("properties", {}), **whole.get("properties", {})},
                    "required": [*merged.get("required", []), *whole.get("required", [])],
                }
        return fit(merged, chance=chance, root=root, depth=depth + 1)
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = (
            "null" if "null" in kind and depth > 6 else kind[chance % len(kind)] if kind else None
        )
    if kind == "object" or "properties" in schema:
        return _fit_object(schema, chance=chance, root=root, depth=depth)
    if kind == "array":
        low = _number(schema.get("minItems"), 0)
        high = _number(schema.get("maxItems"), math.inf)
        count = int(max(low, min(high, 2 if depth <= 6 else 0)))
        items = schema.get("items", {"type": "string"})
        return [
            fit(items, chance=mix(chance ^ i), root=root, depth=depth + 1)
            for i in range(min(count, 64))
        ]
    if kind in {"integer", "number"}:
        return _fit_number(schema, chance=chance, whole=kind == "integer")
    if kind == "boolean":
        return chance % 2 == 1
    if kind == "null":
        return None
    return _fit_string(schema, chance=chance)


def _fit_object(schema: dict[str, Json], *, chance: int, root: Json, depth: int) -> dict[str, Json]:
    properties = schema.get("properties")
    if not isinstance(properties, dict):
        return {}
    required = schema.get("required", [])
    names = [n for n in properties if n in required] if depth > 6 else list(properties)
    if depth > 40:
        return {}
    return {
        name: fit(properties[name], chance=mix(chance ^ i), root=root, depth=depth + 1)
        for i, name in enumerate(names)
    }


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
