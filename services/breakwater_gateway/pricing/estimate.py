"""What one attempt can cost at most, before it is made: the amount that a budget reserves for it.

Input is bounded by the body (`tokens.measure`), output by what the caller allows times the answers wanted. A
request that allows no number of tokens gets one written into its body, so that the bound is one. The price is
the dearest that can apply. What has no known price has no bound in money: None, never zero.
"""

from collections.abc import Iterable
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Raw, Struct

from breakwater_gateway.config.model import Deployment
from breakwater_gateway.pricing.cost import (
    ModelPrice,
    cost_nano_usd,
    of_config,
    worst_case_nano_usd,
)
from breakwater_gateway.pricing.prices import BadTable, Prices
from breakwater_gateway.pricing.tokens import Size, measure
from breakwater_protocol.chat import Usage

OUTPUT_DEFAULT: Final = 4_096
"""Written into bodies that allow no number; less where the deployment's model makes less."""
OUTPUT_LEAST: Final = 16
"""Nobody is served by an answer that is clamped to less."""

_Count = Annotated[int, Meta(ge=1, le=100_000_000)]


class _Generation(Struct, frozen=True):
    max_output: _Count | None = msgspec.field(default=None, name="maxOutputTokens")
    candidates: Annotated[int, Meta(ge=1, le=128)] | None = msgspec.field(
        default=None, name="candidateCount"
    )


class _Body(Struct, frozen=True):
    """What of a body, in any dialect, decides how much an answer can cost."""

    max_tokens: _Count | None = None
    max_completion_tokens: _Count | None = None
    max_output_tokens: _Count | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    service_tier: str | None = None
    cache_control: Raw | None = None
    generation: _Generation | None = msgspec.field(default=None, name="generationConfig")


_bodies = msgspec.json.Decoder(_Body)
_fields = msgspec.json.Decoder(dict[str, Raw])
_UNREADABLE: Final = _Body(n=128)
"""Fields of no such shape: the most that any may mean."""

_FIELD: Final = {
    "chat": "max_completion_tokens",
    "messages": "max_tokens",
    "responses": "max_output_tokens",
}


class Ask(Struct, frozen=True):
    """What a request's body says of its size, read once for all attempts."""

    api: str
    size: Size
    output: int | None
    """Tokens that each answer may have; None: the body does not say, or embeddings have none."""
    answers: int
    service_tier: str

    @property
    def speaks(self) -> bool:
        """It makes tokens: embeddings do not."""
        return self.api != "embeddings"


class Bound(Struct, frozen=True):
    """At most so much, with `output` tokens for each answer."""

    nano_usd: int | None
    """None: the model has no known price."""
    tokens: int
    input: int
    output: int
    write: bool
    """The body does not say `output`: it has to be written into it (`with_output`)."""


def read_ask(api: str, body: bytes) -> Ask:
    size = measure(body)
    try:
        found = _bodies.decode(body)
    except msgspec.MsgspecError:
        found = _UNREADABLE
    generation = found.generation or _Generation()
    # Several names may stand in one body, and providers differ in which they heed.
    said = [
        each
        for each in (
            found.max_tokens,
            found.max_completion_tokens,
            found.max_output_tokens,
            generation.max_output,
        )
        if each is not None
    ]
    return Ask(
        api=api,
        size=size,
        output=max(said, default=None),
        answers=max(found.n or 1, generation.candidates or 1),
        service_tier=found.service_tier or "",
    )


def bound_of(
    ask: Ask,
    deployment: Deployment,
    prices: Iterable[ModelPrice],
    *,
    output: int | None = None,
    said: int = 0,
) -> Bound:
    """Of one attempt at `deployment`, whose call may cost any of `prices`. `output` in place of the body's;
    `said`: bytes of a cut answer that it is shown besides the body, to go on with."""
    into = ask.size.upper(deployment.context_window) + said
    if not ask.speaks:
        made, write = 0, False
    else:
        made = output if output is not None else ask.output or 0
        write = ask.output is None
        if not made:
            made = min(deployment.max_output or OUTPUT_DEFAULT, OUTPUT_DEFAULT)
    costs = [worst_case_nano_usd(into, made * ask.answers, price) for price in prices]
    known = [cost for cost in costs if cost is not None]
    return Bound(
        nano_usd=max(known) if known and len(known) == len(costs) else None,
        tokens=into + made * ask.answers,
        input=into,
        output=made,
        write=write,
    )


def affordable_output(
    ask: Ask,
    bound: Bound,
    *,
    nano_usd: int | None,
    tokens: int | None,
    prices: Iterable[ModelPrice],
) -> int | None:
    """The most output tokens of each answer that fit what is left; None: not even a short answer does.

    None as an amount: that unit is not limited.
    """
    if not ask.speaks:
        return None
    most = bound.output
    if tokens is not None:
        most = min(most, (tokens - bound.input) // ask.answers)
    if nano_usd is not None:
        for price in prices:
            fixed = worst_case_nano_usd(bound.input, 0, price)
            full = worst_case_nano_usd(bound.input, bound.output * ask.answers, price)
            if fixed is None or full is None:
                return None
            if full > nano_usd:
                # Linear in the output but for rounding, which one nano-USD covers.
                most = min(most, (nano_usd - fixed - 1) * bound.output // max(1, full - fixed))
    return most if most >= min(OUTPUT_LEAST, bound.output) else None


def prices_of(
    deployment: Deployment, model: str, prices: Prices, *, at: float, service_tier: str = ""
) -> tuple[ModelPrice, ...]:
    """What a call may cost: the configuration's price, else the list's and that of the tier it asks for."""
    if deployment.price is not None:
        return (of_config(deployment.price),)
    try:
        standard = prices.price_of(deployment.provider, model, at)
        if not service_tier:
            return () if standard is None else (standard,)
        tier = prices.price_of(deployment.provider, model, at, service_tier)
    except BadTable:
        return ()
    return tuple(each for each in (standard, tier) if each is not None)


def cost_of(usage: Usage, prices: Iterable[ModelPrice]) -> int | None:
    """The dearest that this usage may have cost."""
    costs = [cost_nano_usd(usage, price) for price in prices]
    known = [cost for cost in costs if cost is not None]
    return max(known) if known and len(known) == len(costs) else None


def with_output(body: bytes, api: str, output: int) -> bytes:
    """The body, allowing each answer `output` tokens and no more. Everything else stays as it came."""
    number = Raw(str(output).encode())
    fields = _fields.decode(body)
    if api == "generate":
        inner = fields.get("generationConfig")
        generation = {} if inner is None or bytes(inner) == b"null" else _fields.decode(inner)
        generation["maxOutputTokens"] = number
        fields["generationConfig"] = Raw(msgspec.json.encode(generation))
        return msgspec.json.encode(fields)
    named = [name for name in ("max_tokens", "max_completion_tokens") if _says(fields, name)]
    for name in named if api == "chat" and named else [_FIELD[api]]:
        fields[name] = number
    return msgspec.json.encode(fields)


def _says(fields: dict[str, Raw], name: str) -> bool:
    return name in fields and bytes(fields[name]) != b"null"
