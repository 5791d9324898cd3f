"""OpenAI's Responses API, of OpenAI and of the hosts that speak it."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Final

import msgspec
from ops.fidelity import streams
from ops.fidelity.equivalence import Json, near, parse, sse, without_nulls
from ops.fidelity.exchange import compared, nothing_dropped, opened, refusal
from ops.fidelity.finding import Findings, excused, skipped, wrong
from ops.fidelity.rows import Row

from breakwater_gateway.worker.wire import neutral as n
from breakwater_gateway.worker.wire import responses
from breakwater_gateway.worker.wire.bad_request import BadRequest
from breakwater_protocol.chat import Usage

OPENING: Final = ("response.created", "response.in_progress", "response.queued")


def stored(row: Row) -> Findings:
    """Uses of the API that are no answer of a model: kept responses listed or deleted, input counted."""
    ends = row.path.rsplit("/", 1)[-1]
    if row.method == "DELETE":
        yield skipped("responses: a stored response deleted")
    elif ends in {"input_items", "input_tokens", "compact", "cancel"}:
        yield skipped(f"responses: {ends}")


def request(row: Row) -> Findings:
    try:
        asked = responses.decode_request(row.request_body, path=row.url)
    except BadRequest as error:
        yield refusal(row, error)
        return
    call = responses.encode_request(asked, n.Target(model=asked.model))
    ours, theirs = (without_nulls(parse(body)) for body in (call.body, row.request_body))
    yield from compared("request", ours, theirs)
    yield from nothing_dropped(call)
    if not row.path.endswith(call.path):
        yield wrong("request: another path", call.path)


def answer(row: Row) -> Findings:
    given = parse(row.body)
    told, findings = opened(
        responses.decode_answer(row.body),
        lambda: bool(given.get("error")) or given.get("status") == "failed",
    )
    yield from findings
    if told is None:
        return
    written = parse(responses.encode_answer(told, model=told.model))
    yield from compared("answer", without_nulls(written), without_nulls(given))
    yield from usage(given.get("usage"), told.usage)


def usage(wire: Json, counted: Usage | None) -> Findings:
    if wire is None or counted is None:
        if (wire is None) != (counted is None):
            yield wrong("usage: not told" if counted is None else "usage: made up")
        return
    total = wire.get("total_tokens")
    if total is not None:
        yield from compared("usage: total", counted.input + counted.output, total)
    given, made = wire.get("input_tokens_details") or {}, wire.get("output_tokens_details") or {}
    yield from compared("usage: input", counted.input, wire["input_tokens"])
    # Azure reports more cached tokens than input tokens on some records.
    read = min(given.get("cached_tokens") or 0, counted.input)
    yield from compared("usage: cached", counted.cache_read, read)
    wrote = min(given.get("cache_write_tokens") or 0, counted.input - read)
    yield from compared("usage: written to the cache", counted.cache_write, wrote)
    thought = min(made.get("reasoning_tokens") or 0, counted.output)
    yield from compared("usage: reasoning", counted.reasoning, thought)


# ---- streams


def stream(row: Row) -> Findings:
    events = streams.decoded(responses.StreamDecoder, row.body)
    yield from streams.contract(events)
    yield from streams.cut_anywhere(responses.StreamDecoder, row.body, events)
    yield from streams.cut_short(responses.StreamDecoder, row.body)
    given = sse(row.body)
    types = {event.get("type") for event in given}
    failed = bool(types & {"error", "response.failed"})
    done = bool(types & {"response.completed", "response.incomplete"})
    yield from streams.ends(events, done=done and not failed, failed=failed)
    if failed:
        return
    if not done:
        yield excused("a stream that breaks off: only what came is compared")
        return
    last = [event["response"] for event in given if "response" in event][-1]
    yield from _as_a_whole(events, last)
    yield from written_again(events, given)


def _as_a_whole(events: list[n.StreamEvent], last: Json) -> Findings:
    """The stream says what the whole response in its last event says."""
    told = responses.decode_answer(msgspec.json.encode(last))
    if not isinstance(told, n.Answer):
        yield wrong(f"stream: its last answer is taken for {type(told).__name__}", told)
        return
    candidate = told.candidates[0]
    for event in events:
        if isinstance(event, n.Finished):
            ours = (event.finish, event.native)
            yield from compared("stream: finish", ours, (candidate.finish, candidate.native))
    known = streams.last_usage(events)
    yield from compared("stream: usage", known and known.usage, told.usage)
    yield from usage(last.get("usage"), told.usage)
    began = events[0]
    if isinstance(began, n.Began) and began.extra.get("background") == msgspec.Raw(b"true"):
        return  # resumed in the middle, maybe
    said, whole = ([_said(part) for part in parts] for parts in (folded(events), candidate.parts))
    if said and not whole:
        return  # hosts whose last event leaves the output out
    yield from compared("stream: parts", said, whole)


def folded(events: list[n.StreamEvent]) -> list[n.Part]:
    """The parts that a stream's events add up to."""
    parts: dict[int, n.Part] = {}
    texts: dict[int, str] = defaultdict(str)
    proofs: dict[int, str] = defaultdict(str)
    extras: dict[int, dict[str, msgspec.Raw]] = defaultdict(dict)
    for event in events:
        match event:
            case n.PartBegan():
                parts[event.index] = event.part
            case n.Grew():
                texts[event.index] += event.text
                proofs[event.index] += event.signature
                extras[event.index] |= event.extra
            case _:
                pass
    return [
        _whole(part, texts[index], proofs[index], extras[index]) for index, part in parts.items()
    ]


def _whole(part: n.Part, text: str, proof: str, extra: dict[str, msgspec.Raw]) -> n.Part:
    replace = msgspec.structs.replace
    match part:
        case n.Text() | n.Refusal():
            return replace(part, text=text)
        case n.ToolCall():
            return replace(part, arguments=text)
        case n.Thinking():
            return replace(part, text=text, signature=proof, redacted="")
        case n.Native() if "item" in extra:
            return replace(part, raw=extra["item"])
        case _:
            return part


def _said(part: n.Part) -> tuple[object, ...]:
    match part:
        case n.Text(text=text) | n.Refusal(text=text):
            return type(part).__name__, text
        case n.ToolCall():
            return "ToolCall", part.id, part.name, part.arguments
        case n.Thinking():
            given = part.id.partition("_tmp_")[0]  # OpenRouter mints one an event
            return "Thinking", given, part.text, bool(part.signature + part.redacted)
        case n.Native(raw=raw):
            return "Native", proven(parse(bytes(raw)))
        case _:
            return type(part).__name__, msgspec.to_builtins(part)


def proven(item: Json) -> Json:
    """Reasoning is encrypted anew for the last event: only that there is some can be compared."""
    if "_tmp_" in str(item.get("id", "")):
        item["id"] = "an id of this event alone"
    return item | {"encrypted_content": bool(item.get("encrypted_content"))}


def written_again(events: list[n.StreamEvent], given: list[Json]) -> Findings:
    """The same events in the same order; obfuscation and repeated states of the start aside."""
    again = [parse(chunk) for chunk in responses.StreamEncoder(model="").feed(events)]
    if [event["sequence_number"] for event in again] != list(range(len(again))):
        yield wrong("stream: written again, it is not numbered")
    if irregular(given):
        yield excused("a stream in another order than OpenAI's: only what it says is compared")
        return
    ours = [bare(event) for event in again if event["type"] not in OPENING]
    theirs = [
        bare(event)
        for event in given
        if event["type"] not in OPENING and event.get("delta") != ""  # repeated by nobody
    ]
    names = [[event["type"] for event in side] for side in (ours, theirs)]
    if names[0] != names[1]:
        yield from compared("stream: events written", *names)
        return
    for mine, other in zip(ours, theirs, strict=True):
        _level(mine, other)
        yield from compared(f"stream: {mine['type']}", rounded(mine, other), other)


def irregular(given: list[Json]) -> bool:
    """Items that never end but in the whole response, or contents counted across items."""
    added = {event["output_index"] for event in _of(given, "response.output_item.added")}
    ended = {event["output_index"] for event in _of(given, "response.output_item.done")}
    firsts: dict[object, int] = {}
    for event in given:
        if "content_index" in event:
            firsts.setdefault(event.get("item_id"), event["content_index"])
    return bool(added - ended) or any(firsts.values())


def _of(given: list[Json], kind: str) -> Iterator[Json]:
    return (event for event in given if event.get("type") == kind)


def _level(mine: Json, other: Json) -> None:
    """Put right what hosts add, leave out or prove anew."""
    kind = other["type"]
    if kind == "response.function_call_arguments.done":
        other.pop("name", None)  # OpenRouter's; OpenAI does not send it
        mine.pop("name", None)
    if kind == "response.content_part.added" and other["part"].get("type") == "output_text":
        other["part"].setdefault("logprobs", [])
        other["part"].setdefault("annotations", [])
    if kind.startswith("response.output_text."):
        other.setdefault("logprobs", [])
        mine.setdefault("logprobs", [])
    if kind == "response.output_item.added":
        for added in (mine, other):  # of nothing yet
            added["item"].pop("encrypted_content", None)
    if "response" in other:
        for event in (mine, other):
            event["response"]["output"] = [proven(item) for item in event["response"]["output"]]
    for event in (mine, other):
        levelled = without_nulls(event)
        event.clear()
        event.update(levelled)


def rounded(mine: Json, other: Json) -> Json:
    """Mine, with the other's log probabilities where they are the same: the whole item rounds them anew."""
    if isinstance(mine, dict) and isinstance(other, dict):
        return {
            name: other[name]
            if name == "logprob" and near(value, other.get(name))
            else rounded(value, other.get(name))
            for name, value in mine.items()
        }
    if isinstance(mine, list) and isinstance(other, list) and len(mine) == len(other):
        return [rounded(one, two) for one, two in zip(mine, other, strict=True)]
    return mine


def bare(event: Json) -> Json:
    for name in ("sequence_number", "obfuscation"):
        event.pop(name, None)
    return event
