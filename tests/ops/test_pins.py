"""Pins: what is written is read back, and every difference is told."""

import tomllib

import pytest
from ops.pins import BEGIN, END, NoMarks, differences, installed, normal, read, splice

DOCUMENT = f"""[tool.uv]
constraint-dependencies = [
    {BEGIN}
    "old==1",
    {END}
]
"""


def test_pins_are_replaced_and_read_back_as_toml() -> None:
    pins = {"anyio": "4.16.0", "nats-py": "2.16.0"}
    document = splice(DOCUMENT, pins)
    assert read(document) == pins
    listed = tomllib.loads(document)["tool"]["uv"]["constraint-dependencies"]
    assert listed == ["anyio==4.16.0", "nats-py==2.16.0"]
    assert splice(document, pins) == document


def test_a_document_without_marks_is_refused() -> None:
    with pytest.raises(NoMarks, match="pins:begin"):
        splice("[tool.uv]\n", {})


@pytest.mark.parametrize(
    ("listed", "present", "expected"),
    [
        ({"a": "1"}, {"a": "1"}, []),
        ({"a": "1", "elsewhere": "2"}, {"a": "1"}, []),
        ({"a": "1"}, {"a": "2"}, ["a 2 is installed and pinned to 1"]),
        ({}, {"a": "1"}, ["a 1 is installed and not pinned"]),
    ],
)
def test_only_what_is_installed_and_not_pinned_so_is_a_difference(
    listed: dict[str, str], present: dict[str, str], expected: list[str]
) -> None:
    assert list(differences(listed, present)) == expected


def test_names_are_spelt_one_way() -> None:
    assert normal("Typing_Extensions") == normal("typing.extensions") == "typing-extensions"


def test_the_environments_own_project_and_installers_are_not_pinned() -> None:
    found = installed("breakwater-gateway")
    assert "msgspec" in found
    assert found.keys().isdisjoint({"breakwater-gateway", "pip", "uv"})
