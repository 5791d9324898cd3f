"""The limit of a target that finds itself."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from breakwater_gateway.worker.limiter import FORGET_S, Limiter


def refused(limiter: Limiter, in_flight: int, *, sent_at: float, now: float) -> float:
    limiter.throttled(in_flight=in_flight, sent_at=sent_at, now=now)
    return limiter.limit


def test_without_a_reason_there_is_no_limit_and_with_a_ceiling_it_begins_there() -> None:
    assert Limiter().idle
    assert Limiter().admits(1_000_000)
    limiter = Limiter(3)
    assert [limiter.admits(n) for n in (2, 3)] == [True, False]


def test_a_refusal_cuts_what_is_in_flight_once_for_all_that_was_under_way() -> None:
    limiter = Limiter()
    assert refused(limiter, 100, sent_at=0.0, now=1.0) == pytest.approx(70)
    assert refused(limiter, 99, sent_at=0.9, now=1.1) == pytest.approx(70)
    assert refused(limiter, 70, sent_at=1.1, now=2.0) == pytest.approx(49)


def test_answers_raise_it_by_about_one_a_round_and_only_where_it_binds() -> None:
    limiter = Limiter()
    refused(limiter, 100, sent_at=0.0, now=0.0)
    for _ in range(70):
        limiter.answered(in_flight=10, first_token_s=None, now=1.0)
    assert limiter.limit == pytest.approx(70)
    for _ in range(70):
        limiter.answered(in_flight=70, first_token_s=None, now=1.0)
    assert limiter.limit == pytest.approx(71, abs=0.1)


@pytest.mark.parametrize("ceiling", [None, 50])
def test_a_minute_without_refusal_forgets_the_cut(ceiling: int | None) -> None:
    limiter = Limiter(ceiling)
    refused(limiter, 40, sent_at=0.0, now=0.0)
    limiter.answered(in_flight=1, first_token_s=None, now=FORGET_S - 1)
    assert limiter.limit == pytest.approx(28)
    limiter.answered(in_flight=1, first_token_s=None, now=FORGET_S)
    assert limiter.limit == (50 if ceiling else float("inf"))


def test_slow_first_tokens_under_load_lower_it_and_only_under_load() -> None:
    for in_flight, lowered in ((100, True), (10, False)):
        limiter = Limiter(100)
        for _ in range(200):
            limiter.answered(in_flight=in_flight, first_token_s=0.2, now=0.0)
        assert limiter.limit == 100
        for _ in range(600):
            limiter.answered(in_flight=in_flight, first_token_s=2.0, now=0.0)
        assert (limiter.limit < 80) is lowered
        assert limiter.limit >= 1


def test_a_new_ceiling_holds_at_once_and_a_cut_stays_a_cut() -> None:
    limiter = Limiter(100)
    limiter.ceiling(10)
    assert limiter.limit == 10
    refused(limiter, 10, sent_at=0.0, now=0.0)
    limiter.ceiling(1000)
    assert limiter.limit == pytest.approx(7)
    free = Limiter(5)
    free.ceiling(None)
    assert free.idle


@given(
    st.one_of(st.none(), st.integers(1, 1000)),
    st.lists(
        st.tuples(st.booleans(), st.integers(1, 2000), st.floats(0.0, 100.0), st.floats(0, 10))
    ),
)
def test_it_is_never_below_one_nor_above_what_the_configuration_allows(
    ceiling: int | None, story: list[tuple[bool, int, float, float]]
) -> None:
    limiter, now = Limiter(ceiling), 0.0
    for refusal, in_flight, first_token_s, passed in story:
        now += passed
        if refusal:
            limiter.throttled(in_flight=in_flight, sent_at=now, now=now)
        else:
            limiter.answered(in_flight=in_flight, first_token_s=first_token_s, now=now)
        assert 1 <= limiter.limit <= (ceiling or float("inf"))
        assert limiter.admits(0)
