import asyncio

import pytest
from tests.virtual_time import VirtualTimeLoop

from breakwater_gateway.runtime.lag import LagProbe

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}


def virtual() -> VirtualTimeLoop:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    return loop


@pytest.fixture
def probe() -> LagProbe:
    return LagProbe()


async def test_an_idle_loop_has_no_lag(probe: LagProbe) -> None:
    probe.start()
    await asyncio.sleep(5)
    assert probe.lag_s == pytest.approx(0)
    assert not probe.stalled_between(0, virtual().time())
    probe.stop()


async def test_a_stall_is_known_while_it_is_in_sight(probe: LagProbe) -> None:
    probe.start()
    await asyncio.sleep(1)
    before = virtual().time()
    virtual().advance(2)
    await asyncio.sleep(0.2)
    after = virtual().time()
    assert probe.lag_s == pytest.approx(1.9, abs=0.11)
    assert probe.stalled_between(before, after)
    assert not probe.stalled_between(before - 1, before - 0.5)
    await asyncio.sleep(3)
    assert probe.lag_s == pytest.approx(0)
    assert probe.stalled_between(before, after)
    assert not probe.stalled_between(after + 0.5, virtual().time())
    probe.stop()


async def test_a_timer_that_runs_before_the_probes_own_knows_of_the_stall(probe: LagProbe) -> None:
    probe.start()
    begun = virtual().time()
    heard = asyncio.get_running_loop().create_future()
    # Due earlier than the probe's timer, so it runs first once the loop goes on.
    virtual().call_later(
        0.05, lambda: heard.set_result(probe.stalled_between(begun, virtual().time()))
    )
    virtual().advance(10)
    assert await heard
    probe.stop()


async def test_a_short_hiccup_is_lag_but_no_stall(probe: LagProbe) -> None:
    probe.start()
    begun = virtual().time()
    virtual().advance(0.2)
    await asyncio.sleep(0.01)
    assert probe.lag_s == pytest.approx(0.1, abs=0.02)
    assert not probe.stalled_between(begun, virtual().time())
    probe.stop()


async def test_a_stopped_probe_leaves_no_timer(probe: LagProbe) -> None:
    probe.start()
    probe.stop()
    probe.stop()
    virtual().advance(60)
    assert probe.lag_s == 0
