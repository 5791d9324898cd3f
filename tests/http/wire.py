"""What the server's tests share: a transport driven by hand, an application that records, a log that keeps."""

import asyncio
from collections.abc import Callable
from typing import NamedTuple

from breakwater_gateway.runtime.http.answer import Exchange
from breakwater_gateway.runtime.http.application import HttpLimits, HttpRequest, Refuse, Responder
from breakwater_gateway.runtime.http.server import HttpServer


class Line(NamedTuple):
    level: str
    event: str
    facts: dict[str, object]


class KeptLog:
    def __init__(self) -> None:
        self.lines: list[Line] = []

    @property
    def events(self) -> list[str]:
        return [line.event for line in self.lines]

    def debug(self, event: str, **facts: object) -> None:
        self.lines.append(Line("debug", event, facts))

    def info(self, event: str, **facts: object) -> None:
        self.lines.append(Line("info", event, facts))

    def warning(self, event: str, **facts: object) -> None:
        self.lines.append(Line("warning", event, facts))

    def error(self, event: str, **facts: object) -> None:
        self.lines.append(Line("error", event, facts))

    def exception(self, event: str, **facts: object) -> None:
        self.lines.append(Line("exception", event, facts))


class Wire(asyncio.Transport):
    """The client's side of one connection, without a socket."""

    def __init__(self, server: HttpServer) -> None:
        super().__init__()
        self.sent = bytearray()
        self.writes = 0
        self.unsent = 0
        self.closed = self.aborted = self.finished = False
        self.reading = True
        self.protocol = server.connection()
        assert isinstance(self.protocol, asyncio.Protocol)
        self.protocol.connection_made(self)

    def feed(self, data: bytes) -> None:
        assert isinstance(self.protocol, asyncio.Protocol)
        self.protocol.data_received(data)

    def hang_up(self) -> None:
        assert isinstance(self.protocol, asyncio.Protocol)
        self.protocol.eof_received()
        self.protocol.connection_lost(None)

    def take(self) -> bytes:
        data = bytes(self.sent)
        self.sent.clear()
        return data

    def get_extra_info(self, name: str, default: object = None) -> object:
        return ("127.0.0.9", 40000) if name == "peername" else default

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.writes += 1
        self.sent += data

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.finished = True

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True


class Recorded(NamedTuple):
    request: HttpRequest
    responder: Responder


class Recorder:
    """An application that answers with what it was told to, or leaves the answer to the test."""

    def __init__(self, answer: Callable[[HttpRequest, Responder], None] | None = None) -> None:
        self.calls: list[Recorded] = []
        self._answer = answer

    def __call__(self, request: HttpRequest, responder: Responder) -> None:
        self.calls.append(Recorded(request, responder))
        if self._answer is not None:
            self._answer(request, responder)

    @property
    def request(self) -> HttpRequest:
        return self.calls[-1].request

    @property
    def responder(self) -> Exchange:
        responder = self.calls[-1].responder
        assert isinstance(responder, Exchange)
        return responder


def echo(request: HttpRequest, responder: Responder) -> None:
    responder.respond(
        200, [("content-type", "text/plain")], request.path.encode() + b"|" + request.body
    )


def make(
    app: Callable[[HttpRequest, Responder], None] = echo,
    *,
    limits: HttpLimits | None = None,
    refuse: Refuse | None = None,
) -> tuple[HttpServer, KeptLog]:
    log = KeptLog()
    return HttpServer(app, log=log, limits=limits, refuse=refuse), log


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


def answers(data: bytes, *, head_only: bool = False) -> list[Answer]:
    """Every answer in `data`, which must hold nothing else and no half one."""
    found = []
    while data:
        head, gap, data = data.partition(b"\r\n\r\n")
        assert gap, head
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {}
        for line in lines:
            name, _, value = line.partition(": ")
            assert name not in headers, line
            headers[name] = value
        status = int(first.split(" ")[1])
        body = b""
        if status >= 200 and status not in {204, 304} and not head_only:
            if "content-length" in headers:
                size = int(headers["content-length"])
                body, data = data[:size], data[size:]
                assert len(body) == size
            elif headers.get("transfer-encoding") == "chunked":
                body, data = dechunk(data)
            else:
                body, data = data, b""
        found.append(Answer(status, headers, body))
    return found


def dechunk(data: bytes) -> tuple[bytes, bytes]:
    body = b""
    while True:
        size, gap, data = data.partition(b"\r\n")
        assert gap
        length = int(size, 16)
        body += data[:length]
        assert data[length : length + 2] == b"\r\n"
        data = data[length + 2 :]
        if not length:
            return body, data


async def until(condition: Callable[[], bool]) -> None:
    """For what happens on the other side of a socket; the caller bounds the time."""
    while not condition():  # noqa: ASYNC110 - what it watches has no event
        await asyncio.sleep(0.002)
