"""MemoryBus: NATS's semantics in one process, for tests and simulation.

Buses on one `MemoryHub` behave like connections to one server: wildcards, queue groups, no responders,
buckets with revisions and TTL, claims. Everything is delivered by `loop.call_soon` in the order it was
published, and every timer is the loop's, so under a virtual-time loop a run repeats exactly.
"""

import asyncio
import bisect
import itertools
import random
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final

from breakwater_gateway.runtime.bus import (
    NO_HEADERS,
    READ_MAX,
    AskTimeout,
    BusClosed,
    BusOverloaded,
    Entry,
    Handler,
    Message,
    MessageTooLarge,
    Stored,
    WrongRevision,
    check_bucket,
    check_claim,
    check_key,
    check_once,
    check_pattern,
    check_reply,
    check_subject,
    check_ttl,
    headers_size,
)
from breakwater_gateway.runtime.delivery import Deliveries, Guard, Inboxes, OpenInbox, ask_over
from breakwater_gateway.runtime.interest import Group, Interest, Member
from breakwater_gateway.runtime.telemetry import Log
from breakwater_protocol import headers as h

MESSAGE_MAX: Final = 8 * 1024 * 1024 - 16 * 1024
"""As on a server with `max_payload: 8MB`."""
OUTBOX_MAX: Final = 65_536
"""Messages that a bus keeps while it is cut off."""


class MemoryHub:
    """The server. `choose(n)` picks a queue group's member, by default at random."""

    def __init__(
        self,
        *,
        choose: Callable[[int], int] | None = None,
        max_message: int = MESSAGE_MAX,
        log: Log | None = None,
    ) -> None:
        self.max_message = max_message
        self.guard = Guard(log)
        self._choose = choose if choose is not None else random.Random().randrange  # noqa: S311
        self._interest = Interest()
        self._deliveries = Deliveries(self.guard)
        self._buckets: dict[str, _Bucket] = {}
        self._claims: dict[str, asyncio.TimerHandle] = {}
        self.wall: Callable[[], float] = time.time
        """The server's own clock: Unix seconds."""
        self.once: set[tuple[str, str]] = set()
        self.logs: dict[str, KeptLog] = {}
        self._buses = 0

    def number(self) -> int:
        self._buses += 1
        return self._buses

    def add(self, pattern: str, queue: str, handler: Handler) -> Member:
        return self._interest.add(pattern, queue, handler)

    def choose(self, choose: Callable[[int], int]) -> None:
        """Another way to pick a queue group's member, from now on."""
        self._choose = choose

    def remove(self, member: Member) -> None:
        self._interest.remove(member)

    def send(self, message: Message) -> None:
        route = self._interest.route(message.subject)
        if route is not None:
            for member in route.pick(self._pick):
                self._deliveries.push(member.handler, message)
        elif message.reply:
            asked = Message(message.reply, headers={h.NATS_STATUS: "503"})
            back = self._interest.route(message.reply)
            if back is not None:
                for member in back.pick(self._pick):
                    self._deliveries.push(member.handler, asked)

    async def settled(self) -> None:
        await self._deliveries.settled()

    def bucket(
        self, name: str, ttl_s: int | None, max_bytes: int, *, evicts: bool = False
    ) -> "_Bucket":
        bucket = self._buckets.get(name)
        if bucket is None:
            bucket = self._buckets[name] = _Bucket(self.guard)
        bucket.ttl_s = ttl_s
        bucket.max_bytes = max_bytes
        bucket.evicts = evicts
        return bucket

    def claim(self, subject: str, ttl_s: float) -> bool:
        if subject in self._claims:
            return False
        loop = asyncio.get_running_loop()
        self._claims[subject] = loop.call_later(ttl_s, self._claims.pop, subject, None)
        return True

    def kept_log(self, name: str, max_bytes: int | None) -> "KeptLog":
        log = self.logs.setdefault(name, KeptLog())
        if max_bytes is not None:
            log.max_bytes = max_bytes
        return log

    def _pick(self, group: Group) -> Member:
        return group.members[self._choose(len(group.members))]


class MemoryBus:
    def __init__(self, name: str, hub: MemoryHub | None = None) -> None:
        self.name = name
        self.hub = hub if hub is not None else MemoryHub()
        self.max_message = self.hub.max_message
        self._inboxes = Inboxes(f"_INBOX_memory.{self.hub.number()}")
        self.members: set[Member] = {self.hub.add(self._inboxes.pattern, "", self._answered)}
        self.watches: set[_MemoryWatch] = set()
        self._on_reconnect: list[Callable[[], None]] = []
        self._outbox: deque[Message] = deque()
        self.cut = False
        self._back = asyncio.Event()
        self._back.set()
        self._closed = False

    @property
    def connected(self) -> bool:
        return not self._closed and not self.cut

    @property
    def handler_failures(self) -> int:
        """Of all buses on the hub."""
        return self.hub.guard.failures

    def on_reconnect(self, callback: Callable[[], None]) -> None:
        self._on_reconnect.append(callback)

    def publish(
        self,
        subject: str,
        data: bytes = b"",
        *,
        reply: str = "",
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> None:
        if self._closed:
            raise BusClosed(f"{self.name} is closed")
        check_reply(subject, reply)
        size = len(data) + headers_size(headers)
        if size > self.max_message:
            raise MessageTooLarge(f"{size} bytes to {subject[:200]}, {self.max_message} may be")
        message = Message(subject, data, reply, dict(headers) if headers else NO_HEADERS)
        if not self.cut:
            self.hub.send(message)
        elif len(self._outbox) < OUTBOX_MAX:
            self._outbox.append(message)
        else:
            raise BusOverloaded(f"{OUTBOX_MAX} messages wait for the connection")

    async def subscribe(
        self, subject: str, handler: Handler, *, queue: str = ""
    ) -> "MemorySubscription":
        if self._closed:
            raise BusClosed(f"{self.name} is closed")
        check_pattern(subject, queue)

        def hear(message: Message) -> None:
            if not self.cut and not self._closed:
                handler(message)

        member = self.hub.add(subject, queue, hear)
        self.members.add(member)
        return MemorySubscription(self, member)

    def open_inbox(self, handler: Handler) -> OpenInbox:
        if self._closed:
            raise BusClosed(f"{self.name} is closed")
        return self._inboxes.open(handler)

    async def ask(
        self,
        subject: str,
        data: bytes = b"",
        *,
        headers: Mapping[str, str] = NO_HEADERS,
        timeout_s: float,
    ) -> Message:
        return await ask_over(self, subject, data, headers, timeout_s)

    async def flush(self, timeout_s: float = 5.0) -> None:
        await self.reach(timeout_s)

    async def store(
        self,
        bucket: str,
        *,
        history: int = 1,
        ttl_s: int | None = None,
        max_bytes: int = -1,
        evicts: bool = False,
    ) -> "MemoryStore":
        check_bucket(bucket, history, ttl_s)
        await self.reach()
        return MemoryStore(self, self.hub.bucket(bucket, ttl_s, max_bytes, evicts=evicts))

    async def claim(self, subject: str, data: bytes, *, ttl_s: float) -> bool:
        check_claim(subject, ttl_s)
        if len(data) > self.max_message:
            raise MessageTooLarge(f"{len(data)} bytes to {subject}, {self.max_message} may be")
        await self.reach()
        return self.hub.claim(subject, ttl_s)

    async def event_log(self, name: str, subject: str = "", *, max_bytes: int = -1) -> "MemoryLog":
        check_bucket(name, 1, None)
        if subject:
            check_pattern(subject)
        await self.reach()
        return MemoryLog(self, self.hub.kept_log(name, max_bytes if subject else None))

    async def publish_once(
        self, key: str, subject: str, data: bytes, *, headers: Mapping[str, str] = NO_HEADERS
    ) -> bool:
        check_once(key, subject)
        size = len(data) + headers_size(headers)
        if size > self.max_message:
            raise MessageTooLarge(f"{size} bytes to {subject[:200]}, {self.max_message} may be")
        await self.reach()
        if (key, subject) in self.hub.once:
            return False
        self.hub.once.add((key, subject))
        self.hub.send(Message(subject, data, headers=dict(headers)))
        return True

    async def close(self) -> None:
        if not self._closed:
            await self.hub.settled()
            self._closed = True
            for watch in tuple(self.watches):
                await watch.close()
            for member in self.members:
                self.hub.remove(member)
            self.members.clear()
            self._back.set()

    def cut_off(self) -> None:
        """Lose the connection: what comes is lost, what is published waits."""
        self.cut = True
        self._back.clear()

    def mend(self) -> None:
        """Get it back: what waited is sent, watches re-read, `on_reconnect` is called."""
        self.cut = False
        self._back.set()
        while self._outbox:
            self.hub.send(self._outbox.popleft())
        for watch in tuple(self.watches):
            watch.reread()
        self.hub.guard.run(self._on_reconnect)

    async def reach(self, timeout_s: float = 5.0) -> None:
        """A round trip to the hub. Raises `AskTimeout` while cut off, `BusClosed` after."""
        if self.cut:
            try:
                async with asyncio.timeout(timeout_s):
                    await self._back.wait()
            except TimeoutError:
                raise AskTimeout(f"{self.name} has no connection") from None
        if self._closed:
            raise BusClosed(f"{self.name} is closed")
        await asyncio.sleep(0)

    def _answered(self, message: Message) -> None:
        if not self.cut and not self._closed:
            self._inboxes.deliver(message)


class MemorySubscription:
    __slots__ = ("_bus", "_member")

    def __init__(self, bus: MemoryBus, member: Member) -> None:
        self._bus = bus
        self._member = member

    async def drain(self) -> None:
        self._bus.hub.remove(self._member)
        await self._bus.hub.settled()
        self._bus.members.discard(self._member)


class KeptLog:
    """What one log holds; tests cut it short to roll it back."""

    def __init__(self) -> None:
        self.max_bytes = -1
        self.messages: list[Stored] = []
        self._size = 0

    def last(self, subject: str) -> Stored | None:
        return next((each for each in reversed(self.messages) if each.subject == subject), None)

    def trim(self, subject: str, keep: int) -> None:
        seqs = [each.seq for each in self.messages if each.subject == subject]
        gone = set(seqs[: max(0, len(seqs) - keep)])
        self.messages[:] = [each for each in self.messages if each.seq not in gone]

    def append(self, subject: str, data: bytes, *, expected: int, at: float) -> int:
        last = self.last(subject)
        found = last.seq if last is not None else 0
        if found != expected:
            raise WrongRevision(f"{subject}: the last sequence is {found}, not {expected}")
        self._size += len(data)
        while 0 <= self.max_bytes < self._size and self.messages:
            self._size -= len(self.messages.pop(0).data)
        seq = self.messages[-1].seq + 1 if self.messages else 1
        self.messages.append(Stored(subject, seq, data, at))
        return seq


def _nobody(_: Message) -> None:
    return


class MemoryLog:
    def __init__(self, bus: MemoryBus, kept: KeptLog) -> None:
        self._bus = bus
        self._kept = kept

    async def append(
        self, subject: str, data: bytes, *, expected: int, timeout_s: float = 2.0
    ) -> int:
        check_subject(subject)
        if len(data) > self._bus.max_message:
            raise MessageTooLarge(f"{len(data)} bytes, {self._bus.max_message} may be")
        await self._bus.reach(timeout_s)
        return self._kept.append(subject, data, expected=expected, at=self._bus.hub.wall())

    async def last(self, subject: str) -> Stored | None:
        check_pattern(subject)
        await self._bus.reach()
        member = Member(subject, "", _nobody)
        wanted = (e for e in reversed(self._kept.messages) if member.matches(e.subject.split(".")))
        return next(wanted, None)

    async def read(self, pattern: str, *, after: int, limit: int = READ_MAX) -> list[Stored]:
        check_pattern(pattern)
        await self._bus.reach()
        messages, member = self._kept.messages, Member(pattern, "", _nobody)
        start = bisect.bisect_right(messages, after, key=lambda each: each.seq)
        wanted = (each for each in messages[start:] if member.matches(each.subject.split(".")))
        return list(itertools.islice(wanted, min(limit, READ_MAX)))

    async def trim(self, subject: str, *, keep: int) -> None:
        check_subject(subject)
        await self._bus.reach()
        self._kept.trim(subject, keep)


class _Kept:
    __slots__ = ("expiry", "revision", "value")

    def __init__(self, value: bytes, revision: int, expiry: asyncio.TimerHandle | None) -> None:
        self.value = value
        self.revision = revision
        self.expiry = expiry


class _Bucket:
    """Last values, their revisions and who watches."""

    def __init__(self, guard: Guard) -> None:
        self.guard = guard
        self.ttl_s: int | None = None
        self.max_bytes = -1
        self.evicts = False
        self.kept: dict[str, _Kept] = {}
        self.watchers: list[_MemoryWatch] = []
        self._revision = 0
        self._size = 0

    def write(self, key: str, value: bytes | None, ttl_s: int | None = None) -> int:
        old = self.kept.get(key)
        size = self._size - (len(key) + len(old.value) if old else 0)
        size += len(key) + len(value) if value is not None else 0
        if value is not None and self.evicts:
            self._evict(key, size)
            size = self._size - (len(key) + len(old.value) if old else 0) + len(key) + len(value)
        if value is not None and 0 <= self.max_bytes < size:
            raise BusOverloaded(f"the bucket is full: {self.max_bytes} bytes")
        if old is not None and old.expiry is not None:
            old.expiry.cancel()
        self._size = size
        self._revision += 1
        if value is None:
            self.kept.pop(key, None)
        else:
            lives_s = min((t for t in (ttl_s, self.ttl_s) if t is not None), default=None)
            expiry = None
            if lives_s is not None:
                expiry = asyncio.get_running_loop().call_later(lives_s, self.write, key, None)
            self.kept[key] = _Kept(value, self._revision, expiry)
        entry = Entry(key, value, self._revision)
        for watcher in tuple(self.watchers):
            watcher.tell(entry)
        return self._revision

    def _evict(self, writing: str, size: int) -> None:
        """What was written first goes, as on a server: no watch is told."""
        for key in sorted(self.kept, key=lambda key: self.kept[key].revision):
            if size <= self.max_bytes or self.max_bytes < 0:
                return
            if key != writing:
                gone = self.kept.pop(key)
                if gone.expiry is not None:
                    gone.expiry.cancel()
                self._size -= len(key) + len(gone.value)
                size -= len(key) + len(gone.value)


class MemoryStore:
    def __init__(self, bus: MemoryBus, bucket: _Bucket) -> None:
        self._bus = bus
        self._bucket = bucket

    async def get(self, key: str) -> Entry | None:
        check_key(key)
        await self._bus.reach()
        kept = self._bucket.kept.get(key)
        return None if kept is None else Entry(key, kept.value, kept.revision)

    async def put(self, key: str, value: bytes, *, ttl_s: int | None = None) -> int:
        self._check(key, value, ttl_s)
        await self._bus.reach()
        return self._bucket.write(key, value, ttl_s)

    async def create(self, key: str, value: bytes, *, ttl_s: int | None = None) -> int:
        self._check(key, value, ttl_s)
        await self._bus.reach()
        if key in self._bucket.kept:
            raise WrongRevision(f"{key} exists")
        return self._bucket.write(key, value, ttl_s)

    async def update(
        self, key: str, value: bytes, *, revision: int, ttl_s: int | None = None
    ) -> int:
        self._check(key, value, ttl_s)
        await self._bus.reach()
        kept = self._bucket.kept.get(key)
        if kept is None or kept.revision != revision:
            raise WrongRevision(f"{key} is not at revision {revision}")
        return self._bucket.write(key, value, ttl_s)

    async def delete(self, key: str, *, revision: int | None = None) -> None:
        check_key(key)
        await self._bus.reach()
        kept = self._bucket.kept.get(key)
        if revision is not None and (kept is None or kept.revision != revision):
            raise WrongRevision(f"{key} is not at revision {revision}")
        self._bucket.write(key, None)

    async def keys(self) -> list[str]:
        await self._bus.reach()
        return sorted(self._bucket.kept)

    async def load(self, below: str, handler: Callable[[Entry], None]) -> None:
        check_key(below)
        await self._bus.reach()
        for key, kept in tuple(self._bucket.kept.items()):
            if key.startswith(f"{below}."):
                self._bucket.guard.tell(handler, Entry(key, kept.value, kept.revision))

    async def watch(self, handler: Callable[[Entry], None]) -> "_MemoryWatch":
        await self._bus.reach()
        return _MemoryWatch(self._bus, self._bucket, handler)

    def _check(self, key: str, value: bytes, ttl_s: int | None) -> None:
        check_key(key)
        check_ttl(ttl_s)
        if len(value) > self._bus.max_message:
            raise MessageTooLarge(f"{len(value)} bytes for {key}, {self._bus.max_message} may be")


class _MemoryWatch:
    def __init__(self, bus: MemoryBus, bucket: _Bucket, handler: Callable[[Entry], None]) -> None:
        self._bus = bus
        self._bucket = bucket
        self._handler = handler
        self._alive: dict[str, int] = {}
        bucket.watchers.append(self)
        bus.watches.add(self)
        self.reread()

    def tell(self, entry: Entry) -> None:
        if not self._bus.cut:
            if entry.value is None:
                self._alive.pop(entry.key, None)
            else:
                self._alive[entry.key] = entry.revision
            self._bucket.guard.tell(self._handler, entry)

    def reread(self) -> None:
        for key in [key for key in self._alive if key not in self._bucket.kept]:
            self.tell(Entry(key, None, self._alive[key]))
        for key, kept in tuple(self._bucket.kept.items()):
            self.tell(Entry(key, kept.value, kept.revision))

    async def close(self) -> None:
        if self in self._bucket.watchers:
            self._bucket.watchers.remove(self)
        self._bus.watches.discard(self)


__all__ = ["MESSAGE_MAX", "MemoryBus", "MemoryHub"]
