"""Bad input over HTTP and NATS: one clear error each, and nobody else on the connection notices."""

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import nats
import pytest
from nats.aio.client import Client as Nats
from tests.e2e.processes import HELLO, PATIENCE_S, Gateway, Simulator, config

LIMIT = 300_000
"""Bytes of a body, as this gateway is configured."""
PROMPT = b'"messages":[{"role":"user","content":"x"}]'


@pytest.fixture(scope="module")
def small(workplace: Path, simulator: Simulator) -> Iterator[Gateway]:
    """A gateway with a limit that tests can reach quickly."""
    process = Gateway(
        workplace / "small", config=config(simulator, tail=f"limits: {{body_bytes: {LIMIT}}}\n")
    )
    yield process
    process.end()


@pytest.fixture
async def on_small(small: Gateway) -> AsyncIterator[Nats]:
    client = await nats.connect(small.nats, allow_reconnect=False)
    yield client
    await client.close()


def chat(rest: bytes, model: bytes = b"sim/m") -> bytes:
    return b'{"model":"%b",%b%b}' % (model, PROMPT, rest)


def padded(size: int) -> bytes:
    body = chat(b"")
    return body + b" " * (size - len(body))


BODIES: dict[str, tuple[bytes, int, str]] = {
    "empty": (b"", 400, "empty"),
    "blank": (b" \n\t ", 400, "empty"),
    "no JSON": (b"hello", 400, "not valid JSON"),
    "half of it": (b'{"model":"sim/m","messages":[', 400, "not valid JSON"),
    "an array": (b"[]", 400, "not what this API takes"),
    "null": (b"null", 400, "not what this API takes"),
    "no model": (b"{%b}" % PROMPT, 400, "model"),
    "no messages": (b'{"model":"sim/m"}', 400, "messages"),
    "messages empty": (b'{"model":"sim/m","messages":[]}', 400, "messages"),
    "a role that is none": (
        b'{"model":"sim/m","messages":[{"role":"king","content":"x"}]}', 400, "role"
    ),
    "nested arrays": (b"[" * 120_000, 400, "the body"),
    "nested objects": (b'{"a":' * 40_000 + b"1" + b"}" * 40_000, 400, "the body"),
    "nested in an unknown field": (
        chat(b',"x":' + b"[" * 120_000 + b"]" * 120_000), 400, "nested"
    ),
    "nested in the content": (
        b'{"model":"sim/m","messages":[{"role":"user","content":%b%b}]}'
        % (b"[" * 120_000, b"]" * 120_000), 400, "nested"
    ),
    "not UTF-8": (chat(b',"user":"\xff\xfe"'), 400, "UTF-8"),
    "a lone surrogate": (chat(b',"user":"\\ud800"'), 400, "the body"),
    "NaN": (chat(b',"temperature":NaN'), 400, "not valid JSON"),
    "Infinity": (chat(b',"temperature":Infinity'), 400, "not valid JSON"),
    "a number beyond all bounds": (chat(b',"seed":' + b"9" * 5_000), 400, "the body"),
    "max_tokens -5": (chat(b',"max_tokens":-5'), 400, "max_tokens"),
    "max_tokens text": (chat(b',"max_tokens":"many"'), 400, "max_tokens"),
    "temperature 3": (chat(b',"temperature":3'), 400, "temperature"),
    "stream yes": (chat(b',"stream":"yes"'), 400, "stream"),
    "unknown model": (chat(b"", b"nope"), 404, "nope"),
    "model *": (chat(b"", b"*"), 404, "*"),
    "model >": (chat(b"", b">"), 404, ">"),
    "model .": (chat(b"", b"."), 404, "'.'"),
    "model with line ends": (chat(b"", b"a\\r\\nb: c"), 404, "there is no model"),
    "model with NUL": (chat(b"", b"\\u0000"), 404, "there is no model"),
    "model not ASCII": (chat(b"", "模型".encode()), 404, "模型"),
    "model empty": (chat(b"", b""), 400, "model"),
    "model of 5,000": (chat(b"", b"m" * 5_000), 400, "model"),
    "one above the limit": (padded(LIMIT + 1), 413, "limits.body_bytes"),
}  # fmt: skip

bodies = pytest.mark.parametrize(
    ("body", "status", "word"), list(BODIES.values()), ids=list(BODIES)
)


def assert_openais(error: object, status: int, word: str) -> None:
    assert isinstance(error, dict)
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert word in error["message"], error
    assert len(error["message"]) < 1_000
    code = {400: "invalid_request", 404: "model_not_found", 413: "payload_too_large"}[status]
    assert error["code"] == code


@contextmanager
def undisturbed(gateway: Gateway, simulator: Simulator) -> Iterator[None]:
    """A stream runs meanwhile, and is whole at the end."""
    simulator.script(lane="sim", model="bystander", tokens=15, tokens_per_s=60)
    heard: list[str] = []

    def listen() -> None:
        body = {"model": "sim/bystander", "messages": HELLO, "stream": True}
        with httpx.Client(trust_env=False, timeout=PATIENCE_S) as client:
            heard.append(client.post(gateway.base_url + "/chat/completions", json=body).text)

    listener = threading.Thread(target=listen)
    listener.start()
    try:
        yield
    finally:
        listener.join(PATIENCE_S)
    assert heard[0].endswith("data: [DONE]\n\n")
    assert heard[0].count("data: {") == 17


def test_each_bad_body_over_http_is_one_clear_error_and_the_connection_lives(
    small: Gateway, simulator: Simulator
) -> None:
    with (
        undisturbed(small, simulator),
        httpx.Client(base_url=small.root_url, trust_env=False, timeout=PATIENCE_S) as client,
    ):
        for name, (body, status, word) in BODIES.items():
            answer = client.post("/v1/chat/completions", content=body)
            assert answer.status_code == status, (name, answer.text)
            assert_openais(answer.json()["error"], status, word)
            after = client.post("/v1/chat/completions", content=chat(b""))
            assert after.status_code == 200, name


@pytest.mark.anyio
@pytest.mark.nats
async def test_each_bad_body_over_nats_is_one_clear_error_and_the_connection_lives(
    on_small: Nats, simulator: Simulator
) -> None:
    simulator.script(lane="sim", model="bystander", tokens=15, tokens_per_s=60)
    client = on_small
    inbox = client.new_inbox()
    bystander = await client.subscribe(inbox)
    await client.publish(
        "bw.v1.chat.default", chat(b',"stream":true', b"sim/bystander"), reply=inbox
    )
    for name, (body, status, word) in BODIES.items():
        reply = await client.request("bw.v1.chat.default", body, timeout=PATIENCE_S)
        said = dict(reply.headers or {})
        assert said["Nats-Service-Error-Code"] == str(status), (name, reply.data)
        assert_openais(json.loads(reply.data)["error"], status, word)
    count = 0
    while (message := await bystander.next_msg(PATIENCE_S)).data:
        count += len(message.data.split(b"\n"))
    assert dict(message.headers or {})["breakwater-end"] == "ok"
    assert count == 17
    assert client.is_connected


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b'{"model":"sim/text-embedding-3-small","input":""}',
        b'{"model":"sim/text-embedding-3-small","input":[]}',
        b'{"model":"sim/text-embedding-3-small","input":[[]]}',
        b'{"model":"sim/text-embedding-3-small","input":{"a":1}}',
        b'{"model":"sim/text-embedding-3-small","input":"x","dimensions":-1}',
        b'{"model":"sim/text-embedding-3-small","input":"x","encoding_format":"hex"}',
    ],
)
def test_a_bad_embeddings_body_is_one_clear_error(small: Gateway, body: bytes) -> None:
    answer = httpx.post(small.base_url + "/embeddings", content=body, trust_env=False)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_request"


def test_a_body_of_exactly_the_limit_is_served(small: Gateway) -> None:
    answer = httpx.post(
        small.base_url + "/chat/completions", content=padded(LIMIT), trust_env=False
    )
    assert answer.status_code == 200


@pytest.mark.anyio
@pytest.mark.nats
async def test_a_body_of_exactly_the_limit_is_served_on_nats(on_small: Nats) -> None:
    reply = await on_small.request("bw.v1.chat.default", padded(LIMIT), timeout=PATIENCE_S)
    assert json.loads(reply.data)["object"] == "chat.completion"


def test_the_usual_limit_holds_and_one_above_is_refused(gateway: Gateway) -> None:
    limit = 8 * 1024 * 1024 - 65536
    with httpx.Client(base_url=gateway.base_url, trust_env=False, timeout=PATIENCE_S) as client:
        assert client.post("/chat/completions", content=padded(limit)).status_code == 200
        refused = client.post("/chat/completions", content=padded(limit + 1))
        assert refused.status_code == 413
        assert refused.json()["error"]["code"] == "payload_too_large"


@pytest.mark.parametrize(
    "body",
    [
        b'{"x":{' + b",".join([b'"a":1'] * 1_000_000) + b"}}",
        chat(b',"x":{' + b",".join([b'"a":1'] * 1_000_000) + b"}"),
        chat(b',"x":{' + b",".join(b'"k%d":0' % n for n in range(600_000)) + b"}"),
        chat(b"," + b",".join(b'"k%d":0' % n for n in range(600_000))),
        chat(b',"logit_bias":{' + b",".join(b'"%d": 1' % n for n in range(600_000)) + b"}"),
        b"[" * 8_000_000,
        b'{"model":"sim/m","messages":['
        + b",".join([b'{"role":"user","content":"x"}'] * 200_000)
        + b"]}",
    ],
    ids=[
        "a million keys",
        "a million keys of a field",
        "keys of a field",
        "keys of the body",
        "keys spaced",
        "deep",
        "messages",
    ],
)
def test_a_body_that_is_costly_to_read_is_refused_and_holds_nobody_up(
    gateway: Gateway, simulator: Simulator, body: bytes
) -> None:
    assert len(body) < 8_300_000
    with undisturbed(gateway, simulator):
        answer = httpx.post(
            gateway.base_url + "/chat/completions",
            content=body,
            trust_env=False,
            timeout=PATIENCE_S,
        )
    assert answer.status_code == 400, answer.text[:300]
    assert answer.json()["error"]["code"] == "invalid_request"


@pytest.mark.anyio
@pytest.mark.nats
@pytest.mark.parametrize("tenant", ["a=ZZ", "=2A=", "=FF", "a=2a", "t" * 1_100, "*x", ">x"])
async def test_a_tenant_that_is_no_token_is_one_clear_error(plain: Nats, tenant: str) -> None:
    reply = await plain.request("bw.v1.chat." + tenant, chat(b""), timeout=PATIENCE_S)
    assert dict(reply.headers or {})["Nats-Service-Error-Code"] == "400"
    assert "tenant" in json.loads(reply.data)["error"]["message"]
    assert plain.is_connected


@pytest.mark.anyio
@pytest.mark.nats
async def test_odd_things_on_our_subjects_disturb_nobody(plain: Nats, simulator: Simulator) -> None:
    """Junk on every subject that any actor hears, and requests that nobody can answer."""
    client = plain
    simulator.script(lane="sim", model="bystander", tokens=15, tokens_per_s=60)
    inbox = client.new_inbox()
    bystander = await client.subscribe(inbox)
    await client.publish(
        "bw.v1.chat.default", chat(b',"stream":true', b"sim/bystander"), reply=inbox
    )
    info = json.loads((await client.request("$SRV.INFO.breakwater-worker", b"")).data)
    work = next(e["subject"] for e in info["endpoints"] if ".work." in e["subject"])
    junk = [b"", b"{", b"[]", b"null", b"\xff", b"[" * 200_000, b'{"request":1}']
    for subject in (
        work,
        work.replace(".work.", ".ping."),
        "bw.v1.cancel.x",
        "bw.v1.hb.worker.x",
        "bw.v1.hb.router.x",
        "bw.v1.evt.health.fragile.open",
        "bw.v1.evt.attempt.fragile.rate_limited",
        "bw.v1.evt.attempt.fragile.ok",
        "bw.v1.evt.config.7",
        "bw.v1.evt.request.default.ok",
        "bw.v1.chat.default",
        "bw.v1.embeddings.default",
        "bw.v1.models.default",
    ):
        for data in junk:
            await client.publish(subject, data)
            await client.publish(subject, data, reply="bw.v1.nowhere")
    await client.flush()
    while (message := await bystander.next_msg(PATIENCE_S)).data:
        pass
    assert dict(message.headers or {})["breakwater-end"] == "ok"
    reply = await client.request("bw.v1.chat.default", chat(b""), timeout=PATIENCE_S)
    assert json.loads(reply.data)["object"] == "chat.completion"
    assert client.is_connected


def raw(gateway: Gateway, data: bytes) -> bytes:
    """What the server answers to these bytes until it closes, or says it is done."""
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=PATIENCE_S) as peer:
        peer.sendall(data)
        peer.settimeout(5)
        found = b""
        while b"\r\n\r\n" not in found and (part := peer.recv(65536)):
            found += part
        return found


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"GET\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: a\r\nx-big: " + b"a" * 70_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nhost: a\r\n" + b"x-a: b\r\n" * 200 + b"\r\n", 431),
        (b"GET /" + b"a" * 80_000 + b" HTTP/1.1\r\nhost: a\r\n\r\n", 431),
        (b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 99999999999\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\n", 400),
        (
            b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n",
            400,
        ),
        (b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", 400),
    ],
)
def test_what_is_no_good_http_is_refused_in_openais_shape(
    gateway: Gateway, data: bytes, status: int
) -> None:
    answer = raw(gateway, data)
    assert answer.startswith(b"HTTP/1.1 %d " % status), answer[:300]
    body = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert set(body["error"]) == {"message", "type", "param", "code"}


@pytest.mark.anyio
@pytest.mark.nats
async def test_headers_on_nats_are_bounded(plain: Nats) -> None:
    for headers in (
        {"breakwater-user": "u" * 100_000},
        {f"breakwater-property-{n}": "x" for n in range(500)},
        {"breakwater-colour": "red"},
        {"breakwater-timeout": "soon"},
        {"breakwater-request-id": "*.>"},
        {"breakwater-seq": "0"},
        {"breakwater-property-a!b": "x"},
    ):
        reply = await plain.request(
            "bw.v1.chat.default", chat(b""), headers=headers, timeout=PATIENCE_S
        )
        assert dict(reply.headers or {})["Nats-Service-Error-Code"] == "400", headers
        assert next(iter(headers))[:18] in json.loads(reply.data)["error"]["message"]
    # Other people's headers are theirs.
    reply = await plain.request(
        "bw.v1.chat.default",
        chat(b""),
        headers={f"X-{n}": "x" * 50 for n in range(200)},
        timeout=PATIENCE_S,
    )
    assert json.loads(reply.data)["object"] == "chat.completion"


@pytest.mark.anyio
async def test_many_bad_requests_at_once_leave_good_ones_whole(gateway: Gateway) -> None:
    async with httpx.AsyncClient(
        base_url=gateway.base_url, trust_env=False, timeout=PATIENCE_S
    ) as client:
        sent = [chat(b"") if n % 2 else b"{" * 1_000 for n in range(100)]
        answers = await asyncio.gather(
            *(client.post("/chat/completions", content=body) for body in sent)
        )
    assert [a.status_code for a in answers] == [200 if n % 2 else 400 for n in range(100)]
