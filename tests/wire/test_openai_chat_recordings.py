"""Replays recorded traffic of the chat-completions family: nothing that its API can say gets lost."""

import functools
import itertools
import json
from collections.abc import Iterable, Iterator
from typing import Any, Final

import pytest
from tests.wire.recordings import SHARED, Row, needs_recordings, rows

from breakwater_gateway.worker.wire import openai_chat as oc
from breakwater_gateway.worker.wire.bad_request import BadRequest
from breakwater_gateway.worker.wire.neutral import (
    Answer,
    Began,
    Broke,
    Done,
    EmbeddingsAnswer,
    Finished,
    StreamEvent,
    Target,
    UsageKnown,
)
from breakwater_gateway.worker.wire.openai_chat import answer as oc_answer
from breakwater_protocol import failures as f
from breakwater_protocol.chat import Usage

pytestmark = needs_recordings


PROVIDERS: Final = tuple(oc.QUIRKS)



@functools.cache
def chats(provider: str) -> tuple[Row, ...]:
    return tuple(rows(provider, "chat"))




def streamed(provider: str) -> Iterator[Row]:
    return (r for r in chats(provider) if r.stream and r.status == 200)








# ---------------------------------------------------------------- requests






def test_requests_to_another_dialect_s_host_name_what_they_lose() -> None:
    """Every request of a rich host goes to a strict one; what is not there any more is in `dropped`."""
    for row in chats("openrouter"):
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


# ---------------------------------------------------------------- answers








# ---------------------------------------------------------------- streams












def decoded(provider: str, *pieces: bytes) -> list[StreamEvent]:
    decoder = oc.StreamDecoder(oc.QUIRKS[provider])
    events = [event for piece in pieces for event in decoder.feed(piece)]
    return events + decoder.end()








def test_a_stream_cut_short_is_never_done() -> None:
    for row in itertools.islice(streamed("openai"), 40):
        at = row.body.index(b'"finish_reason":"') if b'"finish_reason":"' in row.body else 0
        assert not any(isinstance(e, Done) for e in decoded("openai", row.body[:at])), row.id


# ---------------------------------------------------------------- usage, errors, embeddings






WANTED: Final[dict[int, tuple[type[f.Failure], ...]]] = {
    400: (f.InvalidRequest, f.ContextLength, f.MalformedToolCall, f.KeyRejected),
    401: (f.KeyRejected,),
    404: (f.ModelNotFound,),
    429: (f.RateLimited,),
    500: (f.ServerError,),
}


@pytest.mark.parametrize("provider", PROVIDERS)
def test_every_refusal_is_classified(provider: str) -> None:
    for row in rows(provider):
        if row.status >= 400 and row.api in {"chat", "embeddings", "completions"}:
            got = oc.classify(row.status, row.headers, row.body, now=1.8e9)
            assert isinstance(got, WANTED[row.status]), (row.id, got)








