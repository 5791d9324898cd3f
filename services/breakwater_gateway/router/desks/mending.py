"""The router's desk for requests that a provider refused as they are: changed, they are asked again.

A prompt that does not fit is shortened, summed up or taken to a larger model; what a safety system refused goes
to the next deployment or another model; each as the model's configuration says, and every call out of the
request's own envelope. What this desk cannot mend is the ladder's.
"""

from collections.abc import Callable
from functools import partial
from typing import Final

import msgspec
from msgspec import Struct

from breakwater_gateway.config.model import Config, Model
from breakwater_gateway.router.desks.ladder import plan_on
from breakwater_gateway.router.ladder import OFF, Ladder, rungs_of
from breakwater_gateway.router.life import Life
from breakwater_gateway.router.reask import reask
from breakwater_gateway.router.shorten import Shortened, shorten, summary_request, with_summary
from breakwater_gateway.runtime.actor import Context
from breakwater_gateway.runtime.bus import BusError, Inbox, Message
from breakwater_protocol import failures as f
from breakwater_protocol import headers as h
from breakwater_protocol.chat import ChatRequest
from breakwater_protocol.commands import Cancel

ASIDE: Final = ".summary"
"""What is added to a request's id for the call that sums up its turns."""

_asked = msgspec.json.Decoder(ChatRequest)


class _Message(Struct):
    content: str | None = None


class _Choice(Struct):
    message: _Message


class _Answer(Struct):
    choices: list[_Choice]


_answer = msgspec.json.Decoder(_Answer)


class Mending:
    def __init__(
        self,
        context: Context,
        *,
        config: Callable[[], Config],
        find: Callable[[Life, str], Model | None],
        advance: Callable[[Life], None],
        begin: Callable[[Life], None],
    ) -> None:
        """`find`: another model, with those of its deployments that can answer the life's request. `advance` asks the life's plan again; `begin` takes a request of our own in."""
        self._context = context
        self._config = config
        self._find = find
        self._advance = advance
        self._begin = begin
        self._inboxes: dict[str, Inbox] = {}
        """By request: where its summary is heard. Every request of ours is answered once, as everybody's."""

    def ended(self, life: Life) -> None:
        """The request is over: nobody waits for its summary any more, whoever holds the call for it."""
        inbox = self._inboxes.pop(life.request_id, None)
        if inbox is None:
            return
        inbox.close()
        # As any caller who leaves: on the bus, for the worker, and for the router where no call is out yet.
        cancel, subject = Cancel(life.request_id + ASIDE), self._context.subjects.cancel
        try:
            self._context.bus.publish(subject.at(cancel.request), subject.encode(cancel))
        except BusError as error:
            self._context.log.warning("not_sent", request=cancel.request, error=repr(error))

    def mend(self, life: Life, failure: f.Failure) -> bool:
        """True: the request was changed and goes on. Never twice without a call in between."""
        plan = life.plan
        if life.over or life.rung != "primary" or plan.attempts <= life.mended_at:
            return False
        if plan.calls_left < 1 or self._context.clock.now() >= plan.deadline:
            return False
        match failure:
            case f.ContextLength():
                mended = self._shorter(life, failure)
            case f.ContentFiltered():
                mended = self._elsewhere(life)
            case f.MalformedToolCall():
                mended = self._asked_again(life, failure)
            case _:
                mended = False
        return mended

    def _go_on(self, life: Life, how: str, *, same: bool) -> bool:
        self._note(life, how)
        life.plan.resume(same=same)
        self._advance(life)
        return True

    def _note(self, life: Life, how: str) -> None:
        life.mended_at = life.plan.attempts
        life.note("mend", now=self._context.clock.now(), deployment=life.deployment, reason=how)

    def _on_model(self, life: Life, name: str, why: str) -> bool:
        model = self._find(life, name)
        if model is None:  # the configuration changed since the request began
            return False
        self._note(life, f"{why}:{name}")
        life.turn_to(model, name, plan_on(life, model))
        self._advance(life)
        return True

    # ------------------------------------------------------------ tool calls

    def _asked_again(self, life: Life, failure: f.MalformedToolCall) -> bool:
        """Once, with the parser's error and the schema; after that, or where that cannot be said, another
        deployment."""
        if life.plan.reasked:
            return False
        life.plan.reasked = True
        body = reask(life.body, life.api, failure)
        if body is None:
            return self._go_on(life, "next", same=False)
        life.body = body
        return self._go_on(life, "reask", same=True)

    # ------------------------------------------------------------ content filters

    def _elsewhere(self, life: Life) -> bool:
        policy = life.model.on_content_filter
        match policy.do:
            case "next":
                return self._go_on(life, "next", same=False)
            case "model":
                return self._on_model(life, policy.model, "model")
            case "fail":
                return False

    # ------------------------------------------------------------ context length

    def _shorter(self, life: Life, failure: f.ContextLength) -> bool:
        policy = life.model.on_context_length
        match policy.do:
            case "fail":
                return False
            case "model":
                return self._on_model(life, policy.model, "model")
            case "truncate" | "summarize":
                pass
        short = shorten(life.body, life.api, needed=failure.needed, limit=failure.limit)
        if short is None:
            return False
        if policy.do == "summarize" and life.plan.calls_left > 1:
            return self._summarize(life, short, policy.model)
        return self._truncated(life, short, "truncate")

    def _truncated(self, life: Life, short: Shortened, how: str) -> bool:
        life.body = short.body
        life.dropped += len(short.removed)
        life.notes[h.TRUNCATED] = str(life.dropped)
        return self._go_on(life, how, same=True)

    def _summarize(self, life: Life, short: Shortened, name: str) -> bool:
        """Ask for a summary first: a request of its own, of the same caller and out of the same envelope."""
        model = self._config().model(name)
        if model is None:
            return self._truncated(life, short, "truncate")
        self._note(life, f"summarize:{name}")
        body = summary_request(short.removed, model=name)
        inbox = self._context.bus.open_inbox(partial(self._summarized, life, short))
        self._inboxes[life.request_id] = inbox
        aside = Life(
            request_id=life.request_id + ASIDE,
            tenant=life.tenant,
            api="chat",
            reply=inbox.subject,
            body=body,
            asked=_asked.decode(body),
            model=model,
            options=msgspec.structs.replace(life.options, ladder=OFF),
            plan=plan_on(life, model),
            ladder=Ladder(rungs_of(())),
            began=self._context.clock.now(),
        )
        self._begin(aside)
        return True

    def _summarized(self, life: Life, short: Shortened, message: Message) -> None:
        self._inboxes.pop(life.request_id).close()
        if life.over:
            return
        summary = _summary_in(message)
        if summary:
            body = with_summary(short, life.api, summary)
            short = msgspec.structs.replace(short, body=body)
        self._truncated(life, short, "summarized" if summary else "truncate")


def _summary_in(message: Message) -> str:
    """The text of the answer; empty for an error."""
    if h.SERVICE_ERROR_CODE in message.headers:
        return ""
    try:
        answer = _answer.decode(message.data)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return ""
    return (answer.choices[0].message.content or "").strip() if answer.choices else ""
