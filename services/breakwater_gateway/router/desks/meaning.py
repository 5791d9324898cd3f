"""The router's desk for questions that mean the same: asks the owner of the partition's shard.

Nothing here waits for long and nothing fails: an owner that is not there, late or wrong in its words is a
miss, and what cannot be told to it is not told.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import msgspec

from breakwater_gateway.cache.decision import ineligible
from breakwater_gateway.runtime.actor import Context
from breakwater_gateway.runtime.bus import BusError, Inbox, Message
from breakwater_protocol import cache as c

PATIENCE_S: Final = 0.025
"""A lookup that takes longer is a miss."""
REMOTE_PATIENCE_S: Final = 0.055
"""With an embedding through the gateway, which alone may take 30 ms."""
SILENT_AFTER: Final = 3
"""Lookups in a row without any answer, and the owner counts as silent: it is stopped, or cut off …"""
SILENT_S: Final = 1.0
"""… and is asked once in so long, for no request is to wait for it."""

if TYPE_CHECKING:
    from asyncio import TimerHandle

Answered = Callable[[c.Hit | c.Miss], None]
_REPLY: Final = msgspec.json.Decoder(c.LookupReply)

__all__ = ["Answered", "Meaning", "ineligible"]


class Meaning:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._silent: dict[str, _Silence] = {}
        """By shard."""

    def patience_s(self) -> float:
        embeddings = self._context.config.embeddings
        return REMOTE_PATIENCE_S if embeddings is not None and embeddings.model else PATIENCE_S

    def look(self, asked: c.Lookup, answered: Answered, *, patience_s: float) -> None:
        """`answered` is called once, later and never from within this call."""
        context = self._context
        now = context.clock.now()
        shard = c.shard_of(asked.partition)
        silence = self._silent.get(shard)
        if silence is None:
            silence = self._silent[shard] = _Silence()
        waiting = _Waiting(answered, silence)
        if not silence.may_ask(now):
            waiting.timer = context.clock.call_at(now, waiting.pass_by)
            return
        inbox = waiting.inbox = context.bus.open_inbox(waiting.hear)
        waiting.timer = context.clock.call_at(now + patience_s, waiting.give_up)
        try:
            context.bus.publish(
                context.subjects.cache_lookup.at(shard),
                context.subjects.cache_lookup.encode(asked),
                reply=inbox.subject,
            )
        except BusError as error:
            context.log.debug("cache_not_asked", error=repr(error))
            waiting.timer.cancel()
            waiting.timer = context.clock.call_at(now, waiting.give_up)

    def store(self, fresh: c.Store) -> None:
        """Tell the owner of an answer that `bw_cache` has by now."""
        context = self._context
        try:
            context.bus.publish(
                context.subjects.cache_store.at(c.shard_of(fresh.partition)),
                context.subjects.cache_store.encode(fresh),
            )
        except BusError as error:
            context.log.debug("cache_not_told", error=repr(error))


class _Silence:
    """Of one shard's owner, as far as our lookups tell."""

    __slots__ = ("_again_at", "missed")

    def __init__(self) -> None:
        self.missed = 0
        """Lookups in a row that it did not answer."""
        self._again_at = 0.0

    def may_ask(self, now: float) -> bool:
        if self.missed < SILENT_AFTER:
            return True
        if now < self._again_at:
            return False
        self._again_at = now + SILENT_S
        return True


class _Waiting:
    """One lookup until it is answered."""

    __slots__ = ("_answered", "_silence", "inbox", "timer")

    def __init__(self, answered: Answered, silence: _Silence) -> None:
        self._answered: Answered | None = answered
        self._silence = silence
        self.inbox: Inbox | None = None
        self.timer: TimerHandle | None = None

    # | None = None

    def hear(self, message: Message) -> None:
        self._silence.missed = 0
        if message.no_responders:
            self._end(c.Miss("no_owner"))
            return
        try:
            answer = _REPLY.decode(message.data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            self._end(c.Miss("malformed"))
            return
        self._end(answer)

    def give_up(self) -> None:
        self._silence.missed += 1
        self._end(c.Miss("late"))

    def pass_by(self) -> None:
        self._end(c.Miss("silent"))

    def _end(self, answer: c.Hit | c.Miss) -> None:
        answered, self._answered = self._answered, None
        if self.timer is not None:
            self.timer.cancel()
        if self.inbox is not None:
            self.inbox.close()
        if answered is not None:
            answered(answer)
