"""`breakwater route …`, wired to a live gateway: its configuration, and its views after a moment's listening."""

import asyncio
import os
from typing import TYPE_CHECKING

import msgspec

from breakwater_gateway.cli import output, reach
from breakwater_gateway.cli.config_commands import Unavailable
from breakwater_gateway.cli.live_config import fetch_live
from breakwater_gateway.cli.route_commands import LISTEN_S, route_commands

if TYPE_CHECKING:
    from breakwater_gateway.config.model import Config
    from breakwater_gateway.router.targets import Targets
    from breakwater_gateway.runtime.bus import Bus, Entry, Message


async def look(nats_url: str, as_json: bool) -> "tuple[Config, Targets]":
    from breakwater_gateway.config.codec import BadStored, decode_stored, load_stored
    from breakwater_gateway.config.load import ConfigError
    from breakwater_gateway.router.targets import Targets
    from breakwater_gateway.runtime.bus import BusError
    from breakwater_gateway.runtime.nats_bus import connect_nats

    try:
        config = load_stored(decode_stored(await fetch_live(nats_url)), os.environ)
        bus = await connect_nats(nats_url, name="cli/route", role="cli", log=reach.quiet())
        targets = Targets(config)
        try:
            await _listen(bus, config, targets)
        finally:
            await bus.close()
    except Unavailable as error:
        output.fail(error.message, code=output.UNREACHABLE, as_json=as_json)
    except (BadStored, ConfigError) as error:
        output.fail(
            f"the live configuration cannot be read: {error}", code=output.CONFIG, as_json=as_json
        )
    except BusError as error:
        output.fail(str(error), code=output.UNREACHABLE, as_json=as_json)
    return config, targets


async def _listen(bus: "Bus", config: "Config", targets: "Targets") -> None:
    """Fold what is published: kept breaker states, heartbeats, and attempts that end meanwhile."""
    from breakwater_gateway.runtime.clock import Clock
    from breakwater_protocol.events import BreakerChanged
    from breakwater_protocol.subjects import Subjects

    clock, subjects = Clock(), Subjects()
    bad = 0

    def on_entry(entry: "Entry") -> None:
        nonlocal bad
        if entry.value is not None:
            try:
                targets.fold(msgspec.json.decode(entry.value, type=BreakerChanged))
            except msgspec.MsgspecError:
                bad += 1

    def on_beat(message: "Message") -> None:
        nonlocal bad
        try:
            targets.loads.fold(subjects.heartbeat.decode(message.data), clock.now())
        except msgspec.MsgspecError:
            bad += 1

    def on_attempt(message: "Message") -> None:
        nonlocal bad
        try:
            attempt = subjects.attempt.decode(message.data)
        except msgspec.MsgspecError:
            bad += 1
            return
        deployment = config.deployment(attempt.deployment)
        if deployment is not None:
            targets.heard(attempt, deployment, now=clock.now())
            if attempt.outcome == "rate_limited":
                wait_s = attempt.retry_after_s
                targets.pause(attempt.target, attempt.key, wait_s, now=clock.now())

    watch = await (await bus.store("bw_health")).watch(on_entry)
    await bus.subscribe(subjects.heartbeat.any(), on_beat)
    await bus.subscribe(subjects.attempt.any(), on_attempt)
    await asyncio.sleep(LISTEN_S)
    await watch.close()
    if bad:
        output.note(f"{bad} messages could not be read and count for nothing")


route = route_commands(look)
