"""Bodies and headers of callers: taken, or refused with one sentence that names the mend."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from breakwater_gateway.router.options import Options, read_duration, read_options
from breakwater_gateway.router.requests import STRUCTURE_MAX, decode_request
from breakwater_protocol import failures as f
from breakwater_protocol.chat import Asked, ChatRequest, EmbeddingsRequest

LIMIT = 8_000_000
GOOD = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def chat(**fields: object) -> Asked | f.Failure:
    return decode_request(json.dumps({**GOOD, **fields}).encode(), api="chat", limit=LIMIT)


def test_a_good_body_is_taken_with_its_unknown_fields() -> None:
    got = chat(stream=True, stream_options={"include_usage": True}, whatever=[1])
    assert isinstance(got, ChatRequest)
    assert got.stream is True
    assert got.stream_options is not None
    assert got.stream_options.include_usage is True


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": -5}, "max_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"n": 0}, "n"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": ""}]}, "messages[0].role"),
        ({"messages": [{"content": ""}]}, "messages[0].role"),
        ({"model": ""}, "model"),
        ({"model": "x" * 5000}, "model"),
        ({"model": 7}, "model"),
        ({"stream": "yes"}, "stream"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, object], param: str) -> None:
    got = chat(**fields)
    assert isinstance(got, f.InvalidRequest)
    assert got.param == param


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "empty"),
        (b"  \n", "empty"),
        (b"not json", "not valid JSON"),
        (b'{"model":"m"}', "messages"),
        (b'{"model":"m","messages":[{"role":"user","content":"\xff"}]}', "not UTF-8"),
        (b'{"model":"m","messages":[{"role":"user"}],"temperature":NaN}', "not valid JSON"),
        (
            b'{"model":"m","messages":' + b"[" * 200_000 + b"]" * 200_000 + b"}",
            "what this API takes",
        ),
        (
            b'{"model":"m","messages":[{"role":"user","content":'
            + b"[" * 200_000
            + b"]" * 200_000
            + b"}]}",
            "nested too deeply",
        ),
        (b'{"model":"\\ud800","messages":[{"role":"user"}]}', "not valid JSON"),
    ],
)
def test_a_hostile_body_is_refused_with_a_reason(body: bytes, says: str) -> None:
    got = decode_request(body, api="chat", limit=LIMIT)
    assert isinstance(got, f.InvalidRequest)
    assert says in got.message


def test_a_million_keys_are_refused_before_they_cost() -> None:
    keys = ",".join(f'"k{i}":1' for i in range(STRUCTURE_MAX + 1))
    body = b'{"model":"m","messages":[{"role":"user"}],' + keys.encode() + b"}"
    got = decode_request(body, api="chat", limit=LIMIT)
    assert isinstance(got, f.InvalidRequest)
    assert "JSON keys" in got.message


def test_the_size_limit_is_exact() -> None:
    body = json.dumps(GOOD).encode()
    assert isinstance(decode_request(body, api="chat", limit=len(body)), ChatRequest)
    got = decode_request(body, api="chat", limit=len(body) - 1)
    assert isinstance(got, f.PayloadTooLarge)


@pytest.mark.parametrize("value", ["one", ["a", "b"], [1, 2], [[1], [2, 3]]])
def test_embeddings_take_text_and_tokens(value: object) -> None:
    body = json.dumps({"model": "m", "input": value}).encode()
    assert isinstance(decode_request(body, api="embeddings", limit=LIMIT), EmbeddingsRequest)


@given(st.binary(max_size=300))
def test_any_bytes_are_taken_or_refused(body: bytes) -> None:
    got = decode_request(body, api="chat", limit=LIMIT)
    assert isinstance(got, ChatRequest | f.InvalidRequest)


# ---------------------------------------------------------------- headers


def test_headers_that_are_not_ours_are_left_alone() -> None:
    assert read_options({"user-agent": "x", "authorization": "Bearer y"}) == Options()


def test_what_a_caller_asks_for_is_read() -> None:
    got = read_options(
        {
            "breakwater-user": "u",
            "breakwater-timeout": "1.5s",
            "breakwater-ttft-timeout": "250ms",
            "breakwater-property-app": "web",
            "breakwater-request-id": "abc-1",
            "traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01",
        }
    )
    assert got == Options(
        request_id="abc-1",
        once=True,
        user="u",
        properties={"app": "web"},
        total_s=1.5,
        first_token_s=0.25,
        traceparent="00-" + "a" * 32 + "-" + "b" * 16 + "-01",
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("breakwater-timeout", "soon"),
        ("breakwater-timeout", "0s"),
        ("breakwater-timeout", "2h"),
        ("breakwater-timeout", "inf"),
        ("breakwater-timeout", "1_0s"),
        ("breakwater-priority", "urgent"),
        ("breakwater-request-id", ""),
        ("breakwater-request-id", "a b"),
        ("breakwater-request-id", "x" * 129),
        ("breakwater-user", "x" * 513),
        ("breakwater-property-", "x"),
        ("breakwater-property-a b", "x"),
        ("breakwater-nonsense", "1"),
        ("breakwater-cache", "maybe"),
        ("breakwater-cache-ttl", "0s"),
        ("breakwater-cache-ttl", "9000h"),
        ("breakwater-cache-ttl", "soon"),
        ("breakwater-cache-namespace", "a b"),
        ("breakwater-cache-namespace", ""),
        ("breakwater-cache-threshold", "1.5"),
        ("breakwater-cache-threshold", "-0.1"),
        ("breakwater-cache-threshold", "nan"),
        ("breakwater-cache-threshold", ""),
        ("breakwater-ladder", "cache,upstairs"),
        ("breakwater-cache-feedback", "wrong"),
        ("breakwater-cache-feedback", "x=wrong"),
        ("breakwater-cache-feedback", "s3-Ab1=poor"),
    ],
)
def test_a_promise_that_cannot_be_kept_is_refused(name: str, value: str) -> None:
    got = read_options({name: value})
    assert isinstance(got, f.InvalidRequest)
    assert name[:80] in got.message


@pytest.mark.parametrize("name", ["Breakwater-Cache", "BREAKWATER-PROPERTY-tier", "breakwater-Org"])
def test_a_name_in_another_spelling_is_refused_with_the_right_one(name: str) -> None:
    got = read_options({name: "off"})
    assert isinstance(got, f.InvalidRequest)
    assert got.message == f"the header {name} must be written {name.lower()}"


@pytest.mark.parametrize(
    ("mode", "verdict", "asked"),
    [
        ("on", "wrong", "refresh"),
        ("on", "stale", "refresh"),
        ("on", "good", "on"),
        ("off", "wrong", "off"),
        ("only", "good", "only"),
    ],
)
def test_an_answer_may_be_judged_by_who_asks_again(mode: str, verdict: str, asked: str) -> None:
    given = {"breakwater-cache": mode, "breakwater-cache-feedback": f"s3-Ab1={verdict}"}
    got = read_options(given)
    assert isinstance(got, Options)
    assert (got.judged, got.cache) == (("s3-Ab1", verdict), asked)


def test_nobody_is_asked_anew_for_what_only_may_be_kept() -> None:
    given = {"breakwater-cache": "only", "breakwater-cache-feedback": "s3-Ab1=wrong"}
    assert isinstance(read_options(given), f.InvalidRequest)


def test_durations() -> None:
    table = {
        "250ms": 0.25,
        "10s": 10,
        "2m": 120,
        "1h": 3600,
        "7": 7,
        "-1s": None,
        "1d": 86_400,
        "": None,
    }
    assert {text: read_duration(text) for text in table} == table
