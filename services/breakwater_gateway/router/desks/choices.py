"""The router's desk for choices: which targets a request may be sent to now, in order, and why no others.

What the views say is the pure `targets.py`'s; what the request has left to spend, `affordable.py`'s. Here they
are asked, and what they left out is noted for the request's event.
"""

from breakwater_gateway.router.affordable import affordable
from breakwater_gateway.router.desks.books import Books
from breakwater_gateway.router.life import Life
from breakwater_gateway.router.money import TOO_DEAR, UNPRICED, Money
from breakwater_gateway.router.plan import Candidate, Skipped
from breakwater_gateway.router.targets import Targets
from breakwater_gateway.runtime.actor import Context

Choice = tuple[tuple[Candidate, ...], tuple[Skipped, ...]]


class Choices:
    def __init__(self, context: Context, *, targets: Targets, books: Books) -> None:
        self._context = context
        self._targets = targets
        self._books = books

    def of(self, life: Life, now: float) -> Choice:
        """For the next step of the life's plan. A turn that it waited for is used up by asking."""
        targets, model, clock = self._targets, life.model, self._context.clock
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
        return found if money is None else self._within(life, money, *found)

    def beside(self, life: Life, now: float) -> tuple[Candidate, ...]:
        """For a second call beside the one in hand."""
        clock, money = self._context.clock, life.plan.envelope.money
        found = self._targets.order(
            life.model, now=now, now_wall=clock.wall(), draw=clock.draw, ask=life.ask
        )
        return found[0] if money is None else self._within(life, money, *found)[0]

    def _within(
        self,
        life: Life,
        money: Money,
        candidates: tuple[Candidate, ...],
        skipped: tuple[Skipped, ...],
    ) -> Choice:
        """What fits the request's own bound; what does not is passed over, and its event says so."""

        def quote(id_: str) -> int | None:
            return self._books.quote(life, self._targets.deployment(life.model, id_))

        found = affordable(money, quote, candidates, skipped)
        now = self._context.clock.now()
        for each in found[1]:
            place = (each.deployment, each.reason)
            if each.reason in {TOO_DEAR, UNPRICED} and place not in money.passed:
                money.passed.add(place)
                life.note("skip", now=now, deployment=each.deployment, reason=each.reason)
        return found
