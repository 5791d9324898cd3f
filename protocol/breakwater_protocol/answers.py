"""What a gateway answers, as values: errors, whole answers, and the framing of streams. No IO.

BreakwaterError
    Unreachable             no connection to NATS could be made
    ConnectionLost          the connection is closed for good, or its buffer is full
    NoGateway               connected, but nobody serves this subject
    AnswerTimeout           no answer, or no first message, in time
    StreamBroken            the answer cannot be continued; what was read so far is all there is
        StreamGap           a message is missing or came twice
        StreamStalled       nothing came for the stall timeout
        ReaderTooSlow       more is waiting than may be kept
    MalformedReply          the reply is not what the protocol promises
    GatewayError            the gateway answered with an error: `status`, `code`, `type`
        RequestRefused      400, and any other 4xx that has no class of its own
        NotAuthenticated    401
        NotPermitted        403, or NATS denies the subject
        ModelUnknown        404
        TooLarge            413, or over the server's `max_payload` before anything was sent
        Throttled           429
            BudgetSpent     429 `budget_exhausted`: waiting within the period is useless
        GatewayFailed       5xx
"""

import base64
import binascii
import math
import re
import struct
from collections.abc import Mapping
from typing import Final, Literal, TypeVar
from urllib.parse import unquote

import msgspec
from msgspec import Struct

from breakwater_protocol import headers as h
from breakwater_protocol.chat import Chunk, ModelEntry, ModelList

T = TypeVar("T")


class BreakwaterError(Exception):
    """Base of everything this client raises about the gateway or the bus."""


class Unreachable(BreakwaterError):
    """No connection to NATS; the message names the URL."""


class ConnectionLost(BreakwaterError):
    """The connection is closed for good, or too much waits to be sent."""


class NoGateway(BreakwaterError):
    """NATS answered *no responders*: no router serves this root and API."""


class AnswerTimeout(BreakwaterError):
    """No answer in time; the request was cancelled."""


class StreamBroken(BreakwaterError):
    """The answer ended without its end; the request was cancelled."""


class StreamGap(StreamBroken):
    """Message `expected` was due and `got` came: one was lost or came twice."""

    def __init__(self, *, expected: int, got: int) -> None:
        super().__init__(f"message {expected} of the stream was due, {got} came")
        self.expected = expected
        self.got = got


class StreamStalled(StreamBroken):
    """Nothing came for the stall timeout."""


class ReaderTooSlow(StreamBroken):
    """The reader left more messages or bytes waiting than may be kept."""


class MalformedReply(BreakwaterError):
    """Something that is not a Breakwater gateway, or not of this version, answered."""


class AnswerInfo(Struct, frozen=True):
    """What an answer says of itself, from its `breakwater-` headers; unknown is empty, 0 or None."""

    request_id: str
    model: str = ""
    """The logical model, decoded: the header is percent-encoded."""
    deployment: str = ""
    rung: str = ""
    cache: str = ""
    similarity: float | None = None
    attempts: int = 0
    cost_usd: float | None = None
    overhead_ms: float | None = None
    budget_remaining: str = ""
    partial: str = ""
    """Why the answer is partial; empty when it is whole."""
    dropped_params: tuple[str, ...] = ()
    seam: str = ""
    """The deployment that went on with a stream when the first one broke off; empty for an answer of one piece."""
    cache_id: str = ""
    """Of an answer that was given again: what feedback on it names."""


class GatewayError(BreakwaterError):
    """The gateway's error reply. `should_retry` is the gateway's own word, None when it gave none."""

    def __init__(
        self,
        *,
        status: int,
        code: str,
        type: str,  # noqa: A002 - OpenAI's name of the field
        message: str,
        param: str | None = None,
        retry_after_s: float | None = None,
        should_retry: bool | None = None,
        info: AnswerInfo | None = None,
    ) -> None:
        super().__init__(f"{code}: {message}" if code else message)
        self.status = status
        self.code = code
        self.type = type
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        self.should_retry = should_retry
        self.info = info


class RequestRefused(GatewayError): ...


class NotAuthenticated(GatewayError): ...


class NotPermitted(GatewayError): ...


class ModelUnknown(GatewayError): ...


class TooLarge(GatewayError): ...


class Throttled(GatewayError): ...


class BudgetSpent(Throttled): ...


class GatewayFailed(GatewayError): ...


_BY_CODE: Final[Mapping[str, type[GatewayError]]] = {"budget_exhausted": BudgetSpent}
_BY_STATUS: Final[Mapping[int, type[GatewayError]]] = {
    401: NotAuthenticated,
    403: NotPermitted,
    404: ModelUnknown,
    413: TooLarge,
    429: Throttled,
}


class FunctionCall(Struct, frozen=True):
    name: str = ""
    arguments: str = ""
    """JSON, as the model wrote it."""


class ToolCall(Struct, frozen=True):
    id: str = ""
    type: str = "function"
    function: FunctionCall = FunctionCall()


class AnswerMessage(Struct, frozen=True):
    role: str = "assistant"
    content: str | None = None
    refusal: str | None = None
    tool_calls: tuple[ToolCall, ...] | None = None


class Choice(Struct, frozen=True):
    message: AnswerMessage
    index: int = 0
    finish_reason: str | None = None


class OpenAIUsage(Struct, frozen=True):
    """Tokens as OpenAI's API counts them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0


class CompletionBody(Struct, frozen=True):
    choices: tuple[Choice, ...]
    id: str = ""
    model: str = ""
    usage: OpenAIUsage | None = None


class Completion(Struct, frozen=True):
    """A whole answer. `raw` is the OpenAI response object as it came."""

    choices: tuple[Choice, ...]
    usage: OpenAIUsage | None
    raw: bytes
    info: AnswerInfo

    @property
    def text(self) -> str:
        """Of the first choice; empty when it has none, for example with tool calls."""
        return (self.choices[0].message.content or "") if self.choices else ""

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        return (self.choices[0].message.tool_calls or ()) if self.choices else ()

    @property
    def finish_reason(self) -> str | None:
        return self.choices[0].finish_reason if self.choices else None


class EmbeddingRow(Struct, frozen=True):
    embedding: tuple[float, ...] | str
    index: int = 0


class EmbeddingsBody(Struct, frozen=True):
    data: tuple[EmbeddingRow, ...]
    model: str = ""
    usage: OpenAIUsage | None = None


class Embeddings(Struct, frozen=True):
    """One vector an input, in the input's order, whichever encoding they travelled in."""

    vectors: tuple[tuple[float, ...], ...]
    model: str
    usage: OpenAIUsage | None
    raw: bytes
    info: AnswerInfo


class ErrorObject(Struct, frozen=True):
    message: str = ""
    type: str = ""
    code: str | int | None = None
    param: str | None = None


class ErrorBody(Struct, frozen=True):
    error: ErrorObject


_chunks: Final = msgspec.json.Decoder(Chunk)
_completions: Final = msgspec.json.Decoder(CompletionBody)
_embeddings: Final = msgspec.json.Decoder(EmbeddingsBody)
_models: Final = msgspec.json.Decoder(ModelList)
_errors: Final = msgspec.json.Decoder(ErrorBody)

Verdict = Literal["chunk", "end", "ignore"]


class StreamFrames:
    """Which messages belong to a streamed answer, and in what order: pure arithmetic on headers.

    It locks on the attempt whose message 0 came first, so a worker given up for lost cannot splice
    itself into its successor's answer. A later attempt takes over only where its message says so
    (`breakwater-seam`) and bears the number that is due. Only the router speaks without a number: to
    end an answer whose worker died, or to refuse the request.
    """

    __slots__ = ("attempt", "expected")

    def __init__(self) -> None:
        self.attempt = 0
        """The attempt locked on; 0 while there is none."""
        self.expected = 0

    def take(self, headers: Mapping[str, str]) -> Verdict:
        """Raises `StreamGap` and `MalformedReply`."""
        said = headers.get(h.ATTEMPT)
        attempt = 1 if said is None else _count(said, h.ATTEMPT)
        ends = h.END in headers or h.SERVICE_ERROR_CODE in headers
        number = headers.get(h.SEQ)
        if number is None:
            if said is not None and self.attempt and attempt != self.attempt:
                return "ignore"
            if not ends:
                raise MalformedReply("a message of a stream has no number")
            return "end"
        seq = _count(number, h.SEQ)
        if not self.attempt:
            if seq:
                raise StreamGap(expected=0, got=seq)
            self.attempt = attempt
        elif attempt > self.attempt and h.SEAM in headers:
            self.attempt = attempt
        elif attempt != self.attempt:
            return "ignore"
        if seq != self.expected:
            raise StreamGap(expected=self.expected, got=seq)
        self.expected += 1
        return "end" if ends else "chunk"


def _count(text: str, header: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise MalformedReply(f"{header} is {text[:80]!r}, not a number")
    return int(text)


def _number(text: str | None) -> float | None:
    """None for what is absent, no number or not finite: information, not worth an answer."""
    try:
        value = float(text) if text is not None else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def info_of(request: str, said: Mapping[str, str], *, partial: str) -> AnswerInfo:
    dropped = said.get(h.DROPPED_PARAMS, "")
    return AnswerInfo(
        request_id=request,
        model=unquote(said.get(h.MODEL, "")),
        deployment=said.get(h.DEPLOYMENT, ""),
        rung=said.get(h.RUNG, ""),
        cache=said.get(h.CACHE, ""),
        similarity=_number(said.get(h.SIMILARITY)),
        attempts=int(_number(said.get(h.ATTEMPTS)) or 0),
        cost_usd=_number(said.get(h.COST_USD)),
        overhead_ms=_number(said.get(h.OVERHEAD_MS)),
        budget_remaining=said.get(h.BUDGET_REMAINING, ""),
        partial=partial,
        dropped_params=tuple(part.strip() for part in dropped.split(",") if part.strip()),
        seam=said.get(h.SEAM, ""),
        cache_id=said.get(h.CACHE_ID, ""),
    )


def nobody(data: bytes, headers: Mapping[str, str]) -> bool:
    """NATS's own answer where a subject has no subscriber."""
    return not data and headers.get(h.NATS_STATUS) == "503"


def error_of(data: bytes, headers: Mapping[str, str], info: AnswerInfo) -> GatewayError:
    """The error that a reply describes; a body that is no error object leaves its headers' word."""
    said = headers.get(h.SERVICE_ERROR_CODE, "")
    status = int(said) if re.fullmatch(r"[45][0-9]{2}", said) else 502
    line = headers.get(h.SERVICE_ERROR, "")
    try:
        found = _errors.decode(data).error if data else ErrorObject()
    except (msgspec.DecodeError, UnicodeDecodeError):
        found = ErrorObject()
    code = "" if found.code is None else str(found.code)
    family = RequestRefused if status < 500 else GatewayFailed
    kind = _BY_CODE.get(code) or _BY_STATUS.get(status, family)
    retry = headers.get(h.SHOULD_RETRY)
    wait_s = _number(headers.get(h.RETRY_AFTER))
    return kind(
        status=status,
        code=code,
        type=found.type,
        message=found.message or line or "the gateway gave no reason",
        param=found.param,
        retry_after_s=wait_s if wait_s is not None and wait_s >= 0 else None,
        should_retry=None if retry is None else retry == "true",
        info=info,
    )


def chunks_of(data: bytes) -> list[Chunk]:
    """The chunk objects of one message, one a line. Raises `MalformedReply`."""
    try:
        return _chunks.decode_lines(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MalformedReply(f"a message of the stream holds no chunks: {error}") from error


def completion_of(data: bytes, info: AnswerInfo) -> Completion:
    body = _decoded(_completions, data)
    return Completion(choices=body.choices, usage=body.usage, raw=data, info=info)


def embeddings_of(data: bytes, info: AnswerInfo) -> Embeddings:
    body = _decoded(_embeddings, data)
    rows = sorted(body.data, key=lambda row: row.index)
    return Embeddings(
        vectors=tuple(_vector(row.embedding) for row in rows),
        model=body.model,
        usage=body.usage,
        raw=data,
        info=info,
    )


def models_of(data: bytes) -> tuple[ModelEntry, ...]:
    return tuple(_decoded(_models, data).data)


def _decoded(decoder: "msgspec.json.Decoder[T]", data: bytes) -> T:
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MalformedReply(f"the answer is not of its API's shape: {error}") from error


def _vector(sent: tuple[float, ...] | str) -> tuple[float, ...]:
    """OpenAI's base64 form holds little-endian 32-bit floats."""
    if not isinstance(sent, str):
        return sent
    try:
        raw = base64.b64decode(sent, validate=True)
        return struct.unpack(f"<{len(raw) // 4}f", raw)
    except (binascii.Error, struct.error) as error:
        raise MalformedReply(f"an embedding is not base64 of 32-bit floats: {error}") from error
