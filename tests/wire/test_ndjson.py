"""Newline-delimited JSON: lines at any cut, and never more held than the bound."""

from hypothesis import given
from hypothesis import strategies as st

from breakwater_gateway.worker.wire.ndjson import LineParser


def lines(*pieces: bytes, limit: int = 1000) -> list[bytes]:
    parser = LineParser(limit)
    found = [line for piece in pieces for line in parser.feed(piece)]
    last = parser.finish()
    return [*found, last] if last else found


def test_lines_end_with_lf_or_cr_lf_and_blank_ones_say_nothing() -> None:
    assert lines(b'{"a":1}\n\r\n  \n{"b":2}\r\n{"c":3}') == [b'{"a":1}', b'{"b":2}', b'{"c":3}']


def test_an_endless_line_is_refused_when_it_passes_the_bound() -> None:
    parser = LineParser(10)
    assert parser.feed(b'{"a":1}\n' + b"x" * 10) == [b'{"a":1}']
    assert not parser.too_long
    assert parser.feed(b"x") == []
    assert parser.too_long
    assert parser.feed(b'\n{"b":2}\n') == []
    assert parser.finish() == b""


def test_lines_before_one_that_is_too_long_are_given_out() -> None:
    parser = LineParser(4)
    assert parser.feed(b"ab\nabcdef\ncd\n") == [b"ab"]
    assert parser.too_long


@given(st.lists(st.binary(max_size=30), max_size=8), st.integers(1, 20))
def test_any_cut_gives_the_same_lines(pieces: list[bytes], limit: int) -> None:
    whole, cut = LineParser(limit), LineParser(limit)
    body = b"".join(pieces)
    found = [line for piece in pieces for line in cut.feed(piece)]
    assert found == whole.feed(body)
    assert cut.too_long == whole.too_long
    assert cut.finish() == whole.finish()
    assert lines(*(body[at : at + 1] for at in range(len(body))), limit=limit) == lines(
        body, limit=limit
    )
