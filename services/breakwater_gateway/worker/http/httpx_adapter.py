"""Both ways between httpx and our client: our core as an httpx transport, any httpx transport as a
client for the worker."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from typing import Final

import httpx

from breakwater_gateway.worker.http.answer import Answer, WireAnswer
from breakwater_gateway.worker.http.client import (
    CONNECT_TIMEOUT_S,
    DECODED_BYTES_MAX,
    POOL_TIMEOUT_S,
    FastClient,
)
from breakwater_gateway.worker.http.errors import (
    ConnectFailed,
    ConnectKind,
    CutAnswer,
    HttpFailure,
    MalformedHttp,
    PoolTimeout,
    ReadFailed,
)
from breakwater_gateway.worker.http.pool import OriginStats
from breakwater_gateway.worker.http.prepared import Headers, Prepared, Target, rendered_header

_FRAMING: Final = frozenset({"host", "content-length", "transfer-encoding", "connection"})


class Transport(httpx.AsyncBaseTransport):
    """Our core under `httpx.AsyncClient`. Request bodies are read whole before they are sent."""

    def __init__(self, client: FastClient, *, http2: bool = False) -> None:
        """`client` is the caller's to close if it serves others too; else `aclose` does it."""
        self._client = client
        self._http2 = http2

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        timeouts: dict[str, float | None] = request.extensions.get("timeout", {})
        body = await request.aread()
        read_s = timeouts.get("read")
        try:
            prepared = self._client.prepare(
                request.method,
                request.url,
                [field for field in request.headers.multi_items() if field[0] not in _FRAMING],
                http2=self._http2,
            )
            async with asyncio.timeout(None) as limit:
                if read_s is not None:
                    limit.reschedule(
                        asyncio.get_running_loop().time()
                        + read_s
                        + (timeouts.get("connect") or 0.0)
                        + (timeouts.get("pool") or 0.0)
                    )
                # httpx undoes content codings itself.
                answer = await self._client.send_raw(
                    prepared,
                    body,
                    connect_timeout_s=timeouts.get("connect"),
                    pool_timeout_s=timeouts.get("pool"),
                )
        except ValueError as error:
            raise httpx.LocalProtocolError(str(error), request=request) from error
        except TimeoutError as error:
            raise httpx.ReadTimeout("no answer in time", request=request) from error
        except HttpFailure as error:
            raise _to_httpx(error, request) from error
        return httpx.Response(
            answer.status,
            headers=answer.raw_headers,
            stream=_Body(answer, request, read_s),
            extensions={
                "http_version": f"HTTP/{answer.http_version}".encode("ascii"),
                "retried": answer.retried,
            },
        )

    async def aclose(self) -> None:
        await self._client.close()


class _Body(httpx.AsyncByteStream):
    def __init__(self, answer: WireAnswer, request: httpx.Request, read_s: float | None) -> None:
        self._answer = answer
        self._request = request
        self._read_s = read_s

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            try:
                async with asyncio.timeout(self._read_s):
                    chunk = await self._answer.chunk()
            except TimeoutError as error:
                raise httpx.ReadTimeout("no data in time", request=self._request) from error
            except HttpFailure as error:
                raise _to_httpx(error, self._request) from error
            if chunk is None:
                return
            yield chunk

    async def aclose(self) -> None:
        self._answer.close()


def _to_httpx(error: HttpFailure, request: httpx.Request) -> httpx.TransportError:
    message = str(error)
    match error:
        case ConnectFailed(kind="timeout"):
            return httpx.ConnectTimeout(message, request=request)
        case ConnectFailed(kind="proxy"):
            return httpx.ProxyError(message, request=request)
        case ConnectFailed():
            return httpx.ConnectError(message, request=request)
        case PoolTimeout():
            return httpx.PoolTimeout(message, request=request)
        case CutAnswer() | MalformedHttp():
            return httpx.RemoteProtocolError(message, request=request)
        case _:
            return httpx.ReadError(message, request=request)


class HttpxClient:
    """The worker's client over any httpx transport: MockTransport in tests, httpx's default by
    configuration. Pooling, proxies and HTTP/2 are the transport's affair."""

    def __init__(
        self,
        transport: httpx.AsyncBaseTransport,
        *,
        decoded_bytes_max: int = DECODED_BYTES_MAX,
    ) -> None:
        self._transport = transport
        self._decoded_bytes_max = decoded_bytes_max
        self._closing: set[asyncio.Task[None]] = set()

    def prepare(
        self,
        method: str,
        url: str,
        headers: Headers = (),
        *,
        http2: bool = True,  # noqa: ARG002 - the transport's affair
    ) -> Prepared:
        return Prepared(method=method, target=Target(url), headers=headers, pool=None)

    async def send(
        self,
        prepared: Prepared,
        body: bytes = b"",
        *,
        headers: Headers = (),
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        pool_timeout_s: float = POOL_TIMEOUT_S,
    ) -> Answer:
        timeout = httpx.Timeout(None, connect=connect_timeout_s, pool=pool_timeout_s)
        request = httpx.Request(
            prepared.method,
            prepared.target.url,
            headers=[
                *prepared.fields,
                *(rendered_header(name, value) for name, value in headers),
            ],
            content=body if body or prepared.sends_length else None,
            extensions={"timeout": timeout.as_dict()},
        )
        with _failures():
            response = await self._transport.handle_async_request(request)
        answer = _HttpxAnswer(response, self._closing)
        try:
            answer.decode_with_limit(self._decoded_bytes_max)
        except HttpFailure:
            answer.close()
            raise
        return answer

    def stats(self) -> list[OriginStats]:
        """Unknown to httpx's transports."""
        return []

    async def close(self) -> None:
        if self._closing:
            await asyncio.wait(self._closing)
        await self._transport.aclose()


class _HttpxAnswer(Answer):
    __slots__ = ("_closed", "_closing", "_done", "_pieces", "_stream")

    def __init__(self, response: httpx.Response, closing: set[asyncio.Task[None]]) -> None:
        super().__init__()
        self.status = response.status_code
        version = response.extensions.get("http_version", b"HTTP/1.1")
        self.http_version = version.decode("ascii").removeprefix("HTTP/")
        self.raw_headers = list(response.headers.raw)
        self._closing = closing
        stream = response.stream
        if not isinstance(stream, httpx.AsyncByteStream):
            raise TypeError("the transport gave a response that cannot be read asynchronously")
        self._stream = stream
        self._pieces = aiter(stream)
        self._done = False
        self._closed = False

    @property
    def buffered(self) -> int:
        """httpx does not tell."""
        return 0

    @property
    def ended(self) -> bool:
        return self._done

    def close(self) -> None:
        """httpx closes asynchronously: the client's `close` waits for it."""
        if not self._closed:
            self._closed = True
            task = asyncio.ensure_future(self._release())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def _raw_chunk(self) -> bytes | None:
        if self._done:
            return None
        if self._closed:
            raise ReadFailed("the answer was closed before its end")
        try:
            with _failures():
                while True:
                    piece = await anext(self._pieces, None)
                    if piece is None:
                        self._done = True
                        return None
                    if piece:
                        return piece
        except BaseException:
            self.close()
            raise

    async def _release(self) -> None:
        with contextlib.suppress(httpx.TransportError):  # it is being given up anyway
            await self._stream.aclose()


@contextlib.contextmanager
def _failures() -> Iterator[None]:
    """httpx's exceptions as ours."""
    try:
        yield
    except httpx.ConnectTimeout as error:
        raise ConnectFailed("timeout", str(error)) from error
    except httpx.PoolTimeout as error:
        raise PoolTimeout(str(error)) from error
    except httpx.ProxyError as error:
        raise ConnectFailed("proxy", str(error)) from error
    except httpx.ConnectError as error:
        raise ConnectFailed(_kind(error), str(error)) from error
    except httpx.RemoteProtocolError as error:
        # httpx gives no kind, only h11's words, for an early end.
        if "closed connection" in str(error) or "disconnected" in str(error):
            raise CutAnswer("stream", str(error)) from error
        raise MalformedHttp(str(error)) from error
    except httpx.TransportError as error:
        raise ReadFailed(str(error) or type(error).__name__) from error


def _kind(error: BaseException) -> ConnectKind:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, socket.gaierror):
            return "dns"
        if isinstance(cause, ssl.SSLError):
            return "tls"
        cause = cause.__cause__ or cause.__context__
    return "tcp"
