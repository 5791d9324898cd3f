"""The cache over real processes while routers and its own actor are killed, and how soon a verdict counts, in figures.

uv run pytest -m drill -s tests/drills/test_cache_drills.py
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
from msgspec import Struct
from tests.conftest import NatsProcess
from tests.e2e.processes import PATIENCE_S, Process, Simulator, report, until

from breakwater_protocol import BreakwaterError, Client
from breakwater_protocol.subjects import Subjects

pytestmark = [pytest.mark.anyio, pytest.mark.nats, pytest.mark.drill]

SUBJECTS = Subjects()
CALLERS = 100
ROUTERS = 4
WORDS = 60
"""Of the answer."""


class Fleet:
    """Four routers, two workers, and one of each other actor, every one a process."""

    def __init__(self, directory: Path, nats: str, simulator: Simulator, more: str = "") -> None:
        self.directory, self.nats = directory, nats
        self.config = directory / "breakwater.yaml"
        self.config.write_text(
            "providers:\n"
            f'  drill: {{wire: openai, base_url: "{simulator.base_url("drill")}"}}\n'
            "models:\n"
            "  drill/*:\n"
            "    deployments: [{model: drill/*, id: drill, price: {input: 1, output: 2}}]\n"
            "    breaker: {consecutive: 100000, min_requests: 100000}\n" + more
        )
        names = ["health-0", "cache-0", "worker-0", "worker-1"]
        names += [f"router-{place}" for place in range(ROUTERS)]
        self.running: dict[str, Process] = {}
        for name in names:
            arguments = ["run", name.partition("-")[0], "--nats", nats, "--config"]
            self.running[name] = Process(directory / name, *arguments, str(self.config))
        for process in self.running.values():
            until(partial(lambda p: "actor_started" in p.stderr, process), "it serves")

    @property
    def routers(self) -> list[Process]:
        return [p for name, p in self.running.items() if name.startswith("router")]

    def router(self, id_: str) -> Process:
        (found,) = [p for p in self.routers if f'"{id_}"' in p.stderr]
        return found

    def discard(self) -> None:
        for process in self.running.values():
            process.discard()


@pytest.fixture
def fleets(
    tmp_path: Path, simulator: Simulator, nats_server: Callable[..., NatsProcess]
) -> Iterator[Callable[..., Fleet]]:
    made: list[Fleet] = []

    def make(more: str = "") -> Fleet:
        made.append(Fleet(tmp_path, nats_server(max_file_store="4GB").url, simulator, more))
        return made[-1]

    yield make
    for fleet in made:
        fleet.discard()


# The leading router is killed.


class Heard(Struct):
    """One caller's answer so far."""

    request: str = ""
    text: str = ""
    pieces: int = 0
    cache: str = ""
    end: str = ""
    """Empty while it has none."""


async def ask(client: Client, model: str, heard: Heard) -> None:
    stream = client.chat(
        model=model,
        messages=[{"role": "user", "content": "Say it to all of us."}],
        temperature=0,
        stall_timeout_s=6.0,
    )
    heard.request = stream.request_id
    try:
        async for chunk in stream:
            heard.pieces += 1
            heard.text += chunk.choices[0].delta.content or "" if chunk.choices else ""
        heard.end = f"partial: {stream.info.partial}" if stream.info.partial else "complete"
    except BreakwaterError as error:
        heard.end = type(error).__name__
    heard.cache = stream.info.cache


@asynccontextmanager
async def listening(
    client: Client, subject: str, into: list[tuple[str, bytes]]
) -> AsyncIterator[None]:
    async def listen() -> None:
        async for heard in client.listen(subject):
            into.append((heard.subject, heard.data))  # noqa: PERF401 - there is no end of them

    task = asyncio.create_task(listen())
    await client.server()
    await asyncio.sleep(0.1)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def eventually(true: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not true():  # noqa: ASYNC110 - other processes bring it about
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("when", ["before the first byte", "in the middle of the stream"])
async def test_the_leading_router_of_a_hundred_identical_streams_is_killed(
    fleets: Callable[..., Fleet], simulator: Simulator, when: str
) -> None:
    early = when.startswith("before")
    model = "early" if early else "middle"
    simulator.script(
        lane="drill",
        model=model,
        first_token_ms=2_500 if early else 300,
        tokens=WORDS,
        tokens_per_s=15,
    )
    fleet = fleets()
    joins: list[tuple[str, bytes]] = []
    ended: list[tuple[str, bytes]] = []
    calls: list[tuple[str, bytes]] = []
    all_heard = [Heard() for _ in range(CALLERS)]
    before = simulator.lane("drill").get("started", 0)
    async with (
        Client(fleet.nats) as client,
        Client(fleet.nats) as observer,
        listening(observer, "bw.v1.flight.*", joins),
        listening(observer, SUBJECTS.request.any(), ended),
        listening(observer, "bw.v1.work.*", calls),
    ):
        await asyncio.sleep(2)  # the routers have heard of each other
        asked = [asyncio.create_task(ask(client, f"drill/{model}", h)) for h in all_heard]

        def joined() -> set[str]:
            return {s for s, data in joins if SUBJECTS.flight.decode(data).ask == "join"}

        await eventually(joined)
        if early:
            await eventually(lambda: calls)
            await asyncio.sleep(0.5)
        else:
            await eventually(lambda: all(h.pieces >= 3 for h in all_heard))
        (leader,) = {SUBJECTS.flight.names(subject)[0] for subject in joined()}
        (led,) = {SUBJECTS.work.decode(data).request for _, data in calls}
        fleet.router(leader).kill()
        killed_at = Counter(h.pieces for h in all_heard)
        await asyncio.gather(*asked)
        await asyncio.sleep(0.5)
    at = {e.request: e.router for e in (SUBJECTS.request.decode(data) for _, data in ended)}
    alive = [h for h in all_heard if h.request in at]
    dead = [h for h in all_heard if h.request not in at]
    made = simulator.lane("drill")["started"] - before
    report(f"\nthe leading router killed {when}: {made} calls of the provider")
    if not early:
        report(f"  pieces heard at that moment, of {WORDS + 1}: {dict(killed_at)}")
    report(f"  at the {len(set(at.values()))} routers alive: {Counter(h.end for h in alive)}")
    report(f"  at the dead one: {Counter(h.end for h in dead)}")
    report(f"  its own caller: {next(h.end for h in all_heard if h.request == led)}")
    assert made == (2 if early else 1)
    assert {h.end for h in alive} == {"complete"}
    assert len({h.text for h in alive}) == 1
    assert len(alive) >= CALLERS // 2
    assert len(set(at.values())) == ROUTERS - 1
    if not early:
        assert next(h.end for h in all_heard if h.request == led) == "complete"
