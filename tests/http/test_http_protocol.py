"""The server's protocol over a transport driven by hand: framing, bounds, deadlines."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.http.wire import Recorder, Wire, answers, dechunk, make

from breakwater_gateway.runtime.http.application import HttpLimits, HttpRequest, Responder

pytestmark = pytest.mark.anyio


GET = b"GET /a HTTP/1.1\r\nhost: h\r\n\r\n"
POST = b"POST /p?q=1 HTTP/1.1\r\nHost: h\r\nX-Two: a\r\nx-two: b\r\ncontent-length: 5\r\n\r\nhello"
CHUNKED = (
    b"POST /c HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n"
    b"3;ext=1\r\nabc\r\n2\r\nde\r\n0\r\nx-trailer: t\r\n\r\n"
)


async def test_a_request_is_told_as_it_came() -> None:
    app = Recorder()
    wire = Wire(make(app)[0])
    wire.feed(POST)
    request = app.request
    assert (request.method, request.path, request.query) == ("POST", "/p", "q=1")
    assert request.headers == {"host": "h", "x-two": "a, b", "content-length": "5"}
    assert (request.body, request.peer) == (b"hello", "127.0.0.9")


async def test_an_answer_with_a_body_says_its_length_and_its_date_in_one_write() -> None:
    wire = Wire(make()[0])
    wire.feed(POST)
    assert wire.writes == 1
    (answer,) = answers(wire.take())
    assert answer.status == 200
    assert answer.headers["content-length"] == "8"
    assert answer.headers["date"].endswith(" GMT")
    assert answer.body == b"/p|hello"
    assert not wire.closed


@pytest.mark.parametrize("data", [GET, POST, CHUNKED, GET + POST + CHUNKED + GET])
async def test_requests_may_be_cut_at_any_byte(data: bytes) -> None:
    whole = Wire(make()[0])
    whole.feed(data)
    expected = answers(whole.take())
    for at in range(1, len(data)):
        wire = Wire(make()[0])
        wire.feed(data[:at])
        wire.feed(data[at:])
        assert [a.body for a in answers(wire.take())] == [a.body for a in expected]
    drip = Wire(make()[0])
    for byte in data:
        drip.feed(bytes([byte]))
    assert [a.body for a in answers(drip.take())] == [a.body for a in expected]


async def test_a_chunked_body_arrives_whole_without_its_framing() -> None:
    wire = Wire(make()[0])
    wire.feed(CHUNKED)
    assert answers(wire.take())[0].body == b"/c|abcde"


async def test_pipelined_requests_are_answered_in_order_though_finished_late() -> None:
    app = Recorder()
    wire = Wire(make(app)[0])
    wire.feed(b"".join(b"GET /%d HTTP/1.1\r\nhost: h\r\n\r\n" % i for i in range(3)))
    assert [call.request.path for call in app.calls] == ["/0"]
    for i in range(3):
        app.responder.respond(200, [], b"%d" % i)
    assert [a.body for a in answers(wire.take())] == [b"0", b"1", b"2"]


async def test_reading_pauses_behind_a_line_of_pipelined_requests() -> None:
    app = Recorder()
    wire = Wire(make(app)[0])
    wire.feed(GET * 6)
    assert not wire.reading
    for _ in range(6):
        app.responder.respond(200, [])
    assert wire.reading
    assert len(answers(wire.take())) == 6


async def test_a_line_of_pipelined_requests_ends_at_its_bound() -> None:
    app = Recorder()
    server, _ = make(app, limits=HttpLimits(pipelined=3))
    wire = Wire(server)
    wire.feed(GET * 100)
    while len(app.calls) < 4 or not app.responder.closed:
        app.responder.respond(200, [])
    got = answers(wire.take())
    assert len(app.calls) == len(got) == 4
    assert ["connection" in a.headers for a in got] == [False, False, False, True]
    assert wire.finished


async def test_a_client_that_asks_to_close_is_closed_after_its_answer() -> None:
    wire = Wire(make()[0])
    wire.feed(b"GET / HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n" + GET)
    (answer,) = answers(wire.take())
    assert answer.headers["connection"] == "close"
    assert wire.finished or wire.closed


async def test_http_1_0_closes_unless_asked_to_stay() -> None:
    wire = Wire(make()[0])
    wire.feed(b"GET /a HTTP/1.0\r\nconnection: keep-alive\r\n\r\n")
    (answer,) = answers(wire.take())
    assert answer.headers["connection"] == "keep-alive"
    wire.feed(b"GET /b HTTP/1.0\r\n\r\n")
    (answer,) = answers(wire.take())
    assert answer.headers["connection"] == "close"
    assert wire.closed


async def test_http_1_0_gets_a_stream_that_ends_with_the_connection() -> None:
    app = Recorder()
    wire = Wire(make(app)[0])
    wire.feed(b"GET /a HTTP/1.0\r\nconnection: keep-alive\r\n\r\n")
    app.responder.start(200, [])
    app.responder.write(b"one ")
    app.responder.write(b"two")
    app.responder.end()
    (answer,) = answers(wire.take())
    assert "transfer-encoding" not in answer.headers
    assert (answer.headers["connection"], answer.body) == ("close", b"one two")
    assert wire.closed
    assert not wire.aborted


async def test_a_stream_is_chunked_and_its_head_rides_with_the_first_write() -> None:
    app = Recorder()
    wire = Wire(make(app)[0])
    wire.feed(GET)
    app.responder.start(200, [("content-type", "text/event-stream")])
    assert wire.writes == 0
    app.responder.write(b"data: 1\n\n")
    assert wire.writes == 1
    app.responder.write(b"")
    app.responder.write(b"data: 2\n\n")
    app.responder.end()
    (answer,) = answers(wire.take())
    assert answer.headers["transfer-encoding"] == "chunked"
    assert answer.body == b"data: 1\n\ndata: 2\n\n"
    wire.feed(GET)
    assert len(app.calls) == 2


async def test_an_empty_write_sends_the_head() -> None:
    app = Recorder()
    wire = Wire(make(app)[0])
    wire.feed(GET)
    app.responder.start(200, [])
    app.responder.write(b"")
    assert wire.take().endswith(b"\r\n\r\n")
    app.responder.end()
    assert dechunk(wire.take()) == (b"", b"")


async def test_head_is_answered_without_a_body() -> None:
    wire = Wire(make()[0])
    wire.feed(b"HEAD /a HTTP/1.1\r\nhost: h\r\n\r\n")
    (answer,) = answers(wire.take(), head_only=True)
    assert answer.headers["content-length"] == "3"
    app = Recorder()
    wire = Wire(make(app)[0])
    wire.feed(b"HEAD /a HTTP/1.1\r\nhost: h\r\n\r\n")
    app.responder.start(200, [])
    app.responder.write(b"x")
    app.responder.end()
    assert len(answers(wire.take(), head_only=True)) == 1


async def test_no_content_has_neither_body_nor_length() -> None:
    wire = Wire(make(lambda _, r: r.respond(204, [], b"ignored"))[0])
    wire.feed(GET)
    (answer,) = answers(wire.take())
    assert "content-length" not in answer.headers


async def test_a_body_announced_with_expect_is_asked_for() -> None:
    app = Recorder()
    wire = Wire(make(app)[0])
    wire.feed(b"POST / HTTP/1.1\r\nhost: h\r\nexpect: 100-Continue\r\ncontent-length: 2\r\n\r\n")
    assert wire.take() == b"HTTP/1.1 100 Continue\r\n\r\n"
    wire.feed(b"ok")
    assert app.request.body == b"ok"


async def test_an_oversized_body_announced_with_expect_is_refused_before_it_is_sent() -> None:
    app = Recorder()
    wire = Wire(make(app, limits=HttpLimits(body_bytes=10))[0])
    wire.feed(b"POST / HTTP/1.1\r\nhost: h\r\nexpect: 100-continue\r\ncontent-length: 11\r\n\r\n")
    (answer,) = answers(wire.take())
    assert (answer.status, answer.headers["connection"]) == (413, "close")
    assert app.calls == []


async def test_an_unknown_expectation_is_refused() -> None:
    wire = Wire(make()[0])
    wire.feed(b"POST / HTTP/1.1\r\nhost: h\r\nexpect: tea\r\ncontent-length: 1\r\n\r\n")
    assert answers(wire.take())[0].status == 417


async def test_an_offered_upgrade_is_declined_and_the_body_still_read() -> None:
    head = b"POST /u HTTP/1.1\r\nhost: h\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\n"
    data = head + b"content-length: 4\r\n\r\nbody" + POST
    wire = Wire(make()[0])
    wire.feed(data)
    assert [a.body for a in answers(wire.take())] == [b"/u|body", b"/p|hello"]
    for at in range(1, len(data)):
        wire = Wire(make()[0])
        wire.feed(data[:at])
        wire.feed(data[at:])
        assert [a.body for a in answers(wire.take())] == [b"/u|body", b"/p|hello"]
    wire = Wire(make()[0])
    wire.feed(head + b"transfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n")
    assert answers(wire.take())[0].body == b"/u|ab"
    wire = Wire(make()[0])
    wire.feed(head.replace(b"POST", b"GET") + b"\r\n" + GET)
    assert [a.body for a in answers(wire.take())] == [b"/u|", b"/a|"]


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        (b"/v1/models/openai%2Fgpt-4o", "/v1/models/openai/gpt-4o", ""),
        (b"/caf%C3%A9?x=%20", "/café", "x=%20"),
        (b"http://h:1/v1?a=b", "/v1", "a=b"),
        (b"http://h", "/", ""),
        (b"/a%zz", "/a%zz", ""),
    ],
)
async def test_targets_become_path_and_query(target: bytes, path: str, query: str) -> None:
    app = Recorder()
    wire = Wire(make(app)[0])
    wire.feed(b"GET " + target + b" HTTP/1.1\r\nhost: h\r\n\r\n")
    assert (app.request.path, app.request.query) == (path, query)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET /%ff HTTP/1.1\r\nhost: h\r\n\r\n", 400),
        (b"GET /%00 HTTP/1.1\r\nhost: h\r\n\r\n", 400),
        (b"GET /a%0d%0ab HTTP/1.1\r\nhost: h\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"hello\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: h\r\nbad header: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: h\r\nx: a\0b\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: -5\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 99999999999999999999999\r\n\r\n", 400),
        (
            b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n",
            400,
        ),
        (
            b"POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n",
            400,
        ),
        (b"POST / HTTP/1.0\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: gzip, chunked\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"CONNECT h:443 HTTP/1.1\r\nhost: h\r\n\r\n", 400),
    ],
)
async def test_what_is_not_http_is_refused_and_the_connection_closed(
    data: bytes, status: int
) -> None:
    app = Recorder()
    server, _ = make(app)
    wire = Wire(server)
    wire.feed(data)
    (answer,) = answers(wire.take())
    assert answer.headers["connection"] == "close"
    assert answer.status == status
    assert app.calls == []
    assert wire.finished
    assert server.busy == 0


async def test_a_refusal_waits_for_the_answers_before_it() -> None:
    app = Recorder()
    wire = Wire(make(app)[0])
    wire.feed(GET + b"nonsense\r\n\r\n")
    assert wire.take() == b""
    app.responder.respond(200, [], b"first")
    assert [(a.status, a.headers.get("connection")) for a in answers(wire.take())] == [
        (200, None),
        (400, "close"),
    ]


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_at_the_limit_is_taken_and_one_byte_more_refused(chunked: bool) -> None:
    for size, status in ((10, 200), (11, 413)):
        wire = Wire(make(limits=HttpLimits(body_bytes=10))[0])
        head = b"POST / HTTP/1.1\r\nhost: h\r\n"
        if chunked:
            wire.feed(head + b"transfer-encoding: chunked\r\n\r\n")
            wire.feed(b"%x\r\n%b\r\n0\r\n\r\n" % (size, b"x" * size))
        else:
            wire.feed(head + b"content-length: %d\r\n\r\n" % size)
            wire.feed(b"x" * size)
        assert answers(wire.take())[0].status == status


async def test_a_head_at_the_limits_is_taken_and_more_refused() -> None:
    limits = HttpLimits(head_bytes=1000, headers=10)
    for count, size, status in ((10, 8, 200), (11, 1, 431), (2, 990, 200), (2, 2000, 431)):
        headers = b"".join(b"x%d: 1\r\n" % i for i in range(count - 2))
        data = b"GET / HTTP/1.1\r\nhost: h\r\n" + headers + b"y: " + b"v" * size + b"\r\n\r\n"
        wire = Wire(make(limits=limits)[0])
        wire.feed(data)
        assert answers(wire.take())[0].status == status
    wire = Wire(make(limits=limits)[0])
    wire.feed(b"GET /" + b"a" * 1001 + b" HTTP/1.1\r\nhost: h\r\n\r\n")
    assert answers(wire.take())[0].status == 431


async def test_a_head_that_never_ends_is_refused() -> None:
    wire = Wire(make(limits=HttpLimits(head_bytes=1000))[0])
    wire.feed(b"GET / HTTP/1.1\r\nhost: h\r\nx: ")
    for _ in range(110):
        wire.feed(b"a" * 10)
    assert answers(wire.take())[0].status == 431


async def test_chunk_extensions_without_end_are_refused() -> None:
    wire = Wire(make(limits=HttpLimits(head_bytes=1000))[0])
    wire.feed(b"POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n1;")
    for _ in range(400):
        wire.feed(b"a" * 10)
    assert answers(wire.take())[0].status == 400


async def test_trailers_count_as_headers() -> None:
    wire = Wire(make()[0])
    wire.feed(b"POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n0\r\n")
    wire.feed(b"".join(b"t%d: x\r\n" % i for i in range(150)))
    assert answers(wire.take())[0].status == 431


async def test_what_follows_a_refusal_is_thrown_away_up_to_a_bound() -> None:
    limits = HttpLimits(body_bytes=10, linger_bytes=1000)
    wire = Wire(make(limits=limits)[0])
    wire.feed(b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 5000\r\n\r\n")
    assert answers(wire.take())[0].status == 413
    assert wire.finished
    wire.feed(b"x" * 1000)
    assert not wire.closed
    wire.feed(b"x")
    assert wire.aborted
    assert wire.take() == b""


async def test_lingering_ends_by_the_clock() -> None:
    limits = HttpLimits(body_bytes=10, linger_s=5)
    server, _ = make(limits=limits)
    wire = Wire(server)
    wire.feed(b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 5000\r\n\r\n")
    server.tick(server.now + 4)
    assert not wire.closed
    server.tick(server.now + 4)
    assert wire.aborted


async def test_the_application_words_the_refusals() -> None:
    told: list[tuple[int, str]] = []

    def refuse(status: int, message: str, responder: Responder) -> None:
        told.append((status, message))
        responder.respond(status, [("x-dialect", "ours")], b"no")

    wire = Wire(make(limits=HttpLimits(body_bytes=10), refuse=refuse)[0])
    wire.feed(b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 11\r\n\r\n")
    (answer,) = answers(wire.take())
    assert (answer.headers["x-dialect"], answer.body) == ("ours", b"no")
    assert told == [(413, "The request's body is larger than 10 bytes.")]


async def test_a_refusal_that_raises_falls_back() -> None:
    def refuse(status: int, message: str, responder: Responder) -> None:
        raise ZeroDivisionError

    server, log = make(refuse=refuse)
    wire = Wire(server)
    wire.feed(b"nonsense\r\n\r\n")
    assert answers(wire.take())[0].status == 400
    assert "http_refusal_failed" in log.events


async def test_an_application_that_raises_answers_500_and_the_connection_lives() -> None:
    def app(request: HttpRequest, responder: Responder) -> None:
        if request.path == "/bad":
            raise ZeroDivisionError
        responder.respond(200, [], b"fine")

    server, log = make(app)
    wire = Wire(server)
    wire.feed(b"GET /bad HTTP/1.1\r\nhost: h\r\n\r\n" + GET)
    assert [a.status for a in answers(wire.take())] == [500, 200]
    assert log.events == ["http_application_failed"]


async def test_an_application_that_raises_in_its_answer_cuts_it() -> None:
    def app(_: HttpRequest, responder: Responder) -> None:
        responder.start(200, [])
        responder.write(b"half")
        raise ZeroDivisionError

    wire = Wire(make(app)[0])
    wire.feed(GET)
    assert wire.closed
    assert not wire.take().endswith(b"0\r\n\r\n")


@given(st.text(max_size=30), st.text(max_size=30))
async def test_no_header_value_can_add_a_line(name: str, value: str) -> None:
    wire = Wire(make(lambda _, r: r.respond(200, [(f"x-{name}", value), ("y", "z")]))[0])
    wire.feed(GET)
    head, _, rest = wire.take().partition(b"\r\n\r\n")
    assert rest == b""
    lines = head.split(b"\r\n")
    assert len(lines) == 5
    assert all(b"\r" not in line and b"\n" not in line and b"\0" not in line for line in lines)


async def test_framing_headers_of_the_application_are_ignored() -> None:
    given = [
        ("Content-Length", "999"),
        ("Transfer-Encoding", "gzip"),
        ("Connection", "upgrade"),
        ("Date", "x"),
    ]
    wire = Wire(make(lambda _, r: r.respond(200, given, b"ok"))[0])
    wire.feed(GET)
    (answer,) = answers(wire.take())
    assert set(answer.headers) == {"date", "content-length"}


async def test_a_second_answer_is_a_defect_and_a_late_one_is_not() -> None:
    app = Recorder()
    wire = Wire(make(app)[0])
    wire.feed(GET)
    app.responder.respond(200, [])
    with pytest.raises(RuntimeError, match="ended"):
        app.responder.respond(200, [])
    wire.feed(GET)
    wire.hang_up()
    app.responder.respond(200, [])
    assert app.responder.closed


async def test_a_client_that_goes_away_is_told_of_once() -> None:
    app = Recorder()
    server, _ = make(app)
    wire = Wire(server)
    wire.feed(GET)
    gone: list[str] = []
    app.responder.on_close = lambda: gone.append("gone")
    app.responder.start(200, [])
    app.responder.write(b"x")
    assert server.busy == 1
    wire.hang_up()
    app.responder.write(b"y")
    app.responder.end()
    assert gone == ["gone"]
    assert (server.busy, server.connections) == (0, 0)


async def test_a_client_that_goes_away_after_its_answer_is_nobodys_business() -> None:
    app = Recorder()
    wire = Wire(make(app)[0])
    wire.feed(GET)
    gone: list[str] = []
    app.responder.on_close = lambda: gone.append("gone")
    app.responder.respond(200, [])
    wire.hang_up()
    assert gone == []


async def test_an_aborted_stream_lacks_its_end() -> None:
    app = Recorder()
    server, _ = make(app)
    wire = Wire(server)
    wire.feed(GET)
    gone: list[str] = []
    app.responder.on_close = lambda: gone.append("gone")
    app.responder.start(200, [])
    app.responder.write(b"half")
    app.responder.abort()
    wire.hang_up()
    assert wire.closed
    assert wire.take().endswith(b"4\r\nhalf\r\n")
    assert (gone, server.busy) == ([], 0)


async def test_where_closing_is_the_end_an_abort_resets() -> None:
    app = Recorder()
    wire = Wire(make(app)[0])
    wire.feed(b"GET / HTTP/1.0\r\n\r\n")
    app.responder.start(200, [])
    app.responder.write(b"half")
    app.responder.abort()
    assert wire.aborted


async def test_a_slow_reader_is_told_of_and_cut_at_the_bound() -> None:
    app = Recorder()
    server, log = make(app, limits=HttpLimits(write_buffer_bytes=1000))
    wire = Wire(server)
    wire.feed(GET)
    calls: list[str] = []
    app.responder.on_writable = lambda: calls.append("writable")
    app.responder.on_close = lambda: calls.append("closed")
    app.responder.start(200, [])
    app.responder.write(b"x")
    wire.protocol.pause_writing()
    assert app.responder.congested
    wire.protocol.resume_writing()
    assert not app.responder.congested
    wire.protocol.pause_writing()
    wire.unsent = 1000
    app.responder.write(b"x")
    assert not wire.aborted
    wire.unsent = 1001
    app.responder.write(b"x")
    assert wire.aborted
    wire.protocol.connection_lost(None)
    assert calls == ["writable", "closed"]
    assert "http_client_too_slow" in log.events


async def test_a_reader_that_stalls_is_cut_by_the_clock() -> None:
    app = Recorder()
    server, _ = make(app, limits=HttpLimits(write_stall_s=30))
    wire = Wire(server)
    wire.feed(GET)
    app.responder.start(200, [])
    app.responder.write(b"x")
    server.tick(server.now + 1000)
    assert not wire.closed
    wire.protocol.pause_writing()
    server.tick(server.now + 29)
    assert not wire.closed
    server.tick(server.now + 3)
    assert wire.aborted


LATE = HttpLimits(head_s=10, body_s=20, idle_s=30)


async def test_a_head_that_dribbles_is_refused_by_the_clock() -> None:
    server, _ = make(limits=LATE)
    wire = Wire(server)
    wire.feed(b"GET / HT")
    for _ in range(3):
        server.tick(server.now + 3)
        wire.feed(b"T" if _ == 0 else b"P" if _ == 1 else b"/")
        assert wire.take() == b""
    server.tick(server.now + 3)
    assert answers(wire.take())[0].status == 408


async def test_a_body_that_dribbles_is_refused_by_the_clock() -> None:
    server, _ = make(limits=LATE)
    wire = Wire(server)
    wire.feed(b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 100\r\n\r\n")
    server.tick(server.now + 19)
    wire.feed(b"x")
    assert wire.take() == b""
    server.tick(server.now + 3)
    assert answers(wire.take())[0].status == 408


async def test_an_idle_connection_is_closed_without_a_word() -> None:
    server, _ = make(limits=LATE)
    silent, idle = Wire(server), Wire(server)
    idle.feed(GET)
    idle.take()
    server.tick(server.now + 12)
    assert silent.closed
    assert not idle.closed
    server.tick(server.now + 20)
    assert idle.closed
    assert idle.take() == b""


async def test_an_answer_in_the_making_has_no_deadline_of_the_server() -> None:
    app = Recorder()
    server, _ = make(app, limits=LATE)
    wire = Wire(server)
    wire.feed(GET + b"GET /")
    server.tick(server.now + 10_000)
    app.responder.respond(200, [], b"at last")
    assert answers(wire.take())[0].body == b"at last"


async def test_connections_over_the_bound_get_503() -> None:
    server, log = make(limits=HttpLimits(connections=2))
    wires = [Wire(server) for _ in range(3)]
    assert answers(wires[2].take())[0].status == 503
    assert wires[2].finished
    wires[0].feed(GET)
    assert answers(wires[0].take())[0].status == 200
    crowd = [Wire(server) for _ in range(5)]
    assert crowd[-1].aborted
    assert "http_connections_exhausted" in log.events
    wires[1].hang_up()


@given(st.binary(max_size=300), st.integers(1, 40))
async def test_no_bytes_break_the_server(noise: bytes, step: int) -> None:
    server, log = make()
    wire = Wire(server)
    data = GET + noise
    for at in range(0, len(data), step):
        wire.feed(data[at : at + step])
    wire.hang_up()
    assert (server.busy, server.connections) == (0, 0)
    assert "http_parser_callback_failed" not in log.events
