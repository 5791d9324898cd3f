"""The router's desk for other routers: who of them leads a question, and what crosses between them."""

from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

import msgspec

from breakwater_gateway.router.flights import Flight
from breakwater_gateway.router.home import Home
from breakwater_gateway.router.life import Life
from breakwater_gateway.runtime.actor import Context
from breakwater_gateway.runtime.bus import BusError, Inbox, Message
from breakwater_protocol.events import Heartbeat
from breakwater_protocol.flights import GONE, Claimed, FlightAsk

CLAIM_MAX_S: Final = 3_600.0
LISTENERS_MAX: Final = 1_024
CLAIM_S: Final = 0.05
"""A home that does not answer by then is passed by: the call is made."""
_claimed: Final = msgspec.json.Decoder(Claimed)


class Sharing(Protocol):
    """What the desk for shared calls does with what comes from elsewhere."""

    def to_join(self, key: str) -> Flight[Life] | None: ...
    def led(self, key: str) -> Flight[Life] | None: ...
    def hear_remote(self, flight: Flight[Life], message: Message) -> None: ...
    def followed(self, flight: Flight[Life]) -> None: ...
    def lost_remote(self, flight: Flight[Life]) -> None: ...
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

    def heard(self, beat: Heartbeat) -> None:
        now = self._context.clock.now()
        self._home.heard(beat.id, now, draining=beat.draining)
        if self._joined:
            for flight in [f for f in self._joined if not self._home.is_alive(f.remote, now)]:
                self._lost(flight)

    def claim(self, flight: Flight[Life], left_s: float, lead: Callable[[], None]) -> None:
        """`lead` is called, now or soon, unless another router leads: then the flight follows it."""
        now, own = self._context.clock.now(), self._context.id
        if self._home.alone(now):
            lead()
            return
        home = self._home.of(flight.key, now)
        self._claimed[flight] = home
        if home == own:
            self._told(flight, self._home.claim(flight.key, own, left_s, now), lead)
            return
        once = _Once(partial(self._answered, flight, lead))
        once.inbox = self._context.bus.open_inbox(once.hear)
        once.timer = self._context.clock.call_at(now + CLAIM_S, once.late)
        self._say(
            home, FlightAsk("claim", flight.key, router=own, left_s=left_s), once.inbox.subject
        )

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
        self._say(leader, FlightAsk("join", flight.key, inbox=inbox.subject), inbox.subject)

    def _on_copy(self, flight: Flight[Life], message: Message) -> None:
        if message.no_responders or GONE in message.headers:
            self._lost(flight)
        else:
            self._sharing.hear_remote(flight, message)

    def _lost(self, flight: Flight[Life]) -> None:
        self.forget(flight)
        self._sharing.lost_remote(flight)

    def forget(self, flight: Flight[Life]) -> None:
        """The flight is over here: told to who leads it, or to its home."""
        inbox = self._joined.pop(flight, None)
        if inbox is not None:
            inbox.close()
            if flight.end is None:
                self._say(flight.remote, FlightAsk("leave", flight.key, inbox=inbox.subject))
        home = self._claimed.pop(flight, None)
        if home == self._context.id:
            self._home.landed(flight.key, home)
        elif home is not None:
            self._say(home, FlightAsk("landed", flight.key, router=self._context.id))

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
                leader = self._home.claim(ask.key, ask.router, left_s, now)
                self._send(message.reply, msgspec.json.encode(Claimed(leader)), {})
            case "landed":
                self._home.landed(ask.key, ask.router)
            case "join":
                flight = self._sharing.to_join(ask.key)
                if flight is None or len(flight.listeners) >= LISTENERS_MAX:
                    self._send(ask.inbox, b"", {GONE: "gone"})
                    return
                flight.listeners.append(ask.inbox)
                for said in flight.said:
                    self._send(ask.inbox, said.data, dict(said.headers))
            case "leave":
                flight = self._sharing.led(ask.key)
                if flight is not None and ask.inbox in flight.listeners:
                    flight.listeners.remove(ask.inbox)
                    self._sharing.left_remote(flight)

    def pass_on(self, flight: Flight[Life], data: bytes, headers: dict[str, str]) -> None:
        for inbox in flight.listeners:
            self._send(inbox, data, headers)

    def give_up(self, flight: Flight[Life]) -> None:
        """Nothing will come of it here: who listens may lead."""
        self.pass_on(flight, b"", {GONE: "gone"})
        flight.listeners.clear()

    def _say(self, router: str, ask: FlightAsk, reply: str = "") -> None:
        subject = self._context.subjects.flight
        self._send(subject.at(router), subject.encode(ask), {}, reply)

    def _send(self, subject: str, data: bytes, headers: dict[str, str], reply: str = "") -> None:
        try:
            self._context.bus.publish(subject, data, headers=headers, reply=reply)
        except BusError as error:
            self._context.log.warning("not_sent", subject=subject[:200], error=repr(error))


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
