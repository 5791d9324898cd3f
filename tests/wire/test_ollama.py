"""Ollama's native dialect on small exchanges of our own making."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw
from tests.wire.outbound import Json, cuts, events, hostile, keeps_the_contract

from breakwater_gateway.worker.wire import neutral as n
from breakwater_gateway.worker.wire import ollama
from breakwater_gateway.worker.wire.bad_request import BadRequest
from breakwater_gateway.worker.wire.ollama.answer import unix_of
from breakwater_protocol import failures as f
from breakwater_protocol.chat import Usage

TARGET = n.Target("qwen3:latest")


def say(text: str) -> n.Turn:
    return n.Turn(role="user", parts=[n.Text(text=text)], plain=True)


def asked(*turns: n.Turn, target: n.Target = TARGET, **more: Json) -> tuple[Json, tuple[str, ...]]:
    """The body of an OpenAI caller's request, and what was dropped."""
    request = n.Request(dialect="openai", model="m", turns=list(turns) or [say("Hi")], **more)
    call = ollama.encode_request(request, target)
    assert call.path == "/api/chat"
    return json.loads(call.body), call.dropped


# ---------------------------------------------------------------- requests


def test_a_conversation_with_tools_and_images_is_written_as_messages() -> None:
    body, dropped = asked(
        n.Turn(role="developer", parts=[n.Text(text="Be brief.")], plain=True),
        n.Turn(
            role="user",
            parts=[
                n.Text(text="What"),
                n.Image(media_type="image/png", data="aaaa"),
                n.Text(text="is this?"),
            ],
        ),
        n.Turn(
            role="assistant",
            parts=[
                n.Thinking(text="hm"),
                n.ToolCall(id="c", name="look", arguments='{"a":1}'),
                n.ToolCall(id="d", name="hear", arguments="[]"),
            ],
        ),
        n.Turn(role="tool", parts=[n.ToolResult(call_id="c", content=[n.Text(text="a cat")])]),
        tools=[n.Tool(name="look")],
        max_output=10,
        temperature=0.0,
        top_k=3,
        stop=["END"],
        seed=7,
        stream=True,
        format=n.OutputFormat(kind="schema", schema=Raw(b'{"type":"object"}')),
    )
    assert not dropped
    assert body == {
        "model": "qwen3:latest",
        "stream": True,
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "What\nis this?", "images": ["aaaa"]},
            {
                "role": "assistant",
                "content": "",
                "thinking": "hm",
                "tool_calls": [
                    {"id": "c", "function": {"name": "look", "arguments": {"a": 1}}},
                    {"id": "d", "function": {"name": "hear", "arguments": {"INVALID_JSON": "[]"}}},
                ],
            },
            {"role": "tool", "content": "a cat", "tool_name": "look", "tool_call_id": "c"},
        ],
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": "look",
                    "description": "",
                    "parameters": {"type": "object", "properties": {}},
                },
            }
        ],
        "options": {"num_predict": 10, "temperature": 0.0, "top_k": 3, "seed": 7, "stop": ["END"]},
        "format": {"type": "object"},
    }


def test_a_stream_is_never_left_to_the_default() -> None:
    """The API streams unless told otherwise."""
    assert asked()[0]["stream"] is False
    assert ollama.decode_request(b'{"model":"m"}').stream


@pytest.mark.parametrize(
    ("choice", "names", "dropped"),
    [
        (n.ToolChoice(mode="auto"), ["a", "b"], ()),
        (n.ToolChoice(mode="none"), None, ()),
        (n.ToolChoice(mode="required"), ["a", "b"], ("tool_choice",)),
        (n.ToolChoice(mode="named", names=["b"]), ["b"], ("tool_choice",)),
    ],
)
def test_a_tool_choice_is_kept_as_far_as_it_goes(
    choice: n.ToolChoice, names: list[str] | None, dropped: tuple[str, ...]
) -> None:
    body, lost = asked(tools=[n.Tool(name="a"), n.Tool(name="b")], tool_choice=choice)
    tools = body.get("tools")
    assert (tools and [tool["function"]["name"] for tool in tools]) == names
    assert lost == dropped


@pytest.mark.parametrize(
    ("model", "wanted", "think", "dropped"),
    [
        ("qwen3", n.Reasoning(), True, ()),
        ("qwen3", n.Reasoning(off=True), False, ()),
        ("qwen3", n.Reasoning(effort="none"), False, ()),
        ("qwen3", n.Reasoning(effort="low"), True, ("reasoning.effort",)),
        ("gpt-oss:20b", n.Reasoning(effort="minimal"), "low", ()),
        ("gpt-oss:20b", n.Reasoning(effort="xhigh"), "high", ()),
        ("gpt-oss:20b", n.Reasoning(budget=5), "medium", ("reasoning.budget",)),
        ("gpt-oss:20b", n.Reasoning(off=True), "low", ("reasoning",)),
    ],
)
def test_thinking_has_levels_only_where_the_model_has(
    model: str, wanted: n.Reasoning, think: bool | str, dropped: tuple[str, ...]
) -> None:
    body, lost = asked(target=n.Target(model), reasoning=wanted)
    assert body["think"] == think
    assert lost == dropped


def test_what_ollama_cannot_say_is_named() -> None:
    body, dropped = asked(
        n.Turn(
            role="user",
            parts=[
                n.Image(url="https://x/y.png"),
                n.Document(text="t", media_type="text/plain"),
                n.Text(text="Hi", extra={"cache_control": Raw(b"{}")}),
            ],
            name="Ann",
        ),
        n=2,
        logit_bias=Raw(b"{}"),
        user="u",
        parallel_tools=False,
        service_tier="flex",
        tools=[
            n.Tool(name="a", strict=True),
            n.NativeTool(dialect="openai", raw=Raw(b'{"type":"web"}')),
        ],
        extra={"store": Raw(b"true")},
    )
    assert set(dropped) == {
        *("messages.name", "messages.image", "messages.document", "messages.cache_control"),
        *("n", "logit_bias", "user", "parallel_tool_calls", "service_tier"),
        *("tools.web", "tools.strict", "store"),
    }
    assert body["messages"] == [{"role": "user", "content": "Hi"}]


NATIVE = {
    "model": "qwen3:latest",
    "stream": False,
    "messages": [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "", "images": ["aa", "bb"], "new": 1},
        {
            "role": "assistant",
            "content": "",
            "thinking": "hm",
            "tool_calls": [{"function": {"name": "f", "arguments": {"a": None}, "index": 0}}],
        },
        {"role": "tool", "content": "r", "tool_name": "f", "tool_call_id": None},
    ],
    "tools": [
        {"type": "function", "name": "f", "function": {"name": "f", "parameters": {}}},
        {"type": "odd"},
    ],
    "options": {"num_predict": -1, "num_ctx": 8192, "temperature": 0, "stop": []},
    "format": "json",
    "think": "low",
    "keep_alive": None,
    "logprobs": True,
    "top_logprobs": 2,
}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"format": ""},
        {"format": {"type": "object"}},
        {"think": True},
        {"think": False},
        {"think": None},
        {"options": {}},
        {"options": None},
        {"tools": []},
        {"tools": None},
        {"messages": []},
    ],
)
def test_native_bodies_come_out_as_they_went_in(changes: Json) -> None:
    given = NATIVE | changes
    request = ollama.decode_request(json.dumps(given).encode())
    call = ollama.encode_request(request, TARGET)
    assert json.loads(call.body) == given
    assert not call.dropped


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"", None),
        (b"{}", "model"),
        (b'{"model":"m","messages":[{"role":"cat"}]}', "messages[0].role"),
        (b'{"model":"m","messages":[{"role":"user","content":[]}]}', "messages[0].content"),
        (b'{"model":"m","options":[]}', "options"),
        (b'{"model":"m","options":{"seed":"x"}}', "options.seed"),
    ],
)
def test_bodies_of_another_shape_are_refused(body: bytes, param: str | None) -> None:
    with pytest.raises(BadRequest) as refused:
        ollama.decode_request(body)
    assert refused.value.param == param


# ---------------------------------------------------------------- answers

STAMP = "2026-08-07T08:08:46.460387Z"


def answer(message: Json, **more: Json) -> Json:
    return {
        "model": "qwen3",
        "created_at": STAMP,
        "message": {"role": "assistant"} | message,
        "done": True,
        "done_reason": "stop",
        "prompt_eval_count": 9,
        "eval_count": 5,
        "eval_duration": 7,
    } | more


def test_an_answer_is_read_with_all_that_it_says() -> None:
    body = answer(
        {
            "content": "",
            "thinking": "hm",
            "tool_calls": [
                {"function": {"name": "f", "arguments": {"a": 1}, "index": 0}},
                {"id": "call_x", "function": {"name": "g", "arguments": {}}},
            ],
        },
        logprobs=[{"token": "a", "logprob": -1}],
    )
    found = ollama.decode_answer(json.dumps(body).encode())
    assert isinstance(found, n.Answer)
    (candidate,) = found.candidates
    thought, first, second = candidate.parts
    assert thought == n.Thinking(text="hm")
    assert isinstance(first, n.ToolCall)
    assert (first.name, first.arguments) == ("f", '{"a": 1}')
    assert first.id.startswith("call_")
    assert second == n.ToolCall(id="call_x", name="g", arguments="{}")
    assert (candidate.finish, candidate.native) == ("tool_calls", "stop")
    assert json.loads(bytes(candidate.logprobs or b"")) == {"content": body["logprobs"]}
    assert (found.model, found.created) == ("qwen3", 1786090126)
    assert found.usage == Usage(input=9, output=5)
    assert {"created_at", "eval_duration"} <= set(found.extra)


def test_minted_ids_differ_between_calls_and_answers_and_are_the_same_again() -> None:
    call = {"function": {"name": "f", "arguments": {}}}
    one = json.dumps(answer({"tool_calls": [call, call]})).encode()
    other = json.dumps(answer({"tool_calls": [call]}, created_at="2027")).encode()
    ids = []
    for body in (one, one, other):
        found = ollama.decode_answer(body)
        assert isinstance(found, n.Answer)
        ids.append([p.id for p in found.candidates[0].parts if isinstance(p, n.ToolCall)])
    assert ids[0] == ids[1]
    assert len({*ids[0], *ids[2]}) == 3


@pytest.mark.parametrize(
    ("reason", "finish"), [("stop", "stop"), ("length", "length"), ("load", "stop")]
)
def test_done_reasons_have_their_neutral_words(reason: str, finish: str) -> None:
    body = json.dumps(answer({"content": "a"}, done_reason=reason)).encode()
    found = ollama.decode_answer(body)
    assert isinstance(found, n.Answer)
    assert (found.candidates[0].finish, found.candidates[0].native) == (finish, reason)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"", f.MalformedAnswer),
        (b"<html>", f.MalformedAnswer),
        (b"{}", f.MalformedAnswer),
        (b'{"message":{"content":7}}', f.MalformedAnswer),
        (b'{"error":"boom"}', f.ServerError),
        (b'{"error":"model \'x\' not found"}', f.ModelNotFound),
    ],
)
def test_a_failure_in_a_200_is_typed(body: bytes, kind: type[f.Failure]) -> None:
    assert type(ollama.decode_answer(body)) is kind


def test_a_prompt_that_was_in_the_cache_may_have_no_count() -> None:
    assert ollama.usage(b'{"eval_count":5}') == Usage(output=5)
    assert ollama.usage(b"{}") == Usage()


@pytest.mark.parametrize(
    ("stamp", "seconds"),
    [
        ("1970-01-01T00:00:01Z", 1),
        ("2024-09-16T02:41:57.128675Z", 1726454517),
        ("2025-06-05T00:31:41.161428902Z", 1749083501),
        ("2025-06-05T02:31:41.161428902+02:00", 1749083501),
        ("2025-13-05T02:31:41Z", 0),
        ("yesterday", 0),
        ("", 0),
    ],
)
def test_times_have_nanoseconds_and_zones(stamp: str, seconds: int) -> None:
    assert unix_of(stamp) == seconds


# ---------------------------------------------------------------- streams


def lines(*said: Json) -> bytes:
    return b"".join(json.dumps(one).encode() + b"\n" for one in said)


def bit(**message: Json) -> Json:
    whole = {"role": "assistant", "content": ""} | message
    return {"model": "qwen3", "created_at": STAMP, "message": whole, "done": False}


STREAM = lines(
    bit(thinking="hm"),
    bit(thinking="!"),
    bit(content="Grü"),
    bit(content="ß"),
    bit(tool_calls=[{"id": "c", "function": {"name": "f", "arguments": {"a": 1}}}]),
    answer({"content": ""}),
)


def test_a_stream_is_read_line_by_line() -> None:
    found = events(ollama.StreamDecoder, STREAM)
    assert found == [
        n.Began(model="qwen3", created=1786090126),
        n.PartBegan(0, n.Thinking()),
        n.Grew(0, text="hm"),
        n.Grew(0, text="!"),
        n.PartEnded(0),
        n.PartBegan(1, n.Text(text="")),
        n.Grew(1, text="Grü"),
        n.Grew(1, text="ß"),
        n.PartEnded(1),
        n.PartBegan(2, n.ToolCall(id="c", name="f", arguments="")),
        n.Grew(2, text='{"a": 1}'),
        n.PartEnded(2),
        n.Finished(
            "tool_calls",
            native="stop",
            extra={
                "prompt_eval_count": Raw(b"9"),
                "eval_count": Raw(b"5"),
                "eval_duration": Raw(b"7"),
            },
        ),
        n.UsageKnown(Usage(input=9, output=5)),
        n.Done(),
    ]
    for pieces in cuts(STREAM):
        assert events(ollama.StreamDecoder, *pieces) == found
    assert events(ollama.StreamDecoder, STREAM[:-1]) == found


def test_a_cut_stream_has_no_done() -> None:
    for at in (0, 50, len(STREAM) - 9):
        found = events(ollama.StreamDecoder, STREAM[:at])
        assert n.Done() not in found
        assert keeps_the_contract(found)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (lines(bit(content="a"), {"error": "boom"}), f.ServerError),
        (b'{"error":"server busy, please try again.  maximum pending requests"}', f.Overloaded),
        (b'{"error":"error parsing tool call: raw=\'{\'"}\n', f.MalformedToolCall),
        (b"<html>\n", f.MalformedAnswer),
        (b'{"message":[]}\n', f.MalformedAnswer),
        (b'{"message":{"tool_calls":[{"function":{}}]}}\n', f.MalformedAnswer),
    ],
)
def test_a_failure_within_a_stream_is_typed(body: bytes, kind: type[f.Failure]) -> None:
    found = events(ollama.StreamDecoder, body)
    assert keeps_the_contract(found)
    assert isinstance(found[-1], n.Broke)
    assert type(found[-1].failure) is kind
    for pieces in cuts(body):
        assert events(ollama.StreamDecoder, *pieces) == found


def test_an_endless_line_breaks_the_stream() -> None:
    decoder = ollama.StreamDecoder()
    out: list[n.StreamEvent] = []
    for _ in range(9):
        out += decoder.feed(b"x" * (1024 * 1024))
    assert isinstance(out[-1], n.Broke)
    assert decoder.feed(STREAM) == decoder.end() == []


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (
            400,
            {"error": "prompt too long; exceeded max context length by 9 tokens"},
            f.ContextLength,
        ),
        (400, {"error": "the input length exceeds the context length"}, f.ContextLength),
        (400, {"error": '"x" does not support tools'}, f.InvalidRequest),
        (
            400,
            {"error": {"message": "prompt too long; exceeded max context length"}},
            f.ContextLength,
        ),
        (401, {"error": "unauthorized"}, f.KeyRejected),
        (402, {"error": "x"}, f.QuotaExhausted),
        (403, {"error": "x"}, f.KeyForbidden),
        (404, {"error": "model 'x' not found"}, f.ModelNotFound),
        (429, {"error": "x"}, f.RateLimited),
        (500, {"error": "model requires more system memory"}, f.ServerError),
        (500, {"error": "error parsing tool call: raw='{'"}, f.MalformedToolCall),
        (503, {"error": "server busy, please try again."}, f.Overloaded),
        (502, [], f.ServerError),
    ],
)
def test_errors_are_classified(status: int, body: Json, kind: type[f.Failure]) -> None:
    found = ollama.classify(status, {"retry-after": "2"}, json.dumps(body).encode(), now=0)
    assert type(found) is kind
    assert found.provider_status == status
    if status in {429, 503}:
        assert f.retry_after_s(found) == 2


# ---------------------------------------------------------------- embeddings


def test_embeddings_are_asked_for_in_one_call() -> None:
    request = n.Embeddings(
        dialect="openai", model="m", inputs=["a", "b"], dimensions=256, user="u", task="t"
    )
    call = ollama.encode_embeddings(request, TARGET)
    assert call.path == "/api/embed"
    assert json.loads(call.body) == {
        "model": "qwen3:latest",
        "input": ["a", "b"],
        "dimensions": 256,
    }
    assert call.dropped == ("user", "task")
    ids = msgspec.structs.replace(request, inputs=[[1, 2]])
    with pytest.raises(BadRequest):
        ollama.encode_embeddings(ids, TARGET)


@pytest.mark.parametrize("given", ["a", ["a", "b"]])
def test_native_embeddings_come_out_as_they_went_in(given: Json) -> None:
    body = {"model": "qwen3:latest", "input": given, "truncate": True, "keep_alive": None}
    request = ollama.decode_embeddings_request(json.dumps(body).encode())
    assert json.loads(ollama.encode_embeddings(request, TARGET).body) == body


def test_vectors_and_their_usage_are_read() -> None:
    body = b'{"model":"m","embeddings":[[1],[2]],"total_duration":3,"prompt_eval_count":4}'
    found = ollama.decode_embeddings(body)
    assert isinstance(found, n.EmbeddingsAnswer)
    assert (found.model, found.vectors, found.usage) == ("m", [[1], [2]], Usage(input=4))
    older = ollama.decode_embeddings(b'{"embedding":[1,2]}')
    assert isinstance(older, n.EmbeddingsAnswer)
    assert older.vectors == [[1, 2]]
    assert isinstance(ollama.decode_embeddings(b'{"embeddings":[]}'), f.MalformedAnswer)
    assert isinstance(ollama.decode_embeddings(b'{"error":"no"}'), f.ServerError)


# ---------------------------------------------------------------- fuzz

WORDS = (
    *("model", "messages", "role", "content", "thinking", "images", "tool_calls", "function", "id"),
    *("name", "arguments", "tool_name", "tool_call_id", "tools", "type", "parameters", "format"),
    *(
        "options",
        "num_predict",
        "temperature",
        "stop",
        "seed",
        "think",
        "stream",
        "message",
        "done",
    ),
    *("done_reason", "created_at", "error", "eval_count", "prompt_eval_count", "logprobs", "input"),
    *("embeddings", "embedding"),
)


@given(hostile(*WORDS))
def test_no_json_breaks_the_decoders(body: bytes) -> None:
    try:
        request = ollama.decode_request(body)
    except BadRequest:
        pass
    else:
        ollama.encode_request(request, TARGET)
        ollama.encode_request(msgspec.structs.replace(request, dialect="openai"), TARGET)
    ollama.decode_answer(body)
    ollama.decode_embeddings(body)
    ollama.classify(400, {}, body, now=0)
    ollama.usage(body)


@given(st.binary(max_size=200), st.integers(100, 599))
def test_no_bytes_break_the_decoders(body: bytes, status: int) -> None:
    ollama.decode_answer(body)
    ollama.decode_embeddings(body)
    ollama.classify(status, {}, body, now=0)
    assert keeps_the_contract(events(ollama.StreamDecoder, body))


@given(st.lists(hostile(*WORDS), max_size=8))
def test_no_lines_break_the_stream_decoder(said: list[bytes]) -> None:
    assert keeps_the_contract(events(ollama.StreamDecoder, b"\n".join(said) + b"\n"))
