"""`breakwater config …`, wired to the live bucket."""

from breakwater_gateway.cli import reach
from breakwater_gateway.cli.config_commands import Unavailable, config_commands


async def fetch_live(nats_url: str) -> bytes:
    """The last revision in `bw_config`. Raises `Unavailable`."""
    from breakwater_gateway.runtime.bus import BusError
    from breakwater_gateway.runtime.nats_bus import connect_nats
    from breakwater_gateway.runtime.service import BUCKET, HISTORY, KEY

    try:
        bus = await connect_nats(nats_url, name="cli/config", role="cli", log=reach.quiet())
        try:
            entry = await (await bus.store(BUCKET, history=HISTORY)).get(KEY)
        finally:
            await bus.close()
    except BusError as error:
        raise Unavailable(str(error)) from None
    if entry is None or entry.value is None:
        raise Unavailable(
            f"{nats_url} holds no configuration yet: start an actor with --config FILE"
        )
    return entry.value


config = config_commands(fetch_live)
