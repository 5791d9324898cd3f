"""Ledger: owns the budget books of all partitions, and lends out of them.

Any number of instances fold the log; the one that holds the lease writes it. Each partition's log is
fenced by the sequence that its writer expects, so that of two who believe to lead only one writes on, and
nothing is answered before it is in the log. What crossed a threshold is published by the engine once,
however many writers say so.
"""

import asyncio
import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from typing import ClassVar, Final

import msgspec
from anyio.abc import TaskGroup

from breakwater_gateway.config.model import Config
from breakwater_gateway.ledger.agreed_time import DISAGREE_S, AgreedTime
from breakwater_gateway.ledger.hooks import Hooks
from breakwater_gateway.ledger.keeper import LEDGER_BUCKET
from breakwater_gateway.ledger.lending import Reply
from breakwater_gateway.ledger.published import Place, tell_limit, tell_limits
from breakwater_gateway.ledger.writer import Asked, Writer
from breakwater_gateway.runtime.actor import Actor, Context, Load
from breakwater_gateway.runtime.alerts import publish_alert
from breakwater_gateway.runtime.bus import (
    BusClosed,
    BusError,
    EventLog,
    Message,
    Store,
    Subscription,
)
from breakwater_gateway.runtime.leading import Leadership
from breakwater_gateway.runtime.tasks import TaskSet
from breakwater_gateway.runtime.telemetry import Counter
from breakwater_protocol.cloudevents import headers_for
from breakwater_protocol.events import Alert, BudgetChanged
from breakwater_protocol.ledger import (
    LIMITS_BUCKET,
    PARTITIONS,
    LeaseAsk,
    Operate,
    Query,
    Refused,
    Reports,
    partition_token,
)
from breakwater_protocol.subjects import Subject

LOG_NAME: Final = "LEDGER"
LEASE_KEY: Final = "ledger"
TICK_S: Final = 1.0
OBSERVE_S: Final = 10.0
"""How often the server's clock is looked at."""
AUDIT_S: Final = 300.0
MESSAGE_MAX: Final = 256 * 1024
"""Bytes of one ask or report."""
TOUCHED_MAX: Final = 200
"""Events of grants and settlements for each partition and second."""
UNANNOUNCED_MAX: Final = 100_000
ANNOUNCE_RETRY_S: Final = 0.5
ALERT_EVERY_S: Final = 60.0
"""The same kind of alert about the same account at most so often."""
ALERTED_MAX: Final = 10_000
DRAIN_S: Final = 5.0

_ENCODER: Final = msgspec.json.Encoder()


class Ledger(Actor):
    kind: ClassVar[str] = "ledger"

    def __init__(self, context: Context, *, environment: Mapping[str, str] | None = None) -> None:
        super().__init__(context)
        self.id = context.id
        self.clock = context.clock
        self.log = context.log
        self.tasks = TaskSet(context.log)
        self.record_bytes_max = context.bus.max_message // 8
        self.event_log: EventLog
        self.store: Store
        self._limits: Store
        self._time = AgreedTime()
        self._leadership = Leadership(context, LEASE_KEY, self)
        self._serves = False
        self._writers = [
            Writer(number, context.subjects.ledger_log.at(partition_token(number)), self)
            for number in range(PARTITIONS)
        ]
        self._by_token = {partition_token(writer.number): writer for writer in self._writers}
        self._subscriptions: list[Subscription] = []
        self._unannounced: deque[tuple[int, BudgetChanged]] = deque()
        self._some_unannounced = asyncio.Event()
        self._untold: dict[tuple[int, Place | None], None] = {}
        """Operators' limits that routers have to hear of, by partition; None: all of it."""
        self._some_untold = asyncio.Event()
        self._alerted: dict[tuple[str, str], float] = {}
        self._observed_at = 0.0
        self._audited_at = context.clock.now()
        self._next_audit = 0
        self._answers: dict[type[Reply], Counter] = {}
        self._append_s = context.metrics.histogram("breakwater_ledger_append_seconds")
        self._hooks = Hooks(
            os.environ if environment is None else environment, log=context.log, tasks=self.tasks
        )
        self._hooks.configure(context.config.budgets)

    async def start(self, tasks: TaskGroup) -> None:
        bus, subjects = self.context.bus, self.context.subjects
        self.event_log = await bus.event_log(LOG_NAME, subjects.ledger_log.any())
        self.store = await bus.store(LEDGER_BUCKET)
        self._limits = await bus.store(LIMITS_BUCKET)
        await self._leadership.start(tasks)
        tasks.start_soon(self._tick)
        tasks.start_soon(self._announce)
        tasks.start_soon(self._tell_limits)
        self._serves = True

    async def drain(self) -> None:
        """Write what waits, keep the books, hand over."""
        self.draining = True
        self._leadership.retire()
        await self.leave()
        try:
            async with asyncio.timeout(DRAIN_S):
                while not all(writer.settled for writer in self._writers):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                while (self._unannounced or self._untold) and self.leads():  # noqa: ASYNC110 - at the end of a life
                    await asyncio.sleep(0.01)
                self._leadership.lose("drained")
                await self.tasks.join()
                await self._leadership.resign("drained")
        except (BusError, TimeoutError) as error:
            self.log.warning("ledger_handover_failed", error=repr(error))

    async def stop(self) -> None:
        self.draining = True
        await self._leadership.close()
        await self.tasks.cancel()
        await self._hooks.close()

    def on_config(self, config: Config, revision: int) -> None:
        super().on_config(config, revision)
        self._hooks.configure(config.budgets)

    def load(self) -> Load:
        return Load(capacity=PARTITIONS if self.leads() else 0)

    def ready(self) -> str:
        return "" if self._serves else "reading the books"

    # --- What its writers need ----------------------------------------------------------------

    def time_ms(self) -> int:
        return self._time.t_ms(wall=self.clock.wall(), now=self.clock.now())

    def leads(self) -> bool:
        return self._leadership.leads()

    def answer(self, reply: str, data: bytes) -> None:
        if not reply:
            return
        try:
            self.context.bus.publish(reply, data)
        except BusError as error:
            # Whoever asked asks again, and gets the same answer.
            self.log.warning("ledger_answer_lost", error=repr(error))

    def answered(self, reply: Reply) -> None:
        kind = type(reply)
        counter = self._answers.get(kind)
        if counter is None:
            name = str(kind.__struct_config__.tag)
            counter = self._answers[kind] = self.context.metrics.counter(
                "breakwater_ledger_answers_total", reply=name
            )
        counter.add()

    def appended(self, took_s: float) -> None:
        self._append_s.observe(took_s)

    def announce(self, partition: int, events: Sequence[BudgetChanged]) -> None:
        for event in events:
            if event.kind in ("soft", "hard"):
                if len(self._unannounced) < UNANNOUNCED_MAX:
                    self._unannounced.append((partition, event))
                    self._some_unannounced.set()
                else:
                    self.alert("ledger_events", "budget events cannot be published fast enough")
            else:
                self._publish(event)
            if event.kind == "breach":
                self.alert(
                    "estimator_breach",
                    f"a call of {event.account} cost more than was reserved for it"
                    f" (lease {event.lease}); it is in the books",
                    about=event.account,
                )

    def unannounced(self, partition: int) -> bool:
        return any(number == partition for number, _ in self._unannounced)

    def alert(self, kind: str, message: str, about: str = "") -> None:
        now, context = self.clock.now(), self.context
        self.log.warning("ledger_alert", kind=kind, message=message)
        last = self._alerted.get((kind, about))
        if last is not None and now - last < ALERT_EVERY_S:
            return
        if len(self._alerted) >= ALERTED_MAX:
            self._alerted.clear()
        self._alerted[kind, about] = now
        source = f"{self.kind}/{self.id}"
        publish_alert(context, Alert(kind, message, self.clock.wall(), source))

    def limited(self, partition: int, place: Place | None) -> None:
        self._untold[partition, place] = None
        self._some_untold.set()

    def lost(self, why: str) -> None:
        self._leadership.lose(why)

    # --- What it hears ------------------------------------------------------------------------

    async def _subscribe(self) -> None:
        """One subject a partition, not a pattern: what is asked in this process stays in it."""
        bus, subjects = self.context.bus, self.context.subjects
        for token, writer in self._by_token.items():
            for subject, hear in (
                (subjects.lease, self._hears(writer, subjects.lease)),
                (subjects.report, self._hears(writer, subjects.report)),
                (subjects.operate, self._hears(writer, subjects.operate)),
                (subjects.books, self._hears(writer, subjects.books)),
            ):
                self._subscriptions.append(await bus.subscribe(subject.at(token), hear))

    def _hears(
        self,
        writer: Writer,
        subject: Subject[LeaseAsk] | Subject[Reports] | Subject[Operate] | Subject[Query],
    ) -> Callable[[Message], None]:
        def hear(message: Message) -> None:
            if not self.leads():
                # A writer that was deposed says nothing: whoever leads now hears the same, asked again.
                return
            if len(message.data) > MESSAGE_MAX:
                self._refuse(message, f"a message to the ledger has {MESSAGE_MAX} bytes at most")
                return
            try:
                asked = subject.decode(message.data)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                self._refuse(message, str(error)[:500])
                return
            writer.ask(Asked(asked, message.reply, len(message.data)))

        return hear

    def _refuse(self, message: Message, why: str) -> None:
        self.answer(message.reply, _ENCODER.encode(Refused("malformed", why)))

    # --- Who leads ----------------------------------------------------------------------------

    async def catch_up(self) -> None:
        """Fold all logs to their ends."""
        for writer in self._writers:
            await writer.follow()

    async def lead(self) -> None:
        taken = 0
        for writer in self._writers:
            if await writer.take_over():
                taken += 1
                self.limited(writer.number, None)
            if not self.leads():
                return
        await self._subscribe()
        self.log.info("ledger_books_taken", partitions=taken)

    def follow(self) -> None:
        for writer in self._writers:
            # Also one that took over just before another of them lost the lead for all.
            if writer.leading:
                writer.step_down()
        self._unannounced.clear()
        self._untold.clear()

    async def leave(self) -> None:
        subscriptions, self._subscriptions = self._subscriptions, []
        for subscription in subscriptions:
            await subscription.drain()

    # --- What it does by itself ---------------------------------------------------------------

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._show()
            try:
                if self.leads():
                    self._look()
                    await self._observe()
                    await self._audit()
                elif not self._leadership.stands:
                    for writer in self._writers:
                        await writer.follow()
            except BusClosed:
                raise
            except (BusError, TimeoutError) as error:
                self.log.warning("ledger_log_unread", error=repr(error))

    def _show(self) -> None:
        leading = [writer for writer in self._writers if writer.leading]
        metrics = self.context.metrics
        metrics.gauge("breakwater_ledger_leads").set(len(leading))
        safe = sum(writer.book.safe for writer in leading)
        metrics.gauge("breakwater_ledger_safe").set(safe)

    def _look(self) -> None:
        for writer in self._writers:
            writer.tick()
            for event in writer.take_touched(TOUCHED_MAX):
                self._publish(event)
        now, wall = self.clock.now(), self.clock.wall()
        ahead_s = self._time.disagreement_s(wall=wall, now=now)
        if abs(ahead_s) > DISAGREE_S:
            self.alert(
                "ledger_clock",
                f"this machine's clock is {ahead_s:+.0f} s from the NATS server's: no budget period"
                " ends before both say so; set the clocks right",
            )

    async def _observe(self) -> None:
        """See what the server's clock showed when it took the last record."""
        if self._observed_at and self.clock.now() - self._observed_at < OBSERVE_S:
            return
        writer = max(self._writers, key=lambda each: each.appended_at)
        seq, appended_at = writer.seq, writer.appended_at
        if not appended_at or appended_at <= self._observed_at:
            return
        last = await self.event_log.last(writer.subject)
        if last is not None and last.seq == seq:
            self._time.observe(last.at, now=appended_at)
            self._observed_at = appended_at

    async def _audit(self) -> None:
        """One partition after the other: is the book what the log says?"""
        now = self.clock.now()
        if now - self._audited_at < AUDIT_S / PARTITIONS:
            return
        self._audited_at = now
        writer = self._writers[self._next_audit]
        self._next_audit = (self._next_audit + 1) % PARTITIONS
        fault = await writer.audit()
        if fault:
            self.alert("audit", fault)

    async def _tell_limits(self) -> None:
        while True:
            await self._some_untold.wait()
            self._some_untold.clear()
            while self._untold and self.leads():
                partition, place = told = next(iter(self._untold))
                # Out before it is read: what changes meanwhile is told again.
                del self._untold[told]
                book = self._writers[partition].book
                try:
                    if place is None:
                        await tell_limits(self._limits, partition, book)
                    else:
                        await tell_limit(self._limits, partition, book, place)
                except BusClosed:
                    raise
                except (BusError, TimeoutError) as error:
                    self.log.warning("operator_limit_waits", error=repr(error))
                    if self.leads():
                        self.limited(partition, place)
                    await asyncio.sleep(ANNOUNCE_RETRY_S)

    async def _announce(self) -> None:
        while True:
            await self._some_unannounced.wait()
            self._some_unannounced.clear()
            while self._unannounced:
                partition, event = self._unannounced[0]
                try:
                    first = await self._publish_once(event)
                except BusClosed:
                    raise
                except (BusError, TimeoutError) as error:
                    self.log.warning("budget_event_waits", kind=event.kind, error=repr(error))
                    await asyncio.sleep(ANNOUNCE_RETRY_S)
                    continue
                if first and event.kind == "soft":
                    self._hooks.crossed(event)
                    self.alert(
                        "soft_limit",
                        f"{event.account} has used {event.committed} of {event.limit} {event.unit}"
                        f" in {event.period}",
                        about=event.account,
                    )
                if self._unannounced and self._unannounced[0] == (partition, event):
                    self._unannounced.popleft()

    async def _publish_once(self, event: BudgetChanged) -> bool:
        subjects = self.context.subjects
        # What makes it the same crossing, whoever sees it.
        same = (
            *(event.account, event.unit, event.period, event.kind),
            *(event.threshold, event.generation),
        )
        key = blake2b(msgspec.json.encode(same), digest_size=16).hexdigest()
        self.log.info(
            "budget_crossed",
            kind=event.kind,
            account=event.account,
            period=event.period,
            committed=event.committed,
            limit=event.limit,
        )
        return await self.context.bus.publish_once(
            key,
            subjects.budget.at(event.account, event.kind),
            subjects.budget.encode(event),
            headers=headers_for(BudgetChanged, self.kind, event.at, key),
        )

    def _publish(self, event: BudgetChanged) -> None:
        subjects = self.context.subjects
        try:
            self.context.bus.publish(
                subjects.budget.at(event.account, event.kind),
                subjects.budget.encode(event),
                headers=headers_for(
                    BudgetChanged,
                    f"{self.kind}/{self.id}",
                    event.at,
                    self.clock.new_id("evt_"),
                ),
            )
        except BusError as error:
            self.log.warning("budget_event_lost", kind=event.kind, error=repr(error))
