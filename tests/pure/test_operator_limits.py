"""Operators' limits beside the configuration's rules: which lines a request debits."""

import msgspec
import pytest

from breakwater_gateway.router.charges import Rule, Tariffs
from breakwater_gateway.router.operator_limits import OperatorLimits
from breakwater_protocol.ledger import OperatorLimit

BOB = ("", "bob", "", "", "", "p", "m")
RULE = Rule("user", "*", "tokens", 100, "day")


def lines(tariffs: Tariffs) -> set[tuple[str, str, str, int]]:
    return {
        (line.account, line.unit, line.period, line.limit.hard)
        for path in tariffs.of(BOB).paths
        for line in path.lines
    }


def value(
    account: str = "user:bob", unit: str = "tokens", period: str = "day@UTC", hard: int = 7
) -> bytes:
    return msgspec.json.encode(OperatorLimit(account, unit, period, hard))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rules", "limit", "found"),
    [
        ((), value(), {("user:bob", "tokens", "day@UTC", 7)}),
        ((), value("user:acme/bob"), set()),
        ((), value("model:m", period="ever"), {("model:m", "tokens", "ever", 7)}),
        # The ledger keeps the operator's on the rule's line, and the rule's for when it is taken back.
        ((RULE,), value(), {("user:bob", "tokens", "day@UTC", 100)}),
        (
            (RULE,),
            value(unit="nano_usd"),
            {("user:bob", "tokens", "day@UTC", 100), ("user:bob", "nano_usd", "day@UTC", 7)},
        ),
    ],
)
def test_the_lines_of_a_request(
    rules: tuple[Rule, ...], limit: bytes, found: set[tuple[str, str, str, int]]
) -> None:
    operators = OperatorLimits()
    operators.fold("p1.a", limit, 1)
    tariffs = Tariffs(rules, 3, operators)
    assert tariffs
    assert lines(tariffs) == found


def test_a_change_renews_the_paths_of_its_account_alone() -> None:
    operators = OperatorLimits()
    tariffs = Tariffs((RULE,), 3, operators)
    ann = (*BOB[:1], "ann", *BOB[2:])
    before, other = tariffs.of(BOB).paths, tariffs.of(ann).paths
    tariffs.renew(operators.fold("p1.a", value(), 1))
    assert tariffs.of(BOB).paths[0] is not before[0]
    assert tariffs.of(ann).paths[0] is other[0]


def test_entries_are_folded_by_revision_and_taken_back() -> None:
    operators = OperatorLimits()
    assert operators.fold("p1.a", value(), 2) == "user:bob"
    assert operators.fold("p1.a", value(hard=9), 1) == ""
    assert operators.of("user:bob") == {("tokens", "day@UTC"): 7}
    assert operators.fold("p1.a", value(), 3) == ""
    with pytest.raises(msgspec.MsgspecError):
        operators.fold("p1.a", b"{}", 4)
    assert operators.fold("p1.a", None, 5) == "user:bob"
    assert not operators
    assert operators.of("user:bob") == {}
