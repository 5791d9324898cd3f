"""From an origin to a connection: addresses, the race among them, proxies, TLS, ALPN."""

import asyncio
import base64
import errno
import ipaddress
import re
import socket
import ssl
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import certifi
import httpx

from breakwater_gateway.worker.http.errors import ConnectFailed, ConnectKind
from breakwater_gateway.worker.http.http1 import Http1Connection
from breakwater_gateway.worker.http.http2 import Http2Connection
from breakwater_gateway.worker.http.pool import Connection, Pool
from breakwater_gateway.worker.http.prepared import unquoted

RACE_DELAY_S: Final = 0.25
"""RFC 8305, 5: the connection attempt delay."""
ADDRESSES_MAX: Final = 8
PROXY_HEAD_BYTES_MAX: Final = 16 * 1024

Address = tuple[int, tuple[object, ...]]


class Proxy:
    """An HTTP proxy reached over plain TCP: CONNECT for https, absolute request lines for http."""

    __slots__ = ("authorization", "host", "port")

    def __init__(self, url: str) -> None:
        """Raises ValueError for anything but an http:// URL."""
        try:
            parsed = httpx.URL(url if "://" in url else f"http://{url}")
        except httpx.InvalidURL as error:
            raise ValueError(f"the proxy is not a URL: {error}") from error
        if parsed.scheme != "http" or not parsed.host:
            raise ValueError(f"proxies are spoken to over http://, not {parsed.scheme}://")
        self.host = parsed.raw_host.decode("ascii").strip("[]")
        self.port = parsed.port or 80
        self.authorization = b""
        if parsed.userinfo:
            user, _, password = parsed.userinfo.partition(b":")
            token = base64.b64encode(b"%b:%b" % (unquoted(user), unquoted(password)))
            self.authorization = b"proxy-authorization: Basic %b\r\n" % token


class Proxies:
    """Which origins go through which proxy: HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        """`variables`: by scheme (`http`, `https`, `all`, `no`). Raises ValueError."""
        self._no = variables.get("no", "")
        self._by_scheme = {
            scheme: Proxy(url)
            for scheme in ("http", "https")
            if (url := variables.get(scheme) or variables.get("all"))
        }

    @classmethod
    def from_environment(cls) -> "Proxies":
        return cls(urllib.request.getproxies_environment())

    def of(self, scheme: str, host: str, port: int) -> Proxy | None:
        proxy = self._by_scheme.get(scheme)
        if proxy is None or self._excepted(host, port):
            return None
        return proxy

    def _excepted(self, host: str, port: int) -> bool:
        for raw in self._no.split(","):
            entry = raw.strip().lower()
            if entry == "*" or (entry and _matches(entry, host.lower(), port)):
                return True
        return False


def _matches(entry: str, host: str, port: int) -> bool:
    """One NO_PROXY entry: a name and all below it, an address, a network; perhaps with a port."""
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry.strip("[]"), strict=False)
    except ValueError:
        name, colon, wanted = entry.rpartition(":")
        if colon and wanted.isdigit():
            if int(wanted) != port:
                return False
            entry = name.strip("[]")
        entry = entry.lstrip("*").lstrip(".")
        return host == entry or host.endswith(f".{entry}")


class Dialler:
    """Makes connections for pools. One for a client: it holds the TLS contexts and the proxies."""

    def __init__(self, *, verify: bool | str, proxies: Proxies) -> None:
        """`verify`: True for the system's authorities, else a file or directory of them; False trusts
        anybody."""
        self.proxies = proxies
        self._verify = verify
        self._contexts: dict[bool, ssl.SSLContext] = {}

    def context(self, *, http2: bool) -> ssl.SSLContext:
        """Made on first use, which reads the authorities' file (some 10 ms)."""
        context = self._contexts.get(http2)
        if context is None:
            context = _context(self._verify)
            context.set_alpn_protocols(["h2", "http/1.1"] if http2 else ["http/1.1"])
            self._contexts[http2] = context
        return context

    async def dial(self, pool: Pool, timeout_s: float | None) -> Connection:
        """Raises ConnectFailed."""
        where, loop = pool.origin, asyncio.get_running_loop()
        began = loop.time()
        try:
            async with asyncio.timeout(timeout_s):
                return await self._dial(pool)
        except TimeoutError as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise ConnectFailed("tcp", f"{where}: {error.strerror}") from error
            late_s = loop.time() - began - (timeout_s or 0.0)
            message = f"{where}: no connection in {timeout_s} s"
            raise ConnectFailed("timeout", message, late_s=late_s) from error

    async def _dial(self, pool: Pool) -> Connection:
        proxy = self.proxies.of(pool.scheme, pool.host, pool.port)
        host, port = (pool.host, pool.port) if proxy is None else (proxy.host, proxy.port)
        sock = await _connected(host, port)
        try:
            if proxy is not None and pool.scheme == "https":
                try:
                    await _tunnel(sock, pool, proxy)
                except OSError as error:
                    name = f"{proxy.host}:{proxy.port}"
                    raise ConnectFailed("proxy", f"{name}: {_reason(error)}") from error
            return await self._upgraded(sock, pool)
        except BaseException:
            sock.close()
            raise

    async def _upgraded(self, sock: socket.socket, pool: Pool) -> Connection:
        """A connection over what has reached the origin (or a proxy that speaks for it)."""
        loop = asyncio.get_running_loop()
        where = pool.origin
        plain = pool.scheme == "http"
        kind: ConnectKind = "tcp" if plain else "tls"
        connection: Connection | None
        try:
            if plain:
                transport, connection = await loop.create_connection(
                    lambda: Http1Connection(pool), sock=sock
                )
            else:
                transport, first = await loop.create_connection(
                    lambda: _Negotiated(pool),
                    sock=sock,
                    ssl=self.context(http2=pool.http2),
                    server_hostname=pool.host,
                )
                connection = first.chosen
        except ssl.SSLCertVerificationError as error:
            raise ConnectFailed(kind, f"{where}: {error.verify_message}") from error
        except ssl.SSLError as error:
            raise ConnectFailed(kind, f"{where}: {error.reason or error}") from error
        except ConnectionError as error:
            raise ConnectFailed(kind, f"{where}: {_reason(error)}") from error
        if connection is None or connection.closed:
            transport.abort()
            raise ConnectFailed(kind, f"{where} closed the connection at once")
        return connection


class _Negotiated(asyncio.Protocol):
    """Stands in until the TLS handshake has told which protocol it is."""

    def __init__(self, pool: Pool) -> None:
        self.chosen: Connection | None = None
        self._pool = pool

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        tls: ssl.SSLObject = transport.get_extra_info("ssl_object")
        chosen: Connection = (
            Http2Connection(self._pool)
            if tls.selected_alpn_protocol() == "h2"
            else Http1Connection(self._pool)
        )
        self.chosen = chosen
        transport.set_protocol(chosen)
        chosen.connection_made(transport)


def _context(verify: bool | str) -> ssl.SSLContext:
    if isinstance(verify, str):
        if Path(verify).is_dir():
            return ssl.create_default_context(capath=verify)
        return ssl.create_default_context(cafile=verify)
    if not verify:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    paths = ssl.get_default_verify_paths()
    # A slim image has no authorities of its own.
    own = paths.cafile is not None or (
        paths.capath is not None and any(Path(paths.capath).iterdir())
    )
    return ssl.create_default_context(cafile=None if own else certifi.where())


async def _connected(host: str, port: int) -> socket.socket:
    """A TCP connection to the first address that answers, families taking turns (RFC 8305)."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        raise ConnectFailed("dns", f"{host}: {error}") from error
    addresses = _in_turns([(family, address) for family, _, _, _, address in found])
    if not addresses:
        raise ConnectFailed("dns", f"{host} has no address")
    if len(addresses) == 1:
        try:
            return await _reach(addresses[0])
        except OSError as error:
            raise ConnectFailed("tcp", f"{host}:{port}: {_reason(error)}") from error
    return await _race(addresses, f"{host}:{port}")


def _in_turns(addresses: Sequence[Address]) -> list[Address]:
    """RFC 8305, 4: the resolver's order, alternating between families."""
    first = [address for address in addresses if address[0] == addresses[0][0]]
    other = [address for address in addresses if address[0] != addresses[0][0]]
    turns: list[Address] = []
    while first or other:
        if first:
            turns.append(first.pop(0))
        if other:
            turns.append(other.pop(0))
    return turns[:ADDRESSES_MAX]


async def _reach(address: Address) -> socket.socket:
    family, where = address
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        await asyncio.get_running_loop().sock_connect(sock, where)
    except BaseException:
        sock.close()
        raise
    return sock


async def _race(addresses: Sequence[Address], where: str) -> socket.socket:
    """Each next address is tried when the one before has failed or kept silent for RACE_DELAY_S."""
    waiting = list(addresses)
    running: set[asyncio.Task[socket.socket]] = set()
    last: OSError | None = None
    try:
        while waiting or running:
            if waiting:
                running.add(asyncio.create_task(_reach(waiting.pop(0))))
            done, running = await asyncio.wait(
                running,
                timeout=RACE_DELAY_S if waiting else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            won: socket.socket | None = None
            for task in done:
                error = task.exception()
                if error is None:
                    if won is None:
                        won = task.result()
                    else:
                        task.result().close()
                elif isinstance(error, OSError):
                    last = error
                else:
                    raise error
            if won is not None:
                return won
    finally:
        for task in running:
            task.cancel()
            task.add_done_callback(_close_late_winner)
    raise ConnectFailed("tcp", f"{where}: {_reason(last)}") from last


def _close_late_winner(task: "asyncio.Task[socket.socket]") -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().close()


def _reason(error: OSError | None) -> str:
    if error is None:
        return "no address answered"
    return error.strerror or errno.errorcode.get(error.errno or 0, type(error).__name__)


async def _tunnel(sock: socket.socket, pool: Pool, proxy: Proxy) -> None:
    """CONNECT (RFC 9110, 9.3.6) on a socket nobody reads yet. Raises ConnectFailed, OSError."""
    loop = asyncio.get_running_loop()
    host = f"[{pool.host}]" if ":" in pool.host else pool.host
    authority = f"{host}:{pool.port}".encode("ascii")
    await loop.sock_sendall(
        sock,
        b"CONNECT %b HTTP/1.1\r\nhost: %b\r\n%b\r\n" % (authority, authority, proxy.authorization),
    )
    head = bytearray()
    while b"\r\n\r\n" not in head:
        data = await loop.sock_recv(sock, 4096)
        head += data
        if not data or len(head) > PROXY_HEAD_BYTES_MAX:
            raise ConnectFailed("proxy", f"{proxy.host}:{proxy.port} gave no proper answer")
    found = re.match(rb"HTTP/1\.[01] (\d{3})[ \r]", head)
    if found is None:
        raise ConnectFailed("proxy", f"{proxy.host}:{proxy.port} does not speak HTTP")
    if not found[1].startswith(b"2"):
        raise ConnectFailed(
            "proxy", f"{proxy.host}:{proxy.port} refused with {found[1].decode('ascii')}"
        )
    # TLS's client speaks first: nothing may follow the head.
    if not head.endswith(b"\r\n\r\n") or head.index(b"\r\n\r\n") != len(head) - 4:
        raise ConnectFailed("proxy", f"{proxy.host}:{proxy.port} sent more than its answer")
