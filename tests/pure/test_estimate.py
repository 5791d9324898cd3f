"""Upper bounds of calls: what a body allows, what is written into one that allows nothing, what is affordable."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from breakwater_gateway.config.model import Deployment, Price
from breakwater_gateway.pricing.cost import ModelPrice, Rates, cost_nano_usd
from breakwater_gateway.pricing.estimate import (
    OUTPUT_DEFAULT,
    affordable_output,
    bound_of,
    cost_of,
    prices_of,
    read_ask,
    with_output,
)
from breakwater_gateway.pricing.prices import shipped
from breakwater_protocol.chat import Usage

DEPLOYMENT = Deployment("d", "p", "m", "openai", "http://d")
PRICE = ModelPrice(Rates(1_000_000, 4_000_000))
"""One and four USD per million tokens."""


def body(**fields: object) -> bytes:
    return json.dumps(
        {"model": "m", "messages": [{"role": "user", "content": "hi"}]} | fields
    ).encode()


@pytest.mark.parametrize(
    ("api", "fields", "output", "answers"),
    [
        ("chat", {}, None, 1),
        ("chat", {"max_tokens": 7}, 7, 1),
        ("chat", {"max_completion_tokens": 9}, 9, 1),
        ("chat", {"max_tokens": 7, "max_completion_tokens": 9, "n": 3}, 9, 3),
        ("chat", {"max_tokens": None}, None, 1),
        ("messages", {"max_tokens": 100}, 100, 1),
        ("responses", {"max_output_tokens": 5}, 5, 1),
        ("generate", {"generationConfig": {"maxOutputTokens": 8, "candidateCount": 2}}, 8, 2),
        ("generate", {"generationConfig": {}}, None, 1),
    ],
)
def test_what_a_body_allows(
    api: str, fields: dict[str, object], output: int | None, answers: int
) -> None:
    ask = read_ask(api, body(**fields))
    assert (ask.output, ask.answers) == (output, answers)


def test_a_body_of_odd_shape_is_taken_at_its_worst() -> None:
    assert read_ask("chat", body(max_tokens="many")).answers == 128


def test_every_answer_may_use_all_of_its_tokens() -> None:
    one = bound_of(read_ask("chat", body(max_tokens=100)), DEPLOYMENT, [PRICE])
    five = bound_of(read_ask("chat", body(max_tokens=100, n=5)), DEPLOYMENT, [PRICE])
    assert five.tokens - five.input == 500
    assert one.tokens - one.input == 100
    assert one.nano_usd == one.input * 1_000 + 100 * 4_000


def test_a_body_that_allows_nothing_is_bounded_by_what_is_written_into_it() -> None:
    bound = bound_of(read_ask("chat", body()), DEPLOYMENT, [PRICE])
    assert (bound.output, bound.write) == (OUTPUT_DEFAULT, True)
    small = Deployment("d", "p", "m", "openai", "http://d", max_output=512)
    assert bound_of(read_ask("chat", body()), small, [PRICE]).output == 512


def test_embeddings_make_no_tokens() -> None:
    ask = read_ask("embeddings", b'{"model":"m","input":"hello"}')
    bound = bound_of(ask, DEPLOYMENT, [PRICE])
    assert (bound.output, bound.write) == (0, False)
    assert bound.tokens == bound.input >= 5


def test_what_has_no_price_has_no_bound_in_money() -> None:
    ask = read_ask("chat", body(max_tokens=10))
    assert bound_of(ask, DEPLOYMENT, []).nano_usd is None
    assert bound_of(ask, DEPLOYMENT, [ModelPrice(Rates())]).nano_usd is None
    assert bound_of(ask, DEPLOYMENT, []).tokens > 10


def test_the_dearest_price_counts() -> None:
    ask = read_ask("chat", body(max_tokens=10))
    dear = ModelPrice(Rates(2_000_000, 9_000_000))
    assert bound_of(ask, DEPLOYMENT, [PRICE, dear]) == bound_of(ask, DEPLOYMENT, [dear])
    assert cost_of(Usage(10, 10), [PRICE, dear]) == cost_nano_usd(Usage(10, 10), dear)


def test_a_tier_that_is_asked_for_is_priced_with_the_standard_one() -> None:
    listed = Deployment("d", "openai", "gpt-4o", "openai", "http://d")
    assert len(prices_of(listed, "gpt-4o", shipped(), at=1.9e9)) == 1
    assert len(prices_of(listed, "gpt-4o", shipped(), at=1.9e9, service_tier="priority")) == 2
    own = Deployment("d", "openai", "gpt-4o", "openai", "http://d", price=Price(1, 2))
    assert prices_of(own, "gpt-4o", shipped(), at=1.9e9) == (ModelPrice(Rates(1_000, 2_000)),)
    assert prices_of(listed, "no-such-model", shipped(), at=1.9e9) == ()


@pytest.mark.parametrize(
    ("api", "fields", "expected"),
    [
        ("chat", {}, {"max_completion_tokens": 50}),
        ("chat", {"max_tokens": 900}, {"max_tokens": 50}),
        (
            "chat",
            {"max_tokens": 900, "max_completion_tokens": 800},
            {"max_tokens": 50, "max_completion_tokens": 50},
        ),
        ("messages", {"max_tokens": 900}, {"max_tokens": 50}),
        ("responses", {}, {"max_output_tokens": 50}),
        ("generate", {}, {"generationConfig": {"maxOutputTokens": 50}}),
        (
            "generate",
            {"generationConfig": {"temperature": 1}},
            {"generationConfig": {"temperature": 1, "maxOutputTokens": 50}},
        ),
    ],
)
def test_a_number_is_written_into_the_body_and_nothing_else_changes(
    api: str, fields: dict[str, object], expected: dict[str, object]
) -> None:
    original = body(**fields)
    written = with_output(original, api, 50)
    assert json.loads(written) == json.loads(original) | expected
    assert read_ask(api, written).output == 50


@given(
    st.integers(0, 10**8),
    st.integers(0, 100_000),
    st.integers(1, 8),
    st.integers(1, 20_000),
)
def test_what_is_affordable_fits_what_is_left(money: int, tokens: int, n: int, asked: int) -> None:
    ask = read_ask("chat", body(max_tokens=asked, n=n))
    bound = bound_of(ask, DEPLOYMENT, [PRICE])
    output = affordable_output(ask, bound, nano_usd=money, tokens=tokens, prices=[PRICE])
    if output is None:
        return
    fitted = bound_of(ask, DEPLOYMENT, [PRICE], output=output)
    assert fitted.nano_usd is not None
    assert fitted.nano_usd <= money
    assert fitted.tokens <= tokens
    assert 0 < output <= asked
