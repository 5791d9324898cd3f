"""Bus: publish, ask, subscribe, keep. The one way out of an actor.

Three buses honour this contract, and the same tests run on all of them: `memory_bus` (one process),
`nats_bus` (the real one) and `local_first` (NATS, with messages to an actor of the same process handed
over in memory).

Publishing is synchronous and never waits: messages go to a bounded buffer in order, and a full buffer
or an oversized message is an error at once. Handlers are synchronous and must be quick: anything long
belongs in a task of the actor's own group. A handler that raises is logged and counted; it takes no
other message down.
"""

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
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


class JetStreamOff(BusUnreachable):
    """The server is there, but JetStream is not enabled on it; the message names the mend."""


class WrongRevision(BusError):
    """A compare-and-set lost: the key has another revision, or exists already."""


SUBJECT_MAX: Final = 3_000
"""Longest subject in bytes: the server reads at most 4,096 of a command, reply subject included."""
CONTROL_MAX: Final = 3_900
"""Longest subject and reply together, in bytes; the rest of the 4,096 is for verb and sizes."""

# The server takes `a..b` and `x.*` from a publisher without a word; they then reach nobody, or
# everybody. Surrogates cannot be encoded.
_PLAIN: Final = r"[^\s.*>\x00-\x1f\x7f\ud800-\udfff]+"
_SUBJECT: Final = re.compile(rf"{_PLAIN}(?:\.{_PLAIN})*")
_PATTERN: Final = re.compile(rf"(?:(?:{_PLAIN}|\*)\.)*(?:{_PLAIN}|\*|>)")
_QUEUE: Final = re.compile(r"[^\s\x00-\x1f\x7f\ud800-\udfff]{1,256}")
_HEADER: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,256}")
_UNSAFE: Final = re.compile(r"[\r\n\x00\ud800-\udfff]")


@lru_cache(maxsize=65_536)
def check_subject(subject: str) -> int:
    """The subject's bytes. Raises `BusError` if it cannot be published to."""
    if len(subject) > SUBJECT_MAX or not _SUBJECT.fullmatch(subject):
        raise BusError(f"not a subject to publish to: {subject[:80]!r}")
    length = len(subject.encode())
    if length > SUBJECT_MAX:
        raise BusError(f"a subject may have {SUBJECT_MAX} bytes, this one has {length}")
    return length


def can_publish_to(reply: str) -> bool:
    """For reply subjects of strangers: what `check_subject` says, remembered by nobody."""
    return len(reply) <= SUBJECT_MAX and _SUBJECT.fullmatch(reply) is not None


def check_pattern(pattern: str, queue: str = "") -> None:
    """Raises `BusError` if it cannot be subscribed to; `*` and `>` are wildcards."""
    if len(pattern.encode(errors="replace")) > SUBJECT_MAX or not _PATTERN.fullmatch(pattern):
        raise BusError(f"not a subject to subscribe to: {pattern[:80]!r}")
    if queue and not _QUEUE.fullmatch(queue):
        raise BusError(f"not a name for a queue group: {queue[:80]!r}")


def check_reply(subject: str, reply: str) -> None:
    """Raises `BusError` if the two cannot stand in one command."""
    length = check_subject(subject)
    if reply:
        if not can_publish_to(reply):
            raise BusError(f"not a subject to reply to: {reply[:80]!r}")
        length += len(reply if reply.isascii() else reply.encode())
    if length > CONTROL_MAX:
        raise BusError(f"subject and reply may have {CONTROL_MAX} bytes, these have {length}")


@lru_cache(maxsize=1_024)
def _check_header_name(name: str) -> int:
    if not _HEADER.fullmatch(name):
        raise BusError(f"not a header name: {name[:80]!r}")
    return len(name)


def headers_size(headers: Mapping[str, str]) -> int:
    """Bytes that the headers take in a message. Raises `BusError` on what cannot be sent as one."""
    if not headers:
        return 0
    values = "".join(headers.values())
    if _UNSAFE.search(values):
        name = next(name for name, value in headers.items() if _UNSAFE.search(value))
        raise BusError(f"a header value may not contain line ends or NUL: {name[:80]}")
    # "NATS/1.0" and two line ends; then a colon, a space and a line end for each.
    size = 12 + 4 * len(headers) + len(values if values.isascii() else values.encode())
    for name in headers:
        size += _check_header_name(name)
    return size


_BUCKET: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")
_KEY: Final = re.compile(r"[A-Za-z0-9_=/-]+(?:\.[A-Za-z0-9_=/-]+)*")
_TOKEN: Final = re.compile(r"[A-Za-z0-9_=-]{1,200}")
CLAIM_TTL_MAX_S: Final = 86_400.0
ONCE_KEPT_S: Final = 400 * 86_400
"""Longer than the longest period whose events are published once."""


def check_key(key: str) -> None:
    """Raises `BusError` if it cannot be a key of a bucket."""
    if len(key) > SUBJECT_MAX - 200 or not _KEY.fullmatch(key):
        raise BusError(f"not a key: {key[:80]!r}")


def check_ttl(ttl_s: int | None) -> None:
    """Raises `BusError` on a TTL that the server would refuse: it counts whole seconds from 1."""
    if ttl_s is not None and (ttl_s < 1 or ttl_s != int(ttl_s)):
        raise BusError(f"a TTL is a whole number of seconds from 1, not {ttl_s}")


def check_bucket(bucket: str, history: int, ttl_s: int | None) -> None:
    """Raises `BusError` on a bucket that the server would refuse."""
    if not _BUCKET.fullmatch(bucket):
        raise BusError(f"not a name for a bucket: {bucket[:80]!r}")
    if not 1 <= history <= 64:
        raise BusError(f"a bucket keeps 1 to 64 revisions of a key, not {history}")
    check_ttl(ttl_s)


def check_claim(subject: str, ttl_s: float) -> None:
    """Raises `BusError` on what cannot be claimed."""
    check_subject(subject)
    if not 0 < ttl_s <= CLAIM_TTL_MAX_S:
        raise BusError(f"a claim lasts up to {CLAIM_TTL_MAX_S:g} s, not {ttl_s}")


def check_once(key: str, subject: str) -> None:
    """Raises `BusError` on what cannot be published once."""
    if not _TOKEN.fullmatch(key):
        raise BusError(f"not a key to publish once under: {key[:80]!r}")
    check_subject(subject)


class Entry(Struct, frozen=True):
    key: str
    value: bytes | None
    """None: deleted or expired."""
    revision: int


class Stored(Struct, frozen=True):
    """A message that a log keeps."""

    subject: str
    seq: int
    """Grows over the whole log; its first is 1."""
    data: bytes
    at: float
    """When the server took it: Unix seconds by the server's clock."""


READ_MAX: Final = 256
"""Messages that one read of a log gives at most."""


class EventLog(Protocol):
    """Messages kept in order: a JetStream stream. What is in it stays until the stream is full."""

    async def append(
        self, subject: str, data: bytes, *, expected: int, timeout_s: float = 2.0
    ) -> int:
        """The message's sequence. Raises `WrongRevision` unless the last of its subject is `expected`
        (0: none), so that of two writers who each believe to be the only one the later fails.

        Any other error, and `AskTimeout` above all, leaves open whether it was stored: `last` tells.
        """
        ...

    async def last(self, subject: str) -> Stored | None:
        """The last message of the subject or pattern, as the server that orders the log has it."""
        ...

    async def read(self, pattern: str, *, after: int, limit: int = READ_MAX) -> list[Stored]:
        """The next messages of the subject or pattern behind sequence `after`, oldest first, without a
        hole. Fewer than `limit` does not mean that there are no more; none does."""
        ...

    async def trim(self, subject: str, *, keep: int) -> None:
        """Forget all but the subject's last `keep` messages."""
        ...


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

    async def put(self, key: str, value: bytes, *, ttl_s: int | None = None) -> int:
        """The new revision. A value with a TTL disappears by itself."""
        ...

    async def create(self, key: str, value: bytes, *, ttl_s: int | None = None) -> int:
        """Raises `WrongRevision` if the key has a value. A value with a TTL disappears by itself."""
        ...

    async def update(
        self, key: str, value: bytes, *, revision: int, ttl_s: int | None = None
    ) -> int:
        """Raises `WrongRevision` unless the key's last revision is that one."""
        ...

    async def delete(self, key: str, *, revision: int | None = None) -> None:
        """`revision`: only if it is the key's last; else raises `WrongRevision`."""
        ...

    async def keys(self) -> list[str]: ...

    async def load(self, below: str, handler: Callable[[Entry], None]) -> None:
        """Every present value whose key begins with the tokens `below`, once; returns when all were told."""
        ...

    async def watch(self, handler: Callable[[Entry], None]) -> Watch:
        """Every present value first, then each change, across reconnects and server restarts.

        A value may be delivered more than once; `revision` tells.
        """
        ...


class Bus(Protocol):
    name: str
    """`<actor>/<id>` or the process's; also the connection's name."""

    @property
    def max_message(self) -> int:
        """Bytes of headers and payload together that a message may have."""
        ...

    @property
    def handler_failures(self) -> int:
        """How many times a handler raised."""
        ...

    def on_reconnect(self, callback: Callable[[], None]) -> None:
        """Called after each time the connection came back; what was sent meanwhile is lost."""
        ...

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
        self,
        bucket: str,
        *,
        history: int = 1,
        ttl_s: int | None = None,
        max_bytes: int = -1,
        evicts: bool = False,
    ) -> Store:
        """The bucket, created if needed; safe to call again.

        A bucket that is full refuses what is new, or if it `evicts`, drops what was written first.
        """
        ...

    async def claim(self, subject: str, data: bytes, *, ttl_s: float) -> bool:
        """True for exactly one caller per subject in the whole cluster, until it expires.

        The engine elects: a memory stream that refuses a second message on a subject. On NATS a
        claim lasts whole seconds, rounded up.
        """
        ...

    async def event_log(self, name: str, subject: str = "", *, max_bytes: int = -1) -> EventLog:
        """The log of that name for the subject or pattern, created if needed; safe to call again.

        Without a subject it is somebody else's, to read: it is not created and keeps its settings.
        """
        ...

    async def publish_once(
        self, key: str, subject: str, data: bytes, *, headers: Mapping[str, str] = NO_HEADERS
    ) -> bool:
        """Publish it, unless that was ever done with this key; then False. An answer that was lost counts
        as having done it.

        `key` is one token. The engine decides and publishes in one step, so that neither a crash nor
        asking again makes it none or two. Keys are remembered for `ONCE_KEPT_S`.
        """
        ...

    async def close(self) -> None:
        """Flushes what can be flushed, then leaves."""
        ...
