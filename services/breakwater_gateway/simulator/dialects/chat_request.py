"""What chat requests of OpenAI's shape have in common, for the APIs that check it in words of their own."""

from collections.abc import Callable
from typing import Final

from breakwater_gateway.simulator.dialects.dialect import Ask, encode
from breakwater_gateway.simulator.refusals import ApiError
from breakwater_gateway.simulator.turns import Json, Tool, Turn, count_tokens

_ROLES: Final = ("system", "developer", "user", "assistant", "tool")


def read_chat_like(
    ask: Ask,
    invalid: Callable[[str], ApiError],
    *,
    forced: bool,
    tokens_max: Json,
    stop: Json,
    schema: Json,
    stream_by_default: bool = False,
) -> Turn:
    """Messages and tools, checked. Raises what `invalid` makes of a sentence."""
    raw = ask.raw
    messages = raw.get("messages")
    if not isinstance(messages, list) or not messages:
        raise invalid("invalid request: messages must not be empty")
    texts = []
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in _ROLES:
            raise invalid(f"invalid request: messages[{i}] must have a valid role")
        texts.append(text_of(message))
    if tokens_max is not None and (type(tokens_max) is not int or tokens_max < 1):
        raise invalid("invalid request: max_tokens must be at least 1")
    given = [stop] if isinstance(stop, str) else stop or []
    if not isinstance(given, list) or not all(isinstance(s, str) for s in given):
        raise invalid("invalid request: stop sequences must be strings")
    stream = raw.get("stream", stream_by_default)
    if not isinstance(stream, bool):
        raise invalid("invalid request: stream must be a boolean")
    tools = read_tools(raw.get("tools"), invalid)
    if forced and not tools:
        raise invalid("invalid request: a tool must be called, but there are none")
    prompt = sum(4 + count_tokens(text) for text in texts)
    if tools:
        prompt += count_tokens(encode(raw["tools"]).decode())
    users = [text for m, text in zip(messages, texts, strict=True) if m["role"] == "user"]
    return Turn(
        model=ask.model,
        stream=stream,
        include_usage=True,
        choices=1,
        tokens_max=tokens_max,
        stop=tuple(s for s in given if s),
        prompt_tokens=3 + prompt,
        last_text=users[-1] if users else "",
        tools=tools,
        forced=forced,
        answered=messages[-1]["role"] == "tool",
        schema=schema,
    )


def text_of(message: Json) -> str:
    """A message's text; what is not text counts as its JSON."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = [
        part["text"] if isinstance(part, dict) and isinstance(part.get("text"), str) else "x" * 340
        for part in parts
    ]
    if message.get("tool_calls"):
        texts.append(encode(message["tool_calls"]).decode())
    return "\n".join(texts)


def read_tools(given: Json, invalid: Callable[[str], ApiError]) -> tuple[Tool, ...]:
    if given is None:
        return ()
    if not isinstance(given, list):
        raise invalid("invalid request: tools must be a list")
    tools = []
    for i, tool in enumerate(given):
        function = tool.get("function") if isinstance(tool, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(function, dict) or not isinstance(name, str) or not name:
            raise invalid(f"invalid request: tools[{i}].function.name is required")
        tools.append(Tool(name, function.get("parameters") or {"type": "object"}))
    return tuple(tools)
