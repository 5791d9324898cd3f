"""The questions that an operator wrote answers to, as vectors: which of them are near to one that is asked?

Made once a configuration. It can tell nothing before each question has its vector, or is known to have none.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np

from breakwater_gateway.cache.decision import TOP
from breakwater_gateway.cache.semantic import Vector, unit
from breakwater_gateway.config.model import Config
from breakwater_protocol.cache import Near

QUESTIONS_MAX: Final = 10_000
"""Of all answers, as they are written; those behind are found by their words alone. 15 MB of vectors."""
BATCH: Final = 8
"""Questions embedded at once: one call, where a model makes the vectors, whose answer the bus has to carry."""


def wanted(config: Config) -> bool:
    """Whether some ladder comes to the written answers, and there is something to embed with."""
    return (
        config.embeddings is not None
        and bool(config.static_answers.entries)
        and any(rung.kind == "static" for model in config.models.values() for rung in model.ladder)
    )


class Written:
    def __init__(self, config: Config) -> None:
        entries: dict[str, int] = {}
        if wanted(config):
            for number, entry in enumerate(config.static_answers.entries):
                for question in entry.questions:
                    if len(entries) < QUESTIONS_MAX:
                        entries.setdefault(question, number)
        self._questions = list(entries)
        self._entries = np.array(list(entries.values()), np.int64)
        self._rows: Vector | None = None
        self._told = 0

    def __len__(self) -> int:
        return len(self._questions)

    def missing(self) -> list[str]:
        """The next questions without a vector; empty once all have one."""
        return self._questions[self._told : self._told + BATCH]

    def learn(self, vectors: Sequence[Vector | None]) -> None:
        """The vectors of `missing`; None, or one that is none: it stays near to nothing."""
        for made in vectors:
            vector = None if made is None else unit(made, self.dimensions)
            if vector is not None:
                if self._rows is None:
                    self._rows = np.zeros((len(self._questions), vector.size), np.float32)
                self._rows[self._told] = vector
            self._told += 1

    @property
    def complete(self) -> bool:
        return self._rows is not None and self._told == len(self._questions)

    @property
    def dimensions(self) -> int | None:
        return None if self._rows is None else self._rows.shape[1]

    def near(self, vector: Vector) -> tuple[Near, ...]:
        """The nearest questions to that unit vector, the nearest first, and at least one with another answer
        than the first if there is one. Of equal ones the first written comes first."""
        if self._rows is None:
            return ()
        cosines = self._rows @ vector
        order = np.argsort(-cosines, kind="stable")
        found = list(order[:TOP])
        if len({int(self._entries[place]) for place in found}) == 1:
            others = order[self._entries[order] != self._entries[found[0]]]
            found += list(others[:1])
        return tuple(Near(self._questions[place], float(cosines[place])) for place in found)
