"""Bedrock's dialect: its signature, its binary stream, its errors, its checks, and embeddings by InvokeModel."""

import base64
import json
import math
import struct
from contextlib import suppress
from zlib import crc32

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.simulator.providers import PROVIDERS, Client, simulator

from breakwater_gateway.simulator.content import compose
from breakwater_gateway.simulator.dialects.bedrock import Bedrock
from breakwater_gateway.simulator.dialects.bedrock_errors import BedrockError, word
from breakwater_gateway.simulator.dialects.bedrock_signature import caller, check
from breakwater_gateway.simulator.dialects.dialect import Ask, Route
from breakwater_gateway.simulator.refusals import Kind, Problem
from breakwater_gateway.simulator.script import Fault, Script
from breakwater_gateway.simulator.turns import Choice, Json, Sampling, ToolUse, Turn
from breakwater_gateway.worker.wire import bedrock as wire
from breakwater_gateway.worker.wire import neutral as n
from breakwater_gateway.worker.wire.bedrock.sigv4 import Credentials, body_hash, sign
from breakwater_protocol import failures as f
from breakwater_protocol.chat import Usage

anyio = pytest.mark.anyio

BEDROCK = Bedrock()
SAMPLING = Sampling(chance=12345, created=1_700_000_000)
ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
HELLO: list[Json] = [{"role": "user", "content": [{"text": "hello there"}]}]
SCHEMA: Json = {"type": "object", "properties": {"city": {"type": "string"}}}
WEATHER: Json = {"toolSpec": {"name": "weather", "inputSchema": {"json": SCHEMA}}}
CLOCK: Json = {"toolSpec": {"name": "clock", "inputSchema": {"json": {"type": "object"}}}}
CALLED: Json = {"toolUse": {"toolUseId": "t1", "name": "weather", "input": {}}}
RESULT: Json = {"toolResult": {"toolUseId": "t1", "content": [{"text": "sunny"}]}}


def turn(*, stream: bool = False, model: str = "m", **fields: Json) -> Turn:
    route = Route(
        "", "bedrock", "chat", model=model, action="converse-stream" if stream else "converse"
    )
    return BEDROCK.read(Ask({"messages": HELLO, **fields}, model, route, {}, Script()))


def frames(body: bytes) -> list[tuple[dict[str, str], Json]]:
    """Headers and payload of each frame, read by nothing of the gateway's; checksums must fit."""
    found = []
    while body:
        total, size, checksum = struct.unpack_from(">III", body)
        assert crc32(body[:8]) == checksum
        assert crc32(body[: total - 4]) == struct.unpack_from(">I", body, total - 4)[0]
        headers, at = {}, 12
        while at < 12 + size:
            end = at + 1 + body[at]
            name = body[at + 1 : end].decode()
            assert body[end] == 7
            (length,) = struct.unpack_from(">H", body, end + 1)
            headers[name] = body[end + 3 : end + 3 + length].decode()
            at = end + 3 + length
        found.append((headers, json.loads(body[at : total - 4])))
        body = body[total:]
    return found


def streamed(script: Script, **fields: Json) -> bytes:
    asked = turn(stream=True, **fields)
    choices = compose(asked, script, chance=12345, seed=0)
    return b"".join(event.data for event in BEDROCK.events(asked, choices, script, SAMPLING))


def answered(script: Script, **fields: Json) -> bytes:
    asked = turn(**fields)
    return BEDROCK.answer(asked, compose(asked, script, chance=12345, seed=0), script, SAMPLING)


# ---- streams


def test_a_stream_is_frames_in_the_order_of_the_service() -> None:
    script = Script(text="one two", thinking="hm so", tool_calls="never")
    found = frames(streamed(script))
    assert [headers[":event-type"] for headers, _ in found] == [
        "messageStart",
        *["contentBlockDelta"] * 3,
        "contentBlockStop",
        *["contentBlockDelta"] * 2,
        "contentBlockStop",
        "messageStop",
        "metadata",
    ]
    assert {headers[":message-type"] for headers, _ in found} == {"event"}
    assert {headers[":content-type"] for headers, _ in found} == {"application/json"}
    deltas = [payload["delta"] for _, payload in found if "delta" in payload]
    assert list(deltas[2]["reasoningContent"]) == ["signature"]
    assert [delta.get("text") for delta in deltas[3:]] == ["one", " two"]


def test_every_payload_is_padded_by_a_beginning_of_the_alphabet() -> None:
    found = frames(streamed(Script(tokens=50)))
    assert all(ALPHABET.startswith(payload["p"]) for _, payload in found)
    assert all(list(payload) == sorted(payload) for _, payload in found)
    assert len({len(payload["p"]) for _, payload in found}) > 10


def test_only_tool_calls_are_announced_and_their_first_fragment_is_empty() -> None:
    script = Script(tool_calls="always", parallel_calls=2)
    found = frames(streamed(script, toolConfig={"tools": [WEATHER, CLOCK]}))
    starts = [
        payload for headers, payload in found if headers[":event-type"] == "contentBlockStart"
    ]
    assert [start["start"]["toolUse"]["name"] for start in starts] == ["weather", "clock"]
    assert [start["contentBlockIndex"] for start in starts] == [0, 1]
    assert all(s["start"]["toolUse"]["toolUseId"].startswith("tooluse_") for s in starts)
    fragments = [p["delta"]["toolUse"]["input"] for _, p in found if p.get("delta")]
    assert fragments[0] == ""
    assert "city" in "".join(fragments)
    (stop,) = [p for headers, p in found if headers[":event-type"] == "messageStop"]
    assert stop["stopReason"] == "tool_use"


@given(st.data())
def test_the_gateways_decoder_reads_a_stream_as_it_reads_the_whole_answer(
    data: st.DataObject,
) -> None:
    script = Script(
        text=data.draw(st.text(min_size=1, max_size=40)),
        thinking=data.draw(st.none() | st.just("well then")),
        chunk_tokens=data.draw(st.integers(1, 3)),
        cached_tokens=data.draw(st.integers(0, 5)),
    )
    decoder = wire.StreamDecoder()
    body = streamed(script)
    cut = data.draw(st.integers(0, len(body)))
    events = [*decoder.feed(body[:cut]), *decoder.feed(body[cut:]), *decoder.end()]
    whole = wire.decode_answer(answered(script))
    assert isinstance(whole, n.Answer)
    said = "".join(p.text for p in whole.candidates[0].parts if isinstance(p, n.Text))
    kinds = {e.index: e.part for e in events if isinstance(e, n.PartBegan)}
    texts = [e.text for e in events if isinstance(e, n.Grew) and isinstance(kinds[e.index], n.Text)]
    assert "".join(texts) == said
    assert [e.usage for e in events if isinstance(e, n.UsageKnown)] == [whole.usage]
    assert events[-1] == n.Done()


def test_an_error_in_a_stream_is_an_exception_frame() -> None:
    body = BEDROCK.stream_error(Problem("error_in_200"))
    ((headers, payload),) = frames(body)
    assert headers[":message-type"] == "exception"
    assert headers[":exception-type"] == "serviceUnavailableException"
    assert list(payload) == ["message"]
    (_, broke) = wire.StreamDecoder().feed(body)
    assert isinstance(broke, n.Broke)
    assert isinstance(broke.failure, f.Overloaded)


@anyio
async def test_over_http_a_stream_has_its_own_media_type_and_may_be_cut_anywhere() -> None:
    async with simulator(Script(text="Naïve café", split_bytes=3, crlf=True)) as client:
        answer = await client.post("/lane/model/m/converse-stream", {"messages": HELLO})
    assert answer.headers["content-type"] == "application/vnd.amazon.eventstream"
    assert "x-amzn-requestid" in answer.headers
    text = "".join(p["delta"]["text"] for _, p in frames(answer.content) if "delta" in p)
    assert text == "Naïve café"


# ---- answers


def test_the_total_counts_the_cache_that_the_input_leaves_out() -> None:
    script = Script(
        prompt_tokens=1000, completion_tokens=20, cached_tokens=600, cache_write_tokens=300
    )
    body = answered(script)
    usage = json.loads(body)["usage"]
    assert usage == {
        "cacheReadInputTokenCount": 600,
        "cacheReadInputTokens": 600,
        "cacheWriteInputTokenCount": 300,
        "cacheWriteInputTokens": 300,
        "inputTokens": 100,
        "outputTokens": 20,
        "serverToolUsage": {},
        "totalTokens": 1020,
    }
    (_, metadata) = frames(streamed(script))[-1]
    assert metadata["usage"] == usage
    found = wire.decode_answer(body)
    assert isinstance(found, n.Answer)
    assert found.usage == Usage(input=1000, output=20, cache_read=600, cache_write=300)


@pytest.mark.parametrize(
    ("choice", "reason"),
    [
        (Choice(("hi",), "stop"), "end_turn"),
        (Choice(("hi",), "stop", stopped_by="."), "stop_sequence"),
        (Choice(("hi",), "length"), "max_tokens"),
        (Choice((), "tool_calls", (ToolUse("t", ("{}",), 1),)), "tool_use"),
        (Choice(("hi",), "content_filter"), "content_filtered"),
        (Choice((), "content_filter", blocked=True), "guardrail_intervened"),
        (
            Choice((), "tool_calls", (ToolUse("t", ('{"a',), 1),), malformed=True),
            "malformed_tool_use",
        ),
    ],
)
def test_each_finish_has_its_stop_reason(choice: Choice, reason: str) -> None:
    asked = turn()
    answer = json.loads(BEDROCK.answer(asked, [choice], Script(), SAMPLING))
    assert answer["stopReason"] == reason
    assert answer["output"]["message"]["content"]
    body = b"".join(e.data for e in BEDROCK.events(asked, [choice], Script(), SAMPLING))
    assert frames(body)[-2][1]["stopReason"] == reason


def test_a_conversation_is_read() -> None:
    schema = {
        "type": "json_schema",
        "structure": {"jsonSchema": {"name": "city", "schema": json.dumps(SCHEMA)}},
    }
    image = {"format": "png", "source": {"bytes": base64.b64encode(b"png").decode()}}
    found = turn(
        system=[{"text": "Be brief."}, {"cachePoint": {"type": "default"}}],
        messages=[
            {"role": "user", "content": [{"text": "weather?"}, {"image": image}]},
            {"role": "assistant", "content": [CALLED]},
            {"role": "user", "content": [RESULT]},
        ],
        inferenceConfig={"maxTokens": 5, "stopSequences": ["."], "temperature": 1, "topP": 0.5},
        toolConfig={"tools": [WEATHER, CLOCK], "toolChoice": {"tool": {"name": "clock"}}},
        outputConfig={"textFormat": schema},
        somethingElse=1,
    )
    assert (found.tokens_max, found.stop, found.forced, found.answered) == (5, (".",), True, True)
    assert [tool.name for tool in found.tools] == ["clock"]
    assert found.schema == SCHEMA
    assert found.prompt_tokens > 85


# ---- requests that are refused


def message(*content: Json, role: str = "user") -> Json:
    return {"role": role, "content": list(content)}


def tooled(*tools: Json, **more: Json) -> dict[str, Json]:
    return {"toolConfig": {"tools": list(tools), **more}}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"messages": []}, "must start with a user message"),
        ({"messages": None}, "must start with a user message"),
        ({"messages": "hi"}, "messages has the wrong type"),
        ({"messages": ["hi"]}, "messages.0 has the wrong type"),
        ({"messages": [message({"text": "x"}, role="system")]}, "enum value set"),
        ({"messages": [message()]}, "messages.0 is empty"),
        ({"messages": [{"role": "user"}]}, "not be null"),
        ({"messages": [message({"text": " "})]}, "messages.0.content.0 is blank"),
        ({"messages": [message({"text": 5})]}, "wrong type"),
        ({"messages": [message({"text": "x", "json": {}})]}, "exactly one"),
        ({"messages": [message({"type": "text"})]}, "exactly one"),
        ({"messages": [message({"image": {"format": "tiff"}})]}, "enum value set"),
        ({"messages": [message({"image": {"format": [{}]}})]}, "enum value set"),
        ({"messages": [{"role": ["user"], "content": []}]}, "enum value set"),
        ({"messages": [message({"image": {"format": "png", "source": {"bytes": "%"}}})]}, "type"),
        (
            {"messages": [message({"text": "x"}, {"document": {"format": "pdf", "name": "a.b"}})]},
            "document file name",
        ),
        (
            {
                "messages": [
                    message({"document": {"name": "a", "source": {"bytes": "AAAA"}}}),
                ]
            },
            "text block is required",
        ),
        ({"messages": [*HELLO, message(CALLED, role="assistant")]}, "toolConfig field must be"),
        ({"messages": [message(RESULT)], **tooled(WEATHER)}, "exceeds the number of toolUse"),
        (
            {
                "messages": [*HELLO, message(CALLED, role="assistant"), *HELLO],
                **tooled(WEATHER),
            },
            "Expected toolResult blocks at messages.2.content for the following Ids: t1",
        ),
        ({"messages": [message(CALLED)], **tooled(WEATHER)}, "not allowed"),
        ({"system": "hi"}, "system has the wrong type"),
        ({"toolConfig": {"tools": []}}, "toolConfig.tools"),
        (tooled(WEATHER, WEATHER), "must be unique"),
        (tooled({"toolSpec": {"name": "a b"}}), "regular expression"),
        (tooled({"toolSpec": {"name": "a"}}), "inputSchema"),
        (
            tooled({"toolSpec": {"name": "a", "inputSchema": {"json": {"type": "string"}}}}),
            "must be one of the following: object",
        ),
        (tooled(WEATHER, toolChoice={"tool": {"name": "none"}}), "toolChoice.tool.name"),
        (tooled(WEATHER, toolChoice={"none": {}}), "exactly one"),
        ({"inferenceConfig": {"maxTokens": 0}}, "greater than or equal to 1"),
        ({"inferenceConfig": {"maxTokens": "5"}}, "wrong type"),
        ({"inferenceConfig": {"temperature": 1.5}}, "less than or equal to 1"),
        ({"inferenceConfig": {"topP": -1}}, "greater than or equal to 0"),
        ({"inferenceConfig": {"stopSequences": [""]}}, "stopSequences"),
        (
            {"additionalModelRequestFields": {"thinking": {"type": "enabled", "budget_tokens": 9}}},
            "greater than or equal to 1024",
        ),
        ({"outputConfig": {"textFormat": {"type": "text"}}}, "enum value set"),
        (
            {
                "outputConfig": {
                    "textFormat": {
                        "type": "json_schema",
                        "structure": {"jsonSchema": {"schema": "{"}},
                    }
                }
            },
            "not a JSON schema",
        ),
    ],
)
def test_what_the_service_refuses_is_refused(fields: dict[str, Json], words: str) -> None:
    with pytest.raises(BedrockError, match=words) as caught:
        turn(**fields)
    assert caught.value.status == 400
    assert list(caught.value.object()) == ["message"]


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([message({"text": "x"}, role="assistant"), *HELLO], "must start with a user message"),
        ([*HELLO, *HELLO], "must alternate"),
    ],
)
def test_only_some_models_mind_whose_turn_it_is(messages: list[Json], words: str) -> None:
    turn(messages=messages)
    route = Route("", "bedrock", "chat", model="m", action="converse")
    with pytest.raises(BedrockError, match=words):
        BEDROCK.read(Ask({"messages": messages}, "m", route, {}, Script(alternate=True)))


def test_a_tool_that_the_service_ran_has_its_result_beside_it() -> None:
    turn(messages=[*HELLO, message(CALLED, RESULT, role="assistant"), *HELLO], **tooled(WEATHER))


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    *("role", "content", "text", "image", "toolUse", "toolResult", "toolUseId"),
                    *("name", "input", "tools", "toolSpec", "inputSchema", "json", "toolChoice"),
                    *("any", "tool", "source", "bytes", "format", "document", "cachePoint"),
                    *("reasoningContent", "reasoningText", "thinking", "type", "textFormat"),
                ]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=12,
)


@given(
    st.dictionaries(
        st.sampled_from(
            [
                *("messages", "system", "toolConfig", "inferenceConfig", "outputConfig"),
                "additionalModelRequestFields",
            ]
        ),
        _VALUES,
    ),
    _VALUES,
)
def test_whatever_comes_is_read_or_refused(raw: dict[str, Json], content: Json) -> None:
    for given_messages in ({}, {"messages": [{"role": "user", "content": content}]}):
        with suppress(BedrockError):
            turn(**{**raw, **given_messages})


# ---- errors


@pytest.mark.parametrize(
    ("kind", "status", "name", "failure"),
    [
        ("rate_limited", 429, "ThrottlingException", f.RateLimited),
        ("quota_exhausted", 429, "ThrottlingException", f.QuotaExhausted),
        ("request_over_limit", 413, "RequestEntityTooLargeException", f.RequestOverLimit),
        ("context_length", 400, "ValidationException", f.ContextLength),
        ("content_filter", 400, "ValidationException", f.ContentFiltered),
        ("invalid_request", 400, "ValidationException", f.InvalidRequest),
        ("authentication", 403, "UnrecognizedClientException", f.KeyRejected),
        ("no_key", 403, "MissingAuthenticationTokenException", f.KeyRejected),
        ("permission", 403, "AccessDeniedException", f.KeyForbidden),
        ("model_not_found", 400, "ValidationException", f.ModelNotFound),
        ("overloaded", 503, "ServiceUnavailableException", f.Overloaded),
        ("server_error", 500, "InternalServerException", f.ServerError),
        ("bad_json", 400, "SerializationException", f.InvalidRequest),
    ],
)
@pytest.mark.parametrize("model", ["m", "amazon.nova-pro-v1:0", "eu.anthropic.claude-v1:0"])
def test_errors_have_a_message_and_a_name_and_the_gateway_knows_them(
    kind: Kind, status: int, name: str, failure: type[f.Failure], model: str
) -> None:
    error = word(Problem(kind, model=model, bound=10, requested=20))
    headers = dict(error.headers)
    assert (error.status, headers["x-amzn-errortype"].split(":")[0]) == (status, name)
    assert list(error.object()) == ["message"]
    found = wire.classify(error.status, headers, error.body(), now=0.0)
    assert type(found) is failure


@anyio
async def test_no_wait_is_told_and_no_rates() -> None:
    fault = Fault("rate_limited", retry_after_s=7, retry_after_form="both")
    async with simulator(Script(rpm=10, faults=(fault,))) as client:
        answer = await client.post("/model/m/converse", {"messages": HELLO})
    assert answer.status_code == 429
    assert not [name for name in answer.headers if "retry" in name or "ratelimit" in name]


@anyio
async def test_an_unknown_method_is_an_unknown_operation() -> None:
    async with simulator() as client:
        answer = await client.http.get("/model/m/converse")
    assert answer.status_code == 404
    assert "UnknownOperationException" in answer.json()["Output"]["__type"]


# ---- signatures


def signed(**changes: str) -> dict[str, str]:
    headers = dict(
        sign(
            Credentials("AKIDEXAMPLE", "secret", "session"),
            method="POST",
            path="/model/m/converse",
            headers=(("host", "h"),),
            body_sha256=body_hash(b""),
            region="eu-west-1",
            now=1_750_000_000,
        )
    )
    return {"host": "h", **headers, **changes}


def test_a_signature_names_its_caller() -> None:
    check(signed())
    assert caller(signed()) == "AKIDEXAMPLE"
    check({"authorization": "Bearer abc"})
    assert caller({"authorization": "Bearer abc"}) == "abc"
    check({})
    assert caller({}) == ""


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("AWS4-HMAC-SHA256", "AWS4-HMAC-SHA1", "algorithm"),
        ("Credential=", "Cred=", "requires 'Credential'"),
        ("SignedHeaders=", "Headers=", "requires 'SignedHeaders'"),
        ("Signature=", "Sign=", "requires 'Signature'"),
        ("AKIDEXAMPLE/", "", "5 slash-delimited"),
        ("/20250615/", "/20250614/", "does not match YYYYMMDD"),
        ("/bedrock/", "/s3/", "correct service: 'bedrock'"),
        ("aws4_request", "aws5_request", "terminator"),
        ("host;", "", "not a 'SignedHeader'"),
        (";x-amz-security-token", "", "not a 'SignedHeader'"),
        ("x-amz-date;", "x-amz-date;x-amz-nonsense;", "not a 'SignedHeader'"),
        ("Signature=", "Signature=Z", "does not match the signature"),
    ],
)
def test_what_is_no_signature_is_refused(old: str, new: str, words: str) -> None:
    headers = signed()
    assert old in headers["authorization"]
    with pytest.raises(BedrockError, match=words) as caught:
        check({**headers, "authorization": headers["authorization"].replace(old, new)})
    error = caught.value
    assert error.status == 403
    found = wire.classify(error.status, dict(error.headers), error.body(), now=0.0)
    assert isinstance(found, f.KeyRejected)
    assert "AKIDEXAMPLE" not in error.message


def test_a_signature_needs_its_date() -> None:
    with pytest.raises(BedrockError, match="X-Amz-Date"):
        check(signed(**{"x-amz-date": "today"}))


@given(st.text(max_size=80))
def test_any_header_is_let_through_or_refused(text: str) -> None:
    for value in (text, f"AWS4-HMAC-SHA256 {text}", f"AWS4-HMAC-SHA256 Credential={text}"):
        caller({"authorization": value})
        with suppress(BedrockError):
            check({"authorization": value})


async def _ask(client: Client) -> httpx.Response:
    request = n.Request("openai", "m", [n.Turn("user", [n.Text("Hi")], plain=True)])
    return await client.ask(PROVIDERS["bedrock"], request)


@anyio
async def test_scripted_keys_are_ids_of_access_keys() -> None:
    async with simulator(Script(keys=("AKIDEXAMPLE",))) as client:
        assert (await _ask(client)).status_code == 200
        unsigned = await client.post("/sim/model/m/converse", {"messages": HELLO})
    assert unsigned.headers["x-amzn-errortype"].startswith("MissingAuthenticationToken")
    async with simulator(Script(keys=("AKIDOTHER",))) as client:
        answer = await _ask(client)
    assert answer.status_code == 403
    assert answer.json() == {"message": "The security token included in the request is invalid."}


# ---- embeddings


def embedded(model: str, request: n.Embeddings, script: Script | None = None) -> n.EmbeddingsAnswer:
    """What the gateway makes of the answer to what it asks."""
    call = wire.encode_embeddings(request, n.Target(model))
    found = wire.decode_embeddings(invoked(json.loads(call.body), model, script))
    assert isinstance(found, n.EmbeddingsAnswer)
    return found


def invoked(raw: dict[str, Json], model: str, script: Script | None = None) -> bytes:
    script = script or Script()
    route = Route("", "bedrock", "embeddings", model=model, action="invoke")
    asked = BEDROCK.read_embeddings(Ask(raw, model, route, {}, script))
    return BEDROCK.embeddings(asked, script, seed=0)


@pytest.mark.parametrize(
    ("model", "size"),
    [
        ("amazon.titan-embed-text-v2:0", 1024),
        ("amazon.titan-embed-text-v1", 1536),
        ("amazon.nova-2-multimodal-embeddings-v1:0", 3072),
        ("cohere.embed-english-v3", 1024),
        ("cohere.embed-v4:0", 1536),
    ],
)
def test_the_gateway_reads_each_familys_embeddings(model: str, size: int) -> None:
    texts: list[str | list[int]] = ["hello world", "good bye"] if "cohere" in model else ["hello"]
    found = embedded(model, n.Embeddings("openai", model, texts))
    assert [len(one) for one in found.vectors] == [size] * len(texts)
    assert math.hypot(*found.vectors[0]) == pytest.approx(1, abs=1e-3)
    if "titan" in model:
        assert found.usage == Usage(input=2)


def test_a_size_may_be_asked_for() -> None:
    asked = n.Embeddings("openai", "m", ["hello"], dimensions=256)
    for model in ("amazon.titan-embed-text-v2:0", "cohere.embed-v4:0", "amazon.nova-2-embed"):
        assert len(embedded(model, asked).vectors[0]) == 256


@anyio
async def test_embeddings_are_invoked_over_http() -> None:
    async with simulator(Script(embedding_dimensions=8)) as client:
        answer = await client.post(
            "/lane/model/cohere.embed-english-v3/invoke",
            {"texts": ["One", "two"], "input_type": "search_document"},
        )
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert found["response_type"] == "embeddings_floats"
    assert [len(one) for one in found["embeddings"]] == [8, 8]


@pytest.mark.parametrize(
    ("model", "raw", "words"),
    [
        ("titan", {}, "required key .inputText. not found"),
        ("titan", {"inputText": ""}, "minLength"),
        ("titan", {"inputText": 5}, "expected type: String"),
        ("titan", {"inputText": "a", "dimensions": 5}, "5 is not a valid enum value"),
        ("titan", {"inputText": "a", "texts": []}, "extraneous key .texts."),
        ("titan-embed-text-v1", {"inputText": "a", "dimensions": 256}, "extraneous key"),
        ("cohere", {"texts": ["a"]}, "required key .input_type. not found"),
        ("cohere", {"input_type": "search_query"}, "required key .texts. not found"),
        ("cohere", {"texts": [], "input_type": "search_query"}, "minimum item count"),
        ("cohere", {"texts": ["a"] * 97, "input_type": "search_query"}, "maximum item count: 96"),
        ("cohere", {"texts": ["a"], "input_type": "other"}, "not a valid enum value"),
        ("nova", {}, "taskType"),
        ("nova", {"taskType": "SINGLE_EMBEDDING"}, "singleEmbeddingParams"),
    ],
)
def test_what_a_model_does_not_embed_is_refused(
    model: str, raw: dict[str, Json], words: str
) -> None:
    with pytest.raises(BedrockError, match=words) as caught:
        invoked(raw, model)
    assert caught.value.status == 400
