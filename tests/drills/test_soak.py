"""Memory while a gateway answers many times more than its caches may keep, in figures.

uv run pytest -m drill -s tests/drills/test_soak.py
BREAKWATER_SOAK_S=3600 soaks for an hour instead of a minute.
"""

import asyncio
import itertools
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import msgspec
import pytest
from msgspec import Struct
from nats.aio.client import Client as Nats
from tests.conftest import NatsProcess
from tests.e2e.processes import PROC, Process, Simulator, needs_proc, report, until

from breakwater_protocol import Client
from breakwater_protocol.cache import EXACT, SHARDS, ShardStats, StatsRequest
from breakwater_protocol.subjects import Subjects

pytestmark = [pytest.mark.anyio, pytest.mark.nats, pytest.mark.drill, needs_proc]

SOAK_S = float(os.environ.get("BREAKWATER_SOAK_S", "60"))
SUBJECTS = Subjects()
MIB = 1024 * 1024
LIMITS = {"cache_bytes": 8 * MIB, "cache_store_bytes": 16 * MIB, "cache_index_bytes": 4 * MIB}
CALLERS = 24
TENANTS = 8
SAMPLES = 24
GROWTH_MAX = 0.2
"""Of a process's memory, from the second to the last quarter of the soak: in a minute, what is bounded in number
(the last ids, keys, vectors, labels) has not come to its bound everywhere."""


class Sample(Struct):
    rss: dict[str, float]
    """MiB of each process."""
    memory: int
    store: int
    index: int
    asked: int


class Fleet:
    def __init__(self, directory: Path, nats: str, simulator: Simulator) -> None:
        config = directory / "breakwater.yaml"
        limits = "".join(f"  {name}: {value}\n" for name, value in LIMITS.items())
        config.write_text(
            "providers:\n"
            f'  soak: {{wire: openai, base_url: "{simulator.base_url("soak")}"}}\n'
            "models:\n"
            "  m:\n"
            "    deployments: [{model: soak/m, id: soak}]\n"
            "    cache: {exact: 1h, semantic: {threshold: 0.9, ttl: 1h, shadow: 0.05}}\n"
            "  embedder:\n"
            "    deployments: [{model: soak/text-embedding-3-small, id: vectors}]\n"
            "embeddings: {model: embedder}\n"
            f"limits:\n{limits}"
        )
        self.running: dict[str, Process] = {}
        for kind in ("health", "cache", "worker", "router"):
            arguments = ["run", kind, "--nats", nats, "--config", str(config)]
            self.running[kind] = Process(directory / kind, *arguments)
        for process in self.running.values():
            until(partial(lambda p: "actor_started" in p.stderr, process), "it serves")

    def rss(self) -> dict[str, float]:
        page = os.sysconf("SC_PAGE_SIZE")
        return {
            kind: int((PROC / str(p.pid) / "statm").read_text().split()[1]) * page / MIB
            for kind, p in self.running.items()
        }


@pytest.fixture
def fleet(
    tmp_path: Path, simulator: Simulator, nats_server: Callable[..., NatsProcess]
) -> Iterator[tuple[Fleet, str]]:
    nats = nats_server(max_file_store="4GB").url
    made = Fleet(tmp_path, nats, simulator)
    yield made, nats
    for process in made.running.values():
        process.discard()


async def stats(client: Client, shard: str) -> ShardStats:
    subject = SUBJECTS.cache_stats
    reply = await client.ask(subject.at(shard), subject.encode(StatsRequest()))
    return msgspec.json.decode(reply.data, type=ShardStats)


async def asking(client: Client, numbers: Iterator[int], until_at: float) -> None:
    """What nobody asked before: of many namespaces, every tenth question long, half of them streamed."""
    while time.monotonic() < until_at:
        number = next(numbers)
        long = "and the tide " * 2_000 if number % 10 == 0 else ""
        messages = [{"role": "user", "content": f"harbour {number:x} {long}{hash(number):x}"}]
        namespace = f"n{number % 20_000}"
        if number % 2:
            await client.complete(
                model="m", messages=messages, temperature=0, cache_namespace=namespace
            )
        else:
            async for _ in client.chat(
                model="m", messages=messages, temperature=0, request_id=f"soak-{number}"
            ):
                continue


async def test_memory_stays_within_the_configured_bytes_and_levels_off(
    fleet: tuple[Fleet, str], simulator: Simulator
) -> None:
    running, url = fleet
    simulator.script(lane="soak", tokens=500, chunk_tokens=25)
    numbers = itertools.count()
    found: list[Sample] = []
    clients = [Client(url, tenant=f"t{n}") for n in range(TENANTS)]
    nats = Nats()
    await nats.connect(url)
    try:
        for client in clients:
            await client.connect()
        until_at = time.monotonic() + SOAK_S
        callers = [
            asyncio.create_task(asking(clients[n % TENANTS], numbers, until_at))
            for n in range(CALLERS)
        ]
        for _ in range(SAMPLES):
            await asyncio.sleep(SOAK_S / SAMPLES)
            memory = await stats(clients[0], EXACT)
            shards = await asyncio.gather(*(stats(clients[0], str(n)) for n in range(SHARDS)))
            stored = await nats.jetstream().stream_info("KV_bw_cache")
            found.append(
                Sample(
                    rss=running.rss(),
                    memory=memory.bytes,
                    store=stored.state.bytes,
                    index=sum(shard.bytes for shard in shards),
                    asked=next(numbers),
                )
            )
            assert memory.bytes_max == LIMITS["cache_bytes"]
        await asyncio.gather(*callers)
    finally:
        await nats.close()
        for client in clients:
            await client.aclose()
    kinds = list(found[0].rss)
    report(
        f"\n{found[-1].asked} questions in {SOAK_S:g} s; MiB: "
        + ", ".join(f"{name} {value // MIB}" for name, value in LIMITS.items())
    )
    report("       asked  memory   store   index  " + "".join(f"{kind:>9}" for kind in kinds))
    for number, one in enumerate(found):
        figures = (one.memory / MIB, one.store / MIB, one.index / MIB)
        report(
            f"{(number + 1) * SOAK_S / SAMPLES:5.0f} s {one.asked:6d}"
            + "".join(f"{each:8.2f}" for each in figures)
            + "  "
            + "".join(f"{one.rss[kind]:9.1f}" for kind in kinds)
        )
    assert max(one.memory for one in found) <= LIMITS["cache_bytes"]
    assert max(one.store for one in found) <= LIMITS["cache_store_bytes"]
    # One bound for all shards, which are asked one after the other while entries come and go.
    assert max(one.index for one in found) <= LIMITS["cache_index_bytes"] * 1.02
    quarter = SAMPLES // 4
    for kind in kinds:
        before = max(one.rss[kind] for one in found[quarter : 2 * quarter])
        after = max(one.rss[kind] for one in found[-quarter:])
        assert after <= before * (1 + GROWTH_MAX), f"{kind} grows: {before:.1f} -> {after:.1f} MiB"
