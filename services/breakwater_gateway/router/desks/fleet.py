"""The router's desk for other routers: who of them leads a question, and what crosses between them."""

from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

import msgspec

from breakwater_gateway.router.flights import Flight, Form, Listener, Said
from breakwater_gateway.router.home import Home
from breakwater_gateway.router.life import Life
from breakwater_gateway.runtime.actor import Context
from breakwater_gateway.runtime.bus import BusError, Inbox, Message, MessageTooLarge
from breakwater_protocol import flights
from breakwater_protocol import headers as h
from breakwater_protocol.commands import Ear, Tap
from breakwater_protocol.events import Heartbeat
from breakwater_protocol.flights import FLIGHT, Claimed, FlightAsk, Joined, Tapped

CLAIM_MAX_S: Final = 3_600.0
LISTENERS_MAX: Final = 1_024
CLAIM_S: Final = 0.05
"""A home that does not answer by then is passed by: the call is made."""
PINGS_MAX: Final = 4
"""Beats of ours without a word from a worker, whose router is dead, before it is lost too."""
_claimed: Final = msgspec.json.Decoder(Claimed)
_joined: Final = msgspec.json.Decoder(Joined)
_tapped: Final = msgspec.json.Decoder(Tapped)


class Sharing(Protocol):
    """What the desk for shared calls does with what comes from elsewhere."""

    def led(self, digest: str) -> list[Flight[Life]]: ...
    def hear_remote(self, flight: Flight[Life], message: Message) -> None: ...
    def followed(self, flight: Flight[Life]) -> None: ...
    def formed(self, flight: Flight[Life], form: Form) -> None: ...
    def lost_remote(self, flight: Flight[Life], reason: str) -> None: ...
    def left_remote(self, flight: Flight[Life]) -> None: ...


class Fleet:
    def __init__(self, context: Context, sharing: Sharing) -> None:
        self._context = context
        self._sharing = sharing
        self._home = Home(context.id)
        self._joined: dict[Flight[Life], Inbox] = {}
        """Flights that another router leads."""
        self._claimed: dict[Flight[Life], str] = {}
        """Flights that we lead, and the home that was told."""
        self._orphans: dict[Flight[Life], _Watch] = {}
        """Flights whose router is dead, and whose worker we hear ourselves."""

    def heard(self, beat: Heartbeat) -> None:
        now = self._context.clock.now()
        self._home.heard(beat.id, now, draining=beat.draining)
        if self._joined:
            for flight in [f for f in self._joined if not self._home.is_alive(f.remote, now)]:
                if flight.stands_alone:
                    if beat.id == self._context.id:
                        self._watch(flight)
                else:
                    self._lost(flight, "router_lost")

    def claim(
        self, flight: Flight[Life], left_s: float, lead: Callable[[], None], *, lost: str = ""
    ) -> None:
        """`lead` is called, now or soon, unless another router leads: then the flight follows it. `lost`: the
        router that led it before."""
        now, own = self._context.clock.now(), self._context.id
        if self._home.alone(now):
            lead()
            return
        home = self._home.of(flight.digest, now)
        self._claimed[flight] = home
        if home == own:
            leader = self._home.claim(flight.digest, own, left_s, now, lost=lost)
            self._told(flight, leader, lead)
            return
        once = _Once(partial(self._answered, flight, lead))
        once.inbox = self._context.bus.open_inbox(once.hear)
        once.timer = self._context.clock.call_at(now + CLAIM_S, once.late)
        ask = FlightAsk("claim", flight.digest, router=own, left_s=left_s, lost=lost)
        self._say(home, ask, once.inbox.subject)

    def _answered(
        self, flight: Flight[Life], lead: Callable[[], None], message: Message | None
    ) -> None:
        leader = self._context.id
        if message is not None and not message.no_responders:
            try:
                leader = _claimed.decode(message.data).leader
            except msgspec.MsgspecError as error:
                self._context.log.warning("bad_claimed", error=str(error))
        self._told(flight, leader, lead)

    def _told(self, flight: Flight[Life], leader: str, lead: Callable[[], None]) -> None:
        if leader == self._context.id:
            lead()
            return
        self._claimed.pop(flight, None)
        if flight.leader is None or flight.leader.over:
            return  # everybody left while it was asked
        flight.follow(leader)
        self._sharing.followed(flight)
        inbox = self._context.bus.open_inbox(partial(self._on_copy, flight))
        self._joined[flight] = inbox
        self._say(leader, FlightAsk("join", flight.digest, inbox=inbox.subject), inbox.subject)

    def _on_copy(self, flight: Flight[Life], message: Message) -> None:
        if flight not in self._joined:
            return  # it was on its way when the inbox was closed
        if message.no_responders:
            self._lost(flight, "router_lost")
            return
        word = message.headers.get(FLIGHT)
        if word is None:
            self._sharing.hear_remote(flight, message)
            return
        try:
            self._on_word(flight, word, message)
        except msgspec.MsgspecError as error:
            self._context.log.warning("bad_flight", error=str(error))

    def _on_word(self, flight: Flight[Life], word: str, message: Message) -> None:
        match word:
            case flights.JOINED:
                joined = _joined.decode(message.data)
                self._sharing.formed(flight, Form(joined.stream, joined.usage))
            case flights.TAPPED:
                flight.tap = tap = _tapped.decode(message.data)
                ask = FlightAsk("tapped", flight.digest, attempt=tap.attempt, seq=tap.seq)
                inbox = self._joined[flight].subject
                self._say(flight.remote, msgspec.structs.replace(ask, inbox=inbox))
            case flights.CUT:
                flight.tap = None
                if flight in self._orphans:
                    self._lost(flight, "router_lost")
            case flights.GONE:
                self._lost(flight, message.headers.get(h.PARTIAL, "router_lost"))
            case _:
                self._context.log.warning("bad_flight", error=f"not a word: {word[:40]!r}")

    def _watch(self, flight: Flight[Life]) -> None:
        """Its router is dead and cannot tell whether the worker still is at it."""
        watch = self._orphans.get(flight)
        if watch is None:
            watch = self._orphans[flight] = _Watch()
            watch.inbox = self._context.bus.open_inbox(partial(self._on_pong, flight, watch))
            self._context.log.info("flight_without_router", router=flight.remote)
        if watch.missed >= PINGS_MAX:
            self._lost(flight, "worker_lost")
        elif flight.tap is not None and watch.inbox is not None:
            watch.missed += 1
            subject = self._context.subjects.ping.at(flight.tap.worker)
            self._send(subject, b"", {}, watch.inbox.subject)

    def _on_pong(self, flight: Flight[Life], watch: "_Watch", message: Message) -> None:
        watch.missed = 0
        if message.no_responders:
            self._lost(flight, "worker_lost")

    def _lost(self, flight: Flight[Life], reason: str) -> None:
        self.forget(flight)
        self._sharing.lost_remote(flight, reason)

    def forget(self, flight: Flight[Life]) -> None:
        """The flight is over here: told to who leads it, or to its home."""
        inbox = self._joined.pop(flight, None)
        if inbox is not None:
            inbox.close()
            if flight.end is None:
                self._say(flight.remote, FlightAsk("leave", flight.digest, inbox=inbox.subject))
        watch = self._orphans.pop(flight, None)
        if watch is not None and watch.inbox is not None:
            watch.inbox.close()
        home = self._claimed.pop(flight, None)
        if home == self._context.id:
            self._home.landed(flight.digest, home)
        elif home is not None:
            self._say(home, FlightAsk("landed", flight.digest, router=self._context.id))

    # ------------------------------------------------------------ asked by others

    def on_ask(self, message: Message) -> None:
        try:
            ask = self._context.subjects.flight.decode(message.data)
        except msgspec.MsgspecError as error:
            self._context.log.warning("bad_flight", error=str(error))
            return
        now = self._context.clock.now()
        match ask.ask:
            case "claim":
                self._home.heard(ask.router, now)
                left_s = min(ask.left_s, CLAIM_MAX_S)
                leader = self._home.claim(ask.key, ask.router, left_s, now, lost=ask.lost)
                self._send(message.reply, msgspec.json.encode(Claimed(leader)), {})
            case "landed":
                self._home.landed(ask.key, ask.router)
            case "join":
                self._join(ask)
            case "leave":
                for flight, listener in self._listening(ask):
                    flight.listeners.remove(listener)
                    self._sharing.left_remote(flight)
            case "tapped":
                for flight, listener in self._listening(ask):
                    if ask.attempt == flight.attempt:
                        listener.until = ask.seq

    def _join(self, ask: FlightAsk) -> None:
        flight = next((f for f in self._sharing.led(ask.key) if f.joinable), None)
        if flight is None or len(flight.listeners) >= LISTENERS_MAX:
            self._send(ask.inbox, b"", {FLIGHT: flights.GONE})
            return
        listener = Listener(ask.inbox)
        flight.listeners.append(listener)
        self._tell_form(flight, listener)
        for said in flight.said:
            self._send(ask.inbox, said.data, dict(said.headers))
        self._tap(flight, listener)

    def _listening(self, ask: FlightAsk) -> list[tuple[Flight[Life], Listener]]:
        return [
            (flight, listener)
            for flight in self._sharing.led(ask.key)
            for listener in flight.listeners
            if listener.inbox == ask.inbox
        ]

    def tell_form(self, flight: Flight[Life]) -> None:
        """The flight is led by another life, and may have another form."""
        for listener in flight.listeners:
            self._tell_form(flight, listener)

    def _tell_form(self, flight: Flight[Life], listener: Listener) -> None:
        joined = Joined(stream=flight.form.stream, usage=flight.form.usage)
        self._send(listener.inbox, msgspec.json.encode(joined), {FLIGHT: flights.JOINED})

    def pass_on(self, flight: Flight[Life], said: Said) -> None:
        """To the routers that follow, unless the worker says it to them itself."""
        number, headers = said.number, dict(said.headers)
        seam = h.SEAM in headers and len(flight.said) > 1
        for listener in flight.listeners:
            if seam:
                # The last word of the worker that was lost may not have reached everybody.
                before = flight.said[-2]
                self._send(listener.inbox, before.data, dict(before.headers))
            if listener.until is None or number is None or number < listener.until:
                self._send(listener.inbox, said.data, headers)
            if not listener.asked:
                self._tap(flight, listener)

    def _tap(self, flight: Flight[Life], listener: Listener) -> None:
        """From here on the listener needs us no more to hear the answer."""
        leader = flight.leader
        call = leader.call if leader is not None else None
        if leader is None or call is None or not flight.began or flight.end is not None:
            return
        if call.step.attempt != flight.attempt:
            return
        listener.asked = True
        subject = self._context.subjects.tap
        tap = Tap(leader.request_id, flight.attempt, listener.inbox)
        self._send(subject.at(call.worker), subject.encode(tap), {})

    def lend(self, flight: Flight[Life], ear: Ear) -> None:
        """Of a caller who follows here: the worker tells it the answer, whatever becomes of us."""
        leader, subject = flight.leader, self._context.subjects.tap
        for call in leader.calls if leader is not None else ():
            tap = Tap(call.request, call.step.attempt, ear.to, ear.facts)
            self._send(subject.at(call.worker), subject.encode(tap), {})

    def give_up(self, flight: Flight[Life], reason: str) -> None:
        """Nothing will come of it here: who listens may lead."""
        for listener in flight.listeners:
            self._send(listener.inbox, b"", {FLIGHT: flights.GONE, h.PARTIAL: reason})
        flight.listeners.clear()

    def _say(self, router: str, ask: FlightAsk, reply: str = "") -> None:
        subject = self._context.subjects.flight
        self._send(subject.at(router), subject.encode(ask), {}, reply)

    def _send(self, subject: str, data: bytes, headers: dict[str, str], reply: str = "") -> None:
        try:
            self._context.bus.publish(subject, data, headers=headers, reply=reply)
        except MessageTooLarge:
            # Only answers are: who listens does not get this one from us.
            self._send(subject, b"", {FLIGHT: flights.GONE})
        except BusError as error:
            self._context.log.warning("not_sent", subject=subject[:200], error=repr(error))


class _Watch:
    """Over the worker of a flight whose router is dead."""

    __slots__ = ("inbox", "missed")

    def __init__(self) -> None:
        self.inbox: Inbox | None = None
        self.missed = 0
        """Pings that it has not answered."""


class _Timer(Protocol):
    def cancel(self) -> None: ...


class _Once:
    """One answer, or none in time."""

    __slots__ = ("_then", "inbox", "timer")

    def __init__(self, then: Callable[[Message | None], None]) -> None:
        self._then: Callable[[Message | None], None] | None = then
        self.inbox: Inbox | None = None
        self.timer: _Timer | None = None

    def hear(self, message: Message) -> None:
        self._end(message)

    def late(self) -> None:
        self._end(None)

    def _end(self, message: Message | None) -> None:
        then, self._then = self._then, None
        if self.timer is not None:
            self.timer.cancel()
        if self.inbox is not None:
            self.inbox.close()
        if then is not None:
            then(message)
