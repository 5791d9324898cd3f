"""The client's connection to NATS. Everything that touches nats-py is here."""

import asyncio
import logging
import re
import secrets
from collections.abc import AsyncGenerator, Coroutine, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from breakwater_protocol.answers import (
    AnswerTimeout,
    ConnectionLost,
    NoGateway,
    NotPermitted,
    TooLarge,
    Unreachable,
    nobody,
)
from breakwater_protocol.commands import Cancel
from breakwater_protocol.subjects import Subjects

if TYPE_CHECKING:
    from nats.aio.client import Client as Nats
    from nats.aio.msg import Msg

from breakwater_protocol.inboxes import NO_HEADERS, Heard, Inbox, Listener

_log = logging.getLogger(__name__)

DEFAULT_URL: Final = "nats://127.0.0.1:4222"
_HEADROOM: Final = 16 * 1024
"""Bytes under `max_payload` that headers and framing get: the server closes the connection of
whoever exceeds it, so this side never comes near."""
_RTT_MAX_S: Final = 2.0
_VIOLATION: Final = re.compile(r'permissions violation for (publish|subscription) to "([^"]*)"')


class Reply(Struct, frozen=True):
    data: bytes
    headers: Mapping[str, str]


class ServerInfo(Struct, frozen=True):
    url: str
    version: str
    max_payload: int
    """Bytes."""
    rtt_s: float


class Ask(Struct, frozen=True):
    subject: str
    request: str
    """The id to cancel; empty for asks that need no cancelling."""
    body: bytes
    headers: dict[str, str]
    first_message_s: float


class Connection:
    """The connection and its one wildcard inbox."""

    def __init__(
        self,
        url: str,
        *,
        name: str,
        creds: str | Path | None,
        subjects: Subjects,
        connect_timeout_s: float,
        buffer_messages: int,
        buffer_bytes: int,
    ) -> None:
        self._url = url
        self._name = name
        self._creds = creds
        self._cancelling = subjects.cancel
        self._connect_timeout_s = connect_timeout_s
        self._buffer_messages = buffer_messages
        self._buffer_bytes = buffer_bytes
        self._nats: Nats | None = None
        self._prefix = ""
        self._opened = 0
        self._inboxes: dict[str, Inbox] = {}
        self._listeners: set[Listener] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._pings: set[asyncio.Future[float]] = set()
        self._suspicion: asyncio.Task[None] | None = None
        self._failures: asyncio.Queue[Exception] | None = None

    async def connect(self) -> None:
        if self._nats is not None:
            raise RuntimeError("this client is connected already")
        servers = [part.strip() for part in self._url.split(",") if part.strip()]
        if not servers:
            raise Unreachable("the NATS URL is empty; give one such as " + DEFAULT_URL)
        if self._creds is not None and not await asyncio.to_thread(Path(self._creds).is_file):
            raise Unreachable(f"there is no credentials file at {self._creds}")
        try:
            from nats import errors
            from nats.aio.client import Client as NatsClient
        except ImportError as error:
            raise Unreachable("the client needs nats-py: pip install nats-py") from error

        nats = NatsClient()
        self._failures = asyncio.Queue()
        # With max_reconnect_attempts=-1 nats-py retries for ever, the first connection too: the
        # first round of failures is therefore counted here.
        connecting = asyncio.ensure_future(
            nats.connect(
                servers,
                name=self._name,
                error_cb=self._on_error,
                closed_cb=self._on_closed,
                max_reconnect_attempts=-1,
                reconnect_time_wait=0.25,  # type: ignore[arg-type] # seconds, annotated as int
                connect_timeout=self._connect_timeout_s,  # type: ignore[arg-type] # likewise
                ping_interval=10,
                max_outstanding_pings=2,
                user_credentials=None if self._creds is None else str(self._creds),
            )
        )
        failure: Exception | None
        try:
            failure = await self._first_round(connecting, self._failures, len(servers))
        except ImportError as missing:
            raise Unreachable(
                "credentials files need nkeys: pip install 'nats-py[nkeys]'"
            ) from missing
        except (errors.Error, OSError, ValueError) as failed:
            failure = failed
        finally:
            self._failures = None
            if not connecting.done():
                connecting.cancel()
                await asyncio.gather(connecting, return_exceptions=True)
        if failure is not None:
            if nats.options:  # else it failed over its arguments, and cannot be closed
                await nats.close()
            if "authorization" in str(failure).lower():
                raise _denied(f"NATS at {self._url} refuses these credentials") from failure
            why = str(failure) or "no answer in time"
            raise Unreachable(f"no NATS server at {self._url}: {why}") from failure
        self._nats = nats
        # Clients have a prefix of their own, so that a server's permissions can name it.
        self._prefix = f"_INBOX_client.{secrets.token_hex(8)}."
        await nats.subscribe(self._prefix + "*", cb=self._on_message)

    async def _first_round(
        self, connecting: asyncio.Future[None], failures: asyncio.Queue[Exception], servers: int
    ) -> Exception | None:
        """None once connected; else the last failure when each server has failed once."""
        last: Exception = TimeoutError()
        try:
            async with asyncio.timeout(self._connect_timeout_s * servers):
                for _ in range(servers):
                    failing = asyncio.ensure_future(failures.get())
                    try:
                        await asyncio.wait(
                            (connecting, failing), return_when=asyncio.FIRST_COMPLETED
                        )
                        if connecting.done():
                            connecting.result()
                            return None
                        last = failing.result()
                    finally:
                        failing.cancel()
        except TimeoutError:
            return last
        return last

    async def close(self) -> None:
        nats, self._nats = self._nats, None
        if nats is None:
            return
        for inbox in tuple(self._inboxes.values()):
            inbox.fail(ConnectionLost("this client was closed"))
            self._forsake(nats, inbox)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=2.0)
        # Writes what is pending, the cancellations among it, before it disconnects.
        await nats.close()
        for ping in self._pings:
            ping.cancel()

    def _live(self) -> "Nats":
        if self._nats is None:
            raise RuntimeError("not connected: use `async with Client(...) as client:`")
        if self._nats.is_closed:
            raise ConnectionLost(f"the connection to {self._url} is closed")
        return self._nats

    def open(self, ask: Ask) -> Inbox:
        self._live()
        self._opened += 1
        inbox = Inbox(
            f"{self._prefix}{self._opened:x}",
            asked=ask.subject,
            request=ask.request,
            messages_max=self._buffer_messages,
            bytes_max=self._buffer_bytes,
        )
        self._inboxes[inbox.reply] = inbox
        return inbox

    async def send(self, ask: Ask, inbox: Inbox) -> None:
        """Raises `TooLarge` and `ConnectionLost`; nothing was sent then, and the inbox is shut."""
        from nats import errors

        nats = self._live()
        limit = nats.max_payload - _HEADROOM
        size = len(ask.body) + sum(
            len(name) + len(value.encode()) + 4 for name, value in ask.headers.items()
        )
        if size > limit:
            self.shut(inbox)
            raise TooLarge(
                status=413,
                code="payload_too_large",
                type="invalid_request_error",
                message=f"the request has {size} bytes and this NATS server takes {limit};"
                " send less, or raise max_payload in the server's configuration",
                should_retry=False,
            )
        try:
            # A copy: nats-py keeps and may change what it is given.
            await nats.publish(ask.subject, ask.body, reply=inbox.reply, headers=dict(ask.headers))
        except errors.OutboundBufferLimitError as error:
            self.shut(inbox)
            raise ConnectionLost(
                f"NATS at {self._url} is gone and the outgoing buffer is full"
            ) from error
        except errors.Error as error:
            self.shut(inbox)
            raise ConnectionLost(f"the request could not be sent: {error}") from error

    async def exchange(self, ask: Ask) -> Reply:
        inbox = self.open(ask)
        try:
            await self.send(ask, inbox)
            due = asyncio.get_running_loop().time() + ask.first_message_s
            data, headers = await inbox.get(due=due)
            self.shut(inbox)
        except TimeoutError:
            self.suspect()
            raise AnswerTimeout(
                f"no answer on {ask.subject} within {ask.first_message_s:g} s"
            ) from None
        finally:
            self.abandon(inbox)
        if nobody(data, headers):
            raise no_gateway(ask.subject)
        return Reply(data, headers)

    def shut(self, inbox: Inbox) -> None:
        """Nobody waits for more, and there is nothing to cancel."""
        self._inboxes.pop(inbox.reply, None)

    def abandon(self, inbox: Inbox) -> None:
        """Cancels the request unless the inbox was shut before."""
        if self._nats is not None:
            self._forsake(self._nats, inbox)

    def _forsake(self, nats: "Nats", inbox: Inbox) -> None:
        # In a task of the connection's own, which outlives a cancelled caller.
        if self._inboxes.pop(inbox.reply, None) and inbox.request and not nats.is_closed:
            self._spawn(self._cancel(nats, inbox.request))

    async def _cancel(self, nats: "Nats", request: str) -> None:
        from nats import errors

        body = self._cancelling.encode(Cancel(request=request))
        try:
            await nats.publish(self._cancelling.at(request), body)
        except errors.Error as error:
            _log.warning("request %s could not be cancelled: %s", request, error)

    def suspect(self) -> None:
        """After silence: is the connection a zombie, alive to the eye and deaf?"""
        if self._nats is not None and (self._suspicion is None or self._suspicion.done()):
            self._suspicion = self._spawn(self._prove(self._nats))

    async def _prove(self, nats: "Nats") -> None:
        try:
            await self._round_trip(nats)
        except ConnectionLost as lost:
            _log.warning("%s; reconnecting", lost)

    async def _round_trip(self, nats: "Nats") -> float:
        """Seconds to the server and back. Raises `ConnectionLost`, and reconnects, when it is mute."""
        from nats import errors

        # nats-py must not time out by itself: a PONG after that ends its read loop, and with it the
        # connection's hearing. So the wait is ours, and a missed PONG always ends in a new connection.
        ping = asyncio.ensure_future(nats.rtt(timeout=3600))
        self._pings.add(ping)
        ping.add_done_callback(self._pinged)
        await asyncio.wait({ping}, timeout=_RTT_MAX_S)
        if not ping.done():
            await nats.force_reconnect()
            ping.cancel()
            raise ConnectionLost(f"NATS at {self._url} did not answer within {_RTT_MAX_S:g} s")
        try:
            return ping.result()
        except errors.Error as error:
            raise ConnectionLost(f"NATS at {self._url} does not answer: {error}") from error

    def _pinged(self, ping: asyncio.Future[float]) -> None:
        self._pings.discard(ping)
        if not ping.cancelled():
            ping.exception()

    def _spawn(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def listen(self, subject: str, *, waiting_max: int) -> AsyncGenerator[Heard, None]:
        from nats import errors

        nats = self._live()
        listener = Listener(subject, waiting_max)

        async def hear(message: "Msg") -> None:
            listener.take(message.subject, message.data, message.headers or NO_HEADERS)

        try:
            subscription = await nats.subscribe(subject, cb=hear)
        except errors.BadSubjectError as error:
            raise ValueError(f"not a subject to listen to: {subject[:80]!r}") from error
        except errors.Error as error:
            raise ConnectionLost(f"cannot listen to {subject}: {error}") from error
        self._listeners.add(listener)
        try:
            while True:
                yield await listener.next()
        finally:
            self._listeners.discard(listener)
            if not nats.is_closed:
                await subscription.unsubscribe()

    async def server(self) -> ServerInfo:
        nats = self._live()
        rtt_s = await self._round_trip(nats)
        at = nats.connected_url
        version = nats.connected_server_version
        return ServerInfo(
            url=self._url if at is None else f"{at.scheme}://{at.hostname}:{at.port}",
            version=f"{version.major}.{version.minor}.{version.patch}",
            max_payload=nats.max_payload,
            rtt_s=rtt_s,
        )

    # nats-py's callbacks. They must not raise: an exception in them leaves a connection that looks
    # alive and hears nothing.

    async def _on_message(self, message: "Msg") -> None:
        inbox = self._inboxes.get(message.subject)
        if inbox is not None:
            inbox.put(message.data, message.headers or NO_HEADERS)

    async def _on_error(self, error: Exception) -> None:
        if self._failures is not None:
            self._failures.put_nowait(error)
            return
        _log.warning("NATS: %s", error)
        denied = _VIOLATION.search(str(error).lower())
        if denied is None:
            return
        for inbox in tuple(self._inboxes.values()):
            # nats-py hands the server's words on in lower case.
            if inbox.asked.lower() == denied[2] or self._prefix + "*" == denied[2]:
                inbox.fail(_denied(f"NATS does not permit this: {error}"))
        for listener in self._listeners:
            if listener.subject.lower() == denied[2]:
                listener.fail(_denied(f"NATS does not permit this: {error}"))

    async def _on_closed(self) -> None:
        for inbox in tuple(self._inboxes.values()):
            inbox.fail(ConnectionLost(f"the connection to {self._url} was closed"))
        for listener in self._listeners:
            listener.fail(ConnectionLost(f"the connection to {self._url} was closed"))


def no_gateway(subject: str) -> NoGateway:
    return NoGateway(f"nobody serves {subject}; start a gateway with `breakwater up`")


def _denied(message: str) -> NotPermitted:
    return NotPermitted(
        status=403,
        code="permission",
        type="permission_error",
        message=message,
        should_retry=False,
    )
