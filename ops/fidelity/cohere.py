"""Cohere's v2 chat and embeddings."""

from ops.fidelity.equivalence import Json, parse, sse, without_nulls
from ops.fidelity.exchange import compared, nothing_dropped, refusal
from ops.fidelity.finding import Findings, wrong
from ops.fidelity.outbound import Told, answered, as_json, requested, streamed
from ops.fidelity.rows import Row

from breakwater_gateway.worker.wire import cohere
from breakwater_gateway.worker.wire import neutral as n
from breakwater_gateway.worker.wire.bad_request import BadRequest
from breakwater_protocol.chat import Usage


def request(row: Row) -> Findings:
    yield from requested(row, cohere.decode_request, cohere.encode_request, canonical=canonical)


def canonical(body: Json) -> Json:
    """A request; a null counts as absent, a `stream` of false says nothing."""
    found = without_nulls(body)
    if not found.get("stream"):
        found.pop("stream", None)
    return found


def arithmetic(raw: Json) -> Usage | None:
    """`tokens` count all that the model read and wrote; what is cached is within."""
    counted = (raw or {}).get("tokens") or (raw or {}).get("billed_units")
    if not counted:
        return None
    given, output = (int(counted.get(name) or 0) for name in ("input_tokens", "output_tokens"))
    return Usage(
        input=given,
        output=output,
        cache_read=int(raw.get("cached_tokens") or 0),
        reasoning=int(counted.get("reasoning_tokens") or 0),
    )


def answer(row: Row) -> Findings:
    yield from answered(
        row.body,
        cohere.decode_answer(row.body),
        failed=lambda given: (
            not isinstance(given.get("message"), dict)
            or given.get("finish_reason") in {"ERROR", "TIMEOUT"}
        ),
        usage=lambda given: arithmetic(given.get("usage")),
    )


def stream(row: Row) -> Findings:
    yield from streamed(row, cohere.StreamDecoder, told(row.body))


def told(body: bytes) -> Told:
    found = Told()
    calls: dict[int, list[str]] = {}
    for event in sse(body):
        delta = event.get("delta") or {}
        message = delta.get("message") or {}
        content, call = message.get("content"), message.get("tool_calls")
        if isinstance(content, dict):
            found.text += content.get("text") or ""
            found.thought += content.get("thinking") or ""
        found.thought += message.get("tool_plan") or ""
        if isinstance(call, dict):
            function = call.get("function") or {}
            made = calls.setdefault(event.get("index", 0), ["", "", ""])
            made[0] += call.get("id") or ""
            made[1] += function.get("name") or ""
            made[2] += function.get("arguments") or ""
        if event.get("type") == "message-end":
            found.finish, found.done = delta.get("finish_reason") or "", True
            found.usage = arithmetic(delta.get("usage"))
            found.failed = found.finish in {"ERROR", "TIMEOUT"} or bool(delta.get("error"))
    found.calls = [
        (ident, name, as_json(arguments)) for _, (ident, name, arguments) in sorted(calls.items())
    ]
    return found


def embeddings_request(row: Row) -> Findings:
    try:
        asked = cohere.decode_embeddings_request(row.request_body, path=row.url)
    except BadRequest as error:
        yield refusal(row, error)
        return
    call = cohere.encode_embeddings(asked, n.Target(asked.model))
    ours, theirs = (parse(body) for body in (call.body, row.request_body))
    for body in (ours, theirs):
        body.setdefault("embedding_types", ["float"])  # v2 requires what v1 has as its default
    yield from compared("request", ours, theirs)
    yield from nothing_dropped(call)


def embeddings_answer(row: Row) -> Findings:
    told = cohere.decode_embeddings(row.body)
    if not isinstance(told, n.EmbeddingsAnswer):
        yield wrong(f"answer: taken for {type(told).__name__}", told)
        return
    given = parse(row.body)
    found = given["embeddings"]
    yield from compared(
        "answer: vectors", told.vectors, found["float"] if isinstance(found, dict) else found
    )
    meta = given.get("meta") or {}
    billed = (meta.get("billed_units") or {}).get("input_tokens")
    if billed is not None and not meta.get("tokens"):
        yield from compared("usage", told.usage and told.usage.input, billed)
