"""Chat requests of Ollama's native API: recorded bodies to the neutral request, and that to a call.

Source: github.com/ollama/ollama, docs/api.md ("Generate a chat completion"), api/types.go.
"""

from typing import Final, Literal

import msgspec
from msgspec import Raw

from breakwater_gateway.worker.wire import neutral as n
from breakwater_gateway.worker.wire import objects as o
from breakwater_gateway.worker.wire.bad_request import BadRequest
from breakwater_gateway.worker.wire.function_tool import function_tool

PATHS: Final = {"chat": "/api/chat", "embeddings": "/api/embed"}

_ROLES: Final[dict[str, Literal["system", "user", "assistant", "tool"]]] = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}


def decode_request(body: bytes, *, path: str = "") -> n.Request:  # noqa: ARG001 - all dialects take `path`
    """A body of `POST /api/chat`. A stream is what one gets unless one asks for none. Raises BadRequest."""
    given = o.Fields(body)
    model = given.need("model", given.text("model"))
    raws = given.items("messages") or []
    if len(raws) > o.MESSAGES_MAX:
        raise BadRequest(f"'messages' may have {o.MESSAGES_MAX} items.", "messages")
    options = given.child("options")
    knobs = options or o.Fields(b"{}")
    limit = knobs.left.get("num_predict")
    # Negative: without end, or until the context is full.
    bounded = limit is not None and bytes(limit)[:1].isdigit()
    stream = given.flag("stream")
    request = n.Request(
        dialect="ollama",
        model=model,
        turns=[_turn(raw, f"messages[{at}]") for at, raw in enumerate(raws)],
        tools=[
            function_tool(raw, f"tools[{at}]", "ollama")
            for at, raw in enumerate(given.each("tools"))
        ],
        max_output=knobs.whole("num_predict") if bounded else None,
        temperature=knobs.number("temperature"),
        top_p=knobs.number("top_p"),
        top_k=knobs.whole("top_k"),
        stop=knobs.each_text("stop"),
        seed=knobs.whole("seed"),
        frequency_penalty=knobs.number("frequency_penalty"),
        presence_penalty=knobs.number("presence_penalty"),
        logprobs=given.flag("logprobs"),
        top_logprobs=given.whole("top_logprobs"),
        format=_format(given),
        reasoning=_reasoning(given),
        stream=True if stream is None else stream,
        usage_wanted=True,
    )
    if options is not None:
        given.left["options"] = Raw(o.encode(options.left))
    return msgspec.structs.replace(request, extra=given.left)


def _turn(raw: Raw, at: str) -> n.Turn:
    given = o.Fields(raw, at)
    role = _ROLES.get(given.need("role", given.text("role")))
    if role is None:
        raise BadRequest(f"'{given.path('role')}' is not a role.", given.path("role"))
    parts = message_parts(given)
    if role == "tool":
        name, call_id = given.text("tool_name"), given.text("tool_call_id")
        result = n.ToolResult(call_id=call_id or "", name=name or "", content=parts, plain=True)
        return n.Turn(role="tool", parts=[result], extra=given.left)
    return n.Turn(role=role, parts=parts, plain=True, extra=given.left)


def message_parts(given: o.Fields, mint: str | None = None) -> list[n.Part]:
    """Thinking, content, images and calls of a message. `mint`: make ids for calls without one, of it."""
    parts: list[n.Part] = []
    thought = given.text("thinking")
    if thought is not None:
        parts.append(n.Thinking(text=thought))
    said = given.text("content")
    if said is not None:
        parts.append(n.Text(text=said))
    parts += [n.Image(data=data) for data in given.each_text("images")]
    path = given.path("tool_calls")
    calls = given.each("tool_calls")
    parts += [tool_call(raw, f"{path}[{at}]", at, mint) for at, raw in enumerate(calls)]
    return parts


def tool_call(raw: Raw, path: str, at: int, mint: str | None) -> n.ToolCall:
    """One call, its arguments an object. `at` counts the calls of the answer."""
    given = o.Fields(raw, path)
    function = given.need("function", given.child("function"))
    name = function.need("name", function.text("name"))
    arguments = o.as_text(function.raw("arguments"))
    call_id = given.text("id") or ""
    if not call_id and mint is not None:
        call_id = o.minted_id(mint, at, name, arguments)
    if function.left:
        given.left["function"] = Raw(o.encode(function.left))
    return n.ToolCall(id=call_id, name=name, arguments=arguments, extra=given.left)


def _format(given: o.Fields) -> n.OutputFormat | None:
    raw = given.left.get("format")
    if raw is None:
        return None
    if bytes(raw) == b'"json"':
        del given.left["format"]
        return n.OutputFormat(kind="json")
    if bytes(raw)[:1] == b"{":
        del given.left["format"]
        return n.OutputFormat(kind="schema", schema=raw)
    return None


def _reasoning(given: o.Fields) -> n.Reasoning | None:
    raw = given.left.get("think")
    if raw is None:
        return None
    if bytes(raw) in {b"true", b"false"}:
        del given.left["think"]
        return n.Reasoning(off=bytes(raw) == b"false")
    return n.Reasoning(effort=given.text("think") or "") if o.is_text(raw) else None


# ---------------------------------------------------------------- to a call


def encode_request(request: n.Request, target: n.Target, *, now: float = 0) -> n.Call:  # noqa: ARG001 - all dialects take `now`
    """The call to make. The quirk `efforts` (bool) tells whether the model has levels of thinking; by
    default those of the `gpt-oss` family do, and the server refuses levels for the others."""
    dropped = o.Dropped()
    native = request.dialect == "ollama"
    left = dict(request.extra) if native else {}
    body: o.Body = {"model": target.model, "stream": request.stream}
    if native:
        body["messages"] = [_native_message(turn) for turn in request.turns]
    else:
        body["messages"] = _Foreign(dropped).messages(request.turns)
    options: o.Body = {}
    o.put(options, "num_predict", request.max_output)
    o.put(options, "temperature", request.temperature)
    o.put(options, "top_p", request.top_p)
    o.put(options, "top_k", request.top_k)
    o.put(options, "seed", request.seed)
    o.put(options, "frequency_penalty", request.frequency_penalty)
    o.put(options, "presence_penalty", request.presence_penalty)
    if request.stop:
        options["stop"] = request.stop
    o.merged(body, "options", options, left)
    o.put(body, "logprobs", request.logprobs)
    o.put(body, "top_logprobs", request.top_logprobs)
    _write_tools(request, body, dropped, native=native)
    form = request.format
    if form is not None and form.kind != "text":
        body["format"] = "json" if form.schema is None else form.schema
    if request.reasoning is not None:
        body["think"] = _think(request.reasoning, target, dropped, native=native)
    if not native:
        if form is not None:
            dropped.fields(form.extra, "response_format.")
        dropped.given(
            n=request.n if request.n != 1 else None,
            logit_bias=request.logit_bias,
            user=request.user,
            service_tier=request.service_tier if request.service_tier != "auto" else "",
            parallel_tool_calls=request.parallel_tools is False,
        )
        dropped.fields(request.extra)
    return n.Call(path=PATHS["chat"], body=o.encode(body | left), dropped=dropped.names)


def _think(
    wanted: n.Reasoning, target: n.Target, dropped: o.Dropped, *, native: bool
) -> bool | str:
    if native:
        return wanted.effort or not wanted.off
    dropped.fields(wanted.extra, "reasoning.")
    levels = bool(target.quirks.get("efforts", "gpt-oss" in target.model.lower()))
    if wanted.off or wanted.effort == "none":
        if levels:
            # These think whatever one says.
            dropped.add("reasoning")
            return "low"
        return False
    if wanted.budget is not None and not wanted.effort:
        dropped.add("reasoning.budget")
    if not levels:
        if wanted.effort:
            dropped.add("reasoning.effort")
        return True
    near = {"minimal": "low", "low": "low", "medium": "medium"}
    return near.get(wanted.effort, "high") if wanted.effort else "medium"


def _native_message(turn: n.Turn) -> o.Body:
    written: o.Body = {"role": turn.role}
    parts = turn.parts
    if turn.role == "tool" and parts and isinstance(parts[0], n.ToolResult):
        result = parts[0]
        o.put(written, "tool_name", result.name)
        o.put(written, "tool_call_id", result.call_id)
        parts = result.content
    images: list[str] = []
    calls: list[o.Body] = []
    for part in parts:
        match part:
            case n.Text(text=text):
                written["content"] = text
            case n.Thinking(text=text):
                written["thinking"] = text
            case n.Image(data=data):
                images.append(data)
            case n.ToolCall():
                calls.append(_written_call(part))
            case _:
                pass  # this dialect's decoder makes no others
    if images:
        written["images"] = images
    if calls:
        written["tool_calls"] = calls
    return written | turn.extra


def _written_call(part: n.ToolCall) -> o.Body:
    function: o.Body = {"name": part.name, "arguments": o.as_object(part.arguments)}
    rest = dict(part.extra)
    inner = rest.pop("function", None)
    if inner is not None:
        function |= o.fields_of(inner)
    written: o.Body = {"function": function}
    o.put(written, "id", part.id)
    return written | rest


def _written_tool(tool: n.Tool) -> o.Body:
    function: o.Body = {"name": tool.name}
    if tool.description is not None:
        function["description"] = tool.description
    o.put(function, "parameters", tool.schema)
    rest = dict(tool.extra)
    inner = rest.pop("function", None)
    if inner is not None:
        function |= o.fields_of(inner)
    written: o.Body = {"type": "function", "function": function}
    return written | rest


_EMPTY_SCHEMA: Final = Raw(b'{"type":"object","properties":{}}')


def _write_tools(request: n.Request, body: o.Body, dropped: o.Dropped, *, native: bool) -> None:
    choice = None if native else request.tool_choice
    tools: list[object] = []
    for tool in request.tools:
        if isinstance(tool, n.NativeTool):
            if tool.dialect == "ollama":
                tools.append(tool.raw)
            else:
                dropped.add(f"tools.{o.native_kind(tool.raw)}")
            continue
        if native:
            tools.append(_written_tool(tool))
            continue
        dropped.fields(tool.extra, "tools.")
        if tool.strict:
            dropped.add("tools.strict")
        if choice is not None and choice.mode == "named" and tool.name not in choice.names:
            continue
        schema = tool.schema or _EMPTY_SCHEMA
        bare = msgspec.structs.replace(
            tool, description=tool.description or "", schema=schema, extra={}
        )
        tools.append(_written_tool(bare))
    if choice is not None:
        dropped.fields(choice.extra, "tool_choice.")
        if choice.mode == "none":
            return  # without tools none is called
        if choice.mode != "auto":
            # Nothing makes the model call one; of the named ones alone it may at least choose.
            dropped.add("tool_choice")
    if tools:
        body["tools"] = tools


class _Foreign:
    """Another dialect's turns as messages. A result names its tool, which only the call before it tells."""

    def __init__(self, dropped: o.Dropped) -> None:
        self._dropped = dropped
        self._names: dict[str, str] = {}

    def messages(self, turns: list[n.Turn]) -> list[o.Body]:
        return [message for turn in turns for message in self._turn(turn)]

    def _turn(self, turn: n.Turn) -> list[o.Body]:
        dropped = self._dropped
        dropped.fields(turn.extra, "messages.")
        if turn.name:
            dropped.add("messages.name")
        role = {"developer": "system", "tool": "user"}.get(turn.role, turn.role)
        written: list[o.Body] = []
        calls: list[o.Body] = []
        rest: list[n.Part] = []
        for part in turn.parts:
            if isinstance(part, n.ToolResult):
                written.append(self._result(part))
            elif isinstance(part, n.ToolCall) and role == "assistant":
                dropped.fields(part.extra, "messages.")
                if part.signature:
                    dropped.add("messages.tool_call.signature")
                self._names[part.id] = part.name
                calls.append(_written_call(msgspec.structs.replace(part, extra={})))
            else:
                rest.append(part)
        message = self._said(role, rest)
        if calls:
            message["tool_calls"] = calls
        if calls or message["content"] or "images" in message or "thinking" in message:
            written.append(message)
        return written

    def _result(self, part: n.ToolResult) -> o.Body:
        self._dropped.fields(part.extra, "messages.")
        message = self._said("tool", part.content)
        o.put(message, "tool_name", part.name or self._names.get(part.call_id))
        o.put(message, "tool_call_id", part.call_id)
        if part.is_error:
            self._dropped.add("messages.tool_result.is_error")
        return message

    def _said(self, role: str, parts: list[n.Part]) -> o.Body:
        """A message's content is one string; images go beside it."""
        texts: list[str] = []
        thoughts: list[str] = []
        images: list[str] = []
        for part in parts:
            self._dropped.fields(part.extra, "messages.")
            match part:
                case n.Text(text=text) | n.Refusal(text=text):
                    texts.append(text)
                case n.Thinking(text=text) if text and role == "assistant":
                    thoughts.append(text)
                case n.Image(data=data) if data:
                    images.append(data)
                    if part.detail not in {"", "auto"}:
                        self._dropped.add("messages.image.detail")
                case _:
                    self._dropped.add(f"messages.{o.kind(part)}")
        # Parts are blocks of their own elsewhere: a line apart, as Ollama's own OpenAI endpoint has them.
        message: o.Body = {"role": role, "content": "\n".join(texts)}
        if thoughts:
            message["thinking"] = "\n".join(thoughts)
        if images:
            message["images"] = images
        return message
