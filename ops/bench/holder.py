"""`uv run python -m ops.bench.holder`: CPU of one local reservation and its settlement, in microseconds.

The real machine with its journal on disk, far from every limit: two paths (three accounts of an organisation
and one of everybody), 40 calls in flight, a writer that grants at once. Thread time, so that a busy machine
does not count; the best of five rounds.
"""

import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Final

from breakwater_gateway.config.model import Deployment
from breakwater_gateway.ledger.book import Book
from breakwater_gateway.ledger.lending import Teller, with_seq
from breakwater_gateway.pricing.cost import ModelPrice, Rates
from breakwater_gateway.pricing.estimate import bound_of, read_ask
from breakwater_gateway.router.desks.journal import Journal, read_boot
from breakwater_gateway.router.holder import Holder
from breakwater_gateway.router.leases import Path as Lines
from breakwater_gateway.router.leases import Reservation
from breakwater_gateway.router.reports import Say
from breakwater_gateway.runtime.telemetry import get_log
from breakwater_protocol.ledger import Limit, Line, account_named, partition

CALLS: Final = 20_000
IN_FLIGHT: Final = 40
ROUNDS: Final = 5
NEED: Final = (40_000_000, 6_000, 1)
ACTUAL: Final = (2_000_000, 900, 1)
START_MS: Final = 1_795_000_000_000
BODY: Final = (
    b'{"model":"m","max_tokens":500,"messages":[{"role":"system","content":"You are terse."},'
    b'{"role":"user","content":"'
    + b"What is a breakwater, and what is it good for? " * 20
    + b'"}]}'
)


def lines(*accounts: str) -> Lines:
    found = tuple(
        Line(name, unit, "day@UTC", Limit(10**17))
        for name in accounts
        for unit in ("nano_usd", "tokens")
    )
    return Lines(partition(account_named(accounts[0])), found)


class Bank:
    """Answers what the holder says, outside of what is measured."""

    def __init__(self) -> None:
        self.books: dict[int, Book] = {}
        self.asked = 0

    def serve(self, holder: Holder, now: float) -> None:
        for said in holder.take_said():
            if not isinstance(said, Say):
                continue
            book = self.books.setdefault(said.partition, Book())
            teller = Teller(book, said.partition, START_MS + int(now * 1000))
            if said.ask is not None:
                self.asked += 1
                reply = with_seq(teller.ask(said.ask), 1)
                teller.record("r")
                holder.heard(said.ask.lease, reply, now=now)  # type: ignore[arg-type]
            elif said.reports is not None:
                report = with_seq(teller.report(said.reports), 1)
                teller.record("r")
                holder.heard_report(said.number, report, now=now)  # type: ignore[arg-type]


def one_round(folder: Path | None) -> tuple[float, float, int, int]:
    """Microseconds of a reservation and of a settlement, the leases asked for, and who had to wait."""
    holder = Holder("bench", 1)
    journal = None if folder is None else Journal(folder, "bench", get_log())
    if journal is not None and not journal.open():
        journal = None
    bank, paths = Bank(), (lines("user:acme/alice", "team:acme/red", "org:acme"), lines("global"))
    running: deque[Reservation] = deque()
    reserve_ns = settle_ns = waited = 0
    now = 0.0
    for _ in range(CALLS):
        now += 0.002
        started = time.thread_time_ns()
        found = holder.reserve(paths, NEED, now=now, until=now + 2.0)
        if journal is not None:
            journal.write(holder.take_kept())
        reserve_ns += time.thread_time_ns() - started
        bank.serve(holder, now)
        if isinstance(found, Reservation):
            running.append(found)
        else:
            waited += 1
        if len(running) > IN_FLIGHT:
            started = time.thread_time_ns()
            holder.settle(running.popleft(), ACTUAL, now=now)
            if journal is not None:
                journal.write(holder.take_kept())
            settle_ns += time.thread_time_ns() - started
            bank.serve(holder, now)
        holder.tick(now)
        holder.take_kept()
        bank.serve(holder, now)
    if journal is not None:
        journal.close(at_rest=True)
    return reserve_ns / CALLS / 1000, settle_ns / CALLS / 1000, bank.asked, waited


def estimate_us() -> float:
    """Of reading one body and bounding one attempt."""
    price = ModelPrice(Rates(1_000_000, 4_000_000))
    deployment = Deployment("d", "p", "m", "openai", "http://d")
    started = time.thread_time_ns()
    for _ in range(2_000):
        bound_of(read_ask("chat", BODY), deployment, (price,))
    return (time.thread_time_ns() - started) / 2_000 / 1000


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        kinds: list[tuple[str, Path | None]] = [("without a journal", None)]
        if read_boot():
            kinds.append(("with a journal", Path(folder)))
        for name, place in kinds:
            rounds = [one_round(place) for _ in range(ROUNDS)]
            reserve, settle = min(r[0] for r in rounds), min(r[1] for r in rounds)
            asked, waited = rounds[0][2], rounds[0][3]
            print(
                f"{name}: reserve {reserve:.1f} µs, settle {settle:.1f} µs of CPU;"
                f" {asked} leases for {CALLS} calls, {waited} of them waited for one"
            )
    print(f"reading a body of {len(BODY)} bytes and bounding a call: {estimate_us():.1f} µs of CPU")


if __name__ == "__main__":
    main()
