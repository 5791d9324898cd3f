"""`breakwater route explain`: who is shown where and why, exit codes, both outputs."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from breakwater_gateway.cli.route_commands import LIVE, OFFLINE, route_commands
from breakwater_gateway.config.load import load_text
from breakwater_gateway.config.model import Config
from breakwater_gateway.router.explain import assume_workers
from breakwater_gateway.router.targets import Targets
from breakwater_protocol.events import AttemptFinished, BreakerChanged, Evidence

CONFIG = """
models:
  main:
    strategy: cost
    deployments:
      - {model: openai/a, id: dear, price: {input: 10, output: 10}, pool: eu}
      - {model: openai/b, id: cheap, price: {input: 1, output: 1}, capabilities: []}
      - {model: openai/c, id: unpriced, region: eu}
    routes:
      - {when: {property: {tier: free}}, to: quick}
      - {region: property.region}
  quick:
    strategy: latency
    deployments: [{model: openai/d, id: q1}, {model: openai/e, id: q2}]
  even:
    deployments: [{model: openai/f, id: e1}, {model: openai/g, id: e2, order: 1}]
"""
HELLO = {"model": "main", "messages": [{"role": "user", "content": "hello"}]}


async def no_look(url: str, as_json: bool) -> tuple[Config, Targets]:
    raise AssertionError(f"{url} was asked, {as_json}")


async def live(url: str, as_json: bool) -> tuple[Config, Targets]:
    assert (url, as_json) in {("nats://there", True), ("nats://there", False)}
    config = load_text(CONFIG, source="there", environment={})
    targets = Targets(config)
    assume_workers(targets, config, now=0.0)
    targets.fold(BreakerChanged("cheap", "open", "consecutive", Evidence(), 1e12, 1, "closed", 1.0))
    done = AttemptFinished(
        *("r", 1, "t", "quick", "q1", "q1", "p", "w", "ok", 0.0), duration_ms=500.0
    )
    deployment = config.deployment("q1")
    assert deployment is not None
    targets.heard(done, deployment, now=0.0)
    return config, targets


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "c.yaml").write_text(CONFIG)
    (tmp_path / "r.json").write_text(json.dumps(HELLO))
    return tmp_path


def run(files: Path, *arguments: str, look: object = no_look, stdin: str = "") -> Result:
    group = route_commands(look)  # type: ignore[arg-type]
    given = [str(files / a) if a in {"c.yaml", "r.json", "none"} else a for a in arguments]
    return CliRunner().invoke(group, ["explain", *given], input=stdin)


def test_the_order_the_scores_and_the_views_are_shown(files: Path) -> None:
    result = run(files, "r.json", "--config", "c.yaml")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "model     main"
    assert lines[1] == "strategy  cost (nano-USD, smaller is better)"
    assert lines[2].startswith("tokens    ")
    # 17 tokens in and 256 out, by four bytes a token and what is expected of an answer.
    assert [line.split("\t")[1:3] for line in lines[3:]] == [
        ["cheap", "273000"],
        ["dear", "2.73e+06"],
        ["unpriced", "-"],
    ]
    assert result.stderr == OFFLINE + "\n"


def test_what_is_left_out_says_why(files: Path) -> None:
    body = {**HELLO, "tools": [{"type": "function"}]}
    result = run(
        files, "-", "--config", "c.yaml", "--header", "Breakwater-Property-Region=eu",
        "--json", stdin=json.dumps(body),
    )  # fmt: skip
    found = json.loads(result.stdout)
    assert [each["deployment"] for each in found["kept"]] == ["unpriced"]
    assert found["dropped"] == [
        {"deployment": "dear", "reason": "region", "wait_s": None, "needs_nano_usd": None},
        {"deployment": "cheap", "reason": "region", "wait_s": None, "needs_nano_usd": None},
    ]
    assert found["routes"] == ["main.routes[1]"]
    assert found["views"] == OFFLINE
    result = run(files, "-", "--config", "c.yaml", stdin=json.dumps(body))
    assert "left out  cheap: no tools" in result.stdout


def test_what_costs_more_than_the_request_may_is_left_out(files: Path) -> None:
    bound = ("--header", "breakwater-max-cost=0.01")
    body = {**HELLO, "max_tokens": 4_000}
    result = run(files, "-", "--config", "c.yaml", *bound, "--json", stdin=json.dumps(body))
    found = json.loads(result.stdout)
    assert [each["deployment"] for each in found["kept"]] == ["cheap"]
    assert [(each["deployment"], each["reason"]) for each in found["dropped"]] == [
        ("dear", "too_dear"),
        ("unpriced", "unpriced"),
    ]
    result = run(files, "-", "--config", "c.yaml", *bound, stdin=json.dumps(body))
    assert "left out  dear: too dear, up to 0.04" in result.stdout
    assert "left out  unpriced: unpriced" in result.stdout
    result = run(files, "r.json", "--config", "c.yaml", "--header", "breakwater-max-cost=1_0")
    assert result.exit_code == 1
    assert "must be an amount of USD" in result.stderr


async def one_key_is_paused(url: str, as_json: bool) -> tuple[Config, Targets]:
    text = "models: {main: {deployments: [{model: openai/a, id: a, api_key: [env:A, env:B]}]}}"
    config = load_text(text, source="there", environment={})
    targets = Targets(config)
    now = time.monotonic()
    assume_workers(targets, config, now=now)
    targets.pause("a", 0, 60.0, now=now)
    return config, targets


def test_a_paused_key_leaves_its_deployment_the_others(files: Path) -> None:
    asked = ("r.json", "--nats", "nats://there")
    found = json.loads(run(files, *asked, "--json", look=one_key_is_paused).stdout)
    assert [(each["deployment"], each["keys"]) for each in found["kept"]] == [("a", ["a#key2"])]
    assert "keys      a: only a#key2" in run(files, *asked, look=one_key_is_paused).stdout


def test_a_route_to_another_model_and_what_was_measured_live(files: Path) -> None:
    result = run(
        files, "r.json", "--nats", "nats://there", "--json",
        "--header", "breakwater-property-tier=free", look=live,
    )  # fmt: skip
    found = json.loads(result.stdout)
    assert (found["asked"], found["model"]) == ("main", "quick")
    assert found["routes"] == ["main.routes[0] -> quick"]
    assert {each["deployment"] for each in found["kept"]} == {"q1", "q2"}
    assert found["views"] == LIVE
    result = run(files, "r.json", "--nats", "nats://there", look=live)
    assert "left out  cheap: breaker open, " in result.stdout
    assert result.stderr == LIVE + "\n"


def test_without_a_configuration_the_gateway_of_this_machine_is_asked(files: Path) -> None:
    asked: list[str] = []

    async def here(url: str, as_json: bool) -> tuple[Config, Targets]:
        asked.append(url)
        return await live("nats://there", as_json)

    assert run(files, "r.json", look=here).exit_code == 0
    assert asked == ["nats://127.0.0.1:4222"]


def test_chance_is_told_of(files: Path) -> None:
    for model, drawn in (("even", False), ("quick", True)):
        body = json.dumps({**HELLO, "model": model})
        result = run(files, "-", "--config", "c.yaml", "--json", stdin=body)
        assert json.loads(result.stdout)["drawn"] is drawn


@pytest.mark.parametrize(
    ("arguments", "stdin", "code", "message"),
    [
        (["r.json", "--config", "c.yaml", "--nats", "x"], "", 2, "name a configuration"),
        (["none", "--config", "c.yaml"], "", 2, "cannot read the request"),
        (["r.json", "--config", "none"], "", 2, "cannot read the configuration"),
        (["r.json", "--config", "r.json"], "", 3, "unknown key"),
        (["r.json", "--config", "c.yaml", "--header", "x"], "", 2, "expected --header NAME=VALUE"),
        (["-", "--config", "c.yaml"], "{", 1, "not valid JSON"),
        (["-", "--config", "c.yaml"], '{"model":"x","messages":[{"role":"user"}]}', 1, "no model"),
        (
            ["r.json", "--config", "c.yaml", "--header", "breakwater-property-region=mars"],
            "",
            1,
            "in the region 'mars'",
        ),
        (
            ["r.json", "--config", "c.yaml", "--header", "breakwater-nonsense=1"],
            "",
            1,
            "is not a header that a request can carry",
        ),
    ],
)
def test_what_cannot_be_explained_says_so_with_its_exit_code(
    files: Path, arguments: list[str], stdin: str, code: int, message: str
) -> None:
    result = run(files, *arguments, stdin=stdin)
    assert result.exit_code == code, result.stderr
    assert message in result.stderr
    if code == 1:
        failed = run(files, *arguments, "--json", stdin=stdin)
        assert json.loads(failed.stderr)["error"]["exit_code"] == 1


def test_help_needs_nothing_heavy() -> None:
    code = (
        "import sys; from breakwater_gateway.cli import live_route;"
        "print([m for m in ('nats', 'numpy', 'duckdb', 'yaml') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
