"""Whatever JSON comes, a dialect reads it or words an error: it never breaks."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from breakwater_gateway.simulator.content import compose
from breakwater_gateway.simulator.dialects import DIALECTS
from breakwater_gateway.simulator.dialects.dialect import Ask, Route
from breakwater_gateway.simulator.refusals import ApiError
from breakwater_gateway.simulator.script import Script
from breakwater_gateway.simulator.turns import Sampling

TOOL = {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "string"}}}}
SCHEMA: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
CHAT: dict[str, Any] = {
    "model": "m",
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "a"}]},
        {"role": "assistant", "tool_calls": [{"id": "abcdefghi", "function": {"name": "f"}}]},
        {"role": "tool", "tool_call_id": "abcdefghi", "content": "x"},
    ],
    "tools": [{"type": "function", "function": TOOL}],
    "tool_choice": "auto",
    "stop": ["x"],
    "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}},
}
BODIES: dict[str, dict[str, Any]] = {
    "openai": CHAT,
    "mistral": CHAT,
    "azure": CHAT,
    "cohere": {
        **{name: CHAT[name] for name in ("model", "messages", "tools")},
        "stop_sequences": ["x"],
        "tool_choice": "REQUIRED",
        "response_format": {"type": "json_object", "json_schema": SCHEMA},
    },
    "ollama": {
        "model": "m",
        "messages": [
            {"role": "user", "content": "a"},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"function": {"name": "f", "arguments": {}}}],
            },
            {"role": "tool", "content": "x"},
        ],
        "tools": CHAT["tools"],
        "options": {"num_predict": 5, "stop": ["x"]},
        "format": SCHEMA,
    },
    "responses": {
        "model": "m",
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "x"},
        ],
        "tools": [{"type": "function", **TOOL}],
        "tool_choice": {"type": "function", "name": "f"},
        "text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}},
    },
    "anthropic": {
        "model": "m",
        "max_tokens": 5000,
        "system": [{"type": "text", "text": "s"}],
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f"}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t"}]},
        ],
        "tools": [{"name": "f", "input_schema": SCHEMA}],
        "tool_choice": {"type": "auto"},
        "thinking": {"type": "enabled", "budget_tokens": 2000},
        "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}},
        "stop_sequences": ["x"],
    },
    "gemini": {
        "contents": [
            {"role": "user", "parts": [{"text": "a"}]},
            {"role": "model", "parts": [{"functionCall": {"name": "f", "args": {}}}]},
            {"role": "user", "parts": [{"functionResponse": {"name": "f", "response": {}}}]},
        ],
        "systemInstruction": {"parts": [{"text": "s"}]},
        "tools": [{"functionDeclarations": [TOOL]}],
        "toolConfig": {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["f"]}},
        "generationConfig": {
            "candidateCount": 1,
            "stopSequences": ["x"],
            "responseMimeType": "application/json",
            "responseSchema": {"type": "OBJECT", "properties": {}},
        },
    },
}
BODIES["vertex"] = BODIES["gemini"]
EMBEDDINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "openai": ("", {"model": "m", "input": ["a"], "dimensions": 5}),
    "mistral": ("", {"model": "m", "input": ["a"]}),
    "cohere": (
        "",
        {"model": "m", "texts": ["a"], "input_type": "x", "embedding_types": ["float"]},
    ),
    "ollama": ("", {"model": "m", "input": ["a"], "dimensions": 5}),
    "gemini": (
        "batchEmbedContents",
        {"requests": [{"content": {"parts": [{"text": "a"}]}, "outputDimensionality": 5}]},
    ),
    "vertex": (
        "predict",
        {"instances": [{"content": "a"}], "parameters": {"outputDimensionality": 5}},
    ),
}
JUNK = st.recursive(
    st.sampled_from([None, True, 0, -1, 1.5, "", "x", "user", "function", "auto"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["type", "role", "content", "name"]), inner, max_size=2)
    ),
    max_leaves=4,
)


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:  # noqa: ANN401 - JSON
    """The path of everything in a JSON value."""
    members = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    found = [at] if at else []
    for name, member in members:
        found += places(member, (*at, name))
    return found


def replaced(value: Any, at: tuple[Any, ...], junk: Any) -> Any:  # noqa: ANN401 - JSON
    if not at:
        return junk
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[at[0]] = replaced(value[at[0]], at[1:], junk)
    return copy


def ask(name: str, raw: dict[str, Any], action: str = "") -> Ask:
    query = {"alt": "sse"}
    return Ask(raw, "m", Route("", name, "chat", model="m", action=action), query, Script())


def answered(name: str, raw: dict[str, Any]) -> int:
    """The status; the answer is made, whole and streamed."""
    dialect, script = DIALECTS[name], Script(tool_calls="always", parallel_calls=2)
    try:
        turn = dialect.read(ask(name, raw))
    except ApiError as error:
        assert error.body()  # noqa: PT017 - most bodies are refused, not all
        return error.status
    for manners in (script, Script(tokens=2)):
        choices = compose(turn, manners, chance=1, seed=0)
        sampling = Sampling(1, 1_700_000_000)
        assert dialect.answer(turn, choices, manners, sampling)
        assert list(dialect.events(turn, choices, manners, sampling))
    return 200


def embedded(name: str, raw: dict[str, Any], action: str) -> int:
    dialect = DIALECTS[name]
    try:
        asked = dialect.read_embeddings(ask(name, raw, action))
    except ApiError as error:
        return error.status
    assert dialect.embeddings(asked, Script(), seed=0)
    return 200


@pytest.mark.parametrize("name", BODIES)
def test_the_bodies_themselves_are_fine(name: str) -> None:
    turn = DIALECTS[name].read(ask(name, BODIES[name]))
    assert turn.answered
    assert [tool.name for tool in turn.tools] == ["f"]


@pytest.mark.parametrize("name", BODIES)
@given(data=st.data(), junk=JUNK)
def test_a_request_with_anything_anywhere_is_read_or_refused(
    name: str, data: st.DataObject, junk: object
) -> None:
    at = data.draw(st.sampled_from(places(BODIES[name])))
    raw = replaced(BODIES[name], at, junk)
    assert 200 <= answered(name, raw) < 500


@pytest.mark.parametrize("name", EMBEDDINGS)
@given(data=st.data(), junk=JUNK)
def test_a_request_for_embeddings_with_anything_anywhere_is_read_or_refused(
    name: str, data: st.DataObject, junk: object
) -> None:
    action, body = EMBEDDINGS[name]
    raw = replaced(body, data.draw(st.sampled_from(places(body))), junk)
    assert 200 <= embedded(name, raw, action) < 500
