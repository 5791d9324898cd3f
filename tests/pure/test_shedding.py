"""Who is let in when capacity runs short."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from breakwater_gateway.router.shedding import RETRY_MAX_S, Shedding, bound
from breakwater_protocol import failures as f
from breakwater_protocol.commands import Priority

PRIORITIES: tuple[Priority, ...] = ("batch", "interactive", "critical")


@pytest.mark.parametrize(
    ("capacity", "bounds"),
    [
        (1, (1, 1, 1)),
        (2, (2, 2, 2)),
        (10, (8, 10, 10)),
        (100, (80, 95, 100)),
        (4096, (3277, 3892, 4096)),
    ],
)
def test_each_priority_has_its_share(capacity: int, bounds: tuple[int, int, int]) -> None:
    assert tuple(bound(priority, capacity) for priority in PRIORITIES) == bounds


@given(st.integers(1, 10_000), st.integers(0, 12_000))
def test_whoever_is_let_in_everybody_above_is_let_in_too(capacity: int, in_flight: int) -> None:
    shedding = Shedding(capacity)
    admitted = [shedding.refusal(priority, in_flight) is None for priority in PRIORITIES]
    assert admitted == sorted(admitted)
    assert admitted[-1] == (in_flight < capacity)
    if in_flight == 0:
        assert all(admitted)


def test_the_wait_is_what_freeing_the_places_takes() -> None:
    shedding = Shedding(100)
    for tick in range(200):
        shedding.ended(tick * 0.1)  # ten a second
    refusal = shedding.refusal("batch", 119)
    assert isinstance(refusal, f.Overloaded)
    assert refusal.retry_after_s == pytest.approx(4.0, rel=0.1)
    assert refusal.message == "the gateway is near its capacity and sheds batch requests"


def test_a_wait_that_nothing_is_known_of_is_a_second_and_none_is_endless() -> None:
    shedding = Shedding(10)
    refusal = shedding.refusal("critical", 10)
    assert refusal is not None
    assert refusal.retry_after_s == 1.0
    shedding.ended(0.0)
    for second in range(1, 10):
        shedding.ended(second * 60.0)
    refusal = shedding.refusal("batch", 10_000)
    assert refusal is not None
    assert refusal.retry_after_s == RETRY_MAX_S


@pytest.mark.parametrize("idle_s", [0.0, 100_000.0])
def test_time_in_which_there_was_nothing_to_do_is_no_pace(idle_s: float) -> None:
    shedding = Shedding(10)
    for tick in range(20):
        shedding.ended(tick * 0.1)
    assert shedding.refusal("critical", 0) is None
    for tick in range(12):
        shedding.ended(idle_s + 2.0 + tick * 0.1)
        refusal = shedding.refusal("critical", 10)
        assert refusal is not None
        assert refusal.retry_after_s == 1.0
