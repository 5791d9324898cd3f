"""The journal of a holder: where each of its leases stands, on disk before a call is made.

Append-only, a JSON line each. It outlives `kill -9`, because what was written is in the system's cache, but not
a machine that went down: so it bears the boot's id, and the journal of another boot is only a reason to worry.
One process holds the file's lock as long as it lives; whoever can take the lock closes what its owner left.
"""

import fcntl
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from breakwater_gateway.router.leases import Kept
from breakwater_gateway.runtime.telemetry import Log

COMPACT_BYTES: Final = 4 * 1024 * 1024
READ_MAX: Final = 64 * 1024 * 1024
_SUFFIX: Final = ".journal"
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")


class _Head(Struct, frozen=True):
    boot: str
    format: int = 1


_encode = msgspec.json.Encoder().encode
_kept = msgspec.json.Decoder(Kept)
_head = msgspec.json.Decoder(_Head)


class Journal:
    def __init__(self, folder: Path, name: str, log: Log, *, boot: str | None = None) -> None:
        self._folder = folder
        self._path = folder / f"{name}{_SUFFIX}"
        self._log = log
        self._boot = read_boot() if boot is None else boot
        self._fd = -1
        self._size = 0
        self._state: dict[str, Kept] = {}

    def open(self) -> bool:
        """False where there can be none: the leases of a router that is killed then count as spent whole."""
        if not self._boot:
            self._log.info("no_journal", reason="this system has no boot id")
            return False
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._renew()
        except OSError as error:
            self._log.warning("no_journal", path=str(self._path), error=str(error))
            self._void()
            return False
        return True

    def write(self, kept: Sequence[Kept]) -> None:
        if self._fd < 0 or not kept:
            return
        state = self._state
        for each in kept:
            if each.over:
                state.pop(each.lease, None)
            else:
                state[each.lease] = each
        data = b"".join([_encode(each) + b"\n" for each in kept])
        try:
            self._write(self._fd, data)
            self._size += len(data)
            if self._size > COMPACT_BYTES + 256 * len(state):
                self._renew()
        except OSError as error:
            # What is on disk says less than was spent from here on: nobody may go by it.
            self._log.error("journal_lost", path=str(self._path), error=str(error))
            self._void()

    def adopt(self) -> list[Kept]:
        """Leases of holders on this machine that live no more; from now on they are this journal's."""
        if self._fd < 0:
            return []
        found: list[Kept] = []
        for path in sorted(self._folder.glob(f"*{_SUFFIX}")):
            if path != self._path:
                found += self._adopt_one(path)
        return found

    def close(self, *, at_rest: bool) -> None:
        """`at_rest`: the books know everything, so the file has nothing to say any more."""
        if at_rest:
            self._void()
        elif self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    # ------------------------------------------------------------ the file

    def _renew(self) -> None:
        """A new file of what holds, in place of the old one. Locked before anybody can find it."""
        fresh = self._path.with_suffix(".new")
        fd = os.open(
            fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600
        )
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            lines = [_encode(_Head(self._boot)), *map(_encode, self._state.values())]
            data = b"\n".join(lines) + b"\n"
            self._write(fd, data)
            fresh.replace(self._path)
        except OSError:
            os.close(fd)
            raise
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._size = fd, len(data)

    @staticmethod
    def _write(fd: int, data: bytes) -> None:
        done = os.write(fd, data)
        if done != len(data):
            raise OSError(f"only {done} of {len(data)} bytes were written")

    def _void(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            self._log.error("journal_not_removed", path=str(self._path), error=str(error))

    def _adopt_one(self, path: Path) -> list[Kept]:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return []  # somebody else was quicker
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return []  # its owner lives
            if not path.exists() or os.fstat(fd).st_ino != path.stat().st_ino:
                return []
            left = read_journal(os.read(fd, READ_MAX), self._boot)
            if left is None:
                self._log.warning("journal_not_believed", path=str(path))
            else:
                self.write(left)
            if self._fd >= 0:
                path.unlink()
        except OSError as error:
            self._log.warning("journal_not_read", path=str(path), error=str(error))
            return []
        else:
            return left or []
        finally:
            os.close(fd)


def read_journal(data: bytes, boot: str) -> list[Kept] | None:
    """Where each lease stood last; None when it is of another boot, or no journal.

    A line that breaks off at the end was not whole before its owner died, so nothing was done because of it.
    """
    lines = data.split(b"\n")[:-1]
    found: dict[str, Kept] = {}
    try:
        if not lines or _head.decode(lines[0]) != _Head(boot):
            return None
        for line in lines[1:]:
            kept = _kept.decode(line)
            if kept.over:
                found.pop(kept.lease, None)
            else:
                found[kept.lease] = kept
    except msgspec.MsgspecError:
        return None
    return list(found.values())


def read_boot() -> str:
    """The id of this boot of the machine; empty where there is none (only Linux tells)."""
    try:
        return _BOOT.read_text(encoding="ascii").strip()
    except OSError:
        return ""
