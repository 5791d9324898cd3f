"""What a hit costs: `uv run python -m ops.bench.cache`.

First CPU by step, of the cache's own code in a router (thread time, the best of several batches). Then a hit
over NATS beside a round trip to the same process, in turns: a router that has the answer in memory, and two
echoes, one of the answer's body and one of as many bytes as a hit has in all, served by one other process over an
embedded server. What the router does after its answer, its event and its log line, falls on all of them alike.
"""

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import anyio
import msgspec
import uvloop
from ops.bench.parts import REQUEST, cost_us

from breakwater_gateway.cache import entry as entries
from breakwater_gateway.cache.entry import Entry
from breakwater_gateway.cache.exact import Exact
from breakwater_gateway.cache.key import Key, Keys, head_of, key_of
from breakwater_gateway.config.model import CachePolicy, Config, Deployment, Model
from breakwater_gateway.router.actor import Router
from breakwater_gateway.router.desks.cache import CacheDesk
from breakwater_gateway.router.ladder import Ladder
from breakwater_gateway.router.life import Life
from breakwater_gateway.router.options import Options
from breakwater_gateway.router.plan import Envelope, Plan
from breakwater_gateway.router.requests import decode_request
from breakwater_gateway.runtime.actor import Context
from breakwater_gateway.runtime.bus import Message
from breakwater_gateway.runtime.clock import Clock
from breakwater_gateway.runtime.embedded import start_nats_server
from breakwater_gateway.runtime.memory_bus import MemoryBus
from breakwater_gateway.runtime.metrics import Registry
from breakwater_gateway.runtime.nats_bus import NatsBus, connect_nats
from breakwater_gateway.runtime.tasks import TaskSet
from breakwater_gateway.runtime.telemetry import get_log
from breakwater_protocol import headers as h
from breakwater_protocol.chat import ChatRequest, Usage
from breakwater_protocol.subjects import Subjects

ASKS: Final = 500
ROUNDS: Final = 12
TEXT: Final = "A breakwater keeps the sea out of the harbour. " * 20
ANSWER: Final = json.dumps(
    {
        "id": "chatcmpl-A1b2C3d4E5f6G7h8",
        "object": "chat.completion",
        "created": 1_795_000_000,
        "model": "gpt-4o-2024-11-20",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": TEXT},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 400, "completion_tokens": 180, "total_tokens": 580},
    }
).encode()
CHUNK: Final = json.dumps(
    {
        "id": "chatcmpl-A1b2C3d4E5f6G7h8",
        "object": "chat.completion.chunk",
        "created": 1_795_000_000,
        "model": "gpt-4o-2024-11-20",
        "choices": [{"index": 0, "delta": {"content": " word"}, "finish_reason": None}],
    }
).encode()
LAST: Final = CHUNK.replace(b'"finish_reason": null', b'"finish_reason": "stop"')
SUBJECTS: Final = Subjects()
HEADERS: Final = {
    h.REQUEST_ID: 28,
    h.MODEL: 10,
    h.RUNG: 7,
    h.CACHE: 3,
    h.ATTEMPTS: 1,
    h.CACHE_ID: 65,
    h.DEPLOYMENT: 1,
    h.CACHE_AGE: 1,
    h.COST_USD: 11,
    h.OVERHEAD_MS: 4,
}
"""The fields of a hit, and how long each is."""
MODEL: Final = Model(
    "main-model",
    (Deployment("a", "openai", "gpt-4o", "openai", "https://api.openai.com/v1"),),
    cache=CachePolicy(sampled=True),
)
CONFIG: Final = Config({"main-model": MODEL})


def asked() -> bytes:
    fields = json.loads(REQUEST)
    fields.update(model="main-model", stream=False, temperature=0)
    return json.dumps(fields).encode()


BODY: Final = asked()


def entry_for(key: Key, *, lines: int = 0) -> Entry:
    return Entry(
        tenant="default",
        api="chat",
        model="main-model",
        digest=key.digest,
        partition=key.partition,
        form="lines" if lines else "body",
        payload=b"\n".join([CHUNK] * lines + [LAST]) if lines else ANSWER,
        stored_at=time.time(),
        fresh_s=3_600,
        kept_s=3_600,
        usage=Usage(input=400, output=180),
        cost_nano_usd=2_800_000,
        deployment="a",
    )


class Nowhere(MemoryBus):
    """Takes what is published: what a bus costs is measured elsewhere."""

    def publish(self, subject: str, data: bytes = b"", **rest: object) -> None:
        del subject, data, rest


def context(bus: MemoryBus) -> Context:
    return Context(
        id="router",
        bus=bus,
        subjects=SUBJECTS,
        clock=Clock(seed=1),
        log=get_log(process="bench"),
        metrics=Registry(),
        config=CONFIG,
    )


def life_of(body: bytes, clock: Clock) -> Life:
    request = decode_request(body, api="chat", limit=1 << 20)
    assert isinstance(request, ChatRequest)
    now = clock.now()
    return Life(
        request_id="req_1",
        tenant="default",
        api="chat",
        reply="_INBOX.x.1",
        body=body,
        asked=request,
        model=MODEL,
        options=Options(),
        plan=Plan(policy=MODEL.retry, envelope=Envelope(attempts_max=3, deadline=now + 60)),
        ladder=Ladder(()),
        began=now,
    )


async def by_step() -> None:
    around = context(Nowhere("bench"))
    served: list[Life] = []

    def nothing(*_: object, **__: object) -> None:
        return

    desk = CacheDesk(
        around,
        tasks=TaskSet(around.log),
        begin=nothing,
        stop=nothing,
        answered=served.append,
        ended=nothing,
        gave_up=nothing,
        failed=nothing,
        cheapest=lambda _: 0,
    )
    life = life_of(BODY, around.clock)
    desk.look(life)
    assert life.key is not None
    desk.kept.memory.put(entry_for(life.key))

    head = head_of(tenant="t", scope="tenant", api="chat", model="m", points_to="p")
    keys, exact = Keys(), Exact(1 << 26)
    plain = key_of(head, BODY, api="chat")
    assert isinstance(plain, Key)
    held = exact.put(entry_for(plain))
    assert held is not None
    whole = held.template(stream=False, usage=False)
    stored = entries.encode(entry_for(plain))
    stream = exact.put(entry_for(msgspec.structs.replace(plain, digest="d" * 64), lines=100))
    assert stream is not None
    chunks = stream.template(stream=True, usage=True)
    lives = [life_of(BODY, around.clock) for _ in range(200_000)]

    def hit() -> None:
        desk.look(lives.pop())

    now = time.time()
    steps: dict[str, Callable[[], object]] = {
        f"key of a body of {len(BODY)} bytes, seen before": lambda: keys.of(head, BODY, api="chat"),
        "… seen for the first time": lambda: key_of(head, BODY, api="chat"),
        "memory, by key": lambda: exact.get(plain.digest, now),
        f"an answer of {len(ANSWER)} bytes with an id and a time of its own": lambda: whole.filled(
            "x" * 24, 1_795_000_001
        ),
        "a stream of 101 chunks with the same": lambda: chunks.filled("x" * 24, 1_795_000_001),
        "may this answer be kept?": lambda: entries.unfit("chat", "body", ANSWER),
        "an entry out of the bucket": lambda: entries.read(
            stored,
            digest=plain.digest,
            tenant="default",
            api="chat",
            model="main-model",
            answer_max=1 << 20,
        ),
        "a hit, all of the cache's code (the bus aside)": hit,
    }
    print("CPU, µs")
    for name, step in steps.items():
        print(f"{cost_us(step):8.2f}  {name}")
    await asyncio.sleep(0.1)
    assert served
    assert served[-1].verdict == "hit"


# ---------------------------------------------------------------- over NATS


async def serve(url: str) -> None:
    """A router with the answer in memory, and an echo of it."""
    bus = await connect_nats(url, name="bench/router", role="router")
    around = msgspec.structs.replace(context(MemoryBus("x")), bus=bus)
    router = Router(around)
    desk = router._cache  # noqa: SLF001 - what a first request would have left
    life = life_of(BODY, around.clock)
    desk.look(life)
    assert life.key is not None

    def echo(message: Message) -> None:
        bus.publish(message.reply, ANSWER)

    def answer(message: Message) -> None:
        bus.publish(message.reply, ANSWER, headers=facts)

    facts = {name: "0" * length for name, length in HEADERS.items()}
    # Subscribed as routers are: any subject of a kind, one of a group.
    await bus.subscribe("bench.echo.*", echo, queue="router")
    await bus.subscribe("bench.same.*", answer, queue="router")
    async with anyio.create_task_group() as tasks:
        await router.start(tasks)
        desk.kept.memory.put(entry_for(life.key))
        print("ready", flush=True)
        await anyio.sleep_forever()


async def over_nats() -> None:
    with tempfile.TemporaryDirectory() as folder:
        server = await start_nats_server(Path(folder), 0)
        url = f"nats://127.0.0.1:{server.port}"
        command = [sys.executable, "-m", "ops.bench.cache", "--serve", url]
        said = Path(folder) / "router.log"
        with said.open("wb") as log:
            other = await asyncio.create_subprocess_exec(
                *command, stdout=subprocess.PIPE, stderr=log
            )
        try:
            assert other.stdout is not None
            while b"ready" not in (line := await other.stdout.readline()):
                if not line:
                    raise SystemExit(f"the router ended: {said.read_text()[-2_000:]}")
            bus = await connect_nats(url, name="bench/caller", role="caller")
            rounds = [await one_round(bus) for _ in range(ROUNDS)]
            await bus.close()
        finally:
            other.terminate()
            await other.wait()
            await server.stop()
    # Noise of a shared machine only ever adds: of each kind the round that had least of it.
    bare, same, hit = (min(times) for times in zip(*rounds, strict=True))
    print(
        f"over NATS, p50 of {ASKS}, the best of {ROUNDS} rounds, µs: a round trip {bare:.0f}, one whose"
    )
    print(
        f"reply has the same bytes as a hit's {same:.0f}, a hit {hit:.0f}: {hit / bare:.2f} and",
        end="",
    )
    print(f" {hit / same:.2f} times as long; the middle round")
    print(f"{statistics.median(r[2] / r[0] for r in rounds):.2f} and", end="")
    print(f" {statistics.median(r[2] / r[1] for r in rounds):.2f} times")


async def one_round(bus: NatsBus) -> tuple[float, float, float]:
    """The middle times of an echo, of one that says as much as a hit does, and of a hit; µs."""
    subjects = ("bench.echo.default", "bench.same.default", "bw.v1.chat.default")
    took: tuple[list[float], ...] = ([], [], [])
    for number in range(ASKS):
        # What went before leaves its mark on the caches of the machine: each in turn.
        for subject, times in zip(subjects, took, strict=True):
            begun = time.perf_counter()
            reply = await bus.ask(subject, BODY, timeout_s=5)
            times.append(time.perf_counter() - begun)
            if number:
                continue
            if subject.startswith("bw."):
                assert reply.headers["breakwater-cache"] == "hit", reply
            if not subject.startswith("bench.echo"):
                sizes = {name: len(value) for name, value in reply.headers.items()}
                assert sizes == HEADERS, sizes
    bare, same, hit = (statistics.median(times) * 1e6 for times in took)
    return bare, same, hit


def main() -> None:
    if "--serve" in sys.argv:
        uvloop.run(serve(sys.argv[-1]))
        return
    uvloop.run(by_step())
    uvloop.run(over_nats())


if __name__ == "__main__":
    main()
