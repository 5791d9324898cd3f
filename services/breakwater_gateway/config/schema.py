"""JSON Schema 2020-12 of `breakwater.yaml`, made from the table that the loader reads by.

Beyond it the loader checks what a schema cannot say: providers that exist, ids that are unique, weights
that are not all zero, routes that lead somewhere, timeouts that fit each other, prices that are exact,
URLs with a host, no secrets, and the bounds of what JSON sees as text (durations, quoted numbers).
Patterns are ECMA 262's, whose `$` is the end; Python's `re` lets a line break follow it.
"""

from breakwater_gateway.config.kinds import JsonSchema
from breakwater_gateway.config.table import ROOT


def json_schema() -> JsonSchema:
    """The schema of the whole file."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "breakwater.yaml",
        "description": "The configuration of Breakwater, an LLM gateway.",
        **ROOT.schema(),
    }
