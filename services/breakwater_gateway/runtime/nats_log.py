"""Logs over JetStream: appends fenced by the expected sequence, reads by sequence, what is published once.

Of the server's ways to read, the direct one may be answered by a replica that lags; so what decides (the
last message) is asked of the stream's leader, and only what comes after it in order is read directly.
"""

import asyncio
import base64
from datetime import datetime
from typing import Final

from msgspec import Struct
from msgspec import json as msgspec_json

from breakwater_gateway.runtime.bus import (
    ONCE_KEPT_S,
    READ_MAX,
    AskTimeout,
    BusError,
    Message,
    MessageTooLarge,
    NoResponders,
    Stored,
)
from breakwater_gateway.runtime.nats_store import SEQUENCE, Side
from breakwater_gateway.runtime.streams import (
    EXPECTED_REVISION,
    SECOND_NS,
    STREAM_NOT_FOUND,
    TIMEOUT_S,
    JetStream,
    JetStreamError,
    Republish,
    StreamConfig,
)
from breakwater_protocol import headers as h

NO_MESSAGE: Final = 10037
SUBJECT: Final = "Nats-Subject"
TIME: Final = "Nats-Time-Stamp"
BEFORE: Final = "Nats-Last-Sequence"
READ_BYTES_MAX: Final = 16 * 1024 * 1024


def log_stream(name: str, subject: str, *, max_bytes: int, replicas: int) -> StreamConfig:
    return StreamConfig(
        name=name,
        subjects=(subject,),
        max_bytes=max_bytes,
        num_replicas=replicas,
        deny_delete=True,
    )


def once_stream(first: str, *, replicas: int) -> StreamConfig:
    """Of subjects that begin with the token `first`.

    The key is a token of the stored subject, of which the stream takes one message; what it takes the
    server itself publishes, under the plain subject.
    """
    return StreamConfig(
        # Not below the root's own subjects, as with claims.
        name=f"BREAKWATER_ONCE_{first}",
        subjects=(f"_ONCE.{first}.>",),
        discard="new",
        discard_new_per_subject=True,
        max_msgs_per_subject=1,
        max_age=ONCE_KEPT_S * SECOND_NS,
        num_replicas=replicas,
        republish=Republish(src=f"_ONCE.{first}.*.{first}.>", dest=f"{first}.>"),
    )


class _Kept(Struct, frozen=True):
    subject: str = ""
    seq: int = 0
    data: str = ""
    time: str = ""


class _Got(Struct):
    message: _Kept = _Kept()


class NatsLog:
    def __init__(self, side: Side, jetstream: JetStream, config: StreamConfig) -> None:
        self.config = config
        self._side = side
        self._jetstream = jetstream

    async def append(
        self, subject: str, data: bytes, *, expected: int, timeout_s: float = 2.0
    ) -> int:
        if len(data) > self._side.max_message - 512:
            raise MessageTooLarge(f"{len(data)} bytes, {self._side.max_message} may be")
        headers = {EXPECTED_REVISION: str(expected)}
        try:
            return await self._jetstream.publish(
                subject, data, headers=headers, timeout_s=timeout_s
            )
        except NoResponders:
            # No stream takes it: it is gone with its server's disk, or its leader is being elected.
            await self._ensure()
            raise

    async def last(self, subject: str) -> Stored | None:
        try:
            got = await self._jetstream.request(
                f"STREAM.MSG.GET.{self.config.name}", {"last_by_subj": subject}, _Got
            )
        except JetStreamError as error:
            if error.code == NO_MESSAGE:
                return None
            if error.code == STREAM_NOT_FOUND:
                await self._ensure()
                return None
            raise
        kept = got.message
        return Stored(kept.subject, kept.seq, base64.b64decode(kept.data), _unix(kept.time))

    async def read(self, pattern: str, *, after: int, limit: int = READ_MAX) -> list[Stored]:
        found: list[Stored] = []
        ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        before = after

        def hear(message: Message) -> None:
            nonlocal before
            if ended.done():
                return
            if message.headers.get(h.NATS_STATUS):
                status = message.headers[h.NATS_STATUS]
                ended.set_result("" if status in ("204", "404") else f"status {status}")
                return
            try:
                stored = _stored(message)
                follows = not found or int(message.headers[BEFORE]) == before
            except (KeyError, ValueError) as error:
                ended.set_result(f"not a stored message: {error!r}")
                return
            if not follows:
                ended.set_result(f"a message before {stored.seq} did not arrive")
                return
            before = stored.seq
            found.append(stored)

        inbox = self._side.open_inbox(hear)
        wanted = {
            "seq": after + 1,
            "next_by_subj": pattern,
            "batch": min(limit, READ_MAX),
            "max_bytes": READ_BYTES_MAX,
        }
        try:
            self._side.publish(
                f"$JS.API.DIRECT.GET.{self.config.name}",
                msgspec_json.encode(wanted),
                reply=inbox.subject,
            )
            async with asyncio.timeout(TIMEOUT_S):
                fault = await ended
        except TimeoutError:
            raise AskTimeout(f"{self.config.name} was not read within {TIMEOUT_S:g} s") from None
        finally:
            inbox.close()
        if fault == "status 503":
            await self._ensure()
            return []
        if fault:
            raise BusError(f"{self.config.name}: {fault}")
        return found

    async def _ensure(self) -> None:
        """It is gone with its server's disk; an empty one is better than none."""
        if self.config.subjects != ("",):
            await self._jetstream.ensure_stream(self.config)

    async def trim(self, subject: str, *, keep: int) -> None:
        wanted = {"filter": subject, "keep": keep}
        await self._jetstream.request(f"STREAM.PURGE.{self.config.name}", wanted, _Purged)


class _Purged(Struct):
    purged: int = 0


def _stored(message: Message) -> Stored:
    headers = message.headers
    return Stored(headers[SUBJECT], int(headers[SEQUENCE]), message.data, _unix(headers[TIME]))


def _unix(text: str) -> float:
    """Unix seconds of an RFC 3339 time with nanoseconds; Python reads microseconds."""
    whole, _, fraction = text.removesuffix("Z").partition(".")
    return datetime.fromisoformat(whole + "+00:00").timestamp() + float(f"0.{fraction or 0}")
