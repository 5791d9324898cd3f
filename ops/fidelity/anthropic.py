"""Anthropic's Messages API, of its own, of Vertex and of other hosts, and inside Bedrock's InvokeModel."""

from collections.abc import Callable, Iterator
from itertools import takewhile
from typing import Final

import msgspec
from ops.fidelity import streams
from ops.fidelity.equivalence import Json, invoked, parse, sse
from ops.fidelity.exchange import compared, nothing_dropped, opened, refusal
from ops.fidelity.finding import Findings, excused, wrong
from ops.fidelity.rows import Row

from breakwater_gateway.worker.wire import anthropic
from breakwater_gateway.worker.wire import neutral as n
from breakwater_gateway.worker.wire.bad_request import BadRequest
from breakwater_gateway.worker.wire.bedrock.invoke import ChunkReader
from breakwater_protocol.chat import Usage

HOSTS: Final = {"vertex": "vertex", "bedrock": "bedrock"}


def quirks(row: Row) -> dict[str, object]:
    host = HOSTS.get(row.provider)
    return {"host": host} if host else {}


def canonical(body: bytes) -> Json:
    """A request or an answer; a `stream` of false says nothing."""
    found = parse(body)
    if not found.get("stream"):
        found.pop("stream", None)
    return found


def request(row: Row) -> Findings:
    try:
        asked = anthropic.decode_request(row.request_body, path=row.url)
    except BadRequest as error:
        yield refusal(row, error)
        return
    call = anthropic.encode_request(asked, n.Target(asked.model, quirks(row)))
    yield from compared("request", canonical(call.body), canonical(row.request_body))
    yield from nothing_dropped(call)
    if row.provider == "vertex" and not row.path.endswith(call.path):
        yield wrong("request: another path", call.path)


def count(row: Row) -> Findings:
    """A request to count tokens, and its answer."""
    try:
        asked = anthropic.decode_request(row.request_body, path=row.url)
    except BadRequest as error:
        yield refusal(row, error)
        return
    call = anthropic.encode_count_tokens(asked, n.Target(asked.model, quirks(row)))
    yield from compared("request", canonical(call.body), canonical(row.request_body))
    if row.status >= 400:
        return
    counted = anthropic.decode_count_tokens(row.body)
    if not isinstance(counted, int):
        yield wrong("answer: not a count", counted)
        return
    written = anthropic.encode_count_tokens_answer(counted)
    yield from compared("answer", parse(written), parse(row.body))


def answer(row: Row) -> Findings:
    given = parse(row.body)
    told, findings = opened(anthropic.decode_answer(row.body), lambda: given.get("type") == "error")
    yield from findings
    if told is None:
        return
    written = anthropic.encode_answer(told, model=told.model)
    yield from compared("answer", canonical(written), canonical(row.body))
    if isinstance(given.get("usage"), dict):
        yield from compared("usage", told.usage, arithmetic(given["usage"]))
    if given.get("stop_reason") and not told.candidates[0].finish:
        yield wrong("answer: no finish")


def arithmetic(usage: Json) -> Usage:
    """The provider's: cache beside the input, compaction beside both."""
    iterations = usage.get("iterations") or ()
    counted = [usage, *(one for one in iterations if one.get("type") == "compaction")]

    def total(name: str) -> int:
        return sum(part.get(name) or 0 for part in counted)

    read, wrote = total("cache_read_input_tokens"), total("cache_creation_input_tokens")
    thought = (usage.get("output_tokens_details") or {}).get("thinking_tokens") or 0
    return Usage(total("input_tokens") + read + wrote, total("output_tokens"), read, wrote, thought)


def told(events: list[Json]) -> list[Json]:
    """What a stream says, without pings and however it is cut into fragments.

    Arguments that stand in the start of a block are as good as fragments, and `{}` as good as none.
    """
    out: list[Json] = []
    for event in _spread(events):
        if event["type"] == "content_block_delta":
            name = next(name for name in event["delta"] if name != "type")
            said = event["delta"][name]
            if isinstance(said, str) and said in {"", "{}"}:
                continue
            last = out[-1] if out else {}
            if (
                isinstance(said, str)
                and last.get("type") == "content_block_delta"
                and last["index"] == event["index"]
                and isinstance(last["delta"].get(name), str)
            ):
                last["delta"][name] += said
                continue
        out.append(msgspec.json.decode(msgspec.json.encode(event)))
    return out


def _spread(events: list[Json]) -> Iterator[Json]:
    for event in events:
        if event["type"] == "ping":
            continue
        if event["type"] == "content_block_start" and event["content_block"].get("input"):
            block = event["content_block"]
            written = msgspec.json.encode(block["input"]).decode()
            yield event | {"content_block": block | {"input": {}}}
            delta = {"type": "input_json_delta", "partial_json": written}
            yield {"type": "content_block_delta", "index": event["index"], "delta": delta}
        else:
            yield event


def stream(row: Row) -> Findings:
    yield from _stream(row, sse(row.body), anthropic.StreamDecoder)


def _stream(row: Row, given: list[Json], make: Callable[[], streams.Decoder]) -> Findings:
    events = streams.decoded(make, row.body)
    yield from streams.contract(events)
    yield from streams.cut_anywhere(make, row.body, events)
    yield from streams.cut_short(make, row.body)
    failed = any(event["type"] == "error" for event in given)
    done = any(event["type"] == "message_stop" for event in given)
    yield from streams.ends(events, done=done, failed=failed)
    if not done:
        yield excused("a stream that breaks off: only what came is compared")
    for event in given:
        event.pop("amazon-bedrock-invocationMetrics", None)
    start = next((event for event in given if event["type"] == "message_start"), None)
    if start is None:
        return
    encoder = anthropic.StreamEncoder(model=start["message"]["model"], source="anthropic")
    written = [parse(line) for line in encoder.feed(events)]
    said, wanted = told(written), told(given)
    if not done:
        said, wanted = (list(takewhile(_going_on, side)) for side in (said, wanted))
    yield from compared("stream", said, wanted)
    counted: Json = {}
    for event in given:
        counts = event.get("usage") or event.get("message", {}).get("usage") or {}
        counted |= {name: count for name, count in counts.items() if count is not None}
    known = streams.last_usage(events)
    if counted and known is not None:
        yield from compared("usage", known.usage, arithmetic(counted))
    elif counted:
        yield wrong("usage: not told")


def _going_on(event: Json) -> bool:
    return event["type"] not in {"error", "message_delta", "message_stop"}


# ---- inside Bedrock's InvokeModel


class InvokeDecoder:
    """Frames off, then the API's own events: as a worker reads the stream."""

    def __init__(self) -> None:
        self._chunks = ChunkReader()
        self._events = anthropic.StreamDecoder()

    def feed(self, data: bytes) -> list[n.StreamEvent]:
        return [out for event in self._chunks.feed(data) for out in self._events.event(event)]

    def end(self) -> list[n.StreamEvent]:
        return self._events.end()


def invoked_stream(row: Row) -> Findings:
    given = [parse(data) for data in invoked(row.body)]
    yield from _stream(row, given, InvokeDecoder)
