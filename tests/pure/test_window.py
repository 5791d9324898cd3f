"""The sliding window against a plain list of what was recorded."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from breakwater_gateway.health.window import Counts, Window


def test_a_new_window_is_empty() -> None:
    assert Window().counts(1_000.0) == Counts(0, 0, 0)


def test_calls_are_counted_by_kind() -> None:
    window = Window()
    window.record(5.0)
    window.record(5.0, failed=True)
    window.record(6.0, slow=True)
    assert window.counts(6.0) == Counts(calls=3, failures=1, slow=1)


def test_a_call_leaves_the_window_a_slot_at_a_time() -> None:
    window = Window(window_s=30.0, slots=10)
    window.record(0.0, failed=True)
    window.record(3.0)
    assert window.counts(29.9).calls == 2
    assert window.counts(30.0) == Counts(1, 0, 0)
    assert window.counts(33.0) == Counts(0, 0, 0)


def test_a_jump_ahead_empties_the_window() -> None:
    window = Window()
    window.record(0.0, failed=True)
    assert window.counts(1e12) == Counts()
    window.record(1e12)
    assert window.counts(1e12).calls == 1


def test_a_clock_that_steps_back_is_held_at_the_latest_time_seen() -> None:
    window = Window()
    window.record(1_000.0)
    window.record(10.0, failed=True)
    assert window.counts(10.0) == Counts(2, 1, 0)
    assert window.counts(1_000.0) == Counts(2, 1, 0)


@pytest.mark.parametrize(("window_s", "slots"), [(0.0, 10), (-1.0, 10), (30.0, 0)])
def test_a_window_without_length_is_refused(window_s: float, slots: int) -> None:
    with pytest.raises(ValueError, match="positive length"):
        Window(window_s, slots)


@given(
    st.lists(
        st.tuples(st.floats(-20.0, 60.0), st.booleans(), st.booleans()), min_size=1, max_size=80
    )
)
def test_the_sums_are_those_of_the_slots_still_inside(
    calls: list[tuple[float, bool, bool]],
) -> None:
    window, latest, kept = Window(10.0, 5), None, []
    now = 100.0
    for step, failed, slow in calls:
        now += step
        slot = int(now // 2.0)
        latest = slot if latest is None else max(latest, slot)
        window.record(now, failed=failed, slow=slow)
        kept.append((latest, failed, slow))
        inside = [call for call in kept if call[0] > latest - 5]
        assert window.counts(now) == Counts(
            len(inside), sum(c[1] for c in inside), sum(c[2] for c in inside)
        )
