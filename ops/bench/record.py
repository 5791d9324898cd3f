"""One bench's figures as a flat record: when, of what and where they were taken, kept and told alike by all of them."""

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import click
from ops.bench.processes import ROOT


def taken(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The figures after date, commit and machine."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "commit": subprocess.run(
            ["git", "rev-parse", "--short=10", "HEAD"],
            cwd=ROOT, capture_output=True, text=True, check=False,
        ).stdout.strip(),
        "machine": f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}",
        **figures,
    }  # fmt: skip


def told(record: Mapping[str, Any], bench: str, *, as_json: bool, save: bool) -> None:
    """On standard output, and if wanted in `ops/bench/results/<bench>`."""
    if save:
        folder = ROOT / "ops" / "bench" / "results" / bench
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{record['date'].replace(':', '')}-{record['commit']}.json"
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if as_json:
        click.echo(json.dumps(record))
    else:
        for name, value in record.items():
            click.echo(f"{name.replace('_', ' '):32} {value}")
