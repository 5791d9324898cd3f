"""Real exchanges to replay, where they are at hand: a folder beside the repository, never a part of it.

`BREAKWATER_SHARED` names the folder; its `recordings/<provider>.jsonl.xz` hold one exchange a line.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from ops.fidelity import rows as reader
from ops.fidelity.rows import Row

__all__ = ["RECORDINGS", "SHARED", "Row", "needs_recordings", "rows"]

SHARED: Final = Path(
    os.environ.get("BREAKWATER_SHARED", Path(__file__).parents[2].parent / "shared")
)
RECORDINGS: Final = SHARED / "recordings"

needs_recordings = pytest.mark.skipif(
    not RECORDINGS.is_dir(),
    reason="no recordings: set BREAKWATER_SHARED to the folder that holds recordings/",
)
"""Marks tests that replay recordings."""


def rows(provider_glob: str, api: str | None = None, stream: bool | None = None) -> Iterator[Row]:
    """Exchanges of the files `<provider_glob>.jsonl.xz`, of one API and with or without a stream."""
    for path in sorted(RECORDINGS.glob(f"{provider_glob}.jsonl.xz")):
        for row in reader.rows(path):
            if api in {None, row.api} and stream in {None, row.stream}:
                yield row
