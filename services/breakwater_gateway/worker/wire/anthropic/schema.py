"""JSON Schemas as structured output takes them.

Objects must be closed and constraints on numbers, strings and array lengths are refused with 400; they
are moved to the description, where the model still reads them.
Source: Anthropic documentation, "Structured outputs", section "JSON Schema limitations".
"""

from typing import Any, Final

import msgspec
from msgspec import Raw

DEPTH_MAX: Final = 64

_CONSTRAINTS: Final = (
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    *(
        "minLength",
        "maxLength",
        "maxItems",
        "uniqueItems",
        "contains",
        "minContains",
        "maxContains",
    ),
    *("minProperties", "maxProperties", "patternProperties", "propertyNames"),
    *(
        "dependentRequired",
        "dependentSchemas",
        "if",
        "then",
        "else",
        "not",
        "unevaluatedProperties",
    ),
)
_FORMATS: Final = frozenset(
    {
        *("date-time", "time", "date", "duration", "email", "hostname"),
        *("uri", "ipv4", "ipv6", "uuid"),
    }
)
_IN_MAPS: Final = ("properties", "$defs", "definitions")
_IN_LISTS: Final = ("anyOf", "allOf", "prefixItems")


def closed(schema: Raw) -> tuple[Raw, tuple[str, ...]]:
    """The schema in the API's subset, and the names of the keywords that are no longer enforced.

    A schema that is no object, or nested deeper than `DEPTH_MAX`, is returned as it came: the provider
    says what is wrong with it.
    """
    try:
        given = msgspec.json.decode(schema)
    except (msgspec.MsgspecError, RecursionError, UnicodeError):
        return schema, ()
    loosened: dict[str, None] = {}
    if not isinstance(given, dict) or not _close(given, loosened, DEPTH_MAX):
        return schema, ()
    return Raw(msgspec.json.encode(given)), tuple(loosened)


def _close(node: dict[str, Any], loosened: dict[str, None], depth: int) -> bool:
    """Change a schema node in place. False: too deep."""
    if depth == 0:
        return False
    if "oneOf" in node and "anyOf" not in node:
        node["anyOf"] = node.pop("oneOf")
        loosened["oneOf"] = None
    told: dict[str, Any] = {name: node.pop(name) for name in _CONSTRAINTS if name in node}
    if "minItems" in node and node["minItems"] not in (0, 1):
        told["minItems"] = node.pop("minItems")
    if isinstance(node.get("format"), str) and node["format"] not in _FORMATS:
        told["format"] = node.pop("format")
    kind = node.get("type")
    if kind == "object" or "properties" in node or (isinstance(kind, list) and "object" in kind):
        if node.get("additionalProperties", False) is not False:
            loosened["additionalProperties"] = None
        node["additionalProperties"] = False
    if told:
        loosened.update(dict.fromkeys(told))
        note = "; ".join(f"{name}: {msgspec.json.encode(v).decode()}" for name, v in told.items())
        said = node.get("description")
        node["description"] = f"{said}\n\n({note})" if isinstance(said, str) else f"({note})"
    return all(_close(child, loosened, depth - 1) for child in _children(node))


def _children(node: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[Any] = [node.get("items")]
    for name in _IN_MAPS:
        if isinstance(node.get(name), dict):
            found.extend(node[name].values())
    for name in _IN_LISTS:
        if isinstance(node.get(name), list):
            found.extend(node[name])
    return [child for child in found if isinstance(child, dict)]
