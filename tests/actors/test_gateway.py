"""Requests through router, worker and health: what callers get whatever the provider does."""

import asyncio
import json

import pytest
from tests.actors.stage import ANSWER, SUBJECTS, config, delta, stage
from tests.virtual_time import VirtualTimeLoop

from breakwater_gateway.config.model import (
    BreakerPolicy,
    KeyRef,
    Limits,
    Price,
    RetryPolicy,
    Timeouts,
)
from breakwater_protocol.commands import Cancel

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}


async def test_a_whole_answer_goes_to_the_caller_as_it_came() -> None:
    async with stage(config("a", price=Price(input=150, output=600))) as gateway:
        caller = gateway.ask()
        call = await gateway.provider.next_call()
        assert call.body["model"] == "a-model"
        call.reply(200, ANSWER)
        reply = await caller.reply()
        assert reply.data == ANSWER
        assert {k: v for k, v in reply.headers.items() if "overhead" not in k} == {
            "breakwater-request-id": "r1",
            "breakwater-model": "m",
            "breakwater-deployment": "a",
            "breakwater-rung": "primary",
            "breakwater-cache": "bypass",
            "breakwater-attempts": "1",
            "breakwater-cost-usd": "0.000001050",
        }
        await asyncio.sleep(0.1)
        (event,) = gateway.requests
        assert (event.outcome, event.attempts, event.cost_nano_usd) == ("ok", 1, 1050)
        assert [a.outcome for a in gateway.attempts] == ["ok"]


async def test_a_stream_is_numbered_and_ends_with_its_totals() -> None:
    async with stage(config("a")) as gateway:
        caller = gateway.ask(stream=True)
        call = await gateway.provider.next_call()
        assert call.body["stream_options"] == {"include_usage": True}
        call.start()
        call.send(delta("Hel"))
        first = await caller.reply()
        call.send(delta("lo"), delta("", "stop"), b"data: [DONE]\n\n")
        rest = [await caller.reply(), await caller.reply(), await caller.reply()]
        assert json.loads(first.data)["choices"][0]["delta"]["content"] == "Hel"
        assert first.headers["breakwater-deployment"] == "a"
        assert [m.headers["breakwater-seq"] for m in (first, *rest)] == ["0", "1", "2", "3"]
        end = rest[-1]
        assert end.data == b""
        assert end.headers["breakwater-end"] == "ok"
        assert end.headers["breakwater-cost-usd"] == "unknown"


async def test_chunks_that_wait_share_one_message() -> None:
    async with stage(config("a")) as gateway:
        caller = gateway.ask(stream=True)
        call = await gateway.provider.next_call()
        call.start()
        call.send(delta("a") + delta("b") + delta("c", "stop") + b"data: [DONE]\n\n")
        message = await caller.reply()
        assert [
            json.loads(line)["choices"][0]["delta"]["content"] for line in message.data.split(b"\n")
        ] == ["a", "b", "c"]
        assert (await caller.reply()).headers["breakwater-end"] == "ok"


@pytest.mark.parametrize("status", [500, 502, 503, 529, 404, 429])
async def test_another_deployment_answers_when_the_first_refuses(status: int) -> None:
    async with stage(config("a", "b")) as gateway:
        caller = gateway.ask()
        (await gateway.provider.next_call()).reply(status)
        second = await gateway.provider.next_call()
        assert second.deployment == "b"
        second.reply(200, ANSWER)
        reply = await caller.reply()
        assert reply.headers["breakwater-deployment"] == "b"
        assert reply.headers["breakwater-attempts"] == "2"


async def test_a_failure_inside_a_stream_before_its_content_is_a_failed_attempt() -> None:
    async with stage(config("a", "b")) as gateway:
        caller = gateway.ask(stream=True)
        call = await gateway.provider.next_call()
        call.start()
        call.send(b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n')
        call.send(b'data: {"error":{"message":"busy","type":"overloaded_error"}}\n\n')
        second = await gateway.provider.next_call()
        second.start()
        second.send(delta("fine", "stop"), b"data: [DONE]\n\n")
        first = await caller.reply()
        assert first.headers["breakwater-seq"] == "0"
        assert first.headers["breakwater-attempt"] == "2"
        assert (await caller.reply()).headers["breakwater-end"] == "ok"


async def test_a_provider_that_sends_no_first_token_is_left_for_the_next() -> None:
    async with stage(config("a", "b", timeouts=Timeouts(first_token_s=10))) as gateway:
        began = asyncio.get_running_loop().time()
        caller = gateway.ask(stream=True)
        silent = await gateway.provider.next_call()
        second = await gateway.provider.next_call()
        assert 10 <= asyncio.get_running_loop().time() - began < 10.2
        assert silent.aborted.is_set()
        second.start()
        second.send(delta("x"))
        assert (await caller.reply()).headers["breakwater-deployment"] == "b"
        await asyncio.sleep(3)
        second.send(delta("", "stop"), b"data: [DONE]\n\n")
        await caller.reply()
        assert float((await caller.reply()).headers["breakwater-overhead-ms"]) < 100
        await asyncio.sleep(0.1)
        (event,) = gateway.requests
        assert event.duration_ms >= 13_000
        assert event.overhead_ms < 100, "waiting for a provider is none of ours"


async def test_a_stream_that_stops_in_the_middle_is_a_partial_answer() -> None:
    async with stage(config("a", "b", timeouts=Timeouts(idle_s=5, total_s=60))) as gateway:
        caller = gateway.ask(stream=True)
        call = await gateway.provider.next_call()
        call.start()
        call.send(delta("half"))
        await caller.reply()
        end = await caller.reply()
        assert end.headers["breakwater-end"] == "partial"
        assert end.headers["breakwater-partial"] == "idle_timeout"
        assert call.answer.closed.is_set()
        assert gateway.provider.seen == ["a"]
        await asyncio.sleep(0.1)
        assert [r.outcome for r in gateway.requests] == ["partial"]


async def test_the_total_timeout_cuts_a_stream_that_never_ends() -> None:
    async with stage(config("a", timeouts=Timeouts(idle_s=30, total_s=60))) as gateway:
        caller = gateway.ask(stream=True, headers={"breakwater-timeout": "2s"})
        call = await gateway.provider.next_call()
        call.start()
        for _ in range(4):
            call.send(delta("x"))
            await asyncio.sleep(0.6)
        messages = [await caller.reply() for _ in range(5)]
        assert messages[-1].headers["breakwater-partial"] == "total_timeout"


async def test_a_caller_may_bound_the_wait_for_an_answer_in_one_piece() -> None:
    async with stage(config("a", "b")) as gateway:
        caller = gateway.ask(headers={"breakwater-ttft-timeout": "2s"})
        await gateway.provider.next_call()
        began = asyncio.get_running_loop().time()
        (await gateway.provider.next_call()).reply(200, ANSWER)
        assert asyncio.get_running_loop().time() - began == pytest.approx(2.0, abs=0.01)
        assert (await caller.reply()).headers["breakwater-deployment"] == "b"


async def test_a_cut_stream_is_partial_and_never_spliced() -> None:
    async with stage(config("a", "b")) as gateway:
        caller = gateway.ask(stream=True)
        call = await gateway.provider.next_call()
        call.start()
        call.send(delta("half"))
        call.cut()
        await caller.reply()
        assert (await caller.reply()).headers["breakwater-partial"] == "stream_cut"
        assert gateway.provider.seen == ["a"]


async def test_an_answer_that_never_comes_is_a_timeout() -> None:
    async with stage(config("a", timeouts=Timeouts(total_s=7))) as gateway:
        caller = gateway.ask()
        error = await caller.error()
        assert (error["status"], error["code"]) == (504, "timeout")


async def test_retry_after_is_waited_for_when_there_is_nowhere_else_to_go() -> None:
    async with stage(config("a")) as gateway:
        began = asyncio.get_running_loop().time()
        caller = gateway.ask()
        (await gateway.provider.next_call()).reply(429, retry_after="3")
        (await gateway.provider.next_call()).reply(200, ANSWER)
        assert 3 <= asyncio.get_running_loop().time() - began <= 6.5
        assert (await caller.reply()).headers["breakwater-attempts"] == "2"


async def test_a_throttled_target_is_spared_by_the_next_request_too() -> None:
    async with stage(config("a", "b")) as gateway:
        first = gateway.ask()
        (await gateway.provider.next_call()).reply(429, retry_after="30")
        (await gateway.provider.next_call()).reply(200, ANSWER)
        await first.reply()
        second = gateway.ask()
        call = await gateway.provider.next_call()
        assert call.deployment == "b"
        call.reply(200, ANSWER)
        await second.reply()


@pytest.mark.parametrize(("attempts", "should_retry"), [(1, "true"), (2, "false")])
async def test_a_client_is_not_asked_to_try_again_what_was_tried_again_for_it(
    attempts: int, should_retry: str
) -> None:
    async with stage(config("a", "b", retry=RetryPolicy(attempts=attempts))) as gateway:
        caller = gateway.ask()
        for _ in range(attempts):
            (await gateway.provider.next_call()).reply(500)
        message = await caller.reply()
        assert message.headers["Nats-Service-Error-Code"] == "502"
        assert message.headers["x-should-retry"] == should_retry
        assert "retry-after" not in message.headers


async def test_all_attempts_used_up_is_the_last_failure_with_the_truth_about_retrying() -> None:
    async with stage(config("a", "b", retry=RetryPolicy(attempts=2))) as gateway:
        caller = gateway.ask()
        (await gateway.provider.next_call()).reply(500)
        (await gateway.provider.next_call()).reply(
            503, b'{"error":{"message":"The model is busy"}}', retry_after="4"
        )
        message = await caller.reply()
        assert message.headers["Nats-Service-Error-Code"] == "503"
        assert message.headers["retry-after"] == "4"
        assert message.headers["x-should-retry"] == "true"
        assert message.headers["breakwater-attempts"] == "2"
        assert json.loads(message.data)["error"]["message"] == "The model is busy"


async def test_the_callers_own_mistake_is_not_tried_elsewhere() -> None:
    async with stage(config("a", "b")) as gateway:
        caller = gateway.ask()
        body = b'{"error":{"message":"bad stop","type":"invalid_request_error","param":"stop"}}'
        (await gateway.provider.next_call()).reply(400, body)
        error = await caller.error()
        assert (error["status"], error["code"], error["param"]) == (400, "invalid_request", "stop")
        assert gateway.provider.seen == ["a"]


async def test_a_refused_key_turns_to_the_next_of_the_pool_and_is_not_shown() -> None:
    keys = (KeyRef("env", "KEY_A"), KeyRef("env", "KEY_B"))
    async with stage(config("a", api_keys=keys)) as gateway:
        caller = gateway.ask()
        first = await gateway.provider.next_call()
        secret = first.headers["authorization"].removeprefix("Bearer ")
        first.reply(401, json.dumps({"error": {"message": f"bad key {secret}"}}).encode())
        second = await gateway.provider.next_call()
        assert second.headers["authorization"] != first.headers["authorization"]
        second.reply(401, json.dumps({"error": {"message": f"bad key {secret}"}}).encode())
        message = await caller.reply()
        assert message.headers["Nats-Service-Error-Code"] == "502"
        assert b"secret" not in message.data
        assert not any("secret" in a.message for a in gateway.attempts)


async def test_a_missing_key_names_its_variable() -> None:
    async with stage(config("a", api_keys=(KeyRef("env", "NOT_SET"),))) as gateway:
        error = await gateway.ask().error()
        assert "NOT_SET" in error["message"]
        assert gateway.provider.seen == []


async def test_an_unknown_model_names_those_that_are_there() -> None:
    async with stage(config("a")) as gateway:
        error = await gateway.ask(model="gpt-9").error()
        assert (error["status"], error["code"]) == (404, "model_not_found")
        assert "m" in error["message"]


@pytest.mark.parametrize("tenant", ["=2A", "=3E", "=2E", "t" * 1000])
async def test_odd_tenants_are_tenants(tenant: str) -> None:
    async with stage(config("a")) as gateway:
        caller = gateway.ask(tenant=tenant)
        (await gateway.provider.next_call()).reply(200, ANSWER)
        assert (await caller.reply()).data == ANSWER


async def test_a_tenant_that_no_codec_made_is_refused() -> None:
    async with stage(config("a")) as gateway:
        assert (await gateway.ask(tenant="=zz").error())["status"] == 400


async def test_a_caller_who_leaves_stops_the_provider() -> None:
    async with stage(config("a")) as gateway:
        caller = gateway.ask(stream=True)
        call = await gateway.provider.next_call()
        call.start()
        call.send(delta("x"))
        await caller.reply()
        gateway.bus.publish(
            SUBJECTS.cancel.at("r1"), SUBJECTS.cancel.encode(Cancel("r1")), headers={}
        )
        await asyncio.wait_for(call.answer.closed.wait(), 1)
        await asyncio.sleep(0.1)
        assert [r.outcome for r in gateway.requests] == ["cancelled"]
        assert [a.outcome for a in gateway.attempts] == ["cancelled"]
        assert not gateway.attempts[0].against_target


# Workers.


async def test_a_worker_killed_before_the_first_byte_is_replaced_within_a_second() -> None:
    async with stage(config("a"), workers=2) as gateway:
        caller = gateway.ask(stream=True)
        await gateway.provider.next_call()
        holder = _holder(gateway)
        began = asyncio.get_running_loop().time()
        gateway.kill(holder)
        second = await gateway.provider.next_call()
        assert asyncio.get_running_loop().time() - began < 1
        second.start()
        second.send(delta("x", "stop"), b"data: [DONE]\n\n")
        first = await caller.reply()
        assert first.headers["breakwater-attempt"] == "2"
        assert (await caller.reply()).headers["breakwater-end"] == "ok"


async def test_a_worker_killed_in_the_middle_leaves_an_explicit_partial() -> None:
    async with stage(config("a"), workers=2) as gateway:
        caller = gateway.ask(stream=True)
        call = await gateway.provider.next_call()
        call.start()
        call.send(delta("half"))
        await caller.reply()
        began = asyncio.get_running_loop().time()
        gateway.kill(_holder(gateway))
        end = await caller.reply()
        assert asyncio.get_running_loop().time() - began < 2
        assert end.headers["breakwater-end"] == "partial"
        assert end.headers["breakwater-partial"] == "worker_lost"
        assert len(gateway.provider.seen) == 1


async def test_without_a_worker_the_answer_says_how_to_start_one() -> None:
    async with stage(config("a")) as gateway:
        gateway.kill("worker")
        error = await gateway.ask().error()
        assert (error["status"], error["code"]) == (503, "no_deployment_available")
        assert "breakwater run worker" in error["message"]


async def test_a_full_worker_is_passed_over() -> None:
    async with stage(config("a", limits=Limits(in_flight=1)), workers=1) as gateway:
        gateway.ask()
        await gateway.provider.next_call()
        error = await gateway.ask().error()
        assert error["code"] == "overloaded"


async def test_a_draining_worker_finishes_what_it_has() -> None:
    async with stage(config("a"), workers=2) as gateway:
        caller = gateway.ask()
        call = await gateway.provider.next_call()
        holder = _holder(gateway)
        gateway.supervisors[holder].drain()
        await asyncio.sleep(1)
        other = gateway.ask()
        second = await gateway.provider.next_call()
        second.reply(200, ANSWER)
        await other.reply()
        call.reply(200, ANSWER)
        assert (await caller.reply()).data == ANSWER


def _holder(gateway: object) -> str:
    from tests.actors.stage import Gateway

    assert isinstance(gateway, Gateway)
    (name,) = [
        name
        for name, supervisor in gateway.supervisors.items()
        if name.startswith("worker") and any(actor.load().in_flight for actor in supervisor.actors)
    ]
    return name


# Breakers.


async def test_a_failing_target_is_left_alone_then_probed_once_then_trusted_again() -> None:
    policy = BreakerPolicy(consecutive=3, open_s=5)
    async with stage(config("a", "b", breaker=policy)) as gateway:
        for _ in range(3):
            caller = gateway.ask()
            (await gateway.provider.next_call()).reply(500)
            (await gateway.provider.next_call()).reply(200, ANSWER)
            await caller.reply()
        await asyncio.sleep(0.3)
        assert [(c.target, c.state) for c in gateway.breakers] == [("a", "open")]

        caller = gateway.ask()
        call = await gateway.provider.next_call()
        assert call.deployment == "b"
        call.reply(200, ANSWER)
        await caller.reply()

        await asyncio.sleep(6)
        assert [c.state for c in gateway.breakers] == ["open", "half_open"]
        probing = [gateway.ask() for _ in range(5)]
        calls = [await gateway.provider.next_call() for _ in range(5)]
        assert sorted(c.deployment for c in calls) == ["a", "b", "b", "b", "b"]
        for c in calls:
            c.reply(200, ANSWER)
        for p in probing:
            await p.reply()
        for _ in range(2):
            await asyncio.sleep(0.3)
            caller = gateway.ask()
            call = await gateway.provider.next_call()
            assert call.deployment == "a"
            call.reply(200, ANSWER)
            await caller.reply()
        await asyncio.sleep(0.3)
        assert [c.state for c in gateway.breakers[-1:]] == ["closed"]


async def test_everything_open_is_said_with_an_honest_wait() -> None:
    policy = BreakerPolicy(consecutive=2, open_s=60)
    async with stage(config("a", breaker=policy, retry=RetryPolicy(attempts=1))) as gateway:
        for _ in range(2):
            caller = gateway.ask()
            (await gateway.provider.next_call()).reply(500)
            await caller.reply()
        await asyncio.sleep(0.3)
        caller = gateway.ask()  # with nothing else to go to, it is tried once for this opening
        (await gateway.provider.next_call()).reply(500)
        await caller.reply()
        await asyncio.sleep(0.3)
        message = await gateway.ask().reply()
        assert message.headers["Nats-Service-Error-Code"] == "503"
        assert 1 <= int(message.headers["retry-after"]) <= 60


async def test_no_request_fails_because_health_is_dead() -> None:
    async with stage(config("a")) as gateway:
        gateway.kill("health")
        for _ in range(3):
            caller = gateway.ask()
            (await gateway.provider.next_call()).reply(200, ANSWER)
            assert (await caller.reply()).data == ANSWER
            await asyncio.sleep(20)


# Embeddings and models.


async def test_embeddings_are_answered_in_the_encoding_asked_for() -> None:
    async with stage(config("a")) as gateway:
        caller = gateway.ask(api="embeddings", input="x", encoding_format="base64")
        call = await gateway.provider.next_call()
        call.reply(200, b'{"data":[{"index":0,"embedding":[0.5]}],"usage":{"prompt_tokens":1}}')
        assert json.loads((await caller.reply()).data)["data"][0]["embedding"] == "AAAAPw=="


async def test_models_are_listed() -> None:
    async with stage(config("a")) as gateway:
        reply = await gateway.bus.ask(SUBJECTS.models.at("t"), timeout_s=1)
        assert [m["id"] for m in json.loads(reply.data)["data"]] == ["m"]


async def test_a_finished_streams_connection_is_read_to_its_end_before_it_is_let_go() -> None:
    """The terminator of a chunked body may come in a packet of its own."""
    async with stage(config("a")) as gateway:
        caller = gateway.ask(stream=True)
        call = await gateway.provider.next_call()
        call.start()
        call.send(delta("x", "stop") + b"data: [DONE]\n\n")
        await caller.reply()
        assert (await caller.reply()).headers["breakwater-end"] == "ok"
        await asyncio.sleep(0.1)
        assert not call.answer.closed.is_set()
        call.end()
        await asyncio.wait_for(call.answer.closed.wait(), 0.1)
        assert call.answer.ended


async def test_a_provider_that_never_ends_its_connection_is_not_waited_for() -> None:
    async with stage(config("a")) as gateway:
        caller = gateway.ask(stream=True)
        call = await gateway.provider.next_call()
        call.start()
        call.send(delta("x", "stop") + b"data: [DONE]\n\n")
        await caller.reply()
        await asyncio.wait_for(call.answer.closed.wait(), 1)


async def test_beyond_what_a_target_bears_the_critical_wait_and_the_rest_is_told_at_once() -> None:
    async with stage(config("a", max_in_flight=1)) as gateway:
        running = gateway.ask()
        call = await gateway.provider.next_call()
        batch = gateway.ask(headers={"breakwater-priority": "batch"})
        critical = gateway.ask(headers={"breakwater-priority": "critical"})
        began = asyncio.get_running_loop().time()
        error = await gateway.ask(headers={"breakwater-priority": "batch"}).error()
        assert asyncio.get_running_loop().time() == began
        assert (error["status"], error["code"]) == (503, "overloaded")
        call.reply(200, ANSWER)
        (await gateway.provider.next_call()).reply(200, ANSWER)
        assert (await running.reply()).data == ANSWER
        assert (await critical.reply()).data == ANSWER
        assert not batch.all
        (await gateway.provider.next_call()).reply(200, ANSWER)
        assert (await batch.reply()).data == ANSWER


async def test_a_router_near_its_capacity_sheds_batch_first() -> None:
    settings = config("a", limits=Limits(in_flight=5))
    async with stage(settings) as gateway:
        for _ in range(4):
            gateway.ask()
            await gateway.provider.next_call()
        refused = gateway.ask(headers={"breakwater-priority": "batch"})
        error = await refused.error()
        assert (error["status"], error["code"]) == (503, "overloaded")
        assert "sheds batch" in error["message"]
        assert refused.all[0].headers["retry-after"] == "1"
        gateway.ask(headers={"breakwater-priority": "critical"})
        await gateway.provider.next_call()
