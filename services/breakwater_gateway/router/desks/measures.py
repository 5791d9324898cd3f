"""The router's desk for measures: hears how attempts of all routers went, where a strategy compares them.

Only subscribed while some model of the configuration has such a strategy: these events come once for every
call of the whole cluster.
"""

import asyncio
from collections.abc import Callable
from typing import Final

import msgspec

from breakwater_gateway.config.model import Config, Deployment
from breakwater_gateway.router.targets import Targets
from breakwater_gateway.runtime.actor import Context
from breakwater_gateway.runtime.bus import BusError, Message, Subscription
from breakwater_gateway.runtime.tasks import TaskSet

MEASURED: Final = frozenset({"latency", "cost", "usage"})


class Measures:
    def __init__(
        self,
        context: Context,
        *,
        targets: Targets,
        tasks: TaskSet,
        exhausted: Callable[[str, int | None, float | None], None],
    ) -> None:
        """`exhausted`: a deployment, or one key of its pool, has nothing left of its rates for so many seconds."""
        self.context = context
        self._targets = targets
        self._tasks = tasks
        self._exhausted = exhausted
        self._measured: dict[str, Deployment] = {}
        self._rated: set[str] = set()
        """Deployments whose strategy looks at rates."""
        self._subscription: Subscription | None = None
        self._following = asyncio.Lock()
        self._over = False

    def on_config(self, config: Config) -> None:
        if self._over:
            return
        self._learn(config)
        if bool(self._measured) != (self._subscription is not None):
            self._tasks.spawn(self._follow())

    async def start(self, config: Config) -> None:
        self._learn(config)
        await self._follow()

    async def drain(self) -> None:
        self._over, self._measured = True, {}
        await self._follow()

    def _learn(self, config: Config) -> None:
        models = [m for m in config.models.values() if m.strategy in MEASURED]
        self._measured = {d.id: d for m in models for d in m.deployments}
        self._rated = {d.id for m in models if m.strategy == "usage" for d in m.deployments}

    async def _follow(self) -> None:
        """Subscribed or not, as the last configuration wants it."""
        async with self._following:
            try:
                if self._measured and self._subscription is None:
                    self._subscription = await self.context.bus.subscribe(
                        self.context.subjects.attempt.any(), self._on_attempt
                    )
                elif not self._measured and self._subscription is not None:
                    subscription, self._subscription = self._subscription, None
                    await subscription.drain()
            except BusError as error:
                self.context.log.warning("attempts_not_followed", error=repr(error))

    def _on_attempt(self, message: Message) -> None:
        try:
            attempt = self.context.subjects.attempt.decode(message.data)
        except msgspec.MsgspecError as error:
            self.context.log.warning("bad_event", subject=message.subject, error=str(error))
            return
        deployment = self._measured.get(attempt.deployment)
        if deployment is None:
            return
        for key, wait_s in self._targets.heard(attempt, deployment, now=self.context.clock.now()):
            if deployment.id in self._rated:
                self._exhausted(deployment.id, key, wait_s)
