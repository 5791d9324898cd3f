"""`breakwater breaker` end to end: listed, tripped and reset by the leader, refused clearly without one."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from tests.conftest import NatsProcess
from tests.e2e.processes import HELLO, Gateway, Simulator, config, environment, until

pytestmark = pytest.mark.nats


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, simulator: Simulator) -> Iterator[Gateway]:
    process = Gateway(Path(tmp_path_factory.mktemp("breaker")), config=config(simulator))
    yield process
    process.end()


def breaker(nats: str, *arguments: str, code: int = 0) -> list[dict[str, object]]:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "breakwater_gateway", "breaker", *arguments),
            *("--json", "--nats", nats),
        ],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert done.returncode == code, done.stderr
    return [json.loads(line) for line in (done.stdout if code == 0 else done.stderr).splitlines()]


def status(gateway: Gateway, model: str) -> int:
    return httpx.post(
        gateway.base_url + "/chat/completions",
        json={"model": model, "messages": HELLO},
        trust_env=False,
        timeout=30,
    ).status_code


def test_a_target_is_tripped_listed_and_reset(gateway: Gateway) -> None:
    (tripped,) = breaker(gateway.nats, "trip", "fragile", "--for", "10m")
    assert (tripped["target"], tripped["state"], tripped["cause"]) == (
        "fragile",
        "open",
        "operator",
    )
    until(lambda: status(gateway, "fragile") == 503, "nobody asks it")
    listed = {str(each["target"]): each["state"] for each in breaker(gateway.nats, "list")}
    assert listed["fragile"] == "open"
    (reset,) = breaker(gateway.nats, "reset", "fragile")
    assert reset["state"] == "closed"
    until(lambda: status(gateway, "fragile") == 200, "it is asked again")


def test_an_unknown_target_and_a_bad_duration_are_refused(gateway: Gateway) -> None:
    (error,) = breaker(gateway.nats, "trip", "fragil", code=1)
    assert "did you mean 'fragile'" in str(error)
    (error,) = breaker(gateway.nats, "trip", "fragile", "--for", "soon", code=2)
    assert "a duration such as" in str(error)


def test_a_table_is_for_people(gateway: Gateway) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "breakwater_gateway", "breaker", "list", "--all"),
            *("--nats", gateway.nats),
        ],
        capture_output=True,
        text=True,
        env=environment(),
        check=True,
    )
    assert any(line.startswith("fragile\tdeployment\tclosed") for line in done.stdout.splitlines())
    assert any(line.startswith("fragile#key1\tkey\tclosed") for line in done.stdout.splitlines())


def test_without_health_the_command_says_what_is_missing(
    nats_server: Callable[..., NatsProcess],
) -> None:
    (error,) = breaker(nats_server().url, "list", code=4)
    assert "breakwater run health" in str(error)
