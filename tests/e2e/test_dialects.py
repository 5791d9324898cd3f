"""Every official SDK against every provider's dialect: application code never changes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import anthropic
import openai
import pytest
from google import genai
from google.genai import types
from tests.e2e.processes import Gateway, Simulator, environment

LANES: Final = {
    "openai": "/v1",
    "responses": "/v1",
    "anthropic": "/v1",
    "gemini": "/v1beta",
    "vertex": "/v1/projects/p/locations/l",
    "azure": "",
    "mistral": "/v1",
    "bedrock": "",
    "cohere": "",
    "ollama": "",
}
"""A lane of the simulator for each dialect, and where its provider's paths begin."""

ALL: Final = tuple(LANES)
HELLO: Final = "Hello there"
SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}


def configuration(simulator: Simulator) -> str:
    lines = ["providers:"]
    for wire, path in LANES.items():
        url = f"http://127.0.0.1:{simulator.port}/{wire}{path}"
        more = ""
        if wire == "bedrock":
            more = (
                ", params: {region: eu-central-1, aws_access_key_id: env:TEST_AWS_ID,"
                " aws_secret_access_key: env:TEST_AWS_SECRET}"
            )
        elif wire != "ollama":
            more = ", api_key: env:TEST_PROVIDER"
        lines.append(f'  t-{wire}: {{wire: {wire}, base_url: "{url}"{more}}}')
    lines.append("models:")
    for wire in LANES:
        lines.append(f"  {wire}/*:")
        lines.append(f"    deployments: [{{model: t-{wire}/*}}]")
        lines.append("    retry: {attempts: 1}")
        lines.append("    breaker: {consecutive: 100000, min_requests: 100000}")
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def served(workplace: Path, simulator: Simulator) -> Iterator[Gateway]:
    process = Gateway(
        workplace / "dialects",
        config=configuration(simulator),
        env=environment(
            TEST_PROVIDER="sk-test-secret",
            TEST_AWS_ID="AKIDEXAMPLE",
            TEST_AWS_SECRET="wJalrXUtnFEMI",  # noqa: S106 - of the provider's own documentation
        ),
    )
    yield process
    process.end()


@pytest.fixture(scope="module")
def by_openai(served: Gateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=served.base_url, api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def by_anthropic(served: Gateway) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=served.root_url, api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def by_google(served: Gateway) -> genai.Client:
    return genai.Client(api_key="any", http_options=types.HttpOptions(base_url=served.root_url))


# Whole answers, streams and tools, each SDK to each dialect.


@pytest.mark.parametrize("wire", ALL)
def test_openais_chat(by_openai: openai.OpenAI, wire: str) -> None:
    messages: Any = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": HELLO}]
    answer = by_openai.chat.completions.create(
        model=f"{wire}/sim-echo", messages=messages, max_tokens=200
    )
    assert HELLO in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens > 0
    chunks = list(
        by_openai.chat.completions.create(
            model=f"{wire}/sim-echo",
            messages=messages,
            max_tokens=200,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert HELLO in text
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 0


@pytest.mark.parametrize("wire", ALL)
def test_openais_tools(by_openai: openai.OpenAI, wire: str) -> None:
    tools: Any = [
        {"type": "function", "function": {"name": "weather", "parameters": SCHEMA, "strict": True}}
    ]
    answer = by_openai.chat.completions.create(
        model=f"{wire}/sim-tools",
        messages=[{"role": "user", "content": HELLO}],
        tools=tools,
        tool_choice="required",
        max_tokens=200,
    )
    (call, *_) = answer.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert call.function.name == "weather"
    assert "city" in call.function.arguments
    assert answer.choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize("wire", ALL)
def test_openais_responses(by_openai: openai.OpenAI, wire: str) -> None:
    answer = by_openai.responses.create(model=f"{wire}/sim-echo", input=HELLO)
    assert HELLO in answer.output_text
    assert answer.status == "completed"
    with by_openai.responses.stream(model=f"{wire}/sim-echo", input=HELLO) as stream:
        for _ in stream:
            pass
        final = stream.get_final_response()
    assert HELLO in final.output_text
    assert final.usage is not None


@pytest.mark.parametrize("wire", ALL)
def test_anthropics_messages(by_anthropic: anthropic.Anthropic, wire: str) -> None:
    asked: Any = {
        "model": f"{wire}/sim-echo",
        "max_tokens": 200,
        "system": "Be kind.",
        "messages": [{"role": "user", "content": HELLO}],
    }
    answer = by_anthropic.messages.create(**asked)
    assert HELLO in "".join(b.text for b in answer.content if b.type == "text")
    assert answer.stop_reason == "end_turn"
    assert answer.usage.output_tokens > 0
    with by_anthropic.messages.stream(**asked) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert HELLO in text
    assert final.stop_reason == "end_turn"


@pytest.mark.parametrize("wire", ALL)
def test_anthropics_tools(by_anthropic: anthropic.Anthropic, wire: str) -> None:
    tools: Any = [{"name": "weather", "input_schema": SCHEMA}]
    with by_anthropic.messages.stream(
        model=f"{wire}/sim-tools",
        max_tokens=200,
        messages=[{"role": "user", "content": HELLO}],
        tools=tools,
        tool_choice={"type": "any"},
    ) as stream:
        final = stream.get_final_message()
    (call, *_) = [block for block in final.content if block.type == "tool_use"]
    assert call.name == "weather"
    assert isinstance(call.input, dict)
    assert "city" in call.input
    assert final.stop_reason == "tool_use"


@pytest.mark.parametrize("wire", ALL)
def test_googles_generate_content(by_google: genai.Client, wire: str) -> None:
    answer = by_google.models.generate_content(model=f"{wire}/sim-echo", contents=HELLO)
    assert HELLO in (answer.text or "")
    assert answer.usage_metadata is not None
    chunks = list(
        by_google.models.generate_content_stream(model=f"{wire}/sim-echo", contents=HELLO)
    )
    assert HELLO in "".join(chunk.text or "" for chunk in chunks)


# What goes wrong, as each SDK's own exception.


@pytest.mark.parametrize("wire", ALL)
def test_a_rate_limit_is_each_sdks_own(
    simulator: Simulator,
    by_openai: openai.OpenAI,
    by_anthropic: anthropic.Anthropic,
    by_google: genai.Client,
    wire: str,
) -> None:
    model = f"limited-{wire}"
    simulator.script(
        lane=wire, model=model, faults=[{"class": "rate_limited", "retry_after_s": 0.05}]
    )
    name = f"{wire}/{model}"
    with pytest.raises(openai.RateLimitError):
        by_openai.chat.completions.create(
            model=name, messages=[{"role": "user", "content": HELLO}], max_tokens=5
        )
    with pytest.raises(anthropic.RateLimitError):
        by_anthropic.messages.create(
            model=name, max_tokens=5, messages=[{"role": "user", "content": HELLO}]
        )
    with pytest.raises(genai.errors.ClientError) as raised:
        by_google.models.generate_content(model=name, contents=HELLO)
    assert raised.value.code == 429


def test_an_unknown_model_is_each_sdks_not_found(
    by_openai: openai.OpenAI, by_anthropic: anthropic.Anthropic, by_google: genai.Client
) -> None:
    with pytest.raises(openai.NotFoundError):
        by_openai.responses.create(model="nowhere", input=HELLO)
    with pytest.raises(anthropic.NotFoundError):
        by_anthropic.messages.create(
            model="nowhere", max_tokens=5, messages=[{"role": "user", "content": HELLO}]
        )
    with pytest.raises(genai.errors.ClientError) as raised:
        by_google.models.generate_content(model="nowhere", contents=HELLO)
    assert raised.value.code == 404


def test_what_a_provider_cannot_express_is_named(by_openai: openai.OpenAI) -> None:
    raw = by_openai.chat.completions.with_raw_response.create(
        model="anthropic/sim-echo",
        messages=[{"role": "user", "content": HELLO}],
        max_tokens=50,
        logit_bias={"5": 1},
    )
    assert "logit_bias" in raw.headers["breakwater-dropped-params"]


def test_no_key_is_ever_shown(
    simulator: Simulator, served: Gateway, by_openai: openai.OpenAI
) -> None:
    simulator.script(lane="openai", model="locked", keys=["another"])
    with pytest.raises(openai.InternalServerError) as raised:
        by_openai.chat.completions.create(
            model="openai/locked", messages=[{"role": "user", "content": HELLO}]
        )
    assert "sk-test-secret" not in str(raised.value)
    assert "sk-test-secret" not in served.stderr


@pytest.mark.parametrize("wire", ["openai", "gemini", "cohere", "ollama", "azure"])
def test_embeddings_by_either_sdk(
    by_openai: openai.OpenAI, by_google: genai.Client, wire: str
) -> None:
    mine = by_openai.embeddings.create(model=f"{wire}/embed", input=["a", "b"])
    assert len(mine.data) == 2
    theirs = by_google.models.embed_content(model=f"{wire}/embed", contents=["a", "b"])
    assert theirs.embeddings is not None
    assert len(theirs.embeddings) == 2
