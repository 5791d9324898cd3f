"""Messages of Cohere's v2 chat: what requests and answers have in common.

Source: Cohere API reference, "Chat (v2)", `messages`.
"""

from typing import Final

from msgspec import Raw

from breakwater_gateway.worker.wire import neutral as n
from breakwater_gateway.worker.wire import objects as o
from breakwater_gateway.worker.wire.bad_request import BadRequest

PLAN: Final = "tool_plan"
"""The mark in `layout` of a thought that was `tool_plan`: what the model means to do with its tools."""

_PLANNED: Final = {PLAN: Raw(b"true")}


def plan(text: str) -> n.Thinking:
    return n.Thinking(text=text, layout=_PLANNED)


def is_plan(part: n.Part) -> bool:
    return isinstance(part, n.Thinking) and PLAN in part.layout


def native(raw: Raw) -> n.Native:
    return n.Native(dialect="cohere", raw=raw)


def turn(raw: Raw, at: str) -> n.Turn:
    """One message of a request. Raises BadRequest."""
    given = o.Fields(raw, at)
    role = given.need("role", given.text("role")).lower()
    if role == "assistant":
        parts, plain = assistant_parts(given)
        return n.Turn(role="assistant", parts=parts, plain=plain, extra=given.left)
    if role == "tool":
        call_id = given.need("tool_call_id", given.text("tool_call_id"))
        content, plain = _content(given)
        result = n.ToolResult(call_id=call_id, content=content, plain=plain)
        return n.Turn(role="tool", parts=[result], extra=given.left)
    content, plain = _content(given)
    if role == "system":
        return n.Turn(role="system", parts=content, plain=plain, extra=given.left)
    if role == "user":
        return n.Turn(role="user", parts=content, plain=plain, extra=given.left)
    raise BadRequest(f"'{given.path('role')}' is not a role.", given.path("role"))


def assistant_parts(given: o.Fields) -> tuple[list[n.Part], bool]:
    """The plan, the content and the calls of an assistant's message, and whether the content was a string."""
    parts: list[n.Part] = []
    written = given.text(PLAN)
    if written is not None:
        parts.append(plan(written))
    content, plain = _content(given)
    parts += content
    path = given.path("tool_calls")
    parts += [_call(raw, f"{path}[{at}]") for at, raw in enumerate(given.each("tool_calls"))]
    return parts, plain


def _content(given: o.Fields) -> tuple[list[n.Part], bool]:
    """An empty list stays where it is: it must be sent again."""
    raw = given.left.get("content")
    if raw is None or bytes(raw) in {o.NULL, b"[]"}:
        return [], False
    if o.is_text(raw):
        return [n.Text(text=given.text("content") or "")], True
    path = given.path("content")
    blocks = given.items("content") or []
    return [_part(block, f"{path}[{at}]") for at, block in enumerate(blocks)], False


def _part(raw: Raw, at: str) -> n.Part:
    given = o.Fields(raw, at)
    kind = given.need("type", given.text("type"))
    if kind == "text":
        return n.Text(text=given.need("text", given.text("text")), extra=given.left)
    if kind == "thinking":
        said = given.need("thinking", given.text("thinking"))
        return n.Thinking(text=said, extra=given.left)
    if kind == "image_url":
        image = given.need("image_url", given.child("image_url"))
        url = image.need("url", image.text("url"))
        detail = image.text("detail") or ""
        if image.left or given.left:
            return native(raw)
        inline = o.from_data_url(url)
        if inline is not None and image_url(*inline) == url:
            return n.Image(media_type=inline[0], data=inline[1], detail=detail)
        return n.Image(url=url, detail=detail)
    return native(raw)


def _call(raw: Raw, at: str) -> n.ToolCall:
    given = o.Fields(raw, at)
    function = given.need("function", given.child("function"))
    name = function.need("name", function.text("name"))
    arguments = function.text("arguments")
    given.left.pop("type", None)
    call_id = given.text("id") or ""
    if function.left:
        given.left["function"] = Raw(o.encode(function.left))
    return n.ToolCall(id=call_id, name=name, arguments=arguments or "{}", extra=given.left)


# ---- parts to blocks


def block(part: n.Part) -> o.Body | Raw | None:
    """The content block that says what `part` says, its `extra` included; None where this API has none."""
    written: o.Body
    match part:
        case n.Text(text=text):
            written = {"type": "text", "text": text}
            return written | part.extra
        case n.Refusal(text=text):
            return {"type": "text", "text": text}
        case n.Thinking(text=text) if text or not part.redacted:
            written = {"type": "thinking", "thinking": text}
            return written | part.extra
        case n.Image() if part.url or part.data:
            image: o.Body = {"url": part.url or image_url(part.media_type, part.data)}
            o.put(image, "detail", part.detail)
            return {"type": "image_url", "image_url": image}
        case n.Native(dialect="cohere", raw=raw):
            return raw
        case _:
            return None


def image_url(media_type: str, data: str) -> str:
    return f"data:{media_type or 'image/png'};base64,{data}"


def call(part: n.ToolCall) -> o.Body:
    function: o.Body = {"name": part.name, "arguments": part.arguments or "{}"}
    rest = dict(part.extra)
    inner = rest.pop("function", None)
    if inner is not None:
        function |= o.fields_of(inner)
    written: o.Body = {"type": "function", "function": function}
    o.put(written, "id", part.id)
    return written | rest
