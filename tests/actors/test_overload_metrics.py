"""What overload looks like in metrics: who was refused and why, and how long queues are and have been."""

import asyncio

import pytest
from tests.actors.stage import ANSWER, Gateway, config, stage
from tests.virtual_time import VirtualTimeLoop

from breakwater_gateway.config.model import Limits
from breakwater_gateway.runtime.metrics import merge

pytestmark = pytest.mark.anyio

BATCH = {"breakwater-priority": "batch"}
CRITICAL = {"breakwater-priority": "critical"}


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}


def values(gateway: Gateway, name: str) -> dict[str, float]:
    """By the values of its labels, in the order of their names."""
    for family in merge([gateway.metrics.snapshot()]).families:
        if family.name == name:
            return {
                " ".join(value for _, value in labels): value for labels, value in family.values
            }
    return {}


async def test_requests_that_a_router_has_no_room_for_are_counted_by_priority() -> None:
    async with stage(config("a", limits=Limits(in_flight=10))) as gateway:
        callers = [gateway.ask(headers=CRITICAL) for _ in range(9)]
        for _ in callers:
            await gateway.provider.next_call()
        assert (await gateway.ask(headers=BATCH).error())["status"] == 503
        assert (await gateway.ask(headers=BATCH).error())["status"] == 503
        assert values(gateway, "breakwater_shed_total") == {"batch router": 2}


async def test_the_queue_of_a_throttled_deployment_is_seen_with_its_age_until_it_is_empty() -> None:
    async with stage(config("a")) as gateway:
        await asyncio.sleep(1)
        assert values(gateway, "breakwater_release_queue") == {}
        first = gateway.ask()
        (await gateway.provider.next_call()).reply(429, retry_after="6")
        await asyncio.sleep(2)
        others = [gateway.ask(), gateway.ask(headers=BATCH)]
        await asyncio.sleep(1.2)
        assert values(gateway, "breakwater_release_queue") == {"a": 3}
        (age_s,) = values(gateway, "breakwater_release_queue_age_seconds").values()
        assert 2.6 <= age_s <= 3.3
        for _ in range(3):
            (await gateway.provider.next_call()).reply(200, ANSWER)
        for caller in (first, *others):
            assert (await caller.reply()).data == ANSWER
        await asyncio.sleep(1)
        assert values(gateway, "breakwater_release_queue") == {"a": 0}
        assert values(gateway, "breakwater_release_queue_age_seconds") == {"a": 0}


async def test_the_queue_before_a_full_deployment_is_seen_and_so_is_who_waited_in_vain() -> None:
    async with stage(config("a", max_in_flight=1)) as gateway:
        first = gateway.ask()
        call = await gateway.provider.next_call()
        waiting = gateway.ask(headers=CRITICAL)
        lost = gateway.ask()
        await asyncio.sleep(1.6)
        assert values(gateway, "breakwater_worker_queue") == {"a": 1}
        (age_s,) = values(gateway, "breakwater_worker_queue_age_seconds").values()
        assert 1.0 <= age_s <= 1.7
        # One of them was told at once that its turn would not come in time.
        assert (await lost.error())["status"] == 503
        assert values(gateway, "breakwater_shed_total") == {"interactive queue": 1}
        await asyncio.sleep(10)
        assert (await waiting.error())["status"] == 503
        assert values(gateway, "breakwater_shed_total") == {
            "interactive queue": 1,
            "critical too_old": 1,
        }
        assert values(gateway, "breakwater_worker_queue") == {"a": 0}
        assert values(gateway, "breakwater_worker_queue_age_seconds") == {"a": 0}
        call.reply(200, ANSWER)
        assert (await first.reply()).data == ANSWER
