"""Requests that a provider refused as they are, changed and asked again, in virtual time."""

import asyncio
import json
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from tests.actors.lender import Lender
from tests.actors.stage import ANSWER, SUBJECTS, Gateway, config, delta, stage
from tests.virtual_time import VirtualTimeLoop

from breakwater_gateway.config.model import (
    Budget,
    Config,
    Model,
    OnContentFilter,
    OnContextLength,
    RetryPolicy,
    Rung,
    StaticAnswers,
)
from breakwater_protocol.commands import Cancel

pytestmark = pytest.mark.anyio

TURNS = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "first " + "x" * 500},
    {"role": "assistant", "content": "second " + "x" * 500},
    {"role": "user", "content": "third"},
]
TOO_LONG = json.dumps(
    {
        "error": {
            "message": "This model's maximum context length is 8 tokens. However, your messages"
            " resulted in 9 tokens.",
            "code": "context_length_exceeded",
        }
    }
).encode()
FILTERED = b'{"error":{"message":"no","code":"content_filter"}}'


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}


def mending(
    length: OnContextLength | None = None,
    content: OnContentFilter | None = None,
    retry: RetryPolicy | None = None,
) -> Config:
    """`m` on a and b, `other` on c."""
    main = config("a", "b", retry=retry).models["m"]
    return Config(
        {
            "m": Model(
                "m",
                main.deployments,
                retry=main.retry,
                on_context_length=length or OnContextLength(),
                on_content_filter=content or OnContentFilter(),
            ),
            "other": Model("other", config("c").models["m"].deployments),
        }
    )


async def told(gateway: Gateway, *replies: tuple[int, bytes]) -> list[dict[str, Any]]:
    """Answer the next calls so; their bodies."""
    bodies = []
    for status, body in replies:
        call = await gateway.provider.next_call()
        bodies.append(call.body)
        call.reply(status, body)
    return bodies


async def test_a_prompt_that_does_not_fit_is_truncated_and_the_answer_says_by_how_much() -> None:
    async with stage(mending(OnContextLength("truncate"))) as gateway:
        caller = gateway.ask(messages=TURNS)
        _, second = await told(gateway, (400, TOO_LONG), (200, ANSWER))
        reply = await caller.reply()
        assert reply.data == ANSWER
        assert reply.headers["breakwater-truncated"] == "2"
        assert reply.headers["breakwater-rung"] == "primary"
        assert reply.headers["breakwater-attempts"] == "2"
        assert [t["content"] for t in second["messages"]] == ["Be kind.", "third"]
        # The provider is well: the same one is asked again.
        assert gateway.provider.seen == ["a", "a"]
        await asyncio.sleep(0.1)
        (event,) = gateway.requests
        assert ("mend", "truncate") in [(d.step, d.reason) for d in event.decisions]


async def test_what_cannot_be_shortened_any_more_stays_an_error() -> None:
    async with stage(mending(OnContextLength("truncate"))) as gateway:
        caller = gateway.ask(messages=TURNS)
        await told(gateway, (400, TOO_LONG), (400, TOO_LONG))
        found = await caller.error()
        assert (found["status"], found["code"]) == (400, "context_length_exceeded")
        assert len(gateway.provider.seen) == 2


async def test_without_a_policy_it_is_an_error_at_once() -> None:
    async with stage(mending()) as gateway:
        caller = gateway.ask(messages=TURNS)
        await told(gateway, (400, TOO_LONG))
        assert (await caller.error())["code"] == "context_length_exceeded"


async def test_a_larger_model_takes_the_whole_prompt() -> None:
    async with stage(mending(OnContextLength("model", "other"))) as gateway:
        caller = gateway.ask(messages=TURNS)
        _, second = await told(gateway, (400, TOO_LONG), (200, ANSWER))
        reply = await caller.reply()
        assert second["messages"] == TURNS
        assert second["model"] == "c-model"
        assert reply.headers["breakwater-deployment"] == "c"
        assert reply.headers["breakwater-model"] == "m"


async def test_a_summary_of_the_oldest_turns_stands_in_their_place() -> None:
    async with stage(mending(OnContextLength("summarize", "other"))) as gateway:
        caller = gateway.ask(messages=TURNS, headers={"breakwater-user": "ann"})
        _, asked, third = await told(gateway, (400, TOO_LONG), (200, ANSWER), (200, ANSWER))
        reply = await caller.reply()
        assert gateway.provider.seen == ["a", "c", "a"]
        assert "first xxx" in asked["messages"][1]["content"]
        roles = [t["role"] for t in third["messages"]]
        assert roles == ["system", "system", "user"]
        assert third["messages"][1]["content"].endswith("hi")  # what ANSWER says
        assert reply.headers["breakwater-truncated"] == "2"
        assert reply.headers["breakwater-attempts"] == "3"
        assert len(caller.all) == 1
        await asyncio.sleep(0.1)
        # The summary is a request of its own in the books, of the same user.
        assert [(e.request, e.model, e.user) for e in gateway.requests] == [
            ("r1.summary", "other", "ann"),
            ("r1", "m", "ann"),
        ]


async def test_without_its_summary_the_prompt_is_only_truncated() -> None:
    settings = mending(OnContextLength("summarize", "other"), retry=RetryPolicy(attempts=4))
    async with stage(settings) as gateway:
        caller = gateway.ask(messages=TURNS)
        *_, last = await told(gateway, (400, TOO_LONG), (401, b"{}"), (200, ANSWER))
        assert (await caller.reply()).headers["breakwater-truncated"] == "2"
        assert [t["role"] for t in last["messages"]] == ["system", "user"]


@pytest.mark.parametrize("answering", [False, True], ids=["nothing yet", "half an answer"])
async def test_a_caller_who_leaves_while_the_summary_is_made_ends_that_call_too(
    answering: bool,
) -> None:
    async with stage(mending(OnContextLength("summarize", "other"))) as gateway:
        caller = gateway.ask(messages=TURNS)
        await told(gateway, (400, TOO_LONG))
        summary = await gateway.provider.next_call()
        if answering:
            summary.start(200)
            summary.send(ANSWER[:9])
            await asyncio.sleep(0.1)
        subject = SUBJECTS.cancel
        gateway.bus.publish(subject.at("r1"), subject.encode(Cancel("r1")))
        async with asyncio.timeout(0.1):
            await (summary.answer.closed if answering else summary.aborted).wait()
        await asyncio.sleep(5)
        assert gateway.provider.seen == ["a", "c"]
        assert not caller.all
        assert {e.request: e.outcome for e in gateway.requests} == {
            "r1": "cancelled",
            "r1.summary": "cancelled",
        }
        # What the provider did until then is told once, and nothing is under way any more.
        assert [(e.request, e.outcome) for e in gateway.attempts] == [
            ("r1", "context_length"),
            ("r1.summary", "cancelled"),
        ]


async def test_a_summary_that_waits_for_its_turn_is_not_begun_for_a_caller_who_left() -> None:
    async with stage(mending(OnContextLength("summarize", "other"))) as gateway:
        first = gateway.ask(model="other")
        (await gateway.provider.next_call()).reply(429, retry_after="3")
        await asyncio.sleep(0.1)
        gateway.ask(messages=TURNS)
        await told(gateway, (400, TOO_LONG))
        await asyncio.sleep(0.1)
        subject = SUBJECTS.cancel
        gateway.bus.publish(subject.at("r2"), subject.encode(Cancel("r2")))
        (await gateway.provider.next_call()).reply(200, ANSWER)
        await first.reply()
        await asyncio.sleep(30)
        assert gateway.provider.seen == ["c", "a", "c"]
        assert {e.request: e.outcome for e in gateway.requests} == {
            "r1": "ok",
            "r2": "cancelled",
            "r2.summary": "cancelled",
        }


async def test_what_an_unwanted_summary_held_of_a_budget_is_given_back() -> None:
    settings = mending(OnContextLength("summarize", "other"))
    budgets = (Budget("user", "*", "tokens", 10**6, "day"),)
    async with stage(replace(settings, budgets=budgets)) as gateway:
        lender = Lender(gateway.bus)
        await lender.listen()
        gateway.ask(messages=TURNS, headers={"breakwater-user": "ann"})
        await told(gateway, (400, TOO_LONG))
        await gateway.provider.next_call()
        subject = SUBJECTS.cancel
        gateway.bus.publish(subject.at("r1"), subject.encode(Cancel("r1")))
        await asyncio.sleep(8)
        assert lender.held() == 0


async def test_what_one_provider_filters_the_next_may_answer() -> None:
    async with stage(mending(content=OnContentFilter("next"))) as gateway:
        caller = gateway.ask()
        await told(gateway, (400, FILTERED), (200, ANSWER))
        assert (await caller.reply()).data == ANSWER
        assert gateway.provider.seen == ["a", "b"]


async def test_what_every_provider_filters_is_refused() -> None:
    async with stage(mending(content=OnContentFilter("next"))) as gateway:
        caller = gateway.ask()
        await told(gateway, (400, FILTERED), (400, FILTERED))
        assert (await caller.error())["code"] == "content_filter"
        assert gateway.provider.seen == ["a", "b"]


async def test_another_model_may_take_what_was_filtered() -> None:
    async with stage(mending(content=OnContentFilter("model", "other"))) as gateway:
        caller = gateway.ask()
        await told(gateway, (400, FILTERED), (200, ANSWER))
        assert (await caller.reply()).headers["breakwater-deployment"] == "c"


async def test_what_is_filtered_is_an_error_where_the_model_says_so() -> None:
    async with stage(mending()) as gateway:
        caller = gateway.ask()
        await told(gateway, (400, FILTERED))
        assert (await caller.error())["code"] == "content_filter"


BROKEN_OFF = ANSWER.replace(b'"stop"', b'"content_filter"')


async def test_an_answer_that_was_filtered_is_made_by_the_next() -> None:
    async with stage(mending(content=OnContentFilter("next"))) as gateway:
        caller = gateway.ask()
        await told(gateway, (200, BROKEN_OFF), (200, ANSWER))
        assert (await caller.reply()).data == ANSWER
        assert gateway.provider.seen == ["a", "b"]


async def test_with_no_call_left_a_filtered_answer_is_given_as_it_is() -> None:
    policy = mending(content=OnContentFilter("next"), retry=RetryPolicy(attempts=1))
    async with stage(policy) as gateway:
        caller = gateway.ask()
        await told(gateway, (200, BROKEN_OFF))
        assert (await caller.reply()).data == BROKEN_OFF


async def test_without_a_policy_a_filtered_answer_is_given_as_it_is() -> None:
    async with stage(mending()) as gateway:
        caller = gateway.ask()
        await told(gateway, (200, BROKEN_OFF))
        assert (await caller.reply()).data == BROKEN_OFF


async def test_a_stream_that_was_filtered_before_it_spoke_is_made_by_the_next() -> None:
    async with stage(mending(content=OnContentFilter("next"))) as gateway:
        caller = gateway.ask(stream=True)
        for piece in (delta(finish="content_filter"), delta("hi", "stop")):
            call = await gateway.provider.next_call()
            call.start()
            call.send(piece, b"data: [DONE]\n\n")
        await caller.reply()
        end = (await caller.reply()).headers
        assert (end["breakwater-end"], end["breakwater-deployment"]) == ("ok", "b")


def call_of(arguments: str) -> bytes:
    function = {"name": "f", "arguments": arguments}
    message = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c", "function": function}],
    }
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
    return json.dumps({"choices": [choice]}).encode()


async def test_a_tool_call_with_one_reading_is_repaired_on_the_way() -> None:
    async with stage(mending()) as gateway:
        caller = gateway.ask()
        await told(gateway, (200, call_of("{'a': 1,}")))
        reply = await caller.reply()
        assert reply.headers["breakwater-repaired"] == "tool_call"
        (choice,) = json.loads(reply.data)["choices"]
        assert choice["message"]["tool_calls"][0]["function"]["arguments"] == '{"a":1}'


async def test_a_spoilt_tool_call_is_asked_for_again_once_with_what_was_wrong() -> None:
    async with stage(mending()) as gateway:
        caller = gateway.ask()
        _, second = await told(gateway, (200, call_of('{"a": x}')), (200, call_of('{"a":1}')))
        reply = await caller.reply()
        assert "breakwater-repaired" not in reply.headers
        assert reply.headers["breakwater-attempts"] == "2"
        assert gateway.provider.seen == ["a", "a"]
        assert '{"a": x}' in second["messages"][-1]["content"]
        await asyncio.sleep(0.1)
        (event,) = gateway.requests
        assert ("mend", "reask") in [(d.step, d.reason) for d in event.decisions]
        assert '"a": x' not in repr((gateway.requests, gateway.attempts))


async def test_a_call_spoilt_twice_goes_to_the_next_deployment() -> None:
    async with stage(mending()) as gateway:
        caller = gateway.ask()
        await told(gateway, *[(200, call_of('{"a": x}'))] * 2, (200, ANSWER))
        assert (await caller.reply()).data == ANSWER
        assert gateway.provider.seen == ["a", "a", "b"]


async def test_a_call_that_stays_spoilt_is_an_error_within_the_envelope() -> None:
    async with stage(mending()) as gateway:
        caller = gateway.ask()
        await told(gateway, *[(200, call_of('{"a": x}'))] * 3)
        found = await caller.error()
        assert (found["status"], found["code"]) == (502, "malformed_tool_call")
        assert gateway.provider.seen == ["a", "a", "b"]


SAID: dict[str, tuple[int, bytes]] = {
    "ok": (200, ANSWER),
    "long": (400, TOO_LONG),
    "filtered": (400, FILTERED),
    "broken off": (200, BROKEN_OFF),
    "spoilt": (200, call_of('{"a": x}')),
    "repairable": (200, call_of("{'a': 1}")),
    "down": (500, b"{}"),
    "throttled": (429, b"{}"),
    "refused": (400, b"{}"),
}


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    said=st.lists(st.sampled_from(sorted(SAID)), min_size=12, max_size=12),
    length=st.sampled_from(["truncate", "summarize", "model", "fail"]),
    content=st.sampled_from(["next", "model", "fail"]),
    attempts=st.integers(3, 6),
    ladder=st.lists(
        st.sampled_from([Rung("simple_model", "other"), Rung("static")]), unique=True
    ).map(tuple),
)
def test_whatever_has_to_be_mended_there_is_one_answer_within_the_envelope(
    said: list[str],
    length: Literal["truncate", "summarize", "model", "fail"],
    content: Literal["next", "model", "fail"],
    attempts: int,
    ladder: tuple[Rung, ...],
) -> None:
    policy = mending(
        OnContextLength(length, "other"),
        OnContentFilter(content, "other"),
        RetryPolicy(attempts=attempts),
    )
    model = replace(policy.models["m"], ladder=ladder)
    config_ = replace(
        policy,
        models={**policy.models, "m": model},
        static_answers=StaticAnswers(default="Later."),
    )

    async def run() -> None:
        loop = asyncio.get_running_loop()
        async with stage(config_) as gateway:
            began = loop.time()
            caller = gateway.ask(messages=TURNS)

            async def provide() -> None:
                for word in said:
                    (await gateway.provider.calls.get()).reply(*SAID[word])

            provider = asyncio.create_task(provide())
            while not any(e.request == "r1" for e in gateway.requests):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            assert loop.time() - began < 61.1
            await asyncio.sleep(2)
            provider.cancel()
            assert len(caller.all) == 1
            assert len(gateway.provider.seen) <= attempts
            assert [e.request for e in gateway.requests].count("r1") == 1
            (event,) = [e for e in gateway.requests if e.request == "r1"]
            assert event.attempts == len(gateway.provider.seen)

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(run())
