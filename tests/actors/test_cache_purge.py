"""`cache purge` where it acts: answers and questions go together, everywhere, and are counted truly."""

import asyncio
import json

import msgspec
import pytest
from tests.actors.stage import Gateway, stage
from tests.actors.test_cache import (
    MEANT,
    answered,
    cached,
    learned,
    question,
    understanding,
)
from tests.actors.test_semantic_cache import Chosen
from tests.virtual_time import VirtualTimeLoop

from breakwater_gateway.cache.actor import BUCKET
from breakwater_gateway.cli import cache_commands
from breakwater_gateway.config.model import CachePolicy, Semantic
from breakwater_gateway.router.actor import Router
from breakwater_gateway.runtime.bus import Entry, Store
from breakwater_protocol.cache import Label, Purge

pytestmark = pytest.mark.anyio

HOW = "How deep is the harbour?"
ALIKE = "How deep is that harbour?"
ANSWERS = "bw_cache"


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}


async def purged(
    gateway: Gateway, capsys: pytest.CaptureFixture[str], which: Purge, *, code: int = 0
) -> tuple[int, int]:
    """How many answers and questions it says."""
    assert await cache_commands.forget(gateway.bus, which, as_json=True) == code
    said = json.loads(capsys.readouterr().out)
    assert said["purged"] == said["answers"] + said["questions"]
    await asyncio.sleep(0.5)
    return said["answers"], said["questions"]


async def kept(gateway: Gateway) -> tuple[int, int]:
    answers = await gateway.bus.store(ANSWERS, max_bytes=2**28, evicts=True)
    questions = await gateway.bus.store(BUCKET)
    rows = [key for key in await questions.keys() if key.startswith("e.")]
    return len(await answers.keys()), len(rows)


async def verdict(gateway: Gateway, text: str, **fields: str) -> str:
    """Of a request that is answered from the cache or not at all."""
    only = {"breakwater-cache": "only"}
    reply = await question(gateway, text, headers=only, **fields).reply()
    return reply.headers["breakwater-cache"]


@pytest.mark.parametrize("which", [Purge(), Purge(tenant="t"), Purge(model="m")])
async def test_what_was_matched_by_meaning_goes_with_its_answer(
    which: Purge, capsys: pytest.CaptureFixture[str]
) -> None:
    async with understanding() as gateway:
        await gateway.add("router-2")
        gateway.hub.choose(lambda _: 0)
        await learned(gateway, HOW)
        assert await kept(gateway) == (1, 1)
        gateway.hub.choose(lambda n: n - 1)
        assert await verdict(gateway, ALIKE) == "semantic", "now in the other's memory too"
        assert await purged(gateway, capsys, which) == (1, 1)
        assert await kept(gateway) == (0, 0)
        for choose in (lambda _: 0, lambda n: n - 1):
            gateway.hub.choose(choose)
            assert await verdict(gateway, ALIKE) == "miss"
            assert await verdict(gateway, HOW) == "miss"


async def test_one_id_goes_and_its_neighbours_stay(capsys: pytest.CaptureFixture[str]) -> None:
    async with understanding() as gateway:
        await learned(gateway, HOW)
        await learned(gateway, "Who owns it?")
        await learned(gateway, HOW, tenant="other")
        reply = await question(gateway, ALIKE).reply()
        id_ = reply.headers["breakwater-cache-id"]
        which = await cache_commands.named(gateway.bus, id_, Purge(), as_json=True)
        assert which.tenant == "t"
        assert which.partition
        assert which.digest
        assert await purged(gateway, capsys, which) == (1, 1)
        assert await verdict(gateway, ALIKE) == "miss"
        assert await verdict(gateway, "Who owns it?") == "hit"
        assert await verdict(gateway, HOW, tenant="other") == "hit"
        assert await kept(gateway) == (2, 2)


@pytest.mark.parametrize("name", ["m1", "m*"])
async def test_a_model_goes_by_the_caller_s_name_and_by_the_configuration_s(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = cached(MEANT)
    model = msgspec.structs.replace(settings.models["m"], name="m*")
    async with stage(msgspec.structs.replace(settings, models={"m*": model})) as gateway:
        gateway.embedder = Chosen()
        await gateway.add("cache")
        await asyncio.sleep(1)
        await learned(gateway, HOW, model="m1")
        assert await kept(gateway) == (1, 1)
        assert await purged(gateway, capsys, Purge(model="another")) == (0, 0)
        assert await purged(gateway, capsys, Purge(model=name)) == (1, 1)
        assert await kept(gateway) == (0, 0)


async def test_rows_that_no_index_has_go_too(capsys: pytest.CaptureFixture[str]) -> None:
    async with understanding() as gateway:
        await learned(gateway, HOW)
        store = await gateway.bus.store(BUCKET)
        (row,) = [key for key in await store.keys() if key.startswith("e.")]
        shard = row.split(".")[1]
        await store.put(f"e.{shard}.garbage", b"\xc1 none")
        assert await purged(gateway, capsys, Purge(tenant="t")) == (1, 1)
        assert await kept(gateway) == (0, 1), "whose it is nobody knows"
        assert await purged(gateway, capsys, Purge()) == (0, 1)
        assert await kept(gateway) == (0, 0)


def bucket(gateway: Gateway, router: str) -> Store:
    """As that router reads and writes it."""
    found = gateway.actor(router)
    assert isinstance(found, Router)
    store = found._cache.kept.store
    assert store is not None
    return store


async def from_the_cache(gateway: Gateway) -> str:
    only = {"breakwater-cache": "only"}
    return (await gateway.ask(headers=only, temperature=0).reply()).headers["breakwater-cache"]


async def test_what_is_asked_for_while_a_purge_runs_is_gone_after_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async with stage(cached()) as gateway:
        await gateway.add("router-2")
        gateway.hub.choose(lambda _: 0)
        await answered(gateway)
        store, let = bucket(gateway, "router"), asyncio.Event()
        keys = store.keys

        async def later() -> list[str]:
            await let.wait()
            return await keys()

        monkeypatch.setattr(store, "keys", later)
        purge = asyncio.create_task(purged(gateway, capsys, Purge()))
        await asyncio.sleep(0.1)
        for choose in (lambda _: 0, lambda n: n - 1):
            gateway.hub.choose(choose)
            assert await from_the_cache(gateway) == "hit", "the bucket has it still"
        let.set()
        assert await purge == (1, 0)
        for choose in (lambda _: 0, lambda n: n - 1):
            gateway.hub.choose(choose)
            assert await from_the_cache(gateway) == "miss"


async def test_a_wrong_answer_that_is_asked_for_while_it_is_removed_does_not_stay_in_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with stage(cached()) as gateway:
        await gateway.add("router-2")
        gateway.hub.choose(lambda _: 0)
        await answered(gateway)
        store, let = bucket(gateway, "router"), asyncio.Event()
        id_ = "e" + (await store.keys())[0]
        delete = store.delete

        async def later(key: str) -> None:
            await let.wait()
            await delete(key)

        monkeypatch.setattr(store, "delete", later)
        said = json.dumps({"id": id_, "tenant": "t", "verdict": "wrong"}).encode()
        telling = asyncio.create_task(
            gateway.bus.ask("bw.v1.cache.exact.feedback", said, timeout_s=2)
        )
        await asyncio.sleep(0.1)
        for choose in (lambda _: 0, lambda n: n - 1):
            gateway.hub.choose(choose)
            assert await from_the_cache(gateway) == "hit", "the bucket has it still"
        let.set()
        await telling
        await asyncio.sleep(0.1)
        for choose in (lambda _: 0, lambda n: n - 1):
            gateway.hub.choose(choose)
            assert await from_the_cache(gateway) == "miss"


async def test_what_was_read_before_a_purge_and_arrives_after_it_is_not_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async with stage(cached()) as gateway:
        await gateway.add("router-2")
        gateway.hub.choose(lambda _: 0)
        await answered(gateway)
        store, read, let = bucket(gateway, "router-2"), asyncio.Event(), asyncio.Event()
        get = store.get

        async def late(key: str) -> Entry | None:
            found = await get(key)
            read.set()
            await let.wait()
            return found

        monkeypatch.setattr(store, "get", late)
        gateway.hub.choose(lambda n: n - 1)
        asking = asyncio.create_task(from_the_cache(gateway))
        await read.wait()
        gateway.hub.choose(lambda _: 0)
        await gateway.bus.ask("bw.v1.cache.exact.purge", b"{}", timeout_s=2)
        let.set()
        assert await asking == "miss"
        gateway.hub.choose(lambda n: n - 1)
        assert await from_the_cache(gateway) == "miss"


async def test_what_is_on_its_way_to_the_bucket_is_purged_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async with stage(cached()) as gateway:
        await gateway.add("router-2")
        gateway.hub.choose(lambda _: 0)
        store, let = bucket(gateway, "router"), asyncio.Event()
        put = store.put

        async def late(key: str, value: bytes, *, ttl_s: int | None = None) -> int:
            await let.wait()
            return await put(key, value, ttl_s=ttl_s)

        monkeypatch.setattr(store, "put", late)
        await answered(gateway)
        gateway.hub.choose(lambda n: n - 1)
        assert await purged(gateway, capsys, Purge()) == (0, 0)
        let.set()
        await asyncio.sleep(0.1)
        assert await kept(gateway) == (0, 0)


async def test_labels_stay_unless_they_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    policy = CachePolicy(semantic=Semantic(threshold=0.9, shadow=1.0, veto="off"))
    async with understanding(policy) as gateway:
        for tenant in ("t", "other"):
            await learned(gateway, HOW, tenant=tenant)
            await learned(gateway, ALIKE, tenant=tenant)
        store = await gateway.bus.store(BUCKET)

        async def tenants() -> list[str]:
            found = []
            for key in await store.keys():
                kept = await store.get(key) if key.startswith("l.") else None
                if kept is not None:
                    found.append(msgspec.json.decode(kept.value or b"", type=Label).tenant)
            return sorted(found)

        assert await tenants() == ["other", "t"]
        await purged(gateway, capsys, Purge(tenant="t"))
        assert await tenants() == ["other", "t"]
        assert (
            await cache_commands.forget(gateway.bus, Purge(tenant="t", labels=True), as_json=False)
            == 0
        )
        assert capsys.readouterr().out == "0 answers, 0 questions and 1 labels are gone\n"
        assert await tenants() == ["other"]
        await purged(gateway, capsys, Purge(labels=True))
        assert await store.keys() == []


async def test_shards_without_an_owner_are_told_of_and_the_purge_counts_as_failed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with understanding() as gateway:
        await learned(gateway, HOW)
        gateway.kill("cache")
        assert await cache_commands.forget(gateway.bus, Purge(), as_json=False) == 1
        said = capsys.readouterr()
        assert said.out == "1 answers and 0 questions are gone\n"
        assert "8 of 8 shards have no owner" in said.err
        assert await kept(gateway) == (0, 1)


async def test_garbage_under_a_digest_can_be_removed_by_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with stage(cached()) as gateway:
        await answered(gateway)
        await answered(gateway, tenant="other")
        await asyncio.sleep(1)
        store = await gateway.bus.store(ANSWERS, max_bytes=2**28, evicts=True)
        digest = (await store.keys())[0]
        await store.put(digest, b"\xc1 none")
        gateway.kill("router")
        await gateway.add("router-2")
        which = await cache_commands.named(gateway.bus, digest, Purge(), as_json=True)
        assert await purged(gateway, capsys, which) == (1, 0)
        assert await kept(gateway) == (1, 0)


async def test_an_answer_called_stale_by_meaning_is_not_given_to_its_own_question_either() -> None:
    async with understanding() as gateway:
        await learned(gateway, HOW)
        reply = await question(gateway, ALIKE).reply()
        said = {"id": reply.headers["breakwater-cache-id"], "tenant": "t", "verdict": "stale"}
        shard = said["id"][1:].partition("-")[0]
        subject = f"bw.v1.cache.{shard}.feedback"
        await gateway.bus.ask(subject, json.dumps(said).encode(), timeout_s=2)
        await asyncio.sleep(0.5)
        assert await verdict(gateway, HOW) == "miss"
        assert await kept(gateway) == (0, 0)
