"""Webhooks: a budget's crossings told to an address of the operator's, as JSON, a few times at most.

Nothing waits for them: they have a queue of their own, which drops what does not fit.
"""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import httpx
import msgspec

from breakwater_gateway.config.model import Budget, KeyRef
from breakwater_gateway.ledger.limits import Limits
from breakwater_gateway.runtime.tasks import TaskSet
from breakwater_gateway.runtime.telemetry import Log
from breakwater_protocol.events import BudgetChanged
from breakwater_protocol.ledger import account_named

WAITING_MAX: Final = 256
TRIES_S: Final = (0.0, 1.0, 5.0, 30.0)
"""Wait before each try."""
TIMEOUT_S: Final = 5.0
ADDRESS_BYTES_MAX: Final = 4_096

_PREFIXES: Final = {"hour": "h:", "day": "d:", "week": "i:", "month": "m:"}


def rule_of(event: BudgetChanged, limits: Limits[Budget]) -> Budget | None:
    """The budget whose line crossed."""
    for rule in limits.of(account_named(event.account)):
        prefix = f"w:{rule.rolling_s}/" if rule.per == "rolling" else _PREFIXES[rule.per]
        if rule.unit == event.unit and event.period.startswith(prefix):
            return rule
    return None


class Hooks:
    def __init__(self, environment: Mapping[str, str], *, log: Log, tasks: TaskSet) -> None:
        self._environment = environment
        self._log = log
        self._tasks = tasks
        self._limits = Limits[Budget](())
        self._waiting = 0
        self._client: httpx.AsyncClient | None = None

    def configure(self, budgets: Sequence[Budget]) -> None:
        self._limits = Limits([budget for budget in budgets if budget.webhook])

    def crossed(self, event: BudgetChanged) -> None:
        """Tell whoever wants to know. Never raises, never waits."""
        rule = rule_of(event, self._limits) if self._limits else None
        if rule is None:
            return
        if self._waiting >= WAITING_MAX:
            self._log.warning("webhook_dropped", account=event.account, waiting=self._waiting)
            return
        self._waiting += 1
        self._tasks.spawn(self._tell(event, rule.webhook))

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()

    async def _tell(self, event: BudgetChanged, where: str | KeyRef) -> None:
        try:
            address = await asyncio.to_thread(self._address, where)
            if not address:
                self._log.warning("webhook_unknown", account=event.account, where=str(where))
                return
            body = msgspec.json.encode(event)
            for wait_s in TRIES_S:
                await asyncio.sleep(wait_s)
                if await self._post(address, body, where):
                    return
            self._log.warning("webhook_failed", account=event.account, where=str(where))
        finally:
            self._waiting -= 1

    async def _post(self, address: str, body: bytes, where: str | KeyRef) -> bool:
        if self._client is None:
            self._client = httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=False)
        try:
            answer = await self._client.post(
                address, content=body, headers={"content-type": "application/json"}
            )
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            # The kind of the error alone: its words may hold the address, which may be a secret.
            self._log.info("webhook_retried", where=str(where), error=type(error).__name__)
            return False
        # Another try does not mend what the receiver will not have.
        return answer.status_code < 500 and answer.status_code != 429

    def _address(self, where: str | KeyRef) -> str:
        if isinstance(where, str):
            return where
        if where.source == "env":
            return self._environment.get(where.name, "").strip()
        try:
            with Path(where.name).open("rb") as file:
                return file.read(ADDRESS_BYTES_MAX).decode().strip()
        except (OSError, UnicodeDecodeError):
            return ""
