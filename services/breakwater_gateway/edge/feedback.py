"""`POST /v1/cache/feedback {id, verdict}`: what a caller thought of a cached answer, read and bounded."""

from typing import Final

import msgspec
from msgspec import Struct

from breakwater_protocol import failures as f
from breakwater_protocol.cache import Feedback, Verdict, place_of

PATH: Final = "/v1/cache/feedback"


class _Body(Struct, frozen=True):
    id: str
    verdict: Verdict


def read(body: bytes, tenant: str) -> tuple[str, Feedback] | f.Failure:
    """The shard whose owner is to be told, or `exact`; and what."""
    try:
        said = msgspec.json.decode(body, type=_Body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return f.InvalidRequest(
            'expected {"id": "…", "verdict": "wrong" | "stale" | "good"}, with the id of the answer\'s'
            " header breakwater-cache-id"
        )
    place = place_of(said.id)
    if place is None:
        return f.InvalidRequest(
            "feedback is for answers that were given again, with the id of their"
            " breakwater-cache-id; any other is asked anew with the header breakwater-cache: refresh",
            param="id",
        )
    return place, Feedback(said.id, tenant, said.verdict)


def unknown(feedback: Feedback) -> f.Failure:
    return f.InvalidRequest(
        f"no answer {feedback.id} was served to this caller lately, or it was judged already",
        param="id",
    )
