"""A process of several routers over one connection: `python -m tests.drills.many_routers URL NUMBER`."""

import asyncio
import sys

from breakwater_gateway.cli.process import decode_config
from breakwater_gateway.router.actor import Router
from breakwater_gateway.runtime.logs import configure_logging
from breakwater_gateway.runtime.metrics import Registry
from breakwater_gateway.runtime.nats_bus import connect_nats
from breakwater_gateway.runtime.service import BUCKET, HISTORY, KEY, ConfigHolder
from breakwater_gateway.runtime.slot import ActorSpec
from breakwater_gateway.runtime.supervisor import Supervisor
from breakwater_gateway.runtime.telemetry import get_log
from breakwater_protocol.subjects import Subjects


async def main(url: str, number: int) -> None:
    bus = await connect_nats(url, name="many-routers", role="router")
    store = await bus.store(BUCKET, history=HISTORY)
    entry = await store.get(KEY)
    if entry is None or entry.value is None:
        sys.exit("there is no configuration yet: start an actor with one first")
    log, metrics = get_log(), Registry()
    holder = ConfigHolder(entry.value, decode_config, log=log, metrics=metrics)
    specs = [ActorSpec("router", Router) for _ in range(number)]
    await Supervisor(bus, Subjects(), specs, holder, metrics=metrics, log=log).run()


if __name__ == "__main__":
    configure_logging()
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
