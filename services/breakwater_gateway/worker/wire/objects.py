"""JSON objects read field by field: what is known is taken out and typed, the rest stays as it came.

Used by the dialects that only providers speak (`bedrock`, `cohere`, `ollama`).
"""

import hashlib
import re
from typing import Final, TypeVar

import msgspec
from msgspec import Raw

from breakwater_gateway.worker.wire import neutral as n
from breakwater_gateway.worker.wire.bad_request import BadRequest

UNREADABLE: Final = (msgspec.MsgspecError, RecursionError, UnicodeError)
"""What reading bytes that are not the JSON we want can raise."""

NULL: Final = b"null"

MESSAGES_MAX: Final = 100_000
"""Messages of one request."""

encode: Final = msgspec.json.Encoder().encode
fields_of: Final = msgspec.json.Decoder(dict[str, Raw]).decode
items_of: Final = msgspec.json.Decoder(list[Raw]).decode
text_of: Final = msgspec.json.Decoder(str).decode

Body = dict[str, object]

_T = TypeVar("_T")

_TEXT: Final = msgspec.json.Decoder(str)
_WHOLE: Final = msgspec.json.Decoder(int)
_NUMBER: Final = msgspec.json.Decoder(float)
_FLAG: Final = msgspec.json.Decoder(bool)
_ITEMS: Final = msgspec.json.Decoder(list[Raw])
_TEXTS: Final = msgspec.json.Decoder(list[str])


class Fields:
    """The fields of one object. `at` is its path, for messages; `left` holds what was not taken.

    A reader answers None for a field that is absent or null, and leaves a null where it is. It raises
    BadRequest for a field of the wrong type, and the constructor for what is no object.
    """

    __slots__ = ("at", "left")

    def __init__(self, raw: bytes | Raw, at: str = "") -> None:
        self.at = at
        try:
            self.left = fields_of(raw)
        except UNREADABLE:
            where = f"'{at}'" if at else "The body"
            raise BadRequest(f"{where} is not a JSON object.", at or None) from None

    def path(self, name: str) -> str:
        return f"{self.at}.{name}" if self.at else name

    def has(self, name: str) -> bool:
        raw = self.left.get(name)
        return raw is not None and bytes(raw) != NULL

    def raw(self, name: str) -> Raw | None:
        return self.left.pop(name) if self.has(name) else None

    def text(self, name: str) -> str | None:
        return self._take(name, _TEXT, "a string")

    def whole(self, name: str) -> int | None:
        return self._take(name, _WHOLE, "an integer")

    def number(self, name: str) -> float | None:
        return self._take(name, _NUMBER, "a number")

    def flag(self, name: str) -> bool | None:
        return self._take(name, _FLAG, "a boolean")

    def items(self, name: str) -> list[Raw] | None:
        return self._take(name, _ITEMS, "an array")

    def texts(self, name: str) -> list[str] | None:
        return self._take(name, _TEXTS, "an array of strings")

    def each(self, name: str) -> list[Raw]:
        """The items of an array; none of one that is absent, null or empty, which stays where it is."""
        return (self.items(name) or []) if self._holds(name) else []

    def each_text(self, name: str) -> list[str]:
        """The same of an array of strings."""
        return (self.texts(name) or []) if self._holds(name) else []

    def _holds(self, name: str) -> bool:
        return self.has(name) and bytes(self.left[name]) != b"[]"

    def child(self, name: str) -> "Fields | None":
        raw = self.raw(name)
        return None if raw is None else Fields(raw, self.path(name))

    def need(self, name: str, value: _T | None) -> _T:
        """`value` again, which was read of the field `name`. Raises BadRequest when there was none."""
        if value is None:
            raise BadRequest(f"'{self.path(name)}' is required.", self.path(name))
        return value

    def _take(self, name: str, decoder: msgspec.json.Decoder[_T], expected: str) -> _T | None:
        raw = self.left.get(name)
        if raw is None or bytes(raw) == NULL:
            return None
        try:
            value = decoder.decode(raw)
        except UNREADABLE:
            raise BadRequest(f"'{self.path(name)}' is not {expected}.", self.path(name)) from None
        del self.left[name]
        return value

    def keep(self, child: "Fields | None", name: str) -> None:
        """Put back what is left of a field's object, if anything: `{}` stays where it held nothing."""
        if child is not None and child.left:
            self.left[name] = Raw(encode(child.left))


def is_text(raw: Raw) -> bool:
    """Raw JSON keeps no white space around a value that msgspec cut out."""
    return bytes(raw)[:1] == b'"'


def put(body: Body, name: str, value: object) -> None:
    """Write a field that has a value; None and the empty string mean: not asked for."""
    if value is not None and value != "":
        body[name] = value


def merged(body: Body, name: str, written: Body, left: n.Extra) -> None:
    """Write an object of typed fields, with what the decoder left of it."""
    raw = left.get(name)
    if raw is not None and bytes(raw) != NULL:
        del left[name]
        body[name] = written | fields_of(raw)
    elif written:
        body[name] = written


class Dropped:
    """Names of what was asked for and cannot be said, each once, in the order they were met."""

    __slots__ = ("_names",)

    def __init__(self) -> None:
        self._names: dict[str, None] = {}

    def add(self, name: str) -> None:
        self._names[name] = None

    def fields(self, extra: n.Extra, where: str = "") -> None:
        """Native fields of another dialect, those that ask for something."""
        for name, value in extra.items():
            if bytes(value) != NULL:
                self._names[f"{where}{name}"] = None

    def given(self, **asked: object) -> None:
        """Each name whose value asks for something."""
        for name, value in asked.items():
            if value is not None and value is not False and value not in ("", []):
                self._names[name] = None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._names)


def kind(part: n.Part) -> str:
    """What to call a part in a list of dropped names: its tag, or the type of a native block."""
    if isinstance(part, n.Native):
        return native_kind(part.raw)
    tag = part.__struct_config__.tag
    return tag if isinstance(tag, str) else "part"


def native_kind(raw: Raw) -> str:
    try:
        given = fields_of(raw)
        if "type" in given:
            return text_of(given["type"])[:64]
        return next(iter(given), "native")[:64]
    except UNREADABLE:
        return "native"


def as_object(arguments: str) -> Raw:
    """A tool's arguments as the JSON object that these APIs want.

    Text that is no JSON object is wrapped, so that nothing the model wrote is lost.
    """
    if not arguments.strip():
        return Raw(b"{}")
    try:
        written = arguments.encode()
        fields_of(written)
    except UNREADABLE:
        return Raw(encode({"INVALID_JSON": arguments.encode(errors="replace").decode()}))
    return Raw(written)


def as_text(raw: Raw | None, default: str = "{}") -> str:
    """Raw JSON as text, for a tool call's arguments."""
    return default if raw is None else bytes(raw).decode("utf-8", "replace")


def minted_id(*content: object) -> str:
    """An id for a call that the provider gave none: the same content, the same id."""
    digest = hashlib.blake2b(repr(content).encode(errors="replace"), digest_size=9)
    return f"call_{digest.hexdigest()}"


_DATA_URL: Final = re.compile(r"data:([^;,]{1,127});base64,", re.IGNORECASE)


def from_data_url(url: str) -> tuple[str, str] | None:
    """Media type and base64 text of a `data:` URL; None for any other."""
    found = _DATA_URL.match(url)
    return (found[1], url[found.end() :]) if found else None


def not_json(body: bytes) -> str:
    """What to say of a body that should have been JSON."""
    start = body.lstrip()[:15].lower()
    if start.startswith((b"<!doctype", b"<html")):
        return "the provider answered with an HTML page instead of JSON"
    if not start:
        return "the provider answered with an empty body"
    return "the provider's answer is not the JSON that its API promises"


def unsaid(status: int, body: bytes) -> str:
    """What an error body without a message comes to."""
    if body.lstrip()[:1] == b"{":
        return f"the provider answered with status {status}"
    return not_json(body)


def fields_or_empty(raw: Raw) -> dict[str, Raw]:
    """The object's fields; empty for anything else."""
    try:
        return fields_of(raw)
    except UNREADABLE:
        return {}


def text_or_empty(raw: Raw | None) -> str:
    """The text; empty for anything else."""
    if raw is None:
        return ""
    try:
        return text_of(raw)
    except UNREADABLE:
        return ""
