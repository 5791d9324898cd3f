"""An account's history out of the log, and the costs of requests by their properties."""

import msgspec
import pytest
from tests.pure.ledger_desk import Desk, line

from breakwater_gateway.ledger.history import Costs, Happened, History
from breakwater_protocol.chat import Usage
from breakwater_protocol.events import RequestFinished
from breakwater_protocol.ledger import Account, Correct, Record, Release, SetLimit

H = "r1/1/"


def told(desk: Desk, account: str) -> list[Happened]:
    history = History(account)
    return [
        each for data in desk.log for each in history.tell(msgspec.json.decode(data, type=Record))
    ]


def test_everything_that_happened_to_an_account_is_told_in_order() -> None:
    desk = Desk()
    desk.ask(H + "1", line(), line("org:acme", 5000))
    desk.spent(H + "1", 5, in_flight=2)
    desk.ask(H + "2")
    desk.operate(Release(H + "2", by="ann@host", why="gone"))
    desk.spent(H + "1", 6, final=True)
    desk.operate(SetLimit("user:acme/alice", "tokens", "day@UTC", 50, by="ann@host", why="trial"))
    desk.operate(Correct("user:acme/alice", "tokens", "day@UTC", -2, by="ann@host"))
    found = told(desk, "user:acme/alice")
    assert [(each.what, each.value) for each in found] == [
        ("limit", 1000),
        ("grant", 20),
        ("spend", 5),
        ("grant", 20),
        ("release", None),
        ("close", 6),
        ("override", 50),
        ("adjust", -2),
    ]
    assert found[4].by == "ann@host"
    assert found[5].period == "d:2026-11-18@UTC"
    assert {each.account for each in told(desk, "org:*")} == {"org:acme"}
    assert told(desk, "user:acme/bob") == []


def request(cost: int | None, **more: object) -> RequestFinished:
    plain = {
        "request": "r", "tenant": "t", "api": "chat", "model": "m", "outcome": "ok",
        "at": 0.0, "router": "r", "cost_nano_usd": cost,
    }  # fmt: skip
    usage = None if cost is None else msgspec.to_builtins(Usage(input=3, output=2))
    return msgspec.convert({**plain, "usage": usage, **more}, RequestFinished)


def test_costs_are_summed_by_a_property_and_the_unknown_is_not_zero() -> None:
    costs = Costs("property.team")
    costs.tell(request(5, properties={"team": "red"}))
    costs.tell(request(7, properties={"team": "blue"}))
    costs.tell(request(1, properties={"team": "red"}))
    costs.tell(request(None, properties={"team": "red"}))
    costs.tell(request(2))
    assert [(c.value, c.requests, c.nano_usd, c.unpriced) for c in costs.found()] == [
        ("blue", 1, 7, 0),
        ("red", 3, 6, 1),
        ("", 1, 2, 0),
    ]
    assert [(c.input_tokens, c.output_tokens, c.unmetered) for c in costs.found()][1] == (6, 4, 1)


def test_costs_of_one_account_only() -> None:
    costs = Costs("model", Account("user", "alice", "acme"))
    costs.tell(request(5, user="alice", org="acme"))
    costs.tell(request(7, user="alice", org="beta"))
    costs.tell(request(7, user="bob", org="acme"))
    assert [(c.value, c.nano_usd) for c in costs.found()] == [("m", 5)]


@pytest.mark.parametrize("by", ["", "color", "property.", "decisions"])
def test_what_requests_do_not_have_is_refused(by: str) -> None:
    with pytest.raises(ValueError, match="requests have"):
        Costs(by)


def test_an_account_that_requests_do_not_name_is_refused() -> None:
    with pytest.raises(ValueError, match="provider"):
        Costs("user", Account("provider", "openai"))
