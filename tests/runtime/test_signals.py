import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("supervised.py")

Start = Callable[[float], "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    processes: list[subprocess.Popen[str]] = []

    def run(drain_s: float) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, PROGRAM, str(drain_s)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        return process

    yield run
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_the_exit_code_is_zero(start: Start, number: signal.Signals) -> None:
    process = start(0.05)
    process.send_signal(number)
    out, log = process.communicate(timeout=20)
    assert process.returncode == 0
    assert out.splitlines() == ["draining", "drained", "stopped"]
    assert '"event":"drained"' in log


def test_a_second_signal_does_not_wait(start: Start) -> None:
    process = start(600)
    process.send_signal(signal.SIGTERM)
    assert process.stdout is not None
    assert process.stdout.readline() == "draining\n"
    process.send_signal(signal.SIGTERM)
    out, log = process.communicate(timeout=20)
    assert process.returncode == 0
    assert out.splitlines() == ["stopped"]
    assert "drain_cut_short" in log


def test_nobody_reading_the_log_changes_nothing(start: Start) -> None:
    process = start(0.05)
    assert process.stderr is not None
    process.stderr.close()
    process.stderr = None
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    assert out.splitlines()[-1] == "stopped"
