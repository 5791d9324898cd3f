"""One actor's place in a process: the actor while it lives, and what is known of its lives before."""

import uuid
from collections.abc import Callable
from typing import Final

import anyio
from msgspec import Struct

from breakwater_gateway.runtime.actor import Actor, Context
from breakwater_gateway.runtime.logs import get_log
from breakwater_gateway.runtime.telemetry import Log

DRAIN_ORDER: Final = {"edge": 0, "router": 1, "worker": 2}
"""Who takes requests leaves first; who they depend on, later. All other kinds come last."""
DRAIN_LAST: Final = 3
BACKOFF_BASE_S: Final = 0.25
BACKOFF_CAP_S: Final = 30.0

Factory = Callable[[Context], Actor]


class ActorSpec(Struct, frozen=True):
    kind: str
    factory: Factory
    id: str = ""
    """Unique in the cluster; made up when empty."""
    description: str = ""
    drain_order: int | None = None
    """Lower numbers drain first; by default as `DRAIN_ORDER` has it."""
    log: Log | None = None
    """Where it logs; by default where this process does."""


def restart_delay_s(failures: int, *, draw: float) -> float:
    """Full jitter over an exponential cap (Brooker, "Exponential Backoff And Jitter", 2015).

    `failures` in a row, from 1; `draw` in [0, 1).
    """
    exponent = min(max(failures, 1) - 1, 32)
    return draw * min(BACKOFF_CAP_S, BACKOFF_BASE_S * 2.0**exponent)


class Slot:
    """One actor's place: the actor while it lives, and why it does not while it does not."""

    def __init__(self, spec: ActorSpec) -> None:
        self.spec = spec
        self.kind = spec.kind
        self.id = spec.id or f"{spec.kind}-{uuid.uuid4().hex[:12]}"
        self.order = (
            DRAIN_ORDER.get(spec.kind, DRAIN_LAST) if spec.drain_order is None else spec.drain_order
        )
        self.log: Log = spec.log or get_log(actor=self.kind, id=self.id)
        self.actor: Actor | None = None
        """Only while it serves."""
        self.waiting = "not started"
        self.served = False
        """It did once: what the machine refuses from then on is tried again."""
        self.failures = 0
        self.up_since = 0.0
        self.error: Exception | None = None
        self.scope: anyio.CancelScope | None = None
        self.draining: anyio.CancelScope | None = None

    def fail(self, error: Exception) -> None:
        """Ends this life from outside."""
        if self.error is None and self.scope is not None:
            self.error = error
            self.scope.cancel()
