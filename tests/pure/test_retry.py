"""Delays, Retry-After in all its spellings, dispositions, and the retry budget."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import get_args

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from breakwater_gateway.config.model import RetryPolicy
from breakwater_gateway.router.retry import (
    DELAY_MIN_S,
    RETRY_AFTER_MAX_S,
    Disposition,
    RetryBudget,
    delay_s,
    disposition,
    parse_retry_after,
)
from breakwater_protocol import failures as f

POLICY = RetryPolicy(base_s=0.25, cap_s=8.0)
NOW = datetime(1994, 11, 6, 8, 49, 7, tzinfo=UTC).timestamp()
"""Thirty seconds before the date that RFC 9110 uses in its examples."""
ALMOST_ONE = 1 - 2**-53


@pytest.mark.parametrize(
    ("failure", "tries", "draw", "delay"),
    [
        (f.ServerError(), 1, 0.0, DELAY_MIN_S),
        (f.ServerError(), 1, 0.5, 0.125),
        (f.ServerError(), 2, 0.5, 0.25),
        (f.ServerError(), 3, 0.5, 0.5),
        (f.ServerError(), 6, 0.5, 4.0),
        (f.ServerError(), 7, 0.5, 4.0),  # the cap
        (f.ServerError(), 10**9, 0.5, 4.0),
        (f.ServerError(), 0, 0.5, 0.125),
        (f.RateLimited(), 1, 0.5, 0.5),  # a second on 429
        (f.RateLimited(), 2, 0.5, 1.0),
        (f.RateLimited(retry_after_s=2.0), 1, 0.0, 2.0),
        (f.RateLimited(retry_after_s=2.0), 5, 0.5, 3.0),
        (f.Overloaded(retry_after_s=2.0), 1, 0.25, 2.5),
        (f.RateLimited(retry_after_s=0.0), 1, 0.5, 0.5),
        (f.RateLimited(retry_after_s=1e9), 1, 0.5, 180.0),
        (f.RateLimited(retry_after_s=0.001), 1, 0.0, DELAY_MIN_S),
    ],
)
def test_delays(failure: f.Failure, tries: int, draw: float, delay: float) -> None:
    assert delay_s(failure, tries, POLICY, draw) == pytest.approx(delay)


@given(st.integers(-10, 10_000), st.floats(0, ALMOST_ONE), st.floats(0, 1e300) | st.none())
def test_a_delay_is_never_below_the_floor_nor_past_its_bound(
    tries: int, draw: float, asked: float | None
) -> None:
    delay = delay_s(f.RateLimited(retry_after_s=asked), tries, POLICY, draw)
    bound = 2 * RETRY_AFTER_MAX_S if asked else POLICY.cap_s
    assert DELAY_MIN_S <= delay <= bound
    if asked:
        assert delay >= min(asked, RETRY_AFTER_MAX_S)


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({}, None),
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": " 3\t"}, 3.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": "120"}, 120.0),
        ({"retry-after": "86400"}, 120.0),
        ({"retry-after": "9" * 200}, 120.0),
        ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after-ms": "0", "retry-after": "9"}, 9.0),
        ({"retry-after-ms": "soon", "retry-after": "9"}, 9.0),
        ({"retry-after-ms": "0"}, 0.0),
        ({"retry-after": "5, 10"}, 10.0),
        ({"retry-after": "10,5"}, 10.0),
        ({"retry-after": "nonsense, 5"}, 5.0),
        ({"retry-after": "5, Sun, 06 Nov 1994 08:49:37 GMT"}, 30.0),
        ({"retry-after": "Sun, 06 Nov 1994 08:49:37 GMT, 45"}, 45.0),
        # RFC 9110 section 5.6.7: the three forms of a date.
        ({"retry-after": "Sun, 06 Nov 1994 08:49:37 GMT"}, 30.0),
        ({"retry-after": "Sunday, 06-Nov-94 08:49:37 GMT"}, 30.0),
        ({"retry-after": "Sun Nov  6 08:49:37 1994"}, 30.0),
        ({"retry-after": "Sun, 06 Nov 1994 08:49:00 GMT"}, 0.0),
        ({"retry-after": "Sun, 06 Nov 1994 08:49:60 GMT"}, 52.0),
        ({"retry-after": "Fri, 31 Dec 9999 23:59:59 GMT"}, 120.0),
        ({"retry-after": "Wed, 31 Feb 2024 00:00:00 GMT"}, None),
        ({"retry-after": "Sun, 06 Now 1994 08:49:37 GMT"}, None),
        ({"retry-after": "Sun, 06 Nov 1994 08:49:37 CET"}, None),
        ({"retry-after": "Sun, 06 Nov 0000 08:49:37 GMT"}, None),
        # What `float` would take.
        ({"retry-after": "inf"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "1_000"}, None),
        ({"retry-after": "1e3"}, None),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "+5"}, None),
        ({"retry-after": "٣"}, None),
        ({"retry-after": "5\n"}, None),
        ({"retry-after": ".5"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": ",,,"}, None),
        ({"retry-after": "1" + " " * 300}, None),
        # Go's durations.
        ({"x-ratelimit-reset-requests": "6ms"}, 0.006),
        ({"x-ratelimit-reset-tokens": "1m2s"}, 62.0),
        ({"x-ratelimit-reset-tokens": "1h0m0.5s"}, 120.0),
        ({"x-ratelimit-reset-tokens": "1.5s"}, 1.5),
        ({"x-ratelimit-reset-requests": "6ms", "x-ratelimit-reset-tokens": "3s"}, 3.0),
        (
            {
                "x-ratelimit-reset-requests": "6ms",
                "x-ratelimit-remaining-requests": "0",
                "x-ratelimit-reset-tokens": "3s",
                "x-ratelimit-remaining-tokens": "70",
            },
            0.006,
        ),
        ({"retry-after": "0", "x-ratelimit-reset-tokens": "3s"}, 3.0),
        ({"retry-after": "2", "x-ratelimit-reset-tokens": "3s"}, 2.0),
        ({"x-ratelimit-reset-tokens": "0"}, 0.0),
        ({"x-ratelimit-reset-tokens": "30"}, None),
        ({"x-ratelimit-reset-tokens": "-1s"}, None),
        ({"x-ratelimit-reset-tokens": "1d"}, None),
        ({"x-ratelimit-reset-tokens": "1s" * 1_000}, None),
    ],
)
def test_when_a_provider_wants_to_be_asked_again(
    headers: dict[str, str], wait: float | None
) -> None:
    assert parse_retry_after(headers, NOW) == (None if wait is None else pytest.approx(wait))


def test_two_digit_years_are_of_the_last_century_only_when_far_ahead() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
    assert parse_retry_after({"retry-after": "Thursday, 01-Jan-26 00:00:09 GMT"}, now) == 9.0
    assert parse_retry_after({"retry-after": "Sunday, 06-Nov-94 08:49:37 GMT"}, now) == 0.0
    assert parse_retry_after({"retry-after": "Friday, 01-Jan-27 00:00:09 GMT"}, now) == 120.0


@given(
    st.dictionaries(
        st.sampled_from(
            ("retry-after", "retry-after-ms", "x-ratelimit-reset-tokens", "x-ratelimit-reset-")
        ),
        st.text(max_size=60)
        | st.from_regex(r"[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT")
        | st.from_regex(r"(\d{1,30}(\.\d+)?(ns|us|ms|s|m|h)?)+"),
    ),
    st.floats(0, 4e9),
)
@example({"retry-after": "Sun, 06 Nov 9999 99:99:99 GMT"}, 0.0)
def test_whatever_a_header_holds_the_wait_is_bounded(
    headers: dict[str, str], now_wall: float
) -> None:
    wait = parse_retry_after(headers, now_wall)
    assert wait is None or 0 <= wait <= RETRY_AFTER_MAX_S


def test_every_kind_of_failure_has_a_disposition() -> None:
    for kind in get_args(f.Failure):
        assert isinstance(disposition(kind()), Disposition)


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (f.RateLimited(), Disposition.pause_target),
        (f.QuotaExhausted(), Disposition.next_key),
        (f.KeyRejected(), Disposition.next_key),
        (f.ContextLength(), Disposition.shorten),
        (f.ContentFiltered(), Disposition.next_model),
        (f.MalformedToolCall(), Disposition.repair),
        (f.ServerError(), Disposition.next_target_now),
        (f.ConnectFailed(), Disposition.next_target_now),
        (f.FirstTokenTimeout(), Disposition.next_target_now),
        (f.WorkerLost(), Disposition.next_worker),
        (f.BudgetContended(), Disposition.wait_same),
        (f.BudgetExhausted(), Disposition.degrade),
        (f.InvalidRequest(), Disposition.never),
        (f.UnknownModel(), Disposition.never),
        (f.Cancelled(), Disposition.never),
        (f.TotalTimeout(), Disposition.never),
    ],
)
def test_dispositions(failure: f.Failure, expected: Disposition) -> None:
    assert disposition(failure) is expected


def granted(budget: RetryBudget, now: float, tries: int = 1_000) -> int:
    return sum(budget.take(now) for _ in range(tries))


def times(call: Callable[[float], object], now: float, count: int) -> None:
    for _ in range(count):
        call(now)


def test_an_idle_target_may_be_retried_once_a_second() -> None:
    budget = RetryBudget(0.2)
    assert granted(budget, 100.0) == 10
    assert granted(budget, 109.0) == 0
    assert granted(budget, 110.0) == 10


def test_a_busy_target_may_be_retried_for_a_share_of_its_requests() -> None:
    budget = RetryBudget(0.2)
    times(budget.request, 100.0, 500)
    assert granted(budget, 100.5) == 110


def test_requests_older_than_the_window_earn_nothing() -> None:
    budget = RetryBudget(0.2)
    times(budget.request, 100.0, 500)
    assert granted(budget, 111.0) == 10


def test_a_clock_that_jumps_does_not_break_the_budget() -> None:
    budget = RetryBudget(0.2)
    times(budget.request, 100.0, 100)
    assert granted(budget, 5.0) == 30
    assert granted(budget, 1e9) == 10
