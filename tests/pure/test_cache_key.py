"""Keys of the cache: what is the same question, and what never is."""

import json
import random
from collections.abc import Mapping

import pytest
from tests.pure.cache_pairs import Asked, differing, request, respelled

from breakwater_gateway.cache.key import MEMO_CHARS, MEMO_MAX, Key, Keys, NotCached, head_of
from breakwater_protocol.cache import TEXT_MAX

PAIRS = 3_000
"""The drill `tests/drills/test_cache_isolation.py` takes 100,000."""

CHAT = {"model": "m", "messages": [{"role": "user", "content": "how deep is it?"}]}


def key(**fields: object) -> Key:
    return key_for("chat", {**CHAT, **fields})


def key_for(api: str, fields: Mapping[str, object]) -> Key:
    found = Asked(api, dict(fields)).key()
    assert isinstance(found, Key), found
    return found


def reason(body: bytes, api: str = "chat") -> str:
    found = Asked(api, {}).key(body)
    assert isinstance(found, NotCached), found
    return found.reason


def test_no_two_requests_that_differ_share_a_key_or_a_partition_they_must_not() -> None:
    rng = random.Random(1)
    for _ in range(PAIRS):
        one, other, what = differing(rng)
        a, b = one.key(), other.key()
        assert isinstance(a, Key), (what, one.fields)
        assert isinstance(b, Key), (what, other.fields)
        assert a.digest != b.digest, (what, one.fields, other.fields)
        assert a.partition != b.partition, (what, one.fields, other.fields)


def test_the_same_request_has_the_same_key_however_it_is_spelled() -> None:
    rng = random.Random(2)
    for _ in range(PAIRS // 3):
        asked = request(rng)
        again = respelled(asked, rng)
        one, other = asked.key(), asked.key(again)
        assert isinstance(one, Key)
        assert isinstance(other, Key), (other, again)
        assert (one.digest, one.partition) == (other.digest, other.partition), again


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 1},
        {"temperature": 1.0, "n": 1, "top_p": 1},
        {"stop": None, "tools": [], "logit_bias": {}},
        {"stream": True, "stream_options": {"include_usage": True}},
        {"user": "u", "metadata": {"trace": "7"}, "safety_identifier": "s"},
        {"response_format": {"type": "text"}, "tool_choice": "auto", "store": False},
    ],
)
def test_defaults_and_what_changes_no_answer_count_for_nothing(fields: dict[str, object]) -> None:
    assert key(**fields).digest == key().digest


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": True},
        {"n": 2},
        {"seed": 0},
        {"stop": ["a"]},
        {"max_tokens": 5},
        {"response_format": {"type": "json_object"}},
        {"reasoning_effort": "low"},
        {"modalities": ["text", "audio"]},
        {"unheard_of": False},
        {"messages": [{"role": "user", "content": "How deep is it?"}]},
        {"messages": [{"role": "user", "content": "how deep is it? "}]},
        {"messages": [{"role": "developer", "content": "how deep is it?"}]},
    ],
)
def test_whatever_may_change_the_answer_counts(fields: dict[str, object]) -> None:
    assert key(**fields).digest != key().digest


def test_one_stop_word_may_stand_in_a_list_or_not_and_one_input_too() -> None:
    assert key(stop="x").digest == key(stop=["x"]).digest
    assert (
        key_for("embeddings", {"model": "m", "input": "x"}).digest
        == key_for("embeddings", {"model": "m", "input": ["x"]}).digest
    )


def test_a_partition_is_all_but_the_last_user_turn() -> None:
    first = key(messages=[{"role": "user", "content": "a"}], seed=1)
    second = key(messages=[{"role": "user", "content": [{"type": "text", "text": "b"}]}], seed=1)
    assert (first.text, second.text) == ("a", "b")
    assert first.partition == second.partition
    assert first.digest != second.digest
    assert first.partition != first.digest


@pytest.mark.parametrize(
    ("api", "fields", "text"),
    [
        ("messages", {"messages": [{"role": "user", "content": "a"}]}, "a"),
        ("responses", {"input": "a"}, "a"),
        (
            "responses",
            {"input": [{"role": "user", "content": [{"type": "input_text", "text": "a"}]}]},
            "a",
        ),
        ("generate", {"contents": [{"parts": [{"text": "a"}, {"text": "b"}]}]}, "a\nb"),
        ("chat", {"messages": [{"role": "assistant", "content": "a"}]}, ""),
        (
            "chat",
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "",
        ),
        ("embeddings", {"input": "a"}, ""),
    ],
)
def test_the_last_user_turn_is_read_where_it_is_text(
    api: str, fields: dict[str, object], text: str
) -> None:
    assert key_for(api, fields).text == text


@pytest.mark.parametrize(
    ("api", "fields", "temperature", "sampled"),
    [
        ("chat", {}, None, True),
        ("chat", {"temperature": 0}, 0.0, False),
        ("chat", {"temperature": 0.7}, 0.7, True),
        ("embeddings", {"input": "a"}, 0.0, False),
        ("generate", {"contents": [], "generationConfig": {"temperature": 0}}, 0.0, False),
        ("generate", {"contents": []}, None, True),
    ],
)
def test_an_answer_is_sampled_unless_the_caller_asked_for_temperature_zero(
    api: str, fields: dict[str, object], temperature: float | None, sampled: bool
) -> None:
    found = key_for(api, fields)
    assert (found.temperature, found.sampled) == (temperature, sampled)


@pytest.mark.parametrize(
    ("api", "body", "why"),
    [
        ("chat", b'{"model":"m","model":"n"}', "repeated_keys"),
        ("chat", b'{"messages":[{"role":"user","content":"a","content":"b"}]}', "repeated_keys"),
        # One member lost, one colon hidden: the counts agree.
        ("chat", b'{"a":1,"a":2,"b":"\\u0022:"}', "repeated_keys"),
        ("chat", b'{"a":1,"a":2,"b":"\\"\\u003A"}', "repeated_keys"),
        ("chat", b'{"a":1e999}', "unreadable"),
        ("chat", b'{"a":"\\ud800"}', "unreadable"),
        ("chat", b"[]", "unreadable"),
        ("chat", b"{", "unreadable"),
        ("chat", b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}", "unreadable"),
        ("chat", b'{"web_search_options":{}}', "stateful"),
        ("responses", b'{"previous_response_id":"resp_1"}', "stateful"),
        ("responses", b'{"background":true}', "stateful"),
        ("responses", b'{"tools":[{"type":"web_search"}]}', "hosted_tools"),
        ("messages", b'{"tools":[{"type":"web_search_20250305"}]}', "hosted_tools"),
        ("messages", b'{"mcp_servers":[{}]}', "stateful"),
        ("generate", b'{"tools":[{"googleSearch":{}}]}', "hosted_tools"),
        ("generate", b'{"cachedContent":"c"}', "stateful"),
    ],
)
def test_what_has_no_key_says_why(api: str, body: bytes, why: str) -> None:
    assert reason(body, api) == why


def test_odd_spellings_are_no_repeated_keys() -> None:
    body = b'{ "model" : "m", "messages":[{"role":"user","content":"\\u0022a\\u0022: b"}]}'
    found = Asked("chat", {}).key(body)
    assert isinstance(found, Key)
    assert found.text == '"a": b'


def test_the_parts_of_a_head_cannot_run_into_each_other() -> None:
    def head(tenant: str, scope: str) -> bytes:
        return head_of(tenant=tenant, scope=scope, api="chat", model="m", points_to="p")

    assert head("a", "user:b") != head("au", "ser:b")
    assert head('a","user', "b") != head("a", 'user","b')


def test_remembered_keys_are_bounded_and_right() -> None:
    keys, head = Keys(), Asked("chat", {}).place
    place = head_of(api="chat", **head)
    bodies = [json.dumps({**CHAT, "seed": n}).encode() for n in range(MEMO_MAX + 10)]
    found = {keys.of(place, body, api="chat") for body in bodies}
    assert len(found) == len(bodies)
    assert len(keys) <= MEMO_MAX
    assert keys.of(place, bodies[0], api="chat") in found
    assert keys.of(place + b"x", bodies[0], api="chat") not in found


def test_long_questions_are_remembered_up_to_a_bound_and_none_of_them_whole() -> None:
    keys, head = Keys(), Asked("chat", {}).place
    place = head_of(api="chat", **head)
    for number in range(2_000):
        turn = {"role": "user", "content": f"{number} " + "x" * 20_000}
        found = keys.of(place, json.dumps({**CHAT, "messages": [turn]}).encode(), api="chat")
        assert isinstance(found, Key)
        assert len(found.text) == TEXT_MAX + 1
    assert len(keys) <= MEMO_CHARS // TEXT_MAX + 2
