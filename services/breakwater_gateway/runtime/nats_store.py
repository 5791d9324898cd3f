"""Buckets of last values over JetStream: NATS KV (ADR-8), with watches that heal.

A bucket with history 1 leaves a marker when a value expires, so that watches hear of it; with more
history the server would make the marker's life a floor for every TTL, so there values expire silently.
Reading and creating see through markers and tombstones alike.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

from msgspec import Struct
from msgspec import json as msgspec_json

from breakwater_gateway.runtime.bus import (
    AskTimeout,
    BusError,
    Entry,
    Handler,
    Message,
    MessageTooLarge,
    NoResponders,
    WrongRevision,
    check_key,
    check_ttl,
)
from breakwater_gateway.runtime.delivery import Askable, Guard
from breakwater_gateway.runtime.streams import (
    EXPECTED_REVISION,
    MESSAGE_TTL,
    SECOND_NS,
    STREAM_NOT_FOUND,
    TIMEOUT_S,
    Asks,
    JetStream,
    JetStreamError,
    StreamConfig,
)
from breakwater_protocol import headers as h

MARKER_TTL_S: Final = 60
"""How long the trace of an expired value stays for watchers that were away."""
TOMBSTONE_TTL_S: Final = 3_600
"""How long a deletion does."""
HEARTBEAT_S: Final = 2
PULL_S: Final = 30
BATCH: Final = 256
SILENCE_S: Final = 5.0
"""A consumer that missed two heartbeats is gone."""
MAKE_S: Final = 2.0
"""For a consumer to be made: while a cluster elects, asking again is quicker than waiting."""
RETRY_S: Final = (0.1, 2.0)
LOAD_S: Final = 60.0
"""For everything below a key: hundreds of megabytes, at most."""

OPERATION: Final = "KV-Operation"
MARKER: Final = "Nats-Marker-Reason"
SEQUENCE: Final = "Nats-Sequence"


class Side(Askable, Asks, Protocol):
    """The connection for what must not disturb the hot path."""

    @property
    def max_message(self) -> int: ...

    def new_subject(self) -> str:
        """Of this connection alone, and outside its inboxes."""
        ...

    async def listen(self, subject: str, handler: Handler) -> Callable[[], Awaitable[None]]:
        """Hear what the server sends to it, until the returned function is called."""
        ...


def bucket_stream(
    bucket: str,
    *,
    history: int,
    ttl_s: int | None,
    max_bytes: int,
    replicas: int,
    evicts: bool = False,
) -> StreamConfig:
    max_age = (ttl_s or 0) * SECOND_NS
    return StreamConfig(
        name=f"KV_{bucket}",
        subjects=(f"$KV.{bucket}.>",),
        max_msgs_per_subject=history,
        max_bytes=max_bytes,
        max_age=max_age,
        duplicate_window=min(120 * SECOND_NS, max_age or 120 * SECOND_NS),
        discard="old" if evicts else "new",
        num_replicas=replicas,
        allow_rollup_hdrs=True,
        deny_delete=True,
        allow_msg_ttl=True,
        subject_delete_marker_ttl=MARKER_TTL_S * SECOND_NS if history == 1 else 0,
    )


class _Consumer(Struct):
    num_pending: int = 0


class NatsStore:
    def __init__(
        self,
        side: Side,
        jetstream: JetStream,
        config: StreamConfig,
        *,
        guard: Guard,
        watches: "set[NatsWatch]",
    ) -> None:
        self.side = side
        self.jetstream = jetstream
        self.config = config
        self.guard = guard
        self.prefix = config.subjects[0].removesuffix(">")
        self.watches = watches
        """Every open watch of the connection, for whoever hears that it came back."""

    async def get(self, key: str) -> Entry | None:
        entry = await self._last(key)
        return entry if entry is not None and entry.value is not None else None

    async def put(self, key: str, value: bytes, *, ttl_s: int | None = None) -> int:
        check_ttl(ttl_s)
        return await self._write(
            key, value, {} if ttl_s is None else {MESSAGE_TTL: str(int(ttl_s))}
        )

    async def create(self, key: str, value: bytes, *, ttl_s: int | None = None) -> int:
        revision = 0
        # What is there may be only the trace of a value that was deleted or expired, and that trace
        # may expire in turn before we have replaced it.
        for _ in range(3):
            try:
                return await self.update(key, value, revision=revision, ttl_s=ttl_s)
            except WrongRevision:
                last = await self._last(key)
                if last is not None and last.value is not None:
                    raise WrongRevision(f"{key} exists at revision {last.revision}") from None
                revision = 0 if last is None else last.revision
        raise WrongRevision(f"others write {key} at the same time")

    async def update(
        self, key: str, value: bytes, *, revision: int, ttl_s: int | None = None
    ) -> int:
        check_ttl(ttl_s)
        headers = {EXPECTED_REVISION: str(revision)}
        if ttl_s is not None:
            headers[MESSAGE_TTL] = str(int(ttl_s))
        return await self._write(key, value, headers)

    async def delete(self, key: str, *, revision: int | None = None) -> None:
        headers = {OPERATION: "DEL", MESSAGE_TTL: str(TOMBSTONE_TTL_S)}
        if revision is not None:
            headers[EXPECTED_REVISION] = str(revision)
        await self._write(key, b"", headers)

    async def keys(self) -> list[str]:
        found: dict[str, bool] = {}

        def note(entry: Entry, _left: int) -> None:
            found[entry.key] = entry.value is not None

        reader = _Reader(self, note, values=False)
        try:
            await reader.open()
            await reader.loaded(TIMEOUT_S)
        finally:
            await reader.close()
        return sorted(key for key, alive in found.items() if alive)

    async def load(self, below: str, handler: Callable[[Entry], None]) -> None:
        check_key(below)

        def tell(entry: Entry, _left: int) -> None:
            if entry.value is not None:
                self.guard.tell(handler, entry)

        reader = _Reader(self, tell, below=f"{below}.>")
        try:
            await reader.open()
            await reader.loaded(LOAD_S)
        finally:
            await reader.close()

    async def watch(self, handler: Callable[[Entry], None]) -> "NatsWatch":
        """Returns once every present value was delivered."""
        watch = NatsWatch(self, handler)
        self.watches.add(watch)
        try:
            await watch.start()
        except BaseException:
            await watch.close()
            raise
        return watch

    async def _write(self, key: str, value: bytes, headers: dict[str, str]) -> int:
        check_key(key)
        if len(value) > self.side.max_message - 512:
            raise MessageTooLarge(f"{len(value)} bytes for {key}, {self.side.max_message} may be")
        try:
            return await self.jetstream.publish(f"{self.prefix}{key}", value, headers=headers)
        except NoResponders:
            # The bucket is gone with its server's disk; an empty one is better than none.
            await self.jetstream.ensure_stream(self.config)
        return await self.jetstream.publish(f"{self.prefix}{key}", value, headers=headers)

    async def _last(self, key: str) -> Entry | None:
        check_key(key)
        subject = f"$JS.API.DIRECT.GET.{self.config.name}.{self.prefix}{key}"
        try:
            message = await self.side.ask(subject, timeout_s=TIMEOUT_S)
        except NoResponders:
            await self.jetstream.ensure_stream(self.config)
            return None
        status = message.headers.get(h.NATS_STATUS, "")
        if status == "404":
            return None
        if status:
            raise BusError(f"{self.config.name}: reading {key} failed with status {status}")
        try:
            revision = int(message.headers[SEQUENCE])
        except (KeyError, ValueError):
            raise BusError(f"{self.config.name}: not a reply of JetStream") from None
        return Entry(key, None if _is_trace(message) else message.data, revision)


def _is_trace(message: Message) -> bool:
    return message.headers.get(OPERATION) in ("DEL", "PURGE") or MARKER in message.headers


class _Lost(BusError):
    """The consumer is gone; another has to be made."""


class _Reader:
    """One pull consumer over a bucket: what is there first, then what comes.

    Pulls are asked for in batches and end by themselves; heartbeats tell a quiet bucket from a
    consumer that vanished. Whatever goes wrong ends the reader, and its owner makes another.
    """

    def __init__(
        self,
        store: NatsStore,
        take: Callable[[Entry, int], None],
        *,
        values: bool = True,
        below: str = ">",
    ) -> None:
        """`below`: the keys that are read, as a pattern."""
        self._store = store
        self._below = below
        self._take = take
        self._values = values
        # Not an inbox: the server delivers stored messages under their own subject, so that nothing
        # but the subscription tells whose they are.
        self._subject = store.side.new_subject()
        self._name = self._subject.replace(".", "_")
        self._deafen: Callable[[], Awaitable[None]] | None = None
        self._left_of_pull = 0
        loop = asyncio.get_running_loop()
        self._loaded: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[str] = loop.create_future()
        self._silence = loop.call_later(SILENCE_S, self.end, "no heartbeat")

    async def open(self) -> None:
        store = self._store
        self._deafen = await store.side.listen(self._subject, self._hear)
        body = {
            "stream_name": store.config.name,
            "action": "create",
            "config": {
                "name": self._name,
                "deliver_policy": "last_per_subject",
                "filter_subject": f"{store.prefix}{self._below}",
                "ack_policy": "none",
                "replay_policy": "instant",
                "mem_storage": True,
                "num_replicas": 1,
                "headers_only": not self._values,
                "inactive_threshold": 2 * PULL_S * SECOND_NS,
            },
        }
        making = asyncio.ensure_future(self._make(body))
        # A request that fell into a reconnect has no answer: do not wait out its timeout.
        waits: set[asyncio.Future[Any]] = {making, self.ended}
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if not making.done():
            making.cancel()
            await asyncio.wait({making})
            raise _Lost(f"{store.config.name}: {self.ended.result()}")
        if making.result().num_pending == 0:
            self._load_done()
        self._pull()

    async def _make(self, body: object) -> _Consumer:
        store = self._store
        api = f"CONSUMER.CREATE.{store.config.name}.{self._name}"
        try:
            return await store.jetstream.request(api, body, _Consumer, timeout_s=MAKE_S)
        except JetStreamError as error:
            if error.code != STREAM_NOT_FOUND:
                raise
        await store.jetstream.ensure_stream(store.config)
        return await store.jetstream.request(api, body, _Consumer, timeout_s=MAKE_S)

    async def loaded(self, timeout_s: float) -> None:
        """Returns when all that was there was taken. Raises `AskTimeout` or the reader's end."""
        waits: set[asyncio.Future[Any]] = {self._loaded, self.ended}
        done, _ = await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if self._loaded in done:
            return
        if self.ended in done:
            raise _Lost(f"{self._store.config.name}: {self.ended.result()}")
        raise AskTimeout(f"{self._store.config.name} was not read within {timeout_s:g} s")

    def end(self, why: str) -> None:
        if not self.ended.done():
            self.ended.set_result(why)

    async def close(self) -> None:
        self._silence.cancel()
        self.end("closed")
        if self._deafen is not None:
            await self._deafen()
        api = f"$JS.API.CONSUMER.DELETE.{self._store.config.name}.{self._name}"
        with contextlib.suppress(BusError):  # it expires by itself
            self._store.side.publish(api)

    def _pull(self) -> None:
        self._left_of_pull = BATCH
        request = {
            "batch": BATCH,
            "expires": PULL_S * SECOND_NS,
            "idle_heartbeat": HEARTBEAT_S * SECOND_NS,
        }
        self._store.side.publish(
            f"$JS.API.CONSUMER.MSG.NEXT.{self._store.config.name}.{self._name}",
            msgspec_json.encode(request),
            reply=self._subject,
        )

    def _hear(self, message: Message) -> None:
        if self.ended.done():
            return
        self._silence.cancel()
        self._silence = asyncio.get_running_loop().call_later(SILENCE_S, self.end, "no heartbeat")
        try:
            self._hear_alive(message)
        except BusError as error:
            self.end(str(error))

    def _hear_alive(self, message: Message) -> None:
        status = message.headers.get(h.NATS_STATUS, "")
        if not status:
            revision, left = _position(message.reply)
            key = message.subject.removeprefix(self._store.prefix)
            self._take(Entry(key, None if _is_trace(message) else message.data, revision), left)
            if left == 0:
                self._load_done()
            self._left_of_pull -= 1
            if self._left_of_pull == 0:
                self._pull()
        elif status in ("404", "408"):
            self._pull()
        elif status != "100":
            self.end(f"status {status} {message.headers.get('Description', '')}".strip())

    def _load_done(self) -> None:
        if not self._loaded.done():
            self._loaded.set_result(None)


def _position(reply: str) -> tuple[int, int]:
    """Stream sequence and messages left, out of an acknowledgement subject of format 1 or 2."""
    tokens = reply.split(".")
    offset = 0 if len(tokens) == 9 else 2
    try:
        return int(tokens[5 + offset]), int(tokens[8 + offset])
    except (IndexError, ValueError):
        raise BusError(f"not an acknowledgement subject: {reply[:200]!r}") from None


class NatsWatch:
    """Keeps a reader alive, and tells what vanished while there was none."""

    def __init__(self, store: NatsStore, handler: Callable[[Entry], None]) -> None:
        self._store = store
        self._handler = handler
        self._alive: dict[str, int] = {}
        self._loading: dict[str, int] | None = None
        self._reader: _Reader | None = None
        self._task: asyncio.Task[None] | None = None
        self._poked = asyncio.Event()

    async def start(self) -> None:
        await self._open()
        self._task = asyncio.get_running_loop().create_task(self._heal())
        self._task.add_done_callback(self._healed)

    def reread(self) -> None:
        """The connection came back: whatever the consumer was, read all again."""
        self._poked.set()
        if self._reader is not None:
            self._reader.end("reconnected")

    async def close(self) -> None:
        self._store.watches.discard(self)
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
            self._task = None
        if self._reader is not None:
            await self._reader.close()
            self._reader = None

    def _healed(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():  # it has no other end, unless it has a bug
            self._store.guard.log.error(
                "watch_ended", stream=self._store.config.name, error=repr(task.exception())
            )

    async def _open(self) -> None:
        self._loading = {}
        self._poked.clear()
        reader = self._reader = _Reader(self._store, self._take)
        try:
            await reader.open()
            await reader.loaded(4 * TIMEOUT_S)
        except BaseException:
            self._reader = None
            await reader.close()
            raise
        present, self._loading = self._loading, None
        for key in [key for key in self._alive if key not in present]:
            revision = self._alive.pop(key)
            self._store.guard.tell(self._handler, Entry(key, None, revision))

    async def _heal(self) -> None:
        wait_s = 0.0
        while True:
            reader = self._reader
            if reader is not None:
                why = await asyncio.shield(reader.ended)
                self._store.guard.log.info(
                    "watch_renewed", stream=self._store.config.name, reason=why
                )
                await reader.close()
                self._reader = None
            if wait_s:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await self._poked.wait()
            try:
                await self._open()
                wait_s = 0.0
            except BusError as error:
                wait_s = min(max(2 * wait_s, RETRY_S[0]), RETRY_S[1])
                self._store.guard.log.warning(
                    "watch_lost", stream=self._store.config.name, error=str(error)
                )

    def _take(self, entry: Entry, _left: int) -> None:
        if entry.value is None:
            if self._loading is not None:
                self._loading.pop(entry.key, None)
            if self._alive.pop(entry.key, None) is None and self._loading is not None:
                return  # a trace of something this watch never told of
        else:
            self._alive[entry.key] = entry.revision
            if self._loading is not None:
                self._loading[entry.key] = entry.revision
        self._store.guard.tell(self._handler, entry)
