"""The answers that are kept: in this router's memory, and for all routers in the bucket `bw_cache`.

Reading the bucket has a time limit, and everything that goes wrong with it is a miss: the cache never costs a
request more than that. A router that is alone reads it only for what it knows to be there.
"""

import asyncio
import math
from collections.abc import Callable
from typing import Final

from breakwater_gateway.cache import entry as entries
from breakwater_gateway.cache.entry import Entry
from breakwater_gateway.cache.exact import Exact, Held
from breakwater_gateway.config.model import Limits
from breakwater_gateway.runtime.actor import Context
from breakwater_gateway.runtime.bus import BusError, Store
from breakwater_gateway.runtime.tasks import TaskSet
from breakwater_protocol.cache import Purge

BUCKET: Final = "bw_cache"
READ_S: Final = 0.025
"""An answer from the bucket that takes longer is a miss."""
WRITES_MAX: Final = 64
"""Answers on their way to the bucket; more are kept in memory only."""
KNOWN_MAX: Final = 200_000
PEER_S: Final = 30.0
"""After the last heartbeat of another router, what it wrote is still looked for."""


class Kept:
    def __init__(self, context: Context, *, tasks: TaskSet) -> None:
        self._context = context
        self._tasks = tasks
        limits = context.config.limits
        self.memory = Exact(limits.cache_bytes)
        self.answer_max = limits.cache_answer_bytes
        self.store: Store | None = None
        self._writing = 0
        self._forgotten = 0
        """How often something was: what was read or written from before that may be gone by now."""
        self._known: set[str] | None = None
        """Digests in the bucket, as far as this router can tell alone; None: it cannot."""
        self._peers = False
        self._bytes = context.metrics.gauge("breakwater_cache_bytes")

    async def open(self) -> None:
        await self._open(self._context.config.limits)

    async def _open(self, limits: Limits) -> None:
        try:
            store = await self._context.bus.store(
                BUCKET, max_bytes=limits.cache_store_bytes, evicts=True
            )
            self.store = store
            # A full bucket takes a while to list: until then it is asked for everything.
            self._tasks.spawn(self._learn(store))
        except BusError as error:
            # Without it every router has what it keeps itself.
            self._context.log.warning("cache_bucket_unavailable", error=str(error))

    async def _learn(self, store: Store) -> None:
        """Which digests are there already; of no use once another router may have written."""
        try:
            keys = await store.keys()
        except BusError as error:
            self._context.log.debug("cache_not_listed", error=repr(error))
            return
        if not self._peers and len(keys) <= KNOWN_MAX:
            self._known = set(keys)

    def on_limits(self, before: Limits, now: Limits) -> None:
        self.memory.resize(now.cache_bytes)
        self.answer_max = now.cache_answer_bytes
        self.measure()
        if before.cache_store_bytes != now.cache_store_bytes:
            self._tasks.spawn(self._open(now))

    def peer_seen(self) -> None:
        """Another router lives: it may have written anything."""
        self._known, self._peers = None, True

    def may_be_stored(self, digest: str) -> bool:
        """Whether the bucket is worth asking."""
        return self.store is not None and (self._known is None or digest in self._known)

    # ------------------------------------------------------------ reading

    async def read(
        self, digest: str, *, tenant: str, api: str, model: str, partition: str = ""
    ) -> Held | entries.Poison | None:
        """From the bucket into memory; None for a miss, a word for what was there and is not to be served."""
        if self.store is None:
            return None
        forgotten = self._forgotten
        try:
            async with asyncio.timeout(READ_S):
                stored = await self.store.get(digest)
        except (TimeoutError, BusError) as error:
            self._context.log.debug("cache_not_read", error=repr(error))
            return None
        if forgotten != self._forgotten:
            return None  # it may be what was forgotten meanwhile
        if stored is None or stored.value is None:
            if self._known is not None:
                self._known.discard(digest)
            return None
        entry = entries.read(
            stored.value,
            digest=digest,
            tenant=tenant,
            api=api,
            model=model,
            partition=partition,
            answer_max=self.answer_max,
        )
        if not isinstance(entry, Entry):
            self._context.log.warning("cache_entry_skipped", reason=entry, key=digest[:16])
            return entry
        if self._context.clock.wall() >= entry.stored_at + entry.kept_s:
            return None
        held = self.memory.put(entry)
        self.measure()
        return held if held is not None else Held(entry, 0)

    # ------------------------------------------------------------ writing

    def keep(self, entry: Entry, stored: Callable[[], None]) -> None:
        """`stored` is called once the bucket has it too."""
        self.memory.put(entry)
        self.measure()
        if self.store is not None and self._writing < WRITES_MAX:
            self._writing += 1
            self._tasks.spawn(self._write(self.store, entry, stored))

    async def _write(self, store: Store, entry: Entry, stored: Callable[[], None]) -> None:
        forgotten = self._forgotten
        try:
            ttl_s = max(1, math.ceil(entry.kept_s))
            await store.put(entry.digest, entries.encode(entry), ttl_s=ttl_s)
            if forgotten != self._forgotten and entry.digest not in self.memory:
                # It may have been forgotten before the bucket had it: an answer too few does no harm.
                await store.delete(entry.digest)
                return
            if self._known is not None:
                self._known.add(entry.digest)
                if len(self._known) > KNOWN_MAX:
                    self._known = None
            stored()
        except BusError as error:
            self._context.log.debug("cache_not_written", error=repr(error))
        finally:
            self._writing -= 1

    def forget(self, *digests: str) -> None:
        """In memory; whoever says that they are gone has seen to the bucket."""
        self._forgotten += 1
        for digest in digests:
            self.memory.forget(digest)
        self.measure()

    def forget_all(self, which: Purge) -> list[str]:
        """In memory too; their digests."""
        self._forgotten += 1
        gone = self.memory.forget_all(lambda entry: entries.belongs(entry, which))
        self.measure()
        return gone

    async def delete(self, digest: str) -> None:
        """Everywhere but in other routers' memory."""
        self.forget(digest)
        if self.store is not None:
            try:
                await self.store.delete(digest)
            except BusError as error:
                self._context.log.warning("cache_not_deleted", error=repr(error))
            self.forget(digest)  # who asked meanwhile has brought it back

    def measure(self) -> None:
        self._bytes.set(self.memory.bytes)
