"""Calls that nobody could make are failures, in whole answers and at the end of streams."""

import json

import pytest

from breakwater_gateway.worker.exchange import NativeChat, Whole
from breakwater_gateway.worker.wire import neutral
from breakwater_gateway.worker.wire.tool_calls import Mended, mend, mend_openai, usable
from breakwater_protocol import failures as f


@pytest.mark.parametrize(
    ("arguments", "good"),
    [('{"a":1}', True), ("{}", True), ("", True), (" ", True)]
    + [(bad, False) for bad in ('{"a":', "[1]", '"x"', "7", "null", "nope", "[" * 10_000)],
)
def test_arguments_are_a_json_object(arguments: str, good: bool) -> None:
    assert usable(arguments) is good


def exchange() -> NativeChat:
    return NativeChat(neutral.Call("/x", b"{}"), usage_wanted=True, limit=1 << 20)


def answer(arguments: str, finish: str) -> bytes:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    return json.dumps(
        {"choices": [{"index": 0, "message": message, "finish_reason": finish}]}
    ).encode()


def chunk(arguments: str | None, finish: str | None = None) -> bytes:
    function = {"name": "f", "arguments": arguments}
    delta = (
        {} if arguments is None else {"tool_calls": [{"index": 0, "id": "c", "function": function}]}
    )
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


def test_a_whole_answer_with_a_spoilt_call_is_a_failure_naming_the_tool() -> None:
    got = exchange().answer(answer("[1]", "tool_calls"))
    assert isinstance(got, f.MalformedToolCall)
    assert "tool f" in got.message
    assert isinstance(exchange().answer(answer('{"a":1}', "tool_calls")), Whole)


def test_a_call_cut_off_by_the_token_limit_is_what_it_says() -> None:
    assert isinstance(exchange().answer(answer('{"a":', "length")), Whole)


def test_a_stream_with_a_spoilt_call_does_not_finish_as_if_it_had_one() -> None:
    got = exchange().feed(chunk('{"a"') + chunk(None, "tool_calls") + b"data: [DONE]\n\n")
    assert isinstance(got.failure, f.MalformedToolCall)
    assert not any(b'finish_reason": "tool_calls' in line for line in got.lines)


def test_a_stream_whose_fragments_make_an_object_is_whole() -> None:
    reader = exchange()
    got = reader.feed(
        chunk('{"a"') + chunk(":1}") + chunk(None, "tool_calls") + b"data: [DONE]\n\n"
    )
    assert got.failure is None
    assert len(got.lines) == 3
    assert reader.whole


def test_a_neutral_answer_is_judged_alike() -> None:
    call = neutral.ToolCall(id="c", name="f", arguments="nope")
    spoilt = neutral.Answer("openai", candidates=[neutral.Candidate([call], "tool_calls")])
    assert isinstance(mend(spoilt), f.MalformedToolCall)
    cut = neutral.Answer("openai", candidates=[neutral.Candidate([call], "length")])
    assert mend(cut) == Mended(cut)


def test_what_has_one_reading_is_repaired_and_said_to_be() -> None:
    got = exchange().answer(answer("{'a': 1,}", "tool_calls"))
    assert isinstance(got, Whole)
    assert got.repaired
    (choice,) = json.loads(got.body)["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["tool_calls"][0] == {
        "id": "c",
        "type": "function",
        "function": {"name": "f", "arguments": '{"a":1}'},
    }


def test_what_is_right_passes_as_it_came() -> None:
    body = answer('{"a": 1}', "tool_calls")
    assert exchange().answer(body) == Whole(body, None)
    assert mend_openai(body) is None


def test_of_several_calls_only_the_spoilt_one_is_touched() -> None:
    tree = json.loads(answer('{"a": 1}', "tool_calls"))
    calls = tree["choices"][0]["message"]["tool_calls"]
    calls.append({"id": "d", "type": "function", "function": {"name": "g", "arguments": "{b: 2}"}})
    got = mend_openai(json.dumps(tree).encode())
    assert isinstance(got, bytes)
    calls[1]["function"]["arguments"] = '{"b":2}'
    assert json.loads(got) == tree


def test_a_neutral_answer_is_repaired_alike() -> None:
    call = neutral.ToolCall(id="c", name="f", arguments="{'a': True}")
    got = mend(neutral.Answer("openai", candidates=[neutral.Candidate([call], "tool_calls")]))
    assert isinstance(got, Mended)
    assert got.repaired
    (part,) = got.answer.candidates[0].parts
    assert isinstance(part, neutral.ToolCall)
    assert part.arguments == '{"a":true}'


def test_a_spoilt_call_tells_what_was_written_and_what_is_wrong() -> None:
    got = exchange().answer(answer('{"a": Zanzibar', "tool_calls"))
    assert isinstance(got, f.MalformedToolCall)
    assert (got.tool, got.written) == ("f", '{"a": Zanzibar')
    assert "JSON is malformed" in got.fault
    assert "Zanzibar" not in got.message + got.fault
