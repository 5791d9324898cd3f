"""Which rung answers when a model's own deployments cannot."""

from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from breakwater_gateway.config.model import Rung, RungKind
from breakwater_gateway.router.ladder import ERROR, Ladder, narrowed, read_ladder, rungs_of, walks
from breakwater_protocol import failures as f

CACHE, STALE, STATIC = Rung("cache"), Rung("stale"), Rung("static")
FAST = Rung("simple_model", "fast")
FULL = rungs_of((CACHE, FAST, STATIC))


def names(rungs: tuple[Rung, ...]) -> list[str]:
    return [rung.kind for rung in rungs]


@pytest.mark.parametrize(
    ("declared", "walked"),
    [
        ((), "error"),
        ((ERROR,), "error"),
        ((CACHE,), "cache stale error"),
        ((CACHE, FAST, STALE), "cache simple_model stale error"),
        ((STALE,), "stale error"),
        ((STATIC, CACHE, ERROR), "static cache stale error"),
    ],
)
def test_a_declared_ladder_in_full(declared: tuple[Rung, ...], walked: str) -> None:
    assert names(rungs_of(declared)) == walked.split()


@pytest.mark.parametrize(
    ("failure", "calls", "chat", "walked"),
    [
        (f.ServerError(), 1, True, "cache stale simple_model static error"),
        (f.NoDeployment(), 1, True, "cache stale simple_model static error"),
        (f.RateLimited(), 1, True, "cache stale simple_model static error"),
        (f.FirstTokenTimeout(), 1, True, "cache stale simple_model static error"),
        (f.KeyRejected(), 1, True, "cache stale simple_model static error"),
        # With the budget, the calls or the time gone, only what costs nothing.
        (f.BudgetExhausted(), 1, True, "cache stale static error"),
        (f.TooDear(), 1, True, "cache stale simple_model static error"),
        (f.ServerError(), 0, True, "cache stale static error"),
        (f.TotalTimeout(), 0, True, "cache stale static error"),
        # Vectors are neither simple nor written down.
        (f.ServerError(), 1, False, "cache stale error"),
        # The caller's own doing, and what was decided about the content.
        (f.InvalidRequest(), 1, True, "error"),
        (f.BudgetContended(), 1, True, "error"),
        (f.ContextLength(), 1, True, "error"),
        (f.ContentFiltered(), 1, True, "error"),
        (f.Cancelled(), 1, True, "error"),
    ],
)
def test_the_rungs_that_are_open(failure: f.Failure, calls: int, chat: bool, walked: str) -> None:
    ladder = Ladder(FULL)
    found: list[str] = []
    while not found or found[-1] != "error":
        found.append(ladder.next(failure, calls=calls, chat=chat).kind)
    assert found == walked.split()
    assert ladder.cause == failure


def test_a_budget_that_runs_out_on_the_way_down_closes_what_costs() -> None:
    ladder = Ladder(rungs_of((FAST, Rung("simple_model", "other"), STATIC)))
    assert ladder.next(f.ServerError("a"), calls=2, chat=True) == FAST
    assert ladder.next(f.BudgetExhausted("b"), calls=1, chat=True) == STATIC
    assert ladder.cause == f.ServerError("a")
    assert ladder.skipped == [("simple_model", "budget")]


def test_the_bottom_is_the_bottom() -> None:
    ladder = Ladder(rungs_of(()))
    assert [ladder.next(f.ServerError(), calls=9, chat=True) for _ in range(3)] == [ERROR] * 3


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("off", set()),
        ("cache", {"cache"}),
        ("cache, Static", {"cache", "static"}),
        ("primary,error", {"error"}),
        ("", None),
        ("primary", set()),
        ("simple_model:Fast", {"simple_model:Fast"}),
        ("cache,,static", None),
        ("cache,else", None),
        ("off,cache", None),
    ],
)
def test_what_the_header_asks_for(text: str, kinds: set[str] | None) -> None:
    assert read_ladder(text) == kinds


@pytest.mark.parametrize(
    ("asked", "walked"),
    [
        (None, "cache stale simple_model static error"),
        (frozenset(), "error"),
        (frozenset({"cache"}), "cache stale error"),
        (frozenset({"stale", "static"}), "stale static error"),
        (frozenset({"error"}), "error"),
        (frozenset({"simple_model:fast", "static"}), "simple_model static error"),
    ],
)
def test_a_caller_may_narrow_the_ladder(asked: frozenset[str] | None, walked: str) -> None:
    found = narrowed(FULL, asked)
    assert isinstance(found, tuple)
    assert names(found) == walked.split()


def test_a_rung_that_the_model_does_not_have_is_refused() -> None:
    found = narrowed(rungs_of((CACHE,)), frozenset({"static"}))
    assert isinstance(found, f.InvalidRequest)
    assert found.message == (
        "the header breakwater-ladder asks for static, which the ladder of this model does not have:"
        " it has cache, stale, error"
    )


def test_a_simple_model_may_be_asked_for_by_its_name() -> None:
    found = narrowed(FULL, frozenset({"simple_model:slow"}))
    assert isinstance(found, f.InvalidRequest)
    assert "asks for simple_model:slow" in found.message


RUNGS = st.lists(
    st.builds(Rung, st.sampled_from(get_args(RungKind)), st.sampled_from(["", "x", "y"])),
    max_size=12,
).map(tuple)
FAILURES: list[type[Any]] = list(f.SPEC)


@given(
    RUNGS,
    st.lists(st.tuples(st.sampled_from(FAILURES), st.integers(0, 3)), min_size=20),
    st.booleans(),
)
def test_every_walk_ends_and_tries_no_rung_twice(
    declared: tuple[Rung, ...], told: list[tuple[type[Any], int]], chat: bool
) -> None:
    rungs = rungs_of(declared)
    ladder = Ladder(rungs)
    walked = [ladder.next(kind(), calls=calls, chat=chat) for kind, calls in told]
    below = [rung for rung in walked if rung != ERROR]
    assert walked[len(below) :] == [ERROR] * (len(walked) - len(below))
    remaining = iter(rungs)
    assert all(rung in remaining for rung in below)  # in the declared order
    if not walks(told[0][0]()):
        assert not below
    broke = False
    for (kind, calls), rung in zip(told, walked, strict=True):
        broke = broke or kind in {f.BudgetExhausted, f.BudgetContended}
        if rung.kind == "simple_model":
            assert chat
            assert calls
            assert not broke
