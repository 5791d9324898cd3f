"""The breaker: tables for people, a machine for its laws."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from breakwater_gateway.config.model import BreakerPolicy
from breakwater_gateway.health.baseline import Baseline
from breakwater_gateway.health.breaker import (
    HOLD_MAX_S,
    PROBES,
    SLOW_FLOOR_S,
    TRANSITIONS,
    Breaker,
    Cause,
    Change,
    IllegalTransition,
)
from breakwater_gateway.health.verdict import Result, Verdict, judge
from breakwater_protocol.events import AttemptFinished, BreakerChanged, BreakerState, Evidence
from breakwater_protocol.views import RAMP, share

POLICY = BreakerPolicy()
HALF = 0.5
LETTERS = {"s": Verdict.healthy, "f": Verdict.failed, "n": Verdict.nothing}


def told(story: str, breaker: Breaker, now: float = 0.0) -> list[Change]:
    """Tell a story: `s f n` results of the breaker's own epoch, `S F` of an old one, `c` its
    probe is claimed, `30s` a wait."""
    changes: list[Change | None] = []
    for word in story.split():
        if word in LETTERS:
            changes.append(breaker.record(Result(LETTERS[word], breaker.epoch), now, HALF))
        elif word == "c":
            breaker.claimed(breaker.epoch, now)
        elif word in {"S", "F"}:
            result = Result(LETTERS[word.lower()], breaker.epoch - 1)
            changes.append(breaker.record(result, now, HALF))
        else:
            now += float(word.removesuffix("s"))
            changes.append(breaker.tick(now))
    return [change for change in changes if change is not None]


@pytest.mark.parametrize(
    ("story", "state"),
    [
        ("s s s", "closed"),
        ("f f f f", "closed"),
        ("f f f f f", "open"),  # five in a row
        ("f f f f s f f f f", "closed"),  # a success breaks the row, and nine calls are too few
        ("f f f f s f f f f s", "open"),  # the tenth makes eight of ten
        ("s s s s s s f f f f", "closed"),  # four of ten
        ("s s s s s f f f f s f", "closed"),  # five of eleven
        ("s s s s s s f s f f f f", "closed"),  # five of twelve
        ("s f s f s f s f s f", "open"),  # half of ten
        ("f f f f n n n f", "open"),  # a 429 or a cancelled call neither counts nor breaks the row
        ("f f f f 31s f", "open"),  # in a row is in a row, however long it took
        ("s f s f s f s f 31s s f", "closed"),  # but rates are of the window only
        ("f f f f f 1s", "open"),
        ("f f f f f 3.75s", "half_open"),  # 5 s times 0.75
        ("f f f f f s", "half_open"),  # an early probe
        ("f f f f f f", "open"),
        ("f f f f f n", "open"),
        ("f f f f f s s s", "closed"),
        ("f f f f f f 3.75s", "open"),  # failed, it makes the opening longer
        ("f f f f f f 7.5s", "half_open"),
        ("f f f f f 4s s s s f", "open"),  # within the ramp one failure is enough
        ("f f f f f 4s s s s n f", "open"),
        ("f f f f f 4s s s s 15s f f f f", "closed"),
        ("f f f f f 4s s", "half_open"),
        ("f f f f f 4s s s", "half_open"),
        ("f f f f f 4s s s s", "closed"),
        ("f f f f f 4s s s f", "open"),
        ("f f f f f 4s S S S S", "half_open"),  # results from before it opened
        ("f f f f f 4s F", "half_open"),
        ("f f f f f 4s n", "half_open"),
        ("f f f f f 4s s c 65s s s", "closed"),  # a lost probe costs nothing
        ("f f f f f 4s f 4s", "open"),  # the second opening is twice as long
        ("f f f f f 4s f 7.5s", "half_open"),
    ],
)
def test_stories(story: str, state: BreakerState) -> None:
    breaker = Breaker(POLICY, now=0.0)
    told(story, breaker)
    assert breaker.state == state


@pytest.mark.parametrize(
    ("story", "causes"),
    [
        ("f f f f f", ["consecutive"]),
        ("s f s f s f s f s f", ["failure_rate"]),
        (
            "f f f f f 4s s s s",
            [
                "consecutive",
                "open_elapsed",
                "probe_succeeded",
                "probe_succeeded",
                "probe_succeeded",
            ],
        ),
        ("f f f f f 4s f", ["consecutive", "open_elapsed", "probe_failed"]),
        ("f f f f f 4s c 65s n", ["consecutive", "open_elapsed", "probe_expired", "probe_expired"]),
        ("f f f f f 4s 299s", ["consecutive", "open_elapsed"]),  # nobody came by
        ("f f f f f 4s 299s c 64s s", ["consecutive", "open_elapsed", "probe_succeeded"]),
        ("f f f f f 4s 299s c 65s", ["consecutive", "open_elapsed", "probe_expired"]),
        ("f f f f f 4s 300s", ["consecutive", "open_elapsed", "probe_expired"]),
    ],
)
def test_each_change_says_why(story: str, causes: list[str]) -> None:
    changes = told(story, Breaker(POLICY, now=0.0))
    assert [change.cause for change in changes] == causes
    assert [change.epoch for change in changes] == list(range(1, len(causes) + 1))
    assert all(a.state == b.previous for a, b in pairwise(changes))


def test_a_change_carries_its_evidence_and_when_it_may_be_probed() -> None:
    (change,) = told("s s f f f f f", Breaker(POLICY, now=0.0))
    assert (change.evidence.window, change.evidence.failures) == (7, 5)
    assert change.evidence.consecutive == 5
    assert change.until == 3.75


def test_an_opening_lasts_between_half_and_all_of_its_time_which_doubles_up_to_the_cap() -> None:
    for draw, part in ((0.0, 0.5), (0.999999, 1.0)):
        breaker, now, lasts = Breaker(POLICY, now=0.0), 0.0, []
        breaker.trip(now, draw)
        for _ in range(9):
            until = breaker.wake_at()
            assert until is not None
            lasts.append((until - now) / part)
            now = until
            breaker.tick(now)
            breaker.record(Result(Verdict.failed, breaker.epoch), now, draw)
        assert lasts == pytest.approx([5, 10, 20, 40, 80, 160, 300, 300, 300], rel=1e-4)


def test_every_healthy_minute_forgives_one_doubling() -> None:
    breaker = Breaker(POLICY, now=0.0)
    told("f f f f f 4s f 8s f 16s s s s", breaker)
    assert breaker.state == "closed"
    now = 28.0 + 125.0  # two minutes healthy, of three doublings one is left
    breaker.trip(now, 0.999999)
    assert breaker.wake_at() == pytest.approx(now + 10.0, rel=1e-4)


def test_an_operator_may_open_and_close_it() -> None:
    breaker = Breaker(POLICY, now=0.0)
    assert breaker.trip(0.0, HALF).state == "open"
    closed = breaker.reset(1.0)
    assert (closed.state, closed.previous, closed.cause, closed.until) == (
        "closed",
        "open",
        "operator",
        0.0,
    )
    assert breaker.wake_at() is None


def test_a_reset_forgives_what_had_gathered() -> None:
    breaker = Breaker(POLICY, now=0.0)
    told("f f f f", breaker)
    breaker.reset(0.0)
    told("f f f f", breaker)
    assert breaker.state == "closed"


def test_failures_from_before_an_opening_do_not_count_after_it() -> None:
    breaker = Breaker(POLICY, now=0.0)
    told("f f f f f 4s s s s 15s s s s s s f", breaker)
    assert breaker.state == "closed"


def test_a_clock_that_steps_back_does_not_shorten_an_opening() -> None:
    breaker = Breaker(POLICY, now=0.0)
    breaker.tick(1_000.0)
    breaker.trip(10.0, 0.0)
    assert breaker.wake_at() == 1_002.5


def slow_calls(breaker: Breaker, seconds: float, count: int, now: float) -> list[Change]:
    found = []
    for _ in range(count):
        change = breaker.record(Result(Verdict.healthy, breaker.epoch, seconds), now, HALF)
        if change:
            found.append(change)
    return found


def test_first_tokens_later_than_the_bound_open_it_without_a_baseline() -> None:
    breaker = Breaker(POLICY, now=0.0, slow_s=10.0)
    assert slow_calls(breaker, 9.9, 20, 0.0) == []
    breaker = Breaker(POLICY, now=0.0, slow_s=10.0)
    (change,) = slow_calls(breaker, 10.1, 10, 0.0)
    assert (change.cause, change.evidence.slow) == ("slow_rate", 10)


def test_first_tokens_far_later_than_usual_open_it() -> None:
    breaker = Breaker(POLICY, now=0.0)
    assert slow_calls(breaker, 0.5, 50, 0.0) == []
    assert slow_calls(breaker, 1.5, 30, 100.0) == []
    (change,) = slow_calls(breaker, 5.0, 10, 200.0)
    assert change.cause == "slow_rate"


def test_a_fast_target_is_not_slow_within_a_second() -> None:
    breaker = Breaker(POLICY, now=0.0)
    slow_calls(breaker, 0.005, 50, 0.0)
    assert breaker.slow_after_s() == SLOW_FLOOR_S
    assert slow_calls(breaker, 0.9, 50, 100.0) == []


def test_the_baseline_settles_near_the_95th_percentile_and_accepts_a_new_normal() -> None:
    baseline = Baseline()
    assert baseline.p95() is None
    for i in range(10_000):
        baseline.add(0.01 * (1 + i * 7919 % 100))
    settled = baseline.p95()
    assert settled is not None
    assert 0.85 <= settled <= 1.0
    for _ in range(10):
        baseline.add(100.0)
    assert (baseline.p95() or 0) < 1.25
    for _ in range(300):
        baseline.add(100.0)
    assert (baseline.p95() or 0) > 90


def attempt(
    outcome: str,
    *,
    against: bool = False,
    stalled: bool = False,
    stream: bool = False,
    first_token_ms: float | None = None,
) -> AttemptFinished:
    return AttemptFinished(
        request="r",
        attempt=1,
        tenant="t",
        model="m",
        deployment="d",
        target="d",
        provider="p",
        worker="w",
        outcome=outcome,
        at=0.0,
        epoch=7,
        against_target=against,
        in_stall=stalled,
        stream=stream,
        first_token_ms=first_token_ms,
    )


@pytest.mark.parametrize(
    ("event", "verdict"),
    [
        (attempt("ok"), Verdict.healthy),
        (attempt("partial"), Verdict.healthy),
        (attempt("partial", against=True), Verdict.failed),
        (attempt("server_error", against=True), Verdict.failed),
        (attempt("first_token_timeout", against=True, stalled=True), Verdict.nothing),
        (attempt("cancelled"), Verdict.nothing),
        (attempt("rate_limited"), Verdict.nothing),
        (attempt("quota_exhausted"), Verdict.nothing),
        (attempt("key_rejected"), Verdict.nothing),
        (attempt("worker_lost"), Verdict.nothing),
        (attempt("invalid_request"), Verdict.healthy),
        (attempt("context_length"), Verdict.healthy),
        (attempt("content_filter"), Verdict.healthy),
        (attempt("payload_too_large"), Verdict.healthy),
    ],
)
def test_what_an_attempt_says_about_its_target(event: AttemptFinished, verdict: Verdict) -> None:
    assert judge(event) == Result(verdict, 7, None)


def test_only_streams_say_how_late_the_first_token_was() -> None:
    assert judge(attempt("ok", stream=True, first_token_ms=250.0)).first_token_s == 0.25
    assert judge(attempt("ok", first_token_ms=20_000.0)).first_token_s is None


def test_a_standby_keeps_evidence_and_acts_on_it_once_it_leads() -> None:
    standby = Breaker(POLICY, now=0.0)
    for _ in range(7):
        standby.observe(Result(Verdict.failed, 0), 0.0)
    assert standby.state == "closed"
    change = standby.decide(1.0, HALF)
    assert change is not None
    assert (change.state, change.cause) == ("open", "consecutive")


def test_a_standby_that_saw_the_probes_result_acts_on_it_once_it_leads() -> None:
    standby = Breaker(POLICY, now=0.0)
    standby.adopt(state="half_open", epoch=2, cause="open_elapsed", open_for_s=0, left_s=0, now=0.0)
    standby.observe(Result(Verdict.failed, 2), 1.0)
    change = standby.decide(2.0, HALF)
    assert change is not None
    assert (change.state, change.epoch) == ("open", 3)


def test_of_two_results_under_one_probes_epoch_the_first_counts() -> None:
    standby = Breaker(POLICY, now=0.0)
    standby.adopt(state="half_open", epoch=2, cause="", open_for_s=0, left_s=0, now=0.0)
    standby.observe(Result(Verdict.failed, 2), 1.0)
    standby.observe(Result(Verdict.healthy, 2), 1.0)
    change = standby.decide(2.0, HALF)
    assert change is not None
    assert change.state == "open"


def test_an_owner_that_knows_only_of_the_probing_opens_for_longer_than_the_first_time() -> None:
    breaker = Breaker(POLICY, now=0.0)
    breaker.adopt(state="half_open", epoch=2, cause="", open_for_s=0, left_s=0, now=0.0)
    change = breaker.record(Result(Verdict.failed, 2), 0.0, 0.0)
    assert change is not None
    assert change.until == 5.0


def test_evidence_of_before_does_not_outlive_what_another_owner_published() -> None:
    standby = Breaker(POLICY, now=0.0)
    for _ in range(4):
        standby.observe(Result(Verdict.failed, 0), 0.0)
    states: tuple[BreakerState, ...] = ("open", "half_open", "closed")
    for epoch, state in enumerate(states, 1):
        standby.adopt(state=state, epoch=epoch, cause="", open_for_s=5, left_s=0, now=0.0)
    assert standby.record(Result(Verdict.failed, 3), 0.0, HALF) is None


def test_a_new_owner_goes_on_with_what_is_left_of_an_opening() -> None:
    breaker = Breaker(POLICY, now=100.0)
    assert breaker.adopt(
        state="open", epoch=9, cause="probe_failed", open_for_s=15.0, left_s=4.0, now=100.0
    )
    assert breaker.wake_at() == 104.0
    assert breaker.tick(103.9) is None
    change = breaker.tick(104.0)
    assert change is not None
    assert (change.state, change.epoch) == ("half_open", 10)
    # 15 s is of the 20 s of two doublings, so the next opening is of 40 s.
    reopened = breaker.record(Result(Verdict.failed, 10), 105.0, 0.0)
    assert reopened is not None
    assert reopened.until == 105.0 + 20.0


def test_an_adopted_opening_never_outlasts_the_cap_whatever_the_clocks_say() -> None:
    breaker = Breaker(POLICY, now=0.0)
    breaker.adopt(state="open", epoch=1, cause="consecutive", open_for_s=1e9, left_s=1e9, now=0.0)
    assert breaker.wake_at() == POLICY.open_cap_s
    breaker.adopt(state="open", epoch=2, cause="operator", open_for_s=1e9, left_s=1e9, now=0.0)
    assert breaker.wake_at() == HOLD_MAX_S


def test_older_news_is_not_adopted() -> None:
    breaker = Breaker(POLICY, now=0.0)
    breaker.trip(0.0, HALF)
    for epoch in (-1, 0, 1):
        assert not breaker.adopt(
            state="closed", epoch=epoch, cause="", open_for_s=0, left_s=0, now=0.0
        )
    assert (breaker.state, breaker.epoch) == ("open", 1)


def test_an_owner_without_memory_goes_on_above_the_epochs_that_others_still_use() -> None:
    breaker = Breaker(POLICY, now=0.0)
    assert breaker.catch_up(0) is None
    change = breaker.catch_up(41)
    assert change is not None
    assert (change.state, change.cause, change.epoch) == ("closed", "resumed", 42)


def test_a_move_that_is_not_in_the_table_is_a_defect() -> None:
    with pytest.raises(IllegalTransition):
        Breaker(POLICY, now=0.0)._move("open_elapsed", "half_open", 0.0)


def test_a_closed_breaker_never_becomes_half_open() -> None:
    assert not [move for move in TRANSITIONS if (move[0], move[2]) == ("closed", "half_open")]


class BreakerLaws(RuleBasedStateMachine):
    """Anything may happen at any time, with clocks that jump both ways; the laws hold after every step."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1_000.0
        self.latest = self.now
        self.breaker = Breaker(BreakerPolicy(min_requests=4, consecutive=3), now=self.now)
        self.seen: tuple[BreakerState, int] = ("closed", 0)
        self.probes = 0

    def note(self, change: Change | None) -> None:
        state, epoch = self.seen
        if change is None:
            # Nothing was said, so nothing has changed.
            assert (self.breaker.state, self.breaker.epoch) == self.seen
            return
        assert (change.previous, change.cause, change.state) in TRANSITIONS
        assert (change.previous, change.epoch) == (state, epoch + 1)
        assert (change.state, change.epoch) == (self.breaker.state, self.breaker.epoch)
        assert (change.until > 0) == (change.state == "open")
        assert (change.ramp_until > 0) == (
            (change.state, change.cause) == ("closed", "probe_succeeded")
        )
        if change.cause == "probe_succeeded":
            self.probes = 1 if change.previous == "open" else self.probes + 1
            assert (change.state == "closed") == (self.probes == PROBES)
        elif change.state != "half_open" or change.cause == "open_elapsed":
            self.probes = 0
        self.seen = (change.state, change.epoch)

    @rule(verdict=st.sampled_from(Verdict), draw=st.floats(0, 0.999), late=st.floats(0, 30))
    def a_call_of_this_epoch_ends(self, verdict: Verdict, draw: float, late: float) -> None:
        self.note(self.breaker.record(Result(verdict, self.breaker.epoch, late), self.now, draw))

    @rule(verdict=st.sampled_from(Verdict), offset=st.integers(-5, 5).filter(bool))
    def a_call_of_another_epoch_ends(self, verdict: Verdict, offset: int) -> None:
        before = self.breaker.evidence(self.now)
        wake_at = self.breaker.wake_at()
        epoch = self.breaker.epoch + offset
        assert self.breaker.record(Result(verdict, epoch), self.now, 0.5) is None
        assert self.breaker.evidence(self.now) == before
        assert self.breaker.wake_at() == wake_at
        self.note(None)

    @rule(seconds=st.floats(-100, 400))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.latest = max(self.latest, self.now)
        self.note(self.breaker.tick(self.now))

    @rule()
    def it_is_woken_when_it_asked(self) -> None:
        wake_at = self.breaker.wake_at()
        if wake_at is None:
            assert self.breaker.state == "closed"
            return
        self.now = max(self.now, wake_at)
        self.latest = max(self.latest, self.now)
        change = self.breaker.tick(self.now)
        assert change is not None
        assert change.state == "half_open"
        self.note(change)

    @rule(draw=st.floats(0, 0.999), for_s=st.none() | st.floats(0.001, 1e6))
    def an_operator_opens_it(self, draw: float, for_s: float | None) -> None:
        self.note(self.breaker.trip(self.now, draw, for_s))

    @rule(
        cause=st.sampled_from(("several_deployments", "key_refused", "quota_exhausted")),
        for_s=st.none() | st.floats(0.001, 1e6),
    )
    def its_owner_opens_it(self, cause: Cause, for_s: float | None) -> None:
        if self.breaker.state == "closed":
            self.note(self.breaker.open(cause, self.now, 0.5, for_s))

    @rule()
    def an_operator_closes_it(self) -> None:
        self.note(self.breaker.reset(self.now))

    @rule(ahead=st.integers(-3, 10))
    def its_owner_meets_another_epoch(self, ahead: int) -> None:
        seen = self.breaker.epoch + ahead
        change = self.breaker.catch_up(seen)
        assert (change is None) == (ahead <= 0)
        if change is not None:
            assert change.epoch == seen + 1
            self.seen = (self.seen[0], seen)
        self.note(change)

    @rule(
        state=st.sampled_from(("closed", "open", "half_open")),
        ahead=st.integers(-3, 3),
        left_s=st.floats(-1e6, 1e6),
        open_for_s=st.floats(-1e6, 1e6),
        cause=st.sampled_from(("open_elapsed", "operator", "probe_succeeded", "quota_exhausted")),
        ramp_s=st.floats(-1e6, 1e6),
    )
    def another_owner_published(
        self,
        state: BreakerState,
        ahead: int,
        left_s: float,
        open_for_s: float,
        cause: Cause,
        ramp_s: float,
    ) -> None:
        epoch = self.breaker.epoch + ahead
        adopted = self.breaker.adopt(
            state=state,
            epoch=epoch,
            cause=cause,
            open_for_s=open_for_s,
            left_s=left_s,
            now=self.now,
            ramp_s=ramp_s,
        )
        assert adopted == (ahead > 0)
        if adopted:
            self.seen = (state, epoch)
            self.probes = self.breaker.probed
        self.note(None)

    @invariant()
    def an_open_or_half_open_breaker_always_wakes(self) -> None:
        wake_at = self.breaker.wake_at()
        assert (wake_at is None) == (self.breaker.state == "closed")
        if wake_at is not None:
            assert wake_at <= self.latest + HOLD_MAX_S


TestBreakerLaws = BreakerLaws.TestCase
TestBreakerLaws.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


def test_a_failure_while_it_ramps_up_opens_it_for_longer() -> None:
    breaker = Breaker(POLICY, now=0.0)
    changes = told("f f f f f 4s s s s s s f", breaker)
    closed, opened = changes[-2:]
    assert (closed.state, closed.ramp_until) == ("closed", 4.0 + POLICY.ramp_s)
    assert (opened.cause, opened.until) == ("ramp_failed", 4.0 + 7.5)


def test_an_operators_word_says_how_long_and_costs_no_doubling() -> None:
    breaker = Breaker(POLICY, now=0.0)
    assert breaker.trip(0.0, HALF, 120.0).until == 120.0
    assert breaker.record(Result(Verdict.healthy, breaker.epoch), 1.0, HALF) is None
    breaker.reset(2.0)
    assert breaker.trip(2.0, 0.999999).until == pytest.approx(7.0, rel=1e-4)


def test_a_quota_is_over_when_the_provider_says_so() -> None:
    breaker = Breaker(POLICY, now=0.0, probes=1)
    assert breaker.open("quota_exhausted", 0.0, HALF, 90.0).until == 90.0
    assert [change.state for change in told("90s s", breaker)] == ["half_open", "closed"]


@given(
    ramp_s=st.floats(0.001, 3_600),
    times=st.lists(st.floats(-10, 4_000), min_size=2, max_size=20),
)
def test_the_ramp_never_falls_and_ends(ramp_s: float, times: list[float]) -> None:
    at = 1_700_000_000.0
    closed = BreakerChanged(
        "t", "closed", "probe_succeeded", Evidence(), 0.0, 7, "half_open", at, at + ramp_s
    )
    shares = [share(closed, at + t) for t in sorted(times)]
    assert shares == sorted(shares)
    assert set(shares) <= {*RAMP, 1.0}
    assert share(closed, at) == RAMP[0]
    assert share(closed, at + ramp_s) == 1.0


def test_the_ramp_takes_its_steps_in_thirds() -> None:
    closed = BreakerChanged(
        "t", "closed", "probe_succeeded", Evidence(), 0.0, 7, "half_open", 100.0, 115.0
    )
    steps = [share(closed, 100.0 + s) for s in (0.0, 4.9, 5.1, 9.9, 10.1, 14.9, 15.0)]
    assert steps == [0.1, 0.1, 0.25, 0.25, 0.5, 0.5, 1.0]
