"""JSON that was written almost right: repaired where there is one reading, left alone where there are more."""

import ast
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from breakwater_gateway.worker.wire.repair import DEPTH_MAX, SIZE_MAX, fault, is_object, repaired


@pytest.mark.parametrize(
    ("written", "right"),
    [
        # Valid already: untouched, white space and all.
        ('{"a": 1}', '{"a": 1}'),
        (" { } ", " { } "),
        # Commas.
        ('{"a":1,}', '{"a":1}'),
        ('{"a":[1,2,],}', '{"a":[1,2]}'),
        # Python.
        ("{'a': True, 'b': None, 'c': [False]}", '{"a":true,"b":null,"c":[false]}'),
        ("{'a': 'say \"hi\"'}", '{"a":"say \\"hi\\""}'),
        ("{'a': \"it's\"}", '{"a":"it\'s"}'),
        ("{'a': 'it\\'s'}", '{"a":"it\'s"}'),
        # JavaScript.
        ("{a: 1, b_2: 'x'}", '{"a":1,"b_2":"x"}'),
        # Fences, and strings around.
        ('```json\n{"a":1}\n```', '{"a":1}'),
        ('```\n{"a":1,}\n```', '{"a":1}'),
        ('"{\\"a\\":1}"', '{"a":1}'),
        ('"{\\"a\\":1,}"', '{"a":1}'),
        # Brackets at the very end.
        ('{"a":{"b":[1]', '{"a":{"b":[1]}}'),
        ('{"a":"x"', '{"a":"x"}'),
        ('{"a":1}}', '{"a":1}'),
        ('{"a":[1]}]}', '{"a":[1]}'),
        # Line ends inside of strings.
        ('{"a":"x\ny"}', '{"a":"x\\ny"}'),
        # Numbers stay as they are written.
        ('{"a":1.50e+2,}', '{"a":1.50e+2}'),
        ('{"a":"\\ud83d\\ude00",}', '{"a":"\U0001f600"}'),
        ("{'a': 'ü'}", '{"a":"ü"}'),
    ],
)
def test_what_has_one_reading(written: str, right: str) -> None:
    assert repaired(written) == right


@pytest.mark.parametrize(
    "written",
    [
        "",
        "nope",
        "[1]",
        "null",
        '"x"',
        "7",
        # Something more was to come.
        '{"a":1,',
        '{"a":',
        '{"a"',
        '{"a":"x',
        '{"a":12',
        '{"a":tru',
        "{",
        # Which quote ends it?
        "{'a': 'it's'}",
        '{"a": "say "hi""}',
        # Two objects, or words around one.
        '{"a":1}{"b":2}',
        'Here: {"a":1}',
        '{"a":1} done',
        # No JSON in any reading.
        '{"a":x}',
        '{"a" 1}',
        '{"a":1 "b":2}',
        "{,}",
        '{"a":,}',
        '{"a":01}',
        '{"a":.5}',
        '{"a":NaN,}',
        '{"a":+1}',
        '{"a":"\\x41",}',
        '{"a":[1}',
        '{"a":"\\ud800",}',
        "{1: 2}",
    ],
)
def test_what_has_more_than_one_reading_or_none(written: str) -> None:
    assert repaired(written) is None


def test_size_and_depth_are_bounded() -> None:
    assert repaired('{"a":"' + "x" * SIZE_MAX + '",}') is None
    assert repaired('{"a":' * (DEPTH_MAX + 2) + "1,}") is None
    assert repaired('{"a":' * 100_000) is None


def test_a_fault_is_what_a_strict_parser_says() -> None:
    assert fault('{"a":1}') == ""
    assert "byte 5" in fault('{"a":}')


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=4)
    ),
    max_leaves=12,
)
OBJECTS = st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=8), JSON, max_size=4)


@given(OBJECTS)
def test_what_is_valid_is_untouched(value: dict[str, object]) -> None:
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False, indent=1)):
        if is_object(text):  # a number may be too large for the strict parser
            assert repaired(text) == text


@given(OBJECTS)
def test_what_python_prints_is_read_as_what_it_was(value: dict[str, object]) -> None:
    text = repr(value)
    found = repaired(text)
    if found is not None:
        assert json.loads(found) == ast.literal_eval(text) == value


@given(OBJECTS, st.data())
def test_commas_and_missing_brackets_do_not_change_what_is_meant(
    value: dict[str, object], data: st.DataObject
) -> None:
    text = json.dumps(value)
    assert_means(repaired(f"{text[:-1]},}}" if value else text), value)
    cut = text.rstrip("}]")
    if cut and cut[-1] in '"el':  # after a whole string or literal
        assert_means(repaired(cut), value)


def assert_means(found: str | None, value: dict[str, object]) -> None:
    if found is not None:
        assert json.loads(found) == value


@given(st.text(max_size=200) | st.text("{}[]\"':,\\ntrue01 ", max_size=40))
def test_whatever_is_written_the_repair_is_an_object_that_stays_as_it_is(text: str) -> None:
    found = repaired(text)
    if found is not None:
        assert is_object(found)
        assert repaired(found) == found
