"""Requests to Converse and ConverseStream, checked as the service does, with its words.

Members that the API does not know are ignored, as its framework does; content blocks are unions, of which
exactly one member must be there. Source: Amazon Bedrock API reference, "Converse", "ContentBlock",
"ToolConfiguration"; user guide, "Carry out a conversation with the Converse API operations".
"""

import base64
import binascii
import re
from itertools import pairwise
from typing import Final

import msgspec

from breakwater_gateway.simulator.dialects.bedrock_errors import (
    BedrockError,
    constraint,
    invalid,
    of_model,
)
from breakwater_gateway.simulator.dialects.dialect import Ask, encode
from breakwater_gateway.simulator.turns import Json, Tool, Turn, count_tokens

THINKING_MIN: Final = 1024
MEDIA_TOKENS: Final = 85
"""What an image, a video or a document counts for."""
_TOOLS_OVERHEAD: Final = 300
"""Tokens of the hidden prompt that comes with tools."""

_BLOCKS: Final = frozenset(
    {
        *("text", "image", "document", "video", "audio", "toolUse", "toolResult"),
        *("reasoningContent", "guardContent", "cachePoint", "citationsContent", "searchResult"),
    }
)
_OF_SYSTEM: Final = frozenset({"text", "guardContent", "cachePoint"})
_OF_RESULT: Final = frozenset({"text", "json", "image", "document", "video", "searchResult"})
_FORMATS: Final = {
    "image": ("gif", "jpeg", "png", "webp"),
    "document": ("csv", "doc", "docx", "html", "md", "pdf", "txt", "xls", "xlsx"),
    "video": ("flv", "mkv", "mov", "mp4", "mpeg", "mpg", "three_gp", "webm", "wmv"),
}
# Membership is of tuples throughout: a value out of JSON may have no hash.
_IDENTITY: Final = re.compile(r"[a-zA-Z0-9_.:-]{1,64}", re.ASCII)
"""Models other than Amazon's have dots and colons in theirs, which are taken back (recorded)."""
_TOOL_NAME: Final = re.compile(r"[a-zA-Z0-9_-]{1,64}", re.ASCII)
# The service's own sentence leaves out underscores, and takes them (recorded).
_DOCUMENT_NAME: Final = re.compile(r"(?:[a-zA-Z0-9_\-()\[\]]|\s(?!\s)){1,200}", re.ASCII)


def read_converse(ask: Ask) -> Turn:
    """Raises `BedrockError`."""
    raw = ask.raw
    given = raw.get("messages")
    if given is None:
        given = []
    if not isinstance(given, list):
        raise _wrong_type("messages")
    texts = [_read_message(message, i) for i, message in enumerate(given)]
    _check_order(given, strict=ask.script.alternate)
    tools = _read_tools(raw)
    _check_results(given, has_tools=bool(raw.get("toolConfig")))
    forced, tools = _read_choice(raw, tools)
    limits = _read_limits(raw)
    extra = _object(raw, "additionalModelRequestFields")
    _check_thinking(extra, limits.get("maxTokens"), forced=forced)
    prompt = sum(3 + count_tokens(text) for text in texts)
    prompt += count_tokens(_blocks(raw.get("system", []), "system", _OF_SYSTEM))
    if raw.get("toolConfig"):
        prompt += _TOOLS_OVERHEAD + count_tokens(encode(raw["toolConfig"]).decode())
    users = [text for m, text in zip(given, texts, strict=True) if m["role"] == "user"]
    choice = extra.get("tool_choice")
    return Turn(
        model=ask.model,
        stream=ask.route.action == "converse-stream",
        include_usage=True,
        choices=1,
        tokens_max=limits.get("maxTokens"),
        stop=tuple(limits.get("stopSequences") or ()),
        prompt_tokens=3 + prompt,
        last_text=users[-1] if users else "",
        tools=tools,
        forced=forced,
        answered=any("toolResult" in block for block in given[-1]["content"]),
        schema=_read_format(raw),
        # Claude's own field: Converse itself has no word for it.
        one_call=isinstance(choice, dict) and choice.get("disable_parallel_tool_use") is True,
    )


def _wrong_type(where: str) -> BedrockError:
    return BedrockError("SerializationException", f"The value at {where} has the wrong type.")


def _object(raw: dict[str, Json], name: str, at: str = "") -> dict[str, Json]:
    """An optional object; empty where there is none."""
    value = raw.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _wrong_type(at + name)
    return value


def _union(block: Json, where: str, known: frozenset[str]) -> str:
    """Which member of a union is there."""
    if not isinstance(block, dict):
        raise _wrong_type(where)
    names: list[str] = [name for name, value in block.items() if value is not None]
    if len(names) != 1 or names[0] not in known:
        raise invalid(
            f"The value at {where} must set exactly one of the following keys:"
            f" {', '.join(sorted(known))}."
        )
    return names[0]


# ---- messages


def _read_message(message: Json, i: int) -> str:
    """The text of a message; what is not text counts as some."""
    where = f"messages.{i}"
    if not isinstance(message, dict):
        raise _wrong_type(where)
    if message.get("role") not in ("user", "assistant"):
        raise constraint(
            f"messages.{i + 1}.member.role", "satisfy enum value set: [user, assistant]"
        )
    content = message.get("content")
    if content is None:
        raise constraint(f"messages.{i + 1}.member.content", "not be null")
    if content == []:
        raise invalid(
            f"The content field in the Message object at {where} is empty. Add a ContentBlock object to"
            " the content field and try again."
        )
    text = _blocks(content, f"{where}.content", _BLOCKS)
    if any("document" in block for block in content) and not any("text" in b for b in content):
        raise invalid(
            f"A text block is required in {where}.content when it has a document block. Add a text"
            " block and try again."
        )
    if message["role"] == "user" and any("toolUse" in block for block in content):
        raise invalid(f"The toolUse block is not allowed in a user message at {where}.content.")
    return text


def _blocks(content: Json, where: str, known: frozenset[str]) -> str:
    if not isinstance(content, list):
        raise _wrong_type(where)
    texts = []
    for j, block in enumerate(content):
        kind = _union(block, f"{where}.{j}", known)
        texts.append(_block(block[kind], kind, f"{where}.{j}"))
    return "\n".join(text for text in texts if text)


def _block(value: Json, kind: str, where: str) -> str:
    if kind == "text":
        return _text(value, where)
    if kind == "json":
        return encode(value).decode()
    if not isinstance(value, dict):
        raise _wrong_type(f"{where}.{kind}")
    match kind:
        case "image" | "document" | "video":
            _check_media(value, kind, f"{where}.{kind}")
            return "x" * 4 * MEDIA_TOKENS
        case "toolUse":
            return _tool_use(value, f"{where}.toolUse")
        case "toolResult":
            _identity(value, f"{where}.toolResult")
            if value.get("status") not in (None, "success", "error"):
                raise constraint(
                    f"{where}.toolResult.status", "satisfy enum value set: [success, error]"
                )
            return _blocks(value.get("content"), f"{where}.toolResult.content", _OF_RESULT)
        case "reasoningContent":
            return _reasoning(value, f"{where}.reasoningContent")
        case "cachePoint":
            if value.get("type") != "default":
                raise constraint(f"{where}.cachePoint.type", "satisfy enum value set: [default]")
            return ""
        case _:
            return encode(value).decode()


def _text(value: Json, where: str) -> str:
    if not isinstance(value, str):
        raise _wrong_type(f"{where}.text")
    if not value.strip():
        raise invalid(
            f"The text field in the ContentBlock object at {where} is blank. Add text to the text field,"
            " and try again."
        )
    return value


def _tool_use(value: dict[str, Json], where: str) -> str:
    _identity(value, where)
    name = value.get("name")
    if not isinstance(name, str) or not _TOOL_NAME.fullmatch(name):
        raise constraint(f"{where}.name", "satisfy regular expression pattern: [a-zA-Z0-9_-]+")
    if not isinstance(value.get("input"), dict):
        raise invalid(
            f"The format of the value at {where}.input is invalid. Provide a json object for the field"
            " and try again."
        )
    return encode(value).decode()


def _identity(value: dict[str, Json], where: str) -> None:
    given = value.get("toolUseId")
    if not isinstance(given, str) or not _IDENTITY.fullmatch(given):
        raise constraint(f"{where}.toolUseId", "satisfy regular expression pattern: [a-zA-Z0-9_-]+")


def _reasoning(value: dict[str, Json], where: str) -> str:
    kind = _union(value, where, frozenset({"reasoningText", "redactedContent"}))
    inner = value[kind]
    text = inner.get("text") if isinstance(inner, dict) else inner
    if not isinstance(text, str):
        raise _wrong_type(f"{where}.{kind}")
    return text


def _check_media(value: dict[str, Json], kind: str, where: str) -> None:
    if value.get("format") not in _FORMATS[kind] and not (
        kind == "document" and value.get("format") is None
    ):
        raise constraint(
            f"{where}.format", f"satisfy enum value set: [{', '.join(_FORMATS[kind])}]"
        )
    if kind == "document":
        name = value.get("name")
        if not isinstance(name, str) or not _DOCUMENT_NAME.fullmatch(name):
            raise invalid(
                "The document file name can only contain alphanumeric characters, whitespace"
                " characters, hyphens, parentheses, and square brackets. The name can't contain more"
                " than one consecutive whitespace character."
            )
    source = _union(
        value.get("source"),
        f"{where}.source",
        frozenset({"bytes", "s3Location", "text", "content"}),
    )
    held = value["source"][source]
    if source == "bytes":
        try:
            empty = not base64.b64decode(held, validate=True)
        except (TypeError, ValueError, binascii.Error):
            raise _wrong_type(f"{where}.source.bytes") from None
        if empty:
            raise constraint(f"{where}.source.bytes", "have length greater than or equal to 1")


def _check_order(messages: list[Json], *, strict: bool) -> None:
    """Whose turn it is: some models mind, others were recorded to take what comes."""
    if not messages or (strict and messages[0]["role"] != "user"):
        raise invalid(
            "A conversation must start with a user message. Try again with a conversation that starts"
            " with a user message."
        )
    if strict and any(a["role"] == b["role"] for a, b in pairwise(messages)):
        raise invalid(
            "A conversation must alternate between user and assistant roles. Make sure the conversation"
            " alternates between user and assistant roles and try again."
        )


def _check_results(messages: list[Json], *, has_tools: bool) -> None:
    """That each tool call is followed by its result, and each result follows its call."""
    waiting: list[str] = []
    for i, message in enumerate(messages):
        content = message["content"]
        results = [b["toolResult"]["toolUseId"] for b in content if "toolResult" in b]
        calls = [b["toolUse"]["toolUseId"] for b in content if "toolUse" in b]
        if message["role"] == "assistant":
            # Tools that the service itself ran have their results beside them.
            calls = [given for given in calls if given not in results]
            results = []
        named = any("toolUse" in b or "toolResult" in b for b in content)
        if named and not has_tools:
            raise invalid(
                "The toolConfig field must be defined when using toolUse and toolResult content blocks."
            )
        if len(results) > len(waiting):
            raise invalid(
                f"The number of toolResult blocks at messages.{i}.content exceeds the number of toolUse"
                " blocks of previous turn."
            )
        missing = [given for given in waiting if given not in results]
        if missing:
            raise invalid(
                f"Expected toolResult blocks at messages.{i}.content for the following Ids:"
                f" {', '.join(missing)[:500]}"
            )
        if len(set(calls)) < len(calls):
            raise invalid(f"The toolUse blocks at messages.{i}.content contain duplicate Ids.")
        waiting = calls


# ---- tools


def _read_tools(raw: dict[str, Json]) -> tuple[Tool, ...]:
    config = _object(raw, "toolConfig")
    if not config:
        return ()
    given = config.get("tools")
    if not isinstance(given, list):
        raise constraint("toolConfig.tools", "not be null")
    if not given:
        raise constraint("toolConfig.tools", "have length greater than or equal to 1")
    tools: list[Tool] = []
    for i, tool in enumerate(given):
        where = f"toolConfig.tools.{i}"
        if _union(tool, where, frozenset({"toolSpec", "systemTool", "cachePoint"})) != "toolSpec":
            continue
        tools.append(_tool(_object(tool, "toolSpec", where + "."), i))
    names = [tool.name for tool in tools]
    if len(set(names)) < len(names):
        raise invalid("The tool names at toolConfig.tools must be unique.")
    return tuple(tools)


def _tool(spec: dict[str, Json], i: int) -> Tool:
    member = f"toolConfig.tools.{i + 1}.member.toolSpec"
    name = spec.get("name")
    if name is None:
        raise constraint(f"{member}.name", "not be null")
    if not isinstance(name, str) or not _TOOL_NAME.fullmatch(name):
        raise constraint(f"{member}.name", "satisfy regular expression pattern: [a-zA-Z0-9_-]+")
    if spec.get("description") == "":
        raise constraint(f"{member}.description", "have length greater than or equal to 1")
    shape = _object(spec, "inputSchema")
    if not shape:
        raise constraint(f"{member}.inputSchema", "not be null")
    where = f"toolConfig.tools.{i}.toolSpec.inputSchema.json"
    schema = shape.get("json")
    if not isinstance(schema, dict):
        raise invalid(
            f"The format of the value at {where} is invalid. Provide a json object for the field and try"
            " again."
        )
    if schema.get("type") != "object":
        raise invalid(f"The value at {where}.type must be one of the following: object.")
    return Tool(name, schema)


def _read_choice(raw: dict[str, Json], tools: tuple[Tool, ...]) -> tuple[bool, tuple[Tool, ...]]:
    """Whether a call is forced, and of which tools."""
    choice = _object(raw, "toolConfig").get("toolChoice")
    if choice is None:
        return False, tools
    kind = _union(choice, "toolConfig.toolChoice", frozenset({"auto", "any", "tool"}))
    named = _object(choice, kind, "toolConfig.toolChoice.")
    if kind != "tool":
        return kind == "any", tools
    chosen = tuple(tool for tool in tools if tool.name == named.get("name"))
    if not chosen:
        raise invalid(
            "The tool name at toolConfig.toolChoice.tool.name is not one of the names at"
            " toolConfig.tools."
        )
    return True, chosen


# ---- settings


def _read_limits(raw: dict[str, Json]) -> dict[str, Json]:
    limits = _object(raw, "inferenceConfig")
    most = limits.get("maxTokens")
    if most is not None and type(most) is not int:
        raise _wrong_type("inferenceConfig.maxTokens")
    if most is not None and most < 1:
        raise constraint("inferenceConfig.maxTokens", "have value greater than or equal to 1")
    for name in ("temperature", "topP"):
        value = limits.get(name)
        if value is None:
            continue
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise _wrong_type(f"inferenceConfig.{name}")
        if not 0 <= value <= 1:
            bound = "less than or equal to 1" if value > 1 else "greater than or equal to 0"
            raise constraint(f"inferenceConfig.{name}", f"have value {bound}")
    stops = limits.get("stopSequences")
    if stops is not None:
        if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
            raise _wrong_type("inferenceConfig.stopSequences")
        if not all(stops):
            raise constraint(
                "inferenceConfig.stopSequences", "have length greater than or equal to 1"
            )
    return limits


def _check_thinking(extra: dict[str, Json], tokens_max: Json, *, forced: bool) -> None:
    """Claude's, which Converse passes on unread."""
    thinking = extra.get("thinking")
    if not isinstance(thinking, dict) or thinking.get("type") not in ("enabled", "adaptive"):
        return
    if forced:
        raise of_model("Thinking may not be enabled when tool_choice forces tool use.")
    if thinking["type"] == "adaptive":
        return
    budget = thinking.get("budget_tokens")
    if budget is None:
        raise of_model("thinking.enabled.budget_tokens: Field required")
    if type(budget) is not int or budget < THINKING_MIN:
        raise of_model(
            "thinking.enabled.budget_tokens: Input should be greater than or equal to"
            f" {THINKING_MIN}"
        )
    if tokens_max is not None and tokens_max <= budget:
        raise of_model("`max_tokens` must be greater than `thinking.budget_tokens`.")


def _read_format(raw: dict[str, Json]) -> Json:
    """The schema of a structured answer, which is given as JSON text."""
    where = "outputConfig.textFormat"
    form = _object(_object(raw, "outputConfig"), "textFormat", "outputConfig.")
    if not form:
        return None
    if form.get("type") != "json_schema":
        raise constraint(f"{where}.type", "satisfy enum value set: [json_schema]")
    structure = _object(form, "structure", f"{where}.")
    text = _object(structure, "jsonSchema", f"{where}.structure.").get("schema")
    try:
        schema = msgspec.json.decode(text) if isinstance(text, str) else None
    except (msgspec.DecodeError, RecursionError):
        schema = None
    if not isinstance(schema, dict):
        raise invalid(f"The value at {where}.structure.jsonSchema.schema is not a JSON schema.")
    return schema
