"""How commands about the cache reach it: a bus for one command, every router, every owner of a shard."""

import os
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

from breakwater_gateway.cli import output, reach

if TYPE_CHECKING:
    from breakwater_gateway.runtime.bus import Bus
    from breakwater_protocol.cache import ShardStats

ASK_S: Final = 2.0
GATHER_S: Final = 0.3
"""For routers to say what they hold."""


async def of_routers(bus: "Bus") -> "list[ShardStats]":
    """The exact cache of every router that says so in time."""
    import asyncio

    import msgspec

    from breakwater_gateway.runtime.bus import Message
    from breakwater_protocol import cache as c
    from breakwater_protocol.subjects import Subjects

    subjects = Subjects()
    found: list[ShardStats] = []

    def hear(message: Message) -> None:
        if message.data:
            found.append(msgspec.json.decode(message.data, type=c.ShardStats))

    inbox = bus.open_inbox(hear)
    asked = subjects.cache_stats.encode(c.StatsRequest())
    bus.publish(subjects.cache_stats.at(c.EXACT), asked, reply=inbox.subject)
    await asyncio.sleep(GATHER_S)
    inbox.close()
    return found


async def of_shards(
    bus: "Bus", *, tenant: str | None = None, labels: bool = False
) -> "list[ShardStats]":
    from breakwater_protocol import cache as c
    from breakwater_protocol.subjects import Subjects

    subjects = Subjects()
    asked = subjects.cache_stats.encode(c.StatsRequest(labels=labels, tenant=tenant))
    found = await ask_owners(bus, subjects.cache_stats.at, asked, c.ShardStats)
    return list(found.values())


async def ask_owners(
    bus: "Bus", at: Callable[[str], str], asked: bytes, kind: type[Any], timeout_s: float = ASK_S
) -> dict[str, Any]:
    """The owners' replies, by shard; one without an owner has nothing to say."""
    import msgspec

    from breakwater_gateway.runtime.bus import NoResponders
    from breakwater_protocol.cache import SHARDS

    found = {}
    for number in range(SHARDS):
        try:
            reply = await bus.ask(at(str(number)), asked, timeout_s=timeout_s)
        except NoResponders:
            continue
        found[str(number)] = msgspec.json.decode(reply.data, type=kind)
    return found


def on_bus(
    work: "Callable[[Bus], Awaitable[int]]",
    nats_url: str,
    creds: str | None,
    *,
    as_json: bool,
    mend: str = "",
) -> int:
    """What `work` ends with; a bus that fails, or has nobody who answers, ends the command."""
    import asyncio

    from breakwater_gateway.runtime.bus import BusError

    async def go() -> int:
        async with reach.bus(nats_url, creds, name=f"cli/{os.getpid()}") as bus:
            return await work(bus)

    try:
        return asyncio.run(go())
    except BusError as error:
        message = f"{error}; {mend}" if mend else str(error)
        output.fail(message, code=output.UNREACHABLE, as_json=as_json)
