"""How well written answers are found: `uv run python -m ops.bench.written [--seeds N ...]`.

A few questions of each intent are written down with one answer an intent; others of the same intents are asked,
and as many questions that no answer was written for. By words alone, and by meaning with the local MiniLM. The data
is found through BREAKWATER_SHARED, the vectors are kept in $XDG_CACHE_HOME; what is not there is said and left out.
Exit 1 when more than `WRONG_MAX` percent of the answers given under the defaults are wrong.
"""

import argparse
import lzma
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from breakwater_gateway.cache.embed.minilm import is_available
from breakwater_gateway.cache.written import Written
from breakwater_gateway.cli.cache_vectors import vectors_of
from breakwater_gateway.config.model import (
    Config,
    Embeddings,
    Model,
    Rung,
    StaticAnswer,
    StaticAnswers,
)
from breakwater_gateway.router.static_answers import Index
from breakwater_protocol.cache import Near

WRITTEN: Final = (3, 10)
"""Questions written down for each answer."""
ASKED: Final = 1_500
"""Of those with an answer, and of those without one."""
SIMILARITIES: Final = (0.75, 0.8, 0.85, 0.9)
WRONG_MAX: Final = 2.0


class Row(Struct):
    text: str
    intent: str


class Trial(Struct):
    answers: StaticAnswers
    asked: list[Row]
    """`intent` is empty where no answer was written."""
    near: list[tuple[Near, ...]]


def rows_of(shared: Path, name: str, seed: int) -> list[Row]:
    with lzma.open(shared / "data" / "intents" / f"{name}.jsonl.xz", "rb") as file:
        found = {row.text: row for row in map(_row, file)}
    rows = list(found.values())
    np.random.default_rng(seed).shuffle(rows)
    return rows


_row = msgspec.json.Decoder(Row).decode


def is_outside(row: Row) -> bool:
    """CLINC's questions that belong to no intent have one each here."""
    return row.intent.startswith("oos_")


def trial(rows: list[Row], outside: list[Row], written: int) -> Trial:
    by_intent: dict[str, list[str]] = {}
    for row in rows:
        by_intent.setdefault(row.intent, []).append(row.text)
    entries = tuple(
        StaticAnswer(tuple(texts[:written]), intent) for intent, texts in by_intent.items()
    )
    known = {question for entry in entries for question in entry.questions}
    asked = [row for row in rows if row.text not in known][:ASKED]
    asked += [Row(row.text, "") for row in outside[:ASKED]]
    answers = StaticAnswers(entries)
    return Trial(answers, asked, nearest(answers, [row.text for row in asked]))


def nearest(answers: StaticAnswers, asked: list[str]) -> list[tuple[Near, ...]]:
    """As the cache tells routers; nothing for what is beyond the embedder's window."""
    model = Model("m", (), ladder=(Rung("static"),))
    config = Config({"m": model}, embeddings=Embeddings(local="minilm"), static_answers=answers)
    written = Written(config)
    while texts := written.missing():
        written.learn(vectors_of(texts, "minilm"))
    return [
        () if vector is None else written.near(vector) for vector in vectors_of(asked, "minilm")
    ]


class Count(Struct):
    with_answer: int = 0
    without: int = 0
    right: int = 0
    wrong: int = 0
    stray: int = 0
    """Of those wrong: nothing was written for the question."""

    def row(self) -> str:
        right = 100 * self.right / max(1, self.with_answer)
        stray = 100 * self.stray / max(1, self.without)
        return f"{right:.1f} % | {stray:.2f} % | {self.wrong_share:.2f} %"

    @property
    def wrong_share(self) -> float:
        return 100 * self.wrong / max(1, self.right + self.wrong)


def add(count: Count, trial: Trial, similarity: float | None) -> None:
    """`similarity` None: by words alone."""
    answers = trial.answers
    if similarity is not None:
        answers = replace(answers, similarity=similarity)
    index = Index(answers)
    for row, near in zip(trial.asked, trial.near, strict=True):
        count.with_answer += bool(row.intent)
        count.without += not row.intent
        match = index.answer(row.text, None if similarity is None else near)
        if match is not None:
            count.right += match.answer == row.intent
            count.wrong += match.answer != row.intent
            count.stray += not row.intent


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0], help="Which questions are written down."
    )
    given: Any = parser.parse_args(arguments)
    shared = Path(os.environ.get("BREAKWATER_SHARED", "../shared"))
    why = is_available()
    if why or not (shared / "data" / "intents").is_dir():
        print(f"left out: {why or 'the data is not here: set BREAKWATER_SHARED'}")
        return 0
    counts: dict[tuple[str, int, float | None], Count] = {}
    for seed in given.seeds:
        banking, clinc = rows_of(shared, "banking77", seed), rows_of(shared, "clinc150", seed)
        inside = [row for row in clinc if not is_outside(row)]
        strange = [row for row in clinc if is_outside(row)]
        sets = (("banking77", banking, strange + inside), ("clinc150", inside, strange + banking))
        for name, rows, outside in sets:
            for written in WRITTEN:
                made = trial(rows, outside, written)
                for similarity in (None, *SIMILARITIES):
                    count = counts.setdefault((name, written, similarity), Count())
                    add(count, made, similarity)
    print(
        "| questions | written for each | found by | right | answered without an answer | wrong |"
    )
    print("|---|---|---|---|---|---|")
    usual = Count()
    for (name, written, similarity), count in counts.items():
        by = "words alone" if similarity is None else f"meaning, {similarity:g}"
        print(f"| {name} | {written} | {by} | {count.row()} |")
        if similarity == StaticAnswers().similarity:
            usual.right += count.right
            usual.wrong += count.wrong
    good = usual.wrong_share <= WRONG_MAX
    print(
        f"{'ok ' if good else 'NOT'} under the defaults {usual.wrong_share:.2f} % of"
        f" {usual.right + usual.wrong} answers are wrong (wanted <= {WRONG_MAX:g} %)"
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
