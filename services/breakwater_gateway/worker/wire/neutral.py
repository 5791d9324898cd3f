"""The neutral vocabulary: what every dialect is decoded to and encoded from.

N inbound and M outbound dialects meet here, so each is one file and none knows another. It holds what at
least two providers can say; what only one can say stays native: `extra` fields keep the source dialect's
own JSON, byte for byte, and are written back when the same dialect encodes. An encoder of another dialect
reports every non-empty `extra`, and every field that it cannot express, as dropped.

Conventions: `Raw` is JSON as it came; `arguments` of a tool call is the JSON text the model wrote, valid or
not; media are base64 text exactly as received; token counts follow `chat.Usage`.
"""

from collections.abc import Mapping
from typing import Final, Literal, Protocol

from msgspec import Raw, Struct

from breakwater_protocol.chat import Usage
from breakwater_protocol.failures import Failure

DialectName = Literal[
    "openai", "responses", "anthropic", "gemini", "bedrock", "cohere", "ollama", "mistral"
]

Extra = dict[str, Raw]
"""Native fields by name, of the dialect that the value was decoded from."""

Layout = dict[str, Raw]
"""How the source dialect wrote something, where it has several ways: ids and states of entries, defaults
spelled out, what was one entry. It asks for nothing: only the same dialect reads it, none reports it."""

# ---- what turns are made of


class _Part(Struct, frozen=True, kw_only=True, omit_defaults=True):
    extra: Extra = {}
    layout: Layout = {}


class Text(_Part, frozen=True, tag="text"):
    text: str


class Image(_Part, frozen=True, tag="image"):
    """Exactly one of `data` (base64) with `media_type`, `url`, or `file_id` is set."""

    media_type: str = ""
    data: str = ""
    url: str = ""
    file_id: str = ""
    detail: str = ""


class Document(_Part, frozen=True, tag="document"):
    """A PDF or another file; `text` for plain-text documents given inline."""

    media_type: str = ""
    data: str = ""
    url: str = ""
    file_id: str = ""
    text: str = ""
    name: str = ""


class Audio(_Part, frozen=True, tag="audio"):
    """`format` is `wav`, `mp3`, …; `url` or base64 `data`."""

    format: str = ""
    data: str = ""
    url: str = ""


class Video(_Part, frozen=True, tag="video"):
    media_type: str = ""
    data: str = ""
    url: str = ""


class Thinking(_Part, frozen=True, tag="thinking"):
    """A reasoning block. `signature` and `redacted` are the provider's opaque proofs, to be echoed."""

    text: str = ""
    signature: str = ""
    redacted: str = ""
    id: str = ""


class Refusal(_Part, frozen=True, tag="refusal"):
    text: str


class ToolCall(_Part, frozen=True, tag="tool_call"):
    """`arguments`: JSON text. `signature`: Gemini's thought signature on the call."""

    id: str
    name: str
    arguments: str = "{}"
    signature: str = ""


class ToolResult(_Part, frozen=True, tag="tool_result"):
    """`name` may be unknown (OpenAI gives only the id). `plain`: as in `Turn`."""

    call_id: str
    name: str = ""
    content: list["Part"] = []
    is_error: bool = False
    plain: bool = False


class Native(_Part, frozen=True, tag="native"):
    """A block that only `dialect` has (hosted tools and their results, code execution, …)."""

    dialect: DialectName
    raw: Raw


Part = Text | Image | Document | Audio | Video | Thinking | Refusal | ToolCall | ToolResult | Native

Role = Literal["system", "developer", "user", "assistant", "tool"]


class Turn(Struct, frozen=True, omit_defaults=True):
    """`plain`: the content was one string, not a list of parts, and is encoded so again."""

    role: Role
    parts: list[Part] = []
    name: str = ""
    plain: bool = False
    extra: Extra = {}
    layout: Layout = {}


# ---- what is asked for


class Tool(Struct, frozen=True, omit_defaults=True, tag="function"):
    """A function. `schema` is its JSON Schema; None when the caller gave none.

    `source_schema` is what the source dialect wrote where that was no JSON Schema (Gemini's OpenAPI
    subset): it says the same as `schema`, for the encoder of that dialect alone.
    """

    name: str
    description: str | None = None
    schema: Raw | None = None
    strict: bool | None = None
    extra: Extra = {}
    source_schema: Raw | None = None


class NativeTool(Struct, frozen=True, tag="native"):
    """A hosted tool that only `dialect` has."""

    dialect: DialectName
    raw: Raw


class ToolChoice(Struct, frozen=True, omit_defaults=True):
    mode: Literal["auto", "none", "required", "named"]
    names: list[str] = []
    extra: Extra = {}


class OutputFormat(Struct, frozen=True, omit_defaults=True):
    """`json`: any JSON object; `schema`: JSON that fits `schema`. `source_schema`: as in `Tool`."""

    kind: Literal["text", "json", "schema"]
    schema: Raw | None = None
    name: str = ""
    description: str | None = None
    strict: bool | None = None
    extra: Extra = {}
    source_schema: Raw | None = None


class Reasoning(Struct, frozen=True, omit_defaults=True):
    """How much to think. `effort` as OpenAI spells it (`none minimal low medium high xhigh max`);
    `budget` in tokens; `off` when the caller switches thinking off; `show` asks for summaries."""

    effort: str = ""
    budget: int | None = None
    off: bool = False
    show: str = ""
    extra: Extra = {}


class Request(Struct, frozen=True, omit_defaults=True):
    """One chat request. None and empty mean: not asked for."""

    dialect: DialectName
    """Whose `extra` fields these are."""
    model: str
    turns: list[Turn] = []
    """System prompts are turns too, in their place."""
    tools: list[Tool | NativeTool] = []
    tool_choice: ToolChoice | None = None
    parallel_tools: bool | None = None
    max_output: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop: list[str] = []
    seed: int | None = None
    n: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: Raw | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    format: OutputFormat | None = None
    reasoning: Reasoning | None = None
    user: str = ""
    service_tier: str = ""
    stream: bool = False
    usage_wanted: bool = False
    """OpenAI's `stream_options.include_usage`; the other dialects always show usage."""
    extra: Extra = {}
    layout: Layout = {}


# ---- what comes back

Finish = Literal["stop", "length", "tool_calls", "content_filter", "error", ""]
"""Neutral finish reasons; empty while the answer goes on. `native` beside it is the provider's own word."""


class Candidate(Struct, frozen=True, omit_defaults=True):
    parts: list[Part] = []
    finish: Finish = ""
    native: str = ""
    stop_sequence: str = ""
    logprobs: Raw | None = None
    extra: Extra = {}


class Answer(Struct, frozen=True, omit_defaults=True):
    """A whole answer. `created` is Unix seconds, 0 when the provider does not say."""

    dialect: DialectName
    id: str = ""
    model: str = ""
    created: int = 0
    candidates: list[Candidate] = []
    usage: Usage | None = None
    service_tier: str = ""
    extra: Extra = {}


# ---- what comes back bit by bit


class Began(Struct, frozen=True, tag="began"):
    """Always first."""

    id: str = ""
    model: str = ""
    created: int = 0
    extra: Extra = {}


class PartBegan(Struct, frozen=True, tag="part_began"):
    """A part opens. `part` carries what is known at once: an empty `Text`, a `ToolCall` with id and name and
    `arguments=""`, a whole `Native`… `index` counts the parts of that candidate from 0."""

    index: int
    part: Part
    candidate: int = 0


class Grew(Struct, frozen=True, tag="grew"):
    """More of an open part. For a text, thinking or refusal part `text` is more text; for a tool call it is a
    fragment of the arguments; `signature` is more of a thinking part's signature."""

    index: int
    text: str = ""
    signature: str = ""
    logprobs: Raw | None = None
    extra: Extra = {}
    candidate: int = 0


class PartEnded(Struct, frozen=True, tag="part_ended"):
    """Every part that began ends, before its candidate finishes."""

    index: int
    candidate: int = 0


class Finished(Struct, frozen=True, tag="finished"):
    """A candidate is whole. At most once a candidate, whatever the provider repeats."""

    finish: Finish
    native: str = ""
    stop_sequence: str = ""
    candidate: int = 0
    extra: Extra = {}


class UsageKnown(Struct, frozen=True, tag="usage_known"):
    """Cumulative; the last one counts. `extra` may keep the provider's own usage object."""

    usage: Usage
    extra: Extra = {}


class Broke(Struct, frozen=True, tag="broke"):
    """The provider reported a failure inside its stream; nothing follows."""

    failure: Failure


class Done(Struct, frozen=True, tag="done"):
    """The provider ended the stream as its API promises. Absent after a cut."""


StreamEvent = Began | PartBegan | Grew | PartEnded | Finished | UsageKnown | Broke | Done


# ---- what a dialect is


class Call(Struct, frozen=True):
    """An HTTP call to make: `path` is appended to the deployment's base URL, `headers` to its own."""

    path: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()
    dropped: tuple[str, ...] = ()
    """Names of what the caller asked for and this dialect cannot express, e.g. `logit_bias`."""


class Embeddings(Struct, frozen=True, omit_defaults=True):
    """An embeddings request. `inputs` are texts, or lists of token ids."""

    dialect: DialectName
    model: str
    inputs: list[str | list[int]]
    dimensions: int | None = None
    encoding: Literal["float", "base64"] = "float"
    task: str = ""
    user: str = ""
    extra: Extra = {}


class EmbeddingsAnswer(Struct, frozen=True, omit_defaults=True):
    """Vectors in the order of the inputs."""

    model: str
    vectors: list[list[float]]
    usage: Usage | None = None
    extra: Extra = {}


class StreamDecoder(Protocol):
    """Reads one provider stream. Incremental: cut at any byte, the events are the same."""

    def feed(self, data: bytes) -> list[StreamEvent]:
        """Bytes of the body as they arrive. Never raises on what a provider sends."""
        ...

    def end(self) -> list[StreamEvent]:
        """The body is over: closes what is open. Without a proper end there is no `Done`."""
        ...


class StreamEncoder(Protocol):
    """Writes one stream in the caller's dialect: JSON objects, one a chunk or event, without SSE framing.

    For dialects with named events (`anthropic`, `responses`) the object's `type` is the SSE event name.
    """

    def feed(self, events: list[StreamEvent]) -> list[bytes]: ...
    def goes_on_from(self, source: DialectName) -> None:
        """The events from here on were decoded from that dialect."""
        ...


class Target(Struct, frozen=True):
    """The deployment as an encoder sees it."""

    model: str
    quirks: Mapping[str, object] = {}
    """Facts of the host, from the catalogue; each dialect documents the ones it knows."""


EVENT_BYTES_MAX: Final = 8 * 1024 * 1024
"""Bound on one event, line or frame of a provider's stream."""
