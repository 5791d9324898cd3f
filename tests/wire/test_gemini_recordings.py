"""Recorded refusals of the Gemini API and Vertex, kind by kind; all else is in test_recordings."""

from typing import Final

import pytest
from tests.wire.recordings import needs_recordings, rows

from breakwater_gateway.worker.wire import gemini
from breakwater_protocol import failures as f

pytestmark = needs_recordings

KINDS: Final[dict[int, tuple[type[f.Failure], ...]]] = {
    400: (f.InvalidRequest, f.KeyRejected, f.ContextLength),
    401: (f.KeyRejected,),
    404: (f.ModelNotFound,),
    429: (f.RateLimited,),
}


@pytest.mark.parametrize("provider", ["gemini", "vertex"])
def test_every_recorded_refusal_is_classified(provider: str) -> None:
    for row in rows(provider):
        if row.status >= 400 and row.api != "messages":
            failure = gemini.classify(row.status, row.headers, row.body, now=0.0)
            assert isinstance(failure, KINDS[row.status]), (row.id, failure)
            assert failure.provider_status == row.status


BLOCKED: Final = {
    "f15192ea0f6e112a7e43": "MODEL_ARMOR",
    "7c6557451c678adb33ef": "MODEL_ARMOR",
    "3e86069af4d71c6182f9": "SAFETY",
}


def test_a_blocked_answer_is_told_with_its_reason() -> None:
    for row in rows("gemini", "generateContent"):
        if row.id in BLOCKED:
            answer = gemini.decode_answer(row.body)
            assert isinstance(answer, f.ContentFiltered), row.id
            assert answer.provider_code == BLOCKED[row.id]
