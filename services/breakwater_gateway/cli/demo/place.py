"""Where the tour takes place: a NATS server, simulated providers and two processes of actors, all its own."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final, TypeVar

import httpx
import msgspec
from msgspec import Struct

from breakwater_gateway.runtime.embedded import start_nats_server
from breakwater_protocol import Client
from breakwater_protocol.events import BreakerChanged, BudgetChanged, RequestFinished
from breakwater_protocol.subjects import Subject, Subjects

START_S: Final = 20.0
STEP_S: Final = 15.0
POLL_S: Final = 0.02
SERVING: Final = ("edge", "router", "worker", "health", "ledger", "cache")
VICTIM_POOL: Final = "victim"

T = TypeVar("T")


class TourFailed(Exception):
    """A step did not show what it should: the sentence says what was missing."""


class _Ready(Struct):
    port: int


class Place:
    """What the steps use."""

    def __init__(self, client: Client, root_url: str, provider: httpx.AsyncClient) -> None:
        self.client = client
        self.root_url = root_url
        self.subjects = Subjects()
        self.breakers: list[BreakerChanged] = []
        self.budgets: list[BudgetChanged] = []
        self.requests: list[RequestFinished] = []
        self.victim: asyncio.subprocess.Process | None = None
        self._provider = provider

    async def script(self, lane: str, **script: object) -> None:
        """What the provider `lane` does from now on; nothing more said: it answers well."""
        answer = await self._provider.post("/__control/script", json={"lane": lane, **script})
        answer.raise_for_status()

    async def calls(self, lane: str) -> int:
        """How many calls the provider has seen."""
        stats = (await self._provider.get("/__control/stats")).raise_for_status().json()
        return int(stats["lanes"].get(lane, {}).get("started", 0))

    async def until(self, true: Callable[[], T | None], what: str, within_s: float = STEP_S) -> T:
        """What `true` says, once it is not falsy. Raises `TourFailed` that names `what`."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + within_s
        while not (found := true()):
            if loop.time() > deadline:
                raise TourFailed(f"not within {within_s:g} s: {what}")
            await asyncio.sleep(POLL_S)
        return found

    def changes(self, target: str) -> list[str]:
        """The states that a target's breaker went through."""
        return [change.state for change in self.breakers if change.target == target]

    async def follow(self) -> None:
        """Hears what is published, as anybody on the bus can."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow(self.subjects.health, self.breakers))
            tasks.create_task(self._follow(self.subjects.budget, self.budgets))
            tasks.create_task(self._follow(self.subjects.request, self.requests))

    async def _follow(self, subject: Subject[T], heard: list[T]) -> None:
        async for message in self.client.listen(subject.any()):
            heard.append(subject.decode(message.data))  # noqa: PERF401 - it is read while it grows


@asynccontextmanager
async def opened(directory: Path, config: Callable[[str], str]) -> AsyncIterator[Place]:
    """`config`: the text of the configuration for a simulator's root URL. Raises `TourFailed`."""
    async with AsyncExitStack() as stack:
        nats = await start_nats_server(directory / "nats", 0)
        stack.push_async_callback(nats.stop)
        simulator = await _start(
            directory, "simulator", "breakwater_gateway.simulator", "--port", "0"
        )
        stack.push_async_callback(_end, simulator)
        provider_url = f"http://127.0.0.1:{await _port_of(simulator)}"
        file = directory / "breakwater.yaml"
        file.write_text(config(provider_url), encoding="utf-8")
        port = _free_port()
        common = ("--nats", nats.url, "--config", str(file))
        serving = await _run(directory, *SERVING, *common, "--port", str(port))
        stack.push_async_callback(_end, serving)
        victim = await _run(directory, "worker", *common, "--pool", VICTIM_POOL)
        stack.push_async_callback(_end, victim)
        root_url = f"http://127.0.0.1:{port}"
        provider = httpx.AsyncClient(base_url=provider_url, trust_env=False, timeout=STEP_S)
        await stack.enter_async_context(provider)
        await _served(root_url, serving, directory)
        client = await stack.enter_async_context(Client(nats.url, name="demo"))
        place = Place(client, root_url, provider)
        place.victim = victim
        following = asyncio.create_task(place.follow())
        stack.push_async_callback(_cancelled, following)
        yield place


async def _run(directory: Path, *arguments: str) -> asyncio.subprocess.Process:
    return await _start(directory, arguments[0], "breakwater_gateway", "run", *arguments)


async def _start(
    directory: Path, name: str, module: str, *arguments: str
) -> asyncio.subprocess.Process:
    with (directory / f"{name}.log").open("ab") as log:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", module, *arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE if name == "simulator" else log,
            stderr=log,
            start_new_session=True,
            env=dict(os.environ),
        )


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(5):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


async def _cancelled(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.wait([task])


async def _port_of(simulator: asyncio.subprocess.Process) -> int:
    if simulator.stdout is None:
        raise TourFailed("the simulator has no output")
    async with asyncio.timeout(START_S):
        line = await simulator.stdout.readline()
    try:
        return msgspec.json.decode(line, type=_Ready).port
    except msgspec.MsgspecError:
        raise TourFailed("the simulator did not start") from None


async def _served(root_url: str, serving: asyncio.subprocess.Process, directory: Path) -> None:
    deadline = asyncio.get_running_loop().time() + START_S
    async with httpx.AsyncClient(trust_env=False, timeout=2) as http:
        while True:
            try:
                if (await http.get(root_url + "/readyz")).status_code == 200:
                    return
            except httpx.HTTPError as error:
                reason = repr(error)
            else:
                reason = "not ready"
            if serving.returncode is not None:
                said = (directory / f"{SERVING[0]}.log").read_text(errors="replace")[-500:]
                raise TourFailed(f"the actors ended with {serving.returncode}: {said}")
            if asyncio.get_running_loop().time() > deadline:
                raise TourFailed(f"the actors did not serve within {START_S:g} s: {reason}")
            await asyncio.sleep(POLL_S)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
