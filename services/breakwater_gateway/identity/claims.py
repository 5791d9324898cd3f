"""Claims: who a request says it is, held against the key that it shows.

The order of refusals is part of the contract: no key where one is needed, a key that opens nothing, a key
of another tenant, a claim to be somebody else, a model that the key may not ask.
"""

from collections.abc import Mapping

from msgspec import Struct

from breakwater_protocol import failures as f
from breakwater_protocol import headers as h
from breakwater_protocol.keys import KeyBoard, KeyRecord, may_ask


class Claims(Struct, frozen=True):
    """`key` and `team` only ever come from a key."""

    user: str = ""
    org: str = ""
    feature: str = ""
    key: str = ""
    """The key's id, never the key."""
    team: str = ""


def presented(headers: Mapping[str, str], query_key: str = "") -> str:
    """The key that an HTTP request shows, wherever its SDK puts one; empty when there is none.

    OpenAI's and most others' `authorization: Bearer`, Anthropic's `x-api-key`, Azure's `api-key`, Google's
    `x-goog-api-key` and `?key=`, and those of other gateways' clients. A key of ours (`bw-`) wins over
    anything else that is shown beside it: some clients must send a provider's key too.
    """
    if not (headers or query_key):
        return ""
    shown = [
        headers.get(h.KEY, ""),
        _bearer(headers.get("authorization", "")),
        headers.get("x-api-key", ""),
        headers.get("api-key", ""),
        headers.get("x-goog-api-key", ""),
        headers.get("x-litellm-api-key", "").removeprefix("Bearer "),
        headers.get("x-portkey-api-key", ""),
        _bearer(headers.get("helicone-auth", "")),
        query_key,
    ]
    given = [key.strip() for key in shown if key.strip()]
    return next((key for key in given if key.startswith("bw-")), given[0] if given else "")


def _bearer(value: str) -> str:
    scheme, _, key = value.partition(" ")
    return key if scheme.lower() == "bearer" else ""


def opened(keys: KeyBoard, key: str, now_wall: float) -> KeyRecord | f.CallerUnauthenticated:
    """The record behind a key, or why there is none: never which of the reasons it was."""
    if not key:
        return f.CallerUnauthenticated(
            "no key: send a virtual key as `authorization: Bearer bw-…`, "
            "made with `breakwater keys create`"
        )
    record = keys.find(key, now_wall)
    if record is None:
        return f.CallerUnauthenticated(
            "the key is unknown, expired or revoked: ask your operator for another "
            "(`breakwater keys create`)"
        )
    return record


def held_against(
    record: KeyRecord, *, tenant: str, model: str, user: str, org: str, feature: str
) -> Claims | f.CallerForbidden:
    """What the request may be, with the key that it shows. A claim is what its headers say."""
    if record.tenant != tenant:
        return f.CallerForbidden(
            "the key is one of another tenant: ask on the subject of its own tenant"
        )
    for header, bound, claimed in (
        (h.USER, record.user, user),
        (h.ORG, record.org, org),
        (h.FEATURE, record.feature, feature),
    ):
        if bound and claimed and bound != claimed:
            return f.CallerForbidden(
                f"the key is bound to another value of {header}: leave the header out"
            )
    if not may_ask(record, model):
        allowed = ", ".join(record.models[:5]) + (" and more" if len(record.models) > 5 else "")
        return f.CallerForbidden(f"the key may not ask {model[:100]!r}: it may ask {allowed}")
    return Claims(
        user=record.user or user,
        org=record.org or org,
        feature=record.feature or feature,
        key=record.id,
        team=record.team,
    )
