"""What is said of an attempt while it runs: chunks and their end to the caller, its progress to the router.

What the caller hears, whoever shares the call hears too.
"""

import asyncio
from typing import Final
from urllib.parse import quote

import msgspec

from breakwater_gateway.runtime.actor import Context
from breakwater_gateway.runtime.answers import error_body, error_headers, usd
from breakwater_gateway.runtime.bus import Message, MessageTooLarge
from breakwater_gateway.worker.exchange import Whole
from breakwater_gateway.worker.run import Run
from breakwater_protocol import failures as f
from breakwater_protocol import headers as h
from breakwater_protocol.commands import EARS_MAX, Ear, Finished, Leave, Started
from breakwater_protocol.flights import CUT, FLIGHT, MARKS, TAPPED, Tapped

_LEAVE_S: Final = 1.0
_TAPS_MAX: Final = 64
_TOLD: Final = (h.SEQ, h.ATTEMPT, h.SEAM, h.END, h.PARTIAL, h.MODEL, h.OVERHEAD_MS, *MARKS)
"""Of what the leader's caller is told, others are told too."""


class Answers:
    def __init__(self, context: Context) -> None:
        self._bus = context.bus
        self._clock = context.clock
        self._id = context.id

    # To the caller.

    def chunks(self, run: Run, lines: list[bytes]) -> None:
        """Raises `MessageTooLarge`: then the caller has nothing of it."""
        work = run.work
        headers = {h.SEQ: str(run.seq)}
        if work.attempt > 1:
            headers[h.ATTEMPT] = str(work.attempt)
        if not run.started:
            # Before the first byte, so that nobody else answers once it may have arrived.
            if not work.ask_leave:
                self._tell(run, Started(work.request, work.attempt, self._id))
            if work.continues:
                headers[h.SEAM] = work.deployment
            else:
                headers.update(self._facts(run))
        data = lines[0] if len(lines) == 1 else b"\n".join(lines)
        self._say(run, data, headers, first=not run.started)
        # What the bus does not carry was not said.
        run.started = True
        run.seq += 1

    def whole(self, run: Run, answer: Whole) -> None:
        headers = self._facts(run)
        headers.update(self._totals(run))
        if answer.repaired:
            headers[h.REPAIRED] = "tool_call"
        self._say(run, answer.body, headers, last=True)
        run.started = run.finish_sent = True

    def end(self, run: Run, end: str, partial: str) -> None:
        headers = {h.SEQ: str(run.seq), h.END: end}
        if run.work.attempt > 1:
            headers[h.ATTEMPT] = str(run.work.attempt)
        headers.update(self._facts(run))
        headers.update(self._totals(run))
        if partial:
            headers[h.PARTIAL] = partial
        run.finish_sent = True
        self._say(run, b"", headers, last=True)

    def _say(
        self,
        run: Run,
        data: bytes,
        headers: dict[str, str],
        *,
        first: bool = False,
        last: bool = False,
    ) -> None:
        bus, copy_to = self._bus, run.work.copy_to
        bus.publish(run.work.answer_to, data, headers=headers)
        if not copy_to:
            return
        if run.ears:
            self._say_to_ears(run, data, headers, facts=first or last)
        if last and run.usage is not None:
            headers = {**headers, h.USAGE: msgspec.json.encode(run.usage).decode()}
        for to in (copy_to, *run.taps):
            try:
                bus.publish(to, data, headers=headers)
            except MessageTooLarge:
                # The caller is in this process, where more goes than over the bus: it has its answer.
                bus.publish(to, headers={FLIGHT: CUT})

    def _say_to_ears(self, run: Run, data: bytes, headers: dict[str, str], *, facts: bool) -> None:
        work = run.work
        if facts:
            headers = {name: headers[name] for name in _TOLD if name in headers}
        if work.ears_from:
            headers = {**headers, h.ATTEMPT: str(work.ears_from + work.attempt)}
        for ear in run.ears:
            try:
                self._bus.publish(
                    ear.to, data, headers={**headers, **ear.facts} if facts else headers
                )
            except MessageTooLarge:
                failure = f.MalformedAnswer("the provider's answer is larger than the bus carries")
                body = error_body(failure, work.api, work.request)
                self._bus.publish(ear.to, body, headers=error_headers(failure, ear.facts))

    def _facts(self, run: Run) -> dict[str, str]:
        work = run.work
        facts = {
            h.REQUEST_ID: work.request,
            h.MODEL: quote(work.model),
            h.DEPLOYMENT: work.deployment,
            h.RUNG: work.rung,
            h.CACHE: work.cache,
            h.ATTEMPTS: str(work.attempt),
            **work.notes,
        }
        if run.exchange is not None and run.exchange.call.dropped:
            facts[h.DROPPED_PARAMS] = quote(",".join(run.exchange.call.dropped), safe=",_.[]-")[
                :500
            ]
        return facts

    def _totals(self, run: Run) -> dict[str, str]:
        work = run.work
        if run.started:
            own_s = run.left_at - run.clock.began
        else:
            own_s = self._clock.now() - run.clock.began - run.provider_s
        overhead_ms = max(0.0, work.spent_ms - work.provider_ms + own_s * 1000)
        return {h.COST_USD: usd(run.cost()), h.OVERHEAD_MS: f"{overhead_ms:.2f}"}

    # To those who share the call.

    def tap(self, run: Run, to: str) -> None:
        """They hear the answer from now on, unless it has ended or enough hear it already."""
        if run.finish_sent or len(run.taps) >= _TAPS_MAX:
            return
        run.taps = (*run.taps, to)
        told = msgspec.json.encode(Tapped(self._id, run.work.attempt, run.seq))
        self._bus.publish(to, told, headers={FLIGHT: TAPPED})

    def lent(self, run: Run) -> None:
        """Those that the work named hear the answer: a worker that knew nothing of them would not say so."""
        self._say_lent(run, "")

    def lend(self, run: Run, ear: Ear) -> None:
        """Another caller, who hears all of it or, from us, nothing."""
        if run.started or run.finish_sent or not run.work.copy_to or len(run.ears) >= EARS_MAX:
            return
        run.ears.append(ear)
        self._say_lent(run, ear.to)

    def _say_lent(self, run: Run, to: str) -> None:
        told = msgspec.json.encode(Tapped(self._id, run.work.attempt, run.seq, to))
        self._bus.publish(run.work.copy_to, told, headers={FLIGHT: TAPPED})

    def cut(self, run: Run) -> None:
        """The answer broke off, and the router goes on with it."""
        for tap in run.taps:
            self._bus.publish(tap, headers={FLIGHT: CUT})

    # To the router.

    async def leave(self, run: Run) -> bool:
        """Whether this call is the one that answers. Without a word from the router it is not: it may have
        given its word to another."""
        decided: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        def hear(message: Message) -> None:
            if not decided.done():
                decided.set_result(_said_leave(message))

        inbox = self._bus.open_inbox(hear)
        try:
            self._tell(run, Started(run.work.request, run.work.attempt, self._id), inbox.subject)
            async with asyncio.timeout(_LEAVE_S):
                return await decided
        except TimeoutError:
            return False
        finally:
            inbox.close()

    def _tell(self, run: Run, reply: Started | Finished, answer_to: str = "") -> None:
        if run.reply:
            self._bus.publish(run.reply, msgspec.json.encode(reply), reply=answer_to)

    def report(self, run: Run, failure: f.Failure | None, *, partial: str) -> None:
        self._tell(
            run,
            Finished(
                request=run.work.request,
                attempt=run.work.attempt,
                worker=self._id,
                answered=run.finish_sent or isinstance(failure, f.Cancelled),
                failure=failure,
                usage=run.usage,
                metered=run.metered,
                cost_nano_usd=run.cost(),
                first_token_ms=run.clock.first_token_ms(),
                duration_ms=(self._clock.now() - run.came_at) * 1000,
                provider_ms=(run.provider_s + run.waited_s) * 1000,
                partial=partial,
            ),
        )


def _said_leave(message: Message) -> bool:
    """A router that is gone, or says what nobody understands, gives no leave."""
    try:
        return msgspec.json.decode(message.data, type=Leave).granted
    except msgspec.MsgspecError:
        return False
