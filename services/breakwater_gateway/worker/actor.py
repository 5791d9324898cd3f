"""Worker: makes one attempt per ask, streams the answer straight to the caller, tells how it ended.

Hears `work.<id>`, `ping.<id>` and `cancel.*`; publishes chunks to the caller's inbox, `Started` and
`Finished` to the router, and one `evt.attempt` per call. Provider keys are resolved here and nowhere
else.
"""

import asyncio
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import ClassVar, Final
from urllib.parse import quote, urlsplit

import msgspec
from anyio.abc import TaskGroup
from msgspec import Struct

from breakwater_gateway import __version__
from breakwater_gateway.config.model import Config, Deployment
from breakwater_gateway.config.provider import quirks_for
from breakwater_gateway.pricing.cost import ModelPrice, cost_nano_usd, of_config
from breakwater_gateway.pricing.prices import shipped
from breakwater_gateway.router.shedding import Shedding
from breakwater_gateway.runtime.actor import Actor, Context, Load
from breakwater_gateway.runtime.answers import usd
from breakwater_gateway.runtime.bus import BusError, Message, MessageTooLarge, Subscription
from breakwater_gateway.runtime.logs import secrets
from breakwater_gateway.runtime.tasks import TaskSet
from breakwater_gateway.runtime.telemetry import Counter, Histogram
from breakwater_gateway.worker import keys
from breakwater_gateway.worker.attempt import AttemptClock
from breakwater_gateway.worker.doors import Doors
from breakwater_gateway.worker.endpoint import (
    Endpoint,
    endpoint,
    secret_values,
    secrets_of,
)
from breakwater_gateway.worker.exchange import Asked, Exchange, Whole, open_exchange
from breakwater_gateway.worker.http_client import (
    Answer,
    AnswerTooLarge,
    ConnectFailed,
    HttpClient,
    HttpFailure,
    MalformedHttp,
    PoolTimeout,
    Prepared,
)
from breakwater_gateway.worker.metering import of_cut
from breakwater_gateway.worker.provider_limits import parse_rate_limits
from breakwater_gateway.worker.wire.bedrock import sigv4
from breakwater_gateway.worker.wire.dialects import provider_dialect
from breakwater_protocol import cloudevents
from breakwater_protocol import failures as f
from breakwater_protocol import headers as h
from breakwater_protocol.chat import Usage
from breakwater_protocol.commands import Cancel, Finished, Leave, Started, Work
from breakwater_protocol.events import Alert, AttemptFinished, RateLimits
from breakwater_protocol.flights import CUT, FLIGHT, TAPPED, Tapped

USER_AGENT: Final = f"breakwater/{__version__}"
_COMMON_HEADERS: Final = (
    ("content-type", "application/json"),
    ("accept", "*/*"),
    ("user-agent", USER_AGENT),
)
_PREPARED_MAX: Final = 4096
_SECRETS_S: Final = 60.0
_LINGER_S: Final = 0.25
_LINGER_BYTES: Final = 4096
_LEAVE_S: Final = 1.0
_TAPS_MAX: Final = 64
_ERROR_BODY_MAX: Final = 64 * 1024
# A timer that fires this late says that our own loop stood still: what the provider sent meanwhile is
# still in the socket, so the attempt gets one short grace to read it before anything is judged.
_STALL_S: Final = 0.25
_GRACE_S: Final = 0.1
_UNPRICED_S: Final = 3600.0
_UNPRICED_MAX: Final = 256


class _Place(Struct, frozen=True):
    """A deployment with its secrets resolved: where its calls go and what may not be shown."""

    endpoint: Endpoint
    secrets: tuple[str, ...]
    until: float
    """Then the secrets are read again: a token in a file may have been renewed."""


class _Meters(Struct, frozen=True):
    attempts: Counter
    first_token: Histogram
    tokens_in: Counter
    tokens_out: Counter


class _Run:
    """One attempt in hand."""

    __slots__ = (
        "came_at",
        "clock",
        "deployment",
        "due",
        "exchange",
        "finish_sent",
        "graced",
        "left_at",
        "limits",
        "metered",
        "places",
        "price",
        "provider_s",
        "reply",
        "seq",
        "started",
        "stop",
        "stream_open",
        "taps",
        "task",
        "timer",
        "usage",
        "waited_s",
        "waiting",
        "work",
    )

    def __init__(self, work: Work, reply: str, now: float) -> None:
        self.work = work
        self.reply = reply
        self.came_at = now
        self.clock = _clock_of(work, now, work.total_s)
        self.waiting = ""
        self.places: tuple[str, ...] = ()
        """For its place at the target."""
        self.deployment: Deployment | None = None
        self.exchange: Exchange | None = None
        self.task: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.due = 0.0
        """When the timer looks: what expires later is looked at then, what expires earlier arms it anew."""
        self.stop: f.Failure | None = None
        self.graced = False
        self.started = False
        """Something of the answer went to the caller."""
        self.finish_sent = False
        """The caller has its terminal message."""
        self.seq = work.seq_from
        self.taps: tuple[str, ...] = ()
        """Inboxes of other routers that hear the answer."""
        self.usage: Usage | None = None
        self.metered = False
        """`usage` is our own count."""
        self.stream_open = False
        """A stream is asked for, and its provider has neither refused nor told what it counted."""
        self.price: ModelPrice | None = None
        self.limits: RateLimits | None = None
        self.left_at = now
        """When the call went out to the provider."""
        self.provider_s = 0.0
        self.waited_s = 0.0

    def admitted(self, now: float) -> None:
        """It waited for its place at the target, and none of the timers but the last was for that."""
        self.waited_s = now - self.came_at
        self.left_at = now
        self.clock = _clock_of(self.work, now, self.work.total_s - self.waited_s)


def _clock_of(work: Work, now: float, total_s: float) -> AttemptClock:
    return AttemptClock(
        now=now,
        first_token_s=work.first_token_s if work.stream or work.hurried else float("inf"),
        idle_s=work.idle_s,
        total_s=total_s,
        min_rate=work.min_rate if work.stream else 0.0,
        rate_window_s=work.rate_window_s,
    )


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
        self._client = client
        self._pools = pools
        self._environment = environment
        self._capacity = capacity
        self._tasks = TaskSet(context.log)
        self._lingering = TaskSet(context.log)
        """Streams whose last word is said and whose last byte is not here yet: no load of the worker."""
        self._live: dict[str, dict[int, _Run]] = {}
        self._doors: Doors[_Run] = Doors(context.clock, begin=self._begin, refuse=self._refuse)
        self._shedding = Shedding(0)
        self._deployments: dict[str, Deployment] = {}
        self._metered: set[str] = set()
        """Deployments of which a strategy wants to know what their providers say of their limits."""
        self._places: dict[tuple[str, int, str], _Place] = {}
        self._prepared: dict[tuple[str, tuple[tuple[str, str], ...]], Prepared] = {}
        self._meters: dict[tuple[str, str], _Meters] = {}
        self._subjects: dict[tuple[str, str], str] = {}
        self._subscriptions: list[Subscription] = []
        self._prices = shipped()
        self._unpriced: set[tuple[str, str]] = set()
        self._unpriced_since = 0.0
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
        await self._lingering.cancel()
        await self._client.close()

    def on_config(self, config: Config, revision: int) -> None:
        super().on_config(config, revision)
        models = config.models.values()
        self._deployments = {d.id: d for m in models for d in m.deployments}
        self._metered = {d.id for m in models if m.strategy == "usage" for d in m.deployments}
        self._shedding = Shedding(self.capacity)
        self._doors.configure(self._deployments.values())
        self._places.clear()
        self._prepared.clear()

    @property
    def capacity(self) -> int:
        return self._capacity or self.config.limits.in_flight

    def load(self) -> Load:
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
        if run is None or run.finish_sent or len(run.taps) >= _TAPS_MAX:
            return
        run.taps = (*run.taps, tap.to)
        told = msgspec.json.encode(Tapped(self.context.id, tap.attempt, run.seq))
        self.context.bus.publish(tap.to, told, headers={FLIGHT: TAPPED})

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
        run = _Run(work, message.reply, now)
        busy = self._busy(work)
        if busy is not None:
            self._report(run, busy, partial="")
            return
        if work.attempt in self._live.get(work.request, {}):
            # The same ask twice (a duplicate on the bus): the first one is under way.
            return
        self._live.setdefault(work.request, {})[work.attempt] = run
        self._doors.enter(run)

    def _busy(self, work: Work) -> f.WorkerBusy | None:
        if self.draining:
            return f.WorkerBusy("the worker is leaving", retry_after_s=0.1)
        shed = self._shedding.refusal(work.priority, self._held)
        if shed is None:
            return None
        deployment = self._deployments.get(work.deployment)
        # Where another worker may have room, it is worth asking at once.
        alone = deployment is not None and self._doors.others(deployment.pool) == 0
        wait_s = shed.retry_after_s if alone else 0.1
        return f.WorkerBusy("the worker is at capacity", retry_after_s=wait_s, full=alone)

    def _begin(self, run: _Run) -> None:
        self._arm(run, run.clock.wake_at())
        run.task = self._tasks.spawn(self._attempt(run))

    def _on_timer(self, run: _Run) -> None:
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

    def _spoke(self, run: _Run) -> None:
        """The first token: from now on other timers run, and one of them may be the nearest."""
        run.clock.spoke(self.context.clock.now())
        due = run.clock.wake_at()
        if due < run.due and run.timer is not None:
            run.timer.cancel()
            self._arm(run, due)

    def _arm(self, run: _Run, due: float) -> None:
        run.due = due
        run.timer = self.context.clock.call_at(due, partial(self._on_timer, run))

    def _refuse(self, run: _Run, retry_after_s: float) -> None:
        """There is no place for it at its target in time."""
        self._forget(run)
        message = f"{run.work.deployment} has as many calls as it bears, and no room to wait"
        self._report(run, f.WorkerBusy(message, retry_after_s=retry_after_s, full=True), partial="")

    def _forget(self, run: _Run) -> None:
        live = self._live.get(run.work.request)
        if live is not None and live.get(run.work.attempt) is run:
            del live[run.work.attempt]
            if not live:
                del self._live[run.work.request]

    def _stop(self, run: _Run, failure: f.Failure) -> None:
        if run.waiting:
            self._doors.leave(run)
            self._forget(run)
            self._report(run, failure, partial="")
            return
        if run.stop is None and run.task is not None and not run.finish_sent:
            run.stop = failure
            run.task.cancel()

    # ------------------------------------------------------------ one attempt

    async def _attempt(self, run: _Run) -> None:
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

    def _end(self, run: _Run, failure: f.Failure | None) -> None:
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
                    self._send_end(run, "partial", partial)
                else:
                    for tap in run.taps:
                        self.context.bus.publish(tap, headers={FLIGHT: CUT})
            self._report(run, failure, partial=partial)
            self._publish_event(run, failure, partial=partial)
        except BusError as error:
            self.context.log.error(
                "attempt_not_reported", request=run.work.request, error=repr(error)
            )

    async def _call(self, run: _Run) -> f.Failure | None:
        work = run.work
        deployment = self._deployments.get(work.deployment)
        if deployment is None:
            return f.WorkerBusy("the worker does not know this deployment yet", retry_after_s=0.1)
        run.deployment = deployment
        run.price = self._price(deployment, work.provider_model)
        place = self._place(deployment, work)
        if not isinstance(place, _Place):
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
            answer = await self._send(run, place, exchange)
            run.clock.heard(clock.now())
            if deployment.id in self._metered:
                run.limits = parse_rate_limits(answer.headers, clock.wall())
            if answer.status >= 400:
                run.stream_open = False
                return self._classify(deployment, answer, await _read_error(answer), place)
            if work.stream and work.api != "embeddings":
                return await self._stream(run, answer, exchange, place)
            self._spoke(run)
            body = await self._read_whole(run, answer)
            if work.ask_leave and not await self._leave(run):
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
                self._let_go(answer, finished=run.finish_sent)

    async def _send(self, run: _Run, place: _Place, exchange: Exchange) -> Answer:
        call, work = exchange.call, run.work
        headers = {**dict(call.headers), **work.native_headers} if work.native_headers else None
        fixed = place.endpoint.headers + (tuple(headers.items()) if headers else call.headers)
        url = place.endpoint.at(call.path)
        prepared = self._prepared.get((url, fixed))
        if prepared is None:
            if len(self._prepared) >= _PREPARED_MAX:
                self._prepared.clear()
            deployment = run.deployment
            prepared = self._client.prepare(
                "POST",
                url,
                (*_COMMON_HEADERS, *fixed),
                http2=deployment is None or deployment.http2,
            )
            self._prepared[url, fixed] = prepared
        aws = place.endpoint.aws
        if aws is None:
            return await self._client.send(prepared, call.body, connect_timeout_s=work.connect_s)
        target = urlsplit(url)
        signed = sigv4.sign(
            aws.credentials,
            method="POST",
            path=target.path,
            query=target.query,
            headers=(("host", target.netloc), ("content-type", "application/json")),
            body_sha256=sigv4.body_hash(call.body),
            region=aws.region,
            now=self.context.clock.wall(),
        )
        return await self._client.send(
            prepared, call.body, headers=signed, connect_timeout_s=work.connect_s
        )

    def _let_go(self, answer: Answer, *, finished: bool) -> None:
        """Back to the pool if nothing is left to read; a finished stream gets a moment to end as HTTP."""
        if finished and not answer.ended:
            self._lingering.spawn(_read_out(answer))
        else:
            answer.close()

    async def _read_whole(self, run: _Run, answer: Answer) -> bytes:
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

    def _answer(
        self, run: _Run, exchange: Exchange, body: bytes, place: _Place
    ) -> f.Failure | None:
        answer = exchange.answer(body)
        if not isinstance(answer, Whole):
            return _without(answer, place.secrets)
        run.usage = answer.usage
        if answer.filtered and run.work.refuse_filtered:
            return _filtered()
        run.provider_s = self.context.clock.now() - run.left_at
        headers = self._facts(run)
        headers.update(self._totals(run))
        if answer.repaired:
            headers[h.REPAIRED] = "tool_call"
        self._say(run, answer.body, headers, last=True)
        run.started = run.finish_sent = True
        return None

    async def _stream(
        self, run: _Run, answer: Answer, exchange: Exchange, place: _Place
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
                    if run.work.ask_leave and not await self._leave(run):
                        return f.Cancelled("another call of the request answers")
                self._send_chunks(run, read.lines)
            if read.failure is not None:
                run.stream_open = exchange.spoke  # what fails before it speaks is not billed
                return _without(read.failure, place.secrets)
        if not exchange.whole:
            return f.StreamCut("the provider's stream ended before its finish")
        if not run.started:
            return f.MalformedAnswer("the provider's stream held no answer", provider_status=200)
        self._send_end(run, "ok", "")
        return None

    async def _leave(self, run: _Run) -> bool:
        """Whether this call is the one that answers. Without a word from the router it is not: it may have
        given its word to another."""
        decided: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        def hear(message: Message) -> None:
            if not decided.done():
                decided.set_result(_said_leave(message))

        inbox = self.context.bus.open_inbox(hear)
        try:
            self._tell(
                run, Started(run.work.request, run.work.attempt, self.context.id), inbox.subject
            )
            async with asyncio.timeout(_LEAVE_S):
                return await decided
        except TimeoutError:
            return False
        finally:
            inbox.close()

    def _send_chunks(self, run: _Run, lines: list[bytes]) -> None:
        work = run.work
        headers = {h.SEQ: str(run.seq)}
        if work.attempt > 1:
            headers[h.ATTEMPT] = str(work.attempt)
        if not run.started:
            # Before the first byte, so that nobody else answers once it may have arrived.
            if not work.ask_leave:
                self._tell(run, Started(work.request, work.attempt, self.context.id))
            if work.continues:
                headers[h.SEAM] = work.deployment
            else:
                headers.update(self._facts(run))
            run.started = True
        run.seq += 1
        self._say(run, lines[0] if len(lines) == 1 else b"\n".join(lines), headers)

    def _send_end(self, run: _Run, end: str, partial: str) -> None:
        headers = {h.SEQ: str(run.seq), h.END: end}
        if run.work.attempt > 1:
            headers[h.ATTEMPT] = str(run.work.attempt)
        headers.update(self._facts(run))
        headers.update(self._totals(run))
        if partial:
            headers[h.PARTIAL] = partial
        run.finish_sent = True
        self._say(run, b"", headers, last=True)

    def _say(self, run: _Run, data: bytes, headers: dict[str, str], *, last: bool = False) -> None:
        bus, copy_to = self.context.bus, run.work.copy_to
        bus.publish(run.work.answer_to, data, headers=headers)
        if not copy_to:
            return
        if last and run.usage is not None:
            headers = {**headers, h.USAGE: msgspec.json.encode(run.usage).decode()}
        bus.publish(copy_to, data, headers=headers)
        for tap in run.taps:
            bus.publish(tap, data, headers=headers)

    def _facts(self, run: _Run) -> dict[str, str]:
        work = run.work
        facts = {
            h.REQUEST_ID: work.request,
            h.MODEL: quote(work.model),
            h.DEPLOYMENT: work.deployment,
            h.RUNG: work.rung,
            h.CACHE: work.cache,
            h.ATTEMPTS: str(work.attempt),
            **work.notes,
        }
        if run.exchange is not None and run.exchange.call.dropped:
            facts[h.DROPPED_PARAMS] = quote(",".join(run.exchange.call.dropped), safe=",_.[]-")[
                :500
            ]
        return facts

    def _totals(self, run: _Run) -> dict[str, str]:
        work = run.work
        if run.started:
            own_s = run.left_at - run.clock.began
        else:
            own_s = self.context.clock.now() - run.clock.began - run.provider_s
        overhead_ms = max(0.0, work.spent_ms - work.provider_ms + own_s * 1000)
        return {h.COST_USD: usd(self._cost(run)), h.OVERHEAD_MS: f"{overhead_ms:.2f}"}

    def _cost(self, run: _Run) -> int | None:
        return cost_nano_usd(run.usage, run.price)

    def _price(self, deployment: Deployment, model: str) -> ModelPrice | None:
        """The configuration's price, else the provider's list price now."""
        if deployment.price is not None:
            return of_config(deployment.price)
        return self._prices.price_of(deployment.provider, model, self.context.clock.wall())

    # ------------------------------------------------------------ provider side

    def _place(self, deployment: Deployment, work: Work) -> _Place | f.Failure:
        key = (deployment.id, work.key, work.provider_model)
        now = self.context.clock.now()
        found = self._places.get(key)
        if found is not None and now < found.until:
            return found
        given = secrets_of(
            deployment, work.key, environment=self._environment, read_file=_read_small_file
        )
        if not isinstance(given, dict):
            return given
        shown = secret_values(given)
        for value in shown:
            secrets.register(value)
        at = endpoint(deployment, model=work.provider_model, secrets=given)
        if not isinstance(at, Endpoint):
            return at
        if len(self._places) >= _PREPARED_MAX:
            self._places.clear()
        place = self._places[key] = _Place(at, shown, now + _SECRETS_S)
        return place

    def _classify(
        self, deployment: Deployment, answer: Answer, body: bytes, place: _Place
    ) -> f.Failure:
        dialect = provider_dialect(deployment.wire, str(quirks_for(deployment)["provider"]))
        failure = dialect.classify(
            answer.status, answer.headers, body, now=self.context.clock.wall()
        )
        return _without(failure, place.secrets)

    # ------------------------------------------------------------ reports

    def _tell(self, run: _Run, reply: Started | Finished, answer_to: str = "") -> None:
        if run.reply:
            self.context.bus.publish(run.reply, msgspec.json.encode(reply), reply=answer_to)

    def _report(self, run: _Run, failure: f.Failure | None, *, partial: str) -> None:
        self._tell(
            run,
            Finished(
                request=run.work.request,
                attempt=run.work.attempt,
                worker=self.context.id,
                answered=run.finish_sent or isinstance(failure, f.Cancelled),
                failure=failure,
                usage=run.usage,
                metered=run.metered,
                cost_nano_usd=self._cost(run),
                first_token_ms=run.clock.first_token_ms(),
                duration_ms=(self.context.clock.now() - run.came_at) * 1000,
                provider_ms=(run.provider_s + run.waited_s) * 1000,
                partial=partial,
            ),
        )

    def _publish_event(self, run: _Run, failure: f.Failure | None, *, partial: str) -> None:
        work, context = run.work, self.context
        outcome = "ok" if failure is None else f.kind(failure)
        if partial and not isinstance(failure, f.Cancelled):
            outcome = "partial"
        first_ms = run.clock.first_token_ms()
        duration_s = context.clock.now() - run.clock.began
        at = context.clock.wall()
        event = AttemptFinished(
            request=work.request,
            attempt=work.attempt,
            tenant=work.tenant,
            model=work.model,
            deployment=work.deployment,
            target=work.target,
            provider=run.deployment.provider if run.deployment else "",
            worker=context.id,
            outcome=outcome,
            at=at,
            epoch=work.epoch,
            failure="" if failure is None else f.kind(failure),
            against_target=failure is not None and _is_against_target(run, failure),
            status=failure.provider_status if failure else None,
            retry_after_s=f.retry_after_s(failure) if failure else None,
            first_token_ms=first_ms,
            duration_ms=duration_s * 1000,
            usage=run.usage,
            metered=run.metered,
            cost_nano_usd=self._cost(run),
            api=work.api,
            stream=work.stream,
            rung=work.rung,
            user=work.user,
            org=work.org,
            feature=work.feature,
            properties=work.properties,
            message=failure.message[:200] if failure else "",
            in_stall=run.graced,
            limits=run.limits,
            key=work.key,
            region=run.deployment.region if run.deployment else "",
            key_epoch=work.key_epoch,
            region_epoch=work.region_epoch,
            provider_model=work.provider_model,
            traceparent=work.traceparent,
        )
        self._measure(work.deployment, failure, first_ms, run.usage)
        place = (work.target, outcome)
        subject = self._subjects.get(place)
        if subject is None:
            subject = self._subjects[place] = context.subjects.attempt.at(work.target, outcome)
        context.bus.publish(
            subject,
            context.subjects.attempt.encode(event),
            headers=cloudevents.headers_for(
                AttemptFinished,
                source=f"worker/{context.id}",
                at=at,
                id_=context.clock.new_id("evt_"),
                traceparent=work.traceparent,
            ),
        )
        if run.usage is not None and event.cost_nano_usd is None:
            self._alert_unpriced(run, at)

    def _alert_unpriced(self, run: _Run, at: float) -> None:
        """Once an hour for each deployment and model, so many of them at most."""
        work, context = run.work, self.context
        now = context.clock.now()
        if now - self._unpriced_since >= _UNPRICED_S:
            self._unpriced.clear()
            self._unpriced_since = now
        place = (work.deployment, work.provider_model)
        if place in self._unpriced or len(self._unpriced) >= _UNPRICED_MAX:
            return
        self._unpriced.add(place)
        model = work.provider_model[:200]
        alert = Alert(
            kind="unpriced",
            message=f"no price is known for {model} at {work.deployment}: its calls have no cost",
            at=at,
            source=f"worker/{context.id}",
            target=work.target,
            model=model,
        )
        context.bus.publish(
            context.subjects.alert.at("unpriced"),
            context.subjects.alert.encode(alert),
            headers=cloudevents.headers_for(
                Alert, source=f"worker/{context.id}", at=at, id_=context.clock.new_id("evt_")
            ),
        )

    def _measure(
        self,
        deployment: str,
        failure: f.Failure | None,
        first_ms: float | None,
        usage: Usage | None,
    ) -> None:
        metrics = self.context.metrics
        error = "none" if failure is None else f.kind(failure)
        place = (deployment, error)
        meters = self._meters.get(place)
        if meters is None:
            meters = self._meters[place] = _Meters(
                attempts=metrics.counter(
                    "breakwater_attempts_total", deployment=deployment, error=error
                ),
                first_token=metrics.histogram("breakwater_ttft_seconds", deployment=deployment),
                tokens_in=metrics.counter("breakwater_tokens_total", type="input"),
                tokens_out=metrics.counter("breakwater_tokens_total", type="output"),
            )
        meters.attempts.add()
        if first_ms is not None and failure is None:
            meters.first_token.observe(first_ms / 1000)
        if usage is not None:
            meters.tokens_in.add(usage.input)
            meters.tokens_out.add(usage.output)


def _is_against_target(run: _Run, failure: f.Failure) -> bool:
    match failure:
        case f.FirstTokenTimeout():
            return not run.work.hurried
        case f.TotalTimeout():
            return run.work.full_time and run.clock.first is None
        case _:
            return f.spec(failure).against_target


def _filtered() -> f.Failure:
    return f.ContentFiltered("the provider's safety system broke the answer off", 200)


def _said_leave(message: Message) -> bool:
    """A router that is gone, or says what nobody understands, gives no leave."""
    try:
        return msgspec.json.decode(message.data, type=Leave).granted
    except msgspec.MsgspecError:
        return False


async def _read_error(answer: Answer) -> bytes:
    """The body of an error; of one that cannot be read (cut, too large, badly coded) the status says enough."""
    try:
        return await answer.read(_ERROR_BODY_MAX)
    except HttpFailure:
        return b"{}"


async def _read_out(answer: Answer) -> None:
    """The end of a chunked body often comes in a packet of its own; cutting it off would cost the next
    request a new connection."""
    size = 0
    try:
        async with asyncio.timeout(_LINGER_S):
            while size <= _LINGER_BYTES and (data := await answer.chunk()) is not None:
                size += len(data)
    except (TimeoutError, HttpFailure):
        size = 0  # then the connection is closed instead of being used again
    finally:
        answer.close()


def _without(failure: f.Failure, shown: tuple[str, ...]) -> f.Failure:
    """All that a provider wrote into it without our secrets."""
    for secret in shown:
        failure = msgspec.structs.replace(
            failure,
            message=keys.scrub(failure.message, secret),
            provider_code=keys.scrub(failure.provider_code, secret),
        )
        if isinstance(failure, f.InvalidRequest) and failure.param:
            param = keys.scrub(failure.param, secret)
            failure = msgspec.structs.replace(failure, param=param)
    return failure


def _read_small_file(path: str) -> str:
    with Path(path).open("rb") as file:
        return file.read(keys.KEY_BYTES_MAX + 1).decode("utf-8")
