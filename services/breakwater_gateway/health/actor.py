"""Health: owns the breakers of all targets, and publishes their changes.

Any number of instances hear every attempt; the one that holds the lease decides and publishes, the
others only keep their evidence warm and follow what it publishes. A change is a core event at once and
the last value in the bucket `bw_health` soon after, for newcomers and for the next leader. No request
ever waits for this actor: with it gone, routers act on the last states they know.
"""

import asyncio
from typing import ClassVar, Final

import msgspec
from anyio.abc import TaskGroup

from breakwater_gateway.config.model import Config
from breakwater_gateway.health.breaker import EPOCH_MAX, Change
from breakwater_gateway.health.orders import Operator
from breakwater_gateway.health.prober import Prober
from breakwater_gateway.health.ward import Moved, Ward
from breakwater_gateway.runtime.actor import Actor, Context, Load
from breakwater_gateway.runtime.alerts import publish_alert
from breakwater_gateway.runtime.bus import (
    BusClosed,
    BusError,
    Message,
    Store,
    Subscription,
    WrongRevision,
)
from breakwater_gateway.runtime.leading import CALL_S, Leadership
from breakwater_protocol.cloudevents import headers_for
from breakwater_protocol.events import Alert, BreakerChanged, BreakerState
from breakwater_protocol.subjects import BadToken, decode_token, encode_token
from breakwater_protocol.views import BreakerBoard

HEALTH_BUCKET: Final = "bw_health"
LEASE_KEY: Final = "health"
KEEP_RETRY_S: Final = 0.5
DRAIN_S: Final = 2.0

_STATES: Final[tuple[BreakerState, ...]] = ("closed", "open", "half_open")
_VALUE: Final = msgspec.json.Decoder(BreakerChanged)
EPOCH_DIGITS: Final = len(str(EPOCH_MAX))


class Health(Actor):
    kind: ClassVar[str] = "health"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._board = BreakerBoard()
        self._ward = Ward()
        self._leadership = Leadership(context, LEASE_KEY, self)
        self._prober = Prober(context, self._ward)
        self._operator = Operator(context, self._ward, self._board)
        self._timer: asyncio.TimerHandle | None = None
        # Targets whose last value in the bucket is not what the board says.
        self._unkept: dict[str, None] = {}
        self._unkept_some = asyncio.Event()
        self._revisions: dict[str, int] = {}
        self._store: Store | None = None
        self._subscriptions: list[Subscription] = []
        self._bad_events = 0
        self._serves = False
        self._cover(context.config)

    async def start(self, tasks: TaskGroup) -> None:
        bus, subjects = self.context.bus, self.context.subjects
        self._subscriptions = [
            await bus.subscribe(subjects.health.any(), self._on_health),
            await bus.subscribe(subjects.attempt.any(), self._on_attempt),
            await bus.subscribe(subjects.heartbeat.any(), self._prober.on_heartbeat),
            await bus.subscribe(subjects.breaker.any(), self._on_command),
            await bus.subscribe(subjects.probe.any(), self._on_claim),
        ]
        await self._leadership.start(tasks)
        tasks.start_soon(self._keep)
        self._serves = True

    async def drain(self) -> None:
        """Hand over at once: what is unkept is kept, the lease is given back."""
        self.draining = True
        self._leadership.retire()
        for subscription in self._subscriptions:
            await subscription.drain()
        try:
            async with asyncio.timeout(DRAIN_S):
                while self._unkept and self._leadership.leads():
                    await self._keep_one()
                await self._leadership.resign("drained")
        except (BusError, TimeoutError) as error:
            # The lease runs out by itself, and the next leader heard the events.
            self.context.log.warning("health_handover_failed", error=repr(error))
        self._leadership.lose("drained")
        await self._prober.close()
        self._unkept_some.set()

    async def stop(self) -> None:
        self.draining = True
        await self._leadership.close()
        await self._prober.close()
        self._unkept_some.set()

    def on_config(self, config: Config, revision: int) -> None:
        super().on_config(config, revision)
        self._cover(config)

    def load(self) -> Load:
        return Load(view_hash=self._board.hash())

    def ready(self) -> str:
        return "" if self._serves else "subscribing to attempts"

    # What it hears.

    def _on_attempt(self, message: Message) -> None:
        try:
            event = self.context.subjects.attempt.decode(message.data)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            self._bad_event(message, error)
            return
        now = self.context.clock.now()
        if not self._leadership.leads():
            self._ward.observe(event, now)
            return
        self._act(self._ward.record(event, now, self.context.clock.draw()))

    def _on_command(self, message: Message) -> None:
        """Of an operator. Whoever follows keeps silent: the leader answers, or nobody."""
        if self._leadership.leads():
            self._act(self._operator.obey(message))

    def _on_claim(self, message: Message) -> None:
        """Somebody wants a probe, and may die with it in hand."""
        try:
            target, epoch = self.context.subjects.probe.names(message.subject)
        except BadToken as error:
            self._bad_event(message, error)
            return
        if not (epoch.isascii() and epoch.isdigit() and len(epoch) <= EPOCH_DIGITS):
            self._bad_event(message, ValueError("its epoch is no number"))
        elif self._ward.claimed(target, int(epoch), self.context.clock.now()):
            self._arm()

    def _on_health(self, message: Message) -> None:
        try:
            changed = self.context.subjects.health.decode(message.data)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            self._bad_event(message, error)
            return
        if self._adopt(changed) and self._leadership.leads():
            self._arm()

    def _bad_event(self, message: Message, error: Exception) -> None:
        self._bad_events += 1
        if self._bad_events & (self._bad_events - 1) == 0:  # the 1st, 2nd, 4th, …: no flood
            self.context.log.warning(
                "bad_event",
                subject=message.subject[:200],
                error=str(error)[:200],
                count=self._bad_events,
            )

    # What it decides.

    def _cover(self, config: Config) -> None:
        """Breakers for what the configuration holds, and none besides."""
        made, gone = self._ward.cover(config, self.context.clock.now())
        for target in made:
            self._show(target, "closed")
        for target in {*gone, *(t for t in self._board.targets() if t not in self._ward)}:
            self._board.remove(target)
            self._show(target, None)
            self._unkept_now(target)
        self._arm()

    def _wake(self) -> None:
        self._timer = None
        if not self._leadership.leads():
            return
        self._act(self._ward.tick(self.context.clock.now()))
        self._arm()

    def _act(self, moved: list[Moved]) -> None:
        for target, change in moved:
            self._publish(target, change)
            if change.state == "open":
                self._alert(target, change)
            elif change.state == "half_open":
                self._prober.watch(target, self._leadership.leads)
        if moved:
            self._arm()

    def _arm(self) -> None:
        """One timer serves all breakers: it rings when the first of them wants to be told the time."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._leadership.leads():
            return
        first = self._ward.wake_at()
        if first is not None:
            self._timer = self.context.clock.call_at(first, self._wake)

    def _publish(self, target: str, change: Change) -> None:
        context = self.context
        at = context.clock.wall()
        ahead = at - context.clock.now()
        until = ahead + change.until if change.state == "open" else 0.0
        changed = BreakerChanged(
            target=target,
            state=change.state,
            cause=change.cause,
            evidence=change.evidence,
            until=until,
            epoch=change.epoch,
            previous=change.previous,
            at=at,
            ramp_until=ahead + change.ramp_until if change.ramp_until else 0.0,
        )
        self._board.fold(changed)
        self._unkept_now(target)
        self._show(target, change.state)
        context.metrics.counter(
            "breakwater_breaker_transitions_total", deployment=target, state=change.state
        ).add()
        context.log.info(
            "breaker_changed",
            target=target,
            state=change.state,
            previous=change.previous,
            cause=change.cause,
            epoch=change.epoch,
            until=until,
            window=change.evidence.window,
            failures=change.evidence.failures,
            consecutive=change.evidence.consecutive,
        )
        try:
            context.bus.publish(
                context.subjects.health.at(target, change.state),
                context.subjects.health.encode(changed),
                headers=headers_for(
                    BreakerChanged,
                    f"{self.kind}/{context.id}",
                    at,
                    f"{context.id}.{encode_token(target)}.{change.epoch}",
                ),
            )
        except BusError as error:
            # The bucket has the change as soon as the server is back, and heartbeats show who missed it.
            context.log.warning("breaker_event_lost", target=target, error=repr(error))

    def _adopt(self, changed: BreakerChanged) -> bool:
        """Follow what a leader published; wall times become what is left of them."""
        breaker = self._ward.breaker(changed.target, self.context.clock.now())
        if breaker is None:
            return False
        opened = changed.state == "open"
        adopted = breaker.adopt(
            state=changed.state,
            epoch=changed.epoch,
            cause=changed.cause,
            open_for_s=changed.until - changed.at if opened else 0.0,
            left_s=changed.until - self.context.clock.wall() if opened else 0.0,
            now=self.context.clock.now(),
            ramp_s=changed.ramp_until - self.context.clock.wall() if changed.ramp_until else 0.0,
        )
        if adopted:
            self._board.fold(changed)
            self._show(changed.target, changed.state)
        return adopted

    def _alert(self, target: str, change: Change) -> None:
        """A key that is refused needs a person; once for each time it opens, not for each probe that fails."""
        if change.cause == "key_refused":
            kind, what = "auth", "was refused (401 or 403) twice in a row"
        elif change.cause == "quota_exhausted" and change.previous == "closed":
            kind, what = "quota", "has no quota left"
        else:
            return
        context, at = self.context, self.context.clock.wall()
        alert = Alert(
            kind=kind,
            message=f"the provider key {target} {what}: calls go to other keys until it answers",
            at=at,
            source=f"{self.kind}/{context.id}",
            target=target,
        )
        context.log.warning("key_out", target=target, cause=change.cause)
        publish_alert(context, alert, id_=f"{context.id}.{encode_token(target)}.{change.epoch}.a")

    def _show(self, target: str, state: BreakerState | None) -> None:
        for each in _STATES:
            gauge = self.context.metrics.gauge(
                "breakwater_breaker_state", deployment=target, state=each
            )
            gauge.set(1 if each == state else 0)

    # Who decides.

    async def catch_up(self) -> None:
        """A new leader first reads what the last one kept."""
        self._unkept.clear()
        self._revisions.clear()
        async with asyncio.timeout(CALL_S):
            store = await self._bucket()
            keys = await store.keys()
        kept: set[str] = set()
        for key in keys:
            async with asyncio.timeout(CALL_S):
                target = await self._read_kept(store, key)
            if target is not None:
                kept.add(target)
        for target, breaker in self._ward.breakers.items():
            # Heard of as a follower, but its leader died before it was kept.
            if breaker.epoch and target not in kept:
                self._unkept_now(target)
        self.context.log.info("health_read", targets=len(self._ward), kept=len(kept))

    async def lead(self) -> None:
        now = self.context.clock.now()
        for target, breaker in list(self._ward.breakers.items()):
            self._act(self._ward.decide(target, now, self.context.clock.draw()))
            if breaker.state == "half_open":
                self._prober.watch(target, self._leadership.leads)
        self._unkept_some.set()
        self._arm()

    async def _read_kept(self, store: Store, key: str) -> str | None:
        """The target whose present state this key holds; None when it has to be written, or is not ours."""
        try:
            target = decode_token(key)
        except BadToken:
            self.context.log.warning("health_key_ignored", key=key[:200])
            return None
        if target not in self._ward:
            await store.delete(key)
            return None
        entry = await store.get(key)
        if entry is None or entry.value is None:
            return None
        self._revisions[target] = entry.revision
        try:
            changed = _VALUE.decode(entry.value)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            self.context.log.warning("health_value_ignored", key=key[:200], error=str(error)[:200])
            return None
        if changed.target != target:
            return None
        self._adopt(changed)
        breaker = self._ward.breakers.get(target)
        return target if breaker is not None and changed.epoch == breaker.epoch else None

    def follow(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._unkept.clear()
        self._revisions.clear()

    async def leave(self) -> None:
        """Followers hear the same: nothing to end."""

    # What it keeps.

    def _unkept_now(self, target: str) -> None:
        self._unkept[target] = None
        self._unkept_some.set()

    async def _keep(self) -> None:
        """Bring the bucket up to the board, one target at a time, the latest value only."""
        while not self.draining:
            await self._unkept_some.wait()
            self._unkept_some.clear()
            while self._unkept and self._leadership.leads():
                try:
                    async with asyncio.timeout(CALL_S):
                        await self._keep_one()
                except BusClosed:
                    raise
                except (BusError, TimeoutError) as error:
                    self.context.log.warning("breaker_not_kept", error=repr(error))
                    await asyncio.sleep(KEEP_RETRY_S)

    async def _keep_one(self) -> None:
        target = next(iter(self._unkept))
        store = await self._bucket()
        key = encode_token(target)
        changed = self._board.last(target)
        if changed is None:
            await store.delete(key)
            self._revisions.pop(target, None)
        else:
            value = self.context.subjects.health.encode(changed)
            revision = self._revisions.get(target)
            try:
                if revision is None:
                    self._revisions[target] = await store.create(key, value)
                else:
                    self._revisions[target] = await store.update(key, value, revision=revision)
            except WrongRevision:
                # Written by another leader, or by us without our hearing so. The later epoch stays.
                self._revisions.pop(target, None)
                if await self._read_kept(store, key) is None:
                    return
        if self._board.last(target) is changed:
            self._unkept.pop(target, None)

    async def _bucket(self) -> Store:
        if self._store is None:
            self._store = await self.context.bus.store(HEALTH_BUCKET)
        return self._store
