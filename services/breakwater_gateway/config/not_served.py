"""What the public contract names and this version does not serve yet: refused by name, never ignored.

One table: serving a feature means deleting its row (and adding its key to `table.py`).
"""

from typing import Final

KEYS: Final[dict[str, dict[str, str]]] = {
    "": {
        "embeddings": "semantic matching by embeddings",
        "budgets": "budgeting",
        "static_answers": "answering from a written list",
    },
    "models.*": {
        "cache": "caching",
        "on_context_length": "a policy for context length",
        "on_content_filter": "a policy for content filters",
        "ladder": "the degradation ladder",
    },
    "telemetry": {
        "otlp": "export over OTLP",
        "record_content": "recording of contents",
    },
}
"""By section, then key: what to call it."""

VALUES: Final[dict[str, dict[str, str]]] = {
    "models.*.strategy": {
        "latency": "the strategy latency",
        "cost": "the strategy cost",
        "usage": "the strategy usage",
        "priority": "the strategy priority",
    },
    "auth.mode": {"keys": "the mode keys"},
    "providers.*.wire": {
        "anthropic": "Anthropic's dialect",
        "azure": "Azure's dialect",
        "bedrock": "Bedrock's dialect",
        "cohere": "Cohere's dialect",
        "gemini": "Gemini's dialect",
        "ollama": "Ollama's own dialect",
        "vertex": "Vertex AI's dialect",
    },
}
"""By key, then value: what to call it."""

PROVIDERS: Final[dict[str, str]] = {
    "anthropic": "Anthropic's dialect",
    "azure": "Azure's dialect",
    "bedrock": "Bedrock's dialect",
    "cohere": "Cohere's dialect",
    "gemini": "Gemini's dialect",
    "vertex": "Vertex AI's dialect",
}
"""Well-known providers whose dialect is not spoken yet."""
