"""The simulator over HTTP: faults, limits, timing's order, its log and its control plane."""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import msgspec
import pytest
from tests.http.wire import KeptLog, until

from breakwater_gateway.simulator.server import SimulatorServer

pytestmark = pytest.mark.anyio

PATIENCE_S = 20
HELLO: list[dict[str, object]] = [{"role": "user", "content": "hello there"}]


class Client:
    def __init__(self, server: SimulatorServer, http: httpx.AsyncClient) -> None:
        self.server = server
        self.http = http

    async def script(self, *scripts: dict[str, object]) -> None:
        answer = await self.http.post("/__control/script", json=list(scripts))
        assert answer.status_code == 200, answer.text

    async def chat(self, lane: str = "", **fields: object) -> httpx.Response:
        path = f"/{lane}/v1/chat/completions" if lane else "/v1/chat/completions"
        return await self.http.post(path, json={"model": "m", "messages": HELLO, **fields})

    async def log(self) -> list[dict[str, Any]]:
        entries = (await self.http.get("/__control/log")).json()["entries"]
        assert isinstance(entries, list)
        return entries

    async def ended(self, count: int = 1) -> list[dict[str, Any]]:
        """The log, once it has so many entries."""
        await until(lambda: len(self.server.entries) >= count)
        return await self.log()


@asynccontextmanager
async def simulator(seed: int = 0) -> AsyncIterator[Client]:
    server = SimulatorServer(log=KeptLog(), seed=seed)
    await server.start("127.0.0.1", 0)
    http = httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{server.port}",
        headers={"authorization": "Bearer sk-test"},
        timeout=PATIENCE_S,
        trust_env=False,
    )
    try:
        async with asyncio.timeout(PATIENCE_S):
            yield Client(server, http)
    finally:
        await http.aclose()
        await server.close()


async def collect(answer: httpx.Response, into: list[bytes]) -> None:
    async for data in answer.aiter_bytes():
        into.append(data)  # noqa: PERF401 - what came before an error must be kept


def lines(text: str) -> list[str]:
    found = text.split("\n\n")
    assert found[-1] == ""
    return [line.removeprefix("data: ") for line in found[:-1]]


async def test_a_chat_is_answered_and_logged() -> None:
    async with simulator() as client:
        answer = await client.chat()
        assert answer.status_code == 200
        assert answer.headers["x-request-id"].startswith("req_")
        (entry,) = await client.log()
        assert (entry["model"], entry["outcome"], entry["status"]) == ("m", "ok", 200)
        assert entry["tokens_sent"] == 16
        assert entry["bytes_sent"] == len(answer.content)
        assert "sk-test" not in json.dumps(entry)


async def test_the_same_request_gets_the_same_answer_from_any_simulator_of_the_seed() -> None:
    texts = []
    for seed in (1, 1, 2):
        async with simulator(seed) as client:
            body = (await client.chat()).json()
            texts.append((body["id"], body["choices"][0]["message"]["content"]))
    assert texts[0] == texts[1] != texts[2]


async def test_lanes_are_providers_of_their_own() -> None:
    async with simulator() as client:
        await client.script({"lane": "a", "text": "from a"}, {"lane": "b", "text": "from b"})
        for lane in ("a", "b"):
            body = (await client.chat(lane)).json()
            assert body["choices"][0]["message"]["content"] == f"from {lane}"
        stats = (await client.http.get("/__control/stats")).json()
        assert {lane: s["finished"] for lane, s in stats["lanes"].items()} == {"a": 1, "b": 1}
        assert stats["in_flight"] == 0


@pytest.mark.parametrize(
    ("kind", "status", "type_", "code"),
    [
        ("rate_limited", 429, "requests", "rate_limit_exceeded"),
        ("quota_exhausted", 429, "insufficient_quota", "insufficient_quota"),
        ("request_over_limit", 429, "tokens", "rate_limit_exceeded"),
        ("context_length", 400, "invalid_request_error", "context_length_exceeded"),
        ("content_filter", 400, "invalid_request_error", "content_policy_violation"),
        ("invalid_request", 400, "invalid_request_error", "invalid_value"),
        ("authentication", 401, "invalid_request_error", "invalid_api_key"),
        ("permission", 403, "invalid_request_error", "model_not_found"),
        ("model_not_found", 404, "invalid_request_error", "model_not_found"),
        ("overloaded", 503, "server_error", "engine_overloaded"),
        ("server_error", 500, "server_error", None),
        ("error_in_200", 200, "server_error", None),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_faults_with_an_error_object(
    kind: str, status: int, type_: str, code: str | None, stream: bool
) -> None:
    async with simulator() as client:
        await client.script({"faults": [{"class": kind, "times": 1, "headers": {"x-a": "b"}}]})
        answer = await client.chat(stream=stream)
        text = answer.text
        if kind == "error_in_200" and stream:
            text = lines(text)[-1]
        error = json.loads(text)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert (answer.status_code, error["type"], error["code"]) == (status, type_, code)
        assert answer.headers["x-a"] == "b"
        assert (await client.chat(stream=stream)).status_code == 200
        assert [entry["outcome"] for entry in await client.log()] == [kind, "ok"]


async def test_faults_that_no_client_should_have_to_read() -> None:
    async with simulator() as client:
        kinds = ["html_502", "empty_body", "half_json", "malformed_tool_call", "filtered_answer"]
        await client.script({"faults": [{"class": kind, "times": 1} for kind in kinds]})
        html, empty, half, tool, filtered = [await client.chat() for _ in kinds]
        assert html.status_code == 502
        assert "text/html" in html.headers["content-type"]
        assert (empty.status_code, empty.content) == (200, b"")
        with pytest.raises(json.JSONDecodeError):
            half.json()
        call = tool.json()["choices"][0]["message"]["tool_calls"][0]
        with pytest.raises(json.JSONDecodeError):
            json.loads(call["function"]["arguments"])
        assert filtered.json()["choices"][0]["finish_reason"] == "content_filter"


async def test_streams_spoilt_on_purpose() -> None:
    async with simulator() as client:
        kinds = ["malformed_chunk", "end_without_done", "half_json", "empty_body"]
        await client.script({"faults": [{"class": kind, "times": 1} for kind in kinds]})
        malformed, endless, half, empty = [await client.chat(stream=True) for _ in kinds]
        broken = [line for line in lines(malformed.text) if line != "[DONE]"]
        assert sum(not _parses(line) for line in broken) == 1
        assert "[DONE]" not in endless.text
        assert json.loads(lines(endless.text)[-1])["choices"][0]["finish_reason"] == "stop"
        assert not half.text.endswith("\n\n")
        assert empty.content == b""


def _parses(line: str) -> bool:
    try:
        json.loads(line)
    except json.JSONDecodeError:
        return False
    return True


async def test_an_error_may_come_in_the_middle_of_a_stream() -> None:
    async with simulator() as client:
        await client.script({"faults": [{"class": "error_in_200", "after_tokens": 3}]})
        found = [json.loads(line) for line in lines((await client.chat(stream=True)).text)]
        assert len(found) == 1 + 3 + 1
        assert found[-1]["error"]["type"] == "server_error"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_cut_comes_after_the_tokens_it_was_to_send(stream: bool) -> None:
    async with simulator() as client:
        await client.script({"cut_after_tokens": 3, "cut_with": "close"})
        got: list[bytes] = []
        body = {"model": "m", "messages": HELLO, "stream": stream}
        async with client.http.stream("POST", "/v1/chat/completions", json=body) as answer:
            with pytest.raises(httpx.RemoteProtocolError):
                await collect(answer, got)
        if stream:
            assert len(lines(b"".join(got).decode())) == 1 + 3
        (entry,) = await client.ended()
        assert (entry["outcome"], entry["tokens_sent"]) == ("cut", 3)
        assert not entry["cancelled_by_client"]


async def test_a_reset_is_one_before_and_within_an_answer() -> None:
    async with simulator() as client:
        await client.script({"faults": [{"class": "reset", "times": 2}, {"class": "cut"}]})
        for stream in (False, True):
            with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
                await client.chat(stream=stream)
        with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
            await client.chat(stream=True)
        entries = await client.ended(3)
        assert [entry["outcome"] for entry in entries] == ["reset", "reset", "cut"]


@pytest.mark.parametrize(
    ("script", "sent"),
    [
        ({"stall_before_first": True}, 0),
        ({"faults": [{"class": "hang"}]}, 0),
        ({"stall_after_tokens": 4}, 4),
        ({"faults": [{"class": "stall", "after_tokens": 2}]}, 2),
        ({"first_token_ms": 60_000}, 0),
        ({"tokens_per_s": 0.01}, 1),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_gives_up_is_noticed(
    script: dict[str, object], sent: int, stream: bool
) -> None:
    async with simulator() as client:
        await client.script(script)
        body = {"model": "m", "messages": HELLO, "stream": stream}
        running = asyncio.create_task(client.http.post("/v1/chat/completions", json=body))
        stats = client.server.stats
        await until(lambda: bool(stats) and stats[""].in_flight == 1)
        running.cancel()
        (entry,) = await client.ended()
        assert (entry["outcome"], entry["cancelled_by_client"]) == ("cancelled", True)
        if stream:
            assert entry["tokens_sent"] == sent
        assert stats[""].cancelled == 1
        assert client.server.in_flight == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_a_stall_may_end(stream: bool) -> None:
    async with simulator() as client:
        await client.script({"stall_after_tokens": 4, "stall_s": 0.05, "text": "a b c d e f g"})
        answer = await client.chat(stream=stream)
        assert answer.text.count(" g") == 1


async def test_a_stream_at_a_rate_comes_in_several_pieces_and_whole() -> None:
    async with simulator() as client:
        await client.script({"first_token_ms": 5, "tokens_per_s": 200, "tokens": 10})
        body = {"model": "m", "messages": HELLO, "stream": True}
        pieces = []
        async with client.http.stream("POST", "/v1/chat/completions", json=body) as answer:
            pieces = [data async for data in answer.aiter_raw()]
        assert len(pieces) > 3
        assert len(lines(b"".join(pieces).decode())) == 1 + 10 + 2


@pytest.mark.parametrize("stream", [False, True])
async def test_a_drip_is_the_same_answer_byte_by_byte(stream: bool) -> None:
    async with simulator() as client:
        await client.script({"text": "naïve café", "drip": True})
        answer = await client.chat(stream=stream)
        assert "naïve" in answer.text
        assert answer.text.count("café") == 1


async def test_a_long_stream_at_once_does_not_overrun_its_reader() -> None:
    async with simulator() as client:
        await client.script({"tokens": 100_000, "chunk_tokens": 10})
        body = {"model": "m", "messages": HELLO, "stream": True}
        size = 0
        async with client.http.stream("POST", "/v1/chat/completions", json=body) as answer:
            async for data in answer.aiter_raw():
                size += len(data)
                await asyncio.sleep(0)
        (entry,) = await client.ended()
        assert (entry["outcome"], entry["tokens_sent"], entry["bytes_sent"]) == (
            "ok",
            100_000,
            size,
        )


async def test_rates_are_counted_told_and_enforced() -> None:
    async with simulator() as client:
        await client.script({"rpm": 2, "tpm": 1000})
        one, _, three = [await client.chat() for _ in range(3)]
        assert one.headers["x-ratelimit-limit-requests"] == "2"
        assert one.headers["x-ratelimit-remaining-requests"] == "1"
        assert int(one.headers["x-ratelimit-remaining-tokens"]) < 1000
        assert three.status_code == 429
        assert 1 <= int(three.headers["retry-after"]) <= 30
        assert 0 < int(three.headers["retry-after-ms"]) <= 30_000
        assert "Please try again in" in three.json()["error"]["message"]
        large = await client.chat(max_tokens=5000)
        assert large.json()["error"]["message"].startswith("Request too large")


@pytest.mark.parametrize(
    ("form", "headers"),
    [
        ("seconds", {"retry-after": "2"}),
        ("ms", {"retry-after-ms": "1500"}),
        ("both", {"retry-after": "2", "retry-after-ms": "1500"}),
        ("text", {}),
        ("none", {}),
    ],
)
async def test_a_wait_is_told_in_the_form_asked_for(form: str, headers: dict[str, str]) -> None:
    async with simulator() as client:
        fault = {"class": "rate_limited", "retry_after_s": 1.5, "retry_after_form": form}
        await client.script({"faults": [fault]})
        answer = await client.chat()
        told = {n: v for n, v in answer.headers.items() if n.startswith("retry-after")}
        assert told == headers
        assert "try again in 1.5s" in answer.text


async def test_capacity_overloads() -> None:
    async with simulator() as client:
        await client.script({"capacity": 1, "stall_before_first": True})
        running = asyncio.create_task(client.chat())
        await until(lambda: client.server.in_flight == 1)
        assert (await client.chat()).status_code == 503
        running.cancel()
        await client.ended(2)
        await client.script({"capacity": 1})
        assert (await client.chat()).status_code == 200
        assert client.server.stats[""].in_flight_peak == 2


async def test_keys_and_models_are_checked_where_a_script_says_which() -> None:
    async with simulator() as client:
        await client.script({"keys": ["sk-good"], "models": ["known"]})
        assert (await client.chat(model="known")).status_code == 401
        good = {"authorization": "Bearer sk-good"}
        body = {"model": "other", "messages": HELLO}
        answer = await client.http.post("/v1/chat/completions", json=body, headers=good)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
        listed = (await client.http.get("/v1/models", headers=good)).json()
        assert [model["id"] for model in listed["data"]] == ["known"]
        assert (await client.http.get("/v1/models/other", headers=good)).status_code == 404
        for none in ("", "Bearer", "Basic abc"):
            answer = await client.http.get("/v1/models", headers={"authorization": none})
            assert answer.status_code == 401


async def test_what_is_not_there_is_said_in_the_dialect() -> None:
    async with simulator() as client:
        for method, path, status in (
            ("GET", "/v1/nothing", 404),
            ("GET", "/a/b/v1/models", 404),
            ("GET", "/", 404),
            ("GET", "/v1/chat/completions", 405),
            ("POST", "/v1/models", 405),
            ("GET", "/__control/nothing", 404),
        ):
            answer = await client.http.request(method, path)
            assert answer.status_code == status
            assert answer.json()["error"]["type"] == "invalid_request_error"
        assert (await client.http.get("/healthz")).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"nonsense",
        b'{"unknown": 1}',
        b'{"tokens": -1}',
        b'{"faults": [{"class": "bad_luck"}]}',
        b'{"faults": [{"class": "cut", "probability": 1.5}]}',
        b"[" * 100_000,
        b"[" + b",".join(b'{"lane":"%d"}' % i for i in range(1001)) + b"]",
    ],
)
async def test_a_bad_script_is_refused_whole(body: bytes) -> None:
    async with simulator() as client:
        answer = await client.http.post("/__control/script", content=body)
        assert answer.status_code == 400
        assert answer.json()["error"]["message"].startswith("Not a script")
        assert (await client.http.get("/__control/script")).json() == []


async def test_reset_forgets_everything() -> None:
    async with simulator() as client:
        await client.script({"text": "x"})
        await client.chat()
        assert (await client.http.post("/__control/reset", json={"seed": 9})).json() == {"seed": 9}
        assert await client.log() == []
        assert (await client.http.get("/__control/script")).json() == []
        assert (await client.http.get("/__control/stats")).json() == {"lanes": {}, "in_flight": 0}


async def test_the_log_goes_on_where_it_was_left_and_keeps_bodies_on_request() -> None:
    async with simulator() as client:
        await client.chat()
        mark = (await client.http.get("/__control/log")).json()["next"]
        await client.script({"record": True})
        await client.chat(user="someone")
        answer = (await client.http.get(f"/__control/log?since={mark}")).json()
        (entry,) = answer["entries"]
        assert msgspec.json.decode(entry["body"])["user"] == "someone"
        assert (await client.http.get("/__control/log?since=x")).status_code == 400


async def test_the_control_plane_is_for_loopback_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("breakwater_gateway.simulator.server._LOOPBACK", ("10.",))
    async with simulator() as client:
        assert (await client.http.get("/__control/stats")).status_code == 403


async def test_drain_finishes_answers_and_counts_what_it_cut_as_drained() -> None:
    async with simulator() as client:
        await client.script(
            {"model": "slow", "first_token_ms": 100}, {"model": "never", "stall_before_first": True}
        )
        slow = asyncio.create_task(client.chat(model="slow"))
        never = asyncio.create_task(client.chat(model="never"))
        await until(lambda: client.server.in_flight == 2)
        assert await client.server.drain(0.5) == 1
        assert (await slow).status_code == 200
        with pytest.raises(httpx.TransportError):
            await never
        outcomes = [entry.outcome for entry in client.server.entries]
        assert outcomes == ["ok", "drained"]


async def test_many_paced_streams_end_whole() -> None:
    async with simulator() as client:
        await client.script({"tokens_per_s": 100, "tokens": 20})
        limits = httpx.Limits(max_connections=100)
        async with httpx.AsyncClient(
            base_url=client.http.base_url,
            headers=client.http.headers,
            limits=limits,
            trust_env=False,
        ) as http:
            many = Client(client.server, http)
            got = await asyncio.gather(*(many.chat(stream=True, seed=i) for i in range(100)))
        assert all(lines(answer.text)[-1] == "[DONE]" for answer in got)
        assert client.server.stats[""].in_flight_peak > 1
        assert client.server.in_flight == 0


async def test_it_runs_by_itself_and_says_where() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "breakwater_gateway.simulator",
        "--port",
        "0",
        "--seed",
        "3",
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(PATIENCE_S):
            ready = json.loads(await process.stdout.readline())
            assert (ready["event"], ready["seed"]) == ("ready", 3)
            async with httpx.AsyncClient(trust_env=False) as http:
                url = f"http://127.0.0.1:{ready['port']}/healthz"
                assert (await http.get(url)).status_code == 200
            other = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "breakwater_gateway.simulator",
                "--port",
                str(ready["port"]),
                stderr=asyncio.subprocess.PIPE,
            )
            _, told = await other.communicate()
            assert (other.returncode, b"in use" in told) == (2, True)
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
