"""Every recorded exchange of Bedrock, replayed."""

import json
from collections.abc import Iterator

from tests.wire.outbound import Json, cuts, events, keeps_the_contract, lost, same_json, text_of
from tests.wire.recordings import Row, needs_recordings, rows

from breakwater_gateway.worker.wire import bedrock
from breakwater_gateway.worker.wire import neutral as n
from breakwater_gateway.worker.wire.bedrock import eventstream as es
from breakwater_gateway.worker.wire.bedrock import invoke
from breakwater_protocol import failures as f
from breakwater_protocol.chat import Usage

pytestmark = needs_recordings


def converse(*, streamed: bool) -> Iterator[Row]:
    for row in rows("bedrock", "converse"):
        if row.body.startswith(b"\0") == streamed:
            yield row


def test_each_request_comes_out_as_it_went_in() -> None:
    count = 0
    for row in rows("bedrock", "converse"):
        request = bedrock.decode_request(row.request_body, path=row.url)
        call = bedrock.encode_request(request, n.Target(request.model))
        assert same_json(row.request_body, call.body), row.id
        assert row.url.replace(":", "%3A").endswith(call.path), row.id
        assert not call.dropped, row.id
        count += 1
    assert count >= 200


def test_each_answer_is_read_without_loss() -> None:
    count = 0
    for row in converse(streamed=False):
        if row.status != 200:
            continue
        found = bedrock.decode_answer(row.body)
        assert isinstance(found, n.Answer), row.id
        assert not lost(row.body, found), row.id
        assert found.candidates[0].finish, row.id
        check_usage(row.id, json.loads(row.body)["usage"], found.usage)
        count += 1
    assert count >= 150


def check_usage(row_id: str, given: dict[str, Json], used: Usage | None) -> None:
    """The provider's total is the sum of ours."""
    assert used is not None, row_id
    assert used.output == given["outputTokens"], row_id
    assert used.cache_read == given.get("cacheReadInputTokens", 0), row_id
    assert used.cache_write == given.get("cacheWriteInputTokens", 0), row_id
    if "totalTokens" in given:
        assert used.input + used.output == given["totalTokens"], row_id


def test_each_stream_says_what_its_frames_say_at_any_cut() -> None:
    count = 0
    for row in converse(streamed=True):
        found = events(bedrock.StreamDecoder, row.body)
        assert keeps_the_contract(found), row.id
        assert found[-1] == n.Done(), row.id
        parser = es.FrameParser()
        said = [(x.text(":event-type"), json.loads(x.payload)) for x in parser.feed(row.body)]
        assert not parser.error, row.id
        deltas = [payload["delta"] for name, payload in said if name == "contentBlockDelta"]
        assert text_of(found, n.Text) == "".join(one.get("text", "") for one in deltas), row.id
        thought = "".join(one.get("reasoningContent", {}).get("text", "") for one in deltas)
        assert text_of(found, n.Thinking) == thought, row.id
        check_calls(row.id, said, found)
        (metadata,) = [payload for name, payload in said if name == "metadata"]
        (used,) = [event.usage for event in found if isinstance(event, n.UsageKnown)]
        check_usage(row.id, metadata["usage"], used)
        (stop,) = [payload for name, payload in said if name == "messageStop"]
        (finished,) = [event for event in found if isinstance(event, n.Finished)]
        assert finished.native == stop["stopReason"], row.id
        for pieces in cuts(row.body):
            assert events(bedrock.StreamDecoder, *pieces) == found, row.id
        # The writer makes the same bytes of the same frames.
        again = b"".join(
            es.encode_event(x.text(":event-type"), x.payload)
            for x in es.FrameParser().feed(row.body)
        )
        assert again == row.body, row.id
        count += 1
    assert count >= 30


def check_calls(row_id: str, said: list[tuple[str, Json]], found: list[n.StreamEvent]) -> None:
    written: dict[int, str] = {}
    names: dict[int, tuple[str, str]] = {}
    hosted: set[int] = set()
    for name, payload in said:
        at = payload.get("contentBlockIndex", 0)
        if name == "contentBlockStart" and "toolUse" in payload["start"]:
            call = payload["start"]["toolUse"]
            names[at] = (call["toolUseId"], call["name"])
            if call.get("type") == "server_tool_use":
                hosted.add(at)
        if name == "contentBlockDelta" and "toolUse" in payload["delta"]:
            written[at] = written.get(at, "") + payload["delta"]["toolUse"]["input"]
    began = [event for event in found if isinstance(event, n.PartBegan)]
    calls = [e for e in began if isinstance(e.part, n.ToolCall)]
    natives = [e.part for e in began if isinstance(e.part, n.Native)]
    assert [(e.part.id, e.part.name) for e in calls if isinstance(e.part, n.ToolCall)] == [
        names[at] for at in sorted(names) if at not in hosted
    ], row_id
    grown = [
        "".join(g.text for g in found if isinstance(g, n.Grew) and g.index == e.index)
        for e in calls
    ]
    assert grown == [written.get(at, "") for at in sorted(names) if at not in hosted], row_id
    for at in hosted:
        whole = [json.loads(bytes(part.raw)).get("toolUse") for part in natives]
        assert json.loads(written[at]) in [one["input"] for one in whole if one], row_id


def test_each_error_is_classified() -> None:
    count = 0
    for row in [*rows("bedrock", "converse"), *rows("bedrock", "invoke")]:
        if row.status == 200:
            continue
        found = bedrock.classify(row.status, row.headers, row.body, now=0)
        assert found.provider_status == row.status
        expected: tuple[type[f.Failure], ...] = {
            400: (f.InvalidRequest, f.ModelNotFound, f.ContextLength),
            403: (f.KeyRejected, f.KeyForbidden),
        }[row.status]
        assert isinstance(found, expected), row.id
        if b"model identifier is invalid" in row.body:
            assert isinstance(found, f.ModelNotFound), row.id
        count += 1
    assert count >= 15


def test_each_invoke_stream_is_unwrapped_at_any_cut() -> None:
    count = 0
    for row in rows("bedrock", "invoke", stream=True):
        whole = invoke.ChunkReader()
        found = whole.feed(row.body)
        assert whole.failure is None, row.id
        assert not whole.pending, row.id
        assert found, row.id
        assert all(isinstance(json.loads(event), dict) for event in found), row.id
        cut = invoke.ChunkReader()
        assert [x for at in range(len(row.body)) for x in cut.feed(row.body[at : at + 1])] == found
        count += 1
    assert count >= 20


def test_each_answer_of_an_embedding_model_has_its_vectors() -> None:
    count = 0
    for row in rows("bedrock", "invoke", stream=False):
        if "embed" not in row.url or row.status != 200:
            continue
        found = bedrock.decode_embeddings(row.body)
        assert isinstance(found, n.EmbeddingsAnswer), row.id
        texts = json.loads(row.request_body).get("texts", [""])
        assert len(found.vectors) == len(texts), row.id
        assert len(found.vectors[0]) >= 256, row.id
        counted = row.headers.get("x-amzn-bedrock-input-token-count")
        if found.usage is not None and counted is not None:
            assert found.usage.input == int(counted), row.id
        count += 1
    assert count >= 20
