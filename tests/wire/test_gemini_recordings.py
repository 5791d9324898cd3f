"""Recorded traffic of the Gemini API and Vertex, replayed: nothing is lost on the way in and out."""

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from tests.wire.recordings import SHARED, Row, needs_recordings, rows

from breakwater_gateway.worker.wire import gemini, neutral
from breakwater_gateway.worker.wire.bad_request import BadRequest
from breakwater_gateway.worker.wire.neutral import (
    Answer,
    Broke,
    Done,
    Finished,
    Grew,
    PartBegan,
    StreamEvent,
    Target,
    UsageKnown,
)
from breakwater_protocol import failures as f
from breakwater_protocol.chat import Usage

pytestmark = needs_recordings




























# ---------------------------------------------------------------- streams






















# ---------------------------------------------------------------- embeddings, counts, errors














def test_every_recorded_refusal_is_classified() -> None:
    by_status = {
        400: (f.InvalidRequest, f.KeyRejected, f.ContextLength),
        401: (f.KeyRejected,),
        404: (f.ModelNotFound,),
        429: (f.RateLimited,),
    }
    for provider in ("gemini", "vertex"):
        for row in rows(provider):
            if row.status >= 400 and row.api != "messages":
                failure = gemini.classify(row.status, row.headers, row.body, now=0.0)
                assert isinstance(failure, by_status[row.status]), (row.id, failure)
                assert failure.provider_status == row.status
