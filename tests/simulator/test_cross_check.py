"""The gateway's dialects against the simulated providers: each written without the other.

What the gateway encodes must be accepted, what the simulator answers must be understood, and a fault must be
classified as what it was scripted to be.
"""

import json
from typing import Any

import jsonschema
import pytest
from msgspec import Raw
from tests.simulator.providers import (
    PROVIDERS,
    Client,
    Heard,
    Provider,
    heard_answer,
    heard_stream,
    simulator,
)

from breakwater_gateway.simulator.script import Fault, FaultClass, Script
from breakwater_gateway.worker.wire import neutral as n
from breakwater_protocol import failures as f

pytestmark = pytest.mark.anyio

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS: list[n.Tool | n.NativeTool] = [
    n.Tool("weather", "Tells the weather.", Raw(json.dumps(SCHEMA).encode())),
    n.Tool("clock", "Tells the time.", Raw(b'{"type":"object","properties":{}}')),
]
EVERY = pytest.mark.parametrize("provider", PROVIDERS.values(), ids=lambda p: p.name)
BOTH = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])


def asked(*, stream: bool = False, **fields: Any) -> n.Request:  # noqa: ANN401 - any field of a request
    turns = [
        n.Turn("system", [n.Text("Be brief.")], plain=True),
        n.Turn("user", [n.Text("What is the weather?")], plain=True),
    ]
    return n.Request(
        **{
            "dialect": "openai",
            "model": "m",
            "turns": turns,
            "max_output": 500,
            "stream": stream,
            "usage_wanted": True,
            **fields,
        }
    )


async def hear(
    client: Client, provider: Provider, request: n.Request, *, model: str = "m", step: int = 0
) -> Heard:
    answer = await client.ask(provider, request, model)
    assert answer.status_code == 200, answer.text
    if request.stream:
        return heard_stream(provider.dialect.stream_decoder(), answer.content, step=step)
    return heard_answer(provider.dialect.decode_answer(answer.content))


@EVERY
@BOTH
async def test_text_and_usage_come_through(provider: Provider, stream: bool) -> None:
    script = Script(text="Naïve café, 日本語 👋 done.", prompt_tokens=100, completion_tokens=20)
    async with simulator(script) as client:
        heard = await hear(client, provider, asked(stream=stream))
    assert heard.failure is None
    assert (heard.text, heard.finish, heard.done) == (script.text, "stop", True)
    assert heard.usage is not None
    assert (heard.usage.input, heard.usage.output) == (100, 20)


@EVERY
@BOTH
async def test_tools_are_called_in_parallel(provider: Provider, stream: bool) -> None:
    script = Script(tool_calls="always", parallel_calls=3)
    async with simulator(script) as client:
        heard = await hear(client, provider, asked(stream=stream, tools=TOOLS))
    assert heard.failure is None
    assert [name for name, _ in heard.calls] == ["weather", "clock", "weather"]
    jsonschema.validate(json.loads(heard.calls[0][1]), SCHEMA)
    assert len(set(heard.call_ids)) == 3
    assert (heard.finish, heard.done) == ("tool_calls", True)


@EVERY
@BOTH
async def test_results_of_tools_are_accepted(provider: Provider, stream: bool) -> None:
    call = n.ToolCall(id="call_1", name="weather", arguments='{"city":"Paris","days":1}')
    result = n.ToolResult("call_1", "weather", [n.Text("sunny")], plain=True)
    turns = [
        n.Turn("user", [n.Text("What is the weather?")], plain=True),
        n.Turn("assistant", [call]),
        n.Turn("tool", [result]),
    ]
    request = asked(stream=stream, turns=turns, tools=TOOLS)
    async with simulator(Script(text="It is sunny.", tool_calls="always")) as client:
        heard = await hear(client, provider, request)
    assert (heard.text, heard.finish) == ("It is sunny.", "stop")


@EVERY
async def test_a_forced_tool_is_called(provider: Provider) -> None:
    request = asked(tools=TOOLS, tool_choice=n.ToolChoice("named", ["clock"]))
    async with simulator() as client:
        answer = await client.ask(provider, request)
    heard = heard_answer(provider.dialect.decode_answer(answer.content))
    # Ollama cannot be forced.
    assert [name for name, _ in heard.calls] == ([] if provider.name == "ollama" else ["clock"])


@EVERY
@BOTH
async def test_structured_answers_fit(provider: Provider, stream: bool) -> None:
    schema = n.OutputFormat("schema", Raw(json.dumps(SCHEMA).encode()), name="report", strict=True)
    claude = provider.wire == "anthropic"
    model = "claude-sonnet-4-5" if claude else "m"
    async with simulator() as client:
        request = asked(stream=stream, format=schema)
        heard = await hear(client, provider, request, model=model)
    said = heard.text or (heard.calls[0][1] if heard.calls else "")
    jsonschema.validate(json.loads(said), SCHEMA)


SHOWS_THOUGHTS = frozenset(PROVIDERS) - {"openai", "azure"}


@EVERY
@BOTH
async def test_thoughts_are_told_from_the_answer(provider: Provider, stream: bool) -> None:
    script = Script(text="42.", thinking="Let me think about it.")
    async with simulator(script) as client:
        heard = await hear(client, provider, asked(stream=stream))
    shown = script.thinking if provider.name in SHOWS_THOUGHTS else ""
    assert (heard.thinking, heard.text) == (shown, "42.")
    assert heard.usage is not None
    if provider.wire not in {"mistral", "bedrock", "ollama"}:
        assert heard.usage.reasoning == 5
    assert heard.usage.output == 6


CACHE = pytest.mark.parametrize(
    ("name", "written"),
    [
        ("openai", 0),
        ("azure", 0),
        ("responses", 0),
        ("mistral", 0),
        ("gemini", 0),
        ("vertex", 0),
        ("cohere", 0),
        ("anthropic", 200),
        ("vertex-claude", 200),
        ("bedrock", 200),
    ],
)


@CACHE
@BOTH
async def test_cached_tokens_are_part_of_the_input_whoever_includes_them(
    name: str, written: int, stream: bool
) -> None:
    script = Script(prompt_tokens=1000, cached_tokens=600, cache_write_tokens=200)
    async with simulator(script) as client:
        heard = await hear(client, PROVIDERS[name], asked(stream=stream))
    assert heard.usage is not None
    assert (heard.usage.input, heard.usage.cache_read) == (1000, 600)
    assert heard.usage.cache_write == written


@EVERY
@BOTH
async def test_the_limit_of_tokens_ends_an_answer_with_length(
    provider: Provider, stream: bool
) -> None:
    async with simulator(Script(tokens=100)) as client:
        heard = await hear(client, provider, asked(stream=stream, max_output=16))
    assert heard.finish == "length"
    assert heard.usage is not None
    assert heard.usage.output == 16


@EVERY
@BOTH
async def test_usage_may_be_missing(provider: Provider, stream: bool) -> None:
    async with simulator(Script(text="ok", usage="missing")) as client:
        heard = await hear(client, provider, asked(stream=stream))
    assert (heard.text, heard.finish, heard.failure) == ("ok", "stop", None)
    assert not heard.usage


@EVERY
async def test_a_stream_means_the_same_however_it_is_framed_padded_and_cut(
    provider: Provider,
) -> None:
    text = "Ünï 👋 text."
    plain = Script(text=text, thinking="Hm, so.")
    manners: dict[str, Any] = {"obfuscation": True, "keep_alive_every": 2, "crlf": True}
    odd = Script(text=text, thinking="Hm, so.", split_bytes=3, **manners)
    async with simulator(plain) as client:
        expected = await hear(client, provider, asked(stream=True))
    async with simulator(odd) as client:
        for step in (0, 1, 7):
            assert await hear(client, provider, asked(stream=True), step=step) == expected


# What each class of fault is to the gateway; where providers differ, by provider.
KINDS: dict[FaultClass, type[f.Failure]] = {
    "rate_limited": f.RateLimited,
    "quota_exhausted": f.QuotaExhausted,
    "request_over_limit": f.RequestOverLimit,
    "context_length": f.ContextLength,
    "content_filter": f.ContentFiltered,
    "invalid_request": f.InvalidRequest,
    "authentication": f.KeyRejected,
    "permission": f.KeyForbidden,
    "model_not_found": f.ModelNotFound,
    "overloaded": f.Overloaded,
    "server_error": f.ServerError,
}
OTHERS: dict[tuple[str, FaultClass], type[f.Failure]] = {
    # A body of too many bytes: these have no code for a prompt over the rate limit.
    ("anthropic", "request_over_limit"): f.PayloadTooLarge,
    ("vertex-claude", "request_over_limit"): f.PayloadTooLarge,
    # Google tells it as any other rate limit.
    ("gemini", "request_over_limit"): f.RateLimited,
    ("vertex", "request_over_limit"): f.RateLimited,
    # These have no filter that refuses a prompt.
    ("ollama", "content_filter"): f.InvalidRequest,
    ("mistral", "content_filter"): f.InvalidRequest,
    # What its code says, under status 403.
    ("openai", "permission"): f.ModelNotFound,
    ("responses", "permission"): f.ModelNotFound,
}


@EVERY
@BOTH
@pytest.mark.parametrize("kind", KINDS)
async def test_faults_are_classified_as_scripted(
    provider: Provider, stream: bool, kind: FaultClass
) -> None:
    async with simulator(Script(faults=(Fault(kind),))) as client:
        answer = await client.ask(provider, asked(stream=stream))
    if answer.status_code == 200:
        decoder = provider.dialect.stream_decoder()
        heard = (
            heard_stream(decoder, answer.content)
            if stream
            else heard_answer(provider.dialect.decode_answer(answer.content))
        )
        assert kind == "content_filter"
        assert heard.finish == "content_filter" or isinstance(heard.failure, f.ContentFiltered)
        return
    failure = provider.dialect.classify(
        answer.status_code, answer.headers, answer.content, now=1_750_000_000.0
    )
    expected = OTHERS.get((provider.name, kind), KINDS[kind])
    assert type(failure) is expected, answer.text


@EVERY
@pytest.mark.parametrize("kind", ["rate_limited", "overloaded"])
async def test_waits_are_read_where_the_provider_tells_them(
    provider: Provider, kind: FaultClass
) -> None:
    fault = Fault(kind, retry_after_s=7, retry_after_form="both")
    async with simulator(Script(faults=(fault,))) as client:
        answer = await client.ask(provider, asked())
    failure = provider.dialect.classify(
        answer.status_code, answer.headers, answer.content, now=1_750_000_000.0
    )
    silent = provider.wire == "bedrock" or (
        provider.wire in {"gemini", "vertex"} and kind == "overloaded"
    )
    assert f.retry_after_s(failure) == (None if silent else 7)


@EVERY
@pytest.mark.parametrize("first", [True, False], ids=["first", "later"])
async def test_an_error_inside_a_stream_breaks_it(provider: Provider, first: bool) -> None:
    fault = Fault("error_in_200", after_tokens=2, before_first=first)
    async with simulator(Script(faults=(fault,))) as client:
        heard = await hear(client, provider, asked(stream=True))
    assert not heard.done
    assert bool(heard.text) is not first
    overloaded = provider.wire in {"anthropic", "gemini", "vertex", "bedrock"}
    assert type(heard.failure) is (f.Overloaded if overloaded else f.ServerError)


@EVERY
@pytest.mark.parametrize("kind", ["malformed_chunk", "half_json", "empty_body"])
async def test_a_stream_that_is_spoilt_is_never_taken_for_whole(
    provider: Provider, kind: FaultClass
) -> None:
    async with simulator(Script(faults=(Fault(kind, after_tokens=2),))) as client:
        heard = await hear(client, provider, asked(stream=True))
    if kind == "malformed_chunk":
        assert heard.failure is not None
    assert not heard.done


@EVERY
@pytest.mark.parametrize("kind", ["half_json", "empty_body"])
async def test_an_answer_that_is_spoilt_is_malformed(provider: Provider, kind: FaultClass) -> None:
    async with simulator(Script(faults=(Fault(kind),))) as client:
        heard = await hear(client, provider, asked())
    assert isinstance(heard.failure, f.MalformedAnswer)


@EVERY
async def test_without_its_end_a_stream_is_not_done(provider: Provider) -> None:
    async with simulator(Script(text="one two three", end_without_done=True)) as client:
        heard = await hear(client, provider, asked(stream=True))
    # Where the finish reason came before it, nothing of the answer is missing.
    told = provider.wire in {"openai", "azure", "mistral", "cohere"}
    assert (heard.done, bool(heard.finish)) == (told, told or provider.wire == "anthropic")
    assert heard.text in {"one two three", "one two"}


@EVERY
@BOTH
async def test_a_filtered_answer_is_told_so(provider: Provider, stream: bool) -> None:
    if provider.wire == "ollama":
        pytest.skip("it has no filter")
    async with simulator(Script(faults=(Fault("filtered_answer"),))) as client:
        heard = await hear(client, provider, asked(stream=stream))
    failed = heard.finish == "error" or heard.failure is not None
    assert heard.finish == "content_filter" or (provider.wire in {"cohere", "mistral"} and failed)


@EVERY
@BOTH
async def test_a_tool_call_that_does_not_parse_is_not_a_good_one(
    provider: Provider, stream: bool
) -> None:
    async with simulator(Script(faults=(Fault("malformed_tool_call"),))) as client:
        heard = await hear(client, provider, asked(stream=stream, tools=TOOLS))
    parsed = [_object(arguments) for _, arguments in heard.calls]
    refused = isinstance(heard.failure, f.MalformedToolCall) or heard.finish == "error"
    assert refused or not all(parsed)


def _object(arguments: str) -> bool:
    try:
        return isinstance(json.loads(arguments), dict)
    except json.JSONDecodeError:
        return False


EMBEDDING = [p for p in PROVIDERS.values() if p.dialect.encode_embeddings is not None]


@pytest.mark.parametrize("provider", EMBEDDING, ids=lambda p: p.name)
async def test_embeddings_come_in_the_order_of_their_texts(provider: Provider) -> None:
    dialect = provider.dialect
    assert dialect.encode_embeddings is not None
    assert dialect.decode_embeddings is not None
    texts: list[str | list[int]] = ["hello world", "good bye", "hello world"]
    # Titan takes one text a call.
    model = "cohere.embed-v4" if provider.wire == "bedrock" else "text-embedding-3-small"
    request = n.Embeddings("openai", model, texts)
    call = dialect.encode_embeddings(request, provider.target(model))
    async with simulator() as client:
        answer = await client.send(provider, call)
    assert answer.status_code == 200, answer.text
    found = dialect.decode_embeddings(answer.content)
    assert isinstance(found, n.EmbeddingsAnswer)
    one, two, three = found.vectors
    assert one == three != two
    assert sum(x * x for x in one) == pytest.approx(1, abs=1e-3)
