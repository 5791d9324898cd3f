"""Requests to OpenAI's Responses API, checked as the service does.

Source: OpenAI API reference, "Create a model response", and recorded error bodies.
"""

from typing import Final

from breakwater_gateway.simulator.content import is_reasoning
from breakwater_gateway.simulator.dialects.dialect import Ask, encode
from breakwater_gateway.simulator.dialects.openai_errors import OpenAIError
from breakwater_gateway.simulator.dialects.openai_request import (
    boolean,
    decimal,
    integer,
    missing,
    read_function,
    wrong_type,
)
from breakwater_gateway.simulator.schemas import strictness
from breakwater_gateway.simulator.turns import Json, Tool, Turn, count_tokens

TOKENS_MIN: Final = 16

_KNOWN: Final = frozenset(
    {
        *("background", "conversation", "context_management", "include", "input", "instructions"),
        *("max_output_tokens", "max_tool_calls", "metadata", "model", "moderation"),
        *("parallel_tool_calls", "previous_response_id", "prompt", "prompt_cache_key"),
        *("prompt_cache_options", "prompt_cache_retention", "reasoning", "safety_identifier"),
        *("service_tier", "store", "stream", "stream_options", "temperature", "text"),
        *("tool_choice", "tools", "top_logprobs", "top_p", "truncation", "user"),
    }
)
_ROLES: Final = ("user", "assistant", "system", "developer")


def read_response(ask: Ask) -> Turn:
    """Raises `OpenAIError`."""
    raw = ask.raw
    for name in raw:
        if name not in _KNOWN:
            raise OpenAIError(
                400,
                f"Unknown parameter: '{name[:200]}'.",
                param=name[:200],
                code="unknown_parameter",
            )
    given = raw.get("input")
    if given is None and not raw.get("prompt"):
        missing("input")
    items = given if isinstance(given, list) else [{"role": "user", "content": given}]
    if not isinstance(given, list | str | None):
        wrong_type("input", "one of a string or array of input items", given)
    texts = [_read_item(item, i) for i, item in enumerate(items)]
    _match_calls(items)
    decimal(raw, "temperature", 0, 2)
    decimal(raw, "top_p", 0, 1)
    if is_reasoning(ask.model, ask.script):
        for name in ("temperature", "top_p"):
            if raw.get(name) not in (None, 1):
                raise OpenAIError(
                    400,
                    f"Unsupported parameter: '{name}' is not supported with this model.",
                    param=name,
                )
    tools, forced = _read_tool_choice(raw, _read_tools(raw))
    instructions = raw.get("instructions")
    prompt = count_tokens(instructions) if isinstance(instructions, str) else 0
    prompt += sum(4 + count_tokens(text) for text in texts)
    if raw.get("tools"):
        prompt += count_tokens(encode(raw["tools"]).decode())
    users = [
        text
        for item, text in zip(items, texts, strict=True)
        if isinstance(item, dict) and item.get("role") == "user"
    ]
    return Turn(
        model=ask.model,
        stream=boolean(raw, "stream"),
        include_usage=True,
        choices=1,
        tokens_max=integer(raw, "max_output_tokens", TOKENS_MIN),
        stop=(),
        prompt_tokens=3 + prompt,
        last_text=users[-1] if users else "",
        tools=tools,
        forced=forced,
        answered=bool(items) and items[-1].get("type") == "function_call_output",
        schema=_read_format(raw),
        one_call=raw.get("parallel_tool_calls") is False,
        echo=raw,
    )


def _read_item(item: Json, i: int) -> str:
    where = f"input[{i}]"
    if not isinstance(item, dict):
        wrong_type(where, "an input item", item)
    kind = item.get("type", "message")
    if kind == "function_call_output":
        for name in ("call_id", "output"):
            if item.get(name) is None:
                missing(f"{where}.{name}")
        return _text(item["output"], f"{where}.output")
    if kind != "message":
        return encode(item).decode()
    role = item.get("role")
    if role is None:
        missing(f"{where}.role")
    if role not in _ROLES:
        raise OpenAIError(
            400,
            f"Invalid value: '{str(role)[:200]}'. Supported values are: 'assistant', 'system',"
            " 'developer', and 'user'.",
            param=where,
            code="invalid_value",
        )
    return _text(item.get("content"), f"{where}.content")


def _text(content: Json, where: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        wrong_type(where, "one of a string or array of objects", content)
    texts = []
    for j, part in enumerate(content):
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            wrong_type(f"{where}[{j}]", "an object", part)
        if part["type"] == "text":
            raise OpenAIError(
                400,
                "Invalid value: 'text'. Supported values are: 'input_text', 'input_image',"
                " 'output_text', 'refusal', 'input_file', 'computer_screenshot', and"
                " 'summary_text'.",
                param=f"{where}[{j}]",
                code="invalid_value",
            )
        text = part.get("text")
        texts.append(text if isinstance(text, str) else "x" * 340)
    return "\n".join(texts)


def _match_calls(items: list[Json]) -> None:
    """Every output has its call, and every call its output."""
    calls = [item.get("call_id") for item in items if item.get("type") == "function_call"]
    outputs = [item.get("call_id") for item in items if item.get("type") == "function_call_output"]
    for call_id in outputs:
        if call_id not in calls:
            raise OpenAIError(
                400,
                f"No tool call found for function call output with call_id {str(call_id)[:200]}.",
                param="input",
            )
    for call_id in calls:
        if call_id not in outputs:
            raise OpenAIError(
                400, f"No tool output found for function call {str(call_id)[:200]}.", param="input"
            )


def _read_tools(raw: dict[str, Json]) -> tuple[Tool, ...]:
    given = raw.get("tools")
    if given is None:
        return ()
    if not isinstance(given, list):
        wrong_type("tools", "an array of objects", given)
    tools = []
    for i, tool in enumerate(given):
        if not isinstance(tool, dict):
            wrong_type(f"tools[{i}]", "an object", tool)
        if "type" not in tool:
            missing(f"tools[{i}].type")
        if tool["type"] != "function":
            continue
        tools.append(read_function(tool, f"tools[{i}]"))
    return tuple(tools)


def _read_tool_choice(
    raw: dict[str, Json], tools: tuple[Tool, ...]
) -> tuple[tuple[Tool, ...], bool]:
    """The tools that may be called, and whether one must be."""
    choice = raw.get("tool_choice")
    if choice is None or choice == "auto":
        return tools, False
    if choice == "none":
        return (), False
    if choice == "required":
        return tools, bool(tools)
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        allowed = choice.get("tools")
        names = [tool.get("name") for tool in allowed] if isinstance(allowed, list) else []
        return tuple(t for t in tools if t.name in names), choice.get("mode") == "required"
    name = choice.get("name") if isinstance(choice, dict) else None
    chosen = tuple(tool for tool in tools if tool.name == name)
    if not chosen:
        raise OpenAIError(
            400,
            f"Tool choice '{str(name)[:200]}' not found in 'tools' parameter.",
            param="tool_choice",
        )
    return chosen, True


def _read_format(raw: dict[str, Json]) -> Json:
    text = raw.get("text")
    given = text.get("format") if isinstance(text, dict) else None
    if not isinstance(given, dict) or given.get("type") == "text":
        return None
    if given.get("type") == "json_object":
        return {"type": "object", "properties": {"answer": {"type": "string"}}}
    if given.get("type") != "json_schema":
        raise OpenAIError(
            400,
            "Invalid value: Supported values are: 'json_object', 'json_schema', and 'text'.",
            param="text.format.type",
            code="invalid_value",
        )
    for name in ("name", "schema"):
        if name not in given:
            missing(f"text.format.{name}")
    fault = strictness(given["schema"]) if given.get("strict") else ""
    if fault:
        raise OpenAIError(
            400,
            f"Invalid schema for response_format '{given['name']}': {fault}",
            param="text.format.schema",
            code="invalid_json_schema",
        )
    return given["schema"]
