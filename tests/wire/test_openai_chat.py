"""Chat completions to and from the neutral vocabulary: hand-made exchanges, hosts' quirks, hostile bytes."""

import base64
import contextlib
import copy
import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.create_embedding_response import CreateEmbeddingResponse

from breakwater_gateway.worker.wire import openai
from breakwater_gateway.worker.wire import openai_chat as oc
from breakwater_gateway.worker.wire.bad_request import BadRequest
from breakwater_gateway.worker.wire.neutral import (
    Answer,
    Audio,
    Began,
    Broke,
    Candidate,
    Document,
    Done,
    Embeddings,
    EmbeddingsAnswer,
    Finished,
    Grew,
    Image,
    Native,
    OutputFormat,
    PartBegan,
    PartEnded,
    Reasoning,
    Refusal,
    Request,
    StreamEvent,
    Target,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
    Turn,
    UsageKnown,
    Video,
)
from breakwater_gateway.worker.wire.openai_chat import quirks
from breakwater_protocol import failures as f
from breakwater_protocol.chat import Usage

Json = dict[str, Any]


def read(**fields: object) -> Request:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    return oc.decode_request(json.dumps(body).encode())


def message(**fields: object) -> Turn:
    return read(messages=[fields]).turns[0]


def written(request: Request, provider: str = "", **more: object) -> tuple[Json, tuple[str, ...]]:
    facts = {"provider": provider, **more} if provider or more else {}
    call = oc.encode_request(request, Target("host-model", facts))
    found = json.loads(call.body)
    assert isinstance(found, dict)
    return found, call.dropped


def asked(*turns: Turn, dialect: str = "anthropic", **fields: Any) -> Request:  # noqa: ANN401
    return Request(
        dialect=dialect,  # type: ignore[arg-type]
        model="m",
        turns=list(turns) or [Turn("user", [Text(text="hi")], plain=True)],
        **fields,
    )


# ---------------------------------------------------------------- requests: reading


@pytest.mark.parametrize(
    ("part", "wanted"),
    [
        ({"type": "text", "text": "a"}, Text(text="a")),
        (
            {"type": "image_url", "image_url": {"url": "https://x/y.png", "detail": "low"}},
            Image(url="https://x/y.png", detail="low"),
        ),
        (
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
            Image(media_type="image/png", data="AAAA"),
        ),
        ({"type": "image_url", "image_url": "https://x"}, Image(url="https://x")),
        (
            {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}},
            Audio(data="AA==", format="wav"),
        ),
        (
            {
                "type": "file",
                "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,AA=="},
            },
            Document(media_type="application/pdf", data="AA==", name="a.pdf"),
        ),
        ({"type": "file", "file": {"file_id": "file-1"}}, Document(file_id="file-1")),
        ({"type": "document_url", "document_url": "https://x/d"}, Document(url="https://x/d")),
        ({"type": "video_url", "video_url": {"url": "https://x/v"}}, Video(url="https://x/v")),
    ],
)
def test_parts_of_content_are_understood(part: Json, wanted: object) -> None:
    assert message(role="user", content=[part]).parts == [wanted]


def test_a_part_of_an_unknown_kind_stays_as_it_is() -> None:
    part = {"type": "hologram", "hologram": 1}
    (found,) = message(role="user", content=[part]).parts
    assert isinstance(found, Native)
    assert json.loads(bytes(found.raw)) == part


def test_an_assistant_s_turn_holds_thought_text_refusal_and_calls_in_that_order() -> None:
    turn = message(
        role="assistant",
        content="text",
        reasoning_content="hm",
        refusal="no",
        tool_calls=[{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
    )
    assert turn.parts == [
        Thinking(text="hm"),
        Text(text="text"),
        Refusal(text="no"),
        ToolCall(id="c1", name="f", arguments="{}"),
    ]


def test_signed_thoughts_come_in_from_litellm_s_and_openrouter_s_fields() -> None:
    blocks = [
        {"type": "thinking", "thinking": "hm", "signature": "sig"},
        {"type": "redacted_thinking", "data": "secret"},
    ]
    wanted = [Thinking(text="hm", signature="sig"), Thinking(redacted="secret")]
    assert message(role="assistant", content=None, thinking_blocks=blocks).parts == wanted
    details = [
        {"type": "reasoning.text", "text": "hm", "signature": "sig"},
        {"type": "reasoning.encrypted", "data": "secret"},
    ]
    turn = message(role="assistant", content=None, reasoning="hm", reasoning_details=details)
    assert turn.parts == wanted


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"reasoning_effort": "low"}, Reasoning(effort="low")),
        ({"reasoning_effort": "none"}, Reasoning(effort="none", off=True)),
        ({"reasoning": {"max_tokens": 99}}, Reasoning(budget=99)),
        ({"reasoning": {"enabled": False}}, Reasoning(off=True)),
        ({"reasoning": {"enabled": True}}, Reasoning()),
        (
            {"reasoning": {"enabled": True, "exclude": True}},
            Reasoning(extra={"reasoning": Raw(b'{"exclude":true,"enabled":true}')}),
        ),
        ({"thinking": {"type": "disabled"}}, Reasoning(off=True)),
        ({"thinking": {"type": "enabled", "budget_tokens": 5}}, Reasoning(budget=5)),
        ({}, None),
    ],
)
def test_reasoning_is_asked_for_in_three_ways(given: Json, wanted: Reasoning | None) -> None:
    assert read(**given).reasoning == wanted


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("auto", ToolChoice("auto")),
        ("any", ToolChoice("required")),
        ({"type": "function", "function": {"name": "f"}}, ToolChoice("named", ["f"])),
        (
            {
                "type": "allowed_tools",
                "allowed_tools": {
                    "mode": "required",
                    "tools": [{"type": "function", "function": {"name": "f"}}],
                },
            },
            ToolChoice("required", ["f"]),
        ),
    ],
)
def test_tool_choice_is_read_in_all_its_spellings(given: object, wanted: ToolChoice) -> None:
    assert read(tool_choice=given).tool_choice == wanted


def test_a_null_asks_for_nothing() -> None:
    assert read(temperature=None, tools=None, n=None, stop=None) == read()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages[0].content[0].text",
        ),
        ({"temperature": "hot"}, "temperature"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        ({"tool_choice": "maybe"}, "tool_choice"),
        ({"stop": 7}, "stop"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
        ({"model": ""}, "model"),
    ],
)
def test_what_is_not_of_the_api_s_shape_is_refused_by_name(fields: Json, param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        read(**fields)
    assert caught.value.param == param


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"[" * 100_000, b'{"a":' * 100_000])
def test_what_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequest):
        oc.decode_request(body)


def test_azure_names_the_model_in_the_path() -> None:
    body = b'{"messages":[{"role":"user","content":"hi"}]}'
    path = "https://x.openai.azure.com/openai/deployments/my%2Fdep/chat/completions?api-version=1"
    assert oc.decode_request(body, path=path).model == "my/dep"


# ---------------------------------------------------------------- requests: writing


@pytest.mark.parametrize(
    ("provider", "field"),
    [
        ("openai", "max_completion_tokens"),
        ("azure", "max_completion_tokens"),
        ("", "max_tokens"),
        ("mistral", "max_tokens"),
    ],
)
def test_the_token_limit_has_the_host_s_name(provider: str, field: str) -> None:
    body, dropped = written(read(max_tokens=9), provider)
    assert body[field] == 9
    assert not dropped


def test_mistral_gets_its_own_spellings() -> None:
    request = read(
        seed=5, user="u", logit_bias={"1": 2}, tools=[{"type": "function", "function": {"name": "f"}}],
        tool_choice="required", stream=True,
        messages=[
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": None, "reasoning_content": "hm",
             "tool_calls": [{"id": "call_long_id", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "call_long_id", "content": "done"},
        ],
    )  # fmt: skip
    body, dropped = written(request, "mistral")
    assert body["random_seed"] == 5
    assert body["tool_choice"] == "any"
    assert "stream_options" not in body
    assert set(dropped) == {"user", "logit_bias"}
    call, result = body["messages"][1], body["messages"][2]
    assert call["content"][0]["type"] == "thinking"
    ident = call["tool_calls"][0]["id"]
    assert len(ident) == 9
    assert ident.isalnum()
    assert result["tool_call_id"] == ident


def test_a_developer_is_a_system_where_the_host_knows_no_developer() -> None:
    request = asked(Turn("developer", [Text(text="be brief")], plain=True), dialect="openai")
    assert written(request, "groq")[0]["messages"][0]["role"] == "system"
    assert written(request, "openai")[0]["messages"][0]["role"] == "developer"


def test_results_of_tools_leave_a_user_turn_and_come_first() -> None:
    """As Anthropic and Gemini put them: beside text, with images in them."""
    request = asked(
        Turn("assistant", [ToolCall(id="a", name="f"), ToolCall(id="b", name="g")]),
        Turn(
            "user",
            [
                Text(text="and?"),
                ToolResult(call_id="a", content=[Text(text="1"), Image(url="https://x/i")]),
                ToolResult(call_id="b", content=[Text(text="2")], is_error=True),
            ],
        ),
    )
    body, dropped = written(request, "openai")
    assert [m["role"] for m in body["messages"]] == ["assistant", "tool", "tool", "user"]
    assert body["messages"][1] == {"role": "tool", "tool_call_id": "a", "content": "1"}
    assert [p["type"] for p in body["messages"][3]["content"]] == ["image_url", "text"]
    assert dropped == ("tool_result.is_error",)


def test_what_another_dialect_says_and_this_one_cannot_is_named() -> None:
    request = asked(
        Turn(
            "user", [Text(text="hi", extra={"cache_control": Raw(b"{}")}), Video(url="https://v")]
        ),
        Turn("assistant", [Thinking(text="hm", signature="s"), Text(text="a")]),
        top_k=4,
        extra={"container": Raw(b"{}")},
        reasoning=Reasoning(budget=5000),
    )
    body, dropped = written(request, "openai")
    assert set(dropped) == {
        "content.cache_control",
        "video",
        "messages.reasoning",
        "top_k",
        "container",
        "reasoning.budget",
    }
    assert body["reasoning_effort"] == "medium"


@pytest.mark.parametrize(
    ("provider", "asked_for", "wanted"),
    [
        ("openai", Reasoning(off=True), {"reasoning_effort": "none"}),
        ("openrouter", Reasoning(budget=9), {"reasoning": {"max_tokens": 9}}),
        ("openrouter", Reasoning(), {"reasoning": {"enabled": True}}),
        ("zai", Reasoning(off=True), {"thinking": {"type": "disabled"}}),
        ("zai", Reasoning(effort="high"), {"reasoning_effort": "high"}),
        ("deepseek", Reasoning(), {"thinking": {"type": "enabled"}}),
    ],
)
def test_each_host_is_asked_for_reasoning_its_way(
    provider: str, asked_for: Reasoning, wanted: Json
) -> None:
    body, _ = written(asked(reasoning=asked_for), provider)
    assert {
        k: body[k] for k in ("reasoning_effort", "reasoning", "thinking") if k in body
    } == wanted


def test_a_schema_becomes_plain_json_where_the_host_knows_none() -> None:
    request = asked(format=OutputFormat("schema", schema=Raw(b'{"type":"object"}')))
    assert written(request, "openai")[0]["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "response", "schema": {"type": "object"}},
    }
    body, dropped = written(request, "deepseek")
    assert body["response_format"] == {"type": "json_object"}
    assert dropped == ("response_format.json_schema",)


def test_azure_s_paths() -> None:
    target = Target(
        "dep/1", {"provider": "azure", "azure_path": "deployments", "api_version": "v&1"}
    )
    call = oc.encode_request(read(), target)
    assert call.path == "/openai/deployments/dep%2F1/chat/completions?api-version=v%261"
    assert "model" not in json.loads(call.body)
    assert oc.encode_request(read(), Target("m", {"provider": "azure"})).path == "/chat/completions"
    assert quirks.by_provider("azure").key_header == "api-key"


def test_a_deployment_overrides_its_host_s_quirks() -> None:
    body, _ = written(read(max_tokens=1), "openai", max_tokens_field="max_tokens")
    assert body["max_tokens"] == 1


def test_tools_keep_their_schema_byte_for_byte() -> None:
    schema = b'{"type":"object","properties":{"b":{},"a":{"default":null}}}'
    request = asked(tools=[Tool("f", schema=Raw(schema))])
    assert schema in oc.encode_request(request, Target("m")).body


# ---------------------------------------------------------------- answers


def answered(**fields: object) -> bytes:
    base = {
        "id": "x",
        "model": "m",
        "created": 7,
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}
        ],
    }
    return json.dumps({**base, **fields}).encode()


def candidate(finish: str | None = "stop", **fields: object) -> Candidate:
    body = answered(choices=[{"index": 0, "message": fields, "finish_reason": finish}])
    answer = oc.decode_answer(body)
    assert isinstance(answer, Answer)
    return answer.candidates[0]


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"<html>", f.MalformedAnswer),
        (b"", f.MalformedAnswer),
        (b'{"choices":[]}', f.MalformedAnswer),
        (b'{"choices":[7]}', f.MalformedAnswer),
        (b'{"choices":7}', f.MalformedAnswer),
        (answered(error={"code": 502, "message": "upstream"}), f.ServerError),
        (
            answered(choices=[{"index": 0, "error": {"code": 429, "message": "slow"}}]),
            f.RateLimited,
        ),
    ],
)
def test_a_failure_inside_a_200_is_typed(body: bytes, kind: type[f.Failure]) -> None:
    assert isinstance(oc.decode_answer(body), kind)


def test_hosts_put_reasoning_into_several_fields() -> None:
    for field in ("reasoning_content", "reasoning"):
        found = candidate(content="a", **{field: "hm"}).parts[0]
        assert isinstance(found, Thinking)
        assert found.text == "hm"
    listed = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}], "closed": True},
        {"type": "text", "text": "a"},
    ]
    assert candidate(content=listed).parts == [Thinking(text="hm"), Text(text="a")]


@pytest.mark.parametrize(
    ("native", "finish"),
    [
        ("stop", "stop"),
        ("eos", "stop"),
        ("length", "length"),
        ("model_length", "length"),
        ("content_filter", "content_filter"),
        ("error", "error"),
        (None, "stop"),
        ("", "stop"),
    ],
)
def test_finish_words_are_made_one(native: str | None, finish: str) -> None:
    assert candidate(native, content="a").finish == finish


def test_calls_end_with_tool_calls_whatever_the_host_says_and_get_ids() -> None:
    calls = [{"id": "", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]
    found = candidate("stop", content=None, tool_calls=calls)
    (call,) = found.parts
    assert isinstance(call, ToolCall)
    assert call.id.startswith("call_")
    assert len(call.id) <= 40
    assert json.loads(call.arguments) == {"a": 1}
    assert (found.finish, found.native) == ("tool_calls", "stop")


ANTHROPIC = Answer(
    dialect="anthropic",
    id="msg_1",
    model="claude",
    created=5,
    candidates=[
        Candidate(
            parts=[
                Thinking(text="hm", signature="sig"),
                Text(text="a"),
                ToolCall(id="toolu_1", name="f", arguments="{}", signature="gem"),
            ],
            finish="tool_calls",
            native="tool_use",
            extra={"odd": Raw(b"1")},
        )
    ],
    usage=Usage(10, 5, cache_read=4, cache_write=1, reasoning=2),
    extra={"container": Raw(b"{}")},
)


def test_another_dialect_s_answer_is_one_that_the_official_sdk_reads() -> None:
    body = oc.encode_answer(ANTHROPIC, model="asked-for")
    read = ChatCompletion.model_validate_json(body)
    assert read.model == "asked-for"
    assert read.choices[0].finish_reason == "tool_calls"
    assert read.usage is not None
    assert read.usage.total_tokens == 15
    shown = json.loads(body)
    assert "container" not in shown
    message = shown["choices"][0]["message"]
    assert message["reasoning_content"] == "hm"
    assert message["thinking_blocks"][0]["signature"] == "sig"
    assert message["tool_calls"][0]["extra_content"]["google"]["thought_signature"] == "gem"


def test_signatures_survive_the_caller_s_round_trip() -> None:
    """What a caller gets from another dialect's host, and sends back with its next turn."""
    message = json.loads(oc.encode_answer(ANTHROPIC))["choices"][0]["message"]
    turn = read(messages=[message]).turns[0]
    assert turn.parts == ANTHROPIC.candidates[0].parts


# ---------------------------------------------------------------- usage


@pytest.mark.parametrize(
    ("raw", "wanted"),
    [
        (
            {
                "prompt_tokens": 10,
                "completion_tokens": 5,
                "total_tokens": 15,
                "prompt_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 3},
                "completion_tokens_details": {"reasoning_tokens": 2},
            },
            Usage(10, 5, 4, 3, 2),
        ),
        (  # xAI: the total holds what the completion does not
            {
                "prompt_tokens": 10,
                "completion_tokens": 5,
                "total_tokens": 35,
                "completion_tokens_details": {"reasoning_tokens": 20},
            },
            Usage(10, 25, reasoning=20),
        ),
        ({"prompt_tokens": 9, "prompt_cache_hit_tokens": 8}, Usage(9, 0, 8)),  # DeepSeek
        ({"prompt_tokens": 9, "cached_tokens": 8}, Usage(9, 0, 8)),  # Together
        (
            {"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": 9}},
            Usage(3, 0, 3),
        ),  # Azure
        ({"prompt_tokens": 3, "prompt_tokens_details": None}, Usage(3)),
        ([], Usage()),
    ],
)
def test_usage_is_brought_to_one_arithmetic(raw: object, wanted: Usage) -> None:
    assert oc.usage(json.dumps(raw).encode()) == wanted


def test_gemini_s_thoughts_are_what_the_total_has_over_the_rest() -> None:
    raw = b'{"prompt_tokens":66,"completion_tokens":6,"total_tokens":100}'
    assert oc.usage(raw, thoughts_beside=True) == Usage(66, 34, reasoning=28)


# ---------------------------------------------------------------- streams


def sse(*chunks: Json | str) -> bytes:
    return b"".join(
        b"data: %b\n\n" % (c if isinstance(c, str) else json.dumps(c)).encode() for c in chunks
    )


def bit(delta: Json, finish: str | None = None, index: int = 0, **more: object) -> Json:
    return {
        "id": "x",
        "model": "m",
        "created": 7,
        "choices": [{"index": index, "delta": delta, "finish_reason": finish}],
        **more,
    }


def events(body: bytes, provider: str = "") -> list[StreamEvent]:
    decoder = oc.StreamDecoder(quirks.by_provider(provider))
    return decoder.feed(body) + decoder.end()


def call_bit(index: int | None, ident: str | None, name: str | None, arguments: str) -> Json:
    call: Json = {"function": {"arguments": arguments}}
    if index is not None:
        call["index"] = index
    if ident is not None:
        call["id"] = ident
    if name is not None:
        call["function"]["name"] = name
    return bit({"tool_calls": [call]})


def test_a_plain_stream() -> None:
    body = sse(
        bit({"role": "assistant", "content": ""}),
        bit({"content": "a"}),
        bit({"content": "b"}),
        bit({}, "stop"),
        {"id": "x", "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}},
        "[DONE]",
    )
    found = events(body)
    assert found[:6] == [
        Began("x", "m", 7),
        PartBegan(0, Text(text="")),
        Grew(0, "a"),
        Grew(0, "b"),
        PartEnded(0),
        Finished("stop", "stop"),
    ]
    assert isinstance(found[6], UsageKnown)
    assert found[6].usage == Usage(1, 2)
    assert found[7:] == [Done()]


def test_thought_then_text_then_calls_are_parts_one_after_another() -> None:
    found = events(
        sse(
            bit({"reasoning_content": "hm"}),
            bit({"content": "a"}),
            call_bit(0, "c0", "f", ""),
            call_bit(0, None, None, '{"a"'),
            call_bit(0, None, None, ":1}"),
            call_bit(1, "c1", "g", "{}"),
            bit({}, "tool_calls"),
            "[DONE]",
        )
    )
    order = [(type(e).__name__, e.index) for e in found if isinstance(e, PartBegan | PartEnded)]
    assert order == [(n, i) for i in range(4) for n in ("PartBegan", "PartEnded")]
    assert "".join(e.text for e in found if isinstance(e, Grew) and e.index == 2) == '{"a":1}'


def test_calls_that_are_written_in_turns_stay_apart() -> None:
    found = events(
        sse(
            call_bit(0, "c0", "f", ""),
            call_bit(1, "c1", "g", ""),
            call_bit(0, None, None, '{"a":1}'),
            call_bit(1, None, None, '{"b":2}'),
            bit({}, "tool_calls"),
            "[DONE]",
        )
    )
    assert [(e.index, e.text) for e in found if isinstance(e, Grew)] == [
        (0, '{"a":1}'),
        (1, '{"b":2}'),
    ]


@pytest.mark.parametrize("indices", [(None, None), (0, 0)])
def test_whole_calls_without_an_index_of_their_own_are_told_apart(
    indices: tuple[int | None, int | None],
) -> None:
    found = events(
        sse(
            call_bit(indices[0], "c0", "f", "{}"),
            call_bit(indices[1], "c1", "g", "{}"),
            bit({}, "tool_calls"),
            "[DONE]",
        )
    )
    calls = [e.part for e in found if isinstance(e, PartBegan)]
    assert [c.id for c in calls if isinstance(c, ToolCall)] == ["c0", "c1"]


def test_a_finish_said_twice_counts_once() -> None:
    found = events(sse(bit({"content": "a"}), bit({}, "stop"), bit({}, "stop"), "[DONE]"))
    assert [type(e) for e in found].count(Finished) == 1


def test_candidates_are_kept_apart() -> None:
    found = events(
        sse(
            bit({"content": "a"}, index=0),
            bit({"content": "b"}, index=1),
            bit({"content": "c"}, index=0),
            bit({}, "stop", index=1),
            bit({}, "length", index=0),
            "[DONE]",
        )
    )
    assert "".join(e.text for e in found if isinstance(e, Grew) and e.candidate == 0) == "ac"
    assert [(e.candidate, e.finish) for e in found if isinstance(e, Finished)] == [
        (1, "stop"),
        (0, "length"),
    ]


def test_azure_s_words_on_the_prompt_come_with_the_beginning() -> None:
    first = {"id": "", "model": "", "created": 0, "choices": [], "prompt_filter_results": [1]}
    found = events(sse(first, bit({"content": "a"}, "stop"), "[DONE]"))
    assert found[0] == Began("x", "m", 7, {"prompt_filter_results": Raw(b"[1]")})


@pytest.mark.parametrize(
    ("chunk", "kind"),
    [
        (
            '{"error":{"message":"x","code":"tool_use_failed","status_code":400}}',
            f.MalformedToolCall,
        ),
        ('{"error":{"message":"x","code":502}}', f.ServerError),
        ('{"error":"boom"}', f.ServerError),
        ("{half", f.MalformedAnswer),
        ('{"choices":7}', f.MalformedAnswer),
        ('{"choices":[{"index":0,"error":{"code":429,"message":"slow"}}]}', f.RateLimited),
    ],
)
def test_a_failure_inside_the_stream_breaks_it(chunk: str, kind: type[f.Failure]) -> None:
    found = events(sse(bit({"content": "a"}), chunk, bit({"content": "b"}), "[DONE]"))
    assert isinstance(found[-1], Broke)
    assert isinstance(found[-1].failure, kind)
    assert found[-2] == PartEnded(0)


def test_a_stream_that_stops_short_is_not_done() -> None:
    found = events(sse(bit({"content": "a"})))
    assert found[-1] == PartEnded(0)


def test_a_stream_without_its_end_mark_is_done_once_all_has_finished() -> None:
    assert events(sse(bit({"content": "a"}, "stop")))[-1] == Done()
    assert events(sse(bit({"content": "a"}, "stop")) + b"data: [DONE]")[-1] == Done()


def test_an_endless_event_is_a_failure() -> None:
    decoder = oc.StreamDecoder(event_bytes_max=1000)
    found: list[StreamEvent] = []
    for _ in range(30):
        found += decoder.feed(b"data: " + b"x" * 100)
    assert [type(e) for e in found] == [Broke]
    assert decoder.feed(sse(bit({"content": "a"}))) == []


CROSS: list[StreamEvent] = [
    Began("msg_1", "claude", 0, {"odd": Raw(b"1")}),
    PartBegan(0, Thinking()),
    Grew(0, "hm"),
    Grew(0, signature="sig"),
    PartEnded(0),
    PartBegan(1, Text(text="")),
    Grew(1, "a"),
    PartEnded(1),
    PartBegan(2, ToolCall(id="toolu_1", name="f", arguments="")),
    Grew(2, '{"a":'),
    Grew(2, "1}"),
    PartEnded(2),
    PartBegan(3, ToolCall(id="toolu_2", name="g", arguments="")),
    Grew(3, "{}"),
    PartEnded(3),
    Finished("tool_calls", "tool_use"),
    UsageKnown(Usage(3, 4)),
    Done(),
]


def test_another_dialect_s_stream_is_one_that_the_official_sdk_reads() -> None:
    encoder = oc.StreamEncoder(model="asked-for", source="anthropic", created=9)
    found = [ChatCompletionChunk.model_validate_json(c) for c in encoder.feed(CROSS)]
    assert {(c.id, c.model, c.created) for c in found} == {("msg_1", "asked-for", 9)}
    deltas = [c.choices[0].delta for c in found if c.choices]
    assert deltas[0].role == "assistant"
    assert "".join(d.content or "" for d in deltas) == "a"
    calls = [c for d in deltas for c in d.tool_calls or ()]
    assert [(c.index, c.id) for c in calls if c.id] == [(0, "toolu_1"), (1, "toolu_2")]
    arguments = [
        "".join(c.function.arguments or "" for c in calls if c.function and c.index == n)
        for n in (0, 1)
    ]
    assert arguments == ['{"a":1}', "{}"]
    assert found[-2].choices[0].finish_reason == "tool_calls"
    assert found[-1].choices == []
    assert found[-1].usage is not None
    assert found[-1].usage.total_tokens == 7


def test_usage_is_kept_from_those_who_did_not_ask() -> None:
    encoder = oc.StreamEncoder(source="anthropic", usage_wanted=False)
    assert b'"usage"' not in b"".join(encoder.feed(CROSS))


def test_a_broken_stream_ends_with_openai_s_error_object() -> None:
    (chunk,) = oc.StreamEncoder().feed([Broke(f.Overloaded("busy"))])
    assert json.loads(chunk)["error"]["code"] == "overloaded"


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, {"code": "invalid-argument", "error": "Incorrect API key provided. …"}, f.KeyRejected),
        (403, {"code": "denied", "error": "Your team t has used all available credits"}, f.QuotaExhausted),
        (404, {"error": "model 'x' not found"}, f.ModelNotFound),
        (401, {"detail": "Invalid API Key"}, f.KeyRejected),
        (422, {"detail": [{"msg": "Extra inputs are not permitted"}]}, f.InvalidRequest),
        (429, {"object": "error", "message": "slow", "type": "rate_limited", "code": "1300"}, f.RateLimited),
        (429, {"object": "error", "message": "Service tier capacity exceeded for this model."}, f.Overloaded),
        (400, {"object": "error", "message": "bad", "type": "BadRequestError", "code": 400}, f.InvalidRequest),
        (400, [{"error": {"code": 400, "message": "bad", "status": "INVALID_ARGUMENT"}}], f.InvalidRequest),
        (429, [{"error": {"code": 429, "status": "RESOURCE_EXHAUSTED"}}], f.RateLimited),
        (413, {"error": {"code": "rate_limit_exceeded", "message": "big"}}, f.RequestOverLimit),
        (429, {"error": {"code": "rate_limit_exceeded", "message": "TPM: Limit 10, Requested 11."}}, f.RequestOverLimit),
        (429, {"error": {"code": "rate_limit_exceeded", "message": "TPM: Limit 10, Used 9, Requested 2."}}, f.RateLimited),
        (400, {"error": {"code": "content_filter", "innererror": {}}}, f.ContentFiltered),
        (403, {"error": {"code": 403, "message": "flagged", "metadata": {"reasons": ["violence"]}}}, f.ContentFiltered),
        (200, {"error": {"code": 429, "message": "slow"}}, f.RateLimited),
        (200, {"error": {"message": "no credit", "code": "insufficient_quota"}}, f.QuotaExhausted),
        (400, {"error": {"message": "the maximum context length is a topic", "code": None}}, f.InvalidRequest),
    ],
)  # fmt: skip
def test_odd_error_bodies_are_understood(status: int, body: object, kind: type[f.Failure]) -> None:
    assert isinstance(oc.classify(status, {}, json.dumps(body).encode(), now=0), kind)


def test_a_wait_is_found_in_headers_text_and_body() -> None:
    text = b'{"error":{"code":"rate_limit_exceeded","message":"Please try again in 1m2.5s."}}'
    assert f.retry_after_s(oc.classify(429, {}, text, now=0)) == 62.5
    assert f.retry_after_s(oc.classify(429, {"retry-after": "3"}, text, now=0)) == 3
    inner = {"headers": {"X-RateLimit-Reset": "1741305600000"}}
    body = json.dumps({"error": {"code": 429, "message": "x", "metadata": inner}}).encode()
    assert f.retry_after_s(oc.classify(429, {}, body, now=1741305590.0)) == 10


# ---------------------------------------------------------------- embeddings


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1], [2]], [[1], [2]]),
    ],
)
def test_inputs_of_embeddings_are_texts_or_tokens(given: object, wanted: object) -> None:
    body = json.dumps({"model": "m", "input": given, "encoding_format": "base64"}).encode()
    request = oc.decode_embeddings_request(body)
    assert request.inputs == wanted
    assert request.encoding == "base64"


@pytest.mark.parametrize("given", [None, [], {}, [None], 7])
def test_no_inputs_are_refused(given: object) -> None:
    with pytest.raises(BadRequest):
        oc.decode_embeddings_request(json.dumps({"model": "m", "input": given}).encode())


def test_embeddings_come_in_any_order_and_encoding_and_go_out_as_asked() -> None:
    packed = base64.b64encode(struct.pack("<2f", 0.5, -1.0)).decode()
    data = [{"index": 1, "embedding": packed}, {"index": 0, "embedding": [2.0, 3.0]}]
    answer = oc.decode_embeddings(json.dumps({"model": "m", "data": data}).encode())
    assert isinstance(answer, EmbeddingsAnswer)
    assert answer.vectors == [[2.0, 3.0], [0.5, -1.0]]
    body = oc.encode_embeddings_answer(answer, encoding="base64")
    assert json.loads(body)["data"][1]["embedding"] == packed
    usage = EmbeddingsAnswer("m", answer.vectors, Usage(1))
    shown = CreateEmbeddingResponse.model_validate_json(oc.encode_embeddings_answer(usage))
    assert [item.embedding for item in shown.data] == answer.vectors


def test_embeddings_for_azure_and_hosts_of_other_callers() -> None:
    request = Embeddings("gemini", "m", ["a"], task="query", extra={"title": Raw(b'"t"')})
    target = Target("d", {"provider": "azure", "azure_path": "deployments", "api_version": "1"})
    call = oc.encode_embeddings(request, target)
    assert call.path == "/openai/deployments/d/embeddings?api-version=1"
    assert json.loads(call.body) == {"input": ["a"]}
    assert set(call.dropped) == {"task", "title"}


# ---------------------------------------------------------------- hostile bytes

WORDS = st.sampled_from(
    [
        *(
            "id",
            "model",
            "messages",
            "role",
            "content",
            "choices",
            "delta",
            "message",
            "usage",
            "error",
        ),
        *("tool_calls", "function", "name", "arguments", "index", "finish_reason", "type", "text"),
        *(
            "reasoning",
            "reasoning_details",
            "reasoning_content",
            "thinking",
            "tools",
            "tool_choice",
        ),
        *(
            "image_url",
            "url",
            "code",
            "metadata",
            "headers",
            "data",
            "embedding",
            "input",
            "detail",
        ),
        *("function_call", "refusal", "logprobs", "created", "x_groq", "stop", "response_format"),
        *("thinking_blocks", "extra_content", "google", "thought_signature", "input_audio", "file"),
    ]
)
VALUES = st.sampled_from(
    [
        *("user", "assistant", "tool", "text", "function", "thinking", "image_url", "file", "stop"),
        *("data:image/png;base64,AA", "required", "json_schema", "allowed_tools", "reasoning.text"),
    ]
)
TREES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | VALUES
    | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=6),
    max_leaves=30,
)
BODIES = st.binary(max_size=200) | TREES.map(lambda tree: json.dumps(tree).encode())


def test_bytes_that_are_no_utf8_go_nowhere() -> None:
    bad = b'{"model":"m","odd":"\xff","choices":[{"message":{"odd":"\xff"}}],"messages":[]}'
    with pytest.raises(BadRequest):
        oc.decode_request(bad)
    assert isinstance(oc.decode_answer(bad), f.MalformedAnswer)
    assert isinstance(events(b"data: " + bad + b"\n\n")[-1], Broke)
    worse = b'{"choices":[{"finish_reason":"\xff"}]}'
    assert isinstance(openai.decode_answer(worse, api="chat"), f.MalformedAnswer)
    assert isinstance(openai.ChatStream(usage_wanted=True).feed(worse), f.MalformedAnswer)


@given(BODIES)
def test_any_body_is_an_answer_or_a_failure(body: bytes) -> None:
    answer = oc.decode_answer(body)
    if isinstance(answer, Answer):
        json.loads(oc.encode_answer(answer))
    vectors = oc.decode_embeddings(body)
    if isinstance(vectors, EmbeddingsAnswer):
        assert vectors.vectors


@given(st.integers(200, 599), st.dictionaries(st.text(max_size=9), st.text(max_size=9)), BODIES)
def test_any_error_is_classified(status: int, headers: dict[str, str], body: bytes) -> None:
    got = oc.classify(status, headers, body, now=1e9)
    assert len(got.message) <= 1000


@given(st.lists(BODIES, max_size=6), st.integers(1, 40))
def test_any_stream_is_read_to_its_end(bodies: list[bytes], size: int) -> None:
    body = b"".join(b"data: " + item.replace(b"\n", b" ") + b"\n\n" for item in bodies)
    decoder = oc.StreamDecoder()
    found = [e for at in range(0, len(body), size) for e in decoder.feed(body[at : at + size])]
    found += decoder.end()
    assert found == events(body)
    for chunk in oc.StreamEncoder().feed(found):
        json.loads(chunk)


@given(st.lists(TREES, max_size=4))
def test_any_delta_is_read(deltas: list[object]) -> None:
    chunks = [{"id": "x", "choices": [{"index": 0, "delta": d}]} for d in deltas]
    for chunk in oc.StreamEncoder().feed(events(sse(*chunks, "[DONE]"))):
        assert b"\n" not in chunk
        json.loads(chunk)


@given(
    st.lists(TREES, min_size=1, max_size=3) | st.just([]), st.dictionaries(WORDS, TREES, max_size=5)
)
def test_any_request_is_read_and_written_or_refused(turns: list[object], fields: Json) -> None:
    body = json.dumps({"model": "m", "messages": turns, **fields}).encode()
    try:
        request = oc.decode_request(body)
    except BadRequest:
        return
    for provider in ("", "openai", "mistral", "openrouter"):
        written(request, provider)


@given(BODIES)
def test_any_request_bytes_are_a_request_or_refused(body: bytes) -> None:
    for decode in (oc.decode_request, oc.decode_embeddings_request):
        with contextlib.suppress(BadRequest):
            decode(body)


GOOD_REQUEST: Json = {
    "model": "m",
    "messages": [
        {"role": "system", "content": [{"type": "text", "text": "a"}]},
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA", "detail": "low"}},
                {"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}},
                {"type": "file", "file": {"file_data": "x", "filename": "n"}},
            ],
        },
        {
            "role": "assistant",
            "content": "b",
            "reasoning_details": [{"type": "reasoning.text", "text": "t", "signature": "s"}],
            "tool_calls": [
                {
                    "id": "c",
                    "type": "function",
                    "function": {"name": "f", "arguments": "{}"},
                    "extra_content": {"google": {"thought_signature": "s"}},
                }
            ],
        },
        {"role": "assistant", "content": None, "thinking_blocks": [{"type": "thinking", "thinking": "t"}]},
        {"role": "tool", "tool_call_id": "c", "content": "d"},
    ],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}, "cache_control": {}}],
    "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [{"function": {"name": "f"}}]}},
    "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {}, "odd": 1}},
    "reasoning": {"effort": "low", "odd": 1},
    "thinking": {"type": "enabled", "odd": 1},
    "max_tokens": 1,
    "seed": 1,
    "temperature": 0.5,
    "stream": True,
    "stream_options": {"include_usage": True, "include_obfuscation": False},
    "stop": ["a"],
}  # fmt: skip
GOOD_ANSWER: Json = {
    "id": "x",
    "created": 1,
    "choices": [
        {
            "index": 0,
            "message": {
                **GOOD_REQUEST["messages"][2],
                "content": [{"type": "text", "text": "a"}, {"type": "odd"}],
                "refusal": "r",
                "reasoning": "t",
                "function_call": {"name": "f", "arguments": "{}"},
            },
            "finish_reason": "stop",
            "logprobs": {"content": []},
        }
    ],
    "usage": {"prompt_tokens": 1, "completion_tokens_details": {"reasoning_tokens": 1}},
}
GOOD_CHUNK: Json = {
    "id": "x",
    "created": 1,
    "choices": [
        {
            "index": 0,
            "delta": {
                "content": "a",
                "reasoning": "t",
                "reasoning_details": [{"type": "reasoning.text", "text": "t"}],
                "refusal": "r",
                "tool_calls": [
                    {
                        "index": 0,
                        "id": "c",
                        "function": {"name": "f", "arguments": "{}"},
                        "extra_content": {},
                    }
                ],
                "odd": {"a": 1},
            },
            "finish_reason": None,
            "logprobs": {"content": []},
            "content_filter_results": {"a": 1},
        }
    ],
    "usage": {"prompt_tokens": 1},
    "x_groq": {"usage": {"prompt_tokens": 1}},
}


def spoiled(good: Json) -> st.SearchStrategy[Json]:
    """A good body with some of its values replaced by others."""
    paths: list[list[str | int]] = []

    def walk(value: object, path: list[str | int]) -> None:
        pairs: list[tuple[str | int, object]] = []
        if isinstance(value, dict):
            pairs = [*value.items()]
        elif isinstance(value, list):
            pairs = [*enumerate(value)]
        for key, inner in pairs:
            paths.append([*path, key])
            walk(inner, paths[-1])

    walk(good, [])

    def spoil(changes: list[tuple[list[str | int], object]]) -> Json:
        made: Any = copy.deepcopy(good)
        for path, value in changes:
            at = made
            try:
                for key in path[:-1]:
                    at = at[key]
                at[path[-1]] = value
            except (TypeError, KeyError, IndexError):
                continue  # an earlier change took that place away
        found: Json = made
        return found

    return st.lists(st.tuples(st.sampled_from(paths), TREES), min_size=1, max_size=3).map(spoil)


@given(spoiled(GOOD_REQUEST))
def test_a_spoiled_request_is_read_and_written_or_refused(body: Json) -> None:
    try:
        request = oc.decode_request(json.dumps(body).encode())
    except BadRequest:
        return
    for provider in ("", *quirks.QUIRKS):
        written(request, provider)


@given(spoiled(GOOD_ANSWER))
def test_a_spoiled_answer_is_an_answer_or_a_failure(body: Json) -> None:
    answer = oc.decode_answer(json.dumps(body).encode())
    if isinstance(answer, Answer):
        json.loads(oc.encode_answer(answer))


@given(st.lists(spoiled(GOOD_CHUNK), min_size=1, max_size=4))
def test_a_spoiled_stream_is_read_to_its_end(chunks: list[Json]) -> None:
    found = events(sse(GOOD_CHUNK, *chunks, "[DONE]"))
    assert isinstance(found[-1], Done | Broke)
    for chunk in oc.StreamEncoder().feed(found):
        assert b"\n" not in chunk
        json.loads(chunk)
