"""The router's desk for budgets: reserves each attempt before it is made, and settles it exactly once.

The holder decides; this says what it wants said, keeps its journal, and calls back whoever waited. Nothing here
is paid by requests that no budget limits. Concurrent requests are not lent but divided: each router admits the
limit's share of one router, so that they are exact while every router knows the others, and at least one each.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from breakwater_gateway.config.model import Config, Deployment, RateLimit
from breakwater_gateway.pricing.estimate import (
    affordable_output,
    bound_of,
    read_ask,
    with_output,
)
from breakwater_gateway.router.charges import (
    Charge,
    Hold,
    Tariff,
    Tariffs,
    Who,
    actual_of,
    amount_text,
    failure_of,
    hold_for,
    need_for,
    remaining_text,
    rules_of,
)
from breakwater_gateway.router.desks.journal import Journal
from breakwater_gateway.router.holder import Breach, Decided, Holder
from breakwater_gateway.router.leases import Need, Refusal, Reservation, Ticket
from breakwater_gateway.router.life import Life
from breakwater_gateway.router.operator_limits import OperatorLimits
from breakwater_gateway.router.reports import Say
from breakwater_gateway.runtime.actor import Context
from breakwater_gateway.runtime.alerts import publish_alert
from breakwater_gateway.runtime.bus import BusError, Entry, Inbox, Message, Watch
from breakwater_protocol import failures as f
from breakwater_protocol import headers as h
from breakwater_protocol.commands import Finished
from breakwater_protocol.events import Alert
from breakwater_protocol.ledger import LIMITS_BUCKET, LeaseReply, ReportReply, partition_token

PATIENCE_S: Final = 2.0
"""A request waits for calls in flight to settle no longer."""
TICK_S: Final = 0.25
SOON_S: Final = 0.02
"""While somebody waits."""
ADOPT_S: Final = 2.0
CLOSE_S: Final = 3.0
ALERT_S: Final = 600.0
LATE_S: Final = 2.0
"""For calls that were given up to tell what they had cost."""
ROUTERS_S: Final = 3.0
"""A router that was not heard for so long has no share."""

Resume = Callable[["Hold | f.Failure"], None]

_leases = msgspec.json.Decoder(LeaseReply)
_reports = msgspec.json.Decoder(ReportReply)
_NO_ASK: Final[Need] = (0, 0, 0)
_MONEY: Final = frozenset({0})


class _Waiting:
    """An attempt whose reservation is not decided yet."""

    __slots__ = ("deployment", "hold", "life", "resume", "tariff", "tries")

    def __init__(
        self, life: Life, deployment: Deployment, tariff: Tariff, hold: Hold, resume: Resume
    ) -> None:
        self.life = life
        self.deployment = deployment
        self.tariff = tariff
        self.hold = hold
        self.resume = resume
        self.tries = 0


class Books:
    def __init__(self, context: Context, *, journals: Path | None = None) -> None:
        self.context = context
        incarnation = int(context.clock.wall() * 1000)
        self._holder = Holder(context.id, incarnation)
        self._journal = None if journals is None else Journal(journals, context.id, context.log)
        self._operators = OperatorLimits()
        self._limits_watch: Watch | None = None
        self._tariffs = Tariffs((), 0)
        self._rates: dict[str, dict[str, RateLimit]] = {}
        """Limits on concurrent requests, by scope and id."""
        self._running: dict[tuple[str, str], int] = {}
        self._routers: dict[str, float] = {}
        self._waiting: dict[int, _Waiting] = {}
        self._open: set[Hold] = set()
        """Granted and not settled."""
        self._inboxes: dict[str, Inbox] = {}
        self._report_inboxes: dict[int, tuple[Inbox, float]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._alerted: dict[tuple[str, str], float] = {}
        self._rested = asyncio.Event()
        self._flushing = False
        self._closed = False
        self.configure(context.config, context.config_revision)

    # ------------------------------------------------------------ life

    def configure(self, config: Config, revision: int) -> None:
        self._tariffs = Tariffs(rules_of(config), revision, self._operators)
        self._rates = {}
        for limit in config.rate_limits:
            if limit.concurrent is not None:
                self._rates.setdefault(limit.scope, {})[limit.id] = limit
        self.active = bool(self._tariffs)
        """Something is limited: every attempt has to be asked for."""
        self.rated = bool(self._rates)

    def open(self) -> None:
        """Before the first request."""
        if self._journal is not None and not self._journal.open():
            self._journal = None

    async def watch(self) -> None:
        """Operators' limits, all of them before the first request. Raises `BusError`."""
        store = await self.context.bus.store(LIMITS_BUCKET)
        self._limits_watch = await store.watch(self._see_limit)

    def _see_limit(self, entry: Entry) -> None:
        try:
            account = self._operators.fold(entry.key, entry.value, entry.revision)
        except msgspec.MsgspecError as error:
            self.context.log.warning("bad_operator_limit", key=entry.key, error=str(error)[:200])
            return
        if account:
            self._tariffs.renew(account)
            self.active = bool(self._tariffs)

    async def run(self) -> None:
        """Reports about once a second, and leases of routers that died on this machine."""
        adopted_at = -ADOPT_S
        while True:
            now = self.context.clock.now()
            if self._journal is not None and now - adopted_at >= ADOPT_S:
                adopted_at = now
                for kept in self._journal.adopt():
                    self.context.log.info("lease_adopted", lease=kept.lease)
                    self._holder.close_lease_of(kept)
            self._tick()
            await asyncio.sleep(TICK_S)

    async def close(self) -> None:
        """Every lease goes back: what is in flight counts at its maximum. Bounded in time."""
        if self._closed:
            return
        self._closed = True
        if self._limits_watch is not None:
            await self._limits_watch.close()
        late = self.context.clock.now() + LATE_S
        while self._open and self.context.clock.now() < late:  # noqa: ASYNC110 - told by many
            await asyncio.sleep(SOON_S)
        for hold in list(self._open):
            self._settle(hold, None)
        self._holder.close(self.context.clock.now())
        self._flush()
        try:
            async with asyncio.timeout(CLOSE_S):
                while not self._holder.at_rest:
                    self._rested.clear()
                    self._tick()
                    try:
                        async with asyncio.timeout(TICK_S):
                            await self._rested.wait()
                    except TimeoutError:
                        continue
        except TimeoutError:
            self.context.log.warning("leases_not_returned")
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for inbox in self._inboxes.values():
            inbox.close()
        for inbox, _ in self._report_inboxes.values():
            inbox.close()
        if self._journal is not None:
            self._journal.close(at_rest=self._holder.at_rest)
            self._journal = None

    # ------------------------------------------------------------ admission

    def heard_router(self, id_: str) -> None:
        self._routers[id_] = self.context.clock.now()

    def admit(self, life: Life) -> f.Failure | None:
        """A place among the concurrent requests of everybody it counts for."""
        found = self._limits_of(life)
        if not found:
            return None
        now = self.context.clock.now()
        sharers = sum(1 for at in self._routers.values() if now - at < ROUTERS_S)
        for place, limit in found:
            share = max(1, (limit.concurrent or 0) // max(1, sharers))
            if self._running.get(place, 0) >= share:
                name = f"{place[0]}:{place[1]}" if place[1] else place[0]
                return f.RateLimited(
                    f"{name} has {limit.concurrent} concurrent requests at most, and that many run",
                    retry_after_s=1.0,
                )
        life.places = tuple(place for place, _ in found)
        for place in life.places:
            self._running[place] = self._running.get(place, 0) + 1
        return None

    def _limits_of(self, life: Life) -> list[tuple[tuple[str, str], RateLimit]]:
        key, user, team, feature, org, _, model = who_of(life)
        found = []
        for scope, id_ in (
            *(("key", key), ("user", user), ("team", team), ("feature", feature)),
            *(("org", org), ("model", model), ("global", "")),
        ):
            limits = self._rates.get(scope)
            if limits and (id_ or scope == "global"):
                limit = limits.get(id_) or limits.get("*")
                if limit is not None:
                    found.append(((scope, id_), limit))
        return found

    # ------------------------------------------------------------ reserve

    def asked_for(self, life: Life) -> bool:
        """Something bounds what the request may cost: each of its attempts has to be reserved."""
        return self.active or life.plan.envelope.money is not None

    def reserve(
        self, life: Life, deployment: Deployment, resume: Resume
    ) -> Hold | f.Failure | None:
        """What the attempt may cost at most, from leases that are held. None: `resume` is called later, once."""
        charge = self._charge(life)
        who, money = charge.who, life.plan.envelope.money
        tariff = self._tariffs.of((*who[:5], deployment.provider, who[6]))
        if money is None and not tariff.paths:
            return Hold(None, ())
        hold = Hold(None, ())
        if money is not None or tariff.units & {0, 1}:
            hold = self._hold(life, deployment, charge)
            if need_for(hold.bound, tariff) is None:
                return self._unpriced(life, deployment)
            self._write(charge, hold, hold.bound is not None and hold.bound.write)
        if money is not None and not hold.draw(money):
            return f.TooDear(f"a call to {deployment.id} does not fit what this request may cost")
        if not tariff.paths:
            return hold
        found = self._try(_Waiting(life, deployment, tariff, hold, resume))
        if isinstance(found, f.Failure):
            hold.settle_money(_NO_ASK)
        return found

    def quote(self, life: Life, deployment: Deployment) -> int | None:
        """What an attempt there costs at most, in nano-USD; None: nobody knows, and somebody is told."""
        bound = self._hold(life, deployment, self._charge(life)).bound
        if bound is None or bound.nano_usd is None:
            self._unpriced(life, deployment)
            return None
        return bound.nano_usd

    def cheapest(self, life: Life) -> int:
        """What a call costs at most on the cheapest of its model's deployments, in nano-USD; 0: nobody knows."""
        charge = self._charge(life)
        bounds = [self._hold(life, each, charge).bound for each in life.model.deployments]
        known = [each.nano_usd for each in bounds if each is not None and each.nano_usd is not None]
        return min(known, default=0)

    def _charge(self, life: Life) -> Charge:
        charge = life.charge
        if charge is None or charge.body is not life.body:
            tickets = {} if charge is None else charge.tickets
            charge = Charge(who_of(life), life.body, read_ask(life.api, life.body), tickets)
            life.charge = charge
        return charge

    def _hold(self, life: Life, deployment: Deployment, charge: Charge) -> Hold:
        return hold_for(
            charge.ask,
            deployment,
            deployment.provider_model(life.routed, name=life.model.name),
            at=self.context.clock.wall(),
            said=_said(life),
        )

    def _try(self, waiting: _Waiting) -> Hold | f.Failure | None:
        life, hold = waiting.life, waiting.hold
        need = need_for(hold.bound, waiting.tariff) or _NO_ASK
        now = self.context.clock.now()
        until = min(now + PATIENCE_S, life.plan.deadline)
        outcome = self._holder.reserve(waiting.tariff.paths, need, now=now, until=until)
        result: Hold | f.Failure | None
        if isinstance(outcome, Ticket):
            self._waiting[outcome.number] = waiting
            if life.charge is not None:
                life.charge.tickets[outcome.number] = outcome
            self._arm()
            result = None
        else:
            result = self._decided(waiting, outcome)
        self._flush()
        return result

    def _decided(
        self, waiting: _Waiting, outcome: Reservation | Refusal
    ) -> Hold | f.Failure | None:
        hold, life = waiting.hold, waiting.life
        if isinstance(outcome, Reservation):
            hold.reservation = outcome
            self._open.add(hold)
            return hold
        place = (outcome.account, outcome.unit)
        if outcome.reason == "exhausted":
            life.notes[h.BUDGET_REMAINING] = amount_text(outcome.unit, outcome.remaining)
            if place in waiting.tariff.clamps and waiting.tries < 2:
                waiting.tries += 1
                if self._clamp(waiting, outcome):
                    return self._try(waiting)
            if place in waiting.tariff.refuses:
                life.no_ladder = True
        return failure_of(outcome)

    def _clamp(self, waiting: _Waiting, refusal: Refusal) -> bool:
        """Fewer output tokens, so that what is left is enough."""
        hold, charge = waiting.hold, waiting.life.charge
        bound = hold.bound
        if bound is None or charge is None or refusal.unit == "requests":
            return False
        money = refusal.unit == "nano_usd"
        output = affordable_output(
            charge.ask,
            bound,
            nano_usd=refusal.remaining if money else None,
            tokens=None if money else refusal.remaining,
            prices=hold.prices,
        )
        if output is None or output >= bound.output:
            return False
        said = _said(waiting.life)
        hold.bound = bound_of(charge.ask, waiting.deployment, hold.prices, output=output, said=said)
        hold.clamped = output
        self._write(charge, hold, True)
        return True

    def _write(self, charge: Charge, hold: Hold, write: bool) -> None:
        bound = hold.bound
        if not write or bound is None or not charge.ask.speaks:
            return
        body = charge.bodies.get(bound.output)
        if body is None:
            body = charge.bodies[bound.output] = with_output(
                charge.body, charge.ask.api, bound.output
            )
        hold.body = body

    def _unpriced(self, life: Life, deployment: Deployment) -> f.Failure:
        model = deployment.provider_model(life.routed, name=life.model.name)
        name = f"{deployment.provider}/{model}"
        now = self.context.clock.now()
        if now - self._alerted.get((deployment.provider, model), -ALERT_S) >= ALERT_S:
            self._alerted[(deployment.provider, model)] = now
            self._alert(
                "unpriced",
                f"{name} has no known price, so a bound in USD refuses it",
                deployment.id,
            )
        return f.BudgetExhausted(
            f"{name} has no known price, and a budget in USD limits this request: give the"
            f" deployment {deployment.id} a price in the configuration"
        )

    def note(self, life: Life, deployment: Deployment, hold: Hold) -> None:
        """What the answer says of budgets: before this call, so that it needs nobody's word after it."""
        charge = life.charge
        if charge is None or hold.reservation is None:
            return
        paths = self._tariffs.of((*charge.who[:5], deployment.provider, charge.who[6])).paths
        life.notes[h.BUDGET_REMAINING] = remaining_text(paths)
        if hold.clamped:
            life.notes[h.CLAMPED] = f"max_tokens={hold.clamped}"

    # ------------------------------------------------------------ settle

    def settle(self, hold: Hold, reply: Finished | None) -> None:
        """The attempt is over. None: nobody knows how, so it counts at its maximum."""
        self._settle(hold, reply)
        self._flush()

    def unmade(self, hold: Hold) -> None:
        """The attempt was never made."""
        hold.settle_money(_NO_ASK)
        self._close_hold(hold, _NO_ASK)
        self._flush()

    def _settle(self, hold: Hold, reply: Finished | None) -> None:
        if hold.money is not None:
            hold.settle_money(actual_of(hold, reply, _MONEY))
        reservation = hold.reservation
        if reservation is not None:
            units = frozenset(unit for lease in reservation.leases for unit in lease.path.units)
            self._close_hold(hold, actual_of(hold, reply, units))

    def _close_hold(self, hold: Hold, actual: Need | None) -> None:
        if hold in self._open and hold.reservation is not None:
            self._open.discard(hold)
            self._holder.settle(hold.reservation, actual, now=self.context.clock.now())

    def ended(self, life: Life) -> None:
        """Nobody wants the request's answer any more, or has it."""
        for place in life.places:
            left = self._running[place] - 1
            if left:
                self._running[place] = left
            else:
                del self._running[place]
        life.places = ()
        charge = life.charge
        if charge is not None and charge.tickets:
            for number, ticket in charge.tickets.items():
                self._holder.drop(ticket)
                self._waiting.pop(number, None)
            charge.tickets.clear()

    # ------------------------------------------------------------ the holder's wishes

    def _tick(self) -> None:
        now = self.context.clock.now()
        self._holder.tick(now)
        self._flush()
        for lease in [name for name in self._inboxes if not self._holder.asks(name)]:
            self._inboxes.pop(lease).close()
        for number in [n for n, (_, at) in self._report_inboxes.items() if now - at > 5.0]:
            self._report_inboxes.pop(number)[0].close()

    def _arm(self) -> None:
        if self._timer is None and self._holder.waiting:
            self._timer = self.context.clock.call_at(
                self.context.clock.now() + SOON_S, self._on_timer
            )

    def _on_timer(self) -> None:
        self._timer = None
        self._tick()
        self._arm()

    def _flush(self) -> None:
        """Keep, then say, then call back; whoever is called back may reserve and settle again."""
        self._keep()
        if self._flushing:
            return
        self._flushing = True
        try:
            while True:
                self._keep()
                said = self._holder.take_said()
                if not said:
                    break
                for each in said:
                    if isinstance(each, Say):
                        self._say(each)
                    elif isinstance(each, Decided):
                        self._resume(each)
                    else:
                        self._breached(each)
        finally:
            self._flushing = False
        if self._holder.at_rest:
            self._rested.set()

    def _keep(self) -> None:
        kept = self._holder.take_kept()
        if self._journal is not None:
            self._journal.write(kept)

    def _say(self, say: Say) -> None:
        subjects = self.context.subjects
        token = partition_token(say.partition)
        try:
            if say.ask is not None:
                lease = say.ask.lease
                inbox = self._inboxes.get(lease)
                if inbox is None:
                    inbox = self.context.bus.open_inbox(partial(self._on_lease, lease))
                    self._inboxes[lease] = inbox
                data = subjects.lease.encode(say.ask)
                self.context.bus.publish(subjects.lease.at(token), data, reply=inbox.subject)
            elif say.reports is not None:
                inbox = self.context.bus.open_inbox(partial(self._on_report, say.number))
                self._report_inboxes[say.number] = (inbox, self.context.clock.now())
                data = subjects.report.encode(say.reports)
                self.context.bus.publish(subjects.report.at(token), data, reply=inbox.subject)
        except BusError as error:
            # Said again when no answer comes.
            self.context.log.warning("ledger_not_asked", partition=token, error=repr(error))

    def _resume(self, decided: Decided) -> None:
        number = decided.ticket.number
        waiting = self._waiting.pop(number, None)
        if waiting is None:
            # Whoever asked has gone since it was granted.
            if isinstance(decided.outcome, Reservation):
                self._holder.settle(decided.outcome, _NO_ASK, now=self.context.clock.now())
            return
        if waiting.life.charge is not None:
            waiting.life.charge.tickets.pop(number, None)
        result = self._decided(waiting, decided.outcome)
        if isinstance(result, f.Failure):
            waiting.hold.settle_money(_NO_ASK)
        if result is not None:
            self._keep()
            waiting.resume(result)

    def _on_lease(self, lease: str, message: Message) -> None:
        now = self.context.clock.now()
        if message.no_responders:
            self._holder.unheard(lease, now=now)
        else:
            try:
                self._holder.heard(lease, _leases.decode(message.data), now=now)
            except msgspec.MsgspecError as error:
                self.context.log.error("bad_reply", lease=lease, error=str(error))
        self._flush()
        if not self._holder.asks(lease):
            inbox = self._inboxes.pop(lease, None)
            if inbox is not None:
                inbox.close()

    def _on_report(self, number: int, message: Message) -> None:
        found = self._report_inboxes.pop(number, None)
        if found is not None:
            found[0].close()
        if message.no_responders:
            return  # said again with the next
        try:
            reply = _reports.decode(message.data)
        except msgspec.MsgspecError as error:
            self.context.log.error("bad_reply", report=number, error=str(error))
            return
        self._holder.heard_report(number, reply, now=self.context.clock.now())
        self._flush()

    def _breached(self, breach: Breach) -> None:
        """A call cost more than its bound: the books have it, and somebody should look."""
        self.context.log.error(
            "estimate_breached", lease=breach.lease, reserved=breach.reserved, actual=breach.actual
        )
        self._alert(
            "breach", f"a call cost {breach.actual}, and {breach.reserved} were reserved for it", ""
        )

    def _alert(self, kind: str, message: str, target: str) -> None:
        context = self.context
        source = f"router/{context.id}"
        publish_alert(context, Alert(kind, message, context.clock.wall(), source, target=target))


def _said(life: Life) -> int:
    """Bytes of the cut answer that the next attempt goes on with."""
    return 0 if life.copies is None else life.copies.size


def who_of(life: Life) -> Who:
    """Whom a request is charged to, but for the provider."""
    options = life.options
    org = options.org or ("" if life.tenant == "default" else life.tenant)
    return (
        *(options.key, options.user, options.team, options.feature),
        *(org, "", life.home.name),
    )
