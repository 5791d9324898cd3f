"""The parser of event streams: the standard's examples, a naive reference, and recorded streams."""

import itertools
import json
import lzma
import os
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from breakwater_gateway.worker.sse import Event, EventTooLarge, SseParser

LIMIT = 1 << 20


def whole(data: bytes, limit: int = LIMIT) -> list[Event]:
    return SseParser(limit).feed(data)


def cut(data: bytes, at: list[int]) -> list[Event]:
    parser = SseParser(LIMIT)
    edges = [0, *sorted(at), len(data)]
    return [
        event for begin, end in itertools.pairwise(edges) for event in parser.feed(data[begin:end])
    ]


def reference(data: bytes) -> list[Event]:
    """Section 9.2.6 word for word, on the whole stream."""
    data = data.removeprefix(b"\xef\xbb\xbf")
    lines = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")[:-1]
    events: list[Event] = []
    kind, buffer, seen = b"", b"", False
    for line in lines:
        if line == b"":
            if seen:
                name = kind.decode("utf-8", "replace") or "message"
                events.append(Event(name, buffer.removesuffix(b"\n")))
            kind, buffer, seen = b"", b"", False
        elif not line.startswith(b":"):
            name_, colon, value = line.partition(b":")
            value = value.removeprefix(b" ") if colon else b""
            if name_ == b"data":
                buffer, seen = buffer + value + b"\n", True
            elif name_ == b"event":
                kind = value
    return events


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b"data: hi\n\n", [("message", b"hi")]),
        (b"data:hi\r\n\r\n", [("message", b"hi")]),
        (b"data: hi\r\r", [("message", b"hi")]),
        (b"data:  two spaces\n\n", [("message", b" two spaces")]),
        (b"data: a\ndata: b\n\n", [("message", b"a\nb")]),
        (b"event: ping\ndata: {}\n\n", [("ping", b"{}")]),
        (b"event: ping\n\ndata: x\n\n", [("message", b"x")]),
        (b": a comment\n\ndata: x\n\n", [("message", b"x")]),
        (b": in between\ndata: x\n\n", [("message", b"x")]),
        (b"data\n\ndata\ndata\n\ndata:", [("message", b""), ("message", b"\n")]),
        (
            b"data: test\n\nid: 1\nretry: 5\nother: z\ndata: y\n\n",
            [("message", b"test"), ("message", b"y")],
        ),
        (b"\xef\xbb\xbfdata: x\n\n", [("message", b"x")]),
        (b"\xef\xbb\xbf\xef\xbb\xbfdata: x\n\n", []),
        (b"\n\n\ndata: x\n\n\n\n", [("message", b"x")]),
        (b"data : x\n\n", []),
        (b"data: x\n", []),
        (b"event: \xff\ndata: x\n\n", [("\N{REPLACEMENT CHARACTER}", b"x")]),
        (b"", []),
    ],
)
def test_streams_mean_what_the_standard_says(
    stream: bytes, expected: list[tuple[str, bytes]]
) -> None:
    assert [(event.event, event.data) for event in whole(stream)] == expected
    assert cut(stream, list(range(1, len(stream)))) == whole(stream)


PIECES = [
    b"data: ", b"data:", b"data", b"event: ", b"event", b"id: 1", b":", b" ", b"x", b"{}", b"\n", b"\r", b"\r\n",
    b"\n\n", b"data: y\n\n", b"data: y\r\n\r\n", b"\xef\xbb\xbf", "é".encode(), b"\xff", b"\x00", b"[DONE]",
]  # fmt: skip
streams = st.lists(st.sampled_from(PIECES) | st.binary(max_size=4), max_size=24).map(b"".join)


@given(stream=streams)
def test_it_equals_the_reference(stream: bytes) -> None:
    assert whole(stream) == reference(stream)


@given(stream=streams, at=st.lists(st.integers(0, 60), max_size=8))
def test_cuts_change_nothing(stream: bytes, at: list[int]) -> None:
    places = [place for place in at if place <= len(stream)]
    assert cut(stream, places) == whole(stream)
    assert cut(stream, list(range(1, len(stream)))) == whole(stream)


@given(stream=streams)
def test_pending_tells_whether_an_event_was_begun(stream: bytes) -> None:
    parser = SseParser(LIMIT)
    parser.feed(stream)
    pending = parser.pending
    assert len(parser.finish()) <= pending
    assert not parser.pending


@pytest.mark.parametrize("tail", [b"data: [DONE]", b"data: [DONE]\n", b"data: [DONE]\r\n"])
def test_a_tail_without_its_blank_line_is_given_at_the_end(tail: bytes) -> None:
    parser = SseParser(LIMIT)
    assert parser.feed(b"data: a\n\n" + tail) == [Event("message", b"a")]
    assert parser.pending
    assert parser.finish() == [Event("message", b"[DONE]")]


def test_a_clean_end_leaves_nothing() -> None:
    parser = SseParser(LIMIT)
    parser.feed(b"data: a\n\n")
    assert not parser.pending
    assert parser.finish() == []


@pytest.mark.parametrize(
    "stream",
    [
        b"data: " + b"x" * 100 + b"\n\n",
        b"data: 0123456789\n" * 20,
        b": " + b"x" * 100,
        b"x" * 100,
        b"data: ok\n\ndata: " + b"x" * 100,
    ],
)
@pytest.mark.parametrize("step", [1, 7, 1000])
def test_a_line_or_event_over_the_limit_is_refused(stream: bytes, step: int) -> None:
    parser = SseParser(64)

    def feed_all() -> None:
        for begin in range(0, len(stream), step):
            parser.feed(stream[begin : begin + step])

    with pytest.raises(EventTooLarge):
        feed_all()


def test_many_small_events_in_one_chunk_are_not_over_the_limit() -> None:
    assert len(whole(b"data: x\n\n" * 100, limit=64)) == 100


@given(chunks=st.lists(st.binary(max_size=40) | st.sampled_from(PIECES), max_size=40))
def test_no_bytes_raise_anything_but_too_large_nor_are_held_beyond_the_limit(
    chunks: list[bytes],
) -> None:
    parser = SseParser(32)
    for chunk in chunks:
        try:
            parser.feed(chunk)
        except EventTooLarge:
            return
        assert len(parser._line) <= 32
        assert len(parser._data) <= 32
        assert len(parser._event) <= 32


def recorded_streams(provider: str) -> list[bytes]:
    shared = Path(os.environ.get("BREAKWATER_SHARED", Path(__file__).parents[3] / "shared"))
    path = shared / "recordings" / f"{provider}.jsonl.xz"
    if not path.exists():
        pytest.skip(f"no recordings of {provider}: set BREAKWATER_SHARED to the folder above them")
    with lzma.open(path, "rt", encoding="utf-8") as rows:
        return [
            row["response"]["body"].encode()
            for row in map(json.loads, rows)
            if row["stream"]
            and row["api"] == "chat"
            and row["response"]["status"] == 200
            and row["response"]["body_kind"] == "text"
        ]


@pytest.mark.parametrize("provider", ["openai", "groq", "openrouter"])
def test_recorded_streams_are_the_same_however_they_are_cut(provider: str) -> None:
    streams = recorded_streams(provider)
    assert streams
    draw = random.Random(provider)
    for stream in draw.sample(streams, min(20, len(streams))):
        events = whole(stream)
        assert events
        assert all(isinstance(json.loads(e.data), dict) for e in events if e.data != b"[DONE]")
        assert cut(stream, list(range(1, len(stream)))) == events
        short = stream[:3000]
        expected = whole(short)
        for at in range(len(short)):
            assert cut(short, [at]) == expected
