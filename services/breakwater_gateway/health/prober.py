"""Active probes: where `breaker.probe` is `active` and no caller's request comes by, health asks itself.

One call of one token through a worker, under the same cluster-wide claim as any probe, so there is never a
second one. It is an attempt like any other: `evt.attempt` tells its outcome, tokens and cost, and its
request id begins with `probe-`.
"""

from collections.abc import Callable
from functools import partial
from typing import Final

import msgspec
from msgspec import Raw

from breakwater_gateway.health.breaker import PROBE_GRACE_S
from breakwater_gateway.health.ward import Ward, Way
from breakwater_gateway.runtime.actor import Context
from breakwater_gateway.runtime.bus import BusError, Inbox, Message
from breakwater_gateway.runtime.tasks import TaskSet
from breakwater_protocol.commands import ProbeClaim, Work
from breakwater_protocol.views import LoadBoard

IDLE_S: Final = 2.0
"""So long a caller's request may come by and be the probe."""
TENANT: Final = "breakwater"


class Prober:
    def __init__(self, context: Context, ward: Ward) -> None:
        self._context = context
        self._ward = ward
        self._loads = LoadBoard()
        self._tasks = TaskSet(context.log)
        self._nowhere: Inbox | None = None

    def on_heartbeat(self, message: Message) -> None:
        try:
            beat = self._context.subjects.heartbeat.decode(message.data)
        except msgspec.MsgspecError as error:
            self._context.log.warning("bad_event", subject=message.subject, error=str(error)[:200])
            return
        self._loads.fold(beat, self._context.clock.now())

    def watch(self, target: str, leads: Callable[[], bool]) -> None:
        """The target turned half-open."""
        way = self._ward.way_to(target)
        if way is None or way.model.breaker.probe != "active":
            return
        breaker = self._ward.breakers[target]
        look = partial(self._look, target, breaker.epoch, leads)
        self._context.clock.call_at(self._context.clock.now() + IDLE_S, look)

    async def close(self) -> None:
        await self._tasks.cancel()
        if self._nowhere is not None:
            self._nowhere.close()
            self._nowhere = None

    def _look(self, target: str, epoch: int, leads: Callable[[], bool]) -> None:
        breaker = self._ward.breakers.get(target)
        if breaker is None or (breaker.state, breaker.epoch) != ("half_open", epoch) or not leads():
            return
        way = self._ward.way_to(target)
        if way is not None:
            self._tasks.spawn(self._probe(target, epoch, way, leads))

    async def _probe(self, target: str, epoch: int, way: Way, leads: Callable[[], bool]) -> None:
        context, model = self._context, way.model
        deployment = next(d for d in model.deployments if d.id == way.deployment)
        if deployment.model.endswith("*"):
            return  # what to ask for is the caller's to say
        now = context.clock.now()
        worker = self._loads.choose_worker(deployment.pool, context.clock.draw(), now=now)
        if worker is None:
            look = partial(self._look, target, epoch, leads)
            context.clock.call_at(now + IDLE_S, look)
            return
        total_s = model.timeouts.total_s
        place = context.subjects.probe.at(target, str(epoch))
        claim = context.subjects.probe.encode(ProbeClaim(context.id))
        try:
            context.bus.publish(place, claim)
            won = await context.bus.claim(place, claim, ttl_s=total_s + PROBE_GRACE_S)
            if won:
                work = self._work(target, epoch, way)
                context.bus.publish(
                    context.subjects.work.at(worker), context.subjects.work.encode(work)
                )
        except BusError as error:
            context.log.warning("probe_not_made", target=target, error=repr(error))

    def _work(self, target: str, epoch: int, way: Way) -> Work:
        model = way.model
        deployment = next(d for d in model.deployments if d.id == way.deployment)
        permit = self._ward.permit(way, target)
        asked = {
            "model": model.name,
            "messages": [{"role": "user", "content": "ping"}],
            "max_tokens": 1,
        }
        if self._nowhere is None:
            self._nowhere = self._context.bus.open_inbox(_unheard)
        timeouts = model.timeouts
        return Work(
            request=f"probe-{target}-{epoch}",
            attempt=1,
            tenant=TENANT,
            api="chat",
            model=model.name,
            provider_model=deployment.provider_model(model.name, name=model.name),
            deployment=deployment.id,
            target=deployment.id,
            answer_to=self._nowhere.subject,
            body=Raw(msgspec.json.encode(asked)),
            connect_s=timeouts.connect_s,
            first_token_s=timeouts.first_token_s,
            idle_s=timeouts.idle_s,
            total_s=timeouts.total_s,
            key=way.key,
            epoch=permit.deployment,
            key_epoch=permit.key,
            region_epoch=permit.region,
        )


def _unheard(message: Message) -> None:
    """The answer's text is of no interest: its attempt tells how it went."""
