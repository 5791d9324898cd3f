"""The configuration without a file: providers whose keys the environment has, else the simulator."""

from collections.abc import Mapping
from typing import Final

from breakwater_gateway.config import not_served
from breakwater_gateway.config.catalogue import CATALOGUE
from breakwater_gateway.config.model import Config, Deployment, KeyRef, Model, Price
from breakwater_gateway.config.provider import Provider, needs

_FIRST: Final = ("openai", "anthropic", "gemini")
"""Before the others: the first names are what the start shows."""


def default_config(environment: Mapping[str, str], *, simulator_url: str) -> Config:
    """Every catalogue provider with a key here as `provider/*`, and the names its users type.

    Without any such key: the simulator at `simulator_url` (no trailing path), whose lanes are the first
    segment of the path, and `simulator=True`.
    """
    models: dict[str, Model] = {}
    for provider in with_keys(environment):
        key = provider.key(environment)
        if key is not None:
            for name in provider.models:
                models.setdefault(name, _public(name, provider, name, key, environment))
            pattern = f"{provider.id}/*"
            models[pattern] = _public(pattern, provider, "*", key, environment)
    if models:
        return Config(models=models)
    return Config(models=_simulated(simulator_url.rstrip("/")), simulator=True)


def with_keys(environment: Mapping[str, str]) -> list[Provider]:
    """The providers that the default configuration serves: of what it serves, those that are reachable."""
    first = [CATALOGUE[id_] for id_ in _FIRST]
    others = [provider for provider in CATALOGUE.values() if provider.id not in _FIRST]
    return [
        provider
        for provider in (*first, *others)
        if provider.automatic
        and provider.wire in not_served.SERVED_WIRES
        and any(environment.get(name) for name in provider.key_variables)
        and _settled(provider, environment)
    ]


def _settled(provider: Provider, environment: Mapping[str, str]) -> bool:
    """Whether every setting that its URL needs has a value here."""
    values = dict(provider.params(environment, keyed=True))
    needed = needs(provider.base_url, provider.wire, provider.auth, keyed=True)
    for name, optional in needed.items():
        value = values.get(name, "")
        here = environment.get(value.name) if isinstance(value, KeyRef) else value
        if not here and not optional:
            return False
    return True


def _public(
    name: str, provider: Provider, model: str, key: KeyRef, environment: Mapping[str, str]
) -> Model:
    deployment = Deployment(
        id=f"{provider.id}/{model}",
        provider=provider.id,
        model=model,
        wire=provider.wire,
        base_url=provider.base_url,
        api_keys=(key,),
        auth=provider.auth,
        params=provider.params(environment, keyed=True),
        quirks=provider.quirks,
    )
    return Model(name, (deployment,))


SIMULATED_PRICE: Final = Price(input=150, output=600)
"""0.15 and 0.60 USD per million tokens: as a small model costs, so that costs show."""


def _simulated(url: str) -> dict[str, Model]:
    # Each lane can be told to fail on its own, so nothing shares one.
    def deployment(id_: str, lane: str, model: str) -> Deployment:
        return Deployment(
            id=id_,
            provider="simulator",
            model=model,
            wire="openai",
            base_url=f"{url}/{lane}/v1",
            price=SIMULATED_PRICE,
        )

    main = tuple(deployment(f"sim-{lane}", lane, "main-model") for lane in ("a", "b", "c"))
    singles = ("fast-classifier", "gpt-4o", "gpt-4o-mini", "text-embedding-3-small")
    return {
        "main-model": Model("main-model", main, strategy="least-busy"),
        **{name: Model(name, (deployment(f"sim-{name}", name, name),)) for name in singles},
    }
