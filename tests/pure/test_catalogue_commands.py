"""`breakwater providers`: what it lists, what it shows, and what it says of a name that is none."""

import json

import pytest
from click.testing import CliRunner, Result

from breakwater_gateway.cli.main import cli
from breakwater_gateway.cli.providers import sample
from breakwater_gateway.config import not_served
from breakwater_gateway.config.catalogue import CATALOGUE
from breakwater_gateway.config.load import load_text


def run(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(cli, ["providers", *arguments], env=environment)


def test_the_list_has_every_provider_and_says_whose_key_is_here() -> None:
    result = run(GROQ_API_KEY="gsk_secret", OPENAI_API_KEY="")
    assert result.exit_code == 0
    rows = {line.split("\t")[0]: line.split("\t")[1:] for line in result.stdout.splitlines()}
    assert set(rows) == set(CATALOGUE)
    assert rows["groq"] == ["openai", "GROQ_API_KEY", "GROQ_API_KEY"]
    assert rows["openai"] == ["openai", "OPENAI_API_KEY", "-"]
    assert rows["vllm"] == ["openai", "-", "-"]
    assert "gsk_secret" not in result.output


def test_the_list_as_json_is_a_provider_a_line() -> None:
    lines = [json.loads(line) for line in run("--json", XAI_API_KEY="x").stdout.splitlines()]
    assert [line["id"] for line in lines] == list(CATALOGUE)
    [xai] = [line for line in lines if line["id"] == "xai"]
    assert xai["key_here"] == "XAI_API_KEY"
    assert xai["served"]


def test_one_provider_is_shown_by_any_of_its_names() -> None:
    shown = run("vertex_ai", GOOGLE_CLOUD_PROJECT="secret-project")
    assert shown.exit_code == 0
    assert shown.stdout == run("vertex", GOOGLE_CLOUD_PROJECT="secret-project").stdout
    assert "GOOGLE_CLOUD_PROJECT (set)" in shown.stdout
    assert "secret-project" not in shown.output
    assert json.loads(run("google", "--json").stdout)["id"] == "gemini"


@pytest.mark.parametrize("id_", CATALOGUE)
def test_its_sample_is_a_configuration(id_: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(not_served, "SERVED_WIRES", tuple(not_served.WIRES))
    text = json.loads(run(id_, "--json").stdout)["sample"]
    assert text == sample(CATALOGUE[id_])
    config = load_text(text, source="sample", environment={})
    assert config.models["my-model"].deployments[0].provider == id_


def test_a_name_that_is_none_gets_the_nearest_and_exit_code_1() -> None:
    result = run("anthropc")
    assert result.exit_code == 1
    assert result.stderr == (
        'Error: the catalogue knows no provider "anthropc"; did you mean "anthropic"?\n'
    )
    error = json.loads(run("antropic", "--json").stderr)["error"]
    assert (error["nearest"], error["exit_code"]) == ("anthropic", 1)
    assert "`breakwater providers` lists them" in run("zzzzzzzzzz").stderr
