"""TLS, HTTP/2 over it, proxies, and both directions of the httpx adapter."""

import asyncio
import contextlib
import gzip
import random
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.http.http_client_servers import (
    BACKEND_NAMES,
    BACKENDS,
    WAIT_S,
    Connection,
    Script,
    answering,
    closing,
    serving,
    until,
)

from breakwater_gateway.worker.http.http2 import GoAway, GoAways, Http2Connection
from breakwater_gateway.worker.http_client import (
    AnswerTooLarge,
    ConnectFailed,
    CutAnswer,
    FastClient,
    HttpClient,
    HttpxClient,
    Limits,
    MalformedHttp,
    PoolTimeout,
    Proxies,
    ReadFailed,
    Transport,
)

pytestmark = pytest.mark.anyio

LENGTH = b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\nhello world"


@pytest.fixture(params=BACKENDS, ids=BACKEND_NAMES)
def anyio_backend(request: pytest.FixtureRequest) -> object:
    return request.param


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 that signs itself, and its key, in one file."""
    folder = tmp_path_factory.mktemp("tls")
    key, certificate, both = folder / "key.pem", folder / "cert.pem", folder / "both.pem"
    try:
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
             "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1",
             "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost",
             "-keyout", str(key), "-out", str(certificate)],
            check=True,
            capture_output=True,
        )  # fmt: skip
    except FileNotFoundError:
        pytest.skip("no openssl to make a certificate with")
    both.write_text(key.read_text() + certificate.read_text())
    return both


def server_context(authority: Path, *protocols: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority)
    if protocols:
        context.set_alpn_protocols(protocols)
    return context


@pytest.fixture
async def client(authority: Path) -> AsyncIterator[FastClient]:
    client = FastClient(verify=str(authority), proxies=Proxies({}))
    yield client
    await client.close()


async def fetched(client: HttpClient, url: str, body: bytes = b"{}") -> tuple[bytes, str]:
    async with asyncio.timeout(WAIT_S):
        answer = await client.send(client.prepare("POST", url), body)
        try:
            return await answer.read(1 << 24), answer.http_version
        finally:
            answer.close()


# ---------------------------------------------------------------------- TLS


@pytest.mark.parametrize("protocols", [(), ("http/1.1",)])
async def test_http1_over_tls(
    client: FastClient, authority: Path, protocols: tuple[str, ...]
) -> None:
    async with serving(answering(LENGTH), tls=server_context(authority, *protocols)) as server:
        for _ in range(3):
            assert await fetched(client, server.url) == (b"hello world", "1.1")
        assert server.connections == 1


async def test_many_calls_at_once_to_a_server_without_http2(
    client: FastClient, authority: Path
) -> None:
    async with serving(answering(LENGTH), tls=server_context(authority)) as server:
        answers = await asyncio.gather(*(fetched(client, server.url) for _ in range(8)))
        assert answers == [(b"hello world", "1.1")] * 8


async def test_a_certificate_nobody_vouches_for_is_a_tls_failure(authority: Path) -> None:
    client = FastClient(proxies=Proxies({}))
    async with serving(answering(LENGTH), tls=server_context(authority)) as server:
        with pytest.raises(ConnectFailed) as caught:
            await fetched(client, server.url)
        assert caught.value.kind == "tls"
        assert sum(stats.open for stats in client.stats()) == 0
    await client.close()


async def test_a_certificate_for_another_name_is_a_tls_failure(
    client: FastClient, authority: Path
) -> None:
    async with serving(answering(LENGTH), tls=server_context(authority)) as server:
        with pytest.raises(ConnectFailed) as caught:
            await fetched(client, server.url.replace("127.0.0.1", "127.0.0.2"))
    assert caught.value.kind in {"tls", "tcp"}


async def test_verification_can_be_turned_off(authority: Path) -> None:
    client = FastClient(verify=False, proxies=Proxies({}))
    async with serving(answering(LENGTH), tls=server_context(authority)) as server:
        assert (await fetched(client, server.url))[0] == b"hello world"
    await client.close()


async def test_a_server_that_speaks_no_tls_is_a_tls_failure(client: FastClient) -> None:
    async def script(connection: Connection) -> None:
        await connection.reader.read(1)
        connection.send(LENGTH)

    async with serving(script) as server:
        with pytest.raises(ConnectFailed) as caught:
            await fetched(client, server.url.replace("http:", "https:"))
        assert caught.value.kind == "tls"


async def test_a_handshake_without_end_is_a_timeout(client: FastClient) -> None:
    gone = asyncio.Event()

    async def script(connection: Connection) -> None:
        await connection.gone()
        gone.set()

    async with serving(script) as server:
        prepared = client.prepare("POST", server.url.replace("http:", "https:"))
        with pytest.raises(ConnectFailed) as caught:
            await client.send(prepared, b"{}", connect_timeout_s=0.05)
        assert caught.value.kind == "timeout"
        assert client.stats()[0].open == 0
        await asyncio.wait_for(gone.wait(), WAIT_S)


# ---------------------------------------------------------------------- HTTP/2

Handle = Callable[["Http2Server", h2.events.Event], None]


class Http2Server:
    """One connection of an HTTP/2 server; `handle` is told of each event."""

    def __init__(
        self, connection: Connection, handle: Handle, settings: dict[h2.settings.SettingCodes, int]
    ) -> None:
        self.connection = connection
        self.handle = handle
        self.events: list[h2.events.Event] = []
        self.machine = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=False, header_encoding="utf-8")
        )
        self.machine.local_settings = h2.settings.Settings(client=False, initial_values=settings)

    def flush(self) -> None:
        self.connection.send(self.machine.data_to_send())

    async def run(self) -> None:
        self.machine.initiate_connection()
        self.flush()
        while data := await self.connection.reader.read(65536):
            for event in self.machine.receive_data(data):
                self.events.append(event)
                if isinstance(event, h2.events.DataReceived) and event.stream_id is not None:
                    self.machine.acknowledge_received_data(
                        event.flow_controlled_length, event.stream_id
                    )
                self.handle(self, event)
            self.flush()

    def answer(self, id_: int, body: bytes, *, end: bool = True) -> None:
        self.machine.send_headers(id_, [(":status", "200"), ("x-a", "1"), ("x-a", "2")])
        self.machine.send_data(id_, body, end_stream=end)


def http2(handle: Handle, servers: list[Http2Server], **settings: int) -> Script:
    values = {h2.settings.SettingCodes[name]: value for name, value in settings.items()}

    async def script(connection: Connection) -> None:
        server = Http2Server(connection, handle, values)
        servers.append(server)
        await server.run()

    return script


def hello(server: Http2Server, event: h2.events.Event) -> None:
    if isinstance(event, h2.events.StreamEnded) and event.stream_id is not None:
        server.answer(event.stream_id, b"hello world")


async def test_http2_is_spoken_where_it_is_offered(client: FastClient, authority: Path) -> None:
    servers: list[Http2Server] = []
    tls = server_context(authority, "h2", "http/1.1")
    async with serving(http2(hello, servers), tls=tls) as server:
        prepared = client.prepare("POST", server.url, [("Authorization", "Bearer k")])
        answer = await client.send(prepared, b'{"a":1}', headers=[("X-Request-Id", "7")])
        assert (answer.status, answer.http_version) == (200, "2")
        assert answer.headers == {"x-a": "1, 2"}
        assert await answer.read(100) == b"hello world"
        asked = servers[0].events
        head = next(e for e in asked if isinstance(e, h2.events.RequestReceived))
        assert [(str(name), str(value)) for name, value in head.headers] == [
            (":method", "POST"),
            (":scheme", "https"),
            (":authority", f"127.0.0.1:{server.port}"),
            (":path", "/v1/chat/completions?x=1"),
            ("authorization", "Bearer k"),
            ("accept-encoding", "identity"),
            ("x-request-id", "7"),
            ("content-length", "7"),
        ]
        assert next(e for e in asked if isinstance(e, h2.events.DataReceived)).data == b'{"a":1}'


async def test_http2_can_be_declined(client: FastClient, authority: Path) -> None:
    tls = server_context(authority, "h2", "http/1.1")
    async with serving(answering(LENGTH), tls=tls) as server:
        answer = await client.send(client.prepare("POST", server.url, http2=False), b"{}")
        assert answer.http_version == "1.1"
        assert await answer.read(100) == b"hello world"


async def test_calls_at_once_share_one_http2_connection(
    client: FastClient, authority: Path
) -> None:
    servers: list[Http2Server] = []
    async with serving(http2(hello, servers), tls=server_context(authority, "h2")) as server:
        answers = await asyncio.gather(*(fetched(client, server.url) for _ in range(50)))
        assert answers == [(b"hello world", "2")] * 50
        assert server.connections == 1
        stats = client.stats()[0]
        assert (stats.open, stats.in_use, stats.waiting) == (1, 0, 0)


async def test_more_streams_than_the_server_allows_get_another_connection(
    client: FastClient, authority: Path
) -> None:
    servers: list[Http2Server] = []
    held: list[tuple[Http2Server, int]] = []

    def hold(server: Http2Server, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.StreamEnded) and event.stream_id is not None:
            held.append((server, event.stream_id))

    script = http2(hold, servers, MAX_CONCURRENT_STREAMS=2)
    async with serving(script, tls=server_context(authority, "h2")) as server:
        prepared = client.prepare("POST", server.url)
        # The server's settings are known once something has come back.
        first = asyncio.ensure_future(client.send(prepared, b"{}"))
        await until(lambda: len(held) == 1)
        rest = [asyncio.ensure_future(client.send(prepared, b"{}")) for _ in range(4)]
        await until(lambda: len(held) == 5)
        assert server.connections == 3
        for one, id_ in held:
            one.answer(id_, b"x")
            one.flush()
        for answer in await asyncio.gather(first, *rest):
            assert await answer.read(10) == b"x"
        assert client.stats()[0].in_use == 0


async def test_requests_queue_where_neither_streams_nor_connections_are_left(
    authority: Path,
) -> None:
    client = FastClient(verify=str(authority), proxies=Proxies({}), limits=Limits(connections=1))
    servers: list[Http2Server] = []
    script = http2(hello, servers, MAX_CONCURRENT_STREAMS=1)
    async with serving(script, tls=server_context(authority, "h2")) as server:
        await fetched(client, server.url)
        answers = await asyncio.gather(*(fetched(client, server.url) for _ in range(20)))
        assert answers == [(b"hello world", "2")] * 20
        assert server.connections == 1
    await client.close()


async def test_large_bodies_pass_both_windows(client: FastClient, authority: Path) -> None:
    servers: list[Http2Server] = []
    body = bytes(range(256)) * 8192
    left: dict[int, bytes] = {}

    def echo(server: Http2Server, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.StreamEnded) and event.stream_id is not None:
            id_ = event.stream_id
            got = b"".join(e.data for e in server.events if isinstance(e, h2.events.DataReceived))
            server.machine.send_headers(id_, [(":status", "200")])
            left[id_] = got
        for id_ in tuple(left):
            while left[id_]:
                size = min(server.machine.local_flow_control_window(id_), 16_384, len(left[id_]))
                if size <= 0:
                    break
                data, left[id_] = left[id_][:size], left[id_][size:]
                server.machine.send_data(id_, data, end_stream=not left[id_])
            if not left[id_]:
                del left[id_]

    async with serving(http2(echo, servers), tls=server_context(authority, "h2")) as server:
        assert await fetched(client, server.url, body) == (body, "2")


async def test_a_slow_reader_holds_its_stream_back_and_no_other(
    client: FastClient, authority: Path
) -> None:
    servers: list[Http2Server] = []
    sent = 0
    begun = False

    def flood(server: Http2Server, event: h2.events.Event) -> None:
        nonlocal begun, sent
        if isinstance(event, h2.events.StreamEnded) and event.stream_id == 1:
            server.machine.send_headers(1, [(":status", "200")])
            begun = True
        elif isinstance(event, h2.events.StreamEnded) and event.stream_id is not None:
            server.answer(event.stream_id, b"hello world")
        with contextlib.suppress(h2.exceptions.ProtocolError):
            while begun and (size := min(server.machine.local_flow_control_window(1), 16_384)) > 0:
                server.machine.send_data(1, b"x" * size)
                sent += size

    async with serving(http2(flood, servers), tls=server_context(authority, "h2")) as server:
        answer = await client.send(client.prepare("POST", server.url), b"{}")
        await until(lambda: answer.buffered == 262_144)
        assert await fetched(client, server.url) == (b"hello world", "2")
        assert sent == 262_144
        assert len(await answer.chunk() or b"") == 262_144
        await until(lambda: answer.buffered > 0)
        answer.close()
        assert await fetched(client, server.url) == (b"hello world", "2")


async def test_cancelling_resets_the_stream_and_keeps_the_connection(
    client: FastClient, authority: Path
) -> None:
    servers: list[Http2Server] = []

    def half(server: Http2Server, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.StreamEnded) and event.stream_id is not None:
            server.answer(event.stream_id, b"half", end=event.stream_id > 1)

    async with serving(http2(half, servers), tls=server_context(authority, "h2")) as server:
        answer = await client.send(client.prepare("POST", server.url), b"{}")
        assert await answer.chunk() == b"half"
        reading = asyncio.ensure_future(answer.chunk())
        await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        await until(
            lambda: any(
                isinstance(e, h2.events.StreamReset) and e.error_code == h2.errors.ErrorCodes.CANCEL
                for e in servers[0].events
            )
        )
        assert await fetched(client, server.url) == (b"half", "2")
        assert server.connections == 1
        assert client.stats()[0].in_use == 0


async def test_a_goodbye_lets_begun_streams_end_and_moves_the_others(
    client: FastClient, authority: Path
) -> None:
    servers: list[Http2Server] = []
    held: list[int] = []

    def bye(server: Http2Server, event: h2.events.Event) -> None:
        if not isinstance(event, h2.events.StreamEnded) or event.stream_id is None:
            return
        if server is not servers[0]:
            server.answer(event.stream_id, b"second")
            return
        held.append(event.stream_id)
        if len(held) == 2:
            # By hand: h2 would not let the server go on afterwards.
            server.flush()
            server.connection.send(b"\0\0\x08\x07\0\0\0\0\0" + (1).to_bytes(4, "big") + b"\0\0\0\0")
            server.answer(1, b"first")

    async with serving(http2(bye, servers), tls=server_context(authority, "h2")) as server:
        prepared = client.prepare("POST", server.url)
        first = asyncio.ensure_future(client.send(prepared, b"{}"))
        await until(lambda: len(held) == 1)
        second = await client.send(prepared, b"{}")
        assert second.retried
        assert await second.read(10) == b"second"
        assert await (await first).read(10) == b"first"
        await until(lambda: client.stats()[0].open == 1)


@pytest.mark.parametrize("times", [1, 2])
async def test_a_refused_stream_is_sent_once_more(
    client: FastClient, authority: Path, times: int
) -> None:
    servers: list[Http2Server] = []
    left = times

    def refuse(server: Http2Server, event: h2.events.Event) -> None:
        nonlocal left
        if isinstance(event, h2.events.StreamEnded) and event.stream_id is not None:
            if left:
                left -= 1
                server.machine.reset_stream(event.stream_id, h2.errors.ErrorCodes.REFUSED_STREAM)
            else:
                server.answer(event.stream_id, b"yes")

    async with serving(http2(refuse, servers), tls=server_context(authority, "h2")) as server:
        if times == 1:
            assert await fetched(client, server.url) == (b"yes", "2")
        else:
            with pytest.raises(CutAnswer, match="REFUSED_STREAM"):
                await fetched(client, server.url)


async def test_a_stream_reset_midway_is_a_cut_answer(client: FastClient, authority: Path) -> None:
    servers: list[Http2Server] = []

    def cut(server: Http2Server, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.StreamEnded) and event.stream_id is not None:
            server.answer(event.stream_id, b"half", end=False)
            server.machine.reset_stream(event.stream_id, h2.errors.ErrorCodes.INTERNAL_ERROR)

    async with serving(http2(cut, servers), tls=server_context(authority, "h2")) as server:
        answer = await client.send(client.prepare("POST", server.url), b"{}")
        assert await answer.chunk() == b"half"
        with pytest.raises(CutAnswer, match="INTERNAL_ERROR"):
            await answer.chunk()
        assert client.stats() == [] or client.stats()[0].in_use == 0


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", MalformedHttp),
        (b"\0\0\0\x04\0\0\0\0\0" + b"\0\xff\xff\x05\0\0\0\0\x01" + b"x" * 70_000, MalformedHttp),
        (b"\0\0\0\x04\0\0\0\0\0" + b"\0\0\x04\x01\x04\0\0\0\x01" + b"\xff" * 4, MalformedHttp),
        (b"", CutAnswer),
        (b"\0\0\0\x04\0\0\0\0\0", CutAnswer),
    ],
)
async def test_what_is_not_proper_http2_is_refused(
    client: FastClient, authority: Path, data: bytes, expected: type[Exception]
) -> None:
    async def script(connection: Connection) -> None:
        await connection.reader.read(10)
        connection.send(data)
        await connection.writer.drain()

    async with serving(script, tls=server_context(authority, "h2")) as server:
        with pytest.raises(expected):
            await fetched(client, server.url)
        assert sum(stats.in_use for stats in client.stats()) == 0


class Unplugged(asyncio.Transport):
    """A transport whose other end is the test."""

    aborted = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        pass

    def abort(self) -> None:
        self.aborted = True

    def get_write_buffer_size(self) -> int:
        return 0


async def test_any_frames_end_in_an_answer_or_a_named_failure() -> None:
    client = FastClient(proxies=Proxies({}), verify=False)
    prepared = client.prepare("POST", "https://127.0.0.1:1/")
    assert prepared.pool is not None
    draw = random.Random(20)
    endings = set()
    head = b"\x88"  # :status 200 in HPACK's static table
    for _ in range(1500):
        connection = Http2Connection(prepared.pool)
        transport = Unplugged()
        connection.connection_made(transport)
        answer = connection.start(prepared, b"{}", ())
        data = frame(4, b"")
        for _ in range(draw.randrange(1, 6)):
            kind = draw.choice([0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 200])
            payload = (
                head if kind == 1 and draw.random() < 0.7 else draw.randbytes(draw.randrange(14))
            )
            one = bytearray(frame(kind, payload, draw.choice([0, 1, 1, 1, 1, 3])))
            one[4] = draw.choice([0, 0, 4, 5, 1, draw.randrange(256)])
            data += one
        step = draw.choice([1, 5, 1000])
        for at in range(0, len(data), step):
            if not transport.aborted:
                connection.data_received(data[at : at + step])
        connection.connection_lost(None)
        assert answer.complete != (answer.failure is not None)
        endings.add(type(answer.failure).__name__)
    assert endings == {"NoneType", "CutAnswer", "MalformedHttp"}
    await client.close()


async def test_a_silent_http2_connection_is_asked_for_a_sign_of_life_and_then_given_up() -> None:
    client = FastClient(proxies=Proxies({}), verify=False)
    prepared = client.prepare("POST", "https://127.0.0.1:1/")
    assert prepared.pool is not None
    connection = Http2Connection(prepared.pool)
    transport = Unplugged()
    connection.connection_made(transport)
    connection.holds = 1
    answer = connection.start(prepared, b"{}", ())
    begun = connection.heard_at
    assert connection.sweep(begun + 14, idle_s=60) is not None
    assert connection.pinged_at is None
    connection.sweep(begun + 15, idle_s=60)
    assert connection.pinged_at == begun + 15
    connection.data_received(frame(4, b""))
    assert connection.pinged_at is None
    heard = connection.heard_at
    connection.sweep(heard + 15, idle_s=60)
    assert not transport.aborted
    connection.sweep(heard + 30, idle_s=60)
    assert transport.aborted
    assert isinstance(answer.failure, CutAnswer)
    await client.close()


async def test_an_idle_http2_connection_expires() -> None:
    client = FastClient(proxies=Proxies({}), verify=False)
    prepared = client.prepare("POST", "https://127.0.0.1:1/")
    assert prepared.pool is not None
    connection = Http2Connection(prepared.pool)
    transport = Unplugged()
    connection.connection_made(transport)
    assert connection.sweep(connection.idle_since + 59, idle_s=60) == connection.idle_since + 60
    assert not transport.aborted
    assert connection.sweep(connection.idle_since + 60, idle_s=60) is None
    assert transport.aborted
    await client.close()


def frame(kind: int, payload: bytes, stream: int = 0) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, 0]) + stream.to_bytes(4, "big") + payload


@given(
    frames=st.lists(
        st.builds(frame, st.sampled_from([0, 1, 4, 6]), st.binary(max_size=30), st.integers(0, 9))
        | st.builds(
            lambda last, code, more: frame(
                7, last.to_bytes(4, "big") + code.to_bytes(4, "big") + more
            ),
            st.integers(0, 99),
            st.integers(0, 13),
            st.binary(max_size=9),
        ),
        max_size=8,
    ),
    size=st.integers(1, 60),
)
def test_goodbyes_are_taken_out_however_the_frames_are_cut(frames: list[bytes], size: int) -> None:
    stream = b"".join(frames)
    goaways = GoAways()
    kept, found = b"", list[GoAway]()
    for at in range(0, len(stream), size):
        left, some = goaways.feed(stream[at : at + size])
        kept += left
        found += some
    assert kept == b"".join(one for one in frames if one[3] != 7)
    assert found == [
        GoAway(int.from_bytes(one[9:13], "big"), int.from_bytes(one[13:17], "big"))
        for one in frames
        if one[3] == 7
    ]


# ---------------------------------------------------------------------- proxies


@pytest.mark.parametrize(
    ("url", "no", "proxied"),
    [
        ("https://api.example.com/", "", True),
        ("https://api.example.com/", "example.com", False),
        ("https://api.example.com/", ".example.com", False),
        ("https://badexample.com/", "example.com", True),
        ("https://api.example.com/", "*", False),
        ("https://api.example.com:8443/", "api.example.com:443", True),
        ("https://api.example.com:443/", "api.example.com:443", False),
        ("https://10.1.2.3/", "10.0.0.0/8", False),
        ("https://[::1]/", "localhost, ::1", False),
        ("http://api.example.com/", "", False),
    ],
)
def test_no_proxy_is_honoured(url: str, no: str, proxied: bool) -> None:
    parsed = httpx.URL(url)
    port = parsed.port or (443 if parsed.scheme == "https" else 80)
    proxies = Proxies({"https": "http://proxy:3128", "no": no})
    assert (proxies.of(parsed.scheme, parsed.host, port) is not None) == proxied


@pytest.mark.parametrize("url", ["socks5://a:1", "https://a:1", "http://"])
def test_proxies_we_cannot_speak_to_are_refused_at_once(url: str) -> None:
    with pytest.raises(ValueError, match="prox"):
        Proxies({"all": url})


async def test_https_goes_through_a_tunnel(authority: Path) -> None:
    heads: list[bytes] = []

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
        writer.close()

    async with serving(answering(LENGTH), tls=server_context(authority)) as origin:

        async def tunnel(connection: Connection) -> None:
            heads.append((await connection.request())[0])
            reader, writer = await asyncio.open_connection("127.0.0.1", origin.port)
            connection.send(b"HTTP/1.1 200 Connection established\r\n\r\n")
            try:
                await asyncio.gather(
                    pipe(reader, connection.writer), pipe(connection.reader, writer)
                )
            finally:
                writer.close()

        async with serving(tunnel) as proxy:
            proxies = Proxies({"https": f"http://us%65r:pw@127.0.0.1:{proxy.port}"})
            client = FastClient(verify=str(authority), proxies=proxies)
            assert (await fetched(client, origin.url))[0] == b"hello world"
            authority_ = b"127.0.0.1:%d" % origin.port
            assert heads == [
                b"CONNECT %b HTTP/1.1\r\nhost: %b\r\n"
                b"proxy-authorization: Basic dXNlcjpwdw==\r\n\r\n" % (authority_, authority_)
            ]
            await client.close()


@pytest.mark.parametrize(
    "response",
    [
        b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n",
        b"SSH-2.0\r\n\r\n",
        b"",
        b"HTTP/1.1 200 OK\r\nx: " + b"a" * 20_000,
        b"HTTP/1.1 200 OK\r\n\r\nmore",
    ],
)
async def test_a_proxy_that_refuses_is_a_proxy_failure(response: bytes) -> None:
    async with serving(closing(response)) as proxy:
        client = FastClient(proxies=Proxies({"https": f"http://127.0.0.1:{proxy.port}"}))
        with pytest.raises(ConnectFailed) as caught:
            await fetched(client, "https://api.example.invalid/")
        assert caught.value.kind == "proxy"
        await client.close()


async def test_http_through_a_proxy_names_the_whole_url() -> None:
    heads: list[bytes] = []

    async def script(connection: Connection) -> None:
        heads.append((await connection.request())[0])
        connection.send(LENGTH)
        await connection.gone()

    async with serving(script) as proxy:
        client = FastClient(proxies=Proxies({"http": f"http://u:p@127.0.0.1:{proxy.port}"}))
        assert (await fetched(client, "http://api.example.invalid/a?b=1"))[0] == b"hello world"
        assert heads[0].startswith(
            b"POST http://api.example.invalid/a?b=1 HTTP/1.1\r\nhost: api.example.invalid\r\n"
            b"proxy-authorization: Basic dTpw\r\n"
        )
        await client.close()


# ---------------------------------------------------------------------- httpx, both ways


async def test_httpx_runs_on_our_transport() -> None:
    body = gzip.compress(b'{"a": 1}')
    response = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%b"
    async with (
        serving(answering(response % (len(body), body))) as server,
        httpx.AsyncClient(transport=Transport(FastClient(proxies=Proxies({})))) as client,
    ):
        for _ in range(3):
            answer = await client.post(server.url, json={"q": 1})
            assert answer.json() == {"a": 1}
            assert answer.http_version == "HTTP/1.1"
        assert server.connections == 1


async def test_httpx_streams_on_our_transport() -> None:
    async with (
        serving(closing(b"HTTP/1.1 200 OK\r\n\r\n", b"one", b"two")) as server,
        httpx.AsyncClient(transport=Transport(FastClient(proxies=Proxies({})))) as client,
        client.stream("POST", server.url) as answer,
    ):
        assert b"".join([piece async for piece in answer.aiter_raw()]) == b"onetwo"


async def test_our_failures_are_httpx_s_own() -> None:
    async def silent(connection: Connection) -> None:
        await connection.gone()

    async with httpx.AsyncClient(
        transport=Transport(FastClient(proxies=Proxies({}))), timeout=0.05
    ) as client:
        async with serving(silent) as server:
            with pytest.raises(httpx.ReadTimeout):
                await client.get(server.url)
        with pytest.raises(httpx.ConnectError):
            await client.get(server.url)
        async with serving(closing(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx")) as server:
            with pytest.raises(httpx.RemoteProtocolError):
                await client.get(server.url)


async def test_a_mock_transport_serves_the_worker() -> None:
    seen: list[httpx.Request] = []

    def respond(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(429, headers={"Retry-After": "2"}, json={"error": {}})

    client = HttpxClient(httpx.MockTransport(respond))
    prepared = client.prepare("POST", "https://api.example.com/v1", [("Authorization", "Bearer k")])
    answer = await client.send(prepared, b'{"a":1}', headers=[("X-B", "c")])
    assert answer.status == 429
    assert answer.headers["retry-after"] == "2"
    assert await answer.read(100) == b'{"error":{}}'
    assert await answer.chunk() is None
    answer.close()
    await client.close()
    assert seen[0].headers["authorization"] == "Bearer k"
    assert seen[0].headers["x-b"] == "c"
    assert seen[0].headers["accept-encoding"] == "identity"
    assert seen[0].content == b'{"a":1}'


async def test_bounds_hold_over_httpx_too() -> None:
    def respond(request: httpx.Request) -> httpx.Response:
        data = gzip.compress(b"\0" * 1_000_000)
        return httpx.Response(
            200, headers={"Content-Encoding": "gzip"}, stream=httpx.ByteStream(data)
        )

    client = HttpxClient(httpx.MockTransport(respond), decoded_bytes_max=999_999)
    answer = await client.send(client.prepare("POST", "http://a/"), b"{}")
    with pytest.raises(AnswerTooLarge):
        await answer.read(1 << 30)
    answer = await client.send(client.prepare("POST", "http://a/"), b"{}")
    with pytest.raises(AnswerTooLarge):
        await answer.read(1000)
    await client.close()


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (httpx.ConnectTimeout("x"), ConnectFailed),
        (httpx.ConnectError("x"), ConnectFailed),
        (httpx.PoolTimeout("x"), PoolTimeout),
        (httpx.RemoteProtocolError("Server disconnected without sending a response."), CutAnswer),
        (httpx.RemoteProtocolError("illegal status line"), MalformedHttp),
        (httpx.ReadError("x"), ReadFailed),
    ],
)
async def test_httpx_s_failures_are_ours(
    raised: httpx.TransportError, expected: type[Exception]
) -> None:
    def respond(request: httpx.Request) -> httpx.Response:
        raise raised

    client = HttpxClient(httpx.MockTransport(respond))
    with pytest.raises(expected):
        await client.send(client.prepare("POST", "http://a/"), b"{}")
    await client.close()


async def test_httpx_s_default_transport_serves_the_worker() -> None:
    client = HttpxClient(httpx.AsyncHTTPTransport())
    async with serving(answering(LENGTH)) as server:
        assert await fetched(client, server.url) == (b"hello world", "1.1")
        answer = await client.send(client.prepare("POST", server.url), b"{}")
        answer.close()
        with pytest.raises(ReadFailed):
            await answer.chunk()
        await client.close()
