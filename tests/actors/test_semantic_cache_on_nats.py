"""The cache over a real server: its index is made anew from the bucket, and a real process embeds."""

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path

import anyio
import msgspec
import pytest

from breakwater_gateway.cache.actor import Cache
from breakwater_gateway.cache.embed.local import LocalEmbedder
from breakwater_gateway.config.model import CachePolicy, Config, Deployment, Model, Semantic
from breakwater_gateway.router.desks.meaning import Meaning
from breakwater_gateway.runtime.actor import Context
from breakwater_gateway.runtime.bus import Bus
from breakwater_gateway.runtime.clock import Clock
from breakwater_gateway.runtime.metrics import Registry
from breakwater_gateway.runtime.nats_bus import connect_nats
from breakwater_gateway.runtime.telemetry import get_log
from breakwater_protocol import cache as c
from breakwater_protocol.subjects import Subjects

pytestmark = [pytest.mark.anyio, pytest.mark.nats]

SUBJECTS = Subjects()
PATIENCE_S = 30.0

# Counts letters: no model, but the protocol of one, in a process of its own.
PROGRAM = """
import struct, sys
def write(frame):
    sys.stdout.buffer.write(struct.pack("<I", len(frame)) + frame); sys.stdout.buffer.flush()
write(b"26")
while head := sys.stdin.buffer.read(4):
    text = sys.stdin.buffer.read(struct.unpack("<I", head)[0]).decode().lower()
    if text == "die":
        sys.exit(1)
    counts = [float(text.count(chr(97 + i))) + 0.01 for i in range(26)]
    write(b"" if len(text) > 200 else struct.pack("<26f", *counts))
"""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def embedder(tmp_path: Path) -> LocalEmbedder:
    program = tmp_path / "embedder.py"
    program.write_text(PROGRAM)
    return LocalEmbedder("letters", get_log(), program=(sys.executable, str(program)))


def context(bus: Bus, id_: str) -> Context:
    deployment = Deployment(id="a", provider="p", model="a", wire="openai", base_url="http://a")
    policy = CachePolicy(semantic=Semantic(threshold=0.9, shadow=0.0))
    return Context(
        id=id_,
        bus=bus,
        subjects=SUBJECTS,
        clock=Clock(),
        log=get_log(),
        metrics=Registry(),
        config=Config({"m": Model("m", (deployment,), cache=policy)}),
    )


async def test_the_embedder_s_process_answers_in_order_and_is_started_again(tmp_path: Path) -> None:
    local = embedder(tmp_path)
    assert await local.embed("too early", "t") == "no_embedding"
    await local.start()
    try:
        async with asyncio.timeout(PATIENCE_S):
            await local.ready.wait()
            found = await asyncio.gather(*(local.embed(text, "t") for text in ("a", "bb", "c")))
            counts = [[round(x) for x in v[:3].tolist()] for v in found if not isinstance(v, str)]
            assert counts == [[1, 0, 0], [0, 2, 0], [0, 0, 1]]
            assert await local.embed("x" * 201, "t") == "too_long"
            assert await local.embed("die", "t") == "no_embedding"
            await local.ready.wait()
            assert not isinstance(await local.embed("a", "t"), str)
    finally:
        await local.close()
    assert await local.embed("a", "t") == "no_embedding"


async def test_a_program_that_cannot_start_says_why(tmp_path: Path) -> None:
    local = LocalEmbedder(
        "x", get_log(), program=(sys.executable, "-c", "raise SystemExit('no MiniLM is installed')")
    )
    await local.start()
    async with asyncio.timeout(PATIENCE_S):
        while not local.failed:  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.01)
    await local.close()
    assert local.failed == "no MiniLM is installed"


async def test_an_owner_that_comes_after_another_has_all_that_was_stored(
    nats_server: Callable[..., object], tmp_path: Path
) -> None:
    url = nats_server().url  # type: ignore[attr-defined]
    near = await connect_nats(url, name="router/1", role="test")
    meaning = Meaning(context(near, "router"))

    async def look(text: str) -> c.Hit | c.Miss:
        answer: asyncio.Future[c.Hit | c.Miss] = asyncio.get_running_loop().create_future()
        asked = c.Lookup(request="r", tenant="t", partition="p", model="m", text=text)
        meaning.look(asked, answer.set_result, patience_s=2.0)
        return await answer

    async def until(text: str, reason: str) -> c.Hit | c.Miss:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                found = await look(text)
                if (found.reason if isinstance(found, c.Miss) else "hit") == reason:
                    return found
                await asyncio.sleep(0.05)

    async def one_life(name: str, work: Callable[[], object]) -> None:
        bus = await connect_nats(url, name=f"cache/{name}", role="test")
        actor = Cache(context(bus, name), embedder=embedder(tmp_path))
        async with anyio.create_task_group() as tasks:
            await actor.start(tasks)
            await work()  # type: ignore[misc]
            await actor.drain()
            await actor.stop()
            tasks.cancel_scope.cancel()
        await bus.close()

    texts = [f"How do I mend a {word}?" for word in ("lamp", "door", "window", "quilt", "boat")]

    async def fill() -> None:
        await until(texts[0], "empty")
        for text in texts:
            fresh = c.Store(
                request="r",
                tenant="t",
                partition="p",
                model="m",
                text=text,
                digest=text,
                answer=f"With {text}",
                answer_bytes=9,
            )
            meaning.store(fresh)
        for text in texts:
            await until(text, "hit")

    async def check() -> None:
        await until(texts[0], "hit")
        for text in texts:
            hit = await look(text)
            assert isinstance(hit, c.Hit)
            assert hit.digest == text
        stats = await near.ask(
            SUBJECTS.cache_stats.at(c.shard_of("p")),
            msgspec.json.encode(c.StatsRequest()),
            timeout_s=2,
        )
        assert msgspec.json.decode(stats.data, type=c.ShardStats).entries == len(texts)

    try:
        await one_life("first", fill)
        await until(texts[0], "no_owner")
        await one_life("second", check)
    finally:
        await near.close()
