"""The configuration without a file: providers whose keys the environment has, else the simulator."""

from collections.abc import Mapping

from breakwater_gateway.config.catalogue import CATALOGUE, Provider
from breakwater_gateway.config.model import Config, Deployment, KeyRef, Model


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
                models.setdefault(name, _public(name, provider, name, key))
            pattern = f"{provider.id}/*"
            models[pattern] = _public(pattern, provider, "*", key)
    if models:
        return Config(models=models)
    return Config(models=_simulated(simulator_url.rstrip("/")), simulator=True)


def with_keys(environment: Mapping[str, str]) -> list[Provider]:
    """The providers that the default configuration serves, in the catalogue's order."""
    return [
        provider
        for provider in CATALOGUE.values()
        if provider.automatic and any(environment.get(name) for name in provider.key_variables)
    ]


def _public(name: str, provider: Provider, model: str, key: KeyRef) -> Model:
    deployment = Deployment(
        id=f"{provider.id}/{model}",
        provider=provider.id,
        model=model,
        wire="openai",
        base_url=provider.base_url,
        api_keys=(key,),
    )
    return Model(name, (deployment,))


def _simulated(url: str) -> dict[str, Model]:
    # Each lane can be told to fail on its own, so nothing shares one.
    def deployment(id_: str, lane: str, model: str) -> Deployment:
        return Deployment(
            id=id_, provider="simulator", model=model, wire="openai", base_url=f"{url}/{lane}/v1"
        )

    main = tuple(deployment(f"sim-{lane}", lane, "main-model") for lane in ("a", "b", "c"))
    singles = ("fast-classifier", "gpt-4o", "gpt-4o-mini", "text-embedding-3-small")
    return {
        "main-model": Model("main-model", main, strategy="least-busy"),
        **{name: Model(name, (deployment(f"sim-{name}", name, name),)) for name in singles},
    }
