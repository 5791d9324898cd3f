"""What a value of the configuration may be: each kind reads a node and describes itself as JSON Schema.

Both come from one place, so the loader and the published schema cannot drift apart. A scalar is read by
what its key expects, never by what YAML 1.1 would guess: `region: no` is the text "no", `10` is a
number for `weight` and an error for a duration.

`read` answers None after reporting what was wrong. A collection answers what of it could be read, so
that one mistake does not hide the next; nothing is built of it once anything was reported.
"""

import re
from collections.abc import Mapping as AbstractMapping
from decimal import Decimal
from typing import Any, Final, Generic, Protocol, TypeVar, cast
from urllib.parse import urlsplit

from msgspec import Struct

from breakwater_gateway.config.model import KeyRef
from breakwater_gateway.config.problems import Path, Report, looks_secret, shown
from breakwater_gateway.config.provider import Param, places_fault
from breakwater_gateway.config.yaml_tree import Mapping, Node, Scalar, Sequence

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

JsonSchema = dict[str, Any]

NAME_PATTERN: Final = r"[!-~](?:[ -~]*[!-~])?"
"""Printable ASCII without spaces around it: a name goes into headers as it is."""

_AS_TEXT: Final = ["string", "number", "boolean"]
"""What JSON sees of an unquoted `123` or `no` where text is expected."""

_WHOLE: Final = re.compile(r"[+-]?(?:0|[1-9][0-9]*(?:_[0-9]+)*)")
_NUMBER: Final = re.compile(
    r"[+-]?(?:0|[1-9][0-9]*(?:_[0-9]+)*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,3})?"
)
_DIGITS_MAX: Final = 40

_UNITS_MS: Final = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}
DURATION_PATTERN: Final = (
    r"(?:[0-9]{1,9}\.[0-9]{1,6}(?:ms|s|m|h|d)"
    r"|(?=[0-9])(?:[0-9]{1,9}d)?(?:[0-9]{1,9}h)?(?:[0-9]{1,9}m)?(?:[0-9]{1,9}s)?(?:[0-9]{1,9}ms)?)"
)
"""`250ms`, `1.5s`, `1m30s`: units in falling order, each once; a fraction only on a single unit."""
_DURATION: Final = re.compile(DURATION_PATTERN)
_DURATION_PART: Final = re.compile(r"([0-9.]+)(ms|[smhd])")

KEY_REF_PATTERN: Final = r"(?:env:[A-Za-z_][A-Za-z0-9_]{0,255}|file:[^\x00-\x1f\x7f]{1,4096})"
_KEY_REF: Final = re.compile(KEY_REF_PATTERN)

_FILE_PATTERN: Final = r"[^\x00-\x1f\x7f]{1,1024}"

_URL_MAX: Final = 2048
_URL_PATTERN: Final = r"https?://[!-\"$->@-~]+"  # printable ASCII but ? and #

_HEADER_NAME_PATTERN: Final = r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}"  # RFC 9110, section 5.1
_HEADER_VALUE_PATTERN: Final = r"[!-~](?:[\t -~]*[!-~])?"  # RFC 9110, section 5.5, without obs-text
_HEADER_SECRET: Final = re.compile(
    r"(?i)auth|api-?key|token|secret|password|cookie|credential|signature"
)
_HEADER_OURS: Final = frozenset(
    [
        "accept",
        "accept-encoding",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "expect",
        "host",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ]
)


class Kind(Protocol[T_co]):
    def read(self, node: Node, path: Path, report: Report) -> T_co | None: ...

    def schema(self) -> JsonSchema: ...


class Text(Struct, frozen=True):
    """Printable ASCII of at most `max_length` characters, and of `pattern` if there is one."""

    expected: str
    pattern: str = NAME_PATTERN
    max_length: int = 512
    worded: bool = False
    """The pattern takes no number and no `true`: what is unquoted is text for JSON too."""
    words: tuple[str, ...] = ()
    """Of which one was probably meant; what stands after a colon is a name."""

    def read(self, node: Node, path: Path, report: Report) -> str | None:
        text = _text(node, self.expected, path, report)
        if text is None:
            return None
        if len(text) > self.max_length:
            message = f"expected {self.expected}, at most {self.max_length} characters"
            report.add(path, node.line, node.column, f"{message}; this has {len(text)}")
            return None
        if not re.fullmatch(self.pattern, text):
            found = shown(text)
            word, colon, name = text.partition(":")
            close = report.nearest(word, self.words) if self.words else ""
            if close not in {"", word}:
                found += f"; did you mean {shown(close + colon + name)}?"
            _unexpected(node, self.expected, found, path, report)
            return None
        return text

    def schema(self) -> JsonSchema:
        type_ = "string" if self.worded else _AS_TEXT
        return {"type": type_, "pattern": f"^(?:{self.pattern})$", "maxLength": self.max_length}


class Prose(Struct, frozen=True):
    """Text of a person's own, in any script, of at most `max_length` characters."""

    expected: str
    max_length: int

    def read(self, node: Node, path: Path, report: Report) -> str | None:
        text = _text(node, self.expected, path, report)
        if text is None:
            return None
        if not text.strip():
            _unexpected(node, self.expected, "nothing", path, report)
            return None
        if len(text) > self.max_length:
            message = f"expected {self.expected}, at most {self.max_length:_} characters"
            report.add(path, node.line, node.column, f"{message}; this has {len(text):_}")
            return None
        return text

    def schema(self) -> JsonSchema:
        return {"type": _AS_TEXT, "minLength": 1, "maxLength": self.max_length}


class FileName(Struct, frozen=True):
    """The name of a file, as it was written, and where."""

    name: str
    line: int
    column: int


class InFile(Struct, Generic[T], frozen=True):
    """A value that stands here, or in a file of its own that is named here."""

    item: Kind[T]
    expected: str

    def read(self, node: Node, path: Path, report: Report) -> T | FileName | None:
        if not isinstance(node, Scalar):
            return self.item.read(node, path, report)
        text = _text(node, self.expected, path, report)
        if text is None:
            return None
        if not re.fullmatch(_FILE_PATTERN, text):
            _unexpected(node, self.expected, shown(text), path, report)
            return None
        return FileName(text, node.line, node.column)

    def schema(self) -> JsonSchema:
        name = {"type": _AS_TEXT, "pattern": f"^{_FILE_PATTERN}$"}
        return {"anyOf": [name, self.item.schema()]}


class Whole(Struct, frozen=True):
    """A whole number, `_` between digits allowed."""

    minimum: int
    maximum: int

    def read(self, node: Node, path: Path, report: Report) -> int | None:
        expected = f"a whole number from {self.minimum:_} to {self.maximum:_}"
        text = _text(node, expected, path, report)
        if text is None:
            return None
        if len(text) <= _DIGITS_MAX and _WHOLE.fullmatch(text):
            value = int(text)
            if self.minimum <= value <= self.maximum:
                return value
        _unexpected(node, expected, shown(text), path, report)
        return None

    def schema(self) -> JsonSchema:
        # Quoted or with `_`, JSON sees text.
        return {
            "anyOf": [
                {"type": "integer", "minimum": self.minimum, "maximum": self.maximum},
                {"type": "string", "pattern": f"^{_WHOLE.pattern}$"},
            ]
        }


class Number(Struct, frozen=True):
    minimum: float
    maximum: float
    above: bool = False
    """The minimum itself is not allowed."""

    def read(self, node: Node, path: Path, report: Report) -> float | None:
        expected = f"a number {'above' if self.above else 'from'} {self.minimum:g}"
        expected += f" {'and up ' if self.above else ''}to {self.maximum:g}"
        value = _decimal(node, expected, path, report)
        if value is None:
            return None
        if value < Decimal(str(self.minimum)) or value > Decimal(str(self.maximum)):
            _unexpected(node, expected, shown(str(value)), path, report)
            return None
        if self.above and value == Decimal(str(self.minimum)):
            _unexpected(node, expected, shown(str(value)), path, report)
            return None
        return float(value)

    def schema(self) -> JsonSchema:
        least = "exclusiveMinimum" if self.above else "minimum"
        return {
            "anyOf": [
                {"type": "number", least: self.minimum, "maximum": self.maximum},
                {"type": "string", "pattern": f"^{_NUMBER.pattern}$"},
            ]
        }


class NumberOr(Struct, frozen=True):
    """A number, or one word that stands instead of it."""

    minimum: float
    maximum: float
    word: str

    def read(self, node: Node, path: Path, report: Report) -> float | str | None:
        if isinstance(node, Scalar) and node.text == self.word:
            return self.word
        expected = f"a number from {self.minimum:g} to {self.maximum:g}, or {self.word}"
        value = _decimal(node, expected, path, report)
        if value is None:
            return None
        if not Decimal(str(self.minimum)) <= value <= Decimal(str(self.maximum)):
            _unexpected(node, expected, shown(str(value)), path, report)
            return None
        return float(value)

    def schema(self) -> JsonSchema:
        number = Number(self.minimum, self.maximum).schema()
        return {"anyOf": [*number["anyOf"], {"enum": [self.word]}]}


class UsdPerMillion(Struct, frozen=True):
    """USD per million tokens, read as whole nano-USD per token: 2.50 -> 2,500. Exact or refused."""

    maximum: int = 1_000_000

    def read(self, node: Node, path: Path, report: Report) -> int | None:
        expected = f"USD per million tokens, from 0 to {self.maximum:_}"
        value = _decimal(node, expected, path, report)
        if value is None:
            return None
        if not 0 <= value <= self.maximum:
            _unexpected(node, expected, shown(str(value)), path, report)
            return None
        nano = value * 1000
        if nano != nano.to_integral_value():
            _unexpected(node, f"{expected}, in whole thousandths", shown(str(value)), path, report)
            return None
        return int(nano)

    def schema(self) -> JsonSchema:
        # No multipleOf: validators compute it in binary floating point and refuse 0.035.
        return {
            "anyOf": [
                {"type": "number", "minimum": 0, "maximum": self.maximum},
                {"type": "string", "pattern": f"^{_NUMBER.pattern}$"},
            ]
        }


class Usd(Struct, frozen=True):
    """An amount of USD, read as whole nano-USD: 0.5 -> 500,000,000. Positive, exact or refused."""

    maximum: int = 1_000_000_000

    def read(self, node: Node, path: Path, report: Report) -> int | None:
        expected = f"USD above 0 and up to {self.maximum:_}"
        value = _decimal(node, expected, path, report)
        if value is None:
            return None
        if not 0 < value <= self.maximum:
            _unexpected(node, expected, shown(str(value)), path, report)
            return None
        nano = value * 10**9
        if nano != nano.to_integral_value():
            _unexpected(node, f"{expected}, in whole nano-USD", shown(str(value)), path, report)
            return None
        return int(nano)

    def schema(self) -> JsonSchema:
        return {
            "anyOf": [
                {"type": "number", "exclusiveMinimum": 0, "maximum": self.maximum},
                {"type": "string", "pattern": f"^{_NUMBER.pattern}$"},
            ]
        }


class Share(Struct, frozen=True):
    """A part of a whole, above 0 and up to 1, read as millionths: 0.8 -> 800,000. Exact or refused."""

    def read(self, node: Node, path: Path, report: Report) -> int | None:
        expected = "a share above 0 and up to 1, such as 0.8"
        value = _decimal(node, expected, path, report)
        if value is None:
            return None
        millionths = value * 10**6
        if not 0 < value <= 1 or millionths != millionths.to_integral_value():
            _unexpected(node, expected, shown(str(value)), path, report)
            return None
        return int(millionths)

    def schema(self) -> JsonSchema:
        return {
            "anyOf": [
                {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
                {"type": "string", "pattern": f"^{_NUMBER.pattern}$"},
            ]
        }


class Switch(Struct, frozen=True):
    """`true` or `false`; YAML 1.1's `yes` and `on` are refused, since half of all tools read text."""

    def read(self, node: Node, path: Path, report: Report) -> bool | None:
        text = _text(node, "true or false", path, report)
        if text is None:
            return None
        if text in {"true", "True", "TRUE"}:
            return True
        if text in {"false", "False", "FALSE"}:
            return False
        _unexpected(node, "true or false", shown(text), path, report)
        return None

    def schema(self) -> JsonSchema:
        return {"enum": [True, False, "true", "True", "TRUE", "false", "False", "FALSE"]}


class StaysOff(Struct, frozen=True):
    """A switch that only `false` is served of; `later` says what `true` would turn on."""

    later: AbstractMapping[str, str]

    def read(self, node: Node, path: Path, report: Report) -> bool | None:
        value = Switch().read(node, path, report)
        if value:
            report.add(path, node.line, node.column, refusal(self.later["true"], "false"))
            return None
        return value

    def schema(self) -> JsonSchema:
        return {"enum": [False, "false", "False", "FALSE"]}


class Duration(Struct, frozen=True):
    """Seconds, positive, in whole milliseconds."""

    max_s: int

    def read(self, node: Node, path: Path, report: Report) -> float | None:
        expected = f"a duration such as 250ms, 10s or 1m30s, at most {format_duration(self.max_s)}"
        text = _text(node, expected, path, report)
        if text is None:
            return None
        ms = parse_duration_ms(text)
        if ms is None or not 0 < ms <= self.max_s * 1000:
            got = shown(text)
            if _NUMBER.fullmatch(text) and not text.startswith(("-", "+")):
                got += f' (a unit is missing: "{text[:20]}s"?)'
            _unexpected(node, expected, got, path, report)
            return None
        return ms / 1000

    def schema(self) -> JsonSchema:
        return {"type": "string", "pattern": f"^{DURATION_PATTERN}$"}


class DurationOrOff(Struct, frozen=True):
    """A duration; 0 for the word `off`."""

    max_s: int

    def read(self, node: Node, path: Path, report: Report) -> float | None:
        if isinstance(node, Scalar) and node.text == "off":
            return 0.0
        return Duration(self.max_s).read(node, path, report)

    def schema(self) -> JsonSchema:
        return {"type": "string", "pattern": f"^(?:off|{DURATION_PATTERN})$"}


class Choice(Struct, frozen=True):
    """One of a few words; `later` are words of the contract that this version does not serve."""

    values: tuple[str, ...]
    later: AbstractMapping[str, str] = {}

    def read(self, node: Node, path: Path, report: Report) -> str | None:
        expected = f"one of {', '.join(self.values)}" if len(self.values) > 1 else self.values[0]
        text = _text(node, expected, path, report)
        if text is None or text in self.values:
            return text
        if text in self.later:
            report.add(path, node.line, node.column, refusal(self.later[text], expected))
            return None
        close = report.nearest(text, self.values)
        _unexpected(
            node,
            expected,
            shown(text) + (f'; did you mean "{close}"?' if close else ""),
            path,
            report,
        )
        return None

    def schema(self) -> JsonSchema:
        return {"enum": list(self.values)}


class KeyRefs(Struct, frozen=True):
    """One reference to a secret, or a list of them. What stands there is never repeated."""

    maximum: int = 100

    def read(self, node: Node, path: Path, report: Report) -> tuple[KeyRef, ...] | None:
        if isinstance(node, Mapping):
            _unexpected(node, "env:NAME, file:PATH or a list of them", "a mapping", path, report)
            return None
        if isinstance(node, Scalar):
            ref = _key_ref(node, path, report)
            return None if ref is None else (ref,)
        if len(node.items) > self.maximum:
            message = f"at most {self.maximum} keys in a pool; these are {len(node.items)}"
            report.add(path, node.line, node.column, message)
            return None
        found: list[KeyRef] = []
        good = True
        for index, item in enumerate(node.items):
            ref = _key_ref(item, (*path, index), report)
            if ref is None:
                good = False
            elif ref in found:
                report.add((*path, index), item.line, item.column, "the same key twice in the pool")
                good = False
            else:
                found.append(ref)
        return tuple(found) if good else None

    def schema(self) -> JsonSchema:
        one = {"type": "string", "pattern": f"^{KEY_REF_PATTERN}$"}
        several = {"type": "array", "items": one, "maxItems": self.maximum, "uniqueItems": True}
        return {"anyOf": [one, several]}


class Setting(Struct, frozen=True):
    """A provider's setting: its text, or where it is; a secret only ever the latter."""

    param: Param

    def read(self, node: Node, path: Path, report: Report) -> str | KeyRef | None:
        reference = "env:NAME or file:PATH"
        wanted = self.param.expected
        expected = f"{wanted}, or {reference}" if self.param.pattern else f"{reference} of {wanted}"
        if not isinstance(node, Scalar) or node.is_null:
            _unexpected(node, expected, _what(node), path, report)
            return None
        if not self.param.pattern or node.text.startswith(("env:", "file:")):
            return _key_ref(node, path, report)
        if not re.fullmatch(self.param.pattern, node.text):
            _unexpected(node, expected, shown(node.text), path, report)
            return None
        return node.text

    def schema(self) -> JsonSchema:
        reference = {"type": "string", "pattern": f"^{KEY_REF_PATTERN}$"}
        pattern = self.param.pattern
        if not pattern:
            return reference
        forms: list[JsonSchema] = [reference, {"type": "string", "pattern": f"^{pattern}$"}]
        # What JSON sees of an unquoted `123`, `1.5` or `true`.
        if re.fullmatch(pattern, "1"):
            forms.append(
                {"type": "number" if re.fullmatch(pattern, "1.5") else "integer", "minimum": 0}
            )
        if re.fullmatch(pattern, "true"):
            forms.append({"type": "boolean"})
        return {"anyOf": forms}


class Url(Struct, frozen=True):
    """An http(s) base URL, read without its trailing slashes; settings may stand in braces."""

    def read(self, node: Node, path: Path, report: Report) -> str | None:
        expected = "a base URL such as https://host/v1"
        text = _text(node, expected, path, report)
        if text is None:
            return None
        reason = _url_fault(text)
        if reason:
            report.add(path, node.line, node.column, f"expected {expected}; {reason}")
            return None
        return text.rstrip("/")

    def schema(self) -> JsonSchema:
        return {"type": "string", "pattern": f"^{_URL_PATTERN}$", "maxLength": _URL_MAX}


def _key_ref(node: Node, path: Path, report: Report) -> KeyRef | None:
    if not isinstance(node, Scalar) or node.is_null:
        _unexpected(node, "env:NAME or file:PATH", _what(node), path, report)
        return None
    source, _, name = node.text.partition(":")
    if source not in {"env", "file"}:
        report.add(
            path,
            node.line,
            node.column,
            "a secret may not stand in the configuration;"
            " put it in the environment and write env:NAME (or in a file and write file:PATH)",
        )
        return None
    if not _KEY_REF.fullmatch(node.text) or (source == "env" and looks_secret(name)):
        after = (
            "the name of an environment variable after env:"
            if source == "env"
            else "the path of a file after file:"
        )
        report.add(path, node.line, node.column, f"expected {after}, not the secret itself")
        return None
    return KeyRef("env" if source == "env" else "file", name)


def _url_fault(text: str) -> str:
    """What is wrong with a base URL, without repeating it: it may hold a password."""
    if len(text) > _URL_MAX:
        return f"this has {len(text)} characters, {_URL_MAX} are allowed"
    if not text.startswith(("http://", "https://")):
        return "it must start with http:// or https://"
    if "?" in text or "#" in text:
        return "a query or a fragment has no place in it"
    if not re.fullmatch(_URL_PATTERN, text):
        return "it holds characters that a URL must escape"
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        return "its host or port is malformed"
    if "@" in parts.netloc:
        return "a user or password has no place in it; use api_key"
    if not host or port == 0:
        return "its host or port is missing"
    if fault := places_fault(text):
        return fault
    for tail in ("/chat/completions", "/embeddings", "/responses", "/messages"):
        if parts.path.rstrip("/").endswith(tail):
            return f"leave out {tail}, which is added"
    return ""


class Hook(Struct, frozen=True):
    """An http(s) address that is called, or where it is: env:NAME or file:PATH."""

    def read(self, node: Node, path: Path, report: Report) -> str | KeyRef | None:
        expected = "an address such as https://host/path, or env:NAME or file:PATH of one"
        text = _text(node, expected, path, report)
        if text is None:
            return None
        if text.startswith(("env:", "file:")):
            return _key_ref(node, path, report)
        if looks_secret(text) or "?" in text or "@" in text:
            message = "an address that holds a secret does not stand in the configuration;"
            report.add(path, node.line, node.column, f"{message} write env:NAME or file:PATH")
            return None
        if len(text) > _URL_MAX or not re.fullmatch(_URL_PATTERN, text):
            _unexpected(node, expected, shown(text), path, report)
            return None
        return text

    def schema(self) -> JsonSchema:
        pattern = f"^(?:{_URL_PATTERN}|{KEY_REF_PATTERN})$"
        return {"type": "string", "pattern": pattern, "maxLength": 4096 + 5}


class Headers(Struct, frozen=True):
    """Header fields sent with every call; secrets and what the HTTP client sets itself are refused."""

    maximum: int = 32
    value_max: int = 1024

    def read(self, node: Node, path: Path, report: Report) -> tuple[tuple[str, str], ...] | None:
        if not isinstance(node, Mapping):
            _unexpected(node, "header names and values", _what(node), path, report)
            return None
        if len(node.entries) > self.maximum:
            message = f"at most {self.maximum} headers; these are {len(node.entries)}"
            report.add(path, node.line, node.column, message)
            return None
        found: dict[str, str] = {}
        good = True
        for key, value in node.entries:
            fault = self._fault(key.text, value)
            if not fault and key.text.lower() in found:
                fault = "the same header twice"
            if fault:
                report.add((*path, key.text), key.line, key.column, fault)
                good = False
            elif isinstance(value, Scalar):
                found[key.text.lower()] = value.text
        return tuple(found.items()) if good else None

    def _fault(self, name: str, value: Node) -> str:
        if not re.fullmatch(_HEADER_NAME_PATTERN, name):
            return "not a header name (RFC 9110: letters, digits and hyphens)"
        if name.lower() in _HEADER_OURS:
            return "this header is set for each call; it cannot be configured"
        if _HEADER_SECRET.search(name):
            return "a header that carries a secret is not configured here; use api_key"
        if not isinstance(value, Scalar) or value.is_null:
            return f"expected the header's value, not {_what(value)}"
        if len(value.text) > self.value_max:
            return f"at most {self.value_max} characters; this has {len(value.text)}"
        if not re.fullmatch(_HEADER_VALUE_PATTERN, value.text):
            return "expected printable ASCII on one line"
        if looks_secret(value.text):
            return "this looks like a secret; put it in the environment and use api_key: env:NAME"
        return ""

    def schema(self) -> JsonSchema:
        value = {
            "type": _AS_TEXT,
            "pattern": f"^{_HEADER_VALUE_PATTERN}$",
            "maxLength": self.value_max,
        }
        return {
            "type": "object",
            "maxProperties": self.maximum,
            "propertyNames": {"pattern": f"^{_HEADER_NAME_PATTERN}$"},
            "additionalProperties": value,
        }


class ListOf(Struct, Generic[T], frozen=True):
    item: Kind[T]
    expected: str
    minimum: int
    maximum: int

    def read(self, node: Node, path: Path, report: Report) -> tuple[T | None, ...] | None:
        if not isinstance(node, Sequence):
            _unexpected(node, self.expected, _what(node), path, report)
            return None
        count = len(node.items)
        if not self.minimum <= count <= self.maximum:
            limits = f"{self.minimum:_} to {self.maximum:_} of them"
            message = f"expected {self.expected}, {limits}; these are {count}"
            report.add(path, node.line, node.column, message)
            return None
        return tuple(
            self.item.read(item, (*path, index), report) for index, item in enumerate(node.items)
        )

    def schema(self) -> JsonSchema:
        return {
            "type": "array",
            "items": self.item.schema(),
            "minItems": self.minimum,
            "maxItems": self.maximum,
        }


class OneOrMore(Struct, frozen=True):
    """A text, or a list of them; a tuple either way."""

    item: Text
    expected: str
    maximum: int

    def read(self, node: Node, path: Path, report: Report) -> tuple[str, ...] | None:
        if not isinstance(node, Sequence):
            one = self.item.read(node, path, report)
            return None if one is None else (one,)
        several = ListOf[str](self.item, f"a list of {self.expected}", 1, self.maximum)
        found = several.read(node, path, report)
        if found is None or any(each is None for each in found):
            return None
        return tuple(each for each in found if each is not None)

    def schema(self) -> JsonSchema:
        one = self.item.schema()
        several = {"type": "array", "items": one, "minItems": 1, "maxItems": self.maximum}
        return {"anyOf": [one, several]}


class MapOf(Struct, Generic[T], frozen=True):
    """Names of the user's own, each with a value."""

    item: Kind[T]
    expected: str
    name: Text
    minimum: int
    maximum: int

    def read(self, node: Node, path: Path, report: Report) -> dict[str, "Named[T]"] | None:
        if not isinstance(node, Mapping):
            _unexpected(node, self.expected, _what(node), path, report)
            return None
        count = len(node.entries)
        if not self.minimum <= count <= self.maximum:
            limits = f"{self.minimum:_} to {self.maximum:_} of them"
            message = f"expected {self.expected}, {limits}; these are {count}"
            report.add(path, node.line, node.column, message)
            return None
        found: dict[str, Named[T]] = {}
        for key, value_node in node.entries:
            here = (*path, key.text)
            # A name is text however it is written: only an empty key has nothing to read.
            quoted = Scalar(key.text, key.line, key.column, plain=False)
            name = self.name.read(quoted, here, report)
            value = self.item.read(value_node, here, report)
            if name is not None and value is not None:
                found[name] = Named(value, key.line, key.column)
        return found

    def schema(self) -> JsonSchema:
        return {
            "type": "object",
            "minProperties": self.minimum,
            "maxProperties": self.maximum,
            "propertyNames": self.name.schema(),
            "additionalProperties": self.item.schema(),
        }


class Named(Struct, Generic[T], frozen=True):
    """A value of a `MapOf`, with the place of its name."""

    value: T
    line: int
    column: int


class Key(Struct, Generic[T], frozen=True):
    """One key of a section."""

    name: str
    kind: Kind[T]
    help: str
    required: bool = False


class Block(Struct, frozen=True):
    """A section as it was read: what it holds and where."""

    values: dict[str, object]
    marks: dict[str, tuple[int, int]]
    """Of each key that is there, its value readable or not."""
    line: int
    column: int

    def get(self, key: Key[T]) -> T | None:
        return cast("T | None", self.values.get(key.name))

    def has(self, key: Key[Any]) -> bool:
        return key.name in self.marks

    def mark(self, key: Key[Any] | None = None) -> tuple[int, int]:
        """Where the key's value stands; the section itself when it has no such key."""
        here = (self.line, self.column)
        return here if key is None else self.marks.get(key.name, here)


class Section(Struct, frozen=True):
    """A mapping with known keys; `later` are keys of the contract that this version does not serve."""

    title: str
    keys: tuple[Key[Any], ...]
    later: AbstractMapping[str, str] = {}

    def read(self, node: Node, path: Path, report: Report) -> Block | None:
        if not isinstance(node, Mapping):
            names = ", ".join(key.name for key in self.keys)
            _unexpected(node, f"the keys of {self.title} ({names})", _what(node), path, report)
            return None
        kinds = {key.name: key for key in self.keys}
        values: dict[str, object] = {}
        marks: dict[str, tuple[int, int]] = {}
        mistyped: set[str] = set()
        for name, child in node.entries:
            here = (*path, name.text)
            key = kinds.get(name.text)
            if key is None:
                mistyped.add(self._unknown(name, here, report))
                continue
            value = key.kind.read(child, here, report)
            marks[key.name] = (child.line, child.column)
            if value is not None:
                values[key.name] = value
        for key in self.keys:
            if key.required and key.name not in marks and key.name not in mistyped:
                message = f'"{key.name}" is missing: {key.help}'
                report.add(path, node.line, node.column, message)
        return Block(values, marks, node.line, node.column)

    def _unknown(self, name: Scalar, path: Path, report: Report) -> str:
        """Reports an unknown key; answers the key that was probably meant, or nothing."""
        close = ""
        if name.text in self.later:
            message = refusal(self.later[name.text], "")
        elif close := report.nearest(name.text, [key.name for key in self.keys]):
            message = f'unknown key; did you mean "{close}"?'
        else:
            message = f"unknown key; {self.title} has {', '.join(key.name for key in self.keys)}"
        report.add(path, name.line, name.column, message)
        return close

    def schema(self) -> JsonSchema:
        return {
            "type": "object",
            "properties": {
                key.name: {**key.kind.schema(), "description": key.help} for key in self.keys
            },
            "required": [key.name for key in self.keys if key.required],
            "additionalProperties": False,
        }


def refusal(what: str, instead: str) -> str:
    message = f"{what} is not served by this version"
    return f"{message}; expected {instead}" if instead else f"{message}; remove it"


def parse_duration_ms(text: str) -> int | None:
    """Whole milliseconds of `1m30s`; None when it is not a duration or has a finer fraction."""
    if len(text) > 60 or not _DURATION.fullmatch(text):
        return None
    total = sum(
        (Decimal(count) * _UNITS_MS[unit] for count, unit in _DURATION_PART.findall(text)),
        Decimal(0),
    )
    return int(total) if total == total.to_integral_value() else None


def format_duration(seconds: float) -> str:
    """The shortest single unit that says it exactly: 90 -> `90s`, 3600 -> `1h`."""
    ms = round(seconds * 1000)
    for unit, size in _UNITS_MS.items():
        if ms % size == 0:
            return f"{ms // size}{unit}"
    raise AssertionError("a millisecond divides every whole number of them")


def _decimal(node: Node, expected: str, path: Path, report: Report) -> Decimal | None:
    text = _text(node, expected, path, report)
    if text is None:
        return None
    if len(text) > _DIGITS_MAX or not _NUMBER.fullmatch(text):
        _unexpected(node, expected, shown(text), path, report)
        return None
    return Decimal(text)


def _text(node: Node, expected: str, path: Path, report: Report) -> str | None:
    if isinstance(node, Scalar) and not node.is_null:
        return node.text
    _unexpected(node, expected, _what(node), path, report)
    return None


def _what(node: Node) -> str:
    match node:
        case Scalar():
            return "nothing" if node.is_null else shown(node.text)
        case Mapping():
            return "a mapping"
        case Sequence():
            return "a list"


def _unexpected(node: Node, expected: str, got: str, path: Path, report: Report) -> None:
    report.add(path, node.line, node.column, f"expected {expected}, not {got}")
