"""A book as bytes and back, with the hash of its state: so that a replay begins where the snapshot ends.

The same log folds to the same state, and the same state to the same bytes, whoever folds it.
"""

import heapq
import zlib
from hashlib import blake2b
from typing import Final

import msgspec
from msgspec import Struct

from breakwater_gateway.ledger.book import (
    UNITS,
    Book,
    BookLine,
    Bucket,
    Lease,
    LeaseState,
    Units,
    charge_of,
    holder_of,
)
from breakwater_gateway.ledger.period import Span, parse_period
from breakwater_protocol.ledger import Unit

FORMAT: Final = 1


class BadSnapshot(Exception):
    """Not whole, of another format, or not what its hash says."""


class _Bucket(Struct, array_like=True, gc=False):
    key: str
    slot: int
    committed: int
    counts: bool
    crossed: tuple[int, ...]
    exhausted: bool


class _Line(Struct, array_like=True, gc=False):
    number: int
    account: str
    unit: Unit
    spec: str
    span: tuple[str, int, int | None, int]
    rule: int | None
    override: int | None
    soft: tuple[int, ...]
    revision: int
    generation: int
    due_ms: int | None
    crossed: tuple[int, ...]
    exhausted: bool
    buckets: tuple[_Bucket, ...]


class _Lease(Struct, array_like=True, gc=False):
    id: str
    amount: Units
    debits: tuple[tuple[int, str], ...]
    spent: Units
    peak: Units
    state: LeaseState
    since_ms: int
    breached: bool


class _State(Struct, array_like=True, gc=False):
    n: int
    t_ms: int
    writer: str
    next_line: int
    safe: bool
    safe_seq: int
    lines: tuple[_Line, ...]
    leases: tuple[_Lease, ...]
    closed: tuple[str, ...]
    expired: tuple[str, ...]
    floors: tuple[tuple[str, int, int, int], ...]


class Snapshot(Struct, frozen=True):
    """Who reads it folds the log from behind `seq`."""

    format: int
    partition: int
    n: int
    seq: int
    hash: str
    state: bytes
    """Compressed."""


_ENCODER: Final = msgspec.json.Encoder()
_STATE: Final = msgspec.json.Decoder(_State)
_SNAPSHOT: Final = msgspec.msgpack.Decoder(Snapshot)


def state_hash(book: Book) -> str:
    return _hash(_ENCODER.encode(_state(book)))


def encode_snapshot(book: Book, *, partition: int, seq: int) -> bytes:
    state = _ENCODER.encode(_state(book))
    snapshot = Snapshot(FORMAT, partition, book.n, seq, _hash(state), zlib.compress(state, 1))
    return msgspec.msgpack.encode(snapshot)


def decode_snapshot(data: bytes, *, partition: int) -> tuple[Book, int]:
    """The book, and the sequence of the last record in it. Raises `BadSnapshot`."""
    try:
        snapshot = _SNAPSHOT.decode(data)
        state = zlib.decompress(snapshot.state)
        if snapshot.format != FORMAT or snapshot.partition != partition:
            raise BadSnapshot(f"format {snapshot.format} of partition {snapshot.partition}")
        if _hash(state) != snapshot.hash:
            raise BadSnapshot("the state is not what its hash says")
        book = _book(_STATE.decode(state))
    except (msgspec.MsgspecError, zlib.error, ValueError, KeyError) as error:
        raise BadSnapshot(str(error)) from None
    return book, snapshot.seq


def _hash(state: bytes) -> str:
    return blake2b(state, digest_size=16).hexdigest()


def _state(book: Book) -> _State:
    return _State(
        n=book.n,
        t_ms=book.t_ms,
        writer=book.writer,
        next_line=book.next_line,
        safe=book.safe,
        safe_seq=book.safe_seq,
        lines=tuple(_plain_line(line) for line in book.lines.values()),
        leases=tuple(_plain_lease(lease) for lease in book.leases.values()),
        closed=tuple(book.closed),
        expired=tuple(book.expired),
        floors=tuple((holder, *floor) for holder, floor in book.floors.items()),
    )


def _plain_line(line: BookLine) -> _Line:
    return _Line(
        number=line.number,
        account=line.account,
        unit=line.unit,
        spec=line.spec,
        span=line.span,
        rule=line.rule,
        override=line.override,
        soft=line.soft,
        revision=line.revision,
        generation=line.generation,
        due_ms=line.due_ms,
        crossed=line.crossed,
        exhausted=line.exhausted,
        buckets=tuple(
            _Bucket(b.key, b.slot, b.committed, b.counts, b.crossed, b.exhausted)
            for b in line.buckets.values()
        ),
    )


def _plain_lease(lease: Lease) -> _Lease:
    return _Lease(
        id=lease.id,
        amount=lease.amount,
        debits=tuple((line.number, bucket.key) for line, bucket in lease.debits),
        spent=lease.spent,
        peak=lease.peak,
        state=lease.state,
        since_ms=lease.since_ms,
        breached=lease.breached,
    )


def _book(state: _State) -> Book:
    """What is derived (held, sums, who holds what, what is due) is derived anew."""
    book = Book()
    book.n, book.t_ms, book.writer = state.n, state.t_ms, state.writer
    book.next_line, book.safe, book.safe_seq = state.next_line, state.safe, state.safe_seq
    for plain in state.lines:
        line = BookLine(
            number=plain.number,
            account=plain.account,
            unit=plain.unit,
            spec=plain.spec,
            period=parse_period(plain.spec),
            span=Span(*plain.span),
            at=UNITS[plain.unit],
            rule=plain.rule,
            override=plain.override,
            soft=plain.soft,
            revision=plain.revision,
            generation=plain.generation,
            due_ms=plain.due_ms,
            crossed=plain.crossed,
            exhausted=plain.exhausted,
            buckets={
                b.key: Bucket(b.key, b.slot, b.committed, 0, b.counts, 0, b.crossed, b.exhausted)
                for b in plain.buckets
            },
            holders={},
        )
        line.committed = sum(b.committed for b in line.buckets.values() if b.counts)
        book.lines[line.number] = line
        book.index[line.account, line.unit, line.spec] = line
        if line.due_ms is not None:
            heapq.heappush(book.due, (line.due_ms, line.number))
    for kept in state.leases:
        _put_lease(book, kept)
    for id_ in state.closed:
        book.closed[id_] = book.leases[id_].since_ms
    for id_ in state.expired:
        book.expired[id_] = book.leases[id_].since_ms
    for holder, incarnation, number, at_ms in state.floors:
        book.floors[holder] = (incarnation, number, at_ms)
    return book


def _put_lease(book: Book, plain: _Lease) -> None:
    debits = tuple(
        (book.lines[number], book.lines[number].buckets[key]) for number, key in plain.debits
    )
    lease = Lease(
        id=plain.id,
        holder=holder_of(plain.id)[0],
        amount=plain.amount,
        debits=debits,
        spent=plain.spent,
        peak=plain.peak,
        state=plain.state,
        since_ms=plain.since_ms,
        breached=plain.breached,
    )
    lease.committed, lease.held = charge_of(lease)
    for line, bucket in debits:
        bucket.refs += 1
        held = lease.held[line.at]
        bucket.held += held
        if bucket.counts:
            line.held += held
        if lease.state == "open":
            line.holders[lease.holder] = line.holders.get(lease.holder, 0) + 1
    book.leases[lease.id] = lease
