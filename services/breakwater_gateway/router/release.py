"""The release of requests to one target: how many may go untried, and who waits while it refuses.

A 429 is about the target, not about the request that met it: so it pauses the target, and everybody who
would go there waits in one queue instead of each on its own. When the pause is over one request goes as
a probe; if it is not refused the others follow at a rate that doubles until the target refuses again,
and grows by a little from then on (additive increase, multiplicative decrease: Chiu and Jain, 1989, with
the decrease of CUBIC, RFC 9438). A rate, not a window: providers limit calls a minute, and a call of
minutes would hold a window's place long after it counted.

A pool of provider keys has a release for each of them and one queue before them all (`throttle.py`).

Before any refusal a target may have `UNTRIED_MAX` calls that nobody has answered yet, and two more for
each that was taken: a herd on a cold gateway is refused by the dozen, not by the thousand (slow start,
RFC 5681). A call that was not refused for `PATIENCE_S` counts as taken: refusals come at once.

A value without a clock: `now` is monotonic seconds. Bounded by what the router has in flight.
"""

from collections import deque
from typing import Final, Literal

from breakwater_gateway.worker.provider_limits import RETRY_AFTER_MAX_S

UNTRIED_MAX: Final = 64
PATIENCE_S: Final = 0.25
RATE_FIRST: Final = 10.0
"""Releases a second after the first probe: 600 a minute is what small accounts have."""
RATE_MIN: Final = 0.5
RATE_MAX: Final = 100_000.0
DOUBLES_S: Final = 0.25
GROWTH: Final = 0.05
"""A second, of the rate, once a refusal has shown where the limit is."""
DECREASE: Final = 0.7
PAUSE_FIRST_S: Final = 1.0
"""Of a refusal that names no time; doubled for each probe refused in a row."""
PAUSE_CAP_S: Final = 8.0
QUIET_S: Final = 10.0
"""Without a refusal and with nobody waiting the target is like any other again."""
BURST_S: Final = 0.05
"""Releases that were due while nobody waited are not made up for beyond this."""

Rank = Literal[0, 1, 2]
"""0 critical, 1 interactive, 2 batch."""

Phase = Literal["open", "paused", "probing", "recovering"]


class Waiting:
    """Who waits: critical ones first, each kind in the order in which it came."""

    __slots__ = ("_queues",)

    def __init__(self) -> None:
        self._queues: tuple[deque[str], deque[str], deque[str]] = (deque(), deque(), deque())

    def __len__(self) -> int:
        first, second, third = self._queues
        return len(first) + len(second) + len(third)

    def join(self, request: str, rank: Rank) -> None:
        self._queues[rank].append(request)

    def leave(self, request: str) -> None:
        """Unknown ones change nothing."""
        for queue in self._queues:
            if request in queue:
                queue.remove(request)
                return

    def firsts(self) -> list[str]:
        """Of each kind the one that has waited longest."""
        return [queue[0] for queue in self._queues if queue]

    def pop(self) -> str:
        return next(queue for queue in self._queues if queue).popleft()


class Release:
    __slots__ = (
        "_cut_at",
        "_next_at",
        "_pause_s",
        "_rate",
        "_rate_at",
        "_refused_in_row",
        "_taken",
        "_taken_at",
        "_threshold",
        "_until",
        "_untried",
        "_waiting",
        "phase",
        "untried_max",
    )

    def __init__(self, waiting: Waiting | None = None) -> None:
        """`waiting`: the queue that it shares with others; None: one of its own."""
        self.phase: Phase = "open"
        self.untried_max = UNTRIED_MAX
        """Of a pool of keys each has its part."""
        self._untried: dict[str, float] = {}
        """Calls sent and neither answered nor refused yet -> when they went."""
        self._taken = 0.0
        """Calls taken lately: a count that halves every `QUIET_S`."""
        self._taken_at = 0.0
        self._until = 0.0
        """The end of the pause."""
        self._pause_s = PAUSE_FIRST_S
        """Of a refusal that names no time."""
        self._refused_in_row = 0
        self._cut_at = -1.0
        """What went before this and is refused says nothing new."""
        self._rate = RATE_FIRST
        self._rate_at = 0.0
        self._threshold: float | None = None
        """The rate below the one that was refused last."""
        self._next_at = 0.0
        self._waiting = Waiting() if waiting is None else waiting

    # ------------------------------------------------------------ what is known

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def admits(self, now: float) -> bool:
        """A request that has not waited may go at once."""
        if self.phase != "open" and not self._settled(now):
            return False
        if len(self._untried) < self.untried_max:
            return True
        self._patience(now)
        return not self.waiting and len(self._untried) < self._allowed(now)

    def until(self, now: float) -> float:
        """The earliest moment at which somebody who waits may go, as far as it can be told."""
        return max(now, self._until) if self.phase == "paused" else now

    # ------------------------------------------------------------ what happened

    def sent(self, request: str, now: float) -> None:
        """A call of this request went out."""
        self._untried[request] = now

    def answered(self, request: str, now: float) -> None:
        """Its answer began, or it ended in any way but a refusal for its rate."""
        sent_at = self._untried.pop(request, None)
        if sent_at is not None:
            self._took(1, now, sent_at)

    def refused(self, request: str, wait_s: float | None, now: float) -> None:
        """429. `wait_s`: what the target asked for; None or 0 when it did not say."""
        sent_at = self._untried.pop(request, None)
        if sent_at is None or sent_at > self._cut_at:
            self._refuse(wait_s, now)
        elif wait_s:
            self._until = max(self._until, now + min(wait_s, RETRY_AFTER_MAX_S))

    def pause(self, wait_s: float | None, now: float) -> None:
        """Another router's call was refused."""
        if self.phase != "paused":
            self._refuse(wait_s, now)
        elif wait_s:
            self._until = max(self._until, now + min(wait_s, RETRY_AFTER_MAX_S))

    def _refuse(self, wait_s: float | None, now: float) -> None:
        match self.phase:
            case "recovering":
                self._threshold = max(RATE_MIN, self._rate_now(now) * DECREASE)
                self._refused_in_row = 0
            case "probing":
                self._refused_in_row += 1
                if self._threshold is not None:
                    self._threshold = max(RATE_MIN, self._threshold * DECREASE)
            case "open" | "paused":
                pass
        self._pause_s = min(PAUSE_CAP_S, PAUSE_FIRST_S * 2.0 ** min(self._refused_in_row, 10))
        asked = wait_s if wait_s is not None and wait_s > 0 else self._pause_s
        self._until = now + min(asked, RETRY_AFTER_MAX_S)
        self._cut_at = now
        self._taken = 0.0
        self.phase = "paused"

    # ------------------------------------------------------------ who waits

    def join(self, request: str, rank: Rank) -> None:
        self._waiting.join(request, rank)

    def leave(self, request: str) -> None:
        """It waits no longer: its deadline passed, or its caller left. Unknown ones change nothing."""
        self._waiting.leave(request)

    def due(self, now: float) -> str | None:
        """The next that may go now, critical ones first; it waits no longer. Ask until None."""
        return self._waiting.pop() if self.waiting and self.turn(now) else None

    def is_due(self, now: float) -> bool:
        """`turn` would be true, and nothing is taken."""
        match self.phase:
            case "open":
                return self.admits(now)
            case "paused":
                return now >= self._until
            case "probing" | "recovering":
                return now >= self._next_at

    def turn(self, now: float) -> bool:
        """One may go now, and its turn is taken: whoever asks is the one."""
        match self.phase:
            case "open":
                self._patience(now)
                return len(self._untried) < self._allowed(now)
            case "paused":
                if now < self._until:
                    return False
                # One goes first: everybody else waits for how it fares.
                self.phase, self._next_at = "probing", now + PATIENCE_S
                return True
            case "probing":
                if now < self._next_at:
                    return False
                self._recover(now)
            case "recovering":
                pass
        if now < self._next_at:
            return False
        self._next_at = max(self._next_at, now - BURST_S) + 1.0 / self._rate_now(now)
        return True

    def wake_at(self, now: float) -> float | None:
        """When `due` should be asked again though nothing happens; None: nobody waits."""
        if not self.waiting:
            return None
        match self.phase:
            case "open":
                oldest = next(iter(self._untried.values()), now)
                return max(oldest + PATIENCE_S, now)
            case "paused":
                return max(self._until, now)
            case "probing" | "recovering":
                return max(self._next_at, now)

    # ------------------------------------------------------------ arithmetic

    def _took(self, count: int, now: float, sent_at: float) -> None:
        self._taken = self._lately(now) + count
        self._taken_at = now
        if self.phase == "probing" and sent_at > self._cut_at:
            self._recover(now)

    def _recover(self, now: float) -> None:
        """The probe was taken: the others follow."""
        self.phase = "recovering"
        self._refused_in_row = 0
        self._rate = RATE_FIRST if self._threshold is None else self._threshold
        self._rate_at = self._next_at = now

    def _rate_now(self, now: float) -> float:
        grown_s = max(0.0, now - self._rate_at)
        if self._threshold is None:
            return min(RATE_MAX, self._rate * float(2.0 ** min(grown_s / DOUBLES_S, 40)))
        return min(RATE_MAX, self._rate * (1 + GROWTH * grown_s))

    def _lately(self, now: float) -> float:
        return self._taken * float(0.5 ** (max(0.0, now - self._taken_at) / QUIET_S))

    def _allowed(self, now: float) -> float:
        return self.untried_max + 2 * self._lately(now)

    def _patience(self, now: float) -> None:
        """Calls that nobody refused for so long were taken."""
        patient = [request for request, at in self._untried.items() if now - at >= PATIENCE_S]
        if patient:
            sent_at = max(self._untried.pop(request) for request in patient)
            self._took(len(patient), now, sent_at)

    def _settled(self, now: float) -> bool:
        """Long enough without a refusal, and nobody waits: like any other target again."""
        if self.waiting or now < self._until + QUIET_S:
            return False
        self.phase = "open"
        self._threshold = None
        self._refused_in_row = 0
        self._pause_s = PAUSE_FIRST_S
        return True
