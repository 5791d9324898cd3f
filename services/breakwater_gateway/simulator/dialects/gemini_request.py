"""Requests to Google's generateContent, checked as the service does.

Field names come in camelCase or snake_case, as protobuf's JSON allows. Source: Gemini API reference,
"generateContent"; error bodies that the service is known to send.
"""

import re
from typing import Final

from breakwater_gateway.simulator.dialects.dialect import Ask, encode
from breakwater_gateway.simulator.dialects.google_errors import GoogleError, bad_field
from breakwater_gateway.simulator.turns import Json, Tool, Turn, count_tokens

_KNOWN: Final = frozenset(
    {
        *(
            "contents",
            "systemInstruction",
            "tools",
            "toolConfig",
            "safetySettings",
            "cachedContent",
        ),
        *("generationConfig", "labels", "model", "serviceTier", "store"),
    }
)
_GENERATION: Final = frozenset(
    {
        *("stopSequences", "responseMimeType", "responseSchema", "responseJsonSchema", "seed"),
        *("responseModalities", "candidateCount", "maxOutputTokens", "temperature", "topP", "topK"),
        *("presencePenalty", "frequencyPenalty", "responseLogprobs", "logprobs", "speechConfig"),
        *("thinkingConfig", "mediaResolution", "imageConfig", "routingConfig", "audioTimestamp"),
        *("enableEnhancedCivicAnswers", "modelSelectionConfig", "enableAffectiveDialog"),
    }
)
_PARTS: Final = frozenset(
    {
        *("text", "inlineData", "fileData", "functionCall", "functionResponse", "thought"),
        *("thoughtSignature", "executableCode", "codeExecutionResult", "videoMetadata"),
        *("mediaResolution", "partMetadata", "toolCall", "toolResponse"),
    }
)
_DECLARATION: Final = frozenset(
    {
        *("name", "description", "parameters", "parametersJsonSchema", "response", "behavior"),
        "responseJsonSchema",
    }
)
_SCHEMA: Final = frozenset(
    {
        *("type", "format", "title", "description", "nullable", "enum", "items", "maxItems"),
        *("minItems", "properties", "required", "minProperties", "maxProperties", "minLength"),
        *("maxLength", "pattern", "example", "anyOf", "propertyOrdering", "default", "minimum"),
        *("maximum", "additionalProperties", "ref", "defs", "$ref", "$defs"),
    }
)
"""OpenAPI's subset. The Gemini API came to know `additionalProperties` and references late."""

CHOICES_MAX: Final = 8


def camel(given: Json, where: str = "", known: frozenset[str] | None = None) -> dict[str, Json]:
    """An object's fields in camelCase. Raises `GoogleError` for one that is not known."""
    if not isinstance(given, dict):
        raise GoogleError(400, f"Invalid value at '{where}' (type.googleapis.com), {_short(given)}")
    fields = {}
    for name, value in given.items():
        spelt = re.sub(r"_([a-z])", lambda found: found[1].upper(), name)
        if known is not None and spelt not in known:
            at = f" at '{where}'" if where else ""
            raise bad_field(
                f'Invalid JSON payload received. Unknown name "{name[:200]}"{at}: Cannot find field.',
                where,
            )
        fields[spelt] = value
    return fields


def read_generate(ask: Ask) -> Turn:
    """Raises `GoogleError`."""
    raw = camel(ask.raw, "", _KNOWN)
    contents = raw.get("contents")
    contents = [contents] if isinstance(contents, dict) else contents
    if not isinstance(contents, list) or not contents:
        raise bad_field(
            "* GenerateContentRequest.contents: contents is not specified\n", "contents"
        )
    turns = [_read_content(content, i) for i, content in enumerate(contents)]
    _check_order(turns)
    config = camel(raw.get("generationConfig") or {}, "generation_config", _GENERATION)
    choices = config.get("candidateCount") or 1
    if not isinstance(choices, int) or not 1 <= choices <= CHOICES_MAX:
        raise GoogleError(
            400,
            f"* GenerateContentRequest.generation_config.candidate_count: must be in [1, {CHOICES_MAX}]",
        )
    tokens_max = config.get("maxOutputTokens")
    if tokens_max is not None and (type(tokens_max) is not int or tokens_max < 1):
        raise GoogleError(
            400,
            "Unable to submit request because it has a maxOutputTokens value of"
            f" {_short(tokens_max)} but the supported range is from 1 (inclusive) to 65537 (exclusive).",
        )
    temperature = config.get("temperature")
    if temperature is not None and not (
        isinstance(temperature, int | float) and 0 <= temperature <= 2
    ):
        raise GoogleError(
            400,
            "* GenerateContentRequest.generation_config.temperature: must be in the range [0.0, 2.0]",
        )
    stop = config.get("stopSequences") or []
    if not isinstance(stop, list) or not all(isinstance(s, str) for s in stop) or len(stop) > 5:
        raise GoogleError(400, "stop_sequences: at most 5 strings")
    tools = _read_tools(raw.get("tools"))
    forced, tools = _read_tool_config(raw.get("toolConfig"), tools)
    prompt = sum(count_tokens(text) for turn in turns for text in turn.texts)
    prompt += count_tokens(encode(raw["tools"]).decode()) if raw.get("tools") else 0
    system = raw.get("systemInstruction")
    if system is not None:
        prompt += sum(
            count_tokens(text)
            for text in _read_content(
                {"role": "user", **camel(system, "system_instruction")}, 0
            ).texts
        )
    users = [turn for turn in turns if turn.role == "user" and turn.texts]
    return Turn(
        model=ask.model,
        stream=ask.route.action == "streamGenerateContent",
        include_usage=True,
        choices=choices,
        tokens_max=tokens_max,
        stop=tuple(stop),
        prompt_tokens=max(prompt, 1),
        last_text="\n".join(users[-1].texts) if users else "",
        tools=tools,
        forced=forced,
        answered=turns[-1].responses > 0,
        schema=_read_schema(config),
        framing="sse" if ask.query.get("alt") == "sse" else "array",
    )


class _Content:
    """A turn of the conversation: its role, its texts, and how many calls and responses are in it."""

    def __init__(self, role: str) -> None:
        self.role = role
        self.texts: list[str] = []
        self.calls = 0
        self.responses = 0


def _read_content(content: Json, i: int) -> _Content:
    where = f"contents[{i}]"
    fields = camel(content, where, frozenset({"role", "parts"}))
    role = fields.get("role", "user")
    if role not in ("user", "model", "function"):
        raise GoogleError(400, "Please use a valid role: user, model.")
    parts = fields.get("parts")
    parts = [parts] if isinstance(parts, dict) else parts
    if not isinstance(parts, list) or not parts:
        raise bad_field(
            f"* GenerateContentRequest.{where}.parts: contents.parts must not be empty.\n",
            f"{where}.parts",
        )
    found = _Content(role)
    for j, part in enumerate(parts):
        at = f"{where}.parts[{j}]"
        kinds = camel(part, at, _PARTS)
        if not kinds.keys() - {"thought", "thoughtSignature"}:
            raise GoogleError(
                400,
                f"* GenerateContentRequest.{at}.data: required oneof field 'data' must have one"
                " initialized field\n",
            )
        text = kinds.get("text")
        if text is not None and not isinstance(text, str):
            raise GoogleError(400, f"Invalid value at '{at}.text' (TYPE_STRING), {_short(text)}")
        for name in ("functionCall", "functionResponse"):
            if name in kinds and not camel(kinds[name], at).get("name"):
                raise GoogleError(
                    400, f"* GenerateContentRequest.{at}.{name}.name: Name cannot be empty.\n"
                )
        found.calls += "functionCall" in kinds
        found.responses += "functionResponse" in kinds
        if "text" not in kinds:
            text = (
                encode(part).decode()
                if kinds.keys() & {"functionCall", "functionResponse"}
                else "x" * 1000
            )
        found.texts.append(text or "")
    return found


def _check_order(turns: list[_Content]) -> None:
    for before, turn in zip((None, *turns), turns, strict=False):
        if turn.responses and (before is None or not before.calls):
            raise GoogleError(
                400,
                "Please ensure that function response turn comes immediately after a function call turn.",
            )
        if before is not None and before.calls and turn.responses != before.calls:
            raise GoogleError(
                400,
                "Please ensure that the number of function response parts is equal to the number of"
                " function call parts of the function call turn.",
            )


def _read_tools(given: Json) -> tuple[Tool, ...]:
    if given is None:
        return ()
    if not isinstance(given, list):
        raise GoogleError(400, f"Invalid value at 'tools' (repeated), {_short(given)}")
    tools = []
    for i, tool in enumerate(given):
        declarations = camel(tool, f"tools[{i}]").get("functionDeclarations") or []
        if not isinstance(declarations, list):
            raise GoogleError(400, "Invalid value at 'tools[0].function_declarations' (repeated)")
        for j, declaration in enumerate(declarations):
            where = f"tools[{i}].function_declarations[{j}]"
            fields = camel(declaration, where, _DECLARATION)
            name = fields.get("name")
            if not isinstance(name, str) or not re.fullmatch(
                r"[a-zA-Z_][a-zA-Z0-9_.:-]{0,63}", name
            ):
                raise bad_field(
                    f"* GenerateContentRequest.{where}.name: Invalid function name. Must start with a"
                    " letter or an underscore. Must be alphanumeric (a-z, A-Z, 0-9), underscores (_), dots"
                    " (.), colons (:), or dashes (-), with a maximum length of 64.\n",
                    f"{where}.name",
                )
            schema = fields.get("parametersJsonSchema")
            if schema is None and fields.get("parameters") is not None:
                schema = _json_schema(fields["parameters"], f"{where}.parameters")
            tools.append(Tool(name, schema or {"type": "object"}))
    return tuple(tools)


def _read_tool_config(given: Json, tools: tuple[Tool, ...]) -> tuple[bool, tuple[Tool, ...]]:
    config = camel(given or {}, "tool_config").get("functionCallingConfig") or {}
    calling = camel(config, "tool_config.function_calling_config")
    mode = calling.get("mode", "AUTO")
    if mode not in ("MODE_UNSPECIFIED", "AUTO", "ANY", "NONE", "VALIDATED"):
        raise GoogleError(
            400,
            "Invalid value at 'tool_config.function_calling_config.mode' (Mode), " + _short(mode),
        )
    names = calling.get("allowedFunctionNames")
    if names:
        if not isinstance(names, list):
            raise GoogleError(400, f"Invalid value at 'allowed_function_names', {_short(names)}")
        if mode not in {"ANY", "VALIDATED"}:
            raise GoogleError(
                400, "Allowed function names can only be set when the function calling mode is ANY."
            )
        tools = tuple(tool for tool in tools if tool.name in names)
    if mode == "NONE":
        return False, ()
    return mode == "ANY" and bool(tools), tools


def _read_schema(config: dict[str, Json]) -> Json:
    given = config.get("responseJsonSchema")
    kind = config.get("responseMimeType")
    schema = config.get("responseSchema")
    if (given is not None or schema is not None) and kind != "application/json":
        raise GoogleError(
            400,
            "* GenerateContentRequest.generation_config.response_mime_type: response_mime_type must be"
            " 'application/json' when a response schema is set",
        )
    if given is not None:
        return given
    if schema is not None:
        return _json_schema(schema, "generation_config.response_schema")
    if kind == "application/json":
        return {"type": "object", "properties": {"answer": {"type": "string"}}}
    return None


def _json_schema(schema: Json, where: str, depth: int = 0) -> Json:
    """The JSON Schema that an OpenAPI one means. Raises for what the subset does not have."""
    if depth > 32:
        raise GoogleError(400, "A schema in the request exceeds the maximum allowed nesting depth.")
    fields = camel(schema, where, _SCHEMA)
    found = dict(fields)
    kind = fields.get("type")
    if isinstance(kind, str):
        found["type"] = kind.lower()
        if fields.get("nullable") is True:
            found["type"] = [found["type"], "null"]
    elif kind is not None:
        raise GoogleError(400, f"Proto field is not repeating, cannot start list. {where}.type")
    properties = fields.get("properties")
    if isinstance(properties, dict):
        found["properties"] = {
            name: _json_schema(inner, f"{where}.properties[{i}].value", depth + 1)
            for i, (name, inner) in enumerate(properties.items())
        }
    if fields.get("items") is not None:
        found["items"] = _json_schema(fields["items"], f"{where}.items", depth + 1)
    if isinstance(fields.get("anyOf"), list):
        found["anyOf"] = [
            _json_schema(inner, f"{where}.any_of[{i}]", depth + 1)
            for i, inner in enumerate(fields["anyOf"])
        ]
    return found


def _short(value: Json) -> str:
    return encode(value).decode()[:200]
