"""Tail sampling: what is known of a request waits for its end, and then all of it is exported or none.

The machine folds the stream of events in its order and by its clock, so reading it again decides alike.
Errors, partial answers, degraded, retried and slow requests are always kept; of the others the caller's own
decision holds where a caller told of one (`traceparent`), and else a share by trace id.
"""

from collections import OrderedDict
from typing import Final

from breakwater_gateway.exporter import spans as s
from breakwater_gateway.exporter.spans import Place, Span
from breakwater_protocol.events import AttemptFinished, RequestFinished

PATIENCE_S: Final = 900.0
"""How long a call is held for its request's end: its router may be gone."""
LATE_S: Final = 120.0
"""How long a request's decision is remembered for calls that end after it, as the slower of two does."""
WAITING_MAX: Final = 20_000
DECIDED_MAX: Final = 10_000
GIVEN_UP_MAX: Final = 64
"""Requests at a time, so that what a lost router leaves does not come in one piece."""
ATTEMPTS_MAX: Final = 128
"""Calls of one request that are held."""
PROBES: Final = ("breakwater", "probe-")
"""Tenant, and beginning of the request id, of calls that health makes: no request will end."""

Who = tuple[str, str]
"""Tenant and request id."""


class _Waiting:
    __slots__ = ("attempts", "first", "since")

    def __init__(self, first: int, since: float) -> None:
        self.first = first
        """Sequence of the first of them."""
        self.since = since
        self.attempts: list[AttemptFinished] = []


class _Decided:
    __slots__ = ("at", "kept", "place", "root", "until")

    def __init__(self, place: Place, root: bytes, kept: str, at: float, until: float) -> None:
        self.place = place
        self.root = root
        self.kept = kept
        """Why; empty: it is not exported."""
        self.at = at
        """When the request ended."""
        self.until = until


class Gather:
    """`now` is the stream's time: Unix seconds at which the server took the event."""

    def __init__(self, *, share: float, slow_s: float) -> None:
        self.share = share
        """Of the traces where nothing is remarkable, 0…1."""
        self.slow_s = slow_s
        self.kept = 0
        """Requests that were exported so far, and …"""
        self.left_out = 0
        """… that were not."""
        self._waiting: OrderedDict[Who, _Waiting] = OrderedDict()
        self._decided: OrderedDict[Who, _Decided] = OrderedDict()

    @property
    def needed(self) -> int | None:
        """The sequence from which on events have to be read again, should all this be forgotten."""
        return next(iter(self._waiting.values())).first if self._waiting else None

    def attempt(self, event: AttemptFinished, *, seq: int, now: float) -> list[Span]:
        """Spans that can be sent now; usually none, before the request has ended."""
        if not event.worker:
            return []  # a place that was given back: nothing was called
        who = (event.tenant, event.request)
        if event.tenant == PROBES[0] and event.request.startswith(PROBES[1]):
            return [*self._alone(event), *self.tick(now)]
        decided = self._decided.get(who)
        # An id may be used again: a call that began after the end is the next one's.
        if decided is not None and event.at - event.duration_ms / 1000 <= decided.at:
            if not decided.kept:
                return self.tick(now)
            return [s.attempt_span(event, decided.place, decided.root), *self.tick(now)]
        waiting = self._waiting.get(who)
        if waiting is None:
            waiting = self._waiting[who] = _Waiting(seq, now)
        ready = self.tick(now)
        if len(waiting.attempts) < ATTEMPTS_MAX:
            waiting.attempts.append(event)
        else:
            ready += self._alone(event)
        while len(self._waiting) > WAITING_MAX:
            ready += self._give_up()
        return ready

    def request(self, event: RequestFinished, *, now: float) -> list[Span]:
        """The request's span and those of its calls, or none of them."""
        who = (event.tenant, event.request)
        waiting = self._waiting.pop(who, None)
        attempts = waiting.attempts if waiting is not None else []
        place = s.place_of(event.tenant, event.request, event.traceparent, event.tracestate)
        kept = self._why(event, attempts, place)
        root = s.root_id(event)
        self._decided[who] = _Decided(place, root, kept, event.at, now + LATE_S)
        self._decided.move_to_end(who)
        while len(self._decided) > DECIDED_MAX:
            self._decided.popitem(last=False)
        if kept:
            self.kept += 1
        else:
            self.left_out += 1
            return self.tick(now)
        return [
            s.request_span(event, place, kept),
            *(s.attempt_span(each, place, root) for each in attempts),
            *self.tick(now),
        ]

    def tick(self, now: float) -> list[Span]:
        """Calls whose request never ended, as far as anybody heard."""
        while self._decided and next(iter(self._decided.values())).until <= now:
            self._decided.popitem(last=False)
        ready: list[Span] = []
        for _ in range(GIVEN_UP_MAX):
            if not self._waiting or now < next(iter(self._waiting.values())).since + PATIENCE_S:
                break
            ready += self._give_up()
        return ready

    def _give_up(self) -> list[Span]:
        _, waiting = self._waiting.popitem(last=False)
        return [span for event in waiting.attempts for span in self._alone(event)]

    def _alone(self, event: AttemptFinished) -> list[Span]:
        place = s.place_of(event.tenant, event.request, event.traceparent)
        if not s.is_failure(event) and not self._sampled(place):
            return []
        return [s.attempt_span(event, place, place.parent_id)]

    def _why(self, event: RequestFinished, attempts: list[AttemptFinished], place: Place) -> str:
        if event.outcome == "partial":
            return "partial"
        if s.is_failure(event):
            return "error"
        if event.rung_reason or event.rung != "primary":
            return "degraded"
        if any(s.is_failure(each) for each in attempts):
            return "retried"
        if event.duration_ms >= self.slow_s * 1000:
            return "slow"
        return "sampled" if self._sampled(place) else ""

    def _sampled(self, place: Place) -> bool:
        if place.sampled is not None:
            return place.sampled
        # As OpenTelemetry's TraceIdRatioBased: by the random end of the trace id.
        return int.from_bytes(place.trace_id[8:], "big") < self.share * 2**64
