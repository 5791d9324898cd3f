"""A bus as one life of an actor sees it: what it opened ends with it, and what it serves is counted."""

from collections.abc import Awaitable, Callable
from contextlib import suppress

import anyio

from breakwater_gateway.runtime.bus import (
    Bus,
    BusError,
    Entry,
    Handler,
    Message,
    Store,
    Subscription,
    Watch,
)
from breakwater_gateway.runtime.micro import Endpoint
from breakwater_protocol.subjects import Subjects


class BusView:
    """Subscriptions, watches and callbacks end with `end`."""

    def __init__(self, bus: Bus, subjects: Subjects, fail: Callable[[Exception], None]) -> None:
        self._bus = bus
        self._subjects = subjects
        self._fail = fail
        self.endpoints: list[Endpoint] = []
        """What the actor serves: every subscription to something that is asked, not told to all."""
        self._ended = False
        self._callbacks: list[Callable[[], None]] = []
        self._subscriptions: set[_ViewSubscription] = set()
        self._watches: set[_ViewWatch] = set()
        self.name = bus.name
        # No wrapper on the hot path: these are the bus' own.
        self.publish = bus.publish
        self.open_inbox = bus.open_inbox
        self.ask = bus.ask
        self.flush = bus.flush
        self.claim = bus.claim
        self.event_log = bus.event_log
        self.publish_once = bus.publish_once

    @property
    def max_message(self) -> int:
        return self._bus.max_message

    @property
    def connected(self) -> bool:
        return self._bus.connected

    @property
    def handler_failures(self) -> int:
        return self._bus.handler_failures

    def on_reconnect(self, callback: Callable[[], None]) -> None:
        self._callbacks.append(callback)

    def reconnected(self) -> None:
        for callback in tuple(self._callbacks):
            try:
                callback()
            except Exception as error:  # noqa: BLE001 - goes to the restart, with its traceback
                self._fail(error)

    async def subscribe(
        self, subject: str, handler: Handler, *, queue: str = ""
    ) -> "_ViewSubscription":
        def hear(message: Message) -> None:
            if not self._ended:
                handler(message)

        def answer(message: Message) -> None:
            endpoint.requests += 1
            try:
                hear(message)
            except Exception as error:
                endpoint.errors += 1
                endpoint.last_error = type(error).__name__
                raise

        if self._is_endpoint(subject):
            endpoint = self._endpoint(subject, queue)
            inner = await self._bus.subscribe(subject, answer, queue=queue)
        else:
            inner = await self._bus.subscribe(subject, hear, queue=queue)
        subscription = _ViewSubscription(inner, self._subscriptions)
        self._subscriptions.add(subscription)
        return subscription

    def _is_endpoint(self, subject: str) -> bool:
        return subject.startswith(f"{self._subjects.root}.") and not self._subjects.is_broadcast(
            subject
        )

    def _endpoint(self, subject: str, queue: str) -> Endpoint:
        name = subject[len(self._subjects.root) + 1 :].partition(".")[0]
        endpoint = Endpoint(name, subject, queue=queue)
        self.endpoints.append(endpoint)
        return endpoint

    async def store(
        self,
        bucket: str,
        *,
        history: int = 1,
        ttl_s: int | None = None,
        max_bytes: int = -1,
        evicts: bool = False,
    ) -> "_ViewStore":
        store = await self._bus.store(
            bucket, history=history, ttl_s=ttl_s, max_bytes=max_bytes, evicts=evicts
        )
        return _ViewStore(store, self)

    async def watch(self, store: Store, handler: Callable[[Entry], None]) -> "_ViewWatch":
        def see(entry: Entry) -> None:
            if not self._ended:
                handler(entry)

        watch = _ViewWatch(await store.watch(see), self._watches)
        self._watches.add(watch)
        return watch

    async def close(self) -> None:
        """The connection is the process's: this ends only what the actor opened on it."""
        await self.end()

    async def end(self) -> None:
        self._ended = True
        self._callbacks.clear()
        async with anyio.create_task_group() as group:
            for subscription in tuple(self._subscriptions):
                group.start_soon(_quietly, subscription.drain)
            for watch in tuple(self._watches):
                group.start_soon(_quietly, watch.close)


class _ViewSubscription:
    def __init__(self, inner: Subscription, open_: "set[_ViewSubscription]") -> None:
        self._inner = inner
        self._open = open_

    async def drain(self) -> None:
        self._open.discard(self)
        await self._inner.drain()


class _ViewWatch:
    def __init__(self, inner: Watch, open_: "set[_ViewWatch]") -> None:
        self._inner = inner
        self._open = open_

    async def close(self) -> None:
        self._open.discard(self)
        await self._inner.close()


class _ViewStore:
    def __init__(self, inner: Store, view: BusView) -> None:
        self._inner = inner
        self._view = view
        self.get = inner.get
        self.put = inner.put
        self.create = inner.create
        self.update = inner.update
        self.delete = inner.delete
        self.keys = inner.keys
        self.load = inner.load

    async def watch(self, handler: Callable[[Entry], None]) -> _ViewWatch:
        return await self._view.watch(self._inner, handler)


async def _quietly(leave: Callable[[], Awaitable[None]]) -> None:
    with suppress(BusError):  # it is gone already
        await leave()
