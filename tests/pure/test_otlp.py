"""OTLP over HTTP: where spans go, with which headers, and what an answer means."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from tests.pure.test_spans import HERE, attempt, request

from breakwater_gateway.exporter import otlp
from breakwater_gateway.exporter.otlp import BadSetting, Refused, Taken, TryAgain
from breakwater_gateway.exporter.spans import attempt_span, place_of, request_span, root_id

NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("base", "url"),
    [
        ("http://collector:4318", "http://collector:4318/v1/traces"),
        ("http://collector:4318/", "http://collector:4318/v1/traces"),
        (" https://otlp.example.com/otlp \n", "https://otlp.example.com/otlp/v1/traces"),
        ("https://h/v1/traces", "https://h/v1/traces"),
        ("https://h/v1/traces/", "https://h/v1/traces"),
        ("http://[::1]:4318", "http://[::1]:4318/v1/traces"),
    ],
)
def test_the_path_is_added_to_the_base(base: str, url: str) -> None:
    assert otlp.traces_url(base) == url


@pytest.mark.parametrize(
    "base",
    ["collector:4318", "grpc://h", "http://", "http://h:99999", "http://h/a b", "http://[::1",
     "http://h/?key=1", "http://h/#x", "http://hä", "http://h/" + "x" * 9_000],
)  # fmt: skip
def test_what_is_no_endpoint_is_refused_without_being_repeated(base: str) -> None:
    with pytest.raises(BadSetting) as caught:
        otlp.traces_url(base)
    assert base not in str(caught.value).replace("http://collector:4318", "")


@given(st.text(max_size=60) | st.text(max_size=60).map(lambda t: f"http://{t}"))
def test_any_text_is_an_endpoint_or_refused(base: str) -> None:
    with contextlib.suppress(BadSetting):
        assert otlp.traces_url(base).endswith("/v1/traces")


def test_the_port_of_grpc_is_known() -> None:
    assert otlp.speaks_grpc("http://h:4317/v1/traces")
    assert not otlp.speaks_grpc("http://h:4318/v1/traces")


def test_headers_come_from_the_environment() -> None:
    found = otlp.read_headers(
        {
            "OTEL_EXPORTER_OTLP_HEADERS": "Authorization=Basic%20YTpi, x-team = a b ,",
            "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "x-team=traces",
        }
    )
    assert found == {"authorization": "Basic YTpi", "x-team": "traces"}
    assert otlp.read_headers({}) == {}


@pytest.mark.parametrize(
    "text",
    ["secret", "=x", "a b=secret", "x=secret%0D%0Ay: 1", "a=\x00", "ä=1", "a=" + "x" * 9_000],
)
def test_bad_headers_are_refused_without_being_repeated(text: str) -> None:
    with pytest.raises(BadSetting, match="OTEL_EXPORTER_OTLP_HEADERS") as caught:
        otlp.read_headers({"OTEL_EXPORTER_OTLP_HEADERS": text})
    assert "secret" not in str(caught.value)


def test_the_resource_says_who_speaks() -> None:
    plain = otlp.read_resource({}, version="1", instance="exporter-1")
    assert plain["service.name"] == "breakwater"
    assert plain["service.instance.id"] == "exporter-1"
    named = otlp.read_resource(
        {
            "OTEL_RESOURCE_ATTRIBUTES": "service.name=a,deployment.environment.name=prod%20eu",
            "OTEL_SERVICE_NAME": "gateway",
        },
        version="1",
        instance="exporter-1",
    )
    assert named["service.name"] == "gateway"
    assert named["deployment.environment.name"] == "prod eu"


def test_spans_come_back_from_the_wire_as_they_were() -> None:
    place = place_of("acme", "req_1", "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01", "v=1")
    end = request(outcome="timeout", rung_reason="total")
    root, call = request_span(end, place, "error"), attempt_span(attempt(), place, root_id(end))
    batch = otlp.Batch({"service.name": "x", "n": 1, "f": 0.5, "b": True}, "2")
    batch.add([root])
    batch.add([call])
    assert batch.count == 2
    (of,) = ExportTraceServiceRequest.FromString(batch.data()).resource_spans
    assert [each.key for each in of.resource.attributes] == ["service.name", "n", "f", "b"]
    (scope,) = of.scope_spans
    assert (scope.scope.name, scope.scope.version) == ("breakwater_gateway.exporter", "2")
    first, second = scope.spans
    assert (first.trace_id, first.parent_span_id) == (bytes.fromhex("ab" * 16), b"\xcd" * 8)
    assert (first.trace_state, first.flags & 0x300) == ("v=1", 0x300)
    assert (first.status.code, first.status.message) == (2, "total")
    assert (second.parent_span_id, second.flags & 0x300) == (first.span_id, 0x100)
    assert second.status.code == 0
    assert (first.kind, second.kind) == (2, 3)


def test_a_span_is_small() -> None:
    batch = otlp.Batch({}, "1")
    batch.add([attempt_span(attempt(attempt=k), HERE, b"") for k in range(300)])
    assert batch.count == 300
    assert len(batch.data()) < 300 * 2_000


PARTIAL = ExportTraceServiceResponse()
PARTIAL.partial_success.rejected_spans = 3
PARTIAL.partial_success.error_message = "too old"


@pytest.mark.parametrize(
    ("status", "headers", "body", "means"),
    [
        (200, {}, b"", Taken()),
        (202, {}, b"{}", Taken()),
        (200, {}, b"\xff" * 10, Taken()),
        (200, {}, PARTIAL.SerializeToString(), Taken(3, "too old")),
        (429, {}, b"", TryAgain("status 429")),
        (429, {"retry-after": "7"}, b"", TryAgain("status 429", 7.0)),
        (502, {}, b"", TryAgain("status 502")),
        (503, {"retry-after": "Fri, 15 Jan 2027 08:00:30 GMT"}, b"", TryAgain("status 503", 30.0)),
        (503, {"retry-after": "999999"}, b"", TryAgain("status 503", 300.0)),
        (504, {"retry-after": "soon"}, b"", TryAgain("status 504")),
        (503, {"retry-after": "Fri, 15 Jan 2021 08:00:30 GMT"}, b"", TryAgain("status 503", 0.0)),
        (400, {}, b"", Refused("status 400")),
        (401, {"retry-after": "1"}, b"", Refused("status 401")),
        (404, {}, b"", Refused("status 404")),
        (413, {}, b"", Refused("status 413")),
        (500, {}, b"", Refused("status 500")),
        (302, {}, b"", Refused("status 302")),
    ],
)
def test_what_an_answer_means(
    status: int, headers: dict[str, str], body: bytes, means: otlp.Verdict
) -> None:
    assert otlp.verdict(status, headers, body, now=NOW) == means


@given(st.integers(100, 599), st.text(max_size=30), st.binary(max_size=50))
def test_any_answer_means_something(status: int, retry_after: str, body: bytes) -> None:
    found = otlp.verdict(status, {"retry-after": retry_after}, body, now=NOW)
    assert isinstance(found, Taken | TryAgain | Refused)
    if isinstance(found, TryAgain) and found.after_s is not None:
        assert 0 <= found.after_s <= 300


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True))
def test_the_next_try_comes_within_a_minute(failures: int, draw: float) -> None:
    wait = otlp.backoff_s(failures, draw=draw)
    assert 0.5 <= wait <= 60
    assert otlp.backoff_s(1, draw=draw) <= 1
