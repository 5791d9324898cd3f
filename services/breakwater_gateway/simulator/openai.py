"""OpenAI's dialect from the provider's side: requests checked, answers made, errors worded.

Source: OpenAI API reference (chat completions, embeddings, models) and the error bodies that its service
is known to send. Everything here is a function of its arguments: the same seed and request give the same
text, ids and tokens.
"""

import base64
import math
import re
from collections.abc import Iterator
from functools import lru_cache
from hashlib import blake2b
from random import Random
from typing import Any, Final, NoReturn

import msgspec
from msgspec import Struct

from breakwater_gateway.simulator.script import Exceeded, Fault, Script, go_duration, mix

Json = Any
"""A decoded JSON value, checked by hand so that the wording of errors is the service's own."""


class ApiError(Exception):
    """An error as the service words it."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type_: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type_
        self.param = param
        self.code = code

    def object(self) -> dict[str, dict[str, str | None]]:
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }

    def body(self) -> bytes:
        return msgspec.json.encode(self.object())


class Tool(Struct, frozen=True):
    name: str
    schema: Json


class Turn(Struct, frozen=True):
    """A chat request, as far as the answer depends on it."""

    model: str
    stream: bool
    include_usage: bool
    choices: int
    tokens_max: int | None
    stop: tuple[str, ...]
    prompt_tokens: int
    last_text: str
    """Of the last user message."""
    tools: tuple[Tool, ...]
    forced: bool
    """A tool must be called."""
    answered: bool
    """The last message is a tool's result."""
    schema: Json
    """Of the structured answer; None for text."""


class Choice(Struct, frozen=True):
    """One answer, in token-sized pieces: of text, or of the tool call's arguments."""

    pieces: tuple[str, ...]
    finish: str
    tool: str = ""
    call_id: str = ""


class Sampling(Struct, frozen=True):
    """What tells one answer from another: 64 bits of the request under the seed, and the wall clock."""

    chance: int
    created: int

    @property
    def id(self) -> str:
        return f"chatcmpl-{mix(self.chance ^ 1):016x}{mix(self.chance ^ 2) & 0xFFFFFF:06x}"


FINGERPRINT: Final = "fp_simulator0"
MODELS_CREATED: Final = 1_700_000_000
INPUTS_MAX: Final = 2048
CHOICES_MAX: Final = 128
# The context window that OpenAI's small models had for long; scripts say otherwise.
CONTEXT_TOKENS: Final = 128_000
REASONING_TOKENS: Final = 64
DIMENSIONS: Final = {"text-embedding-3-large": 3072}
DIMENSIONS_DEFAULT: Final = 1536

_ROLES: Final = ("system", "assistant", "user", "function", "tool", "developer")
_REASONING: Final = re.compile(r"(?:.*/)?(?:o[1-9]|gpt-5)(?!.*chat)")
_encode = msgspec.json.encode


# Requests.


def decode(body: bytes) -> dict[str, Json]:
    """The request's JSON object. Raises `ApiError` for anything else, however deep."""
    try:
        raw = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raw = None
    if not isinstance(raw, dict):
        raise ApiError(
            400,
            "We could not parse the JSON body of your request. (HINT: This likely means you aren't"
            " using your HTTP library correctly. The OpenAI API expects a JSON payload, but what was"
            " sent was not valid JSON. If you have trouble figuring out how to fix this, please"
            " contact us through our help center at help.openai.com.)",
        )
    return raw


def model_of(raw: dict[str, Json]) -> str:
    model = raw.get("model")
    if model is None:
        raise ApiError(400, "you must provide a model parameter")
    if not isinstance(model, str):
        _wrong_type("model", "a string", model)
    return model


def is_reasoning(model: str, script: Script) -> bool:
    if script.reasoning is not None:
        return script.reasoning
    return _REASONING.match(model) is not None


def read_chat(raw: dict[str, Json], *, reasoning: bool) -> Turn:
    """Checks a chat request as the service does. Raises `ApiError`."""
    model = model_of(raw)
    messages = raw.get("messages")
    if messages is None:
        _missing("messages")
    if not isinstance(messages, list):
        _wrong_type("messages", "an array of objects", messages)
    if not messages:
        raise ApiError(
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
    stream = _boolean(raw, "stream")
    options = raw.get("stream_options")
    if options is not None and not stream:
        raise ApiError(
            400,
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.",
            param="stream_options",
        )
    if options is not None and not isinstance(options, dict):
        _wrong_type("stream_options", "an object", options)
    _decimal(raw, "temperature", 0, 2)
    _decimal(raw, "top_p", 0, 1)
    _decimal(raw, "frequency_penalty", -2, 2)
    _decimal(raw, "presence_penalty", -2, 2)
    old_max = _integer(raw, "max_tokens", 1)
    new_max = _integer(raw, "max_completion_tokens", 1)
    if old_max is not None and new_max is not None:
        raise ApiError(
            400,
            "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported.",
            code="invalid_parameter_combination",
        )
    if reasoning:
        _check_reasoning(raw)
    choices = _integer(raw, "n", 1, CHOICES_MAX) or 1
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
    )


def count_tokens(text: str) -> int:
    """About four characters a token, as English has it; at least one for a text."""
    return (len(text) + 3) // 4


def _read_message(messages: list[Json], i: int) -> str:
    """The message's text."""
    message = messages[i]
    where = f"messages[{i}]"
    if not isinstance(message, dict):
        _wrong_type(where, "an object", message)
    role = message.get("role")
    if role is None:
        _missing(f"{where}.role")
    if role not in _ROLES:
        shown = role if isinstance(role, str) else _encode(role).decode()
        supported = ", ".join(f"'{name}'" for name in _ROLES[:-1])
        raise ApiError(
            400,
            f"Invalid value: '{shown[:200]}'. Supported values are: {supported}, and '{_ROLES[-1]}'.",
            param=f"{where}.role",
            code="invalid_value",
        )
    if role == "tool" and not _follows_call(messages, i):
        raise ApiError(
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
            raise ApiError(
                400,
                f"Invalid value for 'content': expected a string, got null. ({where}.content)",
                param=f"{where}.content",
            )
        return _encode(message.get("tool_calls")).decode() if "tool_calls" in message else ""
    if not isinstance(content, list):
        _wrong_type(f"{where}.content", "one of a string or array of objects", content)
    texts = []
    for j, part in enumerate(content):
        at = f"{where}.content[{j}]"
        if not isinstance(part, dict):
            _wrong_type(at, "an object", part)
        if "type" not in part:
            _missing(f"{at}.type")
        text = part.get("text")
        if part["type"] == "text" and not isinstance(text, str):
            _missing(f"{at}.text") if text is None else _wrong_type(f"{at}.text", "a string", text)
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
        raise ApiError(
            400,
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use"
            " 'max_completion_tokens' instead.",
            param="max_tokens",
            code="unsupported_parameter",
        )
    if raw.get("stop") is not None:
        raise ApiError(
            400,
            "Unsupported parameter: 'stop' is not supported with this model.",
            param="stop",
            code="unsupported_parameter",
        )
    for name, only in (("temperature", 1), ("top_p", 1), ("presence_penalty", 0)):
        value = raw.get(name)
        if value is not None and value != only:
            raise ApiError(
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
        _wrong_type("stop", "one of a string or array of strings", stop)
    if len(stop) > 4:
        raise ApiError(
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
        _wrong_type("tools", "an array of objects", given)
    if not given:
        raise ApiError(
            400,
            "Invalid 'tools': empty array. Expected an array with minimum length 1, but got an empty"
            " array instead.",
            param="tools",
            code="empty_array",
        )
    tools = []
    for i, tool in enumerate(given):
        if not isinstance(tool, dict):
            _wrong_type(f"tools[{i}]", "an object", tool)
        if "type" not in tool:
            _missing(f"tools[{i}].type")
        function = tool.get("function")
        if tool["type"] != "function":
            continue
        if not isinstance(function, dict):
            _missing(f"tools[{i}].function")
        name = function.get("name")
        if not isinstance(name, str):
            _missing(f"tools[{i}].function.name")
        if not re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", name):
            raise ApiError(
                400,
                f"Invalid 'tools[{i}].function.name': string does not match pattern. Expected a"
                " string that matches the pattern '^[a-zA-Z0-9_-]+$'.",
                param=f"tools[{i}].function.name",
                code="invalid_value",
            )
        schema = function.get("parameters")
        if function.get("strict") and schema is not None:
            fault = strictness(schema)
            if fault:
                raise ApiError(
                    400,
                    f"Invalid schema for function '{name}': {fault}",
                    param=f"tools[{i}].function.parameters",
                    code="invalid_function_parameters",
                )
        tools.append(Tool(name, schema if schema is not None else {"type": "object"}))
    return tuple(tools)


def _read_tool_choice(
    raw: dict[str, Json], tools: tuple[Tool, ...]
) -> tuple[bool, tuple[Tool, ...]]:
    """Whether a call is forced, and of which tools."""
    choice = raw.get("tool_choice")
    if choice is None or choice == "auto":
        return False, tools
    if not tools:
        raise ApiError(
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
        raise ApiError(
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
        _wrong_type("response_format", "an object", given)
    kind = given.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        if "json" not in _encode(messages).decode().lower():
            raise ApiError(
                400,
                "'messages' must contain the word 'json' in some form, to use 'response_format' of"
                " type 'json_object'.",
                param="messages",
            )
        return {"type": "object", "properties": {"answer": {"type": "string"}}}
    if kind != "json_schema":
        shown = kind if isinstance(kind, str) else _encode(kind).decode()
        raise ApiError(
            400,
            f"Invalid value: '{shown[:200]}'. Supported values are: 'json_object', 'json_schema', and"
            " 'text'.",
            param="response_format.type",
            code="invalid_value",
        )
    described = given.get("json_schema")
    if not isinstance(described, dict):
        _missing("response_format.json_schema")
    name = described.get("name")
    if not isinstance(name, str):
        _missing("response_format.json_schema.name")
    schema = described.get("schema", {})
    if described.get("strict"):
        fault = strictness(schema)
        if fault:
            raise ApiError(
                400,
                f"Invalid schema for response_format '{name}': {fault}",
                param="response_format",
            )
    return schema


def _missing(param: str) -> NoReturn:
    raise ApiError(
        400,
        f"Missing required parameter: '{param}'.",
        param=param,
        code="missing_required_parameter",
    )


def _wrong_type(param: str, expected: str, got: Json) -> NoReturn:
    kinds = {
        str: "a string",
        bool: "a boolean",
        int: "an integer",
        float: "a decimal",
        list: "an array",
        dict: "an object",
    }
    raise ApiError(
        400,
        f"Invalid type for '{param}': expected {expected}, but got"
        f" {kinds.get(type(got), 'null')} instead.",
        param=param,
        code="invalid_type",
    )


def _boolean(raw: dict[str, Json], name: str) -> bool:
    value = raw.get(name)
    if value is not None and not isinstance(value, bool):
        _wrong_type(name, "a boolean", value)
    return bool(value)


def _integer(raw: dict[str, Json], name: str, low: int, high: int | None = None) -> int | None:
    value = raw.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        _wrong_type(name, "an integer", value)
    if value < low:
        _out_of_range(name, "integer", "below minimum", f">= {low}", value)
    if high is not None and value > high:
        _out_of_range(name, "integer", "above maximum", f"<= {high}", value)
    return value


def _decimal(raw: dict[str, Json], name: str, low: float, high: float) -> None:
    value = raw.get(name)
    if value is None:
        return
    if not isinstance(value, int | float) or isinstance(value, bool):
        _wrong_type(name, "a decimal", value)
    if value < low:
        _out_of_range(name, "decimal", "below minimum", f">= {low}", value)
    if value > high:
        _out_of_range(name, "decimal", "above maximum", f"<= {high}", value)


def _out_of_range(name: str, kind: str, side: str, expected: str, got: float) -> NoReturn:
    raise ApiError(
        400,
        f"Invalid '{name}': {kind} {side} value. Expected a value {expected}, but got {got} instead.",
        param=name,
        code=f"{kind}_{side.replace('minimum', 'min').replace('maximum', 'max').replace(' ', '_')}_value",
    )


def strictness(schema: Json, at: str = "()", depth: int = 0) -> str:
    """What OpenAI's strict mode would object to in a schema; empty when nothing."""
    if not isinstance(schema, dict) or depth > 32:
        return "" if isinstance(schema, dict) else f"In context={at}, schema must be an object."
    properties = schema.get("properties")
    if schema.get("type") == "object" or properties is not None:
        if schema.get("additionalProperties") is not False:
            return f"In context={at}, 'additionalProperties' is required to be supplied and to be false."
        names = list(properties) if isinstance(properties, dict) else []
        required = schema.get("required")
        missing = [n for n in names if not isinstance(required, list) or n not in required]
        if missing:
            return (
                f"In context={at}, 'required' is required to be supplied and to be an array including"
                f" every key in properties. Missing '{missing[0]}'."
            )
    inner: list[tuple[str, Json]] = []
    for group in ("properties", "$defs", "definitions"):
        members = schema.get(group)
        if isinstance(members, dict):
            inner += [(f"('{group}', '{name}')", member) for name, member in members.items()]
    if isinstance(schema.get("items"), dict):
        inner.append(("('items',)", schema["items"]))
    if isinstance(schema.get("anyOf"), list):
        inner += [(f"('anyOf', '{i}')", member) for i, member in enumerate(schema["anyOf"])]
    for where, member in inner:
        fault = strictness(member, where, depth + 1)
        if fault:
            return fault
    return ""


# Content.

_LOREM: Final = [
    "lorem",
    "ipsum",
    "dolor",
    "sit",
    "amet",
    "consectetur",
    "adipiscing",
    "elit",
    "sed",
    "do",
    "eiusmod",
    "tempor",
    "incididunt",
    "ut",
    "labore",
    "et",
    "dolore",
    "magna",
    "aliqua",
    "enim",
    "ad",
    "minim",
    "veniam",
    "quis",
    "nostrud",
    "exercitation",
    "ullamco",
    "laboris",
    "nisi",
    "aliquip",
    "ex",
    "ea",
    "commodo",
    "consequat",
    "duis",
    "aute",
    "irure",
    "in",
    "reprehenderit",
    "voluptate",
    "velit",
    "esse",
    "cillum",
    "fugiat",
    "nulla",
    "pariatur",
    "excepteur",
    "sint",
    "occaecat",
    "cupidatat",
    "non",
    "proident",
    "sunt",
    "culpa",
    "qui",
    "officia",
    "deserunt",
    "mollit",
    "anim",
    "id",
    "est",
    "laborum",
]
_CORPUS_TOKENS: Final = 4096


@lru_cache(maxsize=16)
def _corpus(seed: int) -> tuple[str, ...]:
    """Sentences of lorem ipsum, a word with its space and punctuation a token; twice, to slice anywhere."""
    random = Random(seed)  # noqa: S311 - text, not secrets
    pieces: list[str] = []
    while len(pieces) < _CORPUS_TOKENS:
        words = random.choices(_LOREM, k=random.randint(5, 14))
        words[0] = words[0].title()
        words[-1] += "."
        pieces += [f" {word}" for word in words]
    return tuple(pieces[:_CORPUS_TOKENS]) * 2


def lorem(tokens: int, *, chance: int, seed: int) -> tuple[str, ...]:
    corpus = _corpus(seed)
    at = chance % _CORPUS_TOKENS
    pieces = corpus[at : at + min(tokens, _CORPUS_TOKENS)]
    while len(pieces) < tokens:
        pieces += corpus[: min(tokens - len(pieces), _CORPUS_TOKENS)]
    return (pieces[0][1:], *pieces[1:]) if pieces else ()


def split_tokens(text: str) -> tuple[str, ...]:
    """Words with the space before them: joined, they are the text."""
    return tuple(re.findall(r"\s*\S{1,16}|\s+$", text))


def compose(
    turn: Turn, script: Script, *, chance: int, seed: int, malformed: bool = False
) -> list[Choice]:
    """The answers to a turn. `malformed`: a tool is called with arguments that do not parse."""
    return [
        _compose_one(
            turn, script, chance=mix(chance ^ i) if i else chance, seed=seed, malformed=malformed
        )
        for i in range(turn.choices)
    ]


def _compose_one(turn: Turn, script: Script, *, chance: int, seed: int, malformed: bool) -> Choice:
    tool = _tool_to_call(turn, script, malformed=malformed)
    if tool is not None:
        arguments = script.tool_arguments
        if arguments is None:
            arguments = _encode(fit(tool.schema, chance=chance)).decode()
        if malformed:
            arguments = (
                arguments.rstrip("}] \n")[:-1] + '", ' if len(arguments) > 8 else '{"city": "Pa'
            )
        call_id = f"call_{mix(chance ^ 3):016x}{mix(chance ^ 4) & 0xFFFFFFFF:08x}"
        pieces, cut = _limit(_chop(arguments), turn.tokens_max)
        return Choice(pieces, "length" if cut else "tool_calls", tool.name, call_id)
    if script.text is not None:
        pieces = split_tokens(script.text)
    elif turn.schema is not None:
        pieces = _chop(_encode(fit(turn.schema, chance=chance)).decode())
    elif script.mode == "echo":
        pieces = split_tokens(turn.last_text)
    else:
        pieces = lorem(script.tokens, chance=chance, seed=seed)
    if turn.stop:
        pieces = _stop_at(pieces, turn.stop)
    pieces, cut = _limit(pieces, turn.tokens_max)
    return Choice(pieces, "length" if cut else "stop")


def _tool_to_call(turn: Turn, script: Script, *, malformed: bool) -> Tool | None:
    if malformed:
        return turn.tools[0] if turn.tools else Tool("get_weather", {"type": "object"})
    if not turn.tools or script.tool_calls == "never":
        return None
    if turn.forced or (script.tool_calls == "always" and not turn.answered):
        return turn.tools[0]
    return None


def _chop(text: str) -> tuple[str, ...]:
    return tuple(text[i : i + 4] for i in range(0, len(text), 4))


def _limit(pieces: tuple[str, ...], tokens_max: int | None) -> tuple[tuple[str, ...], bool]:
    if tokens_max is None or len(pieces) <= tokens_max:
        return pieces, False
    return pieces[:tokens_max], True


def _stop_at(pieces: tuple[str, ...], stops: tuple[str, ...]) -> tuple[str, ...]:
    text = "".join(pieces)
    ends = [at for at in (text.find(stop) for stop in stops) if at >= 0]
    return split_tokens(text[: min(ends)]) if ends else pieces


def fit(schema: Json, *, chance: int, root: Json = None, depth: int = 0) -> Json:
    """A value that a JSON Schema accepts: the subset that structured outputs allow (no `pattern`)."""
    if not isinstance(schema, dict):
        return None
    root = schema if root is None else root
    if "$ref" in schema:
        return (
            None
            if depth > 40
            else fit(_resolve(schema["$ref"], root), chance=chance, root=root, depth=depth + 1)
        )
    if "const" in schema:
        return schema["const"]
    if isinstance(schema.get("enum"), list) and schema["enum"]:
        return schema["enum"][chance % len(schema["enum"])]
    for key in ("anyOf", "oneOf"):
        options = schema.get(key)
        if isinstance(options, list) and options:
            # The shallowest way out, once it gets deep: recursive schemas must end.
            simple = [o for o in options if isinstance(o, dict) and o.get("type") == "null"]
            chosen = simple[0] if simple and depth > 6 else options[chance % len(options)]
            if depth > 6 and not simple:
                chosen = min(options, key=lambda o: len(_encode(o)))
            return fit(chosen, chance=mix(chance), root=root, depth=depth + 1)
    if isinstance(schema.get("allOf"), list):
        merged: dict[str, Json] = {}
        for part in schema["allOf"]:
            whole = (
                _resolve(part["$ref"], root) if isinstance(part, dict) and "$ref" in part else part
            )
            if isinstance(whole, dict):
                merged = {
                    **merged,
                    **whole,
                    "properties": {**merged.get("properties", {}), **whole.get("properties", {})},
                    "required": [*merged.get("required", []), *whole.get("required", [])],
                }
        return fit(merged, chance=chance, root=root, depth=depth + 1)
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = (
            "null" if "null" in kind and depth > 6 else kind[chance % len(kind)] if kind else None
        )
    if kind == "object" or "properties" in schema:
        return _fit_object(schema, chance=chance, root=root, depth=depth)
    if kind == "array":
        low = _number(schema.get("minItems"), 0)
        high = _number(schema.get("maxItems"), math.inf)
        count = int(max(low, min(high, 2 if depth <= 6 else 0)))
        items = schema.get("items", {"type": "string"})
        return [
            fit(items, chance=mix(chance ^ i), root=root, depth=depth + 1)
            for i in range(min(count, 64))
        ]
    if kind in {"integer", "number"}:
        return _fit_number(schema, chance=chance, whole=kind == "integer")
    if kind == "boolean":
        return chance % 2 == 1
    if kind == "null":
        return None
    return _fit_string(schema, chance=chance)


def _fit_object(schema: dict[str, Json], *, chance: int, root: Json, depth: int) -> dict[str, Json]:
    properties = schema.get("properties")
    if not isinstance(properties, dict):
        return {}
    required = schema.get("required", [])
    names = [n for n in properties if n in required] if depth > 6 else list(properties)
    if depth > 40:
        return {}
    return {
        name: fit(properties[name], chance=mix(chance ^ i), root=root, depth=depth + 1)
        for i, name in enumerate(names)
    }


def _fit_number(schema: dict[str, Json], *, chance: int, whole: bool) -> float:
    step = _number(schema.get("multipleOf"), 1 if whole else 0)
    low = _number(schema.get("minimum"), -math.inf)
    high = _number(schema.get("maximum"), math.inf)
    nudge = step or 1e-3
    low = max(low, _number(schema.get("exclusiveMinimum"), -math.inf) + nudge)
    high = min(high, _number(schema.get("exclusiveMaximum"), math.inf) - nudge)
    low = low if low > -math.inf else min(0.0, high)
    value = min(low + chance % 100, high)
    if not whole and not step:
        return value
    # The first multiple from `low`, or the last before `high`.
    value = math.ceil(value / step) * step
    if value > high:
        value = math.floor(high / step) * step
    return int(value) if whole else value


_FORMATS: Final = {
    "date-time": "2025-01-02T03:04:05Z",
    "date": "2025-01-02",
    "time": "03:04:05Z",
    "duration": "PT5M",
    "email": "someone@example.com",
    "hostname": "example.com",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "uuid": "6f1b6e3e-7c9b-4c6e-9a55-0d9f3d2f9b10",
    "uri": "https://example.com/",
}


def _fit_string(schema: dict[str, Json], *, chance: int) -> str:
    known = _FORMATS.get(schema["format"]) if isinstance(schema.get("format"), str) else None
    if known is not None:
        return known
    low = int(min(_number(schema.get("minLength"), 0), 100_000))
    high = _number(schema.get("maxLength"), math.inf)
    text = " ".join(_LOREM[(chance + i) % len(_LOREM)] for i in range(2))
    text = text if len(text) >= low else text.ljust(low, "x")
    return text[: int(high)] if high < len(text) else text


def _number(value: Json, default: float) -> float:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else default


def _resolve(reference: Json, root: Json) -> Json:
    if not isinstance(reference, str) or not reference.startswith("#"):
        return {}
    found = root
    for part in reference[1:].split("/")[1:]:
        found = (
            found.get(part.replace("~1", "/").replace("~0", "~"), {})
            if isinstance(found, dict)
            else {}
        )
    return found


# Answers.


def usage_of(turn: Turn, choices: list[Choice], script: Script) -> dict[str, Json]:
    """Prompt tokens include cached ones, completion tokens include reasoning: total is their sum."""
    reasoning = script.reasoning_tokens
    if reasoning is None:
        reasoning = REASONING_TOKENS if is_reasoning(turn.model, script) else 0
    written = sum(len(choice.pieces) for choice in choices)
    prompt = script.prompt_tokens if script.prompt_tokens is not None else turn.prompt_tokens
    completion = (
        script.completion_tokens if script.completion_tokens is not None else written + reasoning
    )
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {
            "cached_tokens": min(script.cached_tokens, prompt),
            "audio_tokens": 0,
        },
        "completion_tokens_details": {
            "reasoning_tokens": min(reasoning, completion),
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def completion(turn: Turn, choices: list[Choice], script: Script, sampling: Sampling) -> bytes:
    """The body of an answer that is not streamed."""
    answer: dict[str, Json] = {
        "id": sampling.id,
        "object": "chat.completion",
        "created": sampling.created,
        "model": turn.model,
        "choices": [
            {
                "index": i,
                "message": _message(choice),
                "logprobs": None,
                "finish_reason": choice.finish,
            }
            for i, choice in enumerate(choices)
        ],
        "usage": usage_of(turn, choices, script),
        "service_tier": "default",
        "system_fingerprint": FINGERPRINT,
    }
    if script.usage == "missing":
        del answer["usage"]
    return _encode(answer)


def _message(choice: Choice) -> dict[str, Json]:
    text = "".join(choice.pieces)
    if not choice.tool:
        return {"role": "assistant", "content": text, "refusal": None, "annotations": []}
    call = {
        "id": choice.call_id,
        "type": "function",
        "function": {"name": choice.tool, "arguments": text},
    }
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [call],
        "refusal": None,
        "annotations": [],
    }


class Event(Struct, frozen=True):
    """One `data:` line with its blank one, and the content tokens in it."""

    data: bytes
    tokens: int = 0


DONE: Final = b"data: [DONE]\n\n"


def events(
    turn: Turn, choices: list[Choice], script: Script, sampling: Sampling
) -> Iterator[Event]:
    """The stream of an answer, in the order and shapes of the service: role, pieces, finish, usage, `[DONE]`."""
    head = (
        f'data: {{"id":"{sampling.id}","object":"chat.completion.chunk","created":{sampling.created},'
        f'"model":{_encode(turn.model).decode()},"service_tier":"default",'
        f'"system_fingerprint":"{FINGERPRINT}","choices":['
    ).encode()
    tail = b',"usage":null' if turn.include_usage else b""
    pad = _Padding(sampling.chance) if script.obfuscation else None

    def chunk(i: int, delta: bytes, finish: bytes = b"null") -> bytes:
        padding = pad.next() if pad is not None else b""
        return b'%b{"index":%d,"delta":%b,"logprobs":null,"finish_reason":%b}]%b%b}\n\n' % (
            head,
            i,
            delta,
            finish,
            tail,
            padding,
        )

    for i, choice in enumerate(choices):
        yield Event(chunk(i, _first_delta(choice)))
    step = script.chunk_tokens
    longest = max(len(choice.pieces) for choice in choices)
    for at in range(0, longest, step):
        for i, choice in enumerate(choices):
            pieces = choice.pieces[at : at + step]
            if pieces:
                text = _encode(pieces[0] if len(pieces) == 1 else "".join(pieces))
                delta = (
                    b'{"tool_calls":[{"index":0,"function":{"arguments":%b}}]}' % text
                    if choice.tool
                    else b'{"content":%b}' % text
                )
                yield Event(chunk(i, delta), len(pieces))
    for i, choice in enumerate(choices):
        yield Event(chunk(i, b"{}", _encode(choice.finish)))
    if turn.include_usage and script.usage != "missing":
        usage = _encode(usage_of(turn, choices, script))
        yield Event(b'%b],"usage":%b}\n\n' % (head, usage))
    yield Event(DONE)


def _first_delta(choice: Choice) -> bytes:
    if not choice.tool:
        return b'{"role":"assistant","content":"","refusal":null}'
    call = {
        "index": 0,
        "id": choice.call_id,
        "type": "function",
        "function": {"name": choice.tool, "arguments": ""},
    }
    return b'{"role":"assistant","content":null,"tool_calls":[%b],"refusal":null}' % _encode(call)


class _Padding:
    """`obfuscation`: characters of a random number, so that sizes tell nothing."""

    def __init__(self, chance: int) -> None:
        self._chance = chance

    def next(self) -> bytes:
        self._chance = mix(self._chance)
        text = f"{self._chance:016x}"[: self._chance % 16]
        return b',"obfuscation":"%b"' % text.encode()


# Embeddings and models.


class Embedding(Struct, frozen=True):
    """A request for embeddings, checked."""

    model: str
    inputs: tuple[str, ...]
    base64: bool
    dimensions: int
    prompt_tokens: int


def read_embeddings(raw: dict[str, Json], script: Script) -> Embedding:
    """Checks a request for embeddings as the service does. Raises `ApiError`."""
    model = model_of(raw)
    given = raw.get("input")
    if given is None:
        _missing("input")
    inputs = given if isinstance(given, list) else [given]
    if isinstance(given, list) and given and all(type(token) is int for token in given):
        inputs = [given]
    if not inputs or len(inputs) > INPUTS_MAX or not all(_embeddable(item) for item in inputs):
        raise ApiError(
            400,
            "'$.input' is invalid. Please check the API reference: https://platform.openai.com/docs/api-reference.",
        )
    encoding = raw.get("encoding_format")
    if encoding not in {None, "float", "base64"}:
        raise ApiError(
            400,
            "'$.encoding_format' is invalid. Please check the API reference:"
            " https://platform.openai.com/docs/api-reference.",
        )
    natural = script.embedding_dimensions or DIMENSIONS.get(model, DIMENSIONS_DEFAULT)
    wanted = _integer(raw, "dimensions", 1)
    if wanted is not None and wanted > natural:
        raise ApiError(
            400,
            f"Invalid value for 'dimensions' = {wanted}. Must be less than or equal to {natural}.",
            param="dimensions",
        )
    return Embedding(
        model=model,
        inputs=tuple(
            item if isinstance(item, str) else " ".join(map(str, item)) for item in inputs
        ),
        base64=encoding == "base64",
        dimensions=wanted or natural,
        prompt_tokens=sum(
            count_tokens(item) if isinstance(item, str) else len(item) for item in inputs
        ),
    )


def _embeddable(item: Json) -> bool:
    if isinstance(item, str):
        return item != ""
    return isinstance(item, list) and bool(item) and all(type(token) is int for token in item)


def embeddings(request: Embedding, script: Script, *, seed: int) -> bytes:
    """The answer's body. Texts that share words have vectors that point the same way."""
    data = [
        {
            "object": "embedding",
            "index": i,
            "embedding": _vector(text, request.dimensions, seed, as_base64=request.base64),
        }
        for i, text in enumerate(request.inputs)
    ]
    used = script.prompt_tokens if script.prompt_tokens is not None else request.prompt_tokens
    answer: dict[str, Json] = {
        "object": "list",
        "data": data,
        "model": request.model,
        "usage": {"prompt_tokens": used, "total_tokens": used},
    }
    if script.usage == "missing":
        del answer["usage"]
    return _encode(answer)


def _vector(text: str, dimensions: int, seed: int, *, as_base64: bool) -> str | list[float]:
    """The normalised sum of a random direction for each word; base64 is of float32, little-endian."""
    import numpy as np

    words = re.findall(r"\w+", text.lower())[:512] or [text]
    total = np.zeros(dimensions, dtype=np.float32)
    for word in words:
        total += np.frombuffer(_direction(word, dimensions, seed), dtype="<f4")
    total /= np.linalg.norm(total) or 1.0
    if as_base64:
        return base64.b64encode(total.astype("<f4").tobytes()).decode()
    return [float(x) for x in total]


@lru_cache(maxsize=1024)
def _direction(word: str, dimensions: int, seed: int) -> bytes:
    import numpy as np

    digest = blake2b(f"{seed}:{word}".encode(), digest_size=8).digest()
    random = np.random.default_rng(int.from_bytes(digest, "little"))
    return random.standard_normal(dimensions).astype("<f4").tobytes()


def model_object(name: str) -> dict[str, Json]:
    return {"id": name, "object": "model", "created": MODELS_CREATED, "owned_by": "simulator"}


def models(names: tuple[str, ...]) -> bytes:
    return _encode({"object": "list", "data": [model_object(name) for name in names]})


# Errors.

HTML_502: Final = (
    b"<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body>\r\n<center><h1>502 Bad Gateway"
    b"</h1></center>\r\n<hr><center>nginx</center>\r\n</body>\r\n</html>\r\n"
)


def no_key() -> ApiError:
    return ApiError(
        401,
        "You didn't provide an API key. You need to provide your API key in an Authorization header"
        " using Bearer auth (i.e. Authorization: Bearer YOUR_KEY). You can obtain an API key from"
        " https://platform.openai.com/account/api-keys.",
    )


def wrong_key(key: str) -> ApiError:
    hidden = f"{key[:8]}{'*' * 8}{key[-4:]}" if len(key) > 16 else "*" * len(key)
    return ApiError(
        401,
        f"Incorrect API key provided: {hidden}. You can find your API key at"
        " https://platform.openai.com/account/api-keys.",
        code="invalid_api_key",
    )


def unknown_model(model: str) -> ApiError:
    return ApiError(
        404,
        f"The model `{model}` does not exist or you do not have access to it.",
        code="model_not_found",
    )


def unknown_url(method: str, path: str) -> ApiError:
    return ApiError(404, f"Invalid URL ({method} {path})")


def wrong_method(method: str, path: str) -> ApiError:
    return ApiError(
        405,
        f"Not allowed to {method} on {path}. (HINT: Perhaps you meant to use a different HTTP method?)",
        code="method_not_supported",
    )


def over_limit(exceeded: Exceeded, model: str) -> ApiError:
    """The refusal of a script's own limit."""
    if exceeded.limit == "context":
        return _context_length(exceeded.bound, exceeded.requested)
    if exceeded.limit == "capacity":
        return _overloaded()
    if exceeded.limit == "request":
        return _too_large(model, exceeded.bound, exceeded.requested)
    unit = "RPM" if exceeded.limit == "requests" else "TPM"
    return ApiError(
        429,
        f"Rate limit reached for {model} in organization org-simulator on {exceeded.limit} per min"
        f" ({unit}): Limit {exceeded.bound}, Used {exceeded.used}, Requested {exceeded.requested}."
        f" Please try again in {go_duration(exceeded.wait_s)}. Visit"
        " https://platform.openai.com/account/rate-limits to learn more.",
        type_=exceeded.limit,
        code="rate_limit_exceeded",
    )


def fault_error(fault: Fault, *, model: str, key: str) -> ApiError | None:
    """How the service would word the fault; None for those that are no error object."""
    error: ApiError
    match fault.kind:
        case "rate_limited":
            wait_s = 20.0 if fault.retry_after_s is None else fault.retry_after_s
            error = over_limit(Exceeded("requests", 3, 3, 1, wait_s), model)
        case "quota_exhausted":
            error = ApiError(
                429,
                "You exceeded your current quota, please check your plan and billing details. For more"
                " information on this error, read the docs:"
                " https://platform.openai.com/docs/guides/error-codes/api-errors.",
                type_="insufficient_quota",
                code="insufficient_quota",
            )
        case "request_over_limit":
            error = _too_large(model, 30_000, 31_538)
        case "context_length":
            error = _context_length(CONTEXT_TOKENS, CONTEXT_TOKENS + 2_000)
        case "content_filter":
            error = ApiError(
                400,
                "Your request was rejected as a result of our safety system. Your prompt may contain"
                " text that is not allowed by our safety system.",
                code="content_policy_violation",
            )
        case "invalid_request":
            error = ApiError(
                400,
                "Invalid value: 'simulated'. The simulator was told to refuse this request.",
                param="messages",
                code="invalid_value",
            )
        case "authentication":
            error = wrong_key(key)
        case "permission":
            error = ApiError(
                403,
                f"Project `proj_simulator` does not have access to model `{model}`",
                code="model_not_found",
            )
        case "model_not_found":
            error = unknown_model(model)
        case "overloaded":
            error = _overloaded()
        case "server_error" | "error_in_200":
            error = ApiError(
                200 if fault.kind == "error_in_200" else 500,
                "The server had an error while processing your request. Sorry about that!",
                type_="server_error",
            )
        case (
            "html_502"
            | "empty_body"
            | "half_json"
            | "malformed_tool_call"
            | "malformed_chunk"
            | "filtered_answer"
            | "stall"
            | "cut"
            | "end_without_done"
            | "hang"
            | "reset"
        ):
            return None
    if fault.message is not None:
        error.message = fault.message
    return error


def _overloaded() -> ApiError:
    return ApiError(
        503,
        "The engine is currently overloaded, please try again later",
        type_="server_error",
        code="engine_overloaded",
    )


def _context_length(bound: int, tokens: int) -> ApiError:
    return ApiError(
        400,
        f"This model's maximum context length is {bound} tokens. However, your messages resulted in"
        f" {tokens} tokens. Please reduce the length of the messages.",
        param="messages",
        code="context_length_exceeded",
    )


def _too_large(model: str, bound: int, tokens: int) -> ApiError:
    return ApiError(
        429,
        f"Request too large for {model} in organization org-simulator on tokens per min (TPM): Limit"
        f" {bound}, Requested {tokens}. The input or output tokens must be reduced in order to run"
        " successfully. Visit https://platform.openai.com/account/rate-limits to learn more.",
        type_="tokens",
        code="rate_limit_exceeded",
    )
