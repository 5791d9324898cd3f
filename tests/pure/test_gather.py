"""Tail sampling: a request's spans wait for its end, then all of them go or none."""

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.pure.test_spans import AT, PARENT, attempt, request

from breakwater_gateway.exporter import gather as g
from breakwater_gateway.exporter.gather import Gather
from breakwater_gateway.exporter.spans import Span
from breakwater_protocol.events import AttemptFinished, RequestFinished

Event = AttemptFinished | RequestFinished


def fold(gather: Gather, events: Iterable[Event], *, first: int = 1) -> list[list[Span]]:
    """What each event lets go, read a second apart."""
    found = []
    for seq, event in enumerate(events, first):
        now = AT + seq
        if isinstance(event, AttemptFinished):
            found.append(gather.attempt(event, seq=seq, now=now))
        else:
            found.append(gather.request(event, now=now))
    return found


def everything() -> Gather:
    return Gather(share=1.0, slow_s=10.0)


def nothing() -> Gather:
    return Gather(share=0.0, slow_s=10.0)


def test_calls_wait_for_the_end_of_their_request() -> None:
    gather = everything()
    bad = attempt(outcome="overloaded", failure="overloaded")
    first, second, last = fold(gather, [bad, attempt(attempt=2), request(attempts=2)])
    assert (first, second) == ([], [])
    root, *calls = last
    assert (root.kind, root.parent_id) == ("server", b"")
    assert [each.attributes["breakwater.attempt"] for each in calls] == [1, 2]
    assert {each.parent_id for each in calls} == {root.span_id}
    assert {each.trace_id for each in calls} == {root.trace_id}
    assert gather.needed is None


REMARKABLE: list[tuple[str, list[Event]]] = [
    ("error", [request(outcome="timeout", rung="error")]),
    ("error", [request(outcome="budget_exhausted", rung="error")]),
    ("partial", [attempt(outcome="partial"), request(outcome="partial")]),
    ("degraded", [request(rung="static", rung_reason="overloaded")]),
    ("degraded", [request(rung="cache", cache="hit", rung_reason="overloaded")]),
    ("degraded", [request(rung="stale", cache="stale", rung_reason="timeout")]),
    ("retried", [attempt(outcome="timeout", failure="timeout"), attempt(attempt=2), request()]),
    ("slow", [attempt(), request(duration_ms=10_000.0)]),
]


@pytest.mark.parametrize(("why", "events"), REMARKABLE, ids=[why for why, _ in REMARKABLE])
def test_what_is_remarkable_is_always_kept(why: str, events: list[Event]) -> None:
    gather = nothing()
    (*_, last) = fold(gather, events)
    assert len(last) == len(events)
    assert last[0].attributes["breakwater.kept"] == why
    assert (gather.kept, gather.left_out) == (1, 0)


@pytest.mark.parametrize(
    "end",
    [
        request(),
        request(outcome="cancelled"),
        request(cache="hit"),
        request(cache="semantic"),
        request(duration_ms=9_999.0),
    ],
)
def test_of_the_rest_a_share_is_kept(end: RequestFinished) -> None:
    gather = nothing()
    assert fold(gather, [attempt(), end]) == [[], []]
    assert (gather.kept, gather.left_out) == (0, 1)
    _, kept = fold(everything(), [attempt(), end])
    assert len(kept) == 2


def test_the_share_is_one_of_traces() -> None:
    gather = Gather(share=0.25, slow_s=10.0)
    for k in range(2_000):
        fold(gather, [request(request=f"req_{k}")])
    assert 400 < gather.kept < 600


@pytest.mark.parametrize(("flags", "share", "kept"), [("01", 0.0, 2), ("00", 1.0, 0)])
def test_the_caller_s_decision_holds(flags: str, share: float, kept: int) -> None:
    trace = PARENT[:-2] + flags
    gather = Gather(share=share, slow_s=10.0)
    events: list[Event] = [attempt(traceparent=trace), request(traceparent=trace)]
    assert len(fold(gather, events)[-1]) == kept
    failed = request(traceparent=trace, outcome="timeout")
    assert len(fold(Gather(share=share, slow_s=10.0), [failed])[-1]) == 1


def test_a_call_that_ends_after_its_request_goes_as_the_request_went() -> None:
    late = attempt(attempt=2, outcome="cancelled", at=AT + 0.5, duration_ms=600.0)
    gather = everything()
    _, (root, _), (straggler,) = fold(gather, [attempt(), request(), late])
    assert straggler.parent_id == root.span_id
    assert fold(nothing(), [attempt(), request(), late]) == [[], [], []]


def test_an_id_that_is_asked_again_begins_anew() -> None:
    gather = everything()
    again = attempt(at=AT + 5, duration_ms=1_000.0)
    _, (first, _), waits, (second, call) = fold(
        gather, [attempt(), request(), again, request(at=AT + 5.01)]
    )
    assert waits == []
    assert first.span_id != second.span_id == call.parent_id
    assert first.trace_id == second.trace_id


def test_a_call_whose_request_never_ends_is_let_go_in_the_end() -> None:
    gather = everything()
    fold(gather, [attempt(traceparent=PARENT)])
    assert gather.needed == 1
    assert gather.tick(AT + 1 + g.PATIENCE_S - 0.1) == []
    (alone,) = gather.tick(AT + 1 + g.PATIENCE_S)
    assert alone.parent_id.hex() == "b7ad6b7169203331"
    assert gather.needed is None


def test_of_calls_without_an_end_only_failures_are_remarkable() -> None:
    gather = nothing()
    fold(gather, [attempt(), attempt(request="req_2", outcome="timeout", failure="timeout")])
    (alone,) = gather.tick(AT + 2 * g.PATIENCE_S)
    assert alone.attributes["error.type"] == "timeout"


def test_a_probe_waits_for_no_request() -> None:
    probe = attempt(tenant="breakwater", request="probe-gpt-us-4")
    assert [len(each) for each in fold(everything(), [probe])] == [1]


def test_a_place_that_was_given_back_is_no_call() -> None:
    gather = everything()
    assert fold(gather, [attempt(worker="", outcome="no_worker")]) == [[]]
    assert gather.needed is None


def test_what_is_held_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(g, "WAITING_MAX", 10)
    monkeypatch.setattr(g, "DECIDED_MAX", 10)
    gather = everything()
    spilled = fold(gather, [attempt(request=f"req_{k}") for k in range(15)])
    assert [len(each) for each in spilled] == [0] * 10 + [1] * 5
    assert gather.needed == 6
    many = fold(gather, [attempt(request="req_14", attempt=k) for k in range(2, 200)], first=16)
    assert sum(map(len, many)) == 198 - g.ATTEMPTS_MAX + 1
    fold(gather, [request(request=f"other_{k}") for k in range(100)], first=300)
    assert len(gather._decided) == 10


calls = st.builds(
    lambda r, k, outcome, at, ms: attempt(
        request=r, attempt=k, outcome=outcome, at=AT + at, duration_ms=ms
    ),
    st.sampled_from("abcd"),
    st.integers(1, 4),
    st.sampled_from(["ok", "timeout", "cancelled"]),
    st.floats(0, 50),
    st.floats(0, 5_000),
)
ends = st.builds(
    lambda r, outcome, at: request(request=r, outcome=outcome, at=AT + at),
    st.sampled_from("abcd"),
    st.sampled_from(["ok", "timeout", "partial"]),
    st.floats(0, 50),
)


@given(st.lists(calls | ends, max_size=30), st.integers(0, 30), st.sampled_from([0.0, 0.5, 1.0]))
def test_read_again_from_what_is_needed_nothing_is_lost(
    events: list[Event], stop: int, share: float
) -> None:
    """An exporter that is replaced after `stop` events sends what its predecessor would have sent."""
    stop = min(stop, len(events))
    one = Gather(share=share, slow_s=10.0)
    whole = fold(one, events)
    first = Gather(share=share, slow_s=10.0)
    sent = [span for made in fold(first, events[:stop]) for span in made]
    begin = stop if first.needed is None else min(first.needed - 1, stop)
    second = Gather(share=share, slow_s=10.0)
    for seq, made in enumerate(fold(second, events[begin:], first=begin + 1), begin + 1):
        if seq > stop:
            sent += made
    late = AT + 10 * g.PATIENCE_S
    before = {span.span_id for made in [*whole, one.tick(late)] for span in made}
    after = {span.span_id for span in [*sent, *second.tick(late)]}
    if share == 1.0:
        assert after == before
    # What the second one did not hear decided may be left out of a share, or be a failure on its own.
    remarkable = {
        span.span_id
        for made in whole
        for span in made
        if span.attributes.get("breakwater.kept") in ("error", "partial", "retried")
    }
    assert remarkable <= after
