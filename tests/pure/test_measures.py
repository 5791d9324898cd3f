"""Latency and use of targets as folded from ended attempts."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from breakwater_protocol.chat import Usage
from breakwater_protocol.events import AttemptFinished, RateLimits
from breakwater_protocol.measures import (
    FAILED_MS,
    FORGET_S,
    NAMES_MAX,
    WINDOW_S,
    LatencyBoard,
    UsageBoard,
)
from breakwater_protocol.views import TARGETS_MAX


def attempt(target: str = "a", **facts: object) -> AttemptFinished:
    made = AttemptFinished(
        request="r",
        attempt=1,
        tenant="t",
        model="m",
        deployment=target,
        target=target,
        provider="p",
        worker="w",
        outcome="ok",
        at=0.0,
        stream=True,
        first_token_ms=100.0,
        duration_ms=2_000.0,
    )
    return structs.replace(made, **facts)


# ---------------------------------------------------------------- latency


def latency(board: LatencyBoard, now: float, *, stream: bool = True) -> float | None:
    return board.latency_ms("a", stream=stream, now=now)


def test_a_stream_is_measured_to_its_first_token_and_others_to_their_end() -> None:
    board = LatencyBoard()
    assert latency(board, 0.0) is None
    board.fold(attempt(), 0.0)
    board.fold(attempt(stream=False, first_token_ms=1_990.0), 0.0)
    assert latency(board, 0.0) == 100.0
    assert latency(board, 0.0, stream=False) == 2_000.0
    assert len(board) == 1


def test_a_longer_time_counts_at_once_and_a_shorter_one_by_and_by() -> None:
    board = LatencyBoard()
    board.fold(attempt(first_token_ms=100.0), 0.0)
    board.fold(attempt(first_token_ms=900.0), 1.0)
    assert latency(board, 1.0) == 900.0
    board.fold(attempt(first_token_ms=100.0), 2.0)
    here = latency(board, 2.0)
    assert here is not None
    assert 700.0 < here < 900.0
    for second in range(3, 60):
        board.fold(attempt(first_token_ms=100.0), float(second))
    settled = latency(board, 60.0)
    assert settled == pytest.approx(100.0, rel=0.1)


def test_what_nothing_confirms_fades_and_is_forgotten() -> None:
    board = LatencyBoard()
    board.fold(attempt(first_token_ms=1_000.0), 0.0)
    values = [latency(board, at) for at in (0.0, 30.0, 120.0, FORGET_S - 1)]
    known = [value for value in values if value is not None]
    assert known == sorted(known, reverse=True)
    assert len(known) == 4
    assert known[-1] < 10.0
    assert latency(board, FORGET_S) is None


@pytest.mark.parametrize(
    ("facts", "ms"),
    [
        ({"against_target": True, "duration_ms": 3.0}, FAILED_MS),
        ({"against_target": True, "duration_ms": 9_000.0}, 9_000.0),
        ({"against_target": True, "in_stall": True}, None),
        ({"against_target": False}, None),
    ],
)
def test_a_quick_failure_does_not_look_quick(facts: dict[str, Any], ms: float | None) -> None:
    board = LatencyBoard()
    board.fold(attempt(outcome="server_error", **facts), 0.0)
    assert latency(board, 0.0) == ms


def test_a_failure_makes_a_slow_target_slower() -> None:
    board = LatencyBoard()
    board.fold(attempt(first_token_ms=4_000.0), 0.0)
    board.fold(attempt(outcome="server_error", against_target=True, duration_ms=2.0), 0.0)
    assert latency(board, 0.0) == 8_000.0


@given(
    st.lists(
        st.tuples(
            st.floats(0, 1e6) | st.sampled_from([float("nan"), float("inf"), -1.0]),
            st.floats(0, 50),
            st.booleans(),
        ),
        max_size=30,
    )
)
def test_a_latency_is_within_what_was_seen_whatever_comes(
    steps: list[tuple[float, float, bool]],
) -> None:
    board, now, most = LatencyBoard(), 0.0, 0.0
    for ms, passed, failed in steps:
        now += passed
        board.fold(
            attempt(first_token_ms=ms, duration_ms=ms, against_target=failed, outcome="ok"), now
        )
        if ms >= 0 and ms != float("inf"):
            most = max(most, ms)
    found = latency(board, now)
    assert found is None or 0.0 <= found <= max(most, FAILED_MS) * 2.0 ** len(steps)


def test_the_boards_are_bounded_and_forget_what_is_not_configured() -> None:
    latencies, usages = LatencyBoard(), UsageBoard()
    for i in range(TARGETS_MAX + 3):
        latencies.fold(attempt(f"t{i}"), 0.0)
        usages.fold(attempt(f"t{i}", model=f"m{i}", usage=Usage(1, 1)), 0.0)
    assert len(latencies) == len(usages) == TARGETS_MAX
    assert latencies.refused == usages.refused == 3
    assert sum(usages.mean_output(f"m{i}") is not None for i in range(TARGETS_MAX + 3)) <= NAMES_MAX
    for board in (latencies, usages):
        board.retain({"t1", "t2", "none"})
        assert len(board) == 2


# ---------------------------------------------------------------- use of rates

T600 = Usage(input=500, output=100)


def test_use_is_counted_over_a_minute_and_leaves_it_by_and_by() -> None:
    board = UsageBoard()
    for second in range(30):
        board.fold(attempt(usage=T600), float(second))
    assert board.used("a", 60, None, now=30.0) == 0.5
    assert board.used("a", 60, 24_000, now=30.0) == 0.75
    assert board.used("a", None, None, now=30.0) is None
    assert board.used("a", 60, None, now=75.0) == 0.25
    assert board.used("a", 60, None, now=30.0 + 2 * WINDOW_S) == 0.0


def test_calls_under_way_count_as_the_mean_of_those_before() -> None:
    board = UsageBoard()
    assert board.used("a", 10, None, now=0.0, in_flight=2) == 0.2
    assert board.used("a", None, 1_000, now=0.0, in_flight=2) == 0.0
    assert board.used("a", None, None, now=0.0, in_flight=2) is None
    board.fold(attempt(usage=T600), 0.0)
    assert board.used("a", 10, None, now=0.0, in_flight=2) == pytest.approx(0.3)
    assert board.used("a", None, 6_000, now=0.0, in_flight=2) == pytest.approx(0.3)


def said(left: int, reset_s: float | None = 10.0, limit: int | None = 100) -> RateLimits:
    return RateLimits(limit, left, reset_s)


def test_what_the_provider_says_is_the_truth_until_its_reset() -> None:
    board = UsageBoard()
    quick: dict[str, Any] = {"first_token_ms": 5.0, "duration_ms": 5.0}
    board.fold(attempt(limits=said(20), **quick), 0.0)
    assert board.used("a", 1_000, None, now=0.0) == pytest.approx(0.8)
    board.fold(attempt(**quick), 1.0)  # says nothing: one less
    assert board.used("a", 1_000, None, now=1.0) == pytest.approx(0.81)
    assert board.used("a", 1_000, None, now=1.0, in_flight=19) == pytest.approx(1.0)
    assert board.used("a", 1_000, None, now=10.0) == pytest.approx(0.002)


def test_an_older_word_that_arrives_later_is_no_news() -> None:
    board = UsageBoard()
    board.fold(attempt(limits=said(50), first_token_ms=5.0, duration_ms=5.0), 10.0)
    # Its headers came nine seconds before its end.
    board.fold(attempt(limits=said(90), first_token_ms=100.0, duration_ms=9_100.0), 11.0)
    assert board.used("a", None, None, now=11.0) == pytest.approx(0.5)


def test_without_a_limit_only_nothing_left_is_known() -> None:
    board = UsageBoard()
    board.fold(attempt(limits=said(3, limit=None)), 0.0)
    assert board.used("a", None, None, now=0.0) is None
    board.fold(attempt(limits=said(0, limit=None)), 0.0)
    assert board.used("a", None, None, now=0.0) == 1.0


@pytest.mark.parametrize(
    ("limits", "rpm", "wait_s"),
    [
        (None, None, 0.0),
        (None, 2, 0.0),
        (None, 1, 65.0),
        (said(1), 1, 0.0),  # the provider knows better
        (said(0), None, 8.0),
    ],
)
def test_how_long_until_something_is_left(
    limits: RateLimits | None, rpm: int | None, wait_s: float
) -> None:
    board = UsageBoard()
    assert board.wait_s("a", rpm, None, now=0.0) == 0.0
    event = attempt(limits=limits, first_token_ms=1.0, duration_ms=2_001.0)
    board.fold(event, 0.0)
    assert board.wait_s("a", rpm, None, now=0.0) == pytest.approx(wait_s)


@given(
    st.lists(
        st.tuples(
            st.floats(0, 100),
            st.integers(0, 10**9),
            st.none() | st.tuples(st.integers(0, 10), st.floats(0, 100)),
        ),
        max_size=40,
    )
)
def test_counts_never_go_below_zero_and_a_wait_ends(
    steps: list[tuple[float, int, tuple[int, float] | None]],
) -> None:
    board, now = UsageBoard(), 0.0
    for passed, tokens, word in steps:
        now += passed
        limits = None if word is None else RateLimits(10, word[0], word[1])
        board.fold(attempt(usage=Usage(input=tokens), limits=limits), now)
        used = board.used("a", 5, 10**6, now=now)
        assert used is not None
        assert used >= 0.0
        wait_s = board.wait_s("a", 5, 10**6, now=now)
        assert 0.0 <= wait_s <= 100.0
    assert board.wait_s("a", 5, 10**6, now=now + 161.0) == 0.0
    if steps:
        assert board.used("a", 5, 10**6, now=now + 161.0) == 0.0


def test_the_mean_output_of_a_model_is_learned_from_whole_answers() -> None:
    board = UsageBoard()
    assert board.mean_output("m") is None
    board.fold(attempt(usage=T600), 0.0)
    assert board.mean_output("m") == 100.0
    board.fold(attempt(usage=Usage(output=200)), 0.0)
    assert board.mean_output("m") == pytest.approx(105.0)
    board.fold(attempt(outcome="partial", usage=Usage(output=5)), 0.0)
    board.fold(attempt(api="embeddings", usage=Usage(input=5)), 0.0)
    assert board.mean_output("m") == pytest.approx(105.0)
