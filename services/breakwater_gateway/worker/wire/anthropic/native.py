"""A request of this dialect back to the body that it came from."""

from collections.abc import Iterable
from typing import Final

from msgspec import Raw

from breakwater_gateway.worker.wire import neutral as n
from breakwater_gateway.worker.wire.anthropic import blocks as b
from breakwater_gateway.worker.wire.anthropic.request import SHOWN

Body = dict[str, object]


def native_body(request: n.Request) -> Body:
    """The caller's own body again."""
    extra = dict(request.extra)
    body: Body = {}
    turns = request.turns
    if turns and turns[0].role == "system":
        body["system"] = _native_content(turns[0])
        turns = turns[1:]
    body["messages"] = _native_messages(turns)
    put(body, "max_tokens", request.max_output)
    if request.tools:
        body["tools"] = [_native_tool(tool) for tool in request.tools]
    choice = request.tool_choice
    if choice is not None:
        written = written_choice(choice, request.parallel_tools)
        body["tool_choice"] = written | choice.extra
    _native_output(request, body, extra)
    if request.user or "metadata" in extra:
        metadata: Body = {"user_id": request.user} if request.user else {}
        body["metadata"] = metadata | b.fields(extra.pop("metadata", Raw(b"{}")))
    if request.stop:
        body["stop_sequences"] = request.stop
    put(body, "temperature", request.temperature)
    put(body, "top_p", request.top_p)
    put(body, "top_k", request.top_k)
    put(body, "service_tier", request.service_tier or None)
    for name, raw in request.layout.items():
        if name not in {"output_format", "stream", "model"}:
            body.setdefault(name, raw)
    return body | extra


def put(body: Body, name: str, value: object) -> None:
    if value is not None:
        body[name] = value


def _native_messages(turns: Iterable[n.Turn]) -> list[Body]:
    messages: list[Body] = []
    results: list[object] | None = None
    """The open user's message that consists of tool results so far."""
    for turn in turns:
        if turn.role == "tool" and results is not None and not turn.extra:
            results.extend(_native_blocks(turn.parts))
            continue
        if turn.role == "user" and results is not None and not turn.plain and not turn.extra:
            results.extend(_native_blocks(turn.parts))
            results = None
            continue
        content = _native_content(turn)
        role = {"tool": "user", "developer": "system"}.get(turn.role, turn.role)
        message: Body = {"role": role, "content": content}
        results = content if turn.role == "tool" and isinstance(content, list) else None
        messages.append(message | turn.extra)
    return messages


def _native_content(turn: n.Turn) -> str | list[object]:
    if turn.plain and len(turn.parts) == 1 and isinstance(turn.parts[0], n.Text):
        return turn.parts[0].text
    return _native_blocks(turn.parts)


def _native_blocks(parts: Iterable[n.Part]) -> list[object]:
    return [block for part in parts if (block := native_block(part)) is not None]


def native_block(part: n.Part) -> object:
    """The block that `part` was decoded from; None where it is none of this API's."""
    if isinstance(part, n.ToolResult):
        return _native_result(part)
    if isinstance(part, n.Thinking) and not (part.signature or part.redacted):
        # What another provider thought, shown to the caller and echoed: without a signature of its own
        # the API refuses it, and ignores thinking of earlier turns anyway.
        return None
    written = b.block(part)
    if isinstance(written, dict) and (part.extra or part.layout):
        written |= part.extra | part.layout
    return written


def _native_result(part: n.ToolResult) -> Body:
    written: Body = {"type": "tool_result", "tool_use_id": part.call_id}
    if part.plain and len(part.content) == 1 and isinstance(part.content[0], n.Text):
        written["content"] = part.content[0].text
    elif part.content:
        written["content"] = _native_blocks(part.content)
    if part.is_error:
        written["is_error"] = True
    return written | part.extra | part.layout


def _native_tool(tool: n.Tool | n.NativeTool) -> object:
    if isinstance(tool, n.NativeTool):
        return tool.raw
    written: Body = {"name": tool.name}
    put(written, "description", tool.description)
    written["input_schema"] = tool.schema or Raw(b'{"type":"object"}')
    put(written, "strict", tool.strict)
    return written | tool.extra


_TYPES: Final = {"auto": "auto", "none": "none", "required": "any", "named": "tool"}


def written_choice(choice: n.ToolChoice, parallel: bool | None) -> Body:
    written: Body = {"type": _TYPES[choice.mode]}
    if choice.mode == "named":
        written["name"] = choice.names[0] if choice.names else ""
    if parallel is not None and choice.mode != "none":
        written["disable_parallel_tool_use"] = not parallel
    return written


def _native_output(request: n.Request, body: Body, extra: n.Extra) -> None:
    """`thinking`, `output_config` and the beta's `output_format`."""
    config: Body = dict(b.fields(extra.pop("output_config", Raw(b"{}"))))
    reasoning = request.reasoning
    if reasoning is not None:
        put(config, "effort", reasoning.effort or None)
        thinking: Body = {}
        if reasoning.off:
            thinking["type"] = "disabled"
        elif reasoning.budget is not None:
            thinking |= {"type": "enabled", "budget_tokens": reasoning.budget}
        elif reasoning.show or reasoning.extra:
            thinking["type"] = "adaptive"
        if reasoning.show == SHOWN:
            thinking["display"] = SHOWN
        if thinking:
            body["thinking"] = thinking | reasoning.extra
    form = request.format
    if form is not None and form.kind == "schema":
        written: Body = {"type": "json_schema", "schema": form.schema or Raw(b"{}")}
        beta = "output_format" in request.layout
        (body if beta else config)["output_format" if beta else "format"] = written | form.extra
    if config:
        body["output_config"] = config
