"""The router's desk for an operator's question: what is kept under a key, and what would become of a request.

The same rules are asked as for a request, and nothing of what they remember changes: no hit is counted, no
provider is called. An embedding may be made, where a lookup would make one. Texts leave only for the tenant
that the question names, and that they did is logged.
"""

import re
from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec
from msgspec.structs import replace

from breakwater_gateway.cache import entry as entries
from breakwater_gateway.cache.decision import ineligible
from breakwater_gateway.cache.entry import Entry
from breakwater_gateway.cache.exact import Held
from breakwater_gateway.cache.key import Key
from breakwater_gateway.config.model import Config, Model
from breakwater_gateway.router.desks.kept import Kept
from breakwater_gateway.router.eligible import Eligible, lowered, native_of, scope_of
from breakwater_gateway.router.options import Options, read_options
from breakwater_gateway.router.requests import decode_request
from breakwater_gateway.router.routing import Routing
from breakwater_gateway.runtime.actor import Context
from breakwater_gateway.runtime.bus import AskTimeout, BusError, Message, NoResponders, Subscription
from breakwater_gateway.runtime.tasks import TaskSet
from breakwater_protocol import cache as c
from breakwater_protocol import failures as f
from breakwater_protocol import inspection as i
from breakwater_protocol.chat import Asked, ChatRequest, EmbeddingsRequest, NativeRequest

READ_S: Final = 2.0
OWNER_S: Final = 2.0
_EXACT_ID: Final = re.compile(r"e?([0-9a-f]{64})")
_SERVED_ID: Final = re.compile(r"s(\d{1,3})-.{1,200}")
_MEANING: Final = msgspec.json.Decoder(i.Meaning)

Claimed = Callable[[i.AsIf, Options, str, str], Options | f.Failure]
"""The request, its options, tenant and model: the options with who it may say it is."""


class _Request(NamedTuple):
    asked: Asked
    options: Options
    model: Model
    keyed: i.Keyed
    key: Key | None


class Inspection:
    def __init__(
        self,
        context: Context,
        kept: Kept,
        eligible: Eligible,
        *,
        config: Callable[[], Config],
        claimed: Claimed,
        routing: Callable[[], Routing],
        tasks: TaskSet,
    ) -> None:
        self._context = context
        self._kept = kept
        self._eligible = eligible
        self._config = config
        self._claimed = claimed
        self._routing = routing
        self._tasks = tasks

    async def start(self) -> Subscription:
        subject = self._context.subjects.cache_inspect.at(c.EXACT)
        return await self._context.bus.subscribe(subject, self._on_ask, queue="router")

    def _on_ask(self, message: Message) -> None:
        try:
            asked = self._context.subjects.cache_inspect.decode(message.data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            self._answer(message, self._said(error=f"not an inspection: {str(error)[:200]}"))
            return
        self._tasks.spawn(self._inspect(asked, message))

    async def _inspect(self, asked: i.Inspect, message: Message) -> None:
        try:
            if asked.request is not None:
                found = await self._of_request(asked, asked.request)
            else:
                found = await self._of_entry(asked)
        except BusError as error:
            found = self._said(error=f"the cache's bucket cannot be read: {error}", code="bucket")
        if asked.texts:
            self._context.log.info(
                "cache_texts_shown",
                tenant=asked.tenant,
                digest="" if found.kept is None else found.kept.digest,
            )
        self._answer(message, found)

    # ------------------------------------------------------------ an entry

    async def _of_entry(self, asked: i.Inspect) -> i.Inspected:
        meaning: i.Meaning | None = None
        digest = asked.digest
        if served := _SERVED_ID.fullmatch(asked.id):
            told = await self._ask_owner(served[1], asked)
            if isinstance(told, str) or told.question is None:
                why = {"no_owner": "its shard has no owner now", "late": "its owner did not answer"}
                reason = why.get(told) if isinstance(told, str) else None
                return self._unknown(reason or "its owner does not know it, or not any more")
            meaning, digest = told, told.question.digest
        elif exact := _EXACT_ID.fullmatch(asked.id or asked.digest):
            digest = exact[1]
        else:
            return self._said(
                error="an id is what breakwater-cache-id says: e and 64 hexadecimal digits, or s,"
                " a shard and more; a digest has 64 hexadecimal digits",
                code="bad_id",
            )
        held, stored, skipped = await self._find(digest, asked.tenant)
        entry = held.entry if held is not None else stored
        if entry is None and not skipped and meaning is None:
            return self._unknown("nothing is kept under it")
        if meaning is None and entry is not None and self._has_meaning(entry):
            where = replace(asked, id="", digest=digest, partition=entry.partition)
            told = await self._ask_owner(c.shard_of(entry.partition), where)
            meaning = None if isinstance(told, str) else told
        return replace(
            self._said(),
            kept=self._view(held, stored, asked),
            skipped=skipped,
            meaning=meaning,
        )

    def _has_meaning(self, entry: Entry) -> bool:
        model = self._config().model(entry.model)
        return model is not None and model.cache.semantic is not None

    async def _find(self, digest: str, tenant: str) -> tuple[Held | None, Entry | None, str]:
        """In memory; in the bucket; or what is wrong with that. Of a tenant, if one is named."""
        held = self._kept.memory.peek(digest)
        if held is not None and tenant not in {"", held.entry.tenant}:
            held = None
        value = await self._stored(digest)
        if value is None:
            return held, None, ""
        said = entries.peek(value)
        if said is None:
            return held, None, "unreadable"
        if tenant not in {"", said.tenant}:
            return held, None, "tenant"
        read = self._read(value, digest, said.tenant, said.api, said.model)
        return (held, read, "") if isinstance(read, Entry) else (held, None, read)

    def _read(
        self, value: bytes, digest: str, tenant: str, api: str, model: str, partition: str = ""
    ) -> Entry | entries.Poison:
        return entries.read(
            value,
            digest=digest,
            tenant=tenant,
            api=api,
            model=model,
            partition=partition,
            answer_max=self._kept.answer_max,
        )

    async def _stored(self, digest: str) -> bytes | None:
        """Raises `BusError`."""
        store = self._kept.store
        if store is None:
            return None
        stored = await store.get(digest)
        return None if stored is None else stored.value

    def _view(
        self, held: Held | None, stored: Entry | None, asked: i.Inspect
    ) -> i.KeptAnswer | None:
        entry = held.entry if held is not None else stored
        if entry is None:
            return None
        usage = entry.usage
        shown = asked.texts and asked.tenant == entry.tenant
        return i.KeptAnswer(
            digest=entry.digest,
            tenant=entry.tenant,
            model=entry.model,
            api=entry.api,
            partition=entry.partition,
            form=entry.form,
            bytes=len(entry.payload),
            stored_at=entry.stored_at,
            fresh_until=entry.stored_at + entry.fresh_s,
            kept_until=entry.stored_at + entry.kept_s,
            cost_nano_usd=entry.cost_nano_usd,
            input_tokens=None if usage is None else usage.input,
            output_tokens=None if usage is None else usage.output,
            deployment=entry.deployment,
            dropped=entry.dropped,
            in_memory=held is not None,
            in_bucket=stored is not None,
            hits=None if held is None else held.hits,
            text=entries.text_of(entry.api, entry.form, entry.payload, i.TEXT_SHOWN)
            if shown
            else "",
        )

    # ------------------------------------------------------------ a request

    async def _of_request(self, asked: i.Inspect, as_if: i.AsIf) -> i.Inspected:
        request = self._request(asked, as_if)
        if not isinstance(request, _Request):
            return self._said(error=request.message, code=f.spec(request).code)
        keyed, key = request.keyed, request.key
        said = replace(self._said(), keyed=keyed)
        if key is None:
            return replace(said, verdict="bypass", reason=keyed.reason)
        held = self._kept.memory.peek(key.digest)
        value = await self._stored(key.digest)
        stored = (
            None
            if value is None
            else self._read(value, key.digest, asked.tenant, as_if.api, request.asked.model)
        )
        entry = stored if isinstance(stored, Entry) else None
        said = replace(
            said,
            kept=self._view(held, entry, asked),
            skipped=stored if isinstance(stored, str) else "",
        )
        best = held.entry if held is not None else entry
        if request.options.cache == "refresh":
            return replace(said, verdict="miss", reason="refresh")
        if best is not None and self._is_fresh(best, request.options):
            return replace(said, verdict="hit")
        why = "miss" if best is None else "past_its_time"
        if request.model.cache.semantic is None or keyed.no_meaning:
            return replace(said, verdict="miss", reason=why)
        return await self._of_meaning(said, asked, request, key)

    async def _of_meaning(
        self, said: i.Inspected, asked: i.Inspect, request: _Request, key: Key
    ) -> i.Inspected:
        lookup = c.Lookup(
            request="",
            tenant=asked.tenant,
            partition=key.partition,
            model=request.model.name,
            text=key.text,
            digest=key.digest,
            threshold=request.options.cache_threshold,
        )
        told = await self._ask_owner(
            c.shard_of(key.partition),
            i.Inspect(tenant=asked.tenant, lookup=lookup, texts=asked.texts),
        )
        if isinstance(told, str):
            return replace(said, verdict="miss", reason=told)
        said = replace(said, meaning=told)
        if told.reason:
            return replace(said, verdict="miss", reason=told.reason)
        nearest = next(each for each in told.candidates if not each.out)
        value = await self._stored(nearest.question.digest)
        held = self._kept.memory.peek(nearest.question.digest)
        api, model = said.keyed.api if said.keyed is not None else "", request.asked.model
        answer = (
            held.entry
            if held is not None
            else None
            if value is None
            else self._read(value, nearest.question.digest, asked.tenant, api, model, key.partition)
        )
        if isinstance(answer, str):
            return replace(said, verdict="miss", reason="gone", skipped=answer)
        if answer is None or not self._is_fresh(answer, request.options):
            return replace(said, verdict="miss", reason="gone")
        own = (asked.tenant, api, model, key.partition)
        if (answer.tenant, answer.api, answer.model, answer.partition) != own:
            return replace(said, verdict="miss", reason="foreign")
        return replace(said, verdict="semantic")

    def _request(self, asked: i.Inspect, as_if: i.AsIf) -> _Request | f.Failure:
        headers = {name.lower(): value for name, value in as_if.headers.items()}
        options = read_options(headers)
        if not isinstance(options, Options):
            return options
        config, body = self._config(), bytes(as_if.body)
        request = decode_request(body, api=as_if.api, limit=config.limits.body_bytes)
        if not isinstance(request, ChatRequest | EmbeddingsRequest | NativeRequest):
            return request
        as_if = msgspec.structs.replace(as_if, headers=headers)
        claimed = self._claimed(as_if, options, asked.tenant, request.model)
        if not isinstance(claimed, Options):
            return claimed
        model = config.model(request.model)
        if model is None:
            return f.UnknownModel(f"there is no model {request.model[:100]!r} here")
        routed = self._routing().route(
            model,
            options=claimed,
            stream=not isinstance(request, EmbeddingsRequest) and bool(request.stream),
            asked=request,
            body=body,
        )
        if isinstance(routed, f.InvalidRequest):
            return routed
        model = model if routed is None else routed.model
        refusal = lowered(claimed, model)
        if refusal is not None:
            return refusal
        key = self._eligible.key(
            tenant=asked.tenant,
            api=as_if.api,
            model=model,
            asked=request,
            body=body,
            options=claimed,
            native=native_of(as_if.api, headers),
        )
        keyed = i.Keyed(
            tenant=asked.tenant,
            model=request.model,
            configured=model.name,
            api=as_if.api,
            scope=scope_of(model.cache, claimed, request),
        )
        if not isinstance(key, Key):
            return _Request(request, claimed, model, replace(keyed, reason=key.reason), None)
        no_meaning: str = "off"
        if model.cache.semantic is not None:
            no_meaning = (
                ineligible(key.text or None, tools=key.tools, temperature=key.temperature) or ""
            )
        keyed = replace(keyed, digest=key.digest, partition=key.partition, no_meaning=no_meaning)
        return _Request(request, claimed, model, keyed, key)

    def _is_fresh(self, entry: Entry, options: Options) -> bool:
        wall, ttl_s = self._context.clock.wall(), options.cache_ttl_s
        fresh = wall < entry.stored_at + entry.fresh_s
        return fresh and (ttl_s is None or wall - entry.stored_at < ttl_s)

    # ------------------------------------------------------------ small things

    async def _ask_owner(self, shard: str, asked: i.Inspect) -> i.Meaning | str:
        """Or why there is no word of it: `no_owner`, `late`, `malformed`."""
        subject = self._context.subjects.cache_inspect
        try:
            reply = await self._context.bus.ask(
                subject.at(shard), subject.encode(asked), timeout_s=OWNER_S
            )
            return _MEANING.decode(reply.data)
        except NoResponders:
            return "no_owner"
        except AskTimeout:
            return "late"
        except msgspec.MsgspecError:
            return "malformed"

    def _said(self, *, error: str = "", code: str = "") -> i.Inspected:
        return i.Inspected(
            router=self._context.id, at=self._context.clock.wall(), error=error, code=code
        )

    def _unknown(self, why: str) -> i.Inspected:
        return self._said(error=f"there is no such entry: {why}", code="unknown_id")

    def _answer(self, message: Message, answer: i.Inspected) -> None:
        if not message.reply:
            return
        try:
            self._context.bus.publish(message.reply, msgspec.json.encode(answer))
        except BusError as error:
            self._context.log.warning("not_sent", subject=message.reply[:200], error=repr(error))
