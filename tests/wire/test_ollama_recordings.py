"""Every recorded exchange of Ollama's native chat, replayed.

`chat` and `embeddings` of its recordings are OpenAI's dialect, but for one of the older
`/api/embeddings`; `ollama_generate` is another API.
"""

import json

from tests.wire.outbound import cuts, events, keeps_the_contract, lost, same_json, text_of
from tests.wire.recordings import needs_recordings, rows

from breakwater_gateway.worker.wire import neutral as n
from breakwater_gateway.worker.wire import ollama
from breakwater_protocol import failures as f
from breakwater_protocol.chat import Usage

pytestmark = needs_recordings


def test_each_request_comes_out_as_it_went_in() -> None:
    count = 0
    for row in rows("ollama", "ollama_chat"):
        request = ollama.decode_request(row.request_body)
        call = ollama.encode_request(request, n.Target(request.model))
        assert same_json(row.request_body, call.body), row.id
        assert row.url.endswith(call.path), row.id
        assert request.stream == row.stream, row.id
        assert not call.dropped, row.id
        count += 1
    assert count >= 15


def test_each_answer_is_read_without_loss() -> None:
    count = 0
    for row in rows("ollama", "ollama_chat", stream=False):
        if row.status != 200:
            assert isinstance(ollama.classify(row.status, {}, row.body, now=0), f.ModelNotFound)
            continue
        found = ollama.decode_answer(row.body)
        assert isinstance(found, n.Answer), row.id
        # An empty `content` stands beside calls; `done` and the counts are said by what they mean.
        counts = json.loads(row.body)
        spoken = {"''", "True", repr(counts["eval_count"]), repr(counts["prompt_eval_count"])}
        assert set(lost(row.body, found)) <= spoken, row.id
        assert found.candidates[0].parts, row.id
        assert found.created > 1_700_000_000, row.id
        used = Usage(input=counts["prompt_eval_count"], output=counts["eval_count"])
        assert found.usage == used, row.id
        count += 1
    assert count >= 5


def test_each_stream_says_what_its_lines_say_at_any_cut() -> None:
    count = 0
    for row in rows("ollama", "ollama_chat", stream=True):
        found = events(ollama.StreamDecoder, row.body)
        assert keeps_the_contract(found), row.id
        assert found[-1] == n.Done(), row.id
        said = [json.loads(line) for line in row.body.splitlines() if line.strip()]
        messages = [one["message"] for one in said]
        texts = "".join(one.get("content", "") for one in messages)
        assert text_of(found, n.Text) == texts, row.id
        thoughts = "".join(one.get("thinking", "") for one in messages)
        assert text_of(found, n.Thinking) == thoughts, row.id
        calls = [call["function"] for one in messages for call in one.get("tool_calls", ())]
        began = [event for event in found if isinstance(event, n.PartBegan)]
        parts = [event.part for event in began if isinstance(event.part, n.ToolCall)]
        assert [part.name for part in parts] == [call["name"] for call in calls], row.id
        assert all(part.id for part in parts), row.id
        if len(calls) == 1:
            assert json.loads(text_of(found, n.ToolCall)) == calls[0]["arguments"], row.id
        (known,) = [event.usage for event in found if isinstance(event, n.UsageKnown)]
        last = said[-1]
        assert known == Usage(input=last["prompt_eval_count"], output=last["eval_count"]), row.id
        for pieces in cuts(row.body):
            assert events(ollama.StreamDecoder, *pieces) == found, row.id
        count += 1
    assert count >= 10
