"""A router under `auth: keys`: keys open, bind and end, live."""

import asyncio
import json

import msgspec
import pytest
from msgspec.structs import replace
from tests.actors.stage import ANSWER, SUBJECTS, Gateway, config, stage
from tests.virtual_time import VirtualTimeLoop

from breakwater_gateway.cache.embed.through_gateway import ThroughGateway
from breakwater_gateway.config.model import Auth, CachePolicy, Config, Embeddings, Semantic
from breakwater_gateway.identity import issue
from breakwater_protocol.keys import BUCKET, KeyRecord

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}


def keyed(**auth: str) -> Config:
    facts = {"mode": "keys", **auth}
    return msgspec.structs.replace(config("a"), auth=msgspec.convert(facts, Auth))


async def keep(gateway: Gateway, record: KeyRecord) -> None:
    store = await gateway.bus.store(BUCKET)
    await store.put(record.id, msgspec.json.encode(record))
    await asyncio.sleep(0.1)


def made(**facts: object) -> tuple[KeyRecord, str]:
    return issue.made(
        random=b"r" * 32,
        id_random=b"i" * 6,
        now=0.0,
        **{"tenant": "t", **facts},  # type: ignore[arg-type]
    )


async def test_who_may_publish_on_a_tenants_subject_is_trusted_unless_told_otherwise() -> None:
    async with stage(keyed()) as gateway:
        caller = gateway.ask()
        (await gateway.provider.next_call()).reply(200, ANSWER)
        await caller.reply()
    async with stage(keyed(nats="key")) as gateway:
        error = await gateway.ask().error()
        assert (error["status"], error["code"]) == (401, "authentication")


async def test_a_key_binds_its_user_and_ends_when_it_is_revoked() -> None:
    record, secret = made(user="ann", org="acme", models=("m",))
    async with stage(keyed(nats="key")) as gateway:
        await keep(gateway, record)
        headers = {"breakwater-key": secret}
        caller = gateway.ask(headers=headers)
        (await gateway.provider.next_call()).reply(200, ANSWER)
        await caller.reply()
        await asyncio.sleep(0.1)
        (event,) = gateway.requests
        assert (event.user, event.org) == ("ann", "acme")
        assert secret not in msgspec.json.encode(gateway.requests + gateway.attempts).decode()

        spoofed = await gateway.ask(headers={**headers, "breakwater-user": "bob"}).error()
        assert (spoofed["status"], spoofed["code"]) == (403, "permission")
        elsewhere = await gateway.ask(tenant="other", headers=headers).error()
        assert elsewhere["status"] == 403
        assert len(gateway.requests) == 1

        await keep(gateway, issue.revoked(record, now=0.0))
        assert (await gateway.ask(headers=headers).error())["status"] == 401


async def test_the_semantic_cache_embeds_for_a_tenant_whose_key_it_does_not_have() -> None:
    record, secret = made(models=("m",))
    settings = keyed(nats="key")
    plain = settings.models["m"]
    clever = replace(plain, cache=CachePolicy(semantic=Semantic(shadow=0.0)))
    vectors = replace(config("e").models["m"], name="vectors")
    settings = replace(
        settings,
        models={"m": clever, "vectors": vectors},
        embeddings=Embeddings(model="vectors"),
    )
    vector = {"data": [{"object": "embedding", "index": 0, "embedding": [1.0, 0.0]}]}
    async with stage(settings) as gateway:
        gateway.embedder = ThroughGateway("vectors", gateway.bus, SUBJECTS)
        await gateway.add("cache")
        await keep(gateway, record)
        headers = {"breakwater-key": secret}
        caller = gateway.ask(headers=headers)
        call = await gateway.provider.next_call()
        assert call.deployment == "e"
        call.reply(200, json.dumps({**vector, "usage": {"prompt_tokens": 3}}).encode())
        (await gateway.provider.next_call()).reply(200, ANSWER)
        assert (await caller.reply()).headers["breakwater-cache"] == "miss"
        refused = await gateway.ask(api="embeddings", model="vectors", input="x").error()
        assert refused["status"] == 401
        foreign = await gateway.ask(
            api="embeddings", model="vectors", input="x", headers=headers
        ).error()
        assert foreign["status"] == 403


async def test_a_key_of_ours_is_looked_at_under_open_too() -> None:
    async with stage(config("a")) as gateway:
        _, secret = made()
        assert (await gateway.ask(headers={"breakwater-key": secret}).error())["status"] == 401
        caller = gateway.ask(headers={"authorization": "Bearer any"})
        (await gateway.provider.next_call()).reply(200, ANSWER)
        await caller.reply()
