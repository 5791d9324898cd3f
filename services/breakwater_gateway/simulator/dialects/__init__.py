"""The APIs that the simulator speaks, by name."""

from collections.abc import Mapping
from typing import Final

from breakwater_gateway.simulator.dialects.dialect import Dialect
from breakwater_gateway.simulator.dialects.openai import OpenAI

DIALECTS: Final[Mapping[str, Dialect]] = {"openai": OpenAI()}
