"""Results on disk: a file for each run, named by date and commit, never written twice."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec
from ops.bench import stand
from ops.bench.figures import Machine, Result, newest, splice, table
from ops.bench.processes import ROOT
from ops.bench.scenarios import Bench

RESULTS: Final = ROOT / "ops" / "bench" / "results"
README: Final = ROOT / "README.md"


def _git(*args: str) -> str:
    done = subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def result(bench: Bench, *, now: datetime) -> Result:
    return Result(
        date=now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        commit=_git("rev-parse", "--short=10", "HEAD") or "none",
        # What the bench writes of itself does not change what was measured.
        dirty=bool(_git("status", "--porcelain", "--", ".", ":!ops/bench/results", ":!README.md")),
        machine=Machine(
            cpu=_cpu(),
            cores=os.cpu_count() or 1,
            kernel=f"{platform.system()} {platform.release().partition('-')[0]}",
            python=platform.python_version(),
            pinned=bench.cores.pinned,
        ),
        versions=stand.versions(),
        rows=bench.rows,
        problems=bench.problems,
        raw=bench.raw,
    )


def save(found: Result, folder: Path = RESULTS) -> Path:
    """The new file's path. An existing one is never written to: the name gets a number."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{found.date.partition('T')[0]}-{found.commit}"
    text = msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n"
    number = 1
    while True:
        path = folder / (f"{stem}.json" if number == 1 else f"{stem}-{number}.json")
        try:
            with path.open("xb") as file:
                file.write(text)
        except FileExistsError:
            number += 1
        else:
            return path


def load(folder: Path = RESULTS) -> list[Result]:
    """Every saved run. Raises `msgspec.ValidationError` on a file that is none."""
    return [
        msgspec.json.decode(path.read_bytes(), type=Result)
        for path in sorted(folder.glob("*.json"))
    ]


def readme_table(results: list[Result]) -> str:
    """The newest figures of each scenario, with where and when they were measured."""
    pairs = newest(results)
    if not pairs:
        raise ValueError("no results are saved yet: run `uv run python -m ops.bench` first")
    lines = [table([entry for entry, _ in pairs]), ""]
    for one in {found.date: found for _, found in pairs}.values():
        at = f"{one.commit}{' with local changes' if one.dirty else ''}"
        machine = one.machine
        pinning = "gateway on one core, provider and load on the other" if machine.pinned else ""
        facts = [
            one.date.partition("T")[0],
            at,
            machine.cpu,
            f"{machine.cores} cores",
            f"Python {machine.python}",
            pinning,
        ]
        lines.append("Measured " + ", ".join(fact for fact in facts if fact) + ".")
    return "\n".join(lines)


def write_readme(path: Path = README, folder: Path = RESULTS) -> None:
    """Raises `ValueError` when the README lacks the marks or nothing was measured yet."""
    text = splice(path.read_text(encoding="utf-8"), readme_table(load(folder)))
    path.write_text(text, encoding="utf-8")
