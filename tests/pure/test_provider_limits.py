"""What providers say in headers: Retry-After in all its spellings, and what is left of their limits."""

from datetime import UTC, datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from breakwater_gateway.worker.provider_limits import (
    RESET_MAX_S,
    RETRY_AFTER_MAX_S,
    parse_rate_limits,
    parse_retry_after,
)
from breakwater_protocol.events import RateLimits

NOW = datetime(1994, 11, 6, 8, 49, 7, tzinfo=UTC).timestamp()
"""Thirty seconds before the date that RFC 9110 uses in its examples."""


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


X = "x-ratelimit-"
A = "anthropic-ratelimit-"


@pytest.mark.parametrize(
    ("headers", "limits"),
    [
        ({}, None),
        ({f"{X}limit-requests": "60", f"{X}reset-requests": "1s"}, None),
        (
            {
                f"{X}limit-requests": "60",
                f"{X}remaining-requests": "59",
                f"{X}reset-requests": "1s",
                f"{X}limit-tokens": "150000",
                f"{X}remaining-tokens": "149984",
                f"{X}reset-tokens": "6m0s",
            },
            RateLimits(60, 59, 1.0, 150_000, 149_984, 360.0),
        ),
        # Azure names what is left and no limit.
        (
            {f"{X}remaining-requests": "7", f"{X}remaining-tokens": "0"},
            RateLimits(requests_left=7, tokens_left=0),
        ),
        # Groq's fractions.
        (
            {f"{X}remaining-tokens": " 17997.0 ", f"{X}reset-tokens": "7.66s"},
            RateLimits(tokens_left=17_997, tokens_reset_s=7.66),
        ),
        (
            {f"{X}remaining-requests": "1", f"{X}reset-requests": "30"},
            RateLimits(requests_left=1, requests_reset_s=30.0),
        ),
        (
            {
                f"{A}requests-limit": "50",
                f"{A}requests-remaining": "49",
                f"{A}requests-reset": "1994-11-06T08:49:37Z",
                f"{A}tokens-limit": "40000",
                f"{A}tokens-remaining": "39000",
                f"{A}tokens-reset": "1994-11-06T10:49:08.5+02:00",
            },
            RateLimits(50, 49, 30.0, 40_000, 39_000, 1.0),
        ),
        (
            {f"{A}tokens-remaining": "3", f"{A}tokens-reset": "1990-01-01T00:00:00Z"},
            RateLimits(tokens_left=3, tokens_reset_s=0.0),
        ),
        (
            {f"{A}tokens-remaining": "3", f"{A}tokens-reset": "9990-01-01T00:00:00Z"},
            RateLimits(tokens_left=3, tokens_reset_s=RESET_MAX_S),
        ),
        (
            {f"{A}tokens-remaining": "3", f"{A}tokens-reset": "1994-02-31T00:00:00Z"},
            RateLimits(tokens_left=3),
        ),
        # One that cannot be read leaves the other.
        (
            {f"{X}remaining-requests": "many", f"{X}remaining-tokens": "5"},
            RateLimits(tokens_left=5),
        ),
    ],
)
def test_what_is_left_of_a_provider_s_limits(
    headers: dict[str, str], limits: RateLimits | None
) -> None:
    assert parse_rate_limits(headers, NOW) == limits


@pytest.mark.parametrize(
    "value", ["-1", "inf", "nan", "1e9", "1_000", "+3", "", "0x1", "1.5", "\u0663", "9" * 300]
)
def test_what_is_no_count_is_no_news(value: str) -> None:
    assert parse_rate_limits({f"{X}remaining-requests": value}, NOW) is None
    assert parse_rate_limits({f"{A}tokens-remaining": value}, NOW) is None


NAMES = [
    *(
        f"{X}{part}-{what}"
        for part in ("limit", "remaining", "reset")
        for what in ("requests", "tokens")
    ),
    *(
        f"{A}{what}-{part}"
        for part in ("limit", "remaining", "reset")
        for what in ("requests", "tokens")
    ),
]


@given(
    st.dictionaries(
        st.sampled_from(NAMES),
        st.text(max_size=40) | st.from_regex(r"[0-9]{1,15}(ms|s|m|h|Z)?", fullmatch=True),
    ),
    st.floats(0, 1e11),
)
def test_whatever_headers_hold_what_is_read_is_bounded(
    headers: dict[str, str], now_wall: float
) -> None:
    found = parse_rate_limits(headers, now_wall)
    if found is None:
        return
    for count in (found.requests, found.requests_left, found.tokens, found.tokens_left):
        assert count is None or 0 <= count <= 10**12
    for reset in (found.requests_reset_s, found.tokens_reset_s):
        assert reset is None or 0 <= reset <= RESET_MAX_S
