"""The same request id twice runs once: joined while it runs, given again afterwards, refused with another body."""

import asyncio
import json
from itertools import count

import pytest
from tests.actors.stage import ANSWER, config, delta, stage
from tests.virtual_time import VirtualTimeLoop

pytestmark = pytest.mark.anyio

MINE = {"breakwater-request-id": "mine-1"}


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}


async def test_an_id_sent_again_while_it_runs_joins_the_same_call() -> None:
    async with stage(config("a")) as gateway:
        first = gateway.ask(headers=MINE, stream=True)
        call = await gateway.provider.next_call()
        call.start()
        call.send(delta("one "))
        await first.reply()
        second = gateway.ask(headers=MINE, stream=True)
        await asyncio.sleep(0.1)
        call.send(delta("two", "stop"), b"data: [DONE]\n\n")
        call.end()
        for caller in (first, second):
            while not any("breakwater-end" in m.headers for m in caller.all):
                await caller.reply()
            text = "".join(
                choice["delta"].get("content") or ""
                for m in caller.all
                for line in m.data.split(b"\n")
                if line
                for choice in json.loads(line)["choices"]
            )
            assert text == "one two"
            assert caller.all[-1].headers["breakwater-end"] == "ok"
            assert caller.all[0].headers["breakwater-request-id"] == "mine-1"
        assert gateway.provider.seen == ["a"]


async def test_an_id_sent_again_afterwards_is_given_the_same_answer_for_ten_minutes() -> None:
    async with stage(config("a")) as gateway:
        first = gateway.ask(headers=MINE)
        (await gateway.provider.next_call()).reply(200, ANSWER)
        await first.reply()
        await asyncio.sleep(300)
        second = gateway.ask(headers=MINE)
        again = await second.reply()
        content = json.loads(again.data)["choices"][0]["message"]["content"]
        assert content == "hi"
        assert again.headers["breakwater-cache"] == "hit"
        assert again.headers["breakwater-cost-usd"] == "0.000000000"
        assert gateway.provider.seen == ["a"]
        await asyncio.sleep(700)
        gateway.ask(headers=MINE)
        (await gateway.provider.next_call()).reply(200, ANSWER)


async def test_an_id_does_not_stand_for_another_body() -> None:
    async with stage(config("a")) as gateway:
        gateway.ask(headers=MINE)
        call = await gateway.provider.next_call()
        error = await gateway.ask(headers=MINE, temperature=0.5).error()
        assert (error["status"], error["code"]) == (400, "invalid_request")
        assert "another body" in error["message"]
        call.reply(200, ANSWER)
        await asyncio.sleep(1)
        error = await gateway.ask(headers=MINE, temperature=0.5).error()
        assert error["status"] == 400
        # The same id of another tenant or user is another request.
        for who in ({"tenant": "other"}, {"headers": {**MINE, "breakwater-user": "ann"}}):
            given = {"headers": MINE, **who}
            caller = gateway.ask(temperature=0.5, **given)  # type: ignore[arg-type]
            (await gateway.provider.next_call()).reply(200, ANSWER)
            assert "Nats-Service-Error-Code" not in (await caller.reply()).headers


async def test_an_id_stands_for_one_body_whichever_router_it_meets() -> None:
    async with stage(config("a")) as gateway:
        await gateway.add("router-2")
        await asyncio.sleep(2)
        turns = count()
        gateway.hub.choose(lambda members: next(turns) % members)
        first = gateway.ask(headers=MINE)
        call = await gateway.provider.next_call()
        error = await gateway.ask(headers=MINE, temperature=0.5).error()
        assert (error["status"], error["code"]) == (400, "invalid_request")
        call.reply(200, ANSWER)
        await first.reply()
        again = gateway.ask(headers=MINE)
        await again.reply()
        more = gateway.ask(headers=MINE)
        await more.reply()
        assert gateway.provider.seen == ["a"]


async def test_an_id_whose_request_failed_runs_again() -> None:
    async with stage(config("a")) as gateway:
        first = gateway.ask(headers=MINE)
        for _ in range(3):
            (await gateway.provider.next_call()).reply(500)
        assert (await first.error())["status"] == 502
        second = gateway.ask(headers=MINE)
        (await gateway.provider.next_call()).reply(200, ANSWER)
        assert (await second.reply()).data


async def test_an_id_that_a_library_made_up_costs_nothing_and_is_not_remembered() -> None:
    async with stage(config("a")) as gateway:
        for _ in range(2):
            caller = gateway.ask(headers={"breakwater-assigned-id": "r"})
            (await gateway.provider.next_call()).reply(200, ANSWER)
            reply = await caller.reply()
            assert reply.headers["breakwater-request-id"] == "r"
