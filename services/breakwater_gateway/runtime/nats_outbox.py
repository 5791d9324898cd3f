"""What is published over a connection and is not on the wire yet: bounded, in order, written together."""

import asyncio
from collections import deque
from collections.abc import Mapping
from typing import Final

from msgspec import Struct

from breakwater_gateway.runtime.bus import (
    NO_HEADERS,
    BusClosed,
    BusOverloaded,
    MessageTooLarge,
    check_reply,
)
from breakwater_gateway.runtime.nats_headers import write_headers

OUTBOX_MAX: Final = 65_536
OUTBOX_BYTES_MAX: Final = 64 * 1024 * 1024
BATCH_BYTES: Final = 256 * 1024
"""Messages that wait are written together, up to this much."""
_CRLF: Final = b"\r\n"


class Batch(Struct, frozen=True):
    commands: bytes
    messages: int
    size: int
    """Of payloads and headers, which count against the bounds."""


class Outbox:
    """Holds commands as they go over the wire. What waits survives a reconnect; nobody's own buffer does."""

    def __init__(self, *, messages_max: int, bytes_max: int) -> None:
        self.max_message = 0
        """Bytes of headers and payload of one message; as the server says when it is there."""
        self._messages_max = messages_max
        self._bytes_max = bytes_max
        self._closed = ""
        self._waits: deque[tuple[bytes, bytes, int]] = deque()
        """Head, payload, and the size that counts against the bounds."""
        self._bytes = 0
        self._published = 0
        self._sent = 0
        self._wake: asyncio.Future[None] | None = None
        self._flushes: deque[tuple[int, asyncio.Future[None]]] = deque()

    def __len__(self) -> int:
        return len(self._waits)

    def close(self, why: str) -> None:
        """Nothing more is taken; `publish` says why."""
        self._closed = why

    def publish(
        self,
        subject: str,
        data: bytes = b"",
        *,
        reply: str = "",
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> None:
        """Raises `MessageTooLarge`, `BusOverloaded` or `BusClosed`."""
        if self._closed:
            raise BusClosed(self._closed)
        check_reply(subject, reply)
        size = len(data)
        block = b""
        if headers:
            block = write_headers(headers)
            size += len(block)
        if size > self.max_message:
            raise MessageTooLarge(f"{size} bytes to {subject[:200]}, {self.max_message} may be")
        if len(self._waits) >= self._messages_max or self._bytes + size > self._bytes_max:
            raise BusOverloaded(f"{len(self._waits)} messages wait for NATS")
        if block:
            head = f"HPUB {subject} {reply} {len(block)} {size}\r\n".encode() + block
        else:
            head = f"PUB {subject} {reply} {size}\r\n".encode()
        self._waits.append((head, data, size))
        self._bytes += size
        self._published += 1
        if self._wake is not None:
            self._wake.set_result(None)
            self._wake = None

    async def something(self) -> None:
        """Returns when there is something to send. For one task."""
        if not self._waits:
            self._wake = asyncio.get_running_loop().create_future()
            await self._wake

    def batch(self) -> Batch:
        """What goes next. It stays here until it is `sent`."""
        pieces: list[bytes] = []
        count = total = 0
        for head, data, size in self._waits:
            pieces += (head, data, _CRLF)
            count += 1
            total += size
            if total >= BATCH_BYTES:
                break
        return Batch(b"".join(pieces), count, total)

    def sent(self, batch: Batch) -> None:
        for _ in range(batch.messages):
            self._waits.popleft()
        self._bytes -= batch.size
        self._sent += batch.messages
        while self._flushes and self._flushes[0][0] <= self._sent:
            future = self._flushes.popleft()[1]
            if not future.done():
                future.set_result(None)

    async def emptied(self) -> None:
        """Returns when all that was published so far is sent."""
        if self._sent < self._published:
            future = asyncio.get_running_loop().create_future()
            self._flushes.append((self._published, future))
            await future
