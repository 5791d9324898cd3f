"""HTTP/1.1 against servers scripted by bytes, on both event loops."""

import asyncio
import gzip
import random
import zlib
from collections.abc import AsyncIterator

import pytest
from tests.http.http_client_servers import (
    BACKEND_NAMES,
    BACKENDS,
    WAIT_S,
    Connection,
    answering,
    closing,
    serving,
    until,
)

from breakwater_gateway.worker.http.http1 import Http1Connection
from breakwater_gateway.worker.http.pool import Pool
from breakwater_gateway.worker.http_client import (
    AnswerTooLarge,
    ConnectFailed,
    CutAnswer,
    FastClient,
    HttpFailure,
    Limits,
    MalformedHttp,
    PoolTimeout,
    Prepared,
    Proxies,
    ReadFailed,
)

pytestmark = pytest.mark.anyio


@pytest.fixture(params=BACKENDS, ids=BACKEND_NAMES)
def anyio_backend(request: pytest.FixtureRequest) -> object:
    return request.param


@pytest.fixture
async def client() -> AsyncIterator[FastClient]:
    client = FastClient(proxies=Proxies({}))
    yield client
    await client.close()


LENGTH = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 11\r\n\r\nhello world"
)
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5;ext=1\r\nhello\r\n6\r\n world\r\n0\r\nX-Trailer: 1\r\n\r\n"
)
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + LENGTH


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)


def opened(client: FastClient) -> int:
    """Connections, over all origins that are still in use."""
    return sum(stats.open for stats in client.stats())


async def fetched(client: FastClient, url: str, limit: int = 1 << 20) -> bytes:
    async with asyncio.timeout(WAIT_S):
        answer = await client.send(client.prepare("POST", url), b"{}")
        try:
            return await answer.read(limit)
        finally:
            answer.close()


# ---------------------------------------------------------------------- plain exchanges


async def test_request_and_answer_are_what_was_meant(client: FastClient) -> None:
    seen: list[tuple[bytes, bytes]] = []

    async def script(connection: Connection) -> None:
        seen.append(await connection.request())
        connection.send(
            b"HTTP/1.1 429 Too Many\r\nRetry-After: 2\r\nX-A: 1\r\nx-a: 2\r\nContent-Length: 2\r\n\r\n{}"
        )
        await connection.gone()

    async with serving(script) as server:
        prepared = client.prepare("POST", server.url, [("Authorization", "Bearer k")])
        answer = await client.send(prepared, b'{"a":1}', headers=[("X-Request-Id", "7")])
        assert answer.status == 429
        assert answer.headers["retry-after"] == "2"
        assert answer.headers["x-a"] == "1, 2"
        assert await answer.read(100) == b"{}"
        assert await answer.chunk() is None
        assert answer.ended
        assert not answer.retried
        answer.close()
        head, body = seen[0]
        assert head == (
            b"POST /v1/chat/completions?x=1 HTTP/1.1\r\nhost: 127.0.0.1:%d\r\n"
            b"authorization: Bearer k\r\naccept-encoding: identity\r\nx-request-id: 7\r\n"
            b"content-length: 7\r\n\r\n" % server.port
        )
        assert body == b'{"a":1}'


@pytest.mark.parametrize("response", [LENGTH, CHUNKED, INTERIM], ids=["length", "chunked", "1xx"])
async def test_answers_are_whole_however_they_are_cut(client: FastClient, response: bytes) -> None:
    cuts = iter(range(1, len(response)))

    async def script(connection: Connection) -> None:
        while True:
            await connection.request()
            at = next(cuts)
            connection.send(response[:at])
            await asyncio.sleep(0)
            connection.send(response[at:])

    async with serving(script) as server:
        for _ in range(1, len(response)):
            assert await fetched(client, server.url) == b"hello world"
        assert server.connections == 1


async def test_an_answer_may_come_byte_by_byte(client: FastClient) -> None:
    async def script(connection: Connection) -> None:
        await connection.request()
        for byte in CHUNKED:
            connection.send(bytes([byte]))
            await asyncio.sleep(0)
        await connection.gone()

    async with serving(script) as server:
        assert await fetched(client, server.url) == b"hello world"


async def test_a_body_without_length_ends_with_the_connection(client: FastClient) -> None:
    async with serving(closing(b"HTTP/1.1 200 OK\r\n\r\nhello", b" world")) as server:
        assert await fetched(client, server.url) == b"hello world"
        assert opened(client) == 0


@pytest.mark.parametrize(
    "response",
    [
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    ],
)
async def test_answers_without_a_body_end_with_their_head(
    client: FastClient, response: bytes
) -> None:
    async with serving(answering(response)) as server:
        assert await fetched(client, server.url) == b""
        assert await fetched(client, server.url) == b""


async def test_head_has_no_body_whatever_its_headers_say(client: FastClient) -> None:
    async with serving(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")) as server:
        answer = await client.send(client.prepare("HEAD", server.url))
        assert answer.headers["content-length"] == "5"
        assert await answer.read(10) == b""


async def test_large_bodies_go_out_whole(client: FastClient) -> None:
    body = bytes(range(256)) * 16_384
    got = bytearray()

    async def script(connection: Connection) -> None:
        got.extend((await connection.request())[1])
        connection.send(LENGTH)
        await connection.gone()

    async with serving(script) as server:
        answer = await client.send(client.prepare("POST", server.url), body)
        assert await answer.read(100) == b"hello world"
        assert got == body


async def test_chunks_give_all_that_came_since(client: FastClient) -> None:
    go = asyncio.Event()

    async def script(connection: Connection) -> None:
        await connection.request()
        connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        connection.send(chunked(b"one", b"two"))
        await go.wait()
        connection.send(chunked(b"three", b""))
        await connection.gone()

    async with serving(script) as server:
        answer = await client.send(client.prepare("POST", server.url), b"{}")
        await until(lambda: answer.buffered == 6)
        assert await answer.chunk() == b"onetwo"
        assert answer.buffered == 0
        waiting = asyncio.ensure_future(answer.chunk())
        go.set()
        assert await waiting == b"three"
        assert await answer.chunk() is None


# ---------------------------------------------------------------------- failures


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (b"", "head"),
        (b"HTTP/1.1 200 O", "head"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nhello", "length"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", "chunked"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n50\r\nhello", "chunked"),
    ],
)
async def test_an_early_end_is_a_cut_answer(
    client: FastClient, response: bytes, expected: str
) -> None:
    async with serving(closing(response)) as server:
        with pytest.raises(CutAnswer) as caught:
            await fetched(client, server.url)
        assert caught.value.expected == expected
        assert opened(client) == 0


async def test_what_came_before_a_cut_is_still_read(client: FastClient) -> None:
    async with serving(
        closing(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", chunked(b"hello"))
    ) as server:
        answer = await client.send(client.prepare("POST", server.url), b"{}")
        await until(lambda: opened(client) == 0)
        assert await answer.chunk() == b"hello"
        with pytest.raises(CutAnswer):
            await answer.chunk()


@pytest.mark.parametrize(
    "response",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"<html>hello</html>",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\nhello",
        b"HTTP/1.1 200 OK\r\nBad Name: 1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: 1\x00\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 100,
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: abcdefgh\r\n" * 10_000 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;" + b"e" * 400_000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nT: " + b"e" * 400_000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"T: abcd\r\n" * 40_000,
    ],
)
async def test_what_is_not_proper_http_is_refused(client: FastClient, response: bytes) -> None:
    async def script(connection: Connection) -> None:
        await connection.request()
        connection.send(response)
        await connection.gone()

    async with serving(script) as server:
        with pytest.raises(MalformedHttp):
            await fetched(client, server.url)
        assert opened(client) == 0


@pytest.mark.parametrize(
    "response",
    [
        b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\nContent-Length: 1\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip, gzip\r\nContent-Length: 1\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\n\r\nhello",
    ],
)
async def test_an_unknown_or_broken_coding_is_refused(client: FastClient, response: bytes) -> None:
    async with serving(answering(response)) as server:
        with pytest.raises(MalformedHttp):
            await fetched(client, server.url)


async def test_an_endless_head_is_refused(client: FastClient) -> None:
    async def script(connection: Connection) -> None:
        await connection.request()
        connection.send(b"HTTP/1.1 200 OK\r\nX: ")
        while not connection.writer.is_closing():
            connection.send(b"a" * 1000)
            await connection.writer.drain()

    async with serving(script) as server:
        with pytest.raises(MalformedHttp, match="head exceeds"):
            await fetched(client, server.url)


async def test_a_body_over_the_limit_is_refused_and_the_server_sees_the_end(
    client: FastClient,
) -> None:
    gone = asyncio.Event()

    async def script(connection: Connection) -> None:
        await connection.request()
        connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        connection.send(chunked(b"x" * 5000))
        await connection.gone()
        gone.set()

    async with serving(script) as server:
        with pytest.raises(AnswerTooLarge):
            await fetched(client, server.url, limit=4999)
        await asyncio.wait_for(gone.wait(), WAIT_S)


async def test_nobody_listening_is_a_tcp_failure(client: FastClient) -> None:
    async with serving(answering(LENGTH)) as server:
        url = server.url
    with pytest.raises(ConnectFailed) as caught:
        await fetched(client, url)
    assert caught.value.kind == "tcp"
    assert opened(client) == 0


async def test_an_unknown_name_is_a_dns_failure(client: FastClient) -> None:
    with pytest.raises(ConnectFailed) as caught:
        await fetched(client, "http://no-such-host.invalid/")
    assert caught.value.kind == "dns"


@pytest.mark.parametrize(
    ("method", "url", "headers"),
    [
        ("GET", "ftp://a/", []),
        ("GET", "/relative", []),
        ("GE T", "http://a/", []),
        ("CONNECT", "http://a/", []),
        ("GET", "http://a/", [("x", "a\r\ny: b")]),
        ("GET", "http://a/", [("x\r\n", "a")]),
        ("GET", "http://a/", [("x", "a\x00")]),
        ("GET", "http://a/", [("x", "\N{SNOWMAN}")]),
        ("GET", "http://a/", [("Content-Length", "5")]),
        ("GET", "http://a/", [("transfer-encoding", "chunked")]),
        ("GET", "http://a/", [("", "a")]),
    ],
)
async def test_what_could_not_be_sent_safely_is_never_prepared(
    client: FastClient, method: str, url: str, headers: list[tuple[str, str]]
) -> None:
    with pytest.raises(ValueError, match=r".+"):
        client.prepare(method, url, headers)


# ---------------------------------------------------------------------- reuse


async def test_connections_are_used_again_last_in_first_out(client: FastClient) -> None:
    used: list[int] = []

    async def script(connection: Connection) -> None:
        while True:
            await connection.request()
            used.append(connection.number)
            await asyncio.sleep(0.001)
            connection.send(LENGTH)

    async with serving(script) as server:
        await asyncio.gather(*(fetched(client, server.url) for _ in range(3)))
        assert client.stats()[0].idle == 3
        last = used[-1]
        for _ in range(3):
            await fetched(client, server.url)
        assert used[3:] == [last] * 3
        assert client.stats()[0].open == 3


async def test_a_connection_that_went_stale_is_replaced_once_and_that_is_told(
    client: FastClient,
) -> None:
    requests: list[int] = []

    async def script(connection: Connection) -> None:
        await connection.request()
        requests.append(connection.number)
        connection.send(LENGTH)
        if connection.number == 1:
            await connection.request()  # taken, and then the connection just ends
            return
        await connection.gone()

    async with serving(script) as server:
        prepared = client.prepare("POST", server.url)
        assert await (await client.send(prepared, b"{}")).read(100) == b"hello world"
        answer = await client.send(prepared, b"{}")
        assert await answer.read(100) == b"hello world"
        assert answer.retried
        assert requests == [1, 2]
        stats = client.stats()[0]
        assert (stats.retried, stats.open, stats.in_use, stats.dialled) == (1, 1, 0, 2)


async def test_the_second_failure_is_told_as_it_is(client: FastClient) -> None:
    async def script(connection: Connection) -> None:
        await connection.request()
        if connection.number == 1:
            connection.send(LENGTH)
            await connection.request()

    async with serving(script) as server:
        assert await fetched(client, server.url) == b"hello world"
        with pytest.raises(CutAnswer):
            await fetched(client, server.url)
        assert server.connections == 2


async def test_a_first_use_is_never_repeated(client: FastClient) -> None:
    async with serving(closing(b"")) as server:
        with pytest.raises(CutAnswer):
            await fetched(client, server.url)
        assert server.connections == 1


async def test_nothing_is_repeated_once_a_byte_of_the_answer_came(client: FastClient) -> None:
    async def script(connection: Connection) -> None:
        await connection.request()
        connection.send(LENGTH)
        await connection.request()
        connection.send(b"H")
        await connection.writer.drain()

    async with serving(script) as server:
        assert await fetched(client, server.url) == b"hello world"
        with pytest.raises(CutAnswer):
            await fetched(client, server.url)
        assert server.connections == 1


@pytest.mark.parametrize(
    "response",
    [
        LENGTH.replace(b"200 OK\r\n", b"200 OK\r\nConnection: close\r\n"),
        LENGTH.replace(b"HTTP/1.1", b"HTTP/1.0"),
        LENGTH + LENGTH,
        LENGTH + b"x",
    ],
    ids=["close", "1.0", "a second answer", "one byte more"],
)
async def test_a_connection_in_doubt_is_not_used_again(client: FastClient, response: bytes) -> None:
    async with serving(answering(response)) as server:
        for _ in range(3):
            assert await fetched(client, server.url) == b"hello world"
        assert server.connections == 3
        assert opened(client) == 0


async def test_an_answer_nobody_asked_for_is_never_the_next_one(client: FastClient) -> None:
    smuggle = asyncio.Event()

    async def script(connection: Connection) -> None:
        await connection.request()
        connection.send(LENGTH)
        if connection.number == 1:
            await smuggle.wait()
            connection.send(LENGTH.replace(b"hello", b"trick"))
        await connection.gone()

    async with serving(script) as server:
        assert await fetched(client, server.url) == b"hello world"
        smuggle.set()
        await until(lambda: opened(client) == 0)
        assert await fetched(client, server.url) == b"hello world"
        assert server.connections == 2


async def test_an_answer_before_the_request_was_written_ends_the_connection(
    client: FastClient,
) -> None:
    async def script(connection: Connection) -> None:
        await connection.reader.readuntil(b"\r\n\r\n")
        connection.send(LENGTH.replace(b"200 OK", b"413 Too Large"))
        await connection.gone()

    async with serving(script) as server:
        answer = await client.send(client.prepare("POST", server.url), b"x" * 64_000_000)
        assert answer.status == 413
        assert await answer.read(100) == b"hello world"
        assert opened(client) == 0


async def test_idle_connections_expire() -> None:
    client = FastClient(limits=Limits(idle_s=0.02), proxies=Proxies({}))
    gone = asyncio.Event()

    async def script(connection: Connection) -> None:
        await connection.request()
        connection.send(LENGTH)
        await connection.gone()
        gone.set()

    async with serving(script) as server:
        assert await fetched(client, server.url) == b"hello world"
        await asyncio.wait_for(gone.wait(), WAIT_S)
    await client.close()


# ---------------------------------------------------------------------- giving up


async def test_cancelling_a_stream_is_seen_by_the_server_at_once(client: FastClient) -> None:
    gone = asyncio.Event()

    async def script(connection: Connection) -> None:
        await connection.request()
        connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(b"a"))
        await connection.gone()
        gone.set()

    async with serving(script) as server:
        prepared = client.prepare("POST", server.url)
        answer = await client.send(prepared, b"{}")
        assert await answer.chunk() == b"a"
        reading = asyncio.ensure_future(answer.chunk())
        await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        stats = client.stats()[0]
        assert (stats.open, stats.in_use) == (0, 0)
        await asyncio.wait_for(gone.wait(), WAIT_S)


async def test_cancelling_before_the_head_closes_the_connection(client: FastClient) -> None:
    asked, gone = asyncio.Event(), asyncio.Event()

    async def script(connection: Connection) -> None:
        await connection.request()
        asked.set()
        await connection.gone()
        gone.set()

    async with serving(script) as server:
        prepared = client.prepare("POST", server.url)
        sending = asyncio.ensure_future(client.send(prepared, b"{}"))
        await asyncio.wait_for(asked.wait(), WAIT_S)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        await asyncio.wait_for(gone.wait(), WAIT_S)
        stats = client.stats()[0]
        assert (stats.open, stats.in_use, stats.idle) == (0, 0, 0)


async def test_closing_an_unfinished_answer_fails_its_reader(client: FastClient) -> None:
    gone = asyncio.Event()

    async def script(connection: Connection) -> None:
        await connection.request()
        connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        await connection.gone()
        gone.set()

    async with serving(script) as server:
        answer = await client.send(client.prepare("POST", server.url), b"{}")
        reading = asyncio.ensure_future(answer.chunk())
        await asyncio.sleep(0)
        answer.close()
        answer.close()
        with pytest.raises(ReadFailed):
            await reading
        await asyncio.wait_for(gone.wait(), WAIT_S)


async def test_closing_the_client_fails_what_is_under_way(client: FastClient) -> None:
    async def script(connection: Connection) -> None:
        await connection.request()
        connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        await connection.gone()

    async with serving(script) as server:
        prepared = client.prepare("POST", server.url)
        answer = await client.send(prepared, b"{}")
        await client.close()
        with pytest.raises(ReadFailed):
            await answer.chunk()
        with pytest.raises(PoolTimeout):
            await client.send(prepared, b"{}")


async def test_a_slow_reader_holds_the_server_back(client: FastClient) -> None:
    sent = 0

    async def script(connection: Connection) -> None:
        nonlocal sent
        await connection.request()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
        for _ in range(1000):
            connection.send(b"x" * 100_000)
            await connection.writer.drain()
            sent += 100_000
        await connection.gone()

    async with serving(script) as server:
        answer = await client.send(client.prepare("POST", server.url), b"{}")
        before = -1
        while sent != before:
            before = sent
            await asyncio.sleep(0.05)
        assert sent < 50_000_000
        assert answer.buffered < 1_000_000
        got = 0
        while (data := await answer.chunk()) is not None:
            got += len(data)
            assert len(data) < 1_000_000
        assert got == 100_000_000


# ---------------------------------------------------------------------- waiting for a connection


async def test_the_queue_is_served_first_come_first_served() -> None:
    client = FastClient(limits=Limits(connections=1), proxies=Proxies({}))
    order: list[int] = []

    async def call(number: int, url: str) -> None:
        await fetched(client, url)
        order.append(number)

    async with serving(answering(LENGTH)) as server:
        await asyncio.gather(*(call(number, server.url) for number in range(20)))
        assert order == list(range(20))
        assert server.connections == 1
        assert client.stats()[0].waiting == 0
        assert client.stats()[0].in_use == 0
    await client.close()


async def test_waiting_has_an_end_and_a_bound() -> None:
    client = FastClient(limits=Limits(connections=1, waiting=1), proxies=Proxies({}))
    asked = asyncio.Event()

    async def script(connection: Connection) -> None:
        await connection.request()
        asked.set()
        await connection.gone()

    async with serving(script) as server:
        prepared = client.prepare("POST", server.url)
        first = asyncio.ensure_future(client.send(prepared, b"{}"))
        await asyncio.wait_for(asked.wait(), WAIT_S)
        second = asyncio.ensure_future(client.send(prepared, b"{}", pool_timeout_s=0.05))
        await until(lambda: client.stats()[0].waiting == 1)
        with pytest.raises(PoolTimeout, match="wait for"):
            await client.send(prepared, b"{}")
        with pytest.raises(PoolTimeout, match="became free"):
            await second
        assert client.stats()[0].waiting == 0
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert opened(client) == 0
    await client.close()


async def test_a_failed_connection_lets_the_next_in_the_queue_try() -> None:
    client = FastClient(limits=Limits(connections=1), proxies=Proxies({}))

    async def script(connection: Connection) -> None:
        await connection.request()
        while connection.number > 1:
            connection.send(LENGTH)
            await connection.request()

    async with serving(script) as server:
        results = await asyncio.gather(
            *(fetched(client, server.url) for _ in range(3)), return_exceptions=True
        )
        assert isinstance(results[0], CutAnswer)
        assert results[1:] == [b"hello world", b"hello world"]
    await client.close()


async def test_cancelled_callers_leave_no_trace_in_the_pool() -> None:
    client = FastClient(limits=Limits(connections=2), proxies=Proxies({}))

    async with serving(answering(LENGTH)) as server:
        for turns in range(12):
            calls = [asyncio.ensure_future(fetched(client, server.url)) for _ in range(8)]
            for _ in range(turns):
                await asyncio.sleep(0)
            for call in calls[::2]:
                call.cancel()
            results = await asyncio.gather(*calls, return_exceptions=True)
            for result in results[1::2]:
                assert not isinstance(result, BaseException) or isinstance(result, HttpFailure)
            for stats in client.stats():
                assert stats.in_use == 0
                assert stats.waiting == 0
                assert stats.open == stats.idle <= 2
    await client.close()


# ---------------------------------------------------------------------- content codings


def encoded(coding: str, data: bytes) -> bytes:
    match coding:
        case "gzip":
            return gzip.compress(data)
        case "members":
            return gzip.compress(data[:5]) + gzip.compress(data[5:])
        case "deflate":
            return zlib.compress(data)
        case _:
            machine = zlib.compressobj(wbits=-15)
            return machine.compress(data) + machine.flush()


@pytest.mark.parametrize("coding", ["gzip", "members", "deflate", "raw"])
@pytest.mark.parametrize("step", [1, 1000])
async def test_what_comes_compressed_all_the_same_is_undone(
    client: FastClient, coding: str, step: int
) -> None:
    body = b"hello world" * 20
    name = b"deflate" if coding in {"deflate", "raw"} else b"gzip"
    data = encoded(coding, body)
    pieces = [data[at : at + step] for at in range(0, len(data), step)]

    async def script(connection: Connection) -> None:
        await connection.request()
        connection.send(
            b"HTTP/1.1 200 OK\r\nContent-Encoding: %b\r\nTransfer-Encoding: chunked\r\n\r\n" % name
        )
        for piece in pieces:
            connection.send(chunked(piece))
            await asyncio.sleep(0)
        connection.send(chunked(b""))
        await connection.gone()

    async with serving(script) as server:
        assert await fetched(client, server.url) == body


@pytest.mark.parametrize("size", [262_144, 524_288, 524_289, 3_000_000])
async def test_large_compressed_bodies_come_in_bounded_steps(client: FastClient, size: int) -> None:
    data = gzip.compress(b"\0" * size)
    response = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%b" % (
        len(data),
        data,
    )
    async with serving(answering(response)) as server:
        answer = await client.send(client.prepare("POST", server.url), b"{}")
        got = 0
        while (chunk := await answer.chunk()) is not None:
            assert len(chunk) <= 262_144
            got += len(chunk)
        assert got == size


async def test_a_gzip_bomb_is_refused() -> None:
    client = FastClient(proxies=Proxies({}), decoded_bytes_max=1_000_000)
    data = gzip.compress(b"\0" * 50_000_000)
    response = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%b" % (
        len(data),
        data,
    )
    async with serving(answering(response)) as server:
        with pytest.raises(AnswerTooLarge):
            await fetched(client, server.url, limit=1 << 30)
        with pytest.raises(AnswerTooLarge):
            await fetched(client, server.url, limit=1000)
    await client.close()


async def test_a_compressed_body_that_ends_early_is_cut(client: FastClient) -> None:
    data = gzip.compress(b"hello world" * 20)[:-9]
    response = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%b" % (
        len(data),
        data,
    )
    async with serving(answering(response)) as server:
        with pytest.raises(CutAnswer) as caught:
            await fetched(client, server.url)
        assert caught.value.expected == "coding"


# ---------------------------------------------------------------------- any bytes at all


class Unplugged(asyncio.Transport):
    """A transport whose other end is the test."""

    def __init__(self) -> None:
        super().__init__()
        self.aborted = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        pass

    def abort(self) -> None:
        self.aborted = True

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0


FRAGMENTS = [
    b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 100 C\r\n\r\n", b"HTTP/1.0 200 OK\r\n", b"HTTP/1.1 204 N\r\n\r\n",
    b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n", b"\r\n", b"abc",
    b"3\r\nabc\r\n", b"0\r\n\r\n", b"0\r\n", b"X: y\r\n", b"\x00\xff", b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc",
]  # fmt: skip


def outcome(pool: Pool, prepared: Prepared, pieces: list[bytes]) -> tuple[bytes, str]:
    """What a reader gets when these bytes come and the connection then ends."""
    connection = Http1Connection(pool)
    transport = Unplugged()
    connection.connection_made(transport)
    answer = connection.start(prepared, b"{}", ())
    for piece in pieces:
        if transport.aborted:
            break
        connection.data_received(piece)
    connection.eof_received()
    connection.connection_lost(None)
    assert transport.aborted
    assert answer.complete != (answer.failure is not None)
    return b"".join(answer.pieces), type(answer.failure).__name__


async def test_any_bytes_end_in_an_answer_or_a_named_failure_however_they_are_cut() -> None:
    client = FastClient(proxies=Proxies({}))
    prepared = client.prepare("POST", "http://127.0.0.1:1/")
    assert prepared.pool is not None
    draw = random.Random(20)
    endings = set()
    for _ in range(1500):
        stream = b"".join(draw.choices(FRAGMENTS, k=draw.randrange(1, 8)))
        if draw.random() < 0.3:
            at = draw.randrange(len(stream))
            stream = stream[:at] + draw.randbytes(1) + stream[at + 1 :]
        whole = outcome(prepared.pool, prepared, [stream])
        single = outcome(
            prepared.pool, prepared, [stream[at : at + 1] for at in range(len(stream))]
        )
        assert whole == single, stream
        endings.add(whole[1])
    assert endings == {"NoneType", "CutAnswer", "MalformedHttp"}
    await client.close()


async def test_the_first_address_that_answers_is_taken(client: FastClient) -> None:
    async with serving(answering(LENGTH)) as server:
        url = server.url.replace("127.0.0.1", "localhost")
        assert await fetched(client, url) == b"hello world"
