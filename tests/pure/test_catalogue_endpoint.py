"""Where calls go and what authenticates them, for every scheme and every cloud's addresses."""

from collections.abc import Mapping

import pytest
from msgspec import structs

from breakwater_gateway.config import not_served
from breakwater_gateway.config.catalogue import CATALOGUE
from breakwater_gateway.config.load import load_text
from breakwater_gateway.config.model import AuthScheme, Deployment, KeyRef, Wire
from breakwater_gateway.worker.endpoint import (
    Aws,
    Endpoint,
    endpoint,
    references,
    secret_values,
    secrets_of,
)
from breakwater_gateway.worker.wire.bedrock.sigv4 import Credentials
from breakwater_protocol import failures as f

KEYED = Deployment(
    id="d",
    provider="p",
    model="m",
    wire="openai",
    base_url="https://h/v1",
    api_keys=(KeyRef("env", "K0"), KeyRef("env", "K1")),
    headers=(("x-team", "acme"),),
)


@pytest.fixture(autouse=True)
def every_wire_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(not_served, "SERVED_WIRES", tuple(not_served.WIRES))


def deployment(text: str) -> Deployment:
    """The one deployment of a file without an environment."""
    tree = f"models: {{a*: {{deployments: [{{{text}}}]}}}}"
    return load_text(tree, source="f", environment={}).models["a*"].deployments[0]


def reach(
    found: Deployment, environment: Mapping[str, str], *, model: str = "m"
) -> Endpoint | f.KeyRejected:
    """The endpoint as a worker with this environment finds it."""
    given = secrets_of(found, 0, environment=environment, read_file=no_file)
    return given if not isinstance(given, dict) else endpoint(found, model=model, secrets=given)


def no_file(path: str) -> str:
    raise FileNotFoundError(path)


@pytest.mark.parametrize(
    ("auth", "headers", "query"),
    [
        ("bearer", (("authorization", "Bearer k&"),), ""),
        ("x-api-key", (("x-api-key", "k&"),), ""),
        ("api-key", (("api-key", "k&"),), ""),
        ("x-goog-api-key", (("x-goog-api-key", "k&"),), ""),
        ("api-subscription-key", (("api-subscription-key", "k&"),), ""),
        ("query", (), "key=k%26"),
        ("sigv4", (("authorization", "Bearer k&"),), ""),
        ("none", (), ""),
    ],
)
def test_a_key_goes_where_the_scheme_says(
    auth: AuthScheme, headers: tuple[tuple[str, str], ...], query: str
) -> None:
    found = reach(structs.replace(KEYED, auth=auth), {"K0": "k&"})
    expected = (("x-team", "acme"), *headers)
    assert found == Endpoint("https://h/v1", expected, query)


def test_without_a_key_no_header_says_so() -> None:
    for auth in ("bearer", "x-api-key", "query", "none"):
        bare = structs.replace(KEYED, api_keys=(), auth=auth, headers=())
        assert reach(bare, {}) == Endpoint("https://h/v1")


def test_a_path_is_added_before_the_query() -> None:
    plain, asked = Endpoint("https://h/v1"), Endpoint("https://h", query="key=k")
    assert plain.at("/chat/completions") == "https://h/v1/chat/completions"
    assert asked.at("/models/m:generateContent") == "https://h/models/m:generateContent?key=k"
    assert asked.at("/m:stream?alt=sse") == "https://h/m:stream?alt=sse&key=k"


AZURE = "model: azure/gpt 4o, params: {resource: acme"

URLS = [
    ("model: openai/x", "https://api.openai.com/v1", ""),
    ("model: anthropic/x", "https://api.anthropic.com/v1", ""),
    ("model: gemini/x", "https://generativelanguage.googleapis.com/v1beta", ""),
    ("model: cohere/x", "https://api.cohere.com", ""),
    (f"{AZURE}}}", "https://acme.openai.azure.com/openai/v1", ""),
    (f"{AZURE}, api_version: preview}}", "https://acme.openai.azure.com/openai/v1", "preview"),
    (
        f"{AZURE}, api_version: 2024-10-21}}",
        "https://acme.openai.azure.com/openai/deployments/gpt%204o",
        "2024-10-21",
    ),
    (
        "model: azure/x, base_url: 'https://a.openai.azure.com/openai/v1/'",
        "https://a.openai.azure.com/openai/v1",
        "",
    ),
    (
        "model: azure/x, base_url: 'https://a.openai.azure.com/openai', params: {api_version: 2024-06-01}",
        "https://a.openai.azure.com/openai/deployments/gpt%204o",
        "2024-06-01",
    ),
    (
        "model: azure/x, base_url: 'https://a.openai.azure.com/openai/deployments/b'",
        "https://a.openai.azure.com/openai/deployments/b",
        "2024-10-21",
    ),
    (
        "model: azure_ai/x, params: {resource: acme}",
        "https://acme.services.ai.azure.com/models",
        "2024-05-01-preview",
    ),
    (
        "model: azure_ai/claude-x, params: {resource: acme}",
        "https://acme.services.ai.azure.com/anthropic/v1",
        "",
    ),
    (
        "model: vertex/x, params: {project: p, location: europe-west4}",
        "https://europe-west4-aiplatform.googleapis.com/v1/projects/p/locations/europe-west4",
        "",
    ),
    (
        "model: vertex/claude-x, params: {project: p}",
        "https://aiplatform.googleapis.com/v1/projects/p/locations/global",
        "",
    ),
    (
        "model: bedrock/x, region: eu-central-1, api_key: env:K",
        "https://bedrock-runtime.eu-central-1.amazonaws.com",
        "",
    ),
    (
        "model: snowflake/x, params: {account: org-acme}",
        "https://org-acme.snowflakecomputing.com/api/v2/cortex/v1",
        "",
    ),
]


@pytest.mark.parametrize(("text", "url", "version"), URLS)
def test_the_url_is_filled_from_the_deployments_settings(text: str, url: str, version: str) -> None:
    found = deployment(text)
    there = {ref.name: "k" for ref in found.api_keys}
    at = reach(found, there, model="gpt 4o")
    assert isinstance(at, Endpoint)
    assert (at.url, at.query) == (url, f"api-version={version}" if version else "")
    assert len(at.headers) == 1


def test_settings_may_come_from_the_environment_of_the_worker() -> None:
    here = {"AZURE_API_KEY": "k", "AZURE_OPENAI_ENDPOINT": "https://acme.openai.azure.com/"}
    text = "models: {a: {deployments: [{model: azure/x}]}}"
    config = load_text(text, source="f", environment=here)
    at = reach(config.models["a"].deployments[0], here)
    assert isinstance(at, Endpoint)
    assert at.url == "https://acme.openai.azure.com/openai/v1"


AWS = {"AWS_REGION": "us-east-1", "AWS_ACCESS_KEY_ID": "AKID", "AWS_SECRET_ACCESS_KEY": "s3cret"}


def test_bedrock_without_a_key_is_to_be_signed() -> None:
    found = deployment("model: bedrock/x")
    at = reach(found, AWS)
    url = "https://bedrock-runtime.us-east-1.amazonaws.com"
    assert at == Endpoint(url, aws=Aws(Credentials("AKID", "s3cret"), "us-east-1"))
    for_a_while = reach(found, {**AWS, "AWS_SESSION_TOKEN": "t0ken"})
    assert isinstance(for_a_while, Endpoint)
    assert for_a_while.aws == Aws(Credentials("AKID", "s3cret", "t0ken"), "us-east-1")
    given = secrets_of(found, 0, environment=AWS, read_file=no_file)
    assert isinstance(given, dict)
    assert set(secret_values(given)) == {"AKID", "s3cret"}


@pytest.mark.parametrize(
    ("text", "environment", "said"),
    [
        ("model: groq/x", {}, "set the environment variable GROQ_API_KEY"),
        ("model: groq/x, api_key: file:/k", {}, "cannot read it from /k"),
        (
            "model: bedrock/x",
            {**AWS, "AWS_SECRET_ACCESS_KEY": ""},
            "setting aws_secret_access_key is missing: env:AWS_SECRET_ACCESS_KEY has no value",
        ),
        (
            "model: bedrock/x",
            {**AWS, "AWS_REGION": "us-east-1.example.com/"},
            "setting region (env:AWS_REGION) is not a region such as eu-central-1",
        ),
        (
            "model: azure/x, params: {resource: a}",
            {"AZURE_API_KEY": "k", "AZURE_API_VERSION": "1&x=y"},
            "setting api_version (env:AZURE_API_VERSION) is not a version of Azure's API",
        ),
    ],
)
def test_what_is_missing_or_malformed_is_named_and_no_secret_is_shown(
    text: str, environment: Mapping[str, str], said: str
) -> None:
    failure = reach(deployment(text), environment)
    assert isinstance(failure, f.KeyRejected)
    assert said in failure.message
    assert not any(v and v in failure.message for n, v in environment.items() if "REGION" not in n)


def test_an_endpoint_does_not_show_its_secrets() -> None:
    for auth in ("bearer", "query"):
        assert "s3cret" not in repr(reach(structs.replace(KEYED, auth=auth), {"K0": "s3cret"}))
    assert "s3cret" not in repr(reach(deployment("model: bedrock/x"), AWS))


def test_a_pools_keys_take_turns() -> None:
    assert [references(KEYED, n)["api_key"].name for n in range(3)] == ["K0", "K1", "K0"]


@pytest.mark.parametrize("id_", CATALOGUE)
def test_every_provider_of_the_catalogue_is_reached(id_: str) -> None:
    found = deployment(f"model: {id_}/*")
    here = {ref.name: _VALUES.get(name, "k") for name, ref in references(found, 0).items()}
    at = reach(found, here)
    assert isinstance(at, Endpoint)
    assert "{" not in at.url
    assert at.url.startswith(("https://", "http://127.0.0.1:"))
    wire: Wire = found.wire
    assert (at.aws is not None) == (wire == "bedrock")


_VALUES = {"region": "eu-central-1", "api_version": "2024-10-21", "host": "https://h.example.com"}
