"""Header blocks: what we write is what NATS reads, and what we read is what nats-py would have."""

import asyncio

import nats.aio.client
import pytest
from hypothesis import given
from hypothesis import strategies as st

from breakwater_gateway.runtime.bus import BusError, headers_size
from breakwater_gateway.runtime.nats_headers import read_headers, write_headers

FIELDS = st.dictionaries(
    st.from_regex(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,12}", fullmatch=True),
    st.text(max_size=20),
    max_size=6,
)
LINES = st.lists(
    st.text(alphabet="ab: \t\x0b\x1c\x00\r\nü", max_size=8) | st.just("\r\n") | st.just("a: b"),
    max_size=6,
)


def as_nats_py_reads(block: bytes) -> dict[str, str] | None:
    return asyncio.run(nats.aio.client.Client()._process_headers(block))


@given(FIELDS)
def test_a_block_has_the_size_that_was_counted_or_is_refused(fields: dict[str, str]) -> None:
    try:
        size = headers_size(fields)
    except BusError:
        with pytest.raises(BusError):
            write_headers(fields)
        return
    block = write_headers(fields)
    if fields:
        assert len(block) == size


@given(FIELDS)
def test_what_was_written_is_read_back(fields: dict[str, str]) -> None:
    try:
        block = write_headers(fields)
    except BusError:
        return
    found = read_headers(block)
    if found is not None:
        assert found == fields
    elif fields:
        assert as_nats_py_reads(block) is not None


@given(LINES)
def test_what_is_read_is_what_nats_py_reads(lines: list[str]) -> None:
    block = b"NATS/1.0\r\n" + "\r\n".join(lines).encode() + b"\r\n\r\n"
    found = read_headers(block)
    if found is not None:
        assert found == as_nats_py_reads(block)


@pytest.mark.parametrize(
    "block",
    [
        b"NATS/1.0 503\r\n\r\n",
        b"NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: 1016\r\n\r\n",
        b"NATS/1.0\r\n\r\n",
        b"NATS/1.0\r\nname:value\r\n\r\n",
        b"NATS/1.0\r\nname:  value\r\n\r\n",
        b"NATS/1.0\r\nname: value \r\n\r\n",
        b"NATS/1.0\r\nna me: value\r\n\r\n",
        b"NATS/1.0\r\nname: \ttabbed\r\n\r\n",
        b"NATS/1.0\r\nname\r\n\r\n",
        b"NATS/1.0\r\nname: val\xc3\xbce\r\n\r\n",
        b"NATS/1.0\r\n: value\r\n\r\n",
    ],
)
def test_the_unusual_is_left_to_nats_py(block: bytes) -> None:
    assert read_headers(block) is None


@pytest.mark.parametrize(
    "fields",
    [{"a b": "x"}, {"": "x"}, {"a": "x\r\nb: y"}, {"a": "x\ny"}, {"a": "\0"}, {"a": "\ud800"}],
)
def test_what_is_no_header_is_never_written(fields: dict[str, str]) -> None:
    write_headers({"a": "a good one first"})
    with pytest.raises(BusError):
        write_headers(fields)
