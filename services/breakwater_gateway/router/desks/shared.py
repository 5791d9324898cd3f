"""The router's desk for shared calls: who leads, who follows, and what each follower is told.

The worker's words come in twice: to the leader's caller, and as a copy here, which goes on to everybody who
follows. Each follower has its own request id, pays nothing, and is told that it was given another's answer.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final, Protocol

import msgspec

from breakwater_gateway.cache.entry import is_usage_line
from breakwater_gateway.cache.replay import usage_line
from breakwater_gateway.router.copies import Copies
from breakwater_gateway.router.desks.attempts import COPIES_BYTES_MAX, Ended
from breakwater_gateway.router.desks.fleet import Fleet
from breakwater_gateway.router.flights import Flight, Flights, Form, Said
from breakwater_gateway.router.life import Life
from breakwater_gateway.runtime.actor import Context
from breakwater_gateway.runtime.answers import usd
from breakwater_gateway.runtime.bus import BusError, Message, MessageTooLarge
from breakwater_protocol import failures as f
from breakwater_protocol import headers as h
from breakwater_protocol.chat import Usage
from breakwater_protocol.commands import Finished
from breakwater_protocol.flights import CUT, FLIGHT, MARKS, TAPPED, Tapped

PATIENCE: Final = 0.5
"""Of its time to a first token: so long a stream waits for a whole answer that another asked for."""


class Landed(Protocol):
    """A flight ended well. `life`: led it here, and the answer may be kept; None: it was led elsewhere. The
    answer is given to those that wait for its end; who cannot have it is returned."""

    def __call__(
        self, life: Life | None, flight: Flight[Life], waiting: list[Life], /
    ) -> list[Life]: ...


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
        self._claim(life, flight)

    def _claim(self, life: Life, flight: Flight[Life], *, lost: str = "") -> None:
        left_s = life.plan.deadline - self._context.clock.now()
        flight.claiming = True
        self.fleet.claim(flight, left_s, partial(self._lead_on, flight), lost=lost)

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
                self._pass_on(life, flight, said)
        if not flight.began and life.wants(flight.form):
            self.fleet.lend(flight, life.ear())

    def _wait(self, life: Life) -> None:
        """Up to its deadline; a stream that will come all at once, up to a part of its time to a first token."""
        life.verdict = "coalesced"
        flight, until = life.flight, life.plan.deadline
        if life.timer is not None:
            life.timer.cancel()
        if flight is not None and life.stream and not flight.form.stream:
            until = min(until, self._context.clock.now() + life.first_token_s * PATIENCE)
        life.timer = self._context.clock.call_at(until, partial(self._on_time, life))

    def _gets_all(self, life: Life, flight: Flight[Life]) -> bool:
        """It wants the messages as they come; else it waits for the end, to be given the answer in its form."""
        return flight.form.stream == life.stream

    def _take_form(self, flight: Flight[Life], form: Form) -> None:
        """What is to come has another form than was thought: nothing was said so far."""
        flight.form = form
        for life in flight.followers:
            self._wait(life)

    # ------------------------------------------------------------ what is said

    def _on_copy(self, life: Life, flight: Flight[Life], message: Message) -> None:
        word = message.headers.get(FLIGHT)
        if life.copies is not None and word is None:
            life.copies.take(message.data, message.headers)
        if flight.leader is not life or message.no_responders:
            return
        if word == CUT:
            self._fail(flight, _too_large())
            return
        if word == TAPPED:
            flight.tapped(_tapped(message.data))
            return
        said = flight.hear(message.data, message.headers)
        if said is None:
            if flight.broken:
                self._fail(flight, f.StreamCut("a part of the shared answer is missing"), "gap")
            return
        if flight.listeners:
            self.fleet.pass_on(flight, said)
        self._tell(flight, said)

    def _tell(self, flight: Flight[Life], said: Said) -> None:
        for follower in list(flight.followers):
            if self._gets_all(follower, flight):
                self._pass_on(follower, flight, said)

    # ------------------------------------------------------------ of other routers

    def led(self, digest: str) -> list[Flight[Life]]:
        return self.flights.led(digest)

    def formed(self, flight: Flight[Life], form: Form) -> None:
        if form != flight.form and not flight.began:
            self._take_form(flight, form)

    def hear_remote(self, flight: Flight[Life], message: Message) -> None:
        for said in flight.arrive(message.data, message.headers):
            self._tell(flight, said)
        end = flight.end
        if end is not None:
            waiting = self._close(flight)
            if end.headers.get(h.END, "ok") == "ok":
                waiting = self._landed(None, flight, waiting)
            self._together(waiting)
        elif flight.broken:
            self._fail(flight, f.StreamCut("a part of the shared answer is missing"), "gap")

    def lost_remote(self, flight: Flight[Life], reason: str) -> None:
        gone = f.WorkerLost("the router that made the shared call is gone")
        self._fail(flight, gone, reason)

    def left_remote(self, flight: Flight[Life]) -> None:
        self._nobody_left(flight)

    # ------------------------------------------------------------ what a follower is told

    def _pass_on(self, life: Life, flight: Flight[Life], said: Said) -> None:
        given, data = said.headers, said.data
        if (flight.attempt, life.reply) in flight.ears:
            self._heard(life, said)
            return
        headers: dict[str, str] = {}
        if flight.form.usage != life.usage_wanted:
            data = self._without_usage(data) if flight.form.usage else data
            if not data and said.data:
                return
            if said.ends and given.get(h.END) == "ok" and life.usage_wanted:
                self._tell_usage(life, flight, usage_of(given))
        if h.SEQ in given:
            headers[h.SEQ] = str(life.given)
            if (attempt := _shown(flight)) > 1:
                headers[h.ATTEMPT] = str(attempt)
        if h.SEQ not in given or not life.given or said.ends:
            headers.update(life.facts("primary"))
            headers.update(marks(given))
        if h.SEAM in given:
            headers[h.SEAM] = given[h.SEAM]
        if said.ends:
            headers[h.COST_USD] = usd(0)
            headers[h.OVERHEAD_MS] = given.get(h.OVERHEAD_MS, "0")
            headers.update({name: given[name] for name in (h.END, h.PARTIAL) if name in given})
        if not self._send(life, data, headers):
            self._unsent(life, flight)
        else:
            self._heard(life, said)

    def _heard(self, life: Life, said: Said) -> None:
        """Its caller has this, from us or from the worker."""
        life.given += 1
        if said.ends:
            life.saved_nano_usd = nano_usd(said.headers.get(h.COST_USD, ""))
            self._ended(life, None, partial=said.headers.get(h.PARTIAL, ""))

    def _unsent(self, life: Life, flight: Flight[Life]) -> None:
        """The leader's caller is nearer, and had it all the same."""
        failure = _too_large()
        if life.given:
            self._end_partial(life, f.kind(failure), failure)
            return
        flight.leave(life)
        life.flight = None
        self._nobody_left(flight)
        self._free(life)
        self._gave_up(life, failure)

    @staticmethod
    def _without_usage(data: bytes) -> bytes:
        """It did not ask for usage on its stream."""
        if b'"usage"' not in data:
            return data
        return b"\n".join(line for line in data.split(b"\n") if not is_usage_line(line))

    def _tell_usage(self, life: Life, flight: Flight[Life], usage: Usage | None) -> None:
        """It asked for usage on its stream, and the leader did not."""
        if usage is not None:
            line = usage_line(flight.first_line, usage, life.asked.model)
            headers = {h.SEQ: str(life.given)}
            if (attempt := _shown(flight)) > 1:
                headers[h.ATTEMPT] = str(attempt)
            self._send(life, line, headers)
            life.given += 1

    def _end_partial(self, life: Life, reason: str, failure: f.Failure) -> None:
        """It has a part of the answer, and there will be no more."""
        # Without a number: whatever was said before, this is the end.
        headers = {h.END: "partial", **life.facts("primary")}
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
            self._together(self._landed(life, flight, self._close(flight)))
            return
        if reply is not None:
            failure = failure or reply.failure
        self._fail(flight, failure or f.WorkerLost("the shared call was lost"))

    def _fail(self, flight: Flight[Life], failure: f.Failure, reason: str = "") -> None:
        """Nothing more will be said: another leads, or all are told why."""
        if flight.began and self._go_on(flight, failure):
            return
        if flight.began:
            reason = reason or f.kind(failure)
            self.fleet.give_up(flight, reason)
            # Who has heard nothing yet may ask anew.
            anew = []
            for life in self._close(flight):
                if self._gets_all(life, flight):
                    self._end_partial(life, reason, failure)
                else:
                    anew.append(life)
            self._together(anew)
            return
        lost = flight.remote
        heir = None if self.stopping else flight.succeed(failure)
        if heir is None:
            self.fleet.give_up(flight, f.kind(failure))
            for life in self._close(flight):
                life.flight, life.verdict = None, "miss"
                self._gave_up(life, failure)
            return
        self._free(heir)
        self._take_form(flight, Form(heir.stream, heir.usage_wanted))
        self.fleet.tell_form(flight)
        heir.note("lead", now=self._context.clock.now(), reason=f.kind(failure))
        if lost:
            self._claim(heir, flight, lost=lost)
        elif not flight.claiming:
            self.take_off(heir)

    def _go_on(self, flight: Flight[Life], failure: f.Failure) -> bool:
        """The call was cut, and so was the router that led it: where the model says so another deployment goes
        on for all that follow here."""
        if self.stopping or flight.leader is not None or not flight.whole or flight.broken:
            return False
        heir = next((life for life in flight.followers if self._may_go_on(life, flight)), None)
        if heir is None:
            return False
        flight.followers.remove(heir)
        flight.leader, flight.remote, flight.tap, flight.seam = heir, "", None, True
        flight.forget_ears()
        heir.copies = Copies(COPIES_BYTES_MAX)
        for said in flight.said:
            heir.copies.take(said.data, said.headers)
        self._free(heir)
        heir.note("lead", now=self._context.clock.now(), reason=f.kind(failure))
        self.take_off(heir)
        return True

    @staticmethod
    def _may_go_on(life: Life, flight: Flight[Life]) -> bool:
        form = Form(life.stream, life.usage_wanted)
        return life.stream and form == flight.form and life.model.on_cut == "continue"

    def _together(self, lives: list[Life]) -> None:
        """Without another router's leave: the first of them calls, and the others wait for it."""
        for life in lives:
            life.flight = None
            if self.stopping or life.key is None:
                self._free(life)
                self._begin(life)
                continue
            digest = life.key.digest
            form = Form(life.stream, life.usage_wanted)
            flight = self.flights.to_join(digest, form, alike=life.stream)
            if flight is not None:
                self.join(life, flight)
            else:
                self._free(life)
                self.lead(life, digest)
                self.take_off(life)

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

    def _on_time(self, life: Life) -> None:
        flight = life.flight
        if life.over or flight is None:
            return
        life.timer = None
        failure = f.TotalTimeout("the deadline of the request passed")
        if flight.began and self._gets_all(life, flight):
            self._end_partial(life, f.kind(failure), failure)
            return
        flight.leave(life)
        life.flight = None
        self._nobody_left(flight)
        if self._context.clock.now() < life.plan.deadline:
            self._together([life])
        else:
            self._gave_up(life, failure)

    def _send(self, life: Life, data: bytes, headers: dict[str, str]) -> bool:
        """False: it is larger than the bus carries."""
        try:
            self._context.bus.publish(life.reply, data, headers=headers)
        except MessageTooLarge:
            return False
        except BusError as error:
            self._context.log.warning("not_sent", request=life.request_id, error=repr(error))
        return True


_tapped: Final = msgspec.json.Decoder(Tapped).decode


def _shown(flight: Flight[Life]) -> int:
    """The number of the attempt, as those that are led here are told it."""
    return 1 if flight.leader is None else flight.ears_from + flight.attempt


def _too_large() -> f.Failure:
    return f.MalformedAnswer("the provider's answer is larger than the bus carries")


def marks(given: Mapping[str, str]) -> dict[str, str]:
    return {name: given[name] for name in MARKS if name in given}


_usage: Final = msgspec.json.Decoder(Usage).decode


def usage_of(given: Mapping[str, str]) -> Usage | None:
    """As the worker said it on the last message; None where the provider did not tell."""
    text = given.get(h.USAGE, "")
    return _usage(text) if text else None


def nano_usd(text: str) -> int | None:
    """What `usd` printed."""
    whole, _, rest = text.partition(".")
    if not (whole.isascii() and whole.isdigit() and rest.isascii() and rest.isdigit()):
        return None
    return int(whole) * 1_000_000_000 + int(rest[:9].ljust(9, "0"))
