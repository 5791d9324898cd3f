"""The router's desk for health: its view of every breaker, kept true whatever message gets lost.

A change comes as an event and as the last value in a bucket that is watched. Heartbeats of health carry a
hash of its own view: when it differs from ours the bucket is read again, so a lost event heals with the
next beat. When health falls silent the last states hold, this router's own windows come first, and one
alert says so. No request waits for any of this.
"""

import asyncio
from typing import Final

import msgspec

from breakwater_gateway.router.targets import Targets
from breakwater_gateway.runtime.actor import Context
from breakwater_gateway.runtime.alerts import publish_alert
from breakwater_gateway.runtime.bus import BusError, Entry, Message, Store, Watch
from breakwater_gateway.runtime.tasks import TaskSet
from breakwater_protocol.events import Alert, BreakerChanged, Heartbeat

BUCKET: Final = "bw_health"
SILENT_S: Final = 5.0
"""Without a heartbeat of any health for so long, what was published is stale; it beats twice a second."""
LOOK_S: Final = 0.5
READ_AGAIN_S: Final = 0.4
"""Less than a beat. Doubles while the views go on differing: then it is no lost event."""
READ_AGAIN_MAX_S: Final = 10.0


class HealthDesk:
    def __init__(self, context: Context, targets: Targets, tasks: TaskSet) -> None:
        self.context = context
        self._targets = targets
        self._tasks = tasks
        self._store: Store | None = None
        self._watch: Watch | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._seen_at = context.clock.now()
        self._silent = False
        self._reading = False
        self._read_at = 0.0
        self._pause_s = READ_AGAIN_S
        self.read_again = 0
        """How many times the bucket was read since the views differed."""

    async def start(self) -> None:
        """Every present state is known when this returns, or comes soon."""
        self._store = await self.context.bus.store(BUCKET)
        self._watch = await self._store.watch(self.on_entry)
        self._seen_at = self.context.clock.now()
        self._look()

    async def close(self) -> None:
        if self._watch is not None:
            await self._watch.close()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def on_event(self, message: Message) -> None:
        try:
            self._targets.fold(self.context.subjects.health.decode(message.data))
        except msgspec.MsgspecError as error:
            self.context.log.warning("bad_event", subject=message.subject, error=str(error))

    def on_entry(self, entry: Entry) -> None:
        if entry.value is None:
            return
        try:
            self._targets.fold(msgspec.json.decode(entry.value, type=BreakerChanged))
        except msgspec.MsgspecError as error:
            self.context.log.warning("bad_entry", key=entry.key, error=str(error))

    def on_heartbeat(self, beat: Heartbeat) -> None:
        """Of a health, leading or not: all have the same view."""
        now = self._seen_at = self.context.clock.now()
        if self._silent:
            self._silent = False
            self._targets.health_is(silent=False)
            self.context.log.info("health_is_back", id=beat.id)
        if beat.view_hash == self._targets.breakers.hash():
            self._pause_s = READ_AGAIN_S
        elif beat.view_hash and not self._reading and now >= self._read_at:
            self._read_at = now + self._pause_s
            self._pause_s = min(2 * self._pause_s, READ_AGAIN_MAX_S)
            self._reading = True
            self._tasks.spawn(self._read_bucket())

    async def _read_bucket(self) -> None:
        self.read_again += 1
        try:
            if self._store is not None:
                for key in await self._store.keys():
                    entry = await self._store.get(key)
                    if entry is not None:
                        self.on_entry(entry)
        except (BusError, TimeoutError) as error:
            self.context.log.warning("health_not_read", error=repr(error))
        finally:
            self._reading = False

    def _look(self) -> None:
        clock = self.context.clock
        now = clock.now()
        self._timer = clock.call_at(now + LOOK_S, self._look)
        if not self._silent and now - self._seen_at >= SILENT_S:
            self._silent = True
            self._targets.health_is(silent=True)
            self._alert()

    def _alert(self) -> None:
        context, at = self.context, self.context.clock.wall()
        context.log.warning("health_is_silent", after_s=SILENT_S)
        alert = Alert(
            kind="stale_view",
            message="no health actor has been heard of for five seconds: breakers are as they were"
            " last, and each router goes by its own failures",
            at=at,
            source=f"router/{context.id}",
        )
        publish_alert(context, alert)
