"""What choosing a deployment costs a request: `uv run python -m ops.bench.routing`, µs of CPU each.

`first` is the choice that nearly every request makes, prepared and kept while nothing changes; `order` is the
whole order with all reasons, for those whose first choice failed. Then what a request pays for being looked
at, where some deployment of its model has something to say to that. The smallest of several batches counts:
noise of a shared machine only ever adds.
"""

import json
from collections.abc import Callable
from random import Random
from typing import Final, get_args

from ops.bench.parts import cost_us
from ops.bench.wire import COUNTER, body

from breakwater_gateway.config.model import (
    Condition,
    Config,
    Deployment,
    Model,
    Price,
    Route,
    StrategyName,
)
from breakwater_gateway.pricing.estimate import read_ask
from breakwater_gateway.router.affordable import affordable
from breakwater_gateway.router.charges import hold_for
from breakwater_gateway.router.explain import assume_workers
from breakwater_gateway.router.money import Money
from breakwater_gateway.router.options import Options
from breakwater_gateway.router.requests import decode_request
from breakwater_gateway.router.routing import Routing
from breakwater_gateway.router.strategies import Ask
from breakwater_gateway.router.targets import Targets
from breakwater_protocol import failures as f
from breakwater_protocol.chat import ChatRequest, Usage
from breakwater_protocol.events import AttemptFinished

SIZES: Final = (1, 10, 100)
REQUEST: Final = body().replace(COUNTER, b"000000000001")
ASK: Final = Ask("m", "m", stream=True, input_tokens=400, output_tokens=180)


def model(count: int, strategy: StrategyName, *, windows: bool = False) -> Model:
    deployments = tuple(
        Deployment(
            id=f"d{i}",
            provider="p",
            model="m",
            wire="openai",
            base_url="http://h",
            weight=1 + i % 3,
            rpm=1_000_000,
            price=Price(100 + i % 7, 400 + i % 5),
            context_window=8_000 + i if windows else None,
        )
        for i in range(count)
    )
    return Model("m", deployments, strategy=strategy)


def attempt(deployment: str, random: Random) -> AttemptFinished:
    return AttemptFinished(
        request="01J9ZC8YV6W3T5N0Q4R7S2X1KD",
        attempt=1,
        tenant="default",
        model="m",
        deployment=deployment,
        target=deployment,
        provider="p",
        worker="w-7f3a",
        outcome="ok",
        at=1_760_000_000.25,
        status=200,
        stream=True,
        first_token_ms=100.0 + 400.0 * random.random(),
        duration_ms=2_210.0,
        usage=Usage(input=400, output=180),
    )


def standing(count: int, strategy: StrategyName) -> tuple[Targets, Model]:
    """A router's view after some calls to everybody, with some under way."""
    random, found = Random(1), model(count, strategy)
    targets = Targets(Config({found.name: found}))
    assume_workers(targets, Config({"m": found}), now=0.0)
    for round_ in range(5):
        for each in found.deployments:
            targets.heard(attempt(each.id, random), each, now=float(round_))
            if random.random() < 0.5:
                targets.loads.dispatched("assumed", each.id, f"r{round_}")
    return targets, found


def choices() -> None:
    print("µs a choice (CPU)   " + "".join(f"{f'first of {n}':>14}" for n in SIZES), end="")
    print("".join(f"{f'order of {n}':>14}" for n in SIZES))
    for strategy in get_args(StrategyName):
        draw = Random(2).random
        firsts, orders = [], []
        for count in SIZES:
            targets, found = standing(count, strategy)
            firsts.append(cost_us(_first(targets, found, draw)))
            orders.append(cost_us(_order(targets, found, draw)))
        print(f"{strategy:20}" + "".join(f"{us:14.2f}" for us in (*firsts, *orders)), flush=True)


def _first(targets: Targets, found: Model, draw: Callable[[], float]) -> Callable[[], object]:
    def step() -> object:
        chosen = targets.first(found, now=5.0, now_wall=0.0, draw=draw, ask=ASK)
        assert chosen is not None
        return chosen

    return step


def _order(targets: Targets, found: Model, draw: Callable[[], float]) -> Callable[[], object]:
    return lambda: targets.order(found, now=5.0, now_wall=0.0, draw=draw, ask=ASK)


def looks() -> None:
    asked = decode_request(REQUEST, api="chat", limit=10**7)
    assert isinstance(asked, ChatRequest)
    many = Model(
        "m",
        model(10, "least-busy").deployments,
        routes=(
            *(Route(Condition(features=(f"f{i}",)), deployments=("d1",)) for i in range(9)),
            Route(Condition(properties=(("tier", ("free",)),)), deployments=("d1", "d2")),
        ),
    )
    picture = json.loads(REQUEST)
    picture["messages"][-1]["content"] = [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 1_000_000}}
    ]
    free = Options(properties={"tier": "free"})
    able = Model(
        "m",
        tuple(
            Deployment(
                id=d.id,
                provider="p",
                model="m",
                wire="openai",
                base_url="http://h",
                capabilities=("vision", "tools"),
            )
            for d in many.deployments
        ),
    )
    print()
    for name, each, options, sent in (
        ("a model that asks for nothing", model(10, "least-busy"), Options(), REQUEST),
        ("ten routes, the last one taken", many, free, REQUEST),
        ("context windows declared", model(10, "least-busy", windows=True), Options(), REQUEST),
        ("priced for this request", model(10, "cost"), Options(), REQUEST),
        ("capabilities declared", able, Options(), REQUEST),
        ("… and a picture of 1 MB", able, Options(), json.dumps(picture).encode()),
    ):
        config = Config({"m": each})
        routing = Routing(config, Targets(config).usage)

        def look(
            each: Model = each,
            options: Options = options,
            sent: bytes = sent,
            on: Routing = routing,
        ) -> object:
            found = on.route(each, options=options, stream=True, asked=asked, body=sent)
            assert not isinstance(found, f.InvalidRequest)
            return found

        print(f"{cost_us(look):10.2f} µs  {name} ({len(sent)} bytes)", flush=True)
    bounded(10)
    targets, found = standing(10, "latency")
    event = attempt("d3", Random(3))
    fold = cost_us(lambda: targets.heard(event, found.deployments[3], now=6.0))
    print(f"{fold:10.2f} µs  fold an ended attempt, where a strategy compares them")


def bounded(count: int) -> None:
    """What a request with a bound of its own pays for it; one without pays nothing."""
    targets, found = standing(count, "least-busy")
    by_id = {each.id: each for each in found.deployments}
    given = targets.order(found, now=5.0, now_wall=0.0, draw=Random(2).random, ask=ASK)

    def sift() -> object:
        ask = read_ask("chat", REQUEST)

        def quote(id_: str) -> int | None:
            bound = hold_for(ask, by_id[id_], "m", at=0.0).bound
            return None if bound is None else bound.nano_usd

        kept, _ = affordable(Money(10**9), quote, *given)
        assert kept
        return kept

    print(
        f"{cost_us(sift):10.2f} µs  a bound of the request's own, {count} deployments", flush=True
    )


if __name__ == "__main__":
    choices()
    looks()
