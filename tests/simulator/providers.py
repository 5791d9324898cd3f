"""Simulated providers, and how the gateway's own dialects talk to them: bases, keys, decoders."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import httpx
import msgspec
from msgspec import Struct
from tests.http.wire import KeptLog

from breakwater_gateway.config.model import Wire
from breakwater_gateway.simulator.script import Script
from breakwater_gateway.simulator.server import SimulatorServer
from breakwater_gateway.worker.wire import neutral as n
from breakwater_gateway.worker.wire.bedrock.sigv4 import Credentials, body_hash, sign
from breakwater_gateway.worker.wire.dialects import ProviderDialect, provider_dialect
from breakwater_protocol import failures as f
from breakwater_protocol.chat import Usage

PATIENCE_S: Final = 20
VERTEX: Final = "/sim/v1/projects/p/locations/global"


class Provider(Struct, frozen=True):
    """A simulated provider as the gateway would be configured for it."""

    name: str
    wire: Wire
    base: str
    headers: dict[str, str]
    quirks: dict[str, object] = {}

    @property
    def dialect(self) -> ProviderDialect:
        return provider_dialect(self.wire, self.name)

    def target(self, model: str = "m") -> n.Target:
        return n.Target(model, self.quirks)


_BEARER: Final = {"authorization": "Bearer sk-test"}
PROVIDERS: Final = {
    provider.name: provider
    for provider in (
        Provider("openai", "openai", "/sim/v1", _BEARER, {"provider": "openai"}),
        Provider("mistral", "mistral", "/mistral/v1", _BEARER, {"provider": "mistral"}),
        Provider("azure", "azure", "/sim/openai/v1", {"api-key": "sk-test"}, {"provider": "azure"}),
        Provider("responses", "responses", "/sim/v1", _BEARER),
        Provider("anthropic", "anthropic", "/sim/v1", {"x-api-key": "sk-test"}),
        Provider("vertex-claude", "anthropic", VERTEX, _BEARER, {"host": "vertex"}),
        Provider("gemini", "gemini", "/sim/v1beta", {"x-goog-api-key": "sk-test"}),
        Provider("vertex", "vertex", VERTEX, _BEARER, {"vertex": True}),
        Provider("bedrock", "bedrock", "/sim", {}),
        Provider("cohere", "cohere", "/sim", _BEARER),
        Provider("ollama", "ollama", "/sim", {}),
    )
}


class Client:
    def __init__(self, server: SimulatorServer, http: httpx.AsyncClient) -> None:
        self.server = server
        self.http = http

    async def script(self, *scripts: dict[str, object]) -> None:
        answer = await self.http.post("/__control/script", json=list(scripts))
        assert answer.status_code == 200, answer.text

    async def send(self, provider: Provider, call: n.Call) -> httpx.Response:
        """A call as the worker makes it."""
        url = httpx.URL(provider.base + call.path)
        headers = {**provider.headers, **dict(call.headers), "content-type": "application/json"}
        if provider.wire == "bedrock":
            headers |= signed(url, call.body)
        return await self.http.post(url, content=call.body, headers=headers)

    async def ask(self, provider: Provider, request: n.Request, model: str = "m") -> httpx.Response:
        target = provider.target(model)
        return await self.send(provider, provider.dialect.encode_request(request, target))

    async def post(
        self, path: str, body: object, headers: dict[str, str] | None = None
    ) -> httpx.Response:
        return await self.http.post(path, json=body, headers=headers)


def signed(url: httpx.URL, body: bytes, **changes: str) -> dict[str, str]:
    host = "bedrock-runtime.us-east-1.amazonaws.com"
    found = sign(
        Credentials("AKIDEXAMPLE", "secret"),
        method="POST",
        path=url.raw_path.decode(),
        headers=(("host", host),),
        body_sha256=body_hash(body),
        region="us-east-1",
        now=1_750_000_000,
    )
    return {**dict(found), "host": host, **changes}


@asynccontextmanager
async def simulator(*scripts: Script, seed: int = 0) -> AsyncIterator[Client]:
    server = SimulatorServer(log=KeptLog(), seed=seed)
    await server.start("127.0.0.1", 0)
    server.book.put(scripts, now=asyncio.get_running_loop().time())
    http = httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{server.port}", timeout=PATIENCE_S, trust_env=False
    )
    try:
        async with asyncio.timeout(PATIENCE_S):
            yield Client(server, http)
    finally:
        await http.aclose()
        await server.close()


class Heard(Struct):
    """What a stream or an answer came to."""

    text: str = ""
    thinking: str = ""
    calls: list[tuple[str, str]] = []
    """Names and arguments."""
    call_ids: list[str] = []
    finish: str = ""
    native: str = ""
    usage: Usage | None = None
    failure: f.Failure | None = None
    done: bool = False


def heard_stream(decoder: n.StreamDecoder, body: bytes, *, step: int = 0) -> Heard:
    """Everything that a decoder makes of a body, fed whole or in pieces of `step` bytes."""
    step = step or max(len(body), 1)
    events: list[n.StreamEvent] = []
    for at in range(0, len(body), step):
        events += decoder.feed(body[at : at + step])
    events += decoder.end()
    heard = Heard()
    parts: dict[tuple[int, int], n.Part] = {}
    for event in events:
        match event:
            case n.PartBegan():
                parts[event.candidate, event.index] = event.part
            case n.Grew():
                key = event.candidate, event.index
                parts[key] = _grown(parts[key], event.text)
            case n.Finished():
                heard.finish, heard.native = event.finish, event.native
            case n.UsageKnown():
                heard.usage = event.usage
            case n.Broke():
                heard.failure = event.failure
            case n.Done():
                heard.done = True
            case _:
                pass
    _collect(heard, list(parts.values()))
    return heard


def _grown(part: n.Part, text: str) -> n.Part:
    match part:
        case n.ToolCall():
            return msgspec.structs.replace(part, arguments=part.arguments + text)
        case n.Text() | n.Thinking() | n.Refusal():
            return msgspec.structs.replace(part, text=part.text + text)
        case _:
            return part


def heard_answer(answer: n.Answer | f.Failure) -> Heard:
    if not isinstance(answer, n.Answer):
        return Heard(failure=answer)
    heard = Heard(usage=answer.usage, done=True)
    for candidate in answer.candidates[:1]:
        heard.finish, heard.native = candidate.finish, candidate.native
        _collect(heard, candidate.parts)
    return heard


def _collect(heard: Heard, parts: list[n.Part]) -> None:
    for part in parts:
        match part:
            case n.Text():
                heard.text += part.text
            case n.Thinking():
                heard.thinking += part.text
            case n.ToolCall():
                heard.calls.append((part.name, part.arguments))
                heard.call_ids.append(part.id)
            case _:
                pass


def sse(body: bytes) -> list[tuple[str, object]]:
    """Names and JSON values of the events of a stream."""
    found: list[tuple[str, object]] = []
    for block in body.decode().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if ": " in line)
        data = fields.get("data")
        if data is not None:
            found.append((fields.get("event", ""), data if data == "[DONE]" else _json(data)))
    return found


def _json(text: str) -> object:
    return msgspec.json.decode(text)
