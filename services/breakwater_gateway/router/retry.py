"""Retry: what a failure asks for, how long to wait, and whether there is budget left for another try.

Nothing here waits or looks at a clock: `now` (monotonic) and `now_wall` (Unix) are seconds given by the
caller, `draw` is uniform in [0, 1).
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Final, assert_never

from breakwater_gateway.config.model import RetryPolicy
from breakwater_protocol import failures as f
from breakwater_protocol import headers as h

DELAY_MIN_S: Final = 0.02
"""Below this a retry meets the same instant that failed it."""

RATE_LIMITED_BASE_S: Final = 1.0
"""Providers count by the second at the finest."""

RETRY_AFTER_MAX_S: Final = 120.0
"""The longest wait that is believed; SDKs of providers stop at the same figure."""

HEADER_MAX: Final = 256
"""Characters of a header value that are looked at; longer ones are refused."""


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
        case f.BudgetExhausted() | f.NoDeployment():
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


# What a provider says about when to come back.

_RETRY_AFTER_MS: Final = "retry-after-ms"
_RESET: Final = "x-ratelimit-reset-"
_REMAINING: Final = "x-ratelimit-remaining-"

# `float` would take "inf", "nan", "1_000", "+1", "1e9" and digits of other scripts.
_DECIMAL: Final = re.compile(r"[0-9]{1,200}(?:\.[0-9]{1,40})?")
_GO_DURATION: Final = re.compile(r"(?:[0-9]{1,18}(?:\.[0-9]{1,18})?(?:ns|us|ms|s|m|h))+")
_GO_PART: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ns|us|ms|s|m|h)")
_GO_UNIT_S: Final = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}

_MONTHS: Final = {
    name: number
    for number, name in enumerate(
        ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"), 1
    )
}
_WEEKDAY: Final = re.compile(r"(?:Mon|Tues?|Wed(?:nes)?|Thu(?:rs)?|Fri|Sat(?:ur)?|Sun)(?:day)?")
_CLOCK: Final = r"(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2}):(?P<second>[0-9]{2})"
_DATES: Final = (
    # RFC 9110 section 5.6.7: IMF-fixdate, then the two obsolete forms, RFC 850 and asctime.
    re.compile(
        rf"[A-Z][a-z]{{2}}, (?P<day>[0-9]{{2}}) (?P<month>[A-Z][a-z]{{2}}) (?P<year>[0-9]{{4}}) {_CLOCK} GMT"
    ),
    re.compile(
        rf"[A-Z][a-z]{{5,8}}, (?P<day>[0-9]{{2}})-(?P<month>[A-Z][a-z]{{2}})-(?P<year>[0-9]{{2}}) {_CLOCK} GMT"
    ),
    re.compile(
        rf"[A-Z][a-z]{{2}} (?P<month>[A-Z][a-z]{{2}}) (?P<day>[ 0-9][0-9]) {_CLOCK} (?P<year>[0-9]{{4}})"
    ),
)


def parse_retry_after(headers: Mapping[str, str], now_wall: float) -> float | None:
    """Seconds, in [0, `RETRY_AFTER_MAX_S`], after which a provider wants to be asked again; None: it did not say.

    Header names are in lower case. In order: `retry-after-ms`, `retry-after` (delay-seconds, decimals
    allowed, or an HTTP date), then the longest of the `x-ratelimit-reset-*` durations, of the
    exhausted limits where the provider marks any. A zero is no information (Azure sends
    `retry-after-ms: 0` beside a real `retry-after`), so the next header is asked; only zeros are 0.
    Of a header sent twice (joined by a comma) the longest valid value counts. Whatever does not match
    the grammar is ignored. Trust these on refusals only: some providers send them on success.
    """
    zero = False
    for wait in (
        _milliseconds(headers.get(_RETRY_AFTER_MS)),
        _seconds_or_date(headers.get(h.RETRY_AFTER), now_wall),
        _longest_reset(headers),
    ):
        if wait is None:
            continue
        if wait > 0:
            return min(wait, RETRY_AFTER_MAX_S)
        zero = True
    return 0.0 if zero else None


def _milliseconds(value: str | None) -> float | None:
    waits = [_decimal(item) for item in _items(value)]
    return max((wait / 1000 for wait in waits if wait is not None), default=None)


def _seconds_or_date(value: str | None, now_wall: float) -> float | None:
    longest: float | None = None
    for item in _items(value):
        wait = _decimal(item)
        if wait is None:
            at = _http_date(item, now_wall)
            if at is None:
                continue
            wait = max(0.0, at - now_wall)
        longest = wait if longest is None else max(longest, wait)
    return longest


def _longest_reset(headers: Mapping[str, str]) -> float | None:
    resets: dict[str, float] = {}
    for name, value in headers.items():
        if name.startswith(_RESET):
            wait = _go_duration(value.strip(" \t"))
            if wait is not None:
                resets[name[len(_RESET) :]] = wait
    exhausted = [
        wait for limit, wait in resets.items() if headers.get(_REMAINING + limit, "").strip() == "0"
    ]
    return max(exhausted or resets.values(), default=None)


def _items(value: str | None) -> list[str]:
    """The values of a header that may have been sent more than once; a date keeps its own comma."""
    if value is None or len(value) > HEADER_MAX:
        return []
    items: list[str] = []
    for piece in value.split(","):
        if items and _WEEKDAY.fullmatch(items[-1]):
            items[-1] += "," + piece.rstrip(" \t")
        else:
            items.append(piece.strip(" \t"))
    return items


def _decimal(text: str) -> float | None:
    return float(text) if _DECIMAL.fullmatch(text) else None


def _go_duration(text: str) -> float | None:
    """`6ms`, `1m2s`, `1h0m0.5s`, `0`: Go's `time.ParseDuration`, without signs."""
    if text == "0":
        return 0.0
    if len(text) > HEADER_MAX or not _GO_DURATION.fullmatch(text):
        return None
    return sum(float(number) * _GO_UNIT_S[unit] for number, unit in _GO_PART.findall(text))


def _http_date(text: str, now_wall: float) -> float | None:
    """Unix time of an HTTP date in any of the three forms; None for anything else."""
    for form in _DATES:
        found = form.fullmatch(text)
        if found is None:
            continue
        month = _MONTHS.get(found["month"])
        if month is None:
            return None
        year = int(found["year"])
        if len(found["year"]) == 2:
            # A two-digit year more than 50 years ahead is one of the last century (RFC 9110).
            this_year = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=now_wall)).year
            year += this_year // 100 * 100
            if year > this_year + 50:
                year -= 100
        try:
            at = datetime(
                year,
                month,
                int(found["day"]),
                int(found["hour"]),
                int(found["minute"]),
                min(int(found["second"]), 59),  # 60 is a leap second, which Unix time does not have
                tzinfo=UTC,
            )
        except ValueError:
            return None
        return at.timestamp()
    return None
