"""A router under `auth: keys`: keys open, bind and end, live."""

import asyncio

import msgspec
import pytest
from tests.actors.stage import ANSWER, Gateway, config, stage
from tests.virtual_time import VirtualTimeLoop

from breakwater_gateway.config.model import Auth, Config
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


async def test_a_key_of_ours_is_looked_at_under_open_too() -> None:
    async with stage(config("a")) as gateway:
        _, secret = made()
        assert (await gateway.ask(headers={"breakwater-key": secret}).error())["status"] == 401
        caller = gateway.ask(headers={"authorization": "Bearer any"})
        (await gateway.provider.next_call()).reply(200, ANSWER)
        await caller.reply()
