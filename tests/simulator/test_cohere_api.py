"""Cohere's API, version 2, as the simulator speaks it."""

from typing import Any

import pytest
from tests.simulator.providers import Client, simulator, sse

from breakwater_gateway.simulator.script import Fault, Script

pytestmark = pytest.mark.anyio

HEADERS = {"authorization": "Bearer k"}
HELLO = [{"role": "user", "content": "hello there"}]
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


async def ask(client: Client, **fields: Any) -> Any:  # noqa: ANN401 - JSON
    return await client.post("/v2/chat", {"model": "m", "messages": HELLO, **fields}, HEADERS)


async def test_an_answer_tells_what_is_billed_and_what_was_processed() -> None:
    async with simulator(Script(text="Hi.", thinking="a b", prompt_tokens=500)) as client:
        body = (await ask(client)).json()
    assert [part["type"] for part in body["message"]["content"]] == ["thinking", "text"]
    assert body["finish_reason"] == "COMPLETE"
    usage = body["usage"]
    assert usage["tokens"] == {"input_tokens": 500, "output_tokens": 3, "reasoning_tokens": 2}
    assert usage["billed_units"]["input_tokens"] < 500


async def test_a_stream_has_the_recorded_order_and_objects() -> None:
    async with simulator(Script(tool_arguments='{"a": 1}')) as client:
        answer = await ask(client, stream=True, tools=[TOOL], tool_choice="REQUIRED")
    events = sse(answer.content)
    names = [name for name, _ in events]
    assert names[:2] == ["message-start", "tool-plan-delta"]
    calls = [name for name in names if name.startswith("tool-call")]
    assert calls == ["tool-call-start", "tool-call-delta", "tool-call-delta", "tool-call-end"]
    assert names[-2:] == ["message-end", ""]
    assert events[-1][1] == "[DONE]"
    started: Any = events[names.index("tool-call-start")][1]
    assert started["index"] == 0
    assert started["delta"]["message"]["tool_calls"]["function"]["name"] == "weather"


async def test_a_call_that_was_not_written_well_ends_in_an_error_under_200() -> None:
    async with simulator(Script(faults=(Fault("malformed_tool_call"),))) as client:
        answer = await ask(client, stream=True, tools=[TOOL])
    end: Any = sse(answer.content)[-2][1]
    assert end["delta"]["finish_reason"] == "ERROR"
    assert end["delta"]["error_type"] == "INVALID_TOOL_GENERATION"


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"messages": []}, 400),
        ({"top_p": 0.5}, 422),
        ({"p": 1.5}, 400),
        ({"tool_choice": "auto"}, 400),
        ({"tool_choice": "REQUIRED"}, 400),
        ({"max_tokens": -1}, 400),
    ],
)
async def test_what_the_real_one_refuses_is_refused(fields: dict[str, Any], status: int) -> None:
    async with simulator() as client:
        answer = await ask(client, **fields)
    assert answer.status_code == status
    assert set(answer.json()) == {"id", "message"}


async def test_embeddings_come_in_every_type_asked_for() -> None:
    body = {
        "model": "e",
        "texts": ["a", "b"],
        "input_type": "search_query",
        "embedding_types": ["float", "int8", "base64"],
        "output_dimension": 256,
    }
    async with simulator() as client:
        answer = await client.post("/v2/embed", body, HEADERS)
        without = await client.post("/v2/embed", {"model": "e", "texts": ["a"]}, HEADERS)
    found = answer.json()
    assert found["response_type"] == "embeddings_by_type"
    assert {kind: len(vectors) for kind, vectors in found["embeddings"].items()} == {
        "float": 2,
        "int8": 2,
        "base64": 2,
    }
    assert found["meta"]["billed_units"]["input_tokens"] == 2
    assert without.status_code == 400
