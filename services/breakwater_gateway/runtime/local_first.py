"""LocalFirst: what is addressed to this process does not leave it.

Wraps any bus. A subject somebody here serves, and every inbox opened here, is reached in memory on the
loop's next turn; everything else, and everything that all must hear, goes over the wrapped bus. Whoever
publishes cannot tell, except by the clock.

Over a bus without echo (`echo=False`) the server sends nothing back to where it came from, so what leaves
is also handed to the observers here: an event costs its process no second pass through the parser.

"Serves" means an exact subscription or a member of a queue group. A plain wildcard subscription is an
observer: it hears what passes here, but does not keep a message from whoever serves it elsewhere.
"""

from collections.abc import Callable, Mapping
from typing import Final

from breakwater_gateway.runtime.bus import (
    NO_HEADERS,
    Bus,
    Handler,
    Inbox,
    Message,
    MessageTooLarge,
    Subscription,
    check_pattern,
    check_reply,
    headers_size,
)
from breakwater_gateway.runtime.delivery import Deliveries, Guard, ask_over
from breakwater_gateway.runtime.interest import ROUTES_MAX, Interest, Member, Route
from breakwater_gateway.runtime.telemetry import Log
from breakwater_protocol.subjects import Subjects

LOCAL_MESSAGE_MAX: Final = 256 * 1024 * 1024
"""Bytes of a message that stays in the process. The bus's `max_message` is for those that leave it."""


class LocalFirst:
    def __init__(
        self, bus: Bus, subjects: Subjects, *, log: Log | None = None, echo: bool = True
    ) -> None:
        self.name = bus.name
        self._bus = bus
        # What is kept is the wrapped bus's business alone.
        self.store = bus.store
        self.claim = bus.claim
        self.event_log = bus.event_log
        self.publish_once = bus.publish_once
        self._subjects = subjects
        self._guard = Guard(log)
        self._deliveries = Deliveries(self._guard)
        self._interest = Interest()
        self._inboxes: dict[str, Handler] = {}
        self._served: dict[str, Route | None] = {}
        self._echo = echo
        self._observers: dict[str, tuple[Member, ...]] = {}
        """Of subjects that leave; only kept where the wrapped bus has no echo."""
        self._closed = False
        self.delivered = 0
        """Messages that did not have to leave the process."""

    @property
    def max_message(self) -> int:
        return self._bus.max_message

    @property
    def connected(self) -> bool:
        return self._bus.connected

    @property
    def handler_failures(self) -> int:
        return self._guard.failures + self._bus.handler_failures

    def on_reconnect(self, callback: Callable[[], None]) -> None:
        self._bus.on_reconnect(callback)

    def publish(
        self,
        subject: str,
        data: bytes = b"",
        *,
        reply: str = "",
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> None:
        inbox = self._inboxes.get(subject)
        if inbox is not None:
            message = self._message(subject, data, reply, headers)
            self._deliveries.push(inbox, message)
            self.delivered += 1
            return
        try:
            route = self._served[subject]
        except KeyError:
            route = self._resolve(subject)
        if route is None:
            self._bus.publish(subject, data, reply=reply, headers=headers)
            if not self._echo and (observers := self._observers.get(subject)):
                message = Message(subject, data, reply, dict(headers) if headers else headers)
                for member in observers:
                    self._deliveries.push(member.handler, message)
            return
        message = self._message(subject, data, reply, headers)
        for member in route.plain:
            self._deliveries.push(member.handler, message)
        for group in route.groups:
            self._deliveries.push(group.next().handler, message)
        self.delivered += 1

    async def subscribe(
        self, subject: str, handler: Handler, *, queue: str = ""
    ) -> "LocalSubscription":
        check_pattern(subject, queue)
        inner = await self._bus.subscribe(subject, handler, queue=queue)
        member = self._interest.add(subject, queue, handler)
        self._forget()
        return LocalSubscription(self, member, inner)

    def open_inbox(self, handler: Handler) -> "LocalInbox":
        inner = self._bus.open_inbox(handler)
        return LocalInbox(inner, handler, self._inboxes)

    async def ask(
        self,
        subject: str,
        data: bytes = b"",
        *,
        headers: Mapping[str, str] = NO_HEADERS,
        timeout_s: float,
    ) -> Message:
        return await ask_over(self, subject, data, headers, timeout_s)

    async def flush(self, timeout_s: float = 5.0) -> None:
        await self._deliveries.settled()
        await self._bus.flush(timeout_s)

    async def close(self) -> None:
        if not self._closed:
            await self._deliveries.settled()
            self._closed = True
            self._inboxes.clear()
            self._forget()
            self._interest = Interest()
        await self._bus.close()

    async def retire(self, member: Member) -> None:
        """Choose this subscription no more; returns when what it was chosen for was delivered."""
        self._interest.remove(member)
        self._forget()
        await self._deliveries.settled()

    def _forget(self) -> None:
        self._served.clear()
        self._observers.clear()

    def _message(
        self, subject: str, data: bytes, reply: str, headers: Mapping[str, str]
    ) -> Message:
        """The message as it would have arrived. Raises what the wrapped bus would have raised."""
        size = len(data)
        if headers:
            size += headers_size(headers)
            headers = dict(headers)
        if reply and reply not in self._inboxes:
            check_reply(subject, reply)
        if size > LOCAL_MESSAGE_MAX:
            raise MessageTooLarge(f"{size} bytes to {subject[:200]}, {LOCAL_MESSAGE_MAX} may be")
        return Message(subject, data, reply, headers)

    def _resolve(self, subject: str) -> Route | None:
        """The route to whoever serves the subject here; None when it has to leave."""
        route = None
        # `$` subjects belong to the server and to services everywhere.
        if not subject.startswith("$") and not self._subjects.is_broadcast(subject):
            route = self._interest.route(subject)
            if route is not None and not (
                route.groups or any(not member.wild for member in route.plain)
            ):
                route = None
        if len(self._served) >= ROUTES_MAX:
            self._forget()
        self._served[subject] = route
        if route is None and not self._echo:
            heard = self._interest.route(subject)
            self._observers[subject] = heard.plain if heard is not None else ()
        return route


class LocalSubscription:
    __slots__ = ("_bus", "_inner", "_member")

    def __init__(self, bus: LocalFirst, member: Member, inner: Subscription) -> None:
        self._bus = bus
        self._member = member
        self._inner = inner

    async def drain(self) -> None:
        await self._bus.retire(self._member)
        await self._inner.drain()


class LocalInbox:
    __slots__ = ("_inboxes", "_inner", "subject")

    def __init__(self, inner: Inbox, handler: Handler, inboxes: dict[str, Handler]) -> None:
        self.subject = inner.subject
        self._inner = inner
        self._inboxes = inboxes
        self._inboxes[self.subject] = handler

    def close(self) -> None:
        self._inboxes.pop(self.subject, None)
        self._inner.close()
