"""protocol/asyncapi.yaml is what the types say, and hangs together."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from jsonschema import Draft7Validator

from breakwater_protocol import asyncapi, cloudevents, events
from breakwater_protocol.subjects import Subject, Subjects

COMMITTED = Path(__file__).parents[2] / "protocol" / "asyncapi.yaml"


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(COMMITTED.read_text(encoding="utf-8"))
    return loaded


def test_the_committed_document_is_fresh() -> None:
    assert COMMITTED.read_text(encoding="utf-8") == asyncapi.text(), (
        "stale: python -m breakwater_protocol.asyncapi --write protocol/asyncapi.yaml"
    )


def test_the_command_writes_what_it_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "asyncapi.yaml"
    assert asyncapi.main(["--write", str(path)]) == 0
    assert asyncapi.main([]) == 0
    assert capsys.readouterr().out == path.read_text(encoding="utf-8")


def references(node: object) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "$ref":
                assert isinstance(value, str)
                yield value
            else:
                yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def resolve(document: dict[str, Any], reference: str) -> Any:  # noqa: ANN401 - JSON
    node: Any = document
    assert reference.startswith("#/")
    for part in reference[2:].split("/"):
        node = node[part]
    return node


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    found = set(references(document))
    assert len(found) > 50
    for reference in found:
        assert resolve(document, reference)


def test_every_subject_is_a_channel_with_its_places_described(document: dict[str, Any]) -> None:
    addresses = {channel["address"] for channel in document["channels"].values()}
    for subject in Subjects().every():
        assert subject.template in addresses
    for channel in document["channels"].values():
        address = channel["address"] or ""
        assert set(channel.get("parameters", {})) == {
            token[1:-1] for token in address.split(".") if token.startswith("{")
        }


def test_every_channel_is_sent_to_and_received_from_by_somebody(document: dict[str, Any]) -> None:
    for name in set(document["channels"]) - {"inbox"}:
        actions = {
            operation["action"]
            for operation in document["operations"].values()
            if operation["channel"]["$ref"] == f"#/channels/{name}"
        }
        assert actions == {"send", "receive"}, name


def test_every_event_has_a_type_of_its_own_in_its_headers(document: dict[str, Any]) -> None:
    schema = document["components"]["schemas"]["EventHeaders"]
    assert set(schema["properties"]["ce-type"]["enum"]) == set(cloudevents.TYPES.values())


def test_every_schema_is_valid_json_schema(document: dict[str, Any]) -> None:
    for schema in document["components"]["schemas"].values():
        # AsyncAPI adds `discriminator`, which JSON Schema ignores.
        Draft7Validator.check_schema(schema)


def test_what_an_actor_sends_satisfies_the_published_schema(document: dict[str, Any]) -> None:
    changed = events.BreakerChanged(
        target="openai/gpt-4.1",
        state="open",
        cause="consecutive",
        evidence=events.Evidence(window=5, failures=5),
        until=12.5,
        epoch=3,
        previous="closed",
        at=10.0,
    )
    validator = Draft7Validator(
        {"$ref": "#/components/schemas/BreakerChanged", "components": document["components"]}
    )
    value = json.loads(msgspec.json.encode(changed))
    validator.validate(value)
    assert not validator.is_valid(value | {"state": "ajar"})


def test_a_subject_without_a_row_is_an_error_that_names_it() -> None:
    subjects = Subjects()
    vars(subjects)["novel"] = Subject("bw.v1.novel", msgspec.Raw, "New.")
    with pytest.raises(LookupError, match="novel"):
        asyncapi.document(subjects)
