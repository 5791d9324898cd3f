"""The Responses API to and from the neutral vocabulary: hand-made exchanges, the official SDK, hostile bytes."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw
from openai import OpenAI
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from breakwater_gateway.worker.wire import neutral as n
from breakwater_gateway.worker.wire import responses
from breakwater_gateway.worker.wire.bad_request import BadRequest
from breakwater_protocol import failures as f
from breakwater_protocol.chat import Usage

Json = dict[str, Any]


def read(**fields: object) -> n.Request:
    return responses.decode_request(json.dumps({"model": "m", "input": "hi"} | fields).encode())


def turns(*items: Json) -> list[n.Turn]:
    return read(input=list(items)).turns


def written(request: n.Request, **quirks: object) -> tuple[Json, tuple[str, ...]]:
    call = responses.encode_request(request, n.Target("host-model", quirks))
    found = json.loads(call.body)
    assert isinstance(found, dict)
    return found, call.dropped


def asked(*given: n.Turn, dialect: n.DialectName = "openai", **fields: Any) -> n.Request:  # noqa: ANN401 - any field
    return n.Request(dialect=dialect, model="m", turns=list(given) or [user("hi")], **fields)


def user(text: str) -> n.Turn:
    return n.Turn("user", [n.Text(text=text)], plain=True)


# ---------------------------------------------------------------- requests


def test_instructions_are_a_system_turn_and_a_string_is_the_users() -> None:
    request = read(instructions="be brief")
    assert [(turn.role, turn.plain) for turn in request.turns] == [("system", True), ("user", True)]
    assert written(request)[0] == {"model": "host-model", "instructions": "be brief", "input": "hi"}


CALL = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
SECOND = CALL | {"call_id": "c2"}
RESULT = {"type": "function_call_output", "call_id": "c1", "output": "ok"}
THOUGHT = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gA"}
REPLY = {
    "type": "message",
    "id": "msg_1",
    "role": "assistant",
    "status": "completed",
    "content": [{"type": "output_text", "text": "a", "annotations": []}],
}


def test_what_the_assistant_made_in_a_row_is_one_turn() -> None:
    items: list[Json] = [{"role": "user", "content": "q"}, THOUGHT, REPLY, CALL, SECOND, RESULT]
    found = turns(*items)
    assert [turn.role for turn in found] == ["user", "assistant", "tool"]
    kinds = [type(part) for part in found[1].parts]
    assert kinds == [n.Thinking, n.Text, n.ToolCall, n.ToolCall]
    assert written(read(input=items))[0]["input"] == items


def test_two_messages_of_the_assistant_stay_two() -> None:
    items = [REPLY, REPLY | {"id": "msg_2", "phase": "final_answer"}]
    assert written(read(input=items))[0]["input"] == items


@pytest.mark.parametrize(
    "part",
    [
        {"type": "input_image", "image_url": "https://e.example/i.png", "detail": "low"},
        {"type": "input_image", "image_url": "data:image/png;base64,QUJD"},
        {"type": "input_image", "file_id": "file-1"},
        {"type": "input_file", "file_data": "data:application/pdf;base64,QUJD", "filename": "a"},
        {"type": "input_file", "file_url": "https://e.example/a.pdf"},
        {"type": "input_audio", "input_audio": {"data": "QUJD", "format": "wav"}},
        {"type": "input_text", "text": "x", "prompt_cache_breakpoint": {"mode": "explicit"}},
        {"type": "computer_screenshot", "file_id": "f"},
    ],
)
def test_content_comes_back_as_it_was(part: Json) -> None:
    items = [{"role": "user", "content": [part]}, RESULT | {"output": [part]}]
    assert written(read(input=items))[0]["input"] == items


def test_inline_media_are_told_apart_from_addresses() -> None:
    url = "data:image/png;base64,QUJD"
    (turn,) = turns({"role": "user", "content": [{"type": "input_image", "image_url": url}]})
    assert turn.parts == [n.Image(media_type="image/png", data="QUJD")]


def test_defaults_spelled_out_ask_for_nothing() -> None:
    request = read(
        store=False,
        background=False,
        truncation="disabled",
        include=["reasoning.encrypted_content"],
        previous_response_id=None,
        tools=[],
    )
    assert request.extra == {}
    assert responses.refusal(request) is None
    assert written(request)[0]["include"] == ["reasoning.encrypted_content"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"input": [{"type": "item_reference", "id": "rs_1"}]}, "input"),
    ],
)
def test_what_a_provider_keeps_for_its_caller_goes_to_no_other_dialect(
    fields: Json, param: str
) -> None:
    request = read(**fields)
    refused = responses.refusal(request)
    assert refused is not None
    assert refused.param == param
    assert same_fields(written(request)[0], fields)


def same_fields(body: Json, fields: Json) -> bool:
    return all(body[name] == value for name, value in fields.items())


@pytest.mark.parametrize(
    ("choice", "neutral"),
    [
        ("auto", n.ToolChoice("auto")),
        ("required", n.ToolChoice("required")),
        ({"type": "function", "name": "f"}, n.ToolChoice("named", ["f"])),
        (
            {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]},
            n.ToolChoice("auto", ["f"]),
        ),
        (
            {
                "type": "allowed_tools",
                "mode": "required",
                "tools": [{"type": "function", "name": "f"}],
            },
            n.ToolChoice("required", ["f"]),
        ),
        ({"type": "web_search"}, None),
    ],
)
def test_tool_choice(choice: object, neutral: n.ToolChoice | None) -> None:
    request = read(tool_choice=choice)
    if neutral is not None:
        assert request.tool_choice == neutral
    assert written(request)[0]["tool_choice"] == choice


def test_format_and_verbosity_share_a_field() -> None:
    schema = {"type": "json_schema", "name": "x", "schema": {"type": "object"}, "strict": True}
    request = read(text={"format": schema, "verbosity": "low"})
    assert request.format is not None
    assert request.format.kind == "schema"
    assert written(request)[0]["text"] == {"format": schema, "verbosity": "low"}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"[]", None),
        (b"\xff", None),
        (b'{"input": "hi"}', "model"),
        (b'{"model": "m"}', "input"),
        (b'{"model": "m", "input": 5}', "input"),
        (b'{"model": "m", "input": [5]}', "input[0]"),
        (b'{"model": "m", "input": [{"role": "cat", "content": ""}]}', "input[0].role"),
        (b'{"model": "m", "input": [{"role": "user"}]}', "input[0].content"),
        (b'{"model": "m", "input": [{"type": "function_call"}]}', "input[0].call_id"),
        (
            b'{"model": "m", "input": [{"role": "user", "content": [{"type": "input_text"}]}]}',
            "input[0].content[0].text",
        ),
        (b'{"model": "m", "input": "x", "tools": [{}]}', "tools[0].type"),
        (b'{"model": "m", "input": "x", "tool_choice": "maybe"}', "tool_choice"),
        (b'{"model": "m", "input": "x", "temperature": "hot"}', "temperature"),
        (b'{"model": "m", "input": "x", "text": {"format": {"type": "xml"}}}', "text.format.type"),
        (b'{"model": "m", "input": ' + b"[" * 100_000, None),
    ],
)
def test_a_body_of_another_shape_is_refused_and_the_field_named(
    body: bytes, param: str | None
) -> None:
    with pytest.raises(BadRequest) as refused:
        responses.decode_request(body)
    assert refused.value.param == param


def test_a_chat_request_becomes_items() -> None:
    call = n.ToolCall(id="c1", name="f", arguments='{"a":1}')
    request = asked(
        n.Turn("system", [n.Text(text="s")], plain=True),
        n.Turn("user", [n.Text(text="q"), n.Image(media_type="image/png", data="QUJD")]),
        n.Turn("assistant", [n.Text(text="let me look"), call, n.ToolCall(id="c2", name="g")]),
        n.Turn("tool", [n.ToolResult(call_id="c1", content=[n.Text(text="ok")], plain=True)]),
        n.Turn("tool", [n.ToolResult(call_id="c2", content=[n.Text(text="no")], is_error=True)]),
        tools=[n.Tool("f", schema=Raw(b'{"type":"object"}'))],
        max_output=5,
        stop=["x"],
        seed=1,
        reasoning=n.Reasoning(effort="low"),
        extra={"verbosity": Raw(b'"low"'), "prediction": Raw(b"{}"), "metadata": Raw(b"{}")},
    )
    body, dropped = written(request)
    assert body["input"] == [
        {"role": "system", "content": "s"},
        {
            "role": "user",
            "content": [
                {"type": "input_text", "text": "q"},
                {"type": "input_image", "image_url": "data:image/png;base64,QUJD"},
            ],
        },
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "let me look"}],
        },
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"a":1}'},
        {"type": "function_call", "call_id": "c2", "name": "g", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "ok"},
        {"type": "function_call_output", "call_id": "c2", "output": "no"},
    ]
    assert body["tools"] == [
        {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": False}
    ]
    assert body["max_output_tokens"] == 16
    assert body["store"] is False
    assert body["text"] == {"verbosity": "low"}
    assert body["reasoning"] == {"effort": "low"}
    assert body["include"] == ["reasoning.encrypted_content"]
    assert "metadata" in body
    assert set(dropped) == {
        *("messages.tool_result.is_error", "max_output", "stop", "seed", "prediction"),
    }


def test_a_format_and_verbosity_of_chat_share_a_field() -> None:
    request = asked(format=n.OutputFormat("json"), extra={"verbosity": Raw(b'"low"')})
    assert written(request)[0]["text"] == {"format": {"type": "json_object"}, "verbosity": "low"}


def test_thinking_without_a_proof_of_ours_is_named_as_dropped() -> None:
    thought = n.Thinking(text="hm", signature="sig-of-another")
    body, dropped = written(
        asked(n.Turn("assistant", [thought, n.Text(text="a")]), dialect="anthropic")
    )
    assert [item["type"] for item in body["input"]] == ["message"]
    assert dropped == ("messages.thinking",)


def test_reasoning_that_we_wrote_for_another_provider_goes_to_none() -> None:
    answer = n.Answer("anthropic", id="a", candidates=[n.Candidate([n.Thinking(text="hm")])])
    item = json.loads(responses.encode_answer(answer, model="m"))["output"][0]
    body, dropped = written(read(input=[item, {"role": "user", "content": "q"}]))
    assert [one["role"] for one in body["input"]] == ["user"]
    assert dropped == ("messages.thinking",)


def test_geminis_proof_on_a_call_comes_back_with_the_call_and_goes_to_no_other() -> None:
    call = n.ToolCall(id="c1", name="f", signature="sig")
    answer = n.Answer("gemini", id="a", candidates=[n.Candidate([call], "tool_calls")])
    whole = json.loads(responses.encode_answer(answer, model="m"))["output"][0]
    began: list[n.StreamEvent] = [
        n.Began(id="a"),
        n.PartBegan(0, call),
        n.PartEnded(0),
        n.Finished("tool_calls"),
    ]
    streamed = encoded([*began, n.Done()], "gemini")[-1]["response"]["output"][0]
    for item in (whole, streamed):
        request = read(input=[item])
        (part,) = request.turns[0].parts
        assert isinstance(part, n.ToolCall)
        assert part.signature == "sig"
        body, dropped = written(request)
        assert body["input"][0].keys() == {"type", "status", "call_id", "name", "arguments"}
        assert dropped == ("messages.tool_call.signature",)


# ---------------------------------------------------------------- answers


def response(*output: Json, **fields: object) -> bytes:
    whole = {"id": "resp_1", "object": "response", "created_at": 7, "status": "completed"}
    usage = {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}
    return json.dumps(
        whole | {"error": None, "model": "m", "output": output, "usage": usage} | fields
    ).encode()


def answered(body: bytes) -> n.Answer:
    answer = responses.decode_answer(body)
    assert isinstance(answer, n.Answer)
    return answer


@pytest.mark.parametrize(
    ("output", "fields", "finish", "native"),
    [
        ([REPLY], {}, "stop", "completed"),
        ([REPLY, CALL], {}, "tool_calls", "completed"),
        (
            [REPLY],
            {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}},
            "length",
            "max_output_tokens",
        ),
        (
            [],
            {"status": "incomplete", "incomplete_details": {"reason": "content_filter"}},
            "content_filter",
            "content_filter",
        ),
        ([], {"status": "queued"}, "", "queued"),
    ],
)
def test_how_an_answer_finished(output: list[Json], fields: Json, finish: str, native: str) -> None:
    body = response(*output, **fields)
    answer = answered(body)
    candidate = answer.candidates[0]
    assert (candidate.finish, candidate.native) == (finish, native)
    again = json.loads(responses.encode_answer(answer, model="m"))
    assert {k: v for k, v in again.items() if v is not None} == {
        k: v for k, v in json.loads(body).items() if v is not None
    }


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (response(status="failed", error={"code": "server_error", "message": "m"}), f.ServerError),
        (
            response(status="failed", error={"code": "rate_limit_exceeded", "message": "m"}),
            f.RateLimited,
        ),
        (
            response(status="failed", error={"code": "invalid_prompt", "message": "m"}),
            f.InvalidRequest,
        ),
        (response(status="failed", error={"code": "bio_policy"}), f.ContentFiltered),
        (response(status="failed"), f.ServerError),
        (b'{"error": {"code": "insufficient_quota", "message": "m"}}', f.QuotaExhausted),
        (b"<html>", f.MalformedAnswer),
        (b"", f.MalformedAnswer),
        (b'{"id": "resp_1"}', f.MalformedAnswer),
        (b'{"output": [' + b"[" * 100_000, f.MalformedAnswer),
        (b'{"output": ["\xff"]}', f.MalformedAnswer),
    ],
)
def test_a_failure_under_status_200_is_typed(body: bytes, kind: type[f.Failure]) -> None:
    assert type(responses.decode_answer(body)) is kind


@pytest.mark.parametrize(
    ("raw", "usage"),
    [
        (
            {
                "input_tokens": 10,
                "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 3},
                "output_tokens": 5,
                "output_tokens_details": {"reasoning_tokens": 2},
            },
            Usage(input=10, output=5, cache_read=4, cache_write=3, reasoning=2),
        ),
        (
            {"input_tokens": 10, "input_tokens_details": {"cached_tokens": 14}},
            Usage(input=10, cache_read=10),
        ),
        ({"input_tokens": "many"}, Usage()),
        ({"input_tokens": -1, "output_tokens": None}, Usage()),
    ],
)
def test_usage(raw: Json, usage: Usage) -> None:
    assert responses.usage(json.dumps(raw).encode()) == usage


def test_an_item_we_do_not_know_stays_whole() -> None:
    item = {"type": "holodeck_call", "id": "hd_1", "deck": 3}
    answer = answered(response(item, {"type": "function_call", "broken": True}))
    assert all(isinstance(part, n.Native) for part in answer.candidates[0].parts)
    assert json.loads(responses.encode_answer(answer, model="m"))["output"][0] == item


def test_log_probabilities_are_told_in_chats_shape() -> None:
    said = [{"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}]
    content = [{"type": "output_text", "text": "a", "annotations": [], "logprobs": said}]
    answer = answered(response(REPLY | {"content": content}))
    logprobs = answer.candidates[0].logprobs
    assert logprobs is not None
    assert json.loads(bytes(logprobs)) == {"content": said}
    foreign = msgspec.structs.replace(answer, dialect="openai")
    output = json.loads(responses.encode_answer(foreign, model="m"))["output"]
    assert output[0]["content"][0]["logprobs"] == said


def test_ids_we_mint_are_the_same_for_the_same_answer_and_short_enough_for_openai() -> None:
    answer = n.Answer(
        "gemini",
        id="x" * 40,
        candidates=[n.Candidate([n.Text(text="a"), n.ToolCall(id="c", name="f")], "tool_calls")],
    )
    one, two = (json.loads(responses.encode_answer(answer, model="m")) for _ in range(2))
    assert one == two
    ids = [item["id"] for item in one["output"]]
    assert len(set(ids)) == 2
    assert max(map(len, ids)) <= 64


# ---------------------------------------------------------------- streams

WEATHER = n.ToolCall(id="c1", name="weather", arguments="")

STORY: list[n.StreamEvent] = [
    n.Began(id="msg_01", model="claude", created=7),
    n.PartBegan(0, n.Thinking()),
    n.Grew(0, "I should "),
    n.Grew(0, "look."),
    n.Grew(0, signature="proof"),
    n.PartEnded(0),
    n.PartBegan(1, n.Text(text="")),
    n.Grew(1, "Let me "),
    n.Grew(1, "see."),
    n.PartEnded(1),
    n.PartBegan(2, WEATHER),
    n.PartBegan(3, n.ToolCall(id="c2", name="time", arguments="")),
    n.Grew(2, '{"city":'),
    n.Grew(3, "{}"),
    n.Grew(2, '"Paris"}'),
    n.PartEnded(2),
    n.PartEnded(3),
    n.Finished("tool_calls", "tool_use"),
    n.UsageKnown(Usage(input=10, output=5, cache_read=4, reasoning=2)),
    n.Done(),
]

PLAIN: list[n.StreamEvent] = [
    n.Began(id="chatcmpl-1", model="gpt"),
    n.PartBegan(0, n.Text(text="")),
    n.Grew(0, '{"city": '),
    n.Grew(0, '"Paris"}'),
    n.PartEnded(0),
    n.Finished("stop", "stop"),
    n.UsageKnown(Usage(input=10, output=5)),
    n.Done(),
]


def encoded(events: list[n.StreamEvent], source: n.DialectName = "anthropic") -> list[Json]:
    encoder = responses.StreamEncoder(model="shown", source=source)
    return [json.loads(chunk) for event in events for chunk in encoder.feed([event])]


def test_the_order_of_a_streams_events() -> None:
    found = encoded(PLAIN)
    assert [event["type"].removeprefix("response.") for event in found] == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *("output_text.delta", "output_text.delta", "output_text.done", "content_part.done"),
        *("output_item.done", "completed"),
    ]
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    whole = found[-1]["response"]
    assert (whole["status"], whole["model"]) == ("completed", "shown")
    assert whole["output"][0]["content"][0]["text"] == '{"city": "Paris"}'
    assert whole["usage"]["total_tokens"] == 15


def test_a_stream_written_and_read_again_says_the_same() -> None:
    body = framed(encoded(STORY))
    decoder = responses.StreamDecoder()
    events = decoder.feed(body) + decoder.end()
    texts = {
        index: "".join(e.text for e in events if isinstance(e, n.Grew) and e.index == index)
        for index in range(4)
    }
    assert texts == {0: "I should look.", 1: "Let me see.", 2: '{"city":"Paris"}', 3: "{}"}
    calls = [
        e.part.id for e in events if isinstance(e, n.PartBegan) and isinstance(e.part, n.ToolCall)
    ]
    assert calls == ["c1", "c2"]
    finished = next(e for e in events if isinstance(e, n.Finished))
    assert finished.finish == "tool_calls"
    assert n.UsageKnown(Usage(input=10, output=5, cache_read=4, reasoning=2)) in events
    assert events[-1] == n.Done()


@pytest.mark.parametrize(
    ("finish", "kind", "reason"),
    [
        ("length", "response.incomplete", "max_output_tokens"),
        ("content_filter", "response.incomplete", "content_filter"),
        ("error", "response.failed", None),
    ],
)
def test_how_a_stream_ends(finish: n.Finish, kind: str, reason: str | None) -> None:
    events = [n.Finished(finish) if isinstance(event, n.Finished) else event for event in PLAIN]
    last = encoded(events)[-1]
    assert last["type"] == kind
    assert (last["response"]["incomplete_details"] or {}).get("reason") == reason


def test_a_failure_midway_is_told_by_response_failed() -> None:
    last = encoded([*PLAIN[:3], n.Broke(f.RateLimited("slow down"))])[-1]
    assert last["type"] == "response.failed"
    assert last["response"]["status"] == "failed"
    assert last["response"]["error"] == {"code": "rate_limit_exceeded", "message": "slow down"}
    assert last["response"]["output"] == []


def test_only_the_first_candidate_is_written() -> None:
    second: list[n.StreamEvent] = [
        n.PartBegan(0, n.Text(text=""), candidate=1),
        n.Grew(0, "no", candidate=1),
    ]
    texts = [e for e in encoded([*PLAIN[:3], *second, *PLAIN[3:]]) if "delta" in e]
    assert "".join(e["delta"] for e in texts) == '{"city": "Paris"}'


def framed(events: list[Json]) -> bytes:
    return b"".join(
        b"event: %b\ndata: %b\n\n" % (e.get("type", "").encode(), json.dumps(e).encode())
        for e in events
    )


def events_of(*events: Json) -> list[n.StreamEvent]:
    decoder = responses.StreamDecoder()
    return decoder.feed(framed(list(events))) + decoder.end()


CREATED = {"type": "response.created", "response": {"id": "resp_1", "created_at": 7, "model": "m"}}
COMPLETED = {"type": "response.completed", "response": {"id": "resp_1", "status": "completed"}}


@pytest.mark.parametrize(
    ("event", "kind"),
    [
        (
            {"type": "error", "error": {"type": "x", "code": "insufficient_quota", "message": "m"}},
            f.QuotaExhausted,
        ),
        ({"type": "error", "code": "rate_limit_exceeded", "message": "m"}, f.RateLimited),
        ({"type": "error"}, f.ServerError),
        ({"error": {"code": "context_length_exceeded", "message": "m"}}, f.ContextLength),
        (
            {"type": "response.failed", "response": {"error": {"code": "server_is_overloaded"}}},
            f.Overloaded,
        ),
        ({"type": "response.failed"}, f.ServerError),
    ],
)
def test_a_failure_within_a_stream_is_typed_and_the_last_word(
    event: Json, kind: type[f.Failure]
) -> None:
    found = events_of(CREATED, event, COMPLETED)
    assert isinstance(found[0], n.Began)
    assert isinstance(found[-1], n.Broke)
    assert type(found[-1].failure) is kind


def test_a_cut_stream_has_no_done_and_leaves_nothing_open() -> None:
    added = {"type": "response.output_item.added", "output_index": 0, "item": CALL}
    found = events_of(CREATED, added)
    assert [type(event) for event in found] == [n.Began, n.PartBegan, n.PartEnded]


def test_text_that_came_in_no_fragment_is_taken_from_what_is_whole() -> None:
    item = {"type": "message", "id": "m", "role": "assistant", "content": []}
    at = {"output_index": 0, "content_index": 0, "item_id": "m"}
    for told in (
        [
            {"type": "response.output_item.added", "output_index": 0, "item": item},
            {"type": "response.content_part.added", **at, "part": {"type": "output_text"}},
            {"type": "response.output_text.done", **at, "text": "a"},
            {"type": "response.output_item.done", "output_index": 0, "item": REPLY},
        ],
        [{"type": "response.output_item.done", "output_index": 0, "item": REPLY}],
        [{"type": "response.output_text.delta", **at, "delta": "a"}],
        [],
    ):
        whole = COMPLETED | {"response": {"status": "completed", "output": [REPLY]}}
        found = events_of(CREATED, *told, whole)
        assert "".join(event.text for event in found if isinstance(event, n.Grew)) == "a"
        assert sum(isinstance(event, n.PartEnded) for event in found) == 1
        assert found[-1] == n.Done()


def test_an_endless_event_breaks_the_stream() -> None:
    decoder = responses.StreamDecoder()
    found: list[n.StreamEvent] = []
    for _ in range(n.EVENT_BYTES_MAX // 65536 + 2):
        found += decoder.feed(b"data: " + b"x" * 65536)
    assert isinstance(found[-1], n.Broke)
    assert decoder.feed(b"data: {}\n\n") == []


# ---------------------------------------------------------------- the official SDK


class _Answers(BaseHTTPRequestHandler):
    body = b""
    content_type = ""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-type", self.content_type)
        self.send_header("content-length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        pass


@contextmanager
def sdk(body: bytes, content_type: str = "text/event-stream") -> Iterator[OpenAI]:
    handler = type("_These", (_Answers,), {"body": body, "content_type": content_type})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.01,))
        serving.start()
        try:
            with OpenAI(
                base_url=f"http://127.0.0.1:{server.server_port}/v1", api_key="k", max_retries=0
            ) as client:
                yield client
        finally:
            server.shutdown()
            serving.join()


def test_the_sdks_stream_helper_accepts_thinking_text_and_parallel_calls() -> None:
    with (
        sdk(framed(encoded(STORY))) as client,
        client.responses.stream(model="m", input="q") as stream,
    ):
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert kinds[-1] == "response.completed"
    thought, said, one, two = final.output
    assert thought.type == "reasoning"
    assert thought.summary[0].text == "I should look."
    assert said.type == "message"
    assert final.output_text == "Let me see."
    assert one.type == "function_call"
    assert two.type == "function_call"
    assert (one.call_id, one.name, one.arguments) == ("c1", "weather", '{"city":"Paris"}')
    assert (two.call_id, two.arguments) == ("c2", "{}")
    assert final.usage is not None
    assert final.usage.output_tokens_details.reasoning_tokens == 2


def test_the_sdk_parses_structured_output_of_a_stream() -> None:
    class City(BaseModel):
        city: str

    with (
        sdk(framed(encoded(PLAIN))) as client,
        client.responses.stream(model="m", input="q", text_format=City) as stream,
    ):
        assert stream.get_final_response().output_parsed == City(city="Paris")


def test_the_sdk_reads_a_failed_stream() -> None:
    broken = encoded([*PLAIN[:3], n.Broke(f.Overloaded("full"))])
    with sdk(framed(broken)) as client:
        stream = client.responses.create(model="m", input="q", stream=True)
        last = list(stream)[-1]
    assert last.type == "response.failed"
    assert last.response.error is not None
    assert last.response.error.message == "full"


def test_what_is_written_has_all_that_the_sdks_types_require() -> None:
    event = TypeAdapter[object](ResponseStreamEvent)
    for events in (STORY, PLAIN, [*STORY[:4], n.Broke(f.StreamCut("cut"))]):
        for chunk in encoded(events):
            event.validate_python(chunk)
    parts: list[n.Part] = [n.Thinking(text="hm"), n.Text(text="hello"), WEATHER]
    answer = n.Answer("gemini", candidates=[n.Candidate(parts, "length")], usage=Usage())
    Response.model_validate_json(responses.encode_answer(answer, model="m"))


@pytest.mark.parametrize("source", ["openai", "anthropic", "gemini", "responses"])
def test_the_sdk_reads_answers_of_every_dialect(source: n.DialectName) -> None:
    parts: list[n.Part] = [n.Thinking(text="hm"), n.Text(text="hello"), WEATHER]
    answer = n.Answer(
        source,
        id="1",
        model="x",
        candidates=[n.Candidate(parts, "tool_calls")],
        usage=Usage(input=3, output=4),
    )
    body = responses.encode_answer(answer, model="m")
    with sdk(body, "application/json") as client:
        read_back = client.responses.create(model="m", input="q")
    assert read_back.output_text == "hello"
    assert [item.type for item in read_back.output] == ["reasoning", "message", "function_call"]


# ---------------------------------------------------------------- hostile bytes

EVENT_NAMES = st.sampled_from(
    [
        *("response.created", "response.completed", "response.failed", "response.incomplete"),
        *("response.output_item.added", "response.output_item.done", "error", "nonsense"),
        *("response.content_part.added", "response.content_part.done"),
        *("response.output_text.delta", "response.output_text.done", "response.refusal.delta"),
        *("response.function_call_arguments.delta", "response.function_call_arguments.done"),
        *("response.reasoning_summary_part.added", "response.reasoning_summary_text.delta"),
        *("response.reasoning_text.delta", "response.web_search_call.searching"),
        "response.output_text.annotation.added",
    ]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.just("message"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "id", "content", "summary", "text", "status", "output", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=6,
)
ITEMS = st.sampled_from([REPLY, CALL, THOUGHT, {"type": "web_search_call", "id": "ws"}]) | VALUES
EVENTS = st.fixed_dictionaries(
    {"type": EVENT_NAMES},
    optional={
        "output_index": st.integers(-1, 2) | VALUES,
        "content_index": st.integers(-1, 2) | st.none(),
        "summary_index": st.integers(0, 2),
        "delta": st.text(max_size=4) | VALUES,
        "text": st.text(max_size=4),
        "item": ITEMS,
        "part": VALUES,
        "annotation": VALUES,
        "response": VALUES,
        "logprobs": VALUES,
        "error": VALUES,
    },
)


@given(st.lists(EVENTS, max_size=12))
def test_events_in_any_order_keep_the_streams_grammar(told: list[Json]) -> None:
    found = events_of(*told)
    still_open: set[int] = set()
    begun = 0
    for at, event in enumerate(found):
        assert isinstance(event, n.Began) == (at == 0)
        match event:
            case n.PartBegan():
                assert event.index == begun
                begun += 1
                still_open.add(event.index)
            case n.Grew():
                assert event.index in still_open
            case n.PartEnded():
                still_open.remove(event.index)
            case n.Finished():
                assert not still_open
            case _:
                pass
    assert not still_open
    again = encoded(found, "responses") + encoded(found, "openai")
    assert all("type" in event for event in again)


@given(st.binary(max_size=200) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_give_a_value_and_never_an_exception(data: bytes) -> None:
    responses.decode_answer(data)
    responses.decode_answer(data, status=500)
    responses.classify(400, {}, data, now=0.0)
    responses.usage(data)
    decoder = responses.StreamDecoder()
    decoder.feed(b"data: " + data + b"\n\n")
    decoder.feed(data)
    decoder.end()


@given(st.binary(max_size=200) | st.lists(ITEMS, max_size=4).map(lambda v: json.dumps(v).encode()))
def test_any_request_is_read_or_refused(data: bytes) -> None:
    try:
        request = responses.decode_request(b'{"model":"m","input":' + data + b"}")
    except BadRequest:
        return
    call = responses.encode_request(request, n.Target("m"))
    assert isinstance(json.loads(call.body), dict)
    responses.encode_request(msgspec.structs.replace(request, dialect="openai"), n.Target("m"))
