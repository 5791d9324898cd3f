"""One attempt in hand: what was asked, how far it is, and what it has used."""

import asyncio

from breakwater_gateway.config.model import Deployment
from breakwater_gateway.pricing.cost import ModelPrice, cost_nano_usd
from breakwater_gateway.worker.attempt import AttemptClock
from breakwater_gateway.worker.exchange import Exchange
from breakwater_protocol import failures as f
from breakwater_protocol.chat import Usage
from breakwater_protocol.commands import Work
from breakwater_protocol.events import RateLimits


class Run:
    __slots__ = (
        "came_at",
        "clock",
        "deployment",
        "due",
        "ears",
        "exchange",
        "finish_sent",
        "graced",
        "left_at",
        "limits",
        "metered",
        "places",
        "price",
        "provider_s",
        "reply",
        "seq",
        "started",
        "stop",
        "stream_open",
        "taps",
        "task",
        "timer",
        "usage",
        "waited_s",
        "waiting",
        "work",
    )

    def __init__(self, work: Work, reply: str, now: float) -> None:
        self.work = work
        self.reply = reply
        self.came_at = now
        self.clock = _clock_of(work, now, work.total_s)
        self.waiting = ""
        """The place before which it waits; empty while it does not."""
        self.places: tuple[str, ...] = ()
        self.deployment: Deployment | None = None
        self.exchange: Exchange | None = None
        self.task: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.due = 0.0
        """When the timer looks: what expires later is looked at then, what expires earlier arms it anew."""
        self.stop: f.Failure | None = None
        self.graced = False
        self.started = False
        """Something of the answer went to the caller."""
        self.finish_sent = False
        """The caller has its terminal message."""
        self.seq = work.seq_from
        self.ears = list(work.ears)
        self.taps: tuple[str, ...] = ()
        """Inboxes of other routers that hear the answer."""
        self.usage: Usage | None = None
        self.metered = False
        """`usage` is our own count."""
        self.stream_open = False
        """A stream is asked for, and its provider has neither refused nor told what it counted."""
        self.price: ModelPrice | None = None
        self.limits: RateLimits | None = None
        self.left_at = now
        """When the call went out to the provider."""
        self.provider_s = 0.0
        self.waited_s = 0.0

    def admitted(self, now: float) -> None:
        """It waited for its place at the target, and none of the timers but the last was for that."""
        self.waited_s = now - self.came_at
        self.left_at = now
        self.clock = _clock_of(self.work, now, self.work.total_s - self.waited_s)

    def cost(self) -> int | None:
        """In nano-USD; None where usage or price is not known."""
        return cost_nano_usd(self.usage, self.price)


def _clock_of(work: Work, now: float, total_s: float) -> AttemptClock:
    return AttemptClock(
        now=now,
        first_token_s=work.first_token_s if work.stream or work.hurried else float("inf"),
        idle_s=work.idle_s,
        total_s=total_s,
        min_rate=work.min_rate if work.stream else 0.0,
        rate_window_s=work.rate_window_s,
    )
