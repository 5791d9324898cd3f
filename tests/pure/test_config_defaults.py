"""The catalogue, the configuration without a file, and what the bucket holds."""

from pathlib import Path

import pytest

from breakwater_gateway.config.catalogue import CATALOGUE
from breakwater_gateway.config.codec import (
    BadStored,
    Stored,
    decode,
    decode_stored,
    digest,
    encode,
    encode_stored,
    load_stored,
    stored_defaults,
)
from breakwater_gateway.config.defaults import default_config
from breakwater_gateway.config.load import load_text
from breakwater_gateway.config.model import Config, KeyRef
from breakwater_gateway.config.provider import PARAMS
from breakwater_gateway.config.unresolved import missing_keys

SIMULATOR = "http://127.0.0.1:9/"
EXAMPLE = Path(__file__).parents[2] / "ops" / "breakwater.yaml"


def default(**environment: str) -> Config:
    return default_config(environment, simulator_url=SIMULATOR)


def test_without_keys_the_simulator_answers() -> None:
    config = default()
    assert config.simulator
    assert list(config.models) == [
        "main-model",
        "fast-classifier",
        "gpt-4o",
        "gpt-4o-mini",
        "text-embedding-3-small",
    ]
    main = config.models["main-model"]
    assert main.strategy == "least-busy"
    assert [(d.id, d.base_url, d.api_keys) for d in main.deployments] == [
        ("sim-a", "http://127.0.0.1:9/a/v1", ()),
        ("sim-b", "http://127.0.0.1:9/b/v1", ()),
        ("sim-c", "http://127.0.0.1:9/c/v1", ()),
    ]
    assert missing_keys(config, {}) == []


def test_with_keys_each_provider_is_served_by_prefix_and_openai_by_its_plain_names() -> None:
    config = default(OPENAI_API_KEY="x", GROQ_API_KEY="y", TOGETHER_API_KEY="")
    assert not config.simulator
    assert {"gpt-4o", "gpt-4o-mini", "text-embedding-3-small", "openai/*", "groq/*"} <= set(
        config.models
    )
    assert "together/*" not in config.models
    found = config.model("groq/llama-3.3-70b-versatile")
    assert found is not None
    assert found.deployments[0].api_keys == (KeyRef("env", "GROQ_API_KEY"),)
    assert missing_keys(config, {"OPENAI_API_KEY": "x", "GROQ_API_KEY": "y"}) == []


def test_a_provider_with_a_family_of_models_answers_to_their_prefix() -> None:
    config = default(OPENAI_API_KEY="x")
    found = config.model("gpt-9-turbo")
    assert found is not None
    [deployment] = found.deployments
    assert deployment.id == "openai/gpt-*"
    assert deployment.provider_model("gpt-9-turbo", name=found.name) == "gpt-9-turbo"
    other = config.model("openai/gpt-9-turbo")
    assert other is not None
    assert other.deployments[0].provider_model("openai/gpt-9", name=other.name) == "gpt-9"


def test_a_provider_that_needs_more_than_a_key_waits_for_it() -> None:
    here = {"NEON_AI_GATEWAY_TOKEN": "x"}
    assert default(**here).simulator
    found = default(**here, NEON_AI_GATEWAY_BASE_URL="https://gw.neon.tech")
    assert found.models["neon/*"].deployments[0].params == (
        ("host", KeyRef("env", "NEON_AI_GATEWAY_BASE_URL")),
    )


def test_a_credential_for_something_else_serves_nobody_unasked() -> None:
    assert default_config({"GITHUB_TOKEN": "x"}, simulator_url=SIMULATOR).simulator


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OPENAI_API_KEY": "x"},
        {p.key_variables[0]: "x" for p in CATALOGUE.values() if p.key_variables},
        {
            name: "x"
            for p in CATALOGUE.values()
            for name in (*p.key_variables, *(n for _, names in p.variables for n in names))
        }
        | {name: "x" for param in PARAMS.values() for name in param.variables},
    ],
)
def test_a_configuration_without_a_file_is_stored_as_text_that_loads_as_itself(
    environment: dict[str, str],
) -> None:
    config = default_config(environment, simulator_url=SIMULATOR)
    ids = [d.id for model in config.models.values() for d in model.deployments]
    assert len(ids) == len(set(ids))
    stored = decode_stored(encode_stored(stored_defaults(config)))
    assert load_stored(stored, environment) == config
    assert load_stored(stored, {}) == config


def test_a_resolved_configuration_is_read_back_and_named_by_its_content() -> None:
    config = default()
    assert decode(encode(config)) == config
    assert digest(encode(config)) == digest(encode(default()))
    assert digest(encode(config)) != digest(encode(default(OPENAI_API_KEY="x")))


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[]", b'{"source":1,"text":""}', b"\xff", b"[" * 10**6]
)
def test_bytes_of_another_kind_are_refused(data: bytes) -> None:
    with pytest.raises(BadStored):
        decode_stored(data)
    with pytest.raises(BadStored):
        decode(data)


def test_a_later_version_may_add_fields_to_what_is_stored() -> None:
    assert decode_stored(b'{"source":"a","text":"b","later":[1]}') == Stored("a", "b")


def test_the_example_is_good_and_its_first_model_needs_no_key() -> None:
    config = load_text(EXAMPLE.read_bytes(), source="ops/breakwater.yaml", environment={})
    assert [each.ref.name for each in missing_keys(config, {})] == [
        "OPENAI_API_KEY",
        "GROQ_API_KEY",
    ]
    assert all(not d.api_keys for d in config.models["main-model"].deployments)
