"""What happens to callers while parts of a gateway are killed, restarted or drained, in figures.

uv run pytest -m drill -s
"""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest
from tests.conftest import NatsProcess
from tests.e2e.load import Outcomes, load
from tests.e2e.processes import (
    HELLO,
    PATIENCE_S,
    Gateway,
    Process,
    Simulator,
    children_of,
    command_line,
    config,
    free_port,
    needs_proc,
    report,
    until,
    until_ready,
)
from tests.e2e.workers import Workers

from breakwater_gateway.cli.serve_commands import KINDS
from breakwater_protocol import Client
from breakwater_protocol.subjects import Subjects

pytestmark = [pytest.mark.anyio, pytest.mark.nats, pytest.mark.drill]

SUBJECTS = Subjects()
ACTORS = tuple(kind for kind in reversed(KINDS) if kind != "simulator")
"""Every actor of a gateway, those that others depend on first."""


def show(what: str, found: object) -> None:
    report(f"\n{what}: {found}")


def started(process: Process) -> bool:
    return "actor_started" in process.stderr


async def serves(process: Process) -> None:
    await asyncio.to_thread(until, partial(started, process), "it serves")


class Fleet:
    """Two of each actor, each a process of its own, which can be replaced."""

    def __init__(
        self, directory: Path, nats: str, simulator: Simulator, text: str | None = None
    ) -> None:
        self.directory = directory
        self.nats = nats
        self.ports = [free_port(), free_port()]
        self.urls = [f"http://127.0.0.1:{port}" for port in self.ports]
        self.config = directory / "breakwater.yaml"
        self.config.write_text(config(simulator) if text is None else text)
        self.running: dict[str, Process] = {}
        self.started = 0
        for kind in ACTORS:
            for place in range(2):
                self.start(f"{kind}-{place}")
        for url in self.urls:
            until_ready(url, *self.running.values())
        for process in self.running.values():
            until(partial(started, process), "it serves")

    def start(self, name: str) -> Process:
        kind, _, place = name.partition("-")
        self.started += 1
        arguments = ["run", kind, "--nats", self.nats, "--config", str(self.config)]
        if kind == "edge":
            arguments += ["--port", str(self.ports[int(place)])]
        process = Process(self.directory / f"{self.started}-{name}", *arguments)
        self.running[name] = process
        return process

    async def replace(self, name: str) -> float:
        """SIGTERM, its end, and another that serves in its place: how long the drain took."""
        old = self.running[name]
        began = time.monotonic()
        old.terminate()
        code = await asyncio.to_thread(old.wait)
        took_s = time.monotonic() - began
        assert code == 0
        old.assert_clean()
        await serves(self.start(name))
        return took_s

    def discard(self) -> None:
        for process in self.running.values():
            process.discard()


@pytest.fixture
def fleet(
    tmp_path: Path, simulator: Simulator, nats_server: Callable[..., NatsProcess]
) -> Iterator[Fleet]:
    made = Fleet(tmp_path, nats_server(max_file_store="4GB").url, simulator)
    yield made
    made.discard()


@pytest.fixture
def steady(simulator: Simulator) -> str:
    """A model that answers like one: a first token after 50 ms, then 50 a second."""
    simulator.script(lane="sim", model="steady", first_token_ms=50, tokens=8, tokens_per_s=50)
    return "sim/steady"


# Workers.


async def test_workers_killed_under_load(fleet: Fleet, steady: str) -> None:
    """Streams that had begun are partial and say so; everything else is answered by the other."""
    async with load(steady, http=fleet.urls, nats=fleet.nats, callers=8) as found:
        for place in (0, 1):
            await found.good(50)
            fleet.running[f"worker-{place}"].kill()
            await found.good(50)
            fleet.start(f"worker-{place}")
            await serves(fleet.running[f"worker-{place}"])
    show("two workers killed with -9, one after the other", found)
    assert found.count("dropped") == 0
    assert found.count("error") == 0
    assert found.count("partial") <= 32


async def test_how_long_a_killed_worker_holds_up_its_requests(
    fleet: Fleet, simulator: Simulator
) -> None:
    before, during = [], []
    async with Client(fleet.nats) as client:
        for turn in range(5):
            serving = [p for name, p in fleet.running.items() if name.startswith("worker")]
            workers = Workers(fleet.urls[0], fleet.nats, serving)
            model = f"hangs-{turn}"
            simulator.script(lane="sim", model=model, faults=[{"class": "hang", "times": 1}])
            asked = asyncio.create_task(client.complete(model=f"sim/{model}", messages=HELLO))
            victim = await workers.holder(client)
            killed = time.monotonic()
            victim.kill()
            assert (await asked).info.attempts == 2
            before.append(time.monotonic() - killed)
            (name,) = [name for name, p in fleet.running.items() if p is victim]
            await serves(fleet.start(name))
            await asyncio.sleep(0.6)

            serving = [p for name, p in fleet.running.items() if name.startswith("worker")]
            workers = Workers(fleet.urls[0], fleet.nats, serving)
            simulator.script(lane="sim", model="endless", tokens=10_000, tokens_per_s=30)
            stream = client.chat(model="sim/endless", messages=HELLO)
            chunks = aiter(stream)
            await anext(chunks)
            victim = await workers.holder(client)
            killed = time.monotonic()
            victim.kill()
            async for _ in chunks:
                pass
            during.append(time.monotonic() - killed)
            assert stream.info.partial == "worker_lost"
            (name,) = [name for name, p in fleet.running.items() if p is victim]
            await serves(fleet.start(name))
            await asyncio.sleep(0.6)
    show("answered by another, s after the kill", [round(s, 3) for s in before])
    show("explicit partial, s after the kill", [round(s, 3) for s in during])


ASKS: dict[str, tuple[str, dict[str, object]]] = {
    "chat": ("/v1/chat/completions", {"messages": HELLO}),
    "messages": ("/v1/messages", {"messages": HELLO, "max_tokens": 5_000}),
    "responses": ("/v1/responses", {"input": "Hello"}),
}


async def test_a_killed_workers_stream_goes_on_where_the_model_says_so(
    tmp_path: Path, simulator: Simulator, nats_server: Callable[..., NatsProcess]
) -> None:
    tail = """  goes-on:
    on_cut: continue
    deployments:
      - {model: main-a/main-model, id: first, order: 0}
      - {model: main-b/main-model, id: second, order: 1}
"""
    for lane in ("main-a", "main-b"):
        simulator.script(lane=lane, model="main-model", tokens=100, tokens_per_s=50)
    text = config(simulator, tail=tail)
    fleet = Fleet(tmp_path, nats_server(max_file_store="4GB").url, simulator, text)
    try:
        async with (
            Client(fleet.nats) as client,
            httpx.AsyncClient(base_url=fleet.urls[0], trust_env=False, timeout=PATIENCE_S) as http,
        ):
            for api, (path, body) in ASKS.items():
                serving = [p for name, p in fleet.running.items() if name.startswith("worker")]
                workers = Workers(fleet.urls[0], fleet.nats, serving)
                asked = {"model": "goes-on", "stream": True, **body}
                async with http.stream("POST", path, json=asked) as answer:
                    pieces = answer.aiter_text()
                    said = await anext(pieces)
                    victim = await workers.holder(client)
                    said += await anext(pieces)
                    victim.kill()
                    killed, gap_s = time.monotonic(), 0.0
                    async for piece in pieces:
                        if "breakwater-seam=" in piece and not gap_s:
                            gap_s = time.monotonic() - killed
                        said += piece
                show(f"{api}: another went on, s after the kill", round(gap_s, 3))
                assert gap_s
                assert "partial" not in said
                last = {"chat": "[DONE]", "messages": "message_stop", "responses": "completed"}
                assert last[api] in said
                (name,) = [name for name, p in fleet.running.items() if p is victim]
                await serves(fleet.start(name))
                await asyncio.sleep(0.6)
    finally:
        fleet.discard()
        for lane in ("main-a", "main-b"):
            simulator.script(lane=lane, model="main-model")


async def test_a_frozen_worker_is_given_up(fleet: Fleet, simulator: Simulator) -> None:
    """SIGSTOP: its connection stays, it says nothing."""
    simulator.script(lane="sim", model="frozen", faults=[{"class": "hang", "times": 1}])
    serving = [p for name, p in fleet.running.items() if name.startswith("worker")]
    workers = Workers(fleet.urls[0], fleet.nats, serving)
    async with Client(fleet.nats) as client:
        asked = asyncio.create_task(client.complete(model="sim/frozen", messages=HELLO))
        victim = await workers.holder(client)
        began = time.monotonic()
        victim.send(signal.SIGSTOP)
        try:
            answer = await asked
        finally:
            victim.send(signal.SIGCONT)
    show(
        "a frozen worker's request was answered by another after",
        f"{time.monotonic() - began:.2f} s",
    )
    assert answer.info.attempts == 2


# NATS.


async def test_a_nats_server_killed_under_load_by_http_and_nats_callers(
    tmp_path: Path, simulator: Simulator, nats_server: Callable[..., NatsProcess], steady: str
) -> None:
    server = nats_server(max_file_store="4GB")
    gateway = Gateway(tmp_path / "up", "--nats", server.url, config=config(simulator))
    try:
        async with (
            load(steady, http=[gateway.root_url], callers=8) as http,
            load(steady, nats=server.url, callers=8, stall_s=5.0) as nats,
        ):
            for _ in range(2):
                await http.good(50)
                await nats.good(50)
                server.kill()
                await http.good(100)
                await asyncio.sleep(2.0)
                server.start()
                await nats.good(50)
            await http.good(50)
        show("nats-server killed twice for 2 s, one process, HTTP", http)
        show("nats-server killed twice for 2 s, one process, NATS", nats)
        assert http.count("dropped") == http.count("error") == http.count("partial") == 0
        assert nats.slowest_s() < 30
        gateway.end()
    finally:
        gateway.discard()


async def test_a_nats_server_killed_under_a_fleet(
    tmp_path: Path, simulator: Simulator, nats_server: Callable[..., NatsProcess], steady: str
) -> None:
    """Separate processes cannot do without it: requests fail clearly, and all recovers."""
    server = nats_server(max_file_store="4GB")
    fleet = Fleet(tmp_path, server.url, simulator)
    try:
        async with load(steady, http=fleet.urls, callers=8) as found:
            await found.good(50)
            server.kill()
            await asyncio.sleep(2.0)
            server.start()
            await found.good(100)
        show("nats-server killed for 2 s, a fleet, HTTP", found)
        assert found.count("dropped") == 0, "each got an answer or a clear error"
        # The last one may have waited for its whole deadline.
        last = sorted(found.all, key=lambda outcome: outcome.began)[-50:]
        late = [outcome for outcome in last if outcome.kind != "ok"]
        assert not late, "it has recovered"
        for process in fleet.running.values():
            process.end()
    finally:
        fleet.discard()


@needs_proc
async def test_an_embedded_nats_server_that_dies_is_started_again(
    tmp_path: Path, simulator: Simulator, steady: str
) -> None:
    gateway = Gateway(tmp_path / "up", config=config(simulator))
    try:
        async with load(steady, http=[gateway.root_url]) as found:
            await found.good(20)
            killed = gateway.nats_server_pid()
            os.kill(killed, signal.SIGKILL)
            began = time.monotonic()

            async def served() -> bool:
                try:
                    async with Client(gateway.nats, connect_timeout_s=0.5) as client:
                        return bool((await client.complete(model="sim/m", messages=HELLO)).text)
                except Exception:  # noqa: BLE001 - whatever it is, it is asked again
                    return False

            async with asyncio.timeout(PATIENCE_S):
                while not await served():  # noqa: ASYNC110 - another process is waited for
                    await asyncio.sleep(0.05)
            took_s = time.monotonic() - began
            await found.good(20)
        show(f"embedded nats-server killed, serves NATS again after {took_s:.2f} s, HTTP", found)
        assert not found.bad()
        gateway.end()
    finally:
        gateway.discard()


# Leaving.


async def test_sigterm_under_heavy_load_fails_no_request(
    tmp_path: Path, simulator: Simulator, steady: str
) -> None:
    for turn in range(5):
        gateway = Gateway(tmp_path / f"up-{turn}", config=config(simulator))
        try:
            async with load(steady, http=[gateway.root_url], callers=32) as found:
                await found.good(150)
                began = time.monotonic()
                gateway.terminate()
                await asyncio.to_thread(gateway.wait)
                took_s = time.monotonic() - began
            show(f"SIGTERM under 32 callers, gone after {took_s:.2f} s", found)
            gateway.end()
            assert not found.bad()
        finally:
            gateway.discard()


async def test_a_rolling_restart_of_every_actor_fails_no_request(fleet: Fleet, steady: str) -> None:
    async with (
        load(steady, http=fleet.urls, callers=8) as http,
        load(steady, nats=fleet.nats, callers=8) as nats,
    ):
        for kind in ACTORS:
            for place in range(2):
                await http.good(30)
                took_s = await fleet.replace(f"{kind}-{place}")
                report(f"{kind}-{place} drained in {took_s:.2f} s")
                await nats.good(30)
    show(f"rolling restart of two each of {', '.join(ACTORS)}, HTTP", http)
    show(f"rolling restart of two each of {', '.join(ACTORS)}, NATS", nats)
    assert not http.bad()
    assert not nats.bad()


# Health.


async def test_twenty_seconds_without_health_fail_no_request(fleet: Fleet, steady: str) -> None:
    async with load(steady, http=fleet.urls, nats=fleet.nats, callers=4) as found:
        await found.good(30)
        for place in range(2):
            fleet.running[f"health-{place}"].kill()
        await asyncio.sleep(20)
        fleet.start("health-0")
        await found.good(30)
    show("health killed with -9 for 20 s", found)
    assert not found.bad()


async def test_another_health_leads_when_the_leader_is_killed(
    fleet: Fleet, simulator: Simulator
) -> None:
    """Until then a failing deployment opens no breaker; afterwards it does."""

    def leads(process: Process) -> bool:
        return (
            process.running
            and any(line["event"] in {"lead_taken", "lead_lost"} for line in process.log())
            and [
                line["event"]
                for line in process.log()
                if line["event"] in {"lead_taken", "lead_lost"}
            ][-1]
            == "lead_taken"
        )

    places = ["health-0", "health-1"]
    (leader,) = [name for name in places if leads(fleet.running[name])]
    (other,) = [name for name in places if name != leader]
    simulator.script(lane="fragile", faults=[{"class": "server_error"}])
    async with Client(fleet.nats) as client:
        changes = client.listen(SUBJECTS.health.any())
        first = asyncio.ensure_future(anext(changes))
        fleet.running[leader].kill()
        killed = time.monotonic()
        await asyncio.to_thread(until, lambda: leads(fleet.running[other]), "the other leads")
        took_s = time.monotonic() - killed
        async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE_S) as http:
            async with asyncio.timeout(PATIENCE_S):
                while not first.done():
                    body = {"model": "fragile", "messages": HELLO}
                    await http.post(fleet.urls[0] + "/v1/chat/completions", json=body)
        opened_s = time.monotonic() - killed
        change = SUBJECTS.health.decode(first.result().data)
        await changes.aclose()
    simulator.script(lane="fragile")
    show("another health leads, s after the kill", round(took_s, 2))
    show("its first breaker opened, s after the kill", round(opened_s, 2))
    assert change.state == "open"


# Routers.


async def test_a_router_killed_with_requests_in_hand_never_leaves_a_caller_in_silence(
    fleet: Fleet, simulator: Simulator
) -> None:
    simulator.script(lane="sim", model="slowly", first_token_ms=1500, tokens=20, tokens_per_s=40)
    found = Outcomes()
    for stream in (False, True):
        for over in ("http", "nats"):
            async with load(
                "sim/slowly",
                http=fleet.urls if over == "http" else (),
                nats=fleet.nats if over == "nats" else "",
                callers=8,
            ) as each:
                await asyncio.sleep(1.0 if not stream else 1.8)
                fleet.running["router-0"].kill()
                await asyncio.sleep(3.0)
            fleet.start("router-0")
            await serves(fleet.running["router-0"])
            show(f"a router of two killed, {over}", each)
            found.all += each.all
    assert found.count("dropped") == 0
    assert found.slowest_s() < 15


async def test_a_dead_router_and_a_failing_attempt_still_end_in_one_clear_error(
    fleet: Fleet, simulator: Simulator
) -> None:
    """Nobody is left to try again: the caller hears so at its deadline at the latest."""
    simulator.script(lane="sim", model="doomed", first_token_ms=1000, faults=[{"class": "cut"}])
    async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE_S) as http:
        body = {"model": "sim/doomed", "messages": HELLO}
        began = time.monotonic()
        asked = [
            asyncio.create_task(
                http.post(
                    fleet.urls[0] + "/v1/chat/completions",
                    json=body,
                    headers={"breakwater-timeout": "4s"},
                )
            )
            for _ in range(8)
        ]
        await asyncio.sleep(0.3)
        for place in range(2):
            fleet.running[f"router-{place}"].kill()
        answers = await asyncio.gather(*asked)
        took_s = time.monotonic() - began
    show("both routers killed, every answer after", f"{took_s:.2f} s")
    assert {answer.status_code for answer in answers} <= {502, 503, 504}
    assert all(answer.json()["error"]["message"] for answer in answers)
    assert took_s < 12


@needs_proc
async def test_a_killed_process_of_several_is_replaced_under_load(
    tmp_path: Path, simulator: Simulator, steady: str
) -> None:
    gateway = Gateway(tmp_path / "up", "--processes", "2", config=config(simulator))
    try:
        until(lambda: "Ready." in gateway.stdout, "the banner")
        async with load(steady, http=[gateway.root_url], callers=16) as found:
            await found.good(50)
            serving = [p for p in children_of(gateway.pid) if " edge " in command_line(p)]
            os.kill(serving[0], signal.SIGKILL)
            await found.good(200)
        show("one of two processes killed with -9 under 16 callers", found)
        # Its own connections are cut; that is all.
        assert found.count("dropped") + found.count("partial") <= 16
        assert found.count("error") == 0
        gateway.end()
    finally:
        gateway.discard()
