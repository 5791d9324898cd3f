"""Requests of the Responses API, from callers and to providers.

Source: OpenAI API reference, "Create a model response".
"""

from collections.abc import Iterable
from typing import Final, Literal

from msgspec import Raw

from breakwater_gateway.worker.wire import neutral as n
from breakwater_gateway.worker.wire.bad_request import BadRequest
from breakwater_gateway.worker.wire.openai_chat.fields import (
    FLAG,
    ITEMS,
    NUMBER,
    OBJECT,
    TEXT,
    WHOLE,
    Taken,
    encode,
    is_null,
    is_text,
    text_or,
)
from breakwater_gateway.worker.wire.responses.answer import TIERS
from breakwater_gateway.worker.wire.responses.items import (
    FIELDS_MAX,
    TRUE,
    Dropped,
    Writer,
    alone,
    contents,
    item_rest,
    object_of,
    parts_of_item,
    result,
)

PATHS: Final = {"responses": "/responses", "compact": "/responses/compact"}

ITEMS_MAX: Final = 100_000
TOOLS_MAX: Final = 10_000

OUTPUT_MIN: Final = 16
"""Least `max_output_tokens` at OpenAI."""

_LOGPROBS: Final = "message.output_text.logprobs"
_PROOFS: Final = "reasoning.encrypted_content"

_NOT_ELSEWHERE: Final = {
    "previous_response_id": "the conversation it continues is kept by the provider that answered it",
    "conversation": "the conversation is kept by the provider that it was created at",
    "prompt": "the prompt template is kept by the provider that it was created at",
    "background": "an answer cannot be fetched later from a provider without this API",
}
"""Fields whose loss would change what is asked, and why no other dialect can have them."""


def refusal(request: n.Request) -> BadRequest | None:
    """Why a request of this dialect must not go to a provider of another; None when it may.

    These are not left to `Call.dropped`: without the history that a provider keeps, the answer would be
    one to another question.
    """
    if request.dialect != "responses":
        return None
    for name, why in _NOT_ELSEWHERE.items():
        if name in request.extra:
            return BadRequest(
                f"'{name}' needs a provider of the Responses API: {why}. Send the whole conversation in"
                " 'input', or choose such a model.",
                name,
            )
    if "endpoint" in request.layout:
        return BadRequest("Only providers of the Responses API can compact a conversation.")
    for turn in request.turns:
        for part in turn.parts:
            if isinstance(part, n.Native) and _kind(part.raw) in {"item_reference", "compaction"}:
                return BadRequest(
                    f"An item of type '{_kind(part.raw)}' means something only to the provider that made it.",
                    "input",
                )
    return None


def _kind(raw: Raw) -> str:
    return text_or(object_of(raw).get("type"), "native")


# ---------------------------------------------------------------- decode


def decode_request(body: bytes, *, path: str = "") -> n.Request:
    """Raises BadRequest. `path` tells `/responses/compact` from `/responses`."""
    try:
        if not body.isascii():
            body.decode()
    except UnicodeDecodeError:
        raise BadRequest("The body is not valid UTF-8.") from None
    taken = Taken(body)
    if len(taken.fields) > FIELDS_MAX:
        raise BadRequest(f"A body may have {FIELDS_MAX} fields, this one has {len(taken.fields)}.")
    layout: n.Layout = {}
    if path.split("?", 1)[0].rstrip("/").endswith(PATHS["compact"]):
        layout["endpoint"] = Raw(b'"compact"')
    model = taken.need("model", TEXT)
    if not model:
        raise BadRequest("'model' is empty.", "model")
    turns = _turns(taken, layout)
    form, reasoning = _format(taken), _reasoning(taken)
    logprobs = _include(taken, layout)
    for name in ("store", "background", "stream"):
        _default(taken, name, b"false", layout)
    stream = taken.take("stream", FLAG) or False
    _default(taken, "truncation", b'"disabled"', layout)
    _default(taken, "tools", b"[]", layout)
    return n.Request(
        dialect="responses",
        model=model,
        turns=turns,
        tools=_tools(taken),
        tool_choice=_choice(taken),
        parallel_tools=taken.take("parallel_tool_calls", FLAG),
        max_output=taken.take("max_output_tokens", WHOLE),
        temperature=taken.take("temperature", NUMBER),
        top_p=taken.take("top_p", NUMBER),
        logprobs=True if logprobs else None,
        top_logprobs=taken.take("top_logprobs", WHOLE),
        format=form,
        reasoning=reasoning,
        user=taken.take("user", TEXT) or "",
        service_tier=taken.take("service_tier", TEXT) or "",
        stream=stream,
        usage_wanted=stream,
        extra=taken.rest(),
        layout=layout,
    )


def _default(taken: Taken, name: str, default: bytes, layout: n.Layout) -> None:
    """A default spelled out asks for nothing."""
    if bytes(taken.fields.get(name, b"")) == default:
        layout[name] = taken.fields.pop(name)


def _include(taken: Taken, layout: n.Layout) -> bool:
    """True where log probabilities are asked for. Proofs of reasoning are always in an answer of ours."""
    raw = taken.fields.get("include")
    if is_null(raw):
        return False
    given = [text_or(one) for one in taken.need("include", ITEMS)]
    assert raw is not None  # noqa: S101 - not null, seen above
    kept = {_LOGPROBS, _PROOFS}
    (layout if kept.issuperset(given) else taken.fields)["include"] = raw
    return _LOGPROBS in given


_HISTORIES: Final = ("previous_response_id", "conversation", "prompt")


def _turns(taken: Taken, layout: n.Layout) -> list[n.Turn]:
    turns: list[n.Turn] = []
    instructions = taken.take("instructions", TEXT)
    if instructions is not None:
        turns.append(_plain("system", instructions, {"instructions": TRUE}))
    given = taken.raw("input")
    if given is None:
        if all(is_null(taken.fields.get(name)) for name in _HISTORIES):
            raise BadRequest("Missing required parameter: 'input'.", "input")
        return turns
    taken.fields["input"] = given
    if is_text(given):
        turns.append(_plain("user", taken.need("input", TEXT), {"input": TRUE}))
        return turns
    items = taken.need("input", ITEMS)
    if len(items) > ITEMS_MAX:
        raise BadRequest(f"'input' has {len(items)} items; {ITEMS_MAX} are possible.", "input")
    if not items:
        layout["input"] = given
    _items(items, turns)
    return turns


def _plain(role: n.Role, text: str, layout: n.Layout) -> n.Turn:
    return n.Turn(role=role, parts=[n.Text(text=text)], plain=True, layout=layout)


_ROLES: Final[dict[str, n.Role]] = {
    "user": "user",
    "system": "system",
    "developer": "developer",
    "assistant": "assistant",
}

_FROM_OUTSIDE: Final = frozenset(
    {"item_reference", "mcp_approval_response", "additional_tools", "tool_search_output"}
)


def _items(items: list[Raw], turns: list[n.Turn]) -> None:
    """What the assistant made in a row is one turn."""
    ours: list[n.Part] = []
    for index, raw in enumerate(items):
        at = f"input[{index}]"
        taken = Taken(raw, at)
        kind = taken.take("type", TEXT) or ""
        role = text_or(taken.fields.get("role"))
        if kind == "message" or (not kind and role):
            if role == "assistant":
                ours.extend(parts_of_item(raw, at, answer=False))
                continue
            turn = _message(taken, kind)
        elif kind == "function_call_output":
            turn = n.Turn(role="tool", parts=[result(taken)])
        elif not kind:
            raise BadRequest(f"Missing required parameter: '{at}.type'.", f"{at}.type")
        elif kind.endswith("_output") or kind in _FROM_OUTSIDE:
            turn = n.Turn(role=_ROLES.get(role, "user"), parts=[alone(raw)])
        else:
            ours.extend(parts_of_item(raw, at, answer=False))
            continue
        if ours:
            turns.append(_assistant(ours))
            ours = []
        turns.append(turn)
    if ours:
        turns.append(_assistant(ours))


def _assistant(parts: list[n.Part]) -> n.Turn:
    texts = [part for part in parts if isinstance(part, n.Text | n.Refusal)]
    plain = len(texts) == 1 and "plain" in texts[0].layout
    return n.Turn(role="assistant", parts=parts, plain=plain)


def _message(taken: Taken, kind: str) -> n.Turn:
    given = taken.need("role", TEXT)
    role = _ROLES.get(given)
    if role is None:
        at = taken.path("role")
        raise BadRequest(
            f"Invalid value: '{given[:64]}'. Supported values are: 'assistant', 'system', 'developer',"
            " and 'user'.",
            at,
        )
    parts, plain = contents(taken, "content", role, answer=False)
    if kind:
        taken.fields["type"] = Raw(b'"message"')
    layout = {"item": item_rest(taken.fields)} if taken.fields else {}
    return n.Turn(role=role, parts=parts, plain=plain, layout=layout)


# ---- tools


def _tools(taken: Taken) -> list[n.Tool | n.NativeTool]:
    given = taken.take("tools", ITEMS)
    if given is None:
        return []
    if len(given) > TOOLS_MAX:
        raise BadRequest(f"'tools' has {len(given)} entries; {TOOLS_MAX} are possible.", "tools")
    return [_tool(raw, f"tools[{index}]") for index, raw in enumerate(given)]


def _tool(raw: Raw, at: str) -> n.Tool | n.NativeTool:
    taken = Taken(raw, at)
    if taken.need("type", TEXT) != "function":
        return n.NativeTool(dialect="responses", raw=raw)
    return n.Tool(
        name=taken.need("name", TEXT),
        description=taken.take("description", TEXT),
        schema=taken.raw("parameters"),
        strict=taken.take("strict", FLAG),
        extra=taken.rest(),
    )


def _choice(taken: Taken) -> n.ToolChoice | None:
    raw = taken.raw("tool_choice")
    if raw is None:
        return None
    if is_text(raw):
        match text_or(raw):
            case "auto" | "none" | "required" as mode:
                return n.ToolChoice(mode=mode)
            case given:
                raise BadRequest(
                    f"Invalid value: '{given[:64]}'. Supported values are: 'none', 'auto', and 'required'.",
                    "tool_choice",
                )
    given_choice = Taken(raw, "tool_choice")
    kind = given_choice.need("type", TEXT)
    if kind == "function":
        name = given_choice.need("name", TEXT)
        return n.ToolChoice(mode="named", names=[name], extra=given_choice.rest())
    if kind == "allowed_tools":
        names = [_function_name(one) for one in given_choice.need("tools", ITEMS)]
        forced = given_choice.need("mode", TEXT) == "required"
        if names and all(names) and not given_choice.fields:
            return n.ToolChoice(mode="required" if forced else "auto", names=names)
    # A hosted tool: only this dialect can name it.
    return n.ToolChoice(mode="auto", extra={"tool_choice": raw})


def _function_name(raw: Raw) -> str:
    given = object_of(raw)
    return text_or(given.get("name")) if given.keys() == {"type", "name"} else ""


# ---- format and reasoning

_KINDS: Final[dict[str, Literal["text", "json"]]] = {"text": "text", "json_object": "json"}


def _format(taken: Taken) -> n.OutputFormat | None:
    """`text.format`; what else `text` holds stays in its place."""
    raw = taken.raw("text")
    if raw is None:
        return None
    text = Taken(raw, "text")
    given = text.take("format", OBJECT)
    rest = text.rest()
    if rest:
        taken.fields["text"] = Raw(encode(rest))
    if given is None:
        return None
    form = Taken(encode(given), "text.format")
    kind = form.need("type", TEXT)
    if kind in _KINDS:
        return n.OutputFormat(kind=_KINDS[kind], extra=form.rest())
    if kind != "json_schema":
        raise BadRequest(
            f"Invalid value: '{kind[:64]}'. Supported values are: 'json_object', 'json_schema', and 'text'.",
            "text.format.type",
        )
    schema = form.raw("schema")
    if schema is None:
        raise BadRequest("Missing required parameter: 'text.format.schema'.", "text.format.schema")
    return n.OutputFormat(
        kind="schema",
        schema=schema,
        name=form.need("name", TEXT),
        description=form.take("description", TEXT),
        strict=form.take("strict", FLAG),
        extra=form.rest(),
    )


def _reasoning(taken: Taken) -> n.Reasoning | None:
    raw = taken.raw("reasoning")
    if raw is None:
        return None
    given = Taken(raw, "reasoning")
    effort = given.take("effort", TEXT) or ""
    return n.Reasoning(
        effort=effort,
        off=effort == "none",
        show=given.take("summary", TEXT) or "",
        extra=given.rest(),
    )


# ---------------------------------------------------------------- encode

_Body = dict[str, object]

_EMPTY_OBJECT: Final = Raw(b'{"type":"object","properties":{}}')

_SUMMARIES: Final = frozenset({"auto", "concise", "detailed"})

_OF_CHAT: Final = frozenset(
    {
        *("metadata", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"),
        *("safety_identifier", "store"),
    }
)
"""OpenAI chat's own fields that mean the same here."""

_EFFORTS: Final = ((0, "none"), (1024, "minimal"), (4096, "low"), (12_288, "medium"))
"""Thinking budgets in tokens, up to and including, and the effort nearest to them."""


def encode_request(request: n.Request, target: n.Target, *, now: float = 0) -> n.Call:  # noqa: ARG001 - all dialects take `now`
    """The call to make. Quirks known: `max_output_min` (int, tokens: the least the host takes)."""
    dropped = Dropped()
    native = request.dialect == "responses"
    body: _Body = {}
    if native:
        body |= request.extra
        body |= request.layout
    body["model"] = target.model
    _write_turns(request.turns, body, Writer(dropped, native=native))
    for name, value in (
        ("parallel_tool_calls", request.parallel_tools),
        ("temperature", request.temperature),
        ("top_p", request.top_p),
        ("top_logprobs", request.top_logprobs),
        ("user", request.user or None),
    ):
        if value is not None:
            body[name] = value
    _write_tools(request, body, dropped, native=native)
    _write_format(request, body, dropped, native=native)
    _write_reasoning(request, body, dropped, native=native)
    if request.stream:
        body["stream"] = True
    if native:
        _native_rest(request, body)
    else:
        _foreign_rest(request, target, body, dropped)
    path = PATHS["compact" if body.pop("endpoint", None) else "responses"]
    return n.Call(path=path, body=encode(body), dropped=dropped.names())


def _native_rest(request: n.Request, body: _Body) -> None:
    if request.max_output is not None:
        body["max_output_tokens"] = request.max_output
    if request.service_tier:
        body["service_tier"] = request.service_tier


def _foreign_rest(request: n.Request, target: n.Target, body: _Body, dropped: Dropped) -> None:
    if request.max_output is not None:
        least = target.quirks.get("max_output_min", OUTPUT_MIN)
        floor = least if isinstance(least, int) else OUTPUT_MIN
        if request.max_output < floor:
            dropped.add("max_output")
        body["max_output_tokens"] = max(floor, request.max_output)
    if request.service_tier in TIERS:
        body["service_tier"] = request.service_tier
    elif request.service_tier:
        dropped.add("service_tier")
    for name, asked in (
        ("top_k", request.top_k is not None),
        ("stop", bool(request.stop)),
        ("seed", request.seed is not None),
        ("n", request.n is not None and request.n > 1),
        ("frequency_penalty", bool(request.frequency_penalty)),
        ("presence_penalty", bool(request.presence_penalty)),
        ("logit_bias", request.logit_bias is not None and bytes(request.logit_bias) != b"{}"),
    ):
        if asked:
            dropped.add(name)
    body.setdefault("input", [])
    # Other dialects keep nothing at the provider unless asked to; this one does unless told not to.
    body["store"] = False
    include = [_LOGPROBS] if request.logprobs or request.top_logprobs else []
    if request.reasoning is not None and not request.reasoning.off:
        include.append(_PROOFS)
    if include:
        body["include"] = include
    for name, value in request.extra.items():
        if request.dialect == "openai" and name in _OF_CHAT:
            body[name] = value
        elif request.dialect == "openai" and name == "verbosity":
            text = body.setdefault("text", {})
            assert isinstance(text, dict)  # noqa: S101 - written above, as a dict
            text["verbosity"] = value
        else:
            dropped.fields({name: value})


def _write_turns(turns: Iterable[n.Turn], body: _Body, writer: Writer) -> None:
    for turn in turns:
        text = turn.parts[0].text if turn.parts and isinstance(turn.parts[0], n.Text) else None
        if text is not None and "instructions" in turn.layout:
            body["instructions"] = text
        elif text is not None and "input" in turn.layout:
            body["input"] = text
        else:
            writer.add(turn)
    if writer.items:
        body["input"] = writer.items


def _write_tools(request: n.Request, body: _Body, dropped: Dropped, *, native: bool) -> None:
    tools: list[object] = []
    for tool in request.tools:
        if isinstance(tool, n.Tool):
            tools.append(_written_tool(tool, dropped, native=native))
        elif tool.dialect == "responses":
            tools.append(tool.raw)
        else:
            dropped.add(f"tools.{_kind(tool.raw)}")
    if tools:
        body["tools"] = tools
    choice = request.tool_choice
    if choice is None:
        return
    if native and "tool_choice" in choice.extra:
        body["tool_choice"] = choice.extra["tool_choice"]
        return
    if not native:
        dropped.fields(choice.extra, "tool_choice.")
        if not tools:
            return
    body["tool_choice"] = _written_choice(choice)


def _written_choice(choice: n.ToolChoice) -> object:
    if choice.mode == "named" and len(choice.names) == 1:
        return {"type": "function", "name": choice.names[0]} | choice.extra
    mode = "required" if choice.mode == "named" else choice.mode
    if choice.names and mode != "none":
        tools = [{"type": "function", "name": name} for name in choice.names]
        return {"type": "allowed_tools", "mode": mode, "tools": tools}
    return mode


def _written_tool(tool: n.Tool, dropped: Dropped, *, native: bool) -> _Body:
    written: _Body = {"type": "function", "name": tool.name}
    if tool.description is not None:
        written["description"] = tool.description
    if native:
        if tool.schema is not None:
            written["parameters"] = tool.schema
        if tool.strict is not None:
            written["strict"] = tool.strict
        return written | tool.extra
    dropped.fields(tool.extra, "tools.")
    written["parameters"] = _EMPTY_OBJECT if is_null(tool.schema) else tool.schema
    # Left out it would mean true here, and false where the caller comes from.
    written["strict"] = bool(tool.strict)
    return written


def _write_format(request: n.Request, body: _Body, dropped: Dropped, *, native: bool) -> None:
    form = request.format
    if form is None:
        return
    written: _Body
    if form.kind == "schema":
        written = {"type": "json_schema", "name": form.name or "response"}
        written["schema"] = form.schema if form.schema is not None else Raw(b"{}")
        if form.description is not None:
            written["description"] = form.description
        if form.strict is not None:
            written["strict"] = form.strict
    else:
        written = {"type": "json_object" if form.kind == "json" else "text"}
    if native:
        written |= form.extra
    else:
        dropped.fields(form.extra, "response_format.")
    rest = body.get("text")
    text: _Body = dict(object_of(rest)) if isinstance(rest, Raw) else {}
    body["text"] = text | {"format": written}


def _write_reasoning(request: n.Request, body: _Body, dropped: Dropped, *, native: bool) -> None:
    wanted = request.reasoning
    if wanted is None:
        return
    written: _Body = {}
    effort = wanted.effort or ("none" if wanted.off else "")
    if not effort and wanted.budget is not None:
        effort = next((name for most, name in _EFFORTS if wanted.budget <= most), "high")
        if wanted.budget > 0:
            dropped.add("reasoning.budget")
    if effort:
        written["effort"] = effort
    if wanted.show:
        written["summary"] = wanted.show if native or wanted.show in _SUMMARIES else "auto"
    if native:
        written |= wanted.extra
    else:
        dropped.fields(wanted.extra, "reasoning.")
    if written or native:
        body["reasoning"] = written
