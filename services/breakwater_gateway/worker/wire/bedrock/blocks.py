"""Content blocks of Converse: what requests, answers and streams have in common.

A block is an object with one field, which names its kind. Source: Amazon Bedrock API reference,
"ContentBlock" and "ToolResultContentBlock".
"""

import re
from typing import Final

from msgspec import Raw

from breakwater_gateway.worker.wire import neutral as n
from breakwater_gateway.worker.wire import objects as o
from breakwater_gateway.worker.wire.bad_request import BadRequest

_DOCUMENTS: Final = {
    "pdf": "application/pdf",
    "csv": "text/csv",
    "doc": "application/msword",
    "docx": "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    "xls": "application/vnd.ms-excel",
    "xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    "html": "text/html",
    "txt": "text/plain",
    "md": "text/markdown",
}
_VIDEOS: Final = {
    "mkv": "video/x-matroska",
    "mov": "video/quicktime",
    "mp4": "video/mp4",
    "webm": "video/webm",
    "flv": "video/x-flv",
    "mpeg": "video/mpeg",
    "mpg": "video/mpg",
    "wmv": "video/x-ms-wmv",
    "three_gp": "video/3gpp",
}
_IMAGES: Final = {name: f"image/{name}" for name in ("png", "jpeg", "gif", "webp")}

_FORMAT: Final = {
    media_type: name
    for table in (_DOCUMENTS, _VIDEOS, _IMAGES)
    for name, media_type in table.items()
} | {
    "image/jpg": "jpeg",
    "application/csv": "csv",
    "application/html": "html",
    "text/x-markdown": "md",
    "video/matroska": "mkv",
    "video/3gp": "three_gp",
}

CITED: Final = "citationsContent"
"""The `extra` field of a text that came with citations: the rest of its block."""


def native(raw: Raw) -> n.Native:
    return n.Native(dialect="bedrock", raw=raw)


# ---- blocks to parts


def part(raw: Raw, at: str, *, nested: bool = False) -> n.Part:
    """One block. Those that only this API has stay native. Raises BadRequest."""
    block = o.Fields(raw, at)
    if len(block.left) != 1:
        if not block.left:
            raise BadRequest(f"'{at}' is an empty content block.", at)
        return native(raw)
    ((name, value),) = block.left.items()
    if name == "text":
        return n.Text(text=block.need("text", block.text("text")))
    read = _READERS.get(name)
    if read is None or (nested and name not in _NESTED):
        return native(raw)
    return read(raw, o.Fields(value, block.path(name)))


def _tool_use(raw: Raw, given: o.Fields) -> n.Part:
    if given.has("type") and bytes(given.left["type"]) == b'"server_tool_use"':
        return native(raw)
    call_id = given.need("toolUseId", given.text("toolUseId"))
    name = given.need("name", given.text("name"))
    arguments = o.as_text(given.raw("input"))
    return n.ToolCall(id=call_id, name=name, arguments=arguments, extra=given.left)


def _tool_result(raw: Raw, given: o.Fields) -> n.Part:
    if given.has("type"):
        return native(raw)  # of a tool that the host ran
    call_id = given.need("toolUseId", given.text("toolUseId"))
    blocks = given.need("content", given.items("content"))
    failed = given.has("status") and bytes(given.left["status"]) == b'"error"'
    if failed:
        del given.left["status"]
    path = given.path("content")
    content = [part(block, f"{path}[{at}]", nested=True) for at, block in enumerate(blocks)]
    return n.ToolResult(call_id=call_id, content=content, is_error=failed, extra=given.left)


def _reasoning(raw: Raw, given: o.Fields) -> n.Part:
    if set(given.left) == {"redactedContent"}:
        data = given.text("redactedContent")
        return n.Thinking(redacted=data) if data else native(raw)
    if set(given.left) != {"reasoningText"}:
        return native(raw)
    said = given.child("reasoningText")
    if said is None:
        return native(raw)
    text, signature = said.text("text"), said.text("signature")
    return n.Thinking(text=text or "", signature=signature or "", extra=said.left)


def _cited(raw: Raw, given: o.Fields) -> n.Part:
    texts: list[str] = []
    path = given.path("content")
    blocks = given.items("content") or []
    for at, block in enumerate(blocks):
        said = o.Fields(block, f"{path}[{at}]")
        text = said.text("text")
        if text is None or said.left:
            return native(raw)
        texts.append(text)
    if len(texts) != 1:
        # Several pieces: they are one text for everybody else, and keep their seams here.
        given.left["content"] = Raw(o.encode(blocks))
    return n.Text(text="".join(texts), extra={CITED: Raw(o.encode(given.left))})


def _image(raw: Raw, given: o.Fields) -> n.Part:
    media_type = _IMAGES.get(given.text("format") or "", "")
    data, url, text = _source(given)
    if not media_type or text or not (data or url):
        return native(raw)
    return n.Image(media_type=media_type, data=data, url=url, extra=given.left)


def _video(raw: Raw, given: o.Fields) -> n.Part:
    media_type = _VIDEOS.get(given.text("format") or "", "")
    data, url, text = _source(given)
    if not media_type or text or not (data or url):
        return native(raw)
    return n.Video(media_type=media_type, data=data, url=url, extra=given.left)


def _audio(raw: Raw, given: o.Fields) -> n.Part:
    form = given.text("format")
    data, url, text = _source(given)
    if not form or text or not (data or url):
        return native(raw)
    return n.Audio(format=form, data=data, url=url, extra=given.left)


def _document(raw: Raw, given: o.Fields) -> n.Part:
    media_type = _DOCUMENTS.get(given.text("format") or "", "")
    name = given.text("name")
    data, url, text = _source(given)
    if not media_type or not name or not (data or url or text):
        return native(raw)
    return n.Document(
        media_type=media_type, data=data, url=url, text=text, name=name, extra=given.left
    )


def _source(given: o.Fields) -> tuple[str, str, str]:
    """Base64 data, an S3 address or text; empty when the source says more than one of these."""
    source = given.child("source")
    if source is None or len(source.left) != 1:
        return "", "", ""
    if source.has("bytes"):
        return source.text("bytes") or "", "", ""
    if source.has("text"):
        return "", "", source.text("text") or ""
    place = source.child("s3Location")
    if place is None:
        return "", "", ""
    uri = place.text("uri") or ""
    return "", "" if place.left else uri, ""


_READERS: Final = {
    "toolUse": _tool_use,
    "toolResult": _tool_result,
    "reasoningContent": _reasoning,
    CITED: _cited,
    "image": _image,
    "video": _video,
    "audio": _audio,
    "document": _document,
}
_NESTED: Final = frozenset({"image", "video", "document"})
"""What a tool's result may hold beside text."""


# ---- parts to blocks


def block(part: n.Part) -> o.Body | Raw | None:
    """The block that says what `part` says, its `extra` included; None where this API has none.

    `extra` is of this dialect, or empty: whoever encodes another dialect's parts takes it off first.
    """
    written: o.Body
    match part:
        case n.Text(text=text):
            return _text(text, part.extra)
        case n.Refusal(text=text):
            return {"text": text}
        case n.ToolCall():
            written = {
                "toolUseId": part.id,
                "name": part.name,
                "input": o.as_object(part.arguments),
            }
            return {"toolUse": written | part.extra}
        case n.ToolResult():
            written = {"toolUseId": part.call_id}
            written["content"] = [made for one in part.content if (made := block(one)) is not None]
            if part.is_error:
                written["status"] = "error"
            return {"toolResult": written | part.extra}
        case n.Thinking(redacted=data) if data:
            return {"reasoningContent": {"redactedContent": data}}
        case n.Thinking():
            written = {"text": part.text}
            o.put(written, "signature", part.signature)
            return {"reasoningContent": {"reasoningText": written | part.extra}}
        case n.Native(dialect="bedrock", raw=raw):
            return raw
        case n.Image() | n.Video() | n.Document() | n.Audio():
            return _media(part)
        case _:
            return None


def _text(text: str, extra: n.Extra) -> o.Body:
    cited = extra.get(CITED)
    if cited is None:
        return {"text": text}
    rest = o.fields_of(cited)
    content: o.Body = {} if "content" in rest else {"content": [{"text": text}]}
    return {CITED: content | rest}


def _media(part: n.Image | n.Video | n.Document | n.Audio) -> o.Body | None:
    source: o.Body
    if part.data:
        source = {"bytes": part.data}
    elif part.url.startswith("s3://"):
        source = {"s3Location": {"uri": part.url}}
    elif isinstance(part, n.Document) and part.text:
        source = {"text": part.text}
    else:
        return None
    match part:
        case n.Audio(format=form):
            name = "audio"
        case _:
            form = _FORMAT.get(part.media_type.partition(";")[0].strip().lower(), "")
            name = type(part).__name__.lower()
            if isinstance(part, n.Document) and not form:
                # Whatever else is text is read as plain text.
                form = "txt" if part.text or part.media_type.startswith("text/") else ""
    if not form:
        return None
    written: o.Body = {"format": form, "source": source}
    if isinstance(part, n.Document):
        written["name"] = part.name
    return {name: written | part.extra}


# Some models' own ids have dots and colons; those that Claude takes are of these letters only.
_ID: Final = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_NOT_IN_NAME: Final = re.compile(r"[^a-zA-Z0-9 ()\[\]-]+|(?<= ) +")
NAME_MAX: Final = 200


def tool_use_id(given: str) -> str:
    """`given` where this API takes it, else an id made of it: the same for a call and its result."""
    return given if _ID.fullmatch(given) else o.minted_id(given)


def document_name(given: str, taken: set[str]) -> str:
    """A neutral name of the letters that this API allows, used once in a request.

    The model sees it: AWS advises against anything that could read as an instruction, and a file's
    suffix, whose dot is not allowed, says no more than the format.
    """
    stem = given.rpartition(".")[0] or given
    base = _NOT_IN_NAME.sub("-", stem).strip(" -")[:NAME_MAX] or "document"
    name, count = base, 1
    while name in taken:
        count += 1
        suffix = f"-{count}"
        name = base[: NAME_MAX - len(suffix)] + suffix
    taken.add(name)
    return name
