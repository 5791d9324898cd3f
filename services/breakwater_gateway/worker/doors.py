"""The doors of a worker: which attempts go to their target now, which wait before its gate, which are refused.

It holds the gates of the targets that have a limit, configured (`max_in_flight`, of which each worker that
serves the deployment takes its share) or found (`limiter.py`). What it decides comes back through two
callbacks: `begin` an attempt, or `refuse` it with an honest wait. A target without a limit costs an attempt
two look-ups and the queues nothing.

Where a deployment has a pool of keys a call passes two doors, its key's (`<id>#key2`) and then the deployment's:
a refusal for its rate cuts what its key is given, `max_in_flight` bounds all of them.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Final, Generic, Literal, Protocol, TypeVar

from breakwater_gateway.config.model import Deployment
from breakwater_gateway.config.targets import key_target, kind_of
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
    places: tuple[str, ...]
    """The doors that it passes, in order; set when it comes."""
    waiting: str
    """The door before whose gate it stands; empty: before none."""

    def admitted(self, now: float) -> None:
        """It waited, and goes in now."""
        ...


R = TypeVar("R", bound=Comer)
Why = Literal["queue", "gave_way", "too_old", "stopped"]
"""Why there is no place: the queue is too long, a higher priority took it, it waited too long; nobody waits any more."""


class Doors(Generic[R]):
    def __init__(
        self, clock: Clock, *, begin: Callable[[R], None], refuse: Callable[[R, float, Why], None]
    ) -> None:
        """`refuse` is told the seconds after which the attempt may come again, and why it may not go."""
        self._clock = clock
        self._begin = begin
        self._refuse = refuse
        self._in_flight: dict[str, int] = {}
        self._gates: dict[str, Gate[R]] = {}
        self._deployments: tuple[Deployment, ...] = ()
        self._pools: dict[str, tuple[str, ...]] = {}
        """Deployments with several keys -> the keys' names."""
        self._fleet = LoadBoard()
        """The other workers."""
        self._fleet_seen = 0
        self.waiting = 0
        """Attempts before all the gates together."""
        self.came: set[str] = set()
        """Doors before which somebody had to wait, since this was emptied."""

    # ------------------------------------------------------------ in and out

    def enter(self, run: R) -> None:
        work = run.work
        keys = self._pools.get(work.target)
        run.places = (work.target,) if keys is None else (keys[work.key % len(keys)], work.target)
        self._pass(run, run.places)

    def ended(self, run: R) -> None:
        """A call is over; `learned` follows where its end says something."""
        for place in run.places:
            self._one_less(place)

    def learned(
        self,
        run: R,
        failure: f.Failure | None,
        *,
        sent_at: float,
        first_token_s: float | None,
    ) -> None:
        """What the end of a call says of how many its target bears: an answer, or a refusal for its rate,
        which is about the key."""
        for place in run.places:
            gate = self._gates.get(place)
            throttled = isinstance(failure, f.RateLimited) and place == run.places[0]
            if gate is None:
                if not throttled:
                    continue
                gate = self._gates[place] = Gate(None)
            in_flight = self._in_flight.get(place, 0) + 1
            now = self._clock.now()
            if throttled:
                gate.limiter.throttled(in_flight=in_flight, sent_at=sent_at, now=now)
            elif failure is None:
                gate.limiter.answered(in_flight=in_flight, first_token_s=first_token_s, now=now)
            if gate.waiting:
                self._let_in(gate, place)
            elif gate.limiter.idle:
                del self._gates[place]

    def leave(self, run: R) -> None:
        """It waits before a gate no more."""
        place = run.waiting
        gate = self._gates.get(place)
        if gate is not None and place:
            gate.remove(run)
            self._left(run)
            self._watch(gate, place)
            self._give_back(run, place)

    def close(self) -> None:
        """Everybody who waits is refused: before the keys first, whose places those behind them hold."""
        for place, gate in sorted(self._gates.items(), key=lambda each: kind_of(each[0]) != "key"):
            for run in gate.expired(_NEVER):
                self._turn_away(run, gate, "stopped")
            self._watch(gate, place)

    # ------------------------------------------------------------ what limits there are

    def configure(self, deployments: Iterable[Deployment]) -> None:
        known = tuple(deployments)
        self._deployments = tuple(d for d in known if d.max_in_flight)
        self._pools = {
            d.id: tuple(key_target(d.id, key) for key in range(len(d.api_keys)))
            for d in known
            if len(d.api_keys) > 1
        }
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
        found = {
            target: TargetLoad(in_flight=n)
            for target, n in self._in_flight.items()
            if kind_of(target) != "key"
        }
        for target, gate in self._gates.items():
            in_flight = self._in_flight.get(target, 0)
            if in_flight or gate.is_cut:
                found[target] = TargetLoad(in_flight, gate.limit, gate.waiting)
        return found

    def queue(self, place: str, now: float) -> tuple[int, float]:
        """How many wait before that door, and for how many seconds the oldest has."""
        gate = self._gates.get(place)
        if gate is None or not gate.waiting:
            return 0, 0.0
        return gate.waiting, now - gate.oldest()

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

    def _pass(self, run: R, places: tuple[str, ...]) -> None:
        """In through these doors, or to the first of them whose gate holds it up."""
        for place in places:
            in_flight = self._in_flight.get(place, 0)
            gate = self._gates.get(place)
            if gate is not None and not gate.admits(in_flight):
                self._wait(run, gate, place)
                return
            self._in_flight[place] = in_flight + 1
        self._begin(run)

    def _one_less(self, place: str) -> None:
        left = self._in_flight[place] - 1
        if left:
            self._in_flight[place] = left
        else:
            del self._in_flight[place]

    def _give_back(self, run: R, before: str) -> None:
        """It goes no further than this door: the places behind those that it had passed are free."""
        for place in run.places[: run.places.index(before)]:
            self._one_less(place)
            gate = self._gates.get(place)
            if gate is not None and gate.waiting:
                self._let_in(gate, place)

    def _wait(self, run: R, gate: Gate[R], place: str) -> None:
        work, now = run.work, self._clock.now()
        retry_after_s, ousted = gate.offer(run, work.priority, now=now, deadline=now + work.total_s)
        if retry_after_s is not None:
            self._give_back(run, place)
            self._refuse(run, retry_after_s, "queue")
            return
        run.waiting = place
        self.waiting += 1
        self.came.add(place)
        if ousted is not None:
            self._turn_away(ousted, gate, "gave_way")
        self._watch(gate, place)

    def _turn_away(self, run: R, gate: Gate[R], why: Why) -> None:
        place = run.waiting
        self._left(run)
        self._give_back(run, place)
        self._refuse(run, gate.retry_after_s(self._clock.now()), why)

    def _left(self, run: R) -> None:
        run.waiting = ""
        self.waiting -= 1

    def _let_in(self, gate: Gate[R], place: str) -> None:
        """A place is free, or somebody has waited too long."""
        now = self._clock.now()
        for late in gate.expired(now):
            self._turn_away(late, gate, "too_old")
        while (run := gate.take(self._in_flight.get(place, 0), now)) is not None:
            self._left(run)
            run.admitted(now)
            self._in_flight[place] = self._in_flight.get(place, 0) + 1
            self._pass(run, run.places[run.places.index(place) + 1 :])
        self._watch(gate, place)

    def _watch(self, gate: Gate[R], target: str) -> None:
        """One timer for all that wait at the gate, for the first of them that will have waited too long."""
        if gate.timer is not None:
            gate.timer.cancel()
            gate.timer = None
        due = gate.next_expiry()
        if due < _NEVER:
            gate.timer = self._clock.call_at(due, partial(self._let_in, gate, target))
