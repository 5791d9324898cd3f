"""Targets: what this router knows of a model's deployments, and which of them a request may go to now.

Folds what is published (breakers, heartbeats, throttling) and answers from that view alone. Time and chance
come in as arguments. The first choice of a request, which nearly always is its last, is prepared once and
kept until something that was published changes it.
"""

from collections.abc import Callable, Collection
from typing import Final

from msgspec import Struct

from breakwater_gateway.config.model import Deployment, Model
from breakwater_gateway.pricing.prices import shipped
from breakwater_gateway.router.first_tokens import FirstTokens
from breakwater_gateway.router.plan import Candidate, Skipped
from breakwater_gateway.router.release import Release
from breakwater_gateway.router.retry import RetryBudget
from breakwater_gateway.router.sight import Sight
from breakwater_gateway.router.strategies import (
    ANY,
    STRATEGIES,
    Ask,
    Filtered,
    Group,
    filter_targets,
)
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

Draw = Callable[[], float]


class _Look(Struct, frozen=True):
    """A model's targets that may be called, for as long as nothing the views say has changed."""

    model: Model
    views: tuple[int, int]
    until: float
    group: Group | None
    """None: the first choice needs the whole order (a probe is due, or nothing is usable)."""
    by_id: dict[str, Deployment]


class Targets:
    def __init__(self) -> None:
        self.breakers = BreakerBoard()
        self.loads = LoadBoard()
        self.first_tokens = FirstTokens()
        self.latency = LatencyBoard()
        self.usage = UsageBoard()
        self._sight = Sight(self.loads, self.latency, self.usage, prices=shipped)
        self._releases: dict[str, Release] = {}
        self._budgets: dict[str, RetryBudget] = {}
        self._claims: set[tuple[str, int]] = set()
        self._looks: dict[int, _Look] = {}
        """By the identity of the model that the look itself keeps alive."""
        self._changes = 0
        """Of breakers and pauses: a look from before holds no longer."""

    # What is published.

    def fold(self, changed: BreakerChanged) -> None:
        self._changes += self.breakers.fold(changed)

    def pause(self, target: str, seconds: float | None, *, now: float) -> None:
        """Another router heard that the target wants to be left alone: by all requests."""
        self.release(target).pause(seconds, now)
        self._changes += 1

    def refused(self, target: str, request: str, seconds: float | None, *, now: float) -> None:
        """A call of this router's was refused for its rate."""
        self.release(target).refused(request, seconds, now)
        self._changes += 1

    def release(self, target: str) -> Release:
        found = self._releases.get(target)
        if found is None:
            found = self._releases[target] = Release()
        return found

    def retain(self, known: Collection[str]) -> None:
        """The configuration changed: forget every target that is not one of these."""
        self.breakers.retain(known)
        self.first_tokens.retain(known)
        self._releases = {
            t: release for t, release in self._releases.items() if t in known or release.waiting
        }
        self._budgets = {t: budget for t, budget in self._budgets.items() if t in known}
        self._looks.clear()
        self.latency.retain(known)
        self.usage.retain(known)

    def heard(self, attempt: AttemptFinished, deployment: Deployment, *, now: float) -> float:
        """An attempt ended, of any router; for how long its target has nothing left of its rates."""
        self.latency.fold(attempt, now)
        self.usage.fold(attempt, now)
        return self.usage.wait_s(deployment.id, deployment.rpm, deployment.tpm, now=now)

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
        release = self._releases.get(chosen.id)
        if release is not None and not release.admits(now):
            return None
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
        ask: Ask = ANY,
    ) -> tuple[tuple[Candidate, ...], tuple[Skipped, ...]]:
        """Every target that may be called, in the strategy's order, and why each other one may not.

        `claiming`: this request has won a probe, so its target is shown to it again. `turn`: the
        deployment that the request waited for, and may call although others have to wait.
        """
        found = self._filter(model, now, now_wall, turn)
        self._sight.now, self._sight.now_wall = now, now_wall
        ordered = STRATEGIES[model.strategy](found.usable, self._sight, draw, ask)
        # A probe goes first: with healthy neighbours its target would otherwise never be asked again.
        probes = [
            self._candidate(d, None, probe=True)
            for d in found.half_open
            if claiming or (d.id, self.breakers.epoch(d.id)) not in self._claims
        ]
        skipped = [
            Skipped(d.deployment.id, d.reason.value, None if d.wait_s is None else now + d.wait_s)
            for d in found.dropped
        ]
        if not probes:
            skipped += [Skipped(d.id, "half_open", now + HALF_OPEN_WAIT_S) for d in found.half_open]
        candidates = [
            self._candidate(d, score, probe=False, turn=d.id == turn)
            for d, score in sorted(ordered, key=lambda ranked: ranked.deployment.id != turn)
        ]
        return (*probes, *candidates), tuple(skipped)

    def may_claim(self, candidate: Candidate) -> bool:
        """True once per epoch: one claim of this router, of the one probe in the whole cluster."""
        place = (candidate.target, candidate.epoch)
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
        plain = not found.half_open and all(d.max_in_flight is None for d in model.deployments)
        return _Look(
            model=model,
            views=views,
            until=now + (LOOK_S if wait_s is None else min(wait_s, LOOK_S)),
            group=Group(found.usable) if plain and found.usable else None,
            by_id={d.id: d for d in model.deployments},
        )

    def _filter(self, model: Model, now: float, now_wall: float, turn: str = "") -> Filtered:
        return filter_targets(
            model.deployments,
            breakers=self.breakers,
            load=self.loads,
            not_before=self._held(model, now, turn),
            now=now,
            now_wall=now_wall,
        )

    def _held(self, model: Model, now: float, turn: str) -> dict[str, float]:
        """Deployments that a request has to wait for -> until when, as far as it can be told."""
        held: dict[str, float] = {}
        for deployment in model.deployments:
            release = self._releases.get(deployment.id)
            if release is not None and deployment.id != turn and not release.admits(now):
                held[deployment.id] = max(release.until(now), now + _SOON_S)
        return held

    def _candidate(
        self, deployment: Deployment, score: float | None, *, probe: bool, turn: bool = False
    ) -> Candidate:
        return Candidate(
            deployment=deployment.id,
            target=deployment.id,
            keys=len(deployment.api_keys),
            epoch=self.breakers.epoch(deployment.id),
            probe=probe,
            turn=turn,
            score=score,
        )
