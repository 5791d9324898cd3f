"""The simulator as an actor: it serves HTTP and has nothing to say on the bus."""

from typing import ClassVar

from anyio.abc import TaskGroup

from breakwater_gateway.runtime.actor import Actor, Context, Load
from breakwater_gateway.simulator.server import SimulatorServer

# Streams that are scripted never to end must not hold up a shutdown.
DRAIN_S = 10.0


class Simulator(Actor):
    kind: ClassVar[str] = "simulator"

    def __init__(self, context: Context, host: str, port: int, *, seed: int = 0) -> None:
        super().__init__(context)
        self.host = host
        self.server = SimulatorServer(log=context.log, seed=seed, wall=context.clock.wall)
        self._port = port
        self._serving = False

    @property
    def port(self) -> int:
        """Where it listens; what was asked for until then."""
        return self.server.port or self._port

    async def start(self, tasks: TaskGroup) -> None:  # noqa: ARG002 - it is all callbacks
        """Raises `AddressInUse`."""
        await self.server.start(self.host, self._port)
        self._serving = True
        self.context.log.info("simulator_serves", host=self.host, port=self.server.port)

    async def drain(self) -> None:
        self.draining = True
        self._serving = False
        cut = await self.server.drain(DRAIN_S)
        self.context.log.info("simulator_drained", cut=cut)

    def load(self) -> Load:
        return Load(in_flight=self.server.in_flight)

    def ready(self) -> str:
        return "" if self._serving else "the simulator does not listen"
