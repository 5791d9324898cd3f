"""Where a deployment's calls go and what authenticates them: its base URL filled, its key in the right header.

Pure: secrets come in resolved (`secrets_of`), and AWS's signature, which needs the body and the time, is left
to the caller (`Endpoint.aws`). Nothing here depends on the body, so an endpoint may be kept for as long as
its secrets are.
"""

import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import quote, urlsplit

from msgspec import Struct

from breakwater_gateway.config.model import Deployment, KeyRef
from breakwater_gateway.config.provider import PARAMS, fill, needs, read_setting
from breakwater_gateway.worker import keys
from breakwater_gateway.worker.wire.bedrock.sigv4 import Credentials
from breakwater_protocol import failures as f

KEY: Final = "api_key"
"""The provider's key among the secrets; the others go by their names in `PARAMS`."""

FOUNDRY_VERSION: Final = "2024-05-01-preview"
"""The `api-version` of Azure AI Foundry's `/models` where none is configured."""
DEPLOYMENTS_VERSION: Final = "2024-10-21"
"""The last `api-version` of Azure OpenAI's dated API that is not a preview: where a base URL names a
deployment and nothing a version. Source: Azure OpenAI documentation, "API version lifecycle"."""

_DATED: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}(?:-preview)?")


class Aws(Struct, frozen=True):
    """To be signed with AWS Signature Version 4, service `bedrock`."""

    credentials: Credentials
    region: str


class Endpoint(Struct, frozen=True):
    url: str
    """What a call's path is added to."""
    headers: tuple[tuple[str, str], ...] = ()
    """The deployment's own and the one that carries the key, names in lower case."""
    query: str = ""
    aws: Aws | None = None

    def at(self, path: str) -> str:
        """The URL of a call. `path` begins with a slash and may have a query of its own."""
        if not self.query:
            return self.url + path
        return f"{self.url}{path}{'&' if '?' in path else '?'}{self.query}"

    def __repr__(self) -> str:
        return f"Endpoint(url={self.url!r}, …)"


def references(deployment: Deployment, key: int) -> dict[str, KeyRef]:
    """What must be resolved for a call with the pool's key number `key` (modulo the pool's size)."""
    found = {name: value for name, value in deployment.params if isinstance(value, KeyRef)}
    if deployment.api_keys and deployment.auth != "none":
        found[KEY] = deployment.api_keys[key % len(deployment.api_keys)]
    return found


def secrets_of(
    deployment: Deployment,
    key: int,
    *,
    environment: Mapping[str, str],
    read_file: keys.ReadFile,
) -> dict[str, str] | f.KeyRejected:
    """The values of `references`; optional ones that lead nowhere are left out."""
    found: dict[str, str] = {}
    for name, reference in references(deployment, key).items():
        value = keys.resolve(reference, environment=environment, read_file=read_file)
        if isinstance(value, str):
            found[name] = value
        elif name == KEY:
            return value
        elif not PARAMS[name].optional:
            where = f"{reference} has no value where the worker runs"
            return f.KeyRejected(f"the provider's setting {name} is missing: {where}")
    return found


def secret_values(secrets: Mapping[str, str]) -> tuple[str, ...]:
    """Those of the secrets that no log or message may show."""
    return tuple(v for name, v in secrets.items() if name == KEY or not PARAMS[name].pattern)


def endpoint(
    deployment: Deployment, *, model: str, secrets: Mapping[str, str]
) -> Endpoint | f.KeyRejected:
    """The endpoint for `model` (the provider's own name), or which setting is missing or no such thing."""
    values: dict[str, str] = {}
    keyed = bool(deployment.api_keys)
    needed = needs(deployment.base_url, deployment.wire, deployment.auth, keyed=keyed)
    written = dict(deployment.params)
    for name, optional in needed.items():
        text = written.get(name, "")
        if isinstance(text, KeyRef):
            text = secrets.get(name, "")
        value = read_setting(name, text) if PARAMS[name].pattern and text else text
        if value:
            values[name] = value
        elif not optional or text:
            return _unfit(deployment, name, given=bool(text))
    url, query = fill(deployment.base_url, values), ""
    if deployment.wire == "azure":
        url, query = _azure(url, values.get("api_version", ""), model=model)
    headers = list(deployment.headers)
    aws: Aws | None = None
    key = secrets.get(KEY, "")
    match deployment.auth:
        case "sigv4" if not keyed:
            aws = Aws(
                Credentials(
                    values["aws_access_key_id"],
                    values["aws_secret_access_key"],
                    values.get("aws_session_token", ""),
                ),
                values["region"],
            )
        case "bearer" | "sigv4":
            if key:
                headers.append(("authorization", f"Bearer {key}"))
        case "x-api-key" | "api-key" | "x-goog-api-key" | "api-subscription-key":
            if key:
                headers.append((deployment.auth, key))
        case "query":
            if key:
                query = "&".join(filter(None, (query, f"key={quote(key, safe='')}")))
        case "none":
            pass
    return Endpoint(url, tuple(headers), query, aws)


def _unfit(deployment: Deployment, name: str, *, given: bool) -> f.KeyRejected:
    param, written = PARAMS[name], dict(deployment.params).get(name)
    where = f" ({written})" if isinstance(written, KeyRef) else ""
    if given:
        return f.KeyRejected(f"the provider's setting {name}{where} is not {param.expected}")
    return f.KeyRejected(f"the provider's setting {name}{where} is missing: {param.expected}")


def _azure(url: str, version: str, *, model: str) -> tuple[str, str]:
    """The base URL and query of Azure's several APIs, whichever of its addresses was configured.

    Source: Azure OpenAI REST API reference (`/openai/v1`, and `/openai/deployments/NAME` with a date),
    Azure AI Foundry's model inference API (`/models`).
    """
    path = urlsplit(url).path
    if path.endswith("/models"):
        return url, f"api-version={version or FOUNDRY_VERSION}"
    if "/deployments/" in path:
        return url, f"api-version={version or DEPLOYMENTS_VERSION}"
    dated = bool(_DATED.fullmatch(version)) and not path.endswith("/openai/v1")
    root = url.removesuffix("/openai/v1").removesuffix("/openai")
    if not dated:
        # `preview` and `latest` are versions of this API; a date is of the other.
        asked = "" if _DATED.fullmatch(version) else version
        return f"{root}/openai/v1", f"api-version={asked}" if asked else ""
    return f"{root}/openai/deployments/{quote(model, safe='')}", f"api-version={version}"
