"""A writer without a bus: what a test says to it becomes records of a log in a list."""

from collections.abc import Callable

import msgspec

from breakwater_gateway.ledger.book import Book
from breakwater_gateway.ledger.lending import Teller, with_seq
from breakwater_gateway.ledger.snapshot import state_hash
from breakwater_protocol.events import BudgetChanged
from breakwater_protocol.ledger import (
    Amount,
    CommandReply,
    LeaseAsk,
    LeaseReply,
    LeaseReport,
    Line,
    Operate,
    Record,
    Reported,
    Reports,
    account_named,
    partition,
)

START_MS = 1_795_000_000_000
"""2026-11-18T11:06:40Z, a Wednesday."""


def tokens(count: int) -> Amount:
    return Amount(tokens=count)


def line(account: str = "user:acme/alice", hard: int = 1000, **more: object) -> Line:
    plain = {"unit": "tokens", "period": "day@UTC"} | {
        key: value for key, value in more.items() if key in {"unit", "period"}
    }
    limit = {key: value for key, value in more.items() if key not in {"unit", "period"}}
    return msgspec.convert(
        {"account": account, "limit": {"hard": hard, **limit}, **plain}, Line, strict=False
    )


class Desk:
    def __init__(self, account: str = "user:acme/alice") -> None:
        self.number = partition(account_named(account))
        self.t_ms = START_MS
        self.book = Book()
        self.log: list[bytes] = []
        self.events: list[BudgetChanged] = []

    def teller(self) -> Teller:
        return Teller(self.book, self.number, self.t_ms)

    def commit(self, teller: Teller) -> int:
        """The sequence of the record, as if this log had the stream for itself."""
        record = teller.record(f"r{len(self.log)}")
        if record is not None:
            self.log.append(msgspec.json.encode(record))
        self.events += self.book.take_events()
        return len(self.log)

    def ask(
        self, lease: str, *path: Line, least: Amount | int = 10, want: Amount | int = 100
    ) -> LeaseReply:
        teller = self.teller()
        reply = teller.ask(
            LeaseAsk(
                lease=lease,
                path=path or (line(),),
                min=tokens(least) if isinstance(least, int) else least,
                want=tokens(want) if isinstance(want, int) else want,
            )
        )
        seq = self.commit(teller)
        found = with_seq(reply, seq)
        assert not isinstance(found, Reported)
        return found  # type: ignore[return-value]

    def report(self, *reports: LeaseReport) -> Reported:
        teller = self.teller()
        reply = teller.report(Reports(reports))
        self.commit(teller)
        assert isinstance(reply, Reported), reply
        return reply

    def spent(self, lease: str, count: int, *, in_flight: int = 0, final: bool = False) -> Reported:
        return self.report(LeaseReport(lease, tokens(count), tokens(in_flight), final))

    def expire(self, lease: str) -> None:
        self._do(lambda teller: teller.expire(lease))

    def operate(self, change: object) -> CommandReply:
        teller = self.teller()
        reply = teller.operate(
            msgspec.convert({"change": msgspec.to_builtins(change)}, Operate).change
        )
        self.commit(teller)
        return reply

    def pass_time(self, seconds: float) -> None:
        """And let the writer look at what is due then."""
        self.t_ms += round(seconds * 1000)
        self._do(lambda _: None)

    def _do(self, what: Callable[[Teller], None]) -> None:
        teller = self.teller()
        what(teller)
        self.commit(teller)

    def committed(self, account: str = "user:acme/alice", period: str = "day@UTC") -> int:
        found = self.book.index[account, "tokens", period]
        return self.book.peek(found, self.t_ms)[1]

    def held(self, account: str = "user:acme/alice", period: str = "day@UTC") -> int:
        found = self.book.index[account, "tokens", period]
        return self.book.peek(found, self.t_ms)[2]

    def replayed(self) -> Book:
        book = Book()
        for data in self.log:
            book.fold(msgspec.json.decode(data, type=Record))
        return book

    def hash(self) -> str:
        return state_hash(self.book)

    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]
