"""One worker, asked directly: what it says to whom, whatever its provider does."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
from tests.actors.stage import ANSWER, SUBJECTS, Caller, Gateway, config, delta, stage
from tests.virtual_time import VirtualTimeLoop

from breakwater_gateway.config.model import Config
from breakwater_protocol.commands import Finished, Started, WorkReply

pytestmark = pytest.mark.anyio

_replies = msgspec.json.Decoder(WorkReply)
DONE = b"data: [DONE]\n\n"


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}


class Order:
    """A piece of work given to the worker: what the caller hears, the router, and whoever gets a copy."""

    def __init__(self, gateway: Gateway, **facts: object) -> None:
        bus = gateway.bus
        self.caller, self.copy, self.router = Caller(), Caller(), Caller()
        api = str(facts.get("api", "chat"))
        body = facts.pop("body", None) or (
            {"model": "m", "input": "x"}
            if api == "embeddings"
            else {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
        )
        work = {
            "request": "r1",
            "attempt": 1,
            "tenant": "t",
            "api": api,
            "model": "m",
            "provider_model": "a-model",
            "deployment": "a",
            "target": "a",
            "answer_to": bus.open_inbox(self.caller.hear).subject,
            "copy_to": bus.open_inbox(self.copy.hear).subject,
            "body": body,
            **facts,
        }
        bus.publish(
            SUBJECTS.work.at("worker"),
            msgspec.json.encode(work),
            reply=bus.open_inbox(self.router.hear).subject,
        )

    async def reply(self) -> Started | Finished:
        reply: Started | Finished = _replies.decode((await self.router.reply()).data)
        return reply

    async def finished(self) -> Finished:
        while not isinstance(found := await self.reply(), Finished):
            continue
        return found


@asynccontextmanager
async def worker(settings: Config | None = None) -> AsyncIterator[Gateway]:
    async with stage(settings or config("a"), actors=("worker",)) as gateway:
        yield gateway


async def test_whatever_the_caller_is_told_the_copy_is_told_too() -> None:
    async with worker() as gateway:
        order = Order(gateway, stream=True)
        call = await gateway.provider.next_call()
        call.start()
        call.send(delta("Hel"))
        await order.caller.reply()
        call.send(delta("lo", "stop"), DONE)
        await order.finished()
        assert [m.headers.get("breakwater-seq") for m in order.caller.all] == ["0", "1", "2"]
        assert [(m.data, m.headers) for m in order.copy.all] == [
            (m.data, m.headers) for m in order.caller.all
        ]


async def test_a_whole_answer_is_copied_too() -> None:
    async with worker() as gateway:
        order = Order(gateway)
        (await gateway.provider.next_call()).reply(200, ANSWER)
        await order.finished()
        (one,), (other,) = order.caller.all, order.copy.all
        assert (one.data, one.headers) == (other.data, other.headers)
