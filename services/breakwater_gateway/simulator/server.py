"""The simulator on HTTP: every provider's API (see `routes`), each lane a provider of its own.

Control, for loopback peers only: `GET|POST /__control/script`, `POST /__control/reset`,
`GET /__control/log?since=`, `GET /__control/stats`; `GET /healthz` for anyone.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from hashlib import blake2b
from typing import Final
from urllib.parse import parse_qsl

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from breakwater_gateway.runtime.http.answer import Exchange
from breakwater_gateway.runtime.http.application import HttpLimits, HttpRequest, Responder
from breakwater_gateway.runtime.http.server import HttpServer
from breakwater_gateway.runtime.telemetry import Log
from breakwater_gateway.simulator import refusals, routes
from breakwater_gateway.simulator.calls import RunningCall
from breakwater_gateway.simulator.content import compose
from breakwater_gateway.simulator.dialects import DIALECTS
from breakwater_gateway.simulator.dialects.dialect import JSON, Ask, Dialect, Door, Route
from breakwater_gateway.simulator.dialects.openai_errors import OpenAIError
from breakwater_gateway.simulator.log import Entry, LaneStats
from breakwater_gateway.simulator.refusals import ApiError, Problem
from breakwater_gateway.simulator.script import (
    DEFAULT_MODELS,
    Book,
    Call,
    Script,
    TooManyScripts,
    Verdict,
)
from breakwater_gateway.simulator.streams import StreamedAnswer
from breakwater_gateway.simulator.turns import Choice, Sampling, Turn

LOG_MAX: Final = 10_000
BODY_KEPT_MAX: Final = 64 * 1024
TOKENS_RESERVED: Final = 16
"""What a request without `max_tokens` is taken to want, for rate limits."""

_LOOPBACK: Final = ("127.", "::1", "::ffff:127.")
_scripts_decoder: Final = msgspec.json.Decoder(Script | list[Script])


class _Arrival(Struct, frozen=True):
    """A request that came through the front door."""

    dialect: Dialect
    door: Door
    key: str

    @property
    def route(self) -> Route:
        return self.door.route


class SimulatorServer:
    """Providers on one port. Raises `AddressInUse` and `OSError` from `start`."""

    def __init__(self, *, log: Log, seed: int = 0, wall: Callable[[], float] = time.time) -> None:
        self.book = Book(seed=seed)
        self.stats: dict[str, LaneStats] = {}
        self.entries: deque[Entry] = deque(maxlen=LOG_MAX)
        self.wall = wall
        self.draining = False
        self._seq = 0
        self._http = HttpServer(
            self._on_request,
            log=log,
            limits=HttpLimits(body_bytes=32 * 1024 * 1024),
            refuse=_refuse,
        )

    @property
    def port(self) -> int:
        return self._http.port

    @property
    def in_flight(self) -> int:
        return sum(stats.in_flight for stats in self.stats.values())

    async def start(self, host: str, port: int) -> None:
        await self._http.start(host, port)

    async def drain(self, timeout_s: float) -> int:
        """Finishes what is being answered; returns how many had to be cut, such as stalled ones."""
        self.draining = True
        return await self._http.drain(timeout_s)

    async def close(self) -> None:
        self.draining = True
        await self._http.close()

    def reset(self, *, seed: int | None = None) -> None:
        """Forgets scripts, log and counters; what is in flight goes on, and is counted from zero."""
        if seed is not None:
            self.book.seed = seed
        self.book.clear()
        self.stats.clear()
        self.entries.clear()

    def ended(self, entry: Entry) -> None:
        self._seq += 1
        entry.seq = self._seq
        self.entries.append(entry)

    # Routing.

    def _on_request(self, request: HttpRequest, responder: Responder) -> None:
        assert isinstance(responder, Exchange)  # noqa: S101 - our own server makes no other
        path = request.path
        if path.startswith("/__control/"):
            self._control(request, responder)
        elif path == "/healthz":
            responder.respond(200, [JSON], b'{"status":"ok"}')
        else:
            self._api(request, responder)

    def _api(self, request: HttpRequest, responder: Exchange) -> None:
        route = routes.find(request.path)
        known = route if route is not None else Route(_lane_of(request.path), "openai", "chat")
        dialect = DIALECTS[self._manners(known)]
        loop = asyncio.get_running_loop()
        call = RunningCall(self, loop, request, responder, known.lane, dialect)
        problem = Problem("unknown_url", method=request.method, path=request.path)
        try:
            if route is None:
                raise dialect.error(problem)
            if request.method != route.method:
                raise dialect.error(replace(problem, kind="wrong_method"))
            query = dict(parse_qsl(request.query, max_num_fields=100))
            door = Door(route, request.headers, query, request.body)
            arrival = _Arrival(dialect, door, dialect.key(door))
            dialect.inspect(door)
            if route.endpoint == "models":
                self._models(arrival, call)
            else:
                self._ask(arrival, call)
        except ApiError as error:
            call.refuse(error, f"http_{error.status}")
        except ValueError:
            # More query parameters than anyone needs.
            call.refuse(dialect.invalid("too many query parameters"), "http_400")

    def _manners(self, route: Route) -> str:
        """The dialect: some paths are shared by several providers."""
        if route.dialect != "openai":
            return route.dialect
        return self.book.find(route.lane, route.model, "").dialect or (
            "mistral" if route.lane == "mistral" else "openai"
        )

    def _ask(self, arrival: _Arrival, call: RunningCall) -> None:
        ask = self._read(arrival, call)
        match arrival.route.endpoint:
            case "embeddings":
                self._embed(ask, arrival, call)
            case "count_tokens":
                turn = arrival.dialect.read(ask)
                body = arrival.dialect.counted(turn, ask.script)
                call.answer_whole(Verdict(ask.script, 0.0), body, 0)
            case _:
                self._chat(ask, arrival, call)

    def _chat(self, ask: Ask, arrival: _Arrival, call: RunningCall) -> None:
        dialect = arrival.dialect
        turn = dialect.read(ask)
        call.entry.stream = turn.stream
        chance = _chance(self.book.seed, arrival)
        wanted = turn.prompt_tokens + turn.choices * (turn.tokens_max or TOKENS_RESERVED)
        verdict = self._admit(arrival, call, wanted, turn.prompt_tokens, chance)
        if verdict is None:
            return
        script = verdict.script
        choices = _compose(turn, verdict, chance=chance, seed=self.book.seed)
        sampling = Sampling(chance, int(self.wall()))
        if turn.stream:
            StreamedAnswer(call, verdict, turn, choices, sampling).start()
            return
        body = dialect.answer(turn, choices, script, sampling)
        call.answer_whole(verdict, body, sum(choice.written for choice in choices))

    def _embed(self, ask: Ask, arrival: _Arrival, call: RunningCall) -> None:
        asked = arrival.dialect.read_embeddings(ask)
        chance = _chance(self.book.seed, arrival)
        verdict = self._admit(arrival, call, asked.prompt_tokens, asked.prompt_tokens, chance)
        if verdict is not None:
            body = arrival.dialect.embeddings(asked, verdict.script, seed=self.book.seed)
            call.answer_whole(verdict, body, 0)

    def _models(self, arrival: _Arrival, call: RunningCall) -> None:
        dialect, name = arrival.dialect, arrival.route.model
        script = self.book.find(arrival.route.lane, name, arrival.key)
        _check_key(dialect, script, arrival.key)
        names = script.models or DEFAULT_MODELS
        if name and script.models and name not in script.models:
            raise dialect.error(Problem("model_not_found", model=name))
        body = dialect.one_model(name) if name else dialect.models(names)
        call.answer_whole(Verdict(script, 0.0), body, 0)

    def _read(self, arrival: _Arrival, call: RunningCall) -> Ask:
        """What is asked, and the script that applies; the key and the model are good."""
        dialect, route = arrival.dialect, arrival.route
        body = arrival.door.body
        raw = dialect.decode(body)
        model = dialect.model(raw, route)
        script = self.book.find(route.lane, model, arrival.key)
        entry = call.entry
        entry.model = model[:512]
        entry.key = blake2b(arrival.key.encode(), digest_size=4).hexdigest()
        if script.record:
            entry.body = body[:BODY_KEPT_MAX].decode("utf-8", "replace")
        _check_key(dialect, script, arrival.key)
        if script.models and model not in script.models:
            raise dialect.error(Problem("model_not_found", model=model))
        return Ask(raw, model, route, arrival.door.query, script)

    def _admit(
        self, arrival: _Arrival, call: RunningCall, wanted: int, prompt_tokens: int, chance: int
    ) -> Verdict | None:
        """The verdict, unless it is an error: then that is sent."""
        dialect, lane, key = arrival.dialect, arrival.route.lane, arrival.key
        model = call.entry.model
        now, wall = asyncio.get_running_loop().time(), self.wall()
        verdict = self.book.admit(Call(lane, model, key, wanted, prompt_tokens, chance), now=now)
        call.headers += dialect.rate_headers(verdict.rates, wall=wall)
        if verdict.exceeded is not None:
            exceeded = verdict.exceeded
            if exceeded.wait_s:
                call.headers += dialect.wait_headers(exceeded.wait_s, "both", wall=wall)
            problem = refusals.of_limit(exceeded, model)
            call.refuse(dialect.error(problem), problem.kind)
            return None
        call.admitted(self.book, lane, key)
        fault = verdict.fault
        if fault is None:
            return verdict
        call.headers += tuple(fault.headers.items())
        if fault.retry_after_s is not None:
            form = fault.retry_after_form
            call.headers += dialect.wait_headers(fault.retry_after_s, form, wall=wall)
        if fault.kind == "error_in_200" and call.entry.stream:
            return verdict
        if fault.kind == "content_filter" and dialect.blocks_in_answer:
            return verdict
        found = refusals.of_fault(fault, model=model, key=key)
        if found is not None:
            call.refuse(dialect.error(found), fault.kind)
            return None
        return verdict

    # Control.

    def _control(self, request: HttpRequest, responder: Responder) -> None:
        if request.peer and not request.peer.startswith(_LOOPBACK):
            _send_error(responder, OpenAIError(403, "The control plane is for this machine only."))
            return
        try:
            answer = self._command(request)
        except ApiError as error:
            _send_error(responder, error)
        else:
            responder.respond(200, [JSON], msgspec.json.encode(answer))

    def _command(self, request: HttpRequest) -> object:
        match request.method, request.path.removeprefix("/__control/"):
            case "GET", "script":
                return self.book.scripts()
            case "POST", "script":
                return self._set_scripts(request.body)
            case "POST", "reset":
                return self._reset(request.body)
            case "GET", "log":
                return self._log_since(request.query)
            case "GET", "stats":
                return {"lanes": self.stats, "in_flight": self.in_flight}
            case _:
                problem = Problem("unknown_url", method=request.method, path=request.path)
                raise DIALECTS["openai"].error(problem)

    def _set_scripts(self, body: bytes) -> object:
        try:
            given = _scripts_decoder.decode(body)
            scripts = given if isinstance(given, list) else [given]
            self.book.put(scripts, now=asyncio.get_running_loop().time())
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, TooManyScripts) as error:
            raise OpenAIError(400, f"Not a script: {error}") from error
        return {"scripts": len(self.book.scripts())}

    def _reset(self, body: bytes) -> object:
        try:
            given = msgspec.json.decode(body or b"{}", type=_Reset)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise OpenAIError(400, f"Not a reset: {error}") from error
        self.reset(seed=given.seed)
        return {"seed": self.book.seed}

    def _log_since(self, query: str) -> object:
        given = dict(parse_qsl(query, max_num_fields=10)).get("since", "0")
        if not given.isascii() or not given.isdigit() or len(given) > 18:
            raise OpenAIError(400, "`since` is the `next` of the last answer, or 0.")
        entries = [entry for entry in self.entries if entry.seq > int(given)]
        return {"entries": entries, "next": self._seq}


class _Reset(Struct, forbid_unknown_fields=True):
    seed: int | None = None


def _compose(turn: Turn, verdict: Verdict, *, chance: int, seed: int) -> list[Choice]:
    """The answers, as the verdict's fault has them."""
    kind = verdict.fault.kind if verdict.fault is not None else None
    choices = compose(
        turn, verdict.script, chance=chance, seed=seed, malformed=kind == "malformed_tool_call"
    )
    if kind == "filtered_answer":
        return [
            replace(
                choice, pieces=choice.pieces[: len(choice.pieces) // 2], finish="content_filter"
            )
            for choice in choices
        ]
    if kind == "content_filter":
        return [Choice((), "content_filter", blocked=True) for _ in choices]
    return choices


def _chance(seed: int, arrival: _Arrival) -> int:
    salt = (seed & 0xFFFFFFFFFFFFFFFF).to_bytes(8, "little")
    digest = blake2b(arrival.door.body, digest_size=8, key=salt)
    digest.update(arrival.route.lane.encode())
    if arrival.route.dialect != "openai":
        # Where the path names the model, the body does not.
        digest.update(f"{arrival.route.model}:{arrival.route.action}".encode())
    return int.from_bytes(digest.digest(), "little")


def _lane_of(path: str) -> str:
    lane, _, rest = path[1:].partition("/")
    return lane if rest.startswith("v1/") else ""


def _check_key(dialect: Dialect, script: Script, key: str) -> None:
    if script.keys and key not in script.keys:
        raise dialect.error(Problem("authentication" if key else "no_key", key=key))


def _send_error(responder: Responder, error: ApiError) -> None:
    responder.respond(error.status, [JSON], error.body())


def _refuse(status: int, message: str, responder: Responder) -> None:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    _send_error(responder, OpenAIError(status, message, type_=kind))
