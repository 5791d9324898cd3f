"""Recorded traffic of the Gemini API and Vertex, replayed: nothing is lost on the way in and out."""

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from tests.wire.recordings import SHARED, Row, needs_recordings, rows

from breakwater_gateway.worker.wire import gemini, neutral
from breakwater_gateway.worker.wire.bad_request import BadRequest
from breakwater_gateway.worker.wire.neutral import (
    Answer,
    Broke,
    Done,
    Finished,
    Grew,
    PartBegan,
    StreamEvent,
    Target,
    UsageKnown,
)
from breakwater_protocol import failures as f
from breakwater_protocol.chat import Usage

pytestmark = needs_recordings

Json = Any

NOT_REPLAYED = {
    "8f0e4ee1b9aa0bceb3f2": "the request has a role that the API refuses with this very error",
}
BLOCKED = {
    "f15192ea0f6e112a7e43": "MODEL_ARMOR",
    "7c6557451c678adb33ef": "MODEL_ARMOR",
    "3e86069af4d71c6182f9": "SAFETY",
}
"""Answers of status 200 that are failures."""


@pytest.fixture(scope="module")
def exchanges() -> list[Row]:
    return [
        row
        for provider in ("gemini", "vertex", "local-openai-compat")
        for row in rows(provider, "generateContent")
    ]


@pytest.fixture(scope="module")
def whole(exchanges: list[Row]) -> list[Row]:
    return [row for row in exchanges if not streams(row) and row.status == 200]


@pytest.fixture(scope="module")
def streamed(exchanges: list[Row]) -> list[Row]:
    return [row for row in exchanges if streams(row) and row.status == 200]


def streams(row: Row) -> bool:
    return ":streamGenerateContent" in row.url


def read(data: bytes) -> Json:
    return msgspec.json.decode(data)


def target(row: Row) -> Target:
    return Target(model="m", quirks={"vertex": row.provider == "vertex"})


def test_every_request_decodes_and_encodes_to_an_equivalent_body(exchanges: list[Row]) -> None:
    replayed = 0
    for row in exchanges:
        if not row.request_body or row.id in NOT_REPLAYED:
            continue
        request = gemini.decode_request(row.request_body, path=row.url)
        call = gemini.encode_request(request, target(row))
        sent = gemini.canonical(read(row.request_body))
        sent.pop("model", None)
        assert gemini.canonical(read(call.body)) == sent, row.id
        assert call.dropped == (), row.id
        assert request.stream == streams(row)
        replayed += 1
    assert replayed > 600


def test_requests_that_the_api_refuses_for_their_shape_are_refused(exchanges: list[Row]) -> None:
    for row in exchanges:
        if row.id in NOT_REPLAYED:
            with pytest.raises(BadRequest):
                gemini.decode_request(row.request_body, path=row.url)


def test_every_answer_decodes_and_encodes_to_the_same_body(whole: list[Row]) -> None:
    replayed = 0
    for row in whole:
        answer = gemini.decode_answer(row.body)
        if row.id in BLOCKED:
            assert isinstance(answer, f.ContentFiltered), row.id
            assert answer.provider_code == BLOCKED[row.id]
            continue
        assert isinstance(answer, Answer), (row.id, answer)
        written = gemini.encode_answer(answer, model=answer.model)
        assert read(written) == read(row.body), row.id
        replayed += 1
    assert replayed > 500


def test_usage_of_every_answer_adds_up_as_the_provider_says(exchanges: list[Row]) -> None:
    for row in exchanges:
        for told in usages(row):
            total = told.get("totalTokenCount")
            if total is None:
                continue
            used = gemini.usage(msgspec.json.encode(told))
            assert used.input + used.output == total, row.id
            assert used.cache_read == told.get("cachedContentTokenCount", 0)
            assert used.reasoning == told.get("thoughtsTokenCount", 0)


def usages(row: Row) -> Iterator[Json]:
    if row.status == 200:
        for chunk in chunks(row.body):
            if "usageMetadata" in chunk:
                yield chunk["usageMetadata"]


def chunks(body: bytes) -> list[Json]:
    if body.lstrip()[:1] in {b"[", b"{"}:
        found = read(body)
        return found if isinstance(found, list) else [found]
    events = body.replace(b"\r\n", b"\n").split(b"\n\n")
    return [read(event.removeprefix(b"data: ")) for event in events if event.strip()]


# ---------------------------------------------------------------- streams


def test_every_stream_tells_what_its_chunks_hold(streamed: list[Row]) -> None:
    for row in streamed:
        events = decoded(row.body)
        assert isinstance(events[-1], Done), (row.id, events[-1])
        assert said(events) == said_by(chunks(row.body)), row.id
        told = [event.usage for event in events if isinstance(event, UsageKnown)]
        last = [chunk["usageMetadata"] for chunk in chunks(row.body) if "usageMetadata" in chunk]
        assert (told or [Usage()])[-1] == gemini.usage(msgspec.json.encode(last[-1])), row.id
    assert len(streamed) > 100


def test_a_stream_cut_anywhere_gives_the_same_events(streamed: list[Row]) -> None:
    for row in streamed:
        expected = decoded(row.body)
        size = len(row.body)
        every = 1 if size < 1500 else size // 25
        for at in range(1, size, every):
            assert decoded(row.body[:at], row.body[at:]) == expected, (row.id, at)
        if size < 20_000:
            assert decoded(*[row.body[at : at + 1] for at in range(size)]) == expected, row.id


def test_every_stream_encodes_to_chunks_that_say_the_same(streamed: list[Row]) -> None:
    for row in streamed:
        events = decoded(row.body)
        encoder = gemini.StreamEncoder(model="")
        written = [read(chunk) for event in events for chunk in encoder.feed([event])]
        given = chunks(row.body)
        assert said_by(written) == said_by(given), row.id
        for name in ("responseId", "modelVersion"):
            assert written[0].get(name) == given[0].get(name), row.id
        assert written[-1].get("usageMetadata") == given[-1].get("usageMetadata"), row.id
        for name in ("groundingMetadata", "finishMessage", "finishReason"):
            assert last_of(written, name) == last_of(given, name), (row.id, name)


def last_of(given: list[Json], name: str) -> Json:
    found = [
        candidate[name]
        for chunk in given
        for candidate in chunk.get("candidates", ())
        if name in candidate
    ]
    return found[-1] if found else None


def decoded(*pieces: bytes) -> list[StreamEvent]:
    decoder = gemini.StreamDecoder()
    events = [event for piece in pieces for event in decoder.feed(piece)]
    return events + decoder.end()


Said = list[tuple[int, str, Json, str]]
"""Of each candidate in turn: kind, content and signature of its parts, neighbouring texts joined."""


def said(events: list[StreamEvent]) -> Said:
    found: Said = []
    kinds: dict[tuple[int, int], neutral.Part] = {}
    for event in events:
        if isinstance(event, PartBegan):
            kinds[event.candidate, event.index] = event.part
            if isinstance(event.part, neutral.Native):
                add_part(found, event.candidate, read(bytes(event.part.raw)))
        if isinstance(event, Grew):
            part = kinds[event.candidate, event.index]
            signature = read(bytes(event.extra.get("thoughtSignature", b'""')))
            if isinstance(part, neutral.ToolCall):
                call = {"name": part.name, "args": read(event.text.encode())}
                found.append((event.candidate, "functionCall", call, part.signature))
            elif isinstance(part, neutral.Thinking):
                add(found, event.candidate, "thought", event.text, event.signature)
            else:
                add(found, event.candidate, "text", event.text, signature)
        if isinstance(event, Finished):
            found.append((event.candidate, "finish", event.native, ""))
        assert not isinstance(event, Broke), event
    return found


def said_by(given: list[Json]) -> Said:
    found: Said = []
    finished: Said = []
    for chunk in given:
        for candidate in chunk.get("candidates", ()):
            index = candidate.get("index", 0)
            for part in candidate.get("content", {}).get("parts", ()):
                add_part(found, index, part)
            if "finishReason" in candidate:
                name = {1: "STOP", 2: "MAX_TOKENS"}.get(
                    candidate["finishReason"], candidate["finishReason"]
                )
                finished = [one for one in finished if one[0] != index]
                finished.append((index, "finish", name, ""))
    return found + finished


def add_part(found: Said, index: int, part: Json) -> None:
    signature = part.get("thoughtSignature", "")
    if "functionCall" in part:
        call = {"name": part["functionCall"]["name"], "args": part["functionCall"]["args"]}
        found.append((index, "functionCall", call, signature))
    elif "text" in part:
        kind = "thought" if part.get("thought") else "text"
        add(found, index, kind, part["text"], signature)
    else:
        found.append((index, "native", part, ""))


def add(found: Said, index: int, kind: str, text: str, signature: str) -> None:
    if not text and not signature:
        return
    if found and found[-1][:2] == (index, kind) and not signature and not found[-1][3]:
        text = found.pop()[2] + text
    found.append((index, kind, text, signature))


# ---------------------------------------------------------------- embeddings, counts, errors


def test_every_embeddings_exchange_replays() -> None:
    replayed = 0
    for row in [*rows("gemini", "embeddings"), *rows("vertex", "predict")]:
        request = gemini.decode_embeddings_request(row.request_body, path=row.url)
        quirks = {"vertex": row.api == "predict"}
        call = gemini.encode_embeddings(request, Target(model=request.model, quirks=quirks))
        assert call.dropped == ()
        assert embeddings_of(read(call.body)) == embeddings_of(read(row.request_body)), row.id
        if row.status == 200:
            answer = gemini.decode_embeddings(row.body)
            assert isinstance(answer, neutral.EmbeddingsAnswer), (row.id, answer)
            assert len(answer.vectors) == len(request.inputs)
            written = gemini.encode_embeddings_answer(answer, model=request.model, path=row.url)
            assert vectors(read(written)) == vectors(read(row.body)), row.id
            assert read(written).get("usageMetadata") == read(row.body).get("usageMetadata")
        replayed += 1
    assert replayed > 30


def embeddings_of(body: Json) -> Json:
    if "instances" in body:
        return body
    wanted = []
    for one in body.get("requests", [body]):
        content = gemini.canonical(one["content"])
        content.pop("role", None)
        rest = {name: value for name, value in one.items() if name not in {"model", "content"}}
        wanted.append((content, rest))
    return wanted


def vectors(body: Json) -> Json:
    if "predictions" in body:
        return [one["embeddings"]["values"] for one in body["predictions"]]
    return [one["values"] for one in body.get("embeddings") or [body["embedding"]]]


def test_every_count_of_tokens_replays() -> None:
    replayed = 0
    for row in [*rows("gemini", "count_tokens"), *rows("vertex", "count_tokens")]:
        request = gemini.decode_request(row.request_body, path=row.url)
        call = gemini.encode_count_tokens(request, target(row))
        sent, written = read(row.request_body), read(call.body)
        sent = gemini.canonical(sent.get("generateContentRequest", sent))
        written = gemini.canonical(written.get("generateContentRequest", written))
        for body in (sent, written):
            body.pop("model", None)
        assert written == sent, row.id
        found = gemini.decode_count_tokens(row.body)
        if row.status == 200:
            assert found == read(row.body)["totalTokens"]
        replayed += 1
    assert replayed > 8


KINDS: dict[str, type[f.Failure]] = {
    "model_not_found": f.ModelNotFound,
    "rate_limit": f.RateLimited,
    "auth": f.KeyRejected,
    "invalid_request": f.InvalidRequest,
    "overloaded": f.Overloaded,
    "quota_window_long": f.QuotaExhausted,
    "context_length": f.ContextLength,
    "content_filter": f.ContentFiltered,
    "permission": f.KeyForbidden,
}


def test_every_labelled_error_is_classified_as_labelled() -> None:
    seen = 0
    for line in (SHARED / "data" / "errors.jsonl").read_bytes().splitlines():
        row = read(line)
        if row["provider"] not in {"gemini", "vertex"}:
            continue
        headers = {name.lower(): value for name, value in row["headers"].items()}
        body = msgspec.json.encode(row["body"])
        failure = gemini.classify(row["status"], headers, body, now=0.0)
        assert isinstance(failure, KINDS[row["label"]]), (row["ref"], failure)
        seen += 1
    assert seen > 10


def test_every_recorded_refusal_is_classified() -> None:
    by_status = {
        400: (f.InvalidRequest, f.KeyRejected, f.ContextLength),
        401: (f.KeyRejected,),
        404: (f.ModelNotFound,),
        429: (f.RateLimited,),
    }
    for provider in ("gemini", "vertex"):
        for row in rows(provider):
            if row.status >= 400 and row.api != "messages":
                failure = gemini.classify(row.status, row.headers, row.body, now=0.0)
                assert isinstance(failure, by_status[row.status]), (row.id, failure)
                assert failure.provider_status == row.status
