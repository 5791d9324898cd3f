"""The router's desk for hedges: a second call beside one that is slow to begin.

At another target, out of the same envelope and the target's retry budget; which of the two answers is for the
desk for attempts to say, that makes both.
"""

from collections.abc import Callable
from functools import partial
from typing import Protocol

from breakwater_gateway.config.model import Hedge
from breakwater_gateway.router.charges import Hold
from breakwater_gateway.router.desks.books import Books
from breakwater_gateway.router.desks.choices import Choices
from breakwater_gateway.router.life import Call, Life
from breakwater_gateway.router.plan import Dispatch
from breakwater_gateway.router.targets import Targets
from breakwater_gateway.runtime.actor import Context
from breakwater_protocol import failures as f


class Dispatches(Protocol):
    """Hand the attempt to a worker, if one can take it."""

    def __call__(
        self, life: Life, step: Dispatch, now: float, reason: str = ..., hold: Hold | None = ..., /
    ) -> bool: ...


class Hedges:
    def __init__(
        self,
        context: Context,
        *,
        targets: Targets,
        books: Books,
        choices: Choices,
        dispatch: Dispatches,
        advance: Callable[[Life], None],
    ) -> None:
        self._context = context
        self._targets = targets
        self._books = books
        self._choices = choices
        self._dispatch = dispatch
        self._advance = advance

    def plan(self, life: Life, call: Call, hedge: Hedge, now: float) -> None:
        """The call goes out now: when it gets a second one beside it, unless it has begun by then."""
        after_s = hedge.after_s
        if after_s is None:
            after_s = self._targets.first_tokens.p95(call.step.candidate.target)
        if after_s is not None and life.hedges < hedge.max:
            due = partial(self._hedge, life, call)
            call.timer = self._context.clock.call_at(now + after_s, due)

    def _hedge(self, life: Life, call: Call) -> None:
        call.timer = None
        if life.over or call.started or call not in life.calls:
            return
        now = self._context.clock.now()
        step = life.plan.hedge(self._choices.beside(life, now), now=now)
        if step is None:
            return
        budget = self._targets.budget(step.candidate.target, life.model.retry.budget)
        if not budget.take(now):
            life.plan.turned_away(step.candidate)
            life.note("skip", now=now, reason="retry_budget")
            return
        life.hedges += 1
        if not self._books.asked_for(life):
            self._dispatch(life, step, now, "hedge")
            return
        deployment = self._targets.deployment(life.model, step.candidate.deployment)
        found = self._books.reserve(life, deployment, partial(self._reserved, life, step))
        if found is not None:
            self._reserved(life, step, found)

    def _reserved(self, life: Life, step: Dispatch, found: Hold | f.Failure) -> None:
        wanted = not life.over and not any(call.started for call in life.calls)
        if isinstance(found, Hold):
            if wanted:
                self._dispatch(life, step, self._context.clock.now(), "hedge", found)
            else:
                self._books.unmade(found)
                life.plan.turned_away(step.candidate)
        elif wanted:
            life.no_ladder = False  # the first call may still answer
            life.plan.refused(step.candidate, found)
            if not life.calls:
                self._advance(life)
