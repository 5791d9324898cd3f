"""Google's Gemini API and Vertex from the provider's side: answers, streams in both framings, embeddings.

A stream is events with `alt=sse`, else one JSON array. There is no end mark: the chunk with a `finishReason`
is the last. Source: Gemini API reference; Vertex AI reference, "Generate content"; recorded streams.
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import ClassVar, Final

import msgspec
from msgspec.structs import replace

from breakwater_gateway.simulator.content import counts
from breakwater_gateway.simulator.dialects.dialect import (
    Ask,
    Dialect,
    Door,
    Headers,
    Place,
    bearer,
    encode,
    sse,
)
from breakwater_gateway.simulator.dialects.gemini_request import camel, read_generate
from breakwater_gateway.simulator.dialects.google_errors import GoogleError, word
from breakwater_gateway.simulator.refusals import Problem
from breakwater_gateway.simulator.script import Rate, RetryForm, Script
from breakwater_gateway.simulator.turns import (
    BASE62,
    HEX,
    Choice,
    Counts,
    Embedding,
    Event,
    Json,
    Sampling,
    ToolUse,
    Turn,
    batches,
    count_tokens,
    token,
)
from breakwater_gateway.simulator.vectors import vector

DIMENSIONS: Final = 768
INPUTS_MAX: Final = 100
_FINISHES: Final = {"length": "MAX_TOKENS", "content_filter": "SAFETY"}
"""`STOP` for the rest: also when tools are called."""
_ARRAY: Final = ("content-type", "application/json; charset=UTF-8")
_SSE: Final = ("content-type", "text/event-stream")


class Gemini(Dialect):
    name: ClassVar[str] = "gemini"
    keep_alive: ClassVar[bytes] = b""
    broken: ClassVar[bytes] = b'data: {"candidates": [{"content":\n\n'
    blocks_in_answer: ClassVar[bool] = True
    vertex: ClassVar[bool] = False

    def key(self, door: Door) -> str:
        return door.headers.get("x-goog-api-key", "").strip() or door.query.get("key", "")

    def read(self, ask: Ask) -> Turn:
        if ask.route.endpoint == "count_tokens" and "generateContentRequest" in ask.raw:
            inner = dict(camel(ask.raw["generateContentRequest"], "generate_content_request"))
            return read_generate(replace(ask, raw=inner))
        return read_generate(ask)

    def stream_type(self, turn: Turn) -> tuple[str, str]:
        return _SSE if turn.framing == "sse" else _ARRAY

    def answer(
        self, turn: Turn, choices: list[Choice], script: Script, sampling: Sampling
    ) -> bytes:
        used = _usage(counts(turn, choices, script))
        if choices[0].blocked:
            return encode(self._blocked(turn, used, script, sampling))
        candidates = [
            _candidate(_parts(choice), i, _finish(choice)) for i, choice in enumerate(choices)
        ]
        return encode(self._chunk(turn, candidates, used, script, sampling))

    def events(
        self, turn: Turn, choices: list[Choice], script: Script, sampling: Sampling
    ) -> Iterator[Event]:
        chunks = self._chunks(turn, choices, script, sampling)
        if turn.framing == "sse":
            for chunk, tokens, last in chunks:
                yield Event(sse(encode(chunk)), tokens, last=last)
            return
        # One array: the closing bracket is the end mark.
        for i, (chunk, tokens, _) in enumerate(chunks):
            yield Event((b",\r\n" if i else b"[") + encode(chunk), tokens)
        yield Event(b"\n]\n", last=True)

    def _chunks(
        self, turn: Turn, choices: list[Choice], script: Script, sampling: Sampling
    ) -> Iterator[tuple[dict[str, Json], int, bool]]:
        """Chunks, the tokens in each, and which is the last; usage is cumulative, on every one."""
        total = counts(turn, choices, script)
        if choices[0].blocked:
            yield self._blocked(turn, _usage(total), script, sampling), 0, True
            return
        written = 0
        for i, choice in enumerate(choices):
            pieces = list(_fragments(choice, script.chunk_tokens))
            for n, (part, tokens) in enumerate(pieces):
                written += tokens
                last = n + 1 == len(pieces)
                finish = _finish(choice) if last else ""
                most = min(total.completion - total.reasoning, written)
                ended = last and i + 1 == len(choices)
                so_far = (
                    total
                    if ended
                    else Counts(
                        total.prompt, most + total.reasoning, total.cached, 0, total.reasoning
                    )
                )
                candidate = _candidate([part] if part else [], i, finish)
                chunk = self._chunk(turn, [candidate], _usage(so_far), script, sampling)
                yield chunk, tokens, ended

    def _chunk(
        self,
        turn: Turn,
        candidates: list[dict[str, Json]],
        used: dict[str, Json],
        script: Script,
        sampling: Sampling,
    ) -> dict[str, Json]:
        chunk: dict[str, Json] = {"candidates": candidates}
        if script.usage != "missing":
            chunk["usageMetadata"] = {
                **used,
                **({"trafficType": "ON_DEMAND"} if self.vertex else {}),
            }
        chunk["modelVersion"] = turn.model
        if self.vertex:
            begun = datetime.fromtimestamp(sampling.created, UTC)
            chunk["createTime"] = begun.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        chunk["responseId"] = sampling.token(1, 22, BASE62)
        return chunk

    def _blocked(
        self, turn: Turn, used: dict[str, Json], script: Script, sampling: Sampling
    ) -> dict[str, Json]:
        """A prompt that was refused: no candidates, and why."""
        chunk = self._chunk(turn, [], used, script, sampling)
        del chunk["candidates"]
        return {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, **chunk}

    def read_embeddings(self, ask: Ask) -> Embedding:
        requests, framing = _embedded(ask)
        if not 1 <= len(requests) <= INPUTS_MAX:
            raise GoogleError(
                400,
                f"* BatchEmbedContentsRequest.requests: at most {INPUTS_MAX} requests can be in one batch\n",
            )
        texts = []
        natural = ask.script.embedding_dimensions or DIMENSIONS
        wanted = natural
        for request in requests:
            text = _embedded_text(request)
            if not text:
                raise GoogleError(400, "* EmbedContentRequest.content: contents is not specified\n")
            texts.append(text)
            size = request.get("outputDimensionality")
            if size is not None:
                if type(size) is not int or not 1 <= size <= 3072:
                    raise GoogleError(400, "Invalid value at 'output_dimensionality'")
                wanted = size
        prompt = sum(count_tokens(text) for text in texts)
        return Embedding(ask.model, tuple(texts), wanted, prompt, framing=framing)

    def embeddings(
        self,
        asked: Embedding,
        script: Script,  # noqa: ARG002 - Google tells no usage of embeddings
        *,
        seed: int,
    ) -> bytes:
        values = [vector(text, asked.dimensions, seed, as_base64=False) for text in asked.inputs]
        if asked.framing == "predict":
            predictions = [
                {
                    "embeddings": {
                        "statistics": {"token_count": count_tokens(text), "truncated": False},
                        "values": found,
                    }
                }
                for text, found in zip(asked.inputs, values, strict=True)
            ]
            characters = sum(len(text) for text in asked.inputs)
            return encode(
                {"predictions": predictions, "metadata": {"billableCharacterCount": characters}}
            )
        if asked.framing == "embedContent":
            return encode({"embedding": {"values": values[0]}})
        return encode({"embeddings": [{"values": found} for found in values]})

    def models(self, names: tuple[str, ...]) -> bytes:
        described = [
            {
                "name": f"models/{name}",
                "displayName": name,
                "supportedGenerationMethods": ["generateContent", "countTokens"],
            }
            for name in names
        ]
        return encode({"models": described})

    def counted(self, turn: Turn, script: Script) -> bytes:
        tokens = turn.prompt_tokens if script.prompt_tokens is None else script.prompt_tokens
        return encode({"totalTokens": tokens})

    def error(self, problem: Problem) -> GoogleError:
        return word(problem, version="v1beta", vertex=self.vertex)

    def break_off(self, problem: Problem, place: Place) -> bytes:
        body = self.error(problem).body()
        if place.turn.framing == "sse":
            return sse(body)
        return (b",\r\n" if place.sent else b"[") + body + b"\n]\n"

    def headers(self, identity: int) -> Headers:
        return (("server-timing", f"gfet4t7; dur={identity % 900 + 100}"),)

    def rate_headers(self, rates: tuple[Rate, ...], *, wall: float) -> Headers:  # noqa: ARG002
        return ()

    def wait_headers(self, wait_s: float, form: RetryForm, *, wall: float) -> Headers:
        """None of Google's own, but for a script that says `date` or `both`."""
        return super().wait_headers(wait_s, form, wall=wall) if form == "date" else ()


class Vertex(Gemini):
    name: ClassVar[str] = "vertex"
    vertex: ClassVar[bool] = True

    def key(self, door: Door) -> str:
        return bearer(door.headers)

    def inspect(self, door: Door) -> None:
        if "x-goog-api-key" in door.headers or "key" in door.query:
            raise GoogleError(
                401,
                "API keys are not supported by this API. Expected OAuth2 access token or other"
                " authentication credentials that assert a principal. See"
                " https://cloud.google.com/docs/authentication",
                details=(
                    {
                        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                        "reason": "CREDENTIALS_MISSING",
                        "domain": "googleapis.com",
                    },
                ),
            )


def _usage(used: Counts) -> dict[str, Json]:
    """The prompt includes what was cached; candidates exclude thoughts; total is the sum of all."""
    candidates = used.completion - used.reasoning
    return {
        "promptTokenCount": used.prompt,
        **({"candidatesTokenCount": candidates} if candidates else {}),
        "totalTokenCount": used.prompt + used.completion,
        **({"cachedContentTokenCount": used.cached} if used.cached else {}),
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": used.prompt}],
        **({"thoughtsTokenCount": used.reasoning} if used.reasoning else {}),
    }


def _candidate(parts: list[dict[str, Json]], index: int, finish: str) -> dict[str, Json]:
    content: dict[str, Json] = {"parts": parts, "role": "model"} if parts else {}
    found: dict[str, Json] = {"content": content}
    if finish:
        found["finishReason"] = finish
    if finish == "MALFORMED_FUNCTION_CALL":
        found["finishMessage"] = "Malformed function call: print(default_api."
    return {**found, "index": index}


def _finish(choice: Choice) -> str:
    if choice.malformed:
        return "MALFORMED_FUNCTION_CALL"
    return _FINISHES.get(choice.finish, "STOP")


def _parts(choice: Choice) -> list[dict[str, Json]]:
    parts: list[dict[str, Json]] = []
    if choice.thinking:
        parts.append({"text": "".join(choice.thinking), "thought": True})
    if choice.pieces:
        parts.append({"text": choice.text})
    if choice.malformed:
        return parts
    return [*parts, *(_call(call, i, choice) for i, call in enumerate(choice.calls))]


def _call(call: ToolUse, index: int, choice: Choice) -> dict[str, Json]:
    """Whole, mostly without an id; the first one after thoughts is signed."""
    try:
        arguments = msgspec.json.decode(call.arguments)
    except msgspec.DecodeError:
        arguments = call.arguments
    part: dict[str, Json] = {"functionCall": {"name": call.name, "args": arguments}}
    if choice.thinking and not index:
        part["thoughtSignature"] = token(call.chance ^ 7, 64, HEX)
    return part


def _fragments(choice: Choice, step: int) -> Iterator[tuple[dict[str, Json] | None, int]]:
    """Parts with their tokens, none empty; at least one, with nothing in it where nothing was said."""
    empty = True
    for text, tokens in batches(choice.thinking, step):
        yield {"text": text, "thought": True}, tokens
    for text, tokens in batches(choice.pieces, step):
        empty = False
        yield {"text": text}, tokens
    if choice.malformed:
        yield None, 0
        return
    for i, call in enumerate(choice.calls):
        empty = False
        yield _call(call, i, choice), len(call.pieces)
    if choice.calls:
        # The finish comes after the calls, in a chunk of its own.
        yield {"text": ""}, 0
    elif empty:
        yield None, 0


def _embedded(ask: Ask) -> tuple[list[dict[str, Json]], str]:
    raw = camel(ask.raw, "")
    action = ask.route.action
    if action == "predict":
        instances = raw.get("instances")
        if not isinstance(instances, list):
            raise GoogleError(400, "Invalid value at 'instances'")
        parameters = camel(raw.get("parameters") or {}, "parameters")
        size = parameters.get("outputDimensionality")
        return [
            {
                "content": {"parts": [{"text": camel(item, "instances").get("content")}]},
                **({"outputDimensionality": size} if size is not None else {}),
            }
            for item in instances
        ], action
    if action == "embedContent":
        return [raw], action
    requests = raw.get("requests")
    if not isinstance(requests, list):
        raise GoogleError(400, "* BatchEmbedContentsRequest.requests: requests is not specified\n")
    return [camel(request, "requests") for request in requests], action


def _embedded_text(request: dict[str, Json]) -> str:
    content = request.get("content")
    parts = content.get("parts") if isinstance(content, dict) else None
    if not isinstance(parts, list):
        return ""
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    return " ".join(text for text in texts if isinstance(text, str))
