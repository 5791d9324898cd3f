"""What a request needs, in every dialect, and what only looks like it."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from breakwater_gateway.router.needs import capabilities, input_tokens, output_tokens
from breakwater_protocol.chat import Asked, ChatRequest, EmbeddingsRequest, Message, NativeRequest

IMAGE = {"type": "image_url", "image_url": {"url": "https://x/y.png"}}


def chat(*parts: object, **fields: object) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": list(parts)}], **fields}


@pytest.mark.parametrize(
    ("body", "needs"),
    [
        (chat("image audio json tools schema"), ""),
        (chat(IMAGE), "vision"),
        (chat({"type": "input_audio", "input_audio": {"data": "AAAA"}}), "audio"),
        (chat(tools=[{"type": "function"}]), "tools"),
        (chat(tools=[]), ""),
        (chat(tools=None), ""),
        (chat(tools=[{"type": "function"}, IMAGE]), "tools"),
        (chat(response_format={"type": "json_object"}), "json"),
        (chat(response_format={"type": "json_schema", "json_schema": {}}), "json"),
        (chat(response_format={"type": "text"}), ""),
        (chat(modalities=["text", "audio"]), "audio"),
        # Only text that speaks of it.
        (chat({"type": "text", "text": json.dumps(chat(IMAGE, tools=[1]))}), ""),
        # A tool call's arguments are text.
        (
            {
                "messages": [
                    {"role": "assistant", "content": [{"type": "tool_use", "input": {"a": IMAGE}}]}
                ]
            },
            "",
        ),
        # Anthropic, also within a tool's result.
        ({"messages": [{"content": [{"type": "image", "source": {}}]}]}, "vision"),
        (
            {"messages": [{"content": [{"type": "tool_result", "content": [{"type": "image"}]}]}]},
            "vision",
        ),
        ({"messages": [], "output_format": {"type": "json_schema"}}, "json"),
        # Responses.
        ({"input": [{"content": [{"type": "input_image", "image_url": "x"}]}]}, "vision"),
        ({"input": "hi", "text": {"format": {"type": "json_schema"}}}, "json"),
        ({"input": "hi", "text": {"verbosity": "low"}}, ""),
        # Gemini.
        ({"contents": [{"parts": [{"inlineData": {"mimeType": "image/png"}}]}]}, "vision"),
        ({"contents": [{"parts": [{"file_data": {"mime_type": "audio/wav"}}]}]}, "audio"),
        ({"contents": [{"parts": [{"inlineData": {"mimeType": "video/mp4"}}]}]}, "vision"),
        ({"contents": [], "generationConfig": {"responseMimeType": "application/json"}}, "json"),
        ({"contents": [], "tools": [{"functionDeclarations": []}]}, "tools"),
        ({"input": 5, "messages": "image", "tools": "x"}, ""),
    ],
)
def test_what_a_body_needs(body: dict[str, Any], needs: str) -> None:
    for text in (json.dumps(body), json.dumps(body, indent=2)):
        assert capabilities(text.encode()) == set(needs.split())


@given(st.binary(max_size=60) | st.text('{}[]":,tolsimage', max_size=80).map(str.encode))
def test_what_is_no_body_needs_nothing_or_something_known(body: bytes) -> None:
    assert capabilities(body) <= {"vision", "audio", "tools", "json"}
    assert input_tokens(body) >= 1


def test_the_deepest_body_is_read_without_recursion() -> None:
    body = b'{"messages":' + b"[" * 100_000 + b'"image"' + b"]" * 100_000 + b"}"
    assert capabilities(body) == set()


def test_input_is_estimated_by_its_text_alone() -> None:
    assert input_tokens(b"x" * 4000) == 1000
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 400_000}}
    body = json.dumps(chat("y" * 40_000, picture)).encode()
    assert 10_000 <= input_tokens(body) < 10_200


USER = [Message("user")]


@pytest.mark.parametrize(
    ("asked", "body", "limit"),
    [
        (ChatRequest("m", USER), b'{"max_tokens": 3}', None),
        (ChatRequest("m", USER, max_tokens=5), b"", 5),
        (ChatRequest("m", USER, max_tokens=5, max_completion_tokens=4), b"", 4),
        (EmbeddingsRequest("m", "x"), b"", 0),
        (NativeRequest("m"), b'{"max_tokens": 64, "messages": []}', 64),
        (NativeRequest("m"), b'{"max_output_tokens":65}', 65),
        (NativeRequest("m"), b'{"generationConfig": {"maxOutputTokens" : 66}}', 66),
        (NativeRequest("m"), b'{"x": "\\"max_tokens\\": 7"}', None),
        (NativeRequest("m"), b"{}", None),
    ],
)
def test_the_most_output_that_is_asked_for(asked: Asked, body: bytes, limit: int | None) -> None:
    assert output_tokens(asked, body) == limit
