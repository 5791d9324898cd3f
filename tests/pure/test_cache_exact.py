"""Answers in memory, and entries: bounded in bytes and time, and never more than they say they are."""

import random
from typing import Any

import msgspec
import pytest

from breakwater_gateway.cache import entry as entries
from breakwater_gateway.cache.entry import Entry
from breakwater_gateway.cache.exact import OVERHEAD, Exact
from breakwater_protocol.cache import Purge

CHUNK = b'{"id":"x","created":1,"choices":[{"index":0,"delta":{"content":"a"}%s}]}'


def entry(digest: str = "d", size: int = 1_000, **changes: object) -> Entry:
    plain = Entry(
        tenant="t",
        api="chat",
        model="m",
        digest=digest,
        partition="p",
        form="body",
        payload=b"x" * size,
        stored_at=1_000.0,
        fresh_s=60.0,
        kept_s=100.0,
        cost_nano_usd=1_000,
    )
    return msgspec.structs.replace(plain, **changes)


def test_memory_stays_within_its_bytes_whatever_is_put_in() -> None:
    rng = random.Random(3)
    exact = Exact(200_000)
    for n in range(20_000):
        exact.put(entry(str(rng.randrange(2_000)), rng.choice((10, 1_000, 30_000, 90_000))))
        if n % 3 == 0:
            exact.get(str(rng.randrange(2_000)), now=1_010.0)
        if n % 7 == 0:
            exact.forget(str(rng.randrange(2_000)))
        assert exact.bytes <= exact.bytes_max
    assert exact.evicted > 100
    assert exact.bytes == sum(
        held.size for n in range(2_000) if (held := exact.get(str(n), 1_010.0)) is not None
    )
    exact.resize(50_000)
    assert exact.bytes <= 50_000
    assert exact.put(entry("huge", 100_000)) is None


def test_what_is_asked_for_often_and_cost_much_outlives_what_did_not() -> None:
    exact = Exact(100 * (OVERHEAD + 3_000))
    exact.put(entry("dear", cost_nano_usd=1_000_000))
    for n in range(1_000):
        exact.put(entry(str(n)))
    assert "dear" in exact
    assert len(exact) == 100


def test_an_entry_is_gone_when_its_time_is() -> None:
    exact = Exact(1_000_000)
    exact.put(entry())
    held = exact.get("d", now=1_061.0)
    assert held is not None
    assert held.fresh_until == 1_060.0
    assert exact.get("d", now=1_100.0) is None
    assert exact.bytes == 0


@pytest.mark.parametrize(
    ("which", "gone"),
    [
        (Purge(tenant="a", model="m"), {"am"}),
        (Purge(tenant="b"), {"bm", "bgpt-4o"}),
        (Purge(model="gpt-4o"), {"agpt-4o", "bgpt-4o"}),
        (Purge(model="gpt-*"), {"agpt-4o", "bgpt-4o"}),
        (Purge(tenant="a", digest="am"), {"am"}),
        (Purge(tenant="b", digest="am"), set()),
        (Purge(partition="other"), set()),
        (Purge(), {"am", "agpt-4o", "bm", "bgpt-4o"}),
    ],
)
def test_what_a_purge_names_is_forgotten_and_nothing_else(which: Purge, gone: set[str]) -> None:
    exact = Exact(1_000_000)
    for tenant in "ab":
        for model, home in (("m", ""), ("gpt-4o", "gpt-*")):
            exact.put(entry(tenant + model, tenant=tenant, model=model, home=home))
    assert set(exact.forget_all(lambda each: entries.belongs(each, which))) == gone
    assert len(exact) == 4 - len(gone)


NAMED: dict[str, Any] = {
    "digest": "d",
    "tenant": "t",
    "api": "chat",
    "model": "m",
    "partition": "p",
    "answer_max": 1_000,
}


def test_an_entry_is_read_back_only_under_its_own_name() -> None:
    good = entry()
    data = entries.encode(good)
    assert entries.read(data, **NAMED) == good
    for changes, why in (
        ({"digest": "e"}, "digest"),
        ({"tenant": "u"}, "tenant"),
        ({"api": "messages"}, "api"),
        ({"model": "n"}, "model"),
        ({"partition": "q"}, "partition"),
    ):
        assert entries.read(data, **{**NAMED, **changes}) == why


def test_a_value_larger_than_any_answer_that_is_kept_is_not_even_decoded() -> None:
    data = entries.encode(entry(payload=b"x" * (1_001 + entries.BESIDES)))
    assert entries.read(data, **NAMED) == "size"


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x80", b"{}", b"\x91" * 3_000])
def test_what_is_no_entry_is_skipped(data: bytes) -> None:
    assert entries.read(data, **NAMED) == "unreadable"


@pytest.mark.parametrize(
    ("api", "form", "payload", "why"),
    [
        ("chat", "lines", CHUNK % b"" + b"\n" + CHUNK % b',"finish_reason":"stop"', ""),
        ("chat", "lines", CHUNK % b"", "finish"),
        ("chat", "lines", b"not json", "unreadable"),
        ("chat", "body", b'{"choices":[]}', "finish"),
        (
            "messages",
            "body",
            (
                b'{"id":"m","type":"message","role":"assistant","model":"c","content":'
                b'[{"type":"text","text":"hi"}],"stop_reason":"end_turn",'
                b'"usage":{"input_tokens":1,"output_tokens":1}}'
            ),
            "",
        ),
        (
            "messages",
            "body",
            (
                b'{"id":"m","type":"message","role":"assistant","model":"c","content":'
                b'[{"type":"tool_use","id":"t","name":"f","input":{}}],"stop_reason":"tool_use",'
                b'"usage":{"input_tokens":1,"output_tokens":1}}'
            ),
            "tool_call",
        ),
        (
            "generate",
            "body",
            (
                b'{"candidates":[{"content":{"role":"model","parts":[{"text":"hi"}]},'
                b'"finishReason":"MAX_TOKENS"}]}'
            ),
            "finish",
        ),
        ("embeddings", "body", b"{}", ""),
    ],
)
def test_only_a_finished_answer_in_words_is_kept(
    api: str, form: entries.Form, payload: bytes, why: str
) -> None:
    assert entries.unfit(api, form, payload) == why
