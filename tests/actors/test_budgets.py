"""Budgets on the request path: reserved before a call, settled once after it, said on every answer."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace
from tests.actors.lender import Lender
from tests.actors.stage import ANSWER, SUBJECTS, Caller, Gateway, config, delta, stage
from tests.virtual_time import VirtualTimeLoop

from breakwater_gateway.config.model import (
    Budget,
    Config,
    Price,
    RateLimit,
    RetryPolicy,
)
from breakwater_protocol.commands import Cancel
from breakwater_protocol.events import Alert

pytestmark = pytest.mark.anyio

USER = {"breakwater-user": "alice"}
ALICE = "user:t/alice"
PRICE = Price(1_000, 1_000)
"""One USD per million tokens, in and out."""


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}


def tokens(hard: int, **more: object) -> Budget:
    return replace(Budget("user", "*", "tokens", hard, "day"), **more)


@asynccontextmanager
async def lent(settings: Config) -> AsyncIterator[tuple[Gateway, Lender]]:
    async with stage(settings) as gateway:
        lender = Lender(gateway.bus)
        await lender.listen()
        yield gateway, lender


def ask(gateway: Gateway, **body: object) -> Caller:
    body.setdefault("max_tokens", 1_636)
    return gateway.ask(api="chat", tenant="t", headers=USER, **body)


async def answered(gateway: Gateway, caller: Caller, body: bytes = ANSWER) -> dict[str, str]:
    (await gateway.provider.next_call()).reply(200, body)
    return dict((await caller.reply()).headers)


async def settled(lender: Lender) -> None:
    """Unused leases go back after a few seconds, and reports come every second."""
    await asyncio.sleep(8)
    assert lender.held() == 0


async def test_what_a_call_used_is_committed_and_the_rest_goes_back() -> None:
    async with lent(replace(config("a"), budgets=(tokens(100_000),))) as (gateway, lender):
        headers = await answered(gateway, ask(gateway))
        assert headers["breakwater-budget-remaining"].endswith(" tokens")
        await settled(lender)
        assert lender.committed(ALICE) == 4


async def test_without_budgets_nobody_is_asked_and_nothing_is_said() -> None:
    async with lent(config("a")) as (gateway, lender):
        headers = await answered(gateway, ask(gateway))
        assert "breakwater-budget-remaining" not in headers
        await asyncio.sleep(5)
        assert (lender.asks, lender.reports) == ([], [])


async def test_far_from_the_limit_no_request_waits_for_the_ledger() -> None:
    async with lent(replace(config("a"), budgets=(tokens(10_000_000),))) as (gateway, lender):
        for _ in range(30):
            await answered(gateway, ask(gateway))
            await asyncio.sleep(0.05)
        asked = len(lender.asks)
        lender.away = True  # what is held is enough for the next ones
        for _ in range(3):
            await answered(gateway, ask(gateway))
        assert asked < 15
        waits = [d for e in gateway.requests[3:] for d in e.decisions if d.reason == "budget"]
        assert waits == []


async def test_a_limit_that_is_reached_says_when_it_resets_and_calls_nobody() -> None:
    async with lent(replace(config("a"), budgets=(tokens(3_000),))) as (gateway, lender):
        await answered(gateway, ask(gateway))
        error = await ask(gateway, max_tokens=4_000).error()
        assert (error["status"], error["code"]) == (429, "budget_exhausted")
        assert "too small for this request" in error["message"]
        assert gateway.provider.seen == ["a"]
        await settled(lender)
        assert lender.committed(ALICE) == 4


async def test_a_budget_used_up_is_not_retried_by_sdks() -> None:
    async with lent(replace(config("a"), budgets=(tokens(2_500),))) as (gateway, lender):
        used = ANSWER.replace(b'"prompt_tokens": 3', b'"prompt_tokens": 1000')
        await answered(gateway, ask(gateway), used)
        reply = await ask(gateway).reply()
        assert reply.headers["x-should-retry"] == "false"
        assert int(reply.headers["retry-after"]) > 0
        error = json.loads(reply.data)["error"]
        assert "user:t/alice" in error["message"]
        assert "resets in" in error["message"]
        assert reply.headers["breakwater-budget-remaining"] == "1499 tokens"
        await settled(lender)


async def test_a_number_of_tokens_is_written_into_a_body_that_allows_none() -> None:
    async with lent(replace(config("a"), budgets=(tokens(100_000),))) as (gateway, _):
        caller = gateway.ask(headers=USER)
        call = await gateway.provider.next_call()
        assert call.body.get("max_completion_tokens", call.body.get("max_tokens")) == 4096
        call.reply(200, ANSWER)
        await caller.reply()


async def test_clamping_lowers_max_tokens_to_what_is_left_and_says_so() -> None:
    budgets = (tokens(1_464, action="clamp"),)
    async with lent(replace(config("a"), budgets=budgets)) as (gateway, _):
        caller = ask(gateway, max_tokens=5_000)
        call = await gateway.provider.next_call()
        call.reply(200, ANSWER)
        headers = (await caller.reply()).headers
        said = call.body["max_tokens"]
        assert headers["breakwater-clamped"] == f"max_tokens={said}"
        assert 500 < said < 1_000


async def test_every_attempt_has_its_own_reservation() -> None:
    settings = replace(
        config("a", "b", retry=RetryPolicy(attempts=3, base_s=0.01)), budgets=(tokens(100_000),)
    )
    async with lent(settings) as (gateway, lender):
        caller = ask(gateway)
        (await gateway.provider.next_call()).reply(500)
        (await gateway.provider.next_call()).reply(200, ANSWER)
        await caller.reply()
        await settled(lender)
        assert lender.committed(ALICE) == 4  # a 500 is not billed


async def test_a_call_whose_end_nobody_knows_counts_at_its_maximum() -> None:
    async with lent(replace(config("a"), budgets=(tokens(100_000),))) as (gateway, lender):
        caller = ask(gateway)
        await gateway.provider.next_call()
        gateway.kill("worker")
        await caller.error()
        await settled(lender)
        assert 2_000 < lender.committed(ALICE) < 3_000


async def test_a_stream_whose_caller_left_costs_what_was_metered() -> None:
    async with lent(replace(config("a"), budgets=(tokens(100_000),))) as (gateway, lender):
        caller = ask(gateway, stream=True)
        call = await gateway.provider.next_call()
        call.start()
        call.send(delta("Hello"), delta(" there"))
        await caller.reply()
        gateway.bus.publish(
            SUBJECTS.cancel.at("r1"), SUBJECTS.cancel.encode(Cancel("r1", "caller_gone"))
        )
        await settled(lender)
        assert 0 < lender.committed(ALICE) < 1_000


async def test_what_is_held_by_calls_in_flight_is_waited_for() -> None:
    async with lent(replace(config("a"), budgets=(tokens(2_500),))) as (gateway, _):
        first, second = ask(gateway), ask(gateway)
        call = await gateway.provider.next_call()
        await asyncio.sleep(0.5)
        assert gateway.provider.calls.empty()
        call.reply(200, ANSWER)
        await first.reply()
        await answered(gateway, second)


async def test_waiting_for_a_budget_ends_before_the_caller_s_patience() -> None:
    async with lent(replace(config("a"), budgets=(tokens(2_500),))) as (gateway, _):
        first, second = ask(gateway), ask(gateway)
        call = await gateway.provider.next_call()
        error = await second.error()
        assert (error["status"], error["code"]) == (429, "budget_contended")
        call.reply(200, ANSWER)
        await first.reply()


async def test_without_a_ledger_nothing_is_spent() -> None:
    async with stage(replace(config("a"), budgets=(tokens(100_000),))) as gateway:
        error = await ask(gateway).error()
        assert error["code"] == "budget_contended"
        assert gateway.provider.seen == []


async def test_what_has_no_price_is_refused_where_money_is_limited() -> None:
    alerts: list[Alert] = []
    settings = replace(config("a"), budgets=(Budget("global", "", "nano_usd", 10**12, "month"),))
    async with lent(settings) as (gateway, lender):
        alert = SUBJECTS.alert
        await gateway.bus.subscribe(alert.any(), lambda m: alerts.append(alert.decode(m.data)))
        error = await ask(gateway).error()
        assert error["code"] == "budget_exhausted"
        assert "no known price" in error["message"]
        await ask(gateway).error()
        assert [each.kind for each in alerts] == ["unpriced"]
        assert lender.asks == []


async def test_money_is_committed_to_the_nano_usd() -> None:
    settings = replace(
        config("a", price=PRICE), budgets=(Budget("global", "", "nano_usd", 10**12, "month"),)
    )
    async with lent(settings) as (gateway, lender):
        headers = await answered(gateway, ask(gateway))
        assert headers["breakwater-budget-remaining"].endswith(" usd")
        await settled(lender)
        assert lender.committed("global", "nano_usd") == 4_000


async def test_a_cheaper_deployment_may_still_be_affordable() -> None:
    settings = config("a", "b", price=Price(1_000_000, 1_000_000))
    model = settings.models["m"]
    dear, cheap = model.deployments
    models = {"m": replace(model, deployments=(dear, replace(cheap, price=PRICE)))}
    budgets = (Budget("global", "", "nano_usd", 10**8, "month"),)
    async with lent(replace(settings, models=models, budgets=budgets)) as (gateway, _):
        await answered(gateway, ask(gateway))
        assert gateway.provider.seen == ["b"]


async def test_requests_a_minute_are_counted_in_the_same_books() -> None:
    settings = replace(config("a"), rate_limits=(RateLimit("user", "*", requests=2),))
    async with lent(settings) as (gateway, _):
        await answered(gateway, ask(gateway))
        await answered(gateway, ask(gateway))
        error = await ask(gateway).error()
        assert (error["status"], error["code"]) == (429, "rate_limited")
        assert "2 requests a minute" in error["message"]


async def test_concurrent_requests_are_bounded() -> None:
    settings = replace(config("a"), rate_limits=(RateLimit("user", "*", concurrent=1),))
    async with lent(settings) as (gateway, lender):
        first = ask(gateway)
        call = await gateway.provider.next_call()
        error = await ask(gateway).error()
        assert (error["status"], error["code"]) == (429, "rate_limited")
        call.reply(200, ANSWER)
        await first.reply()
        await asyncio.sleep(0.1)
        await answered(gateway, ask(gateway))
        assert lender.asks == []


async def test_a_router_that_drains_gives_everything_back() -> None:
    async with lent(replace(config("a"), budgets=(tokens(10_000_000),))) as (gateway, lender):
        await answered(gateway, ask(gateway))
        await asyncio.sleep(0.1)
        assert lender.held() > 0
        await gateway.actor("router").drain()
        assert lender.held() == 0
        assert lender.committed(ALICE) == 4


async def test_another_router_closes_what_a_killed_one_held(tmp_path: Path) -> None:
    settings = replace(config("a"), budgets=(tokens(10_000_000),))
    async with stage(settings, actors=("health", "worker")) as gateway:
        lender = Lender(gateway.bus)
        await lender.listen()
        gateway.journals = tmp_path
        await gateway.add("router")
        caller = ask(gateway)
        await gateway.provider.next_call()
        assert lender.held() > 4_000  # its lease, and the next one
        gateway.kill("router")
        gateway.actor("router")._books._journal.close(at_rest=False)  # type: ignore[attr-defined]
        await gateway.add("router-2")
        await asyncio.sleep(8)
        assert lender.held() == 0
        # Only what was in flight is charged, at its maximum.
        assert 2_000 < lender.committed(ALICE) < 3_000
        assert caller.all == []
