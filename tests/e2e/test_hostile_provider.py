"""Providers that send anything but an answer: one typed failure each, and the next request is served.

The provider is bytes written by hand to a socket. The model that a request names is what it does; the first
part of the path is the dialect it speaks.
"""

import asyncio
import gzip
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import httpx
import pytest
from tests.e2e.processes import PATIENCE_S, Gateway, environment, needs_proc
from tests.http.http_client_servers import Connection, Server

KEY: Final = "qz7-Vd83kLmX04-hostile-provider-key"
KEY_PART: Final = KEY[:16]
"""As much of it as a message that was cut short could show."""
GOOD: Final = "all is well"
EVIL: Final = "this answers nobody's request"
BOUND_S: Final = 8.0
"""Within which each of these ends, on a machine that is busy; the deadline asked for is longer."""
GROWTH_MAX_KIB: Final = 100 * 1024

WIRES: Final = {"openai": "/v1", "anthropic": "/v1", "gemini": "/v1beta"}
PAIRS: Final = (
    ("chat", "openai"),
    ("messages", "anthropic"),
    ("generate", "gemini"),
    ("chat", "anthropic"),
    ("messages", "gemini"),
    ("generate", "openai"),
    ("responses", "openai"),
)
"""The caller's dialect and the provider's: each with its own, and each with another's."""

# ---------------------------------------------------------------- what a provider says


def whole(wire: str, text: str = GOOD) -> dict[str, Any]:
    match wire:
        case "openai":
            message = {"role": "assistant", "content": text}
            return {
                "id": "c-1", "object": "chat.completion", "created": 1, "model": "m",
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
            }  # fmt: skip
        case "anthropic":
            return {
                "id": "msg_1", "type": "message", "role": "assistant", "model": "m",
                "content": [{"type": "text", "text": text}],
                "stop_reason": "end_turn", "stop_sequence": None,
                "usage": {"input_tokens": 1, "output_tokens": 1},
            }  # fmt: skip
        case _:
            content = {"role": "model", "parts": [{"text": text}]}
            return {
                "candidates": [{"content": content, "finishReason": "STOP", "index": 0}],
                "usageMetadata": {
                    "promptTokenCount": 1, "candidatesTokenCount": 1, "totalTokenCount": 2,
                },
                "modelVersion": "m",
            }  # fmt: skip


def calling(wire: str) -> dict[str, Any]:
    """An answer that calls a tool with an array."""
    answer = whole(wire)
    match wire:
        case "openai":
            function = {"name": "weather", "arguments": "[1, 2]"}
            call: dict[str, Any] = {"id": "call_1", "type": "function", "function": function}
            choice = answer["choices"][0]
            choice["message"] = {"role": "assistant", "content": None, "tool_calls": [call]}
            choice["finish_reason"] = "tool_calls"
        case "anthropic":
            call = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": [1, 2]}
            answer["content"], answer["stop_reason"] = [call], "tool_use"
        case _:
            call = {"functionCall": {"name": "weather", "args": [1, 2]}}
            answer["candidates"][0]["content"]["parts"] = [call]
    return answer


def begun(wire: str) -> list[dict[str, Any]]:
    """A stream up to its first words."""
    match wire:
        case "openai":
            chunk = {"id": "c-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
            deltas: list[dict[str, str]] = [{"role": "assistant", "content": ""}, {"content": GOOD}]
            return [
                chunk | {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
                for delta in deltas
            ]
        case "anthropic":
            message = whole(wire) | {"content": [], "stop_reason": None}
            return [
                {"type": "message_start", "message": message},
                {
                    "type": "content_block_start", "index": 0,
                    "content_block": {"type": "text", "text": ""},
                },
                {
                    "type": "content_block_delta", "index": 0,
                    "delta": {"type": "text_delta", "text": GOOD},
                },
            ]  # fmt: skip
        case _:
            answer = whole(wire)
            del answer["candidates"][0]["finishReason"]
            return [answer]


def ended(wire: str) -> list[dict[str, Any]]:
    match wire:
        case "openai":
            chunk = begun(wire)[0]
            chunk["choices"][0].update(delta={}, finish_reason="stop")
            return [chunk]
        case "anthropic":
            return [
                {"type": "content_block_stop", "index": 0},
                {
                    "type": "message_delta",
                    "delta": {"stop_reason": "end_turn", "stop_sequence": None},
                    "usage": {"output_tokens": 1},
                },
                {"type": "message_stop"},
            ]
        case _:
            return [whole(wire, "")]


def sse(wire: str, events: list[dict[str, Any]]) -> bytes:
    lines = [
        (b"event: %b\n" % event["type"].encode() if wire == "anthropic" else b"")
        + b"data: %b\n\n" % json.dumps(event).encode()
        for event in events
    ]
    return b"".join(lines)


def error(wire: str, message: str, *, code: str = "overloaded", param: str = "") -> dict[str, Any]:
    """`overloaded`, or `refused` as not a valid request."""
    overloaded = code == "overloaded"
    match wire:
        case "openai":
            kind = "server_error" if overloaded else "invalid_request_error"
            said = {"message": message, "type": kind, "param": param or None}
            return {"error": said | {"code": code if overloaded else None}}
        case "anthropic":
            kind = "overloaded_error" if overloaded else "invalid_request_error"
            return {"type": "error", "error": {"type": kind, "message": message}}
        case _:
            said = {"message": message, "status": "UNAVAILABLE" if overloaded else None}
            return {"error": said | {"code": 503 if overloaded else None}}


def http(status: int, body: bytes, *headers: str, length: int | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"content-length: {len(body) if length is None else length}"]
    return "\r\n".join([*lines, *headers, "", ""]).encode() + body


EVENTS: Final = "content-type: text/event-stream"
JSON: Final = "content-type: application/json"
DONE: Final = b"data: [DONE]\n\n"


def answered(wire: str, *, stream: bool, text: str = GOOD) -> tuple[bytes, str]:
    """A good answer's body, and its type."""
    if not stream:
        return json.dumps(whole(wire, text)).encode(), JSON
    done = DONE if wire == "openai" else b""
    return sse(wire, begun(wire) + ended(wire)) + done, EVENTS


# ---------------------------------------------------------------- what a provider does


class Asked(NamedTuple):
    wire: str
    stream: bool
    connection: Connection

    def body(self) -> tuple[bytes, str]:
        return answered(self.wire, stream=self.stream)

    def beginning(self) -> bytes:
        """Of a body that breaks off after it: within the second half of an object."""
        if self.stream:
            return sse(self.wire, begun(self.wire)) + b'data: {"cho'
        return self.body()[0][:-30]


HTML: Final = b"<!DOCTYPE html><html><body><h1>Bad gateway</h1></body></html>"
BOMB: Final = gzip.compress(bytes(100 * 1024 * 1024), 9)
DEEP: Final = b"[" * 100_000 + b"]" * 100_000


def deep(asked: Asked) -> bytes:
    """Within an answer's own text, where it is looked at, rather than beside it."""
    bodies = {
        "openai": b'{"choices":[{"index":0,"message":{"role":"assistant","content":%b}}]}',
        "anthropic": b'{"type":"message","role":"assistant","content":[{"type":"text","text":%b}]}',
        "gemini": b'{"candidates":[{"content":{"parts":[{"text":%b}]}}]}',
    }
    body = bodies[asked.wire] % DEEP
    return http(200, b"data: %b\n\n" % body, EVENTS) if asked.stream else http(200, body, JSON)


def in_200(asked: Asked, message: str = "at capacity") -> bytes:
    object_ = error(asked.wire, message)
    if asked.stream:
        return http(200, sse(asked.wire, [object_]), EVENTS)
    return http(200, json.dumps(object_).encode(), JSON)


def after_content(asked: Asked) -> bytes:
    events = [*begun(asked.wire), error(asked.wire, f"at capacity for {KEY}")]
    return http(200, sse(asked.wire, events), EVENTS)


def longer(asked: Asked) -> bytes:
    body = asked.beginning()
    return http(200, body, asked.body()[1], length=len(body) + 1000)


def shorter(asked: Asked) -> bytes:
    body, kind = asked.body()
    return http(200, body, kind, length=len(asked.beginning()))


def chunked(asked: Asked) -> bytes:
    body = asked.beginning()
    head = f"HTTP/1.1 200 OK\r\n{asked.body()[1]}\r\ntransfer-encoding: chunked\r\n\r\n"
    return head.encode() + b"%x\r\n%b\r\n400\r\n{" % (len(body), body)


def quoting(asked: Asked, status: int, message: str) -> bytes:
    body = error(asked.wire, message, code="refused", param=KEY)
    return http(
        status, json.dumps(body).encode(), JSON, f"x-your-key: {KEY}", f"retry-after: {KEY}"
    )


BYTES: Final[dict[str, Callable[[Asked], bytes]]] = {
    "html-200": lambda _: http(200, HTML, "content-type: text/html"),
    "html-502": lambda _: http(502, HTML, "content-type: text/html"),
    "half": lambda asked: http(200, asked.beginning(), asked.body()[1]),
    "empty": lambda asked: http(200, b"", asked.body()[1]),
    "bomb": lambda asked: http(200, BOMB, asked.body()[1], "content-encoding: gzip"),
    "bomb-502": lambda _: http(502, BOMB, JSON, "content-encoding: gzip"),
    "not-gzip": lambda asked: http(200, asked.body()[0], JSON, "content-encoding: gzip"),
    "longer": longer,
    "shorter": shorter,
    "chunked-cut": chunked,
    "error-in-200": in_200,
    "key-in-200": lambda asked: in_200(asked, f"no capacity for {KEY}"),
    "error-after-content": after_content,
    "array-arguments": lambda asked: http(200, json.dumps(calling(asked.wire)).encode(), JSON),
    "deep": deep,
    "deep-alone": lambda asked: http(200, b"data: " * asked.stream + DEEP + b"\n\n", JSON),
    "deep-502": lambda _: http(502, DEEP, JSON),
    "401-quotes": lambda asked: quoting(asked, 401, f"{KEY} is not a key"),
    "400-quotes": lambda asked: quoting(asked, 400, f"asked with {KEY}"),
    "400-quotes-late": lambda asked: quoting(asked, 400, "x" * (1000 - len(KEY_PART)) + KEY),
    "400-quotes-later": lambda asked: quoting(asked, 400, "x" * (2000 - len(KEY_PART)) + KEY),
    "headers-1mb": lambda asked: http(200, asked.body()[0], JSON, *["x-a: " + "a" * 1000] * 1000),
    "header-1mb": lambda asked: http(200, asked.body()[0], JSON, "x-a: " + "a" * 1_000_000),
    "not-http": lambda _: b"\x00\xff\x15\x03\x01 220 mail.example ESMTP\r\n\r\n" * 10,
    "cut-400": lambda _: http(400, b'{"error":', JSON, length=500),
}


async def trickle(asked: Asked) -> None:
    body, kind = asked.body()
    asked.connection.send(http(200, b"", kind, length=len(body)))
    for byte in body:
        asked.connection.send(bytes([byte]))
        await asked.connection.writer.drain()
        await asyncio.sleep(1)


async def endless(asked: Asked) -> None:
    """One line, or one string, that never ends."""
    asked.connection.send(f"HTTP/1.1 200 OK\r\n{asked.body()[1]}\r\n\r\n".encode())
    asked.connection.send(b'data: {"a":"' if asked.stream else b'{"a":"')
    piece = b"a" * 65536
    while True:
        asked.connection.send(piece)
        await asked.connection.writer.drain()


async def linger(asked: Asked) -> None:
    """A good answer, and the connection stays open without a word on where its body ends."""
    body, kind = asked.body()
    asked.connection.send(f"HTTP/1.1 200 OK\r\n{kind}\r\n\r\n".encode() + body)
    await asked.connection.gone()


async def reset(asked: Asked) -> None:
    sock = asked.connection.writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    asked.connection.writer.transport.abort()
    await asyncio.sleep(0)


TASKS: Final[dict[str, Callable[[Asked], Awaitable[None]]]] = {
    "trickle": trickle,
    "endless": endless,
    "linger": linger,
    "reset": reset,
}


async def provider(connection: Connection) -> None:
    while True:
        head, body = await connection.request()
        wire, path = head.split(b" ")[1].decode().lstrip("/").split("/", 1)
        if wire == "gemini":
            model, _, verb = path.split("?")[0].rpartition("/")[2].partition(":")
            stream = verb == "streamGenerateContent"
        else:
            fields = json.loads(body)
            model, stream = fields["model"], fields.get("stream", False)
        asked = Asked(wire, stream, connection)
        if model in TASKS:
            await TASKS[model](asked)
            return
        if model in BYTES:
            connection.send(BYTES[model](asked))
            await connection.writer.drain()
            return
        good = http(200, *asked.body())
        if model == "two-answers":
            good += http(200, *answered(wire, stream=stream, text=EVIL))
        connection.send(good)


@contextmanager
def serving() -> Iterator[int]:
    """The provider's port, from a thread of its own."""
    loop = asyncio.new_event_loop()
    server = Server(provider)

    async def start() -> asyncio.Server:
        return await asyncio.start_server(server._serve, "127.0.0.1", 0, limit=1 << 24)

    async def stop(listener: asyncio.Server) -> None:
        listener.close()
        await server.stop_scripts()

    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    listener = asyncio.run_coroutine_threadsafe(start(), loop).result(PATIENCE_S)
    try:
        yield listener.sockets[0].getsockname()[1]
    finally:
        asyncio.run_coroutine_threadsafe(stop(listener), loop).result(PATIENCE_S)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(PATIENCE_S)
        loop.close()


# ---------------------------------------------------------------- the gateway and its callers


@pytest.fixture(scope="module")
def served(workplace: Path) -> Iterator[Gateway]:
    with serving() as port:
        lines = ["providers:"]
        for wire, path in WIRES.items():
            url = f"http://127.0.0.1:{port}/{wire}{path}"
            lines.append(
                f'  h-{wire}: {{wire: {wire}, base_url: "{url}", api_key: env:TEST_HOSTILE}}'
            )
        lines.append("models:")
        for wire in WIRES:
            lines += [
                f"  {wire}/*:",
                f"    deployments: [{{model: h-{wire}/*}}]",
                "    retry: {attempts: 1}",
                "    breaker: {consecutive: 100000, min_requests: 100000}",
            ]
        process = Gateway(
            workplace / "hostile-provider",
            config="\n".join(lines) + "\n",
            env=environment(TEST_HOSTILE=KEY),
        )
        yield process
        process.end()
    assert KEY_PART not in process.stderr
    assert KEY_PART not in process.stdout


@pytest.fixture(scope="module")
def caller(served: Gateway) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.root_url, trust_env=False, timeout=PATIENCE_S) as client:
        yield client


def ask(
    caller: httpx.Client, api: str, model: str, *, stream: bool, **patience: str
) -> httpx.Response:
    """An answer in which the key is nowhere."""
    headers = {"breakwater-timeout": "20s"}
    headers |= {f"breakwater-{name.replace('_', '-')}": value for name, value in patience.items()}
    asked: dict[str, Any] = {"model": model, "stream": stream}
    messages = [{"role": "user", "content": "Hello"}]
    match api:
        case "chat":
            path, body = "/v1/chat/completions", asked | {"messages": messages}
        case "messages":
            path, body = "/v1/messages", asked | {"messages": messages, "max_tokens": 50}
        case "responses":
            path, body = "/v1/responses", asked | {"input": "Hello"}
        case _:
            verb = "streamGenerateContent?alt=sse" if stream else "generateContent"
            path = f"/v1beta/models/{model}:{verb}"
            body = {"contents": [{"role": "user", "parts": [{"text": "Hello"}]}]}
    answer = caller.post(path, json=body, headers=headers)
    assert KEY_PART not in answer.text
    assert KEY_PART not in str(answer.headers.raw)
    return answer


def assert_typed(answer: httpx.Response, api: str, status: int, code: str) -> None:
    """One failure, whole, as that dialect writes it."""
    assert answer.status_code == status, answer.text[:2000]
    assert answer.headers["content-type"].startswith("application/json")
    assert answer.headers["x-should-retry"] in {"true", "false"}
    said = answer.json()
    failure = said["error"]
    match api:
        case "messages":
            types = {400: "invalid_request_error", 502: "api_error"}
            types |= {503: "overloaded_error", 504: "timeout_error"}
            assert said["type"] == "error"
            assert failure["type"] == types[status]
        case "generate":
            names = {400: "INVALID_ARGUMENT", 502: "INTERNAL"}
            names |= {503: "UNAVAILABLE", 504: "DEADLINE_EXCEEDED"}
            assert failure["code"] == status
            assert failure["status"] == names[status]
        case _:
            assert set(failure) == {"message", "type", "param", "code"}
            assert failure["code"] == code
    assert 0 < len(failure["message"]) < 2500


def assert_partial(answer: httpx.Response, api: str) -> None:
    """What came before, then an error and no word that would make it look whole."""
    assert answer.status_code == 200, answer.text[:2000]
    text = answer.text
    assert GOOD in text
    last = text.rstrip("\n").rpartition("\n")[2]
    said = json.loads(last.removeprefix("data: "))
    message = said["message"] if api == "responses" else said["error"]["message"]
    assert "partial" in message
    assert api == "generate" or "breakwater-partial=" in text
    assert not re.search(r"\[DONE\]|message_stop|response\.completed|\"STOP\"|\"stop\"", text)


def assert_good(answer: httpx.Response, api: str, *, stream: bool) -> None:
    assert answer.status_code == 200, answer.text[:2000]
    assert GOOD in answer.text
    assert EVIL not in answer.text
    assert '"error":{' not in answer.text
    if stream:
        last_words = {"chat": "[DONE]", "messages": "message_stop", "generate": "STOP"}
        assert last_words.get(api, "response.completed") in answer.text


PARTIAL: Final = (200, "partial")
BAD: Final = (502, "bad_gateway")
LATE: Final = (504, "timeout")
BUSY: Final = (503, "overloaded")
REFUSED: Final = (400, "invalid_request")

EXPECTED: Final[dict[str, tuple[tuple[int, str] | None, tuple[int, str] | None]]] = {
    "html-200": (BAD, BAD),
    "html-502": (BAD, BAD),
    "half": (BAD, PARTIAL),
    "empty": (BAD, BAD),
    "bomb-502": (BAD, BAD),
    "not-gzip": (BAD, BAD),
    "longer": (BAD, PARTIAL),
    "shorter": (BAD, PARTIAL),
    "chunked-cut": (BAD, PARTIAL),
    "error-in-200": (BUSY, BUSY),
    "key-in-200": (BUSY, BUSY),
    "error-after-content": (None, PARTIAL),
    "array-arguments": ((502, "malformed_tool_call"), None),
    "deep": (BAD, BAD),
    "deep-alone": (BAD, BAD),
    "deep-502": (BAD, BAD),
    "401-quotes": (BAD, BAD),
    "400-quotes": (REFUSED, REFUSED),
    "400-quotes-late": (REFUSED, REFUSED),
    "400-quotes-later": (REFUSED, REFUSED),
    "headers-1mb": (BAD, BAD),
    "header-1mb": (BAD, BAD),
    "not-http": (BAD, BAD),
    "cut-400": (REFUSED, REFUSED),
    "reset": (BAD, BAD),
}
"""Whole and streamed; None where there is no such thing."""

CASES: Final = [
    pytest.param(mode, stream, *case, id=f"{mode}-{'streamed' if stream else 'whole'}")
    for mode, cases in EXPECTED.items()
    for stream, case in zip((False, True), cases, strict=True)
    if case is not None
]
pairs = pytest.mark.parametrize(("api", "wire"), PAIRS, ids=[f"{a}-{w}" for a, w in PAIRS])
streamed = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])


@pairs
@pytest.mark.parametrize(("mode", "stream", "status", "code"), CASES)
def test_each_hostile_answer_is_one_typed_failure_and_the_next_is_served(
    caller: httpx.Client, api: str, wire: str, mode: str, stream: bool, status: int, code: str
) -> None:
    began = time.monotonic()
    answer = ask(caller, api, f"{wire}/{mode}", stream=stream)
    if code == "partial":
        assert_partial(answer, api)
    else:
        assert_typed(answer, api, status, code)
    assert time.monotonic() - began < BOUND_S
    assert_good(ask(caller, api, f"{wire}/good", stream=stream), api, stream=stream)


@pairs
@streamed
def test_a_second_answer_on_a_connection_answers_nobody(
    caller: httpx.Client, api: str, wire: str, stream: bool
) -> None:
    for mode in ("two-answers", "good", "two-answers", "good"):
        answer = ask(caller, api, f"{wire}/{mode}", stream=stream)
        assert_good(answer, api, stream=stream)


@pairs
@streamed
def test_a_byte_a_second_ends_at_the_callers_deadline(
    caller: httpx.Client, api: str, wire: str, stream: bool
) -> None:
    patience = {"ttft_timeout": "150ms"} if stream else {"timeout": "150ms"}
    answer = ask(caller, api, f"{wire}/trickle", stream=stream, **patience)
    assert_typed(answer, api, *LATE)
    assert_good(ask(caller, api, f"{wire}/good", stream=stream), api, stream=stream)


@pytest.mark.parametrize(("api", "wire"), [(api, wire) for api, wire in PAIRS if wire != "gemini"])
def test_a_stream_ends_with_its_last_word_and_not_with_its_connection(
    caller: httpx.Client, api: str, wire: str
) -> None:
    answer = ask(caller, api, f"{wire}/linger", stream=True, timeout="2s")
    assert_good(answer, api, stream=True)
    assert answer.elapsed.total_seconds() < 2


def peak_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


@needs_proc
@streamed
@pytest.mark.parametrize("mode", ["bomb", "endless"])
def test_what_never_ends_is_refused_before_it_fills_the_memory(
    served: Gateway, caller: httpx.Client, mode: str, stream: bool
) -> None:
    before = peak_kib(served.pid)
    for api, wire in PAIRS:
        began = time.monotonic()
        assert_typed(ask(caller, api, f"{wire}/{mode}", stream=stream), api, *BAD)
        assert time.monotonic() - began < BOUND_S
        assert_good(ask(caller, api, f"{wire}/good", stream=stream), api, stream=stream)
    assert peak_kib(served.pid) - before < GROWTH_MAX_KIB
