"""Recorded refusals of the Messages API, kind by kind; all else is in test_recordings."""

from typing import Final

from tests.wire.recordings import needs_recordings, rows

from breakwater_gateway.worker.wire import anthropic
from breakwater_protocol import failures as f

pytestmark = needs_recordings

KINDS: Final[dict[int, type[f.Failure]]] = {
    400: f.InvalidRequest,
    401: f.KeyRejected,
    404: f.ModelNotFound,
}


def test_error_answers_are_classified() -> None:
    refused = [row for row in rows("anthropic") if row.status >= 400]
    assert refused
    for row in refused:
        failure = anthropic.classify(row.status, row.headers, row.body, now=0)
        long = b"prompt is too long" in row.body
        assert type(failure) is (f.ContextLength if long else KINDS[row.status]), row.id
        assert anthropic.decode_answer(row.body, status=row.status) == failure
