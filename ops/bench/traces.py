"""What exporting a request's trace costs: `uv run python -m ops.bench.traces [--json] [--save]`.

A nats-server of its own holds the events of so many requests, each of one call; the exporter reads them, makes
their spans and posts them to a collector in this process, which throws them away. Counted is the CPU time of
the exporter's thread alone: its NATS client, its HTTP client and all of its own work. None of it is on the path
of a request.
"""

import asyncio
import os
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final

import anyio
import click
import uvloop
from ops.bench.processes import free_ports, running
from ops.bench.record import taken, told

from breakwater_gateway.config.model import Config, Telemetry
from breakwater_gateway.exporter import cursor as cursors
from breakwater_gateway.exporter.actor import Exporter
from breakwater_gateway.exporter.cursor import BUCKET, KEY, Cursor
from breakwater_gateway.runtime.actor import Context
from breakwater_gateway.runtime.bus import Bus
from breakwater_gateway.runtime.clock import Clock
from breakwater_gateway.runtime.embedded import server_binary
from breakwater_gateway.runtime.logs import configure_logging, get_log
from breakwater_gateway.runtime.metrics import Registry
from breakwater_gateway.runtime.nats_bus import connect_nats
from breakwater_gateway.runtime.streams import ensure_streams, events_stream
from breakwater_protocol import cloudevents
from breakwater_protocol.chat import Usage
from breakwater_protocol.events import AttemptFinished, Decision, RequestFinished
from breakwater_protocol.subjects import Subjects

SUBJECTS: Final = Subjects()
AT_ONCE: Final = 200
DECISIONS: Final = [
    Decision("consider", 0.0, deployment="gpt-4o-us", score=1.0),
    Decision("consider", 0.0, deployment="gpt-4o-eu", score=2.0),
    Decision("dispatch", 0.1, deployment="gpt-4o-us", worker="worker-1", reason="least-busy"),
]


class Collector(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    taken = 0

    def do_POST(self) -> None:
        Collector.taken += len(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        del format, args


async def publish(bus: Bus, requests: int) -> None:
    usage = Usage(input=812, output=164, cache_read=512)
    for number in range(requests):
        id_, at = f"req_{number:024x}", time.time()
        attempt = AttemptFinished(
            request=id_, attempt=1, tenant="default", model="main-model", deployment="gpt-4o-us",
            target="gpt-4o-us", provider="openai", worker="worker-1", outcome="ok", at=at,
            duration_ms=900.0, first_token_ms=210.0, usage=usage, cost_nano_usd=3_670_000,
            stream=True, user="ann", feature="chat", provider_model="gpt-4o",
        )  # fmt: skip
        request = RequestFinished(
            request=id_, tenant="default", api="chat", model="main-model", outcome="ok", at=at,
            router="router-1", deployment="gpt-4o-us", attempts=1, stream=True, duration_ms=902.0,
            overhead_ms=1.2, first_token_ms=210.0, usage=usage, cost_nano_usd=3_670_000,
            user="ann", feature="chat", decisions=DECISIONS, config_revision=1,
        )  # fmt: skip
        for subject, data, event in (
            (SUBJECTS.attempt.at("gpt-4o-us", "ok"), SUBJECTS.attempt.encode(attempt), attempt),
            (SUBJECTS.request.at("default", "ok"), SUBJECTS.request.encode(request), request),
        ):
            kind = type(event)
            headers = cloudevents.headers_for(kind, "bench/1", at, f"{kind.__name__}{number}")
            bus.publish(subject, data, headers=headers)
        if number % AT_ONCE == 0:
            await bus.flush()
    log = await bus.event_log("EVT")
    while (last := await log.last(SUBJECTS.events)) is None or last.seq < 2 * requests:  # noqa: ASYNC110
        await asyncio.sleep(0.05)


async def export(bus: Bus, endpoint: str, requests: int, share: float) -> float:
    """Microseconds of CPU a request."""
    store = await bus.store(BUCKET)
    await store.put(KEY, cursors.encode(Cursor(0, 0)))
    telemetry = Telemetry(otlp=endpoint, trace_sample=share)
    context = Context(
        id=f"exporter-{share:g}", bus=bus, subjects=SUBJECTS, clock=Clock(), log=get_log(),
        metrics=Registry(), config=Config(models={}, telemetry=telemetry),
    )  # fmt: skip
    exporter = Exporter(context, environment={})
    async with anyio.create_task_group() as tasks:
        began = time.thread_time()
        await exporter.start(tasks)
        while True:
            entry = await store.get(KEY)
            value = entry.value if entry is not None else None
            if value is not None and cursors.decode(value).done >= 2 * requests:
                break
            await asyncio.sleep(0.02)
        took = time.thread_time() - began
        exporter.draining = True
        await exporter.drain()
        await exporter.stop()
        tasks.cancel_scope.cancel()
    return took / requests * 1e6


async def measure(url: str, endpoint: str, requests: int) -> dict[str, float]:
    bus = await connect_nats(url, name="bench", role="bench", patience_s=10)
    try:
        await ensure_streams(bus, events_stream())
        await publish(bus, requests)
        exported = min([await export(bus, endpoint, requests, 1.0) for _ in range(3)])
        left_out = min([await export(bus, endpoint, requests, 0.0) for _ in range(3)])
    finally:
        await bus.close()
    return {
        "exported_us_cpu_a_request": round(exported, 1),
        "left_out_us_cpu_a_request": round(left_out, 1),
        "bytes_sent_a_request": round(Collector.taken / 3 / requests, 1),
    }


def run(requests: int) -> dict[str, float]:
    configure_logging("json", "error")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory(prefix="breakwater-traces-") as folder:
        (port,) = free_ports(1)
        conf = Path(folder, "nats.conf")
        conf.write_text(
            f'listen: "127.0.0.1:{port}"\nmax_payload: 8MB\n'
            "feature_flags { js_ack_fc_v2: false }\n"
            f'jetstream {{ store_dir: "{folder}/js", max_file_store: 8GB }}\n'
        )
        cpus = range(os.cpu_count() or 1)
        with (
            running("nats", [str(server_binary()), "-c", str(conf)], cpus=cpus),
            asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        ):
            endpoint = f"http://127.0.0.1:{server.server_address[1]}"
            found = runner.run(measure(f"nats://127.0.0.1:{port}", endpoint, requests))
    server.shutdown()
    return found


@click.command(help=__doc__)
@click.option("--requests", default=3_000, show_default=True, help="Whose events are exported.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option("--save", is_flag=True, help="Keep the figures in ops/bench/results/traces.")
def main(requests: int, as_json: bool, save: bool) -> None:
    found = taken({"requests": requests, **run(requests)})
    told(found, "traces", as_json=as_json, save=save)


if __name__ == "__main__":
    main()
