"""Embeddings by a model of the gateway's own: asked on the bus like any caller's, for the tenant who asks.

So its cost, its budget and its breaker are the gateway's everyday business. An answer that takes longer
than `PATIENCE_S` is none: the lookup goes on as a miss.
"""

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


class _Item(Struct):
    embedding: list[float]


class _Answer(Struct):
    data: list[_Item]


class ThroughGateway:
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
        self, text: str, tenant: str, *, max_cost_nano_usd: int | None = None
    ) -> Vector | NoVector:
        headers = {h.CACHE: "off", h.PRIORITY: "interactive", h.TIMEOUT: TIMEOUT}
        if max_cost_nano_usd is not None:
            headers[h.MAX_COST] = usd_text(max_cost_nano_usd)
        try:
            reply = await self._bus.ask(
                self._subjects.embed.at(tenant),
                msgspec.json.encode({"model": self._model, "input": text}),
                headers=headers,
                timeout_s=self._patience_s,
            )
        except (AskTimeout, NoResponders, BusError):
            return "no_embedding"
        if h.SERVICE_ERROR_CODE in reply.headers or len(reply.data) > ANSWER_BYTES_MAX:
            return "no_embedding"
        try:
            answer = msgspec.json.decode(reply.data, type=_Answer)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return "no_embedding"
        if len(answer.data) != 1:
            return "no_embedding"
        with np.errstate(over="ignore"):  # what is beyond float32 is infinite, and no vector
            return np.array(answer.data[0].embedding, dtype=np.float32)
