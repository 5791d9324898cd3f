"""Traces of real processes: `breakwater up`, a provider, and a collector that decodes what it is sent."""

import gzip
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from tests.conftest import NatsProcess
from tests.e2e.processes import (
    HELLO,
    PATIENCE_S,
    Gateway,
    Simulator,
    environment,
    fleet,
    free_port,
    once,
    until,
)

from breakwater_gateway.exporter.spans import place_of

pytestmark = pytest.mark.nats

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


class Collector:
    """OTLP over HTTP, as far as it takes traces; `status` is what it answers."""

    def __init__(self, port: int = 0) -> None:
        self.spans: list[Span] = []
        self.services: set[str] = set()
        self.headers: list[dict[str, str]] = []
        self.status = 200
        collector = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                collector.headers.append({k.lower(): v for k, v in self.headers.items()})
                if collector.status == 200 and self.path == "/otlp/v1/traces":
                    collector.take(gzip.decompress(body))
                self.send_response(collector.status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.port = int(self._server.server_address[1])
        self.endpoint = f"http://127.0.0.1:{self.port}/otlp"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def take(self, body: bytes) -> None:
        for of in ExportTraceServiceRequest.FromString(body).resource_spans:
            for scope in of.scope_spans:
                self.spans += scope.spans
            self.services |= {
                each.value.string_value
                for each in of.resource.attributes
                if each.key == "service.name"
            }

    def trace(self, trace_id: str) -> list[Span]:
        """Those of one trace, the request's first."""
        found = [span for span in self.spans if span.trace_id.hex() == trace_id]
        return sorted(found, key=lambda span: (span.kind, span.start_time_unix_nano))

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def collector() -> Iterator[Collector]:
    found = Collector()
    yield found
    found.close()


def facts(span: Span) -> dict[str, Any]:
    return {
        each.key: getattr(each.value, each.value.WhichOneof("value") or "")
        for each in span.attributes
    }


def settings(simulator: Simulator, share: float = 1.0) -> str:
    return f"""
models:
  m:
    deployments:
      - {{model: first/m, id: first, order: 0}}
      - {{model: second/m, id: second, order: 1}}
    retry: {{base: 10ms}}
    breaker: {{consecutive: 100000, min_requests: 100000}}
    cache: {{sampled: false}}
  bare:
    deployments: [{{model: bare/m, id: bare}}]
    retry: {{attempts: 1}}
    ladder: [static, error]
static_answers: [{{questions: [Hello], answer: Good day}}]
providers:
  first: {{wire: openai, base_url: "{simulator.base_url("traces-first")}"}}
  second: {{wire: openai, base_url: "{simulator.base_url("traces-second")}"}}
  bare: {{wire: openai, base_url: "{simulator.base_url("traces-bare")}"}}
telemetry: {{otlp: env:OTEL_EXPORTER_OTLP_ENDPOINT, traces: {{sample: {share}}}}}
"""


def ask(base_url: str, headers: dict[str, str], **more: object) -> httpx.Response:
    body = {"model": "m", "messages": HELLO, **more}
    with httpx.Client(trust_env=False, timeout=PATIENCE_S) as client:
        return client.post(base_url + "/chat/completions", json=body, headers=headers)


def traceparent(number: int) -> dict[str, str]:
    return {"traceparent": f"00-{number:032x}-b7ad6b7169203331-01"}


def test_requests_become_traces(tmp_path: Path, simulator: Simulator, collector: Collector) -> None:
    env = environment(
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint,
        OTEL_EXPORTER_OTLP_HEADERS="x-secret=s3cret",
        OTEL_SERVICE_NAME="the-gateway",
    )
    simulator.script(lane="traces-first", faults=[{"class": "overloaded"}])
    simulator.script(lane="traces-bare", faults=[{"class": "server_error"}])
    gateway = Gateway(tmp_path, config=settings(simulator), env=env)
    try:
        until(lambda: "export_begins" in gateway.stderr, "the exporter has begun")
        assert "Traces are not exported" not in gateway.stdout
        mine = {"traceparent": PARENT, "tracestate": "vendor=1", "breakwater-user": "ann"}
        assert ask(gateway.base_url, mine, temperature=0).status_code == 200
        assert ask(gateway.base_url, traceparent(2), temperature=0).status_code == 200
        assert ask(gateway.base_url, traceparent(3), model="bare").status_code == 200
        assert ask(gateway.base_url, traceparent(4), model="bare", messages=[
            {"role": "user", "content": "What is the airspeed of a swallow?"}
        ]).status_code >= 500  # fmt: skip
        until(lambda: len(collector.spans) >= 8, "all spans are there")
        root, bad, good = collector.trace(TRACE)
        assert root.parent_span_id.hex() == "b7ad6b7169203331"
        assert root.trace_state == "vendor=1"
        assert {bad.parent_span_id, good.parent_span_id} == {root.span_id}
        assert facts(bad)["http.response.status_code"] == 503
        assert (bad.status.code, good.status.code, root.status.code) == (2, 0, 0)
        assert facts(root)["breakwater.kept"] == "retried"
        said = facts(good)
        assert said["gen_ai.operation.name"] == "chat"
        assert said["gen_ai.request.model"] == "m"
        assert said["gen_ai.usage.input_tokens"] > 0
        assert said["breakwater.user"] == "ann"
        assert root.start_time_unix_nano <= good.start_time_unix_nano
        (hit,) = collector.trace(f"{2:032x}")
        assert facts(hit)["breakwater.cache"] == "hit"
        degraded, failed = collector.trace(f"{3:032x}")
        assert facts(degraded)["breakwater.kept"] == "degraded"
        assert facts(degraded)["breakwater.rung"] == "static"
        assert (degraded.status.code, failed.status.code) == (0, 2)
        error, _ = collector.trace(f"{4:032x}")
        assert (error.status.code, facts(error)["breakwater.rung"]) == (2, "error")
        assert collector.services == {"the-gateway"}
        assert all(each["x-secret"] == "s3cret" for each in collector.headers)
        with httpx.Client(trust_env=False) as client:
            text = client.get(gateway.root_url + "/metrics").text
        assert 'breakwater_spans_total{result="sent"} 8' in text
        assert "s3cret" not in gateway.stderr + text
        # What was asked just before the end is sent at the end.
        assert ask(gateway.base_url, traceparent(5)).status_code == 200
    finally:
        gateway.end()
    assert len(collector.trace(f"{5:032x}")) == 3


def test_a_collector_that_is_away_is_waited_for_across_a_restart(
    tmp_path: Path, simulator: Simulator
) -> None:
    port = free_port()
    env = environment(OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{port}/otlp")
    simulator.script(lane="traces-first", faults=[])
    text = settings(simulator)
    gateway = Gateway(tmp_path, config=text, env=env)
    try:
        until(lambda: "export_begins" in gateway.stderr, "the exporter has begun")
        for number in range(10, 20):
            assert ask(gateway.base_url, traceparent(number)).status_code == 200
        until(lambda: "traces_not_sent" in gateway.stderr, "the collector is missed")
    finally:
        gateway.end()
    gateway = Gateway(tmp_path, config=text, env=env)
    collector = Collector(port)
    try:
        until(lambda: len(collector.spans) >= 20, "all spans are there")
        for number in range(10, 20):
            assert len(collector.trace(f"{number:032x}")) == 2
    finally:
        gateway.end()
        collector.close()


def test_an_exporter_of_its_own_is_killed_and_replaced(
    tmp_path: Path,
    nats_server: Callable[..., NatsProcess],
    simulator: Simulator,
    collector: Collector,
) -> None:
    port, nats_url = free_port(), nats_server(max_file_store="8GB").url
    path = tmp_path / "breakwater.yaml"
    path.write_text(
        settings(simulator).replace("env:OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
    )
    simulator.script(lane="traces-first", faults=[])
    config = ["--config", str(path), "--group", "traces"]
    commands = [
        [
            "health",
            "router",
            "worker",
            "edge",
            "ledger",
            "--port",
            str(port),
            "--peers",
            "2",
            *config,
        ],
        ["exporter", *config],
        ["exporter", *config],
    ]
    with fleet(tmp_path, nats_url, commands, port=port) as (_, *exporters):
        until(lambda: any("export_begins" in each.stderr for each in exporters), "one has begun")
        (leader,) = [each for each in exporters if "export_begins" in each.stderr]
        base_url = f"http://127.0.0.1:{port}/v1"
        assert ask(base_url, traceparent(30)).status_code == 200
        until(lambda: len(collector.trace(f"{30:032x}")) == 2, "its spans are there")
        with httpx.Client(trust_env=False) as client:
            until(
                lambda: (
                    'breakwater_spans_total{result="sent"} 2'
                    in client.get(f"http://127.0.0.1:{port}/metrics").text
                ),
                "the edge shows the metrics of all",
            )
        leader.kill()
        for number in range(31, 36):
            assert ask(base_url, traceparent(number)).status_code == 200
        until(
            lambda: all(len(collector.trace(f"{n:032x}")) == 2 for n in range(31, 36)),
            "the other exporter took over",
        )
        ids = [span.span_id for n in range(30, 36) for span in collector.trace(f"{n:032x}")]
        assert len(set(ids)) == 12
        status = json.loads(once(tmp_path, "traces", "status", "--json", "--nats", nats_url).stdout)
        assert (status["behind"], status["held"]) == (0, 0)
        again = once(tmp_path, "traces", "replay", "--since", "1h", "--json", "--nats", nats_url)
        assert json.loads(again.stdout)["events"] == status["last"]
        until(lambda: len(collector.spans) == 24, "all of it was exported again")
        assert {span.span_id for span in collector.spans} == set(ids)
    said = once(tmp_path, "traces", "id", "req_1", "--tenant", "acme").stdout.strip()
    assert said == place_of("acme", "req_1", "").trace_id.hex()
    for command in (["status"], ["replay", "--since", "soon"]):
        done = once(tmp_path, "traces", *command, "--nats", "nats://127.0.0.1:1")
        assert (done.returncode, done.stdout) == (4 if command == ["status"] else 2, "")
        assert len(done.stderr.splitlines()) == 1, done.stderr
