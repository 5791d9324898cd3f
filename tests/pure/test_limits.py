"""Accounts, their names and partitions, and which rules hold for whom."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct

from breakwater_gateway.ledger.limits import Limits, accounts_of, paths_of
from breakwater_protocol.ledger import (
    PARTITIONS,
    Account,
    Scope,
    Unit,
    account_named,
    partition,
)


class Rule(Struct, frozen=True):
    scope: Scope
    id: str
    hard: int = 100
    unit: Unit = "tokens"
    per: str = "day"
    rolling_s: int = 0
    timezone: str = "UTC"
    soft: tuple[int, ...] = (800_000,)


@pytest.mark.parametrize(
    ("account", "name"),
    [
        (Account("user", "alice"), "user:alice"),
        (Account("user", "alice", "acme"), "user:acme/alice"),
        (Account("user", "a/b"), "user:/a/b"),
        (Account("user", "a/b", "x/%y"), "user:x%2F%25y/a/b"),
        (Account("user", "alice@example.com"), "user:alice@example.com"),
        (Account("org", "a/b"), "org:a/b"),
        (Account("feature", "chat"), "feature:chat"),
        (Account("global"), "global"),
    ],
)
def test_an_account_has_a_name(account: Account, name: str) -> None:
    assert account.name == name
    assert account_named(name) == account


@given(
    scope=st.sampled_from(["key", "user", "team", "feature", "org", "provider", "model"]),
    id_=st.text(min_size=1, max_size=20),
    org=st.text(max_size=20),
)
def test_names_are_reversible(scope: Scope, id_: str, org: str) -> None:
    account = Account(scope, id_, org if scope in {"key", "user", "team"} else "")
    assert account_named(account.name) == account


@pytest.mark.parametrize("name", ["", "alice", "user:", "planet:earth", "global:x", "user:acme/"])
def test_what_is_no_account_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="not an account"):
        account_named(name)


@given(st.text(max_size=30), st.text(min_size=1, max_size=30))
def test_all_of_one_organisation_are_in_one_partition(org: str, id_: str) -> None:
    places = {partition(Account(scope, id_, org)) for scope in ("key", "user", "team")}
    if org:
        places.add(partition(Account("org", org)))
    assert len(places) == 1
    assert 0 <= places.pop() < PARTITIONS


@pytest.mark.parametrize(
    ("account", "hard"),
    [
        (Account("user", "alice", "acme"), 4),
        (Account("user", "alice", "beta"), 3),
        (Account("user", "bob", "acme"), 2),
        (Account("user", "bob", "beta"), 1),
        (Account("user", "bob"), 1),
        (Account("team", "bob"), None),
        (Account("global"), 9),
    ],
)
def test_the_most_particular_rule_holds(account: Account, hard: int | None) -> None:
    limits = Limits(
        [
            Rule("user", "*", 1),
            Rule("user", "acme/*", 2),
            Rule("user", "alice", 3),
            Rule("user", "acme/alice", 4),
            Rule("global", "", 9),
        ]
    )
    assert [rule.hard for rule in limits.of(account)] == ([hard] if hard else [])


def test_rules_of_other_units_and_periods_hold_beside_each_other() -> None:
    limits = Limits(
        [
            Rule("user", "*", 1),
            Rule("user", "*", 2, unit="nano_usd"),
            Rule("user", "*", 3, per="month"),
            Rule("user", "alice", 4),
        ]
    )
    assert sorted(rule.hard for rule in limits.of(Account("user", "alice"))) == [2, 3, 4]


def test_a_call_s_accounts_become_paths_by_partition() -> None:
    limits = Limits(
        [
            Rule("user", "*", 1),
            Rule("org", "acme", 2, per="month", timezone="Europe/Berlin"),
            Rule("feature", "chat", 3, per="rolling", rolling_s=3600),
        ]
    )
    accounts = accounts_of(user="alice", org="acme", feature="chat", provider="openai")
    paths = paths_of(accounts, limits, 7)
    lines = [line for path in paths.values() for line in path]
    assert {(line.account, line.period, line.limit.revision) for line in lines} == {
        ("user:acme/alice", "day@UTC", 7),
        ("org:acme", "month@Europe/Berlin", 7),
        ("feature:chat", "rolling:3600/96", 7),
    }
    for number, path in paths.items():
        assert {partition(account_named(line.account)) for line in path} == {number}


def test_without_rules_nothing_is_limited() -> None:
    limits = Limits[Rule]([])
    assert not limits
    assert paths_of(accounts_of(user="alice"), limits, 1) == {}
