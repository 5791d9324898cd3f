"""Events as spans: one for a caller's request, one for each call to a provider, with the caller's as parent.

Ids are made of what the events say, so that the same events make the same spans however often they are read.
Text is bounded, times are in order, numbers fit 64 bits: whatever an event holds, its span is valid.
"""

import hashlib
from math import isfinite
from typing import Final, Literal

from msgspec import Struct

from breakwater_gateway.exporter import names as n
from breakwater_gateway.runtime.telemetry import TraceContext, clean_tracestate, parse_traceparent
from breakwater_protocol.events import AttemptFinished, Decision, RequestFinished

TEXT_MAX: Final = 1_024
"""Characters of an attribute, or of a status."""
NAME_MAX: Final = 256
PROPERTIES_MAX: Final = 32
NANO: Final = 1_000_000_000
TIME_MAX_NS: Final = 2**62
INT_MAX: Final = 2**63 - 1

Value = str | int | float | bool
Kind = Literal["server", "client"]

_GOOD: Final = frozenset({"ok", "cancelled"})
"""Outcomes that are no error: what was asked for, and nobody there any more to have it."""


class Point(Struct, frozen=True):
    """Something that happened within a span."""

    at_ns: int
    name: str
    attributes: dict[str, Value]


class Span(Struct, frozen=True):
    trace_id: bytes
    """16 bytes, not all zero."""
    span_id: bytes
    """8 bytes, not all zero; `parent_id` too, or none at all."""
    parent_id: bytes
    name: str
    kind: Kind
    start_ns: int
    """Unix time."""
    end_ns: int
    attributes: dict[str, Value]
    points: tuple[Point, ...] = ()
    error: str | None = None
    """Why it failed, maybe empty; None: it did not."""
    trace_state: str = ""
    flags: int = 1
    """W3C's, of the trace."""


class Place(Struct, frozen=True):
    """Where the spans of a request belong."""

    trace_id: bytes
    parent_id: bytes
    sampled: bool | None
    """As the caller decided; None: the trace begins here."""
    flags: int = 1
    trace_state: str = ""


def place_of(tenant: str, request: str, traceparent: str, tracestate: str = "") -> Place:
    """In the caller's trace if it told of one, else in one made of the request's id."""
    caller: TraceContext | None = parse_traceparent(traceparent) if traceparent else None
    if caller is None:
        return Place(_id(16, "trace", tenant, _shown(request)), b"", None)
    return Place(
        bytes.fromhex(caller.trace_id),
        bytes.fromhex(caller.span_id),
        caller.sampled,
        caller.flags,
        clean_tracestate(tracestate),
    )


def request_span(event: RequestFinished, place: Place, kept: str) -> Span:
    """`kept`: why it is exported."""
    start_ns, end_ns = _times(event.at, event.duration_ms)
    operation = n.OPERATIONS.get(event.api, event.api)
    said = _Attributes()
    said.name(n.OPERATION, operation)
    said.name(n.REQUEST_MODEL, event.model)
    if event.stream:
        said.put(n.STREAM, True)
    bad = event.outcome not in _GOOD
    if bad:
        said.name(n.ERROR_TYPE, event.outcome)
    said.ours("request_id", _shown(event.request))
    said.ours("tenant", event.tenant)
    said.ours("api", event.api)
    said.ours("outcome", event.outcome)
    said.ours("deployment", event.deployment)
    said.ours("rung", event.rung)
    said.ours("rung_reason", event.rung_reason)
    said.ours("cache", event.cache)
    said.ours("attempts", event.attempts)
    said.ours("overhead_ms", event.overhead_ms)
    said.ours("first_token_ms", event.first_token_ms)
    if event.usage is not None:
        # Not under gen_ai: whoever sums tokens over spans would count those of the call below twice.
        said.ours("tokens.input", event.usage.input)
        said.ours("tokens.output", event.usage.output)
    said.ours("cost_usd", _usd(event.cost_nano_usd))
    said.ours("cost_saved_usd", _usd(event.cost_saved_nano_usd))
    said.ours("router", event.router)
    said.ours("config_revision", event.config_revision or None)
    said.ours("kept", kept)
    said.caller(event.user, event.org, event.feature, event.properties)
    return Span(
        trace_id=place.trace_id,
        span_id=root_id(event),
        parent_id=place.parent_id,
        name=_name(operation, event.model),
        kind="server",
        start_ns=start_ns,
        end_ns=end_ns,
        attributes=said.found,
        points=tuple(_point(each, start_ns, end_ns) for each in event.decisions),
        error=_text(event.rung_reason if event.outcome != "partial" else "") if bad else None,
        trace_state=place.trace_state,
        flags=place.flags,
    )


def attempt_span(event: AttemptFinished, place: Place, parent_id: bytes) -> Span:
    """`parent_id`: the request's span, or the caller's where nobody knows how the request ended."""
    start_ns, end_ns = _times(event.at, event.duration_ms)
    operation = n.OPERATIONS.get(event.api, event.api)
    model = event.provider_model or event.model
    said = _Attributes()
    said.name(n.OPERATION, operation)
    said.name(n.PROVIDER, n.PROVIDERS.get(event.provider, event.provider))
    said.name(n.REQUEST_MODEL, model)
    if event.stream:
        said.put(n.STREAM, True)
    if event.stream and event.first_token_ms is not None:
        said.put(n.FIRST_CHUNK_S, event.first_token_ms / 1000)
    if event.usage is not None:
        usage = event.usage
        said.put(n.INPUT_TOKENS, usage.input)
        said.put(n.OUTPUT_TOKENS, usage.output)
        for name, count in (
            (n.CACHE_READ_TOKENS, usage.cache_read),
            (n.CACHE_WRITE_TOKENS, usage.cache_write),
            (n.REASONING_TOKENS, usage.reasoning),
        ):
            if count:
                said.put(name, count)
        if event.metered:
            said.ours("metered", True)
    bad = event.outcome not in _GOOD
    if bad:
        said.name(n.ERROR_TYPE, event.failure or event.outcome)
    if event.status is not None:
        said.put(n.HTTP_STATUS, event.status)
    said.ours("request_id", _shown(event.request))
    said.ours("tenant", event.tenant)
    said.ours("attempt", event.attempt)
    said.ours("model", event.model)
    said.ours("outcome", event.outcome)
    said.ours("deployment", event.deployment)
    said.ours("target", event.target)
    said.ours("region", event.region)
    said.ours("key", event.key)
    said.ours("rung", event.rung)
    said.ours("worker", event.worker)
    said.ours("cost_usd", _usd(event.cost_nano_usd))
    said.ours("retry_after_s", event.retry_after_s)
    if event.in_stall:
        said.ours("in_stall", True)
    said.caller(event.user, event.org, event.feature, event.properties)
    return Span(
        trace_id=place.trace_id,
        span_id=_id(
            8, "attempt", event.tenant, event.request, f"{event.attempt}", f"{event.at:.6f}"
        ),
        parent_id=parent_id,
        name=_name(operation, model),
        kind="client",
        start_ns=start_ns,
        end_ns=end_ns,
        attributes=said.found,
        error=_text(event.message) if bad else None,
        trace_state=place.trace_state,
        flags=place.flags,
    )


def root_id(event: RequestFinished) -> bytes:
    """A request id may be used again; it does not end twice at one time."""
    return _id(8, "request", event.tenant, event.request, event.router, f"{event.at:.6f}")


def is_failure(event: AttemptFinished | RequestFinished) -> bool:
    return event.outcome not in _GOOD


class _Attributes:
    """Of a span, with what is not known left out."""

    def __init__(self) -> None:
        self.found: dict[str, Value] = {}

    def put(self, key: str, value: Value) -> None:
        if isinstance(value, str):
            value = _text(value)
        elif isinstance(value, float):
            if not isfinite(value):
                return
        else:
            value = value if isinstance(value, bool) else max(-INT_MAX, min(value, INT_MAX))
        self.found[key] = value

    def name(self, key: str, value: str) -> None:
        if value:
            self.put(key, value)

    def ours(self, key: str, value: Value | None) -> None:
        if value is not None and value != "":
            self.put(n.OURS + key, value)

    def caller(self, user: str, org: str, feature: str, properties: dict[str, str]) -> None:
        self.ours("user", user)
        self.ours("org", org)
        self.ours("feature", feature)
        for name, value in sorted(properties.items())[:PROPERTIES_MAX]:
            self.ours(f"property.{_text(name)}", value)


def _point(step: Decision, start_ns: int, end_ns: int) -> Point:
    said = _Attributes()
    said.ours("deployment", step.deployment)
    said.ours("worker", step.worker)
    said.ours("reason", step.reason)
    if step.wait_ms:
        said.ours("wait_ms", step.wait_ms)
    said.ours("score", step.score)
    at_ns = start_ns + _ns(step.at_ms / 1000)
    return Point(min(at_ns, end_ns), n.OURS + (_text(step.step) or "step"), said.found)


def _times(at: float, duration_ms: float) -> tuple[int, int]:
    end_ns = _ns(at)
    return max(0, end_ns - _ns(duration_ms / 1000)), end_ns


def _ns(seconds: float) -> int:
    """Nanoseconds from 0 up; what is no time is 0."""
    if not 0 <= seconds < TIME_MAX_NS / NANO:
        return 0
    return round(seconds * NANO)


def _usd(nano: int | None) -> float | None:
    return None if nano is None else max(-INT_MAX, min(nano, INT_MAX)) / NANO


def _name(operation: str, model: str) -> str:
    return _text(f"{operation} {model}".strip())[:NAME_MAX] or "request"


def _text(text: str) -> str:
    text = text[:TEXT_MAX]
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _shown(request: str) -> str:
    """The id as the caller gave it: a repetition in flight has a number after it."""
    return request.partition("#")[0]


def _id(size: int, *parts: str) -> bytes:
    of = hashlib.blake2b(digest_size=size)
    for part in parts:
        raw = part.encode("utf-8", "surrogatepass")
        of.update(len(raw).to_bytes(4, "big") + raw)
    found = of.digest()
    return found if any(found) else bytes(size - 1) + b"\1"
