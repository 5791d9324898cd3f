"""OpenAI's dialect: what goes out, what comes back, and what hides in it."""

import base64
import json
import struct
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from breakwater_gateway.worker.wire import openai
from breakwater_protocol import failures as f
from breakwater_protocol.chat import Usage


def encoded(
    body: Mapping[str, object], *, stream: bool = False, api: str = "chat"
) -> dict[str, object]:
    raw = Raw(json.dumps(body).encode())
    found = json.loads(openai.encode_request(raw, model="gpt-x", api=api, stream=stream))
    assert isinstance(found, dict)
    return found


def test_only_the_model_is_replaced() -> None:
    body = {
        "model": "logical",
        "messages": [{"role": "user", "content": "hé"}],
        "odd_field": {"a": 1},
    }
    assert encoded(body) == {**body, "model": "gpt-x"}


@pytest.mark.parametrize("given", [{}, {"stream_options": None}, {"stream_options": {}}])
def test_usage_is_always_asked_for_on_streams(given: dict[str, object]) -> None:
    assert encoded({"model": "m", **given}, stream=True)["stream_options"] == {
        "include_usage": True
    }


def test_other_stream_options_stay() -> None:
    given = {"model": "m", "stream_options": {"include_obfuscation": False}}
    assert encoded(given, stream=True)["stream_options"] == {
        "include_obfuscation": False,
        "include_usage": True,
    }


def test_a_body_of_too_many_fields_is_refused() -> None:
    with pytest.raises(openai.TooManyFields):
        encoded({"model": "m", **{f"k{i}": 1 for i in range(openai.FIELDS_MAX)}})


@given(
    st.dictionaries(
        st.text(max_size=8),
        st.recursive(
            st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5),
            st.lists,
            max_leaves=8,
        ),
        max_size=8,
    )
)
def test_everything_else_travels_unchanged(fields: dict[str, object]) -> None:
    found = encoded({**fields, "model": "m"})
    assert found == {**fields, "model": "gpt-x"}


# ---------------------------------------------------------------- answers


def answer(**fields: object) -> bytes:
    base = {"choices": [{"index": 0, "message": {"content": "x"}, "finish_reason": "stop"}]}
    return json.dumps({**base, **fields}).encode()


def test_an_answer_passes_byte_for_byte_and_its_usage_is_read() -> None:
    body = answer(
        usage={
            "prompt_tokens": 10,
            "completion_tokens": 5,
            "prompt_tokens_details": {"cached_tokens": 4},
            "completion_tokens_details": {"reasoning_tokens": 2},
        }
    )
    got = openai.decode_answer(body, api="chat")
    assert got == openai.Answer(body, Usage(10, 5, cache_read=4, reasoning=2), "stop")


def test_more_cached_tokens_than_prompt_tokens_are_clamped() -> None:
    body = answer(usage={"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": 9}})
    got = openai.decode_answer(body, api="chat")
    assert isinstance(got, openai.Answer)
    assert got.usage == Usage(3, 0, cache_read=3)


@pytest.mark.parametrize(
    ("body", "kind", "says"),
    [
        (b"<!DOCTYPE html><html></html>", f.MalformedAnswer, "HTML"),
        (b"", f.MalformedAnswer, "empty body"),
        (b'{"choices":[', f.MalformedAnswer, "not the JSON"),
        (b'{"id":"x"}', f.MalformedAnswer, "no choices"),
        (b'{"choices":[]}', f.MalformedAnswer, "no choices"),
        (b"[" * 100_000, f.MalformedAnswer, "not the JSON"),
        (b'{"error":{"message":"busy","type":"server_error"}}', f.ServerError, "busy"),
        (b'{"error":{"message":"out","code":"insufficient_quota"}}', f.QuotaExhausted, "out"),
    ],
)
def test_what_is_no_answer_becomes_a_typed_failure(
    body: bytes, kind: type[f.Failure], says: str
) -> None:
    got = openai.decode_answer(body, api="chat")
    assert isinstance(got, kind)
    assert says in got.message


def embeddings(*vectors: object) -> bytes:
    data = [{"object": "embedding", "index": i, "embedding": v} for i, v in enumerate(vectors)]
    return json.dumps({"object": "list", "data": data, "usage": {"prompt_tokens": 2}}).encode()


def test_embeddings_in_the_asked_encoding_pass_untouched() -> None:
    body = embeddings([0.5, 1.0])
    got = openai.decode_answer(body, api="embeddings", encoding="float")
    assert got == openai.Answer(body, Usage(2, 0))


def test_floats_become_base64_for_clients_that_asked_for_it() -> None:
    got = openai.decode_answer(embeddings([0.5, -1.0]), api="embeddings", encoding="base64")
    assert isinstance(got, openai.Answer)
    packed = json.loads(got.body)["data"][0]["embedding"]
    assert struct.unpack("<2f", base64.b64decode(packed)) == (0.5, -1.0)


def test_base64_becomes_floats_for_clients_that_did_not_ask_for_it() -> None:
    text = base64.b64encode(struct.pack("<2f", 0.5, -1.0)).decode()
    got = openai.decode_answer(embeddings(text), api="embeddings")
    assert isinstance(got, openai.Answer)
    assert json.loads(got.body)["data"][0]["embedding"] == [0.5, -1.0]


# ---------------------------------------------------------------- streams


def chunk(delta: Mapping[str, object] | None, finish: str | None = None, **more: object) -> bytes:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    return json.dumps({"choices": choices, **more}).encode()


def kinds(stream: openai.ChatStream, *events: bytes) -> list[str]:
    found = []
    for event in events:
        step = stream.feed(event)
        found.append(step.kind if isinstance(step, openai.Step) else f.kind(step))
    return found


def test_a_role_alone_is_not_yet_an_answer() -> None:
    stream = openai.ChatStream(usage_wanted=False)
    assert kinds(
        stream,
        chunk({"role": "assistant", "content": ""}),
        chunk({"content": "hi"}),
        chunk({}, "stop"),
        b"[DONE]",
    ) == ["prelude", "content", "content", "done"]
    assert stream.whole


def test_a_tool_call_or_a_thought_is_an_answer() -> None:
    for delta in ({"tool_calls": [{"index": 0, "id": "c"}]}, {"reasoning_content": "hm"}):
        assert kinds(openai.ChatStream(usage_wanted=False), chunk(delta)) == ["content"]


def test_the_usage_chunk_is_kept_from_those_who_did_not_ask() -> None:
    usage = {"prompt_tokens": 7, "completion_tokens": 3}
    quiet = openai.ChatStream(usage_wanted=False)
    assert kinds(quiet, chunk({"content": "a"}), chunk(None, usage=usage)) == ["content", "quiet"]
    assert quiet.usage == Usage(7, 3)
    assert kinds(
        openai.ChatStream(usage_wanted=True), chunk({"content": "a"}), chunk(None, usage=usage)
    ) == ["content", "content"]


def test_a_stream_without_finish_is_not_whole() -> None:
    stream = openai.ChatStream(usage_wanted=False)
    kinds(stream, chunk({"content": "a"}))
    assert not stream.whole


def test_an_error_inside_the_stream_is_a_failure() -> None:
    stream = openai.ChatStream(usage_wanted=False)
    event = b'{"error":{"message":"overloaded","type":"overloaded_error"}}'
    assert kinds(stream, event) == ["overloaded"]
    assert kinds(stream, b"{half") == ["malformed_answer"]


def test_a_chunk_over_several_lines_becomes_one_line() -> None:
    stream = openai.ChatStream(usage_wanted=False)
    step = stream.feed(b'{"choices":[{"index":0,\n"delta":{"content":"a"}}]}')
    assert isinstance(step, openai.Step)
    assert b"\n" not in step.data
    assert json.loads(step.data)["choices"][0]["delta"] == {"content": "a"}


# ---------------------------------------------------------------- failures


@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        (429, {"code": "rate_limit_exceeded"}, f.RateLimited),
        (429, {"code": "insufficient_quota"}, f.QuotaExhausted),
        (429, {}, f.RateLimited),
        (413, {"code": "rate_limit_exceeded"}, f.RequestOverLimit),
        (400, {"code": "context_length_exceeded"}, f.ContextLength),
        (400, {"code": "content_policy_violation"}, f.ContentFiltered),
        (400, {"type": "invalid_request_error", "param": "stop"}, f.InvalidRequest),
        (401, {"code": "invalid_api_key"}, f.KeyRejected),
        (403, {}, f.KeyForbidden),
        (404, {"code": "model_not_found"}, f.ModelNotFound),
        (500, {"type": "server_error"}, f.ServerError),
        (502, {}, f.ServerError),
        (503, {}, f.Overloaded),
        (529, {"type": "overloaded_error"}, f.Overloaded),
        (418, {}, f.InvalidRequest),
    ],
)
def test_a_refusal_is_classified_by_code_then_status(
    status: int, error: dict[str, str], kind: type[f.Failure]
) -> None:
    body = json.dumps({"error": {"message": "why", **error}}).encode()
    got = openai.classify(status, {}, body, now=0)
    assert isinstance(got, kind)
    assert got.provider_status == status


def test_retry_after_is_read_on_refusals() -> None:
    got = openai.classify(429, {"retry-after": "7"}, b"{}", now=0)
    assert f.retry_after_s(got) == 7


def test_a_refused_key_is_never_quoted() -> None:
    body = b'{"error":{"message":"Incorrect API key provided: sk-secret","code":"invalid_api_key"}}'
    assert "sk-secret" not in openai.classify(401, {}, body, now=0).message


@given(st.integers(400, 599), st.binary(max_size=200))
def test_any_error_body_is_classified(status: int, body: bytes) -> None:
    got = openai.classify(status, {}, body, now=0)
    assert f.spec(got).status >= 400
    assert len(got.message) <= 1000
