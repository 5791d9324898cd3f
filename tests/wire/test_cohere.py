"""Cohere's dialect on small exchanges of our own making."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw
from tests.wire.outbound import Json, cuts, events, hostile, keeps_the_contract

from breakwater_gateway.worker.wire import cohere
from breakwater_gateway.worker.wire import neutral as n
from breakwater_gateway.worker.wire.bad_request import BadRequest
from breakwater_protocol import failures as f
from breakwater_protocol.chat import Usage

TARGET = n.Target("command-a-03-2025")


def say(text: str) -> n.Turn:
    return n.Turn(role="user", parts=[n.Text(text=text)], plain=True)


def asked(*turns: n.Turn, **more: Json) -> tuple[Json, tuple[str, ...]]:
    """The body of an OpenAI caller's request, and what was dropped."""
    request = n.Request(dialect="openai", model="m", turns=list(turns) or [say("Hi")], **more)
    call = cohere.encode_request(request, TARGET)
    assert call.path == "/v2/chat"
    return json.loads(call.body), call.dropped


# ---------------------------------------------------------------- requests


def test_a_conversation_with_tools_is_written_in_cohere_s_words() -> None:
    body, dropped = asked(
        n.Turn(role="developer", parts=[n.Text(text="Be brief.")], plain=True),
        n.Turn(
            role="user",
            parts=[
                n.Text(text="What is this?"),
                n.Image(media_type="image/png", data="aaaa"),
                n.Image(url="https://example.com/a.png", detail="low"),
            ],
        ),
        n.Turn(
            role="assistant",
            parts=[
                n.Thinking(text="I will look."),
                n.ToolCall(id="c", name="look", arguments='{"a":1}'),
            ],
        ),
        n.Turn(role="tool", parts=[n.ToolResult(call_id="c", content=[n.Text(text="a cat")])]),
        n.Turn(role="assistant", parts=[n.Thinking(text="hm"), n.Text(text="A cat.")]),
        tools=[n.Tool(name="look", description="d", strict=True)],
        tool_choice=n.ToolChoice(mode="required"),
        top_p=0.5,
        top_k=3,
        max_output=10,
        stop=["END"],
        seed=7,
        temperature=0.0,
    )
    assert not dropped
    assert body == {
        "model": "command-a-03-2025",
        "stream": False,
        "messages": [
            {"role": "system", "content": "Be brief."},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "What is this?"},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,aaaa"}},
                    {
                        "type": "image_url",
                        "image_url": {"url": "https://example.com/a.png", "detail": "low"},
                    },
                ],
            },
            {
                "role": "assistant",
                "tool_plan": "I will look.",
                "tool_calls": [
                    {
                        "id": "c",
                        "type": "function",
                        "function": {"name": "look", "arguments": '{"a":1}'},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": "c", "content": "a cat"},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm"},
                    {"type": "text", "text": "A cat."},
                ],
            },
        ],
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": "look",
                    "description": "d",
                    "parameters": {"type": "object", "properties": {}},
                },
            }
        ],
        "strict_tools": True,
        "tool_choice": "REQUIRED",
        "p": 0.5,
        "k": 3,
        "max_tokens": 10,
        "stop_sequences": ["END"],
        "seed": 7,
        "temperature": 0.0,
    }


def test_a_named_tool_is_required_by_giving_no_other() -> None:
    body, dropped = asked(
        tools=[n.Tool(name="a"), n.Tool(name="b")],
        tool_choice=n.ToolChoice(mode="named", names=["b"]),
    )
    assert [tool["function"]["name"] for tool in body["tools"]] == ["b"]
    assert body["tool_choice"] == "REQUIRED"
    assert not dropped


@pytest.mark.parametrize(
    ("form", "written"),
    [
        (n.OutputFormat(kind="text"), None),
        (n.OutputFormat(kind="json"), {"type": "json_object"}),
        (
            n.OutputFormat(kind="schema", schema=Raw(b'{"type":"object"}'), name="x"),
            {"type": "json_object", "json_schema": {"type": "object"}},
        ),
    ],
)
def test_formats_are_written(form: n.OutputFormat, written: Json) -> None:
    body, dropped = asked(format=form)
    assert body.get("response_format") == written
    assert not dropped


@pytest.mark.parametrize(
    ("wanted", "written"),
    [
        (n.Reasoning(), {"type": "enabled"}),
        (n.Reasoning(off=True), {"type": "disabled"}),
        (n.Reasoning(effort="none"), {"type": "disabled"}),
        (n.Reasoning(effort="low"), {"type": "enabled", "token_budget": 2048}),
        (n.Reasoning(budget=99), {"type": "enabled", "token_budget": 99}),
    ],
)
def test_thinking_is_asked_for_by_a_budget(wanted: n.Reasoning, written: Json) -> None:
    body, _ = asked(reasoning=wanted)
    assert body["thinking"] == written


def test_what_cohere_cannot_say_is_named() -> None:
    body, dropped = asked(
        n.Turn(
            role="user",
            parts=[
                n.Document(media_type="application/pdf", data="aa"),
                n.Audio(format="wav", data="aa"),
                n.Native(dialect="openai", raw=Raw(b'{"type":"odd"}')),
                n.Text(text="Hi", extra={"cache_control": Raw(b"{}")}),
            ],
            name="Ann",
        ),
        n.Turn(
            role="tool",
            parts=[
                n.ToolResult(
                    call_id="c", content=[n.Image(media_type="image/png", data="a")], is_error=True
                )
            ],
        ),
        n=2,
        logit_bias=Raw(b"{}"),
        top_logprobs=2,
        user="u",
        parallel_tools=False,
        service_tier="flex",
        tools=[
            n.Tool(name="a", strict=True),
            n.Tool(name="b"),
            n.NativeTool(dialect="openai", raw=Raw(b'{"type":"web"}')),
        ],
        extra={"store": Raw(b"true")},
    )
    assert set(dropped) == {
        *("messages.name", "messages.document", "messages.audio", "messages.odd"),
        *("messages.cache_control", "messages.image", "messages.tool_result.is_error"),
        *("n", "logit_bias", "top_logprobs", "user", "parallel_tool_calls", "service_tier"),
        *("tools.web", "tools.strict", "store"),
    }
    assert body["messages"] == [
        {"role": "user", "content": "Hi"},
        {"role": "tool", "tool_call_id": "c", "content": ""},
    ]


NATIVE = {
    "model": "command-a-03-2025",
    "stream": True,
    "messages": [
        {"role": "system", "content": "s"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "t"},
                {
                    "type": "image_url",
                    "image_url": {"url": "data:image/png;base64,aa", "detail": "low"},
                },
                {"type": "image_url", "image_url": {"url": "https://x/y", "new": 1}},
            ],
        },
        {
            "role": "assistant",
            "content": None,
            "tool_plan": "p",
            "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{"}}
            ],
            "citations": [{"start": 0}],
        },
        {
            "role": "tool",
            "tool_call_id": "1",
            "content": [{"type": "document", "document": {"data": {"x": "y"}}}],
        },
        {"role": "assistant", "content": []},
    ],
    "tools": [
        {"type": "function", "function": {"name": "f", "parameters": {"a": None}, "new": 1}},
        {"type": "other"},
    ],
    "documents": [{"id": "d", "data": {"text": "t"}}],
    "response_format": {"type": "json_object", "schema": {"type": "object"}},
    "thinking": {"type": "enabled", "token_budget": 5},
    "tool_choice": "NONE",
    "stop_sequences": [],
    "max_tokens": None,
    "k": 0,
    "p": 0.99,
    "safety_mode": "OFF",
    "logprobs": True,
}


def test_native_bodies_come_out_as_they_went_in() -> None:
    request = cohere.decode_request(json.dumps(NATIVE).encode())
    call = cohere.encode_request(request, TARGET)
    assert json.loads(call.body) == NATIVE
    assert not call.dropped


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"", None),
        (b'{"messages":[]}', "model"),
        (b'{"model":"m"}', "messages"),
        (b'{"model":"m","messages":[{"role":"cat"}]}', "messages[0].role"),
        (b'{"model":"m","messages":[{"role":"tool"}]}', "messages[0].tool_call_id"),
        (b'{"model":"m","messages":[{"role":"user","content":[7]}]}', "messages[0].content[0]"),
        (b'{"model":"m","messages":[],"k":"x"}', "k"),
    ],
)
def test_bodies_of_another_shape_are_refused(body: bytes, param: str | None) -> None:
    with pytest.raises(BadRequest) as refused:
        cohere.decode_request(body)
    assert refused.value.param == param


# ---------------------------------------------------------------- answers


def answer(message: Json, reason: str = "COMPLETE", **more: Json) -> bytes:
    whole = {"id": "a", "message": {"role": "assistant"} | message, "finish_reason": reason}
    return json.dumps(whole | more).encode()


def test_an_answer_is_read_with_all_that_it_says() -> None:
    usage = {
        "billed_units": {"input_tokens": 5, "output_tokens": 9},
        "tokens": {"input_tokens": 100, "output_tokens": 10, "reasoning_tokens": 4},
        "cached_tokens": 64,
    }
    found = cohere.decode_answer(
        answer(
            {
                "tool_plan": "I will look.",
                "content": [
                    {"type": "thinking", "thinking": "hm"},
                    {"type": "text", "text": "Hi"},
                ],
                "tool_calls": [
                    {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
                ],
                "citations": [{"start": 0}],
            },
            "TOOL_CALL",
            usage=usage,
            logprobs=[{"token_ids": [1]}],
        )
    )
    assert isinstance(found, n.Answer)
    (candidate,) = found.candidates
    assert candidate.parts == [
        n.Thinking(text="I will look.", layout={"tool_plan": Raw(b"true")}),
        n.Thinking(text="hm"),
        n.Text(text="Hi"),
        n.ToolCall(id="c", name="f", arguments="{}"),
    ]
    assert (found.id, candidate.finish, candidate.native) == ("a", "tool_calls", "TOOL_CALL")
    assert set(candidate.extra) == {"citations", "logprobs"}
    assert found.usage == Usage(input=100, output=10, cache_read=64, reasoning=4)
    assert json.loads(bytes(found.extra["usage"])) == usage


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("COMPLETE", "stop"),
        ("STOP_SEQUENCE", "stop"),
        ("MAX_TOKENS", "length"),
        ("TOOL_CALL", "tool_calls"),
        ("ERROR_TOXIC", "content_filter"),
        ("NEW", "stop"),
    ],
)
def test_finish_reasons_have_their_neutral_words(reason: str, finish: str) -> None:
    found = cohere.decode_answer(answer({"content": []}, reason))
    assert isinstance(found, n.Answer)
    assert found.candidates[0].finish == finish


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (answer({}, "ERROR"), f.ServerError),
        (answer({}, "TIMEOUT"), f.ServerError),
        (answer({}, "ERROR", error_type="INVALID_TOOL_GENERATION"), f.MalformedToolCall),
        (b"", f.MalformedAnswer),
        (b"<html>", f.MalformedAnswer),
        (b"{}", f.MalformedAnswer),
        (b'{"message":{"content":[{"type":"text"}]}}', f.MalformedAnswer),
        (b'{"message":"no"}', f.ServerError),
    ],
)
def test_a_failure_in_a_200_is_typed(body: bytes, kind: type[f.Failure]) -> None:
    assert type(cohere.decode_answer(body)) is kind


def test_billed_units_count_where_nothing_else_does() -> None:
    raw = b'{"billed_units":{"input_tokens":3.0,"output_tokens":2},"cached_tokens":9}'
    assert cohere.usage(raw) == Usage(input=3, output=2, cache_read=3)
    assert cohere.usage(b"{}") == Usage()
    assert cohere.usage(b'{"tokens":{"input_tokens":-5}}') == Usage()


# ---------------------------------------------------------------- streams


def sse(*said: Json, end: bytes = b"data: [DONE]\n\n") -> bytes:
    lines = [f"event: {one['type']}\ndata: {json.dumps(one)}\n\n".encode() for one in said]
    return b"".join(lines) + end


def event(kind: str, index: int | None = None, **message: Json) -> Json:
    at = {} if index is None else {"index": index}
    return {"type": kind, **at, "delta": {"message": message}}


START: Json = {
    "type": "message-start",
    "id": "a",
    "delta": {"message": {"role": "assistant", "content": [], "tool_calls": [], "citations": []}},
}
END: Json = {
    "type": "message-end",
    "delta": {
        "finish_reason": "TOOL_CALL",
        "usage": {"tokens": {"input_tokens": 9, "output_tokens": 5}},
    },
}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": ""}}
STREAM = sse(
    START,
    event("tool-plan-delta", tool_plan="I "),
    event("tool-plan-delta", tool_plan="will."),
    event("content-start", 0, content={"type": "text", "text": ""}),
    event("content-delta", 0, content={"text": "Grüß"}),
    event("citation-start", 0, citations={"start": 0}),
    event("citation-end", 0),
    event("content-end", 0),
    event("tool-call-start", 0, tool_calls=CALL),
    event("tool-call-delta", 0, tool_calls={"function": {"arguments": "{}"}}),
    event("tool-call-end", 0),
    END,
)


def test_a_stream_is_read_event_by_event() -> None:
    found = events(cohere.StreamDecoder, STREAM)
    usage = Raw(json.dumps(END["delta"]["usage"]).encode())
    assert found == [
        n.Began(id="a"),
        n.PartBegan(0, n.Thinking(layout={"tool_plan": Raw(b"true")})),
        n.Grew(0, text="I "),
        n.Grew(0, text="will."),
        n.PartEnded(0),
        n.PartBegan(1, n.Text(text="")),
        n.Grew(1, text="Grüß"),
        n.Grew(1, extra={"citations": Raw(b'{"start": 0}')}),
        n.PartEnded(1),
        n.PartBegan(2, n.ToolCall(id="c", name="f", arguments="")),
        n.Grew(2, text="{}"),
        n.PartEnded(2),
        n.Finished("tool_calls", native="TOOL_CALL"),
        n.UsageKnown(Usage(input=9, output=5), extra={"usage": usage}),
        n.Done(),
    ]
    for pieces in cuts(STREAM):
        assert events(cohere.StreamDecoder, *pieces) == found


def test_a_stream_without_its_last_line_is_whole_when_the_message_ended() -> None:
    for end in (b"", b"data: [DONE]"):
        assert events(cohere.StreamDecoder, sse(START, END, end=end))[-1] == n.Done()
    assert n.Done() not in events(cohere.StreamDecoder, sse(START))
    assert n.Done() not in events(cohere.StreamDecoder, STREAM[:-30])


def test_citations_of_a_closed_text_come_with_the_finish() -> None:
    body = sse(START, event("citation-start", 0, citations={"start": 0}), END)
    (finished,) = [e for e in events(cohere.StreamDecoder, body) if isinstance(e, n.Finished)]
    assert json.loads(bytes(finished.extra["citations"])) == [{"start": 0}]


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (
            sse(
                START,
                event("content-delta", 0, content={"text": "a"}),
                {
                    "type": "message-end",
                    "delta": {"finish_reason": "ERROR", "error_type": "INVALID_TOOL_GENERATION"},
                },
            ),
            f.MalformedToolCall,
        ),
        (sse({"type": "message-end", "delta": {"finish_reason": "TIMEOUT"}}), f.ServerError),
        (b'data: {"message":"too bad"}\n\n', f.ServerError),
        (b'data: {"message":"too bad"}', f.ServerError),
        (b"data: nonsense\n\n", f.MalformedAnswer),
        (b'data: {"type":"content-delta","delta":[]}\n\n', f.MalformedAnswer),
    ],
)
def test_a_failure_within_a_stream_is_typed(body: bytes, kind: type[f.Failure]) -> None:
    found = events(cohere.StreamDecoder, body + STREAM)
    if body.endswith(b"\n\n"):
        assert isinstance(found[-1], n.Broke)
        assert type(found[-1].failure) is kind
    alone = events(cohere.StreamDecoder, body)
    assert keeps_the_contract(alone)
    assert isinstance(alone[-1], n.Broke)
    for pieces in cuts(body):
        assert events(cohere.StreamDecoder, *pieces) == alone


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, {"message": "x", "error_type": "TOO_MANY_TOKENS"}, f.ContextLength),
        (400, {"message": "too many tokens: total 5000"}, f.ContextLength),
        (400, {"message": "invalid request: too many tokens:"}, f.InvalidRequest),
        (401, {"message": "Incorrect API key provided: abcd"}, f.KeyRejected),
        (402, {"message": "x"}, f.QuotaExhausted),
        (403, {"message": "x"}, f.KeyForbidden),
        (404, {"message": "model 'x' not found"}, f.ModelNotFound),
        (422, {"message": "x"}, f.InvalidRequest),
        (429, {"message": "x"}, f.RateLimited),
        (
            429,
            {"message": "You are using a Trial key, which is limited to 1000 API calls / month."},
            f.QuotaExhausted,
        ),
        (
            429,
            {"message": "You are using a Trial key, which is limited to 20 API calls / minute."},
            f.RateLimited,
        ),
        (498, {"message": "x"}, f.ContentFiltered),
        (500, {"message": "x"}, f.ServerError),
        (503, {}, f.Overloaded),
    ],
)
def test_errors_are_classified(status: int, body: Json, kind: type[f.Failure]) -> None:
    found = cohere.classify(status, {"retry-after": "2"}, json.dumps(body).encode(), now=0)
    assert type(found) is kind
    assert found.provider_status == status
    assert "abcd" not in found.message
    if status in {429, 503}:
        assert f.retry_after_s(found) == 2


# ---------------------------------------------------------------- embeddings


def test_embeddings_are_asked_for_with_a_task_and_as_floats() -> None:
    request = n.Embeddings(dialect="openai", model="m", inputs=["a", "b"], dimensions=256, user="u")
    call = cohere.encode_embeddings(request, n.Target("embed-v4.0"))
    assert call.path == "/v2/embed"
    assert json.loads(call.body) == {
        "model": "embed-v4.0",
        "texts": ["a", "b"],
        "output_dimension": 256,
        "input_type": "search_document",
        "embedding_types": ["float"],
    }
    assert call.dropped == ("user",)
    ids = msgspec.structs.replace(request, inputs=[[1, 2]])
    with pytest.raises(BadRequest):
        cohere.encode_embeddings(ids, TARGET)


def test_vectors_and_their_usage_are_read() -> None:
    body = (
        b'{"id":"x","embeddings":{"float":[[1],[2]]},"texts":["a","b"],'
        b'"meta":{"billed_units":{"input_tokens":4}}}'
    )
    found = cohere.decode_embeddings(body)
    assert isinstance(found, n.EmbeddingsAnswer)
    assert (found.vectors, found.usage) == ([[1], [2]], Usage(input=4))
    assert isinstance(cohere.decode_embeddings(b'{"embeddings":{}}'), f.MalformedAnswer)
    assert isinstance(cohere.decode_embeddings(b'{"message":"no"}'), f.ServerError)


# ---------------------------------------------------------------- fuzz

WORDS = (
    *("model", "messages", "role", "content", "text", "type", "thinking", "tool_calls", "function"),
    *("name", "arguments", "id", "tool_call_id", "tool_plan", "image_url", "url", "tools", "index"),
    *(
        "parameters",
        "response_format",
        "json_schema",
        "schema",
        "k",
        "p",
        "stop_sequences",
        "delta",
    ),
    *("message", "finish_reason", "usage", "tokens", "input_tokens", "error_type", "citations"),
    *("embeddings", "float", "meta", "texts", "token_budget", "tool_choice", "logprobs", "error"),
)
KINDS = (
    *("message-start", "content-start", "content-delta", "content-end", "tool-plan-delta"),
    *("tool-call-start", "tool-call-delta", "tool-call-end", "citation-start", "message-end", "x"),
)


@given(hostile(*WORDS))
def test_no_json_breaks_the_decoders(body: bytes) -> None:
    try:
        request = cohere.decode_request(body)
    except BadRequest:
        pass
    else:
        cohere.encode_request(request, TARGET)
        cohere.encode_request(msgspec.structs.replace(request, dialect="openai"), TARGET)
    cohere.decode_answer(body)
    cohere.decode_embeddings(body)
    cohere.classify(400, {}, body, now=0)
    cohere.usage(body)


@given(st.binary(max_size=200), st.integers(100, 599))
def test_no_bytes_break_the_decoders(body: bytes, status: int) -> None:
    cohere.decode_answer(body)
    cohere.decode_embeddings(body)
    cohere.classify(status, {}, body, now=0)
    for one in (body, b"data: " + body + b"\n\n"):
        assert keeps_the_contract(events(cohere.StreamDecoder, one))


@given(st.lists(st.tuples(st.sampled_from(KINDS), hostile(*WORDS)), max_size=8))
def test_no_events_break_the_stream_decoder(said: list[tuple[str, bytes]]) -> None:
    body = sse(*(json.loads(payload) | {"type": kind} for kind, payload in said))
    assert keeps_the_contract(events(cohere.StreamDecoder, body))


@given(st.lists(st.tuples(st.sampled_from(KINDS[1:-2]), st.integers(0, 2)), max_size=12))
def test_events_in_any_order_keep_the_contract(order: list[tuple[str, int]]) -> None:
    whole = {
        "content": {"type": "text", "text": "a"},
        "tool_plan": "p",
        "tool_calls": CALL,
        "citations": {"start": 0},
    }
    body = sse(*(event(kind, at, **whole) for kind, at in order), END)
    found = events(cohere.StreamDecoder, body)
    assert keeps_the_contract(found)
    assert found[-1] == n.Done()
