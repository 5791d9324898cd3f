"""Breakers under fire, in figures: how fast a change is known, one probe in the whole cluster, a dead provider.

uv run pytest -m drill -s tests/drills/test_breaker_drills.py
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import anyio
import pytest
from tests.conftest import NatsProcess
from tests.drills.test_drills import Fleet, started
from tests.e2e.load import load
from tests.e2e.processes import (
    HELLO,
    Gateway,
    Process,
    Simulator,
    config,
    environment,
    report,
    until,
)

from breakwater_gateway.config.model import BreakerPolicy, Config, Deployment, Model, Timeouts
from breakwater_gateway.health.actor import Health
from breakwater_gateway.router.targets import Targets
from breakwater_gateway.runtime.actor import Context
from breakwater_gateway.runtime.bus import Bus, Message
from breakwater_gateway.runtime.clock import Clock
from breakwater_gateway.runtime.metrics import Registry
from breakwater_gateway.runtime.nats_bus import connect_nats
from breakwater_gateway.runtime.telemetry import get_log
from breakwater_protocol import BreakwaterError, Client
from breakwater_protocol.commands import BreakerCommand, ProbeClaim
from breakwater_protocol.events import AttemptFinished, BreakerChanged
from breakwater_protocol.subjects import Subjects

pytestmark = [pytest.mark.anyio, pytest.mark.nats, pytest.mark.drill]

SUBJECTS = Subjects()
TARGET = "openai/gpt-4.1"
LISTENERS = 20
CHANGES = 200
EPOCHS = 200
OUTAGES = 20
"""Of so many the calls before a breaker opens are counted: in a single one there are five."""


def show(what: str, found: object) -> None:
    report(f"\n{what}: {found}")


def one_deployment(policy: BreakerPolicy, total_s: float = 60.0) -> Config:
    deployment = Deployment(
        id=TARGET, provider="openai", model="m", wire="openai", base_url="http://localhost"
    )
    timeouts = Timeouts(total_s=total_s)
    return Config({"m": Model("m", (deployment,), breaker=policy, timeouts=timeouts)})


@asynccontextmanager
async def health(url: str, settings: Config) -> AsyncIterator[Health]:
    bus = await connect_nats(url, name="health/h1", role="health")
    context = Context(
        id="h1",
        bus=bus,
        subjects=SUBJECTS,
        clock=Clock(seed=1),
        log=get_log(),
        metrics=Registry(),
        config=settings,
    )
    actor = Health(context)
    try:
        async with anyio.create_task_group() as tasks:
            await actor.start(tasks)
            await bus.flush()
            yield actor
            await actor.stop()
            tasks.cancel_scope.cancel()
    finally:
        await bus.close()


@asynccontextmanager
async def connections(url: str, count: int) -> AsyncIterator[list[Bus]]:
    async with AsyncExitStack() as stack:
        buses: list[Bus] = []
        for number in range(count):
            bus = await connect_nats(url, name=f"router/r{number}", role="router")
            stack.push_async_callback(bus.close)
            buses.append(bus)
        yield buses


def percentile(values: list[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


async def test_how_soon_a_change_is_known_everywhere(
    nats_server: Callable[..., NatsProcess],
) -> None:
    """From health's decision to the routing view of each of twenty routers on connections of their own."""
    settings = one_deployment(BreakerPolicy())
    url = nats_server().url
    late_ms: list[float] = []
    heard = asyncio.Event()
    seen: Counter[int] = Counter()
    async with health(url, settings), connections(url, LISTENERS) as buses:
        views = [Targets(settings) for _ in buses]

        def hear(view: Targets, message: Message) -> None:
            changed = SUBJECTS.health.decode(message.data)
            view.fold(changed)
            late_ms.append((time.time() - changed.at) * 1000)
            seen[changed.epoch] += 1
            if seen[changed.epoch] == LISTENERS:
                heard.set()

        for bus, view in zip(buses, views, strict=True):
            await bus.subscribe(SUBJECTS.health.any(), partial(hear, view))
            await bus.flush()
        for turn in range(CHANGES):
            heard.clear()
            action = "trip" if turn % 2 == 0 else "reset"
            await buses[0].ask(
                SUBJECTS.breaker.at(action),
                SUBJECTS.breaker.encode(BreakerCommand(TARGET, 60.0 if turn % 2 == 0 else None)),
                timeout_s=5.0,
            )
            async with asyncio.timeout(10):
                await heard.wait()
        states = {view.breakers.epoch(TARGET) for view in views}
    show(
        f"a change of state known to {LISTENERS} routers, {CHANGES} changes, ms",
        {
            "p50": round(percentile(late_ms, 0.5), 2),
            "p99": round(percentile(late_ms, 0.99), 2),
            "max": round(max(late_ms), 2),
        },
    )
    assert len(late_ms) == LISTENERS * CHANGES
    assert states == {CHANGES}
    assert percentile(late_ms, 0.99) <= 250


async def test_one_probe_an_epoch_in_the_whole_cluster(
    nats_server: Callable[..., NatsProcess],
) -> None:
    """Twenty race for each half-open epoch; some winners are killed with the probe in hand."""
    settings = one_deployment(
        BreakerPolicy(consecutive=2, open_s=0.02, open_cap_s=0.04, ramp_s=0.001), total_s=0.1
    )
    url = nats_server().url
    chance = random.Random(7)
    won: Counter[int] = Counter()
    killed: list[int] = []
    probing: set[int] = set()
    at_once: list[int] = []
    epochs: set[int] = set()
    enough = asyncio.Event()
    races: set[asyncio.Task[None]] = set()

    def attempt(bus: Bus, outcome: str, epoch: int) -> None:
        event = AttemptFinished(
            *("r", 1, "t", "m", TARGET, TARGET, "openai", "w", outcome, time.time()),
            epoch=epoch,
            failure="" if outcome == "ok" else outcome,
            against_target=outcome == "server_error",
        )
        bus.publish(SUBJECTS.attempt.at(TARGET, outcome), SUBJECTS.attempt.encode(event))

    async def race(bus: Bus, number: int, epoch: int) -> None:
        subject = SUBJECTS.probe.at(TARGET, str(epoch))
        claim = SUBJECTS.probe.encode(ProbeClaim(f"r{number}"))
        bus.publish(subject, claim)
        if not await bus.claim(subject, claim, ttl_s=6.0):
            return
        won[epoch] += 1
        probing.add(epoch)
        at_once.append(len(probing))
        if len(killed) < 4 and epoch % 40 == 0:
            killed.append(epoch)  # with the probe in hand: nobody hears of it again
            probing.discard(epoch)
            return
        await asyncio.sleep(0.002)
        probing.discard(epoch)
        attempt(bus, chance.choice(("ok", "ok", "server_error", "cancelled")), epoch)

    async with health(url, settings), connections(url, LISTENERS) as buses:

        def hear(bus: Bus, number: int, message: Message) -> None:
            changed = SUBJECTS.health.decode(message.data)
            if changed.state == "half_open":
                epochs.add(changed.epoch)
                if len(epochs) >= EPOCHS:
                    enough.set()
                task = asyncio.create_task(race(bus, number, changed.epoch))
                races.add(task)
                task.add_done_callback(races.discard)
            elif changed.state == "closed" and number == 0:
                for _ in range(2):
                    attempt(bus, "server_error", changed.epoch)

        for number, bus in enumerate(buses):
            await bus.subscribe(
                SUBJECTS.health.any(),
                partial(hear, bus, number),
            )
            await bus.flush()
        for _ in range(2):
            attempt(buses[0], "server_error", 0)
        async with asyncio.timeout(120):
            await enough.wait()
        while races:
            await asyncio.gather(*races)
    show(
        f"{len(epochs)} half-open epochs, {LISTENERS} claimants",
        {
            "probes": sum(won.values()),
            "most in one epoch": max(won.values()),
            "most at once": max(at_once),
            "probers killed": len(killed),
            "epochs after a killed one that were probed": sum(won[epoch + 1] for epoch in killed),
        },
    )
    assert max(won.values()) == 1
    assert max(at_once) == 1
    assert killed
    assert all(won[epoch + 1] == 1 for epoch in killed)


PROBED = """\
  probed:
    deployments: [{model: probed/m, id: probed}]
    retry: {attempts: 1}
    timeouts: {total: 1s}
    breaker: {consecutive: 1, open: 60ms, open_cap: 80ms}
    cache: {exact: off}
"""
PROCESSES, ROUTERS_EACH = 4, 5
CROWD = 24
"""Requests at once when a breaker is half open: about one a router."""


class Cluster:
    """Health, two workers, and twenty routers in four processes, which can be replaced."""

    def __init__(self, directory: Path, nats: str, settings: str) -> None:
        self._directory, self.nats = directory, nats
        self.config = directory / "breakwater.yaml"
        self.config.write_text(settings)
        self._started = 0
        self.running: dict[str, Process] = {}
        for name in ("health", "worker-0", "worker-1"):
            kind = name.partition("-")[0]
            arguments = ["run", kind, "--nats", nats, "--config", str(self.config)]
            self.running[name] = Process(directory / name, *arguments)
        for name in list(self.running):
            until(partial(started, self.running[name]), "it serves")
        for place in range(PROCESSES):
            self.start(place)
        for place in range(PROCESSES):
            until(partial(self.serves, place), "its routers serve")

    def start(self, place: int) -> None:
        self._started += 1
        self.running[f"routers-{place}"] = Process(
            self._directory / f"routers-{place}-{self._started}",
            self.nats,
            str(ROUTERS_EACH),
            module="tests.drills.many_routers",
            env=environment(PYTHONPATH=str(Path(__file__).parents[2])),
        )

    def serves(self, place: int) -> bool:
        return self.running[f"routers-{place}"].stderr.count("actor_started") == ROUTERS_EACH

    def discard(self) -> None:
        for process in self.running.values():
            process.discard()


async def test_one_probe_an_epoch_as_the_provider_counts_them(
    tmp_path: Path, simulator: Simulator, nats_server: Callable[..., NatsProcess]
) -> None:
    """Twenty whole routers; now and then a process of five is killed while the probe is under way."""
    simulator.script(lane="probed", first_token_ms=25, faults=[{"class": "server_error"}])
    text = config(simulator, tail=PROBED)
    provider = (
        f'providers:\n  probed: {{wire: openai, base_url: "{simulator.base_url("probed")}"}}\n'
    )
    cluster = Cluster(
        tmp_path,
        nats_server(max_file_store="4GB").url,
        text.replace("providers:\n", provider, 1),
    )
    half_open: list[int] = []
    heard = asyncio.Event()
    killed: list[int] = []
    answered: Counter[str] = Counter()
    probed: Counter[int] = Counter()
    asked: set[asyncio.Task[None]] = set()
    try:
        async with Client(cluster.nats) as client:

            async def follow() -> None:
                async for message in client.listen(SUBJECTS.health.any()):
                    changed = SUBJECTS.health.decode(message.data)
                    if changed.state == "half_open":
                        half_open.append(changed.epoch)
                        heard.set()

            async def count() -> None:
                async for message in client.listen(SUBJECTS.attempt.any()):
                    probed[SUBJECTS.attempt.decode(message.data).epoch] += 1

            async def ask() -> None:
                try:
                    await client.complete(model="probed", messages=HELLO, stall_timeout_s=5)
                    answered["ok"] += 1
                except BreakwaterError as error:
                    answered[getattr(error, "code", "") or type(error).__name__] += 1

            listening = [asyncio.create_task(follow()), asyncio.create_task(count())]
            await asyncio.sleep(2.0)
            await ask()  # the first failure opens it
            while len(half_open) < EPOCHS:
                async with asyncio.timeout(20):
                    await heard.wait()
                heard.clear()
                for _ in range(CROWD):
                    task = asyncio.create_task(ask())
                    asked.add(task)
                    task.add_done_callback(asked.discard)
                if len(half_open) // 40 > len(killed):
                    place = len(killed) % PROCESSES
                    await asyncio.sleep(0.01)
                    cluster.running[f"routers-{place}"].kill()
                    killed.append(half_open[-1])
                    cluster.start(place)
            await asyncio.gather(*asked)
            await asyncio.sleep(1.0)
            for task in listening:
                task.cancel()
    finally:
        simulator.script(lane="probed")
        cluster.discard()
    lane = simulator.lane("probed")
    show(
        f"{len(half_open)} half-open epochs, {PROCESSES * ROUTERS_EACH} routers in {PROCESSES} processes",
        {
            "calls at the provider": lane["started"],
            "most at once there": lane["in_flight_peak"],
            "most of one epoch": max(probed.values()),
            "processes killed": len(killed),
            "requests": dict(answered),
        },
    )
    assert lane["in_flight_peak"] == 1
    assert max(probed.values()) == 1
    # Beside the probes only the first call, which opened it.
    assert lane["started"] <= len(set(half_open)) + 1
    assert lane["started"] >= EPOCHS // 2
    assert len(killed) >= 4


DOWN = """\
  down:
    deployments: [{model: spare-bad/m, id: down}]
"""


async def test_a_provider_that_is_down_at_a_hundred_requests_a_second(
    tmp_path: Path, simulator: Simulator
) -> None:
    simulator.script(lane="spare-bad", faults=[{"class": "server_error"}])
    gateway = Gateway(tmp_path / "up", config=config(simulator, tail=DOWN))
    changes: list[BreakerChanged] = []
    calls: list[AttemptFinished] = []
    begun: list[float] = []
    rate, length_s = 100, 25.0
    try:
        async with Client(gateway.nats) as client:

            async def listen(subject: str, take: Callable[[bytes], None]) -> None:
                async for heard in client.listen(subject):
                    take(heard.data)

            listening = [
                asyncio.create_task(
                    listen(
                        SUBJECTS.health.any(),
                        lambda data: changes.append(SUBJECTS.health.decode(data)),
                    )
                ),
                asyncio.create_task(
                    listen(
                        SUBJECTS.attempt.any(),
                        lambda data: calls.append(SUBJECTS.attempt.decode(data)),
                    )
                ),
            ]
            await asyncio.sleep(0.2)

            async def ask() -> None:
                begun.append(time.time())
                try:
                    await client.complete(model="down", messages=HELLO)
                except BreakwaterError:
                    return
                raise AssertionError("a provider that is down has answered")

            async def storm(seconds: float) -> None:
                asked = []
                began = time.monotonic()
                for number in range(int(rate * seconds)):
                    await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
                    asked.append(asyncio.create_task(ask()))
                await asyncio.gather(*asked)
                await asyncio.sleep(0.2)

            await storm(length_s)
            long = len(begun)
            for _ in range(OUTAGES):
                reset = SUBJECTS.breaker.encode(BreakerCommand("down"))
                await client.ask(SUBJECTS.breaker.at("reset"), reset)
                await storm(0.5)
            for task in listening:
                task.cancel()
        gateway.end()
    finally:
        simulator.script(lane="spare-bad")
        gateway.discard()
    # Each time it opens out of a closed state: its first outage, and those after it was reset.
    fresh = [change for change in changes if (change.state, change.previous) == ("open", "closed")]
    resets = [change for change in changes if change.state == "closed"]
    calls_before = requests_before = 0
    for since, opened in zip([None, *resets], fresh, strict=True):
        closed_at, epoch = (0.0, 0) if since is None else (since.at, since.epoch)
        calls_before += sum(c.epoch == epoch and c.at <= opened.at for c in calls)
        requests_before += sum(closed_at <= at <= opened.at for at in begun)
    end = resets[0].at
    openings = [change for change in changes if change.state == "open" and change.at < end]
    calls = [call for call in calls if call.at < end]
    first = openings[0].at
    # Calls that were under way when it opened are no decision of the open breaker's.
    under_way = [call for call in calls if call.at > first and call.epoch == 0]
    after = [call for call in calls if call.at > first and call.epoch != 0]
    show(
        f"a provider down, {rate} requests a second for {length_s:g} s",
        {
            "requests": long,
            f"calls before it opened, {len(fresh)} outages": calls_before,
            "a request": round(calls_before / requests_before, 2),
            "under way then": len(under_way),
            "openings": len(openings),
            "calls after": len(after),
        },
    )
    assert calls_before / requests_before <= 1.2
    assert len(after) <= len(openings)


PAIR = """\
  pair:
    deployments:
      - {model: spare-bad/m, id: pair-bad, order: 0}
      - {model: spare-good/m, id: pair-good, order: 1}
    breaker: {open: 20s}
"""


async def test_health_dead_for_a_minute(
    tmp_path: Path, simulator: Simulator, nats_server: Callable[..., NatsProcess]
) -> None:
    """No request fails for it, and a deployment that fails meanwhile is left alone by each router itself."""
    simulator.script(lane="spare-good", model="m", first_token_ms=50, tokens=8, tokens_per_s=50)
    fleet = Fleet(
        tmp_path, nats_server(max_file_store="4GB").url, simulator, config(simulator, tail=PAIR)
    )
    attempts: Counter[str] = Counter()
    try:
        async with Client(fleet.nats) as client:

            async def count() -> None:
                async for heard in client.listen(SUBJECTS.attempt.any()):
                    event = SUBJECTS.attempt.decode(heard.data)
                    attempts[event.target] += 1

            counting = asyncio.create_task(count())
            async with load("pair", http=fleet.urls, nats=fleet.nats, callers=4) as found:
                await found.good(30)
                for place in range(2):
                    fleet.running[f"health-{place}"].kill()
                await asyncio.sleep(10)
                simulator.script(lane="spare-bad", faults=[{"class": "server_error"}])
                attempts.clear()
                await asyncio.sleep(50)
                alone = Counter(attempts)
                fleet.start("health-0")
                await found.good(30)
            counting.cancel()
    finally:
        simulator.script(lane="spare-bad")
        fleet.discard()
    show("health killed with -9 for 60 s", found)
    show("calls meanwhile, with the first deployment failing for 50 s", dict(alone))
    assert not found.bad()
    assert alone["pair-bad"] < 0.1 * alone["pair-good"]
