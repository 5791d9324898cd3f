"""Delays, dispositions, and the retry budget."""

from collections.abc import Callable
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from breakwater_gateway.config.model import RetryPolicy
from breakwater_gateway.router.retry import (
    DELAY_MIN_S,
    Disposition,
    RetryBudget,
    delay_s,
    disposition,
)
from breakwater_gateway.worker.provider_limits import RETRY_AFTER_MAX_S
from breakwater_protocol import failures as f

POLICY = RetryPolicy(base_s=0.25, cap_s=8.0)
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
        (f.TooDear(), Disposition.degrade),
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
