"""A model's ladder walked in process and in virtual time: the real actors, providers that fail by script.

No provider is called and no key is read: every deployment is one of the script's. Written answers are found by
meaning as well where a local embedder is configured; one that is a model's would have to be called. What is down is the model's
own deployments, and then, one after the other, the simple models of its ladder.
"""

import asyncio
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

import anyio
import msgspec
from msgspec import Struct, structs

from breakwater_gateway.config import codec
from breakwater_gateway.config.model import Config, Deployment, Model
from breakwater_gateway.health.actor import Health
from breakwater_gateway.router.actor import Router
from breakwater_gateway.router.ladder import rungs_of
from breakwater_gateway.router.life import Life
from breakwater_gateway.router.options import Options
from breakwater_gateway.router.plan import Candidate, GiveUp, Plan, Skipped, Step
from breakwater_gateway.router.static_answers import Index
from breakwater_gateway.runtime.actor import Actor, Context
from breakwater_gateway.runtime.bus import Message
from breakwater_gateway.runtime.clock import Clock
from breakwater_gateway.runtime.memory_bus import MemoryBus, MemoryHub
from breakwater_gateway.runtime.metrics import Registry
from breakwater_gateway.runtime.service import ConfigHolder, publish_config
from breakwater_gateway.runtime.slot import ActorSpec
from breakwater_gateway.runtime.supervisor import Supervisor
from breakwater_gateway.runtime.virtual_time import VirtualTimeLoop
from breakwater_gateway.worker.actor import Worker
from breakwater_gateway.worker.http_client import (
    Answer,
    ConnectFailed,
    Headers,
    OriginStats,
    Prepared,
)
from breakwater_protocol import cache as c
from breakwater_protocol import failures as f
from breakwater_protocol import headers as h
from breakwater_protocol.subjects import Subject, Subjects

if TYPE_CHECKING:
    from breakwater_gateway.cache.embed.embedder import NoVector, Vector
    from breakwater_gateway.cache.embed.minilm import MiniLM

PROVIDER_DOWN: Final = "provider down"
RATE_LIMITED: Final = "rate limited"
SLOW: Final = "slow first token"
BUDGET: Final = "budget exhausted"
OUTAGES: Final = (PROVIDER_DOWN, RATE_LIMITED, SLOW, BUDGET)

ANSWER: Final = (
    b'{"id":"trial","object":"chat.completion","created":0,"choices":[{"index":0,"message":'
    b'{"role":"assistant","content":"ok"},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}'
)
STREAM: Final = (
    b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":"ok"},"finish_reason":null}]}\n\n'
    b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
)
_SUBJECTS: Final = Subjects()
_LONGEST_S: Final = 90_000.0


class Walked(Struct, frozen=True):
    """One request under one outage. Times are of the virtual clock."""

    outage: str
    also_down: tuple[str, ...]
    """Simple models that are down as well."""
    kept: bool
    """The question was answered once, so long ago that the answer is no longer fresh."""
    expected: str
    rung: str
    reason: str
    status: int
    attempts: int
    after_s: float
    ok: bool
    match: str = ""
    """How the written answer was found: `words`, `meaning` or `default`."""
    match_score: float | None = None


def walk(
    config: Config, model: Model, question: str, embedder: "InHand | None" = None
) -> list[Walked]:
    """Every outage, with each simple model of the ladder failing in turn."""
    simple = [rung.model for rung in rungs_of(model.ladder) if rung.kind == "simple_model"]
    trials: list[_Trial] = []
    for outage in OUTAGES:
        for down in range(1 if outage == BUDGET else len(simple) + 1):
            also_down = tuple(simple[:down])
            trials.append(_Trial(config, model, outage, also_down, question, embedder))
        if _keeps(model):
            trials.append(_Trial(config, model, outage, (), question, embedder, kept=True))
    return [_run(trial) for trial in trials]


def _run(trial: "_Trial") -> Walked:
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(trial.run())


def _keeps(model: Model) -> bool:
    """Whether an answer that is no longer fresh can be served at all."""
    cache = model.cache
    wanted = any(rung.kind == "stale" for rung in rungs_of(model.ladder))
    return wanted and cache.exact_s > 0 and cache.stale_if_error_s > 0 and cache.scope != "key"


class InHand:
    """A local embedder in this process: what a trial does takes none of its time. An `Embedder`."""

    calls = False

    def __init__(self, name: str, model: "MiniLM") -> None:
        self.name = name
        self._model = model
        self._made: dict[str, Vector | NoVector] = {}

    async def start(self) -> None:
        return

    async def close(self) -> None:
        return

    def vector(self, text: str) -> "Vector | NoVector":
        if text not in self._made:
            made = self._model.embed(text)
            self._made[text] = "too_long" if made is None else made
        return self._made[text]

    async def embed(
        self,
        text: str,
        tenant: str,
        *,
        max_cost_nano_usd: int | None = None,
        patience_s: float | None = None,
    ) -> "Vector | NoVector":
        del tenant, max_cost_nano_usd, patience_s
        return self.vector(text)

    async def embed_all(self, texts: Sequence[str], tenant: str) -> "list[Vector | NoVector]":
        del tenant
        return [self.vector(text) for text in texts]

    def near(self, config: Config, question: str) -> tuple[c.Near, ...]:
        """As the cache would tell."""
        from breakwater_gateway.cache.semantic import unit
        from breakwater_gateway.cache.written import Written

        written, made = Written(config), self.vector(question)
        while texts := written.missing():
            vectors = [self.vector(text) for text in texts]
            written.learn([None if isinstance(each, str) else each for each in vectors])
        vector = None if isinstance(made, str) else unit(made, written.dimensions)
        return () if vector is None else written.near(vector)


def expected(
    config: Config,
    model: Model,
    outage: str,
    down: tuple[str, ...],
    question: str,
    near: tuple[c.Near, ...] = (),
    *,
    kept: bool = False,
) -> str:
    """The rung that should answer. Nothing is kept of a question that was never asked."""
    for rung in rungs_of(model.ladder):
        match rung.kind:
            case "stale" if kept:
                return rung.kind
            case "simple_model" if outage != BUDGET and rung.model not in down:
                return rung.kind
            case "static" if Index(config.static_answers).answer(question, near) is not None:
                return rung.kind
            case "error":
                return rung.kind
            case _:
                pass
    return "error"


class _Trial:
    def __init__(
        self,
        config: Config,
        model: Model,
        outage: str,
        down: tuple[str, ...],
        question: str,
        embedder: InHand | None,
        *,
        kept: bool = False,
    ) -> None:
        self._kept = kept
        self._embedder = embedder
        self._router: _Broke | None = None
        self._model = model
        self._outage = outage
        self._down = down
        self._question = question
        near = () if embedder is None else embedder.near(config, question)
        self._expected = expected(config, model, outage, down, question, near, kept=kept)
        self._config = _scripted(config)
        name = self._config.model(model.name)
        own = {d.base_url for d in (name or model).deployments}
        dead = {d.base_url for m in down for d in _deployments(self._config, m)}
        self._provider = _Provider(own, dead)

    async def run(self) -> Walked:
        bus = MemoryBus("trial", MemoryHub())
        metrics, log = Registry(), _Quiet()
        data = codec.encode(self._config)
        await publish_config(bus, _SUBJECTS, data)
        supervisor = Supervisor(
            bus,
            _SUBJECTS,
            [
                ActorSpec("health", Health, log=log),
                ActorSpec("worker", self._worker, log=log),
                ActorSpec("router", self._broke if self._outage == BUDGET else Router, log=log),
                *([ActorSpec("cache", self._cache, log=log)] if self._embedder is not None else []),
            ],
            ConfigHolder(data, codec.decode, log=log, metrics=metrics),
            metrics=metrics,
            log=log,
            clock=Clock(seed=1, wall=asyncio.get_running_loop().time),
            signals=False,
        )
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(supervisor.run)
            while supervisor.ready():  # noqa: ASYNC110 - computed from parts, there is no event
                await asyncio.sleep(0.05)
            if self._kept:
                await self._ask(bus)
                await asyncio.sleep(self._model.cache.exact_s + 1)
            self._provider.outage = self._outage
            if self._router is not None:
                self._router.spent = True
            walked = await self._ask(bus)
            tasks.cancel_scope.cancel()
        return walked

    def _broke(self, context: Context) -> Actor:
        self._router = _Broke(context)
        return self._router

    def _cache(self, context: Context) -> Actor:
        from breakwater_gateway.cache.actor import Cache

        return Cache(context, embedder=self._embedder)

    def _worker(self, context: Context) -> Actor:
        return Worker(context, client=self._provider, environment={})

    async def _ask(self, bus: MemoryBus) -> Walked:
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[Message] = loop.create_future()

        def hear(message: Message) -> None:
            # Of a stream the first message says all there is to know.
            if not answered.done():
                answered.set_result(message)

        inbox = bus.open_inbox(hear)
        began = loop.time()
        stream = self._outage == SLOW
        body = {
            "model": self._model.name.replace("*", "trial"),
            "messages": [{"role": "user", "content": self._question}],
            "stream": stream,
            "temperature": 0,
            "user": "trial",
        }
        bus.publish(_SUBJECTS.chat.at("trial"), msgspec.json.encode(body), reply=inbox.subject)
        async with asyncio.timeout(_LONGEST_S):
            headers = (await answered).headers
        rung = headers.get(h.RUNG, "error")
        return Walked(
            outage=self._outage,
            also_down=self._down,
            kept=self._kept,
            expected=self._expected,
            rung=rung,
            reason=headers.get(h.RUNG_REASON, ""),
            status=int(headers.get(h.SERVICE_ERROR_CODE, "200")),
            attempts=int(headers.get(h.ATTEMPTS, "0")),
            after_s=round(loop.time() - began, 3),
            ok=rung == self._expected,
            match=headers.get(h.MATCH, ""),
            match_score=float(headers[h.MATCH_SCORE]) if h.MATCH_SCORE in headers else None,
        )


class _Quiet:
    """What actors say of outages that we made is no news."""

    def _nothing(self, event: str, **facts: object) -> None:
        """Said to nobody."""

    debug = info = warning = error = exception = _nothing


class _Spent(Plan):
    def next(
        self, candidates: tuple[Candidate, ...], skipped: tuple[Skipped, ...], *, now: float
    ) -> Step:
        del candidates, skipped, now
        return GiveUp(f.BudgetExhausted("the budget is exhausted", retry_after_s=3600.0))


class _Broke(Router):
    """A router whose ledger grants nothing, once the outage has begun."""

    spent = False

    def _admit(
        self,
        subject: Subject[msgspec.Raw],
        api: str,
        message: Message,
        options: Options,
        request_id: str,
    ) -> Life | f.Failure:
        life = super()._admit(subject, api, message, options, request_id)
        if isinstance(life, Life) and self.spent:
            life.plan = _Spent(policy=life.home.retry, envelope=life.plan.envelope)
        return life


def _deployments(config: Config, name: str) -> tuple[Deployment, ...]:
    model = config.model(name)
    return () if model is None else model.deployments


def _scripted(config: Config) -> Config:
    """The same models, deployments and policies; of the hosts only that they are there, and nothing that it
    costs."""
    numbers = iter(range(10**9))
    return structs.replace(
        config,
        budgets=(),
        rate_limits=(),
        models={
            name: structs.replace(
                model,
                deployments=tuple(_host(each, numbers) for each in model.deployments),
                retry=structs.replace(model.retry, max_cost_nano_usd=None),
            )
            for name, model in config.models.items()
        },
    )


def _host(deployment: Deployment, numbers: Iterator[int]) -> Deployment:
    return structs.replace(
        deployment,
        provider="trial",
        wire="openai",
        base_url=f"http://trial-{next(numbers)}.invalid",
        api_keys=(),
        auth="none",
        params=(),
        quirks=(),
        headers=(),
        pool="",
    )


class _Scripted(Answer):
    __slots__ = ("_pieces",)

    def __init__(self, status: int, *pieces: bytes | None, wait_s: str = "") -> None:
        super().__init__()
        self.status = status
        self.raw_headers = [(b"retry-after", wait_s.encode())] if wait_s else []
        self._pieces = list(pieces)

    @property
    def buffered(self) -> int:
        return sum(len(piece) for piece in self._pieces if piece is not None)

    @property
    def ended(self) -> bool:
        return self._pieces == [None]

    def close(self) -> None:
        self._pieces = [None]

    async def _raw_chunk(self) -> bytes | None:
        if not self._pieces:
            await asyncio.Event().wait()  # nothing more is ever said
        return self._pieces[0] and self._pieces.pop(0)


class _Prepared(Prepared):
    def __init__(self, url: str) -> None:
        self.url = url


class _Provider:
    """An `HttpClient`: `own` hosts have the outage, `dead` ones refuse connections, all others answer."""

    def __init__(self, own: set[str], dead: set[str]) -> None:
        self._own = own
        self._dead = dead
        self.outage = ""
        """Empty before it begins."""

    def prepare(
        self, method: str, url: str, headers: Headers = (), *, http2: bool = True
    ) -> Prepared:
        del method, headers, http2
        return _Prepared(url)

    async def send(
        self,
        prepared: Prepared,
        body: bytes = b"",
        *,
        headers: Headers = (),
        connect_timeout_s: float = 5.0,
        pool_timeout_s: float = 5.0,
    ) -> Answer:
        del headers, connect_timeout_s, pool_timeout_s
        if not isinstance(prepared, _Prepared):
            raise TypeError("prepared by another client")
        host = prepared.url.removesuffix("/chat/completions")
        if host in self._dead and self.outage:
            raise ConnectFailed("tcp", "refused by the script")
        if host in self._own:
            match self.outage:
                case outage if outage == PROVIDER_DOWN:
                    raise ConnectFailed("tcp", "refused by the script")
                case outage if outage == RATE_LIMITED:
                    return _Scripted(429, b'{"error":{"message":"too many"}}', None, wait_s="60")
                case outage if outage == SLOW:
                    return _Scripted(200)
                case _:
                    pass
        return _Scripted(200, STREAM if b'"stream":true' in body else ANSWER, None)

    def stats(self) -> list[OriginStats]:
        return []

    async def close(self) -> None:
        return
