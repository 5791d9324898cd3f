"""An answer as the worker reads it, whichever wire carries it."""

import asyncio
from collections.abc import Awaitable, Mapping
from typing import Final, Protocol

from breakwater_gateway.worker.http.errors import AnswerTooLarge, HttpFailure, ReadFailed
from breakwater_gateway.worker.http.inflate import Inflate, inflater

HIGH_WATER_BYTES: Final = 256 * 1024
"""More than this unread, and the other side is no longer read from (or granted window)."""
PIECES_MAX: Final = 1024
"""The same for the number of pieces, so that tiny chunks cannot cost many times their size."""

RawHeaders = list[tuple[bytes, bytes]]


def joined_headers(raw: RawHeaders) -> dict[str, str]:
    """Lower-case names, repeated ones joined by `, ` (RFC 9110, 5.3)."""
    headers: dict[str, str] = {}
    for raw_name, raw_value in raw:
        name = raw_name.decode("latin-1").lower()
        value = raw_value.decode("latin-1").strip(" \t")
        earlier = headers.get(name)
        headers[name] = value if earlier is None else f"{earlier}, {value}"
    return headers


class Answer:
    """A response whose head is here. Exactly one reader; `close` it whatever happens.

    Decoding of a content coding is done here for all wires; a wire gives raw pieces.
    """

    __slots__ = ("_headers", "_inflate", "http_version", "raw_headers", "retried", "status")

    def __init__(self) -> None:
        self.status = 0
        self.http_version = "1.1"
        self.retried = False
        """The request went out twice: the first, reused connection was already dead."""
        self.raw_headers: RawHeaders = []
        self._headers: dict[str, str] | None = None
        self._inflate: Inflate | None = None

    @property
    def headers(self) -> Mapping[str, str]:
        """Lower-case names; repeated ones joined by `, `."""
        if self._headers is None:
            self._headers = joined_headers(self.raw_headers)
        return self._headers

    @property
    def buffered(self) -> int:
        """Bytes (as received) that wait for `chunk`."""
        raise NotImplementedError

    @property
    def ended(self) -> bool:
        """The end has arrived and nothing waits to be read."""
        raise NotImplementedError

    def close(self) -> None:
        """Done with it: an unfinished answer's connection (or stream) is aborted. Idempotent."""
        raise NotImplementedError

    def chunk(self) -> Awaitable[bytes | None]:
        """Everything received since the last call, never empty; None at the clean end.

        Raises CutAnswer, ReadFailed, MalformedHttp, AnswerTooLarge (of a compressed body).
        Cancelling it closes the answer.
        """
        return self._raw_chunk() if self._inflate is None else self._decoded_chunk(self._inflate)

    async def read(self, limit: int) -> bytes:
        """The whole (rest of the) body. Raises AnswerTooLarge over `limit` bytes, or as `chunk`."""
        first = await self.chunk()
        if first is None:
            return b""
        pieces = [first]
        size = len(first)
        while size <= limit:
            piece = None if self._inflate is None and self.ended else await self.chunk()
            if piece is None:
                return first if len(pieces) == 1 else b"".join(pieces)
            pieces.append(piece)
            size += len(piece)
        self.close()
        raise AnswerTooLarge(limit)

    def decode_with_limit(self, limit: int) -> None:
        """Undo the content coding from here on, giving at most `limit` bytes in all.

        Raises MalformedHttp if the coding is unknown.
        """
        for name, _ in self.raw_headers:
            if len(name) == 16 and name.lower() == b"content-encoding":
                self._inflate = inflater(self.headers["content-encoding"], limit)
                return

    async def _raw_chunk(self) -> bytes | None:
        raise NotImplementedError

    async def _decoded_chunk(self, inflate: Inflate) -> bytes | None:
        try:
            while True:
                if out := inflate.step():
                    return out
                raw = await self._raw_chunk()
                if raw is None:
                    inflate.finish()
                    return None
                inflate.feed(raw)
        except HttpFailure:
            self.close()
            raise


class Carrier(Protocol):
    """The connection under a WireAnswer."""

    def consumed(self, answer: "WireAnswer", count: int) -> None:
        """The reader took `count` bytes: more may come."""
        ...

    def abandon(self, answer: "WireAnswer") -> None:
        """Nobody reads the rest: tell the other side at once."""
        ...


class WireAnswer(Answer):
    """Filled by a connection's callbacks, emptied by its reader."""

    __slots__ = (
        "carrier",
        "complete",
        "failure",
        "head_done",
        "held_back",
        "pieces",
        "size",
        "unprocessed",
        "waiter",
    )

    def __init__(self, carrier: Carrier) -> None:
        # Not super().__init__: this runs for every call.
        self.status = 0
        self.http_version = "1.1"
        self.retried = False
        self.raw_headers = []
        self._headers = None
        self._inflate = None
        self.carrier: Carrier | None = carrier
        """None once the connection has nothing more to do with this answer."""
        self.pieces: list[bytes] = []
        self.size = 0
        self.head_done = False
        self.complete = False
        self.failure: HttpFailure | None = None
        self.held_back = False
        """The carrier wants to be told of what is consumed."""
        self.unprocessed = False
        """It failed in a way that leaves the request free to be sent again."""
        self.waiter: asyncio.Future[None] | None = None

    @property
    def buffered(self) -> int:
        return self.size

    @property
    def ended(self) -> bool:
        return self.complete and not self.pieces

    def close(self) -> None:
        if self.carrier is not None:
            self.carrier.abandon(self)
            self.finish(ReadFailed("the answer was closed before its end"))
        self.pieces.clear()
        self.size = 0

    def finish(self, failure: HttpFailure | None = None) -> None:
        """By the carrier: nothing more comes; `failure` if that is not the clean end."""
        self.carrier = None
        self.failure = failure
        self.complete = failure is None
        self.wake()

    def wake(self) -> None:
        waiter = self.waiter
        if waiter is not None:
            self.waiter = None
            if not waiter.done():
                waiter.set_result(None)

    async def head(self, loop: asyncio.AbstractEventLoop) -> None:
        """Waits for status and headers. Raises as `chunk`; cancelling it closes the answer."""
        try:
            while not self.head_done and self.failure is None:
                self.waiter = waiter = loop.create_future()
                await waiter
        except BaseException:
            self.close()
            raise
        if not self.head_done and self.failure is not None:
            raise self.failure

    async def _raw_chunk(self) -> bytes | None:
        pieces = self.pieces
        while not pieces:
            if self.complete:
                return None
            if self.failure is not None:
                raise self.failure
            self.waiter = waiter = asyncio.get_running_loop().create_future()
            try:
                await waiter
            except BaseException:
                self.close()
                raise
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self.size = 0
        if self.held_back and self.carrier is not None:
            self.carrier.consumed(self, len(data))
        return data
