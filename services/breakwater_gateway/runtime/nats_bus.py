"""NatsBus: the real bus, over nats-py. What nats-py needs to be told is in `nats_connection`.

Two connections: one for the request path, and one, opened when first needed, for JetStream (buckets,
claims, watches), so that trouble there cannot take the request path down. Each has one wildcard inbox,
a bounded outbox emptied in order by one task, and a watchdog.
"""

import asyncio
import math
import secrets
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from breakwater_gateway.runtime.bus import (
    NO_HEADERS,
    AskTimeout,
    BusClosed,
    BusUnreachable,
    Handler,
    Message,
    NoResponders,
    check_bucket,
    check_claim,
    check_once,
    check_pattern,
)
from breakwater_gateway.runtime.delivery import Guard, OpenInbox, ask_over
from breakwater_gateway.runtime.nats_connection import (
    CONNECT_S,
    Connection,
    NatsSubscription,
    Options,
    Watchdog,
)
from breakwater_gateway.runtime.nats_log import NatsLog, log_stream, once_stream
from breakwater_gateway.runtime.nats_outbox import OUTBOX_BYTES_MAX, OUTBOX_MAX
from breakwater_gateway.runtime.nats_store import NatsStore, NatsWatch, bucket_stream
from breakwater_gateway.runtime.streams import (
    MESSAGE_TTL,
    SECOND_NS,
    STORE_FAILED,
    SUBJECT_FULL,
    JetStream,
    JetStreamError,
    StreamConfig,
)
from breakwater_gateway.runtime.telemetry import Log
from breakwater_protocol import headers as h

CLAIM_S: Final = 1.5
CLAIM_STREAM: Final = StreamConfig(
    # Not below the root's own subjects: several Breakwaters may share a server, and this stream.
    name="BREAKWATER_CLAIMS",
    subjects=("_CLAIM.>",),
    storage="memory",
    discard="new",
    discard_new_per_subject=True,
    max_msgs_per_subject=1,
    max_age=86_400 * SECOND_NS,
    max_bytes=64 * 1024 * 1024,
    allow_msg_ttl=True,
)


async def connect_nats(
    url: str,
    *,
    name: str,
    role: str,
    creds: Path | None = None,
    tls: ssl.SSLContext | None = None,
    on_closed: Callable[[str], None] | None = None,
    patience_s: float = 0.0,
    replicas: int = 1,
    log: Log | None = None,
    watchdog: Watchdog | None = None,
    outbox_max: int = OUTBOX_MAX,
    outbox_bytes_max: int = OUTBOX_BYTES_MAX,
    echo: bool = True,
) -> "NatsBus":
    """Connect to `url` (several servers: joined by commas).

    `role` names the inbox prefix, `name` the connection as `connz` shows it. `on_closed` hears why the
    connection is gone for good. Without `echo` the server does not send us what we published: for a
    bus that `LocalFirst` wraps, which hands it over in memory. Raises `BusUnreachable` if no server
    took us within `patience_s` (0: every server is tried once).
    """
    servers = tuple(server.strip() for server in url.split(",") if server.strip())
    if not servers:
        raise BusUnreachable("no NATS URL was given; for example nats://127.0.0.1:4222")
    options = Options(
        servers=servers,
        name=name,
        role=role,
        creds=creds,
        tls=tls,
        watchdog=watchdog if watchdog is not None else Watchdog(),
        outbox_max=outbox_max,
        outbox_bytes_max=outbox_bytes_max,
        echo=echo,
    )
    bus = NatsBus(options, on_closed=on_closed, replicas=replicas, guard=Guard(log))
    await bus.open(patience_s)
    return bus


class NatsBus:
    def __init__(
        self,
        options: Options,
        *,
        on_closed: Callable[[str], None] | None,
        replicas: int,
        guard: Guard,
    ) -> None:
        self.name = options.name
        self.where = options.where
        self._options = options
        self._guard = guard
        self._replicas = replicas
        self._hot = Connection(options, guard, mortal=True, on_lost=on_closed)
        # No wrapper on the hot path.
        self.publish = self._hot.publish
        self._side: Connection | None = None
        self._side_opening = asyncio.Lock()
        self._stores: dict[str, NatsStore] = {}
        self._watches: set[NatsWatch] = set()
        self._claims = msgspec.structs.replace(CLAIM_STREAM, num_replicas=replicas)
        self._claims_ready = False
        self._once_ready: set[str] = set()

    @property
    def max_message(self) -> int:
        return self._hot.max_message

    @property
    def connected(self) -> bool:
        return self._hot.connected

    @property
    def handler_failures(self) -> int:
        return self._guard.failures

    def on_reconnect(self, callback: Callable[[], None]) -> None:
        self._hot.on_reconnect(callback)

    async def open(self, patience_s: float) -> None:
        await self._hot.open(patience_s)

    async def subscribe(
        self, subject: str, handler: Handler, *, queue: str = ""
    ) -> NatsSubscription:
        return await self._hot.subscribe(subject, handler, queue=queue)

    def open_inbox(self, handler: Handler) -> OpenInbox:
        return self._hot.open_inbox(handler)

    async def ask(
        self,
        subject: str,
        data: bytes = b"",
        *,
        headers: Mapping[str, str] = NO_HEADERS,
        timeout_s: float,
    ) -> Message:
        return await ask_over(self._hot, subject, data, headers, timeout_s)

    async def flush(self, timeout_s: float = 5.0) -> None:
        await self._hot.flush(timeout_s)

    async def jetstream(self) -> JetStream:
        """JetStream's API on the second connection. Raises `BusUnreachable`."""
        return JetStream(await self._open_side(), where=f"NATS at {self.where}")

    async def store(
        self,
        bucket: str,
        *,
        history: int = 1,
        ttl_s: int | None = None,
        max_bytes: int = -1,
        evicts: bool = False,
    ) -> NatsStore:
        """Raises `JetStreamOff` when the server has no JetStream."""
        check_bucket(bucket, history, ttl_s)
        config = bucket_stream(
            bucket,
            history=history,
            ttl_s=ttl_s,
            max_bytes=max_bytes,
            evicts=evicts,
            replicas=self._replicas,
        )
        known = self._stores.get(bucket)
        if known is not None and known.config == config:
            return known
        jetstream = await self.jetstream()
        await jetstream.ensure_stream(config)
        side = await self._open_side()
        store = NatsStore(side, jetstream, config, guard=self._guard, watches=self._watches)
        self._stores[bucket] = store
        return store

    async def claim(self, subject: str, data: bytes, *, ttl_s: float) -> bool:
        check_claim(subject, ttl_s)
        jetstream = await self.jetstream()
        headers = {
            MESSAGE_TTL: str(max(1, math.ceil(ttl_s))),
            # Sent again after a lost answer, the server knows it for the same claim.
            h.NATS_MSG_ID: secrets.token_hex(12),
        }
        if not self._claims_ready:
            await jetstream.ensure_stream(self._claims)
            self._claims_ready = True
        for last in (False, False, True):
            try:
                await jetstream.publish(
                    f"_CLAIM.{subject}", data, headers=headers, timeout_s=CLAIM_S
                )
            except NoResponders:  # a memory stream goes with its server
                if last:
                    raise
                await jetstream.ensure_stream(self._claims)
            except AskTimeout:
                if last:
                    raise
            except JetStreamError as error:
                if error.code == STORE_FAILED and error.text == SUBJECT_FULL:
                    return False
                raise
            else:
                return True
        return False

    async def event_log(self, name: str, subject: str = "", *, max_bytes: int = -1) -> NatsLog:
        """Raises `JetStreamOff` when the server has no JetStream."""
        check_bucket(name, 1, None)
        if subject:
            check_pattern(subject)
        config = log_stream(name, subject, max_bytes=max_bytes, replicas=self._replicas)
        jetstream = await self.jetstream()
        if subject:
            await jetstream.ensure_stream(config)
        return NatsLog(await self._open_side(), jetstream, config)

    async def publish_once(
        self, key: str, subject: str, data: bytes, *, headers: Mapping[str, str] = NO_HEADERS
    ) -> bool:
        check_once(key, subject)
        first = subject.partition(".")[0]
        config = once_stream(first, replicas=self._replicas)
        jetstream = await self.jetstream()
        in_doubt = False
        if first not in self._once_ready:
            await jetstream.ensure_stream(config)
            self._once_ready.add(first)
        for last in (False, False, True):
            try:
                ack = await jetstream.put(
                    f"_ONCE.{first}.{key}.{subject}", data, headers=headers, timeout_s=CLAIM_S
                )
            except NoResponders:  # the stream is gone with its server's disk
                if last:
                    raise
                await jetstream.ensure_stream(config)
            except AskTimeout:  # sent again it is refused if it arrived
                if last:
                    raise
                in_doubt = True
            except JetStreamError as error:
                if error.code == STORE_FAILED and error.text == SUBJECT_FULL:
                    return in_doubt
                raise
            else:
                return in_doubt or not ack.duplicate
        return False

    async def close(self) -> None:
        for watch in tuple(self._watches):
            await watch.close()
        self._stores.clear()
        await self._hot.close()
        if self._side is not None:
            await self._side.close()

    async def _open_side(self) -> Connection:
        async with self._side_opening:
            if self._side is None:
                if self._hot.closed:
                    raise BusClosed(f"{self.name} is closed")
                side = Connection(self._options, self._guard, mortal=False)
                await side.open(CONNECT_S)
                side.on_reconnect(self._reread)
                self._side = side
            return self._side

    def _reread(self) -> None:
        for watch in tuple(self._watches):
            watch.reread()
