"""Processes the bench starts: pinned to a core, watched through /proc, ended by their own ids."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Final

from msgspec import Struct

ROOT: Final = Path(__file__).resolve().parents[2]
STOP_S: Final = 15.0
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


class Failed(Exception):
    """A process did not start, or did not do what it was started for."""


class Cores(Struct, frozen=True):
    gateway: frozenset[int]
    harness: frozenset[int]

    @property
    def pinned(self) -> bool:
        return self.gateway != self.harness


def cores() -> Cores:
    """The gateway gets the first core that this process may use, provider and load the second."""
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < 2:
        return Cores(frozenset(usable), frozenset(usable))
    return Cores(frozenset(usable[:1]), frozenset(usable[1:2]))


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on right now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _environment() -> dict[str, str]:
    # Without bytecode caches every start would compile; that is no property of the gateway.
    unwanted = {"PYTHONDONTWRITEBYTECODE", "PYTHONPROFILEIMPORTTIME", "PYTHONASYNCIODEBUG"}
    return {key: value for key, value in os.environ.items() if key not in unwanted}


class Process:
    """A child of ours with all of its own descendants."""

    def __init__(self, name: str, argv: list[str], *, cpus: Collection[int]) -> None:
        self.name = name
        self._log = tempfile.TemporaryFile("w+b")  # noqa: SIM115 - closed by stop()
        # A child inherits its parent's affinity, so that it never runs a moment unpinned.
        own = os.sched_getaffinity(0)
        os.sched_setaffinity(0, cpus)
        try:
            self._popen = subprocess.Popen(
                argv,
                cwd=ROOT,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=subprocess.STDOUT,
            )
        except OSError as error:
            self._log.close()
            raise Failed(f"{name} did not start: {error}") from error
        finally:
            os.sched_setaffinity(0, own)

    @property
    def pid(self) -> int:
        return self._popen.pid

    def alive(self) -> bool:
        return self._popen.poll() is None

    def said(self, limit: int = 2000) -> str:
        """The end of what it printed, in characters."""
        self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, self._log.tell() - limit))
        return self._log.read().decode(errors="replace")

    def stop(self) -> None:
        """SIGTERM, and SIGKILL for whatever of it lives `STOP_S` later."""
        family = descendants([self.pid])
        self._popen.send_signal(signal.SIGTERM)
        try:
            self._popen.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
        for pid in family - {self.pid}:
            if _parent(pid) is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self._log.close()


@contextlib.contextmanager
def running(name: str, argv: list[str], *, cpus: Collection[int]) -> Iterator[Process]:
    process = Process(name, argv, cpus=cpus)
    try:
        yield process
    finally:
        process.stop()


def python(module: str, *args: object) -> list[str]:
    return [sys.executable, "-m", module, *map(str, args)]


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat after the command's name (proc(5)); None once it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def _parent(pid: int) -> int | None:
    fields = _stat(pid)
    return int(fields[1]) if fields else None


def descendants(pids: Iterable[int]) -> set[int]:
    """These processes and all that descend from them."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (parent := _parent(int(entry.name))) is not None:
            children.setdefault(parent, []).append(int(entry.name))
    found: set[int] = set()
    waiting = list(pids)
    while waiting:
        pid = waiting.pop()
        if pid not in found:
            found.add(pid)
            waiting.extend(children.get(pid, ()))
    return found


def cpu_s(pids: Iterable[int]) -> float:
    """User and system time of the processes, their descendants, and children they have reaped.

    The clock tick is usually 10 ms: only differences over seconds mean anything.
    """
    ticks = 0
    for pid in descendants(pids):
        fields = _stat(pid)
        if fields:
            ticks += sum(map(int, fields[11:15]))
    return ticks / _TICKS


def busy_s(cpus: Collection[int]) -> float:
    """Time that these cores have spent on processes of anybody, interrupts left out (proc(5), /proc/stat)."""
    wanted = {f"cpu{number}" for number in cpus}
    ticks = 0
    for line in Path("/proc/stat").read_text(encoding="ascii").splitlines():
        name, *fields = line.split()
        if name in wanted:
            ticks += sum(map(int, fields[:3]))
    return ticks / _TICKS


def resident_mb(pids: Iterable[int]) -> float:
    """Resident memory of the processes and their descendants; pages they share count for each."""
    pages = 0
    for pid in descendants(pids):
        fields = _stat(pid)
        if fields:
            pages += int(fields[21])
    return pages * _PAGE / 1e6


def wait_for(
    what: str, ready: Callable[[], bool], process: Process, *, patience_s: float = 30.0
) -> None:
    """Polls until `ready()`. Raises `Failed` with the process's last words when it ends or takes too long."""
    deadline = time.monotonic() + patience_s
    while not ready():
        if not process.alive():
            raise Failed(f"{process.name} ended before {what}:\n{process.said()}")
        if time.monotonic() > deadline:
            raise Failed(f"{process.name}: {what} took over {patience_s:.0f} s:\n{process.said()}")
        time.sleep(0.01)
