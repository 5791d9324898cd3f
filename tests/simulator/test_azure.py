"""Azure OpenAI as the simulator speaks it."""

from typing import Any

import pytest
from openai import AsyncAzureOpenAI
from tests.simulator.providers import simulator, sse

from breakwater_gateway.simulator.script import Fault, Script

pytestmark = pytest.mark.anyio

HEADERS = {"api-key": "k"}
PATH = "/az/openai/deployments/my-gpt/chat/completions"
VERSION = "?api-version=2024-10-21"
BODY = {"messages": [{"role": "user", "content": "hello there"}]}


async def test_answers_tell_what_the_filters_saw() -> None:
    async with simulator() as client:
        body = (await client.post(PATH + VERSION, BODY, HEADERS)).json()
    assert body["model"] == "my-gpt"
    assert "hate" in body["prompt_filter_results"][0]["content_filter_results"]
    assert body["choices"][0]["content_filter_results"]["violence"]["severity"] == "safe"


async def test_the_first_chunk_is_the_prompt_s_filters_and_has_no_id() -> None:
    async with simulator(Script(text="one")) as client:
        asked = {**BODY, "stream": True, "stream_options": {"include_usage": True}}
        answer = await client.post(PATH + VERSION, asked, HEADERS)
    values: list[Any] = [value for _, value in sse(answer.content)]
    assert (values[0]["id"], values[0]["created"], values[0]["choices"]) == ("", 0, [])
    assert values[0]["prompt_filter_results"]
    assert values[1]["choices"][0]["content_filter_results"] == {}
    assert "latency_checkpoint" in values[-2]
    assert values[-1] == "[DONE]"


async def test_a_filtered_prompt_tells_the_categories() -> None:
    async with simulator(Script(faults=(Fault("content_filter"),))) as client:
        answer = await client.post(PATH + VERSION, BODY, HEADERS)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "content_filter", "prompt")
    inner = error["innererror"]
    assert inner["code"] == "ResponsibleAIPolicyViolation"
    assert inner["content_filter_result"]["violence"]["filtered"]


async def test_the_version_the_key_and_the_deployment_are_checked() -> None:
    scripts = Script(keys=("k",), models=("my-gpt",))
    async with simulator(scripts) as client:
        assert (await client.post(PATH, BODY, HEADERS)).json()["error"]["code"] == "404"
        wrong = await client.post(PATH + VERSION, BODY, {"api-key": "x"})
        assert (wrong.status_code, wrong.json()["error"]["code"]) == (401, "401")
        unknown = await client.post(PATH.replace("my-gpt", "o") + VERSION, BODY, HEADERS)
        assert unknown.json()["error"]["code"] == "DeploymentNotFound"
        bearer = await client.post(PATH + VERSION, BODY, {"authorization": "Bearer k"})
        assert bearer.status_code == 200


async def test_rates_are_told_in_both_headers() -> None:
    fault = Fault("rate_limited", retry_after_s=2, retry_after_form="both")
    async with simulator(Script(faults=(fault,))) as client:
        answer = await client.post(PATH + VERSION, BODY, HEADERS)
    assert answer.json()["error"]["code"] == "RateLimitReached"
    assert (answer.headers["retry-after"], answer.headers["retry-after-ms"]) == ("2", "2000")


async def test_the_official_sdk_reads_it() -> None:
    async with (
        simulator(Script(text="Hello, world.")) as client,
        AsyncAzureOpenAI(
            azure_endpoint=str(client.http.base_url) + "/az",
            api_key="k",
            api_version="2024-10-21",
            max_retries=0,
        ) as own,
    ):
        messages: list[Any] = BODY["messages"]
        answer = await own.chat.completions.create(model="my-gpt", messages=messages)
        assert answer.choices[0].message.content == "Hello, world."
        response = await own.responses.create(model="my-gpt", input="hi")
        assert response.output_text == "Hello, world."
