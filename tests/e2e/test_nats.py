"""NATS exactly as the contract has it: the protocol's client, and any plain client."""

import asyncio
import json
from typing import Any

import nats
import pytest
from nats.aio.client import Client as Nats
from nats.aio.msg import Msg
from nats.errors import NoRespondersError
from tests.e2e.processes import HELLO, PATIENCE_S, Simulator, until

from breakwater_protocol import (
    Client,
    GatewayFailed,
    ModelUnknown,
    NoGateway,
    RequestRefused,
    TooLarge,
)
from breakwater_protocol.events import AttemptFinished, BreakerChanged, RequestFinished
from breakwater_protocol.subjects import Subjects

pytestmark = [pytest.mark.anyio, pytest.mark.nats]

SUBJECTS = Subjects()
FACTS = {
    "breakwater-request-id",
    "breakwater-model",
    "breakwater-deployment",
    "breakwater-rung",
    "breakwater-cache",
    "breakwater-attempts",
}
TOTALS = {"breakwater-cost-usd", "breakwater-overhead-ms"}


def chat(model: str = "sim/sim-echo", **more: object) -> bytes:
    return json.dumps({"model": model, "messages": HELLO, **more}).encode()


async def replies(client: Nats, subject: str, body: bytes, **headers: str) -> list[Msg]:
    """Every message of a streamed answer, to the one that ends it."""
    inbox = client.new_inbox()
    subscription = await client.subscribe(inbox)
    await client.publish(
        subject, body, reply=inbox, headers={k.replace("_", "-"): v for k, v in headers.items()}
    )
    found: list[Msg] = []
    while not found or not {"breakwater-end", "Nats-Service-Error-Code"} & set(
        found[-1].headers or {}
    ):
        found.append(await subscription.next_msg(PATIENCE_S))
    await subscription.unsubscribe()
    return found


def headers_of(message: Msg) -> dict[str, str]:
    return dict(message.headers or {})


# The protocol's client.


async def test_the_client_streams_completes_embeds_and_lists(nats_client: Client) -> None:
    stream = nats_client.chat(model="sim/sim-echo", messages=HELLO)
    text = "".join([c.choices[0].delta.content or "" async for c in stream])
    assert "Hello" in text
    assert stream.info.deployment == "sim-any"
    assert stream.info.cost_usd is not None
    assert not stream.info.partial
    whole = await nats_client.complete(model="sim/sim-echo", messages=HELLO)
    assert whole.text == text
    assert whole.info.attempts == 1
    vectors = await nats_client.embed(model="sim/text-embedding-3-small", input=["a", "b"])
    assert [len(vector) for vector in vectors.vectors] == [1536, 1536]
    assert "main-model" in [model.id for model in await nats_client.models()]


async def test_the_client_raises_what_the_gateway_refused(
    nats_client: Client, simulator: Simulator
) -> None:
    with pytest.raises(ModelUnknown):
        await nats_client.complete(model="nope", messages=HELLO)
    with pytest.raises(RequestRefused) as refused:
        await nats_client.complete(model="sim/m", messages=HELLO, max_tokens=-5)
    assert refused.value.param == "max_tokens"
    simulator.script(lane="once", model="nats-5xx", faults=[{"class": "server_error"}])
    with pytest.raises(GatewayFailed) as failed:
        async for _ in nats_client.chat(model="once/nats-5xx", messages=HELLO):
            pass
    assert failed.value.status == 502
    assert failed.value.should_retry
    with pytest.raises(TooLarge):
        await nats_client.complete(
            model="sim/m", messages=HELLO, extra_body={"x": "a" * 9 * 1024 * 1024}
        )


async def test_nobody_serving_is_no_responders_at_once(nats_url: str) -> None:
    async with Client(nats_url, root="bw-nobody.v1") as client:
        with pytest.raises(NoGateway):
            await client.complete(model="m", messages=HELLO)
    plain = await nats.connect(nats_url)
    with pytest.raises(NoRespondersError):
        await plain.request("bw-nobody.v1.chat.default", chat(), timeout=PATIENCE_S)
    await plain.close()


# Any plain client.


async def test_a_request_has_one_reply_the_response_object(plain: Nats) -> None:
    reply = await plain.request("bw.v1.chat.default", chat(), timeout=PATIENCE_S)
    assert set(headers_of(reply)) == FACTS | TOTALS
    answer = json.loads(reply.data)
    assert answer["object"] == "chat.completion"
    assert "Hello" in answer["choices"][0]["message"]["content"]


async def test_a_stream_is_numbered_messages_of_lines_and_an_empty_end(
    plain: Nats, simulator: Simulator
) -> None:
    simulator.script(lane="sim", model="paced", tokens=8, tokens_per_s=100)
    *messages, end = await replies(plain, "bw.v1.chat.default", chat("sim/paced", stream=True))
    assert len(messages) > 2, "tokens arrive as they come"
    numbers = [headers_of(message)["breakwater-seq"] for message in [*messages, end]]
    assert numbers == [str(n) for n in range(len(messages) + 1)]
    assert set(headers_of(messages[0])) == {"breakwater-seq"} | FACTS
    assert all(set(headers_of(message)) == {"breakwater-seq"} for message in messages[1:])
    chunks = [json.loads(line) for message in messages for line in message.data.split(b"\n")]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert end.data == b""
    assert set(headers_of(end)) == {"breakwater-seq", "breakwater-end"} | FACTS | TOTALS
    assert headers_of(end)["breakwater-end"] == "ok"


async def test_an_error_reply_has_the_service_headers_and_openais_object(plain: Nats) -> None:
    for stream in (False, True):
        (reply,) = await replies(plain, "bw.v1.chat.default", chat("nope", stream=stream))
        said = headers_of(reply)
        assert said["Nats-Service-Error-Code"] == "404"
        assert "nope" in said["Nats-Service-Error"]
        assert "\n" not in said["Nats-Service-Error"]
        assert said["x-should-retry"] == "false"
        error = json.loads(reply.data)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["code"] == "model_not_found"


async def test_embeddings_and_models_are_asked_on_their_own_subjects(plain: Nats) -> None:
    body = json.dumps({"model": "sim/text-embedding-3-small", "input": "a cat"}).encode()
    reply = await plain.request("bw.v1.embeddings.default", body, timeout=PATIENCE_S)
    assert len(json.loads(reply.data)["data"][0]["embedding"]) == 1536
    listed = await plain.request("bw.v1.models.default", b"", timeout=PATIENCE_S)
    assert json.loads(listed.data)["object"] == "list"


async def test_any_tenant_is_served_and_its_name_is_in_the_events(plain: Nats) -> None:
    events = await plain.subscribe(SUBJECTS.request.at("acme corp/eu", "ok"))
    await plain.flush()
    await plain.request(SUBJECTS.chat.at("acme corp/eu"), chat(), timeout=PATIENCE_S)
    event = SUBJECTS.request.decode((await events.next_msg(PATIENCE_S)).data)
    assert event.tenant == "acme corp/eu"


async def test_every_request_and_attempt_is_an_event_without_its_text(plain: Nats) -> None:
    everything = await plain.subscribe("bw.v1.evt.>")
    await plain.flush()
    await plain.request(
        "bw.v1.chat.default",
        json.dumps(
            {
                "model": "sim/sim-echo",
                "messages": [{"role": "user", "content": "zebra-crossing"}],
            }
        ).encode(),
        headers={
            "breakwater-request-id": "events-1",
            "breakwater-user": "u1",
            "breakwater-property-team": "red",
        },
        timeout=PATIENCE_S,
    )
    found: dict[type, Any] = {}
    while len(found) < 2:
        message = await everything.next_msg(PATIENCE_S)
        assert b"zebra" not in message.data
        if b"events-1" not in message.data:
            continue
        subject = SUBJECTS.attempt if ".attempt." in message.subject else SUBJECTS.request
        event = subject.decode(message.data)
        found[type(event)] = event
        said = headers_of(message)
        assert {"ce-id", "ce-source", "ce-type", "ce-time", "ce-specversion"} <= set(said)
    assert found[RequestFinished].outcome == "ok"
    assert found[RequestFinished].user == "u1"
    assert found[RequestFinished].properties == {"team": "red"}
    assert [d.step for d in found[RequestFinished].decisions] == ["dispatch"]
    assert found[AttemptFinished].usage.output > 0
    assert found[AttemptFinished].user == "u1"


async def test_a_breakers_change_is_an_event_and_is_kept_for_newcomers(
    plain: Nats, simulator: Simulator
) -> None:
    changes = await plain.subscribe(SUBJECTS.health.any())
    await plain.flush()
    simulator.script(lane="fragile", faults=[{"class": "server_error"}])

    async def next_change() -> BreakerChanged:
        while True:
            try:
                return SUBJECTS.health.decode((await changes.next_msg(0.1)).data)
            except TimeoutError:
                await plain.request("bw.v1.chat.default", chat("fragile"), timeout=PATIENCE_S)

    async with asyncio.timeout(PATIENCE_S):
        while (change := await next_change()).state != "open":
            pass
        assert change.target == "fragile"
        assert change.evidence.consecutive >= 3 or change.cause in {"probe_failed", "ramp_failed"}
        assert change.epoch > 0
        simulator.script(lane="fragile")
        while (change := await next_change()).state != "closed":
            pass
    kept = await plain.jetstream().key_value("bw_health")
    entry = await kept.get((await kept.keys())[0])
    assert entry.value
    assert b'"target"' in entry.value


async def test_services_answer_pings_and_say_what_they_serve(plain: Nats) -> None:
    inbox = plain.new_inbox()
    heard = await plain.subscribe(inbox)
    await plain.publish("$SRV.PING", b"", reply=inbox)
    names: set[str] = set()
    expected = {f"breakwater-{kind}" for kind in ("edge", "router", "worker", "health", "ledger")}
    while not expected <= names:
        names.add(json.loads((await heard.next_msg(PATIENCE_S)).data)["name"])
    info = json.loads(
        (await plain.request("$SRV.INFO.breakwater-router", b"", timeout=PATIENCE_S)).data
    )
    subjects = {endpoint["subject"] for endpoint in info["endpoints"]}
    assert {"bw.v1.chat.*", "bw.v1.embeddings.*", "bw.v1.models.*"} <= subjects
    stats = await plain.request("$SRV.STATS.breakwater-router", b"", timeout=PATIENCE_S)
    assert sum(e["num_requests"] for e in json.loads(stats.data)["endpoints"]) > 0


# Cancellation, deadlines and partial answers.


async def test_a_cancel_on_nats_ends_the_providers_call(plain: Nats, simulator: Simulator) -> None:
    simulator.script(lane="once", model="nats-cancel", tokens=10_000, tokens_per_s=50)
    inbox = plain.new_inbox()
    heard = await plain.subscribe(inbox)
    await plain.publish(
        "bw.v1.chat.default",
        chat("once/nats-cancel", stream=True),
        reply=inbox,
        headers={"breakwater-request-id": "cancel-1"},
    )
    await heard.next_msg(PATIENCE_S)
    await plain.publish(SUBJECTS.cancel.at("cancel-1"), b'{"request":"cancel-1"}')
    await plain.flush()
    await asyncio.to_thread(
        until,
        lambda: simulator.requests(model="nats-cancel", cancelled_by_client=True),
        "the provider's call was ended",
        patience_s=5.0,
    )
    while "breakwater-end" not in headers_of(last := await heard.next_msg(PATIENCE_S)):
        pass
    assert headers_of(last)["breakwater-end"] == "partial"
    assert headers_of(last)["breakwater-partial"] == "cancelled"


async def test_leaving_the_clients_stream_ends_the_providers_call(
    nats_client: Client, simulator: Simulator
) -> None:
    simulator.script(lane="once", model="client-leaves", tokens=10_000, tokens_per_s=50)
    async with nats_client.chat(model="once/client-leaves", messages=HELLO) as stream:
        async for _ in stream:
            break
    await asyncio.to_thread(
        until,
        lambda: simulator.requests(model="client-leaves", cancelled_by_client=True),
        "the provider's call was ended",
        patience_s=5.0,
    )


async def test_a_stream_that_stops_is_ended_as_partial_at_the_deadline(
    plain: Nats, simulator: Simulator
) -> None:
    simulator.script(lane="once", model="nats-stall", stall_after_tokens=3)
    *messages, end = await replies(
        plain,
        "bw.v1.chat.default",
        chat("once/nats-stall", stream=True),
        breakwater_timeout="400ms",
    )
    assert messages
    assert headers_of(end)["breakwater-end"] == "partial"
    assert headers_of(end)["breakwater-partial"] == "total_timeout"
    assert end.data == b""


async def test_a_stream_without_a_first_token_is_an_error_at_its_own_timeout(
    plain: Nats, simulator: Simulator
) -> None:
    simulator.script(lane="once", model="nats-late", stall_before_first=True)
    (reply,) = await replies(
        plain,
        "bw.v1.chat.default",
        chat("once/nats-late", stream=True),
        breakwater_ttft_timeout="200ms",
    )
    assert headers_of(reply)["Nats-Service-Error-Code"] == "504"
    assert json.loads(reply.data)["error"]["code"] == "timeout"


async def test_the_clients_partial_answer_says_why(
    nats_client: Client, simulator: Simulator
) -> None:
    simulator.script(lane="once", model="client-cut", cut_after_tokens=4)
    stream = nats_client.chat(model="once/client-cut", messages=HELLO)
    chunks = [chunk async for chunk in stream]
    assert chunks
    assert stream.info.partial == "stream_cut"
