"""Tasks of one owner: started cheaply, never orphaned, joined or cancelled together."""

import asyncio
from collections.abc import Coroutine

from breakwater_gateway.runtime.telemetry import Log


class TaskSet:
    """Plain asyncio tasks, one per request; anyio's groups cost three times as much per start.

    A task that fails is logged; the others go on. The owner must `join` or `cancel` before it ends.
    """

    def __init__(self, log: Log) -> None:
        self._log = log
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log.error("task_failed", exc_info=error)

    async def join(self) -> None:
        """Until none is left, those started meanwhile included."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def cancel(self) -> None:
        for task in self._tasks:
            task.cancel()
        await self.join()
