"""OpenAI's HTTP surface over the bus: headers both ways, and the framing of streams."""

import json

import pytest

from breakwater_gateway.edge import openai_api as api
from breakwater_gateway.runtime.answers import error_headers, usd
from breakwater_protocol import failures as f


def test_only_our_headers_and_the_trace_go_on_the_bus() -> None:
    got = api.bus_headers(
        {"authorization": "Bearer x", "breakwater-user": "u", "traceparent": "t", "cookie": "c"}
    )
    assert got == {"breakwater-user": "u", "traceparent": "t"}


@pytest.mark.parametrize(
    ("hint", "timeout"),
    [
        ("5.0", "5.500s"),
        ("600", None),
        ("NOT_GIVEN", None),
        ("-1", None),
        ("0", None),
        ("1e3", None),
    ],
)
def test_the_sdks_own_read_timeout_is_a_deadline_hint(hint: str, timeout: str | None) -> None:
    assert api.bus_headers({"x-stainless-read-timeout": hint}).get("breakwater-timeout") == timeout


def test_the_sdks_own_read_timeout_is_no_deadline_of_a_stream() -> None:
    hint = {"x-stainless-read-timeout": "5.0"}
    assert api.bus_headers(hint, b'{"stream": true}') == {}
    assert api.bus_headers(hint, b'{"model": "m"}') == {"breakwater-timeout": "5.500s"}


def test_framing_stays_on_the_bus() -> None:
    got = dict(
        api.http_headers(
            {
                "breakwater-seq": "0",
                "breakwater-end": "ok",
                "breakwater-request-id": "r",
                "breakwater-rung": "primary",
                "Nats-Service-Error-Code": "500",
                "retry-after": "3",
            }
        )
    )
    assert got == {
        "breakwater-request-id": "r",
        "breakwater-rung": "primary",
        "retry-after": "3",
        "x-request-id": "r",
        "request-id": "r",
    }


def test_each_line_is_an_event() -> None:
    assert api.sse_events(b'{"a":1}') == b'data: {"a":1}\n\n'
    assert api.sse_events(b'{"a":1}\n{"b":2}') == b'data: {"a":1}\n\ndata: {"b":2}\n\n'


def test_a_whole_stream_ends_with_totals_and_done() -> None:
    end = api.sse_end({"breakwater-end": "ok", "breakwater-cost-usd": "0.1"})
    assert end == b": breakwater-cost-usd=0.1\n\ndata: [DONE]\n\n"


def test_a_partial_stream_ends_with_an_error_and_never_with_done() -> None:
    end = api.sse_end({"breakwater-end": "partial", "breakwater-partial": "idle_timeout"})
    assert b"[DONE]" not in end
    error = json.loads(end.split(b"data: ")[1])["error"]
    assert error["code"] == "timeout"
    assert "partial" in error["message"]


def test_an_error_says_whether_to_retry_and_when() -> None:
    status, headers, body = api.error_answer(f.Overloaded("full", retry_after_s=1.2))
    assert status == 503
    assert ("retry-after", "2") in headers
    assert ("x-should-retry", "true") in headers
    assert json.loads(body)["error"]["code"] == "overloaded"


@pytest.mark.parametrize(
    ("failure", "wait"),
    [
        (f.RateLimited("", retry_after_s=2.1), "3"),
        (f.RateLimited("", retry_after_s=56_021.0), "60"),
        (f.BudgetExhausted("", retry_after_s=56_021.0), "56021"),
        (f.BudgetExhausted("", retry_after_s=float("inf")), "31622400"),
        (f.NoDeployment(""), "1"),
        (f.ServerError(""), None),
    ],
)
def test_how_long_to_wait_is_as_long_as_whoever_waits_can_bear(
    failure: f.Failure, wait: str | None
) -> None:
    assert error_headers(failure).get("retry-after") == wait


def test_a_message_cannot_inject_headers() -> None:
    headers = error_headers(f.InvalidRequest("a\r\nset-cookie: x\u20ac"))
    assert headers["Nats-Service-Error"] == "a  set-cookie: x?"


@pytest.mark.parametrize("kind", f.SPEC)
def test_every_failure_has_an_answer(kind: type[f.Failure]) -> None:
    status, _, body = api.error_answer(kind("m"))
    assert 400 <= status <= 504
    assert json.loads(body)["error"]["message"] == "m"


@pytest.mark.parametrize(
    ("nano", "text"),
    [(0, "0.000000000"), (1, "0.000000001"), (1_234_567_890, "1.234567890"), (None, "unknown")],
)
def test_money_is_printed_from_integers(nano: int | None, text: str) -> None:
    assert usd(nano) == text
