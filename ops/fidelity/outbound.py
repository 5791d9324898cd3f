"""What only providers speak: nothing that an answer or a stream says may be lost on the way in."""

from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import Struct
from ops.fidelity import streams
from ops.fidelity.equivalence import Json, lost, parse
from ops.fidelity.exchange import compared, nothing_dropped, opened, refusal
from ops.fidelity.finding import Findings, wrong
from ops.fidelity.rows import Row

from breakwater_gateway.worker.wire import neutral as n
from breakwater_gateway.worker.wire.bad_request import BadRequest
from breakwater_protocol import failures as f
from breakwater_protocol.chat import Usage


class Told(Struct):
    """What a stream says, read the naive way."""

    text: str = ""
    thought: str = ""
    calls: list[tuple[str, str, Json]] = []
    """Id, name, arguments."""
    finish: str = ""
    usage: Usage | None = None
    done: bool = False
    failed: bool = False


def requested(
    row: Row,
    decode: Callable[..., n.Request],
    encode: Callable[..., n.Call],
    *,
    canonical: Callable[[Json], Json],
    quirks: dict[str, object] | None = None,
) -> Findings:
    try:
        asked = decode(row.request_body, path=row.url)
    except BadRequest as error:
        yield refusal(row, error)
        return
    call = encode(asked, n.Target(asked.model, quirks or {}))
    ours, theirs = (canonical(parse(body)) for body in (call.body, row.request_body))
    yield from compared("request", ours, theirs)
    yield from nothing_dropped(call)


def answered(
    body: bytes,
    answer: n.Answer | f.Failure,
    *,
    failed: Callable[[Json], bool],
    usage: Callable[[Json], Usage | None],
) -> Findings:
    given = parse(body)
    told, findings = opened(answer, lambda: failed(given))
    yield from findings
    if told is None:
        return
    for leaf in lost(given, parse(msgspec.json.encode(told)))[:1]:
        yield wrong("answer: something of it is lost", leaf)
    yield from compared("usage", told.usage, usage(given))
    for candidate in told.candidates:
        if candidate.native and not candidate.finish:
            yield wrong("answer: no finish", candidate.native)


def streamed(row: Row, make: Callable[[], Any], wanted: Told) -> Findings:
    events = streams.decoded(make, row.body)
    yield from streams.contract(events)
    yield from streams.cut_anywhere(make, row.body, events)
    yield from streams.cut_short(make, row.body)
    yield from streams.ends(events, done=wanted.done and not wanted.failed, failed=wanted.failed)
    yield from compared("stream: text", "".join(streams.texts(events, n.Text)), wanted.text)
    thought = "".join(streams.texts(events, n.Thinking))
    yield from compared("stream: thoughts", thought, wanted.thought)
    calls = _calls(events)
    for mine, other in zip(calls, wanted.calls, strict=False):
        if not other[0] and mine[0]:
            mine[0] = ""  # minted: the provider gave none
    yield from compared("stream: calls", calls, wanted.calls)
    finish = [event.native for event in events if isinstance(event, n.Finished)]
    if wanted.finish and not wanted.failed:
        yield from compared("stream: finish", finish, [wanted.finish])
    known = streams.last_usage(events)
    yield from compared("stream: usage", known and known.usage, wanted.usage)


def _calls(events: list[n.StreamEvent]) -> list[list[Json]]:
    parts = [
        event.part
        for event in events
        if isinstance(event, n.PartBegan) and isinstance(event.part, n.ToolCall)
    ]
    arguments = streams.texts(events, n.ToolCall)
    return [
        [part.id, part.name, as_json(text)] for part, text in zip(parts, arguments, strict=True)
    ]


def as_json(text: str) -> Json:
    """A tool's arguments as what they say; as text when they do not parse."""
    try:
        return parse(text or "{}")
    except ValueError:
        return text
