"""What cannot start says why in one sentence, ends with 2 and leaves nothing running."""

import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from tests.conftest import NatsProcess
from tests.e2e.processes import (
    HELLO,
    PATIENCE_S,
    Gateway,
    Process,
    children_of,
    environment,
    fleet,
    free_port,
    listens,
    needs_proc,
    once,
    processes_mentioning,
    until,
)

MODELS = "models: {m: {deployments: [{model: ollama/m}]}}\n"


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield int(listener.getsockname()[1])


def assert_refused(
    done: "subprocess.CompletedProcess[str]", *words: str, directory: Path, code: int = 2
) -> None:
    """One clear sentence, that exit code, and no process of it left."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    said = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    text = "\n".join(said)
    assert "Traceback" not in done.stderr, done.stderr
    for word in words:
        assert word in text, done.stderr
    sentences = [line for line in said if line.startswith(("breakwater: ", "Error: "))]
    assert len(sentences) == 1, done.stderr
    until(lambda: not processes_mentioning(str(directory)), "nothing is left running")


def start(tmp_path: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    given = list(arguments)
    if given[0] == "up":
        if "--data" not in given:
            given += ["--data", str(tmp_path / "data")]
        if "--port" not in given:
            given += ["--port", str(free_port())]
        if "--nats-port" not in given and "--nats" not in given:
            given += ["--nats-port", "0"]
    return once(tmp_path, *given)


def test_a_taken_http_port_is_refused(tmp_path: Path, taken: int) -> None:
    done = start(tmp_path, "up", "--port", str(taken))
    assert_refused(done, f"127.0.0.1:{taken}", "--port", directory=tmp_path)
    assert not (tmp_path / "data").exists(), "nothing was started"


def test_a_taken_http_port_is_refused_by_run_too(tmp_path: Path, nats_url: str, taken: int) -> None:
    (tmp_path / "c.yaml").write_text(MODELS)
    done = start(
        tmp_path, "run", "edge", "--nats", nats_url, "--port", str(taken),
        "--config", str(tmp_path / "c.yaml"),
    )  # fmt: skip
    assert_refused(done, f"127.0.0.1:{taken}", "--port", directory=tmp_path)


@pytest.mark.nats
def test_a_taken_nats_port_is_refused(tmp_path: Path, taken: int) -> None:
    done = start(tmp_path, "up", "--nats-port", str(taken))
    assert_refused(done, str(taken), "--nats-port", directory=tmp_path)


def test_a_data_directory_in_use_is_refused(gateway: Gateway, tmp_path: Path) -> None:
    data = gateway.directory / "data"
    port = free_port()
    done = start(tmp_path, "up", "--data", str(data), "--port", str(port))
    assert_refused(done, str(data), "--data", "--nats", directory=tmp_path)
    assert not listens(port)


def test_a_data_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = start(tmp_path, "up", "--data", str(tmp_path / "file" / "data"))
    assert_refused(done, "--data", directory=tmp_path)


@pytest.mark.parametrize("command", [["up"], ["run", "router"], ["up", "--processes", "2"]])
def test_an_unreachable_nats_is_refused(tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "c.yaml").write_text(MODELS)
    nowhere = f"nats://127.0.0.1:{free_port()}"
    done = start(tmp_path, *command, "--nats", nowhere, "--config", str(tmp_path / "c.yaml"))
    assert_refused(done, nowhere, directory=tmp_path)


@pytest.mark.nats
@pytest.mark.parametrize("command", [["up"], ["run", "health"]])
def test_a_nats_without_jetstream_is_refused(
    tmp_path: Path, nats_server: Callable[..., NatsProcess], command: list[str]
) -> None:
    (tmp_path / "c.yaml").write_text(MODELS)
    server = nats_server(jetstream=False)
    work = tmp_path / "work"
    work.mkdir()
    done = start(work, *command, "--nats", server.url, "--config", str(tmp_path / "c.yaml"))
    assert_refused(done, "JetStream", "-js", directory=work)


@pytest.mark.parametrize("command", [["up"], ["run", "router", "--nats", "nats://127.0.0.1:9"]])
def test_a_missing_config_file_is_refused(tmp_path: Path, command: list[str]) -> None:
    done = start(tmp_path, *command, "--config", str(tmp_path / "nowhere.yaml"))
    assert_refused(done, "nowhere.yaml", "No such file", directory=tmp_path)


@pytest.mark.parametrize("command", [["up"], ["up", "--processes", "2"]])
def test_a_bad_config_is_refused_with_path_line_and_the_nearest_name(
    tmp_path: Path, command: list[str]
) -> None:
    (tmp_path / "bad.yaml").write_text(MODELS + "limitz: {connections: 3}\n")
    done = start(tmp_path, *command, "--config", str(tmp_path / "bad.yaml"))
    assert_refused(done, "bad.yaml:2", "limits", directory=tmp_path)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])  # noqa: S104 - that is the point
def test_an_address_that_others_reach_is_refused_while_auth_is_open(
    tmp_path: Path, host: str
) -> None:
    done = start(tmp_path, "up", "--host", host)
    assert_refused(done, host, "--allow-open", directory=tmp_path)


def test_allow_open_serves_other_addresses(tmp_path: Path) -> None:
    process = Gateway(tmp_path, "--host", "0.0.0.0", "--allow-open")  # noqa: S104 - that is the point
    try:
        # All of 127/8 is this machine; a server of 127.0.0.1 alone does not answer there.
        answer = httpx.get(f"http://127.0.0.2:{process.port}/healthz", trust_env=False)
        assert answer.status_code == 200
        process.end()
    finally:
        process.discard()


@pytest.mark.nats
@pytest.mark.drill  # it waits ten seconds for somebody to publish one
def test_run_without_any_configuration_says_what_to_pass(
    tmp_path: Path, nats_server: Callable[..., NatsProcess]
) -> None:
    server = nats_server(max_file_store="4GB")
    work = tmp_path / "work"
    work.mkdir()
    done = once(work, "run", "router", "--nats", server.url, timeout_s=30)
    assert_refused(done, "--config", directory=work)


def test_an_unknown_actor_is_refused(tmp_path: Path) -> None:
    done = once(tmp_path, "run", "rooter")
    assert done.returncode == 2
    assert "router" in done.stderr


def test_without_config_and_keys_the_simulator_serves_and_the_banner_works(tmp_path: Path) -> None:
    """What the banner says to send is sent, as it stands."""
    process = Gateway(tmp_path)
    try:
        until(lambda: "Ready." in process.stdout, "the banner")
        assert "simulator" in process.stdout
        command = process.stdout.split("HTTP ")[1].split("Python")[0].split("\n", 1)[1]
        if shutil.which("curl") is not None:
            done = subprocess.run(
                ["sh", "-c", command.replace("curl ", "curl -s --noproxy '*' ", 1)],
                capture_output=True,
                text=True,
                check=True,
                timeout=PATIENCE_S,
            )
            assert '"chat.completion"' in done.stdout
        program = process.stdout.split("Python")[1].split("Ready.")[0].strip()
        script = "\n".join(line.removeprefix("        ") for line in program.splitlines())
        script = script.replace("client.chat", "print(client.chat", 1).rstrip() + ")\n"
        (tmp_path / "sdk.py").write_text(script)
        done = subprocess.run(
            [sys.executable, "sdk.py"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
            timeout=PATIENCE_S,
            env=environment(),
        )
        assert "ChatCompletion" in done.stdout
        process.end()
    finally:
        process.discard()
    assert not processes_mentioning(str(tmp_path))
    assert not listens(process.nats_port)


def test_a_provider_key_in_the_environment_is_what_is_served(tmp_path: Path) -> None:
    process = Gateway(tmp_path, env=environment(OPENAI_API_KEY="sk-not-a-real-key"))
    try:
        until(lambda: "Ready." in process.stdout, "the banner")
        assert "openai" in process.stdout
        assert "sk-not-a-real-key" not in process.stdout + process.stderr
        process.end()
    finally:
        process.discard()


@needs_proc
def test_a_killed_parent_leaves_no_nats_server(tmp_path: Path) -> None:
    process = Gateway(tmp_path)
    assert children_of(process.pid)
    process.kill()
    until(lambda: not processes_mentioning(str(tmp_path)), "the server went with its parent")


def test_a_second_signal_cuts_the_drain_short(gateway: Gateway, tmp_path: Path) -> None:
    """A client that never finishes does not hold up whoever insists."""
    process = Gateway(tmp_path)
    try:
        with socket.create_connection(("127.0.0.1", process.port)) as peer:
            peer.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\n{"
            )
            until(
                lambda: httpx.get(process.root_url + "/healthz", trust_env=False).status_code, "up"
            )
            process.terminate()
            until(lambda: "draining" in process.stderr, "it drains")
            process.send(signal.SIGINT)
            assert process.wait() == 0
    finally:
        process.discard()


@pytest.mark.nats
def test_up_on_a_nats_of_ones_own_leaves_it_running(
    tmp_path: Path, nats_server: Callable[..., NatsProcess]
) -> None:
    server = nats_server(max_file_store="4GB")
    process = Gateway(tmp_path / "up", "--nats", server.url)
    try:
        answer = httpx.post(
            process.base_url + "/chat/completions",
            json={"model": "main-model", "messages": HELLO},
            trust_env=False,
            timeout=PATIENCE_S,
        )
        assert answer.status_code == 200
        assert not children_of(process.pid), "no server of its own"
        process.end()
    finally:
        process.discard()
    assert listens(server.port)


@pytest.mark.nats
def test_a_worker_alone_ends_well(tmp_path: Path, nats_server: Callable[..., NatsProcess]) -> None:
    (tmp_path / "c.yaml").write_text(MODELS)
    command = ["worker", "--config", str(tmp_path / "c.yaml")]
    server = nats_server(max_file_store="4GB")
    with fleet(tmp_path, server.url, [command]) as processes:
        (worker,) = processes
        assert isinstance(worker, Process)
        until(lambda: "actor_started" in worker.stderr or not worker.running, "it serves")
        worker.end()


@pytest.mark.parametrize(
    "command",
    [
        *(["budget", "show"], ["breaker", "list"], ["keys", "list"], ["cache", "stats"]),
        *(["traces", "status"], ["models"]),
    ],
    ids=lambda words: words[0],
)
def test_a_command_that_reaches_no_nats_says_so_in_one_line(
    tmp_path: Path, command: list[str]
) -> None:
    done = start(tmp_path, *command, "--nats", "nats://127.0.0.1:1")
    assert (done.returncode, done.stdout) == (4, ""), done.stderr
    (line,) = done.stderr.splitlines()
    assert "127.0.0.1:1" in line
