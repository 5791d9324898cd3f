"""The real server killed, frozen, restarted and misused under a NatsBus."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Protocol

import pytest
from tests.conftest import NatsProcess

from breakwater_gateway.runtime.bus import (
    AskTimeout,
    BusClosed,
    BusError,
    BusOverloaded,
    BusUnreachable,
    Entry,
    JetStreamOff,
    Message,
    MessageTooLarge,
    NoResponders,
)
from breakwater_gateway.runtime.nats_bus import NatsBus, connect_nats
from breakwater_gateway.runtime.nats_connection import Watchdog

pytestmark = pytest.mark.anyio

StartServer = Callable[..., NatsProcess]

QUICK = Watchdog(every_s=0.05, tick_s=0.05, ticks=6, reconnecting_s=20.0)


class Connect(Protocol):
    def __call__(
        self,
        server: NatsProcess,
        *,
        on_closed: Callable[[str], None] | None = None,
        outbox_max: int = 1_000,
    ) -> Awaitable[NatsBus]: ...


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    buses: list[NatsBus] = []

    async def make(
        server: NatsProcess,
        *,
        on_closed: Callable[[str], None] | None = None,
        outbox_max: int = 1_000,
    ) -> NatsBus:
        bus = await connect_nats(
            server.url,
            name=f"test/{len(buses)}",
            role="test",
            on_closed=on_closed,
            watchdog=QUICK,
            outbox_max=outbox_max,
        )
        buses.append(bus)
        return bus

    yield make
    for bus in buses:
        await bus.close()


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(15):
        while not holds():  # noqa: ASYNC110 - what is awaited happens in another process
            await asyncio.sleep(0.01)


async def test_publishing_and_asking_go_on_after_the_server_was_killed(
    nats_server: StartServer, connect: Connect
) -> None:
    server = nats_server()
    asker, answerer = await connect(server), await connect(server)
    heard: list[bytes] = []
    back: list[str] = []
    asker.on_reconnect(lambda: back.append("asker"))
    answerer.on_reconnect(lambda: back.append("answerer"))
    await answerer.subscribe("a", lambda m: heard.append(m.data))
    await answerer.subscribe("echo", lambda m: answerer.publish(m.reply, m.data))
    server.kill()
    await until(lambda: not asker.connected and not answerer.connected)
    for n in range(100):
        asker.publish("a", b"%d" % n)
    with pytest.raises(AskTimeout):
        await asker.flush(0.05)
    server.start()
    await until(lambda: len(back) == 2)
    assert (await asker.ask("echo", b"again", timeout_s=5)).data == b"again"
    # Whoever came back first: what was sent before the other listened is lost, never reordered.
    asker.publish("a", b"last")
    await until(lambda: b"last" in heard)
    numbers = [int(body) for body in heard if body != b"last"]
    assert numbers == sorted(numbers)


async def test_what_was_published_while_away_is_sent_in_order(
    nats_server: StartServer, connect: Connect
) -> None:
    server = nats_server()
    bus = await connect(server)
    heard: list[bytes] = []
    await bus.subscribe("a", lambda m: heard.append(m.data))
    server.kill()
    await until(lambda: not bus.connected)
    for n in range(500):
        bus.publish("a", b"%d" % n)
    server.start()
    await until(lambda: len(heard) == 500)
    assert heard == [b"%d" % n for n in range(500)]


async def test_a_full_outbox_refuses_at_once(nats_server: StartServer, connect: Connect) -> None:
    server = nats_server()
    bus = await connect(server, outbox_max=10)
    server.kill()
    await until(lambda: not bus.connected)
    for _ in range(10):
        bus.publish("a")
    with pytest.raises(BusOverloaded):
        bus.publish("a")


async def test_subscribing_draining_and_closing_work_without_a_server(
    nats_server: StartServer, connect: Connect
) -> None:
    server = nats_server()
    bus = await connect(server)
    old = await bus.subscribe("old", lambda _: None)
    server.kill()
    await until(lambda: not bus.connected)
    heard: list[Message] = []
    await bus.subscribe("new", heard.append)
    await old.drain()
    server.start()
    await until(lambda: bus.connected)
    bus.publish("new")
    await until(lambda: len(heard) == 1)
    with pytest.raises(NoResponders):
        await bus.ask("old", timeout_s=5)
    server.kill()
    await until(lambda: not bus.connected)
    await bus.close()


@pytest.mark.parametrize("lost", [False, True], ids=["data kept", "data lost"])
async def test_a_watch_heals_after_the_server_was_killed(
    nats_server: StartServer, connect: Connect, lost: bool
) -> None:
    server = nats_server()
    bus, other = await connect(server), await connect(server)
    seen: list[tuple[str, bytes | None]] = []
    store = await bus.store("things")
    await store.put("a", b"1")
    await store.put("b", b"1")

    def note(entry: Entry) -> None:
        seen.append((entry.key, entry.value))

    await store.watch(note)
    assert sorted(seen, key=str) == [("a", b"1"), ("b", b"1")]
    seen.clear()
    server.kill()
    if lost:
        server.lose_data()
    server.start()
    theirs = await other.store("things")
    await until(lambda: other.connected)
    await theirs.put("c", b"1")
    await until(lambda: ("c", b"1") in seen)
    if lost:
        await until(lambda: ("a", None) in seen and ("b", None) in seen)
    else:
        assert ("a", b"1") in seen
        await theirs.delete("a")
        await until(lambda: ("a", None) in seen)


async def test_a_watch_hears_of_a_key_deleted_while_it_was_away(
    nats_server: StartServer, connect: Connect
) -> None:
    server = nats_server()
    bus = await connect(server)
    seen: list[tuple[str, bytes | None]] = []
    store = await bus.store("things")
    await store.create("gone", b"1", ttl_s=1)
    await store.watch(lambda e: seen.append((e.key, e.value)))
    server.kill()
    await until(lambda: not bus.connected)
    await asyncio.sleep(1.1)  # the value's life, by the server's clock
    server.start()
    # The server may hand the value out once more before it looks at its age.
    await until(lambda: seen[-1] == ("gone", None))


async def test_a_watch_heals_when_its_consumer_is_deleted(
    nats_server: StartServer, connect: Connect
) -> None:
    server = nats_server()
    bus = await connect(server)
    seen: list[tuple[str, bytes | None]] = []
    store = await bus.store("things")
    await store.watch(lambda e: seen.append((e.key, e.value)))
    jetstream = await bus.jetstream()
    names = await jetstream.request("CONSUMER.NAMES.KV_things", None, dict[str, object])
    consumers = names["consumers"]
    assert isinstance(consumers, list)
    assert len(consumers) == 1
    await jetstream.request(f"CONSUMER.DELETE.KV_things.{consumers[0]}", None, dict[str, object])
    await store.put("a", b"1")
    await until(lambda: ("a", b"1") in seen)


async def test_claims_go_on_after_the_server_lost_them(
    nats_server: StartServer, connect: Connect
) -> None:
    server = nats_server()
    bus = await connect(server)
    assert await bus.claim("probe.1", b"", ttl_s=60)
    assert not await bus.claim("probe.1", b"", ttl_s=60)
    server.kill()
    server.start()
    await until(lambda: bus.connected)
    assert await bus.claim("probe.1", b"", ttl_s=60)
    assert not await bus.claim("probe.1", b"", ttl_s=60)


async def test_a_deaf_connection_is_made_anew(nats_server: StartServer, connect: Connect) -> None:
    """The zombie: the client's read loop has ended, and it calls itself connected."""
    server = nats_server()
    bus = await connect(server)
    back = asyncio.Event()
    bus.on_reconnect(back.set)
    await bus.subscribe("echo", lambda m: bus.publish(m.reply, m.data))
    reading = bus._hot._client._reading_task
    assert reading is not None
    reading.cancel()
    with pytest.raises(AskTimeout):
        await bus.ask("echo", timeout_s=0.05)
    assert bus.connected
    async with asyncio.timeout(10):
        await back.wait()
    assert (await bus.ask("echo", b"x", timeout_s=5)).data == b"x"


async def test_a_flush_that_gave_up_does_not_make_the_connection_deaf(
    nats_server: StartServer, connect: Connect
) -> None:
    server = nats_server()
    bus = await connect(server)
    await bus.subscribe("echo", lambda m: bus.publish(m.reply, m.data))
    server.freeze()
    with pytest.raises(AskTimeout):
        await bus.flush(0.05)
    server.thaw()
    assert (await bus.ask("echo", b"x", timeout_s=5)).data == b"x"
    assert bus._hot._client.stats["reconnects"] == 0


async def test_a_frozen_server_is_noticed_and_forgiven(
    nats_server: StartServer, connect: Connect
) -> None:
    server = nats_server()
    bus = await connect(server)
    await bus.subscribe("echo", lambda m: bus.publish(m.reply, m.data))
    server.freeze()
    await until(lambda: not bus.connected)
    server.thaw()
    await until(lambda: bus.connected)
    assert (await bus.ask("echo", b"x", timeout_s=10)).data == b"x"


async def test_a_stalled_event_loop_is_not_taken_for_a_dead_server(
    nats_server: StartServer, connect: Connect
) -> None:
    server = nats_server()
    bus = await connect(server)
    stalled = asyncio.Event()

    def stall() -> None:
        time.sleep(2 * QUICK.ticks * QUICK.tick_s)
        stalled.set()

    for _ in range(3):
        stalled.clear()
        asyncio.get_running_loop().call_later(QUICK.every_s, stall)
        await stalled.wait()
    await bus.flush()
    assert bus._hot._client.stats["reconnects"] == 0


async def test_payload_and_headers_together_over_the_limit_do_not_close_the_connection(
    nats_server: StartServer, connect: Connect
) -> None:
    server = nats_server(max_payload="1MB")
    bus = await connect(server)
    heard: list[int] = []
    await bus.subscribe("a", lambda m: heard.append(len(m.data)))
    for headers in (300, 20_000):
        with pytest.raises(MessageTooLarge):
            bus.publish("a", bytes(1_048_576 - 200), headers={"breakwater-user": "u" * headers})
    many = {f"breakwater-property-{n}": "é" * 100 for n in range(60)}
    with pytest.raises(MessageTooLarge):
        bus.publish("a", bytes(bus.max_message - 12_000), headers=many)
    bus.publish("a", bytes(bus.max_message - 20_000), headers=many)
    bus.publish("a", bytes(bus.max_message))
    await until(lambda: len(heard) == 2)
    assert bus._hot._client.stats["reconnects"] == 0


async def test_a_connection_closed_for_good_is_reported(
    nats_server: StartServer, connect: Connect
) -> None:
    server = nats_server()
    gone: list[str] = []
    bus = await connect(server, on_closed=gone.append)
    # As nats-py does when the server says goodbye for good: payload, control line, credentials.
    await bus._hot._client.close()
    await until(lambda: len(gone) == 1)
    assert "NATS closed the connection" in gone[0]
    assert not bus.connected
    with pytest.raises(BusClosed):
        bus.publish("a")
    await bus.close()
    assert len(gone) == 1


async def test_trouble_with_the_second_connection_leaves_the_request_path_alone(
    nats_server: StartServer, connect: Connect
) -> None:
    server = nats_server()
    gone: list[str] = []
    bus = await connect(server, on_closed=gone.append)
    seen: list[str] = []
    store = await bus.store("things")
    await store.watch(lambda e: seen.append(e.key))
    assert bus._side is not None
    await bus._side._client.close()
    assert not bus._side.connected
    await until(lambda: bus._side is not None and bus._side.connected)
    await store.put("a", b"1")
    await until(lambda: "a" in seen)
    assert not gone
    assert bus.connected
    assert bus._hot._client.stats["reconnects"] == 0


async def test_a_message_that_slips_over_the_limit_leaves_a_working_bus_or_a_report(
    nats_server: StartServer, connect: Connect
) -> None:
    """Whether nats-py reads the server's last words or a reset first is chance."""
    server = nats_server()
    gone: list[str] = []
    back: list[bool] = []
    bus = await connect(server, on_closed=gone.append)
    bus.on_reconnect(lambda: back.append(True))
    await bus._hot._client.publish("a", bytes(8_000_000), headers={"a": "x" * 500_000})
    await until(lambda: bool(gone or back))
    if not gone:
        await bus.flush()


async def test_a_reply_subject_that_cannot_be_answered_is_none(
    nats_server: StartServer, connect: Connect
) -> None:
    """Anybody on the bus may ask; the answer must not fail in the actor's task."""
    server = nats_server()
    bus = await connect(server)
    replies: list[str] = []
    await bus.subscribe("a", lambda m: replies.append(m.reply))
    for reply in ("x..y", "x.*", ">"):
        await bus._hot._client.publish("a", b"", reply)
    await until(lambda: len(replies) == 3)
    assert replies == ["", "", ""]


async def test_an_unreachable_server_is_one_clear_sentence() -> None:
    with pytest.raises(BusUnreachable) as caught:
        await connect_nats("nats://user:secret@127.0.0.1:1", name="test", role="test")
    text = str(caught.value)
    assert "nats://127.0.0.1:1" in text
    assert "nats-server -js, or omit --nats" in text
    assert "secret" not in text


@pytest.mark.parametrize(
    "url", ["", "http://[", "nats://127.0.0.1:99999", "nats://no-such-host.invalid"]
)
async def test_a_bad_url_is_one_clear_sentence(url: str) -> None:
    with pytest.raises(BusUnreachable):
        await connect_nats(url, name="test", role="test")


async def test_something_else_on_the_port_is_one_clear_sentence() -> None:
    async def hello(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(hello, "127.0.0.1", 0) as listener:
        port = listener.sockets[0].getsockname()[1]
        with pytest.raises(BusUnreachable, match=str(port)):
            await connect_nats(f"nats://127.0.0.1:{port}", name="test", role="test")


async def test_of_several_servers_one_is_enough(nats_server: StartServer) -> None:
    server = nats_server()
    bus = await connect_nats(f"nats://127.0.0.1:1,{server.url}", name="test", role="test")
    await bus.flush()
    await bus.close()


async def test_patience_waits_for_a_server_that_comes_later(nats_server: StartServer) -> None:
    server = nats_server()
    server.kill()
    connecting = asyncio.ensure_future(
        connect_nats(server.url, name="test", role="test", patience_s=30)
    )
    await asyncio.sleep(0)
    server.start()
    bus = await connecting
    await bus.flush()
    await bus.close()


async def test_a_server_without_jetstream_is_named_with_the_mend(
    nats_server: StartServer, connect: Connect
) -> None:
    server = nats_server(jetstream=False)
    bus = await connect(server)
    with pytest.raises(JetStreamOff, match=f"{server.url} has JetStream off.*nats-server -js"):
        await bus.store("things")
    with pytest.raises(JetStreamOff, match="-js"):
        await bus.claim("probe", b"", ttl_s=1)
    await bus.flush()


async def test_credentials_without_their_package_are_explained(
    nats_server: StartServer, tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = nats_server()
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(BusError, match="nkeys"):
        await connect_nats(server.url, name="t", role="t", creds=server.directory / "none.creds")
