"""`breakwater cache`, as a command: exit codes, and what it says of files and servers that are not there."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from breakwater_gateway.cli import cache_vectors
from breakwater_gateway.cli.cache_commands import cache

PAIRS = [
    {"a": f"How do I mend lamp {n}?", "b": f"How can I mend lamp {n}?", "same": True}
    for n in range(320)
]


@pytest.fixture
def pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pairs whose cosine is 0.97, by an embedder that needs no weights."""

    def vectors_of(texts: list[str], local: str, *, as_json: bool = False) -> list[np.ndarray]:
        return [
            np.array([1.0, 0.0]) if " do " in text else np.array([0.97, np.sqrt(1 - 0.97**2)])
            for text in texts
        ]

    monkeypatch.setattr(cache_vectors, "vectors_of", vectors_of)
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(map(json.dumps, PAIRS)))
    return file


def config(tmp_path: Path, threshold: str) -> str:
    file = tmp_path / "breakwater.yaml"
    file.write_text(
        "models:\n  m:\n    deployments: [{model: openai/gpt-4o, api_key: []}]\n"
        f"    cache: {{semantic: {{threshold: {threshold}}}}}\nembeddings: {{local: minilm}}\n"
    )
    return str(file)


@pytest.mark.parametrize(
    ("threshold", "code"), [("0.95", 0), ("0.70", 0), ("0.69", 1), ("certified", 0)]
)
def test_a_threshold_looser_than_the_certified_one_fails(
    pairs: Path, tmp_path: Path, threshold: str, code: int
) -> None:
    arguments = ["calibrate", str(pairs), "--config", config(tmp_path, threshold), "--json"]
    result = CliRunner().invoke(cache, arguments)
    assert result.exit_code == code, result.output
    said = json.loads(result.stdout)
    assert said["report"]["certificate"]["threshold"] == 0.7
    assert said["too_loose"] == ({"m": 0.69} if code else {})


def test_a_certificate_names_its_embedder_and_says_nothing_of_another_s_thresholds(
    pairs: Path, tmp_path: Path
) -> None:
    judged = ["calibrate", str(pairs), "--config", config(tmp_path, "0.69"), "--json"]
    for arguments, code, used in (
        (judged, 1, "local:minilm"),
        ([*judged, "--local"], 1, "local:minilm"),
        ([*judged, "--embedder", "/some/folder"], 1, "local:/some/folder"),
        (["calibrate", str(pairs), "--json"], 0, "local:minilm"),
    ):
        result = CliRunner().invoke(cache, arguments)
        assert result.exit_code == code, result.output
        said = json.loads(result.stdout)
        assert said["embedder"] == used
        other = used != "local:minilm"
        assert said["too_loose"] == ({} if other or code == 0 else {"m": 0.69})
        assert ("says nothing of its thresholds" in result.stderr) == other


def test_a_model_of_the_gateway_s_that_is_configured_is_never_replaced_in_silence(
    pairs: Path, tmp_path: Path
) -> None:
    file = tmp_path / "breakwater.yaml"
    file.write_text(
        "models:\n  m:\n    deployments: [{model: openai/gpt-4o, api_key: []}]\n"
        "    cache: {semantic: {threshold: 0.95}}\n"
        "  vectors: {deployments: [{model: openai/text-embedding-3-small, api_key: []}]}\n"
        "embeddings: {model: vectors}\n"
    )
    judged = ["calibrate", str(pairs), "--config", str(file), "--nats", "nats://127.0.0.1:1"]
    result = CliRunner().invoke(cache, judged)
    assert result.exit_code == 4
    assert "embeds with the gateway's model 'vectors'" in result.output
    assert "--local" in result.output
    result = CliRunner().invoke(cache, [*judged, "--local", "--json"])
    assert result.exit_code == 1
    assert json.loads(result.stdout)["configured_embedder"] == "model:vectors"


def test_the_table_and_the_plot(pairs: Path, tmp_path: Path) -> None:
    plot = tmp_path / "p.png"
    result = CliRunner().invoke(cache, ["calibrate", str(pairs), "--plot", str(plot)])
    assert result.exit_code == 0
    assert "0.97\t320\t100.0 %\t100.0 %\t0/320\t≤ 0.9 %" in result.stdout
    assert "certified for 1 % wrong hits at 95 % confidence: threshold 0.70" in result.stdout
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["calibrate"], 2, "give either PAIRS.jsonl or --live"),
        (["calibrate", "x.jsonl", "--live"], 2, "give either PAIRS.jsonl or --live"),
        (["calibrate", "missing.jsonl"], 2, "cannot read missing.jsonl"),
        (["calibrate", "--live", "--local"], 2, "give one of --local, --embedder and --live"),
        (["calibrate", "--live", "--nats", "nats://127.0.0.1:1"], 4, "127.0.0.1:1"),
        (["inspect", "e" + "0" * 64, "--nats", "nats://127.0.0.1:1"], 4, "127.0.0.1:1"),
        (["inspect"], 2, "give either an ID or --request FILE"),
        (["inspect", "x", "--request", "y"], 2, "give either an ID or --request FILE"),
        (["inspect", "x", "--user", "ann"], 2, "belong to --request"),
        (["inspect", "--request", "missing.json"], 2, "cannot read missing.json"),
        (["purge", "--all", "--id", "x"], 2, "name what to forget"),
        (["purge"], 2, "name what to forget"),
        (["purge", "--all", "--tenant", "t"], 2, "name what to forget"),
        (["stats", "--nats", "nats://127.0.0.1:1"], 4, "127.0.0.1:1"),
    ],
)
def test_mistakes_end_with_a_sentence_and_a_code(
    arguments: list[str], code: int, said: str
) -> None:
    result = CliRunner().invoke(cache, arguments)
    assert result.exit_code == code
    assert said in result.output
