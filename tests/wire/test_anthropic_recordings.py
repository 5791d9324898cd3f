"""Real exchanges of the Messages API: of Anthropic, of Claude on Vertex and Bedrock, of hosts that speak it."""

import base64
import struct
from collections.abc import Iterator
from typing import Any, Final

import msgspec
import pytest
from tests.wire import recordings
from tests.wire.recordings import Row

from breakwater_gateway.worker.sse import SseParser
from breakwater_gateway.worker.wire import anthropic, neutral
from breakwater_gateway.worker.wire.bad_request import BadRequest
from breakwater_protocol import failures as f
from breakwater_protocol.chat import Usage


pytestmark = recordings.needs_recordings





































KINDS: Final[dict[int, type[f.Failure]]] = {
    400: f.InvalidRequest,
    401: f.KeyRejected,
    404: f.ModelNotFound,
}


def test_error_answers_are_classified() -> None:
    refused = [row for row in recordings.rows("anthropic") if row.status >= 400]
    assert refused
    for row in refused:
        failure = anthropic.classify(row.status, row.headers, row.body, now=0)
        long = b"prompt is too long" in row.body
        assert type(failure) is (f.ContextLength if long else KINDS[row.status]), row.id
        assert anthropic.decode_answer(row.body, status=row.status) == failure






