"""A herd of 1,000 against one target that refuses with `Retry-After: 5`: four routers, four workers, virtual time."""

import asyncio
from collections import deque
from itertools import count

import msgspec
import pytest
from tests.actors.stage import ANSWER, Call, Gateway, config, stage
from tests.e2e.processes import report
from tests.virtual_time import VirtualTimeLoop

from breakwater_gateway.config.model import Config, KeyRef, RetryPolicy, Timeouts

pytestmark = pytest.mark.anyio

CLIENTS = 1000
WINDOW_S = 0.1
LATENCY_S = 0.05


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}


class Limited:
    """A provider that takes so many calls in any 100 ms, of each key where it limits keys, and refuses the
    others."""

    def __init__(
        self, gateway: Gateway, capacity: int, *, closed_until: float, by_key: bool = False
    ) -> None:
        self._gateway = gateway
        self._capacity = capacity
        self._closed_until = closed_until
        self._by_key = by_key
        self._taken: dict[str, deque[float]] = {}
        self.calls: list[float] = []

    async def serve(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            call = await self._gateway.provider.calls.get()
            now = loop.time()
            self.calls.append(now)
            key = call.headers.get("authorization", "") if self._by_key else ""
            taken = self._taken.setdefault(key, deque())
            while taken and taken[0] <= now - WINDOW_S:
                taken.popleft()
            refused = now < self._closed_until or len(taken) >= self._capacity
            if not refused:
                taken.append(now)
            loop.call_later(LATENCY_S, self._answer, call, refused)

    @staticmethod
    def _answer(call: Call, refused: bool) -> None:
        if call.head.done():
            return
        if refused:
            call.reply(429, b'{"error":{"message":"slow down"}}', retry_after="5")
        else:
            call.reply(200, ANSWER)

    def peak(self, since: float) -> int:
        """The most calls in any 100 ms, once the target takes calls."""
        recent: deque[float] = deque()
        most = 0
        for at in (at for at in self.calls if at >= since):
            recent.append(at)
            while recent[0] <= at - WINDOW_S:
                recent.popleft()
            most = max(most, len(recent))
        return most


def patient() -> Config:
    plain = config("a", timeouts=Timeouts(total_s=120), retry=RetryPolicy(attempts=4))
    return msgspec.structs.replace(plain)


@pytest.mark.parametrize("routers", [1, 4])
async def test_a_herd_makes_few_calls_beyond_its_own(routers: int) -> None:
    capacity = 25
    async with stage(patient(), workers=4) as gateway:
        for number in range(2, routers + 1):
            await gateway.add(f"router-{number}")
        turns = count()
        gateway.hub.choose(lambda members: next(turns) % members)
        began = asyncio.get_running_loop().time()
        provider = Limited(gateway, capacity, closed_until=began + 5)
        gateway.tasks.start_soon(provider.serve)
        callers = [gateway.ask() for _ in range(CLIENTS)]
        replies = [await caller.reply() for caller in callers]
        served = sum("Nats-Service-Error-Code" not in reply.headers for reply in replies)
        peak = provider.peak(began + 5)
        a_request = len(provider.calls) / CLIENTS
        report(
            "herd of 1,000, 429 with Retry-After 5",
            f"{routers} routers: {served} served in {asyncio.get_running_loop().time() - began:.1f} s",
            f"{a_request:.3f} calls a request",
            f"peak {peak / capacity:.2f} x capacity",
        )
        assert served == CLIENTS, [
            r.data for r in replies if "Nats-Service-Error-Code" in r.headers
        ][:3]
        assert a_request <= 1.3
        assert peak <= 3 * capacity


@pytest.mark.parametrize("routers", [1, 4])
@pytest.mark.parametrize("by_key", [True, False])
async def test_a_herd_before_a_pool_of_keys_stands_in_one_queue(
    routers: int, *, by_key: bool
) -> None:
    """Two keys, limited each for itself or, as an organisation's, together."""
    capacity = 25
    whole = capacity * 2 if by_key else capacity
    keys = (KeyRef("env", "KEY_A"), KeyRef("env", "KEY_B"))
    pooled = config(
        "a", timeouts=Timeouts(total_s=120), retry=RetryPolicy(attempts=4), api_keys=keys
    )
    async with stage(pooled, workers=4) as gateway:
        for number in range(2, routers + 1):
            await gateway.add(f"router-{number}")
        turns = count()
        gateway.hub.choose(lambda members: next(turns) % members)
        began = asyncio.get_running_loop().time()
        provider = Limited(gateway, capacity, closed_until=began + 5, by_key=by_key)
        gateway.tasks.start_soon(provider.serve)
        callers = [gateway.ask() for _ in range(CLIENTS)]
        replies = [await caller.reply() for caller in callers]
        served = sum("Nats-Service-Error-Code" not in reply.headers for reply in replies)
        peak = provider.peak(began + 5)
        a_request = len(provider.calls) / CLIENTS
        report(
            f"herd of 1,000 before two keys, limited {'each' if by_key else 'together'}",
            f"{routers} routers: {served} served in {asyncio.get_running_loop().time() - began:.1f} s",
            f"{a_request:.3f} calls a request",
            f"peak {peak / whole:.2f} x capacity",
        )
        assert served == CLIENTS
        assert a_request <= 1.3
        assert peak <= 3 * whole
