"""The router's desk for attempts: asks the plan, hands calls to workers, hears how they went.

Message-driven: a worker's reply, a lost worker or a timer comes in, the pure plan says what to do next, and
this does it. The answer itself goes from the worker straight to the caller. Two things leave the desk:
`ended`, when the caller has its answer, and `gave_up`, when the plan knows nothing more to try. What a step waits
for has desks of its own: a queue, a probe, a second call, a worker that may be gone, a late word.
"""

from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

import msgspec

from breakwater_gateway.router.charges import Hold
from breakwater_gateway.router.copies import Copies
from breakwater_gateway.router.desks.books import Books
from breakwater_gateway.router.desks.choices import Choices
from breakwater_gateway.router.desks.hedges import Hedges
from breakwater_gateway.router.desks.late import Late
from breakwater_gateway.router.desks.presence import Presence
from breakwater_gateway.router.desks.probes import Probes
from breakwater_gateway.router.desks.queues import Queues
from breakwater_gateway.router.desks.tell import tell
from breakwater_gateway.router.life import Call, Crowd, Life
from breakwater_gateway.router.plan import (
    Candidate,
    Claim,
    Dispatch,
    GiveUp,
    Queue,
    Wait,
)
from breakwater_gateway.router.release import Release
from breakwater_gateway.router.retry import RetryBudget
from breakwater_gateway.router.targets import Targets
from breakwater_gateway.runtime.actor import Context
from breakwater_gateway.runtime.bus import BusError, Message, MessageTooLarge
from breakwater_gateway.runtime.tasks import TaskSet
from breakwater_protocol import failures as f
from breakwater_protocol import headers as h
from breakwater_protocol.commands import Cancel, Finished, Leave, Started, WorkReply

_BUSY_S: Final = 0.02
"""Before a worker is chosen again, after one that could not take the call for now: it leaves, or knows too little."""

CROWDED_S: Final = 0.25
"""How long a request takes a worker for full that said so."""
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
        self._ended = ended
        self._gave_up = gave_up
        self._books = books
        self._choices = Choices(context, targets=targets, books=books)
        self._late = Late(context, books)
        self._probes = Probes(context, targets=targets, tasks=tasks, advance=self.advance)
        self._queues = Queues(context, targets=targets, live=live, advance=self.advance)
        self._hedges = Hedges(
            context,
            targets=targets,
            books=books,
            choices=self._choices,
            dispatch=self._dispatch,
            advance=self.advance,
        )
        self._presence = Presence(
            context,
            targets=targets,
            live=live,
            lost=self._on_worker_lost,
            late=self._on_deadline,
        )
        self.watch_workers = self._presence.watch
        self.throttled = self._queues.throttled

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
        if life.inbox is not None:  # it came to call somebody
            self._probes.give_back(life, f.WorkerBusy())
            for call in list(life.calls):
                self._release(life, call, late=True)
            self._queues.leave(life)
            self._late.close(life)
        self._books.ended(life)
        life.wait(None)
        if life.copies_inbox is not None:
            life.copies_inbox.close()

    def stop(self) -> None:
        self._presence.stop()
        self._queues.stop()

    def measure(self) -> None:
        """The metrics of what waits here."""
        self._queues.measure()

    # ------------------------------------------------------------ the plan

    def advance(self, life: Life) -> None:
        """Ask the plan and do what it says, until something has to be waited for."""
        clock = self.context.clock
        while not life.over:
            now = clock.now()
            candidates, skipped = self._choices.of(life, now)
            step = life.plan.next(candidates, skipped, now=now)
            match step:
                case Dispatch():
                    if step.repeat and not self._budget(life, step).take(now):
                        life.note("answer", now=now, reason="retry_budget")
                        self._give_up(life, life.plan.last or f.NoDeployment())
                        return
                    if not self._books.asked_for(life):
                        if self._dispatch(life, step, now):
                            return
                    elif self._reserve(life, step, now):
                        return
                case Claim(candidate):
                    self._probes.claim(life, candidate)
                    return
                case Wait(until, reason):
                    wait_ms = max(0.0, until - now) * 1000
                    if reason != "money" or life.decisions[-1].reason != reason:
                        life.note("wait", now=now, reason=reason, wait_ms=wait_ms)
                    life.provider_ms += wait_ms
                    life.wait(clock.call_at(until, partial(self.advance, life)))
                    return
                case Queue(target):
                    self._queues.join(life, target, now)
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
        tell(self.context, life.reply, b"", facts)
        self._ended(life, None, failure=failure, partial=kind)

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
        crowd = life.crowd if life.crowd is not None and now < life.crowd.at + CROWDED_S else None
        worker = self._targets.loads.choose_worker(
            deployment.pool,
            clock.draw(),
            now=now,
            exclude=() if crowd is None else crowd.workers,
        )
        if worker is None:
            if hold is not None:
                self._books.unmade(hold)
            if crowd is None:
                life.plan.turned_away(step.candidate)
            else:
                life.plan.refused(step.candidate, full(crowd))
            return False
        if not step.repeat:
            self._budget(life, step).request(now)
        if hold is not None:
            self._books.note(life, deployment, hold)
        beside = life.calls[0] if life.calls else None
        call = Call(life.request_id, step, worker, hold, since=now, beside=beside)
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
            self._hedges.plan(life, call, life.model.hedge, now)
        self._presence.holds(call)
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
            self._late.hear(life, reply)  # of an attempt already given up
            return
        if isinstance(reply, Started):
            self._on_started(life, call, message.reply)
            return
        self._on_finished(life, call, reply)

    def _on_started(self, life: Life, call: Call, reply: str) -> None:
        """The first call of a request that has something to say is the one that answers."""
        granted = not any(other.started for other in life.calls if other is not call)
        if reply:
            tell(self.context, reply, msgspec.json.encode(Leave(granted)), {})
        if not granted:
            self._release(life, call, late=True)
            return
        call.started = True
        life.call = call
        self._answered(call)
        for other in [other for other in life.calls if other is not call]:
            self._abandon(other, "hedge_lost")
            self._release(life, other, late=True)

    @staticmethod
    def _on_copy(life: Life, message: Message) -> None:
        if life.copies is not None:
            life.copies.take(message.data, message.headers)

    def _on_finished(self, life: Life, call: Call, reply: Finished) -> None:
        failure = reply.failure
        # Of a stream the worker's whole time is the provider's: chunks go on as they come.
        life.provider_ms += reply.duration_ms if call.started else reply.provider_ms
        life.provider_ms += call.alone_ms
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
        # It had begun, and yet nothing is partial: its first words were more than the bus carries.
        if call.started and reply.partial and not self._may_go_on(life):
            self._end_partial(life, failure)
            return
        # Of a target that is let at only a few at a time, a full worker is no news: back into the queue.
        throttled = self._release_of(call).phase != "open"
        if isinstance(failure, f.WorkerBusy) and (throttled or not failure.full):
            now = self.context.clock.now()
            life.note("skip", now=now, reason="worker_busy")
            life.plan.turned_away(call.step.candidate)
            if failure.crowded and not throttled:
                self._crowded(life, call, failure, now)
            elif not life.calls:
                again = partial(self.advance, life)
                life.wait(self.context.clock.call_at(now + _BUSY_S, again))
            return
        self._failed(life, call, failure)

    def _crowded(self, life: Life, call: Call, failure: f.WorkerBusy, now: float) -> None:
        """The worker is full, and others may have room: one of them is asked at once, each once. Where the rest
        is known to be full too, nobody is: whoever waits for such a fleet is told to come again."""
        crowd = life.crowd
        if crowd is None or now >= crowd.at + CROWDED_S:
            crowd = life.crowd = Crowd()
        crowd.add(call.worker, failure.retry_after_s or 0.0, now)
        pool = self._targets.deployment(life.model, call.step.candidate.deployment).pool
        loads = self._targets.loads
        if not loads.has_room(pool, exclude=crowd.workers):
            crowd.workers.update(loads.workers(pool))
        if not life.calls:
            self.advance(life)

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
            self._queues.pump(candidate.target)
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

    def _on_worker_lost(self, life: Life, call: Call) -> None:
        self._abandon(call, "worker_lost")
        self._lost(life, call, f.WorkerLost("the worker that held the request is gone"))

    def _lost(self, life: Life, call: Call, failure: f.Failure) -> None:
        """The call's worker will not answer any more."""
        self._release(life, call, late=not isinstance(failure, f.WorkerLost))
        if call.step.candidate.probe:
            self._probes.give_back(life, failure)
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
        tell(self.context, subject.at(call.request), subject.encode(cancel), {})

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
                self._late.wait(life, call)
            else:
                self._books.settle(call.hold, reply)
        if call.timer is not None:
            call.timer.cancel()
            call.timer = None
        life.wait(None)
        self._presence.let_go(call)
        self._targets.loads.finished(call.worker, call.step.candidate.target, life.request_id)
        self._answered(call)

    def _answered(self, call: Call) -> None:
        """Not refused for its rate, as far as the target's queue is concerned; a refusal was told before."""
        release = self._release_of(call)
        release.answered(call.request, self.context.clock.now())
        if release.waiting:
            self._queues.pump(call.step.candidate.target)

    def _release_of(self, call: Call) -> Release:
        """Of the key that the call used."""
        return self._targets.throttle(call.step.candidate.target).key(call.step.key)


def full(crowd: Crowd) -> f.WorkerBusy:
    return f.WorkerBusy(
        "every worker is at capacity", retry_after_s=max(1.0, crowd.retry_after_s), full=True
    )


def _reason(candidate: Candidate) -> str:
    """Why a target that is not closed is called all the same; empty where it is."""
    if candidate.panic:
        return "panic"
    return "probe" if candidate.probe else ""
