"""Router: owns the plan and the attempts of each request in flight.

Message-driven throughout: a request, a worker's reply, a health event or a timer comes in, the pure plan
says what to do, and the shell does it. There is no task per request; the answer itself goes from the
worker straight to the caller.
"""

import asyncio
from functools import partial
from typing import ClassVar, Final

import anyio
import msgspec
from anyio.abc import TaskGroup
from msgspec import Raw, Struct

from breakwater_gateway.config.model import Config
from breakwater_gateway.router.life import Life
from breakwater_gateway.router.options import Options, read_options
from breakwater_gateway.router.plan import (
    Candidate,
    Claim,
    Dispatch,
    GiveUp,
    Plan,
    Skipped,
    Wait,
)
from breakwater_gateway.router.requests import decode_request
from breakwater_gateway.router.retry import RetryBudget
from breakwater_gateway.router.targets import Targets
from breakwater_gateway.runtime.actor import Actor, Context, Load
from breakwater_gateway.runtime.answers import error_body, error_headers
from breakwater_gateway.runtime.bus import (
    BusError,
    Entry,
    Inbox,
    Message,
    MessageTooLarge,
    Subscription,
    Watch,
)
from breakwater_gateway.runtime.tasks import TaskSet
from breakwater_gateway.runtime.telemetry import Counter, Histogram
from breakwater_protocol import cloudevents
from breakwater_protocol import failures as f
from breakwater_protocol import headers as h
from breakwater_protocol.chat import (
    ChatRequest,
    EmbeddingsRequest,
    ModelEntry,
    ModelList,
    NativeRequest,
)
from breakwater_protocol.commands import (
    Cancel,
    Finished,
    ProbeClaim,
    Started,
    WorkReply,
)
from breakwater_protocol.events import BreakerChanged, RequestFinished
from breakwater_protocol.subjects import BadToken, Subject

_PING_S: Final = 0.25
"""How often workers that hold our work are asked whether they are there."""
_PING_MISSES_MAX: Final = 6
"""Pings without any reply before a worker counts as lost: a silent partition."""
_GRACE_S: Final = 0.5
"""How long after the deadline the worker's own timers may take to end the attempt."""
_FIRST_WORKER_S: Final = 1.2
"""Workers beat twice a second: whoever is there has been heard by then."""
_PROBE_EXTRA_S: Final = 5.0
_BUSY_S: Final = 0.02
"""Before another worker is chosen, so that a fleet that is full is not asked in a circle."""
NATIVE_HEADER_MAX: Final = 2048
_TENANTS_KEPT: Final = 16_384

_replies = msgspec.json.Decoder(WorkReply)


class _Meters(Struct, frozen=True):
    requests: Counter
    duration: Histogram
    overhead: Histogram


class Router(Actor):
    kind: ClassVar[str] = "router"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._targets = Targets()
        self._live: dict[str, Life] = {}
        self._holding: dict[str, set[str]] = {}
        """Requests in each worker's hands."""
        self._missed: dict[str, int] = {}
        self._pings: dict[str, Inbox] = {}
        self._tenants: dict[str, str] = {}
        """By the subject they ask on."""
        self._turn = 0
        self._tasks = TaskSet(context.log)
        self._heard_worker = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._subscriptions: list[Subscription] = []
        self._watch: Watch | None = None
        self._meters: dict[tuple[str, str, str, str], _Meters] = {}
        self._inflight = context.metrics.gauge("breakwater_inflight", actor=self.kind)

    # ------------------------------------------------------------ life

    async def start(self, tasks: TaskGroup) -> None:
        bus, subjects = self.context.bus, self.context.subjects
        store = await bus.store("bw_health")
        self._watch = await store.watch(self._on_health_entry)
        self._subscriptions = [
            await bus.subscribe(subjects.health.any(), self._on_health),
            await bus.subscribe(subjects.heartbeat.any(), self._on_heartbeat),
            await bus.subscribe(f"{subjects.root}.evt.attempt.*.rate_limited", self._on_throttled),
            await bus.subscribe(subjects.cancel.any(), self._on_cancel),
        ]
        # A newcomer that shares the queue before it knows a worker would refuse what others can serve.
        with anyio.move_on_after(_FIRST_WORKER_S):
            await self._heard_worker.wait()
        self._subscriptions += [
            *[
                await bus.subscribe(
                    subject.any(), partial(self._on_request, subject, api), queue=self.kind
                )
                for api, subject in (
                    ("chat", subjects.chat),
                    ("embeddings", subjects.embeddings),
                    ("messages", subjects.messages),
                    ("responses", subjects.responses),
                    ("generate", subjects.generate),
                )
            ],
            # Last: whoever is answered with the models may ask for anything.
            await bus.subscribe(subjects.models.any(), self._on_models, queue=self.kind),
        ]
        tasks.start_soon(self._watch_workers)

    async def drain(self) -> None:
        self.draining = True
        requests = self._subscriptions[4:]
        for subscription in requests:
            await subscription.drain()
        await self._idle.wait()
        await self._tasks.join()
        for subscription in self._subscriptions[:4]:
            await subscription.drain()
        if self._watch is not None:
            await self._watch.close()
        await self.context.bus.flush()

    async def stop(self) -> None:
        for life in list(self._live.values()):
            self._answer_failure(life, f.Overloaded("the router was stopped", retry_after_s=1.0))
        await self._tasks.cancel()
        for inbox in self._pings.values():
            inbox.close()

    def on_config(self, config: Config, revision: int) -> None:
        super().on_config(config, revision)
        self._targets.retain({d.id for m in config.models.values() for d in m.deployments})

    def load(self) -> Load:
        return Load(
            capacity=self.config.limits.in_flight,
            in_flight=len(self._live),
            view_hash=self._targets.breakers.hash(),
        )

    def ready(self) -> str:
        if not self.config.models:
            return "no model is configured"
        if not self._targets.loads.serves(""):
            return "no worker has been heard of"
        return ""

    # ------------------------------------------------------------ views

    def _on_health(self, message: Message) -> None:
        try:
            self._targets.fold(self.context.subjects.health.decode(message.data))
        except msgspec.MsgspecError as error:
            self.context.log.warning("bad_event", subject=message.subject, error=str(error))

    def _on_health_entry(self, entry: Entry) -> None:
        if entry.value is None:
            return
        try:
            self._targets.fold(msgspec.json.decode(entry.value, type=BreakerChanged))
        except msgspec.MsgspecError as error:
            self.context.log.warning("bad_entry", key=entry.key, error=str(error))

    def _on_heartbeat(self, message: Message) -> None:
        try:
            beat = self.context.subjects.heartbeat.decode(message.data)
        except msgspec.MsgspecError as error:
            self.context.log.warning("bad_event", subject=message.subject, error=str(error))
            return
        self._targets.loads.fold(beat, self.context.clock.now())
        if beat.actor == "worker":
            self._heard_worker.set()

    def _on_throttled(self, message: Message) -> None:
        """A 429 pauses the target for every router, not each request on its own."""
        try:
            event = self.context.subjects.attempt.decode(message.data)
        except msgspec.MsgspecError as error:
            self.context.log.warning("bad_event", subject=message.subject, error=str(error))
            return
        if event.retry_after_s is not None and self.config.deployment(event.target) is not None:
            now = self.context.clock.now()
            self._targets.pause(event.target, event.retry_after_s, now=now)

    # ------------------------------------------------------------ requests in

    def _on_models(self, message: Message) -> None:
        if message.reply:
            models = ModelList([ModelEntry(name) for name in self.config.models])
            self._publish(message.reply, msgspec.json.encode(models), {})

    def _on_request(self, subject: Subject[Raw], api: str, message: Message) -> None:
        if not message.reply:
            self.context.log.warning("request_without_reply", subject=message.subject[:200])
            return
        request_id = ""
        options = read_options(message.headers)
        if isinstance(options, Options):
            request_id = options.request_id or self.context.clock.new_id("req_")
            life = self._admit(subject, api, message, options, request_id)
        else:
            life = options
        if isinstance(life, Life):
            self._advance(life)
        else:
            self._refuse(message.reply, api, life, request_id)

    def _admit(
        self,
        subject: Subject[Raw],
        api: str,
        message: Message,
        options: Options,
        request_id: str,
    ) -> Life | f.Failure:
        now = self.context.clock.now()
        tenant = self._tenants.get(message.subject)
        if tenant is None:
            try:
                (tenant,) = subject.names(message.subject)
            except BadToken as error:
                return f.InvalidRequest(f"the tenant is no token: {error}")
            if len(self._tenants) >= _TENANTS_KEPT:
                self._tenants.clear()
            self._tenants[message.subject] = tenant
        if len(self._live) >= self.config.limits.in_flight:
            return f.Overloaded("the router is at capacity", retry_after_s=1.0)
        if request_id in self._live:
            return f.InvalidRequest(
                "a request of this id is in flight: send each id once, or leave it out",
                param=h.REQUEST_ID,
            )
        asked = decode_request(message.data, api=api, limit=self.config.limits.body_bytes)
        if not isinstance(asked, ChatRequest | EmbeddingsRequest | NativeRequest):
            return asked
        model = self.config.model(asked.model)
        if model is None:
            return self._unknown(asked.model)
        total_s = model.timeouts.total_s if options.total_s is None else options.total_s
        self._turn += 1
        life = Life(
            request_id=request_id,
            tenant=tenant,
            api=api,
            reply=message.reply,
            body=message.data,
            asked=asked,
            model=model,
            options=options,
            plan=Plan(
                policy=model.retry,
                deadline=now + total_s,
                first_key=self._turn,
                spread=self.context.clock.draw(),
            ),
            began=now,
        )
        if api == "messages":
            life.native_headers = {
                name: message.headers[name][:NATIVE_HEADER_MAX]
                for name in h.NATIVE
                if name in message.headers
            }
        life.inbox = self.context.bus.open_inbox(partial(self._on_reply, life))
        self._live[request_id] = life
        self._inflight.set(len(self._live))
        self._idle.clear()
        return life

    def _unknown(self, name: str) -> f.UnknownModel:
        known = [m for m in self.config.models if not m.endswith("*")]
        shown = ", ".join(known[:5]) or "none by name"
        return f.UnknownModel(
            f"there is no model {name[:100]!r} here: configured are {shown}"
            + (" and more" if len(known) > 5 else "")
        )

    def _refuse(self, reply: str, api: str, failure: f.Failure, request_id: str) -> None:
        """A request that never began: answered at once, counted, and nothing kept."""
        extra = {h.REQUEST_ID: request_id} if request_id else None
        self._publish(reply, error_body(failure, api, request_id), error_headers(failure, extra))
        self._measure("", "", f.spec(failure).code, "error").requests.add()

    # ------------------------------------------------------------ the plan

    def _advance(self, life: Life) -> None:
        """Ask the plan and do what it says, until something has to be waited for."""
        clock = self.context.clock
        while life.request_id in self._live:
            now = clock.now()
            candidates, skipped = self._choices(life, now)
            step = life.plan.next(candidates, skipped, now=now)
            match step:
                case Dispatch():
                    if step.repeat and not self._budget(life, step).take(now):
                        life.note("answer", now=now, reason="retry_budget")
                        self._answer_failure(life, life.plan.last or f.NoDeployment())
                        return
                    if self._dispatch(life, step, now):
                        return
                case Claim(candidate):
                    self._claim(life, candidate)
                    return
                case Wait(until, reason):
                    wait_ms = max(0.0, until - now) * 1000
                    life.note("wait", now=now, reason=reason, wait_ms=wait_ms)
                    life.provider_ms += wait_ms
                    self._set_timer(life, until, partial(self._advance, life))
                    return
                case GiveUp(failure):
                    self._answer_failure(life, failure)
                    return

    def _choices(self, life: Life, now: float) -> tuple[tuple[Candidate, ...], tuple[Skipped, ...]]:
        targets, model, clock = self._targets, life.model, self.context.clock
        wall = clock.wall()
        if not life.decisions:
            first = targets.first(model, now=now, now_wall=wall, draw=clock.draw)
            if first is not None:
                return (first,), ()
        claiming, life.claiming = life.claiming, False
        return targets.order(model, now=now, now_wall=wall, draw=clock.draw, claiming=claiming)

    def _budget(self, life: Life, step: Dispatch) -> RetryBudget:
        return self._targets.budget(step.candidate.target, life.model.retry.budget)

    def _dispatch(self, life: Life, step: Dispatch, now: float) -> bool:
        """Hand the attempt to a worker. False when none could take it: the plan is asked again."""
        clock, target = self.context.clock, step.candidate.target
        deployment = self._targets.deployment(life.model, step.candidate.deployment)
        worker = self._targets.loads.choose_worker(deployment.pool, clock.draw(), now=now)
        life.dispatch = step
        life.started = False
        if worker is None:
            life.plan.turned_away()
            return False
        if not step.repeat:
            self._budget(life, step).request(now)
        work = life.work(step, deployment, now=now)
        life.note(
            "dispatch",
            now=now,
            deployment=deployment.id,
            worker=worker,
            epoch=step.candidate.epoch,
            reason="probe" if step.candidate.probe else life.model.strategy,
        )
        life.worker = worker
        self._holding.setdefault(worker, set()).add(life.request_id)
        self._targets.loads.dispatched(worker, target, life.request_id)
        reply = life.inbox.subject if life.inbox is not None else ""
        subjects = self.context.subjects
        try:
            self.context.bus.publish(
                subjects.work.at(worker), subjects.work.encode(work), reply=reply
            )
        except MessageTooLarge as error:
            self._release(life)
            self._answer_failure(life, f.PayloadTooLarge(f"{error}: send a smaller body"))
        except BusError as error:
            self.context.log.warning("work_not_sent", request=life.request_id, error=repr(error))
            self._release(life)
            self._answer_failure(
                life, f.Overloaded("the gateway's bus is unavailable", retry_after_s=1.0)
            )
        return True

    def _claim(self, life: Life, candidate: Candidate) -> None:
        """One probe per epoch in the whole cluster; one claim per epoch of this router."""
        if self._targets.may_claim(candidate):
            self._tasks.spawn(self._claim_probe(life, candidate))
        else:
            life.plan.claimed(candidate, won=False)
            self._set_timer(life, self.context.clock.now(), partial(self._advance, life))

    async def _claim_probe(self, life: Life, candidate: Candidate) -> None:
        subject = self.context.subjects.probe
        won = False
        try:
            won = await self.context.bus.claim(
                subject.at(candidate.target, str(candidate.epoch)),
                subject.encode(ProbeClaim(self.context.id)),
                ttl_s=life.first_token_s + _PROBE_EXTRA_S,
            )
        except BusError as error:
            self.context.log.warning(
                "probe_not_claimed", target=candidate.target, error=repr(error)
            )
        if life.request_id in self._live:
            life.plan.claimed(candidate, won=won)
            life.claiming = won
            self._advance(life)

    # ------------------------------------------------------------ replies

    def _on_reply(self, life: Life, message: Message) -> None:
        if life.request_id not in self._live:
            return
        if message.no_responders:
            # The worker's subject has no listener: it was never asked.
            self._targets.loads.remove(life.worker)
            self._release(life)
            life.plan.turned_away()
            self._advance(life)
            return
        try:
            reply = _replies.decode(message.data)
        except msgspec.MsgspecError as error:
            self.context.log.error("bad_reply", request=life.request_id, error=str(error))
            return
        step = life.dispatch
        if step is None or reply.attempt != step.attempt or reply.worker != life.worker:
            return  # of an attempt already given up
        if isinstance(reply, Started):
            life.started = True
            return
        self._on_finished(life, reply)

    def _on_finished(self, life: Life, reply: Finished) -> None:
        failure = reply.failure
        life.provider_ms += reply.provider_ms
        self._release(life)
        if failure is None or reply.answered:
            self._end(life, reply)
            return
        if isinstance(failure, f.WorkerBusy):
            now = self.context.clock.now()
            life.note("skip", now=now, reason="worker_busy")
            life.plan.turned_away()
            self._set_timer(life, now + _BUSY_S, partial(self._advance, life))
            return
        self._failed(life, failure)

    def _failed(self, life: Life, failure: f.Failure) -> None:
        step, now = life.dispatch, self.context.clock.now()
        if isinstance(failure, f.RateLimited) and step is not None:
            self._targets.pause(step.candidate.target, f.retry_after_s(failure) or 0.0, now=now)
        life.note("failed", now=now, deployment=life.deployment, reason=f.kind(failure))
        life.plan.failed(failure, now=now, draw=self.context.clock.draw())
        self._advance(life)

    def _on_cancel(self, message: Message) -> None:
        try:
            cancel = self.context.subjects.cancel.decode(message.data)
        except msgspec.MsgspecError as error:
            self.context.log.warning("bad_cancel", subject=message.subject, error=str(error))
            return
        life = self._live.get(cancel.request)
        if life is None or cancel.attempt:
            return
        if life.worker:
            return  # the worker heard it too, and tells how far it had come
        self._end(life, None, failure=f.Cancelled(cancel.reason))

    def _on_deadline(self, life: Life) -> None:
        """The worker's own timers should have ended the attempt: it is silent, so we answer."""
        self._abandon(life, "deadline")
        self._lost(life, f.TotalTimeout("the deadline of the request passed"))

    def _lost(self, life: Life, failure: f.Failure) -> None:
        """The attempt's worker will not answer any more."""
        started = life.started
        self._release(life)
        if started:
            kind = f.kind(failure)
            facts = life.facts("primary")
            facts.update({h.END: "partial", h.PARTIAL: kind, h.COST_USD: "unknown"})
            self._publish(life.reply, b"", facts)
            self._end(life, None, failure=failure, partial=kind)
        elif isinstance(failure, f.TotalTimeout):
            self._answer_failure(life, failure)
        else:
            self._failed(life, failure)

    def _abandon(self, life: Life, reason: str) -> None:
        """Should the worker live after all, it must stop this attempt."""
        if life.dispatch is None:
            return
        subject = self.context.subjects.cancel
        self._publish(
            subject.at(life.request_id),
            subject.encode(Cancel(life.request_id, reason, attempt=life.dispatch.attempt)),
            {},
        )

    # ------------------------------------------------------------ workers that vanish

    async def _watch_workers(self) -> None:
        """Ask each worker that holds our work whether it is there: a dead one has no responders.

        Deadlines are looked at here too: the worker's own timers are the exact ones.
        """
        while True:
            await asyncio.sleep(_PING_S)
            late = self.context.clock.now() - _GRACE_S
            for life in [x for x in self._live.values() if x.worker and x.plan.deadline <= late]:
                self._on_deadline(life)
            for worker in list(self._holding):
                missed = self._missed.get(worker, 0)
                if missed >= _PING_MISSES_MAX:
                    self._on_worker_lost(worker)
                    continue
                inbox = self._pings.get(worker)
                if inbox is None:
                    inbox = self._pings[worker] = self.context.bus.open_inbox(
                        partial(self._on_pong, worker)
                    )
                self._missed[worker] = missed + 1
                self._publish(self.context.subjects.ping.at(worker), b"", {}, inbox.subject)
            for worker in [w for w in self._pings if w not in self._holding]:
                self._pings.pop(worker).close()
                self._missed.pop(worker, None)

    def _on_pong(self, worker: str, message: Message) -> None:
        if message.no_responders:
            self._on_worker_lost(worker)
        else:
            self._missed[worker] = 0

    def _on_worker_lost(self, worker: str) -> None:
        held = self._holding.pop(worker, set())
        self._missed.pop(worker, None)
        self._targets.loads.remove(worker)
        if held:
            self.context.log.warning("worker_lost", worker=worker, requests=len(held))
        for request_id in held:
            life = self._live.get(request_id)
            if life is not None and life.worker == worker:
                self._abandon(life, "worker_lost")
                self._lost(life, f.WorkerLost("the worker that held the request is gone"))

    def _release(self, life: Life) -> None:
        """The attempt is out of its worker's hands."""
        worker, life.worker = life.worker, ""
        if life.timer is not None:
            life.timer.cancel()
            life.timer = None
        held = self._holding.get(worker)
        if held is not None:
            held.discard(life.request_id)
            if not held:
                del self._holding[worker]
        if worker and life.dispatch is not None:
            self._targets.loads.finished(worker, life.dispatch.candidate.target, life.request_id)

    # ------------------------------------------------------------ the end

    def _answer_failure(self, life: Life, failure: f.Failure) -> None:
        body = error_body(failure, life.api, life.request_id)
        self._publish(life.reply, body, error_headers(failure, life.facts("error")))
        self._end(life, None, failure=failure)

    def _end(
        self,
        life: Life,
        reply: Finished | None,
        *,
        failure: f.Failure | None = None,
        partial: str = "",
    ) -> None:
        self._release(life)
        if life.inbox is not None:
            life.inbox.close()
        if self._live.pop(life.request_id, None) is None:
            return
        self._inflight.set(len(self._live))
        if not self._live:
            self._idle.set()
        if reply is not None:
            failure, partial = reply.failure, reply.partial
        clock, context = self.context.clock, self.context
        event = life.finished(
            now=clock.now(),
            at=clock.wall(),
            router=context.id,
            config_revision=self.config_revision,
            reply=reply,
            failure=failure,
            partial=partial,
        )
        meters = self._measure(life.model.name, event.deployment, event.outcome, event.rung)
        meters.requests.add()
        meters.duration.observe(event.duration_ms / 1000)
        meters.overhead.observe(event.overhead_ms / 1000)
        self._publish(
            context.subjects.request.at(life.tenant, event.outcome),
            context.subjects.request.encode(event),
            cloudevents.headers_for(
                RequestFinished,
                source=f"router/{context.id}",
                at=event.at,
                id_=clock.new_id("evt_"),
                traceparent=event.traceparent,
            ),
        )
        context.log.info(
            "request",
            request=event.request,
            tenant=event.tenant,
            model=event.model,
            deployment=event.deployment,
            outcome=event.outcome,
            attempts=event.attempts,
            stream=event.stream,
            duration_ms=round(event.duration_ms, 2),
            failure="" if failure is None else f.kind(failure),
        )

    # ------------------------------------------------------------ small things

    def _set_timer(self, life: Life, when: float, callback: "partial[None]") -> None:
        if life.timer is not None:
            life.timer.cancel()
        life.timer = self.context.clock.call_at(when, callback)

    def _publish(self, subject: str, data: bytes, headers: dict[str, str], reply: str = "") -> None:
        try:
            self.context.bus.publish(subject, data, headers=headers, reply=reply)
        except BusError as error:
            self.context.log.warning("not_sent", subject=subject[:200], error=repr(error))

    def _measure(self, model: str, deployment: str, outcome: str, rung: str) -> _Meters:
        place = (model, deployment, outcome, rung)
        meters = self._meters.get(place)
        if meters is None:
            metrics = self.context.metrics
            meters = self._meters[place] = _Meters(
                requests=metrics.counter(
                    "breakwater_requests_total",
                    model=model,
                    deployment=deployment,
                    outcome=outcome,
                    rung=rung,
                ),
                duration=metrics.histogram("breakwater_request_duration_seconds", model=model),
                overhead=metrics.histogram("breakwater_overhead_seconds", model=model),
            )
        return meters
