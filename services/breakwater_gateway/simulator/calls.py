"""One simulated call from its arrival to its end: its time, its counters and the ways it may break.

The loop comes in: nothing here looks at a clock by itself.
"""

from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from breakwater_gateway.runtime.http.application import HttpRequest, Responder
from breakwater_gateway.simulator.dialects.dialect import JSON, Dialect, Headers
from breakwater_gateway.simulator.log import Entry, LaneStats
from breakwater_gateway.simulator.refusals import ApiError
from breakwater_gateway.simulator.script import Book, Fault, Script, Verdict, mix

LANES_MAX: Final = 1_000
# A reset overtakes what is still in buffers on its way; the client must have the tokens before.
CUT_DELAY_S: Final = 0.03
HTML: Final = ("content-type", "text/html")
HTML_502: Final = (
    b"<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body>\r\n<center><h1>502 Bad Gateway"
    b"</h1></center>\r\n<hr><center>nginx</center>\r\n</body>\r\n</html>\r\n"
)


class Timer(Protocol):
    def cancel(self) -> None: ...


class Loop(Protocol):
    """What is needed of an event loop. Times are seconds, monotonic."""

    def time(self) -> float: ...
    def call_later(self, delay: float, callback: Callable[[], None], /) -> Timer: ...
    def call_at(self, when: float, callback: Callable[[], None], /) -> Timer: ...


class Wire(Responder, Protocol):
    """A responder that can also break a connection as networks do."""

    def reset(self) -> None: ...


class Host(Protocol):
    """The server, as a call sees it."""

    book: Book
    stats: dict[str, LaneStats]
    entries: deque[Entry]
    wall: Callable[[], float]
    draining: bool

    def ended(self, entry: Entry) -> None: ...


class RunningCall:
    """One call from its arrival to its end: the answer's headers, its log entry and its counters."""

    __slots__ = (
        "_begun_at",
        "_book",
        "_cuts",
        "_rule",
        "_stats",
        "_timer",
        "dialect",
        "entry",
        "headers",
        "host",
        "identity",
        "loop",
        "responder",
    )

    def __init__(
        self,
        host: Host,
        loop: Loop,
        request: HttpRequest,
        responder: Wire,
        lane: str,
        dialect: Dialect,
    ) -> None:
        self.host = host
        self.loop = loop
        self.responder = responder
        self.dialect = dialect
        self._begun_at = loop.time()
        self._timer: Timer | None = None
        self._book: Book | None = None
        lane = lane if lane in host.stats or len(host.stats) < LANES_MAX else "other"
        stats = host.stats.get(lane)
        if stats is None:
            stats = host.stats[lane] = LaneStats()
        self._stats = stats
        stats.started += 1
        stats.in_flight += 1
        stats.in_flight_peak = max(stats.in_flight_peak, stats.in_flight)
        self.entry = Entry(
            0,
            host.wall(),
            lane[:512],
            request.path[:512],
            dialect.name,
            request_id=request.headers.get("x-request-id", "")[:200],
        )
        self.identity = mix(host.book.seed ^ (stats.started << 8))
        self.headers: Headers = dialect.headers(self.identity)
        self._cuts = self.identity
        responder.on_close = self._gone

    def admitted(self, book: Book, lane: str, key: str) -> None:
        """From here it counts against its script's capacity."""
        self._book = book
        self._rule = book.begun(lane, self.entry.model, key)

    def later(self, delay_s: float, act: Callable[[], None]) -> None:
        """At most one act is waited for; it is dropped when the call ends."""
        self._timer = self.loop.call_later(delay_s, act)

    def at(self, when: float, act: Callable[[], None]) -> None:
        self._timer = self.loop.call_at(when, act)

    def start(self, status: int, content_type: tuple[str, str]) -> None:
        self.entry.status = status
        self.responder.start(status, (content_type, *self.headers))

    def write(self, data: bytes, script: Script) -> None:
        entry = self.entry
        if entry.first_byte_ms is None:
            entry.first_byte_ms = self._elapsed_ms()
        entry.bytes_sent += len(data)
        most = 1 if script.drip else script.split_bytes
        if not most:
            self.responder.write(data)
            return
        at = 0
        while at < len(data):
            self._cuts = mix(self._cuts)
            size = 1 + self._cuts % most
            self.responder.write(data[at : at + size])
            at += size

    def respond(
        self, status: int, content_type: tuple[str, str], body: bytes, outcome: str
    ) -> None:
        self.entry.status = status
        self.entry.bytes_sent += len(body)
        self.entry.first_byte_ms = self._elapsed_ms()
        # Counted first: whoever has the answer finds it in the log.
        self.ended(outcome)
        self.responder.respond(status, (content_type, *self.headers), body)

    def refuse(self, error: ApiError, outcome: str) -> None:
        self.headers += error.headers
        self.respond(error.status, JSON, error.body(), outcome)

    def cut(self, outcome: str, how: str) -> None:
        self.ended(outcome)
        if how == "reset":
            self.responder.reset()
        else:
            self.responder.abort()

    def ended(self, outcome: str) -> None:
        entry, stats = self.entry, self._stats
        self.responder.on_close = self.responder.on_writable = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._book is not None:
            self._book.ended(self._rule)
            self._book = None
        entry.outcome = outcome
        entry.total_ms = self._elapsed_ms()
        stats.in_flight -= 1
        stats.finished += 1
        stats.tokens_sent += entry.tokens_sent
        stats.bytes_sent += entry.bytes_sent
        stats.outcomes[outcome] = stats.outcomes.get(outcome, 0) + 1
        self.host.ended(entry)

    def answer_whole(self, verdict: Verdict, body: bytes, tokens: int) -> None:
        """An answer that is not streamed, after its time, unless a fault wants otherwise."""
        script, fault = verdict.script, verdict.fault
        kind = fault.kind if fault is not None else None
        delay_s = first_token_s(verdict)
        if script.tokens_per_s:
            delay_s += tokens / script.tokens_per_s
        if kind == "reset":
            self.later(delay_s, lambda: self.cut("reset", "reset"))
        elif kind == "hang" or (script.stall_before_first and not script.stall_s):
            return
        elif not delay_s:
            self._send_whole(script, fault, body, tokens)
        else:
            self.later(delay_s, lambda: self._send_whole(script, fault, body, tokens))

    def _send_whole(self, script: Script, fault: Fault | None, body: bytes, tokens: int) -> None:
        kind = fault.kind if fault is not None else "ok"
        stall_after, cut_after = interruptions(script, fault)
        interrupted = [n for n in (stall_after, cut_after) if n is not None and n <= tokens]
        if kind == "html_502":
            self.respond(502, HTML, HTML_502, kind)
        elif kind == "empty_body":
            self.respond(200, JSON, b"", kind)
        elif kind in {"half_json", "malformed_chunk"}:
            self.respond(200, JSON, body[: len(body) // 2], kind)
        elif interrupted:
            self._send_part(script, body, tokens, min(interrupted), stalls=cut_after is None)
        elif script.drip:
            self.entry.tokens_sent = tokens
            self.start(200, JSON)
            self.write(body, script)
            self.ended(kind)
            self.responder.end()
        else:
            self.entry.tokens_sent = tokens
            self.respond(200, JSON, body, kind)

    def _send_part(
        self, script: Script, body: bytes, tokens: int, sent: int, *, stalls: bool
    ) -> None:
        """As much of the body as `sent` of its tokens; then a stall, or a cut."""
        split = max(1, len(body) * sent // max(tokens + 1, 1))

        def rest() -> None:
            self.write(body[split:], script)
            self.entry.tokens_sent = tokens
            self.ended("stall")
            self.responder.end()

        self.entry.tokens_sent = sent
        self.start(200, JSON)
        self.write(body[:split], script)
        if not stalls:
            self.later(CUT_DELAY_S, lambda: self.cut("cut", script.cut_with))
        elif script.stall_s:
            self.later(script.stall_s, rest)

    def _gone(self) -> None:
        drained = self.host.draining
        self.entry.cancelled_by_client = not drained
        self._stats.cancelled += not drained
        self.ended("drained" if drained else "cancelled")

    def _elapsed_ms(self) -> float:
        return (self.loop.time() - self._begun_at) * 1000


def interruptions(script: Script, fault: Fault | None) -> tuple[int | None, int | None]:
    """After how many tokens the answer stalls, and is cut."""
    stall_after, cut_after = script.stall_after_tokens, script.cut_after_tokens
    if fault is not None and fault.kind == "stall":
        stall_after = fault.after_tokens
    if fault is not None and fault.kind == "cut":
        cut_after = fault.after_tokens
    return stall_after, cut_after


def first_token_s(verdict: Verdict) -> float:
    script = verdict.script
    delay_s = (script.first_token_ms + script.first_token_jitter_ms * verdict.draw) / 1000
    return delay_s + script.stall_s if script.stall_before_first else delay_s
