"""Every actor as a process of its own over one NATS, and several processes behind one port."""

import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.conftest import NatsProcess
from tests.e2e.processes import (
    HELLO,
    PATIENCE_S,
    Gateway,
    Process,
    Simulator,
    children_of,
    command_line,
    config,
    fleet,
    free_port,
    needs_proc,
    processes_mentioning,
    until,
)

from breakwater_protocol import Client, RequestRefused

pytestmark = [pytest.mark.anyio, pytest.mark.nats]


class Fleet:
    def __init__(self, port: int, nats: str, processes: list[Process]) -> None:
        self.root_url = f"http://127.0.0.1:{port}"
        self.nats = nats
        self.processes = processes


@pytest.fixture(scope="module")
def parted(workplace: Path, simulator: Simulator) -> Iterator[Fleet]:
    """Edge, router, worker and health, each alone: nothing can be handed over in memory."""
    directory = workplace / "fleet"
    (directory / "nats").mkdir(parents=True)
    path = directory / "breakwater.yaml"
    path.write_text(config(simulator))
    server = NatsProcess(directory / "nats", max_file_store="4GB")
    server.start()
    port = free_port()
    commands = [
        ["health", "--config", str(path)],
        ["worker"],
        ["router"],
        ["edge", "--port", str(port)],
    ]
    try:
        with fleet(directory, server.url, commands, port=port) as processes:
            yield Fleet(port, server.url, processes)
            for process in reversed(processes):
                process.end()
    finally:
        server.stop()


@pytest.fixture
async def client(parted: Fleet) -> AsyncIterator[Client]:
    async with Client(parted.nats) as client:
        yield client


def test_a_fleet_serves_the_sdk(parted: Fleet) -> None:
    with openai.OpenAI(base_url=parted.root_url + "/v1", api_key="any", max_retries=0) as sdk:
        raw = sdk.chat.completions.with_raw_response.create(
            model="sim/sim-echo",
            messages=HELLO,
        )
        assert "Hello" in (raw.parse().choices[0].message.content or "")
        assert raw.headers["breakwater-deployment"] == "sim-any"
        with sdk.chat.completions.create(
            model="sim/sim-echo",
            messages=HELLO,
            stream=True,
        ) as stream:
            text = "".join(c.choices[0].delta.content or "" for c in stream)
        assert "Hello" in text
        vectors = sdk.embeddings.create(model="sim/text-embedding-3-small", input="a cat")
        assert len(vectors.data[0].embedding) == 1536
        assert sdk.models.retrieve("main-model").id == "main-model"
        with pytest.raises(openai.NotFoundError):
            sdk.chat.completions.create(
                model="nope",
                messages=HELLO,
            )
        with pytest.raises(openai.BadRequestError):
            sdk.chat.completions.create(model="sim/m", messages=[])


async def test_a_fleet_serves_nats(client: Client) -> None:
    stream = client.chat(model="sim/sim-echo", messages=HELLO)
    assert "Hello" in "".join([c.choices[0].delta.content or "" async for c in stream])
    assert stream.info.overhead_ms is not None
    with pytest.raises(RequestRefused):
        await client.complete(model="sim/m", messages=HELLO, max_tokens=-5)


def test_a_fleet_fails_over_and_carries_a_cancel(parted: Fleet, simulator: Simulator) -> None:
    simulator.script(lane="spare-bad", faults=[{"class": "server_error"}])
    simulator.script(lane="spare-good", text="from the spare")
    simulator.script(lane="once", model="fleet-leaves", tokens=10_000, tokens_per_s=50)
    with httpx.Client(base_url=parted.root_url, trust_env=False, timeout=PATIENCE_S) as http:
        answer = http.post("/v1/chat/completions", json={"model": "spare", "messages": HELLO})
        assert answer.headers["breakwater-deployment"] == "spare-good"
        body = {"model": "once/fleet-leaves", "messages": HELLO, "stream": True}
        with http.stream("POST", "/v1/chat/completions", json=body) as streamed:
            next(streamed.iter_raw())
    until(
        lambda: simulator.requests(model="fleet-leaves", cancelled_by_client=True),
        "the provider's call was ended",
        patience_s=5.0,
    )


async def test_a_fleet_carries_the_largest_body_and_the_largest_number_of_chunks(
    parted: Fleet, simulator: Simulator
) -> None:
    limit = 8 * 1024 * 1024 - 65536
    body = b'{"model":"sim/m","messages":[{"role":"user","content":"x"}]}'
    async with httpx.AsyncClient(
        base_url=parted.root_url, trust_env=False, timeout=PATIENCE_S
    ) as http:
        answer = await http.post("/v1/chat/completions", content=body + b" " * (limit - len(body)))
        assert answer.status_code == 200, answer.text
        simulator.script(lane="sim", model="long", tokens=20_000)
        whole = await http.post(
            "/v1/chat/completions", json={"model": "sim/long", "messages": HELLO, "stream": True}
        )
        assert whole.text.count("data: {") == 20_002
        assert whole.text.endswith("data: [DONE]\n\n")


def test_bus_only_serves_the_same_in_one_process(tmp_path: Path, simulator: Simulator) -> None:
    process = Gateway(tmp_path, "--bus-only", config=config(simulator))
    try:
        for stream in (False, True):
            answer = httpx.post(
                process.base_url + "/chat/completions",
                json={"model": "sim/sim-echo", "messages": HELLO, "stream": stream},
                trust_env=False,
                timeout=PATIENCE_S,
            )
            assert answer.status_code == 200
            assert "Hello" in answer.text
        process.end()
    finally:
        process.discard()


def served(metrics: str) -> float:
    return sum(
        sample.value
        for family in text_string_to_metric_families(metrics)
        for sample in family.samples
        if sample.name == "breakwater_requests_total" and sample.labels["outcome"] == "ok"
    )


@needs_proc
def test_several_processes_share_a_port_sum_their_metrics_and_are_replaced(
    tmp_path: Path, simulator: Simulator
) -> None:
    process = Gateway(tmp_path, "--processes", "2", config=config(simulator))

    def serving() -> list[int]:
        return [pid for pid in children_of(process.pid) if " edge " in command_line(pid)]

    def ask() -> int:
        # A connection of its own: the kernel spreads connections, not requests.
        return httpx.post(
            process.base_url + "/chat/completions",
            json={"model": "sim/m", "messages": HELLO},
            trust_env=False,
            timeout=PATIENCE_S,
        ).status_code

    def metrics() -> str:
        return httpx.get(process.root_url + "/metrics", trust_env=False).text

    try:
        until(lambda: "Ready." in process.stdout, "the banner")
        until(lambda: len(serving()) == 2, "two processes")
        until(lambda: metrics().count("breakwater_bus_connected{") == 3, "all are asked")
        assert [ask() for _ in range(40)] == [200] * 40, process.stderr[-6000:]
        until(lambda: served(metrics()) == 40, "the sum is of all")

        (killed, kept) = serving()
        os.kill(killed, signal.SIGKILL)
        until(lambda: set(serving()) - {killed, kept}, "another takes its place")
        until(lambda: ask() == 200, "served again")
        process.end()
    finally:
        process.discard()
    until(lambda: not processes_mentioning(process.nats), "no process is left")


def test_a_fleet_without_a_router_says_so_at_once(
    tmp_path: Path, nats_server: Callable[..., NatsProcess], simulator: Simulator
) -> None:
    server = nats_server(max_file_store="4GB")
    (tmp_path / "c.yaml").write_text(config(simulator))
    port = free_port()
    command = ["edge", "--config", str(tmp_path / "c.yaml"), "--port", str(port)]
    with fleet(tmp_path, server.url, [command]) as (edge,):
        until(lambda: "actor_started" in edge.stderr, "the edge listens")
        ready = httpx.get(f"http://127.0.0.1:{port}/readyz", trust_env=False)
        assert ready.status_code == 503
        assert "router" in ready.json()["waiting_for"]
        for stream in (False, True):
            answer = httpx.post(
                f"http://127.0.0.1:{port}/v1/chat/completions",
                json={"model": "sim/m", "messages": HELLO, "stream": stream},
                trust_env=False,
                timeout=PATIENCE_S,
            )
            assert answer.status_code == 503
            assert "breakwater run router" in answer.json()["error"]["message"]
            assert answer.headers["x-should-retry"] == "true"


def test_a_fleet_without_a_worker_says_so(
    tmp_path: Path, nats_server: Callable[..., NatsProcess], simulator: Simulator
) -> None:
    server = nats_server(max_file_store="4GB")
    (tmp_path / "c.yaml").write_text(config(simulator))
    port = free_port()
    command = ["edge", "router", "--config", str(tmp_path / "c.yaml"), "--port", str(port)]
    with fleet(tmp_path, server.url, [command]):

        def answered() -> httpx.Response | None:
            try:
                return httpx.post(
                    f"http://127.0.0.1:{port}/v1/chat/completions",
                    json={"model": "sim/m", "messages": HELLO},
                    trust_env=False,
                    timeout=PATIENCE_S,
                )
            except httpx.ConnectError:
                return None

        answer = until(answered, "the edge listens")
        assert answer.status_code == 503
        assert "worker" in answer.json()["error"]["message"]
        ready = httpx.get(f"http://127.0.0.1:{port}/readyz", trust_env=False)
        assert ready.status_code == 503
        assert "worker" in ready.json()["waiting_for"]["router"]
