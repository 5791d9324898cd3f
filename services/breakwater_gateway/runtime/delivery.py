"""What every bus needs on its receiving side: guarded handlers, ordered deliveries, inboxes, ask."""

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

import structlog

from breakwater_gateway.runtime.bus import (
    AskTimeout,
    BusOverloaded,
    Entry,
    Handler,
    Inbox,
    Message,
    NoResponders,
)
from breakwater_gateway.runtime.telemetry import Log

DELIVERIES_MAX: Final = 262_144
"""Messages waiting for the next turn of the loop, at most."""


class Guard:
    """Calls handlers; one that raises is logged and counted, and hurts nothing else."""

    __slots__ = ("failures", "log")

    def __init__(self, log: Log | None = None) -> None:
        self.failures = 0
        self.log: Log = log if log is not None else structlog.get_logger("breakwater.bus")

    def call(self, handler: Handler, message: Message) -> None:
        try:
            handler(message)
        except Exception as error:  # whatever it is, it is the handler's own bug
            self.failures += 1
            self.log.exception("handler_failed", subject=message.subject[:200], error=repr(error))

    def tell(self, handler: Callable[[Entry], None], entry: Entry) -> None:
        try:
            handler(entry)
        except Exception as error:  # as above
            self.failures += 1
            self.log.exception("watcher_failed", key=entry.key[:200], error=repr(error))

    def run(self, callbacks: Sequence[Callable[[], None]]) -> None:
        for callback in tuple(callbacks):
            try:
                callback()
            except Exception as error:  # as above
                self.failures += 1
                self.log.exception("bus_callback_failed", error=repr(error))


class Deliveries:
    """Handler calls that wait for the loop's next turn, in the order they were pushed.

    They run in the context of whoever made this object, so that a publisher's context variables do
    not leak into the subscriber's tasks.
    """

    __slots__ = ("_context", "_guard", "_scheduled", "_waiting")

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._waiting: deque[tuple[Handler | None, Message, asyncio.Future[None] | None]] = deque()
        self._scheduled = False
        self._context = contextvars.copy_context()

    def push(self, handler: Handler, message: Message) -> None:
        """Raises `BusOverloaded` when too many wait."""
        if len(self._waiting) >= DELIVERIES_MAX:
            raise BusOverloaded(f"{DELIVERIES_MAX} messages wait for delivery in this process")
        self._waiting.append((handler, message, None))
        if not self._scheduled:
            self._schedule()

    async def settled(self) -> None:
        """Returns once everything pushed so far was handed over."""
        if self._waiting:
            future = asyncio.get_running_loop().create_future()
            self._waiting.append((None, _NOTHING, future))
            await future

    def _schedule(self) -> None:
        self._scheduled = True
        asyncio.get_running_loop().call_soon(self._run, context=self._context)

    def _run(self) -> None:
        self._scheduled = False
        waiting, call = self._waiting, self._guard.call
        # What handlers push now waits for the next turn, or two that answer each other would
        # starve sockets and timers.
        for _ in range(len(waiting)):
            handler, message, future = waiting.popleft()
            if handler is not None:
                call(handler, message)
            elif future is not None and not future.done():
                future.set_result(None)
        if waiting and not self._scheduled:
            self._schedule()


_NOTHING: Final = Message("")


class Inboxes:
    """Private reply subjects below one prefix, told apart by their last token."""

    __slots__ = ("_cut", "_handlers", "_last", "prefix")

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self._cut = len(prefix) + 1
        self._handlers: dict[str, Handler] = {}
        self._last = 0

    @property
    def pattern(self) -> str:
        return f"{self.prefix}.*"

    def __len__(self) -> int:
        return len(self._handlers)

    def open(self, handler: Handler) -> "OpenInbox":
        self._last += 1
        token = f"{self._last:x}"
        self._handlers[token] = handler
        return OpenInbox(f"{self.prefix}.{token}", token, self._handlers)

    def deliver(self, message: Message) -> None:
        """May raise what the handler raises."""
        handler = self._handlers.get(message.subject[self._cut :])
        if handler is not None:
            handler(message)


class OpenInbox:
    __slots__ = ("_handlers", "_token", "subject")

    def __init__(self, subject: str, token: str, handlers: dict[str, Handler]) -> None:
        self.subject = subject
        self._token = token
        self._handlers = handlers

    def close(self) -> None:
        self._handlers.pop(self._token, None)


class Askable(Protocol):
    def publish(
        self, subject: str, data: bytes = b"", *, reply: str = "", headers: Mapping[str, str] = ...
    ) -> None: ...

    def open_inbox(self, handler: Handler) -> Inbox: ...


async def ask_over(
    bus: Askable, subject: str, data: bytes, headers: Mapping[str, str], timeout_s: float
) -> Message:
    """One reply to one request, by an inbox and a timer. Raises `NoResponders` or `AskTimeout`."""
    loop = asyncio.get_running_loop()
    answered: asyncio.Future[Message] = loop.create_future()

    def take(message: Message) -> None:
        if not answered.done():
            answered.set_result(message)

    def give_up() -> None:
        if not answered.done():
            answered.set_exception(AskTimeout(f"no reply from {subject[:200]} in {timeout_s:g} s"))

    inbox = bus.open_inbox(take)
    try:
        bus.publish(subject, data, reply=inbox.subject, headers=headers)
        timer = loop.call_later(timeout_s, give_up)
        try:
            message = await answered
        finally:
            timer.cancel()
    finally:
        inbox.close()
    if message.no_responders:
        raise NoResponders(f"nobody serves {subject[:200]}")
    return message
