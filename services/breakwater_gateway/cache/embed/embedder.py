"""Who turns texts into vectors, as the cache's actor sees it: at once from memory, later, or not at all."""

from collections.abc import Sequence
from typing import Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from breakwater_gateway.cache.recent import Recent

Vector = NDArray[np.float32]
NoVector = Literal["too_long", "no_embedding"]

REMEMBERED: Final = 8_192
"""Texts whose vectors are kept …"""
REMEMBERED_BYTES: Final = 24 * 1024 * 1024
"""… as far as they have room: all of them at 384 dimensions, less than half at 1536."""


class Embedder(Protocol):
    name: str
    """Of the model: vectors of two models must not be compared."""

    calls: bool
    """A vector takes the call of a model: it costs, and counts as one."""

    async def embed(
        self,
        text: str,
        tenant: str,
        *,
        max_cost_nano_usd: int | None = None,
        patience_s: float | None = None,
    ) -> Vector | NoVector:
        """The text's vector as the model gave it, if that costs no more. Never raises for a text or a model's
        failure.

        `patience_s`: how long a call may take; None: as long as a lookup bears.
        """
        ...

    async def embed_all(self, texts: Sequence[str], tenant: str) -> list[Vector | NoVector]:
        """The same for texts that nobody waits for: all in one call, where one is made."""
        ...

    async def start(self) -> None: ...

    async def close(self) -> None: ...


class Remembered:
    """The vectors of the texts that were last embedded, by tenant: who asked is told nothing by the time."""

    def __init__(self, size: int = REMEMBERED) -> None:
        self._vectors: Recent[tuple[str, str], Vector] = Recent(
            size, REMEMBERED_BYTES, lambda place, vector: 2 * len(place[1]) + vector.nbytes
        )

    def get(self, tenant: str, text: str) -> Vector | None:
        return self._vectors.use((tenant, text))

    def put(self, tenant: str, text: str, vector: Vector) -> None:
        self._vectors.put((tenant, text), vector)

    def forget(self, tenant: str | None) -> None:
        """A tenant's; None: everybody's."""
        self._vectors.forget(lambda place, _: tenant in (None, place[0]))
