"""A circuit breaker as a value: it is told what happened and when, and says when to wake it.

    closed --failure_rate, consecutive, slow_rate--> open --open_elapsed--> half_open
    half_open --probe_succeeded--> half_open, at the third --> closed
    half_open --probe_failed--> open (longer)      half_open --probe_expired--> half_open
    open --probe_succeeded--> half_open            open --probe_failed--> open (longer)

The last two are of an early probe: where a model has nothing else, one call may be made while its least
bad target is open. Closed after an outage it ramps up: until then a share of the calls comes, and a single
failure opens it again.

Every change has a new, larger epoch. A call is permitted under the epoch its router saw, and its result
counts only while that epoch lasts: a call that began before the breaker opened says nothing about the
target now (with calls of a minute that is the normal case, not the odd one).

Probing, cluster-wide: in `half_open` one router claims the one probe of the epoch; its result carries
that epoch, and whatever it was moves the breaker to another epoch, so each epoch has one probe. A probe
that was claimed and never reports expires; until it is claimed an epoch lasts, however long nobody comes by.

Which laws hold is in `tests/pure/test_breaker.py`. `now` is monotonic seconds, `draw` is uniform in [0, 1).
"""

from math import floor, log2
from typing import Final, Literal, NamedTuple

from breakwater_gateway.config.model import BreakerPolicy
from breakwater_gateway.health.baseline import Baseline
from breakwater_gateway.health.verdict import Result, Verdict
from breakwater_gateway.health.window import Counts, Window
from breakwater_protocol.events import BreakerState, Evidence

Cause = Literal[
    "failure_rate",
    "consecutive",
    "slow_rate",
    "several_deployments",
    "key_refused",
    "quota_exhausted",
    "ramp_failed",
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
        ("closed", "ramp_failed", "open"),
        # Of a provider-region, and of a key.
        ("closed", "several_deployments", "open"),
        ("closed", "key_refused", "open"),
        ("closed", "quota_exhausted", "open"),
        ("half_open", "quota_exhausted", "open"),
        ("open", "open_elapsed", "half_open"),
        ("half_open", "probe_succeeded", "half_open"),
        ("half_open", "probe_succeeded", "closed"),
        ("half_open", "probe_failed", "open"),
        ("half_open", "probe_expired", "half_open"),
        # An early probe.
        ("open", "probe_succeeded", "half_open"),
        ("open", "probe_succeeded", "closed"),
        ("open", "probe_failed", "open"),
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

HOLD_MAX_S: Final = 86_400.0
"""The longest that an operator, or a quota, keeps a target closed to calls."""

DOUBLINGS_MAX: Final = 30
"""2^30 times any open time is past any cap."""

PROBE_GRACE_S: Final = 5.0
"""A probe that said nothing for its whole timeout and this much more is lost."""

UNCLAIMED_S: Final = 300.0
"""The word that a probe is claimed can be lost: after so long there is room for another."""

SLOW_RATE: Final = 0.8
SLOW_FACTOR: Final = 4.0
SLOW_FLOOR_S: Final = 1.0
"""A first token within a second is never slow: for the fastest targets four times the usual is noise."""

_HELD: Final = frozenset({"operator", "quota_exhausted"})
"""Openings whose length somebody else decides: they say nothing about the next."""

EPOCH_MAX: Final = 2**53 - 1
"""The largest integer that every reader of JSON keeps."""


class IllegalTransition(AssertionError):
    """The breaker tried a move that is not in `TRANSITIONS`."""


class Change(NamedTuple):
    state: BreakerState
    previous: BreakerState
    cause: Cause
    epoch: int
    until: float
    """When an open breaker will be probed, in the clock of `now`; 0 when it is not open."""
    evidence: Evidence
    ramp_until: float = 0.0
    """Closed after an outage: until then only a share of the calls, in the clock of `now`; else 0."""


class Breaker:
    """The breaker of one target.

    `observe` takes evidence in and never changes state: a standby does only that. `record` is `observe`
    and then `decide`. `probe_s` is the longest a probe may take, `slow_s` the first token that is late
    whatever the baseline (both from the model's timeouts). `probes`: successes that close it again.
    """

    __slots__ = (
        "_baseline",
        "_cause",
        "_claimed",
        "_closed_at",
        "_consecutive",
        "_doublings",
        "_now",
        "_policy",
        "_probe",
        "_probe_until",
        "_probed",
        "_probes",
        "_ramp_until",
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
        probes: int = PROBES,
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
        self._probes = probes
        self._ramp_until = 0.0
        self._cause = ""
        self._probe: Verdict | None = None
        self._probe_until = 0.0
        self._claimed = False

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
        if self.state == "half_open" or (self.state == "open" and self._cause != "operator"):
            # Under these epochs nothing is called but the one probe, and an open one's early probe.
            if self._probe is None:
                self._probe = result.verdict
            return True
        if self.state == "open" or result.verdict is Verdict.nothing:
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
        if self.state != "closed":
            return self._decide_probe(now, draw)
        cause = self.trouble(now)
        return None if cause is None else self._open(cause, now, draw)

    def trouble(self, now: float) -> Cause | None:
        """What a closed breaker should open for; None: nothing, or it is not closed."""
        now = self._clamp(now)
        return self._trip_cause(self._window.counts(now), now) if self.state == "closed" else None

    @property
    def probed(self) -> int:
        """Probes that succeeded since it opened last."""
        return self._probed

    @property
    def consecutive(self) -> int:
        """Failures in a row, up to the last call."""
        return self._consecutive

    def succeeds(self, now: float) -> bool:
        """Closed, and the last call in its window was answered."""
        counts = self._window.counts(self._clamp(now))
        return self.state == "closed" and not self._consecutive and counts.calls > counts.failures

    def open(self, cause: Cause, now: float, draw: float, for_s: float | None = None) -> Change:
        """Its owner found the cause outside its window (`key_refused`, `quota_exhausted`,
        `several_deployments`); `for_s` is how long it lasts where that is known."""
        return self._open(cause, self._clamp(now), draw, for_s)

    def forgive(self) -> None:
        """What was seen so far is explained by another scope."""
        self._forget()

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

    def claimed(self, epoch: int, now: float) -> bool:
        """Somebody wants the probe of that epoch, and the first who does has it: from now on it may be lost.
        False: of no matter here."""
        if self.state != "half_open" or epoch != self.epoch or self._claimed:
            return False
        self._claimed = True
        self._probe_until = self._clamp(now) + self.probe_s
        return True

    def trip(self, now: float, draw: float, for_s: float | None = None) -> Change:
        """An operator opens it, for so long, or for as long as its own next opening would last."""
        return self._open("operator", self._clamp(now), draw, for_s)

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
        ramp_s: float = 0.0,
    ) -> bool:
        """Take over what another owner published, unless it is older than what is known here.

        `open_for_s` is how long that opening lasts in all and `left_s` how much of it is left; both 0
        when the state is not open. `ramp_s` is what is left of the ramp of one that is closed.
        """
        now = self._clamp(now)
        if not self.epoch < epoch <= EPOCH_MAX:
            return False
        match state:
            case "open":
                cap_s = HOLD_MAX_S
                if cause not in _HELD:
                    self._doublings = self._doublings_after(open_for_s)
                    cap_s = self._policy.open_cap_s
                # However far the clocks of two owners are apart, an opening never outlasts the cap.
                self._until = now + min(max(0.0, left_s), cap_s)
            case "half_open":
                if cause == "open_elapsed":
                    self._probed = 0
                elif cause == "probe_succeeded":
                    self._probed = min(self._probed + 1, self._probes - 1)
                elif self.state != "half_open":
                    self._probed = 0  # of an earlier outage
                self._doublings = max(1, self._doublings)
                # It may have been claimed unheard.
                self._claimed = True
                self._probe_until = now + self.probe_s
            case "closed":
                if cause == "operator":
                    self._doublings = 0
                self._closed_at = now
                self._ramp_until = now + min(max(0.0, ramp_s), self._policy.ramp_s)
        if state != self.state:
            self._forget()
        self._probe = None
        self.state, self.epoch, self._cause = state, epoch, cause
        return True

    def catch_up(self, seen: int) -> Change | None:
        """A result carried a later epoch than ours: our past was lost. Go on above it, so that views follow."""
        if not self.epoch < seen < EPOCH_MAX:
            return None
        self.epoch = seen
        self._probe = None
        self._ramp_until = 0.0
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
                self._probed = 1 if self.state == "open" else self._probed + 1
                if self._probed >= self._probes:
                    return self._close("probe_succeeded", now, ramp_s=self._policy.ramp_s)
                return self._half_open("probe_succeeded", now)
            case Verdict.failed:
                return self._open("probe_failed", now, draw)
            case Verdict.nothing if self.state == "open":
                return None
            case Verdict.nothing:
                # The probe is spent and told nothing: let another be claimed without waiting for it.
                return self._half_open("probe_expired", now)
            case None:
                return None

    def _trip_cause(self, counts: Counts, now: float) -> Cause | None:
        policy = self._policy
        if self._consecutive and now < self._ramp_until:
            return "ramp_failed"
        if self._consecutive >= policy.consecutive:
            return "consecutive"
        if counts.calls < policy.min_requests or not counts.calls:
            return None
        if counts.failures >= policy.failure_rate * counts.calls:
            return "failure_rate"
        if counts.slow >= SLOW_RATE * counts.calls:
            return "slow_rate"
        return None

    def _open(self, cause: Cause, now: float, draw: float, for_s: float | None = None) -> Change:
        if self.state == "closed":
            forgiven = int((now - self._closed_at) // HEALTHY_S)
            self._doublings = max(0, self._doublings - forgiven)
        policy = self._policy
        if for_s is not None:
            self._until = now + min(max(0.0, for_s), HOLD_MAX_S)
        else:
            longest = min(policy.open_cap_s, policy.open_s * 2.0**self._doublings)
            self._until = now + (0.5 + 0.5 * draw) * longest
            self._doublings = min(self._doublings + 1, DOUBLINGS_MAX)
        change = self._move(cause, "open", now)
        self._forget()
        return change

    def _half_open(self, cause: Cause, now: float) -> Change:
        self._claimed = False
        self._probe_until = now + max(UNCLAIMED_S, self.probe_s)
        return self._move(cause, "half_open", now)

    def _close(self, cause: Cause, now: float, *, ramp_s: float = 0.0) -> Change:
        self._closed_at = now
        self._ramp_until = now + ramp_s
        change = self._move(cause, "closed", now)
        self._forget()
        return change

    def _move(self, cause: Cause, state: BreakerState, now: float) -> Change:
        previous = self.state
        if (previous, cause, state) not in TRANSITIONS:
            raise IllegalTransition(f"{previous} --{cause}--> {state}")
        self.state, self._cause = state, cause if cause != "resumed" else self._cause
        self.epoch += 1
        self._probe = None
        until = self._until if state == "open" else 0.0
        ramp_until = self._ramp_until if state == "closed" and self._ramp_until > now else 0.0
        return Change(state, previous, cause, self.epoch, until, self.evidence(now), ramp_until)

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
