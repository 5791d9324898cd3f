"""The router's desk for those who look after the cache: feedback on exact answers, purges, figures.

Any router answers for the bucket that all share; what another one has in memory it forgets by the event.
"""

import asyncio
import re
from collections.abc import Callable
from typing import Final

import msgspec

from breakwater_gateway.cache import entry as entries
from breakwater_gateway.config.model import Config
from breakwater_gateway.router.desks.kept import Kept
from breakwater_gateway.runtime.actor import Context
from breakwater_gateway.runtime.bus import BusError, Message, Store, Subscription
from breakwater_gateway.runtime.tasks import TaskSet
from breakwater_protocol import cache as c
from breakwater_protocol import cloudevents
from breakwater_protocol.events import CacheChanged

_ID: Final = re.compile(r"e([0-9a-f]{64})")
_AT_ONCE: Final = 64
_EVENTS: Final[dict[c.Verdict, str]] = {"wrong": "false_hit", "stale": "stale", "good": "good"}


class Care:
    def __init__(
        self, context: Context, kept: Kept, *, config: Callable[[], Config], tasks: TaskSet
    ) -> None:
        self._context = context
        self._config = config
        self._kept = kept
        self._tasks = tasks

    async def start(self) -> list[Subscription]:
        bus, s = self._context.bus, self._context.subjects
        return [
            await bus.subscribe(s.cache_feedback.at(c.EXACT), self._on_feedback, queue="router"),
            await bus.subscribe(s.cache_purge.at(c.EXACT), self._on_purge, queue="router"),
            await bus.subscribe(s.cache_stats.at(c.EXACT), self._on_stats),
        ]

    # ------------------------------------------------------------ feedback

    def _on_feedback(self, message: Message) -> None:
        try:
            said = self._context.subjects.cache_feedback.decode(message.data)
        except msgspec.MsgspecError as error:
            self._context.log.warning("bad_feedback", error=str(error))
            return
        self._tasks.spawn(self._feedback(said, message.reply))

    async def _feedback(self, said: c.Feedback, reply: str) -> None:
        found = _ID.fullmatch(said.id)
        entry = None if found is None else await self._own(found[1], said.tenant)
        if entry is None:
            self._reply(reply, c.FeedbackReply(False, "unknown_id"))
            return
        verdict = _EVENTS[said.verdict]
        if said.verdict != "good":
            # Before others are told: who forgets it must not find it in the bucket again.
            await self._kept.delete(entry.digest)
        self._tell(verdict, tenant=said.tenant, digest=entry.digest, id_=said.id)
        self._reply(reply, c.FeedbackReply(True))

    async def _own(self, digest: str, tenant: str) -> entries.Entry | None:
        """The entry, if it is that tenant's: nobody else can have been served it."""
        held = self._kept.memory.get(digest, self._context.clock.wall())
        if held is not None:
            return held.entry if held.entry.tenant == tenant else None
        store = self._kept.store
        try:
            stored = None if store is None else await store.get(digest)
        except BusError as error:
            self._context.log.warning("cache_not_read", error=repr(error))
            return None
        entry = None if stored is None else entries.peek(stored.value or b"")
        if entry is None or (entry.tenant, entry.digest) != (tenant, digest):
            return None
        return entry

    # ------------------------------------------------------------ purge and figures

    def _on_purge(self, message: Message) -> None:
        try:
            which = self._context.subjects.cache_purge.decode(message.data)
        except msgspec.MsgspecError as error:
            self._context.log.warning("bad_purge", error=str(error))
            return
        self._tasks.spawn(self._purge(which, message.reply))

    async def _purge(self, which: c.Purge, reply: str) -> None:
        # Those of other routers' memory that the bucket has not are forgotten by the event, and not counted.
        gone = set(self._kept.forget_all(which))
        self._tell_purged(which)
        store = self._kept.store
        try:
            if store is not None:
                keys = await store.keys() if which.digest is None else [which.digest]
                for first in range(0, len(keys), _AT_ONCE):
                    some = keys[first : first + _AT_ONCE]
                    dropped = await asyncio.gather(*(self._drop(store, key, which) for key in some))
                    gone.update(key for key, was in zip(some, dropped, strict=True) if was)
        except BusError as error:
            self._context.log.warning("cache_not_purged", error=repr(error))
            return  # whoever asked hears nothing, and asks again
        if store is not None:
            # What was asked for meanwhile came back into memory for as long as the bucket had it.
            self._kept.forget_all(which)
            self._tell_purged(which)
        semantic = any(model.cache.semantic for model in self._config().models.values())
        self._reply(reply, c.PurgeReply(len(gone), semantic=semantic))

    def _tell_purged(self, which: c.Purge) -> None:
        self._tell(
            "purged",
            tenant=which.tenant or "",
            model=which.model or "",
            partition=which.partition or "",
            digest=which.digest or "",
        )

    async def _drop(self, store: Store, key: str, which: c.Purge) -> bool:
        if not which.everything:
            stored = await store.get(key)
            entry = None if stored is None else entries.peek(stored.value or b"")
            # What names another key than its own, or nothing, is nobody's: its key alone tells.
            nobody_s = which.digest == key and (entry is None or entry.digest != key)
            if not nobody_s and (entry is None or not entries.belongs(entry, which)):
                return False
        await store.delete(key)
        return True

    def _on_stats(self, message: Message) -> None:
        memory = self._kept.memory
        stats = c.ShardStats(
            shard=c.EXACT,
            owner=self._context.id,
            entries=len(memory),
            bytes=memory.bytes,
            bytes_max=memory.bytes_max,
            lookups=memory.hits + memory.misses,
            hits=memory.hits,
            misses={"not_in_memory": memory.misses},
            stores=memory.stores,
            evicted=memory.evicted,
            quarantined=0,
        )
        self._reply(message.reply, stats)

    # ------------------------------------------------------------ small things

    def _tell(
        self, verdict: str, *, tenant: str, model: str = "", partition: str = "",
        digest: str = "", id_: str = "",
    ) -> None:  # fmt: skip
        context = self._context
        source, at = f"router/{context.id}", context.clock.wall()
        event = CacheChanged(
            verdict=verdict,
            at=at,
            source=source,
            tenant=tenant,
            model=model,
            partition=partition,
            id=id_,
            digest=digest,
        )
        headers = cloudevents.headers_for(
            CacheChanged, source=source, at=at, id_=context.clock.new_id("evt_")
        )
        self._publish(
            context.subjects.cache.at(verdict), context.subjects.cache.encode(event), headers
        )

    def _reply(self, reply: str, answer: msgspec.Struct) -> None:
        if reply:
            self._publish(reply, msgspec.json.encode(answer), {})

    def _publish(self, subject: str, data: bytes, headers: dict[str, str]) -> None:
        try:
            self._context.bus.publish(subject, data, headers=headers)
        except BusError as error:
            self._context.log.warning("not_sent", subject=subject[:200], error=repr(error))
