"""Content blocks, usage and stop reasons: what requests, answers and streams have in common.

Source: Anthropic API reference, "Create a Message" and "Streaming messages".
"""

from collections.abc import Mapping
from typing import Final

import msgspec
from msgspec import Raw, Struct

from breakwater_gateway.worker.wire import neutral as n
from breakwater_protocol.chat import Usage

FIELDS_MAX: Final = 256
"""Fields of one object that are looked at; the API's largest has some thirty."""

UNREADABLE: Final = (msgspec.MsgspecError, RecursionError, UnicodeError)
"""What reading bytes that are not the JSON we want can raise."""

encode: Final = msgspec.json.Encoder().encode
fields: Final = msgspec.json.Decoder(dict[str, Raw]).decode
text_of: Final = msgspec.json.Decoder(str).decode
raws_of: Final = msgspec.json.Decoder(list[Raw]).decode
_is_true: Final = msgspec.json.Decoder(bool).decode

NULL: Final = b"null"
ABSENT: Final = Raw(b"")
"""A field that is not there; msgspec does not take `Raw | None`."""


class NotOfThisShape(ValueError):
    """A block lacks a field of its type, or has it of another type. `where` is the field."""

    def __init__(self, where: str, message: str) -> None:
        super().__init__(message)
        self.where = where


def rest(given: Mapping[str, Raw]) -> n.Extra:
    """What is left of an object's fields. The API reads `null` as absent, so nulls ask for nothing."""
    return {name: value for name, value in given.items() if bytes(value) != NULL}


def nulls(given: Mapping[str, Raw]) -> n.Layout:
    """The nulls that `rest` leaves."""
    return {name: value for name, value in given.items() if bytes(value) == NULL}


def string(given: dict[str, Raw], name: str, default: str | None = None) -> str:
    """Take a string field out. Raises NotOfThisShape."""
    raw = given.pop(name, None)
    if raw is None:
        if default is None:
            raise NotOfThisShape(name, "Field required")
        return default
    if default is not None and bytes(raw) == NULL:
        return default
    try:
        return text_of(raw)
    except UNREADABLE:
        raise NotOfThisShape(name, "Input should be a valid string") from None


# ---- blocks to parts


def part(raw: Raw) -> n.Part:
    """One content block. Blocks that only this API has stay native. Raises NotOfThisShape."""
    try:
        given = fields(raw)
    except UNREADABLE:
        raise NotOfThisShape("", "Input should be an object") from None
    if len(given) > FIELDS_MAX:
        raise NotOfThisShape("", f"An object may have {FIELDS_MAX} fields")
    kind = string(given, "type")
    if kind == "text":
        text = string(given, "text")
        return n.Text(text=text, extra=rest(given), layout=nulls(given))
    if kind == "tool_use":
        return _tool_call(given)
    if kind == "tool_result":
        return _tool_result(given)
    if kind == "thinking":
        thought = string(given, "thinking")
        signature = string(given, "signature", "")
        return n.Thinking(text=thought, signature=signature, extra=rest(given), layout=nulls(given))
    if kind == "redacted_thinking":
        return n.Thinking(redacted=string(given, "data"), extra=rest(given), layout=nulls(given))
    if kind == "image":
        return _image(raw, given)
    if kind == "document":
        return _document(raw, given)
    return n.Native(dialect="anthropic", raw=raw)


def _tool_call(given: dict[str, Raw]) -> n.ToolCall:
    call_id, name = string(given, "id"), string(given, "name")
    arguments = given.pop("input", Raw(b"{}"))
    try:
        written = bytes(arguments).decode()
    except UnicodeDecodeError:
        raise NotOfThisShape("input", "Input should be valid UTF-8") from None
    return n.ToolCall(
        id=call_id, name=name, arguments=written, extra=rest(given), layout=nulls(given)
    )


def _tool_result(given: dict[str, Raw]) -> n.ToolResult:
    """Defaults spelled out, an `is_error` of false or an empty list, are layout."""
    call_id = string(given, "tool_use_id")
    content = given.pop("content", Raw(NULL))
    failed = given.pop("is_error", Raw(NULL))
    layout = nulls(given)
    try:
        is_error = bytes(failed) != NULL and _is_true(failed)
    except UNREADABLE:
        raise NotOfThisShape("is_error", "Input should be a valid boolean") from None
    if not is_error and bytes(failed) != NULL:
        layout["is_error"] = failed
    parts: list[n.Part] = []
    plain = bytes(content)[:1] == b'"'
    if plain:
        parts = [n.Text(text=string({"content": content}, "content"))]
    elif bytes(content) != NULL:
        parts = parts_of(content, "content")
    extra = rest(given)
    return n.ToolResult(
        call_id=call_id,
        content=parts,
        is_error=is_error,
        plain=plain,
        extra=extra,
        layout=layout,
    )


def parts_of(raw: Raw, where: str) -> list[n.Part]:
    """A list of blocks. Raises NotOfThisShape, its `where` led by `where` and the index."""
    try:
        blocks = raws_of(raw)
    except UNREADABLE:
        raise NotOfThisShape(where, "Input should be a string or a list of blocks") from None
    parts: list[n.Part] = []
    for at, block in enumerate(blocks):
        try:
            parts.append(part(block))
        except NotOfThisShape as wrong:
            path = f"{where}.{at}.{wrong.where}".rstrip(".")
            raise NotOfThisShape(path, str(wrong)) from None
        except RecursionError:
            raise NotOfThisShape(f"{where}.{at}", "Blocks are nested too deeply") from None
    return parts


def _source(given: dict[str, Raw]) -> dict[str, str] | None:
    """The `source` object, where all of it is strings; None for sources that only this API has."""
    try:
        return msgspec.json.decode(given.get("source", Raw(b"")), type=dict[str, str])
    except UNREADABLE:
        return None


_BASE64: Final = {"type", "media_type", "data"}


def _image(raw: Raw, given: dict[str, Raw]) -> n.Part:
    source = _source(given)
    if "source" not in given:
        raise NotOfThisShape("source", "Field required")
    names = set(source or ())
    if source is not None:
        del given["source"]
        extra, layout = rest(given), nulls(given)
        kind = source.get("type")
        if kind == "base64" and names == _BASE64:
            return n.Image(
                media_type=source["media_type"], data=source["data"], extra=extra, layout=layout
            )
        if kind == "url" and names == {"type", "url"}:
            return n.Image(url=source["url"], extra=extra, layout=layout)
        if kind == "file" and names == {"type", "file_id"}:
            return n.Image(file_id=source["file_id"], extra=extra, layout=layout)
    return n.Native(dialect="anthropic", raw=raw)


def _document(raw: Raw, given: dict[str, Raw]) -> n.Part:
    source = _source(given)
    if "source" not in given:
        raise NotOfThisShape("source", "Field required")
    names = set(source or ())
    if source is not None:
        del given["source"]
        name = string(given, "title", "")
        extra, layout = rest(given), nulls(given)
        kind = source.get("type")
        if kind == "base64" and names == _BASE64:
            media_type, data = source["media_type"], source["data"]
            return n.Document(
                media_type=media_type, data=data, name=name, extra=extra, layout=layout
            )
        if kind == "text" and names == _BASE64:
            media_type, text = source["media_type"], source["data"]
            return n.Document(
                media_type=media_type, text=text, name=name, extra=extra, layout=layout
            )
        if kind == "url" and names == {"type", "url"}:
            return n.Document(url=source["url"], name=name, extra=extra, layout=layout)
        if kind == "file" and names == {"type", "file_id"}:
            return n.Document(file_id=source["file_id"], name=name, extra=extra, layout=layout)
    return n.Native(dialect="anthropic", raw=raw)


# ---- parts to blocks


def block(part: n.Part) -> dict[str, object] | Raw | None:
    """The block that says what `part` says, without its `extra`; None where this API has none."""
    match part:
        case n.Text(text=text) | n.Refusal(text=text):
            return {"type": "text", "text": text}
        case n.Thinking(redacted=data) if data:
            return {"type": "redacted_thinking", "data": data}
        case n.Thinking():
            return {"type": "thinking", "thinking": part.text, "signature": part.signature}
        case n.ToolCall():
            arguments = as_input(part.arguments)
            return {"type": "tool_use", "id": part.id, "name": part.name, "input": arguments}
        case n.Image() | n.Document():
            return _media(part)
        case n.Native(dialect="anthropic", raw=raw):
            return raw
        case _:
            return None


def _media(part: n.Image | n.Document) -> dict[str, object] | None:
    source: dict[str, str]
    if part.file_id:
        source = {"type": "file", "file_id": part.file_id}
    elif part.url:
        source = {"type": "url", "url": part.url}
    elif part.data:
        source = {"type": "base64", "media_type": part.media_type, "data": part.data}
    elif isinstance(part, n.Document) and part.media_type.startswith("text/"):
        source = {"type": "text", "media_type": part.media_type, "data": part.text}
    else:
        return None
    if isinstance(part, n.Image):
        return {"type": "image", "source": source}
    titled: dict[str, object] = {"title": part.name} if part.name else {}
    return {"type": "document", "source": source} | titled


def as_input(arguments: str) -> Raw:
    """A tool's arguments as the object that `input` must be.

    Text that is no JSON object is wrapped as Anthropic's page on fine-grained tool streaming advises, so
    that nothing the model wrote is lost.
    """
    if not arguments.strip():
        return Raw(b"{}")
    try:
        written = arguments.encode()
        fields(written)
    except UNREADABLE:
        return Raw(encode({"INVALID_JSON": arguments.encode(errors="replace").decode()}))
    return Raw(written)


# ---- stop reasons

FINISH: Final[dict[str, n.Finish]] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "compaction": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}

_STOP_REASON: Final[dict[n.Finish, str]] = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
    "error": "end_turn",
    "": "end_turn",
}


def stop_reason(
    finish: n.Finish, *, stop_sequence: str, called: bool, refused: bool
) -> tuple[str, str | None]:
    """`stop_reason` and `stop_sequence` of an answer from another dialect.

    Some providers finish with `stop` although tools are called or the model refused: clients of this API
    look at nothing but the reason.
    """
    if finish == "stop" and called:
        return "tool_use", None
    if finish == "stop" and refused:
        return "refusal", None
    if finish == "stop" and stop_sequence:
        return "stop_sequence", stop_sequence
    return _STOP_REASON[finish], None


# ---- usage


class _Details(Struct):
    thinking_tokens: int | None = None


class _Iteration(Struct):
    type: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None


class WireUsage(Struct):
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    output_tokens_details: _Details | None = None
    iterations: list[_Iteration] | None = None

    def overriding(self, earlier: "WireUsage") -> "WireUsage":
        """A stream's later counts are cumulative; what they leave out keeps its earlier value."""
        return WireUsage(
            *(
                getattr(earlier, name) if getattr(self, name) is None else getattr(self, name)
                for name in self.__struct_fields__
            )
        )

    def normal(self) -> Usage:
        """`input_tokens` holds neither what was read from the cache nor what was written to it.

        The top-level counts leave out compaction, which the same model does at the same price, so
        `iterations` of that type are added. An advisor's iterations are of another model and price:
        they stay in the native usage.
        """
        fresh, output = _count(self.input_tokens), _count(self.output_tokens)
        wrote = _count(self.cache_creation_input_tokens)
        read = _count(self.cache_read_input_tokens)
        for step in self.iterations or ():
            if step.type == "compaction":
                fresh += _count(step.input_tokens)
                output += _count(step.output_tokens)
                wrote += _count(step.cache_creation_input_tokens)
                read += _count(step.cache_read_input_tokens)
        details = self.output_tokens_details
        thought = _count(details.thinking_tokens) if details else 0
        return Usage(
            input=fresh + wrote + read,
            output=output,
            cache_read=read,
            cache_write=wrote,
            reasoning=min(thought, output),
        )


def _count(value: int | None) -> int:
    return max(0, value or 0)


wire_usage: Final = msgspec.json.Decoder(WireUsage).decode


def usage(raw: bytes | Raw) -> Usage:
    """A `usage` object, normalised; zeros for what is not one."""
    try:
        return wire_usage(raw).normal()
    except UNREADABLE:
        return Usage()


def written_usage(used: Usage | None) -> dict[str, object]:
    """Normalised usage as this API counts it."""
    used = used or Usage()
    fresh = max(0, used.input - used.cache_read - used.cache_write)
    written: dict[str, object] = {
        "input_tokens": fresh,
        "cache_creation_input_tokens": used.cache_write,
        "cache_read_input_tokens": used.cache_read,
        "output_tokens": used.output,
    }
    if used.reasoning:
        written["output_tokens_details"] = {"thinking_tokens": used.reasoning}
    return written
