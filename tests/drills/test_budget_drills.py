"""Hard limits under a crowd and under kill -9, and callers who leave in the middle of an answer, in figures.

uv run pytest -m drill -s tests/drills/test_budget_drills.py
BREAKWATER_DRILL_S=30 shortens the three minutes of killing.
"""

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import msgspec
import pytest
from tests.conftest import NatsProcess
from tests.e2e.processes import HELLO, Process, Simulator, report, until

from breakwater_gateway.pricing.tokens import measure
from breakwater_protocol import BreakwaterError, Client
from breakwater_protocol.ledger import (
    PARTITIONS,
    Books,
    BudgetLine,
    LeaseLine,
    Query,
    QueryReply,
    partition_token,
)

pytestmark = [pytest.mark.anyio, pytest.mark.nats, pytest.mark.drill]

OUTPUT = 500
CLIENTS = 2_000
CALLS = 100
KILLING_S = float(os.environ.get("BREAKWATER_DRILL_S", "180"))


def most_of(model: str) -> int:
    """Tokens that one call reserves: what these drills let the provider charge, too."""
    body = {"model": model, "messages": HELLO, "max_tokens": OUTPUT}
    return measure(msgspec.json.encode(body)).upper() + OUTPUT


class Fleet:
    """Four routers, four workers, two ledgers and a health actor, each a process, over one data directory."""

    def __init__(self, directory: Path, nats: str, simulator: Simulator, hard: int) -> None:
        self.directory, self.nats = directory, nats
        self.started = 0
        self.running: dict[str, Process] = {}
        self.config = directory / "breakwater.yaml"
        self.config.write_text(
            "providers:\n"
            f'  drill: {{wire: openai, base_url: "{simulator.base_url("drill")}"}}\n'
            "models:\n"
            "  drill/*:\n"
            "    deployments: [{model: drill/*, id: drill}]\n"
            "    retry: {attempts: 1}\n"
            "    breaker: {consecutive: 100000, min_requests: 100000}\n"
            f'budgets: [{{account: "user:*", tokens: {hard}, per: day}}]\n'
        )
        names = ["health-0", "ledger-0", "ledger-1"]
        names += [f"{kind}-{place}" for kind in ("worker", "router") for place in range(4)]
        for name in names:
            self.start(name)
        for process in self.running.values():
            until(partial(lambda p: "actor_started" in p.stderr, process), "it serves")

    def start(self, name: str) -> None:
        self.started += 1
        arguments = ["run", name.partition("-")[0], "--nats", self.nats]
        arguments += ["--config", str(self.config), "--data", str(self.directory / "data")]
        self.running[name] = Process(self.directory / f"{self.started}-{name}", *arguments)

    def discard(self) -> None:
        for process in self.running.values():
            process.discard()


@pytest.fixture
def fleets(
    tmp_path: Path, simulator: Simulator, nats_server: Callable[..., NatsProcess]
) -> Iterator[Callable[[int], Fleet]]:
    made: list[Fleet] = []

    def make(hard: int) -> Fleet:
        directory = tmp_path / f"fleet-{len(made)}"
        directory.mkdir()
        fleet = Fleet(directory, nats_server(max_file_store="4GB").url, simulator, hard)
        made.append(fleet)
        return fleet

    yield make
    for fleet in made:
        fleet.discard()


async def books(client: Client) -> tuple[list[BudgetLine], list[LeaseLine]]:
    """What every writer says."""
    lines: list[BudgetLine] = []
    leases: list[LeaseLine] = []
    for number in range(PARTITIONS):
        subject = client.subjects.books.at(partition_token(number))
        while True:
            said = await client.ask(subject, msgspec.json.encode(Query(leases=True)), timeout_s=5.0)
            found = msgspec.json.decode(said.data, type=QueryReply)
            if isinstance(found, Books):
                break
            await asyncio.sleep(0.2)
        lines += found.lines
        leases += found.leases
    return lines, leases


async def one(client: Client, model: str, found: Counter[str]) -> None:
    try:
        await client.complete(model=model, messages=HELLO, max_tokens=OUTPUT, user="one")
        found["ok"] += 1
    except BreakwaterError as error:
        found[getattr(error, "code", "") or type(error).__name__] += 1


async def at_rest(client: Client, within_s: float) -> tuple[BudgetLine, float]:
    """The one line of the drill, once nothing of it is held; how long that took."""
    began = time.monotonic()
    while True:
        lines, leases = await books(client)
        (line,) = lines
        if not line.held and not [lease for lease in leases if lease.state == "open"]:
            return line, time.monotonic() - began
        assert time.monotonic() - began < within_s, (line, leases)
        await asyncio.sleep(0.1)


async def test_a_crowd_uses_a_limit_up_and_not_more(
    fleets: Callable[[int], Fleet], simulator: Simulator
) -> None:
    model = "crowd"
    most = most_of(f"drill/{model}")
    simulator.script(
        lane="drill",
        model=model,
        first_token_ms=30,
        prompt_tokens=most - OUTPUT,
        completion_tokens=OUTPUT,
    )
    before = simulator.lane("drill").get("outcomes", {}).get("ok", 0)
    fleet = fleets(CALLS * most)
    found: Counter[str] = Counter()
    clients = [Client(fleet.nats) for _ in range(8)]
    for client in clients:
        await client.connect()
    began = time.monotonic()
    async with asyncio.TaskGroup() as tasks:
        for number in range(CLIENTS):
            tasks.create_task(one(clients[number % 8], f"drill/{model}", found))
    took_s = time.monotonic() - began
    line, rest_s = await at_rest(clients[0], 5.0)
    made = simulator.lane("drill")["outcomes"]["ok"] - before
    report(
        f"\n{CLIENTS} callers, a limit of {CALLS} calls, 4 routers, 4 workers: the provider made"
        f" {made} ({made * most / line.limit:.1%} of the limit) in {took_s:.1f} s;"
        f" nothing held {rest_s:.1f} s later, {line.committed / most:.2f} calls in the books;"
        f" callers: {dict(found)}"
    )
    for client in clients:
        await client.aclose()
    assert made <= CALLS
    assert made >= 0.98 * CALLS
    assert line.committed == made * most


async def killing(fleet: Fleet, until_s: float) -> Counter[str]:
    """kill -9 of a random actor every two seconds, and another in its place at once."""
    killed: Counter[str] = Counter()
    draw = random.Random(7)
    while time.monotonic() < until_s:
        await asyncio.sleep(2.0)
        name = draw.choice([name for name in fleet.running if not name.startswith("health")])
        await asyncio.to_thread(fleet.running[name].kill)
        killed[name.partition("-")[0]] += 1
        fleet.start(name)
    return killed


async def test_a_limit_holds_while_actors_are_killed(
    fleets: Callable[[int], Fleet], simulator: Simulator
) -> None:
    model = "killed"
    most = most_of(f"drill/{model}")
    simulator.script(
        lane="drill",
        model=model,
        first_token_ms=60,
        prompt_tokens=most - OUTPUT,
        completion_tokens=OUTPUT,
    )
    calls = int(12 * KILLING_S)
    fleet = fleets(calls * most)
    before = simulator.lane("drill").get("started", 0)
    found: Counter[str] = Counter()
    ends = time.monotonic() + KILLING_S

    async def ask_again_and_again(client: Client) -> None:
        while time.monotonic() < ends:
            async with asyncio.timeout(30):
                await one(client, f"drill/{model}", found)
            await asyncio.sleep(0.05)

    async with Client(fleet.nats, answer_timeout_s=20.0) as client:
        async with asyncio.TaskGroup() as tasks:
            killer = tasks.create_task(killing(fleet, ends))
            for _ in range(40):
                tasks.create_task(ask_again_and_again(client))
        # With the killing over, what is left of the limit is used up.
        while found["budget_exhausted"] < 50 and time.monotonic() < ends + 120:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(40):
                    tasks.create_task(one(client, f"drill/{model}", found))
        lines, _ = await books(client)
        line, rest_s = await at_rest(client, 60.0)
    # Every call that reached the provider may have been billed, whoever died of it.
    made = simulator.lane("drill")["started"] - before
    report(
        f"\nkill -9 every 2 s for {KILLING_S:.0f} s ({dict(killer.result())}): the provider began"
        f" {made} calls of {calls} ({made * most / line.limit:.1%}); the books have"
        f" {line.committed / most:.1f}, nothing held {rest_s:.1f} s later; callers: {dict(found)}"
    )
    assert lines
    assert made * most <= line.limit
    assert line.committed >= made * most
    assert line.committed <= line.limit
    assert made >= 0.9 * calls


async def test_callers_who_leave_in_the_middle_stop_the_provider_and_are_settled(
    fleets: Callable[[int], Fleet], simulator: Simulator
) -> None:
    streams = 500
    most = most_of("drill/leaves-100")
    fleet = fleets(10_000 * most)
    left: dict[str, float] = {}
    closed: dict[str, float] = {}
    """When its router had settled it, and said that it is over."""

    async def leave(client: Client, number: int) -> None:
        model = f"leaves-{number}"
        chunks = 0
        stream = client.chat(model=f"drill/{model}", messages=HELLO, max_tokens=OUTPUT, user="one")
        answer = aiter(stream)
        async for _ in answer:
            chunks += 1
            if chunks == 10 * (1 + number % 10):
                break
        left[model] = time.time()
        await answer.aclose()

    simulator.script(lane="drill", first_token_ms=20, tokens=2_000, tokens_per_s=200)
    gate = asyncio.Semaphore(25)

    async def gated(client: Client, number: int) -> None:
        async with gate:
            await leave(client, number)

    async def hear(client: Client) -> None:
        events = client.listen(client.subjects.request.any(), waiting_max=2 * streams)
        while len(closed) < streams:
            event = client.subjects.request.decode((await anext(events)).data)
            closed[event.model.removeprefix("drill/")] = event.at
        await events.aclose()

    async with Client(fleet.nats) as client:
        heard = asyncio.create_task(hear(client))
        async with asyncio.TaskGroup() as tasks:
            for number in range(streams):
                tasks.create_task(gated(client, number))
        await asyncio.wait_for(heard, 10.0)
        line, rest_s = await at_rest(client, 10.0)
    entries = {e["model"]: e for e in simulator.requests(lane="drill") if e["model"] in left}
    aborts = sorted(
        (entry["at"] + entry["total_ms"] / 1000 - left[model]) * 1000
        for model, entry in entries.items()
    )
    settled = sorted(closed[model] - at for model, at in left.items())
    p50, p99 = aborts[len(aborts) // 2], aborts[int(len(aborts) * 0.99)]
    report(
        f"\n{streams} callers left at every tenth chunk: upstream aborted after {p50:.0f} ms (p50),"
        f" {p99:.0f} ms (p99), {aborts[-1]:.0f} ms (most); settled {settled[-1] * 1000:.0f} ms"
        f" after the caller left at the latest, unused leases back {rest_s:.1f} s after the last;"
        f" {line.committed / streams:.0f} tokens a call in the books, {most} were reserved"
    )
    assert len(entries) == streams
    assert all(entry["cancelled_by_client"] for entry in entries.values())
    assert p99 <= 200
    assert settled[-1] <= 1.0
    assert line.committed < streams * most / 2
