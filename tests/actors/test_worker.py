"""One worker, asked directly: what it says to whom, whatever its provider does."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
from tests.actors.stage import ANSWER, SUBJECTS, Caller, Gateway, config, delta, stage
from tests.virtual_time import VirtualTimeLoop

from breakwater_gateway.config.model import Config, Limits, Price
from breakwater_protocol import failures as f
from breakwater_protocol.chat import Usage
from breakwater_protocol.commands import Cancel, Finished, Started, Tap, WorkReply
from breakwater_protocol.events import TargetLoad
from breakwater_protocol.flights import FLIGHT, TAPPED, Tapped

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


async def test_a_whole_answer_is_copied_too_with_what_the_provider_counted() -> None:
    async with worker() as gateway:
        order = Order(gateway)
        (await gateway.provider.next_call()).reply(200, ANSWER)
        await order.finished()
        (one,), (other,) = order.caller.all, order.copy.all
        usage = json.loads(other.headers["breakwater-usage"])
        assert (usage["input"], usage["output"]) == (3, 1)
        told = {**one.headers, "breakwater-usage": other.headers["breakwater-usage"]}
        assert (one.data, told) == (other.data, other.headers)


async def test_callers_who_share_the_call_hear_all_of_it_with_facts_of_their_own() -> None:
    async with worker() as gateway:
        callers = [Caller() for _ in range(3)]
        to = [gateway.bus.open_inbox(caller.hear).subject for caller in callers]
        facts = [{"breakwater-request-id": f"f{n}", "breakwater-cache": "coalesced"} for n in "012"]
        ear = {"to": to[0], "facts": facts[0]}
        order = Order(gateway, stream=True, ears=[ear], ears_from=1_000, notes={"x-own": "r1's"})
        call = await gateway.provider.next_call()

        def lend(number: int) -> None:
            tap = SUBJECTS.tap.encode(Tap("r1", 1, to[number], facts[number]))
            gateway.bus.publish(SUBJECTS.tap.at("worker"), tap)

        lend(1)
        await asyncio.sleep(0.1)
        assert [m.headers for m in order.copy.all] == [{FLIGHT: TAPPED}] * 2
        told = [msgspec.json.decode(m.data, type=Tapped).to for m in order.copy.all]
        assert told == ["", to[1]]
        call.start()
        call.send(delta("Hel"))
        await order.caller.reply()
        lend(2)
        call.send(delta("lo", "stop"), DONE)
        await order.finished()
        assert callers[2].all == [], "it would not hear the beginning"
        for number in (0, 1):
            heard = callers[number].all
            assert [m.data for m in heard] == [m.data for m in order.caller.all]
            assert {m.headers["breakwater-attempt"] for m in heard} == {"1001"}
            for message in (heard[0], heard[-1]):
                assert message.headers["breakwater-request-id"] == f"f{number}"
                assert message.headers["breakwater-deployment"] == "a"
                assert "x-own" not in message.headers
            assert heard[-1].headers["breakwater-end"] == "ok"


async def test_another_router_that_taps_the_call_is_told_from_when_on_and_hears_the_rest() -> None:
    async with worker() as gateway:
        order = Order(gateway, stream=True)
        call = await gateway.provider.next_call()
        call.start()
        call.send(delta("Hel"))
        await order.caller.reply()
        router = Caller()
        inbox = gateway.bus.open_inbox(router.hear).subject
        for attempt in (2, 1):  # of the first of these it knows nothing
            tap = SUBJECTS.tap.encode(Tap("r1", attempt, inbox))
            gateway.bus.publish(SUBJECTS.tap.at("worker"), tap)
        told = await router.reply()
        assert told.headers == {FLIGHT: TAPPED}
        assert msgspec.json.decode(told.data, type=Tapped) == Tapped("worker", 1, 1)
        call.send(delta("lo", "stop"), DONE)
        await order.finished()
        rest = [(m.data, m.headers) for m in order.copy.all[1:]]
        assert [(m.data, m.headers) for m in router.all[1:]] == rest
        tap = SUBJECTS.tap.encode(Tap("r1", 1, inbox))
        gateway.bus.publish(SUBJECTS.tap.at("worker"), tap)
        await asyncio.sleep(0.1)
        assert len(router.all) == 3, "it is over"


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


BODIES: dict[str, dict[str, object]] = {
    "chat": {"model": "m", "messages": [{"role": "user", "content": "hello"}]},
    "messages": {
        "model": "m",
        "max_tokens": 99,
        "messages": [{"role": "user", "content": "hello"}],
    },
    "responses": {"model": "m", "input": "hello"},
    "generate": {"model": "m", "contents": [{"role": "user", "parts": [{"text": "hello"}]}]},
}
apis = pytest.mark.parametrize("api", BODIES)


@apis
@pytest.mark.parametrize(
    ("times", "why", "after_s"),
    [
        ({"idle_s": 3.0}, "idle_timeout", 3.0),
        ({"total_s": 5.0}, "total_timeout", 5.0),
        ({"min_rate": 20.0, "rate_window_s": 2.0}, "slow_stream", 2.0),
    ],
)
async def test_what_runs_out_after_the_first_token_leaves_a_marked_partial_answer(
    api: str, times: dict[str, float], why: str, after_s: float
) -> None:
    async with worker(config("a", price=Price(input=100, output=1000))) as gateway:
        order = Order(gateway, api=api, body=BODIES[api], stream=True, **times)
        call = await gateway.provider.next_call()
        call.start()
        began = asyncio.get_running_loop().time()
        call.send(delta("a few words"))
        reply = await order.finished()
        assert asyncio.get_running_loop().time() - began == pytest.approx(after_s, abs=0.01)
        assert (reply.answered, reply.partial) == (True, why)
        assert reply.failure is not None
        assert f.kind(reply.failure) == why
        end = order.caller.all[-1]
        assert end.headers["breakwater-end"] == "partial"
        assert end.headers["breakwater-partial"] == why
        assert end.data == b""
        said = b"".join(message.data for message in order.caller.all)
        assert b"a few words" in said
        # Nothing that a client would take for the end of a whole answer.
        for finish in (b'"stop"', b"message_stop", b"response.completed", b'"STOP"'):
            assert finish not in said
        assert reply.metered
        assert reply.usage is not None
        assert reply.usage.input > 0
        assert reply.usage.output == 3
        assert reply.cost_nano_usd == reply.usage.input * 100 + 3000


@apis
async def test_a_failure_inside_a_200_before_content_is_a_failed_attempt(api: str) -> None:
    async with worker() as gateway:
        order = Order(gateway, api=api, body=BODIES[api], stream=True)
        call = await gateway.provider.next_call()
        call.start()
        call.send(b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n')
        call.send(b'data: {"error":{"message":"busy","type":"overloaded_error"}}\n\n')
        reply = await order.finished()
        assert not reply.answered
        assert isinstance(reply.failure, f.Overloaded)
        assert (reply.usage, reply.metered) == (None, False)
        assert not order.caller.all


@pytest.mark.parametrize("stream", [False, True])
async def test_a_redirect_is_not_followed_and_is_named(stream: bool) -> None:
    async with worker() as gateway:
        order = Order(gateway, stream=stream)
        (await gateway.provider.next_call()).reply(307, b"", location="http://elsewhere/")
        failure = (await order.finished()).failure
        assert isinstance(failure, f.ServerError)
        assert (failure.provider_status, "base_url" in failure.message) == (307, True)
        assert gateway.provider.seen == ["a"]


@apis
async def test_no_first_token_in_time_says_nothing_to_the_caller(api: str) -> None:
    async with worker() as gateway:
        order = Order(gateway, api=api, body=BODIES[api], stream=True, first_token_s=2.0)
        call = await gateway.provider.next_call()
        call.start()
        reply = await order.finished()
        assert isinstance(reply.failure, f.FirstTokenTimeout)
        assert reply.duration_ms == pytest.approx(2000, abs=10)
        assert call.answer.closed.is_set()
        assert not order.caller.all


@apis
async def test_an_answer_in_one_piece_has_the_deadline_alone(api: str) -> None:
    async with worker() as gateway:
        order = Order(gateway, api=api, body=BODIES[api], first_token_s=2.0, total_s=7.0)
        call = await gateway.provider.next_call()
        reply = await order.finished()
        assert isinstance(reply.failure, f.TotalTimeout)
        assert reply.duration_ms == pytest.approx(7000, abs=10)
        assert (reply.answered, reply.usage) == (False, None)
        assert call.aborted.is_set()
        assert not order.caller.all


@apis
async def test_a_caller_who_leaves_stops_the_provider_and_is_metered(api: str) -> None:
    async with worker() as gateway:
        order = Order(gateway, api=api, body=BODIES[api], stream=True)
        call = await gateway.provider.next_call()
        call.start()
        call.send(delta("one two three four"))
        await order.caller.reply()
        began = asyncio.get_running_loop().time()
        gateway.bus.publish(SUBJECTS.cancel.at("r1"), SUBJECTS.cancel.encode(Cancel("r1")))
        reply = await order.finished()
        assert asyncio.get_running_loop().time() - began < 0.2
        assert call.answer.closed.is_set()
        assert isinstance(reply.failure, f.Cancelled)
        assert reply.metered
        assert reply.usage is not None
        assert reply.usage.output == 5
        await asyncio.sleep(0.1)
        (event,) = gateway.attempts
        assert (event.outcome, event.metered, event.usage) == ("cancelled", True, reply.usage)


async def test_a_stream_whose_provider_told_its_usage_is_not_metered() -> None:
    async with worker() as gateway:
        order = Order(gateway, stream=True)
        call = await gateway.provider.next_call()
        call.start()
        usage = b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":2}}\n\n'
        call.send(delta("hi", "stop"), usage, DONE)
        reply = await order.finished()
        assert (reply.usage, reply.metered) == (Usage(input=7, output=2), False)


async def test_a_body_in_one_piece_that_stops_in_the_middle_is_idle() -> None:
    async with worker() as gateway:
        order = Order(gateway, idle_s=3.0, total_s=60.0)
        call = await gateway.provider.next_call()
        call.start()
        call.send(ANSWER[:20])
        reply = await order.finished()
        assert isinstance(reply.failure, f.IdleTimeout)
        assert reply.duration_ms == pytest.approx(3000, abs=10)
        await asyncio.sleep(0.1)
        assert not gateway.attempts[0].in_stall


async def test_workers_share_what_a_deployment_bears() -> None:
    async with stage(limited(5), actors=("worker", "worker-2")) as gateway:
        await asyncio.sleep(1.0)
        for number in range(4):
            Order(gateway, request=f"r{number}", priority="critical")
        for _ in range(3):
            await gateway.provider.next_call()
        await asyncio.sleep(0.1)
        load = gateway.actor("worker").load()
        assert load.targets["a"] == TargetLoad(in_flight=3, limit=3, queued=1)
        # The other one dies: all of it is this one's.
        gateway.kill("worker-2")
        await gateway.provider.next_call()
        assert gateway.actor("worker").load().targets["a"] == TargetLoad(in_flight=4, limit=5)


async def test_a_worker_that_is_stopped_leaves_nobody_waiting() -> None:
    async with worker(limited(1)) as gateway:
        first, second = Order(gateway, request="r1"), Order(gateway, request="r2")
        call = await gateway.provider.next_call()
        await gateway.actor("worker").stop()
        assert isinstance((await second.finished()).failure, f.WorkerBusy)
        assert isinstance((await first.finished()).failure, f.WorkerLost)
        assert call.aborted.is_set()
        assert gateway.provider.calls.empty()


async def test_a_full_worker_says_whether_it_is_worth_asking_again() -> None:
    for names, full in ((("worker",), True), (("worker", "worker-2"), False)):
        async with stage(config("a", limits=Limits(in_flight=5)), actors=names) as gateway:
            await asyncio.sleep(1.0)
            for number in range(4):
                Order(gateway, request=f"r{number}", priority="batch")
                await gateway.provider.next_call()
            refused = await Order(gateway, request="late", priority="batch").finished()
            assert isinstance(refused.failure, f.WorkerBusy)
            assert refused.failure.full is full
            Order(gateway, request="critical", priority="critical")
            await gateway.provider.next_call()
