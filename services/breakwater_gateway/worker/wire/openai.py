"""OpenAI's dialect: chat completions, streams and embeddings.

Pure translation, bytes to bytes and bytes to facts. Bodies are passed on as they came: only the
fields the gateway owns (model, stream options, token limit) are replaced, and of an answer only usage,
finish and errors are read.

Source: OpenAI API reference, "Create chat completion", "Chat completion chunk", "Create embeddings",
"Error codes".
"""

import base64
import struct
from typing import Final, Literal

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from breakwater_gateway.worker.wire.openai_chat.errors import classify, not_json
from breakwater_gateway.worker.wire.openai_chat.fields import UNREADABLE
from breakwater_gateway.worker.wire.openai_chat.usage import WireUsage
from breakwater_protocol import failures as f
from breakwater_protocol.chat import Usage

__all__ = [
    "FIELDS_MAX",
    "PATHS",
    "Answer",
    "ChatStream",
    "Step",
    "TooManyFields",
    "classify",
    "decode_answer",
    "encode_request",
]

PATHS: Final = {"chat": "/chat/completions", "embeddings": "/embeddings"}

FIELDS_MAX: Final = 256
"""Top-level fields of a request body; OpenAI's own API has some forty."""

_fields = msgspec.json.Decoder(dict[str, Raw])
_encode = msgspec.json.encode

_STREAM_TRUE: Final = Raw(b"true")
_USAGE_ON: Final = Raw(b'{"include_usage":true}')


class TooManyFields(ValueError):
    """A body with more than `FIELDS_MAX` top-level fields."""


def encode_request(body: Raw, *, model: str, api: str, stream: bool) -> bytes:
    """The caller's body with our model and, on streams, usage always asked for.

    Raises `TooManyFields`, or `msgspec.DecodeError` for a body that is no JSON object.
    """
    fields = _fields.decode(body)
    if len(fields) > FIELDS_MAX:
        raise TooManyFields(
            f"a body may have {FIELDS_MAX} top-level fields, this one has {len(fields)}"
        )
    fields["model"] = Raw(_encode(model))
    if api == "chat" and stream:
        options = fields.get("stream_options")
        if options is None or bytes(options) in {b"null", b"{}"}:
            fields["stream_options"] = _USAGE_ON
        else:
            given = _fields.decode(options)
            given["include_usage"] = _STREAM_TRUE
            fields["stream_options"] = Raw(_encode(given))
    return _encode(fields)


# ---------------------------------------------------------------- whole answers


class Answer(Struct, frozen=True):
    """A whole answer, ready to be sent on."""

    body: bytes
    usage: Usage | None
    finish: str = ""


class _AnswerChoice(Struct):
    finish_reason: str | None = None


class _ChatAnswer(Struct):
    choices: list[_AnswerChoice] | None = None
    usage: WireUsage | None = None
    error: Raw | UnsetType = UNSET
    object: str | UnsetType | None = UNSET


class _Embedding(Struct, omit_defaults=True):
    embedding: str | list[float]
    index: int
    object: str = "embedding"


class _EmbeddingsAnswer(Struct):
    data: list[Raw] | None = None
    usage: WireUsage | None = None
    error: Raw | UnsetType = UNSET


_chat_answer = msgspec.json.Decoder(_ChatAnswer)
_embeddings_answer = msgspec.json.Decoder(_EmbeddingsAnswer)
_embedding = msgspec.json.Decoder(_Embedding)


def decode_answer(body: bytes, *, api: str, encoding: str | None = None) -> Answer | f.Failure:
    """The provider's 200 as an answer, or the failure that hides in it."""
    if api == "embeddings":
        return _decode_embeddings(body, encoding)
    try:
        answer = _chat_answer.decode(body)
    except UNREADABLE:
        return f.MalformedAnswer(not_json(body), provider_status=200)
    if answer.error is not UNSET and bytes(answer.error) != b"null":
        return classify(200, {}, body, now=0.0)
    if not answer.choices:
        if answer.object == "error":
            return classify(200, {}, body, now=0.0)
        return f.MalformedAnswer("the provider's answer has no choices", provider_status=200)
    return Answer(
        body=body,
        usage=answer.usage.normal() if answer.usage else None,
        finish=answer.choices[0].finish_reason or "",
    )


def _decode_embeddings(body: bytes, encoding: str | None) -> Answer | f.Failure:
    try:
        answer = _embeddings_answer.decode(body)
        if answer.error is not UNSET and bytes(answer.error) != b"null":
            return classify(200, {}, body, now=0.0)
        if not answer.data:
            return f.MalformedAnswer("the provider's answer has no embeddings", provider_status=200)
        wanted = encoding or "float"
        first = _embedding.decode(answer.data[0])
        if isinstance(first.embedding, str) != (wanted == "base64"):
            body = _reencode(body, answer.data, wanted)
    except (*UNREADABLE, ValueError, struct.error):
        return f.MalformedAnswer(not_json(body), provider_status=200)
    return Answer(body=body, usage=answer.usage.normal() if answer.usage else None)


def _reencode(body: bytes, data: list[Raw], wanted: str) -> bytes:
    """Hosts that ignore `encoding_format` get it done for them: SDKs ask for base64 by default."""
    fields = _fields.decode(body)
    items = []
    for raw in data:
        item = _embedding.decode(raw)
        vector = item.embedding
        if wanted == "base64" and not isinstance(vector, str):
            vector = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode("ascii")
        elif wanted == "float" and isinstance(vector, str):
            packed = base64.b64decode(vector, validate=True)
            vector = list(struct.unpack(f"<{len(packed) // 4}f", packed))
        items.append({"object": "embedding", "index": item.index, "embedding": vector})
    fields["data"] = Raw(_encode(items))
    return _encode(fields)


# ---------------------------------------------------------------- streams


class _StreamChoice(Struct):
    finish_reason: str | None = None
    delta: Raw | UnsetType = UNSET


class _StreamEvent(Struct):
    choices: list[_StreamChoice] | None = None
    usage: WireUsage | None = None
    error: Raw | UnsetType = UNSET
    object: str | UnsetType | None = UNSET


_stream_event = msgspec.json.Decoder(_StreamEvent)


class Step(Struct, frozen=True):
    """What one event of a stream means."""

    kind: Literal["content", "prelude", "quiet", "done"]
    """`prelude`: a role or padding before anything was said; `quiet`: not for this caller."""
    data: bytes = b""


_DELTA_BYTES: Final = len(b'{"content":""}')
_DONE: Final = Step("done")
_QUIET: Final = Step("quiet")


class ChatStream:
    """Reads the events of one chat stream: what to pass on, the usage, whether it has finished.

    `feed` takes the data of one server-sent event and returns a step, or the failure it carries.
    """

    __slots__ = (
        "_bytes",
        "_envelope",
        "_pieces",
        "_spoke",
        "_usage_wanted",
        "done",
        "finish",
        "usage",
    )

    def __init__(self, *, usage_wanted: bool) -> None:
        self._usage_wanted = usage_wanted
        self._spoke = False
        self.usage: Usage | None = None
        self.finish = ""
        self.done = False
        self._bytes = 0
        self._envelope = 0
        """Bytes of an event around what it says, as the first one had it."""
        self._pieces = 0

    @property
    def said(self) -> int:
        """Bytes of what was said so far, more or less: events are taken to be as wide as the first."""
        return max(0, self._bytes - self._pieces * self._envelope)

    @property
    def pieces(self) -> int:
        """Events that said something; the finish is not one."""
        return self._pieces - (1 if self.finish and self._pieces > 1 else 0)

    @property
    def whole(self) -> bool:
        """The provider said that the answer is complete."""
        return self.done or bool(self.finish)

    def feed(self, data: bytes) -> Step | f.Failure:
        if data == b"[DONE]":
            self.done = True
            return _DONE
        if not data.strip():
            return _QUIET
        try:
            event = _stream_event.decode(data)
        except UNREADABLE:
            return f.MalformedAnswer(
                "the provider's stream holds an event that is not the JSON its API promises",
                provider_status=200,
            )
        if event.error is not UNSET and bytes(event.error) != b"null":
            return classify(200, {}, data, now=0.0)
        if event.usage is not None:
            # Some hosts repeat it on several chunks: the last one counts.
            self.usage = event.usage.normal()
        if b"\n" in data:
            # Events travel one a line; a newline in JSON is only ever white space.
            data = data.replace(b"\r", b" ").replace(b"\n", b" ")
        if not event.choices:
            if event.object == "error":
                # Mistral, and vLLM of old: the event itself is the error object.
                return classify(200, {}, data, now=0.0)
            if event.usage is not None and not self._usage_wanted:
                return _QUIET
            return Step("content" if self._spoke else "prelude", data)
        spoke = self._spoke
        for choice in event.choices:
            if choice.finish_reason:
                self.finish = choice.finish_reason
                spoke = True
            elif not spoke and choice.delta is not UNSET:
                spoke = _says_something(choice.delta)
        if spoke:
            if not self._spoke:
                self._envelope = len(data) - _said_in(event.choices)
                self._spoke = True
            self._bytes += len(data)
            self._pieces += 1
        return Step("content" if spoke else "prelude", data)


def _said_in(choices: list[_StreamChoice]) -> int:
    sizes = [memoryview(c.delta).nbytes for c in choices if c.delta is not UNSET]
    return sum(max(0, size - _DELTA_BYTES) for size in sizes)


def _says_something(delta: Raw) -> bool:
    try:
        parts = _fields.decode(delta)
    except UNREADABLE:
        return False
    return any(
        name != "role" and bytes(value) not in {b'""', b"null", b"[]", b"{}"}
        for name, value in parts.items()
    )
