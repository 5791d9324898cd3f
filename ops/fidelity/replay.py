"""One recording through the gateway's dialects: which checks its API has, and what they find.

A check that raises is a finding like any other: a dialect must not raise on what a provider sent.
"""

import traceback
from collections.abc import Callable, Iterator
from typing import Final, Literal

from msgspec import Struct
from ops.fidelity import (
    anthropic,
    bedrock,
    cohere,
    gemini,
    ollama,
    openai_chat,
    refusals,
    responses,
)
from ops.fidelity.finding import Finding, Findings, skipped, wrong
from ops.fidelity.rows import Row

from breakwater_gateway.worker.wire import anthropic as anthropic_dialect
from breakwater_gateway.worker.wire import bedrock as bedrock_dialect
from breakwater_gateway.worker.wire import cohere as cohere_dialect
from breakwater_gateway.worker.wire import gemini as gemini_dialect
from breakwater_gateway.worker.wire import ollama as ollama_dialect
from breakwater_gateway.worker.wire import openai_chat as openai_dialect
from breakwater_gateway.worker.wire import responses as responses_dialect

Check = Callable[[Row], Findings]


class Checks(Struct, frozen=True):
    """Of one API. None where there is nothing of the kind."""

    request: Check
    answer: Check | None
    classify: refusals.Classify
    stream: Check | None = None
    body_streams: Callable[[Row], bool] | None = None
    """Whether an answer is a stream, where the recording's own word is not enough."""
    refused_as_answer: bool = False
    """The check of the request looks at the answer too."""


class Outcome(Struct, frozen=True):
    """`findings` are empty for a row that passed without any rule's help."""

    provider: str
    api: str
    id: str
    findings: tuple[Finding, ...] = ()

    @property
    def verdict(self) -> Literal["passed", "failed", "not replayed"]:
        kinds = {finding.kind for finding in self.findings}
        if "wrong" in kinds:
            return "failed"
        return "not replayed" if "skipped" in kinds else "passed"


def _sse(row: Row) -> bool:
    return row.body.lstrip()[:1] not in {b"{", b"["}


CHAT: Final = Checks(
    request=openai_chat.request,
    answer=openai_chat.answer,
    stream=openai_chat.stream,
    body_streams=_sse,
    classify=openai_dialect.classify,
)
EMBEDDINGS: Final = Checks(
    request=openai_chat.embeddings_request,
    answer=openai_chat.embeddings_answer,
    classify=openai_dialect.classify,
)
RESPONSES: Final = Checks(
    request=responses.request,
    answer=responses.answer,
    stream=responses.stream,
    body_streams=_sse,
    classify=responses_dialect.classify,
)
MESSAGES: Final = Checks(
    request=anthropic.request,
    answer=anthropic.answer,
    stream=anthropic.stream,
    body_streams=_sse,
    classify=anthropic_dialect.classify,
)
MESSAGES_COUNT: Final = Checks(
    request=anthropic.count, answer=None, classify=anthropic_dialect.classify
)
MESSAGES_INVOKED: Final = Checks(
    request=anthropic.request,
    answer=anthropic.answer,
    stream=anthropic.invoked_stream,
    body_streams=_sse,
    classify=bedrock_dialect.classify,
)
GENERATE: Final = Checks(
    request=gemini.request,
    answer=gemini.answer,
    stream=gemini.stream,
    body_streams=gemini.streamed,
    classify=gemini_dialect.classify,
)
GENERATE_COUNT: Final = Checks(request=gemini.count, answer=None, classify=gemini_dialect.classify)
GEMINI_EMBEDDINGS: Final = Checks(
    request=gemini.embeddings_request,
    answer=gemini.embeddings_answer,
    classify=gemini_dialect.classify,
)
CONVERSE: Final = Checks(
    request=bedrock.request,
    answer=bedrock.answer,
    stream=bedrock.stream,
    body_streams=_sse,
    classify=bedrock_dialect.classify,
)
BEDROCK_EMBEDDINGS: Final = Checks(
    request=bedrock.embeddings_request,
    answer=bedrock.embeddings_answer,
    classify=bedrock_dialect.classify,
)
COHERE: Final = Checks(
    request=cohere.request,
    answer=cohere.answer,
    stream=cohere.stream,
    body_streams=_sse,
    classify=cohere_dialect.classify,
)
COHERE_EMBEDDINGS: Final = Checks(
    request=cohere.embeddings_request,
    answer=cohere.embeddings_answer,
    classify=cohere_dialect.classify,
)
OLLAMA: Final = Checks(
    request=ollama.request,
    answer=ollama.answer,
    stream=ollama.stream,
    body_streams=lambda row: not ollama.whole(row.body),
    classify=ollama_dialect.classify,
)
OLLAMA_EMBEDDINGS: Final = Checks(
    request=ollama.embeddings_request,
    answer=ollama.embeddings_answer,
    classify=ollama_dialect.classify,
)


def checks_of(row: Row) -> Checks | str:
    """The checks of a row's API, or why there are none."""
    match row.api:
        case "chat":
            return CHAT
        case "responses":
            return RESPONSES
        case "messages":
            return MESSAGES
        case "generateContent":
            return GENERATE
        case "converse":
            return CONVERSE
        case "chat_v2":
            return COHERE
        case "ollama_chat":
            return OLLAMA
        case "count_tokens":
            return _count(row)
        case "embeddings":
            return _embeddings(row)
        case "predict":
            return GEMINI_EMBEDDINGS if b'"content"' in row.request_body else "predict: no text"
        case "invoke":
            return _invoke(row)
        case _:
            return row.api


def _count(row: Row) -> Checks | str:
    if row.path.endswith("/messages/count_tokens"):
        return MESSAGES_COUNT
    if row.path.endswith(":countTokens"):
        return GENERATE_COUNT if row.provider in {"gemini", "vertex"} else row.api
    return row.api


def _embeddings(row: Row) -> Checks | str:
    if row.method == "GET":
        return "embeddings: a report"
    if row.path.endswith("/api/embed"):
        return OLLAMA_EMBEDDINGS
    if row.path.endswith("/api/embeddings"):
        return "embeddings: Ollama's older API"
    if row.provider == "cohere":
        return COHERE_EMBEDDINGS
    return GEMINI_EMBEDDINGS if ":" in row.path.rsplit("/", 1)[-1] else EMBEDDINGS


def _invoke(row: Row) -> Checks | str:
    """InvokeModel takes what each model takes: only Claude's and the embeddings' is spoken."""
    if b'"anthropic_version"' in row.request_body:
        return MESSAGES_INVOKED
    return BEDROCK_EMBEDDINGS if bedrock.embeds(row) else "invoke: a model's own form"


def replay(row: Row) -> Outcome:
    """All checks of one recording."""
    found = tuple(dict.fromkeys(_replay(row)))
    return Outcome(row.provider, row.api, row.id, found)


def _replay(row: Row) -> Iterator[Finding]:
    checks = checks_of(row)
    if isinstance(checks, str):
        yield skipped(checks)
        return
    if row.api == "responses":
        aside = [*responses.stored(row)]
        if aside:
            yield from aside
            return
    asked, answered = bool(row.request_body.strip()), bool(row.body.strip())
    if not asked and not answered:
        yield skipped(f"{row.api}: nothing was recorded")
        return
    if asked:
        yield from _guarded("request", checks.request, row)
    if row.status >= 400:
        yield from _guarded("error", lambda row: refusals.refused(row, checks.classify), row)
    elif not answered or checks.answer is None:
        return
    elif checks.stream is not None and checks.body_streams is not None and checks.body_streams(row):
        yield from _guarded("stream", checks.stream, row)
    else:
        yield from _guarded("answer", checks.answer, row)


def _guarded(what: str, check: Check, row: Row) -> Iterator[Finding]:
    try:
        yield from check(row)
    except Exception as error:  # noqa: BLE001 - whatever a dialect raises is what is looked for
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{frame.filename.rpartition('/')[2]}:{frame.name}"
        yield wrong(f"{what}: raised {type(error).__name__} in {place}", error)


CLASSIFIERS: Final[dict[str, refusals.Classify]] = {
    "anthropic": anthropic_dialect.classify,
    "bedrock": bedrock_dialect.classify,
    "cohere": cohere_dialect.classify,
    "gemini": gemini_dialect.classify,
    "vertex": gemini_dialect.classify,
    "ollama": ollama_dialect.classify,
}
"""By provider; the others answer as OpenAI does."""


def classifier(provider: str) -> refusals.Classify:
    return CLASSIFIERS.get(provider, openai_dialect.classify)
