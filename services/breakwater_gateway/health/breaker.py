"""A circuit breaker as a value: it is told what happened and when, and says when to wake it.

    closed --failure_rate, consecutive, slow_rate--> open --open_elapsed--> half_open
    half_open --probe_succeeded--> half_open, at the third --> closed
    half_open --probe_failed--> open (longer)      half_open --probe_expired--> half_open

Every change has a new, larger epoch. A call is permitted under the epoch its router saw, and its result
counts only while that epoch lasts: a call that began before the breaker opened says nothing about the
target now (with calls of a minute that is the normal case, not the odd one).

Probing, cluster-wide: in `half_open` one router claims the one probe of the epoch; its result carries
that epoch, and whatever it was moves the breaker to another epoch, so each epoch has one probe. A probe
that never reports expires.

Which laws hold is in `tests/pure/test_breaker.py`. `now` is monotonic seconds, `draw` is uniform in [0, 1).
"""

from enum import Enum
from math import floor, log2
from typing import Final, Literal, NamedTuple

from breakwater_gateway.config.model import BreakerPolicy
from breakwater_gateway.health.window import Counts, Window
from breakwater_protocol.events import AttemptFinished, BreakerState, Evidence

Cause = Literal[
    "failure_rate",
    "consecutive",
    "slow_rate",
    "open_elapsed",
    "probe_succeeded",
    "probe_failed",
    "probe_expired",
    "operator",
    "resumed",
]

TRANSITIONS: Final[frozenset[tuple[BreakerState, Cause, BreakerState]]] = frozenset(
    {
        ("closed", "failure_rate", "open"),
        ("closed", "consecutive", "open"),
        ("closed", "slow_rate", "open"),
        ("open", "open_elapsed", "half_open"),
        ("half_open", "probe_succeeded", "half_open"),
        ("half_open", "probe_succeeded", "closed"),
        ("half_open", "probe_failed", "open"),
        ("half_open", "probe_expired", "half_open"),
        # An operator may force either end from anywhere.
        ("closed", "operator", "open"),
        ("open", "operator", "open"),
        ("half_open", "operator", "open"),
        ("closed", "operator", "closed"),
        ("open", "operator", "closed"),
        ("half_open", "operator", "closed"),
        # The owner lost its memory and met a result of a later epoch than its own: same state, anew.
        ("closed", "resumed", "closed"),
        ("open", "resumed", "open"),
        ("half_open", "resumed", "half_open"),
    }
)
"""Every move there is. Anything else is a defect."""

PROBES: Final = 3
"""Successes in a row, one after another, that close a half-open breaker."""

HEALTHY_S: Final = 60.0
"""So long closed, and one doubling of the open time is forgiven."""

DOUBLINGS_MAX: Final = 30
"""2^30 times any open time is past any cap."""

PROBE_GRACE_S: Final = 5.0
"""A probe that said nothing for its whole timeout and this much more is lost."""

SLOW_RATE: Final = 0.8
SLOW_FACTOR: Final = 4.0
SLOW_FLOOR_S: Final = 1.0
"""A first token within a second is never slow: for the fastest targets four times the usual is noise."""

EPOCH_MAX: Final = 2**53 - 1
"""The largest integer that every reader of JSON keeps."""


class IllegalTransition(AssertionError):
    """The breaker tried a move that is not in `TRANSITIONS`."""


class Verdict(Enum):
    """What one call says about its target."""

    healthy = "healthy"
    failed = "failed"
    nothing = "nothing"
    """The caller left, a stall of ours, a 429 or a refused key: neither for nor against the target."""


class Result(NamedTuple):
    """A finished call, as far as a breaker cares."""

    verdict: Verdict
    epoch: int = 0
    """The one its permit was taken under."""
    first_token_s: float | None = None
    """Of a streamed answer; None when it says nothing about speed."""


class Change(NamedTuple):
    state: BreakerState
    previous: BreakerState
    cause: Cause
    epoch: int
    until: float
    """When an open breaker will be probed, in the clock of `now`; 0 when it is not open."""
    evidence: Evidence


# Outcomes that are about the caller, a worker, a key or a quota, not about the target's health.
_SAYS_NOTHING: Final = frozenset(
    {
        "cancelled",
        "rate_limited",
        "quota_exhausted",
        "key_rejected",
        "key_forbidden",
        "worker_busy",
        "worker_lost",
        "total_timeout",
        "budget_exhausted",
        "budget_contended",
        "no_deployment",
        "internal",
    }
)


def judge(event: AttemptFinished) -> Result:
    """What a published attempt says. A refusal that is the request's own fault (400, 404, 413, 422,
    context length, content filter) speaks for the target: it answered as it should."""
    if event.in_stall or (event.outcome in _SAYS_NOTHING and not event.against_target):
        verdict = Verdict.nothing
    elif event.against_target:
        verdict = Verdict.failed
    else:
        verdict = Verdict.healthy
    # An answer in one piece has its first byte when it is whole: its length, not the target's speed.
    first_ms = event.first_token_ms if event.stream else None
    return Result(verdict, event.epoch, None if first_ms is None else first_ms / 1000)


class Baseline:
    """A running estimate of the 95th percentile, in constant space.

    Each sample moves the estimate by a factor: up by 0.95 of a step, down by 0.05 of it, which balances
    where 5 % lie above (Ma, Muthukrishnan and Sandler, "Frugal streaming for estimating quantiles",
    2013, in ratios). A burst of ten slow calls moves it by a fifth, so it cannot hide itself; a target
    that is slower for good is accepted after some seventy calls.
    """

    QUANTILE: Final = 0.95
    STEP: Final = 0.02
    WARM: Final = 20
    """Samples before it is believed; until then it is their maximum."""

    __slots__ = ("_samples", "_value")

    def __init__(self) -> None:
        self._samples = 0
        self._value = 0.0

    def add(self, sample: float) -> None:
        if self._samples < self.WARM:
            self._samples += 1
            self._value = max(self._value, sample)
        elif sample > self._value:
            self._value *= 1 + self.STEP * self.QUANTILE
        else:
            self._value *= 1 - self.STEP * (1 - self.QUANTILE)

    def p95(self) -> float | None:
        return self._value if self._samples >= self.WARM else None


class Breaker:
    """The breaker of one target.

    `observe` takes evidence in and never changes state: a standby does only that. `record` is `observe`
    and then `decide`. `probe_s` is the longest a probe may take, `slow_s` the first token that is late
    whatever the baseline (both from the model's timeouts).
    """

    __slots__ = (
        "_baseline",
        "_closed_at",
        "_consecutive",
        "_doublings",
        "_now",
        "_policy",
        "_probe",
        "_probe_until",
        "_probed",
        "_until",
        "_window",
        "epoch",
        "probe_s",
        "slow_s",
        "state",
    )

    def __init__(
        self,
        policy: BreakerPolicy,
        *,
        now: float,
        probe_s: float = 60.0 + PROBE_GRACE_S,
        slow_s: float = 10.0,
    ) -> None:
        self.state: BreakerState = "closed"
        self.epoch = 0
        self.probe_s = probe_s
        self.slow_s = slow_s
        self._policy = policy
        self._window = Window(policy.window_s)
        self._baseline = Baseline()
        self._now = now
        self._closed_at = now
        self._consecutive = 0
        self._doublings = 0
        self._until = 0.0
        self._probed = 0
        self._probe: Verdict | None = None
        self._probe_until = 0.0

    def __repr__(self) -> str:
        return f"<Breaker {self.state} epoch {self.epoch} {self.evidence(self._now)}>"

    def record(self, result: Result, now: float, draw: float) -> Change | None:
        """A call ended. Results of another epoch than the breaker's own change nothing."""
        return self.decide(now, draw) if self.observe(result, now) else None

    def observe(self, result: Result, now: float) -> bool:
        """Take a result in without acting on it; False when it says nothing here and now."""
        now = self._clamp(now)
        if result.epoch != self.epoch:
            return False
        if self.state == "half_open":
            if self._probe is None:
                self._probe = result.verdict
            return True
        if self.state == "open" or result.verdict is Verdict.nothing:
            # Calls under an open breaker's epoch are last resorts; only a probe may speak for it.
            return False
        failed = result.verdict is Verdict.failed
        self._consecutive = self._consecutive + 1 if failed else 0
        slow = False
        if not failed and result.first_token_s is not None:
            slow = result.first_token_s > self.slow_after_s()
            self._baseline.add(result.first_token_s)
        self._window.record(now, failed=failed, slow=slow)
        return True

    def decide(self, now: float, draw: float) -> Change | None:
        """Act on the evidence: at once in `record`, or when a standby becomes the owner."""
        now = self._clamp(now)
        if self.state == "half_open":
            return self._decide_probe(now, draw)
        if self.state == "closed":
            cause = self._trip_cause(self._window.counts(now))
            if cause is not None:
                return self._open(cause, now, draw)
        return None

    def wake_at(self) -> float | None:
        """When `tick` has something to do, in the clock of `now`; None: only a result can change anything."""
        if self.state == "open":
            return self._until
        if self.state == "half_open":
            return self._probe_until
        return None

    def tick(self, now: float) -> Change | None:
        """Time passed: an open breaker asks for a probe, a lost probe makes room for another."""
        now = self._clamp(now)
        if self.state == "open" and now >= self._until:
            self._probed = 0
            return self._half_open("open_elapsed", now)
        if self.state == "half_open" and now >= self._probe_until:
            return self._half_open("probe_expired", now)
        return None

    def trip(self, now: float, draw: float) -> Change:
        """An operator opens it, for as long as its own next opening would last."""
        return self._open("operator", self._clamp(now), draw)

    def reset(self, now: float) -> Change:
        """An operator closes it and forgives its past."""
        self._doublings = 0
        return self._close("operator", self._clamp(now))

    def adopt(
        self,
        *,
        state: BreakerState,
        epoch: int,
        cause: str,
        open_for_s: float,
        left_s: float,
        now: float,
    ) -> bool:
        """Take over what another owner published, unless it is older than what is known here.

        `open_for_s` is how long that opening lasts in all and `left_s` how much of it is left; both 0
        when the state is not open.
        """
        now = self._clamp(now)
        if not self.epoch < epoch <= EPOCH_MAX:
            return False
        match state:
            case "open":
                self._doublings = self._doublings_after(open_for_s)
                # However far the clocks of two owners are apart, an opening never outlasts the cap.
                self._until = now + min(max(0.0, left_s), self._policy.open_cap_s)
            case "half_open":
                if cause == "open_elapsed":
                    self._probed = 0
                elif cause == "probe_succeeded":
                    self._probed = min(self._probed + 1, PROBES - 1)
                self._doublings = max(1, self._doublings)
                self._probe_until = now + self.probe_s
            case "closed":
                if cause == "operator":
                    self._doublings = 0
                self._closed_at = now
        if state != self.state:
            self._forget()
        self._probe = None
        self.state, self.epoch = state, epoch
        return True

    def catch_up(self, seen: int) -> Change | None:
        """A result carried a later epoch than ours: our past was lost. Go on above it, so that views follow."""
        if not self.epoch < seen < EPOCH_MAX:
            return None
        self.epoch = seen
        self._probe = None
        return self._move("resumed", self.state, self._now)

    def retune(self, policy: BreakerPolicy, *, probe_s: float, slow_s: float) -> None:
        """A new configuration; state and epoch stay. A new window length begins with an empty window."""
        if policy.window_s != self._policy.window_s:
            self._window = Window(policy.window_s)
        self._policy = policy
        self.probe_s = probe_s
        self.slow_s = slow_s

    def evidence(self, now: float) -> Evidence:
        counts = self._window.counts(now)
        return Evidence(
            window=counts.calls,
            failures=counts.failures,
            slow=counts.slow,
            consecutive=self._consecutive,
        )

    def slow_after_s(self) -> float:
        """The first token later than this is slow."""
        p95 = self._baseline.p95()
        if p95 is None:
            return self.slow_s
        return min(self.slow_s, max(SLOW_FLOOR_S, SLOW_FACTOR * p95))

    def _decide_probe(self, now: float, draw: float) -> Change | None:
        verdict, self._probe = self._probe, None
        match verdict:
            case Verdict.healthy:
                self._probed += 1
                if self._probed >= PROBES:
                    return self._close("probe_succeeded", now)
                return self._half_open("probe_succeeded", now)
            case Verdict.failed:
                return self._open("probe_failed", now, draw)
            case Verdict.nothing:
                # The probe is spent and told nothing: let another be claimed without waiting for it.
                return self._half_open("probe_expired", now)
            case None:
                return None

    def _trip_cause(self, counts: Counts) -> Cause | None:
        policy = self._policy
        if self._consecutive >= policy.consecutive:
            return "consecutive"
        if counts.calls < policy.min_requests or not counts.calls:
            return None
        if counts.failures >= policy.failure_rate * counts.calls:
            return "failure_rate"
        if counts.slow >= SLOW_RATE * counts.calls:
            return "slow_rate"
        return None

    def _open(self, cause: Cause, now: float, draw: float) -> Change:
        if self.state == "closed":
            forgiven = int((now - self._closed_at) // HEALTHY_S)
            self._doublings = max(0, self._doublings - forgiven)
        policy = self._policy
        longest = min(policy.open_cap_s, policy.open_s * 2.0**self._doublings)
        self._until = now + (0.5 + 0.5 * draw) * longest
        self._doublings = min(self._doublings + 1, DOUBLINGS_MAX)
        change = self._move(cause, "open", now)
        self._forget()
        return change

    def _half_open(self, cause: Cause, now: float) -> Change:
        self._probe_until = now + self.probe_s
        return self._move(cause, "half_open", now)

    def _close(self, cause: Cause, now: float) -> Change:
        self._closed_at = now
        change = self._move(cause, "closed", now)
        self._forget()
        return change

    def _move(self, cause: Cause, state: BreakerState, now: float) -> Change:
        previous = self.state
        if (previous, cause, state) not in TRANSITIONS:
            raise IllegalTransition(f"{previous} --{cause}--> {state}")
        self.state = state
        self.epoch += 1
        self._probe = None
        until = self._until if state == "open" else 0.0
        return Change(state, previous, cause, self.epoch, until, self.evidence(now))

    def _forget(self) -> None:
        """What was seen in one stretch is no evidence in the next."""
        self._window.clear()
        self._consecutive = 0

    def _doublings_after(self, open_for_s: float) -> int:
        """Doublings of the next opening, told from how long this one lasts: U(1/2, 1) of 2^k open times.

        Exact below the cap; at the cap it is the fewest that reach it, which is all that matters.
        """
        ratio = open_for_s / self._policy.open_s if self._policy.open_s > 0 else 0.0
        return min(max(0, floor(log2(ratio)) + 1) + 1, DOUBLINGS_MAX) if ratio > 0 else 1

    def _clamp(self, now: float) -> float:
        """Time does not run backwards."""
        self._now = max(self._now, now)
        return self._now
