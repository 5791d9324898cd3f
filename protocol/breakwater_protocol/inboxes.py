"""Where a client hears: the answers to its asks, and the subjects it listens to; bounded both."""

import asyncio
from collections import deque
from collections.abc import Mapping
from typing import Final

import msgspec
from msgspec import Struct

from breakwater_protocol.answers import (
    BreakwaterError,
    ReaderTooSlow,
)

NO_HEADERS: Final[Mapping[str, str]] = {}
_LATE_S: Final = 0.1
"""A timer that fires later than this tells of a blocked event loop on this side …"""
_GRACE_S: Final = 1.0
"""… which then gets this long to take in what is already in its socket."""


class Heard(Struct, frozen=True):
    """A message of a subscription. `missed`: how many were dropped before it as too many waited."""

    subject: str
    data: bytes
    headers: Mapping[str, str]
    missed: int = 0


class Inbox:
    """The messages of one request, bounded, for one reader. Late ones are dropped by the client."""

    __slots__ = (
        "_bytes",
        "_bytes_max",
        "_error",
        "_loop",
        "_messages",
        "_messages_max",
        "_waiter",
        "asked",
        "reply",
        "request",
    )

    def __init__(
        self, reply: str, *, asked: str, request: str, messages_max: int, bytes_max: int
    ) -> None:
        self.reply = reply
        self.asked = asked
        """The subject that was asked."""
        self.request = request
        """The id to cancel; empty for asks that need no cancelling."""
        self._loop = asyncio.get_running_loop()
        self._messages: deque[tuple[bytes, Mapping[str, str]]] = deque()
        self._messages_max = messages_max
        self._bytes = 0
        self._bytes_max = bytes_max
        self._error: BreakwaterError | None = None
        self._waiter: asyncio.Future[None] | None = None

    def put(self, data: bytes, headers: Mapping[str, str]) -> None:
        if self._error is not None:
            return
        # A single message is always taken: the server's max_payload bounds it.
        if self._messages and (
            len(self._messages) >= self._messages_max or self._bytes + len(data) > self._bytes_max
        ):
            self.fail(
                ReaderTooSlow(
                    f"{len(self._messages)} messages of {self._bytes} bytes wait to be read;"
                    " read faster, or raise buffer_messages and buffer_bytes"
                )
            )
            return
        self._messages.append((data, headers))
        self._bytes += len(data)
        self._wake()

    def fail(self, error: BreakwaterError) -> None:
        """The reader gets what came before, then this."""
        if self._error is None:
            self._error = error
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def get(self, *, due: float) -> tuple[bytes, Mapping[str, str]]:
        """The next message, in order. Raises what `fail` was given, and `TimeoutError` at `due`."""
        grace = True
        while not self._messages:
            if self._error is not None:
                raise self._error
            self._waiter = self._loop.create_future()
            timer = self._loop.call_at(due, self._wake)
            try:
                await self._waiter
            finally:
                timer.cancel()
                self._waiter = None
            late = self._loop.time() - due
            if self._messages or self._error is not None or late < 0:
                continue
            if not grace or late < _LATE_S:
                raise TimeoutError
            grace = False
            due = self._loop.time() + _GRACE_S
        data, headers = self._messages.popleft()
        self._bytes -= len(data)
        return data, headers


class Listener:
    """The messages of one subscription; of too many, the last."""

    def __init__(self, subject: str, waiting_max: int) -> None:
        self.subject = subject
        self._waiting: deque[Heard] = deque(maxlen=waiting_max)
        self._missed = 0
        self._error: BreakwaterError | None = None
        self._arrived = asyncio.Event()

    def take(self, subject: str, data: bytes, headers: Mapping[str, str]) -> None:
        if len(self._waiting) == self._waiting.maxlen:
            self._missed += 1
        self._waiting.append(Heard(subject, data, headers))
        self._arrived.set()

    def fail(self, error: BreakwaterError) -> None:
        self._error = error
        self._arrived.set()

    async def next(self) -> Heard:
        while not self._waiting:
            if self._error is not None:
                raise self._error
            self._arrived.clear()
            await self._arrived.wait()
        heard = self._waiting.popleft()
        if self._missed:
            heard, self._missed = msgspec.structs.replace(heard, missed=self._missed), 0
        return heard
