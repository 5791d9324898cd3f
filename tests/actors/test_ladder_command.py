"""`breakwater ladder test`: every rung under every outage, in virtual time."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from breakwater_gateway.cache.embed.minilm import is_available
from breakwater_gateway.cli.main import cli

FILE = """\
models:
  main:
    deployments:
      - {model: openai/gpt-4o, api_key: env:NOT_THERE}
      - {model: anthropic/claude-sonnet-4-5, api_key: env:NOT_THERE}
    retry: {max_cost: 0.0001}  # a trial costs nothing
    ladder: [cache, simple_model:fast, static, error]
  fast:
    deployments: [{model: openai/gpt-4o-mini, api_key: env:NOT_THERE}]
static_answers: faq.yaml
"""
FAQ = "- {questions: [When are you open?], answer: 9 to 17}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "breakwater.yaml").write_text(FILE)
    (tmp_path / "faq.yaml").write_text(FAQ)
    return tmp_path


def run(folder: Path, *arguments: str) -> Result:
    path = str(folder / "breakwater.yaml")
    return CliRunner().invoke(cli, ["ladder", "test", *arguments, "--config", path])


def rungs(result: Result) -> list[tuple[str, str, bool]]:
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    return [("+".join([r["outage"], *r["also_down"]]), r["rung"], r["ok"]) for r in rows]


def test_every_rung_answers_in_its_turn(folder: Path) -> None:
    result = run(folder, "main", "--json")
    assert rungs(result) == [
        ("provider down", "simple_model", True),
        ("provider down+fast", "static", True),
        ("rate limited", "simple_model", True),
        ("rate limited+fast", "static", True),
        ("slow first token", "simple_model", True),
        ("slow first token+fast", "static", True),
        ("budget exhausted", "static", True),
    ]
    assert (result.exit_code, result.stderr) == (0, "")
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["reason"] for row in rows[::2]] == [
        *("connect_failed", "rate_limited", "first_token_timeout", "budget_exhausted")
    ]
    assert all(row["attempts"] <= 3 for row in rows)


def test_an_old_answer_is_found_where_the_cache_keeps_them(folder: Path) -> None:
    text = FILE.replace("    ladder:", "    cache: {exact: 1m, stale_if_error: 1d}\n    ladder:")
    (folder / "breakwater.yaml").write_text(text)
    result = run(folder, "main", "--json")
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(r["outage"], r["rung"], r["ok"]) for r in rows if r["kept"]] == [
        (outage, "stale", True)
        for outage in ("provider down", "rate limited", "slow first token", "budget exhausted")
    ]
    assert len(rows) == 7 + 4
    assert result.exit_code == 0


def test_a_question_without_an_answer_ends_at_the_error(folder: Path) -> None:
    result = run(folder, "main", "--question", "Tell me a joke", "--json")
    assert ("provider down+fast", "error", True) in rungs(result)
    assert ("budget exhausted", "error", True) in rungs(result)
    assert result.exit_code == 0


def test_a_rung_that_should_answer_and_does_not_fails_the_command(folder: Path) -> None:
    # Two first tokens that never come take all the time there is.
    text = FILE.replace("    ladder:", "    timeouts: {ttft: 10s, total: 15s}\n    ladder:")
    (folder / "breakwater.yaml").write_text(text)
    result = run(folder, "main")
    assert result.exit_code == 1
    line = next(
        line for line in result.stdout.splitlines() if line.startswith("slow first token\t")
    )
    assert line.split("\t")[1:3] == ["static", "simple_model"]
    assert line.endswith("WRONG")


def test_a_model_without_a_ladder_has_the_error_alone(folder: Path) -> None:
    result = run(folder, "fast", "--json")
    assert {rung for _, rung, _ in rungs(result)} == {"error"}
    assert result.exit_code == 0


@pytest.mark.skipif(bool(is_available()), reason=is_available() or "installed")
def test_a_local_embedder_finds_what_is_meant(folder: Path) -> None:
    (folder / "breakwater.yaml").write_text(FILE + "embeddings: {local: minilm}\n")
    (folder / "faq.yaml").write_text(
        FAQ + "- {questions: [What does shipping cost?], answer: $5}\n"
    )
    question = "How expensive is shipping?"
    result = run(folder, "main", "--question", question, "--json")
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    found = {row["match"]: row["match_score"] for row in rows if row["rung"] == "static"}
    assert list(found) == ["meaning"]
    assert 0.85 <= found["meaning"] <= 1
    assert ("provider down+fast", "static", True) in rungs(result)
    shown = run(folder, "main", "--question", question).stdout
    assert f"meaning {found['meaning']:.2f}" in shown
    assert ("provider down+fast", "error", True) in rungs(
        run(folder, "main", "--question", "Why is the sea blue?", "--json")
    )


@pytest.mark.parametrize(
    ("embeddings", "why"),
    [
        ("{model: openai/text-embedding-3-small}", "no model is called for vectors"),
        ("{local: /nowhere}", "/nowhere"),
    ],
)
def test_where_no_vectors_can_be_made_here_words_decide_and_it_is_said(
    folder: Path, embeddings: str, why: str
) -> None:
    (folder / "breakwater.yaml").write_text(FILE + f"embeddings: {embeddings}\n")
    result = run(folder, "main", "--json")
    assert why in result.stderr
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert {row["match"] for row in rows if row["rung"] == "static"} == {"words"}


def test_what_cannot_be_tried_is_said(folder: Path) -> None:
    unknown = run(folder, "other")
    assert unknown.exit_code == 2
    assert "there is no model 'other' here: configured are main, fast" in unknown.stderr
    (folder / "faq.yaml").write_text("- {}\n")
    broken = run(folder, "main")
    assert broken.exit_code == 3
    assert "static_answers: faq.yaml:1: [0]" in broken.stderr
