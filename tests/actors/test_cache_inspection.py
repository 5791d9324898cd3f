"""What an operator hears of an entry, and of a request that is not made: the same that a request would."""

import asyncio
import json
from typing import Any

import msgspec
import pytest
from tests.actors.stage import ANSWER, SUBJECTS, Gateway, stage
from tests.actors.test_cache import COLD, answered, cached, learned, question, understanding
from tests.virtual_time import VirtualTimeLoop

from breakwater_gateway.cache import entry as entries
from breakwater_gateway.config.model import CachePolicy, Semantic
from breakwater_protocol import inspection as i

pytestmark = pytest.mark.anyio

HOW = "How deep is the harbour?"
ALIKE = "How deep is that harbour?"
LARGE = b"x" * ((1 << 20) + entries.BESIDES)


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}


async def inspected(gateway: Gateway, **asked: Any) -> i.Inspected:  # noqa: ANN401 - as `Inspect`
    subject = SUBJECTS.cache_inspect
    reply = await gateway.bus.ask(
        subject.at("exact"), subject.encode(i.Inspect(**asked)), timeout_s=5
    )
    return msgspec.json.decode(reply.data, type=i.Inspected)


async def as_if(
    gateway: Gateway,
    text: str = "hello",
    *,
    tenant: str = "t",
    headers: dict[str, str] | None = None,
    texts: bool = False,
    api: i.InspectApi = "chat",
    key: str = "",
    **fields: Any,  # noqa: ANN401 - as a body
) -> i.Inspected:
    body = {"model": "m", "messages": [{"role": "user", "content": text}], **fields}
    request = i.AsIf(
        body=msgspec.Raw(json.dumps(body).encode()), headers=headers or {}, api=api, key=key
    )
    return await inspected(gateway, tenant=tenant, request=request, texts=texts)


async def test_an_entry_is_shown_with_all_but_its_text() -> None:
    async with stage(cached()) as gateway:
        await answered(gateway)
        hit = await gateway.ask(**COLD).reply()
        await asyncio.sleep(1)
        id_ = hit.headers["breakwater-cache-id"]
        for asked in ({"id": id_}, {"digest": id_[1:]}, {"id": id_[1:], "tenant": "t"}):
            kept = (await inspected(gateway, **asked)).kept
            assert kept is not None
            assert (kept.tenant, kept.model, kept.api, kept.form) == ("t", "m", "chat", "body")
            assert (kept.in_memory, kept.in_bucket, kept.hits) == (True, True, 1), (
                "asking is no hit"
            )
            assert kept.bytes == len(ANSWER)
            assert kept.stored_at < kept.fresh_until <= kept.kept_until
            assert (kept.input_tokens, kept.output_tokens, kept.deployment) == (3, 1, "a")
            assert kept.cost_nano_usd == 3 * 150 + 600
            assert not kept.text
        assert ANSWER not in msgspec.json.encode(await inspected(gateway, id=id_))


async def test_a_text_is_shown_for_the_tenant_that_is_named_alone() -> None:
    async with stage(cached()) as gateway:
        await answered(gateway)
        id_ = (await gateway.ask(**COLD).reply()).headers["breakwater-cache-id"]
        await asyncio.sleep(1)
        nobody_s = await inspected(gateway, id=id_, texts=True)
        assert nobody_s.kept is not None
        assert nobody_s.kept.text == ""
        other = await inspected(gateway, id=id_, texts=True, tenant="other")
        assert (other.kept, other.skipped) == (None, "tenant")
        own = await inspected(gateway, id=id_, texts=True, tenant="t")
        assert own.kept is not None
        assert own.kept.text == "hi"


@pytest.mark.parametrize(
    ("id_", "code"),
    [("e" + "0" * 64, "unknown_id"), ("s3-nobody", "unknown_id"), ("x", "bad_id"), ("", "bad_id")],
)
async def test_an_id_that_names_nothing_is_told_so(id_: str, code: str) -> None:
    async with stage(cached()) as gateway:
        found = await inspected(gateway, id=id_)
        assert (found.code, found.kept) == (code, None)
        assert found.error


async def test_a_request_s_verdict_is_the_one_that_it_then_hears() -> None:
    async with stage(cached()) as gateway:
        before = await as_if(gateway, **COLD)
        assert (before.verdict, before.reason, before.kept) == ("miss", "miss", None)
        await answered(gateway)
        after = await as_if(gateway, temperature=0.0, stream=True)
        assert after.verdict == "hit"
        assert after.kept is not None
        assert after.keyed is not None
        assert after.kept.digest == after.keyed.digest
        hit = await gateway.ask(**COLD).reply()
        assert hit.headers["breakwater-cache-id"] == "e" + after.keyed.digest
        for case, verdict, reason in (
            ({"headers": {"breakwater-cache": "off"}}, "bypass", "off"),
            ({"temperature": 0.7}, "bypass", "sampled"),
            ({"headers": {"Breakwater-Cache": "refresh"}, **COLD}, "miss", "refresh"),
            ({"headers": {"breakwater-cache-ttl": "1ms"}, **COLD}, "miss", "past_its_time"),
            ({"tenant": "other", **COLD}, "miss", "miss"),
        ):
            found = await as_if(gateway, **case)
            assert (found.verdict, found.reason) == (verdict, reason), case
        await asyncio.sleep(0.1)
        assert gateway.provider.seen == ["a"], "nothing was called for it"
        assert len(gateway.requests) == 2


@pytest.mark.parametrize(
    ("case", "code"),
    [
        ({"model": "nobody"}, "model_not_found"),
        ({"headers": {"breakwater-cache": "maybe"}}, "invalid_request"),
        ({"messages": 3}, "invalid_request"),
        ({"key": "key_000000000000"}, "authentication"),
        ({"headers": {"breakwater-key": "bw-" + "x" * 43}}, "authentication"),
    ],
)
async def test_a_request_that_would_be_refused_is_told_why(case: dict[str, Any], code: str) -> None:
    async with stage(cached()) as gateway:
        found = await as_if(gateway, **case)
        assert (found.code, found.verdict) == (code, "")
        assert found.error


async def test_past_its_time_is_said_apart_from_never_kept() -> None:
    async with stage(cached(CachePolicy(exact_s=60.0, stale_if_error_s=600.0))) as gateway:
        await answered(gateway)
        await asyncio.sleep(1)
        gateway.wall.add(61)
        found = await as_if(gateway, **COLD)
        assert (found.verdict, found.reason) == ("miss", "past_its_time")
        assert found.kept is not None
        assert found.kept.fresh_until < found.at < found.kept.kept_until


async def test_a_poisoned_value_is_named_and_not_served() -> None:
    async with stage(cached()) as gateway:
        await answered(gateway)
        await asyncio.sleep(1)
        store = await gateway.bus.store("bw_cache", max_bytes=2**28, evicts=True)
        (digest,) = await store.keys()
        stored = await store.get(digest)
        assert stored is not None
        entry = entries.peek(stored.value or b"")
        assert entry is not None
        gateway.kill("router")
        await gateway.add("router-2")
        for bad, reason in (
            (entries.encode(msgspec.structs.replace(entry, tenant="evil")), "tenant"),
            (entries.encode(msgspec.structs.replace(entry, digest="0" * 64)), "digest"),
            (b"\xc1 no entry", "unreadable"),
            (entries.encode(msgspec.structs.replace(entry, payload=LARGE)), "size"),
        ):
            await store.put(digest, bad)
            found = await as_if(gateway, **COLD)
            assert (found.verdict, found.skipped, found.kept) == ("miss", reason, None)
            shown = await inspected(gateway, digest=digest, texts=True, tenant="t")
            assert (shown.kept, shown.skipped) == (None, reason)


VECTOR = {"object": "list", "data": [{"object": "embedding", "index": 0, "embedding": [1.0]}]}


@pytest.mark.parametrize(
    ("api", "body", "answer"),
    [
        ("messages", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 9}, ANSWER),
        ("responses", {"input": "hi"}, ANSWER),
        ("embeddings", {"input": ["hi"]}, json.dumps(VECTOR).encode()),
    ],
)
async def test_the_other_apis_have_the_key_of_their_requests_too(
    api: i.InspectApi, body: dict[str, Any], answer: bytes
) -> None:
    headers = {"anthropic-beta": "one"}
    fields = body if api == "embeddings" else {**body, "temperature": 0}
    asked = msgspec.Raw(json.dumps({"model": "m", **fields}).encode())
    async with stage(cached()) as gateway:
        caller = gateway.ask(api=api, headers=headers, **fields)
        (await gateway.provider.next_call()).reply(200, answer)
        await caller.reply()
        await asyncio.sleep(0.1)
        found = await inspected(
            gateway, tenant="t", request=i.AsIf(body=asked, api=api, headers=headers)
        )
        assert found.verdict == "hit", found
        assert found.kept is not None
        assert found.kept.api == api
        bare = await inspected(gateway, tenant="t", request=i.AsIf(body=asked, api=api))
        assert bare.verdict == ("miss" if api == "messages" else "hit")


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"[]",
        b"\xff\xfe",
        b'{"request":{"body":' + b"[" * 100_000 + b"]" * 100_000 + b"}}",
        b'{"request":{"body":1,"api":"other"}}',
        b'{"request":{"body":{"model":"m"},"headers":{"a":1}}}',
        b'{"id":' + b'"x"' * 2 + b"}",
    ],
)
async def test_what_is_no_inspection_is_refused_in_a_sentence(said: bytes) -> None:
    async with stage(cached()) as gateway:
        reply = await gateway.bus.ask("bw.v1.cache.exact.inspect", said, timeout_s=5)
        found = msgspec.json.decode(reply.data, type=i.Inspected)
        assert found.error
        assert len(found.error) < 500
        assert (await as_if(gateway, **COLD)).verdict == "miss"


# ---------------------------------------------------------------- what means the same


async def test_a_hit_by_meaning_is_told_in_full_and_nothing_is_counted_for_it() -> None:
    async with understanding() as gateway:
        await learned(gateway, HOW)
        found = await as_if(gateway, ALIKE)
        assert (found.verdict, found.reason) == ("semantic", "")
        meaning = found.meaning
        assert meaning is not None
        assert (meaning.owner, meaning.embedder) == ("cache", "chosen")
        assert (meaning.threshold, meaning.configured, meaning.margin) == (0.9, 0.9, 0.15)
        assert meaning.nearest == pytest.approx(0.97, abs=1e-3)
        assert meaning.score == meaning.nearest
        (near,) = meaning.candidates
        assert (near.same_answer, near.slots, near.out) == (True, "", "")
        assert near.question.text == ""
        assert near.question.hits == 0
        texts = await as_if(gateway, ALIKE, texts=True)
        assert texts.meaning is not None
        assert texts.meaning.candidates[0].question.text == HOW
        reply = await question(gateway, ALIKE).reply()
        id_ = reply.headers["breakwater-cache-id"]
        served = await inspected(gateway, id=id_)
        assert served.kept is not None
        assert served.meaning is not None
        assert served.meaning.served == pytest.approx(0.97, abs=1e-3)
        assert served.meaning.question is not None
        assert served.meaning.question.digest == served.kept.digest == near.question.digest
        assert served.meaning.question.hits == 1
        assert served.meaning.question.dimensions == 64
        by_digest = await inspected(gateway, digest=served.kept.digest)
        assert by_digest.meaning is not None
        assert by_digest.meaning.question == served.meaning.question


async def test_why_a_question_is_no_hit_is_told() -> None:
    async with understanding() as gateway:
        await learned(gateway, HOW)
        for case, reason in (
            ({"text": "Who owns it?"}, "below"),
            ({"text": ALIKE, "headers": {"breakwater-cache-threshold": "0.99"}}, "below"),
            ({"text": ALIKE, "max_tokens": 7}, "empty"),
            ({"text": ALIKE, "tenant": "other"}, "empty"),
        ):
            found = await as_if(gateway, **case)
            assert (found.verdict, found.reason) == ("miss", reason), case
        for text, why in (
            ("What is the weather now?", "volatile"),
            ("Call +49 170 1234567", "personal"),
        ):
            found = await as_if(gateway, text)
            assert found.keyed is not None
            assert (found.verdict, found.keyed.no_meaning) == ("miss", why)
        lower = await as_if(gateway, ALIKE, headers={"breakwater-cache-threshold": "0.5"})
        assert lower.code == "invalid_request"
        reply = await question(gateway, ALIKE).reply()
        said = {"id": reply.headers["breakwater-cache-id"], "tenant": "t", "verdict": "wrong"}
        shard = said["id"][1:].partition("-")[0]
        await gateway.bus.ask(
            f"bw.v1.cache.{shard}.feedback", json.dumps(said).encode(), timeout_s=2
        )
        found = await as_if(gateway, ALIKE)
        assert (found.verdict, found.reason) == ("miss", "quarantined")
        assert found.meaning is not None
        assert found.meaning.candidates[0].question.quarantined == pytest.approx(0.97, abs=1e-3)
        gateway.kill("cache")
        assert (await as_if(gateway, ALIKE)).reason == "no_owner"


async def test_a_slot_that_keeps_two_questions_apart_is_named() -> None:
    policy = CachePolicy(semantic=Semantic(threshold=0.9, shadow=0.0, veto="strict"))
    async with understanding(policy) as gateway:
        await learned(gateway, "How deep are the 2 harbours?")
        embedder: Any = gateway.embedder
        embedder.says("How deep are the 3 harbours?", "How deep are the 2 harbours?", 0.99)
        found = await as_if(gateway, "How deep are the 3 harbours?")
        assert (found.verdict, found.reason) == ("miss", "slots")
        assert found.meaning is not None
        assert found.meaning.candidates[0].slots == "number"
        assert (await question_misses(gateway, "How deep are the 3 harbours?")) == "miss"


async def test_an_answer_that_is_gone_or_another_s_is_no_hit_by_meaning() -> None:
    async with understanding() as gateway:
        await learned(gateway, HOW)
        store = await gateway.bus.store("bw_cache", max_bytes=2**28, evicts=True)
        (digest,) = await store.keys()
        stored = await store.get(digest)
        assert stored is not None
        entry = entries.peek(stored.value or b"")
        assert entry is not None
        gateway.kill("router")
        await gateway.add("router-2")
        await asyncio.sleep(1)
        for change, reason in (
            ({"tenant": "evil"}, "tenant"),
            ({"partition": "p" * 64}, "partition"),
            ({"model": "another"}, "model"),
        ):
            await store.put(digest, entries.encode(msgspec.structs.replace(entry, **change)))
            found = await as_if(gateway, ALIKE)
            assert (found.verdict, found.reason, found.skipped) == ("miss", "gone", reason)
        await store.delete(digest)
        assert (await as_if(gateway, ALIKE)).reason == "gone"
        assert (await question_misses(gateway, ALIKE)) == "miss"


async def question_misses(gateway: Gateway, text: str) -> str:
    return (await learned(gateway, text)).headers["breakwater-cache"]
