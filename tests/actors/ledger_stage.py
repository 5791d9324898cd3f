"""Ledger actors on the memory bus in virtual time, with clocks that a test may put wrong."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import msgspec
from anyio.abc import TaskGroup

from breakwater_gateway.config.model import Budget, Config
from breakwater_gateway.ledger.actor import LOG_NAME, Ledger
from breakwater_gateway.runtime.actor import Context
from breakwater_gateway.runtime.bus import AskTimeout, Bus, NoResponders
from breakwater_gateway.runtime.clock import Clock
from breakwater_gateway.runtime.memory_bus import KeptLog, MemoryBus, MemoryHub
from breakwater_gateway.runtime.metrics import Registry
from breakwater_protocol.events import Alert, BudgetChanged
from breakwater_protocol.ledger import (
    Amount,
    Books,
    CommandReply,
    LeaseAsk,
    LeaseReply,
    LeaseReport,
    Limit,
    Line,
    Operate,
    Query,
    QueryReply,
    ReportReply,
    Reports,
    account_named,
    partition,
    partition_token,
)
from breakwater_protocol.subjects import Subjects

SUBJECTS = Subjects()
NOON = 1_795_000_000.0 - 1_000.0
"""Unix seconds when the loop's clock shows 0; a test begins at 1,000."""

LINE = Line("user:acme/alice", "tokens", "day@UTC", Limit(1000))
TOKEN = partition_token(partition(account_named(LINE.account)))


class SaidNothing:
    """A log that a test may read."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, object]]] = []

    def _note(self, event: str, **facts: object) -> None:
        assert event not in {"task_failed", "handler_failed"}, (event, facts)
        self.events.append((event, facts))

    debug = info = warning = error = exception = _note


class Instance:
    """One ledger actor and its own bus."""

    def __init__(self, name: str, bus: Bus, wall: Callable[[], float], *budgets: Budget) -> None:
        self.bus = bus
        self.skew_s = 0.0
        self.logged = SaidNothing()
        self.ledger = Ledger(
            Context(
                id=name,
                bus=bus,
                subjects=SUBJECTS,
                clock=Clock(seed=1, wall=lambda: wall() + self.skew_s),
                log=self.logged,
                metrics=Registry(),
                config=Config(models={}, budgets=budgets),
            ),
            environment={},
        )
        self.scope = anyio.CancelScope()
        self.started = anyio.Event()

    async def live(self) -> None:
        with self.scope:
            async with anyio.create_task_group() as tasks:
                await self.ledger.start(tasks)
                self.started.set()
                await anyio.sleep_forever()

    @property
    def memory(self) -> MemoryBus:
        assert isinstance(self.bus, MemoryBus)
        return self.bus

    async def kill(self) -> None:
        """As `kill -9` does."""
        bus = self.memory
        for member in list(bus.members):
            bus.hub.remove(member)
        bus.cut = True
        self.scope.cancel()
        await self.ledger.tasks.cancel()


class Stage:
    def __init__(self, tasks: TaskGroup, zero: float) -> None:
        self.tasks = tasks
        self.zero = zero
        """Unix seconds when the loop's clock shows 0."""
        self.hub = MemoryHub(choose=lambda _: 0)
        self.hub.wall = self.wall
        self.bus = MemoryBus("holder", self.hub)
        self.instances: dict[str, Instance] = {}
        self.events: list[BudgetChanged] = []
        self.alerts: list[Alert] = []

    def wall(self) -> float:
        return self.zero + asyncio.get_running_loop().time()

    @property
    def log(self) -> KeptLog:
        return self.hub.logs[LOG_NAME]

    async def listen(self) -> None:
        await self.bus.subscribe(
            SUBJECTS.budget.any(), lambda m: self.events.append(SUBJECTS.budget.decode(m.data))
        )
        await self.bus.subscribe(
            SUBJECTS.alert.any(), lambda m: self.alerts.append(SUBJECTS.alert.decode(m.data))
        )

    async def add(self, name: str, *budgets: Budget) -> Instance:
        instance = Instance(name, MemoryBus(name, self.hub), self.wall, *budgets)
        self.instances[name] = instance
        self.tasks.start_soon(instance.live)
        await instance.started.wait()
        return instance

    def kinds(self, *kinds: str) -> list[str]:
        return [event.kind for event in self.events if not kinds or event.kind in kinds]


async def say(bus: Bus, subject: str, message: object, reply: Any, patience_s: float = 20.0) -> Any:  # noqa: ANN401 - whatever the reply's type is
    """Ask until somebody answers, as holders do."""
    data = message if isinstance(message, bytes) else msgspec.json.encode(message)
    async with asyncio.timeout(patience_s):
        while True:
            try:
                answer = await bus.ask(subject, data, timeout_s=1.0)
            except (NoResponders, AskTimeout):
                await asyncio.sleep(0.05)
                continue
            return msgspec.json.decode(answer.data, type=reply)


async def lease(
    bus: Bus, id_: str, *path: Line, least: int = 10, want: int = 10, seen_seq: int = 0
) -> LeaseReply:
    ask = LeaseAsk(id_, path or (LINE,), Amount(tokens=least), Amount(tokens=want), seen_seq)
    found: LeaseReply = await say(bus, SUBJECTS.lease.at(TOKEN), ask, LeaseReply)
    return found


async def report(
    bus: Bus, id_: str, spent: int, *, in_flight: int = 0, final: bool = False, seen_seq: int = 0
) -> ReportReply:
    said = LeaseReport(id_, Amount(tokens=spent), Amount(tokens=in_flight), final)
    found: ReportReply = await say(
        bus, SUBJECTS.report.at(TOKEN), Reports((said,), seen_seq), ReportReply
    )
    return found


async def books(bus: Bus, **query: Any) -> Books:  # noqa: ANN401 - of Query
    found: QueryReply = await say(bus, SUBJECTS.books.at(TOKEN), Query(**query), QueryReply)
    assert isinstance(found, Books)
    return found


async def operate(bus: Bus, change: Any) -> CommandReply:  # noqa: ANN401 - of Operate
    found: CommandReply = await say(bus, SUBJECTS.operate.at(TOKEN), Operate(change), CommandReply)
    return found


@asynccontextmanager
async def ledger_stage(*names: str, zero: float = NOON) -> AsyncIterator[Stage]:
    async with anyio.create_task_group() as tasks:
        stage = Stage(tasks, zero)
        await stage.listen()
        for name in names:
            await stage.add(name)
        yield stage
        assert stage.hub.guard.failures == 0
        for instance in stage.instances.values():
            instance.scope.cancel()
            await instance.ledger.stop()
        tasks.cancel_scope.cancel()
