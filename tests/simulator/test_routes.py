"""Where paths lead."""

import pytest

from breakwater_gateway.simulator.dialects import DIALECTS
from breakwater_gateway.simulator.routes import find

CLAUDE = "/v1/projects/p/locations/us-east5/publishers/anthropic/models/claude-x:streamRawPredict"


@pytest.mark.parametrize(
    ("path", "dialect", "endpoint", "model"),
    [
        ("/v1/chat/completions", "openai", "chat", ""),
        ("/v1/models/gpt-4o", "openai", "models", "gpt-4o"),
        ("/v1/models/org/model", "openai", "models", "org/model"),
        ("/v1/responses", "responses", "chat", ""),
        ("/v1/messages", "anthropic", "chat", ""),
        ("/v1/messages/count_tokens", "anthropic", "count_tokens", ""),
        ("/v1beta/models/g-2:generateContent", "gemini", "chat", "g-2"),
        ("/v1/models/g-2:streamGenerateContent", "gemini", "chat", "g-2"),
        ("/v1beta/models/g-2:batchEmbedContents", "gemini", "embeddings", "g-2"),
        ("/v1beta/models/g-2:countTokens", "gemini", "count_tokens", "g-2"),
        (
            "/v1beta1/projects/p/locations/l/publishers/google/models/g-2:predict",
            "vertex",
            "embeddings",
            "g-2",
        ),
        (CLAUDE, "vertex_claude", "chat", "claude-x"),
        ("/openai/deployments/my-gpt/chat/completions", "azure", "chat", "my-gpt"),
        ("/openai/deployments/my-gpt/embeddings", "azure", "embeddings", "my-gpt"),
        ("/openai/responses", "azure_responses", "chat", ""),
        ("/model/amazon.nova-lite-v1:0/converse", "bedrock", "chat", "amazon.nova-lite-v1:0"),
        ("/model/arn:aws:bedrock:x/y/converse-stream", "bedrock", "chat", "arn:aws:bedrock:x/y"),
        ("/v2/chat", "cohere", "chat", ""),
        ("/v2/embed", "cohere", "embeddings", ""),
        ("/api/chat", "ollama", "chat", ""),
        ("/api/tags", "ollama", "models", ""),
    ],
)
def test_every_path_has_its_dialect_with_and_without_a_lane(
    path: str, dialect: str, endpoint: str, model: str
) -> None:
    for lane in ("", "west"):
        route = find(f"/{lane}{path}" if lane else path)
        assert route is not None
        assert (route.lane, route.dialect, route.endpoint, route.model) == (
            lane,
            dialect,
            endpoint,
            model,
        )
        assert route.dialect in DIALECTS


def test_azure_s_paths_without_a_deployment_need_a_lane() -> None:
    for path in ("/openai/v1/chat/completions", "/models/chat/completions"):
        route = find("/west" + path)
        assert route is not None
        assert (route.lane, route.dialect) == ("west", "azure")
    route = find("/openai/v1/chat/completions")
    assert route is not None
    assert (route.lane, route.dialect) == ("openai", "openai")


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v1",
        "/a/b/v1/models",
        "/v1beta/models/g:unknown",
        "/v1/projects/p/locations/l/publishers/google/models/g:rawPredict",
        "/v1/projects/p/locations/l/publishers/anthropic/models/c:predict",
        "/model//converse",
        "/west/",
        "//v1/messages",
    ],
)
def test_other_paths_lead_nowhere(path: str) -> None:
    assert find(path) is None
