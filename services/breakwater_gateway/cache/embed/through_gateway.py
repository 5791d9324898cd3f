"""Embeddings by a model of the gateway's own: asked on the bus like any caller's, for the tenant who asks.

So its cost, its budget and its breaker are the gateway's everyday business. An answer that takes longer
than `PATIENCE_S` is none: the lookup goes on as a miss.
"""

from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np
from msgspec import Struct

from breakwater_gateway.cache.embed.embedder import NoVector, Vector
from breakwater_gateway.config.budgets import usd_text
from breakwater_gateway.runtime.bus import AskTimeout, Bus, BusError, NoResponders
from breakwater_protocol import headers as h
from breakwater_protocol.subjects import Subjects

PATIENCE_S: Final = 0.030
TIMEOUT: Final = "2s"
"""For the request itself, which nobody waits for that long: it is not tried again and again for a minute."""
ANSWER_BYTES_MAX: Final = 256 * 1024
"""Of one embedding: 4,096 dimensions take less than half."""
ALL_PATIENCE_S: Final = 30.0
"""For many texts at once, that nobody waits for."""


class _Item(Struct):
    embedding: list[float]
    index: int = 0


class _Answer(Struct):
    data: list[_Item]


class ThroughGateway:
    calls = True

    def __init__(
        self, model: str, bus: Bus, subjects: Subjects, *, patience_s: float = PATIENCE_S
    ) -> None:
        self.name = f"model:{model}"
        self._model = model
        self._bus = bus
        self._subjects = subjects
        self._patience_s = patience_s

    async def start(self) -> None:
        return

    async def close(self) -> None:
        return

    async def embed(
        self,
        text: str,
        tenant: str,
        *,
        max_cost_nano_usd: int | None = None,
        patience_s: float | None = None,
    ) -> Vector | NoVector:
        headers = {h.CACHE: "off", h.PRIORITY: "interactive", h.TIMEOUT: TIMEOUT}
        if max_cost_nano_usd is not None:
            headers[h.MAX_COST] = usd_text(max_cost_nano_usd)
        timeout_s = self._patience_s if patience_s is None else patience_s
        made = await self._ask(text, tenant, headers=headers, timeout_s=timeout_s)
        return made[0] if made else "no_embedding"

    async def embed_all(self, texts: Sequence[str], tenant: str) -> list[Vector | NoVector]:
        headers = {h.CACHE: "off", h.PRIORITY: "batch"}
        made = await self._ask(list(texts), tenant, headers=headers, timeout_s=ALL_PATIENCE_S)
        return list(made) or ["no_embedding"] * len(texts)

    async def _ask(
        self, given: str | list[str], tenant: str, *, headers: dict[str, str], timeout_s: float
    ) -> tuple[Vector | NoVector, ...]:
        """A vector for each text; none for none of them when something is wrong."""
        try:
            reply = await self._bus.ask(
                self._subjects.embed.at(tenant),
                msgspec.json.encode({"model": self._model, "input": given}),
                headers=headers,
                timeout_s=timeout_s,
            )
        except (AskTimeout, NoResponders, BusError):
            return ()
        wanted = 1 if isinstance(given, str) else len(given)
        if h.SERVICE_ERROR_CODE in reply.headers or len(reply.data) > wanted * ANSWER_BYTES_MAX:
            return ()
        try:
            answer = msgspec.json.decode(reply.data, type=_Answer)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return ()
        items = sorted(answer.data, key=lambda item: item.index)
        if [item.index for item in items] != list(range(wanted)):
            return ()
        with np.errstate(over="ignore"):  # what is beyond float32 is infinite, and no vector
            return tuple(np.array(item.embedding, dtype=np.float32) for item in items)
