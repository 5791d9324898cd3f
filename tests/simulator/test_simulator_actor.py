"""The simulator's shell: it listens when started and not after it has drained."""

from typing import cast

import anyio
import httpx
import pytest
from tests.http.wire import KeptLog

from breakwater_gateway.config.model import Config
from breakwater_gateway.runtime.actor import Context
from breakwater_gateway.runtime.bus import Bus
from breakwater_gateway.runtime.clock import Clock
from breakwater_gateway.runtime.telemetry import Registry
from breakwater_gateway.simulator.actor import Simulator
from breakwater_protocol.subjects import Subjects

pytestmark = pytest.mark.anyio


async def test_it_serves_from_start_to_drain() -> None:
    context = Context(
        id="simulator-1",
        bus=cast("Bus", None),  # It has nothing to say there.
        subjects=Subjects(),
        clock=Clock(),
        log=KeptLog(),
        metrics=Registry(),
        config=Config(models={}),
    )
    simulator = Simulator(context, "127.0.0.1", 0)
    assert simulator.ready()
    async with anyio.create_task_group() as tasks, httpx.AsyncClient(trust_env=False) as http:
        await simulator.start(tasks)
        assert simulator.ready() == ""
        url = f"http://127.0.0.1:{simulator.port}/healthz"
        assert (await http.get(url)).status_code == 200
        await simulator.drain()
        assert simulator.ready()
        with pytest.raises(httpx.ConnectError):
            await http.get(url)
