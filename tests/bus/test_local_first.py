"""What stays in the process, what leaves it, and who is chosen."""

import contextvars

import pytest

from breakwater_gateway.runtime.bus import BusError, Handler, Message, NoResponders
from breakwater_gateway.runtime.local_first import LocalFirst
from breakwater_gateway.runtime.memory_bus import MemoryBus, MemoryHub, MemorySubscription
from breakwater_protocol.subjects import Subjects

pytestmark = pytest.mark.anyio


@pytest.fixture
def hub() -> MemoryHub:
    return MemoryHub(choose=lambda _: 0, max_message=1_000)


@pytest.fixture
def wire(hub: MemoryHub) -> MemoryBus:
    """The bus below: cut off, only what stays in the process arrives."""
    return MemoryBus("process", hub)


@pytest.fixture
def bus(wire: MemoryBus) -> LocalFirst:
    return LocalFirst(wire, Subjects())


async def test_what_is_served_here_needs_no_connection(bus: LocalFirst, wire: MemoryBus) -> None:
    await bus.subscribe("bw.v1.work.w1", lambda m: bus.publish(m.reply, m.data))
    await bus.subscribe("bw.v1.chat.*", lambda m: bus.publish(m.reply, m.data), queue="router")
    wire.cut_off()
    assert (await bus.ask("bw.v1.work.w1", b"1", timeout_s=1)).data == b"1"
    assert (await bus.ask("bw.v1.chat.acme", b"2", timeout_s=1)).data == b"2"
    assert bus.delivered == 4


@pytest.mark.parametrize(
    "subject", ["bw.v1.evt.alert.x", "bw.v1.hb.worker.w1", "bw.v1.cancel.r1", "$SRV.PING"]
)
async def test_what_all_must_hear_goes_over_the_wire(
    bus: LocalFirst, hub: MemoryHub, subject: str
) -> None:
    here: list[Message] = []
    there: list[Message] = []
    other = MemoryBus("other", hub)
    await bus.subscribe(subject, here.append)
    await other.subscribe(subject, there.append)
    bus.publish(subject, b"x")
    await bus.flush()
    await hub.settled()
    assert (len(here), len(there), bus.delivered) == (1, 1, 0)


async def test_members_of_a_group_here_take_turns(bus: LocalFirst) -> None:
    heard: list[int] = []

    def member(n: int) -> Handler:
        return lambda _: heard.append(n)

    for n in range(3):
        await bus.subscribe("bw.v1.chat.*", member(n), queue="router")
    for _ in range(6):
        bus.publish("bw.v1.chat.acme")
    await bus.flush()
    assert heard == [0, 1, 2, 0, 1, 2]


async def test_a_draining_member_is_not_chosen(bus: LocalFirst, hub: MemoryHub) -> None:
    stays: list[Message] = []
    leaves: list[Message] = []
    await bus.subscribe("bw.v1.chat.*", stays.append, queue="router")
    leaving = await bus.subscribe("bw.v1.chat.*", leaves.append, queue="router")
    await leaving.drain()
    for _ in range(4):
        bus.publish("bw.v1.chat.acme")
    await bus.flush()
    assert (len(stays), len(leaves)) == (4, 0)


async def test_when_the_last_member_here_has_gone_others_serve(
    bus: LocalFirst, hub: MemoryHub
) -> None:
    other = MemoryBus("other", hub)
    mine = await bus.subscribe("bw.v1.chat.*", lambda m: bus.publish(m.reply, b"me"), queue="q")
    await other.subscribe("bw.v1.chat.*", lambda m: other.publish(m.reply, b"other"), queue="q")
    assert (await bus.ask("bw.v1.chat.a", timeout_s=1)).data == b"me"
    await mine.drain()
    assert (await bus.ask("bw.v1.chat.a", timeout_s=1)).data == b"other"


async def test_the_size_limit_is_for_what_leaves(bus: LocalFirst) -> None:
    await bus.subscribe("bw.v1.work.w1", lambda m: bus.publish(m.reply, m.data))
    assert len((await bus.ask("bw.v1.work.w1", bytes(5_000), timeout_s=1)).data) == 5_000
    with pytest.raises(BusError):
        bus.publish("bw.v1.work.w2", bytes(5_000))


async def test_handlers_do_not_run_in_the_publishers_context(bus: LocalFirst) -> None:
    request: contextvars.ContextVar[str] = contextvars.ContextVar("request", default="none")
    seen: list[str] = []
    await bus.subscribe("bw.v1.work.w1", lambda _: seen.append(request.get()))
    token = request.set("mine")
    bus.publish("bw.v1.work.w1")
    await bus.flush()
    request.reset(token)
    assert seen == ["none"]


async def test_a_closed_inbox_hears_nothing_from_here(bus: LocalFirst) -> None:
    heard: list[Message] = []
    inbox = bus.open_inbox(heard.append)
    inbox.close()
    bus.publish(inbox.subject, b"late")
    await bus.flush()
    assert not heard


async def test_routes_are_forgotten_when_somebody_comes_or_goes(bus: LocalFirst) -> None:
    with pytest.raises(NoResponders):
        await bus.ask("bw.v1.work.w1", timeout_s=1)
    mine = await bus.subscribe("bw.v1.work.w1", lambda m: bus.publish(m.reply))
    await bus.ask("bw.v1.work.w1", timeout_s=1)
    await mine.drain()
    with pytest.raises(NoResponders):
        await bus.ask("bw.v1.work.w1", timeout_s=1)


async def test_without_echo_what_leaves_is_heard_here_once(hub: MemoryHub) -> None:
    """As over a NATS connection that asked for no echo: the server sends nothing back."""

    class Deaf(MemoryBus):
        async def subscribe(
            self, subject: str, handler: Handler, *, queue: str = ""
        ) -> MemorySubscription:
            return await super().subscribe("unheard." + subject, handler, queue=queue)

    bus = LocalFirst(Deaf("process", hub), Subjects(), echo=False)
    here: list[Message] = []
    there: list[Message] = []
    await bus.subscribe("bw.v1.evt.alert.*", here.append)
    await bus.subscribe("bw.v1.evt.alert.*", here.append, queue="elsewhere")
    await MemoryBus("other", hub).subscribe("bw.v1.evt.alert.*", there.append)
    bus.publish("bw.v1.evt.alert.x", b"1", headers={"a": "b"})
    await bus.flush()
    await hub.settled()
    assert [(m.data, dict(m.headers)) for m in here] == [(b"1", {"a": "b"})]
    assert len(there) == 1
