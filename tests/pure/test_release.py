"""The release of requests to one target: a herd comes back as a queue, whatever the target's limit is."""

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from breakwater_gateway.router.release import (
    PATIENCE_S,
    QUIET_S,
    UNTRIED_MAX,
    Rank,
    Release,
)


def sent(release: Release, *requests: str, now: float = 0.0) -> None:
    for request in requests:
        release.sent(request, now)


def drained(release: Release, now: float) -> list[str]:
    """Everybody who may go now; each is sent."""
    gone = []
    while (request := release.due(now)) is not None:
        release.sent(request, now)
        gone.append(request)
    return gone


def test_a_target_that_never_refused_admits_everybody_who_comes_after_an_answer() -> None:
    release = Release()
    for number in range(1000):
        assert release.admits(0.0)
        release.sent(str(number), 0.0)
        release.answered(str(number), 0.0)


def test_a_cold_herd_is_tried_by_the_dozen() -> None:
    release = Release()
    for number in range(UNTRIED_MAX):
        assert release.admits(0.0)
        release.sent(str(number), 0.0)
    assert not release.admits(0.0)
    release.answered("0", 0.01)
    assert [release.admits(0.01) for _ in range(1)] == [True]


def test_calls_that_nobody_refused_for_a_while_were_taken() -> None:
    release = Release()
    sent(release, *map(str, range(UNTRIED_MAX)))
    assert not release.admits(PATIENCE_S * 0.9)
    assert release.admits(PATIENCE_S)


def test_a_refusal_pauses_the_target_and_one_probe_goes_first() -> None:
    release = Release()
    sent(release, "a")
    release.refused("a", 5.0, 1.0)
    for name in "bcd":
        release.join(name, 1)
    assert not release.admits(1.0)
    assert release.wake_at(1.0) == 6.0
    assert drained(release, 5.99) == []
    assert drained(release, 6.0) == ["b"]
    release.answered("b", 6.05)
    assert drained(release, 6.05) == ["c"]
    assert drained(release, 6.2) == ["d"]


def test_a_refused_probe_pauses_again_and_a_pause_without_a_time_doubles() -> None:
    release = Release()
    sent(release, "a")
    release.refused("a", None, 0.0)
    for name in "bcd":
        release.join(name, 1)
    (probe,) = drained(release, 1.0)
    release.refused(probe, None, 1.1)
    assert release.wake_at(1.1) == pytest.approx(3.1)
    (probe,) = drained(release, 3.1)
    release.refused(probe, None, 3.1)
    assert release.wake_at(3.1) == pytest.approx(7.1)


def test_a_probe_that_nobody_refuses_is_taken_after_a_moment() -> None:
    release = Release()
    sent(release, "a")
    release.refused("a", 1.0, 0.0)
    release.join("b", 1)
    release.join("c", 1)
    assert drained(release, 1.0) == ["b"]
    assert drained(release, 1.0 + PATIENCE_S) == ["c"]


def test_critical_requests_go_first_and_batch_last() -> None:
    release = Release()
    sent(release, "a")
    release.refused("a", 1.0, 0.0)
    ranks: dict[str, Rank] = {"batch": 2, "interactive": 1, "critical": 0}
    for name, rank in ranks.items():
        release.join(name, rank)
    gone = drained(release, 1.0)
    release.answered(gone[0], 1.0)
    for step in range(1, 20):
        gone += drained(release, 1.0 + step / 10)
    assert gone == ["critical", "interactive", "batch"]


def test_what_was_sent_before_the_pause_says_nothing_new_when_it_is_refused() -> None:
    release = Release()
    sent(release, *"abc")
    release.refused("a", 2.0, 0.1)
    release.refused("b", None, 0.2)
    release.join("d", 1)
    assert release.wake_at(0.2) == pytest.approx(2.1)
    release.refused("c", 4.0, 0.3)
    assert release.wake_at(0.3) == pytest.approx(4.3)


def test_whoever_leaves_the_queue_is_not_called() -> None:
    release = Release()
    sent(release, "a")
    release.refused("a", 1.0, 0.0)
    release.join("b", 1)
    release.leave("b")
    release.leave("never came")
    assert drained(release, 2.0) == []
    assert release.wake_at(2.0) is None


def test_a_quiet_target_is_like_any_other_again() -> None:
    release = Release()
    sent(release, "a")
    release.refused("a", 1.0, 0.0)
    assert not release.admits(1.0 + QUIET_S * 0.99)
    assert release.admits(1.0 + QUIET_S)


class Bucket:
    """A provider's limit: so many calls in any window, 429 with a Retry-After beyond it."""

    def __init__(self, capacity: int, window_s: float, retry_after_s: float) -> None:
        self.capacity, self.window_s, self.retry_after_s = capacity, window_s, retry_after_s
        self.taken: deque[float] = deque()
        self.closed_until = 0.0
        self.calls: list[float] = []

    def take(self, now: float) -> bool:
        self.calls.append(now)
        while self.taken and self.taken[0] <= now - self.window_s:
            self.taken.popleft()
        if now < self.closed_until or len(self.taken) >= self.capacity:
            return False
        self.taken.append(now)
        return True


def herd(bucket: Bucket, clients: int, *, until_s: float, latency_s: float = 0.05) -> float:
    """Everybody comes at 0; each is answered or refused after `latency_s`. When the last was served."""
    release = Release()
    now, served, step_s = 0.0, 0, 0.01
    answers: deque[tuple[float, str, bool]] = deque()

    def call(request: str) -> None:
        release.sent(request, now)
        answers.append((now + latency_s, request, bucket.take(now)))

    for number in range(clients):
        if release.admits(now):
            call(str(number))
        else:
            release.join(str(number), 1)
    while served < clients:
        assert now < until_s, f"{clients - served} of {clients} still wait"
        now += step_s
        while answers and answers[0][0] <= now:
            _, request, taken = answers.popleft()
            if taken:
                served += 1
                release.answered(request, now)
            else:
                release.refused(request, bucket.retry_after_s, now)
                release.join(request, 1)
        while (due := release.due(now)) is not None:
            call(due)
    return now


@pytest.mark.parametrize("capacity", [5, 10, 50, 200])
def test_a_herd_is_served_with_few_calls_beyond_its_own(capacity: int) -> None:
    bucket = Bucket(capacity, window_s=0.1, retry_after_s=5.0)
    bucket.closed_until = 5.0
    herd(bucket, 1000, until_s=120)
    peaks = [
        sum(1 for at in bucket.calls if start <= at < start + 0.1)
        for start in {at for at in bucket.calls if at > 5}
    ]
    assert len(bucket.calls) <= 1300
    assert max(peaks) <= 3 * capacity


@settings(max_examples=60, deadline=None)
@given(
    capacity=st.integers(1, 100),
    retry_after_s=st.sampled_from([0.0, 0.2, 1.0, 5.0]),
    latency_s=st.sampled_from([0.01, 0.05, 0.4]),
    clients=st.integers(1, 300),
)
def test_everybody_who_waits_is_released_in_the_end(
    capacity: int, retry_after_s: float, latency_s: float, clients: int
) -> None:
    herd(Bucket(capacity, 0.1, retry_after_s), clients, until_s=3600, latency_s=latency_s)
