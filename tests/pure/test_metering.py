"""What a cut stream has used, by our own count."""

import json

from hypothesis import given
from hypothesis import strategies as st

from breakwater_gateway.worker.metering import of_cut
from breakwater_protocol.chat import Usage

BODY = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x" * 4000}]}).encode()


def test_what_the_provider_said_counts_before_what_we_count() -> None:
    known = Usage(input=12, output=90, cache_read=4)
    assert of_cut(BODY, known, said=100, pieces=20) == known


def test_the_input_is_estimated_and_the_output_counted() -> None:
    usage = of_cut(BODY, None, said=401, pieces=40)
    assert 1000 <= usage.input <= 1030
    assert usage.output == 101
    assert of_cut(BODY, None, said=50, pieces=40).output == 40


@given(st.binary(max_size=200), st.integers(0, 10**6), st.integers(0, 10**5))
def test_whatever_the_body_there_is_a_count(body: bytes, said: int, pieces: int) -> None:
    usage = of_cut(body, None, said=said, pieces=pieces)
    assert usage.input >= 1
    assert usage.output >= pieces
    assert 4 * usage.output >= said
