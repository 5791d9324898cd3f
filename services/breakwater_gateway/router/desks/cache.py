"""The router's desk for the cache: looks before a provider is called, keeps what was answered, shares calls.

Most requests leave at once: either nothing of theirs may be kept, or memory has it. Only what is not in memory
is looked for further, and then for a few milliseconds at most.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

import msgspec

from breakwater_gateway.cache import entry as entries
from breakwater_gateway.cache.entry import Entry, Form
from breakwater_gateway.cache.exact import Held
from breakwater_gateway.cache.key import Key, NotCached
from breakwater_gateway.cache.replay import CannotReplay
from breakwater_gateway.config.model import Config
from breakwater_gateway.router import once
from breakwater_gateway.router.affordable import embedding_bound
from breakwater_gateway.router.desks.attempts import Ended
from breakwater_gateway.router.desks.care import Care
from breakwater_gateway.router.desks.kept import Kept
from breakwater_gateway.router.desks.meaning import NOBODY_HEARD, Meaning, ineligible
from breakwater_gateway.router.desks.shared import Shared, marks, nano_usd, usage_of
from breakwater_gateway.router.eligible import Eligible, lowered
from breakwater_gateway.router.flights import Flight
from breakwater_gateway.router.flights import Form as Wanted
from breakwater_gateway.router.life import Life
from breakwater_gateway.router.money import TOO_DEAR, UNPRICED
from breakwater_gateway.router.repeats import Repeats
from breakwater_gateway.runtime.actor import Context
from breakwater_gateway.runtime.answers import usd
from breakwater_gateway.runtime.bus import BusError, Message
from breakwater_gateway.runtime.tasks import TaskSet
from breakwater_gateway.runtime.telemetry import Counter
from breakwater_protocol import failures as f
from breakwater_protocol import headers as h
from breakwater_protocol.cache import ANSWER_MAX, Hit, Lookup, Miss, Purge, Store
from breakwater_protocol.commands import Cancel, Finished
from breakwater_protocol.events import Heartbeat

_NOTHING_USD: Final = usd(0)
JITTER: Final = 0.1
"""Answers kept at the same moment do not end at the same moment; none is kept longer than was promised."""
HEADERS_MAX: Final = 8_192
"""Of a message with an answer."""
PART_BYTES: Final = 256 * 1024
"""Of each message of a stream that is given again and larger than the bus carries in one."""


class CacheDesk:
    def __init__(
        self,
        context: Context,
        *,
        tasks: TaskSet,
        begin: Callable[[Life], None],
        stop: Callable[[Life, str], None],
        answered: Callable[[Life], None],
        ended: Ended,
        gave_up: Callable[[Life, f.Failure], None],
        failed: Callable[[Life, f.Failure], None],
        cheapest: Callable[[Life], int],
    ) -> None:
        """`begin` lets a request call providers; `stop` ends its calls; `answered`, `ended`, `gave_up` and
        `failed` are the ways in which it leaves: with what is kept, with a shared answer, to the next rung,
        with that failure. `cheapest`: what a call costs at least at most, in nano-USD."""
        self._context = context
        self._config = context.config
        self._tasks = tasks
        self._answered = answered
        self._failed = failed
        self._begin = begin
        self._cheapest = cheapest
        self.kept = Kept(context, tasks=tasks)
        self.care = Care(context, self.kept, config=lambda: self._config, tasks=tasks)
        self.eligible = Eligible()
        self.repeats = Repeats()
        self._counters: dict[tuple[str, str], Counter] = {}
        self._saved: dict[str, Counter] = {}
        self._meaning = Meaning(context)
        self._shared = Shared(
            context, begin=begin, stop=stop, ended=ended, gave_up=gave_up, landed=self._landed
        )

    async def open(self) -> None:
        await self.kept.open()

    def stop(self) -> None:
        """The router leaves at once."""
        self._shared.stopping = True

    def on_config(self, config: Config) -> None:
        before, self._config = self._config, config
        self.eligible.forget()
        self.repeats.forget()
        self.kept.on_limits(before.limits, config.limits)

    # ------------------------------------------------------------ before a provider is called

    def look(self, life: Life) -> None:
        """A request was admitted: it is answered, waits for another's answer, or begins."""
        mode = life.options.cache
        refusal = lowered(life.options, life.home)
        if refusal is not None:
            self._failed(life, refusal)
            return
        key = self._key(life)
        if not isinstance(key, Key):
            if mode == "only":
                self._failed(life, _nothing_kept(key.reason))
            else:
                self._begin(life)
            return
        life.key = key
        if not key.once:
            life.verdict = "miss"
        if mode != "refresh" or key.once:
            held = self.kept.memory.get(key.digest, self._context.clock.wall())
            if held is not None and self._is_fresh(life, held):
                if life.repeat is None:
                    self.repeats.keep(life.api, life.body, life.asked)
                self._serve(life, held, "hit")
                return
            if mode != "only" and self._follow(life, key):
                return
        if mode != "only":
            self._shared.lead(life, key.digest)
        if (mode == "refresh" and not key.once) or not self.kept.may_be_stored(key.digest):
            self._not_found(life)
        else:
            self._tasks.spawn(self._look_further(life, key))

    def _follow(self, life: Life, key: Key) -> bool:
        flight = self._shared.flights.to_join(key.digest, Wanted(life.stream, life.usage_wanted))
        if flight is None:
            return False
        self._count("coalesced", "joined")
        self._shared.join(life, flight)
        return True

    def _not_found(self, life: Life) -> None:
        self._count("exact", "miss")
        if not self._ask_meaning(life):
            self._nothing(life)

    def _nothing(self, life: Life) -> None:
        """Nothing that is kept will do."""
        if life.options.cache == "only":
            self._failed(life, _nothing_kept("miss"))
        else:
            self._shared.start(life)

    async def _look_further(self, life: Life, key: Key) -> None:
        """In the bucket that all routers share."""
        held = await self._read(life, key.digest)
        if life.over:
            return
        if held is None or not self._is_fresh(life, held):
            self._not_found(life)
            return
        for each in (life, *self._shared.call_off(life)):
            self._serve(each, held, "hit")

    async def _read(
        self, life: Life, digest: str, *, kind: str = "exact", partition: str = ""
    ) -> Held | None:
        """Out of the bucket; what is there and is not to be served is counted with its reason."""
        held = await self.kept.read(
            digest, tenant=life.tenant, api=life.api, model=life.asked.model, partition=partition
        )
        if isinstance(held, str):
            self._count(kind, f"skipped_{held}")
            return None
        return held

    # ------------------------------------------------------------ what means the same

    def _ask_meaning(self, life: Life) -> bool:
        """True: its owner is asked, and `_meant` goes on."""
        key, policy = life.key, life.home.cache.semantic
        if policy is None or key is None or life.options.cache == "refresh":
            return False
        why = ineligible(key.text or None, tools=key.tools, temperature=key.temperature)
        if why is not None:
            self._count("semantic", why)
            return False
        lookup = Lookup(
            request=life.request_id,
            tenant=life.tenant,
            partition=key.partition,
            model=life.home.name,
            text=key.text,
            digest=key.digest,
            threshold=life.options.cache_threshold,
        )
        money, bound = life.plan.envelope.money, None
        if money is not None:
            bound = embedding_bound(self._config, key.text, at=self._context.clock.wall())
            # Not out of the money that the call needs, should there be no hit.
            spare = money.left - self._cheapest(life)
            if bound is None or bound > spare or not money.draw(bound):
                reason = UNPRICED if bound is None else TOO_DEAR
                self._count("semantic", reason)
                now = self._context.clock.now()
                life.note("skip", now=now, deployment="semantic", reason=reason)
                return False
            lookup = msgspec.structs.replace(lookup, max_cost_nano_usd=bound)
        patience_s = self._meaning.patience_s()
        self._meaning.look(lookup, partial(self._meant, life, key, bound), patience_s=patience_s)
        return True

    def _meant(self, life: Life, key: Key, drawn: int | None, found: Hit | Miss) -> None:
        """`drawn`: from the request's own money, for the embedding; None: it has no bound."""
        money = life.plan.envelope.money
        if money is not None and drawn is not None:
            unheard = isinstance(found, Miss) and found.reason in NOBODY_HEARD
            # Whoever embeds does not say what it has cost.
            money.settle(drawn, 0 if unheard else None)
        if life.over:
            return
        if isinstance(found, Miss):
            self._count("semantic", found.reason)
            life.label = found.label
            self._nothing(life)
            return
        held = self.kept.memory.get(found.digest, self._context.clock.wall())
        if held is None:
            self._tasks.spawn(self._fetch_meant(life, key, found))
        else:
            self._serve_meant(life, key, found, held)

    async def _fetch_meant(self, life: Life, key: Key, hit: Hit) -> None:
        held = await self._read(life, hit.digest, kind="semantic", partition=key.partition)
        if not life.over:
            self._serve_meant(life, key, hit, held)

    def _serve_meant(self, life: Life, key: Key, hit: Hit, held: Held | None) -> None:
        if held is None or not self._is_fresh(life, held):
            self._count("semantic", "gone")
            self._nothing(life)
            return
        entry = held.entry
        own = (life.tenant, life.api, life.asked.model, key.partition)
        if (entry.tenant, entry.api, entry.model, entry.partition) != own:
            self._count("semantic", "foreign")
            self._nothing(life)
            return
        extra = {h.CACHE_ID: hit.cache_id, h.SIMILARITY: f"{hit.similarity:.4f}"}
        for each in (life, *self._shared.call_off(life)):
            self._serve(each, held, "semantic", extra)

    # ------------------------------------------------------------ keys

    def _key(self, life: Life) -> Key | NotCached:
        """Of the question, where its answer may be given again; else of the request's own id."""
        key = self._key_of_question(life)
        options = life.options
        if options.once and not isinstance(key, Key) and options.cache != "only":
            return once.key_of(life.who, once.shown(life.request_id), life.body)
        return key

    def _key_of_question(self, life: Life) -> Key | NotCached:
        return self.eligible.key(
            tenant=life.tenant,
            api=life.api,
            model=life.home,
            asked=life.asked,
            body=life.body,
            options=life.options,
            native=life.native_headers,
            repeat=life.repeat,
        )

    def _is_fresh(self, life: Life, held: Held) -> bool:
        wall = self._context.clock.wall()
        ttl_s = life.options.cache_ttl_s
        return wall < held.fresh_until and (ttl_s is None or wall - held.entry.stored_at < ttl_s)

    # ------------------------------------------------------------ giving an answer again

    def _serve(
        self, life: Life, held: Held, verdict: str, extra: Mapping[str, str] | None = None
    ) -> bool:
        """False when the entry has no such form: then nothing was done."""
        clock, entry = self._context.clock, held.entry
        try:
            template = held.template(stream=life.stream, usage=life.usage_wanted)
        except CannotReplay as error:
            self._context.log.warning("cache_not_replayed", error=str(error))
            self._count("exact", "unreplayable")
            self._not_found(life)
            return False
        wall = clock.wall()
        body = template.filled(clock.new_id(""), int(wall))
        parts: tuple[bytes, ...] = (body,)
        if len(body) > self._context.bus.max_message - HEADERS_MAX:
            parts = _in_parts(body, PART_BYTES) if life.stream else ()
            if not parts:
                self._count("exact", "too_large")
                self._not_found(life)
                return False
        life.verdict = verdict
        life.saved_nano_usd = entry.cost_nano_usd
        facts = life.facts(life.rung)
        facts.update(held.facts)
        facts[h.CACHE_AGE] = str(max(0, int(wall - entry.stored_at)))
        if extra:
            facts.update(extra)
        facts[h.COST_USD] = _NOTHING_USD
        facts[h.OVERHEAD_MS] = f"{life.overhead_ms(clock.now()):.2f}"
        try:
            bus = self._context.bus
            if life.stream:
                if life.attempts:
                    # A number of its own: nothing of an attempt given up for lost may join this stream.
                    facts[h.ATTEMPT] = str(life.attempts + 1)
                for number, part in enumerate(parts):
                    bus.publish(life.reply, part, headers={h.SEQ: str(number), **facts})
                end = str(len(parts))
                bus.publish(life.reply, headers={h.SEQ: end, h.END: "ok", **facts})
            else:
                bus.publish(life.reply, body, headers=facts)
        except BusError as error:
            self._context.log.warning("not_sent", request=life.request_id, error=repr(error))
        self._answered(life)
        return True

    # ------------------------------------------------------------ keeping an answer

    def _landed(
        self, life: Life | None, flight: Flight[Life], waiting: list[Life], /
    ) -> list[Life]:
        """A shared call was answered in full. Only who led it keeps the answer."""
        one = life or (waiting[0] if waiting else None)
        if one is None:
            return []
        entry = self._entry(one, flight)
        if isinstance(entry, str):
            if life is not None:
                self._count("store", entry)
            return waiting
        if life is not None:
            why = self._unfit(life, entry)
            self._count("store", why or "kept")
            if not why:
                self.kept.keep(entry, partial(self._tell_meaning, life, entry))
        held, told = Held(entry, 0), marks(flight.said[0].headers)
        for other in waiting:
            other.flight = None
            self._serve(other, held, "coalesced", told)
        return []

    def _tell_meaning(self, life: Life, entry: Entry) -> None:
        """The bucket has the answer: who matches by meaning may name it from now on."""
        key = life.key
        if life.home.cache.semantic is None or key is None:
            return
        if ineligible(key.text or None, tools=key.tools, temperature=key.temperature) is not None:
            return
        answer = entries.text_of(entry.api, entry.form, entry.payload, ANSWER_MAX)
        bound, money = None, life.plan.envelope.money
        if money is not None:
            # The question, where it is not remembered, and the answer: each may cost what the dearer may.
            wall = self._context.clock.wall()
            bounds = [embedding_bound(self._config, each, at=wall) for each in (key.text, answer)]
            known = [each for each in bounds if each is not None]
            bound = max(known) if len(known) == len(bounds) else None
            if bound is None or not money.draw(2 * bound):
                self._count("semantic", f"not_told_{UNPRICED if bound is None else TOO_DEAR}")
                return
            money.settle(2 * bound, None)
        self._meaning.store(
            Store(
                request=life.request_id,
                tenant=life.tenant,
                partition=key.partition,
                model=life.home.name,
                text=key.text,
                digest=key.digest,
                answer=answer,
                answer_bytes=len(entry.payload),
                cost_nano_usd=entry.cost_nano_usd,
                ttl_s=entry.fresh_s,
                label=life.label,
                asked=entry.model if entry.home else "",
                max_cost_nano_usd=bound,
            )
        )

    @staticmethod
    def _unfit(life: Life, entry: Entry) -> str:
        """Why the answer is not kept; empty: it is."""
        if life.key is None or life.key.once:
            return ""
        if life.altered:
            return "degraded"
        return entries.unfit(entry.api, entry.form, entry.payload)

    def _entry(self, life: Life, flight: Flight[Life]) -> Entry | str:
        """The answer as it may be given again, or a word for why it cannot be."""
        key, end, policy = life.key, flight.end, life.home.cache
        if key is None or end is None:
            return "no_key"
        if not flight.whole:
            return "too_large"
        if flight.broken or flight.seam:
            return "partial"
        streamed = flight.form.stream
        form: Form = "lines" if streamed else "body"
        lines = [line for said in flight.said for line in said.data.split(b"\n") if line]
        usage_line = b""
        if streamed and life.api == "chat" and lines and entries.is_usage_line(lines[-1]):
            usage_line = lines.pop()
        payload = b"\n".join(lines) if streamed else end.data
        clock = self._context.clock
        fresh_s = life.options.cache_ttl_s or policy.exact_s
        if policy.semantic is not None and life.options.cache_ttl_s is None:
            fresh_s = max(fresh_s, policy.semantic.ttl_s)
        fresh_s *= 1 - JITTER * clock.draw()
        stale_s = policy.stale_if_error_s
        if key.once:
            fresh_s, stale_s = once.KEPT_S, 0.0
        first = flight.said[0].headers
        return Entry(
            tenant=life.tenant,
            api=life.api,
            model=life.asked.model,
            digest=key.digest,
            partition=key.partition,
            form=form,
            payload=payload,
            stored_at=clock.wall(),
            fresh_s=fresh_s,
            kept_s=fresh_s + stale_s,
            usage_line=usage_line,
            usage=usage_of(end.headers),
            cost_nano_usd=nano_usd(end.headers.get(h.COST_USD, "")),
            deployment=first.get(h.DEPLOYMENT, ""),
            dropped=first.get(h.DROPPED_PARAMS, ""),
            home="" if life.home.name == life.asked.model else life.home.name,
        )

    # ------------------------------------------------------------ a rung of the ladder

    def rung(self, life: Life, kind: str, nothing: Callable[[], None]) -> None:
        """Nothing else answers: what is kept, fresh for the rung `cache`, or past its time for `stale`."""
        key = life.key
        if key is None:
            nothing()
            return
        held = self.kept.memory.get(key.digest, self._context.clock.wall())
        if held is not None or not self.kept.may_be_stored(key.digest):
            self._from_rung(life, kind, held, nothing)
        else:
            self._tasks.spawn(self._look_for_rung(life, key, kind, nothing))

    async def _look_for_rung(
        self, life: Life, key: Key, kind: str, nothing: Callable[[], None]
    ) -> None:
        held = await self._read(life, key.digest)
        if not life.over:
            self._from_rung(life, kind, held, nothing)

    def _from_rung(
        self, life: Life, kind: str, held: Held | None, nothing: Callable[[], None]
    ) -> None:
        fresh = held is not None and self._is_fresh(life, held)
        if held is None or (kind == "cache" and not fresh) or life.options.cache == "refresh":
            nothing()
            return
        try:
            held.template(stream=life.stream, usage=life.usage_wanted)
        except CannotReplay:
            nothing()
            return
        self._serve(life, held, "hit" if fresh else "stale")

    # ------------------------------------------------------------ the end of a request

    def ended(self, life: Life, reply: Finished | None, failure: f.Failure | None) -> None:
        """The life is over. Its followers, if it led, are seen to."""
        if life.flight is not None:
            if life.verdict == "coalesced" and life.saved_nano_usd is not None:
                self._save("coalesced", life.saved_nano_usd)
            self._shared.ended(life, reply, failure)

    def count(self, life: Life) -> None:
        """It was answered with what is kept, and its answer has left."""
        self._count("semantic" if life.verdict == "semantic" else "exact", life.verdict)
        self._save(life.verdict, life.saved_nano_usd)

    def cancel(self, life: Life, cancel: Cancel) -> bool:
        """The caller left. False: the life shares nothing, and ends like any other."""
        return self._shared.cancel(life, cancel.reason)

    def heard(self, beat: Heartbeat) -> None:
        """A router lives; our own beat says that it is time to see who does not any more."""
        if beat.id != self._context.id:
            self.kept.peer_seen()
        self._shared.fleet.heard(beat)

    def on_flight(self, message: Message) -> None:
        self._shared.fleet.on_ask(message)

    def on_changed(self, message: Message) -> None:
        """Somebody found an answer to be wrong, or removed some."""
        try:
            changed = self._context.subjects.cache.decode(message.data)
        except msgspec.MsgspecError as error:
            self._context.log.warning("bad_event", subject=message.subject, error=str(error))
            return
        if changed.verdict not in {"false_hit", "stale", "purged"}:
            return
        if changed.verdict == "stale" and changed.digest and changed.source.startswith("cache/"):
            # Whoever matches by meaning does not reach the bucket of the answers.
            self._tasks.spawn(self.kept.delete(changed.digest))
        elif changed.digest or changed.query:
            self.kept.forget(changed.digest, changed.query)
        elif changed.verdict == "purged":
            which = Purge(
                tenant=changed.tenant or None,
                model=changed.model or None,
                partition=changed.partition or None,
            )
            self.kept.forget_all(which)

    # ------------------------------------------------------------ counting

    def _count(self, kind: str, result: str) -> None:
        counter = self._counters.get((kind, result))
        if counter is None:
            counter = self._counters[kind, result] = self._context.metrics.counter(
                "breakwater_cache_lookups_total", kind=kind, result=result
            )
        counter.add()

    def _save(self, by: str, nano: int | None) -> None:
        if not nano:
            return
        counter = self._saved.get(by)
        if counter is None:
            counter = self._saved[by] = self._context.metrics.counter(
                "breakwater_cost_saved_usd_total", by=by
            )
        counter.add(nano / 1e9)


def _in_parts(lines: bytes, most: int) -> tuple[bytes, ...]:
    """A stream's lines as messages of so many bytes at most; none if one of them alone has more."""
    parts: list[bytes] = []
    start = 0
    while start < len(lines):
        end = len(lines) if len(lines) - start <= most else lines.rfind(b"\n", start, start + most)
        if end <= start:
            return ()
        parts.append(lines[start:end])
        start = end + 1
    return tuple(parts)


def _nothing_kept(reason: str) -> f.NotCached:
    return f.NotCached(
        f"no answer to this is kept ({reason}), and {h.CACHE}: only asks for nothing else"
    )
