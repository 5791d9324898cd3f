"""Tokens of a request before any provider has counted them: a strict ceiling and a learned estimate.

The ceiling rests on one fact: no tokenizer in use makes more tokens than the text has UTF-8 bytes, and
JSON writes a text with at least as many bytes as it has. What a body only *refers* to (pictures,
recordings, files, state kept at the provider) is bounded by a table, or by the model's context window.
The estimate is a line per model, tokens = overhead + slope x size, fitted to settled calls with
exponential decay: hidden prompts dominate short requests and differ from model to model.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Final, Literal

import msgspec
from msgspec import Struct

LINES_MAX: Final = 2_048
"""Names come from callers where a deployment passes them on."""
CONTEXT_MAX: Final = 2_000_000
"""Of a model whose context window nobody has configured."""

HIDDEN: Final = 512
"""What providers add to any request: chat templates, dates, a word on safety. A message's own 16 are within its
JSON, which is longer."""
HIDDEN_OF_TOOLS: Final = 2_048
"""What they add to one with tools, a format or a mode of reasoning: prompts that explain those."""

IMAGE: Final = 50_000
"""gpt-4o-mini counts 2,833 + 5,667 a tile of 512, at most eight after scaling; all others far less."""
AUDIO_PER_BYTE: Final = 1 / 32
"""32 tokens a second (Gemini; OpenAI has 10) of speech at 8 kbit/s, the least that is intelligible."""
AUDIO_LEAST: Final = 64
DOCUMENT_PER_BYTE: Final = 8
"""A page costs its text and a picture, 4,600 together, and takes 600 bytes when nearly empty."""
DOCUMENT_LEAST: Final = 16_384
ELSEWHERE: Final = 1_000_000
"""A document, a recording or a film of which the body has only the address."""

_TEXTUAL: Final = frozenset(
    {"arguments", "args", "input", "parameters", "input_schema", "response"}
)
"""Objects that the model sees as text, whatever shape they have."""
_TURNS: Final = frozenset(
    {"messages", "input", "contents", "system", "systemInstruction", "system_instruction"}
)
Kind = Literal["image", "audio", "document"]
_ADDRESSES: Final = frozenset(
    {"url", "image_url", "file_url", "file_id", "fileUri", "file_uri", "s3Location"}
)
_PAYLOADS: Final = frozenset({"data", "file_data", "bytes"})
_SHAPES: Final[dict[str, Kind]] = {
    "image": "image",
    "image_url": "image",
    "input_image": "image",
    "audio": "audio",
    "input_audio": "audio",
    "document": "document",
    "file": "document",
    "input_file": "document",
    "video": "document",
    "video_url": "document",
    "container_upload": "document",
    "inlineData": "document",
    "inline_data": "document",
    "fileData": "document",
    "file_data": "document",
}
"""Names that mark a part of a turn as media: OpenAI and Anthropic as `type`, Gemini and Bedrock as key."""


_STORED: Final = (
    *("previous_response_id", "conversation", "cachedContent", "cached_content"),
    *("container", "mcp_servers", "plugins", "connectors"),
)
"""Fields that bring in text which is not in the body."""
_PLAIN_TOOLS: Final = frozenset({"function", "custom"})
_PLAIN_TOOL_FIELDS: Final = frozenset({"functionDeclarations", "function_declarations", "toolSpec"})
_SCHEMAS: Final = ("response_format", "responseSchema", "responseJsonSchema", "format", "schema")
_FORMAT_HOLDERS: Final = ("text", "output_config", "generationConfig", "generation_config")
_NODES_MAX: Final = 200_000
_LARGE: Final = 65_536


class Size(Struct, frozen=True):
    """How much a request's body asks a model to read."""

    text_bytes: int
    """Of the body, without the payloads of media."""
    media_tokens: int = 0
    """At most, for pictures, recordings and files."""
    open_ended: bool = False
    """It brings in text that is not in the body: hosted tools, state or files at the provider."""
    tools: bool = False
    schema: bool = False
    """Tools and structured output, for which providers add prompts of their own."""
    reasoning: bool = False
    """A mode of reasoning is asked for, which brings prompts too."""

    def upper(self, context_window: int | None = None) -> int:
        """No provider counts more input than that, up to `context_window`, beyond which it refuses.

        Models that search by themselves, such as Groq's compound ones, count what they found as well:
        those need `context_window` as their bound.
        """
        ceiling = context_window if context_window is not None else CONTEXT_MAX
        if self.open_ended:
            return ceiling
        explained = self.tools or self.schema or self.reasoning
        hidden = HIDDEN_OF_TOOLS if explained else HIDDEN
        return min(self.text_bytes + self.media_tokens + hidden, ceiling)


def measure(body: bytes) -> Size:
    """The size of a request in any dialect; of a body that is none, open ended."""
    # What takes far more memory decoded than it has bytes is not worth a nearer bound.
    if len(body) > _LARGE and body.count(b"[") + body.count(b"{") > _NODES_MAX:
        return Size(len(body), open_ended=True)
    try:
        found = msgspec.json.decode(body)
    except (msgspec.MsgspecError, RecursionError):
        return Size(len(body), open_ended=True)
    if not isinstance(found, dict):
        return Size(len(body), open_ended=True)
    payload, tokens = 0, 0
    for name in _TURNS & found.keys():
        more_payload, more_tokens = _media(found[name])
        payload += more_payload
        tokens += more_tokens
    tools = _tools(found)
    return Size(
        text_bytes=max(0, len(body) - payload),
        media_tokens=tokens,
        open_ended=(
            any(found.get(name) for name in _STORED)
            or found.get("web_search_options") is not None
            # A text there is the completions API's prompt, an object one that is stored.
            or isinstance(found.get("prompt"), dict)
            or not all(map(_is_plain, tools))
        ),
        tools=bool(tools),
        schema=_has_schema(found),
        reasoning="reasoning" in found,
    )


def _tools(found: Mapping[str, object]) -> list[object]:
    tools = found.get("tools")
    if tools is None and isinstance(config := found.get("toolConfig"), dict):
        tools = config.get("tools")  # Bedrock's
    return tools if isinstance(tools, list) else []


def _is_plain(tool: object) -> bool:
    """A tool that is described in the body and runs at the caller."""
    if not isinstance(tool, dict):
        return False
    kind = tool.get("type")
    if kind is not None:
        return isinstance(kind, str) and kind in _PLAIN_TOOLS
    return "input_schema" in tool or _PLAIN_TOOL_FIELDS.issuperset(tool)


def _has_schema(found: Mapping[str, object]) -> bool:
    if found.get("response_format"):
        return True
    for holder in _FORMAT_HOLDERS:
        inner = found.get(holder)
        if isinstance(inner, dict) and any(inner.get(name) for name in _SCHEMAS):
            return True
    return False


def _media(found: object) -> tuple[int, int]:
    """Bytes of media payloads, and the most tokens that all media can cost, anywhere in turns."""
    payload, tokens = 0, 0
    # A stack, since bodies nest as deep as a caller likes.
    waiting = [found]
    while waiting:
        each = waiting.pop()
        if isinstance(each, list):
            waiting += each
        elif isinstance(each, dict):
            kind = each.get("type")
            shape = _SHAPES.get(kind) if isinstance(kind, str) else None
            if shape is not None:
                here, cost = _medium(each, shape)
                payload += here
                tokens += cost
                # Anthropic's document of blocks holds parts of its own.
                source = each.get("source")
                if isinstance(source, dict):
                    waiting.append(source.get("content"))
                continue
            for name, value in each.items():
                if name in _SHAPES and isinstance(value, dict):
                    here, cost = _medium(value, _SHAPES[name])
                    payload += here
                    tokens += cost
                elif name not in _TEXTUAL and isinstance(value, (list, dict)):
                    waiting.append(value)
    return payload, tokens


def _medium(part: Mapping[str, object], shape: Kind) -> tuple[int, int]:
    """One medium: its payload's bytes and its most tokens. Fields are looked for two levels deep."""
    fields: list[tuple[str, object]] = list(part.items())
    for value in part.values():
        if isinstance(value, dict):
            fields += value.items()
            for deeper in value.values():
                if isinstance(deeper, dict):
                    fields += deeper.items()
    length, elsewhere, kind = 0, False, shape
    for name, value in fields:
        if name in {"mimeType", "mime_type", "media_type"} and isinstance(value, str):
            kind = _kind(value)
        if not isinstance(value, str):
            continue
        if name in _PAYLOADS or (name in _ADDRESSES and value.startswith("data:")):
            length += len(value)
            if value.startswith("data:"):
                kind = _kind(value[5:60])
        elif name in _ADDRESSES:
            elsewhere = True
    if kind == "image":
        return length, IMAGE
    if elsewhere:
        return length, ELSEWHERE
    raw = length * 3 // 4
    if kind == "audio":
        return length, int(raw * AUDIO_PER_BYTE) + AUDIO_LEAST
    return length, raw * DOCUMENT_PER_BYTE + DOCUMENT_LEAST


def _kind(media_type: str) -> Kind:
    if media_type.startswith("image/"):
        return "image"
    return "audio" if media_type.startswith("audio/") else "document"


# ---------------------------------------------------------------- counting


def tokenizer(name: Literal["o200k", "cl100k"] = "o200k") -> Callable[[str], int] | None:
    """Counts tokens as OpenAI's models do, where the optional `rs-bpe` is installed, else None.

    Loading takes 40 ms and 70 MB a process, so nothing here calls it: whoever wants it does, once.
    """
    if find_spec("rs_bpe") is None:
        return None
    # By name: the package is optional and has no types.
    made = getattr(import_module("rs_bpe.bpe").openai, f"{name}_base")()
    count: Callable[[str], int] = made.count

    def tokens(text: str) -> int:
        # Lone surrogates, which JSON can hold, have no UTF-8.
        return count(text.encode("utf-8", "replace").decode("utf-8"))

    return tokens


# ---------------------------------------------------------------- learning

BYTES_PRIOR: Final = 0.25
"""Tokens a byte of English prose; a tokenizer's count has 1.0."""
DECAY: Final = 0.98
"""Of what is remembered, at each settled call: the last 50 make two thirds."""
_PRIOR_SPREAD: Final = 300.0
"""How far apart sizes must be before the slope is believed, in units of size."""


class _Line:
    """A decayed least-squares line through (size, tokens), its slope drawn to the prior's."""

    __slots__ = ("error", "mean_x", "mean_y", "weight", "xx", "xy")

    def __init__(self) -> None:
        self.weight = self.mean_x = self.mean_y = self.xx = self.xy = self.error = 0.0

    def add(self, x: float, y: float, prior: float) -> None:
        """Welford's update with weights, which keeps no difference of large sums."""
        if self.weight:
            # At most 1, as one that was too low has it: a call that counts next to nothing is no reason
            # to expect ten times as much of all others.
            miss = min(abs(y - self.at(x, prior)) / max(y, 1.0), 1.0)
            self.error += (miss - self.error) / min(self.weight + 1.0, 50.0)
        weight = self.weight * DECAY + 1.0
        dx, dy = x - self.mean_x, y - self.mean_y
        self.mean_x += dx / weight
        self.mean_y += dy / weight
        self.xx = self.xx * DECAY + dx * (x - self.mean_x)
        self.xy = self.xy * DECAY + dx * (y - self.mean_y)
        self.weight = weight

    def at(self, x: float, prior: float) -> float:
        if not self.weight:
            return prior * x
        pull = _PRIOR_SPREAD * _PRIOR_SPREAD
        slope = (self.xy + pull * prior) / (self.xx + pull)
        slope = min(max(slope, prior / 8), prior * 4)
        return self.mean_y + slope * (x - self.mean_x)


class Estimator:
    """Learned sizes, one line a model and kind of request. Floats will do: nothing here is money.

    `prior`: tokens a byte before anything is learned. With `length=` a tokenizer's counts are used in
    place of `Size.text_bytes`, for all calls alike; then `prior=1.0`.
    """

    __slots__ = ("_lines", "_prior")

    def __init__(self, prior: float = BYTES_PRIOR) -> None:
        self._prior = prior
        self._lines: dict[tuple[str, bool, bool], _Line] = {}

    def learn(
        self, model: str, size: Size, input_tokens: int, *, length: float | None = None
    ) -> None:
        """A call was settled. Those with media or open ends teach nothing: their tokens are elsewhere."""
        if input_tokens <= 0 or size.media_tokens or size.open_ended:
            return
        key = (model, size.tools, size.schema)
        line = self._lines.pop(key, None)
        if line is None:
            line = _Line()
            if len(self._lines) >= LINES_MAX:
                del self._lines[next(iter(self._lines))]
        line.add(float(size.text_bytes if length is None else length), input_tokens, self._prior)
        self._lines[key] = line

    def estimate(
        self, model: str, size: Size, *, length: float | None = None, margin: float = 0.0
    ) -> int:
        """Input tokens, at least 1, media at their most. `margin`: so many mean relative errors above
        the middle."""
        text = float(size.text_bytes if length is None else length)
        line = self._lines.get((model, size.tools, size.schema))
        if line is None:
            found = self._prior * text
        else:
            found = max(line.at(text, self._prior), 1.0) * (1.0 + margin * line.error)
        return max(1, round(min(found, CONTEXT_MAX)) + size.media_tokens)
