"""The official OpenAI SDK, unchanged but for its base URL."""

import json
import math
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionChunk
from pydantic import BaseModel
from tests.e2e.processes import HELLO, Gateway, Simulator, until

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city", "days"],
        },
    },
}
MESSAGES = HELLO


class Person(BaseModel):
    name: str
    age: int
    tags: list[str]


@pytest.fixture
async def sdk_async(gateway: Gateway) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=gateway.base_url, api_key="any", max_retries=0
    ) as client:
        yield client


def text_of(chunks: list[ChatCompletionChunk]) -> str:
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)


def test_a_chat_completion_has_its_text_usage_and_finish(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(model="sim/sim-echo", messages=MESSAGES)
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.role == "assistant"
    assert "Hello" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_stream_has_a_role_text_a_finish_and_no_usage_unless_asked(sdk: openai.OpenAI) -> None:
    with sdk.chat.completions.create(
        model="sim/sim-echo", messages=MESSAGES, stream=True
    ) as stream:
        chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "Hello" in text_of(chunks)
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks)
    assert all(chunk.choices for chunk in chunks), "no chunk of usage alone"


def test_a_stream_with_include_usage_ends_with_the_usage(sdk: openai.OpenAI) -> None:
    with sdk.chat.completions.create(
        model="sim/sim-echo",
        messages=MESSAGES,
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        chunks = list(stream)
    assert not chunks[-1].choices
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 0
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_the_stream_helper_accumulates_the_whole_answer(sdk: openai.OpenAI) -> None:
    with sdk.chat.completions.stream(model="sim/sim-echo", messages=MESSAGES) as stream:
        events = [event.type for event in stream]
        answer = stream.get_final_completion()
    assert "content.delta" in events
    assert "Hello" in (answer.choices[0].message.content or "")


def test_a_tool_is_called_with_arguments_that_fit_its_schema(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(
        model="sim/m", messages=MESSAGES, tools=[WEATHER], tool_choice="required"
    )
    (call,) = answer.choices[0].message.tool_calls or []
    assert answer.choices[0].finish_reason == "tool_calls"
    assert call.type == "function"
    assert call.function.name == "get_weather"
    arguments = json.loads(call.function.arguments)
    assert isinstance(arguments["city"], str)
    assert isinstance(arguments["days"], int)


def test_a_tool_call_comes_in_fragments_that_join_to_the_same_arguments(
    sdk: openai.OpenAI,
) -> None:
    with sdk.chat.completions.create(
        model="sim/m", messages=MESSAGES, tools=[WEATHER], tool_choice="required", stream=True
    ) as stream:
        deltas = [call for c in stream if c.choices for call in c.choices[0].delta.tool_calls or []]
    assert deltas[0].id
    assert deltas[0].function is not None
    assert deltas[0].function.name == "get_weather"
    assert len(deltas) > 2, "the arguments come in parts"
    arguments = "".join(d.function.arguments or "" for d in deltas if d.function)
    assert set(json.loads(arguments)) == {"city", "days"}


def test_the_stream_helper_reassembles_a_tool_call(sdk: openai.OpenAI) -> None:
    with sdk.chat.completions.stream(
        model="sim/m",
        messages=MESSAGES,
        tools=[WEATHER],
        tool_choice="required",
        parallel_tool_calls=True,
    ) as stream:
        stream.until_done()
        answer = stream.get_final_completion()
    (call,) = answer.choices[0].message.tool_calls or []
    assert set(json.loads(call.function.arguments)) == {"city", "days"}


def test_a_tools_result_goes_back_and_is_answered(sdk: openai.OpenAI) -> None:
    call: Any = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "get_weather", "arguments": '{"city":"Oslo","days":1}'},
    }
    turn: Any = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
    ]
    answer = sdk.chat.completions.create(model="sim/sim-tools", messages=turn, tools=[WEATHER])
    assert answer.choices[0].message.content


def test_parse_answers_with_the_pydantic_model_that_was_asked_for(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.parse(model="sim/m", messages=MESSAGES, response_format=Person)
    person = answer.choices[0].message.parsed
    assert isinstance(person, Person)


def test_a_json_schema_is_kept_to(sdk: openai.OpenAI) -> None:
    schema: Any = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "green"]}},
        "required": ["colour"],
        "additionalProperties": False,
    }
    answer = sdk.chat.completions.create(
        model="sim/m",
        messages=MESSAGES,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "paint", "strict": True, "schema": schema},
        },
    )
    assert json.loads(answer.choices[0].message.content or "")["colour"] in {"red", "green"}


def test_several_choices_arrive_with_their_indices(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(model="sim/m", messages=MESSAGES, n=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]


def test_embeddings_in_the_sdks_own_base64_and_as_floats_are_the_same(sdk: openai.OpenAI) -> None:
    texts = ["a cat", "a dog"]
    packed = sdk.embeddings.create(model="sim/text-embedding-3-small", input=texts)
    plain = sdk.embeddings.create(
        model="sim/text-embedding-3-small", input=texts, encoding_format="float"
    )
    assert [row.index for row in packed.data] == [0, 1]
    for one, other in zip(packed.data, plain.data, strict=True):
        assert len(one.embedding) == 1536
        assert one.embedding == pytest.approx(other.embedding, abs=1e-6)
        assert math.fsum(x * x for x in one.embedding) == pytest.approx(1.0, abs=1e-3)
    assert packed.usage.prompt_tokens > 0


def test_embeddings_have_as_many_dimensions_as_asked(sdk: openai.OpenAI) -> None:
    answer = sdk.embeddings.create(
        model="sim/text-embedding-3-small", input="a cat", dimensions=256
    )
    assert len(answer.data[0].embedding) == 256


def test_models_are_listed_and_found_by_name(sdk: openai.OpenAI) -> None:
    names = [model.id for model in sdk.models.list()]
    assert names[0] == "main-model"
    assert "vendor/family/v1.5" in names
    assert sdk.models.retrieve("main-model").owned_by == "breakwater"
    assert sdk.models.retrieve("vendor/family/v1.5").id == "vendor/family/v1.5"
    with pytest.raises(openai.NotFoundError) as caught:
        sdk.models.retrieve("no-such-model")
    assert caught.value.code == "model_not_found"


def test_a_bad_request_is_a_bad_request_error_with_its_field(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.chat.completions.create(model="sim/m", messages=MESSAGES, max_tokens=-5)
    assert caught.value.code == "invalid_request"
    assert caught.value.param == "max_tokens"
    assert caught.value.type == "invalid_request_error"
    assert caught.value.request_id


def test_a_request_that_the_provider_refuses_is_a_bad_request_error(
    sdk: openai.OpenAI, simulator: Simulator
) -> None:
    simulator.script(lane="once", model="refuses", faults=[{"class": "context_length"}])
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.chat.completions.create(model="once/refuses", messages=MESSAGES)
    assert caught.value.code == "context_length_exceeded"


def test_an_unknown_model_is_a_not_found_error_that_names_those_there_are(
    sdk: openai.OpenAI,
) -> None:
    with pytest.raises(openai.NotFoundError, match="main-model") as caught:
        sdk.chat.completions.create(model="no-such-model", messages=MESSAGES)
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"


@pytest.mark.parametrize(
    ("fault", "code"), [("authentication", "bad_gateway"), ("permission", "model_not_found")]
)
def test_a_providers_refusal_of_our_key_is_not_the_callers_authentication_error(
    sdk: openai.OpenAI, simulator: Simulator, fault: str, code: str
) -> None:
    simulator.script(lane="once", model=fault, faults=[{"class": fault}])
    with pytest.raises(openai.APIStatusError) as caught:
        sdk.chat.completions.create(model=f"once/{fault}", messages=MESSAGES)
    assert caught.value.code == code
    assert not isinstance(caught.value, openai.AuthenticationError | openai.PermissionDeniedError)


def test_a_rate_limit_that_cannot_be_waited_for_is_a_rate_limit_error_that_says_when(
    sdk: openai.OpenAI, simulator: Simulator
) -> None:
    simulator.script(lane="throttled", faults=[{"class": "rate_limited", "retry_after_s": 20}])
    with pytest.raises(openai.RateLimitError) as caught:
        sdk.chat.completions.create(model="throttled", messages=MESSAGES)
    assert caught.value.code == "rate_limited"
    assert 1 <= int(caught.value.response.headers["retry-after"]) <= 20
    assert caught.value.response.headers["x-should-retry"] == "true"
    # The next one is told at once, without asking the provider again.
    asked = simulator.lane("throttled")["started"]
    with pytest.raises(openai.RateLimitError):
        sdk.chat.completions.create(model="throttled", messages=MESSAGES)
    assert simulator.lane("throttled")["started"] == asked


@pytest.mark.parametrize(
    "fault",
    ["server_error", "html_502", "empty_body", "half_json", "cut", "reset", "error_in_200"],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_broken_provider_is_an_internal_server_error(
    sdk: openai.OpenAI, simulator: Simulator, fault: str, stream: bool
) -> None:
    simulator.script(lane="once", model=fault, faults=[{"class": fault}])
    with pytest.raises(openai.InternalServerError) as caught:
        sdk.chat.completions.create(model=f"once/{fault}", messages=MESSAGES, stream=stream)
    assert caught.value.code == "bad_gateway"


def test_an_overloaded_provider_is_retried_until_it_answers(
    sdk: openai.OpenAI, simulator: Simulator
) -> None:
    simulator.script(lane="sim", model="twice", faults=[{"class": "overloaded", "times": 1}])
    raw = sdk.chat.completions.with_raw_response.create(model="sim/twice", messages=MESSAGES)
    assert raw.headers["breakwater-attempts"] == "2"
    assert raw.parse().choices[0].message.content


def test_a_client_side_timeout_is_an_api_timeout_error_and_ends_the_providers_call(
    sdk: openai.OpenAI, simulator: Simulator
) -> None:
    simulator.script(lane="once", model="stalls", stall_before_first=True)
    with pytest.raises(openai.APITimeoutError):
        sdk.chat.completions.create(model="once/stalls", messages=MESSAGES, timeout=0.3)
    until(lambda: simulator.requests(model="stalls", cancelled_by_client=True), "it was ended")


def test_a_client_side_timeout_bounds_the_silence_of_a_stream_not_its_length(
    sdk: openai.OpenAI, simulator: Simulator
) -> None:
    simulator.script(lane="once", model="steady", tokens=40, tokens_per_s=40)
    with sdk.chat.completions.create(
        model="once/steady", messages=MESSAGES, stream=True, timeout=0.5
    ) as stream:
        chunks = list(stream)
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_the_raw_response_has_the_headers_that_say_what_happened(sdk: openai.OpenAI) -> None:
    raw = sdk.chat.completions.with_raw_response.create(
        model="sim/m", messages=MESSAGES, extra_headers={"breakwater-request-id": "raw-1"}
    )
    headers = raw.headers
    assert headers["breakwater-request-id"] == headers["x-request-id"] == "raw-1"
    assert raw.parse()._request_id == "raw-1"
    assert headers["breakwater-model"] == "sim/m"
    assert headers["breakwater-deployment"] == "sim-any"
    assert headers["breakwater-rung"] == "primary"
    assert headers["breakwater-cache"] == "bypass"
    assert headers["breakwater-attempts"] == "1"
    assert float(headers["breakwater-cost-usd"]) > 0
    assert float(headers["breakwater-overhead-ms"]) >= 0


def test_a_streaming_response_has_its_headers_before_its_lines(sdk: openai.OpenAI) -> None:
    with sdk.chat.completions.with_streaming_response.create(
        model="sim/sim-echo", messages=MESSAGES, stream=True
    ) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["breakwater-deployment"] == "sim-any"
        assert response.headers["x-request-id"] == response.headers["breakwater-request-id"]
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"


@pytest.mark.anyio
async def test_the_async_client_chats_streams_and_embeds(sdk_async: openai.AsyncOpenAI) -> None:
    answer = await sdk_async.chat.completions.create(model="sim/sim-echo", messages=MESSAGES)
    assert "Hello" in (answer.choices[0].message.content or "")
    stream = await sdk_async.chat.completions.create(
        model="sim/sim-echo", messages=MESSAGES, stream=True
    )
    assert "Hello" in text_of([chunk async for chunk in stream])
    parsed = await sdk_async.chat.completions.parse(
        model="sim/m", messages=MESSAGES, response_format=Person
    )
    assert isinstance(parsed.choices[0].message.parsed, Person)
    vectors = await sdk_async.embeddings.create(model="sim/text-embedding-3-small", input="a")
    assert len(vectors.data[0].embedding) == 1536
    with pytest.raises(openai.NotFoundError):
        await sdk_async.chat.completions.create(model="nope", messages=MESSAGES)


def test_a_failure_before_the_first_token_is_answered_by_the_next_deployment(
    sdk: openai.OpenAI, simulator: Simulator
) -> None:
    simulator.script(lane="spare-bad", faults=[{"class": "server_error"}])
    simulator.script(lane="spare-good", text="from the spare")
    raw = sdk.chat.completions.with_raw_response.create(model="spare", messages=MESSAGES)
    assert raw.headers["breakwater-deployment"] == "spare-good"
    assert raw.headers["breakwater-attempts"] == "2"
    simulator.script(lane="spare-bad", stall_before_first=True)
    with sdk.chat.completions.create(model="spare", messages=MESSAGES, stream=True) as stream:
        assert text_of(list(stream)) == "from the spare"
