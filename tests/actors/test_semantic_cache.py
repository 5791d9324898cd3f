"""The cache's actor on the memory bus, in virtual time, with an embedder whose vectors the test chooses."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import msgspec
import numpy as np
import pytest
from tests.actors.stage import _LOG
from tests.virtual_time import START, VirtualTimeLoop

from breakwater_gateway.cache.actor import BUCKET, Cache
from breakwater_gateway.cache.embed.embedder import NoVector, Vector
from breakwater_gateway.cache.keeper import entry_id
from breakwater_gateway.cache.semantic import Entry, encode_entry, pack_half, unit
from breakwater_gateway.cache.shards import LEASE_S
from breakwater_gateway.cache.threshold import evidence_needed
from breakwater_gateway.config.model import CachePolicy, Config, Deployment, Model, Semantic
from breakwater_gateway.router.desks.meaning import Meaning
from breakwater_gateway.runtime import bus as b
from breakwater_gateway.runtime.actor import Context
from breakwater_gateway.runtime.clock import Clock
from breakwater_gateway.runtime.memory_bus import MemoryBus, MemoryHub, MemoryStore
from breakwater_gateway.runtime.metrics import Registry
from breakwater_protocol import cache as c
from breakwater_protocol.events import CacheChanged, Heartbeat
from breakwater_protocol.subjects import Subjects

SUBJECTS = Subjects()
HOW = "How do I reset my router?"
ALIKE = "How can I reset my router?"
P = "partition-1"


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return ("asyncio", {"loop_factory": VirtualTimeLoop})


pytestmark = pytest.mark.anyio


def config(policy: Semantic | None) -> Config:
    deployment = Deployment(id="a", provider="p", model="a", wire="openai", base_url="http://a")
    model = Model("m", (deployment,), cache=CachePolicy(semantic=policy))
    return Config({"m": model})


class Chosen:
    """An embedder: texts that mean the same have near vectors because the test says so."""

    name = "chosen"
    calls = False

    def __init__(self) -> None:
        self.vectors: dict[str, Vector] = {}
        self.late_s = 0.0
        self.asked: list[str] = []

    def says(self, text: str, near: str = "", cosine: float = 0.0) -> None:
        """A vector of its own, or one with that cosine to another's."""
        rng = np.random.default_rng(len(self.vectors) + 1)
        own = rng.standard_normal(64)
        if near:
            other = self.vectors[near].astype(np.float64)
            own -= (own @ other) * other
            own = cosine * other + np.sqrt(1 - cosine**2) * own / np.linalg.norm(own)
        self.vectors[text] = (own / np.linalg.norm(own)).astype(np.float32)

    async def start(self) -> None:
        return

    async def close(self) -> None:
        return

    async def embed_all(self, texts: Sequence[str], tenant: str) -> list[Vector | NoVector]:
        return [await self.embed(text, tenant) for text in texts]

    async def embed(
        self,
        text: str,
        tenant: str,
        *,
        max_cost_nano_usd: int | None = None,
        patience_s: float | None = None,
    ) -> Vector | NoVector:
        self.asked.append(text)
        if self.late_s:
            await asyncio.sleep(self.late_s)
        if text not in self.vectors:
            self.says(text)
        return self.vectors[text]


class Stage:
    def __init__(self, hub: MemoryHub, settings: Config) -> None:
        self.hub = hub
        self.settings = settings
        self.bus = MemoryBus("router", hub)
        self.clock = Clock(seed=1, wall=lambda: asyncio.get_running_loop().time())
        self.embedder = Chosen()
        self.events: list[CacheChanged] = []
        self.meaning = Meaning(self.context("router", self.bus))
        self.buses: dict[str, MemoryBus] = {}
        self.actors: dict[str, Cache] = {}

    def context(self, id_: str, bus: MemoryBus) -> Context:
        return Context(
            id=id_,
            bus=bus,
            subjects=SUBJECTS,
            clock=self.clock,
            log=_LOG,
            metrics=Registry(),
            config=self.settings,
        )

    async def add(
        self, tasks: anyio.abc.TaskGroup, name: str = "cache-1", bus: MemoryBus | None = None
    ) -> Cache:
        bus = self.buses[name] = bus or MemoryBus(name, self.hub)
        actor = self.actors[name] = Cache(self.context(name, bus), embedder=self.embedder)
        await actor.start(tasks)
        return actor

    def kill(self, name: str) -> None:
        bus = self.buses.pop(name)
        for member in list(bus.members):
            self.hub.remove(member)
        bus.cut_off()
        self.actors.pop(name).draining = True

    async def look(self, text: str, **more: Any) -> c.Hit | c.Miss:  # noqa: ANN401
        asked = {"request": "r", "tenant": "t", "partition": P, "model": "m", "digest": "q", **more}
        answer: asyncio.Future[c.Hit | c.Miss] = asyncio.get_running_loop().create_future()
        self.meaning.look(
            c.Lookup(text=text, **asked), answer.set_result, patience_s=self.meaning.patience_s()
        )
        return await answer

    async def store(self, text: str, answer: str = "Hold the button.", **more: Any) -> None:  # noqa: ANN401
        fresh = {"request": "r", "tenant": "t", "partition": P, "model": "m", **more}
        self.meaning.store(
            c.Store(text=text, digest=f"d:{text}", answer=answer, answer_bytes=100, **fresh)
        )
        await asyncio.sleep(0.1)

    async def beat(self, name: str) -> None:
        """What the supervisor does."""
        beat = Heartbeat("cache", name, "1", 0.0)
        self.bus.publish(SUBJECTS.heartbeat.at("cache", name), SUBJECTS.heartbeat.encode(beat))

    async def say(self, id_: str, verdict: c.Verdict, tenant: str = "t") -> c.FeedbackReply:
        shard = c.shard_of(P)
        said = c.Feedback(id_, tenant, verdict)
        message = await self.bus.ask(
            SUBJECTS.cache_feedback.at(shard), msgspec.json.encode(said), timeout_s=1
        )
        return msgspec.json.decode(message.data, type=c.FeedbackReply)


@asynccontextmanager
async def stage(policy: Semantic | None = None, instances: int = 1) -> AsyncIterator[Stage]:
    hub = MemoryHub(choose=lambda _: 0)
    settings = config(policy or Semantic(threshold=0.9, shadow=0.0, veto="strict"))
    here = Stage(hub, settings)
    await here.bus.subscribe(
        SUBJECTS.cache.any(), lambda m: here.events.append(SUBJECTS.cache.decode(m.data))
    )
    async with anyio.create_task_group() as tasks:
        for number in range(1, instances + 1):
            await here.add(tasks, f"cache-{number}")
        yield here
        assert hub.guard.failures == 0
        for actor in here.actors.values():
            await actor.stop()
        tasks.cancel_scope.cancel()


async def test_a_question_that_means_the_same_is_a_hit_with_its_answer_s_key() -> None:
    async with stage() as here:
        assert await here.look(HOW) == c.Miss("empty")
        await here.store(HOW, cost_nano_usd=77)
        here.embedder.says(ALIKE, HOW, 0.97)
        hit = await here.look(ALIKE)
        assert isinstance(hit, c.Hit)
        assert (hit.digest, hit.cost_nano_usd, hit.threshold) == (f"d:{HOW}", 77, 0.9)
        assert hit.similarity == pytest.approx(0.97, abs=1e-3)
        assert hit.cache_id.startswith(f"s{c.shard_of(P)}-")


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"tenant": "u"}, "tenant"),
        ({"partition": "partition-2"}, "empty"),
        ({"model": "unknown"}, "off"),
        ({"threshold": 0.98}, "below"),
        ({"vector": b"abc"}, "vector"),
        ({"vector": np.ones(7, "<f4").tobytes()}, "vector"),
        ({"vector": np.full(64, np.nan, "<f4").tobytes()}, "vector"),
        ({"text": "How do I reset my 2 routers?"}, "slots"),
        ({"text": "x" * 5_000}, "too_long"),
    ],
)
async def test_nothing_crosses_what_must_not_be_crossed(more: dict[str, Any], reason: str) -> None:
    async with stage() as here:
        await here.store(HOW)
        for text in (ALIKE, "How do I reset my 2 routers?"):
            here.embedder.says(text, HOW, 0.97)
        miss = await here.look(**{"text": ALIKE, **more})
        assert isinstance(miss, c.Miss)
        assert miss.reason == reason


async def test_a_caller_s_lower_threshold_changes_nothing() -> None:
    async with stage() as here:
        await here.store(HOW)
        here.embedder.says(ALIKE, HOW, 0.85)
        miss = await here.look(ALIKE, threshold=0.5)
        assert isinstance(miss, c.Miss)
        assert miss.reason == "below"


async def test_a_stream_of_one_s_own_words_is_embedded_once() -> None:
    async with stage() as here:
        await here.look(HOW)
        await here.store(HOW, answer="")
        await here.look(HOW)
        assert here.embedder.asked == [HOW]


async def test_feedback_wrong_quarantines_at_that_similarity_and_tells_everybody() -> None:
    async with stage() as here:
        await here.store(HOW)
        here.embedder.says(ALIKE, HOW, 0.95)
        hit = await here.look(ALIKE)
        assert isinstance(hit, c.Hit)
        said_at = asyncio.get_running_loop().time()
        assert (await here.say(hit.cache_id, "wrong")).taken
        miss = await here.look(ALIKE)
        assert isinstance(miss, c.Miss)
        assert miss.reason == "quarantined"
        told = next(event for event in here.events if event.verdict == "false_hit")
        assert (told.digest, told.query, told.id) == (f"d:{HOW}", "q", hit.cache_id)
        assert told.at - said_at < 0.05
        here.embedder.says("How might I reset my router?", HOW, 0.99)
        assert isinstance(await here.look("How might I reset my router?"), c.Hit), "nearer is fine"
        assert isinstance(await here.look(HOW), c.Hit), "the same question is, too"


async def test_feedback_counts_only_for_hits_that_were_served_to_that_tenant() -> None:
    async with stage() as here:
        await here.store(HOW)
        hit = await here.look(HOW)
        assert isinstance(hit, c.Hit)
        for id_, tenant in (("s1-guessed", "t"), (hit.cache_id, "u")):
            assert await here.say(id_, "wrong", tenant) == c.FeedbackReply(False, "unknown_id")
        assert isinstance(await here.look(HOW), c.Hit)
        assert not [event for event in here.events if event.verdict == "false_hit"]


async def test_feedback_stale_forgets_the_answer() -> None:
    async with stage() as here:
        await here.store(HOW)
        hit = await here.look(HOW)
        assert isinstance(hit, c.Hit)
        await here.say(hit.cache_id, "stale")
        assert await here.look(HOW) == c.Miss("empty")
        assert [event.verdict for event in here.events] == ["stale"]


async def test_a_near_miss_s_fresh_answer_labels_the_pair() -> None:
    async with stage() as here:
        await here.store(HOW, "Hold the button.")
        here.embedder.says(ALIKE, HOW, 0.85)
        miss = await here.look(ALIKE)
        assert isinstance(miss, c.Miss)
        await here.store(ALIKE, "Hold the button!", label=miss.label)
        label = next(event for event in here.events if event.verdict == "label")
        assert label.same is True
        assert label.score == pytest.approx(0.85, abs=1e-3)
        await here.store(ALIKE, "Other.", label=miss.label)
        assert len([e for e in here.events if e.verdict == "label"]) == 1, "a label counts once"


async def test_every_would_be_hit_may_be_shadowed() -> None:
    async with stage(Semantic(threshold=0.9, shadow=1.0)) as here:
        await here.store(HOW)
        miss = await here.look(HOW)
        assert isinstance(miss, c.Miss)
        assert miss.reason == "shadow"
        await here.store(HOW, "Something else entirely.", label=miss.label)
        assert [e.same for e in here.events if e.verdict == "label"] == [False]


async def test_a_certified_threshold_serves_nothing_until_labels_allow_it_and_then_does() -> None:
    async with stage(Semantic(threshold=None, target=0.05, shadow=0.0)) as here:
        await here.store(HOW)
        here.embedder.says(ALIKE, HOW, 0.93)
        needed = evidence_needed(0, 0.05)
        # What another embedder measured, or nobody knows which, certifies nothing.
        for embedder in [*["another"] * needed, *[""] * needed, *["chosen"] * needed]:
            miss = await here.look(ALIKE)
            assert isinstance(miss, c.Miss)
            assert miss.reason == "below"
            event = CacheChanged(
                *("label", 0.0, "cache/other"),
                model="m",
                score=0.95,
                same=True,
                embedder=embedder,
            )
            here.bus.publish(SUBJECTS.cache.at("label"), SUBJECTS.cache.encode(event))
            await asyncio.sleep(0)
        await asyncio.sleep(0.01)
        hit = await here.look(ALIKE)
        assert isinstance(hit, c.Hit)
        assert hit.threshold == 0.70
        assert [e.threshold for e in here.events if e.verdict == "threshold"] == [0.70]


async def test_without_an_owner_or_with_a_late_one_a_lookup_is_a_miss_within_its_patience() -> None:
    async with stage() as here:
        here.embedder.late_s = 1.0
        began = asyncio.get_running_loop().time()
        assert await here.look(HOW) == c.Miss("late")
        assert asyncio.get_running_loop().time() - began == pytest.approx(0.025)
        here.kill("cache-1")
        began = asyncio.get_running_loop().time()
        assert await here.look(HOW) == c.Miss("no_owner")
        assert asyncio.get_running_loop().time() == began


async def test_the_next_owner_finds_entries_labels_and_quarantine_in_the_bucket() -> None:
    async with stage() as here, anyio.create_task_group() as tasks:
        await here.store(HOW)
        here.embedder.says(ALIKE, HOW, 0.95)
        hit = await here.look(ALIKE)
        assert isinstance(hit, c.Hit)
        await here.say(hit.cache_id, "wrong")
        await asyncio.sleep(0.5)
        here.kill("cache-1")
        await here.add(tasks, "cache-2")
        assert await here.look(HOW) == c.Miss("no_owner")
        await asyncio.sleep(5)
        assert isinstance(await here.look(HOW), c.Hit)
        miss = await here.look(ALIKE)
        assert isinstance(miss, c.Miss)
        assert miss.reason == "quarantined"
        asked = msgspec.json.encode(c.StatsRequest(labels=True))
        message = await here.bus.ask(SUBJECTS.cache_stats.at(c.shard_of(P)), asked, timeout_s=1)
        stats = msgspec.json.decode(message.data, type=c.ShardStats)
        assert (stats.owner, stats.entries, len(stats.labels)) == ("cache-2", 1, 1)
        assert not stats.labels[0].same
        tasks.cancel_scope.cancel()


def poison(change: Callable[[Entry], None]) -> bytes:
    vector = unit(np.ones(64, np.float32), None)
    assert vector is not None
    entry = Entry(
        id=entry_id("t", P, HOW),
        tenant="t",
        partition=P,
        model="m",
        text=HOW,
        digest="d",
        vector=pack_half(vector),
        answer="yes",
        answer_vector=b"",
        answer_id=1,
        cost_nano_usd=None,
        answer_bytes=1,
        at=START,
        expires_at=START + 1e6,
        embedder="chosen",
    )
    change(entry)
    return encode_entry(entry)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (poison(lambda _: None), ""),
        (poison(lambda e: setattr(e, "tenant", "u")), "id"),
        (poison(lambda e: setattr(e, "partition", "partition-2")), "partition"),
        (
            poison(lambda e: setattr(e, "vector", pack_half(np.full(64, np.nan, np.float32)))),
            "vector",
        ),
        (poison(lambda e: setattr(e, "vector", b"abc")), "vector"),
        (poison(lambda e: setattr(e, "embedder", "another")), "embedder"),
        (poison(lambda e: setattr(e, "expires_at", START)), "expired"),
        (poison(lambda e: setattr(e, "expires_at", float("nan"))), "expired"),
        (poison(lambda e: setattr(e, "id", "0" * 32)), "key"),
        (poison(lambda e: setattr(e, "answer", "x" * 100_000)), "size"),
        (b"\xc1 not an entry", "malformed"),
    ],
)
async def test_what_was_written_straight_to_the_bucket_is_served_only_if_it_is_right(
    value: bytes, reason: str
) -> None:
    hub = MemoryHub(choose=lambda _: 0)
    here = Stage(hub, config(Semantic(threshold=0.9, shadow=0.0)))
    store = await here.bus.store(BUCKET)
    await store.put(f"e.{c.shard_of(P)}.{entry_id('t', P, HOW)}", value)
    here.embedder.vectors[HOW] = np.ones(64, np.float32)
    async with anyio.create_task_group() as tasks:
        actor = await here.add(tasks)
        answer = await here.look(HOW)
        assert isinstance(answer, c.Hit) == (not reason)
        asked = msgspec.json.encode(c.StatsRequest())
        message = await here.bus.ask(SUBJECTS.cache_stats.at(c.shard_of(P)), asked, timeout_s=1)
        stats = msgspec.json.decode(message.data, type=c.ShardStats)
        assert stats.refused == ({reason: 1} if reason else {})
        await actor.stop()
        tasks.cancel_scope.cancel()


async def test_two_instances_share_the_shards_and_one_takes_over_all() -> None:
    async with stage(instances=2) as here:
        for _ in range(40):
            for name in list(here.actors):
                await here.beat(name)
            await asyncio.sleep(0.5)
        counts = {name: len(actor._shards) for name, actor in here.actors.items()}
        assert counts == {"cache-1": 4, "cache-2": 4}
        here.kill("cache-1")
        for _ in range(30):
            await here.beat("cache-2")
            await asyncio.sleep(0.5)
        assert len(here.actors["cache-2"]._shards) == c.SHARDS


class SlowStore(MemoryStore):
    """A bucket with so much in it that reading it takes time."""

    async def load(self, below: str, handler: Callable[[b.Entry], None]) -> None:
        await super().load(below, handler)
        await asyncio.sleep(2 * LEASE_S)


class SlowBus(MemoryBus):
    async def store(self, bucket: str, **more: Any) -> MemoryStore:  # noqa: ANN401 - as given
        found = await super().store(bucket, **more)
        return SlowStore(self, found._bucket)


async def test_shards_that_are_long_to_read_cost_none_of_the_others() -> None:
    async with stage() as here, anyio.create_task_group() as tasks:
        await here.store(HOW)
        await here.actors["cache-1"].drain()
        await here.actors.pop("cache-1").stop()
        slow = await here.add(tasks, "cache-2", SlowBus("cache-2", here.hub))
        assert asyncio.get_running_loop().time() > START + 2 * c.SHARDS * LEASE_S
        assert [slow._shards.owns(str(n)) for n in range(c.SHARDS)] == [True] * c.SHARDS
        assert isinstance(await here.look(HOW), c.Hit)
        await slow.stop()
        here.actors.clear()
        tasks.cancel_scope.cancel()


async def test_purge_forgets_a_tenant_s_entries_alone_and_tells_so() -> None:
    async with stage() as here:
        await here.store(HOW)
        await here.store("What is a hub?", tenant="u")
        asked = msgspec.json.encode(c.Purge(tenant="t"))
        message = await here.bus.ask(SUBJECTS.cache_purge.at(c.shard_of(P)), asked, timeout_s=1)
        assert msgspec.json.decode(message.data, type=c.PurgeReply).purged == 1
        assert [(e.verdict, e.digest) for e in here.events] == [("purged", f"d:{HOW}")]
        assert isinstance(await here.look("What is a hub?", tenant="u"), c.Hit)


async def test_an_entry_s_time_ends() -> None:
    async with stage(Semantic(threshold=0.9, shadow=0.0, ttl_s=60.0)) as here:
        await here.store(HOW)
        assert isinstance(await here.look(HOW), c.Hit)
        await asyncio.sleep(60)
        assert (await here.look(HOW)) in (c.Miss("expired"), c.Miss("empty"))
        store = await here.bus.store(BUCKET)
        await asyncio.sleep(5)
        assert await store.keys() == []


async def test_no_shard_is_claimed_while_no_model_has_a_semantic_cache() -> None:
    hub = MemoryHub(choose=lambda _: 0)
    here = Stage(hub, config(None))
    async with anyio.create_task_group() as tasks:
        actor = await here.add(tasks)
        await asyncio.sleep(5)
        assert not len(actor._shards)
        actor.on_config(config(Semantic(threshold=0.9, shadow=0.0)), 2)
        await asyncio.sleep(5)
        await here.store(HOW)
        assert isinstance(await here.look(HOW), c.Hit)
        await actor.drain()
        assert await here.look(HOW) == c.Miss("no_owner")
        await actor.stop()
        tasks.cancel_scope.cancel()
