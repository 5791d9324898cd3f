"""The price table of the package: `uv run --with genai-prices python -m ops.prices [--check]`.

Reads the data of `genai-prices` (MIT, by Pydantic Services Inc. and contributors) and writes it as one
table that `pricing/prices.py` decodes without importing that package: token prices only, as integers of
pico-USD per token, with their dates, prompt-length bands and service tiers. The result depends on the
package's version alone; `generated` moves only when something else did. `--check` writes nothing and
fails when the table is not what the installed version gives.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, time
from decimal import Decimal
from importlib import import_module
from importlib.metadata import distribution
from pathlib import Path
from typing import Any, Final

import msgspec

from breakwater_gateway.pricing.cost import RATE_MAX, Rates
from breakwater_gateway.pricing.prices import FORMAT

DATA: Final = (
    Path(__file__).resolve().parents[1] / "services" / "breakwater_gateway" / "pricing" / "data"
)
TABLE: Final = DATA / "prices.json"
NOTICE: Final = DATA / "prices.LICENSE.txt"
SIZE_MAX: Final = 400_000
SOURCE: Final = "genai-prices"

# The source's price keys that are prices of tokens we can count, in the order of `Rates`.
_RATES: Final = (
    "input_mtok",
    "output_mtok",
    "cache_read_mtok",
    "cache_write_mtok",
    "cache_write_1h_mtok",
    "output_reasoning_mtok",
    "input_audio_mtok",
    "output_audio_mtok",
    "cache_audio_read_mtok",
)
_CALL: Final = "requests_kcount"
# Which request context selects a variant, and the service tier it is for us. Batches are not served.
_TIERS: Final = {
    ("service_tier", "flex"): "flex",
    ("service_tier", "priority"): "priority",
    ("service_tier", "fast"): "fast",
    ("speed", "fast"): "fast",
}
_PICO_PER_MTOK: Final = 1_000_000
_PICO_PER_KCALL: Final = 1_000_000_000
_NOISE_DECIMALS: Final = 15
"""A price with that many decimals is a double's artefact or a third, not a finer price."""
_EPOCH: Final = date(1970, 1, 1)

Plain = list[Any]
"""A row of the table: JSON without objects."""
Foreign = Any
"""An object of the source, whose types the project does not have: read by attribute only."""


class BadSource(ValueError):
    """The source says something that this table cannot, or that no provider would charge."""


def pico(usd: Decimal, *, scale: int, at_most: int, where: str) -> int:
    """USD per million tokens (or per thousand calls) as an integer of pico-USD per one."""
    exact = usd * scale
    if not exact.is_finite() or not 0 <= exact <= at_most:
        raise BadSource(f"{where}: {usd} is out of bounds")
    rounded = int(exact.to_integral_value())
    if rounded != exact and -int(usd.as_tuple().exponent) < _NOISE_DECIMALS:
        raise BadSource(f"{where}: {usd} is finer than pico-USD")
    return rounded


def clause(found: Foreign) -> str | Plain:
    """One match clause as `pricing/prices.py` reads it: text for equality, else [sign, operand]."""
    if hasattr(found, "equals"):
        return str(found.equals).lower()
    for name, sign in (("starts_with", "^"), ("ends_with", "$"), ("contains", "*")):
        if hasattr(found, name):
            return [sign, getattr(found, name).lower()]
    if hasattr(found, "regex"):
        return ["~", found.regex]
    for name, sign in (("or_", "|"), ("and_", "&")):
        if hasattr(found, name):
            return [sign, [clause(each) for each in getattr(found, name)]]
    raise BadSource(f"unknown clause {found!r}")


def _clauses(model: Foreign) -> Plain:
    made = clause(model.match)
    rows: Plain = made[1] if isinstance(made, list) and made[0] == "|" else [made]
    return [] if rows == [model.id.lower()] else rows


def _trim(row: Plain) -> Plain:
    """Without the defaults at its end."""
    while row and row[-1] in (None, 0, []):
        row = row[:-1]
    return row


def _price_row(prices: Mapping[str, Any], where: str) -> Plain:
    """[rates, bands, per call], without trailing defaults; [] when no token has a price."""
    known = {key: prices[key] for key in _RATES if prices.get(key) is not None}
    starts = sorted(
        {tier.start for value in known.values() for tier in getattr(value, "tiers", ())}
    )

    def rates(above: int) -> Plain:
        row: Plain = []
        for key in _RATES:
            value = known.get(key)
            if value is not None and not isinstance(value, Decimal):
                chosen = value.base
                for tier in sorted(value.tiers, key=lambda each: int(each.start)):
                    if above >= tier.start:
                        chosen = tier.price
                value = chosen
            row.append(
                None
                if value is None
                else pico(value, scale=_PICO_PER_MTOK, at_most=RATE_MAX, where=f"{where} {key}")
            )
        return _trim_rates(row)

    base = rates(-1)
    if not base:
        return []
    fee = prices.get(_CALL)
    per_call = (
        pico(fee, scale=_PICO_PER_KCALL, at_most=10**13, where=where) if fee is not None else 0
    )
    return _trim([base, [[start, rates(start)] for start in starts], per_call])


def _trim_rates(row: Plain) -> Plain:
    while row and row[-1] is None:
        row = row[:-1]
    return row


def _values(prices: Foreign) -> dict[str, Any]:
    return {key: value for key, value in vars(prices).items() if value is not None}


def _conditions(prices: Foreign) -> Sequence[tuple[Any, dict[str, Any]]]:
    if isinstance(prices, list):
        return [(each.constraint, _values(each.prices)) for each in prices]
    return [(None, _values(prices))]


def _day(constraint: Foreign) -> int | None:
    found = getattr(constraint, "start_date", None)
    return (found - _EPOCH).days if found is not None else None


def _second(of: time) -> int:
    if of.utcoffset():
        raise BadSource(f"{of} is not in UTC")
    return of.hour * 3600 + of.minute * 60 + of.second


def _when(constraint: Foreign) -> Plain:
    """[first day, first second of the day, last], days since 1970 and seconds of UTC."""
    if constraint is None:
        return [0]
    day = _day(constraint)
    if day is not None:
        return [day]
    return [0, _second(constraint.start_time), _second(constraint.end_time)]


def _points(model: Foreign, where: str) -> Plain:
    """The prices in the source's order, of which the last that holds is the one; [] for none."""
    rows = []
    conditions = _conditions(model.prices)
    for index, (constraint, prices) in enumerate(conditions):
        # Where nothing holds the first one does.
        when = [0] if index == 0 else _when(constraint)
        rows.append([_price_row(_free(model.id, prices), where), *when])
    if not any(row[0] for row in rows):
        return []
    return [_trim(row) for row in rows]


def _free(model: str, prices: dict[str, Any]) -> dict[str, Any]:
    """The source writes nothing for what is free and for what is unknown; only a name that says
    `:free` is taken for the former."""
    if not prices and model.endswith(":free"):
        return {"input_mtok": Decimal(0), "output_mtok": Decimal(0)}
    return prices


def _variants(model: Foreign, where: str) -> dict[str, Plain]:
    """Each service tier's own dated prices, the standard ones filled in where it says nothing."""
    found: dict[str, list[Any]] = {}
    for variant in model.price_variants or ():
        tier = _TIERS.get(next(iter(variant.when.items()))) if len(variant.when) == 1 else None
        if tier is not None and _values(variant.prices):
            found.setdefault(tier, []).append(variant)
    made: dict[str, Plain] = {}
    for tier, variants in sorted(found.items()):
        conditions = _conditions(model.prices)
        constraints = [each for each, _ in conditions] + [each.constraint for each in variants]
        if any(each is not None and _day(each) is None for each in constraints):
            raise BadSource(f"{where}: a service tier beside prices by the time of day")
        rows: Plain = []
        for day in sorted({0, *(_day(each) or 0 for each in constraints)}):
            prices = dict(conditions[0][1])
            for constraint, each in conditions:
                if (_day(constraint) or 0) <= day:
                    prices = dict(each)
            overriding: dict[str, Any] = {}
            for variant in variants:
                if (_day(variant.constraint) or 0) <= day:
                    overriding = _values(variant.prices) | overriding
            row = _price_row(prices | overriding, where)
            if not rows or rows[-1][0] != row:
                rows.append([row, day])
        made[tier] = [_trim(row) for row in rows]
    return made


def _model_row(provider: str, model: Foreign) -> Plain:
    where = f"{provider}/{model.id}"
    variants = _variants(model, where)
    row = [model.id, _clauses(model), _points(model, where)]
    return [*row, variants] if variants else _trim(row)


def table(providers: Iterable[Foreign], *, source: str, generated: date) -> bytes:
    """The whole table as JSON, one model a line. Raises `BadSource`.

    `providers` are the source's own objects, of which only attributes are read.
    """
    return b"".join(_lines(providers, source=source, generated=generated))


def _lines(providers: Iterable[Foreign], *, source: str, generated: date) -> Iterator[bytes]:
    head = {"format": FORMAT, "generated": generated, "source": source}
    yield msgspec.json.encode(head)[:-1] + b',"rates":'
    yield msgspec.json.encode(Rates.__struct_fields__) + b',"providers":['
    between = b""
    for provider in providers:
        yield between + b'\n{"id":' + msgspec.json.encode(provider.id)
        if provider.fallback_model_providers:
            yield b',"fallback":' + msgspec.json.encode(provider.fallback_model_providers)
        rows = [msgspec.json.encode(_model_row(provider.id, each)) for each in provider.models]
        yield b',"models":[\n' + b",\n".join(rows) + b"]}"
        between = b","
    yield b"\n]}\n"


class _Head(msgspec.Struct):
    generated: date
    source: str


def _installed() -> tuple[list[Foreign], str, str]:
    """The source's providers, `name version`, and its licence."""
    # By name, since the project itself does not depend on it.
    providers: list[Foreign] = import_module("genai_prices.data").providers
    found = distribution(SOURCE)
    licence = next(path for path in found.files or () if path.name == "LICENSE")
    return providers, f"{SOURCE} {found.version}", licence.read_text(encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the price table.")
    parser.add_argument(
        "--check", action="store_true", help="change nothing; fail when it is stale"
    )
    check: bool = parser.parse_args().check
    providers, source, licence = _installed()
    notice = (
        f"prices.json is made by ops/prices.py from the data of {source}\n"
        f"(https://github.com/pydantic/genai-prices), whose licence is:\n\n{licence}"
    )
    today = datetime.now(UTC).date()
    old = TABLE.read_bytes() if TABLE.exists() else b""
    dated = msgspec.json.decode(old, type=_Head).generated if old else today
    try:
        made = table(providers, source=source, generated=dated)
        same = made == old and NOTICE.exists() and NOTICE.read_text(encoding="utf-8") == notice
        if not same and not check:
            made = table(providers, source=source, generated=today)
    except BadSource as error:
        sys.exit(str(error))
    if len(made) > SIZE_MAX:
        sys.exit(f"{len(made):,} bytes are more than the {SIZE_MAX:,} that a wheel should carry")
    if same:
        print(f"up to date with {source}")
        return
    if check:
        sys.exit(
            f"the table is not what {source} gives; mend with:"
            " uv run --with genai-prices python -m ops.prices"
        )
    DATA.mkdir(exist_ok=True)
    TABLE.write_bytes(made)
    NOTICE.write_text(notice, encoding="utf-8")
    print(f"{len(made):,} bytes from {source}")


if __name__ == "__main__":
    main()
