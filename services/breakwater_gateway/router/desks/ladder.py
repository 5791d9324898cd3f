"""The router's desk for the ladder: walks down it when a request's own deployments have given up.

Which rung is next is the pure `ladder.py`'s decision. Here its answer is found: kept ones are the cache's, a
simple model is asked through the attempts' desk within the same envelope, written ones are rendered in the
caller's dialect (where there are embeddings, the `cache` is asked which of their questions mean the same), and
at the bottom stands the failure itself.
"""

from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

import msgspec

from breakwater_gateway.config.model import Config, Model, Rung, StaticAnswers
from breakwater_gateway.router.affordable import embedding_bound
from breakwater_gateway.router.desks.meaning import Meaning
from breakwater_gateway.router.ladder import ERROR, foot
from breakwater_gateway.router.life import Life
from breakwater_gateway.router.needs import capabilities
from breakwater_gateway.router.plan import Plan
from breakwater_gateway.router.question import question_of
from breakwater_gateway.router.static_answers import Index, Match
from breakwater_gateway.runtime.actor import Context
from breakwater_gateway.runtime.answers import usd
from breakwater_gateway.runtime.bus import BusError
from breakwater_gateway.worker.wire import render
from breakwater_protocol import cache as c
from breakwater_protocol import failures as f
from breakwater_protocol import headers as h
from breakwater_protocol.chat import ChatRequest

PATIENCE: Final = 0.5
"""Of a request's time: how long at most it waits for its own deployments where a simple model can answer."""


class Kept(Protocol):
    """Answers that were kept: the cache's side of the rungs `cache` and `stale`."""

    def rung(self, life: Life, kind: str, nothing: Callable[[], None], /) -> None:
        """Answer the caller with what is kept and end the request, or call `nothing`, once, now or later."""
        ...


class Walk:
    def __init__(
        self,
        context: Context,
        *,
        config: Callable[[], Config],
        find: Callable[[Life, str], Model | None],
        advance: Callable[[Life], None],
        answered: Callable[[Life], None],
        failed: Callable[[Life, f.Failure], None],
        kept: Kept | None = None,
    ) -> None:
        """`find`: another model, with those of its deployments that can answer the life's request. `advance`
        asks the life's plan again; `answered` ends it after its answer was sent; `failed` answers with the
        failure and ends it."""
        self._context = context
        self._config = config
        self._find = find
        self._advance = advance
        self._answered = answered
        self._failed = failed
        self._kept = kept
        self._meaning = Meaning(context)
        self._indexed: StaticAnswers | None = None
        self._index = Index(StaticAnswers())

    def descend(self, life: Life, failure: f.Failure) -> None:
        """What stands where the life is now has given up: the next rung down answers."""
        if life.over:
            return
        ladder, now = life.ladder, self._context.clock.now()
        passed = len(ladder.skipped)
        rung = ladder.next(
            failure, calls=self._calls_left(life, now), chat=life.api != "embeddings"
        )
        for kind, why in ladder.skipped[passed:]:
            life.note("skip", now=now, deployment=kind, reason=why)
        cause = ladder.cause or failure
        if rung != ERROR:
            life.rung = rung.kind
            life.notes[h.RUNG_REASON] = f.kind(cause)
            life.note("rung", now=now, deployment=rung.kind, reason=f.kind(cause))
        match rung.kind:
            case "error":
                # Whatever failed further down: the caller asked for this model, and is told what became of it.
                self._failed(life, foot(cause, life.home) if ladder.declared else cause)
            case "cache" | "stale":
                if self._kept is None:
                    self.descend(life, failure)
                else:
                    self._kept.rung(life, rung.kind, partial(self.descend, life, failure))
            case "simple_model":
                self._simple_model(life, rung, failure)
            case "static":
                self._static(life, failure)

    def _calls_left(self, life: Life, now: float) -> int:
        envelope = life.plan.envelope
        return 0 if now >= envelope.deadline else envelope.attempts_max - envelope.attempts

    def _simple_model(self, life: Life, rung: Rung, failure: f.Failure) -> None:
        model = self._find(life, rung.model)
        if model is None:
            life.note(
                "skip", now=self._context.clock.now(), deployment=rung.model, reason="no_model"
            )
            self.descend(life, failure)
            return
        life.turn_to(model, rung.model, plan_on(life, model))
        self._advance(life)

    def _static(self, life: Life, failure: f.Failure) -> None:
        config, question = self._config(), question_of(life.body, life.api)
        answers = config.static_answers
        embeddings = config.embeddings
        if embeddings is None or not answers.entries or not 0 < len(question) <= c.TEXT_MAX:
            self._written(life, failure, question, None)
            return
        envelope, asked = life.plan.envelope, c.LookWritten(life.request_id, life.tenant, question)
        if embeddings.model and not life.ladder.spent:
            asked = self._paid(life, asked)

        def answered(near: c.NearWritten) -> None:
            # Of an answer that is late nobody knows whether there was a call.
            envelope.attempts += near.called or (asked.may_call and near.reason == "late")
            self._written(life, failure, question, near)

        self._meaning.written(asked, answered)

    def _paid(self, life: Life, asked: c.LookWritten) -> c.LookWritten:
        """The call of a model is one of the request's, and draws on its money: if that is left, it may be made."""
        clock, money = self._context.clock, life.plan.envelope.money
        if self._calls_left(life, clock.now()) < 1:
            return asked
        bound: int | None = None
        if money is not None:
            bound = embedding_bound(self._config(), asked.text, at=clock.wall())
            if bound is None or not money.draw(bound):
                return asked
            money.settle(bound, None)  # whoever embeds does not say what it has cost
        return msgspec.structs.replace(asked, may_call=True, max_cost_nano_usd=bound)

    def _written(
        self, life: Life, failure: f.Failure, question: str, near: c.NearWritten | None
    ) -> None:
        if life.over:  # its caller left meanwhile
            return
        answers = self._config().static_answers
        if answers is not self._indexed:
            self._indexed, self._index = answers, Index(answers)
        now = self._context.clock.now()
        if near is not None and near.reason is not None:
            life.note("skip", now=now, deployment="meaning", reason=near.reason)
        match = self._index.answer(question, near.found if near is not None else None)
        if match is not None and not _is_of_its_form(match.answer, life.body):
            life.note("skip", now=now, deployment="static", reason="json")
            match = None
        by = "none" if match is None else match.by
        self._context.metrics.counter(
            "breakwater_static_matches_total", model=life.home.name, by=by
        ).add()
        if match is None:
            life.note("match", now=now, reason="none")
            self.descend(life, failure)
            return
        life.note("match", now=now, reason=match.by, score=match.score)
        self._say(life, match)

    def _say(self, life: Life, match: Match) -> None:
        clock = self._context.clock
        answer = render.of_text(
            match.answer,
            id_=life.request_id,
            created=int(clock.wall()),
            model=life.asked.model,
        )
        facts = life.facts("static")
        facts[h.MATCH], facts[h.MATCH_SCORE] = match.by, f"{match.score:.3f}"
        facts[h.COST_USD] = usd(0)
        facts[h.OVERHEAD_MS] = f"{life.overhead_ms(clock.now()):.2f}"
        asked, model = life.asked, life.asked.model
        try:
            if not life.stream:
                self._send(life, render.whole(answer, api=life.api, model=model), facts)
            else:
                options = asked.stream_options if isinstance(asked, ChatRequest) else None
                lines = render.chunks(
                    answer,
                    api=life.api,
                    model=model,
                    usage_wanted=bool(options and options.include_usage),
                )
                # A number of its own: nothing of an attempt given up for lost may join this stream.
                frame = {h.ATTEMPT: str(life.plan.attempts + 1)}
                self._send(life, b"\n".join(lines), {**facts, **frame, h.SEQ: "0"})
                self._send(life, b"", {**facts, **frame, h.SEQ: "1", h.END: "ok"})
        except BusError as error:
            self._context.log.warning("not_sent", request=life.request_id, error=repr(error))
        self._answered(life)

    def _send(self, life: Life, data: bytes, headers: dict[str, str]) -> None:
        self._context.bus.publish(life.reply, data, headers=headers)


def _is_of_its_form(answer: str, body: bytes) -> bool:
    """Whoever asks for JSON parses what comes: a sentence would break what an error does not."""
    if "json" not in capabilities(body):
        return True
    try:
        return isinstance(msgspec.json.decode(answer), dict | list)
    except (msgspec.DecodeError, RecursionError):
        return False


def plan_on(life: Life, model: Model) -> Plan:
    """A plan for this request on another model, out of what is left of its envelope."""
    return Plan(policy=model.retry, envelope=life.plan.envelope, first_key=life.plan.first_key)
