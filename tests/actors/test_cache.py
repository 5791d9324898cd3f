"""The cache at work: real routers and workers, and a provider that counts its calls."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

import msgspec
import pytest
from tests.actors.stage import ANSWER, SUBJECTS, Call, Caller, Gateway, config, delta, stage
from tests.actors.test_semantic_cache import Chosen
from tests.virtual_time import VirtualTimeLoop

from breakwater_gateway.cache import entry as entries
from breakwater_gateway.cache.semantic import decode_entry, encode_entry
from breakwater_gateway.cli.cache_warming import BadRows, read_rows, warm
from breakwater_gateway.config import codec
from breakwater_gateway.config.model import (
    Auth,
    CachePolicy,
    Config,
    Limits,
    Price,
    RateLimit,
    Rung,
    Semantic,
)
from breakwater_gateway.identity import issue
from breakwater_gateway.runtime.bus import Message, headers_size
from breakwater_gateway.runtime.memory_bus import MemoryStore
from breakwater_gateway.runtime.metrics import render
from breakwater_gateway.runtime.service import publish_config
from breakwater_protocol.answers import StreamFrames
from breakwater_protocol.cache import (
    Feedback,
    FeedbackReply,
    Purge,
    PurgeReply,
    ShardStats,
    Verdict,
)
from breakwater_protocol.commands import Cancel, Work
from breakwater_protocol.events import CacheChanged
from breakwater_protocol.keys import BUCKET as KEYS
from breakwater_protocol.keys import KeyRecord

pytestmark = pytest.mark.anyio

POLICY = CachePolicy()
PRICE = Price(input=150, output=600)
COLD: dict[str, Any] = {"temperature": 0}
"""Not sampled: what the cache keeps unless a model's configuration says more."""

USAGE = b'data: {"id":"c1","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":1}}\n\n'
"""Of a stream, before its last word."""


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}


def cached(
    cache: CachePolicy = POLICY, *, limits: Limits | None = None, ladder: tuple[Rung, ...] = ()
) -> Config:
    settings = config("a", price=PRICE, limits=limits)
    model = msgspec.structs.replace(settings.models["m"], cache=cache, ladder=ladder)
    return msgspec.structs.replace(settings, models={"m": model})


async def answered(
    gateway: Gateway,
    body: bytes = ANSWER,
    *,
    tenant: str = "t",
    headers: dict[str, str] | None = None,
    temperature: float = 0,
) -> Message:
    """A request that calls the provider."""
    caller = gateway.ask(tenant=tenant, headers=headers, temperature=temperature)
    (await gateway.provider.next_call()).reply(200, body)
    reply = await caller.reply()
    await asyncio.sleep(0.1)
    return reply


def says(message: Message) -> str:
    text: str = json.loads(message.data)["choices"][0]["message"]["content"]
    return text


def said(messages: list[Message]) -> str:
    lines = [line for m in messages for line in m.data.split(b"\n") if line]
    return "".join(
        choice["delta"].get("content", "")
        for line in lines
        for choice in json.loads(line)["choices"]
    )


def read(caller: Caller) -> tuple[str, str]:
    """What a reader makes of the stream's messages, and how it ends."""
    frames, found, end = StreamFrames(), [], ""
    for message in caller.all:
        verdict = frames.take(message.headers)
        if verdict != "ignore":
            found.append(message)
        if verdict == "end":
            assert not end
            end = message.headers["breakwater-end"]
    return said(found), end


async def whole(caller: Caller) -> list[Message]:
    """A stream up to its end."""
    found = [await caller.reply()]
    while "breakwater-end" not in found[-1].headers:
        found.append(await caller.reply())
    return found


def stream(call: Call, *words: str) -> None:
    call.start()
    for word in words:
        call.send(delta(word))
    call.send(delta("", "stop"), b"data: [DONE]\n\n")
    call.end()


async def test_the_same_request_is_answered_without_a_call_and_says_so() -> None:
    async with stage(cached()) as gateway:
        first = await answered(gateway)
        assert first.headers["breakwater-cache"] == "miss"
        second = await gateway.ask(
            messages=[{"content": "hello", "role": "user"}], temperature=0.0
        ).reply()
        assert says(second) == "hi"
        assert json.loads(second.data)["id"] != "c1"
        facts = {k.removeprefix("breakwater-"): v for k, v in second.headers.items()}
        assert facts["cache"] == "hit"
        assert facts["rung"] == "primary"
        assert facts["deployment"] == "a"
        assert facts["cost-usd"] == "0.000000000"
        assert facts["attempts"] == "0"
        assert facts["request-id"] == "r2"
        assert facts["cache-age"] == "0"
        assert facts["cache-id"].startswith("e")
        assert gateway.provider.seen == ["a"]
        await asyncio.sleep(0.1)
        miss, hit = gateway.requests
        assert (miss.cache, miss.cost_nano_usd, miss.cost_saved_nano_usd) == ("miss", 1050, None)
        assert (hit.cache, hit.cost_nano_usd, hit.cost_saved_nano_usd) == ("hit", 0, 1050)
        assert hit.outcome == "ok"


async def test_a_request_that_was_answered_from_memory_is_over_at_once() -> None:
    """What is told of it comes later; nothing that comes meanwhile may take it for one in flight."""
    settings = msgspec.structs.replace(
        cached(), rate_limits=(RateLimit("user", "*", concurrent=1),)
    )
    headers = {"breakwater-user": "ann"}
    async with stage(settings) as gateway:
        await answered(gateway, headers=headers)
        for _ in range(5):
            reply = await gateway.ask(headers=headers, **COLD).reply()
            assert reply.headers["breakwater-cache"] == "hit"
            assert gateway.actor("router").load().in_flight == 0


async def test_a_cancel_after_the_answer_changes_nothing() -> None:
    async with stage(cached()) as gateway:
        await answered(gateway)
        caller = gateway.ask(**COLD)
        await caller.reply()
        cancel(gateway, "r2")
        await asyncio.sleep(0.1)
        assert len(caller.all) == 1
        assert [(r.request, r.outcome) for r in gateway.requests] == [("r1", "ok"), ("r2", "ok")]


async def test_an_id_that_comes_again_right_after_its_answer_is_answered_again() -> None:
    async with stage(cached()) as gateway:
        headers = {"breakwater-request-id": "mine"}
        await answered(gateway, headers=headers)
        replies = [await gateway.ask(headers=headers, **COLD).reply() for _ in range(3)]
        assert [r.headers["breakwater-request-id"] for r in replies] == ["mine"] * 3
        await asyncio.sleep(0.1)
        assert [(r.request, r.cache) for r in gateway.requests[1:]] == [("mine", "hit")] * 3
        assert gateway.provider.seen == ["a"]


@pytest.mark.parametrize("end", ["stop", "drain"])
async def test_a_router_that_leaves_right_after_an_answer_still_tells_of_it_once(end: str) -> None:
    async with stage(cached()) as gateway:
        await answered(gateway)
        caller = gateway.ask(**COLD)
        await caller.reply()
        router = gateway.actor("router")
        await (router.stop() if end == "stop" else router.drain())
        await asyncio.sleep(0.1)
        assert [(r.request, r.outcome, r.cache) for r in gateway.requests] == [
            ("r1", "ok", "miss"),
            ("r2", "ok", "hit"),
        ]
        assert len(caller.all) == 1


async def test_the_event_of_a_hit_tells_the_time_of_its_answer() -> None:
    async with stage(cached()) as gateway:
        await answered(gateway)
        await gateway.ask(**COLD).reply()
        answered_at = gateway.wall()
        await asyncio.sleep(0.1)
        hit = gateway.requests[-1]
        assert (hit.duration_ms, hit.overhead_ms) == (0.0, 0.0)
        assert hit.at == pytest.approx(answered_at, abs=1e-5)


async def test_a_body_that_came_before_is_still_held_against_all_that_may_have_changed() -> None:
    record, secret = issue.made(
        random=b"r" * 32, id_random=b"i" * 6, now=0.0, tenant="t", user="ann"
    )
    auth = msgspec.convert({"mode": "keys", "nats": "key"}, Auth)
    async with stage(msgspec.structs.replace(cached(), auth=auth)) as gateway:
        keys = await gateway.bus.store(KEYS)
        await keys.put(record.id, msgspec.json.encode(record))
        await asyncio.sleep(0.1)
        headers = {"breakwater-key": secret}
        await answered(gateway, headers=headers)
        for _ in range(3):
            reply = await gateway.ask(headers=headers, **COLD).reply()
            assert reply.headers["breakwater-cache"] == "hit"
        assert (await gateway.ask(**COLD).error())["status"] == 401
        assert (await gateway.ask(tenant="u", headers=headers, **COLD).error())["status"] == 403
        await keys.put(record.id, msgspec.json.encode(issue.revoked(record, now=0.0)))
        await asyncio.sleep(0.1)
        assert (await gateway.ask(headers=headers, **COLD).error())["status"] == 401


async def test_a_body_that_came_before_is_read_anew_after_a_change_of_the_configuration() -> None:
    settings = cached()
    async with stage(settings) as gateway:
        await answered(gateway)
        for _ in range(3):
            assert (await gateway.ask(**COLD).reply()).headers["breakwater-cache"] == "hit"
        limits = msgspec.structs.replace(settings.limits, body_bytes=10)
        smaller = msgspec.structs.replace(settings, limits=limits)
        await publish_config(gateway.bus, SUBJECTS, codec.encode(smaller))
        await asyncio.sleep(1)
        assert (await gateway.ask(**COLD).error())["status"] == 413


async def test_what_is_sampled_is_neither_kept_nor_shared_unless_the_model_says_so() -> None:
    async with stage(cached()) as gateway:
        callers = [gateway.ask(), gateway.ask(temperature=0.7), gateway.ask()]
        for caller in callers:
            (await gateway.provider.next_call()).reply(200, ANSWER)
            assert (await caller.reply()).headers["breakwater-cache"] == "bypass"
    async with stage(cached(CachePolicy(sampled=True))) as gateway:
        await answered(gateway, temperature=0.7)
        again = await gateway.ask(temperature=0.7).reply()
        assert again.headers["breakwater-cache"] == "hit"


async def test_nothing_is_kept_for_a_model_whose_cache_is_off() -> None:
    async with stage(cached(CachePolicy(exact_s=0))) as gateway:
        for _ in range(2):
            assert (await answered(gateway)).headers["breakwater-cache"] == "bypass"


@pytest.mark.parametrize("usage", [True, False])
async def test_one_entry_serves_streams_and_whole_answers(usage: bool) -> None:
    async with stage(cached()) as gateway:
        caller = gateway.ask(stream=True, **COLD)
        stream(await gateway.provider.next_call(), "Hel", "lo")
        first = await whole(caller)
        await asyncio.sleep(0.1)
        options = {"include_usage": usage}
        again = await whole(gateway.ask(stream=True, stream_options=options, **COLD))
        assert said(again) == said(first) == "Hello"
        assert [m.headers["breakwater-seq"] for m in again] == ["0", "1"]
        assert again[-1].headers["breakwater-cache"] == "hit"
        assert says(await gateway.ask(**COLD).reply()) == "Hello"
        assert gateway.provider.seen == ["a"]


async def test_a_whole_answer_is_streamed_with_usage_when_asked() -> None:
    async with stage(cached()) as gateway:
        await answered(gateway)
        options = {"include_usage": True}
        replies = await whole(gateway.ask(stream=True, stream_options=options, **COLD))
        assert said(replies) == "hi"
        last = json.loads(replies[0].data.split(b"\n")[-1])
        assert last["usage"]["prompt_tokens"] == 3
        assert last["choices"] == []
        plain = await whole(gateway.ask(stream=True, **COLD))
        assert b"prompt_tokens" not in plain[0].data


@pytest.mark.parametrize(
    "choice",
    [
        {"message": {"role": "assistant", "content": "hi"}, "finish_reason": "length"},
        {
            "message": {"role": "assistant", "content": None, "refusal": "no"},
            "finish_reason": "stop",
        },
        {
            "message": {
                "role": "assistant",
                "tool_calls": [
                    {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
                ],
            },
            "finish_reason": "tool_calls",
        },
        {"message": {"role": "assistant", "content": ""}, "finish_reason": "content_filter"},
    ],
)
async def test_an_answer_that_is_not_complete_is_not_kept(choice: dict[str, Any]) -> None:
    async with stage(cached()) as gateway:
        body = json.dumps({"id": "c", "choices": [{"index": 0, **choice}]}).encode()
        await answered(gateway, body)
        await answered(gateway)
        assert len(gateway.provider.seen) == 2


async def test_an_answer_beyond_the_bound_is_passed_on_and_not_kept() -> None:
    async with stage(cached(limits=Limits(cache_answer_bytes=2_000))) as gateway:
        body = ANSWER.replace(b'"hi"', b'"' + b"x" * 5_000 + b'"')
        for _ in range(2):
            assert len(says(await answered(gateway, body))) == 5_000
        assert gateway.provider.seen == ["a", "a"]


async def test_entries_end_with_their_time_and_a_caller_may_want_a_shorter_one() -> None:
    async with stage(cached(CachePolicy(exact_s=100))) as gateway:
        await answered(gateway)
        shorter = {"breakwater-cache-ttl": "1ms"}
        clock = gateway.wall
        clock.add(50)
        assert (await gateway.ask(**COLD).reply()).headers["breakwater-cache"] == "hit"
        caller = gateway.ask(headers=shorter, **COLD)
        (await gateway.provider.next_call()).reply(200, ANSWER)
        assert (await caller.reply()).headers["breakwater-cache"] == "miss"
        clock.add(101)
        await answered(gateway)
        assert gateway.provider.seen == ["a", "a", "a"]


async def test_a_caller_may_pass_the_cache_by_or_renew_what_it_has_or_want_nothing_else() -> None:
    async with stage(cached()) as gateway:
        only = {"breakwater-cache": "only"}
        refused = await gateway.ask(headers=only, **COLD).error()
        assert (refused["status"], refused["code"]) == (504, "not_cached")
        await answered(gateway)
        assert says(await gateway.ask(headers=only, **COLD).reply()) == "hi"
        caller = gateway.ask(headers={"breakwater-cache": "off"}, **COLD)
        (await gateway.provider.next_call()).reply(200, ANSWER.replace(b"hi", b"off"))
        assert (await caller.reply()).headers["breakwater-cache"] == "bypass"
        assert says(await gateway.ask(**COLD).reply()) == "hi"
        await answered(
            gateway, ANSWER.replace(b"hi", b"new"), headers={"breakwater-cache": "refresh"}
        )
        assert says(await gateway.ask(**COLD).reply()) == "new"


async def test_tenants_users_and_namespaces_share_nothing() -> None:
    async with stage(cached(CachePolicy(scope="user"))) as gateway:
        for tenant, headers in (
            ("t", {"breakwater-user": "ann"}),
            ("t", {"breakwater-user": "bob"}),
            ("other", {"breakwater-user": "ann"}),
            ("t", {"breakwater-user": "ann", "breakwater-cache-namespace": "n"}),
        ):
            reply = await answered(gateway, tenant=tenant, headers=headers)
            assert reply.headers["breakwater-cache"] == "miss"
        nobody = await answered(gateway)
        assert nobody.headers["breakwater-cache"] == "bypass"
        ann = await gateway.ask(headers={"breakwater-user": "ann"}, **COLD).reply()
        assert ann.headers["breakwater-cache"] == "hit"
        assert len(gateway.provider.seen) == 5


async def test_embeddings_are_kept_and_never_streamed() -> None:
    async with stage(cached()) as gateway:
        body = json.dumps(
            {"data": [{"index": 0, "embedding": [0.5], "object": "embedding"}]}
        ).encode()
        caller = gateway.ask(api="embeddings", input="x")
        (await gateway.provider.next_call()).reply(200, body)
        await caller.reply()
        await asyncio.sleep(0.1)
        again = await gateway.ask(api="embeddings", input=["x"]).reply()
        assert json.loads(again.data)["data"][0]["embedding"] == [0.5]
        assert again.headers["breakwater-cache"] == "hit"


# ---------------------------------------------------------------- what other routers wrote


async def test_a_router_that_starts_again_finds_what_was_kept() -> None:
    async with stage(cached()) as gateway:
        await answered(gateway)
        await asyncio.sleep(1)
        gateway.kill("router")
        await gateway.add("router-2")
        again = await gateway.ask(**COLD).reply()
        assert again.headers["breakwater-cache"] == "hit"
        assert gateway.provider.seen == ["a"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tenant": "evil"}, "tenant"),
        ({"digest": "0" * 64}, "digest"),
        ({"api": "messages"}, "api"),
        ({"model": "another"}, "model"),
        ({"payload": b"x" * (1 << 20) + b"x" * entries.BESIDES}, "size"),
        ({"version": 99}, "version"),
        ({"fresh_s": float("nan")}, "times"),
        ({"kept_s": -1.0}, "times"),
        (None, "unreadable"),
    ],
)
async def test_a_poisoned_entry_is_skipped_with_a_reason(
    change: dict[str, Any] | None, reason: str
) -> None:
    async with stage(cached()) as gateway:
        await answered(gateway)
        await asyncio.sleep(1)
        store = await gateway.bus.store("bw_cache", max_bytes=2**28, evicts=True)
        (digest,) = await store.keys()
        stored = await store.get(digest)
        assert stored is not None
        assert stored.value is not None
        entry = entries.peek(stored.value)
        assert entry is not None
        bad = b"\xc1 no entry"
        if change is not None:
            bad = entries.encode(msgspec.structs.replace(entry, **change))
        await store.put(digest, bad)
        gateway.kill("router")
        await gateway.add("router-2")
        caller = gateway.ask(**COLD)
        (await gateway.provider.next_call()).reply(200, ANSWER)
        assert (await caller.reply()).headers["breakwater-cache"] == "miss"
        text = render([gateway.metrics.snapshot()]).decode()
        assert f'result="skipped_{reason}"' in text


async def test_a_bucket_that_does_not_answer_is_a_miss_within_its_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with stage(cached()) as gateway:
        await gateway.add("router-2")  # somebody else may have written: the bucket is asked
        await asyncio.sleep(1)

        async def slow(self: MemoryStore, key: str) -> None:
            await asyncio.sleep(10)

        monkeypatch.setattr(MemoryStore, "get", slow)
        began = asyncio.get_running_loop().time()
        caller = gateway.ask(**COLD)
        (await gateway.provider.next_call()).reply(200, ANSWER)
        assert (await caller.reply()).headers["breakwater-cache"] == "miss"
        assert asyncio.get_running_loop().time() - began < 0.05


# ---------------------------------------------------------------- shared calls


async def test_a_hundred_requests_at_once_are_one_call_and_a_hundred_whole_streams() -> None:
    async with stage(cached()) as gateway:
        callers = [gateway.ask(stream=True, **COLD) for _ in range(60)]
        call = await gateway.provider.next_call()
        call.start()
        call.send(delta("Hel"))
        await callers[59].reply()
        callers += [gateway.ask(stream=True, **COLD) for _ in range(40)]
        await asyncio.sleep(0.01)
        call.send(delta("lo"), delta("", "stop"), b"data: [DONE]\n\n")
        call.end()
        await asyncio.sleep(1)
        assert gateway.provider.seen == ["a"]
        for number, caller in enumerate(callers):
            assert said(caller.all) == "Hello"
            end = caller.all[-1].headers
            assert end["breakwater-end"] == "ok"
            assert end["breakwater-request-id"] == f"r{number + 1}"
            assert end["breakwater-cache"] == ("coalesced" if number else "miss")
            numbers = [m.headers["breakwater-seq"] for m in caller.all]
            assert numbers == [str(n) for n in range(len(numbers))]
        assert len(gateway.requests) == 100
        assert sum(r.cost_nano_usd or 0 for r in gateway.requests[1:]) == 0
        assert {r.outcome for r in gateway.requests} == {"ok"}


async def test_the_call_goes_on_when_its_leader_leaves_and_others_wait() -> None:
    async with stage(cached()) as gateway:
        callers = [gateway.ask(stream=True, **COLD) for _ in range(100)]
        call = await gateway.provider.next_call()
        call.start()
        call.send(delta("Hel"))
        await callers[99].reply()
        cancel(gateway, "r1")
        await asyncio.sleep(0.1)
        call.send(delta("lo"), delta("", "stop"), b"data: [DONE]\n\n")
        call.end()
        await asyncio.sleep(1)
        assert [said(c.all) for c in callers[1:]] == ["Hello"] * 99
        assert all(c.all[-1].headers["breakwater-end"] == "ok" for c in callers[1:])
        assert gateway.provider.seen == ["a"]
        by_id = {r.request: r.outcome for r in gateway.requests}
        assert by_id.pop("r1") == "cancelled"
        assert set(by_id.values()) == {"ok"}


async def test_the_call_ends_when_nobody_waits_any_more() -> None:
    async with stage(cached()) as gateway:
        for _ in range(3):
            gateway.ask(stream=True, **COLD)
        call = await gateway.provider.next_call()
        call.start()
        call.send(delta("Hel"))
        await asyncio.sleep(0.1)
        for request in ("r1", "r3"):
            cancel(gateway, request)
        await asyncio.sleep(0.1)
        assert not call.answer.closed.is_set()
        cancel(gateway, "r2")
        async with asyncio.timeout(0.2):
            await call.answer.closed.wait()
        await asyncio.sleep(0.1)
        assert {r.outcome for r in gateway.requests} == {"cancelled"}
        assert len(gateway.requests) == 3


async def test_a_leader_that_nobody_follows_is_cancelled_as_ever() -> None:
    async with stage(cached()) as gateway:
        gateway.ask(**COLD)
        call = await gateway.provider.next_call()
        cancel(gateway, "r1")
        async with asyncio.timeout(0.2):
            await call.aborted.wait()
        await asyncio.sleep(0.1)
        assert [r.outcome for r in gateway.requests] == ["cancelled"]


async def test_a_follower_leads_when_the_leader_s_time_is_up_before_anything_was_said() -> None:
    async with stage(cached()) as gateway:
        first = gateway.ask(headers={"breakwater-timeout": "1s"}, **COLD)
        others = [gateway.ask(**COLD) for _ in range(5)]
        await gateway.provider.next_call()
        assert (await first.error())["code"] == "timeout"
        (await gateway.provider.next_call()).reply(200, ANSWER)
        replies = [await caller.reply() for caller in others]
        assert [says(reply) for reply in replies] == ["hi"] * 5
        assert [r.headers["breakwater-cache"] for r in replies] == ["miss"] + ["coalesced"] * 4


async def test_what_is_wrong_with_the_request_is_told_to_all_that_asked_it() -> None:
    async with stage(cached()) as gateway:
        callers = [gateway.ask(**COLD) for _ in range(5)]
        call = await gateway.provider.next_call()
        call.reply(400, b'{"error":{"message":"bad","code":"x","type":"invalid_request_error"}}')
        assert [(await caller.error())["code"] for caller in callers] == ["invalid_request"] * 5
        assert gateway.provider.seen == ["a"]


async def test_providers_that_are_down_are_not_asked_once_for_each_that_waits() -> None:
    async with stage(cached()) as gateway:
        callers = [gateway.ask(**COLD) for _ in range(50)]

        async def refuse() -> None:
            while True:
                (await gateway.provider.next_call()).reply(500, b"{}")

        refusing = asyncio.ensure_future(refuse())
        for caller in callers:
            await caller.error()
        refusing.cancel()
        assert len(gateway.provider.seen) <= 2 * 3


async def test_a_worker_s_death_before_the_first_byte_costs_no_follower_its_answer() -> None:
    async with stage(cached(), workers=2) as gateway:
        callers = [gateway.ask(stream=True, **COLD) for _ in range(10)]
        await gateway.provider.next_call()
        (holder,) = [
            name
            for name in ("worker", "worker-2")
            if any(actor.load().in_flight for actor in gateway.supervisors[name].actors)
        ]
        gateway.kill(holder)
        stream(await gateway.provider.next_call(), "Hel", "lo")
        for caller in callers:
            assert said(await whole(caller)) == "Hello"


async def test_a_cut_stream_ends_as_partial_for_all_and_is_not_kept() -> None:
    async with stage(cached()) as gateway:
        callers = [gateway.ask(stream=True, **COLD) for _ in range(3)]
        call = await gateway.provider.next_call()
        call.start()
        call.send(delta("Hel"))
        await callers[2].reply()
        call.cut()
        await asyncio.sleep(1)
        for caller in callers:
            assert caller.all[-1].headers["breakwater-end"] == "partial"
        await answered(gateway)
        assert gateway.provider.seen == ["a", "a"]


async def test_a_follower_s_own_deadline_holds() -> None:
    async with stage(cached()) as gateway:
        gateway.ask(**COLD)
        hurried = gateway.ask(headers={"breakwater-timeout": "1s"}, **COLD)
        call = await gateway.provider.next_call()
        assert (await hurried.error())["code"] == "timeout"
        call.reply(200, ANSWER)
        await asyncio.sleep(0.1)
        assert {r.request: r.outcome for r in gateway.requests} == {"r1": "ok", "r2": "timeout"}


async def test_who_wants_a_whole_answer_waits_for_the_end_of_a_stream() -> None:
    async with stage(cached()) as gateway:
        streaming = gateway.ask(stream=True, **COLD)
        call = await gateway.provider.next_call()
        waiting = gateway.ask(**COLD)
        stream(call, "Hel", "lo")
        assert said(await whole(streaming)) == "Hello"
        reply = await waiting.reply()
        assert says(reply) == "Hello"
        assert reply.headers["breakwater-cache"] == "coalesced"
        assert gateway.provider.seen == ["a"]


async def test_a_stream_that_finds_a_whole_call_is_given_its_answer_at_once() -> None:
    async with stage(cached()) as gateway:
        first = gateway.ask(**COLD)
        call = await gateway.provider.next_call()
        waiting = [
            gateway.ask(stream=True, **COLD),
            gateway.ask(stream=True, stream_options={"include_usage": True}, **COLD),
        ]
        await asyncio.sleep(1)
        call.reply(200, ANSWER)
        assert says(await first.reply()) == "hi"
        streams = [await whole(caller) for caller in waiting]
        assert [said(messages) for messages in streams] == ["hi"] * 2
        assert {messages[-1].headers["breakwater-cache"] for messages in streams} == {"coalesced"}
        assert b'"usage"' not in streams[0][0].data
        assert b'"total_tokens":4' in streams[1][0].data
        assert gateway.provider.seen == ["a"]


async def test_a_stream_waits_for_a_whole_answer_for_half_its_time_to_a_first_token() -> None:
    async with stage(cached()) as gateway:
        first = gateway.ask(**COLD)
        call = await gateway.provider.next_call()
        began = asyncio.get_running_loop().time()
        waiting = [
            gateway.ask(stream=True, headers={"breakwater-ttft-timeout": "2s"}, **COLD)
            for _ in range(3)
        ]
        own = await gateway.provider.next_call()
        assert asyncio.get_running_loop().time() - began == pytest.approx(1.0, abs=0.1)
        stream(own, "Hel", "lo")
        for caller in waiting:
            assert said(await whole(caller)) == "Hello"
        call.reply(200, ANSWER)
        assert says(await first.reply()) == "hi"
        assert gateway.provider.seen == ["a", "a"], "the streams that waited share one call"


@pytest.mark.parametrize("led_with_usage", [False, True])
async def test_streams_share_a_call_whether_or_not_they_want_usage(led_with_usage: bool) -> None:
    usage: dict[str, Any] = {"stream_options": {"include_usage": True}}
    async with stage(cached()) as gateway:
        callers = [
            gateway.ask(stream=True, **(usage if wants else {}), **COLD)
            for wants in (led_with_usage, True, False)
        ]
        call = await gateway.provider.next_call()
        call.start()
        call.send(delta("Hi"), delta("", "stop"))
        call.send(USAGE, b"data: [DONE]\n\n")
        call.end()
        answers = [await whole(caller) for caller in callers]
        for messages, wants in zip(answers, (led_with_usage, True, False), strict=True):
            assert said(messages) == "Hi"
            told = [m for m in messages if b'"usage"' in m.data]
            assert len(told) == wants
            numbers = [m.headers["breakwater-seq"] for m in messages]
            assert numbers == [str(n) for n in range(len(numbers))]
        assert all("breakwater-usage" not in m.headers for each in answers for m in each)
        assert gateway.provider.seen == ["a"]


async def test_what_is_not_kept_is_shared_with_all_that_wait_for_it() -> None:
    cut = json.loads(ANSWER)
    cut["choices"][0]["finish_reason"] = "length"
    async with stage(cached()) as gateway:
        first = gateway.ask(**COLD)
        call = await gateway.provider.next_call()
        waiting = gateway.ask(stream=True, **COLD)
        await asyncio.sleep(0.1)
        call.reply(200, json.dumps(cut).encode())
        assert says(await first.reply()) == "hi"
        assert said(await whole(waiting)) == "hi"
        await asyncio.sleep(0.1)
        assert gateway.provider.seen == ["a"]
        gateway.ask(**COLD)
        await gateway.provider.next_call()


# ---------------------------------------------------------------- stale


async def test_what_is_past_its_time_is_served_only_when_nothing_else_answers() -> None:
    ladder = (Rung("cache"), Rung("stale"))
    async with stage(
        cached(CachePolicy(exact_s=60, stale_if_error_s=3_600), ladder=ladder)
    ) as gateway:
        await answered(gateway)
        gateway.wall.add(100)
        await answered(gateway, ANSWER.replace(b"hi", b"fresh"))
        gateway.wall.add(100)
        caller = gateway.ask(**COLD)
        for _ in range(3):
            (await gateway.provider.next_call()).reply(500, b"{}")
        reply = await caller.reply()
        assert says(reply) == "fresh"
        assert reply.headers["breakwater-cache"] == "stale"
        assert reply.headers["breakwater-rung"] == "stale"
        await asyncio.sleep(0.1)
        assert (gateway.requests[-1].cache, gateway.requests[-1].rung) == ("stale", "stale")


def cancel(gateway: Gateway, request: str) -> None:
    subject = SUBJECTS.cancel
    gateway.bus.publish(subject.at(request), subject.encode(Cancel(request)))


# ---------------------------------------------------------------- several routers


@asynccontextmanager
async def two_routers(settings: Config | None = None) -> AsyncIterator[Gateway]:
    """Requests go to one and the other in turn."""
    async with stage(settings or cached()) as gateway:
        await gateway.add("router-2")
        await asyncio.sleep(2)  # each has heard of the other
        turns = itertools.count()
        gateway.hub.choose(lambda n: next(turns) % n)
        yield gateway


@pytest.mark.parametrize("streamed", [True, False])
async def test_two_routers_share_one_call(streamed: bool) -> None:
    async with two_routers() as gateway:
        callers = [gateway.ask(stream=streamed, **COLD) for _ in range(100)]
        call = await gateway.provider.next_call()
        if streamed:
            stream(call, "Hel", "lo")
            await asyncio.sleep(1)
            assert [said(c.all) for c in callers] == ["Hello"] * 100
            assert all(c.all[-1].headers["breakwater-end"] == "ok" for c in callers)
        else:
            call.reply(200, ANSWER)
            assert [says(await c.reply()) for c in callers] == ["hi"] * 100
        await asyncio.sleep(1)
        assert gateway.provider.seen == ["a"]
        assert {r.router for r in gateway.requests} == {"router", "router-2"}
        assert sorted(r.cache for r in gateway.requests) == ["coalesced"] * 99 + ["miss"]


async def test_who_comes_late_at_another_router_gets_the_stream_from_its_start() -> None:
    async with two_routers() as gateway:
        early = gateway.ask(stream=True, **COLD)
        call = await gateway.provider.next_call()
        call.start()
        call.send(delta("Hel"))
        await early.reply()
        late = gateway.ask(stream=True, **COLD)
        await asyncio.sleep(0.1)
        call.send(delta("lo"), delta("", "stop"), b"data: [DONE]\n\n")
        call.end()
        assert said(await whole(late)) == "Hello"
        assert gateway.provider.seen == ["a"]


async def test_when_the_leading_router_dies_another_one_leads() -> None:
    async with two_routers() as gateway:
        work: list[Work] = []
        await gateway.bus.subscribe(
            "bw.v1.work.*", lambda m: work.append(SUBJECTS.work.decode(m.data))
        )
        callers = [gateway.ask(stream=True, **COLD) for _ in range(100)]
        await gateway.provider.next_call()
        led = int(work[0].request.removeprefix("r")) % 2
        mine = callers[led::2]
        gateway.kill("router" if led else "router-2")
        stream(await gateway.provider.next_call(), "Hel", "lo")
        for caller in mine:
            replies = await whole(caller)
            assert said(replies) == "Hello"
            assert replies[-1].headers["breakwater-end"] == "ok"
        assert len(mine) == 50
        assert gateway.provider.seen == ["a", "a"]


@asynccontextmanager
async def leading_router_dies(gateway: Gateway) -> AsyncIterator[tuple[list[Caller], Call]]:
    """In the middle of a stream that callers at both routers hear; yields those at the dead one first."""
    work: list[Work] = []
    await gateway.bus.subscribe("bw.v1.work.*", lambda m: work.append(SUBJECTS.work.decode(m.data)))
    callers = [gateway.ask(stream=True, **COLD) for _ in range(20)]
    call = await gateway.provider.next_call()
    call.start()
    call.send(delta("Hel"))
    for caller in callers:
        await caller.reply()
    await asyncio.sleep(0.1)
    led = int(work[0].request.removeprefix("r")) % 2
    gateway.kill("router" if led else "router-2")
    yield [*callers[1 - led :: 2], *callers[led::2]], call


async def test_a_stream_is_heard_to_its_end_everywhere_when_the_leading_router_dies() -> None:
    async with two_routers() as gateway, leading_router_dies(gateway) as (callers, call):
        for word in ("lo", ", ", "how", " are"):
            call.send(delta(word))
            await asyncio.sleep(2)
        call.send(delta(" you", "stop"), USAGE, b"data: [DONE]\n\n")
        call.end()
        await asyncio.sleep(1)
        for caller in callers:
            assert read(caller) == ("Hello, how are you", "ok")
            assert caller.all[-1].headers["breakwater-cost-usd"] != "unknown"
        caches = [caller.all[-1].headers["breakwater-cache"] for caller in callers]
        assert sorted(caches) == ["coalesced"] * 19 + ["miss"]
        assert gateway.provider.seen == ["a"]


async def test_when_the_worker_dies_after_the_leading_router_its_stream_is_partial() -> None:
    async with two_routers() as gateway, leading_router_dies(gateway) as (callers, _):
        await asyncio.sleep(3)
        gateway.kill("worker")
        await asyncio.sleep(5)
        for caller in callers[10:]:
            end = caller.all[-1].headers
            assert (end["breakwater-end"], end["breakwater-partial"]) == ("partial", "worker_lost")


async def test_a_cut_after_the_leading_router_died_is_gone_on_with_where_the_model_says_so() -> (
    None
):
    settings = cached()
    model = msgspec.structs.replace(settings.models["m"], on_cut="continue")
    settings = msgspec.structs.replace(settings, models={"m": model})
    async with two_routers(settings) as gateway, leading_router_dies(gateway) as (callers, call):
        await asyncio.sleep(3)
        call.cut()
        rest = await gateway.provider.next_call()
        assert {"role": "assistant", "content": "Hel"} in rest.body["messages"]
        rest.start()
        rest.send(delta("lo"), delta("", "stop"), b"data: [DONE]\n\n")
        rest.end()
        await asyncio.sleep(1)
        for caller in callers[10:]:
            assert read(caller) == ("Hello", "ok")
        assert len(gateway.provider.seen) == 2


async def test_followers_hear_a_stream_that_another_deployment_goes_on_with() -> None:
    settings = config("a", "b", price=PRICE)
    model = msgspec.structs.replace(settings.models["m"], cache=POLICY, on_cut="continue")
    async with stage(msgspec.structs.replace(settings, models={"m": model})) as gateway:
        early = [gateway.ask(stream=True, **COLD) for _ in range(3)]
        call = await gateway.provider.next_call()
        early += [gateway.ask(stream=True, **COLD) for _ in range(3)]
        call.start()
        call.send(delta("Hel"))
        await early[-1].reply()
        late = gateway.ask(stream=True, **COLD)
        await late.reply()
        call.cut()
        stream(await gateway.provider.next_call(), "lo")
        await asyncio.sleep(1)
        for caller in (*early, late):
            assert read(caller) == ("Hello", "ok")
        assert gateway.provider.seen == ["a", "b"]


@pytest.mark.parametrize("led_by_stream", [True, False])
async def test_routers_share_a_call_whatever_the_form(led_by_stream: bool) -> None:
    async with two_routers() as gateway:
        callers = [gateway.ask(stream=led_by_stream, **COLD)]
        call = await gateway.provider.next_call()
        streams = [led_by_stream, *[True, True, False, False] * 5]
        callers += [gateway.ask(stream=streamed, **COLD) for streamed in streams[1:]]
        await asyncio.sleep(0.1)
        if led_by_stream:
            stream(call, "h", "i")
        else:
            call.reply(200, ANSWER)
        await asyncio.sleep(1)
        for caller, streamed in zip(callers, streams, strict=True):
            text = said(caller.all) if streamed else says(caller.all[-1])
            assert text == "hi"
        assert gateway.provider.seen == ["a"]
        assert {r.router for r in gateway.requests} == {"router", "router-2"}


async def test_an_answer_that_cannot_be_passed_on_is_asked_for_at_each_router() -> None:
    long = ANSWER.replace(b'"hi"', b'"' + b"x" * 5_000 + b'"')
    async with two_routers() as gateway:
        callers = [gateway.ask(**COLD) for _ in range(10)]
        call = await gateway.provider.next_call()
        for name in ("router", "router-2"):
            gateway.buses[name].max_message = 5_000
        call.reply(200, long)
        (await gateway.provider.next_call()).reply(200, long)
        assert {len(says(await caller.reply())) for caller in callers} == {5_000}
        assert len(gateway.provider.seen) == 2, "each worker tells those at its router"


async def test_who_comes_late_to_what_cannot_be_passed_on_is_told_so() -> None:
    async with stage(cached()) as gateway:
        first = gateway.ask(stream=True, **COLD)
        call = await gateway.provider.next_call()
        call.start()
        call.send(delta("x" * 5_000))
        await first.reply()
        gateway.buses["router"].max_message = 5_000
        late = gateway.ask(stream=True, **COLD)
        assert "larger than the bus carries" in (await late.error())["message"]
        call.send(delta("", "stop"), b"data: [DONE]\n\n")
        call.end()
        assert said([*first.all, *await whole(first)]) == "x" * 5_000


async def test_a_copy_that_the_worker_cannot_send_leaves_nobody_waiting() -> None:
    """The leader's caller is nearer than the router, or its message just a little smaller."""
    async with stage(cached()) as gateway:
        first = await answered(gateway)
        size = len(first.data) + headers_size(first.headers)
        callers = [
            gateway.ask(messages=[{"role": "user", "content": "olleh"}], **COLD) for _ in "ab"
        ]
        call = await gateway.provider.next_call()
        gateway.buses["worker"].max_message = size + 30
        call.reply(200, ANSWER)
        assert says(await callers[0].reply()) == "hi"
        (await gateway.provider.next_call()).reply(200, ANSWER)
        assert says(await callers[1].reply()) == "hi"
        await asyncio.sleep(0.1)
        assert {r.outcome for r in gateway.requests} == {"ok"}


async def test_followers_elsewhere_keep_the_call_when_its_leader_leaves() -> None:
    async with two_routers() as gateway:
        first = gateway.ask(stream=True, **COLD)
        call = await gateway.provider.next_call()
        call.start()
        call.send(delta("Hel"))
        await first.reply()
        second = gateway.ask(stream=True, **COLD)
        await second.reply()
        cancel(gateway, "r1")
        await asyncio.sleep(0.5)
        assert not call.answer.closed.is_set()
        cancel(gateway, "r2")
        async with asyncio.timeout(0.5):
            await call.answer.closed.wait()


async def test_a_cut_of_a_shared_call_is_told_at_every_router() -> None:
    async with two_routers() as gateway:
        callers = [gateway.ask(stream=True, **COLD) for _ in range(4)]
        call = await gateway.provider.next_call()
        call.start()
        call.send(delta("Hel"))
        for caller in callers:
            await caller.reply()
        call.cut()
        await asyncio.sleep(1)
        for caller in callers:
            assert caller.all[-1].headers["breakwater-end"] == "partial"
        assert {r.outcome for r in gateway.requests} == {"partial"}


async def test_what_one_router_kept_the_other_serves() -> None:
    async with two_routers() as gateway:
        await answered(gateway)
        await asyncio.sleep(1)
        for _ in range(4):
            assert (await gateway.ask(**COLD).reply()).headers["breakwater-cache"] == "hit"
        await asyncio.sleep(0.1)
        assert {r.router for r in gateway.requests} == {"router", "router-2"}


# ---------------------------------------------------------------- what means the same


MEANT = CachePolicy(semantic=Semantic(threshold=0.9, shadow=0.0, veto="off"))


@asynccontextmanager
async def understanding(policy: CachePolicy = MEANT) -> AsyncIterator[Gateway]:
    async with stage(cached(policy)) as gateway:
        embedder = Chosen()
        embedder.says("How deep is the harbour?")
        embedder.says("How deep is that harbour?", "How deep is the harbour?", 0.97)
        embedder.says("Who owns it?", "How deep is the harbour?", 0.2)
        gateway.embedder = embedder
        await gateway.add("cache")
        await asyncio.sleep(1)
        yield gateway


def question(gateway: Gateway, text: str, **fields: Any) -> Caller:  # noqa: ANN401 - as `ask`
    return gateway.ask(messages=[{"role": "user", "content": text}], **fields)


async def learned(gateway: Gateway, text: str, **fields: Any) -> Message:  # noqa: ANN401 - as `ask`
    caller = question(gateway, text, **fields)
    (await gateway.provider.next_call()).reply(200, ANSWER)
    reply = await caller.reply()
    await asyncio.sleep(0.5)
    return reply


async def test_a_question_that_means_the_same_gets_the_answer_and_says_how_near_it_is() -> None:
    async with understanding() as gateway:
        await learned(gateway, "How deep is the harbour?")
        reply = await question(gateway, "How deep is that harbour?").reply()
        assert says(reply) == "hi"
        assert reply.headers["breakwater-cache"] == "semantic"
        assert reply.headers["breakwater-similarity"] == "0.9700"
        assert reply.headers["breakwater-cache-id"].startswith("s")
        assert gateway.provider.seen == ["a"]
        other = await learned(gateway, "Who owns it?")
        assert other.headers["breakwater-cache"] == "miss"


async def test_meaning_does_not_cross_a_system_prompt_a_parameter_or_a_tenant() -> None:
    async with understanding() as gateway:
        await learned(gateway, "How deep is the harbour?")
        for fields in ({"max_tokens": 5}, {"tenant": "other"}, {"temperature": 0.2}):
            reply = await learned(gateway, "How deep is that harbour?", **fields)
            assert reply.headers["breakwater-cache"] == "miss", fields
        caller = gateway.ask(
            messages=[
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "How deep is that harbour?"},
            ]
        )
        (await gateway.provider.next_call()).reply(200, ANSWER)
        assert (await caller.reply()).headers["breakwater-cache"] == "miss"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tenant": "evil"}, "tenant"),
        ({"digest": "0" * 64}, "digest"),
        ({"api": "messages"}, "api"),
        ({"model": "another"}, "model"),
        ({"partition": "p" * 64}, "partition"),
        ({"payload": b"x" * (1 << 20) + b"x" * entries.BESIDES}, "size"),
        ({"kept_s": float("nan")}, "times"),
        (None, "unreadable"),
    ],
)
async def test_a_hit_by_meaning_whose_answer_is_poisoned_is_a_miss_with_a_reason(
    change: dict[str, Any] | None, reason: str
) -> None:
    async with understanding() as gateway:
        await learned(gateway, "How deep is the harbour?")
        store = await gateway.bus.store("bw_cache", max_bytes=2**28, evicts=True)
        (digest,) = await store.keys()
        stored = await store.get(digest)
        assert stored is not None
        entry = entries.peek(stored.value or b"")
        assert entry is not None
        bad = b"\xc1 no entry"
        if change is not None:
            bad = entries.encode(msgspec.structs.replace(entry, **change))
        await store.put(digest, bad)
        gateway.kill("router")
        await gateway.add("router-2")
        reply = await learned(gateway, "How deep is that harbour?")
        assert reply.headers["breakwater-cache"] == "miss"
        text = render([gateway.metrics.snapshot()]).decode()
        assert f'kind="semantic",result="skipped_{reason}"' in text


async def test_a_row_that_leads_to_another_tenant_s_answer_gives_it_to_nobody() -> None:
    """Written straight to the index's bucket, under the right name, with another's digest."""
    async with understanding() as gateway:
        await learned(gateway, "How deep is the harbour?")
        await learned(gateway, "Who owns it?", tenant="other")
        answers = await gateway.bus.store("bw_cache", max_bytes=2**28, evicts=True)
        foreign = ""
        for digest in await answers.keys():
            kept = await answers.get(digest)
            entry = None if kept is None else entries.peek(kept.value or b"")
            if entry is not None and entry.tenant == "other":
                foreign = digest
        assert foreign
        rows = await gateway.bus.store("bw_semantic")
        for key in [key for key in await rows.keys() if key.startswith("e.")]:
            stored = await rows.get(key)
            assert stored is not None
            row = decode_entry(stored.value or b"")
            if row.tenant == "t":
                row.digest = foreign
                await rows.put(key, encode_entry(row))
        gateway.kill("cache")
        gateway.scopes["cache"].cancel()
        await gateway.add("cache-2")
        await asyncio.sleep(20)
        reply = await learned(gateway, "How deep is that harbour?")
        assert reply.headers["breakwater-cache"] == "miss"
        text = render([gateway.metrics.snapshot()]).decode()
        assert 'kind="semantic",result="foreign"' in text


async def test_a_poisoned_value_is_no_stale_answer_either() -> None:
    policy = CachePolicy(exact_s=60.0, stale_if_error_s=6_000.0)
    rungs = (Rung("stale"), Rung("error"))
    async with stage(cached(policy, ladder=rungs)) as gateway:
        await answered(gateway)
        await asyncio.sleep(1)
        gateway.wall.add(120)
        store = await gateway.bus.store("bw_cache", max_bytes=2**28, evicts=True)
        (digest,) = await store.keys()
        stored = await store.get(digest)
        assert stored is not None
        entry = entries.peek(stored.value or b"")
        assert entry is not None
        await store.put(digest, entries.encode(msgspec.structs.replace(entry, tenant="evil")))
        gateway.kill("router")
        await gateway.add("router-2")
        caller = gateway.ask(headers={"breakwater-timeout": "1s"}, **COLD)
        (await gateway.provider.next_call()).reply(400, b'{"error":{"message":"no"}}')
        reply = await caller.reply()
        assert reply.headers["breakwater-rung"] == "error"
        text = render([gateway.metrics.snapshot()]).decode()
        assert 'kind="exact",result="skipped_tenant"' in text


@pytest.mark.parametrize("scope", ["user", "key"])
async def test_meaning_does_not_cross_a_user_or_a_key(scope: Literal["user", "key"]) -> None:
    def secret(name: str) -> tuple[KeyRecord, str]:
        raw = name.encode()
        return issue.made(random=raw * 32, id_random=raw * 6, now=0.0, tenant="t", user=name)

    policy = msgspec.structs.replace(MEANT, scope=scope)
    async with understanding(policy) as gateway:
        shown = {}
        keys = await gateway.bus.store("bw_keys")
        for name in "ab":
            record, key = secret(name)
            await keys.put(record.id, msgspec.json.encode(record))
            shown[name] = {"breakwater-key": key}
        await asyncio.sleep(0.1)
        nobody = await learned(gateway, "How deep is the harbour?")
        assert nobody.headers["breakwater-cache"] == "bypass"
        await learned(gateway, "How deep is the harbour?", headers=shown["a"])
        own = await question(gateway, "How deep is that harbour?", headers=shown["a"]).reply()
        assert own.headers["breakwater-cache"] == "semantic"
        other = await learned(gateway, "How deep is that harbour?", headers=shown["b"], user="a")
        assert other.headers["breakwater-cache"] == "miss"
        spoofed = {**shown["b"], "breakwater-user": "a"}
        refused = await question(gateway, "How deep is that harbour?", headers=spoofed).error()
        assert (refused["status"], refused["code"]) == (403, "permission")


async def test_without_the_owner_of_meanings_requests_go_on_as_misses_at_once() -> None:
    async with understanding() as gateway:
        await learned(gateway, "How deep is the harbour?")
        gateway.kill("cache")
        began = asyncio.get_running_loop().time()
        caller = question(gateway, "How deep is that harbour?")
        (await gateway.provider.next_call()).reply(200, ANSWER)
        assert (await caller.reply()).headers["breakwater-cache"] == "miss"
        assert asyncio.get_running_loop().time() - began <= 0.025


async def test_a_threshold_may_be_raised_and_not_lowered() -> None:
    async with understanding() as gateway:
        await learned(gateway, "How deep is the harbour?")
        lower = {"breakwater-cache-threshold": "0.5"}
        refused = await question(gateway, "How deep is that harbour?", headers=lower).error()
        assert (refused["status"], refused["param"]) == (400, "breakwater-cache-threshold")
        higher = {"breakwater-cache-threshold": "0.99"}
        reply = await learned(gateway, "How deep is that harbour?", headers=higher)
        assert reply.headers["breakwater-cache"] == "miss"


# ---------------------------------------------------------------- who looks after it


async def feedback(
    gateway: Gateway, id_: str, verdict: Verdict, tenant: str = "t"
) -> FeedbackReply:
    subject = SUBJECTS.cache_feedback
    said = subject.encode(Feedback(id=id_, tenant=tenant, verdict=verdict))
    reply = await gateway.bus.ask(subject.at("exact"), said, timeout_s=2)
    return msgspec.json.decode(reply.data, type=FeedbackReply)


async def test_who_asks_again_may_say_what_the_answer_was() -> None:
    async with two_routers() as gateway:
        events: list[CacheChanged] = []
        await gateway.bus.subscribe(
            "bw.v1.evt.cache.false_hit", lambda m: events.append(SUBJECTS.cache.decode(m.data))
        )
        await answered(gateway)
        await asyncio.sleep(1)
        id_ = (await gateway.ask(**COLD).reply()).headers["breakwater-cache-id"]
        await answered(gateway, headers={"breakwater-cache-feedback": f"{id_}=wrong"})
        await asyncio.sleep(0.05)
        assert [event.id for event in events] == [id_]
        assert len(gateway.provider.seen) == 2


async def test_an_answer_that_was_called_wrong_is_gone_from_every_router_at_once() -> None:
    async with two_routers() as gateway:
        await answered(gateway)
        await asyncio.sleep(1)
        ids = {(await gateway.ask(**COLD).reply()).headers["breakwater-cache-id"] for _ in range(4)}
        (id_,) = ids
        assert not (await feedback(gateway, id_, "wrong", tenant="other")).taken
        assert not (await feedback(gateway, "e" + "0" * 64, "wrong")).taken
        assert (await feedback(gateway, id_, "good")).taken
        assert (await gateway.ask(**COLD).reply()).headers["breakwater-cache"] == "hit"
        events: list[CacheChanged] = []
        await gateway.bus.subscribe(
            "bw.v1.evt.cache.false_hit", lambda m: events.append(SUBJECTS.cache.decode(m.data))
        )
        assert (await feedback(gateway, id_, "wrong")).taken
        await asyncio.sleep(0.05)
        assert [event.id for event in events] == [id_]
        gateway.hub.choose(lambda _: 0)
        await answered(gateway, headers={"breakwater-cache-ttl": "1ms"})
        gateway.hub.choose(lambda n: n - 1)
        await answered(gateway)
        assert len(gateway.provider.seen) == 3


async def test_a_purge_forgets_what_it_names_everywhere() -> None:
    async with two_routers() as gateway:
        await answered(gateway)
        await answered(gateway, tenant="other")
        await asyncio.sleep(1)
        purge = SUBJECTS.cache_purge
        asked = purge.encode(Purge(tenant="t"))
        reply = await gateway.bus.ask(purge.at("exact"), asked, timeout_s=10)
        assert msgspec.json.decode(reply.data, type=PurgeReply).purged == 1
        await asyncio.sleep(0.1)
        kept = await gateway.ask(tenant="other", **COLD).reply()
        assert kept.headers["breakwater-cache"] == "hit"
        assert (await answered(gateway)).headers["breakwater-cache"] == "miss"
        heard: list[ShardStats] = []
        inbox = gateway.bus.open_inbox(
            lambda m: heard.append(msgspec.json.decode(m.data, type=ShardStats))
        )
        gateway.bus.publish("bw.v1.cache.exact.stats", b"{}", reply=inbox.subject)
        await asyncio.sleep(0.1)
        assert {each.owner for each in heard} == {"router", "router-2"}
        assert all(each.bytes <= each.bytes_max for each in heard)


async def test_the_cache_is_warmed_by_asking_what_a_file_lists() -> None:
    lines = [
        {"request": {"model": "m", "messages": [{"role": "user", "content": "hello"}], **COLD}},
        {"request": {"model": "m", "messages": [{"role": "user", "content": "hello"}]}},
        {"request": {"model": "nobody", "messages": [{"role": "user", "content": "hello"}]}},
    ]
    rows = read_rows(b"\n".join(json.dumps(line).encode() for line in lines))
    async with stage(cached()) as gateway:
        asking = asyncio.ensure_future(warm(gateway.bus, rows, tenant="t", timeout_s=5))
        for _ in range(2):
            (await gateway.provider.next_call()).reply(200, ANSWER)
        assert await asking == {"miss": 1, "hit": 0, "bypass": 1, "failed": 1}
        assert (await gateway.ask(**COLD).reply()).headers["breakwater-cache"] == "hit"


@pytest.mark.parametrize(
    "text", [b"[]", b'{"api":"chat"}', b'{"request":{"stream":true}}', b'{"request":{},"api":"x"}']
)
def test_a_file_to_warm_from_is_refused_with_its_line(text: bytes) -> None:
    with pytest.raises(BadRows, match="line 2"):
        read_rows(b'{"request":{}}\n' + text)


async def test_a_stale_stream_is_framed_apart_from_the_attempts_that_failed() -> None:
    policy = CachePolicy(exact_s=60, stale_if_error_s=3_600)
    async with stage(cached(policy, ladder=(Rung("stale"),))) as gateway:
        await answered(gateway)
        gateway.wall.add(100)
        caller = gateway.ask(stream=True, **COLD)
        for _ in range(3):
            (await gateway.provider.next_call()).reply(500, b"{}")
        replies = await whole(caller)
        assert said(replies) == "hi"
        assert [m.headers["breakwater-attempt"] for m in replies] == ["4", "4"]
        assert replies[-1].headers["breakwater-cache"] == "stale"
