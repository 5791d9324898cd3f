"""One request's life: try, fail over, wait, give up. A value that is told what happened and when.

One envelope of attempts, time and, where it is bounded, money is drawn on by everything the request does, so
nothing multiplies. `next` is asked whenever a decision is due, with the targets that may be called now (`Candidate`, in the
strategy's order); it answers with one step. The shell carries the step out and reports how it went:

    begin -> next -> Dispatch -> failed(…) -> next -> Dispatch | Claim | Wait | Queue | GiveUp
                              -> done

Laws (property-tested): never more dispatches than `attempts`; never a dispatch after the deadline or
after the caller got a byte; another target before the same one; every sequence ends.
"""

from collections.abc import Collection
from typing import Final, NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from breakwater_gateway.config.budgets import usd_text
from breakwater_gateway.config.model import RetryPolicy
from breakwater_gateway.router.money import TOO_DEAR, UNPRICED, Money
from breakwater_gateway.router.retry import Disposition, delay_s, disposition
from breakwater_protocol import failures as f
from breakwater_protocol import headers as h

BUSY_TRIES_MAX: Final = 8
"""How often one request may be turned away by full or vanished workers before it counts as overload."""
HELD_S: Final = 0.02
"""Money that a call in its last moments holds comes back: looked for so often."""
_NEVER: Final = float("inf")


class Candidate(Struct, frozen=True):
    """A target that may be called now."""

    deployment: str
    target: str
    keys: int = 1
    """Size of its pool of provider keys; 0 and 1 mean that there is no other key to turn to."""
    epoch: int = 0
    """Of its own breaker; -1: the call may not speak for it."""
    probe: bool = False
    """Half-open: only whoever wins the probe of this epoch may call it."""
    turn: bool = False
    """The request waited for it, and its turn has come."""
    score: float | None = None
    """The strategy's; smaller is better."""
    panic: bool = False
    """Open, and probed before its time since the model has nothing else."""
    usable_keys: tuple[int, ...] = ()
    """Keys of the pool that may be used; empty: all."""
    more_keys_at: float | None = None
    """When another key of the pool is free that is paused now (monotonic); None: none is paused."""
    key_epochs: tuple[int, ...] = ()
    """Of the keys' breakers, by index; empty: all 0."""
    region_epoch: int = 0
    probe_of: str = ""
    """Of a probe: the scope it speaks for."""
    probe_epoch: int = 0

    @property
    def place(self) -> tuple[str, int]:
        """What is claimed to be the one who probes."""
        if self.probe_of:
            return self.probe_of, self.probe_epoch
        return self.target, self.epoch

    def key(self, first: int, refused: Collection[int]) -> int | None:
        """The first key from `first` on, in turn, that may be used and did not refuse this request."""
        keys = self.usable_keys or range(max(1, self.keys))
        for at in range(len(keys)):
            key = keys[(first + at) % len(keys)]
            if key not in refused:
                return key
        return None


class Skipped(Struct, frozen=True):
    """A target that may not be called now, and until when that is so (monotonic; None: unknown)."""

    deployment: str
    reason: str
    until: float | None = None
    needs: int | None = None
    """Of one that may cost too much: what a call there takes at most, in nano-USD."""


class Dispatch(NamedTuple):
    """Call this target now."""

    candidate: Candidate
    key: int
    attempt: int
    repeat: bool
    """The target was called by this request before: the call draws on the target's retry budget."""


class Claim(NamedTuple):
    """Try to win the half-open probe of this target, then ask again with `claimed`."""

    candidate: Candidate


class Wait(NamedTuple):
    """Nothing to do until then."""

    until: float
    reason: str


class Queue(NamedTuple):
    """Wait for a turn at this target, with everybody else that it makes wait."""

    deployment: str


class GiveUp(NamedTuple):
    """The terminal answer of this request is this failure."""

    failure: f.Failure


Step = Dispatch | Claim | Wait | Queue | GiveUp


class _Tried:
    """What happened on one target so far."""

    __slots__ = ("again", "at_once", "key", "limited", "not_before", "refused", "tries")

    def __init__(self) -> None:
        self.tries = 0
        self.again = True
        """The last failure leaves the same target worth another try, once everything else is tried."""
        self.at_once = False
        """Another key or another worker makes it as good as a target not tried yet."""
        self.not_before = 0.0
        self.key = 0
        """The one used last."""
        self.refused: set[int] = set()
        """Keys that were, by the provider."""
        self.limited: dict[int, float] = {}
        """Keys of a pool that have no rate left for this request -> until when."""


class Envelope:
    """What one request may use in all: calls, time and money. Every plan it makes draws on the same one.

    `attempts_max` counts every call: retries, hedges, fallbacks, re-asks, and those on another model.
    """

    __slots__ = ("attempts", "attempts_max", "deadline", "money")

    def __init__(self, *, attempts_max: int, deadline: float, money: Money | None = None) -> None:
        self.attempts_max = attempts_max
        self.deadline = deadline
        """Monotonic."""
        self.money = money
        """None: only budgets bound what it may cost."""
        self.attempts = 0
        """Calls dispatched so far."""


class Plan:
    def __init__(
        self,
        *,
        policy: RetryPolicy,
        envelope: Envelope,
        first_key: int = 0,
        spare: int = 0,
        patience: float | None = None,
    ) -> None:
        """`first_key` spreads requests over a pool of keys. `spare`: calls of the envelope that are kept
        for what comes after this plan; one call is made in any case. `patience`: monotonic, when waiting
        for a target ends because something else can answer; the deadline, if nothing can."""
        self.envelope = envelope
        self.patience = envelope.deadline if patience is None else patience
        self._attempts_max = max(1, envelope.attempts_max - spare)
        self._policy = policy
        self.first_key = first_key
        self.last: f.Failure | None = None
        self._tried: dict[str, _Tried] = {}
        self._lost_claims: set[tuple[str, int]] = set()
        self._won: tuple[str, int] | None = None
        self._turned_away = 0
        self._final: f.Failure | None = None
        self.reasked = False
        """A malformed tool call was shown to the model once: from now on it only means another target."""
        self._failed: _Tried | None = None
        """The target whose failure was the last."""

    @property
    def deadline(self) -> float:
        return self.envelope.deadline

    @property
    def attempts(self) -> int:
        """Calls of the request so far, also those of its other plans."""
        return self.envelope.attempts

    @property
    def calls_left(self) -> int:
        """Calls that this plan may still make."""
        return self._attempts_max - self.envelope.attempts

    # ------------------------------------------------------------ what happened

    def claimed(self, candidate: Candidate, *, won: bool) -> None:
        place = candidate.place
        if won:
            self._won = place
        else:
            self._lost_claims.add(place)

    def turned_away(self, candidate: Candidate) -> None:
        """The dispatched call was never made: the worker was full or gone before it began."""
        tried = self._tried_of(candidate)
        self._turned_away += 1
        self.envelope.attempts -= 1
        tried.tries -= 1
        tried.at_once = True

    def refused(self, candidate: Candidate, failure: f.Failure) -> None:
        """The dispatched call may not be made: no budget affords it there. Another target may be cheaper."""
        tried = self._tried_of(candidate)
        self.envelope.attempts -= 1
        tried.tries -= 1
        tried.again = False
        self.last = failure

    def failed(self, candidate: Candidate, failure: f.Failure, *, now: float, draw: float) -> None:
        """The dispatched call failed with nothing sent to the caller. `draw` is uniform in [0, 1)."""
        tried = self._failed = self._tried_of(candidate)
        self.last = failure
        match disposition(failure):
            case (
                Disposition.never
                | Disposition.shorten
                | Disposition.next_model
                | Disposition.degrade
            ):
                self._final = failure
                tried.again = False
            case Disposition.next_key:
                tried.refused.add(tried.key)
                tried.again = tried.at_once = len(tried.refused) < candidate.keys
                tried.not_before = now
            case Disposition.next_worker:
                tried.at_once = True
            case Disposition.repair:
                tried.again = False
                if not self.reasked:
                    self._final = failure
            case Disposition.other_target:
                tried.again = False
            case Disposition.pause_target if candidate.keys > 1:
                # Whoever limits an organisation would refuse each key in turn: so another target goes first,
                # if there is one, and then another key, which nothing keeps waiting.
                wait_s = delay_s(failure, tried.tries, self._policy, draw)
                tried.limited[tried.key] = now + wait_s
                tried.not_before = now
            case Disposition.pause_target | Disposition.next_target_now | Disposition.wait_same:
                tried.not_before = now + delay_s(failure, tried.tries, self._policy, draw)

    def resume(self, *, same: bool) -> None:
        """Go on after a failure that ended the plan: the request was changed, so that the `same` target may
        take it now and is asked first, or another one may take what that one refused."""
        self._final = None
        if self._failed is not None:
            self._failed.again = self._failed.at_once = same

    def _tried_of(self, candidate: Candidate) -> _Tried:
        tried = self._tried.get(candidate.deployment)
        if tried is None:
            raise ValueError(f"{candidate.deployment} was not dispatched")
        return tried

    # ------------------------------------------------------------ what to do

    def next(
        self, candidates: tuple[Candidate, ...], skipped: tuple[Skipped, ...], *, now: float
    ) -> Step:
        if self._final is not None:
            return GiveUp(self._final)
        if now >= self.deadline:
            return GiveUp(
                self.last or f.TotalTimeout("the deadline passed before anything answered")
            )
        if self.attempts >= self._attempts_max:
            return GiveUp(self.last or f.NoDeployment("every attempt was used up"))
        if self._turned_away > BUSY_TRIES_MAX:
            return GiveUp(f.Overloaded("every worker is at capacity", retry_after_s=1.0))
        usable = [c for c in candidates if self._is_usable(c)]
        for candidate in usable:
            tried = self._tried.get(candidate.deployment)
            if tried is None or (candidate.turn and tried.again):
                return self._take(candidate, now)
            if tried.at_once and self._free_at(candidate, tried) <= now:
                return self._take(candidate, now)
        # Whose keys but those that are paused all refused this request.
        later = [
            c.more_keys_at
            for c in candidates
            if c.more_keys_at is not None and c not in usable and self._may_return(c.deployment)
        ]
        return self._again(usable, skipped, min(later, default=_NEVER), now)

    def hedge(self, candidates: tuple[Candidate, ...], *, now: float) -> Dispatch | None:
        """A second call beside the one in hand, at a target that this request has not called; None: there
        is none, or the envelope has no call left."""
        if self._final is not None or now >= self.deadline or self.attempts >= self._attempts_max:
            return None
        for candidate in candidates:
            if candidate.deployment not in self._tried and not candidate.probe:
                step = self._take(candidate, now)
                return step if isinstance(step, Dispatch) else None
        return None

    def _is_usable(self, candidate: Candidate) -> bool:
        """Not a probe that somebody else makes, and with a key that has not refused this request."""
        if candidate.probe and candidate.place in self._lost_claims:
            return False
        tried = self._tried.get(candidate.deployment)
        if tried is None or not tried.refused:
            return True
        return candidate.key(self.first_key, tried.refused) is not None

    def _free_at(self, candidate: Candidate, tried: _Tried) -> float:
        """When one of its keys that did not refuse this request has rate left for it."""
        if not tried.limited:
            return 0.0
        keys = candidate.usable_keys or range(max(1, candidate.keys))
        return min((tried.limited.get(k, 0.0) for k in keys if k not in tried.refused), default=0.0)

    def _key(self, candidate: Candidate, tried: _Tried, now: float) -> int:
        """In turn; with a turn of its own, or where all have to be waited for, whichever comes first."""
        limited = {k for k, until in tried.limited.items() if until > now}
        key = None
        if limited and not candidate.turn:
            key = candidate.key(self.first_key, tried.refused | limited)
        if key is None:
            key = candidate.key(self.first_key, tried.refused)
        return key or 0

    def _take(self, candidate: Candidate, now: float) -> Step:
        if candidate.probe and self._won != candidate.place:
            return Claim(candidate)
        tried = self._tried.get(candidate.deployment)
        if tried is None:
            tried = self._tried[candidate.deployment] = _Tried()
        key = self._key(candidate, tried, now)
        # A key that had not met the other one's limit is as good as a target not tried yet.
        other = bool(tried.limited) and key not in tried.limited and key != tried.key
        repeat = tried.tries > 0 and not (tried.at_once or candidate.turn or other)
        tried.at_once = False
        tried.tries += 1
        self.envelope.attempts += 1
        tried.key = key
        return Dispatch(candidate, key, self.attempts, repeat)

    def _again(
        self, usable: list[Candidate], skipped: tuple[Skipped, ...], later: float, now: float
    ) -> Step:
        """Every target that can be called has been: wait for the one that is due first, or give up."""
        due = [
            (max(tried.not_before, self._free_at(candidate, tried)), candidate)
            for candidate in usable
            if (tried := self._tried[candidate.deployment]).again or tried.at_once
        ]
        if due:
            when, candidate = min(due, key=lambda pair: pair[0])
            if when <= now:
                return self._take(candidate, now)
        backoff = min([later, *(when for when, _ in due)])
        queue = min(
            (
                (s.until or now, s.deployment)
                for s in skipped
                if s.reason == "throttled" and self._may_return(s.deployment)
            ),
            default=(_NEVER, ""),
        )
        end = self.patience if now < self.patience else 0.0
        if queue[0] < min(backoff, end):
            return Queue(queue[1])
        if backoff < end:
            return Wait(backoff, "backoff")
        waits = [s.until for s in skipped if s.until is not None and s.until > now]
        return self._nothing_left(min(waits, default=None), now, skipped)

    def _may_return(self, deployment: str) -> bool:
        tried = self._tried.get(deployment)
        return tried is None or tried.again

    def _nothing_left(self, until: float | None, now: float, skipped: tuple[Skipped, ...]) -> Step:
        dear = [s for s in skipped if s.reason in {TOO_DEAR, UNPRICED}]
        if now < self.patience and self._comes_back(dear):
            return Wait(min(now + HELD_S, self.patience), "money")
        if self.last is not None and not isinstance(self.last, f.WorkerLost):
            return GiveUp(self._bounded(self.last, dear) if dear else self.last)
        if dear and len(dear) == len(skipped):
            return GiveUp(f.TooDear(self._why_dear(dear)))
        busy = [s for s in skipped if s.reason in {"no_worker", "worker_full"}]
        if busy and len(busy) == len(skipped):
            if busy[0].reason == "no_worker":
                return GiveUp(
                    f.NoDeployment(
                        "no worker is running for this model: start one with "
                        "`breakwater run worker`",
                        retry_after_s=1.0,
                    )
                )
            return GiveUp(f.Overloaded("every worker is at capacity", retry_after_s=1.0))
        reasons = ", ".join(f"{s.deployment} {s.reason.replace('_', ' ')}" for s in skipped[:8])
        wait = None if until is None else max(0.0, until - now)
        if skipped and all(s.reason == "throttled" for s in skipped):
            return GiveUp(
                f.RateLimited(f"every deployment is throttled: {reasons}", retry_after_s=wait)
            )
        return GiveUp(
            f.NoDeployment(
                f"no deployment can be called now: {reasons or 'none is configured'}",
                retry_after_s=wait,
            )
        )

    def _comes_back(self, dear: list[Skipped]) -> bool:
        """A call of this request that is over but for its last word holds what another would need."""
        money = self.envelope.money
        if money is None or not money.held:
            return False
        return any(
            each.needs is not None and each.needs <= money.left + money.held for each in dear
        )

    def _bounded(self, failure: f.Failure, dear: list[Skipped]) -> f.Failure:
        """The failure of the calls that were made, and why there is no further one."""
        message = (
            f"{failure.message or f.kind(failure)}; no further call is made: {self._why_dear(dear)}"
        )
        return replace(failure, message=message)

    def _why_dear(self, dear: list[Skipped]) -> str:
        money = self.envelope.money
        if money is None:
            return "it may cost too much"
        bound = f"this request may cost {usd_text(money.bound)} USD in all"
        if money.spent or money.held:
            bound += f", of which {usd_text(max(0, money.left))} are left"
        needs = [(each.needs, each.deployment) for each in dear if each.needs is not None]
        if not needs:
            return (
                f"{bound}, and what {dear[0].deployment} costs is not known: give it a price in the"
                " configuration"
            )
        least, deployment = min(needs)
        return (
            f"{bound}, and a call may cost {usd_text(least)} USD on {deployment}, the cheapest that can be called:"
            f" raise {h.MAX_COST} or the model's retry.max_cost, or ask for a shorter answer (max_tokens)"
        )
