"""What routers say to each other about calls that they share.

Of all routers one is home to a question, by its key: there the first who asks is told to lead, and the next
ones are told who does. A router that does not lead joins the one that does, whose copies of the answer then
come to its inbox, numbered and with headers as the worker said them.

Once an answer has begun, the router that leads asks the worker to say the rest to that inbox itself: the router
may die then, and its followers hear the answer to its end.
"""

from typing import Final, Literal

from msgspec import Struct

from breakwater_protocol import headers as h

FLIGHT: Final = "breakwater-flight"
"""Header of what is no part of the answer: one of the words below; the body has its struct."""
JOINED: Final = "joined"
"""Of the router that leads, with `Joined`: the answer comes in that form."""
TAPPED: Final = "tapped"
"""Of the worker, with `Tapped`: it says the rest to this inbox itself."""
CUT: Final = "cut"
"""Of the worker: its call broke off, and the router that leads decides what becomes of the answer."""
GONE: Final = "gone"
"""Of the router that leads: no answer will come from here."""


MARKS: Final = (
    *(h.DEPLOYMENT, h.DROPPED_PARAMS, h.RUNG, h.RUNG_REASON),
    *(h.TRUNCATED, h.CLAMPED, h.REPAIRED),
)
"""What an answer says of itself, whoever is given it."""


class Joined(Struct, frozen=True, omit_defaults=True):
    stream: bool = False
    usage: bool = False
    """OpenAI's chat tells usage on the stream."""


class Tapped(Struct, frozen=True, omit_defaults=True):
    worker: str
    attempt: int
    seq: int
    """The first message that it says here."""
    to: str = ""
    """Or to this caller's inbox; on `copy_to` without one: to those that the work named."""


class FlightAsk(Struct, frozen=True, omit_defaults=True):
    """`claim`, to a question's home: may I lead? Answered with `Claimed`. `landed`, to it too: I lead no longer.
    `join` and `leave`, to the router that leads: send what was said and what will be to the inbox, or no more.
    `tapped`, to it too: the worker of that attempt says the message `seq` and what follows here itself.
    """

    ask: Literal["claim", "landed", "join", "leave", "tapped"]
    key: str
    router: str = ""
    """Who claims or has landed."""
    inbox: str = ""
    """Of who joins or leaves."""
    left_s: float = 0.0
    """How long a claim holds at most."""
    lost: str = ""
    """Of a claim: a router that led and will not answer any more, whatever the home knows of it."""
    attempt: int = 0
    seq: int = 0


class Claimed(Struct, frozen=True):
    leader: str
    """A router: who asked, or who leads already."""
