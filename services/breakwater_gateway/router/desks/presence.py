"""The router's desk for the presence of workers: whether those that hold our calls are still there.

A dead worker has no responders, so it is found out by asking; one that a partition hides, by its silence.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Final

from breakwater_gateway.router.desks.tell import tell
from breakwater_gateway.router.life import Call, Life
from breakwater_gateway.router.targets import Targets
from breakwater_gateway.runtime.actor import Context
from breakwater_gateway.runtime.bus import Inbox, Message

_PING_S: Final = 0.25
"""How often workers that hold our work are asked whether they are there."""
_MISSES_MAX: Final = 6
"""Pings without any reply before a worker counts as lost: a silent partition."""
_GRACE_S: Final = 0.5
"""How long after the deadline the worker's own timers may take to end the attempt."""


class Presence:
    def __init__(
        self,
        context: Context,
        *,
        targets: Targets,
        live: dict[str, Life],
        lost: Callable[[Life, Call], None],
        late: Callable[[Life], None],
    ) -> None:
        """`lost`: the call's worker is gone. `late`: the deadline passed, and the workers say nothing."""
        self._context = context
        self._targets = targets
        self._live = live
        self._lost = lost
        self._late = late
        self._holding: dict[str, set[Call]] = {}
        """Calls in each worker's hands."""
        self._missed: dict[str, int] = {}
        self._pings: dict[str, Inbox] = {}

    def holds(self, call: Call) -> None:
        self._holding.setdefault(call.worker, set()).add(call)

    def let_go(self, call: Call) -> None:
        held = self._holding.get(call.worker)
        if held is not None:
            held.discard(call)
            if not held:
                del self._holding[call.worker]

    async def watch(self) -> None:
        """Deadlines are looked at here too: the worker's own timers are the exact ones."""
        while True:
            await asyncio.sleep(_PING_S)
            late = self._context.clock.now() - _GRACE_S
            for life in [x for x in self._live.values() if x.calls and x.plan.deadline <= late]:
                self._late(life)
            for worker in list(self._holding):
                self._ask(worker)
            for worker in [w for w in self._pings if w not in self._holding]:
                self._pings.pop(worker).close()
                self._missed.pop(worker, None)

    def _ask(self, worker: str) -> None:
        missed = self._missed.get(worker, 0)
        if missed >= _MISSES_MAX:
            self._gone(worker)
            return
        context = self._context
        inbox = self._pings.get(worker)
        if inbox is None:
            inbox = self._pings[worker] = context.bus.open_inbox(partial(self._on_pong, worker))
        self._missed[worker] = missed + 1
        tell(context, context.subjects.ping.at(worker), b"", {}, reply=inbox.subject)

    def _on_pong(self, worker: str, message: Message) -> None:
        if message.no_responders:
            self._gone(worker)
        else:
            self._missed[worker] = 0

    def _gone(self, worker: str) -> None:
        held = self._holding.pop(worker, set())
        self._missed.pop(worker, None)
        self._targets.loads.remove(worker)
        if held:
            self._context.log.warning("worker_lost", worker=worker, requests=len(held))
        for call in held:
            life = self._live.get(call.request)
            if life is not None and call in life.calls:
                self._lost(life, call)

    def stop(self) -> None:
        for inbox in self._pings.values():
            inbox.close()
