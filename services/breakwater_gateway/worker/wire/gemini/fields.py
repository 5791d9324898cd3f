"""JSON objects of Google's APIs as their fields, under one spelling.

Protocol buffers' JSON accepts `inlineData` and `inline_data` alike, a single value where a list is meant,
bytes in either base64 alphabet and enumerations by name or number; official clients mix them. Source:
protobuf.dev, "ProtoJSON Format".
"""

from typing import Any, Final, NoReturn, TypeVar

import msgspec
from msgspec import Raw

from breakwater_gateway.worker.wire.bad_request import BadRequest

T = TypeVar("T")
Body = dict[str, object]

encode: Final = msgspec.json.encode
fields: Final = msgspec.json.Decoder(dict[str, Raw]).decode
UNREADABLE: Final = (msgspec.MsgspecError, RecursionError, UnicodeError)
"""What decoding hostile bytes raises."""

TEXT: Final = msgspec.json.Decoder(str)
TEXTS: Final = msgspec.json.Decoder(list[str])
NUMBER: Final = msgspec.json.Decoder(float)
FLAG: Final = msgspec.json.Decoder(bool)
ITEMS: Final = msgspec.json.Decoder(list[Raw])
OBJECT: Final = msgspec.json.Decoder(dict[str, Raw])
# Numbers of 64 bits travel as strings, and whole numbers as `40.0`.
WHOLE: Final = msgspec.json.Decoder(int, strict=False)

_EXPECTED: Final[dict[object, str]] = {
    str: "a string",
    int: "an integer",
    float: "a number",
    bool: "a boolean",
    list[str]: "a list of strings",
    list[Raw]: "a list",
    dict[str, Raw]: "an object",
}

FIELDS_MAX: Final = 256
"""Fields of one object; the API's largest has some thirty."""

_NULL: Final = b"null"

_NAMES: Final = (
    *("systemInstruction", "toolConfig", "safetySettings", "generationConfig", "cachedContent"),
    *("modelArmorConfig", "serviceTier", "generateContentRequest", "outputDimensionality"),
    *("taskType", "autoTruncate", "inlineData", "fileData", "functionCall", "functionResponse"),
    *("executableCode", "codeExecutionResult", "toolCall", "toolResponse", "toolType"),
    *("thoughtSignature", "videoMetadata", "mediaResolution", "partMetadata", "mimeType"),
    *("fileUri", "displayName", "functionDeclarations", "parametersJsonSchema"),
    *("responseJsonSchema", "responseSchema", "responseMimeType", "functionCallingConfig"),
    *("allowedFunctionNames", "includeServerSideToolInvocations", "retrievalConfig"),
    *("maxOutputTokens", "topP", "topK", "candidateCount", "stopSequences", "thinkingConfig"),
    *("includeThoughts", "thinkingBudget", "thinkingLevel", "presencePenalty"),
    *("frequencyPenalty", "responseLogprobs", "responseModalities", "speechConfig"),
    *("audioTimestamp", "imageConfig", "routingConfig", "modelSelectionConfig"),
    *("enableAffectiveDialog", "enableEnhancedCivicAnswers", "googleSearch", "urlContext"),
    *("googleSearchRetrieval", "codeExecution", "fileSearch", "googleMaps", "computerUse"),
    *("enterpriseWebSearch", "mcpServers", "willContinue", "partialArgs"),
)


def _snake(name: str) -> str:
    return "".join("_" + letter.lower() if letter.isupper() else letter for letter in name)


CAMEL: Final[dict[str, str]] = {_snake(name): name for name in _NAMES if _snake(name) != name}
"""The fields of requests that have two spellings."""


def canonical(value: Any, within: str = "") -> Any:  # noqa: ANN401 - JSON
    """A decoded request body in the spelling that `encode_request` writes; equal bodies become equal values.

    `within` is the field that holds `value`. What belongs to the caller or the model (schemas, arguments,
    responses) is left alone. Unset and empty messages are the same on the wire, and gone here.
    """
    if within in _OPAQUE:
        return value
    if isinstance(value, list):
        if within == "tools":
            return _canonical_tools(value)
        return [canonical(item, within) for item in value]
    if not isinstance(value, dict):
        if within in {"mode", "thinkingLevel"} and isinstance(value, str):
            return value.upper()
        return standard_base64(value) if within == "data" and isinstance(value, str) else value
    if within == "tools":
        return _canonical_tools([value])
    found: dict[str, Any] = {}
    spelled: str
    for spelled, given in value.items():
        name = CAMEL.get(spelled, spelled)
        kept = canonical([given] if name in _LISTS and isinstance(given, dict) else given, name)
        empty = kept is None or (name in _EMPTY_IS_UNSET and kept in ({}, []))
        if not empty and not (name in {"thought", "includeThoughts"} and kept is False):
            found[name] = kept
    return found


_OPAQUE: Final = frozenset(
    {
        *("args", "response", "parameters", "parametersJsonSchema", "responseSchema"),
        *("responseJsonSchema", "executableCode", "codeExecutionResult", "toolCall"),
        *("toolResponse", "labels"),
    }
)
_LISTS: Final = frozenset({"contents", "parts", "tools", "functionDeclarations"})
_EMPTY_IS_UNSET: Final = frozenset(
    {"generationConfig", "toolConfig", "thinkingConfig", "tools", "safetySettings", "contents"}
)


def _canonical_tools(tools: list[Any]) -> list[Any]:
    """All functions in one list, before the hosted tools: how they are grouped means nothing."""
    functions: list[Any] = []
    hosted: list[Any] = []
    for tool in tools:
        for spelled, given in tool.items() if isinstance(tool, dict) else ():
            name = CAMEL.get(spelled, spelled)
            if name == "functionDeclarations":
                functions += canonical(given if isinstance(given, list) else [given], name)
            else:
                hosted.append({name: given})
    return ([{"functionDeclarations": functions}] if functions else []) + hosted


_TO_STANDARD: Final = str.maketrans("-_", "+/")


def standard_base64(data: str) -> str:
    """Base64 in the standard alphabet with padding, as every other provider wants it."""
    if "-" in data or "_" in data:
        data = data.translate(_TO_STANDARD)
    missing = -len(data) % 4
    return data + "=" * missing if 0 < missing < 3 else data


class Taken:
    """The fields of one object of a request, taken out one by one. `at` is its path, for messages."""

    __slots__ = ("at", "given")

    def __init__(self, raw: bytes | Raw, at: str = "") -> None:
        """Raises BadRequest."""
        self.at = at
        try:
            given = fields(raw)
        except UNREADABLE:
            refuse(at, "an object")
        if len(given) > FIELDS_MAX:
            raise BadRequest(f"An object may have {FIELDS_MAX} fields.", at or None)
        self.given: dict[str, Raw] = {
            CAMEL.get(name, name): value for name, value in given.items() if bytes(value) != _NULL
        }

    def path(self, name: str) -> str:
        return f"{self.at}.{name}" if self.at else name

    def take(self, name: str, decoder: msgspec.json.Decoder[T]) -> T | None:
        """The field as the decoder's type; None when absent or null. Raises BadRequest."""
        raw = self.given.pop(name, None)
        if raw is None:
            return None
        try:
            return decoder.decode(raw)
        except UNREADABLE:
            refuse(self.path(name), _EXPECTED.get(decoder.type, "of this shape"))

    def items(self, name: str) -> list[Raw]:
        """A repeated field; one value alone counts as a list of it."""
        raw = self.given.pop(name, None)
        if raw is None:
            return []
        if bytes(raw)[:1] == b"{":
            return [raw]
        try:
            return ITEMS.decode(raw)
        except UNREADABLE:
            refuse(self.path(name), "a list")

    def sub(self, name: str) -> "Taken | None":
        raw = self.given.pop(name, None)
        return None if raw is None else Taken(raw, self.path(name))


def refuse(at: str, expected: str) -> NoReturn:
    if not at:
        raise BadRequest("Invalid JSON payload received: expected an object.")
    raise BadRequest(f"Invalid value at '{at}': expected {expected}.", at)


def text_or(raw: Raw | None, default: str = "") -> str:
    """A string of an answer, or the default for whatever else stands there."""
    if raw is None:
        return default
    try:
        return TEXT.decode(raw)
    except UNREADABLE:
        return default


class Dropped:
    """Names of what was asked for and cannot be said, each once, in the order they were met."""

    __slots__ = ("names",)

    def __init__(self) -> None:
        self.names: dict[str, None] = {}

    def add(self, name: str) -> None:
        self.names[name] = None

    def native(self, extra: dict[str, Raw], where: str = "") -> None:
        for name in extra:
            self.names[f"{where}{name}"] = None
