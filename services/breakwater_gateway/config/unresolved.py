"""References to secrets that cannot be followed here. No load error: another machine may have them."""

from collections.abc import Callable, Mapping

from msgspec import Struct

from breakwater_gateway.config.model import (
    Config,
    Deployment,
    KeyRef,
)
from breakwater_gateway.config.provider import PARAMS


class MissingKey(Struct, frozen=True):
    """A key reference that cannot be resolved here. No load error: another machine may have it."""

    ref: KeyRef
    deployments: tuple[str, ...]
    """Ids of those that use it."""

    def __str__(self) -> str:
        more = len(self.deployments) - 3
        users = ", ".join(self.deployments[:3]) + (f" and {more} more" if more > 0 else "")
        reason = "is not set" if self.ref.source == "env" else "cannot be read"
        return f"{self.ref} {reason} here; needed by {users}"


def missing_keys(
    config: Config,
    environment: Mapping[str, str],
    *,
    readable: Callable[[str], bool] | None = None,
) -> list[MissingKey]:
    """Key references without a value here, in the file's order.

    `readable` says whether a `file:` reference can be read; without it files are not looked at.
    """
    users: dict[KeyRef, list[str]] = {}
    for model in config.models.values():
        for deployment in model.deployments:
            for ref in (*deployment.api_keys, *_settings(deployment)):
                users.setdefault(ref, []).append(deployment.id)
    return [
        MissingKey(ref, tuple(ids))
        for ref, ids in users.items()
        if (not environment.get(ref.name) if ref.source == "env" else _unreadable(ref, readable))
    ]


def silent_traces(
    config: Config,
    environment: Mapping[str, str],
    *,
    readable: Callable[[str], bool] | None = None,
) -> str:
    """Why no traces are exported from here although the file says where to; empty where that is not so."""
    ref = config.telemetry.otlp
    if not isinstance(ref, KeyRef):
        return ""
    if ref.source == "env":
        return "" if environment.get(ref.name) else f"{ref} is not set here"
    return f"{ref} cannot be read here" if _unreadable(ref, readable) else ""


def _settings(deployment: Deployment) -> list[KeyRef]:
    """References to what the deployment cannot do without."""
    return [
        value
        for name, value in deployment.params
        if isinstance(value, KeyRef) and not PARAMS[name].optional
    ]


def _unreadable(ref: KeyRef, readable: Callable[[str], bool] | None) -> bool:
    return readable is not None and not readable(ref.name)
