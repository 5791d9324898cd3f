"""Chat requests of Cohere's v2 API: recorded bodies to the neutral request, and that to a call.

Source: Cohere API reference, "Chat (v2)"; documentation, "Reasoning", "Structured outputs", "Tool use".
"""

from typing import Final

import msgspec
from msgspec import Raw

from breakwater_gateway.worker.wire import neutral as n
from breakwater_gateway.worker.wire import objects as o
from breakwater_gateway.worker.wire.bad_request import BadRequest
from breakwater_gateway.worker.wire.cohere import messages as m
from breakwater_gateway.worker.wire.function_tool import function_tool

PATHS: Final = {"chat": "/v2/chat", "embeddings": "/v2/embed"}
"""The catalogue's base URL ends at the host."""

BUDGETS: Final = {
    "minimal": 1024,
    "low": 2048,
    "medium": 8192,
    "high": 16_384,
    "xhigh": 32_768,
    "max": 32_768,
}
"""Thinking tokens that stand for an effort: the API knows a budget only."""


def decode_request(body: bytes, *, path: str = "") -> n.Request:  # noqa: ARG001 - all dialects take `path`
    """A body of `POST /v2/chat`. Raises BadRequest."""
    given = o.Fields(body)
    model = given.need("model", given.text("model"))
    raws = given.need("messages", given.items("messages"))
    if len(raws) > o.MESSAGES_MAX:
        raise BadRequest(f"'messages' may have {o.MESSAGES_MAX} items.", "messages")
    request = n.Request(
        dialect="cohere",
        model=model,
        turns=[m.turn(raw, f"messages[{at}]") for at, raw in enumerate(raws)],
        tools=[
            function_tool(raw, f"tools[{at}]", "cohere")
            for at, raw in enumerate(given.each("tools"))
        ],
        tool_choice=_choice(given),
        max_output=given.whole("max_tokens"),
        temperature=given.number("temperature"),
        top_p=given.number("p"),
        top_k=given.whole("k"),
        stop=given.each_text("stop_sequences"),
        seed=given.whole("seed"),
        frequency_penalty=given.number("frequency_penalty"),
        presence_penalty=given.number("presence_penalty"),
        logprobs=given.flag("logprobs"),
        format=_format(given),
        reasoning=_reasoning(given),
        stream=given.flag("stream") or False,
        usage_wanted=True,
    )
    return msgspec.structs.replace(request, extra=given.left)


def _choice(given: o.Fields) -> n.ToolChoice | None:
    raw = given.left.get("tool_choice")
    if raw is not None and bytes(raw) == b'"REQUIRED"':
        del given.left["tool_choice"]
        return n.ToolChoice(mode="required")
    if raw is not None and bytes(raw) == b'"NONE"':
        del given.left["tool_choice"]
        return n.ToolChoice(mode="none")
    return None


def _format(given: o.Fields) -> n.OutputFormat | None:
    """`json_schema`, which older clients call `schema`: that name then stays in `extra`."""
    form = given.child("response_format")
    if form is None:
        return None
    kind = form.text("type")
    if kind == "text":
        return n.OutputFormat(kind="text", extra=form.left)
    if kind != "json_object":
        if kind is not None:
            form.left["type"] = Raw(o.encode(kind))
        given.left["response_format"] = Raw(o.encode(form.left))
        return None
    schema = form.raw("json_schema") or form.left.get("schema")
    if schema is None or bytes(schema) == o.NULL:
        return n.OutputFormat(kind="json", extra=form.left)
    return n.OutputFormat(kind="schema", schema=schema, extra=form.left)


def _reasoning(given: o.Fields) -> n.Reasoning | None:
    thinking = given.child("thinking")
    if thinking is None:
        return None
    kind = thinking.text("type")
    if kind not in {"enabled", "disabled"}:
        if kind is not None:
            thinking.left["type"] = Raw(o.encode(kind))
        given.left["thinking"] = Raw(o.encode(thinking.left))
        return None
    budget = thinking.whole("token_budget")
    return n.Reasoning(budget=budget, off=kind == "disabled", extra=thinking.left)


# ---------------------------------------------------------------- to a call


def encode_request(request: n.Request, target: n.Target, *, now: float = 0) -> n.Call:  # noqa: ARG001 - all dialects take `now`
    """The call to make. This dialect knows no quirks."""
    dropped = o.Dropped()
    native = request.dialect == "cohere"
    body: o.Body = {"model": target.model, "stream": request.stream}
    if native:
        body["messages"] = [_native_message(turn) for turn in request.turns]
    else:
        body["messages"] = [made for turn in request.turns for made in _foreign(turn, dropped)]
    o.put(body, "max_tokens", request.max_output)
    o.put(body, "temperature", request.temperature)
    o.put(body, "p", request.top_p)
    o.put(body, "k", request.top_k)
    o.put(body, "seed", request.seed)
    o.put(body, "frequency_penalty", request.frequency_penalty)
    o.put(body, "presence_penalty", request.presence_penalty)
    o.put(body, "logprobs", request.logprobs)
    if request.stop:
        body["stop_sequences"] = request.stop
    if native:
        _native_rest(request, body)
        return n.Call(path=PATHS["chat"], body=o.encode(body | request.extra))
    _foreign_rest(request, body, dropped)
    return n.Call(path=PATHS["chat"], body=o.encode(body), dropped=dropped.names)


def _native_message(turn: n.Turn) -> o.Body:
    written: o.Body = {"role": "system" if turn.role == "developer" else turn.role}
    parts = turn.parts
    plain = turn.plain
    if turn.role == "tool" and parts and isinstance(parts[0], n.ToolResult):
        result = parts[0]
        written["tool_call_id"] = result.call_id
        parts, plain = result.content, result.plain
    said = [part for part in parts if not m.is_plan(part) and not isinstance(part, n.ToolCall)]
    for part in parts:
        if isinstance(part, n.Thinking) and m.is_plan(part):
            written[m.PLAN] = part.text
    if plain and len(said) == 1 and isinstance(said[0], n.Text):
        written["content"] = said[0].text
    elif said:
        written["content"] = [made for part in said if (made := m.block(part)) is not None]
    calls = [m.call(part) for part in parts if isinstance(part, n.ToolCall)]
    if calls:
        written["tool_calls"] = calls
    return written | turn.extra


def _native_rest(request: n.Request, body: o.Body) -> None:
    if request.tools:
        body["tools"] = [_native_tool(tool) for tool in request.tools]
    choice = request.tool_choice
    if choice is not None and choice.mode in {"required", "none"}:
        body["tool_choice"] = choice.mode.upper()
    form = request.format
    if form is not None:
        written: o.Body = {"type": "text" if form.kind == "text" else "json_object"}
        if form.schema is not None and "schema" not in form.extra:
            written["json_schema"] = form.schema
        body["response_format"] = written | form.extra
    if request.reasoning is not None:
        body["thinking"] = _thinking(request.reasoning) | request.reasoning.extra


def _native_tool(tool: n.Tool | n.NativeTool) -> object:
    if isinstance(tool, n.NativeTool):
        return tool.raw
    function: o.Body = {"name": tool.name}
    if tool.description is not None:
        function["description"] = tool.description
    o.put(function, "parameters", tool.schema)
    rest = dict(tool.extra)
    inner = rest.pop("function", None)
    if inner is not None:
        function |= o.fields_of(inner)
    return {"type": "function", "function": function} | rest


def _thinking(wanted: n.Reasoning) -> o.Body:
    if wanted.off or wanted.effort == "none":
        return {"type": "disabled"}
    budget = wanted.budget
    if budget is None and wanted.effort:
        budget = BUDGETS.get(wanted.effort)
    written: o.Body = {"type": "enabled"}
    if budget is not None and budget > 0:
        written["token_budget"] = budget
    return written


# ---- of other dialects

_EMPTY_SCHEMA: Final = Raw(b'{"type":"object","properties":{}}')


def _foreign(turn: n.Turn, dropped: o.Dropped) -> list[o.Body]:
    """The messages that say what a turn of another dialect says: each tool's result is one of its own."""
    dropped.fields(turn.extra, "messages.")
    if turn.name:
        dropped.add("messages.name")
    role = {"developer": "system", "tool": "user"}.get(turn.role, turn.role)
    written: list[o.Body] = []
    said: list[object] = []
    calls: list[o.Body] = []
    thoughts: list[str] = []
    for part in turn.parts:
        dropped.fields(part.extra, "messages.")
        if isinstance(part, n.ToolResult):
            written.append(_foreign_result(part, dropped))
        elif isinstance(part, n.ToolCall) and role == "assistant":
            calls.append(m.call(msgspec.structs.replace(part, extra={})))
            if part.signature:
                dropped.add("messages.tool_call.signature")
        elif isinstance(part, n.Thinking) and role == "assistant" and part.text:
            thoughts.append(part.text)
        else:
            made = _foreign_block(part, dropped, images=role == "user")
            if made is not None:
                said.append(made)
    message: o.Body = {"role": role}
    if thoughts and calls:
        # Cohere documentation, "Tool use": the plan goes back with the calls.
        message[m.PLAN] = "\n".join(thoughts)
    elif thoughts:
        said[:0] = [{"type": "thinking", "thinking": text} for text in thoughts]
    if said:
        message["content"] = said
    if calls:
        message["tool_calls"] = calls
    if len(message) > 1:
        written.append(_plainly(message))
    return written


def _plainly(message: o.Body) -> o.Body:
    """One text is sent as a string, which every model takes."""
    content = message.get("content")
    if isinstance(content, list) and len(content) == 1:
        (only,) = content
        if isinstance(only, dict) and only.get("type") == "text":
            message["content"] = only["text"]
    return message


def _foreign_block(part: n.Part, dropped: o.Dropped, *, images: bool) -> object:
    bare: n.Part = msgspec.structs.replace(part, extra={}) if part.extra else part
    made = m.block(bare)
    unfit = isinstance(bare, n.Thinking) or (isinstance(bare, n.Image) and not images)
    if made is None or unfit:
        dropped.add(f"messages.{o.kind(part)}")
        return None
    return made


def _foreign_result(part: n.ToolResult, dropped: o.Dropped) -> o.Body:
    said: list[object] = []
    for one in part.content:
        dropped.fields(one.extra, "messages.")
        made = _foreign_block(one, dropped, images=False)
        if made is not None:
            said.append(made)
    if part.is_error:
        dropped.add("messages.tool_result.is_error")
    message: o.Body = {"role": "tool", "tool_call_id": part.call_id, "content": said or ""}
    return _plainly(message)


def _foreign_rest(request: n.Request, body: o.Body, dropped: o.Dropped) -> None:
    _foreign_tools(request, body, dropped)
    form = request.format
    if form is not None and form.kind != "text":
        written: o.Body = {"type": "json_object"}
        o.put(written, "json_schema", form.schema)
        body["response_format"] = written
        dropped.fields(form.extra, "response_format.")
    if request.reasoning is not None:
        body["thinking"] = _thinking(request.reasoning)
        dropped.fields(request.reasoning.extra, "reasoning.")
    dropped.given(
        n=request.n if request.n != 1 else None,
        logit_bias=request.logit_bias,
        top_logprobs=request.top_logprobs,
        user=request.user,
        service_tier=request.service_tier if request.service_tier != "auto" else "",
        parallel_tool_calls=request.parallel_tools is False,
    )
    dropped.fields(request.extra)


def _foreign_tools(request: n.Request, body: o.Body, dropped: o.Dropped) -> None:
    choice = request.tool_choice
    tools: list[n.Tool] = []
    for tool in request.tools:
        if isinstance(tool, n.NativeTool):
            dropped.add(f"tools.{o.native_kind(tool.raw)}")
            continue
        dropped.fields(tool.extra, "tools.")
        # The API cannot name the tool to call: with no other to choose, that one is called.
        if choice is None or choice.mode != "named" or tool.name in choice.names:
            tools.append(tool)
    if not tools:
        return
    body["tools"] = [
        _native_tool(msgspec.structs.replace(tool, schema=tool.schema or _EMPTY_SCHEMA, extra={}))
        for tool in tools
    ]
    strict = [tool.strict is True for tool in tools]
    if all(strict):
        body["strict_tools"] = True
    elif any(strict):
        dropped.add("tools.strict")
    if choice is not None:
        dropped.fields(choice.extra, "tool_choice.")
        if choice.mode != "auto":
            body["tool_choice"] = "NONE" if choice.mode == "none" else "REQUIRED"
