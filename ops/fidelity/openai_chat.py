"""Chat completions as OpenAI made them, of the whole family, and its embeddings."""

from collections.abc import Iterable
from functools import partial
from typing import Final

from ops.fidelity import streams
from ops.fidelity.equivalence import Json, parse, sse, without_nulls
from ops.fidelity.exchange import compared, nothing_dropped, opened, refusal
from ops.fidelity.finding import Findings, excused, wrong
from ops.fidelity.rows import Row

from breakwater_gateway.worker.wire import neutral as n
from breakwater_gateway.worker.wire import openai_chat as oc
from breakwater_gateway.worker.wire.bad_request import BadRequest
from breakwater_gateway.worker.wire.openai_chat.answer import FINISH
from breakwater_protocol.chat import Usage

# ---- requests


def canonical(body: bytes) -> Json:
    """A request with the spellings that mean the same made one; a null counts as absent."""
    found: Json = without_nulls(parse(body))
    for name in ("model", "stream", "stream_options"):
        found.pop(name, None)  # the gateway's own
    for old, new in (("max_tokens", "max_completion_tokens"), ("random_seed", "seed")):
        if old in found:
            found[new] = found.pop(old)
    if isinstance(found.get("stop"), str):
        found["stop"] = [found["stop"]]
    for name in ("stop", "tools"):
        if found.get(name) == []:
            del found[name]
    for tool in found.get("tools", []):
        tool.setdefault("type", "function")  # Mistral's default
    choice = found.get("tool_choice")
    if choice == "any":  # Mistral's word
        found["tool_choice"] = "required"
    elif isinstance(choice, dict):
        choice.setdefault("type", "function")
    for message in found["messages"]:
        _canonical_message(message)
    return found


def _canonical_message(message: Json) -> None:
    if message["role"] == "developer":  # Ollama and others have no such role
        message["role"] = "system"
    if isinstance(message.get("reasoning"), str):
        message["reasoning_content"] = message.pop("reasoning")
    if not message.get("content"):
        message["content"] = ""
    for part in message["content"] if isinstance(message["content"], list) else ():
        if isinstance(part.get("image_url"), str):  # Mistral takes both
            part["image_url"] = {"url": part["image_url"]}


def request(row: Row) -> Findings:
    try:
        asked = oc.decode_request(row.request_body, path=row.url)
    except BadRequest as error:
        yield refusal(row, error)
        return
    call = oc.encode_request(asked, n.Target("m", {"provider": row.provider}))
    yield from compared("request", canonical(call.body), canonical(row.request_body))
    yield from nothing_dropped(call)


# ---- answers


def shown(body: bytes) -> Json:
    """A body as the caller reads it, with what hosts leave out or misspell put right."""
    found: Json = without_nulls(parse(body))
    found["id"] = found.get("id") or "chatcmpl-0"
    for name, value in (("object", "chat.completion"), ("created", 0), ("model", "")):
        found.setdefault(name, value)
    for number, choice in enumerate(found["choices"]):
        choice.setdefault("index", number)
        message = choice["message"]
        message.setdefault("role", "assistant")
        if choice.get("finish_reason") in {None, "", "eos"}:
            choice["finish_reason"] = "tool_calls" if message.get("tool_calls") else "stop"
        for call in message.get("tool_calls", []):
            call.setdefault("type", "function")
            if "function" in call:
                call["function"].setdefault("arguments", "")
    return found


def _calls(body: Json) -> list[Json]:
    return [call for one in body["choices"] for call in one["message"].get("tool_calls", [])]


def answer(row: Row) -> Findings:
    quirks = oc.by_provider(row.provider)
    given = parse(row.body)
    told, findings = opened(
        oc.decode_answer(row.body, quirks=quirks),
        lambda: bool(given.get("error")) and not given.get("choices"),
    )
    yield from findings
    if told is None:
        return
    written = oc.encode_answer(told)
    if quirks.dialect == "openai":
        ours, theirs = shown(written), shown(row.body)
        for mine, other in zip(_calls(ours), _calls(theirs), strict=False):
            other["id"] = other.get("id") or mine.get("id")  # minted, where the host gives none
        yield from compared("answer", ours, theirs)
    else:
        ours, theirs = (core(folded([parse(body)], "message")) for body in (written, row.body))
        yield from compared("answer", ours, theirs)
    usage = given.get("usage")
    if usage and "prompt_tokens" in usage:
        yield from compared("usage", told.usage, arithmetic(usage))
    for choice in given["choices"]:
        word = choice.get("finish_reason")
        if word and word not in FINISH:
            yield wrong("answer: an unknown finish reason", word)


# ---- streams


def chunks(body: bytes) -> list[Json]:
    return [item for item in sse(body) if not (isinstance(item, dict) and item.get("error"))]


def folded(parts: Iterable[Json], delta: str = "delta") -> Json:
    """All that chunks say, put together."""
    top: Json = {}
    choices: dict[int, Json] = {}
    for chunk in parts:
        for name, value in chunk.items():
            if name in {"choices", "object", "obfuscation", "p", "created"}:
                continue
            if value and (name != "id" or name not in top):
                top[name] = value
        for choice in chunk.get("choices") or []:
            made = choices.setdefault(
                choice.get("index", 0), {"tools": {}, "other": {}, "said": {}, "finish": None}
            )
            _fold(choice, choice.get(delta) or {}, made)
            made["finish"] = choice.get("finish_reason") or made["finish"]
    for made in choices.values():
        made["tools"] = list(made["tools"].values())
    return {"top": top, "choices": choices}


_FRAME: Final = frozenset({"role", "index", "delta", "finish_reason", "message", "text"})


def _fold(choice: Json, delta: Json, made: Json) -> None:
    said, other = made["said"], made["other"]
    for name, value in [*delta.items(), *choice.items()]:
        if not value or name in _FRAME:
            continue
        if name == "content" and isinstance(value, list):
            for part in value:
                _fold_part(part, said, other)
        elif isinstance(value, str) and name != "native_finish_reason":
            said[name] = said.get(name, "") + value
        elif name == "reasoning_details":
            said[name] = [*said.get(name, []), *value]
        elif name == "tool_calls":
            for call in value:
                _fold_call(call, made["tools"])
        elif name != "logprobs" or value.get("content"):
            told = other.setdefault(name, [])
            if value not in told:
                told.append(value)


def _fold_part(part: Json, said: Json, other: Json) -> None:
    """Mistral's content in parts."""
    if part["type"] == "text":
        said["content"] = said.get("content", "") + part["text"]
    elif part["type"] == "thinking":
        thought = "".join(piece.get("text", "") for piece in part["thinking"])
        said["reasoning_content"] = said.get("reasoning_content", "") + thought
    else:
        other.setdefault("content", []).append(part)


def _fold_call(call: Json, tools: dict[object, Json]) -> None:
    key = call.get("index", call.get("id") or len(tools))
    made = tools.setdefault(key, {"id": "", "name": "", "arguments": ""})
    made["id"] = call.get("id") or made["id"]
    function = call.get("function") or {}
    made["name"] = function.get("name") or made["name"]
    arguments = function.get("arguments") or ""
    made["arguments"] += arguments if isinstance(arguments, str) else repr(arguments)


def core(found: Json) -> Json:
    """What every dialect can say."""
    return {
        "id": found["top"].get("id"),
        "model": found["top"].get("model"),
        "choices": {
            number: {"said": one["said"], "tools": one["tools"], "finish": one["finish"]}
            for number, one in found["choices"].items()
        },
    }


def stream(row: Row) -> Findings:
    quirks = oc.by_provider(row.provider)
    make = partial(oc.StreamDecoder, quirks)
    events = streams.decoded(make, row.body)
    yield from streams.contract(events)
    yield from streams.cut_anywhere(make, row.body, events)
    yield from streams.cut_short(make, row.body)
    given = chunks(row.body)
    failed = len(given) < len(sse(row.body))
    wanted = folded(given)
    finishes = [one["finish"] for one in wanted["choices"].values()]
    done = b"[DONE]" in row.body
    if done or failed or not any(finishes):
        yield from streams.ends(events, done=done and not failed, failed=failed)
    written = [parse(chunk) for chunk in oc.StreamEncoder(source=quirks.dialect).feed(events)]
    got = folded(chunk for chunk in written if "error" not in chunk)
    if not wanted["top"].get("id"):
        wanted["top"]["id"] = "chatcmpl-0"
    for number, choice in wanted["choices"].items():
        made = got["choices"].get(number, {})
        if not choice["finish"] and made.get("finish"):
            choice["finish"] = made["finish"]
            yield excused("a stream without a finish reason: one is derived")
        for call, mine in zip(choice["tools"], made.get("tools", []), strict=False):
            call["id"] = call["id"] or mine["id"]  # Gemini sends none: ours are minted
    if quirks.dialect != "openai":
        got, wanted = core(got), core(wanted)
    yield from compared("stream", got, wanted)
    usages = [chunk["usage"] for chunk in given if chunk.get("usage")]
    known = streams.last_usage(events)
    if usages and "prompt_tokens" in usages[-1]:
        if known is None:
            yield wrong("usage: not told")
        else:
            yield from compared("usage", known.usage, arithmetic(usages[-1]))


# ---- usage


def arithmetic(raw: Json) -> Usage:
    """By the provider's own sum: of the total, what is not prompt is output."""
    given = raw.get("prompt_tokens_details") or {}
    spent = raw.get("completion_tokens_details") or {}
    prompt, completion = raw["prompt_tokens"] or 0, raw.get("completion_tokens") or 0
    total = raw.get("total_tokens") or prompt + completion
    cached = (
        given.get("cached_tokens")
        or raw.get("prompt_cache_hit_tokens")
        or raw.get("cached_tokens")
        or raw.get("num_cached_tokens")
        or 0
    )
    written = given.get("cache_write_tokens") or raw.get("cache_creation_input_tokens") or 0
    output = total - prompt
    thought = spent.get("reasoning_tokens") or output - completion
    # Azure reports more cached tokens than prompt tokens on some records.
    cached = min(cached, prompt)
    return Usage(prompt, output, cached, min(written, prompt - cached), min(thought, output))


# ---- embeddings


def embeddings_request(row: Row) -> Findings:
    try:
        asked = oc.decode_embeddings_request(row.request_body, path=row.url)
    except BadRequest as error:
        yield refusal(row, error)
        return
    given = without_nulls(parse(row.request_body))
    call = oc.encode_embeddings(asked, n.Target("m", {"provider": row.provider}))
    sent = parse(call.body)
    inputs = given.pop("input")
    alone = isinstance(inputs, str) or (bool(inputs) and isinstance(inputs[0], int))
    yield from compared("request.input", sent.pop("input"), [inputs] if alone else inputs)
    given.pop("encoding_format", None)  # the gateway asks for floats, and packs them itself
    yield from compared("request", sent, given | {"model": "m"})
    yield from nothing_dropped(call)


def embeddings_answer(row: Row) -> Findings:
    told = oc.decode_embeddings(row.body)
    wanted = without_nulls(parse(row.body))
    if not isinstance(told, n.EmbeddingsAnswer):
        yield wrong(f"answer: taken for {type(told).__name__}", told)
        return
    for encoding in ("float", "base64"):
        written = oc.encode_embeddings_answer(told, encoding=encoding, own=True, model=told.model)
        body = without_nulls(parse(written))
        if len(told.vectors) != len(wanted["data"]):
            yield wrong("answer: another number of vectors")
            return
        theirs = sorted(wanted["data"], key=lambda one: one.get("index", 0))
        for got, item in zip(body.pop("data"), theirs, strict=True):
            if isinstance(got["embedding"], type(item["embedding"])):
                number = {"index": got["index"], "object": "embedding"}
                yield from compared("answer.data[]", got, number | item)
        rest = {name: value for name, value in wanted.items() if name != "data"}
        yield from compared("answer", body, {"object": "list"} | rest)
    usage = wanted.get("usage") or {}
    if told.usage is not None and "prompt_tokens" in usage:
        yield from compared("usage", told.usage.input, usage["prompt_tokens"])
