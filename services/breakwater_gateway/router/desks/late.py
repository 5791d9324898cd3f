"""The router's desk for late words: what calls that were given up had cost by then.

The worker of such a call still tells; the request's inbox stays open for it, also when its caller was answered.
"""

from functools import partial
from typing import Final

from breakwater_gateway.router.desks.books import Books
from breakwater_gateway.router.life import Call, Life
from breakwater_gateway.runtime.actor import Context
from breakwater_protocol.commands import Finished, WorkReply

_LATE_S: Final = 2.0
"""How long a call that was given up may take to tell."""


class Late:
    def __init__(self, context: Context, books: Books) -> None:
        self._context = context
        self._books = books

    def wait(self, life: Life, call: Call) -> None:
        life.late.append(call)
        clock = self._context.clock
        clock.call_at(clock.now() + _LATE_S, partial(self._settle, life, call, None))

    def hear(self, life: Life, reply: WorkReply) -> None:
        for call in list(life.late):
            if isinstance(reply, Finished) and (call.step.attempt, call.worker) == (
                reply.attempt,
                reply.worker,
            ):
                self._settle(life, call, reply)

    def _settle(self, life: Life, call: Call, reply: Finished | None) -> None:
        """Its last word, or none in time: then it counts at its maximum."""
        if call in life.late and call.hold is not None:
            life.late.remove(call)
            self._books.settle(call.hold, reply)
            self.close(life)

    def close(self, life: Life) -> None:
        """The request's inbox, once it is over and nobody has to tell anything more."""
        if life.over and not life.late and life.inbox is not None:
            life.inbox.close()
