"""What an operator may tell health: list breakers, trip one, reset one. Its event says `operator`."""

from difflib import get_close_matches
from math import isfinite
from typing import Final

import msgspec

from breakwater_gateway.config.targets import kind_of
from breakwater_gateway.health.breaker import HOLD_MAX_S, Breaker
from breakwater_gateway.health.ward import Moved, Ward
from breakwater_gateway.runtime.actor import Context
from breakwater_gateway.runtime.bus import BusError, Message
from breakwater_protocol.commands import BreakerReply, BreakerStatus
from breakwater_protocol.subjects import BadToken
from breakwater_protocol.views import BreakerBoard

LISTED_MAX: Final = 2_000
"""Breakers in one reply; further ones are asked for by name."""
NEAREST: Final = 5


class Operator:
    def __init__(self, context: Context, ward: Ward, board: BreakerBoard) -> None:
        self._context = context
        self._ward = ward
        self._board = board

    def obey(self, message: Message) -> list[Moved]:
        """Carry out a command and answer it; what it moved is still to be published."""
        subject = self._context.subjects.breaker
        moved: list[Moved] = []
        try:
            (action,) = subject.names(message.subject)
            command = subject.decode(message.data or b"{}")
        except (BadToken, msgspec.MsgspecError, UnicodeDecodeError) as error:
            self._reply(message, BreakerReply(error=f"not a command: {str(error)[:200]}"))
            return moved
        known = list(self._ward.targets())
        breaker: Breaker | None = None
        if command.target or action != "list":
            breaker = self._ward.breaker(command.target, self._context.clock.now())
            if breaker is None:
                self._reply(message, BreakerReply(error=_unknown(command.target, known)))
                return moved
        now, draw = self._context.clock.now(), self._context.clock.draw()
        match action:
            case "list":
                pass
            case "trip" if breaker is not None:
                for_s = command.for_s
                if for_s is not None and not (isfinite(for_s) and 0 < for_s <= HOLD_MAX_S):
                    why = f"a breaker is tripped for up to {HOLD_MAX_S:g} s, not {for_s:g}"
                    self._reply(message, BreakerReply(error=why))
                    return moved
                moved.append(Moved(command.target, breaker.trip(now, draw, for_s)))
            case "reset" if breaker is not None:
                moved.append(Moved(command.target, breaker.reset(now)))
            case _:
                why = f"there is no command {action[:40]!r}: list, trip or reset"
                self._reply(message, BreakerReply(error=why))
                return moved
        shown = [command.target] if command.target else known[:LISTED_MAX]
        changed = dict(moved)
        wall = self._context.clock.wall()
        statuses = [self._status(target, now, wall) for target in shown]
        for at, status in enumerate(statuses):
            change = changed.get(status.target)
            if change is not None:
                until = wall + change.until - now if change.state == "open" else 0.0
                statuses[at] = msgspec.structs.replace(
                    status, cause=change.cause, until=until, at=wall, share=1.0
                )
        if moved:
            self._context.log.info("operator", action=action, target=command.target)
        self._reply(message, BreakerReply(statuses))
        return moved

    def _status(self, target: str, now: float, wall: float) -> BreakerStatus:
        breaker, last = self._ward.breakers.get(target), self._board.last(target)
        if breaker is None:
            return BreakerStatus(target, kind_of(target), "closed")
        evidence = breaker.evidence(now)
        return BreakerStatus(
            target=target,
            kind=kind_of(target),
            state=breaker.state,
            epoch=breaker.epoch,
            cause="" if last is None else last.cause,
            until=self._board.until(target),
            at=0.0 if last is None else last.at,
            share=self._board.share(target, wall),
            window=evidence.window,
            failures=evidence.failures,
            slow=evidence.slow,
        )

    def _reply(self, message: Message, reply: BreakerReply) -> None:
        if not message.reply:
            return
        reply = msgspec.structs.replace(reply, leader=self._context.id)
        try:
            self._context.bus.publish(message.reply, msgspec.json.encode(reply))
        except BusError as error:
            self._context.log.warning("not_answered", subject=message.subject, error=repr(error))


def _unknown(target: str, known: list[str]) -> str:
    if not target:
        return "name the target: a deployment's id, <id>#key1 or @provider/region"
    named = [each for each in known if kind_of(each) != "key"]
    close = get_close_matches(target, named, n=1, cutoff=0.5)
    mend = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(named[:NEAREST])}"
    return f"there is no target {target[:200]!r}: {mend}"
