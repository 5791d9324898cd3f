"""The router's desk for request ids that callers give: one body each, in the whole cluster.

A router alone knows what it has seen. Where others live the bucket `bw_ids` has each id's body for as long as
the id stands for it; a bucket that does not answer in time refuses nobody.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from breakwater_gateway.router import once
from breakwater_gateway.router.life import Life
from breakwater_gateway.runtime.actor import Context
from breakwater_gateway.runtime.bus import BusError, Store, WrongRevision
from breakwater_gateway.runtime.tasks import TaskSet

BUCKET: Final = "bw_ids"
ASK_S: Final = 0.25


class IdsDesk:
    def __init__(
        self,
        context: Context,
        *,
        tasks: TaskSet,
        begin: Callable[[Life], None],
        refuse: Callable[[Life], None],
    ) -> None:
        """`begin` goes on with a request whose id stands for its body; `refuse` ends the others."""
        self._context = context
        self._tasks = tasks
        self._begin = begin
        self._refuse = refuse
        self._store: Store | None = None
        self.ids = once.Ids()
        self.alone = True
        """No other router has been heard of."""

    def begin(self, life: Life) -> None:
        if self.alone or not life.options.once:
            self._begin(life)
        else:
            self._tasks.spawn(self._ask(life))

    async def _ask(self, life: Life) -> None:
        mine = True
        try:
            async with asyncio.timeout(ASK_S):
                mine = await self._is_mine(life)
        except (BusError, TimeoutError) as error:
            self._context.log.debug("id_not_asked", error=repr(error))
        if life.over:
            return
        if mine:
            self._begin(life)
        else:
            self._refuse(life)

    async def _is_mine(self, life: Life) -> bool:
        if self._store is None:
            self._store = await self._context.bus.store(BUCKET)
        key = once.place_of(life.who, once.shown(life.request_id))
        body = once.digest_of(life.body)
        try:
            await self._store.create(key, body, ttl_s=int(once.KEPT_S))
        except WrongRevision:
            entry = await self._store.get(key)
            return entry is None or entry.value is None or entry.value == body
        return True
