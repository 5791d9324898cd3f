"""Holder: reserves every attempt of this router against leases it holds, and accounts for them to the writers.

A value that is told what happened and when, and answers with what is to be said (`take_said`) and kept
(`take_kept`). Whoever carries that out keeps first and says second: a reservation is in the journal before its
call is made. The rules that make a hard limit hold, whatever is lost, repeated, reordered or late:

- An attempt is made only after `reserve` took its maximum from a lease of each of its paths; all or none.
- A lease is final only when none of its calls is in flight; what is not known by then counts at its maximum.
- Reports are cumulative, and the final one is repeated until a writer has it in its log.
- An ask without an answer is repeated under the same lease's name, and one that is given up is closed at zero,
  so that a grant which comes late is nobody's.

Far from the limit nobody waits: the next lease is asked for while half of the last one is left. Near it nothing
is held ahead of need: leases of one request, closed as soon as that has settled.
"""

from math import exp
from typing import Final

from msgspec import Struct

from breakwater_gateway.router.leases import (
    NOTHING,
    UNITS,
    Asking,
    Closed,
    Kept,
    Lease,
    Need,
    Path,
    Refusal,
    Reservation,
    Spent,
    Ticket,
    amount,
    need_of,
)
from breakwater_gateway.router.reports import ANSWER_S, LeaseReports, Say
from breakwater_protocol.ledger import (
    AMOUNT_MAX,
    Contended,
    Exhausted,
    Granted,
    LeaseAsk,
    LeaseReply,
    NotLeader,
    Refused,
    Reported,
    ReportReply,
)

AHEAD_S: Final = 2.0
"""A lease is asked for about so much use."""
REPORT_S: Final = 1.0
IDLE_S: Final = 3.0
"""An unused lease goes back after that."""
KNOWN_S: Final = 0.5
"""An exhausted path is not asked again for so long at most: a limit may have been raised."""
RETRY_S: Final = 0.1
TRIES_UNHEARD_MAX: Final = 20
NEAR_REQUESTS: Final = 8
"""With less available than for so many requests, nothing is asked for ahead of need."""
WAITING_MAX: Final = 10_000
"""On one path; more are refused at once."""


class Decided(Struct, frozen=True):
    """A ticket is no longer waiting."""

    ticket: Ticket
    outcome: Reservation | Refusal


class Breach(Struct, frozen=True):
    """A call cost more than was reserved for it. The books have it all the same."""

    lease: str
    reserved: Need
    actual: Need


Said = Say | Decided | Breach


class Holder:
    def __init__(self, name: str, incarnation: int) -> None:
        self._prefix = f"{name}/{incarnation}/"
        self._k = 0
        self._numbers = 0
        self._asked: dict[str, Path] = {}
        self._leases: dict[str, Lease] = {}
        self._reports = LeaseReports()
        self._paths: dict[Path, None] = {}
        """Those where somebody waits or a lease is asked for."""
        self._said: list[Said] = []
        self._kept: list[Kept] = []
        self._report_at = 0.0
        self._gave_at = 0.0
        self._closing = False
        self._now = 0.0
        """Of the last thing heard."""

    # ------------------------------------------------------------ what is to be done

    def take_kept(self) -> list[Kept]:
        """For the journal, before anything of `take_said` and before a reservation is used."""
        kept, self._kept = self._kept, []
        return kept

    def take_said(self) -> list[Said]:
        self._said += self._reports.fresh(self._now)
        said, self._said = self._said, []
        return said

    @property
    def at_rest(self) -> bool:
        """Nothing is held, asked for or unsaid: the books know all there is to know."""
        return not self._leases and not self._asked and self._reports.at_rest

    def asks(self, lease: str) -> bool:
        """The ask for that lease still wants an answer."""
        return lease in self._asked

    @property
    def waiting(self) -> bool:
        """Somebody waits for an answer: `tick` is worth calling soon."""
        return bool(self._paths)

    def leases(self) -> list[Lease]:
        """Those that are not closed."""
        return list(self._leases.values())

    # ------------------------------------------------------------ reserve and settle

    def reserve(
        self, paths: tuple[Path, ...], need: Need, *, now: float, until: float
    ) -> Reservation | Ticket | Refusal:
        """All of it from a lease of each path, or nothing. A `Ticket` is decided later, by `until` at the latest."""
        self._now = now
        picked: list[Lease] = []
        for path in paths:
            path.need = need
            lease = None if path.waiting else path.pick(need, now)
            if lease is None:
                return self._queue(paths, need, now, until)
            picked.append(lease)
        return self._take(tuple(picked), need, now)

    def _take(self, leases: tuple[Lease, ...], need: Need, now: float) -> Reservation:
        for lease in leases:
            path, held = lease.path, lease.held
            for unit in path.units:
                held[unit] += need[unit]
            lease.calls += 1
            lease.taken_at = now
            self._keep(lease)
            self._burn(path, need, now)
            if not path.near and path.asking is None and self._is_low(path, lease, need):
                self._ask(path, need, now)
        return Reservation(leases, need)

    def _is_low(self, path: Path, lease: Lease, need: Need) -> bool:
        """Half of what was lent is gone, or the next two requests might not fit."""
        for unit in path.units:
            room = sum([each.room(unit) for each in path.leases])
            if room * 2 < lease.lent[unit] or room < 2 * need[unit]:
                return True
        return False

    def _burn(self, path: Path, need: Need, now: float) -> None:
        decay = exp((path.rate_at - now) / AHEAD_S) if now > path.rate_at else 1.0
        path.rate_at = now
        rate = path.rate
        for unit in path.units:
            rate[unit] = rate[unit] * decay + need[unit] / AHEAD_S

    def _queue(
        self, paths: tuple[Path, ...], need: Need, now: float, until: float
    ) -> Ticket | Refusal:
        if self._closing:
            return Refusal("contended", message="the router is stopping")
        for path in paths:
            known = path.spent
            if known is None:
                continue
            if now >= known.until:
                path.spent = None
            elif need[known.unit] >= known.least:
                return known.refusal
            if len(path.waiting) >= WAITING_MAX:
                return Refusal("contended", message="too many requests wait for this budget")
        self._numbers += 1
        ticket = Ticket(self._numbers, paths, need, until)
        lacking = [path for path in paths if path.pick(need, now) is None]
        for path in paths:
            path.waiting[ticket.number] = ticket
            self._paths[path] = None
        if any(path.near for path in paths):
            # One after the other, in one order everywhere: nobody holds what another one lacks for long.
            del lacking[1:]
        for path in lacking:
            self._ask(path, need, now)
        if not lacking:
            self._serve(paths[0], now)
        return ticket

    def drop(self, ticket: Ticket) -> None:
        """Nobody wants it any more."""
        for path in ticket.paths:
            path.waiting.pop(ticket.number, None)

    def settle(self, reservation: Reservation, actual: Need | None, *, now: float) -> None:
        """The call is over, at this cost; None: nobody knows, so it counts at its maximum."""
        if reservation.settled:
            raise ValueError("the reservation was settled before")
        self._now = now
        reservation.settled = True
        need = reservation.need
        cost = need if actual is None else actual
        for lease in reservation.leases:
            path = lease.path
            breach = False
            for unit in path.units:
                lease.held[unit] -= need[unit]
                lease.spent[unit] = min(lease.spent[unit] + cost[unit], AMOUNT_MAX)
                breach = breach or cost[unit] > need[unit]
            lease.calls -= 1
            self._keep(lease)
            if breach:
                self._said.append(Breach(lease.id, need, cost))
            if path.waiting:
                self._serve(path, now)
            if not lease.calls and lease.id in self._leases:
                if lease in path.draining:
                    self._finish(lease)
                elif path.near and not path.waiting:
                    self._retire(lease)

    # ------------------------------------------------------------ leases

    def _ask(self, path: Path, need: Need, now: float) -> None:
        first = next(iter(path.waiting.values()), None)
        if first is not None:
            need = first.need
            # What is left over here may be just what is missing there. Calls in flight may still make room.
            for lease in list(path.leases):
                if not lease.calls and not lease.fits(need, now):
                    self._retire(lease)
        if path.asking is not None or self._closing or now < path.retry_at:
            return
        self._k += 1
        min_ = path.restrict(need)
        wanted = [0, 0, 0]
        for unit in path.units:
            queued = sum([ticket.need[unit] for ticket in path.waiting.values()])
            ahead = 0 if path.near else int(path.rate[unit] * AHEAD_S)
            wanted[unit] = min(max(min_[unit], queued, ahead), AMOUNT_MAX)
        want = (wanted[0], wanted[1], wanted[2])
        path.asking = asking = Asking(f"{self._prefix}{self._k}", min_, want, now)
        self._asked[asking.id] = path
        self._paths[path] = None
        self._kept.append(Kept(asking.id, path.partition))
        self._say_ask(path, asking, now)

    def _say_ask(self, path: Path, asking: Asking, now: float) -> None:
        asking.sent_at = now
        asking.tries += 1
        ask = LeaseAsk(
            asking.id,
            path.lines,
            amount(asking.min),
            amount(asking.want),
            self._reports.seen(path.partition),
        )
        self._said.append(Say(path.partition, ask=ask))

    def _retire(self, lease: Lease) -> None:
        """Nothing more is reserved from it; it is closed when its calls have settled."""
        path = lease.path
        if lease in path.leases:
            path.leases.remove(lease)
        if lease.calls:
            path.draining[lease] = None
        else:
            self._finish(lease)

    def _give_back(self, path: Path, now: float) -> None:
        """Somebody lacks what other paths with the same lines hold unused, here."""
        if now - self._gave_at < RETRY_S:
            return
        self._gave_at = now
        names = {line.account for line in path.lines}
        for lease in list(self._leases.values()):
            other = lease.path
            if lease.calls or other is path or other.waiting or lease in other.draining:
                continue
            if any(line.account in names for line in other.lines):
                self._retire(lease)

    def _finish(self, lease: Lease) -> None:
        lease.path.draining.pop(lease, None)
        del self._leases[lease.id]
        spent = lease.spent
        self._close(lease.id, lease.path.partition, (spent[0], spent[1], spent[2]), lease)

    def _close(self, name: str, partition: int, spent: Need, lease: Lease | None = None) -> None:
        self._reports.close(name, partition, Closed(spent, lease))
        self._kept.append(Kept(name, partition, spent))

    def _keep(self, lease: Lease) -> None:
        spent, held = lease.spent, lease.held
        self._kept.append(
            Kept(
                lease.id,
                lease.path.partition,
                (spent[0], spent[1], spent[2]),
                (held[0], held[1], held[2]),
            )
        )

    def close_lease_of(self, kept: Kept) -> None:
        """A lease of a life that ended, as its journal left it: what was in flight counts at its maximum."""
        spent, held = kept.spent, kept.held
        total = (spent[0] + held[0], spent[1] + held[1], spent[2] + held[2])
        self._close(kept.lease, kept.partition, total)

    # ------------------------------------------------------------ what writers say

    def heard(self, lease: str, reply: LeaseReply, *, now: float) -> None:
        """The answer to an ask."""
        self._now = now
        path = self._asked.get(lease)
        if path is None or path.asking is None or path.asking.id != lease:
            return  # said twice, or given up since
        asking = path.asking
        match reply:
            case Granted():
                if reply.lease == lease:
                    self._granted(path, asking, reply, now)
            case Exhausted():
                self._reports.see(path.partition, reply.seq)
                self._answered(path, asking)
                refusal = Refusal(
                    "exhausted",
                    account=reply.account,
                    unit=reply.unit,
                    period=reply.period,
                    limit=reply.limit,
                    remaining=reply.remaining,
                    resets_in_s=reply.resets_in_s,
                )
                wait_s = KNOWN_S if reply.resets_in_s < 0 else min(KNOWN_S, reply.resets_in_s)
                path.near = True
                unit = UNITS.index(reply.unit)
                path.spent = Spent(refusal, unit, asking.min[unit], now + wait_s)
                self._refuse(path, refusal, unit, asking.min[unit])
                self._again(path, now)
            case Contended():
                self._reports.see(path.partition, reply.seq)
                path.near = True
                self._give_back(path, now)
                self._later(path, reply.retry_ms / 1000, now)
            case NotLeader():
                self._later(path, reply.retry_ms / 1000, now)
            case Refused():
                self._answered(path, asking)
                if reply.reason != "stale_lease":
                    refusal = Refusal("refused", message=reply.message)
                    path.spent = Spent(refusal, 0, 0, now + KNOWN_S)
                    self._refuse(path, refusal, 0, 0)
                self._again(path, now)

    def unheard(self, lease: str, *, now: float) -> None:
        """Nobody serves that partition just now."""
        path = self._asked.get(lease)
        if path is not None and path.asking is not None and path.asking.id == lease:
            self._later(path, RETRY_S, now)

    def _granted(self, path: Path, asking: Asking, reply: Granted, now: float) -> None:
        self._reports.see(path.partition, reply.seq)
        self._asked.pop(asking.id, None)
        path.asking, path.retry_at, path.spent = None, 0.0, None
        # What is left was right when the writer said it; counted from the ask, it never ends late.
        ends = [line.ends_in_s for line in reply.lines if line.ends_in_s >= 0]
        ends_at = asking.sent_at + min(ends) if ends else float("inf")
        lent = need_of(reply.amount)
        lease = Lease(asking.id, path, lent, ends_at=ends_at, now=now)
        lease.periods = tuple(line.period for line in reply.lines)
        path.remaining = [(line.available, line.limit) for line in reply.lines]
        path.near = any(
            state.available < NEAR_REQUESTS * path.need[UNITS.index(line.unit)]
            for state, line in zip(reply.lines, path.lines, strict=False)
        )
        self._leases[lease.id] = lease
        self._keep(lease)
        for old in list(path.leases):
            if not old.fits(path.need, now):
                self._retire(old)
        path.leases.append(lease)
        self._serve(path, now)
        if lease in path.leases and (self._closing or reply.state == "expired"):
            self._retire(lease)
        elif path.near and not lease.calls and not path.waiting and lease in path.leases:
            self._retire(lease)  # nobody here needs it any more

    def _serve(self, path: Path, now: float) -> None:
        """Whoever waits longest first; who lacks another path's lease too lets others pass."""
        for ticket in list(path.waiting.values()):
            picked: list[Lease] = []
            for each in ticket.paths:
                lease = each.pick(ticket.need, now)
                if lease is None:
                    self._ask(each, ticket.need, now)
                    if each is path:
                        return
                    break
                picked.append(lease)
            else:
                self.drop(ticket)
                self._said.append(Decided(ticket, self._take(tuple(picked), ticket.need, now)))

    def _refuse(self, path: Path, refusal: Refusal, unit: int, least: int) -> None:
        """Everybody who needs so much of that unit."""
        for ticket in list(path.waiting.values()):
            if ticket.need[unit] >= least:
                self.drop(ticket)
                self._said.append(Decided(ticket, refusal))

    def _answered(self, path: Path, asking: Asking) -> None:
        """No lease came of it. It is closed all the same: a repetition of the ask may still be on its way."""
        self._asked.pop(asking.id, None)
        path.asking = None
        self._close(asking.id, path.partition, NOTHING)

    def _later(self, path: Path, wait_s: float, now: float) -> None:
        path.retry_at = now + wait_s

    def _again(self, path: Path, now: float) -> None:
        first = next(iter(path.waiting.values()), None)
        if first is not None:
            self._ask(path, first.need, now)

    def heard_report(self, number: int, reply: ReportReply, *, now: float) -> None:
        self._now = now
        if not isinstance(reply, Reported):
            self._reports.unconfirmed(number)
            return  # said again soon
        over = self._reports.confirmed(number, reply)
        if over is None:
            return
        self._kept += over
        for name in (*reply.expired, *reply.unknown):
            held = self._leases.get(name)
            if held is not None and held not in held.path.draining:
                self._retire(held)
        self._reports.claim(reply.claim, self._leases)

    # ------------------------------------------------------------ time

    def tick(self, now: float) -> None:
        """Asks and tickets whose time is over, and about once a second a report of everything held."""
        self._now = now
        for path in list(self._paths):
            self._look_after(path, now)
        if now >= self._report_at:
            self._report_at = now + REPORT_S
            self._return_unused(now)
            self._said += self._reports.all(self._leases.values(), now)

    def _look_after(self, path: Path, now: float) -> None:
        for ticket in [t for t in path.waiting.values() if t.until <= now]:
            self.drop(ticket)
            asking = path.asking
            silent = asking is not None and not path.near and asking.tries > 2
            refusal = Refusal("unreachable" if silent else "contended")
            self._said.append(Decided(ticket, refusal))
        asking = path.asking
        if asking is not None:
            if path.retry_at and now < path.retry_at:
                return
            if not path.retry_at and now - asking.sent_at < ANSWER_S:
                return
            path.retry_at = 0.0
            if not path.waiting and (path.near or asking.tries >= TRIES_UNHEARD_MAX):
                self._answered(path, asking)
            else:
                self._say_ask(path, asking, now)
        elif path.waiting:
            path.retry_at = 0.0
            self._serve(path, now)
            self._again(path, now)
        if not path.waiting and path.asking is None:
            self._paths.pop(path, None)

    def _return_unused(self, now: float) -> None:
        for lease in list(self._leases.values()):
            if lease in lease.path.draining:
                continue
            path = lease.path
            kept_s = 0.0 if path.near and not path.waiting else IDLE_S
            idle = not lease.calls and now - lease.taken_at > kept_s
            if idle or now >= lease.ends_at:
                self._retire(lease)

    # ------------------------------------------------------------ the end

    def close(self, now: float) -> None:
        """No more reservations; what has no call in flight goes back now, the rest as it settles."""
        self._now = now
        self._closing = True
        refusal = Refusal("contended", message="the router is stopping")
        for path in list(self._paths):
            self._refuse(path, refusal, 0, 0)
            if path.asking is not None:
                self._answered(path, path.asking)
        self._paths.clear()
        for lease in list(self._leases.values()):
            if lease not in lease.path.draining:
                self._retire(lease)
