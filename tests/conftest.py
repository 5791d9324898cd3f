"""Fixtures for all tests: the async backend, and real nats-servers on free ports."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from breakwater_gateway.runtime.embedded import server_binary


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


class NatsProcess:
    """A nats-server of a test's own: killed, stopped and started again on the same port."""

    def __init__(
        self,
        directory: Path,
        *,
        jetstream: bool = True,
        max_payload: str = "8MB",
        max_file_store: str = "1GB",
    ) -> None:
        self.directory = directory
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.url = f"nats://127.0.0.1:{self.port}"
        lines = [
            f'listen: "127.0.0.1:{self.port}"',
            f"max_payload: {max_payload}",
            "feature_flags { js_ack_fc_v2: false }",
        ]
        if jetstream:
            store = directory / "js"
            lines.append(f'jetstream {{ store_dir: "{store}", max_file_store: {max_file_store} }}')
        (directory / "nats.conf").write_text("\n".join(lines))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.directory / "nats.log").open("ab") as log:
            self._process = subprocess.Popen(
                [server_binary(), "-c", self.directory / "nats.conf"],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + 10
        while not self._serves():
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise RuntimeError((self.directory / "nats.log").read_text()[-2000:])
            time.sleep(0.005)

    def kill(self) -> None:
        """As a crash does: no goodbye."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def lose_data(self) -> None:
        shutil.rmtree(self.directory / "js", ignore_errors=True)

    def freeze(self) -> None:
        """It stays there, and does nothing."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)

    def _serves(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as peer:
                return peer.recv(4) == b"INFO"
        except OSError:
            return False

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGCONT)
                self._process.send_signal(how)
            self._process.wait(10)
            self._process = None


@pytest.fixture(scope="session")
def nats_url() -> Iterator[str]:
    """One nats-server with JetStream for the whole session; use names of your own on it."""
    directory = Path(tempfile.mkdtemp(prefix="breakwater-nats-"))
    server = NatsProcess(directory)
    server.start()
    yield server.url
    server.stop()
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def nats_server(tmp_path: Path) -> Iterator[Callable[..., NatsProcess]]:
    """Starts servers that the test may kill: `server = nats_server(jetstream=False)`."""
    servers: list[NatsProcess] = []

    def start(
        *, jetstream: bool = True, max_payload: str = "8MB", max_file_store: str = "1GB"
    ) -> NatsProcess:
        directory = tmp_path / f"nats-{len(servers)}"
        directory.mkdir()
        server = NatsProcess(
            directory, jetstream=jetstream, max_payload=max_payload, max_file_store=max_file_store
        )
        servers.append(server)
        server.start()
        return server

    yield start
    for server in servers:
        server.kill()
