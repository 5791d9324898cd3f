"""What a provider's model costs at a time: the dated table of `data/prices.json`, looked up and cached.

`ops/prices.py` makes the table from `genai-prices` (MIT; its notice lies beside it). Only what is known
is answered: a provider is found under its exact id or a listed alias, never because its name looks like
one, and a model that no entry matches has no price. Prices are the list prices in USD.
"""

import re
from functools import cache
from importlib.resources import files
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Raw, Struct

from breakwater_gateway.pricing.cost import ModelPrice, Rates

FORMAT: Final = 1
CACHED_MAX: Final = 4_096
"""Names come from callers where a deployment passes them on."""
_DAY_S: Final = 86_400
_UNKNOWN: Final = ModelPrice(Rates())

_ALIASES: Final = {
    "amazon-bedrock": "aws",
    "bedrock": "aws",
    "bedrock-europe": "aws",
    "bedrock-mantle": "aws",
    "bedrock_mantle": "aws",
    "azure-ai": "azure",
    "azure-ai-inference": "azure",
    "azure-anthropic": "azure",
    "azure-cognitive-services": "azure",
    "azure-openai": "azure",
    "azure-responses": "azure",
    "azure_ai": "azure",
    "cloudflare-workers-ai": "cloudflare",
    "fireworks-ai": "fireworks",
    "fireworks_ai": "fireworks",
    "gemini": "google",
    "google-ai-studio": "google",
    "google-vertex": "google",
    "google-vertex-anthropic": "google",
    "vertex": "google",
    "vertex-ai": "google",
    "vertex-anthropic": "google",
    "vertex_ai": "google",
    "github_copilot": "github-copilot",
    "codestral": "mistral",
    "text-completion-codestral": "mistral",
    "moonshot": "moonshotai",
    "novita-ai": "novita",
    "togetherai": "together",
    "together-ai": "together",
    "together_ai": "together",
    "voyage": "voyageai",
    "xai": "x-ai",
}
"""Ids of our catalogue, and of usual configurations, to the table's. Hosts that bill in another
currency (`…-cn`) or by subscription (`…-coding-plan`) are none of them."""

_GEOGRAPHY: Final = re.compile(r"(?:us|eu|apac|jp|au|ca)\.(?=[a-z0-9-]+\.)")
"""Bedrock's cross-region inference profiles within one geography, of one price; `global.` has its own,
and GovCloud's is not in the table."""
_COMPACT_DATE: Final = re.compile(r"-(20\d{2})(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])(?=[-:]|$)")
_SAME_PRICE: Final = (":thinking", ":beta")
"""OpenRouter's variants that change no price."""

Second = Annotated[int, Meta(ge=0, lt=_DAY_S)]


class PricePoint(Struct, frozen=True, array_like=True):
    """A price and when it holds; of several that hold the last one counts, of none the first."""

    price: ModelPrice = _UNKNOWN
    since_day: Annotated[int, Meta(ge=0, le=100_000)] = 0
    """Days since 1970."""
    from_s: Second = 0
    until_s: Second = 0
    """Each day between these seconds, UTC; all day where they are equal. May go over midnight."""

    def holds(self, day: int, second: int) -> bool:
        """On that day since 1970, at that second of it, UTC."""
        if day < self.since_day:
            return False
        if self.from_s <= self.until_s:
            return self.from_s == self.until_s or self.from_s <= second < self.until_s
        return second >= self.from_s or second < self.until_s


class _Starts(Struct, frozen=True, array_like=True, tag="^"):
    text: str

    def fits(self, name: str) -> bool:
        return name.startswith(self.text)


class _Ends(Struct, frozen=True, array_like=True, tag="$"):
    text: str

    def fits(self, name: str) -> bool:
        return name.endswith(self.text)


class _Contains(Struct, frozen=True, array_like=True, tag="*"):
    text: str

    def fits(self, name: str) -> bool:
        return self.text in name


class _Finds(Struct, frozen=True, array_like=True, tag="~"):
    pattern: str

    def fits(self, name: str) -> bool:
        return re.search(self.pattern, name) is not None


class _AnyOf(Struct, frozen=True, array_like=True, tag="|"):
    clauses: list["Clause"]

    def fits(self, name: str) -> bool:
        return any(_fits(clause, name) for clause in self.clauses)


class _AllOf(Struct, frozen=True, array_like=True, tag="&"):
    clauses: list["Clause"]

    def fits(self, name: str) -> bool:
        return all(_fits(clause, name) for clause in self.clauses)


Clause = str | _Starts | _Ends | _Contains | _Finds | _AnyOf | _AllOf
"""What a model's name must be, in lower case; plain text is equality."""


def _fits(clause: Clause, name: str) -> bool:
    return clause == name if isinstance(clause, str) else clause.fits(name)


class _Model(Struct, frozen=True, array_like=True):
    id: str
    match: list[Clause] = []
    """Any of them; none at all is equality with `id`."""
    points: tuple[PricePoint, ...] = ()
    tiers: dict[str, tuple[PricePoint, ...]] = {}

    def fits(self, name: str) -> bool:
        if not self.match:
            return self.id.lower() == name
        return any(_fits(clause, name) for clause in self.match)


class _Provider(Struct, frozen=True):
    id: str
    models: Raw
    """Decoded when the provider is asked for: most never are."""
    fallback: tuple[str, ...] = ()


class _Table(Struct, frozen=True):
    format: int
    generated: str
    source: str
    rates: tuple[str, ...]
    providers: list[_Provider]


class BadTable(ValueError):
    """The price table is not one that this version reads."""


class Entry(Struct, frozen=True):
    """What the table says of one model."""

    provider: str
    """The table's id; that of another provider where its list holds this one's models too."""
    model: str
    points: tuple[PricePoint, ...]
    tiers: dict[str, tuple[PricePoint, ...]] = {}
    """By service tier, where it has prices of its own."""

    def at(self, at: float, service_tier: str = "") -> ModelPrice | None:
        points = self.tiers.get(service_tier, self.points) if service_tier else self.points
        if not points:
            return None
        found = points[0]
        if len(points) > 1:
            day, second = divmod(int(at), _DAY_S)
            for point in reversed(points):
                if point.holds(day, second):
                    found = point
                    break
        return None if found.price == _UNKNOWN else found.price


class Prices:
    """The table. Pure but for its caches, whose sizes are bounded."""

    __slots__ = ("_entries", "_models", "_only", "_providers", "generated", "source")

    def __init__(self, data: bytes) -> None:
        """Raises `BadTable`: not JSON, of another format, or out of the bounds of a price."""
        try:
            table = msgspec.json.decode(data, type=_Table)
        except msgspec.MsgspecError as error:
            raise BadTable(str(error)) from None
        if table.format != FORMAT or table.rates != Rates.__struct_fields__:
            raise BadTable(f"the table has format {table.format}, not {FORMAT}")
        self.generated = table.generated
        """ISO date."""
        self.source = table.source
        self._providers = {provider.id: provider for provider in table.providers}
        self._models: dict[str, list[_Model]] = {}
        self._entries: dict[tuple[str, str], Entry | None] = {}
        self._only: dict[tuple[str, str], ModelPrice | None] = {}
        """Answers that depend neither on the time nor on the tier."""

    def knows(self, provider: str) -> bool:
        """The table has a list of this provider, under its own id or an alias."""
        return _ALIASES.get(provider.lower(), provider.lower()) in self._providers

    @property
    def cached(self) -> int:
        """Names whose answer is remembered, `CACHED_MAX` at most."""
        return len(self._entries)

    def price_of(
        self, provider: str, model: str, at: float, service_tier: str = ""
    ) -> ModelPrice | None:
        """The price of a call made at `at` (Unix seconds), None when it is not known.

        `provider` is an id of our catalogue or of the table, `model` the provider's own name for it.
        `service_tier`: OpenAI's `flex` or `priority`, Anthropic's `fast`; others cost the standard.
        """
        key = (provider, model)
        try:
            return self._only[key]
        except KeyError:
            entry = self.entry(provider, model)
        return None if entry is None else entry.at(at, service_tier)

    def entry(self, provider: str, model: str) -> Entry | None:
        """Everything the table says of this model. Raises `BadTable` when its provider's part is bad."""
        key = (provider, model)
        try:
            return self._entries[key]
        except KeyError:
            entry = self._find(provider, model)
        if len(self._entries) >= CACHED_MAX:
            oldest = next(iter(self._entries))
            del self._entries[oldest]
            self._only.pop(oldest, None)
        self._entries[key] = entry
        if entry is None:
            self._only[key] = None
        elif len(entry.points) < 2 and not entry.tiers:
            self._only[key] = entry.at(0.0)
        return entry

    def _find(self, provider: str, model: str) -> Entry | None:
        known, names = _resolve(provider.lower(), model.lower())
        found = self._providers.get(known)
        if found is None:
            return None
        for name in names:
            for owner in (known, *found.fallback):
                for candidate in self._of(owner):
                    if candidate.fits(name):
                        return Entry(owner, candidate.id, candidate.points, candidate.tiers)
        return None

    def _of(self, provider: str) -> list[_Model]:
        models = self._models.get(provider)
        if models is None:
            found = self._providers.get(provider)
            try:
                models = _models(found.models) if found is not None else []
            except msgspec.MsgspecError as error:
                raise BadTable(f"{provider}: {error}") from None
            self._models[provider] = models
        return models


_models = msgspec.json.Decoder(list[_Model]).decode


def _resolve(provider: str, model: str) -> tuple[str, list[str]]:
    """The table's provider, and the names to try there, the most exact first; all lower case."""
    known = _ALIASES.get(provider, provider)
    names = [model]
    if known == "aws":
        # ARNs and inference profiles end with the model's id after a slash.
        tail = model.rpartition("/")[2]
        bare = _GEOGRAPHY.sub("", tail, count=1) if _GEOGRAPHY.match(tail) else tail
        names += [tail, bare] if tail.startswith("global.") else [tail, f"us.{bare}", bare]
    elif known == "google":
        names.append(model.rpartition("/")[2])
    elif known == "openrouter":
        for ending in _SAME_PRICE:
            if model.endswith(ending):
                names.append(model.removesuffix(ending))
    elif known == "huggingface":
        # The router's `organisation/model:host`; without a host it may be any of them.
        model, _, host = model.rpartition(":")
        known, names = f"huggingface_{host}", [model]
    names += [_COMPACT_DATE.sub(r"-\1-\2-\3", name) for name in names]
    return known, list(dict.fromkeys(names))


@cache
def shipped() -> Prices:
    """The table of this distribution, read at the first call. Raises `BadTable`."""
    return Prices(files("breakwater_gateway.pricing").joinpath("data", "prices.json").read_bytes())
