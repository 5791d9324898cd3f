"""What every bus promises: the same tests on memory, on a real server, and local-first over both."""

import asyncio
import itertools
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from breakwater_gateway.runtime.bus import (
    AskTimeout,
    Bus,
    BusClosed,
    BusError,
    BusOverloaded,
    Entry,
    EventLog,
    Message,
    MessageTooLarge,
    NoResponders,
    WrongRevision,
)
from breakwater_gateway.runtime.local_first import LocalFirst
from breakwater_gateway.runtime.memory_bus import MemoryBus, MemoryHub
from breakwater_gateway.runtime.nats_bus import connect_nats
from breakwater_protocol.subjects import Subjects

pytestmark = pytest.mark.anyio

Connect = Callable[[], Awaitable[Bus]]


@pytest.fixture(params=["memory", "nats", "local-first memory", "local-first nats"])
async def connect(request: pytest.FixtureRequest) -> AsyncIterator[Connect]:
    """Makes buses that reach each other: one connection each, as of one process each."""
    kind: str = request.param
    hub = MemoryHub()
    url = request.getfixturevalue("nats_url") if "nats" in kind else ""
    buses: list[Bus] = []

    async def make() -> Bus:
        name = f"test/{len(buses)}"
        bus: Bus = await connect_nats(url, name=name, role="test") if url else MemoryBus(name, hub)
        if kind.startswith("local-first"):
            bus = LocalFirst(bus, Subjects())
        buses.append(bus)
        return bus

    yield make
    for bus in buses:
        await bus.close()


@pytest.fixture
async def bus(connect: Connect) -> Bus:
    return await connect()


@pytest.fixture
def root() -> str:
    """Subjects of this test's own: the server is shared."""
    return f"t{secrets.token_hex(6)}"


@pytest.fixture
def bucket(root: str) -> str:
    return f"bucket_{root}"


class Heard:
    """A handler that remembers, and can be waited for."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self._more = asyncio.Event()

    def __call__(self, message: Message) -> None:
        self.messages.append(message)
        self._more.set()

    @property
    def bodies(self) -> list[bytes]:
        return [message.data for message in self.messages]

    async def count(self, count: int) -> list[Message]:
        async with asyncio.timeout(5):
            while len(self.messages) < count:
                self._more.clear()
                await self._more.wait()
        return self.messages


class Seen:
    """The same for a watch."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self._more = asyncio.Event()

    def __call__(self, entry: Entry) -> None:
        self.entries.append(entry)
        self._more.set()

    async def until(self, key: str, value: bytes | None) -> Entry:
        async with asyncio.timeout(5):
            while True:
                for entry in self.entries:
                    if (entry.key, entry.value) == (key, value):
                        return entry
                self._more.clear()
                await self._more.wait()


async def settle(*buses: Bus) -> None:
    """What was published has reached its handlers here and elsewhere."""
    for _ in range(2):
        for bus in buses:
            await bus.flush()
            inbox = Heard()
            opened = bus.open_inbox(inbox)
            bus.publish(opened.subject)
            await inbox.count(1)
            opened.close()


async def test_messages_arrive_in_the_order_they_were_published(bus: Bus, root: str) -> None:
    heard = Heard()
    await bus.subscribe(f"{root}.a", heard)
    for n in range(1_000):
        bus.publish(f"{root}.a", b"%d" % n)
    await heard.count(1_000)
    assert heard.bodies == [b"%d" % n for n in range(1_000)]


async def test_a_message_carries_its_subject_reply_and_headers(connect: Connect, root: str) -> None:
    near, far = await connect(), await connect()
    heard = Heard()
    await near.subscribe(f"{root}.a", heard)
    sent = {"breakwater-user": "Zoë", "traceparent": "00-1-2-3"}
    for bus in (near, far):
        bus.publish(f"{root}.a", b"\x00\xff", reply=f"{root}.r", headers=sent)
    for message in await heard.count(2):
        assert message.subject == f"{root}.a"
        assert message.data == b"\x00\xff"
        assert message.reply == f"{root}.r"
        assert dict(message.headers) == sent


async def test_headers_changed_after_publishing_are_sent_as_they_were(bus: Bus, root: str) -> None:
    heard = Heard()
    await bus.subscribe(f"{root}.a", heard)
    headers = {"breakwater-user": "before"}
    bus.publish(f"{root}.a", headers=headers)
    headers["breakwater-user"] = "after"
    assert (await heard.count(1))[0].headers["breakwater-user"] == "before"


@pytest.mark.parametrize(
    ("pattern", "matches"),
    [
        ("a.b", ["a.b"]),
        ("a.*", ["a.b", "a.c"]),
        ("*.b", ["a.b"]),
        ("a.>", ["a.b", "a.c", "a.b.c"]),
        (">", ["a.b", "a.c", "a.b.c", "a"]),
        ("a.*.c", ["a.b.c"]),
        ("a.b.c.>", []),
    ],
)
async def test_wildcards_stand_for_one_token_or_for_the_rest(
    connect: Connect, root: str, pattern: str, matches: list[str]
) -> None:
    near, far = await connect(), await connect()
    heard = Heard()
    await near.subscribe(f"{root}.{pattern}", heard)
    for subject in ("a.b", "a.c", "a.b.c", "a"):
        far.publish(f"{root}.{subject}")
    await settle(far, near)
    assert [message.subject for message in heard.messages] == [f"{root}.{m}" for m in matches]


async def test_a_queue_group_gets_each_message_once(connect: Connect, root: str) -> None:
    first, second = await connect(), await connect()
    heard = [Heard() for _ in range(4)]
    for bus, handlers in ((first, heard[:2]), (second, heard[2:])):
        for handler in handlers:
            await bus.subscribe(f"{root}.work", handler, queue="workers")
    for n in range(200):
        (first, second)[n % 2].publish(f"{root}.work", b"%d" % n)
    await settle(first, second)
    got = sorted(int(body) for handler in heard for body in handler.bodies)
    assert got == list(range(200))


async def test_everybody_outside_a_queue_group_hears_too(connect: Connect, root: str) -> None:
    bus = await connect()
    member, other, observer = Heard(), Heard(), Heard()
    await bus.subscribe(f"{root}.work", member, queue="workers")
    await bus.subscribe(f"{root}.work", other, queue="auditors")
    await bus.subscribe(f"{root}.>", observer)
    bus.publish(f"{root}.work", b"x")
    await settle(bus)
    assert (member.bodies, other.bodies, observer.bodies) == ([b"x"], [b"x"], [b"x"])


async def test_an_observer_does_not_keep_a_message_from_who_serves_it(
    connect: Connect, root: str
) -> None:
    near, far = await connect(), await connect()
    observer, server = Heard(), Heard()
    await near.subscribe(f"{root}.>", observer)
    await far.subscribe(f"{root}.work", server, queue="workers")
    near.publish(f"{root}.work", b"x")
    await settle(near, far)
    assert (observer.bodies, server.bodies) == ([b"x"], [b"x"])


async def test_an_event_is_heard_by_all_everywhere_once(connect: Connect, root: str) -> None:
    near, far = await connect(), await connect()
    here, there = Heard(), Heard()
    subject = f"bw.v1.evt.alert.{root}"
    await near.subscribe(subject, here)
    await far.subscribe("bw.v1.evt.alert.*", there)
    near.publish(subject, b"x")
    await settle(near, far)
    assert here.bodies == [b"x"]
    assert [m.data for m in there.messages if m.subject == subject] == [b"x"]


async def test_ask_gets_the_reply(connect: Connect, root: str) -> None:
    near, far = await connect(), await connect()
    await near.subscribe(f"{root}.echo", lambda m: near.publish(m.reply, m.data + b"!"))
    for bus in (near, far):
        reply = await bus.ask(f"{root}.echo", b"hey", timeout_s=5)
        assert reply.data == b"hey!"


async def test_replies_go_to_who_asked(connect: Connect, root: str) -> None:
    near, far = await connect(), await connect()
    await near.subscribe(f"{root}.echo", lambda m: near.publish(m.reply, m.data))
    asked = [
        bus.ask(f"{root}.echo", b"%d" % n, timeout_s=5)
        for n, bus in zip(range(100), itertools.cycle((near, far)), strict=False)
    ]
    assert [reply.data for reply in await asyncio.gather(*asked)] == [b"%d" % n for n in range(100)]


async def test_asking_nobody_fails_at_once(bus: Bus, root: str) -> None:
    with pytest.raises(NoResponders, match=root):
        await bus.ask(f"{root}.nobody", timeout_s=60)


async def test_publishing_with_a_reply_to_nobody_is_answered_by_no_responders(
    bus: Bus, root: str
) -> None:
    heard = Heard()
    inbox = bus.open_inbox(heard)
    bus.publish(f"{root}.nobody", b"x", reply=inbox.subject)
    assert (await heard.count(1))[0].no_responders


async def test_an_empty_reply_is_not_no_responders(bus: Bus, root: str) -> None:
    await bus.subscribe(f"{root}.quiet", lambda m: bus.publish(m.reply))
    assert not (await bus.ask(f"{root}.quiet", timeout_s=5)).no_responders


async def test_asking_the_silent_times_out(bus: Bus, root: str) -> None:
    await bus.subscribe(f"{root}.silent", lambda _: None)
    with pytest.raises(AskTimeout, match=root):
        await bus.ask(f"{root}.silent", timeout_s=0.05)


async def test_an_inbox_hears_many_until_it_is_closed(connect: Connect) -> None:
    near, far = await connect(), await connect()
    heard, other = Heard(), Heard()
    inbox, second = near.open_inbox(heard), near.open_inbox(other)
    for n in range(3):
        far.publish(inbox.subject, b"far %d" % n)
    await heard.count(3)
    inbox.close()
    inbox.close()
    near.publish(inbox.subject, b"late")
    far.publish(inbox.subject, b"late")
    far.publish(second.subject, b"other")
    await other.count(1)
    await settle(near, far)
    assert heard.bodies == [b"far 0", b"far 1", b"far 2"]
    assert other.bodies == [b"other"]


async def test_an_oversized_message_is_refused_and_harms_nobody(bus: Bus, root: str) -> None:
    heard = Heard()
    inbox = bus.open_inbox(heard)
    with pytest.raises(MessageTooLarge):
        bus.publish(f"{root}.a", bytes(bus.max_message + 1))
    with pytest.raises(MessageTooLarge):
        bus.publish(f"{root}.a", bytes(bus.max_message - 50), headers={"breakwater-user": "u" * 50})
    bus.publish(inbox.subject, bytes(bus.max_message))
    assert len((await heard.count(1))[0].data) == bus.max_message
    assert bus.connected


BAD_SUBJECTS = [
    "",
    "a..b",
    ".a",
    "a.",
    "a.*",
    "a.>",
    "*",
    ">",
    "a b",
    "a\r\nPUB x 0",
    "a\tb",
    "\ud800",
]


@pytest.mark.parametrize("subject", [*BAD_SUBJECTS, "x" * 3_001, "é" * 1_501])
async def test_an_impossible_subject_is_refused(bus: Bus, subject: str) -> None:
    with pytest.raises(BusError):
        bus.publish(subject, b"x")
    assert bus.connected


@pytest.mark.parametrize("reply", [*BAD_SUBJECTS[1:], "x" * 3_900])
async def test_an_impossible_reply_subject_is_refused(bus: Bus, root: str, reply: str) -> None:
    heard = Heard()
    await bus.subscribe(f"{root}.a", heard)
    with pytest.raises(BusError):
        bus.publish(f"{root}.a", b"x", reply=reply)
    await settle(bus)
    assert not heard.messages


@pytest.mark.parametrize("pattern", ["", "a..b", "a.", "a b", ">.a", "a.>.b", "a*", "a\n"])
async def test_an_impossible_subscription_is_refused(bus: Bus, pattern: str) -> None:
    with pytest.raises(BusError):
        await bus.subscribe(pattern, lambda _: None)
    with pytest.raises(BusError):
        await bus.subscribe("a", lambda _: None, queue="a b")


@pytest.mark.parametrize(
    "headers",
    [{"": "x"}, {"a b": "x"}, {"a:b": "x"}, {"a": "x\r\nb: y"}, {"é": "x"}, {"a": "\x00"}],
)
async def test_impossible_headers_are_refused(bus: Bus, root: str, headers: dict[str, str]) -> None:
    heard = Heard()
    await bus.subscribe(f"{root}.a", heard)
    with pytest.raises(BusError):
        bus.publish(f"{root}.a", b"x", headers=headers)
    await settle(bus)
    assert not heard.messages


async def test_a_handler_that_raises_is_counted_and_takes_nothing_down(bus: Bus, root: str) -> None:
    heard = Heard()

    def fail(message: Message) -> None:
        heard(message)
        raise RuntimeError("boom")

    await bus.subscribe(f"{root}.a", fail)
    inbox = bus.open_inbox(fail)
    before = bus.handler_failures
    bus.publish(f"{root}.a", b"1")
    bus.publish(inbox.subject, b"2")
    bus.publish(f"{root}.a", b"3")
    await heard.count(3)
    await settle(bus)
    assert bus.handler_failures == before + 3


async def test_draining_hands_over_what_was_received(connect: Connect, root: str) -> None:
    near, far = await connect(), await connect()
    for sender in (near, far):
        heard = Heard()
        subscription = await near.subscribe(f"{root}.a", heard, queue="q")
        for n in range(500):
            sender.publish(f"{root}.a", b"%d" % n)
        await sender.flush()
        await subscription.drain()
        assert heard.bodies == [b"%d" % n for n in range(500)]
        with pytest.raises(NoResponders):
            await near.ask(f"{root}.a", timeout_s=5)
        with pytest.raises(NoResponders):
            await far.ask(f"{root}.a", timeout_s=5)


async def test_a_drained_member_loses_nothing_of_its_group(connect: Connect, root: str) -> None:
    """Messages keep coming while a member leaves: each is served by somebody."""
    near, far = await connect(), await connect()
    stays, leaves = Heard(), Heard()
    await near.subscribe(f"{root}.a", stays, queue="q")
    leaving = await near.subscribe(f"{root}.a", leaves, queue="q")

    async def send() -> None:
        for n in range(600):
            (near, far)[n % 2].publish(f"{root}.a", b"%d" % n)
            if n % 20 == 0:
                await asyncio.sleep(0)

    sending = asyncio.ensure_future(send())
    await asyncio.sleep(0)
    await leaving.drain()
    left_with = len(leaves.messages)
    await sending
    await settle(near, far)
    got = sorted(int(body) for body in stays.bodies + leaves.bodies)
    assert got == list(range(600))
    assert len(leaves.messages) == left_with


async def test_draining_twice_is_harmless(bus: Bus, root: str) -> None:
    subscription = await bus.subscribe(f"{root}.a", lambda _: None)
    await subscription.drain()
    await subscription.drain()


async def test_a_closed_bus_says_so(connect: Connect, root: str) -> None:
    bus = await connect()
    await bus.close()
    await bus.close()
    assert not bus.connected
    with pytest.raises(BusClosed):
        bus.publish(f"{root}.a")
    with pytest.raises(BusClosed):
        await bus.subscribe(f"{root}.a", lambda _: None)


async def test_closing_sends_what_was_published(connect: Connect, root: str) -> None:
    near, far = await connect(), await connect()
    heard = Heard()
    await near.subscribe(f"{root}.a", heard)
    for n in range(100):
        far.publish(f"{root}.a", b"%d" % n)
    await far.close()
    await heard.count(100)


# Buckets


async def test_a_bucket_keeps_the_last_value_of_a_key(connect: Connect, bucket: str) -> None:
    near, far = await connect(), await connect()
    store, other = await near.store(bucket), await far.store(bucket)
    assert await store.get("a.b") is None
    first = await store.put("a.b", b"1")
    second = await other.put("a.b", b"2")
    assert second > first
    assert await store.get("a.b") == Entry("a.b", b"2", second)
    await other.put("c=2F", b"")
    assert await store.keys() == ["a.b", "c=2F"]
    found = await store.get("c=2F")
    assert found is not None
    assert found.value == b""


async def test_a_deleted_key_is_gone_and_can_be_created_again(bus: Bus, bucket: str) -> None:
    store = await bus.store(bucket)
    await store.put("k", b"1")
    await store.delete("k")
    assert await store.get("k") is None
    assert await store.keys() == []
    await store.create("k", b"2")
    assert await store.keys() == ["k"]
    await store.delete("never-there")


async def test_a_key_is_deleted_at_its_last_revision_alone_where_one_is_named(
    bus: Bus, bucket: str
) -> None:
    store = await bus.store(bucket)
    first = await store.put("k", b"1")
    second = await store.put("k", b"2")
    with pytest.raises(WrongRevision):
        await store.delete("k", revision=first)
    assert await store.keys() == ["k"]
    await store.delete("k", revision=second)
    assert await store.keys() == []
    await store.create("k", b"3")


async def test_only_one_creates_a_key(connect: Connect, bucket: str) -> None:
    stores = [await (await connect()).store(bucket) for _ in range(2)]
    results = await asyncio.gather(
        *(stores[n % 2].create("leader", b"%d" % n) for n in range(20)), return_exceptions=True
    )
    assert len([r for r in results if isinstance(r, int)]) == 1
    assert len([r for r in results if isinstance(r, WrongRevision)]) == 19


async def test_an_update_needs_the_last_revision(bus: Bus, bucket: str) -> None:
    store = await bus.store(bucket)
    first = await store.create("k", b"1")
    second = await store.update("k", b"2", revision=first)
    with pytest.raises(WrongRevision):
        await store.update("k", b"3", revision=first)
    assert await store.get("k") == Entry("k", b"2", second)


async def test_a_lease_expires_unless_it_is_renewed(bus: Bus, bucket: str) -> None:
    store = await bus.store(bucket)
    seen = Seen()
    watch = await store.watch(seen)
    kept = await store.create("kept", b"me", ttl_s=1)
    await store.create("lost", b"me", ttl_s=1)
    await store.update("kept", b"me", revision=kept, ttl_s=60)
    await seen.until("lost", None)
    assert await store.get("lost") is None
    assert (await store.get("kept")) is not None
    assert await store.keys() == ["kept"]
    await store.create("lost", b"other", ttl_s=60)
    await watch.close()


async def test_values_of_a_bucket_with_a_ttl_expire(bus: Bus, bucket: str) -> None:
    store = await bus.store(bucket, ttl_s=1)
    seen = Seen()
    watch = await store.watch(seen)
    await store.put("k", b"1")
    await seen.until("k", None)
    assert await store.get("k") is None
    await watch.close()


@pytest.mark.parametrize("ttl_s", [0, -1])
async def test_an_impossible_ttl_is_refused(bus: Bus, bucket: str, ttl_s: int) -> None:
    store = await bus.store(bucket)
    with pytest.raises(BusError):
        await store.create("k", b"1", ttl_s=ttl_s)


@pytest.mark.parametrize("key", ["", "a..b", ".a", "a.", "a b", "*", ">", "a.*", "é", "a\n"])
async def test_an_impossible_key_is_refused(bus: Bus, bucket: str, key: str) -> None:
    store = await bus.store(bucket)
    with pytest.raises(BusError):
        await store.put(key, b"1")
    with pytest.raises(BusError):
        await store.get(key)


async def test_a_watch_tells_what_is_there_and_then_what_changes(
    connect: Connect, bucket: str
) -> None:
    near, far = await connect(), await connect()
    store, other = await near.store(bucket), await far.store(bucket)
    for n in range(300):
        await store.put(f"k{n}", b"old")
    await store.delete("k0")
    seen = Seen()
    watch = await other.watch(seen)
    assert {e.key for e in seen.entries if e.value == b"old"} == {f"k{n}" for n in range(1, 300)}
    revision = await store.put("k7", b"new")
    assert (await seen.until("k7", b"new")).revision == revision
    await store.delete("k8")
    await seen.until("k8", None)
    await watch.close()
    count = len(seen.entries)
    await store.put("k9", b"unheard")
    await settle(near, far)
    assert len(seen.entries) == count


async def test_what_lies_below_a_key_is_loaded_once(connect: Connect, bucket: str) -> None:
    near, far = await connect(), await connect()
    store, other = await near.store(bucket), await far.store(bucket)
    for n in range(300):
        await store.put(f"a.{n}", str(n).encode())
        if n < 10:
            await store.put(f"ab.{n}", b"another's")
    await store.put("a", b"not below")
    await store.delete("a.0")
    seen = Seen()
    await other.load("a", seen)
    assert {e.key: e.value for e in seen.entries} == {
        f"a.{n}": str(n).encode() for n in range(1, 300)
    }
    await other.load("nothing", seen)
    assert len(seen.entries) == 299


async def test_a_watcher_that_raises_goes_on_watching(bus: Bus, bucket: str) -> None:
    store = await bus.store(bucket)
    seen = Seen()

    def fail(entry: Entry) -> None:
        seen(entry)
        raise RuntimeError("boom")

    watch = await store.watch(fail)
    before = bus.handler_failures
    await store.put("a", b"1")
    await store.put("b", b"2")
    await seen.until("b", b"2")
    assert bus.handler_failures == before + 2
    await watch.close()


async def test_a_bucket_may_be_asked_for_again_with_other_limits(bus: Bus, bucket: str) -> None:
    store = await bus.store(bucket)
    await store.put("k", b"1")
    again = await bus.store(bucket, history=5, max_bytes=1_000_000)
    assert (await again.get("k")) is not None


async def test_a_full_bucket_refuses_and_keeps_what_it_has(bus: Bus, bucket: str) -> None:
    store = await bus.store(bucket, max_bytes=10_000)
    await store.put("k", b"1")
    put = [store.put(f"big{n}", bytes(2_000)) for n in range(20)]
    results = await asyncio.gather(*put, return_exceptions=True)
    refused = [r for r in results if isinstance(r, BusOverloaded)]
    assert 0 < len(refused) < 20
    assert (await store.get("k")) is not None


# Logs


async def log_of(bus: Bus, root: str) -> EventLog:
    return await bus.event_log(f"LOG_{root}", f"{root}.log.*")


async def test_a_log_keeps_what_is_appended_in_order(connect: Connect, root: str) -> None:
    near, far = await log_of(await connect(), root), await log_of(await connect(), root)
    seq = 0
    for n in range(5):
        seq = await near.append(f"{root}.log.a", b"%d" % n, expected=seq)
    other = await far.append(f"{root}.log.b", b"b", expected=0)
    found = await far.read(f"{root}.log.a", after=0)
    assert [(each.subject, each.data) for each in found] == [
        (f"{root}.log.a", b"%d" % n) for n in range(5)
    ]
    assert found[-1].seq == seq < other
    assert all(a.seq < b.seq and 0 < a.at <= b.at for a, b in itertools.pairwise(found))
    last = await far.last(f"{root}.log.a")
    assert last == found[-1]
    assert await far.last(f"{root}.log.c") is None
    newest = await far.last(f"{root}.log.*")
    assert newest is not None
    assert (newest.subject, newest.seq) == (f"{root}.log.b", other)


async def test_an_append_behind_another_s_is_refused(connect: Connect, root: str) -> None:
    near, far = await log_of(await connect(), root), await log_of(await connect(), root)
    subject = f"{root}.log.a"
    first = await near.append(subject, b"1", expected=0)
    for expected in (0, first + 1):
        with pytest.raises(WrongRevision):
            await far.append(subject, b"x", expected=expected)
    second = await far.append(subject, b"2", expected=first)
    with pytest.raises(WrongRevision):
        await near.append(subject, b"x", expected=first)
    assert [each.data for each in await near.read(subject, after=0)] == [b"1", b"2"]
    assert second > first


async def test_of_many_who_append_at_once_one_wins(connect: Connect, root: str) -> None:
    logs = [await log_of(await connect(), root) for _ in range(3)]
    results = await asyncio.gather(
        *(logs[n % 3].append(f"{root}.log.a", b"%d" % n, expected=0) for n in range(12)),
        return_exceptions=True,
    )
    assert sorted(isinstance(result, WrongRevision) for result in results) == [False] + [True] * 11


async def test_a_log_is_read_on_from_where_one_stopped(bus: Bus, root: str) -> None:
    log = await log_of(bus, root)
    seqs = dict.fromkeys("ab", 0)
    for n in range(300):
        name = "ab"[n % 2]
        seqs[name] = await log.append(f"{root}.log.{name}", b"%d" % n, expected=seqs[name])
    everything = await log.read(f"{root}.log.*", after=0)
    assert len(everything) == 256
    everything += await log.read(f"{root}.log.*", after=everything[-1].seq)
    assert [each.data for each in everything] == [b"%d" % n for n in range(300)]
    assert await log.read(f"{root}.log.*", after=everything[-1].seq) == []
    some = await log.read(f"{root}.log.b", after=everything[9].seq, limit=2)
    assert [each.data for each in some] == [b"11", b"13"]


async def test_an_empty_log_reads_as_empty(bus: Bus, root: str) -> None:
    log = await log_of(bus, root)
    assert await log.read(f"{root}.log.*", after=0) == []
    assert await log.last(f"{root}.log.a") is None


async def test_a_log_is_trimmed_to_its_last_messages(bus: Bus, root: str) -> None:
    log = await log_of(bus, root)
    seqs = dict.fromkeys("ab", 0)
    for n in range(10):
        name = "ab"[n % 2]
        seqs[name] = await log.append(f"{root}.log.{name}", b"%d" % n, expected=seqs[name])
    await log.trim(f"{root}.log.a", keep=2)
    found = await log.read(f"{root}.log.*", after=0)
    assert [each.data for each in found] == [b"1", b"3", b"5", b"6", b"7", b"8", b"9"]
    await log.trim(f"{root}.log.a", keep=2)
    assert await log.append(f"{root}.log.a", b"more", expected=seqs["a"]) > seqs["b"]


async def test_too_large_a_record_is_refused(bus: Bus, root: str) -> None:
    log = await log_of(bus, root)
    with pytest.raises(MessageTooLarge):
        await log.append(f"{root}.log.a", bytes(bus.max_message + 1), expected=0)


# What is published once


async def test_of_all_who_publish_once_one_does(connect: Connect, root: str) -> None:
    heard = Heard()
    buses = [await connect() for _ in range(3)]
    await buses[0].subscribe(f"{root}.evt.>", heard)
    await settle(*buses)
    done = await asyncio.gather(
        *(
            buses[n % 3].publish_once(
                "k=201", f"{root}.evt.soft", b"hello", headers={"ce-id": "k=201"}
            )
            for n in range(9)
        )
    )
    assert sorted(done) == [False] * 8 + [True]
    assert await buses[1].publish_once("k2", f"{root}.evt.soft", b"again")
    assert await buses[1].publish_once("k2", f"{root}.evt.other", b"another subject")
    await heard.count(3)
    await settle(*buses)
    assert heard.bodies == [b"hello", b"again", b"another subject"]
    assert heard.messages[0].subject == f"{root}.evt.soft"
    assert heard.messages[0].headers["ce-id"] == "k=201"


async def test_what_cannot_be_published_once_is_refused(bus: Bus, root: str) -> None:
    with pytest.raises(BusError):
        await bus.publish_once("a.b", f"{root}.evt.soft", b"")
    with pytest.raises(BusError):
        await bus.publish_once("a", f"{root}.*", b"")


async def test_a_full_bucket_that_evicts_drops_what_was_written_first(
    bus: Bus, bucket: str
) -> None:
    store = await bus.store(bucket, max_bytes=10_000, evicts=True)
    for n in range(20):
        await store.put(f"big{n}", bytes(2_000))
    kept = await store.keys()
    assert 0 < len(kept) < 6
    assert "big19" in kept
    assert "big0" not in kept


async def test_a_value_that_is_put_for_a_time_disappears(bus: Bus, bucket: str) -> None:
    store = await bus.store(bucket)
    seen = Seen()
    watch = await store.watch(seen)
    await store.put("k", b"1", ttl_s=1)
    assert (await store.get("k")) is not None
    await seen.until("k", None)
    assert await store.get("k") is None
    await watch.close()


# Claims


async def test_of_fifty_claims_one_wins(connect: Connect, root: str) -> None:
    buses = [await connect() for _ in range(5)]
    won = await asyncio.gather(
        *(buses[n % 5].claim(f"{root}.probe.1", b"me", ttl_s=60) for n in range(50))
    )
    assert won.count(True) == 1
    assert await buses[0].claim(f"{root}.probe.2", b"me", ttl_s=60)


async def test_a_claim_expires(bus: Bus, root: str) -> None:
    assert await bus.claim(f"{root}.probe", b"me", ttl_s=1)
    assert not await bus.claim(f"{root}.probe", b"me", ttl_s=1)
    # A claim is not announced: asking again is the only way to learn that it is free.
    async with asyncio.timeout(5):
        while not await bus.claim(f"{root}.probe", b"me", ttl_s=1):  # noqa: ASYNC110 - as said
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("ttl_s", [0, -1, 1e9])
async def test_an_impossible_claim_is_refused(bus: Bus, root: str, ttl_s: float) -> None:
    with pytest.raises(BusError):
        await bus.claim(f"{root}.probe", b"me", ttl_s=ttl_s)
    with pytest.raises(BusError):
        await bus.claim(f"{root}.*", b"me", ttl_s=1)
