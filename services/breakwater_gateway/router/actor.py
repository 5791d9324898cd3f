"""Router: owns the plan and the attempts of each request in flight.

Message-driven throughout: a request, a published fact or a timer comes in, a pure machine says what to do, and
the shell does it. There is no task per request. This file holds what is heard, the admission of a request and
its end; each folder-mate in `desks/` deals with one other party.
"""

import asyncio
from functools import partial
from pathlib import Path
from typing import ClassVar, Final

import anyio
import msgspec
from anyio.abc import TaskGroup
from msgspec import Raw, Struct

from breakwater_gateway.config.model import Config, Model
from breakwater_gateway.identity.claims import Claims, held_against, opened, presented
from breakwater_gateway.router import once
from breakwater_gateway.router.desks.attempts import Attempts
from breakwater_gateway.router.desks.books import Books
from breakwater_gateway.router.desks.cache import CacheDesk
from breakwater_gateway.router.desks.health import HealthDesk
from breakwater_gateway.router.desks.ids import IdsDesk
from breakwater_gateway.router.desks.inspection import Inspection
from breakwater_gateway.router.desks.ladder import PATIENCE, Walk
from breakwater_gateway.router.desks.measures import Measures
from breakwater_gateway.router.desks.mending import Mending
from breakwater_gateway.router.eligible import native_of
from breakwater_gateway.router.ladder import Ladder, narrowed, rungs_of
from breakwater_gateway.router.life import Life
from breakwater_gateway.router.money import Money
from breakwater_gateway.router.options import Options, money_of, read_options
from breakwater_gateway.router.plan import (
    Envelope,
    Plan,
)
from breakwater_gateway.router.requests import decode_request
from breakwater_gateway.router.routing import Routing
from breakwater_gateway.router.shedding import Shedding
from breakwater_gateway.router.targets import Targets
from breakwater_gateway.runtime.actor import Actor, Context, Load
from breakwater_gateway.runtime.answers import error_body, error_headers
from breakwater_gateway.runtime.bus import (
    BusError,
    Message,
    Subscription,
)
from breakwater_gateway.runtime.keyring import Keyring
from breakwater_gateway.runtime.overload import shed
from breakwater_gateway.runtime.tasks import TaskSet
from breakwater_gateway.runtime.telemetry import Counter, Histogram
from breakwater_protocol import cloudevents
from breakwater_protocol import failures as f
from breakwater_protocol import headers as h
from breakwater_protocol.cache import EXACT, Feedback, Verdict, place_of
from breakwater_protocol.chat import (
    ChatRequest,
    EmbeddingsRequest,
    ModelEntry,
    ModelList,
    NativeRequest,
)
from breakwater_protocol.commands import (
    Finished,
)
from breakwater_protocol.events import RequestFinished
from breakwater_protocol.inspection import AsIf
from breakwater_protocol.keys import KEY_PATTERN, KeyRecord, may_ask
from breakwater_protocol.subjects import BadToken, Subject

_FIRST_WORKER_S: Final = 1.2
"""Workers beat twice a second: whoever is there has been heard by then."""
_VIEWS: Final = 6
"""Subscriptions to what is published, before those that take requests."""
_TENANTS_KEPT: Final = 16_384
AFTERWARDS_S: Final = 0.002
"""Between an answer out of memory and what is told of it: the bus sends what it was given a few turns of the loop
later, and the caller waits for nothing else."""


class _Meters(Struct, frozen=True):
    requests: Counter
    duration: Histogram
    overhead: Histogram


class Router(Actor):
    kind: ClassVar[str] = "router"

    def __init__(self, context: Context, *, journals: Path | None = None) -> None:
        """`journals`: where holders of leases keep their journals; None for none."""
        super().__init__(context)
        self._books = Books(context, journals=journals)
        self._targets = Targets(context.config)
        self._live: dict[str, Life] = {}
        self._shedding = Shedding(context.config.limits.in_flight)
        self._tenants: dict[str, str] = {}
        """By the subject they ask on."""
        self._turn = 0
        self._tasks = TaskSet(context.log)
        self._attempts = Attempts(
            context,
            targets=self._targets,
            tasks=self._tasks,
            live=self._live,
            ended=self._end,
            gave_up=self._gave_up,
            books=self._books,
        )
        self._mending = Mending(
            context,
            config=lambda: self.config,
            find=self._find,
            advance=self._attempts.advance,
            begin=self._begin,
        )
        self._cache = CacheDesk(
            context,
            tasks=self._tasks,
            begin=self._attempts.begin,
            stop=self._attempts.stop_calls,
            answered=self._answered,
            ended=self._end,
            gave_up=self._gave_up,
            failed=self._answer_failure,
            cheapest=self._books.cheapest,
        )
        self._inspection = Inspection(
            context,
            self._cache.kept,
            self._cache.eligible,
            config=lambda: self.config,
            claimed=self._claimed_for,
            routing=lambda: self._routing,
            tasks=self._tasks,
        )
        self._ids = IdsDesk(
            context,
            tasks=self._tasks,
            begin=self._cache.look,
            refuse=lambda life: self._answer_failure(life, once.another_body()),
        )
        self._walk = Walk(
            context,
            config=lambda: self.config,
            find=self._find,
            advance=self._attempts.advance,
            answered=lambda life: self._end(life, None),
            failed=self._answer_failure,
            kept=self._cache,
        )
        self._measures = Measures(
            context, targets=self._targets, tasks=self._tasks, exhausted=self._attempts.throttled
        )
        self._routing = Routing(context.config, self._targets.usage)
        self._keys = Keyring(context.log)
        self._health = HealthDesk(context, self._targets, self._tasks)
        self._heard_worker = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._subscriptions: list[Subscription] = []
        self._meters: dict[tuple[str, str, str, str], _Meters] = {}
        self._untold: list[tuple[Life, float, float]] = []
        """Requests that were answered at once, and when, by both clocks: nobody was told of them yet."""
        self._inflight = context.metrics.gauge("breakwater_inflight", actor=self.kind)

    # ------------------------------------------------------------ life

    async def start(self, tasks: TaskGroup) -> None:
        self._books.open()
        bus, subjects = self.context.bus, self.context.subjects
        await self._keys.start(bus)
        await self._books.watch()
        await self._health.start()
        self._subscriptions = [
            await bus.subscribe(subjects.health.any(), self._health.on_event),
            await bus.subscribe(subjects.heartbeat.any(), self._on_heartbeat),
            await bus.subscribe(f"{subjects.root}.evt.attempt.*.rate_limited", self._on_throttled),
            await bus.subscribe(subjects.cancel.any(), self._on_cancel),
            await bus.subscribe(subjects.cache.any(), self._cache.on_changed),
            await bus.subscribe(subjects.flight.at(self.context.id), self._cache.on_flight),
        ]
        await self._measures.start(self.config)
        await self._cache.open()
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
                    ("embeddings", subjects.embed),
                    ("messages", subjects.messages),
                    ("responses", subjects.responses),
                    ("generate", subjects.generate),
                )
            ],
            *await self._cache.care.start(),
            await self._inspection.start(),
            # Last: whoever is answered with the models may ask for anything.
            await bus.subscribe(subjects.models.any(), self._on_models, queue=self.kind),
        ]
        tasks.start_soon(self._attempts.watch_workers)
        tasks.start_soon(self._books.run)

    async def drain(self) -> None:
        self.draining = True
        requests = self._subscriptions[_VIEWS:]
        for subscription in requests:
            await subscription.drain()
        await self._idle.wait()
        self._tell_all()
        await self._measures.drain()
        await self._tasks.join()
        for subscription in self._subscriptions[:_VIEWS]:
            await subscription.drain()
        await self._keys.close()
        await self._books.close()
        await self._health.close()
        await self.context.bus.flush()

    async def stop(self) -> None:
        self._tell_all()
        self._cache.stop()
        for life in list(self._live.values()):
            self._answer_failure(life, f.Overloaded("the router was stopped", retry_after_s=1.0))
        await self._tasks.cancel()
        await self._books.close()
        self._attempts.stop()
        self._health.stop()

    def on_config(self, config: Config, revision: int) -> None:
        super().on_config(config, revision)
        if config.limits.in_flight != self._shedding.capacity:
            self._shedding = Shedding(config.limits.in_flight)
        self._cache.on_config(config)
        self._books.configure(config, revision)
        self._routing = Routing(config, self._targets.usage)
        self._measures.on_config(config)
        self._targets.retain(config)

    def load(self) -> Load:
        self._attempts.measure()
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

    def _on_heartbeat(self, message: Message) -> None:
        try:
            beat = self.context.subjects.heartbeat.decode(message.data)
        except msgspec.MsgspecError as error:
            self.context.log.warning("bad_event", subject=message.subject, error=str(error))
            return
        self._targets.loads.fold(beat, self.context.clock.now())
        if beat.actor == self.kind:
            self._ids.alone = self._ids.alone and beat.id == self.context.id
            self._cache.heard(beat)
            if self._books.rated:
                self._books.heard_router(beat.id)
        if beat.actor == "worker":
            self._heard_worker.set()
        elif beat.actor == "health":
            self._health.on_heartbeat(beat)

    def _on_throttled(self, message: Message) -> None:
        """A 429 pauses the key that met it for every router, not each request on its own."""
        try:
            event = self.context.subjects.attempt.decode(message.data)
        except msgspec.MsgspecError as error:
            self.context.log.warning("bad_event", subject=message.subject, error=str(error))
            return
        if self.config.deployment(event.target) is not None:
            self._attempts.throttled(event.target, event.key, event.retry_after_s)

    # ------------------------------------------------------------ requests in

    def _on_models(self, message: Message) -> None:
        if not message.reply:
            return
        shown = presented(message.headers)
        names = list(self.config.models)
        if shown or self.config.auth.nats == "key":
            record = self._key_of(shown)
            if not isinstance(record, KeyRecord | None):
                self._refuse(message.reply, "chat", record, "")
                return
            if record is not None:
                names = [name for name in names if may_ask(record, name)]
        models = ModelList([ModelEntry(name) for name in names])
        self._publish(message.reply, msgspec.json.encode(models), {})

    def _key_of(self, shown: str) -> KeyRecord | f.Failure | None:
        """A key of ours that is shown is looked at in any mode; None: none is needed."""
        auth = self.config.auth
        needed = auth.mode == "keys" and auth.nats == "key"
        if not needed and not KEY_PATTERN.fullmatch(shown):
            return None
        return opened(self._keys.board, shown, self.context.clock.wall())

    def _claims(self, shown: str, options: Options, tenant: str, model: str) -> Options | f.Failure:
        """The request's options with who it may say it is."""
        record = self._key_of(shown)
        if record is None:
            return options
        if not isinstance(record, KeyRecord):
            return record
        return self._held_against(record, options, tenant, model)

    def _claimed_for(
        self, request: AsIf, options: Options, tenant: str, model: str
    ) -> Options | f.Failure:
        """The same for a request that an operator asks about: a key may be named instead of shown."""
        if request.key:
            record = self._keys.board.named(request.key)
            if record is None:
                return f.CallerUnauthenticated(
                    "there is no key of that id: `breakwater keys list` shows them"
                )
            return self._held_against(record, options, tenant, model)
        shown = presented(request.headers)
        return self._claims(shown, options, tenant, model) if shown else options

    def _held_against(
        self, record: KeyRecord, options: Options, tenant: str, model: str
    ) -> Options | f.Failure:
        claims = held_against(
            record,
            tenant=tenant,
            model=model,
            user=options.user,
            org=options.org,
            feature=options.feature,
        )
        if not isinstance(claims, Claims):
            return claims
        return msgspec.structs.replace(
            options,
            user=claims.user,
            org=claims.org,
            feature=claims.feature,
            key=claims.key,
            team=claims.team,
        )

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
        if isinstance(life, Life) and self._books.rated:
            life = self._books.admit(life) or life
        if isinstance(life, Life):
            self._begin(life)
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
        refusal = self._shedding.refusal(options.priority, len(self._live))
        if refusal is not None:
            shed(self.context, options.priority, "router")
            return refusal
        repeat = self._cache.repeats.find(api, message.data)
        if repeat is not None:
            asked = repeat.asked
        else:
            read = decode_request(message.data, api=api, limit=self.config.limits.body_bytes)
            if not isinstance(read, ChatRequest | EmbeddingsRequest | NativeRequest):
                return read
            asked = read
        shown = presented(message.headers)
        if shown or (self.config.auth.nats == "key" and subject is not self.context.subjects.embed):
            claimed = self._claims(shown, options, tenant, asked.model)
            if not isinstance(claimed, Options):
                return claimed
            options = claimed
        model = self.config.model(asked.model)
        if model is None:
            return self._unknown(asked.model)
        who = (tenant, options.key, options.user)
        if options.once and not self._ids.ids.stands_for(who, request_id, message.data, now):
            return once.another_body()
        if request_id in self._live:
            self._turn += 1
            request_id = f"{request_id}{once.MARK}{self._turn}"
        routed = self._routing.route(
            model,
            options=options,
            stream=not isinstance(asked, EmbeddingsRequest) and bool(asked.stream),
            asked=asked,
            body=message.data,
        )
        if isinstance(routed, f.InvalidRequest):
            return routed
        model = model if routed is None else routed.model
        rungs = narrowed(rungs_of(model.ladder), options.ladder)
        if isinstance(rungs, f.InvalidRequest):
            return rungs
        ladder = Ladder(rungs)
        money = money_of(model.retry, options)
        if isinstance(money, f.InvalidRequest):
            return money
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
            plan=partial(_plan, model, options, ladder, money, now, self._turn),
            ladder=ladder,
            began=now,
            repeat=repeat,
        )
        life.route = routed
        if options.judged is not None:
            self._say_verdict(tenant, *options.judged)
        if api == "messages":
            life.native_headers = native_of(api, message.headers)
        return life

    def _say_verdict(self, tenant: str, id_: str, verdict: Verdict) -> None:
        """What an earlier answer was, as `POST /v1/cache/feedback` says it; nobody waits for it."""
        subject = self.context.subjects.cache_feedback
        body = subject.encode(Feedback(id_, tenant, verdict))
        self._publish(subject.at(place_of(id_) or EXACT), body, {})

    def _begin(self, life: Life) -> None:
        self._live[life.request_id] = life
        self._inflight.set(len(self._live))
        self._idle.clear()
        self._ids.begin(life)

    def _find(self, life: Life, name: str) -> Model | None:
        model = self.config.model(name)
        return None if model is None else self._routing.fit(model, asked=life.asked, body=life.body)

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

    def _on_cancel(self, message: Message) -> None:
        try:
            cancel = self.context.subjects.cancel.decode(message.data)
        except msgspec.MsgspecError as error:
            self.context.log.warning("bad_cancel", subject=message.subject, error=str(error))
            return
        life = self._live.get(cancel.request)
        if life is None or cancel.attempt:
            return
        if not self._cache.cancel(life, cancel):
            self._attempts.cancel(life, cancel)

    # ------------------------------------------------------------ the end

    def _gave_up(self, life: Life, failure: f.Failure) -> None:
        """The plan knows nothing more to try."""
        if life.no_ladder:
            self._answer_failure(life, failure)
        elif not self._mending.mend(life, failure):
            self._walk.descend(life, failure)

    def _answer_failure(self, life: Life, failure: f.Failure) -> None:
        body = error_body(failure, life.api, life.request_id)
        retried = life.plan.attempts > 1
        self._publish(
            life.reply, body, error_headers(failure, life.facts("error"), retried=retried)
        )
        self._end(life, None, failure=failure)

    def _answered(self, life: Life) -> None:
        """With what is kept: it is over, and others are told of it when the answer has left the bus's hands."""
        if not self._leave(life):
            return
        clock = self.context.clock
        now = clock.now()
        self._untold.append((life, now, clock.wall()))
        if len(self._untold) == 1:
            clock.call_at(now + AFTERWARDS_S, self._tell_all)
        if life.flight is not None:
            self._cache.ended(life, None, None)

    def _tell_all(self) -> None:
        untold, self._untold = self._untold, []
        for life, now, wall in untold:
            self._cache.count(life)
            self._tell(life, None, None, "", now=now, wall=wall)

    def _end(
        self,
        life: Life,
        reply: Finished | None,
        *,
        failure: f.Failure | None = None,
        partial: str = "",
    ) -> None:
        if not self._leave(life):
            return
        if reply is not None:
            failure, partial = reply.failure, reply.partial
        clock = self.context.clock
        self._tell(life, reply, failure, partial, now=clock.now(), wall=clock.wall())
        self._cache.ended(life, reply, failure)

    def _leave(self, life: Life) -> bool:
        """Nothing is done for it any more, and its place is free. False: it had left before."""
        self._attempts.leave(life)
        if self._live.pop(life.request_id, None) is None:
            return False
        self._mending.ended(life)
        self._inflight.set(len(self._live))
        self._shedding.ended(self.context.clock.now())
        if not self._live:
            self._idle.set()
        return True

    def _tell(
        self,
        life: Life,
        reply: Finished | None,
        failure: f.Failure | None,
        partial: str,
        *,
        now: float,
        wall: float,
    ) -> None:
        """Its event, its measures and its line in the log."""
        clock, context = self.context.clock, self.context
        if life.gone:
            failure = f.Cancelled("caller_gone")
        event = life.finished(
            now=now,
            at=wall,
            router=context.id,
            config_revision=self.config_revision,
            reply=reply,
            failure=failure,
            partial=partial,
        )
        meters = self._measure(life.home.name, event.deployment, event.outcome, event.rung)
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

    def _publish(self, subject: str, data: bytes, headers: dict[str, str]) -> None:
        try:
            self.context.bus.publish(subject, data, headers=headers)
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


def _plan(
    model: Model,
    options: Options,
    ladder: Ladder,
    money: Money | None,
    began: float,
    first_key: int,
) -> Plan:
    """Of a request for that model."""
    total_s = model.timeouts.total_s if options.total_s is None else options.total_s
    return Plan(
        policy=model.retry,
        envelope=Envelope(attempts_max=model.retry.attempts, deadline=began + total_s, money=money),
        first_key=first_key,
        spare=ladder.simple_models,
        patience=began + total_s * PATIENCE if ladder.simple_models else None,
    )
