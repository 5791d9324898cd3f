"""HTTP streams that are left, that stall and that break: who is told what, and when."""

import json
import time

import httpx
import pytest
from tests.e2e.processes import HELLO, Simulator, report, until

STREAM = {"messages": HELLO, "stream": True}


def chat(http: httpx.Client, model: str, *, stream: bool = True, **headers: str) -> httpx.Response:
    named = {f"breakwater-{name.replace('_', '-')}": value for name, value in headers.items()}
    body = {"model": model, "messages": HELLO, "stream": stream}
    return http.post("/v1/chat/completions", json=body, headers=named)


def events_of(answer: httpx.Response) -> list[str]:
    assert answer.text.endswith("\n\n")
    return answer.text[:-2].split("\n\n")


def test_leaving_a_stream_ends_the_providers_call_within_a_second(
    http: httpx.Client, simulator: Simulator
) -> None:
    simulator.script(lane="once", model="http-leaves", tokens=10_000, tokens_per_s=50)
    body = {**STREAM, "model": "once/http-leaves"}
    with http.stream("POST", "/v1/chat/completions", json=body) as answer:
        next(answer.iter_raw())
    (entry,) = until(
        lambda: simulator.requests(model="http-leaves", cancelled_by_client=True),
        "the provider's call was ended",
        patience_s=5.0,
    )
    assert entry["tokens_sent"] < 100


def test_leaving_before_the_first_token_ends_the_providers_call(
    http: httpx.Client, simulator: Simulator
) -> None:
    simulator.script(lane="once", model="http-gives-up", stall_before_first=True)
    body = {"model": "once/http-gives-up", "messages": HELLO}
    with pytest.raises(httpx.ReadTimeout):
        http.post("/v1/chat/completions", json=body, timeout=0.2)
    until(
        lambda: simulator.requests(model="http-gives-up", cancelled_by_client=True),
        "the provider's call was ended",
        patience_s=5.0,
    )


@pytest.mark.parametrize("stream", [False, True])
def test_a_deadline_before_the_first_token_is_504(
    http: httpx.Client, simulator: Simulator, stream: bool
) -> None:
    simulator.script(lane="once", model="http-silent", stall_before_first=True)
    answer = chat(http, "once/http-silent", stream=stream, timeout="250ms")
    assert answer.status_code == 504
    assert answer.json()["error"]["code"] == "timeout"
    assert answer.headers["x-should-retry"] == "false"


def test_a_late_first_token_is_504_at_its_own_timeout(
    http: httpx.Client, simulator: Simulator
) -> None:
    simulator.script(lane="once", model="http-late", first_token_ms=20_000)
    answer = chat(http, "once/http-late", ttft_timeout="200ms")
    assert answer.status_code == 504
    assert answer.headers["x-should-retry"] == "true"


def test_the_first_token_timeout_does_not_bound_the_rest_of_a_stream(
    http: httpx.Client, simulator: Simulator
) -> None:
    simulator.script(lane="once", model="http-slow", tokens=20, tokens_per_s=40)
    answer = chat(http, "once/http-slow", ttft_timeout="200ms")
    assert events_of(answer)[-1] == "data: [DONE]"


@pytest.mark.parametrize(
    ("script", "code", "word"),
    [
        ({"stall_after_tokens": 4}, "timeout", "deadline"),
        ({"cut_after_tokens": 4}, "bad_gateway", "stream_cut"),
        ({"end_without_done": True}, None, ""),
        ({"faults": [{"class": "malformed_chunk", "after_tokens": 4}]}, "bad_gateway", "broke off"),
        ({"faults": [{"class": "error_in_200", "after_tokens": 4}]}, "bad_gateway", "broke off"),
    ],
)
def test_an_answer_that_breaks_off_says_so_and_never_looks_whole(
    http: httpx.Client,
    simulator: Simulator,
    script: dict[str, object],
    code: str | None,
    word: str,
) -> None:
    model = f"http-partial-{'-'.join(script)}-{word[:3]}"
    simulator.script(lane="once", model=model, **script)
    answer = chat(http, f"once/{model}", timeout="600ms")
    assert answer.status_code == 200
    *chunks, comment, last = events_of(answer)
    assert json.loads(chunks[1][6:])["choices"][0]["delta"]["content"]
    if code is None:  # the finish came: OpenAI's own streams have ended so
        assert last == "data: [DONE]"
        return
    assert "breakwater-partial=" in comment
    assert "[DONE]" not in answer.text
    error = json.loads(last[6:])["error"]
    assert error["code"] == code
    assert "partial" in error["message"]
    assert word in error["message"]


def test_a_broken_stream_is_an_error_of_the_sdk_not_a_short_answer(
    http: httpx.Client, simulator: Simulator
) -> None:
    import openai

    simulator.script(lane="once", model="sdk-cut", cut_after_tokens=4)
    base_url = str(http.base_url).rstrip("/") + "/v1"
    with (
        openai.OpenAI(base_url=base_url, api_key="any", max_retries=0) as sdk,
        sdk.chat.completions.create(
            model="once/sdk-cut",
            messages=HELLO,
            stream=True,
        ) as stream,
        pytest.raises(openai.APIError, match="partial"),
    ):
        list(stream)


# Every dialect over HTTP.

TURN = {"role": "user", "content": "Hello"}
APIS: dict[str, tuple[str, dict[str, object]]] = {
    "chat": ("/v1/chat/completions", {"messages": [TURN], "stream": True}),
    "messages": ("/v1/messages", {"messages": [TURN], "max_tokens": 20_000, "stream": True}),
    "responses": ("/v1/responses", {"input": "Hello", "stream": True}),
    "generate": (
        "/v1beta/models/{model}:streamGenerateContent?alt=sse",
        {"contents": [{"role": "user", "parts": [{"text": "Hello"}]}]},
    ),
}
apis = pytest.mark.parametrize("api", APIS)


def asked_of(api: str, model: str) -> tuple[str, dict[str, object]]:
    path, body = APIS[api]
    return path.format(model=model), {"model": model, **body}


@apis
def test_leaving_a_stream_of_any_dialect_ends_the_providers_call(
    http: httpx.Client, simulator: Simulator, api: str
) -> None:
    model = f"leaves-{api}"
    simulator.script(lane="once", model=model, tokens=10_000, tokens_per_s=50)
    path, body = asked_of(api, f"once/{model}")
    with http.stream("POST", path, json=body) as answer:
        next(answer.iter_raw())
        left = time.monotonic()
    (entry,) = until(
        lambda: simulator.requests(model=model, cancelled_by_client=True),
        "the provider's call was ended",
        patience_s=5.0,
        every_s=0.002,
    )
    report(f"{api}: the provider's call ended {(time.monotonic() - left) * 1000:.0f} ms later")
    assert entry["tokens_sent"] < 100


@apis
@pytest.mark.parametrize(
    ("script", "why"), [({"stall_after_tokens": 4}, "deadline"), ({"cut_after_tokens": 4}, "cut")]
)
def test_a_partial_answer_of_any_dialect_says_so_and_never_looks_whole(
    http: httpx.Client, simulator: Simulator, api: str, script: dict[str, int], why: str
) -> None:
    model = f"partial-{api}-{why}"
    simulator.script(lane="once", model=model, **script)
    path, body = asked_of(api, f"once/{model}")
    answer = http.post(path, json=body, headers={"breakwater-timeout": "600ms"})
    assert answer.status_code == 200
    last = events_of(answer)[-1]
    assert "partial" in last
    assert why in last
    for whole in (
        "[DONE]",
        "message_stop",
        "response.completed",
        '"STOP"',
        '"finish_reason":"stop"',
    ):
        assert whole not in answer.text
    if api in {"messages", "responses"}:
        assert last.startswith("event: error\n")
    told = json.loads(last.rpartition("data: ")[2])
    assert told["type"] == "error" if api == "responses" else "message" in told["error"]


@apis
@pytest.mark.parametrize("streamed", [True, False])
def test_a_deadline_before_the_first_token_is_504_in_any_dialect(
    http: httpx.Client, simulator: Simulator, api: str, streamed: bool
) -> None:
    model = f"silent-{api}"
    simulator.script(lane="once", model=model, stall_before_first=True)
    path, body = asked_of(api, f"once/{model}")
    if not streamed:
        body.pop("stream", None)
        path = path.replace(":streamGenerateContent?alt=sse", ":generateContent")
    answer = http.post(path, json=body, headers={"breakwater-timeout": "250ms"})
    assert answer.status_code == 504
    assert answer.headers["x-should-retry"] == "false"
    assert "deadline" in answer.json()["error"]["message"]
