"""HTTP exactly as the contract has it: answers, headers, errors, framing of streams, operations."""

import json
import socket
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.e2e.processes import HELLO, Gateway, Simulator, until

FACTS = {
    "breakwater-request-id",
    "breakwater-model",
    "breakwater-deployment",
    "breakwater-rung",
    "breakwater-cache",
    "breakwater-attempts",
}
TOTALS = {"breakwater-cost-usd", "breakwater-overhead-ms"}


def body(model: str = "sim/sim-echo", **more: object) -> dict[str, object]:
    return {"model": model, "messages": HELLO, **more}


def error_of(answer: httpx.Response) -> dict[str, Any]:
    """The error object; its shape is OpenAI's, whole."""
    assert answer.headers["content-type"] == "application/json"
    said = answer.json()
    assert set(said) == {"error"}
    error: dict[str, Any] = said["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert error["message"]
    return error


def ours(headers: httpx.Headers) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.startswith("breakwater-")}


def samples(http: httpx.Client) -> dict[str, list[tuple[dict[str, str], float]]]:
    """`/metrics`, parsed: name of the sample -> labels and value."""
    answer = http.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((dict(sample.labels), sample.value))
    return found


def value(http: httpx.Client, name: str, **labels: str) -> float:
    """The sum over all samples of that name with these labels."""
    return sum(
        found for said, found in samples(http).get(name, []) if labels.items() <= said.items()
    )


def test_an_answer_carries_exactly_the_headers_of_the_contract(http: httpx.Client) -> None:
    answer = http.post("/v1/chat/completions", json=body())
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    said = ours(answer.headers)
    assert set(said) == FACTS | TOTALS
    assert said["breakwater-model"] == "sim/sim-echo"
    assert said["breakwater-rung"] == "primary"
    assert answer.headers["x-request-id"] == said["breakwater-request-id"]
    assert answer.json()["object"] == "chat.completion"


def test_the_price_of_the_deployment_makes_the_cost(http: httpx.Client) -> None:
    answer = http.post("/v1/chat/completions", json=body())
    usage = answer.json()["usage"]
    nano = usage["prompt_tokens"] * 1_000 + usage["completion_tokens"] * 2_000
    assert float(answer.headers["breakwater-cost-usd"]) == pytest.approx(nano / 1e9)


def test_a_stream_is_one_event_a_chunk_then_the_totals_then_done(http: httpx.Client) -> None:
    answer = http.post("/v1/chat/completions", json=body(stream=True))
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"
    assert set(ours(answer.headers)) == FACTS
    *events, comment, done, rest = answer.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    assert comment.startswith(": ")
    totals = dict(pair.split("=", 1) for pair in comment[2:].split(" "))
    assert set(totals) == FACTS | TOTALS
    assert totals["breakwater-request-id"] == answer.headers["breakwater-request-id"]
    for event in events:
        assert event.startswith("data: ")
        assert json.loads(event[6:])["object"] == "chat.completion.chunk"


def test_the_callers_request_id_and_properties_go_all_the_way(http: httpx.Client) -> None:
    answer = http.post(
        "/v1/chat/completions",
        json=body(),
        headers={
            "Breakwater-Request-Id": "mine-1",
            "breakwater-user": "u",
            "breakwater-org": "o",
            "breakwater-feature": "f",
            "breakwater-property-team": "red",
            "breakwater-priority": "batch",
        },
    )
    assert answer.status_code == 200
    assert answer.headers["breakwater-request-id"] == answer.headers["x-request-id"] == "mine-1"


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("breakwater-timeout", "soon"),
        ("breakwater-timeout", "0s"),
        ("breakwater-timeout", "2h"),
        ("breakwater-ttft-timeout", "-1s"),
        ("breakwater-priority", "urgent"),
        ("breakwater-cache", "maybe"),
        ("breakwater-cache-ttl", "0s"),
        ("breakwater-cache-namespace", "a b"),
        ("breakwater-cache-threshold", "1.1"),
        ("breakwater-ladder", "cache,error"),
        ("breakwater-max-cost", "1_000"),
        ("breakwater-max-cost", "inf"),
        ("breakwater-request-id", "a b"),
        ("breakwater-request-id", "x" * 129),
        ("breakwater-user", "x" * 513),
        ("breakwater-property-a!b", "x"),
        ("breakwater-colour", "red"),
        ("breakwater-seq", "0"),
    ],
)
def test_a_promise_that_cannot_be_kept_is_refused_with_its_name(
    http: httpx.Client, name: str, given: str
) -> None:
    answer = http.post("/v1/chat/completions", json=body(), headers={name: given})
    assert answer.status_code == 400
    error = error_of(answer)
    assert error["code"] == "invalid_request"
    assert name in error["message"]


def test_errors_say_whether_to_try_again(http: httpx.Client, simulator: Simulator) -> None:
    refused = http.post("/v1/chat/completions", json=body(max_tokens=0))
    assert refused.headers["x-should-retry"] == "false"
    assert "retry-after" not in refused.headers
    assert refused.headers["breakwater-request-id"] == refused.headers["x-request-id"]
    simulator.script(lane="once", model="contract-5xx", faults=[{"class": "server_error"}])
    failed = http.post("/v1/chat/completions", json=body("once/contract-5xx"))
    assert failed.status_code == 502
    assert failed.headers["x-should-retry"] == "true"
    said = ours(failed.headers)
    assert said["breakwater-rung"] == "error"
    assert said["breakwater-attempts"] == "1"
    assert said["breakwater-deployment"] == "once-any"
    assert error_of(failed)["type"] == "server_error"


def test_models_are_openais_list_and_each_is_found_with_slashes_escaped_or_not(
    http: httpx.Client,
) -> None:
    listed = http.get("/v1/models").json()
    assert listed["object"] == "list"
    assert all(set(m) == {"id", "object", "created", "owned_by"} for m in listed["data"])
    for path in ("vendor/family/v1.5", "vendor%2Ffamily%2Fv1.5"):
        found = http.get(f"/v1/models/{path}")
        assert found.status_code == 200
        assert found.json() in listed["data"]
    missing = http.get("/v1/models/nope/at%20all")
    assert missing.status_code == 404
    assert error_of(missing)["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/chat/completions", "POST"),
        ("PUT", "/v1/embeddings", "POST"),
        ("POST", "/v1/models", "GET"),
        ("DELETE", "/v1/models/main-model", "GET"),
        ("POST", "/healthz", "GET"),
        ("POST", "/readyz", "GET"),
        ("POST", "/metrics", "GET"),
    ],
)
def test_a_wrong_method_is_405_and_names_the_right_one(
    http: httpx.Client, method: str, path: str, allowed: str
) -> None:
    answer = http.request(method, path)
    assert answer.status_code == 405
    assert allowed in answer.headers["allow"]
    assert error_of(answer)["type"] == "invalid_request_error"


def test_an_unknown_path_is_404_and_names_the_known_ones(http: httpx.Client) -> None:
    answer = http.post("/v1/complete", json={})
    assert answer.status_code == 404
    assert "/v1/chat/completions" in error_of(answer)["message"]


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/main-model", "/healthz", "/readyz"])
def test_head_says_what_get_says_without_the_body(http: httpx.Client, path: str) -> None:
    whole, head = http.get(path), http.head(path)
    assert head.status_code == whole.status_code == 200
    assert head.content == b""
    assert head.headers["content-length"] == str(len(whole.content))


def test_health_and_readiness(http: httpx.Client) -> None:
    assert http.get("/healthz").status_code == 200
    ready = http.get("/readyz")
    assert ready.status_code == 200
    assert ready.json() == {"ready": True, "waiting_for": {}}


def test_metrics_have_the_names_that_operators_are_told(
    http: httpx.Client, simulator: Simulator
) -> None:
    before = value(http, "breakwater_requests_total", model="sim/*", outcome="ok")
    for stream in (False, True):
        http.post("/v1/chat/completions", json=body(stream=stream)).raise_for_status()
    simulator.script(lane="once", model="counted", faults=[{"class": "server_error"}])
    http.post("/v1/chat/completions", json=body("once/counted"))
    until(
        lambda: value(http, "breakwater_requests_total", model="sim/*", outcome="ok") >= before + 2,
        "both are counted",
    )
    found = samples(http)
    for name, labels in {
        "breakwater_requests_total": {"model", "deployment", "outcome", "rung"},
        "breakwater_attempts_total": {"deployment", "error"},
        "breakwater_ttft_seconds_bucket": {"deployment", "le"},
        "breakwater_request_duration_seconds_bucket": {"model", "le"},
        "breakwater_overhead_seconds_bucket": {"model", "le"},
        "breakwater_tokens_total": {"type"},
        "breakwater_breaker_state": {"deployment", "state"},
        "breakwater_inflight": {"actor"},
        "breakwater_actor_up": {"actor"},
        "breakwater_build_info": {"version", "python"},
    }.items():
        assert set(found[name][0][0]) == labels, name
    attempts = value(http, "breakwater_attempts_total", deployment="once-any", error="server_error")
    assert attempts >= 1
    assert {labels["actor"] for labels, _ in found["breakwater_actor_up"]} == {
        "edge", "router", "worker", "health", "ledger", "cache", "exporter"
    }  # fmt: skip
    assert not any("request" in labels for each in found.values() for labels, _ in each)


def test_a_failing_deployment_is_left_alone_and_probed_until_it_recovers(
    http: httpx.Client, simulator: Simulator
) -> None:
    simulator.script(lane="fragile", faults=[{"class": "server_error"}])
    until(
        lambda: http.post("/v1/chat/completions", json=body("fragile")).status_code == 503,
        "the breaker is open",
    )
    refused = http.post("/v1/chat/completions", json=body("fragile"))
    if refused.status_code == 503:  # not a probe
        assert error_of(refused)["code"] == "no_deployment_available"
        assert int(refused.headers["retry-after"]) >= 1
    simulator.script(lane="fragile")

    def recovered() -> bool:
        http.post("/v1/chat/completions", json=body("fragile"))
        return value(http, "breakwater_breaker_state", deployment="fragile", state="closed") == 1

    until(recovered, "probes have closed the breaker", every_s=0.1)
    assert http.post("/v1/chat/completions", json=body("fragile")).status_code == 200
    transitions = samples(http)["breakwater_breaker_transitions_total"]
    assert sum(number for _, number in transitions) >= 3


def test_one_keep_alive_connection_serves_answers_errors_and_streams(gateway: Gateway) -> None:
    limits = httpx.Limits(max_connections=1, max_keepalive_connections=1)
    with httpx.Client(base_url=gateway.root_url, trust_env=False, limits=limits) as client:
        ports = set()
        for sent in (
            {"json": body()},
            {"content": b"{"},
            {"json": body(stream=True)},
            {"json": body("nope")},
            {"json": body()},
        ):
            with client.stream("POST", "/v1/chat/completions", **sent) as answer:
                answer.read()
                peer: socket.socket = answer.extensions["network_stream"].get_extra_info("socket")
                ports.add(peer.getsockname()[1])
        assert len(ports) == 1


def test_a_repeated_id_runs_once_and_never_for_another_body(
    http: httpx.Client, simulator: Simulator
) -> None:
    simulator.script(lane="once", model="twin", tokens=40, tokens_per_s=40)
    asked = body("once/twin", stream=True)
    named = {"breakwater-request-id": "twin-1"}
    path = "/v1/chat/completions"
    with http.stream("POST", path, json=asked, headers=named) as first:
        assert first.status_code == 200
        refused = http.post(path, json=body("once/other"), headers=named)
        assert refused.status_code == 400
        assert "another body" in error_of(refused)["message"]
        second = http.post(path, json=asked, headers=named)
        first.read()
    third = http.post(path, json=asked, headers=named)
    for answer in (first, second, third):
        assert "data: [DONE]" in answer.text
        assert answer.headers["breakwater-request-id"] == "twin-1"
    assert second.headers["breakwater-cache"] == "coalesced"
    assert third.headers["breakwater-cache"] == "hit"
    assert len(simulator.requests(lane="once", model="twin")) == 1
