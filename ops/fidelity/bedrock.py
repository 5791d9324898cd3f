"""Amazon Bedrock: Converse, ConverseStream, and embeddings by InvokeModel."""

import re
from typing import Final
from urllib.parse import unquote

from ops.fidelity.equivalence import Json, frames, parse
from ops.fidelity.exchange import compared
from ops.fidelity.finding import Findings, skipped, wrong
from ops.fidelity.outbound import Told, answered, as_json, requested, streamed
from ops.fidelity.rows import Row

from breakwater_gateway.worker.wire import bedrock
from breakwater_gateway.worker.wire import neutral as n
from breakwater_protocol.chat import Usage

FAILURES: Final = frozenset({"malformed_tool_use", "malformed_model_output"})
"""Stop reasons that are failures."""


def request(row: Row) -> Findings:
    yield from requested(row, bedrock.decode_request, bedrock.encode_request, canonical=canonical)


def canonical(body: Json) -> Json:
    """A request; the SDKs write empty lists and objects where others write nothing."""
    return {
        name: value
        for name, value in body.items()
        if value not in (None, [], {}) and name != "modelId"  # the path's
    }


def arithmetic(raw: Json) -> Usage | None:
    """Cache beside the input, as the total shows; where the total leaves it out, within."""
    if not raw:
        return None
    given, output = raw.get("inputTokens") or 0, raw.get("outputTokens") or 0
    read, wrote = raw.get("cacheReadInputTokens") or 0, raw.get("cacheWriteInputTokens") or 0
    total = raw.get("totalTokens")
    within = total == given + output and given >= read + wrote
    return Usage(given if within else given + read + wrote, output, read, wrote)


def answer(row: Row) -> Findings:
    yield from answered(
        row.body,
        bedrock.decode_answer(row.body),
        failed=lambda given: "output" not in given or given.get("stopReason") in FAILURES,
        usage=lambda given: arithmetic(given.get("usage") or {}),
    )


def stream(row: Row) -> Findings:
    yield from streamed(row, bedrock.StreamDecoder, told(row.body))


def told(body: bytes) -> Told:
    found = Told()
    calls: dict[int, tuple[str, str]] = {}
    arguments: dict[int, str] = {}
    for frame in frames(body):
        if frame.headers.get(":message-type") != "event":
            found.failed = True
            break
        event, payload = frame.headers.get(":event-type"), parse(frame.payload)
        at = payload.get("contentBlockIndex", 0)
        if event == "contentBlockStart" and "toolUse" in payload.get("start", {}):
            call = payload["start"]["toolUse"]
            # What the provider runs itself stays native.
            if call.get("type", "tool_use") == "tool_use":
                calls[at], arguments[at] = (call["toolUseId"], call["name"]), ""
        elif event == "contentBlockDelta":
            delta = payload["delta"]
            found.text += delta.get("text", "")
            found.thought += delta.get("reasoningContent", {}).get("text", "")
            if at in arguments:
                arguments[at] += delta.get("toolUse", {}).get("input", "")
        elif event == "messageStop":
            found.finish, found.done = payload["stopReason"], True
            found.failed = payload["stopReason"] in FAILURES
        elif event == "metadata":
            found.usage = arithmetic(payload.get("usage") or {})
    found.calls = [(*calls[at], as_json(arguments[at])) for at in sorted(calls)]
    return found


# ---- InvokeModel


def model(row: Row) -> str:
    found = re.search(r"/model/([^/]+)/invoke", row.url)
    return unquote(found[1]) if found else ""


def embeds(row: Row) -> bool:
    """A call of an embeddings model, told by its body: an application profile hides the model."""
    try:
        asked = parse(row.request_body)
    except ValueError:
        return "embed" in model(row)
    return "embed" in model(row) or (
        asked.keys() <= {"inputText", "dimensions", "normalize", "embeddingTypes"}
        and b'"embedding' in row.body[:100]
    )


def embeddings_request(row: Row) -> Findings:
    """There is no caller's form of these bodies: what a caller could ask is asked, and compared."""
    given = parse(row.request_body)
    asked, family, fields = _asked(given)
    if asked is None:
        yield skipped("invoke: embeddings of what a caller cannot ask")
        return
    name = model(row)
    call = bedrock.encode_embeddings(
        n.Embeddings(dialect="openai", model=name, **asked), n.Target(name, {"family": family})
    )
    sent = parse(call.body)
    for field in fields:
        yield from compared(f"request.{field}", sent.get(field), given.get(field))


def _asked(given: Json) -> tuple[Json, str, tuple[str, ...]]:
    if isinstance(given.get("inputText"), str):
        asked = {"inputs": [given["inputText"]], "dimensions": given.get("dimensions")}
        return asked, "titan", ("inputText", "dimensions")
    if isinstance(given.get("texts"), list):
        asked = {"inputs": given["texts"], "task": given.get("input_type", "")}
        if "output_dimension" in given:
            asked["dimensions"] = given["output_dimension"]
        return asked, "cohere", ("texts", "input_type", "output_dimension")
    text = (given.get("singleEmbeddingParams") or {}).get("text") or {}
    if isinstance(text.get("value"), str):
        return {"inputs": [text["value"]]}, "nova", ("taskType",)
    return None, "", ()


def embeddings_answer(row: Row) -> Findings:
    told = bedrock.decode_embeddings(row.body)
    if not isinstance(told, n.EmbeddingsAnswer):
        yield wrong(f"answer: taken for {type(told).__name__}", told)
        return
    given = parse(row.body)
    yield from compared("answer: vectors", told.vectors, vectors(given))
    counted = given.get("inputTextTokenCount")
    yield from compared("usage", told.usage and told.usage.input, counted)


def vectors(given: Json) -> Json:
    if "embedding" in given:
        return [given["embedding"]]
    found = given["embeddings"]
    if isinstance(found, dict):
        return found["float"]
    return [one["embedding"] if isinstance(one, dict) else one for one in found]
