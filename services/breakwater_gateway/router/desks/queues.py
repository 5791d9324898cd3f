"""The router's desk for queues: requests that wait for a throttled target, and whose turn it is.

One queue a target (`throttle.py` says when it moves), one timer each.
"""

from collections.abc import Callable
from functools import partial

from breakwater_gateway.router.life import Life, Timer
from breakwater_gateway.router.targets import Targets
from breakwater_gateway.runtime.actor import Context
from breakwater_gateway.runtime.overload import QueueGauges


class Queues:
    def __init__(
        self,
        context: Context,
        *,
        targets: Targets,
        live: dict[str, Life],
        advance: Callable[[Life], None],
    ) -> None:
        self._context = context
        self._targets = targets
        self._live = live
        self._advance = advance
        self._timers: dict[str, Timer] = {}
        """By target: when its queue is looked at next."""
        self._told = QueueGauges(context, "release")

    def join(self, life: Life, target: str, now: float) -> None:
        """Wait with everybody else that the target makes wait, at most for as long as the plan is patient."""
        life.queued, life.queued_at = target, now
        life.note("wait", now=now, deployment=target, reason="throttled")
        self._targets.throttle(target).join(life.request_id, life.rank)
        self._told.touch(target)
        out = partial(self._waited_out, life)
        life.wait(self._context.clock.call_at(life.plan.patience, out))
        self.pump(target)

    def _waited_out(self, life: Life) -> None:
        self.leave(life)
        self._advance(life)

    def leave(self, life: Life) -> None:
        target, life.queued = life.queued, ""
        if target:
            self._targets.throttle(target).leave(life.request_id)
            life.provider_ms += (self._context.clock.now() - life.queued_at) * 1000

    def pump(self, target: str) -> None:
        """Let go whoever's turn has come, and look again when the queue wants to be looked at."""
        throttle, clock = self._targets.throttle(target), self._context.clock
        now, keys = clock.now(), self._targets.keys(target, clock.wall())
        while (found := throttle.due(keys, now)) is not None:
            request, key = found
            life = self._live.get(request)
            if life is None or life.queued != target:
                continue
            life.queued, life.turn, life.turn_key = "", target, key
            life.provider_ms += (now - life.queued_at) * 1000
            life.wait(None)
            self._advance(life)
        timer = self._timers.pop(target, None)
        if timer is not None:
            timer.cancel()
        at = throttle.wake_at(keys, now)
        if at is not None:
            self._timers[target] = clock.call_at(at, partial(self.pump, target))

    def throttled(self, target: str, key: int | None, wait_s: float | None) -> None:
        """Some router's call was refused: everybody leaves the key that it used alone; None: the target."""
        self._targets.pause(target, key, wait_s, now=self._context.clock.now())
        self.pump(target)

    def measure(self) -> None:
        """The metrics of how many wait, and for how long."""
        now = self._context.clock.now()

        def state(target: str) -> tuple[int, float]:
            throttle = self._targets.throttle(target)
            since = [self._live[each].queued_at for each in throttle.firsts() if each in self._live]
            return throttle.waiting, now - min(since, default=now)

        self._told.tell(state)

    def stop(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
