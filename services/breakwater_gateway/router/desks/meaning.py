"""The router's desk for questions that mean the same: asks the owner of the partition's shard for a kept answer,
and whoever has the vectors of the written questions for those that are near.

Nothing here waits for long and nothing fails: an owner that is not there, late or wrong in its words is a
miss, and what cannot be told to it is not told.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import msgspec
from msgspec import Struct

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

NOBODY_HEARD: Final[frozenset[c.MissReason]] = frozenset({"no_owner", "silent"})
"""Reasons of an answer that came from nobody: so nothing was embedded either."""

WRITTEN_PATIENCE_S: Final = 0.25
"""For the rung of written answers, which has nothing else to wait for; with the call of a model, if need be."""

if TYPE_CHECKING:
    from asyncio import TimerHandle

Answered = Callable[[c.Hit | c.Miss], None]
_REPLY: Final = msgspec.json.Decoder(c.LookupReply).decode
_NEAR: Final = msgspec.json.Decoder(c.NearWritten).decode

__all__ = ["Answered", "Meaning", "ineligible"]


class Meaning:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._silent: dict[str, _Silence] = {}
        """By shard, and of the written questions."""

    def patience_s(self) -> float:
        embeddings = self._context.config.embeddings
        return REMOTE_PATIENCE_S if embeddings is not None and embeddings.model else PATIENCE_S

    def look(self, asked: c.Lookup, answered: Answered, *, patience_s: float) -> None:
        """`answered` is called once, later and never from within this call."""
        subject, shard = self._context.subjects.cache_lookup, c.shard_of(asked.partition)
        waiting = _Waiting(answered, _REPLY, c.Miss, self._silence_of(shard))
        self._ask(subject.at(shard), subject.encode(asked), waiting, patience_s)

    def written(self, asked: c.LookWritten, answered: Callable[[c.NearWritten], None]) -> None:
        """`answered` is called once, later and never from within this call."""
        subject = self._context.subjects.cache_written
        silence = self._silence_of("written")
        waiting = _Waiting(answered, _NEAR, partial(c.NearWritten, (), False), silence)
        self._ask(subject.at(), subject.encode(asked), waiting, WRITTEN_PATIENCE_S)

    def _silence_of(self, who: str) -> "_Silence":
        silence = self._silent.get(who)
        if silence is None:
            silence = self._silent[who] = _Silence()
        return silence

    def _ask(self, subject: str, data: bytes, waiting: "_Waiting[Any]", patience_s: float) -> None:
        context = self._context
        now = context.clock.now()
        if not waiting.silence.may_ask(now):
            waiting.timer = context.clock.call_at(now, waiting.pass_by)
            return
        inbox = waiting.inbox = context.bus.open_inbox(waiting.hear)
        waiting.timer = context.clock.call_at(now + patience_s, waiting.give_up)
        try:
            context.bus.publish(subject, data, reply=inbox.subject)
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
    """Of one who is asked, as far as our questions tell."""

    __slots__ = ("_again_at", "missed")

    def __init__(self) -> None:
        self.missed = 0
        """Questions in a row that it did not answer."""
        self._again_at = 0.0

    def may_ask(self, now: float) -> bool:
        if self.missed < SILENT_AFTER:
            return True
        if now < self._again_at:
            return False
        self._again_at = now + SILENT_S
        return True


_Answer = TypeVar("_Answer", bound=Struct)


class _Waiting(Generic[_Answer]):
    """One question until it is answered."""

    __slots__ = ("_answered", "_decode", "_without", "inbox", "silence", "timer")

    def __init__(
        self,
        answered: Callable[[_Answer], None],
        decode: Callable[[bytes], _Answer],
        without: Callable[[c.MissReason], _Answer],
        silence: _Silence,
    ) -> None:
        """`without`: what stands for an answer that does not come, for that reason."""
        self._answered: Callable[[_Answer], None] | None = answered
        self._decode = decode
        self._without = without
        self.silence = silence
        self.inbox: Inbox | None = None
        self.timer: TimerHandle | None = None

    def hear(self, message: Message) -> None:
        self.silence.missed = 0
        if message.no_responders:
            self._end(self._without("no_owner"))
            return
        try:
            answer = self._decode(message.data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            self._end(self._without("malformed"))
            return
        self._end(answer)

    def give_up(self) -> None:
        self.silence.missed += 1
        self._end(self._without("late"))

    def pass_by(self) -> None:
        self._end(self._without("silent"))

    def _end(self, answer: _Answer) -> None:
        answered, self._answered = self._answered, None
        if self.timer is not None:
            self.timer.cancel()
        if self.inbox is not None:
            self.inbox.close()
        if answered is not None:
            answered(answer)
