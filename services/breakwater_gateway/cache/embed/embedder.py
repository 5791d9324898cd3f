"""Who turns texts into vectors, as the cache's actor sees it: at once from memory, later, or not at all."""

from collections import OrderedDict
from typing import Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]
NoVector = Literal["too_long", "no_embedding"]

REMEMBERED: Final = 8_192
"""Texts whose vectors are kept: 12 MB at 384 dimensions."""


class Embedder(Protocol):
    name: str
    """Of the model: vectors of two models must not be compared."""

    async def embed(
        self, text: str, tenant: str, *, max_cost_nano_usd: int | None = None
    ) -> Vector | NoVector:
        """The text's vector as the model gave it, if that costs no more. Never raises for a text or a model's
        failure."""
        ...

    async def start(self) -> None: ...

    async def close(self) -> None: ...


class Remembered:
    """The vectors of the texts that were last embedded, by tenant: who asked is told nothing by the time."""

    def __init__(self, size: int = REMEMBERED) -> None:
        self._size = size
        self._vectors: OrderedDict[tuple[str, str], Vector] = OrderedDict()

    def get(self, tenant: str, text: str) -> Vector | None:
        found = self._vectors.get((tenant, text))
        if found is not None:
            self._vectors.move_to_end((tenant, text))
        return found

    def put(self, tenant: str, text: str, vector: Vector) -> None:
        self._vectors[tenant, text] = vector
        self._vectors.move_to_end((tenant, text))
        if len(self._vectors) > self._size:
            self._vectors.popitem(last=False)
