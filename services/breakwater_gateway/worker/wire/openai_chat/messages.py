"""Turns and their parts, read from and written as chat messages.

Source: OpenAI API reference, "Create chat completion", `messages`; for parts that only hosts have:
Mistral ("Document understanding", "Reasoning"), Perplexity ("File attachments"), OpenRouter
("Reasoning tokens", "PDF inputs"), LiteLLM (`thinking_blocks`), Gemini ("OpenAI compatibility").
"""

import base64
import hashlib
import re
from typing import Final, TypeVar, get_args

import msgspec
from msgspec import Raw

from breakwater_gateway.worker.wire.bad_request import BadRequest
from breakwater_gateway.worker.wire.neutral import (
    Audio,
    Document,
    Extra,
    Image,
    Native,
    Part,
    Refusal,
    Role,
    Text,
    Thinking,
    ToolCall,
    ToolResult,
    Turn,
    Video,
)
from breakwater_gateway.worker.wire.openai_chat.fields import (
    ITEMS,
    OBJECT,
    TEXT,
    UNREADABLE,
    Taken,
    decode_fields,
    encode,
    is_text,
    minted,
    refuse,
)
from breakwater_gateway.worker.wire.openai_chat.quirks import Quirks

_ROLES: Final = frozenset({*get_args(Role), "function"})
_DATA_URL: Final = re.compile(r"data:([\w.+-]{1,100}/[\w.+-]{1,100});base64,")
_SHORT_ID: Final = re.compile(r"[a-zA-Z0-9]{9}")
_NAMES: Final = {"application/pdf": "document.pdf", "text/plain": "document.txt"}

Json = dict[str, object]
T = TypeVar("T")

# ---------------------------------------------------------------- reading


def read_turn(raw: Raw, at: str) -> Turn:
    """One message. Raises BadRequest."""
    taken = Taken(raw, at)
    role = taken.need("role", TEXT)
    if role not in _ROLES:
        raise BadRequest(f"Invalid value for '{at}.role': {role[:40]!r}.", f"{at}.role")
    content = taken.raw("content")
    plain = content is not None and is_text(content)
    parts = [] if content is None else read_content(content, f"{at}.content")
    name = taken.take("name", TEXT) or ""
    if role in {"tool", "function"}:
        result = ToolResult(
            call_id=taken.take("tool_call_id", TEXT) or "", name=name, content=parts
        )
        return Turn("tool", [result], plain=plain, extra=taken.rest())
    if role == "assistant":
        parts = [*read_thinking(taken), *parts]
        refusal = taken.take("refusal", TEXT)
        if refusal:
            parts.append(Refusal(text=refusal))
        parts += read_tool_calls(taken)
        return Turn("assistant", parts, name=name, plain=plain, extra=taken.rest())
    return Turn(msgspec.convert(role, Role), parts, name=name, plain=plain, extra=taken.rest())


def read_content(content: Raw, at: str) -> list[Part]:
    if is_text(content):
        return [Text(text=_as(TEXT, content, at))]
    items: list[Raw] = _as(ITEMS, content, at, "a string or an array")
    return [read_part(item, f"{at}[{number}]") for number, item in enumerate(items)]


def read_part(raw: Raw, at: str) -> Part:
    """One part of a content list; a kind that is unknown stays native."""
    taken = Taken(raw, at)
    kind = taken.take("type", TEXT)
    if kind in {"text", "input_text", "output_text"}:
        return Text(text=taken.need("text", TEXT), extra=taken.rest())
    if kind == "image_url":
        inner, rest = _inner(taken, kind)
        url = inner.need("url", TEXT)
        found = _DATA_URL.match(url)
        media_type, data = (found[1], url[found.end() :]) if found else ("", "")
        return Image(
            media_type=media_type,
            data=data,
            url="" if data else url,
            detail=inner.take("detail", TEXT) or "",
            extra=_nest(rest, kind, inner),
        )
    if kind == "input_audio":
        inner, rest = _inner(taken, kind)
        return Audio(
            format=inner.take("format", TEXT) or "",
            data=inner.need("data", TEXT),
            extra=_nest(rest, kind, inner),
        )
    if kind == "file":
        inner, rest = _inner(taken, kind)
        data = inner.take("file_data", TEXT) or ""
        found = _DATA_URL.match(data)
        is_url = data.startswith(("https://", "http://"))
        return Document(
            media_type=found[1] if found else "",
            data=data[found.end() :] if found else ("" if is_url else data),
            url=data if is_url else "",
            file_id=inner.take("file_id", TEXT) or "",
            name=inner.take("filename", TEXT) or "",
            extra=_nest(rest, kind, inner),
        )
    if kind in {"document_url", "file_url"}:
        inner, rest = _inner(taken, kind)
        url = inner.need("url", TEXT)
        found = _DATA_URL.match(url)
        return Document(
            media_type=found[1] if found else "",
            data=url[found.end() :] if found else "",
            url="" if found else url,
            name=taken.take("document_name", TEXT) or "",
            extra=_nest(taken.rest(), kind, inner),
        )
    if kind == "video_url":
        inner, rest = _inner(taken, kind)
        return Video(url=inner.need("url", TEXT), extra=_nest(rest, kind, inner))
    if kind == "refusal":
        return Refusal(text=taken.need("refusal", TEXT), extra=taken.rest())
    if kind == "thinking":
        return read_thinking_part(raw)
    return Native(dialect="openai", raw=raw)


def read_thinking_part(raw: Raw) -> Part:
    """Mistral's `thinking` is a list of texts; Anthropic's, in LiteLLM's wrapping, a string."""
    taken = Taken(raw)
    taken.fields.pop("type", None)
    thinking = taken.raw("thinking")
    if thinking is None:
        return Native(dialect="openai", raw=raw)
    if is_text(thinking):
        text = _as(TEXT, thinking, "thinking")
    else:
        pieces: list[str] = []
        for item in _as(ITEMS, thinking, "thinking"):
            piece = Taken(item)
            if piece.take("type", TEXT) != "text":
                # References among the thoughts: only Mistral can read them.
                return Native(dialect="openai", raw=raw)
            pieces.append(piece.need("text", TEXT))
        text = "".join(pieces)
    signature = taken.take("signature", TEXT) or ""
    # `closed` says that the thought is whole, which here it always is.
    taken.fields.pop("closed", None)
    return Thinking(text=text, signature=signature, extra=taken.rest())


def read_thinking(taken: Taken) -> list[Part]:
    """Reasoning that stands in fields of its own, beside the content."""
    text = _text(taken, "reasoning_content") or _text(taken, "reasoning")
    blocks = taken.raw("thinking_blocks")
    if blocks is not None:
        return [_block(item) for item in _as(ITEMS, blocks, taken.path("thinking_blocks"))]
    details = taken.fields.get("reasoning_details")
    signed, signature, hidden = read_details(details)
    parts: list[Part] = [Thinking(redacted=item) for item in hidden]
    if text or signed or signature:
        parts.insert(0, Thinking(text=text or signed, signature=signature))
    if parts and not text and details is not None:
        # Nothing but the details: they go back with the thought that they are.
        del taken.fields["reasoning_details"]
        first = msgspec.structs.replace(parts[0], extra={"reasoning_details": details})
        return [first, *parts[1:]]
    return parts


def _text(taken: Taken, name: str) -> str:
    raw = taken.fields.get(name)
    if raw is None or not is_text(raw) or bytes(raw) == b'""':
        return ""
    return taken.take(name, TEXT) or ""


def _block(raw: Raw) -> Part:
    taken = Taken(raw)
    if taken.take("type", TEXT) == "redacted_thinking":
        return Thinking(redacted=taken.need("data", TEXT))
    return read_thinking_part(raw)


class _Detail(msgspec.Struct):
    type: str = ""
    text: str | None = None
    summary: str | None = None
    signature: str | None = None
    data: str | None = None


_details: Final = msgspec.json.Decoder(list[_Detail])


def read_details(raw: Raw | None) -> tuple[str, str, list[str]]:
    """OpenRouter's `reasoning_details`: (text, the one signature, encrypted blocks). They also stay native."""
    if raw is None:
        return "", "", []
    try:
        details = _details.decode(raw)
    except UNREADABLE:
        return "", "", []
    signatures = [item.signature for item in details if item.signature]
    return (
        "".join(item.text or item.summary or "" for item in details),
        signatures[0] if len(signatures) == 1 else "",
        [item.data for item in details if item.type == "reasoning.encrypted" and item.data],
    )


def read_tool_calls(taken: Taken, *, mint: str = "", candidate: int = 0) -> list[Part]:
    """`tool_calls`, and the `function_call` of before, which has no id.

    `mint`: what ids are made from where the host sends none; "" keeps them empty.
    """
    parts: list[Part] = []
    at = taken.path("tool_calls")
    items: list[Raw] | None = taken.take("tool_calls", ITEMS)
    for number, item in enumerate(items or ()):
        call = Taken(item, f"{at}[{number}]")
        kind = call.take("type", TEXT) or "function"
        if kind != "function" or "function" not in call.fields:
            parts.append(Native(dialect="openai", raw=item))
            continue
        function = Taken(call.need("function", RAW), call.path("function"))
        ident = call.take("id", TEXT) or ""
        signature, rest = _signature(call)
        parts.append(
            ToolCall(
                id=ident or (minted(mint, candidate, number) if mint else ""),
                name=function.need("name", TEXT),
                arguments=_arguments(function),
                signature=signature,
                extra=_nest(rest, "function", function),
            )
        )
    legacy = taken.fields.get("function_call")
    if legacy is not None and bytes(legacy)[:1] == b"{":
        call = Taken(legacy, taken.path("function_call"))
        name = call.take("name", TEXT)
        if name:
            del taken.fields["function_call"]
            parts.append(ToolCall(id="", name=name, arguments=_arguments(call), extra=call.rest()))
    return parts


RAW: Final = msgspec.json.Decoder(Raw)


def _arguments(function: Taken) -> str:
    """JSON text; some hosts send the object itself."""
    raw = function.raw("arguments")
    if raw is None:
        return ""
    if is_text(raw):
        return _as(TEXT, raw, function.path("arguments"))
    try:
        return bytes(raw).decode()
    except UnicodeDecodeError:
        refuse(function.path("arguments"), "a string")


class _Google(msgspec.Struct):
    thought_signature: str = ""


class _ExtraContent(msgspec.Struct):
    google: _Google | None = None


_extra_content: Final = msgspec.json.Decoder(_ExtraContent)


def signature_of(raw: Raw | None) -> str:
    """Gemini's thought signature, as its OpenAI endpoint carries it."""
    if raw is None:
        return ""
    try:
        google = _extra_content.decode(raw).google
    except UNREADABLE:
        return ""
    return google.thought_signature if google else ""


def _signature(call: Taken) -> tuple[str, Extra]:
    signature = signature_of(call.fields.get("extra_content"))
    if signature:
        del call.fields["extra_content"]
    return signature, call.rest()


def _inner(taken: Taken, name: str) -> tuple[Taken, Extra]:
    """The object that holds a part's payload; a bare string is its URL (Mistral)."""
    raw = taken.raw(name)
    if raw is None:
        at = taken.path(name)
        raise BadRequest(f"Missing required parameter: '{at}'.", at)
    if is_text(raw):
        raw = Raw(b'{"url":' + bytes(raw) + b"}")
    return Taken(raw, taken.path(name)), taken.rest()


def _nest(extra: Extra, name: str, inner: Taken) -> Extra:
    rest = inner.rest()
    if rest:
        extra[name] = Raw(encode(rest))
    return extra


def _as(decoder: msgspec.json.Decoder[T], raw: Raw, at: str, expected: str = "") -> T:
    try:
        return decoder.decode(raw)
    except UNREADABLE:
        refuse(at, expected or ("a string" if decoder.type is str else "an array"))


# ---------------------------------------------------------------- writing


class Writer:
    """Writes turns for one host, and notes what it could not say."""

    __slots__ = ("_calls", "_dropped", "_minted", "native", "quirks")

    def __init__(self, quirks: Quirks, *, native: bool) -> None:
        self.quirks = quirks
        self.native = native
        """The turns' extras are this dialect's own, and are written back."""
        self._dropped: dict[str, None] = {}
        self._minted: list[str] = []
        self._calls = 0

    @property
    def dropped(self) -> tuple[str, ...]:
        return tuple(self._dropped)

    def drop(self, name: str) -> None:
        self._dropped[name] = None

    def turns(self, turns: list[Turn]) -> list[Json]:
        written: list[Json] = []
        for turn in turns:
            written += self._turn(turn)
        return written

    def extras(self, out: Json, extra: Extra, where: str) -> None:
        """Native fields go back where they were; an object that we also write into is merged."""
        if not extra:
            return
        if not self.native:
            for name in extra:
                self.drop(f"{where}.{name}")
            return
        for name, raw in extra.items():
            mine = out.get(name)
            if isinstance(mine, dict):
                mine.update(decode_fields(raw))
            elif name not in out:
                out[name] = raw

    def _turn(self, turn: Turn) -> list[Json]:
        results = [part for part in turn.parts if isinstance(part, ToolResult)]
        if not results:
            return self._message(turn, turn.parts)
        messages: list[Json] = []
        following: list[Part] = []
        for result in results:
            message, media = self._result(result, plain=turn.plain)
            if turn.role == "tool":
                self.extras(message, turn.extra, "messages")
            messages.append(message)
            following += media
        following += [part for part in turn.parts if not isinstance(part, ToolResult)]
        if following:
            messages += self._message(Turn("user", following, name=turn.name), following)
        return messages

    def _message(self, turn: Turn, parts: list[Part]) -> list[Json]:
        role = turn.role
        if role == "tool":
            # A tool turn without a result answers no call.
            self.drop("messages.tool")
            return []
        if role == "developer" and not self.quirks.developer_role:
            role = "system"
        out: Json = {"role": role}
        if turn.name:
            out["name"] = turn.name
        if role == "assistant":
            self._assistant(out, turn, parts)
        else:
            content = self._content(parts, turn, where=role)
            if content is None:
                if parts:
                    return []
                content = ""
            out["content"] = content
        self.extras(out, turn.extra, "messages")
        return [out]

    def _assistant(self, out: Json, turn: Turn, parts: list[Part]) -> None:
        thoughts = [part for part in parts if isinstance(part, Thinking)]
        calls = [part for part in parts if isinstance(part, ToolCall)]
        natives = [
            part.raw
            for part in parts
            if isinstance(part, Native) and self.native and is_call(part.raw)
        ]
        refusal = "".join(part.text for part in parts if isinstance(part, Refusal))
        said: list[Part] = [
            part
            for part in parts
            if not isinstance(part, ToolCall | Refusal)
            and not (isinstance(part, Thinking) and self.quirks.reasoning_field != "parts")
            and not (isinstance(part, Native) and part.raw in natives)
        ]
        out["content"] = self._content(said, turn, where="assistant")
        if refusal:
            out["refusal"] = refusal
        self._thoughts(out, turn, thoughts)
        legacy = [call for call in calls if not call.id] if self.native else []
        if legacy:
            out["function_call"] = {"name": legacy[0].name, "arguments": legacy[0].arguments}
        tools = [self._call(call) for call in calls if call not in legacy]
        if tools or natives:
            out["tool_calls"] = [*tools, *natives]

    def _thoughts(self, out: Json, turn: Turn, thoughts: list[Thinking]) -> None:
        if not thoughts:
            return
        field = self.quirks.reasoning_field
        details = thoughts[0].extra.get("reasoning_details")
        detailed = self.native and (details is not None or "reasoning_details" in turn.extra)
        for part in thoughts:
            self.extras(out, part.extra, "reasoning")
        if self.quirks.thinking_blocks:
            out["thinking_blocks"] = [thinking_block(part) for part in thoughts]
            return
        if field == "":
            self.drop("messages.reasoning")
            return
        text = "".join(part.text for part in thoughts)
        if field in {"reasoning_content", "reasoning"}:
            if text and not (self.native and details is not None):
                out[field] = text
        elif field == "details" and not detailed:
            self.drop("messages.reasoning")
        if not detailed and any(part.signature or part.redacted for part in thoughts):
            self.drop("messages.reasoning.signature")

    def _call(self, call: ToolCall) -> Json:
        ident = call.id
        if not ident:
            ident = f"call_{self._calls}"
            self._minted.append(ident)
        self._calls += 1
        function: Json = {"name": call.name, "arguments": call.arguments}
        out: Json = {"id": self._id(ident), "type": "function", "function": function}
        if call.signature:
            if self.quirks.signatures:
                out["extra_content"] = {"google": {"thought_signature": call.signature}}
            else:
                self.drop("tool_calls.signature")
        self.extras(out, call.extra, "tool_calls")
        return out

    def _id(self, ident: str) -> str:
        """Mistral takes nine letters or digits: other ids are shortened, a call's and its result's alike."""
        if not self.quirks.short_ids or _SHORT_ID.fullmatch(ident):
            return ident
        digest = hashlib.sha256(ident.encode("utf-8", "surrogatepass")).digest()
        return base64.b32encode(digest)[:9].decode()

    def _result(self, result: ToolResult, *, plain: bool) -> tuple[Json, list[Part]]:
        """The tool message, and the media that must follow in a user turn."""
        out: Json = {"role": "tool"}
        ident = result.call_id
        if self.native and not ident and result.name:
            out["role"] = "function"
        else:
            out["tool_call_id"] = self._id(ident or (self._minted.pop(0) if self._minted else ""))
        if self.native and result.name:
            out["name"] = result.name
        if result.is_error:
            self.drop("tool_result.is_error")
        said: list[Part] = []
        media: list[Part] = []
        for part in result.content:
            fits = (
                self.quirks.tool_images
                if isinstance(part, Image)
                else (self.native or isinstance(part, Text))
            )
            (said if fits else media).append(part)
        content = self._content(said, Turn("tool", plain=plain), where="tool")
        out["content"] = "" if content is None else content
        self.extras(out, result.extra, "tool_result")
        return out, media

    def _content(self, parts: list[Part], turn: Turn, *, where: str) -> str | list[object] | None:
        """One string where it was one or the host wants one, else a list; None for nothing."""
        if turn.plain and len(parts) == 1:
            only = parts[0]
            if isinstance(only, Text) and not (self.native and only.extra):
                self.extras({}, only.extra, "content")
                return only.text
        texts = [part.text for part in parts if isinstance(part, Text)]
        if len(texts) == len(parts):
            if not parts:
                return None
            bare = not self.native or not self.quirks.text_lists
            if bare and (where != "user" or len(texts) == 1):
                for part in parts:
                    self.extras({}, part.extra, "content")
                return ("" if where == "assistant" else "\n").join(texts)
        written = [item for part in parts if (item := self._part(part)) is not None]
        return written or None

    def _part(self, part: Part) -> object | None:
        out: Json
        match part:
            case Text():
                out = {"type": "text", "text": part.text}
            case Image():
                if not part.data and not part.url:
                    self.drop("image.file_id")
                    return None
                url = f"data:{part.media_type};base64,{part.data}" if part.data else part.url
                image: Json = {"url": url}
                if part.detail:
                    image["detail"] = part.detail
                out = {"type": "image_url", "image_url": image}
            case Audio():
                if not part.data:
                    self.drop("audio.url")
                    return None
                out = {
                    "type": "input_audio",
                    "input_audio": {"data": part.data, "format": part.format},
                }
            case Document():
                found = self._document(part)
                if found is None:
                    self.drop("document.url")
                    return None
                out = found
            case Video():
                if not self.quirks.video_url:
                    self.drop("video")
                    return None
                url = part.url or f"data:{part.media_type};base64,{part.data}"
                out = {"type": "video_url", "video_url": {"url": url}}
            case Thinking():
                if self.quirks.reasoning_field != "parts" or not part.text:
                    self.drop("messages.reasoning")
                    return None
                out = {"type": "thinking", "thinking": [{"type": "text", "text": part.text}]}
                if part.signature and self.native:
                    out["signature"] = part.signature
            case Refusal():
                out = {"type": "refusal", "refusal": part.text}
            case Native():
                if self.native:
                    return part.raw
                self.drop(f"content.{part.dialect}")
                return None
            case ToolCall() | ToolResult():
                self.drop("content.tool")
                return None
        self.extras(out, part.extra, "content")
        return out

    def _document(self, part: Document) -> Json | None:
        if part.text:
            return {"type": "text", "text": part.text}
        data_url = f"data:{part.media_type};base64,{part.data}" if part.media_type else part.data
        how = self.quirks.document_url
        if how == "document_url" and (part.url or part.data):
            out: Json = {"type": "document_url", "document_url": part.url or data_url}
            if part.name:
                out["document_name"] = part.name
            return out
        if how == "file_url" and (part.url or part.data):
            return {"type": "file_url", "file_url": {"url": part.url or part.data}}
        file: Json = {}
        if part.name:
            file["filename"] = part.name
        if part.file_id:
            file["file_id"] = part.file_id
        elif part.data:
            file["file_data"] = data_url
            if not part.name and not self.native:
                file["filename"] = _NAMES.get(part.media_type, "document")
        elif part.url and how == "file_data":
            file["file_data"] = part.url
        else:
            return None
        return {"type": "file", "file": file}


def thinking_block(part: Thinking) -> Json:
    if part.redacted:
        return {"type": "redacted_thinking", "data": part.redacted}
    return {"type": "thinking", "thinking": part.text, "signature": part.signature}


def is_call(raw: Raw) -> bool:
    """A native tool call (`custom`), rather than a part of the content."""
    try:
        fields = OBJECT.decode(raw)
    except UNREADABLE:
        return False
    return "custom" in fields or ("id" in fields and "function" in fields)
