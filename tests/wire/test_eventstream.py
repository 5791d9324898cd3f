"""The binary event stream: frames as AWS writes them, at any cut, and never more held than the bound."""

import struct
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from breakwater_gateway.worker.wire.bedrock import eventstream as es


def raw_frame(headers: bytes, payload: bytes = b"") -> bytes:
    lengths = struct.pack(">II", 16 + len(headers) + len(payload), len(headers))
    frame = lengths + struct.pack(">I", crc32(lengths)) + headers + payload
    return frame + struct.pack(">I", crc32(frame))


def feed(*pieces: bytes, limit: int = 1 << 20) -> tuple[list[es.Frame], str]:
    parser = es.FrameParser(limit)
    return [frame for piece in pieces for frame in parser.feed(piece)], parser.error


def test_the_smallest_frame_is_the_documented_one() -> None:
    """Smithy, "Amazon Event Stream", test vector `empty_message`."""
    empty = bytes.fromhex("000000100000000005c248eb7d98c8ff")
    assert es.encode_frame({}, b"") == empty
    assert feed(empty) == ([es.Frame({}, b"")], "")


def test_a_payload_without_headers_is_the_documented_one() -> None:
    """Smithy, test vector `payload_no_headers`."""
    framed = bytes.fromhex("0000001d00000000fd528c5a7b27666f6f273a27626172277dc3653936")
    assert es.encode_frame({}, b"{'foo':'bar'}") == framed


def test_headers_of_every_type_are_read() -> None:
    block = (
        b"\x01t\x00"
        b"\x01f\x01"
        b"\x01b\x02\xff"
        b"\x01s\x03\x01\x00"
        b"\x01i\x04\x00\x00\xa0\x0c"
        b"\x01l\x05\x00\x00\x00\x00\x00\x00\x00\x2a"
        b"\x01y\x06\x00\x02\x00\x01"
        b"\x01x\x07\x00\x02hi"
        b"\x01z\x08\x00\x00\x00\x00\x00\x7a\x12\x00"
        b"\x01u\x090123456789abcdef"
    )
    frames, error = feed(raw_frame(block))
    assert not error
    assert frames[0].headers == {
        "t": True,
        "f": False,
        "b": -1,
        "s": 256,
        "i": 40972,
        "l": 42,
        "y": b"\x00\x01",
        "x": "hi",
        "z": 8_000_000,
        "u": b"0123456789abcdef",
    }


@pytest.mark.parametrize(
    "block",
    [
        b"\x00\x07\x00\x01a",  # no name
        b"\x01a\x0a",  # no such type
        b"\x01a\x07\x00\x05hi",  # a value past the end
        b"\x01a\x07\x00",  # half a length
        b"\x05a",  # a name past the end
        b"\x01a\x04\x00\x00",  # half an integer
        b"\x01\xff\x00",  # a name that is not UTF-8
        b"\x01a\x090123",  # a short UUID
    ],
)
def test_malformed_headers_are_an_error(block: bytes) -> None:
    assert feed(raw_frame(block)) == ([], "a frame of the stream has headers of no known form")


@pytest.mark.parametrize(
    ("total", "headers"), [(15, 0), (0, 0), (100, 85), (400_000, 131_073), (40, 4_000_000_000)]
)
def test_impossible_lengths_are_an_error_at_once(total: int, headers: int) -> None:
    lengths = struct.pack(">II", total, headers)
    frames, error = feed(lengths + struct.pack(">I", crc32(lengths)))
    assert (frames, error) == ([], "a frame of the stream has impossible lengths")


def test_a_frame_beyond_the_bound_is_refused_before_it_is_held() -> None:
    frame = es.encode_event("chunk", b"x" * 500)
    assert feed(frame, limit=400) == ([], "a frame of the stream exceeds 400 bytes")
    assert feed(frame[:12], limit=400)[1]


def test_what_is_no_event_stream_is_refused_after_twelve_bytes() -> None:
    parser = es.FrameParser()
    assert parser.feed(b"<!doctype h") == []
    assert not parser.error
    assert parser.feed(b"tml>") == []
    assert "not the event stream" in parser.error
    assert parser.feed(es.encode_event("messageStart", b"{}")) == []


def test_frames_before_a_broken_one_are_given_out() -> None:
    good = es.encode_event("messageStart", b"{}")
    bad = bytearray(good)
    bad[-6] ^= 1
    frames, error = feed(good + bytes(bad) + good)
    assert len(frames) == 1
    assert error == "a frame of the stream fails its checksum"


def test_the_writer_refuses_headers_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        es.encode_frame({"n" * 256: "v"}, b"")
    with pytest.raises(ValueError, match="does not fit"):
        es.encode_frame({"n": "v" * 40_000}, b"")


NAMES = st.text(min_size=1, max_size=20)
FRAMES = st.lists(
    st.tuples(st.dictionaries(NAMES, st.text(max_size=30), max_size=3), st.binary(max_size=60)),
    max_size=5,
)


@given(FRAMES, st.data())
def test_what_is_written_is_read_again_at_any_cut(
    written: list[tuple[dict[str, str], bytes]], data: st.DataObject
) -> None:
    body = b"".join(es.encode_frame(headers, payload) for headers, payload in written)
    at = data.draw(st.integers(0, len(body)))
    expected = [es.Frame(headers, payload) for headers, payload in written]
    assert feed(body[:at], body[at:]) == (expected, "")
    assert feed(*(body[i : i + 1] for i in range(len(body)))) == (expected, "")


@given(FRAMES.filter(bool), st.data())
def test_any_flipped_byte_is_noticed(
    written: list[tuple[dict[str, str], bytes]], data: st.DataObject
) -> None:
    body = bytearray(b"".join(es.encode_frame(h, p) for h, p in written))
    at = data.draw(st.integers(0, len(body) - 1))
    body[at] ^= data.draw(st.integers(1, 255))
    frames, error = feed(bytes(body))
    assert error
    assert len(frames) < len(written)


@given(st.lists(st.binary(max_size=40), max_size=8))
def test_no_bytes_break_the_parser(pieces: list[bytes]) -> None:
    whole, cut = es.FrameParser(64), es.FrameParser(64)
    found = [frame for piece in pieces for frame in cut.feed(piece)]
    assert found == whole.feed(b"".join(pieces))
    assert cut.error == whole.error
