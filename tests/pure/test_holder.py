"""The holder on its own: what it reserves, asks for, keeps and gives back; and what a call has cost."""

import pytest

from breakwater_gateway.pricing.cost import ModelPrice, Rates
from breakwater_gateway.router.charges import Hold, actual_of, amount_text
from breakwater_gateway.router.holder import Decided, Holder, Said
from breakwater_gateway.router.leases import Need, Path, Refusal, Reservation, Ticket
from breakwater_gateway.router.reports import Say
from breakwater_protocol import failures as f
from breakwater_protocol.chat import Usage
from breakwater_protocol.commands import Finished
from breakwater_protocol.ledger import (
    Amount,
    Contended,
    Exhausted,
    Granted,
    LeaseAsk,
    Limit,
    Line,
    LineState,
    Reported,
)

FAR = 10**9


def path(account: str = "user:a", partition: int = 1) -> Path:
    return Path(partition, (Line(account, "tokens", "day@UTC", Limit(FAR)),))


def need(tokens: int) -> Need:
    return (0, tokens, 1)


def granted(ask: LeaseAsk, tokens: int, *, available: int = FAR, ends_in_s: float = -1) -> Granted:
    state = LineState("d:1", available, FAR, ends_in_s)
    return Granted(ask.lease, Amount(tokens=tokens), 1, (state,), 15.0)


def asks(said: list[Said]) -> list[LeaseAsk]:
    return [each.ask for each in said if isinstance(each, Say) and each.ask is not None]


def decided(said: list[Said]) -> list[Reservation | Refusal]:
    return [each.outcome for each in said if isinstance(each, Decided)]


def holder_with(lent: int, *, available: int = FAR) -> tuple[Holder, Path, Reservation]:
    """A holder of one lease, of which ten tokens are reserved."""
    holder, where = Holder("r", 1), path()
    assert isinstance(holder.reserve((where,), need(10), now=0.0, until=2.0), Ticket)
    (ask,) = asks(holder.take_said())
    holder.heard(ask.lease, granted(ask, lent, available=available), now=0.0)
    (first,) = decided(holder.take_said())
    assert isinstance(first, Reservation)
    return holder, where, first


def test_what_is_held_is_reserved_without_a_word() -> None:
    holder, where, _ = holder_with(1_000)
    assert isinstance(holder.reserve((where,), need(10), now=0.0, until=2.0), Reservation)
    assert holder.take_said() == []


def test_the_next_lease_is_asked_for_before_the_last_one_is_gone() -> None:
    holder, where, _ = holder_with(100)
    for _ in range(4):
        assert isinstance(holder.reserve((where,), need(10), now=0.0, until=2.0), Reservation)
    assert asks(holder.take_said()) == []
    assert isinstance(holder.reserve((where,), need(10), now=0.0, until=2.0), Reservation)
    (ask,) = asks(holder.take_said())
    assert ask.want.tokens > ask.min.tokens


def test_a_reservation_is_kept_before_it_can_be_used() -> None:
    holder, where, _ = holder_with(1_000)
    holder.take_kept()
    holder.reserve((where,), need(10), now=0.0, until=2.0)
    (kept,) = holder.take_kept()
    assert (kept.spent, kept.held) == ((0, 0, 0), (0, 20, 0))


def test_all_paths_or_none() -> None:
    holder, where, _ = holder_with(1_000)
    other = path("global", 2)
    ticket = holder.reserve((where, other), need(10), now=0.0, until=2.0)
    assert isinstance(ticket, Ticket)
    (lease,) = holder.leases()
    assert lease.held[1] == 10
    (ask,) = asks(holder.take_said())
    holder.heard(ask.lease, granted(ask, 50), now=0.1)
    (outcome,) = decided(holder.take_said())
    assert isinstance(outcome, Reservation)
    assert [lease.held[1] for lease in holder.leases()] == [20, 10]


def test_a_reservation_is_settled_once() -> None:
    holder, _, first = holder_with(1_000)
    holder.settle(first, need(3), now=0.0)
    (lease,) = holder.leases()
    assert (lease.spent[1], lease.held[1]) == (3, 0)
    with pytest.raises(ValueError, match="settled before"):
        holder.settle(first, need(3), now=0.0)


def test_an_unknown_end_counts_at_its_maximum() -> None:
    holder, _, first = holder_with(1_000)
    holder.settle(first, None, now=0.0)
    assert holder.leases()[0].spent[1] == 10


def test_near_the_limit_a_lease_goes_back_as_soon_as_its_call_has_settled() -> None:
    holder, _, first = holder_with(10, available=20)
    holder.settle(first, need(3), now=0.0)
    assert holder.leases() == []
    (said,) = [each for each in holder.take_said() if isinstance(each, Say)]
    assert said.reports is not None
    (report,) = said.reports.reports
    assert (report.final, report.cum_spent.tokens) == (True, 3)
    assert not holder.at_rest
    holder.heard_report(said.number, Reported(0), now=0.1)
    assert not holder.at_rest, "who knows less of the log than this holder is not believed"
    holder.tick(1.0)
    (again,) = [each for each in holder.take_said() if isinstance(each, Say)]
    holder.heard_report(again.number, Reported(2), now=1.1)
    assert holder.at_rest


def test_no_lease_is_closed_while_a_call_of_it_is_in_flight() -> None:
    holder, _, first = holder_with(1_000)
    holder.close(0.0)
    holder.tick(1.0)
    reports = [
        r for s in holder.take_said() if isinstance(s, Say) and s.reports for r in s.reports.reports
    ]
    assert reports
    assert not any(report.final and report.lease == "r/1/1" for report in reports)
    holder.settle(first, None, now=1.5)
    assert holder.leases() == []


def test_those_who_wait_are_served_in_order_when_a_call_settles() -> None:
    holder, where, first = holder_with(10, available=0)
    tickets = [holder.reserve((where,), need(10), now=0.0, until=2.0) for _ in range(2)]
    (ask,) = asks(holder.take_said())
    holder.heard(ask.lease, Contended("user:a", "tokens", "d:1", 50, 1), now=0.0)
    holder.settle(first, need(0), now=0.1)
    outcomes = [each for each in holder.take_said() if isinstance(each, Decided)]
    assert [each.ticket for each in outcomes] == [tickets[0]]


def test_exhaustion_refuses_who_needs_as_much_and_is_remembered() -> None:
    holder, where = Holder("r", 1), path()
    holder.reserve((where,), need(10), now=0.0, until=2.0)
    (ask,) = asks(holder.take_said())
    said = Exhausted("user:a", "tokens", "d:1", limit=100, remaining=4, resets_in_s=60.0, seq=1)
    holder.heard(ask.lease, said, now=0.0)
    (refusal,) = decided(holder.take_said())
    assert isinstance(refusal, Refusal)
    assert (refusal.reason, refusal.remaining) == ("exhausted", 4)
    assert holder.reserve((where,), need(11), now=0.1, until=2.0) == refusal
    assert isinstance(holder.reserve((where,), need(3), now=0.1, until=2.0), Ticket)
    assert isinstance(holder.reserve((where,), need(11), now=9.0, until=12.0), Ticket)


def test_nothing_is_reserved_from_a_lease_whose_period_is_over() -> None:
    holder, where = Holder("r", 1), path()
    holder.reserve((where,), need(10), now=0.0, until=2.0)
    (ask,) = asks(holder.take_said())
    holder.heard(ask.lease, granted(ask, 1_000, ends_in_s=5.0), now=0.2)
    holder.take_said()
    assert isinstance(holder.reserve((where,), need(10), now=4.9, until=9.0), Reservation)
    assert isinstance(holder.reserve((where,), need(10), now=5.0, until=9.0), Ticket)


def test_who_waits_is_refused_when_its_time_is_over() -> None:
    holder, where = Holder("r", 1), path()
    holder.reserve((where,), need(10), now=0.0, until=2.0)
    for tenth in range(21):
        holder.tick(tenth / 10)
    (refusal,) = decided(holder.take_said())
    assert isinstance(refusal, Refusal)
    assert refusal.reason == "unreachable"


# --- what a call has cost -----------------------------------------------------------------------

USAGE = Usage(100, 20)
PRICE = ModelPrice(Rates(1_000_000, 2_000_000))


@pytest.mark.parametrize(
    ("usage", "cost", "failure", "expected"),
    [
        (USAGE, 777, None, (777, 120, 1)),
        (USAGE, None, None, (140_000, 120, 1)),
        (USAGE, 777, f.StreamCut(), (777, 120, 1)),
        (None, None, None, None),
        (None, None, f.WorkerBusy(), (0, 0, 0)),
        (None, None, f.ConnectFailed(), (0, 0, 0)),
        (None, None, f.RateLimited(provider_status=429), (0, 0, 1)),
        (None, None, f.ServerError(provider_status=500), (0, 0, 1)),
        (None, None, f.ServerError(provider_status=504), None),
        (None, None, f.FirstTokenTimeout(), None),
        (None, None, f.MalformedAnswer(), None),
        (None, None, f.Cancelled(), None),
    ],
)
def test_what_an_attempt_has_cost(
    usage: Usage | None, cost: int | None, failure: f.Failure | None, expected: Need | None
) -> None:
    reply = Finished("r", 1, "w", answered=False, failure=failure, usage=usage, cost_nano_usd=cost)
    assert actual_of(Hold(None, (PRICE,)), reply, frozenset({0, 1})) == expected


def test_without_a_word_nobody_knows_what_it_cost() -> None:
    assert actual_of(Hold(None, (PRICE,)), None, frozenset({1})) is None


@pytest.mark.parametrize(
    ("unit", "amount", "text"),
    [
        ("tokens", 12, "12 tokens"),
        ("nano_usd", 1_250_000_000, "1.25 usd"),
        ("nano_usd", 1, "0.000000001 usd"),
        ("nano_usd", 0, "0 usd"),
        ("nano_usd", 10**19, "10000000000 usd"),
    ],
)
def test_amounts_are_shown_exactly(unit: str, amount: int, text: str) -> None:
    assert amount_text(unit, amount) == text
