"""Traces while exporters are killed and their collector comes and goes, in figures.

uv run pytest -m drill -s tests/drills/test_trace_drills.py
"""

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from tests.conftest import NatsProcess
from tests.e2e.processes import (
    HELLO,
    PATIENCE_S,
    Process,
    Simulator,
    fleet,
    free_port,
    report,
    until,
)
from tests.e2e.test_traces import Collector, settings, traceparent

pytestmark = [pytest.mark.nats, pytest.mark.drill]

CALLERS = 2
HOW = ("kill", "end", "kill", "end")
"""What becomes of the exporter that leads, one after the other."""
STATUSES = (200, 503, 200, 429, 200, 502)
FLAP_S = 0.7
"""How long the collector answers each of them."""


def test_no_trace_is_lost_while_exporters_are_killed_and_the_collector_fails(
    tmp_path: Path, nats_server: Callable[..., NatsProcess], simulator: Simulator
) -> None:
    """Every request of a caller has its two spans in the end, whatever is killed on the way."""
    port, url = free_port(), nats_server(max_file_store="8GB").url
    collector = Collector()
    path = tmp_path / "breakwater.yaml"
    path.write_text(
        settings(simulator).replace("env:OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
    )
    simulator.script(lane="traces-first", faults=[])
    config = ["--config", str(path)]
    serving = ["health", "router", "worker", "edge", "ledger", "--port", str(port), *config]
    numbers, names = itertools.count(1), itertools.count(1)
    asked: list[int] = []
    failed: list[int] = []
    over = threading.Event()

    def call() -> None:
        with httpx.Client(trust_env=False, timeout=PATIENCE_S) as client:
            while not over.is_set():
                number = next(numbers)
                answer = client.post(
                    f"http://127.0.0.1:{port}/v1/chat/completions",
                    json={"model": "m", "messages": HELLO},
                    headers=traceparent(number),
                )
                (asked if answer.status_code == 200 else failed).append(number)

    def flap() -> None:
        for status in itertools.cycle(STATUSES):
            collector.status = status
            if over.wait(FLAP_S):
                return

    def exporter() -> Process:
        name = f"exporter-{next(names)}"
        return Process(tmp_path / name, "run", "exporter", "--nats", url, *config)

    def begun(process: Process) -> bool:
        return "export_begins" in process.stderr

    with fleet(tmp_path, url, [serving], port=port):
        alive = [exporter()]
        try:
            until(lambda: begun(alive[0]), "the exporter has begun")
            alive.append(exporter())
            threads = [
                threading.Thread(target=each, daemon=True) for each in (*[call] * CALLERS, flap)
            ]
            for thread in threads:
                thread.start()
            for how in HOW:
                over.wait(3)
                (leader,) = [each for each in alive if begun(each)]
                alive.remove(leader)
                if how == "kill":
                    leader.kill()
                else:
                    leader.end()
                alive.append(exporter())
                until(lambda: any(map(begun, alive)), "another one took over")
            over.set()
            for thread in threads:
                thread.join()
            ended = time.monotonic()
            collector.status = 200
            until(
                lambda: len({s.span_id for s in collector.spans}) >= 2 * len(asked),
                "every span is there",
                patience_s=90,
            )
            caught_up_s = time.monotonic() - ended
            for each in alive:
                each.end()
        finally:
            over.set()
            for each in alive:
                each.discard()
    collector.close()
    copies: dict[bytes, set[bytes]] = {}
    for span in collector.spans:
        copies.setdefault(span.span_id, set()).add(span.SerializeToString())
    traces = Counter(s.trace_id.hex() for s in {s.span_id: s for s in collector.spans}.values())
    again = len(collector.spans) - len(copies)
    report(
        f"\n{len(asked)} requests, {len(HOW)} exporters that led were killed or ended: {len(copies)} spans,"
        f" {again} sent twice, all there {caught_up_s:.1f} s after the last request"
    )
    assert failed == []
    assert traces == {f"{number:032x}": 2 for number in asked}
    assert all(len(forms) == 1 for forms in copies.values()), "what is sent again is the same"
