"""A process with one actor, for the tests that send it signals: `python supervised.py <drain seconds>`."""

import asyncio
import sys
from typing import ClassVar

from anyio.abc import TaskGroup

from breakwater_gateway.config.model import Config
from breakwater_gateway.runtime.actor import Actor
from breakwater_gateway.runtime.memory_bus import MemoryBus
from breakwater_gateway.runtime.service import ConfigHolder
from breakwater_gateway.runtime.slot import ActorSpec
from breakwater_gateway.runtime.supervisor import Supervisor
from breakwater_gateway.runtime.telemetry import Registry, configure_logging, get_log
from breakwater_protocol.subjects import Subjects


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


class Slow(Actor):
    kind: ClassVar[str] = "worker"

    async def start(self, tasks: TaskGroup) -> None:
        say("started")

    async def drain(self) -> None:
        say("draining")
        await asyncio.sleep(float(sys.argv[1]))
        say("drained")

    async def stop(self) -> None:
        say("stopped")


async def main() -> int:
    configure_logging("json", "info")
    metrics = Registry()
    log = get_log()
    config = ConfigHolder(b"", lambda _: Config(models={}), log=log, metrics=metrics)
    bus = MemoryBus("process")
    specs = [ActorSpec("worker", Slow)]
    return await Supervisor(bus, Subjects(), specs, config, metrics=metrics, log=log).run()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
