"""JSON objects as their fields: known ones are taken out and typed, the rest stays the bytes it came as."""

import hashlib
from typing import Annotated, Final, NoReturn, TypeVar

import msgspec
from msgspec import Meta, Raw

from breakwater_gateway.worker.wire.bad_request import BadRequest

T = TypeVar("T")

encode: Final = msgspec.json.encode
decode_fields: Final = msgspec.json.Decoder(dict[str, Raw]).decode
"""The fields of an object; their bytes are checked for JSON, not for UTF-8: see `is_utf8`."""
decode_list: Final = msgspec.json.Decoder(list[Raw]).decode

TEXT: Final = msgspec.json.Decoder(str)
WHOLE: Final[msgspec.json.Decoder[int]] = msgspec.json.Decoder(
    Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
)
"""What msgspec can write again."""
NUMBER: Final = msgspec.json.Decoder(float)
FLAG: Final = msgspec.json.Decoder(bool)
ITEMS: Final = msgspec.json.Decoder(list[Raw])
OBJECT: Final = msgspec.json.Decoder(dict[str, Raw])

WHOLE_MAX: Final = 2**53
"""The largest integers of answers that are believed; JSON's readers agree on those below."""

UNREADABLE: Final = (msgspec.MsgspecError, RecursionError, UnicodeDecodeError)
"""What decoding hostile bytes raises."""

_EXPECTED: Final[dict[object, str]] = {
    str: "a string",
    float: "a number",
    bool: "a boolean",
    list[Raw]: "an array",
    dict[str, Raw]: "an object",
}


def is_utf8(data: bytes) -> bool:
    """Asked once a body, so that what stays raw may be written out again."""
    if data.isascii():
        return True
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def is_null(raw: Raw | None) -> bool:
    return raw is None or bytes(raw) == b"null"


def is_text(raw: Raw) -> bool:
    """Raw JSON keeps no white space around a value that msgspec cut out."""
    return bytes(raw)[:1] == b'"'


def without_nulls(fields: dict[str, Raw]) -> dict[str, Raw]:
    """A null asks for nothing: OpenAI's API reads it as absent."""
    return {name: raw for name, raw in fields.items() if bytes(raw) != b"null"}


class Taken:
    """The fields of one object of a request, taken out one by one. `at` is its path, for messages."""

    __slots__ = ("at", "fields")

    def __init__(self, raw: bytes | Raw, at: str = "") -> None:
        self.at = at
        try:
            self.fields = decode_fields(raw)
        except UNREADABLE:
            refuse(at, "an object")

    def path(self, name: str) -> str:
        return f"{self.at}.{name}" if self.at else name

    def take(self, name: str, decoder: msgspec.json.Decoder[T]) -> T | None:
        """The field as the decoder's type; None when absent or null. Raises BadRequest."""
        raw = self.fields.pop(name, None)
        if raw is None or bytes(raw) == b"null":
            return None
        try:
            return decoder.decode(raw)
        except UNREADABLE:
            refuse(self.path(name), _EXPECTED.get(decoder.type, "an integer"))

    def need(self, name: str, decoder: msgspec.json.Decoder[T]) -> T:
        value = self.take(name, decoder)
        if value is None:
            at = self.path(name)
            raise BadRequest(f"Missing required parameter: '{at}'.", at)
        return value

    def raw(self, name: str) -> Raw | None:
        raw = self.fields.pop(name, None)
        return None if is_null(raw) else raw

    def rest(self) -> dict[str, Raw]:
        """What nobody took, without nulls."""
        return without_nulls(self.fields) if self.fields else {}


def refuse(at: str, expected: str) -> NoReturn:
    if not at:
        raise BadRequest("The body is not a JSON object.")
    raise BadRequest(f"Invalid type for '{at}': expected {expected}.", at)


def text_or(raw: Raw | None, default: str = "") -> str:
    """A string of an answer, or the default for whatever else a host put there."""
    if raw is None:
        return default
    try:
        return TEXT.decode(raw)
    except UNREADABLE:
        return default


def whole_or(raw: Raw | None, default: int = 0) -> int:
    if raw is None:
        return default
    try:
        number = NUMBER.decode(raw)
    except UNREADABLE:
        return default
    return int(number) if abs(number) < WHOLE_MAX else default


def minting(ident: str, model: str, created: int) -> str:
    """What the tool call ids of one answer are made from, where its host gives none."""
    return f"{ident}|{model}|{created}"


def minted(seed: str, candidate: int, number: int) -> str:
    """An id as OpenAI's look, within its 40 characters; the same for the same answer."""
    text = f"{seed}|{candidate}|{number}".encode("utf-8", "surrogatepass")
    return f"call_{hashlib.sha256(text).hexdigest()[:24]}"
