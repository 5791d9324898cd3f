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

from breakwater_gateway.config.model import Config, Deployment, Model
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
from breakwater_gateway.router.strategies import STRATEGIES, Filtered, Group, filter_targets
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
    Work,
    WorkReply,
)
from breakwater_protocol.events import BreakerChanged, Decision, RequestFinished
from breakwater_protocol.subjects import BadToken, Subject
from breakwater_protocol.views import BreakerBoard, LoadBoard

_PING_S: Final = 0.25
"""How often workers that hold our work are asked whether they are there."""
_PING_MISSES_MAX: Final = 6
"""Pings without any reply before a worker counts as lost: a silent partition."""
_GRACE_S: Final = 0.5
"""How long after the deadline the worker's own timers may take to end the attempt."""
_FIRST_WORKER_S: Final = 1.2
"""Workers beat twice a second: whoever is there has been heard by then."""
_PROBE_EXTRA_S: Final = 5.0
_CLAIMS_KEPT: Final = 4096
NATIVE_HEADER_MAX: Final = 2048
_LOOK_S: Final = 1.0
_TENANTS_KEPT: Final = 16_384

_replies = msgspec.json.Decoder(WorkReply)


class _Life:
    """One request in flight."""

    __slots__ = (
        "api",
        "began",
        "body",
        "claiming",
        "decisions",
        "dispatch",
        "first_token_s",
        "ids",
        "inbox",
        "include_usage",
        "model",
        "model_name",
        "native_headers",
        "options",
        "plan",
        "provider_ms",
        "reply",
        "request_id",
        "started",
        "stream",
        "tenant",
        "timer",
        "worker",
    )

    def __init__(
        self,
        *,
        request_id: str,
        tenant: str,
        api: str,
        reply: str,
        body: bytes,
        model: Model,
        model_name: str,
        options: Options,
        plan: Plan,
        began: float,
    ) -> None:
        self.request_id = request_id
        self.tenant = tenant
        self.api = api
        self.reply = reply
        self.body = body
        self.model = model
        self.model_name = model_name
        self.options = options
        self.plan = plan
        self.began = began
        self.stream = False
        self.include_usage = False
        self.native_headers: dict[str, str] = {}
        self.first_token_s = model.timeouts.first_token_s
        self.inbox: Inbox | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.dispatch: Dispatch | None = None
        self.worker = ""
        self.started = False
        self.claiming = False
        self.provider_ms = 0.0
        """Waited for providers and backoff so far: not overhead of ours."""
        self.decisions: list[Decision] = []


class _Ready(Struct, frozen=True):
    """A model's targets that may be called, for as long as nothing the views say has changed."""

    model: Model
    views: tuple[int, int]
    until: float
    """When a dropped target's reason ends."""
    group: Group | None
    """None: the first choice needs the whole look (a probe is due, or nothing is usable)."""
    by_id: dict[str, Deployment]


class _Meters(Struct, frozen=True):
    requests: Counter
    duration: Histogram
    overhead: Histogram


class Router(Actor):
    kind: ClassVar[str] = "router"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._breakers = BreakerBoard()
        self._loads = LoadBoard()
        self._not_before: dict[str, float] = {}
        self._budgets: dict[str, RetryBudget] = {}
        self._live: dict[str, _Life] = {}
        self._holding: dict[str, set[str]] = {}
        """Requests in each worker's hands."""
        self._missed: dict[str, int] = {}
        self._pings: dict[str, Inbox] = {}
        self._claims: dict[tuple[str, int], bool] = {}
        self._tenants: dict[str, str] = {}
        """By the subject they ask on."""
        self._ready: dict[str, _Ready] = {}
        self._changes = 0
        """Of the breaker view and of pauses: what was looked up before holds no longer."""
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
            await bus.subscribe(subjects.models.any(), self._on_models, queue=self.kind),
            *[
                await bus.subscribe(
                    subject.any(), partial(self._on_request, subject, api), queue=self.kind
                )
                for api, subject in (
                    ("embeddings", subjects.embeddings),
                    ("messages", subjects.messages),
                    ("responses", subjects.responses),
                    ("generate", subjects.generate),
                )
            ],
            await bus.subscribe(
                subjects.chat.any(),
                partial(self._on_request, subjects.chat, "chat"),
                queue=self.kind,
            ),
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
        known = {d.id for m in config.models.values() for d in m.deployments}
        self._breakers.retain(known)
        self._not_before = {t: at for t, at in self._not_before.items() if t in known}
        self._budgets = {t: budget for t, budget in self._budgets.items() if t in known}
        self._ready.clear()

    def load(self) -> Load:
        return Load(
            capacity=self.config.limits.in_flight,
            in_flight=len(self._live),
            view_hash=self._breakers.hash(),
        )

    def ready(self) -> str:
        if not self.config.models:
            return "no model is configured"
        if not self._loads.serves(""):
            return "no worker has been heard of"
        return ""

    # ------------------------------------------------------------ views

    def _on_health(self, message: Message) -> None:
        try:
            self._changes += self._breakers.fold(self.context.subjects.health.decode(message.data))
        except msgspec.MsgspecError as error:
            self.context.log.warning("bad_event", subject=message.subject, error=str(error))

    def _on_health_entry(self, entry: Entry) -> None:
        if entry.value is None:
            return
        try:
            self._changes += self._breakers.fold(
                msgspec.json.decode(entry.value, type=BreakerChanged)
            )
        except msgspec.MsgspecError as error:
            self.context.log.warning("bad_entry", key=entry.key, error=str(error))

    def _on_heartbeat(self, message: Message) -> None:
        try:
            beat = self.context.subjects.heartbeat.decode(message.data)
        except msgspec.MsgspecError as error:
            self.context.log.warning("bad_event", subject=message.subject, error=str(error))
            return
        self._loads.fold(beat, self.context.clock.now())
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
            self._pause(event.target, event.retry_after_s)

    def _pause(self, target: str, seconds: float) -> None:
        until = self.context.clock.now() + min(seconds, 120.0)
        self._not_before[target] = max(until, self._not_before.get(target, 0.0))
        self._changes += 1

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
        if isinstance(life, _Life):
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
    ) -> _Life | f.Failure:
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
        life = _Life(
            request_id=request_id,
            tenant=tenant,
            api=api,
            reply=message.reply,
            body=message.data,
            model=model,
            model_name=asked.model,
            options=options,
            plan=Plan(
                policy=model.retry,
                deadline=now + total_s,
                first_key=self._turn,
                spread=self.context.clock.draw(),
            ),
            began=now,
        )
        if isinstance(asked, NativeRequest):
            life.stream = bool(asked.stream)
        elif isinstance(asked, ChatRequest):
            life.stream = bool(asked.stream)
            life.include_usage = bool(asked.stream_options and asked.stream_options.include_usage)
        if api == "messages":
            life.native_headers = {
                name: message.headers[name][:NATIVE_HEADER_MAX]
                for name in h.NATIVE
                if name in message.headers
            }
        if options.first_token_s is not None:
            life.first_token_s = options.first_token_s
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

    def _advance(self, life: _Life) -> None:
        """Ask the plan and do what it says, until something has to be waited for."""
        clock = self.context.clock
        while life.request_id in self._live:
            now = clock.now()
            first = self._first_choice(life, now) if not life.decisions else None
            candidates, skipped = (
                ((first,), ()) if first is not None else self._options_now(life, now)
            )
            step = life.plan.next(candidates, skipped, now=now)
            match step:
                case Dispatch():
                    if step.repeat and not self._budget(step.candidate.target, life).take(now):
                        self._note(life, "answer", reason="retry_budget")
                        self._answer_failure(life, life.plan.last or f.NoDeployment())
                        return
                    if self._dispatch(life, step, now):
                        return
                case Claim(candidate):
                    self._claim(life, candidate)
                    return
                case Wait(until, reason):
                    wait_ms = max(0.0, until - now) * 1000
                    self._note(life, "wait", reason=reason, wait_ms=wait_ms)
                    life.provider_ms += wait_ms
                    self._set_timer(life, until, partial(self._advance, life))
                    return
                case GiveUp(failure):
                    self._answer_failure(life, failure)
                    return

    def _first_choice(self, life: _Life, now: float) -> Candidate | None:
        """Where a request goes first, when there is nothing to it but the strategy."""
        model = life.model
        views = (self._changes, self._loads.version)
        ready = self._ready.get(model.name)
        if ready is None or ready.views != views or ready.model is not model or now >= ready.until:
            ready = self._ready[model.name] = self._look(model, views, now)
        if ready.group is None:
            return None
        chosen = ready.group.first(model.strategy, self._loads, self.context.clock.draw)
        return self._candidate(chosen, probe=False)

    def _look(self, model: Model, views: tuple[int, int], now: float) -> _Ready:
        found = self._filter(model, now)
        wait_s = found.wait_s()
        plain = not found.half_open and all(d.max_in_flight is None for d in model.deployments)
        return _Ready(
            model=model,
            views=views,
            # An open target that nobody speaks for turns half-open by itself: look again in time.
            until=now + (_LOOK_S if wait_s is None else min(wait_s, _LOOK_S)),
            group=Group(found.usable) if plain and found.usable else None,
            by_id={d.id: d for d in model.deployments},
        )

    def _filter(self, model: Model, now: float) -> Filtered:
        return filter_targets(
            model.deployments,
            breakers=self._breakers,
            load=self._loads,
            not_before=self._not_before,
            now=now,
            now_wall=self.context.clock.wall(),
        )

    def _options_now(
        self, life: _Life, now: float
    ) -> tuple[tuple[Candidate, ...], tuple[Skipped, ...]]:
        """The model's targets as the views show them at this moment, in the strategy's order."""
        model = life.model
        found = self._filter(model, now)
        ordered = STRATEGIES[model.strategy](found.usable, self._loads, self.context.clock.draw)
        # A probe goes first: with healthy neighbours its target would otherwise never be asked again.
        probes = [
            self._candidate(d, probe=True)
            for d in found.half_open
            if self._claims.get((d.id, self._breakers.epoch(d.id))) is None or life.claiming
        ]
        life.claiming = False
        skipped = [
            Skipped(
                d.deployment.id,
                d.reason.value,
                None if d.wait_s is None else now + d.wait_s,
            )
            for d in found.dropped
        ]
        if not probes:
            skipped += [Skipped(d.id, "half_open", now + 1.0) for d in found.half_open]
        return (
            (*probes, *(self._candidate(d, probe=False) for d in ordered)),
            tuple(skipped),
        )

    def _candidate(self, deployment: Deployment, *, probe: bool) -> Candidate:
        return Candidate(
            deployment=deployment.id,
            target=deployment.id,
            keys=len(deployment.api_keys),
            epoch=self._breakers.epoch(deployment.id),
            probe=probe,
        )

    def _deployment(self, model: Model, id_: str) -> Deployment:
        """Of the model as the request found it, whatever the configuration says by now."""
        ready = self._ready.get(model.name)
        if ready is not None and ready.model is model:
            return ready.by_id[id_]
        return next(d for d in model.deployments if d.id == id_)

    def _budget(self, target: str, life: _Life) -> RetryBudget:
        budget = self._budgets.get(target)
        if budget is None:
            budget = self._budgets[target] = RetryBudget(life.model.retry.budget)
        return budget

    def _dispatch(self, life: _Life, step: Dispatch, now: float) -> bool:
        """Hand the attempt to a worker. False when none could take it: the plan is asked again."""
        clock, target = self.context.clock, step.candidate.target
        deployment = self._deployment(life.model, step.candidate.deployment)
        worker = self._loads.choose_worker(deployment.pool, clock.draw(), now=now)
        life.dispatch = step
        life.started = False
        if worker is None:
            life.plan.turned_away()
            return False
        if not step.repeat:
            self._budget(target, life).request(now)
        left_s = life.plan.deadline - now
        timeouts, options = life.model.timeouts, life.options
        work = Work(
            request=life.request_id,
            attempt=step.attempt,
            tenant=life.tenant,
            api=life.api,
            model=life.model_name,
            provider_model=deployment.provider_model(life.model_name, name=life.model.name),
            deployment=deployment.id,
            target=target,
            answer_to=life.reply,
            body=Raw(life.body),
            stream=life.stream,
            include_usage=life.include_usage,
            connect_s=min(timeouts.connect_s, left_s),
            first_token_s=min(life.first_token_s, left_s),
            idle_s=timeouts.idle_s,
            total_s=left_s,
            key=step.key,
            epoch=step.candidate.epoch,
            spent_ms=(now - life.began) * 1000,
            provider_ms=life.provider_ms,
            native_headers=life.native_headers if deployment.wire == "anthropic" else {},
            traceparent=options.traceparent,
            user=options.user,
            org=options.org,
            feature=options.feature,
            properties=options.properties,
        )
        self._note(
            life,
            "dispatch",
            deployment=deployment.id,
            worker=worker,
            epoch=step.candidate.epoch,
            reason="probe" if step.candidate.probe else life.model.strategy,
        )
        life.worker = worker
        self._holding.setdefault(worker, set()).add(life.request_id)
        self._loads.dispatched(worker, target, life.request_id)
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

    def _claim(self, life: _Life, candidate: Candidate) -> None:
        """One probe per epoch in the whole cluster; one claim per epoch of this router."""
        place = (candidate.target, candidate.epoch)
        if place in self._claims:
            life.plan.claimed(candidate, won=False)
            self._set_timer(life, self.context.clock.now(), partial(self._advance, life))
            return
        if len(self._claims) >= _CLAIMS_KEPT:
            self._claims.clear()
        self._claims[place] = False
        self._tasks.spawn(self._claim_probe(life, candidate))

    async def _claim_probe(self, life: _Life, candidate: Candidate) -> None:
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
        self._claims[candidate.target, candidate.epoch] = won
        if life.request_id in self._live:
            life.plan.claimed(candidate, won=won)
            life.claiming = won
            self._advance(life)

    # ------------------------------------------------------------ replies

    def _on_reply(self, life: _Life, message: Message) -> None:
        if life.request_id not in self._live:
            return
        if message.no_responders:
            # The worker's subject has no listener: it was never asked.
            self._loads.remove(life.worker)
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

    def _on_finished(self, life: _Life, reply: Finished) -> None:
        failure = reply.failure
        life.provider_ms += reply.provider_ms
        self._release(life)
        if failure is None or reply.answered:
            self._end(life, reply)
            return
        if isinstance(failure, f.WorkerBusy):
            self._note(life, "skip", reason="worker_busy")
            life.plan.turned_away()
            self._set_timer(life, self.context.clock.now() + 0.02, partial(self._advance, life))
            return
        self._failed(life, failure)

    def _failed(self, life: _Life, failure: f.Failure) -> None:
        step = life.dispatch
        if isinstance(failure, f.RateLimited) and step is not None:
            self._pause(step.candidate.target, f.retry_after_s(failure) or 0.0)
        self._note(
            life,
            "failed",
            deployment=step.candidate.deployment if step else "",
            reason=f.kind(failure),
        )
        life.plan.failed(failure, now=self.context.clock.now(), draw=self.context.clock.draw())
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

    def _on_deadline(self, life: _Life) -> None:
        """The worker's own timers should have ended the attempt: it is silent, so we answer."""
        self._abandon(life, "deadline")
        self._lost(life, f.TotalTimeout("the deadline of the request passed"))

    def _lost(self, life: _Life, failure: f.Failure) -> None:
        """The attempt's worker will not answer any more."""
        started = life.started
        self._release(life)
        if started:
            kind = f.kind(failure)
            self._publish(
                life.reply,
                b"",
                {
                    h.END: "partial",
                    h.PARTIAL: kind,
                    h.REQUEST_ID: life.request_id,
                    h.MODEL: _ascii(life.model_name),
                    h.DEPLOYMENT: life.dispatch.candidate.deployment if life.dispatch else "",
                    h.RUNG: "primary",
                    h.CACHE: "bypass",
                    h.ATTEMPTS: str(life.plan.attempts),
                    h.COST_USD: "unknown",
                },
            )
            self._end(life, None, failure=failure, partial=kind)
        elif isinstance(failure, f.TotalTimeout):
            self._answer_failure(life, failure)
        else:
            self._failed(life, failure)

    def _abandon(self, life: _Life, reason: str) -> None:
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
        self._loads.remove(worker)
        if held:
            self.context.log.warning("worker_lost", worker=worker, requests=len(held))
        for request_id in held:
            life = self._live.get(request_id)
            if life is not None and life.worker == worker:
                self._abandon(life, "worker_lost")
                self._lost(life, f.WorkerLost("the worker that held the request is gone"))

    def _release(self, life: _Life) -> None:
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
            self._loads.finished(worker, life.dispatch.candidate.target, life.request_id)

    # ------------------------------------------------------------ the end

    def _answer_failure(self, life: _Life, failure: f.Failure) -> None:
        dispatch = life.dispatch
        extra = {
            h.REQUEST_ID: life.request_id,
            h.MODEL: _ascii(life.model_name),
            h.RUNG: "error",
            h.CACHE: "bypass",
            h.ATTEMPTS: str(life.plan.attempts),
        }
        if dispatch is not None:
            extra[h.DEPLOYMENT] = dispatch.candidate.deployment
        body = error_body(failure, life.api, life.request_id)
        self._publish(life.reply, body, error_headers(failure, extra))
        self._end(life, None, failure=failure)

    def _end(
        self,
        life: _Life,
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
        outcome = _outcome(failure, partial)
        clock = self.context.clock
        duration_s = clock.now() - life.began
        overhead_s = max(0.0, duration_s - life.provider_ms / 1000)
        if reply is not None and life.stream and reply.failure is None:
            overhead_s = max(0.0, (clock.now() - life.began) - reply.duration_ms / 1000)
        rung = "error" if failure is not None and not partial else "primary"
        deployment = life.dispatch.candidate.deployment if life.dispatch else ""
        meters = self._measure(life.model.name, deployment, outcome, rung)
        meters.requests.add()
        meters.duration.observe(duration_s)
        meters.overhead.observe(overhead_s)
        event = RequestFinished(
            request=life.request_id,
            tenant=life.tenant,
            api=life.api,
            model=life.model_name,
            outcome=outcome,
            at=clock.wall(),
            router=self.context.id,
            deployment=deployment,
            rung=rung,
            attempts=life.plan.attempts,
            stream=life.stream,
            duration_ms=duration_s * 1000,
            overhead_ms=overhead_s * 1000,
            first_token_ms=reply.first_token_ms if reply else None,
            usage=reply.usage if reply else None,
            cost_nano_usd=reply.cost_nano_usd if reply else None,
            user=life.options.user,
            org=life.options.org,
            feature=life.options.feature,
            properties=life.options.properties,
            decisions=life.decisions,
            config_revision=self.config_revision,
            traceparent=life.options.traceparent,
        )
        self._publish(
            self.context.subjects.request.at(life.tenant, outcome),
            self.context.subjects.request.encode(event),
            cloudevents.headers_for(
                RequestFinished,
                source=f"router/{self.context.id}",
                at=event.at,
                id_=clock.new_id("evt_"),
                traceparent=life.options.traceparent,
            ),
        )
        self.context.log.info(
            "request",
            request=life.request_id,
            tenant=life.tenant,
            model=life.model_name,
            deployment=deployment,
            outcome=outcome,
            attempts=life.plan.attempts,
            stream=life.stream,
            duration_ms=round(duration_s * 1000, 2),
            failure="" if failure is None else f.kind(failure),
        )

    # ------------------------------------------------------------ small things

    def _set_timer(self, life: _Life, when: float, callback: "partial[None]") -> None:
        if life.timer is not None:
            life.timer.cancel()
        life.timer = self.context.clock.call_at(when, callback)

    def _note(
        self,
        life: _Life,
        step: str,
        *,
        deployment: str = "",
        worker: str = "",
        reason: str = "",
        epoch: int = 0,
        wait_ms: float = 0.0,
    ) -> None:
        life.decisions.append(
            Decision(
                step=step,
                at_ms=(self.context.clock.now() - life.began) * 1000,
                deployment=deployment,
                worker=worker,
                reason=reason,
                epoch=epoch,
                wait_ms=wait_ms,
            )
        )

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


def _outcome(failure: f.Failure | None, partial: str) -> str:
    if isinstance(failure, f.Cancelled):
        return "cancelled"
    if partial:
        return "partial"
    return "ok" if failure is None else f.spec(failure).code


def _ascii(text: str) -> str:
    return text.encode("ascii", "backslashreplace").decode("ascii")[:200]
