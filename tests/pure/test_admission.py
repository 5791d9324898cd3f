"""Who waits for a place at a target, in which order, and who is refused at once."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from breakwater_gateway.worker.admission import AGE_S, ORDER, Admission
from breakwater_gateway.worker.gate import Gate
from breakwater_protocol.commands import Priority

FAR = 1e9


def put(queue: Admission[str], name: str, now: float = 0.0, deadline: float = FAR) -> bool:
    """`c1`, `i1`, `b1`: the first letter is the priority. True: it waits."""
    priority = next(p for p in ORDER if p[0] == name[0])
    refused, _ = queue.offer(name, priority, now=now, deadline=deadline, places=100)
    return refused is None


def test_it_is_ordered_by_priority_and_then_by_age() -> None:
    queue: Admission[str] = Admission(0.0)
    for name in ("b1", "i1", "c1", "b2", "i2", "c2"):
        assert put(queue, name)
    assert [queue.take(0.0) for _ in range(7)] == ["c1", "c2", "i1", "i2", "b1", "b2", None]


def test_full_the_newest_of_the_lowest_gives_way_to_whoever_stands_above_it() -> None:
    queue: Admission[str] = Admission(0.0, size=3)
    for name in ("i1", "b1", "b2"):
        assert put(queue, name)
    assert not put(queue, "b3")
    assert queue.offer("c1", "critical", now=0.0, deadline=FAR, places=100) == (None, "b2")
    assert queue.offer("i2", "interactive", now=0.0, deadline=FAR, places=100) == (None, "b1")
    assert not put(queue, "i3")
    assert queue.waiting == 3


def test_who_has_waited_too_long_is_taken_out_by_age_or_deadline() -> None:
    queue: Admission[str] = Admission(0.0)
    put(queue, "i1")
    put(queue, "i2", deadline=0.5)
    put(queue, "c1")
    assert queue.next_expiry() == 0.5
    assert queue.expired(0.4) == []
    assert queue.expired(0.5) == ["i2"]
    assert queue.expired(AGE_S["interactive"]) == ["i1"]
    assert queue.take(3.0) == "c1"
    assert queue.waiting == 0


def test_whose_deadline_has_passed_does_not_wait() -> None:
    queue: Admission[str] = Admission(0.0)
    assert not put(queue, "c1", now=5.0, deadline=5.0)


def test_while_the_pace_is_unknown_a_round_of_calls_may_wait() -> None:
    queue: Admission[str] = Admission(0.0)
    waits = [
        queue.offer(f"i{n}", "interactive", now=0.0, deadline=FAR, places=4)[0] is None
        for n in range(6)
    ]
    assert waits == [True] * 4 + [False] * 2


def test_what_cannot_be_served_in_time_is_refused_when_it_comes() -> None:
    """A hundred places a second, of which critical work takes sixty; 300 more a second want in."""
    queue: Admission[str] = Admission(0.0)
    refused: Counter[str] = Counter()
    late: Counter[str] = Counter()
    served: Counter[str] = Counter()
    number = 0
    for tick in range(2_000):  # twenty seconds in steps of 10 ms
        now = tick * 0.01
        comers = ["i", "i", "b", *(["c"] if tick % 5 < 3 else [])]
        for letter in comers:
            number += 1
            if not put(queue, f"{letter}{number}", now):
                refused[letter] += 1
        for name in queue.expired(now):
            late[name[0]] += 1
        taken = queue.take(now)
        if taken is not None:
            served[taken[0]] += 1
    assert refused["c"] == late["c"] == 0
    assert served["c"] >= 1_190
    assert served["i"] >= 700
    # All but a few of those that were let wait were served.
    assert late.total() <= 0.01 * refused.total() + 100
    assert late["i"] <= 20


def test_a_refusal_says_how_long_what_waits_will_take() -> None:
    queue: Admission[str] = Admission(0.0)
    for number in range(100):
        put(queue, f"i{number}")
    for tick in range(1, 51):
        queue.take(tick * 0.1)  # ten a second
    refused, _ = queue.offer("b", "batch", now=5.0, deadline=FAR, places=4)
    assert refused == pytest.approx(5.0, rel=0.3)


entries = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from(ORDER), st.floats(0.0, 20.0)),
        st.tuples(
            st.sampled_from(["take", "expire", "remove"]), st.sampled_from(ORDER), st.just(0.0)
        ),
    ),
    max_size=60,
)


@given(entries, st.integers(1, 6))
def test_nobody_is_lost_and_the_queue_never_outgrows_its_size(
    story: list[tuple[str, Priority, float]], size: int
) -> None:
    queue: Admission[int] = Admission(0.0, size=size)
    waiting: set[int] = set()
    now = 0.0
    for number, (step, priority, patience) in enumerate(story):
        now += 0.1
        if step == "put":
            refused, ousted = queue.offer(
                number, priority, now=now, deadline=now + patience, places=3
            )
            if refused is None:
                waiting.add(number)
            waiting.discard(-1 if ousted is None else ousted)
        elif step == "take":
            waiting.discard(-1 if (taken := queue.take(now)) is None else taken)
        elif step == "expire":
            waiting.difference_update(queue.expired(now))
        elif waiting:
            first = min(waiting)
            assert queue.remove(first)
            assert not queue.remove(first)
            waiting.discard(first)
        assert queue.waiting == len(waiting) <= size
        assert (queue.next_expiry() < float("inf")) is bool(waiting)
    assert len(queue.expired(now + 1000)) == len(waiting)


def test_a_gate_keeps_its_queue_only_while_somebody_waits() -> None:
    gate: Gate[str] = Gate(1)
    assert gate.admits(0)
    assert gate.offer("a", "interactive", now=0.0, deadline=FAR) == (None, None)
    assert not gate.admits(0)  # whoever comes now stands behind
    assert gate.take(1, 0.0) is None
    assert gate.take(0, 0.0) == "a"
    assert gate.admits(0)
    gate.offer("b", "interactive", now=0.0, deadline=FAR)
    gate.remove("b")
    assert gate.admits(0)
    gate.offer("c", "interactive", now=0.0, deadline=FAR)
    assert gate.expired(100.0) == ["c"]
    assert gate.admits(0)
    assert gate.next_expiry() == float("inf")
