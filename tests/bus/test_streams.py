"""Streams that can be created again safely, by anyone, at any time."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from breakwater_gateway.runtime.bus import Bus, BusOverloaded, JetStreamOff, WrongRevision
from breakwater_gateway.runtime.memory_bus import MemoryBus
from breakwater_gateway.runtime.nats_bus import connect_nats
from breakwater_gateway.runtime.streams import (
    EXPECTED_REVISION,
    JetStream,
    JetStreamError,
    StreamConfig,
    ensure_streams,
    events_stream,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
async def bus(nats_url: str) -> AsyncIterator[Bus]:
    bus = await connect_nats(nats_url, name="test", role="test")
    yield bus
    await bus.close()


@pytest.fixture
def config() -> StreamConfig:
    name = secrets.token_hex(6)
    # The server sets `max_bytes` aside, and this one is shared.
    return msgspec.structs.replace(
        events_stream(f"t{name}", max_bytes=10_000_000), name=f"EVT_{name}"
    )


async def stored(bus: Bus, config: StreamConfig) -> dict[str, Any]:
    reply = await JetStream(bus).request(f"STREAM.INFO.{config.name}", None, dict[str, Any])
    return {**reply["config"], "messages": reply["state"]["messages"]}


def test_events_are_kept_for_a_week_and_a_gibibyte() -> None:
    config = events_stream()
    assert config.name == "EVT"
    assert config.subjects == ("bw.v1.evt.>",)
    assert config.storage == "file"
    assert config.max_age == 7 * 86_400 * 1_000_000_000
    assert config.max_bytes == 1024**3


async def test_a_stream_may_be_created_by_many_at_once(bus: Bus, config: StreamConfig) -> None:
    await asyncio.gather(*(ensure_streams(bus, config) for _ in range(20)))
    assert (await stored(bus, config))["max_age"] == config.max_age


async def test_a_stream_that_differs_is_updated_and_keeps_its_messages(
    bus: Bus, config: StreamConfig
) -> None:
    await ensure_streams(bus, config)
    subject = config.subjects[0].replace(">", "alert.x")
    await JetStream(bus).publish(subject, b"1")
    changed = msgspec.structs.replace(config, max_age=config.max_age // 2, max_bytes=5_000_000)
    await asyncio.gather(*(ensure_streams(bus, changed) for _ in range(10)))
    now = await stored(bus, config)
    assert (now["max_age"], now["max_bytes"]) == (changed.max_age, changed.max_bytes)
    assert now["messages"] == 1


async def test_what_others_set_on_a_stream_is_left_alone(bus: Bus, config: StreamConfig) -> None:
    jetstream = JetStream(bus)
    theirs = msgspec.to_builtins(config) | {"description": "ours", "max_bytes": 1_000_000}
    await jetstream.request(f"STREAM.CREATE.{config.name}", theirs, dict[str, Any])
    await jetstream.ensure_stream(config)
    now = await stored(bus, config)
    assert (now["description"], now["max_bytes"]) == ("ours", config.max_bytes)


async def test_an_event_sent_twice_is_stored_once(bus: Bus, config: StreamConfig) -> None:
    await ensure_streams(bus, config)
    subject = config.subjects[0].replace(">", "alert.x")
    for _ in range(2):
        await JetStream(bus).publish(subject, b"1", headers={"Nats-Msg-Id": "one"})
    assert (await stored(bus, config))["messages"] == 1


async def test_a_change_that_the_server_refuses_is_an_error(bus: Bus, config: StreamConfig) -> None:
    await ensure_streams(bus, config)
    with pytest.raises(JetStreamError, match="storage"):
        await ensure_streams(bus, msgspec.structs.replace(config, storage="memory"))


async def test_replicas_that_one_node_cannot_hold_are_an_error(
    bus: Bus, config: StreamConfig
) -> None:
    with pytest.raises(JetStreamError, match="replicas"):
        await ensure_streams(bus, msgspec.structs.replace(config, num_replicas=3))


async def test_a_stream_larger_than_the_servers_room_is_explained(
    bus: Bus, config: StreamConfig
) -> None:
    with pytest.raises(JetStreamError, match="max_file_store"):
        await ensure_streams(bus, msgspec.structs.replace(config, max_bytes=1024**4))


async def test_an_expected_revision_that_is_not_the_last_is_refused(
    bus: Bus, config: StreamConfig
) -> None:
    await ensure_streams(bus, config)
    subject = config.subjects[0].replace(">", "alert.x")
    first = await JetStream(bus).publish(subject, b"1", headers={EXPECTED_REVISION: "0"})
    assert first == 1
    with pytest.raises(WrongRevision):
        await JetStream(bus).publish(subject, b"2", headers={EXPECTED_REVISION: "0"})


async def test_a_full_stream_that_refuses_says_overloaded(bus: Bus, config: StreamConfig) -> None:
    full = msgspec.structs.replace(config, max_msgs=1, discard="new")
    await ensure_streams(bus, full)
    subject = config.subjects[0].replace(">", "alert.x")
    await JetStream(bus).publish(subject, b"1")
    with pytest.raises(BusOverloaded):
        await JetStream(bus).publish(subject, b"2")


async def test_without_jetstream_the_error_names_the_mend() -> None:
    with pytest.raises(JetStreamOff, match="nats-server -js"):
        await ensure_streams(MemoryBus("test"), events_stream(), patience_s=0)
