"""NatsBus: the real bus, over nats-py. The only file that imports nats.

Two connections: one for the request path, and one, opened when first needed, for JetStream (buckets,
claims, watches), so that trouble there cannot take the request path down. Each has one wildcard inbox,
a bounded outbox emptied in order by one task, and a watchdog.

What nats-py 2.16 does that shaped this file:
- An exception in its read loop leaves `is_connected` true and the connection deaf. A `PONG` that
  arrives after its `rtt()` or `flush()` gave up is such an exception. So the watchdog and `flush` here
  never let nats-py time out by itself, and a missed `PONG` always ends in a new connection.
- An error during reconnecting may close the client without `closed_cb`, or end its reconnecting task:
  the watchdog looks at both.
- `publish` checks the payload alone, while the server closes the connection when payload and headers
  together exceed `max_payload`.
- Reading the ten header fields of an answer took it 8 µs of CPU, four times what a look at a whole block costs.
"""

import asyncio
import contextlib
import functools
import importlib.util
import math
import random
import secrets
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import nats.aio.client
import nats.aio.msg
import nats.aio.subscription
import nats.errors
from msgspec import Struct

from breakwater_gateway.runtime.bus import (
    NO_HEADERS,
    AskTimeout,
    BusClosed,
    BusError,
    BusOverloaded,
    BusUnreachable,
    Handler,
    Message,
    MessageTooLarge,
    NoResponders,
    can_publish_to,
    check_bucket,
    check_claim,
    check_once,
    check_pattern,
    check_reply,
)
from breakwater_gateway.runtime.delivery import Guard, Inboxes, OpenInbox, ask_over
from breakwater_gateway.runtime.nats_headers import read_headers, write_headers
from breakwater_gateway.runtime.nats_log import NatsLog, log_stream, once_stream
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

MARGIN: Final = 16 * 1024
"""Kept free of `max_payload`: what the server counts is more than what we do."""
OUTBOX_MAX: Final = 65_536
OUTBOX_BYTES_MAX: Final = 64 * 1024 * 1024
SUBSCRIPTION_MAX: Final = 262_144
SUBSCRIPTION_BYTES_MAX: Final = 128 * 1024 * 1024
CONNECT_S: Final = 2
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


BATCH_BYTES: Final = 256 * 1024
"""Messages that wait are written together, up to this much."""
_CRLF: Final = b"\r\n"


class Watchdog(Struct, frozen=True):
    """How the watchdog looks: every `every_s` a PING, whose PONG may take `ticks` times `tick_s`.

    Ticks, not one timer: a stalled event loop must not look like a dead server.
    """

    every_s: float = 3.0
    tick_s: float = 0.5
    ticks: int = 8
    reconnecting_s: float = 30.0
    """A client that is not connected and has not even tried for so long is stuck."""


class _Options(Struct, frozen=True):
    servers: tuple[str, ...]
    name: str
    role: str
    creds: Path | None
    tls: ssl.SSLContext | None
    watchdog: Watchdog
    outbox_max: int
    outbox_bytes_max: int
    echo: bool

    @property
    def where(self) -> str:
        """The servers without their passwords."""
        return ", ".join(_without_password(server) for server in self.servers)


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
    options = _Options(
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
        options: _Options,
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
        self._hot = _Connection(options, guard, mortal=True, on_lost=on_closed)
        self._side: _Connection | None = None
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

    def publish(
        self,
        subject: str,
        data: bytes = b"",
        *,
        reply: str = "",
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> None:
        self._hot.publish(subject, data, reply=reply, headers=headers)

    async def subscribe(
        self, subject: str, handler: Handler, *, queue: str = ""
    ) -> "NatsSubscription":
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

    async def _open_side(self) -> "_Connection":
        async with self._side_opening:
            if self._side is None:
                if self._hot.closed:
                    raise BusClosed(f"{self.name} is closed")
                side = _Connection(self._options, self._guard, mortal=False)
                await side.open(CONNECT_S)
                side.on_reconnect(self._reread)
                self._side = side
            return self._side

    def _reread(self) -> None:
        for watch in tuple(self._watches):
            watch.reread()


class NatsSubscription:
    __slots__ = ("_connection", "_inner")

    def __init__(
        self, connection: "_Connection", inner: nats.aio.subscription.Subscription
    ) -> None:
        self._connection = connection
        self._inner = inner

    async def drain(self) -> None:
        await self._connection.drain(self._inner)


class _Client(nats.aio.client.Client):
    async def _process_headers(self, headers: bytes | None) -> dict[str, str] | None:
        if not headers:
            return None
        found = read_headers(headers)
        return found if found is not None else await super()._process_headers(headers)


class _Connection:
    """One connection: outbox, inboxes, watchdog.

    A mortal one tells `on_lost` when it is gone for good; the other is opened again, for ever.
    """

    def __init__(
        self,
        options: _Options,
        guard: Guard,
        *,
        mortal: bool,
        on_lost: Callable[[str], None] | None = None,
    ) -> None:
        self._options = options
        self._guard = guard
        self._log = guard.log
        self._mortal = mortal
        self._on_lost = on_lost
        self._on_reconnect: list[Callable[[], None]] = []
        self._client = _Client()
        self._inboxes = Inboxes(f"_INBOX_{options.role}.{secrets.token_hex(8)}")
        self._subscriptions: set[nats.aio.subscription.Subscription] = set()
        self._outbox: deque[tuple[bytes, bytes, int]] = deque()
        """Commands as they go over the wire: head, payload, and the size that counts against bounds."""
        self._outbox_bytes = 0
        self._published = 0
        self._sent = 0
        self._subjects = 0
        self._wake: asyncio.Future[None] | None = None
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._up = asyncio.Event()
        self._pings: set[asyncio.Task[float]] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._tried_at = 0.0
        self._last_error = ""
        self._quiet_until: dict[str, float] = {}
        self._reason = ""
        self.max_message = 0
        self.closed = False

    @property
    def connected(self) -> bool:
        return not self.closed and self._client.is_connected

    def on_reconnect(self, callback: Callable[[], None]) -> None:
        self._on_reconnect.append(callback)

    # Coming up.

    async def open(self, patience_s: float) -> None:
        """Raises `BusUnreachable`."""
        await self._connect(patience_s)
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._send()), loop.create_task(self._watch())]

    async def _connect(self, patience_s: float) -> None:
        options, loop = self._options, asyncio.get_running_loop()
        if options.creds is not None and importlib.util.find_spec("nkeys") is None:
            raise BusUnreachable("NATS credentials need one more package: nats-py[nkeys]")
        tried_all = loop.create_future()
        until = loop.time() + patience_s
        failures = 0
        # An abandoned client may still call back.
        client = self._client = _Client()

        async def on_error(error: Exception) -> None:
            nonlocal failures
            failures += 1
            if failures >= len(options.servers) and loop.time() >= until and not tried_all.done():
                tried_all.set_result(None)
            if client is self._client:
                self._note_error(error)

        async def on_disconnect() -> None:
            if client is self._client:
                self._note_disconnect()

        async def on_back() -> None:
            if client is self._client:
                self._note_reconnect()

        settings: dict[str, Any] = {
            "servers": list(options.servers),
            "name": options.name,
            "error_cb": on_error,
            "disconnected_cb": on_disconnect,
            "reconnected_cb": on_back,
            "max_reconnect_attempts": -1,
            "no_echo": not self._options.echo,
            # One draw a connection: a fleet must not come back in step.
            "reconnect_time_wait": random.uniform(0.25, 1.0),  # noqa: S311
            "connect_timeout": CONNECT_S,
            "ping_interval": 10,
            "max_outstanding_pings": 2,
            "inbox_prefix": f"_INBOX_{options.role}",
            "pending_size": 4 * 1024 * 1024,
            "flush_timeout": 2.0,
            "user_credentials": options.creds,
            "tls": options.tls,
            "skip_subject_validation": True,  # ours is stricter, and remembered
        }
        connecting = loop.create_task(client.connect(**settings))
        limit_s = max(0.0, patience_s) + len(options.servers) * (CONNECT_S + 1.0)
        try:
            await asyncio.wait(
                {connecting, tried_all}, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            if not connecting.done():
                connecting.cancel()
                await asyncio.wait({connecting})
        if connecting.cancelled():
            await self._abandon(client)
            raise BusUnreachable(self._unreachable(self._last_error or "no answer"))
        error = connecting.exception()
        if error is not None:
            await self._abandon(client)
            raise BusUnreachable(self._unreachable(_one_line(error)))
        self.max_message = client.max_payload - MARGIN
        await client.subscribe(
            self._inboxes.pattern,
            cb=self._callback(self._inboxes.deliver),
            pending_msgs_limit=SUBSCRIPTION_MAX,
            pending_bytes_limit=SUBSCRIPTION_BYTES_MAX,
        )
        self._up.set()

    def _unreachable(self, why: str) -> str:
        return (
            f"cannot reach NATS at {self._options.where} ({why}); "
            "start one with: nats-server -js, or omit --nats"
        )

    # Going out.

    def publish(
        self,
        subject: str,
        data: bytes = b"",
        *,
        reply: str = "",
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> None:
        if self.closed:
            raise self._gone()
        check_reply(subject, reply)
        size = len(data)
        block = b""
        if headers:
            block = write_headers(headers)
            size += len(block)
        if size > self.max_message:
            raise MessageTooLarge(f"{size} bytes to {subject[:200]}, {self.max_message} may be")
        if (
            len(self._outbox) >= self._options.outbox_max
            or self._outbox_bytes + size > self._options.outbox_bytes_max
        ):
            raise BusOverloaded(f"{len(self._outbox)} messages wait for NATS")
        if block:
            head = f"HPUB {subject} {reply} {len(block)} {size}\r\n".encode() + block
        else:
            head = f"PUB {subject} {reply} {size}\r\n".encode()
        self._outbox.append((head, data, size))
        self._outbox_bytes += size
        self._published += 1
        if self._wake is not None:
            self._wake.set_result(None)
            self._wake = None

    async def _send(self) -> None:
        """Empty the outbox in order, for as long as the connection lives."""
        loop = asyncio.get_running_loop()
        outbox = self._outbox
        while True:
            if not outbox:
                self._wake = loop.create_future()
                await self._wake
            # What waits here survives a reconnect in order; nats-py's own buffer is small and raises.
            while not self._client.is_connected:
                self._up.clear()
                await self._up.wait()
            pieces: list[bytes] = []
            count = total = 0
            for head, data, size in outbox:
                pieces += (head, data, _CRLF)
                count += 1
                total += size
                if total >= BATCH_BYTES:
                    break
            try:
                await self._write(b"".join(pieces))
            except (nats.errors.OutboundBufferLimitError, nats.errors.ConnectionClosedError):
                await asyncio.sleep(0.01)
                continue
            for _ in range(count):
                outbox.popleft()
            self._outbox_bytes -= total
            self._sent += count
            while self._waiting and self._waiting[0][0] <= self._sent:
                future = self._waiting.popleft()[1]
                if not future.done():
                    future.set_result(None)

    async def _write(self, commands: bytes) -> None:
        """What `Client.publish` ends with. Ours renders a header block at a quarter of its cost, and
        hands over all that waits at once."""
        client = self._client
        if client.is_closed:
            raise nats.errors.ConnectionClosedError
        await client._send_command(commands)  # noqa: SLF001 - see above
        queue = client._flush_queue  # noqa: SLF001 - see above
        if queue is not None and queue.empty():
            await client._flush_pending()  # noqa: SLF001 - see above

    async def flush(self, timeout_s: float) -> None:
        if self.closed:
            raise self._gone()
        try:
            async with asyncio.timeout(timeout_s):
                if self._sent < self._published:
                    future = asyncio.get_running_loop().create_future()
                    self._waiting.append((self._published, future))
                    await future
                while not await self._barrier():
                    await self._up.wait()
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise AskTimeout(f"NATS did not confirm within {timeout_s:g} s") from None

    async def _barrier(self) -> bool:
        """The server has read all that was given to nats-py; False: the connection went away.

        nats-py writes its PING ahead of commands that wait for its flusher, so they go first. Their
        size only shrinks when they all go.
        """
        size = self._client.pending_data_size
        while size and self._client.is_connected:
            await asyncio.sleep(0.001)
            now = self._client.pending_data_size
            if now < size:
                break
            size = now
        if not self._client.is_connected:
            self._up.clear()
            return False
        ping = self._ping()
        await asyncio.wait({ping})
        return not ping.cancelled() and ping.exception() is None

    def _ping(self) -> asyncio.Task[float]:
        """A round trip. Whoever tires of waiting leaves it alone; a disconnect cancels it."""
        ping = asyncio.get_running_loop().create_task(self._client.rtt(timeout=3600))
        self._pings.add(ping)
        ping.add_done_callback(self._pinged)
        return ping

    def _pinged(self, ping: asyncio.Task[float]) -> None:
        self._pings.discard(ping)
        if not ping.cancelled():
            ping.exception()

    # Coming in.

    async def subscribe(self, subject: str, handler: Handler, *, queue: str) -> NatsSubscription:
        """Returns when the server knows of it, or at once while there is no connection."""
        if self.closed:
            raise self._gone()
        check_pattern(subject, queue)
        inner = await self._client.subscribe(
            subject,
            queue=queue,
            cb=self._callback(handler),
            pending_msgs_limit=SUBSCRIPTION_MAX,
            pending_bytes_limit=SUBSCRIPTION_BYTES_MAX,
        )
        self._subscriptions.add(inner)
        if self._client.is_connected:
            await self._barrier()
        return NatsSubscription(self, inner)

    def new_subject(self) -> str:
        self._subjects += 1
        return f"{self._inboxes.prefix}.own.{self._subjects}"

    async def listen(self, subject: str, handler: Handler) -> Callable[[], Awaitable[None]]:
        client = self._client
        inner = await client.subscribe(
            subject,
            cb=self._callback(handler),
            pending_msgs_limit=SUBSCRIPTION_MAX,
            pending_bytes_limit=SUBSCRIPTION_BYTES_MAX,
        )

        async def deafen() -> None:
            with contextlib.suppress(nats.errors.Error):  # closed meanwhile
                await inner.unsubscribe()

        return deafen

    async def drain(self, inner: nats.aio.subscription.Subscription) -> None:
        if inner not in self._subscriptions:
            return
        self._subscriptions.discard(inner)
        try:
            if self._client.is_connected:
                # nats-py's own drain sends its PING ahead of the UNSUB and drops what comes between.
                await self._client._send_unsubscribe(inner._id)  # noqa: SLF001
                await self._barrier()
            await inner.drain()  # type: ignore[no-untyped-call]  # nats-py leaves it bare
        except nats.errors.Error as error:
            self._log.warning("drain_failed", subject=inner.subject, error=_one_line(error))

    def open_inbox(self, handler: Handler) -> OpenInbox:
        if self.closed:
            raise self._gone()
        return self._inboxes.open(handler)

    async def ask(
        self,
        subject: str,
        data: bytes = b"",
        *,
        headers: Mapping[str, str] = NO_HEADERS,
        timeout_s: float,
    ) -> Message:
        return await ask_over(self, subject, data, headers, timeout_s)

    def _callback(
        self, handler: Handler
    ) -> Callable[[nats.aio.msg.Msg], Coroutine[Any, Any, None]]:
        call = self._guard.call

        async def hear(msg: nats.aio.msg.Msg) -> None:
            reply = msg.reply
            if reply and not can_publish_to(reply):
                reply = ""  # anybody may ask; an answer to nowhere must not fail in our task
            call(handler, Message(msg.subject, msg.data, reply, msg.headers or NO_HEADERS))

        return hear

    # Going away.

    async def _watch(self) -> None:
        """The watchdog: finds connections that are deaf, stuck or closed without a word."""
        dog, loop = self._options.watchdog, asyncio.get_running_loop()
        misses = 0
        while not self.closed:
            await asyncio.sleep(dog.every_s)
            client = self._client
            lost = ""
            if client.is_closed:
                lost = f"NATS closed the connection: {self._last_error or 'no reason given'}"
            elif not client.is_connected:
                if loop.time() - self._tried_at > dog.reconnecting_s:
                    lost = "the NATS client no longer tries to reconnect"
            elif await self._answers():
                misses = 0
            elif client.is_connected:
                misses += 1
                self._log.warning("nats_deaf", name=self._options.name, misses=misses)
                if misses > 2:
                    lost = "NATS does not answer, though it accepts connections"
                else:
                    self._tried_at = loop.time()
                    await client.force_reconnect()
            if lost:
                misses = 0
                await self._lose(lost)

    async def _answers(self) -> bool:
        """Whether a PONG comes, or the connection is known to be gone, within the watchdog's ticks."""
        dog = self._options.watchdog
        ping = self._ping()
        for _ in range(dog.ticks):
            await asyncio.wait({ping}, timeout=dog.tick_s)
            if ping.done():
                return ping.cancelled() or ping.exception() is None
        return False

    async def _lose(self, reason: str) -> None:
        self._log.error("nats_lost", name=self._options.name, reason=reason)
        self._note_disconnect()
        await self._abandon(self._client)
        if self._mortal:
            self._reason = f": {reason}"
            self.closed = True
            self._tasks[0].cancel()
            if self._on_lost is not None:
                self._guard.run([functools.partial(self._on_lost, reason)])
            return
        while True:
            try:
                await self._connect(0.0)
                break
            except BusUnreachable as error:
                self._quietly("nats_unreachable", str(error))
            await asyncio.sleep(random.uniform(0.25, 1.0))  # noqa: S311 - jitter
        self._note_reconnect()

    async def close(self) -> None:
        """What was received is handled, what was published is flushed, within some seconds."""
        if self.closed:
            return
        try:
            async with asyncio.timeout(2.0):
                await asyncio.gather(*(self.drain(inner) for inner in tuple(self._subscriptions)))
            await self.flush(2.0)
        except (TimeoutError, BusError) as error:
            self._log.warning("close_incomplete", unsent=len(self._outbox), error=_one_line(error))
        if self.closed:  # lost while it was closing
            return
        self.closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        for ping in tuple(self._pings):
            ping.cancel()
        await self._abandon(self._client)

    async def _abandon(self, client: nats.aio.client.Client) -> None:
        try:
            async with asyncio.timeout(2.0):
                await client.close()
        except Exception as error:  # noqa: BLE001 - nothing is expected of it any more
            self._log.warning("close_failed", error=_one_line(error))

    def _gone(self) -> BusClosed:
        return BusClosed(f"{self._options.name} has no connection to NATS any more{self._reason}")

    def _note_error(self, error: Exception) -> None:
        self._tried_at = asyncio.get_running_loop().time()
        self._last_error = _one_line(error)
        self._quietly("nats_error", self._last_error)

    def _note_disconnect(self) -> None:
        self._tried_at = asyncio.get_running_loop().time()
        self._up.clear()
        for ping in tuple(self._pings):
            ping.cancel()
        if not self.closed:
            self._quietly("nats_disconnected", self._last_error)

    def _note_reconnect(self) -> None:
        self.max_message = self._client.max_payload - MARGIN
        self._up.set()
        self._log.info("nats_reconnected", name=self._options.name)
        self._guard.run(self._on_reconnect)

    def _quietly(self, event: str, error: str) -> None:
        """A warning, the same one at most every five seconds."""
        now = asyncio.get_running_loop().time()
        if now >= self._quiet_until.get(event + error, 0.0):
            if len(self._quiet_until) >= 100:
                self._quiet_until.clear()
            self._quiet_until[event + error] = now + 5.0
            self._log.warning(event, name=self._options.name, error=error)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _without_password(server: str) -> str:
    scheme, mark, rest = server.rpartition("://")
    return f"{scheme}{mark}{rest.rpartition('@')[2]}"
