"""What is known of a provider, and how a deployment inherits it.

A base URL may name settings in braces (`https://{resource}.openai.azure.com`), and a scheme may need more
than one secret (AWS). Both are `PARAMS`: written in the file as text, or as `env:NAME` or `file:PATH`, and
else taken from the variables that a provider's own tools read. A reference is followed only where the call
is made, as a key is.
"""

import re
from collections.abc import Mapping
from typing import Final

from msgspec import Struct

from breakwater_gateway.config.model import AuthScheme, Deployment, KeyRef, QuirkValue, Wire


class Param(Struct, frozen=True):
    """A setting that deployments may have."""

    expected: str
    """What it is, for messages."""
    pattern: str = ""
    """Of its text; empty for a secret, which is only ever a reference."""
    variables: tuple[str, ...] = ()
    """Of the environment, the usual one first."""
    default: str = ""
    optional: bool = False
    """Used where it is known; a reference may lead nowhere."""


PARAMS: Final[Mapping[str, Param]] = {
    "resource": Param(
        "the name of an Azure resource",
        r"[A-Za-z0-9][A-Za-z0-9-]{0,62}",
        ("AZURE_RESOURCE_NAME", "AZURE_OPENAI_ENDPOINT", "AZURE_API_BASE"),
    ),
    "region": Param(
        "a region such as eu-central-1",
        r"[a-z]{2,4}(?:-[a-z0-9]{1,16}){1,4}",
        ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_REGION_NAME"),
    ),
    "project": Param(
        "a project's id",
        r"(?!env:|file:)[a-z0-9][a-z0-9.:-]{0,126}",
        (
            "GOOGLE_CLOUD_PROJECT",
            "GOOGLE_VERTEX_PROJECT",
            "VERTEXAI_PROJECT",
            "ANTHROPIC_VERTEX_PROJECT_ID",
        ),
    ),
    "location": Param(
        "a location such as global or europe-west4",
        r"[a-z][a-z0-9-]{0,40}",
        ("GOOGLE_CLOUD_LOCATION", "GOOGLE_VERTEX_LOCATION", "VERTEXAI_LOCATION"),
        default="global",
    ),
    "account": Param("an account's id", r"[A-Za-z0-9][A-Za-z0-9._-]{0,126}"),
    "host": Param("a host such as gpu-1:8000", r"[A-Za-z0-9][A-Za-z0-9.-]{0,252}(?::[0-9]{1,5})?"),
    "api_version": Param(
        "a version of Azure's API such as 2024-10-21",
        r"[A-Za-z0-9][A-Za-z0-9.-]{0,31}",
        ("AZURE_API_VERSION", "OPENAI_API_VERSION"),
        optional=True,
    ),
    "aws_access_key_id": Param("an AWS access key's id", variables=("AWS_ACCESS_KEY_ID",)),
    "aws_secret_access_key": Param("an AWS secret key", variables=("AWS_SECRET_ACCESS_KEY",)),
    "aws_session_token": Param(
        "an AWS session token", variables=("AWS_SESSION_TOKEN",), optional=True
    ),
}

AUTH_OF_WIRE: Final[Mapping[Wire, AuthScheme]] = {
    "anthropic": "x-api-key",
    "gemini": "x-goog-api-key",
    "azure": "api-key",
    "bedrock": "sigv4",
}
"""How hosts of a dialect take a key; the others' is `bearer`."""

_PLACE: Final = re.compile(r"\{([^{}]*)\}")
_AZURE_HOST: Final = re.compile(
    r"(?:https://)?([A-Za-z0-9][A-Za-z0-9-]{0,62})"
    r"\.(?:openai|cognitiveservices|services\.ai)\.azure\.com(?:/.*)?"
)
_SCHEME: Final = re.compile(r"\Ahttps?://")

Given = Mapping[str, str | KeyRef]


def auth_of(wire: Wire) -> AuthScheme:
    return AUTH_OF_WIRE.get(wire, "bearer")


class Provider(Struct, frozen=True):
    """One host, or one way into it, that the catalogue knows."""

    id: str
    name: str
    base_url: str
    key_variables: tuple[str, ...] = ()
    """The usual one first; empty for hosts that want no key."""
    wire: Wire = "openai"
    auth: AuthScheme = "bearer"
    aliases: tuple[str, ...] = ()
    """What it is called elsewhere."""
    automatic: bool = True
    """Served by the default configuration once a variable is set. False where the variable is shared
    with another provider or commonly holds a credential for something else."""
    key_optional: bool = False
    """No key is looked for where no variable is set: there is another way in."""
    models: tuple[str, ...] = ()
    """Names that the default configuration serves without the provider in front; some end in `*`."""
    variables: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Of settings, where this provider's tools read others than `PARAMS` says."""
    quirks: tuple[tuple[str, QuirkValue], ...] = ()
    others: tuple[tuple[str, str], ...] = ()
    """Prefixes of models that are reached by another entry: Claude on Vertex AI speaks Anthropic's dialect."""

    def key(self, environment: Mapping[str, str]) -> KeyRef | None:
        """The first variable that is set here, else the usual one; None where no key is wanted."""
        for name in self.key_variables:
            if environment.get(name):
                return KeyRef("env", name)
        if not self.key_variables or self.key_optional:
            return None
        return KeyRef("env", self.key_variables[0])

    def params(
        self, environment: Mapping[str, str], *, keyed: bool
    ) -> tuple[tuple[str, str | KeyRef], ...]:
        """Of a deployment that says nothing itself; `keyed` if it has a key."""
        needed = needs(self.base_url, self.wire, self.auth, keyed=keyed)
        return settle(needed, {}, dict(self.variables), environment)[0]


def places(base_url: str) -> list[str]:
    """The names in braces, in order, each once."""
    return list(dict.fromkeys(_PLACE.findall(base_url)))


def places_fault(base_url: str) -> str:
    """What is wrong with the braces of a base URL; empty if nothing."""
    if re.search(r"[{}]", _PLACE.sub("", base_url)):
        return "its braces do not match"
    for name in places(base_url):
        if name not in _FILLED:
            return f"in braces stands one of {', '.join(sorted(_FILLED))}"
    return ""


_FILLED: Final = {name: name for name, param in PARAMS.items() if param.pattern} | {
    # `europe-west4-` before the host, and nothing for the location `global`.
    "location_prefix": "location"
}
"""What may stand in braces -> the setting that fills it."""


def needs(base_url: str, wire: Wire, auth: AuthScheme, *, keyed: bool) -> dict[str, bool]:
    """The settings that a deployment uses -> whether it can do without."""
    names = [_FILLED[place] for place in places(base_url) if place in _FILLED]
    if wire == "azure":
        names.append("api_version")
    if auth == "sigv4" and not keyed:
        names += ["region", "aws_access_key_id", "aws_secret_access_key", "aws_session_token"]
    return {name: PARAMS[name].optional for name in names}


def settle(
    needed: Mapping[str, bool],
    given: Given,
    variables: Mapping[str, tuple[str, ...]],
    environment: Mapping[str, str],
) -> tuple[tuple[tuple[str, str | KeyRef], ...], list[str]]:
    """Each needed setting's value, given or usual; and the names of those that have none."""
    found: list[tuple[str, str | KeyRef]] = []
    missing: list[str] = []
    for name, optional in needed.items():
        value = given.get(name)
        if value is None:
            usual = variables.get(name, PARAMS[name].variables)
            here = next((each for each in usual if environment.get(each)), None)
            if here is None and not PARAMS[name].default:
                here = usual[0] if usual else None
            value = KeyRef("env", here) if here else PARAMS[name].default
        if value:
            found.append((name, value))
        elif not optional:
            missing.append(name)
    return tuple(found), missing


def read_setting(name: str, text: str) -> str | None:
    """A setting's value from the environment or a file as it goes into a URL; None when it is none.

    Variables of other tools hold whole URLs where a host or a resource's name is wanted.
    """
    text = text.strip()
    if name == "host":
        text = _SCHEME.sub("", text).rstrip("/")
    elif name == "resource" and (azure := _AZURE_HOST.fullmatch(text)):
        text = azure[1]
    return text if re.fullmatch(PARAMS[name].pattern, text) else None


def fill(base_url: str, values: Mapping[str, str]) -> str:
    """The base URL with its settings. Raises KeyError with the name of a setting that is not there."""

    def one(found: re.Match[str]) -> str:
        place = found[1]
        value = values[_FILLED[place]]
        if place == "location_prefix":
            return "" if value == "global" else f"{value}-"
        return value

    return _PLACE.sub(one, base_url) if "{" in base_url else base_url


def quirks_for(deployment: Deployment) -> Mapping[str, object]:
    """`Target.quirks` for the encoders: `provider` names whose facts apply, the rest overrides them."""
    found: dict[str, object] = {"provider": deployment.provider}
    if deployment.wire in {"azure", "mistral"}:
        # A host of one's own that speaks it has its facts, whatever it is called.
        found["provider"] = deployment.wire
    if deployment.wire == "vertex":
        # Whoever serves it: the paths are Vertex AI's, with the publisher in them.
        found["vertex"] = True
    return {**found, **dict(deployment.quirks)}
