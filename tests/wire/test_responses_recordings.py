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

NOT_ANSWERS: Final = {
    "c132a81f06483679570d": "the deletion of a stored response",
    "edd5aa9274550a9f2918": "a list of a stored response's input",
}

NOT_AS_WRITTEN: Final = {
    "1cee44402d0470f3fd05": "vLLM's own events of reasoning, and contents counted across items",
    "91038929f14d2ef416c5": "items whose end only the whole response tells; ours tells it before",
    "81da9e6a7e5daa64d4b3": "log probabilities are rounded anew in the whole item",
}

WITHOUT_MODEL: Final = {
    "41521d23f7a41fba74b0": "the stored prompt names the model: a gateway has nothing to choose by",
    "f31546e0e9e2babe48f1": "the same",
}

json: Final = msgspec.json.decode


@cache
def recorded(provider: str) -> tuple[Row, ...]:
    return tuple(rows(provider, "responses"))


def replayed(*, stream: bool | None = None, good: bool | None = True) -> Iterator[Row]:
    for provider in PROVIDERS:
        for row in recorded(provider):
            if (
                row.id not in NOT_ANSWERS
                and stream in {None, row.stream}
                and good in {None, row.status == 200}
            ):
                yield row


def test_every_recorded_request_comes_back_equivalent() -> None:
    count = 0
    for row in replayed(good=None):
        if not row.request_body or row.id in WITHOUT_MODEL:
            continue
        request = responses.decode_request(row.request_body, path=row.url)
        call = responses.encode_request(request, n.Target(model=request.model))
        assert same(json(call.body), json(row.request_body)), row.id
        assert call.dropped == (), row.id
        assert row.url.split("?")[0].endswith(call.path), row.id
        count += 1
    assert count > 780


def test_a_request_that_names_no_model_is_refused() -> None:
    for row in replayed(good=None):
        if row.id in WITHOUT_MODEL:
            with pytest.raises(BadRequest) as refused:
                responses.decode_request(row.request_body)
            assert refused.value.param == "model"


def test_every_recorded_answer_comes_back_equivalent() -> None:
    count = 0
    for row in replayed(stream=False):
        answer = responses.decode_answer(row.body)
        assert isinstance(answer, n.Answer), (row.id, answer)
        again = responses.encode_answer(answer, model=answer.model)
        assert same(json(again), json(row.body)), row.id
        count += 1
    assert count > 610


def test_usage_is_the_providers_own_arithmetic() -> None:
    for row in replayed(stream=False):
        answer = responses.decode_answer(row.body)
        assert isinstance(answer, n.Answer), row.id
        check_usage(row.id, json(row.body).get("usage"), answer.usage)


def check_usage(row_id: str, wire: dict[str, Any] | None, usage: Usage | None) -> None:
    assert (usage is None) == (wire is None), row_id
    if wire is None or usage is None:
        return
    assert usage.input + usage.output == wire["total_tokens"], row_id
    assert usage.input == wire["input_tokens"], row_id
    given = wire["input_tokens_details"]
    assert usage.cache_read == min(given["cached_tokens"], usage.input), row_id
    assert usage.cache_write == given.get("cache_write_tokens", 0), row_id
    assert usage.reasoning == wire["output_tokens_details"]["reasoning_tokens"], row_id


def decoded(body: bytes, *cuts: int) -> list[n.StreamEvent]:
    decoder = responses.StreamDecoder()
    events: list[n.StreamEvent] = []
    start = 0
    for cut in (*cuts, len(body)):
        events.extend(decoder.feed(body[start:cut]))
        start = cut
    return events + decoder.end()


def test_every_recorded_stream_says_what_its_last_event_says() -> None:
    count = 0
    for row in replayed(stream=True):
        events = decoded(row.body)
        assert isinstance(events[0], n.Began), row.id
        assert events[-1] == n.Done(), row.id
        last = [event["response"] for event in sse(row.body) if "response" in event][-1]
        answer = responses.decode_answer(msgspec.json.encode(last))
        assert isinstance(answer, n.Answer), row.id
        candidate = answer.candidates[0]
        finished = next(event for event in events if isinstance(event, n.Finished))
        assert (finished.finish, finished.native) == (candidate.finish, candidate.native), row.id
        usage = [event.usage for event in events if isinstance(event, n.UsageKnown)]
        assert usage == [answer.usage], row.id
        if events[0].extra.get("background") != msgspec.Raw(b"true"):
            assert [said(p) for p in folded(row.id, events)] == [
                said(p) for p in candidate.parts
            ], row.id
        count += 1
    assert count > 150


def folded(row_id: str, events: list[n.StreamEvent]) -> list[n.Part]:
    """The parts that a stream's events add up to; every part ends once, and nothing grows after its end."""
    parts: dict[int, n.Part] = {}
    texts: dict[int, str] = defaultdict(str)
    proofs: dict[int, str] = defaultdict(str)
    extras: dict[int, dict[str, msgspec.Raw]] = defaultdict(dict)
    still_open: set[int] = set()
    for event in events:
        match event:
            case n.PartBegan():
                assert event.index == len(parts), row_id
                parts[event.index] = event.part
                still_open.add(event.index)
            case n.Grew():
                assert event.index in still_open, row_id
                texts[event.index] += event.text
                proofs[event.index] += event.signature
                extras[event.index] |= event.extra
            case n.PartEnded():
                still_open.remove(event.index)
            case n.Finished():
                assert not still_open, row_id
            case _:
                pass
    return [
        whole(part, texts[index], proofs[index], extras[index]) for index, part in parts.items()
    ]


def whole(part: n.Part, text: str, proof: str, extra: dict[str, msgspec.Raw]) -> n.Part:
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


def said(part: n.Part) -> tuple[object, ...]:
    match part:
        case n.Text(text=text) | n.Refusal(text=text):
            return type(part), text
        case n.ToolCall():
            return n.ToolCall, part.id, part.name, part.arguments
        case n.Thinking():
            given = part.id.partition("_tmp_")[0]  # OpenRouter mints one an event
            return n.Thinking, given, part.text, bool(part.signature + part.redacted)
        case n.Native(raw=raw):
            return n.Native, str(proven(json(raw)))
        case _:
            return (part,)


def test_every_recorded_stream_is_written_again() -> None:
    """The same events in the same order; obfuscation and repeated states of the start aside."""
    for row in replayed(stream=True):
        events = decoded(row.body)
        encoder = responses.StreamEncoder(model="")
        again = [json(chunk) for chunk in encoder.feed(events)]
        assert [event["sequence_number"] for event in again] == list(range(len(again)))
        if row.id in NOT_AS_WRITTEN:
            continue
        ours, theirs = [bare(event) for event in again], [bare(event) for event in sse(row.body)]
        opening = ("response.created", "response.in_progress", "response.queued")
        ours = [event for event in ours if event["type"] not in opening]
        theirs = [event for event in theirs if event["type"] not in opening]
        # Fragments without text are not repeated.
        theirs = [event for event in theirs if event.get("delta") != ""]
        assert [e["type"] for e in ours] == [e["type"] for e in theirs], row.id
        for mine, other in zip(ours, theirs, strict=True):
            if mine["type"] == "response.function_call_arguments.done":
                other.pop("name", None)  # OpenRouter's; OpenAI does not send it
            if (
                other["type"] == "response.content_part.added"
                and other["part"]["type"] == "output_text"
            ):
                other["part"].setdefault("logprobs", [])
                other["part"].setdefault("annotations", [])
            if other["type"].startswith("response.output_text."):
                other.setdefault("logprobs", [])
                mine.setdefault("logprobs", [])
            if other["type"] == "response.output_item.added":
                for added in (mine, other):  # of nothing yet
                    added["item"].pop("encrypted_content", None)
            if "response" in other:
                mine["response"]["output"] = list(map(proven, mine["response"]["output"]))
                other["response"]["output"] = list(map(proven, other["response"]["output"]))
            assert same(mine, other), (row.id, mine["type"], mine, other)


def proven(item: dict[str, Any]) -> dict[str, Any]:
    """Reasoning is encrypted anew for the last event: only that there is some can be compared."""
    if "_tmp_" in item.get("id", ""):
        item["id"] = "an id of this event alone"
    return item | {"encrypted_content": bool(item.get("encrypted_content"))}


def bare(event: dict[str, Any]) -> dict[str, Any]:
    for name in ("sequence_number", "obfuscation"):
        event.pop(name, None)
    return event


def sse(body: bytes) -> list[dict[str, Any]]:
    blocks = body.replace(b"\r\n", b"\n").split(b"\n\n")
    lines = [line for block in blocks for line in block.split(b"\n")]
    data = [line[5:].strip() for line in lines if line.startswith(b"data:")]
    return [json(text) for text in data if text != b"[DONE]"]


def test_where_a_stream_is_cut_makes_no_difference() -> None:
    small = large = 0
    for row in replayed(stream=True):
        whole = decoded(row.body)
        if len(row.body) < 6000 and small < 4:
            small += 1
            for cut in range(len(row.body)):
                assert decoded(row.body, cut) == whole, (row.id, cut)
        else:
            large += 1
            step = len(row.body) // 3 + 1
            for shift in (1, 7):
                cuts = range(shift, len(row.body), step)
                assert decoded(row.body, *cuts) == whole, row.id
            if len(row.body) < 12_000:
                assert decoded(row.body, *range(1, len(row.body))) == whole, row.id
    assert large


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


def same(one: object, other: object) -> bool:
    """Equal JSON, where a member that is null counts as absent."""
    if isinstance(one, dict) and isinstance(other, dict):
        left, right = present(one), present(other)
        return left.keys() == right.keys() and all(same(v, right[k]) for k, v in left.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def present(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
