"""The index of the semantic cache: for each partition a matrix of unit vectors, searched by one product.

Rows live in one block a partition, grown by doubling; a row that goes leaves zeros, which are near
nothing, and its place is filled first. Above `LISTS_FROM` rows the block is cut into lists around centres
(IVF), and only the lists nearest to the question are searched. Everything is bounded in bytes: what is
worth least goes, by greedy-dual (cost saved by recent hits for each byte, with a floor that rises).
"""

import math
from array import array
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

import numpy as np
from msgspec import Struct, msgpack
from numpy.typing import NDArray

from breakwater_gateway.cache.decision import TOP, Candidate
from breakwater_gateway.cache.slots import conflict

Vector = NDArray[np.float32]

THREAD_FROM: Final = 20_000
"""Rows from which a search belongs in a thread: it takes more than a millisecond."""
LISTS_FROM: Final = 50_000
PROBE: Final = 8
"""Lists that are searched."""
SAMPLED: Final = 24
"""Entries that are compared when one has to go."""
ROW_OVERHEAD: Final = 600
"""Bytes of Python objects an entry has besides its vectors and texts, roughly."""
ANSWER_SAME: Final = 0.9
"""Cosine of two answers from which they say the same, if their numbers agree."""
DIMENSIONS_MAX: Final = 4_096


class Entry(Struct, array_like=True):
    """A row as the bucket keeps it. New fields at the end, with defaults."""

    id: str
    tenant: str
    partition: str
    model: str
    text: str
    digest: str
    vector: bytes
    """float16, little-endian: half the bucket, and cosines change by less than 0.001."""
    answer: str
    """Begins as the answer does: to compare, not to serve."""
    answer_vector: bytes
    answer_id: int
    cost_nano_usd: int | None
    answer_bytes: int
    at: float
    expires_at: float
    quarantined: float = -1.0
    embedder: str = ""
    """Vectors of two embedders must not meet."""
    asked: str = ""
    """The model's name as callers use it, where `model` is another (`gpt-*`)."""


encode_entry = msgpack.Encoder().encode
decode_entry = msgpack.Decoder(Entry).decode


def unit(raw: bytes | Vector, dimensions: int | None) -> Vector | None:
    """A unit vector out of float32 bytes or an array; None for a wrong size, NaN, infinity or zero."""
    if isinstance(raw, bytes):
        if len(raw) % 4 or not raw:
            return None
        vector = np.frombuffer(raw, dtype="<f4").astype(np.float32)
    else:
        vector = np.asarray(raw, dtype=np.float32)
    if vector.ndim != 1 or not 0 < vector.size <= DIMENSIONS_MAX:
        return None
    if dimensions is not None and vector.size != dimensions:
        return None
    length = float(np.sqrt(np.dot(vector, vector)))
    # NaN and infinity anywhere make the length so; a float32 product may overflow, too.
    if not math.isfinite(length) or length < 1e-12:
        return None
    return vector / np.float32(length)


def pack_half(vector: Vector) -> bytes:
    return vector.astype("<f2").tobytes()


def unpack_half(raw: bytes, dimensions: int | None = None) -> Vector | None:
    """A unit vector out of float16 bytes, by the same rules as `unit`."""
    if len(raw) % 2:
        return None
    return unit(np.frombuffer(raw, dtype="<f2").astype(np.float32), dimensions)


class _Block:
    """The vectors of one partition."""

    __slots__ = ("_free", "_lists", "rows", "size", "vectors")

    def __init__(self, dimensions: int) -> None:
        self.vectors: Vector = np.zeros((1, dimensions), np.float32)
        self.size = 0
        """Rows in use or free; those beyond have never been used."""
        self.rows: list[Entry | None] = []
        self._free: list[int] = []
        self._lists: Lists | None = None

    def __len__(self) -> int:
        return self.size - len(self._free)

    def add(self, entry: Entry, vector: Vector) -> int:
        if self._free:
            row = self._free.pop()
            self.rows[row] = entry
        else:
            row = self.size
            if row == len(self.vectors):
                grown = np.zeros((2 * row, self.vectors.shape[1]), np.float32)
                grown[:row] = self.vectors
                self.vectors = grown
            self.size += 1
            self.rows.append(entry)
        self.vectors[row] = vector
        if self._lists is not None:
            self._lists.add(row, vector)
        return row

    def remove(self, row: int) -> None:
        self.vectors[row] = 0.0
        self.rows[row] = None
        self._free.append(row)

    def nearest(self, query: Vector) -> list[int]:
        """At most `TOP` rows, nearest first. May run in a thread while rows come and go: `check` afterwards."""
        vectors, size, lists = self.vectors, self.size, self._lists
        if lists is None:
            rows = None
            similar = vectors[:size] @ query
        else:
            rows = lists.candidates(query)
            rows = rows[rows < len(vectors)]
            similar = vectors[rows] @ query
        count = min(TOP, len(similar))
        if count < len(similar):
            top = np.argpartition(similar, len(similar) - count)[len(similar) - count :]
        else:
            top = np.arange(count)
        top = top[np.argsort(-similar[top], kind="stable")]
        found: list[int] = (top if rows is None else rows[top]).tolist()
        return found

    def check(self, rows: list[int], query: Vector) -> list[tuple[Entry, int, float]]:
        """The entries that stand in these rows now, with their cosines, nearest first."""
        similar = (self.vectors[rows] @ query).tolist()
        found = [
            (entry, row, min(1.0, cosine))
            for row, cosine in zip(rows, similar, strict=True)
            if (entry := self.rows[row]) is not None
        ]
        found.sort(key=lambda each: -each[2])
        return found

    def wants_lists(self) -> bool:
        return self.size >= LISTS_FROM and (self._lists is None or self._lists.is_stale(self.size))

    def adopt(self, lists: "Lists") -> None:
        """Lists that were built of this block's first rows; those that came meanwhile are added."""
        for row in range(lists.built_of, self.size):
            lists.add(row, self.vectors[row])
        self._lists = lists


class Lists:
    """Rows by the centre they are nearest to: as many centres as the root of the rows, by k-means."""

    def __init__(self, vectors: Vector) -> None:
        """Takes a second for 100,000 rows: for a thread."""
        self.built_of = len(vectors)
        count = max(1, int(math.sqrt(len(vectors))))
        # Evenly spread instead of drawn: the same rows give the same lists.
        sample = vectors[:: max(1, len(vectors) // (count * 20))]
        centres = sample[:: max(1, len(sample) // count)][:count].copy()
        for _ in range(3):
            owner = (sample @ centres.T).argmax(axis=1)
            for index in range(len(centres)):
                members = sample[owner == index]
                if len(members):
                    mean = members.mean(axis=0)
                    length = float(np.linalg.norm(mean))
                    if length > 1e-12:
                        centres[index] = mean / length
        self._centres = centres
        self._members = [array("q") for _ in range(len(centres))]
        for start in range(0, len(vectors), 4096):
            owners = (vectors[start : start + 4096] @ centres.T).argmax(axis=1).tolist()
            for row, owner_of in enumerate(owners, start):
                self._members[owner_of].append(row)

    def is_stale(self, size: int) -> bool:
        """Half again as many rows want other centres."""
        return size > 1.5 * self.built_of

    def add(self, row: int, vector: Vector) -> None:
        """A row that was there before under another vector stays in its old list too, which does no harm."""
        self._members[int((self._centres @ vector).argmax())].append(row)

    def candidates(self, query: Vector) -> NDArray[np.int64]:
        near = self._centres @ query
        probe = min(PROBE, len(near))
        lists = np.argpartition(near, len(near) - probe)[len(near) - probe :]
        # A copy made in one step: a view would forbid the loop to append meanwhile.
        raw = b"".join([self._members[each].tobytes() for each in lists.tolist()])
        return np.unique(np.frombuffer(raw, np.int64))


class Found(Struct, frozen=True):
    candidates: list[Candidate]
    entries: list[Entry]
    """Of the candidates, in their order."""


class _Worth:
    """What an entry is worth keeping: by greedy-dual, its value when last used above the floor of then."""

    __slots__ = ("bytes", "hits", "place", "row", "value")

    def __init__(self, place: int, row: int, size: int) -> None:
        self.place = place
        self.row = row
        self.bytes = size
        self.hits = 0
        self.value = 0.0


class Index:
    """All partitions of an owner. One embedder's vectors, `bytes_max` in all; nothing here waits."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.bytes = 0
        self.dimensions: int | None = None
        """Of the first vector; all others must have as many."""
        self._blocks: dict[str, _Block] = {}
        self._entries: dict[str, Entry] = {}
        self._worth: dict[str, _Worth] = {}
        self._ids: list[str] = []
        """In no order, for sampling."""
        self._floor = 0.0
        self._answers = 0
        self._step = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def get(self, id_: str) -> Entry | None:
        return self._entries.get(id_)

    def size_of(self, id_: str) -> int:
        """Bytes that an entry takes."""
        return self._worth[id_].bytes

    def hits_of(self, id_: str) -> int:
        return self._worth[id_].hits

    def of(self, partition: str) -> list[Entry]:
        """All entries of it."""
        block = self._blocks.get(partition)
        return [] if block is None else [entry for entry in block.rows if entry is not None]

    def size(self, partition: str) -> int:
        block = self._blocks.get(partition)
        return 0 if block is None else len(block)

    def partitions(self) -> dict[str, int]:
        return {name: len(block) for name, block in self._blocks.items()}

    def search(self, partition: str, query: Vector) -> "Found":
        """The entries nearest to the question, nearest first."""
        block = self._blocks.get(partition)
        return Found([], []) if block is None else self._found(block, block.nearest(query), query)

    def begin(self, partition: str, query: Vector) -> Callable[[], list[int]]:
        """The long part of a search, to be called in a thread; `finish` makes of its result what is found."""
        block = self._blocks.get(partition)
        return list if block is None else partial(block.nearest, query)

    def finish(self, partition: str, rows: list[int], query: Vector) -> "Found":
        block = self._blocks.get(partition)
        if block is None:
            return Found([], [])
        return self._found(block, [row for row in rows if row < block.size], query)

    def to_list(self, partition: str) -> Vector | None:
        """The vectors that `Lists` should be built of, in a thread; None where none are wanted."""
        block = self._blocks.get(partition)
        return block.vectors[: block.size] if block is not None and block.wants_lists() else None

    def adopt(self, partition: str, lists: Lists) -> None:
        block = self._blocks.get(partition)
        if block is not None and block.size >= lists.built_of:
            block.adopt(lists)

    @staticmethod
    def _found(block: _Block, rows: list[int], query: Vector) -> "Found":
        candidates, entries = [], []
        for entry, row, similarity in block.check(rows, query):
            candidates.append(
                Candidate(
                    row=row,
                    similarity=similarity,
                    answer=entry.answer_id,
                    text=entry.text,
                    tenant=entry.tenant,
                    expires_at=entry.expires_at,
                    quarantined=entry.quarantined,
                )
            )
            entries.append(entry)
        return Found(candidates, entries)

    def add(self, entry: Entry, vector: Vector) -> list[Entry]:
        """Puts it in, in place of one with its id; what had to go for it."""
        self.remove(entry.id)
        if self.dimensions is None:
            self.dimensions = vector.size
        block = self._blocks.get(entry.partition)
        if block is None:
            block = self._blocks[entry.partition] = _Block(vector.size)
        row = block.add(entry, vector)
        size = _size_of(entry, vector.size)
        self._entries[entry.id] = entry
        worth = self._worth[entry.id] = _Worth(len(self._ids), row, size)
        self._ids.append(entry.id)
        self._answers = max(self._answers, entry.answer_id)
        self.bytes += size
        self._touch(entry, worth)
        return self._evict(keep=entry.id)

    def answer_id(self, found: Found, answer: str, vector: Vector | None) -> int:
        """The number of a neighbour whose answer says the same as this one; a new one if none does."""
        for entry in found.entries:
            if same_answer(entry, answer, vector):
                return entry.answer_id
        self._answers += 1
        return self._answers

    def remove(self, id_: str) -> bool:
        entry = self._entries.pop(id_, None)
        if entry is None:
            return False
        worth = self._worth.pop(id_)
        last = self._ids.pop()
        if last != id_:
            self._ids[worth.place] = last
            self._worth[last].place = worth.place
        block = self._blocks[entry.partition]
        block.remove(worth.row)
        if not len(block):
            del self._blocks[entry.partition]
        self.bytes -= worth.bytes
        return True

    def used(self, id_: str) -> None:
        """It saved its cost once more."""
        entry, worth = self._entries.get(id_), self._worth.get(id_)
        if entry is not None and worth is not None:
            worth.hits += 1
            self._touch(entry, worth)

    def _touch(self, entry: Entry, worth: _Worth) -> None:
        # An answer of unknown price counts as a cheap one: a ten-thousandth of a dollar.
        cost = 100_000 if entry.cost_nano_usd is None else max(1, entry.cost_nano_usd)
        worth.value = self._floor + cost * (1 + worth.hits) / (worth.bytes + entry.answer_bytes)

    def _evict(self, keep: str) -> list[Entry]:
        gone: list[Entry] = []
        while self.bytes > self.bytes_max and len(self._ids) > 1:
            victim = min(
                (id_ for id_ in self._sample() if id_ != keep),
                key=lambda id_: self._worth[id_].value,
                default=None,
            )
            if victim is None:
                continue
            self._floor = max(self._floor, self._worth[victim].value)
            gone.append(self._entries[victim])
            self.remove(victim)
        return gone

    def _sample(self) -> list[str]:
        """Some ids, spread by a full-period step: no chance is needed to see all of them in turn."""
        count = len(self._ids)
        found = []
        for _ in range(min(SAMPLED, count)):
            self._step = (self._step + (7_919 if count % 7_919 else 1)) % count
            found.append(self._ids[self._step])
        return found


def same_answer(entry: Entry, answer: str, vector: Vector | None) -> bool:
    """Whether the entry's answer says the same as this one."""
    if entry.answer == answer or _plain(entry.answer) == _plain(answer):
        return True
    if vector is None or not entry.answer_vector:
        return False
    known = unpack_half(entry.answer_vector, vector.size)
    return (
        known is not None
        and float(known @ vector) >= ANSWER_SAME
        and not conflict(entry.answer, answer, "numbers")
    )


def _plain(text: str) -> str:
    return " ".join("".join(c if c.isalnum() else " " for c in text.casefold()).split())


def _size_of(entry: Entry, dimensions: int) -> int:
    texts = 2 * (len(entry.text) + len(entry.answer)) + len(entry.partition) + len(entry.digest)
    # Twice a vector: a block that has just doubled is half empty.
    return 8 * dimensions + len(entry.vector) + len(entry.answer_vector) + texts + ROW_OVERHEAD
