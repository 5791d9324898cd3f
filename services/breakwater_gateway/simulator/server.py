"""The simulator on HTTP: OpenAI's endpoints under `/v1` and `/<lane>/v1`, and the control plane.

Control, for loopback peers only: `GET|POST /__control/script`, `POST /__control/reset`,
`GET /__control/log?since=`, `GET /__control/stats`; `GET /healthz` for anyone.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from email.utils import formatdate
from hashlib import blake2b
from typing import Final
from urllib.parse import parse_qs

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from breakwater_gateway.runtime.http_server import (
    Exchange,
    HttpLimits,
    HttpRequest,
    HttpServer,
    Responder,
)
from breakwater_gateway.runtime.telemetry import Log
from breakwater_gateway.simulator import openai
from breakwater_gateway.simulator.openai import ApiError, Choice, Event, Json, Sampling, Turn
from breakwater_gateway.simulator.script import (
    DEFAULT_MODELS,
    Book,
    Call,
    Fault,
    Script,
    TooManyScripts,
    Verdict,
    mix,
)

LOG_MAX: Final = 10_000
LANES_MAX: Final = 1_000
BODY_KEPT_MAX: Final = 64 * 1024
TOKENS_RESERVED: Final = 16
"""What a request without `max_tokens` is taken to want, for rate limits."""
# A reset overtakes what is still in buffers on its way; the client must have the tokens before.
CUT_DELAY_S: Final = 0.03
BATCH_BYTES: Final = 64 * 1024

_JSON: Final = ("content-type", "application/json")
_SSE: Final = ("content-type", "text/event-stream; charset=utf-8")
_LOOPBACK: Final = ("127.", "::1", "::ffff:127.")
_scripts_decoder: Final = msgspec.json.Decoder(Script | list[Script])


class Entry(Struct):
    """One request in the log, written when it has ended."""

    seq: int
    at: float
    """Unix time of its arrival."""
    lane: str
    path: str
    model: str = ""
    key: str = ""
    """A hash: keys are secrets even here."""
    request_id: str = ""
    """The caller's `x-request-id`."""
    stream: bool = False
    status: int = 0
    outcome: str = "in_flight"
    """`ok`, `cancelled`, `drained`, a fault's class, or `http_<status>` for what was wrong in itself."""
    tokens_sent: int = 0
    bytes_sent: int = 0
    cancelled_by_client: bool = False
    first_byte_ms: float | None = None
    total_ms: float = 0.0
    body: str | None = None
    """Of the request, if the script says `record`."""


class LaneStats(Struct):
    started: int = 0
    finished: int = 0
    cancelled: int = 0
    in_flight: int = 0
    in_flight_peak: int = 0
    tokens_sent: int = 0
    bytes_sent: int = 0
    outcomes: dict[str, int] = {}


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
        lane, found, rest = path[1:].partition("v1/")
        if path.startswith("/__control/"):
            self._control(request, responder)
        elif path == "/healthz":
            responder.respond(200, [_JSON], b'{"status":"ok"}')
        elif found and (not lane or (lane.endswith("/") and "/" not in lane[:-1])):
            self._api(request, responder, lane[:-1], rest)
        else:
            _send_error(responder, openai.unknown_url(request.method, path))

    def _api(self, request: HttpRequest, responder: Exchange, lane: str, rest: str) -> None:
        call = _Running(self, request, responder, lane)
        try:
            key = _key_of(request)
            if rest == "chat/completions":
                _demand(request, "POST")
                self._chat(request, call, lane, key)
            elif rest == "embeddings":
                _demand(request, "POST")
                self._embeddings(request, call, lane, key)
            elif rest == "models" or rest.startswith("models/"):
                _demand(request, "GET")
                self._models(call, lane, key, rest[7:])
            else:
                raise openai.unknown_url(request.method, request.path)
        except ApiError as error:
            call.refuse(error, f"http_{error.status}")

    def _chat(self, request: HttpRequest, call: "_Running", lane: str, key: str) -> None:
        raw, script = self._read(request, call, lane, key)
        turn = openai.read_chat(raw, reasoning=openai.is_reasoning(call.entry.model, script))
        call.entry.stream = turn.stream
        chance = _chance(self.book.seed, lane, request)
        wanted = turn.prompt_tokens + turn.choices * (turn.tokens_max or TOKENS_RESERVED)
        verdict = self._admit(call, lane, key, wanted, turn.prompt_tokens, chance)
        if verdict is None:
            return
        fault, script = verdict.fault, verdict.script
        kind = fault.kind if fault is not None else None
        choices = openai.compose(
            turn,
            script,
            chance=chance,
            seed=self.book.seed,
            malformed=kind == "malformed_tool_call",
        )
        if kind == "filtered_answer":
            choices = [
                replace(
                    choice, pieces=choice.pieces[: len(choice.pieces) // 2], finish="content_filter"
                )
                for choice in choices
            ]
        sampling = Sampling(chance, int(self.wall()))
        if turn.stream:
            _Stream(call, verdict, turn, choices, sampling).start()
            return
        body = openai.completion(turn, choices, script, sampling)
        tokens = sum(len(choice.pieces) for choice in choices)
        call.answer_whole(verdict, body, tokens)

    def _embeddings(self, request: HttpRequest, call: "_Running", lane: str, key: str) -> None:
        raw, script = self._read(request, call, lane, key)
        asked = openai.read_embeddings(raw, script)
        chance = _chance(self.book.seed, lane, request)
        verdict = self._admit(call, lane, key, asked.prompt_tokens, asked.prompt_tokens, chance)
        if verdict is not None:
            body = openai.embeddings(asked, verdict.script, seed=self.book.seed)
            call.answer_whole(verdict, body, 0)

    def _models(self, call: "_Running", lane: str, key: str, name: str) -> None:
        script = self.book.find(lane, name, key)
        _check_key(script, key)
        names = script.models or DEFAULT_MODELS
        if not name:
            call.answer_whole(Verdict(script, 0.0), openai.models(names), 0)
        elif script.models and name not in script.models:
            raise openai.unknown_model(name)
        else:
            body = msgspec.json.encode(openai.model_object(name))
            call.answer_whole(Verdict(script, 0.0), body, 0)

    def _read(
        self, request: HttpRequest, call: "_Running", lane: str, key: str
    ) -> tuple[dict[str, Json], Script]:
        """The decoded body and the script that applies; the key and the model are good."""
        raw = openai.decode(request.body)
        model = openai.model_of(raw)
        script = self.book.find(lane, model, key)
        entry = call.entry
        entry.model = model[:512]
        entry.key = blake2b(key.encode(), digest_size=4).hexdigest()
        if script.record:
            entry.body = request.body[:BODY_KEPT_MAX].decode("utf-8", "replace")
        _check_key(script, key)
        if script.models and model not in script.models:
            raise openai.unknown_model(model)
        return raw, script

    def _admit(
        self,
        call: "_Running",
        lane: str,
        key: str,
        wanted: int,
        prompt_tokens: int,
        chance: int,
    ) -> Verdict | None:
        """The verdict, unless it is an error: then that is sent."""
        model = call.entry.model
        now = asyncio.get_running_loop().time()
        verdict = self.book.admit(Call(lane, model, key, wanted, prompt_tokens, chance), now=now)
        call.headers += verdict.headers
        if verdict.exceeded is not None:
            exceeded = verdict.exceeded
            if exceeded.wait_s:
                call.headers += _wait_headers(exceeded.wait_s, "both", self.wall())
            outcome = {
                "context": "context_length",
                "capacity": "overloaded",
                "request": "request_over_limit",
            }.get(exceeded.limit, "rate_limited")
            call.refuse(openai.over_limit(exceeded, model), outcome)
            return None
        call.admitted(self.book, lane, key)
        fault = verdict.fault
        if fault is None:
            return verdict
        call.headers += tuple(fault.headers.items())
        if fault.retry_after_s is not None:
            call.headers += _wait_headers(fault.retry_after_s, fault.retry_after_form, self.wall())
        if fault.kind == "error_in_200" and call.entry.stream:
            return verdict
        error = openai.fault_error(fault, model=model, key=key)
        if error is not None:
            call.refuse(error, fault.kind)
            return None
        return verdict

    # Control.

    def _control(self, request: HttpRequest, responder: Responder) -> None:
        if request.peer and not request.peer.startswith(_LOOPBACK):
            _send_error(responder, ApiError(403, "The control plane is for this machine only."))
            return
        try:
            answer = self._command(request)
        except ApiError as error:
            _send_error(responder, error)
        else:
            responder.respond(200, [_JSON], msgspec.json.encode(answer))

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
                raise openai.unknown_url(request.method, request.path)

    def _set_scripts(self, body: bytes) -> object:
        try:
            given = _scripts_decoder.decode(body)
            scripts = given if isinstance(given, list) else [given]
            self.book.put(scripts, now=asyncio.get_running_loop().time())
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, TooManyScripts) as error:
            raise ApiError(400, f"Not a script: {error}") from error
        return {"scripts": len(self.book.scripts())}

    def _reset(self, body: bytes) -> object:
        try:
            given = msgspec.json.decode(body or b"{}", type=_Reset)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ApiError(400, f"Not a reset: {error}") from error
        self.reset(seed=given.seed)
        return {"seed": self.book.seed}

    def _log_since(self, query: str) -> object:
        given = parse_qs(query, max_num_fields=10).get("since", ["0"])[-1]
        if not given.isascii() or not given.isdigit() or len(given) > 18:
            raise ApiError(400, "`since` is the `next` of the last answer, or 0.")
        entries = [entry for entry in self.entries if entry.seq > int(given)]
        return {"entries": entries, "next": self._seq}


class _Reset(Struct, forbid_unknown_fields=True):
    seed: int | None = None


class _Running:
    """One call from its arrival to its end: the answer's headers, its log entry and its counters."""

    __slots__ = (
        "_begun_at",
        "_book",
        "_rule",
        "_stats",
        "_timer",
        "entry",
        "headers",
        "responder",
        "server",
    )

    def __init__(
        self, server: SimulatorServer, request: HttpRequest, responder: Exchange, lane: str
    ) -> None:
        self.server = server
        self.responder = responder
        self._begun_at = asyncio.get_running_loop().time()
        self._timer: asyncio.TimerHandle | None = None
        self._book: Book | None = None
        lane = lane if lane in server.stats or len(server.stats) < LANES_MAX else "other"
        stats = server.stats.get(lane)
        if stats is None:
            stats = server.stats[lane] = LaneStats()
        self._stats = stats
        stats.started += 1
        stats.in_flight += 1
        stats.in_flight_peak = max(stats.in_flight_peak, stats.in_flight)
        self.entry = Entry(
            0,
            server.wall(),
            lane[:512],
            request.path[:512],
            request_id=request.headers.get("x-request-id", "")[:200],
        )
        identity = mix(server.book.seed ^ (stats.started << 8))
        self.headers: tuple[tuple[str, str], ...] = (
            ("x-request-id", f"req_{identity:016x}"),
            ("openai-organization", "org-simulator"),
            ("openai-version", "2020-10-01"),
        )
        responder.on_close = self._gone

    def admitted(self, book: Book, lane: str, key: str) -> None:
        """From here it counts against its script's capacity."""
        self._book = book
        self._rule = book.begun(lane, self.entry.model, key)

    def later(self, delay_s: float, act: Callable[[], None]) -> None:
        """At most one act is waited for; it is dropped when the call ends."""
        self._timer = asyncio.get_running_loop().call_later(delay_s, act)

    def at(self, when: float, act: Callable[[], None]) -> None:
        self._timer = asyncio.get_running_loop().call_at(when, act)

    def start(self, status: int, content_type: tuple[str, str]) -> None:
        self.entry.status = status
        self.responder.start(status, (content_type, *self.headers))

    def write(self, data: bytes, *, drip: bool = False) -> None:
        entry = self.entry
        if entry.first_byte_ms is None:
            entry.first_byte_ms = self._elapsed_ms()
        entry.bytes_sent += len(data)
        if not drip:
            self.responder.write(data)
            return
        for i in range(len(data)):
            self.responder.write(data[i : i + 1])

    def respond(
        self, status: int, content_type: tuple[str, str], body: bytes, outcome: str
    ) -> None:
        self.entry.status = status
        self.entry.bytes_sent += len(body)
        self.entry.first_byte_ms = self._elapsed_ms()
        # Counted first: whoever has the answer finds it in the log.
        self.ended(outcome)
        self.responder.respond(status, (content_type, *self.headers), body)

    def refuse(self, error: ApiError, outcome: str) -> None:
        self.respond(error.status, _JSON, error.body(), outcome)

    def cut(self, outcome: str, how: str) -> None:
        self.ended(outcome)
        if how == "reset":
            self.responder.reset()
        else:
            self.responder.abort()

    def ended(self, outcome: str) -> None:
        entry, stats = self.entry, self._stats
        self.responder.on_close = self.responder.on_writable = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._book is not None:
            self._book.ended(self._rule)
            self._book = None
        entry.outcome = outcome
        entry.total_ms = self._elapsed_ms()
        stats.in_flight -= 1
        stats.finished += 1
        stats.tokens_sent += entry.tokens_sent
        stats.bytes_sent += entry.bytes_sent
        stats.outcomes[outcome] = stats.outcomes.get(outcome, 0) + 1
        self.server.ended(entry)

    def answer_whole(self, verdict: Verdict, body: bytes, tokens: int) -> None:
        """An answer that is not streamed, after its time, unless a fault wants otherwise."""
        script, fault = verdict.script, verdict.fault
        kind = fault.kind if fault is not None else None
        delay_s = _first_token_s(verdict)
        if script.tokens_per_s:
            delay_s += tokens / script.tokens_per_s
        if kind == "reset":
            self.later(delay_s, lambda: self.cut("reset", "reset"))
        elif kind == "hang" or (script.stall_before_first and not script.stall_s):
            return
        elif not delay_s:
            self._send_whole(script, fault, body, tokens)
        else:
            self.later(delay_s, lambda: self._send_whole(script, fault, body, tokens))

    def _send_whole(self, script: Script, fault: Fault | None, body: bytes, tokens: int) -> None:
        kind = fault.kind if fault is not None else "ok"
        stall_after, cut_after = _interruptions(script, fault)
        interrupted = [n for n in (stall_after, cut_after) if n is not None and n <= tokens]
        if kind == "html_502":
            self.respond(502, ("content-type", "text/html"), openai.HTML_502, kind)
        elif kind == "empty_body":
            self.respond(200, _JSON, b"", kind)
        elif kind in {"half_json", "malformed_chunk"}:
            self.respond(200, _JSON, body[: len(body) // 2], kind)
        elif interrupted:
            self._send_part(script, body, tokens, min(interrupted), stalls=cut_after is None)
        elif script.drip:
            self.entry.tokens_sent = tokens
            self.start(200, _JSON)
            self.write(body, drip=True)
            self.ended(kind)
            self.responder.end()
        else:
            self.entry.tokens_sent = tokens
            self.respond(200, _JSON, body, kind)

    def _send_part(
        self, script: Script, body: bytes, tokens: int, sent: int, *, stalls: bool
    ) -> None:
        """As much of the body as `sent` of its tokens; then a stall, or a cut."""
        split = max(1, len(body) * sent // max(tokens + 1, 1))

        def rest() -> None:
            self.write(body[split:])
            self.entry.tokens_sent = tokens
            self.ended("stall")
            self.responder.end()

        self.entry.tokens_sent = sent
        self.start(200, _JSON)
        self.write(body[:split])
        if not stalls:
            self.later(CUT_DELAY_S, lambda: self.cut("cut", script.cut_with))
        elif script.stall_s:
            self.later(script.stall_s, rest)

    def _gone(self) -> None:
        drained = self.server.draining
        self.entry.cancelled_by_client = not drained
        self._stats.cancelled += not drained
        self.ended("drained" if drained else "cancelled")

    def _elapsed_ms(self) -> float:
        return (asyncio.get_running_loop().time() - self._begun_at) * 1000


class _Stream:
    """A streamed answer, paced against its own start so that timers do not drift; no task."""

    __slots__ = (
        "_call",
        "_cut_after",
        "_events",
        "_fault",
        "_first_at",
        "_next",
        "_roles",
        "_script",
        "_stall_after",
        "_verdict",
    )

    def __init__(
        self,
        call: _Running,
        verdict: Verdict,
        turn: Turn,
        choices: list[Choice],
        sampling: Sampling,
    ) -> None:
        self._call = call
        self._verdict = verdict
        self._script = script = verdict.script
        self._fault = fault = verdict.fault
        self._stall_after, self._cut_after = _interruptions(script, fault)
        self._roles = len(choices)
        """Events that are still to come before content does."""
        self._events = _spoil(openai.events(turn, choices, script, sampling), script, fault)
        self._next: Event | None = next(self._events, None)
        self._first_at = 0.0

    def start(self) -> None:
        call, script = self._call, self._script
        kind = self._fault.kind if self._fault is not None else None
        if kind == "html_502":
            call.respond(502, ("content-type", "text/html"), openai.HTML_502, kind)
        elif kind == "empty_body":
            call.respond(200, _SSE, b"", kind)
        elif kind == "reset":
            call.cut(kind, "reset")
        elif kind != "hang" and not (script.stall_before_first and not script.stall_s):
            delay_s = _first_token_s(self._verdict)
            self._first_at = asyncio.get_running_loop().time() + delay_s
            if delay_s:
                call.at(self._first_at, self._begin)
            else:
                self._begin()

    def _begin(self) -> None:
        self._call.start(200, _SSE)
        self._pump()

    def _pump(self) -> None:
        """Writes every event that is due, then waits: for the next one's time, or for the reader."""
        call, rate = self._call, self._script.tokens_per_s
        now = asyncio.get_running_loop().time()
        batch: list[bytes] = []
        size = tokens = 0
        sent = call.entry.tokens_sent
        while True:
            event = self._next
            if event is None or (not self._roles and self._interrupted(sent + tokens)):
                break
            due = self._first_at + (sent + tokens) / rate if rate else now
            if due > now + 0.0005:
                call.at(due, self._pump)
                break
            if size > BATCH_BYTES:
                break
            batch.append(event.data)
            size += len(event.data)
            tokens += event.tokens
            self._roles = max(0, self._roles - 1)
            self._next = next(self._events, None)
        if batch:
            call.entry.tokens_sent += tokens
            call.write(b"".join(batch) if len(batch) > 1 else batch[0], drip=self._script.drip)
        if event is None:
            call.ended(self._fault.kind if self._fault is not None else "ok")
            call.responder.end()
        elif not self._roles and self._interrupted(sent + tokens):
            self._interrupt()
        elif size > BATCH_BYTES:
            if call.responder.congested:
                call.responder.on_writable = self._resume
            else:
                call.later(0, self._pump)

    def _resume(self) -> None:
        self._call.responder.on_writable = None
        self._pump()

    def _interrupted(self, tokens: int) -> bool:
        return (self._cut_after is not None and tokens >= self._cut_after) or (
            self._stall_after is not None and tokens >= self._stall_after
        )

    def _interrupt(self) -> None:
        call, script = self._call, self._script
        tokens = call.entry.tokens_sent
        if self._cut_after is not None and tokens >= self._cut_after:
            call.later(CUT_DELAY_S, lambda: call.cut("cut", script.cut_with))
            return
        self._stall_after = None
        if script.stall_s:
            self._first_at += script.stall_s
            call.later(script.stall_s, self._pump)


def _spoil(events: Iterator[Event], script: Script, fault: Fault | None) -> Iterator[Event]:
    """The stream's events with the fault's in their place."""
    kind = fault.kind if fault is not None else None
    without_done = script.end_without_done or kind == "end_without_done"
    tokens = 0
    for event in events:
        content = event.tokens > 0 or tokens > 0
        if fault is not None and content and tokens >= fault.after_tokens:
            if kind == "malformed_chunk":
                yield Event(b'data: {"id":"chatcmpl-broken","choices":[{"delta":\n\n')
                kind = None
            elif kind == "half_json":
                yield Event(event.data[: len(event.data) // 2])
                return
            elif kind == "error_in_200":
                error = openai.fault_error(fault, model="", key="")
                yield Event(b"data: %b\n\n" % (error.body() if error is not None else b"{}"))
                return
        if event.data == openai.DONE and without_done:
            return
        tokens += event.tokens
        yield event


def _interruptions(script: Script, fault: Fault | None) -> tuple[int | None, int | None]:
    """After how many tokens the answer stalls, and is cut."""
    stall_after, cut_after = script.stall_after_tokens, script.cut_after_tokens
    if fault is not None and fault.kind == "stall":
        stall_after = fault.after_tokens
    if fault is not None and fault.kind == "cut":
        cut_after = fault.after_tokens
    return stall_after, cut_after


def _first_token_s(verdict: Verdict) -> float:
    script = verdict.script
    delay_s = (script.first_token_ms + script.first_token_jitter_ms * verdict.draw) / 1000
    return delay_s + script.stall_s if script.stall_before_first else delay_s


def _chance(seed: int, lane: str, request: HttpRequest) -> int:
    salt = (seed & 0xFFFFFFFFFFFFFFFF).to_bytes(8, "little")
    digest = blake2b(request.body, digest_size=8, key=salt)
    digest.update(lane.encode())
    return int.from_bytes(digest.digest(), "little")


def _key_of(request: HttpRequest) -> str:
    """The caller's key; empty if there is none."""
    given = request.headers.get("authorization", "")
    scheme, _, key = given.partition(" ")
    if scheme.lower() != "bearer":
        key = request.headers.get("api-key", "")
    return key.strip()


def _check_key(script: Script, key: str) -> None:
    if script.keys and key not in script.keys:
        raise openai.wrong_key(key) if key else openai.no_key()


def _demand(request: HttpRequest, method: str) -> None:
    if request.method != method:
        raise openai.wrong_method(request.method, request.path)


def _wait_headers(wait_s: float, form: str, wall: float) -> tuple[tuple[str, str], ...]:
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
        case _:
            return ()


def _send_error(responder: Responder, error: ApiError) -> None:
    responder.respond(error.status, [_JSON], error.body())


def _refuse(status: int, message: str, responder: Responder) -> None:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    _send_error(responder, ApiError(status, message, type_=kind))
