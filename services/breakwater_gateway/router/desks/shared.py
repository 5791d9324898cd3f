"""The router's desk for shared calls: who leads, who follows, and what each follower is told.

The worker's words come in twice: to the leader's caller, and as a copy here, which goes on to everybody who
follows. Each follower has its own request id, pays nothing, and is told that it was given another's answer.
"""

from collections.abc import Callable
from functools import partial
from typing import Protocol

from breakwater_gateway.router.desks.attempts import Ended
from breakwater_gateway.router.desks.fleet import Fleet
from breakwater_gateway.router.flights import Flight, Flights, Form, Said
from breakwater_gateway.router.life import Life
from breakwater_gateway.runtime.actor import Context
from breakwater_gateway.runtime.answers import usd
from breakwater_gateway.runtime.bus import BusError, Message
from breakwater_protocol import failures as f
from breakwater_protocol import headers as h
from breakwater_protocol.commands import Finished


class Landed(Protocol):
    """A flight ended well: what was said may be kept, and given to those that wait for its end."""

    def __call__(
        self, life: Life, flight: Flight[Life], reply: Finished, waiting: list[Life], /
    ) -> None: ...


class Shared:
    def __init__(
        self,
        context: Context,
        *,
        begin: Callable[[Life], None],
        stop: Callable[[Life, str], None],
        ended: Ended,
        gave_up: Callable[[Life, f.Failure], None],
        landed: Landed,
    ) -> None:
        """`begin` lets a request call providers; `stop` ends the calls it has in workers' hands."""
        self._context = context
        self._begin = begin
        self._stop = stop
        self._ended = ended
        self._gave_up = gave_up
        self._landed = landed
        self.flights: Flights[Life] = Flights()
        self.fleet = Fleet(context, self)
        self.stopping = False
        """Nobody takes over what is given up: all are told."""

    # ------------------------------------------------------------ leading and following

    def lead(self, life: Life, digest: str) -> None:
        """Whoever asks the same from now on waits for this one."""
        form = Form(life.stream, life.usage_wanted)
        limit = self._context.config.limits.cache_answer_bytes
        life.flight = Flight(digest, form, life, bytes_max=limit)
        self.flights.add(life.flight)

    def start(self, life: Life) -> None:
        """The leader may call a provider, unless another router's does so already."""
        flight = life.flight
        if flight is None or flight.leader is not life:
            self._begin(life)
            return
        left_s = life.plan.deadline - self._context.clock.now()
        flight.claiming = True
        self.fleet.claim(flight, left_s, partial(self._lead_on, flight))

    def _lead_on(self, flight: Flight[Life]) -> None:
        """No other router leads."""
        flight.claiming = False
        if flight.leader is not None and not flight.leader.over:
            self.take_off(flight.leader)

    def followed(self, flight: Flight[Life]) -> None:
        """Another router leads: who led here waits like the others."""
        flight.claiming = False
        for life in flight.followers:
            if life.verdict != "coalesced":
                self._wait(life)

    def take_off(self, life: Life) -> None:
        """The leader calls a provider: from here on its worker tells us what it says."""
        flight = life.flight
        if flight is not None and flight.leader is life:
            hear = partial(self._on_copy, life, flight)
            life.copies_inbox = self._context.bus.open_inbox(hear)
        self._begin(life)

    def join(self, life: Life, flight: Flight[Life]) -> None:
        life.flight = flight
        flight.followers.append(life)
        self._wait(life)
        leader = flight.leader.request_id if flight.leader is not None else flight.remote
        life.note("join", now=self._context.clock.now(), reason=leader)
        if self._gets_all(life, flight):
            for said in list(flight.said):
                self._pass_on(life, said)

    def _wait(self, life: Life) -> None:
        life.verdict = "coalesced"
        deadline = life.plan.deadline
        life.timer = self._context.clock.call_at(deadline, partial(self._on_deadline, life))

    def _gets_all(self, life: Life, flight: Flight[Life]) -> bool:
        """It wants the messages as they are; else it waits for the end, to be given the answer in its form."""
        return flight.form == Form(life.stream, life.usage_wanted)

    # ------------------------------------------------------------ what is said

    def _on_copy(self, life: Life, flight: Flight[Life], message: Message) -> None:
        if life.copies is not None:
            life.copies.take(message.data, message.headers)
        if flight.leader is not life or message.no_responders:
            return
        said = flight.hear(message.data, message.headers)
        if said is None:
            if flight.broken:
                self._fail(flight, f.StreamCut("a part of the shared answer is missing"), "gap")
            return
        if flight.listeners:
            self.fleet.pass_on(flight, said.data, dict(said.headers))
        for follower in list(flight.followers):
            if self._gets_all(follower, flight):
                self._pass_on(follower, said)

    # ------------------------------------------------------------ of other routers

    def to_join(self, key: str) -> Flight[Life] | None:
        flight = self.flights.led(key)
        return flight if flight is not None and flight.joinable else None

    def led(self, key: str) -> Flight[Life] | None:
        return self.flights.led(key)

    def hear_remote(self, flight: Flight[Life], message: Message) -> None:
        said = flight.hear(message.data, message.headers)
        if said is None:
            if flight.broken:
                self._fail(flight, f.StreamCut("a part of the shared answer is missing"), "gap")
            return
        for follower in list(flight.followers):
            if self._gets_all(follower, flight):
                self._pass_on(follower, said)
        if said.ends:
            for life in self._close(flight):
                self._on_its_own(life)

    def lost_remote(self, flight: Flight[Life]) -> None:
        gone = f.WorkerLost("the router that made the shared call is gone")
        self._fail(flight, gone, "router_lost")

    def left_remote(self, flight: Flight[Life]) -> None:
        self._nobody_left(flight)

    # ------------------------------------------------------------ what a follower is told

    def _pass_on(self, life: Life, said: Said) -> None:
        given, headers = said.headers, {}
        number = given.get(h.SEQ)
        if number is not None:
            headers[h.SEQ] = number
        if number in {None, "0"} or said.ends:
            headers.update(life.facts("primary"))
            for name in (h.DEPLOYMENT, h.DROPPED_PARAMS, h.RUNG, h.RUNG_REASON):
                if name in given:
                    headers[name] = given[name]
        partial_ = ""
        if said.ends:
            life.saved_nano_usd = nano_usd(given.get(h.COST_USD, ""))
            headers[h.COST_USD] = usd(0)
            headers[h.OVERHEAD_MS] = given.get(h.OVERHEAD_MS, "0")
            if h.END in given:
                headers[h.END] = given[h.END]
            if partial_ := given.get(h.PARTIAL, ""):
                headers[h.PARTIAL] = partial_
        self._send(life, said.data, headers)
        if said.ends:
            self._ended(life, None, partial=partial_)

    def _end_partial(
        self, life: Life, flight: Flight[Life], reason: str, failure: f.Failure
    ) -> None:
        """It has a part of the answer, and there will be no more."""
        headers = {h.SEQ: str(flight.heard), h.END: "partial", **life.facts("primary")}
        headers.update({h.PARTIAL: reason, h.COST_USD: usd(0)})
        self._send(life, b"", headers)
        self._ended(life, None, failure=failure, partial=reason)

    # ------------------------------------------------------------ the end

    def ended(self, life: Life, reply: Finished | None, failure: f.Failure | None) -> None:
        """The life is over: whoever followed it is seen to."""
        flight, life.flight = life.flight, None
        if flight is None:
            return
        if flight.leader is not life:
            if flight.leave(life):
                self._nobody_left(flight)
            return
        good = reply is not None and reply.failure is None and not reply.partial
        if reply is not None and good and flight.end is not None:
            waiting = self._close(flight)
            self._landed(life, flight, reply, waiting)
            return
        if reply is not None:
            failure = failure or reply.failure
        self._fail(flight, failure or f.WorkerLost("the shared call was lost"))

    def _fail(self, flight: Flight[Life], failure: f.Failure, reason: str = "") -> None:
        """Nothing more will be said: another leads, or all are told why."""
        if flight.began:
            leader = flight.leader
            self.fleet.give_up(flight)
            for life in self._close(flight):
                if life is leader:
                    continue
                if self._gets_all(life, flight):
                    self._end_partial(life, flight, reason or f.kind(failure), failure)
                else:
                    # It has heard nothing yet, and may ask on its own.
                    self._on_its_own(life)
            return
        heir = None if self.stopping else flight.succeed(failure)
        if heir is None:
            self.fleet.give_up(flight)
            for life in self._close(flight):
                life.flight, life.verdict = None, "miss"
                self._gave_up(life, failure)
            return
        flight.form = Form(heir.stream, heir.usage_wanted)
        self._free(heir)
        heir.note("lead", now=self._context.clock.now(), reason=f.kind(failure))
        if not flight.claiming:
            self.take_off(heir)

    def _on_its_own(self, life: Life) -> None:
        life.flight = None
        self._free(life)
        self._begin(life)

    def _free(self, life: Life) -> None:
        """It follows no longer, and may call."""
        life.verdict = "miss"
        if life.timer is not None:
            life.timer.cancel()
            life.timer = None

    def _close(self, flight: Flight[Life]) -> list[Life]:
        """The flight is over; those that still follow it."""
        self.flights.remove(flight)
        self.fleet.forget(flight)
        left, flight.followers = flight.followers, []
        for life in left:
            self._free(life)
            life.verdict = "coalesced"
        return left

    def call_off(self, life: Life) -> list[Life]:
        """No call is needed: those that waited with the life, which leads nothing any more."""
        flight, life.flight = life.flight, None
        if flight is None:
            return []
        left = self._close(flight)
        for follower in left:
            follower.flight = None
        return left

    def cancel(self, life: Life, reason: str) -> bool:
        """The life's caller left. False when its own calls are all there is to end."""
        flight = life.flight
        if flight is None:
            return False
        if flight.leader is not life:
            self._ended(life, None, failure=f.Cancelled(reason))
            return True
        if not life.calls:
            return False  # nothing is under way: whoever follows begins anew
        if flight.followers or flight.listeners:
            life.gone = True
        else:
            self._stop(life, reason)
        return True

    def _nobody_left(self, flight: Flight[Life]) -> None:
        leader = flight.leader
        if flight.followers:
            return
        if leader is None:
            self._close(flight)
        elif leader.gone and flight.end is None and not flight.listeners:
            self._stop(leader, "caller_gone")

    def _on_deadline(self, life: Life) -> None:
        flight = life.flight
        if life.over or flight is None:
            return
        life.timer = None
        failure = f.TotalTimeout("the deadline of the request passed")
        if flight.began and self._gets_all(life, flight):
            self._end_partial(life, flight, f.kind(failure), failure)
            return
        flight.leave(life)
        life.flight = None
        self._nobody_left(flight)
        self._gave_up(life, failure)

    def _send(self, life: Life, data: bytes, headers: dict[str, str]) -> None:
        try:
            self._context.bus.publish(life.reply, data, headers=headers)
        except BusError as error:
            self._context.log.warning("not_sent", request=life.request_id, error=repr(error))


def nano_usd(text: str) -> int | None:
    """What `usd` printed."""
    whole, _, rest = text.partition(".")
    if not (whole.isascii() and whole.isdigit() and rest.isascii() and rest.isdigit()):
        return None
    return int(whole) * 1_000_000_000 + int(rest[:9].ljust(9, "0"))
