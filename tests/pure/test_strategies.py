"""Orders of deployments: permutations, weights, loads, and why one is left out."""

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from breakwater_gateway.config.model import Config, Deployment, Model, Price, StrategyName
from breakwater_gateway.pricing.cost import Band, ModelPrice, Rates, of_config
from breakwater_gateway.router.strategies import (
    STRATEGIES,
    Ask,
    Dropped,
    Group,
    Ranked,
    Reason,
    Strategy,
    cost,
    filter_targets,
    latency,
    least_busy,
    priority,
    simple_shuffle,
    usage,
)
from breakwater_gateway.router.targets import Targets
from breakwater_protocol.events import BreakerChanged, BreakerState, Evidence, Heartbeat


def deployment(
    id_: str,
    *,
    weight: int = 1,
    order: int = 0,
    max_in_flight: int | None = None,
    pool: str = "",
    rpm: int | None = None,
    price: Price | None = None,
) -> Deployment:
    return Deployment(
        id=id_,
        provider="p",
        model="m",
        wire="openai",
        base_url="http://localhost",
        weight=weight,
        order=order,
        max_in_flight=max_in_flight,
        pool=pool,
        rpm=rpm,
        price=price,
    )


class Loads:
    """What a router knows, written by hand."""

    def __init__(
        self,
        in_flight: dict[str, int] | None = None,
        *,
        pools: tuple[str, ...] = ("",),
        states: dict[str, tuple[BreakerState, float]] | None = None,
        latencies: dict[str, float] | None = None,
        uses: dict[str, float] | None = None,
    ) -> None:
        self._in_flight = in_flight or {}
        self._latencies = latencies or {}
        self._uses = uses or {}
        self._pools = pools
        self._states = states or {}

    def in_flight(self, target: str) -> int:
        return self._in_flight.get(target, 0)

    def latency_ms(self, target: str, *, stream: bool) -> float | None:
        ms = self._latencies.get(target)
        return ms if ms is None or stream else 10 * ms

    def used(self, deployment: Deployment) -> float | None:
        return self._uses.get(deployment.id)

    def price(self, deployment: Deployment, ask: Ask) -> ModelPrice | None:
        assert ask is not None
        return None if deployment.price is None else of_config(deployment.price)

    def serves(self, pool: str) -> bool:
        return pool in self._pools

    def state(self, target: str, now_wall: float) -> BreakerState:
        return self._states.get(target, ("closed", 0.0))[0]

    def until(self, target: str) -> float:
        return self._states.get(target, ("closed", 0.0))[1]


def ids(ranked: tuple[Ranked, ...]) -> str:
    return " ".join(each.deployment.id for each in ranked)


IDLE = Loads()
ASK = Ask("m", "m", stream=True, input_tokens=100, output_tokens=10)
SHARED = {name: each for name, each in STRATEGIES.items() if name != "priority"}
"""Those in which idle targets share by weight."""
TARGETS = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 3), st.none() | st.integers(1, 9)), max_size=12
).map(
    lambda rows: [
        deployment(f"d{i}", weight=weight, order=order, max_in_flight=limit)
        for i, (weight, order, limit) in enumerate(rows)
    ]
)


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES.keys())
@given(targets=TARGETS, seed=st.integers(), loads=st.lists(st.integers(0, 9), max_size=12))
def test_every_strategy_returns_a_permutation_with_lower_orders_first(
    strategy: Strategy, targets: list[Deployment], seed: int, loads: list[int]
) -> None:
    names = {f"d{i}": load for i, load in enumerate(loads)}
    measured = {name: float(load) for name, load in names.items() if load % 3}
    view = Loads(names, latencies=measured, uses=measured)
    found = [each.deployment for each in strategy(targets, view, Random(seed).random, ASK)]
    assert sorted(t.id for t in found) == sorted(t.id for t in targets)
    weighted = [t for t in found if t.weight > 0]
    assert found[: len(weighted)] == weighted
    assert [t.order for t in weighted] == sorted(t.order for t in weighted)
    spare = found[len(weighted) :]
    assert [t.order for t in spare] == sorted(t.order for t in spare)


def chi_square(counts: Counter[str], weights: dict[str, int], rounds: int) -> float:
    total = sum(weights.values())
    expected = {id_: rounds * weight / total for id_, weight in weights.items()}
    return sum((counts[id_] - e) ** 2 / e for id_, e in expected.items())


WEIGHTS = {"a": 1, "b": 2, "c": 7}


@pytest.mark.parametrize("strategy", SHARED.values(), ids=SHARED.keys())
def test_weights_are_respected_among_idle_targets(strategy: Strategy) -> None:
    targets = [deployment(id_, weight=weight) for id_, weight in WEIGHTS.items()]
    draw, rounds = Random(7).random, 20_000
    firsts = Counter(strategy(targets, IDLE, draw, ASK)[0].deployment.id for _ in range(rounds))
    # Two degrees of freedom: beyond 13.8 once in a thousand seeds.
    assert chi_square(firsts, WEIGHTS, rounds) < 13.8


def test_the_second_is_drawn_by_weight_among_the_rest() -> None:
    targets = [deployment(id_, weight=weight) for id_, weight in WEIGHTS.items()]
    draw = Random(8).random
    orders = [simple_shuffle(targets, IDLE, draw) for _ in range(20_000)]
    after_c = Counter(order[1].deployment.id for order in orders if order[0].deployment.id == "c")
    assert chi_square(after_c, {"a": 1, "b": 2}, after_c.total()) < 10.8


def test_weight_zero_is_a_spare_even_in_a_lower_order() -> None:
    targets = [deployment("spare", weight=0), deployment("far", order=1)]
    assert ids(simple_shuffle(targets, IDLE, Random(1).random)) == "far spare"
    assert ids(simple_shuffle(targets[:1], IDLE, Random(1).random)) == "spare"


@pytest.mark.parametrize(
    ("loads", "targets", "expected"),
    [
        ({"a": 3, "b": 1, "c": 2}, "a b c", "b c a"),
        ({"a": 3, "b": 2}, "a*3 b*1", "a b"),  # 1 a weight against 2
        ({"a": 5, "b": 4}, "a/10 b/5", "a b"),  # half full against four fifths
        ({"a": 2, "b": 1}, "a/10 b", "b a"),  # not all have a limit: by weight
    ],
)
def test_the_least_loaded_is_first(loads: dict[str, int], targets: str, expected: str) -> None:
    rows = []
    for word in targets.split():
        name, _, weight = word.partition("*")
        name, _, limit = name.partition("/")
        rows.append(
            deployment(name, weight=int(weight or 1), max_in_flight=int(limit) if limit else None)
        )
    assert ids(least_busy(rows, Loads(loads), Random(1).random)) == expected


def test_where_nothing_else_is_left_a_full_target_is_one_to_wait_for() -> None:
    targets = [deployment("full", max_in_flight=2), deployment("away", pool="eu")]
    view = Loads({"full": 2})
    found = filter_targets(targets, breakers=view, load=view, not_before={}, now=0.0, now_wall=0.0)
    assert [d.id for d in found.usable] == ["full"]
    assert [d.reason for d in found.dropped] == [Reason.no_worker]


def test_each_dropped_target_says_why_and_until_when() -> None:
    targets = [
        deployment("fine"),
        deployment("away", pool="eu"),
        deployment("broken"),
        deployment("worse"),
        deployment("throttled"),
        deployment("full", max_in_flight=2),
        deployment("half"),
        deployment("half-throttled"),
    ]
    view = Loads(
        {"full": 2},
        states={
            "broken": ("open", 1_004.0),
            "worse": ("open", 1_090.0),
            "half": ("half_open", 0.0),
            "half-throttled": ("half_open", 0.0),
        },
    )
    found = filter_targets(
        targets,
        breakers=view,
        load=view,
        not_before={"throttled": 57.0, "half-throttled": 51.0, "fine": 49.0},
        now=50.0,
        now_wall=1_000.0,
    )
    assert [d.id for d in found.usable] == ["fine"]
    assert [d.id for d in found.half_open] == ["half"]
    by_id = {t.id: t for t in targets}
    assert list(found.dropped) == [
        Dropped(by_id["away"], Reason.no_worker),
        Dropped(by_id["broken"], Reason.breaker_open, 4.0),
        Dropped(by_id["worse"], Reason.breaker_open, 90.0),
        Dropped(by_id["throttled"], Reason.throttled, 7.0),
        Dropped(by_id["full"], Reason.max_in_flight),
        Dropped(by_id["half-throttled"], Reason.throttled, 1.0),
    ]
    assert found.wait_s() == 1.0


def test_with_everything_open_the_one_nearest_to_its_probe_is_the_least_bad() -> None:
    targets = [deployment("a"), deployment("b")]
    view = Loads(states={"a": ("open", 30.0), "b": ("open", 20.0)})
    found = filter_targets(targets, breakers=view, load=view, not_before={}, now=0.0, now_wall=10.0)
    assert found.usable == ()
    assert found.least_bad() is targets[1]
    assert found.wait_s() == 10.0


def test_without_open_targets_there_is_no_least_bad() -> None:
    view = Loads(pools=())
    found = filter_targets(
        [deployment("a")], breakers=view, load=view, not_before={}, now=0.0, now_wall=0.0
    )
    assert found.least_bad() is None
    assert found.wait_s() is None


@given(TARGETS, st.integers())
def test_filtering_loses_nothing(targets: list[Deployment], seed: int) -> None:
    random = Random(seed)
    view = Loads(
        {t.id: random.randrange(10) for t in targets},
        states={t.id: (random.choice(("closed", "open", "half_open")), 5.0) for t in targets},
    )
    found = filter_targets(
        targets,
        breakers=view,
        load=view,
        not_before={t.id: random.random() * 2 for t in targets},
        now=1.0,
        now_wall=1.0,
    )
    everyone = [*found.usable, *found.half_open, *(d.deployment for d in found.dropped)]
    assert sorted(t.id for t in everyone) == sorted(t.id for t in targets)


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2)), min_size=1, max_size=6),
    st.sampled_from(list(STRATEGIES)),
    st.integers(0, 2**32),
)
def test_a_group_chooses_only_what_the_whole_order_could_begin_with(
    shapes: list[tuple[int, int]], strategy: StrategyName, seed: int
) -> None:
    targets = [
        deployment(f"t{i}", weight=w, order=o, price=None if i % 3 == 2 else Price(w, o))
        for i, (w, o) in enumerate(shapes)
    ]
    loads = Loads(
        {t.id: i % 3 for i, t in enumerate(targets)},
        latencies={t.id: 5.0 + i % 2 for i, t in enumerate(targets) if i % 4},
        uses={t.id: i % 2 / 2 for i, t in enumerate(targets)},
    )
    chosen = Group(targets).first(strategy, loads, Random(seed).random, ASK)
    firsts = [STRATEGIES[strategy](targets, loads, Random(s).random, ASK)[0] for s in range(200)]
    possible = {each.deployment.id: each.score for each in firsts}
    assert chosen.deployment.id in possible
    assert chosen.score in {None, *(each.score for each in firsts)}


@pytest.mark.parametrize("strategy", list(SHARED))
def test_a_group_draws_its_first_by_weight(strategy: StrategyName) -> None:
    group = Group([deployment("a", weight=1), deployment("b", weight=3)])
    draw = Random(7).random
    drawn = [group.first(strategy, IDLE, draw, ASK).deployment.id for _ in range(4000)]
    assert 0.72 < drawn.count("b") / len(drawn) < 0.78


def test_priority_keeps_to_the_heaviest_of_the_lowest_order() -> None:
    targets = [
        deployment("far", order=1, weight=9),
        deployment("light", weight=1),
        deployment("heavy", weight=2),
        deployment("spare", weight=0),
    ]
    for seed in range(20):
        assert ids(priority(targets, IDLE, Random(seed).random)) == "heavy light far spare"
        assert Group(targets).first("priority", IDLE, Random(seed).random).deployment.id == "heavy"
    twins = Group([deployment("a"), deployment("b")])
    draw = Random(3).random
    drawn = [twins.first("priority", IDLE, draw).deployment.id for _ in range(1000)]
    assert 400 < drawn.count("a") < 600


@pytest.mark.parametrize(
    ("latencies", "in_flight", "order"),
    [
        ({"a": 100.0, "b": 300.0}, {}, "a b"),
        ({"a": 100.0, "b": 300.0}, {"a": 1}, "a b"),
        ({"a": 100.0, "b": 300.0}, {"a": 3}, "b a"),  # 400 against 300
        ({"a": 100.0}, {}, "b a"),  # nobody measured b: it is tried …
        ({"a": 100.0}, {"b": 2}, "a b"),  # … but not by everybody at once
        ({}, {"a": 1}, "b a"),
    ],
)
def test_the_quicker_of_two_is_first_counting_what_is_under_way(
    latencies: dict[str, float], in_flight: dict[str, int], order: str
) -> None:
    view = Loads(in_flight, latencies=latencies)
    for seed in range(20):
        found = latency([deployment("a"), deployment("b")], view, Random(seed).random, ASK)
        assert ids(found) == order
        assert found[0].score is not None
        assert found[1].score is not None
        assert found[0].score <= found[1].score


def test_the_slowest_of_many_is_never_the_quicker_of_two() -> None:
    targets = [deployment(f"t{i}") for i in range(5)]
    view = Loads(latencies={t.id: 10.0 * (i + 1) for i, t in enumerate(targets)})
    group, draw = Group(targets), Random(5).random
    firsts = Counter(group.first("latency", view, draw, ASK).deployment.id for _ in range(10_000))
    assert firsts["t4"] == 0
    # 4 of the 10 pairs hold t0, 3 more t1, and so on.
    assert chi_square(firsts, {"t0": 4, "t1": 3, "t2": 2, "t3": 1}, 10_000) < 16.3


def test_the_two_are_drawn_by_weight_without_putting_the_first_back() -> None:
    targets = [deployment(id_, weight=weight) for id_, weight in WEIGHTS.items()]
    view = Loads(latencies={"a": 1.0, "b": 2.0, "c": 3.0})
    group, draw, rounds = Group(targets), Random(11).random, 20_000
    firsts = Counter(group.first("latency", view, draw, ASK).deployment.id for _ in range(rounds))
    # a unless neither draw is a; c never, since the other of two is always quicker.
    without_a = 0.2 * 7 / 8 + 0.7 * 2 / 3
    assert firsts["c"] == 0
    assert abs(firsts["b"] / rounds - without_a) < 0.015


@pytest.mark.parametrize(
    ("ask", "order", "scores"),
    [
        (Ask(input_tokens=1000, output_tokens=10), "in out free? ", (2_000.0, 5_050.0, None)),
        (Ask(input_tokens=10, output_tokens=1000), "out in free? ", (5_050.0, 100_010.0, None)),
    ],
)
def test_what_is_cheapest_depends_on_the_request_and_no_price_is_not_free(
    ask: Ask, order: str, scores: tuple[float | None, ...]
) -> None:
    targets = [
        deployment("free?"),
        deployment("in", price=Price(1, 100)),
        deployment("out", price=Price(5, 5)),
    ]
    found = cost(targets, IDLE, Random(1).random, ask)
    assert ids(found) == order.strip()
    assert tuple(each.score for each in found) == scores
    assert Group(targets).first("cost", IDLE, Random(1).random, ask) == found[0]


def test_a_group_with_no_price_at_all_still_chooses() -> None:
    group = Group([deployment("a"), deployment("b")])
    assert group.first("cost", IDLE, Random(1).random, ASK).score is None


def test_a_long_prompt_s_band_decides_what_is_cheapest() -> None:
    banded = ModelPrice(Rates(1_000_000, 1_000_000), (Band(100, Rates(9_000_000, 9_000_000)),))
    flat = ModelPrice(Rates(2_000_000, 2_000_000))

    class Banded(Loads):
        def price(self, deployment: Deployment, ask: Ask) -> ModelPrice | None:
            del ask
            return banded if deployment.id == "banded" else flat

    targets = [deployment("banded"), deployment("flat")]
    draw = Random(1).random
    assert ids(cost(targets, Banded(), draw, Ask(input_tokens=100))) == "banded flat"
    assert ids(cost(targets, Banded(), draw, Ask(input_tokens=101))) == "flat banded"


def test_the_most_room_under_its_rates_is_first_and_no_known_limit_is_room() -> None:
    targets = [deployment("a"), deployment("b"), deployment("c")]
    view = Loads(uses={"a": 0.9, "b": 0.4})
    found = usage(targets, view, Random(1).random)
    assert ids(found) == "c b a"
    assert [each.score for each in found] == [0.0, 0.4, 0.9]
    assert Group(targets).first("usage", view, Random(1).random).deployment.id == "c"


@given(
    st.sampled_from(list(STRATEGIES)),
    st.lists(
        st.tuples(
            st.integers(0, 2),
            st.integers(0, 1),
            st.sampled_from(["well", "open", "paused", "away"]),
        ),
        min_size=1,
        max_size=6,
    ),
    st.integers(0, 2**32),
)
def test_nobody_who_was_left_out_is_ever_called(
    strategy: StrategyName, shapes: list[tuple[int, int, str]], seed: int
) -> None:
    deployments = tuple(
        deployment(f"t{i}", weight=w, order=o, pool="eu" if state == "away" else "")
        for i, (w, o, state) in enumerate(shapes)
    )
    model = Model("m", deployments, strategy=strategy)
    targets, draw = Targets(Config({"m": model})), Random(seed).random
    targets.loads.fold(Heartbeat("worker", "w", "", 0.0, capacity=9), 0.0)
    for each, (_, _, state) in zip(deployments, shapes, strict=True):
        if state == "open":
            targets.fold(BreakerChanged(each.id, "open", "c", Evidence(), 99.0, 1, "closed", 0.0))
        elif state == "paused":
            targets.pause(each.id, None, 50.0, now=0.0)
    well = {d.id for d, (_, _, state) in zip(deployments, shapes, strict=True) if state == "well"}
    candidates, skipped = targets.order(model, now=1.0, now_wall=1.0, draw=draw, ask=ASK)
    calls = {c.deployment for c in candidates if not c.probe}
    assert calls == well
    assert {s.deployment for s in skipped} == {d.id for d in deployments} - well
    first = targets.first(model, now=1.0, now_wall=1.0, draw=draw, ask=ASK)
    assert first is None or first.deployment in well
    if first is not None:
        assert first.deployment in targets.considered.ids
        for left in targets.considered.skipped:
            # A healthy one is only ever left for later.
            assert (left.deployment in well) == (left.reason in {"order", "weight"})
