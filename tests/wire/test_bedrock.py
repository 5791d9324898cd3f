"""Bedrock's dialect on small exchanges of our own making."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw
from tests.wire.outbound import Json, cuts, events, hostile, keeps_the_contract, text_of

from breakwater_gateway.worker.wire import bedrock
from breakwater_gateway.worker.wire import neutral as n
from breakwater_gateway.worker.wire.bad_request import BadRequest
from breakwater_gateway.worker.wire.bedrock import eventstream as es
from breakwater_gateway.worker.wire.bedrock import invoke, models
from breakwater_protocol import failures as f
from breakwater_protocol.chat import Usage

CLAUDE = n.Target("anthropic.claude-sonnet-4-20250514-v1:0")


def say(text: str) -> n.Turn:
    return n.Turn(role="user", parts=[n.Text(text=text)], plain=True)


def asked(*turns: n.Turn, target: n.Target = CLAUDE, **more: Json) -> tuple[Json, tuple[str, ...]]:
    """The body of an OpenAI caller's request, and what was dropped."""
    request = n.Request(dialect="openai", model="m", turns=list(turns) or [say("Hi")], **more)
    call = bedrock.encode_request(request, target)
    return json.loads(call.body), call.dropped


# ---------------------------------------------------------------- requests


def test_the_path_holds_the_escaped_model_and_the_method() -> None:
    request = n.Request(dialect="openai", model="m", turns=[say("Hi")])
    target = n.Target("arn:aws:bedrock:eu-west-1:1:inference-profile/eu.anthropic.claude-v1:0")
    call = bedrock.encode_request(request, target)
    assert call.path == (
        "/model/arn%3Aaws%3Abedrock%3Aeu-west-1%3A1%3Ainference-profile%2Feu.anthropic.claude-v1%3A0"
        "/converse"
    )
    streamed = bedrock.encode_request(msgspec.structs.replace(request, stream=True), target)
    assert streamed.path.endswith("/converse-stream")
    assert dict(streamed.headers)["accept"] == "application/vnd.amazon.eventstream"
    again = bedrock.decode_request(call.body, path=streamed.path)
    assert (again.model, again.stream) == (target.model, True)


def test_a_conversation_with_tools_is_put_in_converse_s_order() -> None:
    body, dropped = asked(
        n.Turn(role="system", parts=[n.Text(text="Be brief.")], plain=True),
        say("Weather in Rome and Oslo?"),
        n.Turn(
            role="assistant",
            parts=[
                n.Text(text=" "),
                n.ToolCall(id="call_1", name="weather", arguments='{"city":"Rome"}'),
                n.ToolCall(id="call_2", name="weather", arguments="{broken"),
            ],
        ),
        n.Turn(role="tool", parts=[n.ToolResult(call_id="call_1", content=[n.Text(text="31")])]),
        n.Turn(role="tool", parts=[n.ToolResult(call_id="call_2", is_error=True)]),
        n.Turn(role="developer", parts=[n.Text(text="In words.")], plain=True),
        say("And?"),
        tools=[n.Tool(name="weather", description="", schema=Raw(b'{"type":"object"}'))],
        tool_choice=n.ToolChoice(mode="required"),
        max_output=10,
        stop=["END"],
    )
    assert not dropped
    assert body == {
        "system": [{"text": "Be brief."}, {"text": "In words."}],
        "messages": [
            {"role": "user", "content": [{"text": "Weather in Rome and Oslo?"}]},
            {
                "role": "assistant",
                "content": [
                    {
                        "toolUse": {
                            "toolUseId": "call_1",
                            "name": "weather",
                            "input": {"city": "Rome"},
                        }
                    },
                    {
                        "toolUse": {
                            "toolUseId": "call_2",
                            "name": "weather",
                            "input": {"INVALID_JSON": "{broken"},
                        }
                    },
                ],
            },
            {
                "role": "user",
                "content": [
                    {"toolResult": {"toolUseId": "call_1", "content": [{"text": "31"}]}},
                    {
                        "toolResult": {
                            "toolUseId": "call_2",
                            "content": [{"text": "(empty)"}],
                            "status": "error",
                        }
                    },
                    {"text": "And?"},
                ],
            },
        ],
        "inferenceConfig": {"maxTokens": 10, "stopSequences": ["END"]},
        "toolConfig": {
            "tools": [
                {"toolSpec": {"name": "weather", "inputSchema": {"json": {"type": "object"}}}}
            ],
            "toolChoice": {"any": {}},
        },
    }


def test_tools_that_were_called_are_declared_though_none_are_given() -> None:
    turns = (
        say("Go"),
        n.Turn(role="assistant", parts=[n.ToolCall(id="a", name="go")]),
        n.Turn(role="tool", parts=[n.ToolResult(call_id="a", content=[n.Text(text="done")])]),
    )
    empty = {"json": {"type": "object", "properties": {}}}
    body, dropped = asked(*turns)
    assert body["toolConfig"] == {"tools": [{"toolSpec": {"name": "go", "inputSchema": empty}}]}
    assert not dropped
    none = n.ToolChoice(mode="none")
    body, dropped = asked(*turns, tools=[n.Tool(name="other")], tool_choice=none)
    assert body["toolConfig"] == {"tools": [{"toolSpec": {"name": "go", "inputSchema": empty}}]}
    assert dropped == ("tool_choice",)


def test_no_tools_are_sent_where_none_may_be_called() -> None:
    body, dropped = asked(tools=[n.Tool(name="go")], tool_choice=n.ToolChoice(mode="none"))
    assert "toolConfig" not in body
    assert not dropped


def test_media_are_written_as_far_as_converse_takes_them() -> None:
    body, dropped = asked(
        n.Turn(
            role="user",
            parts=[
                n.Image(media_type="image/jpg", data="aaaa", detail="low"),
                n.Image(url="https://example.com/a.png"),
                n.Image(media_type="image/tiff", data="aaaa"),
                n.Document(media_type="application/pdf", data="bbbb", name="Q3: report_v2.pdf"),
                n.Document(media_type="application/pdf", data="cccc", name="Q3: report_v2.pdf"),
                n.Document(media_type="text/x-log", text="a line"),
                n.Video(media_type="video/mp4", url="s3://bucket/a.mp4"),
                n.Audio(format="wav", data="dddd"),
            ],
        )
    )
    assert body["messages"][0]["content"] == [
        {"image": {"format": "jpeg", "source": {"bytes": "aaaa"}}},
        {"document": {"format": "pdf", "name": "Q3- report-v2", "source": {"bytes": "bbbb"}}},
        {"document": {"format": "pdf", "name": "Q3- report-v2-2", "source": {"bytes": "cccc"}}},
        {"document": {"format": "txt", "name": "document", "source": {"text": "a line"}}},
        {"video": {"format": "mp4", "source": {"s3Location": {"uri": "s3://bucket/a.mp4"}}}},
        {"audio": {"format": "wav", "source": {"bytes": "dddd"}}},
        {"text": "."},
    ]
    assert dropped == ("messages.image.detail", "messages.image")


def test_what_converse_cannot_say_is_named() -> None:
    _, dropped = asked(
        seed=1,
        n=2,
        frequency_penalty=0.5,
        presence_penalty=0.0,
        logit_bias=Raw(b'{"1":2}'),
        logprobs=True,
        top_logprobs=3,
        user="u",
        parallel_tools=False,
        service_tier="scale",
        format=n.OutputFormat(kind="json"),
        temperature=1.5,
        extra={"store": Raw(b"true"), "metadata": Raw(b"null")},
    )
    assert set(dropped) == {
        *("seed", "n", "frequency_penalty", "logit_bias", "logprobs", "top_logprobs", "user"),
        *("parallel_tool_calls", "service_tier", "response_format", "temperature", "store"),
    }


def test_a_schema_travels_as_a_string() -> None:
    form = n.OutputFormat(
        kind="schema", schema=Raw(b'{"type": "object"}'), name="city", strict=True
    )
    body, dropped = asked(format=form)
    assert not dropped
    assert body["outputConfig"]["textFormat"] == {
        "type": "json_schema",
        "structure": {"jsonSchema": {"schema": '{"type": "object"}', "name": "city"}},
    }


@pytest.mark.parametrize(
    ("model", "wanted", "fields", "dropped"),
    [
        (
            "us.anthropic.claude-sonnet-4-5-20250929-v1:0",
            n.Reasoning(effort="low"),
            {"thinking": {"type": "enabled", "budget_tokens": 2048}},
            (),
        ),
        (
            "us.anthropic.claude-3-7-sonnet-20250219-v1:0",
            n.Reasoning(budget=10),
            {"thinking": {"type": "enabled", "budget_tokens": 1024}},
            (),
        ),
        (
            "us.anthropic.claude-sonnet-4-6",
            n.Reasoning(effort="high"),
            {"thinking": {"type": "adaptive"}, "output_config": {"effort": "high"}},
            (),
        ),
        ("us.anthropic.claude-sonnet-5", n.Reasoning(), {"thinking": {"type": "adaptive"}}, ()),
        ("anthropic.claude-3-haiku-20240307-v1:0", n.Reasoning(effort="low"), None, ("reasoning",)),
        (
            "us.amazon.nova-2-lite-v1:0",
            n.Reasoning(budget=5000),
            {"reasoningConfig": {"type": "enabled", "maxReasoningEffort": "medium"}},
            (),
        ),
        ("amazon.nova-lite-v1:0", n.Reasoning(effort="low"), None, ("reasoning",)),
        ("amazon.nova-lite-v1:0", n.Reasoning(off=True), None, ()),
        (
            "openai.gpt-oss-120b-1:0",
            n.Reasoning(effort="minimal"),
            {"reasoning_effort": "low"},
            (),
        ),
        ("qwen.qwen3-32b-v1:0", n.Reasoning(effort="high"), {"reasoning_config": "high"}, ()),
    ],
)
def test_each_family_is_asked_to_think_in_its_own_way(
    model: str, wanted: n.Reasoning, fields: Json, dropped: tuple[str, ...]
) -> None:
    body, lost = asked(target=n.Target(model), reasoning=wanted)
    assert body.get("additionalModelRequestFields") == fields
    assert lost == dropped


def test_what_claude_refuses_while_it_thinks_is_left_out() -> None:
    body, dropped = asked(
        reasoning=n.Reasoning(budget=50_000),
        max_output=4000,
        temperature=0.2,
        top_p=0.5,
        top_k=3,
        tools=[n.Tool(name="go")],
        tool_choice=n.ToolChoice(mode="required"),
    )
    assert body["inferenceConfig"] == {"maxTokens": 4000}
    assert body["additionalModelRequestFields"]["thinking"]["budget_tokens"] == 3999
    assert "toolChoice" not in body["toolConfig"]
    assert set(dropped) == {"temperature", "top_p", "top_k", "tool_choice"}


def test_an_application_profile_says_its_family_by_a_quirk() -> None:
    arn = "arn:aws:bedrock:us-east-1:1:application-inference-profile/abc"
    assert models.family(n.Target(arn)) == models.Family()
    target = n.Target(arn, {"family": "anthropic", "thinks": "adaptive"})
    body, _ = asked(target=target, reasoning=n.Reasoning(), top_k=None)
    assert body["additionalModelRequestFields"] == {"thinking": {"type": "adaptive"}}
    body, _ = asked(target=n.Target(arn, {"family": "nova"}), top_k=5)
    assert body["additionalModelRequestFields"] == {"inferenceConfig": {"topK": 5}}


def test_thinking_goes_back_to_claude_with_its_proof_only() -> None:
    turn = n.Turn(
        role="assistant",
        parts=[
            n.Thinking(text="hm", signature="sig"),
            n.Thinking(redacted="xx"),
            n.Thinking(text="unsigned"),
            n.Text(text="Yes."),
        ],
    )
    body, dropped = asked(say("?"), turn, say("!"))
    assert body["messages"][1]["content"] == [
        {"reasoningContent": {"reasoningText": {"text": "hm", "signature": "sig"}}},
        {"reasoningContent": {"redactedContent": "xx"}},
        {"text": "Yes."},
    ]
    assert dropped == ("messages.thinking",)


def test_ids_that_bedrock_refuses_are_replaced_alike_in_call_and_result() -> None:
    odd = "functions.go:0|" + "x" * 80
    body, _ = asked(
        n.Turn(role="assistant", parts=[n.ToolCall(id=odd, name="go")]),
        n.Turn(role="tool", parts=[n.ToolResult(call_id=odd)]),
    )
    called = body["messages"][0]["content"][0]["toolUse"]["toolUseId"]
    assert called == body["messages"][1]["content"][0]["toolResult"]["toolUseId"]
    assert len(called) <= 64


NATIVE = {
    "system": [{"text": "s"}, {"cachePoint": {"type": "default"}}],
    "messages": [
        {
            "role": "user",
            "content": [
                {"guardContent": {"text": {"text": "q", "qualifiers": ["query"]}}},
                {
                    "document": {
                        "format": "md",
                        "name": "d",
                        "source": {"text": "t"},
                        "citations": {"enabled": True},
                    }
                },
                {"image": {"format": "bmp", "source": {"bytes": "aa"}}},
            ],
        },
        {
            "role": "assistant",
            "content": [
                {"citationsContent": {"content": [{"text": "a"}], "citations": [{"title": "d"}]}},
                {"citationsContent": {"content": [{"text": "b"}, {"text": "c"}], "citations": []}},
                {
                    "toolUse": {
                        "toolUseId": "1",
                        "name": "x",
                        "input": {},
                        "type": "server_tool_use",
                    }
                },
                {"toolResult": {"toolUseId": "1", "content": [{"json": {}}], "type": "x_result"}},
                {"toolUse": {"toolUseId": "2", "name": "y", "input": {"k": [1, None]}}},
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "toolResult": {
                        "toolUseId": "2",
                        "content": [{"json": {"a": 1}}, {"searchResult": {"source": "s"}}],
                        "status": "error",
                    }
                }
            ],
        },
    ],
    "inferenceConfig": {"maxTokens": 5, "stopSequences": [], "new": 1},
    "toolConfig": {
        "tools": [
            {"systemTool": {"name": "nova_grounding"}},
            {
                "toolSpec": {
                    "name": "y",
                    "inputSchema": {"json": {"type": "object"}},
                    "strict": True,
                }
            },
            {"cachePoint": {"type": "default"}},
        ],
        "toolChoice": {"tool": {"name": "y"}},
    },
    "outputConfig": {
        "textFormat": {"type": "json_schema", "structure": {"jsonSchema": {"schema": "{"}}}
    },
    "serviceTier": {"type": "flex"},
    "additionalModelRequestFields": {"top_k": 3},
    "guardrailConfig": {"guardrailIdentifier": "g"},
}


def test_native_bodies_come_out_as_they_went_in() -> None:
    body = json.dumps(NATIVE).encode()
    request = bedrock.decode_request(body)
    call = bedrock.encode_request(request, CLAUDE)
    assert json.loads(call.body) == NATIVE
    assert not call.dropped
    texts = [p.text for t in request.turns for p in t.parts if isinstance(p, n.Text)]
    assert texts == ["s", "a", "bc"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"", None),
        (b"[]", None),
        (b'{"messages":3}', "messages"),
        (b'{"messages":[{"role":"user"}]}', "messages[0].content"),
        (b'{"messages":[{"role":"cat","content":[]}]}', "messages[0]"),
        (b'{"messages":[{"role":"user","content":[{}]}]}', "messages[0].content[0]"),
        (b'{"messages":[{"role":"user","content":[{"text":1}]}]}', "messages[0].content[0].text"),
        (b'{"inferenceConfig":{"maxTokens":"x"}}', "inferenceConfig.maxTokens"),
        (b'{"messages":[{"role":"user","content":' + b"[" * 100_000, None),
    ],
)
def test_bodies_of_another_shape_are_refused(body: bytes, param: str | None) -> None:
    with pytest.raises(BadRequest) as refused:
        bedrock.decode_request(body)
    assert refused.value.param == param


# ---------------------------------------------------------------- answers


def answer(content: list[Json], reason: str = "end_turn", **more: Json) -> bytes:
    message = {"role": "assistant", "content": content}
    return json.dumps({"output": {"message": message}, "stopReason": reason, **more}).encode()


def test_an_answer_is_read_with_all_that_it_says() -> None:
    usage = {
        "inputTokens": 10,
        "outputTokens": 5,
        "totalTokens": 45,
        "cacheReadInputTokens": 20,
        "cacheWriteInputTokens": 10,
    }
    found = bedrock.decode_answer(
        answer(
            [
                {"reasoningContent": {"reasoningText": {"text": "hm", "signature": "s"}}},
                {"text": "Yes"},
                {"toolUse": {"toolUseId": "t", "name": "go", "input": {"a": 1}}},
            ],
            "tool_use",
            usage=usage,
            metrics={"latencyMs": 3},
            serviceTier={"type": "flex"},
        )
    )
    assert isinstance(found, n.Answer)
    (candidate,) = found.candidates
    assert candidate.parts == [
        n.Thinking(text="hm", signature="s"),
        n.Text(text="Yes"),
        n.ToolCall(id="t", name="go", arguments='{"a": 1}'),
    ]
    assert (candidate.finish, candidate.native) == ("tool_calls", "tool_use")
    assert found.usage == Usage(input=40, output=5, cache_read=20, cache_write=10)
    assert found.service_tier == "flex"
    assert set(found.extra) == {"usage", "metrics"}


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("guardrail_intervened", "content_filter"),
        ("content_filtered", "content_filter"),
        ("something_new", "stop"),
    ],
)
def test_stop_reasons_have_their_neutral_words(reason: str, finish: str) -> None:
    found = bedrock.decode_answer(answer([{"text": "a"}], reason))
    assert isinstance(found, n.Answer)
    assert (found.candidates[0].finish, found.candidates[0].native) == (finish, reason)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (answer([], "malformed_tool_use"), f.MalformedToolCall),
        (answer([], "malformed_model_output"), f.MalformedAnswer),
        (b"", f.MalformedAnswer),
        (b"<html>", f.MalformedAnswer),
        (b'{"output":', f.MalformedAnswer),
        (b"{}", f.MalformedAnswer),
        (b'{"output":{"message":{"content":[{"text":7}]}}}', f.MalformedAnswer),
        (b'{"output":{"message":{"content":[{}]}}}', f.MalformedAnswer),
        (b'{"message":"no"}', f.ServerError),
        (b'{"__type":"com.amazon#ThrottlingException","message":"no"}', f.RateLimited),
        (
            b'{"Output":{"__type":"com.amazon.coral.service#UnknownOperationException"}}',
            f.ServerError,
        ),
    ],
)
def test_a_failure_in_a_200_is_typed(body: bytes, kind: type[f.Failure]) -> None:
    assert type(bedrock.decode_answer(body)) is kind


def test_a_total_that_holds_the_cache_shows_an_inclusive_count() -> None:
    raw = b'{"inputTokens":30,"outputTokens":5,"totalTokens":35,"cacheReadInputTokens":20}'
    assert bedrock.usage(raw) == Usage(input=30, output=5, cache_read=20)
    assert bedrock.usage(b"[]") == Usage()


# ---------------------------------------------------------------- streams


def frames(*said: tuple[str, Json]) -> bytes:
    return b"".join(es.encode_event(name, json.dumps(payload).encode()) for name, payload in said)


def delta(at: int, **what: Json) -> tuple[str, Json]:
    return "contentBlockDelta", {"contentBlockIndex": at, "delta": what, "p": "abcd"}


STREAM = frames(
    ("messageStart", {"role": "assistant", "p": "a"}),
    delta(0, reasoningContent={"text": "hm"}),
    delta(0, reasoningContent={"signature": "sig"}),
    ("contentBlockStop", {"contentBlockIndex": 0}),
    delta(1, text="Grüß "),
    delta(1, text="Gott"),
    ("contentBlockStop", {"contentBlockIndex": 1}),
    (
        "contentBlockStart",
        {"contentBlockIndex": 2, "start": {"toolUse": {"toolUseId": "t", "name": "go"}}},
    ),
    delta(2, toolUse={"input": ""}),
    delta(2, toolUse={"input": '{"a":'}),
    delta(2, toolUse={"input": "1}"}),
    ("contentBlockStop", {"contentBlockIndex": 2}),
    ("messageStop", {"stopReason": "tool_use"}),
    ("metadata", {"usage": {"inputTokens": 3, "outputTokens": 4, "totalTokens": 7}, "p": "a"}),
)


def test_a_stream_is_read_event_by_event() -> None:
    found = events(bedrock.StreamDecoder, STREAM)
    assert found == [
        n.Began(),
        n.PartBegan(0, n.Thinking()),
        n.Grew(0, text="hm"),
        n.Grew(0, signature="sig"),
        n.PartEnded(0),
        n.PartBegan(1, n.Text(text="")),
        n.Grew(1, text="Grüß "),
        n.Grew(1, text="Gott"),
        n.PartEnded(1),
        n.PartBegan(2, n.ToolCall(id="t", name="go", arguments="")),
        n.Grew(2, text='{"a":'),
        n.Grew(2, text="1}"),
        n.PartEnded(2),
        n.Finished("tool_calls", native="tool_use"),
        n.UsageKnown(
            Usage(input=3, output=4),
            extra={"usage": Raw(b'{"inputTokens": 3, "outputTokens": 4, "totalTokens": 7}')},
        ),
        n.Done(),
    ]
    for pieces in cuts(STREAM):
        assert events(bedrock.StreamDecoder, *pieces) == found


def test_blocks_that_only_bedrock_has_come_whole() -> None:
    call = {"toolUseId": "t", "name": "code", "type": "server_tool_use"}
    ran = {"toolUseId": "t", "type": "code_result", "status": "success"}
    found = events(
        bedrock.StreamDecoder,
        frames(
            ("contentBlockStart", {"contentBlockIndex": 0, "start": {"toolUse": call}}),
            delta(0, toolUse={"input": '{"x"'}),
            delta(0, toolUse={"input": ":1}"}),
            ("contentBlockStop", {"contentBlockIndex": 0}),
            ("contentBlockStart", {"contentBlockIndex": 1, "start": {"toolResult": ran}}),
            delta(1, toolResult=[{"json": {"out": 2}}]),
            ("contentBlockStop", {"contentBlockIndex": 1}),
            delta(2, reasoningContent={"redactedContent": "xx"}),
            delta(2, reasoningContent={"redactedContent": "yy"}),
            ("contentBlockStop", {"contentBlockIndex": 2}),
            delta(3, citation={"title": "d"}),
            delta(3, somethingNew={"a": 1}),
            ("messageStop", {"stopReason": "end_turn"}),
        ),
    )
    began = [event.part for event in found if isinstance(event, n.PartBegan)]
    natives = [json.loads(bytes(part.raw)) for part in began if isinstance(part, n.Native)]
    assert natives == [
        {"toolUse": call | {"input": {"x": 1}}},
        {"toolResult": ran | {"content": [{"json": {"out": 2}}]}},
        {"deltas": [{"somethingNew": {"a": 1}}]},
    ]
    assert began[2:4] == [n.Thinking(redacted="xx"), n.Thinking(redacted="yy")]
    assert keeps_the_contract(found)
    assert found[-1] == n.Done()


def test_a_malformed_call_breaks_the_stream_after_its_usage() -> None:
    body = frames(
        delta(0, text="a"),
        ("messageStop", {"stopReason": "malformed_tool_use"}),
        ("metadata", {"usage": {"inputTokens": 3, "outputTokens": 4}}),
    )
    found = events(bedrock.StreamDecoder, body)
    assert isinstance(found[-2], n.UsageKnown)
    assert isinstance(found[-1], n.Broke)
    assert isinstance(found[-1].failure, f.MalformedToolCall)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("throttlingException", f.RateLimited),
        ("modelStreamErrorException", f.ServerError),
        ("internalServerException", f.ServerError),
        ("serviceUnavailableException", f.Overloaded),
        ("validationException", f.InvalidRequest),
        ("somethingNewException", f.ServerError),
    ],
)
def test_an_exception_within_a_stream_is_typed(name: str, kind: type[f.Failure]) -> None:
    body = frames(delta(0, text="a")) + es.encode_exception(name, b'{"message":"no"}')
    found = events(bedrock.StreamDecoder, body + STREAM)
    assert found[-2] == n.PartEnded(0)
    assert isinstance(found[-1], n.Broke)
    assert type(found[-1].failure) is kind
    assert found[-1].failure.provider_code == name


@pytest.mark.parametrize(
    "body",
    [
        b"<!doctype html><html></html>",
        STREAM[:-1] + b"!",
        es.encode_event("contentBlockDelta", b'{"delta":'),
        es.encode_event("contentBlockDelta", b'{"delta":{"text":1}}'),
        es.encode_event("contentBlockStart", b'{"start":{"x":1}}'),
        es.encode_event("messageStop", b'{"stopReason":[]}'),
        es.encode_frame({":message-type": "error", ":error-code": "Boom"}, b""),
    ],
)
def test_a_stream_of_another_shape_breaks(body: bytes) -> None:
    found = events(bedrock.StreamDecoder, body)
    assert isinstance(found[-1], n.Broke)
    assert keeps_the_contract(found)
    for pieces in cuts(body):
        assert events(bedrock.StreamDecoder, *pieces) == found


@pytest.mark.parametrize("at", [0, 1, 400, 900, len(STREAM) - 1])
def test_a_cut_stream_has_no_done(at: int) -> None:
    found = events(bedrock.StreamDecoder, STREAM[:at])
    assert n.Done() not in found
    assert keeps_the_contract(found)


def test_a_stream_without_metadata_is_whole_when_the_message_stopped() -> None:
    body = frames(delta(0, text="a"), ("messageStop", {"stopReason": "end_turn"}))
    found = events(bedrock.StreamDecoder, body)
    assert text_of(found, n.Text) == "a"
    assert found[-1] == n.Done()


def test_invoke_s_chunks_are_unwrapped() -> None:
    # A ping, in base64.
    chunk = es.encode_event("chunk", b'{"bytes":"eyJ0eXBlIjoicGluZyJ9","p":"ab"}')
    reader = invoke.ChunkReader()
    assert reader.feed(chunk[:30]) == []
    assert reader.pending
    assert reader.feed(chunk[30:] + chunk) == [b'{"type":"ping"}'] * 2
    assert reader.failure is None
    assert reader.feed(es.encode_event("chunk", b'{"bytes":"!"}') + chunk) == []
    assert isinstance(reader.failure, f.MalformedAnswer)
    reader = invoke.ChunkReader()
    assert reader.feed(es.encode_exception("throttlingException", b"{}")) == []
    assert isinstance(reader.failure, f.RateLimited)


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("status", "name", "message", "kind"),
    [
        (
            400,
            "ValidationException:http://x",
            "The provided model identifier is invalid.",
            f.ModelNotFound,
        ),
        (
            400,
            "",
            "Invocation of model ID a.b with on-demand throughput isn't supported.",
            f.ModelNotFound,
        ),
        (400, "ValidationException", "Input is too long for requested model.", f.ContextLength),
        (
            400,
            "",
            "The model returned the following errors: prompt is too long: 9 > 8",
            f.ContextLength,
        ),
        (
            400,
            "",
            "The model returned the following errors: Input Tokens Exceeded: x",
            f.ContextLength,
        ),
        (400, "", "1 validation error: Input is too long for requested model", f.InvalidRequest),
        (400, "ServiceQuotaExceededException", "no", f.QuotaExhausted),
        (403, "AccessDeniedException", "no", f.KeyForbidden),
        (403, "ExpiredTokenException", "no", f.KeyRejected),
        (403, "", "The security token included in the request is expired", f.KeyRejected),
        (403, "", "User is not authorized", f.KeyForbidden),
        (404, "ResourceNotFoundException", "no", f.ModelNotFound),
        (408, "ModelTimeoutException", "no", f.ServerError),
        (413, "", "", f.RequestOverLimit),
        (424, "ModelErrorException", "no", f.ServerError),
        (
            429,
            "ThrottlingException",
            "Too many tokens, please wait before trying again.",
            f.RateLimited,
        ),
        (429, "ThrottlingException", "Too many tokens per day, please wait.", f.QuotaExhausted),
        (429, "ModelNotReadyException", "no", f.Overloaded),
        (500, "InternalServerException", "no", f.ServerError),
        (503, "ServiceUnavailableException", "no", f.Overloaded),
        (502, "", "", f.ServerError),
    ],
)
def test_errors_are_classified(status: int, name: str, message: str, kind: type[f.Failure]) -> None:
    headers = {"x-amzn-errortype": name} if name else {}
    body = json.dumps({"message": message}).encode()
    found = bedrock.classify(status, headers, body, now=0)
    assert type(found) is kind
    assert found.provider_status == status
    assert found.provider_code == name.partition(":")[0]


def test_no_key_is_shown_in_a_message() -> None:
    body = b'{"message":"Credential AKIAXYZ is not allowed"}'
    for name in ("AccessDeniedException", "UnrecognizedClientException"):
        assert "AKIA" not in bedrock.classify(403, {"x-amzn-errortype": name}, body, now=0).message


# ---------------------------------------------------------------- embeddings


@pytest.mark.parametrize(
    ("model", "body", "dropped"),
    [
        ("amazon.titan-embed-text-v2:0", {"inputText": "a", "dimensions": 256}, ("user",)),
        ("amazon.titan-embed-text-v1", {"inputText": "a"}, ("user", "dimensions")),
        (
            "cohere.embed-v4:0",
            {
                "texts": ["a"],
                "input_type": "search_document",
                "embedding_types": ["float"],
                "output_dimension": 256,
            },
            ("user",),
        ),
        (
            "amazon.nova-2-multimodal-embeddings-v1:0",
            {
                "taskType": "SINGLE_EMBEDDING",
                "singleEmbeddingParams": {
                    "embeddingPurpose": "GENERIC_INDEX",
                    "text": {"truncationMode": "NONE", "value": "a"},
                    "embeddingDimension": 256,
                },
            },
            ("user",),
        ),
    ],
)
def test_each_family_embeds_by_its_own_body(
    model: str, body: Json, dropped: tuple[str, ...]
) -> None:
    request = n.Embeddings(dialect="openai", model="m", inputs=["a"], dimensions=256, user="u")
    call = bedrock.encode_embeddings(request, n.Target(model))
    assert json.loads(call.body) == body
    assert call.dropped == dropped
    assert call.path.endswith("/invoke")


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        ("amazon.titan-embed-text-v2:0", ["a", "b"]),
        ("cohere.embed-v4:0", [[1, 2]]),
        ("unknown", ["a"]),
    ],
)
def test_what_a_model_cannot_embed_is_refused(model: str, inputs: list[str | list[int]]) -> None:
    with pytest.raises(BadRequest):
        bedrock.encode_embeddings(
            n.Embeddings(dialect="openai", model="m", inputs=inputs), n.Target(model)
        )


@pytest.mark.parametrize(
    ("body", "vectors"),
    [
        (b'{"embedding":[1,2.5],"inputTextTokenCount":3}', [[1, 2.5]]),
        (b'{"embeddings":[[1],[2]],"texts":["a","b"]}', [[1], [2]]),
        (b'{"embeddings":{"float":[[1],[2]]}}', [[1], [2]]),
        (b'{"embeddings":[{"embeddingType":"TEXT","embedding":[1]}]}', [[1]]),
    ],
)
def test_vectors_are_found_in_each_shape(body: bytes, vectors: list[list[float]]) -> None:
    found = bedrock.decode_embeddings(body)
    assert isinstance(found, n.EmbeddingsAnswer)
    assert found.vectors == vectors


@pytest.mark.parametrize(
    "body", [b"", b"{}", b'{"embeddings":3}', b'{"embedding":["a"]}', b"<html>"]
)
def test_an_answer_without_vectors_is_malformed(body: bytes) -> None:
    assert isinstance(bedrock.decode_embeddings(body), f.MalformedAnswer)


# ---------------------------------------------------------------- fuzz

WORDS = (
    *(
        "system",
        "messages",
        "role",
        "content",
        "text",
        "toolUse",
        "toolResult",
        "toolUseId",
        "name",
    ),
    *("input", "image", "document", "source", "bytes", "format", "s3Location", "uri", "json"),
    *("reasoningContent", "reasoningText", "redactedContent", "signature", "citationsContent"),
    *("inferenceConfig", "maxTokens", "temperature", "stopSequences", "toolConfig", "tools"),
    *("toolSpec", "inputSchema", "toolChoice", "auto", "tool", "outputConfig", "textFormat"),
    *("structure", "jsonSchema", "schema", "serviceTier", "type", "output", "message", "usage"),
    *("stopReason", "inputTokens", "totalTokens", "delta", "start", "contentBlockIndex", "status"),
    *("__type", "Output", "citation", "embedding", "embeddings"),
)
EVENTS = (
    *("messageStart", "contentBlockStart", "contentBlockDelta", "contentBlockStop"),
    *("messageStop", "metadata", "new"),
)


@given(hostile(*WORDS))
def test_no_json_breaks_the_decoders(body: bytes) -> None:
    try:
        request = bedrock.decode_request(body)
    except BadRequest:
        pass
    else:
        bedrock.encode_request(request, CLAUDE)
        bedrock.encode_request(msgspec.structs.replace(request, dialect="openai"), CLAUDE)
    bedrock.decode_answer(body)
    bedrock.decode_embeddings(body)
    bedrock.classify(400, {}, body, now=0)
    bedrock.usage(body)


@given(st.binary(max_size=200), st.integers(100, 599))
def test_no_bytes_break_the_decoders(body: bytes, status: int) -> None:
    bedrock.decode_answer(body)
    bedrock.decode_embeddings(body)
    bedrock.classify(status, {"x-amzn-errortype": body.decode("latin-1")}, body, now=0)
    assert keeps_the_contract(events(bedrock.StreamDecoder, body))


@given(st.lists(st.tuples(st.sampled_from(EVENTS), hostile(*WORDS)), max_size=8))
def test_no_events_break_the_stream_decoder(said: list[tuple[str, bytes]]) -> None:
    body = b"".join(es.encode_event(name, payload) for name, payload in said)
    assert keeps_the_contract(events(bedrock.StreamDecoder, body))


BLOCKS = st.lists(
    st.tuples(
        st.sampled_from(["text", "toolUse", "reasoningContent", "citation", "toolResult", "stop"]),
        st.integers(0, 2),
    ),
    max_size=12,
)


@given(BLOCKS)
def test_blocks_in_any_order_keep_the_contract(order: list[tuple[str, int]]) -> None:
    values: dict[str, Json] = {
        "text": "a",
        "toolUse": {"input": "{"},
        "reasoningContent": {"text": "b"},
        "citation": {},
        "toolResult": [],
    }
    said = [
        ("contentBlockStop", {"contentBlockIndex": at})
        if name == "stop"
        else delta(at, **{name: values[name]})
        for name, at in order
    ]
    found = events(
        bedrock.StreamDecoder, frames(*said, ("messageStop", {"stopReason": "end_turn"}))
    )
    assert keeps_the_contract(found)
    assert found[-1] == n.Done()
