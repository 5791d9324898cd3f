"""What has a breaker: each deployment, each key of its pool, and each provider-region that several share.

Names, as they stand in events, subjects and metrics: a deployment's is its id; `<id>#key2` is the second
key of its pool; `@<provider>/<region>` is the provider in that region. Deployments share a provider-region
when they are called at the same address with the same settings; a provider with several addresses in one
region has one for each, `@<provider>/<region>/2` and so on. A provider-region with a single deployment is
that deployment, and has no breaker of its own.
"""

import re
from typing import Final

from msgspec import Struct

from breakwater_gateway.config.model import Config, Deployment, KeyRef

RESERVED: Final = re.compile(r"@.*|.*#key[0-9]+", re.DOTALL)
"""Ids that would read as the name of a provider-region or of a key."""

KEYS_MAX: Final = 100
"""Keys that a pool may hold."""


class Scopes(Struct, frozen=True):
    """The breakers that a call to one deployment passes, besides the deployment's own."""

    region: str = ""
    """Empty: no other deployment shares it."""
    keys: tuple[str, ...] = ()
    """By index into the pool; one entry where a deployment has no keys of its own to choose from."""


NO_SCOPES: Final = Scopes()

_Place = tuple[str, str, str, tuple[tuple[str, str | KeyRef], ...]]


def key_target(deployment: str, key: int) -> str:
    """`key` counts from 0, the name from 1."""
    return f"{deployment}#key{key + 1}"


def scopes_of(config: Config) -> dict[str, Scopes]:
    """By deployment id, in the configuration's order."""
    places: dict[_Place, list[str]] = {}
    deployments = [d for model in config.models.values() for d in model.deployments]
    for deployment in deployments:
        places.setdefault(_place(deployment), []).append(deployment.id)
    regions: dict[str, str] = {}
    taken: dict[str, int] = {}
    for (provider, region, _, _), ids in places.items():
        if len(ids) < 2:
            continue
        name = f"@{provider}/{region}"
        taken[name] = taken.get(name, 0) + 1
        if taken[name] > 1:
            name = f"{name}/{taken[name]}"
        regions.update(dict.fromkeys(ids, name))
    return {
        d.id: Scopes(
            regions.get(d.id, ""),
            tuple(key_target(d.id, key) for key in range(max(1, len(d.api_keys)))),
        )
        for d in deployments
    }


def targets_of(config: Config) -> set[str]:
    """The names of all that may have a breaker."""
    found: set[str] = set()
    for id_, scopes in scopes_of(config).items():
        found.update((id_, *scopes.keys))
        if scopes.region:
            found.add(scopes.region)
    return found


def kind_of(target: str) -> str:
    """`deployment`, `key` or `region`."""
    if target.startswith("@"):
        return "region"
    return "key" if RESERVED.fullmatch(target) else "deployment"


def _place(deployment: Deployment) -> _Place:
    return (deployment.provider, deployment.region, deployment.base_url, deployment.params)
