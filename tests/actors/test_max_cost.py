"""What one request may cost in all: drawn before each call, corrected after it, whatever the request does."""

import asyncio
import json

import pytest
from msgspec.structs import replace
from tests.actors.lender import Lender
from tests.actors.stage import ANSWER, SUBJECTS, Call, Caller, Gateway, config, delta, stage
from tests.virtual_time import VirtualTimeLoop

from breakwater_gateway.cache.embed.through_gateway import ThroughGateway
from breakwater_gateway.config.model import (
    Budget,
    CachePolicy,
    Config,
    Embeddings,
    Hedge,
    OnContextLength,
    Price,
    RetryPolicy,
    Rung,
    Semantic,
    StaticAnswer,
    StaticAnswers,
)
from breakwater_protocol.events import RequestFinished

pytestmark = pytest.mark.anyio

OUTPUT = 1_000
"""Tokens that each request below allows: with these prices the whole bound of a call."""
CHEAP, DEAR = Price(0, 1_000), Price(0, 10_000)
"""One and ten USD per million tokens out: 0.001 and 0.01 USD a call at most."""
TOO_LONG = b'{"error":{"message":"too long","code":"context_length_exceeded"}}'


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}


def priced(
    *prices: Price | None, retry: RetryPolicy | None = None, ladder: tuple[Rung, ...] = ()
) -> Config:
    """`m` on a, b, … at these prices, tried in this order; `fast` on z, which is cheap."""
    plain = config(*"abcd"[: len(prices)], retry=retry or RetryPolicy(attempts=4)).models["m"]
    deployments = tuple(
        replace(each, price=price) for each, price in zip(plain.deployments, prices, strict=True)
    )
    fast = replace(config("z", price=CHEAP).models["m"], name="fast")
    return Config(
        {"m": replace(plain, deployments=deployments, ladder=ladder), "fast": fast},
        static_answers=StaticAnswers((StaticAnswer(("hello",), "Hello yourself."),)),
    )


def within(usd: str, gateway: Gateway, **body: object) -> Caller:
    body.setdefault("max_tokens", OUTPUT)
    return gateway.ask(api="chat", tenant="t", headers={"breakwater-max-cost": usd}, **body)


def skipped(event: RequestFinished) -> list[tuple[str, str]]:
    return [(d.deployment, d.reason) for d in event.decisions if d.step == "skip"]


async def event_of(gateway: Gateway) -> RequestFinished:
    await asyncio.sleep(3)
    return gateway.requests[-1]


async def test_what_does_not_fit_is_passed_over_and_the_event_says_so() -> None:
    async with stage(priced(DEAR, None, CHEAP)) as gateway:
        caller = within("0.005", gateway)
        call = await gateway.provider.next_call()
        assert call.deployment == "c"
        call.reply(200, ANSWER)
        assert (await caller.reply()).headers["breakwater-deployment"] == "c"
        event = await event_of(gateway)
        assert skipped(event) == [("a", "too_dear"), ("b", "unpriced")]
        assert event.attempts == 1


async def test_where_nothing_fits_no_call_is_made_and_the_caller_is_told_what_would() -> None:
    async with stage(priced(DEAR, None)) as gateway:
        caller = within("0.005", gateway)
        error = await caller.error()
        assert (error["status"], error["code"], error["type"]) == (
            *(400, "max_cost_exceeded"),
            "invalid_request_error",
        )
        assert "0.005 USD in all, and a call may cost 0.01 USD on a" in error["message"]
        assert caller.all[0].headers["x-should-retry"] == "false"
        assert gateway.provider.seen == []
        assert (await event_of(gateway)).outcome == "max_cost_exceeded"


async def test_a_header_that_is_no_amount_or_raises_the_models_bound_is_refused() -> None:
    retry = RetryPolicy(max_cost_nano_usd=2_000_000)
    async with stage(priced(CHEAP, retry=retry)) as gateway:
        for usd, why in (("1_0", "such as 0.05"), ("0.0021", "of 0.002 USD")):
            error = await within(usd, gateway).error()
            assert (error["status"], error["param"]) == (400, "breakwater-max-cost")
            assert why in error["message"]
        caller = within("0.002", gateway)
        (await gateway.provider.next_call()).reply(200, ANSWER)
        await caller.reply()


async def test_the_models_own_bound_holds_without_a_header() -> None:
    retry = RetryPolicy(max_cost_nano_usd=2_000_000)
    async with stage(priced(DEAR, CHEAP, retry=retry)) as gateway:
        caller = gateway.ask(max_tokens=OUTPUT)
        assert (await gateway.provider.next_call()).deployment == "b"
        del caller


async def test_a_request_that_names_no_length_is_given_one_so_that_its_bound_is_one() -> None:
    async with stage(priced(CHEAP)) as gateway:
        within("0.0041", gateway, max_tokens=None)
        call = await gateway.provider.next_call()
        assert call.body["max_tokens"] == 4_096 or call.body["max_completion_tokens"] == 4_096


async def test_retries_draw_until_nothing_fits_and_then_the_failure_says_why_no_more_are_made() -> (
    None
):
    async with stage(priced(CHEAP, CHEAP, CHEAP)) as gateway:
        caller = within("0.0025", gateway)
        for _ in range(2):
            # Whatever stands before a model that may have done its work: nobody knows the cost.
            (await gateway.provider.next_call()).reply(502, b"{}")
        error = await caller.error()
        assert error["code"] == "bad_gateway"
        assert "of which 0.0005 are left" in error["message"]
        assert len(gateway.provider.seen) == 2
        assert ("c", "too_dear") in skipped(await event_of(gateway))


async def test_what_a_refused_call_did_not_cost_is_there_again() -> None:
    async with stage(priced(CHEAP, CHEAP, CHEAP)) as gateway:
        caller = within("0.0015", gateway)
        (await gateway.provider.next_call()).reply(500, b"{}")
        (await gateway.provider.next_call()).refuse()
        (await gateway.provider.next_call()).reply(200, ANSWER)
        assert (await caller.reply()).headers["breakwater-attempts"] == "3"


async def test_a_hedge_draws_too() -> None:
    plain = priced(CHEAP, CHEAP, CHEAP)
    hedged = replace(
        plain, models={**plain.models, "m": replace(plain.models["m"], hedge=Hedge(1.0))}
    )
    for usd, calls in (("0.0019", 1), ("0.002", 2)):
        async with stage(hedged) as gateway:
            caller = within(usd, gateway)
            first = await gateway.provider.next_call()
            await asyncio.sleep(2)
            assert len(gateway.provider.seen) == calls
            first.reply(200, ANSWER)
            await caller.reply()


async def test_a_hedge_that_did_not_fit_may_be_called_once_the_first_has_failed() -> None:
    plain = priced(CHEAP, CHEAP)
    hedged = replace(
        plain, models={**plain.models, "m": replace(plain.models["m"], hedge=Hedge(1.0))}
    )
    async with stage(hedged) as gateway:
        caller = within("0.001", gateway)
        first = await gateway.provider.next_call()
        await asyncio.sleep(2)
        first.reply(500, b"{}")
        second = await gateway.provider.next_call()
        assert second.deployment == "b"
        second.reply(200, ANSWER)
        await caller.reply()


async def test_below_the_model_only_what_costs_nothing_or_fits_answers() -> None:
    rungs = (Rung("simple_model", "fast"), Rung("static"))
    for usd, rung in (("0.001", "simple_model"), ("0.0009", "static"), ("0", "static")):
        async with stage(priced(DEAR, ladder=rungs)) as gateway:
            caller = within(usd, gateway)
            if rung == "simple_model":
                call = await gateway.provider.next_call()
                assert call.deployment == "z"
                call.reply(200, ANSWER)
            reply = await caller.reply()
            assert reply.headers["breakwater-rung"] == rung
            assert reply.headers["breakwater-rung-reason"] == "too_dear"


async def test_a_summary_draws_on_the_same_money() -> None:
    turns = [
        {"role": "user", "content": "first " + "x" * 500},
        {"role": "assistant", "content": "second " + "x" * 500},
        {"role": "user", "content": "third"},
    ]
    plain = priced(CHEAP, retry=RetryPolicy(attempts=5))
    main = replace(plain.models["m"], on_context_length=OnContextLength("summarize", "fast"))
    # A summary may have 1,024 tokens, the answer 1,000; a refused prompt costs nothing.
    summarizing = replace(plain, models={**plain.models, "m": main})
    for usd, summed_up in (("0.0011", True), ("0.00101", False)):
        async with stage(summarizing) as gateway:
            caller = within(usd, gateway, messages=turns)
            (await gateway.provider.next_call()).reply(400, TOO_LONG)
            call = await gateway.provider.next_call()
            assert (call.deployment == "z") is summed_up
            call.reply(200, ANSWER)
            if summed_up:
                # It has cost a token, of which nothing is missing for the answer.
                (await gateway.provider.next_call()).reply(200, ANSWER)
            await caller.reply()


async def test_a_stream_that_is_gone_on_with_draws_for_what_it_is_shown_besides() -> None:
    paid = Price(1_000, 1_000)
    plain = priced(paid, paid)
    model = replace(plain.models["m"], on_cut="continue")
    async with stage(replace(plain, models={"m": model})) as gateway:
        caller = within("0.0025", gateway, stream=True)
        first = await gateway.provider.next_call()
        first.start()
        first.send(delta("word " * 200))
        await asyncio.sleep(0.1)
        first.cut()
        # 0.0003 USD or so was metered, and a call may cost 0.0017; but this one is shown another 0.001 USD.
        while "breakwater-end" not in (reply := await caller.reply()).headers:
            pass
        assert reply.headers["breakwater-end"] == "partial"
        assert ("b", "too_dear") in skipped(await event_of(gateway))


async def test_what_budgets_refuse_is_not_drawn() -> None:
    plain = priced(CHEAP, ladder=(Rung("static"),))
    budget = Budget("user", "*", "tokens", 10, "day")
    async with stage(replace(plain, budgets=(budget,))) as gateway:
        lender = Lender(gateway.bus)
        await lender.listen()
        caller = gateway.ask(
            headers={"breakwater-max-cost": "0.001", "breakwater-user": "alice"}, max_tokens=OUTPUT
        )
        reply = await caller.reply()
        assert reply.headers["breakwater-rung"] == "static"
        assert reply.headers["breakwater-rung-reason"] == "budget_exhausted"


async def test_who_follows_a_leader_with_a_small_bound_is_not_refused_for_it() -> None:
    plain = priced(DEAR, CHEAP)
    async with stage(plain) as gateway:
        small = within("0.001", gateway, temperature=0)
        await asyncio.sleep(0.01)
        free = gateway.ask(max_tokens=OUTPUT, temperature=0)
        call = await gateway.provider.next_call()
        assert call.deployment == "b"
        call.reply(500, b"{}")
        # The leader's money allows b alone; who follows may call a.
        served: list[Call] = []
        while not free.all:
            try:
                async with asyncio.timeout(1):
                    served.append(await gateway.provider.next_call())
            except TimeoutError:
                continue
            served[-1].reply(200, ANSWER)
        assert "Nats-Service-Error-Code" not in free.all[0].headers
        assert json.loads(free.all[0].data)["choices"]
        assert len(small.all) == 1


VECTOR = (
    b'{"data":[{"embedding":[1.0,0.0],"index":0}],"usage":{"prompt_tokens":2,"total_tokens":2}}'
)


async def test_an_embedding_for_the_semantic_cache_draws_too_but_never_what_the_call_needs() -> (
    None
):
    plain = priced(CHEAP)
    embedder = replace(config("e", price=Price(1_000, 0)).models["m"], name="embed")
    model = replace(plain.models["m"], cache=CachePolicy(semantic=Semantic(shadow=0.0)))
    settings = replace(
        plain, models={"m": model, "embed": embedder}, embeddings=Embeddings(model="embed")
    )
    # An embedding of a few words may cost 0.0006 USD, a call 0.001.
    for usd, embedded in (("0.0018", True), ("0.0015", False), (None, True)):
        async with stage(settings) as gateway:
            gateway.embedder = ThroughGateway("embed", gateway.bus, SUBJECTS)
            await gateway.add("cache")
            headers = {} if usd is None else {"breakwater-max-cost": usd}
            caller = gateway.ask(headers=headers, max_tokens=OUTPUT)
            if embedded:
                call = await gateway.provider.next_call()
                assert call.deployment == "e"
                call.reply(200, VECTOR)
            call = await gateway.provider.next_call()
            assert call.deployment == "a"
            call.reply(200, ANSWER)
            assert (await caller.reply()).headers["breakwater-deployment"] == "a"
            await asyncio.sleep(0.5)
            told = [e for e in gateway.requests if e.model == "m"]
            assert (("semantic", "too_dear") in skipped(told[0])) is not embedded


async def test_an_embedding_that_nobody_could_be_asked_for_takes_no_money() -> None:
    plain = priced(CHEAP, DEAR)
    embedder = replace(config("e", price=Price(1_000, 0)).models["m"], name="embed")
    model = replace(plain.models["m"], cache=CachePolicy(semantic=Semantic(shadow=0.0)))
    settings = replace(
        plain, models={"m": model, "embed": embedder}, embeddings=Embeddings(model="embed")
    )
    # A call there may cost 0.01 USD, and the embedding 0.0006.
    async with stage(settings) as gateway:
        caller = within("0.0102", gateway)
        (await gateway.provider.next_call()).reply(503)
        call = await gateway.provider.next_call()
        assert call.deployment == "b"
        call.reply(200, ANSWER)
        assert (await caller.reply()).headers["breakwater-deployment"] == "b"
