"""The cache: owns shards of the semantic index, answers lookups and keeps what is stored.

A shard has one owner at a time, by a lease, and only the owner subscribes to it: without one, routers hear
"no responders" at once and go on as after a miss. Entries and labels are kept in the bucket `bw_semantic`,
from which the next owner makes the index anew; answers are not here but in `bw_cache`. Several instances
share the shards out evenly; while no model has a semantic cache, none is claimed.

Whoever embeds knows what is near: each instance that has the vectors of the static answers' questions tells
routers which of those are near to a question.
"""

import asyncio
import math
from functools import partial
from typing import ClassVar, Final

import msgspec
from anyio.abc import TaskGroup

from breakwater_gateway.cache.embed.embedder import Embedder, Remembered
from breakwater_gateway.cache.embed.local import LocalEmbedder
from breakwater_gateway.cache.embed.through_gateway import ThroughGateway
from breakwater_gateway.cache.inspection import of_entry, of_lookup
from breakwater_gateway.cache.keeper import Changes, Keeper, belongs, labelled
from breakwater_gateway.cache.semantic import (
    THREAD_FROM,
    Found,
    Lists,
    Vector,
    decode_entry,
    encode_entry,
    unit,
)
from breakwater_gateway.cache.shards import Shards, entry_key
from breakwater_gateway.cache.unkept import Unkept
from breakwater_gateway.cache.written import Written, wanted
from breakwater_gateway.config.model import Config
from breakwater_gateway.runtime import bus as b
from breakwater_gateway.runtime.actor import Actor, Context, Load
from breakwater_gateway.runtime.tasks import TaskSet
from breakwater_protocol import cache as c
from breakwater_protocol.cloudevents import headers_for
from breakwater_protocol.events import CacheChanged
from breakwater_protocol.subjects import Subject, T

BUCKET: Final = "bw_semantic"
SWEEP_S: Final = 5.0
IN_HAND_MAX: Final = 256
"""Lookups and stores that wait for a vector or a thread; more are misses."""
PURGE_S: Final = 30.0
PURGED_AT_ONCE: Final = 64
DRAIN_S: Final = 2.0
WRITTEN_PATIENCE_S: Final = 0.2
"""The call of a model for the vector of a question that a written answer might suit."""
LEARN_AGAIN_S: Final = (0.5, 60.0)
"""Between attempts to embed the written questions, doubled each time."""
TENANT: Final = "breakwater"
"""For whom those are embedded: nobody's budget but the gateway's own."""
REPLY_MAX: Final = 512 * 1024
"""Bytes of labels in one reply."""

Json = msgspec.json.Encoder()


class Cache(Actor):
    kind: ClassVar[str] = "cache"

    def __init__(self, context: Context, *, embedder: Embedder | None = None) -> None:
        """`embedder`: instead of the configured one."""
        super().__init__(context)
        self._given = embedder
        self._embedder: Embedder | None = None
        self._remembered = Remembered()
        self._keeper = Keeper(context.config, embedder="")
        self._written = Written(context.config)
        self._written_heard: b.Subscription | None = None
        self._learning = TaskSet(context.log)
        self._tasks = TaskSet(context.log)
        self._shards = Shards(
            context,
            wanted=self._wanted,
            keeper=lambda: self._keeper,
            bucket=self._bucket,
            hears=self._hears,
        )
        self._unkept = Unkept(self._bucket, context.log)
        self._subscriptions: list[b.Subscription] = []
        self._store: b.Store | None = None
        self._listing: set[str] = set()
        self._serves = False

    async def start(self, tasks: TaskGroup) -> None:
        bus, subjects = self.context.bus, self.context.subjects
        await self._choose_embedder()
        self._subscriptions = [
            await bus.subscribe(subjects.heartbeat.any(), self._on_heartbeat),
            await bus.subscribe(subjects.cache.at("label"), self._on_label),
        ]
        await self._shards.start(tasks)
        tasks.start_soon(self._unkept.run)
        tasks.start_soon(self._sweep)
        self._serves = True

    async def drain(self) -> None:
        self.draining = True
        self._unkept.stop()
        await self._learning.cancel()
        await self._silence_written()
        await self._shards.silence()
        await self._tasks.join()
        try:
            async with asyncio.timeout(DRAIN_S):
                while self._unkept and await self._unkept.keep_some():
                    continue
                await self._shards.give_back("drained")
        except (b.BusError, TimeoutError) as error:
            self.context.log.warning("cache_handover_failed", error=repr(error))
        for subscription in self._subscriptions:
            await subscription.drain()

    async def stop(self) -> None:
        self.draining = True
        self._unkept.stop()
        await self._shards.close()
        await self._learning.cancel()
        await self._tasks.cancel()
        if self._embedder is not None:
            await self._embedder.close()

    def on_config(self, config: Config, revision: int) -> None:
        changed = config.embeddings != self.config.embeddings
        rewritten = config.static_answers != self.config.static_answers or (
            wanted(config) != wanted(self.config)
        )
        super().on_config(config, revision)
        self._keeper.configure(config)
        if changed:
            self._tasks.spawn(self._choose_embedder())
        elif rewritten:
            self._learning.spawn(self._learn_written())

    def load(self) -> Load:
        return Load(capacity=IN_HAND_MAX, in_flight=len(self._tasks))

    def ready(self) -> str:
        return "" if self._serves else "claiming shards of the semantic cache"

    # --- what it hears --------------------------------------------------------------------------

    def _hears(self, shard: str) -> dict[str, b.Handler]:
        """As the owner of that shard."""
        s = self.context.subjects
        return {
            s.cache_lookup.at(shard): self._on_lookup,
            s.cache_store.at(shard): self._on_store,
            s.cache_feedback.at(shard): self._on_feedback,
            s.cache_stats.at(shard): partial(self._on_stats, shard),
            s.cache_purge.at(shard): partial(self._on_purge, shard),
            s.cache_inspect.at(shard): partial(self._on_inspect, shard),
        }

    def _on_lookup(self, message: b.Message) -> None:
        asked = self._read(self.context.subjects.cache_lookup, message)
        if asked is None or not message.reply:
            return
        keeper = self._keeper
        if keeper.policy(asked.model) is None:
            self._reply(message, keeper.miss(asked.partition, "off"))
            return
        if len(asked.text) > c.TEXT_MAX:
            self._reply(message, keeper.miss(asked.partition, "too_long"))
            return
        if asked.vector is not None:
            vector = unit(asked.vector, keeper.index.dimensions)
            if vector is None:
                self._reply(message, keeper.miss(asked.partition, "vector"))
                return
        else:
            vector = self._remembered.get(asked.tenant, asked.text)
        if vector is not None and keeper.index.size(asked.partition) < THREAD_FROM:
            self._decide(message, asked, keeper.index.search(asked.partition, vector))
        elif len(self._tasks) >= IN_HAND_MAX:
            self._reply(message, keeper.miss(asked.partition, "overloaded"))
        else:
            self._tasks.spawn(self._look(message, asked, vector))

    async def _look(self, message: b.Message, asked: c.Lookup, vector: Vector | None) -> None:
        if vector is None:
            bound = asked.max_cost_nano_usd
            made = await self._vector_of(asked.text, asked.tenant, max_cost_nano_usd=bound)
            if isinstance(made, str):
                self._reply(message, self._keeper.miss(asked.partition, made))
                return
            vector = made
        self._decide(message, asked, await self._search(asked.partition, vector))

    async def _search(self, partition: str, vector: Vector) -> Found:
        index = self._keeper.index
        if index.size(partition) < THREAD_FROM:
            return index.search(partition, vector)
        rows = await asyncio.to_thread(index.begin(partition, vector))
        return index.finish(partition, rows, vector)

    def _decide(self, message: b.Message, asked: c.Lookup, found: Found) -> None:
        clock = self.context.clock
        answer = self._keeper.answer(
            asked, found, now=clock.wall(), draw=clock.draw(), id_=clock.new_id("")
        )
        self._reply(message, answer)

    def _on_written(self, message: b.Message) -> None:
        asked = self._read(self.context.subjects.cache_written, message)
        if asked is None or not message.reply:
            return
        vector = self._remembered.get(asked.tenant, asked.text)
        if vector is not None:
            self._reply(message, c.NearWritten(self._written.near(vector)))
        elif len(asked.text) > c.TEXT_MAX:
            self._reply(message, c.NearWritten(reason="too_long"))
        elif self._embedder is None or (self._embedder.calls and not asked.may_call):
            self._reply(message, c.NearWritten(reason="no_embedding"))
        elif len(self._tasks) >= IN_HAND_MAX:
            self._reply(message, c.NearWritten(reason="overloaded"))
        else:
            self._tasks.spawn(self._find_written(message, asked, self._embedder))

    async def _find_written(
        self, message: b.Message, asked: c.LookWritten, embedder: Embedder
    ) -> None:
        written = self._written
        made = await self._vector_of(
            asked.text,
            asked.tenant,
            max_cost_nano_usd=asked.max_cost_nano_usd,
            patience_s=WRITTEN_PATIENCE_S,
        )
        if isinstance(made, str):
            answer = c.NearWritten(called=embedder.calls, reason=made)
        elif embedder is not self._embedder or made.size != written.dimensions:
            # Vectors of two models must not meet.
            answer = c.NearWritten(called=embedder.calls, reason="vector")
        else:
            answer = c.NearWritten(written.near(made), called=embedder.calls)
        self._reply(message, answer)

    def _on_store(self, message: b.Message) -> None:
        fresh = self._read(self.context.subjects.cache_store, message)
        if fresh is None or self._keeper.policy(fresh.model) is None:
            return
        if len(self._tasks) >= IN_HAND_MAX:
            self._count("refused", "overloaded")
            return
        self._tasks.spawn(self._take(fresh))

    async def _take(self, fresh: c.Store) -> None:
        keeper = self._keeper
        if fresh.vector is not None:
            vector = unit(fresh.vector, keeper.index.dimensions)
            if vector is None:
                self._count("refused", "vector")
                return
        else:
            found: Vector | c.MissReason | None = self._remembered.get(fresh.tenant, fresh.text)
            if found is None:
                bound = fresh.max_cost_nano_usd
                found = await self._vector_of(fresh.text, fresh.tenant, max_cost_nano_usd=bound)
            if isinstance(found, str):
                self._count("refused", found)
                return
            vector = found
        # An answer beyond the embedder's window is compared by its words alone.
        said = fresh.answer and await self._vector_of(
            *(fresh.answer, fresh.tenant),
            remember=False,
            max_cost_nano_usd=fresh.max_cost_nano_usd,
        )
        answer_vector = None if isinstance(said, str) else said
        if not self._shards.owns(c.shard_of(fresh.partition)):
            return  # lost meanwhile
        changes = keeper.store(
            *(fresh, vector, answer_vector), now=self.context.clock.wall(), source=self._source()
        )
        if changes.refused:
            self._count("refused", changes.refused)
        self._apply(c.shard_of(fresh.partition), changes)
        await self._make_lists(fresh.partition)

    def _on_feedback(self, message: b.Message) -> None:
        said = self._read(self.context.subjects.cache_feedback, message)
        if said is None:
            return
        changes = self._keeper.feedback(said, now=self.context.clock.wall(), source=self._source())
        if changes is None:
            self._reply(message, c.FeedbackReply(False, "unknown_id"))
            return
        if changes.event is not None:
            self._apply(c.shard_of(changes.event.partition), changes)
            if changes.label is not None:
                label, partition = changes.label, changes.event.partition
                self._tell(
                    CacheChanged(
                        verdict="label",
                        at=label.at,
                        source=self._source(),
                        tenant=label.tenant,
                        model=label.model,
                        partition=partition,
                        similarity=label.similarity,
                        score=label.score,
                        same=label.same,
                        embedder=label.embedder,
                    )
                )
        self._reply(message, c.FeedbackReply(True))

    def _on_stats(self, shard: str, message: b.Message) -> None:
        asked = self._read(self.context.subjects.cache_stats, message)
        if asked is None:
            return
        stats = self._keeper.stats(shard, self.context.id, asked.tenant, labels=asked.labels)
        while stats.labels and len(Json.encode(stats)) > REPLY_MAX:
            stats = msgspec.structs.replace(
                stats, labels=stats.labels[len(stats.labels) // 2 + 1 :]
            )
        self._reply(message, stats)

    def _on_purge(self, shard: str, message: b.Message) -> None:
        which = self._read(self.context.subjects.cache_purge, message)
        if which is not None:
            self._tasks.spawn(self._purge(shard, which, message))

    async def _purge(self, shard: str, which: c.Purge, message: b.Message) -> None:
        gone = self._keeper.purge(shard, which)
        labels = self._keeper.purge_labels(shard, which) if which.labels else 0
        self._remembered.forget(which.tenant)
        source, at = self._source(), self.context.clock.wall()
        for entry in gone:
            self._tell(
                CacheChanged(
                    verdict="purged",
                    at=at,
                    source=source,
                    tenant=entry.tenant,
                    model=entry.model,
                    partition=entry.partition,
                    digest=entry.digest,
                )
            )
        rows = {entry_key(shard, entry) for entry in gone}
        others: list[str] = []

        def find_row(kept: b.Entry) -> None:
            """What the bucket has and the index has not: refused when it was loaded, or evicted."""
            try:
                found = belongs(decode_entry(kept.value or b""), which)
            except (msgspec.DecodeError, UnicodeDecodeError):
                found = which.everything
            # What is in the index came since.
            if found and self._keeper.index.get(kept.key.rpartition(".")[2]) is None:
                rows.add(kept.key)

        def find_label(kept: b.Entry) -> None:
            try:
                found = labelled(msgspec.json.decode(kept.value or b"", type=c.Label), which)
            except (msgspec.DecodeError, UnicodeDecodeError):
                found = which.everything
            if found:
                others.append(kept.key)

        try:
            async with asyncio.timeout(PURGE_S):
                store = await self._bucket()
                await store.load(f"e.{shard}", find_row)
                if which.labels:
                    await store.load(f"l.{shard}", find_label)
                keys = [*rows, *others]
                for first in range(0, len(keys), PURGED_AT_ONCE):
                    some = keys[first : first + PURGED_AT_ONCE]
                    await asyncio.gather(*(self._drop(store, key) for key in some))
        except (b.BusError, TimeoutError) as error:
            self.context.log.warning("cache_not_purged", shard=shard, error=repr(error))
            return  # whoever asked hears nothing, and asks again
        self._reply(message, c.PurgeReply(len(rows), labels=max(labels, len(others))))

    async def _drop(self, store: b.Store, key: str) -> None:
        if key in self._unkept:
            # It may be on its way to the bucket this moment.
            self._write(key, None, None)
        await store.delete(key)

    def _on_inspect(self, shard: str, message: b.Message) -> None:
        asked = self._read(self.context.subjects.cache_inspect, message)
        if asked is None:
            return
        if asked.lookup is None:
            entries = self._keeper.index.of(asked.partition) if asked.digest else []
            owner = self.context.id
            self._reply(message, of_entry(self._keeper, asked, entries, owner=owner, shard=shard))
        else:
            self._tasks.spawn(self._inspect(message, asked.lookup, texts=asked.texts))

    async def _inspect(self, message: b.Message, asked: c.Lookup, *, texts: bool) -> None:
        made: Vector | c.MissReason | None = self._remembered.get(asked.tenant, asked.text)
        if len(asked.text) > c.TEXT_MAX:
            made = "too_long"
        elif len(self._tasks) > IN_HAND_MAX:
            made = "overloaded"
        elif made is None:
            made = await self._vector_of(asked.text, asked.tenant, remember=False)
        found = made if isinstance(made, str) else await self._search(asked.partition, made)
        self._reply(
            message,
            of_lookup(
                self._keeper,
                asked,
                found,
                owner=self.context.id,
                now=self.context.clock.wall(),
                texts=texts,
            ),
        )

    def _on_label(self, message: b.Message) -> None:
        try:
            event = self.context.subjects.cache.decode(message.data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            self._count("refused", "event")
            return
        if event.score is not None and event.same is not None and math.isfinite(event.score):
            self._fold(event.model, event.score, same=event.same, embedder=event.embedder)

    def _on_heartbeat(self, message: b.Message) -> None:
        if f".{self.kind}." not in message.subject:
            return
        try:
            beat = self.context.subjects.heartbeat.decode(message.data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return
        if beat.actor == self.kind:
            if beat.draining:
                self._shards.leaves(beat.id)
            else:
                self._shards.heard_of(beat.id)

    # --- what follows ---------------------------------------------------------------------------

    def _fold(self, model: str, score: float, *, same: bool, embedder: str) -> None:
        changed = self._keeper.fold(model, score, same=same, embedder=embedder)
        if changed is False:
            return
        self.context.log.info("cache_threshold_changed", model=model, threshold=changed)
        self._tell(
            CacheChanged(
                verdict="threshold",
                at=self.context.clock.wall(),
                source=self._source(),
                model=model,
                threshold=changed,
            )
        )

    def _apply(self, shard: str, changes: Changes) -> None:
        if changes.event is not None:
            self._tell(changes.event)
        for entry in changes.keep:
            left_s = max(1, math.ceil(entry.expires_at - self.context.clock.wall()))
            self._write(entry_key(shard, entry), encode_entry(entry), left_s)
        for entry in changes.forget:
            self._write(entry_key(c.shard_of(entry.partition), entry), None, None)
        if changes.label is not None:
            place = self._keeper.add_label(shard, changes.label)
            self._write(f"l.{shard}.{place}", Json.encode(changes.label), None)
            self._count("labels", "same" if changes.label.same else "different")

    def _tell(self, event: CacheChanged) -> None:
        context = self.context
        try:
            context.bus.publish(
                context.subjects.cache.at(event.verdict),
                context.subjects.cache.encode(event),
                headers=headers_for(
                    CacheChanged, self._source(), event.at, context.clock.new_id(f"{context.id}.")
                ),
            )
        except b.BusError as error:
            context.log.warning("cache_event_lost", verdict=event.verdict, error=repr(error))

    def _read(self, subject: Subject[T], message: b.Message) -> T | None:
        try:
            return subject.decode(message.data)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            self._count("refused", "malformed")
            self.context.log.debug("cache_message_refused", error=str(error)[:200])
            return None

    def _reply(self, message: b.Message, answer: msgspec.Struct) -> None:
        if not message.reply:
            return
        if isinstance(answer, c.Hit | c.Miss):
            self._count("lookups", "hit" if isinstance(answer, c.Hit) else answer.reason)
        try:
            self.context.bus.publish(message.reply, Json.encode(answer))
        except b.BusError as error:
            self.context.log.debug("cache_reply_lost", error=repr(error))

    def _count(self, what: str, which: str) -> None:
        self.context.metrics.counter(f"breakwater_cache_semantic_{what}_total", reason=which).add()

    def _source(self) -> str:
        return f"{self.kind}/{self.context.id}"

    # --- vectors --------------------------------------------------------------------------------

    async def _choose_embedder(self) -> None:
        embeddings = self.config.embeddings
        if self._given is not None:
            chosen: Embedder | None = self._given
        elif embeddings is None:
            chosen = None
        elif embeddings.model:
            chosen = ThroughGateway(embeddings.model, self.context.bus, self.context.subjects)
        else:
            chosen = LocalEmbedder(embeddings.local, self.context.log)
        await self._silence_written()

        async def change() -> None:
            before, self._embedder = self._embedder, chosen
            if before is not None:
                await before.close()
            self._remembered = Remembered()
            self._keeper = Keeper(self.config, embedder="" if chosen is None else chosen.name)

        # Vectors of two models must not meet: the shards are read anew with what fits.
        await self._shards.renew("another embedder", change)
        if chosen is not None:
            await chosen.start()
            await self._learn()
        self._learning.spawn(self._learn_written())

    async def _learn_written(self) -> None:
        """Embed the written questions; routers are answered once all are."""
        await self._silence_written()
        embedder = self._embedder
        written = self._written = Written(self.config)
        wait_s = LEARN_AGAIN_S[0]
        while embedder is not None and (texts := written.missing()):
            made = await embedder.embed_all(texts, TENANT)
            if written is not self._written or embedder is not self._embedder:
                return
            if any(isinstance(each, str) and each == "no_embedding" for each in made):
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, LEARN_AGAIN_S[1])
                if written is not self._written:
                    return  # there is another configuration
                continue
            written.learn([None if isinstance(each, str) else each for each in made])
        if not written.complete:
            return
        heard = await self.context.bus.subscribe(
            self.context.subjects.cache_written.at(), self._on_written, queue=self.kind
        )
        if written is not self._written or self.draining:
            await heard.drain()
            return
        self._written_heard = heard
        self.context.log.info("written_questions_known", questions=len(written))

    async def _silence_written(self) -> None:
        heard, self._written_heard = self._written_heard, None
        if heard is not None:
            await heard.drain()

    async def _learn(self) -> None:
        """What all labels of the cluster say of the thresholds; those that come later come as events."""

        def fold(kept: b.Entry) -> None:
            try:
                label = msgspec.json.decode(kept.value or b"", type=c.Label)
            except (msgspec.DecodeError, UnicodeDecodeError):
                return
            if not label.veto and math.isfinite(label.score):
                self._keeper.fold(
                    label.model, label.score, same=label.same, embedder=label.embedder
                )

        if not self._wanted():
            return
        try:
            await (await self._bucket()).load("l", fold)
        except b.BusClosed:
            raise
        except (b.BusError, TimeoutError) as error:
            # Certified thresholds begin without labels then: nothing is served until there are enough.
            self.context.log.warning("cache_labels_unread", error=repr(error))

    async def _vector_of(
        self,
        text: str,
        tenant: str,
        *,
        remember: bool = True,
        max_cost_nano_usd: int | None = None,
        patience_s: float | None = None,
    ) -> Vector | c.MissReason:
        if self._embedder is None:
            return "no_embedding"
        made = await self._embedder.embed(
            text, tenant, max_cost_nano_usd=max_cost_nano_usd, patience_s=patience_s
        )
        if isinstance(made, str):
            return made
        vector = unit(made, self._keeper.index.dimensions)
        if vector is None:
            return "vector"
        if remember:
            self._remembered.put(tenant, text, vector)
        return vector

    async def _make_lists(self, partition: str) -> None:
        vectors = self._keeper.index.to_list(partition)
        if vectors is None or partition in self._listing:
            return
        self._listing.add(partition)
        try:
            lists = await asyncio.to_thread(Lists, vectors)
        finally:
            self._listing.discard(partition)
        self._keeper.index.adopt(partition, lists)

    def _wanted(self) -> bool:
        """Some model has a semantic cache, and there is something to embed with."""
        return self._embedder is not None and any(
            model.cache.semantic is not None for model in self.config.models.values()
        )

    # --- the bucket -----------------------------------------------------------------------------

    async def _bucket(self) -> b.Store:
        if self._store is None:
            self._store = await self.context.bus.store(BUCKET)
        return self._store

    def _write(self, key: str, value: bytes | None, ttl_s: int | None) -> None:
        if not self._unkept.put(key, value, ttl_s):
            self._count("refused", "unkept")

    async def _sweep(self) -> None:
        """What has expired leaves the index; the bucket forgets it by itself."""
        while not self.draining:
            await asyncio.sleep(SWEEP_S)
            self._keeper.expire(self.context.clock.wall())
            gauge = self.context.metrics.gauge
            gauge("breakwater_cache_semantic_entries").set(len(self._keeper.index))
            gauge("breakwater_cache_semantic_bytes").set(self._keeper.index.bytes)
