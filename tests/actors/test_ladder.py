"""What callers get when a model's own deployments cannot answer: one rung after the other, in virtual time."""

import asyncio
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from tests.actors.lender import Lender
from tests.actors.stage import ANSWER, Gateway, config, delta, stage
from tests.virtual_time import VirtualTimeLoop

from breakwater_gateway.config.model import (
    Budget,
    CachePolicy,
    Config,
    Model,
    RetryPolicy,
    Rung,
    StaticAnswer,
    StaticAnswers,
    Timeouts,
)
from breakwater_protocol.events import RequestFinished

pytestmark = pytest.mark.anyio

FAQ = StaticAnswers(
    (StaticAnswer(("When are you open?",), "Every day, 9 to 17."),),
    default="Nobody can answer right now.",
)
FAST = Rung("simple_model", "fast")
STATIC = Rung("static")


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}


def laddered(
    *ladder: Rung,
    answers: StaticAnswers = FAQ,
    retry: RetryPolicy | None = None,
    timeouts: Timeouts | None = None,
) -> Config:
    """`m` on a and b with this ladder, and `fast` on c."""
    main = config("a", "b", retry=retry, timeouts=timeouts).models["m"]
    fast = config("c").models["m"]
    return Config(
        {
            "m": Model(
                "m", main.deployments, timeouts=main.timeouts, retry=main.retry, ladder=ladder
            ),
            "fast": Model("fast", fast.deployments, ladder=(STATIC,)),
        },
        static_answers=answers,
    )


async def answer(gateway: Gateway, *replies: int) -> None:
    """Answer the next calls with these statuses; 200 is an answer, 0 a refused connection."""
    for status in replies:
        call = await gateway.provider.next_call()
        if status:
            call.reply(status, ANSWER if status == 200 else b"{}")
        else:
            call.refuse()


async def ended(gateway: Gateway) -> RequestFinished:
    await asyncio.sleep(0.1)
    (event,) = gateway.requests
    return event


async def test_a_simple_model_answers_within_the_same_envelope() -> None:
    async with stage(laddered(Rung("cache"), FAST, STATIC)) as gateway:
        caller = gateway.ask()
        await answer(gateway, 500, 0, 200)
        reply = await caller.reply()
        assert reply.data == ANSWER
        assert gateway.provider.seen == ["a", "b", "c"]
        said = reply.headers
        assert said["breakwater-rung"] == "simple_model"
        assert said["breakwater-rung-reason"] == "connect_failed"
        assert said["breakwater-model"] == "m"
        assert said["breakwater-deployment"] == "c"
        assert said["breakwater-attempts"] == "3"
        event = await ended(gateway)
        assert (event.outcome, event.rung, event.rung_reason) == (
            *("ok", "simple_model"),
            "connect_failed",
        )
        assert event.attempts == 3
        steps = [(d.step, d.deployment, d.reason) for d in event.decisions]
        assert ("rung", "cache", "connect_failed") in steps
        assert ("rung", "simple_model", "connect_failed") in steps


async def test_a_stream_from_a_simple_model_is_a_stream_like_any_other() -> None:
    async with stage(laddered(FAST)) as gateway:
        caller = gateway.ask(stream=True)
        await answer(gateway, 500, 500)
        call = await gateway.provider.next_call()
        call.start()
        call.send(delta("Hi"), delta("", "stop"), b"data: [DONE]\n\n")
        first = await caller.reply()
        assert first.headers["breakwater-rung"] == "simple_model"
        while "breakwater-end" not in (last := await caller.reply()).headers:
            pass
        assert last.headers["breakwater-end"] == "ok"


async def test_a_written_answer_stands_in_when_nothing_else_does() -> None:
    async with stage(laddered(FAST, STATIC)) as gateway:
        caller = gateway.ask(messages=[{"role": "user", "content": "when are you OPEN?"}])
        await answer(gateway, 500, 500, 500)
        reply = await caller.reply()
        body = json.loads(reply.data)
        assert body["choices"][0]["message"]["content"] == "Every day, 9 to 17."
        assert body["model"] == "m"
        said = reply.headers
        assert said["breakwater-rung"] == "static"
        assert said["breakwater-rung-reason"] == "server_error"
        assert said["breakwater-cost-usd"] == "0.000000000"
        assert "breakwater-deployment" not in said  # none of those that were called has answered
        event = await ended(gateway)
        assert event.deployment == ""
        assert (event.outcome, event.rung, event.attempts) == ("ok", "static", 3)


@pytest.mark.parametrize(
    ("written", "answered"), [("Every day, 9 to 17.", False), ('{"open": "9 to 17"}', True)]
)
async def test_who_asks_for_json_gets_no_sentence(written: str, answered: bool) -> None:
    answers = StaticAnswers((StaticAnswer(("When are you open?",), written),))
    async with stage(laddered(STATIC, answers=answers, retry=RetryPolicy(attempts=1))) as gateway:
        caller = gateway.ask(
            messages=[{"role": "user", "content": "When are you open?"}],
            response_format={"type": "json_object"},
        )
        await answer(gateway, 500)
        reply = await caller.reply()
        assert ("Nats-Service-Error-Code" not in reply.headers) == answered
        event = await ended(gateway)
        skipped = [(d.deployment, d.reason) for d in event.decisions if d.step == "skip"]
        assert (("static", "json") in skipped) != answered


async def test_a_question_without_a_written_answer_gets_the_configured_sentence_or_the_error() -> (
    None
):
    for default, expected in (("Later.", "Later."), ("", None)):
        answers = StaticAnswers(FAQ.entries, default=default)
        async with stage(laddered(STATIC, answers=answers)) as gateway:
            caller = gateway.ask()
            await answer(gateway, 500, 500, 500)
            if expected is None:
                error = await caller.error()
                assert (error["status"], error["code"]) == (503, "no_deployment_available")
                assert caller.all[-1].headers["retry-after"] == "5"
                event = await ended(gateway)
                assert (event.outcome, event.rung) == ("no_deployment_available", "error")
            else:
                message = json.loads((await caller.reply()).data)["choices"][0]["message"]
                assert message["content"] == expected


@pytest.mark.parametrize(
    ("api", "body", "types"),
    [
        ("chat", {"messages": [{"role": "user", "content": "hi"}]}, []),
        (
            "messages",
            {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 9},
            [
                *("message_start", "content_block_start", "content_block_delta"),
                *("content_block_stop", "message_delta", "message_stop"),
            ],
        ),
        ("responses", {"input": "hi"}, ["response.created", "response.completed"]),
        ("generate", {"contents": [{"role": "user", "parts": [{"text": "hi"}]}]}, []),
    ],
)
async def test_a_written_answer_is_streamed_in_the_caller_s_dialect(
    api: str, body: dict[str, Any], types: list[str]
) -> None:
    async with stage(laddered(STATIC)) as gateway:
        caller = gateway.ask(api=api, stream=True, **body)
        await answer(gateway, 500, 500, 500)
        first, last = await caller.reply(), await caller.reply()
        lines = [json.loads(line) for line in first.data.splitlines()]
        assert "Nobody can answer right now." in first.data.decode()
        found = [line["type"] for line in lines if "type" in line]
        assert [t for t in found if t in types] == types
        assert first.headers["breakwater-seq"] == "0"
        assert last.headers["breakwater-seq"] == "1"
        assert first.headers["breakwater-attempt"] == last.headers["breakwater-attempt"] == "4"
        assert last.headers["breakwater-end"] == "ok"
        assert last.headers["breakwater-rung"] == "static"
        assert last.data == b""


async def test_a_caller_may_do_without_the_ladder() -> None:
    async with stage(laddered(FAST, STATIC)) as gateway:
        caller = gateway.ask(headers={"breakwater-ladder": "off"})
        await answer(gateway, 500, 500, 500)
        found = await caller.error()
        assert (found["status"], found["code"]) == (502, "bad_gateway")
        # Nothing is kept back for a rung that may not answer.
        assert len(gateway.provider.seen) == 3


async def test_a_caller_may_narrow_the_ladder_but_not_to_a_rung_it_does_not_have() -> None:
    async with stage(laddered(FAST, STATIC)) as gateway:
        caller = gateway.ask(headers={"breakwater-ladder": "static"})
        await answer(gateway, 500, 500, 500)
        assert (await caller.reply()).headers["breakwater-rung"] == "static"
        refused = await gateway.ask(headers={"breakwater-ladder": "cache"}).error()
        assert refused["status"] == 400
        assert refused["message"] == (
            "the header breakwater-ladder asks for cache, which the ladder of this model does not"
            " have: it has simple_model, static, error"
        )


async def test_the_ladder_of_a_simple_model_is_not_walked() -> None:
    async with stage(laddered(FAST)) as gateway:  # `fast` itself has a rung static
        caller = gateway.ask()
        await answer(gateway, 500, 429, 500)
        found = await caller.error()
        # The caller is told what became of the model it asked for.
        assert (found["status"], found["code"]) == (429, "rate_limited")
        event = await ended(gateway)
        assert (event.rung, event.rung_reason) == ("error", "rate_limited")


async def test_what_the_caller_did_wrong_stays_an_error() -> None:
    async with stage(laddered(FAST, STATIC)) as gateway:
        caller = gateway.ask()
        await answer(gateway, 400)
        assert (await caller.error())["status"] == 400
        assert gateway.provider.seen == ["a"]


async def test_where_something_else_can_answer_nobody_waits_all_its_time_for_a_throttled_model() -> (
    None
):
    async with stage(laddered(FAST)) as gateway:
        began = asyncio.get_running_loop().time()
        caller = gateway.ask()
        for _ in range(2):
            call = await gateway.provider.next_call()
            call.reply(429, retry_after="100")
        await answer(gateway, 200)
        reply = await caller.reply()
        assert reply.headers["breakwater-rung-reason"] == "rate_limited"
        assert asyncio.get_running_loop().time() - began < 31


async def test_at_the_deadline_only_what_takes_no_time_is_left() -> None:
    async with stage(laddered(FAST, STATIC, timeouts=Timeouts(total_s=3, idle_s=3))) as gateway:
        began = asyncio.get_running_loop().time()
        caller = gateway.ask()
        await gateway.provider.next_call()  # and says nothing
        reply = await caller.reply()
        assert reply.headers["breakwater-rung"] == "static"
        assert asyncio.get_running_loop().time() - began < 4


async def test_vectors_have_neither_a_simple_model_nor_written_answers() -> None:
    async with stage(laddered(FAST, STATIC)) as gateway:
        caller = gateway.ask(api="embeddings", input="x")
        await answer(gateway, 500, 500)
        assert (await caller.error())["status"] == 503


def limited(action: str, hard: int = 100) -> Config:
    """So many tokens a day for each user."""
    budget = Budget("user", "*", "tokens", hard, "day", action=action)  # type: ignore[arg-type]
    return replace(laddered(Rung("cache"), FAST, STATIC), budgets=(budget,))


async def test_with_the_budget_gone_only_what_costs_nothing_answers() -> None:
    async with stage(limited("ladder")) as gateway:
        await Lender(gateway.bus).listen()
        caller = gateway.ask(max_tokens=1000, headers={"breakwater-user": "ann"})
        reply = await caller.reply()
        assert reply.headers["breakwater-rung"] == "static"
        assert reply.headers["breakwater-rung-reason"] == "budget_exhausted"
        assert gateway.provider.seen == []
        event = await ended(gateway)
        assert ("skip", "simple_model", "budget") in [
            (d.step, d.deployment, d.reason) for d in event.decisions
        ]


async def test_a_budget_that_refuses_does_not_walk_the_ladder() -> None:
    async with stage(limited("refuse")) as gateway:
        await Lender(gateway.bus).listen()
        caller = gateway.ask(max_tokens=1000, headers={"breakwater-user": "ann"})
        assert (await caller.error())["code"] == "budget_exhausted"


async def test_answers_within_a_budget_are_kept_like_others() -> None:
    settings = limited("ladder", 10_000)
    model = replace(settings.models["m"], cache=CachePolicy())
    async with stage(replace(settings, models={**settings.models, "m": model})) as gateway:
        await Lender(gateway.bus).listen()
        user = {"breakwater-user": "ann"}
        first = gateway.ask(max_tokens=5, temperature=0, headers=user)
        await answer(gateway, 200)
        assert "breakwater-budget-remaining" in (await first.reply()).headers
        await asyncio.sleep(0.1)
        second = gateway.ask(max_tokens=5, temperature=0, headers=user)
        assert (await second.reply()).headers["breakwater-cache"] == "hit"
        assert gateway.provider.seen == ["a"]


STATUS = st.sampled_from([200, 400, 401, 404, 429, 500, 503, 0])


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    replies=st.lists(STATUS, min_size=8, max_size=8),
    ladder=st.lists(st.sampled_from([Rung("cache"), FAST, STATIC]), unique=True).map(tuple),
    attempts=st.integers(2, 5),
    stream=st.booleans(),
)
def test_whatever_providers_say_there_is_one_answer_within_the_envelope(
    replies: list[int], ladder: tuple[Rung, ...], attempts: int, stream: bool
) -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        async with stage(laddered(*ladder, retry=RetryPolicy(attempts=attempts))) as gateway:
            began = loop.time()
            caller = gateway.ask(stream=stream)

            async def provide() -> None:
                for status in replies:
                    call = await gateway.provider.calls.get()
                    if status == 200 and stream:
                        call.start()
                        call.send(delta("Hi"), delta("", "stop"), b"data: [DONE]\n\n")
                        call.end()
                    elif status:
                        call.reply(status, ANSWER if status == 200 else b"{}")
                    else:
                        call.refuse()

            provider = asyncio.create_task(provide())
            while not gateway.requests:  # noqa: ASYNC110 - virtual time
                await asyncio.sleep(0.05)
            assert loop.time() - began < 61.1
            await asyncio.sleep(2)
            provider.cancel()
            assert len(gateway.requests) == 1
            assert len(gateway.provider.seen) <= attempts
            assert gateway.requests[0].attempts <= attempts
            terminal = [
                m
                for m in caller.all
                if "breakwater-end" in m.headers or "breakwater-seq" not in m.headers
            ]
            assert len(terminal) == 1

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(run())
