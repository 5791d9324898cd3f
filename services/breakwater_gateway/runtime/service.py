"""The live configuration of a process: from a KV bucket to every actor, and from a file to the bucket.

The bucket `bw_config` holds the text, so that every process of a cluster lives by the same revision.
A core event says that it changed, and a watch heals what the event missed. A revision that does not
decode is refused: the old one stays, and an alert says so.
"""

import asyncio
import hashlib
import os
import stat
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, TypeVar

import anyio
from msgspec import Struct

from breakwater_gateway.config.model import Config
from breakwater_gateway.config.problems import ConfigError
from breakwater_gateway.runtime.bus import (
    Bus,
    BusClosed,
    BusError,
    Entry,
    Message,
    Store,
    WrongRevision,
)
from breakwater_gateway.runtime.telemetry import Log, Metrics
from breakwater_protocol import cloudevents
from breakwater_protocol.events import Alert, ConfigChanged
from breakwater_protocol.subjects import Subject, Subjects

BUCKET: Final = "bw_config"
KEY: Final = "current"
HISTORY: Final = 10
FOLLOW_RETRY_S: Final = 1.0
LEAVE_S: Final = 1.0
PUBLISH_TRIES: Final = 5
POLL_S: Final = 0.2
FILE_MAX: Final = 4 * 1024 * 1024
"""Bytes of a configuration file; far above what any has, far below what the bus carries."""
SHOWN_MAX: Final = 2_000

E = TypeVar("E", Alert, ConfigChanged)
Decode = Callable[[bytes], Config]
Listener = Callable[[Config, int], None]


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class ConfigHolder:
    """What the actors of this process live by.

    `decode` raises `ConfigError` on a text it refuses; given the first text, the constructor raises it
    too. Listeners are called in the loop, with the new configuration and its revision; they must not
    raise.
    """

    def __init__(
        self,
        data: bytes,
        decode: Decode,
        *,
        log: Log,
        metrics: Metrics,
        revision: int = 0,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._decode = decode
        self._log = log
        self._wall = wall
        self._revision_gauge = metrics.gauge("breakwater_config_revision")
        self._rejected = metrics.counter("breakwater_config_rejected_total")
        self._listeners: list[Listener] = []
        self._seen = revision
        """The last revision looked at, accepted or not."""
        self.config = decode(data)
        self.revision = revision
        self.digest = digest_of(data)
        self.refused = ""
        """Why the newest revision is not the live one; empty when it is."""
        self._revision_gauge.set(revision)

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Returns what ends the listening."""
        self._listeners.append(listener)

        def end() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)

        return end

    async def follow(self, bus: Bus, subjects: Subjects) -> None:
        """Keeps up with the bucket until cancelled. Raises `BusClosed` when the bus is."""
        # A bucket that was made anew counts from 1 again: what it says now is what holds.
        self._seen = 0
        while True:
            try:
                await self._follow(bus, subjects)
            except BusClosed:
                raise
            except BusError as error:
                self._log.warning("config_not_followed", error=str(error))
            await anyio.sleep(FOLLOW_RETRY_S)

    async def _follow(self, bus: Bus, subjects: Subjects) -> None:
        store = await bus.store(BUCKET, history=HISTORY)
        changed = asyncio.Event()
        told = False
        watched: Entry | None = None

        def hear(_: Message) -> None:
            nonlocal told
            told = True
            changed.set()

        def see(entry: Entry) -> None:
            nonlocal watched
            if entry.key == KEY:
                watched = entry
                changed.set()

        subscription = await bus.subscribe(subjects.config.any(), hear)
        try:
            watch = await store.watch(see)
            try:
                while True:
                    await changed.wait()
                    changed.clear()
                    if told:
                        told = False
                        entry = await store.get(KEY)
                        if entry is not None:
                            await self._consider(entry, bus, subjects)
                    if watched is not None:
                        entry, watched = watched, None
                        await self._consider(entry, bus, subjects)
            finally:
                with anyio.CancelScope(shield=True), anyio.move_on_after(LEAVE_S):
                    await watch.close()
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(LEAVE_S):
                await subscription.drain()

    async def _consider(self, entry: Entry, bus: Bus, subjects: Subjects) -> None:
        if entry.revision <= self._seen:
            return
        self._seen = entry.revision
        if entry.value is None:
            self._log.warning("config_deleted", revision=entry.revision, live=self.revision)
            return
        digest = digest_of(entry.value)
        if digest == self.digest:
            # The same text under another number: nothing changes but the number.
            if self.refused or entry.revision != self.revision:
                self._accept(self.config, entry.revision, digest)
            return
        try:
            # In a thread: a thousand models take a second to parse.
            config = await asyncio.to_thread(self._decode, entry.value)
        except ConfigError as error:
            self._refuse(entry.revision, str(error), bus, subjects)
        except Exception as error:  # noqa: BLE001 - however a text breaks it, the old one stays
            self._log.exception("config_decoder_failed", revision=entry.revision)
            self._refuse(entry.revision, f"{type(error).__name__}: {error}", bus, subjects)
        else:
            self._accept(config, entry.revision, digest)

    def _accept(self, config: Config, revision: int, digest: str) -> None:
        self.config, self.revision, self.digest = config, revision, digest
        self.refused = ""
        self._revision_gauge.set(revision)
        self._log.info("config_live", revision=revision, digest=digest[:12])
        for listener in tuple(self._listeners):
            listener(config, revision)

    def _refuse(self, revision: int, problems: str, bus: Bus, subjects: Subjects) -> None:
        problems = problems[:SHOWN_MAX]
        self.refused = f"revision {revision} was refused: {problems}"
        self._rejected.add()
        self._log.error("config_refused", revision=revision, live=self.revision, problems=problems)
        at = self._wall()
        message = f"configuration revision {revision} refused, {self.revision} stays: {problems}"
        alert = Alert(kind="config", message=message, at=at, source=bus.name)
        try:
            _tell(bus, subjects.alert, alert, "config", at=at)
        except BusError as error:
            self._log.warning("alert_not_published", error=str(error))


def _tell(bus: Bus, subject: Subject[E], event: E, name: str, *, at: float) -> None:
    headers = cloudevents.headers_for(type(event), f"breakwater/{bus.name}", at, uuid.uuid4().hex)
    bus.publish(subject.at(name), subject.encode(event), headers=headers)


async def publish_config(
    bus: Bus,
    subjects: Subjects,
    data: bytes,
    *,
    wall: Callable[[], float] = time.time,
) -> int:
    """Makes `data` the configuration of the cluster, and tells everyone. The revision it has.

    Nothing is written when it is that already, so any number of processes may publish the same file.
    Decode it first: whoever follows refuses a bad one, but keeps reading it at each start. Raises
    `BusError`; `WrongRevision` when others keep changing it at the same time.
    """
    store = await bus.store(BUCKET, history=HISTORY)
    for _ in range(PUBLISH_TRIES):
        entry = await store.get(KEY)
        if entry is not None and entry.value == data:
            return entry.revision
        try:
            revision = await _write(store, entry, data)
        except WrongRevision:
            continue
        at = wall()
        changed = ConfigChanged(revision=revision, digest=digest_of(data), at=at)
        _tell(bus, subjects.config, changed, str(revision), at=at)
        return revision
    raise WrongRevision(f"{BUCKET}/{KEY} changed {PUBLISH_TRIES} times while it was being written")


async def _write(store: Store, entry: Entry | None, data: bytes) -> int:
    if entry is None or entry.value is None:
        return await store.create(KEY, data)
    return await store.update(KEY, data, revision=entry.revision)


class _Stamp(Struct, frozen=True):
    """What tells one state of a file from another without reading it."""

    device: int
    inode: int
    size: int
    changed_ns: int


OnChange = Callable[[bytes], Awaitable[None]]


async def watch_file(
    path: Path,
    on_change: OnChange,
    *,
    log: Log,
    known: bytes | None = None,
    interval_s: float = POLL_S,
) -> None:
    """Calls `on_change` with each new content of `path`, until cancelled.

    `known` is the content that is live already. The file is looked at `1/interval_s` times a second, in
    a thread: it may be on a network. A change counts once the file has stayed the same for one
    interval, since half a file can be a valid one. Renames over it and swapped symbolic links are
    changes; a file that is gone is waited for.

    `on_change` raises `ConfigError` for a content it refuses: its problems are logged once, and the
    content counts as seen. After a `BusError` the same content is tried again.
    """
    live = None if known is None else digest_of(known)
    read: _Stamp | None = None
    """The state whose content was dealt with."""
    last: _Stamp | None = None
    missing = False
    while True:
        stamp = await asyncio.to_thread(_stamp, path)
        if stamp is None:
            if not missing:
                log.warning("config_file_missing", path=str(path))
            missing, last = True, None
        else:
            missing = False
            if stamp != read and stamp == last:
                data = await asyncio.to_thread(_read, path, stamp)
                if data is not None and (
                    digest_of(data) == live or await _offer_file(path, data, on_change, log)
                ):
                    read, live = stamp, digest_of(data)
            last = stamp
        await anyio.sleep(interval_s)


async def _offer_file(path: Path, data: bytes, on_change: OnChange, log: Log) -> bool:
    """False when the same content should be tried again."""
    try:
        if len(data) > FILE_MAX:
            log.error("config_file_refused", path=str(path), problems=f"above {FILE_MAX} bytes")
        else:
            await on_change(data)
    except ConfigError as error:
        log.error("config_file_refused", path=str(path), problems=str(error)[:SHOWN_MAX])
    except BusClosed:
        raise
    except BusError as error:
        log.warning("config_file_not_published", path=str(path), error=str(error))
        return False
    return True


def _stamp(path: Path) -> _Stamp | None:
    try:
        found = path.stat()
    except OSError:
        return None
    # Opening a pipe would wait for whoever writes to it.
    return _stamp_of(found) if stat.S_ISREG(found.st_mode) else None


def _stamp_of(found: os.stat_result) -> _Stamp:
    return _Stamp(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def _read(path: Path, stamp: _Stamp) -> bytes | None:
    """The content, at most one byte above `FILE_MAX`; None when it changed while it was read."""
    try:
        with path.open("rb") as file:
            data = file.read(FILE_MAX + 1)
            after = os.fstat(file.fileno())
    except OSError:
        return None
    return data if _stamp_of(after) == stamp else None
