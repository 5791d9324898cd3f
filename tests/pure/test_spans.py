"""Events as spans: what each says, and that whatever an event holds its span is valid."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from breakwater_gateway.exporter import otlp
from breakwater_gateway.exporter.spans import (
    Place,
    Span,
    attempt_span,
    place_of,
    request_span,
    root_id,
)
from breakwater_protocol.chat import Usage
from breakwater_protocol.events import AttemptFinished, Decision, RequestFinished

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
AT = 1_800_000_000.5


ATTEMPT = AttemptFinished(
    request="req_1",
    attempt=1,
    tenant="acme",
    model="main",
    deployment="gpt-us",
    target="gpt-us",
    provider="openai",
    worker="worker-1",
    outcome="ok",
    at=AT,
    duration_ms=250.0,
    provider_model="gpt-4o",
)
REQUEST = RequestFinished(
    request="req_1",
    tenant="acme",
    api="chat",
    model="main",
    outcome="ok",
    at=AT + 0.01,
    router="router-1",
    duration_ms=300.0,
)


def attempt(**more: object) -> AttemptFinished:
    return msgspec.structs.replace(ATTEMPT, **more)


def request(**more: object) -> RequestFinished:
    return msgspec.structs.replace(REQUEST, **more)


HERE = place_of("acme", "req_1", "")


def test_a_call_is_a_client_span_with_the_names_of_opentelemetry() -> None:
    event = attempt(
        stream=True,
        first_token_ms=120.0,
        usage=Usage(input=100, output=20, cache_read=60, cache_write=5, reasoning=7),
        cost_nano_usd=1_500_000,
        region="us",
        user="ann",
        properties={"tier": "free"},
    )
    span = attempt_span(event, HERE, b"rootroot")
    assert (span.name, span.kind, span.error) == ("chat gpt-4o", "client", None)
    assert (span.start_ns, span.end_ns) == (1_800_000_000_250_000_000, 1_800_000_000_500_000_000)
    assert span.parent_id == b"rootroot"
    assert span.attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-4o",
        "gen_ai.request.stream": True,
        "gen_ai.response.time_to_first_chunk": 0.12,
        "gen_ai.usage.input_tokens": 100,
        "gen_ai.usage.output_tokens": 20,
        "gen_ai.usage.cache_read.input_tokens": 60,
        "gen_ai.usage.cache_creation.input_tokens": 5,
        "gen_ai.usage.reasoning.output_tokens": 7,
        "breakwater.request_id": "req_1",
        "breakwater.tenant": "acme",
        "breakwater.attempt": 1,
        "breakwater.model": "main",
        "breakwater.outcome": "ok",
        "breakwater.deployment": "gpt-us",
        "breakwater.target": "gpt-us",
        "breakwater.region": "us",
        "breakwater.key": 0,
        "breakwater.rung": "primary",
        "breakwater.worker": "worker-1",
        "breakwater.cost_usd": 0.0015,
        "breakwater.user": "ann",
        "breakwater.property.tier": "free",
    }


def test_a_request_is_a_server_span_with_its_decisions() -> None:
    event = request(
        deployment="gpt-us",
        attempts=2,
        usage=Usage(input=100, output=20),
        cost_nano_usd=2_000_000_000,
        overhead_ms=1.5,
        decisions=[
            Decision("dispatch", 1.0, deployment="gpt-eu", reason="least-busy", score=2.0),
            Decision("wait", 5.0, reason="backoff", wait_ms=50.0),
        ],
    )
    span = request_span(event, HERE, "sampled")
    assert (span.name, span.kind, span.parent_id) == ("chat main", "server", b"")
    assert span.attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "main",
        "breakwater.request_id": "req_1",
        "breakwater.tenant": "acme",
        "breakwater.api": "chat",
        "breakwater.outcome": "ok",
        "breakwater.deployment": "gpt-us",
        "breakwater.rung": "primary",
        "breakwater.cache": "bypass",
        "breakwater.attempts": 2,
        "breakwater.overhead_ms": 1.5,
        "breakwater.tokens.input": 100,
        "breakwater.tokens.output": 20,
        "breakwater.cost_usd": 2.0,
        "breakwater.router": "router-1",
        "breakwater.kept": "sampled",
    }
    first, second = span.points
    assert (first.name, first.at_ns - span.start_ns) == ("breakwater.dispatch", 1_000_000)
    assert first.attributes == {
        "breakwater.deployment": "gpt-eu",
        "breakwater.reason": "least-busy",
        "breakwater.score": 2.0,
    }
    assert (second.name, second.attributes["breakwater.wait_ms"]) == ("breakwater.wait", 50.0)


@pytest.mark.parametrize(
    ("more", "error", "error_type"),
    [
        ({"outcome": "ok"}, None, None),
        ({"outcome": "cancelled"}, None, None),
        ({"outcome": "timeout", "rung": "error", "rung_reason": "total"}, "total", "timeout"),
        ({"outcome": "budget_exhausted", "rung": "error"}, "", "budget_exhausted"),
        ({"outcome": "partial"}, "", "partial"),
    ],
)
def test_a_request_that_failed_is_an_error(
    more: dict[str, str], error: str | None, error_type: str | None
) -> None:
    span = request_span(request(**more), HERE, "error")
    assert (span.error, span.attributes.get("error.type")) == (error, error_type)


@pytest.mark.parametrize(
    ("more", "error", "error_type", "status"),
    [
        (
            {"outcome": "overloaded", "failure": "overloaded", "status": 503, "message": "busy"},
            *("busy", "overloaded", 503),
        ),
        ({"outcome": "partial", "failure": "idle_timeout"}, "", "idle_timeout", None),
        ({"outcome": "cancelled", "failure": "cancelled"}, None, None, None),
    ],
)
def test_a_call_that_failed_is_an_error(
    more: dict[str, Any], error: str | None, error_type: str | None, status: int | None
) -> None:
    span = attempt_span(attempt(**more), HERE, b"rootroot")
    assert (span.error, span.attributes.get("error.type")) == (error, error_type)
    assert span.attributes.get("http.response.status_code") == status


@pytest.mark.parametrize(
    ("api", "operation"),
    [
        *(("chat", "chat"), ("messages", "chat"), ("responses", "chat")),
        *(("generate", "generate_content"), ("embeddings", "embeddings"), ("later", "later")),
    ],
)
def test_each_api_has_an_operation(api: str, operation: str) -> None:
    assert request_span(request(api=api), HERE, "").name == f"{operation} main"
    assert attempt_span(attempt(api=api), HERE, b"").name == f"{operation} gpt-4o"


@pytest.mark.parametrize(
    ("provider", "said"),
    [("openai", "openai"), ("azure", "azure.ai.openai"), ("bedrock", "aws.bedrock"),
     ("gemini", "gcp.gemini"), ("mistral", "mistral_ai"), ("my-vllm", "my-vllm")],
)  # fmt: skip
def test_providers_are_spelled_as_the_conventions_do(provider: str, said: str) -> None:
    span = attempt_span(attempt(provider=provider), HERE, b"")
    assert span.attributes["gen_ai.provider.name"] == said


def test_the_caller_s_trace_is_gone_on_with() -> None:
    place = place_of("acme", "req_1", PARENT, "vendor=1")
    span = request_span(request(), place, "sampled")
    assert span.trace_id.hex() == "0af7651916cd43dd8448eb211c80319c"
    assert span.parent_id.hex() == "b7ad6b7169203331"
    assert (span.trace_state, place.sampled) == ("vendor=1", True)
    assert place_of("acme", "req_1", PARENT[:-1] + "0").sampled is False


@pytest.mark.parametrize("bad", ["", "x", PARENT[:-3], "00-" + "0" * 32 + "-b7ad6b7169203331-01"])
def test_a_trace_begins_with_the_request_s_id_where_the_caller_has_none(bad: str) -> None:
    place = place_of("acme", "req_1", bad)
    assert place == HERE
    assert place.sampled is None
    assert place_of("acme", "req_1#2", bad).trace_id == HERE.trace_id
    assert place_of("acme", "req_2", bad).trace_id != HERE.trace_id
    assert place_of("umbrella", "req_1", bad).trace_id != HERE.trace_id


def test_the_same_event_is_the_same_span_and_another_one_is_another() -> None:
    assert attempt_span(attempt(), HERE, b"") == attempt_span(attempt(), HERE, b"")
    ids = {attempt_span(attempt(attempt=k), HERE, b"").span_id for k in range(100)}
    assert len(ids) == 100
    assert root_id(request()) == root_id(request())
    # The same id, asked again later.
    assert root_id(request()) != root_id(request(at=AT + 60))


def valid(span: Span) -> None:
    """What a collector asks of a span, on the wire."""
    batch = otlp.Batch({"service.name": "breakwater"}, "1")
    batch.add([span])
    sent = ExportTraceServiceRequest.FromString(batch.data())
    (found,) = sent.resource_spans[0].scope_spans[0].spans
    assert len(found.trace_id) == 16
    assert any(found.trace_id)
    assert len(found.span_id) == 8
    assert any(found.span_id)
    assert len(found.parent_span_id) in (0, 8)
    assert found.name
    assert 0 <= found.start_time_unix_nano <= found.end_time_unix_nano
    assert found.kind in (2, 3)
    keys = [each.key for each in found.attributes]
    assert len(keys) == len(set(keys))
    assert all(keys)
    assert all(len(each.value.string_value) <= 1_024 for each in found.attributes)
    for point in found.events:
        assert found.start_time_unix_nano <= point.time_unix_nano <= found.end_time_unix_nano
        assert point.name


anything = st.text(max_size=20) | st.sampled_from(["", "x" * 3_000, "\ud800", "ä", "\0"])
number = st.floats(allow_nan=True, allow_infinity=True) | st.sampled_from([0.0, AT, 1e300, -1.0])
whole = st.integers(-(2**80), 2**80)
usages = st.none() | st.builds(Usage, whole, whole, whole, whole, whole)
properties = st.dictionaries(anything, anything, max_size=40)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "request": anything, "tenant": anything, "api": anything, "model": anything,
            "outcome": anything, "at": number, "router": anything, "deployment": anything,
            "rung": anything, "rung_reason": anything, "cache": anything, "attempts": whole,
            "duration_ms": number, "overhead_ms": number, "first_token_ms": st.none() | number,
            "usage": usages, "cost_nano_usd": st.none() | whole, "user": anything,
            "properties": properties, "traceparent": anything | st.just(PARENT),
            "tracestate": anything, "stream": st.booleans(),
            "decisions": st.lists(
                st.builds(Decision, anything, number, anything, anything, anything, whole, number),
                max_size=3,
            ),
        },
    )
)  # fmt: skip
def test_whatever_the_event_of_a_request_holds_its_span_is_valid(changes: dict[str, Any]) -> None:
    event = request(**changes)
    place = place_of(event.tenant, event.request, event.traceparent, event.tracestate)
    valid(request_span(event, place, "sampled"))


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "request": anything, "attempt": whole, "tenant": anything, "model": anything,
            "provider": anything, "provider_model": anything, "worker": anything,
            "outcome": anything, "failure": anything, "at": number, "duration_ms": number,
            "first_token_ms": st.none() | number, "status": st.none() | whole,
            "retry_after_s": st.none() | number, "usage": usages, "key": whole,
            "cost_nano_usd": st.none() | whole, "message": anything, "stream": st.booleans(),
            "properties": properties, "traceparent": anything | st.just(PARENT),
        },
    )
)  # fmt: skip
def test_whatever_the_event_of_a_call_holds_its_span_is_valid(changes: dict[str, Any]) -> None:
    event = attempt(**changes)
    place: Place = place_of(event.tenant, event.request, event.traceparent)
    valid(attempt_span(event, place, place.parent_id))
