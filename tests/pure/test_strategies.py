"""Orders of deployments: permutations, weights, loads, and why one is left out."""

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from breakwater_gateway.config.model import Deployment, StrategyName
from breakwater_gateway.router.strategies import (
    STRATEGIES,
    Dropped,
    Group,
    Need,
    Reason,
    Strategy,
    filter_targets,
    least_busy,
    simple_shuffle,
)
from breakwater_protocol.events import BreakerState


def deployment(
    id_: str,
    *,
    weight: int = 1,
    order: int = 0,
    max_in_flight: int | None = None,
    pool: str = "",
    context_window: int | None = None,
    max_output: int | None = None,
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
        context_window=context_window,
        max_output=max_output,
    )


class Loads:
    """What a router knows, written by hand."""

    def __init__(
        self,
        in_flight: dict[str, int] | None = None,
        *,
        pools: tuple[str, ...] = ("",),
        states: dict[str, tuple[BreakerState, float]] | None = None,
    ) -> None:
        self._in_flight = in_flight or {}
        self._pools = pools
        self._states = states or {}

    def in_flight(self, target: str) -> int:
        return self._in_flight.get(target, 0)

    def serves(self, pool: str) -> bool:
        return pool in self._pools

    def state(self, target: str, now_wall: float) -> BreakerState:
        return self._states.get(target, ("closed", 0.0))[0]

    def until(self, target: str) -> float:
        return self._states.get(target, ("closed", 0.0))[1]


def ids(targets: tuple[Deployment, ...]) -> str:
    return " ".join(t.id for t in targets)


IDLE = Loads()
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
    view = Loads({f"d{i}": load for i, load in enumerate(loads)})
    found = strategy(targets, view, Random(seed).random)
    assert sorted(t.id for t in found) == sorted(t.id for t in targets)
    weighted = [t for t in found if t.weight > 0]
    assert found[: len(weighted)] == tuple(weighted)
    assert [t.order for t in weighted] == sorted(t.order for t in weighted)
    spare = found[len(weighted) :]
    assert [t.order for t in spare] == sorted(t.order for t in spare)


def chi_square(counts: Counter[str], weights: dict[str, int], rounds: int) -> float:
    total = sum(weights.values())
    expected = {id_: rounds * weight / total for id_, weight in weights.items()}
    return sum((counts[id_] - e) ** 2 / e for id_, e in expected.items())


WEIGHTS = {"a": 1, "b": 2, "c": 7}


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES.keys())
def test_weights_are_respected_among_idle_targets(strategy: Strategy) -> None:
    targets = [deployment(id_, weight=weight) for id_, weight in WEIGHTS.items()]
    draw, rounds = Random(7).random, 20_000
    firsts = Counter(strategy(targets, IDLE, draw)[0].id for _ in range(rounds))
    # Two degrees of freedom: beyond 13.8 once in a thousand seeds.
    assert chi_square(firsts, WEIGHTS, rounds) < 13.8


def test_the_second_is_drawn_by_weight_among_the_rest() -> None:
    targets = [deployment(id_, weight=weight) for id_, weight in WEIGHTS.items()]
    draw = Random(8).random
    orders = [simple_shuffle(targets, IDLE, draw) for _ in range(20_000)]
    after_c = Counter(order[1].id for order in orders if order[0].id == "c")
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
    assert ids(found.usable) == "full"
    assert [d.reason for d in found.dropped] == [Reason.no_worker]


def test_each_dropped_target_says_why_and_until_when() -> None:
    targets = [
        deployment("fine"),
        deployment("small", context_window=100),
        deployment("terse", max_output=10),
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
        need=Need(input_tokens=90, output_tokens=20),
    )
    assert ids(found.usable) == "fine"
    assert ids(found.half_open) == "half"
    by_id = {t.id: t for t in targets}
    assert list(found.dropped) == [
        Dropped(by_id["small"], Reason.context_window),
        Dropped(by_id["terse"], Reason.max_output),
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
    st.sampled_from(["simple-shuffle", "least-busy"]),
    st.integers(0, 2**32),
)
def test_a_group_chooses_only_what_the_whole_order_could_begin_with(
    shapes: list[tuple[int, int]], strategy: StrategyName, seed: int
) -> None:
    targets = [deployment(f"t{i}", weight=w, order=o) for i, (w, o) in enumerate(shapes)]
    loads = Loads({t.id: i % 3 for i, t in enumerate(targets)})
    chosen = Group(targets).first(strategy, loads, Random(seed).random)
    possible = {STRATEGIES[strategy](targets, loads, Random(s).random)[0].id for s in range(200)}
    assert chosen.id in possible


def test_a_group_draws_its_first_by_weight() -> None:
    group = Group([deployment("a", weight=1), deployment("b", weight=3)])
    draw = Random(7).random
    drawn = [group.first("simple-shuffle", Loads(), draw).id for _ in range(4000)]
    assert 0.72 < drawn.count("b") / len(drawn) < 0.78
