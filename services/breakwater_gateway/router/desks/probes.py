"""The router's desk for probes: who may call a half-open target, and what becomes of a right not used.

One probe per epoch in the whole cluster, one claim per epoch of this router.
"""

from collections.abc import Callable
from functools import partial
from typing import Final

from breakwater_gateway.config.targets import kind_of
from breakwater_gateway.router.desks.tell import tell
from breakwater_gateway.router.life import Life
from breakwater_gateway.router.plan import Candidate
from breakwater_gateway.router.targets import Targets
from breakwater_gateway.runtime.actor import Context
from breakwater_gateway.runtime.bus import BusError
from breakwater_gateway.runtime.tasks import TaskSet
from breakwater_protocol import cloudevents
from breakwater_protocol import failures as f
from breakwater_protocol.commands import ProbeClaim
from breakwater_protocol.events import AttemptFinished

_EXTRA_S: Final = 5.0


class Probes:
    def __init__(
        self,
        context: Context,
        *,
        targets: Targets,
        tasks: TaskSet,
        advance: Callable[[Life], None],
    ) -> None:
        self._context = context
        self._targets = targets
        self._tasks = tasks
        self._advance = advance

    def claim(self, life: Life, candidate: Candidate) -> None:
        """The life's plan wants this probe: it is asked again when the claim is won or lost."""
        if self._targets.may_claim(candidate):
            self._tasks.spawn(self._claim(life, candidate))
        else:
            clock = self._context.clock
            life.plan.claimed(candidate, won=False)
            life.wait(clock.call_at(clock.now(), partial(self._advance, life)))

    async def _claim(self, life: Life, candidate: Candidate) -> None:
        context = self._context
        target, epoch = candidate.place
        place = context.subjects.probe.at(target, str(epoch))
        claim = context.subjects.probe.encode(ProbeClaim(context.id))
        won = False
        # Said first: whoever dies with the probe in hand has said so.
        tell(context, place, claim, {})
        try:
            # As long as the call may last: within it nobody else may take the same claim.
            ttl_s = life.plan.deadline - context.clock.now() + _EXTRA_S
            won = await context.bus.claim(place, claim, ttl_s=ttl_s)
        except BusError as error:
            context.log.warning("probe_not_claimed", target=target, error=repr(error))
        if not life.over:
            life.plan.claimed(candidate, won=won)
            life.probe = candidate if won else None
            self._advance(life)
        elif won:
            life.probe = candidate
            self.give_back(life, f.WorkerBusy())

    def give_back(self, life: Life, failure: f.Failure) -> None:
        """The probe that this request won was not made, or whoever made it is gone: let another be claimed."""
        candidate, life.probe = life.probe, None
        if candidate is None:
            return
        context = self._context
        outcome, at = f.kind(failure), context.clock.wall()
        deployment = self._targets.deployment(life.model, candidate.deployment)
        event = AttemptFinished(
            request=life.request_id,
            attempt=life.plan.attempts,
            tenant=life.tenant,
            model=life.asked.model,
            deployment=deployment.id,
            target=candidate.target,
            provider=deployment.provider,
            worker="",
            outcome=outcome,
            at=at,
            epoch=candidate.epoch,
            failure=outcome,
            api=life.api,
            stream=life.stream,
            key=candidate.usable_keys[0] if candidate.usable_keys else 0,
            region=deployment.region,
            key_epoch=candidate.probe_epoch if kind_of(candidate.probe_of) == "key" else -1,
            region_epoch=candidate.region_epoch,
        )
        subject = context.subjects.attempt
        headers = cloudevents.headers_for(
            AttemptFinished,
            source=f"router/{context.id}",
            at=at,
            id_=context.clock.new_id("evt_"),
        )
        tell(context, subject.at(candidate.target, outcome), subject.encode(event), headers)
