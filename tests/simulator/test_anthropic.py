"""Anthropic's Messages API as the simulator speaks it."""

from typing import Any

import pytest
from tests.simulator.providers import Client, simulator, sse

from breakwater_gateway.simulator.script import Fault, FaultClass, Script

pytestmark = pytest.mark.anyio

HEADERS = {"x-api-key": "sk-ant", "anthropic-version": "2023-06-01"}
HELLO = [{"role": "user", "content": "hello there"}]
TOOL = {"name": "weather", "input_schema": {"type": "object", "properties": {}}}


async def ask(client: Client, **fields: Any) -> Any:  # noqa: ANN401 - JSON
    body = {"model": "claude-x", "max_tokens": 100, "messages": HELLO, **fields}
    given = {name: value for name, value in body.items() if value is not None}
    return await client.post("/a/v1/messages", given, HEADERS)


async def test_a_message_has_every_field_and_its_own_arithmetic() -> None:
    script = Script(text="Hi.", prompt_tokens=50, cached_tokens=20, cache_write_tokens=10)
    async with simulator(script) as client:
        answer = await ask(client)
    body = answer.json()
    assert body["content"] == [{"type": "text", "text": "Hi."}]
    assert (body["type"], body["role"], body["stop_reason"]) == ("message", "assistant", "end_turn")
    assert body["id"].startswith("msg_01")
    usage = body["usage"]
    assert usage["input_tokens"] == 50 - 20 - 10
    assert (usage["cache_read_input_tokens"], usage["cache_creation_input_tokens"]) == (20, 10)
    assert answer.headers["request-id"].startswith("req_01")


async def test_a_stream_has_the_recorded_order() -> None:
    script = Script(text="one two", thinking="hm")
    async with simulator(script) as client:
        events = sse((await ask(client, stream=True)).content)
    assert [name for name, _ in events] == [
        "message_start",
        "content_block_start",
        "ping",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    values: list[Any] = [value for _, value in events]
    assert [v["delta"]["type"] for v in values if v["type"] == "content_block_delta"] == [
        "thinking_delta",
        "signature_delta",
        "text_delta",
        "text_delta",
    ]
    assert [v["index"] for v in values if v["type"] == "content_block_stop"] == [0, 1]
    begun, ended = values[0]["message"]["usage"], values[-2]["usage"]
    assert begun["input_tokens"] == ended["input_tokens"]
    assert (begun["output_tokens"], ended["output_tokens"]) == (1, 3)


async def test_a_tool_call_begins_with_an_empty_fragment() -> None:
    async with simulator(Script(tool_arguments='{"city": "Paris"}')) as client:
        choice = {"type": "any"}
        answer = await ask(client, stream=True, tools=[TOOL], tool_choice=choice)
    values: list[Any] = [value for _, value in sse(answer.content)]
    opened = values[1]["content_block"]
    assert (opened["type"], opened["name"], opened["input"]) == ("tool_use", "weather", {})
    assert opened["id"].startswith("toolu_01")
    parts = [v["delta"]["partial_json"] for v in values if v["type"] == "content_block_delta"]
    assert parts[0] == ""
    assert "".join(parts) == '{"city": "Paris"}'
    assert values[-2]["delta"]["stop_reason"] == "tool_use"


async def test_a_stop_sequence_is_named() -> None:
    async with simulator(Script(text="one two three")) as client:
        body = (await ask(client, stop_sequences=["two"])).json()
    assert (body["stop_reason"], body["stop_sequence"]) == ("stop_sequence", "two")


async def test_a_prompt_that_is_refused_is_an_answer() -> None:
    async with simulator(Script(faults=(Fault("content_filter"),))) as client:
        body = (await ask(client)).json()
    assert (body["content"], body["stop_reason"]) == ([], "refusal")


USE = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {}}
RESULT = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "x"}


def says(role: str, *blocks: object) -> dict[str, object]:
    return {"role": role, "content": list(blocks)}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_tokens": None}, "max_tokens: Field required"),
        ({"max_tokens": 0}, "max_tokens: Input should be"),
        ({"messages": None}, "messages: Field required"),
        ({"messages": []}, "messages: at least one message is required"),
        ({"messages": [{"role": "system", "content": "x"}]}, 'Unexpected role "system"'),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role: Input should be"),
        ({"messages": [{"role": "user", "content": ""}, 5]}, "messages.1: Input should be"),
        ({"messages": [says("user", {"type": "text", "text": ""})]}, "must be non-empty"),
        ({"messages": [says("user", {"type": "image_url"})]}, "Input tag 'image_url'"),
        ({"messages": [says("user", RESULT)]}, "unexpected `tool_use_id`"),
        (
            {"messages": [*HELLO, says("assistant", USE), *HELLO]},
            "were found without `tool_result` blocks",
        ),
        ({"frequency_penalty": 1}, "frequency_penalty: Extra inputs are not permitted"),
        ({"temperature": 1.5}, "temperature: range: 0..1"),
        ({"tools": [{"name": "f"}]}, "tools.0.custom.input_schema: Field required"),
        ({"tools": [{**TOOL, "name": "a b"}]}, "tools.0.custom.name: String should match"),
        ({"tool_choice": {"type": "any"}}, "while providing tools"),
        ({"tools": [TOOL], "tool_choice": "any"}, "tool_choice: Input tag"),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 100}},
            "greater than or equal to 1024",
        ),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 2000}},
            "`max_tokens` must be greater than",
        ),
        ({"stop_sequences": [" "]}, "non-whitespace"),
        (
            {"output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}}},
            "'additionalProperties' must be explicitly set to false",
        ),
    ],
)
async def test_what_the_real_one_refuses_is_refused(fields: dict[str, Any], message: str) -> None:
    async with simulator() as client:
        answer = await ask(client, **fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (400, "invalid_request_error")
    assert message in error["message"]
    assert answer.headers["x-should-retry"] == "false"


async def test_turns_of_one_role_are_joined_unless_a_script_wants_them_to_alternate() -> None:
    async with simulator(Script(model="old", alternate=True)) as client:
        assert (await ask(client, messages=[*HELLO, *HELLO])).status_code == 200
        refused = await ask(client, model="old", messages=[*HELLO, *HELLO])
    assert "roles must alternate" in refused.json()["error"]["message"]


async def test_the_key_and_the_version_come_in_headers() -> None:
    async with simulator(Script(keys=("sk-good",))) as client:
        body = {"model": "m", "max_tokens": 5, "messages": HELLO}
        version = {"anthropic-version": "2023-06-01"}
        for headers, status in (
            ({**version, "x-api-key": "sk-good"}, 200),
            ({**version, "authorization": "Bearer sk-good"}, 200),
            ({**version, "x-api-key": "sk-bad"}, 401),
            (version, 401),
            ({"x-api-key": "sk-good"}, 400),
        ):
            answer = await client.post("/v1/messages", body, headers)
            assert answer.status_code == status


@pytest.mark.parametrize(
    ("kind", "status", "type_", "retry"),
    [
        ("rate_limited", 429, "rate_limit_error", "true"),
        ("quota_exhausted", 400, "invalid_request_error", "false"),
        ("overloaded", 529, "overloaded_error", "true"),
        ("permission", 403, "permission_error", "false"),
        ("server_error", 500, "api_error", "true"),
    ],
)
async def test_errors_have_its_types(kind: FaultClass, status: int, type_: str, retry: str) -> None:
    async with simulator(Script(faults=(Fault(kind),))) as client:
        answer = await ask(client)
    body = answer.json()
    assert (answer.status_code, body["type"], body["error"]["type"]) == (status, "error", type_)
    assert answer.headers["x-should-retry"] == retry


async def test_rates_are_told_in_its_headers() -> None:
    async with simulator(Script(rpm=1, tpm=10_000)) as client:
        first, second = await ask(client), await ask(client)
    assert first.headers["anthropic-ratelimit-requests-limit"] == "1"
    assert first.headers["anthropic-ratelimit-requests-remaining"] == "0"
    assert first.headers["anthropic-ratelimit-input-tokens-reset"].endswith("Z")
    assert second.status_code == 429
    assert 1 <= int(second.headers["retry-after"]) <= 60
    assert "retry-after-ms" not in second.headers


async def test_an_overload_may_be_the_first_event_of_a_200() -> None:
    fault = Fault("error_in_200", before_first=True)
    async with simulator(Script(faults=(fault,))) as client:
        answer = await ask(client, stream=True)
    ((name, value),) = sse(answer.content)
    assert (answer.status_code, name) == (200, "error")
    assert isinstance(value, dict)
    assert value["error"]["type"] == "overloaded_error"


async def test_tokens_are_counted_without_a_limit_on_the_answer() -> None:
    async with simulator() as client:
        body = {"model": "m", "messages": HELLO}
        answer = await client.post("/v1/messages/count_tokens", body, HEADERS)
    assert set(answer.json()) == {"input_tokens"}


async def test_its_own_sdk_reads_answers_streams_and_errors() -> None:
    sdk: Any = pytest.importorskip("anthropic")
    scripts = (
        Script(text="Hello, world."),
        Script(model="down", faults=(Fault("overloaded"),)),
        Script(model="tools", tool_calls="always", parallel_calls=2),
    )
    async with simulator(*scripts) as client:
        own = sdk.AsyncAnthropic(
            api_key="k", base_url=str(client.http.base_url) + "/sim", max_retries=0
        )
        async with own:
            asked = {"model": "m", "max_tokens": 100, "messages": HELLO}
            message = await own.messages.create(**asked)
            assert message.content[0].text == "Hello, world."
            async with own.messages.stream(**asked) as stream:
                assert await stream.get_final_text() == "Hello, world."
            called: dict[str, Any] = {**asked, "model": "tools", "tools": [TOOL]}
            async with own.messages.stream(**called) as stream:
                final = await stream.get_final_message()
            assert [block.type for block in final.content] == ["tool_use"] * 2
            assert (await own.messages.count_tokens(model="m", messages=HELLO)).input_tokens
            with pytest.raises(sdk.APIStatusError) as caught:
                await own.messages.create(**{**asked, "model": "down"})
            assert caught.value.status_code == 529
