"""Cost of a call in integer nano-USD: exact in pico-USD, rounded half up once at the end.

Nano-USD per token is too coarse for real prices (0.0375 USD per million tokens is 37.5 of them), so
rates are integers of pico-USD, of which a token at 1 USD per million costs 1,000,000.
"""

from typing import Annotated, Final

from msgspec import Meta, Struct

from breakwater_gateway.config.model import Price
from breakwater_protocol.chat import Usage

PICO_PER_NANO: Final = 1_000
RATE_MAX: Final = 10**11
"""100,000 USD per million tokens: what is above is a mistake, not a price."""

Rate = Annotated[int, Meta(ge=0, le=RATE_MAX)]
"""Pico-USD per token."""
Tokens = Annotated[int, Meta(ge=0, le=10**9)]
Fee = Annotated[int, Meta(ge=0, le=10**13)]
"""Pico-USD per call; 10 USD at most."""


class Rates(Struct, frozen=True, array_like=True):
    """What one token of each kind costs; None where the provider names no price for it.

    A kind without a price of its own costs what the kind it is part of costs: cache reads and writes
    are input, reasoning is output. `input` and `output` are part of nothing, so None is *unknown*.
    """

    input: Rate | None = None
    output: Rate | None = None
    cache_read: Rate | None = None
    cache_write: Rate | None = None
    cache_write_1h: Rate | None = None
    """Anthropic's writes that live an hour."""
    reasoning: Rate | None = None
    input_audio: Rate | None = None
    output_audio: Rate | None = None
    cache_audio_read: Rate | None = None


class Band(Struct, frozen=True, array_like=True):
    """Rates of calls whose whole prompt, cached tokens included, has more than `above` tokens."""

    above: Tokens
    rates: Rates


class ModelPrice(Struct, frozen=True, array_like=True):
    """What a call costs. A band's rates hold for every token of the call, not for those above only:
    OpenAI, Anthropic and Google price long prompts so."""

    rates: Rates
    bands: tuple[Band, ...] = ()
    """Ascending in `above`."""
    per_call: Fee = 0


def of_config(price: Price) -> ModelPrice:
    """The configuration's own price: cached and reasoning tokens cost what the others do."""
    return ModelPrice(Rates(price.input * PICO_PER_NANO, price.output * PICO_PER_NANO))


def cost_nano_usd(usage: Usage | None, price: ModelPrice | None) -> int | None:
    """None when usage, price, or the rate of a kind that was used is unknown: never zero for that.

    Counts that contradict each other are clamped as Azure's need it: cache reads, then cache writes,
    are at most the input, and reasoning at most the output.
    """
    if usage is None or price is None:
        return None
    given = max(0, usage.input)
    made = max(0, usage.output)
    rates = price.rates
    for band in price.bands:
        if given <= band.above:
            break
        rates = band.rates
    pico = price.per_call
    if given:
        rate = rates.input
        if rate is None:
            return None
        pico += given * rate
        # Differences from the input's rate, which already counts them.
        read = min(max(0, usage.cache_read), given)
        if read and rates.cache_read is not None:
            pico += read * (rates.cache_read - rate)
        wrote = min(max(0, usage.cache_write), given - read)
        if wrote and rates.cache_write is not None:
            pico += wrote * (rates.cache_write - rate)
    if made:
        rate = rates.output
        if rate is None:
            return None
        pico += made * rate
        if rates.reasoning is not None:
            pico += min(max(0, usage.reasoning), made) * (rates.reasoning - rate)
    return (pico + PICO_PER_NANO // 2) // PICO_PER_NANO


def worst_case_nano_usd(
    input_tokens_bound: int,
    output_tokens_bound: int,
    price: ModelPrice | None,
    *,
    cache_writes: bool = True,
    audio: bool = True,
) -> int | None:
    """At least what any call within the bounds can cost; None when that is unknown.

    Every token at the dearest rate of any band that the bound reaches. `cache_writes=False` for a
    request that asks for none where they must be asked for (Anthropic's `cache_control`), and
    `audio=False` for one that neither holds nor asks for audio, keep the bound nearer.
    """
    if price is None:
        return None
    dearest_in, dearest_out = -1, -1
    for above, rates in ((-1, price.rates), *((band.above, band.rates) for band in price.bands)):
        if input_tokens_bound <= above:
            break
        if (input_tokens_bound > 0 and rates.input is None) or (
            output_tokens_bound > 0 and rates.output is None
        ):
            return None
        into = [rates.input, rates.cache_read]
        out = [rates.output, rates.reasoning]
        if cache_writes:
            into += [rates.cache_write, rates.cache_write_1h]
        if audio:
            into += [rates.input_audio, rates.cache_audio_read]
            out.append(rates.output_audio)
        dearest_in = max(dearest_in, *(rate for rate in into if rate is not None), 0)
        dearest_out = max(dearest_out, *(rate for rate in out if rate is not None), 0)
    pico = (
        max(0, input_tokens_bound) * max(0, dearest_in)
        + max(0, output_tokens_bound) * max(0, dearest_out)
        + price.per_call
    )
    return (pico + PICO_PER_NANO // 2) // PICO_PER_NANO
