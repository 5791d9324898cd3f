"""Recorded refusals of the Responses API, row by row; all else is in test_recordings."""

from typing import Final

from tests.wire.recordings import needs_recordings, rows

from breakwater_gateway.worker.wire import responses
from breakwater_protocol import failures as f

pytestmark = needs_recordings

EXPECTED: Final = {
    "092a659e670af39aeadc": f.ModelNotFound,
    "0ad2b2848b6d0927862f": f.KeyRejected,
    "0cd2aed3b65e9bd3a55c": f.ModelNotFound,
    "11b5d37808462db1e84e": f.ModelNotFound,
    "4aab5ee81fb7274ca7a3": f.KeyRejected,
    "56262fd356d70507ee32": f.ContextLength,
    "6486eb60a5cd83786be5": f.KeyRejected,
    "795c1ef4e6b5712e3592": f.InvalidRequest,
    "9e101ccf4586abd31dce": f.InvalidRequest,
    "a3f33148d893fcf301a0": f.ModelNotFound,
    "aecae1c1c13a2989ec4a": f.InvalidRequest,
    "e6e6bc714181a345476b": f.ModelNotFound,
    "ee198112becc8f82bfb8": f.InvalidRequest,
    "0fc10d675a5d27890c14": f.InvalidRequest,
    "940338d54b57074c6cac": f.KeyRejected,
}


def test_every_recorded_error_is_classified() -> None:
    seen = {
        row.id: type(responses.classify(row.status, row.headers, row.body, now=0.0))
        for row in rows("*", "responses")
        if row.status >= 400
    }
    assert seen == EXPECTED
