"""The sample configuration, as somebody pastes it: it is checked, it starts, it says what is not there."""

import json
from pathlib import Path

import httpx
import pytest
from tests.e2e.processes import PATIENCE_S, Gateway, environment, once, until

SAMPLE = Path(__file__).parents[2] / "ops" / "examples"
NAMES = ("OPENAI_KEY_A", "OPENAI_KEY_B", "OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY")
KEYS = dict.fromkeys(NAMES, "sk-not-a-key")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "faq.yaml").write_text((SAMPLE / "faq.yaml").read_text())
    (tmp_path / "breakwater.yaml").write_text((SAMPLE / "breakwater.yaml").read_text())
    return tmp_path


def test_it_is_fine(place: Path) -> None:
    done = once(place, "config", "check", "breakwater.yaml", env=environment(**KEYS))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "breakwater.yaml: fine (3 models, 5 deployments)\n"


def test_it_names_the_keys_that_are_not_set(place: Path) -> None:
    done = once(place, "config", "check", "breakwater.yaml", "--json")
    said = json.loads(done.stdout)
    assert (done.returncode, said["ok"]) == (0, True)
    assert len(said["warnings"]) == 5
    assert said["warnings"][0] == "env:OPENAI_KEY_A is not set here; needed by gpt-4o-us"


def test_doctor_says_that_no_traces_are_exported(place: Path) -> None:
    done = once(place, "doctor", "--config", "breakwater.yaml", "--nats", "nats://127.0.0.1:1")
    assert "traces: not exported: env:OTEL_EXPORTER_OTLP_ENDPOINT is not set here" in done.stdout, (
        done.stdout
    )
    env = environment(OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:4318")
    done = once(
        place, "doctor", "--config", "breakwater.yaml", "--nats", "nats://127.0.0.1:1", env=env
    )
    assert "traces: exported to env:OTEL_EXPORTER_OTLP_ENDPOINT" in done.stdout


@pytest.mark.nats
def test_it_starts(place: Path) -> None:
    gateway = Gateway(
        place, config=(SAMPLE / "breakwater.yaml").read_text(), env=environment(**KEYS)
    )
    try:
        with httpx.Client(trust_env=False, timeout=PATIENCE_S) as client:
            models = client.get(gateway.base_url + "/models").json()["data"]
        assert {each["id"] for each in models} >= {"main-model", "fast-classifier"}
        said = until(lambda: gateway.stdout if "Ready." in gateway.stdout else "", "the banner")
        assert "Traces are not exported: env:OTEL_EXPORTER_OTLP_ENDPOINT is not set here." in said
        assert "Warning" not in said
        (off,) = [line for line in gateway.log() if line["event"] == "traces_off"]
        assert off["why"] == "env:OTEL_EXPORTER_OTLP_ENDPOINT is not set: nothing is exported"
    finally:
        gateway.end()
