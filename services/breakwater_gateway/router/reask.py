"""A second question after a tool call that could not be made: what was wrong with it, and what it must look like.

It is said in words, as a turn of the user's, since a call whose arguments are no JSON cannot stand in any
dialect's history. In dialects whose turns alternate it joins the user's last one.
"""

from typing import Final

import msgspec
from msgspec import Raw

from breakwater_protocol import failures as f

SCHEMA_MAX: Final = 8_192
"""Characters of a tool's schema that are repeated."""

_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_items = msgspec.json.Decoder(list[Raw]).decode
_text = msgspec.json.Decoder(str).decode
_encode = msgspec.json.encode
_UNREADABLE: Final = (msgspec.MsgspecError, UnicodeError, RecursionError)


def reask(body: bytes, api: str, failure: f.MalformedToolCall) -> bytes | None:
    """`body` with the question to call the tool again; None where the dialect has no place for it."""
    try:
        fields = _fields(body)
        said = _question(failure, _schema(fields, api, failure.tool))
        match api:
            case "chat":
                turns: list[object] = list(_items(fields["messages"]))
                fields["messages"] = Raw(_encode([*turns, {"role": "user", "content": said}]))
            case "responses":
                fields["input"] = Raw(_encode(_with_item(fields["input"], said)))
            case "messages":
                fields["messages"] = Raw(_encode(_with_message(fields["messages"], said)))
            case "generate":
                fields["contents"] = Raw(_encode(_with_content(fields["contents"], said)))
            case _:
                return None
    except (*_UNREADABLE, KeyError):
        return None
    return _encode(fields)


def _question(failure: f.MalformedToolCall, schema: str) -> str:
    lines = [
        (
            f"The tool {failure.tool} was called with arguments that are not a JSON object"
            f" ({failure.fault or 'they do not parse'}):"
        ),
        failure.written,
        "Call it again with arguments that are one JSON object"
        + (", and fit this schema:" if schema else "."),
    ]
    return "\n".join([*lines, schema] if schema else lines)


def _schema(fields: dict[str, Raw], api: str, name: str) -> str:
    """Of the tool of that name, as the caller wrote it; empty when it has none."""
    for raw in _list(fields.get("tools")):
        tool = _object(raw)
        declared = [tool]
        if api == "chat":
            declared = [_object(tool.get("function"))]
        elif api == "generate":
            found = tool.get("functionDeclarations") or tool.get("function_declarations")
            declared = [_object(each) for each in _list(found)]
        for one in declared:
            if _string(one.get("name")) != name:
                continue
            for key in ("parameters", "input_schema", "parametersJsonSchema"):
                if key in one:
                    text = bytes(one[key]).decode()
                    return text if len(text) <= SCHEMA_MAX else ""
    return ""


def _with_item(given: Raw, said: str) -> list[object]:
    turn = {"type": "message", "role": "user", "content": said}
    if bytes(given)[:1] == b'"':
        return [{"type": "message", "role": "user", "content": _text(given)}, turn]
    return [*_items(given), turn]


def _with_message(given: Raw, said: str) -> list[object]:
    turns: list[object] = list(_items(given))
    last = _object(turns[-1]) if turns and isinstance(turns[-1], Raw) else {}
    block = {"type": "text", "text": said}
    if _string(last.get("role")) != "user":
        return [*turns, {"role": "user", "content": said}]
    content = last.get("content", Raw(b'""'))
    if bytes(content)[:1] == b'"':
        blocks: list[object] = [{"type": "text", "text": _text(content)}, block]
        if not _text(content):
            blocks = [block]
    else:
        blocks = [*_items(content), block]
    return [*turns[:-1], {**last, "content": blocks}]


def _with_content(given: Raw, said: str) -> list[object]:
    turns: list[object] = list(_items(given))
    last = _object(turns[-1]) if turns and isinstance(turns[-1], Raw) else {}
    if _string(last.get("role")) == "model" or not turns:
        return [*turns, {"role": "user", "parts": [{"text": said}]}]
    return [*turns[:-1], {**last, "parts": [*_list(last.get("parts")), {"text": said}]}]


def _string(raw: Raw | None) -> str:
    return _text(raw) if raw is not None and bytes(raw)[:1] == b'"' else ""


def _list(raw: Raw | None) -> list[Raw]:
    return _items(raw) if raw is not None and bytes(raw)[:1] == b"[" else []


def _object(raw: Raw | None) -> dict[str, Raw]:
    return _fields(raw) if raw is not None and bytes(raw)[:1] == b"{" else {}
