"""OpenAI's dialect as functions: validation, content, streams, usage, embeddings."""

import base64
import struct
from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from breakwater_gateway.simulator.content import compose, is_reasoning
from breakwater_gateway.simulator.dialects import openai, openai_embeddings
from breakwater_gateway.simulator.dialects.dialect import Ask, Route
from breakwater_gateway.simulator.dialects.openai_errors import OpenAIError, wrong_key
from breakwater_gateway.simulator.dialects.openai_request import read_chat
from breakwater_gateway.simulator.schemas import fit, strictness
from breakwater_gateway.simulator.script import Script
from breakwater_gateway.simulator.turns import Choice, Embedding, Json, Sampling, Turn
from breakwater_gateway.simulator.words import lorem

HELLO = [{"role": "user", "content": "hello there"}]
SAMPLING = Sampling(chance=12345, created=1_700_000_000)


def turn(*, reasoning: bool = False, **fields: Json) -> Turn:
    return read_chat({"model": "m", "messages": HELLO, **fields}, reasoning=reasoning)


def completion(given: Turn, choices: list[Choice], script: Script, sampling: Sampling) -> bytes:
    return openai.OpenAI().answer(given, choices, script, sampling)


def read_embeddings(raw: dict[str, Json], script: Script) -> Embedding:
    route = Route("", "openai", "embeddings")
    return openai.OpenAI().read_embeddings(Ask(raw, raw["model"], route, {}, script))


def refused(*, reasoning: bool = False, **fields: Json) -> OpenAIError:
    with pytest.raises(OpenAIError) as caught:
        turn(reasoning=reasoning, **fields)
    return caught.value


def composed(given: Turn, script: Script | None = None, *, malformed: bool = False) -> list[Choice]:
    return compose(given, script or Script(), chance=12345, seed=0, malformed=malformed)


def chunks(given: Turn, script: Script | None = None) -> list[Any]:
    script = script or Script()
    found = []
    for event in openai.events(given, composed(given, script), script, SAMPLING):
        assert event.data.startswith(b"data: ")
        assert event.data.endswith(b"\n\n")
        text = event.data[6:-2]
        found.append(text.decode() if text == b"[DONE]" else msgspec.json.decode(text))
    return found


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"a":NaN}', b"[" * 200_000, b'{"a":' * 200_000],
)
def test_what_is_not_a_json_object_is_one_clear_error(body: bytes) -> None:
    with pytest.raises(OpenAIError, match="could not parse the JSON body") as caught:
        openai.OpenAI().decode(body)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"messages": None}, "messages", "missing_required_parameter"),
        ({"messages": []}, "messages", "empty_array"),
        ({"messages": "hi"}, "messages", "invalid_type"),
        ({"messages": ["hi"]}, "messages[0]", "invalid_type"),
        ({"messages": [{"content": "x"}]}, "messages[0].role", "missing_required_parameter"),
        ({"messages": [{"role": "me", "content": "x"}]}, "messages[0].role", "invalid_value"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", None),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "invalid_type"),
        (
            {"messages": [{"role": "user", "content": [{"text": "x"}]}]},
            "messages[0].content[0].type",
            "missing_required_parameter",
        ),
        (
            {"messages": [*HELLO, {"role": "tool", "tool_call_id": "x", "content": "y"}]},
            "messages.[1].role",
            None,
        ),
        ({"max_tokens": -5}, "max_tokens", "integer_below_min_value"),
        ({"max_tokens": 1.5}, "max_tokens", "invalid_type"),
        ({"max_tokens": True}, "max_tokens", "invalid_type"),
        ({"max_tokens": 5, "max_completion_tokens": 5}, None, "invalid_parameter_combination"),
        ({"n": 129}, "n", "integer_above_max_value"),
        ({"temperature": 2.1}, "temperature", "decimal_above_max_value"),
        ({"temperature": "hot"}, "temperature", "invalid_type"),
        ({"top_p": -0.1}, "top_p", "decimal_below_min_value"),
        ({"stream": "yes"}, "stream", "invalid_type"),
        ({"stream_options": {"include_usage": True}}, "stream_options", None),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "array_above_max_length"),
        ({"tools": []}, "tools", "empty_array"),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "missing_required_parameter"),
        (
            {"tools": [{"type": "function", "function": {"name": "a b"}}]},
            "tools[0].function.name",
            "invalid_value",
        ),
        ({"tool_choice": "required"}, "tool_choice", None),
        ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
        ({"response_format": {"type": "json_object"}}, "messages", None),
        (
            {"response_format": {"type": "json_schema"}},
            "response_format.json_schema",
            "missing_required_parameter",
        ),
    ],
)
def test_bad_parameters_are_named(
    fields: dict[str, Any], param: str | None, code: str | None
) -> None:
    error = refused(**fields)
    assert (error.status, error.type, error.param, error.code) == (
        400,
        "invalid_request_error",
        param,
        code,
    )


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"max_tokens": 5}, "unsupported_parameter"),
        ({"stop": "x"}, "unsupported_parameter"),
        ({"temperature": 0.2}, "unsupported_value"),
    ],
)
def test_reasoning_models_reject_what_the_real_ones_do(fields: dict[str, Any], code: str) -> None:
    assert refused(reasoning=True, **fields).code == code
    turn(**fields)
    turn(reasoning=True, max_completion_tokens=5, temperature=1)


@pytest.mark.parametrize(
    ("model", "reasons"),
    [
        ("o3-mini", True),
        ("gpt-5.2", True),
        ("openai/o4", True),
        ("gpt-5-chat-latest", False),
        ("gpt-4o", False),
    ],
)
def test_reasoning_models_are_known_by_name(model: str, reasons: bool) -> None:
    assert is_reasoning(model, Script()) is reasons
    assert is_reasoning(model, Script(reasoning=not reasons)) is not reasons


def test_a_tool_result_after_its_call_is_fine() -> None:
    calls = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    messages = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c", "content": "1"},
        {"role": "tool", "tool_call_id": "d", "content": "2"},
    ]
    assert turn(messages=messages).answered


def test_the_same_seed_and_request_give_the_same_answer_and_others_another() -> None:
    given = turn()
    script = Script(tokens=50)
    one = compose(given, script, chance=1, seed=0)
    assert one == compose(given, script, chance=1, seed=0)
    assert one != compose(given, script, chance=2, seed=0)
    assert one != compose(given, script, chance=1, seed=1)
    assert len(one[0].pieces) == 50
    assert len(lorem(10_000, chance=5, seed=0)) == 10_000


def test_choices_differ_from_one_another() -> None:
    one, two = composed(turn(n=2))
    assert one.pieces != two.pieces


def test_max_tokens_ends_an_answer_with_length() -> None:
    (choice,) = composed(turn(max_tokens=5))
    assert (len(choice.pieces), choice.finish) == (5, "length")


def test_stop_ends_an_answer_before_its_word() -> None:
    (choice,) = composed(turn(stop=["three"]), Script(text="one two three four"))
    assert ("".join(choice.pieces), choice.finish) == ("one two ", "stop")


@given(st.text())
def test_an_echo_is_what_was_said(text: str) -> None:
    given = turn(messages=[{"role": "user", "content": text}])
    (choice,) = composed(given, Script(mode="echo"))
    assert "".join(choice.pieces) == text


def test_a_completion_has_every_field_of_the_real_one() -> None:
    given = turn()
    body = msgspec.json.decode(completion(given, composed(given), Script(), SAMPLING))
    assert set(body) == {
        "id",
        "object",
        "created",
        "model",
        "choices",
        "usage",
        "service_tier",
        "system_fingerprint",
    }
    assert body["choices"][0]["message"]["refusal"] is None
    usage = body["usage"]
    assert usage["completion_tokens"] == 16
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_usage_can_be_scripted_or_missing() -> None:
    script = Script(prompt_tokens=100, completion_tokens=7, cached_tokens=500, reasoning_tokens=3)
    given = turn()
    usage = openai.usage_of(given, composed(given), script)
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (
        100,
        7,
        107,
    )
    assert usage["prompt_tokens_details"]["cached_tokens"] == 100
    assert usage["completion_tokens_details"]["reasoning_tokens"] == 3
    body = completion(given, composed(given), Script(usage="missing"), SAMPLING)
    assert "usage" not in msgspec.json.decode(body)


def test_a_stream_says_role_then_content_then_finish_then_done() -> None:
    found = chunks(turn(stream=True), Script(text="a b"))
    assert found[0]["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert [c["choices"][0]["delta"].get("content") for c in found[1:3]] == ["a", " b"]
    assert found[3]["choices"][0] == {
        "index": 0,
        "delta": {},
        "logprobs": None,
        "finish_reason": "stop",
    }
    assert found[4:] == ["[DONE]"]
    assert all("usage" not in c for c in found[:-1])


def test_usage_when_asked_for_is_null_until_a_last_chunk_without_choices() -> None:
    found = chunks(turn(stream=True, stream_options={"include_usage": True}))
    assert all(c["usage"] is None for c in found[:-2])
    assert found[-2]["choices"] == []
    assert found[-2]["usage"]["completion_tokens"] == 16


def test_the_stream_and_the_whole_answer_say_the_same() -> None:
    script = Script(tokens=37, chunk_tokens=5, obfuscation=True)
    given = turn(stream=True, n=3)
    texts = ["", "", ""]
    for chunk in chunks(given, script)[:-1]:
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts == ["".join(c.pieces) for c in composed(given, script)]


SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer", "minimum": 1, "maximum": 7},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": SCHEMA, "strict": True}},
    {"type": "function", "function": {"name": "other"}},
]


def tool_of(given: Turn, script: Script | None = None) -> str:
    (choice,) = composed(given, script)
    return choice.calls[0].name if choice.calls else ""


def test_tools_are_called_when_forced_or_scripted_and_only_then() -> None:
    named = {"type": "function", "function": {"name": "other"}}
    always = Script(tool_calls="always")
    assert tool_of(turn(tools=TOOLS)) == ""
    assert tool_of(turn(tools=TOOLS, tool_choice="required")) == "weather"
    assert tool_of(turn(tools=TOOLS, tool_choice=named)) == "other"
    assert tool_of(turn(tools=TOOLS), always) == "weather"
    assert tool_of(turn(tools=TOOLS, tool_choice="none"), always) == ""
    assert tool_of(turn(tools=TOOLS, tool_choice="required"), Script(tool_calls="never")) == ""


def test_several_tools_are_called_at_once_unless_the_caller_wants_one() -> None:
    script = Script(tool_calls="always", parallel_calls=3)
    (choice,) = composed(turn(tools=TOOLS), script)
    assert [call.name for call in choice.calls] == ["weather", "other", "weather"]
    assert len({openai.call_id(call) for call in choice.calls}) == 3
    (choice,) = composed(turn(tools=TOOLS, parallel_tool_calls=False), script)
    assert len(choice.calls) == 1


def test_a_tool_call_streams_its_name_once_and_its_arguments_in_fragments() -> None:
    found = chunks(turn(stream=True, tools=TOOLS, tool_choice="required"))
    first = found[0]["choices"][0]["delta"]["tool_calls"][0]
    assert first["function"] == {"name": "weather", "arguments": ""}
    assert first["id"].startswith("call_")
    arguments = ""
    for chunk in found[1:-2]:
        (call,) = chunk["choices"][0]["delta"]["tool_calls"]
        assert set(call) == {"index", "function"}
        arguments += call["function"]["arguments"]
    jsonschema.validate(msgspec.json.decode(arguments), SCHEMA)
    assert found[-2]["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("tools", [None, TOOLS])
def test_malformed_arguments_do_not_parse(tools: list[object] | None) -> None:
    given = turn(tools=tools) if tools else turn()
    (choice,) = composed(given, malformed=True)
    with pytest.raises(msgspec.DecodeError):
        msgspec.json.decode(choice.calls[0].arguments)


TREE = {
    "type": "object",
    "properties": {
        "value": {"type": ["string", "null"]},
        "children": {"type": "array", "items": {"$ref": "#"}},
        "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
    },
    "required": ["value", "children", "next"],
    "additionalProperties": False,
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
            "required": ["next"],
            "additionalProperties": False,
        }
    },
}


@given(
    st.sampled_from(
        [
            SCHEMA,
            TREE,
            {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
            {"type": "integer", "multipleOf": 7, "minimum": 10, "maximum": 15},
            {"type": "integer", "maximum": -3},
            {"type": "string", "minLength": 40, "maxLength": 41},
            {"type": "string", "maxLength": 3},
            {"type": "array", "items": {"enum": ["a", 1, None]}, "minItems": 3, "maxItems": 4},
            {"oneOf": [{"const": 5}, {"type": "boolean"}]},
            {
                "allOf": [
                    {"$ref": "#/$defs/a"},
                    {"properties": {"y": {"type": "integer"}}, "required": ["y"]},
                ],
                "$defs": {
                    "a": {
                        "type": "object",
                        "properties": {"x": {"type": "null"}},
                        "required": ["x"],
                    }
                },
            },
        ]
    ),
    st.integers(0, 2**64 - 1),
)
def test_structured_answers_fit_their_schema(schema: dict[str, object], chance: int) -> None:
    jsonschema.validate(fit(schema, chance=chance), schema)


BRANCHES: dict[str, object] = {
    "type": "object",
    "properties": {"left": {"$ref": "#"}, "right": {"$ref": "#"}},
    "required": ["left", "right"],
}


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"anyOf": [{"$ref": "#"}]},
        {"allOf": [{"$ref": "#"}]},
        {"type": []},
        {"type": {}},
        5,
        {"$ref": 5},
        BRANCHES,
        {"type": "array", "items": {"$ref": "#"}, "minItems": 10**9},
        {"type": "object", "properties": {"a": {}}, "required": 5},
        {"allOf": [{"properties": 5, "required": 5}]},
        {"type": "number", "multipleOf": 0, "minimum": 1e308, "maximum": -1e308},
        {"type": "string", "minLength": -5, "maxLength": -1},
    ],
)
def test_schemas_without_a_value_end_anyway(schema: object) -> None:
    fit(schema, chance=1)


def test_strict_schemas_must_close_their_objects_and_require_their_keys() -> None:
    loose = {"type": "object", "properties": {"a": {"type": "string"}}}
    missing = {**loose, "additionalProperties": False, "required": []}
    assert "additionalProperties" in strictness(loose)
    assert "Missing 'a'" in strictness(missing)
    assert strictness(SCHEMA) == strictness(TREE) == ""
    nested = {**SCHEMA, "properties": {"city": loose, "days": {"type": "integer"}}}
    assert "('properties', 'city')" in strictness(nested)
    tools = [{"type": "function", "function": {"name": "f", "strict": True, "parameters": loose}}]
    assert refused(tools=tools).code == "invalid_function_parameters"


def test_embeddings_come_as_floats_or_float32_little_endian() -> None:
    given = {"model": "text-embedding-3-small", "input": ["hello world", [1, 2, 3]]}
    bodies = []
    for encoding in ("float", "base64"):
        asked = read_embeddings({**given, "encoding_format": encoding}, Script())
        bodies.append(msgspec.json.decode(openai_embeddings.embeddings(asked, Script(), seed=0)))
    floats = bodies[0]["data"][0]["embedding"]
    packed = base64.b64decode(bodies[1]["data"][0]["embedding"])
    assert len(floats) == 1536
    assert list(struct.unpack("<1536f", packed)) == floats
    assert sum(x * x for x in floats) == pytest.approx(1, abs=1e-4)
    assert [item["index"] for item in bodies[0]["data"]] == [0, 1]
    assert bodies[0]["usage"] == {"prompt_tokens": 6, "total_tokens": 6}


def test_texts_that_share_words_are_near_each_other() -> None:
    texts = ["how do I reset my password", "how can I reset my password", "the weather in Paris"]
    asked = read_embeddings({"model": "m", "input": texts, "dimensions": 256}, Script())
    data = msgspec.json.decode(openai_embeddings.embeddings(asked, Script(), seed=0))["data"]
    one, two, three = (item["embedding"] for item in data)
    near = sum(a * b for a, b in zip(one, two, strict=True))
    far = sum(a * b for a, b in zip(one, three, strict=True))
    assert far < 0.4
    assert near > 0.7


@pytest.mark.parametrize(
    "fields",
    [
        {"input": None},
        {"input": ""},
        {"input": []},
        {"input": [""]},
        {"input": [[]]},
        {"input": 5},
        {"input": ["a"] * 2049},
        {"input": "a", "encoding_format": "hex"},
        {"input": "a", "dimensions": 99_999},
        {"input": "a", "dimensions": 0},
    ],
)
def test_bad_inputs_for_embeddings_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(OpenAIError) as caught:
        read_embeddings({"model": "m", **fields}, Script())
    assert caught.value.status == 400


def test_a_wrong_key_is_never_shown_whole() -> None:
    assert "sk-abcdefghijklmnop" not in wrong_key("sk-abcdefghijklmnop").message
    assert "short" not in wrong_key("short").message
