"""The load generator: closed loop, open loop and streams, over HTTP or over NATS.

Closed loop: each of `--connections` slots asks again as soon as it was answered. Open loop
(`--rate`): requests fall due at fixed instants and latency counts from then, so that waiting for a
free slot is part of it (no coordinated omission; Gil Tene, "How NOT to measure latency"). Streams:
each slot holds one stream; a chunk's delay is its arrival less the stamp the provider put into it.

Prints `begin` and `end` as the measured window opens and closes, for whoever samples the gateway's
CPU, then one JSON `Report`.
"""

import asyncio
import contextlib
import itertools
import sys
import threading
import time
from collections import deque
from typing import Final, Protocol, cast
from urllib.parse import urlsplit

import click
import httptools
import msgspec
import uvloop
from msgspec import Struct
from ops.bench.figures import Summary, summarise
from ops.bench.wire import COUNTER, STAMP, STAMP_BYTES, body

GAP_MS: Final = 100.0
"""A pause between two chunks of one stream that a reader would notice."""
PATIENCE_S: Final = 20.0
"""How long answers still outstanding at the end are waited for; what is missing then is an error."""
_MS: Final = 1e6


class Plan(Struct, frozen=True):
    connections: int
    seconds: float
    warmup_s: float
    rate: float
    """Requests a second that fall due; 0: closed loop."""
    stream: bool
    tokens: int
    model: str
    spread_s: float
    """Closed loops begin over so long, not all at once."""
    repeat: bool = False
    """The same request each time, and one whose answer may be kept."""
    tenants: int = 0
    """Over NATS: each request is the next tenant's; 0: the subject is asked as it is."""

    def body(self) -> bytes:
        temperature = 0.0 if self.repeat else 0.2
        return body(
            stream=self.stream, tokens=self.tokens, model=self.model, temperature=temperature
        )


class Report(Struct, frozen=True):
    """Times in milliseconds; counts are of the measured window only, errors of the whole run."""

    answered: int
    per_second: float
    latency: Summary
    first_token: Summary
    chunks: int
    chunk_delay: Summary
    gaps: int
    """Pauses over `GAP_MS` between two chunks of a stream."""
    gap_max: float
    errors: int
    short: int
    """Streams that ended with fewer chunks than were asked for."""
    unanswered: int
    cpu_s: float
    """What the load generator itself spent in the window."""
    sample: str
    """The first wrong answer, cut to 300 characters."""


class Slot(Protocol):
    def send(self, due_ns: int) -> None: ...


class Run:
    """Who asks when, and what came of it."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.over = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._counter = time.time_ns() // 1000 % 10**12
        self._idle: deque[Slot] = deque()
        self._waiting: deque[int] = deque()
        self._busy = 0
        self.ending = False
        self._begin = self._end = 0
        self._latency: list[float] = []
        self._first: list[float] = []
        self._delay: list[float] = []
        self._answered = self._chunks = self._gaps = self._errors = self._short = 0
        self._gap_max = 0.0
        self._sample = ""

    def number(self) -> bytes:
        if self.plan.repeat:
            return b"0" * len(COUNTER)
        self._counter = (self._counter + 1) % 10**12
        return b"%012d" % self._counter

    async def drive(self, slots: list[Slot]) -> Report:
        plan = self.plan
        started = time.monotonic_ns()
        self._begin = started + int(plan.warmup_s * 1e9)
        self._end = self._begin + int(plan.seconds * 1e9)
        if plan.rate:
            self._idle.extend(slots)
            threading.Thread(target=self._pace, args=(started,), daemon=True).start()
        else:
            pause = plan.spread_s / len(slots)
            for i, slot in enumerate(slots):
                self._busy += 1
                self._loop.call_later(i * pause, self._open, slot)
        await asyncio.sleep(plan.warmup_s)
        before = time.process_time()
        print("begin", flush=True)
        await asyncio.sleep(plan.seconds)
        print("end", flush=True)
        spent = time.process_time() - before
        self.ending = True
        if self._busy or self._waiting:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.over.wait(), PATIENCE_S)
        return Report(
            answered=self._answered,
            per_second=self._answered / plan.seconds,
            latency=summarise(self._latency),
            first_token=summarise(self._first),
            chunks=self._chunks,
            chunk_delay=summarise(self._delay),
            gaps=self._gaps,
            gap_max=self._gap_max,
            errors=self._errors,
            short=self._short,
            unanswered=self._busy + len(self._waiting),
            cpu_s=spent,
            sample=self._sample,
        )

    def _open(self, slot: Slot) -> None:
        slot.send(time.monotonic_ns())

    def _pace(self, started: int) -> None:
        # A thread of its own: libuv's timers are whole milliseconds, which at a service time below
        # one would be most of what is measured.
        step = 1e9 / self.plan.rate
        due = float(started)
        while due < self._end:
            left = due - time.monotonic_ns()
            if left > 0:
                time.sleep(left / 1e9)
            try:
                self._loop.call_soon_threadsafe(self._fall_due, int(due))
            except RuntimeError:  # the loop was closed by a failure that is reported elsewhere
                return
            due += step

    def _fall_due(self, due_ns: int) -> None:
        if self._idle:
            self._busy += 1
            self._idle.popleft().send(due_ns)
        else:
            self._waiting.append(due_ns)

    def _free(self, slot: Slot, now: int) -> None:
        if self.plan.rate and self._waiting:
            slot.send(self._waiting.popleft())
        elif not self.plan.rate and now < self._end:
            slot.send(now)
        else:
            self._busy -= 1
            self._idle.append(slot)
            if self.ending and not self._busy and not self._waiting:
                self.over.set()

    def answered(self, slot: Slot, *, due: int, now: int) -> None:
        if self._begin <= now < self._end:
            self._answered += 1
        if self._begin <= due < self._end:
            self._latency.append((now - due) / _MS)
        self._free(slot, now)

    def failed(self, slot: Slot, *, now: int, why: bytes) -> None:
        self._errors += 1
        self._sample = self._sample or why[:300].decode(errors="replace")
        # A refusal at once must not turn a closed loop into a flood.
        self._loop.call_later(0.05, self._free, slot, now)

    def chunk(self, *, due: int, sent: int, now: int, last: int) -> None:
        """`last`: when the previous chunk of this stream came, 0 for the first."""
        if not self._begin <= now < self._end:
            return
        self._chunks += 1
        self._delay.append((now - sent) / _MS)
        if last:
            gap = (now - last) / _MS
            self._gap_max = max(self._gap_max, gap)
            self._gaps += gap > GAP_MS
        elif due >= self._begin:
            self._first.append((now - due) / _MS)

    def cut_short(self) -> None:
        self._short += 1


class HttpSlot(asyncio.Protocol):
    """One keep-alive connection, one request at a time."""

    def __init__(self, run: Run, request: bytes, host: str, port: int) -> None:
        self._run = run
        self._address = (host, port)
        self._again: asyncio.Task[None] | None = None
        head, mark, tail = request.partition(COUNTER)
        assert mark
        self._head, self._tail = head, tail
        self._stream = run.plan.stream
        self._busy = False
        self._reset()

    def _reset(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._text = b""
        self._seen = self._last = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast: uvloop's transports do not inherit from asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        self._reset()

    def send(self, due_ns: int) -> None:
        if self._transport.is_closing():
            self._run.failed(self, now=time.monotonic_ns(), why=b"the connection was closed")
            return
        self._due = due_ns
        self._busy = True
        self._text = b""
        self._seen = self._last = 0
        self._transport.write(b"".join((self._head, self._run.number(), self._tail)))

    def data_received(self, data: bytes) -> None:
        self._now = time.monotonic_ns()
        self._parser.feed_data(data)

    def on_body(self, data: bytes) -> None:
        if not self._stream:
            self._text = data
            return
        text = self._text + data if self._text else data
        end = 0
        for found in STAMP.finditer(text):
            self._run.chunk(due=self._due, sent=int(found.group(1)), now=self._now, last=self._last)
            self._last = self._now
            self._seen += 1
            end = found.end()
        # A stamp may be cut in two by a read; what is kept is too short to hold a whole one.
        self._text = text[max(end, len(text) - STAMP_BYTES + 1) :] if self._seen else text[-300:]

    def on_message_complete(self) -> None:
        self._busy = False
        if self._parser.get_status_code() != 200:
            self._run.failed(self, now=self._now, why=self._text)
            return
        if self._stream and self._seen != self._run.plan.tokens:
            self._run.cut_short()
        self._run.answered(self, due=self._due, now=self._now)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._busy:
            self._busy = False
            self._run.failed(self, now=time.monotonic_ns(), why=b"connection lost: %r" % exc)
        if not self._run.ending:
            self._again = asyncio.get_running_loop().create_task(self._reconnect())

    async def _reconnect(self) -> None:
        while not self._run.ending:
            with contextlib.suppress(OSError):  # refused: whoever serves is being restarted
                await asyncio.get_running_loop().create_connection(lambda: self, *self._address)
                return
            await asyncio.sleep(0.05)


async def http_slots(run: Run, url: str) -> list[Slot]:
    """Raises `OSError` when nobody listens there."""
    parts = urlsplit(url)
    host, port = parts.hostname or "127.0.0.1", parts.port or 80
    payload = run.plan.body()
    head = (
        f"POST {parts.path} HTTP/1.1\r\nhost: {host}:{port}\r\ncontent-type: application/json\r\n"
        f"accept: */*\r\nuser-agent: breakwater-bench\r\ncontent-length: {len(payload)}\r\n\r\n"
    )
    request = head.encode() + payload
    loop = asyncio.get_running_loop()
    slots: list[Slot] = []
    for _ in range(run.plan.connections):
        _, slot = await loop.create_connection(
            lambda: HttpSlot(run, request, host, port), host, port
        )
        slots.append(slot)
    return slots


class NatsSlot:
    def __init__(self, connection: "NatsConnection", number: int) -> None:
        self._connection = connection
        self._reply = str(number).encode()
        self.busy = False
        self.due = 0

    def send(self, due_ns: int) -> None:
        self.due = due_ns
        self.busy = True
        self._connection.publish(self._reply)


class NatsConnection(asyncio.Protocol):
    """One NATS connection that asks through a wildcard inbox (NATS client protocol, `PUB`, `MSG`, `HMSG`)."""

    _INBOX = b"_INBOX_bench"

    def __init__(self, run: Run, subject: str, payload: bytes) -> None:
        self._run = run
        kind = subject.rpartition(".")[0]
        named = [f"{kind}.t{i}" for i in range(run.plan.tenants)] or [subject]
        self._subjects = itertools.cycle([name.encode() for name in named])
        self._length = len(payload)
        self._head, mark, self._tail = payload.partition(COUNTER)
        assert mark
        self._left = b""
        self.slots: list[NatsSlot] = [NatsSlot(self, i) for i in range(run.plan.connections)]
        self.ready = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast: uvloop's transports do not inherit from asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(
            b'CONNECT {"verbose":false,"pedantic":false,"headers":true,"no_responders":true,'
            b'"lang":"bench","version":"1","protocol":1,"name":"bench"}\r\n'
            b"SUB %s.* 1\r\nPING\r\n" % self._INBOX
        )

    def publish(self, reply: bytes) -> None:
        self._transport.write(
            b"PUB %s %s.%s %d\r\n%s%s%s\r\n"
            % (
                next(self._subjects),
                self._INBOX,
                reply,
                self._length,
                self._head,
                self._run.number(),
                self._tail,
            )
        )

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        buffer = self._left + data if self._left else data
        at = 0
        while True:
            stop = buffer.find(b"\r\n", at)
            if stop < 0:
                break
            line = buffer[at:stop]
            if line.startswith((b"MSG ", b"HMSG ")):
                words = line.split(b" ")
                size = int(words[-1])
                end = stop + 2 + size
                if len(buffer) < end + 2:
                    break
                headers = int(words[-2]) if line.startswith(b"HMSG ") else 0
                self._message(words[1], buffer[stop + 2 : end], headers, now)
                at = end + 2
                continue
            if line == b"PING":
                self._transport.write(b"PONG\r\n")
            elif line == b"PONG" and not self.ready.done():
                self.ready.set_result(None)
            elif line.startswith(b"-ERR"):
                sys.exit(f"the NATS server says {line.decode(errors='replace')}")
            at = stop + 2
        self._left = buffer[at:]

    def _message(self, subject: bytes, data: bytes, headers: int, now: int) -> None:
        slot = self.slots[int(subject.rpartition(b".")[2])]
        if not slot.busy:
            return
        slot.busy = False
        head = data[:headers]
        if head.startswith(b"NATS/1.0 5") or b"Nats-Service-Error-Code" in head:
            self._run.failed(slot, now=now, why=data)
        else:
            self._run.answered(slot, due=slot.due, now=now)

    def connection_lost(self, exc: Exception | None) -> None:
        for slot in self.slots:
            if slot.busy:
                slot.busy = False
                self._run.failed(slot, now=time.monotonic_ns(), why=b"connection lost: %r" % exc)


async def nats_slots(run: Run, url: str, subject: str) -> list[Slot]:
    """Raises `OSError` when nobody listens there, `TimeoutError` when it is no NATS server."""
    parts = urlsplit(url)
    payload = run.plan.body()
    _, connection = await asyncio.get_running_loop().create_connection(
        lambda: NatsConnection(run, subject, payload),
        parts.hostname or "127.0.0.1",
        parts.port or 4222,
    )
    await asyncio.wait_for(connection.ready, 5.0)
    return list(connection.slots)


async def measure(url: str, subject: str, plan: Plan) -> Report:
    run = Run(plan)
    slots = await (nats_slots(run, url, subject) if subject else http_slots(run, url))
    return await run.drive(slots)


@click.command()
@click.option("--url", required=True, help="http://host:port/path, or nats://host:port.")
@click.option("--subject", default="", help="Ask over NATS on this subject.")
@click.option("--connections", default=32, show_default=True)
@click.option("--repeat", is_flag=True, help="The same request each time.")
@click.option("--tenants", default=0, show_default=True)
@click.option("--seconds", default=5.0, show_default=True)
@click.option("--warmup", "warmup_s", default=1.0, show_default=True)
@click.option("--rate", default=0.0, help="Open loop, requests a second. 0: closed loop.")
@click.option("--stream", is_flag=True)
@click.option("--tokens", default=64, show_default=True, help="Chunks of a stream.")
@click.option("--model", default="fixed", show_default=True)
@click.option("--spread", "spread_s", default=0.0, help="Seconds over which closed loops begin.")
def main(url: str, subject: str, **plan: object) -> None:
    try:
        report = uvloop.run(measure(url, subject, msgspec.convert(plan, Plan)))
    except (OSError, TimeoutError) as error:
        sys.exit(f"nobody answers at {url}: {error}")
    print(msgspec.json.encode(report).decode())


if __name__ == "__main__":
    main()
