"""What a caller gets of what its provider left unsaid: a time, and a last word."""

import json
from typing import Any

import pytest
from msgspec import Raw

from breakwater_gateway.config.model import Wire
from breakwater_gateway.worker.exchange import Asked, Exchange, Whole, open_exchange
from breakwater_protocol import failures as f

NOW = 1_700_000_000
ASKED = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hello"}]}
GEMINI = {
    "candidates": [
        {
            "content": {"role": "model", "parts": [{"text": "hi"}]},
            "finishReason": "STOP",
            "index": 0,
        }
    ],
    "usageMetadata": {"promptTokenCount": 1, "candidatesTokenCount": 1, "totalTokenCount": 2},
}
CLAUDE: list[dict[str, Any]] = [
    {"type": "message_start", "message": {"id": "x", "role": "assistant", "content": []}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hi"}},
    {"type": "content_block_stop", "index": 0},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 1}},
    {"type": "message_stop"},
]


def opened(api: str, wire: Wire, *, stream: bool = False) -> Exchange:
    body = {"model": "m", "input": "hello"} if api == "responses" else ASKED
    found = open_exchange(
        Asked(
            api=api,
            stream=stream,
            usage_wanted=False,
            body=Raw(json.dumps(body).encode()),
            model="m",
            wire=wire,
            provider=wire,
            provider_model="m",
            quirks={},
            limit=1 << 20,
            now=NOW,
        )
    )
    assert not isinstance(found, f.Failure), found
    return found


@pytest.mark.parametrize(("api", "name"), [("chat", "created"), ("responses", "created_at")])
def test_an_answer_without_a_time_was_made_now(api: str, name: str) -> None:
    answer = opened(api, "gemini").answer(json.dumps(GEMINI).encode())
    assert isinstance(answer, Whole)
    assert json.loads(answer.body)[name] == NOW
    exchange = opened(api, "gemini", stream=True)
    read = exchange.feed(b"data: " + json.dumps(GEMINI).encode() + b"\n\n")
    told = [json.loads(line) for line in read.lines]
    assert {each.get("response", each).get(name, NOW) for each in told} == {NOW}


@pytest.mark.parametrize("said", [5, 6])
def test_a_whole_stream_always_has_its_last_word_once(said: int) -> None:
    exchange = opened("messages", "anthropic", stream=True)
    lines: list[bytes] = []
    for event in CLAUDE[:said]:
        name = event["type"]
        lines += exchange.feed(f"event: {name}\ndata: {json.dumps(event)}\n\n".encode()).lines
    if said < len(CLAUDE):
        lines += exchange.end().lines
    kinds = [json.loads(line)["type"] for line in lines]
    assert kinds == [event["type"] for event in CLAUDE]


def test_a_stream_that_breaks_off_has_no_last_word() -> None:
    exchange = opened("messages", "anthropic", stream=True)
    for event in CLAUDE[:3]:
        exchange.feed(f"data: {json.dumps(event)}\n\n".encode())
    assert exchange.end().lines == []
