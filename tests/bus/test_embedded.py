"""The embedded nats-server: it starts, says what is wrong in one sentence, and leaves nothing behind."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from breakwater_gateway.runtime.embedded import (
    EmbeddedServer,
    ServerNotStarted,
    server_binary,
    start_nats_server,
)
from breakwater_gateway.runtime.nats_bus import connect_nats

pytestmark = pytest.mark.anyio

Start = Callable[..., Awaitable[EmbeddedServer]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    servers: list[EmbeddedServer] = []

    async def run(
        data_dir: Path, port: int = 0, conf: dict[str, str] | None = None
    ) -> EmbeddedServer:
        server = await start_nats_server(data_dir, port, conf=conf)
        servers.append(server)
        return server

    yield run
    for server in servers:
        await server.stop()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_it_serves_with_jetstream_and_keeps_its_data(start: Start, tmp_path: Path) -> None:
    server = await start(tmp_path / "data")
    bus = await connect_nats(server.url, name="test", role="test")
    assert bus.max_message > 8_000_000
    await (await bus.store("things")).put("a", b"1")
    await bus.close()
    await server.stop()
    await server.stop()
    assert not server.running
    server = await start(tmp_path / "data", server.port)
    bus = await connect_nats(server.url, name="test", role="test")
    entry = await (await bus.store("things")).get("a")
    assert entry is not None
    assert entry.value == b"1"
    await bus.close()


def test_the_binary_is_the_wheels_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    run = subprocess.run([server_binary(), "-v"], capture_output=True, text=True, check=True)
    assert run.stdout.startswith("nats-server: v2.")


async def test_a_port_in_use_is_said_before_anything_starts(start: Start, tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(
            ServerNotStarted, match=rf"port {port} on 127.0.0.1 is in use; .*--nats-port"
        ):
            await start(tmp_path / "data", port)
    assert not (tmp_path / "data").exists()


async def test_a_data_directory_in_use_is_said_with_its_user(start: Start, tmp_path: Path) -> None:
    first = await start(tmp_path)
    with pytest.raises(ServerNotStarted) as caught:
        await start(tmp_path)
    text = str(caught.value)
    assert str(tmp_path) in text
    assert f"process {first.pid}, port {first.port}" in text
    assert "--data" in text
    await first.stop()
    await start(tmp_path)


async def test_a_directory_that_cannot_be_used_is_named(start: Start, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ServerNotStarted, match=r"file.*--data"):
        await start(tmp_path / "file")


async def test_a_server_that_ends_at_once_shows_its_last_words(
    start: Start, tmp_path: Path
) -> None:
    with pytest.raises(ServerNotStarted, match=r"ended at once.*no_such_setting"):
        await start(tmp_path, conf={"no_such_setting": "1"})


async def test_a_path_with_quotes_and_spaces_is_no_trouble(start: Start, tmp_path: Path) -> None:
    server = await start(tmp_path / 'a "b" c')
    assert server.running


async def test_an_unexpected_end_can_be_awaited(start: Start, tmp_path: Path) -> None:
    server = await start(tmp_path)
    os.kill(server.pid, signal.SIGKILL)
    async with asyncio.timeout(10):
        assert await server.wait() == -signal.SIGKILL
    assert not server.running


PARENT = """
import asyncio, sys
from pathlib import Path
from breakwater_gateway.runtime.embedded import start_nats_server
{install}
async def main():
    server = await start_nats_server(Path(sys.argv[1]), 0)
    print(server.pid, flush=True)
    await asyncio.sleep(3600)
{run}
"""


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_it_dies_with_its_parent(tmp_path: Path, loop: str) -> None:
    code = PARENT.format(
        install="import uvloop" if loop == "uvloop" else "", run=f"{loop}.run(main())"
    )
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    assert alive(pid)
    parent.kill()
    await parent.wait()
    async with asyncio.timeout(10):
        while alive(pid):  # noqa: ASYNC110 - another process's end
            await asyncio.sleep(0.01)
