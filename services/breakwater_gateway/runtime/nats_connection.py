"""One connection to NATS: outbox, inboxes, watchdog.

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
import random
import secrets
import ssl
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, Final

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
    BusUnreachable,
    Handler,
    Message,
    can_publish_to,
    check_pattern,
)
from breakwater_gateway.runtime.delivery import Guard, Inboxes, OpenInbox, ask_over
from breakwater_gateway.runtime.nats_headers import read_headers
from breakwater_gateway.runtime.nats_outbox import Outbox

MARGIN: Final = 16 * 1024
"""Kept free of `max_payload`: what the server counts is more than what we do."""
SUBSCRIPTION_MAX: Final = 262_144
SUBSCRIPTION_BYTES_MAX: Final = 128 * 1024 * 1024
CONNECT_S: Final = 2


class Watchdog(Struct, frozen=True):
    """How the watchdog looks: every `every_s` a PING, whose PONG may take `ticks` times `tick_s`.

    Ticks, not one timer: a stalled event loop must not look like a dead server.
    """

    every_s: float = 3.0
    tick_s: float = 0.5
    ticks: int = 8
    reconnecting_s: float = 30.0
    """A client that is not connected and has not even tried for so long is stuck."""


class Options(Struct, frozen=True):
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


class _Client(nats.aio.client.Client):
    async def _process_headers(self, headers: bytes | None) -> dict[str, str] | None:
        if not headers:
            return None
        found = read_headers(headers)
        return found if found is not None else await super()._process_headers(headers)


class NatsSubscription:
    __slots__ = ("_connection", "_inner")

    def __init__(self, connection: "Connection", inner: nats.aio.subscription.Subscription) -> None:
        self._connection = connection
        self._inner = inner

    async def drain(self) -> None:
        await self._connection.drain(self._inner)


class Connection:
    """One connection: outbox, inboxes, watchdog.

    A mortal one tells `on_lost` when it is gone for good; the other is opened again, for ever.
    """

    def __init__(
        self,
        options: Options,
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
        self._outbox = Outbox(messages_max=options.outbox_max, bytes_max=options.outbox_bytes_max)
        # No wrapper on the hot path.
        self.publish = self._outbox.publish
        self._subjects = 0
        self._up = asyncio.Event()
        self._pings: set[asyncio.Task[float]] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._tried_at = 0.0
        self._last_error = ""
        self._quiet_until: dict[str, float] = {}
        self._reason = ""
        self.closed = False

    @property
    def max_message(self) -> int:
        return self._outbox.max_message

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
        self._outbox.max_message = client.max_payload - MARGIN
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

    async def _send(self) -> None:
        """Empty the outbox in order, for as long as the connection lives."""
        outbox = self._outbox
        while True:
            await outbox.something()
            # What waits here survives a reconnect in order; nats-py's own buffer is small and raises.
            while not self._client.is_connected:
                self._up.clear()
                await self._up.wait()
            batch = outbox.batch()
            try:
                await self._write(batch.commands)
            except (nats.errors.OutboundBufferLimitError, nats.errors.ConnectionClosedError):
                await asyncio.sleep(0.01)
                continue
            outbox.sent(batch)

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
                await self._outbox.emptied()
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
            self._close()
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
        self._close()
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        for ping in tuple(self._pings):
            ping.cancel()
        await self._abandon(self._client)

    def _close(self) -> None:
        self.closed = True
        self._outbox.close(self._gone_text())

    async def _abandon(self, client: nats.aio.client.Client) -> None:
        try:
            async with asyncio.timeout(2.0):
                await client.close()
        except Exception as error:  # noqa: BLE001 - nothing is expected of it any more
            self._log.warning("close_failed", error=_one_line(error))

    def _gone(self) -> BusClosed:
        return BusClosed(self._gone_text())

    def _gone_text(self) -> str:
        return f"{self._options.name} has no connection to NATS any more{self._reason}"

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
        self._outbox.max_message = self._client.max_payload - MARGIN
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
