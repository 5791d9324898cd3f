"""NATS micro services (ADR-32) on top of any bus: `nats micro ls|info|stats` sees every actor.

Only the discovery side: an actor keeps its own subscriptions and reports what it did to its
endpoints' counters.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

import msgspec
from msgspec import Struct

from breakwater_gateway.runtime.bus import Bus, Message, Subscription

VERBS: Final = ("PING", "INFO", "STATS")


class Endpoint:
    """One subject that the service answers, and its counters since the start."""

    __slots__ = (
        "errors",
        "last_error",
        "metadata",
        "name",
        "queue",
        "requests",
        "seconds",
        "subject",
    )

    def __init__(
        self, name: str, subject: str, *, queue: str = "", metadata: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self.subject = subject
        self.queue = queue
        self.metadata = dict(metadata or {})
        self.reset()

    def reset(self) -> None:
        self.requests = 0
        self.errors = 0
        self.seconds = 0.0
        self.last_error = ""

    def served(self, seconds: float, *, error: str = "") -> None:
        """One more request took `seconds`. `error`: how it failed, in a few words without content."""
        self.requests += 1
        self.seconds += seconds
        if error:
            self.errors += 1
            self.last_error = error[:200]


class _Identity(Struct):
    type: str
    name: str
    id: str
    version: str
    metadata: dict[str, str]


class _EndpointInfo(Struct):
    name: str
    subject: str
    queue_group: str
    metadata: dict[str, str]


class _Info(_Identity):
    description: str
    endpoints: list[_EndpointInfo]


class _EndpointStats(Struct):
    name: str
    subject: str
    queue_group: str
    num_requests: int
    num_errors: int
    last_error: str
    processing_time: int
    average_processing_time: int


class _Stats(_Identity):
    started: str
    endpoints: list[_EndpointStats]


class MicroService:
    """Answers `$SRV.PING|INFO|STATS`, for all services, for `name` and for this `id`.

    `started` is Unix time in seconds. `name` is made of letters, digits, `-` and `_`; `version` is
    semantic.
    """

    def __init__(
        self,
        bus: Bus,
        name: str,
        id: str,  # noqa: A002 - ADR-32's word
        version: str,
        description: str,
        endpoints: Sequence[Endpoint],
        *,
        started: float,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self._bus = bus
        self._name = name
        self._id = id
        self._identity = (name, id, version, dict(metadata or {}))
        self._description = description
        self._endpoints = tuple(endpoints)
        self._started = datetime.fromtimestamp(started, UTC).isoformat().replace("+00:00", "Z")
        self._subscriptions: list[Subscription] = []

    async def start(self) -> None:
        for verb in VERBS:
            for tail in ("", f".{self._name}", f".{self._name}.{self._id}"):
                subject = f"$SRV.{verb}{tail}"
                self._subscriptions.append(await self._bus.subscribe(subject, self._answer))

    async def drain(self) -> None:
        subscriptions, self._subscriptions = self._subscriptions, []
        for subscription in subscriptions:
            await subscription.drain()

    def ping(self) -> bytes:
        return msgspec.json.encode(_Identity("io.nats.micro.v1.ping_response", *self._identity))

    def info(self) -> bytes:
        endpoints = [_EndpointInfo(e.name, e.subject, e.queue, e.metadata) for e in self._endpoints]
        return msgspec.json.encode(
            _Info("io.nats.micro.v1.info_response", *self._identity, self._description, endpoints)
        )

    def stats(self) -> bytes:
        endpoints = [
            _EndpointStats(
                e.name,
                e.subject,
                e.queue,
                e.requests,
                e.errors,
                e.last_error,
                int(e.seconds * 1e9),
                int(e.seconds * 1e9) // max(1, e.requests),
            )
            for e in self._endpoints
        ]
        return msgspec.json.encode(
            _Stats("io.nats.micro.v1.stats_response", *self._identity, self._started, endpoints)
        )

    def _answer(self, message: Message) -> None:
        if message.reply:
            verb = message.subject.split(".")[1]
            answer = {"PING": self.ping, "INFO": self.info, "STATS": self.stats}[verb]
            self._bus.publish(message.reply, answer())
