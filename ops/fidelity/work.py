"""A file of recordings replayed: what one process of several does."""

import sys
import time
from pathlib import Path
from typing import Final

from ops.fidelity import rows
from ops.fidelity.finding import wrong
from ops.fidelity.replay import Outcome, replay

PROGRESS_S: Final = 5.0
"""Seconds between words on progress within a file."""


def file(path: Path, api: str | None) -> list[Outcome]:
    provider = rows.provider_of(path)
    outcomes = []
    told = time.monotonic()
    for number, line in enumerate(rows.lines(path), 1):
        try:
            row = rows.read(line, provider)
        except rows.Unreadable as error:
            found = wrong("a line that is no recording", error)
            outcomes.append(Outcome(provider, "unreadable", f"line-{number}", (found,)))
            continue
        if api in {None, row.api}:
            outcomes.append(replay(row))
        if time.monotonic() - told > PROGRESS_S:
            told = time.monotonic()
            print(f"          {path.name}: row {number}", file=sys.stderr)
    return outcomes
