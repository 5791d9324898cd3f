"""JetStream's API in its own JSON over any `Bus`: streams that can be created again safely.

Requests and replies are those of the server's documented API (`$JS.API.>`), so that nothing depends
on a client's JetStream layer: every reply here has a timeout and every error a type.
"""

import asyncio
from collections.abc import Mapping
from typing import Any, Final, Protocol, TypeVar

import msgspec
from msgspec import Struct

from breakwater_gateway.runtime.bus import (
    NO_HEADERS,
    AskTimeout,
    BusError,
    BusOverloaded,
    JetStreamOff,
    Message,
    NoResponders,
    WrongRevision,
)

TIMEOUT_S: Final = 5.0
SECOND_NS: Final = 1_000_000_000

# Error codes of the server (errors.json of nats-server).
NOT_ENABLED: Final = 10076
NOT_ENABLED_FOR_ACCOUNT: Final = 10039
STREAM_NAME_IN_USE: Final = 10058
STREAM_NOT_FOUND: Final = 10059
WRONG_LAST_SEQUENCE: Final = frozenset({10071, 10164})
NO_ROOM: Final = 10047
STORE_FAILED: Final = 10077
# The same code says "this subject has its message" and "the stream is full"; only the text differs.
SUBJECT_FULL: Final = "maximum messages per subject exceeded"

EXPECTED_REVISION: Final = "Nats-Expected-Last-Subject-Sequence"
MESSAGE_TTL: Final = "Nats-TTL"


class Asks(Protocol):
    async def ask(
        self,
        subject: str,
        data: bytes = b"",
        *,
        headers: Mapping[str, str] = NO_HEADERS,
        timeout_s: float,
    ) -> Message: ...


class Republish(Struct, frozen=True):
    """What is stored under `src` the server publishes under `dest`."""

    src: str
    dest: str


class StreamConfig(Struct, frozen=True, omit_defaults=False):
    """What a stream must be like; fields and units (nanoseconds) are the server's."""

    name: str
    subjects: tuple[str, ...]
    retention: str = "limits"
    storage: str = "file"
    num_replicas: int = 1
    discard: str = "old"
    discard_new_per_subject: bool = False
    max_msgs: int = -1
    max_msgs_per_subject: int = -1
    max_bytes: int = -1
    max_age: int = 0
    max_msg_size: int = -1
    duplicate_window: int = 120 * SECOND_NS
    allow_direct: bool = True
    allow_rollup_hdrs: bool = False
    deny_delete: bool = False
    allow_msg_ttl: bool = False
    subject_delete_marker_ttl: int = 0
    republish: Republish | None = None


def events_stream(
    root: str = "bw.v1",
    *,
    max_age_s: int = 7 * 86_400,
    max_bytes: int = 1024**3,
    replicas: int = 1,
) -> StreamConfig:
    """`EVT`: everything that happened, kept for a while; an event sent twice is stored once."""
    return StreamConfig(
        name="EVT",
        subjects=(f"{root}.evt.>",),
        max_age=max_age_s * SECOND_NS,
        max_bytes=max_bytes,
        num_replicas=replicas,
    )


class JetStreamError(BusError):
    """The server refused. `code` is its error code (errors.json of nats-server), `text` its words."""

    def __init__(self, code: int, text: str, what: str) -> None:
        super().__init__(f"{what}: {text} ({code})")
        self.code = code
        self.text = text


class _Error(Struct):
    code: int = 0
    err_code: int = 0
    description: str = ""


class _Reply(Struct):
    error: _Error | None = None


class _Stream(Struct):
    config: dict[str, Any]  # the server's whole configuration, fields we do not know included


class Ack(Struct, frozen=True):
    seq: int = 0
    duplicate: bool = False
    """It is there already, under the same `Nats-Msg-Id`."""


T = TypeVar("T")


class JetStream:
    """JetStream over a bus. `where` names the server in errors."""

    def __init__(self, bus: Asks, *, where: str = "NATS") -> None:
        self._bus = bus
        self._where = where

    async def request(
        self, api: str, body: object, reply: type[T], *, timeout_s: float = TIMEOUT_S
    ) -> T:
        """One request to `$JS.API.<api>`. Raises `JetStreamOff`, `JetStreamError`, `AskTimeout`."""
        data = b"" if body is None else msgspec.json.encode(body)
        try:
            message = await self._bus.ask(f"$JS.API.{api}", data, timeout_s=timeout_s)
        except NoResponders:
            raise self._off() from None
        return self._decode(message, reply, api)

    async def publish(
        self,
        subject: str,
        data: bytes,
        *,
        headers: Mapping[str, str] = NO_HEADERS,
        timeout_s: float = TIMEOUT_S,
    ) -> int:
        """Store a message and return its sequence; raises as `put` does."""
        return (await self.put(subject, data, headers=headers, timeout_s=timeout_s)).seq

    async def put(
        self,
        subject: str,
        data: bytes,
        *,
        headers: Mapping[str, str] = NO_HEADERS,
        timeout_s: float = TIMEOUT_S,
    ) -> Ack:
        """Store a message.

        Raises `WrongRevision`, `BusOverloaded` when the stream is full, `NoResponders` when no
        stream takes the subject, `JetStreamError` for the rest.
        """
        message = await self._bus.ask(subject, data, headers=headers, timeout_s=timeout_s)
        try:
            return self._decode(message, Ack, subject)
        except JetStreamError as error:
            if error.code in WRONG_LAST_SEQUENCE:
                raise WrongRevision(str(error)) from None
            if error.code == STORE_FAILED and error.text != SUBJECT_FULL:
                raise BusOverloaded(str(error)) from None
            raise

    async def ensure_stream(self, config: StreamConfig) -> None:
        """Create the stream, or bring an existing one to this configuration.

        Safe to run again and from several processes at once. Raises `JetStreamError` when the server
        refuses, for instance to change the storage or to place more replicas than it has nodes.
        """
        try:
            await self.request(f"STREAM.CREATE.{config.name}", config, _Reply)
        except JetStreamError as error:
            if error.code == NO_ROOM:
                # The server sets a stream's `max_bytes` aside when it is made.
                mend = f"raise its max_{config.storage}_store, or let {config.name} keep less"
                raise JetStreamError(error.code, f"{error.text}; {mend}", self._where) from None
            if error.code != STREAM_NAME_IN_USE:
                raise
        else:
            return
        wanted: dict[str, Any] = msgspec.to_builtins(config)
        info = await self.request(f"STREAM.INFO.{config.name}", None, _Stream)
        # The server leaves out what is zero.
        if any(info.config.get(name) != value and (value or info.config.get(name))
               for name, value in wanted.items()):  # fmt: skip
            await self.request(f"STREAM.UPDATE.{config.name}", info.config | wanted, _Reply)

    def _decode(self, message: Message, reply: type[T], what: str) -> T:
        try:
            error = msgspec.json.decode(message.data, type=_Reply).error
            if error is None:
                return msgspec.json.decode(message.data, type=reply)
        except msgspec.MsgspecError as failure:
            raise BusError(f"{what}: not a reply of JetStream: {failure}") from None
        if error.err_code in (NOT_ENABLED, NOT_ENABLED_FOR_ACCOUNT):
            raise self._off()
        raise JetStreamError(error.err_code, error.description, what)

    def _off(self) -> JetStreamOff:
        return JetStreamOff(
            f"{self._where} has JetStream off or not ready; start it with `nats-server -js`, "
            "or let Breakwater start its own by omitting --nats"
        )


async def ensure_streams(
    bus: Asks, *configs: StreamConfig, where: str = "NATS", patience_s: float = 3.0
) -> None:
    """All of them, trying again while JetStream comes up (a cluster elects its leader first)."""
    jetstream = JetStream(bus, where=where)
    loop = asyncio.get_running_loop()
    until = loop.time() + patience_s
    for config in configs:
        while True:
            try:
                await jetstream.ensure_stream(config)
                break
            except (JetStreamOff, AskTimeout):
                if loop.time() >= until:
                    raise
            await asyncio.sleep(0.25)
