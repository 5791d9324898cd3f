"""Explain: everything that decides where one request would go now, as values to show.

The same routing, filters and strategies as a router's, over the views it is given; nothing is sent.
"""

from collections.abc import Mapping
from itertools import pairwise

from msgspec import Struct

from breakwater_gateway.config.model import Config, Model, StrategyName
from breakwater_gateway.config.targets import key_target
from breakwater_gateway.pricing.estimate import Ask, read_ask
from breakwater_gateway.router.affordable import affordable
from breakwater_gateway.router.charges import hold_for
from breakwater_gateway.router.money import Money
from breakwater_gateway.router.options import Options, money_of, read_options
from breakwater_gateway.router.requests import decode_request
from breakwater_gateway.router.routing import Routed, Routing
from breakwater_gateway.router.strategies import ANY, Draw
from breakwater_gateway.router.targets import Targets
from breakwater_protocol import failures as f
from breakwater_protocol.chat import ChatRequest, EmbeddingsRequest, NativeRequest
from breakwater_protocol.events import BreakerState, Heartbeat

UNITS: Mapping[StrategyName, str] = {
    "least-busy": "calls in flight by size",
    "latency": "ms, times calls in flight and one more",
    "cost": "nano-USD",
    "usage": "part of its rates that is used",
}
"""What a strategy's score counts; smaller is better."""


class Kept(Struct, frozen=True):
    """A deployment that may be called, at its place in the order."""

    deployment: str
    score: float | None
    weight: int
    order: int
    region: str
    breaker: BreakerState
    in_flight: int
    probe: bool = False
    """Half-open: called only by who wins its probe."""
    keys: tuple[str, ...] = ()
    """Those of its pool that may be used now; empty: all."""


class Out(Struct, frozen=True):
    """A deployment that may not, and for how long at least, where that is known."""

    deployment: str
    reason: str
    wait_s: float | None = None
    needs_nano_usd: int | None = None
    """Of one that is `too_dear`: what a call there may cost."""


class Explanation(Struct, frozen=True):
    asked: str
    model: str
    """The logical model that answers."""
    routes: tuple[str, ...]
    """Those that were taken, in order."""
    strategy: StrategyName
    score: str
    """What the scores count; empty: the strategy has none."""
    input_tokens: int
    output_tokens: int
    """Expected; both 0 where nobody wants to know."""
    kept: tuple[Kept, ...]
    dropped: tuple[Out, ...]
    drawn: bool
    """Chance has a part in the order: another request may see another."""


def assume_workers(targets: Targets, config: Config, *, now: float) -> None:
    """Where no worker can be heard: as if one served every pool."""
    pools = {d.pool for m in config.models.values() for d in m.deployments if d.pool}
    beat = Heartbeat("worker", "assumed", "", 0.0, capacity=1_000_000, pools=[])
    names = sorted(pools)
    targets.loads.fold(beat, now)
    for index, pool in enumerate(names):
        serving = Heartbeat("worker", f"assumed-{index}", "", 0.0, capacity=1_000_000, pools=[pool])
        targets.loads.fold(serving, now)


def explain(
    body: bytes,
    headers: Mapping[str, str],
    *,
    api: str,
    config: Config,
    targets: Targets,
    now: float,
    now_wall: float,
    draw: Draw,
) -> Explanation | f.Failure:
    """Where the request would go, or the failure that it would have before any call.

    `headers` in lower case, as a caller would send them.
    """
    options = read_options(headers)
    if not isinstance(options, Options):
        return options
    asked = decode_request(body, api=api, limit=config.limits.body_bytes)
    if not isinstance(asked, ChatRequest | EmbeddingsRequest | NativeRequest):
        return asked
    model = config.model(asked.model)
    if model is None:
        return f.UnknownModel(f"there is no model {asked.model[:100]!r} in this configuration")
    routed = Routing(config, targets.usage).route(
        model,
        options=options,
        stream=not isinstance(asked, EmbeddingsRequest) and bool(asked.stream),
        asked=asked,
        body=body,
    )
    if isinstance(routed, f.InvalidRequest):
        return routed
    if routed is None:
        routed = Routed(model, ANY)
    money = money_of(routed.model.retry, options)
    if isinstance(money, f.InvalidRequest):
        return money
    bounded = None if money is None else (money, read_ask(api, body))
    return _explanation(
        asked.model, routed, targets, bounded, now=now, now_wall=now_wall, draw=draw
    )


def _explanation(
    asked: str,
    routed: Routed,
    targets: Targets,
    bounded: tuple[Money, Ask] | None,
    *,
    now: float,
    now_wall: float,
    draw: Draw,
) -> Explanation:
    model = routed.model
    candidates, skipped = targets.order(
        model, now=now, now_wall=now_wall, draw=draw, ask=routed.ask
    )
    by_id = {d.id: d for d in model.deployments}
    if bounded is not None:
        money, of = bounded

        def quote(id_: str) -> int | None:
            deployment = by_id[id_]
            name = deployment.provider_model(asked, name=model.name)
            bound = hold_for(of, deployment, name, at=now_wall).bound
            return None if bound is None else bound.nano_usd

        candidates, skipped = affordable(money, quote, candidates, skipped)
    kept = tuple(
        Kept(
            deployment=each.deployment,
            score=each.score,
            weight=by_id[each.deployment].weight,
            order=by_id[each.deployment].order,
            region=by_id[each.deployment].region,
            breaker=targets.standings.state(each.target, now_wall),
            in_flight=targets.loads.in_flight(each.target),
            probe=each.probe,
            keys=tuple(key_target(each.deployment, key) for key in each.usable_keys),
        )
        for each in candidates
    )
    before = [Out(d.deployment.id, d.reason.value) for d in routed.dropped]
    now_out = [
        Out(s.deployment, s.reason, None if s.until is None else max(0.0, s.until - now), s.needs)
        for s in skipped
    ]
    return Explanation(
        asked=asked,
        model=model.name,
        routes=routed.way,
        strategy=model.strategy,
        score=UNITS.get(model.strategy, ""),
        input_tokens=routed.ask.input_tokens,
        output_tokens=routed.ask.output_tokens if routed.ask.input_tokens else 0,
        kept=kept,
        dropped=(*before, *now_out),
        drawn=_is_drawn(model, kept),
    )


def _is_drawn(model: Model, kept: tuple[Kept, ...]) -> bool:
    """Some neighbours stand only by lot in this order."""
    calls = [each for each in kept if not each.probe]
    if model.strategy == "latency" and len(calls) > 2:
        return True
    return any(
        (one.order, one.weight > 0) == (other.order, other.weight > 0)
        and one.score == other.score
        and (model.strategy != "priority" or one.weight == other.weight)
        for one, other in pairwise(calls)
    )
