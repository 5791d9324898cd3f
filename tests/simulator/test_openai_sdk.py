"""The official OpenAI SDK finds the simulator to be what it expects."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import openai
import pytest
from openai import AsyncOpenAI
from pydantic import BaseModel
from tests.http.wire import KeptLog

from breakwater_gateway.simulator.script import Fault, FaultClass, Script
from breakwater_gateway.simulator.server import SimulatorServer

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def sdk(*scripts: Script) -> AsyncIterator[AsyncOpenAI]:
    server = SimulatorServer(log=KeptLog())
    await server.start("127.0.0.1", 0)
    server.book.put(scripts, now=asyncio.get_running_loop().time())
    client = AsyncOpenAI(
        base_url=f"http://127.0.0.1:{server.port}/lane/v1", api_key="sk-test", max_retries=0
    )
    try:
        async with asyncio.timeout(20):
            yield client
    finally:
        await client.close()
        await server.close()


async def test_chat() -> None:
    async with sdk(Script(text="Hello, world.")) as client:
        answer = await client.chat.completions.create(
            model="gpt-4o", messages=[{"role": "user", "content": "hi"}]
        )
        assert answer.choices[0].message.content == "Hello, world."
        assert answer.usage is not None
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + 2


async def test_stream_with_usage() -> None:
    async with sdk(Script(text="Hello, world.")) as client:
        stream = await client.chat.completions.create(
            model="gpt-4o",
            messages=[{"role": "user", "content": "hi"}],
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert text == "Hello, world."
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == 2


async def test_tools_streamed_through_the_sdk_helper() -> None:
    tools: list[openai.types.chat.ChatCompletionToolUnionParam] = [
        {
            "type": "function",
            "function": {
                "name": "weather",
                "parameters": {
                    "type": "object",
                    "properties": {"city": {"type": "string"}},
                    "required": ["city"],
                },
            },
        }
    ]
    async with sdk() as client:
        async with client.chat.completions.stream(
            model="gpt-4o",
            messages=[{"role": "user", "content": "weather?"}],
            tools=tools,
            tool_choice="required",
        ) as stream:
            final = await stream.get_final_completion()
        calls = final.choices[0].message.tool_calls
        assert calls is not None
        assert calls[0].function.name == "weather"
        assert set(json.loads(calls[0].function.arguments)) == {"city"}


class Step(BaseModel):
    explanation: str
    done: bool


class Plan(BaseModel):
    steps: list[Step]
    count: int


async def test_structured_output() -> None:
    async with sdk() as client:
        answer = await client.chat.completions.parse(
            model="gpt-4o",
            messages=[{"role": "user", "content": "plan"}],
            response_format=Plan,
        )
        assert isinstance(answer.choices[0].message.parsed, Plan)


async def test_embeddings_in_the_sdks_own_encoding() -> None:
    async with sdk() as client:
        answer = await client.embeddings.create(model="text-embedding-3-large", input=["a", "b"])
        floats = await client.embeddings.create(
            model="text-embedding-3-large", input=["a", "b"], encoding_format="float"
        )
        assert len(answer.data[0].embedding) == 3072
        assert answer.data[1].embedding == pytest.approx(floats.data[1].embedding)


async def test_models() -> None:
    async with sdk() as client:
        names = [model.id async for model in client.models.list()]
        assert "sim-fast" in names
        assert (await client.models.retrieve("sim-fast")).owned_by == "simulator"


@pytest.mark.parametrize(
    ("kind", "error", "code"),
    [
        ("invalid_request", openai.BadRequestError, "invalid_value"),
        ("context_length", openai.BadRequestError, "context_length_exceeded"),
        ("authentication", openai.AuthenticationError, "invalid_api_key"),
        ("permission", openai.PermissionDeniedError, "model_not_found"),
        ("model_not_found", openai.NotFoundError, "model_not_found"),
        ("rate_limited", openai.RateLimitError, "rate_limit_exceeded"),
        ("quota_exhausted", openai.RateLimitError, "insufficient_quota"),
        ("server_error", openai.InternalServerError, None),
        ("overloaded", openai.InternalServerError, "engine_overloaded"),
        ("html_502", openai.InternalServerError, None),
    ],
)
async def test_errors_raise_the_right_classes(
    kind: FaultClass, error: type[openai.APIStatusError], code: str | None
) -> None:
    async with sdk(Script(faults=(Fault(kind),))) as client:
        with pytest.raises(error) as caught:
            await client.chat.completions.create(
                model="gpt-4o", messages=[{"role": "user", "content": "hi"}]
            )
        assert caught.value.code == code


async def test_an_error_within_a_stream_and_a_lost_connection() -> None:
    script = Script(
        faults=(Fault("error_in_200", times=1, after_tokens=2), Fault("reset", times=1))
    )
    async with sdk(script) as client:
        stream = await client.chat.completions.create(
            model="gpt-4o", messages=[{"role": "user", "content": "hi"}], stream=True
        )
        with pytest.raises(openai.APIError, match="had an error"):
            [chunk async for chunk in stream]
        with pytest.raises(openai.APIConnectionError):
            await client.chat.completions.create(
                model="gpt-4o", messages=[{"role": "user", "content": "hi"}]
            )
