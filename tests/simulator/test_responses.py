"""OpenAI's Responses API as the simulator speaks it."""

from typing import Any

import pytest
from openai import AsyncOpenAI
from tests.simulator.providers import Client, simulator, sse

from breakwater_gateway.simulator.script import Fault, Script

pytestmark = pytest.mark.anyio

HEADERS = {"authorization": "Bearer sk-test"}
TOOL = {"type": "function", "name": "weather", "parameters": {"type": "object", "properties": {}}}


async def ask(client: Client, **fields: Any) -> Any:  # noqa: ANN401 - JSON
    body = {"model": "m", "input": "hello there", **fields}
    given = {name: value for name, value in body.items() if value is not None}
    return await client.post("/o/v1/responses", given, HEADERS)


async def test_a_response_repeats_its_request_and_has_output() -> None:
    async with simulator(Script(text="Hi.", thinking="a b")) as client:
        body = (await ask(client, instructions="Be brief.", metadata={"a": "b"})).json()
    assert (body["object"], body["status"], body["instructions"]) == (
        "response",
        "completed",
        "Be brief.",
    )
    reasoning, message = body["output"]
    assert reasoning["summary"] == [{"type": "summary_text", "text": "a b"}]
    assert message["content"][0]["text"] == "Hi."
    usage = body["usage"]
    assert usage["output_tokens_details"] == {"reasoning_tokens": 2}
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]


async def test_a_stream_has_the_recorded_order_and_numbers() -> None:
    async with simulator(Script(text="one two", thinking="hm")) as client:
        events = sse((await ask(client, stream=True)).content)
    values: list[Any] = [value for _, value in events]
    assert [name for name, _ in events] == [value["type"] for value in values]
    assert [value["type"].removeprefix("response.") for value in values] == [
        "created",
        "in_progress",
        "output_item.added",
        "reasoning_summary_part.added",
        "reasoning_summary_text.delta",
        "reasoning_summary_text.done",
        "reasoning_summary_part.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert [value["sequence_number"] for value in values] == list(range(len(values)))
    assert values[10]["output_index"] == 1
    assert values[-1]["response"]["output"][1] == values[-2]["item"]


async def test_a_limit_makes_a_response_incomplete() -> None:
    async with simulator(Script(tokens=100)) as client:
        values: list[Any] = [
            v for _, v in sse((await ask(client, stream=True, max_output_tokens=16)).content)
        ]
    assert values[-1]["type"] == "response.incomplete"
    assert values[-1]["response"]["incomplete_details"] == {"reason": "max_output_tokens"}


async def test_a_failure_in_a_stream_is_told_twice() -> None:
    fault = Fault("error_in_200", after_tokens=1)
    async with simulator(Script(text="one two", faults=(fault,))) as client:
        answer = await ask(client, stream=True)
    values: list[Any] = [value for _, value in sse(answer.content)]
    error, failed = values[-2:]
    assert (answer.status_code, error["type"]) == (200, "error")
    assert error["error"]["code"] == "server_error"
    assert (failed["type"], failed["response"]["status"]) == ("response.failed", "failed")
    assert [value["sequence_number"] for value in values] == list(range(len(values)))


OUTPUT = {"type": "function_call_output", "call_id": "c", "output": "x"}
CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"input": None}, "input", "missing_required_parameter"),
        ({"input": 5}, "input", "invalid_type"),
        ({"input": [OUTPUT]}, "input", None),
        ({"input": [CALL]}, "input", None),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0]", "invalid_value"),
        (
            {"input": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]},
            "input[0].content[0]",
            "invalid_value",
        ),
        ({"messages": []}, "messages", "unknown_parameter"),
        ({"max_output_tokens": 5}, "max_output_tokens", "integer_below_min_value"),
        ({"model": "o3", "temperature": 0.5}, "temperature", None),
        ({"tools": [{"type": "function"}]}, "tools[0].name", "missing_required_parameter"),
        (
            {"tools": [{**TOOL, "strict": True}]},
            "tools[0].parameters",
            "invalid_function_parameters",
        ),
        ({"tool_choice": {"type": "function", "name": "f"}}, "tool_choice", None),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.name", None),
    ],
)
async def test_what_the_real_one_refuses_is_refused(
    fields: dict[str, Any], param: str, code: str | None
) -> None:
    async with simulator() as client:
        answer = await ask(client, **fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param)
    if code is not None:
        assert error["code"] == code


async def test_an_unknown_model_is_a_bad_request_here() -> None:
    async with simulator(Script(models=("other",))) as client:
        answer = await ask(client)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "model_not_found")


async def test_the_official_sdk_reads_answers_and_streams() -> None:
    async with simulator(Script(text="Hello, world.")) as client:
        base = str(client.http.base_url) + "/sim/v1"
        async with AsyncOpenAI(base_url=base, api_key="sk-test", max_retries=0) as own:
            answer = await own.responses.create(model="m", input="hi")
            assert answer.output_text == "Hello, world."
            async with own.responses.stream(model="m", input="hi") as stream:
                final = await stream.get_final_response()
            assert final.output_text == "Hello, world."
