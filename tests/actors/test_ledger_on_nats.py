"""The ledger over a real server: fencing, takeover, a paused writer, a killed server, events once."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import msgspec
import pytest
from tests.actors.ledger_stage import SUBJECTS, TOKEN, books, lease, report
from tests.conftest import NatsProcess

from breakwater_gateway.config.model import Config
from breakwater_gateway.ledger.actor import LEASE_KEY, LOG_NAME, Ledger
from breakwater_gateway.ledger.book import Book
from breakwater_gateway.runtime.actor import Context
from breakwater_gateway.runtime.bus import Bus, WrongRevision
from breakwater_gateway.runtime.clock import Clock
from breakwater_gateway.runtime.leading import LEASE_BUCKET
from breakwater_gateway.runtime.metrics import Registry
from breakwater_gateway.runtime.nats_bus import connect_nats
from breakwater_gateway.runtime.streams import ensure_streams, events_stream
from breakwater_gateway.runtime.telemetry import get_log
from breakwater_protocol.ledger import Exhausted, Granted, LeaseReply, Limit, Line, Record

pytestmark = [pytest.mark.anyio, pytest.mark.nats]

LOG_SUBJECT = SUBJECTS.ledger_log.at(TOKEN)
LINE = Line("org:acme", "tokens", "month@UTC", Limit(1_000_000))
CONFIG = "models: {m: {deployments: [{model: openai/gpt-4o, api_key: []}]}}\n"


@asynccontextmanager
async def running(url: str, name: str) -> AsyncIterator[Ledger]:
    bus = await connect_nats(url, name=f"ledger/{name}", role="ledger")
    try:
        await ensure_streams(bus, events_stream())
        context = Context(
            id=name,
            bus=bus,
            subjects=SUBJECTS,
            clock=Clock(),
            log=get_log(),
            metrics=Registry(),
            config=Config(models={}),
        )
        ledger = Ledger(context, environment={})
        async with anyio.create_task_group() as tasks:
            await ledger.start(tasks)
            yield ledger
            await ledger.stop()
            tasks.cancel_scope.cancel()
    finally:
        await bus.close()


@pytest.fixture
def server(nats_server: Callable[..., NatsProcess]) -> NatsProcess:
    return nats_server(max_file_store="4GB")


@asynccontextmanager
async def holder(url: str) -> AsyncIterator[Bus]:
    bus = await connect_nats(url, name="holder", role="holder")
    yield bus
    await bus.close()


async def records(bus: Bus, subject: str = LOG_SUBJECT) -> list[tuple[int, Record]]:
    log = await bus.event_log(LOG_NAME, SUBJECTS.ledger_log.any())
    found: list[tuple[int, Record]] = []
    while some := await log.read(subject, after=found[-1][0] if found else 0):
        found += [(each.seq, msgspec.json.decode(each.data, type=Record)) for each in some]
    return found


async def check_against_the_log(bus: Bus, granted: dict[str, Granted]) -> None:
    """Each acknowledged grant is in the log, once, at the sequence that its answer named."""
    lent: dict[str, tuple[int, int]] = {}
    book = Book()
    for seq, record in await records(bus):
        book.fold(record)
        for op in record.ops:
            if type(op).__name__ == "Grant":
                assert op.lease not in lent  # type: ignore[union-attr]
                lent[op.lease] = (seq, op.amount.tokens)  # type: ignore[union-attr]
    for id_, reply in granted.items():
        assert id_ in lent
        assert reply.amount.tokens == lent[id_][1]
        assert reply.seq >= lent[id_][0]
    found = await books(bus, account="org:acme")
    assert found.lines[0].committed + found.lines[0].held == sum(each for _, each in lent.values())


async def ask_all(bus: Bus, ids: list[str]) -> dict[str, Granted]:
    replies: list[LeaseReply] = await asyncio.gather(*(lease(bus, id_, LINE) for id_ in ids))
    found = {}
    for id_, reply in zip(ids, replies, strict=True):
        assert isinstance(reply, Granted), reply
        found[id_] = reply
    return found


async def test_two_writers_of_one_log_cannot_both_write(server: NatsProcess) -> None:
    async with holder(server.url) as bus, running(server.url, "a"), running(server.url, "b"):
        granted = await ask_all(bus, [f"r/1/{n}" for n in range(1, 200)])
        await check_against_the_log(bus, granted)
        log = await bus.event_log(LOG_NAME, SUBJECTS.ledger_log.any())
        last = await log.last(LOG_SUBJECT)
        assert last is not None
        with pytest.raises(WrongRevision):
            await log.append(LOG_SUBJECT, b"{}", expected=last.seq - 1)


async def test_a_writer_that_is_fenced_out_follows_and_answers_what_is_in_the_log(
    server: NatsProcess,
) -> None:
    async with holder(server.url) as bus, running(server.url, "a") as a:
        await ask_all(bus, ["r/1/1"])
        # Somebody else writes on, as a new leader does.
        log = await bus.event_log(LOG_NAME, SUBJECTS.ledger_log.any())
        seq, record = (await records(bus))[-1]
        other = msgspec.json.encode(
            {
                "n": record.n + 1, "id": "rec_other", "t_ms": record.t_ms,
                "ops": [{"op": "lead", "writer": "b"}],
            }
        )  # fmt: skip
        await log.append(LOG_SUBJECT, other, expected=seq)
        granted = await ask_all(bus, ["r/1/2"])
        await check_against_the_log(bus, granted)
        writers = [
            op.writer for _, r in await records(bus) for op in r.ops if hasattr(op, "writer")
        ]
        assert writers == ["a", "b", "a"]
        assert a.leads()


async def test_soft_events_are_stored_once_over_three_restarts(server: NatsProcess) -> None:
    line = Line("org:acme", "tokens", "month@UTC", Limit(10, (500_000, 800_000)))
    async with holder(server.url) as bus:
        for name in ("a", "b", "c", "d"):
            async with running(server.url, name):
                reply = await lease(bus, "r/1/1", line)
                assert isinstance(reply, Granted)
                await report(bus, "r/1/1", 9)
                assert isinstance(await lease(bus, "r/1/2", line), Exhausted)
                await asyncio.sleep(0.3)  # it announces, or does not
            # It died without a word; its lease would end by itself, and the next waits for that.
            await (await bus.store(LEASE_BUCKET)).delete(LEASE_KEY)
        kept = await bus.event_log("EVT")
        events = [
            SUBJECTS.budget.decode(stored.data)
            for stored in await kept.read("bw.v1.evt.budget.*.*", after=0)
        ]
        told = [(e.kind, e.threshold) for e in events if e.kind in ("soft", "hard")]
        assert told == [("soft", 500_000), ("soft", 800_000), ("hard", 0)]


async def test_a_killed_server_loses_no_grant_that_was_answered(server: NatsProcess) -> None:
    async with holder(server.url) as bus, running(server.url, "a"):
        granted = await ask_all(bus, [f"r/1/{n}" for n in range(1, 50)])
        asking = asyncio.ensure_future(ask_all(bus, [f"r/2/{n}" for n in range(1, 300)]))
        await asyncio.sleep(0.005)
        server.kill()
        await asyncio.sleep(0.2)
        server.start()
        granted |= await asking
        await check_against_the_log(bus, granted)


async def test_a_paused_writer_that_wakes_is_refused_and_answers_nothing(
    server: NatsProcess, tmp_path: Path
) -> None:
    """Two processes; the leading one is stopped in the middle of its work, and goes on later."""
    path = tmp_path / "breakwater.yaml"
    path.write_text(CONFIG)
    async with holder(server.url) as bus:
        first = await start(server.url, path, tmp_path / "a.log")
        second = None
        try:
            granted = await ask_all(bus, [f"r/1/{n}" for n in range(1, 50)])
            paused = (await books(bus)).writer
            second = await start(server.url, path, tmp_path / "b.log")
            await asyncio.sleep(1.0)
            asking = asyncio.ensure_future(ask_all(bus, [f"r/2/{n}" for n in range(1, 400)]))
            await asyncio.sleep(0.01)
            os.kill(first.pid, signal.SIGSTOP)
            granted |= await asking
            assert (await books(bus)).writer != paused
            os.kill(first.pid, signal.SIGCONT)
            # What it is sent now it hears, until it knows that another leads.
            granted |= await ask_all(bus, [f"r/3/{n}" for n in range(1, 100)])
            assert (await books(bus)).writer != paused
            writers = [
                op.writer  # type: ignore[union-attr]
                for _, record in await records(bus)
                for op in record.ops
                if type(op).__name__ == "Lead"
            ]
            assert len(writers) == 2
            assert writers[0] == paused
            await check_against_the_log(bus, granted)
        finally:
            for process in (first, second):
                if process is not None:
                    process.kill()
                    await process.wait()


async def start(url: str, config: Path, log: Path) -> asyncio.subprocess.Process:
    with log.open("wb") as file:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "breakwater_gateway", "run", "ledger"),
            *("--nats", url, "--config", str(config)),
            stdout=file,
            stderr=file,
        )
