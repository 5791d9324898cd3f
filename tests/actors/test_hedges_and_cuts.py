"""Two calls of one request, and a stream that another deployment goes on with: one answer, honestly told."""

import asyncio
import json

import msgspec
import pytest
from tests.actors.stage import ANSWER, Caller, config, delta, stage
from tests.virtual_time import VirtualTimeLoop

from breakwater_gateway.config.model import Config, Hedge, RetryPolicy

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}


def hedged(*ids: str, after_s: float | None = 1.0, attempts: int = 3) -> Config:
    plain = config(*ids, retry=RetryPolicy(attempts=attempts))
    model = msgspec.structs.replace(plain.models["m"], hedge=Hedge(after_s))
    return msgspec.structs.replace(plain, models={"m": model})


def continuing(*ids: str) -> Config:
    plain = config(*ids)
    model = msgspec.structs.replace(plain.models["m"], on_cut="continue")
    return msgspec.structs.replace(plain, models={"m": model})


async def text_of(caller: Caller) -> tuple[str, dict[str, str]]:
    """What the caller read, and the headers of the end."""
    text = ""
    while True:
        message = await caller.reply()
        if "breakwater-end" in message.headers:
            return text, dict(message.headers)
        for line in message.data.split(b"\n"):
            for choice in json.loads(line)["choices"]:
                text += choice["delta"].get("content") or ""


async def test_a_call_that_is_slow_to_begin_gets_a_second_one_beside_it() -> None:
    async with stage(hedged("a", "b")) as gateway:
        caller = gateway.ask()
        slow = await gateway.provider.next_call()
        second = await gateway.provider.next_call()
        assert (slow.deployment, second.deployment) == ("a", "b")
        second.reply(200, ANSWER)
        reply = await caller.reply()
        assert reply.headers["breakwater-deployment"] == "b"
        assert reply.headers["breakwater-attempts"] == "2"
        await asyncio.wait_for(slow.aborted.wait(), 1)
        await asyncio.sleep(1)
        (event,) = gateway.requests
        assert (event.outcome, event.attempts, event.deployment) == ("ok", 2, "b")
        assert [d.reason for d in event.decisions if d.step == "dispatch"][1] == "hedge"
        assert len(caller.all) == 1


async def test_of_two_streams_that_begin_together_one_reaches_the_caller() -> None:
    async with stage(hedged("a", "b")) as gateway:
        caller = gateway.ask(stream=True)
        first = await gateway.provider.next_call()
        second = await gateway.provider.next_call()
        for call, word in ((first, "first"), (second, "second")):
            call.start()
            call.send(delta(word))
        for call in (first, second):
            call.send(delta("!", "stop"), b"data: [DONE]\n\n")
        text, end = await text_of(caller)
        assert text in {"first!", "second!"}
        assert end["breakwater-end"] == "ok"
        await asyncio.sleep(1)
        assert len(gateway.requests) == 1


async def test_a_call_that_begins_in_time_is_not_hedged() -> None:
    async with stage(hedged("a", "b", after_s=1.0)) as gateway:
        caller = gateway.ask(stream=True)
        call = await gateway.provider.next_call()
        call.start()
        call.send(delta("well"))
        await caller.reply()
        await asyncio.sleep(5)
        assert gateway.provider.seen == ["a"]


async def test_the_other_call_answers_when_the_first_fails() -> None:
    async with stage(hedged("a", "b", attempts=2)) as gateway:
        caller = gateway.ask()
        first = await gateway.provider.next_call()
        second = await gateway.provider.next_call()
        first.reply(500)
        await asyncio.sleep(0.5)
        second.reply(200, ANSWER)
        assert (await caller.reply()).headers["breakwater-deployment"] == "b"
        assert gateway.provider.seen == ["a", "b"]


async def test_waiting_before_a_second_call_is_the_provider_s_time() -> None:
    async with stage(hedged("a", "b")) as gateway:
        for stream in (False, True):
            caller = gateway.ask(stream=stream)
            await gateway.provider.next_call()
            second = await gateway.provider.next_call()
            if stream:
                second.start()
                second.send(delta("x", "stop"), b"data: [DONE]\n\n")
                await caller.reply()
            else:
                second.reply(200, ANSWER)
            last = await caller.reply()
            assert last.headers["breakwater-deployment"] == "b"
            assert float(last.headers["breakwater-overhead-ms"]) < 100
            await asyncio.sleep(0.1)
            assert gateway.requests[-1].duration_ms >= 1000
            assert gateway.requests[-1].overhead_ms < 100


async def test_a_hedge_never_exceeds_the_envelope() -> None:
    async with stage(hedged("a", "b", attempts=1)) as gateway:
        caller = gateway.ask()
        call = await gateway.provider.next_call()
        await asyncio.sleep(5)
        assert gateway.provider.seen == ["a"]
        call.reply(200, ANSWER)
        await caller.reply()


async def test_an_unknown_p95_hedges_nothing_and_a_known_one_does() -> None:
    async with stage(hedged("a", "b", after_s=None)) as gateway:
        for _ in range(20):
            caller = gateway.ask(stream=True)
            call = await gateway.provider.next_call()
            assert call.deployment == "a"
            await asyncio.sleep(0.5)
            call.start()
            call.send(delta("x", "stop"), b"data: [DONE]\n\n")
            await text_of(caller)
        gateway.ask(stream=True)
        await gateway.provider.next_call()
        began = asyncio.get_running_loop().time()
        assert (await gateway.provider.next_call()).deployment == "b"
        assert 0.4 < asyncio.get_running_loop().time() - began < 0.7


async def test_a_cut_stream_goes_on_from_another_deployment_with_the_seam_marked() -> None:
    async with stage(continuing("a", "b")) as gateway:
        caller = gateway.ask(stream=True)
        first = await gateway.provider.next_call()
        first.start()
        first.send(delta("One, two, "))
        await asyncio.sleep(2)
        first.cut()
        second = await gateway.provider.next_call()
        assert second.deployment == "b"
        assert "One, two, " in json.dumps(second.body["messages"])
        second.start()
        second.send(delta("three.", "stop"), b"data: [DONE]\n\n")
        text, end = await text_of(caller)
        assert text == "One, two, three."
        assert end["breakwater-end"] == "ok"
        assert [m.headers["breakwater-seq"] for m in caller.all] == [
            str(n) for n in range(len(caller.all))
        ]
        assert [m.headers.get("breakwater-seam") for m in caller.all].count("b") == 1
        assert float(end["breakwater-overhead-ms"]) < 100
        await asyncio.sleep(0.1)
        assert gateway.requests[-1].overhead_ms < 100


async def test_a_killed_workers_stream_goes_on_too() -> None:
    async with stage(continuing("a", "b"), workers=2) as gateway:
        caller = gateway.ask(stream=True)
        first = await gateway.provider.next_call()
        first.start()
        first.send(delta("One, "))
        await caller.reply()
        await asyncio.sleep(1)
        (dispatched,) = [n for n in ("worker", "worker-2") if gateway.holds(n)]
        gateway.kill(dispatched)
        second = await gateway.provider.next_call()
        second.start()
        second.send(delta("two.", "stop"), b"data: [DONE]\n\n")
        text, end = await text_of(caller)
        assert text == "two."
        assert end["breakwater-end"] == "ok"


async def test_a_cut_stream_that_nobody_can_go_on_with_is_partial() -> None:
    async with stage(continuing("a")) as gateway:
        caller = gateway.ask(stream=True)
        for word in ("One, ", "two, ", "three, "):
            call = await gateway.provider.next_call()
            call.start()
            call.send(delta(word))
            await asyncio.sleep(0.1)
            call.cut()
        text, end = await text_of(caller)
        assert text == "One, two, three, "
        assert end["breakwater-end"] == "partial"
        assert end["breakwater-partial"] == "stream_cut"
        await asyncio.sleep(1)
        (event,) = gateway.requests
        assert (event.outcome, event.attempts) == ("partial", 3)
