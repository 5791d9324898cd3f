"""Breakers through a whole gateway in virtual time: keys, provider-regions, panic, ramp, silence of health."""

import asyncio

import msgspec
import pytest
from tests.actors.stage import ANSWER, SUBJECTS, Gateway, config, stage
from tests.virtual_time import VirtualTimeLoop

from breakwater_gateway.config.model import BreakerPolicy, Config, KeyRef, RetryPolicy
from breakwater_gateway.router.actor import Router
from breakwater_gateway.worker.http_client import ConnectFailed
from breakwater_protocol.commands import BreakerCommand, BreakerReply
from breakwater_protocol.events import Alert

pytestmark = pytest.mark.anyio

KEYS = (KeyRef("env", "KEY_A"), KeyRef("env", "KEY_B"))
ONCE = RetryPolicy(attempts=1)
QUICK = BreakerPolicy(consecutive=2, open_s=4.0)


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return ("asyncio", {"loop_factory": VirtualTimeLoop})


def one_region(settings: Config) -> Config:
    """All its deployments at one address."""
    model = settings.models["m"]
    same = tuple(msgspec.structs.replace(d, base_url="http://one") for d in model.deployments)
    return msgspec.structs.replace(
        settings, models={"m": msgspec.structs.replace(model, deployments=same)}
    )


async def asked(gateway: Gateway, status: int, body: bytes = ANSWER) -> int:
    """One request whose every call is answered so: how many calls it made."""
    caller = gateway.ask()
    calls = 0
    answered = asyncio.ensure_future(caller.reply())
    while not answered.done():
        call = asyncio.ensure_future(gateway.provider.calls.get())
        await asyncio.wait({call, answered}, return_when=asyncio.FIRST_COMPLETED)
        if call.done():
            calls += 1
            call.result().reply(status, body if status == 200 else b"{}")
        else:
            call.cancel()
    await asyncio.sleep(0.05)
    return calls


async def order(gateway: Gateway, action: str, target: str = "", **more: float) -> BreakerReply:
    command = BreakerCommand(target, more.get("for_s"))
    message = await gateway.bus.ask(
        SUBJECTS.breaker.at(action), SUBJECTS.breaker.encode(command), timeout_s=2.0
    )
    return msgspec.json.decode(message.data, type=BreakerReply)


async def test_a_refused_key_is_left_out_by_all_and_somebody_is_told() -> None:
    alerts: list[Alert] = []
    async with stage(config("a", api_keys=KEYS)) as gateway:
        await gateway.bus.subscribe(
            SUBJECTS.alert.any(), lambda m: alerts.append(SUBJECTS.alert.decode(m.data))
        )
        tried: list[str] = []
        for _ in range(8):
            caller = gateway.ask()
            while True:
                call = await gateway.provider.next_call()
                tried.append(call.headers["authorization"])
                if call.headers["authorization"] == "Bearer sk-a-secret":
                    call.reply(401)
                else:
                    call.reply(200, ANSWER)
                    break
            assert (await caller.reply()).data == ANSWER
            await asyncio.sleep(0.1)
        assert tried.count("Bearer sk-a-secret") == 2
        assert [(a.kind, a.target) for a in alerts if a.kind == "auth"] == [("auth", "a#key1")]
        (opened,) = gateway.breakers
        assert (opened.target, opened.state, opened.cause) == ("a#key1", "open", "key_refused")
        assert {attempt.key for attempt in gateway.attempts} == {0, 1}


async def test_a_key_without_quota_is_out_until_its_reset() -> None:
    async with stage(config("a", api_keys=KEYS)) as gateway:
        body = b'{"error":{"code":"insufficient_quota","type":"insufficient_quota"}}'
        for _ in range(6):
            caller = gateway.ask()
            while True:
                call = await gateway.provider.next_call()
                if call.headers["authorization"] == "Bearer sk-a-secret":
                    call.reply(429, body, retry_after="90")
                else:
                    call.reply(200, ANSWER)
                    break
            assert (await caller.reply()).data == ANSWER
            await asyncio.sleep(0.1)
        (opened,) = gateway.breakers
        assert (opened.target, opened.cause) == ("a#key1", "quota_exhausted")
        assert opened.until - opened.at == pytest.approx(90.0)
        assert sum(a.outcome == "quota_exhausted" for a in gateway.attempts) == 1
        await asyncio.sleep(91)
        for _ in range(2):
            await asked(gateway, 200)
        assert [b.state for b in gateway.breakers] == ["open", "half_open", "closed"]


async def test_a_provider_that_fails_for_several_deployments_opens_once() -> None:
    policy = BreakerPolicy(consecutive=3, open_s=4.0)
    settings = one_region(config("a", "b", breaker=policy, retry=RetryPolicy(attempts=2)))
    async with stage(settings) as gateway:
        for _ in range(4):
            await asked(gateway, 503)
        # The fourth found it open, and was the one early call that an opening is worth.
        assert {b.target for b in gateway.breakers} == {"@p/"}
        assert [b.cause for b in gateway.breakers] == ["several_deployments", "probe_failed"]
        calls = len(gateway.provider.seen)
        assert await asked(gateway, 200) == 0
        await asyncio.sleep(8.5)
        for _ in range(4):
            assert await asked(gateway, 200) == 1
        assert gateway.breakers[-1].state == "closed"
        assert len(gateway.provider.seen) == calls + 4


async def test_with_everything_open_the_least_bad_is_tried_once_and_the_answer_says_so() -> None:
    async with stage(config("a", "b", breaker=QUICK, retry=RetryPolicy(attempts=2))) as gateway:
        for _ in range(2):
            await asked(gateway, 500)
        assert {b.target for b in gateway.breakers} == {"a", "b"}
        least = min(gateway.breakers, key=lambda b: b.until).target
        assert await asked(gateway, 200) == 1
        decision = gateway.requests[-1].decisions[-1]
        assert (decision.reason, decision.deployment) == ("panic", least)
        # It answered: that was the first of its three probes.
        assert (gateway.breakers[-1].target, gateway.breakers[-1].state) == (least, "half_open")


async def test_a_dead_provider_gets_one_call_for_each_opening() -> None:
    async with stage(config("a", breaker=QUICK, retry=ONCE)) as gateway:
        calls = 0
        for _ in range(600):
            calls += await asked(gateway, 500)
            await asyncio.sleep(0.05)
        openings = sum(b.state == "open" for b in gateway.breakers)
        assert openings >= 3
        assert calls <= 2 + openings


async def test_after_an_outage_calls_come_back_step_by_step() -> None:
    policy = BreakerPolicy(consecutive=2, open_s=1.0)
    async with stage(config("a", "b", breaker=policy)) as gateway:
        for _ in range(2):
            caller = gateway.ask()
            (await gateway.provider.next_call()).reply(500)
            (await gateway.provider.next_call()).reply(200, ANSWER)
            await caller.reply()
            await asyncio.sleep(0.05)
        assert [b.target for b in gateway.breakers] == ["a"]
        await asyncio.sleep(1.0)
        while gateway.breakers[-1].state != "closed":
            await asked(gateway, 200)
        closed_at = asyncio.get_running_loop().time()
        assert gateway.breakers[-1].ramp_until - gateway.breakers[-1].at == 15.0
        shares = []
        for third in range(4):
            await asyncio.sleep(closed_at + 5.0 * third - asyncio.get_running_loop().time() + 0.01)
            before = len(gateway.provider.seen)
            for _ in range(60):
                caller = gateway.ask()
                (await gateway.provider.next_call()).reply(200, ANSWER)
                await caller.reply()
            seen = gateway.provider.seen[before:]
            shares.append(seen.count("a") / len(seen))
        assert shares == sorted(shares)
        assert shares[0] < 0.25 < shares[2] < 0.75
        assert shares[3] == 1.0


async def test_alone_a_deployment_that_ramps_up_takes_everything() -> None:
    async with stage(config("a", breaker=QUICK, retry=ONCE)) as gateway:
        for _ in range(3):
            await asked(gateway, 500)
        await asyncio.sleep(9)
        for _ in range(10):
            assert await asked(gateway, 200) == 1
        assert gateway.breakers[-1].state == "closed"


async def test_with_health_dead_a_router_learns_for_itself() -> None:
    async with stage(config("a", "b", breaker=BreakerPolicy(consecutive=3, open_s=10))) as gateway:
        gateway.kill("health")
        await asyncio.sleep(6)
        for turn in range(6):
            caller = gateway.ask()
            call = await gateway.provider.next_call()
            assert call.deployment == ("a" if turn < 3 else "b"), turn
            if call.deployment == "a":
                call.reply(500)
                (await gateway.provider.next_call()).reply(200, ANSWER)
            else:
                call.reply(200, ANSWER)
            assert (await caller.reply()).data == ANSWER
        assert gateway.breakers == []


async def test_somebody_is_told_once_when_health_falls_silent() -> None:
    alerts: list[Alert] = []
    async with stage(config("a", "b", breaker=QUICK)) as gateway:
        await gateway.bus.subscribe(
            SUBJECTS.alert.any(), lambda m: alerts.append(SUBJECTS.alert.decode(m.data))
        )
        gateway.kill("health")
        await asyncio.sleep(20)
        assert [a.kind for a in alerts] == ["stale_view"]


async def test_an_operator_trips_lists_and_resets() -> None:
    async with stage(config("a", "b")) as gateway:
        tripped = await order(gateway, "trip", "a", for_s=120.0)
        assert (tripped.error, tripped.breakers[0].state) == ("", "open")
        (change,) = gateway.breakers
        assert (change.target, change.state, change.cause) == ("a", "open", "operator")
        assert change.until - change.at == pytest.approx(120.0)
        caller = gateway.ask()
        call = await gateway.provider.next_call()
        assert call.deployment == "b"
        call.reply(200, ANSWER)
        await caller.reply()
        listed = {b.target: b for b in (await order(gateway, "list")).breakers}
        assert set(listed) == {"a", "b", "a#key1", "b#key1"}
        assert (listed["a"].state, listed["b"].state) == ("open", "closed")
        assert (await order(gateway, "reset", "a")).breakers[0].state == "closed"
        assert gateway.breakers[-1].state == "closed"
        assert gateway.breakers[-1].ramp_until == 0.0


async def test_what_an_operator_may_not_is_refused_with_the_reason() -> None:
    async with stage(config("primary", "b")) as gateway:
        assert "did you mean 'primary'" in (await order(gateway, "trip", "primray")).error
        assert "name the target" in (await order(gateway, "reset")).error
        assert "up to 86400 s" in (await order(gateway, "trip", "b", for_s=1e9)).error
        assert "no command 'explode'" in (await order(gateway, "explode", "b")).error
        assert gateway.breakers == []


async def test_a_tripped_target_is_not_tried_for_want_of_another() -> None:
    async with stage(config("a")) as gateway:
        await order(gateway, "trip", "a", for_s=60.0)
        caller = gateway.ask()
        assert (await caller.error())["status"] == 503
        assert gateway.provider.seen == []


async def test_where_no_request_comes_by_health_probes_by_itself() -> None:
    policy = BreakerPolicy(consecutive=2, open_s=4.0, probe="active")
    async with stage(config("a", breaker=policy, retry=ONCE)) as gateway:
        for _ in range(3):
            await asked(gateway, 500)
        for _ in range(3):
            call = await gateway.provider.next_call()
            assert call.body["max_tokens"] == 1
            call.reply(200, ANSWER)
        await asyncio.sleep(0.1)
        assert gateway.breakers[-1].state == "closed"
        probes = [a for a in gateway.attempts if a.request.startswith("probe-a-")]
        assert [(p.outcome, p.tenant) for p in probes] == [("ok", "breakwater")] * 3


async def test_a_router_that_missed_an_event_heals_within_a_second() -> None:
    """Neither the event nor the bucket's change reaches it; the next heartbeat tells that it lacks one."""
    async with stage(config("a", "b", breaker=QUICK)) as gateway:
        (router,) = gateway.supervisors["router"].actors
        (health,) = gateway.supervisors["health"].actors
        assert isinstance(router, Router)
        targets = router._targets
        with pytest.MonkeyPatch.context() as deaf:
            deaf.setattr(targets, "fold", lambda _: None)
            await order(gateway, "trip", "a", for_s=60.0)
            await asyncio.sleep(0.01)
        assert router.load().view_hash != health.load().view_hash
        await asyncio.sleep(1.0)
        assert router._health.read_again == 1
        assert router.load().view_hash == health.load().view_hash


async def test_what_times_out_while_the_workers_own_loop_stands_still_opens_nothing() -> None:
    """Twenty calls at once are overtaken by a stall: their answers were in the sockets all along."""
    async with stage(config("a", breaker=BreakerPolicy(consecutive=2), retry=ONCE)) as gateway:
        callers = [gateway.ask(stream=True) for _ in range(20)]
        calls = [await gateway.provider.next_call() for _ in callers]
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        loop.advance(30.0)
        for caller in callers:
            assert (await caller.error())["status"] == 504
        await asyncio.sleep(0.1)
        assert len(calls) == 20
        assert [a.in_stall for a in gateway.attempts] == [True] * 20
        assert gateway.breakers == []


async def test_a_connection_that_timed_out_in_a_stall_opens_nothing() -> None:
    async with stage(config("a", breaker=BreakerPolicy(consecutive=2), retry=ONCE)) as gateway:
        for late_s, breakers in ((3.0, 0), (0.0, 1)):
            for _ in range(2):
                caller = gateway.ask()
                call = await gateway.provider.next_call()
                call.head.set_exception(ConnectFailed("timeout", "late", late_s=late_s))
                await caller.reply()
                await asyncio.sleep(0.1)
            assert len(gateway.breakers) == breakers


async def test_a_probe_whose_worker_dies_makes_room_for_another_at_once() -> None:
    async with stage(config("a", breaker=QUICK, retry=ONCE), workers=2) as gateway:
        for _ in range(3):
            await asked(gateway, 500)
        await asyncio.sleep(8.5)
        assert gateway.breakers[-1].state == "half_open"
        epoch = gateway.breakers[-1].epoch
        gateway.ask()
        await gateway.provider.next_call()
        (victim,) = [name for name in ("worker", "worker-2") if gateway.holds(name)]
        gateway.kill(victim)
        await asyncio.sleep(4.0)
        last = gateway.breakers[-1]
        assert (last.state, last.epoch, last.cause) == ("half_open", epoch + 1, "probe_expired")
        assert await asked(gateway, 200) == 1
        assert gateway.breakers[-1].cause == "probe_succeeded"


@pytest.mark.parametrize(
    ("stream", "impatient"),
    [
        (True, {"breakwater-ttft-timeout": "20ms"}),
        (False, {"breakwater-ttft-timeout": "20ms"}),
        (True, {"breakwater-timeout": "20ms"}),
        (False, {"breakwater-timeout": "20ms"}),
    ],
)
async def test_a_caller_who_will_not_wait_closes_no_target_to_others(
    stream: bool, impatient: dict[str, str]
) -> None:
    async with stage(config("a", "b", breaker=QUICK)) as gateway:
        for _ in range(6):
            await gateway.ask(stream=stream, headers=impatient).error()
        await asyncio.sleep(1)
        assert gateway.breakers == []
        gateway.kill("health")
        await asyncio.sleep(6)
        caller = gateway.ask()
        while (call := await gateway.provider.next_call()).head.cancelled():
            pass
        call.reply(200, ANSWER)
        assert (await caller.reply()).data == ANSWER


async def test_a_target_that_lets_whole_answers_hang_is_left_alone() -> None:
    async with stage(config("a", retry=ONCE, breaker=QUICK)) as gateway:
        for _ in range(2):
            assert (await gateway.ask().error())["status"] == 504
        await asyncio.sleep(0.1)
        assert [(b.target, b.state, b.cause) for b in gateway.breakers] == [
            ("a", "open", "consecutive")
        ]
