"""A gateway's budgets under an adversary: the real holder and the real book, virtual time, no bus.

Every message may be lost, repeated, reordered and late. Holders are killed with and without their journal;
writers crash, and one that was paused comes back and believes that it still leads. Providers execute calls
whose answer nobody hears. After every step `check` holds the world to the ledger's invariants.
"""

import random
from dataclasses import dataclass, field

import msgspec

from breakwater_gateway.ledger.book import Book
from breakwater_gateway.ledger.lending import Teller, with_seq
from breakwater_gateway.ledger.snapshot import state_hash
from breakwater_gateway.router.holder import Breach, Decided, Holder
from breakwater_gateway.router.leases import Kept, Lease, Need, Path, Reservation, Ticket
from breakwater_gateway.router.reports import Say
from breakwater_protocol.events import BudgetChanged
from breakwater_protocol.ledger import (
    Grant,
    Granted,
    LeaseAsk,
    LeaseReply,
    Limit,
    Line,
    Record,
    ReportReply,
    Reports,
    account_named,
    partition,
)

START_MS = 1_795_000_000_000
"""2026-11-18T11:06:40Z."""
EXPIRES_MS = 15_000


class Violated(Exception):
    """An invariant does not hold: its name and what was found."""


@dataclass
class Call:
    """A provider's call in flight."""

    number: int
    owner: "Node"
    reservation: Reservation
    periods: tuple[tuple[str, str, int], ...]
    """Account, period's key and amount at most of each line it is charged to."""


@dataclass
class Node:
    """A holder and what survives it."""

    name: str
    holder: Holder
    incarnation: int = 1
    journal: dict[str, Kept] = field(default_factory=dict)
    calls: dict[int, Call] = field(default_factory=dict)
    waiting: dict[int, Need] = field(default_factory=dict)


@dataclass
class Message:
    """On its way, perhaps for ever."""

    partition: int
    node: str
    incarnation: int
    ask: LeaseAsk | None = None
    reports: Reports | None = None
    number: int = 0
    lease: str = ""
    lease_reply: LeaseReply | None = None
    report_reply: ReportReply | None = None


class Log:
    """A partition's stream: appends name the length they expect."""

    def __init__(self) -> None:
        self.records: list[bytes] = []
        self.granted: set[str] = set()

    def append(self, data: bytes, expected: int) -> bool:
        if expected != len(self.records):
            return False
        self.take(data)
        return True

    def take(self, data: bytes) -> None:
        self.records.append(data)
        record = msgspec.json.decode(data, type=Record)
        self.granted |= {op.lease for op in record.ops if isinstance(op, Grant)}


class Writer:
    """One of two processes that may serve a partition. Both may believe that they do."""

    def __init__(self, world: "World", number: int, name: str) -> None:
        self.world, self.number, self.name = world, number, name
        self.book, self.pos = Book(), 0
        self.inbox: list[Message] = []
        self.heard: dict[str, int] = {}

    def catch_up(self) -> None:
        """Whatever was decided and not written is forgotten: the book is the log's."""
        self.book, self.pos = Book(), 0
        for data in self.world.logs[self.number].records:
            self.book.fold(msgspec.json.decode(data, type=Record))
            self.pos += 1
        self.inbox.clear()
        self.heard = dict.fromkeys(self.book.leases, self.world.now_ms)

    def serve(self, *, ack_lost: bool = False) -> None:
        """One append for everything in the inbox; answers leave after it, if at all."""
        messages, self.inbox = self.inbox, []
        teller = Teller(self.book, self.number, self.world.now_ms)
        replies: list[Message] = []
        for message in messages:
            reply = Message(message.partition, message.node, message.incarnation)
            if message.ask is not None:
                reply.lease = message.ask.lease
                reply.lease_reply = teller.ask(message.ask)
                self.heard.setdefault(reply.lease, self.world.now_ms)
            elif message.reports is not None:
                reply.number = message.number
                reply.report_reply = teller.report(message.reports)
                for report in message.reports.reports:
                    self.heard[report.lease] = self.world.now_ms
            replies.append(reply)
        for lease, known in list(self.book.leases.items()):
            silent_ms = self.world.now_ms - self.heard.get(lease, self.world.now_ms)
            if known.state == "open" and silent_ms > EXPIRES_MS:
                teller.expire(lease)
        self.commit(teller, replies, ack_lost=ack_lost)

    def commit(self, teller: Teller, replies: list[Message], *, ack_lost: bool) -> None:
        record = teller.record(f"{self.name}-{self.world.draw.random()}")
        if record is not None:
            if not self.append(msgspec.json.encode(record)):
                self.catch_up()  # deposed: nothing of it was decided
                return
            self.pos += 1
            if ack_lost:
                self.catch_up()
                return
        self.answer(replies)

    def append(self, data: bytes) -> bool:
        return self.world.logs[self.number].append(data, self.pos)

    def answer(self, replies: list[Message]) -> None:
        for reply in replies:
            if reply.lease_reply is not None:
                answered = with_seq(reply.lease_reply, self.pos)
                reply.lease_reply = answered  # type: ignore[assignment]
            elif reply.report_reply is not None:
                answered = with_seq(reply.report_reply, self.pos)
                reply.report_reply = answered  # type: ignore[assignment]
            self.world.send(reply)


class World:
    def __init__(
        self,
        seed: int,
        *,
        hard: int = 60,
        nodes: int = 3,
        with_journal: bool = True,
        period: str = "hour@UTC",
    ) -> None:
        self.draw = random.Random(seed)
        self.now = 0.0
        self.hard = hard
        self.journals = with_journal
        self.net: list[Message] = []
        self.spent: dict[tuple[str, str], int] = {}
        """By account and period, what providers have billed."""
        self.unknown: dict[tuple[str, str], int] = {}
        """What may be charged beyond that, because nobody knows better."""
        self.lost: set[str] = set()
        """Lives that ended without a journal: their leases count as spent whole."""
        self.calls: dict[int, Call] = {}
        self.numbers = 0
        self.granted: list[Message] = []
        self.lines = {
            name: Line(name, "tokens", period, Limit(hard if name != "global" else hard * 3 // 2))
            for name in ("user:acme/alice", "user:acme/bob", "org:acme", "global")
        }
        self.logs = {partition(account_named(name)): Log() for name in self.lines}
        self.writers = {
            number: [Writer(self, number, "a"), Writer(self, number, "b")] for number in self.logs
        }
        self.nodes = [self.new_node(f"r{i}", 1) for i in range(nodes)]
        self.paths: dict[tuple[str, int, str], tuple[Path, ...]] = {}

    @property
    def now_ms(self) -> int:
        return START_MS + int(self.now * 1000)

    def new_node(self, name: str, incarnation: int) -> Node:
        return Node(name, Holder(name, incarnation), incarnation)

    def paths_for(self, node: Node, user: str) -> tuple[Path, ...]:
        place = (node.name, node.incarnation, user)
        found = self.paths.get(place)
        if found is None:
            by_partition: dict[int, list[Line]] = {}
            for name in (user, "org:acme", "global"):
                number = partition(account_named(name))
                by_partition.setdefault(number, []).append(self.lines[name])
            found = tuple(Path(n, tuple(lines)) for n, lines in sorted(by_partition.items()))
            self.paths[place] = found
        return found

    # ------------------------------------------------------------ the shell of a holder

    def flush(self, node: Node) -> None:
        """As the router's desk does it: keep, say, call back."""
        while True:
            for kept in node.holder.take_kept():
                if kept.over:
                    node.journal.pop(kept.lease, None)
                else:
                    node.journal[kept.lease] = kept
            said = node.holder.take_said()
            if not said:
                return
            for each in said:
                if isinstance(each, Say):
                    self.send(
                        Message(
                            each.partition,
                            node.name,
                            node.incarnation,
                            ask=each.ask,
                            reports=each.reports,
                            number=each.number,
                        )
                    )
                elif isinstance(each, Decided):
                    need = node.waiting.pop(each.ticket.number, None)
                    if isinstance(each.outcome, Reservation):
                        if need is None:
                            node.holder.settle(each.outcome, (0, 0, 0), now=self.now)
                        else:
                            self.dispatch(node, each.outcome)
                elif isinstance(each, Breach):
                    raise Violated(f"B9 a call cost {each.actual} of {each.reserved}")

    def send(self, message: Message) -> None:
        if isinstance(message.lease_reply, Granted):
            self.granted.append(message)
        self.net.append(message)

    def request(self, node: Node) -> None:
        user = self.draw.choice(("user:acme/alice", "user:acme/bob"))
        need = (0, self.draw.randint(1, 4), 0)
        found = node.holder.reserve(
            self.paths_for(node, user), need, now=self.now, until=self.now + 2.0
        )
        if isinstance(found, Reservation):
            self.dispatch(node, found)
        elif isinstance(found, Ticket):
            node.waiting[found.number] = need
        self.flush(node)

    def dispatch(self, node: Node, reservation: Reservation) -> None:
        self.numbers += 1
        amount = reservation.need[1]
        periods = tuple(
            (line.account, key, amount)
            for lease in reservation.leases
            for line, key in zip(lease.path.lines, lease.periods, strict=True)
        )
        call = Call(self.numbers, node, reservation, periods)
        node.calls[call.number] = call
        self.calls[call.number] = call

    def execute(self, call: Call, *, heard: bool) -> None:
        """The provider bills something up to the maximum; its holder hears of it, or never will."""
        most = call.reservation.need[1]
        actual = self.draw.randint(0, most)
        del self.calls[call.number]
        for account, key, _ in call.periods:
            self.spent[account, key] = self.spent.get((account, key), 0) + actual
        node = call.owner
        if node.calls.pop(call.number, None) is None:
            return  # its holder died: the journal has said the most, or nobody can say anything
        if heard:
            node.holder.settle(call.reservation, (0, actual, 0), now=self.now)
        else:
            self.doubt(call, most - actual)
            node.holder.settle(call.reservation, None, now=self.now)
        self.flush(node)

    def doubt(self, call: Call, amount: int) -> None:
        for account, key, _ in call.periods:
            self.unknown[account, key] = self.unknown.get((account, key), 0) + amount

    # ------------------------------------------------------------ what the adversary does

    def step(self) -> None:
        draw = self.draw
        choice = draw.random()
        node = draw.choice(self.nodes)
        if choice < 0.30:
            self.request(node)
        elif choice < 0.70 and self.net:
            for _ in range(draw.randint(1, 8)):
                if self.net:
                    # Mostly the latest: those that are passed over come very late.
                    last = len(self.net) - 1
                    near = draw.random() < 0.7
                    self.deliver(
                        max(0, last - draw.randint(0, 3)) if near else draw.randint(0, last)
                    )
        elif choice < 0.82 and self.calls:
            call = draw.choice(list(self.calls.values()))
            self.execute(call, heard=draw.random() < 0.9)
        elif choice < 0.90:
            self.pass_time(draw.choice((0.01, 0.05, 0.1, 0.1, 0.6, 1.1)))
        elif choice < 0.92:
            self.pass_time(draw.choice((5.0, 16.0, 40.0, 1900.0)))
        elif choice < 0.93 and self.net:
            self.net.pop(draw.randrange(len(self.net)))
        elif choice < 0.945:
            self.kill(node, journal=self.journals and draw.random() < 0.7)
        elif choice < 0.97:
            draw.choice(self.writers[draw.choice(list(self.writers))]).catch_up()
        else:
            for writers in self.writers.values():
                draw.choice(writers).serve(ack_lost=draw.random() < 0.2)

    def deliver(self, index: int) -> None:
        message = self.net[index]
        if self.draw.random() < 0.85:
            self.net.pop(index)  # else it comes again
        self.hand_over(message, self.draw.choice((0, 1)))

    def hand_over(self, message: Message, which: int) -> None:
        if message.ask is not None or message.reports is not None:
            writer = self.writers[message.partition][which]
            writer.inbox.append(message)
            if self.draw.random() < 0.7:
                writer.serve(ack_lost=self.draw.random() < 0.05)
            return
        for node in self.nodes:
            if node.name == message.node:
                if message.lease_reply is not None:
                    node.holder.heard(message.lease, message.lease_reply, now=self.now)
                elif message.report_reply is not None and node.incarnation == message.incarnation:
                    node.holder.heard_report(message.number, message.report_reply, now=self.now)
                self.flush(node)

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        for node in self.nodes:
            node.holder.tick(self.now)
            self.flush(node)

    def kill(self, node: Node, *, journal: bool) -> None:
        """kill -9. Its calls go on at their providers; a new life closes what the journal says it had."""
        for call in node.calls.values():
            self.doubt(call, call.reservation.need[1])
        node.calls.clear()  # whatever comes of them, the dead hear nothing
        if not journal:
            # With it goes what it still had to say of earlier lives.
            self.lost |= {f"{node.name}/{life}" for life in range(1, node.incarnation + 1)}
        fresh = self.new_node(node.name, node.incarnation + 1)
        self.nodes[self.nodes.index(node)] = fresh
        if journal:
            self.adopt(fresh, node)
        self.flush(fresh)

    def adopt(self, fresh: Node, dead: Node) -> None:
        for kept in dead.journal.values():
            fresh.journal[kept.lease] = kept
            fresh.holder.close_lease_of(kept)

    # ------------------------------------------------------------ what must hold

    def check(self) -> None:
        self.check_exposure()
        self.check_reservations()
        self.check_answers()

    def leases(self) -> list[Lease]:
        return [lease for node in self.nodes for lease in node.holder.leases()]

    def check_exposure(self) -> None:
        """B1: billed, plus calls in flight at their most, plus what leases may still spend."""
        exposed = dict(self.spent)
        for call in self.calls.values():
            for account, key, amount in call.periods:
                exposed[account, key] = exposed.get((account, key), 0) + amount
        for lease in self.leases():
            for line, key in zip(lease.path.lines, lease.periods, strict=True):
                place = (line.account, key)
                exposed[place] = exposed.get(place, 0) + max(0, lease.room(1))
        for (account, key), amount in exposed.items():
            hard = self.lines[account].limit.hard
            if amount > hard:
                raise Violated(f"B1 {account} {key}: exposure {amount} of {hard}")

    def check_reservations(self) -> None:
        """B11, B12: each call has its own reservation, whole, in every one of its leases."""
        for node in self.nodes:
            held: dict[str, int] = {}
            for call in node.calls.values():
                if call.reservation.settled:
                    raise Violated("B12 a call in flight whose reservation is settled")
                for lease in call.reservation.leases:
                    held[lease.id] = held.get(lease.id, 0) + call.reservation.need[1]
            for lease in node.holder.leases():
                if lease.held[1] != held.get(lease.id, 0):
                    raise Violated(
                        f"B11 {lease.id} holds {lease.held[1]}, calls {held.get(lease.id, 0)}"
                    )
                if lease.held[1] + lease.spent[1] > lease.lent[1]:
                    raise Violated(f"B9 {lease.id} is overdrawn")

    def check_answers(self) -> None:
        """B5: a grant that was said is in the log."""
        for message in self.granted:
            if message.lease not in self.logs[message.partition].granted:
                raise Violated(f"B5 {message.lease} was granted before it was written")
        self.granted.clear()

    def folded(self, number: int) -> Book:
        book = Book()
        for data in self.logs[number].records:
            book.fold(msgspec.json.decode(data, type=Record))
        return book

    def check_books(self) -> None:
        """B2, B4, B7, B8: sums are exact and within the limit, and the log folds to what a writer has."""
        for number, writers in self.writers.items():
            book, events = Book(), []
            for data in self.logs[number].records:
                book.fold(msgspec.json.decode(data, type=Record))
                events += book.take_events()
            self.check_events(events)
            for line in book.lines.values():
                for bucket in line.buckets.values():
                    if bucket.committed + bucket.held > line.hard or bucket.held < 0:
                        raise Violated(
                            f"B2 {line.account} {bucket.key}: {bucket.committed} committed,"
                            f" {bucket.held} held of {line.hard}"
                        )
                    spent = self.spent.get((line.account, bucket.key), 0)
                    known = bucket.committed + bucket.held
                    if known < spent:
                        raise Violated(
                            f"B1 {line.account} {bucket.key}: {known} in the books, {spent} billed"
                        )
            for lease in book.leases.values():
                if lease.spent[1] > lease.amount[1]:
                    raise Violated(f"B4 {lease.id} has {lease.spent[1]} of {lease.amount[1]}")
            for writer in writers:
                if writer.pos == len(self.logs[number].records) and not writer.inbox:
                    again = self.folded(number)
                    if state_hash(again) != state_hash(writer.book):
                        raise Violated(f"B7 the log of {number} folds to another book")

    def check_events(self, events: list[BudgetChanged]) -> None:
        seen = set()
        for event in events:
            if event.kind == "soft":
                place = (event.account, event.period, event.threshold, event.generation)
                if place in seen:
                    raise Violated(f"B8 {place} twice")
                seen.add(place)

    # ------------------------------------------------------------ the end

    def come_to_rest(self) -> None:
        """The adversary is done: everything in flight ends, every message arrives, every lease goes back."""
        while self.calls:  # whoever waits is served by what settles
            self.execute(next(iter(self.calls.values())), heard=True)
        for node in self.nodes:
            node.holder.close(self.now)
            self.flush(node)
        for writers in self.writers.values():
            for writer in writers:
                writer.catch_up()
        for _ in range(400):
            while self.net:
                message = self.net.pop(0)
                if message.ask is None and message.reports is None:
                    self.hand_over(message, 0)
                else:
                    writer = self.writers[message.partition][0]
                    writer.inbox.append(message)
                    writer.serve()
            if all(node.holder.at_rest for node in self.nodes):
                break
            self.pass_time(1.0)
            self.check()
        else:
            raise Violated("B3 the holders do not come to rest")
        self.check_books()

    def check_rest(self) -> None:
        """B3: what the books have beyond what was billed is what nobody can know."""
        for number in self.logs:
            book = self.folded(number)
            stranded: dict[tuple[str, str], int] = {}
            for lease in book.leases.values():
                if lease.state != "closed" and lease.id.rpartition("/")[0] in self.lost:
                    for line, bucket in lease.debits:
                        place = (line.account, bucket.key)
                        stranded[place] = stranded.get(place, 0) + lease.amount[1]
            for line in book.lines.values():
                for bucket in line.buckets.values():
                    place = (line.account, bucket.key)
                    over = bucket.committed + bucket.held - self.spent.get(place, 0)
                    doubtful = self.unknown.get(place, 0) + stranded.get(place, 0)
                    if over > doubtful:
                        raise Violated(f"B3 {place}: {over} too much, {doubtful} unknown")
