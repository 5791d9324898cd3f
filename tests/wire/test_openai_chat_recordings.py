"""Recorded traffic of the chat-completions family, sent to other hosts, and its refusals, kind by kind.

All else is in test_recordings.
"""

import json
from typing import Final

import pytest
from tests.wire.recordings import needs_recordings, rows

from breakwater_gateway.worker.wire import openai_chat as oc
from breakwater_gateway.worker.wire.neutral import Target
from breakwater_protocol import failures as f

pytestmark = needs_recordings


def test_requests_to_another_dialect_s_host_name_what_they_lose() -> None:
    """Every request of a rich host goes to a strict one; what is not there any more is in `dropped`."""
    for row in rows("openrouter", "chat"):
        given = json.loads(row.request_body)
        request = oc.decode_request(row.request_body)
        call = oc.encode_request(request, Target("m", {"provider": "mistral"}))
        kept = json.loads(call.body)
        for name in given:
            assert (
                name in kept
                or name in call.dropped
                or any(item.startswith(f"{name}.") for item in call.dropped)
                or given[name] in (None, [], {"include_usage": True})
                or name in {"seed", "reasoning", "stream", "max_completion_tokens"}
            ), (row.id, name, call.dropped)


WANTED: Final[dict[int, tuple[type[f.Failure], ...]]] = {
    400: (f.InvalidRequest, f.ContextLength, f.MalformedToolCall, f.KeyRejected),
    401: (f.KeyRejected,),
    404: (f.ModelNotFound,),
    429: (f.RateLimited,),
    500: (f.ServerError,),
}


@pytest.mark.parametrize("provider", oc.QUIRKS)
def test_every_refusal_is_classified(provider: str) -> None:
    for row in rows(provider):
        if row.status >= 400 and row.api in {"chat", "embeddings", "completions"}:
            got = oc.classify(row.status, row.headers, row.body, now=1.8e9)
            assert isinstance(got, WANTED[row.status]), (row.id, got)
