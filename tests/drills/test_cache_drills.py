"""The cache over real processes while routers and its own actor are killed, and how soon a verdict counts, in figures.

uv run pytest -m drill -s tests/drills/test_cache_drills.py
"""

import asyncio
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Literal

import msgspec
import pytest
from msgspec import Struct
from tests.conftest import NatsProcess
from tests.e2e.processes import PATIENCE_S, Process, Simulator, report, until

from breakwater_gateway.edge import feedback
from breakwater_protocol import BreakwaterError, Client, GatewayError
from breakwater_protocol.answers import AnswerInfo
from breakwater_protocol.cache import FeedbackReply
from breakwater_protocol.subjects import Subjects

pytestmark = [pytest.mark.anyio, pytest.mark.nats, pytest.mark.drill]

SUBJECTS = Subjects()
CALLERS = 100
ROUTERS = 4
WORDS = 60
"""Of the answer."""


class Fleet:
    """Four routers, two workers, and one of each other actor, every one a process."""

    def __init__(self, directory: Path, nats: str, simulator: Simulator) -> None:
        self.directory, self.nats = directory, nats
        self.config = directory / "breakwater.yaml"
        self.config.write_text(
            "providers:\n"
            f'  drill: {{wire: openai, base_url: "{simulator.base_url("drill")}"}}\n'
            "models:\n"
            "  drill/*:\n"
            "    deployments: [{model: drill/*, id: drill, price: {input: 1, output: 2}}]\n"
            "    breaker: {consecutive: 100000, min_requests: 100000}\n"
            "  meant/*:\n"
            "    deployments: [{model: drill/*, id: meant}]\n"
            "    cache: {exact: 1h, semantic: {threshold: 0.85, ttl: 1h, shadow: 0}}\n"
            "  embedder:\n"
            "    deployments: [{model: drill/text-embedding-3-small, id: vectors}]\n"
            "embeddings: {model: embedder}\n"
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
def fleet(
    tmp_path: Path, simulator: Simulator, nats_server: Callable[..., NatsProcess]
) -> Iterator[Fleet]:
    made = Fleet(tmp_path, nats_server(max_file_store="4GB").url, simulator)
    yield made
    made.discard()


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
    fleet: Fleet, simulator: Simulator, when: str
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
    assert {h.end for h in all_heard} == {"complete"}
    assert len({h.text for h in all_heard}) == 1
    assert dead
    assert len(set(at.values())) == ROUTERS - 1


# A verdict.


ROUNDS = 20
ASKING = 6
"""Callers that ask for the answer again and again, each a hundred times a second at most."""
QUESTIONS = {
    "exact": ("How do I change the password of account {}?",) * 2,
    "semantic": (
        "How do I change the password of an account of the {} kind?",
        "Please, how do I change the password of an account of the {} kind?",
    ),
}
KINDS = [
    "amber",
    "birch",
    "cedar",
    "daisy",
    "ember",
    "fern",
    "grape",
    "hazel",
    "iris",
    "jade",
    "kelp",
    "lily",
    "maple",
    "nettle",
    "olive",
]
KINDS += ["poppy", "quince", "rose", "sage", "thyme"]


class Round:
    """An answer that all routers give again and again, until it is called wrong."""

    def __init__(self, client: Client, model: str, question: str, again: str) -> None:
        self._client = client
        self._model = model
        self._question = question
        self._again = again
        self._ended: list[tuple[str, bytes]] = []
        self.served: list[tuple[str, float]] = []
        """Requests that the cache answered, and when their callers had the answer."""

    async def _ask(self, question: str, cache: Literal["on", "only"]) -> AnswerInfo:
        got = await self._client.complete(
            model=self._model,
            messages=[{"role": "user", "content": question}],
            temperature=0,
            cache=cache,
        )
        return got.info

    async def _ask_on(self) -> None:
        """For the cached answer and nothing else."""
        while True:
            try:
                info = await self._ask(self._again, "only")
                self.served.append((info.request_id, time.time()))
            except GatewayError as error:
                if error.code != "not_cached":
                    raise
            await asyncio.sleep(0.01)

    def _routers(self) -> dict[str, str]:
        events = [SUBJECTS.request.decode(data) for _, data in self._ended]
        return {event.request: event.router for event in events}

    def _all_serve(self) -> bool:
        at = self._routers()
        return len({at[request] for request, _ in self.served if request in at}) == ROUTERS

    async def until_wrong(self) -> list[float]:
        """Of each router: ms from the verdict to the last time that it gave the answer."""
        async with listening(self._client, SUBJECTS.request.any(), self._ended):
            await self._ask(self._question, "on")
            callers = [asyncio.create_task(self._ask_on()) for _ in range(ASKING)]
            await eventually(self._all_serve)
            body = {"id": (await self._ask(self._again, "only")).cache_id, "verdict": "wrong"}
            verdict = feedback.read(msgspec.json.encode(body), self._client.tenant)
            assert isinstance(verdict, tuple), verdict
            shard, said = verdict
            subject = SUBJECTS.cache_feedback
            told = time.time()
            reply = await self._client.ask(subject.at(shard), subject.encode(said))
            assert msgspec.json.decode(reply.data, type=FeedbackReply).taken
            await asyncio.sleep(0.5)
            for caller in callers:
                caller.cancel()
            gone = await asyncio.gather(*callers, return_exceptions=True)
            assert all(isinstance(each, asyncio.CancelledError) for each in gone), gone
            await asyncio.sleep(0.1)
        last = dict.fromkeys(self._routers().values(), 0.0)
        for request, at in self.served:
            router = self._routers()[request]
            last[router] = max(last[router], (at - told) * 1000)
        return list(last.values())


@pytest.mark.parametrize("kind", ["exact", "semantic"])
async def test_how_soon_an_answer_that_is_called_wrong_is_served_by_no_router(
    fleet: Fleet, simulator: Simulator, kind: str
) -> None:
    simulator.script(lane="drill", tokens=8)
    model = "drill/m" if kind == "exact" else "meant/m"
    question, again = QUESTIONS[kind]
    took_ms: list[float] = []
    hits = 0
    async with Client(fleet.nats) as client:
        await asyncio.sleep(2)
        for word in KINDS[:ROUNDS]:
            one = Round(client, model, question.format(word), again.format(word))
            took_ms += await one.until_wrong()
            hits += len(one.served)
    took_ms.sort()
    report(
        f"\n{kind}: {hits} hits at {ROUTERS} routers; ms from the verdict to the last hit that a router"
        f" gave: p50 {took_ms[len(took_ms) // 2]:.1f}, p99 {took_ms[int(len(took_ms) * 0.99)]:.1f},"
        f" max {took_ms[-1]:.1f}, of {len(took_ms)}"
    )
    assert len(took_ms) == ROUNDS * ROUTERS


# The cache's own actor is killed.


async def questions(client: Client, name: str, number: int) -> list[float]:
    """So many that nobody asked before; what the gateway itself took for each, in ms."""
    took = []
    for each in range(number):
        messages = [{"role": "user", "content": f"Which harbour is {name} {each}?"}]
        got = await client.complete(model="meant/m", messages=messages, temperature=0)
        assert got.info.cache == "miss"
        assert got.info.overhead_ms is not None
        took.append(got.info.overhead_ms)
        await asyncio.sleep(0.005)
    return took


async def test_requests_go_on_as_misses_when_the_actor_of_the_cache_is_killed(
    fleet: Fleet, simulator: Simulator
) -> None:
    simulator.script(lane="drill", tokens=8)
    found = {}
    async with Client(fleet.nats) as client:
        await asyncio.sleep(2)
        found["alive"] = await questions(client, "alive", 200)
        fleet.running["cache-0"].send(signal.SIGSTOP)
        found["stopped, so that it does not answer"] = await questions(client, "stopped", 100)
        fleet.running["cache-0"].send(signal.SIGCONT)
        fleet.running["cache-0"].kill()
        found["killed"] = await questions(client, "killed", 200)
    for name, took in found.items():
        took.sort()
        report(
            f"\nthe cache's actor {name}: ms of the gateway's own for a miss: p50"
            f" {took[len(took) // 2]:.2f}, p99 {took[int(len(took) * 0.99)]:.2f}, max {took[-1]:.2f}"
        )
