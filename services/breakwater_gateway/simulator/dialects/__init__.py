"""The APIs that the simulator speaks, by name."""

from collections.abc import Mapping
from typing import Final

from breakwater_gateway.simulator.dialects.anthropic import Anthropic, VertexClaude
from breakwater_gateway.simulator.dialects.dialect import Dialect
from breakwater_gateway.simulator.dialects.openai import OpenAI
from breakwater_gateway.simulator.dialects.responses import Responses

DIALECTS: Final[Mapping[str, Dialect]] = {
    dialect.name: dialect for dialect in (OpenAI(), Responses(), Anthropic(), VertexClaude())
}
