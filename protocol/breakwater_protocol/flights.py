"""What routers say to each other about calls that they share.

Of all routers one is home to a question, by its key: there the first who asks is told to lead, and the next
ones are told who does. A router that does not lead joins the one that does, whose copies of the answer then
come to its inbox, numbered and with headers as the worker said them.
"""

from typing import Final, Literal

from msgspec import Struct

GONE: Final = "breakwater-flight"
"""Header of an empty message to who joined: no answer will come from here (`gone`)."""


class FlightAsk(Struct, frozen=True, omit_defaults=True):
    """`claim`, to a question's home: may I lead? Answered with `Claimed`. `landed`, to it too: I lead no longer.
    `join` and `leave`, to the router that leads: send what was said and what will be to the inbox, or no more.
    """

    ask: Literal["claim", "landed", "join", "leave"]
    key: str
    router: str = ""
    """Who claims or has landed."""
    inbox: str = ""
    """Of who joins or leaves."""
    left_s: float = 0.0
    """How long a claim holds at most."""


class Claimed(Struct, frozen=True):
    leader: str
    """A router: who asked, or who leads already."""
