"""What the public contract names and this version does not serve yet: refused by name, never ignored.

One table: serving a feature means deleting its row (and adding its key to `table.py`), or, for a dialect,
adding it to `SERVED_WIRES`.
"""

from typing import Final

from breakwater_gateway.config.model import Wire

SERVED_WIRES: tuple[Wire, ...] = (
    *("openai", "azure", "mistral", "responses", "anthropic"),
    *("gemini", "vertex", "bedrock", "cohere", "ollama"),
)
"""The dialects of providers that the worker speaks."""

WIRES: Final[dict[Wire, str]] = {
    "openai": "OpenAI's dialect",
    "responses": "the Responses dialect",
    "anthropic": "Anthropic's dialect",
    "gemini": "Gemini's dialect",
    "vertex": "Vertex AI's dialect",
    "azure": "Azure's dialect",
    "bedrock": "Bedrock's dialect",
    "cohere": "Cohere's dialect",
    "ollama": "Ollama's own dialect",
    "mistral": "Mistral's dialect",
}
"""Every dialect: what to call it."""

KEYS: Final[dict[str, dict[str, str]]] = {
    "": {},
    "models.*": {},
}
"""By section, then key: what to call it."""

VALUES: Final[dict[str, dict[str, str]]] = {
    "providers.*.wire": {wire: name for wire, name in WIRES.items() if wire not in SERVED_WIRES},
    "telemetry.record_content": {"true": "recording of prompts and answers"},
}
"""By key, then value: what to call it."""
