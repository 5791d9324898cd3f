"""The ledger's decisions on a bus, without a log: what routers borrow from in tests of their own."""

from functools import partial

import msgspec
from tests.actors.stage import SUBJECTS

from breakwater_gateway.ledger.book import Book
from breakwater_gateway.ledger.lending import Teller, with_seq
from breakwater_gateway.runtime.bus import Bus, Message
from breakwater_protocol.ledger import (
    PARTITIONS,
    LeaseAsk,
    NotLeader,
    Reports,
    partition_token,
)

START_MS = 1_795_000_000_000


class Lender:
    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self.books = [Book() for _ in range(PARTITIONS)]
        self.asks: list[LeaseAsk] = []
        self.reports: list[Reports] = []
        self.away = False

    async def listen(self) -> None:
        for number in range(PARTITIONS):
            token = partition_token(number)
            lease, report = SUBJECTS.lease.at(token), SUBJECTS.report.at(token)
            await self._bus.subscribe(lease, partial(self._on_ask, number))
            await self._bus.subscribe(report, partial(self._on_report, number))

    def _on_ask(self, number: int, message: Message) -> None:
        self.asks.append(SUBJECTS.lease.decode(message.data))
        self._answer(number, message.reply, self.asks[-1])

    def _on_report(self, number: int, message: Message) -> None:
        self.reports.append(SUBJECTS.report.decode(message.data))
        self._answer(number, message.reply, self.reports[-1])

    def _answer(self, number: int, reply: str, said: LeaseAsk | Reports) -> None:
        if self.away:
            self._bus.publish(reply, msgspec.json.encode(NotLeader()))
            return
        book = self.books[number]
        teller = Teller(book, number, START_MS)
        found = teller.ask(said) if isinstance(said, LeaseAsk) else teller.report(said)
        teller.record("r")
        self._bus.publish(reply, msgspec.json.encode(with_seq(found, book.n)))

    def committed(self, account: str, unit: str = "tokens") -> int:
        return sum(
            line.committed
            for book in self.books
            for line in book.lines.values()
            if (line.account, line.unit) == (account, unit)
        )

    def held(self) -> int:
        return sum(line.held for book in self.books for line in book.lines.values())
