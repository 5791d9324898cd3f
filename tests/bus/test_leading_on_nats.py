"""Who leads, over a real server: leases are keys with a TTL there, and time is real."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import pytest
from tests.actors.leading_stage import Harbour, held_by
from tests.conftest import NatsProcess

from breakwater_gateway.runtime.nats_bus import connect_nats

pytestmark = [pytest.mark.anyio, pytest.mark.nats]


@asynccontextmanager
async def harbour(url: str, *names: str) -> AsyncIterator[Harbour]:
    """Candidates with a connection each, as of a process each."""
    async with AsyncExitStack() as stack, anyio.create_task_group() as tasks:
        here = Harbour(tasks)
        for name in names:
            bus = await connect_nats(url, name=name, role="test")
            stack.push_async_callback(bus.close)
            await here.add(name, bus)
        yield here
        for candidate in here.candidates.values():
            await candidate.leadership.close()
        tasks.cancel_scope.cancel()


async def test_a_drained_leader_is_followed_at_once(
    nats_server: Callable[..., NatsProcess],
) -> None:
    async with harbour(nats_server().url, "a", "b", "c") as here:
        assert here.leaders() == ["a"]
        first = here.candidates["a"]
        first.leadership.retire()
        await first.leadership.resign("drained")
        assert await held_by(first.bus) is None
        async with asyncio.timeout(5):
            while not here.leaders():  # noqa: ASYNC110 - either of the two
                await asyncio.sleep(0.01)
        (second,) = here.leaders()
        assert second != "a"
        assert first.generations < here.candidates[second].generations


async def test_a_leader_that_dies_is_replaced_when_its_lease_has_ended(
    nats_server: Callable[..., NatsProcess],
) -> None:
    async with harbour(nats_server().url, "a", "b") as here:
        await here.candidates["a"].leadership.close()  # nothing is given back, as when it is killed
        assert await held_by(here.candidates["b"].bus) == b"a"
        await here.told("b leads")
        assert await held_by(here.candidates["b"].bus) == b"b"


@pytest.mark.parametrize("data_lost", [False, True], ids=["data kept", "data lost"])
async def test_a_server_that_is_gone_for_longer_than_a_lease_has_one_leader_again(
    nats_server: Callable[..., NatsProcess], *, data_lost: bool
) -> None:
    server = nats_server()
    async with harbour(server.url, "a", "b") as here:
        server.kill()
        await here.told("a follows")
        assert here.leaders() == []
        if data_lost:
            server.lose_data()
        server.start()
        async with asyncio.timeout(20):
            while not here.leaders():  # noqa: ASYNC110 - either of the two
                await asyncio.sleep(0.01)
        # A renewal that lay in a connection may end the new lead once more: where data was lost it names a
        # revision that the new lease may have.
        quiet = 0
        async with asyncio.timeout(20):
            while quiet < 100:
                assert len(here.leaders()) <= 1
                quiet = quiet + 1 if here.leaders() else 0
                await asyncio.sleep(0.02)


async def test_a_server_that_stands_still_has_no_leader_until_it_goes_on(
    nats_server: Callable[..., NatsProcess],
) -> None:
    server = nats_server()
    async with harbour(server.url, "a", "b") as here:
        server.freeze()
        await here.told("a follows")
        server.thaw()
        async with asyncio.timeout(20):
            while not here.leaders():  # noqa: ASYNC110 - either of the two
                await asyncio.sleep(0.01)
        assert len(here.leaders()) == 1
