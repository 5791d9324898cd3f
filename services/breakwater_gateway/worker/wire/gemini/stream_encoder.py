"""Streams of generateContent for callers: the other way of `stream`."""

from typing import Final

import msgspec
from msgspec import Raw

from breakwater_gateway.worker.wire import neutral as n
from breakwater_gateway.worker.wire.gemini import answer as a
from breakwater_gateway.worker.wire.gemini import parts as p
from breakwater_gateway.worker.wire.gemini.errors import encode_error
from breakwater_gateway.worker.wire.gemini.fields import Body, Dropped, encode
from breakwater_protocol.chat import Usage


class _Open:
    """A tool call whose arguments are still coming."""

    __slots__ = ("call", "pieces", "size")

    def __init__(self, call: n.ToolCall) -> None:
        self.call = call
        self.pieces = [call.arguments] if call.arguments else []
        self.size = len(call.arguments)


class StreamEncoder:
    """Writes one stream as this API has it: an object a chunk, each for its own event or array item.

    Calls are held until they are whole, and the finish until the usage is known, so that the last chunk has
    both: feed it `Done`, or call `end` where the provider's stream had none.
    """

    __slots__ = (
        "_calls",
        "_chunk",
        "_extra",
        "_finished",
        "_id",
        "_kinds",
        "_model",
        "_usage",
    )

    def __init__(self, *, model: str) -> None:
        """`model` is shown as `modelVersion`; empty: what the provider says."""
        self._model = model
        self._id = ""
        self._extra: n.Extra = {}
        self._kinds: dict[tuple[int, int], n.Part] = {}
        self._calls: dict[tuple[int, int], _Open] = {}
        self._finished: dict[int, n.Finished] = {}
        self._usage: Usage | None = None
        self._chunk: dict[int, tuple[list[object], list[object]]] = {}
        """Of the chunk being made: parts and log probabilities of each candidate."""

    def goes_on_from(self, source: n.DialectName) -> None:
        del source  # names tell which fields are native here

    def feed(self, events: list[n.StreamEvent]) -> list[bytes]:
        written: list[bytes] = []
        for event in events:
            match event:
                case n.Grew():
                    self._grew(event)
                case n.PartBegan(index=index, part=part, candidate=candidate):
                    self._part_began((candidate, index), part)
                case n.PartEnded(index=index, candidate=candidate):
                    self._part_ended((candidate, index))
                case n.UsageKnown(usage=used):
                    self._usage = used
                case n.Finished(candidate=candidate):
                    self._finished[candidate] = event
                case n.Began():
                    self._id = event.id
                    self._model = self._model or event.model
                    self._extra = {
                        name: raw for name, raw in event.extra.items() if name in _NATIVE_CHUNK
                    }
                case n.Broke(failure=failure):
                    self._flush(written)
                    written.append(encode_error(failure))
                case n.Done():
                    self._flush(written)
                    written.extend(self.end())
        self._flush(written)
        return written

    def end(self) -> list[bytes]:
        """The last chunk, if a finish is still held."""
        if not self._finished:
            return []
        finished, self._finished = self._finished, {}
        candidates: list[Body] = []
        usage: object = None if self._usage is None else a.encode_usage(self._usage)
        for index, event in sorted(finished.items()):
            extra = {name: raw for name, raw in event.extra.items() if name in _NATIVE_CANDIDATE}
            native = event.native if a.is_native(event.native) else ""
            candidate: Body = {
                "content": {"role": "model", "parts": [{"text": ""}]},
                "finishReason": native or a.REASONS[event.finish] or "STOP",
                "index": index,
            }
            usage = event.extra.get("usageMetadata", usage)
            candidates.append(candidate | extra)
        body: Body = {"candidates": candidates}
        if usage is not None:
            body["usageMetadata"] = usage
        return [encode(self._named(body))]

    def _named(self, body: Body) -> Body:
        if self._model:
            body["modelVersion"] = self._model
        if self._id:
            body["responseId"] = self._id
        return body | self._extra

    def _parts_of(self, candidate: int) -> list[object]:
        return self._chunk.setdefault(candidate, ([], []))[0]

    def _part_began(self, key: tuple[int, int], part: n.Part) -> None:
        match part:
            case n.ToolCall():
                self._calls[key] = _Open(part)
            case n.Text() | n.Thinking() | n.Refusal():
                self._kinds[key] = part
                if not isinstance(part, n.Thinking) and part.text:
                    self._parts_of(key[0]).append({"text": part.text})
                elif isinstance(part, n.Thinking) and (part.text or part.signature):
                    self._add_part(key[0], part)
            case _:
                self._add_part(key[0], part)

    def _add_part(self, candidate: int, part: n.Part) -> None:
        written = p.encode_part(part, Dropped(), native=False)
        if written is None:
            return
        if not isinstance(written, Raw):
            ours = {name: part.extra[name] for name in _NATIVE_PART if name in part.extra}
            written = p.merged(written, ours)
        self._parts_of(candidate).append(written)

    def _grew(self, event: n.Grew) -> None:
        key = (event.candidate, event.index)
        call = self._calls.get(key)
        if call is not None:
            call.size += len(event.text)
            if call.size <= n.EVENT_BYTES_MAX:
                call.pieces.append(event.text)
            return
        part = self._kinds.get(key)
        thinking = isinstance(part, n.Thinking)
        if not event.text and not (thinking and event.signature) and not event.extra:
            return
        written: Body = {"text": event.text}
        if thinking:
            written["thought"] = True
            if event.signature and p.is_base64(event.signature):
                written["thoughtSignature"] = event.signature
        for name in _NATIVE_PART:
            if name in event.extra:
                written[name] = event.extra[name]
        self._parts_of(event.candidate).append(written)
        told: object = event.extra.get("logprobsResult")
        if told is None and event.logprobs is not None:
            told = a.gemini_logprobs(event.logprobs)
        if told is not None:
            self._chunk[event.candidate][1].append(told)

    def _part_ended(self, key: tuple[int, int]) -> None:
        self._kinds.pop(key, None)
        call = self._calls.pop(key, None)
        if call is not None:
            whole = msgspec.structs.replace(call.call, arguments="".join(call.pieces))
            self._add_part(key[0], whole)

    def _flush(self, written: list[bytes]) -> None:
        if not self._chunk:
            return
        candidates: list[Body] = []
        for index, (parts, logprobs) in sorted(self._chunk.items()):
            candidate: Body = {"content": {"role": "model", "parts": parts}, "index": index}
            if logprobs:
                candidate["logprobsResult"] = logprobs[0]
            candidates.append(candidate)
        self._chunk = {}
        written.append(encode(self._named({"candidates": candidates})))


_NATIVE_CHUNK: Final = frozenset({"createTime"})
_NATIVE_PART: Final[tuple[str, ...]] = (
    *("thoughtSignature", "videoMetadata", "mediaResolution", "partMetadata"),
    *("functionCall", "inlineData", "fileData"),
)
_NATIVE_CANDIDATE: Final = frozenset(
    {
        *("avgLogprobs", "finishMessage", "groundingMetadata", "groundingAttributions"),
        *("safetyRatings", "citationMetadata", "urlContextMetadata", "tokenCount"),
        *("finishReason", "logprobsResult"),
    }
)
"""Fields whose names are Google's alone: no other dialect's `extra` holds them."""
