"""Bus: publish, ask, subscribe, keep. The one way out of an actor.

Three buses honour this contract, and the same tests run on all of them: `memory_bus` (one process),
`nats_bus` (the real one) and `local_first` (NATS, with messages to an actor of the same process handed
over in memory).

Publishing is synchronous and never waits: messages go to a bounded buffer in order, and a full buffer
or an oversized message is an error at once. Handlers are synchronous and must be quick: anything long
belongs in a task of the actor's own group. A handler that raises is logged and counted; it takes no
other message down.
"""

from collections.abc import Callable, Mapping
from typing import Final, Protocol

from msgspec import Struct

from breakwater_protocol import headers as h

NO_HEADERS: Final[Mapping[str, str]] = {}


class Message(Struct, frozen=True):
    subject: str
    data: bytes = b""
    reply: str = ""
    headers: Mapping[str, str] = NO_HEADERS

    @property
    def no_responders(self) -> bool:
        """Delivered to a reply subject when nobody was subscribed to the subject asked."""
        return not self.data and self.headers.get(h.NATS_STATUS) == "503"


Handler = Callable[[Message], None]


class BusError(Exception):
    """Base of everything a bus raises."""


class MessageTooLarge(BusError):
    """Headers and payload together exceed `max_message`; nothing was sent."""


class BusOverloaded(BusError):
    """The outgoing buffer is full: the server is slow or gone."""


class BusClosed(BusError):
    """The connection is closed for good; the actor has to end and be restarted."""


class BusUnreachable(BusError):
    """No connection could be made; the message names the URL and the mend."""


class NoResponders(BusError):
    """Nobody serves the subject asked."""


class AskTimeout(BusError):
    """No reply in time."""


class WrongRevision(BusError):
    """A compare-and-set lost: the key has another revision, or exists already."""


class Entry(Struct, frozen=True):
    key: str
    value: bytes | None
    """None: deleted or expired."""
    revision: int


class Subscription(Protocol):
    async def drain(self) -> None:
        """Take nothing more; returns once every message already received went to the handler."""
        ...


class Inbox(Protocol):
    """A private reply subject, multiplexed over one wildcard subscription per connection."""

    subject: str

    def close(self) -> None:
        """Later messages are dropped. Never fails."""
        ...


class Watch(Protocol):
    async def close(self) -> None: ...


class Store(Protocol):
    """A bucket of last values: JetStream KV. Keys are tokens of the codec, joined by dots."""

    async def get(self, key: str) -> Entry | None: ...

    async def put(self, key: str, value: bytes) -> int:
        """The new revision."""
        ...

    async def create(self, key: str, value: bytes, *, ttl_s: int | None = None) -> int:
        """Raises `WrongRevision` if the key has a value. A value with a TTL disappears by itself."""
        ...

    async def update(
        self, key: str, value: bytes, *, revision: int, ttl_s: int | None = None
    ) -> int:
        """Raises `WrongRevision` unless the key's last revision is that one."""
        ...

    async def delete(self, key: str) -> None: ...

    async def keys(self) -> list[str]: ...

    async def watch(self, handler: Callable[[Entry], None]) -> Watch:
        """Every present value first, then each change, across reconnects and server restarts.

        A value may be delivered more than once; `revision` tells.
        """
        ...


class Bus(Protocol):
    name: str
    """`<actor>/<id>` or the process's; also the connection's name."""
    max_message: int
    """Bytes of headers and payload together that a message may have."""

    @property
    def connected(self) -> bool: ...

    def publish(
        self,
        subject: str,
        data: bytes = b"",
        *,
        reply: str = "",
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> None:
        """Raises `MessageTooLarge`, `BusOverloaded` or `BusClosed`; nothing is sent then.

        With a `reply`, a subject nobody serves is answered by a message with `no_responders`.
        """
        ...

    async def subscribe(self, subject: str, handler: Handler, *, queue: str = "") -> Subscription:
        """`queue`: of all members of that name one gets each message."""
        ...

    def open_inbox(self, handler: Handler) -> Inbox: ...

    async def ask(
        self,
        subject: str,
        data: bytes = b"",
        *,
        headers: Mapping[str, str] = NO_HEADERS,
        timeout_s: float,
    ) -> Message:
        """One reply. Raises `NoResponders` at once when nobody serves, `AskTimeout` later."""
        ...

    async def flush(self, timeout_s: float = 5.0) -> None:
        """Returns when the server has taken everything published so far."""
        ...

    async def store(
        self, bucket: str, *, history: int = 1, ttl_s: int | None = None, max_bytes: int = -1
    ) -> Store:
        """The bucket, created if needed; safe to call again."""
        ...

    async def claim(self, subject: str, data: bytes, *, ttl_s: float) -> bool:
        """True for exactly one caller per subject in the whole cluster, until it expires.

        The engine elects: a memory stream that refuses a second message on a subject.
        """
        ...

    async def close(self) -> None:
        """Flushes what can be flushed, then leaves."""
        ...
