"""Flights: calls in the air that more than one request waits for.

One request leads: its attempt is made, and a copy of what the worker says comes in here. The others follow:
each gets the same messages from the first on, however late it came. What was said is kept for latecomers up to
a bound; beyond it nobody can join any more, and who follows already goes on.

A flight knows what was said and who follows, not how to send. When its leader fails before anything was said,
one of the followers leads in its place.
"""

from collections.abc import Mapping
from typing import Final, Generic, TypeVar

from msgspec import Struct

from breakwater_protocol import failures as f
from breakwater_protocol import headers as h
from breakwater_protocol.flights import Tapped

T = TypeVar("T")
ATTEMPTS_MAX: Final = 1_000
"""Of one leader; more than any policy allows."""
EARLY_MAX: Final = 4_096
"""Messages kept while one before them is still under way."""
LEADERS_MAX: Final = 2
"""Leaders whose plans may find nobody to answer before all that wait are told so."""


class Said(Struct, frozen=True):
    """One message of the answer, as it went to the leader's caller."""

    data: bytes
    headers: Mapping[str, str]

    @property
    def ends(self) -> bool:
        return h.END in self.headers or h.SEQ not in self.headers

    @property
    def number(self) -> int | None:
        """None: a whole answer."""
        text = self.headers.get(h.SEQ, "")
        return int(text) if text.isascii() and text.isdigit() else None


class Form(Struct, frozen=True):
    """How the caller wants its answer: who wants it streamed alike can be given the same messages."""

    stream: bool
    usage: bool


class Listener:
    """Another router that follows."""

    __slots__ = ("asked", "inbox", "until")

    def __init__(self, inbox: str) -> None:
        self.inbox = inbox
        self.asked = False
        """The worker was asked to talk to it itself …"""
        self.until: int | None = None
        """… and does so from this message on."""


class Flight(Generic[T]):
    __slots__ = (
        "_attempt",
        "_early",
        "_room",
        "broken",
        "claiming",
        "digest",
        "ears",
        "end",
        "followers",
        "form",
        "heard",
        "leader",
        "leaders",
        "lent",
        "listeners",
        "remote",
        "said",
        "seam",
        "tap",
        "turn",
        "whole",
    )

    def __init__(self, digest: str, form: Form, leader: T | None, *, bytes_max: int) -> None:
        self.digest = digest
        self.form = form
        self.leader = leader
        """None: another router leads, `remote`."""
        self.remote = ""
        self.claiming = False
        """Whether another router leads is being asked."""
        self.listeners: list[Listener] = []
        self.leaders = 1
        self.turn = 0
        """How often another one led before."""
        self.ears: set[tuple[int, str]] = set()
        """Attempts and inboxes of followers that hear it from the worker itself …"""
        self.lent: dict[int, list[str]] = {}
        """… and, by attempt, those that its worker was told of and has not yet said that it tells them."""
        self.followers: list[T] = []
        self.said: list[Said] = []
        """From the first on; empty again once it is more than may be kept."""
        self.whole = True
        """`said` is all that was said."""
        self.heard = 0
        """Messages of the stream, its end included."""
        self.end: Said | None = None
        self.broken = False
        """A message is missing: what came is no answer."""
        self.seam = False
        """Another deployment went on where the first was cut."""
        self.tap: Tapped | None = None
        """Where another router leads: the worker talks to us itself."""
        self._room = bytes_max
        self._attempt = ""
        self._early: dict[tuple[str, int], Said] = {}

    def follow(self, router: str) -> None:
        """Another router leads: who led here follows with the others."""
        if self.leader is not None:
            self.followers.insert(0, self.leader)
        self.leader, self.remote = None, router

    @property
    def first_line(self) -> bytes:
        """Of a stream, while it is kept."""
        return self.said[0].data.partition(b"\n")[0] if self.said else b""

    @property
    def began(self) -> bool:
        return bool(self._attempt)

    @property
    def attempt(self) -> int:
        """The one that answers; 0 before it does."""
        return int(self._attempt or 0)

    @property
    def ears_from(self) -> int:
        """Added to an attempt's number, as followers are told it: the leaders before may have had as many."""
        return self.turn * ATTEMPTS_MAX

    @property
    def stands_alone(self) -> bool:
        """What is still to come comes from the worker, whoever led."""
        tap = self.tap
        return tap is not None and tap.attempt == self.attempt and tap.seq <= self.heard

    @property
    def joinable(self) -> bool:
        return self.whole and self.end is None and not self.broken

    def hear(self, data: bytes, headers: Mapping[str, str]) -> Said | None:
        """The next message of the answer; None for one of an attempt that was given up."""
        if self.end is not None or self.broken:
            return None
        attempt = headers.get(h.ATTEMPT, "1")
        number = headers.get(h.SEQ)
        if self._attempt and attempt != self._attempt and h.SEAM not in headers:
            return None
        if number is not None and number != str(self.heard):
            self.broken = True
            return None
        if not self._attempt:
            self._attempt = attempt
        elif attempt != self._attempt:
            self.seam = True
            self._attempt = attempt
            for listener in self.listeners:
                listener.asked, listener.until = False, None
        said = Said(data, headers)
        self.heard += 1
        if said.ends:
            self.end = said
        if self.whole:
            self._room -= len(data) + 256
            if self._room < 0:
                self.whole = False
                self.said.clear()
            else:
                self.said.append(said)
        return said

    def arrive(self, data: bytes, headers: Mapping[str, str]) -> list[Said]:
        """The next messages of an answer that comes in two ways, from the router that leads and from the
        worker: each once, in order."""
        said = Said(data, headers)
        number = said.number
        if number is not None and number != self.heard:
            if number > self.heard and len(self._early) < EARLY_MAX:
                self._early[_place(said), number] = said
            elif number > self.heard or self._diverges(said):
                self.broken = True
            return []
        found: list[Said] = []
        following: Said | None = said
        while following is not None:
            heard = self.hear(following.data, following.headers)
            if heard is None:
                break
            found.append(heard)
            following = self._early.pop((self._attempt, self.heard), None) or self._early.pop(
                (_SEAM, self.heard), None
            )
        if self.end is not None:
            self._early.clear()
        return found

    def _diverges(self, said: Said) -> bool:
        """It goes on from before the last words that came here of the attempt that was cut."""
        attempt = said.headers.get(h.ATTEMPT, "1")
        later = (len(attempt), attempt) > (len(self._attempt), self._attempt)
        return later and h.SEAM in said.headers

    def tapped(self, told: Tapped) -> None:
        """The worker tells the answer to that follower, or to all that it was told of with its work."""
        for to in [told.to] if told.to else self.lent.pop(told.attempt, ()):
            self.ears.add((told.attempt, to))

    def forget_ears(self) -> None:
        self.ears.clear()
        self.lent.clear()

    def leave(self, follower: T) -> bool:
        """False when it did not follow."""
        if follower not in self.followers:
            return False
        self.followers.remove(follower)
        return True

    def succeed(self, failure: f.Failure | None) -> T | None:
        """The leader failed and nothing was said: who leads now. None: nobody does, and all are told why.

        What speaks of the request itself would be said to each of them; what speaks of the leader alone
        (its caller, deadline, budget or bound) says nothing about the next.
        """
        if not self.followers or self.began:
            return None
        if failure is not None and isinstance(failure, _OF_THE_REQUEST):
            return None
        if failure is not None and not isinstance(failure, _OF_THE_LEADER):
            if self.leaders >= LEADERS_MAX:
                return None
            self.leaders += 1
        self.broken = False
        self.remote = ""
        self.tap = None
        self._early.clear()
        self.forget_ears()
        self.turn += 1
        self.leader = self.followers.pop(0)
        return self.leader


_SEAM: Final = "seam"


def _place(said: Said) -> str:
    """Of a message that came early: its attempt, or that another one goes on with it."""
    return _SEAM if h.SEAM in said.headers else said.headers.get(h.ATTEMPT, "1")


_OF_THE_REQUEST: Final = (
    f.InvalidRequest,
    f.ContextLength,
    f.ContentFiltered,
    f.PayloadTooLarge,
    f.RequestOverLimit,
    f.UnknownModel,
    f.ModelNotFound,
)
_OF_THE_LEADER: Final = (
    f.Cancelled,
    f.TotalTimeout,
    f.BudgetExhausted,
    f.BudgetContended,
    f.TooDear,
    f.CallerForbidden,
    f.CallerUnauthenticated,
    f.WorkerLost,
    f.Internal,
)


class Flights(Generic[T]):
    """Those in the air, by digest."""

    __slots__ = ("_flights",)

    def __init__(self) -> None:
        self._flights: dict[str, list[Flight[T]]] = {}

    def __len__(self) -> int:
        return sum(len(flights) for flights in self._flights.values())

    def add(self, flight: Flight[T]) -> None:
        self._flights.setdefault(flight.digest, []).append(flight)

    def remove(self, flight: Flight[T]) -> None:
        flights = self._flights.get(flight.digest)
        if flights is not None and flight in flights:
            flights.remove(flight)
            if not flights:
                del self._flights[flight.digest]

    def led(self, digest: str) -> list[Flight[T]]:
        """Those of the question that are led here."""
        flights = self._flights.get(digest, ())
        return [flight for flight in flights if flight.leader is not None]

    def to_join(self, digest: str, form: Form, *, alike: bool = False) -> Flight[T] | None:
        """One that says the same, best in the same form; `alike`: only one that streams as `form` does."""
        best: Flight[T] | None = None
        for flight in self._flights.get(digest, ()):
            if flight.joinable and not (alike and flight.form.stream != form.stream):
                if flight.form == form:
                    return flight
                if best is None or flight.form.stream == form.stream:
                    best = flight
        return best
