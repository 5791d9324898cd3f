"""OpenAI's chat requests, checked as the service does, with its words.

Source: OpenAI API reference (chat completions) and the error bodies that its service is known to send.
"""

import re
from typing import Final, NoReturn

import msgspec

from breakwater_gateway.simulator.dialects.openai_errors import OpenAIError
from breakwater_gateway.simulator.schemas import strictness
from breakwater_gateway.simulator.turns import Json, Tool, Turn, count_tokens

CHOICES_MAX: Final = 128

_ROLES: Final = ("system", "assistant", "user", "function", "tool", "developer")
_encode = msgspec.json.encode


def model_of(raw: dict[str, Json]) -> str:
    model = raw.get("model")
    if model is None:
        raise OpenAIError(400, "you must provide a model parameter")
    if not isinstance(model, str):
        wrong_type("model", "a string", model)
    return model


def read_chat(raw: dict[str, Json], *, reasoning: bool) -> Turn:
    """Checks a chat request as the service does. Raises `OpenAIError`."""
    model = model_of(raw)
    messages = raw.get("messages")
    if messages is None:
        missing("messages")
    if not isinstance(messages, list):
        wrong_type("messages", "an array of objects", messages)
    if not messages:
        raise OpenAIError(
            400,
            "Invalid 'messages': empty array. Expected an array with minimum length 1, but got an"
            " empty array instead.",
            param="messages",
            code="empty_array",
        )
    prompt_tokens = 3
    last_text = ""
    for i, message in enumerate(messages):
        text = _read_message(messages, i)
        prompt_tokens += 4 + count_tokens(text)
        if message["role"] == "user":
            last_text = text
    stream = boolean(raw, "stream")
    options = raw.get("stream_options")
    if options is not None and not stream:
        raise OpenAIError(
            400,
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.",
            param="stream_options",
        )
    if options is not None and not isinstance(options, dict):
        wrong_type("stream_options", "an object", options)
    decimal(raw, "temperature", 0, 2)
    decimal(raw, "top_p", 0, 1)
    decimal(raw, "frequency_penalty", -2, 2)
    decimal(raw, "presence_penalty", -2, 2)
    old_max = integer(raw, "max_tokens", 1)
    new_max = integer(raw, "max_completion_tokens", 1)
    if old_max is not None and new_max is not None:
        raise OpenAIError(
            400,
            "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported.",
            code="invalid_parameter_combination",
        )
    if reasoning:
        _check_reasoning(raw)
    choices = integer(raw, "n", 1, CHOICES_MAX) or 1
    tools = _read_tools(raw)
    if tools:
        prompt_tokens += count_tokens(_encode(raw["tools"]).decode())
    forced, tools = _read_tool_choice(raw, tools)
    return Turn(
        model=model,
        stream=stream,
        include_usage=bool(options and options.get("include_usage")),
        choices=choices,
        tokens_max=new_max if new_max is not None else old_max,
        stop=_read_stop(raw),
        prompt_tokens=prompt_tokens,
        last_text=last_text,
        tools=tools,
        forced=forced,
        answered=messages[-1]["role"] == "tool",
        schema=_read_format(raw, messages),
        one_call=raw.get("parallel_tool_calls") is False,
    )


def _read_message(messages: list[Json], i: int) -> str:
    """The message's text."""
    message = messages[i]
    where = f"messages[{i}]"
    if not isinstance(message, dict):
        wrong_type(where, "an object", message)
    role = message.get("role")
    if role is None:
        missing(f"{where}.role")
    if role not in _ROLES:
        shown = role if isinstance(role, str) else _encode(role).decode()
        supported = ", ".join(f"'{name}'" for name in _ROLES[:-1])
        raise OpenAIError(
            400,
            f"Invalid value: '{shown[:200]}'. Supported values are: {supported}, and '{_ROLES[-1]}'.",
            param=f"{where}.role",
            code="invalid_value",
        )
    if role == "tool" and not _follows_call(messages, i):
        raise OpenAIError(
            400,
            "Invalid parameter: messages with role 'tool' must be a response to a preceeding message"
            " with 'tool_calls'.",
            param=f"messages.[{i}].role",
        )
    content = message.get("content")
    if isinstance(content, str):
        return content
    if content is None:
        if role != "assistant":
            raise OpenAIError(
                400,
                f"Invalid value for 'content': expected a string, got null. ({where}.content)",
                param=f"{where}.content",
            )
        return _encode(message.get("tool_calls")).decode() if "tool_calls" in message else ""
    if not isinstance(content, list):
        wrong_type(f"{where}.content", "one of a string or array of objects", content)
    texts = []
    for j, part in enumerate(content):
        at = f"{where}.content[{j}]"
        if not isinstance(part, dict):
            wrong_type(at, "an object", part)
        if "type" not in part:
            missing(f"{at}.type")
        text = part.get("text")
        if part["type"] == "text" and not isinstance(text, str):
            missing(f"{at}.text") if text is None else wrong_type(f"{at}.text", "a string", text)
        texts.append(text if isinstance(text, str) else "x" * 340)
    return "\n".join(texts)


def _follows_call(messages: list[Json], i: int) -> bool:
    for before in reversed(messages[:i]):
        if isinstance(before, dict) and before.get("role") == "tool":
            continue
        return isinstance(before, dict) and bool(before.get("tool_calls"))
    return False


def _check_reasoning(raw: dict[str, Json]) -> None:
    if raw.get("max_tokens") is not None:
        raise OpenAIError(
            400,
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use"
            " 'max_completion_tokens' instead.",
            param="max_tokens",
            code="unsupported_parameter",
        )
    if raw.get("stop") is not None:
        raise OpenAIError(
            400,
            "Unsupported parameter: 'stop' is not supported with this model.",
            param="stop",
            code="unsupported_parameter",
        )
    for name, only in (("temperature", 1), ("top_p", 1), ("presence_penalty", 0)):
        value = raw.get(name)
        if value is not None and value != only:
            raise OpenAIError(
                400,
                f"Unsupported value: '{name}' does not support {value} with this model. Only the"
                f" default ({only}) value is supported.",
                param=name,
                code="unsupported_value",
            )


def _read_stop(raw: dict[str, Json]) -> tuple[str, ...]:
    stop = raw.get("stop")
    if stop is None:
        return ()
    if isinstance(stop, str):
        return (stop,) if stop else ()
    if not isinstance(stop, list) or not all(isinstance(s, str) for s in stop):
        wrong_type("stop", "one of a string or array of strings", stop)
    if len(stop) > 4:
        raise OpenAIError(
            400,
            "Invalid 'stop': array too long. Expected an array with maximum length 4, but got an"
            f" array with length {len(stop)} instead.",
            param="stop",
            code="array_above_max_length",
        )
    return tuple(s for s in stop if s)


def _read_tools(raw: dict[str, Json]) -> tuple[Tool, ...]:
    given = raw.get("tools")
    if given is None:
        return ()
    if not isinstance(given, list):
        wrong_type("tools", "an array of objects", given)
    if not given:
        raise OpenAIError(
            400,
            "Invalid 'tools': empty array. Expected an array with minimum length 1, but got an empty"
            " array instead.",
            param="tools",
            code="empty_array",
        )
    tools = []
    for i, tool in enumerate(given):
        if not isinstance(tool, dict):
            wrong_type(f"tools[{i}]", "an object", tool)
        if "type" not in tool:
            missing(f"tools[{i}].type")
        function = tool.get("function")
        if tool["type"] != "function":
            continue
        if not isinstance(function, dict):
            missing(f"tools[{i}].function")
        tools.append(read_function(function, f"tools[{i}].function"))
    return tuple(tools)


def read_function(function: dict[str, Json], where: str) -> Tool:
    """A function's description, at the path `where`."""
    name = function.get("name")
    if not isinstance(name, str):
        missing(f"{where}.name")
    if not re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", name):
        raise OpenAIError(
            400,
            f"Invalid '{where}.name': string does not match pattern. Expected a string that matches"
            " the pattern '^[a-zA-Z0-9_-]+$'.",
            param=f"{where}.name",
            code="invalid_value",
        )
    schema = function.get("parameters")
    if function.get("strict") and schema is not None:
        fault = strictness(schema)
        if fault:
            raise OpenAIError(
                400,
                f"Invalid schema for function '{name}': {fault}",
                param=f"{where}.parameters",
                code="invalid_function_parameters",
            )
    return Tool(name, schema if schema is not None else {"type": "object"})


def _read_tool_choice(
    raw: dict[str, Json], tools: tuple[Tool, ...]
) -> tuple[bool, tuple[Tool, ...]]:
    """Whether a call is forced, and of which tools."""
    choice = raw.get("tool_choice")
    if choice is None or choice == "auto":
        return False, tools
    if not tools:
        raise OpenAIError(
            400,
            "Invalid value for 'tool_choice': 'tool_choice' is only allowed when 'tools' are"
            " specified.",
            param="tool_choice",
        )
    if choice == "none":
        return False, ()
    if choice == "required":
        return True, tools
    named = choice.get("function") if isinstance(choice, dict) else None
    name = named.get("name") if isinstance(named, dict) else None
    chosen = tuple(tool for tool in tools if tool.name == name)
    if not chosen:
        shown = _encode(choice).decode()[:200]
        raise OpenAIError(
            400,
            f"Tool choice {shown} not found in 'tools' parameter.",
            param="tool_choice",
        )
    return True, chosen


def _read_format(raw: dict[str, Json], messages: list[Json]) -> Json:
    """The schema that the answer must fit, or None."""
    given = raw.get("response_format")
    if given is None:
        return None
    if not isinstance(given, dict):
        wrong_type("response_format", "an object", given)
    kind = given.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        if "json" not in _encode(messages).decode().lower():
            raise OpenAIError(
                400,
                "'messages' must contain the word 'json' in some form, to use 'response_format' of"
                " type 'json_object'.",
                param="messages",
            )
        return {"type": "object", "properties": {"answer": {"type": "string"}}}
    if kind != "json_schema":
        shown = kind if isinstance(kind, str) else _encode(kind).decode()
        raise OpenAIError(
            400,
            f"Invalid value: '{shown[:200]}'. Supported values are: 'json_object', 'json_schema', and"
            " 'text'.",
            param="response_format.type",
            code="invalid_value",
        )
    described = given.get("json_schema")
    if not isinstance(described, dict):
        missing("response_format.json_schema")
    name = described.get("name")
    if not isinstance(name, str):
        missing("response_format.json_schema.name")
    schema = described.get("schema", {})
    if described.get("strict"):
        fault = strictness(schema)
        if fault:
            raise OpenAIError(
                400,
                f"Invalid schema for response_format '{name}': {fault}",
                param="response_format",
            )
    return schema


def missing(param: str) -> NoReturn:
    raise OpenAIError(
        400,
        f"Missing required parameter: '{param}'.",
        param=param,
        code="missing_required_parameter",
    )


def wrong_type(param: str, expected: str, got: Json) -> NoReturn:
    kinds = {
        str: "a string",
        bool: "a boolean",
        int: "an integer",
        float: "a decimal",
        list: "an array",
        dict: "an object",
    }
    raise OpenAIError(
        400,
        f"Invalid type for '{param}': expected {expected}, but got"
        f" {kinds.get(type(got), 'null')} instead.",
        param=param,
        code="invalid_type",
    )


def boolean(raw: dict[str, Json], name: str) -> bool:
    value = raw.get(name)
    if value is not None and not isinstance(value, bool):
        wrong_type(name, "a boolean", value)
    return bool(value)


def integer(raw: dict[str, Json], name: str, low: int, high: int | None = None) -> int | None:
    value = raw.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        wrong_type(name, "an integer", value)
    if value < low:
        _out_of_range(name, "integer", "below minimum", f">= {low}", value)
    if high is not None and value > high:
        _out_of_range(name, "integer", "above maximum", f"<= {high}", value)
    return value


def decimal(raw: dict[str, Json], name: str, low: float, high: float) -> None:
    value = raw.get(name)
    if value is None:
        return
    if not isinstance(value, int | float) or isinstance(value, bool):
        wrong_type(name, "a decimal", value)
    if value < low:
        _out_of_range(name, "decimal", "below minimum", f">= {low}", value)
    if value > high:
        _out_of_range(name, "decimal", "above maximum", f"<= {high}", value)


def _out_of_range(name: str, kind: str, side: str, expected: str, got: float) -> NoReturn:
    raise OpenAIError(
        400,
        f"Invalid '{name}': {kind} {side} value. Expected a value {expected}, but got {got} instead.",
        param=name,
        code=f"{kind}_{side.replace('minimum', 'min').replace('maximum', 'max').replace(' ', '_')}_value",
    )
