"""Strategies: in which order the deployments of a model are tried.

`filter_targets` first says which deployments can be tried at all, and of each other one why not. A
strategy then orders what is left, with a score each where it has one. All are pure functions over a view;
chance comes in as `draw`. A new strategy is a function of the same shape and one line in `STRATEGIES`;
what it needs to know of a target becomes a method of `TargetView`.
"""

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from itertools import accumulate
from math import inf, log
from typing import Final, NamedTuple, Protocol

from breakwater_gateway.config.model import Deployment, StrategyName
from breakwater_gateway.pricing.cost import PICO_PER_NANO, ModelPrice, cost_nano_usd
from breakwater_protocol.chat import Usage
from breakwater_protocol.events import BreakerState

Draw = Callable[[], float]
"""Uniform in [0, 1), independent each time."""

UNTRIED: Final = 0.5
"""A target of unknown latency counts as so much of the quickest known one, so that it is tried."""


class TargetView(Protocol):
    """What strategies may know of targets; `router.sight.Sight` is one."""

    def in_flight(self, target: str, /) -> int: ...
    def latency_ms(self, target: str, /, *, stream: bool) -> float | None: ...
    def used(self, deployment: Deployment, /) -> float | None:
        """The larger used part of its rates, 1 at the limit; None: no limit is known."""

    def price(self, deployment: Deployment, ask: "Ask", /) -> ModelPrice | None: ...


class LoadView(Protocol):
    def in_flight(self, target: str, /) -> int: ...
    def serves(self, pool: str, /) -> bool: ...


class BreakerView(Protocol):
    """`breakwater_protocol.views.BreakerBoard`, as far as routing needs it."""

    def state(self, target: str, now_wall: float) -> BreakerState: ...
    def until(self, target: str) -> float: ...


class Ask(NamedTuple):
    """What strategies may know of a request. Tokens are estimates, 0 where nobody wants to know."""

    model: str = ""
    """The logical model, as the caller named it …"""
    name: str = ""
    """… and by its own name, which may be a prefix."""
    stream: bool = False
    input_tokens: int = 0
    output_tokens: int = 0


class Ranked(NamedTuple):
    deployment: Deployment
    score: float | None
    """Smaller is better; None: the strategy has none, or it is not known."""


class Strategy(Protocol):
    def __call__(
        self, targets: Sequence[Deployment], view: TargetView, draw: Draw, ask: Ask = ..., /
    ) -> tuple[Ranked, ...]: ...


ANY: Final = Ask()


def simple_shuffle(
    targets: Sequence[Deployment],
    view: TargetView,  # noqa: ARG001 - every strategy has this shape
    draw: Draw,
    ask: Ask = ANY,  # noqa: ARG001
) -> tuple[Ranked, ...]:
    """A whole permutation drawn by weight: the first is `w` with probability `w / sum`, and so on.

    Efraimidis and Spirakis, "Weighted random sampling with a reservoir", 2006, in its exponential form.
    Lower `order` first; weight 0 comes after everything that has a weight. Scores: none.
    """
    return _by_score(targets, [None] * len(targets), draw)


def priority(
    targets: Sequence[Deployment],
    view: TargetView,  # noqa: ARG001
    draw: Draw,
    ask: Ask = ANY,  # noqa: ARG001
) -> tuple[Ranked, ...]:
    """The lowest `order` first, of these the heaviest, equals by lot: no share for the others while it
    can be called. Scores: none."""
    keys = [(not t.weight > 0, t.order, -t.weight, draw()) for t in targets]
    by_key = sorted(range(len(targets)), key=keys.__getitem__)
    return tuple(Ranked(targets[i], None) for i in by_key)


def least_busy(
    targets: Sequence[Deployment],
    view: TargetView,
    draw: Draw,
    ask: Ask = ANY,  # noqa: ARG001
) -> tuple[Ranked, ...]:
    """The least loaded first: in flight per `max_in_flight` where all have one, else per weight.

    Equal loads are drawn by weight, so idle targets share as `simple_shuffle` would have it. Lower
    `order` first; weight 0 comes after everything that has a weight. Score: that load.
    """
    limited = all(t.max_in_flight for t in targets)
    loads = [view.in_flight(t.id) / _size(t, limited=limited) for t in targets]
    return _by_score(targets, loads, draw)


def latency(
    targets: Sequence[Deployment], view: TargetView, draw: Draw, ask: Ask = ANY
) -> tuple[Ranked, ...]:
    """The better of two drawn by weight first, so that not everybody goes to the best; then the others.

    Mitzenmacher's "power of two choices" over Finagle's peak EWMA. Score: ms to the first token of a
    stream, else to the answer, times one more than the calls in flight. A target that nobody measured
    counts as half of the quickest, so that it is tried.
    """
    known = [view.latency_ms(t.id, stream=ask.stream) for t in targets]
    quickest = min((ms for ms in known if ms is not None), default=1.0)
    scores = [
        (quickest * UNTRIED if ms is None else ms) * (view.in_flight(t.id) + 1)
        for t, ms in zip(targets, known, strict=True)
    ]
    if len(targets) > 1:
        first = Group(targets).first("latency", view, draw, ask)
        if first.score is None:  # alone in its order
            first = Ranked(first.deployment, scores[targets.index(first.deployment)])
        rest = [i for i, t in enumerate(targets) if t is not first.deployment]
        ordered = _by_score([targets[i] for i in rest], [scores[i] for i in rest], draw)
        return (first, *ordered)
    return _by_score(targets, scores, draw)


def cost(
    targets: Sequence[Deployment], view: TargetView, draw: Draw, ask: Ask = ANY
) -> tuple[Ranked, ...]:
    """The cheapest for this request first, equals by weight, and last what has no known price.

    Score: nano-USD of the estimated input and output.
    """
    scores = [_cost(_rates(view.price(t, ask)), ask) for t in targets]
    return _by_score(targets, scores, draw)


def usage(
    targets: Sequence[Deployment],
    view: TargetView,
    draw: Draw,
    ask: Ask = ANY,  # noqa: ARG001
) -> tuple[Ranked, ...]:
    """The one with the most room under its rates first, equals by weight; without a known limit there is
    room. Score: the used part of the fuller rate."""
    return _by_score(targets, [view.used(t) or 0.0 for t in targets], draw)


STRATEGIES: Final[dict[StrategyName, Strategy]] = {
    "simple-shuffle": simple_shuffle,
    "least-busy": least_busy,
    "latency": latency,
    "cost": cost,
    "usage": usage,
    "priority": priority,
}


class Group:
    """The targets that a strategy chooses its first from, prepared once for many requests.

    The first of every strategy comes from the weighted targets of the lowest `order`, so choosing it
    needs neither the others nor a whole permutation: `first` costs the same with one target as with a
    hundred, or one comparison a target where load, cost or use counts.
    """

    __slots__ = ("_cumulative", "_heaviest", "_ids", "_priced", "_sizes", "compared", "targets")

    def __init__(self, usable: Sequence[Deployment]) -> None:
        """`usable` must not be empty."""
        weighted = [t for t in usable if t.weight > 0] or list(usable)
        lowest = min(t.order for t in weighted)
        self.targets = tuple(t for t in weighted if t.order == lowest)
        self._cumulative = tuple(accumulate(max(t.weight, 1) for t in self.targets))
        limited = all(t.max_in_flight for t in usable)
        self._sizes = tuple(_size(t, limited=limited) for t in self.targets)
        most = max(t.weight for t in self.targets)
        self._heaviest = tuple(t for t in self.targets if t.weight == most)
        self._ids = tuple(t.id for t in self.targets)
        self.compared: tuple[tuple[str, ...], Sequence[float] | None] = (self._ids, None)
        """Among whom the last `first` chose, and their scores; infinite is not known."""
        self._priced: tuple[str, tuple[_Rates | None, ...]] | None = None
        """What calls under a name cost: prices do not change within the life of a group."""

    def first(self, strategy: StrategyName, view: TargetView, draw: Draw, ask: Ask = ANY) -> Ranked:
        """As the first of the strategy's whole order, with the same chances; one alone needs no score."""
        targets = self.targets
        if len(targets) == 1:
            return Ranked(targets[0], None)
        match strategy:
            case "simple-shuffle":
                at = bisect_right(self._cumulative, draw() * self._cumulative[-1])
                return Ranked(targets[at], None)
            case "priority":
                heaviest = self._heaviest
                return Ranked(heaviest[int(draw() * len(heaviest))], None)
            case "latency":
                return self._quicker_of_two(view, draw, ask)
            case "least-busy":
                in_flight = view.in_flight
                loads = [
                    in_flight(t.id) / size for t, size in zip(targets, self._sizes, strict=True)
                ]
                return self._least(loads, draw)
            case "cost":
                prices = self._prices(view, ask)
                costs = [_cost(rates, ask) for rates in prices]
                found = self._least([inf if each is None else each for each in costs], draw)
                return Ranked(found.deployment, None) if found.score == inf else found
            case "usage":
                used = view.used
                return self._least([used(t) or 0.0 for t in targets], draw)

    def _least(self, scores: Sequence[float], draw: Draw) -> Ranked:
        targets = self.targets
        self.compared = (self._ids, scores)
        least = min(scores)
        tied = [i for i, score in enumerate(scores) if score == least]
        if len(tied) == 1:
            return Ranked(targets[tied[0]], least)
        shares = tuple(accumulate(max(targets[i].weight, 1) for i in tied))
        return Ranked(targets[tied[bisect_right(shares, draw() * shares[-1])]], least)

    def _quicker_of_two(self, view: TargetView, draw: Draw, ask: Ask) -> Ranked:
        targets, sums = self.targets, self._cumulative
        one = bisect_right(sums, draw() * sums[-1])
        a = targets[one]
        a_ms = view.latency_ms(a.id, stream=ask.stream)
        # The second by weight among the others: the line of all weights without the first's piece.
        begin = sums[one - 1] if one else 0
        piece = sums[one] - begin
        at = draw() * (sums[-1] - piece)
        b = targets[bisect_right(sums, at if at < begin else at + piece)]
        b_ms = view.latency_ms(b.id, stream=ask.stream)
        if a_ms is None:
            a_ms = UNTRIED * (1.0 if b_ms is None else b_ms)
            b_ms = UNTRIED if b_ms is None else b_ms
        elif b_ms is None:
            b_ms = UNTRIED * a_ms
        a_score = a_ms * (view.in_flight(a.id) + 1)
        b_score = b_ms * (view.in_flight(b.id) + 1)
        self.compared = ((a.id, b.id), (a_score, b_score))
        return Ranked(a, a_score) if a_score <= b_score else Ranked(b, b_score)

    def _prices(self, view: TargetView, ask: Ask) -> "tuple[_Rates | None, ...]":
        priced = self._priced
        if priced is None or priced[0] != ask.model:
            found = tuple(_rates(view.price(t, ask)) for t in self.targets)
            priced = self._priced = (ask.model, found)
        return priced[1]


class _Rates(NamedTuple):
    """A price, made ready: pico-USD a token and a call where that is all there is to it."""

    input: int
    output: int
    per_call: int
    whole: ModelPrice | None
    """The price itself where bands or unknown rates decide."""


def _rates(price: ModelPrice | None) -> _Rates | None:
    if price is None:
        return None
    into, out = price.rates.input, price.rates.output
    if price.bands or into is None or out is None:
        return _Rates(0, 0, 0, price)
    return _Rates(into, out, price.per_call, None)


def _cost(rates: _Rates | None, ask: Ask) -> float | None:
    """Nano-USD; None where it is not known: such a target comes last, it is not free."""
    if rates is None:
        return None
    if rates.whole is not None:
        nano = cost_nano_usd(Usage(ask.input_tokens, ask.output_tokens), rates.whole)
        return None if nano is None else float(nano)
    pico = ask.input_tokens * rates.input + ask.output_tokens * rates.output + rates.per_call
    return float((pico + PICO_PER_NANO // 2) // PICO_PER_NANO)


class Reason(Enum):
    """Why a deployment cannot be tried; the first that applies, in this order."""

    route = "route"
    """The route that the request takes leaves it out."""
    region = "region"
    no_vision = "no_vision"
    """The request needs what it is declared not to have; `no_audio`, `no_tools` and `no_json` alike."""
    no_audio = "no_audio"
    no_tools = "no_tools"
    no_json = "no_json"
    max_output = "max_output"
    """More output is asked for than the model gives."""
    context_window = "context_window"
    """The prompt and its answer do not fit."""
    no_worker = "no_worker"
    """No live worker serves its pool."""
    breaker_open = "breaker_open"
    throttled = "throttled"
    """Its provider asked for a pause that is not over."""
    max_in_flight = "max_in_flight"


class Dropped(NamedTuple):
    deployment: Deployment
    reason: Reason
    wait_s: float | None = None
    """When the reason ends, in seconds from now, where that is known."""


class Filtered(NamedTuple):
    """Each deployment is in exactly one of the three, in the order given."""

    usable: tuple[Deployment, ...]
    half_open: tuple[Deployment, ...]
    """May be tried by the one who claims the probe of its epoch."""
    dropped: tuple[Dropped, ...]

    def least_bad(self) -> Deployment | None:
        """The open target nearest to its probe: what is tried when nothing else is left to choose."""
        open_ = [d for d in self.dropped if d.reason is Reason.breaker_open]
        return min(open_, key=lambda d: d.wait_s or 0.0).deployment if open_ else None

    def wait_s(self) -> float | None:
        """When the first dropped target may be tried again, where that is known: an honest Retry-After."""
        return min((d.wait_s for d in self.dropped if d.wait_s is not None), default=None)


def filter_targets(
    targets: Sequence[Deployment],
    *,
    breakers: BreakerView,
    load: LoadView,
    not_before: Mapping[str, float],
    now: float,
    now_wall: float,
) -> Filtered:
    """Which deployments may be tried, which only as a probe, and why each other one may not.

    `not_before`: by deployment id, in the clock of `now`; an absent id is not throttled. Where nothing else
    is left, targets that have all their `max_in_flight` are usable after all: calls wait for a place at the
    worker, which knows their priority and refuses at once what would wait in vain.
    """
    usable: list[Deployment] = []
    half_open: list[Deployment] = []
    dropped: list[Dropped] = []
    for target in targets:
        state = breakers.state(target.id, now_wall)
        if not load.serves(target.pool):
            dropped.append(Dropped(target, Reason.no_worker))
        elif state == "open":
            left = max(0.0, breakers.until(target.id) - now_wall)
            dropped.append(Dropped(target, Reason.breaker_open, left))
        elif (until := not_before.get(target.id, now)) > now:
            dropped.append(Dropped(target, Reason.throttled, until - now))
        elif target.max_in_flight is not None and load.in_flight(target.id) >= target.max_in_flight:
            dropped.append(Dropped(target, Reason.max_in_flight))
        elif state == "half_open":
            half_open.append(target)
        else:
            usable.append(target)
    if not usable and not half_open and dropped:
        usable = [d.deployment for d in dropped if d.reason is Reason.max_in_flight]
        dropped = [d for d in dropped if d.reason is not Reason.max_in_flight]
    return Filtered(tuple(usable), tuple(half_open), tuple(dropped))


def _size(target: Deployment, *, limited: bool) -> int:
    return (target.max_in_flight or 1) if limited else max(target.weight, 1)


def _lot(weight: int, draw: Draw) -> float:
    """The smallest lot is first: exponential with rate `weight`."""
    lot = -log(1.0 - draw())
    return lot / weight if weight > 0 else lot


def _by_score(
    targets: Sequence[Deployment], scores: Sequence[float | None], draw: Draw
) -> tuple[Ranked, ...]:
    """The smallest score first, none at all last, equals by weighted lot; within that, order and weight 0."""
    if len(targets) < 2:
        return tuple(map(Ranked, targets, scores))
    keys = [
        (not t.weight > 0, t.order, inf if score is None else score, _lot(t.weight, draw))
        for t, score in zip(targets, scores, strict=True)
    ]
    return tuple(
        Ranked(targets[i], scores[i]) for i in sorted(range(len(targets)), key=keys.__getitem__)
    )
