"""Who a request may say it is, with the key that it shows."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from breakwater_gateway.identity import issue
from breakwater_gateway.identity.claims import Claims, held_against, opened, presented
from breakwater_protocol import failures as f
from breakwater_protocol.keys import KEY_PATTERN, KeyBoard, KeyRecord, digest_of, may_ask

NOW = 1_800_000_000.0


def key(seed: int = 1, **facts: Any) -> tuple[KeyRecord, str]:  # noqa: ANN401 - what `made` takes
    return issue.made(
        random=bytes([seed]) * 32,
        id_random=bytes([seed]) * 6,
        now=NOW,
        **{"tenant": "acme", **facts},
    )


def board(*records: KeyRecord) -> KeyBoard:
    found = KeyBoard()
    for revision, record in enumerate(records, 1):
        found.fold(record.id, msgspec.json.encode(record), revision)
    return found


def test_a_key_is_never_in_its_record() -> None:
    record, secret = key()
    assert KEY_PATTERN.fullmatch(secret)
    assert secret not in msgspec.json.encode(record).decode()
    assert record.secrets[0].digest == digest_of(secret)


def test_a_key_opens_its_record_until_it_expires_or_is_revoked() -> None:
    record, secret = key(expires_in_s=60.0)
    keys = board(record)
    assert keys.find(secret, NOW + 59) == record
    assert keys.find(secret, NOW + 60) is None
    assert keys.find(secret[:-1] + "x", NOW) is None
    keys.fold(record.id, msgspec.json.encode(issue.revoked(record, now=NOW + 5)), 2)
    assert keys.find(secret, NOW + 5) is None


def test_a_rotated_key_opens_with_the_old_secret_for_the_grace_alone() -> None:
    record, old = key()
    fresh, new = issue.rotated(record, random=b"n" * 32, now=NOW, grace_s=10)
    keys = board(record)
    keys.fold(fresh.id, msgspec.json.encode(fresh), 2)
    assert keys.find(new, NOW + 1000) == fresh
    assert keys.find(old, NOW + 9) == fresh
    assert keys.find(old, NOW + 10) is None
    at_once, _ = issue.rotated(fresh, random=b"m" * 32, now=NOW + 1, grace_s=0)
    keys.fold(at_once.id, msgspec.json.encode(at_once), 3)
    assert keys.find(old, NOW + 1) is None
    assert keys.find(new, NOW + 1) is None


def test_late_and_doubled_entries_change_nothing() -> None:
    record, secret = key()
    keys = board()
    keys.fold(record.id, msgspec.json.encode(issue.revoked(record, now=NOW)), 2)
    keys.fold(record.id, msgspec.json.encode(record), 1)
    assert keys.find(secret, NOW + 1) is None
    keys.fold(record.id, None, 3)
    assert len(keys) == 0


def test_an_entry_that_is_no_record_of_its_id_is_refused() -> None:
    record, secret = key()
    keys = board(record)
    other, _ = key(2)
    for bad in (b"{}", b"\xff", msgspec.json.encode(other)):
        with pytest.raises((msgspec.MsgspecError, UnicodeDecodeError)):
            keys.fold(record.id, bad, 9)
    assert keys.find(secret, NOW) == record


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer {}"},
        {"authorization": "bearer {}"},
        {"x-api-key": "{}"},
        {"api-key": "{}"},
        {"x-goog-api-key": "{}"},
        {"x-litellm-api-key": "Bearer {}"},
        {"x-portkey-api-key": "{}"},
        {"helicone-auth": "Bearer {}"},
        {"breakwater-key": "{}"},
        {"authorization": "Bearer sk-of-a-provider", "x-api-key": "{}"},
    ],
)
def test_a_key_is_found_wherever_an_sdk_puts_it(headers: dict[str, str]) -> None:
    _, secret = key()
    given_headers = {name: value.format(secret) for name, value in headers.items()}
    assert presented(given_headers) == secret


def test_a_key_in_the_query_is_found_and_nothing_is_no_key() -> None:
    _, secret = key()
    assert presented({}, secret) == secret
    assert presented({"authorization": "Basic abc"}) == ""


CLAIM = {"user": "", "org": "", "feature": ""}


@pytest.mark.parametrize(
    ("bound", "asked", "refused"),
    [
        ({}, {"tenant": "other"}, "another tenant"),
        ({"user": "ann"}, {"user": "bob"}, "breakwater-user"),
        ({"org": "x"}, {"org": "y"}, "breakwater-org"),
        ({"feature": "x"}, {"feature": "y"}, "breakwater-feature"),
        ({"models": ("gpt-*", "small")}, {"model": "large"}, "may not ask 'large'"),
    ],
)
def test_a_claim_beyond_the_key_is_forbidden(
    bound: dict[str, Any], asked: dict[str, str], refused: str
) -> None:
    record, _ = key(**bound)
    found = held_against(record, **{"tenant": "acme", "model": "m", **CLAIM, **asked})
    assert isinstance(found, f.CallerForbidden)
    assert refused in found.message


def test_a_key_lends_what_it_is_bound_to() -> None:
    record, _ = key(user="ann", org="x", team="core")
    found = held_against(record, tenant="acme", model="m", user="ann", org="", feature="chat")
    assert found == Claims(user="ann", org="x", feature="chat", key=record.id, team="core")


def test_no_key_and_a_bad_one_are_refused_alike_but_for_the_mend() -> None:
    keys = board(key()[0])
    for shown in ("", "nonsense", "bw-" + "A" * 43):
        refused = opened(keys, shown, NOW)
        assert isinstance(refused, f.CallerUnauthenticated)
        assert "breakwater keys create" in refused.message


@given(st.lists(st.sampled_from(["a", "ab", "b*", "*", "abc*"]), max_size=3), st.text(max_size=5))
def test_models_match_by_name_or_beginning(models: list[str], model: str) -> None:
    record, _ = key(models=tuple(models))
    wanted = not models or any(
        m == model or (m.endswith("*") and model.startswith(m[:-1])) for m in models
    )
    assert may_ask(record, model) == wanted


@pytest.mark.parametrize(
    "facts",
    [
        {"tenant": ""},
        {"name": "x" * 129},
        {"user": "line\nend"},
        {"expires_in_s": 0.0},
        {"models": ("",)},
    ],
)
def test_what_cannot_be_a_key_is_refused(facts: dict[str, Any]) -> None:
    with pytest.raises(issue.BadKey):
        key(**facts)


def test_a_revoked_key_is_not_rotated() -> None:
    record = issue.revoked(key()[0], now=NOW)
    assert issue.revoked(record, now=NOW + 1) == record
    with pytest.raises(issue.BadKey):
        issue.rotated(record, random=b"n" * 32, now=NOW, grace_s=0)
