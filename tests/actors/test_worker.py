"""One worker, asked directly: what it says to whom, whatever its provider does."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
from tests.actors.stage import ANSWER, SUBJECTS, Caller, Gateway, config, delta, stage
from tests.virtual_time import VirtualTimeLoop

from breakwater_gateway.config.model import Config
from breakwater_protocol import failures as f
from breakwater_protocol.commands import Cancel, Finished, Started, WorkReply
from breakwater_protocol.events import TargetLoad

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


def limited(places: int) -> Config:
    return config("a", max_in_flight=places)


async def test_beyond_the_targets_limit_work_waits_by_priority() -> None:
    async with worker(limited(1)) as gateway:
        orders = [Order(gateway, request="r1")]
        for name in ("batch", "interactive", "critical"):
            body = {"model": "m", "messages": [{"role": "user", "content": name}]}
            orders.append(Order(gateway, request=name, priority=name, body=body))
        call = await gateway.provider.next_call()
        load = gateway.actor("worker").load()
        assert load.targets["a"] == TargetLoad(in_flight=1, limit=1, queued=3)
        assert load.in_flight == 4
        served = []
        for _ in range(3):
            call.reply(200, ANSWER)
            call = await gateway.provider.next_call()
            served.append(call.body["messages"][0]["content"])
        call.reply(200, ANSWER)
        assert served == ["critical", "interactive", "batch"]
        assert [(await order.finished()).failure for order in orders] == [None] * 4


async def test_a_full_queue_refuses_at_once_and_says_when() -> None:
    async with worker(limited(1)) as gateway:
        orders = [Order(gateway, request=f"r{n}") for n in range(4)]
        refused = [await orders[2].finished(), await orders[3].finished()]
        for reply in refused:
            assert not reply.answered
            assert isinstance(reply.failure, f.WorkerBusy)
            assert reply.failure.full
            assert (reply.failure.retry_after_s or 0) >= 1
            assert reply.duration_ms == 0
        (await gateway.provider.next_call()).reply(200, ANSWER)
        (await gateway.provider.next_call()).reply(200, ANSWER)
        assert (await orders[1].finished()).failure is None
        await asyncio.sleep(0.1)
        assert [event.outcome for event in gateway.attempts] == ["ok", "ok"]


async def test_a_wait_counts_against_the_deadline_and_not_as_the_providers_silence() -> None:
    async with worker(limited(1)) as gateway:
        first = Order(gateway, request="r1", stream=True, total_s=60.0)
        second = Order(gateway, request="r2", stream=True, first_token_s=1.0, total_s=10.0)
        call = await gateway.provider.next_call()
        call.start()
        await asyncio.sleep(1.5)  # longer than the second's first token may take
        call.send(delta("x", "stop"), DONE)
        await first.finished()
        call = await gateway.provider.next_call()
        began = asyncio.get_running_loop().time()
        reply = await second.finished()
        assert isinstance(reply.failure, f.FirstTokenTimeout)
        assert asyncio.get_running_loop().time() - began == pytest.approx(1.0, abs=0.01)
        assert reply.duration_ms == pytest.approx(2500, abs=10)


async def test_who_waits_too_long_is_told_and_who_leaves_the_queue_takes_no_place() -> None:
    async with worker(limited(1)) as gateway:
        Order(gateway, request="r1", total_s=300.0)
        second = Order(gateway, request="r2")
        call = await gateway.provider.next_call()
        reply = await second.finished()
        assert isinstance(reply.failure, f.WorkerBusy)
        assert reply.duration_ms == pytest.approx(2000, abs=10)
        third = Order(gateway, request="r3")
        await gateway.bus.flush()
        gateway.bus.publish(
            SUBJECTS.cancel.at("r3"), SUBJECTS.cancel.encode(Cancel("r3", "caller_gone"))
        )
        assert isinstance((await third.finished()).failure, f.Cancelled)
        call.reply(200, ANSWER)
        await asyncio.sleep(0.1)
        assert gateway.provider.calls.empty()
        assert gateway.actor("worker").load().in_flight == 0


async def test_a_refusal_for_rate_lowers_the_limit_and_it_is_published() -> None:
    async with worker() as gateway:
        orders = [Order(gateway, request=f"r{n}") for n in range(10)]
        calls = [await gateway.provider.next_call() for _ in orders]
        assert gateway.actor("worker").load().targets["a"].limit == 0
        calls[0].reply(429)
        await orders[0].finished()
        assert gateway.actor("worker").load().targets["a"].limit == 7
        late = Order(gateway, request="r11")
        await asyncio.sleep(0.1)
        assert gateway.provider.calls.empty()
        for call in calls[1:4]:
            call.reply(200, ANSWER)
        (await gateway.provider.next_call()).reply(200, ANSWER)
        assert (await late.finished()).failure is None


async def test_a_worker_that_leaves_serves_those_who_wait() -> None:
    async with worker(limited(1)) as gateway:
        first, second = Order(gateway, request="r1"), Order(gateway, request="r2")
        call = await gateway.provider.next_call()
        draining = asyncio.ensure_future(gateway.actor("worker").drain())
        await asyncio.sleep(0.1)
        late = Order(gateway, request="r3")
        assert isinstance((await late.finished()).failure, f.WorkerBusy)
        call.reply(200, ANSWER)
        (await gateway.provider.next_call()).reply(200, ANSWER)
        assert (await first.finished()).failure is None
        assert (await second.finished()).failure is None
        await draining
