"""The money of one request: whatever it does, what was spent and what is in flight stays within its bound."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from breakwater_gateway.config.model import RetryPolicy
from breakwater_gateway.router.affordable import affordable
from breakwater_gateway.router.money import Money
from breakwater_gateway.router.options import Options, money_of, read_options
from breakwater_gateway.router.plan import (
    HELD_S,
    Candidate,
    Dispatch,
    Envelope,
    GiveUp,
    Plan,
    Skipped,
    Wait,
)
from breakwater_protocol import failures as f
from breakwater_protocol import headers as h

A, B, C = (Candidate(name, name) for name in "abc")


def plan(money: Money, attempts: int = 5) -> Plan:
    envelope = Envelope(attempts_max=attempts, deadline=60.0, money=money)
    return Plan(policy=RetryPolicy(attempts=attempts), envelope=envelope)


def test_what_a_call_has_cost_takes_the_place_of_what_it_may_cost() -> None:
    money = Money(100)
    assert money.draw(80)
    assert not money.draw(30)
    money.settle(80, 10)
    assert (money.spent, money.held, money.left) == (10, 0, 90)
    assert money.draw(90)
    money.settle(90, None)
    assert (money.spent, money.left) == (100, 0)


def test_a_target_that_would_not_fit_is_passed_over() -> None:
    quotes = {"a": 200, "b": None, "c": 100}
    kept, passed = affordable(Money(100), quotes.get, (A, B, C), (Skipped("d", "no_worker"),))
    assert [each.deployment for each in kept] == ["c"]
    assert passed == (
        Skipped("a", "too_dear", needs=200),
        Skipped("b", "unpriced"),
        Skipped("d", "no_worker"),
    )


def test_nobody_waits_for_a_throttled_target_that_costs_too_much() -> None:
    throttled = Skipped("a", "throttled", 5.0)
    assert affordable(Money(1), {"a": 2}.get, (), (throttled,))[1] == (
        Skipped("a", "too_dear", needs=2),
    )
    assert affordable(Money(2), {"a": 2}.get, (), (throttled,))[1] == (throttled,)


def test_where_nothing_fits_the_sentence_names_what_would() -> None:
    money = Money(5_000_000)
    dear = (Skipped("a", "too_dear", needs=9_000_000), Skipped("b", "too_dear", needs=7_500_000))
    step = plan(money).next((), dear, now=0)
    assert step == GiveUp(
        f.TooDear(
            "this request may cost 0.005 USD in all, and a call may cost 0.0075 USD on b, the cheapest"
            " that can be called: raise breakwater-max-cost or the model's retry.max_cost, or ask for a"
            " shorter answer (max_tokens)"
        )
    )


def test_an_unknown_price_is_within_no_bound_and_its_mend_is_named() -> None:
    step = plan(Money(10**9)).next((), (Skipped("a", "unpriced"),), now=0)
    assert isinstance(step, GiveUp)
    assert isinstance(step.failure, f.TooDear)
    assert step.failure.message == (
        "this request may cost 1 USD in all, and what a costs is not known: give it a price in the"
        " configuration"
    )


def test_after_a_failure_the_caller_is_told_that_and_why_no_other_call_was_made() -> None:
    money = Money(100)
    p = plan(money)
    p.next((A,), (), now=0)
    assert money.draw(90)
    p.failed(A, f.StreamCut("it broke off"), now=0, draw=0)
    money.settle(90, None)
    step = p.next((), (Skipped("b", "too_dear", needs=50),), now=0)
    assert isinstance(step, GiveUp)
    assert isinstance(step.failure, f.StreamCut)
    assert step.failure.message.startswith(
        "it broke off; no further call is made: this request may"
    )


def test_money_that_a_call_still_holds_is_waited_for() -> None:
    money = Money(100)
    p = plan(money)
    assert money.draw(60)
    dear = (Skipped("a", "too_dear", needs=50),)
    assert p.next((), dear, now=1.0) == Wait(1.0 + HELD_S, "money")
    money.settle(60, 10)
    assert affordable(money, {"a": 50}.get, (A,), ())[0] == (A,)
    assert money.draw(60)
    assert isinstance(p.next((), (Skipped("a", "too_dear", needs=91),), now=1.0), GiveUp)


def test_what_may_come_back_is_no_question_of_money() -> None:
    step = plan(Money(1)).next(
        (), (Skipped("a", "breaker_open", 4.0), Skipped("b", "too_dear", needs=2)), now=0
    )
    assert isinstance(step, GiveUp)
    assert isinstance(step.failure, f.NoDeployment)
    assert step.failure.message.endswith("a breaker open, b too dear")


@pytest.mark.parametrize(
    ("text", "nano_usd"),
    [
        ("0", 0),
        ("0.05", 50_000_000),
        ("1", 10**9),
        ("0.000000001", 1),
        ("999999999.999999999", 10**18 - 1),
        *((bad, None) for bad in ("", "inf", "nan", "-1", "+1", "1_000", "1e9", ".5", "1.", " 1")),
        *((bad, None) for bad in ("1 ", "1\n", "0.0000000001", "1,5", "0x1", "\u0661", "9" * 40)),
    ],
)
def test_the_header_is_an_amount_of_usd_or_refused(text: str, nano_usd: int | None) -> None:
    options = read_options({h.MAX_COST: text})
    if nano_usd is None:
        assert isinstance(options, f.InvalidRequest)
        assert options.param == h.MAX_COST
        assert "such as 0.05" in options.message
    else:
        assert isinstance(options, Options)
        assert options.max_cost_nano_usd == nano_usd


@pytest.mark.parametrize(
    ("configured", "asked", "bound"),
    [(None, None, None), (9, None, 9), (None, 5, 5), (9, 5, 5), (9, 9, 9), (9, 10, "refused")],
)
def test_a_caller_may_lower_the_bound_of_a_model_but_not_raise_it(
    configured: int | None, asked: int | None, bound: int | str | None
) -> None:
    policy = RetryPolicy(max_cost_nano_usd=configured)
    found = money_of(policy, Options(max_cost_nano_usd=asked))
    if isinstance(found, f.InvalidRequest):
        assert bound == "refused"
        assert "may only lower this model's bound of 0.000000009 USD" in found.message
    else:
        assert (None if found is None else found.bound) == bound


FAILURES = st.sampled_from(
    [
        f.RateLimited(),
        f.ServerError(),
        f.StreamCut(),
        f.WorkerLost(),
        f.KeyRejected(),
        f.MalformedToolCall(),
    ]
)
MOVES = st.tuples(
    st.sampled_from(["next", "hedge", "fail", "turned_away", "reask"]),
    FAILURES,
    st.integers(0, 60) | st.none(),
)


@settings(max_examples=400, deadline=None)
@given(
    bound=st.integers(0, 120),
    quotes=st.fixed_dictionaries({name: st.integers(0, 60) | st.none() for name in "abc"}),
    keys=st.integers(0, 2),
    moves=st.lists(MOVES, max_size=30),
)
def test_estimates_in_flight_and_costs_are_never_above_the_bound(
    bound: int,
    quotes: dict[str, int | None],
    keys: int,
    moves: list[tuple[str, f.Failure, int | None]],
) -> None:
    """Two plans of one request, hedges included; a call never costs more than its estimate."""
    money = Money(bound)
    plans = [plan(money, 6)]
    envelope = plans[0].envelope
    plans.append(Plan(policy=RetryPolicy(), envelope=envelope))
    candidates = tuple(Candidate(name, name, keys=keys) for name in quotes)
    flying: list[tuple[Plan, Candidate, int]] = []
    over = 0

    def dispatched(by: Plan, step: object) -> None:
        if isinstance(step, Dispatch):
            price = quotes[step.candidate.deployment]
            assert price is not None
            assert money.draw(price)
            flying.append((by, step.candidate, price))

    for turn, (what, failure, cost) in enumerate(moves):
        p = plans[0] if turn < 15 else plans[1]
        kept, passed = affordable(money, quotes.get, candidates, ())
        if what == "next" and not flying:
            dispatched(p, p.next(kept, passed, now=float(turn)))
        elif what == "hedge" and len(flying) == 1:
            dispatched(p, p.hedge(kept, now=float(turn)))
        elif what == "reask" and not flying:
            p.resume(same=True)
        elif what in {"fail", "turned_away"} and flying:
            by, candidate, price = flying.pop()
            if what == "turned_away":
                by.turned_away(candidate)
                money.settle(price, 0)
            else:
                by.failed(candidate, failure, now=float(turn), draw=0.0)
                actual = None if cost is None else min(cost, price)
                money.settle(price, actual)
                over += price if actual is None else actual
        assert money.held == sum(price for _, _, price in flying)
        assert money.spent == over
        assert over + money.held <= bound
        assert envelope.attempts <= envelope.attempts_max
