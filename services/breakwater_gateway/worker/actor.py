"""Worker: makes one attempt per ask, streams the answer straight to the caller, tells how it ended.

Hears `work.<id>`, `ping.<id>` and `cancel.*`; publishes chunks to the caller's inbox, `Started` and
`Finished` to the router, and one `evt.attempt` per call. It holds the attempts and their timers; its desks
deal with the provider, with those who hear the answer, and with those who count.
"""

import asyncio
import os
from collections.abc import Mapping
from functools import partial
from typing import ClassVar, Final

import msgspec
from anyio.abc import TaskGroup

from breakwater_gateway.config.model import Config, Deployment
from breakwater_gateway.config.provider import quirks_for
from breakwater_gateway.pricing.cost import ModelPrice, of_config
from breakwater_gateway.pricing.prices import shipped
from breakwater_gateway.router.shedding import Shedding
from breakwater_gateway.runtime.actor import Actor, Context, Load
from breakwater_gateway.runtime.bus import BusError, Message, MessageTooLarge, Subscription
from breakwater_gateway.runtime.overload import QueueGauges, shed
from breakwater_gateway.runtime.tasks import TaskSet
from breakwater_gateway.worker.desks.answers import Answers
from breakwater_gateway.worker.desks.events import Events
from breakwater_gateway.worker.desks.provider import Place, Provider, read_error, without
from breakwater_gateway.worker.doors import Doors, Why
from breakwater_gateway.worker.exchange import Asked, Exchange, Whole, open_exchange
from breakwater_gateway.worker.http_client import (
    Answer,
    AnswerTooLarge,
    ConnectFailed,
    HttpClient,
    HttpFailure,
    MalformedHttp,
    PoolTimeout,
)
from breakwater_gateway.worker.metering import of_cut
from breakwater_gateway.worker.provider_limits import parse_rate_limits
from breakwater_gateway.worker.run import Run
from breakwater_protocol import failures as f
from breakwater_protocol.commands import Cancel, Ear, Work

# A timer that fires this late says that our own loop stood still: what the provider sent meanwhile is
# still in the socket, so the attempt gets one short grace to read it before anything is judged.
_STALL_S: Final = 0.25
_GRACE_S: Final = 0.1


class Worker(Actor):
    kind: ClassVar[str] = "worker"

    def __init__(
        self,
        context: Context,
        *,
        client: HttpClient,
        pools: tuple[str, ...] = (),
        environment: Mapping[str, str] = os.environ,
        capacity: int | None = None,
    ) -> None:
        super().__init__(context)
        self._provider = Provider(context, client, environment)
        self._answers = Answers(context)
        self._events = Events(context)
        self._pools = pools
        self._capacity = capacity
        self._tasks = TaskSet(context.log)
        self._live: dict[str, dict[int, Run]] = {}
        self._doors: Doors[Run] = Doors(context.clock, begin=self._begin, refuse=self._refuse)
        self._queues = QueueGauges(context, "worker")
        self._shedding = Shedding(0)
        self._deployments: dict[str, Deployment] = {}
        self._metered: set[str] = set()
        """Deployments of which a strategy wants to know what their providers say of their limits."""
        self._subscriptions: list[Subscription] = []
        self._prices = shipped()
        self.on_config(context.config, context.config_revision)

    # ------------------------------------------------------------ life

    async def start(self, tasks: TaskGroup) -> None:
        del tasks  # attempts live in a task set of their own, which `drain` joins
        bus, subjects, own = self.context.bus, self.context.subjects, self.context.id
        self._subscriptions = [
            await bus.subscribe(subjects.cancel.any(), self._on_cancel),
            await bus.subscribe(subjects.ping.at(own), self._on_ping),
            await bus.subscribe(subjects.tap.at(own), self._on_tap),
            await bus.subscribe(subjects.heartbeat.any(), self._on_heartbeat),
            await bus.subscribe(subjects.work.at(own), self._on_work),
        ]

    async def drain(self) -> None:
        self.draining = True
        await self._tasks.join()
        for subscription in self._subscriptions:
            await subscription.drain()
        # What was received before the drain took hold is finished too.
        await self._tasks.join()
        await self.context.bus.flush()

    async def stop(self) -> None:
        """At once: every attempt in hand is cut and reported as lost, and nobody waits any more."""
        self._doors.close()
        await self._tasks.cancel()
        await self._provider.close()

    def on_config(self, config: Config, revision: int) -> None:
        super().on_config(config, revision)
        models = config.models.values()
        self._deployments = {d.id: d for m in models for d in m.deployments}
        self._metered = {d.id for m in models if m.strategy == "usage" for d in m.deployments}
        self._shedding = Shedding(self.capacity)
        self._doors.configure(self._deployments.values())
        self._provider.forget()

    @property
    def capacity(self) -> int:
        return self._capacity or self.config.limits.in_flight

    def load(self) -> Load:
        now = self.context.clock.now()
        while self._doors.came:
            self._queues.touch(self._doors.came.pop())
        self._queues.tell(lambda place: self._doors.queue(place, now))
        return Load(
            capacity=self.capacity,
            in_flight=self._held,
            pools=self._pools,
            targets=self._doors.loads(),
        )

    @property
    def _held(self) -> int:
        return len(self._tasks) + self._doors.waiting

    # ------------------------------------------------------------ messages

    def _on_ping(self, message: Message) -> None:
        if message.reply:
            self.context.bus.publish(message.reply, b"{}")

    def _on_tap(self, message: Message) -> None:
        try:
            tap = self.context.subjects.tap.decode(message.data)
        except msgspec.MsgspecError as error:
            self.context.log.warning("bad_tap", error=str(error))
            return
        run = self._live.get(tap.request, {}).get(tap.attempt)
        if run is not None and tap.facts:
            self._answers.lend(run, Ear(tap.to, tap.facts))
        elif run is not None:
            self._answers.tap(run, tap.to)

    def _on_heartbeat(self, message: Message) -> None:
        try:
            beat = self.context.subjects.heartbeat.decode(message.data)
        except msgspec.MsgspecError as error:
            self.context.log.warning("bad_event", subject=message.subject, error=str(error))
            return
        if beat.actor == self.kind and beat.id != self.context.id:
            self._doors.heard(beat)

    def _on_cancel(self, message: Message) -> None:
        try:
            cancel = self.context.subjects.cancel.decode(message.data)
        except msgspec.MsgspecError as error:
            self.context.log.warning("bad_cancel", subject=message.subject, error=str(error))
            return
        self._cancel(cancel)

    def _cancel(self, cancel: Cancel) -> None:
        for attempt, run in list(self._live.get(cancel.request, {}).items()):
            if cancel.attempt == attempt or not (cancel.attempt or run.work.shared):
                self._stop(run, f.Cancelled(cancel.reason))

    def _on_work(self, message: Message) -> None:
        try:
            work = self.context.subjects.work.decode(message.data)
        except (msgspec.MsgspecError, RecursionError) as error:
            self.context.log.error("bad_work", error=str(error))
            return
        now = self.context.clock.now()
        run = Run(work, message.reply, now)
        busy = self._busy(work)
        if busy is not None:
            self._answers.report(run, busy, partial="")
            return
        if work.attempt in self._live.get(work.request, {}):
            # The same ask twice (a duplicate on the bus): the first one is under way.
            return
        self._live.setdefault(work.request, {})[work.attempt] = run
        if work.ears:
            self._answers.lent(run)
        self._doors.enter(run)

    def _busy(self, work: Work) -> f.WorkerBusy | None:
        if self.draining:
            return f.WorkerBusy("the worker is leaving", retry_after_s=0.1)
        refusal = self._shedding.refusal(work.priority, self._held)
        if refusal is None:
            return None
        deployment = self._deployments.get(work.deployment)
        shed(self.context, work.priority, "worker")
        # Where another worker may have room, it is worth asking at once.
        alone = deployment is not None and self._doors.others(deployment.pool) == 0
        return f.WorkerBusy(
            "the worker is at capacity",
            retry_after_s=refusal.retry_after_s,
            full=alone,
            crowded=not alone,
        )

    def _begin(self, run: Run) -> None:
        self._arm(run, run.clock.wake_at())
        run.task = self._tasks.spawn(self._attempt(run))

    def _on_timer(self, run: Run) -> None:
        now = self.context.clock.now()
        due = run.clock.wake_at()
        if now >= due:
            if now - due > _STALL_S and not run.graced:
                run.graced = True
                due = now + _GRACE_S
            else:
                said = 0 if run.exchange is None else run.exchange.said
                failure = run.clock.expired(now, said)
                if failure is not None:
                    self._stop(run, failure)
                    return
                due = run.clock.wake_at()
        self._arm(run, due)

    def _spoke(self, run: Run) -> None:
        """The first token: from now on other timers run, and one of them may be the nearest."""
        run.clock.spoke(self.context.clock.now())
        due = run.clock.wake_at()
        if due < run.due and run.timer is not None:
            run.timer.cancel()
            self._arm(run, due)

    def _arm(self, run: Run, due: float) -> None:
        run.due = due
        run.timer = self.context.clock.call_at(due, partial(self._on_timer, run))

    def _refuse(self, run: Run, retry_after_s: float, why: Why) -> None:
        """There is no place for it at its target in time."""
        self._forget(run)
        if why != "stopped":
            shed(self.context, run.work.priority, why)
        message = f"{run.work.deployment} has as many calls as it bears, and no room to wait"
        self._answers.report(
            run, f.WorkerBusy(message, retry_after_s=retry_after_s, full=True), partial=""
        )

    def _forget(self, run: Run) -> None:
        live = self._live.get(run.work.request)
        if live is not None and live.get(run.work.attempt) is run:
            del live[run.work.attempt]
            if not live:
                del self._live[run.work.request]

    def _stop(self, run: Run, failure: f.Failure) -> None:
        if run.waiting:
            self._doors.leave(run)
            self._forget(run)
            self._answers.report(run, failure, partial="")
            return
        if run.stop is None and run.task is not None and not run.finish_sent:
            run.stop = failure
            run.task.cancel()

    # ------------------------------------------------------------ one attempt

    async def _attempt(self, run: Run) -> None:
        failure: f.Failure | None = f.WorkerLost("the worker was stopped")
        try:
            failure = await self._call(run)
        except asyncio.CancelledError:
            if run.stop is None:
                raise
            failure = run.stop
            if run.task is not None:
                run.task.uncancel()
        finally:
            self._end(run, failure)

    def _end(self, run: Run, failure: f.Failure | None) -> None:
        if run.timer is not None:
            run.timer.cancel()
        self._forget(run)
        self._shedding.ended(self.context.clock.now())
        work, first = run.work, run.clock.first
        self._doors.ended(run)
        self._doors.learned(
            run,
            failure,
            sent_at=run.left_at,
            first_token_s=first - run.left_at if work.stream and first is not None else None,
        )
        partial = ""
        if failure is not None and run.stream_open:
            run.usage = of_cut(
                bytes(run.work.body),
                None if run.exchange is None else run.exchange.usage,
                said=0 if run.exchange is None else run.exchange.said,
                pieces=0 if run.exchange is None else run.exchange.pieces,
            )
            run.metered = True
        try:
            if failure is not None and run.started and not run.finish_sent:
                partial = f.kind(failure)
                if not run.work.hand_back or isinstance(failure, f.Cancelled):
                    self._answers.end(run, "partial", partial)
                else:
                    self._answers.cut(run)
            self._answers.report(run, failure, partial=partial)
            self._events.ended(run, failure, partial=partial)
        except BusError as error:
            self.context.log.error(
                "attempt_not_reported", request=run.work.request, error=repr(error)
            )

    async def _call(self, run: Run) -> f.Failure | None:
        work = run.work
        deployment = self._deployments.get(work.deployment)
        if deployment is None:
            return f.WorkerBusy("the worker does not know this deployment yet", retry_after_s=0.1)
        run.deployment = deployment
        run.price = self._price(deployment, work.provider_model)
        place = self._provider.place(deployment, work)
        if not isinstance(place, Place):
            return place
        quirks = quirks_for(deployment)
        exchange = open_exchange(
            Asked(
                api=work.api,
                stream=work.stream,
                usage_wanted=work.include_usage,
                body=work.body,
                model=work.model,
                wire=deployment.wire,
                provider=str(quirks["provider"]),
                provider_model=work.provider_model,
                quirks=quirks,
                limit=self.config.limits.answer_bytes,
                refuse_dropped=work.refuse_dropped,
                continues=work.continues,
                now=int(self.context.clock.wall()),
            )
        )
        if isinstance(exchange, f.Failure):
            return exchange
        run.exchange = exchange
        clock = self.context.clock
        run.left_at = clock.now()
        answer: Answer | None = None
        try:
            run.stream_open = work.stream and work.api != "embeddings"
            answer = await self._provider.send(run, place, exchange)
            run.clock.heard(clock.now())
            if deployment.id in self._metered:
                run.limits = parse_rate_limits(answer.headers, clock.wall())
            if answer.status >= 400:
                run.stream_open = False
                return self._provider.classify(deployment, answer, await read_error(answer), place)
            if answer.status >= 300:
                run.stream_open = False
                return _redirect(answer.status)
            if work.stream and work.api != "embeddings":
                return await self._stream(run, answer, exchange, place)
            self._spoke(run)
            body = await self._read_whole(run, answer)
            if work.ask_leave and not await self._answers.leave(run):
                return f.Cancelled("another call of the request answers")
            return self._answer(run, exchange, body, place)
        except ConnectFailed as error:
            run.stream_open = False
            run.graced = run.graced or error.late_s > _STALL_S
            return f.ConnectFailed(f"no connection to the provider: {error.kind}")
        except PoolTimeout:
            run.stream_open = False
            return f.Overloaded("every connection to the provider is in use", retry_after_s=1.0)
        except AnswerTooLarge:
            return f.MalformedAnswer("the provider's answer is larger than the gateway accepts")
        except MalformedHttp:
            return f.MalformedAnswer("the provider's answer is not valid HTTP")
        except HttpFailure:
            return f.StreamCut("the provider's answer broke off before its end")
        except MessageTooLarge:
            return f.MalformedAnswer("the provider's answer is larger than the bus carries")
        finally:
            if not run.started:
                run.provider_s = clock.now() - run.left_at
            if answer is not None:
                self._provider.let_go(answer, finished=run.finish_sent)

    async def _read_whole(self, run: Run, answer: Answer) -> bytes:
        """The body, with the idle timer moved by everything that arrives."""
        limit = self.config.limits.answer_bytes
        parts: list[bytes] = []
        size = 0
        while (data := await answer.chunk()) is not None:
            size += len(data)
            if size > limit:
                raise AnswerTooLarge(limit)
            run.clock.heard(self.context.clock.now())
            parts.append(data)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _answer(self, run: Run, exchange: Exchange, body: bytes, place: Place) -> f.Failure | None:
        answer = exchange.answer(body)
        if not isinstance(answer, Whole):
            return without(answer, place.secrets)
        run.usage = answer.usage
        if answer.filtered and run.work.refuse_filtered:
            return _filtered()
        run.provider_s = self.context.clock.now() - run.left_at
        self._answers.whole(run, answer)
        return None

    async def _stream(
        self, run: Run, answer: Answer, exchange: Exchange, place: Place
    ) -> f.Failure | None:
        clock = self.context.clock
        ended = False
        while not ended:
            data = await answer.chunk()
            if data is None:
                read, ended = exchange.end(), True
            else:
                run.clock.heard(clock.now())
                read = exchange.feed(data)
                ended = read.ended
            run.usage = exchange.usage
            if exchange.whole and run.usage is not None:
                run.stream_open = False
            if exchange.filtered and run.work.refuse_filtered and not run.started:
                return _filtered()
            if read.lines and exchange.spoke:
                if not run.started:
                    run.provider_s = clock.now() - run.left_at
                    self._spoke(run)
                    if run.work.ask_leave and not await self._answers.leave(run):
                        return f.Cancelled("another call of the request answers")
                self._answers.chunks(run, read.lines)
            if read.failure is not None:
                run.stream_open = exchange.spoke  # what fails before it speaks is not billed
                return without(read.failure, place.secrets)
        if not exchange.whole:
            return f.StreamCut("the provider's stream ended before its finish")
        if not run.started:
            return f.MalformedAnswer("the provider's stream held no answer", provider_status=200)
        self._answers.end(run, "ok", "")
        return None

    def _price(self, deployment: Deployment, model: str) -> ModelPrice | None:
        """The configuration's price, else the provider's list price now."""
        if deployment.price is not None:
            return of_config(deployment.price)
        return self._prices.price_of(deployment.provider, model, self.context.clock.wall())


def _redirect(status: int) -> f.Failure:
    # A key goes to the host that it was given for, and to no other that this one names.
    return f.ServerError(
        f"the provider answered with a redirect ({status}), and those are not followed: base_url should"
        " name where it leads",
        provider_status=status,
    )


def _filtered() -> f.Failure:
    return f.ContentFiltered("the provider's safety system broke the answer off", 200)
