"""What callers ask: a Messages body, also as Vertex and Bedrock take it, to the neutral request.

A user's message that begins with tool results becomes one `tool` turn a result, then the user's turn
with the rest; `translate.encode_request` puts them together again.
"""

import re
from typing import Final, Literal, TypeVar
from urllib.parse import unquote

import msgspec
from msgspec import Raw, Struct

from breakwater_gateway.worker.wire import neutral as n
from breakwater_gateway.worker.wire.anthropic import blocks as b
from breakwater_gateway.worker.wire.bad_request import BadRequest

MESSAGES_MAX: Final = 100_000

_T = TypeVar("_T")
SHOWN: Final = "summarized"
"""`thinking.display` where thinking is to be seen."""

_Role = Literal["user", "assistant", "system"]


class _Body(Struct):
    model: str | None = None
    max_tokens: int | None = None
    messages: list[Raw] | None = None
    system: str | list[Raw] | None = None
    tools: list[Raw] | None = None
    tool_choice: dict[str, Raw] | None = None
    thinking: dict[str, Raw] | None = None
    output_config: dict[str, Raw] | None = None
    output_format: dict[str, Raw] | None = None
    metadata: dict[str, Raw] | None = None
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    service_tier: str | None = None
    stream: bool | None = None


class _Message(Struct, forbid_unknown_fields=True):
    role: _Role
    content: str | list[Raw]


_body: Final = msgspec.json.Decoder(_Body).decode
_message: Final = msgspec.json.Decoder(_Message).decode

_KNOWN: Final = frozenset(_Body.__struct_fields__)

# The hosts that name the model and the method in the URL.
_VERTEX: Final = re.compile(r"/models/(?P<model>[^/:]{1,512}):(?P<stream>streamR|r)awPredict\b")
_BEDROCK: Final = re.compile(
    r"/model/(?P<model>[^/]{1,1024})/invoke(?P<stream>-with-response-stream)?(?:$|\?)"
)


def decode_request(body: bytes, *, path: str = "") -> n.Request:
    """A body of `POST /v1/messages`, of `/v1/messages/count_tokens` or of the hosts' own paths.

    `path` is the request's: it tells the method, and on Vertex and Bedrock the model. Raises BadRequest.
    """
    try:
        if not body.isascii():
            body.decode()
        given = _body(body)
        others = b.fields(body)
    except UnicodeError:
        raise BadRequest("The request body is not valid UTF-8") from None
    except msgspec.ValidationError as wrong:
        raise _refused(wrong) from None
    except (msgspec.MsgspecError, RecursionError):
        raise BadRequest("The request body is not a JSON object") from None
    if len(others) > b.FIELDS_MAX:
        raise BadRequest(f"A body may have {b.FIELDS_MAX} top-level fields")
    host = _VERTEX.search(path) or _BEDROCK.search(path)
    model = given.model or (unquote(host["model"]) if host else "")
    if not model:
        raise BadRequest("model: Field required", "model")
    counting = "count_tokens" in path or "count-tokens:" in path
    if given.max_tokens is None and not counting:
        raise BadRequest("max_tokens: Field required", "max_tokens")
    if given.max_tokens is not None and given.max_tokens < 0:
        raise BadRequest("max_tokens: Input should be greater than or equal to 0", "max_tokens")
    if given.messages is None:
        raise BadRequest("messages: Field required", "messages")
    if len(given.messages) > MESSAGES_MAX:
        raise BadRequest(f"messages: at most {MESSAGES_MAX} messages", "messages")
    layout = b.nulls(others)
    layout |= {name: raw for name, raw in others.items() if bytes(raw) in {b"[]", b"{}"}}
    extra = b.rest({name: value for name, value in others.items() if name not in _KNOWN})
    tool_choice, parallel = _tool_choice(given.tool_choice)
    reasoning, form = _output(given, extra, layout)
    stream = given.stream if given.stream is not None else bool(host and _streams(host))
    return n.Request(
        dialect="anthropic",
        model=model,
        turns=_turns(given.system, given.messages),
        tools=[_tool(raw, at) for at, raw in enumerate(given.tools or ())],
        tool_choice=tool_choice,
        parallel_tools=parallel,
        max_output=given.max_tokens,
        temperature=given.temperature,
        top_p=given.top_p,
        top_k=given.top_k,
        stop=given.stop_sequences or [],
        format=form,
        reasoning=reasoning,
        user=_user(given.metadata, extra),
        service_tier=given.service_tier or "",
        stream=stream,
        usage_wanted=True,
        extra=extra,
        layout=layout,
    )


def _streams(host: re.Match[str]) -> bool:
    return bool(host["stream"]) and host["stream"] != "r"


_WHERE: Final = re.compile(r"^(?P<message>.*?)(?: - at `\$\.?(?P<where>[^`]*)`)?$", re.DOTALL)


def _refused(wrong: msgspec.ValidationError) -> BadRequest:
    """msgspec's words with the path first, as this API says it: `max_tokens: Expected …`."""
    found = _WHERE.match(str(wrong)[:500])
    where = re.sub(r"\[(\d+|\.\.\.)\]", r".\1", found["where"] or "") if found else ""
    message = found["message"] if found else ""
    return BadRequest(f"{where}: {message}" if where else message, where or None)


def _shapeless(wrong: b.NotOfThisShape, where: str) -> BadRequest:
    path = f"{where}.{wrong.where}".rstrip(".")
    return BadRequest(f"{path}: {wrong}", path)


def _field(decode: "msgspec.json.Decoder[_T]", raw: Raw, where: str) -> _T:
    try:
        return decode.decode(raw)
    except b.UNREADABLE:
        raise BadRequest(f"{where}: Input is of the wrong type", where) from None


# ---- turns


def _turns(system: str | list[Raw] | None, messages: list[Raw]) -> list[n.Turn]:
    turns: list[n.Turn] = []
    if isinstance(system, str):
        turns.append(n.Turn(role="system", parts=[n.Text(text=system)], plain=True))
    elif system:
        turns.append(n.Turn(role="system", parts=_parts(system, "system")))
    for at, raw in enumerate(messages):
        role, content, extra = _read_message(raw, f"messages.{at}")
        if isinstance(content, str):
            parts: list[n.Part] = [n.Text(text=content)]
            turns.append(n.Turn(role=role, parts=parts, plain=True, extra=extra))
            continue
        parts = _parts(content, f"messages.{at}.content")
        if role == "user":
            _add_user(turns, parts, extra)
        else:
            turns.append(n.Turn(role=role, parts=parts, extra=extra))
    return turns


def _read_message(raw: Raw, where: str) -> tuple[_Role, str | list[Raw], n.Extra]:
    try:
        message = _message(raw)
    except msgspec.ValidationError:
        return _read_odd_message(raw, where)
    except b.UNREADABLE:
        raise BadRequest(f"{where}: Input should be an object", where) from None
    return message.role, message.content, {}


def _read_odd_message(raw: Raw, where: str) -> tuple[_Role, str | list[Raw], n.Extra]:
    """A message with fields that we do not know, or one of the wrong shape."""
    try:
        given = b.fields(raw)
        known = {name: given.pop(name) for name in _Message.__struct_fields__ if name in given}
        message = _message(b.encode(known))
    except msgspec.ValidationError as wrong:
        refused = _refused(wrong)
        path = f"{where}.{refused.param}" if refused.param else where
        raise BadRequest(f"{where}: {refused.message}", path) from None
    except b.UNREADABLE:
        raise BadRequest(f"{where}: Input does not match the expected shape.", where) from None
    return message.role, message.content, b.rest(given)


def _parts(raws: list[Raw], where: str) -> list[n.Part]:
    parts: list[n.Part] = []
    for at, raw in enumerate(raws):
        try:
            parts.append(b.part(raw))
        except b.NotOfThisShape as wrong:
            raise _shapeless(wrong, f"{where}.{at}") from None
        except RecursionError:
            raise BadRequest(f"{where}.{at}: nested too deeply", where) from None
    return parts


def _add_user(turns: list[n.Turn], parts: list[n.Part], extra: n.Extra) -> None:
    """Tool results as turns of their own, in their order, and what the user says between them."""
    said: list[n.Part] = []
    first = len(turns)
    for part in parts:
        if not isinstance(part, n.ToolResult):
            said.append(part)
            continue
        if said:
            turns.append(n.Turn(role="user", parts=said))
            said = []
        turns.append(n.Turn(role="tool", parts=[part]))
    if said or len(turns) == first:
        turns.append(n.Turn(role="user", parts=said))
    if extra:
        turns[first] = msgspec.structs.replace(turns[first], extra=extra)


# ---- tools


def _tool(raw: Raw, at: int) -> n.Tool | n.NativeTool:
    where = f"tools.{at}"
    try:
        given = b.fields(raw)
        if b.string(given, "type", "custom") != "custom":
            return n.NativeTool(dialect="anthropic", raw=raw)
        name = b.string(given, "name")
        description = _nullable_string(given, "description")
    except b.NotOfThisShape as wrong:
        raise _shapeless(wrong, where) from None
    except b.UNREADABLE:
        raise BadRequest(f"{where}: Input should be an object", where) from None
    schema, strict = given.pop("input_schema", None), given.pop("strict", None)
    if schema is None:
        raise BadRequest(f"{where}.input_schema: Field required", f"{where}.input_schema")
    return n.Tool(
        name=name,
        description=description,
        schema=schema,
        strict=None if strict is None else _field(_nullable_bool, strict, f"{where}.strict"),
        extra=b.rest(given),
    )


def _nullable_string(given: dict[str, Raw], name: str) -> str | None:
    if name in given and bytes(given[name]) == b.NULL:
        del given[name]
    return b.string(given, name) if name in given else None


_nullable_bool: Final = msgspec.json.Decoder(bool | None)
_nullable_int: Final = msgspec.json.Decoder(int | None)
_MODES: Final[dict[str, Literal["auto", "none", "required", "named"]]] = {
    "auto": "auto",
    "none": "none",
    "any": "required",
    "tool": "named",
}


def _tool_choice(given: dict[str, Raw] | None) -> tuple[n.ToolChoice | None, bool | None]:
    if given is None:
        return None, None
    try:
        kind = b.string(given, "type")
        mode = _MODES.get(kind)
        if mode is None:
            raise BadRequest("tool_choice.type: one of auto, any, tool, none", "tool_choice.type")
        names = [b.string(given, "name")] if mode == "named" else []
    except b.NotOfThisShape as wrong:
        raise _shapeless(wrong, "tool_choice") from None
    off = given.pop("disable_parallel_tool_use", None)
    single = None if off is None else _field(_nullable_bool, off, "tool_choice")
    parallel = None if single is None else not single
    return n.ToolChoice(mode=mode, names=names, extra=b.rest(given)), parallel


# ---- thinking, format, user


def _output(
    given: _Body, extra: n.Extra, layout: n.Layout
) -> tuple[n.Reasoning | None, n.OutputFormat | None]:
    """Reads `thinking`, `output_config` and the beta's `output_format`; the rest goes to `extra`."""
    config = dict(given.output_config or {})
    try:
        effort = b.string(config, "effort", "")
        reasoning = _reasoning(given.thinking, effort)
        form = None
        if "format" in config and bytes(config["format"]) != b.NULL:
            form = _format(_field(_object, config.pop("format"), "output_config.format"))
        elif given.output_format is not None:
            # The spelling of the beta, and of hosts that have not followed.
            form = _format(given.output_format)
            layout["output_format"] = Raw(b"true")
    except b.NotOfThisShape as wrong:
        raise _shapeless(wrong, "output_config") from None
    left = b.rest(config)
    if left:
        extra["output_config"] = Raw(b.encode(left))
    return reasoning, form


_object: Final = msgspec.json.Decoder(dict[str, Raw])


def _reasoning(thinking: dict[str, Raw] | None, effort: str) -> n.Reasoning | None:
    """`show` is set where thinking is on and not omitted: this API shows what it thinks.

    An effort without `thinking` is one with nothing shown, so the two are told apart.
    """
    if thinking is None:
        return n.Reasoning(effort=effort) if effort else None
    given = dict(thinking)
    try:
        kind = b.string(given, "type")
        display = b.string(given, "display", "")
    except b.NotOfThisShape as wrong:
        raise _shapeless(wrong, "thinking") from None
    if kind == "disabled":
        return n.Reasoning(effort=effort, off=True, extra=b.rest(given))
    budget = None
    if kind == "enabled":
        raw = given.pop("budget_tokens", Raw(b.NULL))
        budget = _field(_nullable_int, raw, "thinking.budget_tokens")
        if budget is None:
            raise BadRequest("thinking.budget_tokens: Field required", "thinking.budget_tokens")
    elif kind != "adaptive":
        given["type"] = Raw(b.encode(kind))
    if display not in {"", SHOWN}:
        given["display"] = Raw(b.encode(display))
        display = ""
    show = display if "display" in given else display or "auto"
    return n.Reasoning(effort=effort, budget=budget, show=show, extra=b.rest(given))


def _format(given: dict[str, Raw]) -> n.OutputFormat:
    given = dict(given)
    if b.string(given, "type") != "json_schema":
        raise b.NotOfThisShape("format.type", "Input should be 'json_schema'")
    schema = given.pop("schema", None)
    if schema is None:
        raise b.NotOfThisShape("format.schema", "Field required")
    return n.OutputFormat(kind="schema", schema=schema, extra=b.rest(given))


def _user(metadata: dict[str, Raw] | None, extra: n.Extra) -> str:
    given = dict(metadata or {})
    try:
        user = b.string(given, "user_id", "")
    except b.NotOfThisShape as wrong:
        raise _shapeless(wrong, "metadata") from None
    left = b.rest(given)
    if left:
        extra["metadata"] = Raw(b.encode(left))
    return user
