"""A local embedder in its own process, so that its arithmetic never holds up an event loop."""

import asyncio
import contextlib
import struct
import sys
from collections import deque
from collections.abc import Sequence
from typing import Final

import numpy as np

from breakwater_gateway.cache.embed.embedder import NoVector, Vector
from breakwater_gateway.runtime.telemetry import Log

WAITING_MAX: Final = 64
"""Texts in hand; more would be late for their lookups anyway."""
START_S: Final = 60.0
RESTART_S: Final = (0.5, 30.0)
FRAME_MAX: Final = 1 << 20
STOP_S: Final = 2.0


class LocalEmbedder:
    calls = False

    def __init__(self, local: str, log: Log, *, program: tuple[str, ...] = ()) -> None:
        self.name = f"local:{local}"
        self._command = program or (
            *(sys.executable, "-m", "breakwater_gateway.cache.embed"),
            local,
        )
        self._log = log
        self._process: asyncio.subprocess.Process | None = None
        self._waiting: deque[asyncio.Future[Vector | NoVector]] = deque()
        self._keeper: asyncio.Task[None] | None = None
        self.failed = ""
        """Why there is no embedder now; empty while it serves or starts."""
        self.ready = asyncio.Event()

    async def start(self) -> None:
        self._keeper = asyncio.create_task(self._keep())

    async def close(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait({self._keeper})
            self._keeper = None

    async def embed(
        self,
        text: str,
        tenant: str,  # noqa: ARG002 - a contract
        *,
        max_cost_nano_usd: int | None = None,  # noqa: ARG002 - it costs nothing
        patience_s: float | None = None,  # noqa: ARG002 - a contract
    ) -> Vector | NoVector:
        process = self._process
        if process is None or process.stdin is None or not self.ready.is_set():
            return "no_embedding"
        if len(self._waiting) >= WAITING_MAX:
            return "no_embedding"
        data = text.encode("utf-8", "replace")
        if len(data) > FRAME_MAX:
            return "too_long"
        future: asyncio.Future[Vector | NoVector] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        process.stdin.write(struct.pack("<I", len(data)) + data)
        return await future

    async def embed_all(self, texts: Sequence[str], tenant: str) -> list[Vector | NoVector]:
        """One after the other, so that lookups come in between."""
        return [await self.embed(text, tenant) for text in texts]

    async def _keep(self) -> None:
        wait_s = RESTART_S[0]
        try:
            while True:
                try:
                    await self._serve()
                    wait_s = RESTART_S[0]
                except (OSError, EOFError, ValueError, TimeoutError) as error:
                    self.failed = str(error) or type(error).__name__
                    self._log.warning("embedder_failed", embedder=self.name, error=self.failed)
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, RESTART_S[1])
        finally:
            await self._end()

    async def _serve(self) -> None:
        """Until the process ends. Raises `EOFError` with its last words when it does."""
        process = self._process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        try:
            if process.stdout is None or process.stderr is None:
                raise EOFError("no pipes")
            try:
                async with asyncio.timeout(START_S):
                    dimensions = int(await _frame(process.stdout))
            except (asyncio.IncompleteReadError, ValueError):
                said = (await process.stderr.read(2_000)).decode(errors="replace").strip()
                raise EOFError(said.rpartition("\n")[2] or "it ended at once") from None
            self.failed = ""
            self.ready.set()
            self._log.info("embedder_ready", embedder=self.name, dimensions=dimensions)
            try:
                while True:
                    self._answer(await _frame(process.stdout), dimensions)
            except asyncio.IncompleteReadError:
                raise EOFError("the embedder's process ended") from None
        finally:
            await self._end()

    def _answer(self, frame: bytes, dimensions: int) -> None:
        if not self._waiting:
            raise ValueError("an answer nobody asked for")
        future = self._waiting.popleft()
        if future.done():
            return  # who asked has given up
        if not frame:
            future.set_result("too_long")
        elif len(frame) != 4 * dimensions:
            future.set_result("no_embedding")
        else:
            future.set_result(np.frombuffer(frame, dtype="<f4").astype(np.float32))

    async def _end(self) -> None:
        self.ready.clear()
        process, self._process = self._process, None
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_result("no_embedding")
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_S):
                await process.wait()


async def _frame(source: asyncio.StreamReader) -> bytes:
    (size,) = struct.unpack("<I", await source.readexactly(4))
    if size > FRAME_MAX:
        raise ValueError(f"a frame of {size} bytes from the embedder")
    return await source.readexactly(size)
