"""The price table: found under exact names only, at the right date, in bounds."""

from datetime import UTC, datetime, time, timedelta, timezone
from decimal import Decimal
from importlib.resources import files
from types import SimpleNamespace as Foreign

import msgspec
import pytest
from ops.prices import SIZE_MAX, BadSource, clause, pico, table

from breakwater_gateway.config.catalogue import CATALOGUE
from breakwater_gateway.pricing.cost import Band, ModelPrice, Rates
from breakwater_gateway.pricing.prices import CACHED_MAX, BadTable, Prices, shipped

SHIPPED = files("breakwater_gateway.pricing").joinpath("data", "prices.json").read_bytes()


def at(day: str) -> float:
    return datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()


NOW = at("2026-11-23")


def equals(text: str) -> Foreign:
    return Foreign(equals=text)


def usd(**prices: str | Foreign) -> Foreign:
    """Prices of the source: `input="3"` is `input_mtok`."""
    return Foreign(
        **{
            f"{name}_mtok" if not name.endswith("count") else name: Decimal(value)
            if isinstance(value, str)
            else value
            for name, value in prices.items()
        }
    )


def model(
    id_: str,
    prices: Foreign | list[Foreign],
    *,
    match: Foreign | None = None,
    variants: list[Foreign] | None = None,
) -> Foreign:
    return Foreign(id=id_, match=match or equals(id_), prices=prices, price_variants=variants)


def compiled(*models: Foreign, fallback: list[str] | None = None, id_: str = "host") -> Prices:
    provider = Foreign(id=id_, fallback_model_providers=fallback, models=list(models))
    other = Foreign(
        id="other",
        fallback_model_providers=None,
        models=[model("elsewhere", usd(input="1", output="2"))],
    )
    return Prices(table([provider, other], source="test 1", generated=datetime.now(UTC).date()))


# ---------------------------------------------------------------- the table that is shipped


def test_the_shipped_table_is_small_whole_and_within_bounds() -> None:
    assert len(SHIPPED) <= SIZE_MAX
    names = [
        (provider["id"], row[0])
        for provider in msgspec.json.decode(SHIPPED)["providers"]
        for row in provider["models"]
    ]
    assert len(names) > 2_000
    prices = Prices(SHIPPED)
    priced = 0
    for provider, name in names:
        entry = prices.entry(provider, name)
        if entry is None:
            continue
        for points in (entry.points, *entry.tiers.values()):
            for point in points:
                priced += point.price.rates.input is not None
                above = [band.above for band in point.price.bands]
                assert above == sorted(set(above))
    assert priced > 2_000


def test_the_notice_of_its_source_is_beside_it() -> None:
    notice = files("breakwater_gateway.pricing").joinpath("data", "prices.LICENSE.txt").read_text()
    assert "MIT License" in notice
    assert shipped().source in notice


@pytest.mark.parametrize(
    ("provider", "name", "input_", "output"),
    [
        ("openai", "gpt-4o", 2_500_000, 10_000_000),
        ("openai", "gpt-4o-mini-2024-07-18", 150_000, 600_000),
        ("OpenAI", "GPT-4o", 2_500_000, 10_000_000),
        ("azure", "gpt-4o-mini", 150_000, 600_000),
        ("anthropic", "claude-sonnet-4-5-20250929", 3_000_000, 15_000_000),
        ("vertex", "claude-sonnet-4-5@20250929", 3_000_000, 15_000_000),
        ("google-vertex", "publishers/google/models/gemini-2.5-flash", 300_000, 2_500_000),
        ("gemini", "models/gemini-2.5-flash", 300_000, 2_500_000),
        ("bedrock", "us.anthropic.claude-3-7-sonnet-20250219-v1:0", 3_000_000, 15_000_000),
        ("amazon-bedrock", "amazon.nova-lite-v1:0", 60_000, 240_000),
        ("bedrock", "apac.amazon.nova-lite-v1:0", 60_000, 240_000),
        ("bedrock", "us.amazon.nova-2-lite-v1:0", 330_000, 2_750_000),
        ("bedrock", "global.amazon.nova-2-lite-v1:0", 300_000, 2_500_000),
        (
            "bedrock",
            "arn:aws:bedrock:us-east-1::foundation-model/amazon.nova-micro-v1:0",
            35_000,
            140_000,
        ),
        ("openrouter", "anthropic/claude-3.7-sonnet:thinking", 3_000_000, 15_000_000),
        ("openrouter", "qwen/qwen3-14b:free", None, None),
        ("groq", "llama-3.1-8b-instant", 50_000, 80_000),
        ("xai", "grok-3-mini", 300_000, 500_000),
        ("togetherai", "meta-llama/Llama-3.3-70B-Instruct-Turbo", 880_000, 880_000),
        ("cohere", "command-r-plus-08-2024", 2_500_000, 10_000_000),
    ],
)
def test_catalogue_names_find_the_list_price(
    provider: str, name: str, input_: int | None, output: int | None
) -> None:
    price = shipped().price_of(provider, name, NOW)
    if input_ is None:
        assert price is None
    else:
        assert price is not None
        assert (price.rates.input, price.rates.output) == (input_, output)


@pytest.mark.parametrize(
    ("provider", "name"),
    [
        ("openai-compatible", "gpt-4o"),
        ("my-openai", "gpt-4o"),
        ("vllm", "gpt-4o"),
        ("moonshotai-cn", "kimi-k2.5"),
        ("zai-coding-plan", "glm-4.7"),
        ("openai", "gpt-4o-of-mine"),
        ("openai", "whisper-1"),
        ("bedrock", "arn:aws:bedrock:us-east-1:1:application-inference-profile/1arbu5hu2sjr"),
        ("huggingface", "deepseek-ai/DeepSeek-R1"),
        ("", ""),
        ("openai", "x" * 100_000),
    ],
)
def test_what_only_looks_like_a_known_model_is_unpriced(provider: str, name: str) -> None:
    assert shipped().price_of(provider, name, NOW) is None


@pytest.mark.parametrize(
    "provider",
    [
        *("anthropic", "azure", "azure-anthropic", "bedrock", "cohere", "deepseek", "fireworks"),
        *("gemini", "groq", "mistral", "openai", "openrouter", "perplexity", "together"),
        *("vertex", "vertex-anthropic", "voyage", "xai", "zai"),
    ],
)
def test_the_providers_of_the_catalogue_with_a_list_are_known(provider: str) -> None:
    assert provider in CATALOGUE
    assert shipped().knows(provider)


def test_a_long_prompt_and_a_service_tier_have_their_own_price() -> None:
    price = shipped().price_of("openai", "gpt-5.4", NOW)
    assert price is not None
    assert [band.above for band in price.bands] == [272_000]
    flex = shipped().price_of("openai", "gpt-5.4", NOW, "flex")
    assert flex is not None
    assert flex.rates.input == 1_250_000
    assert shipped().price_of("openai", "gpt-5.4", NOW, "default") == price
    assert shipped().price_of("openai", "gpt-5.4", NOW, "made-up") == price


# ---------------------------------------------------------------- how it is made and read


def test_a_price_holds_from_its_date_on() -> None:
    def since(day: str) -> Foreign:
        return Foreign(start_date=datetime.fromisoformat(day).date())

    prices = compiled(
        model(
            "m",
            [
                Foreign(constraint=None, prices=usd(input="1", output="1")),
                Foreign(constraint=since("2026-02-01"), prices=usd(input="2", output="1")),
                Foreign(constraint=since("2026-03-01"), prices=usd(input="3", output="1")),
            ],
        )
    )
    found = [
        price.rates.input
        for day in ("1999-01-01", "2026-01-31T23:59:59", "2026-02-01", "2026-02-28", "2026-03-01")
        if (price := prices.price_of("host", "m", at(day))) is not None
    ]
    assert found == [1_000_000, 1_000_000, 2_000_000, 2_000_000, 3_000_000]


@pytest.mark.parametrize(
    ("clock", "dear"),
    [("00:29:59", False), ("00:30:00", True), ("16:29:59", True), ("16:30:00", False)],
)
def test_a_price_may_hold_for_hours_of_the_day(clock: str, dear: bool) -> None:
    peak = Foreign(start_time=time(0, 30, tzinfo=UTC), end_time=time(16, 30, tzinfo=UTC))
    night = Foreign(start_time=time(16, 30), end_time=time(0, 30))
    cheap, costly = usd(input="1", output="1"), usd(input="2", output="1")
    day = model(
        "day",
        [Foreign(constraint=None, prices=cheap), Foreign(constraint=peak, prices=costly)],
    )
    over_midnight = model(
        "night",
        [Foreign(constraint=None, prices=costly), Foreign(constraint=night, prices=cheap)],
    )
    prices = compiled(day, over_midnight)
    for name in ("day", "night"):
        price = prices.price_of("host", name, at(f"2026-05-05T{clock}"))
        assert price is not None
        assert price.rates.input == (2_000_000 if dear else 1_000_000)


def test_tiers_by_prompt_length_become_bands_of_whole_rates() -> None:
    tiered = Foreign(
        base=Decimal("1.25"),
        tiers=[Foreign(start=400, price=Decimal(5)), Foreign(start=200, price=Decimal("2.5"))],
    )
    prices = compiled(model("m", usd(input=tiered, output="10")))
    assert prices.price_of("host", "m", NOW) == ModelPrice(
        Rates(1_250_000, 10_000_000),
        (Band(200, Rates(2_500_000, 10_000_000)), Band(400, Rates(5_000_000, 10_000_000))),
    )


def test_a_service_tier_keeps_the_standard_prices_it_does_not_name() -> None:
    variant = Foreign(
        when={"service_tier": "flex"},
        constraint=Foreign(start_date=datetime(2026, 2, 1, tzinfo=UTC).date()),
        prices=usd(input="0.5"),
    )
    batch = Foreign(when={"processing": "batch"}, constraint=None, prices=usd(input="0.1"))
    prices = compiled(model("m", usd(input="1", output="4"), variants=[batch, variant]))
    before = prices.price_of("host", "m", at("2026-01-01"), "flex")
    after = prices.price_of("host", "m", at("2026-02-01"), "flex")
    assert before == prices.price_of("host", "m", NOW) == ModelPrice(Rates(1_000_000, 4_000_000))
    assert after == ModelPrice(Rates(500_000, 4_000_000))


def test_free_by_name_is_zero_and_without_a_price_is_unknown() -> None:
    prices = compiled(model("gift:free", usd()), model("puzzle", usd()))
    assert prices.price_of("host", "gift:free", NOW) == ModelPrice(Rates(0, 0))
    assert prices.price_of("host", "puzzle", NOW) is None


@pytest.mark.parametrize(
    ("match", "name", "fits"),
    [
        (Foreign(starts_with="Gpt-"), "GPT-9", True),
        (Foreign(ends_with="-x"), "a-x", True),
        (Foreign(contains="mid"), "amidst", True),
        (Foreign(regex=r"^m-\d{4}$"), "m-2026", True),
        (Foreign(regex=r"^m-\d{4}$"), "m-20260", False),
        (Foreign(and_=[Foreign(starts_with="a"), Foreign(ends_with="z")]), "a-z", True),
        (Foreign(and_=[Foreign(starts_with="a"), Foreign(ends_with="z")]), "a-y", False),
        (Foreign(or_=[equals("one"), equals("Two")]), "two", True),
        (Foreign(or_=[equals("one"), Foreign(or_=[equals("two")])]), "two", True),
        (equals("m-2026-01-02"), "m-20260102", True),
    ],
)
def test_every_clause_of_the_source_matches_as_it_does_there(
    match: Foreign, name: str, fits: bool
) -> None:
    prices = compiled(model("id", usd(input="1", output="1"), match=match))
    assert (prices.price_of("host", name, NOW) is not None) == fits


def test_a_host_of_others_models_falls_back_to_their_list_one_step() -> None:
    prices = compiled(fallback=["missing", "other"])
    entry = prices.entry("host", "elsewhere")
    assert entry is not None
    assert entry.provider == "other"


def test_names_from_callers_do_not_fill_the_memory() -> None:
    prices = compiled(model("m", usd(input="1", output="1")))
    for number in range(CACHED_MAX + 50):
        prices.price_of("host", f"made-up-{number}", NOW)
    assert prices.cached <= CACHED_MAX
    assert prices.price_of("host", "m", NOW) is not None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        SHIPPED[:1000],
        SHIPPED.replace(b'"format":1', b'"format":2', 1),
        SHIPPED.replace(b'"cache_read","cache_write"', b'"cache_write","cache_read"', 1),
    ],
)
def test_another_table_is_refused(data: bytes) -> None:
    with pytest.raises(BadTable):
        Prices(data)


@pytest.mark.parametrize("rate", [b"-1", b"100000000001", b"1.5", b'"1"'])
def test_an_absurd_price_is_refused(rate: bytes) -> None:
    good = table(
        [Foreign(id="host", fallback_model_providers=None, models=[model("m", usd(input="7"))])],
        source="test 1",
        generated=datetime.now(UTC).date(),
    )
    with pytest.raises(BadTable):
        Prices(good.replace(b"7000000", rate)).price_of("host", "m", NOW)


def test_the_table_depends_on_its_source_alone() -> None:
    def made() -> bytes:
        return table(
            [Foreign(id="h", fallback_model_providers=None, models=[model("m", usd(input="1"))])],
            source="test 1",
            generated=datetime(2026, 1, 1, tzinfo=UTC).date(),
        )

    assert made() == made()


@pytest.mark.parametrize(
    ("price", "expected"),
    [
        ("3", 3_000_000),
        ("0.0375", 37_500),
        ("0.000001", 1),
        ("0.08333333333333334", 83_333),
        ("1.0399999999999998", 1_040_000),
    ],
)
def test_a_price_is_exact_to_six_decimals_and_noise_is_rounded(price: str, expected: int) -> None:
    assert pico(Decimal(price), scale=1_000_000, at_most=10**11, where="m") == expected


@pytest.mark.parametrize("price", ["0.0000001", "-1", "100001", "NaN", "Infinity"])
def test_a_price_that_cannot_be_said_or_believed_stops_the_table(price: str) -> None:
    with pytest.raises(BadSource):
        pico(Decimal(price), scale=1_000_000, at_most=10**11, where="m")


def test_an_unknown_clause_or_a_time_not_in_utc_stops_the_table() -> None:
    with pytest.raises(BadSource):
        clause(Foreign(sounds_like="gpt"))
    local = Foreign(
        start_time=time(1, tzinfo=timezone(timedelta(hours=1))), end_time=time(2, tzinfo=UTC)
    )
    with pytest.raises(BadSource):
        compiled(
            model(
                "m",
                [
                    Foreign(constraint=None, prices=usd(input="1")),
                    Foreign(constraint=local, prices=usd(input="1")),
                ],
            )
        )
