"""What one finished call says about each scope it went through: its deployment, its key, its provider-region.

A call speaks for the narrowest scope that explains how it ended. A refused key says nothing about the
deployment, and a provider that cannot be reached says nothing about the key.
"""

from enum import Enum
from typing import Final, NamedTuple

from breakwater_protocol.events import AttemptFinished


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
        "first_token_timeout",  # where the caller would not wait as long as the model's targets may take
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


# Refusals of the key itself.
_KEY_REFUSED: Final = frozenset({"key_rejected", "key_forbidden"})
# The provider as a whole may be behind these: it cannot be reached, or answers every call with an error.
_OF_THE_PROVIDER: Final = frozenset(
    {"connect_failed", "server_error", "overloaded", "first_token_timeout"}
)


def judge_key(event: AttemptFinished) -> Result:
    """What it says about the key: whoever was answered otherwise than by a refusal was let in."""
    if event.outcome in _KEY_REFUSED:
        verdict = Verdict.failed
    elif event.outcome in {"ok", "partial"} or (
        event.status is not None and event.status < 500 and event.outcome not in _SAYS_NOTHING
    ):
        verdict = Verdict.healthy
    else:
        verdict = Verdict.nothing
    return Result(verdict, event.key_epoch)


def judge_region(event: AttemptFinished) -> Result:
    """What it says about the provider in that region: a defect of one answer is the deployment's."""
    own = judge(event)
    verdict = own.verdict
    if verdict is Verdict.failed and not of_the_provider(event):
        verdict = Verdict.nothing
    return Result(verdict, event.region_epoch, own.first_token_s)


def of_the_provider(event: AttemptFinished) -> bool:
    """A failure that all deployments of the provider may share."""
    return event.failure in _OF_THE_PROVIDER


def is_quota(event: AttemptFinished) -> bool:
    return event.outcome == "quota_exhausted"
