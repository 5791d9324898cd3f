"""NATS users map to tenants by subject permission, as ops/nats/users/tenants.conf has it."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import nats
import pytest
from nats.aio.msg import Msg
from tests.protocol.fake_gateway import NatsServer

pytestmark = [pytest.mark.anyio, pytest.mark.nats]

CONF = Path(__file__).parents[2] / "ops" / "nats" / "users" / "tenants.conf"


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[NatsServer]:
    given = {"GATEWAY_PASSWORD": "of-the-gateway", "ACME_PASSWORD": "of-acme"}
    os.environ.update(given)
    server = NatsServer(tmp_path, CONF.read_text())
    try:
        server.start()
        yield server
    finally:
        server.stop()
        for name in given:
            del os.environ[name]


async def test_a_tenants_user_asks_for_its_tenant_and_for_no_other(guarded: NatsServer) -> None:
    refused: list[str] = []

    async def on_error(error: Exception) -> None:
        refused.append(str(error).lower())

    address = guarded.url.removeprefix("nats://")
    gateway = await nats.connect(f"nats://gateway:of-the-gateway@{address}")
    heard: asyncio.Queue[str] = asyncio.Queue()

    async def hear(message: Msg) -> None:
        heard.put_nowait(message.subject)
        await message.respond(b"{}")

    await gateway.subscribe("bw.v1.>", cb=hear)
    await gateway.flush()
    acme = await nats.connect(
        f"nats://acme:of-acme@{address}",
        inbox_prefix="_INBOX_client",
        error_cb=on_error,
    )
    assert (await acme.request("bw.v1.chat.acme", b"{}", timeout=5)).data == b"{}"
    for subject in ("bw.v1.chat.other", "bw.v1.work.w1", "bw.v1.ledger.p0.lease", "$KV.bw_keys.x"):
        await acme.publish(subject, b"{}")
    await acme.flush()
    assert (await acme.request("bw.v1.models.acme", b"", timeout=5)).data == b"{}"
    assert [heard.get_nowait() for _ in range(heard.qsize())] == [
        "bw.v1.chat.acme",
        "bw.v1.models.acme",
    ]
    assert len([said for said in refused if "permissions violation" in said]) == 4
    await acme.close()
    await gateway.close()
