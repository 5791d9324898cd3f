"""The scenarios: what is driven how, and which figures come of it. Targets are those of the design.

Whatever is compared is measured in turns within one run (direct, gateway, proxy, direct, …): the same
program differs by half between sittings on shared machines, by far less between two neighbouring runs.
"""

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Final

import msgspec
from ops.bench import stand
from ops.bench.figures import Row, row
from ops.bench.load import GAP_MS
from ops.bench.processes import Cores, cores, wait_for
from ops.bench.stand import Measured, Peer
from ops.bench.wire import MODEL

STREAMS: Final = 200
STREAM_TOKENS: Final = 100
TOKENS_PER_S: Final = 50
FOREIGN_MAX: Final = 0.05
"""Of the gateway's core; with more of it gone, delays say nothing about the gateway."""
HELD: Final = 500
"""Streams held open at once while memory is read."""
STEPS: Final = (100, 200, 300, 400, 600, 800, 1000, 1200)


class Bench:
    """One run: how long each measurement takes, and everything found so far."""

    def __init__(self, *, quick: bool) -> None:
        self.cores: Cores = cores()
        self.quick = quick
        self.rounds = 1 if quick else 3
        self.seconds = 2.0 if quick else 5.0
        self.rows: list[Row] = []
        self.problems: list[str] = []
        self.raw: dict[str, list[dict[str, object]]] = {}

    def drive(self, scenario: str, peer: Peer, **how: object) -> Measured:
        settings: dict[str, object] = {"seconds": self.seconds, **how}
        measured = stand.drive(self.cores, peer, **settings)  # type: ignore[arg-type]
        report = measured.report
        self.raw.setdefault(scenario, []).append(
            {"peer": peer.name, "asked": settings, "measured": msgspec.to_builtins(measured)}
        )
        where = f"{scenario}, {peer.name}"
        if report.errors or report.unanswered:
            self.problems.append(
                f"{where}: {report.errors} errors, {report.unanswered} unanswered, e.g. {report.sample}"
            )
        if measured.foreign > FOREIGN_MAX:
            self.problems.append(
                f"{where}: other programs took {measured.foreign:.0%} of the gateway's core"
            )
        if report.short:
            self.problems.append(f"{where}: {report.short} streams ended short")
        return measured


Gateway = Callable[[Cores, int], AbstractContextManager[Peer]]


@contextlib.contextmanager
def _lane(bench: Bench, gateway: Gateway) -> Iterator[tuple[Peer, Peer, Peer | None]]:
    """The provider, a gateway and, where there is one, a plain proxy; all up, one driven at a time."""
    with (
        stand.provider(bench.cores, interval_ms=1000 / TOKENS_PER_S) as direct,
        gateway(bench.cores, direct.port) as peer,
        stand.nginx(bench.cores, direct.port) as proxy,
    ):
        yield direct, peer, proxy


def _requests(
    bench: Bench,
    scenario: str,
    gateway: Gateway,
    *,
    per_second: tuple[float, float],
    cpu_ms: tuple[float, float],
    added_ms: tuple[float, float],
) -> None:
    with _lane(bench, gateway) as (direct, peer, proxy):
        peers = [direct, peer, *([proxy] if proxy else [])]
        full: dict[str, list[Measured]] = {one.name: [] for one in peers}
        calm: dict[str, list[Measured]] = {one.name: [] for one in peers}
        for _ in range(bench.rounds):
            for one in peers:
                full[one.name].append(bench.drive(scenario, one, connections=32))
            for one in peers:
                calm[one.name].append(bench.drive(scenario, one, connections=64, rate=200.0))

    def throughput(name: str) -> list[float]:
        return [one.report.per_second for one in full.get(name, [])]

    def median_ms(name: str) -> list[float]:
        return [one.report.latency.p50 for one in calm.get(name, [])]

    ours = [one.cpu_ms_per_request for one in full[peer.name]]
    added = [
        through - without
        for through, without in zip(median_ms(peer.name), median_ms("direct"), strict=True)
    ]
    bench.rows += [
        row(
            scenario,
            "requests a second on a core, 32 connections",
            "1/s",
            throughput(peer.name),
            direct=throughput("direct"),
            nginx=throughput("nginx"),
            first=per_second[0],
            then=per_second[1],
            more_is_better=True,
        ),
        row(
            scenario,
            "CPU a request",
            "ms",
            ours,
            nginx=[one.cpu_ms_per_request for one in full.get("nginx", [])],
            first=cpu_ms[0],
            then=cpu_ms[1],
        ),
        row(
            scenario,
            "p50 at 200 requests a second",
            "ms",
            median_ms(peer.name),
            direct=median_ms("direct"),
            nginx=median_ms("nginx"),
        ),
        row(scenario, "added p50 at 200/s", "ms", added, first=added_ms[0], then=added_ms[1]),
        row(
            scenario,
            "p99 at 200 requests a second",
            "ms",
            [one.report.latency.p99 for one in calm[peer.name]],
            direct=[one.report.latency.p99 for one in calm["direct"]],
            nginx=[one.report.latency.p99 for one in calm.get("nginx", [])],
        ),
    ]


def one_process(bench: Bench) -> None:
    """`breakwater up`: every actor in one process."""
    _requests(
        bench,
        "one-process",
        stand.one_process,
        per_second=(2800, 6000),
        cpu_ms=(0.35, 0.15),
        added_ms=(2.0, 1.0),
    )


def fleet(bench: Bench) -> None:
    """Edge, router, worker and health as processes of their own over NATS, on one core together."""
    _requests(
        bench,
        "fleet",
        stand.fleet,
        per_second=(2000, 4000),
        cpu_ms=(0.50, 0.24),
        added_ms=(3.5, 2.0),
    )


def nats_caller(bench: Bench) -> None:
    """A caller that publishes to `bw.v1.chat.default` and reads its inbox, against `breakwater up`."""
    scenario = "nats-caller"
    with _lane(bench, stand.one_process) as (direct, peer, _):
        through, without = [], []
        for _ in range(bench.rounds):
            without.append(bench.drive(scenario, direct))
            through.append(bench.drive(scenario, peer, over_nats=True))
    bench.rows += [
        row(
            scenario,
            "requests a second on a core, 32 in flight",
            "1/s",
            [one.report.per_second for one in through],
            direct=[one.report.per_second for one in without],
            more_is_better=True,
        ),
        row(scenario, "CPU a request", "ms", [one.cpu_ms_per_request for one in through]),
    ]


def cache_hit(bench: Bench) -> None:
    """The same request again and again over HTTP, answered from memory, against a direct call."""
    scenario = "cache-hit"
    with _lane(bench, stand.one_process) as (direct, peer, _):
        # The first one calls the provider; whatever is measured comes after it.
        bench.drive(scenario, peer, repeat=True, connections=1, seconds=0.5)
        full: dict[str, list[Measured]] = {one.name: [] for one in (direct, peer)}
        calm: dict[str, list[Measured]] = {one.name: [] for one in (direct, peer)}
        for _ in range(bench.rounds):
            for one in (direct, peer):
                full[one.name].append(bench.drive(scenario, one, repeat=True, connections=32))
            for one in (direct, peer):
                calm[one.name].append(
                    bench.drive(scenario, one, repeat=True, connections=64, rate=200.0)
                )
    bench.rows += [
        row(
            scenario,
            "hits a second on a core, 32 connections",
            "1/s",
            [one.report.per_second for one in full[peer.name]],
            direct=[one.report.per_second for one in full["direct"]],
            then=20_000,
            more_is_better=True,
        ),
        row(
            scenario,
            "CPU a hit over HTTP",
            "ms",
            [one.cpu_ms_per_request for one in full[peer.name]],
            first=0.10,
            then=0.05,
        ),
        row(
            scenario,
            "p50 at 200 requests a second",
            "ms",
            [one.report.latency.p50 for one in calm[peer.name]],
            direct=[one.report.latency.p50 for one in calm["direct"]],
        ),
    ]


def _streams(
    bench: Bench,
    scenario: str,
    gateway: Gateway,
    *,
    cpu_ms: tuple[float, float],
    added_ms: tuple[float, float],
) -> None:
    with _lane(bench, gateway) as (direct, peer, proxy):
        peers = [direct, peer, *([proxy] if proxy else [])]
        seen: dict[str, list[Measured]] = {one.name: [] for one in peers}
        length_s = STREAM_TOKENS / TOKENS_PER_S
        for _ in range(bench.rounds):
            for one in peers:
                seen[one.name].append(
                    bench.drive(
                        scenario,
                        one,
                        connections=STREAMS,
                        stream=True,
                        tokens=STREAM_TOKENS,
                        spread_s=length_s,
                        warmup_s=length_s,
                    )
                )
    ours, base, other = seen[peer.name], seen["direct"], seen.get("nginx", [])
    added = [
        through.report.first_token.p50 - without.report.first_token.p50
        for through, without in zip(ours, base, strict=True)
    ]
    bench.rows += [
        row(
            scenario,
            f"CPU a chunk, {STREAMS} streams at {TOKENS_PER_S}/s",
            "ms",
            [one.cpu_ms_per_chunk for one in ours],
            nginx=[one.cpu_ms_per_chunk for one in other],
            first=cpu_ms[0],
            then=cpu_ms[1],
        ),
        row(scenario, "added first token p50", "ms", added, first=added_ms[0], then=added_ms[1]),
        row(
            scenario,
            "chunk delay p50",
            "ms",
            [one.report.chunk_delay.p50 for one in ours],
            direct=[one.report.chunk_delay.p50 for one in base],
            nginx=[one.report.chunk_delay.p50 for one in other],
        ),
        row(
            scenario,
            "chunk delay p99",
            "ms",
            [one.report.chunk_delay.p99 for one in ours],
            direct=[one.report.chunk_delay.p99 for one in base],
            nginx=[one.report.chunk_delay.p99 for one in other],
        ),
        row(
            scenario,
            f"gaps over {GAP_MS:.0f} ms, all rounds",
            "",
            [float(sum(one.report.gaps for one in ours))],
            direct=[float(sum(one.report.gaps for one in base))],
        ),
    ]


def streams(bench: Bench) -> None:
    """200 concurrent streams at 50 tokens a second through `breakwater up`."""
    _streams(bench, "streams", stand.one_process, cpu_ms=(0.08, 0.05), added_ms=(3.0, 0.9))


def fleet_streams(bench: Bench) -> None:
    """The same through separate processes over NATS."""
    _streams(bench, "fleet-streams", stand.fleet, cpu_ms=(0.15, 0.10), added_ms=(6.0, 2.5))


def capacity(bench: Bench) -> None:
    """How many streams at 50 tokens a second run without a gap over 100 ms."""
    scenario, most = "capacity", 0
    with _lane(bench, stand.one_process) as (_, peer, _):
        for count in STEPS:
            # One pause of a shared machine is no limit of the gateway: a step gets two tries.
            for _ in range(2):
                report = bench.drive(
                    scenario,
                    peer,
                    connections=count,
                    stream=True,
                    tokens=STREAM_TOKENS,
                    spread_s=2.0,
                    warmup_s=2.5,
                ).report
                if not report.gaps and not report.errors:
                    most = count
                    break
            if most != count:
                break
    bench.rows.append(
        row(
            scenario,
            f"streams at {TOKENS_PER_S}/s without a gap over {GAP_MS:.0f} ms",
            "",
            [float(most)],
            first=300,
            then=800,
            more_is_better=True,
            note=f"steps {STEPS}",
        )
    )


def memory(bench: Bench) -> None:
    """Resident memory of `breakwater up` with its nats-server: idle, and for each stream held open."""
    scenario = "memory"
    idle, each = [], []
    for _ in range(bench.rounds):
        with (
            stand.provider(bench.cores, interval_ms=500) as direct,
            stand.one_process(bench.cores, direct.port) as peer,
        ):
            time.sleep(1.0)
            idle.append(peer.resident_mb())
            # What the first requests leave behind for good is no cost of a stream.
            before = bench.drive(scenario, peer, seconds=1.0, connections=64).resident_mb
            held = bench.drive(
                scenario,
                peer,
                connections=HELD,
                stream=True,
                tokens=16,
                seconds=4.0,
                warmup_s=2.0,
                spread_s=1.0,
            ).resident_mb
            each.append((held - before) * 1000 / HELD)
    bench.rows += [
        row(scenario, "`up` idle, nats-server included", "MB", idle, first=180, then=120),
        row(scenario, f"a concurrent stream, of {HELD}", "KB", each, first=60, then=30),
    ]


def _first_answer_s(bench: Bench, provider_port: int) -> float:
    with (
        tempfile.TemporaryDirectory(prefix="breakwater-bench-") as folder,
        ExitStack() as stack,
    ):
        begun = time.monotonic()
        peer = stack.enter_context(stand.started(bench.cores, provider_port, Path(folder)))
        wait_for("the first answer", lambda: stand.answers(peer.port), peer.processes[0])
        return time.monotonic() - begun


def start(bench: Bench) -> None:
    """From the start of `breakwater up` to its first answer."""
    with stand.provider(bench.cores) as direct:
        # The first start may compile bytecode; nobody waits for that twice.
        _first_answer_s(bench, direct.port)
        took = [_first_answer_s(bench, direct.port) for _ in range(2 * bench.rounds)]
    bench.rows.append(row("start", "`up` to the first answer", "s", took, first=2.0, then=1.0))


def scale(bench: Bench) -> None:
    """What size costs each request: 1,000 models, 100 targets behind one, 10,000 tenants on NATS."""
    scenario = "scale"
    shapes = {"one": (1, 1), "1,000 models": (1000, 1), "100 targets": (1, 100)}
    cost: dict[str, list[float]] = {name: [] for name in shapes}
    with ExitStack() as stack:
        direct = stack.enter_context(stand.provider(bench.cores))
        peers = {
            name: stack.enter_context(
                stand.one_process(bench.cores, direct.port, models=models, targets=targets)
            )
            for name, (models, targets) in shapes.items()
        }
        for _ in range(bench.rounds):
            for name, peer in peers.items():
                model = "model-500" if name == "1,000 models" else MODEL
                measured = bench.drive(scenario, peer, model=model)
                cost[name].append(measured.cpu_ms_per_request)
            for name, tenants in (("one tenant", 1), ("10,000 tenants", 10_000)):
                measured = bench.drive(scenario, peers["one"], over_nats=True, tenants=tenants)
                cost.setdefault(name, []).append(measured.cpu_ms_per_request)
    for name in ("1,000 models", "100 targets", "10,000 tenants"):
        base = statistics.median(cost["one tenant" if "tenants" in name else "one"])
        bench.rows.append(
            row(
                scenario,
                f"CPU a request with {name}, against one",
                "x",
                [one / base for one in cost[name]],
                first=1.15,
                then=1.05,
            )
        )


def harness(bench: Bench) -> None:
    """What the harness itself can do: figures of a gateway near these would be the harness's."""
    scenario = "harness"
    with stand.provider(bench.cores, interval_ms=1000 / TOKENS_PER_S) as direct:
        full = [bench.drive(scenario, direct) for _ in range(bench.rounds)]
        held = [
            bench.drive(
                scenario,
                direct,
                connections=1000,
                stream=True,
                tokens=STREAM_TOKENS,
                spread_s=2.0,
                warmup_s=2.0,
            )
            for _ in range(bench.rounds)
        ]
    bench.rows += [
        row(
            scenario,
            "requests a second, provider and load on one core",
            "1/s",
            [one.report.per_second for one in full],
            more_is_better=True,
        ),
        row(
            scenario,
            "chunk delay p99, 1,000 streams",
            "ms",
            [one.report.chunk_delay.p99 for one in held],
        ),
    ]


SCENARIOS: Final[dict[str, Callable[[Bench], None]]] = {
    "one-process": one_process,
    "fleet": fleet,
    "nats-caller": nats_caller,
    "cache-hit": cache_hit,
    "streams": streams,
    "fleet-streams": fleet_streams,
    "capacity": capacity,
    "memory": memory,
    "start": start,
    "scale": scale,
    "harness": harness,
}
