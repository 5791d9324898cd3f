"""One partition's books: followed from its log, and written while this actor leads.

Whatever is asked waits in a queue; all that waits is decided together, becomes one record, and is answered
when the log has it. An append that fails in any way ends the leading, unless the log's last record shows
that it landed after all: the book has decisions in it then that may never have happened.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Final, Protocol

import msgspec
from msgspec import Struct

from breakwater_gateway.ledger.book import Book, LogBroken, units
from breakwater_gateway.ledger.keeper import load_snapshot, read_head, save_snapshot
from breakwater_gateway.ledger.lending import EXPIRES_S, RETRY_MS, Reply, Teller, with_seq
from breakwater_gateway.ledger.published import Place
from breakwater_gateway.ledger.reading import disagreements, read_books
from breakwater_gateway.ledger.snapshot import BadSnapshot, encode_snapshot, state_hash
from breakwater_gateway.runtime.bus import BusClosed, BusError, EventLog, Store, Stored
from breakwater_gateway.runtime.clock import Clock
from breakwater_gateway.runtime.tasks import TaskSet
from breakwater_gateway.runtime.telemetry import Log
from breakwater_protocol.events import BudgetChanged
from breakwater_protocol.ledger import (
    Books,
    Done,
    Granted,
    Lead,
    LeaseAsk,
    NotLeader,
    Operate,
    Query,
    Record,
    Reports,
    SetLimit,
)

BATCH_MAX: Final = 512
"""Messages that one record answers at most."""
QUEUE_MAX: Final = 16_384
"""Messages that wait at most; more are told to come again."""
APPEND_S: Final = 2.0
LANDED_S: Final = 3.0
SNAPSHOT_RECORDS: Final = 10_000
SNAPSHOT_S: Final = 60.0
LOG_KEPT: Final = 100_000
"""Records that the log keeps of each partition, for history and audits."""
KEPT_EVENTS: Final = 100_000
DISAGREEMENTS_MAX: Final = 20

_RECORD: Final = msgspec.json.Decoder(Record)
_ENCODER: Final = msgspec.json.Encoder()


class Asked(Struct):
    message: LeaseAsk | Reports | Operate | Query
    reply: str
    size: int


class Shell(Protocol):
    """What the actor does for its partitions."""

    id: str
    clock: Clock
    log: Log
    event_log: EventLog
    store: Store
    tasks: TaskSet
    record_bytes_max: int

    def time_ms(self) -> int: ...
    def leads(self) -> bool: ...
    def answer(self, reply: str, data: bytes) -> None: ...
    def answered(self, reply: Reply) -> None: ...
    def appended(self, took_s: float) -> None: ...
    def announce(self, partition: int, events: Sequence[BudgetChanged]) -> None: ...
    def unannounced(self, partition: int) -> bool: ...
    def alert(self, kind: str, message: str) -> None: ...
    def limited(self, partition: int, place: Place) -> None:
        """An operator's limit has changed, and the log has it."""
        ...

    def lost(self, why: str) -> None:
        """Another writer has the log, or what is in it is not known: follow."""
        ...


class Writer:
    def __init__(self, number: int, subject: str, shell: Shell) -> None:
        self.number = number
        self.subject = subject
        self.book = Book()
        self.seq = 0
        """Of the last record in the book."""
        self.appended_at = 0.0
        self.leading = False
        self.loaded = False
        self.broken = ""
        self._shell = shell
        self._queue: deque[Asked] = deque()
        self._expired: list[str] = []
        self._heard: dict[str, float] = {}
        """Open leases by when they were reported last, the oldest first."""
        self._kept: deque[tuple[int, BudgetChanged]] = deque(maxlen=KEPT_EVENTS)
        """Events of records that were folded, for whoever announces what a dead leader did not."""
        self._records = 0
        self._snapshot_at = 0.0
        self._writing = False
        self._wakes = False
        self._saving = False
        self._lost_from = 0
        """Where the log ended before it was rolled back."""
        self._reading = asyncio.Lock()

    # --- Following ----------------------------------------------------------------------------

    async def follow(self) -> None:
        """Fold what the log has by now. Raises `BusError`."""
        # A standby reads on by itself, and may be made the leader in the middle of it.
        async with self._reading:
            if not self.loaded:
                await self._load()
            while not self.broken:
                found = await self._shell.event_log.read(self.subject, after=self.seq)
                # Whoever leads has what it wrote in its book already, and it is confirmed a little later.
                if self.leading or not found:
                    return
                for stored in found:
                    self._fold(stored)

    async def _load(self) -> None:
        """From the last snapshot; without one, from the first record on."""
        self.book, self.seq, self.broken = Book(), 0, ""
        self._kept.clear()
        try:
            found = await load_snapshot(self._shell.store, self.number)
        except BadSnapshot as error:
            self._shell.log.error("ledger_snapshot_bad", partition=self.number, error=str(error))
            found = None
        if found is not None:
            self.book, self.seq = found
        self.loaded = True

    def _fold(self, stored: Stored) -> None:
        if stored.seq <= self.seq or self.broken:
            return
        try:
            self.book.fold(_RECORD.decode(stored.data))
        except (LogBroken, msgspec.MsgspecError, LookupError, ValueError) as error:
            self.broken = f"partition {self.number} at sequence {stored.seq}: {error}"
            self._shell.alert("ledger_broken", f"the ledger's log is not whole: {self.broken}")
            return
        self.seq = stored.seq
        self._kept.extend((stored.seq, event) for event in self.book.take_events())
        self.book.touched.clear()

    # --- Leading ------------------------------------------------------------------------------

    async def take_over(self) -> bool:
        """Lead from the end of the log on. False: its log is not whole. Raises `BusError`."""
        await self.follow()
        if self.broken:
            return False
        last = await self._shell.event_log.last(self.subject)
        end = last.seq if last is not None else 0
        self._lost_from = 0
        if end < self.seq:
            # The snapshot, or what this standby has read, knows more than the log: keep that, and say so
            # in the log before anything else.
            self._lost_from, self.seq = self.seq, end
            self._tell_rollback(self._lost_from)
        head = await read_head(self._shell.store, self.number)
        confirmed = head.seq if head is not None else 0
        events = [event for seq, event in self._kept if seq > confirmed]
        self._kept.clear()
        self._shell.announce(self.number, events)
        now = self._shell.clock.now()
        self._heard = {
            lease.id: now for lease in self.book.leases.values() if lease.state == "open"
        }
        self._snapshot_at, self._records = now, int(self.seq > confirmed)
        self.leading = True
        if self.seq or self._lost_from:
            # Say so in the log at once: whoever wrote before can write no more.
            self._wake()
        return True

    def step_down(self) -> None:
        """Answer nothing more. The book may have decisions in it that the log does not: forget it."""
        self.leading = False
        self.loaded = False
        self._queue.clear()
        self._expired.clear()
        self._heard.clear()

    def _lose(self, why: str) -> None:
        self.step_down()
        self._shell.lost(why)

    def ask(self, asked: Asked) -> None:
        if len(self._queue) >= QUEUE_MAX:
            self._shell.answer(asked.reply, _ENCODER.encode(NotLeader(4 * RETRY_MS)))
            return
        self._queue.append(asked)
        self._wake()

    def read(self, query: Query) -> Books:
        now = self._shell.clock.now()
        return read_books(
            self.book,
            query,
            partition=self.number,
            seq=self.seq,
            t_ms=self._shell.time_ms(),
            ages_s={lease: now - at for lease, at in self._heard.items()},
        )

    @property
    def settled(self) -> bool:
        """Nothing waits to be written: the book is what the log says."""
        return not self._writing and not self._queue

    def tick(self) -> None:
        """Leases that nobody reports expire, periods end, and the books are kept now and then."""
        if not self.leading:
            return
        now = self._shell.clock.now()
        while self._heard:
            lease = next(iter(self._heard))
            if now - self._heard[lease] < EXPIRES_S:
                break
            del self._heard[lease]
            self._expired.append(lease)
        due_ms = self.book.wake_at_ms()
        ends = due_ms is not None and due_ms <= self._shell.time_ms()
        if self._expired or ends:
            self._wake()
        elif self.settled:
            self._keep()

    def take_touched(self, limit: int) -> list[BudgetChanged]:
        """Lines that grants and settlements changed since, as they are now."""
        found = []
        for number in list(self.book.touched)[:limit]:
            kind = self.book.touched.pop(number)
            line = self.book.lines.get(number)
            if line is not None:
                found.append(
                    BudgetChanged(
                        kind=kind,
                        account=line.account,
                        unit=line.unit,
                        period=line.span.key,
                        limit=line.hard,
                        committed=line.committed,
                        held=line.held,
                        generation=line.generation,
                        at=self.book.t_ms / 1000,
                    )
                )
        return found

    async def audit(self) -> str:
        """Fold the log again, from the last snapshot; what is wrong, or nothing. Raises `BusError`."""
        if not self.leading or not self.settled or not self.seq:
            return ""
        until, wanted, n = self.seq, state_hash(self.book), self.book.n
        try:
            book, seq = await load_snapshot(self._shell.store, self.number) or (Book(), 0)
            if seq > until:
                return ""  # the books have gone on meanwhile
            while seq < until:
                found = await self._shell.event_log.read(self.subject, after=seq)
                if not found:
                    return f"the log of partition {self.number} ends before sequence {until}"
                for stored in found:
                    if stored.seq <= until:
                        book.fold(_RECORD.decode(stored.data))
                    seq = stored.seq
        except (BadSnapshot, LogBroken, msgspec.MsgspecError, LookupError, ValueError) as error:
            return f"the log of partition {self.number} does not fold: {error}"
        if book.n != n or state_hash(book) != wanted:
            return f"the books of partition {self.number} are not what the log up to {until} says"
        return ""

    # --- Writing ------------------------------------------------------------------------------

    def _wake(self) -> None:
        self._wakes = True
        if not self._writing:
            self._writing = True
            self._shell.tasks.spawn(self._write())

    async def _write(self) -> None:
        try:
            while self.leading and (self._wakes or self._queue):
                self._wakes = False
                if not await self._write_one():
                    break
        except BaseException:
            if self.leading:
                self._lose("the writer failed")
            raise
        finally:
            self._writing = False

    async def _write_one(self) -> bool:
        """Decide what waits, append it, answer it."""
        shell, book = self._shell, self.book
        if not shell.leads():
            self._lose("the lease lapsed")
            return False
        batch = self._take()
        seen = await self._rolled_back(batch)
        if seen is None or not self.leading or self.book is not book:
            return False
        teller = Teller(book, self.number, shell.time_ms())
        expired, self._expired = self._expired, []
        for lease in expired:
            teller.expire(lease)
        lost, self._lost_from = self._lost_from, 0
        if seen or lost:
            teller.rolled_back(max(seen, lost))
        replies = [self._decide(teller, asked.message) for asked in batch]
        if book.writer != shell.id and (teller.ops or self.seq):
            teller.enter(Lead(shell.id))
        begun_at = shell.clock.now()
        record = teller.record(shell.clock.new_id(f"{shell.id}/"))
        if record is not None:
            seq = await self._append(record)
            if self.book is not book:
                return False  # another life of this writer reads the log
            if not seq:
                self._lose("an append failed")
                return False
            self.seq, self.appended_at = seq, shell.clock.now()
            self._records += 1
            shell.appended(self.appended_at - begun_at)
            if lost and not self._saving:
                self.keep_now()  # the last snapshot names a sequence that the log has yet to reach
        now = shell.clock.now()
        for asked, reply in zip(batch, replies, strict=True):
            self._note(asked, reply, now)
            if isinstance(asked.message, Query):
                shell.answer(asked.reply, _ENCODER.encode(self.read(asked.message)))
            elif reply is not None:
                shell.answered(reply)
                shell.answer(asked.reply, _ENCODER.encode(with_seq(reply, self.seq)))
        shell.announce(self.number, book.take_events())
        if self._records >= SNAPSHOT_RECORDS:
            self._keep()
        return True

    def _take(self) -> list[Asked]:
        batch: list[Asked] = []
        room = self._shell.record_bytes_max
        while self._queue and len(batch) < BATCH_MAX and (room > 0 or not batch):
            asked = self._queue.popleft()
            room -= asked.size
            batch.append(asked)
        return batch

    async def _rolled_back(self, batch: Sequence[Asked]) -> int | None:
        """What a holder has seen beyond the end of the log; 0: nothing is lost. None: others have written
        on, and this is no leader any more."""
        seen = max(
            (
                asked.message.seen_seq
                for asked in batch
                if isinstance(asked.message, LeaseAsk | Reports)
            ),
            default=0,
        )
        if seen <= max(self.seq, self.book.safe_seq) or self.book.safe:
            return 0
        # A holder has seen what is not in the book: either the log has it, or has lost it.
        try:
            last = await self._shell.event_log.last(self.subject)
        except BusClosed:
            raise
        except (BusError, TimeoutError) as error:
            self._lose(f"the log did not answer: {error}")
            return None
        if last is not None and last.seq > self.seq:
            self._lose("another writer has appended")
            return None
        self._tell_rollback(seen)
        return seen

    def _tell_rollback(self, seen: int) -> None:
        self._shell.alert(
            "ledger_rollback",
            f"sequence {seen} of partition {self.number} was seen, and its log ends at {self.seq}:"
            " it was rolled back, and nothing is lent until an operator resumes it",
        )

    def _decide(
        self, teller: Teller, message: LeaseAsk | Reports | Operate | Query
    ) -> Reply | None:
        """The reply; None for what is read off the books once all of it is in the log."""
        match message:
            case LeaseAsk():
                return teller.ask(message)
            case Reports():
                self._compare(message)
                return teller.report(message)
            case Query():
                return None
            case Operate():
                reply = teller.operate(message.change)
                self._shell.log.info(
                    "ledger_operated",
                    change=str(message.change)[:500],
                    reply=type(reply).__name__,
                )
                return reply

    def _compare(self, reports: Reports) -> None:
        """Holders' claims beside the books."""
        if self.book.safe:
            return  # known to disagree
        for report in reports.reports[:DISAGREEMENTS_MAX]:
            fault = (
                disagreements(
                    self.book, report.lease[:256], units(report.cum_spent), final=report.final
                )
                if _is_id(report.lease)
                else ""
            )
            if fault:
                self._shell.alert("audit", f"partition {self.number}: {fault}")

    def _note(self, asked: Asked, reply: Reply | None, now: float) -> None:
        """Who is alive, and what routers have to know."""
        message = asked.message
        if isinstance(message, Operate):
            change = message.change
            if isinstance(change, SetLimit) and isinstance(reply, Done):
                self._shell.limited(self.number, (change.account, change.unit, change.period))
        elif isinstance(message, LeaseAsk):
            if isinstance(reply, Granted) and reply.state == "open":
                self._heard.setdefault(message.lease, now)
        elif isinstance(message, Reports):
            for report in message.reports:
                self._heard.pop(report.lease, None)
                known = self.book.leases.get(report.lease)
                if known is not None and known.state == "open":
                    self._heard[report.lease] = now

    async def _append(self, record: Record) -> int:
        """Its sequence; 0: it is not in the log, or nobody knows."""
        shell = self._shell
        data = _ENCODER.encode(record)
        try:
            async with asyncio.timeout(APPEND_S):
                return await shell.event_log.append(
                    self.subject, data, expected=self.seq, timeout_s=APPEND_S
                )
        except BusClosed:
            raise
        except (BusError, TimeoutError) as error:
            seq = await self._landed(record.id)
            shell.log.warning(
                "ledger_append_failed", partition=self.number, error=repr(error), landed=bool(seq)
            )
            return seq

    async def _landed(self, id_: str) -> int:
        """The sequence, if the log's last record is this one after all; else 0."""
        try:
            async with asyncio.timeout(LANDED_S):
                last = await self._shell.event_log.last(self.subject)
            if last is not None and _RECORD.decode(last.data).id == id_:
                return last.seq
        except BusClosed:
            raise
        except (BusError, TimeoutError, msgspec.MsgspecError) as error:
            self._shell.log.warning("ledger_log_unread", partition=self.number, error=repr(error))
        return 0

    # --- Snapshots ----------------------------------------------------------------------------

    def _keep(self) -> None:
        """Save a snapshot if it is time for one, and everything before it was announced."""
        now = self._shell.clock.now()
        if not self._records or self._saving or self._shell.unannounced(self.number):
            return
        if self._records < SNAPSHOT_RECORDS and now - self._snapshot_at < SNAPSHOT_S:
            return
        self.keep_now()

    def keep_now(self) -> None:
        self._saving = True
        self._records, self._snapshot_at = 0, self._shell.clock.now()
        data = encode_snapshot(self.book, partition=self.number, seq=self.seq)
        self._shell.tasks.spawn(self._save(data, self.seq))

    async def _save(self, data: bytes, seq: int) -> None:
        try:
            await save_snapshot(self._shell.store, self.number, data, seq=seq)
            # Far more than there can be since a snapshot.
            await self._shell.event_log.trim(self.subject, keep=LOG_KEPT)
        except (BusError, TimeoutError, BadSnapshot) as error:
            # The log has it all; the next one may be luckier.
            self._shell.log.warning("ledger_not_kept", partition=self.number, error=repr(error))
        finally:
            self._saving = False


def _is_id(lease: str) -> bool:
    parts = lease.rsplit("/", 2)
    return len(lease) <= 256 and len(parts) == 3 and parts[1].isdecimal() and parts[2].isdecimal()
