"""The provider's side of an attempt: where it goes, with which secrets, and what its errors mean.

Secrets are resolved here and nowhere else; nothing that a provider wrote leaves with one of them in it.
"""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

from breakwater_gateway import __version__
from breakwater_gateway.config.model import Deployment
from breakwater_gateway.config.provider import quirks_for
from breakwater_gateway.runtime.actor import Context
from breakwater_gateway.runtime.logs import secrets
from breakwater_gateway.runtime.tasks import TaskSet
from breakwater_gateway.worker import keys
from breakwater_gateway.worker.endpoint import Endpoint, endpoint, secret_values, secrets_of
from breakwater_gateway.worker.exchange import Exchange
from breakwater_gateway.worker.http_client import Answer, HttpClient, HttpFailure, Prepared
from breakwater_gateway.worker.run import Run
from breakwater_gateway.worker.wire.bedrock import sigv4
from breakwater_gateway.worker.wire.dialects import provider_dialect
from breakwater_protocol import failures as f
from breakwater_protocol.commands import Work

USER_AGENT: Final = f"breakwater/{__version__}"
_COMMON_HEADERS: Final = (
    ("content-type", "application/json"),
    ("accept", "*/*"),
    ("user-agent", USER_AGENT),
)
_PREPARED_MAX: Final = 4096
_SECRETS_S: Final = 60.0
_LINGER_S: Final = 0.25
_LINGER_BYTES: Final = 4096
_ERROR_BODY_MAX: Final = 64 * 1024


class Place(Struct, frozen=True):
    """A deployment with its secrets resolved: where its calls go and what may not be shown."""

    endpoint: Endpoint
    secrets: tuple[str, ...]
    until: float
    """Then the secrets are read again: a token in a file may have been renewed."""


class Provider:
    """What a worker keeps of its providers."""

    def __init__(
        self, context: Context, client: HttpClient, environment: Mapping[str, str]
    ) -> None:
        self._clock = context.clock
        self._client = client
        self._environment = environment
        self._places: dict[tuple[str, int, str], Place] = {}
        self._prepared: dict[tuple[str, tuple[tuple[str, str], ...]], Prepared] = {}
        self._lingering = TaskSet(context.log)
        """Streams whose last word is said and whose last byte is not here yet: no load of the worker."""

    def forget(self) -> None:
        """The configuration has changed."""
        self._places.clear()
        self._prepared.clear()

    async def close(self) -> None:
        await self._lingering.cancel()
        await self._client.close()

    def place(self, deployment: Deployment, work: Work) -> Place | f.Failure:
        key = (deployment.id, work.key, work.provider_model)
        now = self._clock.now()
        found = self._places.get(key)
        if found is not None and now < found.until:
            return found
        given = secrets_of(
            deployment, work.key, environment=self._environment, read_file=_read_small_file
        )
        if not isinstance(given, dict):
            return given
        shown = secret_values(given)
        for value in shown:
            secrets.register(value)
        at = endpoint(deployment, model=work.provider_model, secrets=given)
        if not isinstance(at, Endpoint):
            return at
        if len(self._places) >= _PREPARED_MAX:
            self._places.clear()
        place = self._places[key] = Place(at, shown, now + _SECRETS_S)
        return place

    async def send(self, run: Run, place: Place, exchange: Exchange) -> Answer:
        call, work = exchange.call, run.work
        headers = {**dict(call.headers), **work.native_headers} if work.native_headers else None
        fixed = place.endpoint.headers + (tuple(headers.items()) if headers else call.headers)
        url = place.endpoint.at(call.path)
        prepared = self._prepared.get((url, fixed))
        if prepared is None:
            if len(self._prepared) >= _PREPARED_MAX:
                self._prepared.clear()
            deployment = run.deployment
            prepared = self._client.prepare(
                "POST",
                url,
                (*_COMMON_HEADERS, *fixed),
                http2=deployment is None or deployment.http2,
            )
            self._prepared[url, fixed] = prepared
        aws = place.endpoint.aws
        if aws is None:
            return await self._client.send(prepared, call.body, connect_timeout_s=work.connect_s)
        target = urlsplit(url)
        signed = sigv4.sign(
            aws.credentials,
            method="POST",
            path=target.path,
            query=target.query,
            headers=(("host", target.netloc), ("content-type", "application/json")),
            body_sha256=sigv4.body_hash(call.body),
            region=aws.region,
            now=self._clock.wall(),
        )
        return await self._client.send(
            prepared, call.body, headers=signed, connect_timeout_s=work.connect_s
        )

    def let_go(self, answer: Answer, *, finished: bool) -> None:
        """Back to the pool if nothing is left to read; a finished stream gets a moment to end as HTTP."""
        if finished and not answer.ended:
            self._lingering.spawn(_read_out(answer))
        else:
            answer.close()

    def classify(
        self, deployment: Deployment, answer: Answer, body: bytes, place: Place
    ) -> f.Failure:
        dialect = provider_dialect(deployment.wire, str(quirks_for(deployment)["provider"]))
        failure = dialect.classify(answer.status, answer.headers, body, now=self._clock.wall())
        return without(failure, place.secrets)


async def read_error(answer: Answer) -> bytes:
    """The body of an error; of one that cannot be read (cut, too large, badly coded) the status says enough."""
    try:
        return await answer.read(_ERROR_BODY_MAX)
    except HttpFailure:
        return b"{}"


def without(failure: f.Failure, shown: tuple[str, ...]) -> f.Failure:
    """All that a provider wrote into it without our secrets."""
    for secret in shown:
        failure = msgspec.structs.replace(
            failure,
            message=keys.scrub(failure.message, secret),
            provider_code=keys.scrub(failure.provider_code, secret),
        )
        if isinstance(failure, f.InvalidRequest) and failure.param:
            param = keys.scrub(failure.param, secret)
            failure = msgspec.structs.replace(failure, param=param)
    return failure


async def _read_out(answer: Answer) -> None:
    """The end of a chunked body often comes in a packet of its own; cutting it off would cost the next
    request a new connection."""
    size = 0
    try:
        async with asyncio.timeout(_LINGER_S):
            while size <= _LINGER_BYTES and (data := await answer.chunk()) is not None:
                size += len(data)
    except (TimeoutError, HttpFailure):
        size = 0  # then the connection is closed instead of being used again
    finally:
        answer.close()


def _read_small_file(path: str) -> str:
    with Path(path).open("rb") as file:
        return file.read(keys.KEY_BYTES_MAX + 1).decode("utf-8")
