"""Cost: exact in integers, never zero for what is unknown, and never above its own bound."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from breakwater_gateway.config.model import Price
from breakwater_gateway.pricing.cost import (
    RATE_MAX,
    Band,
    ModelPrice,
    Rates,
    cost_nano_usd,
    of_config,
    worst_case_nano_usd,
)
from breakwater_protocol.chat import Usage

RATE = st.integers(0, RATE_MAX)
MAYBE = st.none() | RATE
TOKENS = st.integers(0, 3_000_000)
RATES = st.builds(
    Rates,
    input=RATE,
    output=RATE,
    cache_read=MAYBE,
    cache_write=MAYBE,
    cache_write_1h=MAYBE,
    reasoning=MAYBE,
    input_audio=MAYBE,
    output_audio=MAYBE,
    cache_audio_read=MAYBE,
)
BANDS = st.lists(st.builds(Band, above=st.integers(1, 2_000_000), rates=RATES), max_size=3).map(
    lambda bands: tuple(sorted(bands, key=lambda band: band.above))
)
PRICES = st.builds(ModelPrice, rates=RATES, bands=BANDS, per_call=st.integers(0, 10**12))
USAGES = st.builds(
    Usage, input=TOKENS, output=TOKENS, cache_read=TOKENS, cache_write=TOKENS, reasoning=TOKENS
)


def whole(usage: Usage) -> Usage:
    """The same usage with parts that fit their wholes."""
    read = min(usage.cache_read, usage.input)
    wrote = min(usage.cache_write, usage.input - read)
    return Usage(usage.input, usage.output, read, wrote, min(usage.reasoning, usage.output))


def exact(usage: Usage, price: ModelPrice) -> Fraction:
    """In nano-USD, from the definition: each kind's own tokens at its own rate."""
    used = whole(usage)
    rates = price.rates
    for band in price.bands:
        if used.input > band.above:
            rates = band.rates

    def at(*choices: int | None) -> int:
        return next(rate for rate in choices if rate is not None)

    pico = (
        (used.input - used.cache_read - used.cache_write) * at(rates.input)
        + used.cache_read * at(rates.cache_read, rates.input)
        + used.cache_write * at(rates.cache_write, rates.input)
        + (used.output - used.reasoning) * at(rates.output)
        + used.reasoning * at(rates.reasoning, rates.output)
        + price.per_call
    )
    return Fraction(pico, 1000)


@given(USAGES, PRICES)
def test_cost_is_the_exact_sum_rounded_half_up_once(usage: Usage, price: ModelPrice) -> None:
    assert cost_nano_usd(usage, price) == (exact(usage, price) + Fraction(1, 2)).__floor__()


@given(USAGES, PRICES, st.booleans(), st.integers(0, 100_000))
def test_cost_never_falls_when_a_call_uses_more(
    usage: Usage, price: ModelPrice, into: bool, more: int
) -> None:
    flat = ModelPrice(price.rates, (), price.per_call)
    larger = Usage(
        usage.input + (more if into else 0),
        usage.output + (0 if into else more),
        min(usage.cache_read, usage.input),
        usage.cache_write if usage.cache_write <= usage.input - usage.cache_read else 0,
        min(usage.reasoning, usage.output),
    )
    smaller = Usage(
        usage.input, usage.output, larger.cache_read, larger.cache_write, larger.reasoning
    )
    before, after = cost_nano_usd(smaller, flat), cost_nano_usd(larger, flat)
    assert before is not None
    assert after is not None
    assert before <= after


@given(USAGES, USAGES, RATES)
def test_two_calls_cost_what_one_of_both_does_but_for_rounding(
    one: Usage, other: Usage, rates: Rates
) -> None:
    a, b = whole(one), whole(other)
    both = Usage(
        a.input + b.input,
        a.output + b.output,
        a.cache_read + b.cache_read,
        a.cache_write + b.cache_write,
        a.reasoning + b.reasoning,
    )
    price = ModelPrice(rates)
    apart = (cost_nano_usd(a, price) or 0) + (cost_nano_usd(b, price) or 0)
    assert abs(apart - (cost_nano_usd(both, price) or 0)) <= 1


@given(USAGES, PRICES, st.integers(0, 1_000_000), st.integers(0, 1_000_000))
def test_no_call_within_its_bounds_costs_more_than_the_worst_case(
    usage: Usage, price: ModelPrice, spare_in: int, spare_out: int
) -> None:
    worst = worst_case_nano_usd(usage.input + spare_in, usage.output + spare_out, price)
    cost = cost_nano_usd(usage, price)
    assert worst is not None
    assert cost is not None
    assert cost <= worst


@given(st.integers(0, 10**8), st.integers(0, 10**8), TOKENS, TOKENS)
def test_a_configured_price_costs_exactly_its_integers(
    into: int, out: int, prompt: int, answer: int
) -> None:
    price = of_config(Price(into, out))
    assert cost_nano_usd(Usage(prompt, answer), price) == prompt * into + answer * out


CLAUDE = ModelPrice(Rates(3_000_000, 15_000_000, 300_000, 3_750_000, 6_000_000))
LONG = ModelPrice(
    Rates(1_250_000, 10_000_000, 125_000),
    (Band(200_000, Rates(2_500_000, 15_000_000, 250_000)),),
)


@pytest.mark.parametrize(
    ("usage", "price", "nano"),
    [
        (Usage(1_000_000), ModelPrice(Rates(37_500)), 37_500_000),
        (Usage(1), ModelPrice(Rates(499)), 0),
        (Usage(1), ModelPrice(Rates(500)), 1),
        (Usage(3), ModelPrice(Rates(500)), 2),
        (Usage(1000, 10, cache_read=900), CLAUDE, 300_000 + 270_000 + 150_000),
        (Usage(1000, 0, cache_write=1000), CLAUDE, 3_750_000),
        (Usage(100, 0, cache_read=500), CLAUDE, 30_000),
        (Usage(200_000), LONG, 250_000_000),
        (Usage(200_001, 1), LONG, 500_002_500 + 15_000),
        (Usage(200_001, 0, cache_read=200_000), LONG, 50_002_500),
        (Usage(10, 10, reasoning=4), ModelPrice(Rates(1000, 2000, reasoning=9000)), 10 + 12 + 36),
        (Usage(1, 1), ModelPrice(Rates(1000, 1000), per_call=12_000_000_000), 12_000_002),
        (Usage(7), ModelPrice(Rates(20_000)), 140),
        (Usage(), ModelPrice(Rates()), 0),
        (Usage(5, 5), ModelPrice(Rates(0, 0)), 0),
    ],
)
def test_a_call_costs_what_its_provider_charges(usage: Usage, price: ModelPrice, nano: int) -> None:
    assert cost_nano_usd(usage, price) == nano


@pytest.mark.parametrize(
    ("usage", "price"),
    [
        (None, CLAUDE),
        (Usage(1, 1), None),
        (Usage(1), ModelPrice(Rates())),
        (Usage(1, 1), ModelPrice(Rates(input=1000))),
        (Usage(1, 1), ModelPrice(Rates(output=1000))),
    ],
)
def test_what_is_unknown_has_no_cost_rather_than_none(
    usage: Usage | None, price: ModelPrice | None
) -> None:
    assert cost_nano_usd(usage, price) is None


def test_the_worst_case_of_an_unknown_rate_is_unknown() -> None:
    assert worst_case_nano_usd(1, 1, None) is None
    assert worst_case_nano_usd(1, 1, ModelPrice(Rates(input=1000))) is None
    assert worst_case_nano_usd(1, 0, ModelPrice(Rates(input=1000))) == 1
    assert worst_case_nano_usd(0, 0, ModelPrice(Rates())) == 0


def test_the_worst_case_leaves_out_what_the_request_cannot_cause() -> None:
    assert worst_case_nano_usd(1000, 0, CLAUDE) == 6_000_000
    assert worst_case_nano_usd(1000, 0, CLAUDE, cache_writes=False) == 3_000_000
    assert worst_case_nano_usd(200_000, 0, LONG) == 250_000_000
    assert worst_case_nano_usd(200_001, 0, LONG) == 500_002_500
    voice = ModelPrice(Rates(1000, 1000, input_audio=9000, output_audio=9000))
    assert worst_case_nano_usd(1, 1, voice) == 18
    assert worst_case_nano_usd(1, 1, voice, audio=False) == 2


def test_negative_counts_cost_nothing() -> None:
    assert cost_nano_usd(Usage(-5, -5, -1, -1, -1), CLAUDE) == 0
