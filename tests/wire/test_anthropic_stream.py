"""Anthropic's event streams, both ways. Streams are made by hand."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from breakwater_gateway.worker.wire import anthropic
from breakwater_gateway.worker.wire.neutral import (
    Began,
    Broke,
    Done,
    Finished,
    Grew,
    Native,
    PartBegan,
    PartEnded,
    Refusal,
    StreamEvent,
    Text,
    Thinking,
    ToolCall,
    UsageKnown,
)
from breakwater_protocol import failures as f
from breakwater_protocol.chat import Usage

Json = dict[str, Any]


def sse(*events: Json) -> bytes:
    lines = [f"event: {e['type']}\ndata: {msgspec.json.encode(e).decode()}\n\n" for e in events]
    return "".join(lines).encode()


START: Json = {
    "type": "message_start",
    "message": {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": 7, "cache_read_input_tokens": 2, "output_tokens": 1},
    },
}
PING: Json = {"type": "ping"}
STOP: Json = {"type": "message_stop"}


def ended(reason: str = "end_turn", **delta: object) -> Json:
    return {
        "type": "message_delta",
        "delta": {"stop_reason": reason, "stop_sequence": None} | delta,
        "usage": {"output_tokens": 5},
    }


def block(index: int, start: Json, *deltas: Json) -> list[Json]:
    return [
        {"type": "content_block_start", "index": index, "content_block": start},
        *({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": index},
    ]


def text(said: str) -> Json:
    return {"type": "text_delta", "text": said}


def arguments(said: str) -> Json:
    return {"type": "input_json_delta", "partial_json": said}


TEXT: Json = {"type": "text", "text": ""}
CALL: Json = {"type": "tool_use", "id": "toolu_1", "name": "add", "input": {}}
THINKING: Json = {"type": "thinking", "thinking": "", "signature": ""}
SEARCH: Json = {"type": "server_tool_use", "id": "srv_1", "name": "web_search", "input": {}}
FOUND: Json = {"type": "web_search_tool_result", "tool_use_id": "srv_1", "content": []}
CITED: Json = {"type": "citations_delta", "citation": {"type": "char_location", "é": "ß"}}

WHOLE: list[Json] = [
    START,
    PING,
    *block(
        0,
        THINKING,
        {"type": "thinking_delta", "thinking": "hm"},
        {"type": "signature_delta", "signature": "sig"},
    ),
    *block(1, TEXT, text("Größe: "), text("3"), CITED),
    PING,
    *block(2, SEARCH, arguments(""), arguments('{"q":'), arguments('"x"}')),
    *block(3, FOUND),
    *block(4, CALL, arguments('{"a":'), arguments("1}")),
    ended("tool_use", container={"id": "c"}),
    STOP,
]


def decode(data: bytes, *, ends: bool = True) -> list[StreamEvent]:
    decoder = anthropic.StreamDecoder()
    return decoder.feed(data) + (decoder.end() if ends else [])


def comparable(events: list[StreamEvent]) -> list[str]:
    """Raw compares by identity."""
    return [repr(msgspec.json.encode([type(event).__name__, event])) for event in events]


def test_a_stream_is_read_as_it_comes() -> None:
    events = decode(sse(*WHOLE))
    extra = events[0].extra if isinstance(events[0], Began) else {}
    assert set(extra) == {"usage"}
    finished = next(event for event in events if isinstance(event, Finished))
    assert set(finished.extra) == {"usage", "container"}
    cited = next(e for e in events if isinstance(e, Grew) and e.extra)
    search = next(e for e in events if isinstance(e, PartBegan) and e.index == 2)
    assert isinstance(search.part, Native)
    assert msgspec.json.decode(search.part.raw) == SEARCH | {"input": {"q": "x"}}
    found = next(e for e in events if isinstance(e, PartBegan) and e.index == 3)
    assert events == [
        Began("msg_1", "m", extra=extra),
        UsageKnown(Usage(9, 1, cache_read=2)),
        PartBegan(0, Thinking()),
        Grew(0, "hm"),
        Grew(0, signature="sig"),
        PartEnded(0),
        PartBegan(1, Text(text="")),
        Grew(1, "Größe: "),
        Grew(1, "3"),
        cited,
        PartEnded(1),
        search,
        PartEnded(2),
        found,
        PartEnded(3),
        PartBegan(4, ToolCall(id="toolu_1", name="add", arguments="")),
        Grew(4, '{"a":'),
        Grew(4, "1}"),
        PartEnded(4),
        UsageKnown(Usage(9, 5, cache_read=2)),
        Finished("tool_calls", "tool_use", extra=finished.extra),
        Done(),
    ]


def test_a_cut_at_any_byte_changes_nothing() -> None:
    data = sse(*WHOLE)
    whole = comparable(decode(data))
    for at in range(len(data)):
        decoder = anthropic.StreamDecoder()
        events = decoder.feed(data[:at]) + decoder.feed(data[at:]) + decoder.end()
        assert comparable(events) == whole


def test_byte_by_byte_is_the_same() -> None:
    data = sse(*WHOLE).replace(b"\n", b"\r\n")
    decoder = anthropic.StreamDecoder()
    events = [event for byte in data for event in decoder.feed(bytes([byte]))]
    assert comparable(events + decoder.end()) == comparable(decode(data))


def test_the_same_dialect_gets_the_same_stream() -> None:
    events = decode(sse(*WHOLE))
    encoder = anthropic.StreamEncoder(model="m", source="anthropic")
    written = [msgspec.json.decode(line) for line in encoder.feed(events)]
    merged = [*WHOLE[:13], *WHOLE[14:]]  # an empty fragment says nothing
    whole_search = merged.index(
        {"type": "content_block_delta", "index": 2, "delta": arguments('{"q":')}
    )
    merged[whole_search]["delta"] = arguments('{"q":"x"}')
    assert merged.pop(whole_search + 1)["delta"] == arguments('"x"}')
    assert written == [event for event in merged if event != PING]


def test_a_tool_without_parameters_has_an_empty_object() -> None:
    events = decode(sse(START, *block(0, CALL, arguments("")), ended(), STOP))
    assert [e.text for e in events if isinstance(e, Grew)] == ["{}"]


def test_arguments_in_the_start_of_a_block_are_not_lost() -> None:
    events = decode(sse(START, *block(0, CALL | {"input": {"a": 1}}), ended(), STOP))
    assert [e.text for e in events if isinstance(e, Grew)] == ['{"a":1}']


def test_a_text_that_was_never_opened_is_read() -> None:
    delta = {"type": "content_block_delta", "index": 0, "delta": text("hi")}
    events = decode(sse(START, delta, ended(), STOP))
    kinds = [type(event) for event in events]
    assert kinds[2:5] == [PartBegan, Grew, PartEnded]


def test_a_compaction_is_held_until_it_is_whole() -> None:
    start = {"type": "compaction", "content": None}
    stream = [START, *block(0, start, {"type": "compaction_delta", "content": "a summary"})]
    stream += [ended("compaction"), STOP]
    events = decode(sse(*stream))
    part = next(e.part for e in events if isinstance(e, PartBegan))
    assert isinstance(part, Native)
    assert msgspec.json.decode(part.raw) == {"type": "compaction", "content": "a summary"}
    encoder = anthropic.StreamEncoder(model="m", source="anthropic")
    assert [msgspec.json.decode(line) for line in encoder.feed(events)] == stream


OVERLOADED: Json = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (sse(OVERLOADED), f.Overloaded),
        (sse(START, OVERLOADED), f.Overloaded),
        (sse(START, *block(0, TEXT, text("a"))[:2], OVERLOADED, STOP), f.Overloaded),
        (sse(START) + b"data: <html>\n\n", f.MalformedAnswer),
        (sse(START) + b'data: {"type":"\xff"}\n\n', f.MalformedAnswer),
        (b'data: {"error":{"code":503,"status":"UNAVAILABLE"}}\n\n', f.Overloaded),
    ],
)
def test_a_failure_inside_the_stream_ends_it(data: bytes, kind: type[f.Failure]) -> None:
    events = decode(data)
    assert isinstance(events[-1], Broke)
    assert type(events[-1].failure) is kind
    assert sum(isinstance(e, PartBegan) for e in events) == sum(
        isinstance(e, PartEnded) for e in events
    )


@pytest.mark.parametrize("kept", range(len(WHOLE)))
def test_a_cut_stream_closes_its_parts_and_is_not_done(kept: int) -> None:
    events = decode(sse(*WHOLE[:kept]))
    assert Done() not in events
    assert sum(isinstance(e, PartBegan) for e in events) == sum(
        isinstance(e, PartEnded) for e in events
    )


def test_what_follows_the_end_is_nothing() -> None:
    data = sse(START, ended(), ended("max_tokens"), STOP, *WHOLE)
    finished = [event for event in decode(data) if isinstance(event, Finished)]
    assert [event.native for event in finished] == ["end_turn"]
    assert decode(data)[-1] == Done()


def test_events_framed_otherwise_are_read_too() -> None:
    decoder = anthropic.StreamDecoder()
    events = [out for event in WHOLE for out in decoder.event(msgspec.json.encode(event))]
    assert comparable(events) == comparable(decode(sse(*WHOLE)))


@given(st.lists(st.binary(max_size=40)), st.lists(st.integers(0, len(WHOLE) - 1), max_size=12))
def test_nothing_breaks_the_reader(junk: list[bytes], order: list[int]) -> None:
    for data in (
        b"".join(junk),
        b"data: " + b"\n\ndata: ".join(junk),
        sse(*(WHOLE[i] for i in order)),
    ):
        events = decode(data)
        began = [event for event in events if isinstance(event, Began)]
        assert len(began) <= 1
        lines = anthropic.StreamEncoder(model="m", source="anthropic").feed(events)
        for line in lines:
            assert b"\n" not in line
            msgspec.json.decode(line)


# ---------------------------------------------------------------- from other dialects


def encode(*events: StreamEvent) -> list[Json]:
    encoder = anthropic.StreamEncoder(model="main-model", source="openai")
    return [msgspec.json.decode(line) for event in events for line in encoder.feed([event])]


def story(events: list[Json]) -> list[str]:
    """One word an event: what a reader of the stream sees happen."""
    words = []
    for event in events:
        match event:
            case {"type": "content_block_start", "index": at, "content_block": {"type": kind}}:
                words.append(f"{at}:{kind}")
            case {"type": "content_block_delta", "index": at, "delta": delta}:
                said = next(value for name, value in delta.items() if name != "type")
                words.append(f"{at}+{said}")
            case {"type": "content_block_stop", "index": at}:
                words.append(f"{at}.")
            case {"type": "message_delta", "delta": {"stop_reason": reason}}:
                words.append(reason)
            case _:
                words.append(event["type"])
    return words


BEGAN = Began("chatcmpl-1", "gpt-4o", 1, {"service_tier": Raw(b'"x"')})
TOLD = UsageKnown(Usage(10, 4, cache_read=6, reasoning=1))


def called(index: int) -> PartBegan:
    return PartBegan(index, ToolCall(id=f"call_{index}", name="add", arguments=""))


@pytest.mark.parametrize(
    ("events", "words"),
    [
        (
            [
                PartBegan(0, Text(text="")),
                Grew(0, "a"),
                Grew(0, "b"),
                PartEnded(0),
                Finished("stop"),
            ],
            "0:text 0+a 0+b 0. end_turn",
        ),
        ([PartBegan(0, Text(text="")), PartEnded(0), Finished("stop")], "end_turn"),
        (
            # reasoning, text, and a tool, each open until the end
            [
                *(
                    PartBegan(0, Thinking()),
                    Grew(0, "hm"),
                    PartBegan(1, Text(text="")),
                    Grew(1, "a"),
                ),
                *(called(2), Grew(2, "{"), Grew(2, "}")),
                *(PartEnded(0), PartEnded(1), PartEnded(2), Finished("stop")),
            ],
            "0:thinking 0+hm 0. 1:text 1+a 1. 2:tool_use 2+{ 2+} 2. tool_use",
        ),
        (
            # calls that grow side by side come one after the other
            [
                *(called(0), called(1), Grew(0, "{"), Grew(1, "["), Grew(0, "}"), Grew(1, "]")),
                *(PartEnded(0), PartEnded(1), Finished("tool_calls")),
            ],
            "0:tool_use 0+{ 0+} 0. 1:tool_use 1+[ 1+] 1. tool_use",
        ),
        (
            # text between two thoughts opens a block again
            [
                *(
                    PartBegan(0, Thinking()),
                    Grew(0, "a"),
                    PartBegan(1, Text(text="")),
                    Grew(1, "b"),
                ),
                *(Grew(0, "c"), PartEnded(0), PartEnded(1), Finished("stop")),
            ],
            "0:thinking 0+a 0. 1:text 1+b 1. 2:thinking 2+c 2. end_turn",
        ),
        (
            # text behind an open call waits for it
            [
                *(called(0), Grew(0, "{"), PartBegan(1, Text(text="")), Grew(1, "a"), Grew(1, "b")),
                *(Grew(0, "}"), PartEnded(0), Grew(1, "c"), PartEnded(1), Finished("stop")),
            ],
            "0:tool_use 0+{ 0+} 0. 1:text 1+a 1+b 1+c 1. tool_use",
        ),
        (
            [called(0), Grew(0, "{}"), called(1), Grew(1, "{}"), Finished("tool_calls")],
            "0:tool_use 0+{} 0. 1:tool_use 1+{} 1. tool_use",
        ),
        (
            [PartBegan(0, Refusal(text="")), Grew(0, "no"), PartEnded(0), Finished("stop")],
            "0:text 0+no 0. refusal",
        ),
        (
            # of several candidates the first; of native parts and proofs none
            [
                *(PartBegan(0, Text(text=""), candidate=1), Grew(0, "z", candidate=1)),
                *(
                    PartBegan(0, Native(dialect="openai", raw=Raw(b"{}"))),
                    Grew(0, "z"),
                    PartEnded(0),
                ),
                *(PartBegan(1, Thinking(text="hm")), Grew(1, signature="theirs"), PartEnded(1)),
                *(Finished("length", candidate=0), Finished("stop", candidate=1)),
            ],
            "0:thinking 0+hm 0. max_tokens",
        ),
    ],
)
def test_streams_of_other_dialects_come_block_by_block(
    events: list[StreamEvent], words: str
) -> None:
    written = story(encode(BEGAN, *events, TOLD, Done()))
    assert written == ["message_start", *words.split(), "message_stop"]


def test_the_frame_of_a_stream_holds_model_and_usage() -> None:
    written = encode(BEGAN, Finished("stop", stop_sequence="x"), TOLD, Done())
    assert written[0]["message"] == {
        "id": "msg_chatcmpl-1",
        "type": "message",
        "role": "assistant",
        "model": "main-model",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": 0, "output_tokens": 0},
    }
    assert written[1] == {
        "type": "message_delta",
        "delta": {"stop_reason": "stop_sequence", "stop_sequence": "x"},
        "usage": {
            "input_tokens": 4,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 6,
            "output_tokens": 4,
            "output_tokens_details": {"thinking_tokens": 1},
        },
    }


def test_the_type_of_an_event_is_its_first_field() -> None:
    # The edge takes the event's name from there.
    encoder = anthropic.StreamEncoder(model="m", source="anthropic")
    lines = encoder.feed(decode(sse(*WHOLE)))
    assert all(line.startswith(b'{"type":"') for line in lines)
    assert anthropic.encode_stream_error(f.StreamCut()).startswith(b'{"type":"error"')


@pytest.mark.parametrize(
    "events", [[Broke(f.Overloaded("busy")), Done()], [Finished("error"), Done()]]
)
def test_a_failed_stream_does_not_end_like_a_good_one(events: list[StreamEvent]) -> None:
    written = encode(BEGAN, PartBegan(0, Text(text="a")), *events)
    assert story(written)[-1] == "error"
    assert "message_stop" not in story(written)


def test_what_waits_behind_a_call_is_bounded() -> None:
    encoder = anthropic.StreamEncoder(model="m", source="openai")
    encoder.feed([BEGAN, called(0), called(1)])
    lines: list[bytes] = []
    for _ in range(100):
        lines += encoder.feed([Grew(1, "x" * 100_000)])
    assert [msgspec.json.decode(line)["type"] for line in lines] == ["error"]
