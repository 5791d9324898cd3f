"""What only the memory bus has: choice from outside, a connection that can be cut, one order."""

import asyncio

import pytest

from breakwater_gateway.runtime.bus import AskTimeout, BusOverloaded, Entry, Handler, Message
from breakwater_gateway.runtime.memory_bus import OUTBOX_MAX, MemoryBus, MemoryHub

pytestmark = pytest.mark.anyio


async def test_the_member_of_a_group_is_chosen_from_outside() -> None:
    hub = MemoryHub(choose=lambda count: count - 1)
    bus = MemoryBus("test", hub)
    heard: list[int] = []

    def member(n: int) -> Handler:
        return lambda _: heard.append(n)

    for n in range(3):
        await bus.subscribe("a", member(n), queue="q")
    bus.publish("a")
    bus.publish("a")
    await hub.settled()
    assert heard == [2, 2]


async def test_all_deliveries_follow_the_order_of_publishing() -> None:
    hub = MemoryHub()
    buses = [MemoryBus(f"test/{n}", hub) for n in range(3)]
    heard: list[bytes] = []
    for bus in buses:
        await bus.subscribe(f"to.{bus.name}".replace("/", "."), lambda m: heard.append(m.data))
    for n in range(30):
        buses[n % 3].publish(f"to.test.{(n + 1) % 3}", b"%d" % n)
    await hub.settled()
    assert heard == [b"%d" % n for n in range(30)]


async def test_two_that_answer_each_other_for_ever_do_not_stop_the_loop() -> None:
    bus = MemoryBus("test")
    heard: list[str] = []

    def answer(message: Message) -> None:
        heard.append(message.subject)
        bus.publish("pong" if message.subject == "ping" else "ping")

    await bus.subscribe("ping", answer)
    await bus.subscribe("pong", answer)
    bus.publish("ping")
    for _ in range(100):
        await asyncio.sleep(0)
    await bus.close()
    assert len(heard) > 50
    assert heard[:4] == ["ping", "pong", "ping", "pong"]


async def test_a_bus_that_is_cut_off_sends_later_and_misses_what_came() -> None:
    hub = MemoryHub()
    cut, other = MemoryBus("cut", hub), MemoryBus("other", hub)
    here: list[Message] = []
    there: list[Message] = []
    back: list[bool] = []
    cut.on_reconnect(lambda: back.append(True))
    await cut.subscribe("to.cut", here.append)
    await other.subscribe("to.other", there.append)
    cut.cut_off()
    assert not cut.connected
    other.publish("to.cut", b"lost")
    cut.publish("to.other", b"late")
    with pytest.raises(AskTimeout):
        await cut.flush(0.01)
    await hub.settled()
    assert not there
    cut.mend()
    await hub.settled()
    assert [m.data for m in there] == [b"late"]
    assert not here
    assert back == [True]


async def test_its_outbox_is_bounded() -> None:
    bus = MemoryBus("test")
    bus.cut_off()
    for _ in range(OUTBOX_MAX):
        bus.publish("a")
    with pytest.raises(BusOverloaded):
        bus.publish("a")


async def test_a_watch_catches_up_after_a_cut() -> None:
    hub = MemoryHub()
    cut, other = MemoryBus("cut", hub), MemoryBus("other", hub)
    mine, theirs = await cut.store("things"), await other.store("things")
    await theirs.put("old", b"1")
    seen: list[tuple[str, bytes | None]] = []

    def note(entry: Entry) -> None:
        seen.append((entry.key, entry.value))

    await mine.watch(note)
    cut.cut_off()
    await theirs.delete("old")
    await theirs.put("new", b"1")
    assert seen == [("old", b"1")]
    cut.mend()
    assert seen == [("old", b"1"), ("old", None), ("new", b"1")]
