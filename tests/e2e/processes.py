"""Real processes for tests: `breakwater` commands, the simulator, and what they left behind.

Every process writes to files of its test's own directory, so that nothing blocks on a full pipe, and ends
before its test does.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import httpx
import pytest

PATIENCE_S: Final = 30.0
"""How long anything may take that has to happen; far above what it takes."""
POLL_S: Final = 0.01
PROC: Final = Path("/proc")
HELLO: Final[Any] = [{"role": "user", "content": "Hello"}]
"""As users write it; the SDK's types want more."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


T = TypeVar("T")

needs_proc = pytest.mark.skipif(not PROC.is_dir(), reason="looks into /proc")


def until(
    true: Callable[[], T | None],
    what: str,
    *,
    patience_s: float = PATIENCE_S,
    every_s: float = POLL_S,
) -> T:
    """What `true` says, once it is not falsy. Raises `AssertionError` that names `what`."""
    deadline = time.monotonic() + patience_s
    while True:
        found = true()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {patience_s:g} s: {what}")
        time.sleep(every_s)


def environment(**more: str) -> dict[str, str]:
    """Ours without what changes how a gateway starts: provider keys, NATS, proxies, telemetry."""
    dropped = ("_API_KEY", "_KEY", "_TOKEN", "_PROXY", "_proxy", "NATS_URL", "NATS_CREDS")
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.endswith(dropped) and not name.startswith("OTEL_")
    }
    return kept | {"PYTHONUNBUFFERED": "1"} | more


def processes_mentioning(text: str) -> list[int]:
    """Pids of live processes with `text` in their command line, this one excepted."""
    found = []
    for entry in PROC.iterdir() if PROC.is_dir() else ():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if text.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
    return found


def children_of(pid: int) -> list[int]:
    """Of its main thread, which is the one that starts processes here."""
    try:
        return [
            int(child) for child in Path(f"{PROC}/{pid}/task/{pid}/children").read_text().split()
        ]
    except FileNotFoundError:
        return []


def command_line(pid: int) -> str:
    try:
        return Path(f"{PROC}/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def report(*figures: object) -> None:
    """For a person: seen with `-s`."""
    sys.stdout.write(" ".join(map(str, figures)) + "\n")


def listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Process:
    """`python -m <module> <arguments>` with its output in files."""

    def __init__(
        self,
        directory: Path,
        *arguments: str,
        module: str = "breakwater_gateway",
        env: Mapping[str, str] | None = None,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.arguments = arguments
        self._out = directory / "stdout"
        self._err = directory / "stderr"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=directory,
                env=environment() if env is None else dict(env),
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def stdout(self) -> str:
        return self._out.read_text(errors="replace")

    @property
    def stderr(self) -> str:
        return self._err.read_text(errors="replace")

    @property
    def running(self) -> bool:
        return self._popen.poll() is None

    def log(self) -> list[dict[str, Any]]:
        """The JSON lines of its log."""
        return [json.loads(line) for line in self.stderr.splitlines() if line.startswith("{")]

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        return self._popen.wait(timeout_s)

    def send(self, number: signal.Signals) -> None:
        self._popen.send_signal(number)

    def terminate(self) -> None:
        self.send(signal.SIGTERM)

    def kill(self) -> None:
        """As `kill -9` does."""
        self.send(signal.SIGKILL)
        self.wait()

    def end(self, timeout_s: float = PATIENCE_S) -> None:
        """By SIGTERM: it must end with 0 and without a traceback."""
        if self.running:
            self.terminate()
        try:
            code = self.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.arguments} did not end:\n{self.stderr[-4000:]}") from None
        assert code == 0, f"{self.arguments} ended with {code}:\n{self.stderr[-4000:]}"
        self.assert_clean()

    def assert_clean(self) -> None:
        stderr = self.stderr
        assert "Traceback" not in stderr, stderr[-8000:]
        assert '"handler_failed"' not in stderr, stderr[-8000:]

    def discard(self) -> None:
        """However it is: gone afterwards."""
        if self.running:
            self.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.wait(10)
        if self.running:
            self.kill()


class Simulator(Process):
    """A provider of its own, with its control plane."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, "--port", "0", module="breakwater_gateway.simulator")
        try:
            line = until(self._said, "the simulator serves")
        except BaseException:
            self.discard()
            raise
        self.port = int(json.loads(line)["port"])
        self._http = httpx.Client(
            base_url=f"http://127.0.0.1:{self.port}", trust_env=False, timeout=PATIENCE_S
        )

    def _said(self) -> str:
        assert self.running, self.stderr[-4000:]
        return self.stdout if "\n" in self.stdout else ""

    def base_url(self, lane: str) -> str:
        return f"http://127.0.0.1:{self.port}/{lane}/v1"

    def script(self, **script: object) -> None:
        """Replaces the script of the same lane, model and key."""
        self._http.post("/__control/script", json=script).raise_for_status()

    def lane(self, lane: str) -> dict[str, Any]:
        """Its counters; empty before its first request."""
        lanes = self._http.get("/__control/stats").raise_for_status().json()["lanes"]
        found: dict[str, Any] = lanes.get(lane, {})
        return found

    def requests(self, **wanted: object) -> list[dict[str, Any]]:
        """Ended requests whose log entries have these fields."""
        entries = self._http.get("/__control/log").raise_for_status().json()["entries"]
        return [e for e in entries if all(e[name] == value for name, value in wanted.items())]

    def end(self, timeout_s: float = PATIENCE_S) -> None:
        self._http.close()
        super().end(timeout_s)


class Gateway(Process):
    """`breakwater up` that serves; `base_url` is what the OpenAI SDK wants."""

    def __init__(
        self,
        directory: Path,
        *arguments: str,
        config: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.nats_port = free_port()
        self.nats = f"nats://127.0.0.1:{self.nats_port}"
        self.root_url = f"http://127.0.0.1:{self.port}"
        self.base_url = self.root_url + "/v1"
        self.config_path = directory / "breakwater.yaml"
        given = ["up", "--port", str(self.port), "--data", str(directory / "data")]
        if "--nats" not in arguments:
            given += ["--nats-port", str(self.nats_port)]
        if config is not None:
            self.config_path.write_text(config)
            given += ["--config", str(self.config_path)]
        super().__init__(directory, *given, *arguments, env=env)
        try:
            until_ready(self.root_url, self)
        except BaseException:
            self.discard()
            raise

    def nats_server_pid(self) -> int:
        (pid,) = [pid for pid in children_of(self.pid) if "nats-server" in command_line(pid)]
        return pid


def until_ready(root_url: str, *processes: Process) -> None:
    """`/readyz` says 200, or one of `processes` has ended."""
    with httpx.Client(trust_env=False, timeout=5) as client:

        def ready() -> bool:
            for process in processes:
                assert process.running, process.stderr[-4000:]
            try:
                return client.get(root_url + "/readyz").status_code == 200
            except httpx.HTTPError:
                return False

        until(ready, f"{root_url}/readyz is 200")


def config(simulator: Simulator, *, tail: str = "") -> str:
    """The configuration of most tests: patterns that pass on any model of the simulator, and some
    models that behave in a way of their own. Each has a lane, which is told how to fail on its own."""
    lax = "breaker: {consecutive: 100000, min_requests: 100000}"
    deployments = {
        "main-a": "main-model",
        "main-b": "main-model",
        "spare-bad": "m",
        "spare-good": "m",
        "fragile": "m",
        "throttled": "m",
    }
    providers = {**deployments, "sim": "", "once": ""}
    lines = ["providers:"]
    lines += [
        f'  {name}: {{wire: openai, base_url: "{simulator.base_url(name)}"}}' for name in providers
    ]

    def deployment(id_: str, more: str = "") -> str:
        return f"{{model: {id_}/{deployments[id_]}, id: {id_}{more}}}"

    lines += [
        "models:",
        "  main-model:",
        "    strategy: least-busy",
        f"    deployments: [{deployment('main-a')}, {deployment('main-b')}]",
        "  sim/*:",
        "    deployments: [{model: sim/*, id: sim-any, price: {input: 1, output: 2}}]",
        f"    {lax}",
        "  once/*:",
        "    deployments: [{model: once/*, id: once-any}]",
        "    retry: {attempts: 1}",
        f"    {lax}",
        "  spare:",
        "    deployments:",
        f"      - {deployment('spare-bad', ', order: 0')}",
        f"      - {deployment('spare-good', ', order: 1')}",
        "    timeouts: {ttft: 500ms}",
        f"    {lax}",
        "  fragile:",
        f"    deployments: [{deployment('fragile')}]",
        "    retry: {attempts: 1}",
        "    breaker: {consecutive: 3, min_requests: 1000, open: 300ms}",
        "  throttled:",
        f"    deployments: [{deployment('throttled')}]",
        "    timeouts: {total: 2s}",
        f"    {lax}",
        "  vendor/family/v1.5:",
        "    deployments: [{model: main-a/main-model, id: slashes}]",
    ]
    return "\n".join(lines) + "\n" + tail


@contextmanager
def fleet(
    directory: Path, nats: str, commands: Sequence[Sequence[str]], *, port: int | None = None
) -> Iterator[list[Process]]:
    """`breakwater run …`, one process a command, over one NATS; with `port`: until `/readyz` there is 200."""
    processes: list[Process] = []
    try:
        for number, command in enumerate(commands):
            name = f"{number}-{command[0]}"
            processes.append(Process(directory / name, "run", *command, "--nats", nats))
        if port is not None:
            until_ready(f"http://127.0.0.1:{port}", *processes)
        yield processes
    finally:
        for process in processes:
            process.discard()


def once(
    directory: Path, *arguments: str, env: Mapping[str, str] | None = None, timeout_s: float = 20.0
) -> "subprocess.CompletedProcess[str]":
    """A command that ends by itself."""
    return subprocess.run(
        [sys.executable, "-m", "breakwater_gateway", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        cwd=directory,
        env=environment() if env is None else dict(env),
        stdin=subprocess.DEVNULL,
    )
