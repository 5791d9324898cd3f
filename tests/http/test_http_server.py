"""The server on real sockets, under asyncio's loop and uvloop's."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import httpx
import pytest
from tests.http.wire import Recorder, answers, echo, make, until

from breakwater_gateway.runtime.http.application import HttpLimits, HttpRequest, Responder
from breakwater_gateway.runtime.http.server import AddressInUse, HttpServer

pytestmark = pytest.mark.anyio

GET = b"GET /a HTTP/1.1\r\nhost: h\r\n\r\n"
PATIENCE_S = 20


@pytest.fixture(
    params=[("asyncio", {"use_uvloop": False}), ("asyncio", {"use_uvloop": True})],
    ids=["asyncio", "uvloop"],
)
def anyio_backend(request: pytest.FixtureRequest) -> object:
    return request.param


@asynccontextmanager
async def serving(
    app: Callable[[HttpRequest, Responder], None] = echo, limits: HttpLimits | None = None
) -> AsyncIterator[HttpServer]:
    server, _ = make(app, limits=limits)
    await server.start("127.0.0.1", 0)
    try:
        async with asyncio.timeout(PATIENCE_S):
            yield server
    finally:
        await server.close()


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def ask(self, data: bytes) -> bytes:
        """One request; the bytes of one answer that has a length."""
        self.writer.write(data)
        return await self.answer()

    async def answer(self) -> bytes:
        head = await self.reader.readuntil(b"\r\n\r\n")
        size = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        return head + await self.reader.readexactly(size)


@asynccontextmanager
async def connected(server: HttpServer) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        yield Client(reader, writer)
    finally:
        writer.close()


async def test_a_connection_serves_many_requests() -> None:
    async with serving() as server, connected(server) as client:
        for i in range(5):
            got = await client.ask(
                b"POST /%d HTTP/1.1\r\nhost: h\r\ncontent-length: 1\r\n\r\nx" % i
            )
            assert answers(got)[0].body == b"/%d|x" % i
        assert server.connections == 1


async def test_a_request_may_come_byte_by_byte() -> None:
    async with serving() as server, connected(server) as client:
        for byte in GET:
            client.writer.write(bytes([byte]))
            await client.writer.drain()
            await asyncio.sleep(0)
        assert answers(await client.answer())[0].body == b"/a|"


async def test_two_hundred_clients_at_once_each_get_their_own() -> None:
    async with serving() as server, httpx.AsyncClient() as client:
        url = f"http://127.0.0.1:{server.port}/"
        got = await asyncio.gather(*(client.post(f"{url}{i}", content=b"x") for i in range(200)))
        assert [r.text for r in got] == [f"/{i}|x" for i in range(200)]


async def test_a_malformed_neighbour_disturbs_nobody() -> None:
    async with serving() as server, connected(server) as good, connected(server) as bad:
        await good.ask(GET)
        bad.writer.write(b"\x00\x01\x02\r\n\r\n")
        assert b" 400 " in await bad.reader.read()
        assert answers(await good.ask(GET))[0].status == 200


async def test_a_port_in_use_is_named() -> None:
    async with serving() as server:
        other, _ = make()
        with pytest.raises(AddressInUse, match=rf"127\.0\.0\.1:{server.port} is in use"):
            await other.start("127.0.0.1", server.port)


async def test_a_port_can_be_shared_on_purpose() -> None:
    one, _ = make()
    two, _ = make()
    await one.start("127.0.0.1", 0, reuse_port=True)
    await two.start("127.0.0.1", one.port, reuse_port=True)
    assert one.port == two.port
    await one.close()
    await two.close()


@pytest.mark.parametrize("half", [False, True])
async def test_a_client_that_leaves_is_noticed(half: bool) -> None:
    gone = asyncio.Event()

    def app(_: HttpRequest, responder: Responder) -> None:
        responder.on_close = gone.set
        responder.start(200, [])
        responder.write(b"first")

    async with serving(app) as server, connected(server) as client:
        client.writer.write(GET)
        await client.reader.readuntil(b"first")
        if half:
            client.writer.write_eof()
        else:
            client.writer.close()
        await gone.wait()
        await until(lambda: server.connections == 0)
        assert server.busy == 0


async def test_an_aborted_stream_reaches_the_client_as_incomplete() -> None:
    def app(_: HttpRequest, responder: Responder) -> None:
        responder.start(200, [])
        responder.write(b"half")
        responder.abort()

    async with serving(app) as server, httpx.AsyncClient() as client:
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get(f"http://127.0.0.1:{server.port}/")


async def test_a_reset_reaches_the_client_as_one() -> None:
    app = Recorder()
    async with serving(app) as server, connected(server) as client:
        client.writer.write(GET)
        await until(lambda: bool(app.calls))
        app.responder.reset()
        with pytest.raises(ConnectionResetError):
            await client.reader.read()


async def test_a_refusal_can_be_read_by_a_client_still_sending() -> None:
    limits = HttpLimits(body_bytes=1000)
    async with serving(limits=limits) as server, connected(server) as client:
        client.writer.write(b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 4000000\r\n\r\n")
        for _ in range(40):
            client.writer.write(b"x" * 100_000)
            await client.writer.drain()
        (answer,) = answers(await client.reader.read())
        assert answer.status == 413


async def test_a_slow_head_is_answered_408_on_time() -> None:
    async with serving(limits=HttpLimits(head_s=0.05)) as server, connected(server) as client:
        client.writer.write(b"GET / HTTP/1.1\r\n")
        (answer,) = answers(await client.reader.read())
        assert answer.status == 408


async def test_an_idle_connection_is_closed_on_time() -> None:
    async with serving(limits=HttpLimits(idle_s=0.05)) as server, connected(server) as client:
        await client.ask(GET)
        assert await client.reader.read() == b""


async def test_a_slow_reader_congests_and_then_writes_on() -> None:
    app = Recorder()
    writable = asyncio.Event()
    limits = HttpLimits(write_buffer_bytes=64 * 1024 * 1024)
    async with serving(app, limits) as server, connected(server) as client:
        client.writer.write(GET)
        await until(lambda: bool(app.calls))
        responder = app.responder
        responder.on_writable = writable.set
        responder.start(200, [])
        sent = 0
        while not responder.congested:
            responder.write(b"x" * 65536)
            sent += 65536
            await asyncio.sleep(0)
        responder.end()
        body = await client.reader.readuntil(b"\r\n0\r\n\r\n") if sent < 1000 else b""
        while not body.endswith(b"\r\n0\r\n\r\n"):
            body += await client.reader.read(1 << 20)
        assert body.count(b"x") == sent


async def test_a_client_that_never_reads_is_cut_at_the_bound() -> None:
    app = Recorder()
    gone = asyncio.Event()
    limits = HttpLimits(write_buffer_bytes=1024 * 1024)
    async with serving(app, limits) as server, connected(server) as client:
        client.writer.write(GET)
        await until(lambda: bool(app.calls))
        responder = app.responder
        responder.on_close = gone.set
        responder.start(200, [])
        while not responder.closed:
            responder.write(b"x" * 65536)
            await asyncio.sleep(0)
        await gone.wait()
        assert server.connections == 0


async def test_drain_finishes_what_is_in_hand_and_closes_the_idle() -> None:
    app = Recorder()
    async with (
        serving(app) as server,
        connected(server) as busy,
        connected(server) as idle,
        connected(server) as late,
    ):
        for client in (idle, late):
            client.writer.write(GET)
            await until(lambda: bool(app.calls) and not app.responder.closed)
            app.responder.respond(200, [])
            await client.answer()
        busy.writer.write(GET)
        await until(lambda: server.busy == 1)
        in_hand = app.responder
        draining = asyncio.create_task(server.drain(PATIENCE_S))
        await until(lambda: server.draining)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", server.port)
        late.writer.write(GET)
        await until(lambda: server.busy == 2)
        app.responder.respond(200, [], b"late")
        in_hand.respond(200, [], b"x" * 3_000_000)
        for client, size in ((late, 4), (busy, 3_000_000)):
            (answer,) = answers(await client.reader.read())
            assert answer.headers["connection"] == "close"
            assert len(answer.body) == size
        assert await idle.reader.read() == b""
        assert await draining == 0
        assert server.connections == 0


async def test_drain_cuts_what_takes_too_long_and_says_how_much() -> None:
    app = Recorder()
    gone = asyncio.Event()
    async with serving(app) as server, connected(server) as client:
        client.writer.write(GET)
        await until(lambda: bool(app.calls))
        app.responder.on_close = gone.set
        assert await server.drain(0.05) == 1
        assert gone.is_set()
        assert server.connections == 0
        assert await client.reader.read() == b""


async def test_drain_with_nothing_in_hand_returns_at_once() -> None:
    async with serving() as server:
        assert await server.drain(PATIENCE_S) == 0
