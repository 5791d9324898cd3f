"""Retry: what a failure asks for, how long to wait, and whether there is budget left for another try.

Nothing here waits or looks at a clock: `now` (monotonic) and `now_wall` (Unix) are seconds given by the
caller, `draw` is uniform in [0, 1).
"""

from enum import Enum
from typing import Final, assert_never

from breakwater_gateway.config.model import RetryPolicy
from breakwater_gateway.worker.provider_limits import RETRY_AFTER_MAX_S
from breakwater_protocol import failures as f

DELAY_MIN_S: Final = 0.02
"""Below this a retry meets the same instant that failed it."""

RATE_LIMITED_BASE_S: Final = 1.0
"""Providers count by the second at the finest."""


class Disposition(Enum):
    """What the plan does next. Before anything else: once a byte reached the caller, nothing is retried."""

    next_target_now = "next_target_now"
    """Another target at once; the same one only after a wait."""
    other_target = "other_target"
    """Another target at once; this one cannot serve this request."""
    pause_target = "pause_target"
    """Leave the target alone until its *not before*, for all requests; another target meanwhile."""
    next_key = "next_key"
    """The pool's next key at once, never this one again; then another target."""
    next_worker = "next_worker"
    """The same target through another worker at once: the provider is not to blame."""
    next_model = "next_model"
    """As `on_content_filter` says: the next model, a named one, or fail."""
    shorten = "shorten"
    """As `on_context_length` says: truncate, summarize, a larger model, or fail."""
    repair = "repair"
    """Repair if unambiguous, else one re-ask with the parser's error, else the next model."""
    wait_same = "wait_same"
    """Wait for the same thing within the deadline."""
    degrade = "degrade"
    """No attempt can help: walk the ladder."""
    never = "never"
    """The caller's own fault, its deadline, its leaving, or a defect of ours: tell it."""


def disposition(failure: f.Failure) -> Disposition:
    """The table of design note "Health, breakers, attempts and the ladder", one row a kind."""
    match failure:
        case f.RateLimited():
            return Disposition.pause_target
        case f.QuotaExhausted() | f.KeyRejected() | f.KeyForbidden():
            return Disposition.next_key
        case f.RequestOverLimit() | f.ModelNotFound():
            return Disposition.other_target
        case f.ContextLength():
            return Disposition.shorten
        case f.ContentFiltered():
            return Disposition.next_model
        case f.MalformedToolCall():
            return Disposition.repair
        case (
            f.Overloaded()
            | f.ServerError()
            | f.ConnectFailed()
            | f.FirstTokenTimeout()
            | f.IdleTimeout()
            | f.SlowStream()
            | f.StreamCut()
            | f.MalformedAnswer()
        ):
            return Disposition.next_target_now
        case f.WorkerBusy(full=True):
            return Disposition.other_target
        case f.WorkerBusy() | f.WorkerLost():
            return Disposition.next_worker
        case f.BudgetContended():
            return Disposition.wait_same
        case f.BudgetExhausted() | f.TooDear() | f.NoDeployment():
            return Disposition.degrade
        case (
            f.InvalidRequest()
            | f.PayloadTooLarge()
            | f.CallerUnauthenticated()
            | f.CallerForbidden()
            | f.UnknownModel()
            | f.TotalTimeout()
            | f.Cancelled()
            | f.NotCached()
            | f.Internal()
        ):
            return Disposition.never
        case _:
            assert_never(failure)


def delay_s(failure: f.Failure, tries: int, policy: RetryPolicy, draw: float) -> float:
    """Seconds to wait before the same target is tried again, after `tries` calls to it (at least 1).

    Full jitter, U(0, min(cap, base * 2^(tries - 1))): Brooker, "Exponential backoff and jitter", AWS
    Architecture Blog, 2015. With the jitter `plus50` instead all of that and up to half more, as most
    textbooks have it; measured, it brings a herd back at a higher peak. A target that named its time t is waited for t + U(0, t), so that those
    it refused together do not return together. Never less than `DELAY_MIN_S`.
    """
    asked = f.retry_after_s(failure)
    if asked is not None and asked > 0:
        asked = min(asked, RETRY_AFTER_MAX_S)
        return max(DELAY_MIN_S, asked + draw * asked)
    base = policy.base_s
    if isinstance(failure, f.RateLimited):
        base = max(base, RATE_LIMITED_BASE_S)
    # 2^30 times any base is past any cap; a larger exponent only overflows.
    ceiling = min(policy.cap_s, base * 2.0 ** min(max(tries - 1, 0), 30))
    return max(DELAY_MIN_S, draw * ceiling if policy.jitter == "full" else ceiling * (1 + draw / 2))


class RetryBudget:
    """Retries a target may be given: a share of its requests over `WINDOW_S`, and one a second besides.

    Without it a target in trouble gets every request `attempts` times. Finagle's `RetryBudget` and
    tower's `retry::budget` are the models. A request that is refused a retry has its failure at once.
    """

    WINDOW_S: Final = 10.0
    SLOTS: Final = 10
    PER_SECOND: Final = 1.0

    __slots__ = ("_requests", "_retries", "_slot", "ratio")

    def __init__(self, ratio: float) -> None:
        self.ratio = ratio
        self._requests = [0] * self.SLOTS
        self._retries = [0] * self.SLOTS
        self._slot: int | None = None

    def request(self, now: float) -> None:
        """A first attempt was sent to the target."""
        self._requests[self._advance(now)] += 1

    def take(self, now: float) -> bool:
        """Take one retry out of the budget. False: there is none left."""
        at = self._advance(now)
        allowed = self.ratio * sum(self._requests) + self.PER_SECOND * self.WINDOW_S
        if sum(self._retries) + 1 > allowed:
            return False
        self._retries[at] += 1
        return True

    def _advance(self, now: float) -> int:
        """Index of the slot that `now` belongs to, older ones emptied. Time never runs backwards."""
        slot = int(now * self.SLOTS // self.WINDOW_S)
        if self._slot is None:
            self._slot = slot
        for passed in range(self._slot + 1, min(slot, self._slot + self.SLOTS) + 1):
            self._requests[passed % self.SLOTS] = 0
            self._retries[passed % self.SLOTS] = 0
        if slot > self._slot + self.SLOTS:
            self._requests = [0] * self.SLOTS
            self._retries = [0] * self.SLOTS
        self._slot = max(self._slot, slot)
        return self._slot % self.SLOTS
