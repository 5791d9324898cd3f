"""Strategies: in which order the deployments of a model are tried.

`filter_targets` first says which deployments can be tried at all, and of each other one why not. A
strategy then orders what is left. All are pure functions over a view; chance comes in as `draw`.
A new strategy is a function of the same shape and one line in `STRATEGIES`; what it needs to know of a
target becomes a method of `TargetView`.
"""

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from itertools import accumulate
from math import log
from typing import Final, NamedTuple, Protocol

from breakwater_gateway.config.model import Deployment, StrategyName
from breakwater_protocol.events import BreakerState

Draw = Callable[[], float]
"""Uniform in [0, 1), independent each time."""


class TargetView(Protocol):
    """What strategies may know of targets; `breakwater_protocol.views.LoadBoard` is one."""

    def in_flight(self, target: str) -> int: ...


class LoadView(TargetView, Protocol):
    def serves(self, pool: str) -> bool: ...


class BreakerView(Protocol):
    """`breakwater_protocol.views.BreakerBoard`, as far as routing needs it."""

    def state(self, target: str, now_wall: float) -> BreakerState: ...
    def until(self, target: str) -> float: ...


class Strategy(Protocol):
    def __call__(
        self, targets: Sequence[Deployment], view: TargetView, draw: Draw, /
    ) -> tuple[Deployment, ...]: ...


def simple_shuffle(
    targets: Sequence[Deployment],
    view: TargetView,  # noqa: ARG001 - every strategy has this shape
    draw: Draw,
) -> tuple[Deployment, ...]:
    """A whole permutation drawn by weight: the first is `w` with probability `w / sum`, and so on.

    Efraimidis and Spirakis, "Weighted random sampling with a reservoir", 2006, in its exponential form.
    Lower `order` first; weight 0 comes after everything that has a weight.
    """
    if len(targets) < 2:
        return tuple(targets)
    return _sorted(targets, [(not t.weight > 0, t.order, _lot(t.weight, draw)) for t in targets])


def least_busy(
    targets: Sequence[Deployment], view: TargetView, draw: Draw
) -> tuple[Deployment, ...]:
    """The least loaded first: in flight per `max_in_flight` where all have one, else per weight.

    Equal loads are drawn by weight, so idle targets share as `simple_shuffle` would have it. Lower
    `order` first; weight 0 comes after everything that has a weight.
    """
    if len(targets) < 2:
        return tuple(targets)
    limited = all(t.max_in_flight for t in targets)
    keys = []
    for t in targets:
        size = (t.max_in_flight or 1) if limited else max(t.weight, 1)
        keys.append((not t.weight > 0, t.order, view.in_flight(t.id) / size, _lot(t.weight, draw)))
    return _sorted(targets, keys)


STRATEGIES: Final[dict[StrategyName, Strategy]] = {
    "simple-shuffle": simple_shuffle,
    "least-busy": least_busy,
}


class Group:
    """The targets that a strategy chooses its first from, prepared once for many requests.

    The first of `simple_shuffle` and `least_busy` comes from the weighted targets of the lowest `order`,
    so choosing it needs neither the others nor a whole permutation: `first` costs the same with one
    target as with a hundred, or one comparison a target where load counts.
    """

    __slots__ = ("_cumulative", "_sizes", "targets")

    def __init__(self, usable: Sequence[Deployment]) -> None:
        """`usable` must not be empty."""
        weighted = [t for t in usable if t.weight > 0] or list(usable)
        lowest = min(t.order for t in weighted)
        self.targets = tuple(t for t in weighted if t.order == lowest)
        self._cumulative = tuple(accumulate(max(t.weight, 1) for t in self.targets))
        limited = all(t.max_in_flight for t in usable)
        self._sizes = tuple(
            (t.max_in_flight or 1) if limited else max(t.weight, 1) for t in self.targets
        )

    def first(self, strategy: StrategyName, view: TargetView, draw: Draw) -> Deployment:
        """As the first of the strategy's whole order, with the same chances."""
        targets, candidates = self.targets, range(len(self.targets))
        if len(targets) == 1:
            return targets[0]
        if strategy == "simple-shuffle":
            return targets[bisect_right(self._cumulative, draw() * self._cumulative[-1])]
        loads = [view.in_flight(t.id) / size for t, size in zip(targets, self._sizes, strict=True)]
        least = min(loads)
        tied = [i for i in candidates if loads[i] == least]
        if len(tied) == 1:
            return targets[tied[0]]
        shares = tuple(accumulate(max(targets[i].weight, 1) for i in tied))
        return targets[tied[bisect_right(shares, draw() * shares[-1])]]


class Reason(Enum):
    """Why a deployment cannot be tried; the first that applies, in this order."""

    context_window = "context_window"
    """The prompt and its answer do not fit."""
    max_output = "max_output"
    """More output is asked for than the model gives."""
    no_worker = "no_worker"
    """No live worker serves its pool."""
    breaker_open = "breaker_open"
    throttled = "throttled"
    """Its provider asked for a pause that is not over."""
    max_in_flight = "max_in_flight"


class Need(NamedTuple):
    """What the request needs of a deployment; 0 is not known or not asked for."""

    input_tokens: int = 0
    output_tokens: int = 0


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


_NO_NEED: Final = Need()


def filter_targets(
    targets: Sequence[Deployment],
    *,
    breakers: BreakerView,
    load: LoadView,
    not_before: Mapping[str, float],
    now: float,
    now_wall: float,
    need: Need = _NO_NEED,
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
        lacks = _lacks(target, need)
        if lacks is not None:
            dropped.append(Dropped(target, lacks))
        elif not load.serves(target.pool):
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


def _lacks(target: Deployment, need: Need) -> Reason | None:
    window, most = target.context_window, target.max_output
    if window is not None and need.input_tokens + need.output_tokens > window:
        return Reason.context_window
    if most is not None and need.output_tokens > most:
        return Reason.max_output
    return None


def _lot(weight: int, draw: Draw) -> float:
    """The smallest lot is first: exponential with rate `weight`."""
    lot = -log(1.0 - draw())
    return lot / weight if weight > 0 else lot


def _sorted(
    targets: Sequence[Deployment], keys: Sequence[tuple[float, ...]]
) -> tuple[Deployment, ...]:
    return tuple(targets[i] for i in sorted(range(len(targets)), key=keys.__getitem__))
