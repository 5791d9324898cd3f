"""Candidates for one lead, whose owners tell what happened to them."""

import asyncio
from collections.abc import Callable

import anyio
from anyio.abc import TaskGroup

from breakwater_gateway.config.model import Config
from breakwater_gateway.runtime.actor import Context
from breakwater_gateway.runtime.bus import Bus
from breakwater_gateway.runtime.clock import Clock
from breakwater_gateway.runtime.leading import LEASE_BUCKET, Leadership
from breakwater_gateway.runtime.metrics import Registry
from breakwater_gateway.runtime.telemetry import get_log
from breakwater_protocol.subjects import Subjects

KEY = "harbour"


class Candidate:
    """An owner that takes as long as it is told to, and fails as it is told to."""

    def __init__(self, name: str, bus: Bus, tell: Callable[[str], None]) -> None:
        self.name = name
        self.bus = bus
        self.leadership = Leadership(
            Context(
                id=name,
                bus=bus,
                subjects=Subjects(),
                clock=Clock(),
                log=get_log(),
                metrics=Registry(),
                config=Config({}),
            ),
            KEY,
            self,
        )
        self.reads_s = 0.0
        self.begins_s = 0.0
        self.fails: list[Exception] = []
        self.generations: list[int] = []
        self._tell = tell

    def leads(self) -> bool:
        return self.leadership.leads()

    async def catch_up(self) -> None:
        self._tell(f"{self.name} reads")
        await asyncio.sleep(self.reads_s)
        if self.fails:
            raise self.fails.pop(0)

    async def lead(self) -> None:
        assert self.leads()
        self.generations.append(self.leadership.generation)
        await asyncio.sleep(self.begins_s)
        self._tell(f"{self.name} leads")

    def follow(self) -> None:
        assert not self.leads()
        self._tell(f"{self.name} follows")

    async def leave(self) -> None:
        self._tell(f"{self.name} leaves")


class Harbour:
    def __init__(self, tasks: TaskGroup) -> None:
        self.tasks = tasks
        self.story: list[str] = []
        self.candidates: dict[str, Candidate] = {}
        self._more = anyio.Event()

    def tell(self, what: str) -> None:
        self.story.append(what)
        self._more.set()
        self._more = anyio.Event()

    def candidate(self, name: str, bus: Bus) -> Candidate:
        self.candidates[name] = Candidate(name, bus, self.tell)
        return self.candidates[name]

    async def add(self, name: str, bus: Bus) -> Candidate:
        candidate = self.candidate(name, bus)
        await candidate.leadership.start(self.tasks)
        return candidate

    def leaders(self) -> list[str]:
        return [name for name, each in self.candidates.items() if each.leads()]

    async def told(self, what: str, *, times: int = 1, patience_s: float = 20.0) -> None:
        async with asyncio.timeout(patience_s):
            while self.story.count(what) < times:
                await self._more.wait()


async def held_by(bus: Bus) -> bytes | None:
    entry = await (await bus.store(LEASE_BUCKET)).get(KEY)
    return entry.value if entry is not None else None
