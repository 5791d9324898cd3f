"""Answers of ten megabytes, for real: passed on, or refused with a reason; never kept, and the bus lives on."""

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from tests.conftest import NatsProcess
from tests.e2e.processes import HELLO, PATIENCE_S, Gateway, Simulator, config

from breakwater_protocol import Client, GatewayError

pytestmark = [pytest.mark.anyio, pytest.mark.nats]

MB = 1024 * 1024
COLD = {"temperature": 0, "messages": HELLO}
"""What the cache would keep."""


class OneEvent(BaseHTTPRequestHandler):
    """A provider whose stream is one event of ten megabytes."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        delta = {"role": "assistant", "content": "w" * 10 * MB}
        event = {"id": "c", "choices": [{"index": 0, "delta": delta, "finish_reason": "stop"}]}
        body = f"data: {json.dumps(event)}\n\ndata: [DONE]\n\n".encode()
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # the gateway hangs up before its end
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture(scope="module")
def one_event() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), OneEvent) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()


@pytest.fixture(scope="module")
def gateway(
    tmp_path_factory: pytest.TempPathFactory, simulator: Simulator, one_event: str
) -> Iterator[Gateway]:
    """One process and a NATS of its own, which carries 8 MiB in one message."""
    text = config(simulator, tail="  one-event: {deployments: [{model: one/m, id: one}]}\n")
    provider = f'providers:\n  one: {{wire: openai, base_url: "{one_event}"}}\n'
    text = text.replace("providers:\n", provider, 1)
    made = Gateway(tmp_path_factory.mktemp("large"), config=text)
    yield made
    made.end()


@pytest.fixture
def http(gateway: Gateway) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=gateway.base_url, trust_env=False, timeout=PATIENCE_S) as client:
        yield client


def large(simulator: Simulator, model: str, size: int, *, tokens: int = 100) -> str:
    """A model that answers with so many bytes, in events of so many tokens (16 bytes) where it streams."""
    text = ("w" * 999 + " ") * (size // 1000)
    simulator.script(lane="sim", model=model, text=text, chunk_tokens=tokens)
    return f"sim/{model}"


def asked_again(http: httpx.Client, model: str, **more: object) -> httpx.Response:
    return http.post("/chat/completions", json={"model": model, **COLD, **more})


def lookups(gateway: Gateway, result: str) -> float:
    text = httpx.get(gateway.root_url + "/metrics", trust_env=False).text
    name = f'breakwater_cache_lookups_total{{kind="store",result="{result}"}}'
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))


def test_a_whole_answer_of_ten_megabytes_is_refused_with_a_reason(
    http: httpx.Client, simulator: Simulator
) -> None:
    model = large(simulator, "huge", 10 * MB)
    for _ in range(2):
        answer = asked_again(http, model)
        assert answer.status_code == 502
        error = answer.json()["error"]
        assert error["code"] == "bad_gateway"
        assert "larger than the gateway accepts" in error["message"]
    fine = asked_again(http, "sim/fine")
    assert fine.status_code == 200


def test_a_stream_of_ten_megabytes_is_passed_on_and_not_kept(
    http: httpx.Client, gateway: Gateway, simulator: Simulator
) -> None:
    model = large(simulator, "huge-stream", 10 * MB)
    before = lookups(gateway, "too_large")
    for number in range(1, 3):
        with http.stream(
            "POST", "/chat/completions", json={"model": model, **COLD, "stream": True}
        ) as answer:
            assert answer.headers["breakwater-cache"] == "miss"
            lines = [line for line in answer.iter_lines() if line.startswith("data: {")]
        assert sum(len(line) for line in lines) > 10 * MB
        assert lookups(gateway, "too_large") == before + number
    assert asked_again(http, "sim/fine").status_code == 200


def test_an_event_of_ten_megabytes_is_refused_with_a_reason(
    http: httpx.Client,
) -> None:
    answer = asked_again(http, "one-event", stream=True)
    assert answer.status_code == 502
    assert "event larger than the gateway accepts" in answer.json()["error"]["message"]
    assert asked_again(http, "sim/fine").status_code == 200


async def test_over_nats_too(gateway: Gateway, simulator: Simulator) -> None:
    whole = large(simulator, "nats-huge", 10 * MB)
    streamed = large(simulator, "nats-huge-stream", 10 * MB)
    async with Client(gateway.nats) as client:
        with pytest.raises(GatewayError, match="larger than the gateway accepts"):
            await client.complete(model=whole, messages=HELLO, temperature=0)
        size = 0
        async for chunk in client.chat(model=streamed, messages=HELLO, temperature=0):
            size += len(chunk.choices[0].delta.content or "") if chunk.choices else 0
        assert size > 9 * MB
        fine = await client.complete(model="sim/fine", messages=HELLO)
        assert fine.choices


async def test_what_a_small_bus_does_not_carry_is_refused_and_the_connection_stays(
    tmp_path: Path, simulator: Simulator, nats_server: Callable[..., NatsProcess]
) -> None:
    """The server's own default is 1 MB: an answer of 3 MB fits the gateway, and no message."""
    server = nats_server(max_payload="1MB", max_file_store="4GB")
    model = large(simulator, "three", 3 * MB)
    streamed = large(simulator, "three-stream", 3 * MB)
    made = Gateway(tmp_path, "--nats", server.url, config=config(simulator))
    try:
        async with Client(server.url) as client:
            for _ in range(2):
                with pytest.raises(GatewayError, match="larger than the bus carries"):
                    await client.complete(model=model, messages=HELLO, temperature=0)
                size = 0
                async for chunk in client.chat(model=streamed, messages=HELLO, temperature=0):
                    size += len(chunk.choices[0].delta.content or "") if chunk.choices else 0
                assert size > 2.9 * MB
            events = large(simulator, "three-events", 3 * MB, tokens=70_000)
            with pytest.raises(GatewayError, match="larger than the bus carries"):
                await anext(aiter(client.chat(model=events, messages=HELLO, temperature=0)))
            fine = await client.complete(model="sim/fine", messages=HELLO)
            assert fine.choices
            # Who follows a caller that is nearer is told, too.
            simulator.script(lane="sim", model="slow", text="w " * MB, first_token_ms=1_000)
            async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE_S) as http:
                body = {"model": "sim/slow", **COLD}
                asked = asyncio.create_task(
                    http.post(made.base_url + "/chat/completions", json=body)
                )
                await asyncio.sleep(0.5)
                with pytest.raises(GatewayError, match="larger than the bus carries"):
                    await client.complete(model="sim/slow", messages=HELLO, temperature=0)
                assert (await asked).status_code == 200
        # Within one process nothing has to go over the bus.
        body = {"model": model, **COLD}
        async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE_S) as http:
            near = await http.post(made.base_url + "/chat/completions", json=body)
        assert near.status_code == 200
        assert len(near.json()["choices"][0]["message"]["content"]) > 2.9 * MB
        assert "disconnected" not in made.stderr
        made.end()
    finally:
        made.discard()


async def test_a_kept_stream_larger_than_a_message_is_given_again_in_parts(
    tmp_path: Path, simulator: Simulator, nats_server: Callable[..., NatsProcess]
) -> None:
    server = nats_server(max_payload="1MB", max_file_store="4GB")
    model = large(simulator, "parts", 2 * MB)
    settings = config(simulator) + "limits: {cache_answer_bytes: 4194304}\n"
    made = Gateway(tmp_path, "--nats", server.url, config=settings)
    try:
        texts = []
        async with Client(server.url) as client:
            for cache in ("miss", "hit"):
                stream = client.chat(model=model, messages=HELLO, temperature=0)
                parts = [
                    chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices
                ]
                texts.append("".join(parts))
                assert stream.info.cache == cache
            assert texts[0] == texts[1]
            # As a whole it would be one message: it is asked anew, and refused as ever.
            with pytest.raises(GatewayError, match="larger than the bus carries"):
                await client.complete(model=model, messages=HELLO, temperature=0)
        made.end()
    finally:
        made.discard()
