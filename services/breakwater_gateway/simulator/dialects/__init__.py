"""The APIs that the simulator speaks, by name."""

from collections.abc import Mapping
from typing import Final

from breakwater_gateway.simulator.dialects.anthropic import Anthropic, VertexClaude
from breakwater_gateway.simulator.dialects.azure import Azure, AzureResponses
from breakwater_gateway.simulator.dialects.bedrock import Bedrock
from breakwater_gateway.simulator.dialects.cohere import Cohere
from breakwater_gateway.simulator.dialects.dialect import Dialect
from breakwater_gateway.simulator.dialects.gemini import Gemini, Vertex
from breakwater_gateway.simulator.dialects.mistral import Mistral
from breakwater_gateway.simulator.dialects.ollama import Ollama
from breakwater_gateway.simulator.dialects.openai import OpenAI
from breakwater_gateway.simulator.dialects.responses import Responses

DIALECTS: Final[Mapping[str, Dialect]] = {
    dialect.name: dialect
    for dialect in (
        OpenAI(),
        Mistral(),
        Responses(),
        Azure(),
        AzureResponses(),
        Anthropic(),
        VertexClaude(),
        Gemini(),
        Vertex(),
        Bedrock(),
        Cohere(),
        Ollama(),
    )
}
