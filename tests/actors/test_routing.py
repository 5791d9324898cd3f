"""Strategies and routes through real actors: what a router learns from attempts, and where requests go then."""

import asyncio
from collections import Counter

import pytest
from tests.actors.stage import ANSWER, SUBJECTS, Gateway, stage
from tests.virtual_time import VirtualTimeLoop

from breakwater_gateway.config.load import load_text
from breakwater_gateway.router.actor import Router

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}


def model(strategy: str, *lines: str, rest: str = "") -> str:
    deployments = "".join(
        f"      - {{id: {name}, base_url: 'http://{name}/v1', api_key: [], {more}}}\n"
        for name, more in (line.split(" ", 1) for line in lines)
    )
    return f"models:\n  m:\n    strategy: {strategy}\n    deployments:\n{deployments}{rest}"


async def one(gateway: Gateway, slow: dict[str, float] | None = None) -> str:
    """A request from its question to its answer; the deployment that the provider saw."""
    caller = gateway.ask()
    call = await gateway.provider.next_call()
    await asyncio.sleep((slow or {}).get(call.deployment, 0.0))
    call.reply(200, ANSWER)
    await caller.reply()
    await asyncio.sleep(0.01)
    return call.deployment


async def test_latency_leaves_a_target_that_became_slow_and_comes_back_to_it() -> None:
    text = model("latency", "a model: openai/a", "b model: openai/b")
    async with stage(load_text(text, source="f", environment={})) as gateway:
        slow = {"a": 4.0, "b": 0.2}
        first = [await one(gateway, slow) for _ in range(20)]
        # Each was tried once when nobody knew it; from then on a is left alone for a while.
        assert 1 <= first.count("a") <= 2
        (*_, last) = gateway.requests
        assert last.decisions[-1].step == "dispatch"
        assert last.decisions[-1].score is not None
        slow["b"] = 30.0
        seen = [await one(gateway, slow) for _ in range(6)]
        assert seen[-1] == "a"


async def test_who_would_have_been_next_is_told_too() -> None:
    text = model(
        "simple-shuffle",
        "first model: openai/a",
        "spare model: openai/b, weight: 0",
        "second model: openai/c, order: 1",
    )
    async with stage(load_text(text, source="f", environment={})) as gateway:
        assert await one(gateway) == "first"
        told = gateway.requests[-1].decisions
        assert [(d.step, d.deployment, d.reason) for d in told] == [
            ("consider", "first", ""),
            ("skip", "spare", "weight"),
            ("skip", "second", "order"),
            ("dispatch", "first", "simple-shuffle"),
        ]


async def test_cost_goes_to_the_cheapest_until_it_cannot() -> None:
    text = model(
        "cost",
        "dear model: openai/a, price: {input: 9, output: 9}",
        "cheap model: openai/b, price: {input: 1, output: 2}",
        "unknown model: openai/nobody-knows-it",
    )
    async with stage(load_text(text, source="f", environment={})) as gateway:
        assert [await one(gateway) for _ in range(5)] == ["cheap"] * 5
        told = gateway.requests[-1].decisions
        assert [(d.step, d.deployment) for d in told] == [
            ("consider", "dear"),
            ("consider", "cheap"),
            ("consider", "unknown"),
            ("dispatch", "cheap"),
        ]
        dear, cheap = told[0].score, told[1].score
        assert dear is not None
        assert cheap is not None
        assert dear > cheap == told[3].score
        assert told[2].score is None
        caller = gateway.ask()
        (await gateway.provider.next_call()).reply(500)
        call = await gateway.provider.next_call()
        assert call.deployment == "dear"
        call.reply(500)
        call = await gateway.provider.next_call()
        assert call.deployment == "unknown"
        call.reply(200, ANSWER)
        await caller.reply()
        await asyncio.sleep(0.01)
        scores = [d.score for d in gateway.requests[-1].decisions if d.step == "dispatch"]
        assert scores[0] is not None
        assert scores[1] is not None
        assert scores[0] < scores[1]
        assert scores[2] is None


async def test_usage_follows_what_providers_say_is_left_and_leaves_them_alone_without() -> None:
    text = model("usage", "a model: openai/a, rpm: 100", "b model: openai/b, rpm: 100")
    async with stage(load_text(text, source="f", environment={})) as gateway:
        left = {"a": 50, "b": 3}

        async def asked() -> str:
            caller = gateway.ask()
            call = await gateway.provider.next_call()
            left[call.deployment] -= 1
            call.reply(
                200,
                ANSWER,
                x_ratelimit_limit_requests="100",
                x_ratelimit_remaining_requests=str(left[call.deployment]),
                x_ratelimit_reset_requests="20s",
            )
            await caller.reply()
            await asyncio.sleep(0.01)
            return call.deployment

        seen = Counter([await asked() for _ in range(20)])
        assert seen["b"] <= 1
        left["a"] = 1
        assert await asked() == "a"  # the last one that is left there
        assert gateway.attempts[-1].limits is not None
        assert gateway.attempts[-1].limits.requests_left == 0
        seen = Counter([await asked() for _ in range(2)])
        assert seen == {"b": 2}


async def test_a_declared_rate_is_kept_where_providers_say_nothing() -> None:
    text = model("usage", "a model: openai/a, rpm: 2")
    async with stage(load_text(text, source="f", environment={})) as gateway:
        assert [await one(gateway) for _ in range(2)] == ["a", "a"]
        began = asyncio.get_running_loop().time()
        caller = gateway.ask(headers={"breakwater-timeout": "2m"})
        await asyncio.sleep(30)
        call = await gateway.provider.next_call()
        waited = asyncio.get_running_loop().time() - began
        call.reply(200, ANSWER)
        await caller.reply()
        assert 50.0 < waited < 70.0


async def test_routes_lead_to_another_model_and_the_event_tells_the_way() -> None:
    rest = (
        "    routes:\n      - {when: {property: {tier: free}}, to: small}\n"
        "      - {when: {feature: eu}, region: eu}\n"
        "  small:\n    deployments: [{id: s, model: openai/s, base_url: 'http://s/v1', api_key: []}]\n"
    )
    text = model("least-busy", "a model: openai/a", "b model: openai/b, region: eu", rest=rest)
    async with stage(load_text(text, source="f", environment={})) as gateway:
        for headers, deployment, told in (
            ({"breakwater-property-tier": "free"}, "s", [("route", "m.routes[0] -> small")]),
            ({"breakwater-feature": "eu"}, "b", [("route", "m.routes[1]"), ("skip", "region")]),
        ):
            caller = gateway.ask(headers=headers)
            call = await gateway.provider.next_call()
            assert call.deployment == deployment
            call.reply(200, ANSWER)
            reply = await caller.reply()
            assert reply.headers["breakwater-model"] == "m"
            assert reply.headers["breakwater-deployment"] == deployment
            await asyncio.sleep(0.01)
            decisions = gateway.requests[-1].decisions
            assert [(d.step, d.reason) for d in decisions if d.step in {"route", "skip"}] == told


async def test_what_no_deployment_takes_is_refused_without_a_call() -> None:
    text = model("simple-shuffle", "a model: openai/a, capabilities: [vision]")
    async with stage(load_text(text, source="f", environment={})) as gateway:
        caller = gateway.ask(tools=[{"type": "function", "function": {"name": "x"}}])
        error = await caller.error()
        assert error["status"] == 400
        assert "takes tools" in error["message"]
        assert gateway.provider.seen == []


async def test_a_router_hears_attempts_only_while_a_strategy_compares_them() -> None:
    plain = load_text(model("least-busy", "a model: openai/a"), source="f", environment={})
    quick = load_text(model("latency", "a model: openai/a"), source="f", environment={})
    async with stage(plain) as gateway:
        router = gateway.actor("router")
        assert isinstance(router, Router)

        def listens() -> bool:
            members = gateway.buses["router"].members
            return any(member.pattern == SUBJECTS.attempt.any() for member in members)

        assert not listens()
        router.on_config(quick, 2)
        await asyncio.sleep(0.01)
        assert listens()
        router.on_config(plain, 3)
        await asyncio.sleep(0.01)
        assert not listens()
