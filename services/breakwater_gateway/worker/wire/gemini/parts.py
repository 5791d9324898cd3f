"""The parts of a turn, in requests and answers alike.

A part holds one of `text`, `inlineData`, `fileData`, `functionCall`, `functionResponse` and the hosted
tools' own; beside it stand `thought`, `thoughtSignature`, `videoMetadata` and the like, which go to `extra`
where the vocabulary has no word for them. Fields left over inside the held object go to `extra` under its
name. Source: Gemini API reference, "Content", "Part".
"""

import base64
import re
from collections.abc import Mapping
from hashlib import blake2b
from typing import Final
from urllib.parse import urlsplit

import msgspec
from msgspec import Raw, Struct

from breakwater_gateway.worker.wire import neutral as n
from breakwater_gateway.worker.wire.gemini.fields import (
    CAMEL,
    OBJECT,
    TEXT,
    UNREADABLE,
    Body,
    Dropped,
    encode,
    fields,
    standard_base64,
)


class NotAPart(ValueError):
    """A part is not of the API's shape. `where` is the path inside it."""

    def __init__(self, where: str, expected: str) -> None:
        super().__init__(f"expected {expected}")
        self.where = where
        self.expected = expected


# ---------------------------------------------------------------- ids of calls

_MINTED: Final = re.compile(r"gemini_call_[0-9a-f]{16}")


def mint(seed: str, candidate: int, index: int, name: str) -> str:
    """An id for a call that came without one: the same call of the same answer always has the same.

    `seed` is the answer's id, or what stands for it; `index` counts the parts of the candidate.
    """
    told = f"{seed}\0{candidate}\0{index}\0{name}".encode("utf-8", "surrogatepass")
    return f"gemini_call_{blake2b(told, digest_size=8).hexdigest()}"


def minted(call_id: str) -> bool:
    """The model gave this call no id, so it is not told one."""
    return _MINTED.fullmatch(call_id) is not None


# ---------------------------------------------------------------- decoding

_TRUE: Final = b"true"
_NULL: Final = b"null"


def part(given: dict[str, Raw], call_id: str) -> n.Part:
    """One part. `call_id` is for a function call without an id. Raises NotAPart; `given` is used up."""
    text = given.get("text")
    if text is not None:
        if len(given) == 1:
            return n.Text(text=_text(text, "text"))
        if bytes(text) != _NULL:
            return _spoken(given)
    if "functionCall" in given:
        return _call(given, call_id)
    if "inlineData" in given and "thought" not in given:
        return _inline(given)
    if "fileData" in given and "thought" not in given:
        return _file(given)
    return n.Native(dialect="gemini", raw=Raw(encode(given)))


def _spoken(given: dict[str, Raw]) -> n.Text | n.Thinking:
    text = _text(given.pop("text"), "text")
    thought = given.pop("thought", None)
    if thought is None or bytes(thought) != _TRUE:
        return n.Text(text=text, extra=given)
    signature = given.pop("thoughtSignature", None)
    return n.Thinking(
        text=text,
        signature="" if signature is None else _text(signature, "thoughtSignature"),
        extra=given,
    )


def _call(given: dict[str, Raw], call_id: str) -> n.ToolCall | n.Native:
    held = _held(given, "functionCall")
    if "partialArgs" in held or "willContinue" in held:
        # Arguments streamed by path, which only a native caller can have asked for.
        return n.Native(dialect="gemini", raw=Raw(encode(given)))
    del given["functionCall"]
    name = _take(held, "name", "functionCall.name")
    own_id = _take(held, "id", "functionCall.id")
    arguments = held.pop("args", Raw(b"{}"))
    if bytes(arguments)[:1] != b"{":
        raise NotAPart("functionCall.args", "an object")
    signature = given.pop("thoughtSignature", None)
    return n.ToolCall(
        id=own_id or call_id,
        name=name,
        arguments=_utf8(arguments, "functionCall.args"),
        signature="" if signature is None else _text(signature, "thoughtSignature"),
        extra=_extra(given, "functionCall", held),
    )


def _inline(given: dict[str, Raw]) -> n.Image | n.Audio | n.Video | n.Document:
    held = _held(given, "inlineData")
    del given["inlineData"]
    kind = _take(held, "mimeType", "inlineData.mimeType")
    data = standard_base64(_take(held, "data", "inlineData.data"))
    return _media(given, "inlineData", held, kind, data=data, url="")


def _file(given: dict[str, Raw]) -> n.Image | n.Audio | n.Video | n.Document:
    held = _held(given, "fileData")
    del given["fileData"]
    kind = _take(held, "mimeType", "fileData.mimeType")
    url = _take(held, "fileUri", "fileData.fileUri")
    return _media(given, "fileData", held, kind, data="", url=url)


_AUDIO: Final = {
    "audio/wav": "wav",
    "audio/mpeg": "mp3",
    "audio/flac": "flac",
    "audio/ogg": "ogg",
    "audio/aac": "aac",
    "audio/aiff": "aiff",
    "audio/opus": "opus",
}
_AUDIO_TYPES: Final = {short: kind for kind, short in _AUDIO.items()} | {
    "pcm16": "audio/L16;codec=pcm;rate=24000"
}
_VIDEO_HOSTS: Final = frozenset({"youtube.com", "www.youtube.com", "m.youtube.com", "youtu.be"})


def _media(
    given: dict[str, Raw], field: str, held: dict[str, Raw], kind: str, *, data: str, url: str
) -> n.Image | n.Audio | n.Video | n.Document:
    """An audio `format` with no short name is its whole media type."""
    family = kind.partition("/")[0]
    if family == "image":
        extra = _extra(given, field, held)
        return n.Image(media_type=kind, data=data, url=url, extra=extra)
    if family == "audio":
        extra = _extra(given, field, held)
        return n.Audio(format=_AUDIO.get(kind, kind), data=data, url=url, extra=extra)
    if family == "video" or (not kind and _host(url) in _VIDEO_HOSTS):
        extra = _extra(given, field, held)
        return n.Video(media_type=kind, data=data, url=url, extra=extra)
    name = _take(held, "displayName", f"{field}.displayName")
    extra = _extra(given, field, held)
    return n.Document(media_type=kind, data=data, url=url, name=name, extra=extra)


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def tool_result(given: dict[str, Raw]) -> tuple[n.ToolResult, bool]:
    """A `functionResponse` as the caller wrote it, and whether it names its call. Raises NotAPart.

    The response is an object of any shape: its JSON text is the result's content, which media follow.
    """
    held = _held(given, "functionResponse")
    del given["functionResponse"]
    name = _take(held, "name", "functionResponse.name")
    call_id = _take(held, "id", "functionResponse.id")
    response = held.pop("response", Raw(b"{}"))
    if bytes(response)[:1] != b"{":
        raise NotAPart("functionResponse.response", "an object")
    content: list[n.Part] = [n.Text(text=_utf8(response, "functionResponse.response"))]
    raws = held.pop("parts", None)
    if raws is not None:
        content.extend(_nested(raws))
    result = n.ToolResult(
        call_id=call_id,
        name=name,
        content=content,
        is_error=keys(response) == ["error"],
        plain=len(content) == 1,
        extra=_extra(given, "functionResponse", held),
    )
    return result, bool(call_id)


def _nested(raws: Raw) -> list[n.Part]:
    where = "functionResponse.parts"
    try:
        given = _part_list(raws) if bytes(raws)[:1] == b"[" else [OBJECT.decode(raws)]
    except UNREADABLE:
        raise NotAPart(where, "a list of objects") from None
    return [part(spelled(item), "") for item in given]


_part_list: Final = msgspec.json.Decoder(list[dict[str, Raw]]).decode


def keys(raw: Raw) -> list[str]:
    """Names of the fields of an object; none of what is no object."""
    try:
        return list(fields(raw))
    except UNREADABLE:
        return []


def spelled(given: dict[str, Raw]) -> dict[str, Raw]:
    """The fields under their first spelling, without nulls."""
    return {CAMEL.get(name, name): raw for name, raw in given.items() if bytes(raw) != _NULL}


def _held(given: Mapping[str, Raw], field: str) -> dict[str, Raw]:
    try:
        return spelled(OBJECT.decode(given[field]))
    except UNREADABLE:
        raise NotAPart(field, "an object") from None


def _take(held: dict[str, Raw], name: str, where: str) -> str:
    raw = held.pop(name, None)
    return "" if raw is None else _text(raw, where)


def _text(raw: Raw, where: str) -> str:
    try:
        return TEXT.decode(raw)
    except UNREADABLE:
        raise NotAPart(where, "a string") from None


def _utf8(raw: Raw, where: str) -> str:
    try:
        return bytes(raw).decode()
    except UnicodeDecodeError:
        raise NotAPart(where, "valid UTF-8") from None


def _extra(given: dict[str, Raw], field: str, held: dict[str, Raw]) -> n.Extra:
    given.pop("thought", None)
    if held:
        given[field] = Raw(encode(held))
    return given


# ---------------------------------------------------------------- encoding

SKIP_SIGNATURE: Final = "c2tpcF90aG91Z2h0X3NpZ25hdHVyZV92YWxpZGF0b3I="
"""Stands for the signature of a call that another model made: `skip_thought_signature_validator`, in base64.
Source: Gemini API documentation, "Thought signatures"."""

_IMAGE_STARTS: Final = (
    ("/9j/", "image/jpeg"),
    ("iVBOR", "image/png"),
    ("R0lGOD", "image/gif"),
    ("UklGR", "image/webp"),
)
_SUFFIXES: Final = {
    "jpg": "image/jpeg",
    "jpeg": "image/jpeg",
    "png": "image/png",
    "gif": "image/gif",
    "webp": "image/webp",
    "heic": "image/heic",
    "pdf": "application/pdf",
    "txt": "text/plain",
    "md": "text/markdown",
    "csv": "text/csv",
    "html": "text/html",
    "json": "application/json",
    "mp4": "video/mp4",
    "mov": "video/mov",
    "webm": "video/webm",
    "mp3": "audio/mpeg",
    "wav": "audio/wav",
    "ogg": "audio/ogg",
    "flac": "audio/flac",
}


def encode_part(item: n.Part, dropped: Dropped, *, native: bool) -> Body | Raw | None:
    """A part as the API takes it; None where nothing of it can be said. Tool results: see `encode_result`.

    `native`: the part was decoded from this dialect, and its `extra` is ours.
    """
    written: Body | Raw | None
    match item:
        case n.Text(text=text):
            written = {"text": text}
        case n.Thinking():
            written = _encode_thinking(item, dropped)
        case n.Refusal(text=text):
            written = {"text": text}
        case n.ToolCall():
            written = encode_call(item)
        case n.Image() | n.Document() | n.Audio() | n.Video():
            written = _encode_media(item, dropped, native=native)
        case n.ToolResult():
            written = encode_result(item, dropped, name=item.name, native=native)
        case n.Native(dialect=dialect, raw=raw):
            if dialect != "gemini":
                dropped.add(f"messages.content.{_native_kind(raw)}")
                return None
            written = raw
    if not item.extra or isinstance(written, Raw) or written is None:
        return written
    if not native:
        dropped.native(item.extra, "messages.content.")
        return written
    return merged(written, item.extra)


class _Kind(Struct):
    type: str = ""


_kind_of: Final = msgspec.json.Decoder(_Kind).decode


def _native_kind(raw: Raw) -> str:
    try:
        found = _kind_of(raw).type
    except UNREADABLE:
        return "native"
    return found[:64] or "native"


def merged(written: Body, extra: n.Extra) -> Body:
    """`extra` put back: fields left over inside an object join it, the others stand beside."""
    for name, raw in extra.items():
        held = written.get(name)
        if isinstance(held, dict):
            held.update(fields(raw))
        else:
            written[name] = raw
    return written


def is_base64(signature: str) -> bool:
    """Clients of this API decode signatures, strictly, so what is no base64 cannot be told them."""
    told = standard_base64(signature)
    try:
        return bool(told) and base64.b64encode(base64.b64decode(told, validate=True)) == (
            told.encode()
        )
    except ValueError:
        return False


def _encode_thinking(item: n.Thinking, dropped: Dropped) -> Body | None:
    if item.redacted:
        dropped.add("messages.content.redacted_thinking")
        return None
    written: Body = {"text": item.text, "thought": True}
    if is_base64(item.signature):
        written["thoughtSignature"] = item.signature
    return written


def encode_call(item: n.ToolCall) -> Body:
    call: Body = {"name": item.name, "args": arguments(item.arguments)}
    if item.id and not minted(item.id):
        call["id"] = item.id
    written: Body = {"functionCall": call}
    if item.signature:
        written["thoughtSignature"] = item.signature
    return written


def arguments(text: str) -> Raw:
    """Arguments as the object that the API wants; text that is none is held by one."""
    if not text.strip():
        return Raw(b"{}")
    return _object(text) or Raw(encode({"arguments": text}))


_checked: Final = msgspec.json.Decoder(dict[str, object])


def _object(text: str) -> Raw | None:
    data = text.encode("utf-8", "replace")
    if data.lstrip()[:1] != b"{":
        return None
    try:
        _checked.decode(data)
    except UNREADABLE:
        return None
    return Raw(data)


def encode_result(item: n.ToolResult, dropped: Dropped, *, name: str, native: bool) -> Body:
    """A `functionResponse`. Text that is no object becomes its `output`, or `error`; media its parts.

    Source of the two names: Gemini API reference, "FunctionResponse".
    """
    texts: list[str] = []
    media: list[object] = []
    for content in item.content:
        if isinstance(content, n.Text | n.Refusal) or (
            isinstance(content, n.Document) and content.text
        ):
            texts.append(content.text)
        else:
            written = encode_part(content, dropped, native=native)
            if written is not None:
                media.append(written)
    text = "\n".join(texts)
    whole = _object(text)
    response: object = whole
    if whole is None or (item.is_error and "error" not in keys(whole)):
        response = {"error" if item.is_error else "output": text if whole is None else whole}
    held: Body = {"name": name, "response": response}
    if item.call_id and not minted(item.call_id):
        held["id"] = item.call_id
    if media:
        held["parts"] = media
    return {"functionResponse": held}


def _encode_media(
    item: n.Image | n.Document | n.Audio | n.Video, dropped: Dropped, *, native: bool
) -> Body | None:
    name = ""
    if isinstance(item, n.Audio):
        kind = _AUDIO_TYPES.get(item.format, item.format)
        if kind and "/" not in kind:
            kind = f"audio/{kind}"
    else:
        kind = item.media_type
    if isinstance(item, n.Image) and item.detail not in {"", "auto"}:
        dropped.add("messages.content.detail")
    if isinstance(item, n.Document):
        if item.text:
            return {"text": item.text}
        name = item.name
        if name and not native:
            # Only Vertex knows a display name, and only inside function responses.
            dropped.add("messages.content.name")
            name = ""
    if isinstance(item, n.Image | n.Document) and item.file_id:
        dropped.add("messages.content.file_id")
        return None
    named: Body = {"displayName": name} if name else {}
    data, url = item.data, item.url
    if url.startswith("data:"):
        head, _, data = url[5:].partition(",")
        kind = head.partition(";")[0] or kind
        url = ""
    if url:
        kind = kind if native else kind or _guess(url)
        typed: Body = {"mimeType": kind} if kind else {}
        return {"fileData": typed | {"fileUri": url} | named}
    if not native and (not kind or kind == "image/*"):
        kind = _sniff(item, data)
    return {"inlineData": {"mimeType": kind, "data": data} | named}


def _guess(url: str) -> str:
    try:
        path = urlsplit(url).path
    except ValueError:
        return ""
    return _SUFFIXES.get(path.rpartition(".")[2].lower(), "")


def _sniff(item: n.Image | n.Document | n.Audio | n.Video, data: str) -> str:
    for start, kind in _IMAGE_STARTS:
        if data.startswith(start):
            return kind
    if isinstance(item, n.Image):
        return "image/jpeg"
    if isinstance(item, n.Document):
        return "application/pdf"
    return "audio/wav" if isinstance(item, n.Audio) else "video/mp4"
