import pytest
from hypothesis import given
from hypothesis import strategies as st

from breakwater_gateway.runtime.telemetry import (
    TraceContext,
    child_of,
    clean_tracestate,
    new_trace,
    parse_traceparent,
)

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"00-{TRACE}-{SPAN}-01", TraceContext(TRACE, SPAN, 1)),
        (f"00-{TRACE}-{SPAN}-00", TraceContext(TRACE, SPAN, 0)),
        (f"00-{TRACE}-{SPAN}-ff", TraceContext(TRACE, SPAN, 3)),
        (f"01-{TRACE}-{SPAN}-01", TraceContext(TRACE, SPAN, 1)),
        (f"01-{TRACE}-{SPAN}-01-later", TraceContext(TRACE, SPAN, 1)),
        (f"00-{TRACE}-{SPAN}-01-later", None),
        (f"01-{TRACE}-{SPAN}-01later", None),
        (f"ff-{TRACE}-{SPAN}-01", None),
        (f"00-{'0' * 32}-{SPAN}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE.upper()}-{SPAN}-01", None),
        (f"00-{TRACE}-{SPAN}-0x", None),
        (f"00-{TRACE}-{SPAN}-01\n", None),
        (f" 00-{TRACE}-{SPAN}-01", None),
        (f"cc-{TRACE}-{SPAN}-01-{'x' * 10_000}", None),
        ("", None),
    ],
)
def test_a_traceparent_is_taken_or_refused_as_the_specification_says(
    text: str, expected: TraceContext | None
) -> None:
    assert parse_traceparent(text) == expected


@given(st.text(max_size=80))
def test_any_text_is_refused_or_comes_out_valid(text: str) -> None:
    found = parse_traceparent(text)
    assert found is None or parse_traceparent(found.header()) == found


@given(st.binary(min_size=24, max_size=24))
def test_a_trace_made_from_any_bits_is_valid(bits: bytes) -> None:
    trace = new_trace(bits)
    child = child_of(trace, bits[:8])
    assert parse_traceparent(trace.header()) == trace
    assert parse_traceparent(child.header()) == child
    assert child.trace_id == trace.trace_id


def test_ids_are_drawn_when_none_are_given() -> None:
    trace = new_trace()
    assert child_of(trace).span_id != child_of(trace).span_id
    assert new_trace().trace_id != trace.trace_id
    assert trace.sampled
    assert not new_trace(sampled=False).sampled


def test_too_few_bits_are_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="16 random bytes"):
        new_trace(b"short")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a=1,b@x=2", "a=1,b@x=2"),
        ("a=1 , b=2", "a=1,b=2"),
        ("a=1,a=2", ""),
        ("A=1", ""),
        ("a", ""),
        ("a=", ""),
        ("a=\n", ""),
        (",", ""),
        ("", ""),
        (",".join(f"k{n}=1" for n in range(33)), ""),
        (f"a={'x' * 600}", ""),
    ],
)
def test_a_tracestate_is_passed_on_whole_or_not_at_all(text: str, expected: str) -> None:
    assert clean_tracestate(text) == expected
