"""The published JSON Schema and the loader accept the same files."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from breakwater_gateway.config import not_served
from breakwater_gateway.config.kinds import JsonSchema, ListOf, MapOf
from breakwater_gateway.config.load import ConfigError, load_text
from breakwater_gateway.config.model import KeyRef
from breakwater_gateway.config.problems import Report
from breakwater_gateway.config.schema import json_schema
from breakwater_gateway.config.sections import Section
from breakwater_gateway.config.show import to_yaml
from breakwater_gateway.config.table import ROOT
from breakwater_gateway.config.yaml_tree import parse

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

SCHEMA = json_schema()
VALIDATOR = Draft202012Validator(SCHEMA)
SAMPLE = Path(__file__).parents[2] / "ops" / "examples" / "breakwater.yaml"

DEPLOYMENT = {"model": "openai/x"}
MODEL = {"deployments": [DEPLOYMENT]}
FULL: dict[str, Any] = {
    "models": {
        "a": {
            "strategy": "least-busy",
            "routes": [
                {
                    "when": {
                        "user": "u",
                        "org": ["o", "p"],
                        "feature": "search",
                        "property": {"tier": ["free", "trial"]},
                        "priority": ["batch"],
                        "stream": False,
                        "tokens_above": 10,
                        "tokens_below": 1000,
                    },
                    "deployments": ["x"],
                    "region": "eu",
                },
                {"when": {"priority": "critical"}, "region": "property.region"},
            ],
            "unsupported_params": "refuse",
            "deployments": [
                {
                    "model": "openai/gpt-4o",
                    "api_key": ["env:A", "file:/b"],
                    "id": "x",
                    "weight": 1,
                    "order": 0,
                    "region": "eu",
                    "pool": "p",
                    "max_in_flight": 1,
                    "rpm": 1,
                    "tpm": "1_000",
                    "base_url": "https://{account}.api.openai.com/v1",
                    "params": {"account": "acme"},
                    "context_window": 10,
                    "max_output": 5,
                    "capabilities": ["vision", "tools", "json", "audio"],
                    "price": {"input": 0.035, "output": 2},
                    "headers": {"x-y": "z"},
                    "http2": True,
                }
            ],
            "timeouts": {"connect": "1s", "ttft": "250ms", "idle": "1.5s", "total": "1m30s"},
            "retry": {
                "attempts": 3,
                "base": "1s",
                "cap": "2s",
                "budget": 0.5,
                "jitter": "plus50",
                "max_cost": "0.25",
            },
            "breaker": {
                "window": "1s",
                "min_requests": 1,
                "failure_rate": 1,
                "consecutive": 1,
                "open": "1s",
                "open_cap": "1h",
                "ramp": "30s",
                "probe": "active",
            },
            "on_context_length": "summarize:b",
            "on_content_filter": "model:b",
            "on_cut": "continue",
            "hedge": {"after": "2s", "max": 1},
            "ladder": ["cache", "stale", "simple_model:b", "static", "error"],
            "cache": {
                "exact": "off",
                "semantic": {
                    "threshold": "certified",
                    "target": 0.02,
                    "ttl": "1h",
                    "veto": "numbers",
                    "margin": 0.1,
                    "shadow": 0,
                },
                "stale_if_error": "1d",
                "scope": "user",
                "sampled": True,
            },
        },
        "b": {"deployments": [{"model": "openai/gpt-4o-mini"}]},
    },
    "embeddings": {"model": "b"},
    "static_answers": [{"questions": ["When are you open?"], "answer": "Every day."}],
    "static_threshold": 0.5,
    "static_similarity": 0.9,
    "static_default": "Nobody can answer right now.",
    "providers": {
        "p": {
            "wire": "openai",
            "base_url": "http://h/v1",
            "api_key": "env:P",
            "auth": "x-api-key",
            "params": {
                "resource": "acme",
                "region": "eu-central-1",
                "project": "example.com:acme",
                "location": "europe-west4",
                "account": 123,
                "host": "gpu-1:8000",
                "api_version": "2024-10-21",
                "aws_access_key_id": "env:A",
                "aws_secret_access_key": "file:/b",
                "aws_session_token": "env:C",
            },
            "quirks": {
                "provider": "groq",
                "max_tokens_field": "max_tokens",
                "developer_role": True,
                "reasoning": "effort",
                "reasoning_field": "reasoning",
                "thoughts_beside": False,
                "drop": ["seed", "logit_bias"],
                "only": ["model"],
                "top_k": True,
                "stream_options": False,
                "tool_choice_required": "any",
                "allowed_tools": False,
                "json_schema": False,
                "document_url": "file_url",
                "video_url": True,
                "tool_images": True,
                "text_lists": False,
                "short_ids": True,
                "signatures": False,
                "thinking_blocks": False,
                "host": "vertex",
                "anthropic_version": "vertex-2023-10-16",
                "thinking": "budget",
                "sampling": "one",
                "structured": True,
                "system_turns": False,
                "max_output_default": 8192,
                "vertex": False,
                "openapi_schema": True,
                "call_ids": False,
            },
            "headers": {"a": "b"},
            "http2": False,
        }
    },
    "budgets": [
        {
            "account": "user:*",
            "tokens": 100_000,
            "per": "day",
            "timezone": "Europe/Berlin",
            "soft": [0.5, 0.8],
            "action": "clamp",
            "webhook": "https://hooks.example.com/budget",
        },
        {"account": "org:acme", "usd": 500, "per": "rolling 24h", "webhook": "env:HOOK"},
    ],
    "rate_limits": [{"account": "key:*", "requests": 60, "tokens": 100_000, "concurrent": 10}],
    "auth": {"mode": "open"},
    "telemetry": {
        "log": "json",
        "level": "debug",
        "otlp": "env:OTEL_EXPORTER_OTLP_ENDPOINT",
        "traces": {"sample": 0.1, "slow": "5s"},
        "record_content": False,
    },
    "limits": {
        "body_bytes": 2048,
        "answer_bytes": 2048,
        "connections": 1,
        "in_flight": 1,
        "cache_bytes": 1048576,
        "cache_store_bytes": 2000000,
        "cache_index_bytes": 2000000,
        "cache_answer_bytes": 2048,
    },
}


def sections(
    kind: object, schema: JsonSchema, path: str = ""
) -> dict[str, tuple[set[str], set[str]]]:
    """By path: the keys that the loader knows and the keys that the schema names."""
    if isinstance(kind, MapOf):
        return sections(kind.item, schema["additionalProperties"], f"{path}.*")
    if isinstance(kind, ListOf):
        return sections(kind.item, schema["items"], f"{path}[]")
    if not isinstance(kind, Section):
        return {}
    found = {path: ({key.name for key in kind.keys}, set(schema["properties"]))}
    for key in kind.keys:
        found |= sections(key.kind, schema["properties"][key.name], f"{path}.{key.name}")
    return found


def loader_takes(tree: object) -> bool:
    """Whether the table alone takes it: no look at what only makes sense together."""
    report = Report("f")
    root = parse(json.dumps(tree), report)
    assert root is not None
    ROOT.read(root, (), report)
    return not report.problems


def test_the_schema_is_a_valid_schema() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    json.dumps(SCHEMA)


def test_a_file_with_every_key_is_good_for_both() -> None:
    VALIDATOR.validate(FULL)
    load_text(json.dumps(FULL), source="f", environment={})


def test_the_sample_is_good_for_both() -> None:
    text = SAMPLE.read_text()
    VALIDATOR.validate(yaml.safe_load(text))
    faq = (SAMPLE.parent / "faq.yaml").read_bytes()
    config = load_text(text, source="f", environment={}, read_file=lambda _: faq)
    assert config.telemetry.otlp == KeyRef("env", "OTEL_EXPORTER_OTLP_ENDPOINT")
    assert len(config.static_answers.entries) == 2
    assert load_text(to_yaml(config), source="f", environment={}) == config


def test_every_key_of_the_loader_is_in_the_schema_and_in_the_full_file() -> None:
    found = sections(ROOT, SCHEMA)
    assert len(found) > 8
    for known, named in found.values():
        assert known == named
    used = {
        ".models.*": FULL["models"]["a"],
        ".models.*.deployments[]": FULL["models"]["a"]["deployments"][0],
    }
    used |= {
        "": FULL,
        ".providers.*": FULL["providers"]["p"],
        ".providers.*.params": FULL["providers"]["p"]["params"],
        ".providers.*.quirks": FULL["providers"]["p"]["quirks"],
    }
    for path, tree in used.items():
        assert found[path][0] == set(tree)


@pytest.mark.parametrize("path", sorted(not_served.KEYS))
def test_a_key_that_is_not_served_is_refused_by_both(path: str) -> None:
    for key in not_served.KEYS[path]:
        tree = json.loads(json.dumps(FULL))
        place = tree
        for step in filter(None, path.split(".")):
            place = place["a" if step == "*" else step]
        place[key] = {}
        assert not VALIDATOR.is_valid(tree)
        with pytest.raises(ConfigError, match="is not served by this version"):
            load_text(json.dumps(tree), source="f", environment={})


@pytest.mark.parametrize("path", sorted(not_served.VALUES))
def test_a_value_that_is_not_served_is_refused_by_both(path: str) -> None:
    *steps, last = path.split(".")
    for value in not_served.VALUES[path]:
        tree = json.loads(json.dumps(FULL))
        place = tree
        for step in steps:
            place = place[next(iter(place)) if step == "*" else step]
        place[last] = value
        assert not VALIDATOR.is_valid(tree)
        with pytest.raises(ConfigError, match="is not served by this version"):
            load_text(json.dumps(tree), source="f", environment={})


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(["10s", "1m30s", "1s1m", "s", "", "0.5s", ".5s", "1h", "250ms", " 10s"]),
    st.sampled_from(["env:A", "env:", "env:A-B", "file:/x", "file:", "skabc", "true", "yes", "on"]),
    st.sampled_from(["eu-central-1", "acme", "a:b", "2024-10-21", "max_tokens", "budget", 0, 7]),
    st.sampled_from(["http://h/v1", "https://h", "ftp://h", "http://h/v1?a=b", "http://a b"]),
    st.sampled_from(["openai", "open", "json", "info", "least-busy", "cost", "x" * 600, " a", "ä"]),
    st.sampled_from([[], ["env:A"], ["env:A", "env:A"], ["sk-x"], {}, {"a": "b"}, {"a b": "c"}]),
    st.sampled_from([{"input": 1, "output": 2}, {"input": 1}, {"a": "bä"}, [[]], [DEPLOYMENT]]),
)


@st.composite
def changed(draw: st.DrawFn) -> object:
    """The full file with one key added, removed or given another value, anywhere."""
    tree = json.loads(json.dumps(FULL))
    place: Any = tree
    while True:
        if isinstance(place, list):
            place = place[0]
        key = draw(st.sampled_from(sorted(place)))
        if isinstance(place[key], (dict, list)) and place[key] and draw(st.booleans()):
            if isinstance(place[key], list) and not isinstance(place[key][0], dict):
                break
            place = place[key]
            continue
        break
    match draw(st.sampled_from(["set", "drop", "add"])):
        case "set":
            place[key] = draw(VALUES)
        case "drop":
            del place[key]
        case _:
            place["surplus"] = draw(VALUES)
    return tree


@unhurried
@given(changed())
def test_the_loader_and_the_schema_agree_on_any_change(tree: object) -> None:
    assert loader_takes(tree) == VALIDATOR.is_valid(tree)


@unhurried
@given(st.integers(-3, 10**7), st.sampled_from(["weight", "order", "rpm", "max_in_flight"]))
def test_the_loader_and_the_schema_agree_on_whole_numbers(number: int, key: str) -> None:
    tree = {"models": {"a": {"deployments": [{**DEPLOYMENT, key: number}]}}}
    assert loader_takes(tree) == VALIDATOR.is_valid(tree)


@pytest.mark.parametrize("priority", ["criticality", "a batch", "uninteractive"])
def test_a_word_within_another_is_refused_by_both(priority: str) -> None:
    route = {"when": {"priority": priority}, "to": "b"}
    plain = {"deployments": [{"model": "openai/x"}]}
    tree = {"models": {"a": {**plain, "routes": [route]}, "b": plain}}
    assert not VALIDATOR.is_valid(tree)
    assert not loader_takes(tree)
