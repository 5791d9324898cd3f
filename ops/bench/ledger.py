"""What a lease costs: `uv run python -m ops.bench.ledger [--json] [--save]`.

A nats-server of its own that calls fsync before each acknowledgement, one `breakwater run ledger`, and this
process as the holders: one that asks after each answer (latency), then many at once (grants a second, with
group commit). Each lease debits two lines, a user's and an organisation's. Every grant that was answered is
looked for in the log afterwards.
"""

import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import click
import msgspec
import uvloop
from ops.bench.processes import cpu_s, free_ports, python, running
from ops.bench.record import taken, told

from breakwater_gateway.ledger.actor import LOG_NAME
from breakwater_gateway.runtime.bus import Bus, BusError, Message
from breakwater_gateway.runtime.embedded import server_binary
from breakwater_gateway.runtime.nats_bus import connect_nats
from breakwater_protocol.ledger import (
    Amount,
    Grant,
    Granted,
    LeaseAsk,
    LeaseReply,
    Limit,
    Line,
    Record,
    account_named,
    partition,
    partition_token,
)
from breakwater_protocol.subjects import Subjects

SUBJECTS: Final = Subjects()
TOKEN: Final = partition_token(partition(account_named("org:acme")))
WARM: Final = 200
ALONE: Final = 1_000
TOGETHER_S: Final = 5.0
CONFIG: Final = "models: {m: {deployments: [{model: openai/gpt-4o, api_key: []}]}}\n"
_REPLY: Final = msgspec.json.Decoder(LeaseReply)
_RECORD: Final = msgspec.json.Decoder(Record)


class Holder:
    """Asks again as soon as it is answered."""

    def __init__(self, bus: Bus, name: str, counts: list[float], granted: dict[str, int]) -> None:
        self.bus = bus
        self.name = name
        self.asked_at = 0.0
        self.count = 0
        self.left = 0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._counts = counts
        self._granted = granted
        self._subject = SUBJECTS.lease.at(TOKEN)
        self._path = (
            Line(f"user:acme/{name}", "tokens", "day@UTC", Limit(10**12)),
            Line("org:acme", "tokens", "month@UTC", Limit(10**15)),
        )
        self._inbox = bus.open_inbox(self._hear)

    def ask(self) -> None:
        self.count += 1
        ask = LeaseAsk(f"{self.name}/1/{self.count}", self._path, Amount(0, 500), Amount(0, 5_000))
        self.asked_at = time.perf_counter()
        self.bus.publish(self._subject, SUBJECTS.lease.encode(ask), reply=self._inbox.subject)

    def _hear(self, message: Message) -> None:
        if message.no_responders:
            self.done.set_exception(BusError("nobody lends"))
            return
        reply = _REPLY.decode(message.data)
        if not isinstance(reply, Granted):
            self.done.set_exception(BusError(f"refused: {reply}"))
            return
        self._counts.append(time.perf_counter() - self.asked_at)
        self._granted[reply.lease] = reply.seq
        self.left -= 1
        if self.left > 0:
            self.ask()
        elif not self.done.done():
            self.done.set_result(None)


def quantile_ms(times: list[float], at: float) -> float:
    return round(sorted(times)[min(len(times) - 1, int(len(times) * at))] * 1000, 3)


async def measure(url: str, pids: list[int], holders: int) -> dict[str, Any]:
    bus = await connect_nats(url, name="bench", role="bench", patience_s=10)
    granted: dict[str, int] = {}
    await until_lent(bus, granted)
    alone: list[float] = []
    first = Holder(bus, "alone", alone, granted)
    first.left = WARM + ALONE
    first.ask()
    await first.done
    alone = alone[WARM:]

    together: list[float] = []
    many = [Holder(bus, f"h{n}", together, granted) for n in range(holders)]
    before_cpu, begun = cpu_s(pids), time.perf_counter()
    for each in many:
        each.left = 1_000_000
        each.ask()
    await asyncio.sleep(TOGETHER_S)
    took, cpu = time.perf_counter() - begun, cpu_s(pids) - before_cpu
    count = len(together)
    for each in many:
        each.left = 1
    await asyncio.gather(*(each.done for each in many))
    records, missing = await look_up(bus, granted)
    await bus.close()
    return {
        "alone_p50_ms": quantile_ms(alone, 0.5),
        "alone_p99_ms": quantile_ms(alone, 0.99),
        "holders": holders,
        "grants_per_s": round(count / took),
        "together_p50_ms": quantile_ms(together, 0.5),
        "together_p99_ms": quantile_ms(together, 0.99),
        "grants_per_record": round(len(granted) / records, 1),
        "ledger_us_cpu_per_grant": round(cpu / count * 1e6, 1),
        "answered": len(granted),
        "answered_but_not_in_the_log": missing,
    }


async def until_lent(bus: Bus, granted: dict[str, int]) -> None:
    async with asyncio.timeout(20):
        while True:
            holder = Holder(bus, "first", [], granted)
            holder.left = 1
            holder.ask()
            try:
                await holder.done
            except BusError:
                await asyncio.sleep(0.1)
            else:
                return


async def look_up(bus: Bus, granted: dict[str, int]) -> tuple[int, int]:
    """Records, and grants that were answered and are in none, or in another than their answer said."""
    log = await bus.event_log(LOG_NAME)
    subject, after, records = SUBJECTS.ledger_log.at(TOKEN), 0, 0
    missing = dict(granted)
    while found := await log.read(subject, after=after, limit=64):
        for stored in found:
            records += 1
            for op in _RECORD.decode(stored.data).ops:
                if isinstance(op, Grant) and missing.get(op.lease) == stored.seq:
                    del missing[op.lease]
        after = found[-1].seq
    return records, len(missing)


def run(holders: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="breakwater-ledger-") as folder:
        directory = Path(folder)
        (port,) = free_ports(1)
        conf = directory / "nats.conf"
        conf.write_text(
            f'listen: "127.0.0.1:{port}"\nmax_payload: 8MB\n'
            "feature_flags { js_ack_fc_v2: false }\n"
            f'jetstream {{ store_dir: "{directory}/js", max_file_store: 8GB, sync_interval: always }}\n'
        )
        config = directory / "breakwater.yaml"
        config.write_text(CONFIG)
        url = f"nats://127.0.0.1:{port}"
        cpus = range(os.cpu_count() or 1)
        serve = python("breakwater_gateway", "run", "ledger", "--nats", url, "--config", config)
        nats = [str(server_binary()), "-c", str(conf)]
        with (
            running("nats", nats, cpus=cpus),
            running("ledger", serve, cpus=cpus) as ledger,
            asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        ):
            return runner.run(measure(url, [ledger.pid], holders))


@click.command(help=__doc__)
@click.option("--holders", default=128, show_default=True, help="Holders that ask at once.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option("--save", is_flag=True, help="Keep the figures in ops/bench/results/ledger.")
def main(holders: int, as_json: bool, save: bool) -> None:
    found = taken(run(holders))
    told(found, "ledger", as_json=as_json, save=save)
    sys.exit(1 if found["answered_but_not_in_the_log"] else 0)


if __name__ == "__main__":
    main()
