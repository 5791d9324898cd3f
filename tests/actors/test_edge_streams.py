"""Streams through the edge, message by message: what is passed on, in which order, and when it ends."""

import json
from collections.abc import Callable, Iterable

import pytest
from tests.actors.stage import quiet_log

from breakwater_gateway.config.model import Config
from breakwater_gateway.edge.actor import Edge, Listen
from breakwater_gateway.runtime.actor import Context
from breakwater_gateway.runtime.bus import Message
from breakwater_gateway.runtime.clock import Clock
from breakwater_gateway.runtime.http.application import HttpRequest
from breakwater_gateway.runtime.memory_bus import MemoryBus, MemoryHub
from breakwater_gateway.runtime.metrics import Registry
from breakwater_protocol.subjects import Subjects

pytestmark = pytest.mark.anyio

PATHS = {
    "chat": "/v1/chat/completions",
    "messages": "/v1/messages",
    "responses": "/v1/responses",
    "generate": "/v1beta/models/m:streamGenerateContent",
}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Answered:
    """What an HTTP client was sent."""

    def __init__(self) -> None:
        self.on_close: Callable[[], None] | None = None
        self.on_writable: Callable[[], None] | None = None
        self.status = 0
        self.text = b""
        self.closed = False
        self.congested = False

    def respond(self, status: int, headers: Iterable[tuple[str, str]], body: bytes = b"") -> None:
        self.status, self.text, self.closed = status, body, True

    def start(self, status: int, headers: Iterable[tuple[str, str]]) -> None:
        self.status = status

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.text += data

    def end(self) -> None:
        self.closed = True

    abort = end


class Talk:
    """A call of one API, and a router that says what the test wants."""

    def __init__(self, api: str) -> None:
        self.hub = MemoryHub()
        self.bus = MemoryBus("test", self.hub)
        self.asked: list[Message] = []
        self.cancelled: list[Message] = []
        self.answer = Answered()
        self._api = api

    async def ask(self) -> "Talk":
        subjects = Subjects()
        await self.bus.subscribe(f"bw.v1.{self._api}.default", self.asked.append)
        await self.bus.subscribe(subjects.cancel.any(), self.cancelled.append)
        edge = Edge(
            Context("edge", self.bus, subjects, Clock(seed=1), quiet_log(), Registry(), Config({})),
            listen=Listen(),
            readiness=dict,
            metrics_text=_no_metrics,
        )
        body = json.dumps({"model": "m", "stream": True, "messages": [], "contents": []}).encode()
        edge._serve(HttpRequest("POST", PATHS[self._api], "alt=sse", {}, body), self.answer)
        await self.bus.flush()
        return self

    async def say(self, data: bytes = b"", **headers: str | int) -> None:
        said = {f"breakwater-{name}": str(value) for name, value in headers.items()}
        self.bus.publish(self.asked[0].reply, data, headers=said)
        await self.bus.flush()


async def _no_metrics() -> bytes:
    return b""


@pytest.mark.parametrize("api", PATHS)
async def test_a_stream_goes_on_under_another_attempt_that_says_so(api: str) -> None:
    talk = await Talk(api).ask()
    await talk.say(b'{"n":0}', seq=0)
    await talk.say(b'{"n":9}', seq=1, attempt=2)  # says nothing of going on
    await talk.say(b'{"n":1}', seq=1, attempt=2, seam="other")
    await talk.say(b'{"n":9}', seq=1)  # of the one that was given up
    await talk.say(seq=1, end="partial", partial="cancelled")
    await talk.say(b'{"n":2}', seq=2, attempt=2)
    assert not talk.answer.closed
    await talk.say(seq=3, attempt=2, end="ok")
    assert talk.answer.closed
    lines = talk.answer.text.decode().split("\n")
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: {")]
    assert [json.loads(line)["n"] for line in data] == [0, 1, 2]
    if api == "generate":
        assert [json.loads(line).get("breakwaterSeam") for line in data] == [None, "other", None]
    else:
        seam = lines.index(": breakwater-seam=other")
        assert lines.index('data: {"n":0}') < seam < lines.index('data: {"n":1}')
    assert not talk.cancelled


async def test_a_continuation_that_starts_at_the_wrong_number_is_no_continuation() -> None:
    talk = await Talk("chat").ask()
    await talk.say(b'{"n":0}', seq=0)
    await talk.say(b'{"n":2}', seq=2, attempt=2, seam="other")
    assert talk.answer.closed
    assert b'"n":2' not in talk.answer.text
    assert b"[DONE]" not in talk.answer.text
    assert b"partial: the stream broke off (gap)" in talk.answer.text
    await talk.bus.flush()
    assert len(talk.cancelled) == 1


async def test_the_routers_word_ends_a_stream_whoever_was_speaking() -> None:
    talk = await Talk("chat").ask()
    await talk.say(b'{"n":0}', seq=0, attempt=2)
    await talk.say(end="partial", partial="worker_lost")
    assert talk.answer.closed
    assert b"the worker that was streaming it is gone" in talk.answer.text
