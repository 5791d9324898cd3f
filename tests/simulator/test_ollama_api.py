"""Ollama's own API as the simulator speaks it."""

from typing import Any

import msgspec
import pytest
from tests.simulator.providers import Client, simulator

from breakwater_gateway.simulator.script import Fault, Script

pytestmark = pytest.mark.anyio

HELLO = [{"role": "user", "content": "hello there"}]
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


async def ask(client: Client, **fields: Any) -> Any:  # noqa: ANN401 - JSON
    return await client.post("/api/chat", {"model": "m", "messages": HELLO, **fields})


def lines(body: bytes) -> list[Any]:
    return [msgspec.json.decode(line) for line in body.splitlines()]


async def test_it_streams_lines_unless_told_not_to() -> None:
    async with simulator(Script(text="one two", thinking="hm", prompt_tokens=9)) as client:
        answer = await ask(client)
        whole = (await ask(client, stream=False)).json()
    assert answer.headers["content-type"] == "application/x-ndjson"
    found = lines(answer.content)
    assert [line["done"] for line in found] == [False, False, False, True]
    assert found[0]["message"]["thinking"] == "hm"
    assert all("prompt_eval_count" not in line for line in found[:-1])
    assert (found[-1]["prompt_eval_count"], found[-1]["eval_count"]) == (9, 3)
    assert (whole["message"]["content"], whole["done_reason"]) == ("one two", "stop")


async def test_arguments_are_objects_and_calls_have_no_ids() -> None:
    async with simulator(Script(tool_calls="always", tool_arguments='{"a": 1}')) as client:
        first, _ = lines((await ask(client, tools=[TOOL])).content)
    (call,) = first["message"]["tool_calls"]
    assert call == {"function": {"name": "weather", "arguments": {"a": 1}}}


async def test_errors_are_sentences() -> None:
    scripts = (
        Script(models=("m", "busy")),
        Script(model="busy", faults=(Fault("error_in_200", after_tokens=1),)),
    )
    async with simulator(*scripts) as client:
        missing = await ask(client, model="other")
        broken = await ask(client, model="busy")
        wrong = await ask(client, messages=[{"role": "user", "content": [{"type": "text"}]}])
    assert (missing.status_code, missing.json()) == (404, {"error": "model 'other' not found"})
    assert set(lines(broken.content)[-1]) == {"error"}
    assert (wrong.status_code, set(wrong.json())) == (400, {"error"})


async def test_embeddings_and_tags() -> None:
    async with simulator(Script(embedding_dimensions=8, models=("m",))) as client:
        answer = await client.post("/api/embed", {"model": "m", "input": ["a", "b"]})
        tags = await client.http.get("/api/tags")
    assert [len(vector) for vector in answer.json()["embeddings"]] == [8, 8]
    assert answer.json()["prompt_eval_count"] == 2
    assert [model["name"] for model in tags.json()["models"]] == ["m"]
