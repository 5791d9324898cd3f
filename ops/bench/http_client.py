"""CPU of the worker's HTTP client, per call and per streamed chunk, ours beside httpx's, in one run.

    python -m ops.bench.http_client [--calls 4000] [--streams 100] [--chunks 100]

The server is a process of its own; what is counted is this process's CPU (`time.process_time`), so the
far end is not in it. Variants take turns, round by round, and the median of the rounds is printed: compare
within one run only.
"""

import argparse
import asyncio
import gc
import multiprocessing
import multiprocessing.connection
import platform
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from importlib.metadata import version

import httpx
import uvloop

from breakwater_gateway.worker.http_client import (
    FastClient,
    HttpxClient,
    Prepared,
    Proxies,
    Transport,
)

ROUNDS = 5
REQUEST = b'{"model":"m","messages":[{"role":"user","content":"' + b"q" * 1950 + b'"}]}'
ANSWER = b'{"id":"chatcmpl-1","choices":[{"message":{"content":"' + b"a" * 950 + b'"}}]}'
EVENT = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1700000000,"model":"m",'
    b'"choices":[{"index":0,"delta":{"content":" word"},"finish_reason":null}]}\n\n'
)
HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ndate: Mon, 23 Nov 2026 10:00:00 GMT\r\nserver: x\r\n"
    b"x-request-id: req_0123456789\r\nx-ratelimit-remaining-requests: 99\r\n"
)
TICK_S = 0.02
"""Between two chunks of one stream: 50 a second, so that each chunk is its own wake-up."""


class _Server(asyncio.Protocol):
    """Answers whole requests; those to /stream/N with N chunks, one a tick."""

    transport: asyncio.Transport
    held = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self.held += data
        head, end, body = self.held.partition(b"\r\n\r\n")
        if not end or len(body) < len(REQUEST):
            return
        self.held = b""
        path = head.split(b" ", 2)[1]
        if path.startswith(b"/stream/"):
            kind = HEAD % b"text/event-stream"
            self.transport.write(kind + b"transfer-encoding: chunked\r\n\r\n")
            self._tick(int(path[8:]))
        else:
            size = b"content-length: %d\r\n\r\n" % len(ANSWER)
            self.transport.write(HEAD % b"application/json" + size + ANSWER)

    def _tick(self, left: int) -> None:
        if left == 0:
            self.transport.write(b"0\r\n\r\n")
            return
        self.transport.write(b"%x\r\n%b\r\n" % (len(EVENT), EVENT))
        asyncio.get_running_loop().call_later(TICK_S, self._tick, left - 1)


def _serve(port_to: multiprocessing.connection.Connection) -> None:
    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(_Server, "127.0.0.1", 0)
        port_to.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    uvloop.run(run())


Call = Callable[[str], Awaitable[int]]
"""One request to the URL; how many bytes its answer had."""


def _ours(client: FastClient | HttpxClient) -> Call:
    prepared: dict[str, Prepared] = {}

    async def call(url: str) -> int:
        request = prepared.get(url)
        if request is None:
            request = prepared[url] = client.prepare(
                "POST", url, [("content-type", "application/json"), ("authorization", "Bearer k")]
            )
        answer = await client.send(request, REQUEST)
        size = 0
        while (chunk := await answer.chunk()) is not None:
            size += len(chunk)
        answer.close()
        return size

    return call


def _httpx(client: httpx.AsyncClient) -> Call:
    async def call(url: str) -> int:
        headers = {"content-type": "application/json", "authorization": "Bearer k"}
        size = 0
        async with client.stream("POST", url, content=REQUEST, headers=headers) as answer:
            async for chunk in answer.aiter_raw():
                size += len(chunk)
        return size

    return call


def _direct(transport: httpx.AsyncBaseTransport) -> Call:
    async def call(url: str) -> int:
        headers = {"content-type": "application/json", "authorization": "Bearer k"}
        request = httpx.Request("POST", url, content=REQUEST, headers=headers)
        answer = await transport.handle_async_request(request)
        assert isinstance(answer.stream, httpx.AsyncByteStream)
        size = 0
        async for chunk in answer.stream:
            size += len(chunk)
        await answer.stream.aclose()
        return size

    return call


async def _calls(call: Call, url: str, *, count: int, at_once: int) -> float:
    async def some() -> None:
        for _ in range(count // at_once):
            assert await call(url) == len(ANSWER)

    begin = time.process_time()
    await asyncio.gather(*(some() for _ in range(at_once)))
    return (time.process_time() - begin) / (count // at_once * at_once) * 1e6


async def _streams(call: Call, url: str, *, streams: int, chunks: int) -> float:
    begin = time.process_time()
    sizes = await asyncio.gather(*(call(f"{url}stream/{chunks}") for _ in range(streams)))
    took = time.process_time() - begin
    assert sizes == [len(EVENT) * chunks] * streams
    return took / (streams * chunks) * 1e6


async def _measure(port: int, *, calls: int, streams: int, chunks: int) -> None:
    url = f"http://127.0.0.1:{port}/"
    fast = FastClient(proxies=Proxies({}))
    adapted = FastClient(proxies=Proxies({}))
    direct = Transport(FastClient(proxies=Proxies({})))
    limits = httpx.Limits(max_connections=1000, max_keepalive_connections=1000)
    default = httpx.AsyncClient(limits=limits, timeout=60.0, trust_env=False)
    mounted = httpx.AsyncClient(transport=Transport(adapted), timeout=60.0, trust_env=False)
    under = HttpxClient(httpx.AsyncHTTPTransport(limits=limits, trust_env=False))
    variants: list[tuple[str, Call, int]] = [
        # The slow ones get fewer calls: they are told apart well enough.
        ("FastClient", _ours(fast), calls),
        ("our httpx Transport, called directly", _direct(direct), calls // 4),
        ("httpx.AsyncClient on our Transport", _httpx(mounted), calls // 4),
        ("HttpxClient on httpx's default transport", _ours(under), calls // 10),
        ("httpx.AsyncClient, its default", _httpx(default), calls // 10),
    ]
    rows: dict[str, list[list[float]]] = {name: [[], [], []] for name, _, _ in variants}
    for number in range(ROUNDS + 1):
        for name, call, count in variants:
            gc.collect()
            figures = (
                await _calls(call, url, count=count, at_once=1),
                await _calls(call, url, count=count, at_once=32),
                await _streams(call, url, streams=streams, chunks=chunks),
            )
            if number:  # the first round warms up
                for kept, figure in zip(rows[name], figures, strict=True):
                    kept.append(figure)
    print(
        f"{platform.machine()}, Python {platform.python_version()}, uvloop {version('uvloop')}; "
        f"median of {ROUNDS} rounds, µs of CPU in the client's process; "
        f"{len(REQUEST)} B in, {len(ANSWER)} B out, chunks of {len(EVENT)} B"
    )
    print(f"\n| | a call, alone | a call, 32 at once | a chunk of {streams} streams |")
    print("|---|---|---|---|")
    for name, row in rows.items():
        print(f"| {name} | " + " | ".join(_shown(column) for column in row) + " |")
    await fast.close()
    await under.close()
    await mounted.aclose()
    await direct.aclose()
    await default.aclose()


def _shown(figures: Sequence[float]) -> str:
    return f"{statistics.median(figures):.1f}"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--calls", type=int, default=4000)
    arguments.add_argument("--streams", type=int, default=100)
    arguments.add_argument("--chunks", type=int, default=50)
    chosen = arguments.parse_args()
    context = multiprocessing.get_context("spawn")
    port_from, port_to = context.Pipe(duplex=False)
    server = context.Process(target=_serve, args=(port_to,), daemon=True)
    server.start()
    try:
        uvloop.run(
            _measure(
                port_from.recv(),
                calls=chosen.calls,
                streams=chosen.streams,
                chunks=chosen.chunks,
            )
        )
    finally:
        server.terminate()
        server.join()


if __name__ == "__main__":
    main()
