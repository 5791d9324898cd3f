"""What overload looks like in metrics: queues before deployments, and who was refused.

Of a queue: how many wait, and for how long the oldest has. Told at every heartbeat for queues that somebody came to since, and until they are told to be empty once: what
never queues costs nothing.
"""

from collections.abc import Callable
from typing import Literal

from breakwater_gateway.runtime.actor import Context
from breakwater_protocol.commands import Priority

Why = Literal["router", "worker", "queue", "gave_way", "too_old"]
"""The router has as many requests as it takes; the worker as many attempts; a deployment's queue is too long to be
served in time; a higher priority took its place there; it waited there as long as it may."""


def shed(context: Context, priority: Priority, reason: Why) -> None:
    context.metrics.counter("breakwater_shed_total", priority=priority, reason=reason).add()


class QueueGauges:
    def __init__(self, context: Context, kind: str) -> None:
        """`kind`: `release` at routers, `worker` at workers."""
        self._metrics = context.metrics
        self._name = f"breakwater_{kind}_queue"
        self._touched: set[str] = set()

    def touch(self, deployment: str) -> None:
        """Somebody waits there now."""
        self._touched.add(deployment)

    def tell(self, state: Callable[[str], tuple[int, float]]) -> None:
        """`state` of a deployment: how many wait, and since how many seconds the oldest does."""
        for deployment in list(self._touched):
            waiting, age_s = state(deployment)
            self._metrics.gauge(self._name, deployment=deployment).set(waiting)
            self._metrics.gauge(f"{self._name}_age_seconds", deployment=deployment).set(
                age_s if waiting else 0.0
            )
            if not waiting:
                self._touched.discard(deployment)
