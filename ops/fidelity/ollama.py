"""Ollama's own API: chat, its NDJSON streams, and embeddings."""

from ops.fidelity.equivalence import Json, ndjson, parse, without_nulls
from ops.fidelity.exchange import compared, nothing_dropped, refusal
from ops.fidelity.finding import Findings, wrong
from ops.fidelity.outbound import Told, answered, requested, streamed
from ops.fidelity.rows import Row

from breakwater_gateway.worker.wire import neutral as n
from breakwater_gateway.worker.wire import ollama
from breakwater_gateway.worker.wire.bad_request import BadRequest
from breakwater_protocol.chat import Usage


def request(row: Row) -> Findings:
    yield from requested(row, ollama.decode_request, ollama.encode_request, canonical=canonical)


def canonical(body: Json) -> Json:
    """A request; streaming is the default, and empty lists and options say nothing."""
    found = without_nulls(body)
    if found.get("stream"):
        del found["stream"]
    for name in ("tools", "options"):
        if not found.get(name):
            found.pop(name, None)
    return found


def arithmetic(raw: Json) -> Usage | None:
    if raw.get("prompt_eval_count") is None and raw.get("eval_count") is None:
        return None
    return Usage(raw.get("prompt_eval_count") or 0, raw.get("eval_count") or 0)


def whole(body: bytes) -> bool:
    """One object, though a stream may have been asked for."""
    return len(ndjson(body)) == 1


def answer(row: Row) -> Findings:
    yield from answered(
        row.body,
        ollama.decode_answer(row.body),
        failed=lambda given: "error" in given or "message" not in given,
        usage=arithmetic,
    )


def stream(row: Row) -> Findings:
    yield from streamed(row, ollama.StreamDecoder, told(row.body))


def told(body: bytes) -> Told:
    found = Told()
    for line in ndjson(body):
        if line.get("error"):
            found.failed = True
            break
        message = line.get("message") or {}
        found.text += message.get("content") or ""
        found.thought += message.get("thinking") or ""
        for call in message.get("tool_calls") or ():
            function = call["function"]
            found.calls.append((call.get("id", ""), function["name"], function["arguments"]))
        if line.get("done"):
            found.done, found.finish = True, line.get("done_reason") or ""
            found.usage = arithmetic(line)
    return found


def embeddings_request(row: Row) -> Findings:
    try:
        asked = ollama.decode_embeddings_request(row.request_body, path=row.url)
    except BadRequest as error:
        yield refusal(row, error)
        return
    call = ollama.encode_embeddings(asked, n.Target(asked.model))
    ours, theirs = (parse(body) for body in (call.body, row.request_body))
    for body in (ours, theirs):
        if isinstance(body.get("input"), str):
            body["input"] = [body["input"]]
    yield from compared("request", ours, theirs)
    yield from nothing_dropped(call)


def embeddings_answer(row: Row) -> Findings:
    told = ollama.decode_embeddings(row.body)
    if not isinstance(told, n.EmbeddingsAnswer):
        yield wrong(f"answer: taken for {type(told).__name__}", told)
        return
    given = parse(row.body)
    yield from compared("answer: vectors", told.vectors, given["embeddings"])
    counted = given.get("prompt_eval_count")
    yield from compared("usage", told.usage and told.usage.input, counted)
