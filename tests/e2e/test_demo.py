"""The tour shows what it says, and ends by itself."""

import json
from pathlib import Path

import pytest
from tests.e2e.processes import once

pytestmark = pytest.mark.nats

TITLES = (
    *("A request", "Failover", "A breaker", "Coalescing", "Exact cache", "Semantic cache"),
    *("A budget", "The ladder", "A killed worker"),
)


def test_every_step_of_the_tour_shows_what_it_should(tmp_path: Path) -> None:
    done = once(tmp_path, "demo", "--json", timeout_s=90)
    assert done.returncode == 0, done.stderr
    *steps, last = [json.loads(line) for line in done.stdout.splitlines()]
    assert tuple(step["step"] for step in steps) == TITLES
    assert all(step["shown"] for step in steps)
    assert last["seconds"] < 60
