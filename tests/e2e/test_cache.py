"""The cache over HTTP and a real server: a hit, its feedback, and what is wanted from the cache alone."""

import json

import httpx
from tests.e2e.test_http_contract import body


def ask(
    http: httpx.Client, text: str, cache: str = "on", *, stream: bool = False
) -> httpx.Response:
    asked = body(temperature=0, messages=[{"role": "user", "content": text}], stream=stream)
    return http.post("/v1/chat/completions", json=asked, headers={"breakwater-cache": cache})


def test_the_second_time_the_answer_is_a_hit_for_streams_too(http: httpx.Client) -> None:
    first, second = ask(http, "cached?"), ask(http, "cached?")
    assert first.headers["breakwater-cache"] == "miss"
    assert second.headers["breakwater-cache"] == "hit"
    assert float(second.headers["breakwater-cost-usd"]) == 0
    assert second.json()["choices"] == first.json()["choices"]
    assert second.json()["id"] != first.json()["id"]
    streamed = ask(http, "cached?", stream=True)
    assert streamed.headers["breakwater-cache"] == "hit"
    lines = [
        line.removeprefix("data: ") for line in streamed.text.splitlines() if line[:5] == "data:"
    ]
    assert lines[-1] == "[DONE]"
    said = "".join(
        choice["delta"].get("content") or ""
        for line in lines[:-1]
        for choice in json.loads(line)["choices"]
    )
    assert said == first.json()["choices"][0]["message"]["content"]


def test_an_answer_called_wrong_is_not_given_again(http: httpx.Client) -> None:
    ask(http, "wrong?")
    id_ = ask(http, "wrong?").headers["breakwater-cache-id"]
    verdict = {"id": id_, "verdict": "wrong"}
    assert http.post("/v1/cache/feedback", json=verdict).json() == {"taken": True}
    assert ask(http, "wrong?").headers["breakwater-cache"] == "miss"
    unknown = {"id": "e" + "0" * 64, "verdict": "wrong"}
    assert http.post("/v1/cache/feedback", json=unknown).status_code == 404


def test_only_what_is_kept_is_an_honest_error_when_nothing_is(http: httpx.Client) -> None:
    refused = ask(http, "never asked before", cache="only")
    assert refused.status_code == 504
    assert refused.json()["error"]["code"] == "not_cached"
    assert refused.headers["x-should-retry"] == "false"
