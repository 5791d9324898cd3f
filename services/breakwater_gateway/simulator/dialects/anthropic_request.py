"""Requests to Anthropic's Messages API, checked as the service does, with its words.

Source: Anthropic API documentation, "Messages", "Tool use", "Extended thinking"; error bodies that its service
is known to send.
"""

import re
from typing import Final

from breakwater_gateway.simulator.dialects.anthropic_errors import AnthropicError
from breakwater_gateway.simulator.dialects.dialect import Ask, encode
from breakwater_gateway.simulator.schemas import strictness
from breakwater_gateway.simulator.turns import Json, Tool, Turn, count_tokens

THINKING_MIN: Final = 1024

_KNOWN: Final = frozenset(
    {
        *(
            "model",
            "max_tokens",
            "messages",
            "system",
            "tools",
            "tool_choice",
            "thinking",
            "stream",
        ),
        *("output_config", "output_format", "stop_sequences", "temperature", "top_p", "top_k"),
        *("metadata", "service_tier", "cache_control", "container", "context_management"),
        *("mcp_servers", "inference_geo", "speed", "anthropic_version", "anthropic_beta"),
    }
)
_BLOCKS: Final = frozenset(
    {
        *(
            "text",
            "image",
            "document",
            "search_result",
            "thinking",
            "redacted_thinking",
            "tool_use",
        ),
        *("tool_result", "server_tool_use", "web_search_tool_result", "web_fetch_tool_result"),
        *("code_execution_tool_result", "bash_code_execution_tool_result", "mcp_tool_use"),
        *("mcp_tool_result", "text_editor_code_execution_tool_result", "container_upload"),
        *("tool_reference", "tool_search_tool_result", "compaction"),
    }
)


def read_message(ask: Ask, *, counting: bool) -> Turn:
    """Raises `AnthropicError`. `counting`: of a request that only counts tokens."""
    raw = ask.raw
    for name in raw:
        if name not in _KNOWN:
            raise invalid(f"{name[:200]}: Extra inputs are not permitted")
    tokens_max = raw.get("max_tokens")
    if tokens_max is None and not counting:
        raise invalid("max_tokens: Field required")
    if tokens_max is not None and (type(tokens_max) is not int or tokens_max < 1):
        raise invalid("max_tokens: Input should be greater than or equal to 1")
    for name in ("temperature", "top_p"):
        value = raw.get(name)
        if value is not None and (not isinstance(value, int | float) or not 0 <= value <= 1):
            raise invalid(f"{name}: range: 0..1")
    messages = raw.get("messages")
    if messages is None:
        raise invalid("messages: Field required")
    if not isinstance(messages, list):
        raise invalid("messages: Input should be a valid list")
    if not messages:
        raise invalid("messages: at least one message is required")
    texts = [_read_turn(message, i) for i, message in enumerate(messages)]
    _check_order(messages, strict=ask.script.alternate)
    tools = _read_tools(raw)
    forced, tools, one_call = _read_tool_choice(raw, tools)
    _check_thinking(raw, tokens_max, forced=forced)
    prompt = sum(3 + count_tokens(text) for text in texts)
    prompt += count_tokens(_plain(raw.get("system"), "system"))
    if raw.get("tools"):
        # The hidden prompt that comes with tools.
        prompt += 300 + count_tokens(encode(raw["tools"]).decode())
    users = [text for m, text in zip(messages, texts, strict=True) if m["role"] == "user"]
    last = messages[-1]["content"]
    return Turn(
        model=ask.model,
        stream=raw.get("stream") is True,
        include_usage=True,
        choices=1,
        tokens_max=tokens_max,
        stop=_read_stop(raw),
        prompt_tokens=3 + prompt,
        last_text=users[-1] if users else "",
        tools=tools,
        forced=forced,
        answered=isinstance(last, list) and any(b["type"] == "tool_result" for b in last),
        schema=_read_format(raw),
        one_call=one_call,
    )


def invalid(message: str) -> AnthropicError:
    return AnthropicError(400, message)


def _read_turn(message: Json, i: int) -> str:
    where = f"messages.{i}"
    if not isinstance(message, dict):
        raise invalid(
            f"{where}: Input should be a valid dictionary or object to extract fields from"
        )
    role = message.get("role")
    if role is None:
        raise invalid(f"{where}.role: Field required")
    if role == "system":
        raise invalid(
            'messages: Unexpected role "system". The Messages API accepts a top-level `system`'
            ' parameter, not "system" as an input message role.'
        )
    if role not in ("user", "assistant"):
        raise invalid(f"{where}.role: Input should be 'user' or 'assistant'")
    for name in message:
        if name not in {"role", "content"}:
            raise invalid(f"{where}.{name[:200]}: Extra inputs are not permitted")
    if message.get("content") is None:
        raise invalid(f"{where}.content: Field required")
    return _plain(message["content"], f"{where}.content")


def _plain(content: Json, where: str) -> str:
    """The text of content; what is not text counts as some."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise invalid(f"{where}: Input should be a valid list")
    texts = []
    for j, block in enumerate(content):
        if not isinstance(block, dict):
            raise invalid(f"{where}.{j}: Input should be a valid dictionary")
        kind = block.get("type")
        if not isinstance(kind, str) or kind not in _BLOCKS:
            raise invalid(
                f"{where}.{j}: Input tag '{str(kind)[:100]}' found using 'type' does not match any of the"
                " expected tags: 'document', 'image', 'redacted_thinking', 'search_result', 'text',"
                " 'thinking', 'tool_result', 'tool_use'"
            )
        text = block.get("text")
        if kind == "text":
            if not isinstance(text, str):
                raise invalid(f"{where}.{j}.text.text: Field required")
            if not text:
                raise invalid("messages: text content blocks must be non-empty")
            texts.append(text)
        elif kind == "tool_result":
            texts.append(_plain(block.get("content"), f"{where}.{j}.content"))
        elif kind == "thinking" and not isinstance(block.get("signature"), str):
            raise invalid(f"{where}.{j}.thinking.signature: Field required")
        else:
            texts.append("x" * 340 if kind in {"image", "document"} else encode(block).decode())
    return "\n".join(texts)


def _check_order(messages: list[Json], *, strict: bool) -> None:
    """Whose turn it is, and that each tool call is followed by its result."""
    if messages[0]["role"] != "user" and strict:
        raise invalid('messages: first message must use the "user" role')
    waiting: list[str] = []
    for i, message in enumerate(messages):
        if strict and i and message["role"] == messages[i - 1]["role"]:
            raise invalid(
                'messages: roles must alternate between "user" and "assistant", but found multiple'
                f' "{message["role"]}" roles in a row'
            )
        blocks = message["content"] if isinstance(message["content"], list) else []
        for j, block in enumerate(blocks):
            if block["type"] != "tool_result":
                continue
            given = block.get("tool_use_id")
            if not isinstance(given, str):
                raise invalid(f"messages.{i}.content.{j}.tool_result.tool_use_id: Field required")
            if given not in waiting:
                raise invalid(
                    f"messages.{i}.content.{j}: unexpected `tool_use_id` found in `tool_result` blocks:"
                    f" {given[:200]}. Each `tool_result` block must have a corresponding `tool_use`"
                    " block in the previous message."
                )
            waiting.remove(given)
        if waiting:
            raise invalid(
                f"messages.{i - 1}: `tool_use` ids were found without `tool_result` blocks immediately"
                f" after: {', '.join(waiting)[:500]}. Each `tool_use` block must have a corresponding"
                " `tool_result` block in the next message."
            )
        waiting = [str(block.get("id")) for block in blocks if block["type"] == "tool_use"]


def _read_tools(raw: dict[str, Json]) -> tuple[Tool, ...]:
    given = raw.get("tools")
    if given is None:
        return ()
    if not isinstance(given, list):
        raise invalid("tools: Input should be a valid list")
    tools = []
    for i, tool in enumerate(given):
        if not isinstance(tool, dict):
            raise invalid(f"tools.{i}: Input should be a valid dictionary")
        if tool.get("type", "custom") != "custom":
            continue
        where = f"tools.{i}.custom"
        name = tool.get("name")
        if not isinstance(name, str):
            raise invalid(f"{where}.name: Field required")
        if not re.fullmatch(r"[a-zA-Z0-9_-]{1,128}", name):
            raise invalid(f"{where}.name: String should match pattern '^[a-zA-Z0-9_-]{{1,128}}$'")
        if "parameters" in tool:
            raise invalid(f"{where}.parameters: Extra inputs are not permitted")
        schema = tool.get("input_schema")
        if schema is None:
            raise invalid(f"{where}.input_schema: Field required")
        if not isinstance(schema, dict) or schema.get("type") != "object":
            raise invalid(f"{where}.input_schema.type: Input should be 'object'")
        fault = strictness(schema) if tool.get("strict") else ""
        if fault:
            raise invalid(
                f"{where}: For 'object' type, 'additionalProperties' must be explicitly set to false"
            )
        tools.append(Tool(name, schema))
    return tuple(tools)


def _read_tool_choice(
    raw: dict[str, Json], tools: tuple[Tool, ...]
) -> tuple[bool, tuple[Tool, ...], bool]:
    """Whether a call is forced, of which tools, and whether only one may be."""
    choice = raw.get("tool_choice")
    if choice is None:
        return False, tools, False
    kind = choice.get("type") if isinstance(choice, dict) else None
    if kind not in ("auto", "any", "tool", "none"):
        raise invalid(
            "tool_choice: Input tag found using 'type' does not match any of the expected tags:"
            " 'auto', 'any', 'tool', 'none'"
        )
    if not raw.get("tools"):
        raise invalid("tool_choice: tool_choice may only be specified while providing tools.")
    one_call = choice.get("disable_parallel_tool_use") is True
    if kind == "none":
        return False, (), one_call
    if kind == "tool":
        name = choice.get("name")
        chosen = tuple(tool for tool in tools if tool.name == name)
        if not chosen:
            raise invalid(f"Tool '{str(name)[:200]}' not found in provided tools")
        return True, chosen, one_call
    return kind == "any", tools, one_call


def _check_thinking(raw: dict[str, Json], tokens_max: Json, *, forced: bool) -> None:
    thinking = raw.get("thinking")
    if not isinstance(thinking, dict) or thinking.get("type") not in ("enabled", "adaptive"):
        return
    if forced:
        raise invalid("Thinking may not be enabled when tool_choice forces tool use.")
    if thinking["type"] == "adaptive":
        return
    budget = thinking.get("budget_tokens")
    if budget is None:
        raise invalid("thinking.enabled.budget_tokens: Field required")
    if type(budget) is not int or budget < THINKING_MIN:
        raise invalid(
            f"thinking.enabled.budget_tokens: Input should be greater than or equal to {THINKING_MIN}"
        )
    if isinstance(tokens_max, int) and tokens_max <= budget:
        raise invalid("`max_tokens` must be greater than `thinking.budget_tokens`.")


def _read_stop(raw: dict[str, Json]) -> tuple[str, ...]:
    given = raw.get("stop_sequences")
    if given is None:
        return ()
    if not isinstance(given, list) or not all(isinstance(stop, str) for stop in given):
        raise invalid("stop_sequences: Input should be a valid list")
    for i, stop in enumerate(given):
        if not stop.strip():
            raise invalid(f"stop_sequences.{i}: each stop sequence must contain non-whitespace")
    return tuple(given)


def _read_format(raw: dict[str, Json]) -> Json:
    config = raw.get("output_config")
    given = config.get("format") if isinstance(config, dict) else raw.get("output_format")
    if not isinstance(given, dict):
        return None
    if given.get("type") != "json_schema" or not isinstance(given.get("schema"), dict):
        raise invalid("output_config.format.schema: Field required")
    _check_schema(given["schema"])
    return given["schema"]


_UNSUPPORTED: Final = {
    "integer": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    "string": ("minLength", "maxLength"),
    "array": ("maxItems", "uniqueItems"),
}
"""Of JSON Schema, what structured outputs do not take ("Structured outputs", limitations)."""


def _check_schema(schema: Json, depth: int = 0) -> None:
    if not isinstance(schema, dict) or depth > 32:
        return
    kind = schema.get("type")
    for name in _UNSUPPORTED.get(kind, ()) if isinstance(kind, str) else ():
        if name in schema:
            raise invalid(
                f"output_config.format.schema: For '{kind}' type, property '{name}' is not supported"
            )
    if kind == "object" and schema.get("additionalProperties") is not False:
        raise invalid(
            "output_config.format.schema: For 'object' type, 'additionalProperties' must be explicitly set"
            " to false"
        )
    for group in ("properties", "$defs"):
        members = schema.get(group)
        for member in members.values() if isinstance(members, dict) else ():
            _check_schema(member, depth + 1)
    _check_schema(schema.get("items"), depth + 1)
    for member in schema.get("anyOf") or ():
        _check_schema(member, depth + 1)
