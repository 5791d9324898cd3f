"""Exporter: turns the events of requests and attempts into OpenTelemetry spans, off the path of any request.

It reads the stream `EVT` and keeps how far it has come in the bucket `bw_export`, so that nothing is lost while
it or its collector is away and nothing is made twice: whatever is read again becomes the same spans. Of any
number of instances the one that holds the lease works. While no endpoint is configured, or the variable that
names it is not set, it does nothing.
"""

import asyncio
import gzip
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final

import httpx
import msgspec
from anyio.abc import TaskGroup
from msgspec import Struct

from breakwater_gateway import __version__
from breakwater_gateway.config.model import Config, KeyRef
from breakwater_gateway.exporter import cursor as cursors
from breakwater_gateway.exporter.cursor import BUCKET, KEY, STREAM, Cursor
from breakwater_gateway.exporter.gather import Gather
from breakwater_gateway.exporter.spans import Span, Value
from breakwater_gateway.runtime.actor import Actor, Context
from breakwater_gateway.runtime.bus import (
    BusClosed,
    BusError,
    EventLog,
    Store,
    Stored,
    WrongRevision,
)
from breakwater_gateway.runtime.leading import Lease

if TYPE_CHECKING:
    from breakwater_gateway.exporter import otlp

LEASE_KEY: Final = "exporter"
LEASE_S: Final = 10
RENEW_S: Final = 3.0
EVERY_S: Final = 1.0
"""How long new events are let gather before they are read."""
RETRY_S: Final = 2.0
"""After the bus did not answer."""
IDLE_CHECK: Final = 10
"""Reads without an event after which it is looked whether this is still the place to read on."""
STRIDE: Final = 8
"""Events between which others on this loop have their turn: some 0.5 ms of work."""
INLINE_BYTES: Final = 32_768
POST_S: Final = 10.0
ANSWER_BYTES_MAX: Final = 65_536
ADDRESS_BYTES_MAX: Final = 8_192
DRAIN_S: Final = 5.0
SETTLE_S: Final = 0.1
"""For the stream to have what was published last."""


class _Destination(Struct, frozen=True):
    url: str
    headers: dict[str, str]
    resource: dict[str, Value]


class Exporter(Actor):
    kind: ClassVar[str] = "exporter"

    def __init__(
        self,
        context: Context,
        *,
        environment: Mapping[str, str] | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """`transport`: another way to the collector than the network."""
        super().__init__(context)
        self._environment = os.environ if environment is None else environment
        self._transport = transport
        self._client: httpx.AsyncClient | None = None
        self._log = context.log
        self._lease = Lease(context.bus, context.clock, LEASE_KEY, context.id, ttl_s=LEASE_S)
        self._wake = asyncio.Event()
        self._ended = asyncio.Event()
        self._leaving = False
        """What happened before the end is in the stream: one more read of it, and no more after."""
        self._changed = True
        self._to: _Destination | None = None
        self._stream: EventLog | None = None
        self._store: Store | None = None
        self._revision = 0
        self._gather: Gather | None = None
        """None: how far the stream is exported has to be read."""
        self._read = self._done = self._kept = self._left_out = 0
        self._untold = False
        """The bucket does not know yet how far that is."""
        self._idle = 0
        self._bad_events = 0
        metrics = context.metrics
        self._lag = metrics.gauge("breakwater_export_lag_seconds")
        self._spans = {
            result: metrics.counter("breakwater_spans_total", result=result)
            for result in ("sent", "rejected", "refused")
        }
        self._traces = {
            decision: metrics.counter("breakwater_traces_total", decision=decision)
            for decision in ("exported", "left_out")
        }
        self._lost = metrics.counter("breakwater_export_events_lost_total")
        self._failures = metrics.counter("breakwater_export_failures_total")

    async def start(self, tasks: TaskGroup) -> None:
        await self._settle()
        if self._to is not None:
            # Before anybody behind it in the order of starts serves: the first request is exported too.
            try:
                if await self._lease.hold():
                    self._gather = await self._begin()
            except BusClosed:
                raise
            except (BusError, TimeoutError) as error:
                self._log.warning("export_paused", error=repr(error))
        tasks.start_soon(self._lead)
        tasks.start_soon(self._export)

    async def drain(self) -> None:
        """Send what the stream has, within bounds; the rest is there at the next start."""
        self.draining = True
        try:
            async with asyncio.timeout(DRAIN_S):
                if self._gather is not None:
                    await self.context.bus.flush()
                    await asyncio.sleep(SETTLE_S)
                self._leaving = True
                self._wake.set()
                await self._ended.wait()
                await self._lease.release()
        except (BusError, TimeoutError) as error:
            self._log.info("traces_left", error=repr(error), after=self._done)

    async def stop(self) -> None:
        self.draining = self._leaving = True
        self._wake.set()
        if self._client is not None:
            await self._client.aclose()

    def on_config(self, config: Config, revision: int) -> None:
        super().on_config(config, revision)
        self._changed = True
        self._wake.set()

    # --- Where to -----------------------------------------------------------------------------

    async def _settle(self) -> None:
        """Bring the destination up to the configuration, and say in one line what it is."""
        self._changed = False
        telemetry = self.config.telemetry
        if self._gather is not None:
            self._gather.share = telemetry.trace_sample
            self._gather.slow_s = telemetry.trace_slow_s
        before, self._to = self._to, None
        where = telemetry.otlp
        if not where:
            if before is not None:
                self._log.info("traces_off", why="telemetry.otlp is not configured")
            return
        # Imported where it is needed: protobuf takes its time, and most gateways export nothing.
        from breakwater_gateway.exporter import otlp

        try:
            base = await self._look_up(where)
            if not base:
                reason = "is not set" if str(where).startswith("env:") else "cannot be read"
                self._log.info("traces_off", why=f"{where} {reason}: nothing is exported")
                return
            self._to = _Destination(
                otlp.traces_url(base),
                otlp.read_headers(self._environment),
                otlp.read_resource(
                    self._environment, version=__version__, instance=self.context.id
                ),
            )
        except otlp.BadSetting as bad:
            self._log.warning("traces_off", where=str(where), why=str(bad))
            return
        if self._to != before:
            hint = (
                {"hint": "port 4317 is OTLP over gRPC; OTLP over HTTP is 4318"}
                if otlp.speaks_grpc(self._to.url)
                else {}
            )
            # Where it was written, not what it says: an address may hold a secret.
            self._log.info("traces_on", where=str(where), **hint)

    # --- Who works ----------------------------------------------------------------------------

    async def _lead(self) -> None:
        while not self.draining:
            if self._to is not None:
                try:
                    held = self._lease.held()
                    if await self._lease.hold() and not held:
                        self._wake.set()
                except BusClosed:
                    raise
                except (BusError, TimeoutError) as error:
                    self._log.warning("export_lease_failed", error=repr(error))
            await asyncio.sleep(RENEW_S if self._to is not None else EVERY_S)

    async def _export(self) -> None:
        try:
            while True:
                if self._changed:
                    await self._settle()
                more, pause_s = False, EVERY_S
                if self._to is None or not self._lease.held():
                    self._gather = None
                    self._lag.set(0)
                else:
                    try:
                        more = await self._round()
                    except BusClosed:
                        raise
                    except (BusError, TimeoutError) as error:
                        pause_s = RETRY_S
                        self._log.warning("export_paused", error=repr(error))
                if more:
                    continue
                if self._leaving:
                    return
                await self._pause(pause_s)
        finally:
            self._ended.set()

    async def _pause(self, seconds: float) -> None:
        """Cut short when there is something to heed: another configuration, the end."""
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return
        self._wake.clear()

    # --- What it does -------------------------------------------------------------------------

    async def _round(self) -> bool:
        """Read on, send what that made, keep how far it is. True: there is more to read."""
        from breakwater_gateway.exporter import otlp

        if self._gather is None:
            self._gather = await self._begin()
        gather, to = self._gather, self._to
        if to is None or self._stream is None:
            return False
        events = await self._stream.read(self.context.subjects.events, after=self._read)
        batch = otlp.Batch(to.resource, __version__)
        for number, event in enumerate(events, 1):
            made = self._fold(gather, event)
            # What is read a second time only shows what calls wait for.
            if event.seq > self._done:
                batch.add(made)
            if number % STRIDE == 0:
                await asyncio.sleep(0)
        if not events:
            self._lag.set(0)
            self._idle += 1
            if self._idle % IDLE_CHECK == 0 and await self._astray():
                self._gather = None
                return True
            batch.add(gather.tick(self.context.clock.wall()))
        if batch.count and not await self._send(batch, events[0].at if events else None):
            self._gather = None  # it is read again, and sent then
            return False
        if events:
            self._idle = 0
            self._count(events[0].seq, gather)
            self._read = events[-1].seq
            self._done = max(self._done, self._read)
            self._untold = True
        if self._untold and not await self._keep(gather):
            return True
        return bool(events)

    async def _begin(self) -> Gather:
        """Where the last exporter stopped; the first of all begins with what happens from now on."""
        bus, telemetry = self.context.bus, self.config.telemetry
        if self._stream is None or self._store is None:
            self._stream = await bus.event_log(STREAM)
            self._store = await bus.store(BUCKET)
        last = await self._stream.last(self.context.subjects.events)
        end = last.seq if last is not None else 0
        entry = await self._store.get(KEY)
        cursor = Cursor(end, end)
        self._revision = 0
        if entry is not None and entry.value is not None:
            self._revision = entry.revision
            try:
                cursor = cursors.decode(entry.value)
            except msgspec.MsgspecError as error:
                self._log.warning("export_cursor_unreadable", error=str(error)[:200])
        if cursor.done > end:
            cursor = Cursor(0, 0)  # another stream: its server lost its disk
        self._read, self._done = cursor.after, cursor.done
        self._kept = self._left_out = 0
        self._untold = not self._revision
        self._log.info("export_begins", after=cursor.after, done=cursor.done, end=end)
        return Gather(share=telemetry.trace_sample, slow_s=telemetry.trace_slow_s)

    async def _astray(self) -> bool:
        """The stream began anew, or an operator said where to go on."""
        if self._stream is None or self._store is None:
            return False
        last = await self._stream.last(self.context.subjects.events)
        entry = await self._store.get(KEY)
        return (last.seq if last is not None else 0) < self._done or (
            (entry.revision if entry is not None else 0) != self._revision
        )

    def _fold(self, gather: Gather, event: Stored) -> list[Span]:
        subjects = self.context.subjects
        kind = event.subject[len(subjects.root) + 5 :].partition(".")[0]
        try:
            if kind == "attempt":
                attempt = subjects.attempt.decode(event.data)
                return gather.attempt(attempt, seq=event.seq, now=event.at)
            if kind == "request":
                return gather.request(subjects.request.decode(event.data), now=event.at)
        except msgspec.MsgspecError as error:
            self._bad_events += 1
            if self._bad_events & (self._bad_events - 1) == 0:  # the 1st, 2nd, 4th, …: no flood
                self._log.warning("bad_event", subject=event.subject[:200], error=str(error)[:200])
        return []

    def _count(self, first: int, gather: Gather) -> None:
        gap = first - self._read - 1
        if gap > 0:
            self._lost.add(gap)
            self._log.warning("export_events_lost", count=gap, why="the stream forgot them")
        if first > self._done:
            self._traces["exported"].add(gather.kept - self._kept)
            self._traces["left_out"].add(gather.left_out - self._left_out)
        self._kept, self._left_out = gather.kept, gather.left_out

    async def _keep(self, gather: Gather) -> bool:
        """False: somebody else has come further, or further back; where to go on has to be read."""
        if self._store is None:
            return False
        needed = gather.needed
        after = self._read if needed is None else min(self._read, needed - 1)
        value = cursors.encode(Cursor(after, self._done))
        try:
            if self._revision:
                self._revision = await self._store.update(KEY, value, revision=self._revision)
            else:
                self._revision = await self._store.create(KEY, value)
        except WrongRevision:
            self._gather = None
            return False
        self._untold = False
        return True

    # --- How it is sent -----------------------------------------------------------------------

    async def _send(self, batch: "otlp.Batch", oldest_at: float | None) -> bool:
        """False: it was not sent, and has to be made again."""
        from breakwater_gateway.exporter import otlp

        data = batch.data()
        # A thread only where it takes longer than going there and back.
        body = (
            gzip.compress(data, 1)
            if len(data) < INLINE_BYTES
            else await asyncio.to_thread(gzip.compress, data, 1)
        )
        failures = 0
        while self._to is not None:
            said = await self._post(self._to, body)
            match said:
                case otlp.Taken():
                    rejected = min(said.rejected, batch.count)
                    self._spans["sent"].add(batch.count - rejected)
                    self._spans["rejected"].add(rejected)
                    if rejected or said.message:
                        self._log.warning("spans_rejected", count=rejected, said=said.message)
                    if failures:
                        self._log.info("traces_sent_again", failures=failures)
                    return True
                case otlp.Refused():
                    self._spans["refused"].add(batch.count)
                    self._log.warning("spans_refused", count=batch.count, why=said.why)
                    return True
                case otlp.TryAgain():
                    failures += 1
                    self._failures.add()
                    if oldest_at is not None:
                        self._lag.set(max(0.0, self.context.clock.wall() - oldest_at))
                    if failures & (failures - 1) == 0:
                        self._log.warning("traces_not_sent", why=said.why, failures=failures)
                    if self.draining or not self._lease.held():
                        return False
                    draw = self.context.clock.draw()
                    wait_s = otlp.backoff_s(failures, draw=draw)
                    await self._pause(wait_s if said.after_s is None else max(said.after_s, 0.1))
                    if self._changed:
                        await self._settle()
        return False

    async def _post(self, to: _Destination, body: bytes) -> "otlp.Verdict":
        from breakwater_gateway.exporter import otlp

        if self._client is None:
            self._client = httpx.AsyncClient(
                transport=self._transport, timeout=POST_S, trust_env=False
            )
        ours = {
            "content-type": otlp.CONTENT_TYPE,
            "content-encoding": "gzip",
            "accept-encoding": "identity",
            "user-agent": f"breakwater/{__version__}",
        }
        try:
            async with (
                asyncio.timeout(POST_S),
                self._client.stream(
                    "POST", to.url, content=body, headers={**to.headers, **ours}
                ) as answer,
            ):
                said = b""
                async for piece in answer.aiter_raw():
                    said += piece
                    if len(said) > ANSWER_BYTES_MAX:
                        break
                headers = {name.lower(): value for name, value in answer.headers.items()}
                return otlp.verdict(
                    answer.status_code, headers, said, now=self.context.clock.wall()
                )
        except (httpx.HTTPError, TimeoutError) as error:
            # The kind of the error alone: its words may hold the address, which may be a secret.
            return otlp.TryAgain(type(error).__name__)
        except httpx.InvalidURL:
            return otlp.Refused("the endpoint is not a URL")

    async def _look_up(self, where: str | KeyRef) -> str:
        """The endpoint's base; empty: there is none here."""
        if isinstance(where, str):
            return where
        if where.source == "env":
            return self._environment.get(where.name, "").strip()
        return await asyncio.to_thread(_read_file, where.name)


def _read_file(name: str) -> str:
    try:
        with Path(name).open("rb") as file:
            return file.read(ADDRESS_BYTES_MAX).decode().strip()
    except (OSError, UnicodeDecodeError):
        return ""
