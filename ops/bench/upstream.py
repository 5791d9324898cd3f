"""A provider that costs next to nothing: pre-rendered OpenAI answers on httptools and uvloop.

`python -m ops.bench.upstream --port P… [--interval-ms 20]` listens on each port of 127.0.0.1. A body
with `"stream": true` gets `max_tokens` chunks, one every interval, each with a stamp of when it was
written; any other body gets one answer of about 1 KB.
"""

import asyncio
import re
import signal
import time
from typing import Final, cast

import click
import httptools
import uvloop
from ops.bench.wire import MODEL, stamp

_STREAM: Final = re.compile(rb'"stream":\s*true')
_TOKENS: Final = re.compile(rb'"max_tokens":\s*(\d{1,6})')

_TEXT = "Part 40-B on shelf 12 fits it; bring the opened wrench and the receipt to the counter. "
_ANSWER = (
    b'{"id":"chatcmpl-bench","object":"chat.completion","created":1700000000,"model":"%s",'
    b'"choices":[{"index":0,"message":{"role":"assistant","content":"%s","refusal":null},'
    b'"logprobs":null,"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":400,"completion_tokens":180,"total_tokens":580}}'
) % (MODEL.encode(), (_TEXT * 8).encode())


def _plain(status: bytes, payload: bytes) -> bytes:
    head = b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % (status, len(payload)) + payload


ANSWER: Final = _plain(b"200 OK", _ANSWER)
MODELS: Final = _plain(
    b"200 OK", b'{"object":"list","data":[{"id":"%s","object":"model"}]}' % MODEL.encode()
)

_CHUNK = (
    b'data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1700000000,'
    b'"model":"%s","choices":[{"index":0,"delta":{%s"content":" ' % (MODEL.encode(), b"%s")
)
_CHUNK_END = b'"},"finish_reason":null}]}\n\n'
_STREAM_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)


def _framed(payload: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(payload), payload)


_BLANK = stamp(0)
_FIRST, _FIRST_END = _framed(_CHUNK % b'"role":"assistant",' + _BLANK + _CHUNK_END).split(_BLANK)
_NEXT, _NEXT_END = _framed(_CHUNK % b"" + _BLANK + _CHUNK_END).split(_BLANK)
_LAST: Final = _framed(
    b'data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1700000000,'
    b'"model":"%s","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    b'data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1700000000,'
    b'"model":"%s","choices":[],"usage":{"prompt_tokens":400,"completion_tokens":64,'
    b'"total_tokens":464}}\n\ndata: [DONE]\n\n' % (MODEL.encode(), MODEL.encode())
) + _framed(b"")


class Provider(asyncio.Protocol):
    """One connection of a caller."""

    def __init__(self, loop: asyncio.AbstractEventLoop, interval_s: float) -> None:
        self._loop = loop
        self._interval_s = interval_s
        self._parser = httptools.HttpRequestParser(self)
        self._body: list[bytes] = []
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast: uvloop's transports do not inherit from asyncio's.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's name
        if self._timer is not None:
            self._timer.cancel()

    def on_body(self, data: bytes) -> None:
        self._body.append(data)

    def on_message_complete(self) -> None:
        body = b"".join(self._body)
        self._body.clear()
        if self._parser.get_method() == b"GET":
            self._transport.write(MODELS)
        elif _STREAM.search(body) is None:
            self._transport.write(ANSWER)
        else:
            found = _TOKENS.search(body)
            self._left = max(1, int(found.group(1))) if found else 64
            self._due = self._loop.time()
            first = b"".join((_STREAM_HEAD, _FIRST, stamp(time.monotonic_ns()), _FIRST_END))
            self._transport.write(first)
            self._wait()

    def _wait(self) -> None:
        self._left -= 1
        if not self._left:
            self._timer = None
            self._transport.write(_LAST)
            return
        # From the first chunk on, so that timer granularity does not slow the stream down.
        self._due += self._interval_s
        self._timer = self._loop.call_at(self._due, self._chunk)

    def _chunk(self) -> None:
        self._transport.write(b"".join((_NEXT, stamp(time.monotonic_ns()), _NEXT_END)))
        self._wait()


async def serve(ports: tuple[int, ...], interval_s: float) -> None:
    """Until SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    servers = [
        await loop.create_server(
            lambda: Provider(loop, interval_s), "127.0.0.1", port, backlog=4096
        )
        for port in ports
    ]
    await stop.wait()
    for server in servers:
        server.close()


@click.command()
@click.option("--port", "ports", type=int, multiple=True, required=True)
@click.option("--interval-ms", type=float, default=20.0, show_default=True)
def main(ports: tuple[int, ...], interval_ms: float) -> None:
    uvloop.run(serve(ports, interval_ms / 1000))


if __name__ == "__main__":
    main()
