"""The quick half of the drills: a worker killed, a nats-server killed, a SIGTERM, all under load."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from tests.conftest import NatsProcess
from tests.e2e.load import load
from tests.e2e.processes import (
    HELLO,
    PATIENCE_S,
    Gateway,
    Simulator,
    config,
    fleet,
    free_port,
    report,
    until,
)
from tests.e2e.workers import Workers

from breakwater_protocol import Client

pytestmark = [pytest.mark.anyio, pytest.mark.nats]


@pytest.fixture
def workers(
    tmp_path: Path, simulator: Simulator, nats_server: Callable[..., NatsProcess]
) -> Iterator[Workers]:
    server = nats_server(max_file_store="4GB")
    path = tmp_path / "breakwater.yaml"
    path.write_text(config(simulator))
    port = free_port()
    commands = [
        ["health", "router", "edge", "--port", str(port), "--config", str(path)],
        ["worker"],
        ["worker"],
    ]
    with fleet(tmp_path, server.url, commands, port=port) as processes:
        until(
            lambda: all("actor_started" in process.stderr for process in processes),
            "both workers serve",
        )
        yield Workers(f"http://127.0.0.1:{port}", server.url, processes)


async def test_a_worker_killed_before_the_first_byte_is_replaced_by_another(
    workers: Workers, simulator: Simulator
) -> None:
    simulator.script(lane="sim", model="killed-before", faults=[{"class": "hang", "times": 1}])
    async with (
        Client(workers.nats) as client,
        httpx.AsyncClient(trust_env=False, timeout=PATIENCE_S) as http,
        asyncio.TaskGroup() as tasks,
    ):
        await client.complete(model="sim/m", messages=HELLO)
        body = {"model": "sim/killed-before", "messages": HELLO}
        over_http = tasks.create_task(
            http.post(workers.root_url + "/v1/chat/completions", json=body)
        )
        victim = await workers.holder(client)
        killed = time.monotonic()
        victim.kill()
        answer = await over_http
        took_s = time.monotonic() - killed
    report(f"answered by another worker {took_s:.2f} s after the kill")
    assert answer.status_code == 200
    assert answer.headers["breakwater-attempts"] == "2"


async def test_a_worker_killed_during_a_stream_ends_it_as_partial(
    workers: Workers, simulator: Simulator
) -> None:
    simulator.script(lane="sim", model="killed-during", tokens=10_000, tokens_per_s=30)

    async def over_http() -> tuple[str, float]:
        body = {"model": "sim/killed-during", "messages": HELLO, "stream": True}
        async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE_S) as http:
            answer = await http.post(workers.root_url + "/v1/chat/completions", json=body)
        return answer.text, time.monotonic()

    async with Client(workers.nats) as client:
        reading = asyncio.create_task(over_http())
        victim = await workers.holder(client)
        killed = time.monotonic()
        victim.kill()
        text, ended = await reading
        report(f"HTTP: an explicit partial {ended - killed:.2f} s after the kill")
        *chunks, comment, last = text.rstrip("\n").split("\n\n")
        assert chunks
        assert "breakwater-partial=worker_lost" in comment
        assert "[DONE]" not in text
        assert "partial" in json.loads(last[6:])["error"]["message"]

        stream = client.chat(model="sim/killed-during", messages=HELLO)
        chunk_count = 0
        killed = 0.0
        async for _ in stream:
            chunk_count += 1
            if chunk_count == 3:
                victim = await workers.holder(client)
                killed = time.monotonic()
                victim.kill()
        report(f"NATS: an explicit partial {time.monotonic() - killed:.2f} s after the kill")
        assert stream.info.partial == "worker_lost"


async def test_a_nats_server_killed_under_load_comes_back_and_all_is_well(
    tmp_path: Path, simulator: Simulator, nats_server: Callable[..., NatsProcess]
) -> None:
    """In one process HTTP does not need the bus for its answers, so it goes on."""
    server = nats_server(max_file_store="4GB")
    gateway = Gateway(tmp_path / "up", "--nats", server.url, config=config(simulator))
    simulator.script(lane="sim", model="steady", first_token_ms=20)
    try:
        async with load("sim/steady", http=[gateway.root_url]) as found:
            await found.good(20)
            server.kill()
            await found.good(50)
            server.start()
            await asyncio.to_thread(
                until,
                lambda: httpx.get(gateway.root_url + "/readyz", trust_env=False).status_code == 200,
                "ready again",
            )
            await found.good(20)
        report(f"HTTP: {found}")
        assert found.count("dropped") == 0
        assert found.count("error") == 0
        async with Client(server.url) as client:
            assert (await client.complete(model="sim/m", messages=HELLO)).text
        gateway.end()
    finally:
        gateway.discard()


async def test_sigterm_under_load_fails_no_request(tmp_path: Path, simulator: Simulator) -> None:
    gateway = Gateway(tmp_path / "up", config=config(simulator))
    simulator.script(lane="sim", model="steady", first_token_ms=50, tokens=5, tokens_per_s=50)
    try:
        async with load("sim/steady", http=[gateway.root_url], callers=8) as found:
            await found.good(40)
            gateway.terminate()
            await asyncio.to_thread(gateway.wait)
        report(f"HTTP: {found}")
        gateway.end()
        assert not found.bad()
        assert found.refused
    finally:
        gateway.discard()
