"""Actor: a small shell that owns one state, hears messages and acts on what its pure machine decides.

An actor subscribes in `start`, keeps every task in the group it was given, and stops taking in `drain`.
The supervisor gives it a context, starts it, beats its heart, restarts it when it fails and drains it
on SIGTERM. Nothing else in an actor's life is its own business.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

from anyio.abc import TaskGroup
from msgspec import Struct

from breakwater_gateway.config.model import Config
from breakwater_gateway.runtime.bus import Bus
from breakwater_gateway.runtime.clock import Clock
from breakwater_gateway.runtime.telemetry import Log, Metrics
from breakwater_protocol.events import TargetLoad
from breakwater_protocol.subjects import Subjects


class Load(Struct, frozen=True):
    """What an actor's heartbeat says of it."""

    capacity: int = 0
    in_flight: int = 0
    pools: tuple[str, ...] = ()
    targets: dict[str, TargetLoad] = {}
    view_hash: str = ""


class Context(Struct, frozen=True):
    """All that an actor may reach. `id` is unique in the cluster and legal as a subject token."""

    id: str
    bus: Bus
    subjects: Subjects
    clock: Clock
    log: Log
    metrics: Metrics
    config: Config
    config_revision: int = 0


class Actor(ABC):
    kind: ClassVar[str]
    """`edge`, `router`, `worker`, `health`: the word in heartbeats, logs and `$SRV`."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.config = context.config
        self.config_revision = context.config_revision
        self.draining = False

    @abstractmethod
    async def start(self, tasks: TaskGroup) -> None:
        """Subscribe and start tasks in `tasks`. When it returns, the actor serves."""

    @abstractmethod
    async def drain(self) -> None:
        """Take nothing more, finish what is in hand, flush. The supervisor bounds the time."""

    async def stop(self) -> None:
        """Leave at once: whatever is still in hand is cut and reported. Called after `drain`, always."""
        return

    def on_config(self, config: Config, revision: int) -> None:
        """A new revision is live; what is in flight goes on under the old one."""
        self.config = config
        self.config_revision = revision

    def load(self) -> Load:
        return Load()

    def ready(self) -> str:
        """Empty when the actor can serve; else what it waits for, in a few words."""
        return ""
