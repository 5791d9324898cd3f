"""A cut stream gone on with by another deployment is one stream to the caller, whatever dialect it speaks."""

import json

import msgspec
import pytest

from breakwater_gateway.config.model import Wire
from breakwater_gateway.worker.exchange import Asked, Exchange, open_exchange
from breakwater_gateway.worker.wire import neutral
from breakwater_gateway.worker.wire.dialects import provider_dialect
from breakwater_protocol import failures as f

BODIES: dict[str, dict[str, object]] = {
    "chat": {"model": "m", "stream": True, "messages": [{"role": "user", "content": "Count"}]},
    "messages": {
        "model": "m",
        "stream": True,
        "max_tokens": 50,
        "messages": [{"role": "user", "content": "Count"}],
    },
    "responses": {"model": "m", "stream": True, "input": "Count"},
    "generate": {
        "model": "m",
        "stream": True,
        "contents": [{"role": "user", "parts": [{"text": "Count"}]}],
    },
}
OWN: dict[str, Wire] = {
    "chat": "openai",
    "messages": "anthropic",
    "responses": "responses",
    "generate": "gemini",
}


def chunk(delta: dict[str, object], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return b"data: " + json.dumps({"id": "c", "choices": [choice]}).encode() + b"\n\n"


def anthropic(type_: str, **fields: object) -> bytes:
    return f"event: {type_}\ndata: {json.dumps({'type': type_, **fields})}\n\n".encode()


SECOND: dict[Wire, list[bytes]] = {
    "openai": [
        chunk({"role": "assistant", "content": ""}),
        chunk({"content": "three."}),
        chunk({}, "stop"),
        b"data: [DONE]\n\n",
    ],
    "anthropic": [
        anthropic(
            "message_start",
            message={"id": "x", "role": "assistant", "content": [], "usage": {"input_tokens": 9}},
        ),
        anthropic("content_block_start", index=0, content_block={"type": "text", "text": ""}),
        anthropic("content_block_delta", index=0, delta={"type": "text_delta", "text": "three."}),
        anthropic("content_block_stop", index=0),
        anthropic("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 2}),
        anthropic("message_stop"),
    ],
}


def opened(
    api: str, wire: Wire, continues: bytes = b"", body: object = None
) -> Exchange | f.Failure:
    return open_exchange(
        Asked(
            api=api,
            stream=True,
            usage_wanted=True,
            body=msgspec.Raw(json.dumps(body or BODIES[api]).encode()),
            model="m",
            wire=wire,
            provider="p",
            provider_model="second-model",
            quirks={},
            limit=1 << 20,
            continues=continues,
        )
    )


def exchange(api: str, wire: Wire, continues: bytes = b"") -> Exchange:
    found = opened(api, wire, continues)
    assert not isinstance(found, f.Failure), found
    return found


def lines_of(found: Exchange, pieces: list[bytes]) -> list[bytes]:
    lines: list[bytes] = []
    for piece in pieces:
        read = found.feed(piece)
        assert read.failure is None
        lines += read.lines
    return lines


def said(event: neutral.StreamEvent) -> str:
    match event:
        case neutral.Grew(text=text) | neutral.PartBegan(part=neutral.Text(text=text)):
            return text
        case _:
            return ""


@pytest.mark.parametrize("second", ["openai", "anthropic"])
@pytest.mark.parametrize("api", BODIES)
def test_the_two_halves_read_as_one_answer(api: str, second: Wire) -> None:
    first = lines_of(
        exchange(api, "openai"),
        [
            chunk({"role": "assistant", "content": ""}),
            chunk({"content": "One, "}),
            chunk({"content": "two, "}),
        ],
    )
    assert first
    going_on = exchange(api, second, b"\n".join(first))
    rest = lines_of(going_on, SECOND[second])
    assert going_on.whole
    asked = json.loads(going_on.call.body)
    assert "One, two, " in json.dumps(asked)

    decoder = provider_dialect(OWN[api], "").stream_decoder()
    events: list[neutral.StreamEvent] = []
    for line in first + rest:
        events += decoder.feed(b"data: " + line + b"\n\n")
    events += decoder.end()
    assert not [e for e in events if isinstance(e, neutral.Broke)]
    assert sum(isinstance(e, neutral.Began) for e in events) == 1
    text = "".join(map(said, events))
    assert text == "One, two, three."
    assert [e.finish for e in events if isinstance(e, neutral.Finished)] == ["stop"]


@pytest.mark.parametrize(
    "half",
    [
        [],
        [
            chunk(
                {
                    "tool_calls": [
                        {"index": 0, "id": "t", "function": {"name": "f", "arguments": "{"}}
                    ]
                }
            )
        ],
        [chunk({"content": "done"}), chunk({}, "stop")],
    ],
)
def test_what_is_no_half_of_a_text_is_not_gone_on_with(half: list[bytes]) -> None:
    lines = b"\n".join(piece.removeprefix(b"data: ").strip() for piece in half) or b"{}"
    assert isinstance(opened("chat", "openai", lines), f.Failure)


def test_a_tool_call_after_the_joint_follows_the_text() -> None:
    first = lines_of(exchange("chat", "openai"), [chunk({"content": "One, "})])
    going_on = exchange("chat", "openai", b"\n".join(first))
    call = {"index": 0, "id": "t", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    rest = lines_of(
        going_on, [chunk({"tool_calls": [call]}), chunk({}, "tool_calls"), b"data: [DONE]\n\n"]
    )
    assert any(b'"tool_calls"' in line for line in rest)


RESPONSES_HALF: list[dict[str, object]] = [
    {"type": "response.created", "response": {"id": "resp_1", "model": "x", "created_at": 7}},
    {
        "type": "response.output_item.added",
        "output_index": 0,
        "item": {"id": "msg_1", "type": "message", "role": "assistant", "content": []},
    },
    {
        "type": "response.content_part.added",
        "item_id": "msg_1",
        "output_index": 0,
        "content_index": 0,
        "part": {"type": "output_text", "text": ""},
    },
    {
        "type": "response.output_text.delta",
        "item_id": "msg_1",
        "output_index": 0,
        "content_index": 0,
        "delta": "One, ",
    },
]


def test_the_second_half_goes_on_under_the_ids_of_the_first() -> None:
    half = b"\n".join(
        json.dumps({**event, "sequence_number": n}).encode()
        for n, event in enumerate(RESPONSES_HALF)
    )
    rest = [
        json.loads(line)
        for line in lines_of(exchange("responses", "openai", half), SECOND["openai"])
    ]
    assert {event["item_id"] for event in rest if "item_id" in event} == {"msg_1"}
    whole = rest[-1]["response"]
    assert (rest[-1]["type"], whole["id"]) == ("response.completed", "resp_1")
    assert [item["id"] for item in whole["output"]] == ["msg_1"]
    assert whole["output"][0]["content"][0]["text"] == "One, three."


def test_an_answer_of_a_given_structure_is_not_gone_on_with() -> None:
    half = chunk({"content": "{"}).removeprefix(b"data: ").strip()
    body = {**BODIES["chat"], "response_format": {"type": "json_object"}}
    assert isinstance(opened("chat", "openai", half, body), f.Failure)
