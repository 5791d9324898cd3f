"""Real exchanges of the Responses API replayed: nothing that they hold is lost."""

from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from typing import Any, Final

import msgspec
import pytest
from tests.wire.recordings import Row, needs_recordings, rows

from breakwater_gateway.worker.wire import neutral as n
from breakwater_gateway.worker.wire import responses
from breakwater_gateway.worker.wire.bad_request import BadRequest
from breakwater_protocol import failures as f
from breakwater_protocol.chat import Usage

pytestmark = needs_recordings

PROVIDERS: Final = (
    *("openai", "azure", "deepseek", "xai", "openrouter", "bedrock-mantle", "pydantic-gateway"),
    "local-openai-compat",
)








































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
        for row in replayed(good=False)
    }
    assert seen == EXPECTED




