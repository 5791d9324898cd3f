"""What an owner of shards knows, and what it answers: a machine without clock, bus or model.

It is told a question with its vector and says hit or miss; it is told a fresh answer and says what to
keep, what to forget and which label that makes. Bounded everywhere: entries in bytes, the rest in numbers.
"""

import hashlib
from collections import deque
from collections.abc import Iterator
from typing import Final, Literal

from msgspec import Struct, structs

from breakwater_gateway.cache.decision import LABEL_FLOOR, decide, stricter
from breakwater_gateway.cache.recent import Recent
from breakwater_gateway.cache.semantic import (
    Entry,
    Found,
    Index,
    Vector,
    pack_half,
    same_answer,
    unpack_half,
)
from breakwater_gateway.cache.threshold import Certifier
from breakwater_gateway.config.model import Config, Semantic
from breakwater_protocol.cache import (
    ANSWER_MAX,
    TEXT_MAX,
    Feedback,
    Hit,
    Label,
    Lookup,
    Miss,
    MissReason,
    PartitionStats,
    Purge,
    ShardStats,
    Store,
    shard_of,
)
from breakwater_protocol.events import CacheChanged

SERVED_MAX: Final = 65_536
SERVED_BYTES: Final = 32 * 1024 * 1024
"""Of hits that feedback may name; older ones are unknown."""
PENDING_MAX: Final = 16_384
PENDING_BYTES: Final = 16 * 1024 * 1024
"""Of misses whose fresh answer would make a label."""
LABELS_MAX: Final = 1_000
"""Labels that a shard keeps, the last ones."""
COMPARED_MAX: Final = 1_000
"""Characters of an answer that are kept to compare it with others."""
PARTITIONS_SHOWN: Final = 20


class Served(Struct, frozen=True):
    """A hit that was given out."""

    entry: str
    partition: str
    tenant: str
    model: str
    text: str
    similarity: float
    score: float
    query: str


class _Pending(Struct, frozen=True):
    entry: str
    answer: str
    answer_vector: bytes
    label: Label
    """But for `same` and `at`."""


class Changes(Struct):
    """What has to be written and told."""

    keep: list[Entry] = []
    forget: list[Entry] = []
    label: Label | None = None
    event: CacheChanged | None = None
    refused: str = ""


class Keeper:
    def __init__(self, config: Config, *, embedder: str) -> None:
        self._config = config
        self.embedder = embedder
        self.index = Index(config.limits.cache_index_bytes)
        self.served: Recent[str, Served] = Recent(
            SERVED_MAX, SERVED_BYTES, lambda _, served: 2 * len(served.text)
        )
        self._pending: Recent[str, _Pending] = Recent(PENDING_MAX, PENDING_BYTES, _size_of)
        self._labels: dict[str, deque[Label]] = {}
        self._certifiers: dict[str, Certifier] = {}
        self._certified: dict[str, float | None] = {}
        self._counts: dict[str, _Counts] = {}

    def configure(self, config: Config) -> None:
        self._config = config
        self.index.bytes_max = config.limits.cache_index_bytes
        for model, certifier in self._certifiers.items():
            policy = self.policy(model)
            if policy is not None:
                self._certified[model] = certifier.certificate(policy.target).threshold

    def policy(self, model: str) -> Semantic | None:
        found = self._config.model(model)
        return None if found is None else found.cache.semantic

    def threshold(self, model: str, policy: Semantic) -> float | None:
        """The one in force; None while a certified one has not enough labels."""
        return policy.threshold if policy.threshold is not None else self._certified.get(model)

    # --- questions ------------------------------------------------------------------------------

    def miss(self, partition: str, reason: MissReason, similarity: float | None = None) -> Miss:
        counts = self._of(shard_of(partition))
        counts.misses[reason] = counts.misses.get(reason, 0) + 1
        return Miss(reason, similarity)

    def answer(
        self, asked: Lookup, found: Found, *, now: float, draw: float, id_: str
    ) -> Hit | Miss:
        """`now`: Unix seconds. `draw`: uniform in [0, 1). `id_`: new, and hard to guess."""
        shard = shard_of(asked.partition)
        counts = self._of(shard)
        counts.lookups += 1
        policy = self.policy(asked.model)
        if policy is None:
            return self.miss(asked.partition, "off")
        threshold = stricter(self.threshold(asked.model, policy), asked.threshold)
        decision = decide(
            found.candidates,
            text=asked.text,
            tenant=asked.tenant,
            now=now,
            threshold=threshold,
            policy=policy,
            draw=draw,
        )
        best = decision.best
        if best is None:
            return self.miss(asked.partition, decision.reason or "empty")
        entry = next(
            each
            for each, candidate in zip(found.entries, found.candidates, strict=True)
            if candidate is best
        )
        if decision.reason is None and threshold is not None:
            counts.hits += 1
            self.index.used(entry.id)
            id_ = f"s{shard}-{id_}"
            served = Served(
                entry=entry.id,
                partition=asked.partition,
                tenant=asked.tenant,
                model=asked.model,
                text=asked.text,
                similarity=best.similarity,
                score=decision.score,
                query=asked.digest,
            )
            self.served.put(id_, served)
            return Hit(
                cache_id=id_,
                digest=entry.digest,
                similarity=best.similarity,
                score=decision.score,
                threshold=threshold,
                age_s=max(0.0, now - entry.at),
                cost_nano_usd=entry.cost_nano_usd,
            )
        miss = self.miss(asked.partition, decision.reason or "below", best.similarity)
        if best.similarity < LABEL_FLOOR or decision.reason not in {"below", "slots", "shadow"}:
            return miss
        label = Label(
            a=entry.text,
            b=asked.text,
            same=False,
            similarity=best.similarity,
            score=decision.score,
            at=0.0,
            source="shadow" if decision.reason == "shadow" else "near",
            model=asked.model,
            tenant=asked.tenant,
            veto=bool(decision.slots),
            embedder=self.embedder,
        )
        pending = _Pending(entry.id, entry.answer, entry.answer_vector, label)
        self._pending.put(id_, pending)
        return Miss(miss.reason, best.similarity, id_)

    # --- answers --------------------------------------------------------------------------------

    def store(
        self,
        fresh: Store,
        vector: Vector,
        answer_vector: Vector | None,
        *,
        now: float,
        source: str,
    ) -> Changes:
        """A fresh answer, and the question's unit vector."""
        changes = Changes()
        shard = shard_of(fresh.partition)
        counts = self._of(shard)
        policy = self.policy(fresh.model)
        if policy is None or len(fresh.text) > TEXT_MAX or len(fresh.answer) > ANSWER_MAX:
            changes.refused = "off" if policy is None else "too_long"
            counts.refuse(changes.refused)
            return changes
        answer = fresh.answer[:COMPARED_MAX]
        changes.label = self._label_of(fresh, answer, answer_vector, now)
        if changes.label is not None:
            changes.event = _label_event(changes.label, fresh.partition, source)
        if self.index.dimensions is not None and vector.size != self.index.dimensions:
            changes.refused = "vector"
            counts.refuse("vector")
            return changes
        found = self.index.search(fresh.partition, vector)
        own = [each for each in found.entries if each.tenant == fresh.tenant]
        id_ = entry_id(fresh.tenant, fresh.partition, fresh.text)
        before = self.index.get(id_)
        ttl_s = policy.ttl_s if fresh.ttl_s is None else min(fresh.ttl_s, policy.ttl_s)
        entry = Entry(
            id=id_,
            tenant=fresh.tenant,
            partition=fresh.partition,
            model=fresh.model,
            text=fresh.text,
            digest=fresh.digest,
            vector=pack_half(vector),
            answer=answer,
            answer_vector=b"" if answer_vector is None else pack_half(answer_vector),
            answer_id=self.index.answer_id(Found([], own), answer, answer_vector),
            cost_nano_usd=fresh.cost_nano_usd,
            answer_bytes=fresh.answer_bytes,
            at=now,
            expires_at=now + ttl_s,
            quarantined=-1.0 if before is None else before.quarantined,
            embedder=self.embedder,
            asked=fresh.asked,
        )
        changes.forget = self.index.add(entry, vector)
        changes.keep.append(entry)
        counts.stores += 1
        counts.evicted += len(changes.forget)
        return changes

    def _label_of(
        self, fresh: Store, answer: str, vector: Vector | None, now: float
    ) -> Label | None:
        pending = self._pending.pop(fresh.label) if fresh.label else None
        if pending is None or pending.label.b != fresh.text:
            return None
        if pending.label.tenant != fresh.tenant:
            return None
        known = self.index.get(pending.entry) or _as_entry(pending)
        label = pending.label
        return structs.replace(label, same=same_answer(known, answer, vector), at=now)

    # --- what callers and others say ------------------------------------------------------------

    def feedback(self, said: Feedback, *, now: float, source: str) -> Changes | None:
        """None: no hit of that id was served to that tenant."""
        served = self.served.get(said.id)
        if served is None or served.tenant != said.tenant:
            return None
        changes = Changes()
        entry = self.index.get(served.entry)
        event = CacheChanged(
            verdict={"wrong": "false_hit", "stale": "stale", "good": "good"}[said.verdict],
            at=now,
            source=source,
            tenant=served.tenant,
            model=served.model,
            partition=served.partition,
            id=said.id,
            digest="" if entry is None else entry.digest,
            query=served.query,
            similarity=served.similarity,
            score=served.score,
        )
        changes.event = event
        if entry is None:
            return changes
        if said.verdict == "stale":
            self.index.remove(entry.id)
            changes.forget.append(entry)
            return changes
        if said.verdict == "wrong":
            entry.quarantined = max(entry.quarantined, served.similarity)
            changes.keep.append(entry)
            self._of(shard_of(served.partition)).quarantined += 1
        changes.label = Label(
            a=entry.text,
            b=served.text,
            same=said.verdict == "good",
            similarity=served.similarity,
            score=served.score,
            at=now,
            source="feedback",
            model=served.model,
            tenant=served.tenant,
            embedder=self.embedder,
        )
        # One word of a caller on one hit.
        self.served.pop(said.id)
        return changes

    def fold(
        self, model: str, score: float, *, same: bool, embedder: str
    ) -> float | Literal[False] | None:
        """A label, by whichever owner. The threshold in force where that changed it; else False.

        What another embedder measured, or one that is not known, certifies nothing here.
        """
        policy = self.policy(model)
        if policy is None or embedder != self.embedder:
            return False
        certifier = self._certifiers.get(model)
        if certifier is None:
            certifier = self._certifiers[model] = Certifier()
        certifier.add(score, same=same)
        certified = certifier.certificate(policy.target).threshold
        if certified == self._certified.get(model):
            return False
        self._certified[model] = certified
        return certified if policy.threshold is None else False

    def add_label(self, shard: str, label: Label) -> int:
        """Remembers it; its place among the shard's, for the bucket."""
        labels = self._labels.setdefault(shard, deque(maxlen=LABELS_MAX))
        labels.append(label)
        counts = self._of(shard)
        counts.labels += 1
        return counts.labels % LABELS_MAX

    # --- shards that come and go ----------------------------------------------------------------

    def load(self, shard: str, entry: Entry, *, now: float) -> str:
        """An entry out of the bucket. Empty when it is in, else why it is not."""
        vector = unpack_half(entry.vector, self.index.dimensions)
        reason = ""
        if vector is None:
            reason = "vector"
        elif entry.embedder != self.embedder:
            reason = "embedder"
        elif shard_of(entry.partition) != shard:
            reason = "partition"
        elif entry.id != entry_id(entry.tenant, entry.partition, entry.text):
            # Moved or written under another name than its own: poisoned.
            reason = "id"
        elif len(entry.text) > TEXT_MAX or len(entry.answer) > COMPARED_MAX:
            reason = "size"
        elif not entry.expires_at > now:  # NaN is after nothing
            reason = "expired"
        if reason or vector is None:
            self.refuse(shard, reason)
            return reason
        self.index.add(entry, vector)
        return ""

    def refuse(self, shard: str, reason: str) -> None:
        """A row of the bucket that is not what its key says."""
        self._of(shard).refuse(reason)

    def drop_shard(self, shard: str) -> None:
        """Another owner has it."""
        for entry in [each for each in self.index if shard_of(each.partition) == shard]:
            self.index.remove(entry.id)
        self._labels.pop(shard, None)
        self._counts.pop(shard, None)

    def purge(self, shard: str, which: Purge) -> list[Entry]:
        gone = [
            entry
            for entry in self.index
            if shard_of(entry.partition) == shard and belongs(entry, which)
        ]
        for entry in gone:
            self.index.remove(entry.id)
        ids = {entry.id for entry in gone}
        self.served.forget(lambda _, each: each.entry in ids)
        self._pending.forget(lambda _, each: each.entry in ids)
        return gone

    def purge_labels(self, shard: str, which: Purge) -> int:
        """The pairs; what they have certified stays until labels are read anew."""
        labels = self._labels.get(shard)
        if labels is None:
            return 0
        kept = [label for label in labels if not labelled(label, which)]
        gone = len(labels) - len(kept)
        labels.clear()
        labels.extend(kept)
        return gone

    def expire(self, now: float) -> list[Entry]:
        gone = [each for each in self.index if each.expires_at <= now]
        for entry in gone:
            self.index.remove(entry.id)
        return gone

    def labels(self, shard: str, tenant: str | None) -> Iterator[Label]:
        for label in self._labels.get(shard, ()):
            if tenant in (None, label.tenant):
                yield label

    def stats(self, shard: str, owner: str, tenant: str | None, *, labels: bool) -> ShardStats:
        counts = self._of(shard)
        entries = [
            each
            for each in self.index
            if shard_of(each.partition) == shard and tenant in (None, each.tenant)
        ]
        partitions: dict[str, list[Entry]] = {}
        for entry in entries:
            partitions.setdefault(entry.partition, []).append(entry)
        largest = sorted(partitions.values(), key=len, reverse=True)[:PARTITIONS_SHOWN]
        size = self.index.size_of
        return ShardStats(
            shard=shard,
            owner=owner,
            entries=len(entries),
            bytes=sum(size(each.id) for each in entries),
            bytes_max=self.index.bytes_max,
            lookups=counts.lookups,
            hits=counts.hits,
            misses=dict(counts.misses),
            stores=counts.stores,
            evicted=counts.evicted,
            quarantined=counts.quarantined,
            refused=dict(counts.refused),
            partitions=[self._partition(each) for each in largest],
            labels=list(self.labels(shard, tenant)) if labels else [],
            embedder=self.embedder,
        )

    def _partition(self, entries: list[Entry]) -> PartitionStats:
        first = entries[0]
        policy = self.policy(first.model)
        return PartitionStats(
            partition=first.partition,
            tenant=first.tenant,
            model=first.model,
            entries=len(entries),
            bytes=sum(self.index.size_of(each.id) for each in entries),
            threshold=None if policy is None else self.threshold(first.model, policy),
            certified=policy is not None and policy.threshold is None,
        )

    def _of(self, shard: str) -> "_Counts":
        found = self._counts.get(shard)
        if found is None:
            found = self._counts[shard] = _Counts()
        return found


class _Counts:
    def __init__(self) -> None:
        self.lookups = 0
        self.hits = 0
        self.misses: dict[str, int] = {}
        self.stores = 0
        self.evicted = 0
        self.quarantined = 0
        self.labels = 0
        self.refused: dict[str, int] = {}

    def refuse(self, reason: str) -> None:
        self.refused[reason] = self.refused.get(reason, 0) + 1


def belongs(entry: Entry, which: Purge) -> bool:
    """Whether the entry is among those. A model goes by the name that callers use and by that which the
    configuration has for it."""
    return (
        which.tenant in (None, entry.tenant)
        and which.model in (None, entry.model, entry.asked or entry.model)
        and which.partition in (None, entry.partition)
        and which.digest in (None, entry.digest)
    )


def labelled(label: Label, which: Purge) -> bool:
    """Whether the label is among those; it names no partition and no key."""
    return (
        which.tenant in (None, label.tenant)
        and which.model in (None, label.model)
        and which.partition is None
        and which.digest is None
    )


def entry_id(tenant: str, partition: str, text: str) -> str:
    """One entry a question, tenant and partition: who writes it under another tenant is found out."""
    parts = "\x00".join((tenant, partition, text)).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(parts, digest_size=16).hexdigest()


def _size_of(_: str, pending: _Pending) -> int:
    label = pending.label
    texts = len(pending.answer) + len(label.a) + len(label.b)
    return 2 * texts + len(pending.answer_vector)


def _label_event(label: Label, partition: str, source: str) -> CacheChanged:
    return CacheChanged(
        verdict="label",
        at=label.at,
        source=source,
        tenant=label.tenant,
        model=label.model,
        partition=partition,
        similarity=label.similarity,
        # What a slot keeps apart is never a hit, so it says nothing of the threshold.
        score=None if label.veto else label.score,
        same=label.same,
        embedder=label.embedder,
    )


def _as_entry(pending: _Pending) -> Entry:
    label = pending.label
    return Entry(
        id=pending.entry,
        tenant=label.tenant,
        partition="",
        model=label.model,
        text=label.a,
        digest="",
        vector=b"",
        answer=pending.answer,
        answer_vector=pending.answer_vector,
        answer_id=0,
        cost_nano_usd=None,
        answer_bytes=0,
        at=0.0,
        expires_at=0.0,
    )
