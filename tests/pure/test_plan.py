"""The attempt planner: tables for people, then laws for everything else."""

from hypothesis import given, settings
from hypothesis import strategies as st

from breakwater_gateway.config.model import RetryPolicy
from breakwater_gateway.router.plan import (
    BUSY_TRIES_MAX,
    Candidate,
    Claim,
    Dispatch,
    Envelope,
    GiveUp,
    Plan,
    Queue,
    Skipped,
    Wait,
)
from breakwater_protocol import failures as f

A, B, C = (Candidate(name, name) for name in "abc")


def plan(attempts: int = 3, deadline: float = 60.0) -> Plan:
    envelope = Envelope(attempts_max=attempts, deadline=deadline)
    return Plan(policy=RetryPolicy(attempts=attempts), envelope=envelope)


def dispatched(step: object) -> tuple[str, int]:
    assert isinstance(step, Dispatch), step
    return step.candidate.deployment, step.attempt


def test_the_first_candidate_is_called_first() -> None:
    assert dispatched(plan().next((A, B), (), now=0)) == ("a", 1)


def test_another_target_is_tried_at_once_after_a_server_error() -> None:
    p = plan()
    p.next((A, B), (), now=0)
    p.failed(A, f.ServerError(), now=1, draw=0.5)
    assert dispatched(p.next((A, B), (), now=1)) == ("b", 2)


def test_the_same_target_is_waited_for_when_nothing_else_is_left() -> None:
    p = plan()
    p.next((A,), (), now=0)
    p.failed(A, f.ServerError(), now=1, draw=0.5)
    step = p.next((A,), (), now=1)
    assert step == Wait(1 + 0.5 * 0.25, "backoff")
    again = p.next((A,), (), now=step.until)
    assert dispatched(again) == ("a", 2)
    assert isinstance(again, Dispatch)
    assert again.repeat


def test_a_rate_limit_waits_as_long_as_the_provider_asked() -> None:
    p = plan()
    p.next((A,), (), now=0)
    p.failed(A, f.RateLimited(retry_after_s=2.0), now=0, draw=0.0)
    assert p.next((A,), (), now=0) == Wait(2.0, "backoff")


def test_a_wait_beyond_the_deadline_is_not_waited() -> None:
    p = plan(deadline=5)
    p.next((A,), (), now=0)
    failure = f.RateLimited(retry_after_s=20.0)
    p.failed(A, failure, now=0, draw=0.0)
    assert p.next((A,), (), now=0) == GiveUp(failure)


def test_the_callers_own_fault_ends_the_plan() -> None:
    p = plan()
    p.next((A, B), (), now=0)
    failure = f.InvalidRequest("no")
    p.failed(A, failure, now=0, draw=0)
    assert p.next((A, B), (), now=0) == GiveUp(failure)


def test_the_envelope_of_attempts_holds_whatever_is_left() -> None:
    p = plan(attempts=2)
    for _ in range(2):
        step = p.next((A, B, C), (), now=0)
        assert isinstance(step, Dispatch)
        p.failed(step.candidate, f.ServerError("x"), now=0, draw=0)
    assert p.next((A, B, C), (), now=0) == GiveUp(f.ServerError("x"))


def test_two_plans_of_a_request_share_one_envelope() -> None:
    envelope = Envelope(attempts_max=3, deadline=60)
    first = Plan(policy=RetryPolicy(attempts=3), envelope=envelope, spare=1)
    for _ in range(2):
        step = first.next((A, B, C), (), now=0)
        assert isinstance(step, Dispatch)
        first.failed(step.candidate, f.ServerError("x"), now=0, draw=0)
    assert first.next((A, B, C), (), now=0) == GiveUp(f.ServerError("x"))
    second = Plan(policy=RetryPolicy(attempts=3), envelope=envelope)
    assert dispatched(second.next((A,), (), now=0)) == ("a", 3)
    second.failed(A, f.ServerError("y"), now=0, draw=0)
    assert second.next((A,), (), now=1) == GiveUp(f.ServerError("y"))


def test_a_refused_key_turns_to_the_next_key_of_the_pool_at_once() -> None:
    p = plan()
    pooled = Candidate("a", "a", keys=2)
    first = p.next((pooled,), (), now=0)
    p.failed(pooled, f.KeyRejected(), now=0, draw=0)
    second = p.next((pooled,), (), now=0)
    assert isinstance(first, Dispatch)
    assert isinstance(second, Dispatch)
    assert (first.key, second.key) == (0, 1)
    assert not second.repeat
    p.failed(pooled, f.KeyRejected("b"), now=0, draw=0)
    assert p.next((pooled,), (), now=0) == GiveUp(f.KeyRejected("b"))


POOL = Candidate("p", "p", keys=3)
LIMITED = f.RateLimited(retry_after_s=5.0)


def test_after_a_429_another_target_goes_first_and_then_another_key_at_once() -> None:
    p = plan()
    first = p.next((POOL, B), (), now=0)
    assert isinstance(first, Dispatch)
    p.failed(POOL, LIMITED, now=1, draw=0.5)
    assert dispatched(p.next((POOL, B), (), now=1)) == ("b", 2)
    p.failed(B, f.ServerError(), now=1, draw=0.5)
    third = p.next((POOL, B), (), now=1)
    assert dispatched(third) == ("p", 3)
    assert isinstance(third, Dispatch)
    assert (first.key, third.key) == (0, 1)
    assert not third.repeat
    assert p.attempts == 3


def test_each_key_of_a_pool_is_asked_once_before_any_is_waited_for() -> None:
    p = plan(attempts=5)
    keys = []
    for draw in (0.5, 0.2, 0.9):
        step = p.next((POOL,), (), now=1)
        assert isinstance(step, Dispatch)
        keys.append(step.key)
        p.failed(POOL, LIMITED, now=1, draw=draw)
    assert keys == [0, 1, 2]
    # t + U(0, t) of the second key, which is free first.
    assert p.next((POOL,), (), now=1) == Wait(1 + 5.0 + 0.2 * 5.0, "backoff")
    step = p.next((POOL,), (), now=7)
    assert isinstance(step, Dispatch)
    assert (step.key, step.repeat) == (1, True)


def test_a_key_that_is_paused_for_everybody_is_not_used() -> None:
    p = plan()
    step = p.next((Candidate("p", "p", keys=3, usable_keys=(2,)),), (), now=0)
    assert isinstance(step, Dispatch)
    assert step.key == 2


def test_a_turn_is_for_its_key_whenever_this_request_would_have_come_back_by_itself() -> None:
    p = plan()
    p.next((POOL,), (), now=0)
    p.failed(POOL, LIMITED, now=0, draw=0.9)
    turn = Candidate("p", "p", keys=3, usable_keys=(0,), turn=True)
    step = p.next((turn,), (), now=5)
    assert isinstance(step, Dispatch)
    assert (step.key, step.repeat) == (0, False)


def test_where_the_keys_that_are_not_paused_refused_this_request_the_others_are_waited_for() -> (
    None
):
    p = plan()
    half = Candidate("p", "p", keys=2, usable_keys=(1,), more_keys_at=4.0)
    p.next((half,), (), now=0)
    p.failed(half, f.KeyRejected(), now=0, draw=0)
    assert p.next((half,), (), now=0) == Wait(4.0, "backoff")
    step = p.next((Candidate("p", "p", keys=2),), (), now=4)
    assert isinstance(step, Dispatch)
    assert (step.key, step.repeat) == (0, False)


def test_a_full_worker_costs_no_attempt() -> None:
    p = plan(attempts=1)
    p.next((A,), (), now=0)
    p.turned_away(A)
    assert dispatched(p.next((A,), (), now=0)) == ("a", 1)


def test_being_turned_away_for_ever_is_an_overload() -> None:
    p = plan()
    for _ in range(BUSY_TRIES_MAX + 1):
        assert isinstance(p.next((A,), (), now=0), Dispatch)
        p.turned_away(A)
    step = p.next((A,), (), now=0)
    assert isinstance(step, GiveUp)
    assert isinstance(step.failure, f.Overloaded)


def test_a_lost_worker_costs_an_attempt_and_the_target_is_tried_through_another() -> None:
    p = plan(attempts=2)
    p.next((A,), (), now=0)
    p.failed(A, f.WorkerLost("gone"), now=0, draw=0)
    assert dispatched(p.next((A,), (), now=0)) == ("a", 2)


def test_a_half_open_target_is_only_called_by_the_winner_of_its_probe() -> None:
    probe = Candidate("a", "a", epoch=7, probe=True)
    p = plan()
    assert p.next((probe, B), (), now=0) == Claim(probe)
    p.claimed(probe, won=False)
    assert dispatched(p.next((probe, B), (), now=0)) == ("b", 1)

    winner = plan()
    winner.next((probe, B), (), now=0)
    winner.claimed(probe, won=True)
    assert dispatched(winner.next((probe, B), (), now=0)) == ("a", 1)


def test_nothing_callable_says_why_and_when() -> None:
    step = plan(deadline=5).next(
        (), (Skipped("a", "breaker_open", 4.0), Skipped("b", "throttled", 9.0)), now=1
    )
    assert isinstance(step, GiveUp)
    assert isinstance(step.failure, f.NoDeployment)
    assert step.failure.retry_after_s == 3.0
    assert "a breaker open" in step.failure.message


def test_without_any_worker_the_mend_is_named() -> None:
    step = plan().next((), (Skipped("a", "no_worker"),), now=0)
    assert isinstance(step, GiveUp)
    assert "breakwater run worker" in step.failure.message


def test_a_throttled_target_is_waited_for_within_the_deadline() -> None:
    p = plan(deadline=10)
    assert p.next((), (Skipped("a", "throttled", 2.0),), now=0) == Queue("a")
    turn = Candidate("a", "a", turn=True)
    step = p.next((turn,), (), now=2)
    assert dispatched(step) == ("a", 1)


def test_a_turn_that_came_is_no_draw_on_the_retry_budget() -> None:
    p = plan()
    p.next((A,), (), now=0)
    p.failed(A, f.RateLimited(retry_after_s=5.0), now=0, draw=0.5)
    assert p.next((), (Skipped("a", "throttled", 5.0),), now=0) == Queue("a")
    step = p.next((Candidate("a", "a", turn=True),), (), now=5)
    assert dispatched(step) == ("a", 2)
    assert isinstance(step, Dispatch)
    assert not step.repeat


def test_all_throttled_beyond_the_deadline_is_a_rate_limit() -> None:
    step = plan(deadline=1).next((), (Skipped("a", "throttled", 2.0),), now=0)
    assert step == GiveUp(
        f.RateLimited("every deployment is throttled: a throttled", retry_after_s=2.0)
    )


FAILURES = st.sampled_from(
    [
        f.RateLimited(retry_after_s=1.5),
        f.RateLimited(),
        f.QuotaExhausted(),
        f.KeyRejected(),
        f.ModelNotFound(),
        f.Overloaded(retry_after_s=0.5),
        f.ServerError(),
        f.ConnectFailed(),
        f.FirstTokenTimeout(),
        f.StreamCut(),
        f.MalformedAnswer(),
        f.MalformedToolCall(),
        f.WorkerLost(),
        f.InvalidRequest(),
        f.ContentFiltered(),
        f.TotalTimeout(),
    ]
)
EVENT = st.tuples(FAILURES | st.just(None), st.floats(0, 5), st.floats(0, 0.999))


@settings(max_examples=300, deadline=None)
@given(
    attempts=st.integers(1, 6),
    deadline=st.floats(0.1, 30),
    names=st.lists(st.sampled_from("abcd"), unique=True, max_size=4),
    keys=st.integers(0, 3),
    probes=st.sets(st.sampled_from("abcd")),
    events=st.lists(EVENT, min_size=40, max_size=40),
)
def test_every_plan_ends_within_its_envelope(
    attempts: int,
    deadline: float,
    names: list[str],
    keys: int,
    probes: set[str],
    events: list[tuple[f.Failure | None, float, float]],
) -> None:
    """Exactly one end, before the deadline's last call has run, never more calls than the envelope."""
    p = plan(attempts, deadline)
    candidates = tuple(Candidate(n, n, keys=keys, epoch=1, probe=n in probes) for n in names)
    now, calls, called = 0.0, 0, []
    for failure, took, draw in events:
        step = p.next(candidates, (), now=now)
        match step:
            case GiveUp():
                break
            case Queue():
                raise AssertionError("nothing was throttled")
            case Wait(until, _):
                assert until > now
                now = until
            case Claim(candidate):
                p.claimed(candidate, won=draw < 0.5)
            case Dispatch(candidate, key, attempt, _):
                calls += 1
                called.append(candidate.deployment)
                assert now < deadline
                assert attempt == p.attempts
                assert 0 <= key < max(1, keys)
                now += took
                if failure is None:
                    calls -= 1
                    called.pop()
                    p.turned_away(candidate)
                else:
                    p.failed(candidate, failure, now=now, draw=draw)
    else:
        raise AssertionError("the plan did not end")
    assert calls <= attempts
    assert p.attempts == calls
    assert isinstance(p.next(candidates, (), now=now), GiveUp)
