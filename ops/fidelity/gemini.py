"""Gemini's generateContent, of the Gemini API and of Vertex, its token counts and embeddings."""

from typing import Final

import msgspec
from ops.fidelity import streams
from ops.fidelity.equivalence import Json, parse, sse, without_nulls
from ops.fidelity.exchange import (
    FAILED_INSIDE,
    compared,
    nothing_dropped,
    refusal,
)
from ops.fidelity.finding import Findings, excused, wrong
from ops.fidelity.rows import Row

from breakwater_gateway.worker.wire import gemini
from breakwater_gateway.worker.wire import neutral as n
from breakwater_gateway.worker.wire.bad_request import BadRequest
from breakwater_protocol import failures as f
from breakwater_protocol.chat import Usage


def streamed(row: Row) -> bool:
    return ":streamGenerateContent" in row.url


def target(row: Row) -> n.Target:
    return n.Target(model="m", quirks={"vertex": row.provider == "vertex"})


_NOT_OURS: Final = frozenset(
    {"args", "response", "parametersJsonSchema", "responseJsonSchema", "enum", "default"}
)
"""Fields that hold the caller's or the model's own JSON, where a null says something."""


def canonical(body: Json) -> Json:
    """One spelling of names and units; in Protocol Buffers' JSON a null is as good as nothing."""
    return without_nulls(gemini.canonical(body), but=_NOT_OURS)


# ---- requests


def request(row: Row) -> Findings:
    try:
        asked = gemini.decode_request(row.request_body, path=row.url)
    except BadRequest as error:
        yield refusal(row, error)
        return
    call = gemini.encode_request(asked, target(row))
    sent = canonical(parse(row.request_body))
    sent.pop("model", None)
    yield from compared("request", canonical(parse(call.body)), sent)
    yield from nothing_dropped(call)
    if asked.stream != streamed(row):
        yield wrong("request: whether it streams is lost")


# ---- answers


def failed(body: Json) -> bool:
    """An error, a prompt that was blocked, or an answer of which nothing was let through."""
    if "error" in body:
        return True
    candidates = body.get("candidates") or []
    if not candidates:
        return True
    return all(
        one.get("finishReason") not in {"STOP", "MAX_TOKENS", 1, 2, None}
        and not (one.get("content") or {}).get("parts")
        for one in candidates
    )


def answer(row: Row) -> Findings:
    given = parse(row.body)
    if isinstance(given, list):
        yield from stream(row)
        return
    told = gemini.decode_answer(row.body)
    if not isinstance(told, n.Answer):
        if not failed(given):
            yield wrong(f"answer: taken for {type(told).__name__}", told)
            return
        yield excused(FAILED_INSIDE)
        yield from _block(given, told)
        return
    if "error" in given or (given.get("promptFeedback") or {}).get("blockReason"):
        yield wrong("answer: the failure inside it is not told")
        return
    written = parse(gemini.encode_answer(told, model=told.model))
    yield from compared("answer", written, without_nulls(given, but=_NOT_OURS))
    if given.get("usageMetadata"):
        yield from usage(given["usageMetadata"])
        wanted = gemini.usage(msgspec.json.encode(given["usageMetadata"]))
        yield from compared("usage", told.usage or Usage(), wanted)


def _block(given: Json, failure: f.Failure) -> Findings:
    reason = (given.get("promptFeedback") or {}).get("blockReason")
    if reason and not isinstance(failure, f.ContentFiltered):
        yield wrong("answer: a blocked prompt is not told as one", failure)


def usage(told: Json) -> Findings:
    """The total is the provider's own sum."""
    total = told.get("totalTokenCount")
    used = gemini.usage(msgspec.json.encode(told))
    if total is not None:
        yield from compared("usage: total", used.input + used.output, total)
    cached = told.get("cachedContentTokenCount") or 0
    yield from compared("usage: cached", used.cache_read, cached)
    yield from compared("usage: thoughts", used.reasoning, told.get("thoughtsTokenCount") or 0)


# ---- streams


def chunks(body: bytes) -> list[Json]:
    """Of either framing: server-sent events, or one array."""
    if body.lstrip()[:1] in {b"[", b"{"}:
        found = parse(body)
        return found if isinstance(found, list) else [found]
    return sse(body)


def stream(row: Row) -> Findings:
    given = chunks(row.body)
    events = streams.decoded(gemini.StreamDecoder, row.body)
    yield from streams.contract(events)
    yield from streams.cut_anywhere(gemini.StreamDecoder, row.body, events)
    yield from streams.cut_short(gemini.StreamDecoder, row.body)
    finished = last_of(given, "finishReason") is not None
    blocked = any((one.get("promptFeedback") or {}).get("blockReason") for one in given)
    if blocked or any("error" in one for one in given):
        yield from streams.ends(events, done=False, failed=True)
        return
    if finished and isinstance(events[-1], n.Broke):
        if said_by(given)[:1] and said_by(given)[0][1] != "finish":
            yield wrong("stream: broken off though it said something", events[-1].failure)
            return
        yield excused(FAILED_INSIDE)
        return
    yield from streams.ends(events, done=finished, failed=False)
    yield from compared("stream", said(events), said_by(given))
    counts = [one["usageMetadata"] for one in given if "usageMetadata" in one]
    known = streams.last_usage(events)
    if counts:
        wanted = gemini.usage(msgspec.json.encode(counts[-1]))
        yield from usage(counts[-1])
        yield from compared("stream: usage", known and known.usage, wanted)
    encoder = gemini.StreamEncoder(model="")
    written = [parse(chunk) for event in events for chunk in encoder.feed([event])]
    yield from compared("stream: written again", said_by(written), said_by(given))
    if not written:
        yield wrong("stream: written again, it is empty")
        return
    for name in ("responseId", "modelVersion"):
        yield from compared(f"stream: {name}", written[0].get(name), given[0].get(name))
    last = counts[-1] if counts else None
    yield from compared("stream: usageMetadata", written[-1].get("usageMetadata"), last)
    for name in ("groundingMetadata", "finishMessage", "finishReason"):
        yield from compared(f"stream: {name}", last_of(written, name), last_of(given, name))


def last_of(given: list[Json], name: str) -> Json:
    found = [
        candidate[name]
        for chunk in given
        for candidate in chunk.get("candidates") or ()
        if name in candidate
    ]
    return found[-1] if found else None


Said = list[tuple[int, str, Json, str]]
"""Of each candidate in turn: kind, content and signature of its parts, neighbouring texts joined."""


def said(events: list[n.StreamEvent]) -> Said:
    found: Said = []
    kinds: dict[tuple[int, int], n.Part] = {}
    for event in events:
        if isinstance(event, n.PartBegan):
            kinds[event.candidate, event.index] = event.part
            if isinstance(event.part, n.Native):
                _add_part(found, event.candidate, parse(bytes(event.part.raw)))
        elif isinstance(event, n.Grew):
            _add_growth(found, kinds.get((event.candidate, event.index)), event)
        elif isinstance(event, n.Finished):
            found.append((event.candidate, "finish", event.native, ""))
    return found


def _add_growth(found: Said, part: n.Part | None, event: n.Grew) -> None:
    if isinstance(part, n.ToolCall):
        call = {"name": part.name, "args": parse(event.text or "{}")}
        found.append((event.candidate, "functionCall", call, part.signature))
    elif isinstance(part, n.Thinking):
        _add(found, event.candidate, "thought", event.text, event.signature)
    elif part is not None:
        signature = parse(bytes(event.extra.get("thoughtSignature", b'""')))
        _add(found, event.candidate, "text", event.text, signature)


def said_by(given: list[Json]) -> Said:
    found: Said = []
    finished: Said = []
    for chunk in given:
        for candidate in chunk.get("candidates") or ():
            index = candidate.get("index", 0)
            for part in (candidate.get("content") or {}).get("parts") or ():
                _add_part(found, index, part)
            if "finishReason" in candidate:
                word = candidate["finishReason"]
                finished = [one for one in finished if one[0] != index]
                finished.append((index, "finish", {1: "STOP", 2: "MAX_TOKENS"}.get(word, word), ""))
    return found + finished


def _add_part(found: Said, index: int, part: Json) -> None:
    signature = part.get("thoughtSignature", "")
    if "functionCall" in part:
        given = part["functionCall"]
        call = {"name": given["name"], "args": given.get("args") or {}}
        found.append((index, "functionCall", call, signature))
    elif "text" in part:
        kind = "thought" if part.get("thought") else "text"
        _add(found, index, kind, part["text"], signature)
    else:
        found.append((index, "native", part, ""))


def _add(found: Said, index: int, kind: str, text: str, signature: str) -> None:
    if not text and not signature:
        return
    if found and found[-1][:2] == (index, kind) and not signature and not found[-1][3]:
        text = found.pop()[2] + text
    found.append((index, kind, text, signature))


# ---- counts and embeddings


def count(row: Row) -> Findings:
    """A request to count tokens, and its answer."""
    try:
        asked = gemini.decode_request(row.request_body, path=row.url)
    except BadRequest as error:
        yield refusal(row, error)
        return
    call = gemini.encode_count_tokens(asked, target(row))
    ours, theirs = (
        canonical(body.get("generateContentRequest", body))
        for body in (parse(call.body), parse(row.request_body))
    )
    for body in (ours, theirs):
        body.pop("model", None)
    yield from compared("request", ours, theirs)
    if row.status < 400:
        counted = gemini.decode_count_tokens(row.body)
        yield from compared("answer", counted, parse(row.body)["totalTokens"])


def embeddings_request(row: Row) -> Findings:
    try:
        asked = gemini.decode_embeddings_request(row.request_body, path=row.url)
    except BadRequest as error:
        yield refusal(row, error)
        return
    quirks = {"vertex": ":predict" in row.url}
    call = gemini.encode_embeddings(asked, n.Target(model=asked.model, quirks=quirks))
    ours, theirs = embeddings_of(parse(call.body)), embeddings_of(parse(row.request_body))
    yield from compared("request", ours, theirs)
    yield from nothing_dropped(call)


def embeddings_answer(row: Row) -> Findings:
    told = gemini.decode_embeddings(row.body)
    if not isinstance(told, n.EmbeddingsAnswer):
        yield wrong(f"answer: taken for {type(told).__name__}", told)
        return
    written = parse(gemini.encode_embeddings_answer(told, model=told.model, path=row.url))
    given = parse(row.body)
    yield from compared("answer", vectors(written), vectors(given))
    yield from compared(
        "answer: usageMetadata", written.get("usageMetadata"), given.get("usageMetadata")
    )


def embeddings_of(body: Json) -> Json:
    """What is asked to be embedded, one or many, without the name of the model."""
    if "instances" in body:
        return body
    wanted = []
    for one in body.get("requests", [body]):
        content = canonical(one["content"])
        content.pop("role", None)
        rest = {name: value for name, value in one.items() if name not in {"model", "content"}}
        wanted.append((content, rest))
    return wanted


def vectors(body: Json) -> Json:
    if "predictions" in body:
        return [one["embeddings"]["values"] for one in body["predictions"]]
    return [one["values"] for one in body.get("embeddings") or [body["embedding"]]]
