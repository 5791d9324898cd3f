"""Mistral's chat completions as the simulator speaks them."""

from typing import Any

import pytest
from tests.simulator.providers import Client, simulator, sse

from breakwater_gateway.simulator.script import Fault, Script

pytestmark = pytest.mark.anyio

HEADERS = {"authorization": "Bearer k"}
HELLO: list[dict[str, Any]] = [{"role": "user", "content": "hello there"}]
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


async def ask(client: Client, lane: str = "mistral", **fields: Any) -> Any:  # noqa: ANN401 - JSON
    body = {"model": "m", "messages": HELLO, **fields}
    return await client.post(f"/{lane}/v1/chat/completions", body, HEADERS)


async def test_thoughts_make_content_a_list() -> None:
    async with simulator(Script(text="Hi.", thinking="a b")) as client:
        message = (await ask(client)).json()["choices"][0]["message"]
        values: list[Any] = [v for _, v in sse((await ask(client, stream=True)).content)]
    thought, text = message["content"]
    assert thought["thinking"] == [{"type": "text", "text": "a b"}]
    assert text == {"type": "text", "text": "Hi."}
    contents = [v["choices"][0]["delta"]["content"] for v in values[:-1]]
    assert [type(content) for content in contents] == [str, list, list, str, str]


async def test_usage_rides_on_the_last_chunk_unasked_and_calls_come_whole() -> None:
    async with simulator(Script(tool_arguments='{"a": 1}')) as client:
        answer = await ask(client, stream=True, tools=[TOOL], tool_choice="any")
    values: list[Any] = [value for _, value in sse(answer.content)]
    last = values[-2]
    (call,) = last["choices"][0]["delta"]["tool_calls"]
    assert len(call["id"]) == 9
    assert call["function"] == {"name": "weather", "arguments": '{"a": 1}'}
    assert last["choices"][0]["finish_reason"] == "tool_calls"
    assert last["usage"]["total_tokens"]
    assert all("p" in value for value in values[:-1])
    assert all("usage" not in value for value in values[:-2])


async def test_a_script_gives_any_lane_its_manners() -> None:
    async with simulator(Script(lane="eu", dialect="mistral")) as client:
        assert "p" in str(sse((await ask(client, "eu", stream=True)).content)[0][1])
        assert (await ask(client, "us")).json()["id"].startswith("chatcmpl-")


CALLED = {"role": "assistant", "content": "", "tool_calls": [{"id": "call_1"}]}


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({"stream_options": {}}, 422, None),
        ({"seed": 1}, 422, None),
        ({"messages": []}, 400, "3000"),
        ({"messages": [*HELLO, {"role": "assistant", "content": "x"}]}, 400, "3230"),
        ({"messages": [*HELLO, CALLED]}, 400, "3280"),
        (
            {"messages": [*HELLO, {"role": "tool", "content": "x", "tool_call_id": "a" * 9}]},
            400,
            "3230",
        ),
    ],
)
async def test_what_the_real_one_refuses_is_refused(
    fields: dict[str, Any], status: int, code: str | None
) -> None:
    async with simulator() as client:
        answer = await ask(client, **fields)
    body = answer.json()
    assert (answer.status_code, body["object"], body["code"]) == (status, "error", code)


async def test_a_wrong_key_has_a_body_of_its_own() -> None:
    scripts = Script(keys=("good",)), Script(model="busy", faults=(Fault("rate_limited"),))
    async with simulator(*scripts) as client:
        answer = await ask(client)
        limited = await ask(client, model="busy")
    assert (answer.status_code, answer.json()) == (401, {"detail": "Invalid API Key"})
    assert (limited.json()["type"], limited.json()["code"]) == ("rate_limited", "1300")
