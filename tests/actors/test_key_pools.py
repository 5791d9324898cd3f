"""A pool of provider keys under rate limits: a 429 pauses the key that met it, for every router, and no other."""

import asyncio
from email.utils import formatdate

import pytest
from msgspec.structs import replace
from tests.actors.stage import ANSWER, Call, Gateway, config, stage
from tests.virtual_time import VirtualTimeLoop

from breakwater_gateway.config.model import Config, KeyRef, RetryPolicy, Timeouts

pytestmark = pytest.mark.anyio

A, B = "sk-a-secret", "sk-b-secret"
KEYS = (KeyRef("env", "KEY_A"), KeyRef("env", "KEY_B"))
LIMITED = b'{"error":{"message":"slow down"}}'


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}


def pooled(*ids: str, attempts: int = 4, total_s: float = 60.0) -> Config:
    """The first of them has two keys, the others have none."""
    plain = config(*ids, retry=RetryPolicy(attempts=attempts), timeouts=Timeouts(total_s=total_s))
    model = plain.models["m"]
    first, *others = model.deployments
    return replace(
        plain,
        models={"m": replace(model, deployments=(replace(first, api_keys=KEYS), *others))},
    )


def key_of(call: Call) -> str:
    given = {name.lower(): value for name, value in call.headers.items()}
    return given.get("authorization", "").removeprefix("Bearer ")


def now() -> float:
    return asyncio.get_running_loop().time()


async def refused(gateway: Gateway, retry_after: str = "5") -> str:
    call = await gateway.provider.next_call()
    call.reply(429, LIMITED)
    # A header that is sent twice is two of them.
    call.answer.raw_headers = [(b"retry-after", said.encode()) for said in retry_after.split("|")]
    return key_of(call)


async def test_the_other_key_is_used_at_once_and_the_refused_one_left_alone() -> None:
    async with stage(pooled("a")) as gateway:
        began = now()
        caller = gateway.ask()
        first = await refused(gateway)
        call = await gateway.provider.next_call()
        assert {first, key_of(call)} == {A, B}
        call.reply(200, ANSWER)
        assert (await caller.reply()).headers["breakwater-attempts"] == "2"
        assert now() - began < 0.1
        for _ in range(4):
            later = gateway.ask()
            call = await gateway.provider.next_call()
            assert key_of(call) != first
            call.reply(200, ANSWER)
            await later.reply()
        (event, *_) = (e for e in gateway.attempts if e.outcome == "rate_limited")
        assert (event.target, event.key) == ("a", 0 if first == A else 1)


async def test_another_deployment_goes_before_another_key() -> None:
    async with stage(pooled("a", "b")) as gateway:
        caller = gateway.ask()
        first = await refused(gateway)
        second = await gateway.provider.next_call()
        assert second.deployment == "b"
        second.reply(503, b"{}")
        third = await gateway.provider.next_call()
        assert (third.deployment, key_of(third) != first) == ("a", True)
        third.reply(200, ANSWER)
        assert (await caller.reply()).headers["breakwater-attempts"] == "3"


async def test_with_every_key_refused_the_one_that_is_free_first_is_waited_for() -> None:
    async with stage(pooled("a")) as gateway:
        began = now()
        caller = gateway.ask()
        await refused(gateway, "20")
        second = await refused(gateway, "4")
        await asyncio.sleep(0.01)
        other = gateway.ask()
        waited = [await gateway.provider.next_call()]
        assert key_of(waited[0]) == second
        assert now() - began == pytest.approx(4.0, abs=0.1)
        waited[0].reply(200, ANSWER)
        waited.append(await gateway.provider.next_call())
        assert key_of(waited[1]) == second
        waited[1].reply(200, ANSWER)
        await caller.reply()
        await other.reply()
        assert now() - began < 5.0


async def test_the_envelope_bounds_how_many_keys_are_asked() -> None:
    async with stage(pooled("a", attempts=1)) as gateway:
        caller = gateway.ask()
        await refused(gateway)
        assert (await caller.error())["status"] == 429
        assert len(gateway.provider.seen) == 1


async def test_every_router_leaves_the_key_alone_and_no_other() -> None:
    async with stage(pooled("a")) as gateway:
        await gateway.add("router-2")
        gateway.hub.choose(lambda _: 0)
        caller = gateway.ask()
        first = await refused(gateway, "30")
        (await gateway.provider.next_call()).reply(200, ANSWER)
        await caller.reply()
        gateway.hub.choose(lambda members: members - 1)
        for _ in range(4):
            caller = gateway.ask()
            call = await gateway.provider.next_call()
            assert key_of(call) != first
            call.reply(200, ANSWER)
            await caller.reply()


async def test_a_key_whose_pause_is_over_is_tried_again_though_nobody_waits() -> None:
    async with stage(pooled("a")) as gateway:
        caller = gateway.ask()
        first = await refused(gateway, "5")
        (await gateway.provider.next_call()).reply(200, ANSWER)
        await caller.reply()
        await asyncio.sleep(5)
        seen = set()
        for _ in range(4):
            caller = gateway.ask()
            call = await gateway.provider.next_call()
            seen.add(key_of(call))
            call.reply(200, ANSWER)
            await caller.reply()
            await asyncio.sleep(0.3)
        assert first in seen


async def test_a_rejected_key_and_a_limited_one_leave_a_request_to_wait_for_the_limited_one() -> (
    None
):
    async with stage(pooled("a")) as gateway:
        began = now()
        caller = gateway.ask()
        first = await refused(gateway, "3")
        (await gateway.provider.next_call()).reply(401, b'{"error":{"message":"no"}}')
        call = await gateway.provider.next_call()
        assert key_of(call) == first
        # t + U(0, t): it comes back by itself.
        assert 3.0 <= now() - began <= 6.1
        call.reply(200, ANSWER)
        await caller.reply()


@pytest.mark.parametrize(
    ("said", "pause_s"),
    [
        *((bad, 1.0) for bad in ("inf", "nan", "-1", "1_000", "soon", "")),
        ("past", 1.0),
        ("1e9", 1.0),
        ("1000000000", 120.0),
        ("far", 120.0),
        ("2, 7", 7.0),
        ("2|7", 7.0),
        ("inf|3", 3.0),
        ("0", 1.0),
    ],
)
async def test_what_a_provider_says_of_one_key_is_bounded_and_is_of_that_key(
    said: str, pause_s: float
) -> None:
    async with stage(pooled("a", total_s=600.0)) as gateway:
        wall = gateway.wall()
        dates = {
            "past": formatdate(wall - 60, usegmt=True),
            "far": formatdate(wall + 9e6, usegmt=True),
        }
        caller = gateway.ask()
        first = await refused(gateway, dates.get(said, said))
        (await gateway.provider.next_call()).reply(200, ANSWER)
        await caller.reply()
        began, used = now(), ""
        while used != first:
            await asyncio.sleep(0.25)
            caller = gateway.ask()
            call = await gateway.provider.next_call()
            used = key_of(call)
            call.reply(200, ANSWER)
            await caller.reply()
        assert pause_s - 0.3 <= now() - began <= pause_s + 1.0


async def test_a_key_that_says_nothing_is_left_is_spared_before_it_is_refused() -> None:
    plain = pooled("a")
    settings = replace(plain, models={"m": replace(plain.models["m"], strategy="usage")})
    async with stage(settings) as gateway:
        seen: list[str] = []
        for _ in range(6):
            caller = gateway.ask()
            call = await gateway.provider.next_call()
            seen.append(key_of(call))
            left = "0" if seen[-1] == seen[0] else "50"
            call.reply(
                200,
                ANSWER,
                x_ratelimit_limit_requests="100",
                x_ratelimit_remaining_requests=left,
                x_ratelimit_reset_requests="20s",
            )
            await caller.reply()
            await asyncio.sleep(0.01)
        assert seen.count(seen[0]) == 1
