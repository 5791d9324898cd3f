"""The router's desk for attempts: asks the plan, hands calls to workers, hears how they went.

Message-driven: a worker's reply, a lost worker or a timer comes in, the pure plan says what to do next, and
this does it. The answer itself goes from the worker straight to the caller. Two things leave the desk:
`ended`, when the caller has its answer, and `gave_up`, when the plan knows nothing more to try.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

import msgspec

from breakwater_gateway.config.model import Hedge
from breakwater_gateway.config.targets import kind_of
from breakwater_gateway.router.affordable import affordable
from breakwater_gateway.router.charges import Hold
from breakwater_gateway.router.copies import Copies
from breakwater_gateway.router.desks.books import Books
from breakwater_gateway.router.life import Call, Life, Timer
from breakwater_gateway.router.money import TOO_DEAR, UNPRICED, Money
from breakwater_gateway.router.plan import (
    Candidate,
    Claim,
    Dispatch,
    GiveUp,
    Queue,
    Skipped,
    Wait,
)
from breakwater_gateway.router.release import Release
from breakwater_gateway.router.retry import RetryBudget
from breakwater_gateway.router.targets import Targets
from breakwater_gateway.runtime.actor import Context
from breakwater_gateway.runtime.bus import BusError, Inbox, Message, MessageTooLarge
from breakwater_gateway.runtime.tasks import TaskSet
from breakwater_protocol import cloudevents
from breakwater_protocol import failures as f
from breakwater_protocol import headers as h
from breakwater_protocol.commands import Cancel, Finished, Leave, ProbeClaim, Started, WorkReply
from breakwater_protocol.events import AttemptFinished

_PING_S: Final = 0.25
"""How often workers that hold our work are asked whether they are there."""
_PING_MISSES_MAX: Final = 6
"""Pings without any reply before a worker counts as lost: a silent partition."""
_GRACE_S: Final = 0.5
"""How long after the deadline the worker's own timers may take to end the attempt."""
_PROBE_EXTRA_S: Final = 5.0
_LATE_S: Final = 2.0
"""How long a call that was given up may take to tell what it had cost by then."""
_BUSY_S: Final = 0.02
"""Before another worker is chosen, so that a fleet that is full is not asked in a circle."""

COPIES_BYTES_MAX: Final = 1024 * 1024
"""Of one stream that another deployment may go on with."""

_replies = msgspec.json.Decoder(WorkReply)


class Ended(Protocol):
    """The caller has its terminal answer: the worker's (`reply`), or one that was sent already."""

    def __call__(
        self,
        life: Life,
        reply: Finished | None,
        /,
        *,
        failure: f.Failure | None = None,
        partial: str = "",
    ) -> None: ...


class Attempts:
    def __init__(
        self,
        context: Context,
        *,
        targets: Targets,
        tasks: TaskSet,
        live: dict[str, Life],
        ended: Ended,
        gave_up: Callable[[Life, f.Failure], None],
        books: Books,
    ) -> None:
        self.context = context
        self._targets = targets
        self._tasks = tasks
        self._live = live
        self._ended = ended
        self._gave_up = gave_up
        self._books = books
        self._holding: dict[str, set[Call]] = {}
        """Calls in each worker's hands."""
        self._missed: dict[str, int] = {}
        self._pings: dict[str, Inbox] = {}
        self._pumps: dict[str, Timer] = {}
        """By target: when its queue is looked at next."""

    def begin(self, life: Life) -> None:
        """The request may call providers from now on."""
        life.inbox = self.context.bus.open_inbox(partial(self._on_reply, life))
        if life.stream and life.model.on_cut == "continue":
            life.copies = life.copies or Copies(COPIES_BYTES_MAX)
            if life.copies_inbox is None:
                life.copies_inbox = self.context.bus.open_inbox(partial(self._on_copy, life))
        self.advance(life)

    def leave(self, life: Life) -> None:
        """The request is over: nothing of it is held, timed or listened for any more."""
        life.over = True
        self._give_back_probe(life, f.WorkerBusy())
        for call in list(life.calls):
            self._release(life, call, late=True)
        self._books.ended(life)
        self._leave_queue(life)
        if life.timer is not None:
            life.timer.cancel()
            life.timer = None
        if life.copies_inbox is not None:
            life.copies_inbox.close()
        self._close_inbox(life)

    def _close_inbox(self, life: Life) -> None:
        """A call that was given up may still have to tell what it had cost by then."""
        if life.over and not life.late and life.inbox is not None:
            life.inbox.close()

    def _await_cost(self, life: Life, call: Call) -> None:
        life.late.append(call)
        at = self.context.clock.now() + _LATE_S
        self.context.clock.call_at(at, partial(self._settle_late, life, call, None))

    def _settle_late(self, life: Life, call: Call, reply: Finished | None) -> None:
        """Its last word, or none in time: then it counts at its maximum."""
        if call in life.late and call.hold is not None:
            life.late.remove(call)
            self._books.settle(call.hold, reply)
            self._close_inbox(life)

    def _on_late(self, life: Life, reply: WorkReply) -> None:
        for call in list(life.late):
            if isinstance(reply, Finished) and (call.step.attempt, call.worker) == (
                reply.attempt,
                reply.worker,
            ):
                self._settle_late(life, call, reply)

    def stop(self) -> None:
        for inbox in self._pings.values():
            inbox.close()
        for timer in self._pumps.values():
            timer.cancel()

    # ------------------------------------------------------------ the plan

    def advance(self, life: Life) -> None:
        """Ask the plan and do what it says, until something has to be waited for."""
        clock = self.context.clock
        while not life.over:
            now = clock.now()
            candidates, skipped = self._choices(life, now)
            step = life.plan.next(candidates, skipped, now=now)
            match step:
                case Dispatch():
                    if step.repeat and not self._budget(life, step).take(now):
                        life.note("answer", now=now, reason="retry_budget")
                        self._give_up(life, life.plan.last or f.NoDeployment())
                        return
                    if not self._books.active and life.plan.envelope.money is None:
                        if self._dispatch(life, step, now):
                            return
                    elif self._reserve(life, step, now):
                        return
                case Claim(candidate):
                    self._claim(life, candidate)
                    return
                case Wait(until, reason):
                    wait_ms = max(0.0, until - now) * 1000
                    if reason != "money" or life.decisions[-1].reason != reason:
                        life.note("wait", now=now, reason=reason, wait_ms=wait_ms)
                    life.provider_ms += wait_ms
                    self._set_timer(life, until, partial(self.advance, life))
                    return
                case Queue(target):
                    self._queue(life, target, now)
                    return
                case GiveUp(failure):
                    self._give_up(life, failure)
                    return

    def _give_up(self, life: Life, failure: f.Failure) -> None:
        """Nothing more to try. A caller who has a part of the answer is told that it is one."""
        if life.copies is not None and life.copies.begun:
            self._end_partial(life, failure)
        else:
            self._gave_up(life, failure)

    def _end_partial(self, life: Life, failure: f.Failure) -> None:
        kind = f.kind(failure)
        facts = life.facts("primary")
        facts.update({h.END: "partial", h.PARTIAL: kind, h.COST_USD: "unknown"})
        if life.copies is not None:
            facts[h.SEQ] = str(life.copies.messages)
        self._publish(life.reply, b"", facts)
        self._ended(life, None, failure=failure, partial=kind)

    def _choices(self, life: Life, now: float) -> tuple[tuple[Candidate, ...], tuple[Skipped, ...]]:
        targets, model, clock = self._targets, life.model, self.context.clock
        wall, money = clock.wall(), life.plan.envelope.money
        if not life.decisions and money is None:
            first = targets.first(model, now=now, now_wall=wall, draw=clock.draw, ask=life.ask)
            if first is not None:
                life.considered = targets.considered
                return (first,), ()
        turn, life.turn = life.turn, ""
        found = targets.order(
            model,
            now=now,
            now_wall=wall,
            draw=clock.draw,
            claiming=life.probe is not None,
            turn=turn,
            turn_key=life.turn_key,
            ask=life.ask,
        )
        life.considered = life.considered or targets.considered
        return found if money is None else self._affordable(life, money, *found)

    def _affordable(
        self,
        life: Life,
        money: Money,
        candidates: tuple[Candidate, ...],
        skipped: tuple[Skipped, ...],
    ) -> tuple[tuple[Candidate, ...], tuple[Skipped, ...]]:
        """What fits the request's own bound; what does not is passed over, and its event says so."""

        def quote(id_: str) -> int | None:
            return self._books.quote(life, self._targets.deployment(life.model, id_))

        found = affordable(money, quote, candidates, skipped)
        now = self.context.clock.now()
        for each in found[1]:
            place = (each.deployment, each.reason)
            if each.reason in {TOO_DEAR, UNPRICED} and place not in money.passed:
                money.passed.add(place)
                life.note("skip", now=now, deployment=each.deployment, reason=each.reason)
        return found

    def _budget(self, life: Life, step: Dispatch) -> RetryBudget:
        return self._targets.budget(step.candidate.target, life.model.retry.budget)

    @staticmethod
    def _may_go_on(life: Life) -> bool:
        """Another deployment may go on with the stream of which the caller has a part."""
        return life.copies is not None and life.copies.whole

    def _reserve(self, life: Life, step: Dispatch, now: float) -> bool:
        """Dispatch it when budgets allow it. False: the plan is asked again, at once."""
        deployment = self._targets.deployment(life.model, step.candidate.deployment)
        found = self._books.reserve(life, deployment, partial(self._reserved, life, step))
        if found is None:
            life.note("wait", now=now, reason="budget")
            return True
        if isinstance(found, Hold):
            return self._dispatch(life, step, now, hold=found)
        return self._unaffordable(life, step, found)

    def _reserved(self, life: Life, step: Dispatch, found: Hold | f.Failure) -> None:
        """The budgets' word on an attempt that waited for it."""
        if life.over:
            if isinstance(found, Hold):
                self._books.unmade(found)
        elif isinstance(found, Hold):
            if not self._dispatch(life, step, self.context.clock.now(), hold=found):
                self.advance(life)
        elif not self._unaffordable(life, step, found):
            self.advance(life)

    def _unaffordable(self, life: Life, step: Dispatch, failure: f.Failure) -> bool:
        """True when that ends it."""
        candidate, now = step.candidate, self.context.clock.now()
        reason = f.kind(failure)
        life.note("skip", now=now, deployment=candidate.deployment, reason=reason)
        life.plan.refused(candidate, failure)
        if life.no_ladder:
            self._give_up(life, failure)
        return life.no_ladder

    def _dispatch(
        self,
        life: Life,
        step: Dispatch,
        now: float,
        reason: str = "",
        hold: Hold | None = None,
    ) -> bool:
        """Hand the attempt to a worker. False when none could take it: the plan is asked again."""
        clock, target = self.context.clock, step.candidate.target
        deployment = self._targets.deployment(life.model, step.candidate.deployment)
        worker = self._targets.loads.choose_worker(deployment.pool, clock.draw(), now=now)
        if worker is None:
            if hold is not None:
                self._books.unmade(hold)
            life.plan.turned_away(step.candidate)
            return False
        if not step.repeat:
            self._budget(life, step).request(now)
        if hold is not None:
            self._books.note(life, deployment, hold)
        call = Call(life.request_id, step, worker, hold)
        work = life.work(call, deployment, now=now)
        life.note(
            "dispatch",
            now=now,
            deployment=deployment.id,
            worker=worker,
            epoch=step.candidate.epoch,
            score=step.candidate.score,
            reason=reason or _reason(step.candidate) or life.model.strategy,
        )
        life.hold(call)
        if life.model.hedge is not None:
            self._plan_hedge(life, call, life.model.hedge, now)
        self._holding.setdefault(worker, set()).add(call)
        self._targets.loads.dispatched(worker, target, life.request_id)
        self._targets.throttle(target).sent(
            step.key, life.request_id, now, turn=step.candidate.turn
        )
        reply = life.inbox.subject if life.inbox is not None else ""
        subjects = self.context.subjects
        try:
            self.context.bus.publish(
                subjects.work.at(worker), subjects.work.encode(work), reply=reply
            )
        except MessageTooLarge as error:
            self._release(life, call, made=False)
            self._give_up(life, f.PayloadTooLarge(f"{error}: send a smaller body"))
        except BusError as error:
            self.context.log.warning("work_not_sent", request=life.request_id, error=repr(error))
            self._release(life, call, made=False)
            self._give_up(life, f.Overloaded("the gateway's bus is unavailable", retry_after_s=1.0))
        return True

    # ------------------------------------------------------------ hedging

    def _plan_hedge(self, life: Life, call: Call, hedge: Hedge, now: float) -> None:
        after_s = hedge.after_s
        if after_s is None:
            after_s = self._targets.first_tokens.p95(call.step.candidate.target)
        if after_s is not None and life.hedges < hedge.max:
            call.timer = self.context.clock.call_at(now + after_s, partial(self._hedge, life, call))

    def _hedge(self, life: Life, call: Call) -> None:
        """The call is slow to begin: a second one beside it, at another target, within the same envelope."""
        call.timer = None
        if life.over or call.started or call not in life.calls:
            return
        clock, now = self.context.clock, self.context.clock.now()
        candidates, skipped = self._targets.order(
            life.model, now=now, now_wall=clock.wall(), draw=clock.draw, ask=life.ask
        )
        money = life.plan.envelope.money
        if money is not None:
            candidates, _ = self._affordable(life, money, candidates, skipped)
        step = life.plan.hedge(candidates, now=now)
        if step is None:
            return
        if not self._budget(life, step).take(now):
            life.plan.turned_away(step.candidate)
            life.note("skip", now=now, reason="retry_budget")
            return
        life.hedges += 1
        if not self._books.active and money is None:
            self._dispatch(life, step, now, reason="hedge")
            return
        deployment = self._targets.deployment(life.model, step.candidate.deployment)
        found = self._books.reserve(life, deployment, partial(self._hedge_reserved, life, step))
        if found is not None:
            self._hedge_reserved(life, step, found)

    def _hedge_reserved(self, life: Life, step: Dispatch, found: Hold | f.Failure) -> None:
        wanted = not life.over and not any(call.started for call in life.calls)
        if isinstance(found, Hold):
            if wanted:
                now = self.context.clock.now()
                self._dispatch(life, step, now, reason="hedge", hold=found)
            else:
                self._books.unmade(found)
                life.plan.turned_away(step.candidate)
        elif wanted:
            life.no_ladder = False  # the first call may still answer
            life.plan.refused(step.candidate, found)
            if not life.calls:
                self.advance(life)

    def _on_started(self, life: Life, call: Call, reply: str) -> None:
        """The first call of a request that has something to say is the one that answers."""
        granted = not any(other.started for other in life.calls if other is not call)
        if reply:
            self._publish(reply, msgspec.json.encode(Leave(granted)), {})
        if not granted:
            self._release(life, call, late=True)
            return
        call.started = True
        life.call = call
        self._answered(call)
        for other in [other for other in life.calls if other is not call]:
            self._abandon(other, "hedge_lost")
            self._release(life, other, late=True)

    def _claim(self, life: Life, candidate: Candidate) -> None:
        """One probe per epoch in the whole cluster; one claim per epoch of this router."""
        if self._targets.may_claim(candidate):
            self._tasks.spawn(self._claim_probe(life, candidate))
        else:
            life.plan.claimed(candidate, won=False)
            self._set_timer(life, self.context.clock.now(), partial(self.advance, life))

    async def _claim_probe(self, life: Life, candidate: Candidate) -> None:
        subject, (target, epoch) = self.context.subjects.probe, candidate.place
        won = False
        try:
            won = await self.context.bus.claim(
                subject.at(target, str(epoch)),
                subject.encode(ProbeClaim(self.context.id)),
                # As long as the call may last: within it nobody else may take the same claim.
                ttl_s=life.plan.deadline - self.context.clock.now() + _PROBE_EXTRA_S,
            )
        except BusError as error:
            self.context.log.warning("probe_not_claimed", target=target, error=repr(error))
        if not life.over:
            life.plan.claimed(candidate, won=won)
            life.probe = candidate if won else None
            self.advance(life)
        elif won:
            life.probe = candidate
            self._give_back_probe(life, f.WorkerBusy())

    # ------------------------------------------------------------ throttled targets

    def _queue(self, life: Life, target: str, now: float) -> None:
        """Wait with everybody else that the target makes wait, at most for as long as the plan is patient."""
        life.queued, life.queued_at = target, now
        life.note("wait", now=now, deployment=target, reason="throttled")
        self._targets.throttle(target).join(life.request_id, life.rank)
        self._set_timer(life, life.plan.patience, partial(self._waited_out, life))
        self.pump(target)

    def _waited_out(self, life: Life) -> None:
        self._leave_queue(life)
        self.advance(life)

    def _leave_queue(self, life: Life) -> None:
        target, life.queued = life.queued, ""
        if target:
            self._targets.throttle(target).leave(life.request_id)
            life.provider_ms += (self.context.clock.now() - life.queued_at) * 1000

    def pump(self, target: str) -> None:
        """Let go whoever's turn has come, and look again when the queue wants to be looked at."""
        throttle, clock = self._targets.throttle(target), self.context.clock
        now, keys = clock.now(), self._targets.keys(target, clock.wall())
        while (found := throttle.due(keys, now)) is not None:
            request, key = found
            life = self._live.get(request)
            if life is None or life.queued != target:
                continue
            life.queued, life.turn, life.turn_key = "", target, key
            life.provider_ms += (now - life.queued_at) * 1000
            if life.timer is not None:
                life.timer.cancel()
                life.timer = None
            self.advance(life)
        timer = self._pumps.pop(target, None)
        if timer is not None:
            timer.cancel()
        at = throttle.wake_at(keys, now)
        if at is not None:
            self._pumps[target] = clock.call_at(at, partial(self.pump, target))

    def throttled(self, target: str, key: int | None, wait_s: float | None) -> None:
        """Some router's call was refused: everybody leaves the key that it used alone; None: the target."""
        self._targets.pause(target, key, wait_s, now=self.context.clock.now())
        self.pump(target)

    # ------------------------------------------------------------ replies

    def _on_reply(self, life: Life, message: Message) -> None:
        if life.over and not life.late:
            return
        if message.no_responders:
            if life.over:
                return
            # The worker's subject has no listener: it was never asked.
            call = life.call
            if call is not None:
                self._targets.loads.remove(call.worker)
                self._release(life, call, made=False)
                life.plan.turned_away(call.step.candidate)
                if not life.calls:
                    self.advance(life)
            return
        try:
            reply = _replies.decode(message.data)
        except msgspec.MsgspecError as error:
            self.context.log.error("bad_reply", request=life.request_id, error=str(error))
            return
        call = life.held(reply.attempt, reply.worker)
        if call is None:
            self._on_late(life, reply)  # of an attempt already given up
            return
        if isinstance(reply, Started):
            self._on_started(life, call, message.reply)
            return
        self._on_finished(life, call, reply)

    @staticmethod
    def _on_copy(life: Life, message: Message) -> None:
        if life.copies is not None:
            life.copies.take(message.data, message.headers)

    def _on_finished(self, life: Life, call: Call, reply: Finished) -> None:
        failure = reply.failure
        life.provider_ms += reply.provider_ms
        if isinstance(failure, f.RateLimited):
            self._targets.refused(
                call.step.candidate.target,
                call.step.key,
                life.request_id,
                f.retry_after_s(failure),
                now=self.context.clock.now(),
            )
        self._release(life, call, reply)
        if call.step.candidate.probe and not isinstance(failure, f.WorkerBusy):
            life.probe = None  # the worker has told everybody
        if reply.first_token_ms is not None and failure is None and life.model.hedge is not None:
            self._targets.first_tokens.add(call.step.candidate.target, reply.first_token_ms / 1000)
        self._heed(life, call, failure)
        if failure is None or reply.answered:
            self._ended(life, reply)
            return
        if call.started and not self._may_go_on(life):
            self._end_partial(life, failure)
            return
        # Of a target that is let at only a few at a time, a full worker is no news: back into the queue.
        throttled = self._release_of(call).phase != "open"
        if isinstance(failure, f.WorkerBusy) and (throttled or not failure.full):
            now = self.context.clock.now()
            life.note("skip", now=now, reason="worker_busy")
            life.plan.turned_away(call.step.candidate)
            if not life.calls:
                self._set_timer(life, now + _BUSY_S, partial(self.advance, life))
            return
        self._failed(life, call, failure)

    def _give_back_probe(self, life: Life, failure: f.Failure) -> None:
        """The probe that this request won was not made, or whoever made it is gone: let another be claimed."""
        candidate, life.probe = life.probe, None
        if candidate is None:
            return
        outcome, at = f.kind(failure), self.context.clock.wall()
        deployment = self._targets.deployment(life.model, candidate.deployment)
        event = AttemptFinished(
            request=life.request_id,
            attempt=life.plan.attempts,
            tenant=life.tenant,
            model=life.asked.model,
            deployment=deployment.id,
            target=candidate.target,
            provider=deployment.provider,
            worker="",
            outcome=outcome,
            at=at,
            epoch=candidate.epoch,
            failure=outcome,
            api=life.api,
            stream=life.stream,
            key=candidate.usable_keys[0] if candidate.usable_keys else 0,
            region=deployment.region,
            key_epoch=candidate.probe_epoch if kind_of(candidate.probe_of) == "key" else -1,
            region_epoch=candidate.region_epoch,
        )
        subject = self.context.subjects.attempt
        self._publish(
            subject.at(candidate.target, outcome),
            subject.encode(event),
            cloudevents.headers_for(
                AttemptFinished,
                source=f"router/{self.context.id}",
                at=at,
                id_=self.context.clock.new_id("evt_"),
            ),
        )

    def _heed(self, life: Life, call: Call, failure: f.Failure | None) -> None:
        """What this router saw itself: for the time when health is silent."""
        target, clock = call.step.candidate.target, self.context.clock
        if failure is None:
            self._targets.succeeded(target, now_wall=clock.wall())
        elif f.spec(failure).against_target and not (
            life.hurried and isinstance(failure, f.FirstTokenTimeout)
        ):
            self._targets.failed(life.model, target, now_wall=clock.wall(), draw=clock.draw())

    def _failed(self, life: Life, call: Call, failure: f.Failure) -> None:
        candidate, now = call.step.candidate, self.context.clock.now()
        if isinstance(failure, f.RateLimited):
            self.pump(candidate.target)
        life.note("failed", now=now, deployment=candidate.deployment, reason=f.kind(failure))
        life.plan.failed(candidate, failure, now=now, draw=self.context.clock.draw())
        if not life.calls:
            self.advance(life)

    def cancel(self, life: Life, cancel: Cancel) -> None:
        """The caller is gone. A worker that holds the call heard it too, and tells how far it had come."""
        if not life.calls:
            self._ended(life, None, failure=f.Cancelled(cancel.reason))

    def stop_calls(self, life: Life, reason: str) -> None:
        """Nobody waits for what its workers are at; they will say how far they had come."""
        for call in life.calls:
            self._abandon(call, reason)

    def _on_deadline(self, life: Life) -> None:
        """The worker's own timers should have ended the attempt: it is silent, so we answer."""
        for call in list(life.calls):
            self._abandon(call, "deadline")
            self._lost(life, call, f.TotalTimeout("the deadline of the request passed"))

    def _lost(self, life: Life, call: Call, failure: f.Failure) -> None:
        """The call's worker will not answer any more."""
        self._release(life, call, late=not isinstance(failure, f.WorkerLost))
        if call.step.candidate.probe:
            self._give_back_probe(life, failure)
        if life.over:
            return
        if call.started and not self._may_go_on(life):
            self._end_partial(life, failure)
        elif isinstance(failure, f.TotalTimeout):
            self._give_up(life, failure)
        else:
            self._failed(life, call, failure)

    def _abandon(self, call: Call, reason: str) -> None:
        """Should the worker live after all, it must stop this attempt."""
        subject = self.context.subjects.cancel
        cancel = Cancel(call.request, reason, attempt=call.step.attempt)
        self._publish(subject.at(call.request), subject.encode(cancel), {})

    # ------------------------------------------------------------ workers that vanish

    async def watch_workers(self) -> None:
        """Ask each worker that holds our work whether it is there: a dead one has no responders.

        Deadlines are looked at here too: the worker's own timers are the exact ones.
        """
        while True:
            await asyncio.sleep(_PING_S)
            late = self.context.clock.now() - _GRACE_S
            for life in [x for x in self._live.values() if x.calls and x.plan.deadline <= late]:
                self._on_deadline(life)
            for worker in list(self._holding):
                missed = self._missed.get(worker, 0)
                if missed >= _PING_MISSES_MAX:
                    self._on_worker_lost(worker)
                    continue
                inbox = self._pings.get(worker)
                if inbox is None:
                    inbox = self._pings[worker] = self.context.bus.open_inbox(
                        partial(self._on_pong, worker)
                    )
                self._missed[worker] = missed + 1
                self._publish(self.context.subjects.ping.at(worker), b"", {}, inbox.subject)
            for worker in [w for w in self._pings if w not in self._holding]:
                self._pings.pop(worker).close()
                self._missed.pop(worker, None)

    def _on_pong(self, worker: str, message: Message) -> None:
        if message.no_responders:
            self._on_worker_lost(worker)
        else:
            self._missed[worker] = 0

    def _on_worker_lost(self, worker: str) -> None:
        held = self._holding.pop(worker, set())
        self._missed.pop(worker, None)
        self._targets.loads.remove(worker)
        if held:
            self.context.log.warning("worker_lost", worker=worker, requests=len(held))
        for call in held:
            life = self._live.get(call.request)
            if life is not None and call in life.calls:
                self._abandon(call, "worker_lost")
                self._lost(life, call, f.WorkerLost("the worker that held the request is gone"))

    def _release(
        self,
        life: Life,
        call: Call,
        reply: Finished | None = None,
        *,
        made: bool = True,
        late: bool = False,
    ) -> None:
        """The call is out of its worker's hands. `reply`: its last word; `late`: that is still to come; not
        `made`: no worker ever had it."""
        if not life.let_go(call):
            return
        if call.hold is not None:
            if not made:
                self._books.unmade(call.hold)
            elif late:
                self._await_cost(life, call)
            else:
                self._books.settle(call.hold, reply)
        if call.timer is not None:
            call.timer.cancel()
            call.timer = None
        if life.timer is not None:
            life.timer.cancel()
            life.timer = None
        held = self._holding.get(call.worker)
        if held is not None:
            held.discard(call)
            if not held:
                del self._holding[call.worker]
        self._targets.loads.finished(call.worker, call.step.candidate.target, life.request_id)
        self._answered(call)

    def _answered(self, call: Call) -> None:
        """Not refused for its rate, as far as the target's queue is concerned; a refusal was told before."""
        release = self._release_of(call)
        release.answered(call.request, self.context.clock.now())
        if release.waiting:
            self.pump(call.step.candidate.target)

    def _release_of(self, call: Call) -> Release:
        """Of the key that the call used."""
        return self._targets.throttle(call.step.candidate.target).key(call.step.key)

    # ------------------------------------------------------------ small things

    def _set_timer(self, life: Life, when: float, callback: "partial[None]") -> None:
        if life.timer is not None:
            life.timer.cancel()
        life.timer = self.context.clock.call_at(when, callback)

    def _publish(self, subject: str, data: bytes, headers: dict[str, str], reply: str = "") -> None:
        try:
            self.context.bus.publish(subject, data, headers=headers, reply=reply)
        except BusError as error:
            self.context.log.warning("not_sent", subject=subject[:200], error=repr(error))


def _reason(candidate: Candidate) -> str:
    """Why a target that is not closed is called all the same; empty where it is."""
    if candidate.panic:
        return "panic"
    return "probe" if candidate.probe else ""
