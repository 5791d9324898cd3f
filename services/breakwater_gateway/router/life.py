"""One request in flight: what was asked, how far it has come, and what will be told of it at the end."""

from collections.abc import Callable
from math import inf
from typing import Final, Literal, Protocol

from msgspec import Raw

from breakwater_gateway.cache.key import Key
from breakwater_gateway.config.model import Deployment, Model, RungKind
from breakwater_gateway.router import once
from breakwater_gateway.router.charges import Charge, Hold
from breakwater_gateway.router.copies import Copies
from breakwater_gateway.router.flights import Flight, Form
from breakwater_gateway.router.ladder import Ladder
from breakwater_gateway.router.options import Options
from breakwater_gateway.router.plan import Candidate, Dispatch, Plan
from breakwater_gateway.router.release import Rank
from breakwater_gateway.router.repeats import Repeat
from breakwater_gateway.router.routing import Routed
from breakwater_gateway.router.strategies import ANY, Ask
from breakwater_gateway.router.targets import Considered
from breakwater_gateway.runtime.answers import usd
from breakwater_gateway.runtime.bus import Inbox
from breakwater_protocol import failures as f
from breakwater_protocol import headers as h
from breakwater_protocol.chat import Asked, ChatRequest, NativeRequest
from breakwater_protocol.commands import EARS_MAX, Ear, Finished, Work
from breakwater_protocol.events import Decision, RequestFinished

GIVEN_AGAIN: Final = frozenset({"hit", "semantic", "stale", "coalesced"})
"""Verdicts of answers that no call was made for."""
DECISIONS_MAX: Final = 64
"""Steps of a plan that its event tells."""
CONSIDERED_MAX: Final = 16
"""Deployments of each kind, chosen among and not, that it names."""
FULL_TIME: Final = 0.9
"""An attempt with this share of the model's total timeout has as much time as a target may take."""

_STREAMED: Final = (ChatRequest, NativeRequest)
FREE: Final = frozenset({"cache", "stale", "static"})
"""Rungs whose answers cost nothing."""
RANKS: Final[dict[str, Rank]] = {"critical": 0, "interactive": 1, "batch": 2}


class Timer(Protocol):
    def cancel(self) -> None: ...


class Call:
    """One attempt in a worker's hands."""

    __slots__ = ("alone_ms", "hold", "request", "since", "started", "step", "timer", "worker")

    def __init__(
        self,
        request: str,
        step: Dispatch,
        worker: str,
        hold: Hold | None = None,
        *,
        since: float,
        beside: "Call | None" = None,
    ) -> None:
        """`beside`: the call that is under way already."""
        self.request = request
        self.hold = hold
        """What budgets reserved for it; None where nothing limits it."""
        self.step = step
        self.worker = worker
        self.started = False
        """A byte of the answer may have reached the caller."""
        self.timer: Timer | None = None
        """When a second call is made beside this one."""
        self.since = since
        self.alone_ms = 0.0 if beside is None else (since - beside.since) * 1000
        """How long the other call had been waited for by then."""


class Crowd:
    """Workers that had no room for a request just now."""

    __slots__ = ("at", "retry_after_s", "workers")

    def __init__(self) -> None:
        self.workers: set[str] = set()
        self.at = 0.0
        """When the last of them said so."""
        self.retry_after_s = 0.0
        """The shortest wait that one of them named."""

    def add(self, worker: str, retry_after_s: float, now: float) -> None:
        if not self.workers or retry_after_s < self.retry_after_s:
            self.retry_after_s = retry_after_s
        self.workers.add(worker)
        self.at = now


class Life:
    __slots__ = (
        "_plan",
        "api",
        "asked",
        "began",
        "body",
        "call",
        "calls",
        "charge",
        "considered",
        "copies",
        "copies_inbox",
        "crowd",
        "decisions",
        "dropped",
        "first_token_s",
        "flight",
        "given",
        "gone",
        "hedges",
        "home",
        "inbox",
        "key",
        "label",
        "ladder",
        "late",
        "mended_at",
        "model",
        "native_headers",
        "no_ladder",
        "notes",
        "options",
        "over",
        "places",
        "probe",
        "provider_ms",
        "queued",
        "queued_at",
        "repeat",
        "reply",
        "request_id",
        "route",
        "routed",
        "rung",
        "saved_nano_usd",
        "stream",
        "tenant",
        "timer",
        "turn",
        "turn_key",
        "verdict",
    )

    def __init__(  # noqa: PLR0915 - one statement a fact
        self,
        *,
        request_id: str,
        tenant: str,
        api: str,
        reply: str,
        body: bytes,
        asked: Asked,
        model: Model,
        options: Options,
        plan: Plan | Callable[[], Plan],
        ladder: Ladder,
        began: float,
        repeat: Repeat | None = None,
    ) -> None:
        self.request_id, self.tenant, self.api = request_id, tenant, api
        self.reply = reply
        self.body = body
        self.asked = asked
        self.home = model
        """The model that was asked for."""
        self.model = model
        """The one whose deployments are called now: another than `home` where its policy says so."""
        self.routed = asked.model
        """The name by which `model` was found."""
        self.ladder = ladder
        self.rung: RungKind | Literal["primary"] = "primary"
        """Where the answer comes from, as far as the walk has come."""
        self.dropped = 0
        """Turns of the conversation that were left out."""
        self.mended_at = -1
        """Calls that were made when the request was last changed."""
        self.notes: dict[str, str] = {}
        """Header fields of the answer: what was done to the request."""
        self.options = options
        self._plan = plan
        """The plan, or what makes it once somebody asks."""
        self.began = began
        self.repeat = repeat
        """What is known of the body, where it came before."""
        self.stream = isinstance(asked, _STREAMED) and bool(asked.stream)
        self.native_headers: dict[str, str] = {}
        self.first_token_s = (
            model.timeouts.first_token_s if options.first_token_s is None else options.first_token_s
        )
        self.inbox: Inbox | None = None
        self.timer: Timer | None = None
        self.charge: Charge | None = None
        """What budgets know of its cost; None until one asks."""
        self.places: tuple[tuple[str, str], ...] = ()
        """Where it counts as a concurrent request."""
        self.no_ladder = False
        """A budget that is used up answers itself."""
        self.late: list[Call] = []
        """Calls that were given up and whose cost is still to be told."""
        self.calls: list[Call] = []
        """Attempts in workers' hands: one, or two while a hedge runs."""
        self.call: Call | None = None
        """The one handed out last, also when it is over."""
        self.copies: Copies | None = None
        """What the caller has of its stream, where another deployment may go on with it."""
        self.copies_inbox: Inbox | None = None
        """Where the worker says everything a second time."""
        self.crowd: Crowd | None = None
        """None: no worker was full."""
        self.hedges = 0
        """Calls made beside another so far."""
        self.over = False
        """The caller has its terminal answer."""
        self.probe: Candidate | None = None
        """The probe that this request won, until somebody has told how it went."""
        self.queued = ""
        """The target whose release it waits for."""
        self.queued_at = 0.0
        self.turn = ""
        """The target that released it, until its call is dispatched, …"""
        self.turn_key = 0
        """… and for which key of its pool."""
        self.provider_ms = 0.0
        """Waited for providers and backoff so far: not overhead of ours."""
        self.decisions: list[Decision] = []
        self.considered: Considered | None = None
        self.route: Routed | None = None
        """How it came to the model and its deployments; None: by its name."""
        self.verdict = "bypass"
        """What the answer says of the cache."""
        self.key: Key | None = None
        """Of the question, where its answer may be kept."""
        self.flight: Flight[Life] | None = None
        """The calls that it leads or follows."""
        self.given = 0
        """Messages of a shared stream that its caller was sent."""
        self.gone = False
        """Its caller has left, and others wait for the answer."""
        self.saved_nano_usd: int | None = None
        self.label = ""
        """Of the semantic cache's miss: the fresh answer tells whether the nearest one would have done."""

    @property
    def plan(self) -> Plan:
        """Made when it is first asked for: an answer that is kept needs none."""
        plan = self._plan
        if not isinstance(plan, Plan):
            plan = self._plan = plan()
        return plan

    @plan.setter
    def plan(self, plan: Plan) -> None:
        self._plan = plan

    @property
    def attempts(self) -> int:
        """Calls of the request so far."""
        plan = self._plan
        return plan.attempts if isinstance(plan, Plan) else 0

    @property
    def ask(self) -> Ask:
        """What strategies are told of the request, whichever model it has come to."""
        if self.model is self.home:
            return ANY if self.route is None else self.route.ask
        told = ANY if self.route is None else self.route.ask
        return told._replace(model=self.routed, name=self.model.name, stream=self.stream)

    @property
    def usage_wanted(self) -> bool:
        """OpenAI's `stream_options.include_usage`."""
        options = self.asked.stream_options if isinstance(self.asked, ChatRequest) else None
        return bool(options and options.include_usage)

    @property
    def deployment(self) -> str:
        """The one called last; empty before the first."""
        return "" if self.call is None else self.call.step.candidate.deployment

    @property
    def who(self) -> once.Who:
        """Whose request id it is."""
        return self.tenant, self.options.key, self.options.user

    @property
    def rank(self) -> Rank:
        return RANKS[self.options.priority]

    @property
    def altered(self) -> bool:
        """Not what was asked for was answered: another model, fewer turns, or a shorter answer."""
        return (
            self.rung != "primary"
            or self.model is not self.home
            or self.dropped > 0
            or h.CLAMPED in self.notes
        )

    def turn_to(self, model: Model, name: str, plan: Plan) -> None:
        """From now on this model is called, under `name`."""
        self.model, self.routed, self.plan = model, name, plan
        if self.options.first_token_s is None:
            self.first_token_s = model.timeouts.first_token_s

    def wait(self, timer: Timer | None) -> None:
        """For this one and nothing else any more; None: for nothing."""
        if self.timer is not None:
            self.timer.cancel()
        self.timer = timer

    def hold(self, call: Call) -> None:
        self.call = call
        self.calls.append(call)

    def held(self, attempt: int, worker: str) -> Call | None:
        """The call of that attempt, if it is still in that worker's hands."""
        for call in self.calls:
            if call.step.attempt == attempt and call.worker == worker:
                return call
        return None

    def let_go(self, call: Call) -> bool:
        """False when it was not held any more."""
        if call not in self.calls:
            return False
        self.calls.remove(call)
        return True

    def note(
        self,
        step: str,
        *,
        now: float,
        deployment: str = "",
        worker: str = "",
        reason: str = "",
        epoch: int = 0,
        wait_ms: float = 0.0,
        score: float | None = None,
    ) -> None:
        if len(self.decisions) < DECISIONS_MAX:
            at_ms = (now - self.began) * 1000
            self.decisions.append(
                Decision(step, at_ms, deployment, worker, reason, epoch, wait_ms, score)
            )

    def _choice(self) -> list[Decision]:
        """How the first choice came about: the routes taken, among whom it was made, who was none and why."""
        told: list[Decision] = []
        if self.route is not None:
            told += [Decision("route", 0.0, reason=way) for way in self.route.way[:CONSIDERED_MAX]]
            told += [
                Decision("skip", 0.0, deployment=each.deployment.id, reason=each.reason.value)
                for each in self.route.dropped[:CONSIDERED_MAX]
            ]
        if self.considered is None:
            return told
        ids, scores, skipped = self.considered
        if len(ids) > 1 or skipped:
            for at, id_ in enumerate(ids[:CONSIDERED_MAX]):
                score = None if scores is None else scores[at]
                told.append(
                    Decision("consider", 0.0, deployment=id_, score=None if score == inf else score)
                )
        told += [
            Decision(
                "skip",
                0.0,
                deployment=each.deployment,
                reason=each.reason,
                wait_ms=0.0 if each.until is None else max(0.0, each.until - self.began) * 1000,
            )
            for each in skipped[:CONSIDERED_MAX]
        ]
        return told

    def work(self, call: Call, deployment: Deployment, *, now: float) -> Work:
        """The attempt as the worker is told of it; times are what is left."""
        step = call.step
        left_s = self.plan.deadline - now
        timeouts, options, asked = self.model.timeouts, self.options, self.asked
        return Work(
            request=self.request_id,
            attempt=step.attempt,
            tenant=self.tenant,
            api=self.api,
            model=asked.model,
            provider_model=deployment.provider_model(self.routed, name=self.model.name),
            deployment=deployment.id,
            target=step.candidate.target,
            answer_to=self.reply,
            body=Raw(self.body if call.hold is None or not call.hold.body else call.hold.body),
            stream=self.stream,
            include_usage=self.usage_wanted,
            connect_s=min(timeouts.connect_s, left_s),
            first_token_s=min(self.first_token_s, left_s),
            idle_s=timeouts.idle_s,
            min_rate=timeouts.min_rate,
            rate_window_s=timeouts.rate_window_s,
            total_s=left_s,
            key=step.key,
            rung=self.rung,
            notes=self.notes,
            shared=self.flight is not None,
            cache=self.verdict,
            epoch=step.candidate.epoch,
            key_epoch=step.candidate.key_epochs[step.key] if step.candidate.key_epochs else 0,
            region_epoch=step.candidate.region_epoch,
            spent_ms=(now - self.began) * 1000,
            provider_ms=self.provider_ms + call.alone_ms,
            native_headers=self.native_headers if deployment.wire == "anthropic" else {},
            refuse_dropped=self.model.unsupported_params == "refuse",
            hurried=self.hurried,
            full_time=left_s >= FULL_TIME * timeouts.total_s,
            refuse_filtered=self.model.on_content_filter.do != "fail"
            and self.rung == "primary"
            and self.plan.calls_left > 0,
            traceparent=options.traceparent,
            user=options.user,
            org=options.org,
            feature=options.feature,
            properties=options.properties,
            priority=options.priority,
            ask_leave=self.model.hedge is not None,
            hand_back=self.copies is not None,
            ears=self._ears(step.attempt),
            ears_from=0 if self.flight is None else self.flight.ears_from,
            copy_to=self.copies_inbox.subject if self.copies_inbox is not None else "",
            continues=self.copies.lines() if self.copies is not None else b"",
            seq_from=self.copies.messages if self.copies is not None else 0,
        )

    def _ears(self, attempt: int) -> list[Ear]:
        """Who hears what this attempt says from the worker itself: who follows here and wants the same form, from
        the beginning on."""
        flight = self.flight
        if flight is None or flight.leader is not self or self.copies_inbox is None:
            return []
        found: list[Ear] = []
        for other in flight.followers:
            heard = not flight.began or (flight.attempt, other.reply) in flight.ears
            if heard and other.wants(flight.form) and len(found) < EARS_MAX:
                found.append(other.ear())
        if found:
            flight.lent[attempt] = [ear.to for ear in found]
        return found

    def wants(self, form: Form) -> bool:
        return form == Form(self.stream, self.usage_wanted)

    def ear(self) -> Ear:
        facts = self.facts("primary")
        del facts[h.RUNG]  # the answer's own
        facts[h.COST_USD] = usd(0)
        return Ear(self.reply, facts)

    def facts(self, rung: str) -> dict[str, str]:
        """What the router's own answers say of the request."""
        facts = {
            h.REQUEST_ID: once.shown(self.request_id),
            h.MODEL: _ascii(self.asked.model),
            h.RUNG: rung,
            h.CACHE: self.verdict,
            h.ATTEMPTS: str(self.attempts),
            **self.notes,
        }
        if self.call is not None and rung not in FREE:
            facts[h.DEPLOYMENT] = self.deployment
        return facts

    @property
    def hurried(self) -> bool:
        """The caller wants its first token sooner than the model's targets have to bring it."""
        own_s = self.options.first_token_s
        if own_s is None:
            return False
        return not self.stream or own_s < self.model.timeouts.first_token_s

    @property
    def _is_free(self) -> bool:
        return self.rung in FREE or self.verdict in GIVEN_AGAIN

    def overhead_ms(self, now: float) -> float:
        """Of the request's time so far: what nobody but the gateway spent."""
        return max(0.0, (now - self.began) * 1000 - self.provider_ms)

    def finished(
        self,
        *,
        now: float,
        at: float,
        router: str,
        config_revision: int,
        reply: Finished | None,
        failure: f.Failure | None,
        partial: str,
    ) -> RequestFinished:
        """The event that ends it. `reply`: the worker's last word, when the worker ended it."""
        cause = self.ladder.cause
        duration_ms = (now - self.began) * 1000
        return RequestFinished(
            request=self.request_id,
            tenant=self.tenant,
            api=self.api,
            model=self.asked.model,
            outcome=outcome(failure, partial),
            at=at,
            router=router,
            # Whoever was called last did not answer.
            deployment="" if failure is None and self.rung in FREE else self.deployment,
            rung="error" if failure is not None and not partial else self.rung,
            cache=self.verdict,
            rung_reason="" if cause is None or self.rung == "primary" else f.kind(cause),
            attempts=self.attempts,
            stream=self.stream,
            duration_ms=duration_ms,
            overhead_ms=self.overhead_ms(now),
            first_token_ms=reply.first_token_ms if reply else None,
            usage=reply.usage if reply else None,
            cost_nano_usd=reply.cost_nano_usd if reply else 0 if self._is_free else None,
            cost_saved_nano_usd=self.saved_nano_usd,
            user=self.options.user,
            org=self.options.org,
            feature=self.options.feature,
            properties=self.options.properties,
            decisions=self._choice() + self.decisions,
            config_revision=config_revision,
            traceparent=self.options.traceparent,
            tracestate=self.options.tracestate,
        )


def _ascii(name: str) -> str:
    """As a header may have it."""
    if not name.isascii():
        name = name.encode("ascii", "backslashreplace").decode("ascii")
    return name[:200]


def outcome(failure: f.Failure | None, partial: str) -> str:
    """`ok`, `partial`, `cancelled`, or the error's code."""
    if isinstance(failure, f.Cancelled):
        return "cancelled"
    if partial:
        return "partial"
    return "ok" if failure is None else f.spec(failure).code
