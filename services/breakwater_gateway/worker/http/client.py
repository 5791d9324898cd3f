"""The clients: what the worker asks of one, our own, and one over any httpx transport."""

import asyncio
import weakref
from typing import Final, Protocol

import httpx

from breakwater_gateway.worker.http.answer import Answer, WireAnswer
from breakwater_gateway.worker.http.dial import Dialler, Proxies
from breakwater_gateway.worker.http.errors import MalformedHttp
from breakwater_gateway.worker.http.pool import Limits, OriginStats, Pool
from breakwater_gateway.worker.http.prepared import Headers, Prepared, Target, rendered_header

CONNECT_TIMEOUT_S: Final = 5.0
POOL_TIMEOUT_S: Final = 5.0
DECODED_BYTES_MAX: Final = 64 * 1024 * 1024


class HttpClient(Protocol):
    """What the worker needs. There are no timeouts for reading: cancel, or close the answer."""

    def prepare(
        self, method: str, url: str, headers: Headers = (), *, http2: bool = True
    ) -> Prepared:
        """To be made once and sent often. Raises ValueError if it could not be sent safely.

        `http2` False keeps to HTTP/1.1 even where the server would take HTTP/2.
        """
        ...

    async def send(
        self,
        prepared: Prepared,
        body: bytes = b"",
        *,
        headers: Headers = (),
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        pool_timeout_s: float = POOL_TIMEOUT_S,
    ) -> Answer:
        """The answer, as soon as its head is here. `headers` come on top of the prepared ones.

        Raises ConnectFailed, PoolTimeout, CutAnswer, ReadFailed, MalformedHttp; ValueError for bad
        headers. Cancelling it aborts the request.
        """
        ...

    def stats(self) -> list[OriginStats]: ...
    async def close(self) -> None: ...


class FastClient:
    """HTTP/1.1 on httptools and HTTP/2 on h2. Must be made within a running loop."""

    def __init__(
        self,
        *,
        limits: Limits | None = None,
        verify: bool | str = True,
        proxies: Proxies | None = None,
        decoded_bytes_max: int = DECODED_BYTES_MAX,
    ) -> None:
        """`proxies` None: those of the environment. `decoded_bytes_max`: of one answer that came
        compressed."""
        self._limits = limits or Limits()
        self._dialler = Dialler(
            verify=verify, proxies=Proxies.from_environment() if proxies is None else proxies
        )
        self._decoded_bytes_max = decoded_bytes_max
        self._loop = asyncio.get_running_loop()
        # Held by what uses them: prepared requests and open connections.
        self._pools: weakref.WeakValueDictionary[tuple[str, str, int, bool], Pool] = (
            weakref.WeakValueDictionary()
        )
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def prepare(
        self, method: str, url: str | httpx.URL, headers: Headers = (), *, http2: bool = True
    ) -> Prepared:
        target = Target(url)
        pool = self.pool(target.scheme, target.host, target.port, http2=http2)
        proxy = self._dialler.proxies.of(target.scheme, target.host, target.port)
        if target.scheme == "https":
            self._dialler.context(http2=pool.http2)
        plain_proxy = proxy if target.scheme == "http" else None
        return Prepared(
            method=method,
            target=target,
            headers=headers,
            pool=pool,
            absolute=plain_proxy is not None,
            proxy_header=plain_proxy.authorization if plain_proxy is not None else b"",
        )

    async def send(
        self,
        prepared: Prepared,
        body: bytes = b"",
        *,
        headers: Headers = (),
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        pool_timeout_s: float = POOL_TIMEOUT_S,
    ) -> WireAnswer:
        pool = prepared.pool
        if pool is None:
            raise ValueError("the request was prepared by another client")
        answer = await pool.send(
            prepared,
            body,
            [rendered_header(name, value) for name, value in headers] if headers else (),
            connect_timeout_s=connect_timeout_s,
            pool_timeout_s=pool_timeout_s,
        )
        try:
            answer.decode_with_limit(self._decoded_bytes_max)
        except MalformedHttp:
            answer.close()
            raise
        return answer

    async def send_raw(
        self,
        prepared: Prepared,
        body: bytes,
        *,
        connect_timeout_s: float | None,
        pool_timeout_s: float | None,
    ) -> WireAnswer:
        """As `send`, the content coding left alone; None waits as long as it takes."""
        if prepared.pool is None:
            raise ValueError("the request was prepared by another client")
        return await prepared.pool.send(
            prepared,
            body,
            (),
            connect_timeout_s=connect_timeout_s,
            pool_timeout_s=pool_timeout_s,
        )

    def stats(self) -> list[OriginStats]:
        return [pool.stats() for pool in self._pools.values()]

    async def close(self) -> None:
        """Closes all connections; answers under way fail with ReadFailed."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for pool in list(self._pools.values()):
            pool.close()
        # One turn of the loop, so that the transports are closed when this returns.
        await asyncio.sleep(0)

    def pool(self, scheme: str, host: str, port: int, *, http2: bool) -> Pool:
        http2 = http2 and scheme == "https"
        key = (scheme, host, port, http2)
        pool = self._pools.get(key)
        if pool is None:
            pool = Pool(
                scheme=scheme,
                host=host,
                port=port,
                http2=http2,
                limits=self._limits,
                dial=self._dialler.dial,
                on_idle=self._watch,
            )
            if self._closed:
                pool.close()
            self._pools[key] = pool
        return pool

    def _watch(self) -> None:
        if self._timer is None and not self._closed:
            self._timer = self._loop.call_later(self._limits.idle_s / 4, self._sweep)

    def _sweep(self) -> None:
        """One coarse timer expires idle connections everywhere: each lives 1 to 1.25 idle times."""
        self._timer = None
        now = self._loop.time()
        wakes = [pool.sweep(now) for pool in list(self._pools.values())]
        if any(wake is not None for wake in wakes):
            self._watch()
