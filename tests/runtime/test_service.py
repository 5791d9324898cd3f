import asyncio
import io
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import msgspec
import pytest

from breakwater_gateway.config.model import Config, Limits
from breakwater_gateway.config.problems import ConfigError, Problem
from breakwater_gateway.runtime.bus import BusClosed, BusOverloaded, Message
from breakwater_gateway.runtime.memory_bus import MemoryBus, MemoryHub
from breakwater_gateway.runtime.service import (
    BUCKET,
    FILE_MAX,
    KEY,
    ConfigHolder,
    digest_of,
    publish_config,
    watch_file,
)
from breakwater_gateway.runtime.telemetry import Registry, configure_logging, get_log
from breakwater_protocol import headers as h
from breakwater_protocol.subjects import Subjects

pytestmark = pytest.mark.anyio
SUBJECTS = Subjects()
DEADLINE_S = 10.0


def decode(data: bytes) -> Config:
    """A number is a configuration with so many connections; `bug` is a bug of the decoder."""
    if data == b"bug":
        raise KeyError("bug")
    try:
        return Config(models={}, limits=Limits(connections=int(data)))
    except ValueError:
        raise ConfigError("file", [Problem("limits", 1, 1, f"not a number: {data!r}")]) from None


class Following:
    """A holder on a bus of its own, what it told its listener, and the alerts it published."""

    def __init__(self, hub: MemoryHub, data: bytes = b"1") -> None:
        self.bus = MemoryBus("process", hub)
        self.metrics = Registry()
        self.holder = ConfigHolder(data, decode, log=get_log(), metrics=self.metrics)
        self.heard: list[tuple[int, int]] = []
        self.changed = anyio.Event()
        self.end = self.holder.listen(self.hear)

    def hear(self, config: Config, revision: int) -> None:
        self.heard.append((config.limits.connections, revision))
        self.changed.set()
        self.changed = anyio.Event()

    async def until(self, connections: int) -> None:
        with anyio.fail_after(DEADLINE_S):
            while self.holder.config.limits.connections != connections:
                await self.changed.wait()


async def until(claim: Callable[[], bool]) -> None:
    """For what happens in a thread or a file, where there is no event to wait for."""
    with anyio.fail_after(DEADLINE_S):
        while not claim():  # noqa: ASYNC110 - see above
            await anyio.sleep(0.005)


@asynccontextmanager
async def following(hub: MemoryHub, data: bytes = b"1") -> AsyncIterator[Following]:
    it = Following(hub, data)
    async with anyio.create_task_group() as group:
        group.start_soon(it.holder.follow, it.bus, SUBJECTS)
        yield it
        group.cancel_scope.cancel()


@pytest.fixture
def hub() -> MemoryHub:
    return MemoryHub()


@pytest.fixture
def stream() -> io.BytesIO:
    found = io.BytesIO()
    configure_logging("json", "info", found)
    return found


async def heard_on(bus: MemoryBus, subject: str) -> list[Message]:
    messages: list[Message] = []
    await bus.subscribe(subject, messages.append)
    return messages


async def test_a_change_reaches_every_process_that_follows(hub: MemoryHub) -> None:
    publisher = MemoryBus("publisher", hub)
    async with following(hub) as one, following(hub) as two:
        first = await publish_config(publisher, SUBJECTS, b"2")
        await one.until(2)
        await two.until(2)
        second = await publish_config(publisher, SUBJECTS, b"3")
        await one.until(3)
        await two.until(3)
    assert second > first
    assert one.heard[-1] == two.heard[-1] == (3, second)
    assert one.holder.revision == second
    assert one.holder.digest == digest_of(b"3")


async def test_each_change_is_told_to_a_listener_once(hub: MemoryHub) -> None:
    publisher = MemoryBus("publisher", hub)
    async with following(hub) as one:
        for number in (2, 3, 4):
            await publish_config(publisher, SUBJECTS, str(number).encode())
            await one.until(number)
    assert len(one.heard) == len({revision for _, revision in one.heard})


async def test_who_comes_later_reads_what_holds(hub: MemoryHub) -> None:
    revision = await publish_config(MemoryBus("publisher", hub), SUBJECTS, b"5")
    async with following(hub) as late:
        await late.until(5)
    assert late.heard == [(5, revision)]


async def test_the_text_one_started_with_becomes_a_revision_without_being_decoded_again(
    hub: MemoryHub,
) -> None:
    revision = await publish_config(MemoryBus("publisher", hub), SUBJECTS, b"7")
    async with following(hub, b"7") as it:
        await until(lambda: it.holder.revision == revision)
    assert it.heard == [(7, revision)]


@pytest.mark.parametrize("bad", [b"many", b"bug", b"\xff\xfe"])
async def test_a_bad_revision_is_refused_and_the_old_one_stays(hub: MemoryHub, bad: bytes) -> None:
    publisher = MemoryBus("publisher", hub)
    alerts = await heard_on(publisher, SUBJECTS.alert.any())
    async with following(hub) as it:
        await publish_config(publisher, SUBJECTS, b"2")
        await it.until(2)
        refused = await publish_config(publisher, SUBJECTS, bad)
        await until(lambda: bool(alerts))
        assert it.holder.config.limits.connections == 2
        assert f"revision {refused} was refused" in it.holder.refused
        await publish_config(publisher, SUBJECTS, b"3")
        await it.until(3)
        assert it.holder.refused == ""
    (message,) = alerts
    alert = SUBJECTS.alert.decode(message.data)
    assert message.subject == "bw.v1.evt.alert.config"
    assert alert.kind == "config"
    assert f"revision {refused} refused" in alert.message
    assert it.metrics.counter("breakwater_config_rejected_total").value == 1
    assert refused not in [revision for _, revision in it.heard]


async def test_going_back_to_the_live_text_clears_the_refusal(hub: MemoryHub) -> None:
    publisher = MemoryBus("publisher", hub)
    async with following(hub) as it:
        for text in (b"2", b"bad"):
            await publish_config(publisher, SUBJECTS, text)
        await until(lambda: it.holder.refused != "")
        revision = await publish_config(publisher, SUBJECTS, b"2")
        await it.until(2)
        await until(lambda: it.holder.revision == revision)
        assert it.holder.refused == ""


async def test_a_deleted_configuration_changes_nothing(hub: MemoryHub, stream: io.BytesIO) -> None:
    publisher = MemoryBus("publisher", hub)
    async with following(hub) as it:
        await publish_config(publisher, SUBJECTS, b"2")
        await it.until(2)
        store = await publisher.store(BUCKET, history=10)
        await store.delete(KEY)
        await until(lambda: b"config_deleted" in stream.getvalue())
        assert it.holder.config.limits.connections == 2
        await publish_config(publisher, SUBJECTS, b"3")
        await it.until(3)


async def test_what_was_missed_while_cut_off_is_read_afterwards(hub: MemoryHub) -> None:
    publisher = MemoryBus("publisher", hub)
    async with following(hub) as it:
        await publish_config(publisher, SUBJECTS, b"2")
        await it.until(2)
        it.bus.cut_off()
        await publish_config(publisher, SUBJECTS, b"3")
        it.bus.mend()
        await it.until(3)


async def test_the_event_alone_is_enough_when_the_watch_stays_silent(hub: MemoryHub) -> None:
    async with following(hub) as it:
        publisher = MemoryBus("publisher", hub)
        await publish_config(publisher, SUBJECTS, b"2")
        await it.until(2)
        hub.bucket(BUCKET, None, -1).watchers.clear()
        await publish_config(publisher, SUBJECTS, b"3")
        await it.until(3)


async def test_a_bucket_made_anew_counts_from_one_and_is_followed_all_the_same(
    hub: MemoryHub,
) -> None:
    publisher = MemoryBus("publisher", hub)
    it = Following(hub)
    for text in (b"2", b"3", b"4"):
        await publish_config(publisher, SUBJECTS, text)
    with anyio.move_on_after(0.2):
        await it.holder.follow(it.bus, SUBJECTS)
    assert it.holder.config.limits.connections == 4
    other = MemoryHub()
    await publish_config(MemoryBus("publisher", other), SUBJECTS, b"9")
    with anyio.move_on_after(0.2):
        await it.holder.follow(MemoryBus("process", other), SUBJECTS)
    assert it.holder.config.limits.connections == 9
    assert it.holder.revision == 1


async def test_following_ends_when_the_bus_is_closed(hub: MemoryHub) -> None:
    it = Following(hub)
    await it.bus.close()
    with pytest.raises(BusClosed):
        await it.holder.follow(it.bus, SUBJECTS)


async def test_who_no_longer_listens_hears_nothing(hub: MemoryHub) -> None:
    async with following(hub) as it:
        it.end()
        it.end()
        publisher = MemoryBus("publisher", hub)
        revision = await publish_config(publisher, SUBJECTS, b"2")
        await until(lambda: it.holder.revision == revision)
    assert it.heard == []


def test_the_first_text_must_be_good() -> None:
    with pytest.raises(ConfigError):
        ConfigHolder(b"bad", decode, log=get_log(), metrics=Registry())


async def test_the_same_text_is_not_published_twice(hub: MemoryHub) -> None:
    bus = MemoryBus("publisher", hub)
    events = await heard_on(bus, SUBJECTS.config.any())
    revisions = {await publish_config(bus, SUBJECTS, b"2", wall=lambda: 12.5) for _ in range(3)}
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(revisions) == 1
    (message,) = events
    event = SUBJECTS.config.decode(message.data)
    (revision,) = revisions
    assert message.subject == f"bw.v1.evt.config.{revision}"
    assert (event.revision, event.digest, event.at) == (revision, digest_of(b"2"), 12.5)
    assert message.headers[h.CE_TYPE] == "breakwater.config.changed"
    assert message.headers[h.CE_TIME] == "1970-01-01T00:00:12.500Z"
    assert message.headers[h.CE_ID] == message.headers[h.NATS_MSG_ID]


async def test_many_who_publish_the_same_file_at_once_make_one_revision(hub: MemoryHub) -> None:
    found: list[int] = []

    async def publish(number: int) -> None:
        found.append(await publish_config(MemoryBus(f"p{number}", hub), SUBJECTS, b"2"))

    async with anyio.create_task_group() as group:
        for number in range(8):
            group.start_soon(publish, number)
    assert len(set(found)) == 1


class Watched:
    """A file that is watched, the contents that were passed on, and the log."""

    def __init__(self, path: Path, stream: io.BytesIO) -> None:
        self.path = path
        self.stream = stream
        self.contents: list[bytes] = []
        self.fails: list[Exception] = []

    async def on_change(self, data: bytes) -> None:
        if self.fails:
            raise self.fails.pop(0)
        self.contents.append(data)
        decode(data)

    async def until(self, *contents: bytes) -> None:
        await until(lambda: self.contents == list(contents))

    async def until_logged(self, event: str, times: int = 1) -> None:
        await until(lambda: self.logged(event) >= times)

    def logged(self, event: str) -> int:
        lines = [msgspec.json.decode(line) for line in self.stream.getvalue().splitlines()]
        return sum(line["event"] == event for line in lines)


@asynccontextmanager
async def watching(
    path: Path, stream: io.BytesIO, known: bytes | None = None
) -> AsyncIterator[Watched]:
    it = Watched(path, stream)
    log = get_log()

    async def watch() -> None:
        await watch_file(path, it.on_change, log=log, known=known, interval_s=0.02)

    async with anyio.create_task_group() as group:
        group.start_soon(watch)
        yield it
        group.cancel_scope.cancel()


def rename_over(path: Path, data: bytes) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_bytes(data)
    fresh.rename(path)


async def test_a_file_written_in_place_is_seen(tmp_path: Path, stream: io.BytesIO) -> None:
    path = tmp_path / "breakwater.yaml"
    path.write_bytes(b"1")
    async with watching(path, stream, b"1") as it:
        path.write_bytes(b"22")
        await it.until(b"22")


async def test_an_atomic_rename_is_seen(tmp_path: Path, stream: io.BytesIO) -> None:
    path = tmp_path / "breakwater.yaml"
    path.write_bytes(b"1")
    async with watching(path, stream, b"1") as it:
        rename_over(path, b"2")
        await it.until(b"2")
        rename_over(path, b"3")
        await it.until(b"2", b"3")


async def test_a_swapped_link_to_a_directory_is_seen(tmp_path: Path, stream: io.BytesIO) -> None:
    # As a ConfigMap is mounted: file -> ..data/file, ..data -> a directory per revision.
    for number in (1, 2):
        (tmp_path / f"v{number}").mkdir()
        (tmp_path / f"v{number}" / "file").write_bytes(str(number).encode())
    (tmp_path / "..data").symlink_to("v1")
    (tmp_path / "file").symlink_to("..data/file")
    async with watching(tmp_path / "file", stream, b"1") as it:
        (tmp_path / "..tmp").symlink_to("v2")
        (tmp_path / "..tmp").rename(tmp_path / "..data")
        await it.until(b"2")


async def test_a_bad_content_is_logged_once_and_the_next_good_one_taken(
    tmp_path: Path, stream: io.BytesIO
) -> None:
    path = tmp_path / "breakwater.yaml"
    path.write_bytes(b"1")
    async with watching(path, stream, b"1") as it:
        rename_over(path, b"bad")
        await it.until_logged("config_file_refused")
        rename_over(path, b"bad")
        rename_over(path, b"bad")
        await anyio.sleep(0.2)
        rename_over(path, b"3")
        await it.until(b"bad", b"3")
    assert it.logged("config_file_refused") == 1
    assert b"not a number" in stream.getvalue()


async def test_half_a_file_is_never_passed_on(tmp_path: Path, stream: io.BytesIO) -> None:
    path = tmp_path / "breakwater.yaml"
    path.write_bytes(b"1")
    it = Watched(path, stream)

    async def watch() -> None:
        await watch_file(path, it.on_change, log=get_log(), known=b"1", interval_s=0.1)

    async with anyio.create_task_group() as group:
        group.start_soon(watch)
        with path.open("wb", buffering=0) as file:
            for _ in range(20):
                file.write(b"7")
                await anyio.sleep(0.02)
        await it.until(b"7" * 20)
        group.cancel_scope.cancel()


async def test_a_file_that_is_gone_for_a_while_is_waited_for(
    tmp_path: Path, stream: io.BytesIO
) -> None:
    path = tmp_path / "breakwater.yaml"
    path.write_bytes(b"1")
    async with watching(path, stream, b"1") as it:
        path.unlink()
        await it.until_logged("config_file_missing")
        path.write_bytes(b"1")
        await anyio.sleep(0.2)
        assert it.contents == []
        rename_over(path, b"2")
        await it.until(b"2")
    assert it.logged("config_file_missing") == 1


async def test_a_bus_that_is_full_only_delays_a_change(tmp_path: Path, stream: io.BytesIO) -> None:
    path = tmp_path / "breakwater.yaml"
    path.write_bytes(b"1")
    async with watching(path, stream, b"1") as it:
        it.fails = [BusOverloaded("full"), BusOverloaded("full")]
        rename_over(path, b"2")
        await it.until(b"2")
    assert it.logged("config_file_not_published") == 2


async def test_a_huge_file_is_refused_unread(tmp_path: Path, stream: io.BytesIO) -> None:
    path = tmp_path / "breakwater.yaml"
    path.write_bytes(b"1")
    async with watching(path, stream, b"1") as it:
        with path.open("r+b") as file:
            file.truncate(FILE_MAX + 2)
        await it.until_logged("config_file_refused")
    assert it.contents == []


async def test_a_pipe_or_a_directory_is_no_configuration(
    tmp_path: Path, stream: io.BytesIO
) -> None:
    async with watching(tmp_path, stream) as it:
        await it.until_logged("config_file_missing")
