"""The catalogue is whole: every entry can be served, found by its other names, and shown."""

import re

import pytest

from breakwater_gateway.config import not_served
from breakwater_gateway.config.addresses import KEY_REF_PATTERN
from breakwater_gateway.config.catalogue import CATALOGUE, SPELLINGS, find
from breakwater_gateway.config.load import ConfigError, load_text
from breakwater_gateway.config.model import Config, Deployment, KeyRef, Wire
from breakwater_gateway.config.provider import (
    PARAMS,
    auth_of,
    fill,
    needs,
    places,
    places_fault,
    quirks_for,
    read_setting,
)
from breakwater_gateway.config.show import to_yaml
from breakwater_gateway.config.table import QUIRK_KEYS
from breakwater_gateway.config.unresolved import missing_keys
from breakwater_gateway.worker.wire.neutral import Target
from breakwater_gateway.worker.wire.openai_chat import quirks as openai_quirks

EVERY_WIRE = tuple(not_served.WIRES)


@pytest.fixture
def every_wire_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(not_served, "SERVED_WIRES", EVERY_WIRE)


def load(text: str, **environment: str) -> Config:
    return load_text(text, source="f", environment=environment)


def only(deployment: str, providers: str = "", **environment: str) -> Deployment:
    """The one deployment of a file, which is shown as it is read."""
    text = f"models: {{a*: {{deployments: [{{{deployment}}}]}}}}\nproviders: {{{providers}}}\n"
    config = load(text, **environment)
    assert load(to_yaml(config)) == config
    assert load(to_yaml(config), **environment) == config
    return config.models["a*"].deployments[0]


def refused(deployment: str, providers: str = "") -> str:
    with pytest.raises(ConfigError) as caught:
        only(deployment, providers)
    return str(caught.value)


def test_there_are_enough_of_them_and_no_name_means_two() -> None:
    assert len(CATALOGUE) >= 150
    assert list(CATALOGUE) == sorted(CATALOGUE)
    assert not set(CATALOGUE) & set(SPELLINGS)
    aliases = [alias for provider in CATALOGUE.values() for alias in provider.aliases]
    assert len(aliases) == len(set(aliases)) == len(SPELLINGS)
    assert {target for p in CATALOGUE.values() for _, target in p.others} <= set(CATALOGUE)


@pytest.mark.parametrize("id_", CATALOGUE)
def test_an_entry_is_complete(id_: str) -> None:
    provider = CATALOGUE[id_]
    local = provider.base_url.startswith("http://127.0.0.1:")
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", id_)
    assert local or provider.base_url.startswith("https://")
    assert bool(provider.key_variables) is not local
    assert not provider.base_url.endswith(("/", "/chat/completions", "/messages"))
    assert not places_fault(provider.base_url)
    assert provider.name.isascii()
    assert provider.name
    needed = needs(provider.base_url, provider.wire, provider.auth, keyed=False)
    assert {name for name, _ in provider.variables} <= set(needed)
    for names in (provider.key_variables, *(names for _, names in provider.variables)):
        assert all(re.fullmatch(KEY_REF_PATTERN, f"env:{name}") for name in names)


@pytest.mark.usefixtures("every_wire_served")
@pytest.mark.parametrize("id_", CATALOGUE)
def test_an_entry_is_loaded_as_it_stands(id_: str) -> None:
    provider = CATALOGUE[id_]
    for name in (id_, *provider.aliases):
        found = only(f"model: {name}/*")
        assert (found.provider, found.wire, found.auth) == (id_, provider.wire, provider.auth)
        assert (found.base_url, found.quirks) == (provider.base_url, provider.quirks)
        assert set(dict(found.params)) == set(
            needs(provider.base_url, provider.wire, provider.auth, keyed=bool(found.api_keys))
        )


def test_providers_that_are_served_unasked_share_neither_a_variable_nor_a_model() -> None:
    automatic = [p for p in CATALOGUE.values() if p.automatic]
    names = [name for provider in automatic for name in provider.key_variables]
    assert len(names) == len(set(names))
    models = [name for provider in automatic for name in provider.models]
    assert len(models) == len(set(models))


def test_what_other_tools_call_them() -> None:
    spellings = {
        "google": "gemini",
        "together_ai": "together",
        "togetherai": "together",
        "fireworks_ai": "fireworks",
        "fireworks-ai": "fireworks",
        "vertex_ai": "vertex",
        "google-vertex": "vertex",
        "amazon-bedrock": "bedrock",
        "azure_ai": "azure-ai",
        "cohere_chat": "cohere",
        "mistral-ai": "mistral",
        "x-ai": "xai",
        "moonshotai": "moonshot",
        "perplexity-ai": "perplexity",
        "hosted_vllm": "vllm",
        "ollama_chat": "ollama-native",
        "groq": "groq",
    }
    for spelling, id_ in spellings.items():
        found = find(spelling)
        assert found is not None
        assert found.id == id_
    assert find("nobody") is None


UNSERVED = [wire for wire in EVERY_WIRE if wire not in not_served.SERVED_WIRES]
"""Of which a provider is refused at load; nothing is left to test once all are served."""


@pytest.mark.parametrize("wire", EVERY_WIRE)
def test_a_provider_whose_dialect_is_not_served_is_refused_by_name(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(not_served, "SERVED_WIRES", tuple(w for w in EVERY_WIRE if w != wire))
    for provider in CATALOGUE.values():
        if provider.wire == wire:
            said = f"{not_served.WIRES[wire]} (provider {provider.id}) is not served by this"
            assert said in refused(f"model: {provider.id}/*")
            assert said in refused("model: neon/*", f"{provider.id}: {{http2: false}}")


@pytest.mark.parametrize("wire", UNSERVED)
def test_a_dialect_that_is_not_served_is_refused_for_hosts_of_ones_own(wire: str) -> None:
    said = refused("model: x/*", f"x: {{wire: {wire}, base_url: 'http://h/v1'}}")
    assert f"providers.x.wire: {not_served.WIRES[wire]} is not served" in said  # type: ignore[index]


# ---- settings


@pytest.mark.usefixtures("every_wire_served")
def test_settings_come_from_the_deployment_then_its_provider_then_the_environment() -> None:
    usual = only("model: vertex/*").params
    assert usual == (("location", "global"), ("project", KeyRef("env", "GOOGLE_CLOUD_PROJECT")))
    here = only("model: vertex/*", VERTEXAI_PROJECT="p", VERTEXAI_LOCATION="l").params
    assert here == (
        ("location", KeyRef("env", "VERTEXAI_LOCATION")),
        ("project", KeyRef("env", "VERTEXAI_PROJECT")),
    )
    both = only(
        "model: vertex/*, params: {location: europe-west4}",
        "vertex: {params: {project: acme, location: us-east5}}",
    )
    assert both.params == (("location", "europe-west4"), ("project", "acme"))


@pytest.mark.usefixtures("every_wire_served")
def test_claude_on_a_cloud_is_reached_in_its_own_dialect_with_the_clouds_settings() -> None:
    found = only("model: vertex_ai/claude-sonnet-4-5", "vertex: {params: {project: acme}}")
    assert (found.provider, found.wire, found.auth) == ("vertex-anthropic", "anthropic", "bearer")
    assert dict(found.params)["project"] == "acme"
    assert quirks_for(found) == {"provider": "vertex-anthropic", "host": "vertex"}
    foundry = only("model: azure_ai/claude-opus-4-1, params: {resource: acme}")
    assert (foundry.provider, foundry.auth) == ("azure-anthropic", "x-api-key")
    assert foundry.params == (("resource", "acme"),)


@pytest.mark.usefixtures("every_wire_served")
def test_bedrock_signs_unless_it_has_a_key() -> None:
    signed = only("model: bedrock/*, region: eu-central-1", AWS_REGION="us-east-1")
    assert (signed.auth, signed.api_keys) == ("sigv4", ())
    assert signed.params == (
        ("region", "eu-central-1"),
        ("aws_access_key_id", KeyRef("env", "AWS_ACCESS_KEY_ID")),
        ("aws_secret_access_key", KeyRef("env", "AWS_SECRET_ACCESS_KEY")),
        ("aws_session_token", KeyRef("env", "AWS_SESSION_TOKEN")),
    )
    here = {"AWS_BEARER_TOKEN_BEDROCK": "x", "AWS_DEFAULT_REGION": "y"}
    keyed = only("model: bedrock/*", **here)
    assert keyed.api_keys == (KeyRef("env", "AWS_BEARER_TOKEN_BEDROCK"),)
    assert keyed.params == (("region", KeyRef("env", "AWS_DEFAULT_REGION")),)


@pytest.mark.usefixtures("every_wire_served")
def test_a_setting_that_is_missing_here_is_reported_unless_it_is_optional() -> None:
    config = load("models: {a: {deployments: [{model: bedrock/x}, {model: azure/y}]}}")
    assert [str(each.ref) for each in missing_keys(config, {})] == [
        "env:AWS_REGION",
        "env:AWS_ACCESS_KEY_ID",
        "env:AWS_SECRET_ACCESS_KEY",
        "env:AZURE_API_KEY",
        "env:AZURE_RESOURCE_NAME",
    ]


@pytest.mark.usefixtures("every_wire_served")
@pytest.mark.parametrize(
    ("deployment", "said"),
    [
        ("model: groq/*, params: {region: eu-west-1}", "params.region: nothing uses it"),
        ("model: azure/*, params: {resource: 'https://a.b'}", "expected the name of an Azure res"),
        ("model: bedrock/*, region: eu", "expected a region such as eu-central-1, since the URL"),
        ("model: bedrock/*, params: {aws_access_key_id: AKIAABCDEFGHIJKL}", "a secret may not"),
        ("model: vertex/*, params: {projct: x}", 'unknown key; did you mean "project"?'),
        ("model: vllm/*, base_url: 'http://{hostt}/v1'", "in braces stands one of account, api_v"),
        ("model: vllm/*, base_url: 'http://{host/v1'", "its braces do not match"),
        ("model: vllm/*, base_url: 'http://{account}/v1'", '"account" is missing: an account'),
    ],
)
def test_a_mistake_in_a_setting_is_named(deployment: str, said: str) -> None:
    message = refused(deployment)
    assert said in message
    assert "AKIAABCDEFGHIJKL" not in message


@pytest.mark.parametrize(
    ("name", "text", "read"),
    [
        ("host", "https://adb-1.azuredatabricks.net/", "adb-1.azuredatabricks.net"),
        ("host", "gpu-1:8000", "gpu-1:8000"),
        ("host", "https://h/path", None),
        ("host", "user@h", None),
        ("resource", "https://acme.openai.azure.com/", "acme"),
        ("resource", "https://acme.cognitiveservices.azure.com/openai", "acme"),
        ("resource", "https://acme.services.ai.azure.com/models", "acme"),
        ("resource", "https://proxy.example.com/azure", None),
        ("resource", "https://acme.openai.azure.com.example.com/", None),
        ("resource", " acme ", "acme"),
        ("region", "eu-central-1/", None),
        ("project", "example.com:acme", "example.com:acme"),
        ("project", "../x", None),
        ("location", "global\nx", None),
    ],
)
def test_a_setting_is_read_from_what_other_tools_variables_hold(
    name: str, text: str, read: str | None
) -> None:
    assert read_setting(name, text) == read


def test_a_base_url_is_filled() -> None:
    url = CATALOGUE["vertex"].base_url
    assert places(url) == ["location_prefix", "project", "location"]
    there = fill(url, {"project": "p", "location": "europe-west4"})
    assert there == (
        "https://europe-west4-aiplatform.googleapis.com/v1/projects/p/locations/europe-west4"
    )
    everywhere = fill(url, {"project": "p", "location": "global"})
    assert everywhere == "https://aiplatform.googleapis.com/v1/projects/p/locations/global"


# ---- a file of one's own


@pytest.mark.usefixtures("every_wire_served")
def test_a_file_of_ones_own_overrides_any_field() -> None:
    found = only(
        "model: google/*",
        "google: {wire: openai, base_url: 'https://generativelanguage.googleapis.com/v1beta/openai',"
        " http2: false, headers: {x-a: b}, quirks: {top_k: true, drop: [seed]}}",
    )
    assert (found.provider, found.wire, found.auth, found.http2) == (
        "gemini",
        "openai",
        "bearer",
        False,
    )
    assert found.headers == (("x-a", "b"),)
    assert quirks_for(found) == {"provider": "gemini", "top_k": True, "drop": ("seed",)}
    assert found.api_keys == (KeyRef("env", "GEMINI_API_KEY"),)
    bare = only("model: groq/*", "groq: {auth: api-key, api_key: env:MINE}")
    assert (bare.auth, bare.api_keys) == ("api-key", (KeyRef("env", "MINE"),))


@pytest.mark.parametrize("wire", not_served.SERVED_WIRES)
def test_a_host_of_ones_own_takes_a_key_as_its_dialects_hosts_do(wire: Wire) -> None:
    found = only("model: x/*", f"x: {{wire: {wire}, base_url: 'http://h/v1', api_key: env:K}}")
    assert (found.wire, found.auth) == (wire, auth_of(wire))


def test_one_provider_may_not_be_described_under_two_names() -> None:
    providers = "together: {http2: false}, together_ai: {http2: true}"
    said = refused("model: together/*", providers)
    assert 'providers.together_ai: the same provider as "together"' in said


# ---- quirks


def test_the_quirks_that_a_file_may_name_are_those_that_the_dialects_read() -> None:
    ours = {key.name for key in QUIRK_KEYS}
    theirs = set(openai_quirks.Quirks.__struct_fields__)
    # How Azure is called, and what no short value says, is not a file's to tell.
    assert theirs - ours == {
        *("dialect", "rename", "key_header", "azure_path", "api_version"),
    }
    used = {name for provider in CATALOGUE.values() for name, _ in provider.quirks}
    assert used <= ours
    for provider in CATALOGUE.values():
        openai_quirks.of(Target(model="m", quirks=dict(provider.quirks)))


def test_every_setting_is_described() -> None:
    for param in PARAMS.values():
        assert param.expected[0].islower() or param.expected.startswith("AWS")
        assert not re.search(param.pattern, "a b") or not re.fullmatch(param.pattern, "a b")
