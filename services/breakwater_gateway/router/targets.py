"""Targets: what this router knows of a model's deployments, and which of them a request may go to now.

Folds what is published (breakers, heartbeats, throttling) and answers from that view alone. Time and chance
come in as arguments. The first choice of a request, which nearly always is its last, is prepared once and
kept until something that was published changes it.
"""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import msgspec
from msgspec import Struct

from breakwater_gateway.config.model import Config, Deployment, Model
from breakwater_gateway.config.targets import NO_SCOPES, key_target, scopes_of, targets_of
from breakwater_gateway.pricing.prices import shipped
from breakwater_gateway.router.first_tokens import FirstTokens
from breakwater_gateway.router.own_window import OwnWindows
from breakwater_gateway.router.plan import Candidate, Skipped
from breakwater_gateway.router.retry import RetryBudget
from breakwater_gateway.router.sight import Sight
from breakwater_gateway.router.standing import Standings
from breakwater_gateway.router.strategies import (
    ANY,
    STRATEGIES,
    Ask,
    Filtered,
    Group,
    Reason,
    filter_targets,
)
from breakwater_gateway.router.throttle import Throttle
from breakwater_protocol.events import AttemptFinished, BreakerChanged
from breakwater_protocol.measures import LatencyBoard, UsageBoard
from breakwater_protocol.views import BreakerBoard, LoadBoard

LOOK_S: Final = 1.0
"""How long a look holds at most: an open target that nobody speaks for turns half-open by itself."""
HALF_OPEN_WAIT_S: Final = 1.0
"""What a caller is told to wait when all that is left is being probed by somebody else."""
CLAIMS_KEPT: Final = 4096
_SOON_S: Final = 0.001
"""Until when a target is held whose next release depends on answers."""

_ONE_KEY: Final = (0,)
_A_CHOICE: Final = frozenset({Reason.throttled, Reason.max_in_flight})
"""Reasons to wait for a target that is well."""

Draw = Callable[[], float]


class Considered(NamedTuple):
    """Among whom a request's first choice was made, and who was no choice: references only, so that it
    costs nothing to remember."""

    ids: tuple[str, ...]
    scores: Sequence[float | None] | None
    skipped: tuple[Skipped, ...]


class _Look(Struct, frozen=True):
    """A model's targets that may be called, for as long as nothing the views say has changed."""

    model: Model
    views: tuple[int, int]
    until: float
    group: Group | None
    """None: the first choice needs the whole order (a probe is due, or nothing is usable)."""
    by_id: dict[str, Deployment]
    candidates: dict[str, Candidate]
    """Ready made, of the usable ones: without a score."""
    skipped: tuple[Skipped, ...]


class Targets:
    def __init__(self, config: Config) -> None:
        self.breakers = BreakerBoard()
        self.own = OwnWindows()
        self.standings = Standings(self.breakers, self.own)
        self.loads = LoadBoard()
        self.first_tokens = FirstTokens()
        self.latency = LatencyBoard()
        self.usage = UsageBoard()
        self._sight = Sight(self.loads, self.latency, self.usage, prices=shipped)
        self._throttles: dict[str, Throttle] = {}
        self._budgets: dict[str, RetryBudget] = {}
        self._claims: set[tuple[str, int]] = set()
        self._looks: dict[int, _Look] = {}
        """By the identity of the model that the look itself keeps alive."""
        self.considered = Considered((), None, ())
        """By the last `first` or `order`."""
        self._changes = 0
        """Of breakers and pauses: a look from before holds no longer."""
        self._known: set[str] = set()
        self.retain(config)

    # What is published.

    def fold(self, changed: BreakerChanged) -> None:
        if changed.target in self._known:
            self._changes += self.breakers.fold(changed)

    def health_is(self, *, silent: bool) -> None:
        """Whether anybody judges what this router's calls say."""
        self.standings.silent = silent
        self._changes += 1

    def succeeded(self, target: str, *, now_wall: float) -> None:
        """A call of this router's was answered."""
        if target in self.own:
            self.own.succeeded(target, now_wall)
            self._changes += self.standings.silent

    def failed(self, model: Model, target: str, *, now_wall: float, draw: float) -> None:
        """A call of this router's failed by the target's fault."""
        self.own.failed(target, model.breaker, now_wall, draw)
        self._changes += self.standings.silent

    def pause(self, target: str, key: int | None, seconds: float | None, *, now: float) -> None:
        """Another router heard that the target wants to be left alone: by all requests with this key of its
        pool, or, None, with any."""
        self.throttle(target).pause(key, seconds, now)
        self._changes += 1

    def refused(
        self, target: str, key: int, request: str, seconds: float | None, *, now: float
    ) -> None:
        """A call of this router's was refused for its rate."""
        self.throttle(target).key(key).refused(request, seconds, now)
        self._changes += 1

    def throttle(self, target: str) -> Throttle:
        found = self._throttles.get(target)
        if found is None:
            found = self._throttles[target] = Throttle(self._pool(target))
        return found

    def _pool(self, target: str) -> int:
        return len(self.standings.scopes.get(target, NO_SCOPES).keys)

    def keys(self, target: str, now_wall: float) -> Sequence[int]:
        """Those of its pool that no breaker keeps out; all, where breakers leave none."""
        pool = self._pool(target)
        if pool > 1:
            return self.standings.of(target, now_wall).keys or range(pool)
        return _ONE_KEY

    def retain(self, config: Config) -> None:
        """The configuration changed: forget every target that it does not hold."""
        known = self._known = targets_of(config)
        self.standings.retain(scopes_of(config))
        self.own.retain(known)
        self.breakers.retain(known)
        self.first_tokens.retain(known)
        self._throttles = {
            t: each for t, each in self._throttles.items() if t in known or each.waiting
        }
        for target, throttle in self._throttles.items():
            throttle.resize(self._pool(target))
        self._budgets = {t: budget for t, budget in self._budgets.items() if t in known}
        self._looks.clear()
        self.latency.retain(known)
        self.usage.retain(known)

    def heard(
        self, attempt: AttemptFinished, deployment: Deployment, *, now: float
    ) -> list[tuple[int | None, float]]:
        """An attempt ended, of any router; which keys of its target have nothing left of their rates, and for
        how long: None for all of them."""
        self.latency.fold(attempt, now)
        usage = self.usage
        found: list[tuple[int | None, float]] = []
        if len(deployment.api_keys) > 1:
            # What a provider says with an answer is of the key that asked; the configuration's rates are of all.
            name = key_target(deployment.id, attempt.key)
            usage.fold(msgspec.structs.replace(attempt, deployment=name, outcome=""), now)
            attempt = msgspec.structs.replace(attempt, limits=None)
            found.append((attempt.key, usage.wait_s(name, None, None, now=now)))
        usage.fold(attempt, now)
        whole = usage.wait_s(deployment.id, deployment.rpm, deployment.tpm, now=now)
        found.append((None, whole))
        return [(key, wait_s) for key, wait_s in found if wait_s > 0]

    # What a request may do.

    def first(
        self, model: Model, *, now: float, now_wall: float, draw: Draw, ask: Ask = ANY
    ) -> Candidate | None:
        """Where a request goes first, when there is nothing to it but the strategy."""
        views = (self._changes, self.loads.version)
        look = self._looks.get(id(model))
        if look is None or look.views != views or look.model is not model or now >= look.until:
            look = self._looks[id(model)] = self._look(model, views, now, now_wall)
        if look.group is None:
            return None
        sight = self._sight
        sight.now, sight.now_wall = now, now_wall
        chosen, score = look.group.first(model.strategy, sight, draw, ask)
        throttle = self._throttles.get(chosen.id)
        if throttle is not None and not throttle.admits(now):
            return None
        self.considered = Considered(*look.group.compared, look.skipped)
        if score is None:
            return look.candidates[chosen.id]
        return self._candidate(chosen, score, probe=False)

    def order(
        self,
        model: Model,
        *,
        now: float,
        now_wall: float,
        draw: Draw,
        claiming: bool = False,
        turn: str = "",
        turn_key: int = 0,
        ask: Ask = ANY,
    ) -> tuple[tuple[Candidate, ...], tuple[Skipped, ...]]:
        """Every target that may be called, in the strategy's order, and why each other one may not.

        `claiming`: this request has won a probe, so its target is shown to it again. `turn`: the
        deployment that the request waited for, and may call, with `turn_key` of its pool, although others
        have to wait.
        """
        found = self._filter(model, now, now_wall, turn)
        self._sight.now, self._sight.now_wall = now, now_wall
        ordered = STRATEGIES[model.strategy](found.usable, self._sight, draw, ask)
        # Back from an outage with a share of the calls only: the rest goes elsewhere, if there is somewhere.
        late = {d.id for d, _ in ordered if not self._takes_share(d, draw)}
        ordered = tuple(
            sorted(ordered, key=lambda r: (r.deployment.id != turn, r.deployment.id in late))
        )
        # A probe goes first: with healthy neighbours its target would otherwise never be asked again.
        probes = [self._candidate(d, None, probe=True) for d in found.half_open]
        probes += [
            self._key_probe(d, key)
            for d, _ in ordered
            for key in self.standings.last(d.id).key_probes
        ]
        probes = [c for c in probes if claiming or c.place not in self._claims]
        skipped = _skipped(found, now)
        if not probes:
            skipped += [Skipped(d.id, "half_open", now + HALF_OPEN_WAIT_S) for d in found.half_open]
        candidates = [
            self._pooled(
                self._candidate(d, score, probe=False, turn=d.id == turn),
                turn_key if d.id == turn else None,
                now,
                now_wall,
            )
            for d, score in ordered
        ]
        if not (candidates or found.half_open):
            probes = [c for c in self._early(found) if claiming or c.place not in self._claims]
        self.considered = Considered(
            tuple(c.deployment for c in candidates),
            [c.score for c in candidates],
            tuple(skipped),
        )
        return (*probes, *candidates), tuple(skipped)

    def _takes_share(self, deployment: Deployment, draw: Draw) -> bool:
        share = self.standings.last(deployment.id).share
        return share >= 1.0 or draw() < share

    def _early(self, found: Filtered) -> list[Candidate]:
        """A model without a choice: its open targets, the least bad first, may be probed before their time."""
        if any(d.reason in _A_CHOICE for d in found.dropped):
            return []
        open_ = [
            d
            for d in found.dropped
            if d.reason is Reason.breaker_open and self.standings.last(d.deployment.id).early
        ]
        return [
            self._candidate(d.deployment, None, probe=True, panic=True)
            for d in sorted(open_, key=lambda d: d.wait_s or 0.0)
        ]

    def may_claim(self, candidate: Candidate) -> bool:
        """True once per epoch: one claim of this router, of the one probe in the whole cluster."""
        place = candidate.place
        if place in self._claims:
            return False
        if len(self._claims) >= CLAIMS_KEPT:
            self._claims.clear()
        self._claims.add(place)
        return True

    def budget(self, target: str, ratio: float) -> RetryBudget:
        budget = self._budgets.get(target)
        if budget is None:
            budget = self._budgets[target] = RetryBudget(ratio)
        return budget

    def deployment(self, model: Model, id_: str) -> Deployment:
        """Of the model as the request found it, whatever the configuration says by now."""
        look = self._looks.get(id(model))
        if look is not None and look.model is model:
            return look.by_id[id_]
        return next(d for d in model.deployments if d.id == id_)

    def _look(self, model: Model, views: tuple[int, int], now: float, now_wall: float) -> _Look:
        found = self._filter(model, now, now_wall)
        wait_s = found.wait_s()
        last = self.standings.last
        plain = not found.half_open and all(d.max_in_flight is None for d in model.deployments)
        plain = plain and all(
            last(d.id).share >= 1.0 and not last(d.id).key_probes for d in found.usable
        )
        group = Group(found.usable) if plain and found.usable else None
        return _Look(
            model=model,
            views=views,
            until=now + (LOOK_S if wait_s is None else min(wait_s, LOOK_S)),
            group=group,
            by_id={d.id: d for d in model.deployments},
            candidates={d.id: self._candidate(d, None, probe=False) for d in found.usable},
            skipped=(
                *(() if group is None else _later(group, found.usable)),
                *_skipped(found, now),
            ),
        )

    def _filter(self, model: Model, now: float, now_wall: float, turn: str = "") -> Filtered:
        return filter_targets(
            model.deployments,
            breakers=self.standings,
            load=self.loads,
            not_before=self._held(model, now, now_wall, turn),
            now=now,
            now_wall=now_wall,
        )

    def _held(self, model: Model, now: float, now_wall: float, turn: str) -> dict[str, float]:
        """Deployments that a request has to wait for -> until when, as far as it can be told."""
        held: dict[str, float] = {}
        for deployment in model.deployments:
            throttle = self._throttles.get(deployment.id)
            if throttle is None or deployment.id == turn or throttle.admits(now):
                continue
            keys = self.keys(deployment.id, now_wall)
            if not throttle.usable(keys, now):
                held[deployment.id] = max(throttle.until(keys, now), now + _SOON_S)
        return held

    def _pooled(
        self, candidate: Candidate, turn_key: int | None, now: float, now_wall: float
    ) -> Candidate:
        """With the keys only that may be used now: those that are not paused, or the one whose turn it is."""
        throttle = self._throttles.get(candidate.deployment)
        if throttle is None or len(throttle.keys) < 2:
            return candidate
        if turn_key is None and throttle.admits(now):
            return candidate
        keys = self.keys(candidate.deployment, now_wall)
        usable = throttle.usable(keys, now) if turn_key is None else (turn_key,)
        paused = [key for key in keys if key not in usable]
        until = max(throttle.until(paused, now), now + _SOON_S) if paused else None
        return msgspec.structs.replace(candidate, usable_keys=usable, more_keys_at=until)

    def _candidate(
        self,
        deployment: Deployment,
        score: float | None,
        *,
        probe: bool,
        turn: bool = False,
        panic: bool = False,
    ) -> Candidate:
        """As its standing was when it was filtered."""
        standing = self.standings.last(deployment.id)
        return Candidate(
            deployment=deployment.id,
            target=deployment.id,
            keys=len(deployment.api_keys),
            epoch=standing.epoch,
            probe=probe,
            turn=turn,
            score=score,
            panic=panic,
            usable_keys=standing.keys,
            key_epochs=standing.key_epochs,
            region_epoch=standing.region_epoch,
            probe_of=standing.probe_of,
            probe_epoch=standing.probe_epoch,
        )

    def _key_probe(self, deployment: Deployment, key: int) -> Candidate:
        """A call with a half-open key of a deployment that is fine."""
        standing = self.standings.last(deployment.id)
        names = self.standings.scopes.get(deployment.id, NO_SCOPES).keys
        return msgspec.structs.replace(
            self._candidate(deployment, None, probe=True),
            usable_keys=(key,),
            probe_of=names[key],
            probe_epoch=standing.key_epochs[key],
        )


def _later(group: Group, usable: Sequence[Deployment]) -> list[Skipped]:
    """Whose turn comes after those that were chosen among, and why."""
    if len(group.targets) == len(usable):
        return []
    first = {d.id for d in group.targets}
    weighed = group.targets[0].weight > 0
    return [
        Skipped(d.id, "order" if d.weight or not weighed else "weight", None)
        for d in usable
        if d.id not in first
    ]


def _skipped(found: Filtered, now: float) -> list[Skipped]:
    return [
        Skipped(d.deployment.id, d.reason.value, None if d.wait_s is None else now + d.wait_s)
        for d in found.dropped
    ]
