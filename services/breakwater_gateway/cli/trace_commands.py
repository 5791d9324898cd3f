"""`breakwater traces`: how far they are exported, and exporting them again."""

import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

import click
import msgspec

from breakwater_gateway.cli import output, reach
from breakwater_gateway.cli.talk import as_json_option
from breakwater_gateway.exporter import cursor as cursors
from breakwater_gateway.exporter.cursor import BUCKET, KEY, STREAM, Cursor

if TYPE_CHECKING:
    from breakwater_gateway.runtime.bus import Bus, EventLog, Store

TRIES: Final = 5
"""Against an exporter that moves the cursor meanwhile."""


class Status(msgspec.Struct, frozen=True):
    exported: int | None
    """Sequence of the last event whose spans were sent; None: no exporter has begun yet."""
    last: int
    """Of the stream."""
    behind: int
    held: int
    """Events to read again after a restart: calls that wait for the end of their request."""


class Replayed(msgspec.Struct, frozen=True):
    after: int
    events: int


@click.group(help="See how far traces are exported, and export them again.")
def traces() -> None:
    pass


@traces.command(help="How far the stream of events is exported.")
@as_json_option
@reach.nats
@reach.creds
@reach.root
def status(as_json: bool, nats_url: str, creds: str | None, root: str) -> None:
    async def work(bus: "Bus") -> int:
        log, store = await bus.event_log(STREAM), await bus.store(BUCKET)
        last = await _last(log, root)
        found, _ = await _cursor(store)
        done = None if found is None else found.done
        told = Status(
            exported=done,
            last=last,
            behind=0 if done is None else max(0, last - done),
            held=0 if found is None else max(0, found.done - found.after),
        )
        if as_json:
            output.say_json(told)
        elif found is None:
            output.say("nothing is exported: no exporter has an endpoint (telemetry.otlp)")
        else:
            output.say(
                f"exported up to event {told.exported} of {told.last}: {told.behind} behind,"
                f" {told.held} held for requests that have not ended"
            )
        return 0

    _run(work, nats_url, creds, as_json=as_json)


@traces.command(help="Export again what happened since then; the same events make the same spans.")
@click.option("--since", metavar="DURATION", required=True, help="Such as 15m, 2h or 1d.")
@as_json_option
@reach.nats
@reach.creds
@reach.root
def replay(since: str, as_json: bool, nats_url: str, creds: str | None, root: str) -> None:
    from breakwater_gateway.config.amounts import parse_duration_ms

    ms = parse_duration_ms(since)
    if not ms:
        output.fail(
            f"--since is a duration such as 15m, 2h or 1d, not {since[:40]!r}",
            code=output.USAGE,
            as_json=as_json,
        )
    begin = time.time() - ms / 1000

    async def work(bus: "Bus") -> int:
        log, store = await bus.event_log(STREAM), await bus.store(BUCKET)
        last = await _last(log, root)
        after = await _before(log, root, begin, last)
        if not await _put(store, cursors.encode(Cursor(after, after))):
            output.fail(
                "the exporter was faster each time; try again", code=output.FAILED, as_json=as_json
            )
        told = Replayed(after=after, events=last - after)
        if as_json:
            output.say_json(told)
        else:
            output.say(f"{told.events} events are exported again, some ten seconds from now")
        return 0

    _run(work, nats_url, creds, as_json=as_json)


@traces.command("id", help="The trace id of a request whose caller sent no traceparent.")
@click.argument("request_id")
@click.option("--tenant", default="default", show_default=True)
@as_json_option
def id_of(request_id: str, tenant: str, as_json: bool) -> None:
    from breakwater_gateway.exporter.spans import place_of

    found = place_of(tenant, request_id, "").trace_id.hex()
    if as_json:
        output.say_json({"trace_id": found})
    else:
        output.say(found)


async def _last(log: "EventLog", root: str) -> int:
    found = await log.last(f"{root}.evt.>")
    return found.seq if found is not None else 0


async def _cursor(store: "Store") -> tuple[Cursor | None, int]:
    """With the revision of what is there, readable or not; 0: nothing is."""
    entry = await store.get(KEY)
    if entry is None or entry.value is None:
        return None, 0
    try:
        return cursors.decode(entry.value), entry.revision
    except msgspec.MsgspecError:
        return None, entry.revision


async def _put(store: "Store", value: bytes) -> bool:
    from breakwater_gateway.runtime.bus import WrongRevision

    for _ in range(TRIES):
        _, revision = await _cursor(store)
        try:
            if revision:
                await store.update(KEY, value, revision=revision)
            else:
                await store.create(KEY, value)
        except WrongRevision:
            continue
        return True
    return False


async def _before(log: "EventLog", root: str, begin: float, last: int) -> int:
    """The sequence before the first event since `begin` (Unix seconds), by halving."""
    low, high = 0, last
    while low < high:
        middle = (low + high) // 2
        found = await log.read(f"{root}.evt.>", after=middle, limit=1)
        if found and found[0].at < begin:
            low = found[0].seq
        else:
            high = middle
    return low


def _run(
    work: "Callable[[Bus], Awaitable[int]]", nats_url: str, creds: str | None, *, as_json: bool
) -> None:
    reach.run(work, nats_url, creds, name="traces", without="nothing happened yet", as_json=as_json)
