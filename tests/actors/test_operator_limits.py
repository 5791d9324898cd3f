"""Operators' limits: what is set on the ledger holds for requests on every router."""

import asyncio

import msgspec
import pytest
from msgspec.structs import replace
from tests.actors.stage import ANSWER, SUBJECTS, Caller, Gateway, config, stage
from tests.virtual_time import VirtualTimeLoop

from breakwater_gateway.config.model import Budget
from breakwater_protocol.ledger import (
    CommandReply,
    Done,
    Operate,
    SetLimit,
    Unit,
    account_named,
    partition,
    partition_token,
)

pytestmark = pytest.mark.anyio

ALL = ("health", "worker", "ledger", "router")


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}


async def limit(
    gateway: Gateway,
    hard: int | None,
    *,
    account: str = "user:bob",
    unit: Unit = "tokens",
    period: str = "day@UTC",
) -> None:
    """As `breakwater budget set` does, and a second later."""
    subject = SUBJECTS.operate.at(partition_token(partition(account_named(account))))
    change = Operate(SetLimit(account, unit, period, hard, "test"))
    answer = await gateway.bus.ask(subject, msgspec.json.encode(change), timeout_s=2)
    assert isinstance(msgspec.json.decode(answer.data, type=CommandReply), Done)
    await asyncio.sleep(1)


def ask(gateway: Gateway, user: str = "bob") -> Caller:
    return gateway.ask(
        api="chat", tenant="default", headers={"breakwater-user": user}, max_tokens=100
    )


async def served(gateway: Gateway, user: str = "bob") -> dict[str, str]:
    caller = ask(gateway, user)
    (await gateway.provider.next_call()).reply(200, ANSWER)
    return dict((await caller.reply()).headers)


async def refused(gateway: Gateway, user: str = "bob") -> str:
    error = await ask(gateway, user).error()
    return str(error["code"])


@pytest.mark.parametrize("period", ["day@UTC", "ever", "rolling:3600/60"])
async def test_a_limit_without_a_rule_holds_until_it_is_taken_back(period: str) -> None:
    async with stage(config("a"), actors=ALL) as gateway:
        assert "breakwater-budget-remaining" not in await served(gateway)
        await limit(gateway, 10, period=period)
        assert await refused(gateway) == "budget_exhausted"
        await served(gateway, "ann")
        await limit(gateway, None, period=period)
        assert "breakwater-budget-remaining" not in await served(gateway)


async def test_a_limit_below_the_rule_s_ends_what_was_lent_before() -> None:
    budgets = (Budget("user", "*", "tokens", 100_000, "day"),)
    async with stage(replace(config("a"), budgets=budgets), actors=ALL) as gateway:
        await served(gateway)
        await limit(gateway, 10)
        assert await refused(gateway) == "budget_exhausted"
        await served(gateway, "ann")
        await limit(gateway, None)
        await asyncio.sleep(2)
        await served(gateway)


async def test_a_router_that_starts_later_knows_it() -> None:
    async with stage(config("a"), actors=ALL) as gateway:
        await limit(gateway, 10)
        gateway.kill("router")
        await gateway.add("router-2")
        assert await refused(gateway) == "budget_exhausted"


async def test_a_ledger_that_takes_over_puts_right_what_routers_are_told() -> None:
    async with stage(config("a"), actors=ALL) as gateway:
        await limit(gateway, 10)
        store = await gateway.bus.store("bw_limits")
        for key in await store.keys():
            await store.delete(key)
        await asyncio.sleep(1)
        await served(gateway)
        await gateway.actor("ledger").drain()
        gateway.kill("ledger")
        await gateway.add("ledger-2")
        await asyncio.sleep(1)
        assert await refused(gateway) == "budget_exhausted"
