"""The supervisor: starts the named actors of a process, restarts what fails, drains on SIGTERM.

Every actor lives in a task group and on a view of the bus of its own; when it fails, both end with it
and its neighbours never notice. It comes back after a full-jitter exponential backoff. A bus that is
closed for good ends all actors, and they start again on a fresh one. Nobody else in the gateway
catches `Exception`.
"""

import asyncio
import platform
import signal
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import anyio
from anyio.abc import TaskGroup, TaskStatus

from breakwater_gateway import __version__
from breakwater_gateway.config.model import Config
from breakwater_gateway.runtime.actor import Actor, Context
from breakwater_gateway.runtime.bus import (
    Bus,
    BusClosed,
    BusError,
)
from breakwater_gateway.runtime.bus_view import BusView
from breakwater_gateway.runtime.clock import Clock
from breakwater_gateway.runtime.heart import Heart
from breakwater_gateway.runtime.lag import LagProbe
from breakwater_gateway.runtime.logs import flush_logs
from breakwater_gateway.runtime.micro import MicroService
from breakwater_gateway.runtime.service import ConfigHolder
from breakwater_gateway.runtime.slot import ActorSpec, Slot, restart_delay_s
from breakwater_gateway.runtime.telemetry import Log, Metrics
from breakwater_protocol.subjects import Subjects

HEARTBEAT_S: Final = 0.5
DRAIN_S: Final = 60.0
START_S: Final = 30.0
"""An actor that has not started by then has failed."""
STOP_S: Final = 5.0
HEALTHY_S: Final = 60.0
"""After so long without a failure the next one counts as the first."""
CONNECT_S: Final = 30.0

Connect = Callable[[], Awaitable[Bus]]


class StartRefused(Exception):
    """An actor cannot start on this machine (a port in use, a file not readable); nothing runs now."""

    def __init__(self, kind: str, cause: OSError) -> None:
        self.kind = kind
        self.cause = cause
        super().__init__(f"{kind} cannot start: {cause}")


class _Session:
    """One bus, from its connection to its end."""

    def __init__(self, bus: Bus, group: TaskGroup) -> None:
        self.bus = bus
        self.group = group
        self.lost = False
        self.drained = False
        self.views: set[BusView] = set()
        bus.on_reconnect(self._reconnected)

    def lose(self) -> None:
        if not self.lost and not self.drained:
            self.lost = True
            self.group.cancel_scope.cancel()

    def _reconnected(self) -> None:
        for view in tuple(self.views):
            view.reconnected()


class Supervisor:
    """Runs `specs` until SIGTERM, or until `drain()` was called and all have left.

    `connect` makes a fresh bus after one was closed for good; without it that ends the run. A second
    signal cuts a drain short.
    """

    def __init__(
        self,
        bus: Bus,
        subjects: Subjects,
        specs: Sequence[ActorSpec],
        config: ConfigHolder,
        *,
        metrics: Metrics,
        log: Log,
        connect: Connect | None = None,
        clock: Clock | None = None,
        lag: LagProbe | None = None,
        drain_s: float = DRAIN_S,
        signals: bool = True,
    ) -> None:
        self._bus = bus
        self._subjects = subjects
        self._config = config
        self._metrics = metrics
        self._log = log
        self._connect = connect
        self._clock = clock if clock is not None else Clock()
        self._lag = lag if lag is not None else LagProbe()
        self._heart = Heart(subjects, clock=self._clock, metrics=metrics, lag=self._lag)
        self._drain_s = drain_s
        self._signals = signals
        self._slots = [Slot(spec) for spec in specs]
        self._session: _Session | None = None
        self._asked = anyio.Event()
        self._hurried = False
        self._drain_scope: anyio.CancelScope | None = None
        self._refused: StartRefused | None = None
        self._begun = self._clock.now()
        self._up = {
            slot.kind: metrics.gauge("breakwater_actor_up", actor=slot.kind) for slot in self._slots
        }
        metrics.gauge(
            "breakwater_build_info", version=__version__, python=platform.python_version()
        ).set(1)

    @property
    def draining(self) -> bool:
        return self._asked.is_set()

    @property
    def actors(self) -> tuple[Actor, ...]:
        """Those that serve now."""
        return tuple(slot.actor for slot in self._slots if slot.actor is not None)

    def drain(self) -> None:
        """What SIGTERM does: the first call drains, the second stops at once."""
        if not self._asked.is_set():
            self._log.info("draining", timeout_s=self._drain_s)
            self._asked.set()
        elif not self._hurried:
            self._hurried = True
            self._log.warning("drain_cut_short", reason="second_signal")
            if self._drain_scope is not None:
                self._drain_scope.cancel()

    def ready(self) -> dict[str, str]:
        """Why this process cannot serve, by part; empty when it can."""
        reasons: dict[str, str] = {}
        if self._session is None or not self._session.bus.connected:
            reasons["bus"] = "not connected"
        if self._asked.is_set():
            reasons["process"] = "draining"
        for slot in self._slots:
            reason = slot.waiting if slot.actor is None else self._ask_ready(slot, slot.actor)
            if reason:
                several = sum(other.kind == slot.kind for other in self._slots) > 1
                reasons[f"{slot.kind}/{slot.id}" if several else slot.kind] = reason
        return reasons

    def bus_closed(self, reason: str) -> None:
        """For the bus to call when it is closed for good; without it a heartbeat finds out."""
        if self._session is not None and not self._session.drained:
            self._log.error("bus_closed", reason=reason)
            self._session.lose()

    async def run(self) -> int:
        """0 after a drain, 1 when the bus is gone for good. Raises `StartRefused`; nothing runs then."""
        bus: Bus | None = self._bus
        end_listening = self._config.listen(self._on_config)
        self._lag.start()
        try:
            with self._handled_signals():
                while bus is not None:
                    session = await self._run_session(bus)
                    if session.drained:
                        return 0
                    bus = await self._reconnect()
            return 0 if self._asked.is_set() else 1
        finally:
            self._lag.stop()
            end_listening()
            flush_logs()

    # ------------------------------------------------------------ one bus

    async def _run_session(self, bus: Bus) -> _Session:
        try:
            async with anyio.create_task_group() as group:
                session = self._session = _Session(bus, group)
                group.start_soon(self._beat_on, session)
                group.start_soon(self._follow_config, session)
                group.start_soon(self._leave_when_asked, session)
                for slot in self._slots:
                    await group.start(self._keep_alive, slot, session)
                self._log.info("started", actors=[slot.kind for slot in self._slots])
        finally:
            self._session = None
            with anyio.CancelScope(shield=True), anyio.move_on_after(2 * STOP_S):
                await self._close(bus)
        if self._refused is not None:
            raise self._refused
        return session

    async def _close(self, bus: Bus) -> None:
        """After the actors have left: what they said last goes out."""
        try:
            await bus.flush(STOP_S)
        except BusError as error:
            self._log.warning("bus_not_flushed", error=str(error))
        try:
            await bus.close()
        except BusError as error:
            self._log.warning("bus_not_closed", error=str(error))

    async def _reconnect(self) -> Bus | None:
        """A fresh bus, or None when there is none to have or no more need."""
        if self._connect is None:
            self._log.error("bus_closed", mend="the process has to be started again")
            return None
        failures = 0
        while not self._asked.is_set():
            failures += 1
            delay = restart_delay_s(failures, draw=self._clock.draw())
            self._log.warning("bus_lost", reconnect_in_s=delay, attempt=failures)
            with anyio.move_on_after(delay):
                await self._asked.wait()
                return None
            try:
                with anyio.fail_after(CONNECT_S):
                    return await self._connect()
            except (BusError, TimeoutError) as error:
                self._log.warning("bus_not_reached", error=str(error) or "timed out")
            except Exception:  # noqa: BLE001 - a fault in one try must not end the tries
                self._log.exception("bus_not_made")
        return None

    async def _follow_config(self, session: _Session) -> None:
        try:
            await self._config.follow(session.bus, self._subjects)
        except BusClosed:
            session.lose()

    # ------------------------------------------------------------ one actor

    async def _keep_alive(
        self, slot: Slot, session: _Session, *, task_status: TaskStatus[None]
    ) -> None:
        """One actor's lives, one after the other. `started` once the first has begun or failed."""
        started = False

        def begun() -> None:
            nonlocal started
            if not started:
                started = True
                task_status.started()

        while not self._asked.is_set():
            error = _bare(await self._live(slot, session, begun))
            if error is None or self._asked.is_set():
                break
            if _holds(error, BusClosed):
                session.lose()
                break
            if not slot.served and not started and (cause := _refusal(error)) is not None:
                self._refused = StartRefused(slot.kind, cause)
                self._log.error("start_refused", actor=slot.kind, error=str(cause))
                session.group.cancel_scope.cancel()
                break
            if slot.up_since and self._clock.now() - slot.up_since >= HEALTHY_S:
                slot.failures = 0
            slot.failures += 1
            delay = restart_delay_s(slot.failures, draw=self._clock.draw())
            slot.waiting = f"failed ({type(error).__name__}), starts again in {delay:.1f} s"
            slot.log.error(
                "actor_failed", failures=slot.failures, restart_in_s=delay, exc_info=error
            )
            self._metrics.counter("breakwater_actor_restarts_total", actor=slot.kind).add()
            begun()
            await anyio.sleep(delay)
        begun()

    async def _live(
        self, slot: Slot, session: _Session, begun: Callable[[], None]
    ) -> Exception | None:
        """One life. What ended it, None when it was told to leave."""
        view = BusView(session.bus, self._subjects, slot.fail)
        session.views.add(view)
        actor: Actor | None = None
        slot.waiting, slot.error, slot.up_since = "starting", None, 0.0
        try:
            async with anyio.create_task_group() as tasks:
                slot.scope = tasks.cancel_scope
                actor = slot.spec.factory(self._context(slot, view))
                with anyio.fail_after(START_S):
                    await actor.start(tasks)
                    await self._register(slot, view)
                if actor.config_revision != self._config.revision:
                    actor.on_config(self._config.config, self._config.revision)
                slot.actor, slot.waiting, slot.served = actor, "", True
                slot.up_since = self._clock.now()
                self._count_up(slot.kind)
                slot.log.info("actor_started")
                self._beat_one(session, slot, actor)
                begun()
                await anyio.sleep_forever()
        except Exception as error:  # noqa: BLE001 - the one place where an actor's fault ends
            slot.error = slot.error or error
        finally:
            slot.actor, slot.scope = None, None
            if not slot.waiting:
                slot.waiting = "stopped"
            self._count_up(slot.kind)
            if slot.draining is not None:
                slot.draining.cancel()
            session.views.discard(view)
            with anyio.CancelScope(shield=True):
                await self._bury(slot, session, actor, view)
        return slot.error

    async def _bury(
        self, slot: Slot, session: _Session, actor: Actor | None, view: BusView
    ) -> None:
        """Nothing of an ended life stays on the bus: a dead subscription would swallow requests."""
        try:
            with anyio.fail_after(STOP_S):
                if actor is not None:
                    await actor.stop()
        except Exception:
            slot.log.exception("actor_stop_failed")
        with anyio.move_on_after(STOP_S):
            if not session.lost:
                await view.end()

    async def _register(self, slot: Slot, view: BusView) -> None:
        """`nats micro ls` sees the actor. Its counters begin anew with each life."""
        service = MicroService(
            view,
            f"breakwater-{slot.kind}",
            slot.id,
            __version__,
            slot.spec.description or f"Breakwater's {slot.kind}",
            view.endpoints,
            started=self._clock.wall(),
        )
        await service.start()

    def _context(self, slot: Slot, view: BusView) -> Context:
        return Context(
            id=slot.id,
            bus=view,
            subjects=self._subjects,
            clock=self._clock,
            log=slot.log,
            metrics=self._metrics,
            config=self._config.config,
            config_revision=self._config.revision,
        )

    def _count_up(self, kind: str) -> None:
        alive = sum(slot.kind == kind and slot.actor is not None for slot in self._slots)
        self._up[kind].set(alive)

    def _on_config(self, config: Config, revision: int) -> None:
        for slot in self._slots:
            if slot.actor is not None:
                try:
                    slot.actor.on_config(config, revision)
                except Exception as error:  # noqa: BLE001 - goes to the restart, with its traceback
                    slot.fail(error)

    def _ask_ready(self, slot: Slot, actor: Actor) -> str:
        try:
            return actor.ready()
        except Exception as error:  # noqa: BLE001 - goes to the restart, with its traceback
            slot.fail(error)
            return f"failed ({type(error).__name__})"

    # ------------------------------------------------------------ heartbeats

    async def _beat_on(self, session: _Session) -> None:
        self._heart.begin(session.bus)
        while True:
            self._beat(session)
            self._heart.measure(session.bus)
            await anyio.sleep(HEARTBEAT_S)

    def _beat(self, session: _Session) -> None:
        for slot in self._slots:
            if slot.actor is not None:
                self._beat_one(session, slot, slot.actor)

    def _beat_one(self, session: _Session, slot: Slot, actor: Actor) -> None:
        try:
            load = actor.load()
        except Exception as error:  # noqa: BLE001 - goes to the restart, with its traceback
            slot.fail(error)
            return
        try:
            self._heart.beat(session.bus, slot, actor, load)
        except BusClosed:
            session.lose()

    # ------------------------------------------------------------ leaving

    async def _leave_when_asked(self, session: _Session) -> None:
        await self._asked.wait()
        with anyio.move_on_after(self._drain_s) as self._drain_scope:
            if not self._hurried:
                await self._drain_all()
        if self._drain_scope.cancelled_caught:
            cut = [slot.kind for slot in self._slots if slot.actor is not None]
            self._log.warning("drain_incomplete", cut=cut)
        else:
            self._log.info("drained")
        session.drained = True
        session.group.cancel_scope.cancel()

    async def _drain_all(self) -> None:
        """In waves; a wave that takes long holds up the next for half of what time is left at most."""
        ends = self._clock.now() + self._drain_s
        async with anyio.create_task_group() as group:
            for order in sorted({slot.order for slot in self._slots}):
                done = []
                for slot in self._slots:
                    if slot.order == order and slot.actor is not None:
                        slot.actor.draining = True
                        done.append(anyio.Event())
                        group.start_soon(self._drain_one, slot, slot.actor, done[-1])
                # Said at once, and only of those that leave now: whoever still serves is still chosen.
                if self._session is not None:
                    self._beat(self._session)
                with anyio.move_on_after((ends - self._clock.now()) / 2):
                    for event in done:
                        await event.wait()

    async def _drain_one(self, slot: Slot, actor: Actor, done: anyio.Event) -> None:
        try:
            with anyio.CancelScope() as slot.draining:
                await actor.drain()
                slot.log.info("actor_drained")
        except Exception:
            slot.log.exception("actor_drain_failed")
        finally:
            slot.draining = None
            done.set()

    @contextmanager
    def _handled_signals(self) -> Iterator[None]:
        handled: list[signal.Signals] = []
        loop = asyncio.get_running_loop()
        try:
            if self._signals:
                for number in (signal.SIGTERM, signal.SIGINT):
                    loop.add_signal_handler(number, self.drain)
                    handled.append(number)
            yield
        finally:
            for number in handled:
                loop.remove_signal_handler(number)


def _bare(error: Exception | None) -> Exception | None:
    """What a task group wrapped, when it wrapped one thing."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _holds(error: Exception, kind: type[Exception]) -> bool:
    if isinstance(error, ExceptionGroup):
        return any(_holds(inner, kind) for inner in error.exceptions)
    return isinstance(error, kind)


def _refusal(error: Exception) -> OSError | None:
    """The machine's own No to a first start. A peer that does not answer is waited for instead."""
    waits = TimeoutError | ConnectionError
    return error if isinstance(error, OSError) and not isinstance(error, waits) else None
