"""Views: fold published facts into what a subscriber wants to know.

`BreakerBoard` folds breaker changes, `LoadBoard` folds heartbeats. Both are values without a clock: time
comes in as an argument, wall time (`now_wall`, Unix seconds) for facts that were published, the
receiver's monotonic time (`now`, seconds) for what it saw itself. A router, a console and a stranger's
dashboard fold the same events with the same code. Everything they hold is bounded.
"""

import hashlib
from collections.abc import Collection, Iterable
from typing import Final

from breakwater_protocol.events import BreakerChanged, BreakerState, Heartbeat

TARGETS_MAX: Final = 20_000
"""Targets a board keeps; facts of further ones are refused and counted."""

WORKERS_MAX: Final = 2_000
TARGETS_PER_WORKER_MAX: Final = 5_000
POOLS_PER_WORKER_MAX: Final = 64

RAMP: Final = (0.10, 0.25, 0.50)
"""The share of calls in each third of the ramp after an outage."""

STALE_S: Final = 5.0
"""An open breaker this long past its `until` has no owner: it counts as half open."""

ALIVE_S: Final = 2.0
"""A worker is alive for this long after a heartbeat; it beats twice a second."""


class BreakerBoard:
    """The last known state of every target's breaker: fold events and KV values in any order.

    The epoch decides which of two facts is newer, so duplicates and late deliveries change nothing.
    A target never heard of is closed at epoch 0.
    """

    __slots__ = ("_hash", "_last", "refused")

    def __init__(self) -> None:
        self._last: dict[str, BreakerChanged] = {}
        self._hash = ""
        self.refused = 0
        """Facts dropped because the board was full."""

    def __len__(self) -> int:
        return len(self._last)

    def __contains__(self, target: str) -> bool:
        return target in self._last

    def fold(self, changed: BreakerChanged) -> bool:
        """True when this was news."""
        last = self._last.get(changed.target)
        if last is not None:
            if changed.epoch <= last.epoch:
                return False
        elif len(self._last) >= TARGETS_MAX:
            self.refused += 1
            return False
        self._last[changed.target] = changed
        self._hash = ""
        return True

    def targets(self) -> tuple[str, ...]:
        """Those that were heard of."""
        return tuple(self._last)

    def last(self, target: str) -> BreakerChanged | None:
        return self._last.get(target)

    def state(self, target: str, now_wall: float) -> BreakerState:
        """What a caller should act on.

        An open target whose `until` passed `STALE_S` ago without a word from health counts as half open:
        with no health actor at all a target is still probed, once per claim of its epoch.
        """
        last = self._last.get(target)
        if last is None:
            return "closed"
        if last.state == "open" and now_wall >= last.until + STALE_S:
            return "half_open"
        return last.state

    def epoch(self, target: str) -> int:
        """The epoch that a permit taken now carries."""
        last = self._last.get(target)
        return 0 if last is None else last.epoch

    def until(self, target: str) -> float:
        """Unix time at which an open target may be probed; 0 when it is not open."""
        last = self._last.get(target)
        return last.until if last is not None and last.state == "open" else 0.0

    def share(self, target: str, now_wall: float) -> float:
        """Of the calls that may go there: less than 1 for a while after an outage."""
        last = self._last.get(target)
        return 1.0 if last is None or not last.ramp_until else share(last, now_wall)

    def remove(self, target: str) -> None:
        if self._last.pop(target, None) is not None:
            self._hash = ""

    def retain(self, targets: Collection[str]) -> None:
        """Forget every target that is not one of these."""
        for target in [known for known in self._last if known not in targets]:
            self.remove(target)

    def hash(self) -> str:
        """12 hex digits over (target, state, epoch) of all targets, whatever order they came in."""
        if not self._hash:
            digest = hashlib.blake2s(digest_size=6)
            for target in sorted(self._last):
                last = self._last[target]
                digest.update(f"{target}\0{last.state}\0{last.epoch}\n".encode("utf-8", "replace"))
            self._hash = digest.hexdigest()
        return self._hash


def share(changed: BreakerChanged, now_wall: float) -> float:
    """The ramp of a closed breaker: 10, 25, then 50 % over its thirds, then everything.

    Computed by every reader from the one event, so that no further one can be lost.
    """
    if changed.state != "closed" or now_wall >= changed.ramp_until:
        return 1.0
    left = (changed.ramp_until - now_wall) / max(changed.ramp_until - changed.at, 1e-9)
    steps = len(RAMP)
    return RAMP[min(steps - 1, max(0, int((1.0 - left) * steps)))]


class _Tally:
    """Calls in flight at one worker, or at one target: what was reported, mended by what we know.

    `live` are our own calls. `fresh` are those sent since the last report that could hold them; `gone`
    are those that a report may still hold although they ended since. All are sets of ids, emptied by the
    next report, so an error never outlives one heartbeat.
    """

    __slots__ = ("fresh", "gone", "live", "reported")

    def __init__(self) -> None:
        self.reported = 0
        self.live: set[tuple[str, str]] = set()
        self.fresh: set[tuple[str, str]] = set()
        self.gone: set[tuple[str, str]] = set()

    def in_flight(self) -> int:
        estimate = self.reported + len(self.fresh) - len(self.gone)
        mine = len(self.live)
        return max(mine, estimate)

    def idle(self) -> bool:
        return not (self.reported or self.live or self.fresh or self.gone)


class _Worker:
    __slots__ = ("capacity", "draining", "id", "pools", "seen_at", "tally", "targets")

    def __init__(self, id_: str, tally: _Tally) -> None:
        self.id = id_
        self.tally = tally
        self.capacity = 0
        self.draining = False
        self.pools: frozenset[str] = frozenset()
        self.targets: dict[str, int] = {}
        self.seen_at = 0.0


class LoadBoard:
    """Which workers live and how busy they and their targets are, from heartbeats and our own dispatches.

    A heartbeat counts everybody's calls but is up to half a second old; our own calls are known exactly
    but are only a part. In flight is therefore `reported + ours sent since that report - ours ended
    since it`, and never less than ours now. A call sent in the last moment before a report arrives may
    be missing from it: the estimate is then short by it until the next beat, no longer.

    Workers silent for `ALIVE_S` are dropped when the board is told the time: by `fold`, `alive` or
    `choose_worker(..., now=...)`.
    """

    __slots__ = (
        "_by_pool",
        "_expires_at",
        "_targets",
        "_workers",
        "_workers_own",
        "refused",
        "version",
    )

    def __init__(self) -> None:
        self.version = 0
        """Grows whenever `serves` may answer otherwise than before."""
        self._workers: dict[str, _Worker] = {}
        self._workers_own: dict[str, _Tally] = {}
        self._targets: dict[str, _Tally] = {}
        self._by_pool: dict[str, tuple[_Worker, ...]] = {}
        self._expires_at = float("inf")
        self.refused = 0
        """Heartbeats, or targets in them, dropped because the board was full."""

    # What others report.

    def fold(self, beat: Heartbeat, now: float) -> None:
        """A heartbeat, of any actor, heard at `now`."""
        if beat.actor != "worker":
            return
        self._expire(now)
        worker = self._workers.get(beat.id)
        if worker is None:
            if len(self._workers) >= WORKERS_MAX:
                self.refused += 1
                return
            worker = self._workers[beat.id] = _Worker(beat.id, self._own(beat.id))
            self._pools_changed()
        pools = frozenset(beat.pools[:POOLS_PER_WORKER_MAX])
        capacity = max(0, beat.capacity)
        if (worker.capacity > 0, worker.draining, worker.pools) != (
            capacity > 0,
            beat.draining,
            pools,
        ):
            self._pools_changed()
        worker.capacity, worker.draining, worker.pools = capacity, beat.draining, pools
        worker.seen_at = now
        self._expires_at = min(self._expires_at, now + ALIVE_S)
        self._report(worker, max(0, beat.in_flight), beat)

    def alive(self, now: float) -> tuple[str, ...]:
        """Ids of the workers that may be given work: heard of within `ALIVE_S` and not draining."""
        self._expire(now)
        return tuple(worker.id for worker in self._workers.values() if not worker.draining)

    def remove(self, worker: str) -> None:
        """The worker is known to be gone; its next heartbeat brings it back."""
        known = self._workers.pop(worker, None)
        if known is None:
            return
        self._pools_changed()
        self._report(known, 0, None)
        self._forget_worker_if_idle(worker)

    # What we did ourselves.

    def dispatched(self, worker: str, target: str, request: str) -> None:
        """We sent this request's attempt to that worker. The same call twice counts once."""
        mine = self._own(worker)
        if (target, request) in mine.live:
            return
        mine.live.add((target, request))
        mine.fresh.add((target, request))
        theirs = self._targets.get(target)
        if theirs is None:
            theirs = self._targets[target] = _Tally()
        theirs.live.add((worker, request))
        theirs.fresh.add((worker, request))

    def finished(self, worker: str, target: str, request: str) -> None:
        """That attempt is over, however it ended. Unknown or repeated calls change nothing."""
        mine = self._workers_own.get(worker)
        if mine is None or (target, request) not in mine.live:
            return
        theirs = self._targets[target]
        mine.live.discard((target, request))
        theirs.live.discard((worker, request))
        if (target, request) in mine.fresh:
            mine.fresh.discard((target, request))
            theirs.fresh.discard((worker, request))
        elif worker in self._workers:
            mine.gone.add((target, request))
            theirs.gone.add((worker, request))
        self._forget_target_if_idle(target)
        self._forget_worker_if_idle(worker)

    # What a router asks.

    def in_flight(self, target: str) -> int:
        """Calls at this target, of all routers, as far as can be known."""
        tally = self._targets.get(target)
        return 0 if tally is None else tally.in_flight()

    def worker_in_flight(self, worker: str) -> int:
        tally = self._workers_own.get(worker)
        return 0 if tally is None else tally.in_flight()

    def serves(self, pool: str) -> bool:
        """Some live worker takes work of this pool; every worker takes the pool `""`."""
        return bool(self._pool(pool))

    def size(self, pool: str) -> int:
        """How many live workers take work of this pool."""
        return len(self._pool(pool))

    def workers(self, pool: str) -> tuple[str, ...]:
        """The live ones that take work of this pool."""
        return tuple(worker.id for worker in self._pool(pool))

    def choose_worker(
        self,
        pool: str,
        draw: float,
        *,
        now: float | None = None,
        exclude: Collection[str] = (),
    ) -> str | None:
        """The less loaded, relative to capacity, of two workers of the pool drawn at random.

        Mitzenmacher, "The power of two choices in randomized load balancing": near the best choice
        without everybody's herd on it. When both drawn are full, or excluded, the least loaded of the
        pool is taken; it may be full too, and then says `busy` itself. None: the pool has no worker.
        `draw` is uniform in [0, 1).
        """
        if now is not None and now >= self._expires_at:
            self._expire(now)
        workers = self._by_pool.get(pool)
        if workers is None:
            workers = self._pool(pool)
        if exclude:
            workers = tuple(worker for worker in workers if worker.id not in exclude)
        count = len(workers)
        if count < 2:
            return workers[0].id if workers else None
        pick = int(draw * (count * (count - 1)))
        first, second = divmod(pick, count - 1)
        if second >= first:
            second += 1
        one, other = workers[first], workers[second]
        one_load, other_load = one.tally.in_flight(), other.tally.in_flight()
        if one_load >= one.capacity and other_load >= other.capacity:
            return min(workers, key=_relative_load).id
        if one_load * other.capacity <= other_load * one.capacity:
            return one.id
        return other.id

    def has_room(self, pool: str, *, exclude: Collection[str]) -> bool:
        """Some other worker of the pool has less in flight than it takes, as far as is known here."""
        return any(
            worker.tally.in_flight() < worker.capacity
            for worker in self._by_pool.get(pool) or self._pool(pool)
            if worker.id not in exclude
        )

    # Bookkeeping.

    def _own(self, worker: str) -> _Tally:
        tally = self._workers_own.get(worker)
        if tally is None:
            tally = self._workers_own[worker] = _Tally()
        return tally

    def _pools_changed(self) -> None:
        self._by_pool.clear()
        self.version += 1

    def _pool(self, pool: str) -> tuple[_Worker, ...]:
        workers = self._by_pool.get(pool)
        if workers is None:
            workers = tuple(
                worker
                for worker in self._workers.values()
                if worker.capacity > 0
                and not worker.draining
                and (not pool or pool in worker.pools)
            )
            if len(self._by_pool) < TARGETS_MAX:
                self._by_pool[pool] = workers
        return workers

    def _expire(self, now: float) -> None:
        if now < self._expires_at:
            return
        for worker in [w for w in self._workers.values() if now >= w.seen_at + ALIVE_S]:
            self.remove(worker.id)
        self._expires_at = min(
            (worker.seen_at + ALIVE_S for worker in self._workers.values()), default=float("inf")
        )

    def _report(self, worker: _Worker, in_flight: int, beat: Heartbeat | None) -> None:
        """Replace this worker's row: its old numbers leave the targets' sums as the new ones enter."""
        tally = worker.tally
        touched: set[str] = set(worker.targets)
        for target, request in tally.fresh | tally.gone:
            theirs = self._targets[target]
            theirs.fresh.discard((worker.id, request))
            theirs.gone.discard((worker.id, request))
            touched.add(target)
        tally.fresh.clear()
        tally.gone.clear()
        tally.reported = in_flight
        for target, count in worker.targets.items():
            self._targets[target].reported -= count
        worker.targets = self._bounded_targets(beat) if beat is not None else {}
        for target, count in worker.targets.items():
            self._targets.setdefault(target, _Tally()).reported += count
        self._forget_targets_if_idle(touched)

    def _bounded_targets(self, beat: Heartbeat) -> dict[str, int]:
        room = min(TARGETS_PER_WORKER_MAX, TARGETS_MAX - len(self._targets))
        found: dict[str, int] = {}
        for target, load in beat.targets.items():
            if load.in_flight <= 0:
                continue
            if len(found) >= TARGETS_PER_WORKER_MAX or (target not in self._targets and room <= 0):
                self.refused += 1
                continue
            if target not in self._targets:
                room -= 1
            found[target] = load.in_flight
        return found

    def _forget_targets_if_idle(self, targets: Iterable[str]) -> None:
        for target in targets:
            self._forget_target_if_idle(target)

    def _forget_target_if_idle(self, target: str) -> None:
        tally = self._targets.get(target)
        if tally is not None and tally.idle():
            del self._targets[target]

    def _forget_worker_if_idle(self, worker: str) -> None:
        tally = self._workers_own.get(worker)
        if tally is not None and worker not in self._workers and not tally.live:
            del self._workers_own[worker]


def _relative_load(worker: _Worker) -> float:
    return worker.tally.in_flight() / worker.capacity
