"""`breakwater config`: exit codes, both outputs, nothing heavy imported."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from breakwater_gateway.cli.config_commands import Unavailable, config_commands
from breakwater_gateway.config.codec import Stored, encode_stored
from breakwater_gateway.config.load import load_text

GOOD = "models:\n  a:\n    deployments: [{model: openai/x, api_key: env:SURELY_NOT_SET}]\n"
BAD = "models:\n  a:\n    deployments:\n      - {model: openai/x, wieght: 1}\ntelemetry: {record_content: true}\n"


async def no_nats(url: str) -> bytes:
    raise Unavailable(f"no NATS at {url}; start one, or name another with --nats")


async def live(url: str) -> bytes:
    return encode_stored(Stored("there.yaml", GOOD if url == "nats://good" else BAD))


async def other(url: str) -> bytes:
    return b"something else"


def run(*arguments: str, fetch: object = no_nats) -> Result:
    return CliRunner().invoke(config_commands(fetch), list(arguments))  # type: ignore[arg-type]


@pytest.fixture
def good(tmp_path: Path) -> str:
    path = tmp_path / "good.yaml"
    path.write_text(GOOD)
    return str(path)


@pytest.fixture
def bad(tmp_path: Path) -> str:
    path = tmp_path / "bad.yaml"
    path.write_text(BAD)
    return str(path)


def test_check_of_a_good_file_says_so_and_warns_of_missing_keys(good: str) -> None:
    result = run("check", good)
    assert result.exit_code == 0
    assert result.stdout == f"{good}: fine (1 model, 1 deployment)\n"
    assert (
        result.stderr
        == f"{good}: warning: env:SURELY_NOT_SET is not set here; needed by openai/x\n"
    )


@pytest.mark.parametrize(
    ("settings", "warned"),
    [
        ("ladder: [cache]", ""),
        ("ladder: [stale], cache: {stale_if_error: 1d}", ""),
        ("ladder: [cache], cache: {exact: off}", "its rungs of kept answers find none"),
        ("ladder: [stale]", "the rung stale finds nothing; give it cache.stale_if_error"),
        ("cache: {exact: off, stale_if_error: 1d}", "cache.stale_if_error keeps nothing"),
    ],
)
def test_check_warns_of_rungs_that_find_nothing(tmp_path: Path, settings: str, warned: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        f"models: {{a: {{{settings}, deployments: [{{model: openai/x, api_key: []}}]}}}}"
    )
    found = json.loads(run("check", str(path), "--json").stdout)["warnings"]
    assert len(found) == bool(warned)
    assert warned in "".join(found)


def test_check_warns_of_unknown_prices_where_the_price_decides(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    deployments = (
        "[{model: openai/gpt-4o, api_key: []}, {model: openai/nobody, api_key: []},"
        " {model: openai/other, api_key: [], price: {input: 1, output: 1}}]"
    )
    for strategy, warned in (("cost", 1), ("latency", 0)):
        path.write_text(f"models: {{a: {{strategy: {strategy}, deployments: {deployments}}}}}")
        found = json.loads(run("check", str(path), "--json").stdout)["warnings"]
        assert len(found) == warned
    path.write_text(f"models: {{a: {{strategy: cost, deployments: {deployments}}}}}")
    assert run("check", str(path)).stderr == (
        f"{path}: warning: no price is known for openai/nobody: the strategy cost of a tries"
        " openai/nobody last; give it a price\n"
    )
    path.write_text(f"models: {{a: {{retry: {{max_cost: 1}}, deployments: {deployments}}}}}")
    assert run("check", str(path)).stderr == (
        f"{path}: warning: no price is known for openai/nobody: retry.max_cost of a keeps"
        " openai/nobody out; give it a price\n"
    )


def test_check_of_a_bad_file_prints_every_mistake_and_exits_with_3(bad: str) -> None:
    result = run("check", bad)
    assert result.exit_code == 3
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        f'{bad}:4: models.a.deployments[0].wieght: unknown key; did you mean "weight"?',
        (
            f"{bad}:5: telemetry.record_content: recording of prompts and answers is not served by"
            " this version; expected false"
        ),
    ]


def test_check_answers_as_json(good: str, bad: str) -> None:
    fine = run("check", good, "--json")
    assert fine.exit_code == 0
    assert json.loads(fine.stdout) == {
        "source": good,
        "ok": True,
        "problems": [],
        "omitted": 0,
        "warnings": ["env:SURELY_NOT_SET is not set here; needed by openai/x"],
    }
    broken = run("check", bad, "--json")
    assert broken.exit_code == 3
    report = json.loads(broken.stdout)
    assert not report["ok"]
    assert report["problems"][0] == {
        "path": "models.a.deployments[0].wieght",
        "line": 4,
        "column": 27,
        "message": 'unknown key; did you mean "weight"?',
    }


@pytest.mark.parametrize("command", ["check", "show"])
def test_a_file_that_is_not_there_is_one_sentence(command: str, tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        result = run(command, str(path))
        assert result.exit_code == 2
        assert result.stderr.startswith("Error: cannot read the configuration ")
        assert len(result.stderr.splitlines()) == 1


def test_show_prints_what_loads_again(good: str) -> None:
    result = run("show", good)
    assert result.exit_code == 0
    assert "total: 1m" in result.stdout
    original = load_text(GOOD, source="f", environment={})
    assert load_text(result.stdout, source="f", environment={}) == original
    as_json = run("show", good, "--json")
    assert load_text(as_json.stdout, source="f", environment={}) == original


def test_show_of_the_live_configuration_asks_nats() -> None:
    result = run("show", "--nats", "nats://good", fetch=live)
    assert result.exit_code == 0
    assert result.stdout.startswith('# live, from "there.yaml"')
    broken = run("show", "--nats", "nats://bad", fetch=live)
    assert broken.exit_code == 3
    assert broken.stderr.startswith("there.yaml:4: ")


def test_show_without_nats_there_is_one_sentence_that_names_the_mend() -> None:
    result = run("show", "--nats", "nats://nowhere")
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: no NATS at nats://nowhere; start one")
    assert run("show", "--nats", "nats://x", fetch=other).exit_code == 2


def test_show_wants_a_file_or_a_url(good: str) -> None:
    assert run("show").exit_code == 2
    assert run("show", good, "--nats", "nats://x").exit_code == 2


def test_schema_is_json() -> None:
    assert json.loads(run("schema").stdout)["type"] == "object"


def test_check_and_schema_import_neither_numpy_nor_nats(good: str) -> None:
    program = (
        "import sys\n"
        "from breakwater_gateway.cli.config_commands import config_commands\n"
        "assert 'yaml' not in sys.modules\n"
        f"for line in (['check', {good!r}], ['schema']):\n"
        "    config_commands(None)(line, standalone_mode=False)\n"
        "assert not {'numpy', 'nats', 'httpx', 'uvloop', 'jsonschema'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, timeout=60)
