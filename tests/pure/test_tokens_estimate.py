"""Tokens before anyone counted: the ceiling holds for every text, the estimate learns what is hidden."""

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from breakwater_gateway.pricing.tokens import (
    AUDIO_LEAST,
    CONTEXT_MAX,
    DOCUMENT_LEAST,
    ELSEWHERE,
    HIDDEN_OF_TOOLS,
    IMAGE,
    LINES_MAX,
    Estimator,
    Size,
    measure,
    tokenizer,
)

PAYLOAD = base64.b64encode(b"p" * 30_000).decode()
URI = f"data:image/png;base64,{PAYLOAD}"


def body(*parts: object, **more: object) -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": list(parts)}], **more}).encode()


@given(st.text(max_size=300), st.integers(1, 20), st.booleans())
def test_the_ceiling_holds_every_byte_of_text_and_sixteen_a_message(
    text: str, messages: int, ascii_only: bool
) -> None:
    request = {"messages": [{"role": "user", "content": text}] * messages}
    data = json.dumps(request, ensure_ascii=ascii_only).encode("utf-8", "replace")
    said = len(text.encode("utf-8", "replace"))
    assert measure(data).upper() >= messages * (said + 16)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"image":',
        b'["image"]',
        b"\xff image",
        b"[" * 100_000 + b"image",
    ],
)
def test_a_body_that_is_no_request_is_measured_all_the_same(data: bytes) -> None:
    assert measure(data).upper() >= len(data)


@pytest.mark.parametrize(
    ("data", "tokens"),
    [
        (body({"type": "image_url", "image_url": {"url": URI}}), IMAGE),
        (body({"type": "input_image", "image_url": URI}), IMAGE),
        (
            body(
                {
                    "type": "image",
                    "source": {"type": "base64", "media_type": "image/png", "data": PAYLOAD},
                }
            ),
            IMAGE,
        ),
        (
            json.dumps(
                {
                    "contents": [
                        {"parts": [{"inlineData": {"mimeType": "image/png", "data": PAYLOAD}}]}
                    ]
                }
            ).encode(),
            IMAGE,
        ),
        (
            body({"image": {"format": "png", "source": {"bytes": PAYLOAD}}}),
            IMAGE,
        ),
        (
            body({"type": "input_audio", "input_audio": {"format": "mp3", "data": PAYLOAD}}),
            30_000 // 32 + AUDIO_LEAST,
        ),
        (
            body({"type": "file", "file": {"filename": "a.pdf", "file_data": PAYLOAD}}),
            240_000 + DOCUMENT_LEAST,
        ),
        (
            body(
                {
                    "type": "tool_result",
                    "content": [
                        {
                            "type": "image",
                            "source": {
                                "type": "base64",
                                "media_type": "image/png",
                                "data": PAYLOAD,
                            },
                        }
                    ],
                }
            ),
            IMAGE,
        ),
    ],
)
def test_media_cost_what_the_table_says_instead_of_their_bytes(data: bytes, tokens: int) -> None:
    size = measure(data)
    assert abs(size.media_tokens - tokens) <= 1
    assert size.text_bytes < 300
    assert not size.open_ended


@pytest.mark.parametrize(
    "part",
    [
        {"type": "file", "file": {"file_id": "file-1"}},
        {"type": "document", "source": {"type": "url", "url": "https://example.com/a.pdf"}},
        {"fileData": {"fileUri": "gs://a/b", "mimeType": "video/mp4"}},
    ],
)
def test_a_file_that_is_elsewhere_may_be_long(part: object) -> None:
    assert measure(body(part)).upper() >= ELSEWHERE
    assert measure(body(part)).upper(128_000) == 128_000


@pytest.mark.parametrize(
    "data",
    [
        body(
            {"type": "tool_use", "name": "f", "input": {"type": "image", "source": {"data": URI}}}
        ),
        body({"type": "text", "text": URI}),
        body({"functionCall": {"name": "f", "args": {"inlineData": {"data": PAYLOAD}}}}),
        body(
            tools=[
                {
                    "type": "function",
                    "function": {"name": "f", "parameters": {"type": "image", "data": PAYLOAD}},
                }
            ]
        ),
    ],
)
def test_text_that_is_dressed_as_media_counts_byte_by_byte(data: bytes) -> None:
    assert measure(data).upper() >= len(PAYLOAD)


def test_a_picture_whose_name_is_escaped_is_still_seen() -> None:
    data = body({"type": "image_url", "image_url": {"url": "https://example.com/a.png"}})
    hidden = data.replace(b"image_url", rb"\u0069mage_url")
    assert measure(hidden) == Size(len(hidden), IMAGE)


@pytest.mark.parametrize(
    "more",
    [
        {"previous_response_id": "resp_1"},
        {"conversation": "conv_1"},
        {"cachedContent": "cachedContents/1"},
        {"prompt": {"id": "pmpt_1"}},
        {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
        {"tools": [{"type": "file_search", "vector_store_ids": ["vs_1"]}]},
        {"tools": [{"googleSearch": {}}]},
        {"tools": [{"urlContext": {}}]},
        {"web_search_options": {}, "mcp_servers": [{"url": "https://example.com"}]},
    ],
)
def test_what_brings_in_text_from_elsewhere_has_no_ceiling_but_the_context(
    more: dict[str, object],
) -> None:
    size = measure(body({"type": "text", "text": "hi"}, **more))
    assert size.open_ended
    assert size.upper() == CONTEXT_MAX
    assert size.upper(8_192) == 8_192


@pytest.mark.parametrize(
    "tool",
    [
        {"type": "function", "function": {"name": "search", "parameters": {}}},
        {"name": "image_context", "input_schema": {"type": "object"}},
        {"functionDeclarations": [{"name": "googleSearch"}]},
        {"toolSpec": {"name": "file_search", "inputSchema": {"json": {}}}},
        {"type": "custom", "name": "web_search"},
    ],
)
def test_a_tool_of_the_caller_s_own_is_no_open_end(tool: dict[str, object]) -> None:
    size = measure(body({"type": "text", "text": "an image of a file"}, tools=[tool]))
    assert not size.open_ended
    assert size.tools
    assert size.upper() == size.text_bytes + HIDDEN_OF_TOOLS


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=20),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(
                    ["type", "image", "source", "data", "url", "content", "input", "file", "text"]
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=30,
    )
)
def test_no_shape_of_a_body_is_too_odd_to_measure(content: object) -> None:
    size = measure(json.dumps({"messages": content, "tools": content, "input": content}).encode())
    assert size.text_bytes >= 0
    assert size.upper(1_000_000_000) > 0


# ---------------------------------------------------------------- learning


def test_before_anything_is_learned_four_bytes_are_a_token() -> None:
    assert Estimator().estimate("m", Size(4000)) == 1000
    assert Estimator().estimate("m", Size(0)) == 1
    assert Estimator().estimate("m", Size(400, media_tokens=7)) == 107


def test_a_hidden_prompt_is_learned_apart_for_requests_with_tools() -> None:
    estimator = Estimator()
    for length in range(400, 4400, 100):
        estimator.learn("m", Size(length), length // 4 + 10)
        estimator.learn("m", Size(length, tools=True), length // 4 + 600)
    assert abs(estimator.estimate("m", Size(2000)) - 510) < 10
    assert abs(estimator.estimate("m", Size(2000, tools=True)) - 1100) < 20
    assert estimator.estimate("other", Size(2000)) == 500


def test_a_model_that_changes_is_learned_anew() -> None:
    estimator = Estimator()
    for _ in range(300):
        estimator.learn("m", Size(1000), 200)
    for _ in range(300):
        estimator.learn("m", Size(1000), 400)
    assert abs(estimator.estimate("m", Size(1000)) - 400) < 5


def test_a_margin_covers_what_scatters() -> None:
    estimator = Estimator()
    for number in range(400):
        estimator.learn("m", Size(1000), 200 + (number * 37) % 100)
    middle = estimator.estimate("m", Size(1000))
    assert 235 < middle < 265
    assert estimator.estimate("m", Size(1000), margin=2.0) > 275


def test_media_and_open_ends_teach_nothing() -> None:
    estimator = Estimator()
    estimator.learn("m", Size(1000, media_tokens=5), 9_000)
    estimator.learn("m", Size(1000, open_ended=True), 9_000)
    estimator.learn("m", Size(1000), 0)
    assert estimator.estimate("m", Size(1000)) == 250


def test_the_least_recently_taught_model_is_forgotten_first() -> None:
    estimator = Estimator()
    estimator.learn("first", Size(1000), 900)
    for number in range(LINES_MAX):
        estimator.learn(f"m{number}", Size(1000), 900)
    assert estimator.estimate("first", Size(1000)) == 250
    assert estimator.estimate("m0", Size(1000)) > 800


def test_one_call_that_counts_next_to_nothing_does_not_swell_all_others() -> None:
    estimator = Estimator()
    for _ in range(20):
        estimator.learn("m", Size(40_000), 10_000)
    estimator.learn("m", Size(40_000), 1)
    assert estimator.estimate("m", Size(40_000), margin=2.0) < 12_000


@given(
    st.lists(st.tuples(st.integers(0, 10**7), st.integers(0, 10**7)), max_size=40),
    st.integers(0, 10**7),
    st.floats(0, 4),
)
def test_no_history_makes_an_estimate_that_is_no_count(
    calls: list[tuple[int, int]], length: int, margin: float
) -> None:
    estimator = Estimator()
    for size, tokens in calls:
        estimator.learn("m", Size(size), tokens)
    assert 1 <= estimator.estimate("m", Size(length), margin=margin) < 10**10


def test_a_tokenizer_s_counts_can_take_the_place_of_bytes() -> None:
    estimator = Estimator(prior=1.0)
    assert estimator.estimate("m", Size(4000), length=900) == 900
    for count in range(100, 1000, 20):
        estimator.learn("m", Size(0), count + 300, length=count)
    assert abs(estimator.estimate("m", Size(4000), length=500) - 800) < 40


def test_the_optional_tokenizer_is_there_or_is_not() -> None:
    count = tokenizer()
    if count is not None:
        assert count("hello world") == 2
        assert count("\ud800") >= 1
