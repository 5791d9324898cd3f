"""An HTTP/1.1 server on httptools: bounded, callback-driven, no task per request.

Source of the wire rules: RFC 9110 (semantics) and RFC 9112 (HTTP/1.1 framing). A client that closes its
sending half is taken to be gone: callers of language models do so only when they give up.
"""

import asyncio
import errno
import time
from collections.abc import Callable
from email.utils import formatdate

from breakwater_gateway.runtime.http.application import (
    Application,
    HttpLimits,
    Refuse,
    refuse_as_json,
)
from breakwater_gateway.runtime.http.connection import Connection
from breakwater_gateway.runtime.telemetry import Log


class AddressInUse(Exception):
    """Another program listens on the address."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(
            f"{host}:{port} is in use by another program: stop it, or choose another port"
        )
        self.host = host
        self.port = port


class HttpServer:
    """Serves `app` on one address. `app` must not block; it answers at once or later, through the responder."""

    def __init__(
        self,
        app: Application,
        *,
        log: Log,
        limits: HttpLimits | None = None,
        refuse: Refuse | None = None,
    ) -> None:
        self.app = app
        self.log = log
        self.limits = limits = limits or HttpLimits()
        self.refuse = refuse or refuse_as_json
        self.draining = False
        self.port = 0
        self.now = 0.0
        """The loop's time at the last tick: deadlines need no better."""
        shortest = min(
            limits.head_s, limits.body_s, limits.idle_s, limits.write_stall_s, limits.linger_s
        )
        self.tick_s = min(max(shortest / 4, 0.01), 1.0)
        self._connections: set[Connection] = set()
        self._busy = 0
        self._server: asyncio.Server | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._changed: asyncio.Event | None = None
        self._date_second = 0
        self._date = ""

    @property
    def connections(self) -> int:
        return len(self._connections)

    @property
    def busy(self) -> int:
        """Connections with a request that is arriving, waiting or being answered."""
        return self._busy

    async def start(self, host: str, port: int, *, reuse_port: bool = False) -> None:
        """Listens; `port` 0 takes a free one, then found in `.port`. Raises `AddressInUse`, `OSError`."""
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(
                self.connection, host, port, backlog=1024, reuse_port=reuse_port or None
            )
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise AddressInUse(host, port) from error
            raise
        self.port = self._server.sockets[0].getsockname()[1]

    def connection(self) -> asyncio.Protocol:
        """The protocol of a new connection."""
        return Connection(self)

    async def drain(self, timeout_s: float) -> int:
        """Takes no new connections, finishes what is in hand, closes the rest.

        Requests that still arrive on open connections are served, with `connection: close`. Returns the
        number of connections that had to be cut because `timeout_s` passed.
        """
        if self._server is not None:
            # Connections that the kernel has accepted are taken first: closing would reset them.
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            self._server.close()
        self.draining = True
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        await self._until(lambda: not self._busy, deadline)
        cut = self._busy
        for connection in tuple(self._connections):
            connection.leave()
        await self._until(lambda: not self._connections, deadline)
        cut += sum(connection.unsent() > 0 for connection in self._connections)
        await self.close()
        return cut

    async def close(self) -> None:
        """Stops at once, and cuts what is in hand."""
        self.draining = True
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in tuple(self._connections):
            connection.abort()
        # The transports report their end in the loop's next turns.
        for _ in range(3):
            await asyncio.sleep(0)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def _until(self, done: Callable[[], bool], deadline: float) -> None:
        self._changed = changed = asyncio.Event()
        try:
            async with asyncio.timeout_at(deadline):
                while not done():
                    changed.clear()
                    await changed.wait()
        except TimeoutError:
            return
        finally:
            self._changed = None

    def tick(self, now: float) -> None:
        """Acts on every deadline passed by `now`: one timer serves all connections."""
        self.now = now
        for connection in tuple(self._connections):
            if connection.deadline <= now:
                connection.expire()

    def date_line(self) -> str:
        """`date: …`, made once a second."""
        second = int(time.time())
        if second != self._date_second:
            self._date_second = second
            self._date = f"date: {formatdate(second, usegmt=True)}\r\n"
        return self._date

    def opened(self, connection: Connection) -> None:
        self._connections.add(connection)
        if self._timer is None:
            self._wait()

    def closed(self, connection: Connection) -> None:
        self._connections.discard(connection)
        if self._changed is not None:
            self._changed.set()

    def busier(self) -> None:
        self._busy += 1

    def quieter(self) -> None:
        self._busy -= 1
        if self._changed is not None:
            self._changed.set()

    def _wait(self) -> None:
        loop = asyncio.get_running_loop()
        self.now = loop.time()
        self._timer = loop.call_later(self.tick_s, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self.tick(asyncio.get_running_loop().time())
        if self._connections:
            self._wait()
