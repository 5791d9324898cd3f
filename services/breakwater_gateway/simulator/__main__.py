"""`python -m breakwater_gateway.simulator --port N --seed S`: the simulator by itself.

Prints one JSON line, `{"event": "ready", "host": …, "port": …}`, when it serves; logs go to standard
error. Ends with 0 on SIGTERM or SIGINT, 2 when it cannot listen.
"""

import argparse
import asyncio
import json
import signal
import sys
from collections.abc import Callable

from breakwater_gateway.runtime.http.server import AddressInUse
from breakwater_gateway.runtime.telemetry import configure_logging, flush_logs, get_log
from breakwater_gateway.simulator.actor import DRAIN_S
from breakwater_gateway.simulator.server import SimulatorServer

new_event_loop: Callable[[], asyncio.AbstractEventLoop]
try:
    from uvloop import new_event_loop
except ImportError:
    new_event_loop = asyncio.new_event_loop


async def serve(host: str, port: int, seed: int) -> int:
    """The exit code."""
    server = SimulatorServer(log=get_log(actor="simulator"), seed=seed)
    try:
        await server.start(host, port)
    except (AddressInUse, OSError) as error:
        print(f"The simulator cannot listen on {host}:{port}: {error}", file=sys.stderr)
        return 2
    loop = asyncio.get_running_loop()
    asked_to_stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked_to_stop.set)
    ready = {"event": "ready", "host": host, "port": server.port, "seed": seed}
    print(json.dumps(ready), flush=True)
    await asked_to_stop.wait()
    await server.drain(DRAIN_S)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m breakwater_gateway.simulator",
        description="Simulated providers: every API that the gateway speaks, a lane each.",
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one (default)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same answers")
    given = parser.parse_args()
    if not 0 <= given.port <= 65535:
        parser.error("--port must be from 0 to 65535")
    configure_logging("json", "warning", sys.stderr)
    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            return runner.run(serve(given.host, given.port, given.seed))
    finally:
        flush_logs()


if __name__ == "__main__":
    sys.exit(main())
