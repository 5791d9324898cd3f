"""Requests to Bedrock's Converse, checked as the service does, and the shape of their signature.

Source: Amazon Bedrock API reference, "Converse"; AWS, "Signing AWS API requests"; error bodies that the
service is known to send.
"""

import hashlib
import re
from typing import Final

import msgspec

from breakwater_gateway.simulator.dialects.bedrock_errors import BedrockError, validation
from breakwater_gateway.simulator.dialects.dialect import Ask, Door, bearer, encode
from breakwater_gateway.simulator.turns import Json, Tool, Turn, count_tokens

_AUTHORIZATION: Final = re.compile(
    r"AWS4-HMAC-SHA256 Credential=(?P<key>[A-Za-z0-9]{3,128})/(?P<day>[0-9]{8})/(?P<region>[a-z0-9-]{1,40})"
    r"/(?P<service>[a-z0-9-]{1,40})/aws4_request, ?SignedHeaders=(?P<signed>[a-z0-9;-]{1,2000})"
    r", ?Signature=(?P<signature>[0-9a-f]{64})"
)
_STAMP: Final = re.compile(r"(?P<day>[0-9]{8})T[0-9]{6}Z")
_BLOCKS: Final = frozenset(
    {
        *("text", "image", "document", "video", "audio", "toolUse", "toolResult", "guardContent"),
        *("cachePoint", "reasoningContent", "citationsContent", "searchResult"),
    }
)
_NAME: Final = re.compile(r"[a-zA-Z0-9_-]{1,64}")


def key_of(door: Door) -> str:
    """The access key's id, or the bearer key."""
    found = _AUTHORIZATION.fullmatch(door.headers.get("authorization", ""))
    return found["key"] if found else bearer(door.headers)


def check_signature(door: Door) -> None:
    """The shape of a Signature Version 4, and what of it can be checked without the secret."""
    given = door.headers.get("authorization", "")
    if not given:
        raise BedrockError(
            403, "MissingAuthenticationTokenException", "Missing Authentication Token"
        )
    if bearer(door.headers):
        return
    found = _AUTHORIZATION.fullmatch(given)
    if found is None:
        raise BedrockError(
            403,
            "IncompleteSignatureException",
            "Authorization header requires 'Credential' parameter. Authorization header requires"
            " 'Signature' parameter. Authorization header requires 'SignedHeaders' parameter.",
        )
    stamp = _STAMP.fullmatch(door.headers.get("x-amz-date", ""))
    if stamp is None:
        raise BedrockError(
            403,
            "IncompleteSignatureException",
            "Authorization header requires existence of either a 'X-Amz-Date' or a 'Date' header.",
        )
    if found["service"] != "bedrock":
        raise _bad_signature("Credential should be scoped to correct service: 'bedrock'.")
    if found["day"] != stamp["day"]:
        raise _bad_signature(
            "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date."
        )
    signed = found["signed"].split(";")
    if "host" not in signed or signed != sorted(signed):
        raise _bad_signature(
            "'Host' or ':authority' must be a 'SignedHeader' in the AWS Authorization."
        )
    needed = {"x-amz-date"} | ({"x-amz-security-token"} & door.headers.keys())
    if not needed <= set(signed) <= door.headers.keys():
        raise _bad_signature(
            "The request signature we calculated does not match the signature you provided."
        )
    hashed = door.headers.get("x-amz-content-sha256")
    if hashed is not None and hashed != hashlib.sha256(door.body).hexdigest():
        raise _bad_signature(
            "The provided 'x-amz-content-sha256' header does not match what was computed."
        )


def _bad_signature(message: str) -> BedrockError:
    return BedrockError(403, "InvalidSignatureException", message)


def read_converse(ask: Ask) -> Turn:
    """Raises `BedrockError`."""
    raw = ask.raw
    messages = raw.get("messages")
    if not isinstance(messages, list) or not messages:
        raise validation(
            "1 validation error detected: Value at 'messages' failed to satisfy constraint: Member must not"
            " be null"
        )
    texts = [_read_message(message, i) for i, message in enumerate(messages)]
    _check_order(messages)
    tools, forced = _read_tools(raw, messages)
    config = raw.get("inferenceConfig") or {}
    if not isinstance(config, dict):
        raise _wrong("inferenceConfig", "STRUCTURE_VALUE")
    tokens_max = config.get("maxTokens")
    if tokens_max is not None and (type(tokens_max) is not int or tokens_max < 1):
        raise _constraint(
            "inferenceConfig.maxTokens", "Member must have value greater than or equal to 1"
        )
    for name in ("temperature", "topP"):
        value = config.get(name)
        if value is not None and not (isinstance(value, int | float) and 0 <= value <= 1):
            raise _constraint(
                f"inferenceConfig.{name}", "Member must have value less than or equal to 1"
            )
    stop = config.get("stopSequences") or []
    if not isinstance(stop, list) or not all(isinstance(s, str) and s for s in stop):
        raise _constraint(
            "inferenceConfig.stopSequences", "Member must have length greater than or equal to 1"
        )
    system = raw.get("system") or []
    prompt = sum(3 + count_tokens(text) for text in texts)
    prompt += count_tokens(encode(system).decode()) if system else 0
    prompt += count_tokens(encode(raw["toolConfig"]).decode()) if raw.get("toolConfig") else 0
    users = [text for m, text in zip(messages, texts, strict=True) if m["role"] == "user"]
    return Turn(
        model=ask.model,
        stream=ask.route.action == "converse-stream",
        include_usage=True,
        choices=1,
        tokens_max=tokens_max,
        stop=tuple(stop),
        prompt_tokens=prompt,
        last_text=users[-1] if users else "",
        tools=tools,
        forced=forced,
        answered=any("toolResult" in block for block in messages[-1]["content"]),
        schema=_read_format(raw),
    )


def _read_message(message: Json, i: int) -> str:
    if not isinstance(message, dict):
        raise _wrong(f"messages.{i}", "STRUCTURE_VALUE")
    if message.get("role") not in {"user", "assistant"}:
        raise _constraint(
            f"messages.{i + 1}.member.role",
            "Member must satisfy enum value set: [user, assistant]",
        )
    content = message.get("content")
    if not isinstance(content, list):
        raise _wrong(f"messages.{i}.content", "LIST_VALUE")
    if not content:
        raise validation(
            f"The content field in the Message object at messages.{i} is empty. Add a ContentBlock object"
            " to the content field and try again."
        )
    texts = []
    for j, block in enumerate(content):
        kinds = block.keys() & _BLOCKS if isinstance(block, dict) else set()
        if len(kinds) != 1:
            raise validation(
                f"The ContentBlock object at messages.{i}.content.{j} must set one of the following keys:"
                " text, image, toolUse, toolResult, document."
            )
        text = block.get("text")
        if "text" in kinds:
            if not isinstance(text, str):
                raise _wrong(f"messages.{i}.content.{j}.text", "STRING_VALUE")
            if not text.strip():
                raise validation(
                    f"The text field in the ContentBlock object at messages.{i}.content.{j} is blank. Add"
                    " text to the text field, and try again."
                )
        texts.append(text if isinstance(text, str) else encode(block).decode()[:4000])
    return "\n".join(texts)


def _check_order(messages: list[Json]) -> None:
    if messages[0]["role"] != "user":
        raise validation(
            "A conversation must start with a user message. Try again with a conversation that starts with a"
            " user message."
        )
    waiting: list[str] = []
    for i, message in enumerate(messages):
        if i and message["role"] == messages[i - 1]["role"]:
            raise validation(
                "A conversation must alternate between user and assistant roles. Make sure the conversation"
                " alternates between user and assistant roles and try again."
            )
        answered = _ids(message, "toolResult")
        if len(answered) > len(waiting):
            raise validation(
                f"The number of toolResult blocks at messages.{i}.content exceeds the number of toolUse"
                " blocks of previous turn."
            )
        missing = [name for name in waiting if name not in answered]
        if missing:
            raise validation(
                f"Expected toolResult blocks at messages.{i}.content for the following Ids:"
                f" {', '.join(missing)[:500]}"
            )
        waiting = _ids(message, "toolUse")


def _ids(message: Json, kind: str) -> list[str]:
    found = [block[kind] for block in message["content"] if kind in block]
    return [str(value.get("toolUseId")) for value in found if isinstance(value, dict)]


def _read_tools(raw: dict[str, Json], messages: list[Json]) -> tuple[tuple[Tool, ...], bool]:
    """The tools, and whether one must be called."""
    config = raw.get("toolConfig")
    if config is None:
        if any(_ids(message, kind) for message in messages for kind in ("toolUse", "toolResult")):
            raise validation(
                "The toolConfig field must be defined when using toolUse and toolResult content blocks."
            )
        return (), False
    given = config.get("tools") if isinstance(config, dict) else None
    if not isinstance(given, list) or not given:
        raise _constraint("toolConfig.tools", "Member must have length greater than or equal to 1")
    tools = []
    for i, tool in enumerate(given):
        described = tool.get("toolSpec") if isinstance(tool, dict) else None
        if not isinstance(described, dict):
            continue
        where = f"toolConfig.tools.{i + 1}.member.toolSpec"
        name = described.get("name")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise _constraint(
                f"{where}.name", "Member must satisfy regular expression pattern: [a-zA-Z0-9_-]+"
            )
        if "description" in described and not described["description"]:
            raise _constraint(
                f"{where}.description", "Member must have length greater than or equal to 1"
            )
        schema = described.get("inputSchema")
        if not isinstance(schema, dict) or not isinstance(schema.get("json"), dict):
            raise _constraint(f"{where}.inputSchema", "Member must not be null")
        if schema["json"].get("type") != "object":
            raise validation(
                f"The value at toolConfig.tools.{i}.toolSpec.inputSchema.json.type must be one of the"
                " following: object."
            )
        tools.append(Tool(name, schema["json"]))
    choice = config.get("toolChoice") or {"auto": {}}
    if "tool" in choice:
        named = tuple(tool for tool in tools if tool.name == choice["tool"].get("name"))
        if not named:
            raise validation("The tool in toolChoice is not among the tools of toolConfig.")
        return named, True
    return tuple(tools), "any" in choice


def _read_format(raw: dict[str, Json]) -> Json:
    config = raw.get("outputConfig")
    given = config.get("textFormat") if isinstance(config, dict) else None
    if not isinstance(given, dict) or given.get("type") != "json_schema":
        return None
    structure = given.get("structure")
    described = structure.get("jsonSchema") if isinstance(structure, dict) else None
    schema = described.get("schema") if isinstance(described, dict) else None
    if not isinstance(schema, str):
        raise _constraint(
            "outputConfig.textFormat.structure.jsonSchema.schema", "Member must not be null"
        )
    return _decoded(schema)


def _decoded(schema: str) -> Json:
    try:
        return msgspec.json.decode(schema)
    except (msgspec.DecodeError, RecursionError):
        raise validation("The JSON schema in outputConfig is not valid JSON.") from None


def _constraint(where: str, rule: str) -> BedrockError:
    return validation(
        f"1 validation error detected: Value at '{where}' failed to satisfy constraint: {rule}"
    )


def _wrong(where: str, expected: str) -> BedrockError:
    return BedrockError(
        400,
        "SerializationException",
        f"Unexpected value type in payload: {where}, expected {expected}",
    )
