"""Edge: HTTP in, bus out, streams back. It decides nothing: every call becomes the same message that any
NATS client may publish, and every reply becomes HTTP.
"""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import ClassVar, Final
from urllib.parse import parse_qs, unquote

import msgspec
from anyio.abc import TaskGroup
from msgspec import Struct

from breakwater_gateway.config.model import Config
from breakwater_gateway.edge import feedback, gemini_api
from breakwater_gateway.edge import openai_api as http
from breakwater_gateway.edge.framing import Framing, framing
from breakwater_gateway.identity.claims import opened, presented
from breakwater_gateway.router.options import read_duration
from breakwater_gateway.runtime.actor import Actor, Context, Load
from breakwater_gateway.runtime.bus import (
    BusClosed,
    BusError,
    Inbox,
    Message,
    MessageTooLarge,
)
from breakwater_gateway.runtime.http.application import HttpLimits, HttpRequest, Responder
from breakwater_gateway.runtime.http.server import HttpServer
from breakwater_gateway.runtime.keyring import Keyring
from breakwater_gateway.runtime.metrics import CONTENT_TYPE
from breakwater_gateway.runtime.tasks import TaskSet
from breakwater_protocol import failures as f
from breakwater_protocol import headers as h
from breakwater_protocol.cache import FeedbackReply
from breakwater_protocol.chat import ModelList
from breakwater_protocol.commands import Cancel
from breakwater_protocol.keys import KEY_PATTERN, KeyRecord
from breakwater_protocol.subjects import Subject

_SWEEP_S: Final = 1.0
_ROUTER_GRACE_S: Final = 3.0
"""How long after its own deadline a request waits for the router's word before the edge gives up."""

_READY_ASK_S: Final = 1.0
_FEEDBACK_S: Final = 2.0

TENANT: Final = "default"
"""Of every caller that shows no key while `auth: open`."""

ID_MAX: Final = 128


_models = msgspec.json.Decoder(ModelList)


class _Call:
    """One HTTP request that waits for its answer on the bus."""

    __slots__ = (
        "api",
        "attempt",
        "back",
        "framing",
        "give_up_at",
        "inbox",
        "next_seq",
        "request_id",
        "responder",
        "started",
    )

    def __init__(
        self,
        responder: Responder,
        request_id: str,
        give_up_at: float,
        api: str,
        framing: Framing,
        back: Callable[[bytes], bytes] | None,
    ) -> None:
        self.back = back
        self.api = api
        self.framing = framing
        self.responder = responder
        self.request_id = request_id
        self.give_up_at = give_up_at
        self.inbox: Inbox | None = None
        self.started = False
        self.attempt = ""
        self.next_seq = 0


class Listen(Struct, frozen=True):
    """Where the edge serves HTTP."""

    host: str = "127.0.0.1"
    port: int = 4100
    reuse_port: bool = False
    allow_open: bool = False
    """`auth: open` is served beyond loopback too: something in front asks for keys."""

    @property
    def loopback(self) -> bool:
        return self.host in {"localhost", "::1"} or self.host.startswith("127.")


class _Caller(Struct, frozen=True):
    """Whose request it is; `key` is the virtual key shown, empty under `auth: open`."""

    tenant: str
    key: str = ""


_OPEN: Final = _Caller(TENANT)
_SUBJECTS_KEPT: Final = 4096


class Edge(Actor):
    kind: ClassVar[str] = "edge"

    def __init__(
        self,
        context: Context,
        *,
        listen: Listen,
        readiness: Callable[[], dict[str, str]],
        metrics_text: Callable[[], Awaitable[bytes]],
    ) -> None:
        """`readiness`: why this process cannot serve, by part; empty when it can."""
        super().__init__(context)
        self._longest_s = _longest_s(context.config)
        self._listen = listen
        self._readiness = readiness
        self._metrics_text = metrics_text
        self._server: HttpServer | None = None
        self._calls: set[_Call] = set()
        self._tasks = TaskSet(context.log)
        self._inflight = context.metrics.gauge("breakwater_inflight", actor=self.kind)
        self._keys = Keyring(context.log)
        self._subjects: dict[tuple[str, str], str] = {}
        """By API and tenant."""

    # ------------------------------------------------------------ life

    async def start(self, tasks: TaskGroup) -> None:
        del tasks
        await self._keys.start(self.context.bus)
        self._server = HttpServer(
            self._serve,
            refuse=self._refuse,
            limits=HttpLimits(
                body_bytes=self.config.limits.body_bytes,
                connections=self.config.limits.connections,
            ),
            log=self.context.log,
        )
        await self._server.start(
            self._listen.host, self._listen.port, reuse_port=self._listen.reuse_port
        )
        self._sweep()

    async def drain(self) -> None:
        self.draining = True
        if self._server is not None:
            await self._server.drain(self._longest_s + _ROUTER_GRACE_S)
        await self._tasks.join()
        await self._keys.close()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.close()
        await self._tasks.cancel()

    def load(self) -> Load:
        return Load(capacity=self.config.limits.connections, in_flight=len(self._calls))

    def on_config(self, config: Config, revision: int) -> None:
        super().on_config(config, revision)
        self._longest_s = _longest_s(config)

    # ------------------------------------------------------------ HTTP in

    def _refuse(self, status: int, message: str, responder: Responder) -> None:
        """The server's own refusals (malformed, too large, too many) in OpenAI's shape."""
        if status == 413:
            mend = "send less, or raise limits.body_bytes"
            failure: f.Failure = f.PayloadTooLarge(f"{message.rstrip('.')}: {mend}")
        elif status >= 500:
            failure = f.Overloaded(message)
        else:
            failure = f.InvalidRequest(message)
        _, headers, body = http.error_answer(failure)
        responder.respond(status, headers, body)

    def _serve(self, request: HttpRequest, responder: Responder) -> None:
        match request.method, request.path:
            case "POST", "/v1/chat/completions" | "/chat/completions":
                self._ask("chat", request, request.body, responder)
            case "POST", "/v1/embeddings" | "/embeddings":
                self._ask("embeddings", request, request.body, responder)
            case "POST", "/v1/messages":
                self._ask("messages", request, request.body, responder)
            case "POST", "/v1/responses" | "/responses":
                self._ask("responses", request, request.body, responder)
            case "POST", path if gemini_api.PATH.match(path):
                self._gemini(request, responder)
            case "POST", feedback.PATH:
                self._tasks.spawn(self._feedback(request, responder))
            case "GET" | "HEAD", "/v1/models" | "/models":
                self._tasks.spawn(self._list_models(request, responder, ""))
            case "GET" | "HEAD", path if path.startswith("/v1/models/"):
                wanted = path.removeprefix("/v1/models/")
                self._tasks.spawn(self._list_models(request, responder, wanted))
            case "GET" | "HEAD", "/healthz":
                responder.respond(200, (http.JSON,), b'{"status":"ok"}')
            case "GET" | "HEAD", "/readyz":
                self._tasks.spawn(self._ready_answer(responder))
            case "GET" | "HEAD", "/metrics":
                self._tasks.spawn(self._metrics_answer(responder))
            case _, path if path in _PATHS or path.startswith("/v1/models/"):
                allowed = _PATHS.get(path, "GET")
                _, headers, body = http.error_answer(
                    f.InvalidRequest(f"{path} takes {allowed}, not {request.method[:16]}")
                )
                responder.respond(405, [*headers, ("allow", allowed)], body)
            case _:
                _, headers, body = http.error_answer(
                    f.InvalidRequest(
                        f"there is no {request.path[:200]} here: try /v1/chat/completions, "
                        "/v1/embeddings or /v1/models"
                    )
                )
                responder.respond(404, headers, body)

    def _ask(
        self,
        api: str,
        request: HttpRequest,
        body: bytes,
        responder: Responder,
        *,
        dialect: str = "",
        sse: bool = True,
        back: Callable[[bytes], bytes] | None = None,
    ) -> None:
        """The call as the message that any NATS client may publish.

        `dialect`: whose errors the client reads, where that is not the `api` that it becomes; `back`
        turns a whole answer into that dialect's.
        """
        caller = self._caller(request)
        if not isinstance(caller, _Caller):
            self._answer_error(responder, caller, dialect or api)
            return
        headers = http.bus_headers(request.headers, body, longest_s=self._longest_s)
        if caller.key:
            headers[h.KEY] = caller.key
        request_id = headers.get(h.REQUEST_ID, "")
        if not request_id:
            request_id = headers[h.ASSIGNED_ID] = self.context.clock.new_id("req_")
        if len(request_id) > ID_MAX:
            failure = f.InvalidRequest(f"{h.REQUEST_ID} may have {ID_MAX} characters at most")
            self._answer_error(responder, failure, api)
            return
        call = _Call(
            responder,
            request_id,
            self.context.clock.now() + self._patience(headers) + _ROUTER_GRACE_S,
            dialect or api,
            framing(api, sse=sse),
            back,
        )
        call.inbox = self.context.bus.open_inbox(partial(self._on_answer, call))
        self._calls.add(call)
        self._inflight.set(len(self._calls))
        responder.on_close = partial(self._on_client_gone, call)
        try:
            self.context.bus.publish(
                self._subject(api, caller.tenant),
                body,
                reply=call.inbox.subject,
                headers=headers,
            )
        except MessageTooLarge as error:
            self._fail(call, f.PayloadTooLarge(f"{error}: send a smaller body"))
        except BusError as error:
            self.context.log.warning("bus_unavailable", error=repr(error))
            self._fail(call, f.Overloaded("the gateway's bus is unavailable", retry_after_s=1.0))
            if isinstance(error, BusClosed):
                raise

    def _caller(self, request: HttpRequest) -> _Caller | f.Failure:
        """Whose request this is. A key of ours that is shown is looked at in any mode."""
        in_query = parse_qs(request.query).get("key", [""])[0] if request.query else ""
        key = presented(request.headers, in_query)
        if self.config.auth.mode == "open" and not KEY_PATTERN.fullmatch(key):
            if self._listen.loopback or self._listen.allow_open:
                return _OPEN
            return f.CallerForbidden(
                "auth is open and the edge is reached from other machines: set `auth: {mode: keys}`, "
                "or start it with --allow-open if something in front asks for keys"
            )
        record = opened(self._keys.board, key, self.context.clock.wall())
        return _Caller(record.tenant, key) if isinstance(record, KeyRecord) else record

    def _subject(self, api: str, tenant: str) -> str:
        found = self._subjects.get((api, tenant))
        if found is None:
            if len(self._subjects) >= _SUBJECTS_KEPT:
                self._subjects.clear()
            kind: Subject[msgspec.Raw] = getattr(self.context.subjects, api)
            found = self._subjects[api, tenant] = kind.at(tenant)
        return found

    def _gemini(self, request: HttpRequest, responder: Responder) -> None:
        """`/v1beta/models/M:generateContent` and its kin."""
        asked = gemini_api.read(request.path, request.query, request.body)
        if isinstance(asked, gemini_api.Asked):
            self._ask(
                asked.api,
                request,
                asked.body,
                responder,
                dialect="generate",
                sse=asked.sse,
                back=asked.back,
            )
        else:
            self._answer_error(responder, asked, "generate")

    def _answer_error(
        self, responder: Responder, failure: f.Failure, api: str, status: int | None = None
    ) -> None:
        usual, headers, body = http.error_answer(failure, api=api)
        responder.respond(status or usual, headers, body)

    def _patience(self, headers: dict[str, str]) -> float:
        asked = read_duration(headers.get(h.TIMEOUT, ""))
        return self._longest_s if asked is None else min(asked, 3600.0)

    # ------------------------------------------------------------ bus back

    def _on_answer(self, call: _Call, message: Message) -> None:
        if call not in self._calls:
            return
        if message.no_responders:
            self._fail(
                call,
                f.Overloaded(
                    "no router is running: start one with `breakwater run router`",
                    retry_after_s=1.0,
                ),
            )
            return
        if h.SEQ in message.headers or h.END in message.headers:
            self._on_stream(call, message)
            return
        if call.started:
            # An error after the stream began: the router's word on a worker that is gone.
            call.responder.write(call.framing.events(message.data))
            call.responder.end()
        else:
            status = http.status_of(message.headers)
            body = message.data
            if call.back is not None:
                body = self._turned(call, status, body)
            call.responder.respond(status, [http.JSON, *http.http_headers(message.headers)], body)
        self._end(call)

    def _turned(self, call: _Call, status: int, body: bytes) -> bytes:
        """An answer of another dialect's as the client's own."""
        if status == 200 and call.back is not None:
            return call.back(body)
        return http.translated_error(body, status, call.api)

    def _on_stream(self, call: _Call, message: Message) -> None:
        headers, responder = message.headers, call.responder
        attempt = headers.get(h.ATTEMPT, "1")
        seq = headers.get(h.SEQ)
        seam = headers.get(h.SEAM, "")
        if not call.started:
            if seq is not None and seq != "0":
                return  # of an attempt whose beginning never reached us
            call.started = True
            call.attempt = attempt
            responder.start(
                200,
                [
                    ("content-type", call.framing.content_type),
                    *http.STREAM_HEADERS,
                    *http.http_headers(headers),
                ],
            )
        elif seam and (len(attempt), attempt) > (len(call.attempt), call.attempt):
            call.attempt = attempt  # another deployment goes on with the answer, and says so
        elif attempt != call.attempt and (seq is not None or h.END not in headers):
            return  # only the router speaks for all of them, and it numbers nothing
        if seq is not None and attempt == call.attempt:
            if seq != str(call.next_seq):
                self._cut(call, "gap")
                return
            call.next_seq += 1
        if message.data:
            responder.write(call.framing.events(message.data, seam))
        if h.END in headers:
            responder.write(call.framing.end(headers))
            responder.end()
            self._end(call)

    def _cut(self, call: _Call, reason: str) -> None:
        """A stream that cannot go on honestly: say so in the stream, and stop the worker."""
        self.context.log.warning("stream_cut", request=call.request_id, reason=reason)
        call.responder.write(
            call.framing.end({h.END: "partial", h.PARTIAL: reason, h.REQUEST_ID: call.request_id})
        )
        call.responder.end()
        self._cancel(call, reason)
        self._end(call)

    def _fail(self, call: _Call, failure: f.Failure) -> None:
        status, headers, body = http.error_answer(
            failure, {h.REQUEST_ID: call.request_id}, api=call.api
        )
        call.responder.respond(status, headers, body)
        self._end(call)

    def _on_client_gone(self, call: _Call) -> None:
        if call in self._calls:
            self._cancel(call, "caller_gone")
            self._end(call)

    def _cancel(self, call: _Call, reason: str) -> None:
        subject = self.context.subjects.cancel
        try:
            self.context.bus.publish(
                subject.at(call.request_id), subject.encode(Cancel(call.request_id, reason))
            )
        except BusError as error:
            self.context.log.warning("cancel_not_sent", request=call.request_id, error=repr(error))

    def _end(self, call: _Call) -> None:
        call.responder.on_close = None
        if call.inbox is not None:
            call.inbox.close()
        self._calls.discard(call)
        self._inflight.set(len(self._calls))

    def _sweep(self) -> None:
        """One timer for all calls: a router that died took its word with it."""
        now = self.context.clock.now()
        for call in [c for c in self._calls if now >= c.give_up_at]:
            self._cancel(call, "no_answer")
            if call.started:
                self._cut(call, "total_timeout")
            else:
                self._fail(call, f.TotalTimeout("no answer came before the deadline"))
        if not self.draining or self._calls:
            self.context.clock.call_at(now + _SWEEP_S, self._sweep)

    # ------------------------------------------------------------ small answers

    async def _list_models(self, request: HttpRequest, responder: Responder, wanted: str) -> None:
        caller = self._caller(request)
        if not isinstance(caller, _Caller):
            self._answer_error(responder, caller, "chat")
            return
        try:
            reply = await self.context.bus.ask(
                self.context.subjects.models.at(caller.tenant),
                b"",
                headers={h.KEY: caller.key} if caller.key else {},
                timeout_s=5.0,
            )
        except BusError:
            status, headers, body = http.error_answer(
                f.Overloaded("no router answered: start one with `breakwater run router`")
            )
            responder.respond(status, headers, body)
            return
        if not wanted:
            responder.respond(http.status_of(reply.headers), (http.JSON,), reply.data)
            return
        name = unquote(wanted)
        for entry in _models.decode(reply.data).data:
            if entry.id == name:
                responder.respond(200, (http.JSON,), msgspec.json.encode(entry))
                return
        status, headers, body = http.error_answer(
            f.UnknownModel(f"there is no model {name[:200]!r}: GET /v1/models lists them")
        )
        responder.respond(status, headers, body)

    async def _feedback(self, request: HttpRequest, responder: Responder) -> None:
        caller = self._caller(request)
        if not isinstance(caller, _Caller):
            self._answer_error(responder, caller, "chat")
            return
        said = feedback.read(request.body, caller.tenant)
        if not isinstance(said, tuple):
            self._answer_error(responder, said, "chat")
            return
        shard, verdict = said
        subject = self.context.subjects.cache_feedback
        try:
            reply = await self.context.bus.ask(
                subject.at(shard), subject.encode(verdict), timeout_s=_FEEDBACK_S
            )
            taken = msgspec.json.decode(reply.data, type=FeedbackReply).taken
        except (BusError, msgspec.DecodeError):
            failure = f.Overloaded(
                "the cache did not answer: send the verdict again", retry_after_s=1
            )
            self._answer_error(responder, failure, "chat")
            return
        if taken:
            responder.respond(200, (http.JSON,), b'{"taken":true}')
        else:
            self._answer_error(responder, feedback.unknown(verdict), "chat", 404)

    async def _ready_answer(self, responder: Responder) -> None:
        reasons = dict(self._readiness())
        try:
            # Routers may be elsewhere: what they would hear of a request, they hear of this.
            await self.context.bus.ask(
                self.context.subjects.models.at(TENANT), timeout_s=_READY_ASK_S
            )
        except BusError:
            reasons.setdefault("router", "none answers")
        if self.draining:
            reasons["edge"] = "draining"
        body = msgspec.json.encode({"ready": not reasons, "waiting_for": reasons})
        responder.respond(503 if reasons else 200, (http.JSON,), body)

    async def _metrics_answer(self, responder: Responder) -> None:
        responder.respond(200, (("content-type", CONTENT_TYPE),), await self._metrics_text())


def _longest_s(config: Config) -> float:
    """The longest total timeout that any model is configured with."""
    return max((m.timeouts.total_s for m in config.models.values()), default=60.0)


_PATHS: Final = {
    "/v1/chat/completions": "POST",
    "/v1/embeddings": "POST",
    "/v1/messages": "POST",
    "/v1/responses": "POST",
    feedback.PATH: "POST",
    "/v1/models": "GET",
    "/healthz": "GET",
    "/readyz": "GET",
    "/metrics": "GET",
}
