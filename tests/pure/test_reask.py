"""The second question after a tool call that could not be made, in each caller's dialect."""

import json
from typing import Any

import pytest

from breakwater_gateway.router.reask import SCHEMA_MAX, reask
from breakwater_gateway.worker.wire.dialects import caller_dialect
from breakwater_protocol import failures as f

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
FAILURE = f.MalformedToolCall("bad", tool="weather", fault="byte 3", written='{"city": Paris')
BODIES: dict[str, dict[str, Any]] = {
    "chat": {
        "messages": [{"role": "user", "content": "hi"}],
        "tools": [{"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}],
    },
    "messages": {
        "max_tokens": 9,
        "messages": [{"role": "user", "content": "hi"}],
        "tools": [{"name": "weather", "input_schema": SCHEMA}],
    },
    "responses": {
        "input": "hi",
        "tools": [{"type": "function", "name": "weather", "parameters": SCHEMA}],
    },
    "generate": {
        "contents": [{"role": "user", "parts": [{"text": "hi"}]}],
        "tools": [{"functionDeclarations": [{"name": "weather", "parameters": SCHEMA}]}],
    },
}


def asked(api: str, body: dict[str, Any]) -> bytes:
    found = reask(json.dumps({"model": "m", **body}).encode(), api, FAILURE)
    assert found is not None
    return found


@pytest.mark.parametrize("api", BODIES)
def test_it_says_what_was_wrong_and_shows_the_schema(api: str) -> None:
    found = asked(api, BODIES[api])
    # The dialect's own reader takes it, and the last words are ours.
    last = caller_dialect(api).decode_request(found).turns[-1]
    text = "".join(getattr(part, "text", "") for part in last.parts)
    assert last.role == "user"
    for said in ("weather", "byte 3", '{"city": Paris', json.dumps(SCHEMA)):
        assert said in text
    before = json.loads(json.dumps(BODIES[api]))
    after = json.loads(found)
    assert after["tools"] == before["tools"]


def test_turns_that_alternate_go_on_alternating() -> None:
    result = {"type": "tool_result", "tool_use_id": "c", "content": "x"}
    body = {**BODIES["messages"], "messages": [{"role": "user", "content": [result]}]}
    (turn,) = json.loads(asked("messages", body))["messages"]
    assert turn["content"][0] == result
    assert turn["content"][1]["type"] == "text"
    prefilled = [*body["messages"], {"role": "assistant", "content": "Well"}]
    turns = json.loads(asked("messages", {**body, "messages": prefilled}))["messages"]
    assert [t["role"] for t in turns] == ["user", "assistant", "user"]


def test_a_schema_that_is_too_long_or_unknown_is_left_out() -> None:
    long = {**SCHEMA, "description": "x" * SCHEMA_MAX}
    tools = [{"type": "function", "function": {"name": "weather", "parameters": long}}]
    for body in ({**BODIES["chat"], "tools": tools}, {**BODIES["chat"], "tools": []}):
        turn = json.loads(asked("chat", body))["messages"][-1]
        assert "schema" not in turn["content"]
        assert turn["content"].endswith("arguments that are one JSON object.")


@pytest.mark.parametrize("api", [*BODIES, "embeddings"])
@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"messages":1,"input":1,"contents":1}'])
def test_what_is_no_conversation_is_not_asked_again(body: bytes, api: str) -> None:
    assert reask(body, api, FAILURE) is None
