"""The doors of a worker: a limit for each key of a pool, and one for all of them together."""

from collections.abc import Callable
from typing import cast

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from breakwater_gateway.config.model import Deployment, KeyRef
from breakwater_gateway.runtime.clock import Clock
from breakwater_gateway.worker.doors import Doors
from breakwater_protocol import failures as f
from breakwater_protocol.commands import Work

KEYS = (KeyRef("env", "A"), KeyRef("env", "B"))


class Timer:
    def __init__(self, at: float, call: Callable[[], None]) -> None:
        self.at, self.call, self.gone = at, call, False

    def cancel(self) -> None:
        self.gone = True


class Hand:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.at = 0.0
        self.timers: list[Timer] = []

    def now(self) -> float:
        return self.at

    def call_at(self, when: float, call: Callable[[], None]) -> Timer:
        self.timers.append(Timer(when, call))
        return self.timers[-1]

    def move(self, seconds: float) -> None:
        self.at += seconds
        due = [t for t in self.timers if t.at <= self.at]
        self.timers = [t for t in self.timers if t.at > self.at]
        for timer in due:
            if not timer.gone:
                timer.call()


class Run:
    def __init__(self, number: int, key: int) -> None:
        self.work = Work(
            f"r{number}", 1, "t", "chat", "m", "p", "a", "a", "inbox", Raw(b"{}"), key=key
        )
        self.places: tuple[str, ...] = ()
        self.waiting = ""
        self.said: list[str] = []

    def admitted(self, now: float) -> None:
        self.said.append("admitted")


class Stage:
    def __init__(self, max_in_flight: int | None, keys: int = 2) -> None:
        self.clock = Hand()
        self.runs: list[Run] = []
        self.doors: Doors[Run] = Doors(
            cast("Clock", self.clock),
            begin=lambda run: run.said.append("begun"),
            refuse=lambda run, *_: run.said.append("refused"),
        )
        deployment = Deployment(
            id="a", provider="p", model="m", wire="openai", base_url="http://a",
            api_keys=KEYS[:keys], max_in_flight=max_in_flight,
        )  # fmt: skip
        self.doors.configure([deployment])

    def come(self, key: int) -> Run:
        run = Run(len(self.runs), key)
        self.runs.append(run)
        self.doors.enter(run)
        return run

    def end(self, run: Run, failure: f.Failure | None = None) -> None:
        run.said.append("ended")
        self.doors.ended(run)
        self.doors.learned(run, failure, sent_at=self.clock.now(), first_token_s=None)

    def going(self) -> list[Run]:
        return [run for run in self.runs if run.said and run.said[-1] == "begun"]

    def in_flight(self) -> dict[str, int]:
        return self.doors._in_flight


def test_a_refusal_for_its_rate_cuts_what_its_key_is_given_and_no_other() -> None:
    stage = Stage(None)
    first = [stage.come(0) for _ in range(4)]
    _ = [stage.come(1) for _ in range(4)]
    stage.end(first[0], f.RateLimited())
    # 0.7 of 4 were too many: two at a time.
    held = stage.come(0)
    assert held.waiting == "a#key1"
    assert stage.come(1).said == ["begun"]
    assert stage.doors.loads()["a#key1"].limit == 2
    assert stage.doors.loads()["a"].in_flight == 8
    stage.end(first[1])
    assert held.said == ["admitted", "begun"]


def test_what_bounds_the_deployment_bounds_its_keys_together() -> None:
    stage = Stage(3)
    runs = [stage.come(key) for key in (0, 1, 0)]
    held = stage.come(1)
    assert held.waiting == "a"
    stage.end(runs[0])
    assert held.said == ["admitted", "begun"]
    assert stage.in_flight() == {"a#key1": 1, "a#key2": 2, "a": 3}


def test_who_leaves_before_the_second_door_gives_its_place_behind_the_first_back() -> None:
    stage = Stage(1)
    stage.come(0)
    held = stage.come(1)
    assert stage.in_flight() == {"a#key1": 1, "a#key2": 1, "a": 1}
    stage.doors.leave(held)
    assert stage.in_flight() == {"a#key1": 1, "a": 1}
    assert stage.doors.waiting == 0


def test_one_key_is_no_pool() -> None:
    stage = Stage(None, keys=1)
    run = stage.come(0)
    assert run.places == ("a",)
    stage.end(run, f.RateLimited())
    assert stage.doors.loads()["a"].limit == 1


MOVE = st.tuples(
    st.sampled_from(["come", "come", "end", "limited", "failed", "leave", "pass", "configure"]),
    st.integers(0, 7),
    st.floats(0, 4),
)


@settings(max_examples=300, deadline=None)
@given(limit=st.none() | st.integers(1, 4), moves=st.lists(MOVE, max_size=60))
def test_every_call_is_begun_or_refused_once_and_leaves_nothing_behind(
    limit: int | None, moves: list[tuple[str, int, float]]
) -> None:
    stage = Stage(limit)
    for what, number, seconds in moves:
        going = stage.going()
        waiting = [run for run in stage.runs if run.waiting]
        if what == "come":
            stage.come(number % 2)
        elif what in {"end", "limited", "failed"} and going:
            failure = {"end": None, "limited": f.RateLimited(), "failed": f.ServerError()}[what]
            stage.end(going[number % len(going)], failure)
        elif what == "leave" and waiting:
            run = waiting[number % len(waiting)]
            stage.doors.leave(run)
            run.said.append("left")
        elif what == "pass":
            stage.clock.move(seconds)
        if limit is not None:
            assert stage.in_flight().get("a", 0) <= limit
        assert stage.in_flight().get("a", 0) == len(stage.going())
        assert stage.doors.waiting == sum(bool(run.waiting) for run in stage.runs)
    stage.doors.close()
    for run in stage.going():
        stage.end(run)
    assert stage.in_flight() == {}
    assert stage.doors.waiting == 0
    for run in stage.runs:
        assert sum(said in {"begun", "refused", "left"} for said in run.said) == 1
