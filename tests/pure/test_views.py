"""The boards: any order of events, one view; in flight without double counting."""

from collections import Counter
from itertools import permutations
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from breakwater_protocol import views
from breakwater_protocol.cloudevents import headers_for, rfc3339
from breakwater_protocol.events import (
    BreakerChanged,
    BreakerState,
    Evidence,
    Heartbeat,
    TargetLoad,
)
from breakwater_protocol.views import ALIVE_S, STALE_S, BreakerBoard, LoadBoard


def changed(target: str, state: BreakerState, epoch: int, *, until: float = 0.0) -> BreakerChanged:
    return BreakerChanged(
        target=target,
        state=state,
        cause="consecutive",
        evidence=Evidence(),
        until=until,
        epoch=epoch,
        previous="closed",
        at=0.0,
    )


def beat(
    worker: str,
    *,
    capacity: int = 10,
    in_flight: int = 0,
    targets: dict[str, int] | None = None,
    pools: tuple[str, ...] = (),
    draining: bool = False,
    actor: str = "worker",
) -> Heartbeat:
    return Heartbeat(
        actor=actor,
        id=worker,
        version="1",
        at=0.0,
        capacity=capacity,
        in_flight=in_flight,
        draining=draining,
        pools=list(pools),
        targets={name: TargetLoad(count) for name, count in (targets or {}).items()},
    )


# Breakers.


def test_a_target_never_heard_of_is_closed() -> None:
    board = BreakerBoard()
    assert board.state("x", 0.0) == "closed"
    assert (board.epoch("x"), board.until("x"), board.last("x")) == (0, 0.0, None)


def test_the_later_epoch_wins_in_any_order_of_arrival() -> None:
    events = [
        changed("a", "open", 1, until=9.0),
        changed("a", "half_open", 2),
        changed("a", "closed", 3),
        changed("b", "open", 5, until=9.0),
    ]
    hashes = set()
    for order in permutations(events):
        board = BreakerBoard()
        for event in order:
            board.fold(event)
        assert (board.state("a", 0.0), board.epoch("a")) == ("closed", 3)
        assert (board.state("b", 0.0), board.until("b")) == ("open", 9.0)
        hashes.add(board.hash())
    assert len(hashes) == 1


def test_news_is_news_once() -> None:
    board = BreakerBoard()
    assert board.fold(changed("a", "open", 1))
    assert not board.fold(changed("a", "open", 1))
    assert not board.fold(changed("a", "closed", 0))


def test_the_hash_changes_with_state_and_epoch_and_comes_back_with_the_view() -> None:
    board, seen = BreakerBoard(), set()
    empty = board.hash()
    for event in (changed("a", "open", 1), changed("a", "open", 2), changed("a", "closed", 3)):
        board.fold(event)
        seen.add(board.hash())
    assert len(seen | {empty}) == 4
    board.remove("a")
    assert board.hash() == empty


def test_an_open_target_that_health_forgot_may_be_probed() -> None:
    board = BreakerBoard()
    board.fold(changed("a", "open", 1, until=100.0))
    assert board.state("a", 100.0 + STALE_S - 0.1) == "open"
    assert board.state("a", 100.0 + STALE_S) == "half_open"
    assert board.epoch("a") == 1


def test_a_full_board_refuses_new_targets_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "TARGETS_MAX", 2)
    board = BreakerBoard()
    assert [board.fold(changed(name, "open", 1)) for name in "abc"] == [True, True, False]
    assert board.fold(changed("a", "closed", 2))
    assert (len(board), board.refused) == (2, 1)


def test_targets_that_left_are_forgotten() -> None:
    board = BreakerBoard()
    for name in "abc":
        board.fold(changed(name, "open", 1))
    board.retain({"b"})
    assert ("a" in board, "b" in board, len(board)) == (False, True, 1)


# Load.


def test_a_worker_lives_for_two_seconds_after_its_beat() -> None:
    board = LoadBoard()
    board.fold(beat("w"), 10.0)
    assert board.alive(11.9) == ("w",)
    assert board.alive(10.0 + ALIVE_S) == ()
    assert board.choose_worker("", 0.5) is None


def test_a_silent_worker_is_not_chosen_once_the_time_is_told() -> None:
    board = LoadBoard()
    board.fold(beat("w"), 10.0)
    assert board.choose_worker("", 0.5, now=11.0) == "w"
    assert board.choose_worker("", 0.5, now=13.0) is None
    assert not board.serves("")


def test_draining_and_capacityless_workers_and_other_actors_get_no_work() -> None:
    board = LoadBoard()
    board.fold(beat("draining", draining=True), 0.0)
    board.fold(beat("zero", capacity=0), 0.0)
    board.fold(beat("edge", actor="edge"), 0.0)
    assert board.choose_worker("", 0.5) is None
    board.fold(beat("draining"), 0.1)
    assert board.choose_worker("", 0.5) == "draining"


def test_a_pool_is_served_by_its_own_workers_and_no_pool_by_all() -> None:
    board = LoadBoard()
    board.fold(beat("eu", pools=("eu",)), 0.0)
    board.fold(beat("us", pools=("us",)), 0.0)
    draw = Random(1).random
    assert {board.choose_worker("eu", draw()) for _ in range(20)} == {"eu"}
    assert {board.choose_worker("", draw()) for _ in range(50)} == {"eu", "us"}
    assert board.choose_worker("asia", 0.5) is None
    board.fold(beat("eu", pools=("asia",)), 0.1)
    assert board.choose_worker("asia", 0.5) == "eu"
    assert not board.serves("eu")


def test_of_two_workers_the_one_with_the_lower_relative_load_is_chosen() -> None:
    board = LoadBoard()
    board.fold(beat("large", capacity=100, in_flight=10), 0.0)
    board.fold(beat("small", capacity=10, in_flight=2), 0.0)
    draw = Random(1).random
    assert {board.choose_worker("", draw()) for _ in range(50)} == {"large"}


def test_full_workers_are_passed_over_while_another_has_room() -> None:
    board = LoadBoard()
    for i in range(9):
        board.fold(beat(f"full{i}", capacity=4, in_flight=4), 0.0)
    board.fold(beat("free", capacity=4, in_flight=3), 0.0)
    draw = Random(1).random
    assert {board.choose_worker("", draw()) for _ in range(200)} == {"free"}


def test_a_worker_that_just_failed_us_can_be_left_out() -> None:
    board = LoadBoard()
    board.fold(beat("a"), 0.0)
    board.fold(beat("b"), 0.0)
    assert {board.choose_worker("", d / 10, exclude=("a",)) for d in range(10)} == {"b"}
    assert board.choose_worker("", 0.5, exclude=("a", "b")) is None


def test_idle_workers_are_chosen_evenly() -> None:
    board = LoadBoard()
    for i in range(5):
        board.fold(beat(f"w{i}"), 0.0)
    draw, rounds = Random(3).random, 20_000
    chosen = Counter(board.choose_worker("", draw()) for _ in range(rounds))
    assert sum((n - rounds / 5) ** 2 / (rounds / 5) for n in chosen.values()) < 18.5


def test_two_choices_keep_unequal_workers_equally_loaded() -> None:
    board, draw = LoadBoard(), Random(4).random
    sizes = {"large": 80, "middle": 40, "small": 20}
    for name, size in sizes.items():
        board.fold(beat(name, capacity=size), 0.0)
    for i in range(70):
        worker = board.choose_worker("", draw())
        assert worker is not None
        board.dispatched(worker, "t", f"r{i}")
    loads = {name: board.worker_in_flight(name) / size for name, size in sizes.items()}
    assert max(loads.values()) - min(loads.values()) < 0.15


def test_a_dispatch_counts_until_the_worker_reports_it_and_then_once() -> None:
    board = LoadBoard()
    board.fold(beat("w", in_flight=3, targets={"t": 3}), 0.0)
    board.dispatched("w", "t", "mine")
    board.dispatched("w", "t", "mine")
    assert (board.worker_in_flight("w"), board.in_flight("t")) == (4, 4)
    board.fold(beat("w", in_flight=4, targets={"t": 4}), 0.5)
    assert (board.worker_in_flight("w"), board.in_flight("t")) == (4, 4)


def test_an_end_counts_until_the_worker_reports_it() -> None:
    board = LoadBoard()
    board.fold(beat("w"), 0.0)
    board.dispatched("w", "t", "mine")
    board.fold(beat("w", in_flight=1, targets={"t": 1}), 0.5)
    board.finished("w", "t", "mine")
    board.finished("w", "t", "mine")
    assert (board.worker_in_flight("w"), board.in_flight("t")) == (0, 0)
    board.fold(beat("w"), 1.0)
    assert (board.worker_in_flight("w"), board.in_flight("t")) == (0, 0)


def test_an_end_is_subtracted_from_one_report_only() -> None:
    board = LoadBoard()
    board.fold(beat("w"), 0.0)
    board.dispatched("w", "t", "mine")
    board.fold(beat("w", in_flight=1, targets={"t": 1}), 0.5)
    board.finished("w", "t", "mine")
    board.fold(beat("w", in_flight=3, targets={"t": 3}), 1.0)
    assert (board.worker_in_flight("w"), board.in_flight("t")) == (3, 3)


def test_an_end_at_a_worker_that_is_gone_is_subtracted_from_nothing() -> None:
    board = LoadBoard()
    board.fold(beat("gone"), 0.0)
    board.fold(beat("w", in_flight=3, targets={"t": 3}), 0.0)
    board.dispatched("gone", "t", "mine")
    board.remove("gone")
    board.finished("gone", "t", "mine")
    assert board.in_flight("t") == 3


def test_what_is_idle_is_forgotten() -> None:
    board = LoadBoard()
    board.fold(beat("w"), 0.0)
    board.dispatched("w", "t", "mine")
    board.fold(beat("w"), 0.5)
    board.finished("w", "t", "mine")
    board.fold(beat("w"), 1.0)
    board.remove("w")
    assert (board._targets, board._workers_own) == ({}, {})


def test_a_call_that_comes_and_goes_between_beats_leaves_no_trace() -> None:
    board = LoadBoard()
    board.fold(beat("w", in_flight=5, targets={"t": 5}), 0.0)
    board.dispatched("w", "t", "mine")
    board.finished("w", "t", "mine")
    assert (board.worker_in_flight("w"), board.in_flight("t")) == (5, 5)


def test_a_report_that_missed_our_calls_never_hides_them() -> None:
    board = LoadBoard()
    board.fold(beat("w"), 0.0)
    for i in range(4):
        board.dispatched("w", "t", f"r{i}")
    board.fold(beat("w", in_flight=1, targets={"t": 1}), 0.5)
    assert (board.worker_in_flight("w"), board.in_flight("t")) == (4, 4)


def test_a_targets_load_is_the_sum_over_the_workers_that_live() -> None:
    board = LoadBoard()
    board.fold(beat("a", in_flight=3, targets={"t": 3}), 0.0)
    board.fold(beat("b", in_flight=2, targets={"t": 2}), 1.0)
    assert board.in_flight("t") == 5
    board.alive(2.5)
    assert board.in_flight("t") == 2
    board.remove("b")
    assert board.in_flight("t") == 0


def test_our_calls_at_a_removed_worker_count_until_they_are_over() -> None:
    board = LoadBoard()
    board.fold(beat("w"), 0.0)
    board.dispatched("w", "t", "mine")
    board.remove("w")
    assert board.in_flight("t") == 1
    board.finished("w", "t", "mine")
    assert board.in_flight("t") == 0


def test_hostile_heartbeats_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "WORKERS_MAX", 2)
    monkeypatch.setattr(views, "TARGETS_PER_WORKER_MAX", 3)
    board = LoadBoard()
    for i in range(5):
        board.fold(beat(f"w{i}", capacity=-1, in_flight=-5), 0.0)
    assert len(board.alive(0.0)) == 2
    board.fold(beat("w0", targets={f"t{i}": 1 for i in range(10)} | {"n": -3}), 0.1)
    assert sum(board.in_flight(f"t{i}") for i in range(10)) == 3
    assert board.in_flight("n") == 0
    assert board.refused == 3 + 7


class LoadLaws(RuleBasedStateMachine):
    """Workers that report honestly and at once: the board's estimate is then the truth itself."""

    def __init__(self) -> None:
        super().__init__()
        self.board = LoadBoard()
        self.now = 0.0
        self.ours: set[tuple[str, str, str]] = set()
        self.others: Counter[tuple[str, str]] = Counter()
        self.known: set[str] = set()
        self.somebody_died = False

    workers = st.sampled_from("AB")
    targets = st.sampled_from("xy")

    @rule(worker=workers)
    def beats(self, worker: str) -> None:
        rows = Counter({t: n for (w, t), n in self.others.items() if w == worker})
        rows.update(t for w, t, _ in self.ours if w == worker)
        self.board.fold(beat(worker, in_flight=rows.total(), targets=dict(rows)), self.now)
        self.known.add(worker)

    @rule(worker=workers, at=targets, request=st.integers(0, 1))
    def we_send(self, worker: str, at: str, request: int) -> None:
        self.board.dispatched(worker, at, f"r{request}")
        self.ours.add((worker, at, f"r{request}"))

    @rule(worker=workers, at=targets, request=st.integers(0, 1))
    def ours_ends(self, worker: str, at: str, request: int) -> None:
        self.board.finished(worker, at, f"r{request}")
        self.ours.discard((worker, at, f"r{request}"))

    @rule(worker=workers, at=targets, count=st.integers(1, 3))
    def others_send_and_end(self, worker: str, at: str, count: int) -> None:
        self.others[worker, at] = count
        self.beats(worker)

    @rule(worker=workers)
    def dies(self, worker: str) -> None:
        self.board.remove(worker)
        self.known.discard(worker)
        self.somebody_died = True

    @rule()
    def all_fall_silent(self) -> None:
        self.now += ALIVE_S
        assert self.board.alive(self.now) == ()
        self.known.clear()
        self.somebody_died = True

    @invariant()
    def in_flight_is_ours_and_what_living_workers_report_of_others(self) -> None:
        for target in "xy":
            others = sum(n for (w, t), n in self.others.items() if t == target and w in self.known)
            ours = sum(1 for _, t, _ in self.ours if t == target)
            assert ours <= self.board.in_flight(target) <= ours + others
            if not self.ours:
                assert self.board.in_flight(target) == others
            elif not self.somebody_died:
                assert self.board.in_flight(target) == ours + others

    @invariant()
    def nothing_is_kept_that_is_idle(self) -> None:
        board = self.board
        assert all(not tally.idle() for tally in board._targets.values())
        assert set(board._workers_own) <= {w for w, _, _ in self.ours} | self.known


TestLoadLaws = LoadLaws.TestCase
TestLoadLaws.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


# Headers of events.


def test_an_event_has_the_headers_of_cloudevents_in_binary_mode() -> None:
    assert headers_for(BreakerChanged, "health/h1", 1_700_000_000.25, "id-1") == {
        "ce-id": "id-1",
        "ce-source": "health/h1",
        "ce-type": "breakwater.breaker.changed",
        "ce-time": "2023-11-14T22:13:20.250Z",
        "ce-specversion": "1.0",
        "Nats-Msg-Id": "id-1",
    }


@given(st.floats(0, 4e9))
def test_times_of_events_have_milliseconds_and_a_z(at: float) -> None:
    text = rfc3339(at)
    assert len(text) == len("2023-11-14T22:13:20.250Z")
    assert text.endswith("Z")
