"""Logs and metrics: cheap on the hot path, rendered off it.

A metric is bound to its labels once (`metrics.counter(NAME, deployment=…)`) and the returned handle is
a plain object whose `add` or `observe` costs a fraction of a microsecond. Label values come from the
configuration only; the number of series a name may have is capped, and what exceeds it lands on an
`overflow` series that says so.
"""

from typing import Protocol


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
