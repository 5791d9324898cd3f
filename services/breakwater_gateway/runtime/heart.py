"""What a process says of itself while it lives: a heartbeat of each actor, and measures of its own."""

from breakwater_gateway import __version__
from breakwater_gateway.runtime.actor import Actor, Load
from breakwater_gateway.runtime.bus import Bus, BusClosed, BusError
from breakwater_gateway.runtime.clock import Clock
from breakwater_gateway.runtime.lag import LagProbe
from breakwater_gateway.runtime.logs import flush_logs
from breakwater_gateway.runtime.slot import Slot
from breakwater_gateway.runtime.telemetry import Metrics
from breakwater_protocol.events import Heartbeat
from breakwater_protocol.subjects import Subjects


class Heart:
    def __init__(
        self, subjects: Subjects, *, clock: Clock, metrics: Metrics, lag: LagProbe
    ) -> None:
        self._subjects = subjects
        self._clock = clock
        self._metrics = metrics
        self._lag = lag
        self._connected = metrics.gauge("breakwater_bus_connected")
        self._loop_lag = metrics.gauge("breakwater_loop_lag_seconds")
        self._errors = metrics.counter("breakwater_handler_errors_total")
        self._dropped = metrics.counter("breakwater_log_lines_dropped_total")
        self._handler_failures = 0
        self._lines_dropped = 0

    def begin(self, bus: Bus) -> None:
        """A bus counts its failures from its own beginning."""
        self._handler_failures = bus.handler_failures

    def measure(self, bus: Bus) -> None:
        self._connected.set(bus.connected)
        self._loop_lag.set(self._lag.lag_s)
        failures = bus.handler_failures
        self._errors.add(failures - self._handler_failures)
        self._handler_failures = failures
        lost = flush_logs()
        self._dropped.add(lost - self._lines_dropped)
        self._lines_dropped = lost

    def beat(self, bus: Bus, slot: Slot, actor: Actor, load: Load) -> None:
        """Raises `BusClosed`; what cannot be sent otherwise is counted."""
        subject = self._subjects.heartbeat
        beat = Heartbeat(
            actor=slot.kind,
            id=slot.id,
            version=__version__,
            at=self._clock.wall(),
            uptime_s=round(self._clock.now() - slot.up_since, 3),
            capacity=load.capacity,
            in_flight=load.in_flight,
            draining=actor.draining,
            pools=list(load.pools),
            targets=load.targets,
            config_revision=actor.config_revision,
            view_hash=load.view_hash,
            loop_lag_ms=round(self._lag.lag_s * 1000, 1),
        )
        try:
            bus.publish(subject.at(slot.kind, slot.id), subject.encode(beat))
        except BusClosed:
            raise
        except BusError as error:
            kind = type(error).__name__
            self._metrics.counter("breakwater_bus_errors_total", error=kind).add()
            slot.log.debug("heartbeat_not_sent", error=str(error))
