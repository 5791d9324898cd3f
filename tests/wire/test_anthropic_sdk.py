"""Anthropic's own SDK reads what we write: answers, streams and errors."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from breakwater_gateway.worker.wire import anthropic as wire
from breakwater_gateway.worker.wire.neutral import (
    Answer,
    Began,
    Candidate,
    Done,
    Finished,
    Grew,
    PartBegan,
    PartEnded,
    StreamEvent,
    Text,
    Thinking,
    ToolCall,
    UsageKnown,
)
from breakwater_protocol import failures as f
from breakwater_protocol.chat import Usage

sdk: Any = pytest.importorskip("anthropic")
# The SDK moved from httpx to its successor.
http: Any = pytest.importorskip("httpx2" if hasattr(sdk._base_client, "httpx2") else "httpx")

Reply = Callable[[Any], Any]


def client(status: int, content_type: str, body: bytes, seen: list[bytes] | None = None) -> Any:  # noqa: ANN401 - the SDK need not be installed
    def reply(request: Any) -> Any:  # noqa: ANN401
        if seen is not None:
            seen.append(request.read())
        return http.Response(status, headers={"content-type": content_type}, content=body)

    transport = http.MockTransport(reply)
    return sdk.Anthropic(
        api_key="k",
        base_url="http://gateway.test",
        max_retries=0,
        http_client=http.Client(transport=transport),
    )


ASKED: dict[str, Any] = {
    "model": "main-model",
    "max_tokens": 100,
    "messages": [{"role": "user", "content": "a"}],
}

CALL = ToolCall(id="call_1", name="add", arguments='{"a":1}')
USED = Usage(10, 4, cache_read=6)


def test_a_translated_answer_is_a_message() -> None:
    answer = Answer(
        dialect="openai",
        id="chatcmpl-1",
        candidates=[Candidate([Thinking(text="hm"), Text(text="3"), CALL], "tool_calls")],
        usage=USED,
    )
    seen: list[bytes] = []
    body = wire.encode_answer(answer, model="main-model")
    message = client(200, "application/json", body, seen).messages.create(**ASKED)
    assert [block.type for block in message.content] == ["thinking", "text", "tool_use"]
    assert message.content[2].input == {"a": 1}
    assert message.stop_reason == "tool_use"
    assert (message.usage.input_tokens, message.usage.cache_read_input_tokens) == (4, 6)
    assert wire.decode_request(seen[0]).max_output == 100


def sse(lines: list[bytes]) -> bytes:
    named = ((msgspec.json.decode(line)["type"].encode(), line) for line in lines)
    return b"".join(b"event: %b\ndata: %b\n\n" % pair for pair in named)


STREAM: list[StreamEvent] = [
    Began("chatcmpl-1", "gpt-4o"),
    PartBegan(0, Thinking()),
    Grew(0, "hm"),
    PartBegan(1, Text(text="")),
    Grew(1, "Grö"),
    Grew(1, "ße"),
    PartBegan(2, ToolCall(id="call_1", name="add", arguments="")),
    Grew(2, '{"a"'),
    Grew(2, ":1}"),
    PartEnded(0),
    PartEnded(1),
    PartEnded(2),
    Finished("tool_calls"),
    UsageKnown(USED),
    Done(),
]


def test_a_translated_stream_adds_up_to_a_message() -> None:
    body = sse(wire.StreamEncoder(model="main-model", source="openai").feed(STREAM))
    with client(200, "text/event-stream", body).messages.stream(**ASKED) as stream:
        said = "".join(stream.text_stream)
        message = stream.get_final_message()
    assert said == "Größe"
    assert [block.type for block in message.content] == ["thinking", "text", "tool_use"]
    assert message.content[2].input == {"a": 1}
    assert message.stop_reason == "tool_use"
    assert (message.usage.input_tokens, message.usage.output_tokens) == (4, 4)


def test_a_broken_stream_raises_what_broke_it() -> None:
    lines = wire.StreamEncoder(model="m", source="openai").feed(STREAM[:6])
    lines.append(wire.encode_stream_error(f.Overloaded("too busy"), "req-1"))
    with (
        pytest.raises(sdk.APIStatusError, match="too busy"),
        client(200, "text/event-stream", sse(lines)).messages.stream(**ASKED) as stream,
    ):
        stream.get_final_message()


@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (f.InvalidRequest("wrong"), "BadRequestError"),
        (f.CallerUnauthenticated("who"), "AuthenticationError"),
        (f.UnknownModel("what"), "NotFoundError"),
        (f.BudgetExhausted("spent"), "RateLimitError"),
        (f.ServerError("broken"), "InternalServerError"),
    ],
)
def test_errors_have_the_sdks_classes(failure: f.Failure, error: str) -> None:
    body = wire.encode_error(failure, "req-1")
    with pytest.raises(getattr(sdk, error)) as raised:
        client(f.spec(failure).status, "application/json", body).messages.create(**ASKED)
    assert raised.value.body["error"]["message"] == failure.message
