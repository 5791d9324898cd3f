"""The three timers of an attempt."""

import pytest

from breakwater_gateway.worker.attempt import AttemptClock
from breakwater_protocol import failures as f


def clock() -> AttemptClock:
    return AttemptClock(now=100.0, first_token_s=10.0, idle_s=3.0, total_s=30.0)


def test_silence_before_the_first_token() -> None:
    c = clock()
    assert c.wake_at() == 110
    assert c.expired(109.9) is None
    assert isinstance(c.expired(110), f.FirstTokenTimeout)


def test_bytes_that_say_nothing_do_not_stop_the_first_timer() -> None:
    c = clock()
    c.heard(109)
    assert isinstance(c.expired(110), f.FirstTokenTimeout)


def test_silence_after_the_first_token_is_idle() -> None:
    c = clock()
    c.spoke(105)
    assert c.first_token_ms() == 5000
    assert c.wake_at() == 108
    c.heard(107)
    assert c.wake_at() == 110
    assert isinstance(c.expired(110), f.IdleTimeout)


def test_the_total_comes_first() -> None:
    c = clock()
    c.spoke(105)
    c.heard(129)
    assert c.wake_at() == 130
    assert isinstance(c.expired(200), f.TotalTimeout)


def test_a_call_that_is_not_streamed_has_no_first_token_timer() -> None:
    c = AttemptClock(now=0, first_token_s=float("inf"), idle_s=3, total_s=30)
    assert c.expired(29) is None
    assert isinstance(c.expired(30), f.TotalTimeout)


@pytest.mark.parametrize("now", [100.0, 104.0, 109.999])
def test_nothing_expires_before_it_is_due(now: float) -> None:
    assert clock().expired(now) is None


def paced() -> AttemptClock:
    """20 characters a second over 10 s."""
    return AttemptClock(
        now=0.0, first_token_s=5.0, idle_s=60.0, total_s=300.0, min_rate=20, rate_window_s=10.0
    )


def test_a_stream_below_its_pace_is_cut_at_the_end_of_the_window() -> None:
    c = paced()
    c.spoke(4.0)
    assert c.wake_at() == 14.0
    assert c.expired(13.9, said=0) is None
    assert isinstance(c.expired(14.0, said=199), f.SlowStream)


def test_each_window_is_judged_by_what_came_in_it() -> None:
    c = paced()
    c.spoke(4.0)
    assert c.expired(14.0, said=1_000) is None
    assert c.wake_at() == 24.0
    assert isinstance(c.expired(24.0, said=1_100), f.SlowStream)


def test_no_pace_is_asked_for_before_the_first_token_or_without_the_option() -> None:
    assert paced().wake_at() == 5.0
    c = clock()
    c.spoke(105)
    c.heard(120)
    assert c.wake_at() == 123
