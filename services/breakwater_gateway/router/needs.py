"""Needs: what a request asks of the deployment that answers it, read from its body as cheaply as possible.

Each question costs something and is only asked where some deployment of the model has an answer to it.
A need is only found where the request plainly states it; a body that cannot be read states none, and is
refused by whoever reads it whole.
"""

import re
from typing import Final

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from breakwater_gateway.config.model import Capability
from breakwater_gateway.pricing.tokens import measure
from breakwater_protocol.chat import Asked, ChatRequest, EmbeddingsRequest

BYTES_A_TOKEN: Final = 4
"""Of English prose. Other texts have fewer, so that an estimate is rather too low: a target that might do
is tried, and says itself when the request does not fit."""
_SMALL: Final = 4096
_PAYLOADS: Final = (b"base64,", b'"data"', b'"bytes"', b'"file_data"')
_MAX_OUTPUT: Final = re.compile(
    rb'"(?:max_tokens|max_output_tokens|maxOutputTokens)"\s*:\s*([0-9]{1,9})\b'
)

_FULL_LIST: Final = re.compile(rb"\[\s*[^\]\s]")
_JSON_ASKED: Final = (b"application/json", b'"responseSchema"', b'"responseJsonSchema"')

_TURNS: Final = ("messages", "input", "contents", "system")
_IMAGES: Final = frozenset({"image", "image_url", "input_image"})
_SOUNDS: Final = frozenset({"audio", "input_audio"})
_INLINE: Final = ("inlineData", "inline_data", "fileData", "file_data")
_OPAQUE: Final = frozenset({"arguments", "args", "parameters", "input_schema", "response"})
"""Objects of the caller's own shape, which the model sees as text."""


class _Wanted(Struct):
    """The fields of any dialect that state a need, left as they came."""

    tools: Raw | UnsetType = UNSET
    response_format: Raw | UnsetType = UNSET
    text: Raw | UnsetType = UNSET
    output_format: Raw | UnsetType = UNSET
    output_config: Raw | UnsetType = UNSET
    generation_config: Raw | UnsetType = msgspec.field(default=UNSET, name="generationConfig")
    modalities: Raw | UnsetType = UNSET


_wanted: Final = msgspec.json.Decoder(_Wanted)


def input_tokens(body: bytes) -> int:
    """An estimate, without what pictures and recordings cost."""
    size = len(body)
    if size > _SMALL and any(mark in body for mark in _PAYLOADS):
        size = measure(body).text_bytes
    return max(1, size // BYTES_A_TOKEN)


def output_tokens(asked: Asked, body: bytes) -> int | None:
    """The most that the request allows; None: it does not say."""
    if isinstance(asked, EmbeddingsRequest):
        return 0
    if isinstance(asked, ChatRequest):
        return asked.max_completion_tokens or asked.max_tokens
    found = _MAX_OUTPUT.search(body)
    return int(found[1]) if found else None


def capabilities(body: bytes) -> frozenset[Capability]:
    """What the request needs besides text."""
    found: set[Capability] = set()
    if b"image" in body or b"audio" in body or b"video" in body:
        found |= _media(body)
    if b'"tools"' in body or b"json" in body or b"chema" in body or b'"modalities"' in body:
        try:
            wanted = _wanted.decode(body)
        except msgspec.MsgspecError:
            return frozenset(found)
        if _FULL_LIST.match(_bytes(wanted.tools)):
            found.add("tools")
        if b'"audio"' in _bytes(wanted.modalities):
            found.add("audio")
        if _is_json(wanted):
            found.add("json")
    return frozenset(found)


def _is_json(wanted: _Wanted) -> bool:
    for raw in (wanted.response_format, wanted.text, wanted.output_format, wanted.output_config):
        if b'"json_' in _bytes(raw):
            return True
    generation = _bytes(wanted.generation_config)
    return any(mark in generation for mark in _JSON_ASKED)


def _bytes(raw: Raw | UnsetType) -> bytes:
    return b"" if raw is UNSET else bytes(raw)


def _media(body: bytes) -> set[Capability]:
    found: set[Capability] = set()
    try:
        decoded = msgspec.json.decode(body)
    except (msgspec.MsgspecError, RecursionError):
        return found
    if not isinstance(decoded, dict):
        return found
    # A stack, since bodies nest as deep as a caller likes.
    waiting: list[object] = [decoded.get(name) for name in _TURNS]
    while waiting:
        each = waiting.pop()
        if isinstance(each, list):
            waiting += each
        elif isinstance(each, dict):
            kind = each.get("type")
            if kind in _IMAGES:
                found.add("vision")
            elif kind in _SOUNDS:
                found.add("audio")
            for name in _INLINE:
                found |= _of_type(each.get(name))
            opaque = _OPAQUE | {"input"} if kind == "tool_use" else _OPAQUE
            waiting += [value for name, value in each.items() if name not in opaque]
    return found


def _of_type(inline: object) -> set[Capability]:
    if not isinstance(inline, dict):
        return set()
    kind = inline.get("mimeType") or inline.get("mime_type")
    if not isinstance(kind, str):
        return set()
    if kind.startswith(("image/", "video/")):
        return {"vision"}
    return {"audio"} if kind.startswith("audio/") else set()
