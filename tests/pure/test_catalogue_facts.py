"""The catalogue against what other projects know of the same providers.

Facts come from `data/catalogue.json` in the folder that BREAKWATER_SHARED names; without it nothing runs.
"""

import os
import re
from pathlib import Path
from typing import Final

import msgspec
import pytest
from msgspec import Struct

from breakwater_gateway.config.catalogue import find
from breakwater_gateway.config.provider import PARAMS, Provider, needs

SHARED: Final = Path(os.environ.get("BREAKWATER_SHARED", str(Path(__file__).parents[3] / "shared")))
FACTS: Final = SHARED / "data" / "catalogue.json"

pytestmark = pytest.mark.skipif(
    not FACTS.is_file(), reason="BREAKWATER_SHARED names no folder with data/catalogue.json"
)


class Row(Struct):
    id: str
    base_url: str | None
    base_urls: dict[str, str]
    env: list[str]
    api: str | None
    litellm_id: str = ""
    portkey_id: str = ""


ROWS: Final = msgspec.json.decode(FACTS.read_bytes(), type=list[Row]) if FACTS.is_file() else []

LEFT_OUT: Final = {
    "github-copilot": "wants a token that is exchanged for GitHub's first",
}

OTHER_URL: Final = {
    "inference": "its API is at api.inference.net; the row has the site",
    "lm_studio": "the row has another provider's URL: LM Studio listens on this machine",
    "azure": "the path after the resource depends on the version of the API",
    "azure-ai-inference": "the row has GitHub's retired host; Foundry's is the resource's own",
    "bailing": "the row has the path of chat completions too",
    "cohere": "api.cohere.com is the documented host",
    "datarobot": "the row has the path of chat completions too",
    "docker_model_runner": "Docker Desktop's documented TCP port is 12434",
    "google-vertex": "the row has the host of Cloud Storage",
    "neon": "the row has a variable for scheme and host",
    "bedrock_mantle": "the region is a setting",
    "cortex": "Snowflake's OpenAI-compatible API; the row has the older one",
}
"""Row -> why ours differs."""

OTHER_ENTRY: Final = {
    "ollama_chat": "Ollama's own API, where `ollama` is its OpenAI-compatible one"
}
"""Name -> why it leads elsewhere."""

OTHER_VARIABLE: Final = {
    "302ai": "302AI_API_KEY is no name that a shell can set",
    "ollama": "its variable holds an address",
    "lm_studio": "on this machine without a key",
    "lmstudio": "on this machine without a key",
    "hosted_vllm": "on this machine without a key",
    "llamafile": "on this machine without a key",
    "lemonade": "on this machine without a key",
    "docker_model_runner": "on this machine without a key",
}

OTHER_WIRE: Final = {
    "perplexity-agent": "responses",
    "azure-ai-inference": "azure",
    "google-vertex-anthropic": "anthropic",
}
"""Row -> ours, where the row says OpenAI's or has a name of its own."""


def known() -> list[tuple[Row, Provider]]:
    found = [(row, find(row.id)) for row in ROWS]
    return [(row, provider) for row, provider in found if provider is not None]


def plain(url: str) -> str:
    """Settings as `*`, without the slash and the version at the end."""
    url = re.sub(r"\$?\{[^}]*\}", "*", url.rstrip("/")).replace("localhost", "127.0.0.1")
    return re.sub(r"/v1(beta)?$", "", url)


def test_whatever_has_a_url_and_a_key_is_in_the_catalogue_or_left_out_for_a_reason() -> None:
    missing = {
        row.id
        for row in ROWS
        if row.api in {"openai", "anthropic"} and row.base_url and row.env and not find(row.id)
    }
    assert missing - set(LEFT_OUT) == set()


def test_all_names_of_a_provider_lead_to_one_entry() -> None:
    for row, provider in known():
        for name in {row.litellm_id, row.portkey_id} - {"", *OTHER_ENTRY}:
            assert find(name) is provider, name


def test_base_urls_agree() -> None:
    differing = set()
    for row, provider in known():
        theirs = {plain(url) for url in (*row.base_urls.values(), row.base_url or "") if url}
        if theirs and plain(provider.base_url) not in theirs:
            differing.add(row.id)
    assert differing == set(OTHER_URL)


def test_variables_agree() -> None:
    differing = set()
    for row, provider in known():
        ours = set(provider.key_variables)
        own = dict(provider.variables)
        for name in needs(provider.base_url, provider.wire, provider.auth, keyed=False):
            ours |= set(own.get(name, PARAMS[name].variables))
        if row.env and not ours & set(row.env):
            differing.add(row.id)
    assert differing == set(OTHER_VARIABLE)


def test_dialects_agree() -> None:
    differing = {
        row.id: provider.wire for row, provider in known() if row.api and provider.wire != row.api
    }
    assert differing == OTHER_WIRE


def test_nothing_is_left_out_that_is_there() -> None:
    assert not {name for name in LEFT_OUT if find(name)}
