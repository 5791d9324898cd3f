"""Logs, metrics and trace context: cheap on the hot path, rendered off it.

A metric is bound to its labels once (`metrics.counter(NAME, deployment=…)`) and the returned handle is
a plain object whose `add` or `observe` costs a fraction of a microsecond. Label values come from the
configuration only; the number of series a name may have is capped, and what exceeds it lands on an
`overflow` series that says so.

The logs themselves are in `logs.py`, the registry in `metrics.py`; both are named here.
"""

import os
import re
from typing import Final, Protocol

from msgspec import Struct

from breakwater_gateway.runtime.logs import configure_logging, flush_logs, get_log, secrets
from breakwater_gateway.runtime.metrics import METRICS, Registry, merge, render

__all__ = [
    "METRICS",
    "Counter",
    "Gauge",
    "Histogram",
    "Log",
    "Metrics",
    "Registry",
    "TraceContext",
    "child_of",
    "clean_tracestate",
    "configure_logging",
    "flush_logs",
    "get_log",
    "merge",
    "new_trace",
    "parse_traceparent",
    "render",
    "secrets",
]


class Log(Protocol):
    """structlog's bound logger, as far as actors use it: an event's fixed name and facts as fields."""

    def debug(self, event: str, **facts: object) -> object: ...
    def info(self, event: str, **facts: object) -> object: ...
    def warning(self, event: str, **facts: object) -> object: ...
    def error(self, event: str, **facts: object) -> object: ...
    def exception(self, event: str, **facts: object) -> object: ...


class Counter(Protocol):
    def add(self, amount: float = 1) -> None: ...


class Gauge(Protocol):
    def set(self, value: float) -> None: ...


class Histogram(Protocol):
    def observe(self, value: float) -> None:
        """`value` in the metric's unit, seconds for times."""
        ...


class Metrics(Protocol):
    def counter(self, name: str, **labels: str) -> Counter: ...
    def gauge(self, name: str, **labels: str) -> Gauge: ...
    def histogram(self, name: str, **labels: str) -> Histogram: ...


class TraceContext(Struct, frozen=True):
    """W3C trace context, level 2: which trace a request belongs to and the span that called us."""

    trace_id: str
    """32 lower-case hex digits, not all zero."""
    span_id: str
    """16 lower-case hex digits, not all zero."""
    flags: int = 1
    """Bit 0: sampled by the caller. Bit 1: the trace id is random."""

    @property
    def sampled(self) -> bool:
        return bool(self.flags & 1)

    def header(self) -> str:
        """As `traceparent`, version 00: the only version this gateway writes."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags & 3:02x}"


_TRACEPARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_TRACESTATE_MEMBER: Final = re.compile(
    r"[a-z0-9][a-z0-9_\-*/@]{0,255}=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
)
_TRACEPARENT_MAX: Final = 256
_TRACESTATE_MAX: Final = 512
"""Characters that must be passed on at least (W3C trace context, 3.3.1.5); more is dropped whole."""
_TRACESTATE_MEMBERS_MAX: Final = 32


def parse_traceparent(text: str) -> TraceContext | None:
    """None for anything the specification calls invalid; a new trace begins then.

    A later version than 00 may carry more fields: what is known is read, the rest ignored.
    """
    if len(text) > _TRACEPARENT_MAX:
        return None
    found = _TRACEPARENT.fullmatch(text)
    if found is None:
        return None
    version, trace_id, span_id, flags, rest = found.groups()
    if version == "ff" or (version == "00" and rest):
        return None
    if trace_id == "0" * 32 or span_id == "0" * 16:
        return None
    return TraceContext(trace_id, span_id, int(flags, 16) & 3)


def new_trace(bits: bytes | None = None, *, sampled: bool = True) -> TraceContext:
    """A trace that begins here. `bits`: 24 random bytes, drawn from the system if not given."""
    bits = os.urandom(24) if bits is None else bits
    return TraceContext(_hex(bits[:16], 16), _hex(bits[16:24], 8), 3 if sampled else 2)


def child_of(parent: TraceContext, bits: bytes | None = None) -> TraceContext:
    """A span of our own in the caller's trace. `bits`: 8 random bytes, drawn if not given."""
    bits = os.urandom(8) if bits is None else bits
    return TraceContext(parent.trace_id, _hex(bits, 8), parent.flags)


def clean_tracestate(text: str) -> str:
    """The value if it is valid and within bounds, else empty: a broken one is dropped whole."""
    if not text or len(text) > _TRACESTATE_MAX:
        return ""
    members = [member for part in text.split(",") if (member := part.strip(" \t"))]
    if not members or len(members) > _TRACESTATE_MEMBERS_MAX:
        return ""
    keys = {member.partition("=")[0] for member in members}
    if len(keys) != len(members) or not all(map(_TRACESTATE_MEMBER.fullmatch, members)):
        return ""
    return ",".join(members)


def _hex(bits: bytes, size: int) -> str:
    if len(bits) != size:
        raise ValueError(f"{size} random bytes are needed, got {len(bits)}")
    # All zero means "no id" on the wire.
    return bits.hex() if any(bits) else f"{1:0{size * 2}x}"
