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

Json = dict[str, Any]

pytestmark = recordings.needs_recordings

PROVIDERS: Final = ("anthropic", "vertex", "local-openai-compat")

NOT_OF_THIS_SHAPE: Final = {
    "9f6c6de063cb18880618": "a message that is a string; the API answered 400 as well",
}

EVERY_BYTE_MAX: Final = 1500
"""Streams up to this many bytes are cut at each of them, longer ones at a sample."""


def rows(api: str, *, stream: bool | None = None) -> list[Row]:
    return [row for name in PROVIDERS for row in recordings.rows(name, api, stream)]


@pytest.fixture(scope="module")
def messages() -> list[Row]:
    return rows("messages")


@pytest.fixture(scope="module")
def streams(messages: list[Row]) -> list[Row]:
    return [row for row in messages if row.stream and row.status == 200]


def invocations() -> Iterator[tuple[Row, bool]]:
    """Bedrock's calls of Claude in the form of this API, and whether they stream."""
    for row in recordings.rows("bedrock", "invoke"):
        if b'"anthropic_version"' in row.request_body and row.status == 200:
            yield row, "response-stream" in row.url


def same(given: bytes, written: bytes) -> bool:
    """Equal but for the order of keys, the spelling of numbers, and a `stream` of false."""
    one, other = (msgspec.json.decode(body) for body in (given, written))
    for body in (one, other):
        if not body.get("stream"):
            body.pop("stream", None)
    return bool(one == other)


def test_there_are_recordings_of_each_provider(messages: list[Row]) -> None:
    counts = {name: sum(row.provider == name for row in messages) for name in PROVIDERS}
    assert counts["anthropic"] > 700
    assert counts["vertex"] >= 5
    assert counts["local-openai-compat"] >= 1


def test_requests_come_back_as_they_were(messages: list[Row]) -> None:
    wrong = []
    for row in messages:
        if row.id in NOT_OF_THIS_SHAPE:
            with pytest.raises(BadRequest):
                anthropic.decode_request(row.request_body, path=row.url)
            continue
        request = anthropic.decode_request(row.request_body, path=row.url)
        quirks = {"host": "vertex"} if row.provider == "vertex" else {}
        call = anthropic.encode_request(request, neutral.Target(request.model, quirks))
        if call.dropped or not same(row.request_body, call.body):
            wrong.append(row.id)
        if row.provider == "vertex":
            assert row.url.endswith(call.path)
    assert wrong == []


def test_requests_for_a_count_come_back_as_they_were() -> None:
    counted = [row for row in rows("count_tokens") if row.provider == "anthropic"]
    assert counted
    for row in counted:
        request = anthropic.decode_request(row.request_body, path=row.url)
        call = anthropic.encode_count_tokens(request, neutral.Target(request.model))
        assert same(row.request_body, call.body), row.id
        answer = anthropic.decode_count_tokens(row.body)
        assert isinstance(answer, int)
        assert same(row.body, anthropic.encode_count_tokens_answer(answer))


def test_answers_come_back_as_they_were(messages: list[Row]) -> None:
    for row in messages:
        if row.status != 200 or row.stream:
            continue
        answer = anthropic.decode_answer(row.body)
        assert isinstance(answer, neutral.Answer), row.id
        assert same(row.body, anthropic.encode_answer(answer, model=answer.model)), row.id
        assert answer.usage == arithmetic(msgspec.json.decode(row.body)["usage"]), row.id
        assert answer.candidates[0].finish, row.id


def arithmetic(usage: Json) -> Usage:
    """The provider's: cache beside the input, compaction beside both."""
    counted = [usage, *(i for i in usage.get("iterations", ()) if i["type"] == "compaction")]

    def total(name: str) -> int:
        return sum(part.get(name) or 0 for part in counted)

    read, wrote = total("cache_read_input_tokens"), total("cache_creation_input_tokens")
    thought = (usage.get("output_tokens_details") or {}).get("thinking_tokens", 0)
    return Usage(total("input_tokens") + read + wrote, total("output_tokens"), read, wrote, thought)


def events_of(body: bytes) -> list[Json]:
    parser = SseParser(1 << 24)
    return [msgspec.json.decode(event.data) for event in parser.feed(body) + parser.finish()]


def told(events: list[Json]) -> list[Json]:
    """What a stream says, without pings and however it is cut into fragments.

    Arguments that stand in the start of a block are as good as fragments, and `{}` as good as none.
    """
    out: list[Json] = []
    for event in events:
        kind = event["type"]
        if kind == "ping":
            continue
        if kind == "content_block_start" and event["content_block"].get("input"):
            block = event["content_block"]
            given = msgspec.json.encode(block["input"]).decode()
            out.append(event | {"content_block": block | {"input": {}}})
            delta = {"type": "input_json_delta", "partial_json": given}
            event = {"type": "content_block_delta", "index": event["index"], "delta": delta}  # noqa: PLW2901 - its second half
            kind = "content_block_delta"
        if kind == "content_block_delta":
            name = next(name for name in event["delta"] if name != "type")
            said = event["delta"][name]
            if said in {"", "{}"} if isinstance(said, str) else False:
                continue
            last = out[-1]
            grows = isinstance(said, str) and last["type"] == kind and name in last["delta"]
            if grows and last["index"] == event["index"]:
                last["delta"][name] += said
                continue
        out.append(msgspec.json.decode(msgspec.json.encode(event)))
    return out


def test_streams_come_back_as_they_were(streams: list[Row]) -> None:
    assert len(streams) > 170
    for row in streams:
        given = events_of(row.body)
        decoder = anthropic.StreamDecoder()
        events = decoder.feed(row.body) + decoder.end()
        check_stream(row.id, given, events)


def check_stream(row_id: str, given: list[Json], events: list[neutral.StreamEvent]) -> None:
    assert isinstance(events[0], neutral.Began), row_id
    assert isinstance(events[-1], neutral.Done), row_id
    assert sum(isinstance(event, neutral.Finished) for event in events) == 1, row_id
    encoder = anthropic.StreamEncoder(model=given[0]["message"]["model"], source="anthropic")
    written = [msgspec.json.decode(line) for line in encoder.feed(events)]
    for event in given:
        event.pop("amazon-bedrock-invocationMetrics", None)
    assert told(written) == told(given), row_id
    usage = [event.usage for event in events if isinstance(event, neutral.UsageKnown)]
    counted: Json = {}
    for event in given:
        counts = event.get("usage") or event.get("message", {}).get("usage") or {}
        counted |= {name: count for name, count in counts.items() if count is not None}
    assert usage[-1] == arithmetic(counted), row_id


def test_streams_cut_anywhere_say_the_same(streams: list[Row]) -> None:
    for row in streams:
        whole = pieces(row.body, len(row.body))
        step = 1 if len(row.body) <= EVERY_BYTE_MAX else len(row.body) // 12 + 1
        for at in range(1, len(row.body), step):
            decoder = anthropic.StreamDecoder()
            events = decoder.feed(row.body[:at]) + decoder.feed(row.body[at:]) + decoder.end()
            assert msgspec.json.encode(events) == whole, (row.id, at)
        assert pieces(row.body, 7) == whole, row.id


def pieces(body: bytes, size: int) -> bytes:
    decoder = anthropic.StreamDecoder()
    events: list[neutral.StreamEvent] = []
    for at in range(0, len(body), size):
        events += decoder.feed(body[at : at + size])
    return msgspec.json.encode(events + decoder.end())


KINDS: Final[dict[int, type[f.Failure]]] = {
    400: f.InvalidRequest,
    401: f.KeyRejected,
    404: f.ModelNotFound,
}
LABELS: Final[dict[str, type[f.Failure]]] = {
    "auth": f.KeyRejected,
    "model_not_found": f.ModelNotFound,
    "invalid_request": f.InvalidRequest,
    "context_length": f.ContextLength,
    "rate_limit": f.RateLimited,
    "quota_exhausted": f.QuotaExhausted,
    "overloaded": f.Overloaded,
}


def test_error_answers_are_classified() -> None:
    refused = [row for row in recordings.rows("anthropic") if row.status >= 400]
    assert refused
    for row in refused:
        failure = anthropic.classify(row.status, row.headers, row.body, now=0)
        long = b"prompt is too long" in row.body
        assert type(failure) is (f.ContextLength if long else KINDS[row.status]), row.id
        assert anthropic.decode_answer(row.body, status=row.status) == failure


def test_labelled_errors_are_classified() -> None:
    path = recordings.SHARED / "data" / "errors.jsonl"
    labelled = [msgspec.json.decode(line) for line in path.read_bytes().splitlines()]
    ours = [row for row in labelled if row["provider"] == "anthropic"]
    assert ours
    for row in ours:
        body = msgspec.json.encode(row["body"])
        failure = anthropic.classify(row["status"], row["headers"], body, now=0)
        assert type(failure) is LABELS[row["label"]], row


def test_claude_on_bedrock_is_the_same_api() -> None:
    seen = 0
    for row, streams in invocations():
        request = anthropic.decode_request(row.request_body, path=row.url)
        assert request.stream == streams
        target = neutral.Target(request.model, {"host": "bedrock"})
        call = anthropic.encode_request(request, target)
        assert same(row.request_body, call.body), row.id
        seen += 1
        if streams:
            given = list(frames(row.body))
            decoder = anthropic.StreamDecoder()
            events = [out for data in given for out in decoder.event(data)]
            check_stream(row.id, [msgspec.json.decode(data) for data in given], events)
            continue
        answer = anthropic.decode_answer(row.body)
        assert isinstance(answer, neutral.Answer), row.id
        assert same(row.body, anthropic.encode_answer(answer, model=answer.model)), row.id
    assert seen > 25


def frames(body: bytes) -> Iterator[bytes]:
    """Payloads of an Amazon event stream, unwrapped; lengths are trusted."""
    while body:
        total, headers = struct.unpack_from(">II", body)
        payload = body[12 + headers : total - 4]
        yield base64.b64decode(msgspec.json.decode(payload)["bytes"])
        body = body[total:]
