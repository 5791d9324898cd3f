"""What the HTTP client's tests share: servers that do with each connection exactly what a script says."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from ssl import SSLContext

WAIT_S = 10.0
"""Far more than anything takes; only a failing test waits for it."""

BACKENDS = [
    ("asyncio", {"use_uvloop": True}),
    ("asyncio", {"use_uvloop": False}),
]
BACKEND_NAMES = ["uvloop", "asyncio"]


class Connection:
    """The server's end of one connection."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int
    ) -> None:
        self.reader = reader
        self.writer = writer
        self.number = number

    async def request(self) -> tuple[bytes, bytes]:
        """The next request's head and body."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        size = 0
        for line in head.split(b"\r\n"):
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                size = int(value)
        return head, await self.reader.readexactly(size)

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def gone(self) -> None:
        """Returns when the client has closed its side, or cut the connection."""
        try:
            while await self.reader.read(65536):
                pass
        except ConnectionError:
            pass


Script = Callable[[Connection], Awaitable[None]]


class Server:
    def __init__(self, script: Script) -> None:
        self._script = script
        self._tasks: set[asyncio.Task[None]] = set()
        self.connections = 0
        self.port = 0
        self.scheme = "http"

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}/v1/chat/completions?x=1"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            await self._script(Connection(reader, writer, self.connections))
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the client went away, or the test is over
        finally:
            writer.close()
            self._tasks.discard(task)

    async def stop_scripts(self) -> None:
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=WAIT_S)


@asynccontextmanager
async def serving(script: Script, *, tls: SSLContext | None = None) -> AsyncIterator[Server]:
    server = Server(script)
    listener = await asyncio.start_server(server._serve, "127.0.0.1", 0, ssl=tls, limit=1 << 24)
    server.port = listener.sockets[0].getsockname()[1]
    server.scheme = "http" if tls is None else "https"
    try:
        yield server
    finally:
        listener.close()
        await server.stop_scripts()


async def until(condition: Callable[[], bool]) -> None:
    """Lets the loop run until the condition holds."""
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 - the client has no event for its counters
            await asyncio.sleep(0.001)


def answering(*responses: bytes) -> Script:
    """Each request gets the next response, over however many connections; the last one repeats."""
    left = list(responses)

    async def script(connection: Connection) -> None:
        while True:
            await connection.request()
            connection.send(left.pop(0) if len(left) > 1 else left[0])

    return script


def closing(*writes: bytes) -> Script:
    """One request gets these writes, then the connection is closed."""

    async def script(connection: Connection) -> None:
        await connection.request()
        for data in writes:
            connection.send(data)
            await connection.writer.drain()
            await asyncio.sleep(0)

    return script
