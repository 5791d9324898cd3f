"""Actors as NATS micro services: what `nats micro` asks and reads (ADR-32)."""

from collections.abc import AsyncIterator

import msgspec
import pytest

from breakwater_gateway.runtime.bus import NoResponders
from breakwater_gateway.runtime.memory_bus import MemoryBus
from breakwater_gateway.runtime.micro import Endpoint, MicroService

pytestmark = pytest.mark.anyio


@pytest.fixture
def endpoint() -> Endpoint:
    return Endpoint("chat", "bw.v1.chat.*", queue="router")


@pytest.fixture
async def bus() -> AsyncIterator[MemoryBus]:
    bus = MemoryBus("test")
    yield bus
    await bus.close()


@pytest.fixture
async def service(bus: MemoryBus, endpoint: Endpoint) -> MicroService:
    service = MicroService(
        bus,
        "breakwater-router",
        "r1",
        "0.1.0",
        "Plans requests",
        [endpoint],
        started=0.0,
        metadata={"host": "h"},
    )
    await service.start()
    return service


async def asked(bus: MemoryBus, subject: str) -> dict[str, object]:
    reply = await bus.ask(subject, timeout_s=1)
    return msgspec.json.decode(reply.data, type=dict[str, object])


@pytest.mark.parametrize("tail", ["", ".breakwater-router", ".breakwater-router.r1"])
@pytest.mark.parametrize("verb", ["PING", "INFO", "STATS"])
async def test_every_form_of_every_question_is_answered(
    bus: MemoryBus, service: MicroService, verb: str, tail: str
) -> None:
    answer = await asked(bus, f"$SRV.{verb}{tail}")
    assert answer["type"] == f"io.nats.micro.v1.{verb.lower()}_response"
    assert (answer["name"], answer["id"]) == ("breakwater-router", "r1")
    assert answer["version"] == "0.1.0"
    assert answer["metadata"] == {"host": "h"}


async def test_info_lists_the_endpoints(bus: MemoryBus, service: MicroService) -> None:
    answer = await asked(bus, "$SRV.INFO")
    assert answer["description"] == "Plans requests"
    assert answer["endpoints"] == [
        {"name": "chat", "subject": "bw.v1.chat.*", "queue_group": "router", "metadata": {}}
    ]


async def test_stats_are_what_the_actor_counted(
    bus: MemoryBus, service: MicroService, endpoint: Endpoint
) -> None:
    endpoint.served(0.25)
    endpoint.served(0.75, error="overloaded")
    answer = await asked(bus, "$SRV.STATS")
    assert answer["started"] == "1970-01-01T00:00:00Z"
    assert answer["endpoints"] == [
        {
            "name": "chat",
            "subject": "bw.v1.chat.*",
            "queue_group": "router",
            "num_requests": 2,
            "num_errors": 1,
            "last_error": "overloaded",
            "processing_time": 1_000_000_000,
            "average_processing_time": 500_000_000,
        }
    ]


async def test_another_service_is_not_meant(bus: MemoryBus, service: MicroService) -> None:
    with pytest.raises(NoResponders):
        await bus.ask("$SRV.PING.other", timeout_s=1)


async def test_a_drained_service_is_silent(bus: MemoryBus, service: MicroService) -> None:
    await service.drain()
    with pytest.raises(NoResponders):
        await bus.ask("$SRV.PING", timeout_s=1)
