"""A provider's API from its own side, as values: requests checked, answers made, errors worded.

One class a dialect. Nothing here waits, looks or draws: the same seed and request give the same bytes.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from email.utils import formatdate
from typing import ClassVar, Final, Literal

import msgspec
from msgspec import Struct

from breakwater_gateway.simulator.refusals import ApiError, Problem
from breakwater_gateway.simulator.script import Rate, RetryForm, Script
from breakwater_gateway.simulator.turns import Choice, Embedding, Event, Json, Sampling, Turn

Headers = tuple[tuple[str, str], ...]

Endpoint = Literal["chat", "embeddings", "models", "count_tokens"]

JSON: Final = ("content-type", "application/json")
SSE: Final = ("content-type", "text/event-stream; charset=utf-8")
INPUTS_MAX: Final = 2048
MODELS_CREATED: Final = 1_700_000_000

encode = msgspec.json.encode


class Route(Struct, frozen=True):
    """Where a path leads: which simulated provider, which API of it, and what the path says of the call."""

    lane: str
    dialect: str
    endpoint: Endpoint
    method: str = "POST"
    model: str = ""
    action: str = ""
    """The verb of a path that has several."""


class Door(Struct, frozen=True):
    """A request before its body is read. Header names are in lower case."""

    route: Route
    headers: Mapping[str, str]
    query: Mapping[str, str]
    body: bytes


class Ask(Struct, frozen=True):
    """A request whose body is a JSON object, and the script that applies to it."""

    raw: dict[str, Json]
    model: str
    route: Route
    query: Mapping[str, str]
    script: Script


class Place(Struct, frozen=True):
    """Where in a stream something happens: after `sent` events of this answer."""

    turn: Turn
    sampling: Sampling
    sent: int


class Dialect(ABC):
    """What is common to all, and what each says in its own way. Methods raise its own `ApiError`."""

    name: ClassVar[str]
    keep_alive: ClassVar[bytes] = b": keep-alive\n\n"
    """What says nothing inside a stream; empty where the API has no such thing."""
    broken: ClassVar[bytes] = b'data: {"id":"broken","choices":[{"delta":\n\n'
    """An event that does not parse."""
    blocks_in_answer: ClassVar[bool] = False
    """A prompt that the filter refuses is told in an answer of status 200."""

    # ---- requests

    def key(self, door: Door) -> str:
        """The caller's key; empty if there is none."""
        return bearer(door.headers)

    def inspect(self, door: Door) -> None:  # noqa: B027 - most have nothing to check
        """What the front door checks before it reads the body."""

    def decode(self, body: bytes) -> dict[str, Json]:
        """The request's JSON object, however deep anything else was."""
        try:
            raw = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raw = None
        if not isinstance(raw, dict):
            raise self.error(Problem("bad_json"))
        return raw

    def model(self, raw: dict[str, Json], route: Route) -> str:
        """The model that a request is for."""
        model = route.model or raw.get("model")
        if not isinstance(model, str) or not model:
            raise self.invalid("model is required")
        return model

    @abstractmethod
    def read(self, ask: Ask) -> Turn:
        """A chat request, checked as the service does."""

    def read_embeddings(self, ask: Ask) -> Embedding:
        """A request for embeddings, checked. Only of dialects with a route to them."""
        raise NotImplementedError(ask.route.dialect)

    # ---- answers

    def stream_type(self, turn: Turn) -> tuple[str, str]:  # noqa: ARG002 - some have several framings
        return SSE

    @abstractmethod
    def answer(
        self, turn: Turn, choices: list[Choice], script: Script, sampling: Sampling
    ) -> bytes:
        """The body of an answer that is not streamed."""

    @abstractmethod
    def events(
        self, turn: Turn, choices: list[Choice], script: Script, sampling: Sampling
    ) -> Iterator[Event]:
        """The stream of an answer, in the order and shapes of the service."""

    def embeddings(self, asked: Embedding, script: Script, *, seed: int) -> bytes:
        raise NotImplementedError

    def models(self, names: tuple[str, ...]) -> bytes:
        return encode({"object": "list", "data": [_openai_model(name) for name in names]})

    def one_model(self, name: str) -> bytes:
        return encode(_openai_model(name))

    def counted(self, turn: Turn, script: Script) -> bytes:
        """The answer to a request to count tokens."""
        raise NotImplementedError

    # ---- errors

    @abstractmethod
    def error(self, problem: Problem) -> ApiError:
        """How the service words a problem."""

    def invalid(self, message: str) -> ApiError:
        """What is wrong with a request, in words of the reader."""
        return self.error(Problem("invalid_request", message=message))

    def stream_error(self, problem: Problem) -> bytes:
        """An error inside a stream, framed."""
        return sse(self.error(problem).body())

    def break_off(self, problem: Problem, place: Place) -> bytes:  # noqa: ARG002 - some go on counting
        """How a stream that has begun ends in an error."""
        return self.stream_error(problem)

    # ---- headers

    def headers(self, identity: int) -> Headers:
        """Of every answer. `identity`: 64 bits that are this call's alone."""
        return (("x-request-id", f"req_{identity:016x}"),)

    def rate_headers(self, rates: tuple[Rate, ...], *, wall: float) -> Headers:  # noqa: ARG002 - Anthropic's are times of day
        return tuple(
            header
            for rate in rates
            for header in (
                (f"x-ratelimit-limit-{rate.name}", str(rate.limit)),
                (f"x-ratelimit-remaining-{rate.name}", str(rate.remaining)),
                (f"x-ratelimit-reset-{rate.name}", go_duration(rate.reset_s)),
            )
        )

    def wait_headers(self, wait_s: float, form: RetryForm, *, wall: float) -> Headers:
        seconds = ("retry-after", str(math.ceil(wait_s)))
        milliseconds = ("retry-after-ms", str(math.ceil(wait_s * 1000)))
        match form:
            case "seconds":
                return (seconds,)
            case "ms":
                return (milliseconds,)
            case "both":
                return (seconds, milliseconds)
            case "date":
                return (("retry-after", formatdate(wall + wait_s, usegmt=True)),)
            case "text" | "none":
                return ()


def _openai_model(name: str) -> dict[str, Json]:
    return {"id": name, "object": "model", "created": MODELS_CREATED, "owned_by": "simulator"}


def bearer(headers: Mapping[str, str]) -> str:
    """The key after `Bearer`; empty for any other scheme."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def sse(data: bytes, name: str = "") -> bytes:
    """One event, framed."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), data) if name else b"data: %b\n\n" % data


def go_duration(seconds: float) -> str:
    """As OpenAI writes resets: `6ms`, `1.5s`, `1m2s`, `0s`."""
    if seconds <= 0:
        return "0s"
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(seconds, 60)
    shown = f"{rest:.3f}".rstrip("0").rstrip(".")
    return f"{int(minutes)}m{shown}s" if minutes else f"{shown}s"
