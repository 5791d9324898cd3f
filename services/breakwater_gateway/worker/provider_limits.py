"""What a provider says in its headers about its limits: when to come back, and how much is left.

Header names are in lower case. Whatever does not match the strict grammar is ignored, never guessed at.
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Final

from breakwater_protocol import headers as h
from breakwater_protocol.events import RateLimits

RETRY_AFTER_MAX_S: Final = 120.0
"""The longest wait that is believed; SDKs of providers stop at the same figure."""

HEADER_MAX: Final = 256
"""Characters of a header value that are looked at; longer ones are refused."""

RESET_MAX_S: Final = 86_400.0
"""Limits are by the minute or by the day."""

_COUNT_MAX: Final = 10**12

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


# How much is left.

_COUNT: Final = re.compile(r"[0-9]{1,13}(?:\.0{1,3})?")
_RFC3339: Final = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})[Tt]([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.[0-9]{1,9})?"
    r"(?:[Zz]|([+-])([0-9]{2}):([0-9]{2}))"
)
_WHAT: Final = ("requests", "tokens")
_SAID: Final = ("limit", "remaining", "reset")
_OPENAI: Final = tuple(tuple(f"x-ratelimit-{said}-{what}" for said in _SAID) for what in _WHAT)
_ANTHROPIC: Final = tuple(
    tuple(f"anthropic-ratelimit-{what}-{said}" for said in _SAID) for what in _WHAT
)


def parse_rate_limits(headers: Mapping[str, str], now_wall: float) -> RateLimits | None:
    """What is left of a provider's limits after this answer; None when it says nothing that can be read.

    `x-ratelimit-limit|remaining|reset-requests|tokens` as OpenAI, Azure and Groq send them (resets are Go
    durations), else `anthropic-ratelimit-requests|tokens-limit|remaining|reset` (resets are RFC 3339
    times). Without a `remaining` the rest of a limit is no news. Counts and resets are bounded.
    """
    if "x-ratelimit-remaining-requests" in headers or "x-ratelimit-remaining-tokens" in headers:
        names, read = _OPENAI, _reset_duration
    elif (
        "anthropic-ratelimit-requests-remaining" in headers
        or "anthropic-ratelimit-tokens-remaining" in headers
    ):
        names, read = _ANTHROPIC, _reset_time
    else:
        return None
    found: list[tuple[int | None, int | None, float | None]] = []
    for limit, left, reset in names:
        remaining = _count(headers.get(left))
        if remaining is None:
            found.append((None, None, None))
        else:
            found.append(
                (_count(headers.get(limit)), remaining, read(headers.get(reset), now_wall))
            )
    limits = RateLimits(*found[0], *found[1])
    return None if limits.requests_left is None and limits.tokens_left is None else limits


def _count(value: str | None) -> int | None:
    if value is None or len(value) > HEADER_MAX:
        return None
    text = value.strip(" \t")
    return min(int(text.partition(".")[0]), _COUNT_MAX) if _COUNT.fullmatch(text) else None


def _reset_duration(value: str | None, now_wall: float) -> float | None:
    del now_wall  # a duration needs no clock
    if value is None or len(value) > HEADER_MAX:
        return None
    text = value.strip(" \t")
    seconds = _go_duration(text)
    if seconds is None:
        seconds = _decimal(text)  # some send bare seconds
    return None if seconds is None else min(seconds, RESET_MAX_S)


def _reset_time(value: str | None, now_wall: float) -> float | None:
    found = None if value is None or len(value) > 64 else _RFC3339.fullmatch(value.strip(" \t"))
    if found is None:
        return None
    year, month, day, hour, minute, second = (int(part) for part in found.groups()[:6])
    try:
        at = datetime(year, month, day, hour, minute, min(second, 59), tzinfo=UTC).timestamp()
    except ValueError:
        return None
    if found[7]:
        offset = int(found[8]) * 3600 + int(found[9]) * 60
        at += offset if found[7] == "-" else -offset
    return min(max(0.0, at - now_wall), RESET_MAX_S)
