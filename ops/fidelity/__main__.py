"""`uv run python -m ops.fidelity DIR [--min PERCENT] [--json] [--provider P] [--api A] [--rows N] [--errors FILE]`."""

import argparse
import multiprocessing
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import msgspec
from ops.fidelity import refusals, report, rows, work
from ops.fidelity.replay import Outcome, classifier


def main(arguments: Sequence[str] | None = None) -> int:
    """0, or 1 below the threshold, or 2 where there is nothing to replay."""
    given = _parser().parse_args(arguments)
    paths = [
        path
        for path in rows.files(given.folder)
        if given.provider in {None, rows.provider_of(path)}
    ]
    if not paths:
        print(f"no recordings in {given.folder}", file=sys.stderr)
        return 2
    outcomes = [*_replayed(paths, given.api, given.jobs)]
    outcomes.sort(key=lambda outcome: (outcome.provider, outcome.api, outcome.id))
    errors = given.errors or _beside(given.folder)
    try:
        verdicts = refusals.judge(errors, classifier) if errors is not None else None
    except (OSError, msgspec.MsgspecError) as error:
        print(f"{errors}: {error}", file=sys.stderr)
        return 2
    found = report.Report(report.count(outcomes), verdicts)
    told = report.lines(found, outcomes) if given.json else report.table(found, rows=given.rows)
    for line in told:
        print(line)
    return 1 if found.percent < given.min else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ops.fidelity",
        description="Replays a folder of recordings through the gateway's dialects.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument(
        "--min",
        type=float,
        default=0.0,
        metavar="PERCENT",
        help="exit 1 when less of what was replayed passed (default: only report)",
    )
    parser.add_argument("--json", action="store_true", help="one object a line")
    parser.add_argument("--provider", help="only the file of this name")
    parser.add_argument("--api", help="only rows of this API")
    parser.add_argument("--rows", type=int, default=5, metavar="N", help="ids shown a reason")
    parser.add_argument(
        "--errors",
        type=Path,
        metavar="FILE",
        help="labelled errors (default: data/errors.jsonl beside DIR, if it is there)",
    )
    parser.add_argument("--jobs", type=int, default=None, help="processes (default: one a core)")
    return parser


def _beside(folder: Path) -> Path | None:
    path = folder.resolve().parent / "data" / "errors.jsonl"
    return path if path.is_file() else None


def _replayed(paths: list[Path], api: str | None, jobs: int | None) -> Iterator[Outcome]:
    """The outcomes of all files, each in a process of its own, the largest first."""
    started = time.monotonic()
    # Spawned, not forked: a fresh process holds no state of its parent.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        running = {pool.submit(work.file, path, api): path for path in paths}
        for number, done in enumerate(as_completed(running), 1):
            outcomes = done.result()
            print(
                f"{time.monotonic() - started:6.1f} s  {number} of {len(paths)} files: "
                f"{running[done].name}, {len(outcomes)} rows",
                file=sys.stderr,
            )
            yield from outcomes


if __name__ == "__main__":
    sys.exit(main())
