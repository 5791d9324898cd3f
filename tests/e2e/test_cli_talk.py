"""`breakwater chat | models | events | doctor | config` as processes, against a gateway that runs."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.processes import Gateway, Process, Simulator, environment, free_port, once, until


def lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


def test_chat_prints_the_answer_and_streams_the_same(gateway: Gateway, tmp_path: Path) -> None:
    asked = ("chat", "-m", "sim/sim-echo", "--nats", gateway.nats, "good morning")
    whole = once(tmp_path, *asked)
    assert (whole.returncode, whole.stderr) == (0, "")
    assert "good morning" in whole.stdout
    streamed = once(tmp_path, *asked, "--stream")
    assert (streamed.returncode, streamed.stdout) == (0, whole.stdout)


def test_chat_as_json_has_text_and_facts(gateway: Gateway, tmp_path: Path) -> None:
    asked = ("chat", "-m", "sim/sim-echo", "--nats", gateway.nats, "--json", "hi")
    (whole,) = lines(once(tmp_path, *asked).stdout)
    assert "hi" in whole["text"]
    assert whole["info"]["deployment"] == "sim-any"
    *chunks, last = lines(once(tmp_path, *asked, "--stream").stdout)
    assert chunks
    assert last["info"]["attempts"] == 1


def test_chat_reads_stdin_and_takes_the_first_model(gateway: Gateway, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "breakwater_gateway", "chat", "-", "--json"],
        input="from stdin",
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
        env=environment(NATS_URL=gateway.nats),
        cwd=tmp_path,
    )
    assert json.loads(done.stdout)["info"]["model"] == "main-model"


def test_chat_says_what_was_wrong_and_ends_with_the_code_of_its_kind(
    gateway: Gateway, simulator: Simulator, tmp_path: Path
) -> None:
    unknown = once(tmp_path, "chat", "-m", "nope", "--nats", gateway.nats, "--json", "hi")
    assert unknown.returncode == 1
    assert unknown.stdout == ""
    (error,) = lines(unknown.stderr)
    assert error["error"]["code"] == "model_not_found"
    simulator.script(lane="once", model="cli-cut", cut_after_tokens=3)
    asked = ("chat", "-m", "once/cli-cut", "--nats", gateway.nats, "--stream", "hi")
    cut = once(tmp_path, *asked)
    assert cut.returncode == 1
    assert cut.stdout.strip()
    assert "partial" in cut.stderr


def test_models_lists_names_a_line_and_objects_as_json(gateway: Gateway, tmp_path: Path) -> None:
    plain = once(tmp_path, "models", "--nats", gateway.nats)
    assert plain.stdout.splitlines()[0].split("\t")[0] == "main-model"
    found = lines(once(tmp_path, "models", "--nats", gateway.nats, "--json").stdout)
    assert {"main-model", "vendor/family/v1.5"} <= {each["id"] for each in found}


def test_events_follows_what_happens(gateway: Gateway, tmp_path: Path) -> None:
    following = Process(tmp_path, "events", "request", "-n", "1", "--json", "--nats", gateway.nats)
    try:

        def heard() -> bool:
            once(tmp_path, "chat", "-m", "sim/m", "--nats", gateway.nats, "hi")
            return not following.running

        until(heard, "an event was printed")
        assert following.wait() == 0
        (event,) = lines(following.stdout)
        assert event["subject"].startswith("bw.v1.evt.request.default.")
        assert event["data"]["outcome"]
    finally:
        following.discard()


def test_doctor_finds_a_whole_set_up_fine_and_a_missing_one_broken(
    gateway: Gateway, tmp_path: Path
) -> None:
    fine = once(
        tmp_path, "doctor", "--nats", gateway.nats, "--http", gateway.root_url, "--json",
        "--config", str(gateway.config_path),
    )  # fmt: skip
    found = lines(fine.stdout)
    assert fine.returncode == 0, fine.stdout
    assert {finding["status"] for finding in found} <= {"ok", "warning"}
    assert {"nats", "jetstream", "actors", "http", "config"} <= {f["check"] for f in found}
    nowhere = f"nats://127.0.0.1:{free_port()}"
    broken = once(tmp_path, "doctor", "--nats", nowhere, "--http", "http://127.0.0.1:9", "--json")
    assert broken.returncode == 1
    bad = [finding for finding in lines(broken.stdout) if finding["status"] == "broken"]
    assert bad
    assert all(finding["mend"] for finding in bad)


@pytest.mark.parametrize("command", [["chat", "hi"], ["models"], ["events"]])
def test_without_nats_a_command_says_so_and_how_to_start_one(
    tmp_path: Path, command: list[str]
) -> None:
    nowhere = f"nats://127.0.0.1:{free_port()}"
    done = once(tmp_path, *command, "--nats", nowhere)
    assert done.returncode == 4
    assert nowhere in done.stderr
    assert "breakwater up" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_config_check_show_and_schema(gateway: Gateway, tmp_path: Path) -> None:
    fine = once(tmp_path, "config", "check", str(gateway.config_path))
    assert fine.returncode == 0
    (tmp_path / "bad.yaml").write_text(
        "models:\n  m:\n    strategi: least-busy\n    deployments: [{model: openai/gpt-4o}]\n"
    )
    bad = once(tmp_path, "config", "check", "bad.yaml")
    assert bad.returncode == 3
    assert "bad.yaml:3" in bad.stderr
    assert "strategy" in bad.stderr
    report = json.loads(once(tmp_path, "config", "check", "bad.yaml", "--json").stdout)
    assert report["problems"][0]["line"] == 3
    assert once(tmp_path, "config", "check", "nowhere.yaml").returncode == 2
    live = once(tmp_path, "config", "show", "--nats", gateway.nats, "--json")
    assert "main-model" in json.loads(live.stdout)["models"]
    schema = json.loads(once(tmp_path, "config", "schema").stdout)
    assert schema["properties"]["models"]


def test_every_command_is_in_the_help(tmp_path: Path) -> None:
    done = once(tmp_path, "--help")
    assert done.returncode == 0
    for command in ("up", "run", "chat", "models", "events", "config", "doctor"):
        assert f"  {command} " in done.stdout


def test_route_explain_says_where_a_request_would_go_now(gateway: Gateway, tmp_path: Path) -> None:
    request = tmp_path / "r.json"
    request.write_text('{"model": "sim/m", "messages": [{"role": "user", "content": "hi"}]}')
    asked = ("route", "explain", str(request), "--nats", gateway.nats)
    done = once(tmp_path, *asked, "--json")
    assert done.returncode == 0, done.stderr
    (found,) = lines(done.stdout)
    assert found["asked"] == "sim/m"
    assert [each["deployment"] for each in found["kept"]] == ["sim-any"]
    assert found["dropped"] == []
    assert found["views"].startswith("live")
    nobody = ("route", "explain", str(request), "--nats", f"nats://127.0.0.1:{free_port()}")
    assert once(tmp_path, *nobody).returncode == 4
