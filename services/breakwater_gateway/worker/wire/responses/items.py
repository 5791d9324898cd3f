"""Items, what a Responses conversation is made of, to parts and back: the same for requests and answers.

One turn of the assistant is several items here (reasoning, messages, calls); they meet in one neutral turn
and are told apart again by `layout`: `item` on a part that began an item holds the item's other fields; a
content part without it goes on with the message before.

Source: OpenAI API reference, "Create a model response" and "The response object".
"""

import re
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Final

import msgspec
from msgspec import Raw

from breakwater_gateway.worker.wire import neutral as n
from breakwater_gateway.worker.wire.bad_request import BadRequest
from breakwater_gateway.worker.wire.openai_chat.fields import (
    ITEMS,
    OBJECT,
    TEXT,
    UNREADABLE,
    Taken,
    decode_fields,
    decode_list,
    encode,
    is_null,
    is_text,
    text_or,
    without_nulls,
)

FIELDS_MAX: Final = 256
"""Fields of one object that are looked at; the API's largest has some forty."""

TRUE: Final = Raw(b"true")
EMPTY: Final = Raw(b"{}")

SEPARATOR: Final = "\n\n"
"""Between the parts of a reasoning summary, in the one text that neutral thinking has."""

_DATA_URL: Final = re.compile(r"data:([^,]{0,256}?);base64,")

SIGNED: Final = "extra_content"
_SIGNATURE: Final = "thought_signature"

_MINTED: Final = "bw"
_ID_BYTES: Final = 12

CALL_ID_MAX: Final = 64
"""Longest `call_id` that OpenAI takes."""


def minted(prefix: str, seed: str, count: int) -> str:
    """An id of this API's look for what another provider made; the same for the same input."""
    digest = blake2b(f"{seed}\n{count}".encode(errors="replace"), digest_size=_ID_BYTES).hexdigest()
    return f"{prefix}_{_MINTED}{digest}"


def _is_minted(given: object) -> bool:
    _, _, tail = given.partition("_") if isinstance(given, str) else ("", "", "")
    return tail.startswith(_MINTED) and len(tail) == len(_MINTED) + 2 * _ID_BYTES


class Dropped:
    """Names of what was asked for and cannot be said, each once, in the order they were met."""

    __slots__ = ("_names",)

    def __init__(self) -> None:
        self._names: dict[str, None] = {}

    def add(self, name: str) -> None:
        self._names[name] = None

    def fields(self, extra: Mapping[str, Raw], where: str = "") -> None:
        for name, value in extra.items():
            if not is_null(value):
                self._names[f"{where}{name}"] = None

    def names(self) -> tuple[str, ...]:
        return tuple(self._names)


def kind_of(part: n.Part) -> str:
    return str(type(part).__struct_config__.tag)


def object_of(raw: Raw | None) -> dict[str, Raw]:
    """The fields of what should be an object; none where it is not."""
    if raw is None:
        return {}
    try:
        return decode_fields(raw)
    except UNREADABLE:
        return {}


def list_of(raw: Raw | None) -> list[Raw]:
    if raw is None:
        return []
    try:
        return decode_list(raw)
    except UNREADABLE:
        return []


# ---------------------------------------------------------------- items to parts


def parts_of_item(raw: Raw, at: str, *, answer: bool) -> list[n.Part]:
    """What an item of the assistant holds. Raises BadRequest where a known item is not of its shape."""
    taken = Taken(raw, at)
    if len(taken.fields) > FIELDS_MAX:
        raise BadRequest(f"'{at}' has more than {FIELDS_MAX} fields.", at)
    kind = text_or(taken.fields.get("type"))
    if kind == "message" or (not kind and "role" in taken.fields):
        return _message(taken, answer=answer)
    if kind == "function_call":
        return [_call(taken)]
    if kind == "reasoning":
        return [_reasoning(taken)]
    return [alone(raw)]


def parts_of_output(items: Iterable[Raw]) -> list[n.Part]:
    """Items of an answer. One that is not as we know it stays native rather than spoil the answer."""
    parts: list[n.Part] = []
    for raw in items:
        try:
            parts.extend(parts_of_item(raw, "output", answer=True))
        except BadRequest:
            parts.append(alone(raw))
    return parts


def alone(raw: Raw) -> n.Native:
    """An item, not a content part, that only this API has."""
    return n.Native(dialect="responses", raw=raw, layout={"alone": TRUE})


def item_rest(fields: dict[str, Raw]) -> Raw:
    return Raw(encode(fields)) if fields else EMPTY


def _message(taken: Taken, *, answer: bool) -> list[n.Part]:
    role = taken.fields.get("role")
    if role is not None and bytes(role) == b'"assistant"':
        del taken.fields["role"]
    parts, plain = contents(taken, "content", "assistant", answer=answer)
    layout = {"item": item_rest(taken.fields)}
    if plain:
        layout["plain"] = TRUE
    if not parts:
        return [n.Text(text="", layout=layout | {"empty": TRUE})]
    return [with_layout(parts[0], layout), *parts[1:]]


def with_layout(part: n.Part, layout: n.Layout) -> n.Part:
    return msgspec.structs.replace(part, layout=part.layout | layout)


def _call(taken: Taken) -> n.ToolCall:
    call_id, name = taken.need("call_id", TEXT), taken.need("name", TEXT)
    arguments = taken.need("arguments", TEXT)
    taken.fields.pop("type", None)
    signature = text_or(
        object_of(object_of(taken.fields.get(SIGNED)).get("google")).get(_SIGNATURE)
    )
    if signature:
        del taken.fields[SIGNED]
    return n.ToolCall(
        id=call_id,
        name=name,
        arguments=arguments,
        signature=signature,
        layout={"item": item_rest(taken.fields)},
    )


def signed(signature: str) -> dict[str, object]:
    """Gemini's proof on a call, in the field that Google's own OpenAI endpoint has for it.

    Callers echo items whole, so it comes back and can go to Gemini again; providers of this API refuse it.
    """
    return {SIGNED: {"google": {_SIGNATURE: signature}}} if signature else {}


def _reasoning(taken: Taken) -> n.Thinking:
    fields = taken.fields
    fields.pop("type", None)
    ours = _texts(fields.get("summary")) or _texts(fields.get("content"))
    text = SEPARATOR.join(ours)
    given = text_or(fields.get("id"))
    if given:
        del fields["id"]
    proof = text_or(fields.get("encrypted_content"))
    if proof:
        del fields["encrypted_content"]
    return n.Thinking(
        text=text,
        signature=proof if text else "",
        redacted="" if text else proof,
        id=given,
        layout={"item": item_rest(fields)},
    )


def _texts(raw: Raw | None) -> list[str]:
    return [text_or(object_of(one).get("text")) for one in list_of(raw)]


def result(taken: Taken) -> n.ToolResult:
    """A `function_call_output`."""
    taken.fields.pop("type", None)
    call_id = taken.need("call_id", TEXT)
    parts, plain = contents(taken, "output", "tool", answer=False)
    layout = {"item": item_rest(taken.fields)} if taken.fields else {}
    return n.ToolResult(call_id=call_id, content=parts, plain=plain, layout=layout)


# ---------------------------------------------------------------- content parts


def contents(taken: Taken, name: str, role: str, *, answer: bool) -> tuple[list[n.Part], bool]:
    """The field's content, and whether it was one string. Raises BadRequest."""
    raw = taken.fields.pop(name, None)
    at = taken.path(name)
    if raw is None or is_null(raw):
        if answer:
            return [], False
        raise BadRequest(f"Missing required parameter: '{at}'.", at)
    if is_text(raw):
        try:
            return [n.Text(text=TEXT.decode(raw))], True
        except UNREADABLE:
            raise BadRequest(f"Invalid type for '{at}': expected a string.", at) from None
    try:
        given = ITEMS.decode(raw)
    except UNREADABLE:
        raise BadRequest(f"Invalid type for '{at}': expected a string or an array.", at) from None
    return [_content(one, f"{at}[{i}]", role, answer=answer) for i, one in enumerate(given)], False


def _content(raw: Raw, at: str, role: str, *, answer: bool) -> n.Part:
    taken = Taken(raw, at)
    kind = taken.take("type", TEXT) or ""
    match kind:
        case "output_text" | "input_text" | "text":
            return _text(taken, kind, role, answer=answer)
        case "refusal":
            said = taken.need("refusal", TEXT)
            return n.Refusal(text=said, layout=_part_layout(taken.fields))
        case "input_image":
            return _image(taken, raw)
        case "input_file":
            return _file(taken, raw)
        case "input_audio":
            return _audio(taken, raw)
        case "":
            raise BadRequest(f"Missing required parameter: '{at}.type'.", f"{at}.type")
        case _:
            return n.Native(dialect="responses", raw=raw)


def _text_type(role: str) -> str:
    return "output_text" if role == "assistant" else "input_text"


def _text(taken: Taken, kind: str, role: str, *, answer: bool) -> n.Text:
    text = taken.need("text", TEXT)
    layout: n.Layout = {}
    if kind != _text_type(role):
        layout["type"] = Raw(encode(kind))
    left = taken.fields
    if not left:
        return n.Text(text=text, layout=layout) if layout else n.Text(text=text)
    if kind == "input_text":
        return n.Text(text=text, extra=without_nulls(left), layout=layout)
    extra: n.Extra = {}
    if answer:
        # Of past answers, in requests, they ask for nothing.
        for name in ("annotations", "logprobs"):
            if bytes(left.get(name, b"[]")) not in {b"[]", b"null"}:
                extra[name] = left.pop(name)
    return n.Text(text=text, extra=extra, layout=layout | _part_layout(left))


def _part_layout(left: dict[str, Raw]) -> n.Layout:
    return {"part": Raw(encode(left))} if left else {}


def _image(taken: Taken, raw: Raw) -> n.Part:
    url, file_id = taken.take("image_url", TEXT) or "", taken.take("file_id", TEXT) or ""
    detail = taken.take("detail", TEXT) or ""
    if bool(url) == bool(file_id):
        return n.Native(dialect="responses", raw=raw)
    inline = _DATA_URL.match(url)
    if inline is not None:
        return n.Image(
            media_type=inline[1], data=url[inline.end() :], detail=detail, extra=taken.rest()
        )
    return n.Image(url=url, file_id=file_id, detail=detail, extra=taken.rest())


def _file(taken: Taken, raw: Raw) -> n.Part:
    data, url = taken.take("file_data", TEXT) or "", taken.take("file_url", TEXT) or ""
    file_id, name = taken.take("file_id", TEXT) or "", taken.take("filename", TEXT) or ""
    if bool(data) + bool(url) + bool(file_id) != 1:
        return n.Native(dialect="responses", raw=raw)
    media_type = ""
    inline = _DATA_URL.match(data)
    if inline is not None:
        media_type, data = inline[1], data[inline.end() :]
    return n.Document(
        media_type=media_type, data=data, url=url, file_id=file_id, name=name, extra=taken.rest()
    )


def _audio(taken: Taken, raw: Raw) -> n.Part:
    given = taken.take("input_audio", OBJECT)
    if given is None or given.keys() != {"data", "format"}:
        return n.Native(dialect="responses", raw=raw)
    data, form = text_or(given["data"]), text_or(given["format"])
    return n.Audio(format=form, data=data, extra=taken.rest())


# ---------------------------------------------------------------- parts to items

Item = dict[str, object] | Raw


class Writer:
    """Turns in, items out. `native`: the turns were decoded from this dialect."""

    def __init__(self, dropped: Dropped, *, native: bool) -> None:
        self.items: list[Item] = []
        self._dropped = dropped
        self._native = native

    def add(self, turn: n.Turn) -> None:
        if not self._native:
            self._dropped.fields(turn.extra, "messages.")
            if turn.name:
                self._dropped.add("messages.name")
        if turn.role == "assistant":
            self._assistant(turn)
        else:
            self._said(turn)

    # ---- the assistant's turns

    def _assistant(self, turn: n.Turn) -> None:
        open_content: list[object] | None = None
        for part in turn.parts:
            written = self._item(part)
            if written is not None:
                self.items.append(written)
                open_content = None
                continue
            content = self.content(part, "assistant")
            if content is None:
                continue
            begins = "item" in part.layout
            if open_content is not None and not begins:
                open_content.append(content)
                continue
            open_content = [] if "empty" in part.layout else [content]
            message: dict[str, object] = self._rest(part.layout) if begins else {"type": "message"}
            message["role"] = "assistant"
            plain = "plain" in part.layout or (turn.plain and not begins)
            if plain and isinstance(part, n.Text):
                message["content"] = part.text
                open_content = None
            else:
                message["content"] = open_content
            self.items.append(message)

    def _item(self, part: n.Part) -> Item | None:
        """The item that `part` is by itself; None for content of a message, or what cannot be said."""
        match part:
            case n.ToolCall():
                self._foreign(part)
                if part.signature:
                    self._dropped.add("messages.tool_call.signature")
                call: dict[str, object] = self._rest(part.layout)
                return call | {
                    "type": "function_call",
                    "call_id": _call_id(part.id),
                    "name": part.name,
                    "arguments": part.arguments if self._native else part.arguments or "{}",
                }
            case n.ToolResult():
                return self._result(part)
            case n.Thinking() if "item" in part.layout and not _is_minted(part.id):
                return reasoning_item(part)
            case n.Native(dialect="responses") if self._native and "alone" in part.layout:
                return part.raw
            case _:
                return None

    def _rest(self, layout: n.Layout) -> dict[str, object]:
        """The other fields of the part's item, without ids that no provider knows."""
        raw = layout.get("item")
        if raw is None or not self._native:
            return {}
        rest: dict[str, object] = dict(object_of(raw))
        given = rest.get("id")
        if isinstance(given, Raw) and _is_minted(text_or(given)):
            del rest["id"]
        return rest

    def _foreign(self, part: n.Part) -> None:
        if not self._native:
            self._dropped.fields(part.extra, "messages.")

    # ---- everybody else's

    def _said(self, turn: n.Turn) -> None:
        content: list[object] = []
        wrote = False
        for part in turn.parts:
            written = self._item(part)
            if written is None:
                made = self.content(part, turn.role)
                if made is not None:
                    content.append(made)
                continue
            if content:
                self._message(turn, content)
                content = []
            self.items.append(written)
            wrote = True
        if content or not wrote:
            self._message(turn, content)

    def _message(self, turn: n.Turn, content: list[object]) -> None:
        role = "user" if turn.role == "tool" else turn.role
        if not content and not self._native:
            return
        message = self._rest(turn.layout)
        message["role"] = role
        only = turn.parts[0] if turn.plain and len(turn.parts) == 1 else None
        message["content"] = only.text if isinstance(only, n.Text) else content
        self.items.append(message)

    def _result(self, part: n.ToolResult) -> Item:
        self._foreign(part)
        if part.is_error:
            self._dropped.add("messages.tool_result.is_error")
        only = part.content[0] if len(part.content) == 1 else None
        plain = part.plain or not self._native
        output: object
        if plain and isinstance(only, n.Text):
            output = only.text
        elif plain and not part.content:
            output = ""
        else:
            made = (self.content(one, "tool") for one in part.content)
            output = [one for one in made if one is not None]
        item = self._rest(part.layout)
        return item | {
            "type": "function_call_output",
            "call_id": _call_id(part.call_id),
            "output": output,
        }

    # ---- content

    def content(self, part: n.Part, role: str) -> object:
        """A content part of a message of `role`; None, and its kind named, where there is none for it."""
        self._foreign(part)
        written = self._content(part, role)
        if written is None:
            self._dropped.add(f"messages.{kind_of(part)}")
        elif isinstance(written, dict) and self._native:
            written |= part.extra
            if "part" in part.layout:
                written |= object_of(part.layout["part"])
        return written

    def _content(self, part: n.Part, role: str) -> dict[str, object] | Raw | None:
        match part:
            case n.Text(text=text):
                given = part.layout.get("type") if self._native else None
                return {"type": given or _text_type(role), "text": text}
            case n.Refusal(text=text) if role == "assistant":
                return {"type": "refusal", "refusal": text}
            case n.Refusal(text=text):
                return {"type": _text_type(role), "text": text}
            case n.Native(dialect="responses", raw=raw) if self._native:
                return raw
            case n.Image() if role != "assistant":
                return _written_image(part)
            case n.Document() if role != "assistant":
                return self._document(part)
            case n.Audio() if role != "assistant" and part.data:
                audio = {"data": part.data, "format": part.format}
                return {"type": "input_audio", "input_audio": audio}
            case _:
                return None

    def _document(self, part: n.Document) -> dict[str, object] | None:
        written: dict[str, object] = {"type": "input_file"}
        if part.data:
            media_type = part.media_type or ("" if self._native else "application/pdf")
            written["file_data"] = _data_url(media_type, part.data)
        elif part.url:
            written["file_url"] = part.url
        elif part.file_id:
            written["file_id"] = part.file_id
        elif part.text:
            if part.name:
                self._dropped.add("messages.document.name")
            return {"type": "input_text", "text": part.text}
        else:
            return None
        if part.name:
            written["filename"] = part.name
        elif part.data and not self._native:
            written["filename"] = "document.pdf"  # the API wants one beside inline data
        return written


def _written_image(part: n.Image) -> dict[str, object] | None:
    written: dict[str, object] = {"type": "input_image"}
    if part.data:
        written["image_url"] = _data_url(part.media_type or "image/png", part.data)
    elif part.url:
        written["image_url"] = part.url
    elif part.file_id:
        written["file_id"] = part.file_id
    else:
        return None
    if part.detail:
        written["detail"] = part.detail
    return written


def _data_url(media_type: str, data: str) -> str:
    return f"data:{media_type};base64,{data}" if media_type else data


def _call_id(given: str) -> str:
    return given if len(given) <= CALL_ID_MAX else minted("call", given, 0)


def reasoning_item(part: n.Thinking) -> dict[str, object]:
    """The item that was decoded to `part`. Its summary is written as it came: it belongs to its proof."""
    item: dict[str, object] = dict(object_of(part.layout.get("item")))
    item["type"] = "reasoning"
    if part.id:
        item["id"] = part.id
    if part.signature or part.redacted:
        item["encrypted_content"] = part.signature or part.redacted
    return item
