"""The money that one request may cost in all: each call draws what it may cost at most before it is made.

What a call has really cost takes the place of its bound once that is known; what nobody knows counts at its
bound for good. So at every moment what was spent and what calls in flight may still spend is within the
request's bound, whatever the request does: retries, hedges, fallbacks, re-asks, calls on other models.

A value without a clock; amounts are whole nano-USD.
"""

from typing import Final

TOO_DEAR: Final = "too_dear"
"""Why a target is passed over: a call there may cost more than is left …"""
UNPRICED: Final = "unpriced"
"""… or it has no known price, which is within no bound."""


class Money:
    __slots__ = ("bound", "held", "passed", "spent")

    def __init__(self, bound: int) -> None:
        self.bound = bound
        self.spent = 0
        """By calls that are over."""
        self.held = 0
        """By those in flight, each at the most that it may cost."""
        self.passed: set[tuple[str, str]] = set()
        """Targets that were passed over and why, as far as the request's event has it."""

    @property
    def left(self) -> int:
        return self.bound - self.spent - self.held

    def draw(self, nano_usd: int) -> bool:
        """For a call that is about to be made. False: it does not fit, and nothing was drawn."""
        if nano_usd > self.left:
            return False
        self.held += nano_usd
        return True

    def settle(self, drawn: int, actual: int | None) -> None:
        """The call is over, once for each `draw`. None: nobody knows what it has cost."""
        self.held -= drawn
        self.spent += drawn if actual is None else actual
