"""Fleets with no room left, in virtual time: nobody is asked in a circle, and nobody waits to be told so."""

import asyncio

import pytest
from msgspec.structs import replace
from tests.actors.stage import ANSWER, Caller, Gateway, config, stage
from tests.virtual_time import VirtualTimeLoop

from breakwater_gateway.config.model import Config, Limits, Model, Rung, StaticAnswers
from breakwater_gateway.router.shedding import Shedding
from breakwater_gateway.worker.actor import Worker
from breakwater_protocol import failures as f
from breakwater_protocol.commands import Priority

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}


async def filled(gateway: Gateway, calls: int) -> list[Caller]:
    """So many calls are under way, and every router has heard of them."""
    callers = [gateway.ask(headers={"breakwater-priority": "critical"}) for _ in range(calls)]
    for _ in callers:
        await gateway.provider.next_call()
    await asyncio.sleep(1.1)
    return callers


def small(*ids: str, in_flight: int = 100) -> Config:
    return config(*ids, limits=Limits(in_flight=in_flight))


def workers_of(gateway: Gateway) -> list[Worker]:
    found = [gateway.actor(name) for name in gateway.buses if name.startswith("worker")]
    return [worker for worker in found if isinstance(worker, Worker)]


async def limit(gateway: Gateway, capacity: int) -> None:
    """The router takes more requests than its workers do: so many at each of them, and everybody knows."""
    for worker in workers_of(gateway):
        worker.on_config(replace(worker.config, limits=Limits(in_flight=capacity)), 99)
    await asyncio.sleep(1.1)


async def close(gateway: Gateway, workers: int) -> None:
    """So many take nothing, and not even their heartbeats say so."""
    await asyncio.sleep(1.1)  # by then they know of each other
    for worker in workers_of(gateway)[:workers]:
        worker._shedding = _Closed(100)


class _Closed(Shedding):
    def refusal(self, priority: Priority, in_flight: int) -> f.Overloaded:
        return f.Overloaded("full", retry_after_s=7.0)


@pytest.mark.parametrize("workers", [2, 5, 12])
@pytest.mark.parametrize("deployments", [("a",), ("a", "b", "c", "d")])
async def test_a_full_fleet_says_so_at_once_and_when_to_come_again(
    workers: int, deployments: tuple[str, ...]
) -> None:
    async with stage(small(*deployments), workers=workers) as gateway:
        await limit(gateway, 2)
        await filled(gateway, 2 * workers)
        began = asyncio.get_running_loop().time()
        message = await gateway.ask().reply()
        assert asyncio.get_running_loop().time() == began
        assert message.headers["Nats-Service-Error-Code"] == "503"
        assert int(message.headers["retry-after"]) >= 1
        await asyncio.sleep(0.1)
        (event,) = gateway.requests
        assert event.outcome == "overloaded"
        # Whoever is known to be full is not asked, whatever the request could fall back on.
        asked = [d.worker for d in event.decisions if d.step == "dispatch"]
        assert len(asked) == 1


async def test_each_worker_is_asked_once_while_nobody_knows_better() -> None:
    async with stage(small("a"), workers=4) as gateway:
        await close(gateway, 4)
        began = asyncio.get_running_loop().time()
        message = await gateway.ask().reply()
        assert asyncio.get_running_loop().time() == began
        assert message.headers["retry-after"] == "7"
        await asyncio.sleep(0.1)
        asked = [d.worker for d in gateway.requests[0].decisions if d.step == "dispatch"]
        assert sorted(asked) == ["worker", "worker-2", "worker-3", "worker-4"]


async def test_whoever_has_room_is_found_without_a_wait() -> None:
    async with stage(small("a"), workers=4) as gateway:
        await close(gateway, 3)
        for _ in range(20):
            began = asyncio.get_running_loop().time()
            caller = gateway.ask()
            (await gateway.provider.next_call()).reply(200, ANSWER)
            reply = await caller.reply()
            assert reply.data == ANSWER
            assert reply.headers["breakwater-attempts"] == "1"
            assert asyncio.get_running_loop().time() == began


async def test_a_worker_that_was_full_is_asked_again_by_the_next_request() -> None:
    async with stage(small("a"), workers=2) as gateway:
        await close(gateway, 2)
        assert (await gateway.ask().error())["status"] == 503
        for worker in workers_of(gateway):
            worker._shedding = Shedding(100)
        caller = gateway.ask()
        (await gateway.provider.next_call()).reply(200, ANSWER)
        assert (await caller.reply()).data == ANSWER


async def test_a_full_fleet_is_a_reason_to_walk_the_ladder() -> None:
    base = small("a")
    model = base.models["m"]
    laddered = Model("m", model.deployments, ladder=(Rung("static"),))
    settings = replace(
        base, models={"m": laddered}, static_answers=StaticAnswers(default="Please wait.")
    )
    async with stage(settings, workers=2) as gateway:
        await close(gateway, 2)
        reply = await gateway.ask().reply()
        assert reply.headers["breakwater-rung"] == "static"
        assert reply.headers["breakwater-rung-reason"] == "worker_busy"
