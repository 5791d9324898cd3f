"""A nats-server to start and stop, and a gateway that the test drives by hand, one request at a time."""

import asyncio
import json
import secrets
import subprocess
import sysconfig
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import nats
from nats.aio.client import Client as Nats
from nats.aio.msg import Msg

from breakwater_protocol import headers as h
from breakwater_protocol.commands import Cancel
from breakwater_protocol.subjects import Subjects

PATIENCE_S = 10.0
"""How long a test waits for what has to come; nothing passes by waiting."""


class NatsServer:
    """A nats-server process on loopback; it keeps its port across `stop` and `start`."""

    def __init__(self, directory: Path, config: str = "") -> None:
        self._directory = directory
        self._config = directory / "nats.conf"
        self._config.write_text(config)
        self._process: subprocess.Popen[bytes] | None = None
        self._port = -1

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self._port}"

    def start(self) -> None:
        binary = Path(sysconfig.get_path("scripts")) / "nats-server"
        log = self._directory / "nats.log"
        log.write_bytes(b"")
        self._process = subprocess.Popen(
            [
                binary,
                *("--config", self._config),
                *("--addr", "127.0.0.1"),
                *("--port", str(self._port)),
                *("--log", log),
                *("--ports_file_dir", self._directory),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._port = int(self._wait_until_ready(log)[0].rpartition(":")[2])

    def _wait_until_ready(self, log: Path) -> list[str]:
        """The URLs it serves."""
        assert self._process is not None
        until = time.monotonic() + PATIENCE_S
        while self._process.poll() is None and time.monotonic() < until:
            for file in self._directory.glob("*.ports"):
                text = file.read_text()
                if text.endswith("}") and b"Server is ready" in log.read_bytes():
                    urls: list[str] = json.loads(text)["nats"]
                    return urls
            time.sleep(0.005)
        self.stop()
        raise RuntimeError(f"nats-server did not start: {log.read_text()}")

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        for ports in self._directory.glob("*.ports"):
            ports.unlink()


class FakeRequest:
    """One request as the gateway sees it."""

    def __init__(self, connection: Nats, message: Msg) -> None:
        self._connection = connection
        self.subject = message.subject
        self.reply = message.reply
        self.headers = message.headers or {}
        self.data = message.data

    @property
    def body(self) -> Any:  # noqa: ANN401 - JSON
        return json.loads(self.data)

    async def send(self, data: bytes = b"", **headers: str) -> None:
        """Header names are given without their prefix: `seq="0"`, `end="ok"`."""
        named = {f"breakwater-{name.replace('_', '-')}": value for name, value in headers.items()}
        await self._connection.publish(self.reply, data, headers=named or None)

    async def chunk(self, seq: int, *texts: str, **headers: str) -> None:
        await self.send(b"\n".join(map(chunk, texts)), seq=str(seq), **headers)

    async def refuse(
        self, status: int, code: str = "", message: str = "", **more: str | None
    ) -> None:
        wait, retry = more.get("retry_after"), more.get("should_retry")
        headers = {h.SERVICE_ERROR_CODE: str(status), h.SERVICE_ERROR: message or "refused"}
        headers |= {h.RETRY_AFTER: wait} if wait else {}
        headers |= {h.SHOULD_RETRY: retry} if retry else {}
        error = {"message": message, "type": "some_error", "code": code, "param": None}
        body = json.dumps({"error": error}).encode()
        await self._connection.publish(self.reply, body, headers=headers)


class FakeGateway:
    def __init__(self, url: str) -> None:
        self._url = url
        self._subjects = Subjects()
        self._requests: asyncio.Queue[FakeRequest] = asyncio.Queue()
        self._cancels: asyncio.Queue[Cancel] = asyncio.Queue()
        self._echo = f"echo.{secrets.token_hex(4)}"
        self.connection = Nats()

    async def __aenter__(self) -> Self:
        self.connection = await nats.connect(
            self._url, reconnect_time_wait=0, error_cb=self._heard_error
        )
        for subject in (self._subjects.chat, self._subjects.embeddings, self._subjects.models):
            await self.connection.subscribe(subject.any(), cb=self._on_request)
        await self.connection.subscribe(self._subjects.cancel.any(), cb=self._on_cancel)
        await self.connection.subscribe(self._echo, cb=self._on_echo)
        await self.sync()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.connection.close()

    async def sync(self) -> None:
        """Returns when the server has taken everything said so far (nats-py's flush overtakes it)."""
        await self.connection.request(self._echo, timeout=PATIENCE_S)

    async def _on_echo(self, message: Msg) -> None:
        await self.connection.publish(message.reply)

    async def _heard_error(self, error: Exception) -> None:
        """The server of a drill is stopped and started: nothing to report."""

    async def _on_request(self, message: Msg) -> None:
        self._requests.put_nowait(FakeRequest(self.connection, message))

    async def _on_cancel(self, message: Msg) -> None:
        cancel = self._subjects.cancel.decode(message.data)
        assert self._subjects.cancel.names(message.subject) == (cancel.request,)
        self._cancels.put_nowait(cancel)

    async def next_request(self) -> FakeRequest:
        async with asyncio.timeout(PATIENCE_S):
            return await self._requests.get()

    async def next_cancel(self) -> Cancel:
        async with asyncio.timeout(PATIENCE_S):
            return await self._cancels.get()

    async def cancels_so_far(self) -> int:
        """Once everything that was published before has arrived."""
        await self.sync()
        return self._cancels.qsize()


def chunk(text: str) -> bytes:
    choice = {"index": 0, "delta": {"content": text}}
    return json.dumps({"object": "chat.completion.chunk", "choices": [choice]}).encode()
