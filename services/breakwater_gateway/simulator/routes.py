"""Paths of every provider's API, each under a lane of its own: `/<lane>/<path>`, or without a lane.

| API | paths |
|---|---|
| OpenAI, Mistral | `v1/chat/completions`, `v1/embeddings`, `v1/models[/ID]`; OpenAI: `v1/responses` |
| Anthropic | `v1/messages`, `v1/messages/count_tokens` |
| Gemini | `v1|v1beta/models/M:generateContent`, `:streamGenerateContent`, `:embedContent`, `:batchEmbedContents`, `:countTokens` |
| Vertex | `v1|v1beta1/projects/P/locations/L/publishers/google/models/M:…`, also `:predict`; `publishers/anthropic/models/M:rawPredict`, `:streamRawPredict` |
| Azure | `openai/deployments/D/chat/completions`, `…/embeddings`, `openai/responses`; within a lane also `openai/v1/…` and `models/chat/completions` |
| Bedrock | `model/ID/converse`, `model/ID/converse-stream`; for embeddings `model/ID/invoke` |
| Cohere | `v2/chat`, `v2/embed` |
| Ollama | `api/chat`, `api/embed`, `api/tags` |
"""

import re
from typing import Final

from breakwater_gateway.simulator.dialects.dialect import Endpoint, Route

_LANE: Final = r"(?:/(?P<lane>[^/]+))?"

_PLAIN: Final[tuple[tuple[str, str, Endpoint, str], ...]] = (
    ("/v1/chat/completions", "openai", "chat", "POST"),
    ("/v1/embeddings", "openai", "embeddings", "POST"),
    ("/v1/responses", "responses", "chat", "POST"),
    ("/v1/messages", "anthropic", "chat", "POST"),
    ("/v1/messages/count_tokens", "anthropic", "count_tokens", "POST"),
    ("/v2/chat", "cohere", "chat", "POST"),
    ("/v2/embed", "cohere", "embeddings", "POST"),
    ("/api/chat", "ollama", "chat", "POST"),
    ("/api/embed", "ollama", "embeddings", "POST"),
    ("/api/tags", "ollama", "models", "GET"),
    ("/openai/responses", "azure_responses", "chat", "POST"),
    ("/v1beta/models", "gemini", "models", "GET"),
)
_SECOND: Final = {
    # Only behind a lane: without one, the first segment is the lane of OpenAI's own path.
    "/openai/v1/chat/completions": ("azure", "chat"),
    "/openai/v1/embeddings": ("azure", "embeddings"),
    "/openai/v1/responses": ("azure_responses", "chat"),
    "/models/chat/completions": ("azure", "chat"),
}
_OF_PATH: Final = {path: (dialect, endpoint, method) for path, dialect, endpoint, method in _PLAIN}

_MODELS: Final = re.compile(_LANE + r"/v1/models(?:/(?P<model>[^:]{1,512}))?", re.DOTALL)
_GOOGLE: Final = re.compile(
    _LANE
    + r"/(?:v1|v1beta)/models/(?P<model>[^/:]{1,512}):(?P<action>generateContent|streamGenerateContent"
    r"|embedContent|batchEmbedContents|countTokens)"
)
_VERTEX: Final = re.compile(
    _LANE
    + r"/(?:v1|v1beta1)/(?P<parent>projects/[^/]+/locations/[^/]+/publishers/(?P<publisher>google"
    r"|anthropic))/models/(?P<model>[^/:]{1,512}):(?P<action>[A-Za-z]{1,40})"
)
_AZURE: Final = re.compile(
    _LANE + r"/openai/deployments/(?P<model>[^/]{1,512})/(?P<action>chat/completions|embeddings)"
)
_BEDROCK: Final = re.compile(
    # The model may be an ARN, whose slashes were escaped.
    _LANE + r"/model/(?P<model>.{1,2048})/(?P<action>converse|converse-stream|invoke)",
    re.DOTALL,
)
_ACTIONS: Final[dict[str, Endpoint]] = {
    "generateContent": "chat",
    "streamGenerateContent": "chat",
    "embedContent": "embeddings",
    "batchEmbedContents": "embeddings",
    "predict": "embeddings",
    "countTokens": "count_tokens",
}
_CLAUDE: Final = frozenset({"rawPredict", "streamRawPredict"})


def find(path: str) -> Route | None:
    """Where a decoded path leads; None when nothing is there."""
    found = _plain(path)
    if found is not None:
        return found
    if match := _MODELS.fullmatch(path):
        return Route(
            match["lane"] or "", "openai", "models", method="GET", model=match["model"] or ""
        )
    if match := _GOOGLE.fullmatch(path):
        return Route(
            match["lane"] or "",
            "gemini",
            _ACTIONS[match["action"]],
            model=match["model"],
            action=match["action"],
        )
    if match := _VERTEX.fullmatch(path):
        return _vertex(match)
    if match := _AZURE.fullmatch(path):
        return Route(
            match["lane"] or "",
            "azure",
            "embeddings" if match["action"] == "embeddings" else "chat",
            model=match["model"],
            action="versioned",
        )
    if match := _BEDROCK.fullmatch(path):
        return Route(
            match["lane"] or "",
            "bedrock",
            "embeddings" if match["action"] == "invoke" else "chat",
            model=match["model"],
            action=match["action"],
        )
    return None


def _plain(path: str) -> Route | None:
    known = _OF_PATH.get(path)
    lane = ""
    if known is None:
        lane, found, rest = path[1:].partition("/")
        if not found or not lane:
            return None
        known = _OF_PATH.get("/" + rest)
        if known is None:
            second = _SECOND.get("/" + rest)
            if second is None:
                return None
            dialect, kind = second
            return Route(lane, dialect, "embeddings" if kind == "embeddings" else "chat")
    dialect, endpoint, method = known
    action = "versioned" if dialect == "azure_responses" else ""
    return Route(lane, dialect, endpoint, method=method, action=action)


def _vertex(match: re.Match[str]) -> Route | None:
    action = match["action"]
    if match["publisher"] == "anthropic":
        if action not in _CLAUDE:
            return None
        return Route(
            match["lane"] or "", "vertex_claude", "chat", model=match["model"], action=action
        )
    endpoint = _ACTIONS.get(action)
    if endpoint is None:
        return None
    return Route(match["lane"] or "", "vertex", endpoint, model=match["model"], action=action)
