"""Google's dialect: requests, answers, streams, embeddings and failures. Exchanges are made by hand."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from breakwater_gateway.worker.wire import gemini
from breakwater_gateway.worker.wire import neutral as n
from breakwater_gateway.worker.wire.bad_request import BadRequest
from breakwater_gateway.worker.wire.gemini.parts import SKIP_SIGNATURE, minted
from breakwater_gateway.worker.wire.gemini.schema import json_schema, openapi
from breakwater_protocol import failures as f
from breakwater_protocol.chat import Usage

Json = Any

PATH = "/v1beta/models/gemini-3-flash:generateContent"
FLASH = n.Target(model="gemini-2.5-flash")
PRO = n.Target(model="gemini-2.5-pro")
NEW = n.Target(model="gemini-3-pro-preview")
VERTEX = n.Target(model="gemini-3-flash", quirks={"vertex": True})


def encode(value: object) -> bytes:
    return msgspec.json.encode(value)


def read(data: bytes | Raw) -> Json:
    return msgspec.json.decode(data)


def decoded(body: Json, path: str = PATH) -> n.Request:
    return gemini.decode_request(encode(body), path=path)


def asked(text: str = "Hi", **changes: object) -> Json:
    return {"contents": [{"role": "user", "parts": [{"text": text}]}]} | changes


def foreign(**changes: object) -> n.Request:
    fields: Json = {"dialect": "openai", "model": "m", "turns": [user("Hi")]} | changes
    return n.Request(**fields)


def user(text: str) -> n.Turn:
    return n.Turn("user", [n.Text(text=text)], plain=True)


def written(request: n.Request, target: n.Target = NEW) -> Json:
    return read(gemini.encode_request(request, target).body)


def dropped(request: n.Request, target: n.Target = NEW) -> set[str]:
    return set(gemini.encode_request(request, target).dropped)


# ---------------------------------------------------------------- paths


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/v1beta/models/gemini-2.5-pro:generateContent", ("gemini-2.5-pro", "generateContent")),
        ("/v1/models/team%2Ffast:countTokens", ("team/fast", "countTokens")),
        ("/v1/models/ollama/llama3:8b:generateContent", ("ollama/llama3:8b", "generateContent")),
        (
            "/v1/projects/p/locations/l/publishers/google/models/g:streamGenerateContent?alt=sse",
            ("g", "streamGenerateContent"),
        ),
        ("/v1beta/tunedModels/mine:generateContent", ("mine", "generateContent")),
        ("/v1/models", None),
        ("/v1/models/:generateContent", None),
        ("/v1/models/m:deleteAll", None),
        ("/v1/m:generateContent", None),
    ],
)
def test_a_path_names_model_and_method(path: str, expected: tuple[str, str] | None) -> None:
    found = gemini.method(path)
    assert (found and (found.model, found.verb)) == expected


def test_a_stream_is_an_array_unless_events_are_asked_for() -> None:
    sse = gemini.method("/v1/models/m:streamGenerateContent?key=k&alt=sse")
    array = gemini.method("/v1/models/m:streamGenerateContent?key=k")
    assert sse is not None
    assert array is not None
    assert (sse.sse, array.sse) == (True, False)


# ---------------------------------------------------------------- callers' requests


def test_a_request_is_read_in_full() -> None:
    request = decoded(
        asked(
            systemInstruction={"role": "user", "parts": {"text": "Be brief."}},
            generationConfig={
                "maxOutputTokens": 10,
                "temperature": 0.5,
                "topP": 0.9,
                "topK": 40.0,
                "candidateCount": 2,
                "stopSequences": ["END"],
                "seed": 7,
                "presencePenalty": 0.1,
                "frequencyPenalty": 0.2,
                "responseLogprobs": True,
                "logprobs": 3,
                "responseMimeType": "application/json",
                "responseJsonSchema": {"type": "object"},
                "thinkingConfig": {"thinkingLevel": "HIGH", "includeThoughts": True},
                "speechConfig": {"voice": 1},
                "responseModalities": ["TEXT"],
            },
            toolConfig={"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["f"]}},
            safetySettings=[{"category": "C"}],
            serviceTier="flex",
        )
    )
    assert request == n.Request(
        dialect="gemini",
        model="gemini-3-flash",
        turns=[
            n.Turn(
                "system",
                [n.Text(text="Be brief.")],
                plain=True,
                layout={"role": Raw(b'"user"')},
            ),
            user("Hi"),
        ],
        tool_choice=n.ToolChoice("named", ["f"]),
        max_output=10,
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        stop=["END"],
        seed=7,
        n=2,
        frequency_penalty=0.2,
        presence_penalty=0.1,
        logprobs=True,
        top_logprobs=3,
        format=n.OutputFormat("schema", Raw(b'{"type":"object"}')),
        reasoning=n.Reasoning(effort="high", show="auto"),
        service_tier="flex",
        extra={
            "safetySettings": Raw(b'[{"category":"C"}]'),
            "generationConfig.speechConfig": Raw(b'{"voice":1}'),
        },
        layout={"generationConfig.responseModalities": Raw(b'["TEXT"]')},
    )


SNAKE = {
    "system_instruction": {"parts": [{"text": "s"}]},
    "contents": {
        "parts": [
            {"inline_data": {"mime_type": "image/png", "data": "_-8"}},
            {"file_data": {"mime_type": "application/pdf", "file_uri": "gs://b/f.pdf"}},
            {"text": "t", "thought": False, "thought_signature": "c2ln"},
        ]
    },
    "tools": {
        "function_declarations": {"name": "f", "parameters_json_schema": {"type": "object"}},
        "google_search": {},
    },
    "tool_config": {"function_calling_config": {"mode": "any"}},
    "generation_config": {
        "max_output_tokens": 5,
        "response_mime_type": "application/json",
        "response_schema": {"type": "STRING", "any_of": []},
        "thinking_config": {"thinking_budget": 0, "include_thoughts": False},
    },
    "cached_content": "cachedContents/1",
}


def test_both_spellings_and_single_values_are_taken_and_written_in_one() -> None:
    body = written(decoded(SNAKE))
    assert body == {
        "systemInstruction": {"parts": [{"text": "s"}]},
        "contents": [
            {
                "role": "user",
                "parts": [
                    {"inlineData": {"mimeType": "image/png", "data": "/+8="}},
                    {"fileData": {"mimeType": "application/pdf", "fileUri": "gs://b/f.pdf"}},
                    {"text": "t", "thoughtSignature": "c2ln"},
                ],
            }
        ],
        "tools": [
            {
                "functionDeclarations": [
                    {"name": "f", "parametersJsonSchema": {"type": "object"}},
                ]
            },
            {"googleSearch": {}},
        ],
        "toolConfig": {"functionCallingConfig": {"mode": "ANY"}},
        "generationConfig": {
            "maxOutputTokens": 5,
            "responseMimeType": "application/json",
            "responseSchema": {"type": "STRING", "any_of": []},
            "thinkingConfig": {"thinkingBudget": 0},
        },
        "cachedContent": "cachedContents/1",
    }


def test_parts_become_what_they_hold() -> None:
    parts: list[Json] = [
        {"inlineData": {"mimeType": "image/png", "data": "AAAA"}},
        {"inlineData": {"mimeType": "audio/mpeg", "data": "AAAA"}},
        {"inlineData": {"mimeType": "audio/L16;rate=24000", "data": "AAAA"}},
        {"fileData": {"fileUri": "https://youtu.be/x"}, "videoMetadata": {"fps": 1}},
        {"inlineData": {"mimeType": "application/pdf", "data": "AAAA", "displayName": "d"}},
        {"text": "hm", "thought": True, "thoughtSignature": "c2ln"},
        {"executableCode": {"code": "1"}},
    ]
    request = decoded({"contents": [{"role": "model", "parts": parts}]})
    assert request.turns[0].parts == [
        n.Image(media_type="image/png", data="AAAA"),
        n.Audio(format="mp3", data="AAAA"),
        n.Audio(format="audio/L16;rate=24000", data="AAAA"),
        n.Video(url="https://youtu.be/x", extra={"videoMetadata": Raw(b'{"fps":1}')}),
        n.Document(media_type="application/pdf", data="AAAA", name="d"),
        n.Thinking(text="hm", signature="c2ln"),
        n.Native(dialect="gemini", raw=Raw(b'{"executableCode":{"code":"1"}}')),
    ]
    assert written(request)["contents"][0]["parts"] == parts


def call(name: str, **fields: object) -> Json:
    return {"functionCall": {"name": name, "args": {}} | fields}


def response(name: str, **fields: object) -> Json:
    return {"functionResponse": {"name": name, "response": {"output": 1}} | fields}


def test_calls_without_ids_are_given_some_and_matched_by_name_and_order() -> None:
    body = {
        "contents": [
            {"role": "model", "parts": [call("f"), call("g"), call("f")]},
            {"role": "user", "parts": [response("g"), response("f"), response("f")]},
        ]
    }
    request = decoded(body)
    calls = [part.id for part in request.turns[0].parts if isinstance(part, n.ToolCall)]
    results = [part.call_id for part in request.turns[1].parts if isinstance(part, n.ToolResult)]
    assert request.turns[1].role == "tool"
    assert len(set(calls)) == 3
    assert all(minted(call_id) for call_id in calls)
    assert results == [calls[1], calls[0], calls[2]]
    assert written(request) == body, "ids that we made are not told to the model"


@pytest.mark.parametrize(
    ("calls", "responses", "expected"),
    [
        ([call("f", id="a"), call("f", id="b")], [response("f", id="b")], ["b"]),
        ([call("f", id="a")], [response("f")], ["a"]),
        ([call("f", id="a")], [response("f", id="z")], ["z"]),
    ],
)
def test_ids_that_came_are_kept(calls: Json, responses: Json, expected: list[str]) -> None:
    request = decoded(
        {"contents": [{"role": "model", "parts": calls}, {"role": "user", "parts": responses}]}
    )
    results = [part.call_id for part in request.turns[1].parts if isinstance(part, n.ToolResult)]
    assert results == expected


def test_an_id_on_the_response_alone_survives() -> None:
    body = {
        "contents": [
            {"role": "model", "parts": [call("f")]},
            {"role": "user", "parts": [response("f", id="mine")]},
        ]
    }
    request = decoded(body)
    made, result = request.turns[0].parts[0], request.turns[1].parts[0]
    assert isinstance(made, n.ToolCall)
    assert isinstance(result, n.ToolResult)
    assert result.call_id == made.id
    assert written(request) == body


def test_a_response_is_the_text_of_its_object_with_its_media() -> None:
    image = {"inlineData": {"mimeType": "image/png", "data": "AAAA"}}
    body = {
        "contents": [
            {"role": "model", "parts": [call("f", id="1"), call("g", id="2")]},
            {
                "role": "user",
                "parts": [
                    response("f", id="1", response={"error": "no"}, willContinue=False),
                    response("g", id="2", parts=[image]),
                ],
            },
        ]
    }
    request = decoded(body)
    first, second = request.turns[1].parts
    assert isinstance(first, n.ToolResult)
    assert isinstance(second, n.ToolResult)
    assert first.is_error
    assert first.content == [n.Text(text='{"error":"no"}')]
    assert second.content[1] == n.Image(media_type="image/png", data="AAAA")
    assert written(request) == body


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"", None),
        (b"[]", None),
        (b'{"contents":1}', "contents"),
        (b'{"contents":[1]}', "contents[0]"),
        (b'{"contents":[{"role":"robot","parts":[]}]}', "contents[0].role"),
        (b'{"contents":[{"parts":[{"text":1}]}]}', "contents[0].parts[0].text"),
        (
            b'{"contents":[{"parts":[{"functionCall":{"name":"f","args":[]}}]}]}',
            "contents[0].parts[0].functionCall.args",
        ),
        (b'{"generationConfig":{"temperature":"hot"}}', "generationConfig.temperature"),
        (b'{"generationConfig":{"topK":1.5}}', "generationConfig.topK"),
        (b'{"tools":[{"functionDeclarations":[{}]}]}', "tools[0].functionDeclarations[0].name"),
        (b'{"contents":' + b"[" * 100_000, None),
        (b'{"contents":[{"parts":[{"text":"\xff"}]}]}', None),
    ],
)
def test_a_body_of_another_shape_is_refused(body: bytes, param: str | None) -> None:
    with pytest.raises(BadRequest) as refused:
        gemini.decode_request(body, path=PATH)
    assert refused.value.param == param


def test_a_body_without_its_url_names_model_and_stream_itself() -> None:
    body = {"model": "team/fast", "stream": True, **asked()}
    request = gemini.decode_request(encode(body))
    assert (request.model, request.stream, request.extra) == ("team/fast", True, {})
    assert written(request) == asked()
    counted = gemini.decode_request(encode({"model": "m", "generateContentRequest": asked("x")}))
    assert (counted.model, counted.turns) == ("m", [user("x")])
    embedded = gemini.decode_embeddings_request(
        b'{"model":"e","requests":[{"content":{"parts":[{"text":"a"}]}}]}'
    )
    assert embedded == n.Embeddings("gemini", "e", ["a"])


def test_a_request_names_its_model_somewhere() -> None:
    assert gemini.decode_request(b'{"model":"models/m"}').model == "m"
    with pytest.raises(BadRequest):
        gemini.decode_request(b"{}")


# ---------------------------------------------------------------- requests of other dialects


def test_a_foreign_conversation_is_put_in_this_apis_order() -> None:
    request = foreign(
        turns=[
            n.Turn("system", [n.Text(text="Be brief.")], plain=True),
            user("Weather?"),
            n.Turn(
                "assistant",
                [
                    n.Thinking(text="hm", signature="theirs"),
                    n.Text(text=""),
                    n.ToolCall(id="c1", name="f", arguments='{"a": 1}', signature="c2ln"),
                    n.ToolCall(id="c2", name="g", arguments="not json"),
                ],
            ),
            n.Turn("tool", [n.ToolResult(call_id="c1", content=[n.Text(text="sun")])]),
            n.Turn(
                "tool", [n.ToolResult(call_id="c2", content=[n.Text(text="bad")], is_error=True)]
            ),
            user("So?"),
        ]
    )
    call_ = gemini.encode_request(request, NEW)
    assert read(call_.body) == {
        "systemInstruction": {"parts": [{"text": "Be brief."}]},
        "contents": [
            {"role": "user", "parts": [{"text": "Weather?"}]},
            {
                "role": "model",
                "parts": [
                    {
                        "functionCall": {"name": "f", "args": {"a": 1}, "id": "c1"},
                        "thoughtSignature": "c2ln",
                    },
                    {"functionCall": {"name": "g", "args": {"arguments": "not json"}, "id": "c2"}},
                ],
            },
            {
                "role": "user",
                "parts": [
                    {"functionResponse": {"name": "f", "response": {"output": "sun"}, "id": "c1"}},
                    {"functionResponse": {"name": "g", "response": {"error": "bad"}, "id": "c2"}},
                ],
            },
            {"role": "user", "parts": [{"text": "So?"}]},
        ],
    }
    assert call_.dropped == ("messages.content.thinking",)
    assert call_.path == "/models/gemini-3-pro-preview:generateContent"


def test_calls_of_another_model_are_signed_where_a_signature_is_wanted() -> None:
    request = foreign(turns=[n.Turn("assistant", [n.ToolCall(id="c", name="f")])])
    assert written(request, NEW)["contents"][0]["parts"][0]["thoughtSignature"] == SKIP_SIGNATURE
    assert "thoughtSignature" not in written(request, FLASH)["contents"][0]["parts"][0]


def test_a_conversation_of_system_turns_alone_is_said_by_the_user() -> None:
    body = written(foreign(turns=[n.Turn("system", [n.Text(text="Write a poem.")])]))
    assert body == {"contents": [{"role": "user", "parts": [{"text": "Write a poem."}]}]}


MEDIA: list[tuple[n.Part, Json]] = [
    (n.Image(data="iVBORw0K"), {"inlineData": {"mimeType": "image/png", "data": "iVBORw0K"}}),
    (
        n.Image(url="data:image/gif;base64,R0lG"),
        {"inlineData": {"mimeType": "image/gif", "data": "R0lG"}},
    ),
    (
        n.Image(url="https://x/y.jpg?z"),
        {"fileData": {"mimeType": "image/jpeg", "fileUri": "https://x/y.jpg?z"}},
    ),
    (
        n.Audio(format="wav", data="UklG"),
        {"inlineData": {"mimeType": "audio/wav", "data": "UklG"}},
    ),
    (n.Document(data="JVBE"), {"inlineData": {"mimeType": "application/pdf", "data": "JVBE"}}),
    (n.Document(text="plain"), {"text": "plain"}),
    (
        n.ToolResult(call_id="c", name="f", content=[n.Document(text="plain")]),
        {"functionResponse": {"name": "f", "response": {"output": "plain"}, "id": "c"}},
    ),
    (n.Refusal(text="no"), {"text": "no"}),
]


@pytest.mark.parametrize(("part", "expected"), MEDIA)
def test_foreign_media_are_written_inline_or_by_address(part: n.Part, expected: Json) -> None:
    body = written(foreign(turns=[n.Turn("user", [part])]))
    assert body["contents"][0]["parts"] == [expected]


def test_what_cannot_be_said_is_named() -> None:
    request = foreign(
        turns=[
            n.Turn(
                "user",
                [
                    n.Image(file_id="file-1"),
                    n.Native(dialect="openai", raw=Raw(b'{"type":"odd"}')),
                    n.Text(text="Hi", extra={"cache_control": Raw(b"{}")}),
                ],
                name="ann",
            )
        ],
        tools=[
            n.Tool("f", strict=True),
            n.NativeTool(dialect="openai", raw=Raw(b"{}")),
        ],
        parallel_tools=False,
        logit_bias=Raw(b'{"1":2}'),
        user="ann",
        service_tier="scale",
        stop=list("abcdef"),
        extra={"store": Raw(b"true")},
    )
    assert dropped(request) == {
        "messages.name",
        "messages.content.file_id",
        "messages.content.odd",
        "messages.content.cache_control",
        "tools",
        "tools.strict",
        "parallel_tool_calls",
        "logit_bias",
        "user",
        "service_tier",
        "stop",
        "store",
    }


SCHEMA = Raw(b'{"type":"object","properties":{"a":{"type":["string","null"]}},"required":["a"]}')


def test_schemas_stay_json_schema_unless_the_host_knows_the_subset_only() -> None:
    request = foreign(
        tools=[n.Tool("f", "d", SCHEMA), n.Tool("g", schema=Raw(b'{"type":"object"}'))],
        tool_choice=n.ToolChoice("named", ["f"]),
        format=n.OutputFormat("schema", SCHEMA),
    )
    body = written(request)
    assert body["tools"][0]["functionDeclarations"][0]["parametersJsonSchema"] == read(SCHEMA)
    assert body["generationConfig"]["responseJsonSchema"] == read(SCHEMA)
    assert body["toolConfig"]["functionCallingConfig"] == {
        "mode": "ANY",
        "allowedFunctionNames": ["f"],
    }
    subset = {
        "type": "OBJECT",
        "properties": {"a": {"type": "STRING", "nullable": True}},
        "required": ["a"],
    }
    body = written(request, n.Target(model="m", quirks={"openapi_schema": True}))
    assert body["tools"][0]["functionDeclarations"] == [
        {"name": "f", "description": "d", "parameters": subset},
        {"name": "g"},
    ]
    assert body["generationConfig"]["responseSchema"] == subset


def test_json_beside_functions_is_dropped_where_the_model_refuses_it() -> None:
    request = foreign(tools=[n.Tool("f")], format=n.OutputFormat("json"))
    assert dropped(request, FLASH) == {"response_format"}
    assert written(request, NEW)["generationConfig"] == {"responseMimeType": "application/json"}


@pytest.mark.parametrize(
    ("reasoning", "target", "expected"),
    [
        (n.Reasoning(effort="low"), FLASH, {"thinkingBudget": 1024}),
        (n.Reasoning(effort="none"), FLASH, {"thinkingBudget": 0}),
        (n.Reasoning(off=True), PRO, {"thinkingBudget": 128}),
        (
            n.Reasoning(budget=2000, show="auto"),
            PRO,
            {"thinkingBudget": 2000, "includeThoughts": True},
        ),
        (n.Reasoning(effort="high"), NEW, {"thinkingLevel": "HIGH"}),
        (n.Reasoning(effort="xhigh"), NEW, {"thinkingLevel": "HIGH"}),
        (n.Reasoning(effort="minimal"), NEW, {"thinkingLevel": "LOW"}),
        (n.Reasoning(off=True), n.Target(model="gemini-3-flash"), {"thinkingLevel": "MINIMAL"}),
        (n.Reasoning(budget=2000), NEW, {"thinkingBudget": 2000}),
        (n.Reasoning(effort="low"), n.Target(model="gemini-2.0-flash"), None),
        (n.Reasoning(effort="low"), n.Target(model="gemma-3-27b"), None),
    ],
)
def test_effort_is_said_in_the_models_own_words(
    reasoning: n.Reasoning, target: n.Target, expected: Json
) -> None:
    body = written(foreign(reasoning=reasoning), target)
    assert body.get("generationConfig", {}).get("thinkingConfig") == expected


def test_media_of_results_stand_where_the_model_reads_them() -> None:
    result = n.ToolResult(
        call_id="c",
        name="f",
        content=[n.Text(text="see"), n.Image(media_type="image/png", data="AAAA")],
    )
    request = foreign(turns=[n.Turn("tool", [result])])
    image = {"inlineData": {"mimeType": "image/png", "data": "AAAA"}}
    held = {"name": "f", "response": {"output": "see"}, "id": "c"}
    assert written(request, NEW)["contents"][0]["parts"] == [
        {"functionResponse": held | {"parts": [image]}}
    ]
    assert written(request, FLASH)["contents"][0]["parts"] == [{"functionResponse": held}, image]


def test_vertex_has_its_own_paths() -> None:
    call_ = gemini.encode_request(foreign(stream=True), VERTEX)
    assert call_.path == "/publishers/google/models/gemini-3-flash:streamGenerateContent?alt=sse"
    odd = gemini.encode_request(foreign(), n.Target(model="tunedModels/mine #1"))
    assert odd.path == "/tunedModels/mine%20%231:generateContent"


# ---------------------------------------------------------------- schemas


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "STRING", "nullable": True}, {"type": ["string", "null"]}),
        ({"type": 6, "properties": {"a": {"type": 1}}}, {"type": "object", "properties": {"a": {"type": "string"}}}),
        ({"type": "ARRAY", "items": {"type": "NUMBER"}, "minItems": "2"}, {"type": "array", "items": {"type": "number"}, "minItems": 2}),
        ({"any_of": [{"type": "INTEGER"}], "nullable": True}, {"anyOf": [{"type": "integer"}, {"type": "null"}]}),
        ({"type": "OBJECT", "property_ordering": ["a"], "example": 1}, {"type": "object", "examples": [1]}),
    ],
)  # fmt: skip
def test_the_subset_becomes_json_schema(schema: Json, expected: Json) -> None:
    assert read(json_schema(Raw(encode(schema)))) == expected


@pytest.mark.parametrize(
    ("schema", "expected", "lost"),
    [
        (
            {"$defs": {"P": {"type": "object", "properties": {"x": {"type": "integer"}}}}, "$ref": "#/$defs/P"},
            {"type": "OBJECT", "properties": {"x": {"type": "INTEGER"}}},
            (),
        ),
        ({"const": "a"}, {"type": "STRING", "enum": ["a"]}, ()),
        ({"type": "integer", "enum": [1, 2]}, {"type": "INTEGER"}, ("enum",)),
        ({"type": "string", "format": "uuid", "$schema": "x"}, {"type": "STRING"}, ("format",)),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, {"type": "STRING", "nullable": True}, ()),
        ({"oneOf": [{"type": "string"}, {"type": "number"}]}, {"anyOf": [{"type": "STRING"}, {"type": "NUMBER"}]}, ()),
        ({"type": ["string", "number"]}, {"anyOf": [{"type": "STRING"}, {"type": "NUMBER"}]}, ()),
        (
            {"required": ["a", "b"], "allOf": [{"type": "object", "properties": {"a": True}}]},
            {"type": "OBJECT", "properties": {"a": {}}, "required": ["a"]},
            (),
        ),
        ({"type": "integer", "exclusiveMinimum": 0}, {"type": "INTEGER", "minimum": 1}, ()),
        ({"type": "object", "additionalProperties": {"type": "string"}}, {"type": "OBJECT"}, ("additionalProperties",)),
        (
            {"$defs": {"T": {"type": "object", "properties": {"next": {"$ref": "#/$defs/T"}}}}, "$ref": "#/$defs/T"},
            {"type": "OBJECT", "properties": {"next": {"type": "OBJECT"}}},
            ("$ref",),
        ),
    ],
)  # fmt: skip
def test_json_schema_becomes_the_subset(
    schema: Json, expected: Json, lost: tuple[str, ...]
) -> None:
    found, named = openapi(Raw(encode(schema)))
    assert (read(found), named) == (expected, lost)


def test_references_that_unfold_without_end_are_left_to_the_provider() -> None:
    defs: Json = {
        f"d{at}": {"anyOf": [{"$ref": f"#/$defs/d{at + 1}"}, {"$ref": f"#/$defs/d{at + 1}"}]}
        for at in range(40)
    }
    schema = Raw(encode({"$defs": defs, "$ref": "#/$defs/d0"}))
    assert openapi(schema) == (schema, ())


# ---------------------------------------------------------------- answers


def answer(*parts: Json, **candidate: object) -> Json:
    content = {"role": "model", "parts": list(parts)}
    return {
        "candidates": [{"content": content, "finishReason": "STOP"} | candidate],
        "usageMetadata": {"promptTokenCount": 5, "candidatesTokenCount": 2, "totalTokenCount": 7},
        "modelVersion": "gemini-2.5-flash",
        "responseId": "r1",
    }


def answered(body: Json) -> n.Answer:
    found = gemini.decode_answer(encode(body))
    assert isinstance(found, n.Answer), found
    return found


def test_an_answer_is_read_and_written_again() -> None:
    body = answer(
        {"text": "hm", "thought": True},
        {"text": "Hi", "thoughtSignature": "c2ln"},
        {"functionCall": {"name": "f", "args": {"a": 1}}, "thoughtSignature": "c2ln"},
        groundingMetadata={"x": 1},
        avgLogprobs=-0.1,
        index=0,
    )
    found = answered(body | {"createTime": "2026-01-02T03:04:05.678Z"})
    candidate = found.candidates[0]
    made = candidate.parts[2]
    assert isinstance(made, n.ToolCall)
    assert (made.name, made.arguments, made.signature) == ("f", '{"a":1}', "c2ln")
    assert minted(made.id)
    assert (candidate.finish, candidate.native) == ("tool_calls", "STOP")
    assert (found.id, found.model, found.created) == ("r1", "gemini-2.5-flash", 1767323045)
    assert found.usage == Usage(input=5, output=2)
    again = read(gemini.encode_answer(found, model="gemini-2.5-flash"))
    assert again == body | {"createTime": "2026-01-02T03:04:05.678Z"}


def test_the_same_call_has_the_same_id_in_answer_and_stream() -> None:
    body = answer({"text": "x"}, {"functionCall": {"name": "f", "args": {}}})
    made = answered(body).candidates[0].parts[1]
    began = [event.part for event in streamed(sse(body)) if isinstance(event, n.PartBegan)]
    assert isinstance(made, n.ToolCall)
    assert began[1] == msgspec.structs.replace(made, arguments="")


@pytest.mark.parametrize(
    ("native", "finish"),
    [
        ("STOP", "stop"),
        ("MAX_TOKENS", "length"),
        ("SAFETY", "content_filter"),
        ("RECITATION", "content_filter"),
        ("OTHER", "error"),
        ("SOMETHING_NEW", "error"),
        (2, "length"),
        (3, "content_filter"),
    ],
)
def test_finish_reasons_by_name_and_number(native: object, finish: str) -> None:
    body = answer({"text": "Some"}, finishReason=native)
    found = answered(body)
    assert found.candidates[0].finish == finish
    assert read(gemini.encode_answer(found, model="gemini-2.5-flash")) == body


def failed(**fields: object) -> Json:
    return {"candidates": [fields]}


FAILURES: list[tuple[Json, type[f.Failure], str]] = [
    ({"promptFeedback": {"blockReason": "SAFETY"}}, f.ContentFiltered, "SAFETY"),
    ({"promptFeedback": {"blockReason": 5}}, f.ContentFiltered, "MODEL_ARMOR"),
    ({"candidates": []}, f.MalformedAnswer, ""),
    ({"promptFeedback": {}}, f.MalformedAnswer, ""),
    (failed(finishReason="SAFETY", content={}), f.ContentFiltered, "SAFETY"),
    (failed(finishReason="MODEL_ARMOR"), f.ContentFiltered, "MODEL_ARMOR"),
    (failed(finishReason="MALFORMED_FUNCTION_CALL"), f.MalformedToolCall, "MALFORMED_FUNCTION_CALL"),
    (failed(finishReason="UNEXPECTED_TOOL_CALL"), f.MalformedToolCall, "UNEXPECTED_TOOL_CALL"),
    (failed(finishReason="MALFORMED_RESPONSE"), f.MalformedAnswer, "MALFORMED_RESPONSE"),
    (failed(finishReason="MISSING_THOUGHT_SIGNATURE"), f.InvalidRequest, "MISSING_THOUGHT_SIGNATURE"),
    (failed(finishReason="OTHER"), f.ServerError, "OTHER"),
    ({"error": {"code": 503, "status": "UNAVAILABLE"}}, f.Overloaded, "UNAVAILABLE"),
    (failed(content={"parts": [{"functionCall": {"name": "f", "args": "x"}}]}), f.MalformedAnswer, ""),
]  # fmt: skip


@pytest.mark.parametrize(("body", "kind", "code"), FAILURES)
def test_an_answer_that_is_none_is_its_failure_whole_and_streamed(
    body: Json, kind: type[f.Failure], code: str
) -> None:
    failure = gemini.decode_answer(encode(body))
    assert type(failure) is kind
    assert isinstance(failure, kind)
    assert failure.provider_code == code
    if body in ({"candidates": []}, {"promptFeedback": {}}):
        return  # in a stream more may come
    broke = streamed(sse(body))[-1]
    assert isinstance(broke, n.Broke)
    assert type(broke.failure) is kind


def test_a_malformed_call_is_a_failure_even_after_text() -> None:
    body = answer({"text": "I will"}, finishReason="MALFORMED_FUNCTION_CALL")
    assert isinstance(gemini.decode_answer(encode(body)), f.MalformedToolCall)


def test_a_failure_does_not_quote_what_the_model_wrote() -> None:
    body = failed(finishReason="MALFORMED_FUNCTION_CALL", finishMessage="print(secret)")
    failure = gemini.decode_answer(encode(body))
    assert isinstance(failure, f.MalformedToolCall)
    assert "secret" not in failure.message


def test_one_filtered_candidate_does_not_spoil_the_others() -> None:
    body = answer({"text": "Hi"})
    body["candidates"].append({"finishReason": "SAFETY", "index": 1})
    assert [one.finish for one in answered(body).candidates] == ["stop", "content_filter"]


@pytest.mark.parametrize("body", [b"", b"<html>", b"{", b"[1]", b'{"candidates":3}', b"null"])
def test_what_is_no_answer_is_a_malformed_one(body: bytes) -> None:
    assert isinstance(gemini.decode_answer(body), f.MalformedAnswer)


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (
            {
                "promptTokenCount": 10,
                "cachedContentTokenCount": 4,
                "toolUsePromptTokenCount": 3,
                "candidatesTokenCount": 5,
                "thoughtsTokenCount": 7,
                "totalTokenCount": 25,
            },
            Usage(input=13, output=12, cache_read=4, reasoning=7),
        ),
        ({"trafficType": "ON_DEMAND"}, Usage()),
        ({"promptTokenCount": -1, "candidatesTokenCount": "2"}, Usage(output=2)),
        ([], Usage()),
    ],
)
def test_usage_is_counted_as_the_provider_counts(told: Json, expected: Usage) -> None:
    assert gemini.usage(encode(told)) == expected


def test_an_answer_of_another_provider_is_said_in_this_dialect() -> None:
    logprobs = {"content": [{"token": "a", "logprob": -0.5, "top_logprobs": []}]}
    found = n.Answer(
        dialect="anthropic",
        id="msg_1",
        candidates=[
            n.Candidate(
                parts=[
                    n.Thinking(text="hm", signature="sig_abc123"),
                    n.Thinking(redacted="xx"),
                    n.Text(text="Hi", extra={"citations": Raw(b"[]")}),
                    n.Native(dialect="anthropic", raw=Raw(b"{}")),
                    n.ToolCall(id="toolu_1", name="f", arguments=""),
                ],
                finish="tool_calls",
                native="tool_use",
                logprobs=Raw(encode(logprobs)),
            )
        ],
        usage=Usage(input=9, output=5, cache_read=2, reasoning=1),
        extra={"type": Raw(b'"message"')},
    )
    assert read(gemini.encode_answer(found, model="logical")) == {
        "candidates": [
            {
                "content": {
                    "role": "model",
                    "parts": [
                        {"text": "hm", "thought": True},
                        {"text": "Hi"},
                        {"functionCall": {"name": "f", "args": {}, "id": "toolu_1"}},
                    ],
                },
                "finishReason": "STOP",
                "index": 0,
                "logprobsResult": {"chosenCandidates": [{"token": "a", "logProbability": -0.5}]},
            }
        ],
        "usageMetadata": {
            "promptTokenCount": 9,
            "candidatesTokenCount": 4,
            "thoughtsTokenCount": 1,
            "cachedContentTokenCount": 2,
            "totalTokenCount": 14,
        },
        "modelVersion": "logical",
        "responseId": "msg_1",
    }


def test_log_probabilities_take_openais_shape() -> None:
    result = {
        "chosenCandidates": [{"token": "é", "tokenId": 3, "logProbability": -0.25}],
        "topCandidates": [{"candidates": [{"token": "é", "logProbability": -0.25}]}],
    }
    found = answered(answer({"text": "é"}, logprobsResult=result)).candidates[0]
    assert found.logprobs is not None
    top = {"token": "é", "logprob": -0.25, "bytes": [195, 169]}
    assert read(found.logprobs) == {"content": [top | {"top_logprobs": [top]}]}
    assert read(found.extra["logprobsResult"]) == result


# ---------------------------------------------------------------- streams


def sse(*chunks: Json) -> bytes:
    return b"".join(b"data: " + encode(chunk) + b"\r\n\r\n" for chunk in chunks)


def array(*chunks: Json) -> bytes:
    return b"[" + b"\n,\r\n".join(msgspec.json.format(encode(c)) for c in chunks) + b"\n]\n"


def streamed(*pieces: bytes) -> list[n.StreamEvent]:
    decoder = gemini.StreamDecoder()
    events = [event for piece in pieces for event in decoder.feed(piece)]
    events += decoder.end()
    assert decoder.feed(b"more") == []
    assert decoder.end() == []
    return events


def chunk(*parts: Json, **candidate: object) -> Json:
    return {
        "candidates": [{"content": {"role": "model", "parts": list(parts)}} | candidate],
        "responseId": "r1",
        "modelVersion": "g",
    }


USED = {"promptTokenCount": 5, "candidatesTokenCount": 2, "totalTokenCount": 7}
STREAM: list[Json] = [
    chunk({"text": 'hm {"[\\', "thought": True}),
    chunk({"text": "", "thought": True, "thoughtSignature": "c2ln"}),
    chunk({"text": "It "}) | {"usageMetadata": USED | {"candidatesTokenCount": 1}},
    chunk({"text": "is é"}, {"functionCall": {"name": "f", "args": {"a": "}"}, "id": "c1"}}),
    chunk({"executableCode": {"code": "1"}}),
    chunk({"text": "", "thoughtSignature": "c2ln"}, finishReason="STOP", finishMessage="ok")
    | {"usageMetadata": USED},
]
EVENTS: list[n.StreamEvent] = [
    n.Began(id="r1", model="g"),
    n.PartBegan(0, n.Thinking()),
    n.Grew(0, 'hm {"[\\'),
    n.Grew(0, signature="c2ln"),
    n.PartEnded(0),
    n.PartBegan(1, n.Text(text="")),
    n.Grew(1, "It "),
    n.UsageKnown(Usage(input=5, output=1)),
    n.Grew(1, "is é"),
    n.PartEnded(1),
    n.PartBegan(2, n.ToolCall(id="c1", name="f", arguments="")),
    n.Grew(2, '{"a":"}"}'),
    n.PartEnded(2),
    n.PartBegan(3, n.Native(dialect="gemini", raw=Raw(b'{"executableCode":{"code":"1"}}'))),
    n.PartEnded(3),
    n.PartBegan(4, n.Native(dialect="gemini", raw=Raw(b'{"text":"","thoughtSignature":"c2ln"}'))),
    n.PartEnded(4),
    n.UsageKnown(Usage(input=5, output=2)),
    n.Finished(
        "tool_calls",
        "STOP",
        extra={"finishMessage": Raw(b'"ok"'), "usageMetadata": Raw(encode(USED))},
    ),
    n.Done(),
]


@pytest.mark.parametrize(
    "body", [sse(*STREAM), b"\xef\xbb\xbf" + sse(*STREAM), b"\n " + sse(*STREAM)]
)
def test_a_stream_of_events_is_read_wherever_it_is_cut(body: bytes) -> None:
    assert streamed(body) == EVENTS
    for at in range(len(body)):
        assert streamed(body[:at], body[at:]) == EVENTS, at
    assert streamed(*[body[at : at + 1] for at in range(len(body))]) == EVENTS


def test_an_array_is_read_wherever_it_is_cut() -> None:
    body = b"[" + b",".join(encode(one) for one in STREAM) + b"]"
    assert streamed(body) == EVENTS
    for at in range(len(body)):
        assert streamed(body[:at], body[at:]) == EVENTS, at
    assert streamed(*[body[at : at + 1] for at in range(len(body))]) == EVENTS
    kinds = [type(event) for event in streamed(array(*STREAM))]
    assert kinds == [type(event) for event in EVENTS]


def test_the_finish_is_told_once_and_last_however_often_it_is_repeated() -> None:
    events = streamed(
        sse(
            chunk({"text": "a"}, finishReason="STOP"),
            chunk({"text": "b"}, finishReason="MAX_TOKENS"),
        )
    )
    assert [type(event) for event in events[1:]] == [
        n.PartBegan,
        n.Grew,
        n.Grew,
        n.PartEnded,
        n.Finished,
        n.Done,
    ]
    finished = events[-2]
    assert isinstance(finished, n.Finished)
    assert finished.finish == "length"


@pytest.mark.parametrize(
    "body",
    [
        sse(chunk({"text": "a"})),
        sse(chunk({"text": "a"}, finishReason="STOP")) + b'data: {"cand',
        array(chunk({"text": "a"}, finishReason="STOP"))[:-3] + b',{"candidates": [{',
        b"",
        b"\xef",
    ],
)
def test_a_stream_that_is_cut_is_not_done(body: bytes) -> None:
    kinds = {type(event) for event in streamed(body)}
    assert not kinds & {n.Done, n.Finished, n.Broke}


def test_a_last_event_without_its_blank_line_counts() -> None:
    body = sse(chunk({"text": "a"}, finishReason="STOP")).rstrip()
    assert isinstance(streamed(body)[-1], n.Done)


def test_candidates_are_streamed_apart() -> None:
    events = streamed(
        sse(
            chunk({"text": "a"}, index=0),
            chunk({"text": "b"}, index=1),
            chunk({"text": "A"}, index=0, finishReason="STOP"),
            chunk(index=1, finishReason="MAX_TOKENS"),
        )
    )
    grown = [
        (event.candidate, event.index, event.text) for event in events if isinstance(event, n.Grew)
    ]
    assert grown == [(0, 0, "a"), (1, 0, "b"), (0, 0, "A")]
    finished = [(e.candidate, e.finish) for e in events if isinstance(e, n.Finished)]
    assert finished == [(0, "stop"), (1, "length")]


ERROR = {"error": {"code": 503, "message": "overloaded", "status": "UNAVAILABLE"}}


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (sse(STREAM[2], ERROR), f.Overloaded),
        (array(STREAM[2], ERROR), f.Overloaded),
        (msgspec.json.format(encode(ERROR)), f.Overloaded),
        (b"<!DOCTYPE html><p>Bad gateway", f.MalformedAnswer),
        (b"[1, 2]", f.MalformedAnswer),
        (b"data: {\n\n", f.MalformedAnswer),
        (sse(chunk({"text": 1})), f.MalformedAnswer),
        (sse(chunk({"text": "x"}, index=-1)), f.MalformedAnswer),
        (sse(chunk({"text": "x"}, index=10**9)), f.MalformedAnswer),
        (sse(STREAM[2], chunk(finishReason="MALFORMED_FUNCTION_CALL")), f.MalformedToolCall),
    ],
)
def test_a_failure_inside_a_stream_breaks_it(body: bytes, kind: type[f.Failure]) -> None:
    broke = streamed(body)[-1]
    assert isinstance(broke, n.Broke)
    assert type(broke.failure) is kind


@pytest.mark.parametrize("start", [b"data: ", b'[{"a": "'])
def test_an_endless_chunk_is_refused(start: bytes) -> None:
    decoder = gemini.StreamDecoder()
    events = decoder.feed(start)
    for _ in range(9):
        events += decoder.feed(b"x" * 1_000_000)
    assert isinstance(events[-1], n.Broke)


def test_a_block_after_text_is_a_finish() -> None:
    events = streamed(sse(STREAM[2], {"promptFeedback": {"blockReason": "SAFETY"}}))
    finished = [event.finish for event in events if isinstance(event, n.Finished)]
    assert finished == ["content_filter"]


def encoded(events: list[n.StreamEvent]) -> Json:
    encoder = gemini.StreamEncoder(model="")
    return [read(one) for event in events for one in encoder.feed([event])]


def test_a_stream_is_written_as_it_was_read() -> None:
    chunks = encoded(EVENTS)
    parts = [part for one in chunks for part in one["candidates"][0]["content"]["parts"]]
    assert parts == [
        {"text": 'hm {"[\\', "thought": True},
        {"text": "", "thought": True, "thoughtSignature": "c2ln"},
        {"text": "It "},
        {"text": "is é"},
        {"functionCall": {"name": "f", "args": {"a": "}"}, "id": "c1"}},
        {"executableCode": {"code": "1"}},
        {"text": "", "thoughtSignature": "c2ln"},
        {"text": ""},
    ]
    assert chunks[-1]["candidates"][0]["finishReason"] == "STOP"
    assert chunks[-1]["candidates"][0]["finishMessage"] == "ok"
    assert chunks[-1]["usageMetadata"] == USED
    assert {one["responseId"] for one in chunks} == {"r1"}


def test_a_foreign_stream_is_written_in_this_dialect() -> None:
    events: list[n.StreamEvent] = [
        n.Began("id", "m"),
        n.PartBegan(0, n.Refusal(text="")),
        n.Grew(0, "No", extra={"obfuscation": Raw(b'"x"')}),
        n.PartEnded(0),
        n.PartBegan(1, n.ToolCall(id="c", name="f", arguments="")),
        n.Grew(1, '{"a"'),
        n.Grew(1, ":1}"),
        n.PartEnded(1),
        n.Finished("tool_calls", "tool_calls"),
        n.UsageKnown(Usage(input=1, output=2)),
    ]
    encoder = gemini.StreamEncoder(model="logical")
    chunks = [read(one) for event in events for one in encoder.feed([event])]
    assert len(chunks) == 2, "the finish waits for the usage"
    assert chunks[0]["candidates"] == [
        {"content": {"role": "model", "parts": [{"text": "No"}]}, "index": 0}
    ]
    assert chunks[1]["candidates"][0]["content"]["parts"] == [
        {"functionCall": {"name": "f", "args": {"a": 1}, "id": "c"}}
    ]
    last = [read(one) for one in encoder.end()]
    assert last[0]["candidates"][0]["finishReason"] == "STOP"
    assert last[0]["usageMetadata"]["totalTokenCount"] == 3
    assert encoder.end() == []


# ---------------------------------------------------------------- embeddings and counts


def test_embeddings_requests_of_all_three_methods_are_read() -> None:
    batch = gemini.decode_embeddings_request(
        encode(
            {
                "requests": [
                    {
                        "model": "models/e",
                        "content": {"parts": [{"text": text}]},
                        "taskType": "RETRIEVAL_QUERY",
                        "outputDimensionality": 8,
                    }
                    for text in ("a", "b")
                ]
            }
        )
    )
    expected = n.Embeddings("gemini", "e", ["a", "b"], dimensions=8, task="RETRIEVAL_QUERY")
    assert batch == expected
    one = gemini.decode_embeddings_request(
        b'{"content":{"parts":[{"text":"a"}]}}', path="/v1/models/e:embedContent"
    )
    assert one == n.Embeddings("gemini", "e", ["a"])
    predict = gemini.decode_embeddings_request(
        b'{"instances":[{"content":"a","task_type":"T"}],"parameters":{"outputDimensionality":8}}',
        path="/v1/projects/p/locations/l/publishers/google/models/e:predict",
    )
    assert predict == n.Embeddings("gemini", "e", ["a"], dimensions=8, task="T")


def test_embeddings_that_are_more_than_a_text_keep_their_own_form() -> None:
    body = {
        "requests": [
            {"model": "models/e", "content": {"parts": [{"text": "a"}, {"text": "b"}]}},
            {"model": "models/e", "content": {"parts": [{"text": "c"}]}, "title": "t"},
        ]
    }
    request = gemini.decode_embeddings_request(encode(body))
    assert request.inputs == ["a\nb", "c"]
    call_ = gemini.encode_embeddings(request, n.Target(model="other"))
    for one in body["requests"]:
        one["model"] = "models/other"
    assert read(call_.body) == body
    assert call_.path == "/models/other:batchEmbedContents"


def test_foreign_embeddings_are_asked_for() -> None:
    request = n.Embeddings("openai", "e", ["a"], dimensions=4, user="u")
    call_ = gemini.encode_embeddings(request, n.Target(model="e"))
    assert read(call_.body) == {
        "requests": [
            {
                "model": "models/e",
                "content": {"parts": [{"text": "a"}]},
                "outputDimensionality": 4,
            }
        ]
    }
    assert call_.dropped == ("user",)
    on_vertex = gemini.encode_embeddings(request, n.Target(model="e", quirks={"vertex": True}))
    assert on_vertex.path == "/publishers/google/models/e:predict"
    assert read(on_vertex.body) == {
        "instances": [{"content": "a"}],
        "parameters": {"outputDimensionality": 4},
    }
    with pytest.raises(BadRequest):
        gemini.encode_embeddings(n.Embeddings("openai", "e", [[1, 2]]), n.Target(model="e"))


@pytest.mark.parametrize(
    ("body", "used"),
    [
        ({"embedding": {"values": [1.0, 2.0]}}, None),
        ({"embeddings": [{"values": [1.0, 2.0]}], "usageMetadata": {"promptTokenCount": 3}}, 3),
        (
            {
                "predictions": [
                    {"embeddings": {"values": [1.0, 2.0], "statistics": {"token_count": 3.0}}}
                ]
            },
            3,
        ),
    ],
)
def test_vectors_are_read_from_each_kind_of_answer(body: Json, used: int | None) -> None:
    found = gemini.decode_embeddings(encode(body))
    assert isinstance(found, n.EmbeddingsAnswer)
    assert found.vectors == [[1.0, 2.0]]
    assert (found.usage and found.usage.input) == used


@pytest.mark.parametrize("body", [b"{}", b"x", b'{"embeddings":[{}]}', b'{"predictions":[{}]}'])
def test_an_answer_without_vectors_is_malformed(body: bytes) -> None:
    assert isinstance(gemini.decode_embeddings(body), f.MalformedAnswer)


def test_tokens_are_counted_of_what_a_request_holds() -> None:
    body = {"generateContentRequest": {"model": "models/m", **asked()}}
    request = decoded(body, "/v1beta/models/m:countTokens")
    assert request.turns == [user("Hi")]
    call_ = gemini.encode_count_tokens(request, n.Target(model="m"))
    assert (call_.path, read(call_.body)) == ("/models/m:countTokens", body)
    on_vertex = gemini.encode_count_tokens(request, VERTEX)
    assert read(on_vertex.body) == asked()
    assert gemini.decode_count_tokens(b'{"totalTokens":7}') == 7
    assert isinstance(gemini.decode_count_tokens(b"{}"), f.MalformedAnswer)
    assert read(gemini.encode_count_tokens_answer(7)) == {"totalTokens": 7}


# ---------------------------------------------------------------- failures


def status(code: int, name: str, message: str = "m", *details: Json) -> Json:
    return {"error": {"code": code, "message": message, "status": name, "details": list(details)}}


def info(reason: str) -> Json:
    return {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason}


def quota(quota_id: str, **fields: object) -> Json:
    violation = {"quotaId": quota_id} | fields
    return {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [violation]}


RETRY = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "48.5s"}
MINUTE = "GenerateContentPaidTierInputTokensPerModelPerMinute"
DAY = "GenerateRequestsPerDayPerProjectPerModel-FreeTier"
TOO_LONG = "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576)."
TOO_LONG_VERTEX = (
    "Unable to submit request because the input token count is 40000 but model only supports up to"
    " 32768. Reduce the input token count and try again."
)

ERRORS: list[tuple[int, Json, f.Failure]] = [
    (
        429,
        status(429, "RESOURCE_EXHAUSTED", "m", quota(MINUTE, quotaValue="1000"), RETRY),
        f.RateLimited("m", 429, "RESOURCE_EXHAUSTED", 48.5),
    ),
    (
        429,
        status(429, "RESOURCE_EXHAUSTED", "m", quota(MINUTE), quota(DAY), RETRY),
        f.QuotaExhausted("m", 429, "RESOURCE_EXHAUSTED"),
    ),
    (
        429,
        status(429, "RESOURCE_EXHAUSTED", "m", quota(MINUTE, quotaValue="0"), RETRY),
        f.QuotaExhausted("m", 429, "RESOURCE_EXHAUSTED"),
    ),
    (
        429,
        status(429, "RESOURCE_EXHAUSTED", "Your prepayment credits are depleted."),
        f.QuotaExhausted("Your prepayment credits are depleted.", 429, "RESOURCE_EXHAUSTED"),
    ),
    (
        429,
        status(429, "RESOURCE_EXHAUSTED", "m", info("MODEL_CAPACITY_EXHAUSTED")),
        f.Overloaded("m", 429, "MODEL_CAPACITY_EXHAUSTED"),
    ),
    (503, status(503, "UNAVAILABLE"), f.Overloaded("m", 503, "UNAVAILABLE")),
    (500, status(500, "INTERNAL"), f.ServerError("m", 500, "INTERNAL")),
    (504, status(504, "DEADLINE_EXCEEDED"), f.ServerError("m", 504, "DEADLINE_EXCEEDED")),
    (
        400,
        status(400, "INVALID_ARGUMENT", "m", info("API_KEY_INVALID")),
        f.KeyRejected("the provider refused the gateway's key", 400, "API_KEY_INVALID"),
    ),
    (
        403,
        status(403, "PERMISSION_DENIED", "Consumer 'api_key:AIza…' has been suspended."),
        f.KeyForbidden(
            "the provider forbids this call to the gateway's key", 403, "PERMISSION_DENIED"
        ),
    ),
    (
        400,
        status(400, "FAILED_PRECONDITION", "User location is not supported for the API use."),
        f.KeyForbidden(
            "the provider forbids this call to the gateway's key", 400, "FAILED_PRECONDITION"
        ),
    ),
    (404, status(404, "NOT_FOUND"), f.ModelNotFound("m", 404, "NOT_FOUND")),
    (
        400,
        status(400, "INVALID_ARGUMENT", TOO_LONG),
        f.ContextLength(TOO_LONG, 400, "INVALID_ARGUMENT", needed=1_200_000, limit=1_048_576),
    ),
    (
        400,
        status(400, "INVALID_ARGUMENT", TOO_LONG_VERTEX),
        f.ContextLength(TOO_LONG_VERTEX, 400, "INVALID_ARGUMENT"),
    ),
    (
        400,
        status(
            400,
            "INVALID_ARGUMENT",
            "m",
            {
                "@type": "type.googleapis.com/google.rpc.BadRequest",
                "fieldViolations": [{"field": "contents[0]", "description": "d"}],
            },
        ),
        f.InvalidRequest("m", 400, "INVALID_ARGUMENT", "contents[0]"),
    ),
    (429, [status(429, "RESOURCE_EXHAUSTED")], f.RateLimited("m", 429, "RESOURCE_EXHAUSTED")),
    (200, status(429, "RESOURCE_EXHAUSTED"), f.RateLimited("m", 429, "RESOURCE_EXHAUSTED")),
    (502, "<html>", f.ServerError("the provider answered with status 502", 502)),
]


@pytest.mark.parametrize(("code", "body", "expected"), ERRORS)
def test_an_error_answer_is_classified(code: int, body: Json, expected: f.Failure) -> None:
    assert gemini.classify(code, {}, encode(body), now=0.0) == expected


def test_details_of_another_shape_tell_nothing() -> None:
    body = status(429, "RESOURCE_EXHAUSTED", "m", {"violations": 3}, 7, RETRY)
    failure = gemini.classify(429, {}, encode(body), now=0.0)
    assert failure == f.RateLimited("m", 429, "RESOURCE_EXHAUSTED", 48.5)


def test_a_failure_is_told_in_googles_shape() -> None:
    assert read(gemini.encode_error(f.RateLimited("slow down", retry_after_s=1.5))) == {
        "error": {
            "code": 429,
            "message": "slow down",
            "status": "RESOURCE_EXHAUSTED",
            "details": [
                {
                    "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                    "reason": "RATE_LIMITED",
                    "domain": "breakwater",
                },
                {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "1.5s"},
            ],
        }
    }


@pytest.mark.parametrize("kind", f.SPEC)
def test_every_failure_can_be_told_and_read_again(kind: type[f.Failure]) -> None:
    spec = f.SPEC[kind]
    body = gemini.encode_error(kind("why"))
    assert read(body)["error"]["code"] == spec.status
    assert read(body)["error"]["status"] != "UNKNOWN"
    gemini.classify(spec.status, {}, body, now=0.0)


# ---------------------------------------------------------------- hostile input

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda children: (
        st.lists(children, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    *(
                        "candidates",
                        "content",
                        "parts",
                        "text",
                        "functionCall",
                        "name",
                        "args",
                        "id",
                    ),
                    *("finishReason", "index", "usageMetadata", "promptFeedback", "blockReason"),
                    *(
                        "error",
                        "code",
                        "details",
                        "contents",
                        "tools",
                        "generationConfig",
                        "thought",
                    ),
                    *("functionResponse", "response", "inlineData", "data", "logprobsResult"),
                    *("responseSchema", "type", "properties", "$ref", "requests", "thinkingConfig"),
                ]
            ),
            children,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(st.binary(max_size=200) | _JSON.map(encode))
def test_nothing_that_a_provider_sends_raises(data: bytes) -> None:
    gemini.decode_answer(data)
    gemini.decode_embeddings(data)
    gemini.decode_count_tokens(data)
    gemini.classify(400, {}, data, now=0.0)
    gemini.usage(data)
    for body in (data, b"data: " + data + b"\n\n", b"[" + data + b"]"):
        events = streamed(body[: len(body) // 2], body[len(body) // 2 :])
        gemini.StreamEncoder(model="m").feed(events)


@given(st.binary(max_size=200) | _JSON.map(encode))
def test_nothing_that_a_caller_sends_raises_but_a_refusal(data: bytes) -> None:
    for decode in (gemini.decode_request, gemini.decode_embeddings_request):
        try:
            request = decode(data, path=PATH)
        except BadRequest:
            continue
        if isinstance(request, n.Request):
            for dialect in ("gemini", "openai"):
                again = msgspec.structs.replace(request, dialect=dialect)
                gemini.encode_request(again, n.Target(model="m", quirks={"openapi_schema": True}))
        else:
            gemini.encode_embeddings(request, n.Target(model="m"))


@given(_JSON)
def test_schemas_of_any_shape_are_converted_without_raising(schema: Json) -> None:
    raw = Raw(encode(schema))
    openapi(raw)
    json_schema(raw)
