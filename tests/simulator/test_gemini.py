"""Google's APIs as the simulator speaks them: Gemini and Vertex."""

import json
from typing import Any

import pytest
from tests.simulator.providers import VERTEX, Client, simulator, sse

from breakwater_gateway.simulator.script import Fault, FaultClass, Script

pytestmark = pytest.mark.anyio

HEADERS = {"x-goog-api-key": "k"}
HELLO = [{"role": "user", "parts": [{"text": "hello there"}]}]
TOOLS = [{"functionDeclarations": [{"name": "weather", "parameters": {"type": "OBJECT"}}]}]


async def ask(client: Client, verb: str = "generateContent", query: str = "", **fields: Any) -> Any:  # noqa: ANN401 - JSON
    path = f"/g/v1beta/models/gemini-x:{verb}{query}"
    body = {"contents": HELLO, **fields}
    given = {name: value for name, value in body.items() if value is not None}
    return await client.post(path, given, HEADERS)


async def test_usage_counts_thoughts_beside_candidates() -> None:
    script = Script(text="Hi.", thinking="a b c", prompt_tokens=50, cached_tokens=20)
    async with simulator(script) as client:
        body = (await ask(client)).json()
    (candidate,) = body["candidates"]
    assert candidate["content"]["parts"] == [{"text": "a b c", "thought": True}, {"text": "Hi."}]
    assert candidate["finishReason"] == "STOP"
    usage = body["usageMetadata"]
    assert (usage["promptTokenCount"], usage["cachedContentTokenCount"]) == (50, 20)
    assert (usage["candidatesTokenCount"], usage["thoughtsTokenCount"]) == (1, 3)
    assert usage["totalTokenCount"] == 50 + 1 + 3


async def test_a_stream_is_events_or_one_array() -> None:
    async with simulator(Script(text="one two three")) as client:
        events = await ask(client, "streamGenerateContent", "?alt=sse")
        array = await ask(client, "streamGenerateContent")
    assert events.headers["content-type"] == "text/event-stream"
    assert array.headers["content-type"].startswith("application/json")
    chunks: list[Any] = [value for _, value in sse(events.content)]
    assert chunks == array.json()
    assert [c["candidates"][0]["content"]["parts"][0]["text"] for c in chunks] == [
        "one",
        " two",
        " three",
    ]
    assert [c["candidates"][0].get("finishReason") for c in chunks] == [None, None, "STOP"]
    assert [c["usageMetadata"]["candidatesTokenCount"] for c in chunks] == [1, 2, 3]


async def test_calls_come_whole_and_without_ids_and_end_with_stop() -> None:
    config = {"functionCallingConfig": {"mode": "ANY"}}
    async with simulator(Script(tool_arguments='{"city": "Paris"}')) as client:
        answer = await ask(
            client, "streamGenerateContent", "?alt=sse", tools=TOOLS, toolConfig=config
        )
    first, last = (value for _, value in sse(answer.content))
    assert isinstance(first, dict)
    assert isinstance(last, dict)
    call = {"functionCall": {"name": "weather", "args": {"city": "Paris"}}}
    assert first["candidates"][0]["content"]["parts"] == [call]
    assert last["candidates"][0]["finishReason"] == "STOP"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_blocked_prompt_has_no_candidates(stream: bool) -> None:
    verb = "streamGenerateContent" if stream else "generateContent"
    async with simulator(Script(faults=(Fault("content_filter"),))) as client:
        answer = await ask(client, verb)
    body = answer.json()[0] if stream else answer.json()
    assert body["promptFeedback"] == {"blockReason": "PROHIBITED_CONTENT"}
    assert "candidates" not in body


CALL = {"role": "model", "parts": [{"functionCall": {"name": "weather", "args": {}}}]}
RESPONSE = {"role": "user", "parts": [{"functionResponse": {"name": "weather", "response": {}}}]}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"contents": None}, "contents is not specified"),
        (
            {"contents": [{"role": "assistant", "parts": [{"text": "x"}]}]},
            "valid role: user, model",
        ),
        ({"contents": [{"parts": []}]}, "parts must not be empty"),
        ({"contents": [{"parts": [{"words": "x"}]}]}, 'Unknown name "words"'),
        ({"contents": [RESPONSE]}, "immediately after a function call turn"),
        ({"contents": [*HELLO, CALL, *HELLO]}, "number of function response parts"),
        ({"messages": []}, 'Unknown name "messages"'),
        ({"generationConfig": {"max_tokens": 5}}, 'Unknown name "max_tokens"'),
        ({"generationConfig": {"temperature": 3}}, "temperature"),
        ({"generationConfig": {"maxOutputTokens": 0}}, "maxOutputTokens"),
        ({"generationConfig": {"responseSchema": {"type": "OBJECT"}}}, "response_mime_type"),
        ({"tools": [{"functionDeclarations": [{"name": "1"}]}]}, "Invalid function name"),
        (
            {"tools": [{"functionDeclarations": [{"name": "f", "parameters": {"oneOf": []}}]}]},
            'Unknown name "oneOf"',
        ),
        ({"toolConfig": {"functionCallingConfig": {"mode": "MUST"}}}, "mode"),
    ],
)
async def test_what_the_real_one_refuses_is_refused(fields: dict[str, Any], message: str) -> None:
    async with simulator() as client:
        answer = await ask(client, **fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["status"]) == (400, 400, "INVALID_ARGUMENT")
    assert message in error["message"]


async def test_names_come_in_either_case() -> None:
    config = {"max_output_tokens": 3, "stop_sequences": ["x"]}
    async with simulator() as client:
        body = (await ask(client, generation_config=config)).json()
    assert body["candidates"][0]["finishReason"] == "MAX_TOKENS"


@pytest.mark.parametrize(
    ("kind", "status", "canonical", "detail"),
    [
        ("rate_limited", 429, "RESOURCE_EXHAUSTED", "PerMinute"),
        ("quota_exhausted", 429, "RESOURCE_EXHAUSTED", "PerDay"),
        ("authentication", 400, "INVALID_ARGUMENT", "API_KEY_INVALID"),
        ("model_not_found", 404, "NOT_FOUND", ""),
        ("overloaded", 503, "UNAVAILABLE", ""),
        ("server_error", 500, "INTERNAL", ""),
    ],
)
async def test_errors_are_google_s(
    kind: FaultClass, status: int, canonical: str, detail: str
) -> None:
    async with simulator(Script(faults=(Fault(kind, retry_after_s=48),))) as client:
        answer = await ask(client)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["status"]) == (status, status, canonical)
    assert detail in json.dumps(error.get("details", []))
    assert "retry-after" not in answer.headers
    if kind == "rate_limited":
        assert error["details"][-1]["retryDelay"] == "48s"


async def test_keys_are_google_s_and_vertex_wants_tokens() -> None:
    body = {"contents": HELLO}
    async with simulator(Script(keys=("good",))) as client:
        path = "/v1beta/models/m:generateContent"
        assert (await client.post(path, body, {"x-goog-api-key": "good"})).status_code == 200
        assert (await client.post(path + "?key=good", body)).status_code == 200
        assert (await client.post(path, body, {"x-goog-api-key": "bad"})).status_code == 400
        assert (await client.post(path, body)).status_code == 403
        path = f"{VERTEX}/publishers/google/models/m:generateContent"
        assert (await client.post(path, body, {"x-goog-api-key": "good"})).status_code == 401
        good = await client.post(path, body, {"authorization": "Bearer good"})
    assert good.json()["usageMetadata"]["trafficType"] == "ON_DEMAND"


async def test_embeddings_come_alone_in_batches_and_by_predict() -> None:
    content = {"parts": [{"text": "hello"}]}
    vertex = f"{VERTEX}/publishers/google/models/e:predict"
    async with simulator(Script(embedding_dimensions=8)) as client:
        one = await client.post("/v1beta/models/e:embedContent", {"content": content}, HEADERS)
        requests = [{"model": "models/e", "content": content}] * 2
        batch = {"requests": requests}
        two = await client.post("/v1beta/models/e:batchEmbedContents", batch, HEADERS)
        instances = {"instances": [{"content": "hello"}]}
        third = await client.post(vertex, instances, {"authorization": "Bearer t"})
    values = one.json()["embedding"]["values"]
    assert len(values) == 8
    assert [e["values"] for e in two.json()["embeddings"]] == [values, values]
    assert third.json()["predictions"][0]["embeddings"]["values"] == values


async def test_its_own_sdk_reads_answers_streams_and_errors() -> None:
    genai: Any = pytest.importorskip("google.genai")
    errors: Any = pytest.importorskip("google.genai.errors")
    scripts = (
        Script(text="Hello, world."),
        Script(model="down", faults=(Fault("overloaded"),)),
        Script(model="e", embedding_dimensions=8),
    )
    async with simulator(*scripts) as client:
        options = {"base_url": str(client.http.base_url) + "/sim"}
        own = genai.Client(api_key="k", http_options=options).aio
        try:
            answer = await own.models.generate_content(model="m", contents="hi")
            assert answer.text == "Hello, world."
            assert answer.usage_metadata.total_token_count
            stream = await own.models.generate_content_stream(model="m", contents="hi")
            assert "".join([chunk.text or "" async for chunk in stream]) == "Hello, world."
            embedded = await own.models.embed_content(model="e", contents=["a", "b"])
            assert [len(e.values) for e in embedded.embeddings] == [8, 8]
            assert (await own.models.count_tokens(model="m", contents="hi")).total_tokens
            with pytest.raises(errors.ServerError) as caught:
                await own.models.generate_content(model="down", contents="hi")
            assert caught.value.status == "UNAVAILABLE"
        finally:
            await own.aclose()
