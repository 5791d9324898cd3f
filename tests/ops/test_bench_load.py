"""The bench's load: what it asks, and for whom."""

from ops.bench.load import Plan
from ops.bench.scenarios import SCENARIOS
from ops.bench.wire import COUNTER


def plan(**how: object) -> Plan:
    facts = {"connections": 1, "seconds": 1.0, "warmup_s": 0.0, "rate": 0.0, "stream": False}
    return Plan(**{**facts, "tokens": 64, "model": "m", "spread_s": 0.0, **how})  # type: ignore[arg-type]


def test_only_a_load_of_repeats_asks_what_may_be_kept() -> None:
    assert b'"temperature":0.2' in plan().body()
    repeated = plan(repeat=True).body()
    assert b'"temperature":0.0' in repeated
    assert repeated.count(COUNTER) == 1


def test_hits_over_http_are_a_scenario() -> None:
    assert "cache-hit" in SCENARIOS
