"""Replays recorded traffic of the chat-completions family: nothing that its API can say gets lost."""

import functools
import itertools
import json
from collections.abc import Iterable, Iterator
from typing import Any, Final

import pytest
from tests.wire.recordings import SHARED, Row, needs_recordings, rows

from breakwater_gateway.worker.wire import openai_chat as oc
from breakwater_gateway.worker.wire.bad_request import BadRequest
from breakwater_gateway.worker.wire.neutral import (
    Answer,
    Began,
    Broke,
    Done,
    EmbeddingsAnswer,
    Finished,
    StreamEvent,
    Target,
    UsageKnown,
)
from breakwater_gateway.worker.wire.openai_chat import answer as oc_answer
from breakwater_protocol import failures as f
from breakwater_protocol.chat import Usage

pytestmark = needs_recordings

Json = dict[str, Any]

PROVIDERS: Final = tuple(oc.QUIRKS)
EMBED: Final = ("openai", "azure", "mistral", "openrouter", "ollama", "local-openai-compat")

NOT_A_REQUEST: Final = {
    "8f654026ad87200cb665": "no messages: refused, as the provider refused it with 400",
    "d1929a80903758fe1157": "an unknown encoding_format: refused, as the provider refused it with 400",
}
NO_FINISH: Final = {
    "17eb78409d296f5b5acb": "ends with [DONE] and no finish_reason: one is derived",
    "9c5af9493f9e97883063": "ends with [DONE] and no finish_reason: one is derived",
    "0267b1b02413b384db9a": "Snowflake leaves finish_reason empty: one is derived",
}


@functools.cache
def chats(provider: str) -> tuple[Row, ...]:
    return tuple(rows(provider, "chat"))


def whole(provider: str) -> Iterator[Row]:
    return (r for r in chats(provider) if not r.stream and r.status == 200 and r.body.strip())


def streamed(provider: str) -> Iterator[Row]:
    return (r for r in chats(provider) if r.stream and r.status == 200)


def diff(row: Row, got: object, wanted: object) -> str:
    """Short, by id: recordings are not ours to print."""
    return "" if got == wanted else f"{row.provider} {row.id}: {_where(got, wanted)}"


def _where(got: object, wanted: object, at: str = "") -> str:
    if isinstance(got, dict) and isinstance(wanted, dict):
        for key in sorted({*got, *wanted}):
            if got.get(key) != wanted.get(key):
                return _where(got.get(key), wanted.get(key), f"{at}.{key}")
    if isinstance(got, list) and isinstance(wanted, list) and len(got) == len(wanted):
        for number, (one, other) in enumerate(zip(got, wanted, strict=True)):
            if one != other:
                return _where(one, other, f"{at}[{number}]")
    return f"{at}: {str(got)[:60]!r} is not {str(wanted)[:60]!r}"


def without_nulls(value: Any) -> Any:  # noqa: ANN401 - JSON
    """OpenAI's API reads a null as absent."""
    if isinstance(value, dict):
        return {k: without_nulls(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [without_nulls(v) for v in value]
    return value


# ---------------------------------------------------------------- requests


def canonical(body: bytes) -> Json:
    """A request with the spellings that mean the same made one."""
    found: Json = without_nulls(json.loads(body))
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
        if message["role"] == "developer":  # Ollama and others have no such role
            message["role"] = "system"
        if isinstance(message.get("reasoning"), str):
            message["reasoning_content"] = message.pop("reasoning")
        if not message.get("content"):
            message["content"] = ""
        for part in message["content"] if isinstance(message["content"], list) else ():
            if isinstance(part.get("image_url"), str):  # Mistral takes both
                part["image_url"] = {"url": part["image_url"]}
    return found


@pytest.mark.parametrize("provider", PROVIDERS)
def test_every_request_comes_back_equivalent_and_nothing_of_it_is_dropped(provider: str) -> None:
    wrong = []
    for row in chats(provider):
        if not row.request_body.strip():
            continue
        if row.id in NOT_A_REQUEST:
            with pytest.raises(BadRequest):
                oc.decode_request(row.request_body)
            continue
        request = oc.decode_request(row.request_body, path=row.url)
        call = oc.encode_request(request, Target("m", {"provider": provider}))
        wrong.append(diff(row, canonical(call.body), canonical(row.request_body)))
        if call.dropped:
            wrong.append(f"{row.id}: dropped {call.dropped}")
    assert not [*filter(None, wrong)]


def test_requests_to_another_dialect_s_host_name_what_they_lose() -> None:
    """Every request of a rich host goes to a strict one; what is not there any more is in `dropped`."""
    for row in chats("openrouter"):
        given = json.loads(row.request_body)
        request = oc.decode_request(row.request_body)
        call = oc.encode_request(request, Target("m", {"provider": "mistral"}))
        kept = json.loads(call.body)
        for name in given:
            assert (
                name in kept
                or name in call.dropped
                or any(item.startswith(f"{name}.") for item in call.dropped)
                or given[name] in (None, [], {"include_usage": True})
                or name in {"seed", "reasoning", "stream", "max_completion_tokens"}
            ), (row.id, name, call.dropped)


# ---------------------------------------------------------------- answers


def shown(body: bytes) -> Json:
    """A body as the caller reads it, with what hosts leave out or misspell put right."""
    found: Json = without_nulls(json.loads(body))
    found.setdefault("object", "chat.completion")
    found["id"] = found.get("id") or "chatcmpl-0"
    for choice in found["choices"]:
        message = choice["message"]
        finish = choice.get("finish_reason")
        if finish in {None, "", "eos"}:
            choice["finish_reason"] = "tool_calls" if message.get("tool_calls") else "stop"
        for call in message.get("tool_calls", []):
            call.setdefault("type", "function")
            call["function"].setdefault("arguments", "")
    return found


@pytest.mark.parametrize("provider", [p for p in PROVIDERS if p != "mistral"])
def test_every_answer_comes_back_equivalent(provider: str) -> None:
    wrong = []
    for row in whole(provider):
        answer = oc.decode_answer(row.body, quirks=oc.QUIRKS[provider])
        assert isinstance(answer, Answer), (row.id, answer)
        wrong.append(diff(row, shown(oc.encode_answer(answer)), shown(row.body)))
    assert not [*filter(None, wrong)]


def test_every_answer_of_mistral_says_the_same_as_openai_would() -> None:
    wrong = []
    for row in whole("mistral"):
        answer = oc.decode_answer(row.body, quirks=oc.QUIRKS["mistral"])
        assert isinstance(answer, Answer), (row.id, answer)
        got = folded([json.loads(oc.encode_answer(answer))], "message")
        wrong.append(diff(row, core(got), core(folded([json.loads(row.body)], "message"))))
    assert not [*filter(None, wrong)]


# ---------------------------------------------------------------- streams


def chunks(body: bytes) -> list[Json]:
    """Read the naive way: recordings are whole."""
    text = body.decode().replace("\r\n", "\n")
    data = [line[5:].strip() for line in text.split("\n") if line.startswith("data:")]
    found = [json.loads(item) for item in data if item != "[DONE]"]
    return [item for item in found if "error" not in item]


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


def _fold(choice: Json, delta: Json, made: Json) -> None:
    said, other = made["said"], made["other"]
    for name, value in [*delta.items(), *choice.items()]:
        if not value or name in {"role", "index", "delta", "finish_reason", "message", "text"}:
            continue
        if name == "content" and isinstance(value, list):
            for part in value:
                if part["type"] == "text":
                    said["content"] = said.get("content", "") + part["text"]
                else:
                    thought = "".join(piece["text"] for piece in part["thinking"])
                    said["reasoning_content"] = said.get("reasoning_content", "") + thought
        elif isinstance(value, str) and name != "native_finish_reason":
            said[name] = said.get(name, "") + value
        elif name == "reasoning_details":
            said[name] = [*said.get(name, []), *value]
        elif name == "tool_calls":
            for call in value:
                _fold_call(call, made["tools"])
        elif (name != "logprobs" or value.get("content")) and value not in other.get(name, []):
            other.setdefault(name, []).append(value)


def _fold_call(call: Json, tools: dict[object, Json]) -> None:
    key = call.get("index", call.get("id") or len(tools))
    made = tools.setdefault(key, {"id": "", "name": "", "arguments": ""})
    made["id"] = call.get("id") or made["id"]
    function = call.get("function") or {}
    made["name"] = function.get("name") or made["name"]
    made["arguments"] += function.get("arguments") or ""


def core(found: Json) -> Json:
    """What every dialect can say."""
    return {
        "id": found["top"].get("id"),
        "model": found["top"].get("model"),
        "choices": {
            number: {
                "said": choice["said"],
                "tools": choice["tools"],
                "finish": choice["finish"],
            }
            for number, choice in found["choices"].items()
        },
    }


def decoded(provider: str, *pieces: bytes) -> list[StreamEvent]:
    decoder = oc.StreamDecoder(oc.QUIRKS[provider])
    events = [event for piece in pieces for event in decoder.feed(piece)]
    return events + decoder.end()


@pytest.mark.parametrize("provider", PROVIDERS)
def test_every_stream_comes_back_with_the_same_content(provider: str) -> None:
    wrong = []
    quirks = oc.QUIRKS[provider]
    for row in streamed(provider):
        events = decoded(provider, row.body)
        written = oc.StreamEncoder(source=quirks.dialect).feed(events)
        got = folded([c for c in map(json.loads, written) if "error" not in c])
        wanted = folded(chunks(row.body))
        if not wanted["top"].get("id"):
            wanted["top"]["id"] = "chatcmpl-0"
        for number, choice in wanted["choices"].items():
            made = got["choices"].get(number, {})
            if row.id in NO_FINISH:
                choice["finish"] = made["finish"]
            for call, mine in zip(choice["tools"], made["tools"], strict=False):
                call["id"] = call["id"] or mine["id"]  # Gemini sends none: ours are minted
        if quirks.dialect != "openai":
            got, wanted = core(got), core(wanted)
        wrong.append(diff(row, got, wanted))
    assert not [*filter(None, wrong)]


@pytest.mark.parametrize("provider", PROVIDERS)
def test_every_stream_keeps_the_order_of_events(provider: str) -> None:
    for row in streamed(provider):
        events = decoded(provider, row.body)
        assert isinstance(events[0], Began), row.id
        assert isinstance(events[-1], Broke if b'data: {"error"' in row.body else Done), row.id
        opened: set[tuple[int, int]] = set()
        ended: set[int] = set()
        for event in events:
            match type(event).__name__, event:
                case "PartBegan", part:
                    opened.add((part.candidate, part.index))  # type: ignore[union-attr]
                case "Grew", part:
                    assert (part.candidate, part.index) in opened  # type: ignore[union-attr]
                case "PartEnded", part:
                    opened.remove((part.candidate, part.index))  # type: ignore[union-attr]
                case "Finished", end:
                    assert isinstance(end, Finished)
                    assert end.candidate not in ended
                    assert end.candidate not in {candidate for candidate, _ in opened}
                    ended.add(end.candidate)
                case _:
                    continue
        assert not opened


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_stream_may_be_cut_anywhere(provider: str) -> None:
    for row in streamed(provider):
        body = row.body
        wanted = decoded(provider, body)
        for size in (1, 61, 1021) if len(body) < 12_000 else (61, 1021):
            pieces = [body[at : at + size] for at in range(0, len(body), size)]
            assert decoded(provider, *pieces) == wanted, (row.id, size)
    small = min(streamed(provider), key=lambda row: len(row.body), default=None)
    if small is not None:
        body, wanted = small.body, decoded(provider, small.body)
        step = 1 + len(body) // 2000
        for at in range(0, len(body), step):
            assert decoded(provider, body[:at], body[at:]) == wanted, (small.id, at)


def test_a_stream_cut_short_is_never_done() -> None:
    for row in itertools.islice(streamed("openai"), 40):
        at = row.body.index(b'"finish_reason":"') if b'"finish_reason":"' in row.body else 0
        assert not any(isinstance(e, Done) for e in decoded("openai", row.body[:at])), row.id


# ---------------------------------------------------------------- usage, errors, embeddings


def expected(raw: Json) -> Usage:
    """By the provider's own sum: what is not prompt is output."""
    given, spent = (
        raw.get("prompt_tokens_details") or {},
        raw.get("completion_tokens_details") or {},
    )
    prompt = raw["prompt_tokens"]
    cached = (
        given.get("cached_tokens")
        or raw.get("prompt_cache_hit_tokens")
        or raw.get("cached_tokens")
        or raw.get("num_cached_tokens")
        or 0
    )
    written = given.get("cache_write_tokens") or raw.get("cache_creation_input_tokens") or 0
    output = raw["total_tokens"] - prompt
    thought = spent.get("reasoning_tokens") or output - raw["completion_tokens"]
    cached = min(cached, prompt)
    return Usage(prompt, output, cached, min(written, prompt - cached), min(thought, output))


@pytest.mark.parametrize("provider", PROVIDERS)
def test_usage_is_the_provider_s_own_sum(provider: str) -> None:
    for row in whole(provider):
        answer = oc.decode_answer(row.body, quirks=oc.QUIRKS[provider])
        assert isinstance(answer, Answer)
        raw = json.loads(row.body).get("usage")
        assert answer.usage == (expected(raw) if raw else None), row.id
    for row in streamed(provider):
        raws = [chunk["usage"] for chunk in chunks(row.body) if chunk.get("usage")]
        known = [e.usage for e in decoded(provider, row.body) if isinstance(e, UsageKnown)]
        if raws:
            assert known[-1] == expected(raws[-1]), row.id


WANTED: Final[dict[int, tuple[type[f.Failure], ...]]] = {
    400: (f.InvalidRequest, f.ContextLength, f.MalformedToolCall, f.KeyRejected),
    401: (f.KeyRejected,),
    404: (f.ModelNotFound,),
    429: (f.RateLimited,),
    500: (f.ServerError,),
}


@pytest.mark.parametrize("provider", PROVIDERS)
def test_every_refusal_is_classified(provider: str) -> None:
    for row in rows(provider):
        if row.status >= 400 and row.api in {"chat", "embeddings", "completions"}:
            got = oc.classify(row.status, row.headers, row.body, now=1.8e9)
            assert isinstance(got, WANTED[row.status]), (row.id, got)


LABELS: Final[dict[str, type[f.Failure]]] = {
    "auth": f.KeyRejected,
    "context_length": f.ContextLength,
    "invalid_request": f.InvalidRequest,
    "malformed_tool_call": f.MalformedToolCall,
    "model_not_found": f.ModelNotFound,
    "overloaded": f.Overloaded,
    "quota_exhausted": f.QuotaExhausted,
    "quota_window_long": f.QuotaExhausted,
    "rate_limit": f.RateLimited,
    "request_too_large_for_limit": f.RequestOverLimit,
}
OTHERS: Final = {"anthropic", "bedrock", "cohere", "gemini", "vertex"}


def test_every_labelled_error_is_classified_right() -> None:
    wrong = []
    count = 0
    for line in (SHARED / "data" / "errors.jsonl").read_text().splitlines():
        item = json.loads(line)
        if item["provider"] in OTHERS:
            continue
        count += 1
        headers = {name.lower(): value for name, value in item["headers"].items()}
        body = json.dumps(item["body"]).encode()
        got = oc.classify(item["status"], headers, body, now=1_741_300_000.0)
        if type(got) is not LABELS[item["label"]]:
            wrong.append((item["provider"], item["label"], type(got).__name__))
    assert count >= 50
    assert not wrong


@pytest.mark.parametrize("provider", EMBED)
def test_embeddings_come_back_equivalent(provider: str) -> None:
    for row in rows(provider, "embeddings"):
        if b'"input"' not in row.request_body:
            continue  # Ollama's own API, or a recording without its request
        if row.id in NOT_A_REQUEST:
            with pytest.raises(BadRequest):
                oc.decode_embeddings_request(row.request_body)
            continue
        given = json.loads(row.request_body)
        request = oc.decode_embeddings_request(row.request_body, path=row.url)
        call = oc.encode_embeddings(request, Target(given.get("model", "m")))
        sent = json.loads(call.body)
        inputs = given["input"]
        alone = isinstance(inputs, str) or (inputs and isinstance(inputs[0], int))
        assert sent.pop("input") == ([inputs] if alone else inputs), row.id
        for name in ("encoding_format", "input"):
            given.pop(name, None)
        assert sent == {"model": "m", **without_nulls(given)}, row.id
        if row.status != 200 or not row.body.strip():
            continue
        answer = oc.decode_embeddings(row.body)
        assert isinstance(answer, EmbeddingsAnswer), (row.id, answer)
        encoding = request.encoding
        body = json.loads(
            oc.encode_embeddings_answer(answer, encoding=encoding, own=True, model=answer.model)
        )
        wanted = json.loads(row.body)
        for got, item in zip(body.pop("data"), wanted.pop("data"), strict=True):
            if isinstance(got["embedding"], type(item["embedding"])):
                assert got == {"object": "embedding", **item}, row.id
        assert body == wanted, row.id


def test_finish_words_of_all_recorded_hosts_are_known() -> None:
    words = set()
    for provider in PROVIDERS:
        for row in whole(provider):
            words |= {c.get("finish_reason") or "" for c in json.loads(row.body)["choices"]}
    assert words <= {*oc_answer.FINISH, ""}
