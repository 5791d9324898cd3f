"""The doors of a worker: which attempts go to their target now, which wait before its gate, which are refused.

It holds the gates of the targets that have a limit, configured (`max_in_flight`, of which each worker that
serves the deployment takes its share) or found (`limiter.py`). What it decides comes back through two
callbacks: `begin` an attempt, or `refuse` it with an honest wait. A target without a limit costs an attempt
two look-ups and the queues nothing.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Final, Generic, Protocol, TypeVar

from breakwater_gateway.config.model import Deployment
from breakwater_gateway.runtime.clock import Clock
from breakwater_gateway.worker.gate import Gate
from breakwater_protocol import failures as f
from breakwater_protocol.commands import Work
from breakwater_protocol.events import Heartbeat, TargetLoad
from breakwater_protocol.views import LoadBoard

_NEVER: Final = float("inf")


class Comer(Protocol):
    """An attempt that wants in."""

    work: Work
    waiting: bool
    """It stands before a gate."""

    def admitted(self, now: float) -> None:
        """It waited, and goes in now."""
        ...


R = TypeVar("R", bound=Comer)


class Doors(Generic[R]):
    def __init__(
        self, clock: Clock, *, begin: Callable[[R], None], refuse: Callable[[R, float], None]
    ) -> None:
        """`refuse` is told the seconds after which the attempt may come again."""
        self._clock = clock
        self._begin = begin
        self._refuse = refuse
        self._in_flight: dict[str, int] = {}
        self._gates: dict[str, Gate[R]] = {}
        self._deployments: tuple[Deployment, ...] = ()
        self._fleet = LoadBoard()
        """The other workers."""
        self._fleet_seen = 0
        self.waiting = 0
        """Attempts before all the gates together."""

    # ------------------------------------------------------------ in and out

    def enter(self, run: R) -> None:
        target = run.work.target
        gate = self._gates.get(target)
        if gate is None or gate.admits(self._in_flight.get(target, 0)):
            self._let(run)
        else:
            self._wait(run, gate)

    def ended(self, target: str) -> None:
        """A call is over; `learned` follows where its end says something."""
        left = self._in_flight[target] - 1
        if left:
            self._in_flight[target] = left
        else:
            del self._in_flight[target]

    def learned(
        self,
        target: str,
        failure: f.Failure | None,
        *,
        sent_at: float,
        first_token_s: float | None,
    ) -> None:
        """What the end of a call says of how many its target bears: an answer, or a refusal for its rate."""
        gate = self._gates.get(target)
        throttled = isinstance(failure, f.RateLimited)
        if gate is None:
            if not throttled:
                return
            gate = self._gates[target] = Gate(None)
        in_flight = self._in_flight.get(target, 0) + 1
        now = self._clock.now()
        if throttled:
            gate.limiter.throttled(in_flight=in_flight, sent_at=sent_at, now=now)
        elif failure is None:
            gate.limiter.answered(in_flight=in_flight, first_token_s=first_token_s, now=now)
        if gate.waiting:
            self._let_in(gate, target)
        elif gate.limiter.idle:
            del self._gates[target]

    def leave(self, run: R) -> None:
        """It waits before a gate no more."""
        gate = self._gates.get(run.work.target)
        if gate is not None and run.waiting:
            gate.remove(run)
            self._left(run)
            self._watch(gate, run.work.target)

    def close(self) -> None:
        """Everybody who waits is refused."""
        for gate in self._gates.values():
            for run in gate.expired(_NEVER):
                self._turn_away(run, gate)
            self._watch(gate, "")

    # ------------------------------------------------------------ what limits there are

    def configure(self, deployments: Iterable[Deployment]) -> None:
        self._deployments = tuple(d for d in deployments if d.max_in_flight)
        self._share()

    def heard(self, beat: Heartbeat) -> None:
        """Of another worker."""
        self._fleet.fold(beat, self._clock.now())
        self._look()

    def others(self, pool: str) -> int:
        """How many other workers take work of this pool."""
        return self._fleet.size(pool)

    def loads(self) -> dict[str, TargetLoad]:
        self._fleet.alive(self._clock.now())
        self._look()
        found = {target: TargetLoad(in_flight=n) for target, n in self._in_flight.items()}
        for target, gate in self._gates.items():
            in_flight = self._in_flight.get(target, 0)
            if in_flight or gate.is_cut:
                found[target] = TargetLoad(in_flight, gate.limit, gate.waiting)
        return found

    def _look(self) -> None:
        if self._fleet.version != self._fleet_seen:
            self._fleet_seen = self._fleet.version
            self._share()

    def _share(self) -> None:
        ceilings = {
            d.id: -(-(d.max_in_flight or 1) // (1 + self._fleet.size(d.pool)))
            for d in self._deployments
        }
        for target, gate in list(self._gates.items()):
            gate.limiter.ceiling(ceilings.pop(target, None))
            if gate.waiting:
                self._let_in(gate, target)
            elif gate.limiter.idle:
                del self._gates[target]
        self._gates.update({target: Gate(ceiling) for target, ceiling in ceilings.items()})

    # ------------------------------------------------------------ before a gate

    def _let(self, run: R) -> None:
        target = run.work.target
        self._in_flight[target] = self._in_flight.get(target, 0) + 1
        self._begin(run)

    def _wait(self, run: R, gate: Gate[R]) -> None:
        work, now = run.work, self._clock.now()
        retry_after_s, ousted = gate.offer(run, work.priority, now=now, deadline=now + work.total_s)
        if retry_after_s is not None:
            self._refuse(run, retry_after_s)
            return
        run.waiting = True
        self.waiting += 1
        if ousted is not None:
            self._turn_away(ousted, gate)
        self._watch(gate, work.target)

    def _turn_away(self, run: R, gate: Gate[R]) -> None:
        self._left(run)
        self._refuse(run, gate.retry_after_s(self._clock.now()))

    def _left(self, run: R) -> None:
        run.waiting = False
        self.waiting -= 1

    def _let_in(self, gate: Gate[R], target: str) -> None:
        """A place is free, or somebody has waited too long."""
        now = self._clock.now()
        for late in gate.expired(now):
            self._turn_away(late, gate)
        while (run := gate.take(self._in_flight.get(target, 0), now)) is not None:
            self._left(run)
            run.admitted(now)
            self._let(run)
        self._watch(gate, target)

    def _watch(self, gate: Gate[R], target: str) -> None:
        """One timer for all that wait at the gate, for the first of them that will have waited too long."""
        if gate.timer is not None:
            gate.timer.cancel()
            gate.timer = None
        due = gate.next_expiry()
        if due < _NEVER:
            gate.timer = self._clock.call_at(due, partial(self._let_in, gate, target))
