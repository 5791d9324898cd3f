"""Which requests have a key in the cache, and which one."""

import json
from typing import Any

import msgspec
import pytest

from breakwater_gateway.cache.key import Key, NoKey, NotCached
from breakwater_gateway.config.model import CachePolicy, Deployment, Model, Semantic
from breakwater_gateway.router.eligible import Eligible
from breakwater_gateway.router.options import Options
from breakwater_gateway.router.requests import decode_request
from breakwater_protocol.chat import ChatRequest, EmbeddingsRequest, NativeRequest

DEPLOYMENT = Deployment("a", "openai", "gpt-4o", "openai", "https://api.openai.com/v1")
EXACT = CachePolicy(exact_s=60.0)
SEMANTIC = CachePolicy(exact_s=60.0, semantic=Semantic())
CHAT: dict[str, Any] = {
    "model": "main-model",
    "messages": [{"role": "user", "content": "hi"}],
    "temperature": 0,
}


def key(
    eligible: Eligible | None = None,
    *,
    policy: CachePolicy = EXACT,
    deployment: Deployment = DEPLOYMENT,
    tenant: str = "acme",
    api: str = "chat",
    options: Options | None = None,
    native: dict[str, str] | None = None,
    **fields: object,
) -> Key | NotCached:
    body = json.dumps({**CHAT, **fields}).encode()
    asked = decode_request(body, api=api, limit=1 << 20)
    assert isinstance(asked, ChatRequest | EmbeddingsRequest | NativeRequest)
    return (eligible or Eligible()).key(
        tenant=tenant,
        api=api,
        model=Model("main-model", (deployment,), cache=policy),
        asked=asked,
        body=body,
        options=options or Options(),
        native=native or {},
    )


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ({"options": Options(cache="off")}, "off"),
        ({"policy": CachePolicy(exact_s=0.0)}, "not_configured"),
        ({"temperature": None}, "sampled"),
        ({"temperature": 0.2}, "sampled"),
        ({"temperature": 0.9, "policy": SEMANTIC}, "sampled"),
        ({"policy": CachePolicy(exact_s=60.0, scope="user")}, "no_user"),
        ({"policy": CachePolicy(exact_s=60.0, scope="key")}, "no_key"),
        ({"web_search_options": {}}, "stateful"),
        ({"tools": [{"type": "web_search"}]}, "hosted_tools"),
    ],
)
def test_what_has_no_key_says_why(case: dict[str, Any], reason: NoKey) -> None:
    assert key(**case) == NotCached(reason)


@pytest.mark.parametrize(
    "case",
    [
        {},
        {"temperature": 0.9, "policy": CachePolicy(exact_s=60.0, sampled=True)},
        {"temperature": None, "policy": SEMANTIC},
        {"temperature": 0.3, "policy": SEMANTIC},
        {"policy": CachePolicy(exact_s=60.0, scope="user"), "options": Options(user="ann")},
        {"policy": CachePolicy(exact_s=60.0, scope="user"), "user": "ann"},
        {"policy": CachePolicy(exact_s=60.0, scope="key"), "options": Options(key="k1")},
    ],
)
def test_what_may_be_kept_has_a_key(case: dict[str, Any]) -> None:
    assert isinstance(key(**case), Key)


USER = CachePolicy(exact_s=60.0, scope="user")
KEY = CachePolicy(exact_s=60.0, scope="key")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({}, {"tenant": "umbrella"}),
        ({}, {"options": Options(cache_namespace="v2")}),
        ({}, {"native": {"anthropic-beta": "x"}}),
        ({}, {"deployment": msgspec.structs.replace(DEPLOYMENT, model="gpt-4o-mini")}),
        (
            {"policy": USER, "options": Options(user="ann")},
            {"policy": USER, "options": Options(user="bob")},
        ),
        ({"policy": USER, "user": "ann"}, {"policy": USER, "user": "bob"}),
        # The header counts where both are there: under virtual keys it is the key's own user.
        (
            {"policy": USER, "options": Options(user="ann"), "user": "bob"},
            {"policy": USER, "user": "bob"},
        ),
        (
            {"policy": KEY, "options": Options(key="k1", user="ann")},
            {"policy": KEY, "options": Options(key="k2", user="ann")},
        ),
        (
            {"policy": USER, "options": Options(user="k")},
            {"policy": KEY, "options": Options(key="k")},
        ),
        ({"policy": USER, "options": Options(user="ann")}, {"options": Options(user="ann")}),
    ],
)
def test_what_is_asked_elsewhere_or_by_another_has_another_key(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    eligible = Eligible()
    first, second = key(eligible, **one), key(eligible, **other)
    assert isinstance(first, Key)
    assert isinstance(second, Key)
    assert first.digest != second.digest
    assert first.partition != second.partition


def test_a_change_of_the_configuration_is_seen() -> None:
    eligible = Eligible()
    before = key(eligible)
    eligible.forget()
    assert key(eligible) == before
