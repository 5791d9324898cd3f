"""Every recorded exchange of Cohere's v2 API, replayed. `chat_v1`, `rerank` and `models` are other APIs."""

import json

from tests.wire.outbound import Json, cuts, events, keeps_the_contract, lost, same_json, text_of
from tests.wire.recordings import needs_recordings, rows

from breakwater_gateway.worker.wire import cohere
from breakwater_gateway.worker.wire import neutral as n
from breakwater_protocol import failures as f
from breakwater_protocol.chat import Usage

pytestmark = needs_recordings


def test_each_request_comes_out_as_it_went_in() -> None:
    count = 0
    for row in rows("cohere", "chat_v2"):
        request = cohere.decode_request(row.request_body)
        call = cohere.encode_request(request, n.Target(request.model))
        assert same_json(row.request_body, call.body), row.id
        assert row.url.endswith(call.path), row.id
        assert not call.dropped, row.id
        count += 1
    assert count >= 60


def test_each_answer_is_read_without_loss() -> None:
    count = 0
    for row in rows("cohere", "chat_v2", stream=False):
        if row.status != 200:
            continue
        found = cohere.decode_answer(row.body)
        assert isinstance(found, n.Answer), row.id
        assert not lost(row.body, found), row.id
        assert found.candidates[0].finish, row.id
        check_usage(row.id, json.loads(row.body)["usage"], found.usage)
        count += 1
    assert count >= 50


def check_usage(row_id: str, given: Json, used: Usage | None) -> None:
    assert used is not None, row_id
    tokens = given["tokens"]
    assert used.input == tokens["input_tokens"] >= given["billed_units"]["input_tokens"], row_id
    assert used.output == tokens["output_tokens"], row_id
    assert used.cache_read == given.get("cached_tokens", 0), row_id
    assert used.reasoning == tokens.get("reasoning_tokens", 0), row_id


def test_each_stream_says_what_its_events_say_at_any_cut() -> None:
    count = 0
    for row in rows("cohere", "chat_v2", stream=True):
        found = events(cohere.StreamDecoder, row.body)
        assert keeps_the_contract(found), row.id
        lines = [x[6:] for x in row.body.decode().splitlines() if x.startswith("data: {")]
        said = [json.loads(line) for line in lines]
        messages = [one["delta"]["message"] for one in said if "message" in one.get("delta", {})]
        contents = [x["content"] for x in messages if isinstance(x.get("content"), dict)]
        plans = "".join(one.get("tool_plan", "") for one in messages)
        thoughts = "".join(one.get("thinking", "") for one in contents)
        calls = [x["tool_calls"] for x in messages if isinstance(x.get("tool_calls"), dict)]
        arguments = "".join(one["function"].get("arguments", "") for one in calls)
        assert text_of(found, n.Text) == "".join(x.get("text", "") for x in contents), row.id
        assert text_of(found, n.Thinking) == plans + thoughts, row.id
        assert text_of(found, n.ToolCall) == arguments, row.id
        began = [e.part for e in found if isinstance(e, n.PartBegan)]
        assert [(p.id, p.name) for p in began if isinstance(p, n.ToolCall)] == [
            (one["id"], one["function"]["name"]) for one in calls if "id" in one
        ], row.id
        cited = [e for e in found if isinstance(e, n.Grew) and "citations" in e.extra]
        assert len(cited) == sum(one["type"] == "citation-start" for one in said), row.id
        check_end(row.id, said[-1]["delta"], found)
        for pieces in cuts(row.body):
            assert events(cohere.StreamDecoder, *pieces) == found, row.id
        count += 1
    assert count >= 10


def check_end(row_id: str, delta: Json, found: list[n.StreamEvent]) -> None:
    last = found[-1]
    if delta["finish_reason"] == "ERROR":
        assert isinstance(last, n.Broke), row_id
        assert isinstance(last.failure, f.MalformedToolCall), row_id
        return
    assert last == n.Done(), row_id
    (finished,) = [event for event in found if isinstance(event, n.Finished)]
    assert finished.native == delta["finish_reason"], row_id
    (known,) = [event for event in found if isinstance(event, n.UsageKnown)]
    check_usage(row_id, delta["usage"], known.usage)


def test_each_embedding_is_asked_for_and_read() -> None:
    count = 0
    for row in rows("cohere", "embeddings"):
        request = cohere.decode_embeddings_request(row.request_body)
        call = cohere.encode_embeddings(request, n.Target(request.model))
        assert same_json(row.request_body, call.body), row.id
        if row.status != 200:
            continue
        found = cohere.decode_embeddings(row.body)
        assert isinstance(found, n.EmbeddingsAnswer), row.id
        assert len(found.vectors) == len(request.inputs), row.id
        billed = json.loads(row.body)["meta"]["billed_units"]["input_tokens"]
        assert found.usage == Usage(input=billed), row.id
        count += 1
    assert count >= 8


KINDS = {
    400: (f.InvalidRequest, f.ContextLength),
    401: (f.KeyRejected,),
    404: (f.ModelNotFound,),
}


def test_each_error_is_classified() -> None:
    failed = [row for row in rows("cohere") if row.status != 200]
    assert len(failed) >= 4
    for row in failed:
        found = cohere.classify(row.status, row.headers, row.body, now=0)
        assert isinstance(found, KINDS[row.status]), row.id
