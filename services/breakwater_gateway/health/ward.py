"""All breakers of a configuration, and which of them one finished call moves.

A call passes three scopes: its key, its deployment, and, where several deployments share one, its
provider-region. The narrowest that explains a failure opens:

- refused twice in a row (401, 403), or out of quota, it is the key;
- a deployment that should open while another one of its provider-region is failing likewise, and none of
  them is answered, is no explanation by itself: then the provider-region opens, once for all of them;
- everything else is the deployment.

What the provider-region explains does not count against its deployments. Breakers of keys are made when
a key is first refused. A value without a clock: `now` is monotonic seconds, `draw` uniform in [0, 1).
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

from msgspec import Struct

from breakwater_gateway.config.model import BreakerPolicy, Config, Model
from breakwater_gateway.config.targets import NO_SCOPES, Scopes, scopes_of
from breakwater_gateway.health.breaker import PROBE_GRACE_S, Breaker, Change
from breakwater_gateway.health.verdict import (
    Result,
    Verdict,
    is_quota,
    judge,
    judge_key,
    judge_region,
    of_the_provider,
)
from breakwater_protocol.events import AttemptFinished

KEY_REFUSALS: Final = 2
"""So many in a row open a key's breaker: one may be a provider's hiccup, of three two are wasted."""
REGION_MEMBERS: Final = 2
"""So many deployments of a provider-region must be failing before it is the explanation."""
REGION_FAILURES: Final = 2
"""A deployment that failed so often in a row is failing."""
QUOTA_S: Final = 60.0
"""A key without quota is left alone for so long, where the provider does not say when it resets."""

NOT_FOR_IT: Final = -1
"""The epoch of a call that may not speak for a scope: no breaker ever has it."""

KEY_POLICY: Final = BreakerPolicy(
    window_s=300.0,
    min_requests=2**31,
    consecutive=2**31,
    open_s=30.0,
    open_cap_s=300.0,
    ramp_s=0.0,
)
"""A key works or does not: one probe tells, and all calls may come back at once."""


class Moved(NamedTuple):
    target: str
    change: Change


class Way(NamedTuple):
    """Deployment and key of a call that passes some target."""

    deployment: str
    key: int
    model: Model


class Permit(NamedTuple):
    """Under which epochs a call is made; its result counts for the scopes whose epoch is still that."""

    deployment: int = 0
    key: int = 0
    region: int = 0


class _Site(Struct, frozen=True):
    """Where the breakers of one deployment stand."""

    model: Model
    scopes: Scopes


class Ward:
    def __init__(self) -> None:
        self.breakers: dict[str, Breaker] = {}
        self._sites: dict[str, _Site] = {}
        self._members: dict[str, tuple[str, ...]] = {}
        self._keys: dict[str, Model] = {}

    def __len__(self) -> int:
        return len(self.breakers)

    def __contains__(self, target: str) -> bool:
        """It may have a breaker under this configuration."""
        return target in self.breakers or target in self._keys

    def targets(self) -> Iterator[str]:
        """Every name that may have a breaker, whether it has one yet or not."""
        yield from (t for t in self.breakers if t not in self._keys)
        yield from self._keys

    def members(self, region: str) -> tuple[str, ...]:
        """The deployments of a provider-region."""
        return self._members.get(region, ())

    def way_to(self, target: str) -> Way | None:
        """A call that passes this target, wherever possible through nothing else in trouble."""
        if target in self._keys:
            for id_, site in self._sites.items():
                if target in site.scopes.keys:
                    return Way(id_, site.scopes.keys.index(target), site.model)
        members = self._members.get(target, (target,))
        sound = [id_ for id_ in members if id_ in self._sites and self._is_closed(id_)]
        for id_ in (*sound, *members):
            if id_ in self._sites:
                return Way(id_, self._sound_key(id_), self._sites[id_].model)
        return None

    def _is_closed(self, target: str) -> bool:
        breaker = self.breakers.get(target)
        return breaker is None or breaker.state == "closed"

    def _sound_key(self, deployment: str) -> int:
        keys = self._sites[deployment].scopes.keys
        return next((at for at, key in enumerate(keys) if self._is_closed(key)), 0)

    def permit(self, way: Way, target: str) -> Permit:
        """The epochs of a probe of `target` on its way: it speaks for nothing else that is in trouble."""
        site = self._sites[way.deployment]

        def epoch(scope: str) -> int:
            breaker = self.breakers.get(scope)
            if breaker is None:
                return 0
            return breaker.epoch if scope == target or breaker.state == "closed" else NOT_FOR_IT

        key = site.scopes.keys[way.key] if site.scopes.keys else ""
        region = site.scopes.region
        return Permit(epoch(way.deployment), epoch(key), epoch(region) if region else 0)

    # The configuration.

    def cover(self, config: Config, now: float) -> tuple[list[str], list[str]]:
        """One breaker for each deployment and provider-region; which are new, and which are gone."""
        scopes = scopes_of(config)
        self._sites = {
            d.id: _Site(model, scopes.get(d.id, NO_SCOPES))
            for model in config.models.values()
            for d in model.deployments
        }
        members: dict[str, list[str]] = {}
        self._keys = {}
        for id_, site in self._sites.items():
            if site.scopes.region:
                members.setdefault(site.scopes.region, []).append(id_)
            self._keys.update(dict.fromkeys(site.scopes.keys, site.model))
        self._members = {region: tuple(ids) for region, ids in members.items()}
        wanted = {id_: site.model for id_, site in self._sites.items()}
        # A provider-region is judged as its first deployment's model says.
        wanted |= {region: wanted[ids[0]] for region, ids in self._members.items()}
        made = [target for target in wanted if target not in self.breakers]
        for target, model in wanted.items():
            probe_s, slow_s = _times(model)
            breaker = self.breakers.get(target)
            if breaker is None:
                self.breakers[target] = Breaker(
                    model.breaker, now=now, probe_s=probe_s, slow_s=slow_s
                )
            else:
                breaker.retune(model.breaker, probe_s=probe_s, slow_s=slow_s)
        gone = [t for t in self.breakers if t not in wanted and t not in self._keys]
        for target in gone:
            del self.breakers[target]
        for target, model in self._keys.items():
            key = self.breakers.get(target)
            if key is not None:
                probe_s, slow_s = _times(model)
                key.retune(KEY_POLICY, probe_s=probe_s, slow_s=slow_s)
        return made, gone

    def breaker(self, target: str, now: float) -> Breaker | None:
        """Of a key too, which is made if need be; None: the configuration knows no such target."""
        found = self.breakers.get(target)
        model = self._keys.get(target)
        if found is None and model is not None:
            probe_s, slow_s = _times(model)
            found = self.breakers[target] = Breaker(
                KEY_POLICY, now=now, probe_s=probe_s, slow_s=slow_s, probes=1
            )
        return found

    # What it hears.

    def observe(self, event: AttemptFinished, now: float) -> None:
        """Keep the evidence warm, decide nothing: a standby."""
        site = self._sites.get(event.deployment)
        if site is None:
            return  # an attempt under a configuration that is gone, or not here yet
        key = self._key(event, site, now)
        if key is not None:
            key[1].observe(judge_key(event), now)
        self.breakers[event.deployment].observe(self._own_result(event, site), now)
        if site.scopes.region:
            self.breakers[site.scopes.region].observe(judge_region(event), now)

    def record(self, event: AttemptFinished, now: float, draw: float) -> list[Moved]:
        """Every breaker that this call moves."""
        site = self._sites.get(event.deployment)
        if site is None:
            return []
        moved: list[Moved] = []
        key = self._key(event, site, now)
        if key is not None:
            moved += self._record_key(*key, event, now, draw)
        own, result = self.breakers[event.deployment], self._own_result(event, site)
        if result.epoch > own.epoch:
            moved += _moved(event.deployment, own.catch_up(result.epoch))
        elif own.observe(result, now):
            moved += self.decide(event.deployment, now, draw)
        if site.scopes.region:
            moved += self._record_region(site.scopes.region, event, now, draw)
        return moved

    def claimed(self, target: str, epoch: int, now: float) -> bool:
        """Somebody wants the probe of that epoch. False: of no matter here."""
        breaker = self.breakers.get(target)
        return breaker is not None and breaker.claimed(epoch, now)

    def decide(self, target: str, now: float, draw: float) -> list[Moved]:
        """Act on the evidence: after a call, or when a standby becomes the owner."""
        breaker = self.breakers[target]
        if breaker.state != "closed":
            return _moved(target, breaker.decide(now, draw))
        if target in self._keys:
            if breaker.consecutive >= KEY_REFUSALS:
                return [Moved(target, breaker.open("key_refused", now, draw))]
            return []
        site = self._sites.get(target)
        if site is None:
            return []  # a provider-region opens for what its deployments see
        region = site.scopes.region
        if region and breaker.trouble(now) is not None and self._blames_region(region, target, now):
            for member in self._members[region]:
                if self.breakers[member].state == "closed":
                    self.breakers[member].forgive()
            return [Moved(region, self.breakers[region].open("several_deployments", now, draw))]
        return _moved(target, breaker.decide(now, draw))

    def _key(self, event: AttemptFinished, site: _Site, now: float) -> tuple[str, Breaker] | None:
        """The key's breaker, where there is one or this call is a reason to make it."""
        names = site.scopes.keys
        if not names:
            return None
        target = names[event.key % len(names)]
        found = self.breakers.get(target)
        if found is None and (judge_key(event).verdict is Verdict.failed or is_quota(event)):
            found = self.breaker(target, now)
        return None if found is None else (target, found)

    def _record_key(
        self, target: str, breaker: Breaker, event: AttemptFinished, now: float, draw: float
    ) -> list[Moved]:
        result = judge_key(event)
        if result.epoch > breaker.epoch:
            return _moved(target, breaker.catch_up(result.epoch))
        if is_quota(event):
            if result.epoch != breaker.epoch or breaker.state == "open":
                return []
            for_s = max(QUOTA_S, event.retry_after_s or 0.0)
            return [Moved(target, breaker.open("quota_exhausted", now, draw, for_s))]
        return self.decide(target, now, draw) if breaker.observe(result, now) else []

    def _record_region(
        self, region: str, event: AttemptFinished, now: float, draw: float
    ) -> list[Moved]:
        breaker, result = self.breakers[region], judge_region(event)
        if result.epoch > breaker.epoch:
            return _moved(region, breaker.catch_up(result.epoch))
        if not breaker.observe(result, now):
            return []
        if breaker.state == "closed" and breaker.trouble(now) != "ramp_failed":
            return []
        return _moved(region, breaker.decide(now, draw))

    def _own_result(self, event: AttemptFinished, site: _Site) -> Result:
        """What it says about the deployment: nothing, where the provider-region's trouble explains it."""
        result = judge(event)
        if site.scopes.region and of_the_provider(event):
            region = self.breakers[site.scopes.region]
            # A call from before it opened, or its probe.
            if region.state != "closed" or event.region_epoch != region.epoch:
                return Result(Verdict.nothing, result.epoch)
        return result

    def _blames_region(self, region: str, target: str, now: float) -> bool:
        if self.breakers[region].state != "closed" or not self.breakers[region].consecutive:
            return False
        failing = 0
        for member in self._members[region]:
            breaker = self.breakers[member]
            if member != target and breaker.succeeds(now):
                return False
            failing += breaker.state != "closed" or breaker.consecutive >= REGION_FAILURES
        return failing >= REGION_MEMBERS

    # Time.

    def tick(self, now: float) -> list[Moved]:
        return [
            Moved(target, change)
            for target, breaker in self.breakers.items()
            if (change := breaker.tick(now)) is not None
        ]

    def wake_at(self) -> float | None:
        """When `tick` has something to do first."""
        times = (breaker.wake_at() for breaker in self.breakers.values())
        return min((at for at in times if at is not None), default=None)


def _times(model: Model) -> tuple[float, float]:
    return model.timeouts.total_s + PROBE_GRACE_S, model.timeouts.first_token_s


def _moved(target: str, change: Change | None) -> list[Moved]:
    return [] if change is None else [Moved(target, change)]
