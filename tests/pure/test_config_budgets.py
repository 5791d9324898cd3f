"""Budgets and rate limits in the file: exact amounts, and one clear sentence for each mistake."""

import json

import pytest

from breakwater_gateway.config import codec
from breakwater_gateway.config.load import ConfigError, load_text
from breakwater_gateway.config.model import Budget, Config, KeyRef, RateLimit
from breakwater_gateway.config.show import to_yaml

MODEL = "models: {m: {deployments: [{model: openai/x}]}}\n"


def load(text: str) -> Config:
    return load_text(MODEL + text, source="f.yaml", environment={})


def budget(text: str) -> Budget:
    (found,) = load(f"budgets:\n  - {text}").budgets
    return found


def mistakes(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(text)
    return str(caught.value)


def test_the_contract_s_own_examples() -> None:
    config = load(
        "budgets:\n"
        '  - {account: "user:*", tokens: 100_000, per: day, timezone: UTC, soft: [0.8]}\n'
        '  - {account: "org:acme", usd: 500, per: month}\n'
        '  - {account: "feature:chat", tokens: 1_000_000, per: day}\n'
    )
    assert config.budgets == (
        Budget("user", "*", "tokens", 100_000, "day"),
        Budget("org", "acme", "nano_usd", 500 * 10**9, "month"),
        Budget("feature", "chat", "tokens", 1_000_000, "day"),
    )


@pytest.mark.parametrize(
    ("written", "nano"),
    [
        ("0.000000001", 1),
        ("0.1", 100_000_000),
        ("1_000", 10**12),
        ("1e3", 10**12),
        ("12345678.123456789", 12_345_678_123_456_789),
    ],
)
def test_money_is_exact(written: str, nano: int) -> None:
    found = budget(f"{{account: global, usd: {written}, per: month}}")
    assert (found.scope, found.id, found.hard) == ("global", "", nano)
    assert budget(f"{{account: global, usd: {written}, per: hour}}").per == "hour"


def test_a_rolling_window_has_a_length_and_no_midnight() -> None:
    found = budget("{account: 'key:k1', tokens: 5, per: rolling 1h30m}")
    assert (found.per, found.rolling_s) == ("rolling", 5_400)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{account: 'user:*', tokens: -5, per: day}", "budgets[0].tokens: expected a whole number"),
        ("{account: 'user:*', tokens: 0, per: day}", "budgets[0].tokens: expected a whole number"),
        ("{account: 'user:*', tokens: 1e30, per: day}", "budgets[0].tokens: expected"),
        ("{account: 'user:*', usd: -1, per: day}", "budgets[0].usd: expected USD above 0"),
        ("{account: 'user:*', usd: 0, per: day}", "budgets[0].usd: expected USD above 0"),
        ("{account: 'user:*', usd: 1e12, per: day}", "up to 1_000_000_000, not"),
        ("{account: 'user:*', usd: 0.0000000001, per: day}", "in whole nano-USD"),
        ("{account: 'user:*', usd: 1, tokens: 1, per: day}", "usd or tokens, and not both"),
        ("{account: 'user:*', per: day}", '"usd" or "tokens" is missing'),
        ("{account: 'user:*', usd: 1}", '"per" is missing'),
        ("{usd: 1, per: day}", '"account" is missing'),
        ("{account: 'usr:a', usd: 1, per: day}", "expected an account such as user:*"),
        ("{account: 'user:', usd: 1, per: day}", "expected an account such as user:*"),
        ("{account: 'global:x', usd: 1, per: day}", "expected an account such as user:*"),
        ("{account: global, usd: 1, per: fortnight}", "expected hour, day, week, month, or"),
        ("{account: global, usd: 1, per: rolling 5s}", "expected a window of 1m to 366d"),
        ("{account: global, usd: 1, per: rolling 400d}", "expected a window of 1m to 366d"),
        (
            "{account: global, usd: 1, per: day, timezone: Europe/Berlni}",
            'not "Europe/Berlni"; did you mean "Europe/Berlin"?',
        ),
        ("{account: global, usd: 1, per: day, timezone: ../etc/passwd}", "expected a time zone"),
        (
            "{account: global, usd: 1, per: rolling 1h, timezone: UTC}",
            "a rolling window begins at no midnight",
        ),
        ("{account: global, usd: 1, per: day, soft: [1.5]}", "a share above 0 and up to 1"),
        ("{account: global, usd: 1, per: day, soft: [0]}", "a share above 0 and up to 1"),
        ("{account: global, usd: 1, per: day, action: explode}", "one of refuse, ladder, clamp"),
        (
            "{account: global, usd: 1, per: day, webhook: 'https://h/x?token=1'}",
            "write env:NAME or file:PATH",
        ),
        ("{account: global, usd: 1, per: day, webhook: ftp://h}", "expected an address"),
    ],
)
def test_a_bad_budget_is_refused_with_its_line(line: str, said: str) -> None:
    found = mistakes(f"budgets:\n  - {line}\n")
    assert said in found
    assert "f.yaml:3: budgets[0]" in found


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        (
            "tokens: 1, per: day",
            "usd: -5, per: day",
            'budgets[1].usd: expected USD above 0 and up to 1_000_000_000, not "-5"',
        ),
        (
            "tokens: 1, per: day",
            "tokens: 0, per: day",
            'budgets[1].tokens: expected a whole number from 1 to 1_000_000_000_000_000, not "0"',
        ),
        (
            "usd: 1, per: rolling 1m",
            "usd: 1, per: rolling 5s",
            'budgets[1].per: expected a window of 1m to 366d in whole seconds, not "rolling 5s"',
        ),
    ],
)
def test_a_budget_that_cannot_be_read_is_no_second_one_of_another(
    first: str, second: str, said: str
) -> None:
    found = mistakes(
        f"budgets:\n  - {{account: 'user:a', {first}}}\n  - {{account: 'user:a', {second}}}\n"
    )
    assert found == f"f.yaml:4: {said}"


def test_two_budgets_of_one_account_unit_and_period_are_refused() -> None:
    said = mistakes(
        "budgets:\n"
        "  - {account: 'user:a', usd: 1, per: day}\n"
        "  - {account: 'user:a', usd: 2, per: month}\n"
        "  - {account: 'user:a', tokens: 2, per: day}\n"
        "  - {account: 'user:a', usd: 3, per: day}\n"
    )
    assert said == (
        'f.yaml:6: budgets[3].account: the budget of "user:a" on line 3 limits money of the same'
        " period; keep one of them"
    )


def test_soft_thresholds_are_exact_and_in_order() -> None:
    assert budget("{account: global, usd: 1, per: day, soft: [0.95, 0.1]}").soft == (
        100_000,
        950_000,
    )
    assert budget("{account: global, usd: 1, per: day, soft: []}").soft == ()


def test_what_is_shown_loads_again_to_the_same() -> None:
    config = load(
        "budgets:\n"
        "  - {account: 'user:*', usd: 12345678.123456789, per: week, timezone: Asia/Kolkata,"
        " soft: [0.123456], action: clamp, webhook: env:HOOK}\n"
        "  - {account: global, tokens: 7, per: rolling 90s, soft: []}\n"
        "rate_limits:\n"
        "  - {account: 'model:m', requests: 60}\n"
        "  - {account: 'key:*', tokens: 9, concurrent: 2}\n"
    )
    assert config.budgets[0].webhook == KeyRef("env", "HOOK")
    assert config.rate_limits == (
        RateLimit("model", "m", requests=60),
        RateLimit("key", "*", tokens=9, concurrent=2),
    )
    again = load_text(to_yaml(config), source="shown", environment={})
    assert (again.budgets, again.rate_limits) == (config.budgets, config.rate_limits)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{account: 'key:*'}", "it limits nothing"),
        ("{account: 'key:*', requests: 0}", "expected a whole number from 1"),
        ("{account: 'provider:x', requests: 1}", "expected an account such as key:*"),
    ],
)
def test_a_bad_rate_limit_is_refused(line: str, said: str) -> None:
    assert said in mistakes(f"rate_limits:\n  - {line}\n")


def test_an_account_has_its_rate_limits_in_one_place() -> None:
    said = mistakes(
        "rate_limits: [{account: global, requests: 1}, {account: global, concurrent: 1}]"
    )
    assert "has rate limits on line 2; put them there" in said


def test_the_configuration_travels_whole() -> None:
    config = load("budgets: [{account: global, usd: 1, per: day, webhook: 'file:/h'}]")
    assert codec.decode(codec.encode(config)) == config
    assert json.loads(codec.encode(config))["budgets"][0]["hard"] == 10**9
