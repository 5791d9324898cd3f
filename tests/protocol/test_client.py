"""The client against a real nats-server and a gateway driven by hand."""

import asyncio
import base64
import json
import struct
import subprocess
import sys
from collections.abc import Awaitable, Callable
from decimal import Decimal
from pathlib import Path

import pytest
from tests.protocol.fake_gateway import PATIENCE_S, FakeGateway, FakeRequest, NatsServer, chunk

from breakwater_protocol import (
    AnswerTimeout,
    BreakwaterError,
    BudgetSpent,
    ChatStream,
    Client,
    ConnectionLost,
    GatewayError,
    GatewayFailed,
    Heard,
    MalformedReply,
    ModelUnknown,
    NoGateway,
    NotAuthenticated,
    NotPermitted,
    ReaderTooSlow,
    RequestRefused,
    StreamBroken,
    StreamGap,
    StreamStalled,
    Throttled,
    TooLarge,
    Unreachable,
)

pytestmark = [pytest.mark.anyio, pytest.mark.nats]

HELLO = [{"role": "user", "content": "hello"}]


def ask(client: Client, **options: float) -> ChatStream:
    stall_s = options.get("stall_timeout_s", PATIENCE_S)
    return client.chat(model="m", messages=HELLO, stall_timeout_s=stall_s)


async def read(stream: ChatStream) -> str:
    return "".join([c.choices[0].delta.content or "" async for c in stream])


async def started(client: Client, gateway: FakeGateway) -> tuple[asyncio.Task[str], FakeRequest]:
    """A reader that has asked, and its request at the gateway."""
    reading = asyncio.create_task(read(ask(client)))
    return reading, await gateway.next_request()


# Streams.


async def test_a_stream_yields_its_chunks_in_order_and_says_what_happened(
    client: Client, gateway: FakeGateway
) -> None:
    stream = ask(client)
    reading = asyncio.create_task(read(stream))
    request = await gateway.next_request()
    await request.chunk(0, "Hel", deployment="gpt", rung="primary", model="my%2Fmodel")
    await request.chunk(1, "lo ", "wor")
    await request.chunk(2, "ld")
    await request.send(seq="3", end="ok", cost_usd="0.000012500", overhead_ms="1.25", attempts="2")
    assert await reading == "Hello world"
    info = stream.info
    assert (info.deployment, info.rung, info.model, info.attempts) == (
        "gpt",
        "primary",
        "my/model",
        2,
    )
    assert (info.cost_usd, info.overhead_ms, info.partial) == (0.0000125, 1.25, "")
    assert info.request_id == request.headers["breakwater-assigned-id"] == stream.request_id
    assert await gateway.cancels_so_far() == 0


async def test_the_body_is_openai_s_and_the_options_are_headers(
    client: Client, gateway: FakeGateway
) -> None:
    stream = client.chat(
        model="m",
        messages=HELLO,
        temperature=0.5,
        user="u1",
        org="acme",
        feature="chat",
        properties={"Team": "blue"},
        timeout_s=2.5,
        ttft_timeout_s=0.25,
        priority="batch",
        cache="off",
        request_id="mine/1",
        max_cost=Decimal("5E-2"),
        extra_body={"user": "theirs", "brand_new": 1},
    )
    reading = asyncio.create_task(read(stream))
    request = await gateway.next_request()
    await request.send(seq="0", end="ok")
    await reading
    assert request.body == {
        "model": "m",
        "messages": HELLO,
        "stream": True,
        "temperature": 0.5,
        "user": "theirs",
        "brand_new": 1,
    }
    assert request.headers == {
        "breakwater-user": "u1",
        "breakwater-org": "acme",
        "breakwater-feature": "chat",
        "breakwater-property-team": "blue",
        "breakwater-timeout": "2500ms",
        "breakwater-ttft-timeout": "250ms",
        "breakwater-priority": "batch",
        "breakwater-cache": "off",
        "breakwater-request-id": "mine/1",
        "breakwater-max-cost": "0.05",
    }


async def test_a_virtual_key_is_shown_with_every_call(
    shared_server: NatsServer, gateway: FakeGateway
) -> None:
    async with Client(shared_server.url, key="bw-mine") as client:
        reading = asyncio.create_task(read(client.chat(model="m", messages=HELLO)))
        request = await gateway.next_request()
        await request.send(seq="0", end="ok")
        await reading
        assert request.headers["breakwater-key"] == "bw-mine"


@pytest.mark.parametrize("second", [0, 2, 7])
async def test_a_missing_or_repeated_message_breaks_the_stream_and_cancels_it(
    client: Client, gateway: FakeGateway, second: int
) -> None:
    reading, request = await started(client, gateway)
    await request.chunk(0, "a")
    await request.chunk(second, "b")
    with pytest.raises(StreamGap) as broken:
        await reading
    assert (broken.value.expected, broken.value.got) == (1, second)
    cancel = await gateway.next_cancel()
    assert cancel.request == request.headers["breakwater-assigned-id"]


async def test_a_stream_whose_beginning_was_lost_is_broken(
    client: Client, gateway: FakeGateway
) -> None:
    reading, request = await started(client, gateway)
    await request.chunk(1, "b")
    with pytest.raises(StreamGap):
        await reading
    await gateway.next_cancel()


async def test_a_worker_given_up_for_lost_cannot_splice_itself_into_the_answer(
    client: Client, gateway: FakeGateway
) -> None:
    reading, request = await started(client, gateway)
    await request.chunk(0, "two", attempt="2")
    await request.chunk(0, "one")
    await request.chunk(1, "one")
    await request.send(seq="2", end="error")
    await request.chunk(1, " two", attempt="2")
    await request.send(seq="2", end="ok", attempt="2")
    assert await reading == "two two"


async def test_a_lost_worker_that_goes_on_talking_does_not_hide_a_stall(
    client: Client, gateway: FakeGateway
) -> None:
    stream = ask(client, stall_timeout_s=0.2)
    reading = asyncio.create_task(read(stream))
    request = await gateway.next_request()
    await request.chunk(0, "x", attempt="2")
    seq = 0
    async with asyncio.timeout(PATIENCE_S):
        while not reading.done():
            await request.chunk(seq, "straggler")
            seq += 1
            await asyncio.wait([reading], timeout=0.02)
    with pytest.raises(StreamStalled):
        reading.result()
    await gateway.next_cancel()


async def test_an_end_without_a_number_is_the_router_s_word_on_a_dead_worker(
    client: Client, gateway: FakeGateway
) -> None:
    stream = ask(client)
    reading = asyncio.create_task(read(stream))
    request = await gateway.next_request()
    await request.chunk(0, "half", attempt="2")
    await request.send(end="partial", partial="worker_lost")
    assert await reading == "half"
    assert stream.info.partial == "worker_lost"


async def test_silence_in_a_stream_is_an_error_and_cancels_it(
    client: Client, gateway: FakeGateway
) -> None:
    reading = asyncio.create_task(read(ask(client, stall_timeout_s=0.05)))
    request = await gateway.next_request()
    await request.chunk(0, "a")
    with pytest.raises(BreakwaterError) as silence:
        await reading
    assert isinstance(silence.value, StreamStalled | AnswerTimeout)
    await gateway.next_cancel()


async def test_no_first_message_is_an_error_and_cancels_the_request(
    client: Client, gateway: FakeGateway
) -> None:
    with pytest.raises(AnswerTimeout):
        await read(ask(client, stall_timeout_s=0.05))
    await gateway.next_cancel()


async def test_where_nobody_serves_the_error_comes_at_once(client: Client) -> None:
    with pytest.raises(NoGateway, match="breakwater up"):
        await read(client.chat(model="m", messages=HELLO))
    with pytest.raises(NoGateway):
        await client.complete(model="m", messages=HELLO)
    with pytest.raises(NoGateway):
        await client.models()


async def test_breaking_out_of_the_loop_cancels_the_request(
    client: Client, gateway: FakeGateway
) -> None:
    async def first() -> str:
        text = ""
        async for found in ask(client):
            text = found.choices[0].delta.content or ""
            if text:
                break
        return text

    reading = asyncio.create_task(first())
    request = await gateway.next_request()
    await request.chunk(0, "a")
    assert await reading == "a"
    assert (await gateway.next_cancel()).request == request.headers["breakwater-assigned-id"]


async def test_cancelling_the_reader_cancels_the_request(
    client: Client, gateway: FakeGateway
) -> None:
    reading, request = await started(client, gateway)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert (await gateway.next_cancel()).request == request.headers["breakwater-assigned-id"]


async def test_leaving_the_stream_s_block_cancels_the_request(
    client: Client, gateway: FakeGateway
) -> None:
    async with ask(client) as stream:
        chunks = aiter(stream)
        reading = asyncio.ensure_future(anext(chunks))
        request = await gateway.next_request()
        await request.chunk(0, "a")
        await reading
    assert (await gateway.next_cancel()).request == stream.request_id
    with pytest.raises(StopAsyncIteration):
        await anext(chunks)


async def test_closing_the_client_cancels_what_is_in_flight_before_it_leaves(
    shared_server: NatsServer, gateway: FakeGateway
) -> None:
    client = Client(shared_server.url)
    await client.connect()
    reading, request = await started(client, gateway)
    await client.aclose()
    with pytest.raises(ConnectionLost):
        await reading
    assert (await gateway.next_cancel()).request == request.headers["breakwater-assigned-id"]
    await client.aclose()


async def test_a_stream_is_read_once(client: Client, gateway: FakeGateway) -> None:
    stream = ask(client)
    reading = asyncio.create_task(read(stream))
    await (await gateway.next_request()).send(seq="0", end="ok")
    await reading
    with pytest.raises(RuntimeError, match="once"):
        await read(stream)


async def test_a_reader_that_is_too_slow_gets_what_was_kept_and_then_an_error(
    shared_server: NatsServer, gateway: FakeGateway
) -> None:
    async with Client(shared_server.url, buffer_messages=3) as client:
        async with ask(client) as stream:
            chunks = aiter(stream)
            reading = asyncio.ensure_future(anext(chunks))
            request = await gateway.next_request()
            await request.chunk(0, "0")
            await reading
            for seq in range(1, 9):
                await request.chunk(seq, str(seq))
            await gateway.sync()
            await client.server()  # a round trip: the messages are here
            kept = [(await anext(chunks)).choices[0].delta.content for _ in range(3)]
            assert kept == ["1", "2", "3"]
            with pytest.raises(ReaderTooSlow):
                await anext(chunks)
        await gateway.next_cancel()


async def test_many_streams_share_one_inbox_without_mixing(
    client: Client, gateway: FakeGateway
) -> None:
    count, length = 50, 20
    tasks = [
        asyncio.create_task(read(client.chat(model=str(i), messages=HELLO))) for i in range(count)
    ]
    requests = [await gateway.next_request() for _ in range(count)]
    for seq in range(length):
        for request in requests:
            await request.chunk(seq, request.body["model"] + ",")
    for request in requests:
        await request.send(seq=str(length), end="ok")
    assert await asyncio.gather(*tasks) == [f"{i}," * length for i in range(count)]


@pytest.mark.parametrize(
    ("data", "headers"),
    [
        (b"<html>", {"seq": "0"}),
        (b'{"choices": 7}', {"seq": "0"}),
        (b"\xff\xfe", {"seq": "0"}),
        (chunk("a"), {}),
        (chunk("a"), {"seq": "-1"}),
        (chunk("a"), {"seq": "9" * 5000}),
        (chunk("a"), {"seq": "0", "attempt": "two"}),
        (b"", {"seq": "0", "end": "maybe"}),
    ],
)
async def test_what_is_not_the_protocol_is_an_error_of_its_own(
    client: Client, gateway: FakeGateway, data: bytes, headers: dict[str, str]
) -> None:
    reading, request = await started(client, gateway)
    await request.send(data, **headers)
    with pytest.raises(MalformedReply):
        await reading


# Errors of the gateway.


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "invalid_request", RequestRefused),
        (401, "authentication", NotAuthenticated),
        (403, "permission", NotPermitted),
        (404, "model_not_found", ModelUnknown),
        (409, "odd", RequestRefused),
        (413, "payload_too_large", TooLarge),
        (429, "rate_limited", Throttled),
        (429, "budget_exhausted", BudgetSpent),
        (502, "bad_gateway", GatewayFailed),
        (504, "timeout", GatewayFailed),
    ],
)
async def test_an_error_reply_is_an_exception_of_its_kind(
    client: Client, gateway: FakeGateway, status: int, code: str, kind: type[GatewayError]
) -> None:
    reading, request = await started(client, gateway)
    await request.refuse(status, code, "try later", retry_after="3", should_retry="true")
    with pytest.raises(GatewayError) as refused:
        await reading
    error = refused.value
    assert type(error) is kind
    assert (error.status, error.code, error.message) == (status, code, "try later")
    assert (error.type, error.retry_after_s, error.should_retry) == ("some_error", 3.0, True)
    assert error.info is not None
    assert error.info.request_id == request.headers["breakwater-assigned-id"]
    assert await gateway.cancels_so_far() == 0


@pytest.mark.parametrize("body", [b"", b"<html>", b'{"error": "plain"}', b"\xff"])
async def test_an_error_whose_body_says_nothing_keeps_its_status_and_line(
    client: Client, gateway: FakeGateway, body: bytes
) -> None:
    answering = asyncio.create_task(client.complete(model="m", messages=HELLO))
    request = await gateway.next_request()
    headers = {
        "Nats-Service-Error-Code": "503",
        "Nats-Service-Error": "all full",
        "retry-after": "soon",
    }
    await gateway.connection.publish(request.reply, body, headers=headers)
    with pytest.raises(GatewayFailed, match="all full") as refused:
        await answering
    assert (refused.value.status, refused.value.retry_after_s) == (503, None)


async def test_a_stream_can_end_in_an_error_after_its_first_words(
    client: Client, gateway: FakeGateway
) -> None:
    reading, request = await started(client, gateway)
    await request.chunk(0, "a")
    await request.send(seq="1", end="error")
    with pytest.raises(GatewayFailed):
        await reading


# Whole answers.


async def test_a_completion_has_its_text_its_facts_and_its_bytes(
    client: Client, gateway: FakeGateway
) -> None:
    answering = asyncio.create_task(client.complete(model="m", messages=HELLO))
    request = await gateway.next_request()
    assert request.body == {"model": "m", "messages": HELLO}
    body = {
        "id": "x",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4},
        "something_new": True,
    }
    await request.send(json.dumps(body).encode(), deployment="gpt", cost_usd="unknown")
    answer = await answering
    assert (answer.text, answer.finish_reason, answer.tool_calls) == ("hi", "stop", ())
    assert answer.usage is not None
    assert answer.usage.total_tokens == 4
    assert json.loads(answer.raw) == body
    assert (answer.info.deployment, answer.info.cost_usd) == ("gpt", None)


async def test_a_completion_that_calls_tools_has_no_text(
    client: Client, gateway: FakeGateway
) -> None:
    answering = asyncio.create_task(client.complete(model="m", messages=HELLO))
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    body = {"choices": [{"message": message, "finish_reason": "tool_calls"}]}
    await (await gateway.next_request()).send(json.dumps(body).encode())
    answer = await answering
    assert answer.text == ""
    assert [c.function.name for c in answer.tool_calls] == ["f"]


async def test_a_completion_that_nobody_waits_for_any_more_is_cancelled(
    client: Client, gateway: FakeGateway
) -> None:
    with pytest.raises(AnswerTimeout):
        await client.complete(model="m", messages=HELLO, stall_timeout_s=0.05, request_id="r1")
    assert (await gateway.next_cancel()).request == "r1"
    answering = asyncio.create_task(client.complete(model="m", messages=HELLO, request_id="r2"))
    await gateway.next_request()
    await gateway.next_request()
    answering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await answering
    assert (await gateway.next_cancel()).request == "r2"


async def test_embeddings_come_in_the_input_s_order_in_either_encoding(
    client: Client, gateway: FakeGateway
) -> None:
    answering = asyncio.create_task(client.embed(model="e", input=["a", "b"]))
    request = await gateway.next_request()
    assert request.body == {"model": "e", "input": ["a", "b"]}
    packed = base64.b64encode(struct.pack("<2f", 0.5, -2.0)).decode()
    rows = [{"index": 1, "embedding": packed}, {"index": 0, "embedding": [1.0, 0.25]}]
    await request.send(json.dumps({"data": rows, "model": "e"}).encode())
    answer = await answering
    assert answer.vectors == ((1.0, 0.25), (0.5, -2.0))


async def test_an_embedding_that_is_no_vector_is_refused(
    client: Client, gateway: FakeGateway
) -> None:
    answering = asyncio.create_task(client.embed(model="e", input="a"))
    rows = [{"index": 0, "embedding": "AAA="}]
    await (await gateway.next_request()).send(json.dumps({"data": rows}).encode())
    with pytest.raises(MalformedReply):
        await answering


async def test_models_are_listed(client: Client, gateway: FakeGateway) -> None:
    answering = asyncio.create_task(client.models())
    request = await gateway.next_request()
    assert request.data == b""
    await request.send(b'{"object": "list", "data": [{"id": "main"}, {"id": "fast"}]}')
    assert [model.id for model in await answering] == ["main", "fast"]


# What cannot be asked.


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"user": "a\r\nbreakwater-org: b"}, ValueError),
        ({"user": ""}, ValueError),
        ({"user": 7}, TypeError),
        ({"timeout_s": 0}, ValueError),
        ({"timeout_s": float("nan")}, ValueError),
        ({"timeout_s": "10s"}, TypeError),
        ({"properties": {"a b": "c"}}, ValueError),
        ({"properties": "a"}, TypeError),
        ({"request_id": "x" * 2000}, ValueError),
        ({"extra_body": 7}, TypeError),
        ({"max_cost": 0.1}, TypeError),
        ({"max_cost": "1_000"}, ValueError),
        ({"max_cost": Decimal("NaN")}, ValueError),
        ({"max_cost": Decimal(-1)}, ValueError),
    ],
)
async def test_an_option_that_no_gateway_takes_is_refused_before_anything_is_sent(
    client: Client, options: dict[str, object], kind: type[Exception]
) -> None:
    with pytest.raises(kind):
        client.chat(model="m", messages=HELLO, **options)  # type: ignore[arg-type]


async def test_a_body_over_the_server_s_limit_is_refused_and_the_connection_lives(
    client: Client, gateway: FakeGateway
) -> None:
    huge = [{"role": "user", "content": "x" * 1_050_000}]
    with pytest.raises(TooLarge, match="max_payload"):
        await client.complete(model="m", messages=huge)
    with pytest.raises(TooLarge):
        await read(client.chat(model="m", messages=HELLO, properties={"a": "x" * 1_050_000}))
    assert (await client.server()).max_payload == 1_048_576
    assert await gateway.cancels_so_far() == 0


async def test_a_client_that_is_not_connected_says_how() -> None:
    with pytest.raises(RuntimeError, match="async with"):
        await Client().models()


# The connection.


async def test_an_unreachable_server_is_named_at_once(own_server: NatsServer) -> None:
    own_server.stop()
    with pytest.raises(Unreachable, match=own_server.url):
        await Client(own_server.url).connect()
    for url in ("", "not a url", "nats://:4222"):
        with pytest.raises(Unreachable):
            await Client(url).connect()
    with pytest.raises(Unreachable, match="credentials"):
        await Client(own_server.url, creds="/nowhere/at-all.creds").connect()


async def test_a_peer_that_is_no_nats_server_is_unreachable() -> None:
    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(mute, "127.0.0.1", 0) as listener:
        port = listener.sockets[0].getsockname()[1]
        with pytest.raises(Unreachable):
            await Client(f"nats://127.0.0.1:{port}", connect_timeout_s=0.1).connect()


async def test_any_server_of_several_will_do(
    shared_server: NatsServer, own_server: NatsServer
) -> None:
    own_server.stop()
    async with Client(f"{own_server.url}, {shared_server.url}") as client:
        assert (await client.server()).url == shared_server.url


async def test_a_connection_lost_in_a_stream_is_an_error_and_the_client_recovers(
    own_server: NatsServer,
) -> None:
    async with Client(own_server.url) as client, FakeGateway(own_server.url) as gateway:
        reading = asyncio.create_task(read(ask(client, stall_timeout_s=1.0)))
        request = await gateway.next_request()
        await request.chunk(0, "a")
        await gateway.sync()
        own_server.stop()
        own_server.start()
        with pytest.raises((StreamBroken, AnswerTimeout)):
            await reading
        answering = asyncio.create_task(_until_answered(client.models))
        request = await gateway.next_request()
        while request.subject != "bw.v1.models.default":
            request = await gateway.next_request()
        await request.send(b'{"data": []}')
        await answering


async def _until_answered(call: Callable[[], Awaitable[object]]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                await call()
            except NoGateway:
                await asyncio.sleep(0.01)
            else:
                return


async def test_a_connection_that_looks_alive_but_hears_nothing_is_replaced(
    shared_server: NatsServer, gateway: FakeGateway
) -> None:
    async with Client(shared_server.url) as client:
        nats = client._connection._nats
        assert nats is not None
        assert nats._reading_task is not None
        nats._reading_task.cancel()
        with pytest.raises(AnswerTimeout):
            await client.complete(model="m", messages=HELLO, stall_timeout_s=0.05)
        suspicion = client._connection._suspicion
        assert suspicion is not None
        await suspicion
        answering = asyncio.create_task(client.models())
        request = await gateway.next_request()
        while request.subject != "bw.v1.models.default":
            request = await gateway.next_request()
        await request.send(b'{"data": []}')
        assert await answering == ()


async def test_a_connection_closed_for_good_fails_what_waits_and_what_comes(
    shared_server: NatsServer, gateway: FakeGateway
) -> None:
    async with Client(shared_server.url) as client:
        reading, _ = await started(client, gateway)
        nats = client._connection._nats
        assert nats is not None
        await nats.close()
        with pytest.raises(ConnectionLost):
            await reading
        with pytest.raises(ConnectionLost):
            await client.models()


PERMISSIONS = """
authorization { users: [
  { user: guest, password: guest, permissions: {
      publish: ["bw.v1.models.>"], subscribe: ["_INBOX_client.>"] } }
] }
"""


async def test_what_nats_does_not_permit_is_refused_at_once(tmp_path: Path) -> None:
    server = NatsServer(tmp_path, PERMISSIONS)
    server.start()
    try:
        async with Client(server.url.replace("//", "//guest:guest@")) as client:
            with pytest.raises(NotPermitted, match="permissions violation"):
                await read(ask(client))
            with pytest.raises(NoGateway):
                await client.models()
            with pytest.raises(NotPermitted):
                await anext(client.listen("bw.v1.evt.>"))
        with pytest.raises(NotPermitted):
            await Client(server.url.replace("//", "//guest:wrong@")).connect()
        with pytest.raises(NotPermitted):
            await Client(server.url).connect()
    finally:
        server.stop()


# Listening.


async def test_a_listener_hears_what_is_published_from_then_on(
    client: Client, gateway: FakeGateway
) -> None:
    heard = client.listen("bw.v1.evt.>")
    hearing = asyncio.ensure_future(anext(heard))
    await _until_subscribed(gateway, "bw.v1.evt.health.a.open", hearing)
    first = await hearing
    assert (first.subject, first.data, first.missed) == ("bw.v1.evt.health.a.open", b"{}", 0)
    await heard.aclose()


async def test_a_listener_learns_that_the_connection_has_closed(shared_server: NatsServer) -> None:
    async with Client(shared_server.url) as client:
        heard = client.listen("x.>")
        hearing = asyncio.ensure_future(anext(heard))
        await client.server()
        await client.aclose()
        with pytest.raises(ConnectionLost):
            await hearing


@pytest.mark.parametrize("subject", ["", "a..b", "a b", "a.>.b", "a*"])
async def test_what_is_no_subject_cannot_be_listened_to(client: Client, subject: str) -> None:
    with pytest.raises(ValueError, match="not a subject"):
        await anext(client.listen(subject))


async def test_a_slow_listener_loses_the_oldest_and_is_told_how_many(
    client: Client, gateway: FakeGateway
) -> None:
    heard = client.listen("x.>", waiting_max=2)
    hearing = asyncio.ensure_future(anext(heard))
    await _until_subscribed(gateway, "x.ready", hearing)
    await gateway.sync()
    await client.server()
    for number in range(5):
        await gateway.connection.publish(f"x.{number}")
    await gateway.sync()
    await client.server()
    found = await anext(heard)
    assert found.subject == "x.3"
    assert found.missed >= 3
    assert (await anext(heard)).missed == 0
    await heard.aclose()


async def _until_subscribed(
    gateway: FakeGateway, subject: str, hearing: "asyncio.Future[Heard]"
) -> None:
    """Publishes until it is heard."""
    async with asyncio.timeout(PATIENCE_S):
        while not hearing.done():
            await gateway.connection.publish(subject, b"{}")
            await asyncio.wait([hearing], timeout=0.01)


def test_importing_the_protocol_needs_msgspec_alone() -> None:
    allowed = {"breakwater_protocol", "msgspec"}
    program = (
        "import sys; before = set(sys.modules); import breakwater_protocol;"
        "print(*{m.partition('.')[0] for m in set(sys.modules) - before"
        " if 'site-packages' in (getattr(sys.modules[m], '__file__', None) or '')})"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    # typing_extensions is msgspec's own, and only there if something else installed it.
    assert set(found.stdout.split()) - {"typing_extensions"} <= allowed
