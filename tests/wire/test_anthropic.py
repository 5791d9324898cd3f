"""Anthropic's Messages API: requests, answers and errors. Exchanges are made by hand."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from breakwater_gateway.worker.wire import anthropic, neutral
from breakwater_gateway.worker.wire.anthropic import models
from breakwater_gateway.worker.wire.anthropic.schema import closed
from breakwater_gateway.worker.wire.bad_request import BadRequest
from breakwater_gateway.worker.wire.neutral import (
    Answer,
    Audio,
    Candidate,
    Document,
    Image,
    Native,
    OutputFormat,
    Reasoning,
    Refusal,
    Request,
    Target,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
    Turn,
)
from breakwater_protocol import failures as f
from breakwater_protocol.chat import Usage

Json = dict[str, Any]

SONNET = Target(model="claude-sonnet-4-5")
OPUS = Target(model="claude-opus-5")
OLD = Target(model="claude-3-5-haiku-20241022")


def encode(value: object) -> bytes:
    return msgspec.json.encode(value)


def read(body: bytes) -> Json:
    found: Json = msgspec.json.decode(body)
    return found


def body(**changes: object) -> Json:
    """The least that the API takes, and `changes`."""
    return {
        "model": "claude-sonnet-4-5",
        "max_tokens": 64,
        "messages": [{"role": "user", "content": "Hello"}],
    } | changes


def user(*blocks: Json | str) -> Json:
    return {"role": "user", "content": [_block(block) for block in blocks]}


def assistant(*blocks: Json | str) -> Json:
    return {"role": "assistant", "content": [_block(block) for block in blocks]}


def _block(block: Json | str) -> Json:
    return {"type": "text", "text": block} if isinstance(block, str) else block


CALL = {"type": "tool_use", "id": "toolu_1", "name": "add", "input": {"a": 1, "b": [2]}}
RESULT = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "3"}
TOOL = {"name": "add", "description": "Adds.", "input_schema": {"type": "object"}}


# ---------------------------------------------------------------- our own callers


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"system": "Be brief."},
        {"system": [{"type": "text", "text": "Be", "cache_control": {"type": "ephemeral"}}]},
        {"system": [], "tools": [], "metadata": {}, "tool_choice": None},
        {"messages": [user("a", "b"), assistant("c"), user("d")]},
        {"messages": [user("a"), user("b")]},
        {"messages": [user("a"), assistant(CALL), user(RESULT)], "tools": [TOOL]},
        {"messages": [user("a"), assistant(CALL), user(RESULT, RESULT, "go on")]},
        {
            "messages": [
                user("a"),
                assistant(CALL),
                user(RESULT),
                {"role": "user", "content": "b"},
            ]
        },
        {"messages": [user("a"), assistant(CALL), user(RESULT | {"is_error": False})]},
        {"messages": [user("a"), assistant(CALL), user(RESULT | {"is_error": True})]},
        {"messages": [user("a"), assistant(CALL), user(RESULT | {"content": [_block("3")]})]},
        {"messages": [user({"type": "tool_result", "tool_use_id": "toolu_1"})]},
        {"messages": [user("a"), {"role": "system", "content": [_block("now")]}]},
        {"messages": [user("a") | {"name": "x"}]},
        {"messages": [user({"type": "text", "text": "a", "citations": None})]},
        {
            "messages": [
                user(
                    {
                        "type": "image",
                        "source": {"type": "base64", "media_type": "image/png", "data": "aGk="},
                    },
                    {"type": "image", "source": {"type": "url", "url": "https://x.test/a.png"}},
                    {"type": "image", "source": {"type": "file", "file_id": "file_1"}},
                    {"type": "image", "source": {"type": "new", "shape": [1]}},
                )
            ]
        },
        {
            "messages": [
                user(
                    {
                        "type": "document",
                        "title": "T",
                        "context": "C",
                        "citations": {"enabled": True},
                        "source": {"type": "text", "media_type": "text/plain", "data": "hi"},
                    },
                    {
                        "type": "document",
                        "source": {
                            "type": "base64",
                            "media_type": "application/pdf",
                            "data": "aGk=",
                        },
                    },
                    {"type": "document", "source": {"type": "content", "content": [_block("x")]}},
                )
            ]
        },
        {
            "messages": [
                user("a"),
                assistant(
                    {"type": "thinking", "thinking": "hm", "signature": "sig"},
                    {"type": "redacted_thinking", "data": "zzz"},
                    {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}},
                    "b",
                ),
            ]
        },
        {"tools": [TOOL | {"strict": True, "cache_control": {"type": "ephemeral"}}]},
        {"tools": [{"type": "web_search_20250305", "name": "web_search", "max_uses": None}]},
        {"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
        {"tool_choice": {"type": "any", "disable_parallel_tool_use": False}},
        {"tool_choice": {"type": "tool", "name": "add"}},
        {"tool_choice": {"type": "none"}},
        {"thinking": {"type": "enabled", "budget_tokens": 2048}},
        {"thinking": {"type": "enabled", "budget_tokens": 2048, "display": "summarized"}},
        {"thinking": {"type": "disabled"}},
        {"thinking": {"type": "adaptive"}},
        {"thinking": {"type": "adaptive", "display": "omitted"}},
        {"thinking": {"type": "between_tools"}},
        {"thinking": {"type": "adaptive"}, "output_config": {"effort": "high"}},
        {"output_config": {"effort": "high", "task_budget": {"total": 1}}},
        {"output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}}},
        {"output_format": {"type": "json_schema", "schema": {"type": "object"}}},
        {"metadata": {"user_id": "u-1", "other": 1}},
        {"stop_sequences": ["a", "b"], "temperature": 0.5, "top_p": 0.9, "top_k": 3},
        {"service_tier": "standard_only", "container": "c", "context_management": {"edits": []}},
        {"stream": True},
    ],
)
def test_a_native_body_comes_back_as_it_was(changes: Json) -> None:
    given = body(**changes)
    call = anthropic.encode_request(anthropic.decode_request(encode(given)), SONNET)
    assert read(call.body) == given
    assert call.path == "/messages"
    assert call.headers == (("anthropic-version", "2023-06-01"),)
    assert call.dropped == ()


def test_what_stands_in_the_fields_is_read() -> None:
    request = anthropic.decode_request(
        encode(
            body(
                system="Be brief.",
                messages=[user("a"), assistant(CALL), user(RESULT, "go on")],
                tools=[TOOL],
                tool_choice={"type": "any", "disable_parallel_tool_use": True},
                stop_sequences=["x"],
                metadata={"user_id": "u"},
                thinking={"type": "enabled", "budget_tokens": 2048},
                stream=True,
            )
        )
    )
    assert [turn.role for turn in request.turns] == ["system", "user", "assistant", "tool", "user"]
    assert request.turns[2].parts == [ToolCall("toolu_1", "add", '{"a":1,"b":[2]}')]
    result = request.turns[3].parts[0]
    assert isinstance(result, ToolResult)
    assert (result.call_id, result.content) == ("toolu_1", [Text(text="3")])
    assert request.tool_choice == ToolChoice("required")
    assert request.parallel_tools is False
    assert (request.stop, request.user, request.max_output) == (["x"], "u", 64)
    assert request.reasoning == Reasoning(budget=2048, show="auto")
    assert request.stream
    assert request.usage_wanted


def test_thinking_of_another_provider_is_not_echoed_to_claude() -> None:
    unsigned = {"type": "thinking", "thinking": "hm", "signature": ""}
    request = anthropic.decode_request(
        encode(body(messages=[user("a"), assistant(unsigned, "b"), user("c")]))
    )
    sent = read(anthropic.encode_request(request, SONNET).body)
    assert sent["messages"][1] == assistant("b")


@pytest.mark.parametrize(
    ("given", "param"),
    [
        (b"", None),
        (b"[]", None),
        (b'{"model"', None),
        (b'{"a":' + b"[" * 100_000, None),
        (b'{"model":"\xff"}', None),
        (encode(body(model=None)), "model"),
        (encode(body(max_tokens=None)), "max_tokens"),
        (encode(body(max_tokens="many")), "max_tokens"),
        (encode(body(max_tokens=-1)), "max_tokens"),
        (encode(body(messages=None)), "messages"),
        (encode(body(messages="hi")), "messages"),
        (encode(body(messages=["hi"])), "messages.0"),
        (encode(body(messages=[{"role": "robot", "content": "x"}])), "messages.0.role"),
        (encode(body(messages=[{"role": "user"}])), "messages.0"),
        (encode(body(messages=[user("a"), user({"type": "text"})])), "messages.1.content.0.text"),
        (encode(body(messages=[user({"text": "no type"})])), "messages.0.content.0.type"),
        (encode(body(messages=[user({"type": "image"})])), "messages.0.content.0.source"),
        (
            encode(body(messages=[user(RESULT | {"content": [{"type": "text"}]})])),
            "messages.0.content.0.content.0.text",
        ),
        (
            encode(body(messages=[user({"type": "tool_result"})])),
            "messages.0.content.0.tool_use_id",
        ),
        (encode(body(messages=[user(RESULT | {"is_error": 3})])), "messages.0.content.0.is_error"),
        (encode(body(tools=[{"name": "x"}])), "tools.0.input_schema"),
        (encode(body(tools=[3])), "tools.0"),
        (encode(body(tool_choice={"type": "maybe"})), "tool_choice.type"),
        (encode(body(tool_choice={"type": "tool"})), "tool_choice.name"),
        (encode(body(thinking={"type": "enabled"})), "thinking.budget_tokens"),
        (encode(body(output_config={"format": {"type": "xml"}})), "output_config.format.type"),
        (encode(body(stop_sequences="x")), "stop_sequences"),
        (encode(body(temperature="hot")), "temperature"),
    ],
)
def test_a_body_that_is_not_of_this_api_is_refused_by_name(given: bytes, param: str | None) -> None:
    with pytest.raises(BadRequest) as refused:
        anthropic.decode_request(given)
    assert refused.value.param == param
    assert refused.value.message


@given(st.binary())
def test_no_bytes_break_the_reader_of_requests(data: bytes) -> None:
    for given_body in (data, b'{"model":"m","max_tokens":1,"messages":[' + data + b"]}"):
        try:
            request = anthropic.decode_request(given_body)
        except BadRequest:
            continue
        read(anthropic.encode_request(request, SONNET).body)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.just("text") | st.just("enabled"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "text", "content", "source", "id", "name", "input", "schema"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(
    st.dictionaries(
        st.sampled_from(
            ["system", "messages", "tools", "tool_choice", "thinking", "output_config", "metadata"]
        ),
        JSON,
    ),
    JSON,
)
def test_a_request_of_any_shape_is_refused_or_translated(fields: Json, block: object) -> None:
    given_body = body() | fields
    given_body.setdefault("messages", []) if fields else None
    for candidate in (given_body, body(messages=[{"role": "user", "content": [block]}])):
        try:
            request = anthropic.decode_request(encode(candidate))
        except BadRequest:
            continue
        read(anthropic.encode_request(request, SONNET).body)
        other = msgspec.structs.replace(request, dialect="openai")
        read(anthropic.encode_request(other, SONNET).body)


# ---- hosts


def test_vertex_has_the_model_in_the_path_and_the_version_in_the_body() -> None:
    request = anthropic.decode_request(encode(body(stream=True)))
    target = Target(model="claude-3-7-sonnet@20250219", quirks={"host": "vertex"})
    call = anthropic.encode_request(request, target)
    assert call.path == "/publishers/anthropic/models/claude-3-7-sonnet@20250219:streamRawPredict"
    sent = read(call.body)
    assert "model" not in sent
    assert sent["anthropic_version"] == "vertex-2023-10-16"
    assert call.headers == ()

    again = anthropic.decode_request(call.body, path="https://x.test/v1/projects/p" + call.path)
    assert (again.model, again.stream) == ("claude-3-7-sonnet@20250219", True)
    direct = read(anthropic.encode_request(again, SONNET).body)
    assert direct == body(stream=True)


def test_bedrock_has_model_and_stream_in_the_path() -> None:
    request = anthropic.decode_request(encode(body(stream=True)))
    name = "us.anthropic.claude-haiku-4-5-20251001-v1:0"
    call = anthropic.encode_request(request, Target(model=name, quirks={"host": "bedrock"}))
    assert call.path == f"/model/{name.replace(':', '%3A')}/invoke-with-response-stream"
    sent = read(call.body)
    assert {"model", "stream"}.isdisjoint(sent)
    assert sent["anthropic_version"] == "bedrock-2023-05-31"
    again = anthropic.decode_request(call.body, path=call.path)
    assert (again.model, again.stream) == (name, True)


def test_counting_tokens_needs_no_limit_and_sends_none() -> None:
    given = body(system="x", stream=True, temperature=1)
    del given["max_tokens"]
    request = anthropic.decode_request(encode(given), path="/v1/messages/count_tokens?beta=true")
    call = anthropic.encode_count_tokens(request, SONNET)
    assert call.path == "/messages/count_tokens"
    assert read(call.body) == {k: given[k] for k in ("model", "messages", "system")}
    assert anthropic.decode_count_tokens(b'{"input_tokens":12}') == 12
    assert anthropic.encode_count_tokens_answer(12) == b'{"input_tokens":12}'
    assert isinstance(anthropic.decode_count_tokens(b"<html>"), f.MalformedAnswer)
    vertex = anthropic.encode_count_tokens(request, Target("m", quirks={"host": "vertex"}))
    assert vertex.path == "/publishers/anthropic/models/count-tokens:rawPredict"
    assert read(vertex.body)["model"] == "m"


# ---------------------------------------------------------------- callers of other dialects


def foreign(*turns: Turn, target: Target = SONNET, **changes: Any) -> tuple[Json, tuple[str, ...]]:  # noqa: ANN401 - any field of a request
    said = turns or (Turn("user", [Text(text="Hello")], plain=True),)
    request = Request(dialect="openai", model="gpt", turns=list(said), **changes)
    call = anthropic.encode_request(request, target)
    return read(call.body), call.dropped


def says(role: neutral.Role, *parts: neutral.Part | str) -> Turn:
    return Turn(role, [Text(text=part) if isinstance(part, str) else part for part in parts])


ASKS = ToolCall(id="call_1", name="add", arguments='{"a":1}')
TELLS = ToolResult(call_id="call_1", content=[Text(text="3")])


def asked(call_id: str = "call_1") -> Json:
    return {"type": "tool_use", "id": call_id, "name": "add", "input": {"a": 1}}


def told(call_id: str = "call_1", **more: object) -> Json:
    return {"type": "tool_result", "tool_use_id": call_id, "content": "3"} | more


@pytest.mark.parametrize(
    ("turns", "messages", "system"),
    [
        ([says("user", "a")], [user("a")], None),
        ([says("system", "s"), says("user", "a")], [user("a")], ["s"]),
        (
            [says("system", "s"), says("user", "a"), says("developer", "t"), says("user", "b")],
            [user("a", "b")],
            ["s", "t"],
        ),
        ([says("system", "s")], [user("s")], None),
        ([says("user", "")], [user(".")], None),
        (
            [says("assistant", "a "), says("user", "b")],
            [user("."), assistant("a "), user("b")],
            None,
        ),
        ([says("user", "a"), says("assistant", "b \n")], [user("a"), assistant("b")], None),
        ([says("user", "a", " "), says("user", "b")], [user("a", "b")], None),
        (
            [
                says("user", "a"),
                says("assistant", "b"),
                says("assistant", ASKS),
                says("tool", TELLS),
            ],
            [user("a"), assistant("b", asked()), user(told())],
            None,
        ),
        (
            [
                says("user", "a"),
                says("assistant", ASKS, ToolCall(id="call_2", name="add", arguments='{"a":1}')),
                says("tool", TELLS),
                says("tool", ToolResult(call_id="call_2", content=[Text(text="3")], is_error=True)),
                says("user", "go on"),
            ],
            [
                user("a"),
                assistant(asked(), asked("call_2")),
                user(told(), told("call_2", is_error=True), "go on"),
            ],
            None,
        ),
        (
            # results lead, wherever they come
            [says("user", "a"), says("assistant", ASKS), says("user", "b"), says("tool", TELLS)],
            [user("a"), assistant(asked()), user(told(), "b")],
            None,
        ),
        (
            [
                says("user", "a"),
                says("assistant", ToolCall(id="a.b/c", name="add", arguments='{"a":1}')),
                says("tool", ToolResult(call_id="a.b/c", content=[Text(text="3")])),
            ],
            [user("a"), assistant(asked("a_b_c")), user(told("a_b_c"))],
            None,
        ),
        (
            [says("user", "a"), says("assistant", Refusal(text="no"))],
            [user("a"), assistant("no")],
            None,
        ),
    ],
)
def test_turns_of_any_order_become_alternating_messages(
    turns: list[Turn], messages: list[Json], system: list[str] | None
) -> None:
    sent, dropped = foreign(*turns)
    assert sent["messages"] == messages
    assert [block["text"] for block in sent.get("system", [])] == (system or [])
    assert dropped == ()


def test_system_turns_stay_in_their_place_where_the_model_takes_them() -> None:
    turns = [says("system", "s"), says("user", "a"), says("system", "t"), says("assistant", "b")]
    sent, _ = foreign(*turns, says("user", "c"), target=Target("claude-opus-4-8"))
    assert [message["role"] for message in sent["messages"]] == [
        *("user", "system", "assistant", "user")
    ]
    assert sent["system"] == [_block("s")]


@pytest.mark.parametrize(
    ("arguments", "written"),
    [
        ("", {}),
        ("  ", {}),
        ('{"a":[1,2]}', {"a": [1, 2]}),
        ("[1]", {"INVALID_JSON": "[1]"}),
        ('{"a":', {"INVALID_JSON": '{"a":'}),
    ],
)
def test_arguments_are_always_an_object(arguments: str, written: Json) -> None:
    call = ToolCall(id="c", name="n", arguments=arguments)
    sent, _ = foreign(says("user", "a"), says("assistant", call))
    assert sent["messages"][1]["content"][0]["input"] == written


@pytest.mark.parametrize(
    ("part", "block", "dropped"),
    [
        (
            Image(url="data:image/png;base64,aGk="),
            {
                "type": "image",
                "source": {"type": "base64", "media_type": "image/png", "data": "aGk="},
            },
            (),
        ),
        (
            Image(url="https://x.test/a.png", detail="high"),
            {"type": "image", "source": {"type": "url", "url": "https://x.test/a.png"}},
            ("messages.image.detail",),
        ),
        (Image(file_id="file-1"), None, ("messages.image",)),
        (
            Document(media_type="application/pdf", data="aGk=", name="a.pdf"),
            {
                "type": "document",
                "source": {"type": "base64", "media_type": "application/pdf", "data": "aGk="},
                "title": "a.pdf",
            },
            (),
        ),
        (
            Document(media_type="text/csv", data="aGk="),
            {
                "type": "document",
                "source": {"type": "text", "media_type": "text/plain", "data": "hi"},
            },
            (),
        ),
        (Document(media_type="application/zip", data="aGk="), None, ("messages.document",)),
        (Audio(format="wav", data="aGk="), None, ("messages.audio",)),
        (Thinking(text="hm", signature="theirs"), None, ("messages.thinking",)),
        (Native(dialect="openai", raw=Raw(b"{}")), None, ("messages.native",)),
    ],
)
def test_media_are_written_or_reported(
    part: neutral.Part, block: Json | None, dropped: tuple[str, ...]
) -> None:
    sent, reported = foreign(says("user", "look", part))
    assert sent["messages"] == [user("look", *([block] if block else []))]
    assert reported == dropped


@pytest.mark.parametrize(
    ("changes", "written", "dropped"),
    [
        ({}, {"max_tokens": 4096}, ()),
        ({"max_output": 7, "stop": ["x", "\n"]}, {"stop_sequences": ["x"]}, ("stop",)),
        ({"temperature": 0.5, "top_p": 0.5}, {"temperature": 0.5}, ("top_p",)),
        ({"temperature": 1.7, "top_p": 1.0}, {"temperature": 1.0}, ("temperature",)),
        ({"user": "u", "service_tier": "default"}, {"service_tier": "standard_only"}, ()),
        ({"service_tier": "flex"}, {"max_tokens": 4096}, ("service_tier",)),
        (
            {
                "seed": 1,
                "n": 2,
                "frequency_penalty": 0.1,
                "presence_penalty": 0.0,
                "logprobs": True,
            },
            {},
            ("seed", "n", "frequency_penalty", "logprobs"),
        ),
        ({"extra": {"store": Raw(b"true"), "x": Raw(b"null")}}, {}, ("store",)),
        ({"format": OutputFormat("json")}, {}, ("response_format",)),
        ({"format": OutputFormat("text")}, {}, ()),
    ],
)
def test_wishes_are_written_or_reported(
    changes: Json, written: Json, dropped: tuple[str, ...]
) -> None:
    sent, reported = foreign(**changes)
    assert sent.items() >= written.items()
    assert reported == dropped


def test_newer_models_take_no_sampling_and_older_ones_all_of_it() -> None:
    wishes = {"temperature": 0.5, "top_p": 0.5, "top_k": 3}
    sent, dropped = foreign(target=OPUS, **wishes)
    assert wishes.keys().isdisjoint(sent)
    assert dropped == ("temperature", "top_p", "top_k")
    sent, dropped = foreign(target=OLD, **wishes)
    assert sent.items() >= wishes.items()
    assert dropped == ()


ADD = Tool(name="add", description="Adds.", schema=Raw(b'{"properties":{"a":{"minimum":1}}}'))


@pytest.mark.parametrize(
    ("choice", "parallel", "written"),
    [
        (None, None, None),
        (None, True, None),
        (None, False, {"type": "auto", "disable_parallel_tool_use": True}),
        (ToolChoice("auto"), None, {"type": "auto"}),
        (ToolChoice("none"), False, {"type": "none"}),
        (ToolChoice("required"), False, {"type": "any", "disable_parallel_tool_use": True}),
        (ToolChoice("named", ["add"]), None, {"type": "tool", "name": "add"}),
        (ToolChoice("named", ["add", "sub"]), None, {"type": "any"}),
    ],
)
def test_a_tool_choice_is_translated(
    choice: ToolChoice | None, parallel: bool | None, written: Json | None
) -> None:
    tools = [ADD, Tool(name="sub"), Tool(name="mul")]
    sent, _ = foreign(tools=tools, tool_choice=choice, parallel_tools=parallel)
    assert sent.get("tool_choice") == written
    only_two = choice is not None and len(choice.names) == 2
    assert [tool["name"] for tool in sent["tools"]] == ["add", "sub", "mul"][: 2 if only_two else 3]


def test_a_tool_schema_says_that_it_is_an_object() -> None:
    sent, _ = foreign(tools=[ADD, Tool(name="now")])
    assert sent["tools"] == [
        {
            "name": "add",
            "description": "Adds.",
            "input_schema": {"type": "object", "properties": {"a": {"minimum": 1}}},
        },
        {"name": "now", "input_schema": {"type": "object", "properties": {}}},
    ]


def test_a_strict_tool_is_strict_where_the_model_can() -> None:
    strict = msgspec.structs.replace(ADD, strict=True)
    sent, dropped = foreign(tools=[strict])
    schema = sent["tools"][0]["input_schema"]
    assert sent["tools"][0]["strict"] is True
    assert schema["additionalProperties"] is False
    assert schema["properties"]["a"] == {"description": "(minimum: 1)"}
    assert dropped == ("tools.parameters.minimum",)
    sent, dropped = foreign(tools=[strict], target=OLD)
    assert "strict" not in sent["tools"][0]
    assert dropped == ("tools.strict",)


def test_a_json_schema_becomes_the_output_format() -> None:
    form = OutputFormat("schema", schema=Raw(b'{"type":"object","properties":{}}'), name="x")
    sent, dropped = foreign(format=form)
    schema = {"type": "object", "properties": {}, "additionalProperties": False}
    assert sent["output_config"] == {"format": {"type": "json_schema", "schema": schema}}
    assert dropped == ()
    sent, dropped = foreign(format=form, target=OLD)
    assert "output_config" not in sent
    assert dropped == ("response_format",)


@pytest.mark.parametrize(
    ("target", "reasoning", "changes", "written", "dropped"),
    [
        (
            SONNET,
            Reasoning(effort="low"),
            {},
            {"thinking": {"type": "enabled", "budget_tokens": 2048}, "max_tokens": 6144},
            (),
        ),
        (
            SONNET,
            Reasoning(effort="high"),
            {"max_output": 4000},
            {"thinking": {"type": "enabled", "budget_tokens": 3000}, "max_tokens": 4000},
            (),
        ),
        (SONNET, Reasoning(effort="high"), {"max_output": 1000}, {}, ("reasoning",)),
        (SONNET, Reasoning(budget=5000, show="auto"), {}, {"max_tokens": 9096}, ()),
        (SONNET, Reasoning(effort="none"), {}, {"thinking": None, "max_tokens": 4096}, ()),
        (
            SONNET,
            Reasoning(effort="low"),
            {"tools": [ADD], "tool_choice": ToolChoice("required")},
            {"thinking": None},
            ("reasoning",),
        ),
        (
            SONNET,
            Reasoning(effort="low"),
            {"temperature": 0.3},
            {"temperature": None},
            ("temperature",),
        ),
        (
            OPUS,
            Reasoning(effort="xhigh", show="auto"),
            {"max_output": 100},
            {
                "thinking": {"type": "adaptive", "display": "summarized"},
                "output_config": {"effort": "xhigh"},
                "max_tokens": 100,
            },
            (),
        ),
        (OPUS, Reasoning(effort="minimal"), {}, {"output_config": {"effort": "low"}}, ()),
        (OPUS, Reasoning(budget=10_000), {}, {"output_config": {"effort": "high"}}, ()),
        (OPUS, Reasoning(off=True), {}, {"thinking": {"type": "disabled"}}, ()),
        (Target("claude-fable-5"), Reasoning(off=True), {}, {"thinking": None}, ("reasoning",)),
        (
            Target("claude-opus-4-6"),
            Reasoning(effort="xhigh"),
            {},
            {"thinking": {"type": "adaptive"}, "output_config": {"effort": "high"}},
            (),
        ),
        (
            Target("claude-opus-4-6"),
            Reasoning(budget=3000),
            {},
            {"thinking": {"type": "enabled", "budget_tokens": 3000}},
            (),
        ),
        (OLD, Reasoning(effort="low"), {}, {"thinking": None}, ("reasoning",)),
    ],
)
def test_reasoning_is_asked_for_as_the_model_takes_it(
    target: Target, reasoning: Reasoning, changes: Json, written: Json, dropped: tuple[str, ...]
) -> None:
    sent, reported = foreign(target=target, reasoning=reasoning, **changes)
    assert {name: sent.get(name) for name in written} == written
    assert reported == dropped


def test_a_turn_under_way_that_cannot_echo_its_thinking_goes_on_without() -> None:
    turns = [says("user", "a"), says("assistant", ASKS), says("tool", TELLS)]
    sent, dropped = foreign(*turns, reasoning=Reasoning(effort="low"))
    assert "thinking" not in sent
    assert dropped == ("reasoning",)
    sent, dropped = foreign(*turns, says("user", "b"), reasoning=Reasoning(effort="low"))
    assert sent["thinking"]["type"] == "enabled"
    sent, dropped = foreign(*turns, reasoning=Reasoning(effort="low"), target=OPUS)
    assert sent["thinking"]["type"] == "adaptive"


def test_marks_of_the_prompt_cache_are_kept() -> None:
    mark = Raw(b'{"type":"ephemeral"}')
    sent, dropped = foreign(
        Turn("system", [Text(text="s", extra={"cache_control": mark})]),
        Turn("user", [Text(text="a")], extra={"cache_control": mark}),
    )
    assert sent["system"][0]["cache_control"] == {"type": "ephemeral"}
    assert sent["messages"][0]["content"][0]["cache_control"] == {"type": "ephemeral"}
    assert dropped == ()


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("claude-opus-5", ("adaptive", "none")),
        ("claude-sonnet-4-6", ("both", "one")),
        ("anthropic.claude-opus-4-6-v1", ("both", "one")),
        ("claude-opus-4-5-20251101", ("budget", "one")),
        ("claude-opus-4-1@20250805", ("budget", "one")),
        ("claude-sonnet-4-20250514", ("budget", "all")),
        ("claude-sonnet-4-0", ("budget", "all")),
        ("us.anthropic.claude-3-7-sonnet-20250219-v1:0", ("budget", "all")),
        ("claude-3-5-haiku-latest", ("none", "all")),
        ("claude-3-opus-20240229", ("none", "all")),
        ("anthropic.claude-v2", ("none", "all")),
        ("claude-2.1", ("none", "all")),
        ("kimi-k2", ("budget", "all")),
    ],
)
def test_a_model_is_known_by_its_name(name: str, known: tuple[str, str]) -> None:
    model = models.model(Target(name))
    assert (model.thinking, model.sampling) == known


def test_quirks_overrule_the_name() -> None:
    quirks = {"thinking": "none", "sampling": "all", "structured": False, "max_output_default": 9}
    target = Target("claude-opus-5", quirks=quirks)
    sent, dropped = foreign(target=target, reasoning=Reasoning(effort="low"), top_k=1)
    assert (sent["max_tokens"], sent["top_k"]) == (9, 1)
    assert dropped == ("reasoning",)


def test_a_schema_is_closed_and_its_constraints_are_told() -> None:
    given = {
        "type": "object",
        "properties": {
            "n": {"type": "integer", "minimum": 1, "description": "A number."},
            "l": {"type": "array", "minItems": 2, "items": {"type": "object"}},
            "s": {"oneOf": [{"type": "string", "format": "regex"}, {"type": "null"}]},
        },
        "additionalProperties": {"type": "string"},
    }
    schema, loosened = closed(Raw(encode(given)))
    assert msgspec.json.decode(schema) == {
        "type": "object",
        "properties": {
            "n": {"type": "integer", "description": "A number.\n\n(minimum: 1)"},
            "l": {
                "type": "array",
                "items": {"type": "object", "additionalProperties": False},
                "description": "(minItems: 2)",
            },
            "s": {
                "anyOf": [{"type": "string", "description": '(format: "regex")'}, {"type": "null"}]
            },
        },
        "additionalProperties": False,
    }
    assert set(loosened) == {"additionalProperties", "minimum", "minItems", "oneOf", "format"}


@given(JSON)
def test_no_schema_breaks_the_closer(schema: object) -> None:
    closed(Raw(encode(schema)))


# ---------------------------------------------------------------- answers


def message(*content: Json | str, **changes: object) -> Json:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-sonnet-4-5",
        "content": [_block(block) for block in content],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 3, "output_tokens": 5},
    } | changes


@pytest.mark.parametrize(
    "given",
    [
        message("Hello"),
        message(),
        message({"type": "text", "text": "a", "citations": [{"type": "x"}]}),
        message(CALL | {"caller": {"type": "direct"}}, stop_reason="tool_use"),
        message({"type": "thinking", "thinking": "hm", "signature": "s"}, "a"),
        message({"type": "redacted_thinking", "data": "z"}, "a"),
        message({"type": "server_tool_use", "id": "s", "name": "w", "input": {"q": 1}}),
        message({"type": "text"}, 3),  # type: ignore[arg-type] # blocks that are none
        message("a", stop_reason="stop_sequence", stop_sequence="x"),
        message("a", stop_reason="pause_turn", container={"id": "c"}, stop_details=None),
        message("a", usage={"input_tokens": 1, "output_tokens": 2, "service_tier": "standard"}),
    ],
)
def test_a_native_answer_comes_back_as_it_was(given: Json) -> None:
    given["content"] = [block for block in given["content"] if block]
    answer = anthropic.decode_answer(encode(given))
    assert isinstance(answer, Answer)
    assert read(anthropic.encode_answer(answer, model="claude-sonnet-4-5")) == given


@pytest.mark.parametrize(
    ("native", "finish"),
    [
        *(("end_turn", "stop"), ("stop_sequence", "stop"), ("pause_turn", "stop")),
        *(("compaction", "stop"), ("max_tokens", "length"), ("tool_use", "tool_calls")),
        *(("model_context_window_exceeded", "length"), ("refusal", "content_filter")),
        ("something_new", "stop"),
    ],
)
def test_stop_reasons_have_neutral_names(native: str, finish: str) -> None:
    answer = anthropic.decode_answer(encode(message("a", stop_reason=native)))
    assert isinstance(answer, Answer)
    assert (answer.candidates[0].finish, answer.candidates[0].native) == (finish, native)


@pytest.mark.parametrize(
    ("raw", "used"),
    [
        ({"input_tokens": 3, "output_tokens": 5}, Usage(3, 5)),
        (
            {"input_tokens": 3, "cache_creation_input_tokens": 10, "cache_read_input_tokens": 100},
            Usage(113, 0, 100, 10),
        ),
        (
            {
                "input_tokens": 3,
                "output_tokens": 50,
                "output_tokens_details": {"thinking_tokens": 20},
            },
            Usage(3, 50, reasoning=20),
        ),
        ({"input_tokens": None, "output_tokens": -3}, Usage()),
        (
            {
                "input_tokens": 220,
                "output_tokens": 8,
                "iterations": [
                    {"type": "compaction", "input_tokens": 1000, "output_tokens": 100},
                    {"type": "message", "input_tokens": 220, "output_tokens": 8},
                    {"type": "advisor_message", "input_tokens": 7, "output_tokens": 7},
                ],
            },
            Usage(1220, 108),
        ),
        ([], Usage()),
    ],
)
def test_usage_counts_the_cache_in(raw: object, used: Usage) -> None:
    assert anthropic.usage(encode(raw)) == used


def test_an_answer_of_another_dialect_becomes_a_message() -> None:
    answer = Answer(
        dialect="openai",
        id="chatcmpl-1",
        model="gpt-4o",
        candidates=[
            Candidate(
                parts=[
                    Thinking(text="hm", signature="theirs"),
                    Text(text="a", extra={"annotations": Raw(b"[]")}),
                    Text(text=""),
                    ToolCall(id="call_1", name="add", arguments='{"a":1}'),
                    Image(data="aGk=", media_type="image/png"),
                    Native(dialect="openai", raw=Raw(b"{}")),
                ],
                finish="stop",
                native="stop",
            ),
            Candidate(parts=[Text(text="another")], finish="stop"),
        ],
        usage=Usage(100, 20, cache_read=40, cache_write=10, reasoning=5),
        extra={"system_fingerprint": Raw(b'"fp"')},
    )
    assert read(anthropic.encode_answer(answer, model="main-model")) == {
        "id": "msg_chatcmpl-1",
        "type": "message",
        "role": "assistant",
        "model": "main-model",
        "content": [
            {"type": "thinking", "thinking": "hm", "signature": ""},
            _block("a"),
            asked(),
        ],
        "stop_reason": "tool_use",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 50,
            "cache_creation_input_tokens": 10,
            "cache_read_input_tokens": 40,
            "output_tokens": 20,
            "output_tokens_details": {"thinking_tokens": 5},
        },
    }


@pytest.mark.parametrize(
    ("candidate", "reason"),
    [
        (Candidate([Text(text="a")], "stop"), ("end_turn", None)),
        (Candidate([Text(text="a")], "stop", stop_sequence="x"), ("stop_sequence", "x")),
        (Candidate([Text(text="a")], "length"), ("max_tokens", None)),
        (Candidate([Refusal(text="no")], "stop"), ("refusal", None)),
        (Candidate([], "content_filter"), ("refusal", None)),
        (Candidate([], "tool_calls"), ("tool_use", None)),
    ],
)
def test_finishes_have_this_apis_names(
    candidate: Candidate, reason: tuple[str, str | None]
) -> None:
    answer = Answer(dialect="gemini", candidates=[candidate])
    written = read(anthropic.encode_answer(answer, model="m"))
    assert (written["stop_reason"], written["stop_sequence"]) == reason


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        (b"", f.MalformedAnswer),
        (b"<html>502</html>", f.MalformedAnswer),
        (b'{"type":"message"', f.MalformedAnswer),
        (b'{"type":"message"}', f.MalformedAnswer),
        (b'{"type":"message","content":3}', f.MalformedAnswer),
        (b'{"type":"message","content":["\xff"]}', f.MalformedAnswer),
        (b'{"type":"error","error":{"type":"overloaded_error","message":"x"}}', f.Overloaded),
        (b'[{"error":{"code":429,"message":"x","status":"RESOURCE_EXHAUSTED"}}]', f.RateLimited),
    ],
)
def test_a_failure_hidden_in_a_200_is_found(given: bytes, kind: type[f.Failure]) -> None:
    assert isinstance(anthropic.decode_answer(given), kind)


@given(st.binary() | JSON.map(encode) | JSON.map(lambda block: encode(message(block))))  # type: ignore[arg-type]
def test_no_answer_breaks_the_reader(data: bytes) -> None:
    answer = anthropic.decode_answer(data)
    if isinstance(answer, Answer):
        read(anthropic.encode_answer(answer, model="m"))


# ---------------------------------------------------------------- errors


def error(kind: str, said: str = "x", **more: object) -> Json:
    fault = {"type": kind, "message": said} | more
    return {"type": "error", "error": fault, "request_id": "req_1"}


@pytest.mark.parametrize(
    ("status", "given", "kind"),
    [
        (400, error("invalid_request_error", "messages.0: wrong"), f.InvalidRequest),
        (
            400,
            error("invalid_request_error", "prompt is too long: 9 tokens > 8 maximum"),
            f.ContextLength,
        ),
        (
            400,
            error(
                "invalid_request_error",
                "input length and `max_tokens` exceed context limit: 9 + 9 > 8",
            ),
            f.ContextLength,
        ),
        (
            400,
            error("invalid_request_error", "Your credit balance is too low to access the API."),
            f.QuotaExhausted,
        ),
        (
            400,
            error("invalid_request_error", "Output blocked by content filtering policy"),
            f.ContentFiltered,
        ),
        (
            400,
            error("invalid_request_error", 'the text "prompt is too long: 9 tokens" is quoted'),
            f.InvalidRequest,
        ),
        (401, error("authentication_error"), f.KeyRejected),
        (402, error("billing_error"), f.QuotaExhausted),
        (403, error("permission_error"), f.KeyForbidden),
        (404, error("not_found_error", "model: claude-9"), f.ModelNotFound),
        (404, error("not_found_error", "File not found: file_1"), f.InvalidRequest),
        (404, error("not_found_error", details={"error_code": "file_expired"}), f.InvalidRequest),
        (409, error("conflict_error"), f.ServerError),
        (413, error("request_too_large"), f.PayloadTooLarge),
        (429, error("rate_limit_error"), f.RateLimited),
        (
            429,
            error("rate_limit_error", details={"error_code": "enforced_spend_limit_reached"}),
            f.QuotaExhausted,
        ),
        (
            429,
            error("rate_limit_error", details={"error_code": "something_new"}),
            f.RateLimited,
        ),
        (500, error("api_error"), f.ServerError),
        (504, error("timeout_error"), f.ServerError),
        (529, error("overloaded_error"), f.Overloaded),
        (200, error("overloaded_error"), f.Overloaded),
        (404, {"error": {"code": 404, "message": "x", "status": "NOT_FOUND"}}, f.ModelNotFound),
        (403, [{"error": {"code": 403, "status": "PERMISSION_DENIED"}}], f.KeyForbidden),
        (401, {"error": "no"}, f.KeyRejected),
        (502, None, f.ServerError),
        (418, 3, f.InvalidRequest),
    ],
)
def test_errors_are_classified(status: int, given: object, kind: type[f.Failure]) -> None:
    failure = anthropic.classify(status, {}, encode(given), now=0)
    assert type(failure) is kind
    assert failure.provider_status == status


def test_the_machine_code_is_kept_and_a_key_is_not_quoted() -> None:
    body = encode(error("rate_limit_error", details={"error_code": "ramp_limit_exceeded"}))
    assert anthropic.classify(429, {}, body, now=0).provider_code == "ramp_limit_exceeded"
    body = encode(error("authentication_error", "bad key sk-ant-secret"))
    assert "secret" not in anthropic.classify(401, {}, body, now=0).message


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({}, None),
        ({"retry-after": "12"}, 12.0),
        (
            {
                "anthropic-ratelimit-requests-remaining": "0",
                "anthropic-ratelimit-requests-reset": "2026-01-01T00:00:30Z",
                "anthropic-ratelimit-tokens-remaining": "5",
                "anthropic-ratelimit-tokens-reset": "2026-01-01T00:01:30Z",
            },
            30.0,
        ),
        ({"anthropic-ratelimit-requests-reset": "2026-01-01T00:00:30Z"}, None),
        (
            {
                "anthropic-ratelimit-requests-remaining": "0",
                "anthropic-ratelimit-requests-reset": "soon",
            },
            None,
        ),
    ],
)
def test_the_wait_is_read_from_the_headers(headers: dict[str, str], wait: float | None) -> None:
    now = 1_767_225_600.0  # 2026-01-01T00:00:00Z
    failure = anthropic.classify(429, headers, encode(error("rate_limit_error")), now=now)
    assert f.retry_after_s(failure) == wait
    # Successful answers carry retry-after too: nothing is read from it there.
    hidden = anthropic.classify(200, headers, encode(error("overloaded_error")), now=now)
    assert f.retry_after_s(hidden) is None


@given(st.integers(100, 599), st.dictionaries(st.text(), st.text()), st.binary() | JSON.map(encode))
def test_no_error_breaks_the_classifier(status: int, headers: dict[str, str], data: bytes) -> None:
    assert isinstance(anthropic.classify(status, headers, data, now=0), tuple(f.SPEC))


@pytest.mark.parametrize("kind", list(f.SPEC))
def test_every_failure_has_an_error_object(kind: type[f.Failure]) -> None:
    written = read(anthropic.encode_error(kind("what happened"), "req-1"))
    assert written["type"] == "error"
    assert written["request_id"] == "req-1"
    assert written["error"]["message"] == "what happened"
    assert written["error"]["details"] == {"error_code": f.SPEC[kind].code}
    # What we write we would read as the same class of failure.
    again = anthropic.classify(f.SPEC[kind].status, {}, encode(written), now=0)
    assert f.spec(again).status in {f.SPEC[kind].status, 502, 503}
    assert read(anthropic.encode_stream_error(kind()))["error"]["message"]
