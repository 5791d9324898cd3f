"""The connections to one origin: a stack of idle ones, and a queue for when all are in use."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Protocol, TypeVar

from msgspec import Struct

from breakwater_gateway.worker.http.answer import WireAnswer
from breakwater_gateway.worker.http.errors import ConnectFailed, HttpFailure, PoolTimeout
from breakwater_gateway.worker.http.http1 import Http1Connection
from breakwater_gateway.worker.http.http2 import Http2Connection
from breakwater_gateway.worker.http.prepared import Field, Prepared

Connection = Http1Connection | Http2Connection
_T = TypeVar("_T")


class OriginStats(Struct, frozen=True):
    """Of one origin, now; and since its pool was made."""

    origin: str
    open: int
    """Connections, those being made included."""
    idle: int
    in_use: int
    """Answers under way (several may share an HTTP/2 connection)."""
    waiting: int
    """Requests that wait for a connection."""
    dialled: int
    retried: int
    """Requests sent a second time because a reused connection turned out dead."""


class Limits(Struct, frozen=True):
    """Bounds of one origin's pool."""

    connections: int = 1024
    waiting: int = 4096
    idle_s: float = 60.0
    """Below what common servers and balancers keep (nginx 75 s, AWS 60 s, uvicorn 5 s): the rest
    is what the retry of a stale connection is for."""


class Dial(Protocol):
    def __call__(
        self, pool: "Pool", timeout_s: float | None
    ) -> Coroutine[None, None, Connection]: ...


class Pool:
    """O(1) a request: the idle connection used last is used first, so that spare ones expire."""

    __slots__ = (
        "__weakref__",
        "_closed",
        "_connections",
        "_dial",
        "_dialling",
        "_loop",
        "_multiplexes",
        "dialled",
        "host",
        "http2",
        "idle",
        "in_use",
        "limits",
        "multiplexed",
        "on_idle",
        "open",
        "port",
        "retried",
        "scheme",
        "waiters",
    )

    def __init__(
        self,
        *,
        scheme: str,
        host: str,
        port: int,
        http2: bool,
        limits: Limits,
        dial: Dial,
        on_idle: Callable[[], None],
    ) -> None:
        """`on_idle` is told whenever there is something for `sweep` to look at."""
        self.scheme = scheme
        self.host = host
        self.port = port
        self.http2 = http2 and scheme == "https"
        self.limits = limits
        self.on_idle = on_idle
        self._dial = dial
        self._loop = asyncio.get_running_loop()
        self._closed = False
        self._multiplexes: bool | None = None if self.http2 else False
        """What the server chose in ALPN, once known."""
        self._dialling: asyncio.Future[ConnectFailed | None] | None = None
        self._connections: set[Connection] = set()
        self.idle: deque[Http1Connection] = deque()
        self.multiplexed: list[Http2Connection] = []
        self.open = 0
        self.in_use = 0
        self.dialled = 0
        self.retried = 0
        self.waiters: deque[asyncio.Future[Connection | None]] = deque()

    @property
    def origin(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"

    def stats(self) -> OriginStats:
        idle = sum(not connection.closed for connection in self.idle)
        idle += sum(connection.holds == 0 for connection in self.multiplexed)
        return OriginStats(
            origin=self.origin,
            open=self.open,
            idle=idle,
            in_use=self.in_use,
            waiting=len(self.waiters),
            dialled=self.dialled,
            retried=self.retried,
        )

    # ------------------------------------------------------------------ requests

    async def send(
        self,
        prepared: Prepared,
        body: bytes,
        fields: Sequence[Field],
        *,
        connect_timeout_s: float | None,
        pool_timeout_s: float | None,
    ) -> WireAnswer:
        """The answer's head. Raises as HttpClient.send."""
        connection = self.take()
        if connection is None:
            connection = await self._acquire(connect_timeout_s, pool_timeout_s, fresh=False)
        answer = connection.start(prepared, body, fields)
        try:
            await answer.head(self._loop)
        except HttpFailure:
            if not answer.unprocessed:
                raise
        else:
            return answer
        self.retried += 1
        connection = await self._acquire(connect_timeout_s, pool_timeout_s, fresh=True)
        answer = connection.start(prepared, body, fields)
        answer.retried = True
        await answer.head(self._loop)
        return answer

    # ------------------------------------------------------------------ connections out and in

    def take(self) -> Connection | None:
        """A connection that is there, reserved for the caller; None if there is none to be had."""
        idle = self.idle
        while idle:
            connection = idle.pop()
            if not connection.closed:
                connection.holds = 1
                self.in_use += 1
                return connection
        for shared in self.multiplexed:
            if shared.available:
                shared.holds += 1
                self.in_use += 1
                return shared
        return None

    def give(self, connection: Connection) -> None:
        """Back from one use, in good order; the connection no longer counts that use."""
        self.in_use -= 1
        if self.waiters and connection.available and self._hand_over(connection):
            return
        if isinstance(connection, Http1Connection):
            if self._closed:
                connection.stop()
                return
            connection.idle_since = self._loop.time()
            self.idle.append(connection)
            self.on_idle()
        elif self._closed and connection.holds == 0:
            connection.stop()

    def serve(self, shared: Http2Connection) -> None:
        """It may have room for those who wait."""
        while self.waiters and shared.available:
            self._hand_over(shared)

    def discard(self, connection: Connection) -> None:
        """It is closed, with `holds` uses of it unfinished."""
        self.in_use -= connection.holds
        connection.holds = 0
        self._connections.discard(connection)
        if isinstance(connection, Http2Connection):
            self.multiplexed.remove(connection)
        else:
            idle = self.idle
            while idle and idle[-1].closed:
                idle.pop()
        self._slot_freed()

    def sweep(self, now: float) -> float | None:
        """Closes what is idle for too long; when to look again, None if there is nothing to look at."""
        idle = self.idle
        expired_at = now - self.limits.idle_s
        while idle and (idle[0].closed or idle[0].idle_since <= expired_at):
            idle.popleft().stop()
        wake = idle[0].idle_since + self.limits.idle_s if idle else None
        for shared in tuple(self.multiplexed):
            at = shared.sweep(now, idle_s=self.limits.idle_s)
            if at is not None:
                wake = at if wake is None else min(wake, at)
        return wake

    def close(self) -> None:
        """Closes every connection; what waits or is under way fails."""
        self._closed = True
        while self.waiters:
            waiter = self.waiters.popleft()
            if not waiter.done():
                waiter.set_exception(PoolTimeout("the client is closed"))
        for connection in tuple(self._connections):
            connection.stop()

    # ------------------------------------------------------------------ waiting and dialling

    async def _acquire(
        self, connect_timeout_s: float | None, pool_timeout_s: float | None, *, fresh: bool
    ) -> Connection:
        """A reserved connection, made if need be; `fresh`: not one that has been idle."""
        deadline = None if pool_timeout_s is None else self._loop.time() + pool_timeout_s
        while True:
            if self._closed:
                raise PoolTimeout("the client is closed")
            if not fresh and (found := self.take()) is not None:
                return found
            if self._dialling is not None and self._multiplexes is not False:
                # One connection may serve everybody: see what becomes of it first.
                failed = await self._within(asyncio.shield(self._dialling), deadline)
                if failed is not None:
                    raise ConnectFailed(failed.kind, failed.message)
                fresh = False
                continue
            if self.open >= self.limits.connections and fresh and self.idle:
                self.idle.popleft().stop()
            if self.open < self.limits.connections:
                self.open += 1
                return await self._connect(connect_timeout_s)
            handed = await self._wait(deadline)
            if handed is None:
                return await self._connect(connect_timeout_s)
            if not handed.closed:
                return handed
            # It died between the hand-over and now; its slot is free again.

    async def _wait(self, deadline: float | None) -> Connection | None:
        """In the queue: a reserved connection, or None for a slot (counted) to dial into."""
        if len(self.waiters) >= self.limits.waiting:
            raise PoolTimeout(f"{len(self.waiters)} requests wait for {self.origin} already")
        waiter: asyncio.Future[Connection | None] = self._loop.create_future()
        self.waiters.append(waiter)
        try:
            return await self._within(waiter, deadline)
        except BaseException:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                # Served in the very moment of giving up.
                handed = waiter.result()
                if handed is None:
                    self._slot_freed()
                else:
                    handed.release()
            elif waiter in self.waiters:
                self.waiters.remove(waiter)
            raise

    async def _within(self, waiter: Awaitable[_T], deadline: float | None) -> _T:
        try:
            async with asyncio.timeout_at(deadline):
                return await waiter
        except TimeoutError:
            raise PoolTimeout(f"no connection to {self.origin} became free") from None

    def _hand_over(self, connection: Connection) -> bool:
        """To the first in the queue, if anybody still waits."""
        while self.waiters:
            waiter = self.waiters.popleft()
            if not waiter.done():
                connection.holds += 1
                self.in_use += 1
                waiter.set_result(connection)
                return True
        return False

    def _slot_freed(self) -> None:
        """A connection may be made by the first in the queue, who takes over the slot."""
        while self.waiters:
            waiter = self.waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        self.open -= 1

    async def _connect(self, timeout_s: float | None) -> Connection:
        """Makes a connection into a slot that is counted already. Raises ConnectFailed."""
        dialling: asyncio.Future[ConnectFailed | None] = self._loop.create_future()
        if self._dialling is None:
            self._dialling = dialling
        failed: ConnectFailed | None = None
        try:
            connection = await self._dial(self, timeout_s)
        except BaseException as error:
            failed = error if isinstance(error, ConnectFailed) else None
            self._slot_freed()
            raise
        finally:
            if self._dialling is dialling:
                self._dialling = None
            dialling.set_result(failed)
        self.dialled += 1
        self.in_use += 1
        connection.holds = 1
        connection.pooled = True
        self._connections.add(connection)
        if isinstance(connection, Http2Connection):
            self._multiplexes = True
            self.multiplexed.append(connection)
            self.serve(connection)
            self.on_idle()
        else:
            self._multiplexes = False
        if self._closed:
            connection.stop()
        return connection
