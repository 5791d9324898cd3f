"""A streamed answer: paced, spoilt and interrupted as its script says."""

from collections.abc import Iterator
from typing import Final

from breakwater_gateway.simulator.calls import (
    CUT_DELAY_S,
    HTML,
    HTML_502,
    RunningCall,
    first_token_s,
    interruptions,
)
from breakwater_gateway.simulator.dialects.dialect import Dialect, Place
from breakwater_gateway.simulator.refusals import of_fault
from breakwater_gateway.simulator.script import Fault, Script, Verdict
from breakwater_gateway.simulator.turns import Choice, Event, Sampling, Turn

BATCH_BYTES: Final = 64 * 1024


class StreamedAnswer:
    """A streamed answer, paced against its own start so that timers do not drift; no task."""

    __slots__ = (
        "_call",
        "_cut_after",
        "_events",
        "_fault",
        "_first_at",
        "_next",
        "_script",
        "_stall_after",
        "_type",
        "_verdict",
    )

    def __init__(
        self,
        call: RunningCall,
        verdict: Verdict,
        turn: Turn,
        choices: list[Choice],
        sampling: Sampling,
    ) -> None:
        self._call = call
        self._verdict = verdict
        self._script = script = verdict.script
        self._fault = fault = verdict.fault
        self._stall_after, self._cut_after = interruptions(script, fault)
        self._type = call.dialect.stream_type(turn)
        events = call.dialect.events(turn, choices, script, sampling)
        if fault is not None or script.end_without_done:
            events = _spoil(events, call.dialect, turn, sampling, script, fault)
        if script.keep_alive_every and call.dialect.keep_alive:
            events = _kept_alive(events, call.dialect.keep_alive, script.keep_alive_every)
        if script.crlf and self._type[1].startswith("text/"):
            events = _with_crlf(events)
        self._events = events
        self._next: Event | None = next(self._events, None)
        self._first_at = 0.0

    def start(self) -> None:
        call, script = self._call, self._script
        kind = self._fault.kind if self._fault is not None else None
        if kind == "html_502":
            call.respond(502, HTML, HTML_502, kind)
        elif kind == "empty_body":
            call.respond(200, self._type, b"", kind)
        elif kind == "reset":
            call.cut(kind, "reset")
        elif kind != "hang" and not (script.stall_before_first and not script.stall_s):
            delay_s = first_token_s(self._verdict)
            self._first_at = call.loop.time() + delay_s
            if delay_s:
                call.at(self._first_at, self._begin)
            else:
                self._begin()

    def _begin(self) -> None:
        self._call.start(200, self._type)
        self._pump()

    def _pump(self) -> None:
        """Writes every event that is due, then waits: for the next one's time, or for the reader."""
        call, rate = self._call, self._script.tokens_per_s
        now = call.loop.time()
        batch: list[bytes] = []
        size = tokens = 0
        sent = call.entry.tokens_sent
        while True:
            event = self._next
            if event is None or (not event.head and self._interrupted(sent + tokens)):
                break
            due = self._first_at + (sent + tokens) / rate if rate else now
            if due > now + 0.0005:
                call.at(due, self._pump)
                break
            if size > BATCH_BYTES:
                break
            batch.append(event.data)
            size += len(event.data)
            tokens += event.tokens
            self._next = next(self._events, None)
        if batch:
            call.entry.tokens_sent += tokens
            call.write(b"".join(batch) if len(batch) > 1 else batch[0], self._script)
        if event is None:
            call.ended(self._fault.kind if self._fault is not None else "ok")
            call.responder.end()
        elif not event.head and self._interrupted(sent + tokens):
            self._interrupt()
        elif size > BATCH_BYTES:
            if call.responder.congested:
                call.responder.on_writable = self._resume
            else:
                call.later(0, self._pump)

    def _resume(self) -> None:
        self._call.responder.on_writable = None
        self._pump()

    def _interrupted(self, tokens: int) -> bool:
        return (self._cut_after is not None and tokens >= self._cut_after) or (
            self._stall_after is not None and tokens >= self._stall_after
        )

    def _interrupt(self) -> None:
        call, script = self._call, self._script
        tokens = call.entry.tokens_sent
        if self._cut_after is not None and tokens >= self._cut_after:
            call.later(CUT_DELAY_S, lambda: call.cut("cut", script.cut_with))
            return
        self._stall_after = None
        if script.stall_s:
            self._first_at += script.stall_s
            call.later(script.stall_s, self._pump)


def _spoil(
    events: Iterator[Event],
    dialect: Dialect,
    turn: Turn,
    sampling: Sampling,
    script: Script,
    fault: Fault | None,
) -> Iterator[Event]:
    """The stream's events with the fault's in their place."""
    kind = fault.kind if fault is not None else None
    without_end = script.end_without_done or kind == "end_without_done"
    problem = of_fault(fault, model=turn.model, key="") if fault is not None else None
    tokens = 0
    for sent, event in enumerate(events):
        content = event.tokens > 0 or tokens > 0
        if fault is not None and content and tokens >= fault.after_tokens:
            if kind == "malformed_chunk":
                yield Event(dialect.broken)
                kind = None
            elif kind == "half_json":
                yield Event(event.data[: len(event.data) // 2])
                return
        early = fault is not None and fault.before_first
        due = early or (fault is not None and content and tokens >= fault.after_tokens)
        if problem is not None and problem.kind == "error_in_200" and due:
            place = Place(turn, sampling, sent)
            yield Event(dialect.break_off(problem, place), head=early)
            return
        if event.last and without_end:
            return
        tokens += event.tokens
        yield event


def _kept_alive(events: Iterator[Event], signal: bytes, every: int) -> Iterator[Event]:
    for i, event in enumerate(events):
        if i % every == 0:
            yield Event(signal, head=event.head)
        yield event


def _with_crlf(events: Iterator[Event]) -> Iterator[Event]:
    """JSON has no line ends of its own inside a line: every one is the framing's."""
    for event in events:
        yield Event(event.data.replace(b"\n", b"\r\n"), event.tokens, event.head, event.last)
